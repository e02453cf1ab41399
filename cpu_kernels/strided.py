"""Arrays of the caller as flat memory with offsets and strides, the only form drivers know. Nothing is
copied that need not be.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from cpu_kernels.compiler.jit import cpu_features
from cpu_kernels.simd.stored import STORED
from refattn.calls.arrays import stored_once
from refattn.calls.memory import ensure_allocatable

HAS_FLOAT16 = bool(cpu_features() & {"f16c", "avx512f", "neon"})  # instructions that convert


class Operand(NamedTuple):
    """A tensor (*batch, heads, rows, last axis) as flat memory; offsets and strides in elements."""

    memory: np.ndarray
    start: int  # from here on what a plan needs to know
    outer: tuple  # strides of the batch axes
    strides: tuple  # of (heads, rows, last axis)


def flat(x, dtype):
    """(read-only memory, offset of the first element, strides), in elements.

    Copies only where the dtype differs or an element is misaligned, and then an axis of stride 0 once.
    """
    itemsize, flags = x.itemsize, x.flags
    contiguous = flags.c_contiguous
    if (
        x.dtype != dtype
        or not flags.aligned
        or (not contiguous and any(stride % itemsize for stride in x.strides))
    ):
        once = stored_once(x)
        ensure_allocatable(
            once.size * dtype.itemsize, "a copy of an operand in the dtype of the computation"
        )
        with np.errstate(over="ignore", under="ignore"):  # a tiny bias becomes 0
            memory, offset, strides = flat(once.astype(dtype, order="C"), dtype)
        return (
            memory,
            offset,
            tuple(0 if given == 0 else stride for given, stride in zip(x.strides, strides)),
        )
    strides = tuple([stride // itemsize for stride in x.strides])
    offset = 0
    if contiguous:
        memory = x.reshape(-1)  # a new object, whatever the shape
    elif x.size == 0:
        memory = np.zeros(1, dtype)
    else:
        reach = [(n - 1) * stride for n, stride in zip(x.shape, strides)]
        offset = -sum(min(r, 0) for r in reach)
        lowest = x[tuple(slice(-1, None) if stride < 0 else slice(0, 1) for stride in strides)]
        memory = as_strided(lowest, (1 + sum(abs(r) for r in reach),), (itemsize,))
    memory.setflags(write=False)  # of an object that is ours alone
    return memory, offset, strides


def offsets_over(start, shape, strides):
    """start + sum of index * stride for every index over `shape`, in C order."""
    offsets = np.array([start], np.int64)
    for size, stride in zip(shape, strides):
        offsets = (offsets[:, None] + np.arange(size) * stride).ravel()
    return offsets


def stored(x, dtype, in_registers):
    """`flat`, but 16-bit floats stay what they are if kernels are to widen them in registers."""
    if in_registers and x.itemsize == 2 and dtype == np.float32:
        name = x.dtype.name
        if name == "bfloat16" or (name == "float16" and HAS_FLOAT16):
            return flat(x.view(STORED[name]), STORED[name])
    return flat(x, dtype)


def as_operand(x, dtype, in_registers=False):
    """The operand of an array (*batch, heads, rows, last axis)."""
    memory, start, strides = stored(x, dtype, in_registers)
    return Operand(memory, start, strides[:-3], strides[-3:])


def results(query_shape, v_head_dim, dtype, wants_lse):
    """New arrays output and lse (or None) for queries of a shape, and both as operands."""
    *batch_shape, num_heads, q_len, _ = query_shape
    output = np.empty((*batch_shape, num_heads, q_len, v_head_dim), dtype)
    lse = np.empty(output.shape[:-1], dtype) if wants_lse else None
    outer = tuple(num_heads * q_len * math.prod(batch_shape[axis + 1 :]) for axis in range(len(batch_shape)))
    return (
        output,
        lse,
        (
            Operand(
                output.reshape(-1),
                0,
                tuple(stride * v_head_dim for stride in outer),
                (q_len * v_head_dim, v_head_dim, 1),
            ),
            Operand(lse.reshape(-1) if wants_lse else np.empty(0, dtype), 0, outer, (q_len, 1, 0)),
        ),
    )


_ABSENT = {}


def absent(dtype):
    """The operand of something that is not there."""
    try:
        return _ABSENT[dtype]
    except KeyError:
        memory = np.zeros(1, dtype)
        memory.setflags(write=False)
        return _ABSENT.setdefault(dtype, Operand(memory, 0, (), (0, 0, 0)))


def optional(x, dtype):
    """A bias, or with dtype uint8 a mask, of shape (*batch, heads, rows, keys), or None."""
    if x is None:
        return absent(dtype)
    return as_operand(x.view(np.uint8) if x.dtype == np.bool_ else x, dtype)
