"""Weights that are off by one factor in each stretch of keys: tiles not rescaled, splits joined wrongly."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from math import gcd

import numpy as np

from refattn.oracle.imaging.compare import SCALED

MOST_STEPS = 0.15  # share of neighbouring keys between which the factor changes
FEW_STEPS, FEW_OF_SEQUENCE = 0.02, 0.1  # of those at the key with most of them: no edge is there
LEAST_TILE = 4


@dataclass(eq=False)
class Segments:
    """Stretches of keys of one factor each.

    Attributes
    ----------
    starts : list of ndarray
        The first key of each stretch, of each sequence.
    factor : ndarray, (B, H, T, J)
        Logarithm of the factor of each stretch; NaN where nothing is known.
    tile : int
        The size of all stretches, where it is the same in all sequences; else 0.
    """

    starts: list
    factor: np.ndarray
    tile: int = 0

    @property
    def words(self):
        if self.tile:
            return f"tiles of {self.tile} keys"
        if all(len(own) == len(self.starts[0]) and (own == self.starts[0]).all() for own in self.starts):
            return _stretches_in_words(self.starts[0])
        sizes = [_size_of(own) for own in self.starts]
        if all(sizes):
            of_each = (f"{size} in sequence {n}" for n, size in enumerate(sizes) if len(self.starts[n]) > 1)
            return f"tiles of keys ({', '.join(of_each)})"
        of_each = (
            f"{_listed(own)} in sequence {n}" for n, own in enumerate(self.starts[:4]) if len(own) > 1
        )
        return f"stretches of keys that begin at {'; '.join(of_each)}"

    def number(self, num_keys):
        """The stretch of each key, (B, 1, 1, S)."""
        keys = np.arange(num_keys)
        return np.array([np.searchsorted(own, keys, "right") - 1 for own in self.starts])[:, None, None]


def over_stretches(ufunc, starts, x, fill):
    """A ufunc over the keys of each stretch of x (B, H, T, S), (B, H, T, J); `fill` where there is none."""
    most = max(map(len, starts))
    found = np.full((*x.shape[:-1], most), fill)
    for target, own, of in zip(found, starts, x, strict=True):
        target[..., : len(own)] = ufunc.reduceat(of, own, axis=-1)
    return found


def _listed(starts):
    return ", ".join(map(str, starts[:6].tolist())) + (", ..." if len(starts) > 6 else "")


def _stretches_in_words(starts):
    if len(starts) == 2:
        return f"the keys before key {starts[1]} and those from it on"
    return f"stretches of keys that begin at {_listed(starts)}"


def _size_of(starts):
    size = reduce(gcd, starts.tolist())
    return size if size >= LEAST_TILE and len(starts) > 2 else int(starts[1]) if len(starts) == 2 else 1


def find_segments(ledgers) -> list[Segments]:
    """The stretches, as tiles of one size, as they are seen to begin, and as they begin in each sequence.

    None where factors are not constant in stretches.
    """
    view, ratio = ledgers.view, ledgers.ratio
    tolerance = np.broadcast_to(ledgers.measured.tolerance, view.shape)
    rows = (ledgers.labels == SCALED).any(-1)
    if not rows.any():
        return []
    r = np.where(rows[..., None], ratio, np.nan)
    # steps between each key and the last known one before it
    known = np.isfinite(r)
    index = np.maximum.accumulate(np.where(known, np.arange(view.num_keys), -1), axis=-1)
    before = np.concatenate([np.full((*index.shape[:-1], 1), -1), index[..., :-1]], -1)
    previous = np.take_along_axis(r, np.maximum(before, 0), -1)
    pairs = known & (before >= 0)
    with np.errstate(all="ignore"):
        step = pairs & (np.abs(r - previous) > 2 * tolerance)
    if not pairs.any() or not step.any() or step.sum() > MOST_STEPS * pairs.sum():
        return []
    # an edge may fall between a hidden key and the next one seen: edges are where most steps are
    per_key = step.sum((1, 2))
    places = _edges(per_key.sum(0), FEW_STEPS)
    tile = reduce(gcd, places.tolist())
    if len(places) > MOST_STEPS * view.num_keys + 2 and tile < LEAST_TILE:
        return []
    seen, found = _with_first(places), []
    if tile >= LEAST_TILE:
        found.append((np.arange(0, view.num_keys, tile), tile))
    if tile < LEAST_TILE or len(found[0][0]) != len(seen):
        found.append((seen, 0))
    elif len(seen) == 2:
        found = [(seen, 0)]
    cuts = [([edges] * view.shape[0], size) for edges, size in found]
    own = [_with_first(_edges(of_sequence, FEW_OF_SEQUENCE)) for of_sequence in per_key]
    if len({tuple(starts.tolist()) for starts in own}) > 1:
        cuts.append((own, 0))
    return [Segments(starts, _means(starts, known, r), size) for starts, size in cuts]


def _edges(steps, few):
    return np.flatnonzero(steps > few * max(steps.max(), 1))


def _with_first(places):
    return np.unique(np.concatenate([[0], places]).astype(int))


def _means(starts, known, r):
    """Mean of the logarithms of factors r (B, H, T, S) in each stretch, where they are known."""
    counts = over_stretches(np.add, starts, known.astype(float), 0.0)
    sums = over_stretches(np.add, starts, np.where(known, r, 0), 0.0)
    with np.errstate(all="ignore"):
        return np.where(counts > 0, sums / counts, np.nan)
