"""Products no accumulator rounds, and rows whose scores are surely equal: errors of scores cannot show there, errors of sums do."""

import math

import ml_dtypes
import numpy as np
import pytest

from refattn.oracle import EmulatedKernel, KernelSpec, check, error_bound
from refattn.oracle.exact_products import common_unit
from refattn.oracle.formats import round_to
from refattn.oracle.mutants import mutants
from refattn.oracle.rules import as_check, spec_of
from refattn.oracle.suites import default_suite


def test_common_unit_is_the_greatest_power_of_two_that_divides():
    rng = np.random.default_rng(0)
    integers = rng.integers(-(2**20), 2**20, size=(50, 7)) * 2 ** rng.integers(0, 9, size=(50, 1))
    for row, unit in zip(integers, common_unit(integers * 2.0**-30)[:, 0] * 2.0**30, strict=True):
        assert unit == math.gcd(*row.tolist()) & -math.gcd(*row.tolist())
    assert common_unit(np.array([[5e-324, 1.0], [0.0, -0.0]])).tolist() == [[5e-324], [math.inf]]


@pytest.mark.parametrize("spec", [KernelSpec.flash("bfloat16"), KernelSpec.flash("float16").replace(accumulator="float16"), KernelSpec.flash("float8_e4m3fn")])
def test_exact_products_in_any_order(spec):
    """Where the bound of the scores drops the accumulator's roundings, every order of additions gives the same bits."""
    rng = np.random.default_rng(1)
    p = round(-math.log2(spec.accumulator.unit_roundoff))
    q, k = rng.integers(-3, 4, size=24).astype(float), rng.integers(-2 ** (p - 8), 2 ** (p - 8), size=24).astype(float)
    assert np.abs(q) @ np.abs(k) <= 2**p
    for _ in range(20):
        total = 0.0
        for i in rng.permutation(24):
            total = float(round_to(np.array(total + q[i] * k[i]), spec.accumulator, truncate=spec.truncates))
        assert total == q @ k


def level_case(rng, size=200):
    """Scores of -2e4, all equal: the values decide everything."""
    query, key, value = np.full((1, 3, 8), 2.0), np.full((1, size, 8), -3.0e3), rng.normal(size=(1, size, 32))
    return query, key, value - value.mean(axis=1) + 0.01


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_scores_of_one_value_cost_nothing(name):
    query, key, value = level_case(np.random.default_rng(0))
    bound = error_bound(query, key, value, spec=KernelSpec.flash(name).replace(input="exact"))
    unit = KernelSpec.flash(name).output.unit_roundoff
    rounding, sums = 2 * unit * np.abs(bound.output), 200 * 2.0**-24 * 10
    assert (bound.output_tight <= rounding + sums).all() and (bound.output_hard <= rounding + 10 * sums).all()
    other = key + 2.0**-3 * np.random.default_rng(1).integers(-1, 2, size=key.shape)
    assert (error_bound(query, other, value, spec=KernelSpec.flash(name).replace(input="exact")).output_tight > 4 * bound.output_tight).all()


def test_a_bias_a_sink_and_slopes_set_keys_apart():
    query, key, value = level_case(np.random.default_rng(0))
    spec = KernelSpec.flash("float32").replace(input="exact")
    level = error_bound(query, key, value, spec=spec).output_tight
    for options in ({"bias": np.linspace(0, 1, 200)[None]}, {"sinks": np.array([-17000.0])}, {"alibi_slopes": np.array([0.5])}):
        assert (error_bound(query, key, value, spec=spec, **options).output_tight > 4 * level).all()


@pytest.mark.parametrize("seed", range(6))
def test_correct_kernels_pass(seed):
    rng = np.random.default_rng(seed)
    query, key, value = level_case(rng, int(rng.integers(2, 400)))
    for spec in (KernelSpec.flash("float16"), KernelSpec.flash("bfloat16").replace(denominator="rounded"), KernelSpec.eager("bfloat16"),
                 KernelSpec.flash("float8_e4m3fn"), KernelSpec.flash("float32").replace(splits=3)):  # fmt: skip
        options = {} if seed % 2 else {"dropout_mask": rng.random((1, 3, key.shape[1])) < 0.7, "dropout_rate": 0.3}
        spec = spec.replace(input="exact")
        output, lse = EmulatedKernel(spec, seed=seed, reverse=bool(seed % 3), first_block=5)(query, key, value, **options)
        report = check(output, query, key, value, lse=lse, spec=spec, **options)
        assert report.passed, report.text()


def test_float16_accumulation_shows_under_a_bfloat16_output():
    """Eight times finer than the output, but the sums are larger than the result: on equal scores nothing else hides it."""
    (mutant,) = [mutant for mutant in mutants() if mutant.id == "accumulator_float16"]
    found = {}
    for inputs in default_suite(ml_dtypes.bfloat16):
        if inputs.name in ("low scores causal", "low scores mask", "uniform lengths"):
            output, lse = inputs.call(mutant)
            arrays, keywords = as_check(inputs)
            found[inputs.name] = check(output, *arrays, lse=lse, spec=spec_of(inputs), **keywords)
    assert len(found) == 3
    assert all(report.failed == ("output hard", "output tight", "output aggregate") for report in found.values())
