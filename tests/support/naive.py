"""Attention by its definition: loops over Python floats, written from the formulas and independent of both
packages.

Read it as the specification. For query row i of head h, at key position p = q_offset + i, and every key j
it may see:

    score_j  = scale * sum_d q_id k_jd
    capped_j = softcap * tanh(score_j / softcap)                          (score_j without softcap)
    biased_j = capped_j - slope_h * |p - j| + bias_ij
    lse      = log(exp(sink_h) + sum_j exp(biased_j))                      (no first term without a sink)
    weight_j = exp(biased_j - lse)
    output_e = sum_j weight_j * keep_ij / (1 - rate) * v_je               (weight_j * v_je without dropout)

Row i may see key j when j < kv_length, mask_ij is true, bias_ij is not -inf, and j - p lies within the
window; causal: j <= p. A row that sees nothing has output 0 and lse -inf; with a sink its lse is the
sink. NumPy serves to index arrays and to hold results.
"""

import math
from typing import NamedTuple

import numpy as np


class Steps(NamedTuple):
    """Every step of the computation; hidden entries are NaN in scores and capped, -inf in biased, 0
    in weights.
    """

    scores: np.ndarray
    capped: np.ndarray
    biased: np.ndarray
    weights: np.ndarray
    lse: np.ndarray
    output: np.ndarray


def add_up(terms):
    """Sum, rounded once; by IEEE rules when a term is not finite."""
    terms = list(terms)
    return math.fsum(terms) if all(map(math.isfinite, terms)) else sum(terms)


def dot(a, b):
    return add_up(x * y for x, y in zip(a, b, strict=True))


def floats(vector):
    return np.asarray(vector).astype(float).tolist()


def exp(x):
    """e^x, also where x is not finite."""
    return math.exp(x) if math.isfinite(x) else {math.inf: math.inf, -math.inf: 0.0}.get(x, math.nan)


def tanh(x):
    return math.tanh(x)


def broadcast_entry(array, index):
    """Entry of an array that broadcasts, from the right, against the shape that `index` points into."""
    index = index[len(index) - array.ndim :]
    return array[tuple(0 if size == 1 else i for size, i in zip(array.shape, index, strict=True))]


def of_sequence(number, b):
    """The number of sequence b, where one number may stand for all sequences."""
    number = np.asarray(number)
    return int(number[b]) if number.ndim else int(number)


def sees(position, j, *, causal=False, window=None, chunk=None, **others):
    """Whether a row that stands at a position may see key j, if that exists."""
    left, right = window if window is not None else (None, None)
    if (causal and j > position) or (chunk is not None and j // chunk != position // chunk):
        return False
    return (left is None or j >= position - left) and (right is None or j <= position + right)


def seen(shape, options):
    """Which rows see which keys, (*batch, H, T, S) booleans; shape is theirs."""
    *batch, _, rows, keys = shape
    visible = np.zeros(shape, bool)
    for b in np.ndindex(*batch):
        length = of_sequence(options.get("kv_lengths", keys), b)
        first = of_sequence(options.get("q_offset", length - rows), b)
        for i, j in np.ndindex(rows, length):
            visible[(*b, slice(None), i, j)] = sees(first + i, j, **options)
    return visible & options.get("mask", True) & (options.get("bias", 0) != -np.inf)


def cut(options, rows=slice(None), keys=slice(None)):
    """The options with whatever belongs to a score, given at full size, cut to some rows and keys."""
    return {
        name: x[..., rows, keys] if name in ("bias", "mask", "dropout_mask") else x
        for name, x in options.items()
    }


def of_keys(shape, options, first, last):
    """The options for the keys [first, last) alone, where lengths, offsets and whatever belongs to a score
    are given at full size, (*batch, H, T, S) being `shape`.
    """
    of_part = cut(options, keys=slice(first, last))
    of_part["q_offset"] = options["q_offset"] - first
    if "chunk" in of_part:  # chunks are counted from key 0, so for other keys they are drawn
        rule = {"q_offset": options["q_offset"], "chunk": of_part.pop("chunk")}
        of_part["mask"] = seen(shape, rule)[..., first:last] & of_part.get("mask", True)
    return of_part | {"kv_lengths": np.clip(options["kv_lengths"] - first, 0, last - first)}


def attention(
    query,
    key,
    value,
    *,
    bias=None,
    mask=None,
    scale=None,
    causal=False,
    window=None,
    chunk=None,
    softcap=None,
    alibi_slopes=None,
    sinks=None,
    kv_lengths=None,
    q_offset=None,
    dropout_mask=None,
    dropout_rate=None,
):
    """query (*batch, H, T, D), key (*batch, K, S, D), value (*batch, K, S, E) to Steps."""
    *batch, num_heads, q_len, head_dim = query.shape
    num_kv_heads, kv_len, v_head_dim = value.shape[-3:]
    group_size = num_heads // num_kv_heads
    if scale is None:
        scale = 1 / math.sqrt(head_dim)

    shape = (*batch, num_heads, q_len, kv_len)
    scores, capped = np.full(shape, math.nan), np.full(shape, math.nan)
    biased, weights = np.full(shape, -math.inf), np.zeros(shape)
    lse, output = np.full(shape[:-1], -math.inf), np.zeros((*shape[:-1], v_head_dim))

    for b in np.ndindex(*batch):
        length = kv_len if kv_lengths is None else of_sequence(kv_lengths, b)
        offset = length - q_len if q_offset is None else of_sequence(q_offset, b)
        for h in range(num_heads):
            keys = [floats(key[b][h // group_size, j]) for j in range(length)]
            values = [floats(value[b][h // group_size, j]) for j in range(length)]
            slope = (
                0.0
                if alibi_slopes is None
                else float(alibi_slopes[h] if alibi_slopes.ndim == 1 else alibi_slopes[b][h])
            )
            sink = -math.inf if sinks is None else float(sinks[h])
            for i in range(q_len):
                row = (*b, h, i)
                position = offset + i
                q = floats(query[row])

                seen = []
                for j in range(length):
                    visible = sees(position, j, causal=causal, window=window, chunk=chunk)
                    visible = visible and (mask is None or bool(broadcast_entry(mask, (*row, j))))
                    if visible and not (bias is not None and broadcast_entry(bias, (*row, j)) == -math.inf):
                        seen.append(j)

                for j in seen:
                    x = scale * dot(q, keys[j])
                    scores[(*row, j)] = x
                    if softcap is not None:
                        x = softcap * tanh(x / softcap)
                    capped[(*row, j)] = x
                    extra = 0.0 if bias is None else float(broadcast_entry(bias, (*row, j)))
                    biased[(*row, j)] = add_up([x, -slope * abs(position - j), extra])

                logits = [float(biased[(*row, j)]) for j in seen] + ([sink] if sink > -math.inf else [])
                if not logits:
                    continue
                top = max(logits) if not any(map(math.isnan, logits)) else math.nan
                if top == -math.inf:
                    continue
                total = add_up(exp(x - top) for x in logits)
                lse[row] = top + math.log(total)
                for j in seen:
                    weights[(*row, j)] = exp(float(biased[(*row, j)]) - top) / total
                used = []
                for j in seen:
                    keep = 1.0
                    if dropout_mask is not None:
                        keep = float(broadcast_entry(dropout_mask, (*row, j))) / (1 - dropout_rate)
                    used.append(float(weights[(*row, j)]) * keep)
                for e in range(v_head_dim):
                    output[(*row, e)] = dot(used, [values[j][e] for j in seen])
    return Steps(scores, capped, biased, weights, lse, output)


def attention_with_lse(query, key, value, **options):
    steps = attention(query, key, value, **options)
    return steps.output, steps.lse


def merge_states(outputs, lses):
    """States over disjoint sets of keys, as (output, lse) pairs, to the state over their union."""
    shape = np.shape(outputs[0])
    lse, output = np.full(shape[:-1], -math.inf), np.zeros(shape)
    for row in np.ndindex(*shape[:-1]):
        parts = [float(part[row]) for part in lses]
        top = max(parts)
        if top == -math.inf:
            continue
        shares = [exp(part - top) for part in parts]
        lse[row] = top + math.log(add_up(shares))
        for e in range(shape[-1]):
            output[(*row, e)] = dot(shares, [float(part[(*row, e)]) for part in outputs]) / add_up(shares)
    return output, lse


def packed_attention_with_lse(query, key, value, *, cu_q, cu_kv, **options):
    """Sequence n owns query rows cu_q[n] .. cu_q[n + 1] - 1 and keys cu_kv[n] .. cu_kv[n + 1] - 1,
    and sees nothing else.
    """
    output, lse = np.zeros((*query.shape[:-1], value.shape[-1])), np.full(query.shape[:-1], -math.inf)
    for n in range(len(cu_q) - 1):
        rows, keys = slice(cu_q[n], cu_q[n + 1]), slice(cu_kv[n], cu_kv[n + 1])
        output[:, rows], lse[:, rows] = attention_with_lse(
            query[:, rows], key[:, keys], value[:, keys], **options
        )
    return output, lse


def paged_attention_with_lse(query, key_pages, value_pages, *, block_table, kv_lengths, **options):
    """Key j of sequence b stands in slot j % page_size of page block_table[b, j // page_size]; only
    keys below kv_lengths[b] exist.
    """
    batch, max_pages = block_table.shape
    _, num_kv_heads, page_size, head_dim = key_pages.shape
    key = np.zeros((batch, num_kv_heads, max_pages * page_size, head_dim))
    value = np.zeros((*key.shape[:-1], value_pages.shape[-1]))
    for b in range(batch):
        for j in range(of_sequence(kv_lengths, (b,))):
            page, slot = block_table[b, j // page_size], j % page_size
            key[b, :, j], value[b, :, j] = key_pages[page, :, slot], value_pages[page, :, slot]
    return attention_with_lse(query, key, value, kv_lengths=kv_lengths, **options)


def latent_attention_with_lse(
    q_nope, q_rope, kv_latent, k_rope, w_uk, w_uv, *, form="absorb", scale=None, **options
):
    """MLA: key j of head h is [w_uk_h c_j ; k_rope_j], its value is w_uv_h c_j, for the latent c_j."""
    *batch, num_heads, q_len, nope_dim = q_nope.shape
    kv_len, latent_dim = kv_latent.shape[-2:]
    rope_dim, v_head_dim = k_rope.shape[-1], w_uv.shape[-2]
    if scale is None:
        scale = 1 / math.sqrt(nope_dim + rope_dim)

    if form == "expand":  # multi-head attention over keys and values raised from the latent
        query = np.concatenate([q_nope, q_rope], axis=-1)
        key = np.zeros((*batch, num_heads, kv_len, nope_dim + rope_dim))
        value = np.zeros((*batch, num_heads, kv_len, v_head_dim))
        for b in np.ndindex(*batch):
            for h, j in np.ndindex(num_heads, kv_len):
                c = floats(kv_latent[b][j])
                key[b][h, j, :nope_dim] = [dot(floats(w_uk[h, n]), c) for n in range(nope_dim)]
                key[b][h, j, nope_dim:] = k_rope[b][j]
                value[b][h, j] = [dot(floats(w_uv[h, e]), c) for e in range(v_head_dim)]
        return attention_with_lse(query, key, value, scale=scale, **options)

    # "absorb": multi-query attention over [c ; k_rope] with values c, the query lowered and the output
    # raised instead
    query = np.zeros((*batch, num_heads, q_len, latent_dim + rope_dim))
    for b in np.ndindex(*batch):
        for h, i in np.ndindex(num_heads, q_len):
            query[b][h, i, :latent_dim] = [
                dot(floats(q_nope[b][h, i]), floats(w_uk[h, :, c])) for c in range(latent_dim)
            ]
            query[b][h, i, latent_dim:] = q_rope[b][h, i]
    key = np.concatenate([kv_latent, k_rope], axis=-1)[..., None, :, :]
    latent_output, lse = attention_with_lse(query, key, kv_latent[..., None, :, :], scale=scale, **options)
    output = np.zeros((*batch, num_heads, q_len, v_head_dim))
    for b in np.ndindex(*batch):
        for h, i, e in np.ndindex(*output.shape[-3:]):
            output[b][h, i, e] = dot(floats(w_uv[h, e]), floats(latent_output[b][h, i]))
    return output, lse


def block_local_attention_with_lse(query, key, value, *, block_size, mask=None, **options):
    """Self-attention in which row i and key j, both counted from the same start, see each other only
    within one block.
    """
    length = query.shape[-2]
    same_block = np.array(
        [[i // block_size == j // block_size for j in range(length)] for i in range(length)], bool
    )
    same_block = same_block.reshape(length, length)
    mask = same_block if mask is None else mask & same_block
    return attention_with_lse(query, key, value, mask=mask, q_offset=0, **options)
