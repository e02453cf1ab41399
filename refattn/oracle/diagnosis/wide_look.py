"""Where a large result is most wrong: some rows of every head of every sequence, beside a reference in
float64.

One broken sequence of many, or one head of it, shows in no sample of a few. What is looked at here is judged
only roughly, to find the place; the verdict is that of the bounds there.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from refattn.oracle.bounds.reference import reference_results
from refattn.oracle.bounds.results import OUTPUT, RESULTS
from refattn.oracle.diagnosis.evidence import comparable
from refattn.oracle.mistakes.wrong_kernel import part_outlines, split_result
from refattn.oracle.verdict.picked_rows import picked_rows

LARGEST_WORK = 2**32  # multiplications that a look may take
WORK_A_SECOND = 2**30  # that any machine does
SHARE = 1 / 8  # of the time of a search that a look may take
MOST_ROWS = 16  # of each head
SUMS, SCORES = 64.0, 8.0  # roundoffs of softmax and sums, and of scores, that a row may be off


class Place(NamedTuple):
    """A row that is looked at; of a call that is cut into several parts, the sequence is the part."""

    excess: float  # its error over what rounding makes, roughly
    sequence: int
    head: int
    row: int


def worst_place(checked, arrays, options, given, spec, seconds=math.inf) -> Place | None:
    """The row of the largest error; None where looking at every head of every sequence would take longer
    than the time allows, or where only the oracle knows the form.

    Of the rows that are not compared, one that is NaN, infinite or 0 throughout comes first where no other
    row shows an error.
    """
    count = _rows_affordable(checked, min(LARGEST_WORK, WORK_A_SECOND * SHARE * seconds))
    if not checked.form.public or not count:
        return None
    rows = lambda q_len: picked_rows(q_len, count, 0)
    function = checked.form.function
    reference = reference_results(function, arrays, options, spec, reference="float64", rows=rows)
    wanted = dict(zip(RESULTS, reference.results, strict=True))
    pieces = {
        result: tuple(split_result(checked, result, array) for array in (given[result], wanted[result]))
        for result in given
    }
    places, odd = [], []
    for n, part in enumerate(part_outlines(checked)):
        own = {result: [next(array) for array in pair] for result, pair in pieces.items()}
        if not own[OUTPUT][0].size:
            continue
        looked_at = rows(part.q_len)
        excess = sum(_excess(result, *pair, looked_at, spec) for result, pair in own.items())
        places.append(_place(excess, looked_at, n, checked))
        odd += _odd_rows(own[OUTPUT][0], looked_at, n, checked)
    worst = max(places, default=None)
    return odd[0] if odd and worst.excess <= 1 else worst


def _rows_affordable(checked, work):
    """How many rows of each head that much work is enough for."""
    parts = (part for part in part_outlines(checked) if part.q_len)
    one_row = sum(
        math.prod(part.query.shape[:2]) * max(part.kv_len, 1) * (part.head_dim + part.v_head_dim)
        for part in parts
    )
    return int(min(work // one_row, MOST_ROWS)) if one_row else 0


def _excess(result, got, want, rows, spec):
    """The error of the rows that are looked at over what rounding makes, (N, H, rows)."""
    got, want = (array[:, :, rows].astype(np.float64) for array in (got, want))
    sums = max(spec.softmax.unit_roundoff, spec.accumulator_roundoff)
    scores = spec.score.unit_roundoff + spec.scaled_query.unit_roundoff
    relative = SUMS * sums + SCORES * scores + 2 * spec.exp_error + result.form(spec).unit_roundoff
    fine, same = comparable(want, got)
    size = np.where(np.isfinite(want), np.abs(want), 0.0)
    if result.has_dims:
        relative += 2 * spec.weight.unit_roundoff
        size = size + np.sqrt(np.mean(size**2, axis=-1, keepdims=True))
    else:
        size = size + 4.0
    allowed = relative * size + result.form(spec).half_subnormal_step
    with np.errstate(all="ignore"):
        excess = np.where(fine, np.abs(got - want) / allowed, np.where(same, 0.0, np.inf))
    return excess.max(-1, initial=0.0) if result.has_dims else excess


def _place(excess, rows, n, checked):
    """The row of the largest excess (N, H, rows) of part n."""
    entry, head, row = np.unravel_index(int(np.argmax(excess)), excess.shape)
    return _named(float(excess[entry, head, row]), entry, head, rows[row], n, checked)


def _odd_rows(got, rows, n, checked):
    """The first row of part n that is not looked at and is NaN, infinite or 0 throughout, if any."""
    odd = ~np.isfinite(got).all(-1) | (got == 0).all(-1)
    odd[:, :, rows] = False
    if odd.any():
        yield _named(0.0, *np.unravel_index(int(np.argmax(odd)), odd.shape), n, checked)


def _named(excess, entry, head, row, n, checked):
    return Place(excess, int(entry) if checked.num_parts == 1 else n, int(head), int(row))
