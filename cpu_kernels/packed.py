"""Attention over sequences that lie end to end: the functions of `refattn.packed`, fast. Long and short sequences share the threads evenly."""

import numpy as np

from cpu_kernels.operands import dense, results
from cpu_kernels.plan import Operands, Sequences, compute_dtype, solve
from refattn.problem import packed_problem


def packed_attention(query, key, value, *, cu_q, cu_kv, **options):
    """Attention within each of N sequences that lie end to end."""
    return solve_packed(packed_problem(query, key, value, cu_q, cu_kv, **options), False)[0]


def packed_attention_with_lse(query, key, value, *, cu_q, cu_kv, **options):
    """`packed_attention` and its log-sum-exp, shape (H, total_q)."""
    return solve_packed(packed_problem(query, key, value, cu_q, cu_kv, **options), True)


def solve_packed(problem, wants_lse):
    query, key, value = problem.query, problem.key, problem.value
    dtype = compute_dtype(query, key, value)
    num_heads, total_q, head_dim = query.shape
    num_kv_heads, _, v_head_dim = value.shape
    output, lse, written = results((), num_heads, total_q, v_head_dim, dtype, wants_lse)
    operands = Operands(dense(query, dtype), dense(key, dtype), dense(value, dtype), *written)
    sequences = Sequences(
        problem.num_sequences, (), np.diff(problem.cu_q), problem.kv_lengths, problem.q_offset, 0, np.arange(problem.num_sequences),
        problem.cu_q[:-1], problem.cu_kv[:-1],
    )  # fmt: skip
    solve(problem, operands, sequences, num_kv_heads, num_heads // num_kv_heads, (head_dim, 0, v_head_dim))
    return output.astype(query.dtype, copy=False), lse
