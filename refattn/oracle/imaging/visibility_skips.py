"""Tiles of keys that are skipped because their scores lie far below the maximum of a row."""

from __future__ import annotations

import itertools

import numpy as np

ROWS = (1, 8, 16, 32, 64, 128)
KEYS = (8, 16, 32, 64, 128)
AGREE = 0.94
LEAST = 4  # tiles that were skipped
FAR = 1e4


def skipped_tiles(view, missing, judged):
    """Words for the tiles whose keys are missing and what they have in common, share of pairs that it
    explains and the pairs; None where they are no such. Arrays are (B, H, T, S).
    """
    found = []
    hidden_score = np.where(view.visible & np.isfinite(view.score), view.score, -np.inf)
    for keys in KEYS:
        if keys >= view.num_keys:
            break
        edges = np.arange(0, view.num_keys, keys)
        lost = np.add.reduceat(missing, edges, axis=-1) > 0
        seen = np.add.reduceat(view.visible & judged & (view.weights > 0), edges, axis=-1) > 0
        top = np.maximum.reduceat(hidden_score, edges, axis=-1)
        for order, running in _running(top):
            with np.errstate(invalid="ignore"):
                below = np.where(np.isfinite(top), np.minimum(running - top, FAR), -np.inf)
            for rows, how in itertools.product(ROWS, ("any", "all")):
                if (rows == 1 and how == "all") or rows > 2 * view.num_rows:
                    continue
                fit = _threshold(_of_rows(below, rows, how), lost, seen)
                if fit is not None:
                    found.append((fit[0] - 0.001 * (rows > 1), keys, rows, how, order, fit[1]))
    if not found:
        return None
    share, keys, rows, how, order, (least, most) = max(found, key=lambda entry: entry[0])
    whose = f"{how} row{'s' * (how == 'all')} of a tile of {rows} rows" if rows > 1 else "the row"
    least, most = (np.ceil(least * 100) / 100, np.floor(most * 100) / 100)
    by = f"{most:.4g}" if most - least < 0.02 else f"{least:.4g} to {most:.4g}"
    number = "have" if rows > 1 and how == "all" else "has"
    rest = " for a whole tile of rows" if rows > 1 else ""
    words = (
        f"tiles of {keys} keys are skipped{rest} where {whose} {number} scores there that lie more than "
        f"about {by} below {order}"
    )
    return words, share


def _running(top):
    """Maxima of the tiles that came before, in one order or the other, and of the whole row."""
    before = lambda array: np.maximum.accumulate(
        np.concatenate([np.full_like(array[..., :1], -np.inf), array[..., :-1]], -1), axis=-1
    )
    yield "the running maximum", before(top)
    yield "the running maximum (from the last tile to the first)", before(top[..., ::-1])[..., ::-1]
    yield "the largest score of the row", np.broadcast_to(top.max(-1, keepdims=True), top.shape)


def _of_rows(below, rows, how):
    """The most, or the least, of each tile of rows."""
    if rows == 1:
        return below
    count = below.shape[2]
    edges = np.arange(0, count, rows)
    if how == "any":
        reduced = np.maximum.reduceat(below, edges, axis=2)
    else:
        reduced = np.minimum.reduceat(np.where(np.isneginf(below), np.inf, below), edges, axis=2)
    return reduced[:, :, np.arange(count) // rows]


def _threshold(below, lost, seen):
    """How well one threshold separates lost tiles from others: the share, and between which two numbers it
    lies; None where it does not.
    """
    gone, kept = below[seen & lost], below[seen & ~lost]
    if len(gone) < LEAST or not len(kept):
        return None
    least, most = (
        np.quantile(kept, 1 - (1 - AGREE) * min(len(gone) / len(kept), 1)),
        np.quantile(gone, 1 - AGREE),
    )
    if not np.isfinite(most) or not np.isfinite(least) or least >= most or most <= 0:
        return None
    middle = (least + most) / 2
    wrong = (gone <= middle).sum() + (kept > middle).sum()
    share = 1 - wrong / len(gone)
    if share < AGREE:
        return None
    exact = kept[kept <= middle].max(initial=0.0), gone[gone > middle].min()
    return share, exact
