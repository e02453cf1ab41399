"""How far a kernel's scores may be off, up to a shift that all keys of a row share (the softmax does not see shifts).

Everything that multiplies a weight and its share of the row sum alike counts as an error of the score: the first product, scaling, softcap,
ALiBi and bias, the subtraction of the maximum, the exponential, and every rescaling by exp(old maximum - new maximum). `README.md` in this
directory derives each line.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refattn.oracle.arithmetic.formats import round_to
from refattn.oracle.bounds.level_rows import level_rows
from refattn.oracle.bounds.operands import chain, gamma, smallest_lost
from refattn.oracle.bounds.row_blocks import Tile


# Mean square over the square of the range. A rounding: a third, times the mean of (power of two below x / x)^2, about one half. The error
# of a function: a third, anything in its range.
ROUNDING_VARIANCE = 0.17
FUNCTION_VARIANCE = 1.0 / 3.0
ALIKE = 8.0  # products this many unit roundoffs apart are not rounded alike any more
SECOND_ORDER = 1e-8  # variance of a score from which its mean effect on the weight counts


@dataclass
class ScoreError:
    """Shapes: R rows, S keys; 0 where hidden.

    Attributes
    ----------
    largest : ndarray (R, S)
        Rigorous bound of abs(log(kernel's weight / exact weight)) before normalisation, up to a common factor.
    square : ndarray (R, S)
        Sum of squares of the ranges of its independent roundings and function errors.
    variance : ndarray (R, S)
        What that sum of squares amounts to in the mean.
    common : list of ndarray (R, S)
        Errors of one sign pattern for a whole row, each a bound times a direction: the rounding of a constant (scale, log2 e, slope) and
        the truncation of the accumulator shift all scores of a row in proportion.
    rises, most_rises : ndarray (R, 1)
        Times the running maximum rises: in the order of the keys or the reverse, whichever is more; and at most, in any order.
    rescaled : ndarray (R, 1)
        Sum of squares of the shares of the row that each of these rises rescales by one inexact factor.
    level : ndarray (R, 1) of bool
        All visible keys have the same error: it moves the lse and not the output (`level_rows.py`).
    claimed : ndarray (R,) of bool
        False where an intermediate may leave the range of its format, so that nothing can be said.
    """

    largest: np.ndarray
    square: np.ndarray
    variance: np.ndarray
    common: list
    rises: np.ndarray
    rescaled: np.ndarray
    most_rises: np.ndarray
    level: np.ndarray
    claimed: np.ndarray


def score_error(tile: Tile, spec) -> ScoreError:
    u, u_dot, u_store = spec.softmax.unit_roundoff, spec.accumulator_roundoff, spec.score.unit_roundoff
    tiny = smallest_lost(spec)
    tiny = tiny * (1.0 + np.abs(tile.query.exact).max(initial=0.0) + np.abs(tile.key.exact).max(initial=0.0))  # also of a flushed operand
    dim = tile.head_dim
    unscaled, input_error, input_square, square_products = _products(tile)
    magnitude = tile.scale * unscaled

    # scale * q . k
    largest = (gamma(dim, u_dot) + 3 * u) * (magnitude + input_error) + input_error + (dim + 2) * tiny * max(tile.scale, 1.0)
    largest = largest + 2 * u_store * (np.abs(tile.scores) + largest)
    x2 = tile.scores**2
    additions = chain(dim, spec.sum_block)
    alike = dim * square_products - x2 < max((ALIKE * u_dot) ** 2, 1e-14) * x2
    products = u_dot**2 * additions * (0.5 * square_products + x2 / 3) + np.where(alike, 0.5 * (additions * u_dot) ** 2 * x2, 0.0)
    square = products + 2 * (u**2 + u_store**2) * x2 + input_square
    systematic = 3 * u + (additions * u_dot if spec.truncates else 0.0)
    if tile.query.largest_error is not None:  # one rounding of the query reaches all keys; its mean direction is that of the scores
        size = np.linalg.norm(tile.query.exact, axis=1, keepdims=True)
        systematic = systematic + np.linalg.norm(tile.query.typical_error, axis=1, keepdims=True) / np.where(size == 0, 1.0, size)
    common = systematic * tile.scores

    functions = 0.0
    if tile.softcap is not None:
        largest, square, common = _capped(tile, spec, largest, square, common)
        functions = spec.tanh_error**2 * tile.capped**2
        # Where tanh hardly bends, a stored x / cap rounds back to itself: the bend is lost for all scores alike.
        common = common + np.sign(tile.capped) * np.minimum(np.abs(tile.scores - tile.capped), u_store * np.abs(tile.capped))

    # ALiBi and bias: their own rounding, then one addition each
    terms = np.abs(tile.capped)
    separate = []
    added = 0
    if tile.alibi is not None:
        largest = largest + 3 * u * tile.alibi
        square = square + 2 * u**2 * tile.alibi**2
        terms = terms + tile.alibi
        separate.append(2 * u * tile.alibi)
        added += 1
    if tile.bias is not None:
        converted = 0.0 if _holds(spec.input, tile.bias) else spec.input.unit_roundoff
        largest = largest + (2 * u + converted) * tile.bias
        square = square + (2 * u**2 + converted**2) * tile.bias**2
        terms = terms + tile.bias
        added += 1
    if added:
        sums = np.abs(tile.biased)
        for _ in range(added):
            largest = largest + (u + u_store) * (terms + largest)
        square = square + added * (u**2 + u_store**2) * (sums**2 + (terms**2 if added > 1 else 0.0))
        separate.append(2 * u * tile.biased)
    else:
        common = common + 2 * u * tile.biased

    # exp(score - maximum), and the rescalings by which the maximum was reached
    largest = np.where(tile.visible, largest, 0.0)
    drop = tile.drop + largest + largest.max(axis=1, keepdims=True, initial=0.0)
    exp_error = -np.log1p(-spec.exp_error)
    rises, rescaled, most_rises, later = _rises(tile, spec)
    largest = largest + 2 * u * np.abs(tile.biased) + 3 * u * drop + exp_error + most_rises * (exp_error + 2 * u)
    square = square + u**2 * (2 * tile.biased**2 + 3 * tile.drop**2) + 2 * rises * u**2
    functions = functions + (1 + rises) * spec.exp_error**2
    if spec.splits > 1:  # weights exp(lse of the split - lse), each lse rounded
        largest = largest + 8 * u * (np.abs(tile.biased) + drop + 1.0) + exp_error

    claimed = _in_range(tile, spec, unscaled)
    hide = tile.visible
    square, variance = square + functions, ROUNDING_VARIANCE * square + FUNCTION_VARIANCE * functions
    square, variance = np.where(hide, square, 0.0), np.where(hide, variance, 0.0)
    if later is not None:  # an exponential that always errs to one side does so at every rescaling
        separate.append(spec.exp_error * later)
    common = [np.where(hide, part, 0.0) for part in [common, *separate]]
    if variance.max(initial=0.0) > SECOND_ORDER:
        common.append(0.5 * variance)  # the mean of exp(delta) is 1 + variance / 2
    return ScoreError(np.where(hide, largest, 0.0), square, variance, common, rises, rescaled, most_rises, level_rows(tile, spec, unscaled), claimed)


def _products(tile):
    """sum |q||k|, and times the scale: the effect of errors of q and k, its square sum, and sum q^2 k^2. (R, S)"""
    q, k, scale = np.abs(tile.query.exact), np.abs(tile.key.exact), tile.scale
    unscaled = q @ k.T
    squares = (scale * q) ** 2 @ (k**2).T
    error, error_square = 0.0, 0.0
    if tile.query.largest_error is not None:
        error = error + scale * (tile.query.largest_error @ k.T)
        error_square = error_square + (scale * tile.query.typical_error) ** 2 @ (k**2).T
        q = q + tile.query.largest_error
    if tile.key.largest_error is not None:
        error = error + scale * (q @ tile.key.largest_error.T)
        error_square = error_square + (scale * tile.query.exact) ** 2 @ (tile.key.typical_error**2).T
    return unscaled, error, error_square, squares


def _capped(tile, spec, largest, square, common):
    """Through cap * tanh(x / cap): an error of x shrinks by the largest slope in reach, the steps add their own."""
    u, u_store, cap = spec.softmax.unit_roundoff, spec.score.unit_roundoff, tile.softcap
    x, y = np.abs(tile.scores), np.abs(tile.capped)
    largest = largest + (2 * u + u_store) * (x + largest)
    nearest = np.maximum(x - largest, 0.0) / cap
    slope_in_reach = 1.0 / np.cosh(np.minimum(nearest, 350.0)) ** 2
    passed = np.minimum(slope_in_reach * largest, cap + y)
    bound = passed + spec.tanh_error * (y + passed)
    bound = bound + (2 * u + 2 * u_store) * (y + bound)
    slope = 1.0 / np.cosh(np.minimum(x / cap, 350.0)) ** 2
    square = slope**2 * (square + (2 * u**2 + u_store**2) * x**2) + (2 * u**2 + 2 * u_store**2) * y**2
    return bound, square, slope * common + spec.tanh_error * tile.capped


def _holds(target, x):
    """Whether every entry of x is a number of the format."""
    return target.unit_roundoff == 0.0 or target.name == "float64" or bool((round_to(x, target) == x).all())


def _rises(tile, spec):
    """Times the running maximum of blocks of keys rises, (R, 1): forward or backward, and at most. Between the two the sum of squared shares of
    the row that are rescaled, and last how often each key is rescaled in the order with more rises, (R, S); None where no key is."""
    rows, keys = tile.biased.shape
    if spec.block_size is None or not keys:
        return np.zeros((rows, 1)), np.zeros((rows, 1)), np.zeros((rows, 1)), None
    starts = np.arange(0, keys, spec.block_size)
    blocks = np.maximum.reduceat(np.where(tile.visible, tile.biased, -np.inf), starts, axis=1)
    most = (blocks > -np.inf).sum(axis=1, keepdims=True) + 1  # the kernel's blocks may start elsewhere, or at a sink
    shares = np.add.reduceat(tile.weights, starts, axis=1)
    counts, rescaled, later = [], [], []
    for order, share in ((blocks, shares), (blocks[:, ::-1], shares[:, ::-1])):
        running = np.maximum.accumulate(order, axis=1)
        rise = (running[:, 1:] > running[:, :-1]) & (running[:, :-1] > -np.inf)
        counts.append(rise.sum(axis=1, keepdims=True))
        rescaled.append((rise * np.cumsum(share, axis=1)[:, :-1] ** 2).sum(axis=1, keepdims=True))
        after = np.cumsum(rise[:, ::-1], axis=1)[:, ::-1]
        later.append(np.concatenate([after, np.zeros((rows, 1), after.dtype)], axis=1))
    often = np.where(counts[0] >= counts[1], later[0], later[1][:, ::-1])
    often = np.repeat(often, np.diff([*starts, keys]), axis=1) if often.any() else None
    return np.maximum(*counts) + 1.0, np.maximum(*rescaled), most.astype(np.float64), often


def _in_range(tile, spec, unscaled):
    """Rows of whose intermediates none can overflow, (R,)."""
    return products_fit(tile, spec, unscaled) & (np.abs(tile.maximum) < 0.5 * spec.softmax.largest)


def products_fit(tile, spec, unscaled):
    """Rows whose products, and scores where they are stored, cannot overflow, (R,). Products are taken before the scale, which a kernel may
    apply later.

    A key that a bias of -inf hides has its product formed like any other, and inf - inf is NaN.
    """
    formed = tile.visible if tile.barred is None else tile.visible | tile.barred
    products = np.where(formed, max(tile.scale, 1.0) * unscaled, 0.0)
    fits = products.max(axis=1, initial=0.0) < 0.5 * spec.accumulator.largest
    if spec.score.unit_roundoff:
        scores = np.where(formed, max(tile.scale, 1.0) * np.abs(tile.query.exact @ tile.key.exact.T), 0.0)
        scores = np.maximum(scores, np.abs(tile.biased)) + (0.0 if tile.bias is None else tile.bias)
        fits &= scores.max(axis=1, initial=0.0) * (1 + 4 * spec.score.unit_roundoff) < spec.score.largest
    return fits
