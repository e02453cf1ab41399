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
from refattn.oracle.bounds.results import RESULTS
from refattn.oracle.bounds.row_blocks import tiles
from refattn.oracle.diagnosis.hypotheses import Evidence, Hypothesis
from refattn.oracle.mistakes.record import stages_of
from refattn.oracle.mistakes.run import changed_call, dense_part, possible, run_form
from refattn.oracle.simulated.staged import Sample
from refattn.oracle.verdict.check import compare_tile
from refattn.oracle.verdict.report import Measure


@dataclass(frozen=True)
class Use:
    """Largest error over the tight bound, the tiers of `check` that fail, and the tight bounds of output and
    lse in the order of the evidence."""

    used: float
    failed: tuple[str, ...]
    tight: tuple[np.ndarray, np.ndarray] | None = None

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
    """Judge what a hypothesis leaves of the error; no hypothesis: the result itself.

    Parameters
    ----------
    evidence : Evidence
    hypothesis : Hypothesis
        One that `evidence.fit` can predict.
    spec : KernelSpec, optional
        In place of the evidence's own.
    """
    rereads = [mistake for mistake in hypothesis.mistakes if mistake.reread is not None]
    others = tuple(mistake for mistake in hypothesis.mistakes if mistake.reread is None)
    actual, lse = evidence.reread(rereads[0]) if rereads else (evidence.actual, evidence.lse)
    with np.errstate(all="ignore"):
        predicted = run_form(
            evidence.checked, *others, tile=hypothesis.tile, samples=evidence.samples, with_size=True
        )
        simple = run_form(
            evidence.checked,
            *_without_stages(others),
            tile=hypothesis.tile,
            samples=evidence.samples,
            with_size=True,
        )
    changed = _changed_parts(evidence.checked, evidence.samples, others, hypothesis.tile)
    observed = evidence.pieces(actual, lse)
    whole = evidence.checked.output_shape
    measures, tight = [], [[] for _ in RESULTS]
    for part, sample, *results in zip(changed, evidence.samples, observed, predicted, simple, strict=True):
        if part is None:
            continue
        problem, latent = part
        got, wanted, grown = results[0], results[1][:2], _growth(evidence, *results[1:])
        bounds = [np.zeros(np.shape(array)) for array in wanted]
        for at, place in _places(problem, sample):
            cut = [
                [None if array is None else array[at] for array in arrays] for arrays in (got, wanted, grown)
            ]
            found, *bounded = _judge_place(
                spec or evidence.spec, problem, latent, place, sample.rows, *cut, whole
            )
            measures += found
            for array, values in zip(bounds, bounded, strict=True):
                array[at] = values
        for flat, array in zip(tight, bounds, strict=True):
            flat.append(array.ravel())
    failed = tuple(
        dict.fromkeys(f"{measure.name} {tier}" for measure in measures for tier in measure.failed)
    )
    given = (evidence.actual, evidence.lse)
    flat = (
        np.concatenate([np.zeros(0), *([] if array is None else arrays)])
        for array, arrays in zip(given, tight, strict=True)
    )
    return Use(_largest_use(measures), failed, tuple(flat))


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
    actual = {
        result: all_rows(values) for result, values in zip(RESULTS, got, strict=True) if values is not None
    }
    call, tight = Call(iter([part]), exact[0].shape), [np.zeros_like(array) for array in exact]
    measures = [Measure(result, array.shape, call.lse_shape) for result, array in actual.items()]
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
    for each output and lse."""
    with np.errstate(all="ignore"):
        pairs = zip(evidence.simple_bound(predicted), evidence.simple_bound(simple), strict=True)
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
