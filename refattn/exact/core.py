"""Attention, top to bottom: scores, softcap, bias, hide, softmax, output.

    score_ij  = scale * q_i . k_j
    capped_ij = softcap * tanh(score_ij / softcap)
    biased_ij = capped_ij - slope * |position_i - j| + bias_ij,  -inf where row i may not see key j
    lse_i     = log sum_j exp(biased_ij)                          (a sink logit joins this sum)
    weight_ij = exp(biased_ij - lse_i)
    output_i  = sum_j weight_ij v_j

`refattn/textbook.py` is the same computation as a first lesson, plain NumPy on whole arrays. What this
file adds, and why:

- Exactness. A weight is exp of a difference of scores, so rounding a score of 1e6 leaves the weight ten
  digits.
  Scores and sums are therefore `DoubleDouble`, unevaluated sums of two float64.
- Memory. One call takes a block of rows, and `refattn/exact/solve.py` goes from block to block, so that
  the scores of
  all rows are never held at once.
- Hidden NaN. A weight of 0 times NaN is NaN. Values that are not finite are therefore kept apart and
  added to
  those rows alone that see them.

Vaswani et al. 2017, section 3.2.1, for the formula; Gemma 2 (Gemma Team 2024, section 2) for softcap;
Press et al. 2022, section 3, for ALiBi; Xiao et al. 2024, section 3.1, for sinks. One call is one block
of query rows, of any of the heads that share a key/value head. Axes: R rows of the block, S keys, D
head_dim, E v_head_dim.
"""

import math
from typing import NamedTuple

import numpy as np

from refattn.exact.precise import (
    DoubleDouble,
    Split,
    add,
    channel_scale,
    divide,
    long_double,
    matmul,
    multiply,
    normalised,
    power_of_two_above,
    product_of,
    scaled,
    split,
    sums_within_float64,
    within_float64,
)
from refattn.exact.softcap import softcap
from refattn.exact.softmax import softmax

# column scales are powers of 2**8, so that a hidden value of ordinary size changes no scale, nor so any bit
# of an output
COARSE = 8
LARGEST_SCALE_EXPONENT = 64  # products of numbers within range times such a scale stay far inside float64


class Values(NamedTuple):
    """Values ready to be weighted: value_jc = unit_jc * power_j * column_c, powers of two that keep
    large values from coarsening small ones.
    """

    unit: Split  # [S, E], elements at most 1
    power: np.ndarray  # [S]
    column: np.ndarray  # [E]
    # (key, elements) of the keys whose value is not finite, finite elements 0; elements that are not finite
    # are 0 elsewhere
    infinite: list

    def rows(self, first, last):
        infinite = [(key - first, value) for key, value in self.infinite if first <= key < last]
        return Values(self.unit.rows(first, last), self.power[first:last], self.column, infinite)


class Steps(NamedTuple):
    """What one block of rows computes; scores as `DoubleDouble`, hidden entries of `biased` are -inf."""

    scores: DoubleDouble  # [R, S]
    capped: DoubleDouble  # [R, S]
    biased: DoubleDouble  # [R, S]
    exponentials: np.ndarray  # [R, S], the weights times total and 2**power
    total: DoubleDouble  # [R, 1]
    power: np.ndarray | int  # [R, 1]
    lse: np.ndarray  # [R]
    output: DoubleDouble  # [R, E]


class ExactGroup:
    """The query heads that share a key/value head, prepared once; `attend` takes a block of their rows.

    query (G, T, D), key (S, D) and value (S, E) are double-doubles; slopes (G,) or None; narrow says that
    the three hold numbers of float32 or less, whose products and sums float64 holds.
    """

    block_scores = 2**18  # at a time: small enough to stay in cache, large enough for the BLAS

    def __init__(self, query, key, value, slopes, scale, narrow=False):
        query, key, self.slopes, self.scale = in_working_range(query, key, slopes, scale, narrow)
        if not (narrow or sums_within_float64(value.high)):
            value = long_double(value)
        channel = channel_scale(query.high, key.high)
        self.query, key = scaled(query, 1 / channel), scaled(key, channel)
        self.keys, self.values = prepare_keys(key), prepare_values(value)

    @staticmethod
    def projected(x, w):
        """x @ w^T as a double-double, of double-doubles [..., S, C] and [..., N, C]."""
        channel = channel_scale(w.high, x.high)
        w = scaled(w, 1 / channel)
        return normalised(
            *matmul(scaled(x, channel), split(DoubleDouble(*(part.swapaxes(-1, -2) for part in w))))
        )

    def attend(self, rows, first, last, *, cap, keep_scale, sinks, **per_score):
        """The `Steps` of these rows of every head over the keys [first, last). sinks is (G,); distance,
        bias, visible and keep broadcast to [G, T, S].
        """
        q = DoubleDouble(*(part[:, rows] for part in self.query))  # [G, T, D]
        shape = (*q.high.shape[:2], last - first)
        return attend(
            DoubleDouble(*(part.reshape(-1, part.shape[-1]) for part in q)),
            self.keys.columns(first, last),
            self.values.rows(first, last),
            scale=self.scale,
            cap=cap,
            keep_scale=keep_scale,
            slopes=None if self.slopes is None else np.repeat(self.slopes, shape[1]),
            sinks=None if sinks is None else np.repeat(sinks, shape[1]),
            **{name: in_rows(array, shape) for name, array in per_score.items()},
        )


def in_rows(array, shape):
    """An array that broadcasts to [G, T, S] as [R, S]."""
    return None if array is None else np.broadcast_to(array, shape).reshape(shape[0] * shape[1], shape[2])


def in_working_range(query, key, slopes, scale, narrow=False):
    """The same in float64 where no score can leave its range, a large power of two of the scale moved to
    the query; in long double elsewhere.
    """
    mantissa, power = scale, 0
    if abs(math.frexp(scale)[1]) > LARGEST_SCALE_EXPONENT:
        mantissa, power = math.frexp(scale)
    operands = [] if narrow and not power else [query.high, key.high]
    if within_float64(*operands, *([] if slopes is None else [slopes]), power=power):
        query = DoubleDouble(*(np.ldexp(part, power) for part in query)) if power else query
        return query, key, slopes, mantissa
    slopes = None if slopes is None else slopes.astype(np.longdouble)
    return long_double(query), long_double(key), slopes, scale


def prepare_keys(k):
    """DoubleDouble [S, D] -> Split [D, S]."""
    return split(DoubleDouble(k.high.T, k.low.T))


def prepare_values(v):
    """DoubleDouble [S, E] -> Values."""
    v, infinite = infinite_apart(v)
    num_keys, v_head_dim = v.high.shape
    if v.high.dtype == np.longdouble:
        return Values(split(v), np.ones(num_keys, np.longdouble), np.ones(v_head_dim), infinite)
    column = power_of_two_above(v.high, 0, COARSE)
    power = power_of_two_above(v.high / column, -1)
    unit = DoubleDouble(*(part / column / power[:, None] for part in v))
    return Values(split(unit, largest=1.0), power, column, infinite)


def infinite_apart(v):
    """DoubleDouble [S, E] with 0 for elements that are not finite, and those as in `Values.infinite`."""
    finite = np.isfinite(v.high)
    if finite.all():
        return v, []
    infinite = [
        (key, np.where(finite[key], 0.0, v.high[key])) for key in np.flatnonzero(~finite.all(axis=-1))
    ]
    return DoubleDouble(*(np.where(finite, part, 0.0) for part in v)), infinite


def attend(
    q,
    keys,
    values,
    *,
    scale,
    cap=None,
    slopes=None,
    distance=None,
    bias=None,
    visible=None,
    sinks=None,
    keep=None,
    keep_scale=1.0,
):
    """Attention of one block of rows: q is a double-double [R, D], keys a `Split` [D, S] of
    `prepare_keys`, values those of S keys from `prepare_values`. slopes and sinks are [R]; distance
    (|position - j|, given with slopes), bias, visible and keep are [R, S]. visible None: every key;
    bias has no -inf where visible.
    """
    scores = matmul(product_of(q, DoubleDouble(np.float64(scale), 0.0)), keys)  # [R, D] @ [D, S] -> [R, S]
    capped = scores if cap is None else softcap(scores, cap)
    biased = capped
    if slopes is not None:
        for part in whole_distance(distance):
            for term in multiply(part, slopes[:, None]):
                biased = add(biased, -term)
    if bias is not None:
        biased = add(biased, bias)
    biased = hide(biased, visible)
    exponentials, total, power, lse = softmax(biased, sinks)
    kept = exponentials if keep is None else np.where(keep, exponentials, 0.0)
    summed = weigh(kept, values)  # [R, S] @ [S, E] -> [R, E]
    output = divided(summed, total, power)
    for key, elements in values.infinite:
        add_infinite(
            output,
            elements,
            biased.high[:, key] != -np.inf
            if keep is None
            else keep[:, key] & (biased.high[:, key] != -np.inf),
        )
    if keep_scale != 1:
        output = product_of(output, DoubleDouble(np.float64(keep_scale), 0.0))
    return Steps(scores, capped, biased, exponentials, total, power, lse, output)


def whole_distance(distance):
    """Integers as the float64 numbers that add up to them: two where rows stand beyond 2**53, else one."""
    high = np.asarray(distance, dtype=np.float64)
    if high.max(initial=0.0) < 2.0**53:
        return (high,)
    return high, (distance - high.astype(np.int64)).astype(np.float64)


def hide(scores, visible):
    """-inf where not visible; the low part is dropped wherever the high part says it all, or is so
    large that the low one overflowed on the way.
    """
    high, low = scores
    if visible is not None:
        high = np.where(visible, high, -np.inf)
    finite = np.isfinite(high) & np.isfinite(low)
    return DoubleDouble(high, low if finite.all() else np.where(finite, low, 0.0))


def weigh(exponentials, values):
    """sum_j exponential_ij value_j over values that are finite, [R, S] x [S, E] -> [R, E]"""
    scaled = exponentials * values.power  # [R, S]
    summed = matmul(DoubleDouble(scaled, 0.0), values.unit)  # [R, S] @ [S, E] -> [R, E]
    return DoubleDouble(summed.high * values.column, summed.low * values.column)


def divided(summed, total, power=0):
    """summed / (total * 2**power)"""
    quotient = divide(summed, total)
    return DoubleDouble(*(np.ldexp(part, -power) for part in quotient)) if np.any(power) else quotient


def add_infinite(output, elements, here):
    """Add elements of a value that are not finite, 0 the others, to the rows that see it: exact
    weights are positive, however soon they underflow.
    """
    output.high[here] += elements
