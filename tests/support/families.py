"""Families of inputs, each made to bring out one mechanism of attention.

A family takes (rng, query shape, key shape, value shape, dtype) and returns the three arrays in float64,
sized so that the dtype can hold them. Score levels hold for the default scale 1 / sqrt(head_dim).
"""

import numpy as np


def ordinary(rng, query, key, value, dtype):
    """Everything standard normal."""
    return rng.normal(size=query), rng.normal(size=key), rng.normal(size=value)


def _direction(rng, dim):
    u = rng.normal(size=dim)
    return u / np.linalg.norm(u)


def _along(rng, query, key, level):
    """Queries and keys whose scores are level(j) + O(1): `level` has a length of kv_len; all of it
    lies along one direction.
    """
    dim = query[-1]
    u = _direction(rng, dim)

    def across(x):
        return x - (x @ u)[..., None] * u

    length = np.sqrt(np.abs(level).max(initial=0.0) * np.sqrt(dim)) or 1.0
    steps = level * np.sqrt(dim) / length
    return across(rng.normal(size=query)) + length * u, across(rng.normal(size=key)) + steps[:, None] * u


def large_positive(rng, query, key, value, dtype):
    """All scores near +1e4, their differences of order one: what decides the weights is far behind
    the leading digits.
    """
    return *_along(rng, query, key, np.full(key[-2], 1e4)), rng.normal(size=value)


def large_negative(rng, query, key, value, dtype):
    """All scores near -1e4: a hidden key standing at a finite "minus infinity" would win."""
    return *_along(rng, query, key, np.full(key[-2], -1e4)), rng.normal(size=value)


def large_mixed(rng, query, key, value, dtype):
    """Scores near +1e4 and -1e4 by turns."""
    return *_along(rng, query, key, np.where(np.arange(key[-2]) % 2, 1e4, -1e4)), rng.normal(size=value)


def one_hot(rng, query, key, value, dtype):
    """One key wins by thousands: the output is its value, bit for bit."""
    level = np.zeros(key[-2])
    level[key[-2] // 3 : key[-2] // 3 + 1] = 5e3
    return *_along(rng, query, key, level), rng.normal(size=value)


def ascending(rng, query, key, value, dtype):
    """Scores climb by three for each key, so the running maximum rises all the time."""
    return *_along(rng, query, key, 3.0 * np.arange(key[-2])), rng.normal(size=value)


def descending(rng, query, key, value, dtype):
    """Scores fall by three for each key: the running maximum never changes after the first."""
    return *_along(rng, query, key, -3.0 * np.arange(key[-2])), rng.normal(size=value)


def sink_key(rng, query, key, value, dtype):
    """Key 0 takes nearly all of the weight, and its value is small."""
    level = np.zeros(key[-2])
    level[:1] = 15.0
    v = rng.normal(size=value)
    v[..., :1, :] *= 2**-6
    return *_along(rng, query, key, level), v


def cancellation(rng, query, key, value, dtype):
    """Values of alternating sign and nearly equal size: the output is far smaller than its terms."""
    sign = np.where(np.arange(value[-2]) % 2, -1.0, 1.0)[:, None]
    return 0.1 * rng.normal(size=query), rng.normal(size=key), sign * (1 + 0.01 * rng.normal(size=value))


def offset(rng, query, key, value, dtype):
    """Values around 1000: the output hardly varies, its error is all rounding."""
    return rng.normal(size=query), rng.normal(size=key), 1e3 + rng.normal(size=value)


def positive(rng, query, key, value, dtype):
    """All values positive: nothing cancels."""
    return rng.normal(size=query), rng.normal(size=key), rng.uniform(0.5, 2, size=value)


def _smallest_normal(dtype):
    if (dtype.kind == "f" and dtype.itemsize > 2) or dtype == np.float16:
        return float(np.finfo(dtype).smallest_normal)
    import ml_dtypes

    return float(ml_dtypes.finfo(dtype).smallest_normal)


def tiny(rng, query, key, value, dtype):
    """Values a few binades above the smallest normal number of the dtype."""
    return (
        rng.normal(size=query),
        rng.normal(size=key),
        rng.normal(size=value) * _smallest_normal(dtype) * 2**6,
    )


def subnormal(rng, query, key, value, dtype):
    """Values below the smallest normal number of the dtype."""
    return (
        rng.normal(size=query),
        rng.normal(size=key),
        rng.uniform(-1, 1, size=value) * _smallest_normal(dtype),
    )


def ties(rng, query, key, value, dtype):
    """All keys equal: every visible key has the same weight."""
    k = np.repeat(rng.normal(size=(*key[:-2], 1, key[-1])), key[-2], axis=-2)
    return rng.normal(size=query), k, rng.normal(size=value)


def uniform(rng, query, key, value, dtype):
    """Queries of zero and whole-numbered values: the output is a plain mean."""
    return np.zeros(query), rng.normal(size=key), rng.integers(-8, 9, size=value).astype(float)


FAMILIES = {
    family.__name__: family
    for family in (
        ordinary,
        large_positive,
        large_negative,
        large_mixed,
        one_hot,
        ascending,
        descending,
        sink_key,
        cancellation,
        offset,
        positive,
        tiny,
        subnormal,
        ties,
        uniform,
    )
}
