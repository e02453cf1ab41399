"""The statistical bound: roundings are independent and centred, so their sum grows with the root of the
number of terms.

Hoeffding's inequality for sum_i r_i x_i with |r_i| <= 1 independent and centred: it exceeds lambda sqrt(sum
x_i^2) with probability at most 2 exp(-lambda^2 / 2). Four kinds of error are not of that kind and are added
linearly: an error that all scores of a row share in proportion, the truncation of an accumulator, the common
rounding of weights that lie close together, weights flushed to 0. `README.md` has the steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from refattn.oracle.arithmetic.formats import round_to
from refattn.oracle.arithmetic.spec import KernelSpec
from refattn.oracle.bounds.hard import LARGEST_EXPONENT, lse_magnitudes, sink_share, written
from refattn.oracle.bounds.lean import KNOWN, LseModel, OutputModel
from refattn.oracle.bounds.level_rows import level_conversion
from refattn.oracle.bounds.operands import Operand, smallest_lost
from refattn.oracle.bounds.repeated_keys import repeated_keys, sum_of_squares
from refattn.oracle.bounds.row_blocks import Tile
from refattn.oracle.bounds.score_error import ROUNDING_VARIANCE, ScoreError

CHUNKS = 32  # partial sums of a row that are looked at
SPREAD = 8.0  # scores this many unit roundoffs apart have unrelated roundings
PROBES = 4
# Rows share errors of scores and weights (a key's rounding, positions that repeat), dims do where values
# have a low rank.
INDEPENDENT = 0.5
# deviations of independent roundings beyond which the roundings of the exact weights are taken for what they
# are
ALIKE = 3.0
REFERENCE_ROUNDOFF = 2.0**-50  # the exact results are float64
SQUARES_UNDERFLOW = (
    2.0**-450
)  # of a result this small beside the others of its row, errors of 2^-53 have no square in float64
COARSE = 2.0**-16  # accumulators so coarse that they lose terms of ordinary size
FIRST_ORDER = 0.15  # sigma is given up where scores are so uncertain that weights change by more than this


@dataclass
class Tight:
    """The tight bound of one result, before the hard one limits it, with the fields of
    `bound.ResultBound`."""

    limit: np.ndarray
    sigma: np.ndarray
    effective: np.ndarray
    model: OutputModel | LseModel


@dataclass
class Conversion:
    """Converting the weights: square sum, linear part and variance, (R, E), and of the linear part that of
    equal weights, `tied`; relative to each weight, (R, S), the step of the format and the rounding of the
    exact weights, -1 where they are flushed.
    """

    square: np.ndarray
    linear: np.ndarray
    variance: np.ndarray
    tied: np.ndarray
    step: np.ndarray
    exact: np.ndarray


@dataclass
class Sums:
    """Errors of sum_j w_j x_j as a kernel adds it up, (R, E)."""

    square: np.ndarray  # sum of squares of the roundings
    steady: np.ndarray  # what is lost for certain: truncation, terms below the last digit
    # at most what roundings amount to that are all the same, one number anywhere between the two ends
    correlated: np.ndarray
    largest_partial: np.ndarray  # largest |partial sum|
    # (R, C), optional: absorbed form: sum of squares of the roundings of the latent output
    latent: np.ndarray | None = None


@dataclass
class Errors:
    """One part of the errors of the output, (R, E), in units of the row (section 4): parts add up."""

    square: np.ndarray  # sum of the squares of what is independent, for Hoeffding's bound
    linear: np.ndarray  # what is not independent
    variance: np.ndarray  # variance of both, for sigma

    def __add__(self, other):
        return Errors(self.square + other.square, self.linear + other.linear, self.variance + other.variance)


def tight_bound(
    tile: Tile, spec: KernelSpec, error: ScoreError, rounding, multiplier: float
) -> tuple[Tight, Tight]:
    """Section 4: lambda sqrt(square) + linear of the output and of the lse, and their sigma."""
    # before units of the largest value make zeros of tiny ones
    nothing = ((tile.kept > 0).astype(float) @ (tile.value.exact != 0)) == 0
    unit, tile = _in_units(tile)
    repeats, ties = repeated_keys(tile.key.exact), _ties(tile)
    first_order = _first_order(tile, error)
    conversion = (
        None
        if rounding is None
        else _converted(tile, spec, rounding, repeats, ties, tile.output, error.level)
    )
    sums = _both_sums(tile, spec, error, repeats, ties)
    parts = [
        _score_errors(tile, error, repeats, multiplier),
        *([] if conversion is None else [conversion]),
        *sums.errors,
    ]
    if tile.value.largest_error is not None:
        values = tile.kept**2 @ tile.value.typical_error**2
        parts.append(Errors(values, 0.0, ROUNDING_VARIANCE * values))
    if spec.splits > 1:
        shifted = _lse_of_a_split(tile, spec) * _split_shift(tile, tile.kept, tile.weights, tile.output)
        parts.append(Errors(0.0, shifted, shifted**2))
    errors = sum(parts[1:], parts[0])
    lost = _lost_to_underflow(tile, spec, unit)
    known = first_order & (nothing | (lost.absolute_sum > SQUARES_UNDERFLOW))
    off = unit * (errors.linear + multiplier * np.sqrt(errors.square)) + lost.largest
    bound = np.where(known, written(off, unit * np.abs(tile.output), spec.output, spec), np.inf)
    before = np.hypot(unit * np.sqrt(errors.variance), lost.deviation)
    writing = _writing(unit * tile.output, before, spec.output)
    sigma = np.where(known, np.hypot(before, writing), np.inf)

    lse, lse_sigma, lse_model = _lse(tile, spec, error, rounding, conversion, repeats, sums, multiplier)
    lse, lse_sigma = (np.where(first_order[:, 0], part, np.inf) for part in (lse, lse_sigma))
    model = _output_model(tile, spec, unit, error, conversion, sums, lost, before, sigma)
    return (
        Tight(bound, sigma, _independent_errors(sigma, writing), model),
        Tight(lse, lse_sigma, np.ones_like(lse), lse_model),
    )


def _score_errors(tile, error, repeats, multiplier) -> Errors:
    """Scores: sum_j p_j^2 e2_j (v_j - o)^2, where exp turns an error r into expm1(r), and the row sum moves
    too."""
    p, kept, value, output = tile.weights, tile.kept, tile.value.exact, tile.output
    apart = ~error.level  # equal errors of all keys move no output
    weight_error = (
        np.expm1(np.minimum(multiplier * np.sqrt(error.square * apart), LARGEST_EXPONENT)) / multiplier
    )
    row_sum_error = multiplier * np.sqrt((p**2 * weight_error**2).sum(axis=1, keepdims=True))
    stretch = 1.0 / np.where(row_sum_error < 1.0, 1.0 - row_sum_error, 0.0)
    square = stretch**2 * sum_of_squares(kept, weight_error**2, value, repeats, output, p)
    linear = np.zeros_like(output)
    for direction in error.common:
        direction = direction * apart
        linear += np.abs((kept * direction) @ value - (p * direction).sum(axis=1, keepdims=True) * output)
    variance = sum_of_squares(kept, error.variance * apart, value, repeats, output, p) + linear**2
    if tile.query.largest_error is not None:
        shared = _query_rounding(tile, kept, p, output)
        # all dims share them: nothing averages out
        square, variance = square + 2.0 * shared, variance + shared
    return Errors(square, linear, variance)


def _first_order(tile, error):
    """Rows whose scores are certain enough for the tight bound: they change few per cent of the weights, (R,
    1)."""
    size = 3.0 * np.sqrt(error.square * ~error.level)
    return (tile.weights * np.expm1(np.minimum(size, LARGEST_EXPONENT))).sum(
        axis=1, keepdims=True
    ) < FIRST_ORDER


@dataclass
class BothSums:
    """The second product and the row sum, rescaled and divided: their errors together, and what the models
    read.
    """

    errors: list[Errors]
    products: Sums
    row_sum: Sums
    steps: np.ndarray  # (R, 1): sum of the squares of rescaling and dividing, relative
    equal: np.ndarray  # (R, 1): what the row sum may lose of equal weights, relative to it
    at_the_top: np.ndarray  # (R, 1): the same of keys at the row maximum
    same_sign: np.ndarray  # (R, E): losses that may have one sign everywhere


def _both_sums(tile, spec, error, repeats, ties) -> BothSums:
    """The second product and the row sum: squared partial sums, and linearly what equal terms lose alike."""
    u, magnitude, p = spec.softmax.unit_roundoff, np.abs(tile.output), tile.weights
    products = _products(tile, spec, tile.kept)
    row_sum = _sums(p, np.ones((p.shape[1], 1)), tile.visible, spec.sum_block, u, False)
    steps = u**2 * (error.rises + 5.0)
    square = products.square + steps * magnitude**2 + (row_sum.square + steps) * magnitude**2
    equal = np.minimum(u * ties.count / spec.sum_block, ties.share)
    pairs = repeated_keys(np.concatenate([tile.key.exact, tile.value.exact], axis=1)) if repeats else []
    again = sum(
        (tile.visible[:, members].sum(axis=1, keepdims=True) for members in pairs), np.zeros_like(equal)
    )
    again = spec.accumulator_roundoff * np.where(ties.steady, tile.count, again) / spec.sum_block
    steady = products.steady + row_sum.steady * magnitude
    correlated = (
        products.correlated + (row_sum.correlated + equal) * magnitude + again * products.largest_partial
    )
    independent = Errors(square, 0.0, ROUNDING_VARIANCE * square)
    errors = [independent, Errors(0.0, steady, steady**2), Errors(0.0, correlated, correlated**2 / 3.0)]
    at_the_top = _correlated_at_the_top(tile, spec, error)
    same_sign = steady + correlated + at_the_top * magnitude
    return BothSums(errors, products, row_sum, steps, equal, at_the_top, same_sign)


@dataclass
class LostToUnderflow:
    """What products and sums lose where they round to the subnormal step, (R, 1) or (R, E)."""

    largest: np.ndarray
    deviation: np.ndarray
    absolute_sum: np.ndarray  # sum_j p_j |v_j|, in units of the row


def _lost_to_underflow(tile, spec, unit) -> LostToUnderflow:
    """Every product and sum rounds to the subnormal step; a product loses no more than itself."""
    count, size, step = tile.count.astype(np.float64), np.abs(tile.value.exact), smallest_lost(spec)
    deviation = step * np.sqrt(count + 4) / np.sqrt(3.0)
    absolute_sum = tile.kept @ size
    matters = step * count.max(initial=0.0) > 1e-6 * np.min(unit) * size.min(initial=np.inf, where=size > 0)
    of_products = np.fmin(step * count, unit * absolute_sum) if matters else step * count
    largest = step * (count * unit * size.max(axis=0, initial=0.0) + 5) + of_products
    return LostToUnderflow(largest, deviation, absolute_sum)


def _independent_errors(sigma, writing):
    """How many errors of a row are independent, (R,).

    Each result is rounded on its own: a share of the variance that all dims average; the rest counts as
    INDEPENDENT errors a row.
    """
    dims = max(sigma.shape[1], 1)
    share = np.where(sigma > 0, (writing / np.where(sigma > 0, sigma, 1.0)) ** 2, 1.0)
    alone = np.where(np.isfinite(sigma), share, 0.0).sum(axis=1) / dims
    return 1.0 / np.maximum(alone**2 / dims + (1.0 - alone) ** 2 / INDEPENDENT, 1.0 / dims)


def _output_model(tile, spec, unit, error, conversion, sums, lost, before, sigma) -> OutputModel:
    """Bias: what a signed sum of errors needs to know of a tile's outputs."""
    magnitude, over = np.abs(tile.output), np.where(sigma > 0, sigma, 1.0)
    of_products = sums.products.square if tile.latent is None else 0.0
    own = (unit / over) ** 2 * ROUNDING_VARIANCE * (sums.steps * magnitude**2 + of_products) + (
        lost.deviation / over
    ) ** 2
    shared = sums.same_sign + (0.0 if conversion is None else conversion.tied)
    shared = (unit * (shared + _lost_terms(tile, spec)) + lost.largest) / over
    latent = None if tile.latent is None else ROUNDING_VARIANCE * unit**2 * sums.products.latent
    rescaled = ROUNDING_VARIANCE * (sums.row_sum.square + sums.steps)
    joined = _lse_of_a_split(tile, spec) if spec.splits > 1 else 0.0
    return OutputModel(error, own, shared, before, rescaled, latent, conversion, joined)


def _writing(output, before, form):
    """Deviation of rounding output + x to a format where x has deviation `before`, (R, E).

    The step over sqrt(12) where x spreads over steps; where it does not, the rounding of the exact output
    itself, which results that lie close together share. Between them, Sripad and Snyder 1977, "A necessary
    and sufficient condition for quantization errors to be uniform and white": the first harmonic of the mean
    square falls with exp(-2 pi^2 before^2 / step^2).
    """
    step = form.step(output)
    random = step**2 / 12.0
    if form.unit_roundoff <= REFERENCE_ROUNDOFF:  # as fine as the reference: its own rounding is not known
        return np.sqrt(random)
    known = (round_to(output, form) - output) ** 2
    known = np.where((step > 0) & (known <= step**2), known, random)
    fixed = np.exp(-2.0 * np.pi**2 * (before / np.where(step > 0, step, 1.0)) ** 2)
    return np.sqrt(random + (known - random) * fixed)


def _query_rounding(tile, kept, p, output):
    """Square sum of the query's roundings, each of which reaches all keys at once, (R, E).

    sum_d (dq_d sum_j p_j k_jd (v_j - o))^2 is the mean square of the same sum with random signs for d;
    PROBES of them are taken.
    """
    rng = np.random.default_rng(0)
    total = np.zeros_like(output)
    for _ in range(PROBES):
        signs = rng.choice([-1.0, 1.0], size=tile.head_dim)
        shift = tile.scale * ((tile.query.typical_error * signs) @ tile.key.exact.T)
        total += ((kept * shift) @ tile.value.exact - (p * shift).sum(axis=1, keepdims=True) * output) ** 2
    return total / PROBES


def _in_units(tile):
    """A power of two for each row, and the tile with values and outputs in multiples of it, so that squares
    stay in float64.

    A value may be tiny or huge; all weights of a row are tiny where a sink takes the rest.
    """
    output = np.where(np.isfinite(tile.output), tile.output, 0.0)
    # a key of value 0 does not show, however large its weight
    kept = np.where(tile.value.exact.any(axis=1), tile.kept, 0.0)
    of_value, of_row = (
        _power_of_two(np.abs(tile.value.exact).max(initial=0.0)),
        _power_of_two(kept.max(axis=1, keepdims=True, initial=0.0)),
    )
    if of_value == 1.0 and (of_row == 1.0).all():
        return 1.0, replace(tile, output=output)
    value = Operand(*(None if part is None else part / of_value for part in tile.value.parts))
    latent = None if tile.latent is None else tile.latent / of_value
    return of_value * of_row, replace(
        tile, value=value, latent=latent, kept=kept / of_row, output=output / of_value / of_row
    )


def _power_of_two(largest):
    """The power of two above a magnitude far from 1, and 1 near it."""
    power = np.ldexp(1.0, np.frexp(largest)[1])
    return np.where((largest > 0) & ((power < 2.0**-200) | (power > 2.0**200)), power, 1.0)


@dataclass
class Ties:
    """Keys of one row with equal scores below the maximum, (R, 1): their share of the row, and how many
    there are."""

    share: np.ndarray
    count: np.ndarray
    steady: np.ndarray  # of bool: all keys, because the scores rise or fall by equal steps


def _ties(tile):
    """Equal scores, whether or not the keys are equal: bias, softcap and zero queries make them too.

    Keys at the row maximum are left out: their weight is exp(0) = 1, which no conversion or sum rounds. A
    sum to which the same weight is added over and over loses the same each time, up to a unit roundoff of
    it: both are multiples of its last digit but for the same remainder.
    """
    scores = np.sort(np.where(tile.visible, tile.biased, -np.inf).astype(np.float32), axis=1)
    rows, keys = scores.shape
    share, count = np.zeros((rows, 1)), np.zeros((rows, 1))
    if keys < 2:
        return Ties(share, count, np.zeros((rows, 1), dtype=bool))
    top = np.maximum(scores[:, -1:], tile.maximum[:, None].astype(np.float32))
    equal = (scores[:, 1:] == scores[:, :-1]) & (scores[:, 1:] > -np.inf) & (scores[:, 1:] < top)
    steady = _progressions(tile)
    share[steady], count[steady] = 1.0, tile.count[steady]
    for row in np.flatnonzero(equal.any(axis=1) & ~steady):
        values, counts = np.unique(scores[row], return_counts=True)
        tied = (counts > 1) & (values > -np.inf) & (values < top[row])
        mass = (
            counts[tied] * np.exp(values[tied].astype(np.float64) - tile.maximum[row]) / tile.total[row, 0]
        )
        share[row], count[row] = mass.sum(), counts[tied].sum()
    return Ties(np.minimum(share, 1.0), count, steady[:, None])


def _correlated_at_the_top(tile, spec, error):
    """What the row sum may lose of keys at the row maximum whose scores are not surely equal, relative to
    it, (R, 1).

    Their weights are 1 but for a few last digits, all below the last digit of a long sum: it loses what they
    have in common.
    """
    u = spec.softmax.unit_roundoff
    near = tile.visible & (tile.drop <= SPREAD * u * np.abs(tile.biased))
    count, off = (
        near.sum(axis=1, keepdims=True),
        np.sqrt(np.where(near, error.square, 0.0)).max(axis=1, keepdims=True, initial=0.0),
    )
    lost = np.minimum(u * count / spec.sum_block, off) * np.where(near, tile.weights, 0.0).sum(
        axis=1, keepdims=True
    )
    return np.where((count > 1) & ~error.level, lost, 0.0)


def _progressions(tile):
    """Rows whose scores rise or fall by one and the same step, (R,): relative to a running maximum every
    block has the same weights again."""
    scores = np.where(tile.visible, tile.biased, np.nan)
    bend = np.abs(scores[:, 2:] - 2.0 * scores[:, 1:-1] + scores[:, :-2])
    bend = np.where(np.isnan(bend), 0.0, bend).max(axis=1, initial=0.0)
    largest = np.abs(tile.biased).max(axis=1, initial=0.0)
    gaps = (tile.visible[:, 1:] != tile.visible[:, :-1]).sum(axis=1) > 2
    return (
        (bend <= SPREAD * 2.0**-24 * largest)
        & (tile.drop.max(axis=1, initial=0.0) > 0)
        & (tile.count[:, 0] > 2)
        & ~gaps
    )


def _converted(tile, spec, rounding, repeats, ties, output, level) -> Conversion:
    """Weights: u_P^2 sum_j p_j^2 v_j^2, and linearly those that are equal, known exactly, or flushed."""
    p = tile.weights
    stored = p * (1.0 if spec.normalises_first else tile.total) * spec.weight_scale
    flushed = tile.visible & (stored < spec.weight.half_subnormal_step)
    step = np.where(p > 0, spec.weight.step(stored) / np.where(p > 0, stored, 1.0), 0.0)
    step = np.where(flushed, 0.0, step)
    exact = _rounding_of(stored * tile.keep_scale, spec.weight)
    errors = _independent_conversions(tile, spec, rounding, step, repeats, ties, output)
    tied = errors.linear
    errors = _with_exact_roundings(tile, spec, exact, errors, output)
    if level.any():  # one number converted for all keys, in proportion to the result
        times = 1.0 if spec.denominator == "unrounded" else 2.0 * tile.dropout
        same = times * level_conversion(tile, rounding) * np.abs(output)
        parts = ((0.0, errors.square), (same, errors.linear), (same**2 / 3.0, errors.variance))
        errors = Errors(*(np.where(level, of_level, other) for of_level, other in parts))
        tied = np.where(level, same, tied)
    if flushed.any():
        for part in _flushed_weights(tile, spec, flushed, repeats, output):
            errors = errors + part
    return Conversion(
        errors.square, errors.linear, errors.variance, tied, step, np.where(flushed, -1.0, exact)
    )


def _independent_conversions(tile, spec, rounding, step, repeats, ties, output) -> Errors:
    """Conversions of weights that differ, and of equal ones, which round alike: u_P times their share.

    When the row sum is taken before the conversion, weights within a few steps of each other move the row by
    up to u times itself; equal weights of different keys, by up to u times their share of sum p |v|.
    """
    p, kept, value, magnitude = tile.weights, tile.kept, tile.value.exact, np.abs(output)
    u, relative = spec.weight.unit_roundoff, rounding / np.where(p > 0, p, 1.0)
    both = (output, p) if spec.denominator == "rounded" and not tile.dropout else ()
    square = sum_of_squares(kept, relative**2, value, repeats, *both)
    variance = sum_of_squares(kept, step**2 / 12.0, value, repeats, *both)
    if both:
        return Errors(square, np.zeros_like(magnitude), variance)
    if spec.denominator == "rounded":
        # scaled up before they are converted, the weights of numerator and row sum round apart
        square = square + (p**2 * relative**2).sum(axis=1, keepdims=True) * output**2
        variance = variance + (p**2 * step**2 / 12.0).sum(axis=1, keepdims=True) * output**2
        return Errors(square, 2.0 * u * ties.share * magnitude, variance)
    whole = np.maximum(p.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    mean = (p * tile.drop).sum(axis=1, keepdims=True) / whole
    spread = np.sqrt(np.maximum((p * tile.drop**2).sum(axis=1, keepdims=True) / whole - mean**2, 0.0))
    linear = u * np.where(spread < SPREAD * u, 1.0, ties.share) * magnitude
    if ties.share.any():
        linear = np.maximum(linear, u * ties.share * (kept @ np.abs(value)))
    return Errors(square, linear, variance + linear**2 / 3.0)


def _with_exact_roundings(tile, spec, exact, errors, output) -> Errors:
    """The roundings of the exact weights, where their joint effect exceeds that of independent ones.

    They are what weights share that lie close together, or are a few steps of the subnormal range large.
    """
    p, kept, value = tile.weights, tile.kept, tile.value.exact
    both = (output, p) if spec.denominator == "rounded" and not tile.dropout else ()
    joint = (kept * exact) @ value - ((p * exact).sum(axis=1, keepdims=True) * output if both else 0.0)
    variance = np.maximum(errors.variance, sum_of_squares(kept, exact**2, value, [], *both))
    shared = joint**2 > ALIKE**2 * variance
    # columns share them, and rows where biases or positions give the same few weights: the mean square over
    # a row's columns says so
    ratio = np.where(shared | (variance <= 0), 1.0, joint**2 / np.where(variance > 0, variance, 1.0))
    ratio = ratio.sum(axis=1, keepdims=True) / max(value.shape[1], 1)
    linear = np.maximum(errors.linear, np.where(shared, np.abs(joint), 0.0))
    return Errors(errors.square, linear, np.where(shared, joint**2, variance * np.maximum(ratio, 1.0)))


def _flushed_weights(tile, spec, flushed, repeats, output):
    """Weights below the smallest number are lost, one part of the errors after the other.

    With a running maximum those relative to an early, lower one survive: some are lost, and others do not
    cancel them.
    """
    p, kept, value = tile.weights, tile.kept, tile.value.exact
    rounded = spec.denominator == "rounded"
    lost = np.where(flushed, kept, 0.0) @ value
    if rounded:
        lost = lost - np.where(flushed, p, 0.0).sum(axis=1, keepdims=True) * output
    yield Errors(0.0, np.abs(lost), lost**2)
    if spec.block_size is not None:
        both = (output, p) if rounded else ()
        yield Errors(0.0, 0.0, sum_of_squares(kept, flushed.astype(np.float64), value, repeats, *both))


def _rounding_of(stored, form):
    """Relative error of converting numbers to a format; 0 where they are 0, flushed or beyond its range."""
    with np.errstate(all="ignore"):
        error = (round_to(stored, form) - stored) / stored
    return np.where((stored >= form.half_subnormal_step) & (np.abs(error) <= 1.0), error, 0.0)


def _products(tile, spec, kept):
    """Errors of the sum of weights times values; in the absorbed form it runs over latents and is stored
    before it meets w_uv."""
    u = spec.accumulator_roundoff
    if tile.latent is None:
        return _sums(kept, tile.value.exact, tile.visible, spec.sum_block, u, spec.truncates)
    inner = _sums(kept, tile.latent, tile.visible, spec.sum_block, u, spec.truncates)
    middle = (kept @ tile.latent) ** 2
    w2, rank = (tile.w_uv**2).T, tile.latent.shape[1]
    stored = spec.intermediate.unit_roundoff**2 + u**2 * (0.5 * rank + 1.0)
    parts = (part @ np.abs(tile.w_uv).T for part in (inner.steady, inner.correlated, inner.largest_partial))
    return Sums(inner.square @ w2 + stored * (middle @ w2), *parts, inner.square + stored * middle)


def _sums(weights, x, visible, block, u, truncates):
    """Errors of sum_j weights_j x_j with one rounding of relative size u for each addition.

    An addition rounds the partial sum it makes, so the square sum is u^2 times the sum of squared partial
    sums: `block` terms among themselves, then the block onto what came before. Partial sums are taken at
    CHUNKS places in the order of the keys and in the reverse, whichever gives more; between them the terms
    are treated as a random walk.
    """
    rows, keys = weights.shape
    count = visible.sum(axis=1, keepdims=True).astype(np.float64)
    squares = weights**2 @ x**2
    edges = np.unique(np.linspace(0, keys, min(CHUNKS, max(keys, 1)) + 1).astype(int))
    forward = np.zeros((rows, x.shape[1]))
    total = weights @ x
    sums = {
        name: np.zeros_like(total)
        for name in ("forward", "backward", "inside", "forward_size", "backward_size", "largest")
    }
    for first, last in pairwise(edges):
        here = visible[:, first:last].sum(axis=1, keepdims=True)
        additions = np.where(here > 0, np.maximum(here / block, 1.0), 0.0)
        part = weights[:, first:last] @ x[first:last]
        backward = total - forward
        forward = forward + part
        sums["forward"] += additions * forward**2
        sums["backward"] += additions * backward**2
        sums["forward_size"] += additions * np.abs(forward)
        sums["backward_size"] += additions * np.abs(backward)
        sums["inside"] += part**2
        sums["largest"] = np.maximum(sums["largest"], np.maximum(np.abs(forward), np.abs(backward)))
    inside = np.minimum(count, block)
    square = np.maximum(sums["forward"], sums["backward"]) + (count / block) * 0.5 * squares
    square = square + inside * (0.5 * squares + sums["inside"] / 3.0)
    # Truncation loses between 0 and u of each partial sum, half of that in the mean.
    steady = 0.5 * u * truncates * np.maximum(sums["forward_size"], sums["backward_size"])
    # Terms that hardly differ, compared with the last digit of the sum, all lose the same.
    mean = total / np.maximum(count, 1.0)
    close = squares / np.maximum(count, 1.0) - mean**2 < (SPREAD * u * sums["largest"]) ** 2
    correlated = np.where(close & (count > 1), u * (count / block) * sums["largest"], 0.0)
    # Terms below the last digit of the sum are lost, and of terms of a few last digits the rounding is
    # lopsided.
    small = u / np.where(weights > 0, weights * block, np.inf)
    lost = np.where(small > 1e-2, weights * np.minimum(1.0, 2.0 * small**2), 0.0)
    if lost.any():
        steady = steady + np.abs(lost @ x)
    return Sums(u**2 * square, steady, correlated, sums["largest"])


def _lost_terms(tile, spec):
    """What a coarse accumulator loses of terms below the last digit of their sum because the value is small,
    not the weight, (R, E)."""
    lost, u = np.zeros_like(tile.output), spec.accumulator_roundoff
    if u < COARSE or tile.latent is not None:
        return lost
    for column, value in enumerate(tile.value.exact.T):
        terms = tile.kept * value
        small = (
            u
            * np.abs(tile.output[:, column, None])
            / np.where(terms != 0, spec.sum_block * np.abs(terms), np.inf)
        )
        lost[:, column] = np.abs(
            (terms * np.where(small > 1e-2, np.minimum(1.0, 2.0 * small**2), 0.0)).sum(axis=1)
        )
    return lost


def _lse_of_a_split(tile, spec):
    """What rounding the lse of a split and of the whole may move a share, (R, 1): it scales with both."""
    top, log = lse_magnitudes(tile)
    return 2 * spec.softmax.unit_roundoff * (4 * top + 6 * log + 2)[:, None]


def _split_shift(tile, kept, p, output):
    """Largest |sum over a run of leading keys of p (v - o)|, (R, E): what an error of one split's lse can
    move."""
    keys = p.shape[1]
    edges = np.unique(np.linspace(0, keys, min(CHUNKS, max(keys, 1)) + 1).astype(int))
    running, largest = np.zeros_like(output), np.zeros_like(output)
    for first, last in pairwise(edges):
        running = running + kept[:, first:last] @ tile.value.exact[first:last]
        running = running - p[:, first:last].sum(axis=1, keepdims=True) * output
        largest = np.maximum(largest, np.abs(running))
    return 2.0 * largest


def _lse(tile, spec, error, rounding, conversion, repeats, both_sums, multiplier):
    u, row_sum = spec.softmax.unit_roundoff, both_sums.row_sum
    ones = np.ones((tile.weights.shape[1], 1))
    sums = (
        row_sum.square[:, 0]
        + u**2 * (error.rises[:, 0] + 4.0)
        + error.rescaled[:, 0] * (spec.exp_error**2 + 4 * u**2)
    )
    square = sum_of_squares(tile.weights, error.square, ones, repeats)[:, 0] + sums
    variance = sum_of_squares(tile.weights, error.variance, ones, repeats)[:, 0] + ROUNDING_VARIANCE * sums
    # one rounding of a row's query shifts the scores of all its keys
    if tile.query.largest_error is not None:
        of_query = ((tile.scale * tile.query.typical_error) ** 2 * (tile.weights @ tile.key.exact) ** 2).sum(
            axis=1
        )
        square, variance = square + of_query, variance + ROUNDING_VARIANCE * of_query
    common = [(tile.weights * direction).sum(axis=1) for direction in error.common]
    shared, of_weights = (both_sums.equal + row_sum.steady + row_sum.correlated)[:, 0], 0.0
    linear = sum(np.abs(part) for part in common) + shared
    if rounding is not None and spec.denominator == "rounded":
        linear = linear + rounding.sum(axis=1)
        common.append(KNOWN * (tile.weights * conversion.exact).sum(axis=1))
        of_weights = np.maximum(
            *(
                sum_of_squares(tile.weights, part**2, ones, repeats)[:, 0]
                for part in (conversion.step / 12**0.5, conversion.exact)
            )
        )
    variance_of_sink = 0.0
    if tile.sink is not None:
        share, sink_error = sink_share(tile, spec, error)
        linear = linear + (share * sink_error)[:, 0]
        variance_of_sink = (share * sink_error)[:, 0] ** 2
    top, log = lse_magnitudes(tile)
    level = np.abs(np.where(np.isfinite(tile.lse), tile.lse, 0.0))
    fixed = u * (1.5 * top + 2 * log + level) + spec.exp_error
    bound = written(linear + fixed + multiplier * np.sqrt(square), level, spec.lse, spec)
    sigma = np.sqrt(variance + (linear + fixed) ** 2 + spec.lse.step(level) ** 2 / 12.0)
    own = (
        variance
        + of_weights
        + sum(part**2 for part in common)
        + variance_of_sink
        + (fixed - spec.exp_error) ** 2
    )
    return bound, sigma, LseModel(own, shared + both_sums.at_the_top[:, 0] + spec.exp_error, common)
