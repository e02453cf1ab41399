"""Project the rows of every head by a matrix of its own, as latent attention does with queries, keys, values
and outputs.
"""

from cpu_kernels.kernels.project import Projection, project_rows, projection_scratch
from cpu_kernels.machine.thread_pool import run
from cpu_kernels.plan import FLOPS_PER_MICROSECOND
from cpu_kernels.simd.registers import MAX_VECTORS, lanes
from cpu_kernels.strided import flat, offsets_over


def project(x, w, y, summed):
    """y[..., h, :, :] = x[..., h, :, :] @ w[h] in the dtype of y, a new array; x may have one head for all
    of y's.

    `summed`, 1 or 2, is the axis of w that the dims of x are summed along; the other one becomes the dims of
    y.
    """
    dtype = y.dtype
    memory, start, strides = flat(x, dtype)
    w_memory, w_start, w_strides = flat(w, dtype)
    y_strides = [stride // y.itemsize for stride in y.strides]
    x_rows = offsets_over(start, (*x.shape[:-3], x.shape[-2]), (*strides[:-3], strides[-2]))
    y_rows = offsets_over(0, (*y.shape[:-3], y.shape[-2]), (*y_strides[:-3], y_strides[-2]))
    num_heads, dims_in, dims_out = y.shape[-3], x.shape[-1], y.shape[-1]
    sizes = Projection(
        num_heads,
        dims_in,
        dims_out,
        x_head=strides[-3] if x.shape[-3] > 1 else 0,
        x_dim=strides[-1],
        w_head=w_strides[0],
        w_in=w_strides[summed],
        w_out=w_strides[3 - summed],
        y_head=y_strides[-3],
        one=dtype.type(1),
    )
    ints, scratch = projection_scratch(dims_in, dims_out, dtype.itemsize)
    items = num_heads * -(-len(x_rows) // (MAX_VECTORS * lanes(dtype)))
    run(
        project_rows,
        items,
        sizes,
        ints,
        memory,
        x_rows,
        w_memory[w_start:],
        y.reshape(-1),
        y_rows,
        cost=2.0 * y.size * dims_in / FLOPS_PER_MICROSECOND,
        scratch=scratch,
        dtype=dtype,
    )
