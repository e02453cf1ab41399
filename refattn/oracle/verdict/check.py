"""The verdict: is a kernel's result as good as its arithmetic allows?

Seven tiers, each finding what the ones before cannot:

    judged      something was compared, and no finite result lost to an overflow: nothing is said of results
                whose intermediates may overflow the formats of the spec
    positions   NaN and infinities stand exactly where they must
    range       every output, also one of which nothing else is said, lies between the smallest and the
                largest visible value, or 0
    hard        no element beyond the rigorous bound: beyond it the kernel is wrong, or its spec
    tight       no element beyond the statistical bound
    aggregate   the root mean square of error / sigma is about 1 at most: errors too small to stick out, but
                everywhere
    lean        no bias, up or down or toward or away from zero, that the roundings of the spec do not make
                (`lean.py`): errors of the right size that do not cancel
"""

from __future__ import annotations

import dataclasses
import warnings
from functools import partial

import numpy as np

from refattn.calls.arrays import as_float_array
from refattn.calls.host_copy import all_on_host, float_dtype_name, on_host
from refattn.calls.registry import ATTENTION, form_called
from refattn.oracle.arithmetic.held_format import held_format, held_in_words
from refattn.oracle.arithmetic.other_specs import in_code, other_specs
from refattn.oracle.arithmetic.spec import EIGHT_BITS, kernel_spec
from refattn.oracle.bounds.bound import FAILURE_PROBABILITY, bound_tile, hoeffding_multiplier
from refattn.oracle.bounds.lean import Lean
from refattn.oracle.bounds.operands import operands
from refattn.oracle.bounds.reference import (
    float64_suffices,
    reference_results,
    require_reference,
    roundoff,
)
from refattn.oracle.bounds.results import RESULTS, handed_over
from refattn.oracle.bounds.row_blocks import count_rows, picked_parts, tile_jobs
from refattn.oracle.bounds.threads import in_threads
from refattn.oracle.bounds.weighted_mean import mean_rounding, value_range
from refattn.oracle.dialects.axis_hints import axis_hint, other_orders, shapes_hint, with_axis_hint
from refattn.oracle.dialects.foreign_call import read_call
from refattn.oracle.dialects.libraries import DIALECTS
from refattn.oracle.progress import Progress
from refattn.oracle.verdict.compared_tile import ComparedTile
from refattn.oracle.verdict.device_result import DeviceResult, device_result
from refattn.oracle.verdict.foreign_results import judge_foreign
from refattn.oracle.verdict.layout_hint import layout_hint
from refattn.oracle.verdict.measure import Measure
from refattn.oracle.verdict.other_rows import row_states
from refattn.oracle.verdict.picked_rows import picked_rows_of, row_picker
from refattn.oracle.verdict.report import Report
from refattn.oracle.verdict.reproduction import lines_of_check


def check(
    actual,
    *arrays,
    lse=None,
    spec=None,
    reference=None,
    function="attention",
    rows=None,
    seed=0,
    ignore_empty_rows=False,
    failure_probability=FAILURE_PROBABILITY,
    progress=None,
    dialect="refattn",
    **options,
) -> Report:
    """Compare a kernel's output, and lse if given, with the exact result and the error its arithmetic
    allows.

    Parameters
    ----------
    actual : array_like, floating point, or None
        The kernel's output; None judges `lse` alone. Tensors of torch and jax may lie on a GPU, as may all
        arrays here, be 8-bit floats, and require gradients. With `rows`, torch tensors on a GPU leave there
        what is not looked at.
    *arrays : array_like
        The positional arrays of `function`: query, key, value for attention.
    lse : array_like, optional
        The kernel's lse, natural logarithm.
    spec : KernelSpec, str, dtype or None
        The arithmetic the kernel claims; a dtype means a flash kernel in it, "eager float16" or "cpu_kernels
        float32" those kernels, None a flash kernel in the dtype of `actual`, or of the first array where
        there is no `actual`.
    reference : {"exact", "float64", "cpu_kernels"} or callable, optional
        What the kernel is compared with: "exact", the functions of `refattn`; "float64", the same in blocks
        of plain float64; "cpu_kernels", those kernels in float64, not for their own spec; or a function of
        the arrays in float64 and the options that returns (output, lse). Default: float64, by `cpu_kernels`
        for large calls where Numba is installed, for kernels whose softmax and sums are float32 or less;
        else "exact" (`refattn.oracle.bounds.reference`). The own error of float64 is known and far below
        the bounds.
    function : str
        "attention", "packed_attention", "paged_attention", "latent_attention" or "block_local_attention".
    rows : int, "auto" or callable, optional
        Check the errors of so many rows of each head only, in each sequence or block where a call has those:
        the first, the last, and random ones between. Of the other rows only NaN, infinities and empty rows
        are looked at, as far as the inputs alone tell where they belong; the report says so
        (`Report.not_looked_at`). "auto": every row where the call has at most 2**26 scores (rows of all
        heads x keys), 64 rows of each head where it has more. A function gets the number of rows of a head
        and gives the numbers of those to look at, an increasing integer array. Default: every row.
    seed : int
        Picks those rows.
    ignore_empty_rows : bool
        Leave out rows that see no key, whatever they hold: libraries fill them with 0, NaN or the mean of
        the values. The report counts them.
    failure_probability : float
        That a correct kernel fails the tight tier, or that of bias.
    progress : callable or False, optional
        Called with a `ProgressEvent`, whose text is one line: `print`; False says nothing. Default: a line
        on a terminal, where the check takes longer than two seconds (`refattn.oracle.progress`).
    dialect : str
        Name of a library (`refattn.oracle.DIALECTS`): arrays, options and results are as it writes them, in
        its axis order and under its names, `block_table` or `cu_seqlens_q` and their like making a call of
        pages or of packed sequences. The lse may be to base 2, leave out the sink, or be +inf in rows
        without keys, as it is there. Its names of arrays may stand in place of `*arrays`, and `function` is
        not needed.
    **options
        Those of the function in `refattn`; for latent attention with `form`, the one the kernel runs. With
        `dialect`, the library's.

    Returns
    -------
    Report
        True in a boolean context when the kernel passes: something was judged, and nothing of it is wrong.
        Where no element could be judged it does not pass, and fails with "not judged" alone; `report.wrong`
        is False then, as where NaN or an infinity stands for a finite result and an overflow of the spec's
        arithmetic may explain it. Where some could not, `report.complete` is False and the summary says how
        many and why.

    Raises
    ------
    TypeError, ValueError, MemoryError
        Those of the function in `refattn`. A wrong shape of `actual` or `lse` is a failed report, not an
        exception.
    KeyboardInterrupt
        By Ctrl-C. Its `partial` is the report of the rows looked at by then, which has not passed, and is
        `wrong` where those rows show that.

    Notes
    -----
    Cost: the reference, and about ten products the size of Q K^T, in float32 where the spec allows it, in as
    many threads as BLAS would use; a few hundred MiB besides the results, whatever the shape.
    `python benchmarks/oracle_times.py` prints times.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn.oracle import EmulatedKernel, KernelSpec, check
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(2, 16, 8)).astype(np.float32)
    >>> spec = KernelSpec.flash("float32")
    >>> output, lse = EmulatedKernel(spec)(x, x, x, causal=True)
    >>> report = check(output, x, x, x, lse=lse, spec=spec, causal=True)
    >>> report.passed
    True
    >>> check(output, x, x, x, spec=spec).passed  # the kernel forgot nothing, the caller did
    False

    Arrays, options and results as FlashInfer has them: (length, heads, dim), and an lse to base 2:

    >>> there, results = x.swapaxes(0, 1), (output.swapaxes(0, 1), lse.T / np.log(2))
    >>> how = {"lse": results[1], "spec": spec, "dialect": "flashinfer", "causal": True}
    >>> report = check(results[0], there, there, there, **how)
    >>> print(report.summary)  # doctest: +ELLIPSIS
    attention: pass, bound used ..., worst at head ..., output[...] of flashinfer
    """
    if not 0.0 < failure_probability < 1.0:
        raise ValueError(
            f"failure_probability must be in (0, 1); got failure_probability={failure_probability!r}."
        )
    if actual is None and lse is None:
        raise ValueError("actual and lse must not both be None; got actual=None, lse=None.")
    names = form_called(function, ATTENTION).arrays if dialect == "refattn" else ()
    arrays, options = all_on_host(names, arrays, options)
    if spec is None and (name := float_dtype_name(actual)) in EIGHT_BITS:
        spec = kernel_spec(name).replace(output=name)
    if dialect != "refattn" or rows is None:
        actual, lse = on_host(actual, "actual"), on_host(lse, "lse")
    how = {
        "reference": reference,
        "rows": rows,
        "seed": seed,
        "ignore_empty_rows": ignore_empty_rows,
        "failure_probability": failure_probability,
        "progress": progress,
    }
    if dialect != "refattn":
        call = read_call(dialect, arrays, options)
        if function not in ("attention", call.function):
            raise ValueError(
                f"function must be {call.function} for {call.record.call}; got function={function!r}."
            )
        function, report = call.function, check_foreign(call, actual, lse, spec, **how)
    else:
        report = _check(actual, lse, arrays, options, function, spec, **how)
        if report.wrong and actual is not None and report.measures and not report.output.rms < ABSURD:
            few = {**how, "rows": FEW_ROWS, "reference": None, "progress": False}
            _name_axis_order(report, actual, arrays, options, spec, few)
    said = {name: value for name, value in how.items() if name != "progress" and value != DEFAULTS[name]}
    said["dialect"] = None if dialect == "refattn" else dialect
    report.reproduce = lines_of_check(function, actual, arrays, lse, spec, said, options)
    return report


def _name_axis_order(report, actual, arrays, options, spec, how):
    """Warn where the output is right with heads and length of all arrays swapped, on a few rows."""
    order = next(other_orders(report.function, arrays, options), None)
    if order is None or not order.libraries:
        return
    turned = [np.swapaxes(as_float_array(array, "array"), *order.axes) for array in arrays]
    actual = actual if device_result(actual, "actual") else as_float_array(actual, "actual")
    if _check(actual.swapaxes(*order.axes), None, turned, options, report.function, spec, **how).passed:
        report.warn(f"The output is right if all arrays are laid out heads-last.{axis_hint(order)}")


FEW_ROWS = 4  # of each head, on which another axis order is tried
ABSURD = 10.0  # from this root mean square of error / sigma on


DEFAULTS = {
    "reference": None,
    "rows": None,
    "seed": 0,
    "ignore_empty_rows": False,
    "failure_probability": FAILURE_PROBABILITY,
    "progress": None,
}


def check_foreign(call, actual, lse=None, spec=None, **how) -> Report:
    """`check` of what a library wrote for a `ForeignCall`; other parameters are those of `check`."""
    return judge_foreign(partial(_check, **(DEFAULTS | how)), call, actual, lse, spec)


def _check(
    actual,
    lse,
    arrays,
    options,
    function,
    spec,
    *,
    reference,
    rows,
    seed,
    ignore_empty_rows,
    failure_probability,
    progress,
):
    """`check` of arrays, options and results in our own conventions."""
    inferred = spec is None
    actual, lse = (
        None if x is None else device_result(x, name) or as_float_array(on_host(x, name), name)
        for x, name in ((actual, "actual"), (lse, "lse"))
    )
    spec = kernel_spec(
        spec,
        actual.dtype if actual is not None else as_float_array(arrays[0], "query").dtype if arrays else None,
    )
    _explain_arguments(function, arrays, options)
    call = with_axis_hint(lambda *a, **o: operands(function, a, o, spec), function, arrays, options)
    require_reference(reference, spec)
    report = Report(function, spec, inferred)
    given = handed_over(actual, lse)
    for result, array in given.items():
        shape = result.shape(call.output_shape)
        if array.shape != shape:
            hint = shapes_hint(function, arrays, options, given) or layout_hint(array.shape, shape)
            report.refuse(result.name, f"must have shape {shape}; got {array.shape}.{hint}")
    if report.failed:
        return report

    multiplier = hoeffding_multiplier(call, failure_probability)
    pick = row_picker(rows, seed, function, arrays, options)
    on_device = {result: array for result, array in given.items() if isinstance(array, DeviceResult)}
    for result, array in on_device.items():
        given[result] = array.whole() if pick is None else array.rows(result, picked_rows_of(call, pick))
    measures = []

    def judged(rows_done=None):
        for measure in measures:
            measure.finish(failure_probability)
            report.add(measure)
        if rows_done is not None:
            report.interrupt(rows_done, rows_in_all)
        elif pick is not None:
            _look_at_other_rows(report, given, on_device, (function, arrays, options, spec))
        _note_dtypes(report, given, spec)
        return report

    rows_in_all = count_rows(call, pick)
    so_far = lambda: judged(shown.done)
    with Progress("check: computing the reference", progress=progress, partial=so_far) as shown:
        compared_with = reference_results(function, arrays, options, spec, reference, pick)
        report.reference = compared_with.name
        exact = dict(zip(RESULTS, compared_with.results, strict=True))
        measures += [
            Measure(
                result,
                array.shape,
                Lean(result, exact[result], picked_parts(call, result, exact[result], pick)),
                ignore_empty_rows,
            )
            for result, array in given.items()
        ]
        shown.begin("check", rows_in_all, "rows")

        def look_at(job):
            """Everything about one tile but what is summed up over tiles."""
            tile = job()
            bounds = bound_tile(tile, spec, multiplier, compared_with.error)
            return len(tile.lse), [
                compared_tile(measure, given[measure.result], tile, bounds[measure.result], spec)
                for measure in measures
            ]

        for rows_done, compared in in_threads(
            look_at, tile_jobs(call, list(exact.values()), pick, spec=spec)
        ):
            with shown.taking(rows_done):
                for measure, tile in zip(measures, compared, strict=True):
                    measure.update(tile)
    return judged()


def assert_attention_close(actual, *arrays, lse=None, spec=None, **options) -> None:
    """`check`, raising AssertionError with the report when the kernel fails; parameters are those of
    `check`.

    Warns (UserWarning) where a part of the result could not be judged. A failure that one change of the spec
    would explain (`other_specs.py`) says which; that costs up to six more checks.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.ones((1, 2, 4), dtype=np.float32)
    >>> assert_attention_close(x, x, x, x)
    >>> there = x[None]  # (batch, length, heads, dim)
    >>> assert_attention_close(there, there, there, there, window_size=(2, 0), dialect="flash_attn")
    >>> assert_attention_close(1.001 * x, x, x, x)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    AssertionError: attention: FAIL: errors of up to ... times the bound, in all 2 rows, worst at head 0 ...
    ...
    """
    __tracebackhide__ = True
    arrays, options = all_on_host((), arrays, options)
    report = check(actual, *arrays, lse=lse, spec=spec, **options)
    if not report.passed:
        raise AssertionError(report.text() + _arithmetic(report, actual, arrays, lse, options))
    if not report.complete:
        warnings.warn(f"assert_attention_close: {report.left_over}", stacklevel=2)


def _arithmetic(report, actual, arrays, lse, options):
    """Lines that name the other arithmetic with which the result would pass; empty where there is none."""
    if not {name.split()[-1] for name in report.failed} <= {"hard", "tight", "aggregate", "lean"}:
        return ""
    of_function = {
        name: value for name, value in options.items() if name not in {"function", "dialect", *DEFAULTS}
    }
    if report.dialect is not None:
        call = read_call(options["dialect"], arrays, of_function)
        actual, lse = call.to_ours(actual, lse)
        arrays, of_function = call.arrays, call.options
    pick = row_picker(options.get("rows"), options.get("seed", 0), report.function, arrays, of_function)
    others = [
        (report.spec.replace(**changes), changes, words) for changes, words in other_specs(report.spec)
    ]
    finest = min([report.spec, *(spec for spec, _, _ in others)], key=roundoff)
    reference = reference_results(
        report.function, arrays, of_function, finest, options.get("reference"), pick
    )
    how = DEFAULTS | {name: options[name] for name in DEFAULTS if name in options} | {"reference": reference}
    found = []
    for spec, changes, words in others:
        if _check(actual, lse, arrays, of_function, report.function, spec, **how).passed:
            found.append(f"{words}: {in_code(changes)}")
    lines = "".join(f"\n             {line}" for line in found)
    return (
        f"\n  hint       passes if the kernel does one of these, which its spec then should say:{lines}"
        if found
        else ""
    )


OUR_NAMES = {
    "is_causal": "causal=True, and q_offset=0 where query and key differ in length",
    "attn_mask": "mask= for booleans and bias= for numbers",
    "dropout_p": "dropout_mask= with dropout_rate=",
    "enable_gqa": "no option: heads are grouped by their numbers",
    "softmax_scale": "scale=",
    "window_size": "window=",
    "sm_scale": "scale=",
    "scaling": "scale=",
}


def _look_at_other_rows(report, given, on_device, call):
    """NaN, infinities and empty rows where errors were not looked at, for all results together."""
    others = {measure: measure.other_rows for measure in report.measures}
    wanted = next(iter(others.values()))
    if not wanted.any():
        return
    states = row_states(*call, wanted)
    for measure in others:
        array = given[measure.result]
        if measure.result in on_device:
            array = on_device[measure.result].with_wrong_rows(measure.result, array, states)
        measure.other_positions(array, states)


def _explain_arguments(function, arrays, options):
    """Errors in the caller's terms for what the checks behind would report in theirs."""
    names = form_called(function, ATTENTION).arrays
    if len(arrays) != len(names):
        raise TypeError(
            f"arrays must be {', '.join(names)}, after the kernel's output; got {len(arrays)} arrays."
        )
    for name in options:
        if name in OUR_NAMES:
            raise TypeError(
                f"options must be those of refattn.{function}; got {name}. "
                f"In refattn it is {OUR_NAMES[name]}.{_dialects_that_have(name)}"
            )


def _dialects_that_have(name):
    """The libraries whose calls have an argument of this name, in a sentence."""
    names = [d.name for d in DIALECTS.values() if name in d.arguments.values()]
    return f" dialect= reads the call as a library writes it: {', '.join(names)}." if names else ""


def compare_tile(measure, actual, tile, bound, spec):
    """Take one tile of the actual result into its measure; `bound` is that of the same result."""
    measure.update(compared_tile(measure, actual, tile, bound, spec))


def compared_tile(measure, actual, tile, bound, spec) -> ComparedTile:
    """One tile of the actual result beside the exact one, and its sums in the measure's `lean`, which are
    those of its rows alone."""
    result = measure.result
    with np.errstate(all="ignore"):
        got, expected = np.asarray(tile.place.cut(result, actual), dtype=np.float64), tile.exact(result)
        excused = np.zeros(expected.shape, dtype=bool)
        if result.averages_values and tile.infinite is not None:
            excused, left_out = tile.infinite.excuses(got, spec)
            left_out &= ~excused & ~np.isfinite(expected) & (got != expected)
            if left_out.any():
                expected, bound = _mean_of_the_rest(result, left_out, tile, bound, spec)
        if bound.overflow is not None:
            excused = excused | (bound.hard == np.inf) & bound.overflow
        right, finite = _positions(got, expected, bound.hard, excused, result, spec)
        lost = (
            right
            & (bound.hard == np.inf)
            & np.isfinite(expected)
            & ~np.isfinite(got)
            & ~_beyond(got, expected, result.form(spec))
        )
        outside = np.zeros_like(finite)
        if result.averages_values and not tile.dropout:
            outside = _outside(got, finite & (bound.hard == np.inf), tile, spec)
        empty = (tile.count[:, 0] == 0) & ~tile.broken
        if measure.ignore_empty_rows:
            for there in (finite, lost, outside):
                there &= ~empty[:, None]
            right = right | empty[:, None]
        compared = ComparedTile(
            result,
            tile.place,
            got,
            expected,
            bound,
            finite,
            ~right,
            lost,
            outside,
            empty,
            float64_suffices(spec),
        )
        if measure.lean is not None and bound.model is not None:
            measure.lean.update(tile, spec, compared)
        return compared


def _beyond(got, expected, form):
    """The infinity that a finite result too large for its format is rounded to."""
    return (np.abs(expected) >= form.overflow_threshold) & (got == np.copysign(np.inf, expected))


def _mean_of_the_rest(result, left_out, tile, bound, spec):
    """Exact means and their bound for a kernel that skips infinite values of zero weight where
    `left_out`."""
    expected = np.where(left_out, tile.kept @ tile.value.exact, tile.exact(result))
    rest = bound_tile(dataclasses.replace(tile, **{result.name: expected}), spec, None)[result]
    hard, tight = (np.where(left_out, rest.hard, limit) for limit in (bound.hard, bound.tight))
    overflow = bound.overflow if rest.overflow is None else rest.overflow
    return expected, dataclasses.replace(
        bound, hard=hard, tight=tight, sigma=np.where(left_out, 0.0, bound.sigma), overflow=overflow
    )


def _positions(got, expected, hard, excused, result, spec):
    """Where got is finite or not as it must be, and where both are finite and to be compared.

    Finite results beyond the largest number of the format become infinities, or that number where the format
    saturates, of the same sign. Without a bound a finite result must be finite unless it is excused: an
    intermediate may overflow.
    """
    form = result.form(spec)
    same = np.isnan(got) & np.isnan(expected) | (got == expected)
    finite = np.isfinite(got) & np.isfinite(expected)
    may_overflow = np.isfinite(expected) & (np.abs(expected) + hard >= form.overflow_threshold)
    overflowed = may_overflow & (hard < np.inf) & (got == np.copysign(np.inf, expected)) | (
        hard == np.inf
    ) & _beyond(got, expected, form)
    right = same | finite | overflowed | excused | (hard == np.inf) & ~np.isfinite(expected)
    if result.inf_is_nan:
        right |= ~(expected < np.inf) & ~(got < np.inf)
    saturated = (got == np.copysign(form.largest, expected)) & (
        np.abs(expected) + np.where(hard < np.inf, hard, 0.0) >= form.overflow_threshold
    )
    return right, finite & ~saturated


def _outside(got, looked_at, tile, spec):
    """Finite outputs without a bound, (R, E), that no weighted mean of the visible values can be, however it
    is rounded."""
    wrong = np.zeros_like(looked_at)
    rows = np.flatnonzero(looked_at.any(axis=1))
    if not len(rows):
        return wrong
    low, high = value_range(tile, rows)
    slack = mean_rounding(tile, spec, rows)
    wrong[rows] = looked_at[rows] & ((got[rows] < low - slack) | (got[rows] > high + slack))
    return wrong


def _note_dtypes(report, given, spec):
    for result, array in given.items():
        form = result.form(spec)
        if form.unit_roundoff == 0.0:
            continue
        if not report.passed and result.principal and (held := held_format(array, form)):
            report.warn(f"{held_in_words(held, array.dtype)}.")
        itemsize = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
        if itemsize.get(array.dtype.name, 8) < itemsize.get(form.name, 0):
            report.warn(
                f"{result.name} has dtype {array.dtype.name}, narrower than the {form.name} the spec writes."
            )
