"""Error bounds: rigorous against the worst roundings, equal over all forms, silent where nothing can
be known.
"""

import itertools

import ml_dtypes
import numpy as np
import pytest
from cases import CASES

import refattn
from refattn.oracle import EmulatedKernel, KernelSpec, check, error_bound
from refattn.oracle.arithmetic.formats import round_to
from refattn.oracle.bounds import row_blocks, single

FUNCTIONS = ("attention", "packed_attention", "paged_attention", "latent_attention", "block_local_attention")
NAMES = ("output_hard", "output_tight", "output_sigma", "lse_hard", "lse_tight", "lse_sigma")
EXACT = KernelSpec(
    "exact",
    input="exact",
    accumulator="exact",
    softmax="exact",
    output="exact",
    lse="exact",
    exp_error=0.0,
    tanh_error=0.0,
)


def sample(seed=0, heads=2, q_len=24, kv_len=40, dim=16, v_dim=12, dtype="float16"):
    rng = np.random.default_rng(seed)
    shapes = (heads, q_len, dim), (heads, kv_len, dim), (heads, kv_len, v_dim)
    return [round_to(rng.normal(size=shape), dtype) for shape in shapes]


# Rigour of each term: all roundings at once, in every combination of signs


def test_exact_arithmetic_leaves_no_error():
    bound = error_bound(*sample(), spec=EXACT, causal=True)
    assert bound.output_hard.max() == 0 and bound.output_tight.max() == 0 and bound.lse_hard.max() < 1e-15


def worst_of(spec, perturb, keys=6, dims=5):
    """Largest use of the hard bound when `perturb(signs, p, v)` gives the wrong output for every
    combination of signs.
    """
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(1, 1, 4)), rng.normal(size=(1, keys, 4)) * 2, rng.normal(size=(1, keys, dims))
    steps = refattn.attention_steps(q, k, v)
    bound = error_bound(q, k, v, spec=spec, kind="hard")
    p, scores, exact = steps.weights[0, 0], steps.scores[0, 0], steps.output[0, 0]
    most = 0.0
    for signs in itertools.product([-1.0, 1.0], repeat=keys):
        got = perturb(np.array(signs), p, scores, v[0])
        most = max(most, float(np.max(np.abs(got - exact) / bound.output_hard[0, 0])))
    return most


def test_worst_conversion_of_weights():
    u = 2.0**-8
    spec = EXACT.replace(weight=u)
    worst = worst_of(spec, lambda signs, p, s, v: (p * (1 + u * signs)) @ v)
    assert 0.95 < worst <= 1.0 + 1e-12


def test_worst_conversion_of_weights_in_both_sums():
    u = 2.0**-8
    spec = EXACT.replace(weight=u, denominator="rounded")
    worst = worst_of(spec, lambda signs, p, s, v: (p * (1 + u * signs)) @ v / (p * (1 + u * signs)).sum())
    assert 0.4 < worst <= 1.0 + 1e-12  # |v| + |o| stands for |v - o|


def test_worst_exponentials():
    e = 0.01
    spec = EXACT.replace(exp_error=e, block_size=None)
    worst = worst_of(spec, lambda signs, p, s, v: (p * (1 + e * signs)) @ v / (p * (1 + e * signs)).sum())
    assert 0.3 < worst <= 1.0 + 1e-12


def test_worst_stored_scores_even_when_they_are_coarse():
    u = 0.02
    spec = EXACT.replace(score=u, block_size=None)

    def perturb(signs, p, s, v):
        weights = p * np.exp(s * ((1 + u * signs) ** 2 - 1))
        return weights @ v / weights.sum()

    assert 0.2 < worst_of(spec, perturb) <= 1.0


def test_worst_output_rounding():
    u = 2.0**-4
    worst = worst_of(EXACT.replace(output=u), lambda signs, p, s, v: (p @ v) * (1 + u * signs[0]))
    assert 0.99 < worst <= 1.0 + 1e-12


def test_underflow_of_weights_is_bounded_by_what_is_lost():
    """A key 7 below the maximum has weight 0.0009 and half a step of e4m3 is 0.00098: flushed, and no
    more than that can be lost.
    """
    q, k, v = np.ones((1, 1, 1)), np.array([[[0.0], [-7.0]]]), np.array([[[0.0], [1.0]]])
    bound = error_bound(q, k, v, spec=EXACT.replace(weight="float8_e4m3fn"), scale=1.0)
    lost = refattn.attention(q, k, v, scale=1.0)
    assert lost <= bound.output_hard <= 1.001 * lost
    assert lost <= bound.output_tight
    scaled = error_bound(q, k, v, spec=EXACT.replace(weight="float8_e4m3fn", weight_scale=256.0), scale=1.0)
    assert scaled.output_hard < 0.1 * lost


def test_constant_values_have_no_score_error():
    """Whatever the weights, their mean of equal values is that value: the score error must not enter."""
    q, k, v = sample()
    v = np.broadcast_to(v[:, :1], v.shape)
    coarse, fine = (
        error_bound(q, k, v, spec=EXACT.replace(score=u, output="bfloat16", block_size=None))
        for u in (2.0**-6, 0.0)
    )
    for name in ("output_hard", "output_tight"):
        np.testing.assert_allclose(getattr(coarse, name), getattr(fine, name), rtol=1e-6)


def test_dropout_of_rate_zero_still_drops():
    """Half of the weights dropped and none scaled up: constant values no longer come out as they are,
    and their score error counts.
    """
    q, k, v = sample()
    keep = np.arange(40) % 2 == 0
    spec = EXACT.replace(exp_error=0.01, block_size=None)
    bound = error_bound(q, k, np.full_like(v, 1000.0), spec=spec, dropout_mask=keep[None], dropout_rate=0.0)
    weights = refattn.attention_steps(q, k, v).weights
    off = weights * np.where(keep, 1.01, 0.99)
    error = np.abs(1000.0 * ((off * keep).sum(-1) / off.sum(-1) - (weights * keep).sum(-1)))
    assert (error <= bound.output_hard[..., 0]).all() and (error > 0.2 * bound.output_hard[..., 0]).any()


def test_saturated_softcap_forgives_score_errors():
    q, k, v = sample()
    spec = EXACT.replace(scaled_query=2.0**-8)
    loose, saturated = (
        error_bound(q, k, v, spec=spec, scale=3.0, softcap=cap).output_hard for cap in (1e6, 1.0)
    )
    assert np.median(saturated) < 0.2 * np.median(loose)


# Shape of the answer


@pytest.mark.parametrize(
    "kind, present",
    [("both", NAMES), ("hard", ("output_hard", "lse_hard")), ("tight", NAMES[1:3] + NAMES[4:])],
)
def test_kinds(kind, present):
    bound = error_bound(*sample(), spec="float16", kind=kind)
    for name in NAMES:
        assert (getattr(bound, name) is not None) == (name in present)


MAKERS = [KernelSpec.flash, KernelSpec.eager, KernelSpec.cpu_kernels]
SPEC_DTYPES = ["float64", "float32", "float16", "bfloat16"]


@pytest.mark.sample(12)
@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("dtype", SPEC_DTYPES)
def test_every_case_has_bounds_that_a_correct_kernel_keeps(make, dtype):
    """All options and forms of the table of cases; shapes, order and signs of the bounds, and an
    emulated kernel within them. A fifth of the cases for each spec: the specs of the default run have all
    five of them.
    """
    spec = make(dtype)
    kernel = EmulatedKernel(spec)
    checked = 0
    for case in CASES[(len(SPEC_DTYPES) * MAKERS.index(make) + SPEC_DTYPES.index(dtype)) % 5 :: 5]:
        if case.function not in FUNCTIONS:
            continue
        arrays, options = case.build("float32" if dtype == "float64" else dtype)
        bound = error_bound(*arrays.values(), spec=spec, function=case.function, **options)
        exact = getattr(refattn, f"{case.function}_with_lse")(*arrays.values(), **options)
        np.testing.assert_array_equal(bound.output, exact[0])
        for name in NAMES:
            values, result = getattr(bound, name), exact[0 if name.startswith("output") else 1]
            assert values.shape == result.shape and values.dtype == np.float64, (case.id, name)
            assert (values >= 0).all(), (case.id, name)
            assert (values[~np.isfinite(result)] == 0).all(), (case.id, name)
        assert (bound.output_tight <= bound.output_hard).all() and (
            bound.lse_tight <= bound.lse_hard
        ).all(), case.id
        got = kernel(*arrays.values(), function=case.function, **options)
        for mine, right, limit in zip(got, exact, (bound.output_tight, bound.lse_tight), strict=True):
            finite = np.isfinite(right)
            with np.errstate(over="ignore", invalid="ignore"):
                assert (np.abs(mine - right)[finite] <= limit[finite]).all(), case.id
        checked += 1
    assert checked > 20


def test_forms_agree_with_the_dense_problems_they_are():
    spec = KernelSpec.flash("float16")
    q, k, v = sample(kv_len=24)
    cut = [0, 10, 24]
    packed = error_bound(
        q,
        k,
        v,
        spec=spec,
        function="packed_attention",
        cu_q=cut,
        cu_kv=cut,
        causal=True,
        failure_probability=1e-9,
    )
    local = error_bound(q, k, v, spec=spec, function="block_local_attention", block_size=12, causal=True)
    for name in ("output_hard", "lse_hard", "output_sigma"):
        for first, last in itertools.pairwise(cut):
            rows = slice(first, last)
            alone = error_bound(q[:, rows], k[:, rows], v[:, rows], spec=spec, causal=True)
            np.testing.assert_allclose(getattr(packed, name)[:, rows], getattr(alone, name), rtol=1e-6)
        for rows in (slice(0, 12), slice(12, 24)):
            alone = error_bound(q[:, rows], k[:, rows], v[:, rows], spec=spec, causal=True)
            np.testing.assert_allclose(getattr(local, name)[:, rows], getattr(alone, name), rtol=1e-6)

    pages = np.full((9, 2, 4, 16), np.nan)
    value_pages = np.full((9, 2, 4, 12), np.nan)
    table = np.array([[7, 1, 4, 0, 8, 2]])
    for position, page in enumerate(table[0]):
        pages[page], value_pages[page] = (
            k[:, 4 * position : 4 * position + 4],
            v[:, 4 * position : 4 * position + 4],
        )
    paged = error_bound(
        q[None],
        pages,
        value_pages,
        spec=spec,
        function="paged_attention",
        block_table=table,
        kv_lengths=[21],
    )
    alone = error_bound(q, k[:, :21], v[:, :21], spec=spec)
    for name in ("output_hard", "output_tight", "lse_hard", "lse_tight"):
        np.testing.assert_allclose(getattr(paged, name)[0], getattr(alone, name), rtol=1e-6)


def test_latent_forms_bound_their_own_roundings():
    """Absorbing rounds the query and the latent output, expanding rounds keys and values; in exact
    arithmetic neither has an error.
    """
    rng = np.random.default_rng(0)
    arrays = [
        rng.normal(size=shape) for shape in ((2, 9, 8), (2, 9, 4), (20, 12), (20, 4), (2, 8, 12), (2, 6, 12))
    ]
    arrays = [round_to(array, "bfloat16") for array in arrays]
    for form in ("absorb", "expand"):
        call = {"function": "latent_attention", "form": form}
        assert error_bound(*arrays, spec=EXACT, **call).output_hard.max() == 0
        stored = error_bound(*arrays, spec=EXACT.replace(intermediate="bfloat16"), **call)
        assert (stored.output_hard > 0).all() and (stored.output_tight < stored.output_hard).any()
        kernel = EmulatedKernel(
            EXACT.replace(
                intermediate="bfloat16",
                softmax="float64",
                accumulator="float64",
                output="float64",
                lse="float64",
            )
        )
        output, lse = kernel(*arrays, **call)
        assert 0.02 < np.max(np.abs(output - stored.output) / stored.output_hard) <= 1
        assert np.max(np.abs(lse - stored.lse) / stored.lse_hard) <= 1


@pytest.mark.parametrize("size", [1, 300, 2**21])
def test_blocks_of_rows_do_not_change_the_bounds(monkeypatch, size):
    q, k, v = sample()
    whole = error_bound(q, k, v, spec="bfloat16")
    monkeypatch.setattr(row_blocks, "BLOCK_SCORES", size)
    cut = error_bound(q, k, v, spec="bfloat16")
    for (
        name
    ) in NAMES:  # bounds of bfloat16 are float32, whose sums depend on how many rows are summed together
        np.testing.assert_allclose(getattr(cut, name), getattr(whole, name), rtol=1e-6)


@pytest.mark.parametrize("function", ["attention", "packed_attention", "latent_attention"])
@pytest.mark.parametrize("spec", ["bfloat16", "float16", "float32", "eager float16"])
def test_bounds_in_float32_are_those_in_float64(monkeypatch, function, spec):
    rng = np.random.default_rng(3)
    if function == "latent_attention":
        shapes = (3, 41, 8), (3, 41, 4), (53, 24), (53, 4), (3, 8, 24), (3, 11, 24)
    else:
        shapes = (6, 41, 16), (3, 53, 16), (3, 53, 11)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    options = {"packed_attention": {"cu_q": [0, 7, 41], "cu_kv": [0, 30, 53]}}.get(function, {})
    if function == "attention":
        options = {
            "bias": np.where(rng.random((6, 41, 53)) < 0.3, -np.inf, 0.5),
            "causal": True,
            "sinks": rng.random(6),
        }
    narrow = error_bound(*arrays, spec=spec, function=function, **options)
    monkeypatch.setattr(single, "suffices_for", lambda spec: False)
    wide = error_bound(*arrays, spec=spec, function=function, **options)
    for name in NAMES:
        with np.errstate(invalid="ignore"):  # empty rows: 0 / 0
            ratio = getattr(narrow, name) / getattr(wide, name)
        # one per cent, but where the roundings of the exact weights all but cancel
        assert np.nanquantile(np.abs(ratio - 1.0), 0.999) < 0.01 and np.nanmax(np.abs(ratio - 1.0)) < 0.05
        assert name.endswith("hard") or (getattr(narrow, name) != getattr(wide, name)).any()


def test_what_float32_does_not_hold_is_bounded_in_float64():
    """Scores uncertain by more than float32 can raise to a power, beside keys that a bias hides: the block is
    made again with the same keys hidden."""
    rng = np.random.default_rng(4)
    query, key = (100.0 * rng.random(shape).astype(np.float16) for shape in ((2, 9, 64), (1, 3, 64)))
    value, bias = rng.random((1, 3, 5)).astype(np.float16), np.zeros((2, 9, 3))
    bias[:, 4:, 1:] = -np.inf
    spec = KernelSpec.flash("float16").replace(accumulator="float16")
    bound = error_bound(query, key, value, spec=spec, bias=bias)
    wide = error_bound(*(x.astype(np.float64) for x in (query, key, value)), spec=spec, bias=bias)
    for name in NAMES:
        np.testing.assert_allclose(getattr(bound, name), getattr(wide, name), rtol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"output": "bfloat16"},
        {"weight": "bfloat16"},
        {"score": "float16"},
        {"accumulator": "e8m13"},
        {"accumulator": "e8m13", "truncates": True},
        {"exp_error": 1e-3},
        {"scaled_query": "float16"},
        {"splits": 4},
        {"block_size": 1},
        {"flushes_subnormals": True},
    ],
    ids=str,
)
def test_less_precision_never_shrinks_the_hard_bound(change):
    base = KernelSpec.flash("float32")
    fine, coarse = (
        error_bound(*sample(), spec=spec, kind="hard", causal=True)
        for spec in (base, base.replace(**change))
    )
    assert (coarse.output_hard >= fine.output_hard).all()
    assert coarse.output_hard.sum() > fine.output_hard.sum() or "flushes_subnormals" in change
    if "output" not in change and "weight" not in change:
        assert (coarse.lse_hard >= fine.lse_hard).all()


def test_conversion_of_inputs_costs_only_where_it_rounds():
    q, k, v = sample(dtype="bfloat16")
    spec = KernelSpec.flash("tfloat32")
    held = error_bound(q, k, v, spec=spec)
    rng = np.random.default_rng(0)
    rounded = error_bound(q, k, v * (1 + 2.0**-13 * rng.uniform(size=v.shape)), spec=spec)
    assert rounded.output_hard.mean() > 1.3 * held.output_hard.mean()


# Where nothing is known, and where nothing may be off


def test_overflow_of_stored_scores_claims_nothing():
    q, k, v = (
        np.full((1, 1, 64), 64.0),
        np.full((1, 2, 64), 32.0),
        np.ones((1, 2, 3)),
    )  # q . k = 131072 > 65504
    assert np.isinf(error_bound(q, k, v, spec=KernelSpec.eager("float16")).output_hard).all()
    assert np.isfinite(error_bound(q, k, v, spec=KernelSpec.flash("float16")).output_hard).all()
    assert np.isfinite(error_bound(q, k, v, spec=KernelSpec.eager("bfloat16")).output_hard).all()


def test_overflow_of_sums_claims_nothing():
    v = np.full((1, 4, 1), 1e38, dtype=np.float32)
    bound = error_bound(np.zeros((1, 1, 2), np.float32), np.zeros((1, 4, 2), np.float32), v)
    assert np.isinf(bound.output_hard).all() and np.isfinite(bound.lse_hard).all()
    assert np.isfinite(
        error_bound(
            np.zeros((1, 1, 2)), np.zeros((1, 4, 2)), v, spec=KernelSpec.eager("float32")
        ).output_hard
    ).all()


def test_empty_rows_and_poisoned_rows_have_bound_zero():
    q, k, v = sample()
    k = k.copy()
    k[0, -1] = np.nan
    bound = error_bound(
        q, k, v, spec="float16", causal=True, q_offset=-3, mask=np.ones((24, 40), dtype=bool)
    )
    assert (bound.output_hard[:, :3] == 0).all() and (bound.lse_hard[:, :3] == 0).all()
    bound = error_bound(q, k, v, spec="float16")
    assert (
        np.isnan(bound.output[0]).all()
        and (bound.output_hard[0] == 0).all()
        and (bound.output_hard[1] > 0).all()
    )


def test_row_of_a_sink_alone():
    q, k, v = sample()
    bound = error_bound(q, k, v, spec="float16", mask=np.zeros((24, 40), dtype=bool), sinks=[1.0, -np.inf])
    assert (
        (bound.output_hard == 0).all() and (bound.lse_hard[0] > 0).all() and (bound.lse_hard[1] == 0).all()
    )


@pytest.mark.parametrize("shape", [(0, 5, 4, 3), (5, 0, 4, 3), (5, 5, 4, 0), (1, 1, 1, 1)])
def test_empty_sizes(shape):
    q_len, kv_len, dim, v_dim = shape
    rng = np.random.default_rng(0)
    q, k, v = (
        rng.normal(size=(2, q_len, dim)),
        rng.normal(size=(2, kv_len, dim)),
        rng.normal(size=(2, kv_len, v_dim)),
    )
    bound = error_bound(q, k, v, spec="bfloat16")
    assert bound.output_hard.shape == bound.output_tight.shape == (
        2,
        q_len,
        v_dim,
    ) and bound.lse_hard.shape == (2, q_len)


@pytest.mark.parametrize("size", [1e-310, 1e-300, 1e-30, 1e30, 1e300])
def test_tiny_and_huge_values_scale_the_tight_bound(size):
    """In float64, where squares of the values leave the range."""
    q, k, v = sample()
    unit = error_bound(q, k, v, spec="float64")
    scaled = error_bound(q, k, v * size, spec="float64")
    if size > 1e-306:  # no subnormals
        np.testing.assert_allclose(
            scaled.output_tight, size * unit.output_tight, rtol=0.01 if size < 1e-299 else 1e-6
        )
    assert (scaled.output_tight > 0).all()


def test_dtype_of_the_query_is_the_default_spec():
    q, k, v = (array.astype(ml_dtypes.bfloat16) for array in sample())
    assert error_bound(q, k, v).spec == KernelSpec.flash("bfloat16")


def test_reference_is_called_in_float64():
    seen = []

    def reference(*arrays, **options):
        seen.extend(array.dtype for array in arrays)
        return refattn.attention_with_lse(*arrays, **options)

    q, k, v = (array.astype(np.float16) for array in sample())
    bound = error_bound(q, k, v, reference=reference, causal=True)
    np.testing.assert_array_equal(bound.output, refattn.attention(q, k, v, causal=True))
    assert seen == [np.float64] * 3


def test_errors():
    q, k, v = sample()
    with pytest.raises(ValueError, match="kind must be"):
        error_bound(q, k, v, kind="loose")
    with pytest.raises(ValueError, match="function must be one of"):
        error_bound(q, k, v, function="attn")
    with pytest.raises(ValueError, match="failure_probability must be in"):
        error_bound(q, k, v, failure_probability=0.0)
    with pytest.raises(ValueError, match="query and key must have the same head_dim"):
        error_bound(q, k[..., :-1], v)
    with pytest.raises(TypeError):
        error_bound(q, k, v, is_causal=True)


@pytest.mark.parametrize("scale", [1e300, -1e300, 1e308])
@pytest.mark.parametrize("spec", ["float32", "float64"])
def test_scales_whose_square_float64_does_not_hold(scale, spec):
    """Scores of 1e300 are beyond float32, where nothing is claimed, and one-hot in float64; rows of
    zeros stay judged.
    """
    rng = np.random.default_rng(0)
    query, key, value = (rng.standard_normal((1, 4, 8)) for _ in range(3))
    query[0, 1] = 0.0
    bound = error_bound(query, key, value, spec=KernelSpec.flash(spec).replace(input="exact"), scale=scale)
    rows = [0, 2, 3]
    if abs(scale) == 1e300:
        assert (
            np.isinf(bound.output_hard[0, rows]).all()
            if spec == "float32"
            else (bound.output_hard[0, rows] < 1e-12).all()
        )
    assert not np.isnan(bound.output_tight).any() and not np.isnan(bound.lse_tight).any()


# Keys far below the others, and numbers below the smallest


@pytest.mark.parametrize("spec", ["float32", "bfloat16", "eager float16", "split bfloat16"])
def test_padding_of_any_size_bounds_as_minus_infinity_does(spec):
    spec = KernelSpec.flash("bfloat16").replace(splits=3) if spec.startswith("split") else spec
    arrays = sample(heads=2, q_len=5, kv_len=64, dtype="bfloat16")
    padding = np.arange(64) >= 50
    bounds = [
        error_bound(*arrays, bias=np.where(padding, fill, 0.0).astype(np.float32)[None], spec=spec)
        for fill in (-np.inf, -1e3, -1e4, *([] if spec == "eager float16" else (-1e9, -3e38)))
    ]
    for bound in bounds[1:]:
        for name in NAMES:
            share = getattr(bound, name) / getattr(bounds[0], name)
            assert share.min() > 0.9 and share.max() < 1.35


@pytest.mark.parametrize("softcap", [None, 1e6])
def test_scores_below_the_smallest_number_of_their_format(softcap):
    """An eager kernel in float16 stores products that are subnormal, and scales them afterwards."""
    half, spec, scale = np.float16, KernelSpec.eager("float16"), 1.0 if softcap else 1000.0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        size = 0.1 if softcap else 0.001
        query, key = (half(size * rng.normal(size=(4, length, 16))) for length in (8, 3))
        value = half(rng.normal(size=(4, 3, 8)))
        scores = half(query.astype(np.float32) @ key.astype(np.float32).swapaxes(1, 2))
        scores = np.float32(half(np.float32(scores) * np.float32(scale)))
        if softcap is not None:
            scores = np.float32(
                half(np.float32(softcap) * np.float32(half(np.tanh(half(scores / softcap)))))
            )
        top = scores.max(-1, keepdims=True)
        weights = np.exp(scores - top)
        total = weights.sum(-1, keepdims=True)
        output = half(np.float32(half(weights / total)) @ value.astype(np.float32))
        lse = (top + np.log(total))[..., 0]
        report = check(output, query, key, value, lse=lse, scale=scale, softcap=softcap, spec=spec)
        assert not report.wrong, report.text()
