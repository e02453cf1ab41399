"""refattn equals the definition in naive.py on every case of the table; how far apart the two may be
is derived in rounding.py.
"""

import naive
import numpy as np
import pytest
from cases import BY_FUNCTION, CASES
from rounding import UNIT, naive_bounds, uniform_bounds

import refattn

DENSE = BY_FUNCTION["attention"]
NARROW = [
    (case, dtype)
    for dtype, cases in (("float32", DENSE[::3]), ("float16", DENSE[1::5]), ("bfloat16", DENSE[2::5]))
    for case in cases
]


def assert_within(actual, expected, bound, what):
    """|actual - expected| <= bound wherever expected is not infinite; infinities in the same places."""
    assert actual.dtype == np.float64, what
    assert actual.shape == expected.shape, what
    infinite = np.isinf(expected)
    np.testing.assert_array_equal(actual[infinite], expected[infinite], err_msg=what)
    bound = np.broadcast_to(bound, expected.shape)
    error = np.abs(actual[~infinite] - expected[~infinite])
    wrong = ~(error <= bound[~infinite])
    assert not wrong.any(), (
        f"{what}: {wrong.sum()} of {wrong.size} differ, worst {error[wrong].max()} where "
        f"{bound[~infinite][wrong].min()} is allowed"
    )


@pytest.mark.sample(4)
@pytest.mark.parametrize("case, dtype", [(case, "float64") for case in DENSE] + NARROW, ids=str)
def test_attention(case, dtype):
    """Every step; and output and lse once more, computed without the steps and without the keys that
    no row of a block sees.
    """
    arrays, options = case.build(dtype)
    query, key, value = arrays.values()
    expected = naive.attention(query, key, value, **options)
    bounds = naive_bounds(query, key, value, expected, **options)
    actual = refattn.attention_steps(query, key, value, **options)
    seen = ~np.isnan(expected.scores)
    for name in ("scores", "capped"):
        assert_within(
            getattr(actual, name)[seen], getattr(expected, name)[seen], getattr(bounds, name)[seen], name
        )
    for name in ("biased", "weights", "lse", "output"):
        assert_within(getattr(actual, name), getattr(expected, name), getattr(bounds, name), name)
    assert (actual.weights[~seen] == 0).all()

    output, lse = refattn.attention_with_lse(query, key, value, **options)
    assert_within(output, expected.output, bounds.output, "output alone")
    assert_within(lse, expected.lse, bounds.lse, "lse alone")
    np.testing.assert_array_equal(refattn.attention(query, key, value, **options), output)


def largest(*arrays):
    """Largest finite magnitude."""
    return max(
        (
            float(np.abs(x[np.isfinite(x)]).max(initial=0.0))
            for x in (np.asarray(x, dtype=float) for x in arrays)
        ),
        default=0.0,
    )


def largest_norm(x):
    return float(np.sqrt((np.asarray(x, dtype=float) ** 2).sum(axis=-1)).max(initial=0.0))


def largest_addend(options, distance):
    slopes = options.get("alibi_slopes", np.zeros(1))
    return (
        largest(slopes) * distance + largest(options.get("bias", np.zeros(1))) + options.get("softcap", 0.0)
    )


def other_cases(*functions):
    return [
        (case, dtype)
        for function in functions
        for n, case in enumerate(BY_FUNCTION[function])
        for dtype in (("float64", "float32") if n % 4 == 0 else ("float64",))
    ]


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    "case, dtype", other_cases("packed_attention", "paged_attention", "block_local_attention"), ids=str
)
def test_packed_paged_and_block_local(case, dtype):
    arrays, options = case.build(dtype)
    query, key, value = arrays.values()
    expected_output, expected_lse = getattr(naive, case.function + "_with_lse")(query, key, value, **options)
    scale = abs(options.get("scale", query.shape[-1] ** -0.5))
    distance = case.sizes.q_len + 2 * case.sizes.kv_len
    output_bound, lse_bound = uniform_bounds(
        scale * largest_norm(query) * largest_norm(key),
        largest_addend(options, distance),
        largest(value),
        expected_lse,
        case.sizes.kv_len,
        dropout_rate=options.get("dropout_rate"),
    )
    output, lse = getattr(refattn, case.function + "_with_lse")(query, key, value, **options)
    assert_within(output, expected_output, output_bound, "output")
    assert_within(lse, expected_lse, lse_bound, "lse")
    np.testing.assert_array_equal(getattr(refattn, case.function)(query, key, value, **options), output)


@pytest.mark.sample(3)
@pytest.mark.parametrize("case, dtype", other_cases("latent_attention"), ids=str)
def test_latent(case, dtype):
    """Both sides round latents once more on the way to keys or queries, and once on the way to
    values: 2u of sums of absolute products.
    """
    arrays, options = case.build(dtype)
    expected_output, expected_lse = naive.latent_attention_with_lse(**arrays, **options)
    q_nope, q_rope, kv_latent, k_rope, w_uk, w_uv = (np.abs(x.astype(float)) for x in arrays.values())
    scale = abs(options.get("scale", (q_nope.shape[-1] + q_rope.shape[-1]) ** -0.5))
    raised = np.einsum("...hti,hic->...htc", q_nope, w_uk)
    eta = scale * (
        largest_norm(raised) * largest_norm(kv_latent) + largest_norm(q_rope) * largest_norm(k_rope)
    )
    inner = q_nope.shape[-1] + kv_latent.shape[-1]
    output_bound, lse_bound = uniform_bounds(
        eta
        * (
            1 + (2 + inner) / 5
        ),  # the lowered query or raised key: one rounding in naive, up to `inner` in a matrix product
        largest_addend(options, case.sizes.q_len + 2 * case.sizes.kv_len),
        largest(np.einsum("...sc,hec->...hse", kv_latent, w_uv)),
        expected_lse,
        case.sizes.kv_len,
        extra_units=4 + kv_latent.shape[-1],
    )
    output, lse = refattn.latent_attention_with_lse(**arrays, **options)
    assert_within(output, expected_output, output_bound, "output")
    assert_within(lse, expected_lse, lse_bound, "lse")
    np.testing.assert_array_equal(refattn.latent_attention(**arrays, **options), output)
    np.testing.assert_array_equal(refattn.multi_head_latent_attention(**arrays, **options), output)


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
@pytest.mark.parametrize("level", [1.0, 40.0, 1e4])
def test_merge_states(parts, level):
    rng = np.random.default_rng([parts, int(level)])
    outputs, lses = rng.normal(size=(parts, 2, 3, 11, 5)), level * rng.normal(size=(parts, 2, 3, 11))
    lses[rng.random(lses.shape) < 0.2] = -np.inf
    lses[:, 0, 0, :2] = -np.inf
    outputs[np.isinf(lses)] = 0
    output, lse = refattn.merge_states(list(outputs), list(lses))
    expected_output, expected_lse = naive.merge_states(outputs, lses)
    # the difference of two lse rounds (|lse| below 5 * level), exp twice two, products, sums and quotient
    units = 2 * (10 * level + 4 + parts + 4)
    weights = np.exp(lses - np.where(np.isinf(expected_lse), 0, expected_lse))[..., None]
    assert_within(output, expected_output, units * UNIT * (weights * np.abs(outputs)).sum(axis=0), "output")
    assert_within(
        lse,
        expected_lse,
        units * UNIT * (1 + np.abs(np.where(np.isinf(expected_lse), 0, expected_lse))),
        "lse",
    )
    stacked = refattn.merge_states(outputs, lses)
    np.testing.assert_array_equal(stacked[0], output)
    np.testing.assert_array_equal(stacked[1], lse)


ENTRY_POINTS = {
    refattn.multi_head_attention: lambda z: z.group_size == 1,
    refattn.multi_query_attention: lambda z: z.num_kv_heads == 1,
    refattn.grouped_query_attention: lambda z: True,
}


@pytest.mark.parametrize("entry, fits", ENTRY_POINTS.items(), ids=lambda x: x.__name__)
def test_entry_points_are_attention(entry, fits):
    fitting = [case for case in DENSE if fits(case.sizes)][::4]
    assert len(fitting) >= 5
    for case in fitting:
        arrays, options = case.build()
        np.testing.assert_array_equal(
            entry(*arrays.values(), **options),
            refattn.attention(*arrays.values(), **options),
            err_msg=case.id,
        )


def test_the_table_is_large_enough():
    """Nothing silently drops out of the table."""
    assert len(CASES) >= 390
    assert {function: len(cases) > 15 for function, cases in BY_FUNCTION.items()} == dict.fromkeys(
        BY_FUNCTION, True
    )
