"""What could make a wrong row, tested on the row's output alone.

An explanation predicts the output of rows from other weights than the right ones. Each function here tries
one family of them on the rows of a sequence and returns a `Fit`: where it holds, how improbable it is that
it holds by chance, and the weights it stands for.
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
SPARE = 8  # numbers of a row that are left to test free weights
GAUSS_NEWTON_STEPS = 12
TRIED_SETS = 8  # rows without one set of keys that explains them, after which no more are tried
PRIOR = 1e-4  # precision of "the factor is 1", in units of the rounding: what is not shown stays 1


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


# the output as a whole


def factor(rows):
    """The right output times one factor a row: another normaliser."""
    s = rows.deviation
    with np.errstate(all="ignore"):
        a = (rows.output * rows.right / s**2).sum(-1) / (rows.right**2 / s**2).sum(-1)
    a = np.nan_to_num(a)
    right = np.where(rows.visible, rows.numerator, 0.0)
    return fitted(
        "factor", rows, rows.right * a[..., None], lambda: right * a[..., None], 1, says={"factor": a}
    )


# the set of visible keys, which all heads share


RANGES = ("stop", "start", "shift", "stop of all")


def ranges(rows, what, masked=True):
    """Another first or last key, or both moved; keys hidden by mask or bias stay hidden if `masked`."""
    _, N, S = rows.shape
    if not masked and rows.allowed.all():
        return []
    ends = np.arange(S + 1)
    start, stop = (np.broadcast_to(edge[:, None], (N, S + 1)) for edge in (rows.start, rows.stop))
    moved = ends[None] - S // 2
    first, last = {
        "stop": (start, np.maximum(ends, start)),
        "start": (np.minimum(ends, stop), stop),
        "shift": (np.clip(start + moved, 0, S), np.clip(stop + moved, 0, S)),
        "stop of all": (np.zeros((N, S + 1), int), np.broadcast_to(ends, (N, S + 1))),
    }[what]
    allowed = rows.allowed if masked else np.ones_like(rows.allowed)
    name = f"{what} (range{'' if masked else ' without mask'})"
    return _best_of(
        name, rows, *_ranges_left(rows, allowed, first, last), _range_weights(rows, allowed, first, last)
    )


def _ranges_left(rows, allowed, first, last):
    """Sum of squares and largest of what every range (N, C) leaves, (H, N, C)."""
    H, N, S = rows.shape
    E, C = rows.output.shape[-1], first.shape[1]
    squares, most = np.full((H, N, C), np.inf), np.full((H, N, C), np.inf)
    for h in range(H):
        for part in rows.chunks(S * E):
            a, b = first[part], last[part]
            top = np.where(allowed[h, part], rows.numerator[h, part], 0.0)
            low = np.where(allowed[h, part], rows.denominator[h, part], 0.0)
            above = _cumsum(top[..., None] * rows.value[h])
            below = _cumsum(low)
            at = np.arange(len(a))[:, None]
            with np.errstate(all="ignore"):
                total = below[at, b] - below[at, a] + rows.sink[h, part, None]
                got = (above[at, b] - above[at, a]) / total[..., None]
                got[~(total > 1e-300)] = 0.0
                off = (got - rows.output[h, part, None]) / rows.deviation[h, part, None]
                off *= off
            squares[h, part] = np.nan_to_num(off.sum(-1), nan=np.inf)
            most[h, part] = np.sqrt(np.nan_to_num(off.max(-1), nan=np.inf))
    return squares, most


def _cumsum(array):
    return np.concatenate([np.zeros_like(array[:, :1]), np.cumsum(array, axis=1)], axis=1)


def _range_weights(rows, allowed, first, last):
    def inside(choice):
        """Which keys are in the chosen range, (H, N, S); choice (H, N)."""
        at = np.arange(len(rows.rows))
        key = np.arange(rows.shape[-1])
        return allowed & (key >= first[at, choice][..., None]) & (key < last[at, choice][..., None])

    return inside


def _best_of(name, rows, squares, most, inside):
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


def weights_of(rows, times):
    """Weights of keys that count `times` (H, N, S)."""
    with np.errstate(all="ignore"):
        total = (np.where(times > 0, rows.denominator * times, 0.0)).sum(-1, keepdims=True) + rows.sink[
            ..., None
        ]
        return np.nan_to_num(np.where(times > 0, rows.numerator * times, 0.0) / total)


def one_key(rows):
    """One key that counts another number of times, the same number in all heads."""
    H, N, S = rows.shape
    along, norm = np.zeros((H, N, S)), np.zeros((H, N, S))
    for h in range(H):
        s = rows.deviation[h]
        off = (rows.output[h] - rows.right[h]) / s
        # d = p (v - o) / s: <d, off> and <d, d> without an array of (N, S, E)
        p, v = rows.denominator[h], rows.value[h]
        along[h] = p * ((off / s) @ v.T - (off * rows.output[h] / s).sum(-1, keepdims=True))
        norm[h] = p**2 * (
            (1 / s**2) @ (v**2).T
            - 2 * (rows.output[h] / s**2) @ v.T
            + (rows.output[h] ** 2 / s**2).sum(-1, keepdims=True)
        )
    size = (((rows.output - rows.right) / rows.deviation) ** 2).sum(-1)
    fits = []
    for how in ("all heads", "one head"):
        a, n, _r = (
            (along.sum(0, keepdims=True), norm.sum(0, keepdims=True), size.sum(0, keepdims=True))
            if how == "all heads"
            else (along, norm, size)
        )
        with np.errstate(all="ignore"):
            times = np.nan_to_num(a / n)
            times = np.where(
                rows.visible if how == "one head" else rows.visible.all(0),
                np.maximum(times, -1),
                np.maximum(times, 0),
            )
            gain = 2 * times * a - times**2 * n
        key = np.nan_to_num(gain, nan=-np.inf).argmax(-1)
        key = np.broadcast_to(key, (H, N))
        count = np.take_along_axis(np.broadcast_to(times, (H, N, S)), key[..., None], -1)[..., 0]
        near = np.rint(count)
        count = np.where(np.abs(count - near) < 0.02 * np.maximum(np.abs(near), 0.5), near, count)
        counts = rows.visible.astype(float)
        np.put_along_axis(
            counts, key[..., None], np.take_along_axis(counts, key[..., None], -1) + count[..., None], -1
        )
        fits.append(
            _counted(
                f"one key, {how}",
                rows,
                counts,
                1,
                S,
                how == "all heads",
                cost=0.02 if how == "all heads" else 0.12,
                says={"key": key, "count": count},
            )
        )
    return fits


def _counted(name, rows, counts, free, candidates, joint, cost=0.0, **more):
    weights = weights_of(rows, counts)
    fit = fitted(name, rows, rows.apply(weights), lambda: weights, free, candidates, cost=cost, **more)
    if joint:
        fit.holds = np.broadcast_to(fit.holds.all(0), fit.holds.shape)
        odds = np.where(rows.wrong, fit.evidence + np.log(max(candidates, 1)), 0).sum(0) - np.log(
            max(candidates, 1)
        )
        fit.evidence = np.broadcast_to(odds, fit.holds.shape)
    return fit


def of_scores(rows, scores, visible, at, kept=None):
    """Weights (H, n, S) that scores would give to the rows `at`."""
    s = np.where(visible, scores - rows.base[:, at, None], -np.inf)
    top = np.maximum(s.max(-1, keepdims=True, initial=-np.inf), 0.0)
    w = np.exp(s - top)
    w /= np.maximum(w.sum(-1, keepdims=True) + rows.sink[:, at, None] * np.exp(-top), 1e-300)
    return w if kept is None else w * kept[:, at]


def hidden_alike(rows):
    """Hidden keys up to some key that all weigh the same: their scores were replaced by a number."""
    H, N, S = rows.shape
    E = rows.output.shape[-1]
    squares, most = np.full((H, N, S + 1), np.inf), np.full((H, N, S + 1), np.inf)
    weight = np.zeros((H, N, S + 1))
    for h in range(H):
        for part in rows.chunks(S * E):
            hidden = ~rows.visible[h, part]
            away = rows.value[h] - rows.output[h, part, None]
            along = _cumsum(hidden[..., None] * away) / rows.deviation[h, part, None]
            off = ((rows.output[h, part] - rows.right[h, part]) / rows.deviation[h, part])[:, None]
            with np.errstate(all="ignore"):
                size = np.maximum(np.nan_to_num((along * off).sum(-1) / (along**2).sum(-1)), 0)
            left = (off - size[..., None] * along) ** 2
            squares[h, part], most[h, part] = left.sum(-1), np.sqrt(left.max(-1))
            weight[h, part] = size
    choice = squares.argmin(-1)
    taken = np.take_along_axis(weight, choice[..., None], -1)
    extra = np.where(~rows.visible & (np.arange(S) < choice[..., None]), taken, 0.0)
    right = np.where(rows.visible, rows.numerator, 0.0)
    total = np.where(rows.visible, rows.denominator, 0.0).sum(-1) + rows.sink + extra.sum(-1)
    weights = (right + extra) / np.maximum(total, 1e-300)[..., None]
    with np.errstate(all="ignore"):
        score = np.log(taken[..., 0]) + rows.base
    return fitted(
        "hidden keys of one score",
        rows,
        rows.apply(weights),
        lambda: weights,
        1,
        S,
        says={"score": score},
        cost=0.05,
    )


# factors that are constant in parts of the keys


def pieces(rows, parts, name, cost=0.2):
    """One factor for each part of the visible keys, of each row and head alone.

    `parts` (S,) or (N, S): the number of the part of each key, below 0 for keys that keep what they have.
    """
    H, N, S = rows.shape
    E = rows.output.shape[-1]
    parts = np.broadcast_to(parts, (N, S))
    G = int(parts.max(initial=-1)) + 1
    if G < 2 or G > E - 8:
        return []
    right = np.where(rows.visible, rows.numerator, 0.0)
    factors, spread = np.ones((H, N, G)), np.zeros((H, N, G))
    one_hot = parts[..., None] == np.arange(G)
    for h in range(H):
        for part in rows.chunks(S * (G + E)):
            of_part = (
                np.swapaxes(one_hot[part] * right[h, part, :, None], -1, -2) @ rows.value[h]
            )  # (n, G, E)
            of_part /= rows.deviation[h, part, None]
            off = (rows.output[h, part] - rows.right[h, part]) / rows.deviation[h, part]
            inverse = np.linalg.inv(of_part @ np.swapaxes(of_part, -1, -2) + PRIOR * np.eye(G))
            factors[h, part] += (inverse @ (of_part @ off[..., None]))[..., 0]
            spread[h, part] = np.sqrt(np.einsum("ngg->ng", inverse))
    exact, known = factors, spread < 0.2
    for target in (1.0, 0.0):
        exact = np.where(np.abs(exact - target) <= 5 * spread, target, exact)

    def weights(factors):
        of_key = np.take_along_axis(factors, np.broadcast_to(np.maximum(parts, 0), (H, N, S)), -1)
        return right * np.where(parts < 0, 1.0, of_key)

    shown = np.take_along_axis(known, np.broadcast_to(np.maximum(parts, 0), (H, N, S)), -1) | ~rows.visible
    fits = []
    for how, used in (("", exact), (", unrounded", factors)):
        taken = weights(used)
        changed = (used != 1).sum(-1)
        fit = fitted(
            f"factors of {name}{how}",
            rows,
            rows.apply(taken),
            lambda taken=taken: taken,
            changed,
            1,
            among="visible",
            determined=shown,
            cost=cost,
        )
        fit.evidence = fit.evidence - changed * np.log(G)
        fits.append(fit)
    better = fits[0].holds
    fits[1].holds = fits[1].holds & ~better
    return fits


def all_pieces(rows, sizes=TILES):
    S = rows.shape[-1]
    key = np.arange(S)
    fits = []
    for size in sizes:
        if size < S:
            fits += pieces(rows, key // size, f"tiles of {size} keys", 0.2 + 0.02 * S / size / 10)
    for count in range(2, 9):
        size = -(-S // count)
        if size > 1 and size not in sizes:
            fits += pieces(rows, key // size, f"{count} splits", 0.3)
    for count in (2, 4, 8):
        if count < S:
            fits += pieces(rows, key % count, f"keys modulo {count}", 0.25)
    return fits


def any_weights(rows):
    """The weights themselves, where a row has clearly fewer keys than numbers: least squares.

    Weights that are the right ones times the row's factor, as far as the output tells, are taken for such.
    """
    H, _, _S = rows.shape
    E = rows.output.shape[-1]
    right = np.where(rows.visible, rows.numerator, 0.0)
    # hidden keys too, where there are numbers enough
    free = np.where(
        (rows.denominator > 0).sum(-1, keepdims=True) <= E - SPARE, rows.denominator > 0, rows.visible
    )
    counts = free.sum(-1)
    weights, known = right.copy(), np.zeros(rows.shape, bool)
    for h in range(H):
        for n in np.flatnonzero((counts[h] <= E - SPARE) & (counts[h] > 1) & rows.wrong[h]):
            keys = np.flatnonzero(free[h, n])
            a = (rows.value[h, keys] / rows.deviation[h, n]).T
            try:
                inverse = np.linalg.pinv(a, rcond=1e-9)
            except np.linalg.LinAlgError:
                continue
            found = inverse @ (rows.output[h, n] / rows.deviation[h, n])
            spread = np.sqrt((inverse**2).sum(-1))
            expected = right[h, n, keys]
            clear = expected > 20 * spread
            factor = np.median(found[clear] / expected[clear]) if clear.any() else 1.0
            near = np.abs(found - factor * expected) <= 6 * spread
            weights[h, n, keys] = np.where(near, factor * expected, found)
            known[h, n] = True
            known[h, n, keys] = spread < 0.05 * np.maximum(np.abs(found), expected)
    fit = fitted(
        "any weights",
        rows,
        rows.apply(weights),
        lambda: weights,
        counts,
        1,
        "equations",
        determined=known,
        cost=0.3,
    )
    fit.holds = fit.holds & (counts <= E - SPARE) & (counts > 1)
    return fit


# the set of visible keys, without an idea of its form


def any_set(rows, budget):
    """Non-negative least squares over the values: how often each key counts, the heads of a row stacked."""
    H, N, S = rows.shape
    E = rows.output.shape[-1]
    counts = np.broadcast_to(rows.visible, rows.shape).astype(float).copy()
    changed = np.zeros(N)
    tried = failed = 0
    for n in np.random.default_rng(0).permutation(N):
        if budget() < 0 or (tried == failed == TRIED_SETS):
            break
        tried += 1
        failed += 1
        p = rows.denominator[:, n]
        usable = (p.max(0) > 1e-12) & np.isfinite(p).all(0)
        keys = np.flatnonzero(usable)
        if not len(keys) or not np.isfinite(rows.output[:, n]).all():
            continue
        a = (
            p[:, None, keys]
            * (np.swapaxes(rows.value[:, keys], 1, 2) - rows.output[:, n, :, None])
            / rows.deviation[:, n, :, None]
        )
        a = a.reshape(H * E, -1)
        b = -(rows.sink[:, n, None] * -rows.output[:, n] / rows.deviation[:, n]).reshape(-1)
        mean = p[:, keys].mean(0)
        heavy = 1e3 * np.abs(a).max(initial=0.0)
        x = counts_of(np.vstack([a, heavy * mean]), np.append(b, heavy), maxiter=3 * len(keys))
        if x is None:
            continue
        x = _whole(x, mean)
        row = np.zeros(S)
        row[keys] = x
        changed[n] = (row != rows.visible[:, n].any(0)).sum()
        counts[:, n] = row
        weights = _weights_of_row(rows, row, n)
        off = np.abs(
            (np.einsum("hs,hse->he", weights, rows.value) - rows.output[:, n]) / rows.deviation[:, n]
        )
        before = np.abs((rows.right[:, n] - rows.output[:, n]) / rows.deviation[:, n]).max()
        failed -= np.nan_to_num(off, nan=np.inf).max() <= max(FITS_MOST, NEARLY * before)
    fit = _counted("any set of keys", rows, counts, 0, 1, True, cost=0.05)
    fit.evidence = fit.evidence - changed * np.log(max(S, 2))
    return [fit]


def _weights_of_row(rows, times, n):
    total = (rows.denominator[:, n] * times).sum(-1, keepdims=True) + rows.sink[:, n, None]
    return np.nan_to_num(rows.numerator[:, n] * times / np.maximum(total, 1e-300))


def _whole(x, mean):
    """Counts in units of the commonest one, rounded to whole numbers where they are near."""
    there = x > 1e-3 * x.max(initial=0.0)
    if not there.any():
        return x
    order = np.argsort(x[there])
    share = np.cumsum(mean[there][order])
    unit = x[there][order][np.searchsorted(share, share[-1] / 2)]
    x = x / unit
    near = np.rint(x)
    return np.where(np.abs(x - near) < 0.2, near, x)


# scores


def score_numbers(rows, scores, name, start=(0.0,), scaled=False):
    """One number in the scores of each row: `scores(a)` gives scores and their derivative, (H, N, S).

    `scaled`: and one factor of the output.
    """
    numbers, least = np.zeros(rows.shape[:2]), np.full(rows.shape[:2], np.inf)
    for first in start:
        a = np.full(rows.shape[:2], first)
        for _ in range(GAUSS_NEWTON_STEPS):
            a = a + np.clip(_step_of_numbers(rows, scores, a, scaled), -0.5, 0.5)
        output = rows.apply(_weights_at(rows, scores, a)[0])
        rms, _ = rows.left(output * _size(rows, output) if scaled else output)
        better = rms < least
        numbers = np.where(better, a, numbers)
        least = np.where(better, rms, least)
    weights, _, _ = _weights_at(rows, scores, numbers)
    says, free = {"number": numbers}, 1
    if scaled:
        size = _size(rows, rows.apply(weights))
        weights, says, free = weights * size, {"number": numbers, "factor": size[..., 0]}, 2
    cost = 0.05 * free
    return fitted(name, rows, rows.apply(weights), lambda: weights, free, 2, "visible", says=says, cost=cost)


def _weights_at(rows, scores, numbers):
    """Weights before the values, shares of the denominator, and the derivative of the scores."""
    s, slope = scores(numbers[..., None])
    shares = of_scores(rows, s, rows.visible, slice(None))
    return shares * rows.kept, shares, slope


def _size(rows, output):
    """The factor of each row that brings an output nearest, (H, N, 1)."""
    with np.errstate(all="ignore"):
        s = rows.deviation**2
        return np.nan_to_num((output * rows.output / s).sum(-1) / (output**2 / s).sum(-1))[..., None]


def _step_of_numbers(rows, scores, numbers, scaled):
    """A Gauss-Newton step of each row's number."""
    weights, shares, slope = _weights_at(rows, scores, numbers)
    slope = slope - (shares * slope).sum(-1, keepdims=True)
    output, along = rows.apply(weights), rows.apply(weights * slope)
    size = _size(rows, output) if scaled else 1.0
    off = (rows.output - output * size) / rows.deviation
    along, output = along * size / rows.deviation, output / rows.deviation
    with np.errstate(all="ignore"):
        if scaled:
            along = along - output * ((along * output).sum(-1) / (output**2).sum(-1))[..., None]
        return np.nan_to_num((along * off).sum(-1) / (along**2).sum(-1))


# values


def shifted_values(rows, shift, name, budget):
    """The right weights on values `shift` keys further from some key on (or up to it)."""
    H, N, S = rows.shape
    E = rows.output.shape[-1]
    source = (np.arange(S) + shift) % S
    right = np.where(rows.visible, rows.numerator, 0.0)
    squares, most = np.full((2, H, N, S + 1), np.inf), np.full((2, H, N, S + 1), np.inf)
    for h in range(H):
        change = rows.value[h][source] - rows.value[h]
        for part in rows.chunks(S * E):
            if budget() < 0:
                break
            cum = _cumsum(right[h, part, :, None] * change)
            off = (rows.output[h, part] - rows.right[h, part])[:, None]
            for way, got in enumerate((cum, cum[:, -1:] - cum)):
                left = ((got - off) / rows.deviation[h, part, None]) ** 2
                squares[way, h, part], most[way, h, part] = left.sum(-1), np.sqrt(left.max(-1))
    fits = []
    for way, words in enumerate(("up to", "from")):
        for fit in _best_of(
            f"{name} {words} a key", rows, squares[way], most[way], lambda choice: rows.visible
        ):
            fit.weights = lambda: right
            fit.determined = None
            fit.cost += 0.05
            fit.says["shift"] = np.full((H, N), shift)
            fits.append(fit)
    return fits
