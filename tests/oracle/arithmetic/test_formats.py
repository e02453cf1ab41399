"""Rounding to a format agrees with ml_dtypes and NumPy, exhaustively for 16-bit numbers and their
midpoints.
"""

import ml_dtypes
import numpy as np
import pytest

from refattn.oracle.arithmetic.formats import FORMATS, number_format, round_to

TYPES = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
}


def finite_numbers(dtype):
    """All finite numbers of a type in float64, and whether the last bit of each is 0."""
    kind = f"u{np.dtype(dtype).itemsize}"
    bits = np.arange(2 ** (8 * np.dtype(dtype).itemsize)).astype(kind)
    with np.errstate(invalid="ignore"):
        numbers = bits.view(dtype).astype(np.float64)
    bits, numbers = bits[np.isfinite(numbers)], numbers[np.isfinite(numbers)]
    numbers, first = np.unique(numbers, return_index=True)
    return numbers, bits[first] % 2 == 0


@pytest.mark.parametrize("name", TYPES)
def test_round_to_nearest_even_exhaustively(name):
    """Every number stays; halfway goes to the even neighbour, a hair beside halfway to the nearer one."""
    numbers, even = finite_numbers(TYPES[name])
    np.testing.assert_array_equal(round_to(numbers, name), numbers)
    lower, upper = numbers[:-1], numbers[1:]
    halfway = lower + (upper - lower) / 2
    np.testing.assert_array_equal(round_to(halfway, name), np.where(even[:-1], lower, upper))
    np.testing.assert_array_equal(round_to(np.nextafter(halfway, np.inf), name), upper)
    np.testing.assert_array_equal(round_to(np.nextafter(halfway, -np.inf), name), lower)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_random_numbers_of_all_sizes(name, dtype):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=20000) * 2.0 ** rng.integers(-30, 14, size=20000)).astype(np.float32).astype(dtype)
    x = x[np.abs(x) < FORMATS[name].largest]
    got = round_to(x, name)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, x.astype(np.float32).astype(TYPES[name]).astype(dtype))


def test_bfloat16_fast_path_equals_the_general_one():
    rng = np.random.default_rng(1)
    x = rng.integers(0, 2**32, size=200000, dtype=np.uint32).view(np.float32)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(
            round_to(x, "bfloat16"), round_to(x.astype(np.float64), "bfloat16").astype(np.float32)
        )


def test_truncation_never_grows_and_loses_less_than_a_step():
    rng = np.random.default_rng(2)
    x = rng.normal(size=10000) * 2.0 ** rng.integers(-140, 120, size=10000)
    got = round_to(x, "e8m13", truncate=True)
    assert (np.abs(got) <= np.abs(x)).all()
    assert (np.abs(x - got) < FORMATS["e8m13"].step(x)).all()
    np.testing.assert_array_equal(round_to(got, "e8m13"), got)


def test_overflow_and_specials():
    x = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, -0.0])
    np.testing.assert_array_equal(round_to(x, "float16"), [np.nan, np.inf, -np.inf, np.inf, -np.inf, -0.0])
    np.testing.assert_array_equal(round_to(x, "float8_e4m3fn"), [np.nan, np.inf, -np.inf, 448, -448, 0])
    assert np.signbit(round_to(x, "bfloat16")[-1])
    limit = FORMATS["float16"].overflow_threshold
    assert (
        np.isinf(round_to(np.array([limit]), "float16"))
        and round_to(np.array([np.nextafter(limit, 0)]), "float16") == 65504
    )


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "tfloat32", "float8_e4m3fn"])
def test_roundoff_and_step_are_those_of_the_rounding(name):
    rng = np.random.default_rng(3)
    form = FORMATS[name]
    x = rng.uniform(1, 2, size=50000) * 2.0 ** rng.integers(-5, 5, size=50000)
    error = np.abs(round_to(x, form) - x)
    assert (error <= form.unit_roundoff * x).all()
    assert (error <= form.step(x) / 2).all()
    assert (error / x).max() > 0.9 * form.unit_roundoff  # u / (1 + u) at most
    tiny = rng.uniform(0, 1, size=1000) * form.smallest_normal
    assert (np.abs(round_to(tiny, form) - tiny) <= form.half_subnormal_step).all()


def test_names_dtypes_and_roundoffs():
    assert number_format("bf16") is number_format(ml_dtypes.bfloat16) is FORMATS["bfloat16"]
    assert number_format(np.float32) is number_format("fp32")
    assert number_format(2.0**-12).unit_roundoff == 2.0**-12
    assert number_format(0.0).name == "exact"
    with pytest.raises(ValueError, match="must be one of"):
        number_format("float12")
    with pytest.raises(ValueError, match=r"\[0, 0.5\]"):
        number_format(0.7)
    with pytest.raises(ValueError, match="floating-point"):
        number_format(np.int32)
    with pytest.raises(TypeError, match="format name"):
        number_format([1])


def test_single_numbers_round_to_single_numbers():
    for truncate in (False, True):
        assert round_to(np.array(1.0 + 2.0**-20), "e8m13", truncate=truncate).shape == ()


def test_a_format_holds_another_where_no_number_of_it_is_rounded():
    narrow = ("float8_e4m3fn", "float8_e5m2", "float16", "bfloat16", "tfloat32", "float32", "float64")
    rng = np.random.default_rng(0)
    numbers = np.ldexp(rng.standard_normal(4000), rng.integers(-160, 130, size=4000))
    for other in narrow:
        theirs = round_to(numbers, other)
        theirs = theirs[np.isfinite(theirs)]
        for name in narrow:
            form, there = number_format(name), number_format(other)
            assert form.holds(there) == bool((round_to(theirs, form) == theirs).all())
