"""Dense calls over several tiles of rows and of keys."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from refattn.calls.dense import DENSE
from refattn.oracle.inputs.families import (
    AttentionInputs,
    Sizes,
    attention_inputs,
    every_option,
    make_options,
)
from refattn.oracle.inputs.pool import Pool
from refattn.oracle.inputs.tiles import (
    OTHER_LENGTHS,
    TILES,
    all_lengths,
    lengths_of,
    long_lengths,
)

DIMS = (64, 128)
FEW_ROWS = (33, 5, 17)  # more than two tiles of 16; less than one of 8; one and a row
FAMILIES = (
    "ascending",
    "descending",
    "early sink",
    "late sink",
    "low scores",
    "large scores",
    "one-hot",
    "uniform",
    "offset values",
    "alternating values",
    "heavy tails",
    "repeated keys",
)
TOGETHER = (
    ("two-sided window",),
    ("left window", "causal"),
    ("mask", "causal"),
    ("sinks", "causal"),
    ("softcap", "causal"),
    ("alibi", "causal"),
    ("empty rows",),
    ("empty rows", "sinks"),
)
LOW_SCORE = -2e4  # of the family "low scores"
FAR_BELOW = -3e5  # under the stand-ins for -inf that kernels have: -1e4, -65504, -1e5


def tile_cases(dtype=np.float32, seed=0, tiles=TILES) -> Iterator[AttentionInputs]:
    """Every option with few rows on many keys, and with many rows; families, windows, lengths and hidden
    tiles over several tiles; one row on every length that follows from `tiles`.
    """
    make = _Maker(dtype, seed)
    yield from _lengths(make, tiles)
    yield from _options(make, tiles)
    yield from _families(make, tiles)
    yield from _edges(make, tiles)
    yield from _sequences(make)
    yield from hidden_tiles(dtype, seed)


class _Maker:
    """Makes dense calls, with head_dim 64 and 128 in turns."""

    def __init__(self, dtype, seed):
        self.dtype, self.seed, self.dims = dtype, seed, itertools.cycle(DIMS)

    def __call__(
        self, rows, keys, names=(), family="normal", heads=(4, 2), batch=1, words="", shared=True, **options
    ):
        dim = next(self.dims)
        sizes = Sizes(batch, *heads, rows, keys, dim, dim)
        pool = Pool(self.dtype, self.seed, rows * keys + dim)
        if family == "normal":
            arrays = tuple(map(pool.standard_normal, sizes.shapes()))
        else:
            arrays = attention_inputs(family, sizes=sizes, dtype=self.dtype, seed=self.seed).arrays
        drawn_for = sizes.of_call()
        if shared:  # what is drawn is the same in every head
            drawn_for = replace(drawn_for, scores_shape=(rows, keys))
        said = " ".join([family, *names, *([words] if words else [])] + ["in every head"] * (not shared))
        return AttentionInputs(
            f"tiles, {said}, {rows} rows on {keys} keys",
            "tiles",
            "attention_with_lse",
            arrays,
            {**make_options(names, pool, drawn_for, self.dtype), **options},
        )


def _lengths(make, tiles):
    """One row, and as many rows as keys, on one tile and on each length of several."""
    others = {length + more for length in OTHER_LENGTHS for more in (-1, 0, 1)}
    for keys in sorted({*all_lengths(tiles, 1), *(keys for _, keys in tiles), *others}):
        yield make(1, keys, heads=(8, 2))
    for rows in sorted({*all_lengths(tiles, 0), *(rows for rows, _ in tiles)}):
        yield make(rows, rows, ("causal",), words="square", heads=(2, 1))
    yield make(65, 193, ("causal",), heads=(32, 8))
    for heads in ((6, 2), (5, 1), (7, 7)):  # ratios that do not divide a tile of packed heads and rows
        for names in (("causal",), ("two-sided window",), ("alibi",)):
            yield make(130, 193, names, heads=heads, words=f"{heads[0]} heads on {heads[1]}")
    yield make(3, 193, ("causal",), heads=(34, 2), words="34 heads on 2")  # more than 16 heads a key head
    yield make(1, 4145, heads=(2, 1))  # more than 256 tiles of 16
    yield make(4145, 3, heads=(2, 1))


def _options(make, tiles):
    """Each option with one row and a few on three tiles of keys of every size, and with many rows."""
    few, many = itertools.cycle(FEW_ROWS), itertools.cycle(long_lengths(tiles))
    square = itertools.cycle((1025, 769, 1536, 640, 1100))
    for names in (*every_option(DENSE)[1:], *TOGETHER):
        if names != ("causal",):
            yield make(1, next(many), names, heads=(8, 2))
        yield make(next(few), next(many), names)
        length = next(square)
        yield make(length, length, names, heads=(2, 1))
    for names in (("bias",), ("mask", "causal"), ("dropout",)):  # every head has its own
        yield make(193, 257, names, batch=2, shared=False)
        yield make(600, 1100, names, heads=(2, 1), shared=False)
    for rows, keys in tiles[len(TILES) :]:
        turns = itertools.cycle(itertools.product(lengths_of(rows), lengths_of(keys)))
        for names in every_option(DENSE):
            yield make(*next(turns), names, heads=(2, 1))


def _families(make, tiles):
    keys = itertools.cycle(long_lengths(tiles))
    for family, rows in zip(FAMILIES, itertools.cycle((5, 19, 3)), strict=False):
        yield make(rows, next(keys), family=family)
    for family in ("ascending", "descending", "low scores"):
        yield make(1537, 1537, ("causal",), family, heads=(2, 1))
    causal = {"causal": True}
    for rows, keys, options in (
        (321, 321, {"window": (64, 0)}),
        (257, 1025, {"window": (200, 0)}),
        (385, 700, {"chunk": 100}),
        (513, 1025, {**causal, "q_offset": -192}),
        (130, 1025, {**causal, "q_offset": 100}),
    ):
        yield make(rows, keys, family="low scores", words=_said(options), heads=(2, 1), **options)


def _edges(make, tiles):
    """Windows, chunks and offsets whose edges lie on, before and behind those of tiles."""
    causal = {"causal": True}
    for rows, keys, options in (
        (259, 259, {"window": (63, 0)}),
        (257, 577, {"window": (64, 64)}),
        (513, 513, {"window": (127, None), **causal}),
        (385, 1025, {"window": (1, 129)}),
        (640, 640, {"window": (300, None)}),
        (1025, 1025, {"window": (511, 0)}),
        (300, 1100, {"window": (None, 255)}),
        (1100, 1100, {"window": (0, None)}),
        (257, 257, {"chunk": 64, **causal}),
        (385, 700, {"chunk": 100}),
        (1025, 1025, {"chunk": 128, **causal}),
        (520, 1040, {"chunk": 512}),
        (769, 257, causal),  # the first 512 rows see nothing
        (257, 769, {**causal, "q_offset": 0}),
        (513, 1025, {**causal, "q_offset": -192}),
        (300, 600, {**causal, "q_offset": 190}),
        (130, 300, {**causal, "q_offset": 700}),
    ):
        yield make(rows, keys, words=_said(options), heads=(2, 1), **options)


def _said(options):
    return " ".join(f"{name}={value}" for name, value in options.items())


def _sequences(make):
    """Lengths of none, one and whole tiles beside each other; more sequences than lanes of a warp."""
    for rows, lengths in ((1, (0, 1, 512, 1100)), (3, (63, 64, 65, 1024)), (40, (1100, 17, 1023, 129))):
        for names in ((), ("causal",)) if rows > 1 else ((),):
            inputs = make(rows, 1100, names, batch=4, words=f"lengths {lengths}", heads=(2, 1))
            yield replace(inputs, options={**inputs.options, "kv_lengths": np.array(lengths)})
    own = {"kv_lengths": np.array([1025, 130])}
    for names in (("left window", "causal"), ("chunk",), ("alibi",), ("mask",), ("bias",), ("sinks",)):
        yield make(35, 1100, names, batch=2, words="lengths 1025 and 130", **own)
    for words, options in (
        ("one q_offset a sequence", {"causal": True, "q_offset": np.array([900, 130])}),
        ("windows at one q_offset a sequence", {"window": (70, 3), "q_offset": np.array([130, 900])}),
        ("one set of slopes a sequence", {"alibi_slopes": 2.0 ** -np.arange(1.0, 9.0).reshape(2, 4)}),
    ):
        yield make(40, 1100, batch=2, words=words, **options)
    yield make(70, 600, batch=2)
    lengths = np.arange(35) * 2  # more sequences than a warp has lanes
    inputs = make(1, 70, batch=35, words="35 lengths", heads=(2, 1))
    yield replace(inputs, options={**inputs.options, "kv_lengths": lengths})


def hidden_tiles(dtype, seed):
    """Rows whose first, last or inner tiles are hidden, row by row and with all rows of their tile; scores
    near 0 and far below.
    """
    for how, mask in _hiding_masks(np.random.default_rng([seed, 11])).items():
        sizes = Sizes(1, 2, 1, *mask.shape, 64, 64)
        normal, low = (
            attention_inputs(family, sizes=sizes, dtype=dtype, seed=seed)
            for family in ("normal", "low scores")
        )
        query, key, value = low.arrays
        lower = query, key * np.asarray(FAR_BELOW / LOW_SCORE, key.dtype), value
        bias = {"bias": np.where(mask, 0.0, -np.inf).astype(dtype)}
        for words, arrays, options in (
            ("normal, mask", normal.arrays, {"mask": mask}),
            ("normal, bias of -inf", normal.arrays, bias),
            ("low scores, mask", low.arrays, {"mask": mask}),
            ("scores far below, mask", lower, {"mask": mask}),
        ):
            yield AttentionInputs(
                f"hidden tiles, {words}, {how}",
                "hidden tiles",
                "attention_with_lse",
                arrays,
                options,
            )


def _hiding_masks(rng):
    """Of 1025 keys: hidden before, from or up to an edge of a tile, or all but one key."""
    edges, at = (0, 16, 32, 64, 128, 256, 512, 1024), np.arange(1025)
    kinds = (
        lambda edge: at >= edge,
        lambda edge: at < len(at) - edge,
        lambda edge: (at < 7) | (at >= edge),
        lambda edge: at == edge,
    )
    each = np.array([kind(edge) for kind in kinds for edge in edges])
    each = np.concatenate([each, np.zeros_like(each[:1])])[rng.permutation(33)]  # and a row of no key
    alike = np.repeat(each[:8], 128, axis=0)
    alike[256:384] = alike[0] = False  # a tile of rows that see nothing, and a row in one that does
    return {"row by row": each, "by tiles": alike}
