"""check and diagnose explain slips of their caller in the caller's terms."""

import numpy as np
import pytest

import refattn
from refattn.oracle import EmulatedKernel, KernelSpec, check
from refattn.oracle.diagnosis.search import diagnose

X = np.ones((2, 4, 8), np.float32)


@pytest.mark.parametrize("probability", [0, 1, 2.0, -1e-9, float("nan")])
def test_failure_probability(probability):
    with pytest.raises(ValueError, match=r"failure_probability must be in \(0, 1\)"):
        check(X, X, X, X, failure_probability=probability)


def test_a_reference_of_the_output_alone():
    with pytest.raises(TypeError, match=r"reference must return \(output, lse\).*got ndarray"):
        check(X, X, X, X, reference=refattn.attention)


def test_too_few_arrays():
    with pytest.raises(
        TypeError, match="arrays must be query, key, value, after the kernel's output; got 2 arrays"
    ):
        check(X, X, X)


def test_fp8_names_two_formats():
    with pytest.raises(ValueError, match="spec must be .*got spec='fp8'.*float8_e4m3fn and float8_e5m2"):
        check(X, X, X, X, spec="fp8")


@pytest.mark.parametrize(
    "name, ours", [("is_causal", "causal=True"), ("attn_mask", "mask="), ("softmax_scale", "scale=")]
)
def test_names_of_other_libraries(name, ours):
    with pytest.raises(TypeError, match=f"got {name}. In refattn it is {ours}"):
        check(X, X, X, X, **{name: None})


def test_all_zeros_may_never_have_been_written():
    query, key, value = np.random.default_rng(0).standard_normal((3, 2, 9, 8)).astype(np.float32)
    found = diagnose(np.zeros_like(query), query, key, value, causal=True)
    assert found.verdict == "explained" and str(found).startswith("all zeros: was the output ever written?")
    assert diagnose(np.zeros_like(query), query, key, 0 * value).verdict == "agrees"


def test_values_without_columns():
    empty = np.zeros((2, 4, 0), np.float32)
    lse = refattn.attention_with_lse(X, X, empty)[1]
    assert check(empty, X, X, empty, lse=lse.astype(np.float32)).passed
    assert not check(empty, X, X, empty, lse=(1.5 * lse).astype(np.float32)).passed


def test_an_infinite_value_whose_weight_is_flushed_may_be_left_out():
    """Where a weight converts to 0, a kernel that leaves such keys out gives the mean of the rest;
    one that multiplies gives NaN.
    """
    query, key, value = np.ones((1, 1, 1)), np.array([[[8.0], [0.0]]]), np.array([[[1.0], [np.inf]]])
    spec = KernelSpec.flash("float8_e4m3fn")
    output, lse = EmulatedKernel(spec)(query, key, value)
    assert np.isfinite(output).all() and check(output, query, key, value, lse=lse, spec=spec).passed
    assert check(np.full_like(output, np.nan), query, key, value, lse=lse, spec=spec).passed
    assert not check(output, query, key, value, spec="bfloat16").passed  # its weights do not underflow there
