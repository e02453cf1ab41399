"""What can be said of the place of a pair of a row and a key: one row of a table for each `Feature`.

A feature gives a whole number, or a truth value, for every pair (B, H, T, S) of a `View`, and the words for
it. Its landmarks are the numbers that a kernel treats apart (the first, the last, the edges of a tile): a
rule that speaks of them is more probable than one of any other number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from refattn.exact.visibility import row_bounds
from refattn.oracle.imaging.place_words import (
    apart,
    from_the_first,
    from_the_last,
    in_tile,
    negated,
    rounded_down,
    seen_keys,
    share_of_largest,
)
from refattn.oracle.imaging.rounding import tile_maximum
from refattn.oracle.imaging.view import last_key

KEY_TILES = (4, 8, 16, 32, 48, 64, 80, 96, 128, 192, 256, 512)
ROW_TILES = (2, 4, 8, 16, 32, 48, 64, 96, 128)
SPLITS = (2, 3, 4, 5, 6, 7, 8)
KEYS_OF_BOTH = (16, 32, 64, 128)  # tiles of keys that are looked at beside tiles of rows
LEAST_ROWS_OF_BOTH = 8
FAR = 60  # of scores: exp(-60) is nothing beside 1
LARGEST = 1e6  # size of a score, beyond which only that it is large is told


@dataclass(frozen=True, eq=False)
class Feature:
    """One thing that can be said of a pair.

    Attributes
    ----------
    words : str
        Of the number: "the query head". Of a truth value: what is so where it is True.
    of : callable (view) -> ndarray that broadcasts to (B, H, T, S), or None where it has no meaning
    named : mapping of int to str
        Words for the whole statement at some numbers: {0: "the row is the first"}.
    otherwise : str
        Of a truth value: what is so where it is False.
    cost : float
        How much less probable a rule is that speaks of it: of the score of the rule, which is at most 1.
    ordered : bool
        Whether "at most" and "at least" mean something.
    landmarks : tuple of int
        Numbers that a kernel treats apart; -1 is the largest one where -1 itself does not occur.
    tile : int or None
        The tile size it speaks of.
    counts : bool
        It is the number of a row, key or position, of which multiples of a tile are no odd ones.
    said : callable (how, value) -> str or None, or None
        Other words for a statement than "the number is at most 3"; `place_words` has them.
    """

    words: str
    of: Callable
    named: dict = field(default_factory=dict)
    otherwise: str = ""
    cost: float = 0.0
    ordered: bool = True
    landmarks: tuple = (0,)
    tile: int | None = None
    counts: bool = False
    said: Callable | None = None

    @property
    def truth(self):
        return bool(self.otherwise)

    def says(self, how, value):
        """The statement that the number is (==), is not (!=), is at most (<=) or at least (>=) a value, or
        that it is one of a range ("in"), whose ends are the value.
        """
        if self.truth:
            return self.words if bool(value) == (how == "==") else self.otherwise
        if how == "in":
            low, high = value
            if self.said is None:
                return f"{self.words} is {low} to {high}"
            return f"{self.says('>=', low)} and {self.says('<=', high)}"
        if value in self.named and how in ("==", "!="):
            return self.named[value] if how == "==" else negated(self.named[value])
        if self.said is not None and (words := self.said(how, value)):
            return words
        relation = {"==": "is", "!=": "is not", "<=": "is at most", ">=": "is at least"}[how]
        return f"{self.words} {relation} {value}"


# rows of the tables


def _truth(words, otherwise, of, cost=0.0):
    """Words where it is True, words where it is False."""
    return Feature(words, of, otherwise=otherwise, cost=cost)


def parity(words, of, cost=0.01):
    """Whether a number is even or odd."""
    named = {0: f"{words} is even", 1: f"{words} is odd"}
    return Feature(words, lambda view: of(view) % 2, named, cost=cost, ordered=False)


def _where(there, *features) -> Iterator[Feature]:
    """The features, with a meaning only in views where `there(view)` is true."""
    for feature in features:
        yield replace(feature, of=lambda view, of=feature.of: of(view) if there(view) else None)


# parts of a view that several features use


def _head(view):
    return view.heads.reshape(1, -1, 1, 1)


def _sequence(view):
    return np.arange(len(view.sequences)).reshape(-1, 1, 1, 1)


def _limits(view):
    """What hides keys before and behind those of a row by position, each in words; "" where nothing does."""
    rules = view.rules(0)
    sides = (
        "window" if rules.left is not None else "",
        {None: "", 0: "causal limit"}.get(rules.right, "window"),
    )
    chunk = "chunk" if rules.chunk is not None else ""
    return [" or ".join(filter(None, (side, chunk))) for side in sides]


def _length(view):
    return view.of_sequences("length")


def _rows(view):
    return view.of_sequences("num_rows")


def _most_rows(view):
    return max((s.num_rows for s in view.sequences), default=0)


def _rounded_down(score, known):
    return np.floor(np.clip(np.where(known, score, 0), -LARGEST, LARGEST))


def _first_visible(view):
    """First key that is visible to each row, (B, H, T, 1); 0 where none is."""
    return view.visible.argmax(-1)[..., None]


def first_seen(view):
    """First key that each row sees by position and length, (B, 1, T, 1)."""
    return _seen(view)[0]


def last_seen(view):
    """Last key that each row sees by position and length; before the first one where it sees none."""
    return _seen(view)[1] - 1


def _seen(view):
    start = np.zeros(view.position.shape, int)
    stop = np.zeros(view.position.shape, int)
    for n, s in enumerate(view.sequences):
        position = np.asarray(view.position[n, 0, :, 0])
        start[n, 0, :, 0], stop[n, 0, :, 0] = row_bounds(view.rules(n), position, s.length)
    return start, stop


def of_row_tile(view, array, rows, which):
    """A number (B, 1, T, 1) of each row replaced by that of the first or last row of its tile."""
    taken = array.copy()
    for n, s in enumerate(view.sequences):
        tile = s.rows // rows
        at = np.searchsorted(tile, tile) if which == "first" else np.searchsorted(tile, tile, "right") - 1
        taken[n, 0, : len(s.rows), 0] = array[n, 0, at, 0]
    return taken


def _running_top(view, tile):
    """Largest score of the visible keys before the tile of a key, and within the tile, (B, H, T, S)."""
    inside = tile_maximum(view, tile)  # (B, H, T, tiles)
    before = np.maximum.accumulate(inside, axis=-1)
    before = np.concatenate([np.full_like(inside[..., :1], -np.inf), before[..., :-1]], axis=-1)
    of_key = view.key[0, 0, 0] // tile
    return before[..., of_key], inside[..., of_key]


def rises(view, tile):
    """Whether the largest score of a row rises in the tile of the key, not counting the first one."""
    before, inside = _running_top(view, tile)
    return (inside > before) & ~np.isneginf(before)


def tiles_hidden_before(view, tile):
    """Whether a row visits a tile all of whose keys are hidden, before this one or at it."""
    _, inside = _running_top(view, tile)
    return np.logical_or.accumulate(np.isneginf(inside), axis=-1)


def _overshadowed(view, size):
    """Rows beside whose largest score their own is nothing, within a tile of rows, (B, H, T, 1)."""
    far = np.zeros((*view.top.shape, 1), bool)
    top = np.where(
        np.isfinite(view.top), view.top, np.nan_to_num(view.top, nan=0.0, posinf=1e300, neginf=-1e300)
    )
    for n, s in enumerate(view.sequences):
        tile = s.rows // size
        for t in np.unique(tile):
            here = np.flatnonzero(tile == t)
            of_tile = top[n][:, here]
            far[n, :, here, 0] = (of_tile.max(-1, keepdims=True) - of_tile > FAR).T
    return far


def _straddling(view, size):
    """Rows of packed sequences whose tile begins in an earlier sequence, (B, 1, T, 1)."""
    starts = np.cumsum([0, *(s.num_rows for s in view.sequences)])[:-1].reshape(-1, 1, 1, 1)
    if len(view.sequences) < 2 or view.checked.form.name != "packed":
        return None
    return (view.row + starts) // size * size < starts


# the tables


def _features() -> Iterator[Feature]:
    yield from _of_heads()
    yield from _of_what_hides()
    yield from _of_rows_and_keys()
    yield from _of_lengths()
    yield from _of_scores()
    yield from _of_pages()
    yield from _of_rows_that_see_little()
    for count in SPLITS:
        yield from _where(lambda view, count=count: view.num_keys >= 8 * count, *_split(count))
    for size in KEY_TILES:
        tables = (_key_tile, _lengths_in_tiles, _scores_in_tiles)
        for table in tables:
            some = lambda view, size=size: view.num_keys > size
            yield from (replace(feature, tile=size) for feature in _where(some, *table(size)))
    for size in ROW_TILES:
        yield from (replace(feature, tile=size) for feature in _row_tile(size))


def _of_heads():
    first = {0: "the sequence is the first"}
    yield Feature("the sequence", _sequence, first, landmarks=(0, -1))
    yield Feature("the query head", _head, {0: "the query head is the first"}, landmarks=(0, -1))
    yield from _where(
        lambda view: view.group_size > 1,
        Feature(
            "the key/value head",
            lambda view: _head(view) // view.group_size,
            {0: "the key/value head is the first"},
            landmarks=(0, -1),
        ),
    )
    yield from _where(
        lambda view: 1 < view.group_size < view.num_heads,
        Feature(
            "the query head's place in its group",
            lambda view: _head(view) % view.group_size,
            {0: "the query head is the first of its group"},
            landmarks=(0, -1),
        ),
    )
    yield parity("the number of the query head", _head)
    yield parity("the number of the sequence", _sequence)


def _of_rows_and_keys():
    yield Feature(
        "the row", lambda view: view.row, {0: "the row is the first"}, landmarks=(0, 1), counts=True
    )
    last_row = {0: "the row is the last of its sequence"}
    yield Feature(
        "the number of rows behind this one",
        lambda view: _rows(view) - 1 - view.row,
        last_row,
        said=from_the_last("the row", "of its sequence"),
    )
    yield Feature(
        "the key", lambda view: view.key, {0: "the key is the first"}, landmarks=(0, 1), counts=True
    )
    yield Feature(
        "the number of keys of the sequence behind this one",
        lambda view: _length(view) - 1 - view.key,
        {0: "the key is the last of its sequence", -1: "the key is the first one past the length"},
        landmarks=(0, -1, 1),
        said=from_the_last("the key", "of its sequence"),
    )
    yield Feature(
        "key minus the row's position",
        lambda view: view.key - view.position,
        {
            0: "the key is on the diagonal (at the row's own position)",
            1: "the key is the one after the row's own position",
            -1: "the key is the one before the row's own position",
        },
        landmarks=(0, 1, -1),
        said=apart("the key", "the row's own position"),
    )
    yield Feature(
        "key minus row",
        lambda view: view.key - view.row,
        {0: "the key has the row's own number"},
        landmarks=(0, 1),
        cost=0.02,
        said=apart("the number of the key", "that of the row", "above", "below"),
    )
    yield Feature(
        "the number of keys from the first one the row sees to this one",
        lambda view: view.key - first_seen(view),
        {
            0: "the key is the first that the row sees",
            -1: "the key is the one before the first that the row sees",
        },
        landmarks=(0, -1),
        said=apart("the key", "the first that the row sees"),
    )
    yield Feature(
        "the number of keys from this one to the last one the row sees",
        lambda view: last_seen(view) - view.key,
        {
            0: "the key is the last that the row sees",
            -1: "the key is the one after the last that the row sees",
        },
        landmarks=(0, -1),
        said=apart("the key", "the last that the row sees", "before", "after"),
    )
    yield from _where(
        lambda view: view.drawn_holes is not None,
        Feature(
            "the key's block minus the row's own",
            lambda view: view.key // view.checked.block_size - view.row // view.checked.block_size,
            {0: "the key is in the row's own block"},
            said=apart("the key's block", "the row's own"),
        ),
        Feature(
            "the number of blocks behind that of the row",
            lambda view: (_rows(view) - 1 - view.row) // view.checked.block_size,
            {0: "the row's block is the last"},
            said=from_the_last("the row's block", "of its sequence"),
        ),
    )


def _of_what_hides():
    yield _truth(
        "the key is past the length of its sequence",
        "the key is within the length of its sequence",
        lambda view: view.key >= _length(view),
    )
    for limit in ("window", "chunk", "window or chunk"):
        yield from _where(
            lambda view, limit=limit: _limits(view)[0] == limit,
            _truth(
                f"the key lies before the {limit}",
                f"the key does not lie before the {limit}",
                lambda view: (view.key < first_seen(view)) & (view.key < _length(view)),
            ),
        )
    for limit in ("causal limit", "window", "chunk", "causal limit or chunk", "window or chunk"):
        yield from _where(
            lambda view, limit=limit: _limits(view)[1] == limit,
            _truth(
                f"the key lies behind the {limit}",
                f"the key does not lie behind the {limit}",
                lambda view: (view.key > last_seen(view)) & (view.key < _length(view)),
            ),
        )
    yield _truth(
        "the mask hides the pair", "the mask does not hide the pair", lambda view: view.hidden_by("mask")
    )
    yield _truth(
        "a bias of -inf hides the pair",
        "no bias of -inf hides the pair",
        lambda view: view.hidden_by("bias"),
    )
    yield _truth("dropout drops the weight", "dropout keeps the weight", lambda view: view.dropped)


def _of_lengths():
    yield from _where(
        lambda view: len(view.sequences) > 1,
        _truth(
            "the sequence is the longest",
            "the sequence is not the longest",
            lambda view: _length(view) == _length(view).max(),
        ),
    )
    yield Feature("the length of the sequence", _length, cost=0.02)
    yield Feature(
        "the number of keys the row sees",
        lambda view: view.visible.sum(-1, keepdims=True),
        {0: "the row sees no key", 1: "the row sees one key only"},
        landmarks=(0, 1),
        cost=0.02,
        said=seen_keys,
    )
    yield Feature(
        "the position of the row", lambda view: view.position, landmarks=(0, -1), cost=0.005, counts=True
    )


def _of_scores():
    yield _truth("the score is negative", "the score is not negative", lambda view: view.score < 0, 0.02)
    yield _truth(
        "the row's largest score is negative",
        "the row's largest score is not negative",
        lambda view: view.top[..., None] < 0,
        0.01,
    )
    yield Feature(
        "the score",
        lambda view: _rounded_down(view.score, view.exists),
        cost=0.03,
        said=rounded_down("the score"),
    )
    yield Feature(
        "the score below the row's largest one",
        lambda view: np.maximum(_rounded_down(view.top[..., None] - view.score, view.visible), 0),
        cost=0.03,
        said=share_of_largest,
    )
    yield Feature(
        "the row's largest score",
        lambda view: _rounded_down(view.top, np.isfinite(view.top))[..., None],
        cost=0.03,
        said=rounded_down("the row's largest score"),
    )
    yield _truth(
        "the key has the row's largest score",
        "the key does not have the row's largest score",
        lambda view: view.visible & (view.score == view.top[..., None]),
        0.01,
    )


def _of_pages():
    place = lambda view: view.key // view.page_size
    yield from _where(
        lambda view: view.pages is not None,
        Feature("the physical page", lambda view: view.pages, {0: "the physical page is page 0"}),
        parity("the number of the physical page", lambda view: view.pages),
        Feature(
            "the place in the block table",
            place,
            {0: "the page is the first of its sequence"},
            landmarks=(0, 1),
            said=from_the_first("the page", "of its sequence"),
        ),
        Feature(
            "the number of pages of the sequence behind this one",
            lambda view: (_length(view) - 1) // view.page_size - place(view),
            {0: "the page is the last of its sequence"},
            said=from_the_last("the page", "of its sequence"),
        ),
        Feature(
            "the slot in its page",
            lambda view: view.key % view.page_size,
            {0: "the slot is the first of its page"},
            landmarks=(0, -1),
        ),
    )


def _of_rows_that_see_little():
    yield _truth(
        "the row sees no key", "the row sees a key", lambda view: ~view.visible.any(-1, keepdims=True)
    )
    yield _truth(
        "the row has hidden keys before the first that it sees",
        "the row sees the first key",
        lambda view: _first_visible(view) > 0,
        0.01,
    )


def _split(count):
    """Keys cut into so many splits of the same length, the last one shorter."""
    size = lambda view: np.maximum(-(-_length(view) // count), 1)
    of = f"of {count} splits"
    yield Feature(
        f"the number of the split, {of},",
        lambda view: view.key // size(view),
        {0: f"the split is the first {of}", count - 1: f"the split is the last {of}"},
        landmarks=(0, count - 1),
        cost=0.02,
        said=from_the_first("the split", of),
    )
    yield Feature(
        f"the key's place in its split, {of},",
        lambda view: view.key % size(view),
        {0: f"the key is the first of its split, {of}"},
        cost=0.025,
        said=from_the_first("the key", f"of its split, {of}", plain=True),
    )
    yield _truth(
        f"the key is the last of its split, {of}",
        f"the key is not the last of its split, {of}",
        lambda view: view.key % size(view) == size(view) - 1,
        0.02,
    )


def _place_and_tile(what, size, number):
    """The place of a key or row in its tile, and the number of the tile."""
    of = f"of {size} {what}s"
    tile = lambda view: number(view) // size
    named = {
        0: f"the {what} is the first of its tile {of}",
        size - 1: f"the {what} is the last of its tile {of}",
    }
    yield Feature(
        f"the {what}'s place in its tile {of}",
        lambda view: number(view) % size,
        named,
        landmarks=(0, size - 1, size // 2),
        cost=0.01,
        said=in_tile(f"the {what}", f"of its tile {of}", size),
    )
    yield Feature(
        f"the tile {of}",
        tile,
        {0: f"the tile {of} is the first"},
        cost=0.005,
        said=from_the_first(f"the tile {of}", "of its sequence", plain=True),
    )
    yield parity(f"the number of the tile {of}", tile, 0.015)


def _key_tile(size):
    """The place of a key in its tile, and of the tile among others."""
    of = f"of {size} keys"
    tile = lambda view: view.key // size
    yield from _place_and_tile("key", size, lambda view: view.key)
    yield Feature(
        f"the number of tiles {of} from this one to the last of the sequence",
        lambda view: (_length(view) - 1) // size - tile(view),
        {
            0: f"the tile {of} is the last of its sequence",
            1: f"the tile {of} is the last but one of its sequence",
        },
        landmarks=(0, 1),
        cost=0.005,
        said=from_the_last(f"the tile {of}", "of its sequence"),
    )
    yield Feature(
        f"the number of tiles {of} from the first one the row sees to this one",
        lambda view: tile(view) - first_seen(view) // size,
        {0: f"the tile {of} is the first that the row sees"},
        landmarks=(0, 1),
        cost=0.01,
        said=from_the_first(f"the tile {of}", "that the row sees"),
    )
    yield Feature(
        f"the number of tiles {of} from this one to the last one the row sees",
        lambda view: last_seen(view) // size - tile(view),
        {
            0: f"the tile {of} is the last that the row sees (that of the diagonal where causal)",
            1: f"the tile {of} is the last but one that the row sees",
        },
        landmarks=(0, 1),
        cost=0.01,
        said=from_the_last(f"the tile {of}", "that the row sees"),
    )


def _lengths_in_tiles(size):
    of = f"of {size} keys"
    yield _truth(
        f"the tile {of} is a partial one: the length ends inside it",
        f"the tile {of} is a whole one",
        lambda view: (view.key // size == _length(view) // size) & (_length(view) % size > 0),
        0.005,
    )
    yield _truth(
        f"the length is a multiple of {size}",
        f"the length is not a multiple of {size}",
        lambda view: _length(view) % size == 0,
        0.005,
    )
    yield Feature(f"the length modulo {size}", lambda view: _length(view) % size, cost=0.03)


def _scores_in_tiles(size):
    """Tiles in which the running maximum rises, and tiles that are wholly hidden."""
    of = f"of {size} keys"
    last_visible = lambda view: last_key(view.visible)[..., None]
    yield _truth(
        f"the largest score of the row rises in the tile {of}",
        f"the largest score of the row does not rise in the tile {of}",
        lambda view: rises(view, size),
        0.02,
    )
    yield _truth(
        f"a tile {of} up to this one is wholly hidden from the row",
        f"no tile {of} up to this one is wholly hidden from the row",
        lambda view: tiles_hidden_before(view, size),
        0.02,
    )
    yield _truth(
        f"the first tile {of} is wholly hidden from the row",
        f"the first tile {of} is not wholly hidden from the row",
        lambda view: _first_visible(view) >= size,
        0.015,
    )
    yield from _where(
        lambda view: view.drawn_holes is None,  # else the form hides keys, and no mask
        _truth(
            f"the mask or bias hides all of the first tile {of} that the row would see",
            f"the mask or bias does not hide all of the first tile {of} that the row would see",
            lambda view: _first_visible(view) // size > first_seen(view) // size,
            0.005,
        ),
    )
    yield _truth(
        f"the last tile {of} of the sequence is wholly hidden from the row",
        f"the last tile {of} of the sequence is not wholly hidden from the row",
        lambda view: (_length(view) - 1) // size > last_visible(view) // size,
        0.02,
    )
    yield Feature(
        f"the number of tiles {of} that the sequence has",
        lambda view: -(-_length(view) // size),
        landmarks=(1, 2),
        cost=0.015,
    )


def _row_tile(size):
    some = lambda view: _most_rows(view) > size
    yield from _where(some, *_place_in_row_tile(size))
    of = f"of {size} rows, counted over the rows of all sequences,"
    yield _truth(
        f"the tile {of} begins in the sequence before",
        f"the tile {of} begins in the row's own sequence",
        lambda view: _straddling(view, size),
        0.005,
    )
    of = f"of the tile of {size} rows has scores more than {FAR} above this row's"
    yield from _where(
        some, _truth(f"another row {of}", f"no row {of}", lambda view: _overshadowed(view, size), 0.015)
    )
    for keys in KEYS_OF_BOTH if size >= LEAST_ROWS_OF_BOTH else ():
        both = lambda view, keys=keys: some(view) and view.num_keys > keys
        for which in ("first", "last"):
            yield from _where(both, *_both_tiles(size, keys, which))
    for which in ("first", "last"):
        row = f"the position of the {which} row of"
        yield from _where(
            some,
            Feature(
                f"key minus {row} its tile of {size} rows",
                lambda view, which=which: view.key - of_row_tile(view, view.position, size, which),
                {0: f"the key is at {row} the tile of {size} rows"},
                landmarks=(0, 1, -1),
                cost=0.02,
                said=apart("the key", f"{row} the tile of {size} rows"),
            ),
        )


def _place_in_row_tile(size):
    of = f"of {size} rows"
    tile = lambda view: view.row // size
    yield from _place_and_tile("row", size, lambda view: view.row)
    yield Feature(
        f"the number of tiles {of} behind this one",
        lambda view: (_rows(view) - 1) // size - tile(view),
        {0: f"the tile {of} is the last of its sequence"},
        cost=0.005,
        said=from_the_last(f"the tile {of}", "of its sequence"),
    )
    yield _truth(
        f"the tile {of} is a partial one: the rows end inside it",
        f"the tile {of} is a whole one",
        lambda view: (tile(view) == _rows(view) // size) & (_rows(view) % size > 0),
        0.005,
    )


def _both_tiles(rows, keys, which):
    """Tiles of keys that the first or last row of a tile of rows sees."""
    of, by = f"of {keys} keys", f"by the {which} row of the tile of {rows} rows"
    yield Feature(
        f"the number of tiles {of} from the first one seen {by} to this one",
        lambda view: view.key // keys - of_row_tile(view, first_seen(view), rows, which) // keys,
        {
            0: f"the tile {of} is the first seen {by}",
            -1: f"the tile {of} is the one before the first seen {by}",
        },
        landmarks=(0, -1),
        cost=0.025,
        said=from_the_first(f"the tile {of}", f"seen {by}"),
    )
    yield Feature(
        f"the number of tiles {of} from this one to the last one seen {by}",
        lambda view: of_row_tile(view, last_seen(view), rows, which) // keys - view.key // keys,
        {
            0: f"the tile {of} is the last seen {by}",
            -1: f"the tile {of} is the one after the last seen {by}",
        },
        landmarks=(0, -1),
        cost=0.025,
        said=from_the_last(f"the tile {of}", f"seen {by}"),
    )


FEATURES = tuple(_features())

# their former names
