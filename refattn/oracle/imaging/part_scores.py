"""Explanations of a wrong row by other scores for some keys: from a key on, up to one, or in some tiles.

An explanation that gives other scores is mixed with the right ones: the first keys of a row have one kind,
the others the other. All places where they may change are tested at once, by cumulative sums over the keys.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refattn.oracle.imaging.explanations import CHUNK, FITS_MOST, FITS_RMS, Fit, evidence

COLUMNS = 12  # of the output that candidates are compared with first
TRIED = 16  # rows of single heads, on which they are
MOST_FOUND, LEAST_SHARE = 4, 0.2  # candidates that are looked at in all rows; of the trials of the best one
SAME = 1e-6  # relative change of a weight that makes no difference
SIDES = ("up to", "from")


class Mixed:
    """Rows of single heads (m of them), whose keys have right weights or those of other scores.

    Parameters
    ----------
    rows : Rows
    h, i : ndarray of int, (m,)
        Head and row of each.
    """

    def __init__(self, rows, h, i, columns=slice(None)):
        self.rows, self.h, self.i, self.columns = rows, h, i, columns
        seen = rows.visible[h, i]
        self.top = np.where(seen, rows.numerator[h, i], 0.0)
        self.low = np.where(seen, rows.denominator[h, i], 0.0)
        with np.errstate(all="ignore"):
            self.kept = np.where(self.low > 0, self.top / self.low, 0.0)
        self.value = rows.value[..., columns]
        self.right = rows.right[h, i][:, columns]
        self.output, self.deviation = (a[h, i][:, columns] for a in (rows.output, rows.deviation))
        self.base = (rows.sink[h, i] + self.low.sum(-1))[:, None]

    def weights(self, scores):
        """What the keys would weigh with other scores (m, S): before the values, and in the normaliser."""
        rows, h, i = self.rows, self.h, self.i
        p = np.where(rows.visible[h, i], np.exp(np.clip(scores - rows.base[h, i][:, None], -700, 60)), 0.0)
        return p * self.kept, p

    def best(self, top, low):
        """The best change of side: side, place, first and last place that fit alike, and of what is left the
        root mean square and the largest, each (m,).
        """
        m, S = top.shape
        squares, most = np.empty((2, m, S + 1)), np.empty((2, m, S + 1))
        for n in range(m):
            value = self.value[self.h[n]]
            flow = _cumulated((top[n] - self.top[n])[:, None] * value)
            mass = _cumulated((low[n] - self.low[n])[:, None])
            own = self.right[n] * self.base[n]
            for side, (f, a) in enumerate(((flow, mass), (flow[-1] - flow, mass[-1] - mass))):
                with np.errstate(all="ignore"):
                    off = ((own + f) / (self.base[n] + a) - self.output[n]) / self.deviation[n]
                off = np.minimum(np.abs(np.nan_to_num(off, nan=1e30)), 1e30)
                squares[side, n], most[side, n] = (off**2).mean(-1), off.max(-1)
        at = np.arange(m)
        choice = squares.argmin(-1)
        side = squares.min(-1).argmin(0)
        least = squares[side, at, choice[side, at]]
        like = (squares[side, at] <= least[:, None] + 16 / self.output.shape[-1]) & (
            most[side, at] <= FITS_MOST
        )
        low, high = like.argmax(-1), S - like[:, ::-1].argmax(-1)
        return side, choice[side, at], low, high, np.sqrt(least), most[side, at, choice[side, at]]


def _cumulated(array):
    return np.concatenate([np.zeros_like(array[:1]), np.cumsum(array, axis=0)])


def part_scores(reading, rows, families) -> Iterator[Fit]:
    """Fits of candidates, (name, scores of the rows `at`) each, that hold for some keys of a row."""
    h, i = np.nonzero(reading.left_of(rows))
    rng = np.random.default_rng(2)
    taken = rng.permutation(len(h))[:TRIED]
    trial = Mixed(rows, h[taken], i[taken], rng.permutation(rows.output.shape[-1])[:COLUMNS])
    own, places = np.unique(i[taken], return_inverse=True)
    found = []
    for name, scores in families:
        if reading.left() < 0:
            break
        top, low = trial.weights(np.nan_to_num(scores(own)[h[taken], places], neginf=-1e30))
        _, _, first, last, rms, most = trial.best(top, low)
        holds = (rms <= FITS_RMS) & (most <= FITS_MOST) & ((first > 0) | (last < rows.shape[-1]))
        if holds.any():
            found.append((int(holds.sum()), len(found), name, scores))
    found.sort(key=lambda entry: -entry[0])
    for count, _, name, scores in found[:MOST_FOUND]:
        if count >= LEAST_SHARE * found[0][0]:
            yield _of_all(reading, rows, name, scores)


def _of_all(reading, rows, name, scores):
    """The fit in all rows of a block."""
    H, N, S = rows.shape
    holds, odds = np.zeros((H, N), bool), np.full((H, N), -np.inf)
    weights = np.where(rows.visible, rows.numerator, 0.0)
    applied, open_pairs = np.zeros((H, N, S), bool), np.zeros((H, N, S), bool)
    left = np.full((H, N), np.inf)
    key = np.arange(S)
    step = max(CHUNK // (H * S * 4), 1)
    for first in range(0, N, step):
        if reading.left() < 0:
            break
        at = np.arange(first, min(first + step, N))
        h, i = np.nonzero(rows.wrong[:, at])
        if not len(h):
            continue
        i = at[i]
        mixed = Mixed(rows, h, i)
        top, low = mixed.weights(np.nan_to_num(scores(at)[h, i - first], neginf=-1e30))
        side, choice, start, stop, rms, most = mixed.best(top, low)
        inside = (key >= choice[:, None]) == (side == 1)[:, None]
        mass = np.where(inside, low, mixed.low).sum(-1) + rows.sink[h, i]
        weights[h, i] = np.where(inside, top, mixed.top) / np.maximum(mass, 1e-300)[:, None]
        seen = rows.visible[h, i]
        applied[h, i] = inside & seen
        unclear = (key >= start[:, None]) & (key < stop[:, None])
        open_pairs[h, i] = (unclear | (np.abs(low - mixed.low) <= SAME * mixed.low)) & seen
        holds[h, i] = (rms <= FITS_RMS) & (most <= FITS_MOST)
        left[h, i] = rms
    odds = evidence(rows, left, 1, 2 * S * 300, "visible")
    return Fit(name, holds, odds, lambda: weights, None, {}, 0.03, (applied, open_pairs))
