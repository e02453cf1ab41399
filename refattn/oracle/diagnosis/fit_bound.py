"""The bound of `check` for a hypothesis: how much of it is used by what the hypothesis leaves of the error.

A mistake that changes inputs or options turns the call into another call; its bound is that call's own, and
the number is the one that `check` gives for it. A mistake inside the algorithm has no call of its own: the
bound is that of the unbroken call, widened where the broken one has larger sums or scores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from refattn.oracle.bounds.bound import FAILURE_PROBABILITY, bound_tile, hoeffding_multiplier
from refattn.oracle.bounds.operands import Call, operands
from refattn.oracle.bounds.results import RESULTS, Result
from refattn.oracle.bounds.row_blocks import tiles
from refattn.oracle.diagnosis.evidence import Evidence
from refattn.oracle.diagnosis.hypotheses import Hypothesis
from refattn.oracle.mistakes.record import stages_of
from refattn.oracle.mistakes.wrong_kernel import changed_call, dense_part, possible, run_form
from refattn.oracle.simulated.staged import Sample
from refattn.oracle.verdict.check import compare_tile
from refattn.oracle.verdict.measure import Measure


@dataclass(frozen=True)
class Use:
    """Largest error over the tight bound, the tiers of `check` that fail, and the tight bound of each result
    in the order of the evidence."""

    used: float
    failed: tuple[str, ...]
    tight: dict[Result, np.ndarray] | None = None

    @property
    def passed(self) -> bool:
        return not self.failed

    @classmethod
    def of(cls, report) -> Use:
        """That of a report of `check`: the number of its summary."""
        return cls(_largest_use(report.measures), report.failed)


def _largest_use(measures):
    """Largest error over the tight bound as a summary gives it; inf where NaN or infinities are
    misplaced."""
    if any(measure.misplaced for measure in measures):
        return math.inf
    return max(
        (measure.use_tight for measure in measures if measure.result.principal or measure.failed),
        default=0.0,
    )


def bound_use(evidence: Evidence, hypothesis: Hypothesis = Hypothesis(), spec=None) -> Use:  # noqa: B008 (frozen)
    """Judge what a hypothesis that `evidence.fit` can predict leaves of the error; no hypothesis: the
    result itself. `spec` in place of the evidence's own.
    """
    others, checked, samples = hypothesis.others, evidence.checked, evidence.samples
    given = evidence.reread(hypothesis.rereads[0]) if hypothesis.rereads else evidence.given
    with np.errstate(all="ignore"):
        predicted, simple = (
            run_form(checked, *mistakes, tile=hypothesis.tile, samples=samples, with_size=True)
            for mistakes in (others, _without_stages(others))
        )
    changed = _changed_parts(checked, samples, others, hypothesis.tile)
    measures, tight = [], {result: [np.zeros(0)] for result in given}
    for part, sample, got, broken, unbroken in zip(
        changed, samples, evidence.pieces(given), predicted, simple, strict=True
    ):
        if part is None:
            continue
        wanted, grown = broken[: len(RESULTS)], _growth(evidence, broken, unbroken)
        bounds = [np.zeros(np.shape(array)) for array in wanted]
        for at, place in _places(part[0], sample):
            here = {result: array[at] for result, array in got.items()}
            cut = [[array[at] for array in arrays] for arrays in (wanted, grown)]
            found, *bounded = _judge_place(
                spec or evidence.spec, *part, place, sample.rows, here, *cut, checked.output_shape
            )
            measures += found
            for array, values in zip(bounds, bounded, strict=True):
                array[at] = values
        for result, array in zip(RESULTS, bounds, strict=True):
            if result in tight:
                tight[result].append(array.ravel())
    failed = dict.fromkeys(f"{measure.name} {tier}" for measure in measures for tier in measure.failed)
    flat = {result: np.concatenate(arrays) for result, arrays in tight.items()}
    return Use(_largest_use(measures), tuple(failed), flat)


def _without_stages(mistakes):
    return tuple(replace(mistake, stages={}, deliver=None) for mistake in mistakes)


def _changed_parts(checked, samples, mistakes, tile):
    """(dense problem as the mistakes leave it, latent problem behind it or None), one a part that is looked
    at, else None."""
    of_form = [mistake for mistake in mistakes if mistake.of_form and possible(mistake, checked)]
    changed, cut = changed_call(checked, of_form)
    latent = changed if checked.form.projects and cut is None else None
    for n, sample in enumerate(samples):
        if sample.left_out:
            yield None
            continue
        dense = dense_part(changed, n, cut)
        plain = [mistake for mistake in mistakes if not mistake.of_form and mistake.applies(dense)]
        yield stages_of(*_without_stages(plain), tile=tile).prepare(dense), latent


def _places(problem, sample: Sample):
    """(index into the sampled results, (sequences, query heads, key heads) as slices): one for all, or one a
    sampled head; never a copy."""
    sequences, heads = len(problem.query), problem.num_heads
    if len(sample.sequences) == sequences and len(sample.heads) == heads:
        yield (
            (slice(None), slice(None)),
            (slice(0, sequences), slice(0, heads), slice(0, problem.num_kv_heads)),
        )
        return
    for i, sequence in enumerate(sample.sequences):
        for j, head in enumerate(sample.heads):
            here = [slice(int(n), int(n) + 1) for n in (sequence, head, head // problem.group_size)]
            yield (slice(i, i + 1), slice(j, j + 1)), tuple(here)


def _judge_place(spec, problem, latent, place, rows, got, wanted, grown, whole):
    part = _part(problem, latent, place, spec)
    multiplier = hoeffding_multiplier(Call(iter(()), whole), FAILURE_PROBABILITY)

    def all_rows(values, fill=0.0):
        """Values of the sampled rows in an array of all rows."""
        array = np.full((*values.shape[:2], problem.q_len, *values.shape[3:]), fill)
        array[:, :, rows] = values
        return array

    exact, growth = [all_rows(x) for x in wanted], [all_rows(x, 1.0) for x in grown]
    actual = {result: all_rows(values) for result, values in got.items()}
    call, tight = Call(iter([part]), exact[0].shape), [np.zeros_like(array) for array in exact]
    measures = [Measure(result, array.shape) for result, array in actual.items()]
    for tile in tiles(call, exact, rows=lambda q_len: rows):
        bounds = bound_tile(tile, spec, multiplier)
        for (result, bound), grown_by, whole_tight in zip(bounds.items(), growth, tight, strict=True):
            for limit in (bound.hard, bound.tight, bound.sigma):
                limit *= tile.place.cut(result, grown_by)
            tile.place.write(result, whole_tight, bound.tight)
        for measure in measures:
            compare_tile(measure, actual[measure.result], tile, bounds[measure.result], spec)
    for measure in measures:
        measure.finish()
    return measures, *(array[:, :, rows] for array in tight)


def _growth(evidence, predicted, simple):
    """How much larger the simple bound of the broken algorithm is than that of the unbroken one: 1 or more,
    for each number of each of `RESULTS`."""
    with np.errstate(all="ignore"):
        pairs = zip(evidence.simple_bounds(predicted), evidence.simple_bounds(simple), strict=True)
        return [np.nan_to_num(np.maximum(wide / narrow, 1.0), nan=1.0, posinf=1.0) for wide, narrow in pairs]


def _part(problem, latent, place, spec):
    """The operands of one place, with the options of the changed problem."""
    sequences, heads, kv_heads = place
    own = problem.options_at(per_score=(sequences, heads), per_head=(sequences, heads), per_entry=sequences)
    fixed = {"kv_lengths": own.kv_lengths, "scale": own.scale}
    if latent is not None:
        lead = lambda array: array.reshape(-1, *array.shape[latent.q_nope.ndim - 3 :])[sequences]
        arrays = (
            lead(latent.q_nope)[:, heads],
            lead(latent.q_rope)[:, heads],
            lead(latent.kv_latent),
            lead(latent.k_rope),
            latent.w_uk[heads],
            latent.w_uv[heads],
        )
        call = operands("latent_attention", arrays, {**fixed, "form": latent.implementation}, spec)
    else:
        arrays = (
            problem.query[sequences, heads],
            problem.key[sequences, kv_heads],
            problem.value[sequences, kv_heads],
        )
        call = operands("attention", arrays, fixed, spec)
    return replace(next(call.parts), options=own)
