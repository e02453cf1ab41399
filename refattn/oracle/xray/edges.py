"""First and last key that rows were seen to use, against those they should: an offset, a length or a window that is another one."""

from __future__ import annotations

import numpy as np

ALIKE = 0.95  # share of rows that must agree


def edges_in_words(ledgers, rows) -> str:
    """What the wrong rows (B, H, T) have in common: "the last key seen is row + 20, it should be row + 63"; "" if nothing."""
    view = ledgers.view
    there = (ledgers.measured.weights > 4 * ledgers.measured.floor) & view.exists & ~ledgers.nan[..., None]
    some = rows & there.any(-1) & view.visible.any(-1)
    if not some.any():
        return ""
    sentences = []
    ends = lambda array: (array.argmax(-1), view.num_keys - 1 - array[..., ::-1].argmax(-1))
    (first, last), (right_first, right_last) = ends(there), ends(view.visible)
    row = np.broadcast_to(view.row[..., 0], first.shape)
    for name, got, right in (("first", first, right_first), ("last", last, right_last)):
        wrong = some & (got != right)
        if not wrong.any() or wrong.sum() < 0.5 * some.sum():
            continue
        words = _relation(view, wrong, got, right, row, name)
        if words:
            sentences.append(words)
    return " ".join(sentences)


def _relation(view, wrong, got, right, row, name):
    at = np.nonzero(wrong)
    by_row, is_constant = (got - row)[wrong], got[wrong]
    right_by_row = (right - row)[wrong]
    offset = view.of_sequences("offset")[at[0], 0, 0, 0]
    if _alike(by_row) and len(np.unique(row[wrong])) > 2:
        c, right_c = _common(by_row), _common(right_by_row)
        should = f", it should be row {right_c:+d}" if _alike(right_by_row) else ""
        return f"The {name} key used is row {c:+d}{_named(view, c)}{should}."
    change = (got - right)[wrong]
    if _alike(change):
        c = _common(change)
        return f"The {name} key used is {abs(c)} {'behind' if c > 0 else 'before'} the right one."
    if _alike(is_constant) and len(np.unique(right[wrong])) > 1:
        return f"The {name} key used is key {_common(is_constant)} in all of them."
    per_sequence = []
    for b in np.unique(at[0]):
        here = at[0] == b
        shift = change[here]
        if _alike(shift):
            per_sequence.append(f"{_common(shift):+d} in sequence {b}")
    if len(per_sequence) > 1:
        return f"The {name} key used is off by {', '.join(per_sequence[:4])}."
    del offset
    return ""


def _common(numbers):
    values, counts = np.unique(numbers, return_counts=True)
    return int(values[np.argmax(counts)])


def _alike(numbers):
    return len(numbers) > 0 and (numbers == _common(numbers)).mean() >= ALIKE


def _named(view, c):
    lengths = {s.length for s in view.sequences}
    rows = {s.num_rows for s in view.sequences}
    if c == 0:
        return " (as if row 0 stood at key 0: top-left)"
    for s in view.sequences:
        if c == s.num_keys - s.num_rows and s.length != s.num_keys:
            return " (stored keys minus rows, in place of length minus rows)"
    if len(lengths) > 1 or len(rows) > 1:
        for length in lengths:
            for count in rows:
                if c == length - count:
                    return f" (length {length} minus {count} rows)"
    return ""
