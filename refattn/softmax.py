"""Stable softmax and log-sum-exp over the keys; the one home of the rule for rows that see nothing."""

import numpy as np

from refattn.precise import DoubleDouble, add, normalised


def softmax(scores, sinks=None):
    """Exponentials relative to each row's largest score, their total, and the log-sum-exp.

    Parameters
    ----------
    scores : DoubleDouble, shape [R, S]
        Hidden entries are -inf.
    sinks : ndarray, shape [R], optional
        A logit that joins the total and has no value.

    Returns
    -------
    exponentials : ndarray, shape [R, S]
        exp(score - largest); divided by `total` they are the weights.
    total : ndarray, shape [R, 1]
        0 for a row that sees nothing.
    lse : ndarray, shape [R]
        Natural logarithm of the sum of exp(score) and exp(sink); -inf for a row that sees nothing.
    """
    high, low = scores
    if high.shape[-1] == 0:
        high, low = np.full((len(high), 1), -np.inf), np.zeros((len(high), 1))
    largest = np.argmax(high, axis=-1, keepdims=True)
    pivot = DoubleDouble(np.take_along_axis(high, largest, -1), np.take_along_axis(low, largest, -1))
    empty = pivot.high == -np.inf
    exponentials = np.exp((high - np.where(empty, 0.0, pivot.high)) + (low - pivot.low))
    # the pivot's own exponential is 1: summing the others apart keeps what log of the total would round away
    np.put_along_axis(exponentials, largest, 0.0, -1)
    others = exponentials.sum(axis=-1, keepdims=True)
    np.put_along_axis(exponentials, largest, np.where(empty, 0.0, np.exp(pivot.high - pivot.high)), -1)
    total = np.where(empty, 0.0, 1.0) + others
    lse = np.where(empty, -np.inf, pivot.high + (pivot.low + np.log1p(others)))
    if sinks is not None:
        total, lse = with_sink(sinks[:, None], pivot, others, total, lse)
    return exponentials[:, : scores.high.shape[-1]], total, lse[:, 0]


def with_sink(sink, pivot, others, total, lse):
    """Total and lse after the sink joins; relative to the largest score still, so that a high sink cannot coarsen the weights."""
    apart = normalised(*add(DoubleDouble(-pivot.high, -pivot.low), sink))  # sink - largest score
    fraction = np.where(np.isfinite(apart.high), apart.low, 0.0)
    share = np.where(sink == -np.inf, 0.0, np.exp(apart.high) * (1 + fraction))
    below = np.where(total == 0, 0.0, total * np.exp(-apart.high) * (1 - fraction))
    joined = np.where(apart.high > 0, sink + np.log1p(below), pivot.high + (pivot.low + np.log1p(others + share)))
    joined = np.where(total == 0, sink, np.where(sink == -np.inf, lse, joined))
    return np.where(total == 0, 0.0, total + share), joined
