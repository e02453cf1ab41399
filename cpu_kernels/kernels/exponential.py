"""exp and tanh in vector registers.

Polynomials of least relative error (Remez exchange in 40 digits, `benchmarks/fit_polynomials.py`); constant
terms are exact so that exp(0) = 1. tests/cpu_kernels/kernels/test_kernels_exponential.py
bounds the error over the whole range.
"""

import numpy as np

from cpu_kernels.simd.building_block import building_block

LOG2E = 1.4426950408889634

# 2**x on [-1/2, 1/2]: relative error 2.6e-9 and 1.8e-17 before rounding.
EXP2 = {
    "float32": (
        1.0,
        0.6931472420692444,
        0.24022652208805084,
        0.055503103882074356,
        0.009617692790925503,
        0.0013406643411144614,
        0.00015594672004226595,
    ),
    "float64": (
        1.0,
        0.6931471805599457,
        0.24022650695910097,
        0.05550410866479039,
        0.009618129107607003,
        0.0013333558153439677,
        0.00015403530441571379,
        1.5252727385427634e-05,
        1.3215442675797239e-06,
        1.0180647576596453e-07,
        7.072570320758415e-09,
        4.078082536086186e-10,
    ),
}

# (tanh(x) / x - 1) / x**2 as a polynomial in x**2, |x| <= 5/8: relative error of tanh 1.5e-10 and 3.5e-19
# before rounding.
TANH_LIMIT = 0.625
TANH = {
    "float32": (
        -0.33333330906773095,
        0.13333209767098472,
        -0.05394720463687685,
        0.0217029689323864,
        -0.008182678030993077,
        0.0021475404303619742,
    ),
    "float64": (
        -0.33333333333333315,
        0.1333333333332989,
        -0.05396825396613438,
        0.0218694884706533,
        -0.008863234341493218,
        0.0035921142712060255,
        -0.0014557276163050905,
        0.0005894586208879536,
        -0.0002370301191114681,
        9.158980167042924e-05,
        -3.0217969758942696e-05,
        6.055636492569126e-06,
    ),
}

MANTISSA_BITS = {"float32": 23, "float64": 52}
SMALLEST_EXPONENT = {
    "float32": -87.33654,
    "float64": -708.39641,
}  # exp of it is the smallest normal number, and hardly more


def polynomial(emit, coefficients, x):
    """Horner's rule, highest power first."""
    result = emit.vector(coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        result = emit.fma(result, x, coefficient)
    return result


def exp(emit, x):
    """e**x for x <= 0: 0 below the smallest normal number (hence for -inf), NaN for NaN.

    2**n 2**f with n + f = x log2(e). The factor log2(e) comes with the two additions that find n and f, as
    fused multiplications: x in natural units costs no instruction more than in units of log2, where numbers
    at the end of the range would overflow.
    """
    name = emit.dtype.name
    shift = MANTISSA_BITS[name]
    magic = 1.5 * 2.0**shift  # adding it rounds to an integer, which is then the low bits of the sum
    shifted = emit.fma(x, LOG2E, emit.vector(magic))
    fraction = emit.fma(x, LOG2E, emit.vector(magic) - shifted)
    exponent = emit.builder.shl(emit.as_integer(shifted), emit.integers(shift))
    one = emit.as_integer(emit.vector(1.0))
    power = emit.as_float(emit.builder.add(exponent, one))
    return emit.select(x < SMALLEST_EXPONENT[name], 0.0, polynomial(emit, EXP2[name], fraction) * power)


def tanh(emit, x):
    """Hyperbolic tangent: a polynomial near 0, else 1 - 2 e / (1 + e) with e = exp(-2 |x|)."""
    square = x * x
    near = emit.fma(x * square, polynomial(emit, TANH[emit.dtype.name], square), x)
    magnitude = emit.absolute(x)
    e = exp(emit, magnitude * -2.0)
    far = emit.copy_sign((emit.vector(1.0) - e) / (e + 1.0), x)
    return emit.select(magnitude < TANH_LIMIT, near, far)


def _apply_exp(count, x, y):
    (x, x0), (y, y0) = x, y
    with np.errstate(under="ignore"):
        y[y0 : y0 + count] = np.exp(x[x0 : x0 + count])


@building_block(python=_apply_exp)
def apply_exp(emit, count, x, y):
    """y = e**x over `count` elements, a multiple of the lanes: the way tests reach `exp`."""
    with emit.loop(count, step=emit.lanes) as i:
        emit.store(exp(emit, emit.load(x, i)), y, i)


def _apply_tanh(count, x, y):
    (x, x0), (y, y0) = x, y
    y[y0 : y0 + count] = np.tanh(x[x0 : x0 + count])


@building_block(python=_apply_tanh)
def apply_tanh(emit, count, x, y):
    """y = tanh(x) over `count` elements, a multiple of the lanes: the way tests reach `tanh`."""
    with emit.loop(count, step=emit.lanes) as i:
        emit.store(tanh(emit, emit.load(x, i)), y, i)
