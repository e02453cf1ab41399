"""Random numbers for many large calls: drawn once, and read from different places.

Drawing each call anew would take longer than judging it.
"""

from __future__ import annotations

import functools
import math

import numpy as np

SIZE = 2**22


class Pool:
    """What inputs ask of `numpy.random.Generator`, from numbers that all calls of a dtype and a seed share:
    arrays are views of them, and those of one call do not overlap.

    >>> a, b = (Pool(np.float32, seed=3, at=1).standard_normal((2, 3)) for _ in range(2))
    >>> a.dtype.name, bool((a == b).all())
    ('float32', True)
    """

    def __init__(self, dtype, seed, at):
        self._numbers, self._seed = _numbers(np.dtype(dtype), seed), seed
        self._other = np.random.default_rng([seed, at])
        self._next = int(self._other.integers(SIZE // 2))

    def standard_normal(self, shape):
        return self._take(self._numbers, shape)

    def random(self, shape):
        return self._take(_uniform(self._seed), shape)

    def integers(self, *arguments):
        return self._other.integers(*arguments)

    def _take(self, numbers, shape):
        count = math.prod(shape) if isinstance(shape, tuple) else shape
        if self._next + count > SIZE:
            self._next = 0
        if count > SIZE:
            numbers = np.resize(numbers, count)
        first, self._next = self._next, self._next + count
        return numbers[first : first + count].reshape(shape)


@functools.lru_cache(4)
def _numbers(dtype, seed):
    return _read_only(np.random.default_rng([seed, 12]).standard_normal(SIZE).astype(dtype))


@functools.lru_cache(4)
def _uniform(seed):
    return _read_only(np.random.default_rng([seed, 13]).random(SIZE, dtype=np.float32))


def _read_only(array):
    array.flags.writeable = False
    return array
