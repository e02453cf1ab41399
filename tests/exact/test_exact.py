"""refattn against exact arithmetic on ordinary and on hostile input; `exact_checks.py` has the bounds.

`test_plain_float64_is_not_enough` shows that they are no formality.
"""

import math

import numpy as np
import pytest

pytest.importorskip("mpmath", reason="exact arithmetic needs mpmath, see the test extra")

import naive
from exact_checks import OUTPUT_UNITS, UNIT, check, check_many, draw, exactly, units_used
from families import FAMILIES, large_negative, large_positive

import refattn


@pytest.mark.sample(3)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("n, dim", [(1, 3), (2, 1), (37, 64), (600, 16)])
def test_families(family, n, dim, dtype):
    check(*draw(family, n, dim, dtype=dtype))


@pytest.mark.sample(3)
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_families_many_keys(family):
    check(*draw(family, 4096, 64, v_dim=3, rows=2), rows=[(0, 1)])


@pytest.mark.sample(3)
@pytest.mark.parametrize("distinct", [2, 3, 16])
@pytest.mark.parametrize("level", [0.0, 0.3, 3.0, 10.0])
@pytest.mark.parametrize("n, dim", [(256, 16), (1024, 64), (1024, 256)])
def test_repeated_keys(n, dim, level, distinct):
    """Copies of a key share the rounding of its score, so their errors add up instead of averaging out."""
    rng = np.random.default_rng([n, dim, int(level)])
    u = rng.normal(size=dim)
    u /= np.linalg.norm(u)
    common = math.sqrt(level * math.sqrt(dim)) * u

    def across(x):
        return x - (x @ u)[..., None] * u + common

    query, keys = across(rng.normal(size=(1, 64, dim))), across(rng.normal(size=(distinct, dim)))
    which = rng.integers(distinct, size=n)
    value = np.where(which % 2, 1.0, -1.0)[None, :, None]
    check_many(query, keys[which][None], value)


@pytest.mark.parametrize("same", [1, 8, 31])
def test_keys_that_differ_in_a_few_coordinates(same):
    """Content repeated at several positions: partial sums of the common coordinates share their
    roundings.
    """
    rng = np.random.default_rng(same)
    query, keys = rng.normal(size=(1, 64, 64)), rng.normal(size=(2, 64))
    which = rng.integers(2, size=1024)
    key = keys[which]
    key[:, -same:] = rng.normal(size=(1024, same))
    key += 2 * query[0].mean(axis=0)
    check_many(query, key[None], np.where(which, 1.0, -1.0)[None, :, None])


@pytest.mark.sample(3)
@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 7, 8, 12, 20, 64])
@pytest.mark.parametrize("family", ["ordinary", "positive", "uniform", "ties"])
def test_many_rows_and_columns(family, n):
    """A bound that holds by luck on a few elements fails on some of a hundred thousand."""
    for v_dim, rows in ((4000, 25), (3, 4000)):
        query, key, value = draw(FAMILIES[family], n, 8, v_dim=v_dim, rows=rows, heads=1)
        check_many(query, key, value)


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    "family", ["ordinary", "positive", "cancellation", "offset", "sink_key", "descending", "ties"]
)
@pytest.mark.parametrize("n, dim, rows", [(37, 64, 400), (200, 64, 200), (1024, 128, 40), (4096, 64, 10)])
def test_many_rows(family, n, dim, rows):
    check_many(*draw(FAMILIES[family], n, dim, rows=rows, heads=1))


@pytest.mark.sample(3)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("family", [large_positive, large_negative], ids=lambda f: f.__name__)
@pytest.mark.parametrize("scale", [1.0, 0.37, 1 / 3, -0.5, 100.0])
def test_large_common_score_with_small_differences(family, scale, dtype):
    query, key, value = draw(family, 200, 24, dtype=dtype)
    check(query * dtype(1 / np.sqrt(abs(scale))), key, value, {"scale": scale})


@pytest.mark.parametrize("spread", [1e-8, 1e-3, 0.3, 3.0, 30.0, 300.0])
@pytest.mark.parametrize("n", [5, 300])
def test_spread_of_scores(spread, n):
    """From nearly equal weights to a single one, through the widths where several large exponents
    compete.
    """
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
    """Where the leading digits of scores cancel by more than a double-double holds, the weights are
    still weights.
    """
    query, key, value = draw(FAMILIES["ordinary"], 40, 32)
    query[..., 3:5], key[..., 4] = [outlier, -outlier], key[..., 3]
    with np.errstate(all="raise"):
        output = refattn.attention(query, key, value)
    assert (output <= value.max(axis=1) * (1 + 4 * UNIT)).all() and (
        output >= value.min(axis=1) * (1 + 4 * UNIT)
    ).all()


@pytest.mark.parametrize("outlier", [1e4, 1e12, 1e30, 1e150])
def test_values_of_very_different_size(outlier):
    """Each column is held to its own sum, and a large value of a key without weight must not coarsen
    the others.
    """
    query, key, value = draw(FAMILIES["ordinary"], 120, 16)
    value[..., 1] *= outlier
    value[..., 2] /= outlier
    check(query, key, value)
    value[:, 7] *= outlier
    check(query, key, value)
    check(*draw(FAMILIES["large_mixed"], 120, 16)[:2], value)


@pytest.mark.parametrize("size", [1e-120, 1e-200, 1e-300, 1e-307])
def test_tiny_values_beside_ordinary_ones(size):
    """A large value in the same column must not cost a row that does not see it its digits, nor a row
    that gives it no weight.
    """
    query, key, value = draw(FAMILIES["ordinary"], 50, 16)
    value[:, :-1] *= size
    value[:, -1] *= 3e4
    check(query, key, value, {"causal": True}, rows=[(0, 0), (1, 2), (0, 3)])
    query, key, value = draw(FAMILIES["large_mixed"], 50, 16)
    value[:, 1::2] *= size
    check(query, key, value)


def test_plain_float64_is_not_enough():
    """The measure has teeth: the definition in plain float64 exceeds the bound where scores share a
    large level.
    """
    query, key, value = draw(large_positive, 150, 16)
    steps = naive.attention(query, key, value)
    exact = exactly(query, key, value, 0, 0, {})
    assert units_used(steps.output[0, 0], steps.lse[0, 0], exact)[0] > 100 * OUTPUT_UNITS
    query, key, value = draw(FAMILIES["ordinary"], 150, 16)
    steps = naive.attention(query, key, value)
    assert units_used(steps.output[0, 0], steps.lse[0, 0], exactly(query, key, value, 0, 0, {}))[0] < 50
