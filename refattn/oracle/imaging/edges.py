"""First and last key that rows were seen to use, against those they should.

They tell of an offset, a length or a window that is another one.
"""

from __future__ import annotations

import numpy as np

from refattn.oracle.imaging.maps import most_common
from refattn.oracle.imaging.view import last_key

ALIKE = 0.95  # share of rows that must agree


def edges_in_words(ledgers, rows) -> str:
    """What the wrong rows (B, H, T) have in common: "The last key used is row +20, it should be row +63.";
    "" if nothing.
    """
    view = ledgers.view
    there = (ledgers.measured.weights > 4 * ledgers.measured.floor) & view.exists & ~ledgers.nan[..., None]
    some = rows & there.any(-1) & view.visible.any(-1)
    if not some.any():
        return ""
    sentences = []
    ends = lambda pairs: (pairs.argmax(-1), last_key(pairs))
    (first, last), (right_first, right_last) = ends(there), ends(view.visible)
    row = np.broadcast_to(view.row[..., 0], first.shape)
    for name, got, right in (("first", first, right_first), ("last", last, right_last)):
        wrong = some & (got != right)
        if not wrong.any() or wrong.sum() < 0.5 * some.sum():
            continue
        sentences.append(_relation(view, np.nonzero(wrong)[0], got[wrong], right[wrong], row[wrong], name))
    return " ".join(filter(None, sentences))


def _relation(view, sequence, got, right, row, name):
    """What the keys that wrong rows used, of N rows each, have to do with the rows or the right keys."""
    by_row, right_by_row, change = got - row, right - row, got - right
    if _alike(by_row) and len(np.unique(row)) > 2:
        c, right_c = most_common(by_row), most_common(right_by_row)
        should = f", it should be row {right_c:+d}" if _alike(right_by_row) else ""
        return f"The {name} key used is row {c:+d}{_named(view, c)}{should}."
    if _alike(change):
        c = most_common(change)
        return f"The {name} key used is {abs(c)} {'behind' if c > 0 else 'before'} the right one."
    if _alike(got) and len(np.unique(right)) > 1:
        return f"The {name} key used is key {most_common(got)} in all of them."
    of_sequences = [(b, change[sequence == b]) for b in np.unique(sequence)]
    told = [f"{most_common(shift):+d} in sequence {b}" for b, shift in of_sequences if _alike(shift)]
    if len(told) > 1:  # they differ: what is alike in all was told
        return f"The {name} key used is off by {', '.join(told[:4])}."
    return ""


def _alike(numbers):
    return len(numbers) > 0 and (numbers == most_common(numbers)).mean() >= ALIKE


def _named(view, c):
    """What a distance of keys from rows may come from."""
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
