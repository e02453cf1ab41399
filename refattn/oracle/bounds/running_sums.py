"""What a kernel loses where it adds up: the second product and the row sum (section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from refattn.oracle.bounds.errors import Errors
from refattn.oracle.bounds.score_error import ROUNDING_VARIANCE
from refattn.oracle.bounds.ties import SPREAD, correlated_at_the_top
from refattn.oracle.bounds.tile_sums import row_sums, times

CHUNKS = 32  # partial sums of a row that are looked at
COARSE = 2.0**-16  # accumulators so coarse that they lose terms of ordinary size
SINGLE_NOISE = 2.0**-18  # relative error of a sum of squares in float32, at most


@dataclass
class Sums:
    """Errors of sum_j w_j x_j as a kernel adds it up, (R, E)."""

    square: np.ndarray  # sum of squares of the roundings
    steady: np.ndarray  # what is lost for certain: truncation, terms below the last digit
    # at most what roundings amount to that are all the same, one number anywhere between the two ends
    correlated: np.ndarray
    largest_partial: np.ndarray  # largest |partial sum|
    # (R, C), optional: absorbed form: sum of squares of the roundings of the latent output
    latent: np.ndarray | None = None


@dataclass
class BothSums:
    """The second product and the row sum, rescaled and divided: their errors together, and what the models
    read.
    """

    errors: list[Errors]
    products: Sums
    row_sum: Sums
    steps: np.ndarray  # (R, 1): sum of the squares of rescaling and dividing, relative
    equal: np.ndarray  # (R, 1): what the row sum may lose of equal weights, relative to it
    at_the_top: np.ndarray  # (R, 1): the same of keys at the row maximum
    same_sign: np.ndarray  # (R, E): losses that may have one sign everywhere


def both_sums(tile, spec, error, repeats, ties, ample) -> BothSums:
    """The second product and the row sum: squared partial sums, and linearly what equal terms lose alike."""
    u, magnitude = spec.softmax.unit_roundoff, np.abs(tile.output)
    products = _products(tile, spec, tile.kept, ample)
    row_sum = _sums_of_weights(tile, spec.sum_block, u)
    steps = u**2 * (error.rises + 5.0)
    square = products.square + steps * magnitude**2 + (row_sum.square + steps) * magnitude**2
    equal = np.minimum(u * ties.count / spec.sum_block, ties.share)
    again = sum(
        (tile.visible[:, members].sum(axis=1, keepdims=True) for members in tile.equal_pairs),
        np.zeros_like(equal),
    )
    again = spec.accumulator_roundoff * np.where(ties.steady, tile.count, again) / spec.sum_block
    steady = products.steady + row_sum.steady * magnitude
    correlated = (
        products.correlated + (row_sum.correlated + equal) * magnitude + again * products.largest_partial
    )
    independent = Errors(square, 0.0, ROUNDING_VARIANCE * square)
    errors = [independent, Errors(0.0, steady, steady**2), Errors(0.0, correlated, correlated**2 / 3.0)]
    at_the_top = correlated_at_the_top(tile, spec, error)
    same_sign = steady + correlated + at_the_top * magnitude
    return BothSums(errors, products, row_sum, steps, equal, at_the_top, same_sign)


def _products(tile, spec, kept, ample):
    """Errors of the sum of weights times values; in the absorbed form it runs over latents and is stored
    before it meets w_uv."""
    u, block, truncates = spec.accumulator_roundoff, spec.sum_block, spec.truncates
    if tile.latent is None:
        sums, others = _sums_at_most(tile, spec, u, ample)
        if len(others):
            exactly = _sums(tile, kept, tile.v, block, u, truncates, others)
            for name in ("square", "steady", "correlated", "largest_partial"):
                getattr(sums, name)[others] = getattr(exactly, name)
        return sums
    inner = _sums(tile, kept, tile.latent, block, u, truncates)
    middle = times(kept, tile.latent.exact) ** 2
    w2, rank = (tile.w_uv**2).T, tile.latent.exact.shape[1]
    stored = spec.intermediate.unit_roundoff**2 + u**2 * (0.5 * rank + 1.0)
    parts = (part @ np.abs(tile.w_uv).T for part in (inner.steady, inner.correlated, inner.largest_partial))
    return Sums(inner.square @ w2 + stored * (middle @ w2), *parts, inner.square + stored * middle)


def _sums_at_most(tile, spec, u, ample):
    """At most what `_sums` gives, without partial sums; and the rows where that is not far below `ample`."""
    count, block, largest = tile.count.astype(np.float64), spec.sum_block, tile.absolute_sum
    square = (count / block + CHUNKS + block) * u**2 * (largest**2 + 0.5 * tile.squares)
    sums = Sums(square, np.zeros_like(square), np.zeros_like(square), largest.copy())
    if spec.truncates or not np.any(ample):
        return sums, np.arange(len(square))
    enough = (square <= ample).all(axis=1)
    enough &= ~_close_terms(tile.squares, tile.output, tile.kept, tile.v.exact, count, u, largest).any(
        axis=1
    )
    if (lost := _lost_in_sums(tile.kept, block, u)) is not None:
        enough &= ~lost.any(axis=1)
    return sums, np.flatnonzero(~enough)


def _sums(tile, weights, x, block, u, truncates, rows=slice(None)):
    """Errors of sum_j weights_j x_j with one rounding of relative size u for each addition, of some rows.

    An addition rounds the partial sum it makes, so the square sum is u^2 times the sum of squared partial
    sums: `block` terms among themselves, then the block onto what came before. Partial sums are taken at
    CHUNKS places in the order of the keys and in the reverse, whichever gives more; between them the terms
    are treated as a random walk.
    """
    weights = weights[rows]
    parts = [
        times(weights[:, first:last], x.exact[first:last]) for first, last in runs_of_keys(len(x.exact))
    ]
    squares = times(weights * weights, x.square)
    partial = _PartialSums.of(tile, parts, times(weights, x.exact), block, rows)
    return _errors_of_sums(tile.count[rows], partial, squares, weights, x.exact, block, u, truncates)


def _sums_of_weights(tile, block, u):
    """The same for x = 1, the row sum, (R, 1)."""
    p, keys = tile.weights, tile.weights.shape[1]
    parts = [row_sums(p[:, first:last]) for first, last in runs_of_keys(keys)]
    partial = _PartialSums.of(tile, parts, tile.whole, block)
    ones = np.ones((keys, 1), dtype=tile.dtype)
    return _errors_of_sums(tile.count, partial, row_sums(p, p), p, ones, block, u, False)


def runs_of_keys(keys):
    """Bounds of CHUNKS runs of keys."""
    edges = np.unique(np.linspace(0, keys, min(CHUNKS, max(keys, 1)) + 1).astype(int))
    return list(pairwise(edges))


@dataclass
class _PartialSums:
    """Partial sums of a row in both orders: sums of their squares and sizes, each times the additions that
    make them, sum of the squares of the parts, and the largest of them."""

    total: np.ndarray
    squares: np.ndarray
    sizes: np.ndarray
    inside: np.ndarray
    largest: np.ndarray

    @classmethod
    def of(cls, tile, parts, total, block, rows=slice(None)):
        """From the sums of the runs of `runs_of_keys`, (R, C) each, in the order of the keys."""
        parts = np.stack(parts) if parts else np.zeros((0, *total.shape))  # (runs, R, C)
        forward = np.cumsum(parts, axis=0)
        backward = total - forward + parts
        here = tile.counts(runs_of_keys(tile.visible.shape[1]))[rows].T[:, :, None]  # (runs, R, 1)
        additions = np.where(here > 0, np.maximum(here / block, 1.0), 0.0)
        in_all = lambda sums: (additions * sums).sum(axis=0)
        forward, backward = np.abs(forward), np.abs(backward)
        return cls(
            total,
            squares=np.maximum(in_all(forward**2), in_all(backward**2)),
            sizes=np.maximum(in_all(forward), in_all(backward)),
            inside=(parts**2).sum(axis=0),
            largest=np.maximum(forward, backward).max(axis=0, initial=0.0),
        )


def _errors_of_sums(count, partial, squares, weights, x, block, u, truncates) -> Sums:
    count = count.astype(np.float64)
    inside = np.minimum(count, block)
    square = partial.squares + (count / block) * 0.5 * squares
    square = square + inside * (0.5 * squares + partial.inside / 3.0)
    # Truncation loses between 0 and u of each partial sum, half of that in the mean.
    steady = 0.5 * u * truncates * partial.sizes
    close = _close_terms(squares, partial.total, weights, x, count, u, partial.largest)
    correlated = np.where(close, u * (count / block) * partial.largest, 0.0)
    lost = _lost_in_sums(weights, block, u)
    if lost is not None:
        steady = steady + np.abs(times(lost, x))
    return Sums(u**2 * square, steady, correlated, partial.largest)


def _close_terms(squares, total, weights, x, count, u, largest):
    """Sums, (R, E), of terms that hardly differ, compared with the last digit of the sum: all lose the same.

    What float32 cannot exclude is computed again in float64.
    """
    many = np.maximum(count, 1.0)
    spread = lambda squares, total, rows: squares / many[rows] - (total / many[rows]) ** 2
    limit, every = (SPREAD * u * largest) ** 2, slice(None)
    close = (spread(squares, total, every) < limit + SINGLE_NOISE * squares / many) & (count > 1)
    rows = np.flatnonzero(close.any(axis=1))
    if weights.dtype != np.float64 and len(rows):
        weights, x = weights[rows].astype(np.float64), x.astype(np.float64)
        squares, total = weights**2 @ x**2, weights @ x
    else:
        squares, total = squares[rows], total[rows]
    close[rows] &= spread(squares, total, rows) < limit[rows]
    return close


def _lost_in_sums(weights, block, u):
    """What is lost of terms below the last digit of the sum, and of terms of a few last digits, whose
    rounding is lopsided, (R, S); None where all are larger."""
    faint = (weights < 100.0 * u / block) & (weights > 0)
    if not faint.any():
        return None
    small = np.where(faint, u / (block * weights), weights.dtype.type(0.0))
    return weights * np.minimum(1.0, 2.0 * small * small)


def lost_terms(tile, spec):
    """What a coarse accumulator loses of terms below the last digit of their sum because the value is small,
    not the weight, (R, E)."""
    lost, u = np.zeros_like(tile.output), spec.accumulator_roundoff
    if u < COARSE or tile.latent is not None:
        return lost
    for column, value in enumerate(tile.v.exact.T):
        terms = tile.kept * value
        small = (
            u
            * np.abs(tile.output[:, column, None])
            / np.where(terms != 0, spec.sum_block * np.abs(terms), np.inf)
        )
        lost[:, column] = np.abs(
            (terms * np.where(small > 1e-2, np.minimum(1.0, 2.0 * small**2), 0.0)).sum(axis=1)
        )
    return lost
