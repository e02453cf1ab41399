"""Weights that belong to another tile of keys: a buffer that is read before it is written, or after."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refattn.oracle.imaging.wrong_rows import Model

TILES = (16, 32, 48, 64, 96, 128)
TILES_AWAY = ((-1, "the tile before"), (1, "the tile behind"), (-2, "two tiles before"))


def weights_of_other_tiles(rows) -> Iterator[Model]:
    """Values that are multiplied by the weights of another tile, at the same place in it."""
    view = rows.view
    keys = view.num_keys
    hidden = np.where(view.visible[rows.at], rows.score, -np.inf)
    for size in TILES:
        if size >= keys:
            continue
        edges = np.arange(0, keys, size)
        running = np.maximum.accumulate(np.maximum.reduceat(hidden, edges, axis=-1), axis=-1)
        at_tile = running.repeat(size, axis=-1)[:, :keys]
        for away, which in TILES_AWAY:
            other = np.arange(keys) + away * size
            there = (other >= 0) & (other < keys)
            from_there = np.clip(other, 0, keys - 1)
            theirs = np.where(there, hidden[:, from_there], rows.score)
            # their exponentials are relative to the running maximum when they were computed
            rise = np.where(there, at_tile - at_tile[:, from_there], 0.0)
            words = f"values are multiplied by the weights of {which} (tiles of {size} keys; a stale buffer)"
            with np.errstate(invalid="ignore"):
                yield Model("stale weights", words, theirs + np.where(np.isfinite(rise), rise, 0.0), 1)
