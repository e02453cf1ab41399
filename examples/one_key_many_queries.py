"""One key, many queries: Multi-Query Attention on "Katten spinnar" (the cat purrs), two tokens with two queries each.

Each token makes two queries but one key and one value (Shazeer 2019, section 3). The two heads look with different eyes at
the same thing, and the cache holds one key and one value per token instead of two.
"""

import numpy as np

import refattn
from refattn import costs
from refattn.models import AttentionShape

tokens = ["Katten", "spinnar"]  # two words; three tokens only if the full stop counts
heads, dim = 2, 4
d_model = heads * dim
random = np.random.default_rng(2)
hidden = random.standard_normal((len(tokens), d_model))
w_query = random.standard_normal((heads, d_model, dim))
w_key, w_value = random.standard_normal((2, 1, d_model, dim))  # one head each: this is what "multi-query" means

query, key, value = hidden @ w_query, hidden @ w_key, hidden @ w_value
steps = refattn.attention_steps(query, key, value)
print(f"query {query.shape}  key {key.shape}  value {value.shape}  as (heads, tokens, dim)")
print(f"output {steps.output.swapaxes(0, 1).shape}  as (tokens, heads, dim): one vector per token and head\n")
print("weights      " + "".join(f"{token:>10}" for token in tokens))
for t, token in enumerate(tokens):
    for h in range(heads):
        print(f"{token:<8} Q{h + 1}  " + "".join(f"{weight:10.3f}" for weight in steps.weights[h, t]))

print("\nLargest differences")
mha = refattn.multi_head_attention(query, key.repeat(heads, axis=0), value.repeat(heads, axis=0))
print(f"  MQA - MHA whose heads hold the same key and value   {np.abs(steps.output - mha).max():.1e}")
equal = refattn.multi_query_attention(query[[0, 0]], key, value)
print(f"  head 1 - head 2 when both queries are equal         {np.abs(equal[0] - equal[1]).max():.1e}")
own = refattn.attention(query, *(hidden @ random.standard_normal((2, heads, d_model, dim))))
print(f"  MQA - MHA with a key and value of its own per head  {np.abs(steps.output - own).max():.1e}\n")

print(f"{'':<22}{'cached/token':>14}{'weights':>10}{'multiply-adds of scores and output':>38}")
for name, h, kv_heads in (("one head", 1, 1), ("MQA, two queries", heads, 1), ("MHA, two heads", heads, heads)):
    shape = AttentionShape(num_layers=1, num_heads=h, num_kv_heads=kv_heads, head_dim=dim)
    weights = costs.attention_parameters(d_model, h, kv_heads, dim)
    print(f"{name:<22}{shape.cached_per_token:>14}{weights:>10}{h * len(tokens) ** 2 * 2 * dim:>38}")
print("""
So MQA is richer than one head, but it is no extension of multi-head attention: it has fewer weights and the same work on
scores. What it buys is the smaller cache, read once per generated token. Published (Shazeer 2019, tables 1 and 2), MHA -> MQA:
dev perplexity (ln) 1.424 -> 1.439, BLEU 26.7 -> 26.5, decoder 46 -> 3.8 microseconds per token.""")
