"""Bad calls of `packed_attention` and `packed_attention_with_lse`."""

import numpy as np
from fake_gpu import FakeGpu

from bad_calls.call import endless, real, table, yes

GOOD = {
    "query": real(6, 9, 8),
    "key": real(3, 11, 8),
    "value": real(3, 11, 7),
    "cu_q": [0, 4, 9],
    "cu_kv": [0, 5, 11],
}

AXES = "must have 3 axes (heads, total_len, dim)"
SCORES = "(..., heads, q_len, kv_len)=(6, 9, 11)"

BAD = table(
    "packed_attention",
    (
        "query with a batch axis",
        {"query": real(1, 6, 9, 8)},
        ValueError,
        f"query {AXES}; got query.shape=(1, 6, 9, 8).",
    ),
    ("key without heads", {"key": real(11, 8)}, ValueError, f"key {AXES}; got key.shape=(11, 8)."),
    ("value number", {"value": 1.0}, ValueError, f"value {AXES}; got value.shape=()."),
    (
        "key on a gpu",
        {"key": FakeGpu()},
        TypeError,
        "key must be in CPU memory; got key.device=cuda:0. Pass key.cpu() (cupy: key.get(), jax: "
        "jax.device_get(key)).",
    ),
    (
        "query integer",
        {"query": np.ones((6, 9, 8), np.int32)},
        TypeError,
        "query must be float16, bfloat16, float32 or float64; got query.dtype=int32. Cast it with "
        "np.asarray(query, np.float32).",
    ),
    (
        "head ratio",
        {"query": real(4, 9, 8)},
        ValueError,
        "num_heads must be a multiple of num_kv_heads, both at least 1; got query heads 4, key heads 3.",
    ),
    (
        "head_dim",
        {"key": real(3, 11, 6)},
        ValueError,
        "query and key must have the same head_dim >= 1; got query head_dim 8, key head_dim 6.",
    ),
    (
        "value length",
        {"value": real(3, 10, 7)},
        ValueError,
        "value must have shape (3, 11, any) to match key; got value.shape=(3, 10, 7).",
    ),
    (
        "value heads",
        {"value": real(1, 11, 7)},
        ValueError,
        "value must have shape (3, 11, any) to match key; got value.shape=(1, 11, 7).",
    ),
    (
        "cu_q float",
        {"cu_q": [0.0, 4.0, 9.0]},
        TypeError,
        "cu_q must be integer; got cu_q.dtype=float64. Cast it with np.asarray(cu_q, np.int64).",
    ),
    (
        "cu_kv bool",
        {"cu_kv": yes(3)},
        TypeError,
        "cu_kv must be integer; got cu_kv.dtype=bool. Cast it with np.asarray(cu_kv, np.int64).",
    ),
    ("cu_q none", {"cu_q": None}, TypeError, "cu_q must be an array of real numbers; got cu_q=None."),
    (
        "cu_q number",
        {"cu_q": 9},
        ValueError,
        "cu_q must have shape (num_sequences + 1,); got cu_q.shape=().",
    ),
    (
        "cu_kv column",
        {"cu_kv": [[0], [5], [11]]},
        ValueError,
        "cu_kv must have shape (num_sequences + 1,); got cu_kv.shape=(3, 1).",
    ),
    (
        "cu_q empty",
        {"cu_q": []},
        ValueError,
        "cu_q must have shape (num_sequences + 1,); got cu_q.shape=(0,).",
    ),
    (
        "lengths instead of boundaries",
        {"cu_q": [4, 5]},
        ValueError,
        "cu_q must run from 0 to the total length of query, 9; got cu_q[0]=4, cu_q[-1]=5. Lengths become "
        "boundaries with np.cumsum([0, *lengths]).",
    ),
    (
        "cu_q not starting at 0",
        {"cu_q": [1, 4, 9]},
        ValueError,
        "cu_q must run from 0 to the total length of query, 9; got cu_q[0]=1, cu_q[-1]=9. Lengths become "
        "boundaries with np.cumsum([0, *lengths]).",
    ),
    (
        "cu_kv not ending at the total",
        {"cu_kv": [0, 5, 12]},
        ValueError,
        "cu_kv must run from 0 to the total length of key, 11; got cu_kv[0]=0, cu_kv[-1]=12. "
        "Lengths become boundaries with np.cumsum([0, *lengths]).",
    ),
    (
        "cu_q falling",
        {"cu_q": [0, 7, 4, 9], "cu_kv": [0, 1, 2, 11]},
        ValueError,
        "cu_q must not decrease; got cu_q[1]=7, cu_q[2]=4.",
    ),
    (
        "cu_kv negative inside",
        {"cu_kv": [0, -1, 11]},
        ValueError,
        "cu_kv must not decrease; got cu_kv[0]=0, cu_kv[1]=-1.",
    ),
    (
        "cu_q once around int64",
        {"cu_q": [0, 2**62, -(2**63), -(2**62), 9], "cu_kv": [0, 1, 2, 3, 11]},
        ValueError,
        f"cu_q must not decrease; got cu_q[1]={2**62}, cu_q[2]={-(2**63)}.",
    ),
    (
        "cu_q and cu_kv of different lengths",
        {"cu_kv": [0, 5, 7, 11]},
        ValueError,
        "cu_q and cu_kv must have the same length, one more than there are sequences; got len(cu_q)=3, "
        "len(cu_kv)=4.",
    ),
    (
        "kv_lengths beyond a sequence",
        {"kv_lengths": [6, 6]},
        ValueError,
        "kv_lengths must be between 0 and kv_len=5; got kv_lengths=6.",
    ),
    (
        "kv_lengths per head",
        {"kv_lengths": [5] * 6},
        ValueError,
        "kv_lengths must be an integer or have shape (2,); got kv_lengths.shape=(6,).",
    ),
    (
        "q_offset per row",
        {"q_offset": [0] * 9},
        ValueError,
        "q_offset must be an integer or have shape (2,); got q_offset.shape=(9,).",
    ),
    (
        "mask of one sequence",
        {"mask": yes(4, 5)},
        ValueError,
        f"mask must broadcast to {SCORES}; got mask.shape=(4, 5).",
    ),
    (
        "mask per sequence",
        {"mask": yes(2, 1, 11)},
        ValueError,
        f"mask must broadcast to {SCORES}; got mask.shape=(2, 1, 11).",
    ),
    (
        "bias of four axes",
        {"bias": real(1, 6, 9, 11)},
        ValueError,
        "bias must have at most 2 axes or all 3 of (..., heads, q_len, kv_len); got bias.ndim=4.",
    ),
    (
        "alibi of the wrong length",
        {"alibi_slopes": real(2)},
        ValueError,
        "alibi_slopes must have shape (6,) or (2, 6); got alibi_slopes.shape=(2,).",
    ),
    (
        "sinks of the wrong length",
        {"sinks": real(2)},
        ValueError,
        "sinks must have shape (6,), one logit a query head; got sinks.shape=(2,).",
    ),
    (
        "output too large",
        {"query": endless(6, 2**40, 8), "cu_q": [0, 4, 2**40]},
        MemoryError,
        "output and lse must fit in memory; got sizes that need 393216.0 GiB and 4.0 GiB are available.",
    ),
)
