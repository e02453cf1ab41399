"""Attention inside blocks of the sequence: what "grouping the queries along the sequence" computes
when it is done right.
"""

from refattn.calls.local import block_local_problem
from refattn.calls.options import takes_options
from refattn.exact.solve import arithmetic_of, solve


@takes_options(without=("q_offset",))
def block_local_attention(query, key, value, *, block_size, precision="exact", **options):
    """Self-attention in which row i sees only the keys of its own block, i // block_size.

    Equal to `refattn.attention` with a block-diagonal mask. Not Grouped-Query Attention, which groups
    heads and shares their keys.

    Parameters
    ----------
    query : array_like, shape (..., H, T, D), floating point
    key : array_like, shape (..., K, T, D)
    value : array_like, shape (..., K, T, E)
    block_size : int
        Rows in a block; the last block may be shorter.
    precision : {"exact", "float64"}
    **options
        As `refattn.attention`, without q_offset: row i stands at key position i.

    Returns
    -------
    output : ndarray, shape (..., H, T, E), float64

    Raises
    ------
    ValueError
        When query and key differ in length, or block_size is less than 1.
    TypeError, ValueError, MemoryError
        As `attention`.

    Notes
    -----
    Cost: that of `attention` for one block after the other, T * block_size scores a head.

    References
    ----------
    Vaswani et al. 2017, section 4, calls attention restricted to a neighbourhood "restricted
    self-attention".

    Examples
    --------
    >>> import numpy as np, refattn
    >>> x, value = np.zeros((1, 4, 2)), np.array([[[1.0], [3.0], [10.0], [30.0]]])
    >>> refattn.block_local_attention(x, x, value, block_size=2)[0, :, 0]
    array([ 2.,  2., 20., 20.])
    """
    arguments = {"block_size": block_size, "precision": precision, **options}
    return block_local_attention_with_lse(query, key, value, **arguments)[0]


@takes_options(without=("q_offset",))
def block_local_attention_with_lse(query, key, value, *, block_size, precision="exact", **options):
    """`block_local_attention` and its log-sum-exp.

    Parameters, errors and cost are those of `block_local_attention`.

    Returns
    -------
    output : ndarray, shape (..., H, T, E), float64
    lse : ndarray, shape (..., H, T), float64
    """
    arithmetic = arithmetic_of(precision)
    return solve(
        block_local_problem(query, key, value, block_size=block_size, **options), arithmetic=arithmetic
    )
