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
PROVEN = 0.8  # of the errors must be those of the nearest pairs of other keys and rows
PART = 0.1  # of the spread of errors: neighbours that differ by less are the same
NEIGHBOURS = 4  # pairs on each side, among which one of another key and row is looked for
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
    of_key: bool = False  # it is a number of the key alone: rows say the same again and again


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
            if curve.left < (LEFT if best is None else BETTER * best.left) and curve.proven() > PROVEN:
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
    yield Variable("scores", "the sum of the key's components", key.sum(-1), of_key=True)
    yield Variable("scores", "the key's squared length", (key**2).sum(-1), of_key=True)
    size = (rows.scale * query.sum(-1))[:, None]
    of_both = "the sum of the key's components (times that of the query's)"
    yield Variable("scores", of_both, key.sum(-1), size=size, of_key=True)
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
        with np.errstate(all="ignore"):
            self.tolerance = rows.tolerance / np.abs(variable.size)
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

    def proven(self):
        """Share of the errors that the nearest pairs of other keys and rows have, or those between them."""
        x, y, allowed = (
            z[self.where] for z in (self.variable.x, self.off / self.variable.size, 2 * self.tolerance)
        )
        row, key = np.nonzero(self.where)
        allowed = np.maximum(allowed, PART * np.std(y))
        if self.variable.of_key:
            x, own = np.unique(x, return_inverse=True)
            of_key = np.bincount(own, y) / np.bincount(own)
            agree = np.abs(y - of_key[own]) <= allowed
            count = len(x)
            inner = (own > 0) & (own < count - 1)
            before, after = np.maximum(np.arange(count) - 1, 0), np.minimum(np.arange(count) + 1, count - 1)
            near = _between(of_key, x, before, after)[own] <= allowed
            return float((agree & near)[inner].mean()) if inner.any() else 0.0
        order = np.random.default_rng(0).permutation(len(x))
        order = order[np.argsort(x[order], kind="stable")]
        x, y, allowed, row, key = (z[order] for z in (x, y, allowed, row, key))
        before, after = (_others(row, key, side) for side in (-1, 1))
        known = (before >= 0) & (after >= 0)
        near = _between(y, x, before, after) <= allowed
        return float(near[known].mean()) if known.any() else 0.0

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


def _others(row, key, side):
    """The place of the next pair on a side that is of another row and key; -1 where none is near."""
    found, places = np.full(len(row), -1), np.arange(len(row))
    for step in range(NEIGHBOURS, 0, -1):
        at = np.clip(places + side * step, 0, len(row) - 1)
        found = np.where((row[at] != row) & (key[at] != key), at, found)
    return found


def _between(y, x, before, after):
    """How far each number is from the ones before and after it in x, or from the line between them."""
    with np.errstate(all="ignore"):
        share = np.nan_to_num((x - x[before]) / (x[after] - x[before]), nan=0.5)
    between = y[before] + share * (y[after] - y[before])
    return np.minimum.reduce([np.abs(y - other) for other in (y[before], y[after], between)])


def _mean(y, where):
    """Means (n, 1) of the numbers (n, S) that are there."""
    return np.where(where, y, 0).sum(-1, keepdims=True) / np.maximum(where.sum(-1, keepdims=True), 1)
