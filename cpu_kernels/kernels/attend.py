"""Attention of a block of rows over a range of keys: the FlashAttention loop, transposed so that query rows
are lanes.

    S[key, lane]   = K[key, :] . Q^T[:, lane]            product: keys broadcast from where they lie
    S              = options(S), -inf where hidden       tile-wise, only where there is something to do
    P[key, lane]   = exp(S - peak[lane])                 softmax_step
    O^T[dim, lane] = O^T * rescale + V^T[dim, :] . P     product: values broadcast from where they lie

Dao 2023, "FlashAttention-2", section 3.1, for the loop; every vector operation is vertical. A block is one
or more panels of lanes that share each tile of keys while it is in cache; a panel computes only those keys
of the tile that some of its rows can see.
"""

import numpy as np

from cpu_kernels.compiler.jit import driver, leaf, next_item
from cpu_kernels.kernels.blocks import (
    FACTOR,
    HALF_STOP,
    PANELS,
    PEAK,
    PLAIN,
    RANGES,
    SETTLED,
    SOME_START,
    SOME_STOP,
    TOTAL,
    add_phases,
    finish,
    open_panel,
    pack_query,
    panel_of,
)
from cpu_kernels.kernels.careful import all_finite, put_infinities
from cpu_kernels.kernels.few_rows import KEY_PADDING, spread_rows
from cpu_kernels.kernels.offsets import find_dims, find_keys
from cpu_kernels.kernels.panel import copy
from cpu_kernels.kernels.tables import Memory
from cpu_kernels.kernels.tile import Tile, attend_tile
from cpu_kernels.simd.registers import MAX_VECTORS


@driver
def attend(counter, scratch, all_params, items, groups, heads, pages, operands, states):
    """Work items of plan.py: rows of one group over a range of its keys, finished or left in a slot of
    `states`. `operands` are those of `tables.Memory`.
    """
    params, memory = all_params[0], Memory(*operands)
    ints = scratch[: params.panels].view(np.int64)
    find_dims(params, ints)
    n, careful = next_item(counter), PLAIN
    while n >= 0:
        item = items[n]
        group = groups[item.group]
        key_start, key_stop = open_block(params, item, group, heads, memory, scratch, ints, careful)
        # With few rows a panel is one vector wide, so a tile of MAX_VECTORS times the keys has as many
        # scores. Tables also hold the keys asked for ahead: the next tile's, or with few rows a fixed
        # number.
        key_tile, ahead = params.key_tile, params.key_tile
        if panel_of(params, scratch, 0, item).few_rows:
            key_tile, ahead = MAX_VECTORS * params.key_tile, KEY_PADDING
        for first in range(key_start, key_stop, key_tile):
            last = min(first + key_tile, key_stop)
            until = min(last + ahead, key_stop)
            find_keys(params, group, pages, first, until, ints)
            attend_keys(params, item, (first, last, until), memory, scratch, ints, careful)
        sum_up(params, item, scratch, careful)
        # A hidden key has weight 0, and 0 * inf is NaN: a block whose sums are not finite is computed again.
        if careful == SETTLED or all_finite(params, item, scratch):
            close_block(params, item, memory, states, scratch, ints, careful)
            n, careful = next_item(counter), PLAIN
        else:
            careful += 1


@leaf
def open_block(params, item, group, heads, memory, scratch, ints, careful):
    """Begin every panel; the keys [start, stop) of the item that some row sees."""
    start, stop = item.last_key, item.first_key
    with_sinks = params.has_sinks and item.first_key == 0
    for index in range(PANELS):
        panel = panel_of(params, scratch, index, item)
        if panel.stride:
            open_panel(params, group, heads, panel, item.last_row, scratch, ints, with_sinks, careful)
            pack_query(params, panel, memory, scratch, ints)
            ranges = panel.ints + RANGES * panel.stride
            start, stop = min(start, ints[ranges + SOME_START]), max(stop, ints[ranges + SOME_STOP])
    return max(start, item.first_key), min(stop, item.last_key)


@leaf
def attend_keys(params, item, keys, memory, scratch, ints, careful):
    """Every panel over the keys [first, last); from there until `until` they are asked for."""
    first, last, until = keys
    asks = 1  # for the values of this tile and the keys of the next; one panel does for all
    for index in range(PANELS):
        panel = panel_of(params, scratch, index, item)
        ranges = panel.ints + RANGES * panel.stride
        start, stop = max(first, ints[ranges + SOME_START]), min(last, ints[ranges + SOME_STOP])
        if panel.stride and start < stop:
            whole = min(max(ints[ranges + HALF_STOP] - start, 0), stop - start)
            tile = Tile(start, stop, start - first, whole, asks, last - first, until - last)
            attend_tile(params, panel, tile, memory, scratch, ints, careful)
            asks = 0


@leaf
def sum_up(params, item, scratch, careful):
    """Bring sums of few rows, and totals of their phases, into the lanes of the others."""
    for index in range(PANELS):
        panel = panel_of(params, scratch, index, item)
        if panel.few_rows and not careful:
            spread_rows(panel.few_rows, params.v_head_dim, (scratch, panel.aside), (scratch, panel.output))
        if careful != SETTLED:
            add_phases(panel, scratch)


@leaf
def average(params, panel, scratch):
    """Divide the sums of every row by its total."""
    for lane in range(panel.stride):
        total = scratch[panel.lanes + TOTAL * panel.stride + lane]
        scratch[panel.lanes + FACTOR * panel.stride + lane] = 0.0 if total == 0 else 1.0 / total
    for dim in range(params.v_head_dim):
        for lane in range(panel.stride):
            scratch[panel.output + dim * panel.stride + lane] *= scratch[
                panel.lanes + FACTOR * panel.stride + lane
            ]


@leaf
def close_block(params, item, memory, states, scratch, ints, careful):
    """Finish the rows, or leave what they have so far for `join`."""
    for index in range(PANELS):
        panel = panel_of(params, scratch, index, item)
        stride, size = panel.stride, params.v_head_dim * panel.stride
        if careful:
            put_infinities(params, panel, scratch)
        if stride and item.state < 0:
            finish(params, panel, scratch, ints, memory.output, memory.lse, careful == SETTLED)
        elif stride:
            state = item.state * params.state_slot + index * params.state_panel
            if careful != SETTLED:
                average(params, panel, scratch)
            copy(size, (scratch, panel.output), (states, state))
            for lane in range(stride):
                states[state + size + lane] = scratch[panel.lanes + PEAK * stride + lane]
                states[state + size + stride + lane] = scratch[panel.lanes + TOTAL * stride + lane]
