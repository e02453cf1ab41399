"""What `diagnose` returns: explanations in order, and the words for them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from refattn.oracle.saved import Saved

if TYPE_CHECKING:
    from refattn.oracle.imaging.report import XRay

SHOWN = 3  # explanations printed after the best, and names of one explanation printed in full


@dataclass(frozen=True)
class Finding:
    """One explanation.

    Attributes
    ----------
    id : str
        Of the mistake; two joined by " + ".
    says : str
        What the kernel did.
    remedy : str
        What makes the result agree, where an option or another reading does.
    bound_used : float
        Largest error that remains, over the tight bound of `check`. Where the remedy is an option, it is
        the number that `check` gives for the call with that option (of the rows looked at, when only some
        are).
    residual : float
        Root mean square of what remains, over a simple bound: what explanations are ranked by.
    explains : bool
    same_as : tuple of str
        Other mistakes that predict the same numbers on these inputs.
    issues : tuple of str
        Public reports.
    left : float
        Share of the kernel's root mean square error that remains.
    same_words : tuple of str
        `says` of those in `same_as`.
    rounding : bool
        The mistake is one of precision.
    seen : bool
        Read off the result itself: there is nothing to predict.
    """

    id: str
    says: str
    remedy: str
    bound_used: float
    residual: float
    explains: bool
    same_as: tuple[str, ...] = ()
    issues: tuple[str, ...] = ()
    left: float = 1.0
    same_words: tuple[str, ...] = ()
    rounding: bool = False
    seen: bool = False

    def __str__(self):
        names = self.says
        if self.seen:
            return names
        if self.same_words:
            others = "; or ".join(self.same_words[:SHOWN])
            more = f" (or {len(self.same_words) - SHOWN} others)" if len(self.same_words) > SHOWN else ""
            names = f"{self.says}; or, which is the same on these inputs, {others}{more}"
        if not self.explains:
            return (
                f"{names}: the error shrinks to {_percent(self.left)} of what it is (rms), but does not "
                "vanish"
            )
        text = f"{names}; {self._closing()}"
        if self.remedy and not self._spelled:
            text += f"; to do: {self.remedy}"
        if self.issues:
            text += f" [seen in {self.issues[0]}]"
        return text

    @property
    def _spelled(self):
        """Whether the remedy is an option or an expression, not advice."""
        return any(sign in self.remedy for sign in "=()")

    def _closing(self):
        if self.rounding:
            return f"that reproduces the error ({_percent(self.left)} of it remains, rms)"
        if self.bound_used <= 1:
            how = f"with {self.remedy} the output agrees"
            how = how if self._spelled else "that reproduces the output"
            return f"{how} (bound used {self.bound_used:.2g})"
        start = f"with {self.remedy}" if self._spelled else "after that"
        if not math.isfinite(self.bound_used):
            return f"{start} {_percent(self.left)} of the error remains (rms)"
        return (
            f"{start} {_percent(self.left)} of the error remains (rms), up to {self.bound_used:.3g} "
            "times what rounding allows"
        )


def _percent(share):
    return f"{100 * share:.2g} %" if share >= 1e-6 else "next to nothing"


@dataclass(frozen=True)
class Diagnosis(Saved):
    """What `diagnose` found, best first.

    Attributes
    ----------
    verdict : {"agrees", "explained", "described", "unexplained"}
        "described": no known mistake explains the result, and what the kernel does was measured.
    findings : tuple of Finding
    location : str
        Where the error lives; filled when nothing explains it.
    tried : int
        Hypotheses looked at.
    seconds : float
    sampled : bool
        Whether only some heads and rows were looked at.
    tell_apart : str
        Inputs on which the names of the best finding differ; "" where it has one name, or none are known.
    told_apart_by : tuple of str
        Inputs the kernel was run on to tell them apart.
    unfinished : tuple of str
        Parts of the search that its time cut short.
    limit : float
        The time it had, `seconds` of `diagnose`.
    xray : XRay or None
        What the kernel was measured to do, where no known mistake explains the result.
    held : str
        That the output holds numbers of a coarser format than its dtype, of which everything else speaks.
    changed : tuple of str
        Arguments that the kernel changes in place; it is given copies.
    interrupted : bool
        Ctrl-C ended the search; the last of `unfinished` is the part that it ended.
    dialect : str
        The library of `dialect=`, and how it writes results, in words; "" without one.
    """

    verdict: str
    findings: tuple[Finding, ...] = ()
    location: str = ""
    tried: int = 0
    seconds: float = 0.0
    sampled: bool = False
    tell_apart: str = ""
    told_apart_by: tuple[str, ...] = ()
    unfinished: tuple[str, ...] = ()
    limit: float = math.inf
    xray: XRay | None = None
    held: str = ""
    changed: tuple[str, ...] = ()
    interrupted: bool = False
    dialect: str = ""

    kind, title = "diagnosis", "Diagnosis"

    @property
    def passed(self) -> bool:
        """Whether the result agrees with the reference."""
        return self.verdict == "agrees"

    @property
    def summary(self) -> str:
        """The first line of the text: what is wrong."""
        return self.text().split("\n")[0]

    @property
    def best(self) -> Finding | None:
        return self.findings[0] if self.findings else None

    def text(self):
        """What was found, as lines."""
        held = f"{self.held[:1].upper()}{self.held[1:]}. With it:" if self.held else ""
        changed = (f"  The kernel changes its argument {name} in place." for name in self.changed)
        read = f"  Results were read as those of {self.dialect}; options are named as in refattn."
        dialect = (read,) if self.dialect and self.verdict != "agrees" else ()
        return "\n".join(filter(None, (held, self._found(), *changed, *dialect)))

    __str__ = text

    def _found(self):
        if self.verdict == "agrees":
            used = f"(bound used {self.findings[0].bound_used:.2g})"
            if self.sampled:
                where = "Where check() finds an error, pass near=report.output.worst."
                return (
                    f"The result agrees with the reference on the heads and rows looked at {used}. {where}"
                )
            return f"The result agrees with the reference {used}; nothing to explain."
        lines = []
        if self.verdict == "explained":
            lines.append(str(self.findings[0]))
            if self.told_apart_by:
                lines.append(f"  told from others by running the kernel {'; '.join(self.told_apart_by)}")
            if self.tell_apart:
                lines.append(f"  to tell them apart: {self.tell_apart}")
            others = [
                finding
                for finding in self.findings[1 : 1 + SHOWN]
                if finding.explains and finding.id != self.findings[0].id
            ]
            lines += [f"  also possible: {finding}" for finding in others]
        else:
            if self.xray is not None and self.xray.findings:
                lines.append(str(self.xray))
            if self.verdict == "described":
                return "\n".join(lines)
            if self.tried:
                lines.append(f"None of {self.tried} hypotheses explains the result.")
            lines += [f"  nearest: {finding}" for finding in self._helping()]
            lines.append(f"  where: {self.location}" if lines else self.location)
        if self.sampled:
            lines.append("  (from some sequences, heads and rows; the worst among them)")
        if self.unfinished:
            ended, remedy = f"The time of {self.limit:g} s", " seconds= sets it."
            if self.interrupted:
                ended, remedy = "Ctrl-C", ""
            lines.append(f"  {ended} ended the search; not finished: {'; '.join(self.unfinished)}.{remedy}")
        return "\n".join(lines)

    def _helping(self):
        """The nearest hypotheses; a pair only where it leaves clearly less than one of the two."""
        found = []
        for finding in self.findings:
            parts = {*finding.id.split(" + ")}
            if finding.left < HELPS and not any(
                {*known.id.split(" + ")} <= parts and finding.left > 0.5 * known.left for known in found
            ):
                found.append(finding)
        return found[:SHOWN]

    def sections(self):
        """Those of its page: the diagnosis, and the X-ray where there is one."""
        from refattn.oracle.verdict.page import Section

        measured = [] if self.xray is None else self.xray.sections()
        if self.verdict == "described":  # by the X-ray, whose words are those of the diagnosis
            return measured
        return [Section("Diagnosis", self.verdict, self.text().split("\n")), *measured]

    def plain(self) -> dict:
        """Plain values of its own; `to_dict` has all."""
        return {
            "findings": [
                vars(finding)
                | {name: list(getattr(finding, name)) for name in ("same_as", "issues", "same_words")}
                for finding in self.findings
            ],
            "location": self.location,
            "tried": self.tried,
            "seconds": self.seconds,
            "sampled": self.sampled,
            "tell_apart": self.tell_apart,
            "told_apart_by": list(self.told_apart_by),
            "unfinished": list(self.unfinished),
            "held": self.held,
            "changed": list(self.changed),
            "interrupted": self.interrupted,
            "dialect": self.dialect,
            "xray": None if self.xray is None else self.xray.to_dict(),
        }


HELPS = 0.5  # share of the error that a hypothesis must remove to be shown as the nearest
