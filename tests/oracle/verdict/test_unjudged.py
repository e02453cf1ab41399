"""Results of which the spec says nothing, because an intermediate may overflow: not a pass, and not
anything goes either.
"""

import json

import numpy as np
import pytest

import refattn
from refattn.oracle import KernelSpec, assert_attention_close, check


def overflowing(size=3000.0, offset=0.0):
    rng = np.random.default_rng(0)
    q, k = ((rng.normal(size=(2, 4, 64)) * size).astype(np.float16) for _ in range(2))
    return q, k, (rng.normal(size=(2, 4, 8)) + offset).astype(np.float16)


@pytest.mark.parametrize("number", [123.0, -1e4])
def test_an_output_beyond_all_values_fails_whatever_the_spec(number):
    arrays = overflowing()
    report = check(np.full((2, 4, 8), number, np.float16), *arrays, spec=KernelSpec.eager("float16"))
    assert report.output.unclaimed == 64 and report.wrong and not report.passed
    assert set(report.failed) == {"output not judged", "output range"} and report.output.outside == 64
    assert "64 elements lie outside the range" in report.text()
    with pytest.raises(AssertionError, match="range"):
        assert_attention_close(
            np.full((2, 4, 8), number, np.float16), *arrays, spec=KernelSpec.eager("float16")
        )


def test_a_verdict_without_a_judged_element_is_not_a_pass():
    arrays = overflowing()
    output = refattn.attention(*arrays).astype(np.float16)
    report = check(output, *arrays, spec=KernelSpec.eager("float16"))
    assert report.failed == ("output not judged",) and not report.passed and not report.wrong
    assert "nothing judged" in report.text() and json.loads(report.to_json())["wrong"] is False
    with pytest.raises(AssertionError, match="not judged"):
        assert_attention_close(output, *arrays, spec=KernelSpec.eager("float16"))
    assert check(output, *arrays, spec=KernelSpec.flash("float16")).passed


def test_one_wrong_row_among_many_that_are_not_judged():
    q, k, v = overflowing()
    q[0, 0] = 0.0
    output = refattn.attention(q, k, v).astype(np.float16)
    assert check(output, q, k, v, spec=KernelSpec.eager("float16")).passed
    output[1, 2, 3] = 9.0
    report = check(output, q, k, v, spec=KernelSpec.eager("float16"))
    assert report.failed == ("output range",) and report.output.worst == (1, 2, 3)


def test_the_range_is_that_of_the_visible_values():
    q, k, v = overflowing()
    v[:, 3] = 50.0
    output = refattn.attention(q, k, v, causal=True).astype(np.float16)
    output[:, :3] = np.where(np.arange(8) == 2, 40.0, output[:, :3])
    assert check(output, q, k, v, spec=KernelSpec.eager("float16"), causal=True).output.outside == 6


def test_calls_without_elements_or_with_empty_rows_alone_are_judged():
    q, k, v = overflowing(1.0)
    assert check(np.zeros((2, 0, 8), np.float16), q[:, :0], k, v).passed
    assert check(np.zeros((2, 4, 8), np.float16), q, k, v, mask=np.zeros((4, 4), bool)).passed


def test_a_pass_that_is_not_complete_says_so():
    q, k, v = overflowing()
    q[0, 0] = 0.0
    output, lse = refattn.attention_with_lse(q, k, v)
    output = output.astype(np.float16)
    report = check(output, q, k, v, lse=lse.astype(np.float32), spec=KernelSpec.eager("float16"))
    assert report.passed and not report.complete and report.unjudged == {"output": 56, "lse": 7}
    assert "; 56 of 64 outputs and 7 of 8 lses not judged (an intermediate may overflow" in report.summary
    assert json.loads(report.to_json())["complete"] is False
    with pytest.warns(UserWarning, match="56 of 64 outputs not judged"):
        assert_attention_close(output, q, k, v, spec=KernelSpec.eager("float16"))
    whole = check(output, q, k, v, spec=KernelSpec.flash("float16"))
    assert whole.complete and whole.unjudged == {"output": 0} and "judged" not in whole.summary


def test_empty_rows_are_judged_in_every_form_and_format():
    rng = np.random.default_rng(0)
    shapes = ((2, 4, 8), (2, 4, 4), (3, 6), (3, 4), (2, 8, 6), (2, 5, 6))
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    for spec in ("tfloat32", "bfloat16", "float32"):
        for options in ({"q_offset": -2, "causal": True}, {"mask": np.zeros((4, 3), bool)}):
            output, lse = refattn.latent_attention_with_lse(*arrays, **options)
            report = check(
                output.astype(np.float32),
                *arrays,
                lse=lse.astype(np.float32),
                spec=KernelSpec.flash(spec).replace(output="float32"),
                function="latent_attention",
                **options,
            )
            assert report.complete and report.passed, report.text()


LARGEST = float(np.finfo(np.float32).max)


def with_bias_everywhere(size):
    """Row 2 with a bias of -size at all keys: finite weights, of which a kernel's scores say little."""
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal((2, 6, 16)).astype(np.float32) for _ in range(3)]
    bias = np.zeros((6, 6), np.float32)
    bias[2] = -size
    output, lse = refattn.attention_with_lse(*arrays, bias=bias)
    return arrays, bias, output.astype(np.float32), lse.astype(np.float32)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "share, failed",
    [
        (1e-3, "positions"),
        (0.4, "positions"),
        (0.55, "positions"),
        (0.65, "not judged"),
        (1.0, "not judged"),
    ],
)
def test_results_that_are_not_finite_never_pass_for_finite_ones(share, failed, bad):
    """A bias that overflows when a kernel multiplies it by log2(e) may give NaN, which is no pass;
    below that nothing overflows and it is wrong.
    """
    arrays, bias, output, lse = with_bias_everywhere(np.float32(share * LARGEST))
    assert check(output, *arrays, lse=lse, bias=bias).passed
    output[:, 2] = bad
    report = check(output, *arrays, lse=lse, bias=bias)
    assert report.failed == (f"output {failed}",) and report.wrong is (failed == "positions"), report.text()
    assert report.output.lost == (32 if failed == "not judged" else 0) and not report.passed
    with pytest.raises(AssertionError, match=failed):
        assert_attention_close(output, *arrays, lse=lse, bias=bias)


@pytest.mark.parametrize("sink, failed", [(1e38, "positions"), (2e38, "positions"), (3.4e38, "not judged")])
def test_the_lse_of_a_large_sink(sink, failed):
    arrays, *_ = with_bias_everywhere(0.0)
    output, lse = (x.astype(np.float32) for x in refattn.attention_with_lse(*arrays, sinks=[sink, 0.0]))
    assert check(output, *arrays, lse=lse, sinks=[sink, 0.0]).passed
    lse[0] = np.nan
    assert check(output, *arrays, lse=lse, sinks=[sink, 0.0]).failed == (f"lse {failed}",)


def test_infinite_bounds_of_sums_excuse_no_nan():
    """So many terms in so few bits that no error is too large; all sums stay finite still."""
    rng = np.random.default_rng(2)
    q, k, v = (rng.standard_normal((1, size, 4)) for size in (3, 9000, 9000))
    output = refattn.attention(q, k, v)
    spec = KernelSpec.flash("float64").replace(accumulator="e8m13", truncates=True)
    assert (
        np.isinf(check(output, q, k, v, spec=spec).output.at_worst["hard"])
        and check(output, q, k, v, spec=spec).output.outside == 0
    )
    output[0, 1] = np.nan
    report = check(output, q, k, v, spec=spec)
    assert "output positions" in report.failed and report.wrong, report.text()


def test_a_result_beyond_its_format_is_an_infinity_also_without_a_bound():
    q, k, _ = overflowing()
    big = np.full((2, 4, 8), 1e5)
    spec = KernelSpec.eager("float16").replace(input="exact")
    report = check(np.full((2, 4, 8), np.inf), q, k, big, spec=spec)
    assert report.failed == ("output not judged",) and report.output.lost == 0
    assert check(np.full((2, 4, 8), np.nan), q, k, big, spec=spec).output.lost == 64
