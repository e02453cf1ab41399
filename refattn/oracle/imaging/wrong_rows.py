"""A sample of rows with wrong scores: their operands, what was measured, and how models are judged."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refattn.oracle.imaging.compare import RIGHT, SCALED

ROWS = 96  # of a sample
TRIAL = 16  # of them, on which many models are compared
HELD = 0.25  # of the pairs of a row must be right, so that they are no accident
TILES = (16, 32, 64, 128)  # of rows or keys, as most kernels have them
QUANTILES = (0.5, 0.3, 0.7, 0.15, 0.85)  # of a row, where the number that it may be off by is looked for


class Model(NamedTuple):
    """One way in which scores may be wrong.

    Attributes
    ----------
    kind : str
        What is wrong, in a word, for programs: "softcap".
    words : str
        What happens, as a sentence without its end.
    scores : ndarray, (n, S)
        The scores that a kernel would have.
    numbers : int
        How many numbers were fitted; the more there are, the less an agreement says.
    whole : bool
        It says itself what the pairs have that are right, too.
    """

    kind: str
    words: str
    scores: np.ndarray
    numbers: int = 0
    whole: bool = True


class WrongRows:
    """A sample of n rows with wrong scores.

    Attributes
    ----------
    at : tuple of ndarray, (n,) each
        Where the rows stand in arrays (B, H, T): `b`, `h`, `t`. `head` is the number of the query head.
    raw, capped, score : ndarray, (n, S)
        Right scores: scaled products, after softcap, after ALiBi and bias.
    measured : ndarray, (n, S)
        Scores that were measured, up to one number a row; NaN where nothing is known.
    wrong, judged : ndarray of bool, (n, S)
    """

    def __init__(self, ledgers, wrong):
        view, measured = ledgers.view, ledgers.measured
        self.view, self.in_time = view, measured.in_time
        self.at = _sampled(wrong)
        self.b, self.h, self.t = self.at
        self.head = view.heads[self.h]
        self.wrong = wrong[self.at]
        labels = ledgers.labels[self.at]
        self.judged = (labels == RIGHT) | (labels == SCALED)
        self.tolerance = 1.5 * np.broadcast_to(measured.tolerance, view.shape)[self.at]
        with np.errstate(all="ignore"):
            self.measured = np.where(self.judged, np.log(measured.weights[self.at]), np.nan)
        self.judged &= np.isfinite(self.measured)  # hidden pairs are right, and have no score
        self.shift = ledgers.shift[self.at]
        self.raw, self.capped, self.score = view.raw[self.at], view.capped[self.at], view.score[self.at]
        self.lse, self.top = view.lse[self.at], view.top[self.at]
        self.row = view.row[self.b, 0, self.t, 0]
        self.position = view.position[self.b, 0, self.t, 0]
        self.parts = [view.outline_of(n) for n in range(len(view.sequences))]
        self.scale, self.cap = self.parts[0].scale, self.parts[0].softcap

    # operands

    def slopes(self, heads=None):
        """The ALiBi slopes of the rows, (n, 1), or None; those of other heads if they are given."""
        heads = self.head if heads is None else heads
        if self.parts[0].alibi_slopes is None:
            return None
        entries = [s.entry for s in self.view.sequences]
        of_row = [self.parts[b].alibi_slopes[entries[b], h] for b, h in zip(self.b, heads, strict=True)]
        return np.array(of_row)[:, None]

    @property
    def bias(self):
        """The bias of the rows, (n, S), or None."""
        if self.parts[0].bias is None:
            return None
        whole = np.zeros(self.score.shape)
        for n, (b, h, i) in enumerate(zip(self.b, self.head, self.row, strict=True)):
            array = self.parts[b].bias[self.view.sequences[b].entry]
            line = array[h, min(max(i, 0), array.shape[1] - 1)]
            whole[n, : len(line)] = line
        return whole

    @property
    def rest(self):
        """What ALiBi and bias add to the scores."""
        return self.score - self.capped

    @property
    def distance(self):
        return self.distance_from(self.position)

    def distance_from(self, position):
        """Distances (n, S) of the keys from positions (n,)."""
        return np.abs(position[:, None] - self.view.key[0, 0])

    # scores made of them

    def capped_of(self, raw, cap=None):
        cap = self.cap if cap is None else cap
        return raw if cap is None else cap * np.tanh(raw / cap)

    def with_rest(self, capped):
        """Capped scores with the right ALiBi and bias added."""
        return capped + self.rest

    def of_products(self, raw, cap=None):
        """The scores of other scaled products (n, S), or of another softcap."""
        return self.with_rest(self.capped_of(raw, cap))

    def of_operands(self, query, key):
        """The scores of other queries (n, D) and keys (n, S, D)."""
        return self.of_products(self.scale * np.einsum("nd,nsd->ns", query, key))

    @property
    def got(self):
        """Measured scores, (n, S), where what is right in a row says which number it is off by."""
        return self.measured + (self.lse - self.shift)[:, None]

    # how a model is judged

    def explains(self, scores):
        """Share of the wrong pairs that these scores predict, each row up to one number.

        In a row that has right pairs too, the number is theirs: what is wrong must be explained beside
        what is right.
        """
        with np.errstate(all="ignore"):
            off = self.measured - scores
            finite = np.isfinite(off)
            off = np.where(finite, off, np.nan)
            near = lambda number: np.abs(off - number[:, None]) <= self.tolerance
            right = self.judged & ~self.wrong
            held = right.sum(-1) >= np.maximum(HELD * self.judged.sum(-1), 3)
            own = self.shift - self.lse
            candidates = [own, -self.lse]
            ordered, count = np.sort(off, axis=-1), finite.sum(-1)
            for share in QUANTILES:
                at = np.clip((share * (count - 1)).astype(int), 0, None)
                candidates.append(np.take_along_axis(ordered, at[:, None], -1)[:, 0])
            best = np.zeros(len(off))
            for candidate in candidates:
                number = np.where(held, own, candidate)
                best = np.maximum(best, (near(number) & self.wrong).sum(-1))
            # a model of the whole row may move what is right by one number
            moved = near(medians(np.where(right, off, np.nan), none=0.0))
            whole = held & ((moved & right).sum(-1) >= 0.9 * right.sum(-1))
            best = np.where(whole, np.maximum(best, (moved & self.wrong).sum(-1)), best)
        return float(best.sum() / max(self.wrong.sum(), 1))

    def holds_where_right(self, scores):
        """Whether scores that explain the wrong pairs of rows give their right pairs as well."""
        with np.errstate(all="ignore"):
            off = self.measured - scores
        right = self.judged & ~self.wrong & np.isfinite(off)
        number = medians(np.where(self.wrong & np.isfinite(off), off, np.nan), none=0.0)
        near = np.abs(np.where(right, off - number[:, None], 0)) <= self.tolerance
        return bool((near & right).sum() >= 0.95 * right.sum())

    def differ(self, scores):
        """Whether scores say anything else than the right scores do, beyond one number a row."""
        with np.errstate(all="ignore"):
            off = np.where(self.judged & np.isfinite(scores), scores - self.score, np.nan)
        some = np.isfinite(off).any(-1)
        if not some.any():
            return False
        spread = np.nanmax(off[some], -1) - np.nanmin(off[some], -1)
        return bool((spread > self.tolerance[some].max(-1)).mean() > 0.5)

    # numbers that models fit

    def coefficient(self, term, here=slice(None)):
        """How much of a term (n, S) the measured scores of the rows `here` hold beside the right scores."""
        with np.errstate(all="ignore"):
            off = self.measured[here] - self.score[here]
        use = np.isfinite(off) & np.isfinite(term[here]) & self.judged[here]
        return _slope(np.where(use, term[here], 0), np.where(use, off, 0), use)

    def coefficient_of(self, term, pairs):
        """The same of some pairs (n, S), beside each other only."""
        with np.errstate(all="ignore"):
            off = self.measured - self.score
        use = pairs & np.isfinite(off) & np.isfinite(term)
        return _slope(np.where(use, term, 0), np.where(use, off, 0), use)

    def distance_to(self, scores, here=slice(None), axis=None):
        """How far scores are from those that were measured in the rows `here`, each row up to one number.

        In all together, or along an axis.
        """
        with np.errstate(all="ignore"):
            off = self.measured[here] - scores
        use = np.isfinite(off)
        return np.minimum(np.abs(centred(np.where(use, off, 0), use)), 10.0).sum(axis)

    def nearest_models(self, models, kept):
        """The `kept` models that are nearest to what was measured in a few of the rows, nearest first."""
        weights = self.wrong.sum(-1)
        trial = np.argsort(-weights, kind="stable")[:: max(len(weights) // TRIAL, 1)][:TRIAL]
        best = []
        for n, model in enumerate(models):
            if not self.in_time("what is wrong with the scores"):
                break
            best.append((self.distance_to(model.scores[trial], trial), n, model))
            best = sorted(best, key=lambda entry: entry[:2])[:kept]
        return [model for _, _, model in best]

    def nearest(self, numbers, model):
        """The number near one of `numbers` that brings scores `model(number)` nearest to the measured."""
        from scipy.optimize import minimize_scalar  # loads slowly, and few kernels need it

        far = lambda a: self.distance_to(model(a))
        start = min(numbers, key=far)
        found = minimize_scalar(
            far,
            bounds=sorted((start * 0.94, start * 1.06)),
            method="bounded",
            options={"xatol": 1e-7 * abs(start)},
        )
        return float(found.x)


def _sampled(wrong):
    """Places of the rows with wrong pairs (B, H, T, S): a sample, in which many make a row likelier."""
    places = np.argwhere(wrong.any(-1))
    if len(places) > ROWS:
        counts = wrong.sum(-1)[tuple(places.T)]
        rng = np.random.default_rng(0)
        taken = rng.choice(len(places), ROWS, replace=False, p=counts / counts.sum())
        places = places[np.sort(taken)]
    return tuple(places.T)


def medians(x, none=np.nan):
    """Medians of the numbers along the last axis that are not NaN; `none` where there are none."""
    ordered, count = np.sort(x, axis=-1), np.isfinite(x).sum(-1)
    middle = np.take_along_axis(ordered, np.maximum((count - 1) // 2, 0)[..., None], -1)[..., 0]
    return np.where(count > 0, middle, none)


def _slope(x, y, use):
    """The slope of y over x, (n, S) each, of the pairs in use; every row has a number of its own."""
    x, y, weight, slope = centred(x, use), centred(y, use), use.astype(float), 0.0
    for _ in range(6):  # outliers count less and less
        size = (weight * x * x).sum()
        if size <= 0:
            return 0.0
        slope = (weight * x * y).sum() / size
        left = np.abs(y - slope * x)
        scale = max(np.median(left[use]) * 3, 1e-12)
        weight = use / np.maximum(left / scale, 1)
    return float(slope)


def centred(x, use):
    """Numbers (n, S) less the mean of those in use of their row; 0 where they are not in use."""
    mean = np.where(use, x, 0).sum(-1, keepdims=True) / np.maximum(use.sum(-1, keepdims=True), 1)
    return np.where(use, x - mean, 0)
