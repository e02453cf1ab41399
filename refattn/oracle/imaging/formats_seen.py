"""Weights and outputs that all lie on the grid of a coarser format: what was stored in it on the way."""

from __future__ import annotations

import math

import numpy as np

from refattn.oracle.arithmetic.formats import FORMATS, round_to

LEAST = 24  # numbers that must lie on a grid, so that it is no accident
LEAST_DIFFERENT = 8  # of them: a constant lies on every grid
ON_GRID = 0.9
SMALL = 0.1  # logarithm of a factor that rounding may be
MOST_SPLITS, SIZES = 17, (16, 32, 48, 64, 80, 96, 128, 192, 256, 512)
GRID_ROWS = 256  # that are looked at, at least, where there are so many
PART = 0.1  # of the roundoff, by which numbers may lie beside a grid
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
    return next((name for name in _coarser(ledgers) if _on_grid(values, name, 4 * roundoff)), "")


def _coarser(ledgers):
    """Formats that are coarser than those of the output and of the weights, the coarsest first."""
    spec = ledgers.measured.spec
    least = max(16 * spec.output.unit_roundoff, 2.1 * spec.weight.unit_roundoff)
    return [name for name in COARSE if FORMATS[name].unit_roundoff >= least]


def _on_grid(values, name, bound):
    return (np.abs(round_to(values, name) - values) <= bound * values).mean() > ON_GRID


def parts_grid(ledgers) -> tuple[str, str]:
    """The format in which the weights of each split lie, normalised by the split itself, and which splits
    those are; "" and "" where none are found.
    """
    view, measured = ledgers.view, ledgers.measured
    small = np.abs(ledgers.ratio - ledgers.shift[..., None])
    formats, known = _coarser(ledgers), np.isfinite(ledgers.ratio)
    if not formats or known.sum() < LEAST or np.nanmax(small) > SMALL:
        return "", ""
    keys, hidden = np.arange(view.num_keys), np.where(view.visible, view.score, -np.inf)
    step = max(math.prod(view.shape[:3]) // GRID_ROWS, 1)  # all rows are on the grid, or none is
    some = lambda array: array.reshape(-1, array.shape[-1])[::step]
    hidden, known, weights, lse = map(some, (hidden, known, measured.weights, view.lse[..., None]))
    ceil = {-(-view.num_keys // count) for count in range(2, MOST_SPLITS)}
    for size in sorted({*ceil, *SIZES}, reverse=True):
        if not 2 < size < view.num_keys:
            continue
        edges = np.arange(0, view.num_keys, size)
        with np.errstate(all="ignore"):
            own = np.logaddexp.reduceat(hidden, edges, axis=-1)[..., keys // size]
            values = (weights * np.exp(lse - own))[known & (np.isfinite(own))]
        values = values[(values > 2**-6) & (values < 0.99)]
        for name in formats if values.size >= LEAST else ():
            if _on_grid(values, name, PART * FORMATS[name].unit_roundoff):
                return name, f"{size} keys"
    return "", ""
