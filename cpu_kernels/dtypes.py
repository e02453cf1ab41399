"""Numbers at the edge of what a dtype holds, read as the reference reads them.

What the order of the contract - product, scale, softcap, ALiBi and bias, softmax, weights times values -
computes finitely in a dtype, kernels of that dtype do too, though they scale the query before the product
and divide by the sum of weights at the end (README, "The order of operations"). `finfo.min` as a mask
that is added is such a number: a row that sees nothing else attends evenly to it. Options that float32
cannot hold are computed in float64 and rounded at the end: scales and caps far from 1, steep slopes,
float64 biases and sinks beyond float32.
"""

import numpy as np

from refattn.calls.arrays import stored_once

FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
FLOAT32_MAX = float(np.finfo(FLOAT32).max)

# Factors that float32 multiplies scores by: far from where products with ordinary numbers overflow or become
# subnormal.
LARGEST_FACTOR = 2.0**60
# Distances are below 2**54, so that slope * distance stays below 2**94 in float32 and 2**955 in float64.
LARGEST_SLOPE, LARGEST_WIDE_SLOPE = 2.0**40, 2.0**900


def compute_dtype(*arrays):
    """float64 if an operand is, else float32: narrower ones are widened."""
    return FLOAT64 if any(x.dtype == FLOAT64 for x in arrays) else FLOAT32


def working_dtype(options, dtype):
    """The dtype that kernels compute in: `dtype`, or float64 where the options leave the range of float32.

    Raises
    ------
    ValueError
        Not even float64 holds the products of a slope.
    """
    scale = abs(options.scale)
    slopes, sinks, bias, cap = options.alibi_slopes, options.sinks, options.bias, options.softcap
    if slopes is not None and has_beyond(slopes, LARGEST_SLOPE):
        if has_beyond(slopes, LARGEST_WIDE_SLOPE):
            largest = slopes.flat[np.argmax(np.abs(slopes))]
            raise ValueError(
                "alibi_slopes must be at most 2**900 in magnitude for cpu_kernels; got alibi_slopes with "
                f"{largest}."
            )
        return FLOAT64
    if dtype == FLOAT64 or not (scale == 0 or 1 / LARGEST_FACTOR <= scale <= LARGEST_FACTOR):
        return FLOAT64
    if (cap is not None and not 1 / LARGEST_FACTOR <= cap <= LARGEST_FACTOR) or (
        sinks is not None and has_beyond(sinks, FLOAT32_MAX)
    ):
        return FLOAT64
    if bias is not None and bias.dtype == FLOAT64 and has_beyond(stored_once(bias), FLOAT32_MAX):
        return FLOAT64
    return FLOAT32


def scales(scale):
    """(what the query is multiplied by, what the products are): a query that a scale beyond 1 makes
    larger could overflow where the products do not.
    """
    return (scale, 1.0) if abs(scale) <= 1 else (1.0, scale)


def inverse_cap(cap, dtype):
    """1 / cap; what a cap does that is too small for it is below the smallest normal number."""
    return min(1 / max(float(cap), 2.0**-1023), float(np.finfo(dtype).max))


def has_beyond(x, limit):
    """Whether a finite element is larger than `limit` in magnitude."""
    if x.min(initial=0) >= -limit and x.max(initial=0) <= limit:
        return False
    return bool((np.isfinite(x) & (np.abs(x) > limit)).any())


def delivered(output, lse, output_dtype, lse_dtype):
    """Results in the dtypes that were promised; what is too large for them becomes infinite, as
    rounding does.
    """
    if output.dtype == output_dtype and (lse is None or lse.dtype == lse_dtype):
        return output, lse
    with np.errstate(over="ignore", under="ignore"):
        return output.astype(output_dtype, copy=False), lse if lse is None else lse.astype(
            lse_dtype, copy=False
        )
