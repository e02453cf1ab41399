"""Scores whose error is a function of one number: of the score, of its fraction, of a distance or a bias.

What the function is need not be known: a short table of it describes the fault.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from refattn.oracle.imaging.rounding import running_maximum
from refattn.oracle.imaging.wrong_rows import HELD, Model, centred

BINS, MOST_BINS = 32, 256
OF_BIN = 40  # pairs
MOST = 0.99  # of the pairs: the others may jump
LEAST = 64  # pairs
LEFT = 0.1  # of the variance of the errors that may be left
BETTER = 0.7  # of what another variable leaves, for one that comes later
ROUNDS = 6
TILES = (16, 32, 64, 128)
TOLD = 5  # places of a curve that are told


class Variable(NamedTuple):
    """What an error may depend on: its kind and name, its values (n, S), and what errors are divided by."""

    kind: str
    words: str
    x: np.ndarray
    periodic: bool = False
    size: object = 1.0


def curved(rows) -> Iterator[Model]:
    """Scores that are off by a function of one number alone."""
    with np.errstate(all="ignore"):
        off = rows.measured - rows.score
    best = None
    for variable in _variables(rows):
        with np.errstate(all="ignore"):
            y = off / variable.size
        where = rows.wrong & np.isfinite(y) & np.isfinite(variable.x)
        if where.sum() >= LEAST:
            curve = _Curve(rows, variable, y, where)
            if curve.left < (LEFT if best is None else BETTER * best.left):
                best = curve
    if best is not None:
        scores = rows.score + np.where(best.where, best.off, best.elsewhere)
        yield Model(best.variable.kind, best.in_words(), scores, 3)


def _variables(rows):
    to_base_2 = np.log2(np.e)
    if rows.cap is not None:
        yield Variable("softcap", "the score before the softcap", rows.raw)
    if np.any(rows.rest):
        yield Variable("scores", "the score before ALiBi and bias", rows.capped)
    yield Variable("scores", "the score", rows.score)
    yield Variable("exp", "the exponent (score less the row's largest)", rows.score - rows.top[:, None])
    if (slopes := rows.slopes()) is not None:
        yield Variable("ALiBi", "the distance of key and row", rows.distance + 0.0, size=slopes)
    if rows.bias is not None:
        yield Variable("bias", "the bias", rows.bias)
    query, key = rows.view.operand("query")[rows.at], np.nan_to_num(rows.view.operand("key"))
    key = key[rows.b, rows.head // rows.view.group_size]
    yield Variable("scores", "the sum of the key's components", key.sum(-1))
    yield Variable("scores", "the key's squared length", (key**2).sum(-1))
    size = (rows.scale * query.sum(-1))[:, None]
    yield Variable("scores", "the key (times the sum of the query's components)", key.sum(-1), size=size)
    references = [(f"the running maximum, tiles of {tile} keys", tile) for tile in TILES]
    for name, tile in (("the row's largest", 0), *references):
        if tile < rows.view.num_keys:
            top = running_maximum(rows.view, tile)[rows.at] if tile else rows.top[:, None]
            x = (rows.score - top) * to_base_2
            yield Variable("exp", f"the exponent in base 2 (score less {name})", x % 1.0, True)
    yield Variable("exp", "the score in base 2", rows.score * to_base_2 % 1.0, True)


class _Curve:
    """Errors `y` of the pairs `where` as a function of a variable; each row may be off by one number."""

    def __init__(self, rows, variable, y, where):
        self.variable, self.where = variable, where
        x = np.where(where, variable.x, 0)
        count = int(np.clip(where.sum() // OF_BIN, BINS, MOST_BINS))
        if variable.periodic:
            edges = np.linspace(0, 1, BINS + 1)[1:-1]
        else:
            edges = np.unique(np.quantile(x[where], np.linspace(0, 1, count + 1)[1:-1]))
        bins = np.searchsorted(edges, x)
        counts = np.maximum(np.bincount(bins[where], minlength=len(edges) + 1), 1)
        mean = lambda z: np.bincount(bins[where], z[where], len(edges) + 1) / counts
        self.x, y = mean(x), np.where(where, y, 0)
        right = (rows.judged & ~rows.wrong).sum(-1)
        self.held = right >= np.maximum(HELD * rows.judged.sum(-1), 3)
        own = np.where(self.held, rows.shift - rows.lse, 0)[:, None] / variable.size
        number = np.where(self.held[:, None], own, _mean(y, where))
        for _ in range(ROUNDS):
            self.y = mean(y - number)
            fitted = np.interp(x, self.x, self.y, period=1.0 if variable.periodic else None)
            number = np.where(self.held[:, None], own, _mean(y - fitted, where))
        self.off = (y - number) * variable.size
        period = 1.0 if variable.periodic else None
        self.elsewhere = np.interp(variable.x, self.x, self.y, period=period) * variable.size
        plain = centred(y, where)  # a number of each row's own is no function of a score
        # what is left beside the nearest pairs: steps and jumps are a function too
        order = np.argsort(x[where], kind="stable")
        rest = np.diff((y - number)[where][order]) / np.sqrt(2)
        size = lambda z: (np.median(z**2), np.mean(np.minimum(z**2, np.quantile(z**2, MOST))))
        self.left = max(a / max(b, 1e-300) for a, b in zip(size(rest), size(plain[where]), strict=True))
        noise = np.median((rows.tolerance / np.abs(variable.size))[where])
        if size(plain[where])[1] < noise**2:  # nothing that is more than rounding
            self.left = np.inf

    def in_words(self):
        return self._periodic() if self.variable.periodic else self._table()

    def _periodic(self):
        factors = np.exp(self.y if self.held.any() else self.y - self.y[0])
        return (
            f"exp is computed wrongly: the error depends on the fraction of {self.variable.words} alone, "
            f"with factors of {factors.min():.4g} to {factors.max():.4g}, "
            f"{factors[0]:.4g} at fraction 0 and {factors[len(factors) // 2]:.4g} at 0.5 "
            "(a polynomial that is used outside its range, or a wrong split into whole part and fraction)"
        )

    def _table(self):
        x, y = self.x, self.y
        if not self.held.any():
            y = y - np.interp(0, x, y)
        places = np.unique(np.linspace(0, len(x) - 1, TOLD).round().astype(int))
        table = ", ".join(f"{y[n]:+.3g} at {x[n]:.3g}" for n in places)
        unit = " keys" if self.variable.kind == "ALiBi" else ""
        return f"the error depends on {self.variable.words} alone: {table}{unit}"


def _mean(y, where):
    """Means (n, 1) of the numbers (n, S) that are there."""
    return np.where(where, y, 0).sum(-1, keepdims=True) / np.maximum(where.sum(-1, keepdims=True), 1)
