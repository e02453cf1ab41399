"""What `xray` returns: what was measured, the findings in order, and ways to show them."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass, field

import numpy as np

from refattn.oracle.imaging.compare import EXTRA, MISSING, SCALED, Ledgers
from refattn.oracle.imaging.findings import SHOWN, Finding
from refattn.oracle.imaging.measure import Measured
from refattn.oracle.saved import Saved
from refattn.oracle.verdict.faults import NOT_JUDGED

AGREES, DESCRIBED, LOCATED = "agrees", "described", "located"
REST = 0.05  # of the wrong rows, that may stay unexplained
COARSE = 2.0**-20  # roundings above it hide small differences of weights
WIDTH = 109
TILES_SAID = re.compile(r"tiles? of (\d+) keys")


@dataclass(eq=False)
class XRay(Saved):
    """What a kernel does otherwise than it should, read off its attention weights.

    Attributes
    ----------
    verdict : {"agrees", "described", "located", "not judged"}
        "located": the first finding knows the place and not the nature. "not judged": the spec allows no
        claim about the result.
    findings : tuple of Finding
        All of them, causes before what follows from them.
    measured : Measured, Estimated or None
        The weights that the kernel gave, `measured.weights`, and its results; estimated where only a result
        was there; None where nothing was to be described. The right weights and scores are those of
        `measured.view`.
    ledgers : Ledgers or None
        Measured against right: `ledgers.labels` says what each pair of a row and a key is.
    called : dict of str to int
        How often the kernel was called, by what for; empty where it was not.
    seconds : float
    unfinished : tuple of str
        What was left out for want of time.
    changed : tuple of str
        Arguments that the kernel changes in place; it is given copies.
    failed : str
        Why the kernel could not be measured, so that the weights are estimated; "" where it could.
    interrupted : bool
        Ctrl-C ended the X-ray, in the part that is the last of `unfinished`.
    looked_at : str
        What sequences and heads of a large call were looked at, as a sentence; "" for all of them. In the
        findings they are numbered from 0.

    Notes
    -----
    An X-ray does not see, and `text` says where that applies:

    - key and value rows that are moved together, where nothing else (mask, bias, position) tells keys apart:
      the result is the same;
    - what shifts all scores of a row alike, where the kernel returns no lse;
    - which of two things that coincide is the cause, such as a split that ends where a tile ends;
    - below float32, what is smaller than the rounding of the output.
    """

    verdict: str
    findings: tuple[Finding, ...] = ()
    measured: Measured | None = field(default=None, repr=False)
    ledgers: Ledgers | None = field(default=None, repr=False)
    called: dict = field(default_factory=dict)
    seconds: float = 0.0
    unfinished: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    failed: str = ""
    interrupted: bool = False
    looked_at: str = ""

    kind, title = "xray", "X-ray"

    @property
    def passed(self) -> bool:
        """Whether the kernel agrees with the reference."""
        return self.verdict == AGREES

    @property
    def summary(self) -> str:
        """`sentence`, under the name that every answer of the oracle has."""
        return self.sentence

    @property
    def best(self) -> Finding | None:
        """The first finding."""
        return self.findings[0] if self.findings else None

    @property
    def confident(self) -> bool:
        """Whether the nature of the first finding is known."""
        return self.verdict == DESCRIBED

    @property
    def complete(self) -> bool:
        """Whether the nature is known, and of nearly all the rows that are wrong."""
        if self.measured is None:
            return self.confident
        unknown = self.measured.unknown.sum() if self.confident else 0
        # rows that one result leaves unexplained may be those that tell two causes from one
        rest = REST * self.measured.wrong_rows.sum() if self.measured.probes is not None else 0
        return self.confident and bool(unknown <= rest)

    @property
    def tiles(self) -> tuple[int, ...]:
        """The sizes of tiles of keys that the findings speak of."""
        said = {size for finding in self.findings for size in TILES_SAID.findall(finding.says)}
        return tuple(sorted(map(int, said)))

    @property
    def calls(self) -> int:
        """How often the kernel was called."""
        return sum(self.called.values())

    @property
    def weights(self):
        """The weights that the kernel gave, (B, H, T, S), or None."""
        return None if self.measured is None else self.measured.weights

    @property
    def expected_weights(self):
        """The right weights, (B, H, T, S), or None."""
        return None if self.measured is None else self.measured.view.weights

    @property
    def scores(self):
        """The right scores, after softcap, ALiBi and bias, (B, H, T, S), or None."""
        return None if self.measured is None else self.measured.view.score

    @property
    def sentence(self) -> str:
        """What is wrong, in one sentence."""
        if self.interrupted and self.best is None:
            return "Interrupted before anything was described."
        if self.verdict == AGREES:
            return "The result agrees with the reference; there is nothing to describe."
        if self.verdict == NOT_JUDGED:
            return "The result is not judged: an intermediate may overflow the formats of the spec."
        if self.best is None:
            return "The result is wrong; neither place nor nature was found."
        if self.best.confident:
            return self.best.says
        located = "Located, nature unknown." if self.best.located else "Nature unknown."
        return f"{located} {self.best.says}"

    def text(self) -> str:
        """The sentence, the counts behind it, up to three further findings, and the number of calls."""
        lines = textwrap.wrap(self.sentence, WIDTH)
        if self.best is not None:
            behind = [counted(self.best), "verified on the call itself" if self.best.verified else ""]
            lines += [f"  {'; '.join(filter(None, behind))}"] if any(behind) else []
        for finding in self.findings[1:SHOWN]:
            unknown = "located, nature unknown: " if finding.located else "nature unknown: "
            also = f"also: {'' if finding.confident else unknown}{finding.says}"
            lines += textwrap.wrap(also, WIDTH, initial_indent="  ", subsequent_indent="    ")
        if len(self.findings) > SHOWN:
            lines.append(f"  and {len(self.findings) - SHOWN} more")
        if self.measured is not None:
            unseen = f"not to be seen here: {'; '.join(self.unseen())}."
            lines += textwrap.wrap(unseen, WIDTH, initial_indent="  ", subsequent_indent="    ") * bool(
                self.unseen()
            )
        if self.unfinished:
            parts = "; ".join(self.unfinished)
            unfinished = f"left out for want of time: {parts}. seconds= sets it."
            unfinished = f"interrupted, not finished: {parts}." if self.interrupted else unfinished
            lines += textwrap.wrap(unfinished, WIDTH, initial_indent="  ", subsequent_indent="    ")
        if self.looked_at:
            lines += textwrap.wrap(self.looked_at, WIDTH, initial_indent="  ", subsequent_indent="    ")
        lines += [f"  {line}" for line in self.remarks()]
        lines += textwrap.wrap(self.called_in_words, WIDTH, initial_indent="  ", subsequent_indent="    ")
        return "\n".join(lines)

    __str__ = text

    def __repr__(self):
        return f"<XRay {self.verdict}: {self.sentence}>"

    @property
    def called_in_words(self) -> str:
        """ "19 calls of the kernel"; `called` says what for."""
        if not self.called:
            return "estimated from its result: the kernel was not called"
        estimated = self.measured is not None and self.measured.probes is None
        words = f"{self.calls} call{'s' * (self.calls != 1)} of the kernel"
        return f"{words}; weights are estimated from its result" if estimated else words

    def remarks(self) -> list[str]:
        """What else was seen of the calls, as sentences."""
        said = [f"The kernel changes its argument {name} in place." for name in sorted(self.changed)]
        return said + ([f"Not measured: {self.failed}."] if self.failed else [])

    def unseen(self) -> list[str]:
        """What an X-ray of this call cannot see, in words."""
        measured = self.measured
        if measured is None:
            return []
        found = []
        if measured.lse is None:
            found.append("what shifts all scores of a row alike (the kernel returns no lse)")
        rounding = measured.spec.output
        if rounding.unit_roundoff > COARSE:
            found.append(f"what is smaller than the rounding of the output, {rounding.name}")
        view = measured.view
        rows = np.broadcast_to(view.row_exists, view.shape[:3])
        if view.visible[rows].all() and not view.checked.form.joins:
            found.append("keys and values that are moved together (every row sees all keys)")
        return found

    @property
    def counts(self) -> dict:
        """Pairs of a row and a key, and rows, by what is wrong with them."""
        if self.ledgers is None:
            return {}
        ledgers = self.ledgers
        pairs = {"missing": MISSING, "extra": EXTRA, "scaled": SCALED}
        return {
            "judged": int(ledgers.judged.sum()),
            **{name: int((ledgers.labels == label).sum()) for name, label in pairs.items()},
            "nan_rows": int(ledgers.nan.sum()),
            "zero_rows": int(ledgers.zero.sum()),
            "rows_of_wrong_sum": int((ledgers.sum_off != 0).sum()),
            "rows_of_wrong_lse": int((ledgers.lse_off != 0).sum()),
        }

    def plain(self) -> dict:
        """Plain values of its own, of arrays the shapes and counts; `to_dict` has all."""
        measured = self.measured
        return {
            "sentence": self.sentence,
            "findings": [_plain(finding) for finding in self.findings],
            "counts": self.counts,
            "shapes": {}
            if measured is None
            else {"weights": list(measured.view.shape), "output": list(measured.output.shape)},
            "unseen": self.unseen(),
            "unfinished": list(self.unfinished),
            "changed": sorted(self.changed),
            "failed": self.failed,
            "interrupted": self.interrupted,
            "looked_at": self.looked_at,
            "called": dict(self.called),
            "calls": self.calls,
            "seconds": self.seconds,
        }

    def sections(self):
        """The section of its page: what is wrong, and the weights of the place where it is."""
        from refattn.oracle.imaging.page_maps import maps_of
        from refattn.oracle.verdict.page import Section

        words = [finding.says for finding in self.findings[:SHOWN]] or [self.sentence]
        return [Section("X-ray", self.verdict, words, maps=maps_of(self), text=self.text())]

    def picture(self, path):
        """Draw the expected weights, the measured ones and their difference into a file, with the place of
        the best finding outlined: of the sequence and head with most wrong pairs, around those. Findings
        about one number a row, the normaliser or lse, are drawn by row, those about values as the output.

        Raises
        ------
        ImportError
            Without matplotlib.
        ValueError
            Where nothing was measured, because the result agrees or is not judged.
        """
        from refattn.oracle.imaging.picture import draw

        draw(self, path)


def counted(finding) -> str:
    """How well the place of a finding separates wrong from right, in words; "" where nothing was counted."""
    if not finding.wrong or finding.region is None:
        return ""
    region = finding.region
    unit = "pair" if region.ndim == 4 and region.shape[-1] > 1 else "row"
    lie = "lies" if finding.wrong == 1 else "lie"
    if not finding.place:
        return (
            f"{finding.wrong:,} {unit} is wrong"
            if finding.wrong == 1
            else f"{finding.wrong:,} {unit}s are wrong"
        )
    inside = f"{finding.hit:,} of {finding.wrong:,} wrong {unit}{'s' * (finding.wrong != 1)} {lie} there"
    if not finding.right_inside:
        return f"{inside}, no right one does"
    right = "does 1 right one" if finding.right_inside == 1 else f"do {finding.right_inside:,} right ones"
    return f"{inside}, and so {right}"


def _plain(finding):
    region = finding.region
    return finding.to_dict() | {"region_shape": None if region is None else list(region.shape)}
