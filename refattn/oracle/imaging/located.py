"""Where rows that no explanation of one output fits go wrong: the keys of which a factor helps most."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

ROWS = 160
MOST_VALUES = 64  # of a feature
MIXTURES = 16
LEAST_SHARE, LEAST_SHARES = 0.5, 2.0  # the second over the number of rows: fewer show more by chance
VALUE = 0.002  # of the share that each value of a feature must be worth
CLEARLY = 0.4  # of the largest change
MOST_CHANGE = 8.0  # of a factor: beyond, the first order says nothing
LEAST_FACTOR = -0.5  # a weight is not turned into its negative
SURE = 4.0  # standard deviations


@dataclass(frozen=True, eq=False)
class Leaning:
    """Keys whose weights or values are off, as far as one factor for each value of a feature tells.

    Attributes
    ----------
    pairs : ndarray of bool, (B, H, T, S)
    factor : float
        Of their weights, on average.
    share : float
        Of the difference in the output that it accounts for.
    """

    feature: object
    pairs: np.ndarray
    factor: float
    share: float


def leaning(reading, regions, seconds=2.0):
    """The best `Leaning` of the unknown rows, or None."""
    end = time.monotonic() + seconds
    view, columns = reading.view, reading.columns
    usable = reading.unknown & np.isfinite(reading.output).all(-1) & ~view.empty
    places = np.argwhere(usable)
    if len(places) < 8:
        return None
    places = places[np.random.default_rng(0).permutation(len(places))[:ROWS]]
    b, h, i = places.T
    value = reading.of_heads(np.nan_to_num(reading.value, nan=0.0, posinf=0.0, neginf=0.0))[..., columns]
    # to first order in the factors: with the row's own output for `right`, no weights would fit exactly
    right = reading.expected_output[b, h, i][:, columns]
    weights, off = view.weights[b, h, i], reading.output[b, h, i][:, columns] - right
    # a few random mixtures of the columns tell as much at a fraction of the cost
    mix = (
        np.random.default_rng(1).standard_normal((len(columns), min(MIXTURES, len(columns))))
        / len(columns) ** 0.5
    )
    value = (value @ mix)[b, h]
    right, off = right @ mix, off @ mix
    size = np.sqrt((off**2).sum(-1))
    best = None
    for feature in regions.features:
        array = regions.array(feature)
        if time.monotonic() > end:
            break
        if array is None or array.shape[-1] == 1 or feature.cost > 0.025:
            continue
        numbers = np.broadcast_to(array, view.shape)[b, h, i]
        values = np.unique(numbers[weights > 0])
        if not 2 <= len(values) <= MOST_VALUES or len(values) > off.size / 8:
            continue
        found = _fit(numbers, values, weights, value, right, off, size)
        if found is None:
            continue
        share, factors, spread = found
        worth = share - feature.cost - VALUE * len(values)
        if best is None or worth > best[0]:
            best = worth, feature, values, factors, spread, share
    if best is None or best[-1] < LEAST_SHARE + LEAST_SHARES / len(places):
        return None
    _, feature, values, factors, spread, share = best
    largest = np.abs(factors).max()
    off_values = values[(np.abs(factors) > SURE * spread) & (np.abs(factors) > CLEARLY * largest)]
    if not len(off_values) or len(off_values) == len(values) or largest > MOST_CHANGE:
        return None
    factor = 1 + float(np.median(factors[np.isin(values, off_values)]))
    if factor < LEAST_FACTOR:
        return None
    pairs = (
        np.isin(np.broadcast_to(regions.array(feature), view.shape), off_values)
        & (view.weights > 0)
        & reading.unknown[..., None]
    )
    return Leaning(feature, pairs, factor, share)


def _fit(numbers, values, weights, value, right, off, size):
    """Share of the difference that one factor for each value accounts for, the factors less 1, their spread.

    Fitted on half of the columns; the share is that of the other half, whose errors are others.
    """
    G, half = len(values), off.shape[-1] // 2
    group = (numbers[:, None] == values[:, None]) * (weights / size[:, None])[:, None]  # (rows, G, S)
    along = group @ value - group.sum(-1, keepdims=True) * right[:, None]
    along = np.moveaxis(along, 1, 0)  # (G, rows, columns)
    off = off / size[:, None]
    first, second = along[..., :half].reshape(G, -1), along[..., half:].reshape(G, -1)
    normal, target = first @ first.T, first @ off[:, :half].reshape(-1)
    inverse = np.linalg.pinv(normal, rcond=1e-6, hermitian=True)  # factors that are all alike change nothing
    factors = inverse @ target
    tested = off[:, half:].reshape(-1)
    share = 1 - float(((tested - factors @ second) ** 2).sum() / (tested**2).sum())
    noise = max(1 - share, 1e-12) * (off[:, :half] ** 2).mean()
    # told from the factor that most of the weight has
    mass = group.sum((0, 2))
    order = np.argsort(factors)
    usual = factors[order][np.searchsorted(np.cumsum(mass[order]), mass.sum() / 2)]
    return share, factors - usual, np.sqrt(np.maximum(np.diag(inverse) * noise, 0))
