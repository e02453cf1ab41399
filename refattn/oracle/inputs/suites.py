"""Ready-made lists of inputs: calls whose answer is known bit for bit, the other forms of attention,
and the suite that shows every mutant.
"""

from __future__ import annotations

import numpy as np

import refattn
from refattn.calls.dense import DENSE
from refattn.calls.registry import FORMS, form_called
from refattn.calls.rotary import ROTARY
from refattn.oracle.inputs.families import AttentionInputs, Sizes, every_option
from refattn.oracle.inputs.of_form import inputs_of

# (family, option names): together they bring out every mistake of the catalogue
DENSE_SUITE = (
    *(("normal", names) for names in every_option(DENSE)),
    ("normal", ("left window", "causal")),
    ("normal", ("two-sided window",)),
    ("normal", ("mask", "causal")),
    ("wide", ("softcap",)),
    ("wide", ("softcap", "causal")),
    ("wide", ("softcap", "bias", "alibi")),
    ("normal", ("alibi", "causal")),
    ("normal", ("sinks", "causal")),
    ("normal", ("lengths",)),
    ("wide", ()),
    ("ascending", ()),
    ("ascending", ("causal",)),
    ("descending", ("causal",)),
    ("early sink", ("causal",)),
    ("late sink", ()),
    ("low scores", ("causal",)),
    ("low scores", ("mask",)),
    ("large scores", ()),
    ("large scores", ("softcap",)),
    ("one-hot", ("causal",)),
    ("uniform", ("lengths",)),
    ("offset values", ("causal",)),
    ("alternating values", ()),
    ("heavy tails", ("causal",)),
    ("repeated keys", ()),
    ("subnormal values", ()),
    ("poison", ("lengths", "causal")),
    ("poison", ("mask",)),
    ("nan visible", ()),
    ("nan visible", ("causal",)),
    ("empty rows", ()),
    ("empty rows", ("sinks",)),
    ("empty rows", ("causal",)),
)

# Shapes that several mistakes need: as many sequences as heads, as many rows as keys, equal head sizes, one
# row.
SQUARE = Sizes(batch=4, num_heads=4, num_kv_heads=2, q_len=41, kv_len=41, head_dim=16, v_head_dim=16)
DECODE = Sizes(batch=3, num_heads=6, num_kv_heads=2, q_len=1, kv_len=97, head_dim=24, v_head_dim=20)
WHOLE_TILES = Sizes(batch=1, num_heads=3, num_kv_heads=3, q_len=7, kv_len=64, head_dim=16, v_head_dim=8)
MORE_ROWS = Sizes(batch=2, num_heads=4, num_kv_heads=2, q_len=13, kv_len=5, head_dim=16, v_head_dim=8)
MANY_TILES = Sizes(batch=1, num_heads=2, num_kv_heads=1, q_len=11, kv_len=1031, head_dim=32, v_head_dim=16)

SHAPED_SUITE = (
    ("normal", ("mask",), SQUARE),
    ("normal", ("bias",), SQUARE),
    ("normal", ("causal",), SQUARE),
    ("normal", (), SQUARE),
    ("normal", (), DECODE),
    ("normal", ("lengths", "causal"), DECODE),
    ("normal", ("left window", "causal"), DECODE),
    ("normal", ("own offset", "causal"), MORE_ROWS),
    ("normal", ("causal",), WHOLE_TILES),
    ("ascending", (), WHOLE_TILES),
    ("normal", ("causal",), MANY_TILES),
    ("early sink", (), MANY_TILES),
)


def exact_cases(dtype=np.float32, seed=0) -> list[AttentionInputs]:
    """Calls whose output is a number of the dtype, whatever the order of operations: any difference is a
    mistake, not rounding.

    Uniform weights over a power of two of keys with small integer values; one key that takes all weight;
    two equal maxima; a single key; a row without keys; values that spell the head they belong to.
    """
    rng = np.random.default_rng([seed, 6])
    batch, heads, kv_heads, rows, dim, width = 2, 6, 2, 4, 8, 5
    integers = lambda keys: rng.integers(-2, 3, (batch, kv_heads, keys, width)).astype(dtype)
    normal = lambda keys: rng.standard_normal((batch, kv_heads, keys, dim)).astype(dtype)
    full = lambda number, heads, length: np.full((batch, heads, length, dim), number, dtype)
    per_query_head = lambda array: np.repeat(np.asarray(array, np.float64), heads // kv_heads, axis=1)

    zero_query, value16 = full(0, heads, rows), integers(16)
    key16, value11, one_key, two_keys = normal(16), integers(11), *(full(0, kv_heads, 11) for _ in range(2))
    one_key[:, :, 7] = two_keys[:, :, [2, 7]] = 16
    head_number = np.broadcast_to(
        np.arange(1, kv_heads + 1, dtype=dtype)[:, None, None], (batch, kv_heads, 8, width)
    )
    wide16, wide11 = per_query_head(value16), per_query_head(value11)
    windows = np.stack([wide16[:, :, 9 + i : 13 + i].mean(2) for i in range(rows)], 2)
    both = (wide11[:, :, 2:3] + wide11[:, :, 7:8]) / 2
    uniform, plain = (zero_query, full(0, kv_heads, 16), value16), (zero_query, key16, value16)
    single, double = ((full(16, heads, rows), key, value11) for key in (one_key, two_keys))
    spelled = (zero_query, normal(11)[:, :, :8], head_number)
    fourth, nothing = {"mask": np.arange(11)[None] == 4, "scale": 1.0}, {"mask": np.zeros((1, 11), bool)}
    cases = (
        ("uniform over 16 keys", uniform, wide16.mean(2, keepdims=True), np.log(16.0), {}),
        ("window of 4 keys", plain, windows, np.log(4.0), {"causal": True, "window": (3, None)}),
        ("one key takes all", single, wide11[:, :, 7:8], 2048.0, {"scale": 1.0}),
        ("two equal maxima", double, both, 2048.0 + np.log(2.0), {"scale": 1.0}),
        ("one visible key", single, wide11[:, :, 4:5], 0.0, fourth),
        ("no visible key", single, 0.0, -np.inf, nothing),
        ("values spell the key head", spelled, per_query_head(head_number)[:, :, :1], np.log(8.0), {}),
    )
    shape = (batch, heads, rows)
    return [
        AttentionInputs(
            f"exact: {name}",
            "exact",
            "attention_with_lse",
            arrays,
            options,
            np.broadcast_to(output, (*shape, width)).astype(np.float64),
            np.broadcast_to(np.asarray(lse, float), shape),
        )
        for name, arrays, output, lse, options in cases
    ]


def default_suite(dtype=np.float32, seed=0) -> list[AttentionInputs]:
    """The inputs `mutation_score` uses by default, of every form; together they show every mutant that data
    can show.
    """
    return [case for form in FORMS for case in inputs_of(form).suite(dtype, seed)]


def reference(inputs: AttentionInputs) -> tuple[np.ndarray, np.ndarray]:
    """The right output and lse of a call, in float64."""
    if inputs.function == ROTARY.with_lse:
        arrays, options = rotated(inputs)
        return refattn.attention_with_lse(*arrays, **options)
    return inputs.call(getattr(refattn, form_called(inputs.function).with_lse))


def rotated(inputs: AttentionInputs):
    """Arrays (float64, after rotation) and options of a rotary call as a plain dense call."""
    options = {name: value for name, value in inputs.options.items() if name != "rope"}
    dense = ROTARY.check(*inputs.arrays, **inputs.options).rotated()
    return (dense.query, dense.key, dense.value), options
