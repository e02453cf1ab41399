"""From operands to work: which rows and keys make one work item, in what order, and how large a tile is.

Three choices decide speed: the keys of a tile (`KEY_TILE`), the rows of a block (`row_blocks`; `PANELS` in `kernels/blocks.py`) and where keys are split
(`split_keys`). None of them may depend on the number of threads: the grouping of sums, and so every bit of the result, follows from them.
"""

import math
from typing import NamedTuple

import numpy as np

from cpu_kernels.kernels.attend import attend
from cpu_kernels.kernels.blocks import PANELS, panels_of, scratch_layout, state_panel_size
from cpu_kernels.kernels.join import join
from cpu_kernels.kernels.tables import GROUP, HEAD, ITEM, SCRATCH, shape_dtype
from cpu_kernels.strided import Operand, absent, optional
from cpu_kernels.machine.thread_pool import run
from cpu_kernels.dtypes import inverse_cap, scales
from cpu_kernels.simd.vector import MAX_VECTORS, lanes
from refattn.calls.memory import ensure_allocatable

INT64, UINT8 = np.dtype(np.int64), np.dtype(np.uint8)
UNLIMITED = 1 << 60

# Keys of a tile: its keys, values and scores stay in L2 beside the panels. Multiples of the product's tile rows.
KEY_TILE = 96
WIDE_KEY_TILE = 48
WIDE = 512  # head_dim + v_head_dim from which a tile is narrow

# Keys are split where there are too few blocks of rows for many cores, into parts of at least this length; the states of parts take bounded memory.
ENOUGH_ITEMS = 16
SHORTEST_PART = 1024
STATES_BYTES = 2 << 20

# Query rows over all heads, and groups, that are planned at a time: so many that threads stay busy, so few that the tables stay below 2 MiB. Tables
# hold blocks of rows, and a block is as many rows as vectors have lanes.
ROWS_AT_ONCE = lanes(np.dtype(np.float32)) << 16
GROUPS_AT_ONCE = 1 << 11

FLOPS_PER_MICROSECOND = 50_000.0  # of one thread; a guess that only decides how many threads work

REMEMBERED_PLANS = 64
REMEMBERED_BYTES = 1 << 16  # of one plan


class Operands(NamedTuple):
    query: Operand
    key: Operand
    value: Operand
    output: Operand
    lse: Operand
    query_rope: Operand | None = None
    key_rope: Operand | None = None


class Sequences(NamedTuple):
    """What is attended to on its own: batch entries, packed sequences, local blocks. Fields are one number for all or an array, one a sequence."""

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


class Pages(NamedTuple):
    """Key j of a sequence is row j % size of page table[j // size]."""

    table: np.ndarray  # all tables end to end, int64, read-only
    size: int
    key_stride: int
    value_stride: int


class Plan(NamedTuple):
    """All that does not depend on the numbers in the operands."""

    shapes: np.ndarray  # one record `tables.shape_dtype`
    groups: np.ndarray
    items: np.ndarray
    joins: np.ndarray
    num_slots: int  # of the states that split keys leave
    cost: float  # microseconds of one thread


def batch_entries(batch_shape, q_len, kv_lengths, q_offset):
    """Every batch entry of dense operands as a sequence."""
    count = math.prod(batch_shape)
    entries = np.arange(count) if count > 1 else 0
    return Sequences(count, batch_shape, q_len, kv_lengths.reshape(-1), q_offset.reshape(-1), entries, entries)


def solve(options, operands, sequences, num_kv_heads, group_size, dims, *, pages=None):
    """Compute output and lse of all sequences.

    Parameters
    ----------
    options : refattn.calls.problem.Options
    operands : Operands
    sequences : Sequences
    dims : (head_dim, rope_dim, v_head_dim)
    pages : Pages, optional
        Without, the keys of a sequence lie evenly spaced.
    """
    if not operands.output.memory.size and not operands.lse.memory.size:
        return
    dtype = operands.output.memory.dtype
    bias, mask, keep = optional(options.bias, dtype), optional(options.mask, UINT8), optional(options.dropout_mask, UINT8)
    query_rope, key_rope = operands.query_rope or absent(dtype), operands.key_rope or absent(dtype)
    query, key, value, output, lse = operands[:5]
    table, *paging = pages or (absent(INT64).memory, 0, 0, 0)
    given = (options.softcap, options.alibi_slopes, options.bias, options.mask, options.dropout_mask, options.sinks)
    switches = (*[x is not None for x in given], lse.memory.size > 0)
    scalars = (options.scale, options.softcap, options.left, options.right, options.keep_scale)
    places = tuple([operand[1:] for operand in (query, query_rope, key, key_rope, value, output, lse, bias, mask, keep)])
    heads = head_table(options)
    for portion in portions(sequences, num_kv_heads, group_size):
        plan = planned(dtype, portion, num_kv_heads, group_size, dims, tuple(paging), switches, scalars, places)
        shape = plan.shapes[0]
        scratch = int(shape["scratch_end"])
        states = np.empty(plan.num_slots * int(shape["state_slot"]), dtype)
        run(
            attend, len(plan.items), plan.shapes, plan.items, plan.groups, heads, table, query.memory, query_rope.memory, key.memory, key_rope.memory,
            value.memory, bias.memory, mask.memory, keep.memory, output.memory, lse.memory, states, cost=plan.cost, scratch=scratch, dtype=dtype,
        )  # fmt: skip
        if plan.num_slots:
            run(
                join, len(plan.joins), plan.shapes, plan.joins, plan.groups, heads, query.memory, query_rope.memory, output.memory, lse.memory, states,
                cost=states.size / FLOPS_PER_MICROSECOND, scratch=scratch, dtype=dtype,
            )  # fmt: skip


def portions(sequences, num_kv_heads, group_size):
    """The sequences, in portions whose tables of work are small; a long one is cut between rows, each part with its own offset."""
    most_rows = max(1, ROWS_AT_ONCE // (num_kv_heads * group_size))
    most = max(1, GROUPS_AT_ONCE // num_kv_heads)
    longest = sequences.q_lens if isinstance(sequences.q_lens, int) else int(np.max(sequences.q_lens, initial=0))
    if sequences.count <= most and sequences.count * longest <= most_rows:
        yield sequences
        return
    for first in range(0, sequences.count, most):
        count = min(most, sequences.count - first)
        part = Sequences(count, sequences.batch_shape, *(x[first : first + count] if np.ndim(x) else x for x in sequences[2:]))
        lens = np.broadcast_to(part.q_lens, count)
        before = np.cumsum(lens) - lens
        for row in range(0, int(lens.sum()), most_rows):
            start, stop = (np.clip(edge - before, 0, lens) for edge in (row, row + most_rows))
            yield part._replace(q_lens=stop - start, q_offsets=part.q_offsets + start, first_row=part.first_row + start)


_PLANS = {}  # a decoding loop plans once: planning costs more than attending to a few keys


def planned(dtype, sequences, *described):
    """The plan of a call, made or remembered."""
    key = (dtype, *[x.tobytes() if isinstance(x, np.ndarray) else x for x in sequences], *described)
    plan = _PLANS.get(key)
    if plan is None:
        plan = make_plan(dtype, sequences, *described)
        if plan.groups.nbytes + plan.items.nbytes <= REMEMBERED_BYTES:
            if len(_PLANS) >= REMEMBERED_PLANS:
                _PLANS.clear()
            _PLANS[key] = plan
    return plan


def make_plan(dtype, sequences, num_kv_heads, group_size, dims, paging, switches, scalars, places):
    head_dim, rope_dim, v_head_dim = dims
    scale, cap, left, right, keep_scale = scalars
    query_scale, score_scale = scales(scale)
    page_size, key_page, value_page = paging
    names = ("query", "query_rope", "key", "key_rope", "value", "output", "lse", "bias", "mask", "keep")
    strides = {name: place[2] for name, place in zip(names, places)}
    refuse_repeated_keys(strides, page_size or int(np.max(sequences.kv_lens, initial=0)), sequences.kv_lens, dims, dtype)
    key_tile = WIDE_KEY_TILE if head_dim + rope_dim + v_head_dim >= WIDE else KEY_TILE
    whole = all(dim % lanes(dtype) == 0 for dim in dims)
    state_panel = state_panel_size(v_head_dim, dtype.itemsize)
    panels = panels_of(int(np.max(sequences.q_lens, initial=0)) * group_size, dtype.itemsize)
    fields = dict(
        group_size=group_size, head_dim=head_dim, rope_dim=rope_dim, v_head_dim=v_head_dim, left=UNLIMITED if left is None else left,
        right=UNLIMITED if right is None else right, page_size=page_size or max(1, int(np.max(sequences.kv_lens, initial=0))), key_page=key_page,
        value_page=value_page, key_tile=key_tile, state_panel=state_panel, state_slot=state_panel * panels,
        query_scale=query_scale, score_scale=score_scale, has_score_scale=score_scale != 1, cap=cap or 0,
        inverse_cap=inverse_cap(cap, dtype) if cap else 0, keep_scale=keep_scale,
        contiguous=whole and all(strides[name][2] == 1 for name in ("query", "key", "value"))
        and (not rope_dim or strides["query_rope"][2] == strides["key_rope"][2] == 1),
    )  # fmt: skip
    fields.update(zip(("has_softcap", "has_alibi", "has_bias", "has_mask", "has_keep", "has_sinks", "wants_lse"), switches))
    for name, axes in strides.items():
        fields.update(zip((f"{name}_head", f"{name}_row", f"{name}_key" if name in ("bias", "mask", "keep") else f"{name}_dim"), axes))
    fields.update(zip(SCRATCH, scratch_layout(head_dim, rope_dim, v_head_dim, key_tile, dtype.itemsize)))
    shapes = np.array([tuple(fields[name] for name in shape_dtype(dtype).names)], shape_dtype(dtype))
    groups = group_table(dict(zip(names, places)), sequences, num_kv_heads, group_size)
    items, joins, num_slots, flops = work_items(groups, shapes[0], dtype)
    return Plan(shapes, groups, items, joins, num_slots, flops / FLOPS_PER_MICROSECOND)


def refuse_repeated_keys(strides, rows, kv_lens, dims, dtype):
    """Raise MemoryError for views that repeat a few keys more often than memory could hold keys: nobody means to wait for those."""
    needed = int(np.max(kv_lens, initial=0)) * sum(dims) * dtype.itemsize
    for name, dim in (("key", dims[0]), ("key_rope", dims[1]), ("value", dims[2])):
        _, row_stride, dim_stride = strides[name]
        if dim and 1 + (rows - 1) * abs(row_stride) + (dim - 1) * abs(dim_stride) < rows * dim:
            ensure_allocatable(needed, "the keys and values of one head, views that repeat their elements,")


NO_HEADS = np.zeros(1, HEAD)


def head_table(options):
    """Slopes and sinks over (batch entry, head)."""
    given = options.alibi_slopes if options.alibi_slopes is not None else options.sinks
    if given is None:
        return NO_HEADS
    heads = np.zeros(given.size, HEAD)
    if options.alibi_slopes is not None:
        heads["slope"] = options.alibi_slopes.reshape(-1)
    if options.sinks is not None:
        heads["sink"] = options.sinks.reshape(-1)
    return heads


def group_table(places, sequences, num_kv_heads, group_size):
    """One row for each (sequence, kv head)."""
    groups = np.zeros((sequences.count, num_kv_heads), GROUP)
    per_sequence = lambda values: np.broadcast_to(values, sequences.count)[:, None]
    heads = np.arange(num_kv_heads)
    index_of_entry = np.unravel_index(per_sequence(sequences.entry), sequences.batch_shape) if sequences.batch_shape else ()
    for name, (start, outer, (head, row, last)) in places.items():
        entries = start + sum(index * stride for index, stride in zip(index_of_entry, outer))
        along_keys = name in ("key", "key_rope", "value")
        steps = (sequences.first_key if along_keys else sequences.first_row) * row
        if name in ("bias", "mask", "keep"):
            steps = steps + sequences.first_key * last
        groups[name] = entries + per_sequence(steps) + heads * (head * (1 if along_keys else group_size))
    groups["head"] = (per_sequence(sequences.option_entry) * num_kv_heads + heads) * group_size
    for name, values in (
        ("q_len", sequences.q_lens), ("kv_len", sequences.kv_lens), ("q_offset", sequences.q_offsets), ("page_table", sequences.page_tables),
    ):  # fmt: skip
        groups[name] = per_sequence(values)
    return groups.reshape(-1)


def work_items(groups, shape, dtype):
    """(items, joining items, slots of states, floating-point operations), the costliest items first."""
    items = row_blocks(groups, shape, PANELS * MAX_VECTORS * lanes(dtype))
    start, stop = visible_keys(items, groups, shape)
    dims = shape["head_dim"] + shape["rope_dim"] + shape["v_head_dim"]
    flops = 2.0 * dims * (items["last_row"] - items["first_row"]) * (stop - start)
    state_bytes = shape["state_slot"] * dtype.itemsize
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
