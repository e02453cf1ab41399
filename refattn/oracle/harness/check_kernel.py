"""`check_kernel`: everything the oracle knows, run on one kernel. What is run: `bench`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from refattn.oracle.arithmetic.spec import kernel_spec
from refattn.oracle.harness.array_libraries import array_library
from refattn.oracle.harness.bench import Bench, Failure, Trial
from refattn.oracle.harness.callables import KernelCall, Unsupported
from refattn.oracle.harness.head_sizes import checked_head_dims
from refattn.oracle.harness.input_dtype import input_dtype, output_dtype
from refattn.oracle.harness.order import by_worth
from refattn.oracle.harness.outcomes import HarnessReport, Outcome
from refattn.oracle.harness.remedies import remedies
from refattn.oracle.harness.table import Table, checked_resume, describe_run, earlier
from refattn.oracle.inputs.tiles import checked_tile
from refattn.oracle.progress import Progress

LEVELS = ("quick", "full")
DEVICE_LOST = (
    "After this the device refuses all work, as a GPU after an illegal access: no further test was run"
)
DIAGNOSED = 3  # failures that are explained
DIAGNOSIS_SECONDS = 10.0  # of one of them
ALL_DIAGNOSES = 16.0  # seconds of all together, the last one apart


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
    ignore_empty_rows=False,
    seed=0,
    only=None,
    skip=(),
    tile=None,
    diagnose=True,
    max_failures=None,
    seconds=None,
    resume=None,
    progress=None,
    arrays="numpy",
    device=None,
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
        Library whose calling conventions the kernel has (`refattn.oracle.DIALECTS`): it is called with that
        library's arguments, arrays in its axis order, and returns what the library returns; `function` says
        which of its calls (packed sequences, pages). `arrays` says whose arrays it gets.
    spec : KernelSpec, str, dtype or None
        The arithmetic it claims; a dtype means a flash kernel in it, None one in `dtype`; "eager
        bfloat16" and "cpu_kernels float32" are known words.
    level : {"quick", "full"}
        "quick" takes seconds, "full" adds shapes, random options and other seeds, and takes minutes.
    dtype : dtype, optional
        Of the inputs. Default: that of the spec, or float32. 8-bit floats are those of `ml_dtypes` in NumPy
        arrays, which hold float32 unless `dtype` asks for them.
    supports : set of str, optional
        Names of the options it has. Default: `kernel.supports`, else the parameters of its signature,
        else all.
    form : {"absorb", "expand"}, optional
        Latent attention: which form a kernel without a parameter `form` runs. Default "absorb".
    head_dims : int, (int, int) or "any", optional
        head_dim and v_head_dim the kernel is built for; one number for both. "any": also small odd ones,
        different from each other. Default: `kernel.head_dims`, else 64 and 128, in turns.
    hides_nan : bool
        False for a kernel that multiplies hidden keys and values by a weight of 0, which lets NaN through
        (torch, ONNX and mlx do): hidden slots then hold large numbers.
    ignore_empty_rows : bool
        Leave out rows that see no key, whatever the kernel gives there, as in `check`.
    seed : int
        Of all inputs.
    only : str or sequence of str, optional
        Run the tests whose section and name ("reference: normal causal") contain this; or, as a list, the
        tests with exactly these names.
    skip : sequence of str
        Leave out tests whose section and name contain one of these; they are listed as skipped.
    tile : int or (int, int), optional
        Rows and keys of the kernel's tiles, one number for both. Calls of more than two and three tiles of
        64, 128, 256 and 512 are always made; those of `tile` come on top.
    diagnose : bool
        Explain the first failures.
    max_failures : int, optional
        Stop after so many; the other tests are `not_run` of the report.
    seconds : float, optional
        Start no test after so many seconds. The tests then run in the order of what they find for their
        cost (`refattn.oracle.harness.order`); those left are `not_run` of the report.
    resume : path or HarnessReport, optional
        Go on from an earlier run with the same arguments: its outcomes are taken as they are, and the other
        tests are run. A file need not exist; every outcome is written to it when it comes, a line of JSON
        each, so that a run that is killed loses none. After a change of the kernel, begin a new file.
    progress : callable or False, optional
        Called with a `ProgressEvent`, whose text is one line: `print`; False says nothing. Default: a line
        on a terminal, from two seconds on (`refattn.oracle.progress`).
    arrays : {"numpy", "torch", "jax", "mlx"}
        Whose arrays the kernel gets, options included: masks are boolean, lengths, tables and offsets int32.
        It may return arrays of any library, from any device, once its work there is done.
    device : str or object, optional
        Where they lie, as the library names it: "cuda", "mps", "gpu:0". Default: the library's default.

    Returns
    -------
    HarnessReport
        True in a boolean context when nothing failed; `str()` is the table.

    Raises
    ------
    TypeError, ValueError
        For the arguments of this function; what the kernel raises is a failed test.
    ImportError
        The library of `arrays` is not installed.
    KeyboardInterrupt
        By Ctrl-C. Its `partial` is the report of the tests that had run.

    Notes
    -----
    Kernels that rotate query and key themselves are checked call by call: `refattn.oracle.check` on
    arrays rotated exactly, in float64, by `refattn.oracle.Rope(...).rotate(x, positions)`. The bound then
    counts their conversion to the input format of the spec, as a kernel does that rounds after rotating;
    for rotation in float32 itself `spec.replace(input=2.0**-22)` allows for its few roundings.
    `diagnose(..., rope=Rope(...))` knows the mistakes of rotary kernels.

    Tensors of torch, on a GPU too, lie between guard bytes and have strides as NumPy arrays do, but no
    negative ones, and none is read-only. Arrays of mlx likewise; they cannot be written. Arrays of jax have
    neither strides nor surroundings; of them the harness only sees whether a call changed their numbers.
    After each call the device is waited for, so that an error it reports late belongs to the right test.

    Examples
    --------
    >>> import refattn
    >>> from refattn.oracle import check_kernel
    >>> report = check_kernel(refattn.attention_with_lse, spec="float64", only="identities")
    >>> report.passed, report.count("pass") > 5
    (True, True)

    A kernel with the arguments and the axis order of FlashAttention, (batch, length, heads, dim):

    >>> def flash(q, k, v, causal=False, softmax_scale=None):
    ...     query, key, value = (array.swapaxes(1, 2) for array in (q, k, v))
    ...     return refattn.attention(query, key, value, causal=causal, scale=softmax_scale).swapaxes(1, 2)
    >>> how = {"dialect": "flash_attn", "spec": "float64", "supports": {"causal", "scale"}}
    >>> check_kernel(flash, **how, only="normal causal").passed
    True
    """
    if level not in LEVELS:
        raise ValueError(f"level must be one of {', '.join(LEVELS)}; got level={level!r}.")
    if form not in (None, "absorb", "expand"):
        raise ValueError(f"form must be 'absorb' or 'expand'; got form={form!r}.")
    if isinstance(skip, str):
        raise TypeError(f"skip must be a sequence of words; got skip={skip!r}.")
    checked_tile(tile)
    path = checked_resume(resume)
    if seconds is not None and not (isinstance(seconds, int | float) and seconds > 0):
        raise ValueError(f"seconds must be a number above 0, or None; got seconds={seconds!r}.")
    library = array_library(arrays, device)
    dtype, stored = input_dtype(dtype, spec, arrays)
    library.check_dtype(stored or dtype)
    spec = kernel_spec(spec, stored or dtype)
    writes = None if stored is None else output_dtype(spec)
    call = KernelCall(kernel, function, dialect, supports, library, stored, writes)
    call.check_library()
    if ignore_empty_rows and call.form.joins:
        raise ValueError("ignore_empty_rows must be False for merge_states; got ignore_empty_rows=True.")
    bench = _bench_of(call.form)(
        call,
        spec,
        dtype,
        form,
        checked_head_dims(head_dims, call),
        tuple(skip),
        seed,
        level,
        hides_nan,
        tile,
        None if supports is None else {*supports},
        ignore_empty_rows,
    )
    if not (only is None or isinstance(only, str | list | tuple | set)):
        raise TypeError(f"only must be a string or a list of names; got only={only!r}.")
    wanted = (
        (lambda name: only in name) if isinstance(only, str) else (lambda name: only is None or name in only)
    )
    tests = [test for test in bench.tests() if wanted(test.id)]
    if not tests:
        raise ValueError(f"only must be part of the name of a test, or a list of names; got only={only!r}.")
    run = describe_run(bench)
    report = HarnessReport(bench.call.name, bench.settings(), bench.spec)
    done = earlier(resume, run)
    report.outcomes += [done[test.id] for test in tests if test.id in done]
    tests = [test for test in tests if test.id not in done]
    tests = tests if seconds is None else by_worth(tests)
    with Table(path, run) as table:
        _run_tests(bench, tests, report, table, diagnose, max_failures, seconds, progress)
    return report


def _run_tests(bench, tests, report, table, diagnose, max_failures, seconds, progress):
    """Run the tests one by one, until so many failed or the time is over."""
    in_all = len(report.outcomes) + len(tests)

    def so_far():
        report.interrupted = len(report.outcomes), in_all
        return report

    start, explaining = time.monotonic(), Explaining(DIAGNOSED if diagnose else 0, ALL_DIAGNOSES)
    run_now = []
    over = lambda: seconds is not None and time.monotonic() - start >= seconds
    with Progress("check_kernel", len(tests), "tests", progress=progress, partial=so_far) as shown:
        for test in shown.over(tests, lambda test: test.id):
            if over():
                report.not_run.append(test.id)
                continue
            table.begin(test)
            try:
                outcome = _outcome(test, bench, explaining)
            except KeyboardInterrupt:
                table.stopped(test)
                raise
            lost = outcome.status == "FAIL" and not bench.call.library.alive()
            if lost:
                outcome.words += f". {DEVICE_LOST}"
            table.add(outcome)
            report.outcomes.append(outcome)
            run_now.append(test)
            if lost:
                so_far()
                break
            if max_failures is not None and len(report.failures) >= max_failures:
                report.not_run += [test.id for test in tests[len(run_now) :]]
                report.why_not_run = f"after {len(report.failures)} failures"
                break
    report.remedies = remedies(bench, run_now, report)


@dataclass
class Explaining:
    """What diagnoses may still take."""

    failures: int
    seconds: float

    def of(self, bench, test, failure):
        if self.failures <= 0 or self.seconds <= 0 or failure.result is None or test.inputs is None:
            return None
        start = time.monotonic()
        found = bench.diagnosis(test.inputs, failure, DIAGNOSIS_SECONDS)
        self.seconds -= time.monotonic() - start
        self.failures -= found is not None
        return found


def _bench_of(form):
    if form.joins:
        from refattn.oracle.harness.merge_bench import MergeBench

        return MergeBench
    return Bench


def _outcome(test: Trial, bench, explaining) -> Outcome:
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
        outcome.diagnosis = explaining.of(bench, test, failure)
    except Exception as error:  # whatever the kernel raises is a finding, not a crash of the harness
        outcome.raised = f"{type(error).__name__}: {error}"
        outcome.status, outcome.words = "FAIL", f"raised {outcome.raised}"
    outcome.seconds = time.perf_counter() - start
    return outcome
