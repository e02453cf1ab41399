"""Rows whose scores are surely equal: errors of scores cannot show there, errors of sums do."""

import ml_dtypes
import numpy as np
import pytest

from refattn.oracle import EmulatedKernel, KernelSpec, check, error_bound
from refattn.oracle.arithmetic.formats import round_to
from refattn.oracle.inputs.suites import default_suite
from refattn.oracle.mistakes.mutants import mutants
from refattn.oracle.mistakes.rules import as_check, spec_of


def level_case(rng, size=200):
    """Queries of 0: the values decide everything."""
    query, key, value = (
        np.zeros((1, 3, 8)),
        3.0e3 * rng.normal(size=(1, size, 8)),
        rng.normal(size=(1, size, 32)),
    )
    return query, key, value - value.mean(axis=1) + 0.01


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_scores_of_one_value_cost_nothing(name):
    query, key, value = level_case(np.random.default_rng(0))
    bound = error_bound(query, key, value, spec=KernelSpec.flash(name).replace(input="exact"))
    unit = KernelSpec.flash(name).output.unit_roundoff
    rounding, sums = 2 * unit * np.abs(bound.output), 200 * 2.0**-24 * 10
    assert (bound.output_tight <= rounding + sums).all() and (
        bound.output_hard <= rounding + 10 * sums
    ).all()
    other = query + 2.0**-8
    assert (
        error_bound(
            other, np.full_like(key, 3.0e3), value, spec=KernelSpec.flash(name).replace(input="exact")
        ).output_tight
        > 4 * bound.output_tight
    ).all()


def test_a_bias_a_sink_and_slopes_set_keys_apart():
    query, key, value = level_case(np.random.default_rng(0))
    spec = KernelSpec.flash("float32").replace(input="exact")
    level = error_bound(query, key, value, spec=spec).output_tight
    for options in (
        {"bias": np.linspace(0, 1, 200)[None]},
        {"sinks": np.array([1.0])},
        {"alibi_slopes": np.array([0.5])},
    ):
        assert (error_bound(query, key, value, spec=spec, **options).output_tight > 1.5 * level).all()


@pytest.mark.parametrize("seed", range(6))
def test_correct_kernels_pass(seed):
    rng = np.random.default_rng(seed)
    query, key, value = level_case(rng, int(rng.integers(2, 400)))
    for spec in (
        KernelSpec.flash("float16"),
        KernelSpec.flash("bfloat16").replace(denominator="rounded"),
        KernelSpec.eager("bfloat16"),
        KernelSpec.flash("float8_e4m3fn"),
        KernelSpec.flash("float32").replace(splits=3),
    ):
        options = (
            {} if seed % 2 else {"dropout_mask": rng.random((1, 3, key.shape[1])) < 0.7, "dropout_rate": 0.3}
        )
        spec = spec.replace(input="exact")
        output, lse = EmulatedKernel(spec, seed=seed, reverse=bool(seed % 3), first_block=5)(
            query, key, value, **options
        )
        report = check(output, query, key, value, lse=lse, spec=spec, **options)
        assert report.passed, report.text()


def test_float16_accumulation_shows_under_a_bfloat16_output():
    """Eight times finer than the output, but the sums are larger than the result: on equal scores
    nothing else hides it.
    """
    (mutant,) = [mutant for mutant in mutants() if mutant.id == "accumulator_float16"]
    found = {}
    for inputs in default_suite(ml_dtypes.bfloat16):
        if inputs.name in ("uniform lengths",):
            output, lse = inputs.call(mutant)
            arrays, keywords = as_check(inputs)
            found[inputs.name] = check(output, *arrays, lse=lse, spec=spec_of(inputs), **keywords)
    assert len(found) == 1
    assert all(
        report.failed == ("output hard", "output tight", "output aggregate") for report in found.values()
    )


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_equal_keys_are_not_taken_for_equal_scores(name):
    """A kernel that scales the query first has inexact products where the exact ones are small
    integers or cancel (torch and mlx do).
    """
    rng = np.random.default_rng(3)
    query, key = 60 * np.sign(rng.normal(size=(4, 17, 24))), np.sign(rng.normal(size=(4, 48, 24)))
    value = round_to(rng.normal(size=(4, 48, 24)), name)
    for keys in (key, np.repeat(key[:, ::16], 16, axis=1)):
        spec = KernelSpec.flash(name).replace(splits=1)
        output, lse = EmulatedKernel(spec.replace(scaled_query="float32"), seed=3)(
            query, keys, value, window=(6, 3)
        )
        report = check(output, query, keys, value, lse=lse, spec=spec, window=(6, 3))
        assert report.passed, report.text()
