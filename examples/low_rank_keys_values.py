"""Compressing keys and values: K = U S V^T as a published overview gives it for MLA, made to work, and what MLA does instead.

Untruncated, the formula is K itself in more numbers. Truncated to rank r it stores r numbers per token; one decomposition of
keys and values together (joint, as the overview's heading says) beats one each (split, as its formulas say).
"""

import numpy as np

import refattn
from refattn.convert import factor_keys_values

random = np.random.default_rng(0)
spread = np.linspace(2, 0.02, 40)  # a hidden state has strong and weak directions
hidden_states = random.standard_normal((512, 40)) * spread
w_key, w_value = random.standard_normal((2, 40, 12)) / 6


def keys_values(hidden):
    """Key and value of one head of 12; like a model's, both come from one hidden state per token."""
    return hidden @ w_key, hidden @ w_value


tokens, dim = 32, 12
key, _ = keys_values(hidden_states[:tokens])
left, singular_values, right = np.linalg.svd(key, full_matrices=False)
pays = max(r for r in range(1, dim + 1) if r * (tokens + dim) < tokens * dim)
print(f"Untruncated: U S V^T - K is {np.abs((left * singular_values) @ right - key).max():.0e}, "
      f"{left.size + singular_values.size + right.size} numbers for the {key.size} of a {tokens} x {dim} key")
print(f"Rank r stores U S and V^T, r ({tokens} + {dim}) numbers: fewer than {key.size} up to r = {pays}\n")

tokens = 512
key, value = keys_values(hidden_states[:tokens])
query = random.standard_normal((1, 5, dim))
exact = refattn.attention(query, key[None], value[None])
print(f"{tokens} tokens, {key.size + value.size} numbers; errors relative to the norm")
print("cached per token   mode       stored   pays off   K and V   output")
for rank in (6, 12, 18, 24):
    for mode in ("joint", "split"):
        factored = factor_keys_values(key, value, rank, mode)
        lost = np.linalg.norm(factored.attention(query) - exact) / np.linalg.norm(exact)  # K and V are not rebuilt
        error = factored.truncation_error / np.hypot(np.linalg.norm(key), np.linalg.norm(value))
        print(f"{rank:>16}   {mode:<8}{factored.stored_size:>9}{'yes' if factored.pays_off else 'no':>11}{error:>10.1%}{lost:>9.1%}")

factored = factor_keys_values(key, value, 10)
rebuilt = refattn.attention(query, *(x[None] for x in factored.reconstruct()))
narrow = factored.attention(query, scale=10**-0.5)
print(f"\nOn the factors - on the rebuilt K and V, rank 10           {np.abs(factored.attention(query) - rebuilt).max():.0e}")
print(f"The same scaled by 1/sqrt(rank), not 1/sqrt({dim}): a slip    {np.abs(narrow - rebuilt).max():.0e}\n")

# Directions fitted to the first 32 tokens; the later ones have to do with them.
early = factor_keys_values(key[:32], value[:32], 16)
directions = np.concatenate([early.w_uk[0], early.w_uv[0]])  # orthonormal columns
every = np.concatenate([key, value], axis=1)
missed = np.linalg.norm(every - every @ directions @ directions.T, axis=1) / np.linalg.norm(every, axis=1)
first, later = missed[:32].mean(), missed[32:].mean()
print(f"Rank 16 fitted to the first 32 tokens: they miss {first:.0%} of their norm, later ones {later:.0%}, until refitted.")
print("MLA learns its down-projection and defines keys and values by the latent: each token appends its own, nothing is refitted.")
