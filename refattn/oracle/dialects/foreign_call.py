"""A call written as a library writes it, read for the oracle: `read_call`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from refattn.calls.form import Checked
from refattn.calls.registry import form_called
from refattn.oracle.bounds.results import LSE, OUTPUT
from refattn.oracle.dialects.axis_hints import axis_hint, other_orders
from refattn.oracle.dialects.layouts import axes_in_words, index_from_ours, shape_from_ours
from refattn.oracle.dialects.libraries import DIALECTS
from refattn.oracle.dialects.other_calls import call_of, call_read
from refattn.oracle.dialects.record import Dialect
from refattn.oracle.dialects.results import fills_empty_rows, result_to_ours, rows_without_keys
from refattn.oracle.dialects.translate import to_ours


@dataclass(frozen=True, eq=False)
class ForeignResults:
    """How a library writes the results of a call with an output of this shape of ours."""

    record: Dialect
    output_shape: tuple[int, ...]

    def layout(self, result) -> str:
        return self.record.output_layout if result is OUTPUT else self.record.lse_layout or ""

    def shape(self, result) -> tuple[int, ...]:
        """The shape of a result as the library returns it."""
        return shape_from_ours(result.shape(self.output_shape), self.layout(result))

    def index(self, result, index) -> tuple[int, ...]:
        """Where an element of a result of ours stands in the library's array."""
        return index_from_ours(index, result.shape(self.output_shape), self.layout(result))

    def place(self, result, index) -> str:
        """The same in words: "output[0, 17, 3, 5]"."""
        return f"{result.name}[{', '.join(map(str, self.index(result, index)))}]"

    def axes(self, result) -> str:
        """The axes of a result in the library's order, in words."""
        return axes_in_words(self.layout(result))

    @property
    def words(self) -> str:
        """The conventions of the results, in words."""
        d = self.record
        words = f"{d.name}, {d.call}: output {self.axes(OUTPUT)}"
        return words if d.lse_base is None else f"{words}, lse {self.axes(LSE)} to base {d.lse_base}"

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.record.name, "call": self.record.call, "output": self.axes(OUTPUT)} | (
            {} if self.record.lse_base is None else {"lse": self.axes(LSE), "lse_base": self.record.lse_base}
        )

    def wrong_shape(self, result, array) -> str:
        """What is wrong with the shape of a result that a library wrote, in words; "" where nothing is."""
        if result is LSE and self.record.lse_base is None:
            return f"must be None: {self.record.call} returns none"
        shape = self.shape(result)
        if array.shape == shape:
            return ""
        others = [
            d.name
            for d in DIALECTS.values()
            if d.function == self.record.function
            and (layout := d.output_layout if result is OUTPUT else d.lse_layout)
            and layout != self.layout(result)
            and ("B" in layout) == ("B" in self.layout(result))
            and shape_from_ours(result.shape(self.output_shape), layout) == array.shape
        ]
        fits = f" That is how {', '.join(others)} would write it." if others else ""
        return (
            f"must have shape {shape}, {self.axes(result)} as {self.record.name} writes it; got "
            f"{array.shape}.{fits}"
        )


@dataclass(frozen=True, eq=False)
class ForeignCall:
    """A library's call in our terms, and how its results are read."""

    record: Dialect
    function: str  # of `refattn`
    arrays: tuple[np.ndarray, ...]
    options: dict[str, Any]
    checked: Checked

    @property
    def results(self) -> ForeignResults:
        return ForeignResults(self.record, self.checked.output_shape)

    @property
    def empty_rows(self) -> np.ndarray | None:
        """Rows that see no key, (..., H, T), where the library leaves anything else than 0 there; else
        None.
        """
        if not fills_empty_rows(self.record):
            return None
        empty = rows_without_keys(self.checked)
        return empty if empty.any() else None

    @property
    def leaves_sinks_out(self) -> bool:
        """Whether the lse of this call is that of the same call without its sinks."""
        return self.record.sinks_in_lse is False and self.options.get("sinks") is not None

    def require_shapes(self, given):
        """Raise where a result does not have the shape that the library gives it."""
        for result, array in given.items():
            if words := self.results.wrong_shape(result, array):
                raise ValueError(f"{result.name} {words}")

    def to_ours(self, output, lse=None, sinks=True):
        """Results of the library in our conventions; `sinks=False`: the lse as the library means it."""
        with_sinks = self.options.get("sinks") if sinks else None
        how = {"heads": self.checked.output_shape[-3], "sinks": with_sinks, "empty": self.empty_rows}
        return result_to_ours(self.record.name, output, lse, function=self.function, **how)


def read_call(name: str, arrays, call) -> ForeignCall:
    """A library's call, its arrays in the library's order or among the keyword arguments.

    Parameters
    ----------
    name : str
        Of a dialect.
    arrays : tuple of array_like
        Query, key and value, in the library's axis order.
    call : dict
        Its other arguments under its own names.

    Raises
    ------
    TypeError, ValueError
        As `to_ours`, and as the function of `refattn` that it is, with the library's names beside ours, and
        the axis order that would fit where another one does.
    """
    d = call_read(name, call)
    roles = [role for role in ("query", "key", "value") if role in d.arguments]
    names = [d.arguments[role] for role in roles]
    if d.arguments.get("block_table") == "indices" and len(arrays) == 2:
        names = [d.arguments["query"], "paged_kv_cache"]
    if arrays and len(arrays) != len(names):
        raise TypeError(f"arrays must be {', '.join(names)} of {d.call}; got {len(arrays)} arrays.")
    twice = {*names[: len(arrays)]} & {*call}
    if twice:
        raise TypeError(f"{sorted(twice)[0]} must be given once; got it as an array and by name.")
    function, ours, options = to_ours(name, **dict(zip(names, arrays, strict=False)), **call)
    try:
        checked = form_called(function).check(*ours, **options)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"{error}{_in_its_words(d, str(error))}{_fitting(d, function, ours, options)}"
        ) from error
    return ForeignCall(d, function, ours, options, checked)


def written_by(name: str, function, arrays, options) -> ForeignCall:
    """A call of ours, `function` of `refattn`, whose results a library wrote.

    Raises
    ------
    TypeError, ValueError
        As the function, and for a dialect that is unknown or has no such call.
    """
    d = call_of(name, function)
    return ForeignCall(d, function, arrays, options, form_called(function).check(*arrays, **options))


def _in_its_words(d, message):
    """The library's names of what a message names, and the axes in which it counts."""
    ours = {role: word for role, word in d.arguments.items() if role != word}
    if d.paged:
        ours |= {f"{role}_pages": d.arguments[role] for role in ("key", "value") if role in d.arguments}
    named = [f"{role} is {ours[role]}" for role in ours if re.search(rf"\b{role}\b", message)]
    words = f" In {d.call} {', '.join(named)}." if named else ""
    return (
        f"{words} Shapes are those of refattn, (..., heads, length, dim)." if "shape" in message else words
    )


def _fitting(d, function, arrays, options):
    """The axis order in which the arrays would fit, in a sentence; "" where none does."""
    return next((axis_hint(order, d.name) for order in other_orders(function, arrays, options)), "")
