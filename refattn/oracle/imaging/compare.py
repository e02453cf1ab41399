"""Measured against right: the ledgers from which a description starts.

They hold the presence of a weight, ratios of weights within a row, the sum of a row, lse, and rows that hold
nothing or NaN. Each alone points to a stage of the kernel.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

UNJUDGED, RIGHT, MISSING, EXTRA, SCALED = -1, 0, 1, 2, 3
MOST_RIGHT = 0.9  # of the weights of a row: as many of the same factor are right
SOME_RIGHT = 0.1  # of the weights of a row: more than that are right by no accident


class Ledgers:
    """The comparison of `Measured` weights with those of a `View`.

    Attributes
    ----------
    labels : ndarray of int8, (B, H, T, S)
        What each pair is: RIGHT, MISSING, EXTRA or SCALED, or UNJUDGED.
    judged : ndarray of bool, (B, H, T, S)
        Pairs whose weight is known well enough to be judged.
    shift : ndarray, (B, H, T)
        Logarithm of the factor that most of the weights of a row share.
    ratio : ndarray, (B, H, T, S)
        Logarithm of measured over right weight, where both are there; NaN elsewhere.
    nan, zero : ndarray of bool, (B, H, T)
        Rows whose weights are NaN, or all 0 where they should not be.
    """

    def __init__(self, measured):
        self.measured, self.view = measured, measured.view
        view = self.view
        exists = np.broadcast_to(view.exists, view.shape)
        right, got = view.weights, measured.weights
        finite = np.isfinite(measured.output[..., ~measured.wrong_columns]).all(-1)
        self.nan = ~finite & view.row_exists & ~measured.rightly_lost
        known = np.isfinite(got).all(-1) & ~self.nan & ~measured.rightly_lost
        floor = measured.floor
        self.judged = exists & ((right > 16 * floor) | (right == 0)) & known[..., None]
        self.judged &= measured.determined & ~measured.unknown[..., None]
        there = got > 4 * floor
        self.zero = view.row_exists & ~self.nan & ~(np.abs(got) > 0).any(-1) & (right > 16 * floor).any(-1)
        self.zero &= (measured.output == 0).all(-1)  # else all of the weight lies elsewhere
        # a weight that is nothing beside others is still no hidden one
        seen = view.visible if view.dropped is None else view.visible & ~view.dropped
        both = self.judged & there & ((right > 0) | seen)
        with np.errstate(all="ignore"):
            self.ratio = np.where(both & (right > 0), np.log(got / right), np.nan)
            faint = both & (right == 0)
            self.ratio[faint] = (np.log(got) - (view.score - view.lse[..., None]))[faint]
        self.shift = self._shared_factor()
        off = np.abs(self.ratio - self.shift[..., None]) > measured.tolerance
        labels = np.full(view.shape, UNJUDGED, np.int8)
        labels[self.judged] = RIGHT
        labels[self.judged & (right > 0) & ~there] = MISSING  # zeros are exact
        labels[self.judged & ~both & (right == 0) & there & (got > 1e-20)] = EXTRA
        labels[both & off] = SCALED
        # negative weights are none that a softmax gives
        labels[self.judged & (got < -4 * floor)] = SCALED
        # what is nothing beside the weights that the row has by mistake is missing for no reason of its own
        labels[(labels == MISSING) & (self._predicted(right) <= 4 * floor)] = UNJUDGED
        labels[np.broadcast_to(self.zero[..., None], view.shape)] = UNJUDGED
        self.labels = labels

    def _shared_factor(self):
        """Logarithm of the factor of each row that most of its weights share, (B, H, T): 0 where that is as
        good as any other.
        """
        candidates = [np.zeros(self.view.shape[:3])]
        with np.errstate(all="ignore"):
            if not self.ratio.shape[-1]:
                return candidates[0]
            ordered = np.sort(self.ratio, axis=-1)  # NaN last
            count = np.isfinite(ordered).sum(-1)
            for share in (0.5, 0.1, 0.25, 0.75, 0.9, 0.0, 1.0):
                at = np.clip((share * (count - 1)).astype(int), 0, max(ordered.shape[-1] - 1, 0))
                candidates.append(np.take_along_axis(ordered, at[..., None], -1)[..., 0])
            best, shift = np.full(self.view.shape[:3], -1), candidates[0]
            for candidate in candidates:
                near = (np.abs(self.ratio - candidate[..., None]) <= self.measured.tolerance).sum(-1)
                better = near > best + 0.02 * count
                shift, best = np.where(better, candidate, shift), np.where(better, near, best)
            some_wrong = best < MOST_RIGHT * count
            shift = np.where(some_wrong, self._factor_of_lse(shift, count), shift)
        return np.where(np.isfinite(shift), shift, 0.0)

    def _predicted(self, right):
        """The right weights, with the factors of their rows."""
        factor = self.shift
        if self.measured.lse is not None:
            with np.errstate(all="ignore"):
                factor = np.fmin(factor, self.view.lse - self.measured.lse)
        with np.errstate(all="ignore"):
            return right * np.exp(factor)[..., None]

    def _factor_of_lse(self, shift, count):
        """The factors `shift` (B, H, T), but that of lse where it makes some of the `count` weights right.

        With lse a weight gives its score itself: what most weights share may be an error of most of them.
        """
        if self.measured.lse is None or self.view.checked.form.joins:
            return shift
        own = self.view.lse - self.measured.lse
        other = np.abs(own - shift) > self.measured.tolerance[..., 0]
        near = (np.abs(self.ratio - own[..., None]) <= self.measured.tolerance).sum(-1)
        return np.where(other & (near >= np.maximum(SOME_RIGHT * count, 3)), own, shift)

    @property
    def wrong(self):
        """Pairs that are judged and not right, (B, H, T, S)."""
        return self.labels > RIGHT

    @cached_property
    def sum(self):
        """Sum of the measured weights of each row, (B, H, T)."""
        return np.where(self.nan, np.nan, np.nansum(self.measured.weights, -1))

    @cached_property
    def right_sum(self):
        """What it should be: less than 1 with sinks or dropout."""
        return self.view.weights.sum(-1)

    @cached_property
    def lse_off(self):
        """lse minus the right one, (B, H, T), where that is more than rounding; else, or without lse, 0."""
        measured, view = self.measured, self.view
        if measured.lse is None:
            return np.zeros(view.shape[:3])
        with np.errstate(all="ignore"):
            off = measured.lse - view.lse
        same = (measured.lse == view.lse) | (np.isneginf(view.lse) & (measured.lse < -1e30))
        size = measured.spec.lse.unit_roundoff * (np.abs(np.where(np.isfinite(view.lse), view.lse, 0)) + 4)
        bound = measured.tolerance[..., 0] + 4 * size
        near = np.abs(off) <= bound
        return np.where(same | near | ~view.row_exists | measured.rightly_lost, 0.0, off)

    @cached_property
    def sum_off(self):
        """Logarithm of a row's sum over the right one, (B, H, T), where it is more than rounding; else 0."""
        with np.errstate(all="ignore"):
            off = np.log(self.sum / self.right_sum)
        known = self.view.row_exists & ~self.nan & ~self.zero & (self.right_sum > 0)
        known &= np.isfinite(self.measured.weights).all(-1)
        known &= ~self.measured.left_out
        return np.where(known & (np.abs(off) > self.measured.tolerance[..., 0]), off, 0.0)
