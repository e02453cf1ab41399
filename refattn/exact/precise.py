"""Keep the digits float64 drops: numbers as unevaluated sums of two, and matrix products without rounding.

A score of 1e4 in float64 is good to 1e-12, so the weights it decides are good to 1e-12 and not to 1e-16:
the fractions are lost before the softmax sees them. Here a score is a `DoubleDouble`, high + low, and the
matrix product that makes it is computed without rounding in its leading part: both factors are cut into
their leading bits and the rest, so few bits that the leading parts multiply and add up exactly in
float64, whatever order the BLAS takes (Ozaki et al. 2012, "Error-free transformations of matrix
multiplication", Numerical Algorithms 59, section 3). The three remaining products are tiny and may round.

Inputs beyond 2**+-LARGEST_EXPONENT (about 1e+-120), whose products leave the range of float64, are
computed in long double instead; its low part is zero.
"""

from typing import NamedTuple

import numpy as np

LARGEST_EXPONENT = 400
SMALLEST_VALUE_EXPONENT = -1000  # times a weight that counts it stays above the subnormals
VELTKAMP = 2.0**27 + 1


class DoubleDouble(NamedTuple):
    """The number high + low, never added up until the end."""

    high: np.ndarray
    low: np.ndarray


class Split(NamedTuple):
    """A right-hand factor of `matmul`: top + rest, top short enough for exact products; whole is
    their float64 sum. Shapes [..., K, N].
    """

    whole: np.ndarray
    top: np.ndarray
    rest: np.ndarray
    bits: int

    def columns(self, first, last):
        return Split(self.whole[:, first:last], self.top[:, first:last], self.rest[:, first:last], self.bits)

    def rows(self, first, last):
        return Split(self.whole[first:last], self.top[first:last], self.rest[first:last], self.bits)


def largest_finite(array):
    """The largest magnitude of the finite elements, 0.0 where there are none."""
    magnitude = np.maximum(array.max(initial=0.0), -array.min(initial=0.0))  # NaN if one is there
    if np.isfinite(magnitude):
        return magnitude
    return np.max(np.abs(array), where=np.isfinite(array), initial=0.0)


def within_float64(*arrays, power=0):
    """Whether products of these arrays' finite elements, the first times 2**power, stay far inside
    the range of float64.
    """
    for number, array in enumerate(arrays):
        magnitude = largest_finite(array)
        exponent = np.frexp(magnitude)[1] + (0 if number else power)
        if magnitude > 0 and abs(exponent) > LARGEST_EXPONENT:
            return False
    return True


def sums_within_float64(array):
    """Whether weighted sums of this array's finite elements keep their digits: none too large, none
    but 0 near the subnormals.
    """
    magnitude = np.abs(array)
    least, most = magnitude.min(initial=1.0), magnitude.max(initial=1.0)  # NaN if one is there
    if 2.0**SMALLEST_VALUE_EXPONENT <= least <= most <= 2.0**LARGEST_EXPONENT:
        return True  # no zeros, nothing that is not finite: most arrays
    finite = np.isfinite(array)
    largest = np.max(magnitude, where=finite, initial=0.0)
    smallest = np.min(magnitude, where=finite & (magnitude > 0), initial=1.0)
    return largest <= 2.0**LARGEST_EXPONENT and smallest >= 2.0**SMALLEST_VALUE_EXPONENT


def long_double(x):
    """A double-double in long double, where that is wider than float64."""
    if np.finfo(np.longdouble).maxexp <= np.finfo(np.float64).maxexp:
        raise OverflowError(
            f"elements must be between 2**-{LARGEST_EXPONENT} and 2**{LARGEST_EXPONENT} on this platform, "
            "whose long double is no wider than float64; got larger or smaller ones."
        )
    whole = np.asarray(x.high, dtype=np.longdouble) + x.low
    return DoubleDouble(whole, np.zeros_like(whole))


def exact_bits(inner):
    """How many bits two factors may have so that sums of `inner` of their products are exact in 53."""
    return (53 - max(inner - 1, 0).bit_length()) // 2


def leading(x, bits, largest):
    """x rounded to multiples of 2**-bits of the power of two above `largest`; exact to subtract from x."""
    exponent = np.frexp(largest)[1]
    anchor = np.ldexp(1.5, exponent - bits + 52)  # adding it pushes the lower bits off the end
    top = x + anchor
    top -= anchor
    return top


def largest_along(x, axis):
    return np.max(np.abs(x), axis=axis, keepdims=True, initial=0.0)


def split(x, largest=None):
    """Split a double-double [..., K, N]; each column on its own scale, or all on that of `largest`.

    On its own scale, what one column holds cannot touch the products of another.
    """
    bits = exact_bits(x.high.shape[-2])
    if x.high.dtype == np.longdouble:
        return Split(x.high, x.high, x.low, bits)
    top = leading(x.high, bits, largest_along(x.high, -2) if largest is None else largest)
    return Split(x.high, top, (x.high - top) + x.low, bits)


def matmul(a, b):
    """a @ b, a double-double [..., M, K] and a split [..., K, N], to about 2**-70 of K times the largest
    |a| of the row times the largest |b| of the column; the IEEE product with low = 0 where a row of a
    or a column of b is not finite.

    Callers even out channels first (`channel_scale`), so that this is not far above sum(|a| |b|).
    """
    if np.longdouble in (a.high.dtype, b.whole.dtype):
        product = a.high @ b.whole
        return DoubleDouble(product, np.zeros_like(product))
    a_top = leading(a.high, b.bits, largest_along(a.high, -1))
    a_rest = a.high - a_top
    a_rest += a.low
    high = a_top @ b.top
    low = a_rest @ b.whole
    if b.rest.any():
        low += a_top @ b.rest
    finite = np.isfinite(low)
    if not finite.all():
        high = np.where(finite, high, a.high @ b.whole)
        low = np.where(finite, low, 0.0)
    return DoubleDouble(high, low)


def multiply(x, y):
    """x * y without rounding (Veltkamp and Dekker; Dekker 1971, section 5); shapes broadcast."""
    product = x * y
    if product.dtype == np.longdouble:
        return DoubleDouble(product, np.zeros_like(product))
    (x_top, x_rest), (y_top, y_rest) = halves(x), halves(y)
    return DoubleDouble(
        product, ((x_top * y_top - product) + x_top * y_rest + x_rest * y_top) + x_rest * y_rest
    )


def product_of(x, y):
    """x * y of two double-doubles."""
    product = multiply(x.high, y.high)
    low = product.low + (x.high * y.low + x.low * y.high)
    return normalised(product.high, np.where(np.isfinite(product.high), low, 0.0))


def halves(x):
    """x as a sum of two numbers of 26 bits each."""
    top = VELTKAMP * x
    top = top - (top - x)
    return top, x - top


def add(x, y):
    """The double-double x plus the number y (Knuth's two-sum)."""
    total = np.asarray(x.high + y)
    y_part = np.asarray(total - x.high)
    low = np.asarray(total - y_part)
    np.subtract(x.high, low, out=low)
    np.subtract(y, y_part, out=y_part)
    low += y_part  # what rounding the total dropped
    low += x.low
    return DoubleDouble(total, low)


def normalised(high, low):
    """The same sum with |low| at most half an ulp of high, 0 where high is not finite; either may be
    the larger.
    """
    total, rest = add(DoubleDouble(high, 0.0), low)
    return DoubleDouble(total, np.where(np.isfinite(total), rest, 0.0))


def power_of_two_above(x, axis, coarse=1):
    """The power of two above the largest magnitude along `axis`, its exponent rounded to a multiple
    of `coarse`.
    """
    exponent = np.frexp(np.max(np.abs(x), axis=axis, initial=0.0))[1]
    return np.ldexp(1.0, np.rint(exponent / coarse).astype(int) * coarse)


def channel_scale(x, y):
    """Powers of two [C] that even out channels, the last axes of x and y, that are large in x and small in
    y; 1 where that gains little.

    Dividing x by them and multiplying y keeps the products; without it those of small channels would all
    lie below the leading bits of large ones. They are the sizes of the channels of x: no key, when y are
    keys, can change another's bits.
    """
    ones = np.ones(x.shape[-1])
    if np.longdouble in (x.dtype, y.dtype):
        return ones
    x_sizes, y_sizes = (
        np.max(np.abs(z), axis=tuple(range(z.ndim - 1)), where=np.isfinite(z), initial=0.0) for z in (x, y)
    )
    scale = power_of_two_above(x_sizes[None], 0)
    largest = lambda sizes: np.max(sizes, initial=0.0)
    return (
        scale
        if largest(x_sizes / scale) * largest(y_sizes * scale) < largest(x_sizes) * largest(y_sizes) / 8
        else ones
    )


def scaled(x, powers):
    """A double-double times powers of two."""
    return DoubleDouble(x.high * powers, x.low * powers)


def sum_last(x):
    """The sum over the last axis of elements in [0, about 1], axis kept: the leading bits add up exactly."""
    if x.dtype == np.longdouble:
        total = x.sum(axis=-1, keepdims=True)
        return DoubleDouble(total, np.zeros_like(total))
    top = leading(x, 51 - x.shape[-1].bit_length(), 1.0)
    high = top.sum(axis=-1, keepdims=True)
    np.subtract(x, top, out=top)
    return DoubleDouble(high, top.sum(axis=-1, keepdims=True))


def divide(x, y):
    """x / y of two double-doubles, y normalised; 0 where y is 0."""
    x = normalised(*x)
    quotient = np.divide(x.high, y.high, out=np.zeros_like(x.high), where=y.high != 0)
    back = multiply(quotient, y.high)
    missing = ((x.high - back.high) - back.low) + (x.low - quotient * y.low)
    correction = np.divide(missing, y.high, out=np.zeros_like(quotient), where=y.high != 0)
    return normalised(quotient, np.where(np.isfinite(correction), correction, 0.0))


def flushes_subnormals():
    """True if the calling thread treats subnormal operands as zero (DAZ) or rounds subnormal results
    to zero (FTZ).
    """
    smallest = np.array([1], np.uint32).view(np.float32)
    smallest_normal = np.array([0x00800000], np.uint32).view(np.float32)
    with np.errstate(all="ignore"):
        return bool(
            (smallest * np.float32(2**100))[0] == 0
            or (smallest_normal * np.float32(0.5)).view(np.uint32)[0] == 0
        )


def require_subnormals():
    """Raise where the calling thread would lose small numbers without a word."""
    if flushes_subnormals():
        raise FloatingPointError(
            "This thread flushes subnormal numbers to zero (a library built with -ffast-math, or "
            "torch.set_flush_denormal(True)), so the reference "
            "cannot be exact in it. Turn that off, or call from a process that does not load the library; "
            "`refattn doctor` looks for it."
        )
