"""Packed calls, and what `check_kernel` runs on them."""

from __future__ import annotations

import itertools

import numpy as np

from refattn.calls.options import Sizes
from refattn.calls.packed import PACKED
from refattn.oracle.inputs.dense_tiles import DIMS
from refattn.oracle.inputs.families import AttentionInputs, every_option, make_options
from refattn.oracle.inputs.pool import Pool
from refattn.oracle.inputs.tiles import TILES, lengths_of
from refattn.oracle.inputs.variants import hidden_pair, numbered, seeds_of

# rows and keys of each sequence
SEQUENCES = {
    "long after short": ((1, 5, 130), (3, 65, 1025)),
    "short after long": ((131, 33, 2), (513, 65, 9)),
    "empty ones first, between and last": ((0, 7, 0, 65, 0), (0, 70, 0, 193, 0)),
    "rows without keys, keys without rows": ((5, 0, 34, 9), (0, 33, 67, 0)),
    "keys without rows among longer and shorter ones": ((70, 0, 33, 0, 5), (90, 60, 33, 200, 20)),
    "more than 256 tiles of 16 rows": ((2080, 2050), (20, 67)),
    "one row each": ((1, 1, 1, 1), (1, 64, 129, 513)),
    "whole tiles": ((64, 128, 256), (64, 256, 512)),
    "one less and one more than tiles": ((63, 65, 127), (127, 193, 129)),
    "more rows than keys": ((70, 40, 3), (5, 64, 2)),
    "one long sequence": ((1025,), (1537,)),
    "longer than any before": ((130, 600), (1921, 600)),
    "many short ones": ((3, 1, 2, 17, 5, 1, 8, 4), (3, 4, 2, 17, 16, 9, 8, 31)),
}
FOR_OPTIONS = ("long after short", "short after long")  # several tiles of every size
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


def cases(dtype, seed, level, call, tiles=TILES):
    for names in every_option(PACKED):
        for s in seeds_of(seed, level):
            yield numbered(with_options(names, dtype, s), s, seed)
    for s in seeds_of(seed, level):
        for inputs in sequence_cases(dtype, s, tiles):
            yield numbered(inputs, s, seed)


def sequence_cases(dtype=np.float32, seed=0, tiles=TILES):
    """Sequences of every kind, alone and causal, and every option on some of them."""
    named = {
        f"tiles of {rows} and {keys}": (lengths_of(rows)[1:], lengths_of(keys)[1:])
        for rows, keys in tiles[len(TILES) :]
    }
    for words, sequences in {**SEQUENCES, **named}.items():
        for names in ((), ("causal",)):
            yield _sequences(words, *sequences, names, dtype, seed)
    turns = itertools.cycle((*FOR_OPTIONS, *named))
    for names in (*every_option(PACKED)[1:], ("two-sided window",), ("sinks", "causal")):
        words = next(turns)
        if names != ("causal",):
            yield _sequences(words, *{**SEQUENCES, **named}[words], names, dtype, seed)


def _sequences(words, rows, keys, names, dtype, seed):
    pool = Pool(dtype, seed, sum(rows) + sum(keys))
    dim, total = DIMS[len(rows) % 2], (sum(rows), sum(keys))
    arrays = tuple(
        pool.standard_normal((heads, length, dim))
        for heads, length in ((4, total[0]), (2, total[1]), (2, total[1]))
    )
    sizes = Sizes((len(rows),), 4, np.array(rows), np.array(keys), dim, total)
    options = make_options(names, pool, sizes, dtype)
    ends = {name: np.cumsum([0, *lengths]) for name, lengths in (("cu_q", rows), ("cu_kv", keys))}
    return AttentionInputs(
        f"{' '.join(['sequences', *names])}, {words}",
        "sequences",
        "packed_attention_with_lse",
        arrays,
        {**ends, **options},
    )


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
