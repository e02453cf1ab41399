"""Calls of ours that a library takes in parts: one sequence a call, or one row of each sequence."""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn.calls.options import OPTIONS, PER_ENTRY, PER_HEAD, PER_SCORE
from refattn.calls.registry import form_called
from refattn.oracle.dialects.record import Dialect


def split_call(d: Dialect, arrays, options) -> list[tuple[tuple[np.ndarray, ...], dict[str, Any]]]:
    """The parts of a call, arrays and options each; none where the library takes it whole.

    Raises
    ------
    ValueError
        The library takes one row a sequence, and a row sees other keys than all up to its own.
    """
    if d.function == "attention" and "B" not in d.layout and arrays[0].ndim == 4:
        return [_sequence(arrays, options, b) for b in range(len(arrays[0]))]
    if "T" not in d.layout.replace("M", "T") and arrays[0].shape[-2] > 1:
        return _rows(d, arrays, options)
    return []


def joined_parts(d: Dialect, outputs, lses):
    """Output and lse of the whole call from those of its parts."""
    if "B" not in d.layout:
        return np.stack(outputs), None if lses[0] is None else np.stack(lses)
    return np.concatenate(outputs, axis=-2), None if lses[0] is None else np.concatenate(lses, axis=-1)


def _sequence(arrays, options, b):
    """One sequence of a batch."""
    cut = dict(options)
    batch_axes = {
        option.name: {PER_ENTRY: 1, PER_HEAD: 2, PER_SCORE: 4}.get(option.belongs_to) for option in OPTIONS
    }
    for name, value in options.items():
        if isinstance(value, np.ndarray) and value.ndim == batch_axes.get(name):
            cut[name] = value[b if len(value) > 1 else 0]
    return tuple(array[b] for array in arrays), cut


def _rows(d, arrays, options):
    """One row of each sequence; under a causal mask it is the last row of a sequence cut after it."""
    p = form_called(d.function).check(*arrays, **options)
    query, *others = arrays
    count = query.shape[-2]
    if (p.bounded and (p.q_offset != p.kv_lengths - count).any()) or (p.bounded and p.right != 0):
        raise ValueError(f"window must end at the row's own key: {d.call} takes one row a sequence.")
    parts = []
    for i in range(count):
        seen = p.kv_lengths if p.right is None else np.maximum(p.kv_lengths - (count - 1 - i), 0)
        cut = {name: value for name, value in options.items() if name != "q_offset"}
        parts.append(((query[..., i : i + 1, :], *others), cut | {"kv_lengths": seen}))
    return parts
