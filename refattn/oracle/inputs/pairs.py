"""Every two options together, in a few calls: kernels get single options right and drop one where another
takes its branch.

Eleven options in eleven calls of five, arranged so that every two options meet in two calls: the (11, 5,
2) biplane, whose blocks are the translates modulo 11 of the squares {1, 3, 4, 5, 9} (Hall, Combinatorial
Theory, 1986, chapter 11).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from refattn.oracle.harness.callables import KernelCall, Unsupported
from refattn.oracle.inputs.families import AttentionInputs, Sizes, attention_inputs

OPTIONS = (
    "causal",
    "left window",
    "mask",
    "bias",
    "softcap",
    "alibi",
    "sinks",
    "lengths",
    "dropout",
    "own offset",
    "own scale",
)
SQUARES = (1, 3, 4, 5, 9)
SIZES = Sizes()
# values that all show: offset, lengths and window each hide keys that the two others leave
VALUES = {"q_offset": 40, "kv_lengths": np.array([47, 71])}
WINDOW = (20, 5)


def option_groups(allowed=OPTIONS, always=()) -> list[tuple[str, ...]]:
    """Groups of options in which every two of `allowed` meet; `always` holds options that every group
    has.
    """
    kept: list[set] = []
    for block in sorted(_blocks(), key=lambda block: len(block & {*allowed}), reverse=True):
        group = (block & {*allowed}) | {*always}
        if len(group) > 1 and not any(group <= other for other in kept):
            kept.append(group)
    return [_in_order(group) for group in kept]


def _blocks():
    for shift in range(len(OPTIONS)):
        block = {OPTIONS[(square + shift) % len(OPTIONS)] for square in SQUARES}
        # an offset shows on causal rows; many kernels have causal windows only, so one of the five is
        # two-sided
        if "own offset" in block or ("left window" in block and "own scale" not in block):
            block.add("causal")
        yield block


def _in_order(group):
    return tuple(name for name in OPTIONS if name in group)


def option_pair_cases(dtype, seed, call) -> Iterator[AttentionInputs]:
    """Dense calls of what the kernel supports and its dialect can say; a group that it cannot say as
    a whole goes in twos.
    """
    always = ("causal",) if call.dialect.always_causal else ()
    sayable = _sayable(call)
    allowed = [
        name
        for name in OPTIONS
        if any(sayable(_case(_in_order({name, *more}), dtype, seed)) for more in (always, ("causal",)))
    ]
    groups = []
    for names in option_groups(allowed, always):
        whole = sayable(_case(names, dtype, seed))
        groups += (
            [names] if whole else [_in_order({*pair, *always}) for pair in itertools.combinations(names, 2)]
        )
    for names in dict.fromkeys(groups):
        inputs = _case(names, dtype, seed)
        if sayable(inputs):
            yield inputs


def _case(names, dtype, seed):
    inputs = attention_inputs("normal", names, sizes=SIZES, dtype=dtype, seed=seed)
    options = {name: VALUES.get(name, value) for name, value in inputs.options.items()}
    if "window" in options:
        options["window"] = (WINDOW[0], None if "causal" in options else WINDOW[1])
    return replace(inputs, name=f"{inputs.name}, together", options=options)


class _Reached(Exception):
    """The call would have been made."""


def _sayable(call):
    """inputs -> whether the kernel's options, and its dialect, allow the call; the kernel is not called."""

    def reached(**_):
        raise _Reached

    said = KernelCall(reached, call.function, call.dialect.name)

    def sayable(inputs):
        if call.unsupported(inputs.options):
            return False
        if call.dialect.name == "refattn":
            return True
        try:
            said(inputs.arrays, inputs.options)
        except _Reached:
            return True
        except Unsupported:
            return False
        return True

    return sayable
