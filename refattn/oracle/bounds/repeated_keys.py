"""Keys that occur more than once: their scores, weights and roundings are equal bit for bit, so their
errors add up instead of cancelling.
"""

from __future__ import annotations

import numpy as np

from refattn.oracle.bounds.tile_sums import row_sums, times

MOST_GROUPS = (
    64  # more sets of equal keys than this are treated together, each as its size times the sum of squares
)


def repeated_keys(key: np.ndarray, rounded: np.ndarray | None = None) -> list[np.ndarray]:
    """The index sets, of two or more, of equal rows of `key`, (S, D).

    `rounded`: the same in float32, in which equal rows are equal, too.
    """
    if len(key) < 2 or not _equal_sums(key if rounded is None else rounded):
        return []
    key = np.ascontiguousarray(key + 0.0)  # + 0.0: -0.0 equals 0.0
    rows = key.view(np.dtype((np.void, key.itemsize * key.shape[1]))).ravel()
    _, inverse, counts = np.unique(rows, return_inverse=True, return_counts=True)
    if counts.max() == 1:
        return []
    order = np.argsort(inverse.ravel(), kind="stable")
    return [members for members in np.split(order, np.cumsum(counts)[:-1]) if len(members) > 1]


def _equal_sums(key):
    """Whether two rows have equal sums of their bits, as equal rows have: sums are sorted far sooner than
    rows."""
    bits = np.ascontiguousarray(key + key.dtype.type(0.0)).view(
        np.uint32 if key.dtype == np.float32 else np.uint64
    )
    if bits.dtype == np.uint32:
        if bits.shape[1] % 2:
            bits = np.concatenate([bits, np.zeros((len(bits), 1), np.uint32)], axis=1)
        bits = bits.view(np.uint64)
    odd = np.random.default_rng(0).integers(2**63, dtype=np.uint64, size=bits.shape[1]) * np.uint64(2) + 1
    # numbers of few bits have them at the top
    sums = np.sort((bits ^ (bits >> np.uint64(32))) @ odd)
    return bool((sums[1:] == sums[:-1]).any())


def sum_of_squares(weights, squares, value, repeats, centre=None, shares=None):
    """(R, E): sum over sets of equal keys of square * (sum over the set of weight * value - share *
    centre)^2; most sets hold one key (`repeats` comes from `repeated_keys`). weights, squares and
    shares are (R, S), value the `Parts` of (S, E), centre (R, E); the largest square of a set is taken.

    Equal keys may still have unequal errors, because bias, position, another block or another split set
    their weights apart: each key also counts as a set of its own, and the result covers both.
    """
    factor = squares
    largest = (
        [factor[:, members].max(axis=1, keepdims=True) for members in repeats]
        if len(repeats) <= MOST_GROUPS
        else None
    )
    if repeats and largest is None:
        factor = factor.copy()
        for members in repeats:
            factor[:, members] *= len(members)
    first = weights * factor
    total = times(first * weights, value.square)
    if centre is not None:
        first *= shares
        total = (
            total - 2.0 * centre * times(first, value.exact) + centre**2 * row_sums(shares * shares, factor)
        )
        total = np.maximum(total, 0.0)
    for members, square in zip(repeats if largest is not None else (), largest or (), strict=True):
        joint = weights[:, members] @ value.exact[members]
        if centre is not None:
            joint = joint - shares[:, members].sum(axis=1, keepdims=True) * centre
        total = total + square * joint**2
    return total


def sum_of_row(weights, squares, repeats):
    """The same for values of 1, (R,)."""
    total = row_sums(weights * weights, squares)[:, 0]
    for members in repeats:
        here, square = weights[:, members], squares[:, members]
        if len(repeats) > MOST_GROUPS:
            total = total + (len(members) - 1) * (here**2 * square).sum(axis=1)
        else:
            total = total + square.max(axis=1) * here.sum(axis=1) ** 2
    return total
