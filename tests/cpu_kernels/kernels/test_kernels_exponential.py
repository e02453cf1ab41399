"""exp and tanh of the kernels against float64 and mpmath: the errors that the kernels' spec claims.

`python tests/cpu_kernels/kernels/test_kernels_exponential.py` proves exp over every float32 whose
exponential is normal, about 1.1e9 numbers, in a minute or two.
"""

import sys

import mpmath
import numpy as np
import pytest

from cpu_kernels.compiler.jit import driver
from cpu_kernels.kernels.exponential import SMALLEST_EXPONENT, apply_exp, apply_tanh

# Relative errors in unit roundoffs; the spec of the kernels claims 4 and 8. For tanh at its worst, just
# above 5/8 where e = exp(-2 |x|) = 0.29: e is off by 2.2 from exp, which 2 e / (1 - e**2) turns into 1.4; 1
# - e, 1 + e and the quotient add at most 1 each. Of exp it grows with the argument, which is multiplied by a
# rounded log2(e): that of float32 is off by 0.23 roundoffs, that of float64 by 0.13.
EXP_ERROR, EXP_ERROR_OF_ARGUMENT = 1.9, 0.24
TANH_ERROR = 4.7


@driver
def exp_of(x, y):
    apply_exp(x.size, (x, 0), (y, 0))


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
    return (np.arange(first, first + count * step, step, dtype=np.uint32) | np.uint32(1 << 31)).view(
        np.float32
    )


def largest_exp_error(x):
    """Share of the allowed error over float32 numbers; the float64 exponential is 2**29 times as fine."""
    wide = x.astype(np.float64)
    return (
        np.abs(evaluate(exp_of, x) / np.exp(wide) - 1)
        * 2.0**24
        / (EXP_ERROR + EXP_ERROR_OF_ARGUMENT * np.abs(wide))
    ).max()


LOWEST = np.float32(SMALLEST_EXPONENT["float32"])
BITS_OF_LOWEST = int((-LOWEST).view(np.uint32))


def test_exp_of_float32():
    every = float32_from_bits(0, BITS_OF_LOWEST // 1009, 1009)
    dense = float32_from_bits(int(np.float32(0.25).view(np.uint32)), 1 << 20)
    assert largest_exp_error(np.concatenate([every, dense, [LOWEST]])) <= 1


def test_tanh_of_float32():
    x = np.concatenate(
        [
            float32_from_bits(0, 1 << 20, 1019),
            float32_from_bits(int(np.float32(0.5).view(np.uint32)), 1 << 20, 29),
        ]
    )
    x = np.concatenate([x, -x])
    exact = np.tanh(x.astype(np.float64))
    with np.errstate(invalid="ignore"):
        error = np.abs(evaluate(tanh_of, x) / exact - 1) * 2.0**24
    assert np.nanmax(np.where(np.abs(x) >= np.finfo(np.float32).smallest_normal, error, 0)) <= TANH_ERROR
    assert np.abs(evaluate(tanh_of, np.float32([-1e30, 1e30, -100.0, 0.0])) - [-1, 1, -1, 0]).max() == 0


@pytest.mark.parametrize(
    "function, exact, limit, slope, low",
    [
        (exp_of, mpmath.exp, EXP_ERROR, EXP_ERROR_OF_ARGUMENT, -708),
        (tanh_of, mpmath.tanh, TANH_ERROR, 0.0, -20),
    ],
)
def test_float64(function, exact, limit, slope, low):
    rng = np.random.default_rng(0)
    x = np.concatenate([low * rng.random(500), -rng.random(1000), -(2.0 ** rng.uniform(-40, 0, 500))])
    with mpmath.workdps(30):
        errors = [
            abs(mpmath.mpf(float(y)) / exact(mpmath.mpf(float(a))) - 1) / (limit - slope * a)
            for a, y in zip(x, evaluate(function, x))
        ]
    assert max(errors) * 2**53 <= 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exp_at_the_ends(dtype):
    smallest = dtype(SMALLEST_EXPONENT[dtype.__name__])
    x = np.array(
        [0.0, -0.0, smallest, np.nextafter(smallest, dtype(-np.inf)), -1e30, np.finfo(dtype).min, -np.inf],
        dtype,
    )
    normal = float(np.finfo(dtype).smallest_normal)
    y = evaluate(exp_of, x)
    assert y[[0, 1, 3, 4, 5, 6]].tolist() == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0] and normal * (1 - 2.0**-16) <= y[
        2
    ] <= normal * (1 + 2.0**-16)
    assert np.isnan(evaluate(exp_of, np.array([np.nan, np.inf * 0], dtype))).all()


if __name__ == "__main__":
    chunk, worst = 1 << 24, 0.0
    for first in range(0, BITS_OF_LOWEST + 1, chunk):
        worst = max(
            worst, largest_exp_error(float32_from_bits(first, min(chunk, BITS_OF_LOWEST + 1 - first)))
        )
    print(
        f"exp over all {BITS_OF_LOWEST + 1} float32 numbers in [{LOWEST}, 0]: at most {worst:.4f} of the "
        "allowed error"
    )
    sys.exit(worst > 1)
