"""Inputs: families do what they say, exact cases are exact, seeds are stable."""

import itertools

import ml_dtypes
import numpy as np
import pytest

import refattn
from refattn.oracle.inputs.families import (
    FAMILIES,
    OPTION_NAMES,
    Sizes,
    adversarial_inputs,
    attention_inputs,
)
from refattn.oracle.inputs.paged import paged_inputs
from refattn.oracle.inputs.suites import default_suite, exact_cases, reference

DTYPES = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)


def steps_of(inputs):
    return refattn.attention_steps(*inputs.arrays, **inputs.options)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_exact_cases_are_bitwise(dtype):
    for case in exact_cases(dtype):
        output, lse = reference(case)
        np.testing.assert_array_equal(output, case.output, err_msg=case.name)
        np.testing.assert_array_equal(
            case.output.astype(dtype).astype(np.float64), case.output, err_msg=case.name
        )
        np.testing.assert_allclose(lse, case.lse, rtol=1e-15, err_msg=case.name)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("family", FAMILIES)
def test_families_in_every_dtype(family, dtype):
    inputs = attention_inputs(family, ["causal"], dtype=dtype)
    assert all(array.dtype == dtype for array in inputs.arrays)
    output, lse = reference(inputs)
    bad = ~np.isfinite(output)
    assert bad.any() == (family == "nan visible")
    assert np.isneginf(lse).any() == (family == "empty rows")


def test_ascending_moves_the_maximum_in_every_tile():
    steps = steps_of(attention_inputs("ascending"))
    tops = [steps.biased[..., first : first + 16].max(-1) for first in range(0, 64, 16)]
    assert all((late > early).mean() > 0.9 for early, late in itertools.pairwise(tops))


def test_descending_never_moves_it():
    steps = steps_of(attention_inputs("descending"))
    assert (steps.biased[..., :16].max(-1) >= steps.biased[..., 16:].max(-1)).all()


@pytest.mark.parametrize(
    ("family", "low", "high"), [("low scores", -np.inf, -1e4), ("large scores", 90, np.inf)]
)
def test_score_ranges(family, low, high):
    scores = steps_of(attention_inputs(family)).scores
    assert scores.min() > low
    assert scores.max() < high


@pytest.mark.parametrize(("family", "columns"), [("early sink", slice(0, 1)), ("late sink", slice(72, 73))])
def test_sinks_take_the_weight(family, columns):
    assert steps_of(attention_inputs(family)).weights[..., columns].mean() > 0.99


def test_one_hot_takes_one_key():
    assert np.median(steps_of(attention_inputs("one-hot")).weights.max(-1)) > 0.999


def test_poison_is_hidden_and_there():
    inputs = attention_inputs("poison", ["mask"])
    assert np.isnan(inputs.arrays[1]).any()
    assert np.isfinite(reference(inputs)[0]).all()
    paged = paged_inputs(poison=True)
    assert np.isnan(paged.arrays[1]).any()
    assert np.isfinite(reference(paged)[0]).all()


def test_same_seed_same_numbers_and_other_seed_others():
    first, again, other = (attention_inputs("normal", seed=seed).arrays[0] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()


def test_every_family_with_every_option():
    cases = list(
        adversarial_inputs(options=[(name,) for name in OPTION_NAMES], sizes=Sizes(1, 4, 2, 3, 17, 8, 5))
    )
    assert len(cases) == len(FAMILIES) * len(OPTION_NAMES)
    assert len({case.name for case in default_suite()}) >= 60


@pytest.mark.parametrize(
    "sizes",
    [
        Sizes(1, 1, 1, 1, 1, 1, 1),
        Sizes(1, 2, 1, 1, 64, 4, 4),
        Sizes(1, 2, 2, 3, 65, 4, 4),
        Sizes(2, 2, 2, 5, 4, 3, 7),
    ],
)
def test_any_size(sizes):
    for inputs in adversarial_inputs(sizes=sizes):
        reference(inputs)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="family must be one of normal"):
        attention_inputs("gaussian")
    with pytest.raises(ValueError, match="names must be of bias, mask"):
        attention_inputs("normal", ["rope"])
