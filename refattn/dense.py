"""Multi-Head, Multi-Query and Grouped-Query Attention, exact: one function, the variant is the head ratio.

Axes: B any number of batch axes, H query heads, K key/value heads, G = H // K, T query rows, S keys, D
head_dim, E v_head_dim.
"""

from typing import NamedTuple

import numpy as np

from refattn.calls.dense import attention_problem, multi_head_problem, multi_query_problem
from refattn.calls.memory import ensure_allocatable
from refattn.calls.options import takes_options
from refattn.exact.core import divided
from refattn.exact.precise import DoubleDouble
from refattn.exact.solve import arithmetic_of, solve


class AttentionSteps(NamedTuple):
    """Every step of attention, float64; see `attention_steps`."""

    scores: np.ndarray
    capped: np.ndarray
    biased: np.ndarray
    weights: np.ndarray
    lse: np.ndarray
    output: np.ndarray


@takes_options
def attention(query, key, value, *, precision="exact", **options):
    """Attention of every query row over the keys it may see, computed in float64.

    output_i = sum_j softmax_j(softcap(scale q_i . k_j) + bias_ij) v_j over the visible keys j. Query head
    h reads key/value head h // G: G = 1 is Multi-Head, K = 1 Multi-Query, anything between Grouped-Query
    Attention.

    Parameters
    ----------
    query : array_like, shape (..., H, T, D), floating point
    key : array_like, shape (..., K, S, D)
        H must be a multiple of K.
    value : array_like, shape (..., K, S, E)
    precision : {"exact", "float64"}
        "float64" rounds every step to float64: several times as fast, with the errors below.
    bias : array_like, floating point, optional
        Added to the scores after softcap; -inf hides. Two axes (T, S) or all of (..., H, T, S), each full
        or 1.
    mask : array_like of bool, optional
        True = may attend. Shapes as bias.
    scale : float, optional
        Multiplies the scores; default 1 / sqrt(D).
    causal : bool, default False
        Row i sees key j only if j <= q_offset + i.
    window : pair of int or None, optional
        (left, right): row i sees key j only if -left <= j - (q_offset + i) <= right; None is unlimited.
    chunk : int, optional
        Row i sees key j only if j // chunk == (q_offset + i) // chunk: keys of its own aligned chunk
        (chunked local attention: Llama 4, Meta AI 2025). With causal and window all of them must hold.
    softcap : float, optional
        Scores s become softcap * tanh(s / softcap) before bias and masks.
    alibi_slopes : array_like, shape (H,) or (..., H), optional
        Adds -slope * abs(q_offset + i - j).
    sinks : array_like, shape (H,), optional
        One logit a head that joins the softmax denominator, and the lse, without a value.
    kv_lengths : int or array_like of int, shape (...), optional
        Keys at or past the length do not exist; default S.
    q_offset : int or array_like of int, shape (...), optional
        Key position of row 0; default kv_lengths - T, which puts the last row on the last key
        (bottom-right). 0 is top-left.
    dropout_mask : array_like of bool, optional
        True keeps a weight. Shapes as bias; goes with dropout_rate.
    dropout_rate : float, optional
        In [0, 1); kept weights are divided by 1 - dropout_rate after the softmax.

    Returns
    -------
    output : ndarray, shape (..., H, T, E), float64
        0 in rows that see nothing.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, the rule and what was given, before any work.
    MemoryError
        When the output, or what is held for one group of heads, cannot be allocated.

    Notes
    -----
    Hidden keys contribute nothing, even when they hold NaN or infinity. NaN in a visible key poisons
    exactly the rows that see it. The error is at most 4 * 2**-53 * sum_j weight_ij |v_j| an element while
    scores stay below 1e6; beyond, outputs are still means of the visible values. The default scale is the
    float64 next to 1 / sqrt(D).

    With precision="float64" the error of an element is at most u (2 E_i + 2 R_i + 2 S + 16) sum_j weight_ij
    |v_j|, with u = 2**-53, to first order: E_i is the largest (D + 13) |scale| sum_d |q_id k_jd| + 4 |slope
    distance| + |bias| of the keys the row sees, R_i the smaller of 745 and the range of its scores, the sink
    among them (`refattn.exact.plain` derives it). Where float64 would leave its range - inputs beyond
    2**+-400, a sink 600 above all scores - "exact" is computed.

    Cost: each of the two matrix products is three in float64, 6 T S (D + E) floating-point operations a
    head where every row sees every key, and some dozens for each score; with precision="float64" one each, 2
    T S (D + E), about the time of NumPy on whole matrices. Memory: at most five float64 copies of the keys
    and values of one group, and a few MiB.

    See Also
    --------
    attention_with_lse, attention_steps

    References
    ----------
    Vaswani et al. 2017, "Attention Is All You Need", section 3.2 (MHA); Shazeer 2019, "Fast Transformer
    Decoding", section 3 (MQA); Ainslie et al. 2023, "GQA", section 2.2.

    Examples
    --------
    One key/value head serves two query heads; the first row sees one key, the second both:

    >>> import numpy as np, refattn
    >>> query = np.zeros((2, 2, 4))
    >>> key, value = np.zeros((1, 2, 4)), np.array([[[1.0], [3.0]]])
    >>> refattn.attention(query, key, value, causal=True)[:, :, 0]
    array([[1., 2.],
           [1., 2.]])
    """
    return attention_with_lse(query, key, value, precision=precision, **options)[0]


@takes_options
def attention_with_lse(query, key, value, *, precision="exact", **options):
    """`attention` and the log-sum-exp of its scores.

    Parameters, errors and cost are those of `attention`.

    Returns
    -------
    output : ndarray, shape (..., H, T, E), float64
    lse : ndarray, shape (..., H, T), float64
        Natural logarithm of the sum of exp(score) over the visible keys, and the sink if there is one;
        -inf in rows that see nothing.

    See Also
    --------
    merge_states : joins (output, lse) of two sets of keys.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> query, key, value = np.zeros((1, 1, 8)), np.zeros((1, 4, 8)), np.ones((1, 4, 8))
    >>> output, lse = refattn.attention_with_lse(query, key, value)
    >>> np.exp(lse).round(12)
    array([[4.]])
    """
    arithmetic = arithmetic_of(precision)
    return solve(attention_problem(query, key, value, **options), arithmetic=arithmetic)


@takes_options
def attention_steps(query, key, value, **options):
    """Every step of `attention`, whole: for looking, teaching and telling where two computations part.

    Parameters
    ----------
    query : array_like, shape (..., H, T, D), floating point
    key : array_like, shape (..., K, S, D)
    value : array_like, shape (..., K, S, E)
    **options
        As `attention`.

    Returns
    -------
    AttentionSteps
        scores, capped, biased, weights : ndarray, shape (..., H, T, S), float64
            Before softmax; after softcap; after ALiBi and bias with hidden entries -inf; after softmax
            and before dropout. Keys past kv_lengths have scores 0: they are never read.
        lse : ndarray, shape (..., H, T)
        output : ndarray, shape (..., H, T, E)

    Raises
    ------
    TypeError, ValueError
        As `attention`.
    MemoryError
        When the four (..., H, T, S) arrays cannot be allocated.

    Notes
    -----
    Cost: that of `attention` with nothing hidden, and 32 T S bytes a head.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> query, key, value = np.zeros((1, 2, 4)), np.zeros((1, 2, 4)), np.ones((1, 2, 4))
    >>> steps = refattn.attention_steps(query, key, value, causal=True)
    >>> steps.biased
    array([[[  0., -inf],
            [  0.,   0.]]])
    >>> steps.weights
    array([[[1. , 0. ],
            [0.5, 0.5]]])
    """
    problem = attention_problem(query, key, value, **options)
    shape = (*problem.query.shape[:-1], problem.kv_len)
    ensure_allocatable(4 * 8 * int(np.prod(shape, dtype=object)), "attention_steps")
    scores, capped, weights = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    biased = np.full(shape, -np.inf)

    def record(at, steps):
        tile = (*at, slice(0, steps.scores.high.shape[-1]))
        for whole, part in ((scores, steps.scores), (capped, steps.capped), (biased, steps.biased)):
            whole[tile] = (part.high + part.low).reshape(whole[tile].shape)
        weights[tile] = divided(
            DoubleDouble(steps.exponentials, 0.0), steps.total, steps.power
        ).high.reshape(weights[tile].shape)

    output, lse = solve(problem, record)
    return AttentionSteps(scores, capped, biased, weights, lse, output)


@takes_options
def multi_head_attention(query, key, value, *, precision="exact", **options):
    """`attention` with as many key/value heads as query heads (Vaswani et al. 2017, section 3.2.2).

    Parameters
    ----------
    query : array_like, shape (..., H, T, D), floating point
    key : array_like, shape (..., H, S, D)
    value : array_like, shape (..., H, S, E)
    precision : {"exact", "float64"}
    **options
        As `attention`.

    Returns
    -------
    output : ndarray, shape (..., H, T, E), float64

    Raises
    ------
    ValueError
        When key has not as many heads as query.
    TypeError, ValueError, MemoryError
        As `attention`, whose cost this is, too.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> six, two = np.zeros((6, 1, 4)), np.zeros((2, 1, 4))
    >>> refattn.multi_head_attention(six, two, two)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    ValueError: multi_head_attention must have num_kv_heads equal to num_heads; got query heads 6, ...
    """
    arithmetic = arithmetic_of(precision)
    return solve(multi_head_problem(query, key, value, **options), arithmetic=arithmetic)[0]


@takes_options
def multi_query_attention(query, key, value, *, precision="exact", **options):
    """`attention` with one key/value head for all query heads (Shazeer 2019, section 3).

    Parameters
    ----------
    query : array_like, shape (..., H, T, D), floating point
    key : array_like, shape (..., 1, S, D)
    value : array_like, shape (..., 1, S, E)
    precision : {"exact", "float64"}
    **options
        As `attention`.

    Returns
    -------
    output : ndarray, shape (..., H, T, E), float64

    Raises
    ------
    ValueError
        When key has more than one head.
    TypeError, ValueError, MemoryError
        As `attention`, whose cost this is, too.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.multi_query_attention(np.zeros((6, 1, 4)), np.zeros((1, 3, 4)), np.ones((1, 3, 4))).shape
    (6, 1, 4)
    """
    arithmetic = arithmetic_of(precision)
    return solve(multi_query_problem(query, key, value, **options), arithmetic=arithmetic)[0]


@takes_options
def grouped_query_attention(query, key, value, *, precision="exact", **options):
    """`attention` with each key/value head shared by a group of query heads (Ainslie et al. 2023, section
    2.2).

    Any head ratio: one group is Multi-Query, groups of one are Multi-Head Attention. Parameters, errors and
    cost are those of `attention`.

    Returns
    -------
    output : ndarray, shape (..., H, T, E), float64

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.grouped_query_attention(np.zeros((6, 1, 4)), np.zeros((2, 3, 4)), np.ones((2, 3, 4))).shape
    (6, 1, 4)
    """
    return attention(query, key, value, precision=precision, **options)
