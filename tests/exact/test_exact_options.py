"""refattn against exact arithmetic with every option, alone and together; `exact_checks.py` has the
bounds.
"""

import numpy as np
import pytest

mpmath = pytest.importorskip("mpmath", reason="exact arithmetic needs mpmath, see the test extra")

from exact_checks import LSE_ULPS, OUTPUT_UNITS, check, draw, exactly, units_used
from families import FAMILIES, large_negative, large_positive

import refattn
from refattn.exact.precise import DoubleDouble
from refattn.exact.softcap import SATURATED, softcap


@pytest.mark.sample(2)
@pytest.mark.parametrize("softcap", [5.0, 30.0, 50.0, 1e-3, 1e6])
@pytest.mark.parametrize("family", ["ordinary", "ascending", "large_mixed", "large_positive"])
def test_softcap(family, softcap):
    query, key, value = draw(FAMILIES[family], 150, 16)
    check(query, key, value, {"softcap": softcap})
    check(query * 10, key, value, {"softcap": softcap, "scale": 0.3})


@pytest.mark.parametrize("cap", [1e-3, 1.0, 50.0, 1e6])
def test_softcap_keeps_the_fractions_of_the_score(cap):
    """To 2**-70 of the cap, and to 2**-68 where tanh saturates: finer than a float64 near the cap."""
    rng = np.random.default_rng(5)
    high = cap * np.r_[0.0, 30.0 * rng.uniform(-1, 1, 300), rng.normal(size=300) * 2.0 ** -np.arange(300)]
    scores = DoubleDouble(high, np.spacing(high) * rng.uniform(-0.49, 0.49, high.size))
    capped = softcap(scores, cap)
    with mpmath.workdps(80):
        for x, dx, y, dy in zip(*scores, *capped, strict=True):
            exact = cap * mpmath.tanh((mpmath.mpf(x) + mpmath.mpf(dx)) / cap)
            allowed = cap * 2.0 ** (-70 if abs(x) < SATURATED * cap else -68)
            assert abs(mpmath.mpf(y) + mpmath.mpf(dy) - exact) <= allowed, x


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


@pytest.mark.sample(3)
@pytest.mark.parametrize("family", ["ordinary", "large_positive", "large_negative", "ascending"])
@pytest.mark.parametrize(
    "sinks",
    [
        (0.0, 3.0),
        (1e4, -1e4),
        (10001.25, 9999.5),
        (-10001.25, 700.0),
        (100.0, 30.0),
        (700.0, 300.0),
        (-np.inf, 1e300),
    ],
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
    options = dict(
        scale=0.21,
        softcap=30.0,
        alibi_slopes=np.array([0.07, 0.3]),
        sinks=np.array([1.0, -2.0]),
        window=(90, 40),
        bias=bias,
        mask=rng.random((4, 150)) < 0.8,
        q_offset=77,
        dropout_mask=rng.random((2, 4, 150)) < 0.7,
        dropout_rate=0.3,
    )
    check(*draw(FAMILIES[family], 150, 16), options)
    check(*draw(FAMILIES[family], 150, 16), {**options, "causal": True})


def random_call(seed):
    """A family, sizes and options drawn together."""
    rng = np.random.default_rng(seed)
    family = rng.choice([family for name, family in FAMILIES.items() if name not in ("tiny", "subnormal")])
    n, dim, rows = (
        int(rng.choice([1, 2, 3, 5, 17, 64, 200])),
        int(rng.choice([1, 2, 7, 16, 64, 128])),
        int(rng.integers(1, 6)),
    )
    query, key, value = draw(
        family, n, dim, v_dim=3, rows=rows, dtype=rng.choice([np.float64, np.float32]), seed=seed
    )
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


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    "seeds", [range(at, at + 50) for at in range(0, 300, 50)], ids=lambda seeds: f"from-{seeds[0]}"
)
def test_random_calls(seeds):
    """Options and families in combinations nobody thought of. Rows whose weights are all subnormal
    numbers are left out.
    """
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
                assert used[0] <= OUTPUT_UNITS and used[1] <= LSE_ULPS, (
                    f"seed {seed}, head {h}, row {i}: {used}"
                )
                checked += 1
    assert checked > len(seeds)
