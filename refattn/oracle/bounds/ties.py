"""Equal scores of one row, and scores that may be equal: their weights round alike (section 4)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SPREAD = 8.0  # scores this many unit roundoffs apart have unrelated roundings


@dataclass
class Ties:
    """Keys of one row with equal scores below the maximum, (R, 1): their share of the row, and how many
    there are."""

    share: np.ndarray
    count: np.ndarray
    steady: np.ndarray  # of bool: all keys, because the scores rise or fall by equal steps


def equal_scores(tile):
    """Equal scores, whether or not the keys are equal: bias, softcap and zero queries make them too.

    Keys at the row maximum are left out: their weight is exp(0) = 1, which no conversion or sum rounds. A
    sum to which the same weight is added over and over loses the same each time, up to a unit roundoff of
    it: both are multiples of its last digit but for the same remainder.
    """
    scores = tile.hide(tile.biased.astype(np.float32), -np.inf)
    scores.sort(axis=1)
    rows, keys = scores.shape
    share, count = np.zeros((rows, 1)), np.zeros((rows, 1))
    if keys < 2:
        return Ties(share, count, np.zeros((rows, 1), dtype=bool))
    top = np.maximum(scores[:, -1:], tile.maximum[:, None].astype(np.float32))
    equal = scores[:, 1:] == scores[:, :-1]
    rows_with = np.flatnonzero(equal.any(axis=1))
    tied = equal[rows_with] & (scores[rows_with, 1:] > -np.inf) & (scores[rows_with, 1:] < top[rows_with])
    steady = _progressions(tile)
    share[steady], count[steady] = 1.0, tile.count[steady]
    for row in rows_with[tied.any(axis=1) & ~steady[rows_with]]:
        values, counts = np.unique(scores[row], return_counts=True)
        tied = (counts > 1) & (values > -np.inf) & (values < top[row])
        mass = (
            counts[tied] * np.exp(values[tied].astype(np.float64) - tile.maximum[row]) / tile.total[row, 0]
        )
        share[row], count[row] = mass.sum(), counts[tied].sum()
    return Ties(np.minimum(share, 1.0), count, steady[:, None])


def correlated_at_the_top(tile, spec, error):
    """What the row sum may lose of keys at the row maximum whose scores are not surely equal, relative to
    it, (R, 1).

    Their weights are 1 but for a few last digits, all below the last digit of a long sum: it loses what they
    have in common.
    """
    u = spec.softmax.unit_roundoff
    near = tile.visible & (tile.drop <= SPREAD * u * np.abs(tile.biased))
    count, lost = near.sum(axis=1, keepdims=True), np.zeros((len(near), 1))
    several = np.flatnonzero((count > 1) & ~error.level)
    if len(several):
        near, count = near[several], count[several]
        off = np.sqrt(np.where(near, error.square[several], 0.0)).max(axis=1, keepdims=True)
        share = np.where(near, tile.weights[several], 0.0).sum(axis=1, keepdims=True)
        lost[several] = np.minimum(u * count / spec.sum_block, off) * share
    return lost


def _progressions(tile):
    """Rows whose scores rise or fall by one and the same step, (R,): relative to a running maximum every
    block has the same weights again."""
    steady = (tile.drop.max(axis=1, initial=0.0) > 0) & (tile.count[:, 0] > 2)
    # most rows bend at their first keys already
    for keys in (64, None):
        rows = np.flatnonzero(steady)
        steady[rows] = _rises_evenly(tile, rows, slice(None, keys))
    return steady


def _rises_evenly(tile, rows, keys):
    """Those of the rows whose visible scores among some keys rise or fall by one and the same step."""
    visible, scores = tile.visible[rows, keys], tile.biased[rows, keys].astype(np.float64)
    scores = np.where(visible, scores, np.nan)
    bend = np.abs(scores[:, 2:] - 2.0 * scores[:, 1:-1] + scores[:, :-2])
    bend = np.where(np.isnan(bend), 0.0, bend).max(axis=1, initial=0.0)
    largest = np.abs(tile.biased[rows]).max(axis=1, initial=0.0)
    gaps = (visible[:, 1:] != visible[:, :-1]).sum(axis=1) > 2
    return (bend <= SPREAD * 2.0**-24 * largest) & ~gaps
