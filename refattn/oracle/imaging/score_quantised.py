"""Scores of a kernel that keeps queries or keys as whole multiples of scales: in int8 or int4, with right
scales or with those of others.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refattn.oracle.imaging.wrong_rows import Model

BITS = (("int8", 127), ("int4", 7))
BLOCKS = (16, 32, 64, 128)  # places that share a scale
KEPT = 4  # models that are compared in all rows


def quantised(rows) -> Iterator[Model]:
    yield from rows.nearest_models(_models(rows), KEPT)


def _models(rows):
    view = rows.view
    query, key = view.operand("query"), np.nan_to_num(view.operand("key"))
    kv = rows.head // view.group_size
    own_query, own_key = query[rows.at], key[rows.b, kv]
    for name, levels in BITS:
        for words, scale in scales(key, "key"):
            of = lambda by, scale=scale, levels=levels: in_multiples(key, scale, by, levels)[rows.b, kv]
            yield Model(
                "format", f"keys are kept in {name}, {words}", rows.of_operands(own_query, of(scale))
            )
        for words, scale in scales(query, "row"):
            q = in_multiples(query, scale, scale, levels)[rows.at]
            yield Model("format", f"queries are kept in {name}, {words}", rows.of_operands(q, own_key))
    for words, scale in scales(key, "key"):
        for which, other in _of_others(scale):
            k = _times(key, other, scale)[rows.b, kv]
            q8 = in_multiples(key, scale, other, 127)[rows.b, kv]
            said = f"keys ({words}) have {which}"
            yield Model("keys", said, rows.of_operands(own_query, k))
            yield Model("keys", f"keys kept in int8 ({words}) have {which}", rows.of_operands(own_query, q8))


def scales(x, what):
    """Words, and the largest number of each group of an operand (B, K, S, D) that shares a scale."""
    size = np.abs(x)
    yield f"one scale a {what}", size.max(3, keepdims=True)
    yield "one scale a head", size.max((2, 3), keepdims=True)
    yield "one scale a component", size.max(2, keepdims=True)
    yield "one scale for all", size.max(keepdims=True)
    for block in BLOCKS:
        if block < x.shape[2]:
            starts = np.arange(0, x.shape[2], block)
            largest = np.maximum.reduceat(size.max(3, keepdims=True), starts, axis=2)
            whole = np.repeat(largest, block, axis=2)[:, :, : x.shape[2]]
            yield f"one scale for each {block} {what}s of a head", whole
            if x.shape[1] > 1:
                yield (
                    f"one scale for each {block} {what}s of all heads",
                    whole.max(1, keepdims=True) + 0 * whole,
                )


def _of_others(scale):
    """Words for which scale is taken, and the scales (B, K, S or 1, 1 or D) that are."""
    count = scale.shape[2]
    steps = [1, *BLOCKS] if count > 1 else []
    for step in (step for step in steps if step < count):
        at = np.arange(count)
        yield f"the scale of the key {step} further on", scale[:, :, np.minimum(at + step, count - 1)]
        yield f"the scale of the key {step} before", scale[:, :, np.maximum(at - step, 0)]
    if count > 1:
        yield "the scale of the first key", scale[:, :, :1] + 0 * scale
    if scale.shape[1] > 1:
        yield "the scale of the next key/value head", np.roll(scale, -1, 1)
        yield "the scale of the first key/value head", scale[:, :1] + 0 * scale


def in_multiples(x, scale, by, levels):
    """Whole multiples of scale / levels, read as multiples of by / levels."""
    with np.errstate(all="ignore"):
        return np.where(scale > 0, np.round(x / scale * levels) * by / levels, 0)


def _times(x, by, scale):
    with np.errstate(all="ignore"):
        return np.where(scale > 0, x / scale * by, 0)
