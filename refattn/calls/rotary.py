"""Dense attention whose query and key are given before their rotary embedding; the oracle takes such
calls.
"""

from dataclasses import dataclass, replace

import numpy as np

from refattn.calls.dense import DENSE, Problem, attention_problem
from refattn.calls.form import Checked, Form


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of the first `rotary_dim` dims: pairs (i, i + dim/2) for "half", (2i, 2i + 1)
    for "interleaved".
    """

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
        first, second = (
            (slice(0, half), slice(half, 2 * half))
            if self.layout == "half"
            else (slice(0, 2 * half, 2), slice(1, 2 * half, 2))
        )
        cos, sin, turned = np.cos(angle), np.sin(angle), x.copy()
        turned[..., first] = x[..., first] * cos - x[..., second] * sin
        turned[..., second] = x[..., first] * sin + x[..., second] * cos
        return turned


@dataclass(frozen=True, eq=False)
class RotaryProblem(Checked):
    """Dense attention whose query and key still have to be rotated: row i by q_offset + i, key j by j."""

    dense: Problem
    rope: Rope

    @property
    def form(self):
        return ROTARY

    @property
    def output_shape(self):
        return self.dense.output_shape

    @property
    def input_dtype(self):
        return self.dense.query.dtype

    def rotated(self, q_rope: Rope | None = None, k_rope: Rope | None = None) -> Problem:
        """The dense problem with query and key rotated, by default as the call says."""
        dense, q_rope, k_rope = self.dense, q_rope or self.rope, k_rope or self.rope
        key = k_rope.rotate(dense.key, np.arange(dense.kv_len))
        return replace(dense, query=q_rope.rotate(dense.query, dense.position[..., None, :]), key=key)

    def part(self, n):
        return self.rotated()

    def outline(self, n):
        return self.dense


def rotary_problem(query, key, value, *, rope, **options):
    """Check a dense call whose query and key are given before rotation."""
    if not isinstance(rope, Rope):
        raise TypeError(f"rope must be a Rope; got rope={rope!r}.")
    return RotaryProblem(attention_problem(query, key, value, **options), rope)


ROTARY = Form(
    name="rotary",
    function="rotary_attention",
    arrays=DENSE.arrays,
    results=DENSE.results,
    check=rotary_problem,
    structure={"rope": ""},
    public=False,
)
