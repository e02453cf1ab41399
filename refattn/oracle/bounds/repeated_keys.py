"""Keys that occur more than once: their scores, weights and roundings are equal bit for bit, so their
errors add up instead of cancelling.
"""

from __future__ import annotations

import numpy as np

MOST_GROUPS = (
    64  # more sets of equal keys than this are treated together, each as its size times the sum of squares
)


def repeated_keys(key: np.ndarray) -> list[np.ndarray]:
    """The index sets, of two or more, of equal rows of `key`, (S, D) in float64."""
    if len(key) < 2:
        return []
    key = np.ascontiguousarray(key + 0.0)  # + 0.0: -0.0 equals 0.0
    # equal rows have equal sums of their bits, and sums are sorted far sooner than rows
    odd = np.random.default_rng(0).integers(2**63, dtype=np.uint64, size=key.shape[1]) * np.uint64(2) + 1
    sums = np.sort(key.view(np.uint64) @ odd)
    if (sums[1:] != sums[:-1]).all():
        return []
    rows = key.view(np.dtype((np.void, key.itemsize * key.shape[1]))).ravel()
    _, inverse, counts = np.unique(rows, return_inverse=True, return_counts=True)
    if counts.max() == 1:
        return []
    order = np.argsort(inverse.ravel(), kind="stable")
    return [members for members in np.split(order, np.cumsum(counts)[:-1]) if len(members) > 1]


def sum_of_squares(weights, squares, value, repeats, centre=None, shares=None):
    """(R, E): sum over sets of equal keys of square * (sum over the set of weight * value - share *
    centre)^2; most sets hold one key (`repeats` comes from `repeated_keys`). weights, squares and
    shares are (R, S), value (S, E), centre (R, E); of the squares of a set the largest is taken.

    Equal keys may still have unequal errors, because bias, position, another block or another split set
    their weights apart: each key also counts as a set of its own, and the result covers both.
    """
    factor = np.broadcast_to(np.asarray(squares, dtype=np.float64), weights.shape)
    largest = (
        [factor[:, members].max(axis=1, keepdims=True) for members in repeats]
        if len(repeats) <= MOST_GROUPS
        else None
    )
    if repeats and largest is None:
        factor = factor.copy()
        for members in repeats:
            factor[:, members] *= len(members)
    total = (weights**2 * factor) @ value**2
    if centre is not None:
        mixed = weights * shares * factor
        total = (
            total
            - 2.0 * centre * (mixed @ value)
            + centre**2 * (shares**2 * factor).sum(axis=1, keepdims=True)
        )
        total = np.maximum(total, 0.0)
    for members, square in zip(repeats if largest is not None else (), largest or (), strict=True):
        joint = weights[:, members] @ value[members]
        if centre is not None:
            joint = joint - shares[:, members].sum(axis=1, keepdims=True) * centre
        total = total + square * joint**2
    return total
