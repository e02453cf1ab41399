"""Correct kernels that a verdict once rejected."""

import numpy as np
import pytest

from refattn.oracle import EmulatedKernel, KernelSpec, check


@pytest.mark.parametrize("seed", range(4))
def test_weights_that_only_an_early_maximum_keeps(seed):
    """The key that takes all weight comes late and is dropped: what remains are weights some of which
    a kernel flushed, block by block.
    """
    rng = np.random.default_rng(seed)
    query, key, value = (
        rng.standard_normal((1, 24, 32)),
        rng.standard_normal((1, 96, 32)),
        rng.standard_normal((1, 96, 64)),
    )
    bias = np.where(np.arange(96) == 70, 16.0, 0.0)[None]
    options = {
        "bias": bias,
        "dropout_mask": (rng.random((1, 24, 96)) < 0.7) & (np.arange(96) != 70),
        "dropout_rate": 0.3,
    }
    spec = KernelSpec.flash("float8_e4m3fn").replace(input="float32", block_size=32)
    output, lse = EmulatedKernel(spec, seed=seed)(query, key, value, **options)
    report = check(output, query, key, value, lse=lse, spec=spec, **options)
    assert report.passed, report.text()


def test_weights_whose_squares_underflow_beside_a_key_of_value_zero():
    rng = np.random.default_rng(1)
    query, key, value = (
        np.ones((1, 8, 4)),
        2.0 * rng.standard_normal((1, 40, 4)),
        rng.standard_normal((1, 40, 16)),
    )
    value[:, 5], bias = 0.0, np.where(np.arange(40) == 5, 620.0, 0.0)[None]
    query = query + 0.1 * rng.standard_normal(query.shape)
    spec = KernelSpec.cpu_kernels("float64")
    output, lse = EmulatedKernel(spec)(query, key, value, bias=bias)
    assert 0 < np.abs(output).max() < 1e-200
    report = check(output, query, key, value, lse=lse, spec=spec, bias=bias)
    assert report.passed and 0.05 < report.output.rms < 1.2, report.text()


def test_weights_whose_squares_underflow_in_one_column_alone():
    """The key that takes all weight has a value of 0 in that column and not in the others."""
    rng = np.random.default_rng(2)
    query, key, value = (
        np.ones((1, 8, 4)),
        2.0 * rng.standard_normal((1, 40, 4)),
        rng.standard_normal((1, 40, 16)),
    )
    value[:, 5, 3], bias = 0.0, np.where(np.arange(40) == 5, 400.0, 0.0)[None]
    query = query + 0.1 * rng.standard_normal(query.shape)
    spec = KernelSpec.cpu_kernels("float64")
    output, lse = EmulatedKernel(spec)(query, key, value, bias=bias)
    assert 0 < np.abs(output[..., 3]).max() < 1e-150 and np.abs(output[..., 4]).min() > 1e-3
    report = check(output, query, key, value, lse=lse, spec=spec, bias=bias)
    assert report.passed and report.output.rms < 1.2, report.text()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_sum_of_equal_terms_loses_the_same_every_time(dtype):
    """Up to a unit roundoff of the sum for each term; half of that only in the mean."""
    for level in np.linspace(12.0, 15.0, 7):
        key = np.where(np.arange(4000) == 0, level, 0.0)[None, :, None]
        value = np.random.default_rng(0).standard_normal((1, 4000, 16))
        value[:, 0] *= 2**-6
        spec = KernelSpec.flash(dtype)
        output, lse = EmulatedKernel(spec, inexact_functions=False)(np.ones((1, 1, 1)), key, value)
        report = check(output, np.ones((1, 1, 1)), key, value, lse=lse, spec=spec)
        assert report.passed, report.text()


def test_results_that_lie_close_together_round_alike():
    """Outputs of 1.0004 all become 1 in float16: an error of 1.5 standard deviations of a rounding,
    the same in every row.
    """
    rng = np.random.default_rng(0)
    query, key, value = (
        1e-4 * rng.standard_normal((1, 200, 3)),
        rng.standard_normal((1, 900, 3)),
        rng.standard_normal((1, 900, 1)),
    )
    value = 1.0004 + 0.01 * (value - value.mean(axis=1))
    spec = KernelSpec.cpu_kernels("float16").replace(input="exact")
    output, lse = EmulatedKernel(spec)(query, key, value)
    assert (output == 1.0).all()
    report = check(output, query, key, value, lse=lse, spec=spec)
    assert report.passed and report.output.rms == pytest.approx(1.0, abs=0.05), report.text()


def test_a_key_hidden_by_a_bias_may_overflow():
    """inf - inf is NaN in an accumulator that overflows, also of a key that a bias of -inf hides:
    nothing is claimed of such rows.
    """
    query, key, value = np.full((1, 2, 64), 200.0), np.full((1, 3, 64), 100.0), np.ones((1, 3, 4))
    bias = np.array([[-np.inf] * 3, [0.0] * 3])
    spec = KernelSpec.flash("float16").replace(accumulator="float16")
    output, lse = np.full((1, 2, 4), np.nan), np.full((1, 2), np.nan)
    assert not check(output, query, key, value, lse=lse, spec=spec, bias=bias).wrong
    assert check(output, query, key, value, lse=lse, spec=KernelSpec.flash("float16"), bias=bias).failed == (
        "output positions",
        "lse positions",
    )


def test_scores_that_rise_by_equal_steps():
    """arange for keys: every block has the same weights relative to its maximum, and every rescaling
    the same argument.
    """
    rng = np.random.default_rng(62)
    n, d = np.arange(2457.0)[:, None], np.arange(128.0)
    query, key, value = (
        np.abs(rng.standard_normal((1, 3, 128))) * [[0.017], [0.004], [0.05]],
        ((n * 128 + d) / (2457 * 128))[None],
        (n % 4 + d[:8] / 128)[None],
    )
    arrays = [np.float32(array).astype(float) for array in (query, key, value)]
    spec = KernelSpec.cpu_kernels("float32")
    for seed in range(4):
        output, lse = EmulatedKernel(spec, seed=seed, first_block=1 + seed)(*arrays)
        report = check(output, *arrays, lse=lse, spec=spec)
        assert report.passed, report.text()


def test_products_that_are_all_equal_round_alike():
    """Constant rows of query and key: the same remainder is lost at every addition of their scalar
    product.
    """
    rng = np.random.default_rng(0)
    query = np.ones((2, 54, 64)) * 2.0 ** -(np.arange(54.0) % 8)[:, None]
    key = np.float32(np.ones((2, 385, 64)) * 100.0 * np.arange(385.0)[:, None] / 385.0).astype(float)
    value = np.float32(rng.standard_normal((2, 385, 64))).astype(float)
    output, lse = EmulatedKernel(KernelSpec.flash("float32"), seed=291)(query, key, value, causal=True)
    report = check(output, query, key, value, lse=lse, spec=KernelSpec.flash("float32"), causal=True)
    assert report.passed, report.text()


def test_a_rounded_query_shifts_the_lse_of_its_row():
    """Keys in [0, 1): the scores of all keys move with the rounding of the scaled query, and so does
    their lse.
    """
    rng = np.random.default_rng(421)
    query, key, value = (
        rng.standard_normal((4, 69, 128)),
        rng.random((1, 1306, 128)),
        rng.standard_normal((1, 1306, 8)),
    )
    arrays = [np.float16(array).astype(float) for array in (query, key, value)]
    spec = KernelSpec.flash("float16").replace(scaled_query="float16")
    output, lse = EmulatedKernel(spec)(*arrays)
    report = check(output, *arrays, lse=lse, spec=spec)
    assert report.passed, report.text()
