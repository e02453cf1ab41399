"""refattn against exact arithmetic: output within 4 * 2^-53 * sum(p * |v|), lse within 8 units in the last place of its largest term.

The bounds are the promise of the package; they hold on ordinary and on hostile input alike. `exact.py` has the arithmetic they are
measured against, and `test_plain_float64_is_not_enough` shows that they are no formality.
"""

import math
import warnings

import numpy as np
import pytest

pytest.importorskip("mpmath", reason="exact arithmetic needs mpmath, see the test extra")

from mpmath import mp, mpf

import naive
import refattn
from exact import PRECISION, exact_row, exact_scores
from families import FAMILIES, large_negative, large_positive

UNIT = 2.0**-53
SMALLEST = 2.0**-1074  # half of it is what rounding to the nearest subnormal may cost; one whole is allowed
OUTPUT_UNITS, LSE_ULPS = 4, 8


def draw(family, n, dim=16, v_dim=5, rows=4, heads=2, dtype=np.float64, seed=0):
    """One batch of a family: (heads, rows, dim) on one kv head of n keys, its numbers exactly those of dtype."""
    rng = np.random.default_rng([seed, n, dim])
    arrays = family(rng, (heads, rows, dim), (1, n, dim), (1, n, v_dim), np.dtype(dtype))
    return [x.astype(dtype) for x in arrays]


def addends(j, h, i, position, options):
    """What is added to the score of key j after the cap."""
    terms = []
    if "bias" in options:
        terms.append(float(np.broadcast_to(options["bias"], options["shape"])[h, i, j]))
    if "alibi_slopes" in options:
        terms.append(-mpf(float(options["alibi_slopes"][h])) * abs(position - j))
    return terms


def exactly(query, key, value, h, i, options):
    """The exact row i of head h, one kv head serving all, for arrays without batch axes; None where it sees nothing."""
    (heads, rows, dim), n = query.shape, key.shape[-2]
    options = {**options, "shape": (heads, rows, n)}
    position = options.get("q_offset", n - rows) + i
    left, right = options.get("window") or (None, None)
    seen = [
        j
        for j in range(n)
        if (left is None or position - j <= left)
        and (right is None or j - position <= right)
        and not (options.get("causal") and j > position)
        and ("bias" not in options or np.broadcast_to(options["bias"], options["shape"])[h, i, j] > -np.inf)
        and ("mask" not in options or np.broadcast_to(options["mask"], options["shape"])[h, i, j])
    ]
    if not seen:
        return None
    keep = None
    with mp.workprec(PRECISION):
        if "dropout_mask" in options:
            factor = 1 / (1 - mpf(options["dropout_rate"]))
            keep = [int(np.broadcast_to(options["dropout_mask"], options["shape"])[h, i, j]) * factor for j in seen]
        scale = options.get("scale", 1 / math.sqrt(dim))  # a float64 like every scale a caller passes
        return exact_row(
            exact_scores(query[h, i], key[0, seen], mpf(scale)),
            value[0, seen],
            softcap=options.get("softcap"),
            terms=[addends(j, h, i, position, options) for j in seen],
            sink=options["sinks"][h] if "sinks" in options else -np.inf,
            keep=keep,
        )


def units_used(output, lse, exact):
    """(error of the output in units of 2^-53 * sum(p|v|), error of the lse in ulps of its largest term), worst of the row."""
    with mp.workprec(PRECISION):
        worst = mpf(0)
        for got, true, gauge in zip(output.tolist(), exact.output, exact.gauge, strict=True):
            error = max(abs(mpf(got) - true) - SMALLEST, 0) if math.isfinite(got) else mp.inf
            if error:
                worst = max(worst, error / (UNIT * gauge) if gauge else mp.inf)
        ulp = np.spacing(float(exact.largest_term))
        return float(worst), float(abs(mpf(float(lse)) - exact.lse) / ulp)


def check(query, key, value, options=None, rows=((0, 0), (1, -1)), lse_too=True):
    """Compare the sampled (head, row) pairs; every kind of warning is an error."""
    options = options or {}
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        output, lse = refattn.attention_with_lse(query, key, value, **options)
    assert not np.isnan(output).any() and not np.isnan(lse).any()
    for h, i in rows:
        i %= query.shape[1]
        exact = exactly(query, key, value, h, i, options)
        output_units, lse_ulps = units_used(output[h, i], lse[h, i], exact)
        where = f"head {h}, row {i}"
        assert output_units <= OUTPUT_UNITS, f"{where}: output off by {output_units:.2f} units of 2^-53 * sum(p|v|)"
        assert not lse_too or lse_ulps <= LSE_ULPS, f"{where}: lse off by {lse_ulps:.2f} ulp of its largest term"


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("n, dim", [(1, 3), (2, 1), (37, 64), (600, 16)])
def test_families(family, n, dim, dtype):
    check(*draw(family, n, dim, dtype=dtype))


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_families_many_keys(family):
    check(*draw(family, 4096, 64, v_dim=3, rows=2), rows=[(0, 1)])


@pytest.mark.parametrize("distinct", [2, 3, 16])
@pytest.mark.parametrize("level", [0.0, 0.3, 3.0, 10.0])
@pytest.mark.parametrize("n, dim", [(256, 16), (1024, 64), (1024, 256)])
def test_repeated_keys(n, dim, level, distinct):
    """Copies of a key share the rounding of its score, so their errors add up instead of averaging out."""
    rng = np.random.default_rng([n, dim, int(level)])
    u = rng.normal(size=dim)
    u /= np.linalg.norm(u)
    common = math.sqrt(level * math.sqrt(dim)) * u
    across = lambda x: x - (x @ u)[..., None] * u + common
    query, keys = across(rng.normal(size=(1, 64, dim))), across(rng.normal(size=(distinct, dim)))
    which = rng.integers(distinct, size=n)
    value = np.where(which % 2, 1.0, -1.0)[None, :, None]
    check_many(query, keys[which][None], value)


@pytest.mark.parametrize("same", [1, 8, 31])
def test_keys_that_differ_in_a_few_coordinates(same):
    """Content repeated at several positions: partial sums of the common coordinates share their roundings."""
    rng = np.random.default_rng(same)
    query, keys = rng.normal(size=(1, 64, 64)), rng.normal(size=(2, 64))
    which = rng.integers(2, size=1024)
    key = keys[which]
    key[:, -same:] = rng.normal(size=(1024, same))
    key += 2 * query[0].mean(axis=0)
    check_many(query, key[None], np.where(which, 1.0, -1.0)[None, :, None])


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 7, 8, 12, 20, 64])
@pytest.mark.parametrize("family", ["ordinary", "positive", "uniform", "ties"])
def test_many_rows_and_columns(family, n):
    """A bound that holds by luck on a few elements fails on some of a hundred thousand."""
    for v_dim, rows in ((4000, 25), (3, 4000)):
        query, key, value = draw(FAMILIES[family], n, 8, v_dim=v_dim, rows=rows, heads=1)
        check_many(query, key, value)


@pytest.mark.parametrize("family", ["ordinary", "positive", "cancellation", "offset", "sink_key", "descending", "ties"])
@pytest.mark.parametrize("n, dim, rows", [(37, 64, 400), (200, 64, 200), (1024, 128, 40), (4096, 64, 10)])
def test_many_rows(family, n, dim, rows):
    check_many(*draw(FAMILIES[family], n, dim, rows=rows, heads=1))


def check_many(query, key, value):
    """All rows at once against long double, 2^11 times finer than float64 where it is the 80-bit format: for moderate scores."""
    if np.finfo(np.longdouble).nmant < 63:
        pytest.skip("long double is no finer than float64 here")
    output, lse = refattn.attention_with_lse(query, key, value)
    wide = [x.astype(np.longdouble) for x in (query, key, value)]
    scores = wide[0] @ wide[1].swapaxes(-1, -2) * np.longdouble(1 / math.sqrt(query.shape[-1]))
    top = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    weights /= total
    gauge = UNIT * (weights @ np.abs(wide[2]))
    error = np.abs(output - weights @ wide[2])
    assert (error[gauge == 0] == 0).all()
    used = error / np.where(gauge == 0, 1, gauge)
    assert used.max() <= OUTPUT_UNITS, (
        f"output off by {float(used.max()):.2f} units of 2^-53 * sum(p|v|), {(used > OUTPUT_UNITS).sum()} of {used.size} by too much"
    )
    terms = np.maximum(np.abs(top), np.log(total))[..., 0].astype(float)
    assert (np.abs(lse - (top + np.log(total))[..., 0]) <= LSE_ULPS * np.spacing(terms)).all()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("family", [large_positive, large_negative], ids=lambda f: f.__name__)
@pytest.mark.parametrize("scale", [1.0, 0.37, 1 / 3, -0.5, 100.0])
def test_large_common_score_with_small_differences(family, scale, dtype):
    query, key, value = draw(family, 200, 24, dtype=dtype)
    check(query * dtype(1 / np.sqrt(abs(scale))), key, value, {"scale": scale})


@pytest.mark.parametrize("spread", [1e-8, 1e-3, 0.3, 3.0, 30.0, 300.0])
@pytest.mark.parametrize("n", [5, 300])
def test_spread_of_scores(spread, n):
    """From nearly equal weights to a single one, through the widths where several large exponents compete."""
    query, key, value = draw(FAMILIES["ordinary"], n, 32, seed=1)
    check(query * spread, key, value)


@pytest.mark.parametrize("outlier", [1e4, 1e8, 1e12, 1e30, 1e200])
@pytest.mark.parametrize("n", [5, 300])
def test_coordinate_that_meets_zeros(outlier, n):
    query, key, value = draw(FAMILIES["ordinary"], n, 32)
    query[..., 3], key[..., 3] = outlier, 0
    query[..., 4], key[..., 4] = 0, outlier
    check(query, key, value)


@pytest.mark.parametrize("outlier", [1e4, 1e8])
@pytest.mark.parametrize("n", [5, 300])
def test_coordinates_that_cancel(outlier, n):
    """Two large coordinates cancel, or every second key has one in common; what is left decides."""
    query, key, value = draw(FAMILIES["ordinary"], n, 32)
    query[..., 3:5], key[..., 4] = [outlier, -outlier], key[..., 3]
    check(query, key, value)
    query, key, value = draw(FAMILIES["ordinary"], n, 32)
    key[:, ::2, 5] = outlier
    check(query, key, value)


@pytest.mark.parametrize("outlier", [1e12, 1e30, 1e100, 1e150, 1e200])
def test_outputs_stay_means_beyond_what_two_numbers_hold(outlier):
    """Where the leading digits of scores cancel by more than a double-double holds, the weights are still weights."""
    query, key, value = draw(FAMILIES["ordinary"], 40, 32)
    query[..., 3:5], key[..., 4] = [outlier, -outlier], key[..., 3]
    with np.errstate(all="raise"):
        output = refattn.attention(query, key, value)
    assert (output <= value.max(axis=1) * (1 + 4 * UNIT)).all() and (output >= value.min(axis=1) * (1 + 4 * UNIT)).all()


@pytest.mark.parametrize("outlier", [1e4, 1e12, 1e30, 1e150])
def test_values_of_very_different_size(outlier):
    """Each column is held to its own sum, and a large value of a key without weight must not coarsen the others."""
    query, key, value = draw(FAMILIES["ordinary"], 120, 16)
    value[..., 1] *= outlier
    value[..., 2] /= outlier
    check(query, key, value)
    value[:, 7] *= outlier
    check(query, key, value)
    check(*draw(FAMILIES["large_mixed"], 120, 16)[:2], value)


@pytest.mark.parametrize("size", [1e-120, 1e-200, 1e-300, 1e-307])
def test_tiny_values_beside_ordinary_ones(size):
    """A large value in the same column must not cost a row that does not see it its digits, nor a row that gives it no weight."""
    query, key, value = draw(FAMILIES["ordinary"], 50, 16)
    value[:, :-1] *= size
    value[:, -1] *= 3e4
    check(query, key, value, {"causal": True}, rows=[(0, 0), (1, 2), (0, 3)])
    query, key, value = draw(FAMILIES["large_mixed"], 50, 16)
    value[:, 1::2] *= size
    check(query, key, value)


@pytest.mark.parametrize("softcap", [5.0, 30.0, 50.0, 1e-3, 1e6])
@pytest.mark.parametrize("family", ["ordinary", "ascending", "large_mixed", "large_positive"])
def test_softcap(family, softcap):
    query, key, value = draw(FAMILIES[family], 150, 16)
    check(query, key, value, {"softcap": softcap})
    check(query * 10, key, value, {"softcap": softcap, "scale": 0.3})


@pytest.mark.parametrize("offset", [0, 149, -(10**6), 10**6, 2**40])
@pytest.mark.parametrize("slopes", [(0.5, 2.0**-8), (0.1, 1 / 3)])
def test_alibi(offset, slopes):
    query, key, value = draw(FAMILIES["ordinary"], 150, 16)
    check(query, key, value, {"alibi_slopes": np.array(slopes), "q_offset": offset})


@pytest.mark.parametrize("level", [1e4, -1e4, 1e8, -1e12])
def test_bias_of_a_large_common_level(level):
    query, key, value = draw(FAMILIES["ordinary"], 150, 16)
    bias = np.float64(level) + np.random.default_rng(1).normal(size=(2, 4, 150))
    check(query, key, value, {"bias": bias})


@pytest.mark.parametrize("family", [large_positive, large_negative], ids=lambda f: f.__name__)
def test_bias_cancels_large_scores(family):
    """The leading digits of score and bias cancel, and what is left decides everything."""
    query, key, value = draw(family, 150, 16)
    scores = query @ np.swapaxes(key, -1, -2) / 4
    check(query, key, value, {"bias": np.random.default_rng(1).normal(size=scores.shape) - np.round(scores)})


@pytest.mark.parametrize("family", ["ordinary", "large_positive", "large_negative", "ascending"])
@pytest.mark.parametrize(
    "sinks", [(0.0, 3.0), (1e4, -1e4), (10001.25, 9999.5), (-10001.25, 700.0), (100.0, 30.0), (700.0, 300.0), (-np.inf, 1e300)]
)
def test_sinks(family, sinks):
    check(*draw(FAMILIES[family], 150, 16), {"sinks": np.array(sinks)})


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_dropout(rate):
    keep = np.random.default_rng(1).random((2, 4, 150)) >= rate
    check(*draw(FAMILIES["positive"], 150, 16), {"dropout_mask": keep, "dropout_rate": rate})


@pytest.mark.parametrize("family", ["ordinary", "large_positive", "cancellation"])
def test_everything_at_once(family):
    rng = np.random.default_rng(2)
    bias = np.where(rng.random((2, 4, 150)) < 0.2, -np.inf, 50 * rng.normal(size=(2, 4, 150)))
    options = dict(scale=0.21, softcap=30.0, alibi_slopes=np.array([0.07, 0.3]), sinks=np.array([1.0, -2.0]), window=(90, 40), bias=bias,
                   mask=rng.random((4, 150)) < 0.8, q_offset=77, dropout_mask=rng.random((2, 4, 150)) < 0.7, dropout_rate=0.3)  # fmt: skip
    check(*draw(FAMILIES[family], 150, 16), options)
    check(*draw(FAMILIES[family], 150, 16), {**options, "causal": True})


def random_call(seed):
    """A family, sizes and options drawn together."""
    rng = np.random.default_rng(seed)
    family = rng.choice([family for name, family in FAMILIES.items() if name not in ("tiny", "subnormal")])
    n, dim, rows = int(rng.choice([1, 2, 3, 5, 17, 64, 200])), int(rng.choice([1, 2, 7, 16, 64, 128])), int(rng.integers(1, 6))
    query, key, value = draw(family, n, dim, v_dim=3, rows=rows, dtype=rng.choice([np.float64, np.float32]), seed=seed)
    if rng.random() < 0.3:
        query = query * 10 ** rng.uniform(-3, 1.5)
    shape = 2, rows, n
    bias = rng.normal(size=shape) * 10.0 ** rng.uniform(-2, 4)
    bias[rng.random(shape) < 0.1] = -np.inf
    offset = int(rng.integers(-5, n + 5)) if rng.random() < 0.7 else int(rng.integers(-(10**9), 10**9))
    possible = {
        "scale": float(rng.choice([1.0, 0.3, -0.7, 0.125, 1 / 3, 5.0])),
        "softcap": float(10 ** rng.uniform(-2, 4)),
        "bias": bias,
        "alibi_slopes": rng.uniform(-1, 1, size=2),
        "q_offset": offset,
        "sinks": rng.normal(size=2) * 10.0 ** rng.uniform(-1, 3),
        "mask": rng.random(shape[1:]) < 0.7,
        "causal": True,
        "window": (int(rng.integers(n + 2)), int(rng.integers(n + 2))),
        "dropout_mask": rng.random(shape) < 0.6,
    }
    options = {name: value for name, value in possible.items() if rng.random() < 0.3}
    if "dropout_mask" in options:
        options["dropout_rate"] = float(rng.choice([0.1, 0.4, 0.5, 0.9]))
    return query, key, value, options


@pytest.mark.parametrize("seeds", [range(at, at + 50) for at in range(0, 300, 50)], ids=lambda seeds: f"from-{seeds[0]}")
def test_random_calls(seeds):
    """Options and families in combinations nobody thought of. Rows whose weights are all subnormal numbers are left out."""
    checked = 0
    for seed in seeds:
        query, key, value, options = random_call(seed)
        with np.errstate(all="raise"):
            output, lse = refattn.attention_with_lse(query, key, value, **options)
        for h, i in ((0, 0), (1, query.shape[1] - 1)):
            exact = exactly(query, key, value, h, i, options)
            if exact is None:
                np.testing.assert_array_equal(output[h, i], 0.0)
            elif max(exact.gauge) > 1e-280:
                used = units_used(output[h, i], lse[h, i], exact)
                assert used[0] <= OUTPUT_UNITS and used[1] <= LSE_ULPS, f"seed {seed}, head {h}, row {i}: {used}"
                checked += 1
    assert checked > len(seeds)


# ---- the ends of the float64 range ------------------------------------------------------------------------------------------------------

HUGE = np.finfo(np.float64).max


def with_sizes(query_size, key_size, value_size, n=40, dim=8):
    query, key, value = draw(FAMILIES["ordinary"], n, dim, seed=3)
    clip = lambda x, size: np.clip(x, -1.7, 1.7) * size
    return clip(query, query_size), clip(key, key_size), clip(value, value_size)


@pytest.mark.parametrize(
    "sizes, scale",
    [
        ((1, 1, 1e308), 1.0),
        ((1, 1, 1e-300), 1.0),
        ((1, 1, 1e-310), 1.0),
        ((1, 1, 5e-324), 1.0),
        ((1e308, 1e-308, 1), 1.0),
        ((1e-308, 1e308, 1), 0.3),
        ((1e308, 1, 1), 1e-308),
        ((1e308, 1e308, 1), 5e-324),
        ((1e200, 1e200, 1e200), 1e-320),
        ((1e154, 1e154, 1), 1e-308),
        ((1e-160, 1e-160, 1), 1e308),
        ((1e-310, 1, 1), 1e308),
        ((1e-320, 1e-320, 1), 1.0),
        ((1e-200, 1e-200, 1e-200), -1.0),
    ],
    ids=str,
)
def test_extreme_sizes(sizes, scale):
    """Products and partial sums may leave the range of float64 though score and output do not."""
    query, key, value = with_sizes(*sizes)
    check(query, key, value, {"scale": scale}, lse_too=sizes[:2] != (1e308, 1e308))


def test_scores_beyond_the_range():
    """Scores of 1e310 and more: the largest takes all of the weight, and the output is its value."""
    for size in (1e155, 1e250, 1e308):
        query, key, value = with_sizes(size, size, 1.0)
        with np.errstate(all="raise"):
            output, lse = refattn.attention_with_lse(query, key, value, scale=1.0)
        for h, i in ((0, 0), (1, 3)):
            scores = exact_scores(query[h, i], key[0], mpf(1))
            winner = max(range(len(scores)), key=scores.__getitem__)
            np.testing.assert_array_equal(output[h, i], value[0, winner])
        assert not np.isnan(lse).any()


@pytest.mark.parametrize("n", [1, 3, 7, 49, 100])
def test_values_at_the_largest_number(n):
    """A mean of equal values is that value, even where the sum of their weights rounds to more than one."""
    query, key, _ = draw(FAMILIES["ordinary"], n, 8, seed=4)
    check(query, key, np.full((1, n, 2), HUGE) * [1, -1])


def test_mixed_magnitudes():
    """Elements over the whole range of exponents in one row."""
    rng = np.random.default_rng(5)
    spread = lambda *shape: rng.normal(size=shape) * 10.0 ** rng.uniform(-150, 150, size=shape)
    check(spread(2, 4, 8), spread(1, 40, 8), spread(1, 40, 3), {"scale": 1e-290}, rows=[(0, 0), (0, 1), (1, 2), (1, 3)])


@pytest.mark.parametrize("level", [1e308, -1e308, 1e300])
def test_bias_at_the_end_of_the_range(level):
    query, key, value = draw(FAMILIES["ordinary"], 40, 8)
    bias = np.where(np.arange(40) % 2, level, level / 2)
    check(query, key, value, {"bias": bias})


@pytest.mark.parametrize("slope", [1e300, -1e300, 1e-300])
def test_extreme_slopes(slope):
    check(*draw(FAMILIES["ordinary"], 40, 8), {"alibi_slopes": np.array([slope, slope / 3]), "q_offset": 20})


def test_plain_float64_is_not_enough():
    """The measure has teeth: the definition in plain float64 exceeds the bound where scores share a large level."""
    query, key, value = draw(large_positive, 150, 16)
    steps = naive.attention(query, key, value)
    exact = exactly(query, key, value, 0, 0, {})
    assert units_used(steps.output[0, 0], steps.lse[0, 0], exact)[0] > 100 * OUTPUT_UNITS
    query, key, value = draw(FAMILIES["ordinary"], 150, 16)
    steps = naive.attention(query, key, value)
    assert units_used(steps.output[0, 0], steps.lse[0, 0], exactly(query, key, value, 0, 0, {}))[0] < 50
