"""Bad calls of `attention`, `attention_with_lse` and `attention_steps`."""

import math

import numpy as np
from fake_gpu import FakeGpu

from bad_calls.call import endless, real, table, yes

GOOD = {"query": real(2, 6, 4, 8), "key": real(2, 3, 5, 8), "value": real(2, 3, 5, 7)}

LAYOUT = "the last ones (heads, length, dim)"
FLOATING = "must be float16, bfloat16, float32 or float64"
REAL = "must be an array of real numbers"
SCORES = "(..., heads, q_len, kv_len)=(2, 6, 4, 5)"
PER_HEAD = "alibi_slopes must have shape (6,) or (2, 6)"

BAD = table(
    "attention",
    # kind and dtype
    (
        "query integer",
        {"query": np.ones((2, 6, 4, 8), int)},
        TypeError,
        f"query {FLOATING}; got query.dtype=int64. Cast it with np.asarray(query, np.float32).",
    ),
    (
        "key bool",
        {"key": yes(2, 3, 5, 8)},
        TypeError,
        f"key {FLOATING}; got key.dtype=bool. Cast it with np.asarray(key, np.float32).",
    ),
    (
        "value complex",
        {"value": np.ones((2, 3, 5, 7), complex)},
        TypeError,
        f"value {REAL}; got value.dtype=complex128.",
    ),
    (
        "query object",
        {"query": np.full((2, 6, 4, 8), None)},
        TypeError,
        f"query {REAL}; got query.dtype=object.",
    ),
    ("key strings", {"key": np.full((2, 3, 5, 8), "a")}, TypeError, f"key {REAL}; got key.dtype=<U1."),
    ("query none", {"query": None}, TypeError, f"query {REAL}; got query=None."),
    ("value text", {"value": "value"}, TypeError, f"value {REAL}; got type(value)=str."),
    ("key dict", {"key": {}}, TypeError, f"key {REAL}; got type(key)=dict."),
    (
        "query on a gpu",
        {"query": FakeGpu()},
        TypeError,
        "query must be in CPU memory; got query.device=cuda:0. Pass query.cpu() (cupy: query.get(), jax: "
        "jax.device_get(query)).",
    ),
    (
        "value on a gpu",
        {"value": FakeGpu(10, 1)},
        TypeError,
        "value must be in CPU memory; got value.device=rocm:1. Pass value.cpu() (cupy: value.get(), jax: "
        "jax.device_get(value)).",
    ),
    (
        "key masked",
        {"key": np.ma.array(real(2, 3, 5, 8))},
        TypeError,
        "key must be a plain array; got type(key)=MaskedArray, whose mask would be lost. Pass "
        "key.filled(0) and say what may be attended with mask=.",
    ),
    (
        "query ragged",
        {"query": [[[[1.0, 2.0], [3.0]]]]},
        TypeError,
        "query must be rectangular; got nested sequences of different lengths. Pad the shorter ones.",
    ),
    # rank
    (
        "query without heads",
        {"query": real(4, 8)},
        ValueError,
        f"query must have at least 3 axes, {LAYOUT}; got query.shape=(4, 8).",
    ),
    ("key number", {"key": 1.0}, ValueError, f"key must have at least 3 axes, {LAYOUT}; got key.shape=()."),
    (
        "value vector",
        {"value": real(7)},
        ValueError,
        f"value must have at least 3 axes, {LAYOUT}; got value.shape=(7,).",
    ),
    (
        "batch axis missing",
        {"key": real(3, 5, 8), "value": real(3, 5, 7)},
        ValueError,
        "query, key and value must have the same number of axes; got query.ndim=4, key.ndim=3, value.ndim=3.",
    ),
    # how shapes relate
    (
        "batch of the key",
        {"key": real(1, 3, 5, 8)},
        ValueError,
        "query, key and value must have the same batch axes; got query.shape=(2, 6, 4, 8), key.shape=(1, "
        "3, 5, 8), value.shape=(2, 3, 5, 7).",
    ),
    (
        "batch of the value",
        {"value": real(3, 3, 5, 7)},
        ValueError,
        "query, key and value must have the same batch axes; got query.shape=(2, 6, 4, 8), key.shape=(2, "
        "3, 5, 8), value.shape=(3, 3, 5, 7).",
    ),
    (
        "head ratio",
        {"query": real(2, 7, 4, 8)},
        ValueError,
        "num_heads must be a multiple of num_kv_heads, both at least 1; got query heads 7, key heads 3.",
    ),
    (
        "more key heads than query heads",
        {"query": real(2, 1, 4, 8)},
        ValueError,
        "num_heads must be a multiple of num_kv_heads, both at least 1; got query heads 1, key heads 3.",
    ),
    (
        "no query heads",
        {"query": real(2, 0, 4, 8)},
        ValueError,
        "num_heads must be a multiple of num_kv_heads, both at least 1; got query heads 0, key heads 3.",
    ),
    (
        "no key heads",
        {"key": real(2, 0, 5, 8), "value": real(2, 0, 5, 7)},
        ValueError,
        "num_heads must be a multiple of num_kv_heads, both at least 1; got query heads 6, key heads 0.",
    ),
    (
        "head_dim",
        {"query": real(2, 6, 4, 9)},
        ValueError,
        "query and key must have the same head_dim >= 1; got query head_dim 9, key head_dim 8.",
    ),
    (
        "head_dim of 0",
        {"query": real(2, 6, 4, 0), "key": real(2, 3, 5, 0)},
        ValueError,
        "query and key must have the same head_dim >= 1; got query head_dim 0, key head_dim 0.",
    ),
    (
        "value length",
        {"value": real(2, 3, 6, 7)},
        ValueError,
        "value must have shape (2, 3, 5, any) to match key; got value.shape=(2, 3, 6, 7).",
    ),
    (
        "value heads",
        {"value": real(2, 6, 5, 7)},
        ValueError,
        "value must have shape (2, 3, 5, any) to match key; got value.shape=(2, 6, 5, 7).",
    ),
    (
        "value as (length, heads)",
        {"value": real(2, 5, 3, 7)},
        ValueError,
        "value must have shape (2, 3, 5, any) to match key; got value.shape=(2, 5, 3, 7). The layout is "
        "(..., heads, length, dim).",
    ),
    # bias, mask, dropout_mask
    (
        "mask of three axes",
        {"mask": yes(2, 4, 5)},
        ValueError,
        "mask must have at most 2 axes or all 4 of (..., heads, q_len, kv_len); got mask.ndim=3. "
        "Write mask[:, None] for one mask a batch entry, mask[None] for one a head.",
    ),
    (
        "bias of three axes",
        {"bias": real(6, 4, 5)},
        ValueError,
        "bias must have at most 2 axes or all 4 of (..., heads, q_len, kv_len); got bias.ndim=3. "
        "Write bias[:, None] for one bias a batch entry, bias[None] for one a head.",
    ),
    (
        "mask of five axes",
        {"mask": yes(1, 2, 6, 4, 5)},
        ValueError,
        "mask must have at most 2 axes or all 4 of (..., heads, q_len, kv_len); got mask.ndim=5.",
    ),
    (
        "mask of key length",
        {"mask": yes(4, 6)},
        ValueError,
        f"mask must broadcast to {SCORES}; got mask.shape=(4, 6).",
    ),
    (
        "mask transposed",
        {"mask": yes(5, 4)},
        ValueError,
        f"mask must broadcast to {SCORES}; got mask.shape=(5, 4).",
    ),
    (
        "mask empty",
        {"mask": yes(4, 0)},
        ValueError,
        f"mask must broadcast to {SCORES}; got mask.shape=(4, 0).",
    ),
    (
        "mask per batch as a pair",
        {"mask": yes(2, 5)},
        ValueError,
        f"mask must broadcast to {SCORES}; got mask.shape=(2, 5).",
    ),
    (
        "bias per key head",
        {"bias": real(2, 3, 4, 5)},
        ValueError,
        f"bias must broadcast to {SCORES}; got bias.shape=(2, 3, 4, 5).",
    ),
    (
        "bias of another batch",
        {"bias": real(3, 1, 1, 5)},
        ValueError,
        f"bias must broadcast to {SCORES}; got bias.shape=(3, 1, 1, 5).",
    ),
    (
        "dropout mask shape",
        {"dropout_mask": yes(4, 4), "dropout_rate": 0.5},
        ValueError,
        f"dropout_mask must broadcast to {SCORES}; got dropout_mask.shape=(4, 4).",
    ),
    # heads
    (
        "alibi of the wrong length",
        {"alibi_slopes": real(3)},
        ValueError,
        f"{PER_HEAD}; got alibi_slopes.shape=(3,).",
    ),
    ("alibi number", {"alibi_slopes": 0.5}, ValueError, f"{PER_HEAD}; got alibi_slopes.shape=()."),
    (
        "alibi of another batch",
        {"alibi_slopes": real(1, 6)},
        ValueError,
        f"{PER_HEAD}; got alibi_slopes.shape=(1, 6).",
    ),
    (
        "alibi nan",
        {"alibi_slopes": [0.0, 1.0, math.nan, 0.0, 0.0, 0.0]},
        ValueError,
        "alibi_slopes must be finite; got alibi_slopes[2]=nan.",
    ),
    (
        "alibi inf",
        {"alibi_slopes": [[0.0] * 6, [0.0] * 5 + [-math.inf]]},
        ValueError,
        "alibi_slopes must be finite; got alibi_slopes[1, 5]=-inf.",
    ),
    (
        "sinks of the wrong length",
        {"sinks": real(3)},
        ValueError,
        "sinks must have shape (6,), one logit a query head; got sinks.shape=(3,).",
    ),
    (
        "sinks per batch",
        {"sinks": real(2, 6)},
        ValueError,
        "sinks must have shape (6,), one logit a query head; got sinks.shape=(2, 6).",
    ),
    (
        "sinks nan",
        {"sinks": [0.0, math.nan, 0.0, 0.0, 0.0, 0.0]},
        ValueError,
        "sinks must be finite or -inf; got sinks[1]=nan.",
    ),
    ("sinks inf", {"sinks": [math.inf] * 6}, ValueError, "sinks must be finite or -inf; got sinks[0]=inf."),
    # lengths and offsets
    (
        "kv_lengths beyond the keys",
        {"kv_lengths": [5, 6]},
        ValueError,
        "kv_lengths must be between 0 and kv_len=5; got kv_lengths=6.",
    ),
    (
        "kv_lengths negative",
        {"kv_lengths": [-1, 5]},
        ValueError,
        "kv_lengths must be between 0 and kv_len=5; got kv_lengths=-1.",
    ),
    (
        "kv_lengths per head",
        {"kv_lengths": [5] * 6},
        ValueError,
        "kv_lengths must be an integer or have shape (2,); got kv_lengths.shape=(6,).",
    ),
    (
        "kv_lengths column",
        {"kv_lengths": [[5], [5]]},
        ValueError,
        "kv_lengths must be an integer or have shape (2,); got kv_lengths.shape=(2, 1).",
    ),
    (
        "q_offset float",
        {"q_offset": 1.0},
        TypeError,
        "q_offset must be integer; got q_offset.dtype=float64. Cast it with np.asarray(q_offset, np.int64).",
    ),
    (
        "q_offset too large",
        {"q_offset": 2**53 + 1},
        ValueError,
        "q_offset must be between -2**53 and 2**53; got q_offset=9007199254740993.",
    ),
    (
        "q_offset too small",
        {"q_offset": [0, -(2**53) - 1]},
        ValueError,
        "q_offset must be between -2**53 and 2**53; got q_offset=-9007199254740993.",
    ),
    (
        "q_offset beyond int64",
        {"q_offset": 2**64},
        ValueError,
        f"q_offset must fit in int64; got q_offset={2**64}.",
    ),
    (
        "q_offset per head",
        {"q_offset": [0] * 6},
        ValueError,
        "q_offset must be an integer or have shape (2,); got q_offset.shape=(6,).",
    ),
    # sizes
    (
        "output too large",
        {"query": endless(2, 6, 2**40, 8)},
        MemoryError,
        "output and lse must fit in memory; got sizes that need 786432.0 GiB and 4.0 GiB are available.",
    ),
)
