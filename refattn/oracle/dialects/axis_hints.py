"""Axis orders in which arrays that do not fit, do: sentences for errors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from refattn.calls.arrays import as_array
from refattn.calls.registry import form_called
from refattn.oracle.bounds.results import LSE, OUTPUT
from refattn.oracle.dialects.layouts import shape_from_ours
from refattn.oracle.dialects.other_calls import CALLS, call_of

# functions whose arrays other libraries write heads-last, with that order in words
HEADS_LAST = {
    "attention": "(batch, length, heads, dim)",
    "packed_attention": "(total_length, heads, dim)",
    "paged_attention": "(batch, length, heads, dim), pages as (pages, page_size, heads, dim)",
}
HEADS_AND_LENGTH, LENGTH_AND_DIM = (-3, -2), (-2, -1)


@dataclass(frozen=True)
class Order:
    """An axis order in which the arrays of a call fit."""

    function: str
    swapped: tuple[str, ...]  # names of the arrays of which two axes change places
    axes: tuple[int, int]
    libraries: tuple[str, ...]  # that write all of them in this order


def other_orders(function, arrays, options) -> Iterator[Order]:
    """Orders in which a call passes its checks: with heads and length swapped, or length and dim, in all
    arrays or in some.
    """
    if function not in HEADS_LAST:
        return
    form = form_called(function)
    names = list(form.arrays)
    try:
        arrays = [as_array(array, name) for array, name in zip(arrays, names, strict=True)]
    except (TypeError, ValueError):
        return
    if any(array.ndim < 3 for array in arrays):
        return
    everything = [(names, HEADS_AND_LENGTH), (names[1:], HEADS_AND_LENGTH)]
    single = [([name], axes) for axes in (HEADS_AND_LENGTH, LENGTH_AND_DIM) for name in names]
    for swapped, axes in (*everything, *single):
        tried = [
            np.swapaxes(array, *axes) if name in swapped else array
            for name, array in zip(names, arrays, strict=True)
        ]
        try:
            form.check(*tried, **options)
        except (TypeError, ValueError, MemoryError):
            continue
        whole = len(swapped) == len(names)
        yield Order(function, tuple(swapped), axes, libraries_with_heads_last(function) if whole else ())


def libraries_with_heads_last(function) -> tuple[str, ...]:
    """Libraries that write all arrays of a function heads-last.

    >>> libraries_with_heads_last("packed_attention")
    ('flash_attn', 'flash_attn_3', 'flashinfer')
    """
    layout = {"attention": "BTHD", "packed_attention": "THD", "paged_attention": "BTHD"}.get(function)
    return tuple(
        d.name for d in CALLS if (d.function, d.layout) == (function, layout) and "value" in d.arguments
    )


def axis_hint(order: Order, dialect="refattn") -> str:
    """What to do where arrays fit in another order, as a sentence."""
    names = " and ".join(order.swapped)
    if len(order.swapped) == len(form_called(order.function).arrays):
        hint = f" The arrays fit as {HEADS_LAST[order.function]}: swap axes -3 and -2"
    else:
        first, second = order.axes
        hint = f" The call would fit with axes {first} and {second} of {names} swapped"
    libraries = [name for name in dict.fromkeys(order.libraries) if name != dialect]
    if libraries:
        hint += f", or pass dialect={libraries[0]!r}"
        hint += f" (or {', '.join(libraries[1:])})" if libraries[1:] else ""
        hint += ", whose order that is"
    return f"{hint}."


def shapes_hint(function, arrays, options, given) -> str:
    """Which library would write arrays and results of these shapes, as a sentence; "" for none. `given`
    holds the results.
    """
    order = next(other_orders(function, arrays, options), None)
    if order is not None:
        turned = [np.swapaxes(as_array(array, "array"), *order.axes) for array in arrays]
        for name in order.libraries:
            shape = form_called(function).check(*turned, **options).output_shape
            if _writes(call_of(name, function), shape, given):
                return (
                    f" All shapes fit as {name} writes them, {HEADS_LAST[function]}: pass dialect={name!r}, "
                    "or swap axes -3 and -2 of the arrays."
                )
    return ""


def _writes(d, output_shape, given):
    """Whether results of these shapes are those of a library's call."""
    layouts = {OUTPUT: d.output_layout, LSE: d.lse_layout}
    return all(
        layouts[result] and shape_from_ours(result.shape(output_shape), layouts[result]) == array.shape
        for result, array in given.items()
    )


def with_axis_hint(check, function, arrays, options):
    """`check(*arrays, **options)`; an error of shapes says in which axis order the arrays would fit."""
    try:
        return check(*arrays, **options)
    except (TypeError, ValueError) as error:
        order = next(other_orders(function, arrays, options), None)
        if order is None:
            raise
        raise type(error)(f"{error}{axis_hint(order)}") from error
