"""Infinite and NaN values of visible keys, and what a kernel makes of them whose weights underflow.

IEEE 754 arithmetic gives the exact result w * inf = inf for every weight w > 0. A kernel whose weight has
become 0 gives 0 * inf = NaN, one that skips such keys the mean of the other values; if other infinite values
keep their weights, those alone decide the result.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class InfiniteValues:
    """The keys of a tile that have a value which is not finite, J of them."""

    drop: np.ndarray  # (R, J): row maximum minus score
    total: np.ndarray  # (R, 1): softmax denominator relative to the row maximum
    visible: np.ndarray  # (R, J): visible and not dropped
    value: np.ndarray  # (J, E): as given, finite entries included

    def excuses(self, got, spec):
        """Where underflow of weights explains what in `got` is not finite, and where it may leave it finite.

        Two bool arrays (R, E).
        """
        weights = np.exp(-self.drop) / (self.total if spec.normalises_first else 1.0)
        zero = 2.0 * max(spec.weight_underflow, spec.softmax.smallest_normal)  # 2 for errors of the score
        narrow = spec.weight.smallest_normal > spec.softmax.smallest_normal
        skipped = 2.0 * spec.weight_underflow if narrow else 0.0
        explained, left_out = np.zeros((2, len(weights), self.value.shape[1]), dtype=bool)
        for column, entries in enumerate(self.value.T):
            smallest, largest = self._extremes(weights, ~np.isfinite(entries))
            explained[:, column] = np.isnan(got[:, column]) & (smallest < zero)
            left_out[:, column] = (largest > -np.inf) & (largest < skipped)
            for sign in (np.inf, -np.inf):
                there = (self.visible & (entries == sign)).any(axis=1)
                _, others = self._extremes(weights, ~np.isfinite(entries) & (entries != sign))
                explained[:, column] |= (got[:, column] == sign) & there & (others < zero)
        return explained, left_out

    def _extremes(self, weights, which):
        """Smallest and largest weight of the visible keys among `which`, (R,); inf and -inf without any."""
        weights, visible = weights[:, which], self.visible[:, which]
        smallest = np.where(visible, weights, np.inf).min(axis=1, initial=np.inf)
        return smallest, np.where(visible, weights, -np.inf).max(axis=1, initial=-np.inf)
