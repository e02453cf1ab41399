"""From the ledgers of a merge to words: the stages of `Description` where a merge differs from attention."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from refattn.oracle.bounds.results import LSE, OUTPUT
from refattn.oracle.imaging.compare import EXTRA, MISSING, RIGHT, SCALED
from refattn.oracle.imaging.describe import Description
from refattn.oracle.imaging.factors_in_words import same_here, span
from refattn.oracle.imaging.findings import Finding
from refattn.oracle.imaging.maps import describe_map
from refattn.oracle.imaging.pointing import DIGIT
from refattn.oracle.imaging.region import Regions
from refattn.oracle.imaging.states_features import STATE_FEATURES
from refattn.oracle.imaging.states_models import explain_lse, explain_weights, lse_follows, nearest_weights
from refattn.oracle.imaging.visible_keys import sum_note

FEW = 8  # counts that survive the rounding of one state's part of an output in bfloat16
HALVINGS = 10
SAME = 2  # other models that say the same, told beside the first
# words of attention in the sentences of the stages that a merge shares with it
WORDS = (
    ("entrys", "entries"),
    ("the values", "the outputs of the states"),
    ("Values", "Outputs of states"),
    ("values", "outputs of the states"),
)


class StateRegions(Regions):
    def __init__(self, view):
        super().__init__(view, STATE_FEATURES)


def describe_states(measured, ledgers, regions):
    """Findings about a merge, the most probable cause first."""
    with np.errstate(all="ignore"):  # a wrong kernel may hold anything
        return StatesDescription(measured, ledgers, regions).run()


class StatesDescription(Description):
    """What differs in a merge of states."""

    def _unseen_rows(self):
        """States are hidden by no rule of positions."""
        return ()

    def run(self):
        self.model = None  # of weights, that explains what was measured
        return [
            dataclasses.replace(finding, nature=_of_states(finding.nature), note=_of_states(finding.note))
            for finding in super().run()
        ]

    def _empty_rows(self):
        """Rows of which every state is empty."""
        l, m, view = self.ledgers, self.measured, self.view
        if l.nan.any() and self._recovers(l.nan):
            nature = "outputs of empty states (lse -inf) that are NaN or infinite reach the result"
            yield self.finding(
                self.of_rows(l.nan),
                "NaN rows",
                nature,
                "Rows are finite when those are 0. Their weight is 0, and 0 * NaN is NaN.",
            )
            self.explained |= l.nan
        filled = view.empty & ~(m.output == 0).all(-1) & ~self.explained
        if not filled.any():
            return
        finite = np.isfinite(m.output[filled])
        what = (
            "not 0" if finite.all() else "NaN or infinite" if not finite.any() else "partly NaN or infinite"
        )
        nature = f"the merge of states that are all empty (lse -inf) is {what}: it should be (0, -inf)"
        note = (
            ""
            if finite.all()
            else "Where all lses are -inf, lse - largest lse is NaN, or the sum to divide by is 0."
        )
        yield self.finding(self.of_rows(filled, view.empty), "empty rows", nature, note)
        self.explained |= view.empty

    def _recovers(self, rows):
        """Whether rows are finite when outputs of empty states that are not finite are 0."""
        outputs = self.view.operand("value")
        hidden = ~self.view.visible[..., None] & ~np.isfinite(outputs)
        if not hidden[rows].any():
            return False
        arrays = self.view.with_outputs(np.where(hidden, 0.0, outputs))
        output = self.measured.probes.output("outputs of empty states made 0", arrays)
        return np.isfinite(output[rows]).all(-1).mean() > 0.9

    def _lost_rows(self):
        l, view = self.ledgers, self.view
        yield from self._modelled()  # rows may be 0 since their weights are those of others
        for rows, kind, nature in (
            (l.nan & ~view.empty, "NaN rows", "rows are NaN or infinite"),
            (l.zero, "zero rows", "rows are 0, as if all their states were empty"),
        ):
            rows = rows & ~self.explained
            if rows.any():
                rule = self.of_rows(rows, self.rows & ~view.empty)
                yield self.finding(rule, kind, nature, self._why_lost(rows))
                self.explained |= rows
        yield from self._not_finite()

    def _why_lost(self, rows):
        """What lost rows depend on: the size of the lses, or empty states."""
        m, view = self.measured, self.view
        lost = lambda output: (~np.isfinite(output).all(-1) | ~(np.abs(output) > 0).any(-1)) & rows
        top = np.where(np.isfinite(view.top), view.top, 0.0)[..., None]
        shifted = lambda share: lost(
            m.probes.output("lses less a number of the row", view.with_lses(view.lses - share * top))
        )
        if shifted(1.0).sum() > 0.1 * rows.sum():
            some = (~view.visible).any(-1)
            if rows.any() and some[rows].all() and not some[view.row_exists & ~view.empty & ~rows].any():
                return "They have an empty state (lse -inf), and no other row has one."
            return (
                "They stay so when the largest lse is subtracted from all lses: their size does not matter."
            )
        low, high = 0.0, 1.0  # lost at low, right at high
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if shifted(middle).sum() > 0.5 * rows.sum() else (low, middle)
        edge = float(np.median((top[..., 0] * (1 - high))[rows]))
        fails = f"{'overflows' if edge > 0 else 'gives 0'} where it is beyond about {edge:.3g}"
        return (
            "They recover when the largest lse is subtracted from all lses: "
            f"the largest lse is not subtracted before exp, which {fails}."
        )

    def _not_finite(self):
        """Rows with a state that is NaN or infinite, which a right merge does not hide."""
        m, view = self.measured, self.view
        rows = view.not_finite
        hides = rows & np.isfinite(m.output).all(-1)
        if m.lse is not None:
            hides |= rows & ~np.isfinite(view.lses).all(-1) & np.isnan(view.lses).any(-1) & ~np.isnan(m.lse)
        if hides.any():
            finding = self.finding(
                self.of_rows(hides, rows),
                "NaN states",
                "a state that is NaN is swallowed: it counts as empty or 0, and the result hides it",
            )
            yield dataclasses.replace(
                finding,
                place="a state of the row is NaN or infinite"
                + (f" and {finding.place}" if finding.place else ""),
            )

    def _sources(self):
        """Outputs of the states that are read at other rows, heads, batch entries or columns."""
        l, m = self.ledgers, self.measured
        rows = (
            (m.unexplained > 1)[..., ~m.dead_columns].any(-1)
            & self.view.row_exists
            & ~l.nan
            & ~l.zero
            & ~self.explained
        )
        if not rows.any():
            return
        for words, moved in self._places(rows):
            if "column" in words:  # weights are read off columns
                self.explained |= self.view.row_exists
            yield self.finding(
                self.of_rows(moved), "source", f"the outputs of the states are read elsewhere: {words}"
            )
            self.value_rows |= rows if moved[rows].mean() > 0.8 else moved

    def _places(self, rows):
        m, view = self.measured, self.view
        batch, heads, length, _ = view.shape
        b, h, t = np.indices(view.shape[:3], sparse=True)
        for state in (None, *range(min(view.num_keys, 8))):
            found, least = False, 0.5 if state is None else 0.3
            whose = "" if state is None else f" (state {state})"
            for name, number, count in (("row", t, length), ("head", h, heads), ("batch entry", b, batch)):
                own = np.broadcast_to(number, view.shape[:3])
                read, valid = self._read(own[..., None, None], count, state)
                read, valid = read[..., 0], valid.all(-1)
                moved = rows & valid & (read != own)
                if count > 1 and moved.sum() > least * rows.sum():
                    words, _ = describe_map(own[moved], read[moved], name, [(count, str(count))])
                    found = True
                    yield words + whose, moved
            column = np.arange(view.v_head_dim)
            read, valid = self._read(column, len(column), state)
            moved = rows[..., None] & valid & (read != column) & ~m.dead_columns
            if moved.any(-1).sum() > least * rows.sum():
                own = np.broadcast_to(column, moved.shape)
                found = True
                yield describe_map(own[moved], read[moved], "column")[0] + whose, moved.any(-1)
            if found:
                return

    def _read(self, number, count, state):
        """What a merge of outputs that hold `number` gives, in one state or all, and where it is whole."""
        m, view = self.measured, self.view
        only = np.ones(view.num_keys) if state is None else np.arange(view.num_keys) == state
        merged = lambda numbers: m.probes.output(
            "outputs that name their place", view.with_outputs(numbers * only[:, None])
        )
        # one state's part of the output is rounded; the numbers that all states hold are not
        digit = FEW if state is not None and m.spec.output.unit_roundoff > 1e-5 else DIGIT
        weight, whole = merged(1.0), -1.0  # places are counted from 1, so that a 0 is none
        valid = np.abs(weight) > 1e-3
        for n in range(max(math.ceil(math.log(count + 1, digit) - 1e-9), 1)):
            with np.errstate(all="ignore"):
                got = merged((number + 1) // digit**n % digit) / weight
            valid = valid & (np.abs(got - np.round(got)) < 0.05)
            whole = whole + np.round(np.where(np.isfinite(got), got, 0)) * digit**n
        return whole.astype(int), valid & (whole >= 0) & (whole < count)

    def _modelled(self):
        """Weights that a model predicts whole."""
        l, view = self.ledgers, self.view
        rows = (
            (l.wrong.any(-1) | (l.sum_off != 0) | l.zero)
            & view.row_exists
            & ~view.empty
            & ~self.explained
            & ~l.nan
        )
        if rows.any() and (explained := explain_weights(l, rows)):
            if l.zero[rows].mean() > 0.9 and not explained[0].everywhere:
                return  # rows of 0, which say nothing of other weights
            self.model = explained[0].model
            yield self._told(explained, rows, "weights")
            self.explained |= rows | (view.empty & l.wrong.any(-1))

    def _visible(self):
        """States that lose their weight or gain one."""
        l, view = self.ledgers, self.view
        open_rows = ~self.explained[..., None]
        for label, right, kind, nature in (
            (MISSING, view.weights > 0, "missing states", "states that should count get no weight"),
            (EXTRA, view.weights == 0, "extra states", "states that should not count get weight"),
        ):
            wrong = (l.labels == label) & open_rows
            if wrong.any():
                note = sum_note(self, wrong) if label == MISSING else ""
                yield self.finding(
                    self.regions.find(wrong, l.judged & right & open_rows),
                    kind,
                    nature,
                    note,
                    minor=self.is_minor(wrong),
                )

    def _told(self, explained, rows, kind, end=""):
        """That a model explains the wrong rows (B, H, T), and where, if it does not hold in all rows."""
        first = explained[0]
        others = [] if first.model.fitted else explained[1 : 1 + SAME]
        words = same_here(first.model.words, [other.model.words for other in others])
        rule = self.of_rows(rows, rows | first.differs)
        finding = self.finding(rule, kind, words + end, model=True)
        place = "" if first.everywhere else finding.place
        return dataclasses.replace(finding, place=place, verified=self._verifies(first.model, rows))

    def _verifies(self, model, rows):
        """Whether the weights of a model predict the caller's own output; an lse was compared already."""
        m = self.measured
        if model.weights is None:
            return True
        with np.errstate(all="ignore"):
            off = np.abs(m.applied(np.nan_to_num(model.weights)) - m.output)
        return bool((off <= 3 * m.output_tolerance)[rows][:, ~m.wrong_columns].mean() > 0.9)

    def _scaled(self):
        l, view = self.ledgers, self.view
        open_rows = ~self.explained[..., None]
        wrong = (l.labels == SCALED) & open_rows
        if not wrong.any():
            return
        universe = ((l.labels == RIGHT) | (l.labels == SCALED)) & (view.weights > 0) & open_rows
        rule = self.regions.find(wrong, universe)
        factors = np.exp((l.ratio - l.shift[..., None])[wrong & np.isfinite(l.ratio)])
        if factors.size and np.ptp(factors) < 0.03 * factors.mean():
            yield self.finding(
                rule,
                "weight factor",
                f"weights of states are multiplied by {factors.mean():.4g}, beside the others of their row",
            )
            return
        spread = (
            f"Factors of single weights beside their row: {span(factors, '.3g')}." if factors.size else ""
        )
        yield self.finding(
            rule,
            "scaled weights",
            "weights of states have other ratios than their lses give",
            spread,
            confident=False,
        )

    def _sums(self):
        l = self.ledgers
        wrong = (l.sum_off != 0) & ~self.explained & ~l.wrong.any(-1)
        if wrong.any():
            sums = l.sum[wrong]
            spread = f"The weights of such a row sum to {span(sums)}."
            nature = "rows are divided by a wrong sum of weights, or multiplied by a wrong factor"
            yield self.finding(self.of_rows(wrong), "normaliser", nature, spread, confident=False)

    def _lse(self):
        l, m, view = self.ledgers, self.measured, self.view
        if m.lse is not None:
            bound = np.nan_to_num(view.cut(LSE, view.bounds(m.spec).lse_bound), posinf=0.0)
            with np.errstate(all="ignore"):
                wrong = view.row_exists & ~((m.lse == view.lse) | (np.abs(m.lse - view.lse) <= bound))
            wrong &= (
                ~(l.nan & ~np.isfinite(m.lse)) | view.empty
            )  # rows that are lost as a whole are told already
            if any(finding.kind == "empty rows" for finding in self.found):
                wrong &= ~(view.empty & np.isnan(m.lse))
        if not self.found and not self._output_is_right():
            for finding in self._small_differences():
                self.found.append(finding)
        if m.lse is not None:
            if self.model is not None and self.model.lse is not None:
                wrong &= ~lse_follows(l, self.model.lse, wrong, bound)
            elif self.model is None and l.wrong.any():
                # what follows from the weights that the kernel gave is no fault of its own
                with np.errstate(all="ignore"):
                    own = np.abs(m.lse - view.lse + l.shift) <= 4 * m.tolerance[..., 0] + bound
                wrong &= ~(own & l.wrong.any(-1))
            yield from self._wrong_lse(wrong, bound)

    def _output_is_right(self):
        m, view = self.measured, self.view
        bounds = view.bounds(m.spec)
        right, bound = view.cut(OUTPUT, bounds.output), view.cut(OUTPUT, bounds.output_bound)
        with np.errstate(all="ignore"):
            return bool(((np.abs(m.output - right) <= bound) | ~np.isfinite(right)).all())

    def _wrong_lse(self, wrong, bound):
        m, view = self.measured, self.view
        right = "; the output is right" if self._output_is_right() else ""
        empty = wrong & view.empty
        joined = None if self.model is None else self.model.lse
        explained = explain_lse(self.ledgers, wrong, bound, joined) if (wrong & ~empty).any() else []
        if empty.any() and not explained:
            values = ", ".join(f"{value:.5g}" for value in np.unique(m.lse[empty])[:3])
            nature = f"the merged lse of rows of which every state is empty is {values} in place of -inf"
            yield self.finding(self.of_rows(empty, view.empty), "lse", nature)
            wrong = wrong & ~empty
            explained = explain_lse(self.ledgers, wrong, bound, joined) if wrong.any() else []
        if explained:
            yield self._told(explained, wrong, "lse", right)
        elif wrong.any():
            off = (m.lse - view.lse)[wrong & np.isfinite(m.lse) & np.isfinite(view.lse)]
            spread = (
                f"the merged lse is off by {span(off)}"
                if off.size
                else f"the merged lse is {m.lse[wrong][0]}"
            )
            yield self.finding(self.of_rows(wrong), "lse", spread + right, confident=False)

    def _small_differences(self):
        """What all weights together point to, where the format of the output hides each one."""
        self.model = nearest_weights(self.ledgers)
        if self.model is not None:
            yield Finding(
                "weights",
                self.model.words,
                note="Single weights are off by less than the output's format shows; all together tell it.",
            )
        else:
            off = np.abs(self.measured.output - self.measured.expected_output) / np.maximum(
                self.measured.output_tolerance, 1e-300
            )
            words = (
                "the output is off by little more than rounding, and the measured weights do not show why"
            )
            yield Finding(
                "weights",
                words,
                note=f"The largest error is {np.nanmax(off):.3g} of what a single weight may be off by.",
                confident=False,
            )


def _of_states(text):
    for attention, states in WORDS:
        text = text.replace(attention, states)
    return text
