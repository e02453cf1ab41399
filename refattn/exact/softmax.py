"""Stable softmax and log-sum-exp over the keys; the one home of the rule for rows that see nothing."""

import numpy as np

from refattn.exact.precise import DoubleDouble, add, normalised, sum_last

SINK_FAR_ABOVE = 600.0  # its exponential is near the end of the range of float64
NOTHING_LEFT = 2000.0  # exp(-2000) times the largest float64 is far below the smallest
LN2, LN2_LOW = (
    float.fromhex("0x1.62e42fefa0000p-1"),
    float.fromhex("0x1.cf79abc9e3b3ap-40"),
)  # their sum is log(2); multiples of the first are exact


def softmax(scores, sinks=None):
    """Exponentials [R, S] relative to each row's largest score, their total, power, and the log-sum-exp
    [R]. Hidden scores, of a double-double [R, S], are -inf; a sink of `sinks` [R] joins the total and
    has no value.

    The exponentials divided by `total` and 2**`power` are the weights. `total`, a double-double [R, 1],
    is 0 for a row that sees nothing, whose lse is -inf. `power`, [R, 1] or 0, is there for a sink far
    above the scores, which would make the total infinite.
    """
    high, low = scores
    if high.shape[-1] == 0:
        high, low = np.full((len(high), 1), -np.inf), np.zeros((len(high), 1))
    # leading digits cancelled: high alone no longer orders the scores
    if not -1 < low.min(initial=0.0) <= low.max(initial=0.0) < 1:
        high, low = normalised(high, low)
        largest = largest_score(high, low)
    else:
        largest = np.argmax(high, axis=-1, keepdims=True)
    pivot = DoubleDouble(np.take_along_axis(high, largest, -1), np.take_along_axis(low, largest, -1))
    empty = pivot.high == -np.inf
    # 0, and NaN where the largest score is not a number or +inf
    itself = np.where(empty, 0.0, pivot.high - pivot.high)
    exponentials = exp_apart(DoubleDouble(high, low), pivot, empty)
    # the pivot's own exponential is 1: summing the others apart keeps what log of the total would round away
    np.put_along_axis(exponentials, largest, 0.0, -1)
    others = sum_last(exponentials)
    share = np.where(empty, 0.0, 1.0 + itself)
    np.put_along_axis(exponentials, largest, share, -1)
    total = normalised(*add(others, share))
    lse = np.where(empty, -np.inf, pivot.high + (itself + pivot.low + np.log1p(others.high + others.low)))
    power = 0
    if sinks is not None:
        total, power, lse = with_sink(sinks[:, None], pivot, others, total, lse)
    return exponentials[:, : scores.high.shape[-1]], total, power, lse[:, 0]


def largest_score(high, low):
    """Position of each row's largest score, [R, 1]: `low` decides between equal `high`, whose step
    may exceed any exponent that exp can take.
    """
    first = np.argmax(high, axis=-1, keepdims=True)
    top = np.take_along_axis(high, first, -1)
    last = np.argmax(np.where(high == top, low, -np.inf), axis=-1, keepdims=True)
    return np.where(np.isnan(top), first, last)


def exp_apart(scores, pivot, empty):
    """exp(scores - pivot), with the digits that rounding the difference would drop: a far lower score
    may have all the value.
    """
    apart, below = add(scores, -np.where(empty, 0.0, pivot.high))
    below -= pivot.low
    if not np.isfinite(below).all():
        # a difference near the end of the range, whose digits do not matter
        below = np.where(np.isfinite(below), below, 0.0)
    difference = apart + below
    apart -= difference
    apart += below  # what rounding the difference dropped
    exponentials = np.exp(difference, out=difference)
    apart *= exponentials  # exp(d + dropped) = exp(d) (1 + dropped)
    exponentials += apart if np.isfinite(apart).all() else np.where(exponentials > 0, apart, 0.0)
    return exponentials


def with_sink(sink, pivot, others, total, lse):
    """Total, its power of two and lse after the sink joins; relative to the largest score still, so
    that a high sink cannot coarsen the weights.
    """
    apart = add(DoubleDouble(-pivot.high, -pivot.low), sink)  # sink - largest score
    apart, fraction = normalised(apart.high, np.where(np.isfinite(apart.high), apart.low, 0.0))
    none, empty = sink == -np.inf, total.high == 0
    power = np.where(~empty & (apart > SINK_FAR_ABOVE), np.rint(np.minimum(apart, NOTHING_LEFT) / LN2), 0.0)
    rest = np.where(power > 0, (np.minimum(apart, NOTHING_LEFT) - power * LN2) - power * LN2_LOW, apart)
    share = np.where(none, 0.0, np.exp(rest) * (1 + np.where(np.abs(apart) < NOTHING_LEFT, fraction, 0.0)))
    power = power.astype(np.int64)
    scores_below_sink = total.high * np.exp(-apart) * (1 - fraction)
    scores_above_sink = others.high + (others.low + share)
    joined = np.where(
        apart > 0, sink + np.log1p(scores_below_sink), pivot.high + (pivot.low + np.log1p(scores_above_sink))
    )
    total = add(DoubleDouble(*(np.ldexp(part, -power) for part in total)), np.where(empty, 0.0, share))
    total = normalised(total.high, np.where(np.isfinite(total.high), total.low, 0.0))
    return total, power, np.where(empty, sink, np.where(none, lse, joined))
