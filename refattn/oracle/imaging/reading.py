"""What is known of a call, measured or estimated: results, weights, and what rounding allows."""

from __future__ import annotations

import time
from functools import cached_property

import numpy as np

HALF_AMPLITUDE = 256.0  # of one-hot values in float16, so that small weights are normal numbers
LAMBDA = 3.0
COARSE = 1e-4  # unit roundoff of the output


class Reading:
    """Results of a call and the weights behind them, which subclasses fill in.

    Attributes
    ----------
    output, lse : ndarray, (B, H, T, E) and (B, H, T)
        Of the caller's own call; lse None for a kernel that returns none.
    varies : ndarray of bool, (B, H, T)
        Rows in which the same call gave different results.
    added : ndarray of bool, (B, H, T)
        Rows that are not 0 where all values are.
    weights : ndarray, (B, H, T, S)
    determined : bool or ndarray of bool, (B, H, T, S)
        Weights that are known.
    left_out : bool or ndarray of bool, (B, H, T)
        Rows of which not all weights were measured: what they sum to is not known.
    unknown : ndarray of bool, (B, H, T)
        Wrong rows of whose weights nothing is known.
    columns : ndarray of int
        Columns of the output that weights are read from.
    wrong_columns, dead_columns, other_columns : ndarray of bool, (E,)
        Columns in which no weights are read; those of them that are 0 in every row; and those that are
        looked at by themselves.
    wrong_latents : ndarray of bool
        Components of the weighted latents of MLA that are wrong where others are right.
    partial : bool
        Whether weights are those that some components of latents see.
    told : bool or ndarray of bool, (B, H, T)
        Rows of which `findings` speaks.
    until : float
        When the time for describing ends, on the clock `time.monotonic`.
    unfinished : list of str
        Searches that it ended.
    probes : Probes or None
        Where the kernel can be called.
    nan_of_zeros : ndarray of bool, (B, H, T), or None
        Rows that are NaN where rows of values are all 0.
    pages_read : ndarray of bool or None
        Physical pages that each sequence reads, where that was measured.
    """

    determined = np.True_
    told = left_out = np.False_
    partial = False
    probes = pages_read = nan_of_zeros = None
    until = np.inf

    def __init__(self, view, spec, output, lse):
        self.view, self.spec, self.output, self.lse = view, spec, output, lse
        self.unfinished = []
        self.varies, self.added = (np.zeros(view.shape[:3], bool) for _ in range(2))
        self.unknown = np.zeros(view.shape[:3], bool)
        self.other_columns = np.zeros(output.shape[-1], bool)
        self.wrong_latents = np.zeros(0, bool)
        self.expected_output = self.applied(view.weights)
        self.columns = self._right_columns()

    def findings(self, regions):
        """Findings that do not follow from the weights."""
        return []

    def end_of(self, share) -> float:
        """When a search ends that may take so much of the time left."""
        now = time.monotonic()
        return now + share * (self.until - now)

    def in_time(self, search, end=np.inf) -> bool:
        """Whether there is time left for a search, in words, that ends then at the latest; where there is
        none, it is noted.
        """
        if time.monotonic() <= min(self.until, end):
            return True
        if search not in self.unfinished:
            self.unfinished.append(search)
        return False

    # tolerances

    @cached_property
    def tolerance(self):
        """Relative error of a weight that the arithmetic allows, (B, H, T, 1)."""
        view, spec = self.view, self.spec
        u = max(spec.softmax.unit_roundoff, spec.accumulator_roundoff)
        seen = view.visible & np.isfinite(view.raw)  # hidden keys may hold anything
        reach = np.abs(np.where(seen, view.raw, 0)).max(-1, initial=0.0, keepdims=True)
        size = reach + np.where(np.isfinite(view.lse), np.abs(view.lse), 0.0)[..., None]
        coarse = spec.score.unit_roundoff + spec.scaled_query.unit_roundoff
        dims = view.score_terms
        score = u * (LAMBDA * (dims**0.5 + 3) * size + 16) + 2 * coarse * size
        return 2 * (score + 2 * spec.weight.unit_roundoff + spec.output.unit_roundoff) + 4 * spec.exp_error

    @cached_property
    def floor(self):
        """Absolute error of a weight, (B, H, T, 1): what underflows in the formats of weights and output."""
        spec = self.spec
        largest = self.view.weights.max(-1, keepdims=True, initial=0.0)
        small = max(spec.weight.half_subnormal_step, 1e-37)
        return 4 * (small * largest + spec.output.half_subnormal_step / self.amplitude) + 1e-30

    @cached_property
    def output_tolerance(self):
        """Absolute error of the output, (B, H, T, E)."""
        size = self.applied(np.abs(self.view.weights), absolute=True)
        spec = self.spec
        return (
            size * self.tolerance
            + 2 * spec.output.unit_roundoff * np.abs(self.output)
            + 4 * spec.output.half_subnormal_step
        )

    def allowed_for_guesses(self, times=4, of_size=0.02):
        """What the output of a guess may be off by, (B, H, T, E): so many times the tolerance; and so
        much of its size where the output is of a coarse format, as intermediates may be coarse too.
        """
        size = np.abs(self.output) + self.output_tolerance
        return times * self.output_tolerance + of_size * size * (self.spec.output.unit_roundoff > COARSE)

    @property
    def amplitude(self):
        """Of one-hot values."""
        return HALF_AMPLITUDE if self.view.arrays[0].dtype == np.float16 else 1.0

    @property
    def off(self):
        """Numbers of the output that are off by more than rounding, (B, H, T, E)."""
        got, right = self.output, self.expected_output
        with np.errstate(all="ignore"):
            near = np.abs(got - right) <= self.output_tolerance
        return ~(near | (got == right) | (np.isnan(got) & np.isnan(right)))

    @cached_property
    def rightly_lost(self):
        """Rows that are NaN or infinite, and should be, (B, H, T)."""
        lost = ~np.isfinite(self.expected_output) & ~np.isfinite(self.output)
        return self.view.row_exists & lost.any(-1)

    # values

    @cached_property
    def value(self):
        """The values, (B, K, S, E)."""
        return self.view.operand("value")

    def of_heads(self, array):
        """An array (B, K, ...) repeated for the query heads that are looked at."""
        return self.view.of_heads(array)

    def applied(self, weights, absolute=False):
        """weights @ value, (B, H, T, E), where weights of 0 hide whatever the value is."""
        value = np.nan_to_num(self.value, nan=0.0, posinf=0.0, neginf=0.0)
        return self.view.applied(weights, np.abs(value) if absolute else value)

    def _right_columns(self):
        """Columns of the output in which to read weights: those that are right where only some are wrong."""
        wrong = self.off.any((0, 1, 2))
        rows = np.broadcast_to(self.view.row_exists, self.output.shape[:3])
        dead = (self.output == 0)[rows].all(0) & (self.expected_output != 0)[rows].any(0)
        self.dead_columns = dead if not dead.all() else np.zeros(len(wrong), bool)
        if self.dead_columns.any():
            self.wrong_columns = self.dead_columns
            return np.flatnonzero(~dead)
        count = int((~wrong).sum())
        self.wrong_columns = wrong if 0 < count < len(wrong) else np.zeros(len(wrong), bool)
        return np.flatnonzero(~wrong) if count >= max(len(wrong) // 8, 1) else np.arange(len(wrong))

    @cached_property
    def unexplained(self):
        """Output minus what the measured weights make of the caller's values, over what rounding allows."""
        with np.errstate(all="ignore"):
            left = np.abs(self.output - self.applied(self.weights))
            left = left / np.maximum(self.output_tolerance, 1e-300)
        left[..., self.other_columns] = 0.0
        judged = self.view.row_exists & ~self.rightly_lost
        return np.where(judged[..., None], np.nan_to_num(left, nan=np.inf), 0.0)
