"""Numbers at the edge of what a dtype holds, read as the reference reads them.

Two rules. Scores are kept in units of log2, where a number is 1.44 times as large: biases and sinks beyond half the range are *folded* so that they
stay finite, apart and in order. `finfo.min` as a mask that is added is such a number: a row that sees nothing else attends evenly to it. What float32
cannot hold even so is computed in float64 and rounded at the end: scales and caps far from 1, steep slopes, float64 biases and sinks beyond float32.
Products of query and key that overflow on their own (factors of 1e19 in float32) do so here as in any kernel of that dtype.
"""

import numpy as np

from cpu_kernels.kernels.exponential import LOG2E
from cpu_kernels.kernels.scores import FOLD_FLOAT32, FOLD_FLOAT64, FOLDED_STEP

FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
FLOAT32_MAX = float(np.finfo(FLOAT32).max)
FOLD_FROM = {FLOAT32: FOLD_FLOAT32, FLOAT64: FOLD_FLOAT64}

# Factors that float32 multiplies scores by: far from where products with ordinary numbers overflow or become subnormal.
LARGEST_FACTOR = 2.0**60
# Distances are below 2**54, so that slope * distance stays below 2**94 in float32 and 2**955 in float64.
LARGEST_SLOPE, LARGEST_WIDE_SLOPE = 2.0**40, 2.0**900
# A larger quotient of scale and softcap changes only scores that are below 2**-490 however they are capped.
LARGEST_WIDE_FACTOR = 2.0**500


def compute_dtype(*arrays):
    """float64 if an operand is, else float32: narrower ones are widened."""
    return FLOAT64 if any(x.dtype == FLOAT64 for x in arrays) else FLOAT32


def working_dtype(options, dtype):
    """The dtype that kernels compute in: `dtype`, or float64 where the options leave the range of float32.

    Raises
    ------
    ValueError
        Not even float64 holds the products of a slope, or of the scale.
    """
    factor = abs(score_factor(options))
    if factor == np.inf:
        raise ValueError(f"scale must be at most {np.finfo(FLOAT64).max / LOG2E:.3g} in magnitude for cpu_kernels; got scale={options.scale}.")
    slopes, sinks, bias, cap = options.alibi_slopes, options.sinks, options.bias, options.softcap
    if slopes is not None and has_beyond(slopes, LARGEST_SLOPE):
        if has_beyond(slopes, LARGEST_WIDE_SLOPE):
            largest = slopes.flat[np.argmax(np.abs(slopes))]
            raise ValueError(f"alibi_slopes must be at most 2**900 in magnitude for cpu_kernels; got alibi_slopes with {largest}.")
        return FLOAT64
    if dtype == FLOAT64 or not (factor == 0 or 1 / LARGEST_FACTOR <= factor <= LARGEST_FACTOR):
        return FLOAT64
    if cap is not None and not 1 / LARGEST_FACTOR <= cap <= LARGEST_FACTOR or sinks is not None and has_beyond(sinks, FLOAT32_MAX):
        return FLOAT64
    if bias is not None and bias.dtype == FLOAT64 and has_beyond(without_repeats(bias), FLOAT32_MAX):
        return FLOAT64
    return FLOAT32


def score_factor(options):
    """What the query is multiplied by: scores come out in units of log2, or of the softcap where there is one."""
    if options.softcap is None:
        return options.scale * LOG2E
    return max(-LARGEST_WIDE_FACTOR, min(options.scale / options.softcap, LARGEST_WIDE_FACTOR))


def has_beyond(x, limit):
    """Whether a finite element is larger than `limit` in magnitude."""
    if x.min(initial=0) >= -limit and x.max(initial=0) <= limit:
        return False
    return bool((np.isfinite(x) & (np.abs(x) > limit)).any())


def without_repeats(x):
    """A view with every axis of stride 0 cut to length 1."""
    return x[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in x.strides)]


def folded(logits, dtype):
    """Logits in units of log2, as `kernels.scores.add_bias` makes them of a bias: float64, within the range of `dtype`."""
    start = FOLD_FROM[dtype]
    if not has_beyond(logits, start):
        return logits * LOG2E
    size = np.abs(logits)
    with np.errstate(over="ignore"):
        return np.where(size <= start, logits * LOG2E, np.copysign(start * LOG2E + (size - start) * FOLDED_STEP, logits))


def unfold(lse):
    """Undo in place what folding did to the lse of rows whose highest score was folded."""
    start = FOLD_FROM[lse.dtype]
    if has_beyond(lse, start):
        beyond = np.isfinite(lse) & (np.abs(lse) > start)
        size = np.abs(lse[beyond]).astype(np.float64)
        with np.errstate(over="ignore"):
            size = start + (size - start) * (LOG2E / FOLDED_STEP)
        lse[beyond] = np.copysign(np.minimum(size, np.finfo(lse.dtype).max), lse[beyond])


def delivered(output, lse, output_dtype, lse_dtype):
    """Results in the dtypes that were promised; what is too large for them becomes infinite, as rounding does."""
    if output.dtype == output_dtype and (lse is None or lse.dtype == lse_dtype):
        return output, lse
    with np.errstate(over="ignore", under="ignore"):
        return output.astype(output_dtype, copy=False), lse if lse is None else lse.astype(lse_dtype, copy=False)
