"""Every two options together, in a few calls: kernels get single options right and drop one where another
takes its branch.

The calls are the translates modulo a prime p of its non-zero squares: where p is 3 modulo 4, every two
numbers meet in (p - 3) / 4 of them (the quadratic residue designs of Paley; Hall, Combinatorial Theory,
1986, chapter 11). Where there are fewer options than p, calls are smaller. A call whose pairs have all met
`MEETINGS` times already is left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from refattn.calls.dense import DENSE
from refattn.oracle.inputs.families import AttentionInputs, Sizes, attention_inputs, every_option

OPTIONS = tuple(names[0] for names in every_option(DENSE) if names)
PRIMES = (11, 19, 23, 31)
PRIME = next(prime for prime in PRIMES if prime >= len(OPTIONS))
SQUARES = {number**2 % PRIME for number in range(1, PRIME)}
MEETINGS = 2
FAMILY = "options together"
SIZES = Sizes(num_heads=4, q_len=35, kv_len=577)  # three tiles of 256 keys, and several of all smaller ones
# values that all show: offset, lengths and window each hide keys that the two others leave
VALUES = {"q_offset": 290, "kv_lengths": np.array([331, 507])}
WINDOW = (140, 33)


def option_groups(allowed=OPTIONS, always=()) -> list[tuple[str, ...]]:
    """Groups of options in which every two of `allowed` meet; `always` holds options that every group
    has.
    """
    kept: list[set] = []
    for block in sorted(_blocks(), key=lambda block: len(block & {*allowed}), reverse=True):
        group = (block & {*allowed}) | {*always}
        new = any(
            sum({*pair} <= other for other in kept) < MEETINGS for pair in itertools.combinations(group, 2)
        )
        if new and not any(group <= other for other in kept):
            kept.append(group)
    return [_in_order(group) for group in kept]


def _blocks():
    for shift in range(PRIME):
        block = {name for n, name in enumerate(OPTIONS) if (n - shift) % PRIME in SQUARES}
        # an offset shows on causal rows; many kernels have causal windows only, so most windows come with
        # causal
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
    allowed = [
        name
        for name in OPTIONS
        if any(call.takes(_case(_in_order({name, *more}), dtype, seed)) for more in (always, ("causal",)))
    ]
    groups = []
    for names in option_groups(allowed, always):
        whole = call.takes(_case(names, dtype, seed))
        groups += (
            [names] if whole else [_in_order({*pair, *always}) for pair in itertools.combinations(names, 2)]
        )
    for names in dict.fromkeys(groups):
        inputs = _case(names, dtype, seed)
        if call.takes(inputs):
            yield inputs


def _case(names, dtype, seed):
    inputs = attention_inputs("normal", names, sizes=SIZES, dtype=dtype, seed=seed)
    given = {name: VALUES.get(name, value) for name, value in inputs.options.items()}
    if "window" in given:
        given["window"] = (WINDOW[0], None if "causal" in given else WINDOW[1])
    return replace(inputs, name=f"{inputs.name}, together", family=FAMILY, options=given)
