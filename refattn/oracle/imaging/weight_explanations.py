"""Explanations of a wrong row by other weights of the keys that it sees: one factor, one for each part of
the keys, or any weights. Tested on the output of the row alone.
"""

from __future__ import annotations

import numpy as np

from refattn.oracle.imaging.explanations import TILES, fitted

SPARE = 8  # numbers of a row that are left to test free weights
PRIOR = 1e-4  # precision of "the factor is 1", in units of the rounding: what is not shown stays 1


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
