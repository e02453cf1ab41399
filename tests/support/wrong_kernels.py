"""Wrong attention kernels written by hand from textbook formulas, sharing nothing with the catalogue that
has to recognise them.

Each takes query (B, H, T, D), key (B, K, S, D), value (B, K, S, E) and keywords, and returns (output,
lse).
"""

import numpy as np


def softmax_attention(scores, value):
    """Right from the scores on; scores (B, H, T, S), value (B, H, S, E)."""
    top = scores.max(-1, keepdims=True)
    weights = np.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    return weights / total @ value, (top + np.log(total))[..., 0]


def repeated(query, key, value):
    group = query.shape[1] // key.shape[1]
    return np.repeat(key, group, axis=1), np.repeat(value, group, axis=1)


def products(query, key):
    return np.einsum("bhtd,bhsd->bhts", query, key)


def textbook(query, key, value, causal=False, scale=None, offset=None):
    """Correct attention: what the wrong ones deviate from."""
    key, value = repeated(query, key, value)
    scores = products(query, key) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        offset = key.shape[2] - query.shape[2] if offset is None else offset
        rows, keys = np.indices(scores.shape[-2:])
        scores = np.where(keys <= rows + offset, scores, -np.inf)
    return softmax_attention(scores, value)


def top_left(query, key, value):
    return textbook(query, key, value, causal=True, offset=0)


def strictly_lower(query, key, value):
    return textbook(query, key, value, causal=True, offset=key.shape[2] - query.shape[2] - 1)


def no_causal(query, key, value):
    return textbook(query, key, value)


def tiled_heads(query, key, value):
    copies = (1, query.shape[1] // key.shape[1], 1, 1)
    return textbook(query, np.tile(key, copies), np.tile(value, copies))


def unscaled(query, key, value):
    return textbook(query, key, value, scale=1.0)


def scaled_by_model_dim(query, key, value):
    return textbook(query, key, value, scale=1 / np.sqrt(query.shape[1] * query.shape[3]))


def divided_by_head_dim(query, key, value):
    return textbook(query, key, value, scale=1 / query.shape[3])


def base_two_lse(query, key, value):
    output, lse = textbook(query, key, value)
    return output, lse / np.log(2)


def powers_of_two(query, key, value):
    key, value = repeated(query, key, value)
    scores = products(query, key) / np.sqrt(query.shape[-1])
    weights = 2.0**scores
    return weights @ value / weights.sum(-1, keepdims=True), np.log(weights.sum(-1))


def written_length_first(query, key, value):
    output, lse = textbook(query, key, value)
    return np.ascontiguousarray(output.transpose(0, 2, 1, 3)).reshape(output.shape), lse


def newest_key_forgotten(query, key, value):
    return textbook(query, key[:, :, :-1], value[:, :, :-1])


def first_key_forgotten(query, key, value):
    return textbook(query, key[:, :, 1:], value[:, :, 1:])


def zero_padding_counted(query, key, value):
    extra = -key.shape[2] % 32
    pad = lambda x: np.concatenate([x, np.zeros((*x.shape[:2], extra, x.shape[3]))], axis=2)
    return textbook(query, pad(key), pad(value))


def split_and_averaged(query, key, value):
    starts = range(0, key.shape[2], 16)
    parts = [textbook(query, key[:, :, i : i + 16], value[:, :, i : i + 16]) for i in starts]
    return np.mean([output for output, _ in parts], axis=0), np.logaddexp.reduce(
        [lse for _, lse in parts], axis=0
    )


def never_rescaled_output(query, key, value):
    key, value = repeated(query, key, value)
    scores = products(query, key) / np.sqrt(query.shape[-1])
    top, total, acc = np.full(scores.shape[:3], -np.inf), np.zeros(scores.shape[:3]), 0.0
    for i in range(0, scores.shape[-1], 16):
        new = np.maximum(top, scores[..., i : i + 16].max(-1))
        weights = np.exp(scores[..., i : i + 16] - new[..., None])
        total = total * np.exp(top - new) + weights.sum(-1)
        acc = acc + weights @ value[:, :, i : i + 16]
        top = new
    return acc / total[..., None], top + np.log(total)


def values_rolled(query, key, value):
    return textbook(query, key, np.roll(value, 1, axis=2))


def keys_for_values(query, key, value):
    return textbook(query, key, key)


def mask_upside_down(query, key, value, mask):
    key, value = repeated(query, key, value)
    return softmax_attention(np.where(mask, -np.inf, products(query, key) / np.sqrt(query.shape[-1])), value)


def mask_as_number(query, key, value, mask):
    key, value = repeated(query, key, value)
    return softmax_attention(products(query, key) / np.sqrt(query.shape[-1]) + mask, value)


def mask_with_minimum(query, key, value, mask):
    key, value = repeated(query, key, value)
    return softmax_attention(
        np.where(mask, products(query, key) / np.sqrt(query.shape[-1]), np.finfo(np.float32).min), value
    )


def window_counts_keys(query, key, value, window):
    """window[0] taken as a number of keys, the row's own included."""
    key, value = repeated(query, key, value)
    rows, keys = np.indices((query.shape[2], key.shape[2]))
    distance = rows + key.shape[2] - query.shape[2] - keys
    return softmax_attention(
        np.where(
            (distance >= 0) & (distance < window[0]),
            products(query, key) / np.sqrt(query.shape[-1]),
            -np.inf,
        ),
        value,
    )


def alibi_favours_far_keys(query, key, value, alibi_slopes):
    key, value = repeated(query, key, value)
    rows, keys = np.indices((query.shape[2], key.shape[2]))
    distance = np.abs(rows + key.shape[2] - query.shape[2] - keys)
    return softmax_attention(
        products(query, key) / np.sqrt(query.shape[-1]) + np.asarray(alibi_slopes)[:, None, None] * distance,
        value,
    )


def capped_before_scaling(query, key, value, softcap):
    key, value = repeated(query, key, value)
    return softmax_attention(
        softcap * np.tanh(products(query, key) / softcap) / np.sqrt(query.shape[-1]), value
    )


def sink_outside_lse(query, key, value, sinks):
    output, lse = textbook(query, key, value)
    return output * (1 / (1 + np.exp(np.asarray(sinks)[:, None] - lse)))[..., None], lse


def bias_scaled_too(query, key, value, bias):
    key, value = repeated(query, key, value)
    return softmax_attention((products(query, key) + bias) / np.sqrt(query.shape[-1]), value)


def dropout_without_rescale(query, key, value, dropout_mask, dropout_rate):
    key, value = repeated(query, key, value)
    scores = products(query, key) / np.sqrt(query.shape[-1])
    top = scores.max(-1, keepdims=True)
    weights = np.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    return (weights / total * dropout_mask) @ value, (top + np.log(total))[..., 0]


# (kernel, options given to our function, what diagnose should say, options the kernel takes)
CASES = (
    (top_left, {"causal": True}, "causal_top_left"),
    (strictly_lower, {"causal": True}, "causal_excludes_diagonal"),
    (no_causal, {"causal": True}, "causal_dropped"),
    (tiled_heads, {}, "heads_tiled"),
    (unscaled, {}, "scale_omitted"),
    (scaled_by_model_dim, {}, "scale_of_model_dim"),
    (divided_by_head_dim, {}, "scale_one_over_head_dim"),
    (base_two_lse, {}, "lse_base_two"),
    (powers_of_two, {}, "exponent_base_two"),
    (written_length_first, {}, "output_heads_and_rows_swapped"),
    (newest_key_forgotten, {}, "lengths_minus_one"),
    (first_key_forgotten, {}, "first_key_dropped"),
    (zero_padding_counted, {}, "tail_zeros_seen"),
    (split_and_averaged, {}, "split_merge_unweighted"),
    (never_rescaled_output, {}, "output_not_rescaled"),
    (values_rolled, {}, "value_one_row_late"),
    (keys_for_values, {}, "key_used_as_value"),
    (mask_upside_down, {"mask"}, "mask_inverted"),
    (mask_as_number, {"mask"}, "mask_added"),
    (mask_with_minimum, {"empty rows"}, "hidden_is_finite_minimum"),
    (window_counts_keys, {"left window"}, "window_left_one_less"),
    (alibi_favours_far_keys, {"alibi"}, "alibi_sign"),
    (capped_before_scaling, {"softcap"}, "softcap_before_scale"),
    (sink_outside_lse, {"sinks"}, "sinks_not_in_lse"),
    (bias_scaled_too, {"bias"}, "bias_before_scale"),
    (dropout_without_rescale, {"dropout"}, "dropout_not_rescaled"),
)
