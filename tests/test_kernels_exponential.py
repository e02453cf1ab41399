"""exp2 and tanh of the kernels against float64 and mpmath: the errors that the kernels' spec claims.

`python tests/test_kernels_exponential.py` proves exp2 over every float32 from -126 to 0, about 1.1e9 numbers, in a minute or two.
"""

import sys

import mpmath
import numpy as np
import pytest

from cpu_kernels.compiler.jit import driver
from cpu_kernels.kernels.exponential import apply_exp2, apply_tanh

# Relative errors in unit roundoffs; the spec of the kernels claims 4 and 8. For tanh at its worst, just above 5/8 where e = exp(-2 |x|) = 0.29: e is off by
# 1.5 from exp2 and 1.3 from the rounded exponent, which 2 e / (1 - e**2) turns into 1.7; 1 - e, 1 + e and the quotient add at most 1 each.
EXP2_ERROR = 1.5
TANH_ERROR = 4.7


@driver
def exp2_of(x, y):
    apply_exp2(x.size, (x, 0), (y, 0))


@driver
def tanh_of(x, y):
    apply_tanh(x.size, (x, 0), (y, 0))


def evaluate(function, x):
    padded = np.zeros(-(-x.size // 64) * 64, x.dtype)
    padded[: x.size] = x
    y = np.empty_like(padded)
    function(padded, y)
    return y[: x.size]


def float32_from_bits(first, count, step=1):
    """Negative float32 numbers with consecutive magnitudes."""
    return (np.arange(first, first + count * step, step, dtype=np.uint32) | np.uint32(1 << 31)).view(np.float32)


def largest_exp2_error(x):
    """Over float32 numbers, in unit roundoffs; the float64 exponential is 2**29 times as fine."""
    exact = np.exp2(x.astype(np.float64))
    return np.abs(evaluate(exp2_of, x) / exact - 1).max() * 2.0**24


BITS_OF_126 = int(np.float32(126.0).view(np.uint32))


def test_exp2_of_float32():
    every = float32_from_bits(0, BITS_OF_126 // 1009, 1009)
    dense = float32_from_bits(int(np.float32(0.25).view(np.uint32)), 1 << 20)
    assert largest_exp2_error(np.concatenate([every, dense, np.float32([-126.0])])) <= EXP2_ERROR


def test_tanh_of_float32():
    x = np.concatenate([float32_from_bits(0, 1 << 20, 1019), float32_from_bits(int(np.float32(0.5).view(np.uint32)), 1 << 20, 29)])
    x = np.concatenate([x, -x])
    exact = np.tanh(x.astype(np.float64))
    with np.errstate(invalid="ignore"):
        error = np.abs(evaluate(tanh_of, x) / exact - 1) * 2.0**24
    assert np.nanmax(np.where(np.abs(x) >= np.finfo(np.float32).smallest_normal, error, 0)) <= TANH_ERROR
    assert np.abs(evaluate(tanh_of, np.float32([-1e30, 1e30, -100.0, 0.0])) - [-1, 1, -1, 0]).max() == 0


@pytest.mark.parametrize("function, exact, limit, low", [(exp2_of, lambda x: mpmath.mpf(2) ** x, EXP2_ERROR, -1021), (tanh_of, mpmath.tanh, TANH_ERROR, -20)])
def test_float64(function, exact, limit, low):
    rng = np.random.default_rng(0)
    x = np.concatenate([low * rng.random(500), -rng.random(1000), -(2.0 ** rng.uniform(-40, 0, 500))])
    with mpmath.workdps(30):
        errors = [abs(mpmath.mpf(float(y)) / exact(mpmath.mpf(float(a))) - 1) for a, y in zip(x, evaluate(function, x))]
    assert max(errors) * 2**53 <= limit


@pytest.mark.parametrize("dtype, smallest", [(np.float32, -126), (np.float64, -1022)])
def test_exp2_at_the_ends(dtype, smallest):
    x = np.array([0.0, -0.0, -1.0, smallest, smallest - 0.5, -1e30, -np.inf], dtype)
    assert evaluate(exp2_of, x).tolist() == [1.0, 1.0, 0.5, 2.0**smallest, 0.0, 0.0, 0.0]
    assert np.isnan(evaluate(exp2_of, np.array([np.nan, np.inf * 0], dtype))).all()


if __name__ == "__main__":
    chunk, worst = 1 << 24, 0.0
    for first in range(0, BITS_OF_126 + 1, chunk):
        worst = max(worst, largest_exp2_error(float32_from_bits(first, min(chunk, BITS_OF_126 + 1 - first))))
    print(f"exp2 over all {BITS_OF_126 + 1} float32 numbers in [-126, 0]: largest error {worst:.4f} unit roundoffs = {worst / 2:.4f} ulp at most")
    sys.exit(worst > EXP2_ERROR)
