"""A tiled attention kernel built from named stages, each of which can be replaced.

This is the online-softmax algorithm written the way fused kernels run it: one
tile of keys at a time, a running maximum, a running denominator and a running
output. `CORRECT` holds the right stage under every name. A mutant replaces one
of them (`refattn.oracle.mistakes`), and so does a hypothesis of `diagnose`, so
that a mistake is written down once.

Shapes inside: N sequences (all batch axes flattened), H query heads, T rows,
n keys of the current tile, D and E the head sizes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from refattn.calls.dense import Problem
from refattn.calls.options import PER_ENTRY, PER_HEAD, PER_SCORE
from refattn.exact.visibility import row_bounds
from refattn.oracle.simulated.on_demand import memory_of

SHARED_SIZE = 2**24  # elements of keys or values that are kept converted, and of scores
SCORING = ("score", "cap", "position_bias", "shift", "visible", "hide")  # stages that make the scores


@dataclass(frozen=True)
class Arithmetic:
    """Where a run rounds: the dtypes of its products, weights and results."""

    compute: Any = np.float64
    weights: Any = None
    output: Any = np.float64
    lse: Any = np.float64
    tile: int = 64

    @classmethod
    def for_dtype(cls, dtype, tile: int = 64) -> Arithmetic:
        """The arithmetic of a fused kernel on this input dtype.

        float64 stays float64. float32 computes in float32. The 16-bit types
        compute in float32 and round the weights to their own dtype before the
        second product, as the tensor-core kernels do.
        """
        dtype = np.dtype(dtype)
        if dtype == np.float64:
            return cls(tile=tile)
        if dtype == np.float32:
            return cls(np.float32, None, np.float32, np.float32, tile)
        return cls(np.float32, dtype, dtype, np.float32, tile)


@dataclass(frozen=True)
class Sample:
    """Which sequences, heads and rows a run computes (index arrays into the flattened problem).

    Runs on one sample share what they gather and convert of its keys and values: hundreds of hypotheses
    about a few rows of long sequences would otherwise spend their time there.
    """

    sequences: np.ndarray
    heads: np.ndarray
    rows: np.ndarray
    shared: dict = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def nothing(cls) -> Sample:
        """Of a part that is not looked at."""
        return cls(*(np.zeros(0, int) for _ in range(3)))

    @property
    def left_out(self) -> bool:
        return not self.sequences.size

    @classmethod
    def everything(cls, problem: Problem) -> Sample:
        count = int(np.prod(problem.query.shape[:-3], dtype=np.int64))
        return cls(np.arange(count), np.arange(problem.num_heads), np.arange(problem.q_len))


@dataclass
class Run:
    """One evaluation: the prepared problem, the sample, and the stages that compute it."""

    problem: Problem
    sample: Sample
    arithmetic: Arithmetic
    stages: Stages
    notes: dict = dataclasses.field(default_factory=dict)  # what a stage leaves for a later one
    scores: tuple | None = None  # of all keys, as of `tile_scores`, where they are known

    @cached_property
    def position(self) -> np.ndarray:
        """Key position of each row, (N, 1, T, 1)."""
        offset = np.asarray(self.problem.q_offset)[self.sample.sequences]
        return (offset[:, None] + self.sample.rows[None, :])[:, None, :, None]

    @cached_property
    def kv_length(self) -> np.ndarray:
        """(N, 1, 1, 1)"""
        return np.asarray(self.problem.kv_lengths)[self.sample.sequences][:, None, None, None]

    @cached_property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The visible keys [start, stop) of each row before masks, (N, 1, T, 1) each."""
        return row_bounds(self.problem, self.position, self.kv_length)

    def per_head(self, array: np.ndarray) -> np.ndarray:
        """An (N, H) array of the problem as (N, H, 1, 1) of the sample."""
        picked = array[np.ix_(self.sample.sequences, self.sample.heads)]
        return picked.astype(self.arithmetic.compute)[:, :, None, None]

    def plane(self, array: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """An (N, H, T, S) array of the problem, cut to the sample and to some columns."""
        sample = self.sample
        return array[np.ix_(sample.sequences, sample.heads, sample.rows, columns)]


# The stages of a correct kernel


def prepare(problem: Problem) -> Problem:
    return problem


def score(run: Run, q: np.ndarray, k: np.ndarray) -> np.ndarray:
    return (q @ np.swapaxes(k, -1, -2)) * run.arithmetic.compute(run.problem.scale)


def cap(run: Run, s: np.ndarray) -> np.ndarray:
    softcap = run.problem.softcap
    if softcap is None:
        return s
    softcap = run.arithmetic.compute(softcap)
    return softcap * np.tanh(s / softcap)


def position_bias(run: Run, columns: np.ndarray) -> np.ndarray | None:
    """ALiBi term of a tile, (N, H, T, n), or None."""
    if run.problem.alibi_slopes is None:
        return None
    return -run.per_head(run.problem.alibi_slopes) * np.abs(run.position - columns).astype(
        run.arithmetic.compute
    )


def shift(run: Run, s: np.ndarray, columns: np.ndarray) -> np.ndarray:
    term = run.stages.position_bias(run, columns)
    if term is not None:
        s = s + term
    if run.problem.bias is not None:
        s = s + run.plane(run.problem.bias, columns).astype(run.arithmetic.compute)
    return s


def visible(run: Run, columns: np.ndarray) -> np.ndarray:
    start, stop = run.bounds
    keep = (start <= columns) & (columns < stop)
    return keep if run.problem.mask is None else keep & run.plane(run.problem.mask, columns)


def hide(run: Run, s: np.ndarray, keep: np.ndarray) -> np.ndarray:
    return np.where(keep, s, -np.inf).astype(s.dtype)


def start(run: Run, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Running maximum and denominator before the first tile: the sink, if there is one."""
    kind = run.arithmetic.compute
    if run.problem.sinks is None:
        return np.full(shape, -np.inf, kind), np.zeros(shape, kind)
    top = np.broadcast_to(run.per_head(run.problem.sinks), shape).astype(kind)
    return top, (top > -np.inf).astype(kind)


def tiles(run: Run) -> list[tuple[int, int]]:
    length, tile = run.problem.kv_len, run.arithmetic.tile
    return [(first, min(first + tile, length)) for first in range(0, length, tile)]


def correction(run: Run, old_top: np.ndarray, new_top: np.ndarray, last: bool) -> np.ndarray:
    """exp(old maximum - new maximum), 0 while nothing has been seen."""
    del last
    return np.where(old_top == -np.inf, 0.0, np.exp(old_top - finite_or_zero(new_top))).astype(old_top.dtype)


def weigh(run: Run, s: np.ndarray, top: np.ndarray) -> np.ndarray:
    return np.exp(s - finite_or_zero(top))


def denominator(run: Run, total: np.ndarray, factor: np.ndarray, w: np.ndarray) -> np.ndarray:
    return total * factor + w.sum(-1, keepdims=True, dtype=w.dtype)


def drop(run: Run, w: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Dropout after the softmax: the denominator does not see it."""
    if run.problem.dropout_mask is None:
        return w
    kept = run.plane(run.problem.dropout_mask, columns)
    return np.where(kept, w * run.arithmetic.compute(run.problem.keep_scale), 0).astype(w.dtype)


def round_weights(run: Run, w: np.ndarray) -> np.ndarray:
    if run.arithmetic.weights is None:
        return w
    return w.astype(run.arithmetic.weights).astype(run.arithmetic.compute)


def accumulate(
    run: Run, total: np.ndarray, factor: np.ndarray, w: np.ndarray, v: np.ndarray, keep: np.ndarray
):
    """total * factor + w v, where a hidden key contributes nothing even if its value is NaN."""
    clean = np.isfinite(v)
    if clean.all():
        return total * factor + w @ v
    total = total * factor + w @ np.where(clean, v, 0)
    for j in np.flatnonzero(~clean.all(axis=(0, 1, 3))):
        dirty = np.where(clean[:, :, j], 0, v[:, :, j])[:, :, None, :]
        seen = keep[..., j, None] & ~clean[:, :, None, j]
        total = total + np.where(seen, w[..., j, None] * dirty, 0)
    return total


def finish(
    run: Run, top: np.ndarray, total: np.ndarray, weighted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    empty = total == 0
    output = np.where(empty, 0, weighted / np.where(empty, 1, total))
    lse = np.where(empty, -np.inf, finite_or_zero(top) + np.log(np.where(empty, 1, total)))
    return output, lse[..., 0]


def deliver(problem: Problem, output: np.ndarray, lse: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return output, lse


def finite_or_zero(top: np.ndarray) -> np.ndarray:
    """-inf replaced by 0, so that nothing-seen-yet is not subtracted from itself."""
    return np.where(top == -np.inf, 0, top).astype(top.dtype)


@dataclass(frozen=True)
class Stages:
    """The stages of one kernel. Replace one with `dataclasses.replace(CORRECT, cap=...)`."""

    prepare: Callable = prepare
    score: Callable = score
    cap: Callable = cap
    position_bias: Callable = position_bias
    shift: Callable = shift
    visible: Callable = visible
    hide: Callable = hide
    start: Callable = start
    tiles: Callable = tiles
    correction: Callable = correction
    weigh: Callable = weigh
    denominator: Callable = denominator
    drop: Callable = drop
    round_weights: Callable = round_weights
    accumulate: Callable = accumulate
    finish: Callable = finish
    deliver: Callable = deliver


CORRECT = Stages()


def one_batch_axis(problem: Problem) -> Problem:
    """The same problem with its batch axes flattened into one."""
    batch = problem.query.shape[:-3]
    if len(batch) == 1:
        return problem
    count = int(np.prod(batch, dtype=np.int64))

    def flat(array, kept=3):
        return np.asarray(array).reshape((count, *array.shape[array.ndim - kept :]))

    kept = {PER_SCORE: 3, PER_HEAD: 1, PER_ENTRY: 0}
    options = problem.with_arrays(lambda array, belongs_to: flat(array, kept[belongs_to])).options()
    arrays = {name: flat(getattr(problem, name)) for name in ("query", "key", "value")}
    return dataclasses.replace(problem, **arrays, **options)


def run_stages(
    problem: Problem,
    stages: Stages = CORRECT,
    arithmetic: Arithmetic | None = None,
    sample: Sample | None = None,
    with_size: bool = False,
) -> tuple[np.ndarray, ...]:
    """Output (N, H, T, E) and lse (N, H, T) of a problem through the given stages, in the arithmetic of
    a fused kernel for the query's dtype unless another is given; batch axes are flattened. Of a
    sample, only its sequences, heads and rows: (n, h, t, E) and (n, h, t).

    `with_size`: also `gross`, the weighted sum of abs(value), and `reach`, the largest abs(scale) *
    norm(query) * norm(key) of each row: what rounding errors are relative to.
    """
    arithmetic = arithmetic or Arithmetic.for_dtype(problem.query.dtype)
    problem = stages.prepare(one_batch_axis(problem))
    sample = sample or Sample.everything(problem)
    run, width = Run(problem, sample, arithmetic, stages), problem.v_head_dim
    with np.errstate(all="ignore"):
        output, lse, reach = _of_sample(run, with_size)
        output, gross = output[..., :width], output[..., width:]
        output, lse = stages.deliver(problem, output, lse)
        output, lse = output.astype(arithmetic.output), lse.astype(arithmetic.lse)
    return (output, lse, np.abs(gross), reach) if with_size else (output, lse)


def _norms(x: np.ndarray) -> np.ndarray:
    """Euclidean norms along the last axis, 0 where not finite."""
    x = x if x.dtype.itemsize >= 4 else x.astype(np.float32)
    return np.sqrt(np.nan_to_num(np.einsum("...d,...d->...", x, x), nan=0.0, posinf=0.0)).astype(np.float64)


def _shared(run: Run, source: np.ndarray, what: str, kind) -> np.ndarray:
    """Keys or values of the sample: those of the first problem converted once, larger ones and those
    that a mistake changes left to the run.
    """
    group = run.problem.group_size
    # problems are rebuilt around the same arrays
    here = (memory_of(source), group)
    known = run.sample.shared.get((what, kind))
    if known is not None and known[0] == here:
        return known[2]
    array = source[np.ix_(run.sample.sequences, run.sample.heads // group)]
    if what == "longest key":
        array = _norms(array).max(-1, initial=0.0)[..., None]  # (N, H, 1)
    small = array.size <= SHARED_SIZE
    array = array.astype(kind, copy=False) if small else array
    if what == "value and size":
        array = np.concatenate([array, np.abs(array)], axis=-1)
    if known is None and small:
        array.flags.writeable = False
        # the source is kept, so that no other array comes to lie at its address
        run.sample.shared[what, kind] = (here, source, array)
    return array


def _of_sample(run: Run, with_size: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    problem, sample, kind = run.problem, run.sample, run.arithmetic.compute
    q = problem.query[np.ix_(sample.sequences, sample.heads, sample.rows)].astype(kind)
    key = _shared(run, problem.key, "key", kind)
    value = _shared(run, problem.value, "value and size" if with_size else "value", kind)
    reach = None
    if with_size:
        reach = np.abs(problem.scale) * _norms(q) * _shared(run, problem.key, "longest key", np.float64)
    run.scores = _known_scores(run, q, key)
    state = *run.stages.start(run, (*q.shape[:-1], 1)), np.zeros((*q.shape[:-1], value.shape[-1]), kind)
    state = over_tiles(run, q, key, value, run.stages.tiles(run), state)
    return *run.stages.finish(run, *state), reach


def _known_scores(run: Run, q: np.ndarray, key: np.ndarray):
    """What `tile_scores` gives for all keys, computed once for the runs on a sample in float64 whose
    mistakes leave scores and visibility as they are; else None.
    """
    own = all(getattr(run.stages, name) is getattr(CORRECT, name) for name in SCORING)
    size = q.shape[0] * q.shape[1] * q.shape[2] * run.problem.kv_len
    if not own or q.dtype != np.float64 or size > SHARED_SIZE:
        return None
    shared = run.sample.shared
    if "scores" not in shared:
        columns = np.arange(run.problem.kv_len)
        shared["scores"] = run.problem, tile_scores(run, q, key.astype(q.dtype, copy=False), columns)
    problem, scores = shared["scores"]
    return scores if _same_scores(problem, run.problem) else None


def _same_scores(problem: Problem, other: Problem) -> bool:
    """Whether two problems are known to have the same scores and visibility."""
    for field in dataclasses.fields(Problem):
        one, two = getattr(problem, field.name), getattr(other, field.name)
        if field.name.startswith("value") or one is two:
            continue
        if field.name == "key":
            if memory_of(one) != memory_of(two):
                return False
        elif isinstance(one, np.ndarray) or isinstance(two, np.ndarray) or one != two:
            return False
    return True


def over_tiles(run: Run, q: np.ndarray, key: np.ndarray, value: np.ndarray, spans, state):
    """The loop of every fused kernel: running maximum, denominator and weighted values as they are after
    these spans of keys; `state` holds what they are before.
    """
    stages, problem, kind = run.stages, run.problem, run.arithmetic.compute
    top, total, weighted = state
    for count, (first, stop) in enumerate(spans, 1):
        columns = np.arange(first, stop)
        if run.scores is None:
            s, keep = tile_scores(run, q, key[:, :, first:stop].astype(kind, copy=False), columns)
        else:
            s, keep = (array[..., first:stop] for array in run.scores)
        new_top = np.maximum(top, s.max(-1, keepdims=True, initial=-np.inf))
        factor = stages.correction(run, top, new_top, count == len(spans))
        w = stages.weigh(run, s, new_top)
        total = stages.denominator(run, total, factor, w)
        w = stages.round_weights(run, stages.drop(run, w, columns))
        if problem.dropout_mask is not None:
            keep = keep & run.plane(problem.dropout_mask, columns)
        weighted = stages.accumulate(
            run, weighted, factor, w, value[:, :, first:stop].astype(kind, copy=False), keep
        )
        top = new_top
    return top, total, weighted


def tile_scores(run: Run, q: np.ndarray, k: np.ndarray, columns: np.ndarray):
    """Scores of a tile of keys, -inf where hidden, and where they are visible, (N, H, T, n) each."""
    stages = run.stages
    s = stages.shift(run, stages.cap(run, stages.score(run, q, k)), columns)
    keep = np.broadcast_to(stages.visible(run, columns), s.shape)
    return stages.hide(run, s, keep), keep
