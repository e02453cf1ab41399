"""Mistakes of latent calls: scales, the rotary part, slices of the weights."""

from dataclasses import replace

import numpy as np

from refattn.oracle.mistakes.record import Mistake


def _latent(**changes):
    """Changed fields of the problem; each change takes the problem."""
    return lambda p: replace(p, **{name: change(p) for name, change in changes.items()})


def _latent_scale(value):
    return _latent(scale=lambda p: float(value(p)))


def _widths(p):
    return p.q_nope.shape[-1], p.q_rope.shape[-1], p.kv_latent.shape[-1]


def _halves_swapped(x):
    half = x.shape[-1] // 2
    return np.concatenate([x[..., half:], x[..., :half]], axis=-1)


def _reordered(x):
    """Interleaved pairs written half by half."""
    return np.concatenate([x[..., 0::2], x[..., 1::2]], axis=-1)


def _rope_first_in_key(p):
    """The key is [rope, nope]: the query moved against it gives the same products."""
    query, rope = np.concatenate([p.q_nope, p.q_rope], axis=-1), p.q_rope.shape[-1]
    return replace(p, q_nope=query[..., rope:], q_rope=query[..., :rope])


def _key_weights_of_first_head(p):
    """The key weights of head 0 serve all heads."""
    return np.broadcast_to(p.w_uk[:1], p.w_uk.shape)


def _mscale_squared(p):
    """What the given scale has besides 1/sqrt(nope + rope)."""
    return p.scale * (p.q_nope.shape[-1] + p.q_rope.shape[-1]) ** 0.5


def _cached_row(p, change):
    """The rows [latent, rope] of the cache rearranged, and read as [latent, rope]."""
    rank = p.kv_latent.shape[-1]
    row = change(np.concatenate([p.kv_latent, p.k_rope], axis=-1), rank)
    return replace(p, kv_latent=row[..., :rank], k_rope=row[..., rank:])


def _values_of_last_dims(p):
    """The values are the last kv_lora_rank dims of a cache row [latent, rope], and not the first."""
    row, width = np.concatenate([p.kv_latent, p.k_rope], axis=-1), p.k_rope.shape[-1]
    nothing = lambda weights: np.zeros((*weights.shape[:-1], width), weights.dtype)
    return replace(
        p,
        kv_latent=row,
        w_uk=np.concatenate([p.w_uk, nothing(p.w_uk)], axis=-1),
        w_uv=np.concatenate([nothing(p.w_uv), p.w_uv], axis=-1),
    )


def _reshaped(array):
    """(H, N, C) read from a buffer laid out (N, H, C)."""
    h, n, c = array.shape
    return array.reshape(n, h, c).swapaxes(0, 1)


def _latent_mistake(*row, **more):
    return Mistake(*row, form="latent", **more)


LATENT = (
    _latent_mistake(
        "mla_scale_of_latent_width",
        "the scale is 1/sqrt(kv_lora_rank + qk_rope_head_dim)",
        "scale=(kv_lora_rank + qk_rope_head_dim) ** -0.5",
        change_call=_latent_scale(lambda p: (_widths(p)[2] + _widths(p)[1]) ** -0.5),
        issues=("deepseek-ai/FlashMLA default", "vllm-project/vllm #41569"),
    ),
    _latent_mistake(
        "mla_scale_of_latent_rank",
        "the scale is 1/sqrt(kv_lora_rank)",
        "scale=kv_lora_rank ** -0.5",
        change_call=_latent_scale(lambda p: _widths(p)[2] ** -0.5),
    ),
    _latent_mistake(
        "mla_scale_of_nope",
        "the scale is 1/sqrt(qk_nope_head_dim): the rotary part is forgotten",
        "scale=qk_nope_head_dim ** -0.5",
        change_call=_latent_scale(lambda p: _widths(p)[0] ** -0.5),
    ),
    _latent_mistake(
        "mla_scale_without_mscale",
        "the given scale (with mscale squared) is ignored",
        "scale=None",
        needs=("own mla scale",),
        change_call=_latent_scale(lambda p: (_widths(p)[0] + _widths(p)[1]) ** -0.5),
        issues=("huggingface/transformers #47435", "onnxruntime/mobius #548"),
    ),
    _latent_mistake(
        "mla_scale_with_mscale_once",
        "mscale is applied once instead of squared",
        "scale=mscale / sqrt(nope + rope)",
        needs=("own mla scale",),
        change_call=_latent_scale(lambda p: (abs(p.scale) * (_widths(p)[0] + _widths(p)[1]) ** -0.5) ** 0.5),
        issues=("NVIDIA/Megatron-LM #1429",),
    ),
    _latent_mistake(
        "mla_rope_dropped",
        "the rotary part is missing from the scores",
        change_call=_latent(q_rope=lambda p: np.zeros_like(p.q_rope)),
    ),
    _latent_mistake(
        "mla_nope_dropped",
        "the part without rotation is missing from the scores",
        change_call=_latent(q_nope=lambda p: np.zeros_like(p.q_nope)),
    ),
    _latent_mistake(
        "mla_rope_halves_swapped",
        "the halves of the rotary query are swapped",
        change_call=_latent(q_rope=lambda p: _halves_swapped(p.q_rope)),
    ),
    _latent_mistake(
        "mla_rope_layouts_mixed",
        "the rotary query is in half order, the rotary key interleaved",
        change_call=_latent(q_rope=lambda p: _reordered(p.q_rope)),
        issues=("modular/modular #5647", "hw-native-sys/pypto-lib #244"),
    ),
    _latent_mistake(
        "mla_rope_first_in_key",
        "the key is [rope, nope], the query [nope, rope]",
        change_call=_rope_first_in_key,
        issues=("DeepSeek-V3.2 indexer order",),
    ),
    _latent_mistake(
        "mla_mscale_on_rope_twice",
        "mscale squared is in the scale and once more on the rotary part",
        "divide the rotary query by mscale squared",
        needs=("own mla scale",),
        change_call=_latent(q_rope=lambda p: p.q_rope.astype(np.float64) * _mscale_squared(p)),
        issues=("kekzl/imp #880",),
    ),
    _latent_mistake(
        "mla_latent_and_rope_swapped",
        "rows of the cache are [rope, latent] where [latent, rope] is read",
        change_call=lambda p: _cached_row(p, lambda row, rank: np.roll(row, row.shape[-1] - rank, axis=-1)),
        issues=("FlashInfer 576 = ckv | kpe",),
    ),
    _latent_mistake(
        "mla_values_of_last_dims",
        "the values are the last kv_lora_rank dims of the cache row, not the first",
        change_call=_values_of_last_dims,
    ),
    _latent_mistake(
        "mla_key_weights_of_first_head",
        "every head uses w_uk of head 0",
        change_call=_latent(w_uk=_key_weights_of_first_head),
    ),
    _latent_mistake(
        "mla_value_weights_of_first_head",
        "every head uses w_uv of head 0",
        change_call=_latent(w_uv=lambda p: np.broadcast_to(p.w_uv[:1], p.w_uv.shape)),
    ),
    _latent_mistake(
        "mla_value_weights_sliced_wrong",
        "w_uv is read as (v_head_dim, heads, rank)",
        change_call=_latent(w_uv=lambda p: _reshaped(p.w_uv)),
        issues=("larql/larql #96", "deepseek-ai/DeepSeek-V3 #848"),
    ),
    _latent_mistake(
        "mla_key_weights_sliced_wrong",
        "w_uk is read as (nope, heads, rank)",
        change_call=_latent(w_uk=lambda p: _reshaped(p.w_uk)),
        issues=("ROCm/rocm-libraries #9442",),
    ),
)
