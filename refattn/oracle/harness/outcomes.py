"""What `check_kernel` found, as a table, as JSON, and while it runs."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field

from refattn.commands.text import aligned
from refattn.oracle.arithmetic.spec import KernelSpec
from refattn.oracle.saved import Saved
from refattn.oracle.verdict.report import Report

FAILURES_IN_FULL, FAILURES_SHOWN = 3, 10  # with their report; in a line each
NAMED = 3  # tests that are named of those that raise the same
NOT_RUN_SHOWN = 5
NUMBER = re.compile(r"\d+(\.\d+)?")


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
    raised : str
        The exception that the kernel raised: its type and message; "" where it raised none.
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
    raised: str = ""
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

    def sections(self):
        """Those of the page of its report."""
        from refattn.oracle.verdict.page import Section

        if self.report is None:
            found = [Section(self.id, "FAIL", [self.words])]
        else:
            found = self.report.sections(self.id)
        found[0].reproduce = self.reproduce
        return found + ([] if self.diagnosis is None else self.diagnosis.sections())

    @classmethod
    def from_dict(cls, data) -> Outcome:
        """What `to_dict` gave; report and diagnosis are left in words."""
        status = "FAIL" if data["status"] == "fail" else data["status"]
        kept = {name: data[name] for name in ("section", "name", "use", "reproduce", "raised", "seconds")}
        found = data["diagnosis"]
        words = data["words"] if found is None else f"{data['words']}\ndiagnosis: {found['summary']}"
        return cls(status=status, words=words, **kept)

    def to_dict(self) -> dict:
        return {
            "section": self.section,
            "name": self.name,
            "status": self.status.lower(),
            "words": self.words,
            "use": self.use if self.use is not None and math.isfinite(self.use) else None,
            "seconds": self.seconds,
            "reproduce": self.reproduce,
            "raised": self.raised,
            "report": None if self.report is None else self.report.to_dict(),
            "diagnosis": None if self.diagnosis is None else self.diagnosis.to_dict(),
        }


@dataclass
class HarnessReport(Saved):
    """All outcomes of one kernel; true when none failed and at least one passed.

    Attributes
    ----------
    kernel : str
    settings : dict
        function, dialect, level, dtype, head_dims, seed, arrays, device, and those arguments of
        `check_kernel` that are not the default.
    spec : KernelSpec
    outcomes : list of Outcome
    not_run : list of str
        Tests that the `seconds` given left no time for, or that came after `max_failures`.
    interrupted : (int, int) or None
        Tests that had run when Ctrl-C came, or the device refused all work, and tests that were to run;
        such a report has not passed.
    remedies : list of str
        Arguments of `check_kernel` under which tests run that raised exceptions.
    """

    kind = "harness"

    @property
    def title(self):
        return self.kernel

    kernel: str
    settings: dict
    spec: KernelSpec
    outcomes: list[Outcome] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)
    why_not_run: str = "for want of time"
    interrupted: tuple[int, int] | None = None
    remedies: list[str] = field(default_factory=list)

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
    def verdict(self) -> str:
        """ "pass", "FAIL" or "interrupted"."""
        if self.failures or self.interrupted is None:
            return "pass" if self.passed else "FAIL"
        return "interrupted"

    @property
    def exceptions(self) -> list[list[Outcome]]:
        """Failures that raised the same exception, but for numbers in its message, most frequent first."""
        alike: dict[str, list[Outcome]] = {}
        for outcome in self.failures:
            if outcome.raised:
                alike.setdefault(NUMBER.sub("#", outcome.raised), []).append(outcome)
        return sorted(alike.values(), key=lambda outcomes: -len(outcomes))

    @property
    def summary(self) -> str:
        """One line: the verdict, of a failure what is wrong, and how many tests passed."""
        counts = f"{self.count('pass')} passed, {self.count('FAIL')} failed, {self.count('skip')} skipped"
        if self.not_run:
            counts += f", {len(self.not_run)} not run {self.why_not_run}"
        verdict = "pass" if self.passed else "FAIL"
        if self.interrupted is not None:
            after = "interrupted after {:,} of {:,} tests".format(*self.interrupted)
            verdict = f"FAIL, {after}" if self.failures else f"{after}, nothing wrong so far"
        what = f"{self._what_is_wrong()}; " if self.failures else ""
        return f"{self.kernel}: {verdict}{': ' if what else ', '}{what}{counts}"

    def _what_is_wrong(self):
        """Of the failures the exception that most raise, what is known of the first, or its words."""
        same = (self.exceptions or [[]])[0]
        if 2 * len(same) >= len(self.failures) or all(outcome.raised for outcome in self.failures):
            return f"{_tests(len(same))} raised {_first_line(same[0].raised)}"
        explained = next((f for f in self.failures if f.diagnosis is not None), None)
        if explained is not None and explained.diagnosis.verdict in ("explained", "described"):
            return explained.diagnosis.summary.rstrip(".")
        first = next(outcome for outcome in self.failures if not outcome.raised)
        words = first.words if first.report is None else first.report.summary.split("FAIL: ", 1)[-1]
        return f"{first.id}: {_first_line(words)}"

    def text(self) -> str:
        """What is wrong, the table, the reasons for what was skipped, and the failures."""
        settings = "  ".join(f"{name} {value}" for name, value in self.settings.items())
        lines = [self.summary, *self.remedies, f"  spec {self.spec.name}  {settings}", "", *self._table()]
        reasons: dict[str, int] = {}
        for outcome in self.outcomes:
            if outcome.status == "skip":
                reasons[outcome.words] = reasons.get(outcome.words, 0) + 1
        if reasons:
            by_count = sorted(reasons.items(), key=lambda item: -item[1])
            lines += ["", *(f"  skipped {count}: {words}" for words, count in by_count)]
        if self.not_run:
            topics = Counter(name.partition(": ")[0] for name in self.not_run)
            words = ", ".join(f"{count} of {section}" for section, count in topics.items())
            first = "; ".join(self.not_run[:NOT_RUN_SHOWN])
            lines += ["", f"  not run {self.why_not_run}: {words}. {first}; ..."]
        lines += self._failures()
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

    def _table(self):
        return [f"  {line}" for line in aligned(self._rows(), left=1)]

    def _rows(self):
        """A line for each section; sections with equal numbers share one, with the sum of their seconds."""
        alike: dict[tuple, list[str]] = {}
        seconds: dict[tuple, float] = {}
        for section in dict.fromkeys(outcome.section for outcome in self.outcomes):
            part = [outcome for outcome in self.outcomes if outcome.section == section]
            uses = [outcome.use for outcome in part if outcome.use is not None]
            counts = [str(self.count(status, section)) for status in ("pass", "FAIL", "skip")]
            row = (*counts, f"{max(uses):.2g}" if uses else "-")
            alike.setdefault(row, []).append(section)
            seconds[row] = seconds.get(row, 0.0) + sum(outcome.seconds for outcome in part)
        rows = [("section", "passed", "failed", "skipped", "bound used", "seconds")]
        rows += [
            (", ".join(sections) + " each" * (len(sections) > 1), *row, f"{seconds[row]:.1f}")
            for row, sections in alike.items()
        ]
        return rows

    def sections(self):
        """Those of its page: exceptions, then the first other failures with their maps and diagnoses."""
        from refattn.oracle.verdict.page import Section

        found = [Section("Arguments that help", "FAIL", self.remedies)] if self.remedies else []
        for same in self.exceptions:
            names = ", ".join(outcome.id for outcome in same)
            words = [f"raised {same[0].raised}", names]
            found.append(Section(_tests(len(same)), "FAIL", words, reproduce=same[0].reproduce))
        others = [outcome for outcome in self.failures if not outcome.raised]
        for outcome in others[:FAILURES_SHOWN]:
            found += outcome.sections()
        if others[FAILURES_SHOWN:]:
            names = [outcome.id for outcome in others[FAILURES_SHOWN:]]
            found.append(Section(f"{len(names)} more", "FAIL", names))
        return [*found, Section("Everything", self.verdict, [], text=self.text())]

    def page(self) -> str:
        """A page of HTML that needs no network; `save` writes it."""
        from refattn.oracle.verdict.page import page

        return page(self.title, self.verdict, self.summary, self.sections(), self._rows())

    def _failures(self):
        """The failures: those that raised the same in a few lines, of the others the first in full."""
        lines = []
        for same in self.exceptions:
            names = ", ".join(outcome.id for outcome in same[:NAMED])
            more = f" and {len(same) - NAMED} more" if len(same) > NAMED else ""
            lines += ["", f"FAIL {_tests(len(same))}: {names}{more}"]
            lines += _indented(f"raised {same[0].raised}\nreproduce: {same[0].reproduce}")
        others = [outcome for outcome in self.failures if not outcome.raised]
        for outcome in others[:FAILURES_IN_FULL]:
            lines += ["", outcome.text()]
        for outcome in others[FAILURES_IN_FULL:FAILURES_SHOWN]:
            lines += ["", f"FAIL {outcome.id}", *_indented(_first_line(outcome.words))]
            lines += _indented(f"reproduce: {outcome.reproduce}")
        if len(others) > FAILURES_SHOWN:
            names = "; ".join(outcome.id for outcome in others[FAILURES_SHOWN:])
            lines += ["", f"and {len(others) - FAILURES_SHOWN} more: {names}"]
        return lines

    __str__ = text

    def __repr__(self):
        return f"<HarnessReport {self.summary}>"

    def plain(self) -> dict:
        """Plain values of its own; `to_dict` has all."""
        return {
            "kernel": self.kernel,
            "interrupted": self.interrupted,
            "not_run": self.not_run,
            **self.settings,
            "spec": self.spec.to_dict(),
            "remedies": list(self.remedies),
            "outcomes": [outcome.to_dict() for outcome in self.outcomes],
        }


def _tests(count):
    return "1 test" if count == 1 else f"{count} tests"


def _first_line(words):
    return words.split("\n")[0].rstrip(".")


def _indented(text):
    return ["  " + line for line in text.splitlines()]
