"""Scores that are off by a number of each key, or of each distance; and softmaxes over another axis, which
take the logarithm of the sum of each key off its scores.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refattn.oracle.imaging.wrong_rows import HELD, Model

LEAST = 6  # pairs of a key or of a distance
MANY = 3  # times as many pairs as numbers that are fitted
ROUNDS = 60
EXPLAINS = 0.9  # of the wrong pairs
TOLD = 5  # distances of a table that are told
FEW = 4  # keys that are listed


def over_other_axes(rows) -> Iterator[Model]:
    """Softmaxes over the rows, the query heads or the sequences in place of the keys."""
    view = rows.view
    hidden = np.where(view.visible, view.score, -np.inf)
    axes = [("sequences", len(view.sequences) == view.checked.num_parts or len(view.samples) == 1)]
    axes += [("query heads", len(view.heads) == view.num_heads), ("rows", view.samples_all_rows)]
    for axis, (name, whole) in enumerate(axes):
        if not whole or view.shape[axis] < 2:
            continue
        with np.errstate(all="ignore"):
            top = hidden.max(axis, keepdims=True)
            total = top + np.log(np.exp(hidden - top).sum(axis, keepdims=True))
            scores = (hidden - total)[rows.at]
        words = (
            f"softmax is taken over the {name} in place of the keys: the weights of a key sum to 1 over all"
        )
        yield Model("softmax", f"{words} {name}", scores)


def tables(rows) -> Iterator[Model]:
    """Scores that are off by a number of each distance of row and key, else by one of each key."""
    view = rows.view
    distance = np.broadcast_to(rows.position[:, None] - view.key[0, 0], rows.score.shape)
    key = np.broadcast_to(view.key[0, 0], rows.score.shape)
    groups = [("all rows and heads", np.zeros(len(rows.b), int)), ("all rows of a head", rows.head)]
    if len(np.unique(rows.t)) > 2:
        for _, group in groups[: 1 + (len(np.unique(rows.head)) > 1)]:
            if (table := _Table(rows, distance, group)).explains():
                of = " in each head" if group.any() else ""
                yield Model(
                    "scores",
                    f"the error depends on the distance of row and key alone{of}: " + table.by_distance(),
                    table.scores,
                    3,
                )
                return
    groups[1:1] = [("all rows of a sequence", rows.b)] * (len(np.unique(rows.b)) > 1)
    groups += [("all rows of a head of a sequence", rows.b * view.num_heads + rows.head)]
    for words, group in groups:
        if (table := _Table(rows, key, group)).explains():
            yield Model("keys", table.by_key(words), table.scores, 3)
            return


class _Table:
    """A number of each class of pairs (n, S), in each group of rows (n,), beside one number of each row."""

    def __init__(self, rows, of, group):
        self.rows = rows
        with np.errstate(all="ignore"):
            off = rows.measured - rows.score
        use = rows.judged & np.isfinite(off)
        pairs = np.stack([np.broadcast_to(group[:, None], of.shape), of], -1)
        self.names, classes = np.unique(pairs.reshape(-1, 2), axis=0, return_inverse=True)
        classes, count = classes.reshape(of.shape), len(self.names)
        of_class = np.bincount(classes[use], minlength=count)
        use &= (of_class >= LEAST)[classes]
        self.known = of_class >= LEAST
        self.enough = use.sum() >= MANY * (self.known.sum() + use.any(-1).sum())
        off, in_row = np.where(use, off, 0), np.maximum(use.sum(-1), 1)
        number = np.zeros(len(off))
        for _ in range(ROUNDS if self.enough else 1):
            beside = (off - number[:, None])[use]
            self.numbers = np.bincount(classes[use], beside, count) / np.maximum(of_class, 1)
            number = np.where(use, off - self.numbers[classes], 0).sum(-1) / in_row
        right = (rows.judged & ~rows.wrong).sum(-1)
        held = right >= np.maximum(HELD * rows.judged.sum(-1), 3)
        common = np.median((number - rows.shift + rows.lse)[held]) if held.any() else 0.0
        self.numbers = np.where(self.known, self.numbers + common, 0.0)
        self.scores = np.where(self.known[classes], rows.score + self.numbers[classes], np.nan)

    def explains(self):
        if not self.enough or not self.rows.differ(self.scores):
            return False
        return self.rows.explains(self.scores) >= EXPLAINS

    def by_distance(self):
        """The numbers at some distances, of the first group; beside that of the least distance."""
        here = self.known & (self.names[:, 0] == self.names[0, 0])
        distance, number = self.names[here, 1], self.numbers[here]
        number = number - number[np.abs(distance).argmin()]
        places = np.unique(np.linspace(0, len(distance) - 1, TOLD).round().astype(int))
        least = distance[np.abs(distance).argmin()]
        table = ", ".join(f"{number[n]:+.3g} at {distance[n]}" for n in places)
        return f"{table} keys (row less key; beside the error at {least})"

    def by_key(self, where):
        """Which keys are off by what."""
        key, number = self.names[self.known, 1], self.numbers[self.known]
        number = number - np.median(number)
        off = np.abs(number) > 2 * np.median(self.rows.tolerance)
        listed = sorted({(int(k), f"{x:+.3g}") for k, x in zip(key[off], number[off], strict=True)})
        if 0 < len(listed) <= FEW:
            told = ", ".join(f"key {k} is off by {x}" for k, x in listed)
            return f"the score of {told}, the same in {where}"
        return (
            f"each key's score is off by a number of its own, from {number.min():.3g} "
            f"to {number.max():.3g}, the same in {where}"
        )
