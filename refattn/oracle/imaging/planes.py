"""Drawn planes (bias, mask, keep mask) read at other heads, rows, keys or sequences, or with other axes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refattn.oracle.imaging.factors_in_words import step_away

STEPS = (1, -1, 2, -2, 3, -3, 4, -4, 8, -8, 16, -16, 32, -32, 48, -48, 64, -64, 128, -128)
TILES = (8, 16, 32, 48, 64, 128)
ORDERS = (
    ((1, 0, 2), "(rows, heads, keys)"),
    ((0, 2, 1), "(heads, keys, rows)"),
    ((2, 1, 0), "(keys, rows, heads)"),
    ((1, 2, 0), "(rows, keys, heads)"),
    ((2, 0, 1), "(keys, heads, rows)"),
)


def planes_from_elsewhere(view, name) -> Iterator[tuple[str, np.ndarray]]:
    """Words for where a plane may be read, and the plane as it would be read there, (B, H, T, S)."""
    whole = [np.asarray(getattr(view.outline_of(n), name)) for n in range(len(view.sequences))]
    if any(array.ndim < 3 for array in whole):
        return
    plane = Plane(view, whole)
    differs_by_row, differs_by_key = plane.differs(2), plane.differs(3)
    if view.num_heads > 1 and plane.differs(1):
        yield from _of_other_heads(plane)
    if len(view.sequences) > 1:
        yield from _of_other_sequences(plane)
    if plane.num_rows > 1 and differs_by_row:
        yield from _of_other_rows(plane)
    if differs_by_key:
        yield from _of_other_keys(plane)
    yield from _reordered_axes(plane)
    if plane.num_rows > 1 and differs_by_key and differs_by_row:
        for size in TILES:
            if size < max(plane.num_rows, view.num_keys):
                words = f"that of the pair with row and key exchanged within each tile of {size}"
                yield words, plane.of_arrays(lambda array, s, size=size: _exchanged(array, size))
                words = f"that of the places in the first tile of {size} rows and {size} keys"
                place = lambda index, size=size: index % size
                yield words, plane.read(row=place, key=place)
    yield from _other_strides(plane)


class Plane:
    """The arrays (N, H, T, S) of a plane, one for each sequence that is looked at, and ways to read them."""

    def __init__(self, view, whole):
        self.view, self.whole = view, whole
        self.num_rows = max(s.num_rows for s in view.sequences)
        self.square = [array.shape[-1] == array.shape[-2] for array in whole]

    def differs(self, axis):
        return any(a.shape[axis] > 1 and (a != np.roll(a, 1, axis=axis)).any() for a in self.whole)

    def read(self, head=None, row=None, key=None, sequence=None):
        """The plane at other heads, rows, keys or sequences, given as functions of their own numbers."""
        pieces = []
        for n, s in enumerate(self.view.sequences):
            m = n if sequence is None else sequence(n)
            array = self.whole[m][self.view.sequences[m].entry]
            index = [
                np.clip(own if other is None else other(own), 0, size - 1)
                for own, other, size in zip(
                    (self.view.heads, s.rows, np.arange(s.num_keys)), (head, row, key), array.shape
                )
            ]
            pieces.append(array[np.ix_(*index)])
        return self.view.padded(pieces)

    def of_arrays(self, change):
        """The plane where `change(array, sequence)` is read in place of a sequence's array (H, T, S)."""
        pieces = []
        for array, s in zip(self.whole, self.view.sequences, strict=True):
            pieces.append(change(array[s.entry], s)[np.ix_(s.heads, s.rows)])
        return self.view.padded(pieces)


def _of_other_heads(plane):
    for words, head in other_head_places(plane.view):
        yield f"that of {words}", plane.read(head=head)


def other_head_places(view):
    """Words and functions of query head numbers: which other head may be read in place of each."""
    group, num_heads = view.group_size, view.num_heads
    return (
        ("head 0 for all heads", lambda h: 0 * h),
        ("the next head", lambda h: h + 1),
        ("the head before", lambda h: h - 1),
        ("the next head, of the last head the first", lambda h: (h + 1) % num_heads),
        ("the head before, of the first head the last", lambda h: (h - 1) % num_heads),
        ("the first head of its group", lambda h: h // group * group),
        ("the head whose number is the key/value head's (h // group_size)", lambda h: h // group),
        ("head h % group_size", lambda h: h % group),
        ("head h % num_kv_heads", lambda h: h % view.num_kv_heads),
        ("the last head counted from the end", lambda h: num_heads - 1 - h),
        *((f"head h % {size}", lambda h, size=size: h % size) for size in (2, 4, 8) if size < num_heads),
    )


def _of_other_sequences(plane):
    count = len(plane.view.sequences)
    yield "that of the first sequence for all", plane.read(sequence=lambda n: 0)
    yield "that of the next sequence", plane.read(sequence=lambda n: (n + 1) % count)
    yield "that of the sequence before", plane.read(sequence=lambda n: (n - 1) % count)


def _of_other_rows(plane):
    last = plane.num_rows - 1
    ways = [
        ("the first row for every row", lambda i: 0 * i),
        ("the last row for every row", lambda i: 0 * i + last),
        ("the rows in reverse order", lambda i: last - i),
    ]
    for step in STEPS:
        if abs(step) <= last:
            ways.append((f"the row {step_away(step)}", lambda i, step=step: i + step))
    for size in TILES:
        if size <= last:
            ways += _tiles(size, "row")
    for words, row in ways:
        yield f"that of {words}", plane.read(row=row)
    if all(plane.square):
        transposed = plane.of_arrays(lambda array, s: np.swapaxes(array, -1, -2))
        yield "read transposed (rows and keys exchanged)", transposed
    at_position = lambda array, s: np.take(
        array, np.clip(np.arange(s.num_rows) + s.offset, 0, array.shape[1] - 1), axis=1
    )
    yield "read at the row's position in place of its row number", plane.of_arrays(at_position)


def _of_other_keys(plane):
    num_keys = plane.view.num_keys
    for words, key in other_key_places(num_keys):
        yield f"that of {words}", plane.read(key=key)
        past = key(np.arange(num_keys)) >= num_keys
        if past.any() and "counted from the end" in words:
            yield f"that of {words} (0 past the last key)", np.where(past, 0, plane.read(key=key))


def other_key_places(num_keys):
    """Words and functions of key numbers: which other key may be read in place of each."""
    ways = [("the first key for every key", lambda j: 0 * j)]
    for step in STEPS:
        if abs(step) < num_keys:
            ways.append((f"the key {step_away(step)}", lambda j, step=step: j + step))
    sizes = [size for size in TILES if size < num_keys]
    for size in sizes:
        ways += _tiles(size, "key")
        ways.append((f"the tile of {size} keys behind", lambda j, size=size: j + size))
    for size in sizes:
        first_half = lambda j, size=size: j // size * size + j % (size // 2)
        ways.append((f"the first half of each {size} keys, for both halves", first_half))
        if rest := num_keys % size:
            back = lambda j, size=size, rest=rest: np.where(j >= num_keys - rest, j - size + rest, j)
            words = f"{size - rest} keys before in the last tile of {size} keys (moved back, to be full)"
            ways.append((words, back))
    for size in (2, 4, *sizes):
        ways += _bits(size)
    return ways


def _bits(size):
    """Words and places of numbers whose bits, or bytes, are read in another order."""
    words = f"the key with the same place counted from the end of its {size} keys"
    yield words, lambda n: n // size * size + size - 1 - n % size
    if size & (size - 1) == 0:
        yield f"the key {size} away (bit {size.bit_length() - 1} of its number flipped)", lambda n: n ^ size


def _tiles(size, what):
    """Words and other numbers of rows, or keys, in tiles of `size`."""
    note = " (every tile reads the first)" if what == "key" else ""
    return (
        (f"the {what}'s place in the first tile of {size} {what}s{note}", lambda i: i % size),
        (f"the first {what} of its tile of {size} {what}s", lambda i: i // size * size),
        (f"the tile of {size} {what}s before", lambda i: np.where(i >= size, i - size, i)),
    )


def _reordered_axes(plane):
    """The plane whose memory is read, or was written, with its axes in another order."""
    for order, words in ORDERS:
        yield (
            f"laid out in memory as {words} and read as (heads, rows, keys)",
            plane.of_arrays(lambda array, s, order=order: array.transpose(order).reshape(array.shape)),
        )
        yield (
            f"read as if its memory were {words}",
            plane.of_arrays(lambda array, s, order=order: _read_in_order(array, order)),
        )


def _exchanged(array, size):
    """An array (H, T, S) whose tiles of size x size are transposed."""
    row, key = np.arange(array.shape[1])[:, None], np.arange(array.shape[2])
    at = np.minimum(row // size * size + key % size, array.shape[1] - 1)
    return array[:, at, np.minimum(key // size * size + row % size, array.shape[2] - 1)]


def _read_in_order(array, order):
    shape = [array.shape[axis] for axis in order]
    return array.reshape(shape).transpose(np.argsort(order))


def _other_strides(plane):
    """Arrays with axes of length 1, or of rows of other lengths, read with wrong strides."""
    view = plane.view

    def one_row(array, s):
        """Arrays (H, 1, S) whose row axis has the stride of one head: head + row stands for the head."""
        rows = np.arange(s.num_rows)
        heads = np.arange(view.num_heads)[:, None] + rows
        return array[heads % array.shape[0], np.minimum(rows, array.shape[1] - 1)]

    yield (
        "read at head + row (its row axis has length 1 but is given a stride of one head)",
        plane.of_arrays(one_row),
    )
    count, width = plane.whole[0].shape[-2:]
    if any(array.shape[-2:] != (count, width) for array in plane.whole):
        return
    for size in TILES:
        padded = -(-width // size) * size
        if padded != width:
            flat = np.arange(count)[:, None] * padded + np.arange(width)
            yield (
                f"read with rows of {padded} numbers where they have {width} (padded to {size})",
                plane.of_arrays(lambda array, s, flat=flat: _at_addresses(array, flat)),
            )


def _at_addresses(array, flat):
    """Arrays (H, T, S) whose rows are read at other places (T, S), counted from the start of each head; the
    end of a head is followed by the next one.
    """
    places = np.arange(len(array))[:, None, None] * array[0].size + flat
    return array.reshape(-1)[np.minimum(places, array.size - 1)]
