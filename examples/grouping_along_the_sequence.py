"""Grouping along the sequence: a published "group-query-attention", what it computes, its repair, and the real thing.

The snippet (a web page of 8 July 2024) cuts the SEQUENCE into chunks and attends inside each. Its last einsum names the
key axis twice, k for the weights and v for the values, so each is summed on its own: the weights to 1, the values to their sum.
"""

import numpy as np

import refattn
from refattn import goldens
from refattn.models import AttentionShape

case = goldens.load("published_grouping")  # the snippet, run in torch
queries, keys, values = (case.arguments[name].astype(np.float64) for name in ("queries", "keys", "values"))
batch, seq_len, dim = values.shape
chunk = case.options["group_size"]


def snippet(queries, keys, values, last_einsum="bgqk,bgvd->bgqd"):
    """The snippet in NumPy; only the last einsum is a parameter."""
    queries, keys, values = (x.reshape(batch, -1, chunk, dim) for x in (queries, keys, values))
    scores = np.exp(np.einsum("bgqd,bgkd->bgqk", queries, keys))
    weights = scores / scores.sum(axis=-1, keepdims=True)
    return np.einsum(last_einsum, weights, values).reshape(batch, seq_len, dim)


def show(fact, difference):
    print(f"  {fact:<86}{np.abs(difference).max():8.1e}")


print(f"{seq_len} tokens in chunks of {chunk}; largest differences:\n\nAs published")
published = case.golden["output_float64"]
sums = values.reshape(batch, -1, chunk, dim).sum(axis=2, keepdims=True).repeat(chunk, axis=2).reshape(values.shape)
random = np.random.default_rng(0)
show("snippet in NumPy - snippet in torch", snippet(queries, keys, values) - published)
show("snippet - sum of the values of the chunk", published - sums)
show("snippet - snippet with other queries and keys", published - snippet(*random.standard_normal((2, *keys.shape)), values))
show("values all 1: output - chunk size (an average would give 1)", snippet(queries, keys, np.ones_like(values)) - chunk)

print("\nRepaired: 'bgqk,bgkd->bgqd', weights and values share the key axis")
repaired = snippet(queries, keys, values, "bgqk,bgkd->bgqd")
one_head = queries[:, None], keys[:, None], values[:, None]  # the layout is (..., heads, length, dim)
local = refattn.block_local_attention(*one_head, block_size=chunk, scale=1)[:, 0]
same_chunk = np.equal.outer(np.arange(seq_len) // chunk, np.arange(seq_len) // chunk)
show("repaired - refattn.block_local_attention with scale=1", repaired - local)
show("repaired - attention with a block-diagonal mask", repaired - refattn.attention(*one_head, mask=same_chunk, scale=1)[:, 0])
show("repaired - published", repaired - published)

print("\nGrouped-Query Attention groups the HEADS: 4 query heads, 2 key/value heads, every token sees every token")
query, key, value = (random.standard_normal((heads, seq_len, dim)) for heads in (4, 2, 2))
gqa = refattn.grouped_query_attention(query, key, value)
show("GQA - multi-head attention with each key/value head repeated for its group",
     gqa - refattn.multi_head_attention(query, key.repeat(2, axis=0), value.repeat(2, axis=0)))
far = key.copy()
far[:, -1] += 1
show("GQA: change at token 0 when the last key changes", (gqa - refattn.attention(query, far, value))[:, 0])
show("repaired snippet: change at token 0 when the last key changes",
     (repaired - snippet(queries, np.concatenate([keys[:, :-1], keys[:, -1:] + 1], 1), values, "bgqk,bgkd->bgqd"))[:, 0])
cached = {kv_heads: AttentionShape(num_layers=1, num_heads=4, num_kv_heads=kv_heads, head_dim=dim).cached_per_token for kv_heads in (4, 2)}
print(f"\nNumbers cached per token, 4 query heads: {cached[4]} in chunks along the sequence (as without), {cached[2]} with GQA")
