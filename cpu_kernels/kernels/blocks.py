"""Panels of a block of rows in a thread's scratch: where they lie, how they begin, how they end.

A panel is up to MAX_VECTORS vector registers of lanes, one query row each. It owns its query [dim, lane], its unfinished output [dim, lane] and a few
numbers a lane. Lanes beyond the last row repeat that row: they compute the same bits and write them to the same place.
"""

import math
from typing import NamedTuple

import numpy as np

from cpu_kernels.jit import leaf
from cpu_kernels.kernels.panel import fill, pack, unpack
from cpu_kernels.kernels.product import PAIR
from cpu_kernels.kernels.tables import BIAS, HEAD, KEEP, KV_LEN, LSE, MASK, OUTPUT, Q_OFFSET, QUERY, QUERY_ROPE
from cpu_kernels.vector import MAX_VECTORS, VECTOR_BYTES

# Panels of a block: as many as share a tile of keys. Two halve the traffic of keys and values from L3; more make blocks that balance badly.
PANELS = 2
LN2 = math.log(2.0)

# Lanes of floats and of integers a panel keeps, by name; after the integers, the keys [start, stop) that some row sees and that every row sees.
(PEAK, TOTAL, RESCALE, SLOPE, ONE, LEFT, RIGHT) = range(7)
LANE_FLOATS = 7
(QUERY_AT, ROPE_AT, OUTPUT_AT, LSE_AT, BIAS_AT, MASK_AT, KEEP_AT, POSITION, START, STOP, RANGES) = range(11)
LANE_INTS = 10
(SOME_START, SOME_STOP, ALL_START, ALL_STOP) = range(4)


class Panel(NamedTuple):
    row: int  # the first
    vectors: int
    stride: int  # lanes in use
    query: int  # offsets in scratch, as the next two
    output: int
    lanes: int  # array NAME of the lanes begins at lanes + NAME * stride
    ints: int  # the same, among the integers


@leaf
def panel_width(scratch):
    """Lanes of a full panel."""
    return MAX_VECTORS * VECTOR_BYTES // scratch.itemsize


@leaf
def panel_of(shape, at, scratch, index, first_row, last_row):
    """Panel `index` of the block of rows [first_row, last_row); stride 0 if the block ends before it."""
    width = panel_width(scratch)
    size = width // MAX_VECTORS
    row = first_row + index * width
    vectors = max(0, min(MAX_VECTORS, (last_row - row + size - 1) // size))
    query_dims, output_dims = shape.head_dim + shape.rope_dim, shape.v_head_dim + PAIR
    query = at.panels + index * (query_dims + output_dims + LANE_FLOATS) * width
    output = query + query_dims * width
    lanes = output + output_dims * width
    return Panel(row, vectors, vectors * size, query, output, lanes, at.panel_ints + index * (LANE_INTS * width + 4))


@leaf
def open_panel(shape, memory, group, panel, last_row, scratch, ints, with_sinks):
    """Find the rows in memory, pack the query, start the softmax: a sink is a key without a value that has been seen already."""
    stride = panel.stride
    some_start, some_stop, all_start, all_stop = np.int64(1 << 62), np.int64(0), np.int64(0), np.int64(1 << 62)
    for lane in range(stride):
        row = min(panel.row + lane, last_row - 1)
        i, g = row // shape.group_size, row % shape.group_size
        at = panel.ints + lane
        ints[at + QUERY_AT * stride] = group[QUERY] + g * shape.query_head + i * shape.query_row
        ints[at + ROPE_AT * stride] = group[QUERY_ROPE] + g * shape.query_rope_head + i * shape.query_rope_row
        ints[at + OUTPUT_AT * stride] = group[OUTPUT] + g * shape.output_head + i * shape.output_row
        ints[at + LSE_AT * stride] = group[LSE] + g * shape.lse_head + i
        ints[at + BIAS_AT * stride] = group[BIAS] + g * shape.bias_head + i * shape.bias_row
        ints[at + MASK_AT * stride] = group[MASK] + g * shape.mask_head + i * shape.mask_row
        ints[at + KEEP_AT * stride] = group[KEEP] + g * shape.keep_head + i * shape.keep_row
        position = group[Q_OFFSET] + i
        ints[at + POSITION * stride] = position
        start = min(max(position - shape.left, 0), group[KV_LEN])
        stop = max(start, min(max(position + shape.right + 1, 0), group[KV_LEN]))
        ints[at + START * stride] = start
        ints[at + STOP * stride] = stop
        if start < stop:
            some_start, some_stop = min(some_start, start), max(some_stop, stop)
        all_start, all_stop = max(all_start, start), min(all_stop, stop)
        scratch[panel.lanes + PEAK * stride + lane] = -np.inf
        scratch[panel.lanes + TOTAL * stride + lane] = 0
        head = group[HEAD] + g
        scratch[panel.lanes + ONE * stride + lane] = 1
        if with_sinks and memory.sinks[head] > -np.inf:
            scratch[panel.lanes + PEAK * stride + lane] = memory.sinks[head]
            scratch[panel.lanes + TOTAL * stride + lane] = 1
        if shape.has_alibi:
            scratch[panel.lanes + SLOPE * stride + lane] = memory.slopes[head]
    at = panel.ints + RANGES * stride
    ints[at + SOME_START], ints[at + SOME_STOP], ints[at + ALL_START], ints[at + ALL_STOP] = some_start, some_stop, all_start, all_stop
    pack(panel.vectors, shape.head_dim, (scratch, panel.query), stride, (memory.query, 0), (ints, panel.ints + QUERY_AT * stride),
         shape.query_dim, shape.query_scale)  # fmt: skip
    if shape.rope_dim:
        pack(panel.vectors, shape.rope_dim, (scratch, panel.query + shape.head_dim * stride), stride, (memory.query_rope, 0),
             (ints, panel.ints + ROPE_AT * stride), shape.query_rope_dim, shape.query_scale)  # fmt: skip
    fill((shape.v_head_dim + PAIR) * stride, (scratch, panel.output), shape.zero)


@leaf
def finish(shape, memory, group, panel, scratch, ints):
    """Divide by the totals and write rows of output and lse; rows that saw nothing become 0 and -inf."""
    stride = panel.stride
    for lane in range(stride):
        total = scratch[panel.lanes + TOTAL * stride + lane]
        scratch[panel.lanes + LEFT * stride + lane] = shape.zero if total == 0 else shape.keep_scale / total
        if shape.wants_lse:
            peak = scratch[panel.lanes + PEAK * stride + lane]
            lse = -np.inf if total == 0 else (np.float64(peak) + math.log2(total)) * LN2
            memory.lse[ints[panel.ints + LSE_AT * stride + lane]] = lse
    unpack(panel.vectors, shape.v_head_dim, (scratch, panel.output), stride, (scratch, panel.lanes + LEFT * stride), (memory.output, 0),
           (ints, panel.ints + OUTPUT_AT * stride))  # fmt: skip


@leaf
def store_state(shape, memory, panel, scratch, index, slot):
    """Leave the unfinished sums for `join`."""
    stride = panel.stride
    at = (slot * PANELS + index) * shape.state_panel
    for i in range(shape.v_head_dim * stride):
        memory.states[at + i] = scratch[panel.output + i]
    at += shape.v_head_dim * stride
    for lane in range(stride):
        memory.states[at + lane] = scratch[panel.lanes + PEAK * stride + lane]
        memory.states[at + stride + lane] = scratch[panel.lanes + TOTAL * stride + lane]


class ScratchLayout(NamedTuple):
    """Where things begin in a thread's scratch. The integer tables come first and count in int64, everything else in elements."""

    key_rows: int  # offsets of the tile's keys, as the next two
    key_rope_rows: int
    value_rows: int
    key_dims: int  # offsets of the dims of an operand, as the next two
    key_rope_dims: int
    value_dims: int
    panel_ints: int
    panels: int
    scores: int
    infinities: int
    end: int


def scratch_layout(head_dim, rope_dim, v_head_dim, key_tile, itemsize):
    width = MAX_VECTORS * VECTOR_BYTES // itemsize
    tables = [key_tile + PAIR] * 3 + [head_dim + PAIR, rope_dim + PAIR, v_head_dim + PAIR, PANELS * (LANE_INTS * width + 4)]
    starts = [sum(tables[:i]) for i in range(len(tables) + 1)]
    panels = -(-starts.pop() // 8) * 64 // itemsize
    scores = panels + PANELS * (head_dim + rope_dim + v_head_dim + PAIR + LANE_FLOATS) * width
    infinities = scores + (key_tile + PAIR) * width
    return ScratchLayout(*starts, panels, scores, infinities, infinities + PANELS * v_head_dim * width)


def state_panel_size(v_head_dim, itemsize):
    """Elements of one panel in a slot of `states`: unfinished output, peak, total."""
    return (v_head_dim + 2) * MAX_VECTORS * VECTOR_BYTES // itemsize
