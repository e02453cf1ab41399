"""Packed calls, and what `check_kernel` runs on them."""

from __future__ import annotations

import numpy as np

from refattn.oracle.inputs.families import AttentionInputs
from refattn.oracle.inputs.variants import hidden_pair, numbered, seeds_of


def packed_inputs(dtype=np.float32, seed=0, **options) -> AttentionInputs:
    """Four sequences end to end, one of a single row."""
    rng = np.random.default_rng([seed, 1])
    cu_q, cu_kv = np.array([0, 5, 6, 15, 23]), np.array([0, 21, 61, 94, 110])
    arrays = tuple(
        rng.standard_normal(shape).astype(dtype) for shape in ((6, 23, 24), (2, 110, 24), (2, 110, 20))
    )
    name = " ".join(["packed", *options])
    return AttentionInputs(
        name, "normal", "packed_attention_with_lse", arrays, {"cu_q": cu_q, "cu_kv": cu_kv, **options}
    )


def cases(dtype, seed, level, call):
    slopes, sinks = 2.0 ** -np.arange(1.0, 7.0), np.linspace(-1.0, 2.0, 6)
    for options in (
        {},
        {"causal": True},
        {"window": (5, 0)},
        {"softcap": 1.5},
        {"alibi_slopes": slopes},
        {"sinks": sinks},
        {"kv_lengths": np.array([9, 40, 1, 12]), "causal": True},
        {"scale": 0.3},
    ):
        for s in seeds_of(seed, level):
            yield numbered(packed_inputs(dtype, s, **options), s, seed)


def exact(dtype, seed):
    return []


def hidden_pairs(dtype, seed, call):
    """(name, inputs with 0 in the hidden slots, the same with NaN)."""
    inputs = packed_inputs(dtype, seed, kv_lengths=np.array([9, 40, 1, 12]))
    starts, stops = inputs.options["cu_kv"][:-1], inputs.options["cu_kv"][1:]
    unused = zip(starts, (9, 40, 1, 12), stops, strict=True)
    slots = np.concatenate([np.arange(start + length, stop) for start, length, stop in unused])
    yield hidden_pair(
        "keys and values past kv_lengths", inputs, [(1, np.s_[:, slots]), (2, np.s_[:, slots])]
    )
