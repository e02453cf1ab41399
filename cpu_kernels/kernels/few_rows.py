"""The two products for a handful of query rows, as in decoding: vectors run along the dims, not along the
rows.

With few rows most lanes of a panel would repeat one row, and each key would cost as much as with many. Here
a key is read once, in order, and costs what its rows cost. The lanes of a vector are `phases` keys of each
row, so that the softmax has no idle lanes either: lane row * phases + phase belongs to the keys phase,
phase + phases, ... of the tile. Needs dims that are contiguous and whole vectors.
"""

import numpy as np

from cpu_kernels.simd.building_block import building_block
from cpu_kernels.simd.registers import MAX_VECTORS, lanes
from cpu_kernels.simd.stored import widened

# Rows are rounded up to one of these, of which those up to the lanes of one vector are used.
ROW_COUNTS = (1, 2, 4, 8, 16)
# Panels of one vector each that few rows are cut into, at most: from there on the products of product.py are
# faster.
FEW_PANELS = 2
# Rows whose sums stay in registers together: of more, as many at a time.
ROWS_HELD = 8
# Keys and values this many bytes ahead are asked for, at most AHEAD rows: hardware alone looks too few rows
# ahead when each is much work.
AHEAD_BYTES = 1 << 14
AHEAD = 32
# Keys whose offsets a table holds beyond the last: those asked for, of a chunk that may itself reach beyond.
KEY_PADDING = 2 * AHEAD


def most_few_rows(size):
    """The most rows that count as few, with `size` lanes in a vector: the one place that decides which
    products compute a block and, where all blocks are such, that 16-bit keys and values are widened in
    registers.
    """
    return FEW_PANELS * size


def usable_counts(size):
    """Those that fit into one vector of `size` lanes."""
    return [count for count in ROW_COUNTS if count <= size]


def _pack_rows(rows, depth, packed, x, starts, step, scale):
    (packed, p0), (x, x0), (starts, s0) = packed, x, starts
    size = lanes(packed.dtype)
    where = x0 + starts[s0 : s0 + rows * step : step, None] + np.arange(depth)
    packed[p0 : p0 + rows * depth] = (x[where] * scale).reshape(rows, -1, size).swapaxes(0, 1).ravel()


@building_block(python=_pack_rows)
def pack_rows(emit, rows, depth, packed, x, starts, step, scale):
    """packed[dim // lanes, row, dim % lanes] = scale * x[starts[row * step] + dim]: a loop over dims finds
    all rows beside one pointer.
    """
    with emit.loop(rows) as row:
        source = emit.at(x, emit.load_scalar(starts, emit.multiply(row, step)))
        target = emit.at(packed, emit.multiply(row, emit.lanes))
        with emit.loop(depth, step=emit.lanes) as dim:
            emit.store(emit.load(source, dim) * scale, target, emit.multiply(dim, rows))


def rows_ahead(emit, depth):
    return emit.at_most(
        emit.at_least(
            emit.builder.udiv(emit.integer(AHEAD_BYTES * 8 // emit.bits), emit.at_least(depth, 1)), 1
        ),
        AHEAD,
    )


def _row_scores(rows, num_keys, depth, scores, query, key, key_rows, fresh):
    (scores, s0), (query, q0), (key, k0), (key_rows, r0) = scores, query, key, key_rows
    size = lanes(scores.dtype)
    phases = size // rows
    chunks = -(-num_keys // phases)
    where = k0 + key_rows[r0 : r0 + chunks * phases, None] + np.arange(depth)
    packed = query[q0 : q0 + rows * depth].reshape(-1, rows, size)
    with np.errstate(all="ignore"):
        tile = widened(key[where]) @ packed.swapaxes(0, 1).reshape(rows, depth).T  # [keys, rows]
        found = scores[s0 : s0 + tile.size]
        found[:] = tile.reshape(chunks, phases, rows).swapaxes(1, 2).ravel() + (0 if fresh else found)


@building_block(python=_row_scores)
def row_scores(emit, rows, num_keys, depth, scores, query, key, key_rows, fresh):
    """scores[chunk, row, phase] = key[chunk * phases + phase] . query[row], added to what is there unless
    `fresh`; query is packed by `pack_rows`.

    `rows` is one of ROW_COUNTS. Keys beyond the last are read through `key_rows` and their scores written,
    at most as many as there are lanes.
    """
    for count in emit.cases(rows, usable_counts(emit.lanes)):
        phases = emit.lanes // count
        ahead = rows_ahead(emit, depth)
        held = min(count, max(emit.lanes // 2, 1), ROWS_HELD)
        keys_at_once = emit.lanes // held
        with emit.loop(num_keys, step=keys_at_once) as first:
            totals = []  # of the rows that are held together, [row, key]
            for row in range(0, count, held):
                sums = {
                    (r, i): emit.variable(emit.vector(0.0)) for r in range(held) for i in range(keys_at_once)
                }
                few = 8 if count == 1 else 4  # pointers that stay in general registers
                for some in (range(i, min(i + few, keys_at_once)) for i in range(0, keys_at_once, few)):
                    at_keys = [emit.add(first, i) for i in some]
                    k_rows = [emit.at(key, emit.load_scalar(key_rows, at)) for at in at_keys]
                    soon = [emit.at(key, emit.load_scalar(key_rows, emit.add(at, ahead))) for at in at_keys]
                    with emit.loop(depth, step=emit.lanes) as dim:
                        for pointer in soon[row // held :: count // held]:  # all rows share the asking
                            emit.prefetch(pointer, dim)
                        k = [emit.load(pointer, dim) for pointer in k_rows]
                        q_rows = emit.at(query, emit.multiply(dim, count))
                        for r in range(held):
                            q = emit.load(q_rows, (row + r) * emit.lanes)
                            for i in some:
                                emit.assign(sums[r, i], emit.fma(k[i - some[0]], q, emit.value(sums[r, i])))
                totals.append(emit.sum_each([emit.value(x) for x in sums.values()]))
            at = emit.multiply(first, count)
            for chunk in range(keys_at_once // phases):
                score = totals[0]
                if len(totals) > 1:  # twice lanes / 2 rows, two keys: one row a lane
                    score = emit.shuffle(
                        *totals, [lane * keys_at_once + chunk for lane in range(emit.lanes)]
                    )
                chunk_at = emit.add(at, chunk * emit.lanes)
                kept = emit.variable(score)
                with emit.builder.if_then(emit.builder.icmp_signed("==", fresh, emit.integer(0))):
                    emit.assign(kept, score + emit.load(scores, chunk_at))
                emit.store(emit.value(kept), scores, chunk_at)


def _row_output(rows, num_keys, v_depth, sums, value, value_rows, weights, rescale):
    (sums, o0), (value, v0), (value_rows, r0), (weights, w0), (rescale, f0) = (
        sums,
        value,
        value_rows,
        weights,
        rescale,
    )
    phases = lanes(sums.dtype) // rows
    chunks = -(-num_keys // phases)
    where = v0 + value_rows[r0 : r0 + num_keys, None] + np.arange(v_depth)
    weights = (
        weights[w0 : w0 + chunks * rows * phases]
        .reshape(chunks, rows, phases)
        .swapaxes(1, 2)
        .reshape(-1, rows)[:num_keys]
    )  # [keys, rows]
    tile = sums[o0 : o0 + rows * v_depth].reshape(rows, v_depth)
    with np.errstate(all="ignore"):
        tile[:] = tile * rescale[f0 : f0 + rows * phases : phases, None] + weights.T @ widened(value[where])


@building_block(python=_row_output)
def row_output(emit, rows, num_keys, v_depth, sums, value, value_rows, weights, rescale):
    """sums[row, dim] = sums * rescale[row] + sum over keys of weights[key, row] * value[key, dim], with
    weights and factors in the lanes of scores.
    """
    for count in emit.cases(rows, usable_counts(emit.lanes)):
        phases = emit.lanes // count
        for r in range(count):
            factor = emit.splat(emit.load_scalar(rescale, r * phases))
            row = emit.at(sums, emit.multiply(v_depth, r))
            with emit.loop(v_depth, step=emit.lanes) as dim:
                emit.store(emit.load(row, dim) * factor, row, dim)
        held = min(count, ROWS_HELD)
        width = max(1, min(8, 4 * MAX_VECTORS // held))
        whole = emit.builder.sub(v_depth, emit.builder.srem(v_depth, emit.integer(width * emit.lanes)))
        with emit.loop(num_keys, step=AHEAD) as first:
            last = emit.at_most(emit.add(first, AHEAD), num_keys)
            for start, stop, vectors in ((0, whole, width), (whole, v_depth, 1)):
                with emit.loop(stop, start=start, step=vectors * emit.lanes) as dim:
                    for row in range(0, count, held):
                        places = {
                            r: emit.at(sums, emit.add(emit.multiply(v_depth, r), dim))
                            for r in range(row, row + held)
                        }
                        v_rows = (emit.at(value, dim), value_rows)
                        add_values(emit, count, places, vectors, (first, last), v_rows, weights)


def add_values(emit, count, places, vectors, keys, v_rows, weights):
    """Add weights[first:last, rows] * value[first:last] over some vectors of dims to the sums of the rows
    that have `places`, of `count`; asks for the values after them.
    """
    (first, last), (value, value_rows), rows = keys, v_rows, list(places)
    phases = emit.lanes // count
    totals = {(r, j): emit.variable(emit.vector(0.0)) for r in rows for j in range(vectors)}
    with emit.loop(last, start=first) as key:
        soon = emit.at(value, emit.load_scalar(value_rows, emit.add(key, AHEAD)))
        for j in range(rows[0] // len(rows), vectors, count // len(rows)):  # all rows share the asking
            emit.prefetch(soon, j * emit.lanes)
        v_row = emit.at(value, emit.load_scalar(value_rows, key))
        v = [emit.load(v_row, j * emit.lanes) for j in range(vectors)]
        phase = emit.builder.and_(key, emit.integer(phases - 1))
        w_row = emit.at(weights, emit.add(emit.multiply(emit.builder.sub(key, phase), count), phase))
        for r in rows:
            weight = emit.splat(emit.load_scalar(w_row, r * phases))
            for j in range(vectors):
                emit.assign(totals[r, j], emit.fma(weight, v[j], emit.value(totals[r, j])))
    for (r, j), total in totals.items():
        emit.store(emit.load(places[r], j * emit.lanes) + emit.value(total), places[r], j * emit.lanes)


def _spread_rows(rows, v_depth, sums, output):
    (sums, s0), (output, o0) = sums, output
    stride = lanes(output.dtype)
    output[o0 : o0 + v_depth * stride] = np.repeat(
        sums[s0 : s0 + rows * v_depth].reshape(rows, v_depth), stride // rows, axis=0
    ).T.ravel()


@building_block(python=_spread_rows)
def spread_rows(emit, rows, v_depth, sums, output):
    """output[dim, lane] = sums[row of the lane, dim]"""
    for count in emit.cases(rows, usable_counts(emit.lanes)):
        with emit.loop(v_depth, step=emit.lanes) as dim:
            found = [emit.load(sums, emit.add(emit.multiply(v_depth, r), dim)) for r in range(count)]
            for i, column in enumerate(
                emit.transpose([found[lane * count // emit.lanes] for lane in range(emit.lanes)])
            ):
                emit.store(column, output, emit.multiply(emit.add(dim, i), emit.lanes))
