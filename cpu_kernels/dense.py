"""Attention over dense arrays: the functions of `refattn.dense`, fast."""

from cpu_kernels.call import Arrays, batch_entries
from cpu_kernels.launch import launch
from refattn.calls.dense import attention_problem, multi_head_problem, multi_query_problem
from refattn.calls.options import takes_options


@takes_options
def attention(query, key, value, **options):
    """Attention of every query row over the keys it may see.

    Cost: 2 T S (D + E) floating-point operations a head where every row sees every key; no array of T x S.

    Parameters
    ----------
    query : array_like, shape (..., H, T, D), floating point
    key : array_like, shape (..., K, S, D)
    value : array_like, shape (..., K, S, E)
    **options
        As `refattn.attention`.

    Returns
    -------
    output : ndarray, shape (..., H, T, E), dtype of query
        Computed in float64 if an array is float64 or an option leaves the range of float32, else in float32.

    Raises
    ------
    TypeError, ValueError, MemoryError
        Those of `refattn.attention`.

    See Also
    --------
    refattn.attention : what every option means.
    """
    return solve_dense(attention_problem(query, key, value, **options), False)[0]


@takes_options
def attention_with_lse(query, key, value, **options):
    """`attention` and the log-sum-exp of its scores.

    Parameters and errors are those of `attention`.

    Returns
    -------
    output : ndarray, shape (..., H, T, E), dtype of query
    lse : ndarray, shape (..., H, T), float64 if an array is float64, else float32

    See Also
    --------
    refattn.attention_with_lse
    """
    return solve_dense(attention_problem(query, key, value, **options), True)


@takes_options
def multi_head_attention(query, key, value, **options):
    """`attention` with as many key/value heads as query heads.

    Parameters
    ----------
    query : array_like, shape (..., H, T, D), floating point
    key : array_like, shape (..., H, S, D)
    value : array_like, shape (..., H, S, E)
    **options
        As `refattn.attention`.

    Returns
    -------
    output : ndarray, shape (..., H, T, E), dtype of query

    Raises
    ------
    TypeError, ValueError, MemoryError
        Those of `refattn.multi_head_attention`.

    See Also
    --------
    refattn.multi_head_attention
    """
    return solve_dense(multi_head_problem(query, key, value, **options), False)[0]


@takes_options
def multi_query_attention(query, key, value, **options):
    """`attention` with one key/value head for all query heads.

    Parameters
    ----------
    query : array_like, shape (..., H, T, D), floating point
    key : array_like, shape (..., 1, S, D)
    value : array_like, shape (..., 1, S, E)
    **options
        As `refattn.attention`.

    Returns
    -------
    output : ndarray, shape (..., H, T, E), dtype of query

    Raises
    ------
    TypeError, ValueError, MemoryError
        Those of `refattn.multi_query_attention`.

    See Also
    --------
    refattn.multi_query_attention
    """
    return solve_dense(multi_query_problem(query, key, value, **options), False)[0]


@takes_options
def grouped_query_attention(query, key, value, **options):
    """`attention` with each key/value head shared by a group of query heads.

    Parameters and errors are those of `attention`.

    Returns
    -------
    output : ndarray, shape (..., H, T, E), dtype of query

    See Also
    --------
    refattn.grouped_query_attention
    """
    return attention(query, key, value, **options)


def solve_dense(problem, wants_lse):
    """Output and, if wanted, lse of a checked `Problem`."""
    sequences = batch_entries(problem.batch_shape, problem.q_len, problem.kv_lengths, problem.q_offset)
    return launch(problem, Arrays(problem.query, problem.key, problem.value), sequences, wants_lse)
