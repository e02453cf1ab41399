"""What do these kernels do? An X-ray measures their attention weights and says where and how they differ from what was asked.

    python examples/xray_real_kernels.py --pictures DIRECTORY    also draws each there; what is not installed is skipped

torch's `is_causal` counts rows from the first key, our `causal` from the last one. The Numba kernel takes the bound of its key tiles
from the first row of a row tile. Falcon's eager attention adds ALiBi to a mask that holds it already.
"""

import argparse
import math
from importlib.util import find_spec
from pathlib import Path

import numba
import numpy as np

from refattn.oracle import xray


@numba.njit
def flash(query, key, value, output, row_tile=16, key_tile=32):
    for b, h, i in np.ndindex(query.shape[:3]):
        first_row, offset = i // row_tile * row_tile, key.shape[2] - query.shape[2]
        stop = ((first_row + offset) // key_tile + 1) * key_tile  # the fault: it should be the last row's
        top, total, sums = -np.inf, 0.0, np.zeros(value.shape[3])
        for start in range(0, min(stop, key.shape[2]), key_tile):
            for j in range(start, min(start + key_tile, i + offset + 1)):
                score = np.sum(query[b, h, i] * key[b, h, j]) / math.sqrt(query.shape[3])
                shrink, weight = math.exp(top - max(top, score)), math.exp(score - max(top, score))
                top, total, sums = max(top, score), total * shrink + weight, sums * shrink + weight * value[b, h, j]
        output[b, h, i] = sums / total


def numba_kernel(query, key, value, causal):
    flash(query, key, value, output := np.empty(query.shape, np.float32))
    return output


def torch_kernel(query, key, value, causal):
    import torch
    return torch.nn.functional.scaled_dot_product_attention(*map(torch.from_numpy, (query, key, value)), is_causal=causal).numpy()


def falcon_kernel(query, key, value, causal, alibi_slopes):
    import torch
    from transformers import FalconConfig, FalconModel
    heads, rows, dim = query.shape[1:]
    sizes = {"hidden_size": heads * dim, "num_attention_heads": heads, "num_hidden_layers": 1, "vocab_size": 12, "multi_query": False}
    layer = (model := FalconModel(FalconConfig(**sizes, alibi=True, attn_implementation="eager")).eval()).h[0].self_attention
    layer._split_heads = lambda _: tuple(torch.from_numpy(x).transpose(1, 2) for x in (query, key, value))
    layer.dense.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))  # before heads are mixed
    seen = []
    model(inputs_embeds=torch.zeros(1, rows, heads * dim))
    return seen[0].detach().reshape(1, rows, heads, dim).transpose(1, 2).numpy()


options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
options.add_argument("--pictures", type=Path, metavar="DIRECTORY")
pictures = options.parse_args().pictures
random, slopes = np.random.default_rng(0), 2.0 ** -np.arange(2, 9, 2) / math.sqrt(32)  # Falcon's ALiBi comes before its scale
for kernel, rows, more in ((torch_kernel, 40, {}), (numba_kernel, 90, {}), (falcon_kernel, 96, {"alibi_slopes": slopes})):
    name = kernel.__name__.removesuffix("_kernel")
    if find_spec("transformers" if name == "falcon" else name) is None:
        print(f"{name}: skipped, it is not installed\n")
        continue
    arrays = (random.standard_normal((1, 4, n, 32), dtype=np.float32) for n in (rows, 96, 96))
    found = xray(kernel, *arrays, causal=True, **more)
    print(f"{name}: {found.verdict}\n{found}\n")
    if pictures is not None and found.measured is not None:
        found.picture(pictures / f"{name}.png")
