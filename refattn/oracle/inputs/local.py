"""Calls of block-local attention, and what `check_kernel` runs on them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np

from refattn.calls.local import BLOCK_LOCAL
from refattn.oracle.inputs.dense import hidden_in_dense
from refattn.oracle.inputs.dense_tiles import DIMS
from refattn.oracle.inputs.families import (
    AttentionInputs,
    Sizes,
    attention_inputs,
    every_option,
    make_options,
)
from refattn.oracle.inputs.pool import Pool
from refattn.oracle.inputs.tiles import TILES, lengths_of
from refattn.oracle.inputs.variants import named, numbered, seeds_of

WHOLE = Sizes(q_len=53, kv_len=53)
SIZES = WHOLE.of_call()


def block_local_inputs(
    dtype=np.float32, seed=0, *, length=45, block_size=8, bias=False, mask=False, **options
) -> AttentionInputs:
    """By default five whole blocks and a short one; two sequences, four heads on two key heads."""
    rng = np.random.default_rng([seed, 9])
    arrays = tuple(
        rng.standard_normal((2, heads, length, dim)).astype(dtype)
        for heads, dim in ((4, 24), (2, 24), (2, 20))
    )
    lengths = [f"{options['kv_lengths'].tolist()}"] if "kv_lengths" in options else []
    name = " ".join(
        [
            f"block-local {block_size}",
            *(["bias"] if bias else []),
            *(["mask"] if mask else []),
            *options,
            *lengths,
        ]
    )
    if bias:
        options["bias"] = rng.standard_normal((length, length)).astype(dtype)
    if mask:
        options["mask"] = rng.random((length, length)) < 0.7
    return AttentionInputs(
        name, "normal", "block_local_attention_with_lse", arrays, {"block_size": block_size, **options}
    )


def suite(dtype=np.float32, seed=0) -> list[AttentionInputs]:
    """Calls that together show every mistake of block-local attention."""
    lengths = np.array([45, 30])
    return [
        block_local_inputs(dtype, seed, **options)
        for options in (
            {},
            {"causal": True},
            {"bias": True},
            {"mask": True, "causal": True},
            {"kv_lengths": lengths},
            {"kv_lengths": np.array([5, 3])},
            {"block_size": 12},
            {"block_size": 15},
            {"alibi_slopes": 2.0 ** -np.arange(1.0, 5.0)},
        )
    ]


def with_options(names, dtype=np.float32, seed=0, block_size=16) -> AttentionInputs:
    """With options by name, of `OPTION_NAMES`."""
    inputs = attention_inputs("normal", names, sizes=WHOLE, dtype=dtype, seed=seed)
    options = {"block_size": block_size, **inputs.options}
    inputs = replace(inputs, function="block_local_attention_with_lse", options=options)
    return named(inputs, f"blocks of {block_size}")


def cases(dtype, seed, level, call, tiles=TILES):
    small = itertools.cycle((16, 53, 7))
    for names in every_option(BLOCK_LOCAL):
        for block_size in (next(small), next(small)):
            for s in seeds_of(seed, level):
                yield numbered(with_options(names, dtype, s, block_size), s, seed)
    for s in seeds_of(seed, level):
        for inputs in block_cases(dtype, s, tiles):
            yield numbered(inputs, s, seed)


def block_cases(dtype=np.float32, seed=0, tiles=TILES):
    """Blocks of every size of tile, the last one whole, short or of one row; every option on some."""
    lengths = itertools.cycle(lambda size, n=n: lengths_of(size)[n] for n in range(4))
    sizes = itertools.cycle(sorted({keys for _, keys in tiles} | {96}))
    for names in (*every_option(BLOCK_LOCAL), (), ("causal",), ("two-sided window",), ("mask", "causal")):
        size = next(sizes)
        yield _blocks_of(size, next(lengths)(size), names, dtype, seed)
    yield _blocks_of(1100, 1100, ("causal",), dtype, seed)  # one block, of several tiles
    yield _blocks_of(700, 1500, (), dtype, seed)


def _blocks_of(size, length, names, dtype, seed):
    dim = DIMS[length % 2]
    whole = Sizes(1, 2, 1, length, length, dim, dim)
    pool = Pool(dtype, seed, size * length)
    arrays = tuple(map(pool.standard_normal, whole.shapes()))
    shared = replace(whole.of_call(), scores_shape=(length, length))
    options = make_options(names, pool, shared, dtype)
    if options.get("window") is not None:
        options["window"] = (size // 3, options["window"][1])
    return AttentionInputs(
        f"{' '.join(['tiles', *names])}, blocks of {size} on {length} rows",
        "tiles",
        "block_local_attention_with_lse",
        arrays,
        {"block_size": size, **options},
    )


def exact(dtype, seed):
    return []


def hidden_pairs(dtype, seed, call):
    """(name, inputs with 0 in the hidden slots, the same with NaN)."""
    sizes = Sizes(q_len=23, kv_len=23)
    yield from hidden_in_dense(dtype, seed, "block_local_attention_with_lse", sizes, block_size=23)
