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
from cpu_kernels.kernels.tables import GROUP, HEAD, ITEM, SCRATCH, shape_dtype
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
    head_dim, rope_dim, v_head_dim = dims
    bias = bias or optional(options.bias, dtype)
    mask = mask or optional(options.mask, np.uint8)
    keep = keep or optional(options.dropout_mask, np.uint8)
    query_rope = operands.query_rope or absent(dtype)
    key_rope = operands.key_rope or absent(dtype)
    query, key, value, output, lse = operands[:5]

    starts = {
        "query": (query, group_size), "query_rope": (query_rope, group_size), "key": (key, 1), "key_rope": (key_rope, 1), "value": (value, 1),
        "output": (output, group_size), "lse": (lse, group_size), "bias": (bias, group_size), "mask": (mask, group_size), "keep": (keep, group_size),
    }  # fmt: skip
    groups = group_table(starts, sequences, num_kv_heads, group_size)
    pages = pages or Pages(absent(np.int64).memory, max(1, int(sequences.kv_lens.max(initial=0))), 0, 0)
    wide = head_dim + rope_dim + v_head_dim >= WIDE
    key_tile = WIDE_KEY_TILE if wide else KEY_TILE
    capped = options.softcap is not None
    factor = options.scale / options.softcap if capped else options.scale * LOG2E
    fields = dict(
        group_size=group_size, head_dim=head_dim, rope_dim=rope_dim, v_head_dim=v_head_dim,
        left=UNLIMITED if options.left is None else options.left, right=UNLIMITED if options.right is None else options.right,
        page_size=pages.size, key_tile=key_tile, state_panel=state_panel_size(v_head_dim, dtype.itemsize),
        query_scale=factor, cap=options.softcap * LOG2E if capped else 0, keep_scale=options.keep_scale, log2e=LOG2E,
        has_softcap=capped, has_alibi=options.alibi_slopes is not None, has_bias=options.bias is not None, has_mask=options.mask is not None,
        has_keep=options.dropout_mask is not None, has_sinks=options.sinks is not None, wants_lse=lse.memory.size > 0,
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
    vector = lanes(dtype)
    whole = head_dim % vector == 0 and v_head_dim % vector == 0 and not rope_dim
    fields["contiguous"] = whole and fields["key_dim"] == 1 and fields["value_dim"] == 1
    fields.update(zip(SCRATCH, scratch_layout(head_dim, rope_dim, v_head_dim, key_tile, dtype.itemsize)))
    shapes = np.array([tuple(fields[name] for name in shape_dtype(dtype).names)], shape_dtype(dtype))
    items, joins, num_slots, flops = work_items(groups, shapes[0], dtype)
    heads = head_table(options)
    states = np.empty(num_slots * PANELS * fields["state_panel"], dtype)
    scratch = fields["scratch_end"]
    run(
        attend, len(items), shapes, items, groups, heads, pages.table, query.memory, query_rope.memory, key.memory, key_rope.memory, value.memory,
        bias.memory, mask.memory, keep.memory, output.memory, lse.memory, states, cost=flops / FLOPS_PER_MICROSECOND, scratch=scratch, dtype=dtype,
    )  # fmt: skip
    if len(joins):
        run(
            join, len(joins), shapes, joins, groups, heads, query.memory, query_rope.memory, output.memory, lse.memory, states,
            cost=states.size / FLOPS_PER_MICROSECOND, scratch=scratch, dtype=dtype,
        )  # fmt: skip


NO_HEADS = np.zeros(1, HEAD)


def head_table(options):
    """Slopes and sinks over (batch entry, head)."""
    given = options.alibi_slopes if options.alibi_slopes is not None else options.sinks
    if given is None:
        return NO_HEADS
    heads = np.zeros(given.size, HEAD)
    for name, values in (("slope", options.alibi_slopes), ("sink", options.sinks)):
        if values is not None:
            heads[name] = values.reshape(-1) * LOG2E
    return heads


def group_table(operands, sequences, num_kv_heads, group_size):
    """One row for each (sequence, kv head); operands maps fields to (operand, heads of a group)."""
    groups = np.empty((len(sequences.q_lens), num_kv_heads), GROUP)
    heads = np.arange(num_kv_heads)
    for name, (operand, heads_each) in operands.items():
        groups[name] = np.asarray(operand.starts).reshape(-1, 1) + heads * (heads_each * operand.strides[0])
    groups["head"] = (sequences.batch[:, None] * num_kv_heads + heads) * group_size
    for name, values in (
        ("q_len", sequences.q_lens), ("kv_len", sequences.kv_lens), ("q_offset", sequences.q_offsets), ("page_table", sequences.page_tables),
    ):  # fmt: skip
        groups[name] = np.asarray(values).reshape(-1, 1)
    return groups.reshape(-1)


def work_items(groups, shape, dtype):
    """(items, joining items, slots of states, floating-point operations), the costliest items first."""
    items = row_blocks(groups, shape, PANELS * MAX_VECTORS * lanes(dtype))
    start, stop = visible_keys(items, groups, shape)
    dims = shape["head_dim"] + shape["rope_dim"] + shape["v_head_dim"]
    flops = 2.0 * dims * (items["last_row"] - items["first_row"]) * (stop - start)
    state_bytes = PANELS * shape["state_panel"] * dtype.itemsize
    items, joins, num_slots, flops = split_keys(items, start, stop, flops, max(2, min(ENOUGH_ITEMS, STATES_BYTES // state_bytes)))
    order = np.argsort(-flops, kind="stable")
    return items[order], joins, num_slots, float(flops.sum())


def row_blocks(groups, shape, block):
    """Cut every group's rows into blocks; each sees all keys."""
    rows = groups["q_len"] * shape["group_size"]
    blocks = -(-rows // block)
    of_group = np.repeat(np.arange(len(groups)), blocks)
    items = np.zeros(len(of_group), ITEM)
    items["group"] = of_group
    items["first_row"] = (np.arange(len(of_group)) - np.repeat(np.cumsum(blocks) - blocks, blocks)) * block
    items["last_row"] = np.minimum(items["first_row"] + block, rows[of_group])
    items["last_key"] = groups["kv_len"][of_group]
    items["state"] = -1
    return items


def visible_keys(items, groups, shape):
    """The keys [start, stop) that some row of each item may see."""
    group = groups[items["group"]]
    first = group["q_offset"] + items["first_row"] // shape["group_size"]
    last = group["q_offset"] + (items["last_row"] - 1) // shape["group_size"]
    start = np.clip(first - shape["left"], 0, group["kv_len"])
    return start, np.clip(last + shape["right"] + 1, start, group["kv_len"])


def split_keys(items, start, stop, flops, enough):
    """Cut the keys of items that are more than their share of `enough` equal pieces of work; each part leaves its state in a slot."""
    share = flops.sum() / enough
    parts = np.ones(len(items), np.int64)
    if share > 0:
        parts = np.clip(np.minimum(np.ceil(flops / share), (stop - start) // SHORTEST_PART), 1, None).astype(np.int64)
    if (parts == 1).all():
        return items, items[:0], 0, flops
    of_item = np.repeat(np.arange(len(items)), parts)
    number = np.arange(len(of_item)) - np.repeat(np.cumsum(parts) - parts, parts)
    cut = items[of_item]
    many, step, of_start = parts[of_item] > 1, -(-(stop - start) // parts)[of_item], start[of_item]
    # The first part starts at key 0, where a sink joins; the last ends where the keys end.
    cut["first_key"] = np.where(number > 0, of_start + number * step, cut["first_key"])
    cut["last_key"] = np.where(number + 1 < parts[of_item], of_start + (number + 1) * step, cut["last_key"])
    cut["state"] = np.where(many, np.cumsum(many) - 1, -1)
    joins = cut[many & (number == 0)]
    joins["num_states"] = parts[parts > 1]
    return cut, joins, int(many.sum()), (flops / parts)[of_item]
