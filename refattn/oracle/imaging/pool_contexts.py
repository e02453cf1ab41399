"""Whole contexts that a kernel may read in place of its own: keys and values of another sequence or head."""

from __future__ import annotations

import numpy as np

from refattn.exact.visibility import row_bounds
from refattn.oracle.imaging.elsewhere import other_key_heads, other_sequences
from refattn.oracle.imaging.maps import describe_map
from refattn.oracle.imaging.pool import first_slot
from refattn.oracle.imaging.view import KEY, QUERY


def other_contexts(pool):
    """Whole contexts: keys, values and length, with the row where it would stand in that sequence."""
    view = pool.view
    number = np.arange(len(view.sequences))
    there = np.array([s.length > 0 and s.num_rows > 0 for s in view.sequences])
    before = np.maximum.accumulate(np.where(there, number, 0))
    before = np.concatenate([[0], before[:-1]])
    ways = list(other_sequences(view, number))
    by_sequence = pool.of_other_sequences
    measured = np.where(by_sequence.any(-1), by_sequence.argmax(-1), number)
    ways.append(("another sequence", measured))
    if not there.all():
        ways.append(("the last sequence before it that has rows", before))
    for words, other in ways:
        moved = pool.own[other]
        listed = read_by_each(number, other)
        yield f"those of {words} ({listed})", moved, None
        for position, visible in _visible_of(pool, other):
            yield f"those of {words} ({listed}), as far as it is long{position}", moved, visible


def read_by_each(number, other, of=None):
    """What each number reads, where that is not `of` it."""
    own = number if of is None else of
    pairs = [
        f"{a} -> {b}" for a, b, right in zip(number.tolist(), other.tolist(), own.tolist()) if b != right
    ]
    return ", ".join(pairs[:8]) + (", ..." if len(pairs) > 8 else "")


def _visible_of(pool, other):
    """Keys that rows see in the other sequence (B, H, T, S), by the place that they are given in it."""
    view = pool.view
    first = np.array([first_slot(view, n, QUERY) for n in range(len(view.sequences))])
    rules = [(view.rules(m), view.sequences[m]) for m in other.tolist()]
    row = [view.row[n, 0, :, 0] for n in range(len(other))]
    ways = (
        ("", [r + s.offset for r, (_, s) in zip(row, rules)]),
        (" (rows keep their own position)", [view.position[n, 0, :, 0] for n in range(len(other))]),
        (
            ", as if its rows went on there",
            [r + first[n] - first[m] + rules[n][1].offset for n, (r, m) in enumerate(zip(row, other))],
        ),
    )
    seen = []
    for words, positions in ways:
        visible = np.zeros((len(other), 1, view.num_rows, view.num_keys), bool)
        for n, ((rule, s), position) in enumerate(zip(rules, positions)):
            start, stop = row_bounds(rule, position, s.length)
            visible[n, 0] = (start[:, None] <= view.key[0, 0]) & (view.key[0, 0] < stop[:, None])
        visible = np.where((other == np.arange(len(other))).reshape(-1, 1, 1, 1), view.visible, visible)
        if not any(np.array_equal(visible, before) for before in seen):
            seen.append(visible)
            yield words, visible


def contexts_of_other_heads(pool):
    """Keys and values of another key/value head of the same sequence."""
    view = pool.view
    by_head = pool.of_other_heads
    own = view.heads // view.group_size
    measured = np.where(by_head.any(-1), by_head.argmax(-1), own)
    changed = measured != own
    words, found = describe_map(own, measured, "key/value head", functions_of=(view.heads, "h"))
    ways = [(words if found else "another key/value head", measured)] if changed.any() else []
    for words, other in (*ways, *other_key_heads(view, view.heads)):
        moved = pool.own.copy()
        for n, s in enumerate(view.sequences):
            rows = view.slots[KEY][s.part][s.entry][other]
            moved[n, :, : rows.shape[1]] = rows
        listed = read_by_each(view.heads, other, of=view.heads // view.group_size)
        yield f"those of {words} (query head -> key/value head: {listed})", moved, None
