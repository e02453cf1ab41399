"""The rigorous bound: every rounding goes the worst way.

With delta_j the error of score j (`score_error.py`), o the exact output and v_j the values, a kernel that makes no other error is off by
exactly sum_j p_j (e^delta_j - 1) (v_j - o) / sum_k p_k e^delta_k, because the p_j (v_j - o) add up to 0. Common shifts cancel and constant
values give no error. Conversion of the weights, the two sums and the final roundings come on top. `README.md` has the steps.
"""

from __future__ import annotations

import numpy as np

from refattn.oracle.bounds.level_rows import level_conversion
from refattn.oracle.bounds.operands import gamma, smallest_lost
from refattn.oracle.bounds.score_error import ScoreError
from refattn.oracle.arithmetic.spec import KernelSpec
from refattn.oracle.bounds.row_blocks import Tile
from refattn.oracle.bounds.uncertain_rows import UNCERTAIN, limits

LARGEST_EXPONENT = 700.0  # exp beyond it leaves float64
LARGE = 50.0  # an error of a score that may bring back a weight that underflows here


def weight_rounding(tile, spec):
    """Largest error of converting each weight, as a share of the row sum, (R, S); None where weights are not converted.

    Rounding x is off by at most max(u x, half the subnormal step), and never by more than x. Weights are relative to the row maximum, or
    already normalised in eager kernels.
    """
    u = spec.weight.unit_roundoff
    if u == 0.0 or (u <= spec.softmax.unit_roundoff and spec.weight.smallest_normal <= spec.softmax.smallest_normal):
        return None
    size = 1.0 if spec.normalises_first else tile.total
    stored = tile.weights * size
    return np.minimum(stored, np.maximum(u * stored, spec.weight_underflow * tile.keep_scale)) / size


def hard_bound(tile: Tile, spec: KernelSpec, error: ScoreError, rounding):
    """Bounds of the output, (R, E), and of the lse, (R,)."""
    u, u_sum = spec.softmax.unit_roundoff, spec.accumulator_roundoff
    p, kept, value = tile.weights, tile.kept, np.abs(tile.value.exact)
    output = np.where(np.isfinite(tile.output), tile.output, 0.0)
    magnitude = np.abs(output)
    eps = np.where(error.level, 0.0, error.largest) if error.level.any() else error.largest
    growth = np.exp(np.minimum(eps, LARGEST_EXPONENT))
    excess = np.expm1(np.minimum(eps, LARGEST_EXPONENT))
    least = (p / growth).sum(axis=1, keepdims=True)  # lower bound of the kernel's row sum over the exact one
    keep, reach = kept / np.where(p > 0, p, 1.0), p * excess
    if eps.max(initial=0.0) > LARGE:
        back = np.exp(np.minimum(eps - tile.drop, LARGEST_EXPONENT)) / tile.total
        reach, keep = np.where(eps > LARGE, back, reach), np.where(p > 0, keep, tile.keep_scale)
    shift, moved_kept = reach.sum(axis=1, keepdims=True), keep * reach
    sink_shift, sink_error = 0.0, None
    if tile.sink is not None:
        share, sink_error = sink_share(tile, spec, error)
        least, sink_shift = least + share * np.exp(-sink_error), share * np.expm1(sink_error)

    # |v - o| <= |v - c| + |o - c| for any c: the mean of the values, so that an offset of all of them costs nothing
    centre = np.zeros(value.shape[1]) if tile.dropout or not len(value) else tile.value.exact.mean(axis=0)
    apart, from_centre = np.abs(tile.value.exact - centre), np.abs(output - centre)
    moved = moved_kept @ apart + shift * from_centre + sink_shift * magnitude
    gross = (kept + moved_kept) @ value
    rounded, rounded_sum = 0.0, 0.0
    if rounding is not None:
        rounded = (rounding * keep * growth) @ value
        rounded_sum = (rounding * growth).sum(axis=1, keepdims=True)
        if error.level.any():  # one number converted for all keys, in proportion to the result
            most_error = error.largest.max(axis=1, keepdims=True, initial=0.0)
            rounded = np.where(error.level, level_conversion(tile, rounding) * np.exp(np.minimum(most_error, LARGEST_EXPONENT)) * magnitude, rounded)

    # output before its own rounding: scores and weights, sums, row sum
    if spec.denominator == "rounded":
        least = np.where(least > rounded_sum, least - rounded_sum, 0.0)
        if rounding is not None:
            converted = (rounding * keep * growth) @ apart + rounded_sum * from_centre
            moved = moved + np.where(error.level & (not tile.dropout), 0.0, converted)
    moved, gross_mean, rounded = moved / least, gross / least, 0.0 if rounding is None else rounded / least
    uncertain = np.flatnonzero(~((shift + sink_shift)[:, 0] < UNCERTAIN) | (tile.count[:, 0] == 1))
    if len(uncertain):
        most = limits(tile, spec, eps, uncertain, output, sink_error)
        for mean, limit in ((moved, most.moved), (gross_mean, most.gross), (rounded, most.rounded)):
            if np.ndim(mean):
                mean[uncertain] = np.fmin(mean[uncertain], limit)
    off = moved if spec.denominator == "rounded" else moved + rounded
    count, rises = tile.count.astype(np.float64), error.most_rises
    if tile.value.largest_error is not None:
        inexact = ((kept * growth) @ tile.value.largest_error) * (1.0 + spec.weight.unit_roundoff) / least
        off = off + np.fmin(inexact, 2.0 * tile.keep_scale * tile.value.largest_error.max(axis=0, initial=0.0))
    passes = gamma(count, u_sum) + gamma(2 * rises + 4 + 2 * (tile.keep_scale != 1.0), u)
    if tile.latent is None:
        off = off + passes * (gross_mean + rounded)
    else:
        off = off + _hard_latent(tile, spec, kept, growth, excess, passes, rounding, keep, shift, least)
    largest_value = value.max(axis=0, initial=0.0)
    if tile.latent is None and tile.value.largest_error is None:
        # a mean of values stays among them, whatever the weights; only conversions and sums leave that range
        converted = 0.0 if rounding is None else (rounding / np.where(p > 0, p, 1.0)).max(axis=1, keepdims=True, initial=0.0)
        off = np.fmin(off, largest_value * tile.keep_scale * (1 + converted) * (1 + passes) + magnitude)
    tiny = smallest_lost(spec)  # of a weight, of a product, of a sum; all products together lose no more than they are
    off = off + tiny * (count * largest_value * tile.keep_scale + rises + 5) + np.fmin(tiny * count, gross_mean)
    row_sum = gamma(count + 2 * rises + 2, u)
    off = off + (magnitude + off) * ((1 + 3 * u) / np.where(row_sum < 1, 1 - row_sum, 0.0) - 1.0)
    output = np.where(sums_overflow(tile, spec), np.inf, written(off, magnitude, spec.output, spec))

    if error.level.any():  # equal errors move the lse
        growth = np.exp(np.minimum(error.largest, LARGEST_EXPONENT))
        rounded_sum = 0.0 if rounding is None else (rounding * growth).sum(axis=1, keepdims=True)
        least = (p / growth).sum(axis=1, keepdims=True) - (rounded_sum if spec.denominator == "rounded" else 0.0)
        least = np.maximum(least, 0.0) + (0.0 if tile.sink is None else share * np.exp(-sink_error))
    above = (p * growth).sum(axis=1) + (0.0 if tile.sink is None else (share * np.exp(sink_error))[:, 0])
    if spec.denominator == "rounded" and rounding is not None:
        above = above + rounded_sum[:, 0]
    spread = np.maximum(np.log(np.maximum(above, 1.0)), -np.log(np.minimum(least[:, 0], 1.0)))
    most = error.largest.max(axis=1, initial=0.0)  # no sum of exponentials moves by more than the largest exponent
    most = most if tile.sink is None else np.maximum(most, sink_error[:, 0])
    most = most if spec.denominator == "unrounded" else np.inf
    spread = np.where(error.largest.max(axis=1, initial=0.0) > LARGEST_EXPONENT, most, spread)
    spread = spread - np.log1p(-np.minimum(row_sum[:, 0], 1.0))
    top, log = lse_magnitudes(tile)
    level = np.abs(np.where(np.isfinite(tile.lse), tile.lse, 0.0))
    spread = spread + u * (4 * top + 6 * log + 2 * level + 3 * spread) + spec.exp_error + count[:, 0] * tiny
    return output, written(spread, level, spec.lse, spec)


def sums_overflow(tile, spec):
    """Outputs whose sum over the keys may overflow, (R, E): relative to an early, lower maximum it may be larger than in the end, but each
    weight is at most 1.
    """
    count = 1.25 if spec.normalises_first else tile.count.astype(np.float64)
    return count * np.abs(tile.value.exact).max(axis=0, initial=0.0) * tile.keep_scale >= 0.5 * spec.accumulator.largest


def _hard_latent(tile, spec, kept, growth, excess, passes, rounding, keep, shift, least):
    """The absorbed form's own roundings: the sum over keys in the latent space, the stored latent output, and its product with w_uv."""
    latent, w_uv = np.abs(tile.latent), np.abs(tile.w_uv).T
    moved = (kept * excess) @ latent
    rounded = 0.0 if rounding is None else (rounding * keep * growth) @ latent
    middle, largest = np.abs(kept @ tile.latent), tile.keep_scale * latent.max(axis=0, initial=0.0)
    rounded = np.fmin(rounded / least, largest)  # a weight moves by no more than itself
    gross = np.fmin((kept @ latent + moved) / least, largest) + rounded
    off = np.fmin((moved + shift * middle) / least, largest + middle) + rounded + passes * gross
    stored = spec.intermediate.unit_roundoff
    rank = tile.latent.shape[1]
    after = gamma(rank, spec.accumulator_roundoff) * (1 + stored) + stored
    return (passes * gross + after * (middle + off) + spec.intermediate.half_subnormal_step) @ w_uv


def sink_share(tile, spec, error):
    """The sink's share of the row sum, (R, 1), and the error of its exponent."""
    u = spec.softmax.unit_roundoff
    sink = np.where(tile.sink > -np.inf, tile.sink, 0.0)[:, None]
    share = np.where((tile.sink > -np.inf)[:, None] & np.isfinite(tile.lse)[:, None], np.exp(tile.sink[:, None] - tile.lse[:, None]), 0.0)
    share = np.where(np.isnan(share), 0.0, share)
    drop = np.maximum(tile.maximum[:, None] - sink, 0.0)
    # the maximum of the keys may lie below the sink and carries the error of a score
    top = error.largest.max(axis=1, keepdims=True, initial=0.0)
    off = u * (4 * np.abs(sink) + 3 * np.abs(drop) + 2 * np.abs(tile.maximum[:, None]))
    return share, off + u * top + (1 + error.most_rises) * (2 * spec.exp_error + 2 * u)


def lse_magnitudes(tile):
    """|row maximum| and |log of the row sum|, for the maximum with and without the sink, whichever is larger. (R,), (R,)"""
    largest_key = np.where(tile.visible, tile.biased, -np.inf).max(axis=1, initial=-np.inf)
    largest_key = np.where(np.isfinite(largest_key), largest_key, tile.maximum)
    lse = np.where(np.isfinite(tile.lse), tile.lse, 0.0)
    return (
        np.maximum(np.abs(tile.maximum), np.abs(largest_key)),
        np.maximum(np.abs(lse - tile.maximum), np.abs(lse - largest_key)),
    )


def written(off, magnitude, form, spec):
    """The error after the result is rounded to its format."""
    step = max(form.half_subnormal_step, spec.softmax.smallest_normal if spec.flushes_subnormals else 0.0)
    return off + np.maximum(form.unit_roundoff * (magnitude + off), step if form.unit_roundoff else 0.0)
