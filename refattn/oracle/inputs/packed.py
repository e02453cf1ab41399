"""Packed calls, and what `check_kernel` runs on them."""

from __future__ import annotations

import numpy as np

from refattn.calls.options import Sizes
from refattn.calls.packed import PACKED
from refattn.oracle.inputs.families import AttentionInputs, every_option, make_options
from refattn.oracle.inputs.variants import hidden_pair, numbered, seeds_of

CU_Q, CU_KV = np.array([0, 5, 6, 15, 23]), np.array([0, 21, 61, 94, 110])
SIZES = Sizes((4,), 6, np.diff(CU_Q), np.diff(CU_KV), 24, (6, 23, 110))


def packed_inputs(dtype=np.float32, seed=0, **options) -> AttentionInputs:
    """Four sequences end to end, one of a single row."""
    rng = np.random.default_rng([seed, 1])
    arrays = tuple(
        rng.standard_normal(shape).astype(dtype) for shape in ((6, 23, 24), (2, 110, 24), (2, 110, 20))
    )
    name = " ".join(["packed", *options])
    return AttentionInputs(
        name, "normal", "packed_attention_with_lse", arrays, {"cu_q": CU_Q, "cu_kv": CU_KV, **options}
    )


def with_options(names, dtype=np.float32, seed=0) -> AttentionInputs:
    """With options by name, of `OPTION_NAMES`."""
    return packed_inputs(dtype, seed, **make_options(names, np.random.default_rng(seed), SIZES, dtype))


def suite(dtype=np.float32, seed=0) -> list[AttentionInputs]:
    return [packed_inputs(dtype, seed), packed_inputs(dtype, seed, causal=True)]


def cases(dtype, seed, level, call):
    for names in every_option(PACKED):
        for s in seeds_of(seed, level):
            yield numbered(with_options(names, dtype, s), s, seed)


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
