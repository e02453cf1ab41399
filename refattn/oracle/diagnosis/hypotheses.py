"""Hypotheses: what a result would be if the kernel had made a mistake of the catalogue, and how well that
explains the actual one.

A hypothesis is predicted on a sample of sequences, heads and rows, in float64 (mistakes of precision in
the kernel's own arithmetic), and compared with the actual result. The yardstick is a simple bound of the
rounding error of a correct kernel of the same specification.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from refattn.oracle.diagnosis.budget import Budget
from refattn.oracle.mistakes.catalogue import CATALOGUE
from refattn.oracle.mistakes.record import Mistake
from refattn.oracle.mistakes.run import part_outlines, possible, run_form, split_lse, split_output
from refattn.oracle.simulated.staged import Sample

TILES_TO_TRY = (16, 32, 64, 128, 256)
OTHER_TILES = (8, 24, 48, 80, 96, 112, 144, 160, 176, 192, 224, 384, 512, 1024, 2048)
PLAIN_TILE = 1024  # of mistakes to which it makes no difference
WHOLE_WORK = 2**24  # multiplications up to which nothing is left out of the sample
MOST_PARTS = 8  # sequences of a packed or paged problem that are looked at when it is large
LARGEST_RATIO = 1e12  # of an error to its bound; beyond it, more does not make a hypothesis worse
TILES_OF_A_RUN = 8  # as many tiles cost what a prediction costs besides its tiles
SCREEN_RATIO = 1e4  # where one element stops counting while screening
LOWEST = -1e30
SMALLEST_BOUND = 1e-300
LAMBDA = 6.0  # standard deviations a random walk of roundings is allowed


def spread(count: int, wanted: int) -> np.ndarray:
    """At most `wanted` indices below count: the ends, their neighbours, and evenly between."""
    if count <= wanted:
        return np.arange(count)
    ends = [0, 1, count - 2, count - 1] if wanted >= 6 else [0, count - 1]
    between = np.linspace(0, count - 1, wanted - len(ends) + 2).astype(int)[1:-1]
    return np.unique(np.concatenate([ends, between]))


def picked(count: int, wanted: int, first: int = 0) -> np.ndarray:
    """At most `wanted` indices below count without a pattern: `first`, its neighbour, and others at
    random but always the same.
    """
    if count <= wanted:
        return np.arange(count)
    near = [first, (first + 1) % count]
    others = np.random.default_rng(count).permutation([i for i in range(count) if i not in near])
    return np.sort(np.array([*near, *others][:wanted]))


def choose_samples(checked, work: int = WHOLE_WORK, worst: tuple[int, ...] = (-1, 0)) -> list[Sample]:
    """One sample a dense part, everything if that takes at most `work` multiplications, else little more
    than that.

    Of many parts most are left out. `worst` is the sequence and head to have in any case, and the row
    where one is known to be wrong. With one sequence it is not the first, so that mistakes that use the
    first for all of them show.
    """
    parts = part_outlines(checked)
    sizes = [max(part.kv_len * (part.head_dim + part.v_head_dim), 1) for part in parts]
    if sum(math.prod(part.query.shape[:3]) * size for part, size in zip(parts, sizes, strict=True)) <= work:
        return [Sample.everything(part) for part in parts]
    samples, own = [Sample.nothing() for _ in parts], len(parts) == 1
    wanted = 1 if own else max(2, min(MOST_PARTS, work // max(sum(sizes) // len(sizes) * 3, 1)))
    for n in picked(len(parts), wanted, worst[0] % len(parts)):
        samples[n] = _sample_of(
            parts[n], work // min(wanted, len(parts)), worst if own else (-1, *worst[1:])
        )
    return samples


def _sample_of(part, work, worst) -> Sample:
    sequences, heads, rows = part.query.shape[:3]
    per_row = max(part.kv_len * (part.head_dim + part.v_head_dim), 1)
    affordable = work // per_row
    if sequences * heads * rows <= affordable:
        return Sample.everything(part)
    streams = max(
        work // 8 // per_row, 3
    )  # reading the keys of one head costs about as much as eight rows of it
    heads_taken = min(heads, max(3, min(6, streams)))
    sequences_taken = min(sequences, max(1, min(2, streams // heads_taken)))
    rows_taken = min(rows, max(affordable // (sequences_taken * heads_taken), 4))
    chosen = spread(rows, rows_taken)
    if len(worst) > 2:  # that row, its neighbours, and the rows around a possible edge of a tile before it
        chosen = np.union1d(
            chosen,
            np.clip(
                [worst[2] - 1, worst[2], worst[2] + 1, worst[2] // 64 * 64 - 1, worst[2] // 64 * 64],
                0,
                rows - 1,
            ),
        )
    return Sample(
        picked(sequences, sequences_taken, worst[0] % sequences),
        picked(heads, heads_taken, worst[1]),
        chosen,
    )


def worst_place(checked, actual, lse, spec) -> tuple[int, int]:
    """(sequence, head) where a look at a few rows shows the largest error."""
    parts = part_outlines(checked)
    if not any(part.q_len for part in parts):
        return -1, 0
    size = max(part.kv_len * (part.head_dim + part.v_head_dim) for part in parts)
    streams = max(WHOLE_WORK // max(size, 1), 4)  # heads of which the keys are read
    if len(parts) == 1:
        sequences, heads, rows = parts[0].query.shape[:3]
        taken = picked(sequences, min(16, max(streams // 16, 2)))
        samples = [
            Sample(taken, picked(heads, min(16, max(streams // len(taken), 2))), picked(rows, 2, rows // 2))
        ]
    else:
        samples, heads = [Sample.nothing() for _ in parts], parts[0].query.shape[1]
        for n in picked(len(parts), min(16, max(streams // 2, 2))):
            rows = parts[n].q_len
            samples[n] = Sample(
                np.arange(1), picked(heads, min(16, max(streams // 16, 2))), picked(rows, 2, rows // 2)
            )
    evidence = Evidence(checked, actual, lse, spec, samples)
    want, got = evidence.reference[0], evidence.observed[0]
    with np.errstate(all="ignore"):
        ratio = np.nan_to_num(
            np.abs(got - want) / evidence.yardstick[0], nan=0.0 if np.isnan(want).any() else np.inf
        )
    return _largest(ratio, samples, checked.output_shape[-1])


def _largest(ratio, samples, width):
    """The sequence (or part, where there are several) and head of the largest of ratios in the order
    of the evidence.
    """
    worst, place, start = -1.0, (-1, 0), 0
    for n, sample in enumerate(samples):
        shape = len(sample.sequences), len(sample.heads), len(sample.rows) * width
        own, start = ratio[start : start + math.prod(shape)], start + math.prod(shape)
        if own.size and own.max() > worst:
            worst, at = own.max(), np.unravel_index(int(np.argmax(own)), shape)
            place = int(sample.sequences[at[0]]) if len(samples) == 1 else n, int(sample.heads[at[1]])
    return place


@dataclass(frozen=True)
class Hypothesis:
    """Some mistakes together, and the tile size they are tried with. No mistakes: the reference itself."""

    mistakes: tuple[Mistake, ...] = ()
    tile: int = 64

    @property
    def id(self) -> str:
        return " + ".join(mistake.id for mistake in self.mistakes)

    @property
    def words(self) -> str:
        return " and ".join(mistake.says for mistake in self.mistakes)

    def says_with(self, tiles) -> str:
        """The words with the tile sizes that predict the same."""
        if not any(mistake.tiled for mistake in self.mistakes):
            return self.words
        return f"{self.words} (tile of {' or '.join(map(str, tiles))} keys)"

    @property
    def remedy(self) -> str:
        return ", ".join(mistake.remedy for mistake in self.mistakes if mistake.remedy)

    @property
    def issues(self) -> tuple[str, ...]:
        return tuple(issue for mistake in self.mistakes for issue in mistake.issues)


@dataclass
class Fit:
    """How well a hypothesis explains the actual result.

    Attributes
    ----------
    used : float
        Largest error left over its bound; at most 1 means explained.
    residual : float
        Root mean square of the errors left, over the bound of the reference.
    mismatched : float
        Share of elements that are NaN or infinite on one side only.
    predicted : tuple of ndarray
        What it predicts, flattened.
    """

    hypothesis: Hypothesis
    used: float
    residual: float
    mismatched: float
    predicted: tuple[np.ndarray, ...] = field(repr=False, default=())

    @property
    def explains(self) -> bool:
        return self.mismatched == 0 and self.used <= 1


class Evidence:
    """An actual result, the sample it is looked at on, and the yardstick.

    Parameters
    ----------
    checked
        What `checked_call` returns.
    actual, lse : ndarray
        In the shape of the right result; lse may be None.
    spec : KernelSpec
    samples : list of Sample
    """

    def __init__(self, checked, actual, lse, spec, samples):
        self.checked, self.spec, self.samples = checked, spec, samples
        self.actual, self.lse = actual, lse
        self.observed = self._cut(actual, lse)
        self.reference = self._predict(Hypothesis())
        self.yardstick = self._bounds(self.reference)
        self.baseline = self._compare(Hypothesis(), self.reference, self.observed)

    def floor(self, budget: Budget) -> float:
        """The residual of a kernel without mistakes: the reference, or one that rounds as the input's
        dtype does, whichever is closer.
        """
        residuals = [self.baseline.residual + self.baseline.mismatched * LARGEST_RATIO]
        for tile in (*TILES_TO_TRY, max(self.keys, 1)):
            fit = budget.attempt(
                "fit",
                "tile sizes of a right kernel",
                self._own_rounding,
                tile,
                size=self.size(Hypothesis((), tile)),
            )
            if fit is None:
                break
            residuals.append(fit.residual + fit.mismatched * LARGEST_RATIO)
        return min(residuals)

    def size(self, hypothesis: Hypothesis) -> float:
        """The cost of predicting a hypothesis, in tiles of keys: most of it is spent on calls for
        each tile.
        """
        return TILES_OF_A_RUN + self.keys / hypothesis.tile

    def _own_rounding(self, tile):
        return self._compare(Hypothesis(), self._predict(Hypothesis((), tile), own=True), self.observed)

    def pieces(self, actual, lse):
        """(output, lse or None) of the sample, one pair a dense part: (n, h, t, E) and (n, h, t)."""
        outputs, lses = split_output(self.checked, actual), split_lse(self.checked, lse)
        for sample, output, norm in zip(self.samples, outputs, lses, strict=True):
            index = np.ix_(sample.sequences, sample.heads, sample.rows)
            yield output[index].astype(np.float64), None if norm is None else norm[index].astype(np.float64)

    def _cut(self, actual, lse):
        pieces = list(self.pieces(actual, lse))
        outputs, lses = (
            [np.zeros(0) if piece[i] is None else piece[i].ravel() for piece in pieces] for i in (0, 1)
        )
        return _joined(outputs), _level_minimum(_joined(lses))

    def _predict(self, hypothesis, own=False):
        parts = run_form(
            self.checked,
            *hypothesis.mistakes,
            tile=hypothesis.tile,
            own=own,
            samples=self.samples,
            with_size=True,
        )
        if parts is None:
            return None
        width = [output.shape[-1] for output, *_ in parts]
        output, lse, gross, reach = (
            _joined([np.asarray(part[i], np.float64).ravel() for part in parts]) for i in range(4)
        )
        lse = _level_minimum(lse)
        row_reach = _joined(
            [
                np.repeat(_score_size(part[3], part[1]).ravel(), count)
                for part, count in zip(parts, width, strict=True)
            ]
        )
        return (
            output,
            lse if self.lse is not None else np.zeros(0),
            gross,
            row_reach,
            reach if self.lse is not None else np.zeros(0),
        )

    def _bounds(self, predicted):
        """Bounds of output and lse around a prediction: not rigorous, of the right size."""
        return self._bound_formula(*predicted)

    def simple_bound(self, result):
        """The same for one part of what `run_form` gives with sizes: arrays (n, h, t, E) and (n, h, t)."""
        output, lse, gross, reach = (np.asarray(array, np.float64) for array in result)
        return self._bound_formula(output, lse, gross, _score_size(reach, lse)[..., None], reach)

    def _bound_formula(self, output, lse, gross, row_reach, reach):
        spec, keys = self.spec, max(max((len(s.rows) for s in self.samples), default=1), self.keys)
        u, dim = max(spec.softmax.unit_roundoff, spec.accumulator_roundoff), self._dim()
        coarse = spec.score.unit_roundoff + spec.scaled_query.unit_roundoff
        with np.errstate(all="ignore"):
            share = lambda size: (
                u * (LAMBDA * (dim**0.5 + 3) * size + 12)
                + 2 * coarse * size
                + 4 * spec.exp_error
                + self._cap_error()
            )
            off = gross * (2 * spec.weight.unit_roundoff + LAMBDA * u * keys**0.5) + share(row_reach) * (
                gross + np.abs(output)
            )
            out_bound = (
                off + spec.output.unit_roundoff * np.abs(output) + 4 * spec.output.half_subnormal_step
            )
            lse_bound = share(reach) + (4 * u + spec.lse.unit_roundoff) * (np.abs(lse) + 4)
        return out_bound, lse_bound

    def _cap_error(self):
        caps = [part.softcap for part in part_outlines(self.checked) if part.softcap is not None]
        return self.spec.tanh_error * max(caps, default=0.0)

    @property
    def keys(self) -> int:
        return max((part.kv_len for part in part_outlines(self.checked)), default=1)

    def _dim(self):
        return max((part.head_dim for part in part_outlines(self.checked)), default=1)

    def _compare(self, hypothesis, predicted, observed):
        bounds = self._bounds(predicted)
        used, squares, count, wrong = 0.0, 0.0, 0, 0
        for want, got, bound, unit in zip(predicted[:2], observed, bounds, self.yardstick, strict=True):
            fine = np.isfinite(want) & np.isfinite(got)
            same = fine | (np.isnan(want) & np.isnan(got)) | (want == got)
            wrong += int((~same).sum())
            count += want.size
            left = np.abs(got[fine] - want[fine])
            bound = _usable(bound, bound)[fine]
            unit = _usable(unit[fine], bound)
            unit = np.where(unit < 1e-6 * bound, bound, unit)  # a row that is exactly 0 in the reference
            with np.errstate(over="ignore"):
                used = max(used, float(np.max(left / bound, initial=0.0)))
                squares += float((np.minimum(left / unit, LARGEST_RATIO) ** 2).sum())
        count = max(count, 1)
        return Fit(hypothesis, used, (squares / count) ** 0.5, wrong / count, predicted[:2])

    def predicted(self, hypothesis: Hypothesis) -> tuple[np.ndarray, np.ndarray] | None:
        """Output and lse as the hypothesis predicts them, flattened; None if it cannot be predicted."""
        if any(mistake.reread is not None for mistake in hypothesis.mistakes):
            return None
        with np.errstate(all="ignore"):
            predicted = self._predict(hypothesis)
        return None if predicted is None else predicted[:2]

    def fit(self, hypothesis: Hypothesis) -> Fit | None:
        """Compare the actual result with what the hypothesis predicts; None if it cannot be predicted."""
        rereads = [mistake for mistake in hypothesis.mistakes if mistake.reread is not None]
        others = tuple(mistake for mistake in hypothesis.mistakes if mistake.reread is None)
        if (
            any(
                mistake.random or (mistake.relayout is not None and mistake.reread is None)
                for mistake in others
            )
            or len(rereads) > 1
        ):
            return None
        with np.errstate(all="ignore"):
            predicted = self._predict(Hypothesis(others, hypothesis.tile)) if others else self.reference
            if predicted is None:
                return None
            observed = self.observed
            for mistake in rereads:
                observed = self._cut(*self.reread(mistake))
            fit = self._compare(hypothesis, predicted, observed)
        if rereads:
            fit.predicted = (np.zeros(0), np.zeros(0))
        return fit

    def screen(self, hypothesis: Hypothesis) -> float:
        """About the residual of `fit`, without its bounds: for looking at thousands of hypotheses."""
        rereads = [mistake for mistake in hypothesis.mistakes if mistake.reread is not None]
        others = tuple(mistake for mistake in hypothesis.mistakes if mistake.reread is None)
        if len(rereads) > 1:
            return np.inf
        tile = hypothesis.tile if any(mistake.tiled for mistake in others) else max(self.keys, 1)
        parts = run_form(self.checked, *others, tile=tile, samples=self.samples)
        if parts is None:
            return np.inf
        observed = self._cut(*self.reread(rereads[0])) if rereads else self.observed
        total, count = 0.0, 0
        for i in range(2 if self.lse is not None else 1):
            want = _joined([np.asarray(part[i], np.float64).ravel() for part in parts])
            got, unit = observed[i], _usable(self.yardstick[i], 1e-6)
            fine = np.isfinite(want) & np.isfinite(got)
            same = fine | (np.isnan(want) & np.isnan(got)) | (want == got)
            with np.errstate(over="ignore"):
                total += float(
                    np.minimum(np.abs(got[fine] - want[fine]) / unit[fine], SCREEN_RATIO).sum()
                ) + SCREEN_RATIO * int((~same).sum())
            count += want.size
        return total / max(count, 1)

    def reread(self, mistake):
        """The actual result read in the layout that the mistake says it has."""
        actual, lse = self.actual, self.lse
        batch = actual.shape[:-3]
        count = (int(np.prod(batch, dtype=np.int64)),)
        flat, flat_lse = (
            actual.reshape(count + actual.shape[-3:]),
            None if lse is None else lse.reshape(count + lse.shape[-2:]),
        )
        output, norm = mistake.reread(flat, flat_lse)
        return output.reshape(actual.shape), None if norm is None else norm.reshape(lse.shape)


def single_hypotheses(
    checked, with_lse: bool, tiles=TILES_TO_TRY, tiled_only: bool = False
) -> Iterator[Hypothesis]:
    """Every mistake that can show on this problem, with every tile size it depends on."""
    keys = max((part.kv_len for part in part_outlines(checked)), default=0)
    for mistake in CATALOGUE:
        if mistake.random or ("lse" in mistake.needs and not with_lse) or not possible(mistake, checked):
            continue
        if mistake.relayout is not None and mistake.reread is None:
            continue
        if tiled_only and not mistake.tiled:
            continue
        sizes = [tile for tile in tiles if tile < keys] or [tiles[0]]
        for tile in (
            sizes if mistake.tiled or mistake.rounding else (PLAIN_TILE,)
        ):  # what a kernel rounds depends on its tiles
            yield Hypothesis((mistake,), tile)


def _score_size(reach, lse):
    """What the errors of the scores are relative to: products of query and key, and what a bias adds
    to them, which lse shows.
    """
    return reach + np.where(np.isfinite(lse), np.abs(lse), 0.0) / 8


def _joined(arrays):
    return np.concatenate(arrays) if arrays else np.zeros(0)


def _level_minimum(x):
    """Finite stand-ins for -inf made equal, whichever minimum they are of."""
    return np.where((x < LOWEST) & (x > -np.inf), LOWEST, x)


def _usable(bound, otherwise):
    """A bound to divide by: `otherwise` where it is not finite, never 0."""
    bound = np.where(np.isfinite(bound), bound, otherwise)
    return np.where(np.isfinite(bound), np.maximum(bound, SMALLEST_BOUND), SMALLEST_BOUND)
