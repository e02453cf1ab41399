"""Attention over sequences that lie end to end: the functions of `refattn.packed`, fast. Long and short sequences share the threads evenly."""

import numpy as np

from cpu_kernels.operands import Operand, absent, flat, results
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
    first_row, first_key = problem.cu_q[:-1], problem.cu_kv[:-1]
    output, lse, *written = results((), num_heads, total_q, v_head_dim, dtype, wants_lse)

    def along(x, first, second=0):
        """Operand of an array (heads, rows, last axis) of which every sequence begins at its own row, and maybe column."""
        if x is None:
            return absent(np.uint8)
        memory, start, strides = flat(x.view(np.uint8) if x.dtype == np.bool_ else x, np.uint8 if x.dtype == np.bool_ else dtype)
        return Operand(memory, start + first * strides[1] + second * strides[2], strides)

    operands = Operands(
        along(query, first_row), along(key, first_key), along(value, first_key),
        *(operand._replace(starts=first_row * operand.strides[1]) for operand in written),
    )  # fmt: skip
    sequences = Sequences(np.diff(problem.cu_q), problem.kv_lengths, problem.q_offset, np.arange(problem.num_sequences))
    tiles = {
        "bias": absent(dtype) if problem.bias is None else along(problem.bias, first_row, first_key),
        "mask": along(problem.mask, first_row, first_key),
        "keep": along(problem.dropout_mask, first_row, first_key),
    }
    solve(problem, operands, sequences, num_kv_heads, num_heads // num_kv_heads, (head_dim, 0, v_head_dim), **tiles)
    return output.astype(query.dtype, copy=False), lse
