"""Multiply rows by one matrix a head: y[h, row, :] = x[h, row, :] . W[h], the up-projections of latent
attention.

The same building blocks as attention: rows become lanes of a packed panel, the matrix is broadcast from
where it lies.
"""

from typing import NamedTuple

import numpy as np

from cpu_kernels.compiler.jit import driver, next_item
from cpu_kernels.kernels.panel import pack, unpack
from cpu_kernels.kernels.product import PADDING_ROWS, Ahead, Gathered, Sizes, product
from cpu_kernels.simd.registers import MAX_VECTORS, VECTOR_BYTES


class Projection(NamedTuple):
    """Sizes and strides in elements; matrix element (k, n) of head h lies at h * w_head + k * w_in + n *
    w_out.
    """

    num_heads: int
    dims_in: int
    dims_out: int
    x_head: int
    x_dim: int
    w_head: int
    w_in: int
    w_out: int
    y_head: int
    one: float  # of the dtype


def projection_scratch(dims_in, dims_out, itemsize):
    """(integers, elements in all) of a thread's scratch."""
    width = MAX_VECTORS * VECTOR_BYTES // itemsize
    ints = -(-(dims_in + dims_out + PADDING_ROWS + 2 * width) // 8) * 8
    return ints, ints * 8 // itemsize + (dims_in + dims_out + PADDING_ROWS + 1) * width


@driver
def project_rows(counter, scratch, sizes, num_ints, x, x_rows, w, y, y_rows):
    """Item = (head, block of rows), heads slowest; x_rows and y_rows hold the offset of every row within
    head 0.
    """
    width = MAX_VECTORS * VECTOR_BYTES // scratch.itemsize
    size = width // MAX_VECTORS
    panel = num_ints * 8 // scratch.itemsize
    ints = scratch[:panel].view(np.int64)
    columns, rows, x_at = 0, sizes.dims_in, sizes.dims_in + sizes.dims_out + PADDING_ROWS
    y_at = x_at + width
    result = panel + sizes.dims_in * width
    ones = result + (sizes.dims_out + PADDING_ROWS) * width
    for k in range(sizes.dims_in):
        ints[columns + k] = k * sizes.w_in
    for i in range(sizes.dims_out + PADDING_ROWS):
        ints[rows + i] = max(0, min(i, sizes.dims_out - 1)) * sizes.w_out
    for lane in range(width):
        scratch[ones + lane] = 1
    blocks = (len(x_rows) + width - 1) // width
    n = next_item(counter)
    while n >= 0:
        head, first = n // blocks, n % blocks * width
        count = min(width, len(x_rows) - first)
        vectors = (count + size - 1) // size
        stride = vectors * size
        for lane in range(stride):
            row = first + min(lane, count - 1)
            ints[x_at + lane] = head * sizes.x_head + x_rows[row]
            ints[y_at + lane] = head * sizes.y_head + y_rows[row]
        pack(vectors, sizes.dims_in, (scratch, panel), stride, (x, 0), (ints, x_at), sizes.x_dim, sizes.one)
        product(
            Sizes(vectors, vectors, sizes.dims_out, sizes.dims_in),
            (scratch, result),
            Gathered((w, head * sizes.w_head), (ints, rows), (ints, columns)),
            (scratch, panel),
            (scratch, ones),
            1,
            Ahead((w, 0), (ints, rows), 0, 0),
        )
        unpack(vectors, sizes.dims_out, (scratch, result), stride, (scratch, ones), (y, 0), (ints, y_at))
        n = next_item(counter)
