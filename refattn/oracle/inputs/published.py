"""Sizes and option values of published models, and sizes past the tiles kernels are built from: level
"full" runs one call of each.

Head counts, head sizes, windows and softcaps are those in the configuration files of the models: 28 heads
on 4 (Qwen2 7B), 40 on 8 (Llama 4), 64 on 8 with windows of 128 keys (gpt-oss), softcaps of 30 and 50
(Grok-1, Gemma 2), windows of 512, 1024 and 4096 keys (Gemma 3, Mistral).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from refattn.oracle.inputs.families import AttentionInputs, Sizes, attention_inputs

HEADS = (
    (12, 2),
    (14, 2),
    (20, 2),
    (24, 8),
    (28, 4),
    (32, 8),
    (32, 32),
    (40, 8),
    (48, 8),
    (48, 1),
    (64, 8),
    (64, 4),
    (71, 1),
    (96, 8),
    (128, 8),
    (128, 1),
)
HEAD_DIMS = (40, 64, 72, 80, 96, 112, 128, 160, 192, 256, 320, 512)
DECODE_KEYS = (257, 300, 513, 1025, 2053, 4099, 8197)  # one more than tiles and than the parts of a split
PREFILL = ((130, 130), (257, 257), (515, 515), (1031, 1031), (259, 1031))  # rows, keys
WINDOWS = ((64, 130), (127, 300), (511, 700), (1023, 1300), (4095, 4200))  # keys on the left, keys
SOFTCAPS = (("wide", 20.0), ("wide", 30.0), ("wide", 50.0), ("large scores", 50.0))


def published_cases(dtype=np.float32, seed=0, *, batch_axes=True) -> Iterator[AttentionInputs]:
    """Dense calls, causal unless of one row; grouped heads. `batch_axes`: with calls of two batch axes
    and of none.
    """

    def case(words, sizes, family="normal", **options):
        plain = attention_inputs(family, dtype=dtype, seed=seed, sizes=sizes)
        options = options if sizes.q_len == 1 else {"causal": True, **options}
        return replace(plain, name=f"{family}, {words}", options=options)

    for heads, kv_heads in HEADS:
        yield case(f"{heads} heads on {kv_heads}", Sizes(1, heads, kv_heads, 5, 37, 16, 16))
    for dim in HEAD_DIMS:
        yield case(f"grouped heads of head_dim {dim}", Sizes(1, 4, 2, 7, 45, dim, dim))
    yield case("grouped heads of head_dim 576 and 512", Sizes(1, 4, 1, 7, 45, 576, 512))
    for keys in DECODE_KEYS:
        yield case(f"decode over {keys} keys", Sizes(1, 8, 2, 1, keys, 64, 64))
    yield case("4 rows over 4099 keys", Sizes(1, 4, 2, 4, 4099, 32, 32))
    yield case(
        "decode of 33 sequences", Sizes(33, 4, 2, 1, 67, 16, 16), kv_lengths=1 + 13 * np.arange(33) % 67
    )
    for rows, keys in PREFILL:
        yield case(f"prefill of {rows} rows on {keys} keys", Sizes(1, 2, 1, rows, keys, 16, 16))
    for left, keys in WINDOWS:
        yield case(f"window of {left + 1} keys", Sizes(1, 4, 2, 9, keys, 32, 32), window=(left, 0))
    yield case("prefill with a window of 128 keys", Sizes(1, 2, 1, 400, 400, 16, 16), window=(127, 0))
    for family, cap in SOFTCAPS:
        yield case(f"softcap of {cap:g}", Sizes(1, 4, 2, 35, 71, 32, 32), family, softcap=cap)
    if batch_axes:
        yield from _batch_axes(case)


def _batch_axes(case):
    lengths = np.array([23, 41, 30, 39, 17, 28])
    inputs = case("two batch axes", Sizes(6, 4, 2, 7, 41, 24, 20))
    arrays = tuple(array.reshape(2, 3, *array.shape[1:]) for array in inputs.arrays)
    yield replace(inputs, arrays=arrays)
    yield replace(
        inputs,
        name=f"{inputs.name} and lengths",
        arrays=arrays,
        options={"causal": True, "kv_lengths": lengths.reshape(2, 3)},
    )
    yield replace(
        inputs,
        name=inputs.name.replace("two batch axes", "without batch axes"),
        arrays=tuple(array[0] for array in inputs.arrays),
    )
