"""Identities of Multi-head Latent Attention: its two forms, and what it is in terms of MHA and MQA."""

import math

import numpy as np
import pytest
from cases import BY_FUNCTION
from rounding import UNIT

import refattn

CASES = BY_FUNCTION["latent_attention"]


def slack(arrays, scale, kv_len):
    """How far two forms may be apart, in the largest |value|.

    Lowering the query or raising the key rounds each coordinate to (nope + latent)u of its sum of
    absolute products; a score moves by that much of eta on either side, a weight by twice the worst
    score. Values raised from latents round to (latent + 2)u.
    """
    q_nope, q_rope, kv_latent, k_rope, w_uk, w_uv = (np.abs(x.astype(float)) for x in arrays.values())
    eta = scale * (
        np.einsum("...htn,hnc,...sc->...hts", q_nope, w_uk, kv_latent, optimize=True).max(initial=0)
        + np.einsum("...htr,...sr->...hts", q_rope, k_rope).max(initial=0)
    )
    value = np.einsum("...sc,hec->...hse", kv_latent, w_uv).max(initial=0)
    roundings = 2 * 2 * (q_nope.shape[-1] + kv_latent.shape[-1] + 3) * eta + 2 * (
        kv_latent.shape[-1] + 2 + 4
    )
    return roundings * UNIT * value, (
        2 * (q_nope.shape[-1] + kv_latent.shape[-1] + 3) * eta + 16 * (eta + math.log(kv_len + 2) + 2)
    ) * UNIT


def assert_close(actual, expected, bounds):
    for a, b, bound in zip(actual, expected, bounds, strict=True):
        infinite = np.isinf(b)
        np.testing.assert_array_equal(a[infinite], b[infinite])
        assert (np.abs(a[~infinite] - b[~infinite]) <= bound).all()


def default_scale(case):
    return (case.sizes.nope_dim + case.sizes.rope_dim) ** -0.5


@pytest.mark.parametrize("case", [case for case in CASES if case.options.get("form") == "absorb"], ids=str)
def test_absorbed_equals_expanded(case):
    arrays, options = case.build()
    absorbed = refattn.latent_attention_with_lse(*arrays.values(), **options)
    expanded = refattn.latent_attention_with_lse(*arrays.values(), **{**options, "form": "expand"})
    largest = (
        options.get("alibi_slopes", np.zeros(1)).max() * 60 + np.abs(options.get("bias", np.zeros(1))).max()
    )
    keep = 1 / (1 - options.get("dropout_rate", 0.0))
    output_slack, lse_slack = slack(arrays, options.get("scale", default_scale(case)), case.sizes.kv_len)
    assert_close(absorbed, expanded, (keep * output_slack, lse_slack + 16 * UNIT * largest))


@pytest.mark.parametrize("case", [case for case in CASES if "scale" not in case.options], ids=str)
def test_default_scale_counts_both_parts_of_the_head(case):
    """1 / sqrt(nope + rope) in both forms, never the width of the latent."""
    arrays, options = case.build()
    expected = refattn.latent_attention_with_lse(*arrays.values(), **options)
    actual = refattn.latent_attention_with_lse(
        *arrays.values(), scale=1 / math.sqrt(case.sizes.nope_dim + case.sizes.rope_dim), **options
    )
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    if case.sizes.kv_len > 1 and "sinks" not in options:
        width = (case.sizes.latent_dim + case.sizes.rope_dim) ** -0.5
        assert (
            np.abs(refattn.latent_attention(*arrays.values(), scale=width, **options) - expected[0]).max()
            > 1e-3
        )


@pytest.mark.parametrize("case", [case for case in CASES if case.options.get("form") == "absorb"], ids=str)
def test_absorbed_form_is_mqa_over_latent_and_rotary_key(case):
    arrays, options = case.build()
    form = options.pop("form")
    q_nope, q_rope, kv_latent, k_rope, w_uk, w_uv = arrays.values()
    scale = options.pop("scale", default_scale(case))
    query = np.concatenate([np.einsum("...htn,hnc->...htc", q_nope, w_uk), q_rope], axis=-1)
    key = np.concatenate([kv_latent, k_rope], axis=-1)[..., None, :, :]
    output, lse = refattn.attention_with_lse(query, key, kv_latent[..., None, :, :], scale=scale, **options)
    raised = np.einsum("...htc,hec->...hte", output, w_uv)
    actual = refattn.latent_attention_with_lse(*arrays.values(), form=form, scale=scale, **options)
    largest = (
        options.get("alibi_slopes", np.zeros(1)).max() * 60 + np.abs(options.get("bias", np.zeros(1))).max()
    )
    output_slack, lse_slack = slack(arrays, scale, case.sizes.kv_len)
    keep = 1 / (1 - options.get("dropout_rate", 0.0))
    assert_close(actual, (raised, lse), (keep * output_slack, lse_slack + 16 * UNIT * largest))


@pytest.mark.parametrize("form", ["absorb", "expand"])
@pytest.mark.parametrize("num_heads, num_kv_heads", [(4, 4), (6, 2), (5, 1)])
def test_selectors_make_grouped_queries_from_latents(form, num_heads, num_kv_heads):
    """GQA is MLA with latent [k_0 .. k_g-1 ; v_0 .. v_g-1] and up-projections that select a head's
    own part. Selecting rounds nothing.
    """
    rng = np.random.default_rng(num_heads)
    rows, keys, dim = 7, 11, 5
    query = rng.normal(size=(num_heads, rows, dim))
    key, value = rng.normal(size=(2, num_kv_heads, keys, dim))
    latent = np.concatenate([*key, *value], axis=-1)
    blocks = np.eye(2 * num_kv_heads * dim).reshape(2, num_kv_heads, dim, -1)
    w_uk, w_uv = np.repeat(blocks, num_heads // num_kv_heads, axis=1)
    output, lse = refattn.latent_attention_with_lse(
        query,
        np.zeros((num_heads, rows, 0)),
        latent,
        np.zeros((keys, 0)),
        w_uk,
        w_uv,
        form=form,
        causal=True,
    )
    expected = refattn.attention_with_lse(query, key, value, causal=True)
    gauge = refattn.attention(query, key, np.abs(value), causal=True)
    assert (np.abs(output - expected[0]) <= 8 * UNIT * gauge * 1.01).all()
    assert (np.abs(lse - expected[1]) <= 16 * np.spacing(np.abs(expected[1]) + math.log(keys))).all()


@pytest.mark.parametrize("nope, rope", [(0, 3), (3, 0)])
def test_one_part_of_the_head_without_channels(nope, rope):
    rng = np.random.default_rng(nope)
    shapes = ((2, 4, nope), (2, 4, rope), (5, 6), (5, rope), (2, nope, 6), (2, 3, 6))
    arrays = [rng.normal(size=shape) for shape in shapes]
    absorbed, expanded = (
        refattn.latent_attention_with_lse(*arrays, form=form, causal=True) for form in ("absorb", "expand")
    )
    for a, b in zip(absorbed, expanded, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-13)
    value = np.einsum("sc,hec->hse", arrays[2], arrays[5])
    key = (
        np.einsum("sc,hnc->hsn", arrays[2], arrays[4]) if nope else np.broadcast_to(arrays[3], (2, 5, rope))
    )
    expected = refattn.attention(arrays[0] if nope else arrays[1], key, value, causal=True)
    np.testing.assert_allclose(absorbed[0], expected, rtol=1e-13, atol=1e-13)


def test_rescaling_latent_and_projections():
    """Powers of two move freely between the latent and both up-projections."""
    arrays, options = CASES[0].build()
    expected = refattn.latent_attention_with_lse(*arrays.values(), **options)
    moved = dict(arrays, kv_latent=arrays["kv_latent"] * 8, w_uk=arrays["w_uk"] / 8, w_uv=arrays["w_uv"] / 8)
    for a, b in zip(refattn.latent_attention_with_lse(*moved.values(), **options), expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_forgetting_the_rotary_part_or_a_head_shows():
    """The identities above would notice: parts that matter change the output."""
    arrays, options = CASES[0].build()
    expected = refattn.latent_attention(*arrays.values(), **options)
    for name in ("q_rope", "k_rope", "q_nope"):
        other = dict(arrays, **{name: np.zeros_like(arrays[name])})
        assert np.abs(refattn.latent_attention(*other.values(), **options) - expected).max() > 1e-2
    rolled = dict(arrays, w_uk=np.roll(arrays["w_uk"], 1, axis=0))
    assert np.abs(refattn.latent_attention(*rolled.values(), **options) - expected).max() > 1e-2
