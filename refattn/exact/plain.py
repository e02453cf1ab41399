"""Attention in plain float64, a block of rows at a time: the arithmetic of `precision="float64"`.

The steps are those of `refattn.exact.core`, each rounded to float64: scores by one matrix product, softcap,
ALiBi, bias, hidden keys as -inf, the largest score of the row subtracted, exp, and a second matrix product
over the values, divided by the sum of the row. Values that are not finite are kept apart as there.

With u = 2**-53, over the n visible keys of a row (and its sink) the error is at most

    output      u (2 E + 2 R + 2 n + 16) sum_j weight_j |v_j|
    lse         u (E + R + n + 16 + 2 |lse| + M)

to first order in u, where E u bounds the error of a score,

    E = max_j (D + 13) |scale| sum_d |q_d k_jd| + 4 |slope distance_j| + |bias_j|,

R = max_j (largest score - score_j), at most 745 (exp is 0 below), and M = max_j |score_j|. The 13 are: the
scale and the query multiplied by it, one; softcap ten (argument, tanh within 8 u, product); two additions. A
weight has the error of its score, of the difference to the largest one, and 4 u of exp; sums of n positive
terms n u in any order, the division and dropout four. Higham 2002, "Accuracy and Stability of Numerical
Algorithms", section 3.1.

Where float64 leaves its range, the block or the whole group is computed by `refattn.exact.core` instead:
where inputs are so large or small that their products or sums do, and where a sink lies so far above the
scores that the weights do.
"""

import math
from functools import cached_property
from typing import NamedTuple

import numpy as np

from refattn.exact.core import ExactGroup, add_infinite, in_working_range, infinite_apart
from refattn.exact.precise import DoubleDouble, largest_finite, sums_within_float64, within_float64
from refattn.exact.softmax import SINK_FAR_ABOVE

UNIT_ROUNDOFF = 2.0**-53
CAPS_NOTHING = 2.0**28  # times the score: tanh(x) is x to float64, and score / cap might be subnormal


def score_error(head_dim, product, alibi=0.0, bias=0.0):
    """A bound of the error of scores whose parts, magnitudes added up in the product, are at most these."""
    return UNIT_ROUNDOFF * ((head_dim + 13) * product + 4 * alibi + bias)


class Results(NamedTuple):
    """What a block of rows gives, fields as in `refattn.exact.core.Steps`."""

    lse: np.ndarray  # [R]
    output: DoubleDouble  # [R, E], low parts 0


class PlainGroup:
    """`refattn.exact.core.ExactGroup` in plain float64.

    Blocks in which the error of a score might exceed `largest_score_error` are computed exactly.
    """

    block_scores = 2**19
    largest_score_error = math.inf

    def __init__(self, query, key, value, slopes, scale, narrow=False):
        self.operands = (query, key, value, slopes, scale, narrow)
        query, key, self.slopes, scale = in_working_range(query, key, slopes, scale, narrow)
        wide = np.longdouble in (query.high.dtype, value.high.dtype)
        self.within_range = not wide and (narrow or sums_within_float64(value.high))
        if self.within_range:
            self.query, self.key = query.high * scale, key.high
            finite, self.infinite = infinite_apart(value)
            self.value = finite.high

    @staticmethod
    def projected(x, w):
        """As `ExactGroup.projected`; the low parts are 0."""
        if not within_float64(x.high, w.high) or np.longdouble in (x.high.dtype, w.high.dtype):
            return ExactGroup.projected(x, w)
        product = x.high @ w.high.swapaxes(-1, -2)
        return DoubleDouble(product, np.broadcast_to(0.0, product.shape))

    @cached_property
    def exact(self):
        """The group in exact arithmetic, prepared when a block first needs it."""
        return ExactGroup(*self.operands)

    def attend(self, rows, first, last, **per_score):
        """As `ExactGroup.attend`; of the steps only `Results`."""
        results = None
        if self.within_range and self._score_error(**per_score) <= self.largest_score_error:
            results = self._attend(rows, first, last, **per_score)
        return self.exact.attend(rows, first, last, **per_score) if results is None else results

    @cached_property
    def largest_product(self):
        """A bound of scale * q . k for finite q and k."""
        return self.key.shape[-1] * float(largest_finite(self.query)) * float(largest_finite(self.key))

    def _score_error(self, *, distance, bias, **_):
        """A bound of the error of any score of a block; 0.0 where nobody asks."""
        if self.largest_score_error == math.inf:
            return 0.0
        alibi = (
            0.0
            if self.slopes is None
            else float(largest_finite(self.slopes)) * float(distance.max(initial=0))
        )
        added = 0.0 if bias is None else float(largest_finite(bias))
        return score_error(self.key.shape[-1], self.largest_product, alibi, added)

    def _attend(self, rows, first, last, *, cap, keep_scale, sinks, visible, keep, bias, distance):
        """`Results`, or None where a sink takes the weights out of the range of float64."""
        q = self.query[:, rows]  # [G, T, D]
        shape = (*q.shape[:2], last - first)
        flat = q.reshape(-1, q.shape[-1]) @ self.key[first:last].T  # [R, D] @ [D, S] -> [R, S]
        scores = flat.reshape(shape)  # the same memory
        if cap is not None:
            cap_scores(scores, cap)
        if self.slopes is not None:
            scores -= self.slopes[:, None, None] * distance
        if bias is not None:
            scores += bias
        if visible is not None:
            hide(scores, visible)
        infinite = [
            (flat[:, key - first] != -np.inf, key - first, elements)
            for key, elements in self.infinite
            if first <= key < last
        ]
        largest = scores.max(axis=-1, initial=-np.inf)  # [G, T]
        sink = np.float64(-np.inf) if sinks is None else sinks[:, None]
        empty = largest == -np.inf
        if (~empty & (sink - largest > SINK_FAR_ABOVE)).any():
            return None
        # relative to the largest score, or to the sink of a row that sees nothing
        pivot = np.where(empty, np.where(np.isfinite(sink), sink, 0.0), largest)
        scores -= pivot[..., None]
        np.exp(scores, out=scores)
        total = scores.sum(axis=-1) + np.exp(sink - pivot)  # [G, T]
        lse = pivot + np.log(total)
        if keep is not None:
            np.copyto(scores, 0.0, where=~keep)
        output = flat @ self.value[first:last]  # [R, S] @ [S, E] -> [R, E]
        output /= np.where(total == 0, 1.0, total).reshape(-1, 1)
        output = DoubleDouble(output, np.broadcast_to(0.0, output.shape))
        kept = None if keep is None else np.broadcast_to(keep, shape)
        for seen, key, elements in infinite:
            add_infinite(output, elements, seen if kept is None else seen & kept[..., key].reshape(-1))
        if keep_scale != 1:
            np.multiply(output.high, keep_scale, out=output.high)
        return Results(lse.reshape(-1), output)


def hide(scores, visible):
    """-inf where not visible, in place; passes over the keys that all rows see, most where a range hides."""
    edge = np.flatnonzero(~visible.all(axis=tuple(range(visible.ndim - 1))))
    if len(edge):
        keys = slice(edge[0], edge[-1] + 1)
        np.copyto(scores[..., keys], -np.inf, where=~visible[..., keys])


def cap_scores(scores, cap):
    """cap * tanh(scores / cap), in place."""
    if largest_finite(scores) * CAPS_NOTHING <= cap and np.isfinite(scores).all():
        return
    scores /= cap
    np.tanh(scores, out=scores)
    scores *= cap
