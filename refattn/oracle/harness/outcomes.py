"""What `check_kernel` found, as a table, as JSON, and while it runs."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field

from refattn.oracle.arithmetic.spec import KernelSpec
from refattn.oracle.verdict.report import Report

FAILURES_SHOWN = 10


@dataclass
class Outcome:
    """One test.

    Attributes
    ----------
    section, name : str
    status : {"pass", "FAIL", "skip"}
    words : str
        Why it failed or was skipped.
    use : float or None
        Largest error / bound.
    report : Report or None
        The verdict behind a failure.
    diagnosis : Diagnosis or None
    reproduce : str
        One line that runs this test again.
    seconds : float
    """

    section: str
    name: str
    status: str
    words: str = ""
    use: float | None = None
    report: Report | None = None
    diagnosis: object = None
    reproduce: str = ""
    seconds: float = 0.0

    @property
    def id(self) -> str:
        return f"{self.section}: {self.name}"

    def text(self) -> str:
        """The failure with its report, diagnosis and reproduction."""
        lines = [f"{self.status} {self.id}"]
        lines += _indented(self.report.text() if self.report is not None else self.words)
        if self.diagnosis is not None:
            lines += _indented(f"diagnosis: {self.diagnosis}")
        if self.status == "FAIL":
            lines += _indented(f"reproduce: {self.reproduce}")
        return "\n".join(lines)

    def to_dict(self) -> dict:
        return {
            "section": self.section,
            "name": self.name,
            "status": self.status.lower(),
            "words": self.words,
            "use": self.use if self.use is not None and math.isfinite(self.use) else None,
            "seconds": self.seconds,
            "reproduce": self.reproduce,
            "report": None if self.report is None else json.loads(self.report.to_json()),
            "diagnosis": None if self.diagnosis is None else str(self.diagnosis),
        }


@dataclass
class HarnessReport:
    """All outcomes of one kernel; true when none failed and at least one passed.

    Attributes
    ----------
    kernel : str
    settings : dict
        function, dialect, level, dtype, seed.
    spec : KernelSpec
    outcomes : list of Outcome
    interrupted : (int, int) or None
        Tests that had run when Ctrl-C came, and tests that were to run; such a report has not passed.
    """

    kernel: str
    settings: dict
    spec: KernelSpec
    outcomes: list[Outcome] = field(default_factory=list)
    interrupted: tuple[int, int] | None = None

    @property
    def passed(self) -> bool:
        return not self.failures and self.count("pass") > 0 and self.interrupted is None

    def __bool__(self):
        return self.passed

    @property
    def failures(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.status == "FAIL"]

    def count(self, status, section=None) -> int:
        return sum(
            outcome.status == status and section in (None, outcome.section) for outcome in self.outcomes
        )

    @property
    def summary(self) -> str:
        counts = f"{self.count('pass')} passed, {self.count('FAIL')} failed, {self.count('skip')} skipped"
        verdict = "pass" if self.passed else "FAIL"
        if self.interrupted is not None:
            after = "interrupted after {:,} of {:,} tests".format(*self.interrupted)
            verdict = f"FAIL, {after}" if self.failures else f"{after}, nothing wrong so far"
        return f"{self.kernel}: {verdict}, {counts}"

    def text(self) -> str:
        """The table, the reasons for what was skipped, and the failures."""
        settings = "  ".join(f"{name} {value}" for name, value in self.settings.items())
        lines = [self.summary, f"  spec {self.spec.name}  {settings}", ""]
        rows = [("section", "passed", "failed", "skipped", "bound used", "seconds")]
        for section in dict.fromkeys(outcome.section for outcome in self.outcomes):
            part = [outcome for outcome in self.outcomes if outcome.section == section]
            uses = [outcome.use for outcome in part if outcome.use is not None]
            counts = [str(self.count(status, section)) for status in ("pass", "FAIL", "skip")]
            rows.append(
                (
                    section,
                    *counts,
                    f"{max(uses):.2g}" if uses else "-",
                    f"{sum(outcome.seconds for outcome in part):.1f}",
                )
            )
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        for first, *others in rows:
            cells = [
                first.ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)),
            ]
            lines.append("  " + "  ".join(cells))
        reasons: dict[str, int] = {}
        for outcome in self.outcomes:
            if outcome.status == "skip":
                reasons[outcome.words] = reasons.get(outcome.words, 0) + 1
        if reasons:
            lines += [
                "",
                *(
                    f"  skipped {count}: {words}"
                    for words, count in sorted(reasons.items(), key=lambda item: -item[1])
                ),
            ]
        for outcome in self.failures[:FAILURES_SHOWN]:
            lines += ["", outcome.text()]
        if len(self.failures) > FAILURES_SHOWN:
            lines += [
                "",
                f"and {len(self.failures) - FAILURES_SHOWN} more: "
                + "; ".join(outcome.id for outcome in self.failures[FAILURES_SHOWN:]),
            ]
        if self.failures and all(
            outcome.section == "hidden slots" or outcome.name.startswith("poison")
            for outcome in self.failures
        ):
            lines += [
                "",
                "All failures are calls with NaN in hidden slots; hides_nan=False puts large numbers there "
                "instead.",
            ]
        return "\n".join(lines)

    __str__ = text

    def __repr__(self):
        return f"<HarnessReport {self.summary}>"

    def to_dict(self) -> dict:
        """Plain values."""
        return {
            "kernel": self.kernel,
            "passed": self.passed,
            "interrupted": self.interrupted,
            **self.settings,
            "spec": self.spec.to_dict(),
            "outcomes": [outcome.to_dict() for outcome in self.outcomes],
        }

    def to_json(self, **options) -> str:
        """JSON text; `options` go to `json.dumps`."""
        return json.dumps(self.to_dict(), **options)


def _indented(text):
    return ["  " + line for line in text.splitlines()]
