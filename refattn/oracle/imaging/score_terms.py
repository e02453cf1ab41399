"""Scores of a kernel that reads its bias at another place in memory, each row, or tile of keys, at its own.

Where a row of the bias is read is looked for along the whole memory of its head at once, by correlation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from refattn.oracle.imaging.maps import most_common, ranges
from refattn.oracle.imaging.wrong_rows import Model

LEAST = 6  # wrong pairs of a row, or of a tile of keys, that tell where its bias is read
NEAREST = 4  # places that are compared exactly
PIECE = 16  # keys that are looked at together where a row reads at more than one place
EXPLAINED = 0.9  # of the wrong pairs of a row
KEY_TILES = (256, 128, 96, 80, 64, 48, 32, 16)  # the largest that fits is the one that is meant
ROW_TILES = (1, 16, 32, 48, 64, 96, 128)
FITS = 0.85  # of the places that a rule for them must give
VECTORS = (2, 4, 8, 16, 32)  # numbers that are loaded at once
SHOWN = 6  # runs of rows that are told


def bias_of_one_place(rows) -> Iterator[Model]:
    """A bias of which the wrong pairs all read one row, or one column."""
    view, bias = rows.view, rows.bias
    if bias is None:
        return
    planes = [np.asarray(view.outline_of(n).bias)[s.entry] for n, s in enumerate(view.sequences)]
    rest = rows.score - bias
    last = max(plane.shape[1] for plane in planes)

    def columns():
        for j in range(view.num_keys):
            changed = np.where(rows.wrong, rest + bias[:, j : j + 1], rows.score)
            yield Model(
                "bias", f"the bias of the wrong keys is that of column {j} for all of them", changed, 1
            )

    def lines():
        for i in range(last):
            there = zip(rows.b, rows.head, strict=True)
            line = [planes[b][h, min(i, planes[b].shape[1] - 1)] for b, h in there]
            if all(len(of_row) == rest.shape[1] for of_row in line):
                words = f"the bias of the wrong rows is that of row {i} for all of them"
                yield Model("bias", words, np.where(rows.wrong, rest + np.stack(line), rows.score), 1)

    for models in (columns(), lines()):
        for model in rows.nearest_models(models, 1):
            yield model._replace(whole=False)


def bias_read_elsewhere(rows) -> Iterator[Model]:
    """A bias whose rows, or tiles of them, are read at other places in the memory of their head."""
    view, bias = rows.view, rows.bias
    if bias is None:
        return
    memory = [_Memory.of(view, n) for n in range(len(view.sequences))]
    scores, moves = rows.score.copy(), []
    for n, (b, h, i) in enumerate(zip(rows.b, rows.head, rows.row, strict=True)):
        line = _Line(rows, n, memory[b], bias[n], h, i)
        for keys, step in line.places():
            scores[n, keys] = line.read(keys, step)
            moves.append((n, keys, step))
    if not moves or all(step == 0 for _, _, step in moves):
        return
    yield Model("bias", _moves_in_words(rows, moves, memory), scores, 1, whole=False)


class _Memory(NamedTuple):
    """A bias (H, rows, keys) in memory, and the row and column at which a sequence's own begins."""

    array: np.ndarray
    row: int = 0
    column: int = 0

    @classmethod
    def of(cls, view, n):
        """That of sequence n. Packed sequences share one array."""
        s, given = view.sequences[n], np.asarray(view.options.get("bias"))
        starts = [view.options.get(name) for name in ("cu_q", "cu_kv")]
        own = np.asarray(view.outline_of(n).bias)[s.entry]
        if given.ndim < 2 or any(start is None for start in starts):
            return cls(own)
        starts = [np.asarray(start) for start in starts]
        if given.shape[-2:] != tuple(int(start[-1]) for start in starts):
            return cls(own)
        whole = np.broadcast_to(given.astype(np.float64), (len(own), *given.shape[-2:]))
        return cls(whole, *(int(start[s.part]) for start in starts))


class _Line:
    """One row of scores, and the memory from which its bias may be read."""

    def __init__(self, rows, n, memory, bias, head, row):
        _, count, self.width = memory.array.shape
        array = memory.array[head : head + 2]  # a row may run into the next head
        self.flat = np.nan_to_num(array, posinf=0, neginf=0).reshape(-1)
        self.start = min(row + memory.row, count - 1) * self.width + memory.column
        self.ends = False  # whether what lies beyond the row's last column is that column
        self.rest, self.measured = rows.score[n] - bias, rows.measured[n]
        self.tolerance = rows.tolerance[n]
        self.use = rows.wrong[n] & np.isfinite(self.measured) & np.isfinite(self.rest)
        self.size = len(self.use)

    def places(self):
        """Keys that are read together, and how many numbers further on than they should be."""
        everywhere = np.flatnonzero(self.use)
        if len(everywhere) < LEAST:
            return
        for self.ends in (False, True):
            step, near = self._nearest(everywhere)
            if near >= EXPLAINED * len(everywhere):
                yield np.arange(self.size) if self._fits(step) else everywhere, step
                return
        self.ends = False
        for first in range(0, self.size, PIECE):
            keys = everywhere[(everywhere >= first) & (everywhere < first + PIECE)]
            if len(keys) >= LEAST:
                step, near = self._nearest(keys)
                if near >= EXPLAINED * len(keys):
                    yield keys, step

    def read(self, keys, step):
        return self.rest[keys] + self.flat[self._places(keys, step)]

    def _places(self, keys, step):
        """Places in memory; a step within the row may be one that ends at the row's own last column."""
        places = np.clip(self.start + keys + step, 0, len(self.flat) - 1)
        return np.clip(places, self.start, self.start + self.width - 1) if self.ends else places

    def _fits(self, step):
        """Whether the pairs that are right would be so with this step too."""
        return step == 0 or not (~self.use & np.isfinite(self.measured) & np.isfinite(self.rest)).any()

    def _nearest(self, keys):
        """The step at which the bias explains most of the keys, and how many."""
        off = (self.measured - self.rest)[keys]
        best = 0, -1
        for step in self._candidates(keys, off - off.mean()):
            left = off - self.flat[self._places(keys, step)]
            near = int((np.abs(left - np.median(left)) <= self.tolerance[keys]).sum())
            if near > best[1]:
                best = step, near
        return best

    def _candidates(self, keys, off):
        """Steps at which the squared difference from the bias is least."""
        pattern, used = np.zeros(self.size), np.zeros(self.size)
        pattern[keys], used[keys] = off, 1
        line = np.concatenate([np.zeros(self.size), self.flat, np.zeros(self.size)])
        length = len(line) + self.size
        spectrum = lambda x: np.fft.rfft(x, length)
        along = lambda a, b: np.fft.irfft(spectrum(a) * np.conj(spectrum(b)), length)[
            : len(line) - self.size
        ]
        total, squares = along(line, used), along(line**2, used)
        misfit = squares - total**2 / len(keys) - 2 * along(line, pattern)
        nearest = np.argpartition(misfit, NEAREST)[:NEAREST]
        return (int(place) - self.size - self.start for place in nearest)


def _moves_in_words(rows, moves, memory):
    """What the places have in common at which the bias is read."""
    n = np.array([move[0] for move in moves])
    steps = np.array([move[2] for move in moves])
    first = np.array([move[1][0] for move in moves])
    keys = np.array([len(move[1]) for move in moves])
    row, width = rows.row[n], memory[0].array.shape[-1]
    for words, rule in (*_rules(rows, n, row, first, width, steps), *_starts(rows, n, memory)):
        if np.average(rule == steps, weights=keys) >= FITS:
            return f"the bias is read {words}"
    return f"rows of the bias are read from other places in memory: {_steps_by_row(row, steps)}"


def _rules(rows, n, row, first, width, steps):
    """Words, and the steps (moves,) that they give."""
    common = most_common(steps)
    where = _away(common, width)
    yield f"{where} of where it should be, in every row", np.full(len(steps), common)
    for size in KEY_TILES:
        for tile in ROW_TILES:
            start = _first_tile(rows, n, size, tile)
            by = f"row tiles of {tile}, " if tile > 1 else ""
            words = (
                f"from column 0 on at the first key tile that is visited ({by}key tiles of {size}), not at "
                f"the tile's own column: columns are {ranges_of(start)} too small"
            )
            yield words, -start
        start = first // size * size
        yield f"from column 0 on in each tile of {size} keys (columns j % {size})", -start
    for stride in _strides(steps, row):
        words = (
            f"with a row stride of {width + stride} numbers, not {width}: "
            f"row i is read {abs(stride)} * i numbers {'further on' if stride > 0 else 'before'}"
        )
        yield words, stride * row
    head = rows.head[n]
    for stride in _strides(steps, head):
        words = (
            f"with another head stride: head h is read {abs(stride)} * h numbers "
            f"{'further on' if stride > 0 else 'before'} ({_away(stride, width)} for each head)"
        )
        yield words, stride * head
    offset = rows.position[n] - rows.row[n]
    for sign, words in ((1, "further on"), (-1, "before")):
        yield f"at the column that is {words} by the offset of the rows (keys less rows)", sign * offset


def _starts(rows, n, memory):
    """Rules of where rows begin: at other starts of a packed sequence, or at whole vectors."""
    count, width = memory[0].array.shape[-2:]
    row = np.array([memory[b].row for b in rows.b])[n]
    column = np.array([memory[b].column for b in rows.b])[n]
    own = "at the sequence's own {}, not at those of the packed array ({})"
    yield own.format("rows and columns", "from its top left corner on"), -(row * width + column)
    yield own.format("columns", "from column 0 on"), -column
    yield own.format("rows", "from row 0 on"), -row * width
    start = ((rows.head[n] * count + rows.row[n] + row) * width + column).astype(int)
    for size in VECTORS:
        words = (
            f"from the multiple of {size} numbers {{}} the start of each row on (rows have {width} numbers)"
        )
        yield words.format("before"), -(start % size)
        yield words.format("after"), -start % size


def _strides(steps, number):
    """Strides that the steps of rows, or heads, of these numbers suggest."""
    some = number > 0
    return np.unique(np.round(steps[some] / number[some]).astype(int))


def _first_tile(rows, n, size, tile):
    """First key of the first tile of `size` that the row's tile sees."""
    visible = rows.view.visible
    sees = visible.any(-1)
    first = np.where(sees, visible.argmax(-1), visible.shape[-1])
    b, h, t = (axis[n] for axis in rows.at)
    top = t // tile * tile
    return (
        np.min([first[b, h, np.minimum(top + k, first.shape[2] - 1)] for k in range(tile)], 0) // size * size
    )


def ranges_of(numbers):
    """The different numbers of an array, in words."""
    values = np.unique(numbers)
    if len(values) <= 4:
        return ", ".join(map(str, values))
    return f"{values[0]} to {values[-1]}"


def _away(step, width):
    """A step in memory as rows and columns."""
    down = int(np.round(step / width))
    aside = step - down * width
    words = []
    if down:
        words.append(f"{abs(down)} rows {'further on' if down > 0 else 'before'}")
    if aside or not down:
        words.append(f"{abs(aside)} columns {'to the right' if aside > 0 else 'to the left'}")
    return " and ".join(words)


def _steps_by_row(row, steps):
    """Which rows are read how far away: "0 in rows 0 to 63, -32 in rows 64 to 127"."""
    values, counts = np.unique(steps, return_counts=True)
    common = values[np.argsort(-counts)][:SHOWN]
    runs = [f"{step:+d} in rows {ranges(np.unique(row[steps == step]).tolist())}" for step in sorted(common)]
    more = f" and {len(values) - SHOWN} other steps" if len(values) > SHOWN else ""
    return f"numbers further on by {'; '.join(runs)}{more}"
