"""Scores, weights or operands of a kernel that rounds them to a coarser format."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refattn.oracle.arithmetic.formats import round_to
from refattn.oracle.imaging.rounding import COARSE, REFERENCE_TILES, rounded_weights
from refattn.oracle.imaging.wrong_rows import Model

ACCUMULATORS = ("bfloat16", "float16")
STEPS = (8, 16, 32, 64)  # components of head_dim that are multiplied at once


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
    yield from _rounded_terms(rows)
    key_of_rows = key[rows.b, rows.head // view.group_size]
    for name in ACCUMULATORS:
        for step in (size for size in STEPS if size < query.shape[-1]):
            products = _accumulated(query, key_of_rows, step, name)
            words = f"products of query and key are added up in {name}, in steps of {step} components"
            yield Model("format", words, rows.of_products(rows.scale * products))
            scaled = _accumulated(query * rows.scale, key_of_rows, step, name)
            yield Model("format", f"{words} (of the scaled query)", rows.of_products(scaled))


def _rounded_terms(rows):
    """The bias, or what ALiBi takes off, in a coarser format."""
    bias, slopes = rows.bias, rows.slopes()
    if bias is not None:
        finite = np.where(np.isfinite(bias), bias, 0)
        whole = max(np.abs(np.nan_to_num(part.bias, posinf=0, neginf=0)).max() for part in rows.parts)
        of_row = np.maximum(np.abs(finite).max(-1, keepdims=True), 1e-300)
        for words, step in (("one scale for all", whole / 127), ("one scale a row", of_row / 127)):
            coarse = np.round(finite / step) * step
            yield Model("format", f"the bias is rounded to int8 with {words}", rows.score - bias + coarse)
    coarse_of = lambda name: round_to(rows.distance.astype(float), name)
    for name in COARSE:
        if bias is not None:
            coarse = round_to(np.where(np.isfinite(bias), bias, 0), name)
            yield Model("format", f"the bias is rounded to {name}", rows.score - bias + coarse)
        if slopes is not None:
            alibi = slopes * rows.distance
            for words, coarse in (
                ("what ALiBi takes off (slope times distance) is", round_to(alibi, name)),
                (
                    "the slopes and distances of ALiBi, and their product, are",
                    round_to(round_to(slopes, name) * coarse_of(name), name),
                ),
                ("the slopes of ALiBi are", round_to(slopes, name) * rows.distance),
            ):
                yield Model("format", f"{words} rounded to {name}", rows.score + alibi - coarse)


def _accumulated(query, key, step, name):
    """Products (n, S) of queries (n, D) and keys (n, S, D), rounded after each `step` components."""
    total = np.zeros(key.shape[:2])
    for first in range(0, query.shape[-1], step):
        part = slice(first, first + step)
        total = round_to(total + np.einsum("nd,nsd->ns", query[:, part], key[..., part]), name)
    return total


def _rounded_scores(rows, name):
    for tile in REFERENCE_TILES:
        yield (
            f"weights are rounded to {name} before they are multiplied with the values",
            rounded_weights(rows.view, tile, name)[rows.at] + rows.top[:, None],
        )
    unscaled = round_to(rows.raw / rows.scale, name)
    yield f"scores are rounded to {name}", rows.of_products(unscaled * rows.scale)
    yield f"scaled scores are rounded to {name}", rows.of_products(round_to(rows.raw, name))
    cut = round_to(rows.raw, name, truncate=True)
    yield f"scaled scores are cut off (not rounded) to {name}", rows.of_products(cut)
    final = np.where(np.isfinite(rows.score), rows.score, 0)
    yield f"final scores are rounded to {name}", round_to(final, name)
