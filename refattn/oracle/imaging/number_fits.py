"""Explanations of a wrong row by scores with one number in them: another scale, softcap or slope."""

from __future__ import annotations

import numpy as np

from refattn.oracle.imaging.explanations import score_numbers


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
