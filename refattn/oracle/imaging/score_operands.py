"""Scores of a kernel that reads an operand of another head, sequence, row or tile."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refattn.oracle.imaging.elsewhere import other_key_heads, other_query_heads, other_sequences
from refattn.oracle.imaging.factors_in_words import step_away
from refattn.oracle.imaging.planes import planes_from_elsewhere
from refattn.oracle.imaging.score_positions import other_positions
from refattn.oracle.imaging.wrong_rows import TILES, Model

STEPS = (1, -1, *TILES, *(-size for size in TILES))


def from_elsewhere(rows) -> Iterator[Model]:
    slopes = rows.slopes()
    if slopes is not None:
        for words, heads in _other_heads(rows):
            other = rows.slopes(heads)
            scores = rows.score + (slopes - other) * rows.distance
            yield Model("ALiBi", f"ALiBi has the slope of {words}", scores)
        yield from other_positions(rows)
    bias = rows.bias
    if bias is not None:
        for words, plane in planes_from_elsewhere(rows.view, "bias"):
            yield Model("bias", f"the bias is {words}", rows.score - bias + plane[rows.at])
    for kind, words, query, key in _other_operands(rows):
        with np.errstate(all="ignore"):
            yield Model(kind, words, rows.of_operands(query, key))


def _other_heads(rows):
    head, group = rows.head, rows.view.group_size
    yield from other_query_heads(rows.view, head)
    if 1 < group < rows.view.num_heads:
        yield "the head's place in its group (h % group_size)", head % group
        yield "the number of its key/value head (h // group_size)", head // group


def _other_operands(rows):
    """Kind, words, queries (n, D) and keys (n, S, D) of which one comes from elsewhere."""
    view, b, kv = rows.view, rows.b, rows.head // rows.view.group_size
    query, key = view.operand("query"), view.operand("key")
    own_query, own_key = query[rows.at], key[b, kv]
    for words, heads in other_key_heads(view, rows.head):
        yield "head map", f"the keys are those of {words}", own_query, key[b, heads]
    for words, other in other_sequences(view, b):
        yield "sequence", f"the keys are those of {words}", own_query, key[other, kv]
    for step in STEPS:
        side = "after" if step > 0 else "before"
        words = f"the keys are those {abs(step)} {side} the values they are used with"
        yield "keys", words, own_query, np.roll(key, -step, axis=2)[b, kv]
    for words, place in _other_query_places(rows, query.shape[2] - 1):
        yield "query", f"the query is that of {words}", query[place], own_key


def _other_query_places(rows, last):
    """Words and places (B, H, T) that queries may be read at; `last` is the last row."""
    view, b, h, t = rows.view, rows.b, rows.h, rows.t
    place = {int(head): n for n, head in enumerate(view.heads)}
    for words, heads in _other_heads(rows):
        if all(int(head) in place for head in heads):
            yield words, (b, [place[int(head)] for head in heads], t)
    for words, other in other_sequences(view, b):
        yield words, (other, h, t)
    for step in STEPS:
        if abs(step) <= last:
            yield f"the row {step_away(step)}", (b, h, np.clip(t + step, 0, last))
    for size in TILES:
        yield f"the row's place in the first tile of {size} rows", (b, h, t % size % (last + 1))
    yield "the first row for every row", (b, h, np.zeros_like(t))
