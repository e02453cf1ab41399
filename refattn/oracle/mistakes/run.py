"""Run the staged kernel on a call of any form, with mistakes or without."""

from __future__ import annotations

import numpy as np

from refattn.calls.form import Checked
from refattn.calls.registry import form_of
from refattn.oracle.mistakes.record import Mistake, arithmetic_of, stages_of
from refattn.oracle.simulated.staged import Sample, one_batch_axis, run_stages


def checked_call(*arrays, **arguments) -> Checked:
    """Check a call of whatever form its arguments show, and leave it uncut so that mistakes can cut it."""
    return form_of(arrays, arguments).check(*arrays, **arguments).uncut()


def dense_parts(checked, change_form=None):
    """The dense problems of a call, with one batch axis; `change_form` is a mistake in how they are cut."""
    with np.errstate(all="ignore"):
        return [one_batch_axis(part.problem) for part in checked.parts(change_form)]


def changed_call(checked, mistakes):
    """The call and the way to cut it, as at most one mistake of its form leaves them."""
    for mistake in mistakes:
        return mistake.change_call(checked) if mistake.change_call else checked, mistake.change_form
    return checked, None


def split_output(checked, array):
    """Cut an output of the whole call, or None, into those of `dense_parts`: (N, H, T, E)."""
    for part in checked.parts():
        piece = None if array is None else part.of_output(array)
        yield None if piece is None else piece.reshape(-1, *piece.shape[-3:]) if piece.size else _empty(piece, 3)


def split_lse(checked, array):
    """The same of an lse: (N, H, T)."""
    for part in checked.parts():
        piece = None if array is None else part.of_lse(array)
        yield None if piece is None else piece.reshape(-1, *piece.shape[-2:]) if piece.size else _empty(piece, 2)


def _empty(piece, kept):
    """An array without elements with its batch axes joined; -1 would be ambiguous."""
    batch = int(np.prod(piece.shape[:-kept], dtype=np.int64))
    return piece.reshape(batch, *piece.shape[-kept:])


def joined_results(checked, results):
    """Output and lse of the whole call from those of its dense parts."""
    output, lse = np.zeros(checked.output_shape), np.zeros(checked.lse_shape)
    for number, (part, (part_output, part_lse)) in enumerate(zip(checked.parts(), results, strict=True)):
        if number == 0:  # the results of all parts have the dtype of the kernel
            output, lse = output.astype(part_output.dtype), lse.astype(part_lse.dtype)
        target = part.of_output(output)
        target[...] = part_output.reshape(target.shape)
        target = part.of_lse(lse)
        target[...] = part_lse.reshape(target.shape)
    return output, lse


def run_form(
    checked,
    *mistakes: Mistake,
    tile: int = 64,
    own: bool = False,
    samples: list[Sample] | None = None,
    with_size: bool = False,
) -> list[tuple[np.ndarray, ...]] | None:
    """Output and lse of every dense part of a call, computed by a kernel that makes these mistakes.

    Parameters
    ----------
    checked
        What `checked_call` returns.
    *mistakes : Mistake
    tile : int
    own : bool
        Round as the input dtype's kernels do, instead of predicting in float64.
    samples : list of Sample, optional
        One a part.
    with_size : bool
        As `run_stages`.

    Returns
    -------
    list of (output, lse), each with one batch axis, or None where two mistakes replace the same stage or the same cut.
    """
    of_form = [mistake for mistake in mistakes if mistake.of_form and possible(mistake, checked)]
    if len(of_form) > 1 or stages_of(*mistakes) is None:
        return None
    arithmetic = arithmetic_of(checked.input_dtype, *mistakes, tile=tile, own=own)
    parts = dense_parts(*changed_call(checked, of_form))
    results = []
    for part, sample in zip(parts, samples or [None] * len(parts), strict=True):
        stages = stages_of(*(m for m in mistakes if not m.of_form and m.applies(part)), tile=tile)
        results.append(run_stages(part, stages, arithmetic, sample, with_size))
    return results


def possible(mistake: Mistake, checked) -> bool:
    """Whether a mistake can show on this call at all."""
    if mistake.form not in ("any", checked.form.name):
        return False
    if mistake.of_form:
        return mistake.applies(checked)
    return any(map(mistake.applies, dense_parts(checked)))
