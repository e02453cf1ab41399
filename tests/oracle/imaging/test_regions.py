"""Places that are planted are found, in words; noise does not change them, and nothing is found where nothing is."""

import re

import numpy as np
import pytest
from tiled_calls import tiled_call

from refattn.oracle.imaging.features import FEATURES
from refattn.oracle.imaging.region import Regions, Rule, Statement
from refattn.oracle.imaging.states_features import STATE_FEATURES
from refattn.oracle.imaging.view import View


def view_of(form="dense", size=None, **options):
    arrays, structure = tiled_call(form, size)
    return View(arrays, {**structure, **options})


def find(view, *places, **more):
    with np.errstate(all="ignore"):  # as where findings are described
        return Regions(view).find(*places, **more)


class Places:
    """Numbers of a view that broadcast to (B, H, T, S)."""

    def __init__(self, view):
        self.b = np.arange(view.shape[0]).reshape(-1, 1, 1, 1)
        self.head = np.arange(view.shape[1]).reshape(1, -1, 1, 1)
        self.row, self.key, self.position = view.row, view.key, view.position
        self.length, self.rows = view.of_sequences("length"), view.of_sequences("num_rows")
        self.view = view


def planted(name):
    """View, the wrong pairs among those that are seen, and words."""
    call, where, *words = PLANTED[name]
    view = view_of(**call)
    seen = view.exists & view.visible
    return view, np.broadcast_to(where(Places(view)), view.shape) & seen, seen, words


CAUSAL = {"causal": True}
PLANTED = {
    "everywhere": ({}, lambda p: True, "everywhere"),
    "tile of keys": ({"size": "long"}, lambda p: p.key // 32 == 3, "the tile of 32 keys is 3"),
    "tile of 48 keys": ({"size": "long"}, lambda p: p.key // 48 == 2, "the tile of 48 keys is 2"),
    "residue of keys": ({"size": "square"}, lambda p: p.key % 8 == 5, "place in its tile of 8 keys is 5"),
    "last of each tile": (
        {"size": "long"},
        lambda p: p.key % 64 == 63,
        "the key is the last of its tile of 64 keys",
    ),
    "odd tiles": (
        {"size": "long"},
        lambda p: p.key // 16 % 2 == 1,
        "tile of 16 keys is odd|in the second half of its tile of 32 keys",
    ),
    "last partial tile": (
        {"size": "long"},
        lambda p: p.key // 64 == 203 // 64,
        "tile of 64 keys is (a partial one|the last|3)|tile of 4 keys is one of the last 3",
    ),
    "last partial tiles of lengths": (
        {"form": "paged"},
        lambda p: p.key // 8 == (p.length - 1) // 8,
        "the page is the last of its sequence|tile of 8 keys is the last",
    ),
    "diagonal": (
        {"size": "square", **CAUSAL},
        lambda p: p.key == p.position,
        "the key is on the diagonal",
    ),
    "band at the diagonal": (
        {"size": "square", **CAUSAL},
        lambda p: p.key >= p.position - 5,
        "at most 5 before the (row's own position|last that the row sees)",
    ),
    "tile of the diagonal": (
        {"size": "square", **CAUSAL},
        lambda p: p.key // 16 == p.position // 16,
        "tile of 16 keys is the last that the row sees",
    ),
    "residue of rows": ({}, lambda p: p.row % 16 == 9, "row's place in its tile of 16 rows is 9"),
    "tile of rows": ({"size": "square"}, lambda p: p.row // 8 == 2, "the tile of 8 rows is 2"),
    "last rows": (
        {"size": "square"},
        lambda p: p.row // 16 == 3,
        "tile of 16 rows is (the last|3|a partial one)|tile of 4 rows is one of the last 2",
    ),
    "one row": ({"size": "square"}, lambda p: p.row == 0, "the row is the first"),
    "one head": ({"size": "square"}, lambda p: p.head == 2, "the query head is 2"),
    "one of the group": ({}, lambda p: p.head % 2 == 1, "place in its group is 1|query head is odd"),
    "key/value head": (
        {},
        lambda p: p.head // 2 == 1,
        "the key/value head is 1|the query head is at least 2",
    ),
    "one sequence": ({"form": "packed"}, lambda p: p.b == 1, "the sequence is (1|the longest)"),
    "the longest sequence": (
        {"form": "packed", "size": "with empty ones"},
        lambda p: p.length == 53,
        "the sequence is (the longest|1|not 3)|length of the sequence is 53",
    ),
    "one physical page": (
        {"form": "paged"},
        lambda p: p.view.pages == p.view.pages[1, 0, 0, 0],
        r"the physical page is \d+|the page is|of the last 53",
    ),
    "slot of its page": (
        {"form": "paged"},
        lambda p: p.key % 8 == 6,
        "the slot in its page is (6|at least 6 and the slot in its page is not 7)",
    ),
    "tile and head": (
        {"size": "long"},
        lambda p: (p.key // 32 == 1) & (p.head == 1),
        "the tile of 32 keys is (1|the second that the row sees)",
        "the query head is 1|place in its group is 1|query head is odd",
    ),
    "tile and rows": (
        {"size": "square"},
        lambda p: (p.key // 16 == 1) & (p.row // 16 == 2),
        "the tile of 16 keys is (1|the second that the row sees)",
        "the tile of 16 rows is 2",
    ),
    "large scores": ({}, lambda p: p.view.score >= 1.0, "the score is at least 1"),
    "largest score": (
        {"size": "long"},
        lambda p: p.view.score == p.view.top[..., None],
        "the key has the row's largest score",
    ),
    "rises": (
        {"size": "long"},
        lambda p: rising(p.view, 64),
        "the largest score of the row rises in the tile of 64 keys",
    ),
}


def rising(view, tile):
    tops = np.array([view.score[..., n : n + tile].max(-1) for n in range(0, view.num_keys, tile)])
    up = np.array([n > 0 and tops[n] > tops[:n].max(0) for n in range(len(tops)) if n > 0])
    up = np.concatenate([np.zeros((1, *view.shape[:3]), bool), up])
    return np.moveaxis(up, 0, -1)[..., view.key[0, 0, 0] // tile]


def said(rule, words):
    return [word for word in words if not re.search(word, str(rule))]


@pytest.mark.parametrize("name", PLANTED)
def test_planted_places_are_found(name):
    view, wrong, seen, words = planted(name)
    rule = find(view, wrong, seen)
    assert not said(rule, words), str(rule)
    assert rule.hit == rule.wrong == wrong.sum() and rule.right_inside == 0, (
        str(rule),
        rule.hit,
        rule.wrong,
    )
    assert np.array_equal(np.broadcast_to(rule.inside, view.shape) & seen, wrong)


@pytest.mark.sample(4)
@pytest.mark.parametrize("share", [0.01, 0.03])
@pytest.mark.parametrize("name", [name for name in PLANTED if name != "everywhere"])
def test_noise_does_not_change_them(name, share):
    """Labels of so many pairs of the place, and as many others, are wrong."""
    view, wrong, seen, words = planted(name)
    rng = np.random.default_rng(0)
    noise = np.zeros(view.shape, bool)
    for pairs in (wrong, seen & ~wrong):
        places = np.flatnonzero(pairs)
        noise.flat[rng.choice(places, int(share * wrong.sum()), replace=False)] = True
    rule = find(view, wrong ^ noise, seen)
    assert not said(rule, words), str(rule)
    assert rule.fit > 1 - 2 * share and rule.hit > (1 - 2 * share) * rule.wrong


NOTHING = {"dense": "square", "packed": "three", "paged": "ends inside pages", "latent": "keys > rank"}


@pytest.mark.parametrize("share", [0.05, 0.5])
@pytest.mark.parametrize("form", NOTHING)
def test_nothing_is_found_where_nothing_separates(form, share):
    view = view_of(form, NOTHING[form])
    seen = view.exists & view.visible
    for seed in range(2):
        wrong = seen & (np.random.default_rng(seed).random(view.shape) < share)
        rule = find(view, wrong, seen)
        assert not rule.statements or rule.fit < 0.2 + 2 * share, str(rule)
    rule = find(view, seen, seen)
    assert not rule.statements and str(rule) == "everywhere" and rule.fit == 1.0


def test_no_wrong_pair_gives_an_empty_rule():
    view = view_of()
    rule = find(view, np.zeros(view.shape, bool), view.exists)
    assert (rule.wrong, rule.hit, rule.statements) == (0, 0, ())


def test_rows_are_told_by_features_of_rows_alone():
    view = view_of(size="square", causal=True)
    rows = np.broadcast_to(view.row_exists, view.shape[:3])
    wrong = rows & (view.row[..., 0] % 16 == 15)
    rule = find(view, wrong[..., None], rows[..., None], row_level=True)
    assert str(rule) == "the row is the last of its tile of 16 rows"
    assert rule.inside.shape == (*view.shape[:3], 1) and rule.wrong == wrong.sum()


def test_the_same_is_found_each_time():
    view = view_of(size="long")
    seen = view.exists & view.visible
    wrong = seen & (np.random.default_rng(1).random(view.shape) < np.where(view.key // 32 == 2, 0.8, 0.05))
    assert len({str(find(view, wrong, seen)) for _ in range(3)}) == 1


FORMS = {"<=": np.less_equal, ">=": np.greater_equal, "==": np.equal, "!=": np.not_equal}
PLAIN = [
    ("dense", {"causal": True}, lambda p: p.key > p.position, "the key lies behind the causal limit"),
    ("dense", {}, lambda p: (p.row >= 3) & (p.row <= 6) & (p.head == 1), "the row is 3 to 6"),
    (
        "dense",
        {"causal": True},
        lambda p: p.key - p.position >= 3,
        r"the key is at least \d after the row's own",
    ),
    ("dense", {}, lambda p: p.view.score < p.view.top[..., None] - 5, "at most 0.67 % of the row's largest"),
]


@pytest.mark.parametrize(("form", "options", "where", "words"), PLAIN)
def test_places_are_told_in_plain_words(form, options, where, words):
    view = view_of(form, "square" if options else None, **options)
    every = np.broadcast_to(view.exists, view.shape)
    rule = find(view, np.broadcast_to(where(Places(view)), view.shape) & every, every)
    assert rule.hit == rule.wrong and not said(rule, [words]), str(rule)


@pytest.mark.parametrize("value", [-2, -1, 0, 1, 2, 5, 12])
@pytest.mark.parametrize("how", FORMS)
def test_no_statement_speaks_of_negative_numbers_or_of_not_where(how, value):
    for feature in (*FEATURES, *STATE_FEATURES):
        if feature.truth or (value < 0 and not re.search("minus|from |behind", feature.words)):
            continue
        words = feature.says(how, value)
        assert "not where" not in words and (value >= 0 or str(value) not in words), words


def test_two_bounds_of_one_number_are_a_range():
    row = next(feature for feature in FEATURES if feature.words == "the row")
    head = next(feature for feature in FEATURES if feature.words == "the query head")
    bounds = Statement(row, ">=", 3, 0), Statement(head, "==", 1, 0), Statement(row, "<=", 6, 0)
    assert str(Rule(bounds, np.True_, 1, 1, 0)) == "the row is 3 to 6 and the query head is 1"
