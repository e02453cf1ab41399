"""Attention over a paged key/value cache: the functions of `refattn.paged`, fast. Pages are read where they lie, never gathered."""

import numpy as np

from cpu_kernels.strided import Operand, dense, results, stored
from cpu_kernels.plan import Operands, Pages, batch_entries, solve
from cpu_kernels.dtypes import compute_dtype, delivered, working_dtype
from refattn.calls.memory import ensure_allocatable
from refattn.calls.options import takes_options
from refattn.calls.paged import paged_problem


@takes_options
def paged_attention(query, key_pages, value_pages, *, block_table, kv_lengths, **options):
    """Attention over a paged key/value cache.

    Parameters
    ----------
    query : array_like, shape (B, H, T, D), floating point
    key_pages : array_like, shape (num_pages, K, page_size, D)
    value_pages : array_like, shape (num_pages, K, page_size, E)
    block_table : array_like of int, shape (B, max_pages)
        Entries beyond a sequence's length are never followed.
    kv_lengths : int or array_like of int, shape (B,)
    **options
        As `refattn.paged_attention`.

    Returns
    -------
    output : ndarray, shape (B, H, T, E), dtype of query
        Computed in float64 if an array is float64 or an option leaves the range of float32, else in float32.

    Raises
    ------
    TypeError, ValueError, MemoryError
        Those of `refattn.paged_attention`.

    See Also
    --------
    refattn.paged_attention
    """
    return solve_paged(paged_problem(query, key_pages, value_pages, block_table=block_table, kv_lengths=kv_lengths, **options), False)[0]


@takes_options
def paged_attention_with_lse(query, key_pages, value_pages, *, block_table, kv_lengths, **options):
    """`paged_attention` and its log-sum-exp.

    Parameters
    ----------
    query : array_like, shape (B, H, T, D), floating point
    key_pages : array_like, shape (num_pages, K, page_size, D)
    value_pages : array_like, shape (num_pages, K, page_size, E)
    block_table : array_like of int, shape (B, max_pages)
        Entries beyond a sequence's length are never followed.
    kv_lengths : int or array_like of int, shape (B,)
    **options
        As `refattn.paged_attention`.

    Returns
    -------
    output : ndarray, shape (B, H, T, E), dtype of query
    lse : ndarray, shape (B, H, T), float64 if an array is float64, else float32

    Raises
    ------
    TypeError, ValueError, MemoryError
        Those of `refattn.paged_attention_with_lse`.

    See Also
    --------
    refattn.paged_attention_with_lse
    """
    return solve_paged(paged_problem(query, key_pages, value_pages, block_table=block_table, kv_lengths=kv_lengths, **options), True)


def solve_paged(problem, wants_lse):
    query = problem.query
    lse_dtype = compute_dtype(query, problem.key_pages, problem.value_pages)
    dtype = working_dtype(problem, lse_dtype)
    batch, num_heads, q_len, head_dim = query.shape
    num_kv_heads, v_head_dim = problem.value_pages.shape[1], problem.value_pages.shape[3]
    output, lse, written = results((batch,), num_heads, q_len, v_head_dim, dtype, wants_lse)
    (key, key_stride), (value, value_stride) = (page_operand(pages, dtype) for pages in (problem.key_pages, problem.value_pages))
    ensure_allocatable(8 * problem.block_table.size, "a copy of block_table")
    table = np.ascontiguousarray(problem.block_table).reshape(-1)  # copies where rows repeat in memory
    table.flags.writeable = False
    sequences = batch_entries((batch,), q_len, problem.kv_lengths, problem.q_offset)
    sequences = sequences._replace(page_tables=sequences.entry * problem.block_table.shape[1])
    solve(
        problem, Operands(dense(query, dtype), key, value, *written), sequences, num_kv_heads, num_heads // num_kv_heads,
        (head_dim, 0, v_head_dim), pages=Pages(table, problem.page_size, key_stride, value_stride),
    )  # fmt: skip
    return delivered(output, lse, query.dtype, lse_dtype)


def page_operand(pages, dtype):
    """Operand of pages (num_pages, heads, page_size, dim), and the stride from page to page."""
    memory, start, strides = stored(pages, dtype, True)
    return Operand(memory, start, (), strides[1:]), strides[0]
