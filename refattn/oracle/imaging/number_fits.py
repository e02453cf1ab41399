"""Explanations of a wrong row by scores with one number in them: another scale, softcap or slope."""

from __future__ import annotations

import numpy as np

from refattn.oracle.imaging.explanations import fitted, of_scores

GAUSS_NEWTON_STEPS = 12


def scores_with_a_number(view, block):
    """Scores with one number in them."""
    n = block.sequence
    take = lambda array: np.broadcast_to(array, view.shape)[n][:, block.rows]
    score, capped, raw = take(view.score), take(view.capped), take(view.raw)
    shift = np.where(np.isfinite(score), score - capped, 0.0)
    cap = view.options.get("softcap")

    def scaled(a):
        x = raw * (1 + a)
        if not cap:
            return x + shift, raw
        t = np.tanh(x / cap)
        return cap * t + shift, raw * (1 - t**2)

    fit = score_numbers
    yield fit(block, scaled, "another scale", (0.0, -0.7, 1.0))
    yield fit(block, scaled, "another scale and factor", (0.0, -0.7, 1.0), scaled=True)
    if cap:
        linear = raw - capped
        yield fit(block, lambda a: (score + a * linear, linear), "part of softcap", (0.0, 1.0))

        def other_cap(a):
            c = cap * np.maximum(1 + a, 0.02)
            t = np.tanh(raw / c)
            return c * t + shift, cap * (t - raw / c * (1 - t**2))

        yield fit(block, other_cap, "another softcap", (0.0, -0.3, 0.44))
    if np.abs(shift).max(initial=0.0) > 0:
        yield fit(
            block,
            lambda a: (capped + shift * (1 + a), shift),
            "bias or ALiBi times a number",
            (0.0, -1.0),
        )
    away = (view.key - view.position[n, :, block.rows]).astype(float).reshape(1, len(block.rows), -1)
    yield fit(block, lambda a: (score + a * away, away), "a slope along the keys")


def score_numbers(rows, scores, name, start=(0.0,), scaled=False):
    """One number in the scores of each row: `scores(a)` gives scores and their derivative, (H, N, S).

    `scaled`: and one factor of the output.
    """
    numbers, least = np.zeros(rows.shape[:2]), np.full(rows.shape[:2], np.inf)
    for first in start:
        a = np.full(rows.shape[:2], first)
        for _ in range(GAUSS_NEWTON_STEPS):
            a = a + np.clip(_step_of_numbers(rows, scores, a, scaled), -0.5, 0.5)
        output = rows.apply(_weights_at(rows, scores, a)[0])
        rms, _ = rows.left(output * _size(rows, output) if scaled else output)
        better = rms < least
        numbers = np.where(better, a, numbers)
        least = np.where(better, rms, least)
    weights, _, _ = _weights_at(rows, scores, numbers)
    says, free = {"number": numbers}, 1
    if scaled:
        size = _size(rows, rows.apply(weights))
        weights, says, free = weights * size, {"number": numbers, "factor": size[..., 0]}, 2
    cost = 0.05 * free
    return fitted(name, rows, rows.apply(weights), lambda: weights, free, 2, "visible", says=says, cost=cost)


def _weights_at(rows, scores, numbers):
    """Weights before the values, shares of the denominator, and the derivative of the scores."""
    s, slope = scores(numbers[..., None])
    shares = of_scores(rows, s, rows.visible, slice(None))
    return shares * rows.kept, shares, slope


def _size(rows, output):
    """The factor of each row that brings an output nearest, (H, N, 1)."""
    with np.errstate(all="ignore"):
        s = rows.deviation**2
        return np.nan_to_num((output * rows.output / s).sum(-1) / (output**2 / s).sum(-1))[..., None]


def _step_of_numbers(rows, scores, numbers, scaled):
    """A Gauss-Newton step of each row's number."""
    weights, shares, slope = _weights_at(rows, scores, numbers)
    slope = slope - (shares * slope).sum(-1, keepdims=True)
    output, along = rows.apply(weights), rows.apply(weights * slope)
    size = _size(rows, output) if scaled else 1.0
    off = (rows.output - output * size) / rows.deviation
    along, output = along * size / rows.deviation, output / rows.deviation
    with np.errstate(all="ignore"):
        if scaled:
            along = along - output * ((along * output).sum(-1) / (output**2).sum(-1))[..., None]
        return np.nan_to_num((along * off).sum(-1) / (along**2).sum(-1))
