"""Attention of a block of rows over a range of keys: the FlashAttention loop, transposed so that query rows are lanes.

    S[key, lane]   = K[key, :] . Q^T[:, lane]            product: keys broadcast from where they lie
    S              = options(S), -inf where hidden       tile-wise, only where there is something to do
    P[key, lane]   = 2**(S - peak[lane])                 softmax_step
    O^T[dim, lane] = O^T * rescale + V^T[dim, :] . P     product_add: values broadcast from where they lie

Dao 2023, "FlashAttention-2", section 3.1, for the loop; every vector operation is vertical. A block is one or more panels of lanes that share each
tile of keys while it is in cache; a panel computes only those keys of the tile that some of its rows can see.
"""

import numpy as np

from cpu_kernels.jit import driver, leaf, next_item
from cpu_kernels.kernels.blocks import (
    ALL_START, ALL_STOP, BIAS_AT, KEEP_AT, LEFT, MASK_AT, ONE, PANELS, PEAK, POSITION, RANGES, RESCALE, RIGHT, SLOPE, SOME_START, SOME_STOP, START, STOP,
    TOTAL, finish, open_panel, panel_of, panel_width, store_state,
)  # fmt: skip
from cpu_kernels.kernels.panel import probe
from cpu_kernels.kernels.product import product, product_add
from cpu_kernels.kernels.scores import add_bias, alibi, hide_outside, keep_where, softcap
from cpu_kernels.kernels.softmax import softmax_step
from cpu_kernels.kernels.tables import FIRST_KEY, FIRST_ROW, GROUP, KEY, KEY_ROPE, LAST_KEY, LAST_ROW, PAGE_TABLE, STATE, VALUE


@driver
def attend(counter, scratch, shape, at, memory):
    """Work items of plan.py: rows of one group over a range of its keys, finished or left in a slot of `states`. `at` is the ScratchLayout."""
    ints = scratch[: at.panels].view(np.int64)
    stretch(ints, at.key_dims, shape.head_dim, shape.key_dim)
    stretch(ints, at.key_rope_dims, shape.rope_dim, shape.key_rope_dim)
    stretch(ints, at.value_dims, shape.v_head_dim, shape.value_dim)
    n = next_item(counter)
    while n >= 0:
        # A hidden key has weight 0, and 0 * inf is NaN: a block whose sums are not finite is computed again, infinite values apart.
        careful = False
        while not attend_block(shape, at, memory, memory.items[n], scratch, ints, careful):
            careful = True
        n = next_item(counter)


@leaf
def stretch(table, at, count, stride):
    """table[at + i] = i * stride, and one more that repeats the last (the product works in pairs)."""
    for i in range(count):
        table[at + i] = i * stride
    table[at + count] = max(count - 1, 0) * stride


@leaf
def attend_block(shape, at, memory, item, scratch, ints, careful):
    """Returns False, having written nothing, if some sum is not finite and `careful` is False."""
    group = memory.groups[item[GROUP]]
    first_row, last_row = item[FIRST_ROW], item[LAST_ROW]
    key_start, key_stop = item[LAST_KEY], item[FIRST_KEY]
    for index in range(PANELS):
        panel = panel_of(shape, at, scratch, index, first_row, last_row)
        if panel.stride:
            open_panel(shape, memory, group, panel, last_row, scratch, ints, shape.has_sinks and item[FIRST_KEY] == 0)
            ranges = panel.ints + RANGES * panel.stride
            key_start, key_stop = min(key_start, ints[ranges + SOME_START]), max(key_stop, ints[ranges + SOME_STOP])
            if careful:
                scratch[infinities_of(shape, at, scratch, index) : infinities_of(shape, at, scratch, index) + shape.v_head_dim * panel.stride] = 0
    for first in range(max(key_start, item[FIRST_KEY]), min(key_stop, item[LAST_KEY]), shape.key_tile):
        last = min(first + shape.key_tile, key_stop, item[LAST_KEY])
        find_keys(shape, at, memory, group, first, last, ints)
        for index in range(PANELS):
            panel = panel_of(shape, at, scratch, index, first_row, last_row)
            if panel.stride:
                ranges = panel.ints + RANGES * panel.stride
                from_key, to_key = max(first, ints[ranges + SOME_START]), min(last, ints[ranges + SOME_STOP])
                if from_key < to_key:
                    infinities = infinities_of(shape, at, scratch, index) if careful else -1
                    attend_tile(shape, at, memory, group, panel, from_key, to_key, from_key - first, scratch, ints, infinities)
    return close_block(shape, at, memory, item, group, scratch, ints, careful)


@leaf
def infinities_of(shape, at, scratch, index):
    """Where panel `index` sums the infinite and NaN values that its rows see, [dim, lane]."""
    return at.infinities + index * shape.v_head_dim * panel_width(scratch)


@leaf
def find_keys(shape, at, memory, group, first, last, ints):
    """Offsets of keys and values [first, last), page by page, and one more that repeats the last."""
    page, slot = first // shape.page_size, first % shape.page_size
    key = key_rope = value = 0
    for i in range(last - first):
        number = memory.pages[group[PAGE_TABLE] + page]
        key = group[KEY] + number * shape.key_page + slot * shape.key_row
        key_rope = group[KEY_ROPE] + slot * shape.key_rope_row
        value = group[VALUE] + number * shape.value_page + slot * shape.value_row
        ints[at.key_rows + i], ints[at.key_rope_rows + i], ints[at.value_rows + i] = key, key_rope, value
        slot += 1
        if slot == shape.page_size:
            page, slot = page + 1, 0
    i = last - first
    ints[at.key_rows + i], ints[at.key_rope_rows + i], ints[at.value_rows + i] = key, key_rope, value


@leaf
def attend_tile(shape, at, memory, group, panel, first, last, skip, scratch, ints, infinities):
    """One panel over the keys [first, last), which begin at entry `skip` of the tables."""
    vectors, stride, count = panel.vectors, panel.stride, last - first
    scores = (scratch, at.scores)
    product(vectors, count, shape.head_dim, scores, (memory.key, 0), (ints, at.key_rows + skip), (ints, at.key_dims), (scratch, panel.query), stride)
    if shape.rope_dim:
        product_add(vectors, count, shape.rope_dim, scores, (memory.key_rope, 0), (ints, at.key_rope_rows + skip), (ints, at.key_rope_dims),
                    (scratch, panel.query + shape.head_dim * stride), stride, (scratch, panel.lanes + ONE * stride))  # fmt: skip
    change_scores(shape, memory, group, panel, first, last, scratch, at.scores, ints)
    if infinities >= 0:
        collect_infinities(shape, memory, panel, first, last, scratch, at.scores, infinities, ints, at.value_rows + skip)
    softmax_step(vectors, count, scores, stride, (scratch, panel.lanes + PEAK * stride), (scratch, panel.lanes + TOTAL * stride),
                 (scratch, panel.lanes + RESCALE * stride))  # fmt: skip
    if shape.has_keep:
        keep_where(scratch, at.scores, stride, first, last, memory.keep, ints, panel.ints + KEEP_AT * stride, shape.keep_key, 0.0)
    rescale = panel.lanes + RESCALE * stride
    run = 0
    if infinities >= 0:
        for key in range(count):
            value = ints[at.value_rows + skip + key]
            if not is_finite(memory.value, value, shape.v_head_dim, shape.value_dim):
                add_values(shape, at, memory, panel, run, key, skip, scratch, ints, rescale)
                add_finite_part(shape, memory, panel, value, scratch, at.scores + key * stride)
                rescale, run = panel.lanes + ONE * stride, key + 1
    add_values(shape, at, memory, panel, run, count, skip, scratch, ints, rescale)


@leaf
def add_values(shape, at, memory, panel, first, last, skip, scratch, ints, rescale):
    """Output = output * rescale + weighted values of entries [first, last) of the tile."""
    product_add(panel.vectors, shape.v_head_dim, last - first, (scratch, panel.output), (memory.value, 0), (ints, at.value_dims),
                (ints, at.value_rows + skip + first), (scratch, at.scores + first * panel.stride), panel.stride, (scratch, rescale))  # fmt: skip


@leaf
def change_scores(shape, memory, group, panel, first, last, scratch, scores, ints):
    """The options, in the order of the contract. A tile without options and inside every row's range passes through."""
    vectors, stride, count = panel.vectors, panel.stride, last - first
    if shape.has_softcap:
        softcap(vectors, count, (scratch, scores), stride, shape.cap)
    left, right = panel.lanes + LEFT * stride, panel.lanes + RIGHT * stride
    if shape.has_alibi:
        for lane in range(stride):
            scratch[left + lane] = ints[panel.ints + POSITION * stride + lane] - first
        alibi(vectors, count, (scratch, scores), stride, (scratch, panel.lanes + SLOPE * stride), (scratch, left))
    if shape.has_bias:
        add_bias(scratch, scores, stride, first, last, memory.bias, ints, panel.ints + BIAS_AT * stride, shape.bias_key, shape.log2e)
    if shape.has_mask:
        keep_where(scratch, scores, stride, first, last, memory.mask, ints, panel.ints + MASK_AT * stride, shape.mask_key, -np.inf)
    ranges = panel.ints + RANGES * stride
    if first < ints[ranges + ALL_START] or last > ints[ranges + ALL_STOP]:
        for lane in range(stride):
            scratch[left + lane] = max(ints[panel.ints + START * stride + lane] - first, 0)
            scratch[right + lane] = min(ints[panel.ints + STOP * stride + lane] - first, count)
        hide_outside(vectors, count, (scratch, scores), stride, (scratch, left), (scratch, right))


@leaf
def is_finite(x, start, count, stride):
    for i in range(count):
        if not np.isfinite(x[start + i * stride]):
            return False
    return True


@leaf
def collect_infinities(shape, memory, panel, first, last, scratch, scores, infinities, ints, value_rows):
    """Sum the values that are not finite over the rows that see them: any positive weight leaves them what they are."""
    stride = panel.stride
    for key in range(last - first):
        value = ints[value_rows + key]
        if not is_finite(memory.value, value, shape.v_head_dim, shape.value_dim):
            for lane in range(stride):
                kept = not shape.has_keep or memory.keep[ints[panel.ints + KEEP_AT * stride + lane] + (first + key) * shape.keep_key] != 0
                if kept and scratch[scores + key * stride + lane] != -np.inf:
                    for dim in range(shape.v_head_dim):
                        x = memory.value[value + dim * shape.value_dim]
                        if not np.isfinite(x):
                            scratch[infinities + dim * stride + lane] += x


@leaf
def add_finite_part(shape, memory, panel, value, scratch, weights):
    """The finite elements of a value that also holds others."""
    for dim in range(shape.v_head_dim):
        x = memory.value[value + dim * shape.value_dim]
        if np.isfinite(x):
            for lane in range(panel.stride):
                scratch[panel.output + dim * panel.stride + lane] += scratch[weights + lane] * x


@leaf
def close_block(shape, at, memory, item, group, scratch, ints, careful):
    for index in range(PANELS):
        panel = panel_of(shape, at, scratch, index, item[FIRST_ROW], item[LAST_ROW])
        stride = panel.stride
        if stride and careful:
            for i in range(shape.v_head_dim * stride):
                scratch[panel.output + i] += scratch[infinities_of(shape, at, scratch, index) + i]
        elif stride:
            probe(panel.vectors, shape.v_head_dim, (scratch, panel.output), stride, (scratch, panel.lanes + LEFT * stride))
            for lane in range(stride):
                if scratch[panel.lanes + LEFT * stride + lane] != 0:
                    return False
    for index in range(PANELS):
        panel = panel_of(shape, at, scratch, index, item[FIRST_ROW], item[LAST_ROW])
        if panel.stride:
            if item[STATE] < 0:
                finish(shape, memory, group, panel, scratch, ints)
            else:
                store_state(shape, memory, panel, scratch, index, item[STATE])
    return True
