"""A flash attention forward pass in torch, tile by tile as `triton_flash.py` runs it on a GPU, and the
faults that can be planted in both.

It is slow, and there to be wrong in the ways that tiles are wrong: each fault is one line that a kernel
author may forget. bfloat16 in and out, products summed in float32, weights rounded to bfloat16 before they
meet the values.
"""

from __future__ import annotations

import functools

import torch

ROWS, KEYS = 64, 64  # of a tile
LOG2E = 1.4426950408889634
RIGHT = ""
# what the kernel forgets, and the words for it
FAULTS = {
    "no_rescale": "the accumulator is not rescaled when the running maximum grows",
    "sum_not_rescaled": "the row sum is not rescaled when the running maximum grows",
    "tail_not_masked": "keys past the end of the last tile count as zeros",
    "causal_by_tile": "the causal limit is that of the last row of the tile",
    "tile_skipped": "the tile on the diagonal is left out, except the first",
    "last_tile_dropped": "a last tile that is not full is not visited",
    "head_modulo": "query head h reads key head h % num_kv_heads",
    "base_2": "scores are not multiplied by log2(e) before exp2",
    "bfloat16_sum": "the accumulator is kept in bfloat16 between tiles",
    "scale_of_wrong_dim": "the scale is 1/head_dim",
}


def require_fault(fault):
    if fault not in (RIGHT, *FAULTS):
        raise ValueError(f"fault must be one of {', '.join(FAULTS)}, or ''; got fault={fault!r}.")


def kernel(query, key, value, *, causal=False, fault=RIGHT):
    """softmax(Q K^T / sqrt(D)) V, bottom-right causal.

    Parameters
    ----------
    query : Tensor, (B, H, T, D)
    key, value : Tensor, (B, K, S, D) and (B, K, S, E)
    causal : bool
    fault : str
        One of `FAULTS`, or "".

    Returns
    -------
    Tensor, (B, H, T, E)
    """
    require_fault(fault)
    if query.ndim != 4:
        raise NotImplementedError("arrays must have the four axes (batch, heads, length, dim)")
    group = query.shape[1] // key.shape[1]
    heads = torch.arange(query.shape[1], device=query.device)
    heads = heads % key.shape[1] if fault == "head_modulo" else heads // group
    key, value = key[:, heads], value[:, heads]
    output = torch.empty(*query.shape[:-1], value.shape[-1], dtype=query.dtype, device=query.device)
    scale = 1.0 / query.shape[-1] if fault == "scale_of_wrong_dim" else query.shape[-1] ** -0.5
    scale *= 1.0 if fault == "base_2" else LOG2E
    for first in range(0, query.shape[-2], ROWS):
        rows = slice(first, min(first + ROWS, query.shape[-2]))
        output[:, :, rows] = _rows(
            query[:, :, rows], key, value, first, query.shape[-2], scale, causal, fault
        )
    return output


def with_fault(flash, fault):
    """A kernel with one of the faults planted."""
    planted = functools.partial(flash, fault=fault)
    planted.__name__ = f"flash_{fault}"
    planted.supports = {"causal"}
    return planted


def _rows(query, key, value, first, q_len, scale, causal, fault):
    """One tile of rows: the loop over keys, with the maximum and the sum that run along."""
    kv_len, rows = key.shape[-2], query.shape[-2]
    position = torch.arange(first, first + rows, device=query.device) + kv_len - q_len
    if fault == "causal_by_tile":
        position = position.max().expand_as(position)
    shape = (*query.shape[:-1], 1)
    top = torch.full(shape, -torch.inf, device=query.device)
    total = torch.zeros(shape, device=query.device)
    summed = torch.zeros(*query.shape[:-1], value.shape[-1], device=query.device)
    for start in range(0, kv_len, KEYS):
        if causal and start > position.max():
            break
        if _left_out(fault, start, kv_len, causal, int(position.max())):
            continue
        keys = torch.arange(start, start + KEYS, device=query.device)
        there = keys < kv_len
        at = keys.clamp(max=kv_len - 1)
        scores = (query.float() @ key[:, :, at].float().mT) * scale
        scores = torch.where(there, scores, 0.0 if fault == "tail_not_masked" else -torch.inf)
        if causal:
            scores = torch.where(keys <= position[:, None], scores, -torch.inf)
        grown = torch.maximum(top, scores.amax(-1, keepdim=True))
        against = torch.where(grown == -torch.inf, 0.0, grown)  # a row that has seen no key yet
        weights = torch.exp2(scores - against)
        factor = torch.exp2(top - against)
        total = total * (1.0 if fault == "sum_not_rescaled" else factor) + weights.sum(-1, keepdim=True)
        values = torch.where(there[:, None], value[:, :, at].float(), 0.0)
        product = weights.to(query.dtype).float() @ values
        summed = summed * (1.0 if fault == "no_rescale" else factor) + product
        if fault == "bfloat16_sum":
            summed = summed.bfloat16().float()
        top = grown
    nothing = total == 0  # a row without keys; a sum that is NaN stays so
    return torch.where(nothing, 0.0, summed / torch.where(nothing, 1.0, total)).to(query.dtype)


def _left_out(fault, start, kv_len, causal, last):
    """Whether a faulty kernel does not visit a tile of keys."""
    if fault == "last_tile_dropped":
        return start > 0 and start + KEYS > kv_len
    return fault == "tile_skipped" and causal and 0 < start <= last < start + KEYS
