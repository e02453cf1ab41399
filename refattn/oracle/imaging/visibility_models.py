"""Visible sets that are other ones: each rule read with another position, length, width, mask or tile.

A model gives the keys that a row would see. It explains a wrong visible set when it changes the pairs that
are wrong, and no others.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from refattn.oracle.imaging.factors_in_words import same_here
from refattn.oracle.imaging.mask_maps import mask_map
from refattn.oracle.imaging.visibility_arithmetic import arithmetic
from refattn.oracle.imaging.visibility_full_tiles import full_tiles
from refattn.oracle.imaging.visibility_limits import lengths, positions, widths
from refattn.oracle.imaging.visibility_maps import maps
from refattn.oracle.imaging.visibility_masks import masks
from refattn.oracle.imaging.visibility_rows import explain_rows
from refattn.oracle.imaging.visibility_skips import skipped_tiles
from refattn.oracle.imaging.visibility_tiles import cells, tiles

SHARE_OF_TIME = 1 / 3  # of what is left, that all models may take
EXPLAINS = 0.94
WORD = 18  # letters of a sentence by which kinds of models are told apart
AS_GOOD = 0.02  # of fit: a model that is worse by no more than that is named beside the best
SIDES = ("left", "right", "chunk")
# Each yields words, what a model costs beside simpler ones, and the visible keys (B, H, T, S).
FAMILIES = (positions, widths, cells, arithmetic, lengths, tiles, full_tiles, masks)


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
    unmasked : ndarray of bool, (B, H or 1, T, S)
        Pairs that exist and that mask and bias leave.
    holes : ndarray of bool, (B, H or 1, T, S)
        Those of them that the form of the call leaves, too.
    dropped : ndarray of bool, (B, H or 1, T, S)
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
        unmasked = np.ones((view.shape[0], 1, *view.shape[2:]), bool) & view.exists
        for what in ("mask", "bias"):
            if (hidden := view.hidden_by(what)) is not None:
                unmasked = unmasked & ~hidden
        return cls(
            view,
            **{side: getattr(rules, side) for side in SIDES},
            **{f"{side}_position": view.position for side in SIDES},
            length=view.of_sequences("length"),
            unmasked=_of_one_head(unmasked),
            holes=_of_one_head(unmasked if view.drawn_holes is None else unmasked & view.drawn_holes),
            dropped=_of_one_head(_dropped(view)),
        )

    def visible(self, position=None, **changed):
        """The visible keys, (B, H, T, S), with some attributes changed; `position` changes all positions."""
        if position is not None:
            changed |= {f"{side}_position": position for side in SIDES}
        return dataclasses.replace(self, **changed)._visible(self.view.key)

    def visible_of(self, key, **rows):
        """The same of some rows, (n, S): what is an array is given by `rows`, (n, 1) or (n, S)."""
        return dataclasses.replace(self, **rows)._visible(key)

    def _visible(self, key):
        seen = (key < self.length) & self.holes
        if self.left is not None:
            seen = seen & (key >= self.left_position - self.left)
        if self.right is not None:
            seen = seen & (key <= self.right_position + self.right)
        if self.chunk is not None:
            seen = seen & (key // self.chunk == self.chunk_position // self.chunk)
        return seen & ~self.dropped


class Explained(NamedTuple):
    """A sentence without its end, how well it fits, the pairs (B, H, T, S) that it changes, whether the
    sentence holds the place, and the name of the family of the model.
    """

    words: str
    fit: float
    change: np.ndarray
    placed: bool = False
    family: str = ""


def explain_visibility(ledgers, missing, extra, regions, judged=None) -> Explained | None:
    """The best model of other visible sets, or None. All arrays are (B, H, T, S). With `regions`, rows are
    looked at one by one where no model holds.
    """
    view = ledgers.view
    judged = (ledgers.judged if judged is None else judged) & view.exists
    rules, found = Rules.of(view), []
    counts, end = _Counts(rules.visible(), missing, extra, judged), ledgers.measured.end_of(SHARE_OF_TIME)
    for family in FAMILIES:
        for words, cost, visible in family(view, rules):
            if not ledgers.measured.in_time("which keys rows see", end):
                break
            fit, change = counts.fit(visible)
            if fit >= EXPLAINS:
                found.append((fit - cost, words, fit, change, family.__name__))
    if not found:
        if regions is None:
            return None
        if extra.any() and missing.any() and (words := _masks_elsewhere(rules, missing | extra, judged)):
            return Explained(words, 1.0, missing | extra, placed=True)
        if not extra.any() and (skipped := skipped_tiles(view, missing, judged)):
            return Explained(*skipped, missing, family="tiles")
        return _row_by_row(rules, missing, extra, judged, regions) or _mapped(
            rules, counts, missing | extra, judged
        )
    worth, words, fit, change, family = max(found, key=lambda model: model[0])
    same = [
        other
        for value, other, _, others, name in found
        if name == family
        and other != words
        and value > worth - AS_GOOD
        and not (((change != others) & judged).any())
    ]
    same.sort(key=lambda other: other[:WORD] == words[:WORD])  # another kind says more than another size
    return Explained(same_here(words, same), fit, change & judged, family=family)


class _Counts:
    """How many pairs of each kind there are, for each head or, where a model is the same in all, in all."""

    def __init__(self, right, missing, extra, judged):
        self.right = right
        self.wrong = int((missing | extra).sum())
        full = [np.broadcast_to(x, missing.shape).astype(np.float32) for x in (missing, extra, judged)]
        self.of = {1: [x.sum(1, keepdims=True) for x in full], missing.shape[1]: full}

    def fit(self, visible):
        """How well the pairs that a model changes are the wrong ones, and those pairs; a change must go the
        way it was seen to go.
        """
        change = visible != self.right
        missing, extra, judged = self.of[change.shape[1]]
        lost, gained = change & ~visible, change & visible
        total = lambda pairs, counts: float(np.dot(pairs.ravel(), counts.ravel()))
        changed = total(np.ascontiguousarray(change), judged)
        right_way = total(lost, missing) + total(gained, extra)
        wrong_way = total(lost, extra) + total(gained, missing)
        union = max(changed + self.wrong - right_way - wrong_way, 1)
        return right_way / union, change


def _masks_elsewhere(rules, wrong, judged):
    """Where masks are read, in words; "" where they are read rightly, or nothing is known."""
    view = rules.view
    open_pairs = view.exists & (view.key < rules.length)
    for name, words in (("mask", "the mask"), ("dropout_mask", "the keep mask of dropout")):
        if getattr(view.outline_of(0), name) is None:
            continue
        is_mask = name == "mask"
        limits = rules.visible(holes=open_pairs) if is_mask else view.visible
        if told := mask_map(view, name, wrong, judged, np.broadcast_to(limits, wrong.shape)):
            return f"{words} is read {told}"
    return ""


def _mapped(rules, counts, wrong, judged):
    """What map of rows or keys explains the wrong pairs, or None."""
    found = []
    for words, cost, visible in maps(rules, wrong, judged):
        fit, change = counts.fit(np.broadcast_to(visible, wrong.shape))
        if fit >= EXPLAINS:
            found.append((fit - cost, Explained(words, fit, change & judged)))
    return max(found, key=lambda model: model[0])[1] if found else None


def _row_by_row(rules, missing, extra, judged, regions):
    found = explain_rows(rules, missing | extra, judged, regions)
    if found is None:
        return None
    wrong = missing | extra
    fit = float((found.change & wrong).sum() / max((found.change | wrong).sum(), 1))
    return Explained(found.words, fit, found.change, True) if fit >= EXPLAINS else None


def _of_one_head(pairs):
    """Pairs (B, H, T, S) as (B, 1, T, S) where all heads are alike."""
    first = pairs[:, :1]
    return first if pairs.shape[1] == 1 or (pairs == first).all() else pairs


def _dropped(view):
    return np.zeros((view.shape[0], 1, *view.shape[2:]), bool) if view.dropped is None else view.dropped
