"""From the ledgers to words: what differs, by the stage of the kernel that it points to, and where.

`Description.run` goes through the stages in the order of a kernel, so that a cause comes before what follows from it.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from refattn.oracle.xray.compare import EXTRA, MISSING, RIGHT, SCALED
from refattn.oracle.xray.copies import copied_rows
from refattn.oracle.xray.edges import edges_in_words
from refattn.oracle.xray.findings import Finding
from refattn.oracle.xray.formats_seen import grid_of, steps_of, weights_grid
from refattn.oracle.xray.key_sources import find_key_sources
from refattn.oracle.xray.layouts import explain_layout
from refattn.oracle.xray.lost_rows import threshold_in_words
from refattn.oracle.xray.numbers_in_words import ranges
from refattn.oracle.xray.row_numbers import LSE, NORMALISER, explain_row_number
from refattn.oracle.xray.score_models import explain_scores
from refattn.oracle.xray.segments import explain_segments, find_segments
from refattn.oracle.xray.sources import find_sources
from refattn.oracle.xray.value_changes import explain_values
from refattn.oracle.xray.visibility_models import explain_visibility
from refattn.oracle.xray.wrong_rows import WrongRows

SMALL = 0.05  # logarithm of a factor: less is a matter of precision
FEW = 0.3
REPRODUCED = 0.97  # of the rows of a place
MINOR = 0.1  # of all wrong pairs: less than that is what follows from something else


def describe(measured, ledgers, regions):
    """Findings, the most probable cause first."""
    with np.errstate(all="ignore"):  # a wrong kernel may hold anything
        return Description(measured, ledgers, regions).run()


def of_columns(findings, columns, measured):
    """Findings that hold in some columns of the output only."""
    count = len(measured.wrong_columns)
    words = f"in columns {ranges(columns.tolist())} of {count} of the output"
    return [
        dataclasses.replace(finding, nature=f"{words}, {finding.nature}")
        for finding in findings
        if finding.kind != "lse"
    ]


class Description:
    """What differs, found stage by stage; `explained` (B, H, T) are rows whose difference something already explains."""

    def __init__(self, measured, ledgers, regions):
        self.measured, self.ledgers, self.regions, self.view = measured, ledgers, regions, measured.view
        self.found = []
        self.rows = self.view.row_exists & np.ones(self.view.shape[:3], bool)
        self.explained = np.zeros(self.view.shape[:3], bool)
        self.stray = None  # rows with weight on what no sequence holds, its share, and words for it
        self.value_rows = np.zeros(self.view.shape[:3], bool)  # rows known to read values elsewhere

    def run(self):
        if hasattr(self.measured, "findings"):  # estimates come with what explains them
            found = self.measured.findings(self.regions)
            most = max((finding.wrong for finding in found), default=0)
            # an explanation of few rows beside many that are not explained is no answer
            self.found.extend(dataclasses.replace(f, minor=f.confident and f.wrong < FEW * most) for f in found)
            self.explained |= self.measured.told
        for stage in (
            self._races,
            self._dead_columns,
            self._formats,
            self._latents,
            self._copies,
            self._empty_rows,
            self._unseen_rows,
            self._lost_rows,
            self._layouts,
            self._sources,
            self._visible,
            self._past_length,
            self._scaled,
            self._sums,
            self._values,
            self._lse,
        ):
            if not (self.explained | ~self.rows).all() or stage == self._lse:
                self.found.extend(stage())
        return self._ordered()

    def _ordered(self):
        order = {True: 0, False: 1}
        return sorted(self.found, key=lambda f: (f.minor, order[f.confident] if f.minor else 0))

    def _finding(self, rule, kind, nature, note="", model=False, **more):
        """`model`: the nature says which pairs are wrong by itself; the rule is no more than where they lie."""
        if model and (rule.fit < 0.9 or len(rule.statements) > 2):
            rule = dataclasses.replace(rule, statements=())
        return Finding(
            kind,
            nature,
            str(rule) if rule.statements else "",
            note,
            rule.wrong,
            rule.hit,
            rule.right_inside,
            region=rule.inside,
            verified=self._reproduced(rule.inside.any(-1)),
            **more,
        )

    def _reproduced(self, rows):
        """Whether the measured weights give the caller's own result in these rows (B, H, T)."""
        rows = np.broadcast_to(rows, self.view.shape[:3]) & ~self.ledgers.nan & ~self.value_rows
        return bool(rows.any() and (self.measured.unexplained <= 1).all(-1)[rows].mean() > REPRODUCED)

    def _of_rows(self, wrong, universe=None):
        """The rule for wrong rows (B, H, T)."""
        universe = self.rows if universe is None else universe
        return self.regions.find(wrong[..., None], universe[..., None], row_level=True)

    # stages

    def _races(self):
        varies = self.measured.varies
        if varies.any():
            rule = self._of_rows(varies)
            yield self._finding(
                rule,
                "race",
                "the same call gives different results from one time to the next: a race or memory that is not written",
            )
            self.explained |= varies

    def _dead_columns(self):
        dead = np.flatnonzero(self.measured.dead_columns)
        if len(dead):
            yield Finding(
                "columns",
                f"columns {ranges(dead.tolist())} of {len(self.measured.dead_columns)} of the output are 0 in every row: they are not computed or not written",
            )

    def _formats(self):
        """Output, or weights, on the grid of a coarser format."""
        m, view = self.measured, self.view
        output = m.output[view.row_exists & ~self.ledgers.nan & ~self.ledgers.zero]
        name = grid_of(output, m.spec.output.unit_roundoff)
        steps = 0 if name else steps_of(output, m.spec.output.unit_roundoff)
        if not (np.abs(m.output - m.expected_output) > m.output_tolerance).any():
            return
        if name or steps:
            how = name or f"whole multiples of 1/{steps} of the row's largest number (int8)"
            yield Finding(
                "format", f"the output is stored as {how} in between: all its numbers lie on that grid"
            )
            self.explained |= view.row_exists
            return
        if name := weights_grid(self.ledgers):
            yield Finding(
                "format",
                f"weights are rounded to {name} before the product with the values: all of them lie on its grid",
            )
            self.explained |= view.row_exists

    def _latents(self):
        wrong = getattr(self.measured, "wrong_latents", None)
        if wrong is not None and wrong.any():
            yield Finding(
                "latents",
                f"the weighted sum of latents is wrong in components {ranges(np.flatnonzero(wrong).tolist())} of {len(wrong)} and right in the others: these components are accumulated, rescaled or read otherwise",
                confident=False,
            )
            self.explained |= self.view.row_exists

    def _copies(self):
        """Wrong rows that hold the right result of other rows."""
        found = copied_rows(self.measured, self.rows & ~self.explained)
        if found is None:
            return
        rows, words = found
        rule = self._of_rows(rows)
        yield self._finding(rule, "copies", f"rows hold the right result of other rows: {words}")
        self.explained |= rows

    def _empty_rows(self):
        """Rows that see no key, whose output is not 0."""
        m, view = self.measured, self.view
        filled = view.empty & ~(m.output == 0).all(-1)
        if not filled.any():
            return
        rule = self._of_rows(filled)
        weights = m.weights[filled]
        finite = np.isfinite(m.output[filled]).all()
        with np.errstate(all="ignore"):
            used = weights > 0
            even = (
                used.any(-1).all()
                and (np.abs(weights - 1 / used.sum(-1, keepdims=True)) < 0.02 / used.sum(-1, keepdims=True))[
                    used
                ].all()
            )
        what = (
            "hold the mean of all values, as if every hidden key had the same score"
            if even
            else "are not 0"
            if finite
            else "are NaN or infinite"
        )
        note = ""
        extra = (self.ledgers.labels == EXTRA) & filled[..., None]
        if extra.any() and not even:
            used = self.regions.find(extra, view.exists & filled[..., None])
            note = (
                f"They give weight to hidden keys{', where ' + str(used) if used.statements else ''}. "
                + self._softmax_of_hidden(extra)
            )
        yield self._finding(rule, "empty rows", f"rows that see no key {what}", note)
        self.explained |= view.empty

    def _softmax_of_hidden(self, extra):
        """Whether rows without keys are a softmax over the hidden keys that they use."""
        view = self.view
        with np.errstate(all="ignore"):
            level = np.where(
                extra & np.isfinite(view.score), np.log(self.measured.weights) - view.score, np.nan
            )
        rows = extra.any(-1)
        spread = np.nanmax(level[rows], -1) - np.nanmin(level[rows], -1)
        if (spread < 0.02 + 4 * self.measured.tolerance[..., 0][rows]).mean() > 0.9:
            return "Those weights are the softmax of their own scores: what hides is a large finite number, not -inf, so that a row of which everything is hidden sees what is hidden least."
        return ""

    def _layouts(self):
        l = self.ledgers
        wrong = (l.wrong.any(-1) | (self.measured.unexplained > 1).any(-1)) & self.view.row_exists
        if wrong.sum() < (0.8 if not self.view.latent else 0.2) * self.view.row_exists.sum() * len(
            self.view.heads
        ):
            return
        if words := explain_layout(self.measured):
            yield Finding("layout", words)
            self.explained |= self.view.row_exists

    def _unseen_rows(self):
        """Rows that are 0 because none of their keys is visible to the kernel, as a rule of visibility says."""
        l, view = self.ledgers, self.view
        lost = l.zero & ~self.explained
        if not lost.any() or not view.visible.any():
            return
        missing = ((l.labels == MISSING) & ~self.explained[..., None]) | (lost[..., None] & view.visible)
        extra = (l.labels == EXTRA) & ~self.explained[..., None]
        model = explain_visibility(l, missing, extra, l.judged | lost[..., None])
        if model is None:
            return
        words, _, change = model
        rule = self.regions.find(missing | extra, view.exists & ~self.explained[..., None])
        note = f"{int(lost.sum()):,} rows lose all their keys and are 0."
        yield self._finding(rule, "visible keys", words, note, model=True)
        self.explained |= (change & (missing | extra)).any(-1)

    def _lost_rows(self):
        for rows, kind, nature in (
            (self.ledgers.nan, "NaN rows", "rows are NaN"),
            (self.ledgers.zero, "zero rows", "rows are 0, as if they saw no key"),
        ):
            if rows.any():
                rule = self._of_rows(rows)
                yield self._finding(rule, kind, nature, threshold_in_words(self.measured, rows))
                self.explained |= rows

    def _sources(self):
        l, m = self.ledgers, self.measured
        doubtful = (m.unexplained > 1).any(-1) & ~l.nan & ~l.zero
        lost = (l.labels == MISSING).any(-1)
        other = ((l.labels == EXTRA) | (l.labels == SCALED)).any(-1)
        if not ((doubtful | other) & ~self.explained).any() and not (lost & (l.sum_off != 0)).any():
            return
        for finding, rows in find_sources(self):
            yield finding
            self.explained |= rows

    def _past_length(self):
        """Weight on slots that no sequence holds; where hidden keys count, it follows from them."""
        stray = self.stray
        if stray is None or not (stray[0] & ~self.explained).any():
            return
        rows, share, where = stray
        rule = self._of_rows(rows & ~self.explained)
        yield self._finding(
            rule,
            "past the length",
            f"{where} get weight ({100 * share:.2g} % of such a row)",
            minor=any(f.kind == "extra keys" for f in self.found),
        )
        self.explained |= rows

    def _visible(self):
        """Visible sets that are other ones, as a rule says, or as the region of missing and extra keys."""
        l, view = self.ledgers, self.view
        open_rows = ~self.explained[..., None]
        missing, extra = (l.labels == MISSING) & open_rows, (l.labels == EXTRA) & open_rows
        if not missing.any() and not extra.any():
            return
        view.candidate_widths = self._widths(missing)
        model = explain_visibility(l, missing, extra)
        constant = self._constant_extra_score(extra)
        if model is not None and constant is None:
            words, fit, change = model
            both = missing | extra
            rule = self.regions.find(both, (l.judged & view.exists) & open_rows)
            note = [
                f"{int(missing.sum()):,} pairs lose their weight and {int(extra.sum()):,} gain one.",
                self._sum_note(missing),
                self._extra_score(extra) if extra.any() else "",
            ]
            yield self._finding(rule, "visible keys", words, " ".join(filter(None, note)), model=True)
            return
        yield from self._missing(missing, open_rows)
        yield from self._extra(extra, open_rows)

    def _widths(self, missing):
        """Widths of a window that the first keys used in rows with missing keys suggest."""
        view = self.view
        rows = missing.any(-1)
        there = self.measured.weights > 4 * self.measured.floor
        some = rows & there.any(-1)
        if not some.any():
            return ()
        widths = (view.position[..., 0] - there.argmax(-1))[some]
        values, counts = np.unique(widths, return_counts=True)
        return tuple(int(v) for v in values[np.argsort(-counts)][:2] if v >= 0)

    def _missing(self, wrong, open_rows):
        l, view = self.ledgers, self.view
        if not wrong.any():
            return
        rule = self.regions.find(wrong, l.judged & (view.weights > 0) & open_rows)
        note = [edges_in_words(l, wrong.any(-1)), self._sum_note(wrong)]
        yield self._finding(
            rule,
            "missing keys",
            "keys that should be seen get no weight",
            " ".join(filter(None, note)),
            minor=self._minor(wrong),
        )

    def _sum_note(self, missing):
        return (
            self._sum_in_words(np.where(missing, self.view.weights, 0).sum(-1), missing.any(-1))
            if missing.any()
            else ""
        )

    def _sum_in_words(self, lost, rows):
        """Whether the sum of a row counts the keys that are missing."""
        l = self.ledgers
        use = rows & (lost > 20 * self.measured.tolerance[..., 0]) & ~l.zero & ~l.nan
        if not use.any():
            return ""
        full = np.abs(l.sum - l.right_sum)[use]
        less = np.abs(l.sum - (l.right_sum - lost))[use]
        tolerance = 4 * self.measured.tolerance[..., 0][use]
        if (less <= tolerance).mean() > 0.8:
            self.explained |= rows
            return "The normaliser still counts them: the weights of these rows sum to less than 1."
        if (full <= tolerance).mean() > 0.8:
            return "The normaliser leaves them out too, as if they did not exist."
        return ""

    def _minor(self, wrong):
        return wrong.sum() < MINOR * max((self.ledgers.wrong & ~self.explained[..., None]).sum(), 1)

    def _extra(self, wrong, open_rows):
        l, view = self.ledgers, self.view
        if not wrong.any():
            return
        rule = self.regions.find(wrong, l.judged & (view.weights == 0) & open_rows)
        constant = self._constant_extra_score(wrong)
        if constant is not None:
            cap = view.outline_of(0).softcap
            meaning = (
                " (minus the softcap: they are hidden before the softcap is applied)"
                if cap and abs(constant + cap) < 1e-2 * cap
                else ""
            )
            nature = f"keys that should be hidden count with a score of {constant:.4g}{meaning} in place of -inf, whatever their key is"
            yield self._finding(
                rule, "extra keys", nature, edges_in_words(l, wrong.any(-1)), minor=self._minor(wrong)
            )
            return
        note = [edges_in_words(l, wrong.any(-1)), self._extra_score(wrong)]
        yield self._finding(
            rule,
            "extra keys",
            "keys that should be hidden get weight",
            " ".join(filter(None, note)),
            minor=self._minor(wrong),
        )

    def _extra_scores(self, wrong):
        """Scores with which hidden keys count, up to what the right keys of the row share, and their tolerance; where known."""
        l, view = self.ledgers, self.view
        with np.errstate(all="ignore"):
            score = np.log(self.measured.weights) - l.shift[..., None] + view.lse[..., None]
        at = wrong & np.isfinite(score)
        return score, at, 3 * np.broadcast_to(self.measured.tolerance, view.shape)

    def _constant_extra_score(self, wrong):
        """The one score with which all hidden keys count, or None."""
        score, at, tolerance = self._extra_scores(wrong)
        if at.sum() < 8:
            return None
        middle = float(np.median(score[at]))
        near = np.abs(score[at] - middle) <= tolerance[at] + 1e-3
        return middle if near.mean() > 0.8 else None

    def _extra_score(self, wrong):
        """Whether hidden keys count with their own score."""
        score, at, tolerance = self._extra_scores(wrong)
        at = at & np.isfinite(self.view.score)
        if not at.any():
            return ""
        own = np.abs(score - self.view.score)[at] <= tolerance[at]
        return "They count with their own score." if own.mean() > 0.8 else ""

    def _scaled(self):
        l = self.ledgers
        wrong = (l.labels == SCALED) & ~self.explained[..., None]
        # a few pairs beyond the tolerance, in rows that are right otherwise, are rounding
        if not wrong.any() or (self._minor(wrong) and self.found):
            return
        tolerance = np.broadcast_to(self.measured.tolerance, self.view.shape)[wrong]
        off = np.abs(l.ratio - l.shift[..., None])[wrong]
        if wrong.sum() < 0.003 * l.judged.sum() and np.nanmax(off / tolerance) < 4:
            return
        universe = (
            ((l.labels == RIGHT) | (l.labels == SCALED))
            & (self.view.weights > 0)
            & ~self.explained[..., None]
        )
        rule = self.regions.find(wrong, universe)
        factors = np.exp((l.ratio - l.shift[..., None])[wrong & np.isfinite(l.ratio)])
        spread = (
            f"Factors of single weights, beside the rest of their row: {factors.min():.3g} to {factors.max():.3g}."
            if factors.size
            else ""
        )
        constant = factors.size and np.ptp(factors) < 0.03 * factors.mean()
        segments = (
            None
            if constant and rule.fit > 0.97 and abs(factors.mean() - round(factors.mean())) < 0.01
            else find_segments(l)
        )
        if segments is not None:
            best = explain_segments(l, segments)
            if best:
                words, share, *steps = best[0]
                if steps:
                    rule = self._steps_rule(steps[0], segments)
                yield self._finding(rule, "segments", f"in {segments.words}, {words}", spread)
                return
        if factors.size and np.abs(np.log(factors)).max() < SMALL:
            best = explain_scores(WrongRows(l, wrong)) if wrong.sum() >= 3 else []
            words = (
                f"scores are wrong: {best[0].words}"
                if best
                else f"weights are less exact than the arithmetic allows, by up to {100 * np.abs(np.log(factors)).max():.2g} %: scores, exponentials or weights are computed or stored with fewer bits"
            )
            yield self._finding(rule, "precision", words)
            return
        if words := find_key_sources(l, wrong):
            yield self._finding(
                rule, "keys", f"keys are read from other places, values from the right ones: {words}"
            )
            return
        if constant:
            yield self._finding(rule, "weight factor", f"weights are multiplied by {factors.mean():.4g}")
            return
        if wrong.sum() >= 3:
            best = explain_scores(WrongRows(l, wrong))
            if best:
                also = (
                    "; or, which is the same here, " + best[1].words
                    if len(best) > 1
                    and best[1].share >= best[0].share - 0.01
                    and best[1].numbers == best[0].numbers
                    else ""
                )
                yield self._finding(rule, best[0].kind, f"scores are wrong: {best[0].words}{also}")
                return
        if segments is not None:
            yield self._finding(
                rule,
                "segments",
                f"weights are off by one factor in each of the {segments.words}: they are rescaled or joined wrongly",
                spread,
                confident=False,
            )
            return
        yield self._finding(
            rule,
            "scaled weights",
            "weights have other ratios than their scores give",
            spread,
            confident=False,
        )

    def _steps_rule(self, near, segments):
        """Where rescaling went wrong: the tiles in which it should have happened."""
        wrong = np.zeros(self.view.shape, bool)
        tile = np.searchsorted(segments.edges, np.arange(self.view.num_keys), "right") - 1
        wrong[...] = near[..., tile]
        rises = np.zeros(self.view.shape, bool)
        hidden = np.where(self.view.visible, self.view.score, -np.inf)
        running = np.maximum.accumulate(np.maximum.reduceat(hidden, segments.edges, axis=-1), axis=-1)
        with np.errstate(all="ignore"):
            up = np.diff(running, axis=-1, prepend=np.inf) > 0
        up[..., 0] = False
        rises[...] = up[..., tile]
        return self.regions.find(wrong, rises | wrong)

    def _sums(self):
        l = self.ledgers
        wrong = (l.sum_off != 0) & ~self.explained & ~(l.labels == MISSING).any(-1)
        if not wrong.any():
            return
        rule = self._of_rows(wrong)
        best = max(
            explain_row_number(l, -l.sum_off, wrong, self.regions, NORMALISER),
            key=lambda e: round(e[1], 2),
            default=None,
        )
        sums = l.sum[wrong]
        spread = f"The weights of such a row sum to {sums.min():.4g} to {sums.max():.4g}."
        if best:
            yield self._finding(rule, "normaliser", best[0], spread)
        else:
            yield self._finding(
                rule,
                "normaliser",
                "rows are divided by a wrong normaliser, or multiplied by a wrong factor",
                spread,
                confident=False,
            )

    def _values(self):
        yield from explain_values(self)

    def _lse(self):
        l, view = self.ledgers, self.view
        # what follows from the weights that the kernel gave is no fault of its own
        with np.errstate(all="ignore"):
            own = l.lse_off + l.shift
        near = np.abs(own) <= 4 * self.measured.tolerance[..., 0] + 1e-5
        wrong = (l.lse_off != 0) & ~near & view.row_exists & ~l.nan & ~l.zero
        if any(f.kind != "normaliser" and not f.minor for f in self.found):
            wrong &= (np.abs(l.sum_off) == 0) & ~self.explained & ~l.wrong.any(-1)
            if wrong.sum() < 0.2 * view.row_exists.sum():
                return
        if not wrong.any():
            return
        if (
            any(f.kind == "normaliser" for f in self.found)
            and (
                np.abs(l.lse_off + l.sum_off)[wrong] <= 1e-3 + 4 * self.measured.tolerance[..., 0][wrong]
            ).mean()
            > 0.9
        ):
            return
        rule = self._of_rows(wrong)
        empty = wrong & view.empty
        if (empty == wrong).all():
            values = np.unique(np.round(self.measured.lse[wrong], 4))
            yield self._finding(
                rule,
                "lse",
                f"lse of rows that see no key is {', '.join(f'{v:.5g}' for v in values[:3])} in place of -inf",
            )
            return
        infinite = wrong & ~np.isfinite(self.measured.lse)
        if infinite.any() and infinite.sum() > 0.9 * wrong.sum():
            yield self._finding(
                rule, "lse", f"lse is {self.measured.lse[infinite][0]} in rows that see keys"
            )
            return
        name = grid_of(
            self.measured.lse[view.row_exists & np.isfinite(self.measured.lse)],
            self.measured.spec.lse.unit_roundoff,
        )
        if name:
            yield self._finding(
                rule,
                "format",
                f"lse is stored as {name}: all its numbers lie on that grid{'' if self.found else '; the output is right'}",
            )
            return
        best = max(
            explain_row_number(l, l.lse_off, wrong, self.regions, LSE),
            key=lambda e: round(e[1], 2),
            default=None,
        )
        off = l.lse_off[wrong & np.isfinite(l.lse_off)]
        spread = f"lse is off by {off.min():.4g} to {off.max():.4g}" if off.size else "lse is not finite"
        right = "; the output is right" if not self.found else ""
        if best:
            yield self._finding(rule, "lse", f"{best[0]}{right}", spread + ".")
        else:
            yield self._finding(rule, "lse", f"{spread}{right}", confident=False)
