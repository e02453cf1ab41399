"""What converting the weights to their format does to the output (section 4): errors that are independent,
and those of weights that are equal, known exactly, or flushed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refattn.oracle.arithmetic.formats import round_to
from refattn.oracle.bounds.errors import Errors
from refattn.oracle.bounds.level_rows import level_conversion
from refattn.oracle.bounds.repeated_keys import sum_of_squares
from refattn.oracle.bounds.ties import SPREAD
from refattn.oracle.bounds.tile_sums import row_sums, times

# deviations of independent roundings beyond which the roundings of the exact weights are taken for what they
# are
ALIKE = 3.0


@dataclass
class Conversion:
    """Converting the weights: square sum, linear part and variance, (R, E), and of the linear part that of
    equal weights, `tied`; relative to each weight, (R, S), the square of the step of the format, and the
    rounding of the exact weights, -1 where they are flushed, and its square.
    """

    square: np.ndarray
    linear: np.ndarray
    variance: np.ndarray
    tied: np.ndarray
    step_square: np.ndarray
    exact: np.ndarray
    exact_square: np.ndarray


def converted_weights(tile, spec, rounding, repeats, ties, output, level) -> Conversion:
    """Weights: u_P^2 sum_j p_j^2 v_j^2, and linearly those that are equal, known exactly, or flushed."""
    p = tile.weights
    stored = (p if spec.normalises_first else tile.exponentials) * spec.weight_scale
    there = stored >= spec.weight.half_subnormal_step
    flushed = tile.visible & ~there
    # what is a power of two but for its last digits, as the weight of the row maximum, loses next to nothing
    step = spec.weight.step(stored * (1.0 - 2.0**-20))
    step /= stored
    step *= step
    exact = _rounding_of(stored if tile.keep_scale == 1.0 else stored * tile.keep_scale, spec.weight)
    if not there.all():
        step, exact = (np.where(there, part, tile.dtype.type(0.0)) for part in (step, exact))
    exact_square = exact * exact
    errors = _independent_conversions(tile, spec, rounding, step, repeats, ties, output)
    tied = errors.linear
    errors = _with_exact_roundings(tile, spec, exact, exact_square, errors, output)
    if level.any():  # one number converted for all keys, in proportion to the result
        times = 1.0 if spec.denominator == "unrounded" else 2.0 * tile.dropout
        same = times * level_conversion(tile, rounding) * np.abs(output)
        parts = ((0.0, errors.square), (same, errors.linear), (same**2 / 3.0, errors.variance))
        errors = Errors(*(np.where(level, of_level, other) for of_level, other in parts))
        tied = np.where(level, same, tied)
    if flushed.any():
        for part in _flushed_weights(tile, spec, flushed, repeats, output):
            errors = errors + part
        exact = np.where(flushed, tile.dtype.type(-1.0), exact)
        exact_square = exact * exact
    return Conversion(errors.square, errors.linear, errors.variance, tied, step, exact, exact_square)


def _independent_conversions(tile, spec, rounding, step_square, repeats, ties, output) -> Errors:
    """Conversions of weights that differ, and of equal ones, which round alike: u_P times their share.

    When the row sum is taken before the conversion, weights within a few steps of each other move the row by
    up to u times itself; equal weights of different keys, by up to u times their share of sum p |v|.
    """
    p, kept, value, magnitude = tile.weights, tile.kept, tile.v, np.abs(output)
    u = spec.weight.unit_roundoff
    both = (output, p) if spec.denominator == "rounded" and not tile.dropout else ()
    if rounding.relative is not None and not repeats and not both:
        relative, square = tile.dtype.type(u), u**2 * tile.squares
    else:
        relative = rounding.each / np.where(p > 0, p, tile.dtype.type(1.0))
        square = sum_of_squares(kept, relative**2, value, repeats, *both)
    variance = sum_of_squares(kept, step_square, value, repeats, *both) / 12.0
    if both:
        return Errors(square, np.zeros_like(magnitude), variance)
    if spec.denominator == "rounded":
        # scaled up before they are converted, the weights of numerator and row sum round apart
        square = square + row_sums(p * p, relative * relative * np.ones_like(p)) * output**2
        variance = variance + row_sums(p * p, step_square) / 12.0 * output**2
        return Errors(square, 2.0 * u * ties.share * magnitude, variance)
    whole = np.maximum(tile.whole, np.finfo(np.float64).tiny)
    mean = row_sums(p, tile.drop) / whole
    apart = tile.drop - mean.astype(tile.dtype)
    spread = np.sqrt(row_sums(p, apart * apart) / whole)
    linear = u * np.where(spread < SPREAD * u, 1.0, ties.share) * magnitude
    if ties.share.any():
        linear = np.maximum(linear, u * ties.share * tile.absolute_sum)
    return Errors(square, linear, variance + linear**2 / 3.0)


def _with_exact_roundings(tile, spec, exact, exact_square, errors, output) -> Errors:
    """The roundings of the exact weights, where their joint effect exceeds that of independent ones.

    They are what weights share that lie close together, or are a few steps of the subnormal range large.
    """
    p, kept, value = tile.weights, tile.kept, tile.v
    both = (output, p) if spec.denominator == "rounded" and not tile.dropout else ()
    joint = times(kept * exact, value.exact) - (row_sums(p, exact) * output if both else 0.0)
    variance = np.maximum(errors.variance, sum_of_squares(kept, exact_square, value, [], *both))
    shared = joint**2 > ALIKE**2 * variance
    # columns share them, and rows where biases or positions give the same few weights: the mean square over
    # a row's columns says so
    ratio = np.where(shared | (variance <= 0), 1.0, joint**2 / np.where(variance > 0, variance, 1.0))
    ratio = ratio.sum(axis=1, keepdims=True) / max(output.shape[1], 1)
    linear = np.maximum(errors.linear, np.where(shared, np.abs(joint), 0.0))
    return Errors(errors.square, linear, np.where(shared, joint**2, variance * np.maximum(ratio, 1.0)))


def _flushed_weights(tile, spec, flushed, repeats, output):
    """Weights below the smallest number are lost, one part of the errors after the other.

    With a running maximum those relative to an early, lower one survive: some are lost, and others do not
    cancel them.
    """
    p, kept, value = tile.weights, tile.kept, tile.v
    rounded = spec.denominator == "rounded"
    lost = times(kept * flushed, value.exact)
    if rounded:
        lost = lost - row_sums(p, flushed) * output
    yield Errors(0.0, np.abs(lost), lost**2)
    if spec.block_size is not None:
        both = (output, p) if rounded else ()
        yield Errors(0.0, 0.0, sum_of_squares(kept, flushed.astype(tile.dtype), value, repeats, *both))


def _rounding_of(stored, form):
    """Relative error of converting numbers to a format; 0 where they are 0 or beyond its range."""
    with np.errstate(all="ignore"):
        error = round_to(stored, form)
        error -= stored
        error /= stored
    if not np.abs(error).max(initial=0.0) <= 1.0:
        np.copyto(error, 0.0, where=~(np.abs(error) <= 1.0))
    return error
