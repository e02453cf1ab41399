"""What any attention output is whatever its scores (section 5): a mean of the values its row sees, as far
as they are rounded.
"""

from __future__ import annotations

import numpy as np

from refattn.oracle.bounds.hard import written
from refattn.oracle.bounds.operands import gamma, smallest_lost


def value_range(tile, rows):
    """Smallest and largest value that the rows numbered `rows` may average, and 0; two arrays (rows, E).

    0 is among them for sinks, empty rows, and scores that overflow to -inf.
    """
    value, visible = tile.value.exact, tile.in_sight[rows]
    low, high = np.zeros((2, len(rows), value.shape[1]))
    if not value.size:
        return low, high
    patterns, which = np.unique(visible, axis=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        seen = value[pattern]
        at = which.ravel() == number
        low[at], high[at] = seen.min(axis=0, initial=0.0), seen.max(axis=0, initial=0.0)
    return low, high


def mean_rounding(tile, spec, rows):
    """How far rounding may carry a mean of the values beyond their range, (rows, E).

    What rounds is the conversion of values and weights, the two sums, and the result itself.
    """
    count = tile.count[rows].astype(np.float64)
    rises = tile.count[rows] / (spec.block_size or np.inf) + 2.0
    size = np.abs(tile.value.exact).max(axis=0, initial=0.0) * np.ones_like(count)
    own = np.zeros_like(size)
    if tile.value.largest_error is not None:
        own = own + 2.0 * tile.value.largest_error.max(axis=0, initial=0.0)
    u, sums = spec.softmax.unit_roundoff, gamma(count, spec.accumulator_roundoff)
    if tile.latent is not None:  # products and sums round in the latent space, and once more on the way out
        size = np.maximum(size, tile.latent.magnitude.max(axis=0, initial=0.0) @ np.abs(tile.w_uv).T)
        stored = 2 * spec.intermediate.unit_roundoff
        sums = sums + gamma(tile.latent.exact.shape[1], spec.accumulator_roundoff) + stored
        own = own + spec.intermediate.half_subnormal_step * np.abs(tile.w_uv).sum(axis=1)
    converted = 0.0
    if spec.denominator != "rounded":
        converted = np.minimum(spec.weight.unit_roundoff + 2.0 * count * spec.weight_underflow, 1.0)
    row_sum = gamma(count + 4 * rises + 8, u)
    division = np.where(row_sum < 1, row_sum / np.where(row_sum < 1, 1 - row_sum, 1.0), np.inf)
    sums = sums + converted + division + 4 * (u + spec.exp_error)
    off = own + size * sums * (1.0 + sums) + smallest_lost(spec) * (count * (1.0 + size) + rises + 8)
    return written(off, size, spec.output, spec)
