"""Explanations of a wrong row by other visible keys: another first or last one, one key that counts more
often or not at all, or any set. Tested on the output of the row alone.
"""

from __future__ import annotations

import numpy as np

from refattn.oracle.imaging.explanations import (
    FITS_MOST,
    NEARLY,
    best_of,
    counted,
    counts_of,
    cumsum,
    fitted,
)

TRIED_SETS = 8  # rows without one set of keys that explains them, after which no more are tried
RANGES = ("stop", "start", "shift", "stop of all")


def key_ranges(rows, what, masked=True):
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
    return best_of(
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
            above = cumsum(top[..., None] * rows.value[h])
            below = cumsum(low)
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


def _range_weights(rows, allowed, first, last):
    def inside(choice):
        """Which keys are in the chosen range, (H, N, S); choice (H, N)."""
        at = np.arange(len(rows.rows))
        key = np.arange(rows.shape[-1])
        return allowed & (key >= first[at, choice][..., None]) & (key < last[at, choice][..., None])

    return inside


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
            counted(
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
            along = cumsum(hidden[..., None] * away) / rows.deviation[h, part, None]
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
    fit = counted("any set of keys", rows, counts, 0, 1, True, cost=0.05)
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
