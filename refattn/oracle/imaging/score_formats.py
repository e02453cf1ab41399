"""Scores, weights or operands of a kernel that rounds them to a coarser format."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refattn.oracle.arithmetic.formats import round_to
from refattn.oracle.imaging.rounding import COARSE, REFERENCE_TILES, rounded_weights
from refattn.oracle.imaging.wrong_rows import Model

# how many numbers share one scale of int8, and the axes (B, H, S, D) over which its largest is taken
SCALES_OF_INT8 = (
    ("one scale a key", (3,)),
    ("one scale a head", (2, 3)),
    ("one scale for all", (1, 2, 3)),
    ("one scale a component", (2,)),
)


def rounded(rows) -> Iterator[Model]:
    view = rows.view
    query, key = view.operand("query")[rows.at], np.nan_to_num(view.operand("key"))
    of_operands = lambda query, key: rows.of_operands(query, key[rows.b, rows.head // view.group_size])
    for name in COARSE:
        for words, scores in _rounded_scores(rows, name):
            yield Model("format", words, scores)
        scaled = round_to(query * rows.scale, name) / rows.scale
        for words, q, k in (
            ("the query is", round_to(query, name), key),
            ("the scaled query is", scaled, key),
            ("keys are", query, round_to(key, name)),
            ("query and keys are", round_to(query, name), round_to(key, name)),
        ):
            yield Model("format", f"{words} rounded to {name}", of_operands(q, k))
    for words, axes in SCALES_OF_INT8:
        step = np.abs(key).max(axis=axes, keepdims=True) / 127
        with np.errstate(all="ignore"):
            k = np.where(step > 0, np.round(key / step) * step, 0)
        yield Model("format", f"keys are rounded to int8 with {words}", of_operands(query, k))


def _rounded_scores(rows, name):
    for tile in REFERENCE_TILES:
        yield (
            f"weights are rounded to {name} before they are multiplied with the values",
            rounded_weights(rows.view, tile, name)[rows.at] + rows.top[:, None],
        )
    unscaled = round_to(rows.raw / rows.scale, name)
    yield f"scores are rounded to {name}", rows.of_products(unscaled * rows.scale)
    yield f"scaled scores are rounded to {name}", rows.of_products(round_to(rows.raw, name))
    final = np.where(np.isfinite(rows.score), rows.score, 0)
    yield f"final scores are rounded to {name}", round_to(final, name)
