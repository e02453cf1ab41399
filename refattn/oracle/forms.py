"""The forms attention comes in (dense, packed, paged, latent, rotary), reduced to dense problems.

`dense_part` is the one place where a form turns into dense attention, and the place a form's own mistakes replace.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refattn.oracle.mistakes.record import Mistake, arithmetic_of, stages_of
from refattn.oracle.staged import Sample, one_batch_axis, run_stages
from refattn.problem import (
    LatentProblem,
    Options,
    PackedProblem,
    PagedProblem,
    Problem,
    attention_problem,
    cut_options,
    latent_problem,
    packed_problem,
    paged_problem,
)


KEPT_SIZE = 2**26  # elements of keys and values of one form that are kept gathered
_KNOWN_PARTS: weakref.WeakKeyDictionary[Any, dict[int, Problem]] = weakref.WeakKeyDictionary()
_KNOWN_OUTLINES: weakref.WeakKeyDictionary[Any, list[Problem]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of the first `rotary_dim` dims: pairs (i, i + dim/2) for "half", (2i, 2i + 1) for "interleaved"."""

    theta: float = 10000.0
    layout: str = "half"
    rotary_dim: int | None = None
    shift: int = 0
    direction: int = 1
    at_start: bool = False  # every row at the position of the first (FlashAttention, non-causal)
    on: bool = True

    def rotate(self, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Rotate (..., L, D) by positions (..., L)."""
        x = np.asarray(x, np.float64)
        dim = self.rotary_dim or x.shape[-1]
        if not self.on or dim < 2:
            return x
        positions = np.asarray(positions, np.float64) + self.shift
        if self.at_start:
            positions = np.broadcast_to(positions[..., :1], positions.shape)
        half = dim // 2
        angle = self.direction * positions[..., None] * self.theta ** (-2.0 * np.arange(half) / dim)
        first, second = (slice(0, half), slice(half, 2 * half)) if self.layout == "half" else (slice(0, 2 * half, 2), slice(1, 2 * half, 2))
        cos, sin, turned = np.cos(angle), np.sin(angle), x.copy()
        turned[..., first] = x[..., first] * cos - x[..., second] * sin
        turned[..., second] = x[..., first] * sin + x[..., second] * cos
        return turned


@dataclass(frozen=True, eq=False)
class RotaryProblem:
    """Dense attention whose query and key still have to be rotated: row i by q_offset + i, key j by j."""

    dense: Problem
    rope: Rope


def checked_form(*arrays, rope: Rope | None = None, **options):
    """Validate the arguments of any attention function; which one is read off the arguments.

    Six arrays are the latent form; `cu_q` means packed, `block_table` means paged, `rope` means unrotated query and key.
    """
    if len(arrays) == 6:
        return latent_problem(*arrays, options.pop("form", "absorb"), **options)
    if len(arrays) != 3:
        raise TypeError(f"arrays must be query, key, value or the six of latent_attention; got {len(arrays)} arrays.")
    if "cu_q" in options:
        return packed_problem(*arrays, options.pop("cu_q"), options.pop("cu_kv"), **options)
    if "block_table" in options:
        return paged_problem(*arrays, options.pop("block_table"), options.pop("kv_lengths", None), **options)
    dense = attention_problem(*arrays, **options)
    return dense if rope is None else RotaryProblem(dense, rope)


def form_name(checked) -> str:
    kinds = {PackedProblem: "packed", PagedProblem: "paged", LatentProblem: "latent", RotaryProblem: "rope"}
    return kinds.get(type(checked), "attention")


def input_dtype(checked) -> np.dtype:
    if isinstance(checked, RotaryProblem):
        checked = checked.dense
    return (checked.q_nope if isinstance(checked, LatentProblem) else checked.query).dtype


def output_shape(checked) -> tuple[int, ...]:
    if isinstance(checked, RotaryProblem):
        checked = checked.dense
    if isinstance(checked, LatentProblem):
        return checked.q_nope.shape[:-1] + (checked.w_uv.shape[1],)
    value = checked.value_pages if isinstance(checked, PagedProblem) else checked.value
    return checked.query.shape[:-1] + (value.shape[-1],)


def _options(checked) -> dict[str, Any]:
    return {name: getattr(checked, name) for name in Options.__dataclass_fields__}


def latent_dense(p: LatentProblem) -> Problem:
    """MLA with keys and values of every head made explicit."""
    latent, rope = np.asarray(p.kv_latent, np.float64)[..., None, :, :], np.asarray(p.k_rope, np.float64)
    k_nope = latent @ np.swapaxes(np.asarray(p.w_uk, np.float64), -1, -2)
    k_rope = np.broadcast_to(rope[..., None, :, :], k_nope.shape[:-1] + rope.shape[-1:])
    return Problem(
        query=np.concatenate([p.q_nope, p.q_rope], axis=-1, dtype=np.float64),
        key=np.concatenate([k_nope, k_rope], axis=-1),
        value=latent @ np.swapaxes(np.asarray(p.w_uv, np.float64), -1, -2),
        **_options(p),
    )


def rotary_dense(p: RotaryProblem, q_rope: Rope | None = None, k_rope: Rope | None = None) -> Problem:
    dense = p.dense
    rows = np.asarray(dense.q_offset)[..., None, None] + np.arange(dense.q_len)
    return replace(
        dense,
        query=(q_rope or p.rope).rotate(dense.query, rows),
        key=(k_rope or p.rope).rotate(dense.key, np.arange(dense.kv_len)),
    )


def part_count(checked) -> int:
    """How many dense problems a form is: one for the dense, latent and rotary forms, one a sequence for the others."""
    return {PackedProblem: lambda: checked.num_sequences, PagedProblem: lambda: len(checked.block_table)}.get(type(checked), lambda: 1)()


def dense_part(checked, n: int, change_form: Callable | None = None) -> Problem:
    """Dense problem n of a form, with one batch axis; kept for the next call unless `change_form` makes it another one or it is large."""
    if isinstance(checked, Problem):
        return one_batch_axis(checked)
    known = _KNOWN_PARTS.setdefault(checked, {})
    if change_form is None and n in known:
        return known[n]
    with np.errstate(all="ignore"):
        if isinstance(checked, PackedProblem | PagedProblem):
            part = (change_form or type(checked).sequence)(checked, n)
        elif isinstance(checked, LatentProblem):
            part = (change_form or latent_dense)(checked)
        else:
            part = (change_form or rotary_dense)(checked)
    part = one_batch_axis(part)
    if change_form is None and sum(own.key.size + own.value.size for own in (*known.values(), part)) <= KEPT_SIZE:
        known[n] = part
    return part


def part_outlines(checked) -> list[Problem]:
    """The dense problems of a form without their numbers: the options, and arrays of the right shape in which every element is one zero.

    Most questions are of shapes and options only, and gathering the pages of a whole cache for each of them would take most of the time.
    """
    if isinstance(checked, Problem):
        return [one_batch_axis(checked)]
    if checked not in _KNOWN_OUTLINES:
        if isinstance(checked, PackedProblem):
            parts = [checked.sequence(n) for n in range(checked.num_sequences)]
        elif isinstance(checked, PagedProblem):
            parts = [_paged_outline(checked, b) for b in range(len(checked.block_table))]
        elif isinstance(checked, LatentProblem):
            parts = [_latent_outline(checked)]
        else:
            parts = [checked.dense]
        _KNOWN_OUTLINES[checked] = [one_batch_axis(part) for part in parts]
    return _KNOWN_OUTLINES[checked]


def _paged_outline(p: PagedProblem, b: int) -> Problem:
    length, kv_heads = int(p.kv_lengths[b]), p.key_pages.shape[1]
    key, value = (np.broadcast_to(np.float32(0), (kv_heads, length, pages.shape[-1])) for pages in (p.key_pages, p.value_pages))
    return Problem(query=p.query[b], key=key, value=value, **cut_options(p, b, (b, ..., slice(length))))


def _latent_outline(p: LatentProblem) -> Problem:
    *batch, heads, _, nope = p.q_nope.shape
    kv_len, rope = p.k_rope.shape[-2:]
    empty = lambda length, width: np.broadcast_to(np.float64(0), (*batch, heads, length, width))  # noqa: E731
    return Problem(query=empty(p.q_nope.shape[-2], nope + rope), key=empty(kv_len, nope + rope), value=empty(kv_len, p.w_uv.shape[1]), **_options(p))


def split_result(checked, array: np.ndarray | None) -> list[np.ndarray | None]:
    """Cut an output or lse of the whole form into the pieces that belong to the dense parts, each with one batch axis."""
    if isinstance(checked, PackedProblem):
        spans = zip(checked.cu_q[:-1], checked.cu_q[1:], strict=True)
        return [None if array is None else array[None, :, first:stop] for first, stop in spans]
    if isinstance(checked, PagedProblem):
        return [None if array is None else array[b : b + 1] for b in range(len(checked.block_table))]
    if array is None:
        return [None]
    kept = len(output_shape(checked)) - 3
    batch = array.shape[:kept]
    return [array.reshape((int(np.prod(batch, dtype=np.int64)),) + array.shape[kept:])]


def join_results(checked, parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of `split_result` for the results of unsampled runs."""
    if isinstance(checked, PackedProblem):
        if not parts:
            shape = output_shape(checked)
            return np.zeros(shape), np.zeros(shape[:-1])
        return np.concatenate([o[0] for o, _ in parts], axis=-2), np.concatenate([m[0] for _, m in parts], axis=-1)
    if isinstance(checked, PagedProblem):
        return np.concatenate([o for o, _ in parts]), np.concatenate([m for _, m in parts])
    output, lse = parts[0]
    shape = output_shape(checked)
    return output.reshape(shape), lse.reshape(shape[:-1])


def run_form(
    checked, *mistakes: Mistake, tile: int = 64, own: bool = False, samples: list[Sample] | None = None, with_size: bool = False
) -> list[tuple[np.ndarray, ...]] | None:
    """Output and lse of every dense part of a form, computed by a kernel that makes these mistakes.

    Parameters
    ----------
    checked
        What `checked_form` returns.
    *mistakes : Mistake
    tile : int
    own : bool
        Round as the input dtype's kernels do, instead of predicting in float64.
    samples : list of Sample, optional
        One a part; parts of which nothing is looked at are not computed.
    with_size : bool
        As `run_stages`.

    Returns
    -------
    list of (output, lse), each with one batch axis, or None where two mistakes replace the same stage or form step, or hold
    numbers fitted on other key heads.
    """
    changes = [mistake.change_form for mistake in mistakes if mistake.change_form is not None and possible(mistake, checked)]
    if len(changes) > 1 or stages_of(*mistakes) is None or not all(_fits_heads(mistake, checked) for mistake in mistakes):
        return None
    arithmetic = arithmetic_of(input_dtype(checked), *mistakes, tile=tile, own=own)
    results = []
    for n in range(part_count(checked)):
        sample = samples[n] if samples else None
        if sample is not None and sample.left_out:
            results.append(_nothing(output_shape(checked)[-1], with_size))
            continue
        part = dense_part(checked, n, *changes)
        stages = stages_of(*(m for m in mistakes if m.change_form is None and m.applies(part)), tile=tile)
        results.append(run_stages(part, stages, arithmetic, sample, with_size))
    return results


def _fits_heads(mistake, checked):
    """Whether numbers fitted for each key head belong to the heads of this problem."""
    return mistake.fitted_kv_heads in (0, *(part.num_kv_heads for part in part_outlines(checked)))


def _nothing(width, with_size):
    """The results of a part that is not looked at."""
    output, lse = np.zeros((0, 0, 0, width)), np.zeros((0, 0, 0))
    return (output, lse, output, lse) if with_size else (output, lse)


def possible(mistake: Mistake, checked) -> bool:
    """Whether a mistake can show on this problem at all."""
    if mistake.form == form_name(checked):
        if mistake.change_form is not None:
            return mistake.applies(checked)
    elif mistake.form != "attention":
        return False
    return any(map(mistake.applies, part_outlines(checked)))
