"""Rows that hold a part of the result of other rows: accumulators that are not reset.

An accumulator that starts with what another row left adds a multiple of that row's output; where the row sum
starts with it too, the output is a mean of both. Neither asks where the values of that row stand.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refattn.oracle.imaging.features import KEY_TILES
from refattn.oracle.imaging.work_items import common_sources

SAMPLED, MOST_ROWS = 192, 4096  # wrong rows that are looked at; rows in all
LEAST_COLUMNS = 8  # fewer are parallel by chance
CLEAR = 4  # times the tolerance
LEAST_ROWS, LEAST_CLEAR = 3, 0.3  # wrong rows; share of them that are so clearly off
SHARE = 0.75  # of the wrong rows whose source there is
KNOWN = 0.5  # of the rows have a source
FAR = 2.5  # times the rounding, that an error is to lie along a direction
WHOLE = 0.999  # of a mean: a row that holds nothing of its own is a copy
FACTOR = 0.02  # relative, of a factor that has a name


@dataclass(eq=False)
class Kept:
    """Wrong rows (B, H, T) that hold a part of other rows, and words for it."""

    rows: np.ndarray
    words: str


def kept_outputs(measured, rows):
    """The wrong rows among `rows` (B, H, T) that hold a part of other rows, or None."""
    view = measured.view
    columns = np.flatnonzero(~measured.wrong_columns)
    wrong = rows & measured.off[..., columns].any(-1)
    output = measured.output[..., columns]
    exists = view.row_exists & np.isfinite(output).all(-1) & (output != 0).any(-1)
    wrong &= exists & np.isfinite(view.lse)
    places, every = np.argwhere(wrong), np.argwhere(exists & np.isfinite(view.lse))
    if len(columns) < LEAST_COLUMNS or len(places) < LEAST_ROWS or not 1 < len(every) <= MOST_ROWS:
        return None
    got, right = measured.output[..., columns], measured.expected_output[..., columns]
    tolerance = np.linalg.norm(measured.output_tolerance[..., columns], axis=-1)
    off = np.linalg.norm(got - right, axis=-1)
    at = np.nonzero(wrong & (off > CLEAR * tolerance))
    if len(at[0]) < max(LEAST_ROWS, LEAST_CLEAR * len(places)):
        return None
    some = np.arange(0, len(at[0]), len(at[0]) // SAMPLED + 1)
    for mean in (False, True):
        for theirs in (got, right):
            search = _Search(got, right, theirs, tolerance, mean)
            near = search.near(tuple(axis[some] for axis in at), tuple(every.T))
            for source in common_sources(view, at, near, some, every):
                parallel, factor = search.of_source(at, source)
                known = source.inside
                parallel &= (factor < WHOLE) | (not mean)
                if known.mean() >= KNOWN and parallel[known].mean() >= SHARE:
                    words = _in_words(measured, at, source, factor, parallel & known, mean)
                    return Kept(wrong, words)
    return None


class _Search:
    """Rows whose error is parallel to the output of others, or to the difference from it (`mean`)."""

    def __init__(self, got, right, theirs, tolerance, mean):
        self.got, self.right, self.theirs, self.tolerance, self.mean = got, right, theirs, tolerance, mean

    def near(self, at, every):
        """Which of the rows `every` (N) those at `at` (n) hold a part of, (n, N)."""
        own, error = self.right[at], (self.got - self.right)[at]
        other = self.theirs[every]
        product, size = error @ other.T, (other * other).sum(-1)[None]
        if self.mean:
            product = product - (error * own).sum(-1)[:, None]
            size = size - 2 * own @ other.T + (own * own).sum(-1)[:, None]
        left = self.tolerance[every][None]
        return self._parallel(
            product, size, (error * error).sum(-1)[:, None], self.tolerance[at][:, None], left
        )

    def of_source(self, at, source):
        """Which rows hold a part of their source, and how large a part; each (n,)."""
        own, error = self.right[at], (self.got - self.right)[at]
        other = self.theirs[source.other] - own * self.mean
        product, size = (error * other).sum(-1), (other * other).sum(-1)
        left = self.tolerance[source.other]
        near = self._parallel(product, size, (error * error).sum(-1), self.tolerance[at], left)
        with np.errstate(all="ignore"):
            return near, product / size

    @staticmethod
    def _parallel(product, size, error, tolerance, left):
        with np.errstate(all="ignore"):
            factor = product / size
            beside = np.sqrt(np.maximum(error - product * factor, 0))
        rounding = tolerance + np.abs(factor) * left
        return (
            (factor > 0) & (beside <= rounding + 1e-6 * np.sqrt(error)) & (np.sqrt(error) > FAR * rounding)
        )


def _in_words(measured, at, source, factor, known, mean):
    view = measured.view
    top, inner = view.top, view.lse - view.top
    # what is left of a row that is wrong itself
    left = inner if measured.lse is None else np.where(view.row_exists, measured.lse, 0.0) - top
    with np.errstate(all="ignore"):
        held = np.log(factor / (1 - factor) if mean else factor)
        sums = source.of(left if mean else inner) - inner[at]
        maxima = source.of(top) - top[at]
    whose = f"the row {source.words}" if not source.words.startswith("the row") else source.words
    name = "the accumulator and the row sum are" if mean else "the accumulator is"
    which = "those" if mean else "that"
    words = f"{name} not reset: {'they start' if mean else 'it starts'} with {which} of {whose}"
    near = lambda x: (np.abs(held - x)[known] <= FACTOR).mean() > SHARE
    if near(sums):
        return words
    if near(sums + maxima):
        return (
            f"{words}, and so {'does' if mean else 'is'} the maximum"
            if not mean
            else (
                f"the state (maximum, row sum and accumulator) is not reset: it starts with that of {whose}"
            )
        )
    score = np.where(view.visible, view.score, -np.inf)[at]
    for size in KEY_TILES[2:]:
        if size < view.num_keys:
            first = score[:, :size].max(-1) - top[at]
            if near(sums + np.where(np.isfinite(first), first, 0)):
                return f"{words} and is rescaled from then on (tiles of {size} keys)"
    low, high = np.exp(held[known]).min(), np.exp(held[known]).max()
    if mean:
        low, high = (100 * factor[known].min(), 100 * factor[known].max())
        return f"rows hold a mean of their own result and {low:.2g} to {high:.2g} % of that of {whose}"
    return f"{words}, multiplied by {low:.3g} to {high:.3g} (as normalised outputs)"
