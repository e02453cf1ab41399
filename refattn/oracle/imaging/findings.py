"""One thing that an X-ray found, a `Finding`: what happens, where, and how many pairs say so."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from refattn.oracle.imaging.factors_in_words import sentence_case

SHOWN = 4  # findings that are printed
IN_JSON = (
    "kind",
    "nature",
    "place",
    "note",
    "wrong",
    "hit",
    "right_inside",
    "share",
    "verified",
    "confident",
    "says",
)


@dataclass(frozen=True, eq=False)
class Finding:
    """One thing that the kernel does otherwise than it should.

    Attributes
    ----------
    kind : str
        The nature in a word or two, for programs: "missing keys".
    nature : str
        What happens, as a sentence without its end: "keys that should be seen get no weight".
    place : str
        Where, as a sentence without its end; "" for everywhere.
    note : str
        What else was measured about it.
    wrong, hit, right_inside : int
        Pairs of row and key (or rows, or numbers) that are wrong in this way; those of them that lie in the
        place; and pairs in the place that are right.
    verified : bool
        The description predicts the result of the caller's own call.
    confident : bool
        The nature is known. Where it is not, only the place is.
    minor : bool
        So few pairs, beside others, that it may follow from them.
    region : ndarray of bool or None
        The place, (B, H, T, S) or (B, H, T).
    """

    kind: str
    nature: str
    place: str = ""
    note: str = ""
    wrong: int = 0
    hit: int = 0
    right_inside: int = 0
    verified: bool = False
    confident: bool = True
    minor: bool = False
    region: np.ndarray | None = field(default=None, repr=False)

    @property
    def share(self):
        """Share of the wrong pairs that lie in the place."""
        return self.hit / self.wrong if self.wrong else 1.0

    @property
    def located(self):
        """Whether it says where: a place, or that nothing there is right."""
        return bool(self.place) or bool(self.wrong and not self.right_inside)

    @property
    def says(self):
        text = sentence_case(self.nature)
        if self.place:
            text += f", where {self.place}"
        elif not self.confident and self.located:
            text += ", in all rows and heads"
        return f"{text}. {self.note}".rstrip() if self.note else f"{text}."

    def to_dict(self):
        return {name: getattr(self, name) for name in IN_JSON}
