"""Lengths that follow from the tiles kernels are built of, and the rows of a large call on which the mistake
of a tile shows.

Most mistakes of a tile need a second one (what is carried from tile to tile), a third (buffers used in
turns), an edge inside the last one (its tail), or none (a tail of no keys). So every size of tile gets
lengths of one more than two tiles, and of three tiles: exactly, one less, one more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TILES = ((64, 64), (128, 128), (256, 256), (512, 512))  # rows, keys
# three tiles and more of most other sizes, exactly: 48, 80, 96, 160, 192, 320, 384; 56, 112, 224, 448
OTHER_LENGTHS = (1920, 1344)
LARGEST_TILE = 4096
EDGES = 12  # of tiles of one size, on both sides of which rows are looked at
INNER_ROWS = 40


def checked_tile(tile) -> tuple[tuple[int, int], ...]:
    """The tiles that cases follow from: `TILES`, and the one a caller names, rows and keys of one size or a
    pair.
    """
    if tile is None:
        return TILES
    pair = tuple(tile) if isinstance(tile, tuple | list) else (tile, tile)
    whole = all(isinstance(size, int | np.integer) and not isinstance(size, bool) for size in pair)
    if len(pair) != 2 or not whole:
        raise TypeError(f"tile must be an integer or a pair (rows, keys) of them; got tile={tile!r}.")
    if not all(1 <= size <= LARGEST_TILE for size in pair):
        raise ValueError(f"tile must hold sizes from 1 to {LARGEST_TILE}; got tile={tile!r}.")
    return tuple(dict.fromkeys((*TILES, tuple(map(int, pair)))))


def lengths_of(tile: int) -> tuple[int, ...]:
    """
    >>> lengths_of(64)
    (129, 191, 192, 193)
    """
    return 2 * tile + 1, 3 * tile - 1, 3 * tile, 3 * tile + 1


def all_lengths(tiles, axis) -> list[int]:
    """Of all tiles, along rows (axis 0) or keys (axis 1)."""
    return sorted({length for tile in tiles for length in lengths_of(tile[axis])})


def long_lengths(tiles, axis=1) -> tuple[int, ...]:
    """Lengths of several tiles of every size: `lengths_of` the largest, and `OTHER_LENGTHS`."""
    return (*lengths_of(max(tile[axis] for tile in tiles))[::-1], *OTHER_LENGTHS)


@dataclass(frozen=True)
class TellingRows:
    """For `check(rows=)`: from the number of rows the first, the last, those on both sides of the edges of
    tiles (where there are many: of the first, the last, and some between), and random ones.

    >>> TellingRows(((64, 64),))(200)[:3], TellingRows(((64, 64),), seed=7)
    (array([0, 4, 8]), TellingRows(((64, 64),), seed=7))
    """

    tiles: tuple[tuple[int, int], ...]
    seed: int = 0

    def __call__(self, q_len):
        rng = np.random.default_rng([self.seed, q_len])
        rows = [0, q_len - 1, *rng.integers(0, max(q_len, 1), INNER_ROWS)]
        for tile, _ in self.tiles:
            edges = np.arange(tile, q_len, tile)
            if len(edges) > EDGES:
                between = rng.choice(edges[EDGES // 3 : -EDGES // 3], EDGES // 3, replace=False)
                edges = np.concatenate([edges[: EDGES // 3], between, edges[-EDGES // 3 :]])
            rows += [*(edges - 1), *edges]
        return np.unique([row for row in rows if 0 <= row < q_len]).astype(np.int64)

    def __repr__(self):
        return f"TellingRows({self.tiles}, seed={self.seed})"
