"""Where the arithmetic of a spec may turn a finite result into NaN or infinity (section 5 of `README.md`).

An infinite bound alone does not tell: it may come of scores whose errors are larger than their distances, or
of sums of so many terms that no error is too large. Every intermediate is finite there all the same, and so
is the result of a correct kernel. A result that is not finite takes one intermediate that leaves its format:

    q . k, partial sums included        scale * q . k log2(e) must stay below half the largest accumulator,
                                        stored scores below their largest number (products_fit)
    |score| + |alibi| + |bias|, sinks   times log2(e) where exponentials are powers of two: inf - inf is NaN
    conversions on load                 an input beyond its format is infinite; a bias of -3e38 in float16
                                        hides its key
    the row sum, sum_j p^_j v_j         at most one for each key, and the largest value for each
    the result                          beyond its own format

A row where all scores overflow to -inf gives NaN or 0, one where a score overflows to +inf gives NaN.
"""

from __future__ import annotations

import math

import numpy as np

from refattn.oracle.bounds.hard import sums_overflow
from refattn.oracle.bounds.score_error import products_fit

LOG2_E = 1.0 / math.log(2.0)
MARGIN = 1.0 + 2.0**-3  # for the roundings on the way, of at most 3 bits


def may_overflow(tile, spec):
    """Where an intermediate of output, (R, E), and lse, (R, 1), or the result itself, may overflow."""
    unscaled = np.abs(tile.query.exact) @ np.abs(tile.key.exact).T
    rows = ~products_fit(tile, spec, unscaled) | tile.broken
    rows |= MARGIN * LOG2_E * _largest_score(tile) >= spec.softmax.largest
    rows |= _converted_beyond(tile, spec) | (MARGIN * (tile.count[:, 0] + 1.0) >= spec.softmax.largest)
    value = MARGIN * tile.keep_scale * np.abs(tile.value.exact).max(axis=0, initial=0.0)
    output = rows[:, None] | sums_overflow(tile, spec) | (value >= spec.output.largest)
    lse = rows | (MARGIN * (_largest_score(tile) + np.log(tile.count[:, 0] + 1.0)) >= spec.lse.largest)
    return output, lse[:, None]


def _largest_score(tile):
    """The largest sum of magnitudes of the terms of a visible score, or of the sink, (R,)."""
    terms = np.abs(tile.capped)
    for part in (tile.alibi, tile.bias):
        terms = terms if part is None else terms + part
    largest = terms.max(axis=1, initial=0.0)
    return (
        largest
        if tile.sink is None
        else np.maximum(largest, np.where(tile.sink > -np.inf, np.abs(tile.sink), 0.0))
    )


def _converted_beyond(tile, spec):
    """Rows that meet an operand beyond the format it is converted to, (R,)."""
    top = min(spec.input.largest, spec.intermediate.largest) / MARGIN
    sides = (
        (tile.key.exact, tile.value.exact)
        if tile.latent is None
        else (tile.key.exact, tile.value.exact, tile.latent.exact)
    )
    shared = max((np.abs(side).max(initial=0.0) for side in sides), default=0.0) >= top
    query = np.abs(tile.query.exact).max(axis=1, initial=0.0)
    rows = (
        shared
        | (query >= top)
        | (max(tile.scale * LOG2_E, 1.0) * query >= spec.scaled_query.largest / MARGIN)
    )
    return (
        rows
        if tile.bias is None
        else rows | (tile.bias.max(axis=1, initial=0.0) >= spec.input.largest / MARGIN)
    )
