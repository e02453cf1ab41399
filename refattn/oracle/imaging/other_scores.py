"""Explanations of a wrong row by other scores or weights; the scores are those of `score_candidates`."""

from __future__ import annotations

from itertools import chain

import numpy as np

from refattn.oracle.arithmetic.formats import round_to
from refattn.oracle.imaging.class_scores import class_scores, swizzled
from refattn.oracle.imaging.curve_fits import curves
from refattn.oracle.imaging.explanations import fitted, of_scores
from refattn.oracle.imaging.part_scores import part_scores
from refattn.oracle.imaging.rounding import SHORT_FORMATS
from refattn.oracle.imaging.score_candidates import (
    FAMILIES,
    Steps,
    for_some_keys,
    moved_planes,
    with_keys,
)
from refattn.oracle.imaging.source_explanations import displaced, in_words

TRIAL = 10
CANDIDATES = 300
MOST_ROWS_OF_COMPONENTS = 64
GAUSS_NEWTON_STEPS = 8


def other_scores(reading, rows):
    """Each candidate that holds in some row of a trial."""
    everything = np.arange(len(rows.rows))
    trial = np.unique(np.linspace(0, len(rows.rows) - 1, TRIAL).astype(int))
    for name, make in _candidates(Steps.of(reading.view, rows)):
        if reading.left() < 0:
            return
        if rows.holds_at(make(trial) @ rows.value, trial).any():
            weights = make(everything)
            prediction = rows.apply(weights)
            yield fitted(name, rows, prediction, lambda w=weights: w, 0, CANDIDATES, "visible", cost=0.02)


def other_for_some_keys(reading, rows):
    """Candidates that hold for the keys of one side of each row."""
    steps = Steps.of(reading.view, rows)
    far = (
        (f"keys of {in_words(step)}", displaced(reading.view, rows.sequence, step)[0])
        for step in reading.displacements
    )
    yield from part_scores(reading, rows, chain(for_some_keys(steps), with_keys(steps, far)))


def other_for_classes_of_keys(reading, rows):
    """Candidates that hold for some tiles, or for some places of each few keys."""
    steps = Steps.of(reading.view, rows)
    yield from class_scores(reading, rows, for_some_keys(steps))
    yield from swizzled(reading, rows, steps)


def curved(reading, rows):
    """Scores that are off by a function of one number."""
    yield from curves(reading, rows, Steps.of(reading.view, rows))


def _candidates(steps):
    """Names, and functions of rows `at` to weights (H, n, S)."""
    rows = steps.rows
    for family in FAMILIES:
        for name, scores in family(steps):
            yield (
                name,
                lambda at, scores=scores: of_scores(rows, scores(at), rows.visible[:, at], at, rows.kept),
            )
    yield from _dropouts(steps)
    yield from _masks(steps)
    yield from _cut_weights(rows)


def _dropouts(steps):
    """Weights with the dropout of other rows, heads or keys, or none."""
    view, rows = steps.view, steps.rows
    if view.dropped is None:
        return
    keep = ~np.broadcast_to(view.dropped, view.shape)[rows.sequence]
    p = np.where(rows.visible, rows.denominator, 0.0)
    rate, own = float(view.options.get("dropout_rate") or 0.0), np.asarray(rows.rows)
    yield "no dropout", lambda at: p[:, at]
    yield "dropout without its rescaling", lambda at: p[:, at] * keep[:, own[at]]
    yield "dropout of the other keys", lambda at: p[:, at] * ~keep[:, own[at]] / (1 - rate)
    for words, moved in moved_planes(steps, "dropout_mask", "the dropout mask is"):
        yield words, lambda at, moved=moved: p[:, at] / (1 - rate) * moved(at)


def _masks(steps):
    """Weights with the mask of other rows, heads or keys, inverted, or none."""
    view, rows = steps.view, steps.rows
    own, keys = np.asarray(rows.rows), np.arange(rows.shape[-1])
    for what, words in (("mask", "mask"), ("bias", "bias of -inf")):
        hidden = view.hidden_by(what)
        if hidden is None or not hidden.any():
            continue
        hides = np.broadcast_to(hidden, view.shape)[rows.sequence]  # of all rows
        inside = (keys >= rows.start[:, None]) & (keys < rows.stop[:, None])

        def seen(mask, at, inside=inside):
            times = (~mask & inside[at]).astype(float)
            total = (rows.denominator[:, at] * times).sum(-1, keepdims=True) + rows.sink[:, at, None]
            return rows.numerator[:, at] * times / np.maximum(total, 1e-300)

        yield f"the {words} ignored", lambda at, s=seen, m=hides: s(np.zeros_like(m[:, own[at]]), at)
        yield f"the {words} inverted", lambda at, s=seen, m=hides: s(~m[:, own[at]], at)
        for where, moved in moved_planes(steps, what, f"the {words} is"):
            if what == "bias":
                moved = lambda at, moved=moved: np.isneginf(moved(at))
            else:
                moved = lambda at, moved=moved: ~moved(at).astype(bool)
            yield where, lambda at, s=seen, moved=moved: s(moved(at), at)


def _cut_weights(rows):
    """Weights rounded to a coarse format before they meet the values."""
    p = np.where(rows.visible, rows.numerator, 0.0)
    top = np.where(rows.visible, rows.denominator, 0.0).max(-1, keepdims=True, initial=1e-300)
    for form in SHORT_FORMATS:
        for how, cut in (("rounded", False), ("cut", True)):
            yield (
                f"weights {how} to {form}",
                lambda at, f=form, t=cut: round_to(p[:, at] / top[:, at], f, truncate=t) * top[:, at],
            )


def components(reading, rows):
    """How often the products of each component of head_dim count: one number each, the same in all rows."""
    steps = Steps.of(reading.view, rows)
    h, i = (index[:MOST_ROWS_OF_COMPONENTS] for index in np.nonzero(rows.wrong))
    if steps.operands is None or len(h) * rows.output.shape[-1] < 4 * steps.operands[0].shape[-1]:
        return
    if reading.view.options.get("softcap"):
        return
    query, key = steps.operands
    query, score = query[:, rows.rows], steps.raw + steps.shift
    everything = np.arange(len(rows.rows))

    def weights_of(numbers):
        changed = score + (query * numbers) @ np.swapaxes(key, -1, -2) * steps.scale
        return of_scores(rows, changed, rows.visible, everything, rows.kept)

    numbers = np.zeros(query.shape[-1])
    for _ in range(GAUSS_NEWTON_STEPS):
        step, spread = _step(rows, weights_of(numbers), h, i, query[h, i] * steps.scale, key[h])
        numbers = numbers + np.clip(step, -1, 1)
    for whole in (-1.0, 0.0, 1.0):
        numbers = np.where(np.abs(numbers - whole) < np.maximum(6 * spread, 1e-3), whole, numbers)
    changed = np.flatnonzero(numbers)
    if not len(changed) or len(changed) > 0.5 * len(numbers):
        return
    weights = weights_of(numbers)
    times = ", ".join(f"{1 + number:.3g}" for number in dict.fromkeys(np.round(numbers[changed], 3)))
    which = ", ".join(map(str, changed[:8])) + (", ..." if len(changed) > 8 else "")
    name = f"the products of components {which} of head_dim counted {times} times"
    choices = len(numbers) ** min(len(changed), 4)
    yield fitted(name, rows, rows.apply(weights), lambda: weights, 0, choices, "visible", cost=0.05)


def _step(rows, weights, h, i, query, key):
    """A Gauss-Newton step of the number of each component, from the rows (h, i), and its spread."""
    output = rows.apply(weights)[h, i]
    w, d = weights[h, i], rows.deviation[h, i]
    # d output / d number of component c = q_c sum_j w_j k_jc (v_j - o)
    along = np.einsum("rs,rsc,rse->rce", w, key, rows.value[h], optimize=True)
    along -= np.einsum("rs,rsc->rc", w, key)[..., None] * output[:, None]
    off = (rows.output[h, i] - output) / d
    size = np.maximum(np.sqrt((off**2).mean(-1)), 1.0)[
        :, None
    ]  # rows far from a fit must not outweigh others
    along = np.moveaxis(along * query[..., None] / (d * size)[:, None], 1, 0).reshape(query.shape[-1], -1)
    curvature = along @ along.T
    if not np.isfinite(curvature).all():
        return np.zeros(len(along)), np.full(len(along), np.inf)
    inverse = np.linalg.pinv(curvature, rcond=1e-10, hermitian=True)
    return inverse @ (along @ (off / size).reshape(-1)), np.sqrt(np.diag(inverse))
