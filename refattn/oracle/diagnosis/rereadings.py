"""Other readings of a call: arrays and results whose axes stand in another order than the call says.

No kernel is wrong on such a call taken by itself: with its arrays and results read otherwise, the result is
right. So a reading is another call, judged as `check` judges calls, and no sizes make it another question.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from refattn.calls.registry import form_of
from refattn.oracle.bounds.results import LSE, OUTPUT
from refattn.oracle.diagnosis.evidence import Evidence
from refattn.oracle.diagnosis.findings import Finding
from refattn.oracle.diagnosis.fit_bound import bound_use
from refattn.oracle.diagnosis.samples import choose_samples
from refattn.oracle.dialects.axis_hints import libraries_with_heads_last
from refattn.oracle.mistakes.wrong_kernel import checked_call

SHARE = 0.25  # of the time of `diagnose`, at most
WRONG_SHARE = 0.3  # of the elements, at least, where axes stand in another order
FIRST_LOOK = 2**18  # multiplications of the sample on which a reading is looked at first
LARGEST = 2**26  # numbers of arrays that are copied to be read in another order
AXES = ("batch", "heads", "length", "dim")
SWAPS = ((-3, -2), (-2, -1), (-3, -1))
# read with the strides of (..., length, heads, dim) in `mistakes/heads.py`
KNOWN = (("query",), ("key", "value"), ("query", "key", "value"))


@dataclass(frozen=True)
class Reading:
    """One other reading of a call, with the words for it."""

    id: str
    says: str
    remedy: str
    arrays: tuple[np.ndarray, ...]
    given: dict[Any, np.ndarray]


def mostly_wrong(checked, given, spec) -> bool:
    """Whether so much of a sample of the result is wrong that axes in another order can be the reason: next
    to nothing is right then.
    """
    little = Evidence(checked, given, spec, choose_samples(checked, FIRST_LOOK))
    with np.errstate(all="ignore"):
        error = np.abs(little.observed[OUTPUT] - little.reference[OUTPUT])
        wrong = ~(error <= little.yardstick[OUTPUT])
    return wrong.mean() > WRONG_SHARE if wrong.size else False


def in_another_order(arrays, options, given, spec, budget, from_kernel=False) -> Finding | None:
    """The order of axes in which the result is right, where all arrays have it; None where there is none."""
    form, names, arrays = _of_three(arrays, options)
    if not arrays:
        return None
    return _first(_all_in_another_order(form, names, arrays, given, from_kernel), options, spec, budget)


def some_read_otherwise(arrays, options, given, spec, budget) -> Finding | None:
    """The same where some arrays have axes swapped, or their memory is read in another order."""
    _, names, arrays = _of_three(arrays, options)
    if not arrays:
        return None
    readings = itertools.chain(_some_swapped(names, arrays, given), _strides_ignored(names, arrays, given))
    return _first(readings, options, spec, budget)


def _of_three(arrays, options):
    """The form, and names and arrays of a call of queries, keys and values, else no arrays."""
    form, arrays = form_of(arrays, options), tuple(np.asarray(array) for array in arrays)
    fits = len(arrays) == 3 and len({array.ndim for array in arrays}) == 1 and arrays[0].ndim >= 3
    return form, list(form.arrays), arrays if fits and "rope" not in options else ()


def _first(readings, options, spec, budget):
    """The finding of the first reading under which the result is right, within a share of the time."""
    until = budget.spent + SHARE * budget.left
    for reading in readings:
        if budget.spent > until:
            return None
        if (used := _use_of(reading, options, spec, budget)) is not None:
            return Finding(reading.id, reading.says, reading.remedy, used, 0.0, True)
    return None


def _use_of(reading, options, spec, budget):
    """The use of the bound by the result under a reading, where it is right; else None."""
    try:
        checked = checked_call(*reading.arrays, **options)
    except (TypeError, ValueError, MemoryError):
        return None
    if any(array.shape != result.shape(checked.output_shape) for result, array in reading.given.items()):
        return None
    little = Evidence(checked, reading.given, spec, choose_samples(checked, FIRST_LOOK))
    if not little.baseline.explains:
        return None
    samples = choose_samples(checked)
    used = budget.run("judge", bound_use, Evidence(checked, reading.given, spec, samples)).used
    return used if used <= 1 else None


def axes_in_order(order):
    """The names of axes of which the last is the last of `AXES`, in an order."""
    names = AXES[-len(order) :]
    return f"({', '.join(names[axis] for axis in order)})"


def _all_in_another_order(form, names, arrays, given, from_kernel) -> Iterator[Reading]:
    """All arrays, and the output with them or as it is, laid out in another order of axes."""
    rank = arrays[0].ndim
    heads_last = (*range(rank - 3), rank - 2, rank - 3, rank - 1)
    orders = [heads_last]
    if rank <= len(AXES):
        dim_last = ((*order, rank - 1) for order in itertools.permutations(range(rank - 1)))
        orders += [order for order in dim_last if order not in (heads_last, tuple(range(rank)))]
    for order in orders:
        back = np.argsort(order)
        turned = tuple(array.transpose(back) for array in arrays)
        words = axes_in_order(order) if rank <= len(AXES) else "(..., length, heads, dim)"
        for output_too in (True, False):
            output = given[OUTPUT]
            if output_too and output.ndim == rank:
                output = output.transpose(back)
            says = _says_all(names, words, output_too, from_kernel)
            remedy = _remedy(form, order == heads_last and rank <= len(AXES), output_too, back)
            yield from _with_lses("axis_order", says, remedy, turned, given, output)


def _with_lses(id, says, remedy, arrays, given, output) -> Iterator[Reading]:
    """One reading without lse; with one, a reading for either order of its axes."""
    if LSE not in given:
        yield Reading(id, says, remedy, arrays, {OUTPUT: output})
        return
    lse = given[LSE]
    yield Reading(id, says, remedy, arrays, {OUTPUT: output, LSE: lse})
    if lse.ndim >= 2:
        more = f"{says}; the lse has its last two axes swapped too"
        yield Reading(id, more, remedy, arrays, {OUTPUT: output, LSE: np.swapaxes(lse, -1, -2)})


def _says_all(names, words, output_too, from_kernel):
    results = "and so is the output" if output_too else "and the output is not"
    if from_kernel:
        written = "and writes" if output_too else "and does not write"
        return f"the kernel reads {', '.join(names)} as {words}, {written} its output so"
    return (
        f"{', '.join(names)} are laid out {words}, {results}; here they are read as if heads "
        f"came before length, "
        "so that attention runs along the wrong axis"
    )


def _remedy(form, heads_last, output_too, back):
    """The library that writes arrays so, else the transposition."""
    which = "query, key, value and output" if output_too else "the arrays"
    names = libraries_with_heads_last(form.function)
    if heads_last and output_too and names:
        return f"dialect={names[0]!r}, or swapaxes(-3, -2) of {which},"
    return f"transpose{tuple(int(axis) for axis in back)} of {which}"


def _subsets(names):
    for count in (1, 2, 3):
        yield from itertools.combinations(names, count)


def _some_swapped(names, arrays, given) -> Iterator[Reading]:
    """Two axes of one or two arrays swapped by whoever calls; only where the sizes allow it."""
    words = {-3: "heads", -2: "length", -1: "dim"}
    for chosen in _subsets(names):
        for first, second in SWAPS:
            if len(chosen) == len(names) and (first, second) == (-3, -2):
                continue  # one of `_all_in_another_order`
            turned = tuple(
                np.swapaxes(array, first, second) if name in chosen else array
                for name, array in zip(names, arrays, strict=True)
            )
            which = " and ".join(chosen)
            has = "has" if len(chosen) == 1 else "have"
            yield Reading(
                "axes_swapped",
                f"{which} {has} the axes of {words[first]} and {words[second]} swapped",
                f"swapaxes({first}, {second}) of {which}",
                turned,
                given,
            )


def _strides_ignored(names, arrays, given) -> Iterator[Reading]:
    """Memory of some arrays read in the order of other axes, as by a kernel that ignores strides, or takes
    those of another layout.
    """
    if sum(array.size for array in arrays) > LARGEST:
        return
    for chosen, (axes, layout) in itertools.product(_subsets(names), LAYOUTS.items()):
        if any(1 in (array.shape[axes[0]], array.shape[axes[1]]) for array in _those(chosen, names, arrays)):
            continue  # the same memory
        which = " and ".join(chosen)
        ways = {
            _ignored: f"the strides of {which} are ignored: memory laid out {layout} is read as contiguous",
            _taken: f"the memory of {which} is read as if it were laid out {layout}",
        }
        for read, says in ways.items():
            if read is _taken and axes == (-3, -2) and chosen in KNOWN:
                continue
            turned = tuple(
                read(array, axes) if name in chosen else array
                for name, array in zip(names, arrays, strict=True)
            )
            yield Reading("strides_ignored", says, "", turned, given)
            if len(chosen) == len(names):
                for back in (_ignored, _taken):
                    output = {**given, OUTPUT: back(given[OUTPUT], axes)}
                    yield Reading("strides_ignored", f"{says}, and so is the output", "", turned, output)


LAYOUTS = {(-3, -2): "(..., length, heads, dim)", (-2, -1): "(..., heads, dim, length)"}


def _those(chosen, names, arrays):
    return [array for name, array in zip(names, arrays, strict=True) if name in chosen]


def _ignored(array, axes):
    """What stands in the memory of an array with two axes swapped, read as if it were contiguous."""
    return np.swapaxes(array, *axes).reshape(array.shape)


def _taken(array, axes):
    """What stands in contiguous memory, read with two axes swapped."""
    return np.swapaxes(array.reshape(np.swapaxes(array, *axes).shape), *axes)
