"""Visible sets told row by row: what each row takes in place of its position, length, width or chunk.

Every row that sees other keys is compared with what it would see for each of a few numbers that first and
last keys suggest. A few numbers that explain all rows, each in its own place, are one finding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from refattn.oracle.imaging.maps import most_common, ranges
from refattn.oracle.imaging.view import last_key
from refattn.oracle.imaging.visibility_limits import NAMES

EXPLAINS = 0.95  # of the wrong rows
TRIED, MOST_NUMBERS = 16, 4
SAMPLE, LEAST = 3000, 4  # rows
PLACE = 0.8  # fit of a rule that is told
TILES = (8, 16, 32, 48, 64, 96, 128)
ROUNDED = (8, 16, 32, 64, 128)


class Parameter(NamedTuple):
    """One number that a row may take otherwise.

    Attributes
    ----------
    words : callable (number) -> str
    changed : callable (view, number) -> dict
        What of the rules is changed; arrays broadcast to (B, H, T, 1).
    numbers : ndarray
        That rows suggest.
    cost : float
        Beside simpler ones.
    most : int
        Numbers that may be needed.
    """

    words: Callable
    changed: Callable
    numbers: np.ndarray
    cost: float
    most: int = MOST_NUMBERS


class RowFit(NamedTuple):
    """What explains rows: a sentence without its end, and the pairs that it changes, (B, H, T, S)."""

    words: str
    change: np.ndarray


class SeenRows:
    """Rows (n,) that see other keys than they should, with those that they use.

    Attributes
    ----------
    at : tuple of ndarray
        Their places in (B, H, T).
    got, right, judged : ndarray of bool, (n, S)
    """

    def __init__(self, rules, wrong, judged):
        self.rules, self.view = rules, rules.view
        places = np.argwhere(wrong.any(-1))
        if len(places) > SAMPLE:
            places = places[np.sort(np.random.default_rng(0).choice(len(places), SAMPLE, replace=False))]
        self.at = tuple(places.T)
        self.right = np.broadcast_to(rules.visible(), wrong.shape)[self.at]
        self.judged = np.broadcast_to(judged, wrong.shape)[self.at]
        self.got = self.right ^ wrong[self.at]
        self.base = {name: self._rows(getattr(rules, name)) for name in _ARRAYS}

    def _rows(self, array):
        shape = self.view.shape
        array = np.asarray(array)
        whole = np.broadcast_to(array, (*shape[:3], array.shape[-1] if array.ndim else 1))
        return whole[self.at]

    def explained(self, **changed):
        """Whether each row sees what it would with these changes of the rules, (n,)."""
        rows = {name: x if x is None or np.ndim(x) == 0 else self._rows(x) for name, x in changed.items()}
        seen = self.rules.visible_of(self.view.key[0, 0], **(self.base | rows))
        return ((seen == self.got) | ~self.judged).all(-1)

    def ends(self):
        """First and last key of the rows that use one, before and now, and their positions, (m,) each."""
        some = self.got.any(-1) & self.right.any(-1)
        got, right = self.got[some], self.right[some]
        position = self._rows(self.view.position)[some, 0]
        return got.argmax(-1), last_key(got), right.argmax(-1), last_key(right), position


_ARRAYS = ("left_position", "right_position", "chunk_position", "length", "holes", "dropped")


def explain_rows(rules, wrong, judged, regions) -> RowFit | None:
    """What numbers the rows with wrong pairs (B, H, T, S) take, or None."""
    rows = SeenRows(rules, wrong, judged)
    if len(rows.got) < LEAST or not rows.got.any():
        return None
    found = []
    for parameter in (*_of_other_sequences(rows), *_positions(rows), *_widths(rows)):
        chosen, share = _cover(rows, parameter)
        if chosen and share >= EXPLAINS:
            found.append((share - parameter.cost - 0.02 * (len(chosen) - 1), parameter, chosen))
    formula = max(_formulas(rows), key=lambda entry: entry[0], default=None)
    best = max(found, key=lambda entry: entry[0], default=None)
    if formula and (best is None or formula[0] > best[0]):
        change = rules.visible(formula[2]) != rules.visible()
        return RowFit(formula[1], change & judged)
    return None if best is None else _told(rows, *best[1:], wrong, judged, regions)


# numbers


def _common(numbers):
    values, counts = np.unique(numbers, return_counts=True)
    return values[np.argsort(-counts, kind="stable")][:TRIED]


def _positions(rows):
    """Positions that are off by a number, or one number, for all rules or one of them."""
    rules = rows.rules
    first, last, right_first, right_last, _ = rows.ends()
    sides = [side for side in NAMES if getattr(rules, side) is not None]
    steps = _common(np.concatenate([last - right_last, first - right_first]))
    steps = steps[steps != 0]
    same = []
    if rules.right is not None:
        same.append(last - rules.right)
    if rules.left is not None:
        same.append(first + rules.left)
    same = _common(np.concatenate(same)) if same else np.zeros(0, int)
    for names, whose, cost in (
        (sides, "", 0.0),
        *(((side,), f" for {NAMES[side]}", 0.01) for side in sides),
    ):
        if not names or (cost and len(sides) == 1):
            continue
        put = lambda place, names=names: {f"{name}_position": place for name in names}
        of = f"the position of a row{whose} is"
        yield Parameter(
            _end_in_words if sides == ["right"] else lambda n, of=of: f"{of} off by {n:+d}",
            lambda view, n, put=put: put(view.position + n),
            steps,
            cost,
        )
        yield Parameter(
            lambda n, of=of: f"{of} {n}, whichever the row is",
            lambda view, n, put=put: put(0 * view.position + n),
            same,
            cost + 0.03,
            1,
        )
        if cost or len(sides) == 1:
            yield Parameter(
                lambda n, side=names[0]: f"{NAMES[side]} is not applied",
                lambda view, n, side=names[0]: {side: None},
                np.zeros(1, int),
                -0.002,  # where rows see all that is left, any large number explains them too
                1,
            )


def _end_in_words(n):
    """That the position of rows is off by n, where it sets the last key only."""
    keys = f"{abs(n)} key{'s' * (abs(n) != 1)}"
    if n > 0:
        return f"rows see {keys} too many at the causal limit, as if their position were off by {n:+d}"
    return f"rows miss the last {keys} before the causal limit, as if their position were off by {n:+d}"


def _of_other_sequences(rows):
    """Offsets and lengths of other sequences."""
    view = rows.view
    count = np.arange(len(view.sequences))
    if len(count) < 2:
        return
    offset, length = view.of_sequences("offset"), view.of_sequences("length")
    put = lambda place: {f"{side}_position": place for side in NAMES}
    if (offset != offset[0]).any():
        yield Parameter(
            lambda n: f"the position of row 0 (q_offset) is that of sequence {n}",
            lambda view, n: put(view.row + offset[n]),
            count,
            0.0,
        )
    if (length != length[0]).any():
        yield Parameter(
            lambda n: f"the length of the sequence is that of sequence {n}",
            lambda view, n: {"length": np.minimum(length[n], view.of_sequences("num_keys"))},
            count,
            0.0,
        )


def _widths(rows):
    """Lengths, sides of the window and sizes of chunks."""
    rules, view = rows.rules, rows.view
    first, last, _, _, position = rows.ends()
    ends = _common(last + 1)
    yield Parameter(
        lambda n: f"the length is {abs(n)} too {'small' if n < 0 else 'large'}: {_past(n)}",
        lambda view, n: {
            "length": np.minimum(view.of_sequences("length") + n, view.of_sequences("num_keys"))
        },
        _common(last + 1 - rows._rows(rules.length)[rows.got.any(-1) & rows.right.any(-1), 0]),
        0.0,
    )
    yield Parameter(
        lambda n: f"the length of the sequence is taken for {n}",
        lambda view, n: {"length": np.minimum(n, view.of_sequences("num_keys"))},
        ends,
        0.01,
    )
    for side, numbers in (("left", position - first), ("right", last - position)):
        if (right := getattr(rules, side)) is not None:
            yield Parameter(
                lambda n, side=side, right=right: (
                    f"{NAMES[side]} is {n}, it should be {right}{_rounded(right, n)}"
                ),
                lambda view, n, side=side: {side: int(n)},
                _common(numbers),
                0.005,
            )
    if rules.chunk is not None:
        powers = {1 << rules.chunk.bit_length(), 1 << (rules.chunk.bit_length() - 1)}
        rounded = {(rules.chunk + step) // size * size for size in ROUNDED for step in (0, size - 1)}
        sizes = np.array(sorted(n for n in (powers | rounded) - {rules.chunk, 0} if n <= 2 * view.num_keys))
        yield Parameter(
            lambda n: f"chunks have {n} keys, they should have {rules.chunk}{_rounded(rules.chunk, n)}",
            lambda view, n: {"chunk": int(n)},
            sizes,
            0.005,
        )


def _past(n):
    keys = f"key{'s' * (abs(n) != 1)}"
    if n > 0:
        return f"{n} {keys} past it count{'s' * (n == 1)}"
    return f"the last {f'{-n} ' * (n < -1)}{keys} {'is' if n == -1 else 'are'} missing"


def _rounded(right, n):
    """That a number is the right one rounded, in words."""
    if n > 0 and n & (n - 1) == 0 and n in (1 << right.bit_length(), 1 << (right.bit_length() - 1)):
        return f" (rounded {'up' if n > right else 'down'} to a power of two)"
    for size in reversed(ROUNDED):
        if n % size == 0 and 0 < abs(n - right) < size <= max(n, 1):
            return f" (rounded {'up' if n > right else 'down'} to a multiple of {size})"
    return ""


def _cover(rows, parameter):
    """Few numbers of a parameter that explain most rows: [(number, rows)], and the share of them."""
    explained = {int(n): rows.explained(**parameter.changed(rows.view, int(n))) for n in parameter.numbers}
    left, chosen = np.ones(len(rows.got), bool), []
    while explained and len(chosen) < parameter.most and left.mean() > 1 - EXPLAINS:
        n = max(explained, key=lambda n: ((explained[n] & left).sum(), -abs(n)))
        mine = explained.pop(n) & left
        if not mine.any():
            break
        chosen.append((n, mine))
        left &= ~mine
    return chosen, 1 - left.mean()


def _formulas(rows):
    """Positions that are off by a multiple of another number: (worth, words, position)."""
    view = rows.view
    head = view.heads.reshape(1, -1, 1, 1)
    numbers = [(f"(row // {n})", view.row // n) for n in TILES if n < view.num_rows]
    numbers += [("the query head", head), ("row", view.row)]
    if 1 < view.group_size < view.num_heads:
        numbers += [
            ("(head % group_size)", head % view.group_size),
            ("(head // group_size)", head // view.group_size),
        ]
    numbers.append(("the number of the sequence", np.arange(len(view.sequences)).reshape(-1, 1, 1, 1)))
    _, last, _, right_last, _ = rows.ends()
    some = rows.got.any(-1) & rows.right.any(-1)
    for words, number in numbers:
        of_rows = rows._rows(number)[some, 0]
        use = (of_rows > 0) & (last != right_last)
        if len(np.unique(of_rows[use])) < 3:
            continue
        step = most_common(np.rint((last - right_last)[use] / of_rows[use]).astype(int))
        if not step:
            continue
        place = view.position + step * number
        share = rows.explained(**{f"{side}_position": place for side in NAMES}).mean()
        if share >= EXPLAINS:
            times = words if step == 1 else f"{step} * {words}"
            yield share, f"the position of a row is off by {times}", place


# words


def _told(rows, parameter, chosen, wrong, judged, regions):
    """One sentence for the chosen numbers, each with the rows that take it."""
    rules, view, told = rows.rules, rows.view, []
    right = rules.visible()
    change = np.zeros(wrong.shape, bool)
    sampled = np.zeros(wrong.shape[:3], bool)
    sampled[rows.at] = True
    all_rows = wrong.any(-1)
    for n, mine in chosen:
        differs = (rules.visible(**parameter.changed(view, n)) != right) & judged
        takes = np.zeros(wrong.shape[:3], bool)
        takes[tuple(axis[mine] for axis in rows.at)] = True
        shows = differs.any(-1) & (sampled | ~all_rows)
        rule = regions.find((takes & shows)[..., None], shows[..., None], row_level=True)
        where = _sequences(takes & shows, shows)
        if not where and rule.statements and rule.fit >= PLACE:
            where = _where(str(rule))
        told.append((parameter.words(n), where))
        change |= differs & (takes[..., None] if rule.fit < PLACE else rule.inside)
    first, where = told[0]
    words = first + where
    for other, where in told[1:]:
        common = _common_start(first, other)
        words += f"; {other[common:]}{where}"
    return RowFit(words, change)


def _where(place):
    return f" where {place}"


def _sequences(rows, shows):
    """Which sequences rows (B, H, T) are, where they are all rows of some of them; else ""."""
    some = rows.any((1, 2))
    if len(some) == 1 or some.all() or (rows != shows & some[:, None, None]).any():
        return ""
    return f" in sequence{'s' * int(some.sum() > 1)} {ranges(np.flatnonzero(some).tolist())}"


def _common_start(first, other):
    """Where two sentences begin to differ, at the start of a word."""
    same = next((n for n, (a, b) in enumerate(zip(first, other)) if a != b), min(len(first), len(other)))
    return first.rfind(" ", 0, same) + 1
