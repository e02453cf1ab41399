"""How far a kernel's scores may be off, up to a shift of the whole row, which the softmax does not see.

Whatever multiplies a weight in both sums, that of the values and that of the row, counts as an error of the
score: the first product, scaling, softcap, ALiBi and bias, the subtraction of the maximum, the exponential,
and every rescaling by exp(old maximum - new maximum). Each function implements lines of the table in section
1 of `README.md` beside this file, which also explains the letters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from refattn.oracle.arithmetic.formats import all_held
from refattn.oracle.bounds.level_rows import level_rows
from refattn.oracle.bounds.operands import chain, gamma, smallest_lost
from refattn.oracle.bounds.tile import Tile

# Mean square over the square of the range. A rounding: a third, times the mean square of (power of two
# below x) / x, about one half. The error of a function: a third, anything in its range.
ROUNDING_VARIANCE = 0.17
FUNCTION_VARIANCE = 1.0 / 3.0
EQUAL_PRODUCTS = 8.0  # products this many unit roundoffs apart lose different remainders
SECOND_ORDER = 1e-8  # variance of a score from which its mean effect on the weight counts


@dataclass
class ScoreError:
    """Shapes: R rows, S keys; 0 where hidden."""

    # (R, S): eps_j: rigorous bound of abs(log(kernel's weight / exact weight)) before normalisation, up to a
    # factor common to the row
    largest: np.ndarray
    # (R, S): sum of squares of the ranges of its independent roundings and function errors
    square: np.ndarray
    variance: np.ndarray  # (R, S): what that sum of squares amounts to in the mean
    # (R, S) each: errors of one sign pattern for a whole row, each a bound times a direction: the
    # rounding of a constant (scale, log2 e, slope) and the truncation of the accumulator shift all scores of
    # a row in proportion
    common: list
    # (R, 1): times the running maximum rises: in the order of the keys or the reverse, whichever is more;
    # and rho, the most in any order
    rises: np.ndarray
    # (R, 1): sum of squares of the shares of the row that each of these rises rescales by one inexact factor
    rescaled: np.ndarray
    most_rises: np.ndarray
    # (R, 1) of bool: all visible keys have the same error: it moves the lse and not the output
    # (`level_rows.py`)
    level: np.ndarray
    # (R,): False where an intermediate may leave the range of its format, so that nothing can be said
    claimed: np.ndarray


@dataclass
class _Products:
    """What the operands of the first product say about it, (R, S) each, or 0.0 where they are exact."""

    magnitudes: np.ndarray  # sum |q| |k|, before the scale
    squares: np.ndarray  # sum (scale q)^2 k^2
    input_error: np.ndarray | float  # |scale| (dq |k| + |q| dk + dq dk)
    input_square: np.ndarray | float  # sum of squares of the single roundings in it


@dataclass
class _Running:
    """The sums of section 1 over the steps that a score has passed so far, (R, S) each or 0.0."""

    largest: np.ndarray | float  # eps_j
    square: np.ndarray | float  # squares of roundings
    proportional: np.ndarray | float  # errors in proportion to the score, of one sign for a row
    function_square: np.ndarray | float = 0.0  # squares of the errors of tanh and exp
    separate: list = field(default_factory=list)  # errors in proportion to something else


@dataclass
class _Rescalings:
    """How often the running maximum of blocks of keys rises; the first three (R, 1) as in `ScoreError`."""

    rises: np.ndarray
    rescaled: np.ndarray
    most_rises: np.ndarray
    # (R, S) rescalings that a key still passes, in the order with more of them
    still_passed: np.ndarray | None


def score_error(tile: Tile, spec) -> ScoreError:
    """Section 1: eps_j is the sum of what each step contributes; so are the squares and common errors."""
    products = _products(tile)
    running = _first_product(tile, spec, products)
    if tile.softcap is not None:
        _add_softcap(tile, spec, running)
    _add_alibi_and_bias(tile, spec, running)
    rescalings = _rescalings(tile, spec)
    _add_exponential(tile, spec, running, rescalings)

    only = lambda part: tile.hide(
        part if np.shape(part) == tile.drop.shape else np.zeros_like(tile.drop) + part
    )
    roundings, functions = running.square, running.function_square
    variance = ROUNDING_VARIANCE * roundings
    variance += FUNCTION_VARIANCE * functions
    variance = only(variance)
    common = [only(part) for part in [running.proportional, *running.separate]]
    if variance.max(initial=0.0) > SECOND_ORDER:
        common.append(0.5 * variance)  # the mean of exp(delta) is 1 + variance / 2
    return ScoreError(
        largest=only(running.largest),
        square=only(roundings + functions),
        variance=variance,
        common=common,
        rises=rescalings.rises,
        rescaled=rescalings.rescaled,
        most_rises=rescalings.most_rises,
        level=level_rows(tile, spec, products.magnitudes),
        claimed=_in_range(tile, spec, products.magnitudes),
    )


def _products(tile) -> _Products:
    """Lines "first product" and "inputs rounded": eta_j / |scale|, and |scale| (dq |k| + |q| dk + dq dk)."""
    q, k, scale = tile.q.magnitude, tile.k.magnitude, tile.scale
    magnitudes = q @ k.T
    scaled_square = (scale * tile.q.exact) ** 2
    squares = scaled_square @ tile.k.square.T
    error, error_square = 0.0, 0.0
    if tile.query.largest_error is not None:
        error = error + scale * (tile.query.largest_error @ k.T)
        error_square = error_square + (scale * tile.query.typical_error) ** 2 @ tile.k.square.T
        q = q + tile.query.largest_error
    if tile.key.largest_error is not None:
        error = error + scale * (q @ tile.key.largest_error.T)
        error_square = error_square + scaled_square @ (tile.key.typical_error**2).T
    return _Products(magnitudes, squares, error, error_square)


def _equal_products(tile, squares, x2, u_dot):
    """Where all products of a score are so nearly equal that they lose the same remainders, (R, S) of bool.

    float32 does not tell to a few roundoffs; what it cannot exclude is looked at in float64.
    """
    dim, nearly = tile.head_dim, max((EQUAL_PRODUCTS * u_dot) ** 2, 1e-14)
    if tile.dtype == np.float64:
        return dim * squares - x2 < nearly * x2
    equal = dim * squares < (1.0 + max(nearly, 1e-4)) * x2
    for row in np.flatnonzero(equal.any(axis=1)):
        keys = np.flatnonzero(equal[row])
        products = tile.scale * tile.query.exact[row] * tile.key.exact[keys]
        total = products.sum(axis=1) ** 2
        equal[row, keys] = dim * (products**2).sum(axis=1) - total < nearly * total
    return equal


def _first_product(tile, spec, products) -> _Running:
    """Lines "first product": (gamma_D(u_a) + 3u) eta_j; "inputs rounded"; "stored scores": u_S |x| + h_S
    twice, before the scale and after it."""
    u, u_dot, u_store = spec.softmax.unit_roundoff, spec.accumulator_roundoff, spec.score.unit_roundoff
    h_store = spec.score.half_subnormal_step
    dim, x2 = tile.head_dim, tile.scores * tile.scores
    largest_query, largest_key = (float(side.magnitude.max(initial=0.0)) for side in (tile.q, tile.k))
    tiny = smallest_lost(spec) * (1.0 + largest_query + largest_key)  # also of a flushed operand
    exact = np.ndim(products.input_error) == 0
    steps = gamma(dim, u_dot) + 3 * u
    largest = (steps * tile.scale) * products.magnitudes
    largest += (dim + 2) * tiny * max(tile.scale, 1.0)
    if not exact:
        largest += (1.0 + steps) * products.input_error
    if u_store:
        largest = largest + 2 * u_store * (np.abs(tile.scores) + largest) + (1.0 + tile.scale) * h_store

    additions = chain(dim, spec.sum_block)
    equal = _equal_products(tile, products.squares, x2, u_dot)
    square = (0.5 * u_dot**2 * additions) * products.squares
    if equal.any():
        square += equal * (0.5 * (additions * u_dot) ** 2 * x2)
    x2 *= u_dot**2 * additions / 3 + 2 * (u**2 + u_store**2)
    scaled = tile.scale * h_store
    x2 += scaled * scaled + h_store * h_store
    square += x2
    if not exact:
        square += products.input_square

    systematic = 3 * u + (additions * u_dot if spec.truncates else 0.0)
    if tile.query.largest_error is not None:
        # one rounding of the query reaches all keys; its mean direction is that of the scores
        size = np.linalg.norm(tile.query.exact, axis=1, keepdims=True)
        off = np.linalg.norm(tile.query.typical_error, axis=1, keepdims=True)
        systematic = systematic + tile.per_row(off / np.where(size == 0, 1.0, size))
    return _Running(largest, square, systematic * tile.scores)


def _add_softcap(tile, spec, running):
    """Line "softcap": sech^2((|x| - dx)+ / cap) dx, then e_tanh |y| and the roundings around it.

    dx is the error of x so far and y = cap tanh(x / cap).
    """
    u, u_store, cap = spec.softmax.unit_roundoff, spec.score.unit_roundoff, tile.softcap
    h_store = spec.score.half_subnormal_step
    x, y = np.abs(tile.scores), np.abs(tile.capped)
    dx = running.largest + (2 * u + u_store) * (x + running.largest) + cap * h_store
    steepest = _sech2(np.maximum(x - dx, 0.0) / cap)
    passed = np.minimum(steepest * dx, cap + y)
    largest = passed + spec.tanh_error * (y + passed)
    running.largest = largest + (2 * u + 2 * u_store) * (y + largest) + (cap + 1.0) * h_store

    slope = _sech2(x / cap)
    stored = cap * h_store
    square = slope**2 * (running.square + (2 * u**2 + u_store**2) * x**2 + stored * stored)
    running.square = square + (2 * u**2 + 2 * u_store**2) * y**2 + (stored * stored + h_store * h_store)
    running.function_square = spec.tanh_error**2 * tile.capped**2
    # Where tanh hardly bends, a stored x / cap rounds back to itself: all scores lose the bend together.
    bend = np.sign(tile.capped) * np.minimum(
        np.abs(tile.scores - tile.capped), u_store * np.abs(tile.capped)
    )
    running.proportional = slope * running.proportional + spec.tanh_error * tile.capped + bend


def _sech2(x):
    return 1.0 / np.cosh(np.minimum(x, 350.0)) ** 2


def _add_alibi_and_bias(tile, spec, running):
    """Lines "ALiBi": 3u |slope distance|; "bias": (2u + u_in) |b|; "each addition": (u + u_S) magnitudes."""
    u, u_store = spec.softmax.unit_roundoff, spec.score.unit_roundoff
    h_store = spec.score.half_subnormal_step
    magnitudes, additions = np.abs(tile.capped), 0
    if tile.alibi is not None:
        running.largest = running.largest + 3 * u * tile.alibi
        running.square = running.square + 2 * u**2 * tile.alibi**2
        running.separate.append(2 * u * tile.alibi)
        magnitudes, additions = magnitudes + tile.alibi, additions + 1
    if tile.bias is not None:
        u_in = 0.0 if all_held(tile.bias, spec.input) else spec.input.unit_roundoff
        running.largest = running.largest + (2 * u + u_in) * tile.bias
        running.square = running.square + (2 * u**2 + u_in**2) * tile.bias**2
        magnitudes, additions = magnitudes + tile.bias, additions + 1
    change_of_base = 2 * u * tile.biased
    if not additions:
        running.proportional = running.proportional + change_of_base
        return
    for _ in range(additions):
        running.largest = running.largest + (u + u_store) * (magnitudes + running.largest) + h_store
    squares = np.abs(tile.biased) ** 2 + (magnitudes**2 if additions > 1 else 0.0)
    running.square = running.square + additions * ((u**2 + u_store**2) * squares + h_store**2)
    running.separate.append(change_of_base)


def _add_exponential(tile, spec, running, rescalings):
    """Lines "subtraction of the maximum": 2u |s_j| + 3u (m - s_j); "exponential": e_exp; "online rescaling":
    rho (e_exp + 2u); "joined splits": 8u (|s_j| + (m - s_j) + 1) + e_exp.
    """
    u, score = spec.softmax.unit_roundoff, np.abs(tile.biased)
    e_exp = -math.log1p(-spec.exp_error)
    largest = tile.hide(running.largest)
    # 3u of the drop, which grows by the error of this score and by how far errors may raise the maximum
    top = (largest - tile.drop).max(axis=1, keepdims=True, initial=0.0).astype(np.float64)
    of_row = 3 * u * top + e_exp + rescalings.most_rises * (e_exp + 2 * u)
    of_score, of_drop = 2 * u, 3 * u
    if spec.splits > 1:  # weights exp(lse of the split - lse), each lse rounded
        of_row = of_row + 8 * u * (top + 1.0) + e_exp
        of_score, of_drop = of_score + 8 * u, of_drop + 8 * u
    largest = (1.0 + of_drop) * largest
    largest += of_score * score
    largest += of_drop * tile.drop
    largest += tile.per_row(of_row)
    running.largest = largest
    score *= score
    score *= 2 * u**2
    score += running.square
    drop2 = tile.drop * tile.drop
    drop2 *= 3 * u**2
    score += drop2
    score += tile.per_row(2 * rescalings.rises * u**2)
    running.square = score
    running.function_square = running.function_square + tile.per_row(
        (1 + rescalings.rises) * spec.exp_error**2
    )
    # an exponential that always errs to one side does so at each of them
    if rescalings.still_passed is not None:
        running.separate.append(spec.exp_error * rescalings.still_passed)


def _rescalings(tile, spec) -> _Rescalings:
    """Line "online rescaling": rho, the most blocks in which the maximum rises, and what each rescales."""
    rows, keys = tile.biased.shape
    if spec.block_size is None or not keys:
        return _Rescalings(*np.zeros((3, rows, 1)), None)
    starts = np.arange(0, keys, spec.block_size)
    seen = tile.biased if tile.edge.start >= keys else tile.hide(tile.biased.copy(), -np.inf)
    blocks = np.maximum.reduceat(seen, starts, axis=1)
    # the kernel's blocks may start elsewhere, or at a sink
    most = (blocks > -np.inf).sum(axis=1, keepdims=True) + 1
    shares = np.add.reduceat(tile.weights, starts, axis=1, dtype=np.float64)
    counts, rescaled, still_passed = zip(
        _rises(blocks, shares), _rises(blocks[:, ::-1], shares[:, ::-1]), strict=True
    )
    passed = np.where(counts[0] >= counts[1], still_passed[0], still_passed[1][:, ::-1])
    passed = passed.astype(tile.dtype)
    passed = np.repeat(passed, np.diff([*starts, keys]), axis=1) if passed.any() else None
    return _Rescalings(np.maximum(*counts) + 1.0, np.maximum(*rescaled), most.astype(np.float64), passed)


def _rises(blocks, shares):
    """Of blocks in the order they come: rises of the running maximum, (R, 1), the sum of squared shares of
    the row that these rescale, (R, 1), and the rescalings that each block still passes.
    """
    running = np.maximum.accumulate(blocks, axis=1)
    rise = (running[:, 1:] > running[:, :-1]) & (running[:, :-1] > -np.inf)
    rescaled = (rise * np.cumsum(shares, axis=1)[:, :-1] ** 2).sum(axis=1, keepdims=True)
    after = np.cumsum(rise[:, ::-1], axis=1)[:, ::-1]
    still_passed = np.concatenate([after, np.zeros((len(blocks), 1), after.dtype)], axis=1)
    return rise.sum(axis=1, keepdims=True), rescaled, still_passed


def _in_range(tile, spec, magnitudes):
    """Section 5: rows of whose intermediates none can overflow, (R,)."""
    return products_fit(tile, spec, magnitudes) & (np.abs(tile.maximum) < 0.5 * spec.softmax.largest)


def products_fit(tile, spec, magnitudes):
    """Section 5: rows whose products, and scores where they are stored, cannot overflow, (R,).

    `magnitudes` is sum |q||k|, (R, S): the scale may be applied after the product. A key that a bias of -inf
    hides has its product formed like any other, and inf - inf is NaN.
    """
    formed = tile.visible if tile.hidden_by_bias is None else tile.visible | tile.hidden_by_bias
    limit = 0.5 * spec.accumulator.largest
    products = max(tile.scale, 1.0) * magnitudes
    fits = products.max(axis=1, initial=0.0) < limit
    if not fits.all():
        fits = np.where(formed, products, 0.0).max(axis=1, initial=0.0) < limit
    if spec.score.unit_roundoff:
        scores = np.where(formed, max(tile.scale, 1.0) * np.abs(tile.query.exact @ tile.key.exact.T), 0.0)
        scores = np.maximum(scores, np.abs(tile.biased)) + (0.0 if tile.bias is None else tile.bias)
        fits &= scores.max(axis=1, initial=0.0) * (1 + 4 * spec.score.unit_roundoff) < spec.score.largest
    return fits
