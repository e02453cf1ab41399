"""Emulated kernels: exact arithmetic gives the reference, and low precision gives numbers of the
claimed formats.
"""

import ml_dtypes
import numpy as np
import pytest
from cases import CASES

import refattn
from refattn.oracle import EmulatedKernel, KernelSpec, emulate
from refattn.oracle.arithmetic.formats import round_to

FUNCTIONS = ("attention", "packed_attention", "paged_attention", "latent_attention", "block_local_attention")
KERNELS = {
    "online": EmulatedKernel(KernelSpec.flash("float64").replace(block_size=4)),
    "one key at a time, backward": EmulatedKernel(
        KernelSpec.flash("float64").replace(block_size=1), reverse=True
    ),
    "ragged first block": EmulatedKernel(
        KernelSpec.flash("float64").replace(block_size=8, sum_block=3), first_block=3
    ),
    "split": EmulatedKernel(KernelSpec.flash("float64").replace(splits=3, block_size=4)),
    "eager": EmulatedKernel(KernelSpec.eager("float64")),
}


def largest_difference(got, expected):
    """Largest difference relative to 1 + |expected|; NaN and infinities must coincide."""
    same = (got == expected) | (np.isnan(got) & np.isnan(expected))
    with np.errstate(invalid="ignore"):
        return np.max(np.where(same, 0.0, np.abs(got - expected) / (1 + np.abs(expected))), initial=0.0)


@pytest.mark.sample(5)
@pytest.mark.parametrize("name", KERNELS)
def test_float64_emulation_is_the_reference(name):
    """Every option and form of the table of cases, ordinary data."""
    checked = 0
    for case in CASES:
        if case.function not in FUNCTIONS or case.family != "ordinary":
            continue
        arrays, options = case.build("float64")
        expected = getattr(refattn, f"{case.function}_with_lse")(*arrays.values(), **options)
        got = KERNELS[name](*arrays.values(), function=case.function, **options)
        level = np.abs(expected[1][np.isfinite(expected[1])]).max(
            initial=1.0
        )  # the digits that scores of this size lose
        for mine, right in zip(got, expected, strict=True):
            assert not largest_difference(mine, right) > 3e-13 * level, (
                case.id,
                largest_difference(mine, right),
                level,
            )
        checked += 1
    assert checked > 100


@pytest.mark.parametrize(
    "dtype, kind", [("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16), ("float32", np.float32)]
)
@pytest.mark.parametrize("make", [KernelSpec.flash, KernelSpec.eager, KernelSpec.cpu_kernels])
def test_results_are_numbers_of_the_claimed_formats(make, dtype, kind):
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, 40, 16)) for _ in range(3))
    output, lse = emulate(q, k, v, spec=make(dtype), causal=True)
    np.testing.assert_array_equal(output.astype(kind).astype(np.float64), output)
    np.testing.assert_array_equal(lse.astype(np.float32).astype(np.float64), lse)
    exact = refattn.attention(*(round_to(x, dtype) for x in (q, k, v)), causal=True)
    assert 0 < np.abs(output - exact).max() < 20 * make(dtype).output.unit_roundoff


def test_same_call_same_bits():
    rng = np.random.default_rng(1)
    q, k, v = (rng.normal(size=(2, 20, 8)) for _ in range(3))
    kernel = EmulatedKernel(KernelSpec.flash("bfloat16"))
    np.testing.assert_array_equal(kernel(q, k, v)[0], kernel(q, k, v)[0])


def test_equal_keys_get_equal_weights_with_inexact_functions():
    """The error of a function depends on its argument alone, as in hardware."""
    rng = np.random.default_rng(2)
    k = np.repeat(rng.normal(size=(1, 1, 8)), 9, axis=1)
    k[:, 0] *= 1.5
    v = np.eye(9)[None]
    weights, _ = emulate(
        rng.normal(size=(1, 4, 8)), k, v, spec=KernelSpec.flash("float32").replace(exp_error=1e-3)
    )
    assert (weights[..., 1:] == weights[..., 1:2]).all()


def test_function_errors_reach_what_the_spec_allows():
    x = np.linspace(-5, 0, 4001).reshape(1, -1, 1)
    v = np.ones((1, 1, 1))
    spec = KernelSpec.flash("float64").replace(exp_error=1e-3, block_size=None)
    # one key and a sink at 0: output = e^x / (1 + e^x)
    output, _ = emulate(x, np.ones((1, 1, 1)), v, spec=spec, scale=1.0, sinks=[0.0])
    ratio = output[0, :, 0] / (1 - output[0, :, 0])
    error = np.abs(ratio / np.exp(x[0, :, 0]) - 1)
    assert 0.9e-3 < error.max() <= 1e-3 * (1 + 1e-9)


def test_narrow_accumulator_stagnates():
    """Adding 1 to 2048 in a float16 accumulator does nothing: 4096 ones make 2048."""
    spec = KernelSpec.flash("float16").replace(
        accumulator="float16", sum_block=1, denominator="unrounded", output="float32"
    )
    output, _ = emulate(np.zeros((1, 1, 4)), np.zeros((1, 4096, 4)), np.ones((1, 4096, 1)), spec=spec)
    assert output == 0.5


def test_fp8_weight_scale_saves_small_weights():
    """Behind a sink that takes the maximum, weights below 2^-10 vanish in e4m3 unless they are scaled
    first.
    """
    q, k, v = np.ones((1, 1, 1)), np.zeros((1, 32, 1)), np.ones((1, 32, 1))
    spec = KernelSpec.flash("float8_e4m3fn")
    lost, _ = emulate(q, k, v, spec=spec, sinks=[8.0])
    kept, _ = emulate(q, k, v, spec=spec.replace(weight_scale=256.0), sinks=[8.0])
    exact = refattn.attention(q, k, v, sinks=[8.0])
    assert lost == 0 and abs(kept / exact - 1) < 0.1
