"""Scores, exponents or weights of a kernel that keeps them as whole multiples of a step (fixed point)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refattn.oracle.arithmetic.formats import round_to
from refattn.oracle.imaging.rounding import SHORT_FORMATS, running_maximum
from refattn.oracle.imaging.wrong_rows import TILES, Model

STEPS = (1.0, *(2.0**-n for n in range(1, 13)))
OF_WEIGHTS = (255, 127, 128, 256, 15, 65535)  # steps up to the largest weight
OF_FP8 = (("float8_e4m3fn", 448), ("float8_e4m3fn", 240), ("float8_e5m2", 57344))
WAYS = (("rounded", np.rint), ("cut off toward 0", np.trunc), ("rounded down", np.floor))
KEPT = 4  # models that are compared in all rows


def stepped(rows) -> Iterator[Model]:
    yield from rows.nearest_models(_models(rows), KEPT)


def _models(rows):
    to_base_2 = float(np.log2(np.e))
    finite = lambda x: np.where(np.isfinite(x), x, 0)
    for what, x, put_back in (
        ("scores", finite(rows.score), lambda x: x),
        ("scores before ALiBi and bias", finite(rows.capped), rows.with_rest),
        ("scores times log2(e)", finite(rows.score) * to_base_2, lambda x: x / to_base_2),
    ):
        yield from _rounded(what, x, put_back)
    for name, top in _references(rows):
        exponent = finite(rows.score - top)
        what = f"exponents (score less {name})"
        yield from _rounded(what, exponent, lambda x, top=top: x + top)
        for form in SHORT_FORMATS:
            yield Model("format", f"{what} are rounded to {form}", round_to(exponent, form) + top)
        weights = np.exp(exponent)
        for form, largest in OF_FP8:
            with np.errstate(all="ignore"):
                scores = np.log(round_to(weights * largest, form) / largest) + top
            words = f"weights exp(score less {name}) times {largest} are rounded to {form}"
            yield Model("format", words, scores)
        for steps in OF_WEIGHTS:
            for how, function in WAYS[:2]:
                with np.errstate(all="ignore"):
                    scores = np.log(function(weights * steps) / steps) + top
                words = f"weights exp(score less {name}) are {how} to whole multiples of 1/{steps}"
                yield Model("format", words, scores)


def _rounded(what, x, put_back):
    for step in STEPS:
        for how, function in WAYS:
            words = f"{what} are {how} to whole multiples of {_as_fraction(step)} (fixed point)"
            yield Model("format", words, put_back(function(x / step) * step))


def _as_fraction(step):
    return "1" if step == 1 else f"1/{round(1 / step)}"


def _references(rows):
    yield "the row's largest", np.where(np.isfinite(rows.top), rows.top, 0)[:, None]
    for tile in TILES:
        if tile < rows.view.num_keys:
            running = running_maximum(rows.view, tile)[rows.at]
            yield f"the running maximum, tiles of {tile} keys", np.where(np.isfinite(running), running, 0)
