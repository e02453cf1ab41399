"""Scalar products that an accumulator holds exactly, whatever the order of its additions.

If every q_d is a multiple of g_q and every k_d of g_k, both powers of two, every product and every partial sum is a multiple of g_q g_k and at
most sum |q||k|. A format of unit roundoff 2^-p holds all multiples of g up to 2^p g, so nothing is rounded while sum |q||k| <= 2^p g_q g_k
(Higham 2002, section 2.1: the numbers of a format are integers times a power of two). Rows of zeros, small integers, and keys rounded to a
coarse format are of that kind.
"""

from __future__ import annotations

import numpy as np

SIGNIFICAND_BITS = 53


def common_unit(x: np.ndarray) -> np.ndarray:
    """Largest power of two of which all entries of a row are multiples, (rows, 1); inf for rows of zeros.

    >>> common_unit(np.array([[6.0, 0.5], [0.0, 0.0]])).tolist()
    [[0.5], [inf]]
    """
    fraction, exponent = np.frexp(np.asarray(x, dtype=np.float64))
    integer = np.abs(np.ldexp(fraction, SIGNIFICAND_BITS)).astype(np.int64)
    last_bit = np.ldexp((integer & -integer).astype(np.float64), exponent - SIGNIFICAND_BITS)
    return np.where(integer > 0, last_bit, np.inf).min(axis=-1, keepdims=True, initial=np.inf)


def exact_products(tile, spec, magnitudes) -> np.ndarray:
    """Where the products of query and key are exact in the accumulator of the spec, (R, S); `magnitudes` is sum |q||k|."""
    if tile.query.largest_error is not None or tile.key.largest_error is not None:
        return np.zeros(magnitudes.shape, dtype=bool)
    own = common_unit(tile.query.exact), common_unit(tile.key.exact).T
    unit, u = own[0] * own[1], spec.accumulator.unit_roundoff
    lost = max(form.smallest_normal if spec.flushes_subnormals else form.subnormal_step for form in (spec.softmax, spec.accumulator))
    fits = np.isinf(unit) | (unit >= lost) & (own[0] >= lost) & (own[1] >= lost)
    return fits & (magnitudes * u <= np.where(np.isinf(unit), 0.0, unit))


def level_rows(tile, spec, exact) -> np.ndarray:
    """Rows all of whose visible keys have one and the same computed score, (R, 1).

    There is one such key; or the scores are equal, their products exact, and what follows is done to every key alike: scale, softcap, storage,
    subtraction of the maximum, exponential. The maximum is the same in every block, in any order, also where it is updated late. So the errors
    of the scores are equal, and so are the weights and the errors of their conversion.
    """
    level = tile.count[:, 0] == 1
    if tile.alibi is None and tile.bias is None and spec.splits == 1 and exact.shape[1]:
        scores = np.where(tile.visible, tile.scores, np.nan)
        level |= (np.fmax.reduce(scores, axis=1) == np.fmin.reduce(scores, axis=1)) & (exact | ~tile.visible).all(axis=1)
    return (level if tile.sink is None else level & ~(tile.sink > -np.inf))[:, None]


def level_conversion(tile, rounding) -> np.ndarray:
    """Largest relative error of converting the weights of a row, (R, 1), from that of converting any weight, (R, S).

    The weights of a level row need not be 1: a kernel may subtract the maximum of hidden keys too.
    """
    return (rounding / np.where(tile.weights > 0, tile.weights, 1.0)).max(axis=1, keepdims=True, initial=0.0)
