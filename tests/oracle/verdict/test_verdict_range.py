"""Results at the end of a format's range, and infinite values of weights that underflow: what passes
there, and what does not.
"""

import numpy as np
import pytest

import refattn
from refattn.oracle import EmulatedKernel, KernelSpec, check

SPECS = ("float16", "eager float16", "float8_e4m3fn", "float8_e5m2")


def spec_of(words):
    return KernelSpec.eager(words.split()[1]) if " " in words else KernelSpec.flash(words)


def equal_weights(value):
    """Query, key and value of which every output is `value`."""
    return (
        np.ones((1, 1, 16), np.float16),
        np.zeros((1, 4, 16), np.float16),
        np.full((1, 4, 16), value, np.float16),
    )


@pytest.mark.parametrize("dims", [slice(None), slice(3, 4)], ids=["all", "one"])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_number_of_the_wrong_sign(sign, dims):
    arrays = equal_weights(sign * 65504)
    right = np.full((1, 1, 16), sign * 65504, np.float16)
    assert check(right, *arrays).complete and check(right, *arrays).passed
    wrong = right.copy()
    wrong[..., dims] *= -1
    report = check(wrong, *arrays)
    assert report.wrong and "output hard" in report.failed and report.output.use_hard > 100


@pytest.mark.parametrize(
    "number, passes",
    [(448, True), (-448, False), (np.inf, True), (-np.inf, False), (300, False), (3e38, False)],
)
def test_a_saturated_output_has_the_sign_of_the_result_and_is_the_largest_number(number, passes):
    arrays = equal_weights(500)
    spec = KernelSpec.flash("float8_e4m3fn").replace(output="float8_e4m3fn", accumulator="float32")
    assert check(np.full((1, 1, 16), float(number)), *arrays, spec=spec).passed is passes


def small_weight(bad, score=-8.0, v_dim=16):
    """Key 3 has a weight of 4 exp(score) / 3 at most, and `bad` in column 0 of its value; the mean of
    the other values comes along.
    """
    rng = np.random.default_rng(5)
    query, key = np.ones((1, 1, 16), np.float16), np.zeros((1, 4, 16), np.float16)
    key[0, 3] = score / 4
    value = rng.integers(-8, 9, size=(1, 4, v_dim)).astype(np.float16) / 4
    value[0, 3, 0] = bad
    rest = np.where(np.isfinite(value), value, 0).astype(float).sum(axis=1, keepdims=True) / 3
    return (query, key, value), rest


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("words", SPECS)
def test_an_infinite_value_of_vanishing_weight_excuses_no_other_number(words, bad):
    arrays, rest = small_weight(bad, -32.0)
    spec = spec_of(words)
    output = EmulatedKernel(spec)(*arrays)[0]
    assert np.isfinite(output).all() and check(output, *arrays, spec=spec).passed
    verdicts = {}
    for number in (bad, np.nan, rest[0, 0, 0], 1234.0, rest[0, 0, 0] + 3.0, np.inf, -np.inf):
        other = output.copy()
        other[0, 0, 0] = number
        report = check(other, *arrays, spec=spec)
        verdicts[float(number)] = report.passed
        assert report.complete and report.wrong is not report.passed
    right = {value for value, passed in verdicts.items() if passed}
    expected = {float(rest[0, 0, 0]), *([bad] if np.isinf(bad) else [])}
    assert {x for x in right if not np.isnan(x)} == expected and not any(
        np.isnan(x) and not ok for x, ok in verdicts.items()
    )


@pytest.mark.parametrize("words", SPECS)
def test_an_infinite_value_of_a_weight_that_stays_is_never_left_out(words):
    arrays, rest = small_weight(np.inf, -1.0)
    spec = spec_of(words)
    output = EmulatedKernel(spec)(*arrays)[0]
    assert output[0, 0, 0] == np.inf and check(output, *arrays, spec=spec).passed
    for number in (rest[0, 0, 0], np.nan, -np.inf):
        output[0, 0, 0] = number
        assert check(output, *arrays, spec=spec).failed == ("output positions",)


def test_of_two_infinite_values_the_one_that_keeps_its_weight_counts():
    (query, key, value), _ = small_weight(np.inf, -32.0)
    value[0, 1, 0] = -np.inf
    spec = KernelSpec.flash("float16")
    output = EmulatedKernel(spec)(query, key, value)[0]
    assert np.isnan(refattn.attention(query, key, value)[0, 0, 0]) and output[0, 0, 0] == -np.inf
    for number, passes in ((-np.inf, True), (np.nan, True), (np.inf, False), (0.0, False)):
        output[0, 0, 0] = number
        assert check(output, query, key, value, spec=spec).passed is passes


def test_weights_after_division_by_the_row_sum_underflow_sooner():
    """Eager kernels convert weight / row sum: 4096 equal keys move the underflow of float16 by 12
    powers of two.
    """
    query, key, value = np.ones((1, 1, 1)), np.zeros((1, 4097, 1)), np.ones((1, 4097, 1))
    key[0, 0], value[0, 0] = -12.0, np.inf
    for spec, left_out in ((KernelSpec.eager("float16"), True), (KernelSpec.flash("float16"), False)):
        output = EmulatedKernel(spec)(query, key, value)[0]
        assert np.isfinite(output).all() == left_out and check(output, query, key, value, spec=spec).passed
        assert check(np.ones((1, 1, 1)), query, key, value, spec=spec).passed is left_out


def test_dropped_infinite_values_have_no_say():
    """Key 3 has an underflowing weight, key 1 a large one that dropout takes away: a kernel that
    skips zeros gives the mean of the rest.
    """
    (query, key, value), _ = small_weight(-np.inf, -32.0)
    value[0, 1, 0] = np.inf
    dropout = {"dropout_mask": np.array([[True, False, True, True]]), "dropout_rate": 0.5}
    spec = KernelSpec.flash("float16")
    output = EmulatedKernel(spec)(query, key, value, **dropout)[0]
    assert refattn.attention(query, key, value, **dropout)[0, 0, 0] == -np.inf and np.isfinite(output).all()
    for number, passes in (
        (output[0, 0, 0], True),
        (np.nan, True),
        (-np.inf, True),
        (np.inf, False),
        (9.0, False),
    ):
        output[0, 0, 0] = number
        assert check(output, query, key, value, spec=spec, **dropout).passed is passes
