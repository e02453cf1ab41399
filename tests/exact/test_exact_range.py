"""refattn against exact arithmetic at the ends of the range of float64; `exact_checks.py` has the bounds."""

import numpy as np
import pytest

pytest.importorskip("mpmath", reason="exact arithmetic needs mpmath, see the test extra")

from exact import exact_scores
from exact_checks import check, draw
from families import FAMILIES
from mpmath import mpf

import refattn

HUGE = np.finfo(np.float64).max


def with_sizes(query_size, key_size, value_size, n=40, dim=8):
    query, key, value = draw(FAMILIES["ordinary"], n, dim, seed=3)

    def clip(x, size):
        return np.clip(x, -1.7, 1.7) * size

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

    def spread(*shape):
        return rng.normal(size=shape) * 10.0 ** rng.uniform(-150, 150, size=shape)

    check(
        spread(2, 4, 8),
        spread(1, 40, 8),
        spread(1, 40, 3),
        {"scale": 1e-290},
        rows=[(0, 0), (0, 1), (1, 2), (1, 3)],
    )


@pytest.mark.parametrize("level", [1e308, -1e308, 1e300])
def test_bias_at_the_end_of_the_range(level):
    query, key, value = draw(FAMILIES["ordinary"], 40, 8)
    bias = np.where(np.arange(40) % 2, level, level / 2)
    check(query, key, value, {"bias": bias})


@pytest.mark.parametrize("slope", [1e300, -1e300, 1e-300])
def test_extreme_slopes(slope):
    check(*draw(FAMILIES["ordinary"], 40, 8), {"alibi_slopes": np.array([slope, slope / 3]), "q_offset": 20})


@pytest.mark.parametrize("slopes", [(1e30, 0.0), (1e30, -1e30), (3e45, 1e60)], ids=str)
def test_slopes_whose_terms_share_a_step(slopes):
    """Slope times distance of neighbouring keys rounds to one float64, 1e30 apart: the nearest key,
    or the farthest, has all of the weight.
    """
    query, key, value = with_sizes(1.0, 1.0, 1.0, n=200)
    output, lse = refattn.attention_with_lse(
        query, key, value, alibi_slopes=np.array(slopes), q_offset=2**53
    )
    assert np.isfinite(output).all() and np.isfinite(lse).all()
    plain = refattn.attention(query, key, value)
    for h, slope in enumerate(slopes):
        expected = (
            plain[h] if slope == 0 else np.broadcast_to(value[0, -1 if slope > 0 else 0], output[h].shape)
        )
        np.testing.assert_array_equal(output[h], expected)


@pytest.mark.sample(3)
@pytest.mark.parametrize("value_size", [1.0, 1e300])
@pytest.mark.parametrize("sink", [-1e308, -1e17, 600.0, 690.0, 720.0, 1300.0, 2.0**53, 1e17, 1e300, HUGE])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"softcap": 1e-3},
        {"softcap": 1e3, "scale": 1e200},
        {"scale": HUGE},
        {"bias": np.full((2, 4, 9), -HUGE)},
    ],
    ids=str,
)
def test_sinks_far_from_the_scores(options, sink, value_size):
    """A sink far above takes the weight, not the meaning; where large values make up for it, the
    digits stay.
    """
    check(
        *with_sizes(1.0, 1.0, value_size, n=9),
        {**options, "sinks": np.array([sink, 0.5])},
        lse_too="scale" not in options,
    )
