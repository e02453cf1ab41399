"""Sums over the keys of a tile, in the dtype of the tile; what they give is float64."""

from __future__ import annotations

import numpy as np


def times(left, right):
    """A product over the keys in the dtype of the factors, as float64."""
    return (left @ right).astype(np.float64, copy=False)


def row_sums(left, right=None):
    """Sum over the keys of an array (R, S), or of the product of two, (R, 1)."""
    total = left.sum(axis=1) if right is None else np.vecdot(left, right)
    return total[:, None].astype(np.float64, copy=False)
