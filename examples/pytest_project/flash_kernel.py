"""A Triton-style attention kernel, emulated in NumPy: `program` is what one Triton program does, `launch` the grid.

    Triton                                      here
    tl.program_id(0), tl.program_id(1)          the arguments tile, head
    tl.load(pointers, mask=..., other=0.0)      load(array, rows, size)
    tl.dot(q, k) in float32                     @ on float32 arrays
"""

import numpy as np

BLOCK_M, BLOCK_N = 16, 32


def load(array, first, size):
    """`size` rows from `first` on; rows past the end are 0, as with a mask and other=0.0."""
    tile = np.zeros((size, array.shape[-1]), np.float32)
    rows = array[first : first + size]
    tile[: len(rows)] = rows
    return tile


def program(query, key, value, output, lse, tile, scale, causal, mask_tail=True):
    """One tile of BLOCK_M rows of one head: query (T, D), key (S, D), value (S, E); writes its rows of output and lse."""
    (q_len, _), kv_len = query.shape, key.shape[0]
    offset = kv_len - q_len
    rows = tile * BLOCK_M + np.arange(BLOCK_M)
    q = load(query, tile * BLOCK_M, BLOCK_M) * np.float32(scale)
    top = np.full(BLOCK_M, -np.inf, np.float32)
    total = np.zeros(BLOCK_M, np.float32)
    accumulator = np.zeros((BLOCK_M, value.shape[-1]), np.float32)
    for first in range(0, kv_len, BLOCK_N):
        columns = first + np.arange(BLOCK_N)
        scores = q @ load(key, first, BLOCK_N).T
        if mask_tail:
            scores[:, columns >= kv_len] = -np.inf
        if causal:
            scores[columns[None] > offset + rows[:, None]] = -np.inf
        new = np.maximum(top, scores.max(1))
        base = np.where(new == -np.inf, np.float32(0), new)  # no key seen yet
        weights = np.exp(scores - base[:, None])
        shrink = np.exp(top - base)
        total = total * shrink + weights.sum(1)
        accumulator = accumulator * shrink[:, None] + weights @ load(value, first, BLOCK_N)
        top = new
    seen = total > 0
    safe = np.where(seen, total, np.float32(1))
    count = min(BLOCK_M, q_len - tile * BLOCK_M)
    output[tile * BLOCK_M :][:count] = (accumulator / safe[:, None])[:count]
    lse[tile * BLOCK_M :][:count] = np.where(seen, np.where(seen, top, 0) + np.log(safe), -np.inf)[:count]


def flash_attention(query, key, value, *, causal=False, scale=None, mask_tail=True):
    """Grid of (tiles of rows, batch * heads); arrays (batch, heads, length, dim) in float32."""
    batch, heads, q_len, head_dim = query.shape
    group = heads // key.shape[1]
    scale = head_dim**-0.5 if scale is None else scale
    output = np.empty((*query.shape[:-1], value.shape[-1]), np.float32)
    lse = np.empty(query.shape[:-1], np.float32)
    for b in range(batch):
        for h in range(heads):
            for tile in range(-(-q_len // BLOCK_M)):
                arrays = query[b, h], key[b, h // group], value[b, h // group], output[b, h], lse[b, h]
                program(*arrays, tile, scale, causal, mask_tail)
    return output, lse


def flash_attention_without_tail_mask(query, key, value, *, causal=False, scale=None):
    """The mistake everybody makes once: keys past the end, loaded as 0, keep a score of 0 and take weight."""
    return flash_attention(query, key, value, causal=causal, scale=scale, mask_tail=False)
