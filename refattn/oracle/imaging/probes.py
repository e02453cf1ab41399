"""Calls of the kernel: counted, copied, held to a time, their results in one form."""

from __future__ import annotations

import time

from refattn.oracle.bounds.results import LSE, OUTPUT
from refattn.oracle.harness.one_call import CalledKernel, wrong_shape

CALLS = 0.75  # of the time: the rest is for describing


class CannotProbe(Exception):
    """The kernel cannot be called with other numbers; the message says why."""


class Probes:
    """The kernel, and what it was called for.

    Attributes
    ----------
    calls : dict of str to int
        How often it was called, by what for.
    end : float
        When the time ends, on the clock `time.monotonic`; calls end before, to leave some for describing.
    unfinished : list of str
        What was left out for want of time.
    failed : str
        Why the kernel could not be probed; "" where it could.
    """

    def __init__(self, kernel, view, dialect="refattn", seconds=60.0, progress=None):
        now = time.monotonic()
        self.view, self.end = view, now + seconds
        self._calls_end = now + CALLS * seconds
        self.progress = progress or (lambda line: None)
        self.kernel = kernel if isinstance(kernel, CalledKernel) else CalledKernel(kernel, dialect)
        self.calls: dict[str, int] = {"the call itself": self.kernel.count} if self.kernel.count else {}
        self.unfinished: list[str] = []
        self.failed = ""  # why no more calls were made
        self._results = None  # the records that it returns

    def have_time(self, part, calls=1) -> bool:
        """Whether so many calls fit into what is left of the time. Where they do not, `part` is noted as
        unfinished.
        """
        fit = self.fits(calls)
        if fit:
            self.progress(f"{part}: {calls} call{'s' * (calls != 1)}")
        elif part not in self.unfinished:
            self.unfinished.append(part)
        return fit

    def fits(self, calls):
        """Whether so many calls fit into what is left of the time for calls."""
        each = self.kernel.fastest if self.kernel.count else 0.0
        return time.monotonic() + calls * each <= self._calls_end

    def __call__(self, why, arrays=None):
        """Results of one call, by record, in the caller's shapes and dtypes."""
        self.calls[why] = self.calls.get(why, 0) + 1
        where = (
            "a second call with the same arrays" if arrays is None else f"a call with other arrays ({why})"
        )
        arrays = self.view.arrays if arrays is None else arrays
        try:
            given = self.kernel(arrays, self.view.options)
        except Exception as error:
            error = error.__cause__ or error  # of a kernel that is wrapped
            words = f"the kernel raised {type(error).__name__} in {where}: {error}"
            raise CannotProbe(words) from error
        if words := wrong_shape(given, self.view.checked.output_shape):
            raise CannotProbe(f"in {where}, {words}")
        self._results = given.keys() if self._results is None else self._results
        if given.keys() != self._results:
            raise CannotProbe("the kernel returned an lse in some calls and none in others")
        return given

    def output(self, why, arrays):
        """The output of a probe, (B, H, T, E) in float64."""
        return self.view.cut(OUTPUT, self(why, arrays)[OUTPUT])

    def results(self, why, arrays=None):
        """Output (B, H, T, E) and lse (B, H, T), or None for a kernel that returns none."""
        given = self(why, arrays)
        lse = self.view.cut(LSE, given[LSE]) if LSE in given else None
        return self.view.cut(OUTPUT, given[OUTPUT]), lse
