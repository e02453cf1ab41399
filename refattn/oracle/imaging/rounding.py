"""Exponentials of a row as a kernel rounds them: relative to the running maximum of its tiles."""

from __future__ import annotations

import numpy as np

from refattn.oracle.arithmetic.formats import round_to

COARSE = ("float8_e5m2", "float8_e4m3fn", "bfloat16", "float16")  # formats of weights, coarsest first
SHORT_FORMATS = ("bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")  # the commonest first
REFERENCE_TILES = (0, 16, 32, 64, 128)  # tiles of a running maximum; 0 where it is that of the whole row


def tile_maximum(view, tile):
    """Largest visible score of each tile of keys, (B, H, T, tiles); -inf where nothing is seen."""
    hidden = np.where(view.visible, view.score, -np.inf)
    return np.maximum.reduceat(hidden, np.arange(0, view.num_keys, tile), axis=-1)


def running_maximum(view, tile):
    """Largest score of a row up to the end of a key's tile, (B, H, T, S); -inf before the first one."""
    running = np.maximum.accumulate(tile_maximum(view, tile), axis=-1)
    return np.repeat(running, tile, axis=-1)[..., : view.num_keys]


def rounded_weights(view, tile, short):
    """Logarithms of the exponentials of each row, (B, H, T, S); -inf where hidden.

    They are rounded to the format `short` relative to the running maximum of tiles (0: the row's maximum),
    and brought to the row's maximum.
    """
    hidden = np.where(view.visible, view.score, -np.inf)
    if tile and tile < view.num_keys:
        reference = running_maximum(view, tile)
    else:
        reference = np.broadcast_to(hidden.max(-1, keepdims=True, initial=-np.inf), hidden.shape)
    with np.errstate(all="ignore"):
        relative = np.where(view.visible & np.isfinite(reference), np.exp(hidden - reference), 0.0)
        return np.log(round_to(relative, short)) + reference - view.top[..., None]
