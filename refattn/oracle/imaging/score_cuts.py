"""Scores that are cut off at a number: at the largest one of a format, or at a limit that a kernel sets."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refattn.oracle.arithmetic.formats import round_to
from refattn.oracle.imaging.rounding import running_maximum
from refattn.oracle.imaging.wrong_rows import TILES, Model

NONE = 1e-5  # of a score: a limit of that size is 0
CUT = 0.9  # of the wrong pairs lie beyond the number
LARGEST = (
    (65504.0, "65504, the largest number of float16"),
    (448.0, "448, the largest number of float8 e4m3"),
)


def saturated(rows) -> Iterator[Model]:
    """Products of query and key that are cut off at both ends, as in a format that holds no larger ones."""
    cut = lambda limit: rows.of_products(np.clip(rows.raw, -limit, limit))
    half, largest = round_to(rows.raw / rows.scale, "float16"), LARGEST[0][0]
    if (np.abs(rows.raw / rows.scale) > largest).any():
        words = (
            "products of query and key, before the scale, are rounded to float16 and cut off at 65504, "
            "its largest number"
        )
        scores = rows.of_products(np.clip(half, -largest, largest) * rows.scale)
        yield Model("scores", words, scores)
    for largest, words in LARGEST:
        for limit, when in ((largest * abs(rows.scale), ", before the scale"), (largest, "")):
            if (np.abs(rows.raw) > limit).any():
                yield Model("scores", f"products of query and key are cut off at {words}{when}", cut(limit))


def clipped(rows) -> Iterator[Model]:
    """Scores, or exponents, that are cut off at a number of the kernel's own."""
    got = rows.got
    with np.errstate(all="ignore"):
        size = np.abs(got - rows.rest)
    far = rows.wrong & np.isfinite(size)
    if far.any():
        limit = float(np.median(size[far]))
        words = f"scores before softcap and bias are cut off at {limit:.5g} in size"
        yield Model("scores", words, rows.of_products(np.clip(rows.raw, -limit, limit)), 1)
    if rows.cap is None:
        cap = rows.nearest(np.geomspace(0.2, 200, 61), lambda c: rows.of_products(rows.raw, c))
        words = f"scores go through a softcap of {cap:.4g}, which was not asked for"
        yield Model("softcap", words, rows.of_products(rows.raw, cap), 1)
    for side, beyond, limited in (
        ("at most", rows.wrong & (got < rows.score), np.minimum),
        ("at least", rows.wrong & (got > rows.score), np.maximum),
    ):
        if beyond.sum() < CUT * rows.wrong.sum():
            continue
        for what, reference in _references(rows):
            edge = float(np.median((got - reference)[beyond]))
            edge = 0.0 if abs(edge) < NONE else edge
            base_2 = f" ({edge / np.log(2):.4g} in base 2)" if "running" in what else ""
            words = f"{what} are {side} {edge:.4g}{base_2}: what lies beyond is cut off"
            yield Model("scores", words, limited(rows.score, reference + edge), 1)


def _references(rows):
    """What is cut off, and the numbers (n, S) that it is relative to."""
    yield "scores", np.zeros_like(rows.score)
    for tile in TILES:
        if tile < rows.view.num_keys:
            running = running_maximum(rows.view, tile)[rows.at]
            yield f"exponents (score less the running maximum, tiles of {tile} keys)", running
    yield (
        "exponents (score less the row's largest)",
        np.broadcast_to(rows.top[:, None], rows.score.shape),
    )
