"""Row sums that an online softmax with one wrong step gives: not rescaled, not reset."""

from __future__ import annotations

from functools import partial

import numpy as np

from refattn.oracle.imaging.features import KEY_TILES
from refattn.oracle.imaging.row_sinks import sinks_of
from refattn.oracle.imaging.tile_states import TileStates
from refattn.oracle.imaging.work_items import common_sources

LEAST_TILE = 16  # keys
LEAST_ROWS = 4  # wrong ones
SAMPLED = 256  # wrong rows whose extra is looked for in other rows
MOST_PAIRS = 2**20
HALF = 0.5
ROW_TILES = (16, 32, 64, 128)
EXPLAINS = 0.9


def wrong_steps(rows):
    """Words and logarithms (n,) of row sums over the right ones, where a step of some tiles is wrong."""
    found = {}
    for size in KEY_TILES:
        if not LEAST_TILE <= size < rows.view.num_keys:
            continue
        for (words, order), delta in _slips(rows, size):
            if (share := rows.share(delta)) >= EXPLAINS:
                found.setdefault((words, order), []).append((round(share, 2), size, delta))
    # what holds of tiles of more sizes says more exactly which keys they are
    for slip, tiles in sorted(found.items(), key=lambda entry: -len(entry[1])):
        best, size, delta = max(tiles, key=lambda tile: tile[0])
        sizes = [str(size) for share, size, _ in tiles if share == best]
        words = f"{rows.name} {slip[0]} (tiles of {' or '.join(sizes[-3:])} keys{slip[1]})"
        rows.recipes[words] = lambda others, size=size, slip=slip: dict(_slips(others, size)).get(slip)
        yield words, delta


def _slips(rows, size):
    """Words for a wrong step and for the order of tiles, and logarithms (n,) of sums over the right ones."""
    view = rows.view
    score = np.where(view.visible, view.score, -np.inf)[rows.at]
    sinks = sinks_of(view)
    starts = [(None, False), (None, True)]
    if sinks is not None:
        starts.insert(0, (np.broadcast_to(sinks, view.shape[:3])[rows.at], False))
    partly = _seen_in_part(view, size)
    partly = {words: masked[rows.at] for words, masked in partly.items()}
    for start, backwards in starts:
        states = TileStates(score, size, start, backwards, partly)
        right = states.total()
        order = " from the last to the first" if backwards else ""
        order += "; the sink starts the sum" if states.starts else ""
        for words, total in states.slips():
            yield (words, order), _beside_sink(rows, total, right)
        for words, reference in states.references():
            moved = np.where(np.isfinite(reference), reference - rows.top, 0.0)
            yield (f"is relative to {words}, the sum of exponentials to the row's", order), moved
            yield (f"is relative to the row's maximum, the sum of exponentials to {words}", order), -moved


def _seen_in_part(view, size):
    """Tiles of keys of which a row, or some row of a tile, sees a part only: words and (B, H, T, J)."""
    hidden = view.exists & ~view.visible
    own = np.logical_or.reduceat(hidden, np.arange(0, view.num_keys, size), axis=-1)
    found = {"tiles of which the row sees a part only": own}
    if view.samples_all_rows:
        for rows in ROW_TILES:
            if rows < 2 * view.shape[2]:
                starts = np.arange(0, view.shape[2], rows)
                of_tiles = np.logical_or.reduceat(own, starts, axis=2)
                words = f"tiles of which some row of its tile of {rows} rows sees a part only"
                found[words] = of_tiles.repeat(rows, axis=2)[:, :, : view.shape[2]]
    return found


def _beside_sink(rows, total, right):
    """Logarithm of a sum over the right one, where only the part of the keys is another one."""
    return np.log1p(np.exp(right - rows.inner) * np.expm1(total - right))


def carried(rows):
    """Sums that start with what is left of other rows, which were computed before."""
    view, at = rows.view, rows.at
    grows = rows.delta > 5 * rows.tolerance
    if grows.sum() < max(LEAST_ROWS, HALF * len(grows)):
        return
    sums = view.lse - view.top
    left = sums.copy()
    left[at] += rows.delta
    extra = np.log(np.expm1(rows.delta)) + rows.inner  # relative to the row's maximum
    tolerance = rows.tolerance * (1 + 1 / np.expm1(rows.delta))
    some = np.flatnonzero(grows)
    some = some[:: len(some) // SAMPLED + 1]
    source = np.argwhere(view.row_exists & np.isfinite(view.lse))
    if len(some) * len(source) > MOST_PAIRS:
        return
    theirs = tuple(source.T)
    for how, own, other in _ways_of_carrying(rows):
        for array in (left, sums):
            got = extra[some, None] - own[some, None] - (array + other)[theirs]
            near = np.abs(got) <= tolerance[some, None]
            for found in common_sources(view, at, near, some, source):
                words = f"{rows.name} is not reset: it starts with that of {found.words}{how}"
                predict = partial(_with_carried, how=how, found=found, array=array)
                rows.recipes[words] = predict
                predicted = predict(rows)
                # what is left of rows that do not exist is not known
                if np.isfinite(predicted).mean() > HALF:
                    yield words, np.where(np.isfinite(predicted), predicted, rows.delta)


def _with_carried(rows, how, found, array):
    own, other = next((own, other) for words, own, other in _ways_of_carrying(rows) if words == how)
    return np.log1p(np.exp(own + found.at(rows.at).of(array + other) - rows.inner))


def _ways_of_carrying(rows):
    """Words, and logarithms of what a carried sum is multiplied by: of the row that gets it (n,), and of the
    one that left it (B, H, T).
    """
    top, none = rows.top, np.zeros(rows.view.shape[:3])
    yield "", np.zeros(len(top)), none
    yield " and with its maximum", -top, np.where(np.isfinite(rows.view.top), rows.view.top, 0.0)
    score = np.where(rows.view.visible, rows.view.score, -np.inf)[rows.at]
    for size in KEY_TILES:
        if LEAST_TILE <= size < rows.view.num_keys:
            first = score[:, :size].max(-1)
            rise = np.where(np.isfinite(first), first - top, 0.0)
            yield f", and is rescaled from then on (tiles of {size} keys)", rise, none
