"""A block whose sums are not finite, computed again with the values that are not finite apart.

A hidden key has weight 0, and 0 * inf is NaN. So infinite values are summed by themselves, over the rows
that see them, and the others are weighted as ever.
"""

import math

import numpy as np

from cpu_kernels.compiler.jit import leaf
from cpu_kernels.kernels.blocks import (
    APART,
    KEEP_AT,
    PANELS,
    PEAK,
    RESCALE,
    TOTAL,
    VERDICT,
    WEIGHT,
    panel_of,
)
from cpu_kernels.kernels.panel import probe
from cpu_kernels.simd.building_block import element


@leaf
def all_finite(params, item, scratch):
    """Whether the sums of the block are finite, but for rows that a score which is not a number poisons as a
    whole.
    """
    for index in range(PANELS):
        panel = panel_of(params, scratch, index, item)
        verdict = panel.lanes + VERDICT * panel.stride
        probe(panel.vectors, params.v_head_dim, (scratch, panel.output), panel.stride, (scratch, verdict))
        for lane in range(panel.stride):
            if scratch[verdict + lane] != 0 and np.isfinite(
                scratch[panel.lanes + TOTAL * panel.stride + lane]
            ):
                return False
    return True


@leaf
def lane_of(panel, lane, key):
    """The lane that holds key number `key` of a tile for the row of `lane`, and its place in the scores."""
    at = lane - lane % panel.phases + key % panel.phases
    return at, key // panel.phases * panel.stride + at


@leaf
def collect_infinities(params, panel, tile, memory, scratch, ints):
    """Sum the values that are not finite over the rows that see them: any positive weight leaves them what
    they are.
    """
    stride = panel.stride
    for key in range(tile.last - tile.first):
        start = ints[params.value_rows + tile.at + key]
        for dim in range(params.v_head_dim):
            x = element(memory.value, start + dim * params.value_dim)
            if not np.isfinite(x):
                for lane in range(stride):
                    at, score = lane_of(panel, lane, key)
                    seen = scratch[params.scores + score] != -np.inf
                    if seen and params.has_keep:
                        kept = (
                            ints[panel.ints + KEEP_AT * stride + at] + (tile.first + key) * params.keep_key
                        )
                        seen = memory.keep[kept] != 0
                    if seen:
                        scratch[panel.aside + dim * stride + lane] += x


@leaf
def settle(params, panel, chunks, scratch):
    """Turn scores into final weights: peak and total of every row are known from the time before."""
    for chunk in range(chunks):
        for lane in range(panel.stride):
            total = np.float64(scratch[panel.lanes + TOTAL * panel.stride + lane])
            peak = np.float64(scratch[panel.lanes + PEAK * panel.stride + lane])
            at = params.scores + chunk * panel.stride + lane
            scratch[at] = 0.0 if total == 0 else math.exp(scratch[at] - peak) / total


@leaf
def add_finite(params, panel, tile, value, scratch, ints, careful):
    """Add weight * value, all elements of the values but those that are not finite."""
    stride, weights = panel.stride, panel.lanes + WEIGHT * panel.stride
    if careful == APART:
        rescale = panel.lanes + RESCALE * stride
        for dim in range(params.v_head_dim):
            for lane in range(stride):
                scratch[panel.output + dim * stride + lane] *= scratch[rescale + lane]
    for key in range(tile.last - tile.first):
        for lane in range(stride):
            scratch[weights + lane] = scratch[params.scores + lane_of(panel, lane, key)[1]]
        start = ints[params.value_rows + tile.at + key]
        for dim in range(params.v_head_dim):
            x = element(value, start + dim * params.value_dim)
            if np.isfinite(x):
                for lane in range(stride):
                    scratch[panel.output + dim * stride + lane] += scratch[weights + lane] * x


@leaf
def put_infinities(params, panel, scratch):
    """They are the sums wherever a row sees any."""
    for i in range(params.v_head_dim * panel.stride):
        if scratch[panel.aside + i] != 0:
            scratch[panel.output + i] = scratch[panel.aside + i]
