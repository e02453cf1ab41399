"""Evidence: an actual result, and how well hypotheses explain it.

A hypothesis is predicted on a sample of sequences, heads and rows, in float64 (mistakes of precision in
the kernel's own arithmetic), and compared with the actual result. The yardstick is a simple bound of the
rounding error of a correct kernel of the same specification.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from refattn.oracle.bounds.results import OUTPUT, RESULTS, Result, handed_over
from refattn.oracle.diagnosis.budget import Budget
from refattn.oracle.diagnosis.hypotheses import TILES_TO_TRY, Hypothesis
from refattn.oracle.mistakes.wrong_kernel import part_outlines, run_form, split_result

LARGEST_RATIO = 1e12  # of an error to its bound; beyond it, more does not make a hypothesis worse
TILES_OF_A_RUN = 8  # as many tiles cost what a prediction costs besides its tiles
SCREEN_RATIO = 1e4  # where one element stops counting while screening
LOWEST = -1e30
SMALLEST_BOUND = 1e-300
CONTRADICTED = 8.0  # times its simple bound that a prediction misses a right output, to be refuted by it
LAMBDA = 6.0  # standard deviations a random walk of roundings is allowed


@dataclass
class Fit:
    """How well a hypothesis explains the actual result."""

    hypothesis: Hypothesis
    used: float  # largest error left over its bound; at most 1 means explained
    residual: float  # root mean square of the errors left, over the bound of the reference
    mismatched: float  # share of elements that are NaN or infinite on one side only
    # what it predicts, flattened; empty where it only says how the actual result is to be read
    predicted: dict[Result, np.ndarray] = field(repr=False, default_factory=dict)

    @property
    def explains(self) -> bool:
        return self.mismatched == 0 and self.used <= 1

    @property
    def left(self) -> float:
        """What is left of the error, elements that are NaN or infinite on one side only included."""
        return self.residual + self.mismatched * LARGEST_RATIO


@dataclass
class Prediction:
    """What a hypothesis predicts for the sample: each result flattened, and a simple bound around it."""

    values: dict[Result, np.ndarray]
    bounds: dict[Result, np.ndarray]


class Evidence:
    """An actual result, the sample it is looked at on, and the yardstick.

    Parameters
    ----------
    checked
        What `checked_call` returns.
    given : dict of Result to ndarray
        What the kernel returned, in the shapes of the right results.
    spec : KernelSpec
    samples : list of Sample

    Attributes
    ----------
    observed, reference, yardstick : dict of Result to ndarray
        The actual result, the right one and its simple bound, of the sample and flattened.
    baseline : Fit
        What is left of the error without any hypothesis.
    """

    def __init__(self, checked, given, spec, samples):
        self.checked, self.given, self.spec, self.samples = checked, given, spec, samples
        self.observed = self._cut(given)
        self._right = self._predict(Hypothesis())
        self.reference, self.yardstick = self._right.values, self._right.bounds
        self.baseline = self._compare(Hypothesis(), self._right, self.observed)

    def on(self, samples) -> Evidence:
        """The same result looked at on another sample."""
        return Evidence(self.checked, self.given, self.spec, samples)

    def floor(self, budget: Budget) -> float:
        """The residual of a kernel without mistakes: the reference, or one that rounds as the input's
        dtype does, whichever is closer.
        """
        least = self.baseline.left
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
            least = min(least, fit.left)
        return least

    def size(self, hypothesis: Hypothesis) -> float:
        """The cost of predicting a hypothesis, in tiles of keys: most of it is spent on calls for
        each tile.
        """
        return TILES_OF_A_RUN + self.keys / hypothesis.tile

    def _own_rounding(self, tile):
        return self._compare(Hypothesis(), self._predict(Hypothesis((), tile), own=True), self.observed)

    @property
    def keys(self) -> int:
        return max((part.kv_len for part in part_outlines(self.checked)), default=1)

    def pieces(self, given):
        """The sample of given results, one dictionary a dense part: arrays (n, h, t, E) or (n, h, t)."""
        parts = {result: split_result(self.checked, result, array) for result, array in given.items()}
        for sample in self.samples:
            index = np.ix_(sample.sequences, sample.heads, sample.rows)
            yield {result: next(pieces)[index].astype(np.float64) for result, pieces in parts.items()}

    def _cut(self, given):
        pieces = list(self.pieces(given))
        return {
            result: _level_minimum(result, _joined([piece[result].ravel() for piece in pieces]))
            for result in given
        }

    def worst_place(self) -> tuple[int, int]:
        """The sequence (or part, where there are several) and head of the largest error of the output
        over its yardstick.
        """
        want, got = self.reference[OUTPUT], self.observed[OUTPUT]
        with np.errstate(all="ignore"):
            ratio = np.abs(got - want) / self.yardstick[OUTPUT]
        return self._place_of(np.nan_to_num(ratio, nan=0.0 if np.isnan(want).any() else np.inf))

    def contradicted_at(self, hypothesis: Hypothesis) -> int | None:
        """The sequence (or part) in which the output is most clearly right where the hypothesis says that it
        is not; None where there is none."""
        predicted = self.predicted(hypothesis)
        if predicted is None:
            return None
        got, unit = self.observed[OUTPUT], _usable(self.yardstick[OUTPUT], np.inf)
        with np.errstate(all="ignore"):
            right = np.abs(got - self.reference[OUTPUT]) <= unit
            ratio = np.where(right, np.abs(got - predicted[OUTPUT]) / unit, 0.0)
        ratio = np.nan_to_num(ratio, nan=0.0)
        return self._place_of(ratio)[0] if ratio.max(initial=0.0) > CONTRADICTED else None

    def _place_of(self, ratio):
        """Sequence (or part) and head of the largest of numbers that belong to the output."""
        worst, place, start, width = -1.0, (-1, 0), 0, self.checked.output_shape[-1]
        for n, sample in enumerate(self.samples):
            shape = len(sample.sequences), len(sample.heads), len(sample.rows) * width
            own, start = ratio[start : start + math.prod(shape)], start + math.prod(shape)
            if own.size and own.max() > worst:
                worst, at = own.max(), np.unravel_index(int(np.argmax(own)), shape)
                sequence = int(sample.sequences[at[0]]) if len(self.samples) == 1 else n
                place = sequence, int(sample.heads[at[1]])
        return place

    # predictions and their simple bounds

    def _predict(self, hypothesis, own=False) -> Prediction | None:
        tile, samples = hypothesis.tile, self.samples
        parts = run_form(
            self.checked, *hypothesis.mistakes, tile=tile, own=own, samples=samples, with_size=True
        )
        if parts is None:
            return None
        values, bounds = ({result: [] for result in self.given} for _ in range(2))
        for part in parts:
            *results, gross, reach = (np.asarray(array, np.float64) for array in part)
            size = _score_size(reach, results[1])
            results = [_level_minimum(*pair) for pair in zip(RESULTS, results, strict=True)]
            for result, value, bound in zip(
                RESULTS, results, self._bounds(*results, gross, size, reach), strict=True
            ):
                if result in self.given:
                    values[result].append(value.ravel())
                    bounds[result].append(bound.ravel())
        return Prediction(*({name: _joined(x) for name, x in flat.items()} for flat in (values, bounds)))

    def simple_bounds(self, part):
        """Bounds of each of `RESULTS` around a prediction, for one part of what `run_form` gives with sizes:
        not rigorous, of the right size.
        """
        output, lse, gross, reach = (np.asarray(array, np.float64) for array in part)
        return self._bounds(output, lse, gross, _score_size(reach, lse), reach)

    def _bounds(self, output, lse, gross, score_size, reach):
        spec, keys = self.spec, max(max((len(s.rows) for s in self.samples), default=1), self.keys)
        parts = part_outlines(self.checked)
        u = max(spec.softmax.unit_roundoff, spec.accumulator_roundoff)
        dim = max((part.head_dim for part in parts), default=1)
        cap = max((part.softcap for part in parts if part.softcap is not None), default=0.0)
        coarse = spec.score.unit_roundoff + spec.scaled_query.unit_roundoff
        share = lambda size: (
            u * (LAMBDA * (dim**0.5 + 3) * size + 12)
            + 2 * coarse * size
            + 4 * spec.exp_error
            + spec.tanh_error * cap
        )
        with np.errstate(all="ignore"):
            conversion = gross * (2 * spec.weight.unit_roundoff + LAMBDA * u * keys**0.5)
            off = conversion + share(score_size)[..., None] * (gross + np.abs(output))
            off = off + spec.output.unit_roundoff * np.abs(output) + 4 * spec.output.half_subnormal_step
            return off, share(reach) + (4 * u + spec.lse.unit_roundoff) * (np.abs(lse) + 4)

    def predicted(self, hypothesis: Hypothesis) -> dict[Result, np.ndarray] | None:
        """The results as the hypothesis predicts them, flattened; None if it cannot be predicted."""
        if hypothesis.rereads:
            return None
        with np.errstate(all="ignore"):
            predicted = self._predict(hypothesis)
        return None if predicted is None else predicted.values

    # comparisons with the actual result

    def fit(self, hypothesis: Hypothesis) -> Fit | None:
        """Compare the actual result with what the hypothesis predicts; None if it cannot be predicted."""
        rereads, others = hypothesis.rereads, hypothesis.others
        if len(rereads) > 1 or any(mistake.random or mistake.relayout is not None for mistake in others):
            return None
        with np.errstate(all="ignore"):
            predicted = self._predict(Hypothesis(others, hypothesis.tile)) if others else self._right
            if predicted is None:
                return None
            fit = self._compare(hypothesis, predicted, self._reread(rereads))
        if rereads:
            fit.predicted = {}
        return fit

    def _compare(self, hypothesis, predicted, observed):
        used, squares, count, wrong = 0.0, 0.0, 0, 0
        for result, got in observed.items():
            want, bound, unit = predicted.values[result], predicted.bounds[result], self.yardstick[result]
            fine, same = comparable(want, got)
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
        return Fit(hypothesis, used, (squares / count) ** 0.5, wrong / count, predicted.values)

    def screen(self, hypothesis: Hypothesis) -> float:
        """About the residual of `fit`, without its bounds: for looking at thousands of hypotheses."""
        others = hypothesis.others
        if len(hypothesis.rereads) > 1:
            return np.inf
        tile = hypothesis.tile if any(mistake.tiled for mistake in others) else max(self.keys, 1)
        parts = run_form(self.checked, *others, tile=tile, samples=self.samples)
        if parts is None:
            return np.inf
        observed, total, count = self._reread(hypothesis.rereads), 0.0, 0
        for i, result in enumerate(RESULTS):
            if result not in observed:
                continue
            want = _joined([np.asarray(part[i], np.float64).ravel() for part in parts])
            got, unit = observed[result], _usable(self.yardstick[result], 1e-6)
            fine, same = comparable(want, got)
            with np.errstate(over="ignore"):
                total += float(
                    np.minimum(np.abs(got[fine] - want[fine]) / unit[fine], SCREEN_RATIO).sum()
                ) + SCREEN_RATIO * int((~same).sum())
            count += want.size
        return total / max(count, 1)

    def _reread(self, rereads):
        """The sample of the actual result, read in the layout that a mistake says it has."""
        return self._cut(self.reread(rereads[0])) if rereads else self.observed

    def reread(self, mistake) -> dict[Result, np.ndarray]:
        """The actual result read in the layout that the mistake says it has."""
        batch = len(self.checked.output_shape) - 3
        one_axis = lambda x: None if x is None else x.reshape(math.prod(x.shape[:batch]), *x.shape[batch:])
        flat = map(one_axis, map(self.given.get, RESULTS))
        results = handed_over(*mistake.reread(*flat))
        return {result: array.reshape(self.given[result].shape) for result, array in results.items()}


def comparable(want, got):
    """Where both are finite; and where both are finite, both NaN, or the same infinity."""
    fine = np.isfinite(want) & np.isfinite(got)
    return fine, fine | (np.isnan(want) & np.isnan(got)) | (want == got)


def _score_size(reach, lse):
    """What the errors of the scores are relative to: products of query and key, and what a bias adds
    to them, which lse shows.
    """
    return reach + np.where(np.isfinite(lse), np.abs(lse), 0.0) / 8


def _joined(arrays):
    return np.concatenate(arrays) if arrays else np.zeros(0)


def _level_minimum(result, x):
    """Finite stand-ins for the -inf of an empty row made equal, whichever minimum they are of."""
    if math.isfinite(result.empty_row):
        return x
    return np.where((x < LOWEST) & (x > -np.inf), LOWEST, x)


def _usable(bound, otherwise):
    """A bound to divide by: `otherwise` where it is not finite, never 0."""
    bound = np.where(np.isfinite(bound), bound, otherwise)
    return np.where(np.isfinite(bound), np.maximum(bound, SMALLEST_BOUND), SMALLEST_BOUND)
