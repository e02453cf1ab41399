"""Attention inside blocks of the sequence: the functions of `refattn.local`, fast. Every part that
`BlockLocalProblem.edges` cuts is a sequence of its own.
"""

import math

import numpy as np

from cpu_kernels.call import Arrays, Sequences
from cpu_kernels.launch import launch
from refattn.calls.local import block_local_problem
from refattn.calls.options import takes_options


@takes_options(without=("q_offset",))
def block_local_attention(query, key, value, *, block_size, **options):
    """Self-attention in which row i sees only the keys of its own block, i // block_size.

    Parameters
    ----------
    query : array_like, shape (..., H, T, D), floating point
    key : array_like, shape (..., K, T, D)
    value : array_like, shape (..., K, T, E)
    block_size : int
        Rows in a block; the last block may be shorter.
    **options
        As `refattn.attention`, without q_offset.

    Returns
    -------
    output : ndarray, shape (..., H, T, E), dtype of query
        Computed in float64 if an array is float64 or an option leaves the range of float32, else in float32.

    Raises
    ------
    TypeError, ValueError, MemoryError
        Those of `refattn.block_local_attention`.

    See Also
    --------
    refattn.block_local_attention
    """
    return solve_block_local(
        block_local_problem(query, key, value, block_size=block_size, **options), False
    )[0]


@takes_options(without=("q_offset",))
def block_local_attention_with_lse(query, key, value, *, block_size, **options):
    """`block_local_attention` and its log-sum-exp.

    Parameters and errors are those of `block_local_attention`.

    Returns
    -------
    output : ndarray, shape (..., H, T, E), dtype of query
    lse : ndarray, shape (..., H, T), float64 if an array is float64, else float32

    See Also
    --------
    refattn.block_local_attention_with_lse
    """
    return solve_block_local(block_local_problem(query, key, value, block_size=block_size, **options), True)


def solve_block_local(problem, wants_lse):
    """Output and, if wanted, lse of a checked `BlockLocalProblem`."""
    whole, num_parts = problem.whole, problem.num_parts
    first, rows = problem.edges[:-1], np.diff(problem.edges)
    batch = math.prod(whole.batch_shape)
    kv_lens = np.clip(whole.kv_lengths.reshape(-1, 1) - first, 0, rows).ravel()
    entry, starts = np.repeat(np.arange(batch), num_parts), np.tile(first, batch)
    sequences = Sequences(
        batch * num_parts,
        whole.batch_shape,
        np.tile(rows, batch),
        kv_lens,
        q_offsets=0,
        entry=entry,
        option_entry=entry,
        first_row=starts,
        first_key=starts,
    )
    return launch(whole, Arrays(whole.query, whole.key, whole.value), sequences, wants_lse)
