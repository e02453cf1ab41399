"""`refattn.textbook` equals `refattn.attention` to 1e-12 * (1 + largest score) over the table of cases."""

import inspect
from pathlib import Path

import numpy as np
import pytest
from cases import BY_FUNCTION

import refattn
from refattn import textbook
from refattn.calls.options import WORDS, Sizes
from refattn.oracle.inputs.families import make_options

LONGEST = 120  # lines: two slides


def largest_score(arrays, options):
    """The largest magnitude of a visible score as it enters the softmax; of latents, from expanded keys."""
    if "kv_latent" in arrays:
        q_nope, q_rope, kv_latent, k_rope, w_uk, _ = (array.astype(float) for array in arrays.values())
        options = {"scale": (q_nope.shape[-1] + q_rope.shape[-1]) ** -0.5} | options
        key = [
            np.einsum("...sc,hnc->...hsn", kv_latent, w_uk),
            np.repeat(k_rope[..., None, :, :], len(w_uk), axis=-3),
        ]
        query, key = np.concatenate([q_nope, q_rope], axis=-1), np.concatenate(key, axis=-1)
        arrays = {"query": query, "key": key, "value": key[..., :1]}
    biased = refattn.attention_steps(*arrays.values(), **options).biased
    return np.abs(biased[np.isfinite(biased)]).max(initial=0.0)


def assert_equal_to_the_reference(function, arrays, options):
    """Output and lse; infinite lse in the same rows, where the outputs are 0 on both sides."""
    form = {name: options[name] for name in ("form",) if name in options}
    shared = {name: value for name, value in options.items() if name != "form"}
    expected = getattr(refattn, function)(*arrays.values(), **form, **shared)
    actual = getattr(textbook, function)(*arrays.values(), **form, **shared)
    tolerance = 1e-12 * (1 + largest_score(arrays, shared))
    for name, ours, theirs in zip(("output", "lse"), actual, expected, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype == np.float64
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance, equal_nan=False, err_msg=name)


def with_dtypes(cases):
    """Every case in float64, some of them in each narrower dtype."""
    return [
        pytest.param(case, dtype, id=f"{case}-{dtype}")
        for dtype, some in (
            ("float64", cases),
            ("float32", cases[::3]),
            ("float16", cases[1::5]),
            ("bfloat16", cases[2::5]),
        )
        for case in some
    ]


@pytest.mark.sample(4)
@pytest.mark.parametrize("case, dtype", with_dtypes(BY_FUNCTION["attention"]))
def test_multi_head_multi_query_and_grouped_query(case, dtype):
    arrays, options = case.build(dtype)
    assert_equal_to_the_reference("attention_with_lse", arrays, options)


@pytest.mark.sample(3)
@pytest.mark.parametrize("form", ["absorb", "expand"])
@pytest.mark.parametrize("case, dtype", with_dtypes(BY_FUNCTION["latent_attention"]))
def test_latent(case, dtype, form):
    arrays, options = case.build(dtype)
    assert_equal_to_the_reference("latent_attention_with_lse", arrays, options | {"form": form})


def latent_arrays(batch=(2,), num_heads=3, q_len=5, kv_len=7):
    """Small inputs of Multi-head Latent Attention."""
    rng = np.random.default_rng(3)
    shapes = {
        "q_nope": (*batch, num_heads, q_len, 4),
        "q_rope": (*batch, num_heads, q_len, 2),
        "kv_latent": (*batch, kv_len, 6),
        "k_rope": (*batch, kv_len, 2),
        "w_uk": (num_heads, 4, 6),
        "w_uv": (num_heads, 3, 6),
    }
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


DRAWN = {
    "dropout" if word == "dropout" else WORDS[word][0].name: make_options(
        (word,), np.random.default_rng(5), Sizes((2,), 3, 5, 7, 6), np.float64
    )
    for word in WORDS
}
# with values that leave rows without keys, and that hide
OPTIONS = DRAWN | {
    "bias": {"bias": np.where(np.eye(5, 7) > 0, -np.inf, 0.3)},
    "mask": {"mask": np.arange(7) % 3 > 0},
    "scale": {"scale": -0.4},
    "window": {"window": (2, 1)},
    "sinks": {"sinks": np.array([0.5, -np.inf, 800.0])},
    "kv_lengths": {"kv_lengths": np.array([0, 5])},
    "q_offset": {"q_offset": np.array([-3, 4])},
}


@pytest.mark.sample(4)
@pytest.mark.parametrize("form", ["absorb", "expand"])
@pytest.mark.parametrize("second", OPTIONS)
@pytest.mark.parametrize("first", OPTIONS)
def test_latent_with_every_two_options(first, second, form):
    """The table has every two options for dense attention only; rows that see no key are among these."""
    options = OPTIONS[first] | OPTIONS[second] | {"form": form}
    assert_equal_to_the_reference("latent_attention_with_lse", latent_arrays(), options)


def test_the_table_has_every_option():
    used = {name for case in BY_FUNCTION["attention"] for name in case.options}
    assert used == {*OPTIONS}


@pytest.mark.parametrize("name", ["attention_with_lse", "latent_attention_with_lse"])
def test_arguments_are_those_of_the_reference(name):
    theirs, ours = (inspect.signature(getattr(module, name)).parameters for module in (refattn, textbook))
    if name == "latent_attention_with_lse":  # passes its options on, but for scale, whose default is its own
        assert [*ours][:7] == [*theirs][:7] and [*ours][7:] == ["scale", "options"]
    else:
        theirs = [p for p in theirs.values() if p.name != "precision"]  # the lesson has one arithmetic
        assert [(p.name, p.default) for p in ours.values()] == [(p.name, p.default) for p in theirs]


def test_lists_and_rows_that_see_nothing():
    output, lse = textbook.attention_with_lse(
        [[[1.0], [2.0]]], [[[1.0]]], [[[3.0]]], causal=True, q_offset=-1
    )
    assert output.tolist() == [[[0.0], [3.0]]] and lse.tolist() == [[-np.inf, 2.0]]


def test_what_the_core_adds():
    """As refattn/exact/core.py says: hidden NaN has no say, and weights keep their digits behind
    large scores.
    """
    query, key, value = np.ones((1, 1, 1)), np.array([[[0.0], [np.nan]]]), np.array([[[1.0], [np.nan]]])
    assert np.isnan(textbook.attention_with_lse(query, key, value, kv_lengths=1)[0]).all()
    assert refattn.attention(query, key, value, kv_lengths=1).tolist() == [[[1.0]]]

    key, value = np.array([[[1e15], [1e15]]]), np.array([[[1.0], [3.0]]])
    bias = np.array([0.0, 2.0**-5])  # adding it to a score of 1e15 rounds it away
    right = 1 + 2 / (1 + np.exp(-(2.0**-5)))
    assert abs(refattn.attention(query, key, value, scale=1.0, bias=bias) - right).item() < 1e-14
    assert abs(textbook.attention_with_lse(query, key, value, scale=1.0, bias=bias)[0] - right).item() > 1e-3


def test_the_lesson_stays_short():
    lines = Path(textbook.__file__).read_text().splitlines()
    assert len(lines) <= LONGEST
    assert {line.split()[1] for line in lines if line.startswith(("import", "from"))} == {"numpy"}
