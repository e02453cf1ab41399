"""Keys of the lanes of a warp that have a maximum of their own: steps of a reduction are missing."""

from __future__ import annotations

import numpy as np

from refattn.oracle.imaging.features import KEY_TILES

FITS, BETTER = 0.9, 0.01
LEAST_TILE = 16


def _lanes(key):
    """Words for which keys share lanes, the number of the lanes, and how often they repeat."""
    for bit in range(7):
        size = 2 << bit
        halves = "even and odd keys" if bit == 0 else f"the two halves of each {size} keys"
        yield halves, (key >> bit) & 1, size
    yield "the four pairs of each 8 keys", key % 8 // 2, 8
    yield "the keys of each remainder by 4", key % 4, 4


def explain_lane_maxima(rows) -> str:
    """Words for lanes whose keys are weighted relative to their own maximum; "" where that is not so.

    `rows` is a sample of wrong rows (`wrong_rows.WrongRows`).
    """
    view = rows.view
    score = np.where(view.visible, view.score, -np.inf)[rows.at]
    best, words = FITS, ""
    for who, lane, size in _lanes(np.arange(view.num_keys)):
        tiles = [tile for tile in KEY_TILES if max(LEAST_TILE, size) <= tile < view.num_keys]
        for tile in (view.num_keys, *tiles) if len(np.unique(lane)) > 1 else ():
            tops = _maxima_of_lanes(score, lane, tile)
            own = np.take_along_axis(tops, lane[None, None], 0)[0]
            for reference in tops:
                with np.errstate(all="ignore"):
                    share = rows.explains(rows.score + np.where(np.isfinite(own), reference - own, 0.0))
                if share > best + BETTER:
                    best = share
                    of = "of the row" if tile == view.num_keys else f"so far, in tiles of {tile} keys"
                    words = (
                        f"{who} do not share a maximum: each are weighted relative to that of their own "
                        f"keys {of}, and added up as if it were one"
                    )
    return words


def _maxima_of_lanes(score, lane, tile):
    """The running maximum of the keys of each lane, over scores (n, S), at each key: (lanes, n, S)."""
    edges = np.arange(0, score.shape[1], tile)
    tops = []
    for n in np.unique(lane):
        own = np.maximum.reduceat(np.where(lane == n, score, -np.inf), edges, axis=-1)
        tops.append(np.maximum.accumulate(own, axis=-1).repeat(tile, axis=-1)[:, : score.shape[1]])
    return np.array(tops)
