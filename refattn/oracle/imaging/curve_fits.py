"""Explanations of a wrong row by scores off by a function of one number: of the score, or of the exponent.

The function is fitted, as a smooth curve or a periodic one, to the outputs of some rows at once, and tested
in the columns that were not fitted.
"""

from __future__ import annotations

import numpy as np
from scipy.interpolate import BSpline

from refattn.oracle.imaging.explanations import Fit, of_scores
from refattn.oracle.imaging.rounding import running_maximum

ROWS, KNOTS, STEPS = 40, 20, 5
LEFT = 0.1  # of the differences that may be left, in columns that were not fitted
TILES = (16, 32, 64, 128)
TOLD = (0.02, 0.25, 0.5, 0.75, 0.98)  # places of a curve that are told
RIDGE = 1e-6


def curves(reading, rows, steps):
    """The best curve, as a fit."""
    h, i = np.nonzero(rows.wrong & np.isfinite(rows.output).all(-1))
    if len(h) < 8 or rows.output.shape[-1] < 16:
        return
    taken = np.random.default_rng(4).permutation(len(h))[:ROWS]
    if not rows.visible[h[taken], i[taken]].any():
        return
    best = None
    for words, x, periodic, scores in _variables(steps):
        if reading.left() < 0:
            break
        curve = Curve(rows, h[taken], i[taken], x, periodic, scores)
        if curve.left < (LEFT if best is None else 0.7 * best[1].left):
            best = words, curve
    if best is None:
        return
    words, curve = best
    everything = np.arange(len(rows.rows))
    weights = of_scores(rows, curve.changed(everything), rows.visible, everything, rows.kept)
    before, after = (rows.left(output)[0] for output in (rows.right, rows.apply(weights)))
    name = f"scores that are off by a function of {words}"
    reading.curves.setdefault(name, curve.in_words())
    odds = np.where(after < 2 * LEFT * before, 1.0, 0.0) * rows.output.shape[-1]
    yield Fit(name, after < 2 * LEFT * before, odds, lambda: weights, None, {}, 0.05)


def _variables(steps):
    """Words, numbers (H, N, S), whether they are periodic, and the scores that a change makes."""
    view, rows = steps.view, steps.rows
    score = steps.capped + steps.shift
    added = lambda change, at: score[:, at] + change
    if view.options.get("softcap"):
        yield "the score before the softcap", steps.raw, False, added
    if np.abs(steps.shift).max(initial=0.0) > 0:
        yield "the score before ALiBi and bias", steps.capped, False, added
    yield "the score", score, False, added
    top = np.where(rows.visible, score, -np.inf).max(-1, keepdims=True)
    yield "the exponent (score less the row's largest)", score - top, False, added
    for tile in (0, *TILES):
        if tile < view.num_keys:
            words = f"the running maximum, tiles of {tile} keys" if tile else "the row's largest"
            less = running_maximum(view, tile)[rows.sequence][:, rows.rows] if tile else top
            x = (score - less) * np.log2(np.e) % 1.0
            yield f"the fraction of the exponent in base 2 (score less {words})", x, True, added


class Curve:
    """A curve fitted to rows (h, i) of a block."""

    def __init__(self, rows, h, i, x, periodic, scores):
        self.rows, self.x, self.periodic, self.scores = rows, x, periodic, scores
        seen = x[h, i][rows.visible[h, i]]
        low, high = (0.0, 1.0) if periodic else np.quantile(seen, (0.0, 1.0))
        inner = (
            np.linspace(low, high, KNOTS)
            if periodic
            else np.unique(np.quantile(seen, np.linspace(0, 1, KNOTS)))
        )
        self.knots = np.concatenate([[low] * 3, inner, [high] * 3])
        self.low, self.high, self.middle = low, high, float(np.median(seen))
        self.numbers = np.zeros(len(self.knots) - 4)
        own = np.unique(i)
        self._fit(h, i, own)

    def basis(self, x):
        x = np.clip(x, self.low, self.high - 1e-9 * max(abs(self.high), 1.0))
        design = BSpline.design_matrix(x.reshape(-1), self.knots, 3).toarray()
        return design.reshape(*x.shape, -1)

    def __call__(self, x):
        return self.basis(x) @ self.numbers

    def changed(self, at):
        """Scores of the rows `at` with the curve."""
        x = np.where(self.rows.visible[:, at], self.x[:, at], self.middle)
        return self.scores(self(x), at)

    def _fit(self, h, i, own):
        rows = self.rows
        place = np.searchsorted(own, i)
        visible = rows.visible[h, i]
        basis = self.basis(np.where(visible, self.x[h, i], self.middle))
        value, right = rows.value[h], rows.right[h, i]
        size = np.sqrt(((rows.output[h, i] - right) ** 2).mean(-1, keepdims=True)) + rows.deviation[
            h, i
        ].mean(-1, keepdims=True)
        E = value.shape[-1]
        fitted, tested = np.arange(E) % 2 == 0, np.arange(E) % 2 == 1
        for _ in range(STEPS):
            weights = of_scores(rows, self.changed(own), rows.visible[:, own], own, rows.kept)[h, place]
            output = np.einsum("rs,rse->re", weights, value)
            along = np.einsum("rs,rsk,rse->rke", weights, basis, value[..., fitted], optimize=True)
            along -= np.einsum("rs,rsk->rk", weights, basis)[..., None] * output[:, None, fitted]
            along = np.moveaxis(along / size[..., None], 1, 0).reshape(len(self.numbers), -1)
            off = ((rows.output[h, i] - output) / size)[:, fitted].reshape(-1)
            normal = along @ along.T
            normal += RIDGE * np.trace(normal) / len(normal) * np.eye(len(normal))
            if not np.isfinite(normal).all():
                break
            self.numbers = self.numbers + np.clip(np.linalg.solve(normal, along @ off), -3, 3)
        weights = of_scores(rows, self.changed(own), rows.visible[:, own], own, rows.kept)[h, place]
        output = np.einsum("rs,rse->re", weights, value)
        with np.errstate(all="ignore"):
            left = np.abs(((rows.output[h, i] - output) / size)[:, tested])
        self.left = float(np.median(np.nan_to_num(left, nan=np.inf)))

    def in_words(self):
        """The curve at some places; what it adds to all scores of a row alike does not show."""
        seen = np.sort(self.x[self.rows.visible])
        places = np.array(TOLD) if self.periodic else seen[(np.array(TOLD) * (len(seen) - 1)).astype(int)]
        values = self(places)
        zero = values[np.abs(places).argmin()]
        return ", ".join(f"{v - zero:+.3g} at {p:.3g}" for p, v in zip(places, values, strict=True))
