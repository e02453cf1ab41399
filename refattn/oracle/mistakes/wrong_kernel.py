"""Run the staged kernel on a call of any form, with mistakes or without."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from refattn.calls.dense import Problem
from refattn.calls.form import Checked, Part
from refattn.calls.registry import form_of
from refattn.oracle.bounds.results import RESULTS, Result
from refattn.oracle.mistakes.record import Mistake, arithmetic_of, stages_of
from refattn.oracle.simulated.on_demand import LARGE, Kept, TooLargeError, keys_on_demand, latents_on_demand
from refattn.oracle.simulated.staged import Sample, one_batch_axis, run_stages

KEPT_SIZE = 2**26  # elements of keys and values of one call that are kept gathered
_KEPT: weakref.WeakKeyDictionary[Any, Kept] = weakref.WeakKeyDictionary()
_KNOWN_PARTS: weakref.WeakKeyDictionary[Any, dict[int, Problem]] = weakref.WeakKeyDictionary()
_KNOWN_OUTLINES: weakref.WeakKeyDictionary[Any, list[Problem]] = weakref.WeakKeyDictionary()


def checked_call(*arrays, **arguments) -> Checked:
    """Check a call of whatever form its arguments show, and leave it uncut so that mistakes can cut it."""
    return form_of(arrays, arguments).check(*arrays, **arguments).uncut()


def dense_part(checked, n: int, change_form: Callable | None = None, original=None) -> Problem:
    """Dense problem n of a call, with one batch axis; large keys and values of MLA are `OnDemand`.

    It is kept for the next call unless a mistake cuts it (`change_form`), or it is large. `original`: the
    call of which `checked` is a changed one; what is projected of the latents of both is computed once.
    """
    known = _KNOWN_PARTS.setdefault(checked, {})
    if change_form is None and n in known:
        return known[n]
    if change_form is None and checked.form.projects and _elements(checked.outline(n)) > LARGE:
        kept = _KEPT.setdefault(checked if original is None else original, Kept())
        known[n] = latents_on_demand(checked, one_batch_axis(checked.outline(n)), kept)
        return known[n]
    with np.errstate(all="ignore"):
        part = one_batch_axis((change_form or type(checked).part)(checked, n))
    if change_form is None and sum(map(_elements, (*known.values(), part))) <= KEPT_SIZE:
        known[n] = part
    return part


def _elements(part):
    return part.key.size + part.value.size


def part_outlines(checked) -> list[Problem]:
    """The dense problems of a call without their numbers, with one batch axis.

    Most questions are of shapes and options only, and gathering the pages of a whole cache for each of
    them would take most of the time.
    """
    if checked not in _KNOWN_OUTLINES:
        _KNOWN_OUTLINES[checked] = [one_batch_axis(checked.outline(n)) for n in range(checked.num_parts)]
    return _KNOWN_OUTLINES[checked]


def split_result(checked, result: Result, array):
    """Cut a result of the whole call into those of its dense parts, with one batch axis."""
    for n in range(checked.num_parts):
        piece = _of_part(checked, n, result, array)
        axes = piece.shape[-len(result.axes) :]
        # -1 would be ambiguous where there are no elements
        yield piece.reshape(math.prod(piece.shape[: -len(axes)]), *axes)


def joined_results(checked, parts):
    """The results of the whole call from those of its dense parts."""
    whole = []
    for i, result in enumerate(RESULTS):
        pieces = [part[i] for part in parts]
        array = np.zeros(result.shape(checked.output_shape), pieces[0].dtype if pieces else np.float64)
        for n, piece in enumerate(pieces):
            target = _of_part(checked, n, result, array)
            target[...] = piece.reshape(target.shape)
        whole.append(array)
    return tuple(whole)


def _of_part(checked, n, result, array):
    """The view of a whole result that belongs to dense part n."""
    part = Part(None, checked.place(n))
    return part.of_output(array) if result.has_dims else part.of_lse(array)


def run_form(
    checked,
    *mistakes: Mistake,
    tile: int = 64,
    own: bool = False,
    samples: list[Sample] | None = None,
    with_size: bool = False,
) -> list[tuple[np.ndarray, ...]] | None:
    """Results of every dense part of a call that `checked_call` checked, each with one batch axis,
    computed by a kernel that makes these mistakes; None where two mistakes replace the same stage or
    the same cut, hold numbers fitted on other key heads, or need all heads of keys that are too large.

    `own`: round as the input dtype's kernels do, instead of predicting in float64. `samples`: one a
    part; parts of which nothing is looked at are not computed. `with_size`: as `run_stages`.
    """
    of_form = [mistake for mistake in mistakes if mistake.of_form and possible(mistake, checked)]
    fitted = all(_fits_heads(mistake, checked) for mistake in mistakes)
    if len(of_form) > 1 or stages_of(*mistakes) is None or not fitted:
        return None
    arithmetic = arithmetic_of(checked.input_dtype, *mistakes, tile=tile, own=own)
    changed, cut = changed_call(checked, of_form)
    results = []
    for n in range(checked.num_parts):
        sample = samples[n] if samples else None
        if sample is not None and sample.left_out:
            results.append(_nothing(checked.output_shape[-1], with_size))
            continue
        part = keys_on_demand(dense_part(changed, n, cut, checked))
        stages = stages_of(*(m for m in mistakes if not m.of_form and m.applies(part)), tile=tile)
        try:
            results.append(run_stages(part, stages, arithmetic, sample, with_size))
        except TooLargeError:
            return None
    return results


def changed_call(checked, of_form):
    """The call and the way to cut it, as at most one mistake of its form leaves them."""
    for mistake in of_form:
        return mistake.change_call(checked) if mistake.change_call else checked, mistake.change_form
    return checked, None


def _fits_heads(mistake, checked):
    """Whether numbers fitted for each key head belong to the heads of this call."""
    return mistake.fitted_kv_heads in (0, *(part.num_kv_heads for part in part_outlines(checked)))


def _nothing(width, with_size):
    """The results of a part that is not looked at."""
    output, lse = np.zeros((0, 0, 0, width)), np.zeros((0, 0, 0))
    return (output, lse, output, lse) if with_size else (output, lse)


def possible(mistake: Mistake, checked) -> bool:
    """Whether a mistake can show on this call at all."""
    if mistake.form not in ("any", checked.form.name):
        return False
    if mistake.of_form:
        return mistake.applies(checked)
    return any(map(mistake.applies, part_outlines(checked)))
