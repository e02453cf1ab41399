"""A flash attention forward pass in Triton, for GPUs, with the faults of `tiled_flash.py` switched at
compile time.

One program computes 64 rows of one query head: it goes through the keys 64 at a time, and holds the running
maximum, the running sum and the accumulator of its rows. A fault is a constexpr, so that the right kernel is
compiled without any trace of them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from tiled_flash import FAULTS, KEYS, LOG2E, RIGHT, ROWS, require_fault

HEAD_DIMS = (16, 32, 64, 128, 256)
SUPPORTED = "head_dim and v_head_dim must be equal and one of 16, 32, 64, 128, 256"


@triton.jit
def _forward(
    query,
    key,
    value,
    output,
    query_batch,
    query_head,
    query_row,
    query_dim,
    key_batch,
    key_head,
    key_row,
    key_dim,
    value_batch,
    value_head,
    value_row,
    value_dim,
    output_batch,
    output_head,
    output_row,
    output_dim,
    heads,
    group,
    kv_heads,
    q_len,
    kv_len,
    scale,
    CAUSAL: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    NO_RESCALE: tl.constexpr,
    SUM_NOT_RESCALED: tl.constexpr,
    TAIL_NOT_MASKED: tl.constexpr,
    CAUSAL_BY_TILE: tl.constexpr,
    TILE_SKIPPED: tl.constexpr,
    LAST_TILE_DROPPED: tl.constexpr,
    HEAD_MODULO: tl.constexpr,
    BFLOAT16_SUM: tl.constexpr,
):
    first = tl.program_id(0) * ROWS
    batch = tl.program_id(1) // heads
    head = tl.program_id(1) % heads
    kv_head = head // group
    if HEAD_MODULO:
        kv_head = head % kv_heads

    rows = first + tl.arange(0, ROWS)
    dims = tl.arange(0, DIM)
    inside = rows[:, None] < q_len
    at = query + batch * query_batch + head * query_head
    q = tl.load(at + rows[:, None] * query_row + dims[None, :] * query_dim, mask=inside, other=0.0)

    last_row = tl.minimum(first + ROWS, q_len) - 1
    last = last_row + kv_len - q_len  # the last key that the last row sees
    position = rows + kv_len - q_len
    if CAUSAL_BY_TILE:
        position = tl.full([ROWS], 0, tl.int32) + last
    stop = kv_len
    if CAUSAL:
        stop = tl.maximum(tl.minimum(kv_len, last + 1), 0)

    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    summed = tl.zeros([ROWS, DIM], tl.float32)
    key_at = key + batch * key_batch + kv_head * key_head
    value_at = value + batch * value_batch + kv_head * value_head
    for start in range(0, stop, KEYS):
        keys = start + tl.arange(0, KEYS)
        there = keys < kv_len
        k = tl.load(
            key_at + keys[None, :] * key_row + dims[:, None] * key_dim, mask=there[None, :], other=0.0
        )
        v = tl.load(
            value_at + keys[:, None] * value_row + dims[None, :] * value_dim, mask=there[:, None], other=0.0
        )
        scores = tl.dot(q, k) * scale
        if not TAIL_NOT_MASKED:
            scores = tl.where(there[None, :], scores, float("-inf"))
        if CAUSAL:
            scores = tl.where(keys[None, :] <= position[:, None], scores, float("-inf"))
        if LAST_TILE_DROPPED:
            scores = tl.where((start > 0) & (start + KEYS > kv_len), float("-inf"), scores)
        if TILE_SKIPPED and CAUSAL:
            scores = tl.where((start > 0) & (last >= start) & (last < start + KEYS), float("-inf"), scores)
        grown = tl.maximum(top, tl.max(scores, 1))
        against = tl.where(grown == float("-inf"), 0.0, grown)  # a row that has seen no key yet
        weights = tl.exp2(scores - against[:, None])
        factor = tl.exp2(top - against)
        if not SUM_NOT_RESCALED:
            total = total * factor
        total += tl.sum(weights, 1)
        if not NO_RESCALE:
            summed = summed * factor[:, None]
        summed += tl.dot(weights.to(v.dtype), v)
        if BFLOAT16_SUM:
            summed = summed.to(tl.bfloat16).to(tl.float32)
        top = grown

    nothing = total[:, None] == 0.0  # a row without keys; a sum that is NaN stays so
    result = tl.where(nothing, 0.0, summed / tl.where(nothing, 1.0, total[:, None]))
    at = output + batch * output_batch + head * output_head
    at = at + rows[:, None] * output_row + dims[None, :] * output_dim
    tl.store(at, result.to(output.dtype.element_ty), mask=inside)


def kernel(query, key, value, *, causal=False, fault=RIGHT):
    """softmax(Q K^T / sqrt(D)) V, bottom-right causal; parameters as of `tiled_flash.kernel`, E = D."""
    require_fault(fault)
    if query.ndim != 4:
        raise NotImplementedError("arrays must have the four axes (batch, heads, length, dim)")
    batch, heads, q_len, dim = query.shape
    kv_heads, kv_len = key.shape[1:3]
    if dim not in HEAD_DIMS or value.shape[-1] != dim:
        raise NotImplementedError(SUPPORTED)
    output = torch.empty(batch, heads, q_len, dim, dtype=query.dtype, device=query.device)
    if output.numel() == 0:
        return output
    scale = 1.0 / dim if fault == "scale_of_wrong_dim" else dim**-0.5
    scale *= 1.0 if fault == "base_2" else LOG2E
    compiled = {name: name.lower() == fault for name in COMPILED}
    _forward[(triton.cdiv(q_len, ROWS), batch * heads)](
        query,
        key,
        value,
        output,
        *query.stride(),
        *key.stride(),
        *value.stride(),
        *output.stride(),
        heads,
        heads // kv_heads,
        kv_heads,
        q_len,
        kv_len,
        scale,
        CAUSAL=causal,
        DIM=dim,
        ROWS=ROWS,
        KEYS=KEYS,
        **compiled,
    )
    return output


# faults that change what is compiled; the others change an argument
COMPILED = [fault.upper() for fault in FAULTS if fault not in ("base_2", "scale_of_wrong_dim")]
