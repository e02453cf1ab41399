"""What `check` found: the numbers of each tier, where the error lives, and ways to show it."""

from __future__ import annotations

import json
import math

import numpy as np

from refattn.oracle.arithmetic.spec import KernelSpec
from refattn.oracle.bounds.results import LSE, OUTPUT, RESULTS
from refattn.oracle.verdict.compared_tile import ComparedTile
from refattn.oracle.verdict.other_rows import EMPTY, FINITE

# Correct kernels measure 0.6 to 1.1 (campaign.py); beyond this their arithmetic is not the one claimed.
RMS_LIMIT = 1.2
RMS_DEVIATIONS = 6.0
SHADES = " .:-=+*#%@"  # use of the tight bound: blank up to 0.1, then by tenths; @ beyond 1
NOT_JUDGED, LEAN, INTERRUPTED = "not judged", "lean", "interrupted"
TRUNCATED = 2.0  # truncation errs by up to twice what rounding to nearest does
LEAN_HINT = (
    "Rounding to nearest does not lean; truncation leans toward zero. "
    "An accumulator that truncates on purpose says so: spec.replace(truncates=True). "
    "An exponential that always errs to one side needs its exp_error."
)
OTHER_ROWS = "of the others only that NaN, infinities and empty rows are where the inputs alone say so"
HISTOGRAM_EDGES = (0.1, 0.25, 0.5, 0.75, 1.0, 2.0, 10.0, math.inf)


class Measure:
    """How one result, the output or the lse, compares with the exact one.

    Attributes
    ----------
    result : Result
    name : str
        That of the result.
    checked, unclaimed, misplaced, lost, outside : int
        Elements compared with a bound; elements of which nothing can be said (overflow in the claimed
        formats); NaN or infinities that should not be there, or are missing; of the unclaimed, NaN or
        infinities in place of finite results, which an overflow may explain, and those beyond every visible
        value.
    use_hard, use_tight : float
        Largest error / bound.
    rms, rms_limit : float
        Root mean square of error / sigma, and what chance may reach.
    bias, bias_limit : float
        Mean of error / sigma, signed, and how far from 0 chance and the roundings of the spec may carry it:
        of the whole call or of the head, up or away from zero, whichever comes nearest to its limit. NaN
        where too few errors are independent to tell.
    bias_words : str
        The same in words, with the direction: "errors lean toward zero: mean -0.48 sigma over 4,096
        independent errors (allowed 0.11)".
    worst : tuple of int
        Index of the element with the largest use of the tight bound, or of the first misplaced one.
    use_map : ndarray, shape (..., H, T)
        Largest use of the tight bound in every row; NaN in rows that were not looked at, inf where positions
        are wrong.
    use_by_dim : ndarray, shape (E,)
    histogram : ndarray of int
        Elements with a use of the tight bound up to each of HISTOGRAM_EDGES.
    """

    def __init__(self, result, shape, lean=None):
        self.result, self.name, self.shape = result, result.name, shape
        row_shape = result.row_shape(shape)
        self.checked = self.unclaimed = self.misplaced = self.lost = self.outside = 0
        self.use_hard = self.use_tight = self.largest_error = 0.0
        self.rms, self.rms_limit, self.bias, self.bias_limit, self.bias_words = (
            0.0,
            math.inf,
            math.nan,
            math.inf,
            "",
        )
        self.lean = lean
        self.worst, self.at_worst = None, {}
        self.use_map = np.full(row_shape, np.nan)
        self.use_by_dim = np.zeros(shape[-1] if result.has_dims else 1)
        self.histogram = np.zeros(len(HISTOGRAM_EDGES), dtype=np.int64)
        self.failed = []
        self._dims = np.zeros(row_shape, dtype=np.int32)
        self._sums = {"squares": 0.0, "count": 0, "effective": 0.0}
        self._largest, self._judged = -1.0, 0

    @np.errstate(all="ignore")
    def update(self, compared: ComparedTile):
        """Take in one tile."""
        self.checked += int(compared.claimed.sum())
        self.unclaimed += int(compared.unclaimed.sum())
        self.misplaced += int(compared.wrong.sum())
        self.lost += int(compared.lost.sum())
        self.outside += int(compared.outside.sum())
        self._judged += int((~compared.unclaimed).sum())
        use_tight = compared.use_of(compared.bound.tight)
        use = np.where(compared.wrong | compared.outside, np.inf, use_tight)
        if not use.shape[1]:
            compared.place.write_rows(self.result, self.use_map, np.zeros(len(use)))
            return
        dims = use.argmax(axis=1)
        by_row = use[np.arange(len(use)), dims]
        compared.place.write_rows(self.result, self.use_map, by_row)
        compared.place.write_rows(self.result, self._dims, dims)
        if use.size:
            self.use_hard = max(self.use_hard, float(compared.use_of(compared.bound.hard).max()))
            self.use_tight = max(self.use_tight, float(use_tight.max()))
            self.largest_error = max(self.largest_error, float(compared.error.max()))
            self.use_by_dim = np.maximum(self.use_by_dim, use.max(axis=0))
            self.histogram += np.histogram(use_tight[compared.claimed], bins=(-1.0, *HISTOGRAM_EDGES))[0]
            row = int(by_row.argmax())
            if by_row[row] > self._largest:
                self._largest, at = float(by_row[row]), (row, dims[row])
                arrays = {name: getattr(compared, name) for name in ("got", "expected", "error")}
                arrays |= {name: getattr(compared.bound, name) for name in ("hard", "tight")}
                self.at_worst = {name: float(array[at]) for name, array in arrays.items()}
        self._sums["squares"] += float((compared.deviation**2).sum())
        self._sums["count"] += int(compared.usual.sum())
        self._sums["effective"] += float(compared.effective.sum())

    def finish(self, failure_probability=None):
        """Close the sums and judge; the bias where the measure has a `lean`."""
        sums = self._sums
        effective = max(sums["effective"], 1.0)
        if sums["count"]:
            self.rms = math.sqrt(sums["squares"] / sums["count"])
            if self.result.aggregate:
                self.rms_limit = math.sqrt(RMS_LIMIT**2 + RMS_DEVIATIONS * math.sqrt(2.0 / effective))
        leans = self.lean is not None and self.lean.judge(failure_probability)
        if self.lean is not None and self.lean.found is not None:
            self.bias, self.bias_limit, self.bias_words = (
                self.lean.found["mean"],
                self.lean.found["limit"],
                self._bias_in_words(self.lean.found),
            )
        self.lean = None  # its sums are done with
        looked_at = np.where(np.isnan(self.use_map), -1.0, self.use_map)
        if looked_at.size and looked_at.max() > 0:
            row = np.unravel_index(int(looked_at.argmax()), looked_at.shape)
            self.worst = tuple(int(i) for i in row) + (
                (int(self._dims[row]),) if self.result.has_dims else ()
            )
        # a wrong scale leans too, and no rounding makes that
        leans = leans and max(self.use_hard, self.use_tight) <= TRUNCATED
        for tier, bad in (
            (NOT_JUDGED, (self.unclaimed > 0 and not self._judged) or self.lost > 0),
            ("positions", self.misplaced > 0),
            ("range", self.outside > 0),
            ("hard", not self.use_hard <= 1.0),
            ("tight", not self.use_tight <= 1.0),
            ("aggregate", not self.rms <= self.rms_limit),
            (LEAN, leans),
        ):
            if bad:
                self.failed.append(tier)

    def _bias_in_words(self, found):
        where = "" if found["head"] is None else f" in {self.place(found['head'])}"
        return (
            f"errors{where} lean {found['direction']}: mean {found['mean']:+.2g} sigma over "
            f"{found['independent']:,.0f} independent errors (allowed {found['limit']:.2g})"
        )

    @property
    def other_rows(self):
        """Rows whose errors were not looked at, bool, (..., H, T)."""
        return np.isnan(self.use_map)

    def other_positions(self, actual, states):
        """Rows whose errors were not looked at must still be finite, or those of empty rows, where the
        inputs say so; `states` as of `row_states`.
        """
        states = states[..., None] if self.result.has_dims else states
        wrong = (states == FINITE) & ~np.isfinite(actual)
        wrong |= (states == EMPTY) & (actual != self.result.empty_row)
        if wrong.any():
            self.misplaced += int(wrong.sum())
            self.worst = tuple(int(i) for i in np.argwhere(wrong)[0])
            if "positions" not in self.failed:
                self.failed.insert(0, "positions")

    @property
    def looked_at(self):
        """Elements of the rows that were looked at."""
        return self._judged + self.unclaimed

    @property
    def rows_checked(self):
        return int((~np.isnan(self.use_map)).sum())

    def place(self, index=None):
        """An index in words: "batch 0 head 3 row 17 dim 5"."""
        index = self.worst if index is None else index
        if index is None:
            return "nowhere"
        batch_axes = len(self.use_map.shape) - 2
        names = ["batch"] * min(batch_axes, 1) + list(self.result.axes)
        values = [",".join(map(str, index[:batch_axes]))] * min(batch_axes, 1) + [
            str(i) for i in index[batch_axes:]
        ]
        return " ".join(f"{name} {value}" for name, value in zip(names, values, strict=False))

    def spread(self):
        """Where the tight bound is exceeded: heads, rows and dims, in words; empty when nowhere."""
        bad = self.use_map > 1.0
        if not bad.any():
            return ""
        heads = np.unique(np.nonzero(bad)[-2])
        rows = np.unique(np.nonzero(bad)[-1])
        parts = [
            f"{bad.sum()} of {self.rows_checked} rows",
            _of("heads", heads, bad.shape[-2]),
            f"{_of('rows', rows, bad.shape[-1])}, the first is {rows[0]}",
        ]
        if self.result.has_dims:
            parts.append(_of("dims", np.flatnonzero(self.use_by_dim > 1.0), len(self.use_by_dim)))
        return "; ".join(parts)

    def heat_map(self, width=64, height=32):
        """Use of the tight bound, heads down and rows across, as text."""
        grid = np.where(np.isnan(self.use_map), -1.0, self.use_map).reshape(-1, self.use_map.shape[-1])
        if not grid.size:
            return ""
        grid = _pooled(_pooled(grid, height, 0), width, 1)
        lines = []
        for line in grid:
            shades = [
                "?" if use < 0 else SHADES[-1] if use > 1 else SHADES[min(int(use * 9), 8)] for use in line
            ]
            lines.append("|" + "".join(shades) + "|")
        return "\n".join(lines)

    def to_dict(self):
        plain = {
            name: getattr(self, name)
            for name in (
                "name",
                "checked",
                "unclaimed",
                "misplaced",
                "lost",
                "outside",
                "use_hard",
                "use_tight",
                "largest_error",
                "rms",
                "rms_limit",
                "bias",
                "bias_limit",
                "bias_words",
            )
        }
        plain |= {
            "failed": list(self.failed),
            "worst": None if self.worst is None else list(self.worst),
            "at_worst": dict(self.at_worst),
            "use_by_head": _largest_along_rows(self.use_map),
            "histogram": self.histogram.tolist(),
            "spread": self.spread(),
        }
        return plain


class Report:
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
    warnings : list of str
    output, lse : Measure or None
    dialect : ForeignResults or None
        How the library of `dialect=` writes the results; None where they are in the conventions of
        `refattn`.
    """

    def __init__(self, function: str, spec: KernelSpec, inferred: bool, reference: str = "none"):
        self.function, self.spec, self.inferred, self.reference = function, spec, inferred, reference
        self.warnings, self._refused, self._measures = [], [], {}
        self.interrupted = self.dialect = None

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

    def _place(self, measure):
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
    def summary(self):
        """One line: "attention: pass, bound used 0.41, worst at batch 0 head 3 row 17 dim 5", and what was
        not judged."""
        if self._refused:
            name, message = self._refused[0]
            return f"{self.function}: FAIL (shape), {name} {message}"
        stopped = (
            ""
            if self.interrupted is None
            else "interrupted after {:,} of {:,} rows".format(*self.interrupted)
        )
        if stopped and not self.interrupted[0]:
            return f"{self.function}: {stopped}"
        worst = max(self.measures, key=lambda m: (len(m.failed) > 0, m.misplaced > 0, m.use_tight))
        principal = next((m for m in self.measures if m.result.principal), None)
        measure = worst if worst.failed or principal is None else principal
        right = f"{stopped}, nothing wrong so far" if stopped else "pass"
        verdict = f"FAIL ({', '.join(measure.failed)})" if measure.failed else right
        which = "" if measure.result.principal else f" of the {measure.name}"
        leaning = f", {measure.bias_words}" if LEAN in measure.failed else ""
        line = f"{self.function}: {verdict}{leaning}, bound used {measure.use_tight:.3g}{which}"
        line += f", worst at {self._place(measure)}"
        if principal is None:
            line += f"; only the {measure.name} was given, the {OUTPUT.name} is not judged"
        more = (self.left_over, stopped if measure.failed else "", self.not_looked_at)
        return "; ".join(filter(None, (line, *more)))

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
        for measure in self.measures:
            lines += self._lines(measure)
        lines += [f"  {name:10s} {message}" for name, message in self._refused]
        lines += [f"  warning    {warning}" for warning in self.warnings]
        return "\n".join(lines)

    def _lines(self, measure):
        mark = lambda tier: " FAIL" if tier in measure.failed else ""
        head = f"  {measure.name:10s} {measure.checked} elements in {measure.rows_checked} rows"
        tiers = [
            f"hard {measure.use_hard:.3g}{mark('hard')}",
            f"tight {measure.use_tight:.3g}{mark('tight')}",
            f"rms {measure.rms:.3g} of {measure.rms_limit:.3g}{mark('aggregate')}",
        ]
        if measure.outside:
            tiers.insert(0, f"{measure.outside} outside the range of the visible values FAIL")
        if measure.lost:
            lost = (
                "NaN or infinities for finite results, which an overflow in a format of the spec may explain"
            )
            tiers.insert(0, f"{measure.lost} {lost} FAIL")
        elif NOT_JUDGED in measure.failed:
            unknown = "an intermediate of every element may overflow the formats of the spec"
            tiers.insert(0, f"nothing judged, {unknown} FAIL")
        if measure.misplaced:
            tiers.insert(0, f"{measure.misplaced} NaN or infinities misplaced FAIL")
        if not math.isnan(measure.bias):
            tiers.append(f"bias {measure.bias:+.2g} of {measure.bias_limit:.2g}{mark(LEAN)}")
        lines = [head + ": " + ", ".join(tiers)]
        if LEAN in measure.failed:
            lines += [f"             {measure.bias_words}", f"             {LEAN_HINT}"]
        if measure.at_worst and measure.worst is not None:
            at = measure.at_worst
            lines.append(
                f"             worst at {self._place(measure)}: got {at['got']:.9g}, "
                f"expected {at['expected']:.9g}, error {at['error']:.3g}, "
                f"bounds {at['tight']:.3g} tight, {at['hard']:.3g} hard"
            )
        if measure.spread():
            lines.append(f"             beyond the bound: {measure.spread()}")
            lines += ["             use of the bound, heads down, rows across, @ beyond it:"]
            lines += ["             " + line for line in measure.heat_map().splitlines()]
        return lines

    def __repr__(self):
        return f"<Report {self.summary}>"

    __str__ = text

    def to_dict(self):
        """Plain values."""
        return {
            "function": self.function,
            "passed": self.passed,
            "wrong": self.wrong,
            "complete": self.complete,
            "unjudged": self.unjudged,
            "failed": list(self.failed),
            "interrupted": self.interrupted,
            "rows_looked_at": list(self.rows_looked_at),
            "not_looked_at": self.not_looked_at,
            "summary": self.summary,
            "spec": self.spec.to_dict(),
            "spec_inferred": self.inferred,
            "reference": self.reference,
            "dialect": None if self.dialect is None else self.dialect.to_dict(),
            "warnings": list(self.warnings),
            "refused": [{"name": name, "message": message} for name, message in self._refused],
            **{
                result.name: self._measures[result].to_dict() if result in self._measures else None
                for result in RESULTS
            },
        }

    def to_json(self, **options):
        """The report as JSON text; NaN and infinities as strings, because JSON has none. `options` go to
        `json.dumps`."""
        return json.dumps(json_ready(self.to_dict()), **options)

    def picture(self, path):
        """Draw the use of the tight bound of every row, heads down and rows across, into a file.

        Raises
        ------
        ImportError
            Without matplotlib.
        """
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError(
                "picture must have matplotlib to draw with; install matplotlib, "
                "or print report.output.heat_map()."
            ) from error
        if self.output is None:
            raise ValueError("picture must have a comparison to draw; the shapes did not match.")
        grid = self.output.use_map.reshape(-1, self.output.use_map.shape[-1])
        figure = Figure(figsize=(9, 1.5 + min(6.0, 0.25 * len(grid))), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        image = axes.imshow(
            np.minimum(grid, 2.0),
            aspect="auto",
            vmin=0.0,
            vmax=2.0,
            cmap="RdYlGn_r",
            interpolation="nearest",
        )
        axes.set(
            xlabel="row",
            ylabel="head" if grid.shape[0] == self.output.use_map.shape[-2] else "batch and head",
            title=self.summary.replace("; ", "\n"),
        )
        axes.title.set_fontsize("small")
        figure.colorbar(image, label="error / tight bound")
        figure.savefig(path)


def _of(name, indices, total):
    """ "heads 0, 2 of 8", "rows 17-63 of 64", "all 64 dims"."""
    if len(indices) == total:
        return f"all {total} {name}" if total > 1 else f"the only {name[:-1]}"
    if len(indices) > 4 and indices[-1] - indices[0] + 1 == len(indices):
        return f"{name} {indices[0]}-{indices[-1]} of {total}"
    shown = ", ".join(str(i) for i in indices[:6]) + (
        f" and {len(indices) - 6} more" if len(indices) > 6 else ""
    )
    return f"{name} {shown} of {total}"


def _pooled(grid, size, axis):
    """Largest entries of at most `size` runs along an axis."""
    length = grid.shape[axis]
    if length <= size:
        return grid
    return np.maximum.reduceat(grid, np.linspace(0, length, size, endpoint=False).astype(int), axis=axis)


def _largest_along_rows(use_map):
    largest = np.where(np.isnan(use_map), -1.0, use_map).max(axis=-1, initial=-1.0)
    return np.where(largest < 0, np.nan, largest).tolist()


def json_ready(value):
    if isinstance(value, dict):
        return {key: json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
