"""Which keys the rows of a tile see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass
class Seen:
    """Which keys some rows see: R rows, S keys."""

    visible: np.ndarray  # (R, S) bool
    edge: slice  # the keys that some row does not see are among these; empty where every row sees every key
    # (R, S) bool: keys that neither range, mask nor a bias of -inf hides, whatever their score
    in_sight: np.ndarray
    # (R, S) bool, by -inf alone: their products are formed; None if none is
    hidden_by_bias: np.ndarray | None
    # (R,) bool: rows with a score that is NaN or overflows in float64; nothing is visible in them
    broken: np.ndarray

    @cached_property
    def count(self):
        """Visible keys, (R, 1)."""
        return self.edge.start + self.visible[:, self.edge].sum(axis=1, keepdims=True)

    def counts(self, runs):
        """Visible keys of each row in some runs of keys, (first, last) each, (R, runs)."""
        counts = np.zeros((len(self.visible), len(runs)))
        for number, (first, last) in enumerate(runs):
            seen_by_all = min(max(self.edge.start, first), last)
            counts[:, number] = seen_by_all - first
            if seen_by_all < last:
                counts[:, number] += self.visible[:, seen_by_all:last].sum(axis=1)
        return counts

    def hide(self, array, hidden=0.0):
        """The array (R, S) itself, with `hidden` written where a key is hidden."""
        np.copyto(array[:, self.edge], hidden, where=self._hidden)
        return array

    @cached_property
    def _hidden(self):
        return ~self.visible[:, self.edge]


def seen_of(biased, bias, finite_pairs: Callable, visible, edge) -> Seen:
    """What scores that are not finite, and a bias of -inf, hide of the visible keys. `finite_pairs` says, if
    asked, which rows and keys hold finite numbers only, (R, S): their exact score is finite."""
    broken = np.zeros(len(visible), dtype=bool)
    if np.isfinite(biased).all():
        return Seen(visible, edge, visible, None, broken)
    broken |= (visible & ~(biased < np.inf)).any(axis=1)
    hidden_by_bias = None if bias is None else visible & (bias == -np.inf)
    in_sight = visible if hidden_by_bias is None else visible & ~hidden_by_bias
    broken |= (in_sight & (biased == -np.inf) & finite_pairs()).any(axis=1)
    visible = visible & (biased > -np.inf) & ~broken[:, None]
    if hidden_by_bias is not None and not hidden_by_bias.any():
        hidden_by_bias = None
    return Seen(visible, slice(0, visible.shape[1]), in_sight, hidden_by_bias, broken)
