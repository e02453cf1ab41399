"""Axis orders in which arrays that do not fit, do: sentences for errors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from refattn.calls.arrays import as_array
from refattn.calls.registry import form_called
from refattn.oracle.dialects.other_calls import CALLS

# functions whose arrays other libraries write heads-last, with that order in words
HEADS_LAST = {
    "attention": "(batch, length, heads, dim)",
    "packed_attention": "(total_length, heads, dim)",
    "paged_attention": "(batch, length, heads, dim), pages as (pages, page_size, heads, dim)",
}
HEADS, LENGTH = -3, -2


@dataclass(frozen=True)
class Order:
    """An axis order in which the arrays of a call fit."""

    function: str
    swapped: tuple[str, ...]  # names of the arrays whose heads and length change places
    libraries: tuple[str, ...]  # that write all of them in this order


def other_orders(function, arrays, options) -> Iterator[Order]:
    """Orders with heads and length swapped, in all arrays or in some, in which a call passes its checks."""
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
    for swapped in (names, names[1:], names[:1], names[1:2], names[2:]):
        tried = [
            np.swapaxes(array, HEADS, LENGTH) if name in swapped else array
            for name, array in zip(names, arrays, strict=True)
        ]
        try:
            form.check(*tried, **options)
        except (TypeError, ValueError, MemoryError):
            continue
        yield Order(function, tuple(swapped), _libraries(function) if len(swapped) == len(names) else ())


def _libraries(function):
    """Libraries that write all arrays of a function heads-last."""
    layouts = {"attention": "BTHD", "packed_attention": "THD", "paged_attention": "BTHD"}
    return tuple(d.name for d in CALLS if (d.function, d.layout) == (function, layouts[function]))


def axis_hint(order: Order, dialect="refattn") -> str:
    """What to do where arrays fit in another order, as a sentence."""
    names = " and ".join(order.swapped)
    if len(order.swapped) == len(form_called(order.function).arrays):
        hint = f" The arrays fit as {HEADS_LAST[order.function]}: swap axes -3 and -2"
    else:
        hint = f" The call would fit with axes -3 and -2 of {names} swapped"
    libraries = [name for name in dict.fromkeys(order.libraries) if name != dialect]
    if libraries:
        hint += f", or pass dialect={libraries[0]!r}"
        hint += f" (or {', '.join(libraries[1:])})" if libraries[1:] else ""
        hint += ", whose order that is"
    return f"{hint}."


def with_axis_hint(check, function, arrays, options):
    """`check(*arrays, **options)`; an error of shapes says in which axis order the arrays would fit."""
    try:
        return check(*arrays, **options)
    except (TypeError, ValueError) as error:
        order = next(other_orders(function, arrays, options), None)
        if order is None:
            raise
        raise type(error)(f"{error}{axis_hint(order)}") from error
