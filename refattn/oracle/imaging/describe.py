"""From the ledgers to words: what differs, by the stage of the kernel that it points to, and where.

`Description.run` goes through the stages in the order of a kernel, so that a cause comes before what follows
from it.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from refattn.oracle.bounds.results import OUTPUT, RESULTS
from refattn.oracle.imaging.compare import EXTRA, MISSING, RIGHT, SCALED, Ledgers
from refattn.oracle.imaging.copies import copied_rows, held_by_empty
from refattn.oracle.imaging.counted_again import counted_again
from refattn.oracle.imaging.factors_in_words import same_here, sentence_case, span
from refattn.oracle.imaging.faint_numbers import faint_numbers
from refattn.oracle.imaging.findings import Finding
from refattn.oracle.imaging.formats_seen import grid_of, parts_grid, steps_of, weights_grid
from refattn.oracle.imaging.kept_outputs import kept_outputs
from refattn.oracle.imaging.key_runs import find_key_runs
from refattn.oracle.imaging.key_sources import find_key_sources
from refattn.oracle.imaging.lane_maxima import explain_lane_maxima
from refattn.oracle.imaging.layouts import explain_layout
from refattn.oracle.imaging.listed_keys import rule_or_list
from refattn.oracle.imaging.lost_rows import threshold_in_words
from refattn.oracle.imaging.maps import ranges
from refattn.oracle.imaging.overflows import overflow_in_words, saturation
from refattn.oracle.imaging.pool_description import at_rows
from refattn.oracle.imaging.row_numbers import LSE, NORMALISER, explain_row_number, rows_changed
from refattn.oracle.imaging.score_models import explain_scores
from refattn.oracle.imaging.score_noise import noise_in_words
from refattn.oracle.imaging.segment_models import Stretches, explain_segments, first_tile_lost
from refattn.oracle.imaging.segments import find_segments
from refattn.oracle.imaging.sources import find_sources
from refattn.oracle.imaging.stored_order import copied_columns, stored_order
from refattn.oracle.imaging.underflows import underflow_in_words
from refattn.oracle.imaging.value_changes import explain_values
from refattn.oracle.imaging.visible_keys import (
    explain_filled_rows,
    explain_unseen_rows,
    explain_visible_keys,
    values_left_out,
)
from refattn.oracle.imaging.wrong_rows import WrongRows

NO_CAUSE = "off by one number in each row, from"
FAINT = 0.01  # logarithm of a factor: less than that is a matter of bits
SMALL = 0.05  # logarithm of a factor: less is a matter of precision
FEW = 0.3
FEW_ROWS = 12  # that differ by chance: fewer lie in some place by accident
MOST = 0.8  # of the rows or pairs that a sentence speaks of
NEARLY_ALL = 0.9
REPRODUCED = 0.97  # of the rows of a place
MINOR = 0.1  # of all wrong pairs: less than that is what follows from something else
SCALED_BY_CHANCE, BEYOND = 0.003, 4  # of the judged pairs; times the tolerance
SAME_SHARE = 0.002  # of the wrong pairs: explanations that differ by less say the same here
NOT_OF_SCORES = ("exp", "stale weights", "softmax")  # kinds that speak of what comes after the scores
OF_WEIGHTS = (  # kinds of findings that weights alone decide
    "missing keys",
    "extra keys",
    "visible keys",
    "components",
    "keys",
    "query",
    "scale",
    "scores",
    "segments",
    "weight factor",
)
RECORDS = {result.name: result for result in RESULTS}  # findings about a result are of the kind of its name


def describe(measured, ledgers, regions):
    """Findings, the most probable cause first."""
    with np.errstate(all="ignore"):  # a wrong kernel may hold anything
        return Description(measured, ledgers, regions).run()


def of_columns(findings, columns, measured, told=()):
    """Findings that hold in some columns of the output only, other than those told of other columns."""
    words = f"in columns {ranges(columns.tolist())} of {len(measured.wrong_columns)} of the output"
    return [
        dataclasses.replace(finding, nature=f"{words}, {finding.nature}")
        for finding in findings
        if RECORDS.get(finding.kind, OUTPUT).has_dims and (finding.kind, finding.nature) not in told
    ]


class Description:
    """What differs, found stage by stage.

    Attributes
    ----------
    found : list of Finding
    rows, explained : ndarray of bool, (B, H, T)
        Rows there are; those whose difference something already explains.
    value_rows : ndarray of bool, (B, H, T)
        Rows known to read values elsewhere.
    stray : (ndarray of bool, (B, H, T), float, str) or None
        Rows with weight on what no sequence holds, its share, and words for what it lies on.
    """

    def __init__(self, measured, ledgers, regions):
        self.measured, self.ledgers, self.regions, self.view = measured, ledgers, regions, measured.view
        self.found = []
        self.rows = self.view.row_exists & np.ones(self.view.shape[:3], bool)
        self.explained = measured.rightly_lost.copy()
        self.value_rows = np.zeros(self.view.shape[:3], bool)
        self.stray = None

    def run(self):
        if races := list(self._races()):  # whatever else is seen may come from it
            return races
        told = self.measured.findings(self.regions)
        most = max((finding.wrong for finding in told), default=0)
        # an explanation of few rows beside many that are not explained is no answer
        self.found += [dataclasses.replace(f, minor=f.confident and f.wrong < FEW * most) for f in told]
        self.explained |= self.measured.told
        for stage in (
            self._dead_columns,
            self._formats,
            self._latents,
            self._order,
            self._copies,
            self._kept,
            self._filled_rows,
            self._empty_rows,
            self._unseen_rows,
            self._lost_rows,
            self._added,
            self._layouts,
            self._sources,
            self._visible,
            self._past_length,
            self._scaled,
            self._sums,
            self._values,
        ):
            if not (self.explained | ~self.rows).all() and self.measured.in_time("describing all of it"):
                self.found.extend(stage())
        if self.view.latent and self.measured.probes is not None:
            # weights are read with other latents: what does not give the call itself may come from them
            self.found = [self._doubted(finding) for finding in self.found]
        self.found.extend(self._lse())
        if self.measured.nan_of_zeros is not None:
            nature = (
                "rows are NaN when rows of the values are all 0, as in a division by a scale of 0 (0 / 0); "
                "in this call no row of the values is"
            )
            self.found.append(Finding("zeros", nature, minor=bool(self.found)))
        if not self.found:
            self.found.extend(faint_numbers(self))
        return sorted(
            self.found, key=lambda finding: (finding.minor, finding.minor and not finding.confident)
        )

    def _doubted(self, finding):
        doubt = finding.region is not None and not finding.verified and finding.kind in OF_WEIGHTS
        return dataclasses.replace(finding, confident=False) if doubt else finding

    def finding(self, rule, kind, nature, note="", model=False, **more):
        """A finding at the place of a rule, or everywhere without one. `model`: the nature says which pairs
        are wrong by itself; the rule is no more than where they lie.
        """
        if rule is None:
            return Finding(kind, nature, note=note, **more)
        if model and (rule.fit < NEARLY_ALL or len(rule.statements) > 2):
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

    def of_rows(self, wrong, universe=None):
        """The rule for wrong rows (B, H, T)."""
        universe = self.rows if universe is None else universe
        return self.regions.find(wrong[..., None], universe[..., None], row_level=True)

    # whole rows and columns

    def _races(self):
        varies = self.measured.varies
        if varies.any():
            nature = (
                "the same call gives different results from one time to the next: "
                "a race or memory that is not written"
            )
            rule = self.of_rows(varies)
            if varies.sum() < FEW_ROWS or rule.fit < NEARLY_ALL:  # other rows may be lost in other calls
                rule = dataclasses.replace(rule, statements=())
            note = f"{varies.sum():,} of {self.rows.sum():,} rows differ in three calls."
            yield self.finding(rule, "race", nature, note)

    def _added(self):
        """Rows that hold something that is no weighted mean of values."""
        added = self.measured.added & ~self.explained
        if not added.any():
            return
        nature = (
            "the output holds numbers that do not come from the values: with all values 0 it is not 0 "
            "(memory that is not written, or something that is added)"
        )
        yield self.finding(self.of_rows(added), "added", nature)
        self.explained |= added

    def _dead_columns(self):
        dead = self.measured.dead_columns
        if dead.any():
            columns = f"columns {ranges(np.flatnonzero(dead).tolist())} of {len(dead)} of the output"
            nature = f"{columns} are 0 in every row: they are not computed or not written"
            yield self.finding(None, "columns", nature)

    def _formats(self):
        """Output, or weights, on the grid of a coarser format."""
        m, view = self.measured, self.view
        if not (np.abs(m.output - m.expected_output) > m.output_tolerance).any():
            return
        if (cut := saturation(m)) is not None:
            yield self.finding(self.of_rows(cut[0]), "overflow", cut[1])
            self.explained |= cut[0]
            return
        output = m.output[view.row_exists & ~self.ledgers.nan & ~self.ledgers.zero]
        stored = grid_of(output, m.spec.output.unit_roundoff)
        if not stored and (steps := steps_of(output, m.spec.output.unit_roundoff)):
            stored = f"whole multiples of 1/{steps} of the row's largest number (int8)"
        if stored:
            nature = f"the output is stored as {stored} in between: all its numbers lie on that grid"
        elif name := weights_grid(self.ledgers):
            before = "before the product with the values"
            nature = f"weights are rounded to {name} {before}: all of them lie on its grid"
            if not self._reproduced(self.rows):  # the sums of what was measured one by one are no sums
                nature = (
                    f"the accumulator is kept in {name}: each weight alone lies on its grid, and what they "
                    "add up to is rounded to it too"
                )
        elif (parts := parts_grid(self.ledgers))[0]:
            nature = f"the results of splits of {parts[1]} are stored as {parts[0]} before they are joined"
        else:
            return
        yield self.finding(None, "format", nature)
        self.explained |= view.row_exists

    def _latents(self):
        """MLA: arrays that are read elsewhere; components of the weighted latents that are wrong."""
        if self.view.latent and not self.measured.partial:
            yield from self._read_otherwise(least=0.2)
        wrong = self.measured.wrong_latents
        if wrong.any() and not self.explained.all():
            yield from self._components_of_latents(wrong)
            self.explained |= self.rows

    def _components_of_latents(self, wrong):
        """What is wrong in some components of the weighted latents, from the weights that they see."""
        components = f"components {ranges(np.flatnonzero(wrong).tolist())} of {len(wrong)} of the latents"
        other = self.measured.in_wrong_components() if self.measured.probes is not None else None
        found = [] if other is None else Description(other, Ledgers(other), self.regions).run()
        for finding in found:
            if finding.kind not in RECORDS:
                nature = f"in the accumulator, {components} alone are wrong: {finding.nature}"
                yield dataclasses.replace(finding, nature=nature)
        if not found:
            nature = (
                f"the weighted sum of latents is wrong in {components} and right in the others: "
                "these components are accumulated, rescaled or read otherwise"
            )
            yield self.finding(None, "latents", nature, confident=False)

    def _copies(self):
        """Wrong rows that hold the right result of other rows."""
        found = copied_rows(self.measured, self.rows & ~self.explained)
        if found is not None:
            rows, words = found
            nature = f"rows hold the right result of other rows: {words}"
            finding = at_rows(self, rows, "copies", nature)
            if finding.right_inside > FEW * finding.hit:  # right rows are no copies
                finding = self.finding(
                    dataclasses.replace(self.of_rows(rows), statements=()), "copies", nature
                )
            yield finding
            self.explained |= rows

    def _kept(self):
        """Wrong rows that hold a part of the result of other rows."""
        found = kept_outputs(self.measured, self.rows & ~self.explained)
        if found is not None:
            rule = self.of_rows(found.rows)
            if (
                rule.fit < REPRODUCED
            ):  # rows of which the one before was not computed by that worker are right
                rule = dataclasses.replace(rule, statements=())
            yield self.finding(rule, "kept state", found.words)
            self.explained |= found.rows

    def _order(self):
        """Numbers of the output that are right but stored in other places."""
        copied = copied_columns(self.measured)
        words = copied or stored_order(self.measured)
        if words and not (self.explained & ~self.measured.rightly_lost).any():
            yield self.finding(None, "copied columns" if copied else "layout", words)
            self.explained |= self.view.row_exists

    def _empty_rows(self):
        """Rows that see no key, whose output is not 0."""
        m, view = self.measured, self.view
        filled = view.empty & ~self.explained & ~(m.output == 0).all(-1)
        if not filled.any():
            return
        even, note = _is_even(m.weights[filled]), ""
        held = held_by_empty(m, filled)
        if held:
            what = held
        elif even:
            what = "hold the mean of all values, as if every hidden key had the same score"
        else:
            what = "are not 0" if np.isfinite(m.output[filled]).all() else "are NaN or infinite"
        extra = (self.ledgers.labels == EXTRA) & filled[..., None]
        if extra.any() and not even and not held:
            used = self.regions.find(extra, view.exists & filled[..., None])
            where = f", where {used}" if used.statements else ""
            note = f"They give weight to hidden keys{where}. {self._softmax_of_hidden(extra)}"
        yield self.finding(self.of_rows(filled), "empty rows", f"rows that see no key {what}", note)
        self.explained |= view.empty

    def _softmax_of_hidden(self, extra):
        """Whether rows without keys are a softmax over the hidden keys that they use."""
        view, rows = self.view, extra.any(-1)
        level = np.log(self.measured.weights) - view.score
        level = np.where(extra & np.isfinite(view.score), level, np.nan)[rows]
        spread = np.nanmax(level, -1) - np.nanmin(level, -1)
        if (spread < 0.02 + 4 * self.measured.tolerance[..., 0][rows]).mean() <= NEARLY_ALL:
            return ""
        return (
            "Those weights are the softmax of their own scores: what hides is a large finite number, not "
            "-inf, so that a row of which everything is hidden sees what is hidden least."
        )

    def _filled_rows(self):
        yield from explain_filled_rows(self)

    def _unseen_rows(self):
        yield from explain_unseen_rows(self)

    def _lost_rows(self):
        for rows, kind, nature in (
            (self.ledgers.nan, "NaN rows", "rows are NaN"),
            (self.ledgers.zero, "zero rows", "rows are 0, as if they saw no key"),
        ):
            if rows.any():
                note = ""
                if words := overflow_in_words(self.measured, rows):
                    kind, nature = "overflow", words
                elif kind == "zero rows" and (words := underflow_in_words(self.view, rows)):
                    kind, nature = "underflow", words
                else:
                    note = threshold_in_words(self.measured, rows)
                yield at_rows(self, rows, kind, nature, note)
                self.explained |= rows

    # where arrays are read

    def _layouts(self):
        if not self.view.latent:
            yield from self._read_otherwise(least=0.8)

    def _read_otherwise(self, least):
        """Arrays that are read in another way, where so many of all rows are wrong."""
        m = self.measured
        wrong = m.off.any(-1) & ~self.ledgers.nan & (m.output != 0).any(-1) & self.view.row_exists
        if wrong.sum() < least * self.rows.sum():
            return
        if words := explain_layout(m):
            yield self.finding(None, "layout", words, verified=True)
            self.explained |= self.view.row_exists

    def _sources(self):
        l, m = self.ledgers, self.measured
        doubtful = (m.unexplained > 1).any(-1) & ~l.nan & ~l.zero
        lost = (l.labels == MISSING).any(-1)
        other = ((l.labels == EXTRA) | (l.labels == SCALED)).any(-1)
        if not ((doubtful | other) & ~self.explained).any() and not (lost & (l.sum_off != 0)).any():
            return
        if values_left_out(self):
            return  # nothing else is read
        for finding, rows in find_sources(self):
            yield finding
            self.explained |= rows

    def _past_length(self):
        """Weight on slots that no sequence holds; where hidden keys count, it follows from them."""
        stray = self.stray
        if stray is None or not (stray[0] & ~self.explained).any():
            return
        rows, share, where = stray
        nature = f"{where} get weight ({100 * share:.2g} % of such a row)"
        minor = any(finding.kind == "extra keys" for finding in self.found)
        yield self.finding(self.of_rows(rows & ~self.explained), "past the length", nature, minor=minor)
        self.explained |= rows

    def _visible(self):
        for finding, pairs in counted_again(self):
            yield finding
            self.explained |= pairs.any(-1)
        yield from explain_visible_keys(self)

    def is_minor(self, wrong):
        """Whether so few pairs are wrong, beside others, that they may follow from those."""
        return wrong.sum() < MINOR * max((self.ledgers.wrong & ~self.explained[..., None]).sum(), 1)

    # how much they count

    def _scaled(self):
        l, view = self.ledgers, self.view
        open_rows = ~self.explained[..., None]
        wrong = (l.labels == SCALED) & open_rows
        # a few pairs beyond the tolerance, in rows that are right otherwise, are rounding
        if not wrong.any() or (self.is_minor(wrong) and self.found):
            return
        tolerance = np.broadcast_to(self.measured.tolerance, view.shape)[wrong]
        off = np.abs(l.ratio - l.shift[..., None])[wrong]
        if wrong.sum() < SCALED_BY_CHANCE * l.judged.sum() and np.nanmax(off / tolerance) < BEYOND:
            return
        universe = (((l.labels == RIGHT) & (view.weights > 0)) | wrong) & open_rows
        yield self._why_scaled(wrong, rule_or_list(self.regions, wrong, universe))

    def _why_scaled(self, wrong, rule):
        l = self.ledgers
        factors = np.exp((l.ratio - l.shift[..., None])[wrong & np.isfinite(l.ratio)])
        spread, constant = "", False
        if factors.size:
            spread = f"Factors of single weights, beside the rest of their row: {span(factors, '.3g')}."
            constant = np.ptp(factors) < 0.03 * factors.mean()
        whole = constant and rule.fit > 0.97 and abs(factors.mean() - round(factors.mean())) < 0.01
        # one key in a row is no stretch
        cuts = [] if whole or wrong.sum(-1).max() == 1 else find_segments(l)
        for segments in cuts:
            if not (best := explain_segments(l, segments)):
                continue
            if first_tile_lost(l).any():
                spread += " The first tile is lost: no tile is before it."
            if best.steps is not None:
                rule = self._steps_rule(best.steps, segments)
            else:
                rows = wrong.any(-1)
                rule = self.of_rows(
                    rows, self.rows & (rows | Stretches(l, segments).changes(best.predicted))
                )
            note = f"{spread} {self._whether_summed(wrong.any(-1))}".rstrip()
            return self.finding(rule, "segments", f"in {segments.words}, {best.words}", note)
        scores = lambda: explain_scores(WrongRows(l, wrong)) if wrong.sum() >= 3 else []
        if factors.size and np.abs(np.log(factors)).max() < SMALL:
            best = scores()
            words = _scores_in_words(best) if best else _precision_in_words(factors)
            note = "" if best else noise_in_words(WrongRows(l, wrong))
            return self.finding(rule, "precision", words, note)
        if words := find_key_sources(l, wrong):
            nature = f"keys are read from other places, values from the right ones: {words}"
            return self.finding(rule, "keys", nature)
        words, rows = find_key_runs(l, wrong) if wrong.sum() >= 3 else ("", None)
        if words:
            return at_rows(self, rows, "keys", words)
        if constant:
            words = self._times_in_words(factors, wrong)
            if wrong.sum() == 1:  # the words hold the place
                rule = dataclasses.replace(rule, statements=())
            return self.finding(rule, "weight factor", words)
        best = scores()
        # a number of its own in each row names no cause
        look = (not best or NO_CAUSE in best[0].words) and wrong.sum() >= 3
        if look and (words := explain_lane_maxima(WrongRows(l, wrong))):
            return self.finding(self.of_rows(wrong.any(-1)), "maxima of lanes", words, spread)
        if best:
            if best[0].whole and rule.fit < REPRODUCED:  # it says itself which pairs are wrong
                rule = dataclasses.replace(rule, statements=())
            if best[0].kind == "softmax":  # what such weights sum to follows
                self.explained |= wrong.any(-1)
            return self.finding(rule, best[0].kind, _scores_in_words(best))
        kind, nature = "scaled weights", "weights have other ratios than their scores give"
        if cuts:
            segments = cuts[0]
            kind, each = "segments", f"each of the {segments.words}"
            nature = f"weights are off by one factor in {each}: they are rescaled or joined wrongly"
        return self.finding(rule, kind, nature, spread, confident=False)

    def _times_in_words(self, factors, wrong):
        """Words for one factor of weights, of one key in a row also as a change of its score."""
        words, off = (
            f"weights are multiplied by {factors.mean():.4g}",
            f"off by {np.log(factors.mean()):+.3g}",
        )
        if wrong.sum(-1).max() > 1 or self.ledgers.sum_off[wrong.any(-1)].any():
            return words
        if wrong.sum() > 1:
            return f"{words} beside the rest of their row: their scores are {off}"
        b, h, t, key = np.argwhere(wrong)[0]
        where = f"row {self.view.row[b, 0, t, 0]} of query head {self.view.heads[h]}"
        where += f" of sequence {b}" if len(self.view.sequences) > 1 else ""
        return f"the score of key {key} is {off} in {where}"

    def _whether_summed(self, rows):
        """Whether the normaliser of rows (B, H, T) has what the weights have."""
        off = self.ledgers.sum_off[rows] != 0
        if off.mean() < MINOR:
            return "The row sums have it too: the weights still sum to 1."
        if self.measured.lse is None or (self.ledgers.lse_off[rows] != 0).any():
            return ""
        self.explained |= rows
        return "The row sums are right."

    def _steps_rule(self, near, segments):
        """Where rescaling went wrong: the tiles in which it should have happened. `near` are the stretches
        in which it went wrong, (B, H, T, stretches).
        """
        tile = segments.number(self.view.num_keys)
        rises = np.diff(Stretches(self.ledgers, segments).running, axis=-1, prepend=np.inf) > 0
        rises[..., 0] = False
        of_keys = lambda x: np.take_along_axis(x, np.broadcast_to(tile, self.view.shape), -1)
        rule = self.regions.find(of_keys(near), of_keys(rises | near))
        first = inside = (tile == 0) & self.view.visible
        for statement in rule.statements:
            inside = inside & statement.holds(self.regions.array(statement.feature))
        if rule.statements and inside.sum() > FEW * first.sum():
            rises[..., 0] = True  # nothing can rise in the first stretch, which is no part of the place
            rule = self.regions.find(of_keys(near), of_keys(rises | near))
        return rule

    # one number a row

    def _sums(self):
        l = self.ledgers
        wrong = (l.sum_off != 0) & ~self.explained & ~(l.labels == MISSING).any(-1)
        if self.view.dropped is not None:  # the sum of weights that are not dropped is another one
            wrong &= ~((l.labels == EXTRA) & self.view.dropped).any(-1)
        if not wrong.any():
            return
        sums = l.sum[wrong]
        spread = f"The weights of such a row sum to {span(sums)}."
        nature, recipe = self._row_number(-l.sum_off, wrong, NORMALISER)
        rule = self._rule_of_number(-l.sum_off, wrong, NORMALISER, nature, recipe)
        unknown = "rows are divided by a wrong normaliser, or multiplied by a wrong factor"
        most = np.abs(l.sum_off[wrong]).max()
        if not nature and most < FAINT:
            nature = (
                f"the normaliser, or the division by it, is less exact than claimed: rows are off by up to "
                f"{100 * most:.2g} %"
            )
        yield self.finding(rule, "normaliser", nature or unknown, spread, confident=bool(nature))

    def _row_number(self, delta, wrong, number):
        """Words for what explains a wrong number of rows (B, H, T) best, "" where nothing does; and what
        says where else it would show, or None.
        """
        explained = explain_row_number(self.ledgers, delta, wrong, self.regions, number)
        words, _, recipe = max(explained, key=lambda entry: round(entry[1], 2), default=("", 0.0, None))
        return words, recipe

    def _rule_of_number(self, delta, wrong, number, words, recipe):
        """The rule for rows of a wrong number, among the rows in which its explanation can be seen."""
        changed = None
        if words:
            changed = rows_changed(self.ledgers, delta, self.regions, number, words, recipe)
        rule = self.of_rows(wrong, None if changed is None else self.rows & (changed | wrong))
        if words and rule.fit < MOST:  # a place that says little beside a nature that is known
            rule = dataclasses.replace(rule, statements=())
        return rule

    def _values(self):
        yield from explain_values(self)

    def _lse(self):
        l, view, tolerance = self.ledgers, self.view, self.measured.tolerance[..., 0]
        # what follows from the weights that the kernel gave is no fault of its own
        follows = np.abs(l.lse_off + l.shift) <= 4 * tolerance + 1e-5
        wrong = (l.lse_off != 0) & ~follows & view.row_exists & ~l.nan & ~l.zero
        if any(finding.kind != "normaliser" and not finding.minor for finding in self.found):
            wrong &= (l.sum_off == 0) & ~self.explained & ~l.wrong.any(-1)
            if wrong.sum() < 0.2 * view.row_exists.sum():
                return
        if not wrong.any():
            return
        if any(finding.kind == "normaliser" for finding in self.found):
            with_sum = np.abs(l.lse_off + l.sum_off) <= 1e-3 + 4 * tolerance
            if with_sum[wrong].mean() > NEARLY_ALL:
                return
        yield self._why_lse(wrong)

    def _why_lse(self, wrong):
        l, view, lse = self.ledgers, self.view, self.measured.lse
        rule = self.of_rows(wrong)
        right = "" if self.found else "; the output is right"
        if not (wrong & ~view.empty).any():
            values = ", ".join(f"{v:.5g}" for v in np.unique(np.round(lse[wrong], 4))[:3])
            return self.finding(rule, "lse", f"lse of rows that see no key is {values} in place of -inf")
        if not (wrong & view.visible.any(-1)).any() and np.isneginf(lse[wrong]).all():
            return self.finding(
                rule, "lse", "lse of rows that see no key is -inf: the sink is missing from it"
            )
        infinite = wrong & ~np.isfinite(lse)
        if infinite.sum() > NEARLY_ALL * wrong.sum():
            return self.finding(rule, "lse", f"lse is {lse[infinite][0]} in rows that see keys")
        known = lse[view.row_exists & np.isfinite(lse)]
        if name := grid_of(known, self.measured.spec.lse.unit_roundoff):
            nature = f"lse is stored as {name}: all its numbers lie on that grid{right}"
            return self.finding(rule, "format", nature)
        off = l.lse_off[wrong & np.isfinite(l.lse_off)]
        spread = f"lse is off by {span(off)}" if off.size else "lse is not finite"
        words, recipe = self._row_number(l.lse_off, wrong, LSE)
        if words:
            rule = self._rule_of_number(l.lse_off, wrong, LSE, words, recipe)
            return self.finding(rule, "lse", words + right, f"{sentence_case(spread)}.")
        return self.finding(rule, "lse", spread + right, confident=False)


def _is_even(weights):
    """Whether rows (N, S) give all weight to some keys, the same to each."""
    used = weights > 0
    each = 1 / used.sum(-1, keepdims=True)
    return used.any(-1).all() and (np.abs(weights - each) < 0.02 * each)[used].all()


def _precision_in_words(factors):
    most = 100 * np.abs(np.log(factors)).max()
    return (
        f"weights are less exact than the arithmetic allows, by up to {most:.2g} %: "
        "scores, exponentials or weights are computed or stored with fewer bits"
    )


def _scores_in_words(explained):
    """The best explanation of scores, and the next one where it is as good."""
    best, *others = explained
    words = best.words if best.kind in NOT_OF_SCORES else f"scores are wrong: {best.words}"
    same = others and others[0].share >= best.share - SAME_SHARE
    if same and others[0].numbers == best.numbers == 0:
        return same_here(words, [others[0].words])
    return words
