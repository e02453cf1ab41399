"""A first lesson: Multi-Head, Multi-Query, Grouped-Query and Multi-head Latent Attention in plain NumPy.

Row i scores every key j, turns its scores into weights that add up to 1, and returns the mean of the values:

    (1)  score_ij  = scale * q_i . k_j                           Vaswani et al. 2017, section 3.2.1
    (2)  capped_ij = softcap * tanh(score_ij / softcap)          Gemma 2: Gemma Team 2024, section 2
    (3)  biased_ij = capped_ij - slope_h |p_i - j| + bias_ij     ALiBi: Press et al. 2022, section 3
         biased_ij = -inf where row i may not see key j
    (4)  lse_i     = log(exp(sink_h) + sum_j exp(biased_ij))     sinks: Xiao et al. 2024, section 3.1
    (5)  weight_ij = exp(biased_ij - lse_i)                      (4) and (5) together are the softmax
    (6)  output_i  = sum_j weight_ij v_j

Axes: H query heads, K key/value heads, T rows, S keys, D head_dim, E v_head_dim; `...` is any batch axes.
Nothing is checked here, and a hidden key must not hold NaN; for both see `refattn.attention`.
"""

import numpy as np


def attention_with_lse(
    query, key, value, *, bias=None, mask=None, scale=None, causal=False, window=None, chunk=None,
    softcap=None, alibi_slopes=None, sinks=None, kv_lengths=None, q_offset=None, dropout_mask=None,
    dropout_rate=None):  # fmt: skip
    """Three variants, one formula: query head h reads key/value head h // (H / K).

    Multi-Head       K = H        Vaswani et al. 2017, "Attention Is All You Need", section 3.2.2
    Multi-Query      K = 1        Shazeer 2019, "Fast Transformer Decoding", section 3
    Grouped-Query    1 < K < H    Ainslie et al. 2023, "GQA", section 2.2

    Parameters
    ----------
    query : array_like, shape (..., H, T, D)
    key : array_like, shape (..., K, S, D)
    value : array_like, shape (..., K, S, E)
    bias, mask, ... : as in `refattn.attention`

    Returns
    -------
    output : ndarray, shape (..., H, T, E)
    lse : ndarray, shape (..., H, T)

    Examples
    --------
    All scores are 0. Row 0 sees one key, row 1 sees both and returns the mean of their values:

    >>> attention_with_lse(np.zeros((1, 2, 4)), np.zeros((1, 2, 4)), [[[1], [3]]], causal=True)[0].tolist()
    [[[1.0], [2.0]]]
    """
    query, key, value = (np.asarray(array, dtype=np.float64) for array in (query, key, value))
    (num_heads, q_len, head_dim), (num_kv_heads, kv_len) = query.shape[-3:], key.shape[-3:-1]

    # Heads: each key/value head once for every query head that reads it
    key, value = (np.repeat(array, num_heads // num_kv_heads, axis=-3) for array in (key, value))

    # Positions: row i stands at key p_i = q_offset + i; by default the last row stands at the last key
    length = kv_len if kv_lengths is None else np.asarray(kv_lengths)[..., None, None, None]
    offset = length - q_len if q_offset is None else np.asarray(q_offset)[..., None, None, None]
    p, j = offset + np.arange(q_len)[:, None], np.arange(kv_len)

    # Visibility: -left <= j - p_i <= right (causal: right = 0), j in the chunk of p_i, and the mask agrees
    left, right = (np.inf if side is None else side for side in window or (None, None))
    visible = (j < length) & (-left <= j - p) & (j - p <= (0 if causal else right))
    visible = visible & (mask is None or mask) & (chunk is None or j // chunk == p // chunk)

    # (1) score_ij = scale * q_i . k_j
    scores = (head_dim**-0.5 if scale is None else scale) * (query @ key.swapaxes(-1, -2))  # (..., H, T, S)

    # (2) capped_ij = softcap * tanh(score_ij / softcap)
    capped = scores if softcap is None else softcap * np.tanh(scores / softcap)

    # (3) biased_ij = capped_ij - slope_h |p_i - j| + bias_ij, -inf where row i may not see key j
    slopes = 0 if alibi_slopes is None else np.asarray(alibi_slopes)[..., None, None]
    biased = np.where(visible, capped - slopes * abs(p - j) + (0 if bias is None else bias), -np.inf)

    # (4) lse_i = log(exp(sink_h) + sum_j exp(biased_ij)), the largest term m_i taken out, or exp overflows
    sink = -np.inf if sinks is None else np.asarray(sinks)[:, None]
    m = np.maximum(biased.max(axis=-1, initial=-np.inf), sink)  # (..., H, T)
    m = np.where(m == -np.inf, 0, m)
    with np.errstate(divide="ignore"):  # log(0) = -inf in a row that sees nothing
        lse = m + np.log(np.exp(sink - m) + np.exp(biased - m[..., None]).sum(axis=-1))

    # (5) weight_ij = exp(biased_ij - lse_i); all 0 in a row that sees nothing, where lse_i = -inf
    weights = np.exp(biased - np.where(lse == -np.inf, 0, lse)[..., None])

    # (6) output_i = sum_j weight_ij v_j; dropout: sum_j weight_ij keep_ij / (1 - rate) v_j
    kept = weights if dropout_mask is None else weights * dropout_mask / (1 - dropout_rate)
    return kept @ value, lse  # (..., H, T, S) @ (..., H, S, E) -> (..., H, T, E)


def latent_attention_with_lse(
    q_nope, q_rope, kv_latent, k_rope, w_uk, w_uv, *, form="absorb", scale=None, **options
):
    """Multi-head Latent Attention: all heads share one latent c_j and one rotated key r_j a token.

    expand:  score_ij = scale * (q_i . (W_uk c_j) + s_i . r_j)      output_i = sum_j weight_ij (W_uv c_j)
    absorb:  score_ij = scale * ((W_uk^T q_i) . c_j + s_i . r_j)    output_i = W_uv (sum_j weight_ij c_j)

    DeepSeek-AI 2024, "DeepSeek-V2", section 2.1 (equations 9 to 19) and appendix C.

    Parameters
    ----------
    q_nope, q_rope : array_like, shapes (..., H, T, N) and (..., H, T, R); above q and s
    kv_latent, k_rope : array_like, shapes (..., S, C) and (..., S, R); above c and r
    w_uk, w_uv : array_like, shapes (H, N, C) and (H, E, C); above W_uk and W_uv of one head

    Returns
    -------
    output, lse : as `attention_with_lse`
    """
    q, s, c, r, w_uk, w_uv = (np.asarray(x, float) for x in (q_nope, q_rope, kv_latent, k_rope, w_uk, w_uv))
    c, r = c[..., None, :, :], r[..., None, :, :]  # one key/value head for all query heads
    scale = (q.shape[-1] + s.shape[-1]) ** -0.5 if scale is None else scale  # N + R, in both forms
    if form == "expand":  # Multi-Head Attention: keys [W_uk c_j, r_j], values W_uv c_j
        query, value = np.concatenate([q, s], axis=-1), c @ w_uv.swapaxes(-1, -2)
        key = np.concatenate([c @ w_uk.swapaxes(-1, -2), np.repeat(r, len(w_uk), axis=-3)], axis=-1)
        return attention_with_lse(query, key, value, scale=scale, **options)
    # absorb: Multi-Query Attention, queries [W_uk^T q_i, s_i], keys [c_j, r_j], values c_j
    query, key = np.concatenate([q @ w_uk, s], axis=-1), np.concatenate([c, r], axis=-1)
    output, lse = attention_with_lse(query, key, c, scale=scale, **options)
    return output @ w_uv.swapaxes(-1, -2), lse
