"""Arrays whose axes or memory are read in another order.

The reference is run on the arrays as they would be read.
"""

from __future__ import annotations

import numpy as np

from refattn.oracle.bounds.results import OUTPUT
from refattn.oracle.imaging.latent_layouts import RIGHT_SHARE, explain_latent_layout, halves_exchanged
from refattn.oracle.mistakes.wrong_kernel import checked_call
from refattn.oracle.simulated.staged import Arithmetic, run_stages


def explain_layout(measured) -> str:
    """Words for a layout under which the reference gives the kernel's output; "" if there is none."""
    view = measured.view
    if any(len(s.rows) != s.num_rows for s in view.sequences) or len(view.heads) != view.num_heads:
        return ""
    if view.latent:
        return explain_latent_layout(measured)
    if view.checked.form.name != "dense":
        return ""
    for words, arrays, back in _layouts([np.asarray(array) for array in view.arrays]):
        if back is _same and all(map(np.array_equal, arrays, view.arrays)):  # an axis of length 1
            continue
        near = _near(measured, arrays, back)
        if near is not None and near.mean() > RIGHT_SHARE and near[measured.off].mean() > RIGHT_SHARE:
            return words
    return ""


def _near(measured, arrays, back=None):
    """Where the output is that of other arrays, (B, H, T, E); None where they are no call, or one of another
    shape. `back` is what is done to the output.
    """
    view = measured.view
    if back is None and all(map(np.array_equal, arrays, view.arrays)):  # read as they should be
        return None
    try:
        checked = checked_call(*arrays, **view.options)
    except (TypeError, ValueError):
        return None
    with np.errstate(all="ignore"):
        output = run_stages(checked.part(0).drawn(), arithmetic=Arithmetic())[0]
    output = np.asarray(output, np.float64).reshape(checked.output_shape)
    output = output if back is None else back(output)
    if output.shape != view.checked.output_shape:
        return None
    return np.abs(view.cut(OUTPUT, output) - measured.output) <= measured.allowed_for_guesses()


# ways to read arrays: (words, arrays as they are read, what is done to the output)


def _same(x):
    return x


def _swap(x):
    return np.swapaxes(x, -2, -3)


def _as_memory(x):
    """Memory of (length, heads, dim), read as (heads, length, dim)."""
    return np.ascontiguousarray(_swap(x)).reshape(x.shape)


def _backwards(x):
    """Memory of (heads, length, dim), read as (length, heads, dim)."""
    return _swap(x.reshape(*x.shape[:-3], x.shape[-2], x.shape[-3], x.shape[-1]))


def _layouts(arrays):
    query, key, value = arrays
    exchanged = "the axes of heads and rows (length) are exchanged in query, key and value"
    over_heads = (_swap(query), _swap(key), _swap(value))
    yield f"{exchanged}: attention runs over the heads", over_heads, _swap
    for words, read in (
        ("memory of (length, heads, dim) is read as (heads, length, dim): strides are ignored", _as_memory),
        ("memory of (heads, length, dim) is read as (length, heads, dim)", _backwards),
    ):
        rightly = (query, read(key), read(value))
        yield f"key and value: {words}; the query is read rightly", rightly, _same
        yield f"query, key and value: {words}", (read(query), read(key), read(value)), _same
        yield f"query: {words}", (read(query), key, value), _same
        yield f"key: {words}", (query, read(key), value), _same
        yield f"value: {words}", (query, key, read(value)), _same
        yield f"output: {words}", (query, key, value), read
    for words, change in (
        ("the components of each head are read in reverse", lambda x: x[..., ::-1]),
        ("the two halves of the components are exchanged", halves_exchanged),
    ):
        yield f"query: {words}", (change(query), key, value), _same
        yield f"value: {words}", (query, key, change(value)), _same
    yield "key and value are exchanged", (query, value, key), _same
    yield "query and key are exchanged", (key, query, value), _same
