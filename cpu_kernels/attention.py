"""Attention over dense arrays: the functions of `refattn.attention`, fast."""

from cpu_kernels.operands import dense, results
from cpu_kernels.plan import Operands, batch_entries, compute_dtype, solve
from refattn.problem import attention_problem, multi_head_problem, multi_query_problem


def attention(query, key, value, **options):
    """Attention of every query row over the keys it may see."""
    return solve_dense(attention_problem(query, key, value, **options), False)[0]


def attention_with_lse(query, key, value, **options):
    """`attention` and the log-sum-exp of its scores."""
    return solve_dense(attention_problem(query, key, value, **options), True)


def multi_head_attention(query, key, value, **options):
    """`attention` with as many key/value heads as query heads."""
    return solve_dense(multi_head_problem(query, key, value, **options), False)[0]


def multi_query_attention(query, key, value, **options):
    """`attention` with one key/value head for all query heads."""
    return solve_dense(multi_query_problem(query, key, value, **options), False)[0]


def grouped_query_attention(query, key, value, **options):
    """`attention` with each key/value head shared by a group of query heads."""
    return attention(query, key, value, **options)


def solve_dense(problem, wants_lse):
    """Output and, if wanted, lse of a checked `Problem`."""
    query, key, value = problem.query, problem.key, problem.value
    dtype = compute_dtype(query, key, value)
    output, lse, written = results(problem.batch_shape, problem.num_heads, problem.q_len, problem.v_head_dim, dtype, wants_lse)
    operands = Operands(dense(query, dtype), dense(key, dtype), dense(value, dtype), *written)
    sequences = batch_entries(problem.batch_shape, problem.q_len, problem.kv_lengths, problem.q_offset)
    solve(problem, operands, sequences, problem.num_kv_heads, problem.group_size, (problem.head_dim, 0, problem.v_head_dim))
    return output if output.dtype == query.dtype else output.astype(query.dtype), lse
