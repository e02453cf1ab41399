"""Rows whose scores are known so badly that e^eps says nothing: what still holds for them.

With P_j the kernel's normalised weights, o^ - o = sum_j P_j (v_j - o) exactly, and the P_j are not negative and add up to 1. So whatever the scores
are, the error is at most max_j |v_j - o|, and with m the key of the largest score

    |o^ - o| <= |v_m - o| + sum_(j != m) min(1, e^(s_j - s_m + eps_j + eps_m)) |v_j - o|,

which is 0 where one key is visible, and |v_m - o| where the others lie further below it than their errors reach.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CHUNK = 2**21  # numbers |v_j - o| looked at together
UNCERTAIN = 0.3  # relative error of a row's weights together from which this is worth its time


@dataclass
class Limits:
    """Of the kernel's output before its products and sums round, (R, E).

    Attributes
    ----------
    moved : ndarray
        Error that the scores cause, and the conversion of weights where numerator and row sum both take converted ones.
    gross : ndarray
        sum_j P_j |v_j|, with dropout applied.
    rounded : ndarray
        Error of converted weights over a row sum of unconverted ones.
    """

    moved: np.ndarray
    gross: np.ndarray
    rounded: np.ndarray


def limits(tile, spec, eps, rows, output, sink_eps) -> Limits:
    """Of the rows numbered `rows`; eps is (R, S), sink_eps (R, 1) or None."""
    keys, dims = tile.value.exact.shape
    at_once = max(1, CHUNK // max(keys * dims, 1))
    parts = [_chunk(tile, spec, eps, rows[first : first + at_once], output, sink_eps) for first in range(0, len(rows), at_once)]
    return Limits(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("moved", "gross", "rounded")))


def _chunk(tile, spec, eps, rows, output, sink_eps):
    visible, drop, eps, output = tile.visible[rows], tile.drop[rows], eps[rows], output[rows]
    factor = np.where(visible, tile.keep_scale, 0.0)
    unknown = np.zeros_like(visible)
    if tile.dropout:  # weights that underflow here do not tell whether they are dropped
        unknown = tile.weights[rows] == 0
        factor = np.where(~unknown & (tile.kept[rows] == 0), 0.0, factor)
    taken = factor[:, :, None] * tile.value.exact
    apart = np.where(visible[:, :, None], np.abs(taken - output[:, None, :]), 0.0)
    apart = np.maximum(apart, np.where(visible & unknown, 1.0, 0.0)[:, :, None] * np.abs(output)[:, None, :]) if tile.dropout else apart
    size = np.abs(taken)
    if tile.sink is not None:  # one more key, with value 0
        sink = tile.sink[rows, None]
        there = sink > -np.inf
        visible = np.concatenate([visible, there], axis=1)
        drop = np.concatenate([drop, np.where(there, tile.maximum[rows, None] - np.where(there, sink, 0.0), 0.0)], axis=1)
        eps = np.concatenate([eps, np.where(there, sink_eps[rows], 0.0)], axis=1)
        apart = np.concatenate([apart, np.where(there, np.abs(output), 0.0)[:, None, :]], axis=1)
        size = np.concatenate([size, np.zeros_like(output)[:, None, :]], axis=1)

    every = np.arange(len(rows))
    top = np.where(visible, drop, np.inf).argmin(axis=1)
    below = (drop - eps) - (drop + eps)[every, top][:, None]
    share = np.where(visible, np.exp(-np.maximum(below, 0.0)), 0.0)  # of P_m, at most
    share[every, top] = 1.0
    gross = np.minimum(np.einsum("rs,rse->re", share, size), size.max(axis=1, initial=0.0))

    u, lost = spec.weight.unit_roundoff, spec.weight_underflow
    rounded = u * (1 + u) * gross + 2.0 * lost * tile.keep_scale * size.sum(axis=1)  # the kernel's row sum is at least about 1
    if spec.denominator == "rounded" and u:
        if tile.dropout:  # numerator and row sum convert different numbers
            return Limits(np.full_like(gross, np.inf), gross, rounded)
        left = 1.0 - u - lost * share.sum(axis=1, keepdims=True)
        share = _converted(share, left, visible)
        share[every, top] = 1.0
    moved = np.minimum(np.einsum("rs,rse->re", share, apart), apart.max(axis=1, initial=0.0))
    return Limits(moved, gross, rounded)


def _converted(share, left, visible):
    """The shares after conversion: none more than doubles, and the largest keeps `left` of itself."""
    return np.where(visible, np.where(left > 0, np.minimum(2.0 * share / np.where(left > 0, left, 1.0), 1.0), 1.0), 0.0)
