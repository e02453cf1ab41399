"""Exponentials of a row as a kernel rounds them: relative to the running maximum of its tiles."""

from __future__ import annotations

import numpy as np

from refattn.oracle.arithmetic.formats import round_to


def running_maximum(view, tile):
    """Largest score of a row up to the end of the tile of a key, (B, H, T, S); -inf before the first key that is seen."""
    hidden = np.where(view.visible, view.score, -np.inf)
    running = np.maximum.accumulate(
        np.maximum.reduceat(hidden, np.arange(0, view.num_keys, tile), axis=-1), axis=-1
    )
    return np.repeat(running, tile, axis=-1)[..., : view.num_keys]


def rounded_weights(view, tile, short):
    """Logarithms of exponentials of each row, rounded relative to the running maximum of tiles (0: the row's maximum) and
    brought to the row's maximum, (B, H, T, S); -inf where hidden.
    """
    hidden = np.where(view.visible, view.score, -np.inf)
    if tile and tile < view.num_keys:
        reference = running_maximum(view, tile)
    else:
        reference = np.broadcast_to(hidden.max(-1, keepdims=True, initial=-np.inf), hidden.shape)
    with np.errstate(all="ignore"):
        relative = np.where(view.visible & np.isfinite(reference), np.exp(hidden - reference), 0.0)
        return np.log(round_to(relative, short)) + reference - view.top[..., None]
