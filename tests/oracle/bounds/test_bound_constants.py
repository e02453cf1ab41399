"""The constants of the statistical bound, each held in the direction that hurts: against sums of squares
added up one rounding at a time, or against
roundings that are really made. One effect at a time: everything else is exact.

A bound that is below what such a sum of squares allows fails correct kernels; one far above it passes
wrong ones.
"""

import math

import numpy as np
import pytest

from refattn.oracle import EmulatedKernel, KernelSpec, error_bound
from refattn.oracle.arithmetic.formats import number_format, round_to
from refattn.oracle.bounds.bound import FAILURE_PROBABILITY, bound_tile, hoeffding_multiplier
from refattn.oracle.bounds.operands import operands
from refattn.oracle.bounds.reference import reference_results
from refattn.oracle.bounds.results import OUTPUT
from refattn.oracle.bounds.row_blocks import tiles

EXACT = KernelSpec(
    "exact",
    input="exact",
    accumulator="exact",
    softmax="exact",
    output="exact",
    lse="exact",
    exp_error=0.0,
    tanh_error=0.0,
    block_size=None,
)
ROUNDOFF = 2.0**-20


def multiplier(output):
    """Hoeffding's lambda for all results of a call of one row."""
    return math.sqrt(2.0 * math.log(2.0 * (output.size + 1) / FAILURE_PROBABILITY))


def with_scores(scores, value, spec, **options):
    """The bound of one row whose scores are given: the query is 0 and a bias says them. value (S, E)."""
    keys = np.random.default_rng(9).normal(size=(1, len(scores), 3))
    return error_bound(
        np.zeros((1, 1, 3)), keys, value[None], spec=spec, bias=np.asarray(scores)[None, None], **options
    )


# The two sums


def squares_of_sum(terms, block):
    """Sum of squares of all partial sums, (E,): `block` terms added up among themselves, and each such sum
    onto what came before. terms (S, E)."""
    total = np.zeros(terms.shape[1])
    sums = []
    for first in range(0, len(terms), block):
        partial = np.cumsum(terms[first : first + block], axis=0)
        total += (partial[1:] ** 2).sum(axis=0)
        sums.append(partial[-1])
    return total + (np.cumsum(sums, axis=0)[1:] ** 2).sum(axis=0)


KEYS, DIMS = 1024, 40
NOISE = np.random.default_rng(1).normal(size=(KEYS, DIMS))
PLACES = np.arange(KEYS)[:, None]
TERMS = {
    "drift": 1.0 + 0.5 * NOISE,
    "random": NOISE,
    "balanced": (
        NOISE.reshape(-1, 32, DIMS) - NOISE.reshape(-1, 32, DIMS).mean(axis=1, keepdims=True)
    ).reshape(KEYS, DIMS),
    "up and down": np.where(PLACES < KEYS // 2, 1.0, -1.0) + 0.1 * NOISE,
    "waves": np.where(PLACES // 32 % 2 == 0, 1.0, -1.0) + 0.01 * NOISE,
    "first": np.where(PLACES < 8, 100.0, 0.01) * (1.0 + 0.5 * NOISE),
    "last": np.where(PLACES >= KEYS - 8, 100.0, 0.01) * (1.0 + 0.5 * NOISE),
}
ORDERS = {
    "forward": np.arange(KEYS),
    "backward": np.arange(KEYS)[::-1],
    "even, odd": np.r_[0:KEYS:2, 1:KEYS:2],
    "mixed": np.random.default_rng(2).permutation(KEYS),
}


@pytest.mark.parametrize("block", [1, 4, 16, 32])
@pytest.mark.parametrize("pattern", TERMS)
def test_sum_of_products(pattern, block):
    """Its bound is the root of the squared partial sums, in whatever order the kernel takes the keys: at
    most 2 times that of the worst order."""
    scores = -2.0 * np.random.default_rng(3).random(KEYS)
    weights = np.exp(scores) / np.exp(scores).sum()
    bound = with_scores(
        scores, TERMS[pattern] / weights[:, None], EXACT.replace(accumulator=ROUNDOFF, sum_block=block)
    )
    squares = ((bound.output_tight[0, 0] / ROUNDOFF / multiplier(bound.output)) ** 2).mean()
    needed = max(squares_of_sum(TERMS[pattern][order], block).mean() for order in ORDERS.values())
    assert 0.75 < squares / needed < 4.0


def test_rescaled_sums():
    """64 keys, then one more at a time that raises the maximum: every rise multiplies the output and the
    row sum by a rounded factor each."""
    rises = 40
    scores = np.full(64 * (1 + rises), -np.inf)
    scores[:64] = -1.0 - np.random.default_rng(4).random(64)
    scores[64::64] = 0.01 * np.arange(rises)
    spec = EXACT.replace(softmax=ROUNDOFF, exp_error=0.0, block_size=64, sum_block=64)
    bound = with_scores(
        scores, np.ones((len(scores), 1)), spec
    )  # equal values: errors of the scores do not show
    squares = (bound.output_tight[0, 0, 0] / ROUNDOFF / multiplier(bound.output)) ** 2
    mass = np.exp(scores).reshape(-1, 64).sum(axis=1).cumsum()
    needed = 2.0 * ((mass[:-1] / mass[-1]) ** 2).sum()
    assert 1.0 < squares / needed < 4.0


def test_equal_remainders_of_a_sum():
    """Terms that differ by whole digits of the sum leave the same remainder at every addition; terms that
    differ by many parts of one do not."""
    rng = np.random.default_rng(5)
    value = rng.uniform(1.05, 1.9, size=200) + rng.integers(-2, 3, size=(KEYS, 200))
    got = np.zeros(200, dtype=np.float16)
    for row in value:
        got = (got + row).astype(np.float16)  # added up in float64 and rounded
    bound = error_bound(
        np.zeros((1, 1, 3)), NOISE[None, :, :3], value[None], spec=EXACT.replace(accumulator="float16")
    )
    use = np.abs(got / KEYS - value.mean(axis=0)) / bound.output_tight[0, 0]
    assert 0.1 < use.max() < 1.0


def test_terms_below_the_last_digit_of_a_sum():
    """400 terms of 0.4 digits of the sum, after one that makes it: all are lost."""
    rng = np.random.default_rng(16)
    terms = np.append(1.0, 0.8 * 2.0**-11 * rng.uniform(0.95, 1.05, size=400))
    got = np.float16(0.0)
    for term in terms:
        got = np.float16(got + term)
    bound = with_scores(np.log(terms), np.ones((401, 1)), EXACT.replace(accumulator="float16"))
    use = abs(got / terms.sum() - 1.0) / bound.output_tight[0, 0, 0]
    assert got == 1.0 and 0.3 < use < 1.0


def test_far_terms_of_a_sum_are_not_taken_for_equal():
    terms = 1.0 + 30.0 * KEYS * ROUNDOFF * NOISE
    bound = error_bound(
        np.zeros((1, 1, 3)), NOISE[None, :, :3], terms[None], spec=EXACT.replace(accumulator=ROUNDOFF)
    )
    needed = multiplier(bound.output) * ROUNDOFF * np.sqrt(squares_of_sum(terms, 1)) / KEYS
    assert (bound.output_tight[0, 0] < 2.0 * needed).all()


@pytest.mark.parametrize("denominator", ["unrounded", "rounded"])
def test_scores_that_fall_by_equal_steps(denominator):
    """Steps of a bias that float32 holds are equal only up to its roundings: they count as equal all the
    same."""
    scores = -0.37 * np.arange(KEYS) / KEYS
    spec = EXACT.replace(accumulator=ROUNDOFF, weight=2.0**-9, denominator=denominator)
    exact, stored = (
        with_scores(s, np.ones((KEYS, 1)), spec).output_tight for s in (scores, scores.astype(np.float32))
    )
    rough = with_scores(scores + 1e-3 * NOISE[:, 0], np.ones((KEYS, 1)), spec).output_tight
    np.testing.assert_allclose(stored, exact, rtol=0.01)
    assert rough < 0.7 * exact


def test_log_sum_exp_of_large_scores():
    """Five roundings of its size: two that all scores share, the sum of maximum and logarithm, its change
    of base and the constant of that."""
    scores = 100.0 + 0.1 * np.random.default_rng(17).normal(size=16384)
    bound = with_scores(
        scores, np.ones((16384, 1)), EXACT.replace(softmax=2.0**-40, exp_error=0.0, sum_block=512)
    )
    assert 3.5 < bound.lse_tight[0, 0] / (2.0**-40 * bound.lse[0, 0]) < 6.0


@pytest.mark.parametrize("count", [2, 3])
def test_joined_splits(count):
    """Two halves with values 1 and -1, the lse of each rounded: the output moves by the tanh of half of
    their difference, in the worst case beside all that one pass over the keys may be off by."""
    scores = 100.0 + 0.1 * np.random.default_rng(18).normal(size=16384)
    value = np.where(np.arange(16384) < 8192, 1.0, -1.0)[:, None]
    bound, whole = (
        with_scores(scores, value, EXACT.replace(softmax=ROUNDOFF, exp_error=0.0, splits=splits))
        for splits in (count, 1)
    )
    needed = np.tanh(ROUNDOFF * bound.lse[0, 0])
    assert bound.output_hard[0, 0, 0] > whole.output_hard[0, 0, 0] + needed
    assert whole.output_tight[0, 0, 0] < needed < bound.output_tight[0, 0, 0] < 16.0 * needed


# Conversion of the weights

COARSE = 2.0**-8


@pytest.mark.parametrize("denominator", ["unrounded", "rounded"])
def test_conversion_of_unrelated_weights(denominator):
    scores = -3.0 * np.random.default_rng(6).random(KEYS)
    weights = np.exp(scores) / np.exp(scores).sum()
    bound = with_scores(scores, NOISE, EXACT.replace(weight=COARSE, denominator=denominator))
    centre = 0.0 if denominator == "unrounded" else weights @ NOISE
    needed = (
        multiplier(bound.output) * COARSE * np.sqrt(((weights[:, None] * (NOISE - centre)) ** 2).sum(axis=0))
    )
    ratio = bound.output_tight[0, 0] / needed
    assert 0.95 < np.median(ratio) < 1.1 and ratio.max() < 2.0


def test_conversion_of_weights_that_round_alike():
    """Weights whole steps apart. The exact ones need no rounding; relative to a maximum a little higher,
    that of a hidden key, all round the same way."""
    rng = np.random.default_rng(7)
    weights = (180.0 + rng.integers(-3, 4, size=4096)) / 256.0
    value = rng.random((4096, 5))
    bound = with_scores(np.log(weights), value, EXACT.replace(weight=COARSE), sinks=[0.0])
    uses = []
    for higher in np.linspace(0.0, 1.0, 41) / 256.0:
        used = weights * (1.0 - higher)
        got = round_to(used, number_format(COARSE)) @ value / (used.sum() + 1.0 - higher)
        assert (np.abs(got - bound.output[0, 0]) <= bound.output_tight[0, 0]).all(), higher
        uses.append((got - bound.output[0, 0]) / bound.output_sigma[0, 0])
    assert 0.3 < np.sqrt(np.mean(np.square(uses))) < 1.15
    apart = with_scores(
        np.log(weights) + 30.0 * COARSE * rng.normal(size=4096) - 1.0,
        value,
        EXACT.replace(weight=COARSE),
        sinks=[0.0],
    )
    assert (apart.output_tight < 0.5 * COARSE * np.abs(apart.output)).all()


def test_conversion_of_equal_weights_with_dropout():
    """Scaled up before they are converted, the equal weights of the weighted sum all round one way, and
    those of the row sum another."""
    keep = np.random.default_rng(19).random(4096) < 0.7
    uses = []
    for weight in np.linspace(0.3, 0.95, 60):
        spec = EXACT.replace(weight=COARSE, denominator="rounded")
        bound = with_scores(
            np.full(4096, np.log(weight)),
            np.ones((4096, 1)),
            spec,
            sinks=[0.0],
            dropout_mask=keep[None, None],
            dropout_rate=0.3,
        )
        used = weight * 0.999  # relative to the maximum of a hidden key
        scaled, plain = (round_to(np.array(x), number_format(COARSE)) for x in (used / 0.7, used))
        got = scaled * keep.sum() / (4096 * plain + 0.999)
        uses.append(abs(got - bound.output[0, 0, 0]) / bound.output_tight[0, 0, 0])
    assert 0.2 < max(uses) < 1.0


def test_known_roundings_of_few_weights():
    """Four different weights, whose roundings are what they are: their joint effect counts, however many
    deviations of independent ones it is."""
    levels = np.random.default_rng(8).random((40, 4)) * 2.0 + 0.3
    for scores in -np.repeat(levels, 250, axis=1):
        scores = np.append(scores, 0.0)
        value = np.append(np.repeat([1.0, -1.0, 1.0, -1.0], 250), 0.0)[:, None]
        bound = with_scores(scores, value, EXACT.replace(weight=COARSE, denominator="rounded"))
        converted = round_to(np.exp(scores), number_format(COARSE))
        got = converted @ value / converted.sum()
        assert (np.abs(got - bound.output[0, 0]) <= bound.output_tight[0, 0]).all()


# The rounding of a query, which reaches all keys of its row


def test_rounding_of_a_query():
    """Its effect is estimated with random signs; the exact sum of squares over the dims says how well. No
    dim of the values follows the scores."""
    rng = np.random.default_rng(10)
    dims, query, key = 16, rng.normal(size=16), rng.normal(size=(4000, 16))
    across = rng.normal(size=(dims, 300))
    across -= np.outer(query, query @ across) / (query @ query)
    value = key @ across
    bound = error_bound(
        query[None, None], key[None], value[None], spec=EXACT.replace(scaled_query=COARSE), scale=0.01
    )
    weights = np.exp(0.01 * key @ query)
    weights /= weights.sum()
    each = (
        0.01 * COARSE * np.abs(query)[:, None] * ((weights[:, None] * key).T @ (value - weights @ value))
    )  # what rounding entry d moves, (D, E)
    needed = np.sqrt((each**2).sum(axis=0))
    ratio = bound.output_sigma[0, 0] / needed
    assert (ratio < 0.5).mean() < 0.2 and np.median(ratio) < 1.5
    assert 1.0 < np.median(bound.output_tight[0, 0] / multiplier(bound.output) / needed) < 2.0


# The first product


@pytest.mark.parametrize("block", [1, 4, 16])
@pytest.mark.parametrize("pattern", ["drift", "random", "balanced"])
def test_product_of_query_and_key(pattern, block):
    """Of one key, whose score is the lse."""
    orders = (np.arange(128), np.arange(128)[::-1], np.r_[0:128:2, 1:128:2])
    squares, needed = 0.0, 0.0
    spec = EXACT.replace(accumulator=ROUNDOFF, sum_block=block)
    for products in TERMS[pattern][:128].T:
        bound = error_bound(
            np.ones((1, 1, 128)), products[None, None], np.ones((1, 1, 1)), spec=spec, scale=1.0
        )
        squares += (bound.lse_tight[0, 0] / ROUNDOFF / multiplier(bound.output)) ** 2
        needed += max(squares_of_sum(products[order, None], block)[0] for order in orders)
    assert 0.75 < squares / needed < 4.0


@pytest.mark.parametrize("apart", [0.0, 2.0])
def test_equal_products(apart):
    """Products that differ by less than they round lose the same remainder at every addition."""
    rng = np.random.default_rng(15)
    products = rng.uniform(1.05, 1.9, size=(200, 1)) * (1.0 + apart * 2.0**-11 * rng.normal(size=(200, 512)))
    got = np.zeros(200, dtype=np.float16)
    for column in products.T:
        got = (got + column).astype(np.float16)
    bound = error_bound(
        np.ones((200, 1, 512)),
        products[:, None],
        np.ones((200, 1, 1)),
        spec=EXACT.replace(accumulator="float16"),
        scale=1.0,
    )
    error = got - products.sum(axis=1)
    assert 0.1 < np.max(np.abs(error) / bound.lse_tight[:, 0]) < 1.0


@pytest.mark.parametrize(
    "score, sinks, needed", [(100.0, None, 2.0 * 100.0**2), (0.0, [20.0], 3.0 * 20.0**2)], ids=str
)
def test_exponents_far_from_zero(score, sinks, needed):
    """A change of base and a subtraction round the score, and three operations what the maximum leaves."""
    scores = score + 0.1 * NOISE[:, 0]
    spec = EXACT.replace(softmax=ROUNDOFF, exp_error=0.0, sum_block=KEYS)
    bound = with_scores(scores, NOISE, spec, sinks=sinks)
    weights = np.exp(scores - bound.lse[0, 0])
    errors = weights[:, None] * (NOISE - bound.output[0, 0])
    squares = (bound.output_tight[0, 0] / ROUNDOFF / multiplier(bound.output)) ** 2
    ratio = np.median(squares / (needed * (errors**2).sum(axis=0)))
    assert 0.75 < ratio < 4.0


# Deviations, and how many errors are independent

FINE = KernelSpec(
    "fine", input="float64", accumulator="float64", softmax="float64", output="float64", lse="float64"
)
EFFECTS = [
    {"accumulator": "float16", "sum_block": 8},
    {"accumulator": "e8m13", "truncates": True},
    {"weight": "bfloat16"},
    {"weight": "bfloat16", "denominator": "rounded"},
    {"score": "bfloat16"},
    {"output": "bfloat16", "lse": "bfloat16"},
    {"scaled_query": "bfloat16"},
    {"input": "bfloat16"},
    {"exp_error": 1e-3},
    {"exp_error": 1e-3, "block_size": 4},
    {"softmax": "float32", "accumulator": "float32", "exp_error": 0.0},
]


# Larger than the scores, so that storing the sum decides.
ADDED = {"alibi_slopes": np.linspace(0.05, 0.2, 8), "bias": 4.0 * np.sin(np.arange(9000.0)).reshape(60, 150)}


@pytest.mark.parametrize(
    "effect, options",
    [
        *((effect, {}) for effect in EFFECTS),
        ({"tanh_error": 1e-3}, {"softcap": 3.0}),
        *(({"score": "bfloat16"}, {name: ADDED[name]}) for name in ADDED),
        ({"score": "bfloat16"}, ADDED),
    ],
    ids=lambda given: str({name: getattr(value, "shape", value) for name, value in given.items()}),
)
def test_deviations_are_those_of_a_kernel(effect, options):
    rng = np.random.default_rng(11)
    arrays = [rng.normal(size=(8, rows, 16)) for rows in (60, 150, 150)]
    arrays[2] += 0.5
    spec = FINE.replace(**effect)
    bound = error_bound(*arrays, spec=spec, **options)
    output, lse = EmulatedKernel(spec)(*arrays, **options)
    assert 0.25 < np.sqrt(np.mean(((output - bound.output) / bound.output_sigma) ** 2)) < 1.15
    assert np.sqrt(np.mean(((lse - bound.lse) / bound.lse_sigma) ** 2)) < 1.15
    assert (np.abs(output - bound.output) <= bound.output_tight).all() and (
        np.abs(lse - bound.lse) <= bound.lse_tight
    ).all()


def independent_errors(spec, *arrays, **options):
    call = operands("attention", arrays, options, spec)
    exact = reference_results("attention", arrays, options, spec, "exact").results
    return sum(
        bound_tile(tile, spec, hoeffding_multiplier(call, FAILURE_PROBABILITY))[OUTPUT].effective.sum()
        for tile in tiles(call, exact)
    )


@pytest.mark.parametrize("rank", [1, 2])
def test_independent_errors_of_a_row(rank):
    """The mean square over a row's dims varies as that of some number of independent errors would: no more
    may be claimed, nor far fewer."""
    rng = np.random.default_rng(12)
    calls = 250
    query, key = rng.normal(size=(calls, 1, 8)), rng.normal(size=(calls, 60, 8))
    value = rng.normal(size=(calls, 60, rank)) @ rng.normal(size=(calls, rank, 24))
    spec = FINE.replace(weight="bfloat16")
    bound = error_bound(query, key, value, spec=spec)
    output, _ = EmulatedKernel(spec)(query, key, value)
    mean = (((output - bound.output) / bound.output_sigma) ** 2).mean(axis=(1, 2))
    assert (
        0.1
        < independent_errors(spec, query[:9], key[:9], value[:9]) / 9 / (2.0 * mean.mean() ** 2 / mean.var())
        < 1.0
    )


# Where the statistical bound or its deviation is given at all


@pytest.mark.parametrize("exp_error, told", [(0.03, True), (0.1, False)])
def test_uncertain_scores_have_no_statistical_bound(exp_error, told):
    scores = -np.random.default_rng(13).random(KEYS)
    bound = with_scores(scores, NOISE, EXACT.replace(exp_error=exp_error))
    assert (np.isfinite(bound.output_sigma) == told).all() and (np.isfinite(bound.lse_sigma) == told).all()
    assert (bound.output_tight < 0.5 * bound.output_hard).all() == told


def test_rounding_of_the_reference_is_not_known():
    """An output that a format holds is not rounded by it, unless the format is as fine as the
    reference."""
    for form, fixed in (("bfloat16", True), ("float32", True), ("float64", False)):
        sigma = error_bound(
            np.zeros((1, 1, 3)), NOISE[None, :2, :3], np.ones((1, 2, 4)), spec=EXACT.replace(output=form)
        ).output_sigma
        step = number_format(form).step(1.0)
        np.testing.assert_allclose(
            sigma, 0.0 if fixed else step / math.sqrt(12.0), rtol=1e-6, atol=1e-3 * step
        )


def test_results_that_round_alike():
    """Halfway between two numbers of the format, with an error before the rounding of a tenth of their
    distance: every result is off by half of it."""
    step = number_format("bfloat16").step(1.0)
    value = np.full((2, 1), 1.0 + step / 2.0)

    def sigma(**spec):
        return error_bound(
            np.zeros((1, 1, 3)), NOISE[None, :2, :3], value[None], spec=EXACT.replace(**spec)
        ).output_sigma[0, 0, 0]

    roundoff = 2.0**-20 * 0.1 * step / sigma(accumulator=2.0**-20)
    got = round_to(value + 0.1 * step * NOISE[:, 0], "bfloat16")
    assert (
        0.85
        < np.sqrt(np.mean((got - value) ** 2)) / sigma(accumulator=float(roundoff), output="bfloat16")
        < 1.15
    )


@pytest.mark.parametrize("exponent, told", [(-300, True), (-400, True), (-490, False), (-900, False)])
def test_results_whose_errors_have_no_square(exponent, told):
    """A small result beside others of its row: sigma is a thousandth at least of what the same result has
    alone, or none is given."""
    value = NOISE[:50, :2] * np.array([1.0, 2.0**exponent])
    scores = -np.random.default_rng(14).random(50)
    spec = EXACT.replace(weight=2.0**-50)
    beside, alone = (with_scores(scores, v, spec) for v in (value, value[:, 1:] * 2.0**-exponent))
    assert np.isfinite(beside.output_sigma[0, 0, 1]) == told
    if told:
        np.testing.assert_allclose(
            beside.output_sigma[0, 0, 1] * 2.0**-exponent, alone.output_sigma[0, 0, 0], rtol=1e-6
        )
