"""MHA, MQA, GQA and MLA side by side, with the slips of a published overview of the four shown in numbers.

The overview writes head_i = Attention(Q, K, V) for MHA, draws heads one after the other, says that MQA computes the query once
and that GQA reduces work further than MQA. Its formula for MLA has a script of its own: low_rank_keys_values.py.
"""

import numpy as np

import refattn
from refattn import costs
from refattn.models import AttentionShape

d_model, heads, dim, tokens = 64, 8, 8, 10
random = np.random.default_rng(0)
hidden = random.standard_normal((tokens, d_model))
w_query, w_key, w_value = random.standard_normal((3, heads, d_model, dim)) / np.sqrt(d_model)


def show(fact, difference):
    print(f"  {fact:<82}{np.abs(difference).max():8.1e}")


print("1. head_i = Attention(Q W_i^Q, K W_i^K, V W_i^V): without projections of its own every head is the same")
bare = refattn.attention(*(np.stack([hidden] * heads),) * 3)
mha = refattn.multi_head_attention(hidden @ w_query, hidden @ w_key, hidden @ w_value)
show("as printed, head_i = Attention(Q, K, V): largest difference between two heads", bare - bare[0])
show("with projections: largest difference between two heads", mha - mha[0])

print("2. Heads are parallel: none feeds another")
alone = [refattn.attention(hidden @ w_query[h : h + 1], hidden @ w_key[h : h + 1], hidden @ w_value[h : h + 1])[0] for h in range(heads)]
show("all heads at once - each head by itself, in reverse order", mha - np.stack(alone[::-1])[::-1])

print("3. MQA shares key and value; each head still computes its own query")
query, key, value = hidden @ w_query, hidden @ w_key[:1], hidden @ w_value[:1]
mqa = refattn.multi_query_attention(query, key, value)
show("MQA: largest difference between two heads", mqa - mqa[0])
show("with the query computed once as well: largest difference between two heads",
     refattn.multi_query_attention(query[[0] * heads], key, value) - mqa[0])

print("4. GQA lies between MHA and MQA, and meets both")
pairs = {g: refattn.attention(query, hidden @ w_key[:g], hidden @ w_value[:g]) for g in (1, 2, heads)}
show("GQA with 1 key/value head - MQA", pairs[1] - mqa)
show("GQA with 8 key/value heads - MHA", pairs[heads] - mha)

print("5. MLA rebuilds every head's key and value from one latent; its two forms agree")
latent, rope = 16, 4
w_down, w_rope = random.standard_normal((d_model, latent)) / 8, random.standard_normal((d_model, rope)) / 8
w_uk, w_uv = random.standard_normal((2, heads, dim, latent)) / 4
mla_input = query, hidden @ random.standard_normal((heads, d_model, rope)) / 8, hidden @ w_down, hidden @ w_rope, w_uk, w_uv
show("absorbed (attend over latents) - expanded (rebuild keys and values)",
     refattn.latent_attention(*mla_input, form="absorb") - refattn.latent_attention(*mla_input, form="expand"))

print(f"\n{'':<26}{'cached per token':>18}{'multiply-adds per cached token':>34}{'weights':>10}")
for name, kv_heads in (("MHA", heads), ("GQA, 4 key/value heads", 4), ("GQA, 2 key/value heads", 2), ("MQA", 1)):
    shape = AttentionShape(num_layers=1, num_heads=heads, num_kv_heads=kv_heads, head_dim=dim)
    print(f"{name:<26}{shape.cached_per_token:>18}{heads * 2 * dim:>34}{costs.attention_parameters(d_model, heads, kv_heads, dim):>10}")
mla = AttentionShape(num_layers=1, num_heads=heads, kv_lora_rank=latent, qk_nope_head_dim=dim, qk_rope_head_dim=rope)
print(f"{'MLA, latent 16 + 4':<26}{mla.cached_per_token:>18}{costs.latent_attention_flops(mla, 1, 1, expanded=True) // 2:>34}"
      f"{costs.latent_attention_parameters(mla, d_model):>10}")
print("Sharing shrinks the cache, not the work on scores; MLA's absorbed form even does more of that.")
