"""The rigorous bound: every rounding goes the worst way.

Each function implements one part of sections 2 and 3 of `README.md` beside this file, which also explains
the letters. A tile is all that they read, so that a call can be bounded block by block.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from refattn.oracle.arithmetic.spec import KernelSpec
from refattn.oracle.bounds.level_rows import level_conversion
from refattn.oracle.bounds.operands import gamma, smallest_lost
from refattn.oracle.bounds.score_error import ScoreError
from refattn.oracle.bounds.tile import Tile
from refattn.oracle.bounds.tile_sums import row_sums, times
from refattn.oracle.bounds.uncertain_rows import UNCERTAIN, OutputTerms, limits

LARGEST_EXPONENT = 700.0  # exp beyond it leaves float64
LARGE = 50.0  # an error of a score that may bring back a weight that underflows here


# Errors of scores below this are bounded by a multiple of themselves, e^x - 1 <= x (e^top - 1) / top, which
# is too large by less than half of it
SMALL = 2.0**-8
NEGLIGIBLE = 2e-3  # a share that may be bounded generously without moving a bound by one per cent


@dataclass
class Rounding:
    """Conversion of the weights (section 3): r_j, the largest error of each as a share of the row sum."""

    each: np.ndarray  # (R, S): r_j
    relative: float | None  # r_j / p_j where that is one number for all keys, as it is without underflow


@dataclass
class PerturbedWeights:
    """How far errors of scores and conversion may carry the weights of a row (section 2); R rows, S keys.

    Where no error of a score is larger than SMALL, growth and its like are numbers of a row, (R, 1).
    """

    # (R, S): bound of |delta_j|; 0 in rows whose errors are all equal, because those move no output
    eps: np.ndarray
    growth: np.ndarray  # (R, S) or (R, 1): e^(eps_j) or more
    error: np.ndarray  # (R, S): p_j w_j with w_j = e^(eps_j) - 1, or a little more
    # keep_j / (1 - rate), (R, S): what dropout multiplies the weight by; 1.0 without dropout
    keep: np.ndarray | float
    # (R, 1): p and eps of the sink; 0 without one
    sink_share: np.ndarray
    sink_eps: np.ndarray
    rounding: Rounding | None  # None where no weight is converted
    # (R, 1): lower bound of Z, less what conversion may take where the row sum adds converted weights
    least_row_sum: np.ndarray

    @cached_property
    def row_error(self):
        """sum_j p_j w_j, (R, 1)."""
        return row_sums(self.error)

    @property
    def sink_error(self):
        """p w of the sink, (R, 1)."""
        return self.sink_share * np.expm1(self.sink_eps)

    def converted(self, tile, size):
        """sum_j r_j e^(eps_j) x_j with dropout applied, (R, C); `size` is (S, C)."""
        if self.rounding.relative is not None and self.growth.shape[1] == 1:
            whole = tile.absolute_sum if size is tile.v.magnitude else times(tile.kept, size)
            return self.rounding.relative * self.growth * whole
        return times(self.rounding.each * self.keep * self.growth.astype(tile.dtype, copy=False), size)

    @cached_property
    def row_conversion(self):
        """sum_j r_j e^(eps_j), (R, 1)."""
        return _row_conversion(self.rounding, self.growth)


def weight_rounding(tile, spec) -> Rounding | None:
    """r_j of section 3: the largest error of converting a weight, as a share of the row sum.

    r(x) = min(x, max(u_P x, h)); x is relative to the row maximum, or already normalised in eager kernels.
    None where weights are not converted.
    """
    u = spec.weight.unit_roundoff
    if u == 0.0 or (
        u <= spec.softmax.unit_roundoff and spec.weight.smallest_normal <= spec.softmax.smallest_normal
    ):
        return None
    stored = tile.weights if spec.normalises_first else tile.exponentials
    lost = spec.weight_underflow * tile.keep_scale
    largest_drop = tile.drop.max(axis=1, keepdims=True, initial=0.0).astype(np.float64)
    smallest = np.exp(-largest_drop) / (tile.total if spec.normalises_first else 1.0)
    if u * smallest.min(initial=np.inf) >= lost:
        return Rounding(u * tile.weights, u)
    each = np.minimum(stored, np.maximum(u * stored, lost))
    if not spec.normalises_first:
        each *= tile.per_row(1.0 / tile.total)
    return Rounding(each, None)


def hard_bound(tile: Tile, spec: KernelSpec, error: ScoreError, rounding):
    """Bounds of the output, (R, E), and of the lse, (R,); `rounding` is that of `weight_rounding`."""
    weights = _perturbed_weights(tile, spec, error, rounding)
    output = np.where(np.isfinite(tile.output), tile.output, 0.0)
    terms = _output_terms(tile, spec, error, weights, output)
    return _output_bound(tile, spec, error, weights, terms), _lse_bound(tile, spec, error, weights)


def _perturbed_weights(tile, spec, error, rounding):
    """Section 2: w_j = e^(eps_j) - 1 and Z >= sum_k p_k e^(-eps_k), the sink among the keys."""
    p = tile.weights
    eps = np.where(error.level, tile.dtype.type(0.0), error.largest) if error.level.any() else error.largest
    share, sink_eps = sink_share(tile, spec, error)
    growth, weight_error = _grown(p, eps)
    keep = 1.0
    if tile.dropout:
        keep = tile.kept / np.where(p > 0, p, tile.dtype.type(1.0))
    if eps.max(initial=0.0) > LARGE:
        returning = np.exp(np.minimum(eps - tile.drop, LARGEST_EXPONENT)) / tile.total
        weight_error = np.where(eps > LARGE, returning, weight_error)
        keep = np.where(p > 0, keep, tile.keep_scale)
    least = _least_sum(tile, eps, weight_error) + share * np.exp(-sink_eps)
    if spec.denominator == "rounded":
        lost = _row_conversion(rounding, growth)
        least = np.where(least > lost, least - lost, 0.0)
    return PerturbedWeights(eps, growth, weight_error, keep, share, sink_eps, rounding, least)


def _grown(p, eps):
    """e^(eps_j), (R, 1) where all of them are small and (R, S) else, and p_j (e^(eps_j) - 1), (R, S), or a
    little more."""
    top = eps.max(axis=1, keepdims=True, initial=0.0).astype(np.float64)
    if not top.max(initial=0.0) < SMALL:
        error = np.expm1(np.minimum(eps, LARGEST_EXPONENT))
        return 1.0 + error, p * error
    steepest = np.where(top > 0, np.expm1(top) / np.where(top > 0, top, 1.0), 1.0)
    error = p * eps
    error *= steepest.astype(error.dtype)
    return np.exp(top), error


def _least_sum(tile, eps, weight_error):
    """sum_j p_j e^(-eps_j), (R, 1), or a little less: the whole without what it loses, where little."""
    if eps.max(initial=0.0) < SMALL:
        return tile.whole - row_sums(weight_error)
    lost = row_sums(tile.weights, -np.expm1(-eps))
    return np.where(lost < 0.5, tile.whole - lost, row_sums(tile.weights, np.exp(-eps)))


def _row_conversion(rounding, growth):
    """Section 3: sum_j r_j e^(eps_j), what conversion may add to the row sum, (R, 1)."""
    if rounding is None:
        return np.zeros((len(growth), 1))
    return row_sums(rounding.each) * growth if growth.shape[1] == 1 else row_sums(rounding.each, growth)


def _output_terms(tile, spec, error, weights, output) -> OutputTerms:
    """Section 2: B_s = [sum_j p_j w_j |v_j - c| + |o - c| sum_j p_j w_j] / Z, with c the mean of the values.

    Section 3: V = sum_j p^_j |v_j| and B_P = sum_j r_j e^(eps_j) |v_j| / Z. If both sums take converted
    weights, B_s gains sum_j r_j e^(eps_j) (|v_j - c| + |o - c|) / Z instead.
    """
    magnitude, row_error = np.abs(output), weights.row_error
    output_distance, distance = magnitude, tile.v.magnitude
    if not tile.dropout and len(distance):  # weights that are all kept add up to 1
        centre = tile.v.exact.mean(axis=0)
        output_distance, distance = np.abs(output - centre), np.abs(tile.v.exact - centre)
    kept_error = weights.keep * weights.error
    scores = times(kept_error, distance) + row_error * output_distance + weights.sink_error * magnitude
    if weights.growth.shape[1] == 1:
        absolute_sum = tile.absolute_sum * weights.growth
    else:
        absolute_sum = times(tile.kept + kept_error, tile.v.magnitude)
    least, conversion = weights.least_row_sum, 0.0
    if weights.rounding is not None:
        conversion = weights.converted(tile, tile.v.magnitude)
        if error.level.any():  # one number converted for all keys, in proportion to the result
            most = np.minimum(error.largest.max(axis=1, keepdims=True, initial=0.0), LARGEST_EXPONENT)
            of_result = level_conversion(tile, weights.rounding) * np.exp(most) * magnitude
            conversion = np.where(error.level, of_result, conversion)
        if spec.denominator == "rounded":
            both_sums = weights.converted(tile, distance) + weights.row_conversion * output_distance
            scores = scores + np.where(error.level & (not tile.dropout), 0.0, both_sums)
        conversion = conversion / least
    terms = OutputTerms(scores / least, absolute_sum / least, conversion)
    rows = np.flatnonzero(~((row_error + weights.sink_error)[:, 0] < UNCERTAIN) | (tile.count[:, 0] == 1))
    if len(rows):
        terms.lower(rows, limits(tile, spec, weights.eps, rows, output, weights.sink_eps))
    return terms


def _output_bound(tile, spec, error, weights, terms):
    """Section 3: what values, products, underflow, row sum, division and rounding add to B_s and B_P."""
    magnitude = np.where(np.isfinite(tile.output), np.abs(tile.output), 0.0)
    off = terms.scores if spec.denominator == "rounded" else terms.scores + terms.conversion
    if tile.value.largest_error is not None:
        off = off + _inexact_values(tile, spec, weights)
    passes = _passes(tile, spec, error)
    if tile.latent is None:
        off = off + passes * (terms.absolute_sum + terms.conversion)
    else:
        off = off + _latent_products(tile, spec, weights, passes)
    if tile.latent is None and tile.value.largest_error is None:
        off = np.fmin(off, _distance_within_values(tile, weights, passes) + magnitude)
    count, tiny = tile.count.astype(np.float64), smallest_lost(spec)
    largest_value = tile.largest_value
    off = off + tiny * (count * largest_value * tile.keep_scale + error.most_rises + 5)
    off = off + np.fmin(tiny * count, terms.absolute_sum)
    row_sum = _row_sum_roundings(tile, spec, error)
    division = (1 + 3 * spec.softmax.unit_roundoff) / np.where(row_sum < 1, 1 - row_sum, 0.0) - 1.0
    off = off + (magnitude + off) * division
    return np.where(sums_overflow(tile, spec), np.inf, written(off, magnitude, spec.output, spec))


def _passes(tile, spec, error):
    """Section 3: gamma_n(u_a) + gamma_(2 rho + 4)(u), the additions and factors of each product, (R, 1)."""
    factors = 2 * error.most_rises + 4 + 2 * (tile.keep_scale != 1.0)
    count = tile.count.astype(np.float64)
    return gamma(count, spec.accumulator_roundoff) + gamma(factors, spec.softmax.unit_roundoff)


def _row_sum_roundings(tile, spec, error):
    """Section 3: the row sum is within a factor 1 +- gamma_(n + 2 rho + 2)(u), (R, 1)."""
    return gamma(tile.count.astype(np.float64) + 2 * error.most_rises + 2, spec.softmax.unit_roundoff)


def _inexact_values(tile, spec, weights):
    """Section 3: sum_j p^_j dv_j for values with entrywise errors dv_j, and no more than 2 max_j dv_j."""
    dv = tile.value.largest_error
    grown = tile.kept * weights.growth.astype(tile.dtype, copy=False)
    weighted = times(grown, dv) * (1.0 + spec.weight.unit_roundoff) / weights.least_row_sum
    return np.fmin(weighted, 2.0 * tile.keep_scale * dv.max(axis=0, initial=0.0))


def _distance_within_values(tile, weights, passes):
    """Section 3: a mean of values stays among them; only conversion and sums carry it beyond max_j |v_j|."""
    converted = 0.0 if weights.rounding is None else level_conversion(tile, weights.rounding)
    largest_value = tile.largest_value
    return largest_value * tile.keep_scale * (1 + converted) * (1 + passes)


def _latent_products(tile, spec, weights, passes):
    """Section 3, absorbed form: passes V and (gamma_C(u_a) + u_mid) |latent output|, carried through |w_uv|.

    V is taken of the latents here, and the latent output carries B_s and B_P of its own.
    """
    latent, w_uv = tile.latent.magnitude, np.abs(tile.w_uv).T
    least = weights.least_row_sum
    scores = times(weights.keep * weights.error, latent)
    middle, largest = (
        np.abs(times(tile.kept, tile.latent.exact)),
        tile.keep_scale * latent.max(axis=0, initial=0.0),
    )
    conversion = 0.0 if weights.rounding is None else weights.converted(tile, latent)
    conversion = np.fmin(conversion / least, largest)  # a weight changes by no more than itself
    absolute_sum = np.fmin((times(tile.kept, latent) + scores) / least, largest) + conversion
    off = np.fmin((scores + weights.row_error * middle) / least, largest + middle) + conversion
    off = off + passes * absolute_sum
    stored = spec.intermediate.unit_roundoff
    after = gamma(tile.latent.exact.shape[1], spec.accumulator_roundoff) * (1 + stored) + stored
    return (passes * absolute_sum + after * (middle + off) + spec.intermediate.half_subnormal_step) @ w_uv


def _lse_bound(tile, spec, error, weights):
    """Section 3: |ln Z| - ln(1 - gamma_(n + 2 rho + 2)(u)) + u (4|m| + 6|ln l| + 2|L|) + e_exp, rounded."""
    least, most = _row_sum_range(tile, spec, error, weights)
    spread = np.maximum(np.log(np.maximum(most, 1.0)), -np.log(np.minimum(least, 1.0)))
    # no sum of exponentials changes by more than its largest exponent does
    largest_eps = error.largest.max(axis=1, initial=0.0)
    limit = np.maximum(largest_eps, weights.sink_eps[:, 0]) if spec.denominator == "unrounded" else np.inf
    # where such an error may bring a weight back; a key far below the others stays there
    beyond = (error.largest > LARGEST_EXPONENT) & (error.largest - tile.drop > -LARGEST_EXPONENT)
    spread = np.where(beyond.any(axis=1), limit, spread)
    spread = spread - np.log1p(-np.minimum(_row_sum_roundings(tile, spec, error)[:, 0], 1.0))
    maximum, log = lse_magnitudes(tile)
    lse = np.abs(np.where(np.isfinite(tile.lse), tile.lse, 0.0))
    spread = spread + spec.softmax.unit_roundoff * (4 * maximum + 6 * log + 2 * lse + 3 * spread)
    spread = spread + spec.exp_error + tile.count[:, 0].astype(np.float64) * smallest_lost(spec)
    return written(spread, lse, spec.lse, spec)


def _row_sum_range(tile, spec, error, weights):
    """Section 3: sum_j p_j e^(-eps_j) and sum_j p_j e^(eps_j), between which Z lies, (R,) each."""
    growth, least, gained = weights.growth, weights.least_row_sum, weights.row_error
    converted = weights.rounding if spec.denominator == "rounded" else None  # what the row sum adds
    if error.level.any():  # equal errors move no output, but they move the lse
        growth, weight_error = _grown(tile.weights, error.largest)
        gained = row_sums(weight_error)
        least = _least_sum(tile, error.largest, weight_error)
        least = np.maximum(least - _row_conversion(converted, growth), 0.0)
        least = least + weights.sink_share * np.exp(-weights.sink_eps)
    most = tile.whole + gained + weights.sink_share * np.exp(weights.sink_eps)
    return least[:, 0], (most + _row_conversion(converted, growth))[:, 0]


def sums_overflow(tile, spec):
    """Section 5: outputs whose sum over the keys may overflow, (R, E).

    Relative to an early, lower maximum it may be larger than in the end, but each weight is at most 1.
    """
    count = 1.25 if spec.normalises_first else tile.count.astype(np.float64)
    return count * tile.largest_value * tile.keep_scale >= 0.5 * spec.accumulator.largest


def sink_share(tile, spec, error):
    """Section 2: p and eps of the sink, one more key with value 0, (R, 1) each; 0 without one."""
    if tile.sink is None:
        return np.zeros((2, len(tile.lse), 1))
    u = spec.softmax.unit_roundoff
    there = (tile.sink > -np.inf)[:, None]
    sink = np.where(there, tile.sink[:, None], 0.0)
    share = np.where(
        there & np.isfinite(tile.lse)[:, None], np.exp(tile.sink[:, None] - tile.lse[:, None]), 0.0
    )
    share = np.where(np.isnan(share), 0.0, share)
    drop = np.maximum(tile.maximum[:, None] - sink, 0.0)
    # the maximum of the keys may lie below the sink and carries the error of a score
    score_eps = error.largest.max(axis=1, keepdims=True, initial=0.0)
    off = u * (4 * np.abs(sink) + 3 * np.abs(drop) + 2 * np.abs(tile.maximum[:, None]))
    return share, off + u * score_eps + (1 + error.most_rises) * (2 * spec.exp_error + 2 * u)


def lse_magnitudes(tile):
    """|m| and |ln l| for the maximum with and without the sink, whichever is larger, (R,) each."""
    largest_key = np.where(np.isfinite(tile.largest_score), tile.largest_score, tile.maximum)
    lse = np.where(np.isfinite(tile.lse), tile.lse, 0.0)
    return (
        np.maximum(np.abs(tile.maximum), np.abs(largest_key)),
        np.maximum(np.abs(lse - tile.maximum), np.abs(lse - largest_key)),
    )


def written(off, magnitude, form, spec):
    """Section 3: the error after rounding to the format of the result, which adds max(u_o |o^|, h_o)."""
    step = max(form.half_subnormal_step, spec.softmax.smallest_normal if spec.flushes_subnormals else 0.0)
    return off + np.maximum(form.unit_roundoff * (magnitude + off), step if form.unit_roundoff else 0.0)
