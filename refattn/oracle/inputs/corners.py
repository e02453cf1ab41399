"""Calls with option values that kernels tend to read wrongly: one per sequence, negative, zero or
infinite ones, chunks with edges everywhere, and sizes they do not reach.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from refattn.oracle.inputs.families import AttentionInputs, Sizes, attention_inputs

FULL_SIZES = {
    "head_dim 161": Sizes(
        batch=1, num_heads=2, num_kv_heads=1, q_len=5, kv_len=33, head_dim=161, v_head_dim=145
    ),
    "75 rows": Sizes(batch=1, num_heads=2, num_kv_heads=1, q_len=75, kv_len=79),
    "18 heads": Sizes(batch=1, num_heads=18, num_kv_heads=9, q_len=3, kv_len=21),
    "2187 keys": Sizes(batch=1, num_heads=2, num_kv_heads=1, q_len=3, kv_len=2187),
}  # the weights of the last keys are as large as any: zeroed ones show


def corner_cases(dtype=np.float32, seed=0, level="quick") -> Iterator[AttentionInputs]:
    """Dense calls; `level="full"` adds `FULL_SIZES`."""
    sizes = Sizes()
    rng = np.random.default_rng([seed, 8])
    infinite = np.where(rng.random((sizes.num_heads, sizes.q_len, sizes.kv_len)) < 0.3, -np.inf, 0.0).astype(
        dtype
    )
    infinite[:, 1::5] = -np.inf  # rows that see no key: any finite stand-in for -inf turns them into a mean
    slopes = 2.0 ** -np.arange(1.0, 1.0 + sizes.batch * sizes.num_heads).reshape(
        sizes.batch, sizes.num_heads
    )
    corners = {
        "one q_offset a sequence": {"causal": True, "q_offset": np.array([70, 31])},
        "one set of slopes a sequence": {"alibi_slopes": slopes},
        "negative scale": {"scale": -0.2},
        "scale 0": {"scale": 0.0},
        "window of one key": {"window": (0, 0)},
        "window of nothing on the left": {"window": (0, None)},
        "chunks over the diagonal": {"chunk": 5, "causal": True},
        "chunks that end before the keys": {"chunk": 7, "q_offset": 20},
        "chunks of rows before key 0": {"chunk": 7, "q_offset": -5},
        "bias of -inf": {"bias": np.broadcast_to(infinite, (sizes.batch, *infinite.shape)).copy()},
    }
    for name, options in corners.items():
        plain = attention_inputs("normal", dtype=dtype, seed=seed)
        yield replace(plain, name=f"normal, {name}", options=options)
    for name, larger in FULL_SIZES.items() if level == "full" else ():
        plain = attention_inputs("normal", dtype=dtype, seed=seed, sizes=larger)
        yield replace(plain, name=f"normal, {name}")
