"""What packed sequences and pages need beside the options that all calls share: boundaries, tables and
caches.
"""

from __future__ import annotations

import numpy as np

from refattn.calls.arrays import as_array, as_int_array
from refattn.oracle.dialects.layouts import array_from_ours, array_to_ours, axes_in_words
from refattn.oracle.dialects.record import Dialect


def pages_to_ours(d: Dialect, call) -> tuple[np.ndarray, ...]:
    """Query, key pages and value pages of a library's call. Where it has no value argument, values are the
    first dims of the keys, `head_dim_v` of them; a cache of both in one array, `paged_kv_cache`, has keys
    first.
    """
    query = array_to_ours(call[d.arguments["query"]], d.layout, name=d.arguments["query"])
    cache = call.get("paged_kv_cache")
    if cache is not None and not isinstance(cache, tuple | list):
        cache = as_array(cache, "paged_kv_cache")
        if cache.ndim != 5 or cache.shape[1] != 2:
            raise ValueError(
                "paged_kv_cache must have the axes (pages, 2, page_size, heads, dim), or be "
                "the pair of key and "
                f"value pages; got paged_kv_cache.shape={cache.shape}."
            )
        cache = cache[:, 0], cache[:, 1]
    names = [d.arguments[role] for role in ("key", "value") if role in d.arguments]
    given = [call[name] for name in names] if cache is None else list(cache)
    pages = [_page_array(d, array, name) for name, array in zip(names, given, strict=True)]
    if len(pages) == 1:
        width = call.get("head_dim_v", 512)
        if not 1 <= width <= pages[0].shape[-1]:
            raise ValueError(
                f"head_dim_v must be between 1 and the {pages[0].shape[-1]} dims of {names[0]}; got "
                f"head_dim_v={width!r}."
            )
        pages.append(pages[0][..., :width])
    return query, *pages


def _page_array(d, array, name):
    array = as_array(array, name)
    if array.ndim != len(d.page_layout):
        raise ValueError(
            f"{name} must have the axes {axes_in_words(d.page_layout)} of pages in {d.call}; got "
            f"{name}.shape={array.shape}."
        )
    return array_to_ours(array, d.page_layout, name=name)


def structure_to_ours(d: Dialect, call, arrays, options):
    """Boundaries of sequences, and tables of pages, into our options."""
    for role in ("cu_q", "cu_kv"):
        if role in d.arguments:
            options[role] = as_array(call[d.arguments[role]], d.arguments[role])
    if "block_table" not in d.arguments:
        return
    table = as_array(call[d.arguments["block_table"]], d.arguments["block_table"])
    if "indptr" in call:
        lengths = as_int_array(call[d.arguments["kv_lengths"]], d.arguments["kv_lengths"])
        page_size = arrays[1].shape[2]
        table, options["kv_lengths"] = _table_of_lists(table, call["indptr"], lengths, page_size)
    options["block_table"] = table


def _table_of_lists(indices, indptr, last_page_len, page_size):
    """Pages listed one sequence after the other as a table, and the lengths in keys."""
    indptr = as_int_array(indptr, "indptr")
    steps = np.diff(indptr)
    if (
        indptr.ndim != 1
        or not len(indptr)
        or indptr[0] != 0
        or (steps < 0).any()
        or indptr[-1] > len(indices)
    ):
        raise ValueError(
            f"indptr must rise from 0 to at most the {len(indices)} entries of indices; got "
            f"indptr={indptr!r}."
        )
    if last_page_len.shape != steps.shape:
        raise ValueError(
            f"last_page_len must have one entry for each of the {len(steps)} sequences of indptr; got "
            f"last_page_len.shape={last_page_len.shape}."
        )
    filled = (last_page_len >= 1) & (last_page_len <= page_size) | (steps == 0)
    if not filled.all():
        at = int(np.argmin(filled))
        raise ValueError(
            f"last_page_len must be between 1 and the page size, {page_size}; got "
            f"last_page_len[{at}]={last_page_len[at]}."
        )
    table = np.zeros((len(steps), int(steps.max(initial=0))), dtype=np.int64)
    for b, (first, count) in enumerate(zip(indptr, steps, strict=False)):
        table[b, :count] = indices[first : first + count]
    return table, np.where(steps == 0, 0, (steps - 1) * page_size + last_page_len)


def arrays_from_ours(d: Dialect, arrays) -> dict[str, np.ndarray]:
    """Query, keys and values in the library's layout, under its names."""
    layouts = (d.layout, *[d.page_layout or d.layout] * 2)
    call = {
        d.arguments[role]: array_from_ours(array, layout, role)
        for role, array, layout in zip(("query", "key", "value"), arrays, layouts, strict=True)
        if role in d.arguments
    }
    if "value" not in d.arguments:
        _, key, value = arrays
        if key.shape[1] != 1 or not np.array_equal(key[..., : value.shape[-1]], value, equal_nan=True):
            raise ValueError(
                f"value_pages must be the first dims of one key head: {d.call} reads no others."
            )
        call["head_dim_v"] = value.shape[-1]
    return call


def structure_from_ours(d: Dialect, p, arrays) -> dict[str, np.ndarray]:
    """Boundaries, tables and lengths of a checked call under the library's names, in int32 as libraries
    take them.
    """
    if "cu_q" in d.arguments:
        call = {d.arguments[role]: getattr(p, role).astype(np.int32) for role in ("cu_q", "cu_kv")}
        lengths = np.diff(p.cu_kv)
        if (np.asarray(p.kv_lengths) != lengths).any():
            if "kv_lengths" not in d.arguments:
                raise ValueError(f"kv_lengths must be None: {d.call} reads every key of a sequence.")
            call[d.arguments["kv_lengths"]] = np.asarray(p.kv_lengths).astype(np.int32)
        return call
    if d.arguments["block_table"] != "indices":
        return {
            d.arguments["block_table"]: p.block_table.astype(np.int32),
            d.arguments["kv_lengths"]: p.kv_lengths.astype(np.int32),
        }
    counts = -(-p.kv_lengths // p.page_size)
    lists = [row[:count] for row, count in zip(p.block_table, counts, strict=True)]
    return {
        "indptr": np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        "indices": np.concatenate([np.zeros(0, np.int64), *lists]).astype(np.int32),
        "last_page_len": (p.kv_lengths - (np.maximum(counts, 1) - 1) * p.page_size).astype(np.int32),
    }
