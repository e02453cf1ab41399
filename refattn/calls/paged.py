"""Keys and values in pages: query (B, H, T, D), key_pages (P, K, page_size, D), value_pages (P, K,
page_size, E).
"""

from dataclasses import dataclass

import numpy as np

from refattn.calls.arrays import as_int_array
from refattn.calls.dense import (
    Problem,
    exactly_axes,
    floating,
    require_head_dim,
    require_head_ratio,
    require_memory,
)
from refattn.calls.form import Checked, Form
from refattn.calls.memory import ensure_allocatable
from refattn.calls.options import Options, Sizes, checked_options


@dataclass(frozen=True, eq=False)
class PagedProblem(Options, Checked):
    """A checked paged call; batch of the options is (B,)."""

    query: np.ndarray
    key_pages: np.ndarray
    value_pages: np.ndarray
    block_table: np.ndarray  # (B, max_pages) int64; entries at or past the length are anything

    @property
    def form(self):
        return PAGED

    @property
    def page_size(self):
        return self.key_pages.shape[2]

    @property
    def largest_group(self):
        group_size = self.query.shape[1] // self.key_pages.shape[1]
        return (
            group_size,
            int(self.kv_lengths.max(initial=0)),
            self.query.shape[-1],
            self.value_pages.shape[-1],
        )

    @property
    def output_shape(self):
        return (*self.query.shape[:-1], self.value_pages.shape[-1])

    @property
    def num_parts(self):
        return len(self.query)

    def part(self, b):
        """Sequence b as a dense problem without batch axes; only the pages within its length are read."""
        length = int(self.kv_lengths[b])
        pages = self.block_table[b, : -(-length // self.page_size)]
        key, value = (joined_pages(side[pages])[:, :length] for side in (self.key_pages, self.value_pages))
        options = self.options_at(per_score=(b, ..., slice(length)), per_head=b, per_entry=b)
        return Problem(query=self.query[b], key=key, value=value, **options.options())

    @property
    def input_dtype(self):
        return self.query.dtype

    def place(self, b):
        return (b,)

    def outline(self, b):
        length, num_kv_heads = int(self.kv_lengths[b]), self.key_pages.shape[1]
        widths = self.key_pages.shape[-1], self.value_pages.shape[-1]
        key, value = (np.broadcast_to(np.float32(0), (num_kv_heads, length, width)) for width in widths)
        options = self.options_at(per_score=(b, ..., slice(length)), per_head=b, per_entry=b)
        return Problem(query=self.query[b], key=key, value=value, **options.options())


def joined_pages(pages):
    """Pages (n, K, page_size, dim) one after the other, (K, n * page_size, dim)."""
    by_head = pages.swapaxes(0, 1)
    return by_head.reshape(by_head.shape[0], by_head.shape[1] * by_head.shape[2], by_head.shape[3])


def paged_problem(query, key_pages, value_pages, *, block_table, kv_lengths=None, **options):
    """Check the arguments of `refattn.paged_attention`."""
    query, key_pages, value_pages = floating(query=query, key_pages=key_pages, value_pages=value_pages)
    block_table = as_int_array(block_table, "block_table")
    exactly_axes(4, "(batch, heads, length, dim)", query=query)
    exactly_axes(
        4, "(num_pages, num_kv_heads, page_size, dim)", key_pages=key_pages, value_pages=value_pages
    )
    batch, num_heads, q_len, head_dim = query.shape
    num_pages, num_kv_heads, page_size, key_head_dim = key_pages.shape
    fits_swapped = page_size and 0 in (num_heads % page_size, q_len % page_size)
    if num_kv_heads and num_heads % num_kv_heads and fits_swapped:
        what = f"{num_kv_heads} heads, of which {num_heads} is no multiple"
        raise ValueError(_pages_swapped(query, key_pages, what))
    require_head_ratio(num_heads, num_kv_heads)
    require_head_dim(head_dim, key_head_dim)
    if value_pages.shape[:3] != key_pages.shape[:3]:
        raise ValueError(
            f"value_pages must have shape ({num_pages}, {num_kv_heads}, {page_size}, any) to match "
            "key_pages; "
            f"got value_pages.shape={value_pages.shape}."
        )
    if page_size < 1:
        raise ValueError(
            f"key_pages must have a page_size of at least 1; got key_pages.shape={key_pages.shape}."
        )
    if block_table.ndim != 2 or len(block_table) != batch:
        raise ValueError(
            f"block_table must have shape ({batch}, max_pages), one row a sequence; got "
            f"block_table.shape={block_table.shape}."
        )
    if kv_lengths is None:
        raise TypeError(
            "kv_lengths must be given: without it the filled part of the last page is unknown; "
            "got kv_lengths=None."
        )
    require_memory((batch,), num_heads, q_len, value_pages.shape[-1])
    capacity = block_table.shape[1] * page_size
    kv_lengths = as_int_array(kv_lengths, "kv_lengths")
    longest = kv_lengths.max(initial=0)
    swapped = block_table.shape[1] * num_kv_heads
    if capacity < longest <= swapped and fits_swapped:
        what = f"room for {capacity} keys in a row of block_table, where kv_lengths has {longest}"
        raise ValueError(_pages_swapped(query, key_pages, what))
    sizes = Sizes((batch,), num_heads, q_len, capacity, head_dim)
    checked = checked_options(sizes, kv_lengths=kv_lengths, **options)
    num_used = -(-checked["kv_lengths"] // page_size)
    table = block_table[:, : num_used.max(initial=0)]
    # numbers of 8 bytes, truth values of 1
    ensure_allocatable(8 * table.shape[1] + 3 * table.size, "page numbers and their checks")
    wrong = (np.arange(table.shape[1]) < num_used[:, None]) & ((table < 0) | (table >= num_pages))
    if wrong.any():
        b, page = np.argwhere(wrong)[0]
        raise ValueError(
            f"block_table must hold pages between 0 and {num_pages - 1} within each length; "
            f"got block_table[{b}, {page}]={block_table[b, page]}."
        )
    return PagedProblem(
        query=query, key_pages=key_pages, value_pages=value_pages, block_table=block_table, **checked
    )


def _pages_swapped(query, key_pages, what):
    """The error of pages (and query) in the layout of flash_attn, by what they would mean in ours."""
    arrays = "key_pages and value_pages"
    if query.shape[1] % key_pages.shape[2]:
        arrays = f"query, {arrays}"
    return (
        "key_pages must have axes (num_pages, num_kv_heads, page_size, dim); got "
        f"key_pages.shape={key_pages.shape}: {what}. It fits (num_pages, page_size, num_kv_heads, "
        f"dim), as flash_attn has it: swap axes 1 and 2 of {arrays}."
    )


PAGED = Form(
    name="paged",
    function="paged_attention",
    arrays={
        "query": "batch head row head_dim",
        "key_pages": "page kv_head slot head_dim",
        "value_pages": "page kv_head slot v_head_dim",
    },
    results={"output": "batch head row v_head_dim", "lse": "batch head row"},
    check=paged_problem,
    structure={"block_table": "batch page", "kv_lengths": "batch"},
)
