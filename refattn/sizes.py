"""How much a key/value cache holds, by formula; `refattn kv` prints it for any model
(`refattn.commands.kv`).

elements per token      MHA, GQA, MQA   layers * kv_heads * (head_dim + v_head_dim)
                        MLA             layers * (kv_lora_rank + qk_rope_head_dim)
"""

from dataclasses import replace
from fractions import Fraction

from refattn.calls.checks import checked_integer
from refattn.models import AttentionShape


def elements_per_token(shape: AttentionShape) -> int:
    """Elements all layers cache for one token (DeepSeek-V2 report, arXiv 2405.04434, table 1).

    Layers with a window count like the others: each writes every token, and forgets the old ones.

    Examples
    --------
    >>> from refattn.models import MODELS
    >>> elements_per_token(MODELS["llama3-8b"]), elements_per_token(MODELS["deepseek-v3"])
    (65536, 35136)
    """
    return shape.num_layers * shape.cached_per_token


def cache_elements(shape: AttentionShape, context: int, batch: int = 1) -> int:
    """Elements in the cache of `batch` sequences of `context` tokens; windowed layers keep the newest
    `window` only.

    Examples
    --------
    >>> from refattn.models import MODELS
    >>> cache_elements(MODELS["gpt-oss-20b"], 8192) // (24 * 1024)    # half the layers keep 128 tokens
    4160
    """
    context, batch = checked_integer(context, "context", 0), checked_integer(batch, "batch", 0)
    windowed = shape.window_layers or 0
    tokens = (shape.num_layers - windowed) * context + windowed * min(context, shape.window or context)
    return batch * tokens * shape.cached_per_token


def cache_bytes(shape: AttentionShape, context: int, batch: int = 1, bits: int = 16) -> Fraction:
    """Bytes of that cache at `bits` per element, without the scales of quantised formats (see `fp8_bytes`).

    Returns
    -------
    Fraction
        Exact, also for 6-bit caches; an integer value compares and prints as one.
    """
    return Fraction(cache_elements(shape, context, batch) * checked_integer(bits, "bits", 1), 8)


def fp8_bytes(narrow: int, wide: int = 0, tile: int = 128) -> int:
    """Bytes of one token stored as `narrow` 8-bit elements, one float32 scale per `tile` of them, and
    `wide` bfloat16.

    FlashMLA's layout for DeepSeek-V3.2 keeps the latent narrow and the rotary key wide (flash_mla README).

    Examples
    --------
    >>> fp8_bytes(512, wide=64), fp8_bytes(128)    # MLA cache; key of the sparse-attention indexer
    (656, 132)
    """
    return narrow + 4 * -(-narrow // tile) + 2 * wide


def equivalent_kv_heads(shape: AttentionShape) -> Fraction:
    """Key/value heads a GQA cache of the same size would have: 2.25 for DeepSeek's latents (report, table
    1).

    Examples
    --------
    >>> from refattn.models import MODELS
    >>> float(equivalent_kv_heads(MODELS["deepseek-v2"]))
    2.25
    """
    head_dim = shape.head_dim if shape.kv_lora_rank is None else shape.qk_nope_head_dim
    return Fraction(shape.cached_per_token, head_dim + shape.v_head_dim)


def alternatives(shape: AttentionShape) -> dict[str, AttentionShape]:
    """The same model with each kind of attention, its own kind included, from the largest cache to the
    smallest.

    GQA keeps the model's key/value heads if it has some, else 8 (the choice of Ainslie et al., arXiv
    2305.13245) or the nearest smaller divisor of the query heads; it is left out when there is none
    between 1 and all of them. MLA takes DeepSeek-V2's proportions, latent 4 * head_dim and rotary key
    head_dim / 2.

    Examples
    --------
    >>> from refattn.models import MODELS
    >>> [(kind, elements_per_token(s)) for kind, s in alternatives(MODELS["llama3-8b"]).items()]
    [('MHA', 262144), ('GQA', 65536), ('MLA', 18432), ('MQA', 8192)]
    """
    latent = shape.kv_lora_rank is not None
    head_dim = shape.qk_nope_head_dim if latent else shape.head_dim
    plain = replace(
        shape,
        num_kv_heads=shape.num_heads,
        head_dim=head_dim,
        kv_lora_rank=None,
        qk_nope_head_dim=None,
        qk_rope_head_dim=None,
    )
    shapes = {"MHA": plain, "MQA": replace(plain, num_kv_heads=1)}
    if shape.variant == "GQA":
        shapes["GQA"] = shape
    else:
        groups = [g for g in range(2, 9) if shape.num_heads % g == 0 and g < shape.num_heads]
        if groups:
            shapes["GQA"] = replace(plain, num_kv_heads=groups[-1])
    shapes["MLA"] = (
        shape
        if latent
        else replace(
            shape,
            num_kv_heads=None,
            head_dim=None,
            kv_lora_rank=4 * head_dim,
            qk_nope_head_dim=head_dim,
            qk_rope_head_dim=head_dim // 2,
        )
    )
    return dict(sorted(shapes.items(), key=lambda kind: -elements_per_token(kind[1])))
