"""From operands to work: which rows and keys make one work item, in what order, and how large a tile is.

Three choices decide speed: the keys of a tile (`KEY_TILE`), the rows of a block (`row_blocks`) and where keys are split (`split_keys`). None of them
may depend on the number of threads: the grouping of sums, and so every bit of the result, follows from them.
"""

from typing import NamedTuple

import numpy as np

from cpu_kernels.kernels.attend import attend
from cpu_kernels.kernels.blocks import PANELS, scratch_layout, state_panel_size
from cpu_kernels.kernels.exponential import LOG2E
from cpu_kernels.kernels.join import join
from cpu_kernels.kernels.tables import (
    BIAS, FIRST_KEY, FIRST_ROW, GROUP, HEAD, KEEP, KEY, KEY_ROPE, KV_LEN, LAST_KEY, LAST_ROW, LSE, MASK, NUM_GROUP_COLUMNS, NUM_ITEM_COLUMNS,
    NUM_STATES, OUTPUT, PAGE_TABLE, Q_LEN, Q_OFFSET, QUERY, QUERY_ROPE, STATE, VALUE, Memory, Shape,
)  # fmt: skip
from cpu_kernels.operands import Operand, absent, optional
from cpu_kernels.threading import run
from cpu_kernels.vector import MAX_VECTORS, lanes

UNLIMITED = 1 << 60

# Keys of a tile: its keys, values and scores stay in L2 beside the panels. Multiples of the product's tile rows.
KEY_TILE = 96
WIDE_KEY_TILE = 48
WIDE = 512  # head_dim + v_head_dim from which a tile is narrow

# Keys are split where there are too few blocks of rows for many cores, into parts of at least this length; the states of parts take bounded memory.
ENOUGH_ITEMS = 16
SHORTEST_PART = 512
STATES_BYTES = 4 << 20

FLOPS_PER_MICROSECOND = 50_000.0


class Operands(NamedTuple):
    query: Operand
    key: Operand
    value: Operand
    output: Operand
    lse: Operand
    query_rope: Operand | None = None
    key_rope: Operand | None = None


class Sequences(NamedTuple):
    """One row for each batch entry (or packed sequence, or local block)."""

    q_lens: np.ndarray
    kv_lens: np.ndarray
    q_offsets: np.ndarray
    batch: np.ndarray  # entry of alibi_slopes and sinks
    page_tables: np.ndarray | int = 0  # where each one's table begins in `Pages.table`


class Pages(NamedTuple):
    """Key j of a sequence is row j % size of page table[j // size]."""

    table: np.ndarray  # all tables end to end, int64, read-only
    size: int
    key_stride: int
    value_stride: int


def compute_dtype(*arrays):
    """float64 if an operand is, else float32: narrower ones are widened."""
    return np.dtype(np.float64 if any(x.dtype == np.float64 for x in arrays) else np.float32)


def solve(options, operands, sequences, num_kv_heads, group_size, dims, *, pages=None, bias=None, mask=None, keep=None):
    """Compute output and lse of all sequences.

    Parameters
    ----------
    options : refattn.problem.Options
    dims : (head_dim, rope_dim, v_head_dim)
    pages : Pages, optional
        Without, the keys of a sequence lie evenly spaced.
    bias, mask, keep : Operand, optional
        In place of those made from `options`.
    """
    dtype = operands.output.memory.dtype
    real = dtype.type
    head_dim, rope_dim, v_head_dim = dims
    bias = bias or optional(options.bias, dtype)
    mask = mask or optional(options.mask, np.uint8)
    keep = keep or optional(options.dropout_mask, np.uint8)
    query_rope = operands.query_rope or absent(dtype)
    key_rope = operands.key_rope or absent(dtype)
    query, key, value, output, lse = operands[:5]

    columns = (
        (QUERY, query, group_size), (QUERY_ROPE, query_rope, group_size), (KEY, key, 1), (KEY_ROPE, key_rope, 1), (VALUE, value, 1),
        (OUTPUT, output, group_size), (LSE, lse, group_size), (BIAS, bias, group_size), (MASK, mask, group_size), (KEEP, keep, group_size),
    )  # fmt: skip
    groups = group_table(columns, sequences, num_kv_heads, group_size)
    pages = pages or Pages(absent(np.int64).memory, max(1, int(sequences.kv_lens.max(initial=0))), 0, 0)
    wide = head_dim + rope_dim + v_head_dim >= WIDE
    key_tile = WIDE_KEY_TILE if wide else KEY_TILE
    capped = options.softcap is not None
    factor = options.scale / options.softcap if capped else options.scale * LOG2E
    shape = Shape(
        group_size=group_size, head_dim=head_dim, rope_dim=rope_dim, v_head_dim=v_head_dim,
        left=UNLIMITED if options.left is None else options.left, right=UNLIMITED if options.right is None else options.right,
        page_size=pages.size, key_tile=key_tile, state_panel=state_panel_size(v_head_dim, dtype.itemsize),
        zero=real(0), query_scale=real(factor), cap=real(options.softcap * LOG2E if capped else 0), keep_scale=real(options.keep_scale),
        log2e=real(LOG2E),
        has_softcap=int(capped), has_alibi=int(options.alibi_slopes is not None), has_bias=int(options.bias is not None),
        has_mask=int(options.mask is not None), has_keep=int(options.dropout_mask is not None), has_sinks=int(options.sinks is not None),
        wants_lse=int(lse.memory.size > 0),
        query_head=query.strides[0], query_row=query.strides[1], query_dim=query.strides[2],
        query_rope_head=query_rope.strides[0], query_rope_row=query_rope.strides[1], query_rope_dim=query_rope.strides[2],
        key_page=pages.key_stride, key_row=key.strides[1], key_dim=key.strides[2],
        key_rope_row=key_rope.strides[1], key_rope_dim=key_rope.strides[2],
        value_page=pages.value_stride, value_row=value.strides[1], value_dim=value.strides[2],
        bias_head=bias.strides[0], bias_row=bias.strides[1], bias_key=bias.strides[2],
        mask_head=mask.strides[0], mask_row=mask.strides[1], mask_key=mask.strides[2],
        keep_head=keep.strides[0], keep_row=keep.strides[1], keep_key=keep.strides[2],
        output_head=output.strides[0], output_row=output.strides[1], lse_head=lse.strides[0],
    )  # fmt: skip
    at = scratch_layout(head_dim, rope_dim, v_head_dim, key_tile, dtype.itemsize)
    items, joins, num_slots, flops = work_items(groups, shape, dtype)
    memory = Memory(
        items=items, groups=groups, pages=pages.table, query=query.memory, query_rope=query_rope.memory, key=key.memory, key_rope=key_rope.memory,
        value=value.memory, bias=bias.memory, mask=mask.memory, keep=keep.memory, slopes=per_head(options.alibi_slopes, dtype),
        sinks=per_head(options.sinks, dtype), output=output.memory, lse=lse.memory,
        states=np.empty(num_slots * PANELS * shape.state_panel, dtype),
    )  # fmt: skip
    run(attend, len(items), shape, at, memory, cost=flops / FLOPS_PER_MICROSECOND, scratch=at.end, dtype=dtype)
    if len(joins):
        cost = num_slots * shape.state_panel * PANELS / FLOPS_PER_MICROSECOND
        run(join, len(joins), shape, at, memory._replace(items=joins), cost=cost, scratch=at.end, dtype=dtype)


def per_head(values, dtype):
    """Slopes or sinks over (batch entry, head), in units of log2."""
    if values is None:
        return absent(dtype).memory
    flat = (values * LOG2E).astype(dtype).reshape(-1)
    flat.flags.writeable = False
    return flat


def group_table(columns, sequences, num_kv_heads, group_size):
    """One row for each (sequence, kv head)."""
    num_sequences = len(sequences.q_lens)
    groups = np.empty((num_sequences, num_kv_heads, NUM_GROUP_COLUMNS), np.int64)
    heads = np.arange(num_kv_heads)
    for column, operand, heads_each in columns:
        groups[:, :, column] = np.asarray(operand.starts).reshape(-1, 1) + heads * (heads_each * operand.strides[0])
    groups[:, :, HEAD] = (sequences.batch[:, None] * num_kv_heads + heads) * group_size
    groups[:, :, Q_LEN] = sequences.q_lens[:, None]
    groups[:, :, KV_LEN] = sequences.kv_lens[:, None]
    groups[:, :, Q_OFFSET] = sequences.q_offsets[:, None]
    groups[:, :, PAGE_TABLE] = np.asarray(sequences.page_tables).reshape(-1, 1)
    return groups.reshape(-1, NUM_GROUP_COLUMNS)


def work_items(groups, shape, dtype):
    """(items, joining items, slots of states, floating-point operations), the costliest items first."""
    items = row_blocks(groups, shape, PANELS * MAX_VECTORS * lanes(dtype))
    keys = visible_keys(items, groups, shape)
    dims = shape.head_dim + shape.rope_dim + shape.v_head_dim
    flops = 2.0 * dims * (items[:, LAST_ROW] - items[:, FIRST_ROW]) * (keys[:, 1] - keys[:, 0])
    state_bytes = PANELS * shape.state_panel * dtype.itemsize
    items, joins, num_slots, flops = split_keys(items, keys, flops, max(2, min(ENOUGH_ITEMS, STATES_BYTES // state_bytes)))
    order = np.argsort(-flops, kind="stable")
    return items[order], joins, num_slots, float(flops.sum())


def row_blocks(groups, shape, block):
    """Cut every group's rows into blocks; each sees all keys."""
    rows = groups[:, Q_LEN] * shape.group_size
    blocks = -(-rows // block)
    of_group = np.repeat(np.arange(len(groups)), blocks)
    items = np.zeros((len(of_group), NUM_ITEM_COLUMNS), np.int64)
    items[:, GROUP] = of_group
    items[:, FIRST_ROW] = (np.arange(len(of_group)) - np.repeat(np.cumsum(blocks) - blocks, blocks)) * block
    items[:, LAST_ROW] = np.minimum(items[:, FIRST_ROW] + block, rows[of_group])
    items[:, LAST_KEY] = groups[of_group, KV_LEN]
    items[:, STATE] = -1
    return items


def visible_keys(items, groups, shape):
    """[start, stop) of the keys that some row of each item may see, shape (N, 2)."""
    group = groups[items[:, GROUP]]
    first = group[:, Q_OFFSET] + items[:, FIRST_ROW] // shape.group_size
    last = group[:, Q_OFFSET] + (items[:, LAST_ROW] - 1) // shape.group_size
    start = np.clip(first - shape.left, 0, group[:, KV_LEN])
    stop = np.clip(last + shape.right + 1, start, group[:, KV_LEN])
    return np.stack([start, stop], axis=1)


def split_keys(items, keys, flops, enough):
    """Cut the keys of items that are more than their share of `enough` equal pieces of work; each part leaves its state in a slot."""
    share = flops.sum() / enough
    length = keys[:, 1] - keys[:, 0]
    parts = np.ones(len(items), np.int64)
    if share > 0:
        parts = np.clip(np.minimum(np.ceil(flops / share), length // SHORTEST_PART), 1, None).astype(np.int64)
    if (parts == 1).all():
        return items, items[:0], 0, flops
    of_item = np.repeat(np.arange(len(items)), parts)
    number = np.arange(len(of_item)) - np.repeat(np.cumsum(parts) - parts, parts)
    cut = items[of_item]
    many, steps = parts[of_item] > 1, -(-length // parts)[of_item]
    # The first part starts at key 0, where a sink joins; the last ends where the keys end.
    cut[:, FIRST_KEY] = np.where(many & (number > 0), keys[of_item, 0] + number * steps, items[of_item, FIRST_KEY])
    cut[:, LAST_KEY] = np.where(many & (number + 1 < parts[of_item]), keys[of_item, 0] + (number + 1) * steps, items[of_item, LAST_KEY])
    cut[many, STATE] = np.arange(many.sum())
    joins = cut[many & (number == 0)]
    joins[:, NUM_STATES] = parts[parts > 1]
    return cut, joins, int(many.sum()), (flops / parts)[of_item]
