"""Where: a short rule that holds at the wrong pairs and at no right one.

A beam search over conjunctions of statements "feature == value", "!=", "<=", ">=". A rule is worth its F1
score (how well it separates wrong pairs from right ones) less the cost of its words.

What did not help: measuring a smaller call, too, and taking the rule that fits both best (4 of 120 places
changed, none for the better).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refattn.oracle.imaging.features import FEATURES, Feature
from refattn.oracle.imaging.place_words import FLIPPED

SAMPLE = 2**13  # wrong pairs, and as many right ones, on which statements are compared
BEAM, DEPTH = 10, 4
MOST_VALUES = 24  # thresholds of a feature that are tried
WORD = 0.02  # of a statement
ODD_NUMBER = 0.03  # of a number that is no landmark
FEW = 8  # heads or sequences: none of them is odd
ROUND_NUMBER, ROUND = 0.01, 16  # of a multiple of it, where the feature counts rows or keys
TIE = 1e-6  # of features that say the same, the larger tile is taken, if a power of two
NOT = 0.01  # of saying where something is not
NEAR_NUMBER = 0.005  # of one beside a landmark
MIN_GAIN = 0.002
KEPT = 8  # arrays (B, H, T, S) of float64: the size of all features that are kept
LEAST_KEPT = 2**26  # bytes
MOSTLY = 0.95  # of the wrong pairs
FAR = 1e9  # stands for infinite numbers
RANGE = 0.045  # of both ends of a range of rows or keys
COMPARE = {
    "==": np.equal,
    "!=": np.not_equal,
    "<=": np.less_equal,
    ">=": np.greater_equal,
    "in": lambda array, ends: (array >= ends[0]) & (array <= ends[1]),
}


@dataclass(frozen=True, eq=False)
class Statement:
    """That a feature has, has not, does not exceed, or reaches a value, or lies between two ("in")."""

    feature: Feature
    how: str
    value: int | tuple[int, int]
    cost: float

    def holds(self, array):
        return COMPARE[self.how](array, self.value)

    def __str__(self):
        return self.feature.says(self.how, self.value)


@dataclass(frozen=True, eq=False)
class Rule:
    """Statements that hold together, and how they fit.

    Attributes
    ----------
    statements : tuple of Statement
    inside : ndarray of bool, (B, H, T, S) or (B, H, T, 1)
        Pairs at which all of them hold.
    wrong, hit, right_inside : int
        Wrong pairs; those of them that lie inside; right pairs that do.
    """

    statements: tuple[Statement, ...]
    inside: np.ndarray
    wrong: int
    hit: int
    right_inside: int

    @property
    def fit(self):
        """The F1 score."""
        return 2 * self.hit / max(self.wrong + self.hit + self.right_inside, 1)

    def __str__(self):
        """The statements; two bounds of the same number are told as a range."""
        ends = {(s.feature, s.how): s.value for s in self.statements if isinstance(s, Statement)}
        said = []
        for s in self.statements:
            other = ends.get((s.feature, FLIPPED.get(s.how))) if isinstance(s, Statement) else None
            said.append(str(s) if other is None else s.feature.says("in", sorted((s.value, other))))
        return " and ".join(dict.fromkeys(said)) or "everywhere"


@dataclass(frozen=True, eq=False)
class TwoPlaces(Rule):
    """A rule, and a second one for most of what it leaves."""

    other: Rule = None

    def __str__(self):
        return f"{super().__str__()}, and where {self.other}"


class Regions:
    """Regions of one view; its features are computed once, as far as they can be kept."""

    # `in_time` says whether there is time for a search
    def __init__(self, view, features=FEATURES, in_time=lambda search: True):
        self.in_time = in_time
        self.view, self.features = view, features
        self._known = {}
        self._room = max(8 * KEPT * int(np.prod(view.shape)), LEAST_KEPT)

    def array(self, feature):
        """The feature of every pair, or None where it has no meaning or is the same everywhere."""
        if feature in self._known:
            return self._known[feature]
        array = _of_view(feature, self.view)
        size = 0 if array is None else array.nbytes
        if size <= self._room:
            self._known[feature] = array
            self._room -= size
        return array

    def find(self, wrong, universe, row_level=False) -> Rule:
        """The best rule for the wrong pairs among those of the universe; both (B, H, T, S).

        `row_level`: only the features of rows, sequences and heads.
        """
        if not self.in_time("where it is wrong"):
            return self._rule((), wrong, universe)
        shape = np.broadcast_shapes(wrong.shape, universe.shape)
        wrong, universe = np.broadcast_to(wrong, shape), np.broadcast_to(universe, shape)
        bad, good = np.nonzero(wrong & universe), np.nonzero(universe & ~wrong)
        counts = len(bad[0]), len(good[0])
        rng = np.random.default_rng(0)
        bad, good = (_some(places, rng) for places in (bad, good))
        statements, on_bad, on_good = self._statements(bad, good, row_level)
        if not statements or not counts[1]:
            return self._rule((), wrong, universe)
        costs = np.array([statement.cost for statement in statements])
        chosen = _search(on_bad, on_good, costs, counts, (len(bad[0]), len(good[0])))
        return self._rule(tuple(statements[n] for n in chosen), wrong, universe)

    def find_places(self, wrong, universe, row_level=False) -> Rule:
        """The best rule, with a second one where the first leaves a good part of what is wrong."""
        rule = self.find(wrong, universe, row_level)
        left = wrong & universe & ~rule.inside
        if rule.hit > MOSTLY * rule.wrong or not rule.statements or not left.any():
            return rule
        other = self.find(left, universe & ~rule.inside, row_level)
        if not other.statements or other.fit < MOSTLY:
            return rule
        inside, hit = rule.inside | other.inside, rule.hit + other.hit
        right = rule.right_inside + other.right_inside
        return TwoPlaces(rule.statements, inside, rule.wrong, hit, right, other)

    def _statements(self, bad, good, row_level):
        """Statements that hold at some wrong pair and not at all right ones, and where among `bad` and
        `good` each of them holds, as packed bits.
        """
        statements, on_bad, on_good = [], [], []
        for feature in self.features if self.view.num_keys else ():
            array = self.array(feature)
            if array is None or (row_level and array.shape[-1] > 1):
                continue
            pairs = np.broadcast_to(array, np.broadcast_shapes(array.shape, self.view.shape))
            of_bad, of_good = pairs[bad], pairs[good]
            for how, value, odd in _values(feature, of_bad, array):
                statement = Statement(feature, how, value, WORD + feature.cost + odd - _likely(feature.tile))
                a, b = statement.holds(of_bad), statement.holds(of_good)
                if a.any() and not b.all():
                    statements.append(statement)
                    on_bad.append(np.packbits(a))
                    on_good.append(np.packbits(b))
        return statements, np.array(on_bad), np.array(on_good)

    def _rule(self, statements, wrong, universe):
        inside = universe
        for statement in statements:
            inside = inside & statement.holds(self.array(statement.feature))
        hit = int((inside & wrong).sum())
        return Rule(statements, inside, int((wrong & universe).sum()), hit, int((inside & ~wrong).sum()))


def _likely(tile):
    """How much likelier a tile is than others that say the same."""
    return TIE * tile if tile and tile & (tile - 1) == 0 else 0.0


def _of_view(feature, view):
    """A feature as the smallest integers that hold it, or None where it says nothing of the view."""
    try:
        array = feature.of(view)
    except (TypeError, ValueError):  # the view lacks what it speaks of
        return None
    if array is None:
        return None
    array = np.asarray(array)
    if array.dtype.kind == "f":
        array = np.nan_to_num(array, nan=-FAR, posinf=FAR, neginf=-FAR)
    if array.size < 1 or (array == array.flat[0]).all():
        return None
    if array.dtype.kind == "b":
        return array
    low, high = array.min(), array.max()
    limits = (np.iinfo(dtype) for dtype in (np.int8, np.int16, np.int32, np.int64))
    return array.astype(next(of.dtype for of in limits if of.min <= low and high <= of.max))


def _search(on_bad, on_good, costs, counts, sampled):
    """Numbers of the statements of the best conjunction.

    `counts` are the numbers of wrong and right pairs, `sampled` those of which the packed bits speak.
    """
    num_bad, num_good = counts
    of_bad, of_good = (count / max(some, 1) for count, some in zip(counts, sampled))
    everywhere = (np.packbits(np.ones(some, bool)) for some in sampled)
    nothing = (2 * num_bad / (2 * num_bad + num_good), (), *everywhere, 0.0)
    beam, best = [nothing], nothing
    for _ in range(DEPTH):
        found = []
        for _, chosen, in_bad, in_good, cost in beam:
            hit = np.bitwise_count(on_bad & in_bad).sum(1) * of_bad
            right = np.bitwise_count(on_good & in_good).sum(1) * of_good
            worth = 2 * hit / (num_bad + hit + right) - costs - cost
            for n in np.argsort(-worth, kind="stable")[:BEAM]:
                found.append((worth[n], (*chosen, int(n)), in_bad, in_good, cost))
        found.sort(key=lambda entry: -entry[0])
        beam, seen = [], set()
        for worth, chosen, in_bad, in_good, cost in found:
            n = chosen[-1]
            now_bad, now_good = on_bad[n] & in_bad, on_good[n] & in_good
            same = now_bad.tobytes(), now_good.tobytes()
            if same not in seen and len(beam) < BEAM:
                seen.add(same)
                beam.append((worth, chosen, now_bad, now_good, cost + costs[n]))
        if beam[0][0] <= best[0] + MIN_GAIN:
            break
        best = beam[0]
    return best[1]


def _some(places, rng):
    """At most SAMPLE of the places."""
    if len(places[0]) <= SAMPLE:
        return places
    taken = rng.choice(len(places[0]), SAMPLE, replace=False)
    return tuple(axis[taken] for axis in places)


def _values(feature, of_bad, array):
    """Statements about a feature worth trying: (how, value, what the number costs)."""
    if feature.truth:
        yield "==", True, 0.0
        yield "==", False, 0.0
        return
    landmarks = {
        int(array.max()) if mark == -1 and not (array == -1).any() else mark for mark in feature.landmarks
    }
    landmarks |= {int(array.min())} if not feature.ordered else set()
    values, counts = np.unique(of_bad, return_counts=True)
    if not len(values):
        return
    of_heads = array.shape[-2:] == (1, 1)  # or of sequences
    few = of_heads and int(array.max()) - int(array.min()) < FEW
    common = values[np.argsort(-counts, kind="stable")[:MOST_VALUES]]
    for value in sorted({int(v) for v in common} | landmarks):
        yield "==", value, 0.0 if value in landmarks or few else ODD_NUMBER
    for value in sorted(landmarks):
        yield "!=", value, NOT
    if not feature.ordered:
        return
    low, high = int(values[0]), int(values[-1])
    ends_inside = int(array.min()) < low and high < int(array.max())
    if feature.counts and ends_inside and 1 < len(values) == high - low + 1:
        yield "in", (low, high), RANGE
    if len(values) > MOST_VALUES:
        values = np.unique(np.quantile(values, np.linspace(0, 1, MOST_VALUES), method="nearest"))
    edges = {int(v) for v in values} | landmarks | {mark + step for mark in landmarks for step in (-1, 1)}
    for value in sorted(edges):
        yield "<=", value, _odd(feature, value, value + 1, landmarks)
        yield ">=", value, _odd(feature, value, value, landmarks)


def _odd(feature, value, edge, landmarks):
    """What a threshold costs: `edge` is the first number beyond or within it."""
    if value in landmarks:
        return NEAR_NUMBER / 2 if value == 1 else 0.0
    if not landmarks.isdisjoint((value - 1, value + 1)):
        return NEAR_NUMBER
    return ROUND_NUMBER if feature.counts and edge % ROUND == 0 else ODD_NUMBER
