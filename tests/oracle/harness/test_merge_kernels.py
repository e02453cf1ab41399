"""check_kernel on kernels that join partial results, and `check` on kernels that rotate."""

import numpy as np
import pytest

import refattn
from refattn.oracle import Rope, check, check_kernel, diagnose
from refattn.oracle.arithmetic.spec import KernelSpec
from refattn.oracle.harness.merge_bench import merge_bound, merge_cases
from refattn.oracle.inputs.families import Sizes, attention_inputs
from refattn.oracle.mistakes.merge import MERGES


def in_float32(outputs, lses):
    """As kernels do it: base 2, everything in float32."""
    outputs, lses = outputs.astype(np.float32), lses.astype(np.float32) * np.float32(np.log2(np.e))
    with np.errstate(all="ignore"):
        top = lses.max(0)
        weights = np.exp2(lses - np.where(np.isneginf(top), np.float32(0), top))
        total = weights.sum(0)
        seen = np.where(weights[..., None] == 0, np.float32(0), outputs)
        output = np.where(
            total[..., None] == 0, np.float32(0), (weights[..., None] * seen).sum(0) / total[..., None]
        )
        return output, (top + np.log2(total)) * np.float32(np.log(2))


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_correct_merges_pass(dtype):
    pytest.importorskip("ml_dtypes")

    def rounded(outputs, lses):
        output, lse = (refattn.merge_states if outputs.dtype == np.float64 else in_float32)(outputs, lses)
        return output.astype(outputs.dtype), lse

    report = check_kernel(rounded, function="merge_states", spec=dtype, level="full")
    assert report.passed and report.count("skip") == 1, report.text()  # no out=
    assert 0.05 < max(outcome.use for outcome in report.outcomes if outcome.use is not None) <= 1


def test_cpu_kernels_merges():
    cpu_kernels = pytest.importorskip("cpu_kernels")
    assert check_kernel(cpu_kernels.merge_states, function="merge_states", spec="cpu_kernels float32").passed


@pytest.mark.parametrize("mistake", MERGES, ids=lambda mistake: mistake.id)
def test_every_merge_mistake_is_caught_and_named(mistake):
    def kernel(outputs, lses):
        return tuple(part.astype(np.float32) for part in mistake.merge(outputs, lses))

    report = check_kernel(kernel, function="merge_states")
    assert not report.passed
    assert any(
        outcome.diagnosis is not None and mistake.says in str(outcome.diagnosis)
        for outcome in report.failures
    ), report.text()


def test_each_section_catches_something():
    def order_matters(outputs, lses):
        output, lse = in_float32(outputs, lses)
        return output + np.float32(1e-3) * outputs[0], lse

    def reads_empty_states(outputs, lses):
        output, lse = in_float32(outputs, lses)
        return output + np.float32(0) * outputs.sum(0), lse

    def writes(outputs, lses):
        result = in_float32(outputs, lses)
        lses[:] = 0
        return result

    def found(kernel, **arguments):
        report = check_kernel(kernel, function="merge_states", diagnose=False, **arguments)
        return {outcome.id for outcome in report.failures}

    assert {"identities: states in another order", "identities: two joined, then the third"} <= found(
        order_matters, only="identities"
    )
    assert found(reads_empty_states, only="hidden") and not found(
        reads_empty_states, only="hidden", hides_nan=False
    )
    assert "guards: inputs and the bytes around them unchanged" in found(writes, only="guards")
    assert found(
        lambda outputs, lses: in_float32(np.ascontiguousarray(outputs)[..., ::-1], lses), only="strides"
    )
    with pytest.raises(ValueError, match="head_dims must be None for merge_states"):
        check_kernel(in_float32, function="merge_states", head_dims=64)


def test_the_bound_is_not_far_above_float32():
    for inputs in merge_cases(np.float32, 0, "quick"):
        exact = merge_bound(*inputs.arrays, KernelSpec.flash("float32"))
        limit = (
            1e-2 if "large" in inputs.name or "very" in inputs.name else 1e-4
        )  # an lse of 3000 in float32 is off by 1e-4
        assert np.nanmax(exact.output_bound) < limit, inputs.name


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("size", [0.5, -100.0, 3000.0])
def test_roundings_that_the_bound_counts(size, count):
    """Of states alike. Weights: three of their lse and three of the maximum; their sum: one a state; its
    log, the sum of that and the maximum, and the way back from base 2: four of all of them. In the output
    errors that all weights share cancel, which leaves the products, the sum and the division."""
    exact = KernelSpec.flash("float64").replace(
        softmax=2.0**-30, accumulator="exact", output="exact", lse="exact", exp_error=0.0
    )
    bound = merge_bound(np.ones((count, 1, 1)), np.full((count, 1), size), exact)
    after = 4 * (1 + abs(size) + abs(size + np.log(count)))
    assert 0.75 < bound.lse_bound[0] * 2.0**30 / (6 * abs(size) + count + after) < 1.5
    assert 0.75 < bound.output_bound[0, 0] * 2.0**30 / (count + 2) < 1.5


# kernels that rotate


def rotary_kernel(query, key, value, dtype, *, theta=10000.0, wrong=False):
    """Causal attention that rotates halves in float32 and rounds to its input dtype."""
    dim, rows = query.shape[-1], key.shape[-2] - query.shape[-2] + np.arange(query.shape[-2])
    angles = theta ** (-np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)).astype(np.float32)

    def rotate(x, positions):
        first, second = np.split(x.astype(np.float32), 2, axis=-1)
        if wrong:
            first, second = x.astype(np.float32)[..., ::2], x.astype(np.float32)[..., 1::2]
        cos, sin = (f(positions[:, None].astype(np.float32) * angles) for f in (np.cos, np.sin))
        return np.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1).astype(
            dtype
        )

    return refattn.attention(
        rotate(query, rows), rotate(key, np.arange(key.shape[-2])), value, causal=True
    ).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_rotary_kernel_is_checked_on_exactly_rotated_arrays(dtype):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    kind = np.float32 if dtype == "float32" else ml_dtypes.bfloat16
    query, key, value = attention_inputs(
        "normal", sizes=Sizes(head_dim=24, v_head_dim=24), dtype=kind
    ).arrays
    rope, rows = Rope(), key.shape[-2] - query.shape[-2] + np.arange(query.shape[-2])
    exact = rope.rotate(query, rows), rope.rotate(key, np.arange(key.shape[-2]))
    spec = KernelSpec.flash(dtype)
    spec = spec.replace(input=2.0**-22) if dtype == "float32" else spec
    report = check(
        rotary_kernel(query, key, value, kind), *exact, value.astype(np.float64), spec=spec, causal=True
    )
    assert report.passed, report.text()
    wrong = rotary_kernel(query, key, value, kind, wrong=True)
    assert not check(wrong, *exact, value.astype(np.float64), spec=spec, causal=True).passed
    assert diagnose(wrong, query, key, value, rope=rope, causal=True).best.id == "rope_other_pairs"
