"""Bad calls of `latent_attention`, `latent_attention_with_lse` and `multi_head_latent_attention`."""

import numpy as np
from fake_gpu import FakeGpu

from bad_calls.call import endless, real, table, yes

GOOD = {
    "q_nope": real(2, 6, 4, 8),
    "q_rope": real(2, 6, 4, 3),
    "kv_latent": real(2, 5, 16),
    "k_rope": real(2, 5, 3),
    "w_uk": real(6, 8, 16),
    "w_uv": real(6, 7, 16),
}

NO_HEADS = "Keys of MLA have no head axis: one latent and one k_rope serve all heads."
W_UK, W_UV = "(heads, qk_nope_head_dim, kv_lora_rank)", "(heads, v_head_dim, kv_lora_rank)"
Q_ROPE, K_ROPE = "(..., heads, length, qk_rope_head_dim)", "(..., length, qk_rope_head_dim)"
KV_LATENT = "(..., length, kv_lora_rank)"
AT_LEAST_ONE = "num_heads, qk_nope_head_dim + qk_rope_head_dim and kv_lora_rank must be at least 1"

BAD = table(
    "latent_attention",
    (
        "form unknown",
        {"form": "absorbed"},
        ValueError,
        "form must be 'absorb' or 'expand'; got form='absorbed'.",
    ),
    ("form none", {"form": None}, TypeError, "form must be 'absorb' or 'expand'; got form=None."),
    (
        "form array",
        {"form": np.array(["absorb", "expand"])},
        TypeError,
        "form must be 'absorb' or 'expand'; got form=array(['absorb', 'expand'], dtype='<U6').",
    ),
    (
        "q_nope integer",
        {"q_nope": np.ones((2, 6, 4, 8), np.uint8)},
        TypeError,
        "q_nope must be float16, bfloat16, float32 or float64; got q_nope.dtype=uint8. Cast it with "
        "np.asarray(q_nope, np.float32).",
    ),
    (
        "k_rope none",
        {"k_rope": None},
        TypeError,
        "k_rope must be an array of real numbers; got k_rope=None.",
    ),
    (
        "w_uk complex",
        {"w_uk": real(6, 8, 16) * 1j},
        TypeError,
        "w_uk must be an array of real numbers; got w_uk.dtype=complex64.",
    ),
    (
        "kv_latent on a gpu",
        {"kv_latent": FakeGpu()},
        TypeError,
        "kv_latent must be in CPU memory; got kv_latent.device=cuda:0. "
        "Pass kv_latent.cpu() (cupy: kv_latent.get(), jax: jax.device_get(kv_latent)).",
    ),
    (
        "q_nope without heads",
        {"q_nope": real(4, 8)},
        ValueError,
        "q_nope must have at least 3 axes, the last ones (heads, length, dim); got q_nope.shape=(4, 8).",
    ),
    (
        "q_rope without heads",
        {"q_rope": real(4, 3)},
        ValueError,
        "q_rope must have at least 3 axes, the last ones (heads, length, dim); got q_rope.shape=(4, 3).",
    ),
    (
        "kv_latent vector",
        {"kv_latent": real(16)},
        ValueError,
        "kv_latent must have at least 2 axes, the last ones (length, dim); got kv_latent.shape=(16,).",
    ),
    (
        "k_rope number",
        {"k_rope": 0.0},
        ValueError,
        "k_rope must have at least 2 axes, the last ones (length, dim); got k_rope.shape=().",
    ),
    (
        "w_uk of two axes",
        {"w_uk": real(48, 16)},
        ValueError,
        f"w_uk must have 3 axes {W_UK}; got w_uk.shape=(48, 16).",
    ),
    (
        "w_uv of four axes",
        {"w_uv": real(1, 6, 7, 16)},
        ValueError,
        f"w_uv must have 3 axes {W_UV}; got w_uv.shape=(1, 6, 7, 16).",
    ),
    (
        "q_rope of another length",
        {"q_rope": real(2, 6, 5, 3)},
        ValueError,
        f"q_rope must have shape {Q_ROPE}=(2, 6, 4, 3); got q_rope.shape=(2, 6, 5, 3).",
    ),
    (
        "q_rope of other heads",
        {"q_rope": real(2, 1, 4, 3)},
        ValueError,
        f"q_rope must have shape {Q_ROPE}=(2, 6, 4, 3); got q_rope.shape=(2, 1, 4, 3).",
    ),
    (
        "rope dims differ",
        {"k_rope": real(2, 5, 4)},
        ValueError,
        f"q_rope must have shape {Q_ROPE}=(2, 6, 4, 4); got q_rope.shape=(2, 6, 4, 3).",
    ),
    (
        "kv_latent of another batch",
        {"kv_latent": real(1, 5, 16)},
        ValueError,
        f"kv_latent must have shape {KV_LATENT}=(2, 5, 16); got kv_latent.shape=(1, 5, 16). {NO_HEADS}",
    ),
    (
        "k_rope with a head axis",
        {"k_rope": real(2, 1, 5, 3)},
        ValueError,
        f"k_rope must have shape {K_ROPE}=(2, 5, 3); got k_rope.shape=(2, 1, 5, 3). {NO_HEADS}",
    ),
    (
        "kv_latent with a head axis",
        {"kv_latent": real(2, 6, 5, 16)},
        ValueError,
        f"kv_latent must have shape {KV_LATENT}=(2, 5, 16); got kv_latent.shape=(2, 6, 5, 16). {NO_HEADS}",
    ),
    (
        "k_rope of another length",
        {"k_rope": real(2, 6, 3)},
        ValueError,
        f"k_rope must have shape {K_ROPE}=(2, 5, 3); got k_rope.shape=(2, 6, 3). {NO_HEADS}",
    ),
    (
        "w_uk of other heads",
        {"w_uk": real(3, 8, 16)},
        ValueError,
        f"w_uk must have shape {W_UK}=(6, 8, 16); got w_uk.shape=(3, 8, 16).",
    ),
    (
        "w_uk of another nope",
        {"w_uk": real(6, 9, 16)},
        ValueError,
        f"w_uk must have shape {W_UK}=(6, 8, 16); got w_uk.shape=(6, 9, 16).",
    ),
    (
        "w_uk transposed",
        {"w_uk": real(6, 16, 8)},
        ValueError,
        f"w_uk must have shape {W_UK}=(6, 8, 16); got w_uk.shape=(6, 16, 8). It fits with its last two axes swapped.",
    ),
    (
        "w_uv of another rank",
        {"w_uv": real(6, 7, 12)},
        ValueError,
        f"w_uv must have shape {W_UV}=(6, any, 16); got w_uv.shape=(6, 7, 12).",
    ),
    (
        "w_uv transposed",
        {"w_uv": real(6, 16, 7)},
        ValueError,
        f"w_uv must have shape {W_UV}=(6, any, 16); got w_uv.shape=(6, 16, 7). It fits with its last two axes "
        "swapped.",
    ),
    (
        "w_uv of other heads",
        {"w_uv": real(1, 7, 16)},
        ValueError,
        f"w_uv must have shape {W_UV}=(6, any, 16); got w_uv.shape=(1, 7, 16).",
    ),
    (
        "no heads",
        {
            "q_nope": real(2, 0, 4, 8),
            "q_rope": real(2, 0, 4, 3),
            "w_uk": real(0, 8, 16),
            "w_uv": real(0, 7, 16),
        },
        ValueError,
        f"{AT_LEAST_ONE}; got q_nope.shape=(2, 0, 4, 8), q_rope.shape=(2, 0, 4, 3), kv_latent.shape=(2, 5, "
        "16).",
    ),
    (
        "rank of 0",
        {"kv_latent": real(2, 5, 0), "w_uk": real(6, 8, 0), "w_uv": real(6, 7, 0)},
        ValueError,
        f"{AT_LEAST_ONE}; got q_nope.shape=(2, 6, 4, 8), q_rope.shape=(2, 6, 4, 3), kv_latent.shape=(2, 5, "
        "0).",
    ),
    (
        "mask of key length",
        {"mask": yes(4, 6)},
        ValueError,
        "mask must broadcast to (..., heads, q_len, kv_len)=(2, 6, 4, 5); got mask.shape=(4, 6).",
    ),
    (
        "kv_lengths beyond the keys",
        {"kv_lengths": 6},
        ValueError,
        "kv_lengths must be between 0 and kv_len=5; got kv_lengths=6.",
    ),
    (
        "q_offset per head",
        {"q_offset": [0] * 6},
        ValueError,
        "q_offset must be an integer or have shape (2,); got q_offset.shape=(6,).",
    ),
    (
        "sinks of the wrong length",
        {"sinks": real(1)},
        ValueError,
        "sinks must have shape (6,), one logit a query head; got sinks.shape=(1,).",
    ),
    (
        "output too large",
        {"q_nope": endless(2, 6, 2**40, 8), "q_rope": endless(2, 6, 2**40, 3)},
        MemoryError,
        "output and lse must fit in memory; got sizes that need 786432.0 GiB and 4.0 GiB are available.",
    ),
)
