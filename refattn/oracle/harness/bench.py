"""A kernel with all that its tests need, and the tests: what `check_kernel` runs.

Sections, each a list of tests with a name:

    reference     output and lse against the reference, over options, shapes and families of inputs
    exact         calls whose output is known bit for bit
    identities    the kernel against itself (`identities`)
    hidden slots  what no row may see holds NaN, or numbers: the same result
    guards        inputs and the bytes around all buffers stay as they were; only `out=` is written
    repeatable    equal bits when called again and again, also after calls of other sizes; results of
                  earlier calls stay as they were
    strides       inputs that are not contiguous, not aligned, or read-only

Inputs always lie between guard bands of NaN (`guards`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from refattn.oracle.arithmetic.spec import KernelSpec, spec_words
from refattn.oracle.bounds.results import LSE, RESULTS
from refattn.oracle.harness.callables import KernelCall, Result, Unsupported
from refattn.oracle.harness.guards import LAYOUTS
from refattn.oracle.harness.head_sizes import HeadDims
from refattn.oracle.harness.identities import Run, identities, use_of_allowance
from refattn.oracle.inputs.families import AttentionInputs
from refattn.oracle.inputs.of_form import inputs_of
from refattn.oracle.inputs.paged import too_long
from refattn.oracle.inputs.tiles import TellingRows, checked_tile
from refattn.oracle.inputs.variants import held_in, with_numbers
from refattn.oracle.verdict.check import check
from refattn.oracle.verdict.report import Report

ALL_ROWS = 200  # rows of a head up to which all are judged, and `TellingRows` of more
MANY_CALLS = {"quick": 60, "full": 200}  # 60 calls miss a mistake of one call in twenty once in twenty runs
SOME_CALLS = {"quick": 4, "full": 10}
REPEATED = 8  # cases that are called `SOME_CALLS` times
GUARDED = 20


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

    @property
    def topic(self):
        """By which `order` says what it is expected to find."""
        if self.section != "reference":
            return self.section
        return self.inputs.family


@dataclass
class Bench:
    """A kernel with all that its tests need."""

    call: KernelCall
    spec: KernelSpec
    dtype: np.dtype
    form: str | None
    head_dims: HeadDims
    skip: tuple[str, ...]
    seed: int
    level: str
    hides_nan: bool = True
    tile: object = None
    supports: set[str] | None = None  # what the caller named; `call.supports` is what holds
    ignore_empty_rows: bool = False

    def settings(self):
        device = self.call.library.device_name
        return {
            "function": self.call.function,
            "dialect": self.call.dialect.name,
            "level": self.level,
            "dtype": self.handed.name,
            "head_dims": str(self.head_dims),
            "seed": self.seed,
            **self._not_default(),
            "arrays": self.call.library.name,
            **({} if device is None else {"device": device}),
        }

    def _not_default(self):
        given = {
            "tile": (None, self.tile),
            "supports": (None, self.supports and ", ".join(sorted(self.supports))),
            "form": (None, self.form),
            "hides_nan": (True, self.hides_nan),
            "ignore_empty_rows": (False, self.ignore_empty_rows),
            "skip": ("", ", ".join(self.skip)),
        }
        return {name: value for name, (default, value) in given.items() if value != default}

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
            "head_dims": (None, self.head_dims.given),
            "tile": (None, self.tile),
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
            rows=rows_to_judge(inputs, self.tiles, self.seed),
            progress=False,
            **options,
        )
        if report.wrong:
            raise Failure(report.summary, report, result)
        if not report.passed:
            raise Unsupported("not judged: an intermediate may overflow the formats of the spec")
        return max(measure.use_tight for measure in (report.output, report.lse) if measure is not None)

    def diagnosis(self, inputs, failure, seconds):
        from refattn.oracle.diagnosis.search import diagnose

        options, report = self.options_for_check(inputs.options), failure.report
        measures = () if report is None else (report.output, report.lse)
        near = next((measure.worst for measure in measures if measure is not None and measure.failed), None)
        how = {"spec": self.spec, "seconds": seconds, "near": near, **options}
        try:
            return diagnose(self.replay(failure.result), *inputs.arrays, **how)
        except (ValueError, TypeError):  # a shape no reading fits: the report has said so
            return None
        except Exception:  # the kernel may raise on the numbers of a probe; its result is left
            return diagnose(failure.result.output, *inputs.arrays, lse=failure.result.lse, **how)

    def replay(self, result):
        """The kernel as `diagnose` calls it; the failed call, its first one, is not made again: it gave
        `result`."""
        calls = itertools.count()

        def kernel(*arrays, **options):
            if next(calls) == 0:
                return result.output, result.lse
            if "form" in {*self.call.form.choices} - self.call.supports:
                options = {name: value for name, value in options.items() if name != "form"}
            again = self.result(arrays, options)
            return again.output, again.lse

        return kernel

    # the sections

    @property
    def tiles(self):
        return checked_tile(self.tile)

    def cases(self) -> list[AttentionInputs]:
        """The calls of the section "reference", with the head sizes the kernel is built for."""
        cases = inputs_of(self.call.form).cases(self.dtype, self.seed, self.level, self.call, self.tiles)
        return [*map(self.held, self.head_dims.of_cases(cases))]

    def tests(self) -> Iterator[Trial]:
        of_form, cases = inputs_of(self.call.form), self.cases()
        for inputs in cases:
            yield Trial("reference", inputs.name, partial(self.reference, inputs), inputs)
        for inputs in map(self.fitted, of_form.exact(self.dtype, self.seed)):
            yield Trial("exact", inputs.name.removeprefix("exact: "), partial(self.exact, inputs), inputs)
        for identity in identities(self.call.function):
            yield Trial("identities", identity.name, partial(self.identity, identity))
        for name, *pair in of_form.hidden_pairs(self.dtype, self.seed, self.call):
            clean, poisoned = map(self.fitted, pair)
            yield Trial("hidden slots", name, partial(self.hidden, clean, poisoned), poisoned)
        laid_out = {*self.call.form.structure, *self.call.form.choices}
        wanted = {"causal"} if self.call.dialect.always_causal else set()
        plain = [inputs for inputs in cases if {*inputs.options} - laid_out == wanted]
        yield from self.trials_of_buffers(cases, plain[0], plain)

    def trials_of_buffers(self, cases, plain, alike) -> Iterator[Trial]:
        """What a kernel does to memory, and whether it repeats itself; `plain` is a call without options,
        `alike` are such calls of other sizes.
        """
        yield Trial("guards", "inputs and the bytes around them unchanged", partial(self.untouched, cases))
        yield Trial("guards", "out= written, and nothing around it", partial(self.out, plain), plain)
        sized = sorted(alike, key=lambda inputs: sum(array.size for array in inputs.arrays))
        if self.call.function == "paged_attention" and not self.call.dialect.values_from_keys:
            yield Trial("guards", "a length past its row of the table harms no other", self.neighbours)
        calls = MANY_CALLS[self.level]
        yield Trial(
            "repeatable", "many calls alike", partial(self.repeatable, sized[len(sized) // 2], calls)
        )
        yield Trial("repeatable", "after a longer and a shorter call", partial(self.in_turns, sized))
        yield Trial("repeatable", "earlier results stay as they were", partial(self.kept, plain))
        for inputs in cases[:REPEATED]:
            yield Trial("repeatable", inputs.name, partial(self.repeatable, inputs, SOME_CALLS[self.level]))
        of_tiles = (inputs for inputs in alike if inputs.family == "tiles" and len(inputs.arrays[0]) > 1)
        strided = next(of_tiles, plain)
        for layout in LAYOUTS:
            if layout != "contiguous":
                yield Trial("strides", layout, partial(self.reference, strided, layout=layout), strided)

    def held(self, inputs):
        """The inputs as numbers that the kernel can get."""
        return held_in(inputs if self.hides_nan else with_numbers(inputs), self.call.stored)

    def fitted(self, inputs):
        return self.held(self.head_dims.of_case(inputs))

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
        """Every call of every test is looked at; these are for runs without the others."""
        done = 0
        for inputs in cases[:GUARDED]:
            try:
                result = self.call(inputs.arrays, self.options_for_kernel(inputs.options))
            except Unsupported:
                continue
            done += 1
            if result.damage:
                raise Failure(f"{inputs.name}: {'; '.join(result.damage)}")
        if not done:
            raise Unsupported("no call it supports")

    def neighbours(self):
        """A call that the functions of `refattn` refuse: a kernel may refuse it or return what it likes for
        the sequence at fault, not for the others.
        """
        broken, others = map(self.fitted, too_long(self.dtype, self.seed))
        try:
            result = self.run(broken.arrays, broken.options)
        except (Failure, Unsupported):
            raise
        except Exception:  # refused
            return None
        kept = (None if array is None else array[[0, 2]] for array in (result.output, result.lse))
        return self.judged(others, Result(*kept))

    def out(self, inputs):
        if not self.call.takes_out:
            raise Unsupported("no parameter out")
        allocated = self.run(inputs.arrays, inputs.options)
        return self.reference(inputs, out_dtype=allocated.output.dtype)

    def repeatable(self, inputs, calls):
        first = self.run(inputs.arrays, inputs.options)
        for _ in range(calls - 1):
            require_same(
                first, self.run(inputs.arrays, inputs.options), "called again with the same numbers"
            )

    def in_turns(self, sized):
        """What a longer call leaves in the kernel's own memory must not reach a shorter one, nor the other
        way round.
        """
        short, middle, long = sized[0], sized[len(sized) // 2], sized[-1]
        first = {}
        for inputs in (short, long, middle, short, middle, long):
            result = self.run(inputs.arrays, inputs.options)
            if inputs.name not in first:
                first[inputs.name] = result
                self.judged(inputs, result)
            require_same(first[inputs.name], result, f"{inputs.name}: called again after other sizes")

    def kept(self, inputs):
        """Other numbers of the same shapes must not change what was returned before."""
        first = self.run(inputs.arrays, inputs.options)
        copies = [None if array is None else array.copy() for array in first.returned]
        others = replace(inputs, arrays=(-inputs.arrays[0][..., ::-1], *inputs.arrays[1:]))
        self.run(others.arrays, others.options)
        for name, now, before in zip(("output", "lse"), first.returned, copies, strict=True):
            if now is not None and now.tobytes() != before.tobytes():
                raise Failure(
                    f"the {name} that an earlier call returned was changed by a later one: the kernel "
                    "returns the same memory again"
                )


def rows_to_judge(inputs, tiles, seed):
    """What `check` gets as `rows`: None, all of them, unless there are many."""
    return None if inputs.arrays[0].shape[-2] <= ALL_ROWS else TellingRows(tiles, seed)


def require_same(first, again, words):
    """Failure where two results differ in a bit."""
    if first.same_bits(again):
        return
    with np.errstate(all="ignore"):
        one, other = (np.asarray(result.output, np.float64) for result in (first, again))
        moved = np.abs(one - other)
        count = np.count_nonzero((moved > 0) | (np.isnan(one) != np.isnan(other)))
        most = np.max(np.where(np.isnan(moved), 0.0, moved), initial=0.0)
    raise Failure(f"{words} it gives others: {count} elements, by up to {most:.3g}")


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
