"""Arrays whose axes or memory are read in another order: the reference, run on the arrays as they would be read."""

from __future__ import annotations

import numpy as np

from refattn.oracle.bounds.results import OUTPUT
from refattn.oracle.mistakes.wrong_kernel import checked_call
from refattn.oracle.simulated.staged import run_stages

RIGHT_SHARE = 0.98  # of the numbers of the output


def explain_layout(measured) -> str:
    """Words for a layout under which the reference gives the kernel's output; "" if there is none."""
    view = measured.view
    if view.checked.form.name != "dense" or any(len(s.rows) != s.num_rows for s in view.sequences) or len(view.heads) != view.num_heads:
        return ""
    for words, arrays, back in _layouts(view.arrays):
        try:
            checked = checked_call(*arrays, **view.options)
        except (TypeError, ValueError):
            continue
        with np.errstate(all="ignore"):
            output = run_stages(checked.drawn())[0]
        output = back(np.asarray(output, np.float64).reshape(checked.output_shape))
        if output.shape != view.checked.output_shape:
            continue
        off = np.abs(view.cut(OUTPUT, output) - measured.output)
        size = np.abs(measured.output) + measured.output_tolerance
        near = off <= 4 * measured.output_tolerance + 0.02 * size * (measured.spec.output.unit_roundoff > 1e-4)
        if near.mean() > RIGHT_SHARE:
            return words
    return ""


def _layouts(arrays):
    """(words, arrays as they are read, what is done to the output)."""
    query, key, value = (np.asarray(array) for array in arrays)
    same = lambda x: x
    swap = lambda x: np.swapaxes(x, -2, -3)
    memory = lambda x: np.ascontiguousarray(swap(x)).reshape(x.shape)
    backwards = lambda x: swap(x.reshape(*x.shape[:-3], x.shape[-2], x.shape[-3], x.shape[-1]))
    yield "the axes of heads and rows (length) are exchanged in query, key and value: attention runs over the heads", (swap(query), swap(key), swap(value)), swap
    for words, read in (
        ("memory of (length, heads, dim) is read as (heads, length, dim): strides are ignored", memory),
        ("memory of (heads, length, dim) is read as (length, heads, dim)", backwards),
    ):
        yield f"key and value: {words}; the query is read rightly", (query, read(key), read(value)), same
        yield f"query, key and value: {words}", (read(query), read(key), read(value)), same
        yield f"query: {words}", (read(query), key, value), same
        yield f"key: {words}", (query, read(key), value), same
        yield f"value: {words}", (query, key, read(value)), same
        yield f"output: {words}", (query, key, value), read
    for words, change in (
        ("the components of each head are read in reverse", lambda x: x[..., ::-1]),
        ("the two halves of the components are exchanged", lambda x: np.roll(x, x.shape[-1] // 2, axis=-1)),
    ):
        yield f"query: {words}", (change(query), key, value), same
        yield f"value: {words}", (query, key, change(value)), same
    yield "key and value are exchanged", (query, value, key), same
    yield "query and key are exchanged", (key, query, value), same
