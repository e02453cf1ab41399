"""Rows whose scores are known so badly that e^eps says nothing: what still holds (end of section 2).

The kernel's normalised weights p^_j are not negative and add up to 1, so that o^ - o = sum_j p^_j (v_j - o)
exactly. Whatever the scores are, the error is at most max_j |v_j - o|, and with m the key of largest score,

    |o^ - o| <= |v_m - o| + sum_(j != m) min(1, e^(s_j - s_m + eps_j + eps_m)) |v_j - o|,

which is 0 where one key is visible, and |v_m - o| where the others lie below it by more than their errors.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

CHUNK = 2**21  # numbers |v_j - o| looked at together
UNCERTAIN = 0.3  # relative error of a row's weights together from which this is worth its time


@dataclass
class OutputTerms:
    """The parts of an output's error before products and sums round (sections 2 and 3), (R, E) each."""

    # B_s: errors of the scores, and of the conversion of weights where both sums take converted ones
    scores: np.ndarray
    absolute_sum: np.ndarray  # V = sum_j p^_j |v_j|, with dropout applied
    # B_P: error of converted weights over a row sum of unconverted ones; 0.0 where none is converted
    conversion: np.ndarray | float

    def lower(self, rows, limits: OutputTerms):
        """Replace the terms of the rows numbered `rows` by `limits` where those are smaller."""
        for name in TERMS:
            term = getattr(self, name)
            if np.ndim(term):
                term[rows] = np.fmin(term[rows], getattr(limits, name))


TERMS = tuple(field.name for field in fields(OutputTerms))


def limits(tile, spec, eps, rows, output, sink_eps) -> OutputTerms:
    """What the terms of the rows numbered `rows` are at most; eps is (R, S), sink_eps (R, 1)."""
    # what none of the rows sees adds nothing; at least one key, if there is any, for rows that see none
    seen = np.flatnonzero(tile.visible[rows].any(axis=0))
    seen = seen if len(seen) else np.arange(min(1, tile.visible.shape[1]))
    at_once = max(1, CHUNK // max(len(seen) * tile.value.exact.shape[1], 1))
    cuts = [np.ix_(rows[first : first + at_once], seen) for first in range(0, len(rows), at_once)]
    parts = [_limits_of(tile, spec, eps, cut, output, sink_eps) for cut in cuts]
    return OutputTerms(*(np.concatenate([getattr(part, name) for part in parts]) for name in TERMS))


def _limits_of(tile, spec, eps, cut, output, sink_eps):
    keys = _keys_of(tile, eps, cut, output, sink_eps)
    share, top = _shares(keys)
    absolute_sum = np.minimum(np.einsum("rs,rse->re", share, keys.size), keys.size.max(axis=1, initial=0.0))
    u, lost = spec.weight.unit_roundoff, spec.weight_underflow
    # section 3: conversion adds u_P of the sum, and h for every value, as the row sum is at least about 1
    conversion = u * (1 + u) * absolute_sum + 2.0 * lost * tile.keep_scale * keys.size.sum(axis=1)
    if spec.denominator == "rounded" and u:
        if tile.dropout:  # numerator and row sum convert different numbers
            return OutputTerms(np.full_like(absolute_sum, np.inf), absolute_sum, conversion)
        left = 1.0 - u - lost * share.sum(axis=1, keepdims=True)
        share = _converted(share, left, keys.visible)
        share[np.arange(len(share)), top] = 1.0
    scores = np.einsum("rs,rse->re", share, keys.distance)
    return OutputTerms(np.minimum(scores, keys.distance.max(axis=1, initial=0.0)), absolute_sum, conversion)


@dataclass
class _Keys:
    """The keys of some rows, a sink among them as one more key with value 0."""

    visible: np.ndarray  # (r, S)
    drop: np.ndarray  # (r, S) m - s_j
    eps: np.ndarray  # (r, S)
    distance: np.ndarray  # (r, S, E) |v_j - o|, dropout applied to v_j
    size: np.ndarray  # (r, S, E) |v_j|, likewise


def _keys_of(tile, eps, cut, output, sink_eps):
    """`cut`: index of the rows and keys, as of `np.ix_`."""
    rows, seen = cut[0][:, 0], cut[1][0]
    visible, drop, eps, output = tile.visible[cut], tile.drop[cut], eps[cut], output[rows]
    factor = np.where(visible, tile.keep_scale, 0.0)
    unknown = np.zeros_like(visible)
    if tile.dropout:  # weights that underflow here do not tell whether they are dropped
        unknown = tile.weights[cut] == 0
        factor = np.where(~unknown & (tile.kept[cut] == 0), 0.0, factor)
    taken = factor[:, :, None] * tile.value.exact[seen]
    distance = np.where(visible[:, :, None], np.abs(taken - output[:, None, :]), 0.0)
    if tile.dropout:
        dropped = np.where(visible & unknown, 1.0, 0.0)[:, :, None] * np.abs(output)[:, None, :]
        distance = np.maximum(distance, dropped)
    keys = _Keys(visible, drop, eps, distance, np.abs(taken))
    return keys if tile.sink is None else _with_sink(tile, keys, rows, output, sink_eps)


def _with_sink(tile, keys, rows, output, sink_eps):
    sink = tile.sink[rows, None]
    there = sink > -np.inf
    drop = np.where(there, tile.maximum[rows, None] - np.where(there, sink, 0.0), 0.0)
    one_more = (
        there,
        drop,
        np.where(there, sink_eps[rows], 0.0),
        np.where(there, np.abs(output), 0.0)[:, None, :],
        np.zeros_like(output)[:, None, :],
    )
    return _Keys(*(np.concatenate(pair, axis=1) for pair in zip(vars(keys).values(), one_more, strict=True)))


def _shares(keys):
    """min(1, e^(s_j - s_m + eps_j + eps_m)), the most that p^_j / p^_m may be, (r, S); and m, (r,)."""
    every = np.arange(len(keys.drop))
    top = np.where(keys.visible, keys.drop, np.inf).argmin(axis=1)
    below = (keys.drop - keys.eps) - (keys.drop + keys.eps)[every, top][:, None]
    share = np.where(keys.visible, np.exp(-np.maximum(below, 0.0)), 0.0)
    share[every, top] = 1.0
    return share, top


def _converted(share, left, visible):
    """The shares after conversion: none more than doubles, and the largest keeps `left` of itself."""
    most = np.minimum(2.0 * share / np.where(left > 0, left, 1.0), 1.0)
    return np.where(visible, np.where(left > 0, most, 1.0), 0.0)
