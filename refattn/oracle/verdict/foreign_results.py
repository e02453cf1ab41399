"""The verdict on results as another library writes them."""

from __future__ import annotations

from refattn.calls.arrays import as_float_array
from refattn.oracle.arithmetic.spec import kernel_spec
from refattn.oracle.bounds.results import handed_over
from refattn.oracle.dialects.foreign_call import ForeignCall
from refattn.oracle.verdict.report import Report


def judge_foreign(judge, call: ForeignCall, actual, lse, spec) -> Report:
    """The report on the results of a library's call; its places are those of the library's arrays too.

    An lse without the sink is judged as that of the same call without sinks: beside a sink that outweighs
    all keys, an error of it would not show. Rows without keys are not judged where the library leaves
    anything else than 0.

    Parameters
    ----------
    judge : callable
        `check` of results in our conventions: (output, lse, arrays, options, function, spec) -> Report.
    actual, lse : array_like or None
    spec : KernelSpec, str, dtype or None
    """
    actual = None if actual is None else as_float_array(actual, "actual")
    lse = None if lse is None else as_float_array(lse, "lse")
    given = handed_over(actual, lse)
    results = call.results
    wrong = {result.name: results.wrong_shape(result, array) for result, array in given.items()}
    if any(wrong.values()):
        dtype = next(iter(given.values())).dtype
        report = Report(call.function, kernel_spec(spec, dtype), spec is None)
        for name, words in wrong.items():
            if words:
                report.refuse(name, words)
        report.dialect = results
        return report
    report = None
    ours = call.to_ours(actual, lse, sinks=False)
    apart = call.leaves_sinks_out and lse is not None
    if actual is not None or not apart:
        report = judge(ours[0], None if apart else ours[1], call.arrays, call.options, call.function, spec)
    if apart:
        without = {name: value for name, value in call.options.items() if name != "sinks"}
        of_output = spec if spec is not None or actual is None else actual.dtype
        of_lse = judge(None, ours[1], call.arrays, without, call.function, of_output)
        report = of_lse if report is None else report.joined(of_lse)
    return _in_its_words(report, call)


def _in_its_words(report, call):
    """The report, which says what it left out of the judgement and where things stand in the library's
    arrays.
    """
    report.dialect = call.results
    if call.empty_rows is not None:
        rows = f"{int(call.empty_rows.sum()):,} of {call.empty_rows.size:,} rows see no key"
        report.warn(
            f"{rows} and are not judged: {call.record.call} promises nothing of them that can be checked."
        )
    return report
