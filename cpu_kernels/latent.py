"""Multi-head Latent Attention: the functions of `refattn.latent`, fast.

"absorb" is Multi-Query Attention over the cache itself: the latent is the first part of every key, the rotary key the second, and the latent is also
the value, so each tile is read from memory once. "expand" makes keys and values of a few heads at a time, which share the rotary part.
"""

import math

import numpy as np

from cpu_kernels.kernels.project import Projection, project, projection_scratch
from cpu_kernels.strided import dense, flat, headless, offsets_over, results
from cpu_kernels.plan import FLOPS_PER_MICROSECOND, Operands, batch_entries, solve
from cpu_kernels.machine.thread_pool import run
from cpu_kernels.dtypes import compute_dtype, delivered, working_dtype
from cpu_kernels.simd.vector import MAX_VECTORS, lanes
from refattn.calls.memory import ensure_allocatable
from refattn.calls.options import takes_options
from refattn.calls.latent import latent_problem

# Keys and values that "expand" holds at a time; one head of one batch entry at the least.
EXPANDED_BYTES = 64 << 20


@takes_options
def latent_attention(q_nope, q_rope, kv_latent, k_rope, w_uk, w_uv, *, form="absorb", **options):
    """Multi-head Latent Attention (MLA) from its cache: the latents and the shared rotary keys.

    Parameters
    ----------
    q_nope : array_like, shape (..., H, T, N), floating point
    q_rope : array_like, shape (..., H, T, R)
    kv_latent : array_like, shape (..., S, C)
    k_rope : array_like, shape (..., S, R)
    w_uk : array_like, shape (H, N, C)
    w_uv : array_like, shape (H, E, C)
    form : {"absorb", "expand"}
        For decoding and for long prefill; the same numbers but for rounding.
    **options
        As `refattn.latent_attention`.

    Returns
    -------
    output : ndarray, shape (..., H, T, E), dtype of q_nope
        Computed in float64 if an array is float64 or an option leaves the range of float32, else in float32.

    Raises
    ------
    TypeError, ValueError, MemoryError
        Those of `refattn.latent_attention`.

    See Also
    --------
    refattn.latent_attention
    """
    return solve_latent(latent_problem(q_nope, q_rope, kv_latent, k_rope, w_uk, w_uv, form=form, **options), False)[0]


@takes_options
def latent_attention_with_lse(q_nope, q_rope, kv_latent, k_rope, w_uk, w_uv, *, form="absorb", **options):
    """`latent_attention` and its log-sum-exp.

    Parameters
    ----------
    q_nope : array_like, shape (..., H, T, N), floating point
    q_rope : array_like, shape (..., H, T, R)
    kv_latent : array_like, shape (..., S, C)
    k_rope : array_like, shape (..., S, R)
    w_uk : array_like, shape (H, N, C)
    w_uv : array_like, shape (H, E, C)
    form : {"absorb", "expand"}
        For decoding and for long prefill; the same numbers but for rounding.
    **options
        As `refattn.latent_attention`.

    Returns
    -------
    output : ndarray, shape (..., H, T, E), dtype of q_nope
    lse : ndarray, shape (..., H, T), float64 if an array is float64, else float32

    Raises
    ------
    TypeError, ValueError, MemoryError
        Those of `refattn.latent_attention_with_lse`.

    See Also
    --------
    refattn.latent_attention_with_lse
    """
    return solve_latent(latent_problem(q_nope, q_rope, kv_latent, k_rope, w_uk, w_uv, form=form, **options), True)


@takes_options
def multi_head_latent_attention(q_nope, q_rope, kv_latent, k_rope, w_uk, w_uv, *, form="absorb", **options):
    """`latent_attention` under the name of its paper.

    Parameters
    ----------
    q_nope : array_like, shape (..., H, T, N), floating point
    q_rope : array_like, shape (..., H, T, R)
    kv_latent : array_like, shape (..., S, C)
    k_rope : array_like, shape (..., S, R)
    w_uk : array_like, shape (H, N, C)
    w_uv : array_like, shape (H, E, C)
    form : {"absorb", "expand"}
        For decoding and for long prefill; the same numbers but for rounding.
    **options
        As `refattn.latent_attention`.

    Returns
    -------
    output : ndarray, shape (..., H, T, E), dtype of q_nope

    Raises
    ------
    TypeError, ValueError, MemoryError
        Those of `refattn.multi_head_latent_attention`.

    See Also
    --------
    refattn.multi_head_latent_attention
    """
    return latent_attention(q_nope, q_rope, kv_latent, k_rope, w_uk, w_uv, form=form, **options)


def solve_latent(problem, wants_lse):
    lse_dtype = compute_dtype(problem.q_nope, problem.q_rope, problem.kv_latent, problem.k_rope, problem.w_uk, problem.w_uv)
    dtype = working_dtype(problem, lse_dtype)
    output, lse = (expand if problem.implementation == "expand" else absorb)(problem, dtype, wants_lse)
    return delivered(output, lse, problem.q_nope.dtype, lse_dtype)


def sequences_of(problem):
    *batch_shape, _, q_len, _ = problem.q_nope.shape
    return batch_entries(tuple(batch_shape), q_len, problem.kv_lengths, problem.q_offset)


def absorb(p, dtype, wants_lse):
    *batch_shape, num_heads, q_len, _ = p.q_nope.shape
    rank, rope, v_head_dim = p.kv_latent.shape[-1], p.q_rope.shape[-1], p.w_uv.shape[1]
    q_latent = np.empty((*batch_shape, num_heads, q_len, rank), dtype)
    multiply(p.q_nope, p.w_uk, (1, 2), q_latent, dtype)
    o_latent, lse, written = results(batch_shape, num_heads, q_len, rank, dtype, wants_lse)
    latent = headless(p.kv_latent, dtype)
    operands = Operands(dense(q_latent, dtype), latent, latent, *written, dense(p.q_rope, dtype), headless(p.k_rope, dtype))
    solve(p, operands, sequences_of(p), 1, num_heads, (rank, rope, rank))
    output = np.empty((*o_latent.shape[:-1], v_head_dim), dtype)
    multiply(o_latent, p.w_uv, (2, 1), output, dtype)
    return output, lse


def multiply(x, w, w_axes, y, dtype):
    """y[..., h, :, :] = x[..., h, :, :] @ w[h], with the axes of w that are summed and kept; x may have one head for all of y's."""
    memory, start, strides = flat(x, dtype)
    w_memory, w_start, w_strides = flat(w, dtype)
    y_strides = [stride // y.itemsize for stride in y.strides]
    x_rows = offsets_over(start, (*x.shape[:-3], x.shape[-2]), (*strides[:-3], strides[-2]))
    y_rows = offsets_over(0, (*y.shape[:-3], y.shape[-2]), (*y_strides[:-3], y_strides[-2]))
    num_heads, dims_in, dims_out = y.shape[-3], x.shape[-1], y.shape[-1]
    shape = Projection(
        num_heads, dims_in, dims_out, strides[-3] if x.shape[-3] > 1 else 0, strides[-1], w_strides[0], w_strides[w_axes[0]],
        w_strides[w_axes[1]], y_strides[-3], dtype.type(1),
    )  # fmt: skip
    ints, scratch = projection_scratch(dims_in, dims_out, dtype.itemsize)
    blocks = -(-len(x_rows) // (MAX_VECTORS * lanes(dtype)))
    cost = 2.0 * y.size * dims_in / FLOPS_PER_MICROSECOND
    run(project, num_heads * blocks, shape, ints, memory, x_rows, w_memory[w_start:], y.reshape(-1), y_rows, cost=cost, scratch=scratch, dtype=dtype)


def expand(p, dtype, wants_lse):
    *batch_shape, num_heads, q_len, nope = p.q_nope.shape
    kv_len, rope, v_head_dim = p.kv_latent.shape[-2], p.q_rope.shape[-1], p.w_uv.shape[1]
    output, lse, written = results(batch_shape, num_heads, q_len, v_head_dim, dtype, wants_lse)
    one_head = math.prod(batch_shape) * kv_len * (nope + v_head_dim) * dtype.itemsize
    ensure_allocatable(one_head, "the expanded keys and values of one head")
    at_once = max(1, min(num_heads, EXPANDED_BYTES // max(one_head, 1)))
    latent = p.kv_latent[..., None, :, :]
    key_rope = headless(p.k_rope, dtype)
    for first in range(0, num_heads, at_once):
        heads = slice(first, min(first + at_once, num_heads))
        count = heads.stop - first
        key, value = (np.empty((*batch_shape, count, kv_len, width), dtype) for width in (nope, v_head_dim))
        multiply(latent, p.w_uk[heads], (2, 1), key, dtype)
        multiply(latent, p.w_uv[heads], (2, 1), value, dtype)
        query, query_rope = (dense(x[..., heads, :, :], dtype) for x in (p.q_nope, p.q_rope))
        parts = (operand._replace(start=first * operand.strides[0]) for operand in written)
        operands = Operands(query, dense(key, dtype), dense(value, dtype), *parts, query_rope, key_rope)
        solve(p.of_heads(heads), operands, sequences_of(p), count, 1, (nope, rope, v_head_dim))
    return output, lse
