"""Visible sets that are other ones: each rule read with another position, length, width, mask or tile.

A model gives the keys that a row would see. It explains a wrong visible set when it changes the pairs that
are wrong, and no others.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from refattn.oracle.imaging.visibility_limits import lengths, positions, widths
from refattn.oracle.imaging.visibility_masks import masks
from refattn.oracle.imaging.visibility_tiles import cells, tiles

EXPLAINS = 0.94
AS_GOOD = 0.02  # of fit: a model that is worse by no more than that is named beside the best
SIDES = ("left", "right", "chunk")
# Each yields words, what a model costs beside simpler ones, and the visible keys (B, H, T, S).
FAMILIES = (positions, widths, cells, lengths, tiles, masks)


@dataclass(frozen=True, eq=False)
class Rules:
    """The rules of visibility of a view, each with what it reads.

    Attributes
    ----------
    left, right, chunk : int or None
        Widths of the window and of chunks.
    left_position, right_position, chunk_position : ndarray, (B, 1, T, 1)
        Where each of the three takes a row to stand.
    length : ndarray, (B, 1, 1, 1)
    unmasked : ndarray of bool, (B, H, T, S)
        Pairs that exist and that mask and bias leave.
    holes : ndarray of bool, (B, H, T, S)
        Those of them that the form of the call leaves, too.
    dropped : ndarray of bool, (B, H, T, S)
        Pairs that dropout drops.
    """

    view: object
    left: int | None
    right: int | None
    chunk: int | None
    left_position: np.ndarray
    right_position: np.ndarray
    chunk_position: np.ndarray
    length: np.ndarray
    unmasked: np.ndarray
    holes: np.ndarray
    dropped: np.ndarray

    @classmethod
    def of(cls, view):
        rules = view.rules(0)
        unmasked = np.ones(view.shape, bool) & view.exists
        for what in ("mask", "bias"):
            if (hidden := view.hidden_by(what)) is not None:
                unmasked &= ~hidden
        return cls(
            view,
            **{side: getattr(rules, side) for side in SIDES},
            **{f"{side}_position": view.position for side in SIDES},
            length=view.of_sequences("length"),
            unmasked=unmasked,
            holes=unmasked if view.drawn_holes is None else unmasked & view.drawn_holes,
            dropped=_dropped(view),
        )

    def visible(self, position=None, **changed):
        """The visible keys, (B, H, T, S), with some attributes changed; `position` changes all positions."""
        if position is not None:
            changed |= {f"{side}_position": position for side in SIDES}
        return dataclasses.replace(self, **changed)._visible()

    def _visible(self):
        key = self.view.key
        seen = (key < self.length) & self.holes
        if self.left is not None:
            seen = seen & (key >= self.left_position - self.left)
        if self.right is not None:
            seen = seen & (key <= self.right_position + self.right)
        if self.chunk is not None:
            seen = seen & (key // self.chunk == self.chunk_position // self.chunk)
        return seen & ~self.dropped


def explain_visibility(ledgers, missing, extra, judged=None):
    """The best model: words, fit and the pairs that it changes, or None. All arrays are (B, H, T, S)."""
    view = ledgers.view
    wrong = missing | extra
    judged = (ledgers.judged if judged is None else judged) & view.exists
    right = view.visible & ~_dropped(view)
    rules, found = Rules.of(view), []
    for family in FAMILIES:
        for words, cost, visible in family(view, rules):
            change = (np.broadcast_to(visible, view.shape) != right) & judged
            union = max((change | wrong).sum(), 1)
            # a change must go the way it was seen to go
            against = (change & missing & visible) | (change & extra & ~visible)
            fit = float((change & wrong).sum() / union - against.sum() / union)
            if fit >= EXPLAINS:
                found.append((fit - cost, words, fit, change))
    if not found:
        return None
    worth, words, fit, change = max(found, key=lambda model: model[0])
    same = [
        other
        for value, other, _, others in found
        if other != words and value > worth - AS_GOOD and np.array_equal(change, others)
    ]
    return words + "".join(f"; or, which is the same here, {other}" for other in same[:2]), fit, change


def _dropped(view):
    return np.zeros(view.shape, bool) if view.dropped is None else view.dropped
