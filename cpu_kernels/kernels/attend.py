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
    ALL_START, ALL_STOP, BIAS_AT, KEEP_AT, LEFT, MASK_AT, NEAREST, ONE, PANELS, PEAK, RANGES, RESCALE, RIGHT, SLOPE, SOME_START, SOME_STOP, START,
    STOP, TOTAL, finish, open_panel, panel_of,
)  # fmt: skip
from cpu_kernels.kernels.few_rows import KEY_PADDING, row_output, row_scores
from cpu_kernels.kernels.panel import probe
from cpu_kernels.kernels.product import product
from cpu_kernels.kernels.scores import add_bias, alibi, hide_outside, keep_where, softcap
from cpu_kernels.kernels.softmax import softmax_step
from cpu_kernels.vector import MAX_VECTORS


@driver
def attend(counter, scratch, shapes, items, groups, heads, pages, query, query_rope, key, key_rope, value, bias, mask, keep, output, lse, states):
    """Work items of plan.py: rows of one group over a range of its keys, finished or left in a slot of `states`."""
    shape = shapes[0]
    ints = scratch[: shape.panels].view(np.int64)
    stretch(ints, shape.key_dims, shape.head_dim, shape.key_dim)
    stretch(ints, shape.key_rope_dims, shape.rope_dim, shape.key_rope_dim)
    stretch(ints, shape.value_dims, shape.v_head_dim, shape.value_dim)
    n, careful = next_item(counter), False
    while n >= 0:
        item = items[n]
        group = groups[item.group]
        key_start, key_stop = item.last_key, item.first_key
        for index in range(PANELS):
            panel = panel_of(shape, scratch, index, item)
            if panel.stride:
                open_panel(shape, group, heads, query, query_rope, panel, item.last_row, scratch, ints, shape.has_sinks and item.first_key == 0,
                           careful)  # fmt: skip
                ranges = panel.ints + RANGES * panel.stride
                key_start, key_stop = min(key_start, ints[ranges + SOME_START]), max(key_stop, ints[ranges + SOME_STOP])
        key_start, key_stop = max(key_start, item.first_key), min(key_stop, item.last_key)
        key_tile = shape.key_tile * (MAX_VECTORS if panel_of(shape, scratch, 0, item).few_rows else 1)  # scores of as many elements
        for first in range(key_start, key_stop, key_tile):
            last = min(first + key_tile, key_stop)
            find_keys(shape, group, pages, first, last, ints)
            for index in range(PANELS):
                panel = panel_of(shape, scratch, index, item)
                ranges = panel.ints + RANGES * panel.stride
                from_key, to_key = max(first, ints[ranges + SOME_START]), min(last, ints[ranges + SOME_STOP])
                if panel.stride and from_key < to_key:
                    attend_tile(shape, panel, from_key, to_key, from_key - first, scratch, ints, key, key_rope, value, bias, mask, keep, careful)
        # A hidden key has weight 0, and 0 * inf is NaN: a block whose sums are not finite is computed again, infinite values apart.
        if careful or all_finite(shape, item, scratch):
            close_block(shape, item, scratch, ints, output, lse, states, careful)
            n, careful = next_item(counter), False
        else:
            careful = True


@leaf
def stretch(table, at, count, stride):
    """table[at + i] = i * stride, and one more that repeats the last (the product works in pairs)."""
    for i in range(count):
        table[at + i] = i * stride
    table[at + count] = max(count - 1, 0) * stride


@leaf
def find_keys(shape, group, pages, first, last, ints):
    """Offsets of keys and values [first, last), page by page, and some more that repeat the last: products work in pairs or more, and look ahead."""
    page, slot = first // shape.page_size, first % shape.page_size
    for i in range(last - first + 2 * KEY_PADDING):
        if slot == shape.page_size:
            page, slot = page + 1, 0
        number = pages[group.page_table + page]
        ints[shape.key_rows + i] = group.key + number * shape.key_page + slot * shape.key_row
        ints[shape.key_rope_rows + i] = group.key_rope + slot * shape.key_rope_row
        ints[shape.value_rows + i] = group.value + number * shape.value_page + slot * shape.value_row
        slot += first + i + 1 < last


@leaf
def attend_tile(shape, panel, first, last, skip, scratch, ints, key, key_rope, value, bias, mask, keep, careful):
    """One panel over the keys [first, last), which begin at entry `skip` of the tables."""
    vectors, stride, count = panel.vectors, panel.stride, last - first
    scores, one = (scratch, shape.scores), (scratch, panel.lanes + ONE * stride)
    value_rows = shape.value_rows + skip
    if panel.few_rows:
        row_scores(panel.few_rows, count, shape.head_dim, scores, (scratch, panel.query), (key, 0), (ints, shape.key_rows + skip), (value, 0),
                   (ints, value_rows), shape.v_head_dim)  # fmt: skip
    else:
        product(vectors, count, shape.head_dim, scores, (key, 0), (ints, shape.key_rows + skip), (ints, shape.key_dims), (scratch, panel.query),
                one, 1)  # fmt: skip
    if shape.rope_dim:
        product(vectors, count, shape.rope_dim, scores, (key_rope, 0), (ints, shape.key_rope_rows + skip), (ints, shape.key_rope_dims),
                (scratch, panel.query + shape.head_dim * stride), one, 0)  # fmt: skip
    change_scores(shape, panel, first, last, scratch, ints, bias, mask)
    if careful:
        collect_infinities(shape, panel, first, last, scratch, ints, value_rows, value, keep)
    softmax_step(vectors, count, scores, stride, (scratch, panel.lanes + PEAK * stride), (scratch, panel.lanes + TOTAL * stride),
                 (scratch, panel.lanes + RESCALE * stride))  # fmt: skip
    if shape.has_keep:
        keep_where(scratch, shape.scores, stride, first, last, keep, ints, panel.ints + KEEP_AT * stride, shape.keep_key, 0.0)
    rescale, done = panel.lanes + RESCALE * stride, 0
    at = 0 if careful else count
    while at <= count:  # all keys at once, or run by run between the values that are not finite
        infinite = at < count and not is_finite(value, ints[value_rows + at], shape)
        if at == count or infinite:
            weights = (scratch, shape.scores + done * stride)
            if panel.few_rows:
                row_output(panel.few_rows, at - done, shape.v_head_dim, (scratch, panel.output), (value, 0), (ints, value_rows + done), weights,
                           (scratch, rescale))  # fmt: skip
            else:
                product(vectors, shape.v_head_dim, at - done, (scratch, panel.output), (value, 0), (ints, shape.value_dims), (ints, value_rows + done),
                        weights, (scratch, rescale), 0)  # fmt: skip
            rescale, done = panel.lanes + ONE * stride, at + 1
        if infinite:
            add_finite_part(shape, panel, value, ints[value_rows + at], scratch, shape.scores + at * stride)
        at += 1


@leaf
def change_scores(shape, panel, first, last, scratch, ints, bias, mask):
    """The options, in the order of the contract. A tile without options and inside every row's range passes through."""
    vectors, stride, count = panel.vectors, panel.stride, last - first
    scores, left, right = (scratch, shape.scores), panel.lanes + LEFT * stride, panel.lanes + RIGHT * stride
    if shape.has_softcap:
        softcap(vectors, count, scores, stride, shape.cap)
    if shape.has_alibi:
        for lane in range(stride):
            scratch[left + lane] = ints[panel.ints + NEAREST * stride + lane] - first
        alibi(vectors, count, scores, stride, (scratch, panel.lanes + SLOPE * stride), (scratch, left))
    if shape.has_bias:
        add_bias(scratch, shape.scores, stride, first, last, bias, ints, panel.ints + BIAS_AT * stride, shape.bias_key, shape.log2e)
    if shape.has_mask:
        keep_where(scratch, shape.scores, stride, first, last, mask, ints, panel.ints + MASK_AT * stride, shape.mask_key, -np.inf)
    ranges = panel.ints + RANGES * stride
    if first < ints[ranges + ALL_START] or last > ints[ranges + ALL_STOP]:
        for lane in range(stride):
            scratch[left + lane] = max(ints[panel.ints + START * stride + lane] - first, 0)
            scratch[right + lane] = min(ints[panel.ints + STOP * stride + lane] - first, count)
        hide_outside(vectors, count, scores, stride, (scratch, left), (scratch, right))


@leaf
def is_finite(value, start, shape):
    for dim in range(shape.v_head_dim):
        if not np.isfinite(value[start + dim * shape.value_dim]):
            return False
    return True


@leaf
def collect_infinities(shape, panel, first, last, scratch, ints, value_rows, value, keep):
    """Sum the values that are not finite over the rows that see them: any positive weight leaves them what they are."""
    stride = panel.stride
    for key in range(last - first):
        start = ints[value_rows + key]
        for dim in range(shape.v_head_dim):
            x = value[start + dim * shape.value_dim]
            if not np.isfinite(x):
                for lane in range(stride):
                    seen = scratch[shape.scores + key * stride + lane] != -np.inf
                    if seen and shape.has_keep:
                        seen = keep[ints[panel.ints + KEEP_AT * stride + lane] + (first + key) * shape.keep_key] != 0
                    if seen:
                        scratch[panel.infinities + dim * stride + lane] += x


@leaf
def add_finite_part(shape, panel, value, start, scratch, weights):
    """The finite elements of a value that also holds others."""
    for dim in range(shape.v_head_dim):
        x = value[start + dim * shape.value_dim]
        if np.isfinite(x):
            for lane in range(panel.stride):
                scratch[panel.output + dim * panel.stride + lane] += scratch[weights + lane] * x


@leaf
def all_finite(shape, item, scratch):
    for index in range(PANELS):
        panel = panel_of(shape, scratch, index, item)
        left = panel.lanes + LEFT * panel.stride
        probe(panel.vectors, shape.v_head_dim, (scratch, panel.output), panel.stride, (scratch, left))
        for lane in range(panel.stride):
            if scratch[left + lane] != 0:
                return False
    return True


@leaf
def close_block(shape, item, scratch, ints, output, lse, states, careful):
    """Finish the rows, or leave the unfinished sums for `join`."""
    for index in range(PANELS):
        panel = panel_of(shape, scratch, index, item)
        stride, size = panel.stride, shape.v_head_dim * panel.stride
        if careful:
            for i in range(size):
                scratch[panel.output + i] += scratch[panel.infinities + i]
        if stride and item.state < 0:
            finish(shape, panel, scratch, ints, output, lse)
        elif stride:
            state = (item.state * PANELS + index) * shape.state_panel
            for i in range(size):
                states[state + i] = scratch[panel.output + i]
            for lane in range(stride):
                states[state + size + lane] = scratch[panel.lanes + PEAK * stride + lane]
                states[state + size + stride + lane] = scratch[panel.lanes + TOTAL * stride + lane]
