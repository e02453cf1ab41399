"""Correct kernels that a verdict once rejected."""

import numpy as np
import pytest

from refattn.oracle import EmulatedKernel, KernelSpec, check


@pytest.mark.parametrize("seed", range(4))
def test_weights_that_only_an_early_maximum_keeps(seed):
    """The key that takes all weight comes late and is dropped: what remains are weights some of which a kernel flushed, block by block."""
    rng = np.random.default_rng(seed)
    query, key, value = rng.standard_normal((1, 24, 32)), rng.standard_normal((1, 96, 32)), rng.standard_normal((1, 96, 64))
    bias = np.where(np.arange(96) == 70, 16.0, 0.0)[None]
    options = {"bias": bias, "dropout_mask": (rng.random((1, 24, 96)) < 0.7) & (np.arange(96) != 70), "dropout_rate": 0.3}
    spec = KernelSpec.flash("float8_e4m3fn").replace(input="float32", block_size=32)
    output, lse = EmulatedKernel(spec, seed=seed)(query, key, value, **options)
    report = check(output, query, key, value, lse=lse, spec=spec, **options)
    assert report.passed, report.text()


def test_weights_whose_squares_underflow_beside_a_key_of_value_zero():
    rng = np.random.default_rng(1)
    query, key, value = np.ones((1, 8, 4)), 2.0 * rng.standard_normal((1, 40, 4)), rng.standard_normal((1, 40, 16))
    value[:, 5], bias = 0.0, np.where(np.arange(40) == 5, 620.0, 0.0)[None]
    query = query + 0.1 * rng.standard_normal(query.shape)
    spec = KernelSpec.cpu_kernels("float64")
    output, lse = EmulatedKernel(spec)(query, key, value, bias=bias)
    assert 0 < np.abs(output).max() < 1e-200
    report = check(output, query, key, value, lse=lse, spec=spec, bias=bias)
    assert report.passed and 0.05 < report.output.rms < 1.2, report.text()
