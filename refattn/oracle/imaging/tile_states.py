"""The state of an online softmax, tile after tile: what it is where a step of it is wrong."""

from __future__ import annotations

import numpy as np

from refattn.oracle.arithmetic.formats import round_to
from refattn.oracle.bounds.operands import finite


class TileStates:
    """Maxima and sums of n rows over tiles of keys, in the order in which they are visited.

    Attributes
    ----------
    maximum, running, sums : ndarray, (n, J)
        Largest score of each tile; of all tiles up to it; the logarithm of the tile's sum of exponentials
        relative to the running maximum. A sink that starts the state is the first of the J tiles.
    decay : ndarray, (n, J)
        Logarithm of the factor by which what came before a tile is rescaled in it: 0 or less.
    seen : ndarray of bool, (n, J)
        Tiles with visible keys.
    partly : dict of str to ndarray of bool, (n, J)
        Words for tiles that are seen in part, and which those are.
    """

    def __init__(self, score, size, sinks=None, backwards=False, partly=None):
        keys = score.shape[-1]
        edges = self.first_key = np.arange(0, keys, size)
        maximum = np.maximum.reduceat(score, edges, axis=-1)
        sums = np.add.reduceat(np.exp(score - finite(maximum).repeat(size, -1)[:, :keys]), edges, axis=-1)
        partly = partly or {}
        if backwards:
            self.first_key = edges[::-1]
            maximum, sums = maximum[:, ::-1], sums[:, ::-1]
            partly = {words: tiles[:, ::-1] for words, tiles in partly.items()}
        self.starts = sinks is not None
        if self.starts:
            first = lambda column, rest: np.concatenate([column[:, None], rest], -1)
            maximum, sums = first(sinks, maximum), first(np.ones(len(sinks)), sums)
            self.first_key = np.concatenate([[0], self.first_key])
            partly = {words: first(np.zeros(len(sinks), bool), tiles) for words, tiles in partly.items()}
        self.maximum, self.running = maximum, np.maximum.accumulate(maximum, axis=-1)
        with np.errstate(divide="ignore"):
            self.sums = np.log(sums) + maximum - finite(self.running)
        self.decay = np.zeros(maximum.shape)
        before = self.running[:, :-1]
        self.decay[:, 1:] = np.where(np.isfinite(before), before - self.running[:, 1:], 0.0)
        self.seen = np.isfinite(maximum)
        self.partly = partly

    def places(self):
        """Words and tiles (n, J) in which kernels do something else than in the others."""
        number = np.broadcast_to(np.arange(self.seen.shape[1]) - self.starts, self.seen.shape)
        keys = self.seen & (number >= 0)
        first = keys & (np.cumsum(keys, -1) == 1)
        last = keys & (np.cumsum(keys[:, ::-1], -1)[:, ::-1] == 1)
        yield "", np.ones(keys.shape, bool)
        begins = np.unique(self.first_key[last.argmax(-1)[last.any(-1)]])
        which = f" (from key {begins[0]} on)" if len(begins) == 1 else ""
        yield f"the last tile that the row sees{which}", last
        yield "the first tile that the row sees", first
        yield "the second tile that the row sees", keys & (np.cumsum(keys, -1) == 2)
        for words, tiles in self.partly.items():
            yield words, keys & tiles
            yield words.replace("a part only", "all").replace("some row", "each row"), keys & ~tiles
        yield "every tile but the last that the row sees", keys & ~last
        yield "tiles of odd number", number % 2 == 1
        yield "tiles of even number", keys & (number % 2 == 0)

    def references(self):
        """Words and maxima (n,) that may be taken for the last running one."""
        last = np.where(self.seen, np.arange(self.seen.shape[1]), 0).max(-1)[:, None]
        at = lambda x, tile: np.take_along_axis(x, np.maximum(tile, 0), -1)[:, 0]
        starts = np.unique(self.first_key[last[:, 0]])
        which = f" (from key {starts[0]} on)" if len(starts) == 1 else ""
        before = f"the running maximum of before the last tile that the row sees{which}"
        yield before, np.where(last[:, 0] > 0, at(self.running, last - 1), np.nan)
        yield f"the maximum of the last tile that the row sees{which}", at(self.maximum, last)
        first = self.seen.argmax(-1)[:, None]
        yield "the maximum of the first tile that the row sees", at(self.maximum, first)

    def total(self, decay=None, sums=None):
        """Logarithm of the sum over all tiles, relative to the last running maximum, (n,)."""
        decay = self.decay if decay is None else decay
        later = np.cumsum(decay[:, ::-1], -1)[:, ::-1] - decay
        return np.log(np.exp((self.sums if sums is None else sums) + later).sum(-1))

    def _rounded(self, tiles, name):
        return np.where(tiles, np.log(round_to(np.exp(self.decay), name)), self.decay)

    def slips(self):
        """Words, with a gap for where, and logarithms of sums (n,) of which a step is wrong."""
        decay, moved = self.decay, self.decay < 0
        before, after = np.roll(decay, 1, -1), np.roll(decay, -1, -1)
        before[:, 0] = after[:, -1] = 0.0
        for place, tiles in self.places():
            here = tiles & moved
            if not here.any():
                continue
            where = f"in {place} " if place else ""
            for words, factor in (
                ("is not rescaled", np.where(here, 0.0, decay)),
                ("is rescaled twice", np.where(here, 2 * decay, decay)),
                ("is rescaled by the inverse of the right factor", np.where(here, -decay, decay)),
                ("is rescaled by exp2 of a difference in base e", np.where(here, decay * np.log(2), decay)),
                *(
                    (f"is rescaled by a factor that is rounded to {name}", self._rounded(tiles, name))
                    for name in ("bfloat16", "float16")
                ),
                ("is rescaled by the factor of the tile before", np.where(tiles, before, decay)),
                ("is rescaled by the factor of the tile after", np.where(tiles, after, decay)),
            ):
                yield f"{words} {where}".rstrip(), self.total(factor)
            late = np.where(here, self.sums + decay, self.sums)
            yield (
                f"is rescaled after a tile's own sum is added, not before {where}".rstrip(),
                self.total(sums=late),
            )
            next_one = np.roll(here, -1, -1)
            next_one[:, -1] = False
            late = np.where(next_one, self.sums - after, self.sums)
            yield (
                f"gets the sum of the tile before after it is rescaled {where}".rstrip(),
                self.total(sums=late),
            )
            own = np.where(tiles, self.sums + self.running - self.maximum, self.sums)
            yield f"holds sums relative to the tile's own maximum {where}".rstrip(), self.total(sums=own)
