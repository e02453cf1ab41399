"""Visible sets of a kernel that takes rows to stand elsewhere, or windows and sequences for longer."""

from __future__ import annotations

import numpy as np

from refattn.oracle.imaging.visibility_tiles import key_tiles

NAMES = {
    "left": "the left side of the window",
    "right": "the causal limit (or right side of the window)",
    "chunk": "chunks",
}
FEW_ROWS = 3  # a shift of so few is a matter of keys
PACKED_TILES = (16, 32, 64, 128)
UNPACKED = "packed heads and rows are unpacked in the wrong order"


def positions(view, rules):
    """Positions of rows that are counted otherwise, for all rules or for one of them."""
    limits = [side for side in NAMES if getattr(rules, side) is not None]
    for words, position in (*_of_sequences(view), *_of_packed_heads(view)):
        yield f"the position of a row is {words}", 0.01, rules.visible(position)
        if len(limits) > 1:
            for side in limits:
                visible = rules.visible(**{f"{side}_position": position})
                yield f"the position of a row for {NAMES[side]} is {words}", 0.015, visible


def _of_sequences(view):
    """Words and positions (B, 1, T, 1) that come from the offset and length of a sequence."""
    row, offset = view.row, view.of_sequences("offset")
    keys, rows, length = (view.of_sequences(name) for name in ("num_keys", "num_rows", "length"))
    every = lambda place: np.broadcast_to(place, view.position.shape)
    yield "counted from key 0, as if q_offset were 0 (top-left aligned)", row + 0 * offset
    yield (
        "counted from the stored keys minus the rows (kv_len - q_len), not from the length",
        row + keys - rows,
    )
    yield "counted from the length minus the rows (bottom-right aligned)", row + length - rows
    yield "one too large", view.position + 1
    yield "one too small", view.position - 1
    yield "never below 0 (the offset is cut off at 0)", row + np.maximum(offset, 0)
    yield (
        "counted as in the longest sequence (from the largest length minus most rows)",
        row + length.max() - rows.max(),
    )
    yield "counted as in the shortest sequence", row + length.min() - rows.min()
    yield "that of the last row, for every row", every(offset + rows - 1)
    yield "that of the first row, for every row", every(offset)
    yield "that of the last key, for every row", every(length - 1)
    yield "row + 2 * offset: the offset is added twice", row + 2 * offset
    yield "row - offset: the offset is subtracted, not added", row - offset
    shifts = view.candidate_shifts
    if shifts is not None and shifts.any():
        each = [(n, step) for n, step in enumerate(shifts.ravel()) if step]
        alike = len(each) == shifts.size and len({step for _, step in each}) == 1
        words = ", ".join(f"{step:+d} in sequence {n}" for n, step in each)
        words = f"{each[0][1]:+d}" if alike else words
        if view.num_rows > FEW_ROWS or len(view.sequences) > 1:
            yield f"off by {words}", view.position + shifts
    count = len(view.sequences)
    for n in range(count if count > 1 else 0):
        yield f"that of sequence {n} (its offset)", row + offset[n, 0, 0, 0]


def _of_packed_heads(view):
    """Words and positions (B, H, T, 1) of rows that are packed with heads and unpacked wrongly."""
    row, offset, rows = view.row, view.of_sequences("offset"), view.of_sequences("num_rows")
    head, num, group = view.heads.reshape(1, -1, 1, 1), view.num_heads, view.group_size
    ways = []
    if group > 1:
        packed, rows_first = row * group + head % group, row + head % group * rows
        undivided = "of a tile that packs the heads of a group, not divided by the group size"
        shifted = "packed rows are divided by a power of two, not by the group size"
        ways = [
            (f"(row * group_size + head) {undivided}", packed),
            (
                "row // group_size: rows are divided by the group size where they should not be",
                row // group,
            ),
            *((f"(row * group_size + head) >> {bits}: {shifted}", packed >> bits) for bits in range(1, 5)),
            (f"(row + head * q_len) // group_size: {UNPACKED}", rows_first // group),
            (f"(row * group_size + head) % q_len: {UNPACKED}", packed % rows),
        ]
        for size in PACKED_TILES if group & (group - 1) else ():
            first = packed // size * size
            words = (
                f"first // group_size + r // group_size in tiles of {size} packed rows (first: the tile's "
                "first; r: the place in it), not (first + r) // group_size: where the first one is no "
                "multiple of the group size, some heads stand one position too early"
            )
            ways.append((words, first // group + (packed - first) // group))
    ways += [
        (f"(row * num_heads + head) % q_len: {UNPACKED}", (row * num + head) % np.maximum(rows, 1)),
        (f"(head * q_len + row) // num_heads: {UNPACKED}", (head * rows + row) // num),
    ]
    for words, place in ways:
        yield words, offset + place


def widths(view, rules):
    """Sides of the window, or the causal limit, of another width, left out or added."""
    if rules.left is not None:
        yield from _left_sides(rules)
    if rules.right is not None:
        yield from _right_sides(rules)
    if rules.right is None and rules.left is not None:
        yield "the window is causal, which was not asked for", 0.0, rules.visible(right=0)
    if rules.left is not None and rules.right is not None:
        yield "neither side of the window is applied", 0.0, rules.visible(left=None, right=None)
    if rules.left is None and rules.right is None:
        words = "a causal mask is applied that was not asked for"
        yield words, 0.0, rules.visible(right=0)
        yield f"{words}, top-left aligned", 0.01, rules.visible(view.row, right=0)
    if rules.left is None:
        for width in view.candidate_widths:
            words = f"a window of {width + 1} keys (left {width}) is applied that was not asked for"
            yield words, 0.02, rules.visible(left=width)


def _left_sides(rules):
    name, left = NAMES["left"], rules.left
    for step, words in ((1, "one"), (-1, "one"), (2, "two"), (-2, "two")):
        if left + step >= 0:
            words = f"{name} is {left + step}, it should be {left} (off by {words})"
            yield words, 0.0, rules.visible(left=left + step)
    yield f"{name} is not applied", 0.0, rules.visible(left=None)
    yield f"the right side of the window is that of the left, {left}", 0.0, rules.visible(right=left)
    if rules.right is None:
        yield (
            "the right side of the window is -1: rows do not see their own position and what is behind it",
            0.0,
            rules.visible(right=-1),
        )
    else:
        exchanged = rules.visible(left=rules.right, right=left)
        yield "the two sides of the window are exchanged", 0.0, exchanged


def _right_sides(rules):
    right = rules.right
    name = "the causal limit" if right == 0 else "the right side of the window"
    yield f"{name} is not applied", 0.0, rules.visible(right=None)
    yield (
        f"{name} excludes the diagonal (off by one: key < position, not <=)",
        0.0,
        rules.visible(right=right - 1),
    )
    for step, words in ((1, "1 key too far"), (2, "2 keys too far"), (-2, "2 keys too little")):
        yield f"{name} reaches {words}", 0.0, rules.visible(right=right + step)
    if right > 0:
        yield "the right side of the window is 0 (causal)", 0.0, rules.visible(right=0)


def lengths(view, rules):
    """Lengths of sequences that are other ones; positions of rows may move with them or not."""
    length, keys = rules.length, view.of_sequences("num_keys")
    moved = lambda other: rules.visible(view.position + other - length, length=other)
    for words, other in (
        ("is not looked at: keys past it count", keys),
        ("is one too large", np.minimum(length + 1, keys)),
        ("is one too small: the last key is missing", length - 1),
        ("is that of the first sequence for all", np.broadcast_to(length[:1], length.shape)),
        ("is that of the last sequence for all", np.broadcast_to(length[-1:], length.shape)),
        ("is that of the longest sequence for all", np.broadcast_to(length.max(), length.shape)),
        ("is that of the shortest sequence for all", np.broadcast_to(length.min(), length.shape)),
        ("is that of the next sequence", np.roll(length, -1, axis=0)),
        ("is that of the sequence before", np.roll(length, 1, axis=0)),
    ):
        if (other != length).any():
            words = f"the length of the sequence {words}"
            yield words, 0.0, rules.visible(length=other)
            yield f"{words} (and the position of its rows moves with it)", 0.005, moved(other)
    for size in key_tiles(view):
        if size <= length.max():
            yield from _whole_tiles(rules, keys, size)
    for index, sequence in _sequence_numbers(view):
        other = length[np.minimum(sequence, len(view.sequences) - 1), 0, 0, 0]
        if (other != length).any():
            words = f"the length is that of sequence {index} (cut off at the last)"
            yield words, 0.01, rules.visible(length=other)
            yield f"{words}, and so is the position of its rows", 0.015, moved(other)


def _whole_tiles(rules, keys, size):
    length = rules.length
    what = f"the last, partial tile of {size} keys is"
    pages = rules.view.page_size if rules.view.pages is not None else 0
    if pages and size > pages and size % pages == 0:
        what = f"the pages of {pages} keys behind the last multiple of {size // pages} pages are"
    yield (
        f"the length is rounded down to a multiple of {size}: {what} left out",
        0.005,
        rules.visible(length=length // size * size),
    )
    yield (
        f"the length is rounded up to a multiple of {size}: keys past it count",
        0.005,
        rules.visible(length=np.minimum(-(-length // size) * size, keys)),
    )
    yield (
        f"the last whole tile is left out where the length is a multiple of {size}",
        0.01,
        rules.visible(length=np.where(length % size == 0, np.maximum(length - size, 0), length)),
    )


def _sequence_numbers(view):
    """Formulas and numbers (B, H, 1, 1) of sequences that a flat index of sequence and head may give."""
    count = len(view.sequences)
    if count == 1:
        return
    b, head = np.arange(count).reshape(-1, 1, 1, 1), view.heads.reshape(1, -1, 1, 1)
    flat = b * view.num_heads + head
    yield "(b * num_heads + h) // num_kv_heads", flat // view.num_kv_heads
    yield "b * num_heads + h", flat
    yield "(b * num_heads + h) % batch", flat % count
    yield "h", head + 0 * b
    yield "h % batch", head % count + 0 * b
    yield "(b * num_kv_heads + h // group_size)", b * view.num_kv_heads + head // view.group_size
