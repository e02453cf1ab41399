"""The weights of a kernel that cannot be called, as far as its output for one call shows them.

The output of a row is a sum of values with unknown weights: E numbers for S unknowns. Where the heads of a
row see the same keys their equations stand together. Explanations are tried from the simple to the free; one
is believed where it leaves nothing but rounding in a row and could hardly do so by chance. Rows that none
explains keep the right weights and are `unknown`.
"""

from __future__ import annotations

import time
from functools import cached_property, partial

import numpy as np

from refattn.oracle.imaging import estimated_findings, source_explanations
from refattn.oracle.imaging.estimated_findings import family_of
from refattn.oracle.imaging.explanations import FITS_MOST, Rows
from refattn.oracle.imaging.extra_keys import extra_keys
from refattn.oracle.imaging.features import first_seen, last_seen
from refattn.oracle.imaging.format_explanations import coarse_formats
from refattn.oracle.imaging.moved_outputs import added_rows, moved_columns
from refattn.oracle.imaging.number_fits import scores_with_a_number
from refattn.oracle.imaging.other_pages import other_pages, other_tiles, shifted_values, value_tables
from refattn.oracle.imaging.other_scores import (
    components,
    curved,
    other_for_classes_of_keys,
    other_for_some_keys,
    other_scores,
)
from refattn.oracle.imaging.reading import Reading
from refattn.oracle.imaging.set_explanations import RANGES, any_set, hidden_alike, key_ranges, one_key
from refattn.oracle.imaging.view import VALUE
from refattn.oracle.imaging.weight_explanations import all_pieces, any_weights, factor

LEAST_EVIDENCE = 7.0  # logarithm of the odds that a fit of a row is no chance
TRIAL = 24  # rows on which an explanation is tried first
WITH_TRIALS = (1, 3)  # the stages whose explanations try some rows first themselves
MOSTLY = 0.7
FREE = 0.1  # cost from which an explanation is a free one
LIKE_ONE = 0.95  # of the rows that explanations which differ in a number explain together
KNOWN = 0.03  # of the rows: what an explanation of other rows may explain less than a new one
LEAST_SHARE = 0.3  # of the rows that are still unknown: what a free explanation must explain
ROWS_AT_A_TIME = 2**21  # weights in one block


class Estimated(Reading):
    """What the results of one call tell of a kernel's weights.

    Parameters
    ----------
    view : View
    output, lse : mapping of results by record, or ndarrays (B, H, T, E) and (B, H, T); lse may be None
    spec : KernelSpec
    seconds : float

    Attributes
    ----------
    wrong_rows : ndarray of bool, (B, H, T)
    unknown : ndarray of bool, (B, H, T)
        Wrong rows that nothing explains; their `weights` are the right ones.
    determined : ndarray of bool, (B, H, T, S)
        Weights that the output shows.
    explained : mapping of str to ndarray of bool, (B, H, T)
        Rows by what explains them.
    stopped : bool
        The time ended before everything was tried.
    numbers : mapping of str to mapping of str to ndarray, (B, H, T)
        Numbers of the explanations, NaN in other rows.
    """

    def __init__(self, view, output, lse, spec, seconds=5.0, columns=None):
        super().__init__(view, spec, output, lse)
        self._end = time.monotonic() + seconds
        if columns is None:
            self._leave_out_wrong_columns()
            self._leave_out_dead_columns()
        else:
            self.columns, self.dead_columns = columns, np.zeros(output.shape[-1], bool)
            self.wrong_columns = ~np.isin(np.arange(output.shape[-1]), columns)
        self.deviation = self._deviation()
        with np.errstate(all="ignore"):
            off = (
                np.abs(self.output - self.expected_output)[..., self.columns]
                / self.deviation[..., self.columns]
            )
        off = np.where(np.isnan(off), np.inf, off)
        self.wrong_rows = view.row_exists & (off.max(-1, initial=0.0) > FITS_MOST)
        self.weights = view.weights.copy()
        self.unknown = self.wrong_rows.copy()
        self.determined = self._sensitive()
        self.explained, self.numbers, self.stopped = {}, {}, False
        self.pages_of_rows, self.value_changes, self.tile_moves, self.pairs = {}, {}, {}, {}
        self.orders, self.displacements, self.curves = {}, set(), {}
        self._helped, self._made_by = [], {}  # places in `_stages` of what explained rows
        self._plain_rows()
        self._coarse_rows()
        blocks = list(self._blocks())
        for block in blocks:
            self._explain(block)

    def left(self):
        """Seconds left."""
        return self._end - time.monotonic()

    def left_of(self, block):
        """Wrong rows of a block that nothing explains so far, (H, N); all of those of a part of it."""
        sequence, left = self._left
        left = left if sequence == block.sequence and left.shape == block.wrong.shape else block.wrong
        return left if left.any() else block.wrong

    @cached_property
    def sources(self):
        """As of `Measured`: all weight counts as that of the own head and sequence, for want of calls."""
        view = self.view
        entries = [(part, n) for part, array in enumerate(view.slots[VALUE]) for n in range(len(array))]
        own = np.array([entries.index((s.part, s.entry)) for s in view.sequences])
        total = np.nan_to_num(self.weights.sum(-1))[..., None]
        heads = view.heads[:, None] // view.group_size == np.arange(view.num_kv_heads)
        sequences = own[:, None] == np.arange(len(entries))
        nothing = np.zeros((*total.shape[:3], 2))
        return total * heads[None, :, None], total * sequences[:, None, None], nothing, own

    @property
    def told(self):
        """Rows of which `findings` speaks, (B, H, T): unknown ones, and explanations beyond weights."""
        beyond = [
            rows
            for name, rows in self.explained.items()
            if not name.startswith(estimated_findings.OF_THE_LEDGERS)
        ]
        return np.logical_or.reduce([self.unknown, *beyond])

    def findings(self, regions):
        """Findings that do not follow from the weights alone."""
        return estimated_findings.findings(self, regions)

    @cached_property
    def unexplained(self):
        """What the weights leave, where no explanation says so itself; what is unknown is told apart."""
        told = np.logical_or.reduce([self.unknown, *self.explained.values()])
        left = Reading.unexplained.func(self).copy()
        left[told] = 0.0
        left[..., np.setdiff1d(np.arange(left.shape[-1]), self.columns)] = 0.0
        return left

    def _leave_out_wrong_columns(self):
        """Columns that are wrong in nearly all wrong rows while others are right in all of them."""
        with np.errstate(all="ignore"):
            off = ~(np.abs(self.output - self.expected_output) <= self.output_tolerance)
        wrong = off[off.any(-1)]
        if len(wrong) and self.wrong_columns.any() and wrong[:, self.wrong_columns].mean() < MOSTLY:
            self.wrong_columns = np.zeros(off.shape[-1], bool)
            self.columns = np.arange(off.shape[-1])

    def _leave_out_dead_columns(self):
        """Columns that hold 0 or NaN in all rows say nothing of the weights."""
        there = self.view.row_exists & ~self.view.empty
        output = self.output[there & (np.nan_to_num(self.output) != 0).any(-1)]
        dead = ((output == 0) | ~np.isfinite(output)).all(0) & (self.expected_output[there] != 0).any(0)
        if dead.any() and (~dead).sum() >= 8 and not self.wrong_columns.any():
            self.wrong_columns, self.columns = dead, np.flatnonzero(~dead)

    def _deviation(self):
        """Standard deviation of the rounding of the output, (B, H, T, E): a generous estimate."""
        view, spec = self.view, self.spec
        value = np.nan_to_num(self.value, nan=0.0, posinf=0.0, neginf=0.0)
        squares = np.sqrt(view.weights**2 @ self.of_heads(value**2))
        size = self.applied(np.abs(view.weights), absolute=True)
        fine = self.tolerance - 4 * spec.weight.unit_roundoff - 2 * spec.output.unit_roundoff
        largest = np.abs(value).max(initial=0.0)
        with np.errstate(all="ignore"):
            output = np.nan_to_num(np.abs(self.output), nan=0.0, posinf=0.0, neginf=0.0)
        return (
            np.maximum(fine, 0) * np.maximum(size, output) / 4
            + spec.weight.unit_roundoff * squares / 1.5
            + spec.output.unit_roundoff * output / 1.5
            + spec.output.half_subnormal_step
            + 1e-9 * largest
        )

    def _sensitive(self):
        """Weights whose loss or arrival the output would show."""
        value = self.of_heads(np.nan_to_num(self.value, nan=0.0, posinf=0.0, neginf=0.0))[..., self.columns]
        scale = 1 / np.maximum(self.deviation[..., self.columns], 1e-300) ** 2
        out = self.expected_output[..., self.columns]
        distance = scale @ np.swapaxes(value**2, -1, -2) - 2 * (scale * out) @ np.swapaxes(value, -1, -2)
        distance += (scale * out**2).sum(-1, keepdims=True)
        with np.errstate(all="ignore"):
            size = np.sqrt(np.maximum(distance, 0)) * self._would_weigh()
        return np.nan_to_num(size, nan=0.0) > 2 * len(self.columns) ** 0.5

    def _would_weigh(self):
        """exp(score - lse) of every key, also of hidden ones, (B, H, T, S)."""
        view = self.view
        score = np.where(
            np.isneginf(view.score), np.where(np.isfinite(view.capped), view.capped, 0), view.score
        )
        top = np.where(view.exists, score, -np.inf).max(-1, initial=-np.inf)
        self.base = np.where(np.isfinite(view.lse), view.lse, np.where(np.isfinite(top), top, 0.0))
        base = self.base[..., None]
        return np.where(view.exists, np.exp(np.clip(score - base, -700, 60)), 0.0)

    def _plain_rows(self):
        """Rows that are NaN, infinite or 0."""
        output = self.output[..., self.columns]
        lost = self.wrong_rows & ~np.isfinite(output).all(-1)
        zero = self.wrong_rows & (output == 0).all(-1)
        self.weights[lost] = np.nan
        self.weights[zero] = 0.0
        self._note("rows that are NaN or infinite", lost)
        self._note("rows that are 0", zero)

    def _coarse_rows(self):
        """Rows stored in a coarser format in between."""
        at = self.wrong_rows & self.unknown
        for words, rows in coarse_formats(
            self.output, self.expected_output, self.deviation, self.spec.output
        ):
            # rows that look right may well be on the grid; those that are wrong must be
            if (rows & at).sum() > 0.5 * at.sum():
                self._note(words, rows & at)

    def _note(self, name, rows, says=()):
        if rows.any():
            self.explained[name] = self.explained.get(name, np.zeros_like(rows)) | rows
            self.unknown &= ~rows
            for word, values in dict(says).items():
                of = self.numbers.setdefault(name, {}).setdefault(word, np.full(rows.shape, np.nan))
                of[rows] = values[rows]

    def _blocks(self):
        """Rows of each sequence in which some head is unknown."""
        view = self.view
        would = self._would_weigh()
        start, stop = (
            np.broadcast_to(f(view), (len(view.sequences), 1, view.num_rows, 1))[:, 0, :, 0]
            for f in (first_seen, last_seen)
        )
        hidden = [view.hidden_by("mask"), view.hidden_by("bias")]
        value = self.of_heads(np.nan_to_num(self.value, nan=0.0, posinf=0.0, neginf=0.0))[..., self.columns]
        with np.errstate(all="ignore"):
            keep = np.where(view.visible, view.weights / np.where(would > 0, would, 1.0), 1.0)
        for n in range(len(view.sequences)):
            rows = np.flatnonzero(self.unknown[n].any(0))
            step = max(ROWS_AT_A_TIME // max(view.num_keys * len(view.heads), 1), 1)
            for first in range(0, len(rows), step):
                at = rows[first : first + step]
                visible = np.broadcast_to(view.visible[n], view.shape[1:])[:, at]
                allowed = np.broadcast_to(view.exists[n], view.shape[1:])[:, at].copy()
                for array in hidden:
                    if array is not None:
                        allowed &= ~np.broadcast_to(array[n], view.shape[1:])[:, at]
                p = would[n][:, at]
                sink = np.where(np.isfinite(view.lse[n][:, at]), 1 - np.where(visible, p, 0).sum(-1), 0.0)
                yield Rows(
                    n,
                    at,
                    p * np.where(view.empty[n][:, at, None], 1.0, keep[n][:, at]),
                    p,
                    np.where(sink > 1e-9, sink, 0.0),
                    value[n],
                    self.output[n][:, at][..., self.columns],
                    self.expected_output[n][:, at][..., self.columns],
                    self.deviation[n][:, at][..., self.columns],
                    self.unknown[n][:, at],
                    visible,
                    allowed,
                    start[n, at],
                    stop[n, at] + 1,
                    self.base[n][:, at],
                )

    def _explain(self, block):
        """Explain the rows of a block by as few explanations as possible: first that which explains most."""
        wrong, fits = block.wrong, []
        some = block.some(np.random.default_rng(0).permutation(len(block.rows))[:TRIAL])
        stages = [list(stage) for stage in self._stages()]
        places = [[(n, m) for m in range(len(stage))] for n, stage in enumerate(stages)]
        # what explained other rows comes first
        for place in (self._helped, *places):
            for n, m in place:
                left = wrong & ~np.logical_or.reduce([np.zeros_like(wrong), *map(_believed, fits)])
                self._left = block.sequence, left
                if self.left() < 0 or (not left.any() and m == 0):
                    self.stopped |= self.left() < 0
                    break
                explanations_of = stages[n][m]
                own_trial = n in WITH_TRIALS or explanations_of is self._of_all_rows
                tried = len(block.rows) > 2 * TRIAL and not own_trial
                if tried and not any(_believed(fit).any() for fit in explanations_of(some)):
                    continue
                new = [fit for fit in explanations_of(block) if (_believed(fit) & wrong).any()]
                fits += new
                self._made_by |= {fit.name: (n, m) for fit in new}
        for fit in self._chosen(fits, wrong):
            self._helped = list(dict.fromkeys([*self._helped, self._made_by[fit.name]]))
            self._accept(block, fit, self.unknown[block.sequence][:, block.rows])

    def _chosen(self, fits, wrong):
        fits, left = list(fits), wrong.copy()
        known = {family_of(name) for name in self.explained}  # of other sequences
        while fits and left.any():
            count = np.array([(_believed(fit) & left).sum() for fit in fits])
            families = {}
            for fit in fits:
                families.setdefault(family_of(fit.name), []).append(_believed(fit) & left)
            together = {name: LIKE_ONE * np.logical_or.reduce(of).sum() for name, of in families.items()}
            worth = [
                max(c, together[family_of(fit.name)])
                * (1 - fit.cost + (family_of(fit.name) in known) * KNOWN)
                for fit, c in zip(fits, count, strict=True)
            ]
            order = np.array(worth)
            best = int(np.lexsort((-count, -order))[0])
            # a free explanation of a few rows among many that nothing explains is chance
            fit = fits.pop(best)
            if count[best] and (fit.cost < FREE or count[best] >= LEAST_SHARE * left.sum()):
                yield fit
                left &= ~_believed(fit)

    def _accept(self, block, fit, wrong):
        n, rows = block.sequence, block.rows
        taken = _believed(fit) & wrong
        # what all heads of a row share holds for those too that do not look wrong
        spread = taken.any(0) & fit.holds.all(0) if "all heads" in fit.name else np.zeros(len(rows), bool)
        of = taken | (spread & ~self.wrong_rows[n][:, rows])
        at = np.zeros(self.unknown.shape, bool)
        at[n][:, rows] = of
        weights = fit.weights()
        self.weights[at] = weights[of]
        known = fit.determined() if callable(fit.determined) else fit.determined
        if known is not None:
            self.determined[at] &= np.broadcast_to(known, weights.shape)[of]
        says = {}
        for word, values in fit.says.items():
            says[word] = np.full(at.shape, np.nan)
            says[word][n][:, rows] = values
        if fit.pairs is not None:
            applied, unclear = self.pairs.setdefault(
                fit.name, [np.zeros(self.view.shape, bool) for _ in "12"]
            )
            applied[at], unclear[at] = fit.pairs[0][of], fit.pairs[1][of]
        taken_at = np.zeros_like(at)
        taken_at[n][:, rows] = taken
        self._note(fit.name, taken_at, says)

    def _stages(self):
        """Explanations, the simple ones first: lists of functions of rows that give fits."""
        yield [
            lambda rows: [factor(rows)],
            *(partial(key_ranges, what=what, masked=masked) for masked in (True, False) for what in RANGES),
            one_key,
            lambda rows: [hidden_alike(rows)],
            lambda rows: scores_with_a_number(self.view, rows),
            lambda rows: [source_explanations.other_rows(self, rows)],
            lambda rows: moved_columns(self, rows),
            lambda rows: extra_keys(self, rows),
            lambda rows: added_rows(self, rows),
        ]
        yield [
            lambda rows: other_pages(self, rows),
            lambda rows: source_explanations.other_heads(self, rows),
            lambda rows: other_scores(self, rows),
        ]
        yield [lambda rows: any_set(rows, self.left)]
        yield [
            lambda rows: other_for_some_keys(self, rows),
            lambda rows: other_for_classes_of_keys(self, rows),
            lambda rows: components(self, rows),
            lambda rows: curved(self, rows),
        ]
        yield [all_pieces]
        yield [
            *self._values(),
            lambda rows: other_tiles(self, rows),
            self._of_all_rows,
            lambda rows: [any_weights(rows)],
        ]

    @cached_property
    def _of_all_rows(self):
        """What takes more rows than a trial has."""
        return lambda rows: value_tables(self, rows)

    def _values(self):
        sizes = [size for size in (16, 32, 48, 64, 96, 128) if size < self.view.num_keys]
        for shift in (1, -1, 2, -2, *(sign * size for size in sizes for sign in (1, -1))):
            yield lambda rows, shift=shift: shifted_values(
                rows,
                shift,
                f"values of the key {shift} further" if shift > 0 else f"values of the key {-shift} before",
                self.left,
            )

    @property
    def floor(self):
        """Absolute error of a weight, (B, H, T, S): infinite where the output does not show the weight."""
        known = self.determined & ~self.unknown[..., None]
        return np.where(known, Reading.floor.func(self), np.inf)


def _believed(fit):
    return fit.holds & (fit.evidence > LEAST_EVIDENCE)
