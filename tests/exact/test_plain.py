"""`precision="float64"` against the exact functions, within the bound that its docstring states."""

import math

import numpy as np
import pytest

import refattn
from refattn.calls.dense import attention_problem
from refattn.exact.core import ExactGroup
from refattn.exact.plain import PlainGroup
from refattn.exact.solve import solve

UNIT = 2.0**-53
RNG = np.random.default_rng(0)
SIZES = {"batch": 2, "heads": 4, "kv_heads": 2, "rows": 37, "keys": 61}


def draw(scores=1.0, values=1.0, head_dim=16, v_head_dim=5, seed=0, **sizes):
    b, h, k, t, s = (SIZES | sizes).values()
    rng = np.random.default_rng(seed)
    query = scores * rng.normal(size=(b, h, t, head_dim))
    return query, rng.normal(size=(b, k, s, head_dim)), values * rng.normal(size=(b, k, s, v_head_dim))


PER_SCORE = (SIZES["batch"], SIZES["heads"], SIZES["rows"], SIZES["keys"])
OPTIONS = {
    "nothing": {},
    "causal": {"causal": True},
    "window": {"window": (9, 3)},
    "chunk": {"chunk": 8},
    "scale": {"scale": -0.7},
    "softcap": {"softcap": 1.5},
    "softcap that caps nothing": {"softcap": 1e60},
    "tiny softcap": {"softcap": 1e-300},
    "bias": {"bias": 30 * RNG.normal(size=PER_SCORE)},
    "bias with holes": {"bias": np.where(RNG.random(PER_SCORE[2:]) < 0.5, -np.inf, 2.0)},
    "mask": {"mask": RNG.random(PER_SCORE) < 0.6},
    "mask of all keys": {"mask": np.zeros(PER_SCORE[2:], bool)},
    "alibi": {"alibi_slopes": RNG.random(SIZES["heads"])},
    "far alibi": {"alibi_slopes": np.full(SIZES["heads"], 0.3), "q_offset": 2**40},
    "sinks": {"sinks": np.array([0.5, -np.inf, 3.0, 20.0])},
    "sinks of empty rows": {"sinks": np.array([0.5, -np.inf, 1e300, -1e300]), "kv_lengths": [0, 0]},
    "lengths": {"kv_lengths": [0, 50], "causal": True},
    "rows before the keys": {"q_offset": -20, "causal": True},
    "dropout": {"dropout_mask": RNG.random(PER_SCORE) < 0.7, "dropout_rate": 0.3},
    "dropout of all": {"dropout_mask": np.zeros((1, 1), bool), "dropout_rate": 0.5},
}
OPTIONS["all"] = {
    name: value
    for words in ("causal", "window", "softcap", "bias", "mask", "alibi", "sinks", "dropout")
    for name, value in OPTIONS[words].items()
}


def allowed(query, key, value, **options):
    """The stated bounds of output and lse, from `attention_steps`: u (2 E + 2 R + 2 S + 16) sum p |v| and
    u (E + R + S + 16 + 2 |lse| + M)."""
    steps = refattn.attention_steps(query, key, value, **options)
    groups, head_dim, keys = query.shape[1] // key.shape[1], query.shape[-1], key.shape[-2]
    seen = steps.biased > -np.inf
    most = lambda x: np.where(seen, x, 0.0).max(-1)
    lengths = np.broadcast_to(options.get("kv_lengths", keys), query.shape[:1])
    offset = np.broadcast_to(options.get("q_offset", lengths - query.shape[-2]), query.shape[:1])
    distance = np.abs(offset[:, None, None] + np.arange(query.shape[-2])[:, None] - np.arange(keys))[:, None]
    products = np.abs(query) @ np.abs(np.repeat(key, groups, 1)).swapaxes(-1, -2)
    errors = (
        (head_dim + 13) * abs(options.get("scale", head_dim**-0.5)) * products
        + 4 * np.abs(np.reshape(options.get("alibi_slopes", 0.0), (-1, 1, 1)) * distance)
        + np.where(seen, np.abs(options.get("bias", 0.0)), 0.0)
    )
    sinks = np.reshape(options.get("sinks", -np.inf), (-1, 1, 1)) + np.zeros((*steps.lse.shape, 1))
    terms = np.concatenate([steps.biased, sinks], axis=-1)
    finite = np.isfinite(terms)
    top = np.where(finite, terms, -np.inf).max(-1)
    low = np.where(finite, terms, np.inf).min(-1)
    spread = np.minimum(745.0, np.subtract(top, low, out=np.zeros_like(top), where=finite.any(-1)))
    weights = steps.weights * options.get("dropout_mask", True) / (1 - options.get("dropout_rate", 0.0))
    gauge = weights @ np.abs(np.repeat(value, groups, 1))
    output = UNIT * (2 * most(errors) + 2 * spread + 2 * keys + 16)[..., None] * gauge
    magnitudes = np.abs(np.where(finite, terms, 0.0)).max(-1) + 2 * np.abs(
        np.nan_to_num(steps.lse, neginf=0.0)
    )
    return output, UNIT * (most(errors) + spread + keys + 16 + magnitudes)


@pytest.mark.parametrize("scores", [1.0, 30.0, 1e4])
@pytest.mark.parametrize("words", OPTIONS)
def test_error_is_within_the_stated_bound(words, scores):
    arrays, options = draw(scores), OPTIONS[words]
    exact = refattn.attention_with_lse(*arrays, **options)
    plain = refattn.attention_with_lse(*arrays, precision="float64", **options)
    for got, right, limit in zip(plain, exact, allowed(*arrays, **options), strict=True):
        finite = np.isfinite(right)
        np.testing.assert_array_equal(np.where(finite, 0.0, got), np.where(finite, 0.0, right))
        assert (
            np.abs(got[finite] - right[finite]) <= limit[finite] + 4 * UNIT * np.abs(right[finite])
        ).all()


def test_the_error_is_there():
    """Float64 all the way, so that the bound is no empty promise: scores of 1e4 lose four digits."""
    arrays = draw(1e4)
    apart = np.abs(refattn.attention(*arrays) - refattn.attention(*arrays, precision="float64"))
    assert 1e-13 < apart.max() < 1e-10


CALLS = {
    "multi_head_attention": ([(3, 5, 4), (3, 7, 4), (3, 7, 2)], {}),
    "multi_query_attention": ([(3, 5, 4), (1, 7, 4), (1, 7, 2)], {"causal": True}),
    "grouped_query_attention": ([(4, 5, 4), (2, 7, 4), (2, 7, 2)], {"softcap": 2.0}),
    "packed_attention": (
        [(4, 9, 4), (2, 11, 4), (2, 11, 3)],
        {"cu_q": [0, 4, 4, 9], "cu_kv": [0, 5, 7, 11]},
    ),
    "paged_attention": (
        [(2, 4, 3, 4), (5, 2, 4, 4), (5, 2, 4, 3)],
        {"block_table": [[1, 4, 0], [3, 2, 99]], "kv_lengths": [10, 7], "causal": True},
    ),
    "block_local_attention": ([(4, 9, 4), (2, 9, 4), (2, 9, 3)], {"block_size": 4, "causal": True}),
    "latent_attention absorb": (
        [(2, 3, 4, 5), (2, 3, 4, 2), (2, 8, 6), (2, 8, 2), (3, 5, 6), (3, 4, 6)],
        {"form": "absorb", "causal": True, "kv_lengths": [8, 3]},
    ),
    "latent_attention expand": (
        [(2, 3, 4, 5), (2, 3, 4, 2), (2, 8, 6), (2, 8, 2), (3, 5, 6), (3, 4, 6)],
        {"form": "expand", "kv_lengths": [8, 3]},
    ),
    "multi_head_latent_attention": (
        [(3, 4, 5), (3, 4, 2), (8, 6), (8, 2), (3, 5, 6), (3, 4, 6)],
        {"form": "absorb"},
    ),
}
WITH_LSE = [name for name in CALLS if hasattr(refattn, f"{name.split()[0]}_with_lse")]


@pytest.mark.parametrize("name", CALLS)
def test_every_form_takes_it(name):
    shapes, options = CALLS[name]
    arrays = [RNG.normal(size=shape) for shape in shapes]
    function = name.split()[0]
    names = [function, f"{function}_with_lse"][: 1 + (name in WITH_LSE)]
    for function in (getattr(refattn, name) for name in names):
        exact, plain = (function(*arrays, precision=kind, **options) for kind in ("exact", "float64"))
        default = function(*arrays, **options)
        np.testing.assert_equal(default, exact)
        assert not np.array_equal(exact[0], plain[0])  # it has another arithmetic, the last bits show
        for right, got in zip(
            *([exact], [plain]) if names[0] == function.__name__ else (exact, plain), strict=True
        ):
            np.testing.assert_allclose(got, right, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(
    "bad, kind", [("float32", ValueError), ("", ValueError), (None, TypeError), (64, TypeError)]
)
@pytest.mark.parametrize("name", CALLS)
def test_other_precisions_are_refused(name, bad, kind):
    shapes, options = CALLS[name]
    arrays = [RNG.normal(size=shape) for shape in shapes]
    with pytest.raises(kind, match=r"precision must be 'exact' or 'float64'; got precision="):
        getattr(refattn, name.split()[0])(*arrays, precision=bad, **options)


# Where float64 ends


@pytest.mark.parametrize(
    "scores, keys, values, options",
    [
        (1e150, 1.0, 1.0, {}),
        (1e200, 1e200, 1.0, {"scale": 1e-300}),
        (1e-200, 1e-200, 1.0, {}),
        (1.0, 1.0, 1e200, {}),
        (1.0, 1.0, 1e-310, {}),
        (1.0, 1.0, 1.0, {"scale": 1e300}),
        (1.0, 1.0, 1.0, {"sinks": np.full(4, 1000.0)}),
        (1.0, 1.0, 1e100, {"sinks": np.full(4, 800.0)}),
        (1.0, 1.0, 1.0, {"sinks": np.full(4, 1e308), "bias": np.full((37, 61), -1e308)}),
        (1.0, 1.0, 1.0, {"alibi_slopes": np.full(4, 1e200)}),
    ],
)
def test_beyond_the_range_it_is_what_the_exact_one_is(scores, keys, values, options):
    query, key, value = draw(scores, values)
    arrays = query, keys * key, value
    exact = refattn.attention_with_lse(*arrays, **options)
    plain = refattn.attention_with_lse(*arrays, precision="float64", **options)
    if "scale" in options and options["scale"] == 1e300:  # one-hot either way
        assert np.isfinite(plain[0]).all()
    for got, right in zip(plain, exact, strict=True):
        np.testing.assert_array_equal(np.isfinite(got), np.isfinite(right))
        np.testing.assert_allclose(got, right, rtol=1e-12)


def test_large_numbers_within_the_range_stay_means_of_the_values():
    for size in (1e20, 1e100, 1e118):
        query, key, value = draw(size)
        output, lse = refattn.attention_with_lse(query, size * key, value, precision="float64")
        assert np.isfinite(lse).all() and (np.abs(output) <= np.abs(value).max()).all()


def test_values_that_are_not_finite_decide_the_rows_that_see_them():
    query, key, value = draw()
    value[0, 0, 3, 2], value[0, 1, 7, 1], value[1, 0, 60, 0] = np.inf, np.nan, -np.inf
    value[1, 1, 20], key[1, 1, 20] = np.nan, np.inf
    for options in (OPTIONS["nothing"], OPTIONS["causal"], OPTIONS["all"], OPTIONS["lengths"]):
        exact, plain = (
            refattn.attention_with_lse(query, key, value, precision=kind, **options)
            for kind in ("exact", "float64")
        )
        for got, right in zip(plain, exact, strict=True):
            np.testing.assert_allclose(got, right, rtol=1e-12, atol=1e-13)


def test_hidden_keys_may_hold_anything():
    query, key, value = draw()
    mask = np.arange(61) % 3 > 0
    right = refattn.attention(query, key, value, mask=mask[None], precision="float64")
    for rubbish in (np.nan, np.inf, -np.inf):
        key[..., ~mask, :], value[..., ~mask, :] = rubbish, rubbish
        got = refattn.attention(query, key, value, mask=mask[None], precision="float64")
        np.testing.assert_allclose(got, right, rtol=1e-14, atol=1e-15)


# Some rows


@pytest.mark.parametrize("arithmetic", [ExactGroup, PlainGroup])
@pytest.mark.parametrize("words", ["nothing", "causal", "all", "lengths"])
@pytest.mark.parametrize("picked", [[0], [36], [3, 4, 5], [0, 2, 17, 36], []])
def test_only_picked_rows_are_computed(picked, words, arithmetic):
    problem = attention_problem(*draw(), **OPTIONS[words])
    whole = solve(problem, arithmetic=arithmetic)
    some = solve(problem, rows=lambda q_len: np.array(picked, dtype=np.int64), arithmetic=arithmetic)
    others = np.setdiff1d(np.arange(37), picked)
    for got, right in zip(some, whole, strict=True):
        assert not got[:, :, others].any()
        np.testing.assert_allclose(got[:, :, picked], right[:, :, picked], rtol=1e-13, atol=1e-15)


def test_picked_rows_are_picked_in_each_part():
    asked = []

    def ends(q_len):
        asked.append(q_len)
        return np.unique([0, q_len - 1]) if q_len else np.arange(0)

    shapes, cuts = CALLS["packed_attention"]
    problem = refattn.packed.packed_problem(*(RNG.normal(size=shape) for shape in shapes), **cuts)
    output, lse = solve(problem, rows=ends)
    assert asked == [4, 0, 5] and np.flatnonzero(lse[0]).tolist() == [0, 3, 4, 8]
    np.testing.assert_allclose(output[:, [0, 3, 4, 8]], solve(problem)[0][:, [0, 3, 4, 8]], rtol=1e-13)


@pytest.mark.parametrize("form", ["absorb", "expand"])
def test_picked_rows_of_latent_attention(form):
    shapes, options = CALLS[f"latent_attention {form}"]
    problem = refattn.latent.latent_problem(*(RNG.normal(size=shape) for shape in shapes), **options)
    whole = refattn.latent.solve_latent(problem)
    for arithmetic in (ExactGroup, PlainGroup):
        some = refattn.latent.solve_latent(problem, lambda q_len: np.array([1, 3]), arithmetic)
        for got, right in zip(some, whole, strict=True):
            assert not got[:, :, [0, 2]].any()
            np.testing.assert_allclose(got[:, :, [1, 3]], right[:, :, [1, 3]], rtol=1e-13, atol=1e-14)


def test_blocks_of_uncertain_scores_are_computed_exactly_where_asked():
    class Careful(PlainGroup):
        largest_score_error = 2.0**-24

    small, large = draw(), draw(1e6)
    for arrays, same in ((small, False), (large, True)):
        problem = attention_problem(*arrays)
        assert np.array_equal(solve(problem)[0], solve(problem, arithmetic=Careful)[0]) == same
    bias = np.zeros(PER_SCORE[2:])
    bias[3] = 1e9
    problem = attention_problem(*small, bias=bias)
    assert math.isinf(PlainGroup.largest_score_error)
    assert np.array_equal(solve(problem)[0], solve(problem, arithmetic=Careful)[0])
