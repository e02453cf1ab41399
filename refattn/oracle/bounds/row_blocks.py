"""Which blocks of rows a call is cut into, and where the results of each lie in those of the call."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from refattn.exact.visibility import range_mask, row_bounds
from refattn.oracle.bounds.operands import Call, Part
from refattn.oracle.bounds.prepared import PreparedGroup
from refattn.oracle.bounds.results import RESULTS, Result
from refattn.oracle.bounds.tile import Cut, Tile, make_tile

BLOCK_SCORES = 2**19  # scores of one block of rows: an array of them is 2 MiB in float32
MOST_ROWS = 1024  # rows of a block, so that its results stay there, too


@dataclass
class Place:
    """Where the rows of a tile lie in the results of the call."""

    part: Part
    index: tuple
    along: dict  # name in `Result.axes` -> what the tile has of that axis: a slice, or an array of numbers

    def cut(self, result: Result, array):
        """These rows of the whole array of a result, (R, C)."""
        heads, rows = self._heads_and_rows(result, array, result.has_dims)
        picked = heads[:, rows]
        return picked.reshape(math.prod(picked.shape[:2]), picked.shape[2] if result.has_dims else 1)

    def write(self, result: Result, array, values):
        """Put (R, C) where `cut` finds it."""
        heads, rows = self._heads_and_rows(result, array, result.has_dims)
        heads[:, rows] = values.reshape(heads[:, rows].shape)

    def write_rows(self, result: Result, array, values):
        """Put one number a row, (R,), into an array of `Result.row_shape`."""
        heads, rows = self._heads_and_rows(result, array, False)
        heads[:, rows] = values.reshape(heads[:, rows].shape)

    def _heads_and_rows(self, result, array, has_dims):
        at = self.part.channels if has_dims else self.part.rows
        heads, rows = (self.along[axis] for axis in result.axes[:2])
        return array[at][self.index][heads], rows  # basic indexing: a view (G, T, ...)


def count_rows(call: Call, rows=None) -> int:
    """How many rows the tiles of a call have together; `rows` as in `tiles`."""
    all_rows = np.broadcast_to(np.False_, call.lse_shape)
    shapes = (all_rows[place].shape for place in call.places)
    return sum(math.prod(heads) * (q_len if rows is None else len(rows(q_len))) for *heads, q_len in shapes)


def picked_parts(call: Call, result: Result, exact, rows=None):
    """Of an exact result of a call the rows that `rows` picks, part by part; None for all."""
    if rows is None:
        return None
    axis, dims = (-2, (slice(None),)) if result.has_dims else (-1, ())
    places = (place if isinstance(place, tuple) else (place,) for place in call.places)
    parts = (exact[(*place, *dims)] for place in places)
    return [part.take(rows(part.shape[axis]), axis=axis) for part in parts]


def tiles(call: Call, exact, rows=None, spec=None) -> Iterator[Tile]:
    """The tiles of a call, part by part, group by group, of about BLOCK_SCORES scores each; `exact`
    holds the exact results of the whole call in the order of `RESULTS`. `rows(q_len)` picks the rows
    of a part to look at, an increasing array of row numbers; all by default. With the spec whose bounds are
    wanted, tiles are float32 where that suffices.
    """
    for job in tile_jobs(call, exact, rows, spec):
        yield job()


def tile_jobs(call: Call, exact, rows=None, spec=None) -> Iterator[Callable]:
    """One function for each tile, which makes it, in any thread; parameters as in `tiles`."""
    for part in call.parts:
        picked = np.arange(part.q_len) if rows is None else rows(part.q_len)
        for index in np.ndindex(part.batch_shape):
            for kv_head in range(part.num_kv_heads):
                yield from _jobs_of_group(part, index, kv_head, picked, exact, spec)


class _LoadedOnce:
    """A group of heads that its tiles share, loaded by the first of them."""

    def __init__(self, load):
        self._load, self._lock, self._group = load, threading.Lock(), None

    def __call__(self):
        with self._lock:
            if self._group is None:
                self._group = self._load()
            return self._group


def _jobs_of_group(part, index, kv_head, picked, exact, spec):
    options, size = part.options, part.group_size
    length = int(options.kv_lengths[index])
    heads = slice(kv_head * size, (kv_head + 1) * size)
    start, stop = row_bounds(options, options.q_offset[index] + np.arange(part.q_len), length)
    group = _LoadedOnce(lambda: PreparedGroup(part.load(index, kv_head), spec))
    first_row = 0
    while first_row < len(picked):
        rows = picked[first_row : first_row + _rows_at_once(start, stop, picked[first_row:], size)]
        first_row += len(rows)
        seeing = rows[start[rows] < stop[rows]]
        keys = slice(int(start[seeing].min()), int(stop[seeing].max())) if len(seeing) else slice(0, 0)
        whole = slice(int(rows[0]), int(rows[-1]) + 1)
        picked_rows = whole if whole.stop - whole.start == len(rows) else rows
        place = Place(part, index, {"head": heads, "row": picked_rows})
        cut = Cut(options, index, heads, rows, keys, (size, len(rows), keys.stop - keys.start))
        yield _Job(place, group, cut, start[rows], stop[rows], exact)


def _rows_at_once(start, stop, rows, size):
    """How many of the next rows make a block: the more, the fewer keys they see together."""
    most = max(1, MOST_ROWS // size)
    first, last = start[rows[:most]], stop[rows[:most]]
    together = np.maximum.accumulate(last) - np.minimum.accumulate(first)
    fits = size * np.arange(1, len(together) + 1) * np.maximum(together, 1) <= BLOCK_SCORES
    return max(1, len(fits) if fits.all() else int(fits.argmin()))


@dataclass
class _Job:
    """What makes one tile."""

    place: Place
    group: _LoadedOnce
    cut: Cut
    start: np.ndarray  # keys [start, stop) that each row may see
    stop: np.ndarray
    exact: list

    def __call__(self) -> Tile:
        with np.errstate(all="ignore"):
            keys = self.cut.keys
            visible = self.cut.stacked(range_mask(self.start, self.stop, keys.start, keys.stop))
            # the first key that a row does not see; all before it are seen by every row
            seen = int(self.stop.min(initial=keys.stop)) - keys.start
            first = 0 if self.start.max(initial=keys.start) > keys.start else max(seen, 0)
            edge = slice(first, keys.stop - keys.start)
            pairs = zip(RESULTS, self.exact, strict=True)
            output, lse = (self.place.cut(result, array) for result, array in pairs)
            return make_tile(self.place, self.group(), self.cut, visible, edge, output, lse[:, 0])
