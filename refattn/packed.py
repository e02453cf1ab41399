"""Sequences of different lengths end to end in one array, without padding ("varlen")."""

from refattn.calls.options import takes_options
from refattn.calls.packed import packed_problem
from refattn.exact.solve import arithmetic_of, solve


@takes_options
def packed_attention(query, key, value, *, cu_q, cu_kv, precision="exact", **options):
    """Attention within each of N sequences that lie end to end.

    Parameters
    ----------
    query : array_like, shape (H, total_q, D), floating point
    key : array_like, shape (K, total_kv, D)
    value : array_like, shape (K, total_kv, E)
    cu_q, cu_kv : array_like of int, shape (N + 1,)
        Sequence n owns rows cu_q[n] to cu_q[n + 1] and keys cu_kv[n] to cu_kv[n + 1]; both run from 0 to
        the total.
    precision : {"exact", "float64"}
    **options
        As `refattn.attention`. kv_lengths and q_offset have shape (N,) and count inside each sequence;
        bias and masks broadcast to (H, total_q, total_kv), of which each sequence reads its own tile.

    Returns
    -------
    output : ndarray, shape (H, total_q, E), float64

    Raises
    ------
    ValueError
        When boundaries decrease, do not begin at 0 or do not end at the total, or cu_q and cu_kv count
        different numbers of sequences.
    TypeError, ValueError, MemoryError
        As `attention`.

    Notes
    -----
    Cost: that of `attention` for one sequence after the other; no pair of sequences costs anything.

    References
    ----------
    The layout and its name are those of FlashAttention's variable-length interface (Dao 2023).

    Examples
    --------
    Two sequences of one and two tokens; neither sees the other:

    >>> import numpy as np, refattn
    >>> value = np.array([[[1.0], [10.0], [20.0]]])
    >>> zeros, ends = np.zeros((1, 3, 2)), [0, 1, 3]
    >>> refattn.packed_attention(zeros, zeros, value, cu_q=ends, cu_kv=ends)[0, :, 0]
    array([ 1., 15., 15.])
    """
    return packed_attention_with_lse(
        query, key, value, cu_q=cu_q, cu_kv=cu_kv, precision=precision, **options
    )[0]


@takes_options
def packed_attention_with_lse(query, key, value, *, cu_q, cu_kv, precision="exact", **options):
    """`packed_attention` and its log-sum-exp.

    Parameters, errors and cost are those of `packed_attention`.

    Returns
    -------
    output : ndarray, shape (H, total_q, E), float64
    lse : ndarray, shape (H, total_q), float64
    """
    arithmetic = arithmetic_of(precision)
    return solve(packed_problem(query, key, value, cu_q=cu_q, cu_kv=cu_kv, **options), arithmetic=arithmetic)
