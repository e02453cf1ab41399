"""Tiles of values that are multiplied with the weights of other tiles, solved for tile by tile."""

from __future__ import annotations

import numpy as np

from refattn.oracle.imaging.maps import ranges

SIZES = (128, 96, 80, 64, 48, 40, 32, 24, 16, 8)
NEAR = 0.1  # of 0 or 1: how often a tile of weights multiplies a tile of values
LEAST = 1e-4  # of a row's weight, so that a tile of weights counts
FITS = 0.97  # of the rows
MOST_LISTED = 4
ROWS = 64


def moved_tiles(pool, rows):
    """Words for tiles of values that are read for other tiles of keys, and the rows (B, H, T) of which that
    is said; ("", None) where no size of tiles gives such a rule.
    """
    view = pool.view
    for size in SIZES:
        if size >= view.num_keys:
            continue
        found, explained = {}, np.zeros_like(rows)
        for b, h in zip(*np.nonzero(rows.any(-1)), strict=True):
            of = _of_head(pool, rows, b, h, size)
            if of is None:
                break
            table, held = of
            found[int(b), int(h)] = table
            explained[b, h] = held
        else:
            if explained.sum() >= FITS * rows.sum() and any(found.values()):
                return _words(view, found, size), explained
    return "", None


def _of_head(pool, rows, b, h, size):
    """{tile of keys: tiles whose values it multiplies, () for none}, of tiles that do not read their own,
    and the rows (T,) that this explains; None where the numbers are no such.
    """
    view = pool.view
    at = np.flatnonzero(rows[b, h])
    at = at[np.unique(np.linspace(0, len(at) - 1, ROWS).astype(int))]
    right, got = (_tiles(array[b, h][at], size) for array in (view.weights, pool.measured.weights))
    used = np.flatnonzero(right.max((0, 2)) > LEAST)
    scale = 1 / np.maximum(right.max((1, 2)), 1e-30)[:, None]
    table = np.zeros((len(used), got.shape[1]))
    for u in range(got.shape[1]):
        there = min(view.num_keys - u * size, size)  # the last tile may hold less
        a = (right[:, used, :there] * scale[..., None]).transpose(0, 2, 1).reshape(-1, len(used))
        target = (got[:, u, :there] * scale).reshape(-1)
        table[:, u] = np.linalg.lstsq(a, target, rcond=1e-9)[0]
    whole = np.rint(table)
    if (np.abs(table - whole) > NEAR).any() or whole.min() < 0 or whole.max() > 1:
        return None
    right, got = (_tiles(array[b, h], size) for array in (view.weights, pool.measured.weights))
    predicted = np.einsum("rtp,tu->rup", right[:, used], whole)
    predicted.reshape(len(predicted), -1)[:, view.num_keys :] = 0.0
    off = 0.5 * np.abs(predicted - got).sum((1, 2))
    held = rows[b, h] & (off <= 2 * pool.measured.tolerance[b, h, :, 0] + 1e-4)
    moved = {}
    for n, t in enumerate(used.tolist()):
        reads = tuple(np.flatnonzero(whole[n]).tolist())
        if reads != (t,):
            moved[t] = reads
    return moved, held


def _tiles(weights, size):
    rows, keys = weights.shape
    padded = np.zeros((rows, -(-keys // size) * size))
    padded[:, :keys] = np.nan_to_num(weights)
    return padded.reshape(rows, -1, size)


def _words(view, found, size):
    tables = {}
    for (b, h), table in found.items():
        tables.setdefault(tuple(sorted(table.items())), []).append((b, h))
    pairs = [(t, reads) for table in tables for t, reads in table]
    steps = {reads[0] - t if len(reads) == 1 else None for t, reads in pairs}
    keys = lambda tiles: ranges([j for t in tiles for j in _keys(view, t, size)])
    if len(steps) == 1 and None not in steps and len(tables) == 1:
        step = steps.pop()
        way = "further on" if step > 0 else "further back"
        return (
            f"weights of keys {keys([t for t, _ in pairs])} are multiplied with the values "
            f"{abs(step) * size} keys {way} ({abs(step)} tile{'s' * (abs(step) > 1)} of {size})"
        )
    told = []
    for table, _ in list(tables.items())[:2]:
        for t, reads in table[:MOST_LISTED]:
            whose = f"those of keys {keys(reads)}" if reads else "none (they are 0)"
            told.append(f"keys {keys([t])} take {whose}")
    more = "; ..." if len(pairs) > len(told) else ""
    return f"values of other tiles of {size} keys are read: {'; '.join(told)}{more}"


def _keys(view, tile, size):
    return range(tile * size, min((tile + 1) * size, view.num_keys))
