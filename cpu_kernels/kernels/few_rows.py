"""The two products for a handful of query rows, as in decoding: vectors run along the dims, not along the rows.

With few rows most lanes of a panel would repeat one row, and each key would cost as much as with many. Here a key is read once, in order, and costs what
its rows cost. Scores and output keep the layout of panels (`panel.py`), every lane beyond the last row repeating it, so nothing else differs.
Needs dims that are contiguous and whole vectors.
"""

import numpy as np

from cpu_kernels.vector import MAX_VECTORS, building_block, lanes

# Rows are rounded up to one of these, of which those up to the lanes of one vector are used.
ROW_COUNTS = (1, 2, 4, 8)
# Keys whose offsets a table holds beyond the last.
KEY_PADDING = 16


def _row_scores(rows, num_keys, depth, scores, query, key, key_rows, value, value_rows, v_depth):
    (scores, s0), (query, q0), (key, k0), (key_rows, r0) = scores, query, key, key_rows
    stride = lanes(scores.dtype)
    where = k0 + key_rows[r0 : r0 + num_keys, None] + np.arange(depth)
    with np.errstate(all="ignore"):
        tile = key[where] @ query[q0 : q0 + rows * depth].reshape(rows, depth).T  # [keys, rows]
    scores[s0 : s0 + num_keys * stride] = tile[:, np.minimum(np.arange(stride), rows - 1)].ravel()


@building_block(python=_row_scores)
def row_scores(emit, rows, num_keys, depth, scores, query, key, key_rows, value, value_rows, v_depth):
    """scores[key, lane] = key . query[min(lane, rows - 1), :]; asks for the values of the same keys meanwhile.

    `rows` is one of ROW_COUNTS. Up to KEY_PADDING keys beyond the last are read through `key_rows`, and their scores written.
    """
    for count in emit.cases(rows, ROW_COUNTS):
        together = min(count, 4, emit.lanes)
        keys_at_once = emit.lanes // together
        with emit.loop(num_keys, step=keys_at_once) as first:
            k_rows = [emit.at(key, emit.load_scalar(key_rows, emit.add(first, i))) for i in range(keys_at_once)]
            next_rows = [emit.at(key, emit.load_scalar(key_rows, emit.add(first, keys_at_once + i))) for i in range(keys_at_once)]
            v_rows = [emit.at(value, emit.load_scalar(value_rows, emit.add(first, i))) for i in range(keys_at_once)]
            for rows_ahead, dims in ((next_rows, depth), (v_rows, v_depth)):
                for row_ahead in rows_ahead:
                    with emit.loop(dims, step=emit.lanes) as dim:
                        emit.prefetch(row_ahead, dim)
            for row in range(0, count, together):
                sums = {(i, r): emit.variable(emit.vector(0.0)) for i in range(keys_at_once) for r in range(together)}
                with emit.loop(depth, step=emit.lanes) as dim:
                    q = [emit.load(query, emit.add(dim, emit.multiply(depth, row + r))) for r in range(together)]
                    for i in range(keys_at_once):
                        k = emit.load(k_rows[i], dim)
                        for r in range(together):
                            emit.assign(sums[i, r], emit.fma(k, q[r], emit.value(sums[i, r])))
                total = emit.sum_each([emit.value(sums[i, r]) for i in range(keys_at_once) for r in range(together)])
                for i in range(keys_at_once):
                    at = emit.multiply(emit.add(first, i), emit.lanes)
                    picked = [i * together + min(max(lane - row, 0), together - 1) for lane in range(emit.lanes)]
                    spread = emit.shuffle(total, total, picked)
                    if row:  # lanes before `row` are already there
                        order = [lane if lane < row else emit.lanes + lane for lane in range(emit.lanes)]
                        spread = emit.shuffle(emit.load(scores, at), spread, order)
                    emit.store(spread, scores, at)


def _row_output(rows, num_keys, v_depth, output, value, value_rows, weights, rescale):
    (output, o0), (value, v0), (value_rows, r0), (weights, w0), (rescale, f0) = output, value, value_rows, weights, rescale
    stride = lanes(output.dtype)
    where = v0 + value_rows[r0 : r0 + num_keys, None] + np.arange(v_depth)
    tile = output[o0 : o0 + v_depth * stride].reshape(v_depth, stride)
    with np.errstate(all="ignore"):
        tile[:] = tile * rescale[f0 : f0 + stride] + value[where].T @ weights[w0 : w0 + num_keys * stride].reshape(num_keys, stride)


@building_block(python=_row_output)
def row_output(emit, rows, num_keys, v_depth, output, value, value_rows, weights, rescale):
    """output[dim, lane] = output * rescale[lane] + sum over keys of weights[key, lane] * value[key, dim], lanes beyond the rows repeating the last."""
    for count in emit.cases(rows, ROW_COUNTS):
        used = min(count, emit.lanes)
        width = max(1, min(8, 4 * MAX_VECTORS // used))
        step = width * emit.lanes
        whole = emit.builder.sub(v_depth, emit.builder.srem(v_depth, emit.integer(step)))
        with emit.loop(whole, step=step) as dim:
            emit_columns(emit, used, width, dim, num_keys, output, value, value_rows, weights, rescale)
        with emit.loop(v_depth, start=whole, step=emit.lanes) as dim:
            emit_columns(emit, used, 1, dim, num_keys, output, value, value_rows, weights, rescale)


def emit_columns(emit, rows, width, dim, num_keys, output, value, value_rows, weights, rescale):
    grid = [(r, j) for r in range(rows) for j in range(width)]
    sums = {at: emit.variable(emit.vector(0.0)) for at in grid}
    with emit.loop(num_keys) as key:
        v_row = emit.at(emit.at(value, emit.load_scalar(value_rows, key)), dim)
        w_row = emit.at(weights, emit.multiply(key, emit.lanes))
        v = [emit.load(v_row, j * emit.lanes) for j in range(width)]
        for r in range(rows):
            weight = emit.splat(emit.load_scalar(w_row, r))
            for j in range(width):
                emit.assign(sums[r, j], emit.fma(weight, v[j], emit.value(sums[r, j])))
    factor = emit.load(rescale, 0)
    for j in range(width):
        rows_of_j = [emit.value(sums[min(r, rows - 1), j]) for r in range(emit.lanes)]
        for i, column in enumerate(emit.transpose(rows_of_j)):
            at = emit.multiply(emit.add(dim, j * emit.lanes + i), emit.lanes)
            emit.store(emit.fma(emit.load(output, at), factor, column), output, at)
