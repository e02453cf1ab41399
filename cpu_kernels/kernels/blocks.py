"""Panels of a block of rows in a thread's scratch: where they lie, how they begin, how they end.

A panel is up to MAX_VECTORS vector registers of lanes, one query row each - or, with few rows, some keys of
a row each. It owns its query [dim, lane], its unfinished output [dim, lane] and a few numbers a lane. Lanes
beyond the last row repeat that row: they compute the same bits and write them to the same place.
"""

import math
from typing import NamedTuple

import numpy as np

from cpu_kernels.compiler.jit import leaf
from cpu_kernels.kernels.few_rows import FEW_PANELS, KEY_PADDING, ROW_COUNTS, pack_rows
from cpu_kernels.kernels.panel import clear, pack, prefetch, unpack
from cpu_kernels.kernels.product import PADDING_ROWS
from cpu_kernels.simd.registers import MAX_VECTORS, VECTOR_BYTES
from refattn.calls.options import UNLIMITED

# Panels of a block: as many as share a tile of keys, and its way from L3. More make blocks that balance
# badly.
PANELS = 4

# How carefully a block is computed. Where its sums are not finite, again with infinite values apart; where
# sums of finite values overflow even then, a third time with weights that are divided by their total before
# they meet a value.
(PLAIN, APART, SETTLED) = range(3)

# Lanes of floats and of integers a panel keeps, by name; after the integers, the keys [start, stop) that
# some row sees and that every row sees, and where those end that a row of the first half of the lanes sees.
# Of a tile: the distance to its first key (ALIBI_ORIGIN), the keys a lane sees (SEEN_FROM, SEEN_TO) and the
# weights of one key (WEIGHT). At the end: whether the sums are finite (VERDICT) and what they are multiplied
# by (FACTOR).
(PEAK, TOTAL, RESCALE, SLOPE, ONE, ALIBI_ORIGIN, SEEN_FROM, SEEN_TO, WEIGHT, VERDICT, FACTOR) = range(11)
LANE_FLOATS = 11
(QUERY_AT, ROPE_AT, OUTPUT_AT, LSE_AT, BIAS_AT, MASK_AT, KEEP_AT, NEAREST, AWAY, START, STOP, RANGES) = (
    range(12)
)
LANE_INTS = 11
(SOME_START, SOME_STOP, ALL_START, ALL_STOP, HALF_STOP) = range(5)
NUM_RANGES = 5


class Panel(NamedTuple):
    """Everything but `row` and the counts is an offset: into the scratch, or `ints` among its integers."""

    row: int  # the first
    vectors: int
    stride: int  # lanes in use
    query: int
    output: int
    aside: int  # what another sum than that of weights and finite values needs: infinities, or rows of sums
    lanes: int  # array NAME of the lanes begins at lanes + NAME * stride
    ints: int
    few_rows: int  # rows that the products of few_rows.py compute, 0 where those of product.py do
    phases: int  # neighbouring lanes of one row, each with keys of its own


@leaf
def panel_of(params, scratch, index, item):
    """Panel `index` of an item's rows; stride 0 if they end before it."""
    size = VECTOR_BYTES // scratch.itemsize
    width, num_rows = MAX_VECTORS * size, item.last_row - item.first_row
    few = num_rows <= params.most_few_rows
    row = item.first_row + index * (size if few else width)
    vectors = max(0, min(1 if few else MAX_VECTORS, (item.last_row - row + size - 1) // size))
    query = params.panels + index * params.panel_size
    output = query + (params.head_dim + params.rope_dim) * width
    aside = output + (params.v_head_dim + PADDING_ROWS) * width
    lanes = aside + (params.v_head_dim + PADDING_ROWS) * width
    few_rows = 0
    if few and vectors:
        for count in ROW_COUNTS[::-1]:
            few_rows = count if min(item.last_row - row, size) <= count <= size else few_rows
    phases = size // few_rows if few_rows else 1
    return Panel(
        row,
        vectors,
        vectors * size,
        query,
        output,
        aside,
        lanes,
        params.panel_ints + index * (LANE_INTS * width + NUM_RANGES),
        few_rows,
        phases,
    )


@leaf
def open_panel(params, group, heads, panel, last_row, scratch, ints, with_sinks, careful):
    """Find the rows of the lanes in memory and the keys they see, and start their softmax."""
    i, g = panel.row // params.group_size, panel.row % params.group_size
    for lane in range(panel.stride):
        find_row(params, group, panel, lane, i, g, ints)
        find_seen(params, group, panel, lane, group.q_offset + i, ints)
        head, at = group.head + g, panel.lanes + lane
        scratch[at + SLOPE * panel.stride] = heads[head].slope if params.has_alibi else 0.0
        scratch[at + ONE * panel.stride] = 1.0
        if careful != SETTLED:
            # A sink is a key without a value that has been seen already.
            sink = heads[head].sink if with_sinks else -np.inf
            scratch[at + PEAK * panel.stride] = sink
            once = sink > -np.inf and lane % panel.phases == 0
            scratch[at + TOTAL * panel.stride] = 1.0 if once else 0.0
        if (lane + 1) % panel.phases == 0 and panel.row + (lane + 1) // panel.phases < last_row:
            g += 1
            if g == params.group_size:
                i, g = i + 1, 0
    find_ranges(panel, ints)
    clear(params.v_head_dim * panel.stride, (scratch, panel.output))
    if careful or panel.few_rows:
        clear(params.v_head_dim * panel.stride, (scratch, panel.aside))


@leaf
def find_row(params, group, panel, lane, i, g, ints):
    """Offsets of everything that belongs to query position i of the group's head g."""
    stride, at = panel.stride, panel.ints + lane
    ints[at + QUERY_AT * stride] = group.query + g * params.query_head + i * params.query_row
    ints[at + ROPE_AT * stride] = group.query_rope + g * params.query_rope_head + i * params.query_rope_row
    ints[at + OUTPUT_AT * stride] = group.output + g * params.output_head + i * params.output_row
    ints[at + LSE_AT * stride] = group.lse + g * params.lse_head + i
    ints[at + BIAS_AT * stride] = group.bias + g * params.bias_head + i * params.bias_row
    ints[at + MASK_AT * stride] = group.mask + g * params.mask_head + i * params.mask_row
    ints[at + KEEP_AT * stride] = group.keep + g * params.keep_head + i * params.keep_row


@leaf
def find_seen(params, group, panel, lane, position, ints):
    """The keys that a row at `position` sees, and the nearest of them."""
    stride, at = panel.stride, panel.ints + lane
    start, stop = position - params.left, position + params.right + 1
    if params.chunk < UNLIMITED:
        first = position - position % params.chunk
        start, stop = max(start, first), min(stop, first + params.chunk)
    start = min(max(start, 0), group.kv_len)
    stop = max(start, min(max(stop, 0), group.kv_len))
    ints[at + START * stride] = start
    ints[at + STOP * stride] = stop
    # From a position outside the keys all distances shrink by the way to the nearest key: only lse sees it,
    # and small numbers round less. Not with a sink, whose own logit would take part in the rounding.
    nearest = position if params.has_sinks or start == stop else min(max(position, start), stop - 1)
    ints[at + NEAREST * stride] = nearest
    ints[at + AWAY * stride] = abs(position - nearest)


@leaf
def find_ranges(panel, ints):
    """The keys that some row sees and that every row sees."""
    some_start, some_stop, all_start, all_stop, half_stop = 1 << 62, 0, 0, 1 << 62, 0
    for lane in range(panel.stride):
        start = ints[panel.ints + START * panel.stride + lane]
        stop = ints[panel.ints + STOP * panel.stride + lane]
        if start < stop:
            some_start, some_stop = min(some_start, start), max(some_stop, stop)
        all_start, all_stop = max(all_start, start), min(all_stop, stop)
        if lane < panel.stride // 2:
            half_stop = some_stop
    at = panel.ints + RANGES * panel.stride
    ints[at + SOME_START], ints[at + SOME_STOP] = some_start, some_stop
    ints[at + ALL_START], ints[at + ALL_STOP] = all_start, all_stop
    ints[at + HALF_STOP] = half_stop if panel.vectors == MAX_VECTORS else some_stop


@leaf
def pack_query(params, panel, memory, scratch, ints):
    """Bring the rows of the query into the panel, both parts of them."""
    rows, rope_rows = panel.ints + QUERY_AT * panel.stride, panel.ints + ROPE_AT * panel.stride
    for lane in range(panel.stride):
        prefetch(params.head_dim, (memory.query, ints[rows + lane]))
    at, rope_at = panel.query, panel.query + params.head_dim * panel.stride
    scale = params.query_scale
    pack_part(panel, params.head_dim, (scratch, at), memory.query, (ints, rows), params.query_dim, scale)
    if params.rope_dim:
        step = params.query_rope_dim
        pack_part(
            panel, params.rope_dim, (scratch, rope_at), memory.query_rope, (ints, rope_rows), step, scale
        )


@leaf
def pack_part(panel, num_dims, packed, query, rows, dim_stride, scale):
    if panel.few_rows:
        pack_rows(panel.few_rows, num_dims, packed, (query, 0), rows, panel.phases, scale)
    else:
        pack(panel.vectors, num_dims, packed, panel.stride, (query, 0), rows, dim_stride, scale)


@leaf
def add_phases(panel, scratch):
    """Give every lane the total of its row, the sum over its phases."""
    for first in range(0, panel.stride, panel.phases):
        at = panel.lanes + TOTAL * panel.stride + first
        total = scratch[at]
        for phase in range(1, panel.phases):
            total += scratch[at + phase]
        for phase in range(panel.phases):
            scratch[at + phase] = total


@leaf
def finish(params, panel, scratch, ints, output, lse, settled):
    """Divide by the totals, unless that is `settled`, and write rows of output and lse; rows that saw
    nothing become 0 and -inf.
    """
    stride = panel.stride
    for lane in range(stride):
        total = np.float64(scratch[panel.lanes + TOTAL * stride + lane])
        scratch[panel.lanes + FACTOR * stride + lane] = (
            0.0 if total == 0 else params.keep_scale / (total / total if settled else total)
        )
        prefetch(params.v_head_dim, (output, ints[panel.ints + OUTPUT_AT * stride + lane]))
        if params.wants_lse:
            away = scratch[panel.lanes + SLOPE * stride + lane] * np.float64(
                ints[panel.ints + AWAY * stride + lane]
            )
            peak = scratch[panel.lanes + PEAK * stride + lane] - away
            lse[ints[panel.ints + LSE_AT * stride + lane]] = (
                -np.inf if total == 0 else peak + math.log(total)
            )
    unpack(
        panel.vectors,
        params.v_head_dim,
        (scratch, panel.output),
        stride,
        (scratch, panel.lanes + FACTOR * stride),
        (output, 0),
        (ints, panel.ints + OUTPUT_AT * stride),
    )


def scratch_layout(head_dim, rope_dim, v_head_dim, key_tile, itemsize):
    """Values of the fields `tables.SCRATCH`."""
    width = MAX_VECTORS * VECTOR_BYTES // itemsize
    starts, end = [], 0
    keys = 2 * MAX_VECTORS * key_tile + KEY_PADDING  # of this tile and the next
    dims = (dim + PADDING_ROWS for dim in (head_dim, rope_dim, v_head_dim))
    for size in (keys, keys, keys, *dims, PANELS * (LANE_INTS * width + NUM_RANGES)):
        starts.append(end)
        end += size
    panels = -(-end // 8) * 64 // itemsize  # the next cache line, in elements
    panel_size = (head_dim + rope_dim + 2 * (v_head_dim + PADDING_ROWS) + LANE_FLOATS) * width
    scores = panels + PANELS * panel_size
    return (*starts, panels, panel_size, scores, scores + (key_tile + KEY_PADDING) * width)


def panels_of(num_rows, itemsize):
    """The most panels that a block of at most so many rows has."""
    size = VECTOR_BYTES // itemsize
    return min(PANELS, max(-(-num_rows // (MAX_VECTORS * size)), min(FEW_PANELS, -(-num_rows // size))))


def state_panel_size(v_head_dim, itemsize):
    """Elements of one panel in a slot of the states: unfinished output, peak, total."""
    return (v_head_dim + 2) * MAX_VECTORS * VECTOR_BYTES // itemsize
