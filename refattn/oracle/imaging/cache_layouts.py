"""Pages of keys or values (P, K, slots, dim) read with strides of the other array, or in another order."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np

VECTORS = (1, 2, 4, 8, 16)  # numbers of a component group that is stored slot by slot


def other_layouts(view, n) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """What is read elsewhere ("keys" or "values"), words, and keys and values (K, S, .) of a sequence."""
    pools = [np.nan_to_num(np.asarray(array, np.float64)) for array in view.arrays[1:3]]
    read = [_of_sequence(view, pool, n) for pool in pools]
    for which, what in enumerate(("keys", "values")):
        for words, pool in (*_strides(pools[which], pools[1 - which].shape[-1]), *_vectors(pools[which])):
            moved = list(read)
            moved[which] = _of_sequence(view, pool, n)
            yield what, words, *moved


def _of_sequence(view, pool, n):
    """Keys or values (K, S, .) of a sequence."""
    size, pages = view.page_size, view.pages[n, 0, 0]
    keys = np.arange(view.num_keys)
    return np.moveaxis(pool[np.maximum(pages, 0), :, keys % size], 0, 1)


def _strides(pool, other):
    """A pool whose pages, heads or slots have the strides of an array of another dim."""
    count, heads, size, dim = pool.shape
    if other == dim:
        return
    names = "pages", "heads", "slots"
    for wrong in product((True, False), repeat=3):
        if not any(wrong):
            continue
        of = [other if is_wrong else dim for is_wrong in wrong]
        at = (
            np.arange(count)[:, None, None, None] * heads * size * of[0]
            + np.arange(heads)[:, None, None] * size * of[1]
            + np.arange(size)[:, None] * of[2]
            + np.arange(dim)
        )
        which = " and ".join(name for name, is_wrong in zip(names, wrong, strict=True) if is_wrong)
        words = f"strides of {which} as if they had {other} columns in place of {dim}"
        yield words, pool.reshape(-1)[at % pool.size]


def _vectors(pool):
    """A pool stored as (page, head, dim / a, slot, a) and read with another a."""
    size, dim = pool.shape[2:]
    flat = pool.reshape(*pool.shape[:2], -1)
    slot, column = np.arange(size)[:, None], np.arange(dim)
    sizes = [a for a in VECTORS if dim % a == 0] + [dim]
    place = {a: column // a * size * a + slot * a + column % a for a in dict.fromkeys(sizes)}
    for stored, read in product(place, repeat=2):
        if stored != read:
            memory = np.empty_like(flat)
            memory[..., place[stored].reshape(-1)] = flat
            words = f"pages stored as (dim / {stored}, slots, {stored}) and read with {read} instead"
            yield words, memory[..., place[read]]
