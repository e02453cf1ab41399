"""Attention, top to bottom: scores, softcap, bias, hide, softmax, output.

    score_ij  = scale * q_i . k_j
    capped_ij = softcap * tanh(score_ij / softcap)
    biased_ij = capped_ij - slope * |position_i - j| + bias_ij,  -inf where row i may not see key j
    lse_i     = log sum_j exp(biased_ij)                          (a sink logit joins this sum)
    weight_ij = exp(biased_ij - lse_i)
    output_i  = sum_j weight_ij v_j

Vaswani et al. 2017, section 3.2.1, for the formula; Gemma 2 (Gemma Team 2024, section 2) for softcap; Press et al. 2022, section 3, for
ALiBi; Xiao et al. 2024, section 3.1, for sinks. One call is one block of query rows of the heads that share a key/value head.
Axes: G query heads of the group, T rows of the block, S keys, D head_dim, E v_head_dim.
"""

from typing import NamedTuple

import numpy as np

from refattn.precise import (
    DoubleDouble,
    Split,
    add,
    halves,
    matmul,
    multiply,
    power_of_two_above,
    split_columns,
    split_unit,
)
from refattn.softcap import softcap
from refattn.softmax import softmax


class Values(NamedTuple):
    """Values ready to be weighted: value_j = unit_j * power_j, so that one large value cannot coarsen the others."""

    unit: Split  # [S, E], elements at most 1
    power: np.ndarray  # [S], powers of two
    infinite: list  # (key, value) of the keys whose value is not finite; their unit is 0

    def rows(self, first, last):
        infinite = [(key - first, value) for key, value in self.infinite if first <= key < last]
        return Values(self.unit.rows(first, last), self.power[first:last], infinite)


class Steps(NamedTuple):
    """What one block of rows computes; scores as `DoubleDouble`, hidden entries of `biased` are -inf."""

    scores: DoubleDouble  # [G, T, S]
    capped: DoubleDouble  # [G, T, S]
    biased: DoubleDouble  # [G, T, S]
    exponentials: np.ndarray  # [G, T, S]
    total: np.ndarray  # [G, T, 1]
    lse: np.ndarray  # [G, T]
    output: np.ndarray  # [G, T, E]


def prepare_keys(k):
    """[S, D] -> split [D, S]."""
    return split_columns(k.T)


def prepare_values(v):
    """[S, E] -> Values."""
    finite = np.isfinite(v).all(axis=-1)
    infinite = [(key, v[key]) for key in np.flatnonzero(~finite)]
    v = np.where(finite[:, None], v, 0.0) if infinite else v
    power = np.ones(len(v)) if v.dtype == np.longdouble else power_of_two_above(v, -1)
    return Values(split_unit(v / power[:, None]), power, infinite)


def attend(q, keys, values, *, scale, softcap_at=None, slopes=None, distance=None, bias=None, visible=None, sinks=None, keep=None, keep_scale=1.0):
    """Attention of one block of rows.

    Parameters
    ----------
    q : ndarray, shape [G, T, D], float64 or long double like keys and values
    keys : Split, shape [D, S], from `prepare_keys`
    values : Values of S keys, from `prepare_values`
    slopes, sinks : ndarray, shape [G], optional
    distance : ndarray, shape [T, S], |position - j|, given with slopes
    bias, visible, keep : ndarray, shape broadcasting to [G, T, S], optional
        visible None: every key; bias has no -inf where visible.

    Returns
    -------
    Steps
    """
    group_size, rows, head_dim = q.shape
    flat = DoubleDouble(*(part.reshape(-1, head_dim) for part in multiply(q, scale)))
    scores = matmul(flat, keys)  # [G*T, D] @ [D, S] -> [G*T, S]
    scores = DoubleDouble(*(part.reshape(group_size, rows, -1) for part in scores))
    capped = scores if softcap_at is None else softcap(scores, softcap_at)
    biased = capped
    if slopes is not None:
        for part in halves(slopes[:, None, None]):  # short enough that the first product is exact
            biased = add(biased, -part * distance)
    if bias is not None:
        biased = add(biased, bias)
    biased = hide(biased, visible)
    exponentials, total, lse = softmax(biased, None if sinks is None else sinks[:, None, None])
    kept = exponentials if keep is None else np.where(keep, exponentials, 0.0)
    summed = weigh(kept, values, visible if keep is None else keep if visible is None else visible & keep)
    output = np.divide(summed, total, out=np.zeros_like(summed), where=total != 0) * keep_scale
    return Steps(scores, capped, biased, exponentials, total, lse, output)


def hide(scores, visible):
    """-inf where not visible; the low part is dropped wherever the high part says it all."""
    high = scores.high if visible is None else np.where(visible, scores.high, -np.inf)
    return DoubleDouble(high, np.where(np.isfinite(high), scores.low, 0.0))


def weigh(exponentials, values, visible):
    """sum_j exponential_ij value_j, [G, T, S] x [S, E] -> [G, T, E]; a value that is not finite reaches the rows that see it."""
    scaled = exponentials * values.power  # [G, T, S]
    flat = scaled.reshape(-1, scaled.shape[-1])
    summed = matmul(DoubleDouble(flat, np.zeros_like(flat)), values.unit)  # [G*T, S] @ [S, E] -> [G*T, E]
    output = (summed.high + summed.low).reshape(*exponentials.shape[:-1], -1)
    for key, value in values.infinite:
        seen = np.True_ if visible is None else np.broadcast_to(visible, exponentials.shape)[..., key, None]
        output += np.where(seen, exponentials[..., key, None] * value, 0.0)
    return output
