"""One call by name: what front doors describe, and all that plans and drivers are told of it."""

import math
from typing import NamedTuple

import numpy as np

from cpu_kernels.strided import Operand, absent
from refattn.calls.options import Options, Visibility


class Arrays(NamedTuple):
    """The caller's arrays: query (*batch, H, T, D), key (*batch, K, S, D) and value (*batch, K, S, E), or
    pages (num_pages, K, page_size, D or E).

    A second part of queries and keys, in memory of its own, is called rope.
    """

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    query_rope: np.ndarray | None = None
    key_rope: np.ndarray | None = None


class Operands(NamedTuple):
    """All arrays of a call as flat memory, in the order of `kernels.tables.Memory`; those that the call has
    not are `strided.absent`.
    """

    query: Operand
    query_rope: Operand
    key: Operand
    key_rope: Operand
    value: Operand
    bias: Operand
    mask: Operand
    keep: Operand
    output: Operand
    lse: Operand


# Of each operand all but its memory: offset, strides of the batch axes, strides of the others.
Places = NamedTuple("Places", [(name, tuple) for name in Operands._fields])


class Dims(NamedTuple):
    num_kv_heads: int
    group_size: int  # query heads that share a kv head
    head_dim: int
    rope_dim: int
    v_head_dim: int


class Sequences(NamedTuple):
    """What is attended to on its own: batch entries, packed sequences, parts of block-local calls. Fields
    are one number for all or an array, one a sequence.
    """

    count: int
    batch_shape: tuple  # of the operands
    q_lens: np.ndarray | int
    kv_lens: np.ndarray | int
    q_offsets: np.ndarray | int
    entry: np.ndarray | int  # which batch entry of the operands
    option_entry: np.ndarray | int  # which batch entry of slopes and sinks
    first_row: np.ndarray | int = 0  # where it begins within the entry's rows and keys
    first_key: np.ndarray | int = 0
    page_tables: np.ndarray | int = 0  # where its table begins in `Pages.table`

    @property
    def longest(self):
        """Most query positions that a sequence has."""
        return self.q_lens if isinstance(self.q_lens, int) else int(np.max(self.q_lens, initial=0))


def batch_entries(batch_shape, q_len, kv_lengths, q_offset):
    """Every batch entry of dense arrays as a sequence."""
    count = math.prod(batch_shape)
    entries = np.arange(count) if count > 1 else 0
    return Sequences(
        count, batch_shape, q_len, kv_lengths.reshape(-1), q_offset.reshape(-1), entries, entries
    )


class Pages(NamedTuple):
    """Key j of a sequence is row j % size of page table[j // size]; with size 0 the keys lie evenly spaced
    instead.
    """

    table: np.ndarray  # all tables end to end, int64, read-only
    size: int
    key_stride: int = 0  # from page to page, in elements
    value_stride: int = 0


NO_PAGES = Pages(absent(np.dtype(np.int64)).memory, 0)


class Call(NamedTuple):
    """Everything about one call of the driver."""

    options: Options
    operands: Operands
    dims: Dims
    sequences: Sequences
    pages: Pages


class Outline(NamedTuple):
    """All of a call that its plan depends on, besides the sequences: hashable, and without a number from the
    operands.
    """

    dtype: np.dtype
    dims: Dims
    places: Places
    page_size: int
    key_page: int
    value_page: int
    scale: float
    softcap: float | None
    visibility: Visibility
    keep_scale: float
    has_softcap: bool
    has_alibi: bool
    has_bias: bool
    has_mask: bool
    has_keep: bool
    has_sinks: bool
    wants_lse: bool


def outline(call):
    options, operands, pages = call.options, call.operands, call.pages
    return Outline(
        dtype=operands.output.memory.dtype,
        dims=call.dims,
        places=Places._make([operand[1:] for operand in operands]),
        page_size=pages.size,
        key_page=pages.key_stride,
        value_page=pages.value_stride,
        scale=options.scale,
        softcap=options.softcap,
        visibility=options.visibility,
        keep_scale=options.keep_scale,
        has_softcap=options.softcap is not None,
        has_alibi=options.alibi_slopes is not None,
        has_bias=options.bias is not None,
        has_mask=options.mask is not None,
        has_keep=options.dropout_mask is not None,
        has_sinks=options.sinks is not None,
        wants_lse=operands.lse.memory.size > 0,
    )
