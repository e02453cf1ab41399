"""check_kernel on kernels that speak another library's dialect."""

import numpy as np
import pytest

import refattn
from refattn.oracle import check_kernel
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
