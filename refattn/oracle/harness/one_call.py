"""One call of a kernel on copies of what the caller gave, and its results as arrays.

A kernel that changes its arguments in place can thus not change the question; that it does is said.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import numpy as np

from refattn.calls.arrays import as_array, as_float_array, is_float
from refattn.calls.host_copy import on_host
from refattn.calls.registry import form_of
from refattn.oracle.bounds.results import Result, handed_over
from refattn.oracle.harness.callables import KernelCall
from refattn.oracle.harness.guards import NUMPY
from refattn.oracle.verdict.layout_hint import layout_hint

NO_ARRAYS = (dict, set, str, bytes, type)


def call_once(kernel, arrays, options, dialect=None):
    """Results of one call of a kernel, by record, on copies of the arrays."""
    return CalledKernel(kernel, dialect)(arrays, options)


class CalledKernel:
    """A kernel, called on copies of arrays and options, which `library` makes; it returns results by record.

    Attributes
    ----------
    count : int
        How often it was called.
    fastest : float
        Seconds of a call; compilation may slow the first one.
    changed : set of str
        Arguments that it changes in place; of arrays that are not NumPy's, in the first call.
    """

    def __init__(self, kernel, dialect=None, library=NUMPY):
        self.count, self.fastest, self.changed = 0, np.inf, set()
        self._kernel, self._dialect, self._library = kernel, dialect, library

    def __call__(self, arrays, options):
        started = time.monotonic()
        self.count += 1
        with np.errstate(all="ignore"):
            if self._dialect in (None, "refattn"):
                looked_at = self.count == 1 or self._library.name == "numpy"
                changed = self.changed if looked_at else None
                given = run_kernel(self._kernel, arrays, options, changed, self._library)
            else:
                function = form_of(arrays, options).function
                call = KernelCall(self._kernel, function, self._dialect, library=self._library)
                result = call(arrays, options)
                given = returned_results((result.output, result.lse))
        self.fastest = min(self.fastest, time.monotonic() - started)
        return given


def run_kernel(
    kernel: Callable, arrays, options, changed: set | None = None, library=NUMPY
) -> dict[Result, np.ndarray]:
    """What a kernel gives, by record. Names of arguments that it changes are added to `changed`."""
    dtype = getattr(arrays[0], "dtype", None) if arrays else None
    options = {name: library.option(value, dtype) for name, value in options.items()}
    copies = [_copied(array, library) for array in arrays]
    named = {name: _copied(value, library) for name, value in options.items()}
    with library.running():
        returned = kernel(*copies, **named)
        library.wait(returned)
    given = returned_results(returned)
    if changed is not None:
        names = (*form_of(arrays, options).arrays, *options)
        pairs = zip((*arrays, *options.values()), (*copies, *named.values()), strict=True)
        changed.update(name for name, pair in zip(names, pairs, strict=True) if _differ(*pair))
    # a kernel may write its next result into the same memory
    return {result: array.copy() for result, array in given.items()}


def given_results(actual, lse) -> dict[Result, np.ndarray]:
    """The results that a caller hands over, as arrays."""
    if isinstance(actual, tuple) and len(actual) == 2 and np.ndim(actual[0]) == np.ndim(actual[1]) + 1:
        raise TypeError(
            "actual must be the output alone; got a tuple of output and lse. Pass the lse as lse=."
        )
    return handed_over(as_float_array(actual, "actual"), None if lse is None else as_float_array(lse, "lse"))


def returned_results(returned) -> dict[Result, np.ndarray]:
    """What a kernel returned, output or (output, lse), as arrays by record."""
    output, lse = returned, None
    if isinstance(returned, tuple) or (isinstance(returned, list) and not _alike(returned)):
        if not returned:
            raise TypeError("kernel must return output or (output, lse); it returned ().")
        output, lse = (*returned, None)[:2]
    return handed_over(_returned(output, "output"), None if lse is None else _returned(lse, "lse"))


def wrong_shape(given, shape, whose="the kernel returned") -> str:
    """What is wrong with the shapes of results beside an output of this shape, in words, or ""."""
    for result, array in given.items():
        right = result.shape(shape)
        if array.shape != right:
            hint = layout_hint(array.shape, right)
            return f"{result.name} must have shape {right}; {whose} {array.shape}.{hint}"
    return ""


def _copied(value, library):
    return library.copied(value) if isinstance(value, np.ndarray) else copy.deepcopy(value)


def _differ(before, after):
    """Whether an array is not what it was; NaN is NaN."""
    if not isinstance(before, np.ndarray):
        return False
    after = as_array(on_host(after, "argument"), "argument")
    same = (before == after) | ((before != before) & (after != after))
    return not np.all(same)


def _alike(parts):
    """Whether the parts of a list are numbers or arrays of one shape: rows or heads, not results."""
    try:
        return len({np.shape(part) for part in parts}) == 1
    except ValueError:  # ragged
        return False


def _returned(array, name):
    if array is None or isinstance(array, NO_ARRAYS):
        what = "None" if array is None else f"a {type(array).__name__}"
        raise TypeError(f"kernel must return output or (output, lse), arrays; the kernel returned {what}.")
    try:
        array = as_array(on_host(array, name), name)
    except (TypeError, ValueError) as error:
        raise TypeError(f"the kernel returned what is no array of numbers: {error}") from error
    if not is_float(array.dtype):
        raise TypeError(
            f"{name} must be float16, bfloat16, float32 or float64; the kernel returned {array.dtype}."
        )
    return array
