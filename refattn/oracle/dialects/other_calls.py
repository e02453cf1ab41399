"""Calls of libraries on packed sequences and on pages: for each the record of the library, with what this
call has otherwise. A new one is one more row of `OTHER_CALLS`.
"""

from __future__ import annotations

from dataclasses import replace

from refattn.oracle.dialects.libraries import DIALECTS, dialect
from refattn.oracle.dialects.record import Dialect


def _arguments(name, *without, **other):
    """The arguments of a library's dense call, without some and with others."""
    return {role: word for role, word in DIALECTS[name].arguments.items() if role not in without} | other


_CACHE = {"key": "k_cache", "value": "v_cache", "kv_lengths": "cache_seqlens"}
_PACKED = {"layout": "THD", "output_layout": "THE", "function": "packed_attention"}
_PAGED = {"page_layout": "PTHD", "function": "paged_attention", "lengths": "count"}

OTHER_CALLS: tuple[Dialect, ...] = (
    replace(
        DIALECTS["flash_attn"],
        call="flash_attn_varlen_func",
        arguments=_arguments("flash_attn", cu_q="cu_seqlens_q", cu_kv="cu_seqlens_k"),
        lse_layout="HT",
        **_PACKED,
    ),
    replace(
        DIALECTS["flash_attn"],
        call="flash_attn_with_kvcache with block_table",
        arguments=_arguments("flash_attn", **_CACHE, block_table="block_table"),
        **_PAGED,
    ),
    replace(
        DIALECTS["flash_attn"],
        call="flash_attn_with_kvcache",
        arguments=_arguments("flash_attn", **_CACHE),
        lengths="count",
    ),
    replace(
        DIALECTS["flash_attn_3"],
        call="flash_attn_varlen_func",
        arguments=_arguments(
            "flash_attn_3", cu_q="cu_seqlens_q", cu_kv="cu_seqlens_k", kv_lengths="seqused_k"
        ),
        lengths="count",
        lse_layout="HT",
        **_PACKED,
    ),
    replace(
        DIALECTS["flash_attn_3"],
        call="flash_attn_with_kvcache with page_table",
        arguments=_arguments("flash_attn_3", **_CACHE, block_table="page_table"),
        **_PAGED,
    ),
    replace(
        DIALECTS["flash_attn_3"],
        call="flash_attn_with_kvcache",
        arguments=_arguments("flash_attn_3", **_CACHE),
        lengths="count",
    ),
    replace(
        DIALECTS["flashinfer"],
        call="BatchPrefillWithRaggedKVCacheWrapper",
        arguments=_arguments("flashinfer", "mask", cu_q="qo_indptr", cu_kv="kv_indptr"),
        mask_true=None,
        **_PACKED,
    ),
    replace(
        DIALECTS["flashinfer"],
        call="BatchDecodeWithPagedKVCacheWrapper",
        # the table is `indices` cut at `indptr`, and the lengths follow from it and `last_page_len`
        arguments=_arguments(
            "flashinfer",
            "mask",
            "causal",
            key="k_cache",
            value="v_cache",
            block_table="indices",
            kv_lengths="last_page_len",
        ),
        layout="BHD",
        output_layout="BHE",
        lse_layout="BH",
        mask_true=None,
        **_PAGED,
        notes=("paged_kv_cache is the pair (k_cache, v_cache), or one array with a second axis of 2",),
    ),
)
CALLS: tuple[Dialect, ...] = (*DIALECTS.values(), *OTHER_CALLS)


def marks(d: Dialect) -> set[str]:
    """Arguments that no dense call has: those that say how the arrays of this one are laid out."""
    return {d.arguments[role] for role in ("cu_q", "block_table") if role in d.arguments}


def call_read(name: str, given) -> Dialect:
    """The record of the call of a library that has arguments of these names.

    Raises
    ------
    ValueError
        The name is unknown.

    Examples
    --------
    >>> call_read("flash_attn", {"q", "k", "v", "cu_seqlens_q"}).call
    'flash_attn_varlen_func'
    """
    calls = [d for d in CALLS if d.name == dialect(name).name]
    given = {*given}
    fits = [
        (bool(given & marks(d)), not marks(d), len(given & {*d.arguments.values()})) for d in calls
    ]  # the first of the best
    return calls[fits.index(max(fits))]


def call_of(name: str, function: str) -> Dialect:
    """The record of the call of a library that is this function of `refattn`.

    Raises
    ------
    ValueError
        The name is unknown, or the library has no such call.

    Examples
    --------
    >>> call_of("flash_attn", "paged_attention").arguments["block_table"]
    'block_table'
    """
    calls = [d for d in CALLS if d.name == dialect(name).name]
    for d in calls:
        if d.function == function:
            return d
    there = " or ".join(dict.fromkeys(d.function for d in calls))
    raise ValueError(f"function must be {there} for dialect {name}; got function={function!r}.")
