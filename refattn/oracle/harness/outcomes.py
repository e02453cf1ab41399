"""What `check_kernel` found, as a table, as JSON, and while it runs."""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
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
    """

    kernel: str
    settings: dict
    spec: KernelSpec
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.failures and self.count("pass") > 0

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
        return f"{self.kernel}: {'pass' if self.passed else 'FAIL'}, {counts}"

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
            **self.settings,
            "spec": self.spec.to_dict(),
            "outcomes": [outcome.to_dict() for outcome in self.outcomes],
        }

    def to_json(self, **options) -> str:
        """JSON text; `options` go to `json.dumps`."""
        return json.dumps(self.to_dict(), **options)


def _indented(text):
    return ["  " + line for line in text.splitlines()]


class Progress:
    """One line on standard error that says which test runs; a line of its own every ten seconds where
    there is no terminal.
    """

    EVERY = 10.0

    def __init__(self, total, wanted=None, stream=None):
        self.stream = sys.stderr if stream is None else stream
        self.total, self.done, self.width, self.last = total, 0, 0, time.monotonic()
        self.live = self.stream.isatty() if hasattr(self.stream, "isatty") else False
        self.wanted = self.live if wanted is None else wanted

    def step(self, name):
        self.done += 1
        if not self.wanted:
            return
        text = f"{self.done}/{self.total}  {name}"
        if self.live:
            text = text[: shutil.get_terminal_size().columns - 1]
            self.stream.write("\r" + text.ljust(self.width))
            self.width = len(text)
        elif time.monotonic() - self.last >= self.EVERY:
            self.last = time.monotonic()
            self.stream.write(text + "\n")
        self.stream.flush()

    def clear(self):
        if self.wanted and self.live:
            self.stream.write("\r" + " " * self.width + "\r")
            self.stream.flush()
