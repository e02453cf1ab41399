"""Errors of weights that look random: their size, and what it grows with."""

from __future__ import annotations

import numpy as np

from refattn.oracle.arithmetic.formats import FORMATS
from refattn.oracle.imaging.wrong_rows import centred

LEAST = 100  # pairs
QUARTER = 0.25  # of the pairs: those of the smallest and of the largest numbers are compared
GROWS, SAME = 3.0, 1.5  # factors between the errors of the two
NEAR = 2.0  # factor between an error and the roundoff that is named


def noise_in_words(rows) -> str:
    """How large the errors are for small and for large scores and weights; "" where that says nothing."""
    with np.errstate(all="ignore"):
        off = rows.measured - rows.score
    use = rows.judged & np.isfinite(off)
    if use.sum() < LEAST:
        return ""
    error = centred(np.where(use, off, 0), use)[use]
    size, below = np.abs(rows.raw)[use], (rows.top[:, None] - rows.score)[use]
    by_size, by_weight = _growth(error, size), _growth(error, below)
    near = ""
    if by_weight > GROWS and by_weight > by_size:
        return (
            f"Errors are {by_weight:.2g} times as large for small weights as for large ones, as if "
            "exponentials were rounded to fixed steps."
        )
    relative = _rms(error) / max(_rms(size), 1e-300)
    for name in ("bfloat16", "float16", "tfloat32"):
        if 1 / NEAR < relative / (FORMATS[name].unit_roundoff / np.sqrt(3)) < 2 * NEAR:
            near = f", about what {name} rounds off of scores of this size"
    if by_size > GROWS:
        return f"Errors grow with the size of the score ({by_size:.2g} times as large for large ones){near}."
    if by_size < SAME and by_weight < SAME:
        return (
            f"Errors of small scores and weights are as large as those of large ones (rms "
            f"{100 * _rms(error):.2g} %{near}): operands, or sums on the way to the score, are rounded, "
            "not the finished score."
        )
    return f"Errors are of rms {100 * _rms(error):.2g} %{near}."


def _growth(error, number):
    """Size of the errors of the largest numbers over that of the smallest."""
    low, high = np.quantile(number, (QUARTER, 1 - QUARTER))
    return _rms(error[number >= high]) / max(_rms(error[number <= low]), 1e-300)


def _rms(x):
    return float(np.sqrt(np.mean(np.square(x))))
