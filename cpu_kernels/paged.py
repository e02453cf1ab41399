"""Attention over a paged key/value cache: the functions of `refattn.paged`, fast. Pages are read where they
lie, never gathered.
"""

import numpy as np

from cpu_kernels.call import Arrays, Pages, batch_entries
from cpu_kernels.launch import launch
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
    return solve_paged(
        paged_problem(
            query, key_pages, value_pages, block_table=block_table, kv_lengths=kv_lengths, **options
        ),
        False,
    )[0]


@takes_options
def paged_attention_with_lse(query, key_pages, value_pages, *, block_table, kv_lengths, **options):
    """`paged_attention` and its log-sum-exp.

    Parameters and errors are those of `paged_attention`.

    Returns
    -------
    output : ndarray, shape (B, H, T, E), dtype of query
    lse : ndarray, shape (B, H, T), float64 if an array is float64, else float32

    See Also
    --------
    refattn.paged_attention_with_lse
    """
    return solve_paged(
        paged_problem(
            query, key_pages, value_pages, block_table=block_table, kv_lengths=kv_lengths, **options
        ),
        True,
    )


def solve_paged(problem, wants_lse):
    """Output and, if wanted, lse of a checked `PagedProblem`."""
    batch, _, q_len, _ = problem.query.shape
    ensure_allocatable(8 * problem.block_table.size, "a copy of block_table")
    table = np.ascontiguousarray(problem.block_table).reshape(-1)  # copies where rows repeat in memory
    table.flags.writeable = False
    sequences = batch_entries((batch,), q_len, problem.kv_lengths, problem.q_offset)
    sequences = sequences._replace(page_tables=sequences.entry * problem.block_table.shape[1])
    arrays = Arrays(problem.query, problem.key_pages, problem.value_pages)
    return launch(problem, arrays, sequences, wants_lse, Pages(table, problem.page_size))
