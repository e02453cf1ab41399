"""`check_kernel`: everything the oracle knows, run on one kernel.

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
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from refattn.oracle.arithmetic.spec import KernelSpec, kernel_spec, spec_words
from refattn.oracle.bounds.results import LSE, RESULTS
from refattn.oracle.harness.callables import KernelCall, Result, Unsupported
from refattn.oracle.harness.guards import LAYOUTS
from refattn.oracle.harness.identities import Run, identities, use_of_allowance
from refattn.oracle.harness.outcomes import HarnessReport, Outcome
from refattn.oracle.inputs.families import AttentionInputs
from refattn.oracle.inputs.of_form import inputs_of
from refattn.oracle.inputs.variants import fitted, with_numbers
from refattn.oracle.progress import Progress
from refattn.oracle.verdict.check import check
from refattn.oracle.verdict.report import Report

LEVELS = ("quick", "full")
DIAGNOSED = 3  # failures that are explained; each may take seconds
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


def check_kernel(
    kernel: Callable,
    *,
    function="attention",
    dialect="refattn",
    spec=None,
    level="quick",
    dtype=None,
    supports=None,
    form=None,
    head_dims=None,
    hides_nan=True,
    seed=0,
    only=None,
    skip=(),
    diagnose=True,
    max_failures=None,
    progress=None,
) -> HarnessReport:
    """Test a kernel on everything it says it supports.

    Parameters
    ----------
    kernel : callable
        Called with the arrays of `function` and its options as keywords (or as `dialect` spells them);
        returns output or (output, lse). Where its signature has `out`, that is tested too; where `out`
        has no default, every call gets one in the dtype of the query. NotImplementedError skips a test,
        with its message as the reason.
    function : str
        "attention", "packed_attention", "paged_attention", "latent_attention", "block_local_attention" or
        "merge_states": whose arguments it takes; states come stacked on a new first axis.
    dialect : str
        Library whose calling conventions the kernel has (`refattn.oracle.dialects.libraries.DIALECTS`); it
        gets NumPy arrays.
    spec : KernelSpec, str, dtype or None
        The arithmetic it claims; a dtype means a flash kernel in it, None one in `dtype`; "eager
        bfloat16" and "cpu_kernels float32" are known words.
    level : {"quick", "full"}
        "quick" takes seconds, "full" adds shapes, random options and other seeds, and takes minutes.
    dtype : dtype, optional
        Of the inputs. Default: that of the spec, or float32.
    supports : set of str, optional
        Names of the options it has. Default: `kernel.supports`, else the parameters of its signature,
        else all.
    form : {"absorb", "expand"}, optional
        Latent attention: which form a kernel without a parameter `form` runs. Default "absorb".
    head_dims : int or (int, int), optional
        head_dim and v_head_dim the kernel is built for; one number for both. Default: small odd ones,
        different from each other.
    hides_nan : bool
        False for a kernel that multiplies hidden keys and values by a weight of 0, which lets NaN through
        (torch, ONNX and mlx do): hidden slots then hold large numbers.
    seed : int
        Of all inputs.
    only : str or sequence of str, optional
        Run the tests whose section and name ("reference: normal causal") contain this; or, as a list, the
        tests with exactly these names.
    skip : sequence of str
        Leave out tests whose section and name contain one of these; they are listed as skipped.
    diagnose : bool
        Explain the first failures.
    max_failures : int, optional
        Stop after so many.
    progress : callable or False, optional
        Called with a `ProgressEvent`, whose text is one line: `print`; False says nothing. Default: a line
        on a terminal, from two seconds on (`refattn.oracle.progress`).

    Returns
    -------
    HarnessReport
        True in a boolean context when nothing failed; `str()` is the table.

    Raises
    ------
    TypeError, ValueError
        For the arguments of this function; what the kernel raises is a failed test.
    KeyboardInterrupt
        By Ctrl-C. Its `partial` is the report of the tests that had run.

    Notes
    -----
    Kernels that rotate query and key themselves are checked call by call: `refattn.oracle.check` on
    arrays rotated exactly, in float64, by `refattn.oracle.Rope(...).rotate(x, positions)`. The bound then
    counts their conversion to the input format of the spec, as a kernel does that rounds after rotating;
    for rotation in float32 itself `spec.replace(input=2.0**-22)` allows for its few roundings.
    `diagnose(..., rope=Rope(...))` knows the mistakes of rotary kernels.

    Examples
    --------
    >>> import refattn
    >>> from refattn.oracle import check_kernel
    >>> report = check_kernel(refattn.attention_with_lse, spec="float64", only="identities")
    >>> report.passed, report.count("pass") > 5
    (True, True)
    """
    if level not in LEVELS:
        raise ValueError(f"level must be one of {', '.join(LEVELS)}; got level={level!r}.")
    if form not in (None, "absorb", "expand"):
        raise ValueError(f"form must be 'absorb' or 'expand'; got form={form!r}.")
    if isinstance(skip, str):
        raise TypeError(f"skip must be a sequence of words; got skip={skip!r}.")
    call, dtype = KernelCall(kernel, function, dialect, supports), input_dtype(dtype, spec)
    bench = _bench_of(call.form)(
        call,
        kernel_spec(spec, dtype),
        dtype,
        form,
        checked_head_dims(head_dims, call),
        tuple(skip),
        seed,
        level,
        hides_nan,
        None if supports is None else {*supports},
    )
    if not (only is None or isinstance(only, str | list | tuple | set)):
        raise TypeError(f"only must be a string or a list of names; got only={only!r}.")
    wanted = (
        (lambda name: only in name) if isinstance(only, str) else (lambda name: only is None or name in only)
    )
    tests = [test for test in bench.tests() if wanted(test.id)]
    if not tests:
        raise ValueError(f"only must be part of the name of a test, or a list of names; got only={only!r}.")
    report = HarnessReport(bench.call.name, bench.settings(), bench.spec)

    def so_far():
        report.interrupted = len(report.outcomes), len(tests)
        return report

    diagnosed = 0
    with Progress("check_kernel", len(tests), "tests", progress=progress, partial=so_far) as shown:
        for test in shown.over(tests, lambda test: test.id):
            outcome = _outcome(test, bench, diagnose and diagnosed < DIAGNOSED)
            diagnosed += outcome.diagnosis is not None
            report.outcomes.append(outcome)
            if max_failures is not None and len(report.failures) >= max_failures:
                break
    return report


def _bench_of(form):
    if form.joins:
        from refattn.oracle.harness.merge_bench import MergeBench

        return MergeBench
    return Bench


def in_order(value):
    """The value as code; a set in the order of its elements, so that two runs print the same."""
    if isinstance(value, set | frozenset) and value:
        return "{" + ", ".join(map(repr, sorted(value))) + "}"
    return repr(value)


def checked_head_dims(head_dims, call):
    """head_dim and v_head_dim, or None."""
    if head_dims is None:
        return None
    pair = (head_dims, head_dims) if isinstance(head_dims, int) else tuple(head_dims)
    if len(pair) != 2 or not all(isinstance(size, int) and size >= 1 for size in pair):
        raise ValueError(f"head_dims must be one or two sizes of at least 1; got head_dims={head_dims!r}.")
    if call.form.projects or call.dialect.paged:
        raise ValueError(f"head_dims must be None for latent attention; got head_dims={head_dims!r}.")
    if call.form.joins:
        raise ValueError(f"head_dims must be None for merge_states; got head_dims={head_dims!r}.")
    return pair


def input_dtype(dtype, spec) -> np.dtype:
    if dtype is None:
        name = kernel_spec(spec, np.float32).input.name if spec is not None else "float32"
        dtype = name if name in ("float64", "float32", "float16", "bfloat16") else "float32"
    if dtype == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(dtype)


def _outcome(test: Trial, bench, explain) -> Outcome:
    start = time.perf_counter()
    outcome = Outcome(test.section, test.name, "pass", reproduce=bench.reproduction(test))
    try:
        if any(words in test.id for words in bench.skip):
            raise Unsupported("as asked")
        outcome.use = test.run()
    except Unsupported as reason:
        outcome.status, outcome.words = "skip", str(reason)
    except Failure as failure:
        outcome.status, outcome.words, outcome.report = "FAIL", failure.words, failure.report
        if explain and failure.result is not None and test.inputs is not None:
            outcome.diagnosis = bench.diagnosis(test.inputs, failure)
    except Exception as error:  # whatever the kernel raises is a finding, not a crash of the harness
        outcome.status, outcome.words = "FAIL", f"raised {type(error).__name__}: {error}"
    outcome.seconds = time.perf_counter() - start
    return outcome


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

    def settings(self):
        return {
            "function": self.call.function,
            "dialect": self.call.dialect.name,
            "level": self.level,
            "dtype": self.dtype.name,
            "seed": self.seed,
        }

    def reproduction(self, test):
        given = {
            "function": ("attention", self.call.function),
            "dialect": ("refattn", self.call.dialect.name),
            "level": ("quick", self.level),
            "dtype": (None, self.dtype.name),
            "supports": (None, self.supports),
            "form": (None, self.form),
            "head_dims": (None, self.head_dims),
            "hides_nan": (True, self.hides_nan),
            "seed": (None, self.seed),
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

    def run(self, arrays, options, **how) -> Result:
        result = self.call(arrays, self.options_for_kernel(options), **how)
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
            again = self.call(arrays, self.options_for_kernel(options))
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
        return fitted(inputs if self.hides_nan else with_numbers(inputs), self.head_dims)

    def reference(self, inputs, **how):
        return self.judged(inputs, self.run(inputs.arrays, inputs.options, **how))

    def exact(self, inputs):
        result = self.run(inputs.arrays, inputs.options)
        use = self.judged(inputs, result)
        wrong = np.asarray(result.output, np.float64) != inputs.output
        if wrong.any():
            at = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise Failure(
                f"the output is {inputs.output[at]!r} exactly at {at}; got {float(result.output[at])!r}",
                None,
                result,
            )
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
