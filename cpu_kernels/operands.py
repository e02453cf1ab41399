"""Arrays of the caller as flat memory with offsets and strides, the only form drivers know. Nothing is copied that need not be."""

import math
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided


class Operand(NamedTuple):
    """A tensor: flat memory, the element each sequence starts at, and the strides of the axes after the batch, in elements."""

    memory: np.ndarray
    starts: np.ndarray  # (num_sequences,) int64
    strides: tuple  # (head, row, last axis)


def flat(x, dtype):
    """(read-only memory, offset of the first element, strides), in elements.

    Copies only where the dtype differs or an element is misaligned, and then an axis of stride 0 once.
    """
    itemsize = x.dtype.itemsize
    if x.dtype != dtype or not x.flags.aligned or any(stride % itemsize for stride in x.strides):
        repeated = [stride == 0 for stride in x.strides]
        once = x[tuple(slice(0, 1) if again else slice(None) for again in repeated)]
        memory, offset, strides = flat(once.astype(dtype, order="C"), dtype)
        return memory, offset, tuple(0 if again else stride for again, stride in zip(repeated, strides))
    strides = tuple(stride // itemsize for stride in x.strides)
    offset = 0
    if x.flags.c_contiguous:
        memory = x.reshape(-1)
    elif x.size == 0:
        memory = np.zeros(1, dtype)
    else:
        reach = [(n - 1) * stride for n, stride in zip(x.shape, strides)]
        offset = -sum(min(r, 0) for r in reach)
        lowest = x[tuple(slice(-1, None) if stride < 0 else slice(0, 1) for stride in strides)]
        memory = as_strided(lowest, (1 + sum(abs(r) for r in reach),), (itemsize,))
    if memory.flags.writeable:
        memory = memory.view()
        memory.flags.writeable = False
    return memory, offset, strides


def offsets_over(start, shape, strides):
    """start + sum of index * stride for every index over `shape`, in C order."""
    offsets = np.array([start], np.int64)
    for size, stride in zip(shape, strides):
        offsets = (offsets[:, None] + np.arange(size) * stride).ravel()
    return offsets


def dense(x, dtype):
    """An array (*batch, heads, rows, last axis): one sequence a batch entry."""
    memory, start, strides = flat(x, dtype)
    return Operand(memory, offsets_over(start, x.shape[:-3], strides[:-3]), strides[-3:])


def headless(x, dtype):
    """An array (*batch, rows, last axis) that all heads share."""
    memory, start, strides = flat(x, dtype)
    return Operand(memory, offsets_over(start, x.shape[:-2], strides[:-2]), (0, *strides[-2:]))


def results(batch_shape, num_heads, q_len, v_head_dim, dtype, wants_lse):
    """New arrays output and lse (or None), and both as operands with one sequence a batch entry."""
    output = np.empty((*batch_shape, num_heads, q_len, v_head_dim), dtype)
    lse = np.empty(output.shape[:-1], dtype) if wants_lse else None
    starts = np.arange(math.prod(batch_shape)) * (num_heads * q_len)
    flat_lse = lse.reshape(-1) if wants_lse else np.empty(0, dtype)
    return output, lse, Operand(output.reshape(-1), starts * v_head_dim, (q_len * v_head_dim, v_head_dim, 1)), Operand(flat_lse, starts, (q_len, 1, 0))


_ABSENT = {}


def absent(dtype):
    """The operand of something that is not there."""
    dtype = np.dtype(dtype)
    if dtype not in _ABSENT:
        memory = np.zeros(1, dtype)
        memory.flags.writeable = False
        _ABSENT[dtype] = Operand(memory, 0, (0, 0, 0))
    return _ABSENT[dtype]


def optional(x, dtype):
    """A bias or mask of shape (*batch, heads, rows, keys), or None."""
    if x is None:
        return absent(dtype)
    return dense(x.view(np.uint8) if x.dtype == np.bool_ else x, dtype)
