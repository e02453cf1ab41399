"""From operands to work: which rows and keys make one work item, in what order, and how large a tile is.

Three choices decide speed: the keys of a tile (`KEY_TILE`), the rows of a block (`row_blocks`; `PANELS` in
`kernels/blocks.py`) and where keys are split (`split_keys`). None of them may depend on the number of
threads: the grouping of sums, and so every bit of the result, follows from them.
"""

from typing import NamedTuple

import numpy as np

from cpu_kernels.call import Sequences
from cpu_kernels.dtypes import inverse_cap, scales
from cpu_kernels.kernels.blocks import PANELS, panels_of, scratch_layout, state_panel_size
from cpu_kernels.kernels.few_rows import most_few_rows
from cpu_kernels.kernels.tables import GROUP, HEAD, ITEM, SCRATCH, params_dtype
from cpu_kernels.simd.registers import MAX_VECTORS, lanes
from refattn.calls.memory import ensure_allocatable
from refattn.calls.options import UNLIMITED
from refattn.exact.visibility import row_bounds

PER_SCORE = ("bias", "mask", "keep")  # operands whose last axis is the keys

# Keys of a tile: its keys, values and scores stay in L2 beside the panels. Multiples of the product's tile
# rows.
KEY_TILE = 96
WIDE_KEY_TILE = 48
WIDE = 512  # head_dim + v_head_dim from which a tile is narrow

# Keys are split where there are too few blocks of rows for many cores, into parts of at least this length;
# the states of parts take bounded memory.
ENOUGH_ITEMS = 16
SHORTEST_PART = 1024
STATES_BYTES = 2 << 20

# Query rows over all heads, and groups, that are planned at a time: so many that threads stay busy, so few
# that the tables stay below 2 MiB. Tables hold blocks of rows, and a block is as many rows as vectors have
# lanes.
ROWS_AT_ONCE = lanes(np.dtype(np.float32)) << 16
GROUPS_AT_ONCE = 1 << 11

FLOPS_PER_MICROSECOND = 50_000.0  # of one thread; a guess that only decides how many threads work

REMEMBERED_PLANS = 64
REMEMBERED_BYTES = 1 << 16  # of one plan


class Plan(NamedTuple):
    """All that does not depend on the numbers in the operands."""

    params: np.ndarray  # one record `tables.params_dtype`
    groups: np.ndarray
    items: np.ndarray
    joins: np.ndarray
    num_slots: int  # of the states that split keys leave
    cost: float  # microseconds of one thread


def portions(sequences, dims):
    """The sequences, in portions whose tables of work are small; a long one is cut between rows, each part
    with its own offset.
    """
    most_rows = max(1, ROWS_AT_ONCE // (dims.num_kv_heads * dims.group_size))
    most = max(1, GROUPS_AT_ONCE // dims.num_kv_heads)
    if sequences.count <= most and sequences.count * sequences.longest <= most_rows:
        yield sequences
        return
    for first in range(0, sequences.count, most):
        count = min(most, sequences.count - first)
        part = Sequences(
            count,
            sequences.batch_shape,
            *(x[first : first + count] if np.ndim(x) else x for x in sequences[2:]),
        )
        lens = np.broadcast_to(part.q_lens, count)
        before = np.cumsum(lens) - lens
        for row in range(0, int(lens.sum()), most_rows):
            start, stop = (np.clip(edge - before, 0, lens) for edge in (row, row + most_rows))
            yield part._replace(
                q_lens=stop - start, q_offsets=part.q_offsets + start, first_row=part.first_row + start
            )


_PLANS = {}  # a decoding loop plans once: planning costs more than attending to a few keys


def planned(outline, sequences):
    """The plan of a call, made or remembered."""
    key = (outline, *[x.tobytes() if isinstance(x, np.ndarray) else x for x in sequences])
    plan = _PLANS.get(key)
    if plan is None:
        plan = make_plan(outline, sequences)
        if plan.groups.nbytes + plan.items.nbytes <= REMEMBERED_BYTES:
            if len(_PLANS) >= REMEMBERED_PLANS:
                _PLANS.clear()
            _PLANS[key] = plan
    return plan


def make_plan(outline, sequences):
    dtype, longest = outline.dtype, int(np.max(sequences.kv_lens, initial=0))
    refuse_repeated_keys(outline, longest)
    fields = params_of(outline, longest, sequences.longest)
    params = np.array([tuple(fields[name] for name in params_dtype(dtype).names)], params_dtype(dtype))
    groups = group_table(outline, sequences)
    items, joins, num_slots, flops = work_items(groups, params[0], dtype, outline.visibility)
    return Plan(params, groups, items, joins, num_slots, flops / FLOPS_PER_MICROSECOND)


def params_of(outline, kv_len, q_len):
    """Values of the fields of `tables.params_dtype`, for sequences of at most so many keys and query
    positions.
    """
    dtype, dims, places, cap = outline.dtype, outline.dims, outline.places, outline.softcap
    head_dims = (dims.head_dim, dims.rope_dim, dims.v_head_dim)
    key_tile = WIDE_KEY_TILE if sum(head_dims) >= WIDE else KEY_TILE
    state_panel = state_panel_size(dims.v_head_dim, dtype.itemsize)
    query_scale, score_scale = scales(outline.scale)
    fields = outline._asdict() | dims._asdict()
    fields |= {name: UNLIMITED if x is None else x for name, x in outline.visibility._asdict().items()}
    fields |= dict(
        page_size=outline.page_size or max(1, kv_len),
        most_few_rows=most_few_rows(lanes(dtype)) if contiguous(outline) else 0,
        key_tile=key_tile,
        state_panel=state_panel,
        state_slot=state_panel * panels_of(q_len * dims.group_size, dtype.itemsize),
        query_scale=query_scale,
        score_scale=score_scale,
        has_score_scale=score_scale != 1,
        cap=cap or 0,
        inverse_cap=inverse_cap(cap, dtype) if cap else 0,
    )
    for name, place in places._asdict().items():
        _, _, (head, row, last) = place
        fields |= {
            f"{name}_head": head,
            f"{name}_row": row,
            f"{name}_key" if name in PER_SCORE else f"{name}_dim": last,
        }
    return fields | dict(zip(SCRATCH, scratch_layout(*head_dims, key_tile, dtype.itemsize)))


def contiguous(outline):
    """Whether the dims of queries, keys and values are whole vectors in memory."""
    dims, places = outline.dims, outline.places
    parts = [(places.query, dims.head_dim), (places.key, dims.head_dim), (places.value, dims.v_head_dim)]
    if dims.rope_dim:
        parts += [(places.query_rope, dims.rope_dim), (places.key_rope, dims.rope_dim)]
    return all(dim % lanes(outline.dtype) == 0 and strides[2] == 1 for (_, _, strides), dim in parts)


def refuse_repeated_keys(outline, kv_len):
    """Raise MemoryError for views that repeat a few keys more often than memory could hold keys: nobody
    means to wait for those.
    """
    dims, places = outline.dims, outline.places
    needed = kv_len * (dims.head_dim + dims.rope_dim + dims.v_head_dim) * outline.dtype.itemsize
    rows = outline.page_size or kv_len
    for (_, _, strides), dim in (
        (places.key, dims.head_dim),
        (places.key_rope, dims.rope_dim),
        (places.value, dims.v_head_dim),
    ):
        _, row_stride, dim_stride = strides
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


def group_table(outline, sequences):
    """One row for each (sequence, kv head)."""
    num_kv_heads, group_size = outline.dims.num_kv_heads, outline.dims.group_size
    groups = np.zeros((sequences.count, num_kv_heads), GROUP)

    def per_sequence(values):
        return np.broadcast_to(values, sequences.count)[:, None]

    heads = np.arange(num_kv_heads)
    index_of_entry = (
        np.unravel_index(per_sequence(sequences.entry), sequences.batch_shape)
        if sequences.batch_shape
        else ()
    )
    for name, (start, outer, (head, row, last)) in outline.places._asdict().items():
        entries = start + sum(index * stride for index, stride in zip(index_of_entry, outer))
        along_keys = name in ("key", "key_rope", "value")
        steps = (sequences.first_key if along_keys else sequences.first_row) * row
        if name in PER_SCORE:
            steps = steps + sequences.first_key * last
        groups[name] = entries + per_sequence(steps) + heads * (head * (1 if along_keys else group_size))
    groups["head"] = (per_sequence(sequences.option_entry) * num_kv_heads + heads) * group_size
    for name, values in (
        ("q_len", sequences.q_lens),
        ("kv_len", sequences.kv_lens),
        ("q_offset", sequences.q_offsets),
        ("page_table", sequences.page_tables),
    ):
        groups[name] = per_sequence(values)
    return groups.reshape(-1)


def work_items(groups, params, dtype, visibility):
    """(items, joining items, slots of states, floating-point operations), the costliest items first."""
    items = row_blocks(groups, params, PANELS * MAX_VECTORS * lanes(dtype))
    start, stop = visible_keys(items, groups, params["group_size"], visibility)
    dims = params["head_dim"] + params["rope_dim"] + params["v_head_dim"]
    flops = 2.0 * dims * (items["last_row"] - items["first_row"]) * (stop - start)
    state_bytes = params["state_slot"] * dtype.itemsize
    items, joins, num_slots, flops = split_keys(
        items, start, stop, flops, max(2, min(ENOUGH_ITEMS, STATES_BYTES // state_bytes))
    )
    order = np.argsort(-flops, kind="stable")
    return items[order], joins, num_slots, float(flops.sum())


def row_blocks(groups, params, block):
    """Cut every group's rows into blocks; each sees all keys."""
    rows = groups["q_len"] * params["group_size"]
    blocks = -(-rows // block)
    of_group = np.repeat(np.arange(len(groups)), blocks)
    items = np.zeros(len(of_group), ITEM)
    items["group"] = of_group
    items["first_row"] = (np.arange(len(of_group)) - np.repeat(np.cumsum(blocks) - blocks, blocks)) * block
    items["last_row"] = np.minimum(items["first_row"] + block, rows[of_group])
    items["last_key"] = groups["kv_len"][of_group]
    items["state"] = -1
    return items


def visible_keys(items, groups, group_size, visibility):
    """The keys [start, stop) that some row of each item may see."""
    group = groups[items["group"]]
    first = group["q_offset"] + items["first_row"] // group_size
    last = group["q_offset"] + (items["last_row"] - 1) // group_size
    start, _ = row_bounds(visibility, first, group["kv_len"])
    _, stop = row_bounds(visibility, last, group["kv_len"])
    return start, stop


def split_keys(items, start, stop, flops, enough):
    """Cut the keys of items that are more than their share of `enough` equal pieces of work; each part
    leaves its state in a slot.
    """
    share = flops.sum() / enough
    parts = np.ones(len(items), np.int64)
    if share > 0:
        parts = np.clip(np.minimum(np.ceil(flops / share), (stop - start) // SHORTEST_PART), 1, None).astype(
            np.int64
        )
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
