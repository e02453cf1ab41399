"""Heads, sequences and rows that a kernel may take by mistake: one line for each way to a wrong number."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refattn.oracle.imaging.factors_in_words import step_away

SHIFTS = (1, -1, 2, -2, 4, -4, 8, -8, 16, -16, 32, -32, 64, -64)
ROW_TILES = (2, 4, 8, 16, 32, 64)
PADDINGS = (16, 32, 64, 128)


def other_numbers(own, count, what, index, letter="h") -> Iterator[tuple[str, np.ndarray]]:
    """Words and numbers below `count` that a kernel may take in place of `own`.

    `what` is what is counted, a head or a sequence. Kernels compute its number from `index`, which the words
    call `letter`.
    """
    of = f" (of query head {letter})" if letter == "h" else ""
    ways = [
        (f"{what} 0", np.zeros_like(own)),
        (f"the next {what}", np.minimum(own + 1, count - 1)),
        (f"the next {what} (the last one's next is the first)", (own + 1) % count),
        (f"the {what} before", np.maximum(own - 1, 0)),
        (f"the {what} before (the first one's is the last)", (own - 1) % count),
        (f"the last {what}", np.full_like(own, count - 1)),
        (f"the {what} counted from the end", count - 1 - own),
        (f"{what} {letter} % {count}{of}", index % count),
        (f"{what} min({letter}, {count - 1}){of}", np.minimum(index, count - 1)),
        (
            f"the {what} whose lowest bit is changed (0 and 1, 2 and 3 exchanged)",
            np.minimum(own ^ 1, count - 1),
        ),
        (f"{what} {letter} // 2{of}", np.minimum(index // 2, count - 1)),
    ]
    ways += [(f"{what} {n} for all", np.full_like(own, n)) for n in range(1, min(count, 9))]
    ways += [(f"{what} {letter} // {n}{of}", np.minimum(index // n, count - 1)) for n in (3, 4, 5, 6, 7, 8)]
    ways += [(f"{what} {letter} >> {n}", np.minimum(index >> n, count - 1)) for n in (1, 2, 3, 4)]
    for words, other in ways:
        if (other != own).any():
            yield words, other


def other_query_heads(view, head):
    """Words and numbers of other query heads in place of `head`."""
    yield from other_numbers(head, view.num_heads, "query head", head)


def other_key_heads(view, head):
    """Words and numbers of other key/value heads in place of those that query heads `head` read."""
    yield from other_numbers(head // view.group_size, view.num_kv_heads, "key/value head", head)


def other_sequences(view, sequence):
    """Words and numbers of other sequences in place of `sequence`."""
    yield from other_numbers(sequence, len(view.sequences), "sequence", sequence, letter="b")


def other_rows(view, at) -> Iterator[tuple[str, OtherRows]]:
    """Words and other rows that a kernel may take in place of those at `at`, places in arrays (B, H, T)."""
    b, h, t = at
    all_heads = len(view.heads) == view.num_heads
    if all_heads and view.num_heads > 1:
        yield from _rows_of_other_heads(view, at)
    yield from _rows_of_same_head(view, at)
    for words, other in other_sequences(view, b):
        yield words, OtherRows(view, at, (other, h, t))
    if all_heads:
        yield from _rows_of_other_strides(view, at)


class OtherRows:
    """Rows `at` of a view, and those that a kernel takes in place of them."""

    def __init__(self, view, at, other):
        self.at, (b, h, t) = at, other
        last = view.shape[2] - 1
        self.inside = (t >= 0) & (t <= last)
        self.other = b, h, np.clip(t, 0, last)

    def change(self, array):
        """Numbers of the other rows in an array (B, H, T), less the rows' own."""
        return self.of_other(array) - array[self.at]

    def of_other(self, array):
        """Numbers of the other rows; NaN where there is no such row."""
        return np.where(self.inside, array[self.other], np.nan)


def _rows_of_other_heads(view, at):
    b, h, t = at
    head, group = view.heads[h], view.group_size
    place = {int(head): n for n, head in enumerate(view.heads)}
    for words, other in other_query_heads(view, head):
        yield words, OtherRows(view, at, (b, np.array([place[int(n)] for n in other]), t))
    if 1 < group < view.num_heads:
        groups = view.num_heads // group
        yield (
            f"query head {groups} * (h % {group}) + h // {group}: the group of a head and its place in it "
            "are exchanged",
            OtherRows(view, at, (b, head % group * groups + head // group, t)),
        )
        yield (
            f"query head {group} * (h % {groups}) + h // {groups}: the place of a head in its group and the "
            "group are exchanged",
            OtherRows(view, at, (b, head % groups * group + head // groups, t)),
        )
        yield "query head h % group_size", OtherRows(view, at, (b, head % group, t))
        yield "the first head of its group", OtherRows(view, at, (b, head // group * group, t))
        yield "the last head of its group", OtherRows(view, at, (b, head // group * group + group - 1, t))


def _rows_of_same_head(view, at):
    b, h, t = at
    num_rows = view.shape[2]
    ways = [(f"the row {step_away(step)}", t + step) for step in SHIFTS if abs(step) < num_rows]
    ways.append(("the other row of its pair (bit 0 of its number flipped)", t ^ 1))
    for size in ROW_TILES:
        if size < num_rows:
            bit = size.bit_length() - 1
            ways += [
                (f"the first row of its {size} rows", t // size * size),
                (f"the last row of its {size} rows", t // size * size + size - 1),
                (f"the row {size} away (bit {bit} of its number flipped)", t ^ size),
                (f"row t % {size}", t % size),
            ]
    ways += [("the first row", np.zeros_like(t)), ("the last row", np.full_like(t, num_rows - 1))]
    for words, other in ways:
        yield words, OtherRows(view, at, (b, h, other))


def _rows_of_other_strides(view, at):
    """An array of heads and rows that is read with the strides of another one."""
    b, h, t = at
    count, num_heads, num_rows = view.shape[:3]
    flat = h * num_rows + t
    for size in PADDINGS:
        padded = -(-num_rows // size) * size
        head, row = np.divmod(flat, padded)
        yield (
            f"an array whose rows are padded to {padded}, read as if they were not",
            OtherRows(view, at, (b, head, row)),
        )
    starts = np.cumsum([0, *(s.num_rows for s in view.sequences)])
    if count > 1 and count == view.checked.num_parts:
        row, head = np.divmod(h * starts[-1] + starts[b] + t, num_heads)
        part = np.minimum(np.searchsorted(starts, row, "right") - 1, count - 1)
        yield (
            "an array of shape (all rows, heads) read as (heads, all rows)",
            OtherRows(view, at, (part, head, row - starts[part])),
        )
    if count > 1:
        number = b * num_heads + h
        for words, (head, sequence) in (
            ("(heads, sequences) read as (sequences, heads)", np.divmod(number, count)),
            ("(sequences, heads) read as (heads, sequences)", np.divmod(h * count + b, num_heads)[::-1]),
        ):
            yield f"an array of shape {words}", OtherRows(view, at, (sequence, head, t))
    row, head = np.divmod(flat, num_heads)
    yield (
        "an array of shape (rows, heads) read as (heads, rows)",
        OtherRows(view, at, (b, head, np.minimum(row, num_rows - 1))),
    )
