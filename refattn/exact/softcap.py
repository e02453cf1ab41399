"""Softcap, cap * tanh(score / cap), with the fractions of the score kept.

np.tanh is good to a unit in the last place of 1, so cap * tanh would be good to a unit in the last place
of cap: 50 times too coarse for a cap of 50. Here tanh comes from a table in double-double, at the nearest
point a, and the addition theorem in double-double for the small way r from there:

    tanh(a + r) = tanh(a) + (1 - tanh(a)^2) * t * (1 - w),   t = tanh(r),   w = tanh(a) t / (1 + tanh(a) t)
"""

import functools
from decimal import Decimal, localcontext

import numpy as np

from refattn.exact.precise import DoubleDouble, add, multiply, normalised, product_of

STEPS = 512  # table points per unit: |r| <= 2**-10
SATURATED = 24  # 1 - tanh(24) < 2**-68
UNCAPPED = 2.0**-54  # x - tanh(x) < 2**-108 x, and x / cap may be too small to be held


@functools.cache
def tables():
    """tanh(a) and 1 - tanh(a)^2 as double-doubles at a = 0, 1 / STEPS, ... SATURATED, from 45-digit
    arithmetic: more digits give the same tables.
    """
    with localcontext() as context:
        context.prec = 45
        step = (Decimal(2) / STEPS).exp()
        power, tanh, slope = Decimal(1), [], []
        for _ in range(STEPS * SATURATED + 1):
            tanh.append(two_floats((power - 1) / (power + 1)))
            slope.append(two_floats(4 * power / (power + 1) ** 2))
            power *= step
    return DoubleDouble(*np.array(tanh).T), DoubleDouble(*np.array(slope).T)


def two_floats(exact):
    high = float(exact)
    return high, float(exact - Decimal(high))


def softcap(scores, cap):
    """cap * tanh(scores / cap) for a `DoubleDouble`, to about 2**-70 of cap, 2**-68 beyond SATURATED."""
    if scores.high.dtype == np.longdouble:
        return DoubleDouble(cap * np.tanh(scores.high / cap), scores.low)
    sign = np.where(scores.high < 0, -1.0, 1.0)
    quotient = scores.high * sign / cap
    back = multiply(np.where(np.isfinite(quotient), quotient, 0.0), cap)
    # quotient + missing is score / cap
    missing = (((scores.high * sign - back.high) - back.low) + scores.low * sign) / cap
    index = np.rint(np.where(quotient < SATURATED, quotient, SATURATED) * STEPS).astype(np.intp)
    remainder = normalised(
        np.minimum(quotient, SATURATED) - index / STEPS, np.where(quotient < SATURATED, missing, 0.0)
    )
    square = remainder.high * remainder.high
    # tanh(remainder)
    small = DoubleDouble(
        remainder.high, remainder.low - remainder.high * square * (1 / 3 - square * (2 / 15))
    )
    tanh, slope = (DoubleDouble(table.high[index], table.low[index]) for table in tables())
    moved = product_of(slope, small)
    part = tanh.high * (small.high + small.low)
    w = part / (1 + part)
    moved = normalised(moved.high, moved.low - (moved.high + moved.low) * w)
    capped = product_of(normalised(*add(moved, tanh.high)), DoubleDouble(np.float64(cap), 0.0))
    capped = normalised(capped.high * sign, (capped.low + cap * tanh.low) * sign)
    return DoubleDouble(
        *(np.where(quotient < UNCAPPED, same, bent) for same, bent in zip(scores, capped, strict=True))
    )
