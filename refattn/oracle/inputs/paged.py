"""Paged calls, and what `check_kernel` runs on them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np

from refattn.calls.options import Sizes
from refattn.calls.paged import PAGED
from refattn.oracle.inputs.dense_tiles import DIMS
from refattn.oracle.inputs.families import AttentionInputs, every_option, make_options
from refattn.oracle.inputs.pool import Pool
from refattn.oracle.inputs.tiles import TILES, lengths_of
from refattn.oracle.inputs.variants import hidden_pair, numbered, seeds_of

# page size, lengths: of no key, of whole pages, one less, one more; beyond three tiles of 512 keys, in pages
# of one key a table of more entries than a block of threads reads at once
PAGES = (
    (1, (0, 1, 2, 67)),
    (1, (1537, 33)),
    (8, (24, 23, 25, 0)),
    (8, (1, 1025, 8)),
    (24, (1, 97, 48)),  # not a power of two
    (16, (48, 47, 49, 0)),
    (16, (1537, 16, 1)),
    (48, (300, 96, 95, 0)),
    (64, (192, 191, 193, 0)),
    (64, (65, 1536, 63)),
    (128, (384, 383, 385, 0)),
    (128, (1, 1535, 127)),
)
LENGTHS = np.array([37, 61, 50])
SIZES = Sizes((3,), 6, 4, LENGTHS, 24, (3, 6, 4, 64))


def paged_inputs(dtype=np.float32, seed=0, *, poison=False, **options) -> AttentionInputs:
    """Three sequences in shuffled pages of 8; the unused slots hold other numbers, or NaN."""
    rng = np.random.default_rng([seed, 2])
    size = 8
    table = rng.permutation(30)[:24].reshape(3, 8)
    query = rng.standard_normal((3, 6, 4, 24)).astype(dtype)
    pages = [rng.standard_normal((31, 2, size, dim)).astype(dtype) for dim in (24, 20)]
    if poison:
        used = np.zeros((31, size), bool)
        for b, length in enumerate(LENGTHS):
            for page in range(-(-length // size)):
                used[table[b, page], : length - page * size] = True
        for array in pages:
            array[np.broadcast_to(~used[:, None, :, None], array.shape)] = np.nan
    name = " ".join(["paged", *(["poison"] if poison else []), *options])
    family = "poison" if poison else "normal"
    return AttentionInputs(
        name,
        family,
        "paged_attention_with_lse",
        (query, *pages),
        {"block_table": table, "kv_lengths": LENGTHS, **options},
    )


def with_options(names, dtype=np.float32, seed=0) -> AttentionInputs:
    """With options by name, of `OPTION_NAMES`."""
    return paged_inputs(dtype, seed, **make_options(names, np.random.default_rng(seed), SIZES, dtype))


def suite(dtype=np.float32, seed=0) -> list[AttentionInputs]:
    options = {}, {"causal": True}, {"poison": True, "causal": True}
    return [paged_inputs(dtype, seed, **more) for more in options]


def cases(dtype, seed, level, call, tiles=TILES):
    for names in every_option(PAGED):
        for s in seeds_of(seed, level):
            yield numbered(_spoken(with_options(names, dtype, s), call), s, seed)
    for s in seeds_of(seed, level):
        for inputs in page_cases(dtype, s, tiles):
            yield numbered(_spoken(inputs, call), s, seed)


def page_cases(dtype=np.float32, seed=0, tiles=TILES):
    """Every page size with its lengths, and every option on them: one row, a few, more than a tile."""
    extra = [(page, lengths_of(keys)) for _, keys in tiles[len(TILES) :] for page in (1, 16, 64)]
    layouts, rows = [*PAGES, *extra], itertools.cycle((1, 5, 67))
    for layout in layouts:
        yield pages_of(*layout, next(rows), (), dtype, seed)
    turns = itertools.cycle([*(layout for layout in PAGES if max(layout[1]) > 1000), *extra])
    for names in (*every_option(PAGED)[1:], ("two-sided window",), ("mask", "causal")):
        yield pages_of(*next(turns), next(rows) if names != ("causal",) else 5, names, dtype, seed)
    yield _shared_pages(dtype, seed)


def pages_of(size, lengths, rows, names, dtype, seed, dim=None) -> AttentionInputs:
    """Sequences of these lengths in shuffled pages; entries of the table past a length are -1."""
    rng = np.random.default_rng([seed, 2, size, *lengths])
    dim = dim or DIMS[size >= 16]
    used = [-(-length // size) for length in lengths]
    width, pages = max(used) + 2 * (size != 8), sum(used) + 3  # tables that are full, and wider ones
    table = np.full((len(lengths), width), -1)
    free = iter(rng.permutation(pages))
    for b, count in enumerate(used):
        table[b, :count] = [next(free) for _ in range(count)]
    pool = Pool(dtype, seed, size + max(lengths))
    query = pool.standard_normal((len(lengths), 4, rows, dim))
    arrays = [pool.standard_normal((pages, 2, size, dim)) for _ in range(2)]
    whole = Sizes((len(lengths),), 4, rows, width * size, dim, (rows, width * size))
    options = make_options(names, pool, whole, dtype)
    if "own offset" in names:
        options["q_offset"] = max(lengths) // 3
    if "window" in options:
        options["window"] = (int(np.median(lengths)) // 3 + 1, options["window"][1])
    said = " ".join(["pages", *names])
    return AttentionInputs(
        f"{said}, {rows} rows on pages of {size}, lengths {lengths}",
        "pages",
        "paged_attention_with_lse",
        (query, *arrays),
        {"block_table": table, "kv_lengths": np.array(lengths), **options},
    )


def too_long(dtype=np.float32, seed=0):
    """A call whose middle sequence claims one key more than its row of the table has pages for, and the same
    call without that sequence.
    """
    inputs = pages_of(8, (25, 40, 17), 3, ("causal",), dtype, seed)
    lengths = inputs.options["kv_lengths"].copy()
    lengths[1] = 8 * inputs.options["block_table"].shape[1] + 1
    broken = replace(inputs, options={**inputs.options, "kv_lengths": lengths})
    query, *pages = inputs.arrays
    kept = {name: inputs.options[name][[0, 2]] for name in ("block_table", "kv_lengths")}
    return broken, replace(inputs, arrays=(query[[0, 2]], *pages), options={**inputs.options, **kept})


def _shared_pages(dtype, seed):
    """Sequences that begin with the same pages, as a cached prefix does."""
    inputs = pages_of(16, (300, 257, 90), 3, ("causal",), dtype, seed)
    table = inputs.options["block_table"].copy()
    table[1, :10], table[2, :5] = table[0, :10], table[0, :5]
    return replace(
        inputs, name=f"{inputs.name}, of shared pages", options={**inputs.options, "block_table": table}
    )


def _spoken(inputs, call):
    return _as_flashmla(inputs) if call.dialect.values_from_keys else inputs


def _as_flashmla(inputs):
    """One key head, values the first dims of the keys."""
    query, keys, _ = inputs.arrays
    keys = keys[:, :1]
    return replace(inputs, arrays=(query, keys, np.ascontiguousarray(keys[..., :16])))


def exact(dtype, seed):
    return []


def hidden_pairs(dtype, seed, call):
    """(name, inputs with 0 in the hidden slots, the same with NaN)."""
    filled = paged_inputs(dtype, seed)
    filled = _spoken(filled, call)
    unused = np.isnan(paged_inputs(np.float32, seed, poison=True).arrays[1][:, 0, :, 0])  # (pages, slots)
    at = np.nonzero(unused)
    places = [(n, (at[0], slice(None), at[1])) for n in (1, 2)]
    yield hidden_pair("pages and slots that no sequence uses", filled, places)
    for size, lengths in ((1, (35, 67)), (16, (300, 49)), (128, (385, 127))):
        filled = _spoken(pages_of(size, lengths, 5, ("causal",), dtype, seed), call)
        used = np.zeros(filled.arrays[1].shape[0::2], bool)  # (pages, slots)
        for pages, length in zip(filled.options["block_table"], lengths, strict=True):
            for page, left in zip(pages, range(length, 0, -size), strict=False):
                used[page, :left] = True
        at = np.nonzero(~used)
        places = [(n, (at[0], slice(None), at[1])) for n in (1, 2)]
        yield hidden_pair(f"slots that no sequence uses, pages of {size}", filled, places)
