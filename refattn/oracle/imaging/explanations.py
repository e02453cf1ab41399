"""What could make a wrong row, tested on the row's output alone: rows, and where an explanation fits.

An explanation predicts the output of rows from other weights than the right ones. Each family of them, in a
file of its own, is a function of the rows of a sequence that returns a `Fit`: where it holds, how improbable
it is that it holds by chance, and the weights it stands for.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np
from scipy.optimize import nnls

FITS_RMS, FITS_MOST = 3.0, 7.0  # what a fit leaves of an output, in standard deviations of its rounding
NEARLY = 0.01  # of the difference may be left where an explanation is true but not the whole truth
LEAST = 0.3  # standard deviations: what is left counts as no smaller, since they are estimates
CHUNK = 2**22  # numbers in one array of candidates
TILES = (16, 32, 48, 64, 80, 96, 128, 192, 256)


@dataclass(eq=False)
class Rows:
    """Rows of one sequence in which some head is wrong, all heads; N rows, E columns that are read.

    Attributes
    ----------
    numerator, denominator : ndarray, (H, N, S)
        exp(score - lse), also where a key is hidden: what it would weigh. They differ by dropout.
    sink : ndarray, (H, N)
        What the denominator holds besides.
    value : ndarray, (H, S, E)
    output, right, deviation : ndarray, (H, N, E)
    wrong : ndarray of bool, (H, N)
    visible, allowed : ndarray of bool, (H, N, S)
        Right; and by mask and bias alone.
    start, stop : ndarray of int, (N,)
        Keys seen by position and length.
    base : ndarray, (H, N)
        lse, which the weights refer to; of a row without keys the largest score.
    """

    sequence: int
    rows: np.ndarray
    numerator: np.ndarray
    denominator: np.ndarray
    sink: np.ndarray
    value: np.ndarray
    output: np.ndarray
    right: np.ndarray
    deviation: np.ndarray
    wrong: np.ndarray
    visible: np.ndarray
    allowed: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    base: np.ndarray
    _independent: dict = field(default_factory=dict, init=False)

    @property
    def kept(self):
        """Numerator over denominator: what dropout leaves, (H, N, S)."""
        return np.where(
            self.denominator > 0, self.numerator / np.where(self.denominator > 0, self.denominator, 1.0), 0.0
        )

    @property
    def shape(self):
        return self.numerator.shape

    def some(self, at):
        """A few of the rows."""
        pieces = {}
        for item in fields(self):
            own = getattr(self, item.name)
            if item.name in ("rows", "start", "stop"):
                pieces[item.name] = own[at]
            elif item.name not in ("sequence", "value", "_independent"):
                pieces[item.name] = own[:, at]
        return Rows(sequence=self.sequence, value=self.value, **pieces)

    def independent(self, among):
        """Independent numbers in the output of a row, (H, N)."""
        if among == "equations":
            return np.full(self.shape[:2], self.output.shape[-1])
        if among not in self._independent:
            shown = self.denominator if among == "all" else np.where(self.visible, self.denominator, 0.0)
            size = np.sqrt((self.value**2).mean((-1, -2), keepdims=True)) / self.deviation.mean(
                -1, keepdims=True
            )
            keys = (shown * size > 8).sum(-1)
            self._independent[among] = np.minimum(keys, self.output.shape[-1])
        return self._independent[among]

    def chunks(self, size):
        """Slices of rows so that `size` numbers a row and head stay below CHUNK."""
        step = max(CHUNK // max(size, 1), 1)
        return [slice(n, n + step) for n in range(0, len(self.rows), step)]

    def left(self, output):
        """Root mean square and largest of what a prediction (H, N, E) leaves, in deviations."""
        with np.errstate(all="ignore"):
            off = np.minimum(np.abs(np.nan_to_num((output - self.output) / self.deviation, nan=1e30)), 1e30)
            return np.sqrt((off**2).mean(-1)), off.max(-1, initial=0.0)

    def holds_at(self, output, at):
        """Whether a prediction of the rows `at` leaves rounding only, in wrong rows; (H, n)."""
        off = np.abs(np.nan_to_num((output - self.output[:, at]) / self.deviation[:, at], nan=np.inf))
        return self.wrong[:, at] & (off.max(-1, initial=0.0) <= FITS_MOST)

    def apply(self, weights):
        return weights @ self.value


@dataclass(eq=False)
class Fit:
    """Where an explanation holds.

    Attributes
    ----------
    name : str
    holds : ndarray of bool, (H, N)
    evidence : ndarray, (H, N)
        Logarithm of the odds that it holds by more than chance.
    weights : callable () -> ndarray, (H, N, S), or None where it is not about weights
    determined : ndarray of bool, (H, N, S), or None
        Weights that the explanation knows; None for all.
    says : mapping
        Numbers to be told, each (H, N).
    cost : float
        What the explanation must explain more than a simpler one, as a share of its rows.
    pairs : tuple of two ndarrays of bool, (H, N, S), or None
        Where it holds for some keys only: those, and those for which the output does not tell.
    """

    name: str
    holds: np.ndarray
    evidence: np.ndarray
    weights: object
    determined: np.ndarray | None = None
    says: dict = field(default_factory=dict)
    cost: float = 0.0
    pairs: tuple | None = None


def counts_of(a, b, maxiter=None):
    """Numbers x >= 0 for which a @ x is nearest to b; None where there are none to be found."""
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return None
    try:
        return nnls(a, b, maxiter=maxiter)[0]
    except RuntimeError:  # it does not converge
        return None


def evidence(rows, rms, free, candidates, among="all"):
    """Logarithm of the odds of a fit that leaves `rms` with `free` fitted numbers, the best of `candidates`.

    A row has no more independent numbers than keys ("all", or the "visible" ones) that its output shows.
    """
    before, _ = rows.left(rows.right)
    with np.errstate(all="ignore"):
        gain = np.log(np.maximum(before, LEAST) / np.maximum(rms, LEAST))
    return (
        np.nan_to_num(gain, nan=-1e3, neginf=-1e3) * np.maximum(rows.independent(among) - free, 0)
        - np.log(max(candidates, 1))
        - 2
    )


def fitted(name, rows, prediction, weights, free=0, candidates=1, among="all", **more):
    """The `Fit` of a prediction (H, N, E)."""
    rms, most = rows.left(prediction)
    holds = (rms <= FITS_RMS) & (most <= FITS_MOST) | (rms <= NEARLY * rows.left(rows.right)[0])
    return Fit(name, holds, evidence(rows, rms, free, candidates, among), weights, **more)


def weights_of(rows, times):
    """Weights of keys that count `times` (H, N, S)."""
    with np.errstate(all="ignore"):
        total = (np.where(times > 0, rows.denominator * times, 0.0)).sum(-1, keepdims=True) + rows.sink[
            ..., None
        ]
        return np.nan_to_num(np.where(times > 0, rows.numerator * times, 0.0) / total)


def of_scores(rows, scores, visible, at, kept=None):
    """Weights (H, n, S) that scores would give to the rows `at`."""
    s = np.where(visible, scores - rows.base[:, at, None], -np.inf)
    top = np.maximum(s.max(-1, keepdims=True, initial=-np.inf), 0.0)
    w = np.exp(s - top)
    w /= np.maximum(w.sum(-1, keepdims=True) + rows.sink[:, at, None] * np.exp(-top), 1e-300)
    return w if kept is None else w * kept[:, at]


def cumsum(array):
    return np.concatenate([np.zeros_like(array[:, :1]), np.cumsum(array, axis=1)], axis=1)


def best_of(name, rows, squares, most, inside):
    """The best candidate of all heads together where one holds for all, and of each head alone."""
    H, N, C = squares.shape
    E = rows.output.shape[-1]
    count = H * E
    fits = []
    for how, total, worst, terms in (
        ("all heads", squares.sum(0, keepdims=True), most.max(0, keepdims=True), count),
        ("one head", squares, most, E),
    ):
        choice = total.argmin(-1)
        least = np.take_along_axis(total, choice[..., None], -1)[..., 0]
        holds = (least <= FITS_RMS**2 * terms) & (
            np.take_along_axis(worst, choice[..., None], -1)[..., 0] <= FITS_MOST
        )
        rms = np.broadcast_to(np.sqrt(least / terms), (H, N))
        choice, holds = np.broadcast_to(choice, (H, N)), np.broadcast_to(holds, (H, N))
        odds = evidence(rows, rms, 0, C)
        if how == "all heads":
            odds = np.broadcast_to(np.where(rows.wrong, odds + np.log(C), 0).sum(0) - np.log(C), (H, N))
        like = (total <= least[..., None] + 16) & (worst <= FITS_MOST)
        low, high = like.argmax(-1), C - 1 - like[..., ::-1].argmax(-1)
        low, high = np.broadcast_to(low, (H, N)), np.broadcast_to(high, (H, N))

        def determined(low=low, high=high):
            return inside(low) == inside(high)

        def weights(choice=choice):
            return weights_of(rows, inside(choice))

        fits.append(
            Fit(
                f"{name}, {how}",
                holds,
                odds,
                weights,
                determined,
                {"choice": choice},
                0.0 if how == "all heads" else 0.1,
            )
        )
    return fits


def counted(name, rows, counts, free, candidates, joint, cost=0.0, **more):
    weights = weights_of(rows, counts)
    fit = fitted(name, rows, rows.apply(weights), lambda: weights, free, candidates, cost=cost, **more)
    if joint:
        fit.holds = np.broadcast_to(fit.holds.all(0), fit.holds.shape)
        odds = np.where(rows.wrong, fit.evidence + np.log(max(candidates, 1)), 0).sum(0) - np.log(
            max(candidates, 1)
        )
        fit.evidence = np.broadcast_to(odds, fit.holds.shape)
    return fit
