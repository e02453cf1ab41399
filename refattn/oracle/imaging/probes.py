"""Calls of the kernel: counted, copied, held to a time, their results in one form."""

from __future__ import annotations

import time

import numpy as np

from refattn.calls.registry import form_of
from refattn.oracle.bounds.results import LSE, OUTPUT
from refattn.oracle.diagnosis.axis_order import shapes_agree
from refattn.oracle.diagnosis.tell_apart import given_results, run_kernel
from refattn.oracle.harness.callables import KernelCall


class CannotProbe(Exception):
    """The kernel cannot be called with other numbers; the message says why."""


def call_once(kernel, arrays, options, dialect=None):
    """Results of one call of a kernel, by record, on copies of the arrays."""
    copied = lambda value: value.copy() if isinstance(value, np.ndarray) else value
    arrays, options = tuple(map(copied, arrays)), {name: copied(value) for name, value in options.items()}
    if dialect not in (None, "refattn"):
        result = KernelCall(kernel, form_of(arrays, options).function, dialect)(arrays, options)
        return given_results(result.output, result.lse)
    with np.errstate(all="ignore"):
        given = run_kernel(kernel, arrays, options)
    # a kernel may write its next result into the same memory
    return {result: array.copy() for result, array in given.items()}


class Probes:
    """The kernel, and what it was called for.

    Attributes
    ----------
    calls : dict of str to int
        How often it was called, by what for.
    unfinished : list of str
        What was left out for want of time.
    """

    def __init__(self, kernel, view, dialect="refattn", seconds=60.0, progress=None):
        self.view, self._end = view, time.monotonic() + seconds
        self.progress = progress or (lambda line: None)
        self.calls: dict[str, int] = {}
        self.unfinished: list[str] = []
        self._kernel, self._dialect = kernel, dialect
        self._fastest = np.inf  # seconds of a call; compilation may slow the first one

    def have_time(self, part, calls=1) -> bool:
        """Whether so many calls fit into what is left of the time. Where they do not, `part` is noted as
        unfinished.
        """
        fit = time.monotonic() + calls * self._fastest <= self._end
        if fit:
            self.progress(f"{part}: {calls} call{'s' * (calls != 1)}")
        elif part not in self.unfinished:
            self.unfinished.append(part)
        return fit

    def __call__(self, why, arrays=None):
        """Results of one call, by record, in the caller's shapes and dtypes."""
        self.calls[why] = self.calls.get(why, 0) + 1
        arrays = self.view.arrays if arrays is None else arrays
        started = time.monotonic()
        given = call_once(self._kernel, arrays, self.view.options, self._dialect)
        self._fastest = min(self._fastest, time.monotonic() - started)
        if not shapes_agree(given, self.view.checked.output_shape):
            raise CannotProbe(
                f"the output of a probe ({why}) has the shape {given[OUTPUT].shape}, not "
                f"{self.view.checked.output_shape}"
            )
        return given

    def output(self, why, arrays):
        """The output of a probe, (B, H, T, E) in float64."""
        return self.view.cut(OUTPUT, self(why, arrays)[OUTPUT])

    def results(self, why, arrays=None):
        """Output (B, H, T, E) and lse (B, H, T), or None for a kernel that returns none."""
        given = self(why, arrays)
        lse = self.view.cut(LSE, given[LSE]) if LSE in given else None
        return self.view.cut(OUTPUT, given[OUTPUT]), lse
