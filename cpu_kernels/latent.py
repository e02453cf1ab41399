"""Multi-head Latent Attention: the functions of `refattn.latent`, fast.

"absorb" is Multi-Query Attention over the cache itself: the latent is the first part of every key, the
rotary key the second, and the latent is also the value, so each tile is read from memory once. "expand"
makes keys and values of a few heads at a time, which share the rotary part.
"""

import math

import numpy as np

from cpu_kernels.call import Arrays, batch_entries
from cpu_kernels.launch import attend_into, attention, in_promised_dtypes
from cpu_kernels.project import project
from cpu_kernels.strided import results
from refattn.calls.latent import latent_problem
from refattn.calls.memory import ensure_allocatable
from refattn.calls.options import takes_options

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
    return solve_latent(
        latent_problem(q_nope, q_rope, kv_latent, k_rope, w_uk, w_uv, form=form, **options), False
    )[0]


@takes_options
def latent_attention_with_lse(q_nope, q_rope, kv_latent, k_rope, w_uk, w_uv, *, form="absorb", **options):
    """`latent_attention` and its log-sum-exp.

    Parameters and errors are those of `latent_attention`.

    Returns
    -------
    output : ndarray, shape (..., H, T, E), dtype of q_nope
    lse : ndarray, shape (..., H, T), float64 if an array is float64, else float32

    See Also
    --------
    refattn.latent_attention_with_lse
    """
    return solve_latent(
        latent_problem(q_nope, q_rope, kv_latent, k_rope, w_uk, w_uv, form=form, **options), True
    )


@takes_options
def multi_head_latent_attention(q_nope, q_rope, kv_latent, k_rope, w_uk, w_uv, *, form="absorb", **options):
    """`latent_attention` under the name of its paper.

    Parameters and errors are those of `latent_attention`.

    Returns
    -------
    output : ndarray, shape (..., H, T, E), dtype of q_nope

    See Also
    --------
    refattn.multi_head_latent_attention
    """
    return latent_attention(q_nope, q_rope, kv_latent, k_rope, w_uk, w_uv, form=form, **options)


def solve_latent(problem, wants_lse):
    """Output and, if wanted, lse of a checked `LatentProblem`."""
    inputs = (problem.q_nope, problem.q_rope, problem.kv_latent, problem.k_rope, problem.w_uk, problem.w_uv)
    form = expand if problem.implementation == "expand" else absorb
    return in_promised_dtypes(problem, inputs, lambda dtype: form(problem, dtype, wants_lse))


def sequences_of(problem):
    *batch_shape, _, q_len, _ = problem.q_nope.shape
    return batch_entries(tuple(batch_shape), q_len, problem.kv_lengths, problem.q_offset)


def absorb(p, dtype, wants_lse):
    """Output and lse, or None, in `dtype`: the queries are projected into the latent space, the outputs out
    of it.
    """
    q_latent = np.empty((*p.q_nope.shape[:-1], p.kv_latent.shape[-1]), dtype)
    project(p.q_nope, p.w_uk, q_latent, summed=1)
    latent, key_rope = (x[..., None, :, :] for x in (p.kv_latent, p.k_rope))
    o_latent, lse = attention(
        dtype, p, Arrays(q_latent, latent, latent, p.q_rope, key_rope), sequences_of(p), wants_lse
    )
    output = np.empty(p.output_shape, dtype)
    project(o_latent, p.w_uv, output, summed=2)
    return output, lse


def expand(p, dtype, wants_lse):
    """Output and lse, or None, in `dtype`: keys and values of some heads at a time."""
    *batch_shape, num_heads, _, nope = p.q_nope.shape
    kv_len, v_head_dim = p.kv_latent.shape[-2], p.w_uv.shape[1]
    output, lse, written = results(p.q_nope.shape, v_head_dim, dtype, wants_lse)
    one_head = math.prod(batch_shape) * kv_len * (nope + v_head_dim) * dtype.itemsize
    ensure_allocatable(one_head, "the expanded keys and values of one head")
    at_once = max(1, min(num_heads, EXPANDED_BYTES // max(one_head, 1)))
    latent = p.kv_latent[..., None, :, :]
    for first in range(0, num_heads, at_once):
        heads = slice(first, min(first + at_once, num_heads))
        count = heads.stop - first
        key, value = (np.empty((*batch_shape, count, kv_len, width), dtype) for width in (nope, v_head_dim))
        project(latent, p.w_uk[heads], key, summed=2)
        project(latent, p.w_uv[heads], value, summed=2)
        key_rope = np.broadcast_to(p.k_rope[..., None, :, :], (*batch_shape, count, *p.k_rope.shape[-2:]))
        arrays = Arrays(p.q_nope[..., heads, :, :], key, value, p.q_rope[..., heads, :, :], key_rope)
        parts = [operand._replace(start=first * operand.strides[0]) for operand in written]
        attend_into(parts, p.of_heads(heads), arrays, sequences_of(p))
    return output, lse
