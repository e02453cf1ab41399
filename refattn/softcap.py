"""Softcap, cap * tanh(score / cap), with the fractions of the score kept.

np.tanh is good to a unit in the last place of 1, so cap * tanh would be good to a unit in the last place of cap: 50 times too coarse
for a cap of 50. tanh(a + r) = tanh(a) + (1 - tanh(a)^2) tanh(r) / (1 + tanh(a) tanh(r)) needs that unit only of the small second
term when a is the nearest point of a table and tanh(a) comes from it in double-double.
"""

import functools
from decimal import Decimal, localcontext

import numpy as np

from refattn.precise import DoubleDouble, halves, multiply, normalised

STEPS = 64  # table points per unit
SATURATED = 22  # 1 - tanh(22) < 2**-62


@functools.cache
def tanh_table():
    """tanh(n / STEPS) for n from -STEPS * SATURATED to STEPS * SATURATED as a double-double, from 40-digit arithmetic."""
    high, low = [], []
    with localcontext() as context:
        context.prec = 40
        for n in range(STEPS * SATURATED + 1):
            power = (Decimal(2 * n) / STEPS).exp()
            exact = (power - 1) / (power + 1)
            high.append(float(exact))
            low.append(float(exact - Decimal(high[-1])))
    high, low = np.array(high), np.array(low)
    return DoubleDouble(np.concatenate([-high[:0:-1], high]), np.concatenate([-low[:0:-1], low]))


def softcap(scores, cap):
    """cap * tanh(scores / cap) for a `DoubleDouble`, to about 2**-60 of cap."""
    high, low = scores
    if high.dtype == np.longdouble:
        return DoubleDouble(cap * np.tanh(high / cap), low)
    table = tanh_table()
    edge = STEPS * SATURATED
    point = np.rint(np.clip(high * (STEPS / cap), -edge, edge))
    cap_top, cap_rest = halves(np.float64(cap))
    anchor = point / STEPS
    remainder = (((high - anchor * cap_top) - anchor * cap_rest) + low) / cap
    remainder = np.clip(remainder, -1 / STEPS, 1 / STEPS)  # only beyond SATURATED, where tanh no longer moves
    square = remainder * remainder
    tanh_remainder = remainder * (1 - square * (1 / 3 - square * (2 / 15 - square * (17 / 315))))
    index = np.where(np.isnan(point), 0, point + edge).astype(np.intp)
    tanh_anchor = table.high[index]
    slope = (1 - tanh_anchor) * (1 + tanh_anchor)
    correction = slope * tanh_remainder / (1 + tanh_anchor * tanh_remainder)
    product = multiply(table.high, cap)
    return normalised(product.high[index], (product.low + cap * table.low)[index] + cap * correction)
