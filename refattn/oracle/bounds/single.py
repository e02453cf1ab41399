"""Matrices in float32, and where that is good enough for a bound.

A bound needs its magnitudes and squares to a few digits only. float32 takes half the time of float64, and
serves where nothing of weight can leave its range and no arithmetic of the spec is finer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Entries of ordinary size, zeros apart: their squares, and those of weights, stay in the range of float32.
SMALLEST_ENTRY, LARGEST_ENTRY = 2.0**-30, 2.0**20
COARSE = 2.0**-25  # roundoffs below it are those of arithmetic finer than float32
COARSE_WEIGHTS = 2.0**-12  # the rounding of an exact weight is seen in float32 where it is larger than this


@dataclass
class Parts:
    """A finite matrix in the dtype of a tile, its magnitudes and squares."""

    exact: np.ndarray
    magnitude: np.ndarray
    square: np.ndarray
    smallest: float | None = None  # no magnitude is smaller, where that is known

    @classmethod
    def of(cls, exact):
        return cls(exact, np.abs(exact), exact * exact)

    def rows(self, rows) -> Parts:
        return Parts(self.exact[rows], self.magnitude[rows], self.square[rows], self.smallest)


def suffices_for(spec):
    """Whether bounds for a spec may be computed in float32; not without a spec."""
    if spec is None:
        return False
    formats = (spec.softmax, spec.accumulator, spec.score, spec.weight, spec.output)
    if any(0.0 < form.unit_roundoff <= COARSE for form in formats):
        return False
    if spec.output.unit_roundoff == 0.0 or spec.accumulator.unit_roundoff == 0.0:
        return False
    converted = spec.softmax.unit_roundoff < spec.weight.unit_roundoff
    return not (converted and spec.weight.unit_roundoff < COARSE_WEIGHTS)


def in_single(matrix) -> Parts | None:
    """The parts of a matrix in float32, where all entries are finite, and of ordinary size or 0; else
    None."""
    with np.errstate(all="ignore"):
        parts = Parts.of(matrix.astype(np.float32, copy=False))
    size = parts.magnitude
    if not size.max(initial=0.0) <= LARGEST_ENTRY:  # NaN included
        return None
    parts.smallest = smallest = size.min(initial=np.inf)
    if smallest == 0.0:
        lost = (size == 0) & (matrix != 0)
        smallest = 0.0 if lost.any() else np.where(size > 0, size, np.inf).min()
    return parts if smallest >= SMALLEST_ENTRY else None
