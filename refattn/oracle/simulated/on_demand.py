"""Keys and values of which only the heads that are asked for are copied or computed.

A hypothesis is predicted for a few heads of a large problem, but a mistake is written as a change of all of
its keys: heads in another order, rows moved by one, dims left out. On an `OnDemand` such a change costs
nothing until somebody asks for heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

LARGE = 2**22  # elements of keys and values from which on they are made on demand
MOST_KEPT = 2**26  # elements that are kept of what was made


def memory_of(array):
    """What tells apart arrays that lie elsewhere or are read otherwise."""
    if isinstance(array, OnDemand):
        return array.identity
    return array.ctypes.data, array.shape, array.strides, array.dtype


class TooLargeError(MemoryError):
    """Something needs all heads of keys or values that are never held as a whole."""


class OnDemand:
    """An array (N, K, S, D) that `take(sequences, heads)` makes, (n, k, S, D) for two arrays of indices.

    One sequence, and heads of sequences by `np.ix_`, are made. Slices and lists of sequences, heads and
    rows, rows of each head, slices of dims, `np.roll` and `np.concatenate` along the rows or dims,
    `np.broadcast_to` and products give another `OnDemand`. Everything else makes the whole array, which is
    refused with `TooLargeError` unless it is `stored`: made of one that is there already.
    """

    def __init__(self, shape, dtype, take: Callable, stored: bool = False):
        self.shape, self.dtype, self.take, self.stored = tuple(shape), np.dtype(dtype), take, stored
        self.identity = object()  # equal where the numbers are known to be the same

    @classmethod
    def of(cls, array) -> OnDemand:
        """An array that is there already."""
        own = cls(array.shape, array.dtype, lambda n, k: array[np.ix_(n, k)], stored=True)
        own.identity = memory_of(array)
        return own

    @property
    def ndim(self):
        return len(self.shape)

    @property
    def size(self):
        return math.prod(self.shape)

    def __array__(self, dtype=None, copy=None):
        if not self.stored:
            raise TooLargeError(
                f"keys or values of shape {self.shape} must be asked for by heads; got a use of all of them."
            )
        return self.take(*map(np.arange, self.shape[:2])).astype(dtype or self.dtype, copy=False)

    def __getitem__(self, index):
        index = index if isinstance(index, tuple) else (index,)
        if any(entry is Ellipsis for entry in index):
            at = next(n for n, entry in enumerate(index) if entry is Ellipsis)
            index = (*index[:at], *[slice(None)] * (5 - len(index)), *index[at + 1 :])
        sequences, heads, *rest = *index, *[slice(None)] * (4 - len(index))
        if np.ndim(heads) == 2:
            if np.ndim(sequences) == 2:  # of np.ix_
                return self.take(np.ravel(sequences), np.ravel(heads))
            return self._rows_of_heads(np.ravel(heads), rest[0])
        if isinstance(sequences, (int, np.integer)):
            return self.take([sequences], np.arange(self.shape[1])[heads])[(0, ..., *rest)]
        entry, head, *others = (
            np.arange(size)[own] for size, own in zip(self.shape, (sequences, heads, *rest), strict=True)
        )
        take = lambda n, k: self.take(entry[n], head[k])[(..., *rest)]
        return OnDemand(map(len, (entry, head, *others)), self.dtype, take, self.stored)

    def _rows_of_heads(self, heads, rows):
        """Head h holds the rows `rows[h]` of head `heads[h]`."""
        take = lambda n, k: np.stack([self.take(n, heads[[h]])[:, 0, rows[h]] for h in k], axis=1)
        return OnDemand((self.shape[0], *rows.shape, self.shape[-1]), self.dtype, take, self.stored)

    def __mul__(self, other):
        other = np.broadcast_to(other, self.shape)
        dtype = np.result_type(self.dtype, other.dtype)
        return OnDemand(self.shape, dtype, lambda n, k: self.take(n, k) * other[np.ix_(n, k)], self.stored)

    def __array_function__(self, function, types, arguments, named):
        changed = FUNCTIONS[function](*arguments, **named) if function in FUNCTIONS else None
        if changed is not None:
            return changed
        whole = lambda x: np.asarray(x) if isinstance(x, OnDemand) else x
        return function(*map(whole, arguments), **{name: whole(x) for name, x in named.items()})


def _rolled(array, shift, axis=None):
    if axis in (-1, -2):
        return OnDemand(
            array.shape, array.dtype, lambda n, k: np.roll(array.take(n, k), shift, axis=axis), array.stored
        )
    return None


def _concatenated(arrays, axis=0):
    if axis not in (-1, -2):
        return None
    shape = list(arrays[0].shape)
    shape[axis] = sum(array.shape[axis] for array in arrays)
    take = lambda n, k: np.concatenate([array[np.ix_(n, k)] for array in arrays], axis=axis)
    dtype = np.result_type(*(array.dtype for array in arrays))
    return OnDemand(shape, dtype, take, all(getattr(array, "stored", True) for array in arrays))


def _broadcast(array, shape):
    if len(shape) != array.ndim or shape[2:] != array.shape[2:]:
        return None
    only = [
        np.zeros(new, int) if old == 1 else np.arange(old)
        for old, new in zip(array.shape[:2], shape[:2], strict=True)
    ]
    take = lambda n, k: array.take(only[0][n], only[1][k])
    return OnDemand(shape, array.dtype, take, array.stored)


FUNCTIONS = {np.roll: _rolled, np.concatenate: _concatenated, np.broadcast_to: _broadcast}


def keys_on_demand(problem):
    """A dense problem with one batch axis whose large keys and values are copied on demand only."""
    large = {
        name: OnDemand.of(array)
        for name in ("key", "value")
        if isinstance(array := getattr(problem, name), np.ndarray) and array.size > LARGE
    }
    return replace(problem, **large) if large else problem


class Kept:
    """What was made of some arrays, until it holds `MOST_KEPT` elements."""

    def __init__(self):
        self._made, self._size = {}, 0

    def get(self, arrays, where, make: Callable) -> np.ndarray:
        """What `make()` gives, made once for these arrays and this place."""
        at = (*map(id, arrays), where)
        if at not in self._made:
            array = make()
            if self._size + array.size > MOST_KEPT:
                self._made, self._size = {}, 0
            # the arrays are kept, so that no other one comes to have the id of one of them
            self._made[at], self._size = (arrays, array), self._size + array.size
        return self._made[at][1]


def latents_on_demand(latent, outline, kept: Kept):
    """The dense problem of a `LatentProblem`, its outline with one batch axis filled in; keys and values of
    a head are projected when they are asked for.
    """
    batch = len(outline.query)
    latents, k_rope, w_uk, w_uv = latent.kv_latent, latent.k_rope, latent.w_uk, latent.w_uv

    def entry(array, n):
        rows = array.reshape(batch, *array.shape[-2:])
        return kept.get((array,), int(n), lambda: np.asarray(rows[n], np.float64))

    def projected(n, h, weights):
        product = lambda: entry(latents, n) @ np.asarray(weights[h], np.float64).T
        return kept.get((latents, weights), (int(n), int(h)), product)

    def key(n, h):
        return np.concatenate([projected(n, h, w_uk), entry(k_rope, n)], axis=-1)

    def stacked(make):
        return lambda sequences, heads: np.stack([np.stack([make(n, h) for h in heads]) for n in sequences])

    query = np.concatenate([latent.q_nope, latent.q_rope], axis=-1, dtype=np.float64)
    return replace(
        outline,
        query=query.reshape(outline.query.shape),
        key=OnDemand(outline.key.shape, np.float64, stacked(key)),
        value=OnDemand(outline.value.shape, np.float64, stacked(lambda n, h: projected(n, h, w_uv))),
    )
