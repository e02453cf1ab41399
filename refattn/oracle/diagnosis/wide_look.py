"""Where a large result is most wrong: some rows of every head of every sequence, beside a reference in
float64.

One broken sequence of many, or one head of it, shows in no sample of a few. What is looked at here is judged
only roughly, to find the place; the verdict is that of the bounds there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from refattn.oracle.bounds.reference import reference_results
from refattn.oracle.bounds.results import OUTPUT, RESULTS
from refattn.oracle.diagnosis.evidence import comparable
from refattn.oracle.diagnosis.location import one_row, ranges
from refattn.oracle.mistakes.wrong_kernel import part_outlines, split_result
from refattn.oracle.verdict.picked_rows import picked_rows

LARGEST_WORK = 2**32  # multiplications that a look may take
WORK_A_SECOND = 2**30  # that any machine does
SHARE = 1 / 8  # of the time of a search that a look may take
MOST_ROWS = 16  # of each head
SUMS, SCORES = 64.0, 8.0  # roundoffs of softmax and sums, and of scores, that a row may be off


class WorstRow(NamedTuple):
    """A row that is looked at; of a call that is cut into several parts, the sequence is the part."""

    excess: float  # its error over what rounding makes, roughly
    sequence: int
    head: int
    row: int


@dataclass(frozen=True)
class Look:
    """What a look at all heads of all sequences shows.

    Attributes
    ----------
    worst : WorstRow
    wrong : ndarray of int, (rows, 3)
        Sequence, head and row of what is off by more than rounding.
    counts : tuple of int
        How many sequences and heads there are.
    complete : bool
        Whether every row was compared.
    """

    worst: WorstRow
    wrong: np.ndarray
    counts: tuple[int, int]
    complete: bool

    @property
    def only_row(self) -> tuple[str, str] | None:
        """(id, words) when one row is wrong and all others were seen to be right."""
        if not self.complete or len(self.wrong) != 1:
            return None
        sequence, head, row = self.wrong[0].tolist()
        return one_row(sequence, head, row)

    @property
    def words(self) -> str:
        """Which sequences and heads are wrong, as a sentence; "" where all or none are."""
        said = []
        for name, numbers, count in zip(
            ("sequences", "query heads"), self.wrong.T, self.counts, strict=False
        ):
            if 0 < len(own := np.unique(numbers)) < count:
                said.append(f"{name} {ranges(own)} of {count}")
        return f"Rows of all heads were compared; wrong are {', '.join(said)}." if said else ""


def look_at(checked, arrays, options, given, spec, seconds=math.inf) -> Look | None:
    """Compare rows of every head of every sequence; None where that would take longer than the time allows,
    or where only the oracle knows the form.

    Of the rows that are not compared, one that is NaN, infinite or 0 throughout is the worst where no other
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
    places, odd, wrong, several = [], [], [], checked.num_parts > 1
    outlines = part_outlines(checked)
    for n, part in enumerate(outlines):
        own = {result: [next(array) for array in pair] for result, pair in pieces.items()}
        if not own[OUTPUT][0].size:
            continue
        looked_at = rows(part.q_len)
        excess = sum(_excess(result, *pair, looked_at, spec) for result, pair in own.items())
        at = np.argwhere(excess > 1) * [not several, 1, 1] + [n * several, 0, 0]
        wrong.append(np.column_stack([at[:, :2], looked_at[at[:, 2]]]))
        at = np.unravel_index(int(np.argmax(excess)), excess.shape)
        places.append(
            WorstRow(float(excess[at]), n if several else int(at[0]), int(at[1]), int(looked_at[at[2]]))
        )
        if (at := _odd_row(own[OUTPUT][0], looked_at)) is not None:
            odd.append(WorstRow(0.0, n if several else at[0], *at[1:]))
    worst = max(places)
    counts = len(outlines) if several else len(outlines[0].query), outlines[0].num_heads
    complete = all(part.q_len <= count for part in outlines)
    return Look(odd[0] if odd and worst.excess <= 1 else worst, np.concatenate(wrong), counts, complete)


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


def _odd_row(got, rows):
    """(entry, head, row) of the first row that is not compared and is NaN, infinite or 0 throughout; None
    where there is none."""
    odd = ~np.isfinite(got).all(-1) | (got == 0).all(-1)
    odd[:, :, rows] = False
    return tuple(map(int, np.unravel_index(int(np.argmax(odd)), odd.shape))) if odd.any() else None
