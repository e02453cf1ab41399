"""Numbers that all lie on the grid of a coarser format: what was stored in it on the way."""

from __future__ import annotations

import numpy as np

from refattn.oracle.arithmetic.formats import FORMATS, round_to

LEAST = 24  # numbers that must lie on a grid, so that it is no accident
LEAST_DIFFERENT = 8  # of them: a constant lies on every grid
STEPS = (7, 127, 128)  # of int4 and int8
COARSE = ("float8_e5m2", "float8_e4m3fn", "bfloat16", "float16", "tfloat32")  # coarsest first


def grid_of(numbers, roundoff) -> str:
    """The coarsest format that holds all the numbers, if its roundoff is larger than `roundoff`; else ""."""
    numbers = numbers[np.isfinite(numbers) & (numbers != 0)]
    if numbers.size < LEAST or len(np.unique(numbers)) < LEAST_DIFFERENT:
        return ""
    for name in COARSE:
        if FORMATS[name].unit_roundoff > 1.5 * roundoff and (round_to(numbers, name) == numbers).all():
            return name
    return ""


def steps_of(rows, roundoff):
    """Steps up to the largest number of each row (R, E), if all numbers are whole multiples of a step.

    127 for int8 with one scale a row; 0 where numbers are no such multiples.
    """
    if len(np.unique(rows)) < LEAST_DIFFERENT:
        return 0
    largest = np.abs(rows).max(-1, keepdims=True)
    known = (largest > 0).all(-1) & np.isfinite(rows).all(-1)
    if known.sum() * rows.shape[-1] < LEAST or rows.shape[-1] < 8:
        return 0
    for steps in STEPS:
        scaled = rows[known] / largest[known] * steps
        bound = 3 * roundoff * np.abs(scaled) + 1e-4 * (steps < 100)
        near = np.abs(scaled - np.round(scaled)) <= bound
        if near.mean() > 0.98 and roundoff * steps < 0.05:
            return steps
    return 0


def weights_grid(ledgers):
    """The format in which weights lie before they are normalised, or ""."""
    weights = ledgers.measured.weights
    with np.errstate(all="ignore"):
        relative = weights / weights.max(-1, keepdims=True)
    roundoff = ledgers.measured.spec.output.unit_roundoff
    here = np.isfinite(relative) & (relative > 2**-5) & (relative < 1)
    values = relative[here]
    if values.size < LEAST:
        return ""
    for name in COARSE:
        u = FORMATS[name].unit_roundoff
        if u < 16 * roundoff or u <= 2 * ledgers.measured.spec.weight.unit_roundoff:
            continue
        near = np.abs(round_to(values, name) - values) <= 4 * roundoff * values
        if near.mean() > 0.9:
            return name
    return ""
