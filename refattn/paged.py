"""Keys and values in pages that a block table strings together, as serving engines keep them."""

from refattn.calls.options import takes_options
from refattn.calls.paged import paged_problem
from refattn.exact.solve import arithmetic_of, solve


@takes_options
def paged_attention(query, key_pages, value_pages, *, block_table, kv_lengths, precision="exact", **options):
    """Attention over a paged key/value cache.

    Key j of sequence b is row j % page_size of page block_table[b, j // page_size].

    Parameters
    ----------
    query : array_like, shape (B, H, T, D), floating point
    key_pages : array_like, shape (num_pages, K, page_size, D)
    value_pages : array_like, shape (num_pages, K, page_size, E)
    block_table : array_like of int, shape (B, max_pages)
        Entries beyond a sequence's length may hold anything and are never followed.
    kv_lengths : int or array_like of int, shape (B,)
        Number of keys of each sequence.
    precision : {"exact", "float64"}
    **options
        As `refattn.attention`; the key axis of bias and masks is max_pages * page_size.

    Returns
    -------
    output : ndarray, shape (B, H, T, E), float64

    Raises
    ------
    ValueError
        When the table names a page that does not exist for a key within a length.
    TypeError, ValueError, MemoryError
        As `attention`.

    Notes
    -----
    Cost: that of `attention` for one sequence after the other, and a copy of its pages.

    References
    ----------
    Kwon et al. 2023, "Efficient Memory Management for Large Language Model Serving with PagedAttention",
    section 4.1.

    Examples
    --------
    Three keys on pages 1 and 0; the last slot of page 0 and the table's last entry are never read:

    >>> import numpy as np, refattn
    >>> value_pages = np.array([[[[9.0], [np.nan]]], [[[1.0], [2.0]]]])
    >>> refattn.paged_attention(
    ...     np.zeros((1, 1, 1, 2)), np.zeros((2, 1, 2, 2)), value_pages,
    ...     block_table=[[1, 0, 2147480000]], kv_lengths=[3]
    ... ).item()
    4.0
    """
    arguments = {"block_table": block_table, "kv_lengths": kv_lengths, "precision": precision, **options}
    return paged_attention_with_lse(query, key_pages, value_pages, **arguments)[0]


@takes_options
def paged_attention_with_lse(
    query, key_pages, value_pages, *, block_table, kv_lengths, precision="exact", **options
):
    """`paged_attention` and its log-sum-exp.

    Parameters, errors and cost are those of `paged_attention`.

    Returns
    -------
    output : ndarray, shape (B, H, T, E), float64
    lse : ndarray, shape (B, H, T), float64
    """
    arguments = {"block_table": block_table, "kv_lengths": kv_lengths, **options}
    arithmetic = arithmetic_of(precision)
    return solve(paged_problem(query, key_pages, value_pages, **arguments), arithmetic=arithmetic)
