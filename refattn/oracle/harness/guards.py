"""Buffers that betray a kernel which reads or writes where it must not.

Every array handed to a kernel lies inside a larger buffer. What surrounds it is NaN where numbers are
floating, so that a read past the end reaches the output, and is compared byte for byte after the call, so
that a write shows as well. Arrays of other libraries take the place of the same bytes (`array_libraries`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from refattn.oracle.harness.array_libraries import NumpyArrays

GUARD_BYTES = 4096  # on either side; more where 64 rows of the array need more
ALIGNMENT = 64  # bytes: what array libraries hand out, and vector loads may rely on


@dataclass(eq=False)
class Guarded:
    """An array inside a larger buffer."""

    buffer: np.ndarray
    view: np.ndarray
    name: str
    given: Any = None  # what the kernel gets: the view, or an array of another library in its place
    # writes into `buffer` what a call changed elsewhere; None where the kernel has the same memory
    bring_back: Callable | None = None

    def __post_init__(self):
        self.given = self.view if self.given is None else self.given
        self._before = self.buffer.tobytes()
        self._inside = self.view.copy()

    def damage(self) -> str:
        """What a call did to an input, in words; empty when nothing."""
        self.look()
        if self.buffer.tobytes() == self._before:
            return ""
        if self.view.tobytes() != self._inside.tobytes():
            return f"{self.name} was changed"
        return f"{self.overwritten_guards()} guard bytes around {self.name} were overwritten"

    def look(self):
        """Make `buffer` and `view` show what the kernel left."""
        if self.bring_back is not None:
            self.bring_back()

    def overwritten_guards(self) -> int:
        """How many bytes outside the view differ from before; what lies inside may have been written."""
        now = self.buffer.copy()
        inside = np.ndarray(self.view.shape, self.view.dtype, now.data, _offset(self), self.view.strides)
        inside[...] = self._inside
        return int((now != np.frombuffer(self._before, np.uint8)).sum())


def _offset(guarded):
    return guarded.view.__array_interface__["data"][0] - guarded.buffer.__array_interface__["data"][0]


def _filled(count, dtype):
    """`count` entries no correct kernel reads, as an array: NaN, True, or 0 (page 0 and offset 0 exist)."""
    if dtype.kind == "b":
        return np.ones(count, dtype)
    return np.full(count, 0 if dtype.kind in "iu" else np.nan, dtype)


def _room(shape, dtype, shift=0):
    """A buffer with guards and a C-contiguous view of `shape` in it, aligned to ALIGNMENT plus
    `shift` bytes.
    """
    row = dtype.itemsize * (shape[-1] if shape else 1)
    guard = -(-max(GUARD_BYTES, 64 * row) // ALIGNMENT) * ALIGNMENT
    nbytes = dtype.itemsize * math.prod(shape)
    raw = np.empty(2 * guard + nbytes + 2 * ALIGNMENT, np.uint8)
    first = -raw.__array_interface__["data"][0] % ALIGNMENT
    buffer = raw[first:][: 2 * guard + nbytes + shift]
    for part in (buffer[:guard], buffer[guard + shift :]):
        whole = len(part) // dtype.itemsize
        part[: whole * dtype.itemsize] = _filled(whole, dtype).view(np.uint8)
        part[whole * dtype.itemsize :] = 0
    buffer[guard : guard + shift] = 0
    return buffer, np.ndarray(shape, dtype, buffer.data, guard + shift)


def _padded(shape, dtype):
    """Rows and columns of NaN after each matrix, so that a tile that is read too far shows within a
    head as well.
    """
    if len(shape) < 2:
        return _room(shape, dtype)
    buffer, room = _room((*shape[:-2], shape[-2] + 17, shape[-1] + 5), dtype)
    return buffer, room[..., : shape[-2], : shape[-1]]


def _transposed(shape, dtype):
    """Heads and rows swapped in memory, as a projection (batch, length, heads, dim) leaves them."""
    if len(shape) < 3:
        return _room(shape, dtype)
    buffer, room = _room((*shape[:-3], shape[-2], shape[-3], shape[-1]), dtype)
    return buffer, room.swapaxes(-3, -2)


def _sliced(shape, dtype):
    """Every second element along every axis."""
    buffer, room = _room(tuple(2 * size for size in shape), dtype)
    return buffer, room[(..., *(slice(None, None, 2) for _ in shape))]


def _reversed(shape, dtype):
    """Negative strides along every axis."""
    buffer, room = _room(shape, dtype)
    return buffer, room[(..., *(slice(None, None, -1) for _ in shape))]


def _column_major(shape, dtype):
    buffer, room = _room(shape[::-1], dtype)
    return buffer, room.T


def _shifted(shape, dtype):
    """Aligned to one element only."""
    return _room(shape, dtype, shift=dtype.itemsize)


LAYOUTS = {
    "contiguous": _room,
    "padded": _padded,
    "transposed": _transposed,
    "sliced": _sliced,
    "reversed": _reversed,
    "column-major": _column_major,
    "shifted": _shifted,
    "read-only": _room,
}


NUMPY = NumpyArrays()


def guarded(
    array: np.ndarray, name: str = "array", layout: str = "contiguous", library: NumpyArrays = NUMPY
) -> Guarded:
    """A copy of an array of floating-point numbers, integers or booleans inside a guarded buffer; `name`
    is for messages, `layout` is one of LAYOUTS: how the copy lies in memory. `library` makes what the kernel
    gets.

    Examples
    --------
    >>> import numpy as np
    >>> g = guarded(np.arange(6.0).reshape(2, 3), "query", "padded")
    >>> g.view.tolist(), g.damage()
    ([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]], '')
    >>> g.view[0, 0] = 7
    >>> g.damage()
    'query was changed'
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}; got layout={layout!r}.")
    array = np.asarray(array)
    buffer, view = LAYOUTS[layout](array.shape, array.dtype)
    view[...] = array
    if layout == "read-only":
        view.flags.writeable = False
    return Guarded(buffer, view, name, *library.put(buffer, view))


def guarded_output(shape, dtype, name="out", library: NumpyArrays = NUMPY) -> Guarded:
    """A buffer for a result, full of NaN inside and around."""
    dtype = np.dtype(dtype)
    buffer, view = _room(tuple(shape), dtype)
    view[...] = np.nan
    return Guarded(buffer, view, name, *library.put(buffer, view))


def guard_all(arrays, options: Mapping[str, Any], names, layout="contiguous", library=NUMPY):
    """All arrays of a call in guarded buffers: (arrays, options) to call the kernel with, and the
    guards. Arrays among the options are guarded too; the layout applies to the positional arrays
    only, which have these names.
    """
    guards = [guarded(array, name, layout, library) for array, name in zip(arrays, names, strict=True)]
    inner = {name: library.option(value, arrays[0].dtype) for name, value in options.items()}
    for name, value in inner.items():
        if isinstance(value, np.ndarray) and value.ndim:
            guards.append(guarded(value, name, library=library))
            inner[name] = guards[-1].given
    return tuple(g.given for g in guards[: len(arrays)]), inner, guards


def damage(guards) -> list[str]:
    """What a call did to its inputs, in words."""
    return [words for g in guards if (words := g.damage())]
