"""A kernel with all that its tests need, and the tests: what `check_kernel` runs.

Sections, each a list of tests with a name:

    reference     output and lse against the reference, over options, shapes and families of inputs
    exact         calls whose output is known bit for bit
    identities    the kernel against itself (`identities`)
    hidden slots  what no row may see holds NaN, or numbers: the same result
    guards        inputs and the bytes around all buffers stay as they were; only `out=` is written
    repeatable    equal bits when called again
    strides       inputs that are not contiguous, not aligned, or read-only

Inputs always lie between guard bands of NaN (`guards`).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from refattn.oracle.arithmetic.spec import KernelSpec, spec_words
from refattn.oracle.bounds.results import LSE, RESULTS
from refattn.oracle.harness.callables import KernelCall, Result, Unsupported
from refattn.oracle.harness.guards import LAYOUTS
from refattn.oracle.harness.identities import Run, identities, use_of_allowance
from refattn.oracle.inputs.families import AttentionInputs
from refattn.oracle.inputs.of_form import inputs_of
from refattn.oracle.inputs.variants import fitted, held_in, with_numbers
from refattn.oracle.verdict.check import check
from refattn.oracle.verdict.report import Report

DIAGNOSIS_SECONDS = 10.0
REPEATS = {"quick": 2, "full": 5}


@dataclass
class Failure(Exception):
    """A test that the kernel did not pass."""

    words: str
    report: Report | None = None
    result: Result | None = None


@dataclass(frozen=True)
class Trial:
    """One line of the harness: `run()` returns the use of the bound or raises Failure or Unsupported."""

    section: str
    name: str
    run: Callable[[], float | None]
    inputs: AttentionInputs | None = None

    @property
    def id(self):
        return f"{self.section}: {self.name}"


@dataclass
class Bench:
    """A kernel with all that its tests need."""

    call: KernelCall
    spec: KernelSpec
    dtype: np.dtype
    form: str | None
    head_dims: tuple[int, int] | None
    skip: tuple[str, ...]
    seed: int
    level: str
    hides_nan: bool = True
    supports: set[str] | None = None  # what the caller named; `call.supports` is what holds
    ignore_empty_rows: bool = False

    def settings(self):
        device = self.call.library.device_name
        return {
            "function": self.call.function,
            "dialect": self.call.dialect.name,
            "level": self.level,
            "dtype": self.handed.name,
            "seed": self.seed,
            "arrays": self.call.library.name,
            **({} if device is None else {"device": device}),
        }

    @property
    def handed(self):
        """The dtype in which the kernel gets its inputs."""
        return self.call.stored or self.dtype

    def reproduction(self, test):
        given = {
            "function": ("attention", self.call.function),
            "dialect": ("refattn", self.call.dialect.name),
            "level": ("quick", self.level),
            "dtype": (None, self.handed.name),
            "supports": (None, self.supports),
            "form": (None, self.form),
            "head_dims": (None, self.head_dims),
            "hides_nan": (True, self.hides_nan),
            "ignore_empty_rows": (False, self.ignore_empty_rows),
            "seed": (None, self.seed),
            "arrays": ("numpy", self.call.library.name),
            "device": (None, self.call.library.device_name),
            "only": (None, [test.id]),
        }
        words = [f"{name}={in_order(value)}" for name, (default, value) in given.items() if value != default]
        return f"check_kernel({self.call.name}, spec={spec_words(self.spec)}, {', '.join(words)})"

    # one call and its verdict

    def options_for_check(self, options):
        if "form" not in self.call.form.choices or "form" in options:
            return options
        return {"form": self.form or "absorb", **options}

    def options_for_kernel(self, options):
        if "form" in {*self.call.form.choices} & self.call.supports and "form" not in options:
            return {"form": self.form or "absorb", **options}
        return options

    def result(self, arrays, options, **how) -> Result:
        result = self.call(arrays, self.options_for_kernel(options), **how)
        return self.call.without_empty_rows(result, arrays, options) if self.ignore_empty_rows else result

    def run(self, arrays, options, **how) -> Result:
        result = self.result(arrays, options, **how)
        if result.damage:
            raise Failure("; ".join(result.damage))
        return result

    def judged(self, inputs: AttentionInputs, result: Result) -> float:
        """Use of the bound; Failure when it is exceeded."""
        options = self.options_for_check(inputs.options)
        report = check(
            result.output,
            *inputs.arrays,
            lse=result.lse,
            spec=self.spec,
            function=self.call.function,
            **options,
        )
        if report.wrong:
            raise Failure(report.summary, report, result)
        if not report.passed:
            raise Unsupported("not judged: an intermediate may overflow the formats of the spec")
        return max(measure.use_tight for measure in (report.output, report.lse) if measure is not None)

    def diagnosis(self, inputs, failure):
        from refattn.oracle.diagnosis.search import diagnose

        options, report = self.options_for_check(inputs.options), failure.report
        measures = () if report is None else (report.output, report.lse)
        near = next((measure.worst for measure in measures if measure is not None and measure.failed), None)
        how = {"spec": self.spec, "seconds": DIAGNOSIS_SECONDS, "near": near, **options}
        try:
            return diagnose(self.replay(inputs, failure.result), *inputs.arrays, **how)
        except (ValueError, TypeError):  # a shape no reading fits: the report has said so
            return None
        except Exception:  # the kernel may raise on the numbers of a probe; its result is left
            return diagnose(failure.result.output, *inputs.arrays, lse=failure.result.lse, **how)

    def replay(self, inputs, result):
        """The kernel as `diagnose` calls it; the failed call is not made again, it gave `result`."""

        def kernel(*arrays, **options):
            if all(map(operator.is_, arrays, inputs.arrays)):
                return result.output, result.lse
            if "form" in {*self.call.form.choices} - self.call.supports:
                options = {name: value for name, value in options.items() if name != "form"}
            again = self.result(arrays, options)
            return again.output, again.lse

        return kernel

    # the sections

    def tests(self) -> Iterator[Trial]:
        function, of_form = self.call.function, inputs_of(self.call.form)
        cases = [
            self.fitted(inputs) for inputs in of_form.cases(self.dtype, self.seed, self.level, self.call)
        ]
        if self.head_dims is not None:
            cases = [inputs for inputs in cases if "head_dim" not in inputs.name]
        for inputs in cases:
            yield Trial("reference", inputs.name, partial(self.reference, inputs), inputs)
        for inputs in map(self.fitted, of_form.exact(self.dtype, self.seed)):
            yield Trial("exact", inputs.name.removeprefix("exact: "), partial(self.exact, inputs), inputs)
        for identity in identities(function):
            yield Trial("identities", identity.name, partial(self.identity, identity))
        for name, *pair in of_form.hidden_pairs(self.dtype, self.seed, self.call):
            clean, poisoned = map(self.fitted, pair)
            yield Trial("hidden slots", name, partial(self.hidden, clean, poisoned), poisoned)
        laid_out = {*self.call.form.structure, *self.call.form.choices}
        wanted = {"causal"} if self.call.dialect.always_causal else set()
        plain = next(inputs for inputs in cases if {*inputs.options} - laid_out == wanted)
        yield from self.trials_of_buffers(cases, plain, cases[:8] if self.level == "quick" else cases)

    def trials_of_buffers(self, cases, plain, repeated) -> Iterator[Trial]:
        """What a kernel does to memory, and whether it repeats itself; `plain` is a call without options."""
        yield Trial("guards", "inputs and the bytes around them unchanged", partial(self.untouched, cases))
        yield Trial("guards", "out= written, and nothing around it", partial(self.out, plain), plain)
        for inputs in repeated:
            yield Trial("repeatable", inputs.name, partial(self.repeatable, inputs))
        for layout in LAYOUTS:
            if layout != "contiguous":
                yield Trial("strides", layout, partial(self.reference, plain, layout=layout), plain)

    def fitted(self, inputs):
        inputs = fitted(inputs if self.hides_nan else with_numbers(inputs), self.head_dims)
        return held_in(inputs, self.call.stored)

    def reference(self, inputs, **how):
        return self.judged(inputs, self.run(inputs.arrays, inputs.options, **how))

    def exact(self, inputs):
        result = self.run(inputs.arrays, inputs.options)
        use = self.judged(inputs, result)
        wrong = np.asarray(result.output, np.float64) != inputs.output
        if wrong.any():
            at = tuple(int(i) for i in np.argwhere(wrong)[0])
            right, got = float(inputs.output[at]), float(result.output[at])
            raise Failure(f"the output is {right!r} exactly at {at}; got {got!r}", None, result)
        return use

    def identity(self, identity):
        results = {result.name for result in RESULTS}
        options = [name for name in identity.needs if name not in results]
        lacking = self.call.unsupported(options)
        if lacking:
            raise Unsupported(lacking)
        form = (self.form or "absorb") if "form" in self.call.form.choices else None
        run = (_LseRun if LSE.name in identity.needs else Run)(
            self.run, self.spec, identity.function, form, self.fitted
        )
        worst = 0.0
        for first, second in identity.pairs(run, self.dtype, self.seed):
            worst = max(worst, use_of_allowance(first, second))
        if not worst <= 1.0:
            raise Failure(
                f"{identity.says}: the two differ by {worst:.3g} times what their bounds allow together"
            )
        return worst

    def hidden(self, clean, poisoned):
        first, second = (self.run(inputs.arrays, inputs.options) for inputs in (clean, poisoned))
        use = self.judged(poisoned, second)
        self.judged(clean, first)
        return use

    def untouched(self, cases):
        done = 0
        for inputs in cases:
            try:
                result = self.call(inputs.arrays, self.options_for_kernel(inputs.options))
            except Unsupported:
                continue
            done += 1
            if result.damage:
                raise Failure(f"{inputs.name}: {'; '.join(result.damage)}")
        if not done:
            raise Unsupported("no call it supports")

    def out(self, inputs):
        if not self.call.takes_out:
            raise Unsupported("no parameter out")
        allocated = self.run(inputs.arrays, inputs.options)
        return self.reference(inputs, out_dtype=allocated.output.dtype)

    def repeatable(self, inputs):
        first = self.run(inputs.arrays, inputs.options)
        for _ in range(REPEATS[self.level] - 1):
            again = self.run(inputs.arrays, inputs.options)
            if not first.same_bits(again):
                moved = np.abs(np.asarray(first.output, np.float64) - np.asarray(again.output, np.float64))
                count, most = np.count_nonzero(moved), np.nanmax(moved)
                raise Failure(
                    f"called again with the same numbers it gives others: {count} elements, by up to "
                    f"{most:.3g}"
                )


class _LseRun(Run):
    """For identities about the lse: a kernel without one skips them."""

    def __call__(self, *arrays, **options):
        state = super().__call__(*arrays, **options)
        if state.lse is None:
            raise Unsupported("no lse")
        return state


def in_order(value):
    """The value as code; a set in the order of its elements, so that two runs print the same."""
    if isinstance(value, set | frozenset) and value:
        return "{" + ", ".join(map(repr, sorted(value))) + "}"
    return repr(value)
