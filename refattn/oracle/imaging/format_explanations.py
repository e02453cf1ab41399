"""Explanations of wrong rows by a format that the output went through: their numbers lie on its grid."""

from __future__ import annotations

import numpy as np

from refattn.oracle.arithmetic.formats import FORMATS, round_to
from refattn.oracle.imaging.formats_seen import COARSE

LEAST_NUMBERS = 6  # of a row that are not 0
MOST_STEPS = 300  # of a grid of equal steps: 8 bits, and some more


def coarse_formats(output, right, deviation, own):
    """Rows (..., E) on the grid of a coarser format than `own` and near the right numbers: (words, rows)."""
    taken = np.zeros(output.shape[:-1], bool)
    with np.errstate(all="ignore"):
        fine = np.isfinite(output).all(-1) & ((output != 0).sum(-1) >= LEAST_NUMBERS)
        for name in COARSE:
            form = FORMATS[name]
            if form.unit_roundoff <= own.unit_roundoff:
                continue
            on_grid = (round_to(output, form) == output).all(-1)
            # one step: a value may have been truncated
            near = (
                np.abs(output - right)
                <= form.step(np.maximum(np.abs(output), np.abs(right))) + 4 * deviation
            ) | ((np.abs(right) > form.largest) & (np.abs(output) == form.largest))
            rows = fine & on_grid & near.all(-1) & ~taken
            if rows.any():
                taken |= rows
                yield f"the output was stored in {name} in between", rows
        for words, axes in (("", None), (" of each head", (-2, -1)), (" of each row", (-1,))):
            step = equal_steps(output, axes)
            steps = output / step
            on_grid = (np.abs(steps - np.rint(steps)) < 0.02).all(-1) & (np.abs(steps).max(-1) < MOST_STEPS)
            near = np.abs(output - right) <= 1.01 * step + 4 * deviation
            # that few steps are whole by chance must be improbable: 1 in 25 for each number
            rows = fine & on_grid & near.all(-1) & ~taken
            if rows.any():
                taken |= rows
                yield (
                    f"the output was stored as whole multiples of one step{words} (integers) in between",
                    rows,
                )


def equal_steps(output, axes):
    """The step of a grid of equal steps, from the smallest distance of neighbouring numbers."""
    flat = np.where(np.isfinite(output), output, 0.0)
    if axes is None:
        flat = flat.reshape(1, -1)
    elif axes == (-2, -1):
        flat = flat.reshape(*flat.shape[:-2], -1)
    ordered = np.sort(flat, axis=-1)
    gaps = np.diff(ordered, axis=-1)
    largest = np.abs(flat).max(-1, initial=0.0)
    gaps = np.where(gaps > largest[..., None] / MOST_STEPS / 2, gaps, np.inf)
    step = gaps.min(-1, initial=np.inf)
    # a step fitted to all numbers at once: whole multiples of the smallest gap, by least squares
    for _ in range(3):
        with np.errstate(all="ignore"):
            whole = np.rint(flat / step[..., None])
            step = np.nan_to_num((whole * flat).sum(-1) / (whole**2).sum(-1), nan=np.inf)
    shape = {None: (1,) * output.ndim, (-2, -1): (*step.shape, 1, 1)}.get(axes, (*step.shape, 1))
    return step.reshape(shape)
