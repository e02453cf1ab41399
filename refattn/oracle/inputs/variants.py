"""Calls made from other calls: other names, seeds, head sizes, and fillers in slots that no row may see."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from refattn.oracle.arithmetic.formats import round_to
from refattn.oracle.inputs.families import AttentionInputs

FULL_SEEDS = 3
GROWTH = 0.0137  # of columns each time they are repeated; no short fraction, so that products round anew
# in hidden slots for kernels that do not hide NaN: far from every other number, and products of two fit
# float16
JUNK = 1e3


def named(inputs, words):
    return replace(inputs, name=f"{inputs.name}, {words}")


def seeds_of(seed, level):
    return range(seed, seed + (1 if level == "quick" else FULL_SEEDS))


def numbered(inputs, seed, first):
    names = [f"{name}={inputs.options[name]!r}" for name in ("form",) if name in inputs.options]
    inputs = named(inputs, " ".join(names)) if names else inputs
    return inputs if seed == first else named(inputs, f"seed {seed}")


def fitted(inputs: AttentionInputs, head_dims) -> AttentionInputs:
    """The inputs with other head sizes, for kernels built for one; None leaves them."""
    if head_dims is None:
        return inputs
    # equal columns round alike: their errors would add up as those of no ordinary call do
    growth = 0.0 if inputs.family == "exact" else GROWTH
    arrays = tuple(
        fit(array, size, growth)
        for array, size in zip(inputs.arrays, (head_dims[0], *head_dims), strict=True)
    )
    return replace(
        inputs, arrays=arrays, output=None if inputs.output is None else fit(inputs.output, head_dims[1])
    )


def fit(array, size, growth=0.0):
    """The last axis cut, or continued by itself, each time rolled by one more place and `growth` larger."""
    length = array.shape[-1]
    turns = [np.roll(array, turn, axis=-1) for turn in range(-(-size // length))]
    if growth:
        grown = (1.0 + growth * turn for turn in range(len(turns)))
        turns = [(part * by).astype(array.dtype) for part, by in zip(turns, grown, strict=True)]
    return np.ascontiguousarray(np.concatenate(turns, axis=-1)[..., :size])


def with_numbers(inputs: AttentionInputs) -> AttentionInputs:
    """Inputs whose hidden slots hold NaN or infinity, with JUNK there instead; others as they are."""
    if inputs.family != "poison":
        return inputs
    return replace(
        inputs,
        arrays=tuple(
            np.where(np.isfinite(array), array, np.asarray(JUNK, array.dtype)) for array in inputs.arrays
        ),
    )


def held_in(inputs: AttentionInputs, dtype) -> AttentionInputs:
    """The inputs with every finite number of its arrays rounded to one of `dtype`; None leaves them."""
    if dtype is None:
        return inputs
    arrays = tuple(round_to(array, dtype.name).astype(array.dtype) for array in inputs.arrays)
    return replace(inputs, arrays=arrays)


def _with(inputs, positions, filler):
    """The inputs with `filler` in rows of arrays: (array number, index) pairs."""
    arrays = [array.copy() for array in inputs.arrays]
    for number, index in positions:
        arrays[number][index] = filler
    return replace(inputs, arrays=tuple(arrays))


def hidden_pair(name, inputs, positions):
    return name, _with(inputs, positions, 0), replace(_with(inputs, positions, np.nan), family="poison")
