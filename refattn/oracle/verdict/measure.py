"""How one result, the output or the lse, compares with the exact one, summed up over its tiles."""

from __future__ import annotations

import math

import numpy as np

from refattn.oracle.verdict.compared_tile import ComparedTile
from refattn.oracle.verdict.faults import LEAN, NOT_JUDGED, faults, spread
from refattn.oracle.verdict.other_rows import EMPTY, FINITE, SINK_ALONE, UNKNOWN
from refattn.oracle.verdict.row_map import as_text

# Correct kernels measure 0.6 to 1.1 (campaign.py); beyond this their arithmetic is not the one claimed.
RMS_LIMIT = 1.2
RMS_DEVIATIONS = 6.0
TRUNCATED = 2.0  # truncation errs by up to twice what rounding to nearest does
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
    empty, wrong_rows, zero_rows : ndarray of bool, shape (..., H, T)
        Rows that see no key; rows beyond the tight bound, or with NaN or infinities out of place; wrong rows
        that are exactly 0.
    zero_dims : ndarray of bool, shape (E,)
        Wrong columns that are exactly 0 in every row looked at.
    ignore_empty_rows : bool
        Rows that see no key are not judged.
    """

    def __init__(self, result, shape, lean=None, ignore_empty_rows=False):
        self.result, self.name, self.shape = result, result.name, shape
        self.ignore_empty_rows = ignore_empty_rows
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
        self.empty, self.misplaced_elsewhere, self._all_zero = np.zeros((3, *row_shape), dtype=bool)
        self.use_by_dim = np.zeros(shape[-1] if result.has_dims else 1)
        self._nonzero_by_dim = np.zeros(self.use_by_dim.shape, dtype=bool)
        self.misplaced_kinds = {}  # (kind of the number, kind of the right one), of `faults.KINDS` -> count
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
        judged = ~compared.unclaimed
        if self.ignore_empty_rows:
            judged &= ~compared.empty[:, None]
        self._judged += int(judged.sum())
        self._count_misplaced(compared)
        use_tight = compared.use_of(compared.bound.tight)
        use = np.where(compared.wrong | compared.outside, np.inf, use_tight)
        if not use.shape[1]:
            compared.place.write_rows(self.result, self.use_map, np.zeros(len(use)))
            return
        dims = use.argmax(axis=1)
        by_row = use[np.arange(len(use)), dims]
        compared.place.write_rows(self.result, self.use_map, by_row)
        compared.place.write_rows(self.result, self._dims, dims)
        nonzero = compared.got != 0
        compared.place.write_rows(self.result, self.empty, compared.empty)
        compared.place.write_rows(self.result, self._all_zero, ~nonzero.any(axis=1))
        self._nonzero_by_dim |= nonzero.any(axis=0)
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

    def _count_misplaced(self, compared):
        if not compared.wrong.any():
            return
        got, expected = (
            np.where(np.isnan(side), 1, np.where(np.isinf(side), 2, 0))[compared.wrong]
            for side in (compared.got, compared.expected)
        )
        for code, count in zip(*np.unique(3 * got + expected, return_counts=True), strict=True):
            kinds = divmod(int(code), 3)
            self.misplaced_kinds[kinds] = self.misplaced_kinds.get(kinds, 0) + int(count)

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

    @property
    def wrong_rows(self):
        return (self.use_map > 1.0) | self.misplaced_elsewhere

    @property
    def zero_rows(self):
        return self._all_zero & (self.use_map > 1.0) & ~self.empty

    @property
    def zero_dims(self):
        return ~self._nonzero_by_dim & (self.use_by_dim > 1.0)

    def other_positions(self, actual, states):
        """Rows whose errors were not looked at must still be finite, or those of empty rows, where the
        inputs say so; `states` as of `row_states`.
        """
        empty = (states == EMPTY) | (states == SINK_ALONE)
        self.empty |= empty
        if self.ignore_empty_rows:
            states = np.where(empty, UNKNOWN, states)
        states = states[..., None] if self.result.has_dims else states
        wrong = ((states == FINITE) | (states == SINK_ALONE)) & ~np.isfinite(actual)
        wrong |= (states == EMPTY) & (actual != self.result.empty_row)
        if wrong.any():
            self.misplaced += int(wrong.sum())
            self.misplaced_elsewhere |= wrong.any(axis=-1) if self.result.has_dims else wrong
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
        return spread(self)

    def heat_map(self):
        """Use of the tight bound, heads down and rows across, as text with its legend; heads that look alike
        are one line, and each symbol is the worst of its place."""
        return "\n".join(as_text(self))

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
            "faults": faults(self),
            "empty_rows": int(self.empty.sum()),
            "worst": None if self.worst is None else list(self.worst),
            "at_worst": dict(self.at_worst),
            "use_by_head": _largest_along_rows(self.use_map),
            "histogram": self.histogram.tolist(),
            "spread": self.spread(),
        }
        return plain


def _largest_along_rows(use_map):
    largest = np.where(np.isnan(use_map), -1.0, use_map).max(axis=-1, initial=-1.0)
    return np.where(largest < 0, np.nan, largest).tolist()
