"""What check_kernel says about a failure: its report, its diagnosis, and the line that runs it again."""

import json

import numpy as np
import pytest

import refattn
from refattn.oracle import check_kernel
from refattn.oracle.arithmetic.spec import KernelSpec
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


def test_a_kernel_that_fails_on_probes_is_diagnosed_from_its_result():
    calls = []

    def kernel(query, key, value):
        calls.append(query.shape)
        if len(calls) > 1:
            raise RuntimeError("no device")
        output, lse = right(query, key, value)
        return output + np.sin(np.arange(output.size, dtype=np.float32)).reshape(output.shape), lse

    outcome = check_kernel(kernel, only=["reference: normal"]).failures[0]
    assert len(calls) > 1 and outcome.report is not None and "raised" not in outcome.text()
    assert outcome.diagnosis is not None and not (outcome.diagnosis.xray and outcome.diagnosis.xray.calls)


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
