"""What attention computes, reads and stores as weights: FLOPs, arithmetic intensity, and where MLA's forms
cross over.

decode intensity    FLOPs / bytes of one step  ->  (2 / bytes per element) * q_len * heads / kv_heads
MLA, per token      absorb  heads * q_len * (2 latent + rope)    + once per query row: the up-projections
                    expand  heads * q_len * (nope + rope + v)    + once per cached token: the up-projections
"""

from fractions import Fraction

from refattn.calls.checks import checked_integer
from refattn.models import AttentionShape


def decode_intensity(
    shape: AttentionShape,
    kv_len: int | None = None,
    q_len: int = 1,
    bytes_per_element: float = 2,
    cache_bytes_per_token: int | None = None,
) -> float:
    """Arithmetic intensity of attention while decoding: FLOPs per byte moved, in one layer of one sequence.

    The cache is read once, the queries are read and the outputs written; weights are not counted. MLA is
    computed in its absorbed form, where a token's cached latent serves as key and value of all heads.

    Parameters
    ----------
    shape : AttentionShape
    kv_len : int or None
        Cached tokens; the limit of a long context when None.
    q_len : int
        Query rows per sequence: 1, or more with speculative decoding.
    bytes_per_element : float
    cache_bytes_per_token : int or None
        Bytes one layer caches per token, where that is not elements times `bytes_per_element` (see
        `refattn.sizes.fp8_bytes`).

    Returns
    -------
    float
        FLOP per byte. The limit is (2 / bytes_per_element) * q_len * heads / kv_heads for MHA, GQA and MQA.

    References
    ----------
    FlashMLA, docs/20250422-new-kernel-deep-dive.md; Zadouri et al., arXiv 2505.21487, sec. 3.

    Examples
    --------
    >>> from refattn.models import MODELS
    >>> decode_intensity(MODELS["falcon-7b"]), round(decode_intensity(MODELS["deepseek-v3"]), 2)
    (71.0, 241.78)
    """
    rows = checked_integer(q_len, "q_len", 1) * shape.num_heads
    if shape.kv_lora_rank is not None:
        width = 2 * shape.kv_lora_rank + shape.qk_rope_head_dim
    else:
        width = shape.head_dim + shape.v_head_dim
    if cache_bytes_per_token is None:
        cache_bytes_per_token = bytes_per_element * shape.cached_per_token
    query_and_output = (
        0 if kv_len is None else bytes_per_element * rows * width / checked_integer(kv_len, "kv_len", 1)
    )
    return 2 * rows * width / (cache_bytes_per_token + query_and_output)


def ridge_point(flops_per_second: float, bytes_per_second: float) -> float:
    """Intensity (FLOP per byte) above which a machine is limited by arithmetic and below which by memory."""
    return flops_per_second / bytes_per_second


def latent_attention_flops(
    shape: AttentionShape, q_len: int, kv_len: int, form: str = "absorb", expanded: bool = False
) -> int:
    """FLOPs of one layer of MLA over `kv_len` cached tokens, projections of the hidden state left out.

    Parameters
    ----------
    shape : AttentionShape
        Of an MLA model.
    q_len, kv_len : int
    form : {"absorb", "expand"}
        "absorb" folds the up-projections into query and output and attends over latents (MQA form, for
        decoding); "expand" rebuilds every head's keys and values from the latents (MHA form, for
        prefill).
    expanded : bool
        The up-projections' work is not counted: keys and values are already expanded, or the query
        already absorbed and the output left in the latent space.

    Returns
    -------
    int

    Raises
    ------
    ValueError
        `form` is neither, or the shape has no latent.

    Examples
    --------
    >>> from refattn.models import MODELS
    >>> v3 = MODELS["deepseek-v3"]
    >>> [latent_attention_flops(v3, 1, 1, form, expanded=True) for form in ("absorb", "expand")]
    [278528, 81920]
    """
    nope, rope, v, latent = _latent_dims(shape)
    if form not in ("absorb", "expand"):
        raise ValueError(f'form must be "absorb" or "expand"; got {form!r}.')
    q_len, kv_len = checked_integer(q_len, "q_len", 0), checked_integer(kv_len, "kv_len", 0)
    width = 2 * latent + rope if form == "absorb" else nope + rope + v
    projected = 0 if expanded else latent * (nope + v) * (q_len if form == "absorb" else kv_len)
    return 2 * shape.num_heads * (q_len * kv_len * width + projected)


def absorb_crossover(shape: AttentionShape, kv_len: int | None = None) -> float:
    """Query rows above which MLA's expanded form takes fewer FLOPs than its absorbed form.

    Both forms counted whole, as in `latent_attention_flops`; the limit of a long context when `kv_len` is
    None.

    Examples
    --------
    >>> from refattn.models import MODELS
    >>> [round(absorb_crossover(MODELS["deepseek-v3"], n), 1) for n in (64, 512, 4096, None)]
    [46.5, 128.0, 163.8, 170.7]
    """
    nope, _rope, v, latent = _latent_dims(shape)
    projection, saved = latent * (nope + v), 2 * latent - nope - v
    if kv_len is None:
        return projection / saved if saved > 0 else float("inf")
    denominator = projection + saved * checked_integer(kv_len, "kv_len", 1)
    return projection * kv_len / denominator if denominator > 0 else float("inf")


def _latent_dims(shape: AttentionShape) -> tuple[int, int, int, int]:
    if shape.kv_lora_rank is None:
        raise ValueError(f"shape must have a latent (kv_lora_rank); got shape.variant={shape.variant!r}.")
    return shape.qk_nope_head_dim, shape.qk_rope_head_dim, shape.v_head_dim, shape.kv_lora_rank


def attention_parameters(d_model: int, num_heads: int, num_kv_heads: int, head_dim: int) -> int:
    """Weights of the query, key, value and output projections of one layer, without biases."""
    return 2 * d_model * head_dim * (num_heads + num_kv_heads)


def latent_attention_parameters(shape: AttentionShape, d_model: int, q_lora_rank: int | None = None) -> int:
    """Weights of one layer of MLA: all projections and the norms of the latents, without biases.

    `q_lora_rank` is None where queries are projected straight from the hidden state (DeepSeek-V2-Lite).

    Examples
    --------
    >>> from refattn.models import MODELS
    >>> latent_attention_parameters(MODELS["deepseek-v3"], 7168, q_lora_rank=1536)
    187107328
    """
    nope, rope, v, latent = _latent_dims(shape)
    query = shape.num_heads * (nope + rope)
    queries = d_model * query if q_lora_rank is None else (d_model + query + 1) * q_lora_rank
    keys_values = d_model * (latent + rope) + latent * (shape.num_heads * (nope + v) + 1)
    return queries + keys_values + shape.num_heads * v * d_model


def matched_d_ff(
    d_model: int,
    d_ff: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    attention_layers: int,
    ffn_layers: int,
) -> Fraction:
    """Feed-forward width that gives a model with fewer heads the parameters of one with d_model / head_dim
    full ones.

    The parameter matching of Shazeer 2019 (arXiv 1911.02150), sec. 4: what attention saves, the
    feed-forward layers (two matrices d_model by d_ff each) get.

    Examples
    --------
    >>> int(matched_d_ff(1024, 4096, 8, 1, 128, attention_layers=18, ffn_layers=12))
    5440
    """
    saved = 4 * d_model**2 - attention_parameters(d_model, num_heads, num_kv_heads, head_dim)
    return d_ff + Fraction(saved * attention_layers, 2 * d_model * ffn_layers)


def incremental_memory_ratio(
    batch: int, length: int, d_model: int, num_heads: int, num_kv_heads: int
) -> float:
    """Elements read per multiply-add of generating `length` tokens with one attention layer (Shazeer 2019,
    sec. 2.4, 3.1).

    The cache is on average half full, head_dim is d_model / num_heads.

    Examples
    --------
    >>> [round(incremental_memory_ratio(128, 128, 1024, 8, kv), 4) for kv in (8, 1)]
    [0.0379, 0.014]
    """
    head_dim = d_model // num_heads
    weights = attention_parameters(d_model, num_heads, num_kv_heads, head_dim)
    cache_read = batch * length * num_kv_heads * head_dim
    return (cache_read + weights) / (batch * weights + batch * length * d_model)
