"""Stable softmax and log-sum-exp over the keys; the one home of the rule for rows that see nothing."""

import numpy as np

from refattn.precise import DoubleDouble, sum_last


def softmax(scores, sinks=None):
    """Exponentials relative to each row's largest score, their total, and the log-sum-exp.

    Parameters
    ----------
    scores : DoubleDouble, shape [..., T, S]
        Hidden entries are -inf.
    sinks : ndarray, shape broadcasting to [..., T, 1], optional
        A logit that joins the total and has no value.

    Returns
    -------
    exponentials : ndarray, shape [..., T, S]
        exp(score - largest); divided by `total` they are the weights.
    total : ndarray, shape [..., T, 1]
        0 for a row that sees nothing.
    lse : ndarray, shape [..., T]
        Natural logarithm of the sum of exp(score); -inf for a row that sees nothing.
    """
    high, low = scores
    num_keys = high.shape[-1]
    if sinks is not None:
        column = np.broadcast_to(sinks, (*high.shape[:-1], 1))
        high, low = np.concatenate([high, column], axis=-1), np.concatenate([low, np.zeros_like(column)], axis=-1)
    largest = np.argmax(high, axis=-1, keepdims=True)
    pivot = DoubleDouble(np.take_along_axis(high, largest, -1), np.take_along_axis(low, largest, -1))
    empty = pivot.high == -np.inf
    exponentials = np.exp((high - np.where(empty, 0.0, pivot.high)) + (low - pivot.low))
    total = sum_last(exponentials)
    # exp(0) = 1 is the pivot's own share: log1p of the others keeps what log of the total would round away
    lse = pivot.high + (pivot.low + np.log1p(np.where(empty, 0.0, (total.high - 1) + total.low)))
    return exponentials[..., :num_keys], total.high + total.low, lse[..., 0]
