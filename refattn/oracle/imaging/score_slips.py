"""Scores of a kernel that leaves an operand out, applies it twice, or applies it in another order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refattn.oracle.imaging.wrong_rows import Model

IN_PLACE_OF_TANH = (
    ("the rational x (27 + x^2) / (27 + 9 x^2), not cut off", lambda x: _rational(x)),
    ("the rational x (27 + x^2) / (27 + 9 x^2), cut off at 1", lambda x: np.clip(_rational(x), -1, 1)),
    ("the rational x (15 + x^2) / (15 + 6 x^2)", lambda x: x * (15 + x**2) / (15 + 6 * x**2)),
    ("the cubic x - x^3 / 3", lambda x: x - x**3 / 3),
    ("x / (1 + |x|)", lambda x: x / (1 + np.abs(x))),
    ("x / sqrt(1 + x^2)", lambda x: x / np.sqrt(1 + x**2)),
    ("tanh(x / 2)", lambda x: np.tanh(x / 2)),
    ("tanh(2 x)", lambda x: np.tanh(2 * x)),
    ("sin(x)", np.sin),
    ("atan(x)", np.arctan),
)


def _rational(x):
    return x * (27 + x**2) / (27 + 9 * x**2)


def left_out_or_doubled(rows) -> Iterator[Model]:
    for kind, slips in (("softcap", _softcap), ("bias", _bias), ("ALiBi", _alibi)):
        for words, scores in slips(rows):
            yield Model(kind, words, scores)
    raw, scale = rows.raw, rows.scale
    yield Model("scale", "the scale is applied twice", rows.of_products(raw * scale))
    yield Model("scale", "scores are not multiplied by the scale", rows.of_products(raw / scale))
    yield Model("scores", "scores are negated", rows.of_products(-raw))


def _softcap(rows):
    raw, capped, cap, scale = rows.raw, rows.capped, rows.cap, rows.scale
    if cap is None:
        return
    yield "the softcap is left out", rows.with_rest(raw)
    yield "the softcap is applied twice", rows.with_rest(rows.capped_of(capped))
    yield "the softcap is applied after the bias is added", rows.capped_of(raw + rows.rest)
    yield (
        "scores are clipped at the softcap in place of tanh",
        rows.with_rest(np.clip(raw, -cap, cap)),
    )
    yield (
        "the softcap is applied before the scale",
        rows.with_rest(rows.capped_of(raw / scale) * scale),
    )
    yield (
        "scores are tanh(score / softcap), not multiplied by the softcap again",
        rows.with_rest(capped / cap),
    )
    yield "scores are not divided by the softcap before tanh", rows.with_rest(cap * np.tanh(raw))
    x = raw / cap
    for words, tanh in IN_PLACE_OF_TANH:
        yield f"the softcap takes {words} in place of tanh(x)", rows.with_rest(cap * tanh(x))


def _bias(rows):
    bias, score, scale = rows.bias, rows.score, rows.scale
    if bias is None:
        return
    yield "the bias is left out", score - bias
    yield "the bias is added twice", score + bias
    yield "the bias is subtracted", score - 2 * bias
    yield "the bias is multiplied by the scale", score + (scale - 1) * bias
    yield "the bias is divided by the scale", score + (1 / scale - 1) * bias
    if rows.cap is not None:
        yield "the bias is added before the softcap", rows.of_products(rows.raw + bias) - bias


def _alibi(rows):
    slopes, score = rows.slopes(), rows.score
    if slopes is None:
        return
    alibi = -slopes * rows.distance
    yield "ALiBi is left out", score - alibi
    yield "ALiBi is added twice", score + alibi
    yield "ALiBi has the opposite sign", score - 2 * alibi
    yield "ALiBi is multiplied by the scale", score + (rows.scale - 1) * alibi
    if rows.cap is not None:
        yield "ALiBi is added before the softcap", rows.of_products(rows.raw + alibi) - alibi
