"""Rows whose scores are surely equal: their errors cannot move the output (section 2 of `README.md`).

With all delta_j equal, o^ - o = sum_j p_j (e^delta - 1) (v_j - o) / sum_k p_k e^delta = 0, because
sum_j p_j (v_j - o) = 0. That is so where one key is visible, and where every product q_d k_jd is 0, for zero
is zero in any order of additions and under any scale. What follows - scale, softcap, storage, subtraction of
a maximum, exponential - is one operation on one operand. Equal keys alone do not suffice, nor do products
that the accumulator could hold exactly: kernels scale the query before the product, and add in another order
where a tile ends.

The weights of such a row are equal too, and so is the error of their conversion. They need not be 1: a
kernel may subtract the maximum of hidden keys as well.
"""

from __future__ import annotations

import numpy as np


def level_rows(tile, spec, magnitudes) -> np.ndarray:
    """Where all visible keys of a row have one error, (R, 1) of bool; `magnitudes` is sum |q||k|, (R, S)."""
    level = tile.count[:, 0] == 1
    exact = tile.query.largest_error is None and tile.key.largest_error is None
    alike = exact and tile.alibi is None and tile.bias is None and spec.splits == 1 and magnitudes.shape[1]
    if alike and not magnitudes.min() > 0.0:
        level |= np.where(tile.visible, magnitudes, 0.0).max(axis=1) == 0.0
    return (level if tile.sink is None else level & ~(tile.sink > -np.inf))[:, None]


def level_conversion(tile, rounding) -> np.ndarray:
    """max_j r_j / p_j, the largest relative error of converting a weight, (R, 1); `rounding` is that of
    `hard.weight_rounding`."""
    if rounding.relative is not None:
        return np.where(tile.count > 0, rounding.relative, 0.0)
    relative = rounding.each / np.where(tile.weights > 0, tile.weights, tile.dtype.type(1.0))
    return relative.max(axis=1, keepdims=True, initial=0.0).astype(np.float64)
