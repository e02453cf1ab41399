"""What check_kernel says about a failure: its report, its diagnosis, and the line that runs it again."""

import json

import numpy as np
import pytest

import refattn
from refattn.oracle import check_kernel
from refattn.oracle.arithmetic.spec import KernelSpec
from refattn.oracle.harness.outcomes import HarnessReport, Outcome
from refattn.oracle.mistakes.mutants import correct_kernel


def right(query, key, value, **options):
    """A correct float32 kernel."""
    return correct_kernel()(query, key, value, **options)


def test_a_failure_carries_report_diagnosis_and_reproduction():
    def kernel(query, key, value, *, causal=False):
        return right(query, key, value, causal=causal, q_offset=0)

    report = check_kernel(kernel, only="reference: normal causal", seed=3)
    outcome = report.failures[0]
    assert outcome.diagnosis.best.remedy == "q_offset=0"
    assert (
        "reproduce: check_kernel(kernel, spec='flash float32', dtype='float32', seed=3, only=['reference: "
        "normal causal'])" in report.text()
    )
    assert "worst at" in outcome.text()
    again = check_kernel(kernel, seed=3, only=["reference: normal causal"], diagnose=False)
    assert (
        len(again.outcomes) == 1 < len(report.outcomes)
        and again.failures[0].report.output.worst == outcome.report.output.worst
    )
    plain = json.loads(report.to_json())
    assert plain["passed"] is False and {"pass", "fail"} >= {o["status"] for o in plain["outcomes"]}


def test_the_kernel_is_run_again_where_two_mistakes_fit_its_result():
    calls = []

    def kernel(query, key, value, *, causal=False, window=None):
        calls.append(query.shape)
        return right(
            query, key, value, causal=causal, window=window, q_offset=key.shape[-2] - query.shape[-2] + 1
        )

    outcome = check_kernel(kernel, only=["reference: normal causal"]).failures[0]
    assert len(calls) > 1 and outcome.diagnosis.told_apart_by
    assert (
        outcome.diagnosis.best.id == "position_one_late"
        and "causal_sees_next" not in outcome.diagnosis.best.same_as
    )


def test_diagnosis_looks_where_the_error_is(monkeypatch):
    places = []
    monkeypatch.setattr(
        "refattn.oracle.diagnosis.search.diagnose", lambda *arrays, near, **options: places.append(near)
    )

    def kernel(query, key, value):
        output, lse = right(query, key, value)
        output[1, 2, 3] += 1
        return output, lse

    report = check_kernel(kernel, only=["reference: normal"]).failures[0].report
    assert places == [report.output.worst] and places[0][:3] == (1, 2, 3)


def test_failures_of_block_local_kernels_are_explained():
    def kernel(query, key, value, *, block_size):
        return refattn.attention_with_lse(query, key, value)

    outcome = check_kernel(
        kernel, function="block_local_attention", spec="float64", only="reference", max_failures=1
    ).failures[0]
    assert outcome.diagnosis.best.id == "blocks_ignored"


def test_a_failure_without_a_known_mistake_says_what_the_kernel_does():
    def kernel(query, key, value):
        mask = np.ones((query.shape[-2], key.shape[-2]), bool)
        mask[5::7, 17::13] = False
        return right(query, key, value, mask=mask)

    outcome = check_kernel(kernel, only=["reference: normal"]).failures[0]
    assert outcome.diagnosis.verdict == "described" and outcome.diagnosis.xray.counts["missing"] > 0
    assert f"diagnosis: {outcome.diagnosis.xray.best.says[:60]}" in outcome.text()


def test_a_kernel_that_raises_when_called_again_is_diagnosed_from_its_result():
    calls = []

    def kernel(query, key, value):
        calls.append(query.shape)
        if len(calls) > 1:
            raise RuntimeError("no device")
        output, lse = right(query, key, value)
        return output + np.sin(np.arange(output.size, dtype=np.float32)).reshape(output.shape), lse

    outcome = check_kernel(kernel, only=["reference: normal"]).failures[0]
    assert len(calls) > 1 and outcome.report is not None and not outcome.raised
    assert "raised RuntimeError in a second call with the same arrays: no device" in outcome.text()
    assert "estimated from its result" in outcome.text()


@pytest.mark.parametrize(
    "arguments",
    [
        {"seed": 3, "supports": {"causal", "window"}, "level": "full", "only": ", random"},
        {"spec": "eager float32", "head_dims": (16, 8), "only": "reference: normal"},
        {
            "spec": KernelSpec.flash("float32").replace(name="mine", block_size=32),
            "hides_nan": False,
            "only": "reference: poison",
        },
    ],
)
def test_the_line_that_reproduces_a_failure_does(arguments):
    def kernel(query, key, value, **options):
        return 1.001 * right(query, key, value, **options)[0]

    failure = check_kernel(kernel, diagnose=False, max_failures=1, **arguments).failures[0]
    again = eval(
        failure.reproduce, {"check_kernel": check_kernel, "kernel": kernel, "KernelSpec": KernelSpec}
    ).failures[0]
    assert again.id == failure.id and again.report.to_json() == failure.report.to_json()
    assert again.reproduce == failure.reproduce


def test_the_same_exception_is_one_line_with_its_remedy():
    def built_for_64(query, key, value, *, causal=False):
        if query.shape[-1] != 64 or value.shape[-1] != 64:
            raise ValueError(f"head_dim must be 64; got {query.shape[-1]} and {value.shape[-1]}")
        return right(query, key, value, causal=causal)

    report = check_kernel(built_for_64, only="reference: normal")
    count = sum(outcome.raised != "" for outcome in report.outcomes)
    assert count > 5 and f"FAIL {count} tests: reference: " in report.text()
    assert report.text().count("head_dim must be 64") == 2  # in the summary and in that line
    assert "raised ValueError: head_dim must be 64" in report.summary
    assert report.remedies == ["head_dims=64 lets the kernel run: it is built for that size."]
    assert report.remedies[0] in report.text()


def test_unexpected_options_are_named_as_what_supports_leaves_out():
    def kernel(query, key, value, **options):
        if options:
            raise TypeError(f"kernel() got an unexpected keyword argument '{min(options)}'")
        return right(query, key, value)

    report = check_kernel(kernel, only=["reference: normal causal", "reference: normal sinks"])
    assert len(report.remedies) == 1 and report.remedies[0].startswith("supports={")
    assert "'causal'" not in report.remedies[0] and "'sinks'" not in report.remedies[0]


def test_other_exceptions_have_no_remedy():
    def kernel(query, key, value):
        raise RuntimeError("out of memory")

    report = check_kernel(kernel, only="reference: normal")
    assert report.remedies == [] and "raised RuntimeError: out of memory" in report.summary


def test_the_summary_says_what_is_wrong_in_words():
    def kernel(query, key, value, *, causal=False):
        return right(query, key, value, causal=causal, q_offset=0)

    report = check_kernel(kernel, only=["reference: normal causal"])
    assert report.summary.startswith("kernel: FAIL: causal mask and window are top-left aligned")
    report = check_kernel(kernel, only=["reference: normal causal"], diagnose=False)
    assert report.summary.startswith("kernel: FAIL: reference: normal causal: errors of up to ")


def test_sections_with_equal_numbers_are_one_line():
    outcomes = [Outcome(section, "a", "pass", use=0.25, seconds=1.0) for section in ("guards", "strides")]
    report = HarnessReport(
        "kernel", {}, KernelSpec.flash("float32"), [*outcomes, Outcome("exact", "b", "skip")]
    )
    lines = [line.split() for line in report.text().splitlines() if line.startswith("  ")]
    assert ["guards,", "strides", "each", "1", "0", "0", "0.25", "2.0"] in lines
    assert ["exact", "0", "0", "1", "-", "0.0"] in lines


def test_options_that_have_their_default_are_not_passed():
    seen = []

    def kernel(query, key, value, **options):
        seen.append({name: value for name, value in options.items() if value is None or value is False})
        return right(query, key, value, **options)

    assert check_kernel(kernel, only="identities: neutral", diagnose=False).failures == []
    assert len(seen) > 10 and not any(seen)


def test_a_parameter_without_a_default_is_always_passed():
    def kernel(query, key, value, causal):
        return right(query, key, value, causal=causal)

    assert check_kernel(kernel, only=["reference: normal", "reference: normal causal"]).passed


@pytest.mark.parametrize("dialect, scale", [("torch", "scale"), ("flash_attn", "softmax_scale")])
def test_options_outside_supports_are_not_passed_in_a_dialect_either(dialect, scale):
    seen = []

    def kernel(**call):
        seen.append({*call})
        raise RuntimeError("enough")

    check_kernel(kernel, dialect=dialect, supports={"causal"}, only="reference", diagnose=False)
    assert seen and not any({scale, "attn_mask", "window_size", "softcap"} & call for call in seen)


@pytest.mark.parametrize("fill", [np.nan, 7.0])
def test_empty_rows_are_left_out_where_that_is_asked_for(fill):
    def kernel(query, key, value, *, mask=None, causal=False, q_offset=None, sinks=None):
        output, lse = right(query, key, value, mask=mask, causal=causal, q_offset=q_offset, sinks=sinks)
        seen = refattn.attention_with_lse(query, key, value, mask=mask, causal=causal, q_offset=q_offset)[1]
        output[np.isneginf(seen)], lse[np.isneginf(seen)] = fill, fill
        return output, lse

    only = "exact: no visible key"
    report = check_kernel(kernel, diagnose=False, only=only)
    assert report.failures and all(
        "only rows that see no key" in f.words for f in report.failures if f.report
    )
    assert check_kernel(kernel, diagnose=False, ignore_empty_rows=True, only=only).passed
    assert "ignore_empty_rows=True" in check_kernel(
        lambda query, key, value: right(query, key, value)[0] + 1, ignore_empty_rows=True, max_failures=1,
        diagnose=False,
    ).failures[0].reproduce  # fmt: skip
