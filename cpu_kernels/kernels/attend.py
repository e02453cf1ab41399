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

import math

import numpy as np

from cpu_kernels.compiler.jit import driver, leaf, next_item
from cpu_kernels.kernels.blocks import (
    ALIBI_ORIGIN,
    ALL_START,
    ALL_STOP,
    APART,
    BIAS_AT,
    FACTOR,
    HALF_STOP,
    KEEP_AT,
    MASK_AT,
    NEAREST,
    ONE,
    PANELS,
    PEAK,
    PLAIN,
    RANGES,
    RESCALE,
    SEEN_FROM,
    SEEN_TO,
    SETTLED,
    SLOPE,
    SOME_START,
    SOME_STOP,
    START,
    STOP,
    TOTAL,
    VERDICT,
    WEIGHT,
    add_phases,
    finish,
    open_panel,
    panel_of,
)
from cpu_kernels.kernels.few_rows import KEY_PADDING, row_output, row_scores, spread_rows
from cpu_kernels.kernels.panel import copy, probe
from cpu_kernels.kernels.product import PADDING_ROWS, product
from cpu_kernels.kernels.scores import add_bias, alibi, hide_outside, keep_where, scale_scores, softcap
from cpu_kernels.kernels.softmax import softmax_step
from cpu_kernels.simd.building_block import element
from cpu_kernels.simd.registers import MAX_VECTORS


@driver
def attend(
    counter,
    scratch,
    all_params,
    items,
    groups,
    heads,
    pages,
    query,
    query_rope,
    key,
    key_rope,
    value,
    bias,
    mask,
    keep,
    output,
    lse,
    states,
):
    """Work items of plan.py: rows of one group over a range of its keys, finished or left in a slot of
    `states`.
    """
    params = all_params[0]
    ints = scratch[: params.panels].view(np.int64)
    stretch(ints, params.key_dims, params.head_dim, params.key_dim)
    stretch(ints, params.key_rope_dims, params.rope_dim, params.key_rope_dim)
    stretch(ints, params.value_dims, params.v_head_dim, params.value_dim)
    n, careful = next_item(counter), PLAIN
    while n >= 0:
        item = items[n]
        group = groups[item.group]
        key_start, key_stop = open_block(
            params, item, group, heads, query, query_rope, scratch, ints, careful
        )
        # A tile has as many scores whatever the products. Beside its own keys they ask for the next tile's,
        # or for those a fixed way ahead.
        key_tile, ahead = params.key_tile, params.key_tile
        if panel_of(params, scratch, 0, item).few_rows:
            key_tile, ahead = MAX_VECTORS * params.key_tile, KEY_PADDING
        for first in range(key_start, key_stop, key_tile):
            last = min(first + key_tile, key_stop)
            until = min(last + ahead, key_stop)
            find_keys(params, group, pages, first, until, ints)
            asking = True  # for the values of this tile and the keys of the next; one panel does for all
            for index in range(PANELS):
                panel = panel_of(params, scratch, index, item)
                ranges = panel.ints + RANGES * panel.stride
                from_key, to_key = max(first, ints[ranges + SOME_START]), min(last, ints[ranges + SOME_STOP])
                if panel.stride and from_key < to_key:
                    attend_tile(
                        params,
                        panel,
                        from_key,
                        to_key,
                        from_key - first,
                        scratch,
                        ints,
                        key,
                        key_rope,
                        value,
                        bias,
                        mask,
                        keep,
                        careful,
                        asking,
                        params.key_rows + last - first,
                        until - last,
                    )
                    asking = False
        for index in range(PANELS):
            panel = panel_of(params, scratch, index, item)
            if panel.few_rows and not careful:
                spread_rows(
                    panel.few_rows, params.v_head_dim, (scratch, panel.aside), (scratch, panel.output)
                )
        # A hidden key has weight 0, and 0 * inf is NaN: a block whose sums are not finite is computed again.
        if careful != SETTLED:
            for index in range(PANELS):
                add_phases(panel_of(params, scratch, index, item), scratch)
        if careful == SETTLED or all_finite(params, item, scratch):
            close_block(params, item, scratch, ints, output, lse, states, careful)
            n, careful = next_item(counter), PLAIN
        else:
            careful += 1


@leaf
def open_block(params, item, group, heads, query, query_rope, scratch, ints, careful):
    """Begin every panel; the keys [start, stop) of the item that some row sees."""
    start, stop = item.last_key, item.first_key
    with_sinks = params.has_sinks and item.first_key == 0
    for index in range(PANELS):
        panel = panel_of(params, scratch, index, item)
        if panel.stride:
            open_panel(
                params,
                group,
                heads,
                query,
                query_rope,
                panel,
                item.last_row,
                scratch,
                ints,
                with_sinks,
                careful,
            )
            ranges = panel.ints + RANGES * panel.stride
            start, stop = min(start, ints[ranges + SOME_START]), max(stop, ints[ranges + SOME_STOP])
    return max(start, item.first_key), min(stop, item.last_key)


@leaf
def stretch(table, at, count, stride):
    """table[at + i] = i * stride, and some more that repeat the last: products take several rows at once."""
    spread(table, at, count, 0, stride)
    spread(table, at + count, PADDING_ROWS, max(count - 1, 0) * stride, 0)


@leaf
def find_keys(params, group, pages, first, until, ints):
    """Offsets of keys and values [first, until), a tile's and those asked for, and some more that repeat the
    last: products work in several rows at once.
    """
    key = first
    while key < until:
        page, slot = key // params.page_size, key % params.page_size
        count, at = min(until - key, params.page_size - slot), key - first
        number = pages[group.page_table + page]
        key_at = group.key + number * params.key_page + slot * params.key_row
        value_at = group.value + number * params.value_page + slot * params.value_row
        spread(ints, params.key_rows + at, count, key_at, params.key_row)
        spread(ints, params.value_rows + at, count, value_at, params.value_row)
        if params.rope_dim:
            rope_at = group.key_rope + slot * params.key_rope_row
            spread(ints, params.key_rope_rows + at, count, rope_at, params.key_rope_row)
        key += count
    repeat_last(ints, params.key_rows + until - first)
    repeat_last(ints, params.value_rows + until - first)
    if params.rope_dim:
        repeat_last(ints, params.key_rope_rows + until - first)


@leaf
def repeat_last(table, end):
    spread(table, end, KEY_PADDING, table[end - 1], 0)


@leaf
def spread(table, at, count, start, step):
    for i in range(count):
        table[at + i] = start + i * step


@leaf
def attend_tile(
    params,
    panel,
    first,
    last,
    skip,
    scratch,
    ints,
    key,
    key_rope,
    value,
    bias,
    mask,
    keep,
    careful,
    asking,
    next_keys,
    num_next_keys,
):
    """One panel over the keys [first, last), which begin at entry `skip` of the tables. `asking`, it
    prefetches its values and the next tile's keys.
    """
    vectors, stride, count = panel.vectors, panel.stride, last - first
    scores, one = (scratch, params.scores), (scratch, panel.lanes + ONE * stride)
    rescale = (scratch, panel.lanes + RESCALE * stride)
    key_rows, value_rows = params.key_rows + skip, params.value_rows + skip
    rope_rows = params.key_rope_rows + skip
    query_rope = panel.query + params.head_dim * stride
    # All lanes over the keys that the first half of them sees some of, then the second half alone over the
    # others. What stands in the first half's scores there is hidden with the causal edge, and its output is
    # rescaled with the first part.
    whole = min(max(ints[panel.ints + RANGES * stride + HALF_STOP] - first, 0), count)
    parts = 2 if whole < count else 1
    if panel.few_rows:
        row_scores(
            panel.few_rows,
            count,
            params.head_dim,
            scores,
            (scratch, panel.query),
            (key, 0),
            (ints, key_rows),
            1,
        )
        if params.rope_dim:
            row_scores(
                panel.few_rows,
                count,
                params.rope_dim,
                scores,
                (scratch, query_rope),
                (key_rope, 0),
                (ints, rope_rows),
                0,
            )
    else:
        for part in range(parts):
            used, lane, start, stop = part_of_tile(panel, part, whole, count)
            here = (scratch, params.scores + start * stride + lane)
            product(
                vectors,
                used,
                stop - start,
                params.head_dim,
                here,
                (key, 0),
                (ints, key_rows + start),
                (ints, params.key_dims),
                (scratch, panel.query + lane),
                one,
                1,
                (value, 0),
                (ints, value_rows + start),
                asking * (stop - start),
                params.v_head_dim,
            )
            if params.rope_dim:
                product(
                    vectors,
                    used,
                    stop - start,
                    params.rope_dim,
                    here,
                    (key_rope, 0),
                    (ints, rope_rows + start),
                    (ints, params.key_rope_dims),
                    (scratch, query_rope + lane),
                    one,
                    0,
                    (key_rope, 0),
                    (ints, rope_rows),
                    0,
                    0,
                )
    change_scores(params, panel, first, last, scratch, ints, bias, mask)
    if careful:
        collect_infinities(params, panel, first, last, scratch, ints, value_rows, value, keep)
    if careful == SETTLED:
        settle(params, panel, count, scratch)
    else:
        softmax_step(
            vectors,
            (count + panel.phases - 1) // panel.phases,
            scores,
            stride,
            panel.phases,
            (scratch, panel.lanes + PEAK * stride),
            (scratch, panel.lanes + TOTAL * stride),
            rescale,
        )
    if params.has_keep:
        keep_where(
            scratch,
            params.scores,
            stride,
            panel.phases,
            first,
            last,
            keep,
            ints,
            panel.ints + KEEP_AT * stride,
            params.keep_key,
            0.0,
        )
    if careful == APART:  # a product over no keys rescales
        product(
            vectors,
            vectors,
            params.v_head_dim,
            0,
            (scratch, panel.output),
            (value, 0),
            (ints, params.value_dims),
            (ints, value_rows),
            scores,
            rescale,
            0,
            (value, 0),
            (ints, value_rows),
            0,
            0,
        )
    if careful:
        add_finite(params, panel, count, value, ints, value_rows, scratch)
    elif panel.few_rows:
        row_output(
            panel.few_rows,
            count,
            params.v_head_dim,
            (scratch, panel.aside),
            (value, 0),
            (ints, value_rows),
            scores,
            rescale,
        )
    else:
        for part in range(parts):
            used, lane, start, stop = part_of_tile(panel, part, whole, count)
            factor, num_ahead = (rescale, asking * num_next_keys) if part == 0 else (one, 0)
            product(
                vectors,
                used,
                params.v_head_dim,
                stop - start,
                (scratch, panel.output + lane),
                (value, 0),
                (ints, params.value_dims),
                (ints, value_rows + start),
                (scratch, params.scores + start * stride + lane),
                factor,
                0,
                (key, 0),
                (ints, next_keys),
                num_ahead,
                params.head_dim,
            )


@leaf
def part_of_tile(panel, part, whole, count):
    """(vectors, first lane, first key, last key) of the two parts of a tile."""
    if part == 0:
        return panel.vectors, 0, 0, whole
    return panel.vectors // 2, panel.stride // 2, whole, count


@leaf
def change_scores(params, panel, first, last, scratch, ints, bias, mask):
    """The options, in the order of the contract. A tile without options and inside every row's range passes
    through.
    """
    vectors, stride, phases, count = panel.vectors, panel.stride, panel.phases, last - first
    chunks = (count + phases - 1) // phases
    scores = (scratch, params.scores)
    if params.has_score_scale:
        scale_scores(vectors, chunks, scores, stride, params.score_scale)
    if params.has_softcap:
        softcap(vectors, chunks, scores, stride, params.inverse_cap, params.cap)
    if params.has_alibi:
        origin = panel.lanes + ALIBI_ORIGIN * stride
        for lane in range(stride):
            scratch[origin + lane] = ints[panel.ints + NEAREST * stride + lane] - first - lane % phases
        alibi(
            vectors,
            chunks,
            scores,
            stride,
            phases,
            (scratch, panel.lanes + SLOPE * stride),
            (scratch, origin),
        )
    if params.has_bias:
        add_bias(
            scratch,
            params.scores,
            stride,
            phases,
            first,
            last,
            bias,
            ints,
            panel.ints + BIAS_AT * stride,
            params.bias_key,
        )
    if params.has_mask:
        keep_where(
            scratch,
            params.scores,
            stride,
            phases,
            first,
            last,
            mask,
            ints,
            panel.ints + MASK_AT * stride,
            params.mask_key,
            -np.inf,
        )
    ranges = panel.ints + RANGES * stride
    if first < ints[ranges + ALL_START] or last > ints[ranges + ALL_STOP] or count % phases:
        seen_from, seen_to = panel.lanes + SEEN_FROM * stride, panel.lanes + SEEN_TO * stride
        for lane in range(stride):
            scratch[seen_from + lane] = (
                max(ints[panel.ints + START * stride + lane] - first, 0) - lane % phases
            )
            scratch[seen_to + lane] = (
                min(ints[panel.ints + STOP * stride + lane] - first, count) - lane % phases
            )
        hide_outside(vectors, chunks, scores, stride, phases, (scratch, seen_from), (scratch, seen_to))


@leaf
def lane_of(panel, lane, key):
    """The lane that holds key number `key` of a tile for the row of `lane`, and its place in the scores."""
    at = lane - lane % panel.phases + key % panel.phases
    return at, key // panel.phases * panel.stride + at


@leaf
def collect_infinities(params, panel, first, last, scratch, ints, value_rows, value, keep):
    """Sum the values that are not finite over the rows that see them: any positive weight leaves them what
    they are.
    """
    stride = panel.stride
    for key in range(last - first):
        start = ints[value_rows + key]
        for dim in range(params.v_head_dim):
            x = element(value, start + dim * params.value_dim)
            if not np.isfinite(x):
                for lane in range(stride):
                    at, score = lane_of(panel, lane, key)
                    seen = scratch[params.scores + score] != -np.inf
                    if seen and params.has_keep:
                        seen = (
                            keep[ints[panel.ints + KEEP_AT * stride + at] + (first + key) * params.keep_key]
                            != 0
                        )
                    if seen:
                        scratch[panel.aside + dim * stride + lane] += x


@leaf
def settle(params, panel, count, scratch):
    """Turn scores into final weights: peak and total of every row are known from the time before."""
    for chunk in range((count + panel.phases - 1) // panel.phases):
        for lane in range(panel.stride):
            total = np.float64(scratch[panel.lanes + TOTAL * panel.stride + lane])
            peak = np.float64(scratch[panel.lanes + PEAK * panel.stride + lane])
            at = params.scores + chunk * panel.stride + lane
            scratch[at] = 0.0 if total == 0 else math.exp(scratch[at] - peak) / total


@leaf
def add_finite(params, panel, count, value, ints, value_rows, scratch):
    """Add weight * value, all elements of the values but those that are not finite."""
    stride, weights = panel.stride, panel.lanes + WEIGHT * panel.stride
    for key in range(count):
        for lane in range(stride):
            scratch[weights + lane] = scratch[params.scores + lane_of(panel, lane, key)[1]]
        for dim in range(params.v_head_dim):
            x = element(value, ints[value_rows + key] + dim * params.value_dim)
            if np.isfinite(x):
                for lane in range(stride):
                    scratch[panel.output + dim * stride + lane] += scratch[weights + lane] * x


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
def close_block(params, item, scratch, ints, output, lse, states, careful):
    """Finish the rows, or leave what they have so far for `join`."""
    for index in range(PANELS):
        panel = panel_of(params, scratch, index, item)
        stride, size = panel.stride, params.v_head_dim * panel.stride
        if careful:
            for i in range(size):
                if scratch[panel.aside + i] != 0:
                    scratch[panel.output + i] = scratch[panel.aside + i]
        if stride and item.state < 0:
            finish(params, panel, scratch, ints, output, lse, careful == SETTLED)
        elif stride:
            state = item.state * params.state_slot + index * params.state_panel
            if careful != SETTLED:
                average(params, panel, scratch)
            copy(size, (scratch, panel.output), (states, state))
            for lane in range(stride):
                states[state + size + lane] = scratch[panel.lanes + PEAK * stride + lane]
                states[state + size + stride + lane] = scratch[panel.lanes + TOTAL * stride + lane]
