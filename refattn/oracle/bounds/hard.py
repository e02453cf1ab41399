"""The rigorous bound: every rounding goes the worst way.

Each function implements one part of sections 2 and 3 of `README.md` beside this file, which also explains
the letters. A tile is all that they read, so that a call can be bounded block by block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refattn.oracle.arithmetic.spec import KernelSpec
from refattn.oracle.bounds.level_rows import level_conversion
from refattn.oracle.bounds.operands import gamma, smallest_lost
from refattn.oracle.bounds.row_blocks import Tile
from refattn.oracle.bounds.score_error import ScoreError
from refattn.oracle.bounds.uncertain_rows import UNCERTAIN, OutputTerms, limits

LARGEST_EXPONENT = 700.0  # exp beyond it leaves float64
LARGE = 50.0  # an error of a score that may bring back a weight that underflows here


@dataclass
class PerturbedWeights:
    """How far errors of scores and conversion may carry the weights of a row (section 2); R rows, S keys."""

    # (R, S): bound of |delta_j|; 0 in rows whose errors are all equal, because those move no output
    eps: np.ndarray
    growth: np.ndarray  # (R, S): e^(eps_j)
    error: np.ndarray  # (R, S): p_j w_j with w_j = e^(eps_j) - 1
    keep: np.ndarray  # (R, S): keep_j / (1 - rate): what dropout multiplies the weight by, 1 without dropout
    # (R, 1): p and eps of the sink; 0 without one
    sink_share: np.ndarray
    sink_eps: np.ndarray
    # (R, S) or None: r_j: largest error of converting a weight, as a share of the row sum; None where none
    # is converted
    rounding: np.ndarray | None
    # (R, 1): lower bound of Z, less what conversion may take where the row sum adds converted weights
    least_row_sum: np.ndarray

    @property
    def row_error(self):
        """sum_j p_j w_j, (R, 1)."""
        return self.error.sum(axis=1, keepdims=True)

    @property
    def sink_error(self):
        """p w of the sink, (R, 1)."""
        return self.sink_share * np.expm1(self.sink_eps)

    @property
    def conversion(self):
        """r_j e^(eps_j) with dropout applied, (R, S)."""
        return self.rounding * self.keep * self.growth

    @property
    def row_conversion(self):
        """sum_j r_j e^(eps_j), (R, 1)."""
        return _row_conversion(self.rounding, self.growth)


def weight_rounding(tile, spec):
    """r_j of section 3, (R, S): the largest error of converting a weight, as a share of the row sum.

    r(x) = min(x, max(u_P x, h)); x is relative to the row maximum, or already normalised in eager kernels.
    None where weights are not converted.
    """
    u = spec.weight.unit_roundoff
    if u == 0.0 or (
        u <= spec.softmax.unit_roundoff and spec.weight.smallest_normal <= spec.softmax.smallest_normal
    ):
        return None
    size = 1.0 if spec.normalises_first else tile.total
    stored = tile.weights * size
    return np.minimum(stored, np.maximum(u * stored, spec.weight_underflow * tile.keep_scale)) / size


def hard_bound(tile: Tile, spec: KernelSpec, error: ScoreError, rounding):
    """Bounds of the output, (R, E), and of the lse, (R,); `rounding` is that of `weight_rounding`."""
    weights = _perturbed_weights(tile, spec, error, rounding)
    output = np.where(np.isfinite(tile.output), tile.output, 0.0)
    terms = _output_terms(tile, spec, error, weights, output)
    return _output_bound(tile, spec, error, weights, terms), _lse_bound(tile, spec, error, weights)


def _perturbed_weights(tile, spec, error, rounding):
    """Section 2: w_j = e^(eps_j) - 1 and Z >= sum_k p_k e^(-eps_k), the sink among the keys."""
    p = tile.weights
    eps = np.where(error.level, 0.0, error.largest) if error.level.any() else error.largest
    growth, weight_error = _exp(eps), p * np.expm1(np.minimum(eps, LARGEST_EXPONENT))
    keep = tile.kept / np.where(p > 0, p, 1.0)
    if eps.max(initial=0.0) > LARGE:
        returning = np.exp(np.minimum(eps - tile.drop, LARGEST_EXPONENT)) / tile.total
        weight_error = np.where(eps > LARGE, returning, weight_error)
        keep = np.where(p > 0, keep, tile.keep_scale)
    share, sink_eps = sink_share(tile, spec, error)
    least = (p / growth).sum(axis=1, keepdims=True) + share * np.exp(-sink_eps)
    if spec.denominator == "rounded":
        lost = _row_conversion(rounding, growth)
        least = np.where(least > lost, least - lost, 0.0)
    return PerturbedWeights(eps, growth, weight_error, keep, share, sink_eps, rounding, least)


def _exp(eps):
    return np.exp(np.minimum(eps, LARGEST_EXPONENT))


def _row_conversion(rounding, growth):
    """Section 3: sum_j r_j e^(eps_j), what conversion may add to the row sum, (R, 1)."""
    return np.zeros((len(growth), 1)) if rounding is None else (rounding * growth).sum(axis=1, keepdims=True)


def _output_terms(tile, spec, error, weights, output) -> OutputTerms:
    """Section 2: B_s = [sum_j p_j w_j |v_j - c| + |o - c| sum_j p_j w_j] / Z, with c the mean of the values.

    Section 3: V = sum_j p^_j |v_j| and B_P = sum_j r_j e^(eps_j) |v_j| / Z. If both sums take converted
    weights, B_s gains sum_j r_j e^(eps_j) (|v_j - c| + |o - c|) / Z instead.
    """
    magnitude, value = np.abs(output), tile.value.exact
    centre = np.zeros(value.shape[1]) if tile.dropout or not len(value) else value.mean(axis=0)
    value_distance, output_distance = np.abs(value - centre), np.abs(output - centre)
    kept_error, row_error = weights.keep * weights.error, weights.row_error
    scores = kept_error @ value_distance + row_error * output_distance + weights.sink_error * magnitude
    absolute_sum = (tile.kept + kept_error) @ np.abs(value)
    least, conversion = weights.least_row_sum, 0.0
    if weights.rounding is not None:
        each = weights.conversion
        conversion = each @ np.abs(value)
        if error.level.any():  # one number converted for all keys, in proportion to the result
            most = _exp(error.largest.max(axis=1, keepdims=True, initial=0.0))
            of_result = level_conversion(tile, weights.rounding) * most * magnitude
            conversion = np.where(error.level, of_result, conversion)
        if spec.denominator == "rounded":
            both_sums = each @ value_distance + weights.row_conversion * output_distance
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
    largest_value = np.abs(tile.value.exact).max(axis=0, initial=0.0)
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
    weighted = (
        ((tile.kept * weights.growth) @ dv) * (1.0 + spec.weight.unit_roundoff) / weights.least_row_sum
    )
    return np.fmin(weighted, 2.0 * tile.keep_scale * dv.max(axis=0, initial=0.0))


def _distance_within_values(tile, weights, passes):
    """Section 3: a mean of values stays among them; only conversion and sums carry it beyond max_j |v_j|."""
    converted = 0.0 if weights.rounding is None else level_conversion(tile, weights.rounding)
    largest_value = np.abs(tile.value.exact).max(axis=0, initial=0.0)
    return largest_value * tile.keep_scale * (1 + converted) * (1 + passes)


def _latent_products(tile, spec, weights, passes):
    """Section 3, absorbed form: passes V and (gamma_C(u_a) + u_mid) |latent output|, carried through |w_uv|.

    V is taken of the latents here, and the latent output carries B_s and B_P of its own.
    """
    latent, w_uv = np.abs(tile.latent), np.abs(tile.w_uv).T
    least = weights.least_row_sum
    scores = (tile.kept * np.expm1(np.minimum(weights.eps, LARGEST_EXPONENT))) @ latent
    middle, largest = np.abs(tile.kept @ tile.latent), tile.keep_scale * latent.max(axis=0, initial=0.0)
    conversion = 0.0 if weights.rounding is None else weights.conversion @ latent
    conversion = np.fmin(conversion / least, largest)  # a weight changes by no more than itself
    absolute_sum = np.fmin((tile.kept @ latent + scores) / least, largest) + conversion
    off = np.fmin((scores + weights.row_error * middle) / least, largest + middle) + conversion
    off = off + passes * absolute_sum
    stored = spec.intermediate.unit_roundoff
    after = gamma(tile.latent.shape[1], spec.accumulator_roundoff) * (1 + stored) + stored
    return (passes * absolute_sum + after * (middle + off) + spec.intermediate.half_subnormal_step) @ w_uv


def _lse_bound(tile, spec, error, weights):
    """Section 3: |ln Z| - ln(1 - gamma_(n + 2 rho + 2)(u)) + u (4|m| + 6|ln l| + 2|L|) + e_exp, rounded."""
    least, most = _row_sum_range(tile, spec, error, weights)
    spread = np.maximum(np.log(np.maximum(most, 1.0)), -np.log(np.minimum(least, 1.0)))
    # no sum of exponentials changes by more than its largest exponent does
    largest_eps = error.largest.max(axis=1, initial=0.0)
    limit = np.maximum(largest_eps, weights.sink_eps[:, 0]) if spec.denominator == "unrounded" else np.inf
    spread = np.where(largest_eps > LARGEST_EXPONENT, limit, spread)
    spread = spread - np.log1p(-np.minimum(_row_sum_roundings(tile, spec, error)[:, 0], 1.0))
    maximum, log = lse_magnitudes(tile)
    lse = np.abs(np.where(np.isfinite(tile.lse), tile.lse, 0.0))
    spread = spread + spec.softmax.unit_roundoff * (4 * maximum + 6 * log + 2 * lse + 3 * spread)
    spread = spread + spec.exp_error + tile.count[:, 0].astype(np.float64) * smallest_lost(spec)
    return written(spread, lse, spec.lse, spec)


def _row_sum_range(tile, spec, error, weights):
    """Section 3: sum_j p_j e^(-eps_j) and sum_j p_j e^(eps_j), between which Z lies, (R,) each."""
    growth, converted, least = weights.growth, weights.row_conversion, weights.least_row_sum
    in_row_sum = spec.denominator == "rounded"
    if error.level.any():  # equal errors move no output, but they move the lse
        growth = _exp(error.largest)
        converted = _row_conversion(weights.rounding, growth)
        least = (tile.weights / growth).sum(axis=1, keepdims=True) - (converted if in_row_sum else 0.0)
        least = np.maximum(least, 0.0) + weights.sink_share * np.exp(-weights.sink_eps)
    most = (tile.weights * growth).sum(axis=1) + (weights.sink_share * np.exp(weights.sink_eps))[:, 0]
    return least[:, 0], most + converted[:, 0] if in_row_sum else most


def sums_overflow(tile, spec):
    """Section 5: outputs whose sum over the keys may overflow, (R, E).

    Relative to an early, lower maximum it may be larger than in the end, but each weight is at most 1.
    """
    count = 1.25 if spec.normalises_first else tile.count.astype(np.float64)
    largest = np.abs(tile.value.exact).max(axis=0, initial=0.0)
    return count * largest * tile.keep_scale >= 0.5 * spec.accumulator.largest


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
    largest_key = np.where(tile.visible, tile.biased, -np.inf).max(axis=1, initial=-np.inf)
    largest_key = np.where(np.isfinite(largest_key), largest_key, tile.maximum)
    lse = np.where(np.isfinite(tile.lse), tile.lse, 0.0)
    return (
        np.maximum(np.abs(tile.maximum), np.abs(largest_key)),
        np.maximum(np.abs(lse - tile.maximum), np.abs(lse - largest_key)),
    )


def written(off, magnitude, form, spec):
    """Section 3: the error after rounding to the format of the result, which adds max(u_o |o^|, h_o)."""
    step = max(form.half_subnormal_step, spec.softmax.smallest_normal if spec.flushes_subnormals else 0.0)
    return off + np.maximum(form.unit_roundoff * (magnitude + off), step if form.unit_roundoff else 0.0)
