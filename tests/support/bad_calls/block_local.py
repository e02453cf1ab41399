"""Bad calls of `block_local_attention` and `block_local_attention_with_lse`."""

import numpy as np
from fake_gpu import FakeGpu

from bad_calls.call import endless, real, table, yes

GOOD = {"query": real(2, 6, 5, 8), "key": real(2, 3, 5, 8), "value": real(2, 3, 5, 7), "block_size": 2}

SAME_LENGTH = "query and key must have the same length, both are cut at the same places"

BAD = table(
    "block_local_attention",
    ("block_size 0", {"block_size": 0}, ValueError, "block_size must be at least 1; got block_size=0."),
    (
        "block_size negative",
        {"block_size": -2},
        ValueError,
        "block_size must be at least 1; got block_size=-2.",
    ),
    (
        "block_size float",
        {"block_size": 2.0},
        TypeError,
        "block_size must be an integer; got block_size=2.0 of type float.",
    ),
    (
        "block_size bool",
        {"block_size": True},
        TypeError,
        "block_size must be an integer; got block_size=True of type bool.",
    ),
    (
        "block_size none",
        {"block_size": None},
        TypeError,
        "block_size must be an integer; got block_size=None of type NoneType.",
    ),
    (
        "block_size array",
        {"block_size": np.array([2, 3])},
        TypeError,
        "block_size must be an integer; got block_size=array([2, 3]) of type ndarray.",
    ),
    (
        "block_size float and a value of another length",
        {"block_size": 2.0, "value": real(2, 3, 4, 7)},
        TypeError,
        "block_size must be an integer; got block_size=2.0 of type float.",
    ),
    (
        "block_size 0 and a value of another length",
        {"block_size": 0, "value": real(2, 3, 4, 7)},
        ValueError,
        "value must have shape (2, 3, 5, any) to match key; got value.shape=(2, 3, 4, 7).",
    ),
    (
        "block_size text",
        {"block_size": "2"},
        TypeError,
        "block_size must be an integer; got block_size='2' of type str.",
    ),
    (
        "lengths differ",
        {"query": real(2, 6, 4, 8)},
        ValueError,
        f"{SAME_LENGTH}; got query.shape=(2, 6, 4, 8), key.shape=(2, 3, 5, 8).",
    ),
    (
        "one query row",
        {"query": real(2, 6, 1, 8)},
        ValueError,
        f"{SAME_LENGTH}; got query.shape=(2, 6, 1, 8), key.shape=(2, 3, 5, 8).",
    ),
    (
        "query on a gpu",
        {"query": FakeGpu()},
        TypeError,
        "query must be in CPU memory; got query.device=cuda:0. Pass query.cpu() (cupy: query.get(), jax: "
        "jax.device_get(query)).",
    ),
    (
        "value integer",
        {"value": np.ones((2, 3, 5, 7), int)},
        TypeError,
        "value must be float16, bfloat16, float32 or float64; got value.dtype=int64. Cast it with "
        "np.asarray(value, np.float32).",
    ),
    (
        "query without heads",
        {"query": real(5, 8)},
        ValueError,
        "query must have at least 3 axes, the last ones (heads, length, dim); got query.shape=(5, 8).",
    ),
    (
        "head ratio",
        {"query": real(2, 5, 5, 8)},
        ValueError,
        "num_heads must be a multiple of num_kv_heads, both at least 1; got query heads 5, key heads 3.",
    ),
    (
        "head_dim",
        {"key": real(2, 3, 5, 4)},
        ValueError,
        "query and key must have the same head_dim >= 1; got query head_dim 8, key head_dim 4.",
    ),
    (
        "value length",
        {"value": real(2, 3, 4, 7)},
        ValueError,
        "value must have shape (2, 3, 5, any) to match key; got value.shape=(2, 3, 4, 7).",
    ),
    (
        "q_offset",
        {"q_offset": 0},
        TypeError,
        "q_offset must be left out: in block-local attention row i stands at key position i.",
    ),
    (
        "mask of one block",
        {"mask": yes(2, 2)},
        ValueError,
        "mask must broadcast to (..., heads, q_len, kv_len)=(2, 6, 5, 5); got mask.shape=(2, 2).",
    ),
    (
        "kv_lengths beyond the keys",
        {"kv_lengths": 6},
        ValueError,
        "kv_lengths must be between 0 and kv_len=5; got kv_lengths=6.",
    ),
    (
        "sinks of the wrong length",
        {"sinks": real(3)},
        ValueError,
        "sinks must have shape (6,), one logit a query head; got sinks.shape=(3,).",
    ),
    (
        "output too large",
        {"query": endless(2, 6, 2**40, 8), "key": endless(2, 3, 2**40, 8), "value": endless(2, 3, 2**40, 7)},
        MemoryError,
        "output and lse must fit in memory; got sizes that need 786432.0 GiB and 4.0 GiB are available.",
    ),
)
