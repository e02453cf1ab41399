"""check_kernel on kernels that speak another library's dialect."""

from functools import partial

import numpy as np
import pytest

import refattn
from refattn.oracle import check_kernel
from refattn.oracle.dialects.other_calls import CALLS
from refattn.oracle.dialects.results import result_from_ours
from refattn.oracle.dialects.translate import to_ours


def status(report):
    return {outcome.id: outcome.status for outcome in report.outcomes}


def test_a_kernel_in_a_dialect():
    def flash(**call):
        _, arrays, options = to_ours("flash_attn", **call)
        return result_from_ours("flash_attn", *refattn.attention_with_lse(*arrays, **options))

    report = check_kernel(flash, dialect="flash_attn", spec="float64", only="reference: normal left window")
    assert report.passed and report.count("pass") > 2 and not report.count("skip"), report.text()
    sinks = check_kernel(flash, dialect="flash_attn", spec="float64", only="reference: normal sinks")
    assert (
        sinks.count("skip") == 2 and not sinks.passed
    )  # flash_attn_func has none, and nothing tested is not a pass
    top_left = lambda **call: (
        flash(**{**call, "q": call["q"], "causal": False}) if call.get("causal") else flash(**call)
    )
    assert not check_kernel(
        top_left, dialect="flash_attn", spec="float64", only="normal causal", diagnose=False
    ).passed


def test_a_dialect_without_batch_axis_gets_one_sequence_a_call():
    def flashinfer(**call):
        assert call["q"].ndim == 3
        _, arrays, options = to_ours("flashinfer", **call)
        return result_from_ours("flashinfer", *refattn.attention_with_lse(*arrays, **options))

    report = check_kernel(flashinfer, dialect="flashinfer", spec="float64", only="hidden slots")
    assert report.passed and report.count("skip") == 0, report.text()
    for only in ("reference: normal l", "reference: normal mask", "split and merged", "strides: padded"):
        report = check_kernel(flashinfer, dialect="flashinfer", spec="float64", only=only)
        assert report.passed and report.count("skip") == 0, report.text()


def test_a_dialect_that_adds_its_masks_is_not_asked_to_hide_nan():
    def eager(**call):
        _, arrays, options = to_ours("transformers", **call)
        return result_from_ours("transformers", refattn.attention(*arrays, **options))[0]

    report = check_kernel(eager, dialect="transformers", spec="float64", only="i")
    assert report.passed, report.text()
    assert (
        "a mask that is added cannot hide NaN" in report.text()
        and status(report)["reference: nan visible"] == "pass"
    )


def test_flashmla_reads_pages():
    def flashmla(**call):
        function, arrays, options = to_ours("flashmla", **call)
        assert function == "paged_attention" and arrays[1].shape[1] == 1
        return result_from_ours(
            "flashmla", *refattn.paged_attention_with_lse(*arrays, **options), sinks=options.get("sinks")
        )

    report = check_kernel(flashmla, function="paged_attention", dialect="flashmla", spec="float64")
    assert report.passed, report.text()
    assert report.count("pass", "reference") >= 4


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torch_itself_in_its_dialect():
    torch = pytest.importorskip("torch")

    def kernel(**call):
        arrays = {
            name: torch.from_numpy(np.array(x)) if isinstance(x, np.ndarray) else x
            for name, x in call.items()
        }
        return torch.nn.functional.scaled_dot_product_attention(**arrays, enable_gqa=True).numpy()

    report = check_kernel(kernel, dialect="torch", only="reference: normal causal")
    assert report.passed, report.text()
    assert report.count("pass") > 10


@pytest.mark.parametrize(
    ("name", "function"),
    [(d.name, d.function) for d in CALLS if d.function != "attention"],
    ids=lambda word: word,
)
def test_calls_on_packed_sequences_and_pages(name, function):
    """A right kernel of each call passes; one that scales by 1/head_dim, or returns ours in place of theirs, does
    not."""

    def kernel(wrong="", **call):
        understood, arrays, options = to_ours(name, **call)
        assert understood == function
        if wrong == "scale":
            options["scale"] = 1.0 / arrays[0].shape[-1]
        output, lse = getattr(refattn, f"{function}_with_lse")(*arrays, **options)
        output, lse = output.astype(np.float32), lse.astype(np.float32)
        if wrong == "order":
            return output, lse
        return result_from_ours(name, output, lse, sinks=options.get("sinks"), function=function)

    how = {"function": function, "dialect": name, "spec": "float32", "diagnose": False}
    right = check_kernel(kernel, **how, only="reference")
    assert right.passed and right.count("pass") >= 4, right.text()
    assert check_kernel(kernel, **how, only="strides: padded").passed
    passed = [outcome.id for outcome in right.outcomes if outcome.status == "pass"][:2]
    for wrong in ("scale", "order"):
        report = check_kernel(partial(kernel, wrong=wrong), **how, only=passed)
        assert report.count("FAIL"), report.text()


def test_a_kernel_of_one_row_a_call_is_asked_for_each_row():
    rows = []

    def decode(**call):
        rows.append(call["q"].shape)
        function, arrays, options = to_ours("flashinfer", **call)
        output, lse = refattn.paged_attention_with_lse(*arrays, **options)
        return result_from_ours("flashinfer", output, lse, function=function)

    how = {"function": "paged_attention", "dialect": "flashinfer", "spec": "float64"}
    report = check_kernel(decode, **how, only="reference")
    assert report.passed and report.count("pass") >= 3, report.text()
    assert {len(shape) for shape in rows} == {3}
    top_left = lambda **call: decode(**{**call, "last_page_len": np.ones_like(call["last_page_len"])})
    assert not check_kernel(top_left, **how, only="reference", diagnose=False).passed
