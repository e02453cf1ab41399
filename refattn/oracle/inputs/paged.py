"""Paged calls, and what `check_kernel` runs on them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from refattn.calls.options import Sizes
from refattn.calls.paged import PAGED
from refattn.oracle.inputs.families import AttentionInputs, every_option, make_options
from refattn.oracle.inputs.variants import hidden_pair, numbered, seeds_of

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


def cases(dtype, seed, level, call):
    for names in every_option(PAGED):
        for s in seeds_of(seed, level):
            inputs = with_options(names, dtype, s)
            yield numbered(_as_flashmla(inputs) if call.dialect.paged else inputs, s, seed)


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
    filled = _as_flashmla(filled) if call.dialect.paged else filled
    unused = np.isnan(paged_inputs(np.float32, seed, poison=True).arrays[1][:, 0, :, 0])  # (pages, slots)
    at = np.nonzero(unused)
    places = [(n, (at[0], slice(None), at[1])) for n in (1, 2)]
    yield hidden_pair("pages and slots that no sequence uses", filled, places)
