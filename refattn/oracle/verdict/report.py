"""What `check` found: the verdict in words, the numbers of each tier, and ways to show them."""

from __future__ import annotations

import math

from refattn.oracle.arithmetic.spec import KernelSpec
from refattn.oracle.bounds.results import LSE, OUTPUT, RESULTS
from refattn.oracle.saved import Saved
from refattn.oracle.verdict.faults import INTERRUPTED, LEAN, NOT_JUDGED, faults, spread
from refattn.oracle.verdict.measure import Measure
from refattn.oracle.verdict.row_map import as_text

LEAN_HINT = (
    "Rounding to nearest does not lean; truncation leans toward zero. "
    "An accumulator that truncates on purpose says so: spec.replace(truncates=True). "
    "An exponential that always errs to one side needs its exp_error."
)
OTHER_ROWS = "of the others only that NaN, infinities and empty rows are where the inputs alone say so"


class Report(Saved):
    """The verdict of `check`; true when the kernel passes.

    Attributes
    ----------
    function : str
    spec : KernelSpec
    failed : tuple of str
        Failed tiers, "output tight" or "lse hard" and so on; "output not judged" where the spec allows no
        claim about any element, or a finite result is NaN or infinite and an overflow may explain it;
        "interrupted" where Ctrl-C came before all rows were looked at.
    passed : bool
        Something was judged and nothing of it is wrong. Elements of which the spec allows no claim may be
        left: see `complete`.
    wrong : bool
        Whether anything but "not judged" and "interrupted" failed: the kernel, or the spec, is wrong.
    complete : bool
        Every element was judged, in the rows that were looked at. Where it is False the summary says how
        many were not, and `assert_attention_close` warns. Rows left out by `rows` do not make it False: they
        were not asked for, and `not_looked_at` names them.
    rows_looked_at : (int, int)
        Rows of each head that were looked at, and rows that it has: of all sequences together where they are
        packed.
    not_looked_at : str
        What `rows` left out, in words; empty where every row was looked at.
    unjudged : dict
        Elements not judged, {"output": ..., "lse": ...}, because an intermediate may overflow the formats of
        the spec.
    interrupted : (int, int) or None
        Rows that were looked at before Ctrl-C came, and rows that were to be looked at.
    reproduce : str
        Lines of Python that run the check again.
    warnings : list of str
    output, lse : Measure or None
    dialect : ForeignResults or None
        How the library of `dialect=` writes the results; None where they are in the conventions of
        `refattn`.
    """

    kind = "report"

    @property
    def title(self):
        return self.function

    def __init__(self, function: str, spec: KernelSpec, inferred: bool, reference: str = "none"):
        self.function, self.spec, self.inferred, self.reference = function, spec, inferred, reference
        self.warnings, self._refused, self._measures = [], [], {}
        self.interrupted = self.dialect = None
        self.reproduce = ""

    @property
    def output(self):
        return self._measures.get(OUTPUT)

    @property
    def lse(self):
        return self._measures.get(LSE)

    @property
    def measures(self) -> list[Measure]:
        """Those of the results that were handed over and have the right shape."""
        return [self._measures[result] for result in RESULTS if result in self._measures]

    def refuse(self, name, message):
        self._refused.append((name, message))

    def warn(self, message):
        self.warnings.append(message)

    def interrupt(self, done, total):
        """Only so many rows were looked at, because Ctrl-C came: whatever they say, the result has not
        passed.
        """
        self.interrupted = done, total
        self.warn(f"Interrupted: {total - done:,} of {total:,} rows were not looked at.")

    def add(self, measure: Measure):
        self._measures[measure.result] = measure
        if measure.unclaimed:
            self.warn(
                f"{measure.unclaimed} of {measure.looked_at} elements of the {measure.name} are not judged: "
                "an intermediate may overflow the formats of the spec. "
                "Smaller inputs, or a spec with wider formats, let them be judged."
            )

    def joined(self, other):
        """This report with the measures and the warnings of another one on the same call."""
        self._measures |= other._measures
        self.warnings += [words for words in other.warnings if words not in self.warnings]
        self.interrupted = self.interrupted or other.interrupted
        return self

    def place(self, measure):
        """Where a result is worst, in words; of a library's results also where that is in its array."""
        if self.dialect is None or measure.worst is None:
            return measure.place()
        there = self.dialect.place(measure.result, measure.worst)
        return f"{measure.place()}, {there} of {self.dialect.record.name}"

    @property
    def failed(self):
        refused = tuple(f"{name} shape" for name, _ in self._refused)
        found = tuple(f"{m.name} {tier}" for m in self.measures for tier in m.failed)
        return refused + found + (INTERRUPTED,) * (self.interrupted is not None)

    @property
    def passed(self):
        return not self.failed

    @property
    def wrong(self):
        return any(not name.endswith((NOT_JUDGED, INTERRUPTED)) for name in self.failed)

    @property
    def unjudged(self):
        return {m.name: m.unclaimed for m in self.measures}

    @property
    def complete(self):
        return not self._refused and self.interrupted is None and not any(self.unjudged.values())

    @property
    def rows_looked_at(self):
        others = [measure.other_rows for measure in self.measures][:1]
        if not others or not others[0].size:
            return 0, 0
        of_head = others[0].reshape(-1, others[0].shape[-1])[0]
        return int((~of_head).sum()), len(of_head)

    @property
    def not_looked_at(self):
        done, total = self.rows_looked_at
        if done == total or self.interrupted is not None:
            return ""
        return f"{done:,} of {total:,} rows of each head looked at"

    def __bool__(self):
        return self.passed

    @property
    def left_over(self):
        """What was not judged and why, in words: "82 of 936 outputs not judged (overflow in a format of the
        spec)"; empty where all was."""
        parts = [f"{m.unclaimed} of {m.looked_at} {m.name}s" for m in self.measures if m.unclaimed]
        return (
            f"{' and '.join(parts)} not judged (an intermediate may overflow the formats of the spec)"
            if parts
            else ""
        )

    @property
    def verdict(self):
        """ "pass", "FAIL", "not judged" or "interrupted"."""
        if self.passed:
            return "pass"
        return "FAIL" if self.wrong else INTERRUPTED if self.interrupted is not None else NOT_JUDGED

    @property
    def summary(self):
        """One line: "attention: pass, bound used 0.41, worst at batch 0 head 3 row 17 dim 5"; of a failure
        what is wrong, in words, and where: "attention: FAIL: errors of up to 812 times the bound, in all 64
        rows, worst at ... (hard, tight, aggregate)"; then what was not judged."""
        if self._refused:
            name, message = self._refused[0]
            return f"{self.function}: FAIL: {name} {message}"
        stopped = (
            ""
            if self.interrupted is None
            else "interrupted after {:,} of {:,} rows".format(*self.interrupted)
        )
        if stopped and not self.interrupted[0]:
            return f"{self.function}: {stopped}"
        failing = [measure for measure in self.measures if measure.failed]
        principal = next((m for m in self.measures if m.result.principal), None)
        measure = (failing or [principal or self.measures[0]])[0]
        line = self._failure(failing) if failing else self._success(measure, stopped)
        if principal is None:
            line += f"; only the {measure.name} was given, the {OUTPUT.name} is not judged"
        more = (self.left_over, stopped if failing else "", self.not_looked_at, self.empty_rows_left_out)
        return "; ".join(filter(None, (line, *more)))

    def _success(self, measure, stopped):
        right = f"{stopped}, nothing wrong so far" if stopped else "pass"
        which = "" if measure.result.principal else f" of the {measure.name}"
        used = f"bound used {measure.use_tight:.3g}{which}, worst at {self.place(measure)}"
        return f"{self.function}: {right}, {used}"

    def _failure(self, failing):
        """What is wrong with the first of these measures, and in short with the others."""
        first = failing[0]
        which = "" if first.result.principal else f"{first.name}: "
        where = spread(first).split("; ")[0]
        line = f"{self.function}: FAIL: {which}{'; '.join(faults(first))}"
        line += f", in {where}" if where else ""
        line += f", worst at {self.place(first)} ({', '.join(first.failed)})"
        return "; ".join([line, *(f"{m.name} too: {faults(m)[0]}" for m in failing[1:])])

    @property
    def empty_rows_left_out(self):
        """How many rows that see no key were not judged, in words; empty where that was not asked for."""
        counts = [int(m.empty.sum()) for m in self.measures if m.ignore_empty_rows]
        if not any(counts):
            return ""
        return (
            f"{counts[0]:,} rows that see no key left out"
            if counts[0] > 1
            else "1 row that sees no key left out"
        )

    def text(self):
        """The whole report."""
        source = (
            " (taken from the dtype of the output; pass spec= for other arithmetic)" if self.inferred else ""
        )
        lines = [
            self.summary,
            f"  spec       {self.spec.name}{source}",
            f"  reference  {self.reference}",
        ]
        if self.dialect is not None:
            lines.append(f"  dialect    {self.dialect.words}")
        if self.not_looked_at:
            lines.append(f"  rows       {self.not_looked_at}; {OTHER_ROWS}")
        if self.empty_rows_left_out:
            lines.append(f"  rows       {self.empty_rows_left_out}")
        for measure in self.measures:
            lines += self._lines(measure)
        lines += [f"  {name:10s} {message}" for name, message in self._refused]
        lines += [f"  warning    {warning}" for warning in self.warnings]
        return "\n".join(lines)

    def _lines(self, measure):
        lines = [
            f"  {measure.name:10s} {measure.checked} elements in {measure.rows_checked} rows: "
            + _tiers(measure)
        ]
        lines += [f"             {words}" for words in faults(measure)]
        if LEAN in measure.failed:
            lines.append(f"             {LEAN_HINT}")
        if measure.at_worst and measure.worst is not None:
            lines.append(f"             worst at {self.place(measure)}: {worst_in_words(measure)}")
        if spread(measure):
            lines.append(f"             beyond the bound: {spread(measure)}")
            lines += ["             " + line for line in as_text(measure)]
        return lines

    def __repr__(self):
        return f"<Report {self.summary}>"

    __str__ = text

    def plain(self):
        """Plain values of its own; `to_dict` has all."""
        return {
            "function": self.function,
            "wrong": self.wrong,
            "complete": self.complete,
            "unjudged": self.unjudged,
            "failed": list(self.failed),
            "interrupted": self.interrupted,
            "rows_looked_at": list(self.rows_looked_at),
            "not_looked_at": self.not_looked_at,
            "empty_rows_left_out": self.empty_rows_left_out,
            "spec": self.spec.to_dict(),
            "spec_inferred": self.inferred,
            "reference": self.reference,
            "dialect": None if self.dialect is None else self.dialect.to_dict(),
            "reproduce": self.reproduce,
            "warnings": list(self.warnings),
            "refused": [{"name": name, "message": message} for name, message in self._refused],
            **{
                result.name: self._measures[result].to_dict() if result in self._measures else None
                for result in RESULTS
            },
        }

    def picture(self, path):
        """Draw the use of the tight bound of every row, heads down and rows across, into a file: in a scale
        of powers of ten up to the largest, in colours that colour-blind readers tell apart, with marks where
        a number cannot be drawn.

        Raises
        ------
        ImportError
            Without matplotlib.
        ValueError
            Where nothing was compared, because the shapes did not match.
        """
        from refattn.oracle.verdict.picture import draw

        draw(self, path)

    def sections(self, title=None):
        """The section of its page."""
        from refattn.oracle.verdict.page import section_of

        return [section_of(self, title)]


def _tiers(measure):
    """The numbers of every tier that was judged."""
    mark = lambda tier: " FAIL" if tier in measure.failed else ""
    use = lambda number: f"{number:.3g}" if math.isfinite(number) else "beyond a bound of 0"
    rms = f"rms {measure.rms:.3g}"
    rms += f" of {measure.rms_limit:.3g}" if math.isfinite(measure.rms_limit) else ""
    tiers = [
        f"hard {use(measure.use_hard)}{mark('hard')}",
        f"tight {use(measure.use_tight)}{mark('tight')}",
        f"{rms}{mark('aggregate')}",
    ]
    if not math.isnan(measure.bias):
        tiers.append(f"bias {measure.bias:+.2g} of {measure.bias_limit:.2g}{mark(LEAN)}")
    return ", ".join(tiers)


def worst_in_words(measure):
    """ "got 1.5, expected 1.25, error 0.25, bounds 1e-3 tight, 4e-3 hard" of the worst element."""
    at = measure.at_worst
    error = abs(at["got"] - at["expected"])
    words = f"got {at['got']:.9g}, expected {at['expected']:.9g}"
    words += f", error {error:.3g}" if math.isfinite(error) else ""
    return f"{words}, bounds {at['tight']:.3g} tight, {at['hard']:.3g} hard"
