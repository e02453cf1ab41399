"""Where: a short rule that holds at the wrong pairs and at no right one.

A beam search over conjunctions of statements "feature == value", "!=", "<=", ">=". A rule is worth its F1 score
(how well it separates wrong pairs from right ones) less the cost of its words.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refattn.oracle.xray.features import FEATURES, Feature

SAMPLE = 2**13  # wrong pairs, and as many right ones, on which statements are compared
BEAM, DEPTH = 10, 4
MOST_VALUES = 24  # thresholds of a feature that are tried
WORD = 0.02  # of a statement
ODD_NUMBER = 0.03  # of a number that is no landmark
MIN_GAIN = 0.002


@dataclass(frozen=True, eq=False)
class Statement:
    feature: Feature
    how: str
    value: int
    cost: float

    def holds(self, array):
        compare = {"==": np.equal, "!=": np.not_equal, "<=": np.less_equal, ">=": np.greater_equal}[self.how]
        return compare(array, self.value)

    def __str__(self):
        return self.feature.says(self.how, self.value)


@dataclass(frozen=True, eq=False)
class Rule:
    """Statements that hold together, and how they fit: of `wrong` pairs, `hit` lie in it and so do `right_inside` right ones."""

    statements: tuple[Statement, ...]
    inside: np.ndarray  # bool, (B, H, T, S)
    wrong: int
    hit: int
    right_inside: int

    @property
    def share(self):
        return self.hit / max(self.wrong, 1)

    @property
    def fit(self):
        return 2 * self.hit / max(self.wrong + self.hit + self.right_inside, 1)

    @property
    def cost(self):
        return sum(statement.cost for statement in self.statements)

    def __str__(self):
        return " and ".join(map(str, self.statements)) or "everywhere"


class Regions:
    """Regions of one view; its features are computed once."""

    def __init__(self, view, features=FEATURES):
        self.view, self._known = view, {}
        self.features = features

    def array(self, feature):
        """The feature of every pair, or None where it has no meaning or is the same everywhere."""
        if feature not in self._known:
            try:
                array = feature.of(self.view)
            except (TypeError, ValueError):
                array = None
            if array is not None:
                array = np.asarray(array)
                if array.dtype.kind == "f":
                    array = np.nan_to_num(array, nan=-1e9, posinf=1e9, neginf=-1e9)
                array = None if array.size < 1 or (array == array.flat[0]).all() else array
            self._known[feature] = array
        return self._known[feature]

    def find(self, wrong, universe, row_level=False) -> Rule:
        """The best rule for the wrong pairs among those of the universe; both (B, H, T, S).

        `row_level`: only the features of rows, sequences and heads.
        """
        shape = np.broadcast_shapes(wrong.shape, universe.shape)
        wrong, universe = np.broadcast_to(wrong, shape), np.broadcast_to(universe, shape)
        bad, good = np.nonzero(wrong & universe), np.nonzero(universe & ~wrong)
        num_bad, num_good = len(bad[0]), len(good[0])
        rng = np.random.default_rng(0)
        bad, good = (_some(places, rng) for places in (bad, good))
        scale = num_good / max(len(good[0]), 1), num_bad / max(len(bad[0]), 1)
        statements, on_bad, on_good = self._statements(bad, good, row_level)
        if not statements or not num_good:
            return self._rule((), wrong, universe)
        packed_bad, packed_good = np.packbits(on_bad, axis=1), np.packbits(on_good, axis=1)
        costs = np.array([statement.cost for statement in statements])
        ones = lambda count: np.packbits(np.ones(count, bool))
        nothing = (
            2 * num_bad / (num_bad + num_bad + num_good),
            (),
            ones(on_bad.shape[1]),
            ones(on_good.shape[1]),
            0.0,
        )
        beam, best = [nothing], nothing
        for _ in range(DEPTH):
            found = []
            for _, chosen, in_bad, in_good, cost in beam:
                hit = np.bitwise_count(packed_bad & in_bad).sum(1) * scale[1]
                right = np.bitwise_count(packed_good & in_good).sum(1) * scale[0]
                worth = 2 * hit / (num_bad + hit + right) - costs - cost
                for n in np.argsort(-worth, kind="stable")[:BEAM]:
                    found.append((worth[n], (*chosen, int(n)), in_bad, in_good, cost))
            found.sort(key=lambda entry: -entry[0])
            beam, seen = [], set()
            for worth, chosen, in_bad, in_good, cost in found:
                n, key = chosen[-1], None
                now_bad, now_good = packed_bad[n] & in_bad, packed_good[n] & in_good
                key = now_bad.tobytes(), now_good.tobytes()
                if key in seen:
                    continue
                seen.add(key)
                beam.append((worth, chosen, now_bad, now_good, cost + costs[n]))
                if len(beam) == BEAM:
                    break
            if not beam or beam[0][0] <= best[0] + MIN_GAIN:
                break
            best = beam[0]
        return self._rule(tuple(statements[n] for n in best[1]), wrong, universe)

    def _statements(self, bad, good, row_level):
        statements, on_bad, on_good = [], [], []
        for feature in self.features:
            array = self.array(feature)
            if array is None or (row_level and array.shape[-1] > 1):
                continue
            array = np.broadcast_to(array, np.broadcast_shapes(array.shape, self.view.shape))
            of_bad, of_good = array[bad], array[good]
            for how, value, odd in _values(feature, of_bad, of_good, array):
                statement = Statement(feature, how, value, WORD + feature.cost + ODD_NUMBER * odd)
                a, b = statement.holds(of_bad), statement.holds(of_good)
                if a.any() and not b.all():
                    statements.append(statement)
                    on_bad.append(a)
                    on_good.append(b)
        if not statements:
            return [], np.zeros((0, 0), bool), np.zeros((0, 0), bool)
        return statements, np.array(on_bad), np.array(on_good)

    def _rule(self, statements, wrong, universe):
        inside = universe
        for statement in statements:
            inside = inside & statement.holds(self.array(statement.feature))
        return Rule(
            statements,
            inside,
            int((wrong & universe).sum()),
            int((inside & wrong).sum()),
            int((inside & ~wrong).sum()),
        )


def _some(places, rng):
    """At most SAMPLE of the places."""
    if len(places[0]) <= SAMPLE:
        return places
    taken = rng.choice(len(places[0]), SAMPLE, replace=False)
    return tuple(axis[taken] for axis in places)


def _values(feature, of_bad, of_good, array):
    """Statements about a feature worth trying: (how, value, whether the value is an odd number)."""
    if feature.truth:
        yield "==", True, False
        yield "==", False, False
        return
    landmarks = {
        int(array.max()) if mark == -1 and not (array == -1).any() else mark for mark in feature.landmarks
    }
    landmarks |= {int(array.min())} if not feature.ordered else set()
    values, counts = np.unique(of_bad, return_counts=True)
    if not len(values):
        return
    common = values[np.argsort(-counts, kind="stable")[:MOST_VALUES]]
    for value in sorted({int(v) for v in common} | landmarks):
        yield "==", value, value not in landmarks
    for value in sorted(landmarks):
        yield "!=", value, False
    if not feature.ordered:
        return
    if len(values) > MOST_VALUES:
        values = np.unique(np.quantile(values, np.linspace(0, 1, MOST_VALUES), method="nearest"))
    edges = {int(v) for v in values} | landmarks | {mark + step for mark in landmarks for step in (-1, 1)}
    for value in sorted(edges):
        yield (
            "<=",
            value,
            value not in landmarks and value - 1 not in landmarks and value + 1 not in landmarks,
        )
        yield (
            ">=",
            value,
            value not in landmarks and value - 1 not in landmarks and value + 1 not in landmarks,
        )
