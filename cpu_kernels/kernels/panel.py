"""Panels: matrices in scratch whose rows are lanes of query rows, [dim, lane] for query and output, [key,
lane] for scores.

Transposing between rows in the caller's memory and lanes goes through squares of registers wherever the dim
axis is contiguous.
"""

import numpy as np

from cpu_kernels.simd.building_block import building_block


def _pack(vectors, num_dims, panel, stride, x, rows, dim_stride, scale):
    (panel, p0), (x, x0), (rows, r0) = panel, x, rows
    where = x0 + rows[None, r0 : r0 + stride] + dim_stride * np.arange(num_dims)[:, None]
    panel[p0 : p0 + num_dims * stride] = (x[where] * scale).ravel()


@building_block(python=_pack)
def pack(emit, vectors, num_dims, panel, stride, x, rows, dim_stride, scale):
    """panel[dim, lane] = scale * x[rows[lane] + dim * dim_stride]"""
    builder, size = emit.builder, emit.lanes
    contiguous = builder.icmp_signed("==", dim_stride, emit.integer(1))
    whole = builder.sub(num_dims, builder.srem(num_dims, emit.integer(size)))
    whole = builder.select(contiguous, whole, emit.integer(0))
    with emit.loop(vectors) as vector:
        lane = emit.multiply(vector, size)
        sources = [emit.at(x, emit.load_scalar(rows, emit.add(lane, i))) for i in range(size)]
        column = emit.at(panel, lane)
        with emit.loop(whole, step=size) as dim:
            for i, row in enumerate(emit.transpose([emit.load(source, dim) for source in sources])):
                emit.store(row * scale, column, emit.multiply(emit.add(dim, i), stride))
        with emit.loop(num_dims, start=whole) as dim:
            at = emit.multiply(dim, dim_stride)
            gathered = emit.from_scalars([emit.load_scalar(source, at) for source in sources])
            emit.store(gathered * scale, column, emit.multiply(dim, stride))


def _unpack(vectors, num_dims, panel, stride, scale, y, rows):
    (panel, p0), (scale, s0), (y, y0), (rows, r0) = panel, scale, y, rows
    where = y0 + rows[None, r0 : r0 + stride] + np.arange(num_dims)[:, None]
    with np.errstate(all="ignore"):
        y[where] = panel[p0 : p0 + num_dims * stride].reshape(num_dims, stride) * scale[s0 : s0 + stride]


@building_block(python=_unpack)
def unpack(emit, vectors, num_dims, panel, stride, scale, y, rows):
    """y[rows[lane] + dim] = panel[dim, lane] * scale[lane]. Lanes that repeat a row write the same bits
    twice.
    """
    builder, size = emit.builder, emit.lanes
    whole = builder.sub(num_dims, builder.srem(num_dims, emit.integer(size)))
    with emit.loop(vectors) as vector:
        lane = emit.multiply(vector, size)
        targets = [emit.at(y, emit.load_scalar(rows, emit.add(lane, i))) for i in range(size)]
        column = emit.at(panel, lane)
        factor = emit.load(scale, lane)
        with emit.loop(whole, step=size) as dim:
            square = [
                emit.load(column, emit.multiply(emit.add(dim, i), stride)) * factor for i in range(size)
            ]
            for target, row in zip(targets, emit.transpose(square)):
                emit.store(row, target, dim)
        with emit.loop(num_dims, start=whole) as dim:
            row = emit.load(column, emit.multiply(dim, stride)) * factor
            for i, target in enumerate(targets):
                builder.store(emit.extract(row, i), emit.at(target, dim))


def _prefetch(count, x):
    pass


@building_block(python=_prefetch)
def prefetch(emit, count, x):
    """Ask early for `count` contiguous elements that are wanted soon."""
    emit.prefetch_row(x, count)


def _clear(count, x):
    x[0][x[1] : x[1] + count] = 0


@building_block(python=_clear)
def clear(emit, count, x):
    """x = 0 over `count` elements, a multiple of the lanes."""
    with emit.loop(count, step=emit.lanes) as i:
        emit.store(emit.vector(0.0), x, i)


def _copy(count, x, y):
    y[0][y[1] : y[1] + count] = x[0][x[1] : x[1] + count]


@building_block(python=_copy)
def copy(emit, count, x, y):
    """y = x over `count` elements, a multiple of the lanes."""
    with emit.loop(count, step=emit.lanes) as i:
        emit.store(emit.load(x, i), y, i)


def _probe(vectors, num_dims, panel, stride, verdict):
    (panel, p0), (verdict, v0) = panel, verdict
    with np.errstate(all="ignore"):
        verdict[v0 : v0 + stride] = (panel[p0 : p0 + num_dims * stride].reshape(num_dims, stride) * 0).sum(
            axis=0
        )


@building_block(python=_probe)
def probe(emit, vectors, num_dims, panel, stride, verdict):
    """verdict[lane] = 0 if the lane's column of the panel is finite, else NaN."""
    with emit.loop(vectors) as vector:
        lane = emit.multiply(vector, emit.lanes)
        found = emit.variable(emit.vector(0.0))
        with emit.loop(num_dims) as dim:
            x = emit.load(panel, emit.add(lane, emit.multiply(dim, stride)))
            emit.assign(found, emit.fma(x, 0.0, emit.value(found)))
        emit.store(emit.value(found), verdict, lane)
