"""Calls whose query and key are given before rotation."""

from __future__ import annotations

import numpy as np

from refattn.calls.rotary import Rope
from refattn.oracle.inputs.families import AttentionInputs, Sizes


def rotary_inputs(dtype=np.float32, seed=0, *, layout="half", theta=20000.0, **options) -> AttentionInputs:
    """Query and key before rotation, with cached keys before the first row."""
    rng = np.random.default_rng([seed, 4])
    sizes = Sizes(batch=2, num_heads=4, num_kv_heads=2, q_len=9, kv_len=41, head_dim=24, v_head_dim=12)
    arrays = tuple(rng.standard_normal(shape).astype(dtype) for shape in sizes.shapes())
    name = " ".join(["rotary", layout, *options])
    return AttentionInputs(
        name,
        "normal",
        "rotary_attention_with_lse",
        arrays,
        {"rope": Rope(theta=theta, layout=layout), **options},
    )


def suite(dtype=np.float32, seed=0) -> list[AttentionInputs]:
    return [rotary_inputs(dtype, seed, layout=layout, causal=True) for layout in ("half", "interleaved")]
