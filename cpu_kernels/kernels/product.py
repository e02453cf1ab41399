"""The microkernel: matrix products of which one operand is read where the caller left it.

    C[i, :] = C[i, :] * rescale + sum_k A[i, k] * B[k, :]

B and C are panels in scratch: rows of `vectors` vector registers, one after the other. A is any memory: its
element (i, k) lies at `rows[i] + columns[k]`, so keys and values need neither packing nor a contiguous axis,
and pages are no special case. A tile of C stays in registers over the whole sum; per k it costs one
broadcast load a row and one vector load a column for rows x vectors fused multiply-adds.
"""

from typing import NamedTuple

import numpy as np

from cpu_kernels.simd.building_block import building_block
from cpu_kernels.simd.registers import MAX_VECTORS, lanes
from cpu_kernels.simd.stored import widened

# Rows of the register tile for each number of vectors: latency needs 8 accumulators, 32 registers hold 24.
# What remains is done in tiles of TAIL_ROWS, the last of which may reach beyond the rows.
TILE_ROWS = {1: 8, 2: 8, 3: 8, 4: 6} if MAX_VECTORS == 4 else {1: 8, 2: 6}
TAIL_ROWS = 4
PADDING_ROWS = TAIL_ROWS - 1
# (vectors of a row, those that take part) besides all: along the causal edge the first half of a panel's
# lanes is done before the second.
HALF_OF = (MAX_VECTORS, MAX_VECTORS // 2)


class Sizes(NamedTuple):
    vectors: int  # of a row of B and C
    used: int  # those that take part: all, or half of them (HALF_OF) where the others see nothing
    num_rows: int
    depth: int


class Gathered(NamedTuple):
    """A matrix whose element (i, k) lies at rows[i] + columns[k] of the memory."""

    memory: tuple
    rows: tuple
    columns: tuple


class Ahead(NamedTuple):
    """Rows of contiguous elements that are wanted next."""

    memory: tuple
    rows: tuple
    num_rows: int
    depth: int


def _product(sizes, c, a, b, rescale, fresh, ahead):
    vectors, used, num_rows, depth = sizes
    (c, c0), (b, b0), (rescale, f0) = c, b, rescale
    (a, a0), (rows, r0), (columns, k0) = a
    stride, width = vectors * lanes(b.dtype), used * lanes(b.dtype)
    b_lanes = b[b0 + np.arange(depth)[:, None] * stride + np.arange(width)]
    c_lanes = c0 + np.arange(num_rows)[:, None] * stride + np.arange(width)
    where = a0 + rows[r0 : r0 + num_rows, None] + columns[None, k0 : k0 + depth]
    with np.errstate(all="ignore"):
        c[c_lanes] = (0 if fresh else c[c_lanes] * rescale[f0 : f0 + width]) + widened(a[where]) @ b_lanes


@building_block(python=_product)
def product(emit, sizes, c, a, b, rescale, fresh, ahead):
    """C = A B if `fresh`, else C * rescale + A B with a factor for each column, of matrices of `Sizes`. A is
    `Gathered`; C and the rows of A need room for PADDING_ROWS more.

    Meanwhile asks for `Ahead`, in even portions: memory and arithmetic overlap.
    """

    def number(stride, width):
        return stride * (MAX_VECTORS + 1) + width

    layouts = {number(*layout): layout for layout in [*((n, n) for n in range(1, MAX_VECTORS + 1)), HALF_OF]}
    vectors, used, num_rows, depth = sizes
    for chosen in emit.cases(emit.add(emit.multiply(vectors, MAX_VECTORS + 1), used), layouts):
        height = TILE_ROWS[layouts[chosen][1]]
        whole = rows_of_whole_tiles(emit, num_rows, height)
        portion = emit.divide_up(emit.multiply(ahead.num_rows, height), emit.at_least(whole, height))
        asked = emit.variable(emit.integer(0))
        with emit.loop(whole, step=height) as row:
            emit_look_ahead(emit, asked, portion, ahead)
            emit_tile(emit, (height, *layouts[chosen]), row, depth, c, a, b, rescale, fresh)
        with emit.loop(num_rows, start=whole, step=TAIL_ROWS) as row:
            emit_tile(emit, (TAIL_ROWS, *layouts[chosen]), row, depth, c, a, b, rescale, fresh)


def rows_of_whole_tiles(emit, num_rows, tile):
    """As many rows as fill register tiles, or a tile fewer where tiles of TAIL_ROWS then end with the rows:
    8 rows are two of 4, not 6 and half of 4.
    """
    builder = emit.builder
    rest = builder.srem(num_rows, emit.integer(tile))
    whole = builder.sub(num_rows, rest)

    def divides(count):
        return builder.icmp_signed("==", builder.srem(count, emit.integer(TAIL_ROWS)), emit.integer(0))

    fewer = builder.and_(builder.not_(divides(rest)), divides(emit.add(rest, tile)))
    return emit.at_least(builder.sub(whole, builder.select(fewer, emit.integer(tile), emit.integer(0))), 0)


def emit_look_ahead(emit, asked, portion, ahead):
    """Prefetch the next `portion` rows; `asked` counts them."""
    start = emit.builder.load(asked)
    stop = emit.at_most(emit.add(start, portion), ahead.num_rows)
    with emit.loop(stop, start=start) as i:
        emit.prefetch_row(emit.at(ahead.memory, emit.load_scalar(ahead.rows, i)), ahead.depth)
    emit.builder.store(stop, asked)


def emit_tile(emit, tile, row, depth, c, a, b, rescale, fresh):
    """Rows of C from `row` on, as many as the register tile (height, vectors of a row, width) has."""
    height, stride, width = tile
    grid = [(i, j) for i in range(height) for j in range(width)]
    a_rows = [emit.at(a.memory, emit.load_scalar(a.rows, emit.add(row, i))) for i in range(height)]
    c_rows = [emit.at(c, emit.multiply(emit.add(row, i), stride * emit.lanes)) for i in range(height)]
    sums = {at: emit.variable(emit.vector(0.0)) for at in grid}
    with emit.builder.if_then(emit.builder.icmp_signed("==", fresh, emit.integer(0))):
        factor = [emit.load(rescale, j * emit.lanes) for j in range(width)]
        for i, j in grid:
            emit.assign(sums[i, j], emit.load(c_rows[i], j * emit.lanes) * factor[j])
    with emit.loop(depth) as k:
        column = emit.load_scalar(a.columns, k)
        b_row = emit.at(b, emit.multiply(k, stride * emit.lanes))
        b_vectors = [emit.load(b_row, j * emit.lanes) for j in range(width)]
        for i in range(height):
            element = emit.splat(emit.load_scalar(a_rows[i], column))
            for j in range(width):
                total = emit.fma(element, b_vectors[j], emit.value(sums[i, j]))
                emit.assign(sums[i, j], total)
    for i, j in grid:
        emit.store(emit.value(sums[i, j]), c_rows[i], j * emit.lanes)
