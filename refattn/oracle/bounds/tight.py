"""The statistical bound: roundings are independent and centred, so their sum grows with the root of the
number of terms.

Hoeffding's inequality for sum_i r_i x_i with |r_i| <= 1 independent and centred: it exceeds lambda sqrt(sum
x_i^2) with probability at most 2 exp(-lambda^2 / 2). Four kinds of error are not of that kind and are added
linearly: an error that all scores of a row share in proportion, the truncation of an accumulator, the common
rounding of weights that lie close together, weights flushed to 0. `README.md` has the steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from refattn.oracle.arithmetic.formats import round_to
from refattn.oracle.arithmetic.spec import KernelSpec
from refattn.oracle.bounds.conversion import converted_weights
from refattn.oracle.bounds.errors import Errors
from refattn.oracle.bounds.hard import LARGEST_EXPONENT, NEGLIGIBLE, lse_magnitudes, sink_share, written
from refattn.oracle.bounds.lean import KNOWN, LseModel, OutputModel
from refattn.oracle.bounds.operands import Operand, smallest_lost
from refattn.oracle.bounds.repeated_keys import sum_of_row, sum_of_squares
from refattn.oracle.bounds.running_sums import both_sums, lost_terms, runs_of_keys
from refattn.oracle.bounds.score_error import ROUNDING_VARIANCE, ScoreError
from refattn.oracle.bounds.ties import equal_scores
from refattn.oracle.bounds.tile import Tile
from refattn.oracle.bounds.tile_sums import row_sums, times

PROBES = 4
# Rows share errors of scores and weights (a key's rounding, positions that repeat), dims do where values
# have a low rank.
INDEPENDENT = 0.5
REFERENCE_ROUNDOFF = 2.0**-50  # the exact results are float64
SQUARES_UNDERFLOW = (
    2.0**-450
)  # of a result this small beside the others of its row, errors of 2^-53 have no square in float64
FIRST_ORDER = 0.15  # sigma is given up where scores are so uncertain that weights change by more than this


@dataclass
class Tight:
    """The tight bound of one result, before the hard one limits it, with the fields of
    `bound.ResultBound`."""

    limit: np.ndarray
    sigma: np.ndarray
    effective: np.ndarray
    model: OutputModel | LseModel


def tight_bound(
    tile: Tile, spec: KernelSpec, error: ScoreError, rounding, multiplier: float
) -> tuple[Tight, Tight]:
    """Section 4: lambda sqrt(square) + linear of the output and of the lse, and their sigma."""
    # before units of the largest value make zeros of tiny ones
    nothing = _nothing(tile)
    unit, tile = _in_units(tile)
    repeats, ties = tile.repeats, equal_scores(tile)
    first_order = _first_order(tile, error)
    conversion = (
        None
        if rounding is None
        else converted_weights(tile, spec, rounding, repeats, ties, tile.output, error.level)
    )
    # what is far below the conversion of the weights may be bounded generously
    ample = 0.0 if conversion is None else NEGLIGIBLE * conversion.square
    sums = both_sums(tile, spec, error, repeats, ties, ample)
    parts = [
        _score_errors(tile, error, repeats, multiplier, ample),
        *([] if conversion is None else [conversion]),
        *sums.errors,
    ]
    if tile.value.largest_error is not None:
        values = times(tile.kept * tile.kept, tile.value.typical_error**2)
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


def _nothing(tile):
    """Outputs, (R, E), to which no kept weight brings a value other than 0."""
    nothing = np.zeros(tile.output.shape, dtype=bool) | ~(tile.kept > 0).any(axis=1, keepdims=True)
    if tile.v.smallest:
        return nothing
    zeros = np.flatnonzero((tile.v.magnitude == 0).any(axis=0))
    if len(zeros):
        there = (tile.v.magnitude[:, zeros] != 0).astype(tile.dtype)
        nothing[:, zeros] = times((tile.kept > 0).astype(tile.dtype), there) == 0
    return nothing


def _score_errors(tile, error, repeats, multiplier, ample) -> Errors:
    """Scores: sum_j p_j^2 e2_j (v_j - o)^2, where exp turns an error r into expm1(r), and the row sum moves
    too."""
    p, kept, output = tile.weights, tile.kept, tile.output
    squares, variance, common = error.square, error.variance, error.common
    if error.level.any():  # equal errors of all keys move no output
        apart = (~error.level).astype(tile.dtype)
        squares, variance, common = squares * apart, variance * apart, [part * apart for part in common]
    largest = np.sqrt(squares.max(axis=1, keepdims=True, initial=0.0).astype(np.float64))
    if (generous := _generous(tile, repeats, multiplier, largest, common, ample)) is not None:
        return generous
    errors = weight_errors(squares, multiplier)
    row_sum_error = multiplier * np.sqrt(row_sums(p * p, errors))
    stretch = 1.0 / np.where(row_sum_error < 1.0, 1.0 - row_sum_error, 0.0)
    square = stretch**2 * sum_of_squares(kept, errors, tile.v, repeats, output, p)
    linear = sum(np.abs(times(kept * part, tile.v.exact) - row_sums(p, part) * output) for part in common)
    variance = sum_of_squares(kept, variance, tile.v, repeats, output, p) + linear**2
    if tile.query.largest_error is not None:
        shared = _query_rounding(tile, kept, p, output)
        # all dims share them: nothing averages out
        square, variance = square + 2.0 * shared, variance + shared
    return Errors(square, linear, variance)


def weight_errors(squares, multiplier):
    """Square sums of the errors of weights, (expm1(lambda r) / lambda)^2, of those of their scores, r^2."""
    largest = squares.max(initial=0.0)
    if multiplier * math.sqrt(largest) < NEGLIGIBLE:
        return squares * (1.0 + multiplier * math.sqrt(largest))
    errors = np.expm1(np.minimum(multiplier * np.sqrt(squares), 0.5 * LARGEST_EXPONENT))  # and its square
    errors *= 1.0 / multiplier
    return errors * errors


def _generous(tile, repeats, multiplier, largest, common, ample):
    """At most what the errors of the scores may be, from the largest of each row, `largest`; None unless
    that is far below `ample`, a square sum."""
    if repeats or tile.dropout or tile.query.largest_error is not None or not np.any(ample):
        return None
    size = np.abs(tile.output)
    square = 2.0 * (1.0 + multiplier * largest) * largest**2
    square = square * (tile.squares + row_sums(tile.weights, tile.weights) * size**2)
    if not ((largest < NEGLIGIBLE).all() and (square <= ample).all()):
        return None
    # Cauchy and Schwarz: |sum p d (v - o)|^2 <= sum p d^2 sum p v^2, and sum p v^2 <= max |v| sum p |v|
    spread = np.sqrt(tile.largest_value * tile.absolute_sum)
    linear = sum(np.sqrt(_mean_square(tile, part)) for part in common) * spread
    if (linear <= multiplier * np.sqrt(NEGLIGIBLE * ample)).all():
        return Errors(square, linear, square + linear**2)
    return None


def _mean_square(tile, direction):
    """sum_j p_j d_j^2, (R, 1); of d less its mean where the weights add up to 1, as that moves no output."""
    mean = row_sums(tile.weights, direction)
    square = row_sums(tile.weights * direction, direction)
    return np.where(tile.whole == 1.0, np.maximum(square - mean**2, 0.0), square)


def _first_order(tile, error):
    """Rows whose scores are certain enough for the tight bound: they change few per cent of the weights, (R,
    1)."""
    largest = 3.0 * np.sqrt(error.square.max(axis=1, keepdims=True, initial=0.0))
    if (largest < FIRST_ORDER / 2).all():
        return np.ones_like(largest, dtype=bool)
    size = 3.0 * np.sqrt(error.square * ~error.level)
    return row_sums(tile.weights, np.expm1(np.minimum(size, LARGEST_EXPONENT))) < FIRST_ORDER


@dataclass
class LostToUnderflow:
    """What products and sums lose where they round to the subnormal step, (R, 1) or (R, E)."""

    largest: np.ndarray
    deviation: np.ndarray
    absolute_sum: np.ndarray  # sum_j p_j |v_j|, in units of the row


def _lost_to_underflow(tile, spec, unit) -> LostToUnderflow:
    """Every product and sum rounds to the subnormal step; a product loses no more than itself."""
    count, step = tile.count.astype(np.float64), smallest_lost(spec)
    deviation = step * np.sqrt(count + 4) / np.sqrt(3.0)
    absolute_sum, largest_value = tile.absolute_sum, tile.largest_value
    matters = step * count.max(initial=0.0) > 1e-6 * np.min(unit) * tile.smallest_value
    of_products = np.fmin(step * count, unit * absolute_sum) if matters else step * count
    largest = step * (count * unit * largest_value + 5) + of_products
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
    shared = (unit * (shared + lost_terms(tile, spec)) + lost.largest) / over
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
        shift = tile.scale * ((tile.query.typical_error * signs.astype(tile.dtype)) @ tile.k.exact.T)
        total += (times(kept * shift, tile.v.exact) - row_sums(p, shift) * output) ** 2
    return total / PROBES


def _in_units(tile):
    """A power of two for each row, and the tile with values and outputs in multiples of it, so that squares
    stay in float64.

    A value may be tiny or huge; all weights of a row are tiny where a sink takes the rest.
    """
    if tile.dtype != np.float64:  # whose sizes are ordinary
        return 1.0, tile
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
    latent = None if tile.latent is None else type(tile.latent).of(tile.latent.exact / of_value)
    return of_value * of_row, replace(
        tile,
        value=value,
        v=type(tile.v).of(value.exact),
        latent=latent,
        kept=kept / of_row,
        output=output / of_value / of_row,
    )


def _power_of_two(largest):
    """The power of two above a magnitude far from 1, and 1 near it."""
    power = np.ldexp(1.0, np.frexp(largest)[1])
    return np.where((largest > 0) & ((power < 2.0**-200) | (power > 2.0**200)), power, 1.0)


def _lse_of_a_split(tile, spec):
    """What rounding the lse of a split and of the whole may move a share, (R, 1): it scales with both."""
    top, log = lse_magnitudes(tile)
    return 2 * spec.softmax.unit_roundoff * (4 * top + 6 * log + 2)[:, None]


def _split_shift(tile, kept, p, output):
    """Largest |sum over a run of leading keys of p (v - o)|, (R, E): what an error of one split's lse can
    move."""
    running, largest = np.zeros_like(output), np.zeros_like(output)
    for first, last in runs_of_keys(len(tile.v.exact)):
        running = running + times(kept[:, first:last], tile.v.exact[first:last])
        running = running - row_sums(p[:, first:last]) * output
        largest = np.maximum(largest, np.abs(running))
    return 2.0 * largest


def _lse(tile, spec, error, rounding, conversion, repeats, both, multiplier):
    u, row_sum = spec.softmax.unit_roundoff, both.row_sum
    sums = (
        row_sum.square[:, 0]
        + u**2 * (error.rises[:, 0] + 4.0)
        + error.rescaled[:, 0] * (spec.exp_error**2 + 4 * u**2)
    )
    square = sum_of_row(tile.weights, error.square, repeats) + sums
    variance = sum_of_row(tile.weights, error.variance, repeats) + ROUNDING_VARIANCE * sums
    # one rounding of a row's query shifts the scores of all its keys
    if tile.query.largest_error is not None:
        mean = times(tile.weights, tile.k.exact)
        of_query = ((tile.scale * tile.query.typical_error) ** 2 * mean**2).sum(axis=1)
        square, variance = square + of_query, variance + ROUNDING_VARIANCE * of_query
    common = [row_sums(tile.weights, direction)[:, 0] for direction in error.common]
    shared, of_weights = (both.equal + row_sum.steady + row_sum.correlated)[:, 0], 0.0
    linear = sum(np.abs(part) for part in common) + shared
    if rounding is not None and spec.denominator == "rounded":
        linear = linear + row_sums(rounding.each)[:, 0]
        common.append(KNOWN * row_sums(tile.weights, conversion.exact)[:, 0])
        of_weights = np.maximum(
            *(
                sum_of_row(tile.weights, part, repeats)
                for part in (conversion.step_square / 12.0, conversion.exact_square)
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
    return bound, sigma, LseModel(own, shared + both.at_the_top[:, 0] + spec.exp_error, common)
