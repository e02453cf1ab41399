"""Real keys and values, factored: three sentences in three layers of all-MiniLM-L6-v2, 12 heads of 32 sharing one latent.

The arrays and the output to compare with (torch, float64) ship with the package as goldens.
"""

import numpy as np

from refattn import goldens
from refattn.convert import factor_keys_values

print("errors relative to the norm")
for layer in (0, 2, 5):
    case = goldens.load(f"MHA_minilm_layer{layer}")
    query, key, value = case.arguments.values()
    heads, tokens, dim = key.shape
    norm = np.hypot(np.linalg.norm(key), np.linalg.norm(value))
    print(f'\nlayer {layer}: "{case.provenance["sentence"]}"')
    print(f"{tokens} tokens x {heads} heads x 2 x {dim}: {2 * heads * dim} numbers per token, {key.size + value.size} in all")
    print("cached per token   mode       stored   K and V   output")
    for rank in (4, 8, tokens):
        for mode in ("joint", "split"):
            factored = factor_keys_values(key, value, rank, mode)
            lost = np.linalg.norm(factored.attention(query) - case.output) / np.linalg.norm(case.output)
            error = factored.truncation_error / norm
            print(f"{rank:>16}   {mode:<8}{factored.stored_size:>9}{error:>10.1%}{lost:>9.1%}")
print("""
A latent as wide as the sentence is long loses nothing, in joint mode, and saves nothing: nearly all that is stored is the
up-projections, which so few tokens cannot share. They pay over a long cache, or learned once for a whole model, as in MLA.""")
