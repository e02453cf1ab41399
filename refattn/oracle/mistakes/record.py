"""What a mistake is: the change that turns a correct kernel into a wrong one, and the words for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refattn.calls.arrays import stored_once
from refattn.calls.dense import Problem
from refattn.calls.options import WORDS
from refattn.oracle.simulated.staged import CORRECT, Arithmetic, Stages


@dataclass(frozen=True)
class Mistake:
    """One way an attention kernel goes wrong, or one foreign convention."""

    id: str  # short name, used by tests and reports
    says: str  # what the kernel did, as the start of a sentence
    remedy: str = ""  # what makes our result agree with it, or what to change; may be empty
    needs: tuple[str, ...] = ()  # what a problem must have for the mistake to show: keys of `NEEDS`
    # Problem -> Problem: change of the inputs or options
    prepare: Callable[[Problem], Problem] | None = None
    # (Problem, tile) -> Problem: the same for mistakes that depend on the tile size
    prepare_tile: Callable[[Problem, int], Problem] | None = None
    # stages of `refattn.oracle.simulated.staged` it replaces
    stages: Mapping[str, Callable] = field(default_factory=dict)
    # (Problem, output, lse) -> (output, lse): change of the results, element by element
    deliver: Callable | None = None
    # (output, lse) -> (output, lse): a layout mistake of the whole result, and how to undo it. Shapes (N, H,
    # T, E) and (N, H, T).
    relayout: Callable | None = None
    reread: Callable | None = None
    form: str = "any"  # "any", or the name of the form it belongs to
    # change of the arrays and options of that form: checked call -> checked call
    change_call: Callable | None = None
    # (checked call, n) -> Problem: in the place of `Checked.part`, which cuts dense problem n out of a call
    # of that form
    change_form: Callable | None = None
    tiled: bool = False  # the result depends on the tile size
    rounding: bool = False  # the mistake is one of precision: it is predicted in the kernel's own arithmetic
    random: bool = False  # two runs differ; nothing can be predicted
    # key heads that its numbers were fitted on, one a head; with another number of them nothing can be
    # predicted. 0: any.
    fitted_kv_heads: int = 0
    families: tuple[str, ...] = ()  # input families that bring it out when ordinary data do not
    issues: tuple[str, ...] = ()  # public reports of it, "repository #number"

    @property
    def of_form(self) -> bool:
        """Whether it changes how a call of its form is read."""
        return self.change_call is not None or self.change_form is not None

    def applies(self, problem) -> bool:
        """Whether this dense problem, or the problem of the mistake's own form, gives the mistake a
        chance to show.
        """
        return all(NEEDS[name](problem) for name in self.needs)


def _some(array) -> bool:
    return bool(np.any(array))


def _hides(bias) -> bool:
    """Whether a bias holds -inf; looks at each stored number once."""
    if bias is None or not bias.size:
        return False
    return bool(np.min(stored_once(bias)) == -np.inf)


def _given(name: str) -> Callable[[Problem], bool]:
    return lambda p: getattr(p, name) is not None


def _squeezed(kv_heads: int, heads: int) -> bool:
    return 1 < kv_heads < heads


NEEDS: Mapping[str, Callable[[Problem], bool]] = {
    # words that are not a field being given are replaced below
    **{word: _given(option.name) for word, (option, *_) in WORDS.items()},
    "causal": lambda p: p.right == 0,
    "not causal": lambda p: p.right is None or p.right > 0,
    "left window": lambda p: p.left is not None,
    "no left window": lambda p: p.left is None,
    "no right side": lambda p: p.right is None,
    "past the keys": lambda p: _some(np.asarray(p.q_offset) + p.q_len - 1 > p.kv_len),
    "right window": lambda p: p.right is not None and p.right > 0,
    "two-sided window": lambda p: p.left is not None and bool(p.right),
    "bounded": lambda p: p.bounded,
    "position": lambda p: p.bounded or p.alibi_slopes is not None,
    "offset": lambda p: _some(p.q_offset),
    "rows before key 0": lambda p: _some(np.asarray(p.q_offset) < 0),
    "own offset": lambda p: _some(np.asarray(p.q_offset) != np.asarray(p.kv_lengths) - p.q_len),
    "lengths": lambda p: _some(np.asarray(p.kv_lengths) < p.kv_len),
    "no mask": lambda p: p.mask is None,
    "shifted": lambda p: p.bias is not None or p.alibi_slopes is not None,
    "lse": lambda p: True,  # whoever asks also checks that an lse was handed over
    "hidden": lambda p: (
        p.block_size is not None
        or p.bounded
        or p.mask is not None
        or _some(np.asarray(p.kv_lengths) < p.kv_len)
        or _hides(p.bias)
    ),
    "grouped": lambda p: p.num_heads > p.num_kv_heads,
    "several kv heads": lambda p: p.num_kv_heads > 1,
    "true groups": lambda p: _squeezed(p.num_kv_heads, p.num_heads),
    "several heads": lambda p: p.num_heads > 1,
    "several sequences": lambda p: int(np.prod(p.query.shape[:-3])) > 1,
    "square": lambda p: p.q_len == p.kv_len,
    "same head sizes": lambda p: p.head_dim == p.v_head_dim,
    "other head size": lambda p: p.head_dim != p.v_head_dim,
    "batch = heads": lambda p: int(np.prod(p.query.shape[:-3])) == p.num_heads > 1,
    "own scale": lambda p: not np.isclose(p.scale, p.head_dim**-0.5),
    "own mla scale": lambda p: not np.isclose(p.scale, (p.q_nope.shape[-1] + p.q_rope.shape[-1]) ** -0.5),
    "keys": lambda p: p.kv_len > 1,
    "rows": lambda p: p.q_len > 1,
    "several blocks": lambda p: p.block_size is not None and p.block_size < p.q_len,
    "short last block": lambda p: p.block_size is not None and bool(p.q_len % p.block_size),
    "negative scale": lambda p: p.scale < 0,
    "zero scale": lambda p: p.scale == 0,
    "left of zero": lambda p: p.left == 0,
    "offsets differ": lambda p: _some(np.diff(np.ravel(p.q_offset))),
    "slopes of sequences differ": lambda p: (
        p.alibi_slopes is not None and p.alibi_slopes.ndim == 2 and _some(np.diff(p.alibi_slopes, axis=0))
    ),
    "bias hides": lambda p: _hides(p.bias),
    "past 64 rows": lambda p: p.q_len > 64,
    "past 16 heads": lambda p: p.num_heads > 16,
    "past 2048 keys": lambda p: p.kv_len > 2048,
    "past 128 dims": lambda p: p.head_dim > 128,
    "slopes differ": lambda p: p.alibi_slopes is not None and _some(np.diff(p.alibi_slopes)),
}


def stages_of(*mistakes: Mistake, tile: int = 64) -> Stages | None:
    """The kernel that makes all these mistakes, or None where two claim the same stage."""
    changed: dict[str, Any] = {}
    for mistake in mistakes:
        if changed.keys() & mistake.stages.keys():
            return None
        changed.update(mistake.stages)

    def prepare(problem):
        for mistake in mistakes:  # the one before may have taken away what the next one needs
            if mistake.prepare is not None and mistake.applies(problem):
                problem = mistake.prepare(problem)
            if mistake.prepare_tile is not None and mistake.applies(problem):
                problem = mistake.prepare_tile(problem, tile)
        return problem.drawn()

    def deliver(problem, output, lse):
        for mistake in mistakes:
            if mistake.deliver is not None:
                output, lse = mistake.deliver(problem, output, lse)
        return output, lse

    return dataclasses.replace(CORRECT, **changed, prepare=prepare, deliver=deliver)


def arithmetic_of(dtype, *mistakes: Mistake, tile: int = 64, own: bool = False) -> Arithmetic:
    """float64 for a prediction; the kernel's own arithmetic where rounding is the mistake (or `own`)."""
    if own or any(mistake.rounding for mistake in mistakes):
        return Arithmetic.for_dtype(dtype, tile)
    return Arithmetic(tile=tile)
