"""Attention over sequences that lie end to end: the functions of `refattn.packed`, fast. Long and short
sequences share the threads evenly.
"""

import numpy as np

from cpu_kernels.call import Arrays, Sequences
from cpu_kernels.launch import launch
from refattn.calls.options import takes_options
from refattn.calls.packed import packed_problem


@takes_options
def packed_attention(query, key, value, *, cu_q, cu_kv, **options):
    """Attention within each of N sequences that lie end to end.

    Parameters
    ----------
    query : array_like, shape (H, total_q, D), floating point
    key : array_like, shape (K, total_kv, D)
    value : array_like, shape (K, total_kv, E)
    cu_q, cu_kv : array_like of int, shape (N + 1,)
        Sequence n owns rows cu_q[n] to cu_q[n + 1] and keys cu_kv[n] to cu_kv[n + 1].
    **options
        As `refattn.packed_attention`.

    Returns
    -------
    output : ndarray, shape (H, total_q, E), dtype of query
        Computed in float64 if an array is float64 or an option leaves the range of float32, else in float32.

    Raises
    ------
    TypeError, ValueError, MemoryError
        Those of `refattn.packed_attention`.

    See Also
    --------
    refattn.packed_attention
    """
    return solve_packed(packed_problem(query, key, value, cu_q=cu_q, cu_kv=cu_kv, **options), False)[0]


@takes_options
def packed_attention_with_lse(query, key, value, *, cu_q, cu_kv, **options):
    """`packed_attention` and its log-sum-exp.

    Parameters and errors are those of `packed_attention`.

    Returns
    -------
    output : ndarray, shape (H, total_q, E), dtype of query
    lse : ndarray, shape (H, total_q), float64 if an array is float64, else float32

    See Also
    --------
    refattn.packed_attention_with_lse
    """
    return solve_packed(packed_problem(query, key, value, cu_q=cu_q, cu_kv=cu_kv, **options), True)


def solve_packed(problem, wants_lse):
    """Output and, if wanted, lse of a checked `PackedProblem`."""
    sequences = Sequences(
        problem.num_parts,
        (),
        np.diff(problem.cu_q),
        problem.kv_lengths,
        problem.q_offset,
        entry=0,
        option_entry=np.arange(problem.num_parts),
        first_row=problem.cu_q[:-1],
        first_key=problem.cu_kv[:-1],
    )
    return launch(problem, Arrays(problem.query, problem.key, problem.value), sequences, wants_lse)
