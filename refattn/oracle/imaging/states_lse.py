"""Merges whose lse is wrong: each model says what stands in place of log sum exp(lse_p)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refattn.oracle.arithmetic.formats import round_to
from refattn.oracle.imaging.states_view import softmax
from refattn.oracle.imaging.states_weights import (
    LN2,
    LOG2E,
    Model,
    left_out,
    moved_places,
    other_order,
    rounded,
    running_sums,
    times,
)


def lse_models(view, measured, rows, joined) -> Iterator[Model]:
    for words, lse in (*_of_the_sum(view), *_of_its_steps(view), *_as_if(view)):
        yield Model(words, None, lse)
    if joined is not None:
        for factor, words in (
            (LOG2E, "is in base 2: it is that of these weights times log2(e)"),
            (LN2, "is that of these weights times ln 2"),
            (-1.0, "is that of these weights with the opposite sign"),
        ):
            yield Model(f"the merged lse {words}", None, factor * joined)
    yield from _lse_with_a_number(view, measured.lse[rows], rows)


def _of_the_sum(view) -> Iterator[tuple[str, np.ndarray]]:
    lse, top, raw = view.lse, view.top, view.raw
    inner = lse - top
    seen = view.visible.sum(-1)
    yield "the merged lse is the largest lse of the states: the logarithm of the sum is not added", top
    yield "the merged lse is the logarithm of the sum alone: the largest lse is not added", inner
    yield "the merged lse is the sum of the lses of the states", view.lses.sum(-1)
    yield "the merged lse is the sum of the lses of the states that are not empty", raw.sum(-1)
    yield "the merged lse is the mean of the lses of the states", view.lses.mean(-1)
    yield "the merged lse is the mean of the lses of the states that are not empty", raw.sum(-1) / seen
    yield "the merged lse is the mean of the lses by the weights of the states", (view.weights * raw).sum(-1)
    yield (
        "the merged lse is that of the mean: the sum of exponentials is divided by the number of states",
        lse - np.log(view.num_keys),
    )
    yield (
        "the merged lse is that of the mean: the sum is divided by the number of states that are not empty",
        lse - np.log(seen),
    )
    yield "the merged lse is in base 2: it is the right one times log2(e)", lse * LOG2E
    yield "the merged lse is multiplied by ln 2", lse * LN2
    yield "the merged lse has the opposite sign", -lse


def _of_its_steps(view) -> Iterator[tuple[str, np.ndarray]]:
    """A step of top + log sum exp(lse_p - top) done otherwise, and states that stand in its place."""
    lse, top = view.lse, view.top
    inner = lse - top
    yield (
        "the logarithm of the sum is taken in base 2 and added to a largest lse in base e",
        top + inner * LOG2E,
    )
    yield (
        "the largest lse is multiplied by log2(e) and the logarithm of the sum is in base e",
        top * LOG2E + inner,
    )
    yield "the logarithm of the sum is multiplied by ln 2 and the largest lse is not", top + inner * LN2
    yield "the largest lse is multiplied by ln 2 and the logarithm of the sum is not", top * LN2 + inner
    yield "the logarithm of the sum is subtracted from the largest lse, not added", top - inner
    yield "the largest lse is subtracted from the logarithm of the sum, not added", inner - top
    yield "the largest lse is added twice", lse + top
    yield (
        "the merged lse holds the sum of exponentials relative to the largest lse, without a logarithm",
        np.exp(inner),
    )
    yield "the largest lse and the sum of exponentials are added, without a logarithm", top + np.exp(inner)
    yield "the merged lse holds the sum of exponentials, without a logarithm", np.exp(lse)
    for words, axes in (
        ("heads", 1),
        ("rows", 2),
        ("rows and heads", (1, 2)),
        ("rows, heads and batch entries", (0, 1, 2)),
    ):
        most = top.max(axes, keepdims=True)
        yield (
            f"the largest lse of all {words} is subtracted from the merged lse",
            lse - np.where(np.isneginf(most), 0, most),
        )
    yield "the merged lse is 0: not written", np.zeros(lse.shape)
    yield (
        "the merged lse is log(1 + sum): one term of exp(0) relative to the largest lse too many",
        top + np.log1p(np.exp(inner)),
    )
    yield "the merged lse has one term of exp(0) = 1 too many", np.logaddexp(lse, 0.0)
    yield (
        "the merged lse counts each empty state as exp(0) = 1",
        np.logaddexp(lse, np.log((~view.visible).sum(-1).astype(float))),
    )
    yield (
        "the merged lse counts each empty state as much as the one with the largest lse",
        top + np.log(np.exp(inner) + (~view.visible).sum(-1)),
    )
    yield "the merged lse is that of the first state", view.lses[..., 0]
    yield "the merged lse is that of the last state", view.lses[..., -1]
    yield "the merged lse is the smallest lse of the states", view.lses.min(-1)


def _as_if(view):
    """The right lse of other states, or read or stored elsewhere."""
    lse = view.lse
    for model in (*left_out(view), *_other_bases_of(view), *running_sums(view), *rounded(view)):
        if model.lse is not None:
            yield f"the merged lse is as if {model.words}", model.lse
    for words, moved in moved_places(lse):
        yield f"the merged lse is that of {words}", moved
    batch, heads, rows = lse.shape
    yield (
        "the merged lse is stored with wrong strides: (heads, rows) as (rows, heads)",
        np.swapaxes(lse, 1, 2).reshape(lse.shape),
    )
    yield (
        "the merged lse is stored with wrong strides: (rows, heads) as (heads, rows)",
        np.swapaxes(lse.reshape(batch, rows, heads), 1, 2),
    )
    for words, moved in other_order(np.where(view.visible, view.lses, -np.inf)):
        yield f"the merged lse is that of lses that are read with wrong strides: {words}", softmax(moved)[1]
    for name in ("bfloat16", "float16", "float8_e4m3fn"):
        finite = np.where(np.isfinite(lse), lse, 0)
        yield f"the merged lse is rounded to {name}", np.where(np.isfinite(lse), round_to(finite, name), lse)


def _lse_with_a_number(view, got, rows):
    lse, base = view.lse, np.where(np.isneginf(view.top), 0.0, view.top)
    for words, largest in (("relative to the largest lse ", base), ("", 0.0 * base)):
        with np.errstate(all="ignore"):
            total = np.exp(lse - largest)
            more = (np.exp(got - largest[rows]) - total[rows])[np.isfinite(lse[rows])]
            extra = float(np.median(more[np.isfinite(more)])) if np.isfinite(more).any() else 0.0
            words = f"the sum of exponentials {words}in the merged lse is {extra:.4g} too large"
            yield Model(words, None, largest + np.log(total + extra), fitted=True)
    with np.errstate(all="ignore"):
        off, ratios = got - lse[rows], got / lse[rows]
    if np.isfinite(off).any():
        constant = float(np.median(off[np.isfinite(off)]))
        factor = np.exp(min(constant, 700))
        words = f"the merged lse is off by the constant {constant:.5g} (the sum times {factor:.4g})"
        yield Model(words, None, lse + constant, fitted=True)
    if np.isfinite(ratios).any():
        ratio = float(np.median(ratios[np.isfinite(ratios)]))
        yield Model(f"the merged lse is multiplied by {ratio:.5g}", None, ratio * lse, fitted=True)


def _other_bases_of(view):
    for factor, words in (
        (LN2, "the states' lses were in base 2"),
        (-1.0, "the states' lses had the opposite sign"),
        (0.5, "the states' lses were halved"),
        (2.0, "the states' lses were doubled"),
    ):
        yield Model(words, view.weights, softmax(times(view, factor))[1])
