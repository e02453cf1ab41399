"""The forms attention comes in (dense, packed, paged, latent, rotary), reduced to dense problems.

`dense_parts` is the one place where a form turns into dense attention, and the place a form's own mistakes replace.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refattn.oracle.mistakes.record import Mistake, arithmetic_of, stages_of
from refattn.oracle.simulated.staged import Sample, one_batch_axis, run_stages
from refattn.calls.problem import (
    LatentProblem,
    Options,
    PackedProblem,
    PagedProblem,
    Problem,
    attention_problem,
    latent_problem,
    packed_problem,
    paged_problem,
)


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


def dense_parts(checked, change_form: Callable | None = None) -> list[Problem]:
    """The dense problems of any form: one for the dense, latent and rotary forms, one a sequence for the others."""
    with np.errstate(all="ignore"):
        if isinstance(checked, PackedProblem):
            cut = change_form or PackedProblem.sequence
            return [cut(checked, n) for n in range(checked.num_sequences)]
        if isinstance(checked, PagedProblem):
            cut = change_form or PagedProblem.sequence
            return [cut(checked, b) for b in range(len(checked.block_table))]
        if isinstance(checked, LatentProblem):
            return [(change_form or latent_dense)(checked)]
        if isinstance(checked, RotaryProblem):
            return [(change_form or rotary_dense)(checked)]
    return [checked]


def split_result(checked, array: np.ndarray | None) -> list[np.ndarray | None]:
    """Cut an output or lse of the whole form into the pieces that belong to `dense_parts`, each with one batch axis."""
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
        One a part.
    with_size : bool
        As `run_stages`.

    Returns
    -------
    list of (output, lse), each with one batch axis, or None where two mistakes replace the same stage or form step.
    """
    changes = [mistake.change_form for mistake in mistakes if mistake.change_form is not None and possible(mistake, checked)]
    if len(changes) > 1 or stages_of(*mistakes) is None:
        return None
    arithmetic = arithmetic_of(input_dtype(checked), *mistakes, tile=tile, own=own)
    parts = [one_batch_axis(part) for part in dense_parts(checked, *changes)]
    samples = samples or [None] * len(parts)
    results = []
    for part, sample in zip(parts, samples, strict=True):
        stages = stages_of(*(m for m in mistakes if m.change_form is None and m.applies(part)), tile=tile)
        results.append(run_stages(part, stages, arithmetic, sample, with_size))
    return results


def possible(mistake: Mistake, checked) -> bool:
    """Whether a mistake can show on this problem at all."""
    if mistake.form == form_name(checked):
        if mistake.change_form is not None:
            return mistake.applies(checked)
    elif mistake.form != "attention":
        return False
    return any(mistake.applies(one_batch_axis(part)) for part in dense_parts(checked))
