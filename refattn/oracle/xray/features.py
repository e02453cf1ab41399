"""What can be said of the place of a pair of a row and a key: one line of `FEATURES` each.

A feature gives a whole number, or a truth value, for every pair (B, H, T, S) of a `View`, and the words for it.
`landmarks` are the numbers that a kernel treats apart (the first, the last, the edges of a tile): a rule that
speaks of them is more probable than one of any other number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from refattn.exact.visibility import row_bounds

KEY_TILES = (4, 8, 16, 32, 48, 64, 80, 96, 128, 192, 256, 512)
ROW_TILES = (2, 4, 8, 16, 32, 48, 64, 96, 128)
FAR = 60  # of scores: exp(-60) is nothing beside 1
SPLITS = (2, 3, 4, 5, 6, 7, 8)


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
    tile : int or None
        The tile size it speaks of.
    """

    words: str
    of: Callable
    named: dict = field(default_factory=dict)
    otherwise: str = ""
    cost: float = 0.0
    ordered: bool = True
    landmarks: tuple = (0,)
    tile: int | None = None

    @property
    def truth(self):
        return bool(self.otherwise)

    def says(self, how, value):
        """The statement that the number is (==), is not (!=), is at most (<=) or at least (>=) a value."""
        if self.truth:
            return self.words if bool(value) == (how == "==") else self.otherwise
        if value in self.named and how == "==":
            return self.named[value]
        if value in self.named and how == "!=":
            return f"not where {self.named[value]}"
        relation = {"==": "is", "!=": "is not", "<=": "is at most", ">=": "is at least"}[how]
        return f"{self.words} {relation} {value}"


# parts of a view that several features use


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
        rules = view.rules(n)
        a, b = row_bounds(rules, np.asarray(view.position[n, 0, :, 0]), s.length)
        start[n, 0, :, 0], stop[n, 0, :, 0] = a, b
    return start, stop


def _of_row_tile(view, array, rows, which):
    """A number (B, 1, T, 1) of each row replaced by that of the first or last row of its tile."""
    order = np.arange(view.num_rows)
    taken = np.empty(array.shape, array.dtype)
    for n, s in enumerate(view.sequences):
        tile = s.rows // rows
        at = np.searchsorted(tile, tile) if which == "first" else np.searchsorted(tile, tile, "right") - 1
        taken[n, 0, : len(s.rows), 0] = array[n, 0, at, 0]
        taken[n, 0, len(s.rows) :, 0] = array[n, 0, order[len(s.rows) :], 0]
    return taken


def _running_top(view, tile):
    """Largest score of the visible keys before the tile of a key, and within the tile, (B, H, T, S)."""
    hidden = np.where(view.visible, view.score, -np.inf)
    edges = np.arange(0, view.num_keys, tile)
    inside = np.maximum.reduceat(hidden, edges, axis=-1)  # (B, H, T, tiles)
    before = np.maximum.accumulate(inside, axis=-1)
    before = np.concatenate([np.full_like(inside[..., :1], -np.inf), before[..., :-1]], axis=-1)
    repeat = view.key[0, 0, 0] // tile
    return before[..., repeat], inside[..., repeat]


def rises(view, tile):
    """Whether the largest score of a row rises in the tile of the key, not counting the first one."""
    before, inside = _running_top(view, tile)
    return (inside > before) & ~np.isneginf(before)


def tiles_hidden_before(view, tile):
    """Whether a row visits a tile all of whose keys are hidden, before this one or at it."""
    _, inside = _running_top(view, tile)
    return np.logical_or.accumulate(np.isneginf(inside), axis=-1)


def hidden_because(view, what):
    """Whether a pair is hidden by one rule: "length", "left", "right", "mask" or "bias"."""
    length = view.of_sequences("length")
    if what == "length":
        return view.key >= length
    start, stop = _seen(view)
    if what == "left":
        return (view.key < start) & (view.key < length)
    if what == "right":
        return (view.key >= stop) & (view.key < length)
    return view.hidden_by(what)


def _parity(words, of, cost=0.01):
    return Feature(
        words,
        lambda view: of(view) % 2,
        {0: f"{words} is even", 1: f"{words} is odd"},
        cost=cost,
        ordered=False,
    )


def _places(view):
    """Physical page of each key, (B, 1, 1, S), or None where keys are in no pages."""
    return view.pages


def _features() -> Iterator[Feature]:
    head = lambda view: view.heads.reshape(1, -1, 1, 1)
    length = lambda view: view.of_sequences("length")
    rows = lambda view: view.of_sequences("num_rows")
    sequence = lambda view: np.arange(len(view.sequences)).reshape(-1, 1, 1, 1)

    yield Feature("the sequence", sequence, {0: "the sequence is the first"}, landmarks=(0, -1))
    yield Feature("the query head", head, {0: "the query head is the first"}, landmarks=(0, -1))
    yield Feature(
        "the key/value head",
        lambda view: head(view) // view.group_size if view.group_size > 1 else None,
        {0: "the key/value head is the first"},
        landmarks=(0, -1),
    )
    yield Feature(
        "the query head's place in its group",
        lambda view: head(view) % view.group_size if 1 < view.group_size < view.num_heads else None,
        {0: "the query head is the first of its group"},
        landmarks=(0, -1),
    )
    yield _parity("the number of the query head", head)
    yield _parity("the number of the sequence", sequence)
    yield Feature("the row", lambda view: view.row, {0: "the row is the first"}, landmarks=(0, 1))
    yield Feature(
        "the number of rows behind this one",
        lambda view: rows(view) - 1 - view.row,
        {0: "the row is the last of its sequence"},
    )
    yield Feature("the key", lambda view: view.key, {0: "the key is the first"}, landmarks=(0, 1))
    yield Feature(
        "the number of keys of the sequence behind this one",
        lambda view: length(view) - 1 - view.key,
        {0: "the key is the last of its sequence", -1: "the key is the first one past the length"},
        landmarks=(0, -1, 1),
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
    )
    yield Feature(
        "key minus row",
        lambda view: view.key - view.row,
        {0: "the key has the row's own number"},
        landmarks=(0, 1),
        cost=0.02,
    )
    yield Feature(
        "the number of keys from the first one the row sees to this one",
        lambda view: view.key - first_seen(view),
        {
            0: "the key is the first that the row sees",
            -1: "the key is the one before the first that the row sees",
        },
        landmarks=(0, -1),
    )
    yield Feature(
        "the number of keys from this one to the last one the row sees",
        lambda view: last_seen(view) - view.key,
        {
            0: "the key is the last that the row sees",
            -1: "the key is the one after the last that the row sees",
        },
        landmarks=(0, -1),
    )
    yield Feature(
        "the key is past the length of its sequence",
        lambda view: hidden_because(view, "length"),
        otherwise="the key is within the length of its sequence",
    )
    yield Feature(
        "the key lies before the window or chunk",
        lambda view: hidden_because(view, "left"),
        otherwise="the key does not lie before the window or chunk",
    )
    yield Feature(
        "the key lies behind the causal limit, window or chunk",
        lambda view: hidden_because(view, "right"),
        otherwise="the key does not lie behind the causal limit, window or chunk",
    )
    yield Feature(
        "the mask hides the pair",
        lambda view: hidden_because(view, "mask"),
        otherwise="the mask does not hide the pair",
    )
    yield Feature(
        "a bias of -inf hides the pair",
        lambda view: hidden_because(view, "bias"),
        otherwise="no bias of -inf hides the pair",
    )
    yield Feature(
        "dropout drops the weight", lambda view: view.dropped, otherwise="dropout keeps the weight"
    )
    yield Feature(
        "the sequence is the longest",
        lambda view: length(view) == length(view).max() if len(view.sequences) > 1 else None,
        otherwise="the sequence is not the longest",
    )
    yield Feature("the length of the sequence", length, cost=0.02)
    yield Feature(
        "the number of keys the row sees",
        lambda view: view.visible.sum(-1, keepdims=True),
        {0: "the row sees no key", 1: "the row sees one key only"},
        landmarks=(0, 1),
        cost=0.02,
    )
    yield Feature("the position of the row", lambda view: view.position, landmarks=(0, -1), cost=0.02)
    yield Feature(
        "the score is negative",
        lambda view: view.score < 0,
        otherwise="the score is not negative",
        cost=0.02,
    )
    yield Feature(
        "the row's largest score is negative",
        lambda view: view.top[..., None] < 0,
        otherwise="the row's largest score is not negative",
        cost=0.01,
    )
    yield Feature(
        "the score, rounded down,",
        lambda view: np.floor(np.clip(np.where(view.exists, view.score, 0), -1e6, 1e6)),
        cost=0.03,
    )
    yield Feature(
        "the score below the row's largest one, rounded down,",
        lambda view: np.floor(np.clip(np.where(view.visible, view.top[..., None] - view.score, 0), 0, 1e6)),
        cost=0.03,
    )
    yield Feature(
        "the row's largest score, rounded down,",
        lambda view: np.floor(np.clip(np.where(np.isfinite(view.top), view.top, 0), -1e6, 1e6))[..., None],
        cost=0.03,
    )
    yield Feature(
        "the key has the row's largest score",
        lambda view: view.visible & (view.score == view.top[..., None]),
        otherwise="the key does not have the row's largest score",
        cost=0.01,
    )
    yield Feature("the physical page", _places, {0: "the physical page is page 0"}, landmarks=(0,))
    yield _parity("the number of the physical page", lambda view: None if view.pages is None else view.pages)
    yield Feature(
        "the place in the block table",
        lambda view: None if view.pages is None else view.key // view.page_size,
        {0: "the page is the first of its sequence"},
        landmarks=(0, 1),
    )
    yield Feature(
        "the number of pages of the sequence behind this one",
        lambda view: (
            None if view.pages is None else (length(view) - 1) // view.page_size - view.key // view.page_size
        ),
        {0: "the page is the last of its sequence"},
    )
    yield Feature(
        "the slot in its page",
        lambda view: None if view.pages is None else view.key % view.page_size,
        {0: "the slot is the first of its page"},
        landmarks=(0, -1),
    )
    yield Feature(
        "the row sees no key",
        lambda view: ~view.visible.any(-1, keepdims=True),
        otherwise="the row sees a key",
    )
    yield Feature(
        "the row has hidden keys before the first that it sees",
        lambda view: view.visible.argmax(-1)[..., None] > 0,
        otherwise="the row sees the first key",
        cost=0.01,
    )
    for count in SPLITS:
        yield from _split(count)
    for size in KEY_TILES:
        yield from _key_tile(size)
    for size in ROW_TILES:
        yield from _row_tile(size)


def _split(count):
    """Keys cut into so many splits of the same length, the last one shorter."""
    size = lambda view: np.maximum(-(-view.of_sequences("length") // count), 1)
    of = f"of {count} splits"
    some = lambda view: view.num_keys >= 8 * count
    yield Feature(
        f"the number of the split, {of},",
        lambda view: view.key // size(view) if some(view) else None,
        {0: f"the split is the first {of}", count - 1: f"the split is the last {of}"},
        landmarks=(0, count - 1),
        cost=0.02,
    )
    yield Feature(
        f"the key's place in its split, {of},",
        lambda view: view.key % size(view) if some(view) else None,
        {0: f"the key is the first of its split, {of}"},
        cost=0.025,
    )
    yield Feature(
        f"the key is the last of its split, {of}",
        lambda view: view.key % size(view) == size(view) - 1 if some(view) else None,
        otherwise=f"the key is not the last of its split, {of}",
        cost=0.02,
    )


def _key_tile(size):
    length = lambda view: view.of_sequences("length")
    tile = lambda view, array: array // size if view.num_keys > size else None
    some = lambda view: view.num_keys > size
    of = f"of {size} keys"
    common = {"tile": size}
    yield Feature(
        f"the key's place in its tile {of}",
        lambda view: view.key % size if some(view) else None,
        {0: f"the key is the first of its tile {of}", size - 1: f"the key is the last of its tile {of}"},
        landmarks=(0, size - 1, size // 2),
        cost=0.01,
        **common,
    )
    yield Feature(
        f"the tile {of}",
        lambda view: tile(view, view.key),
        {0: f"the tile {of} is the first"},
        cost=0.005,
        **common,
    )
    yield _parity(f"the number of the tile {of}", lambda view: tile(view, view.key), 0.015)
    yield Feature(
        f"the number of tiles {of} from this one to the last of the sequence",
        lambda view: tile(view, length(view) - 1) - view.key // size if some(view) else None,
        {
            0: f"the tile {of} is the last of its sequence",
            1: f"the tile {of} is the last but one of its sequence",
        },
        landmarks=(0, 1),
        cost=0.005,
        **common,
    )
    yield Feature(
        f"the number of tiles {of} from the first one the row sees to this one",
        lambda view: view.key // size - first_seen(view) // size if some(view) else None,
        {0: f"the tile {of} is the first that the row sees"},
        landmarks=(0, 1),
        cost=0.01,
        **common,
    )
    yield Feature(
        f"the number of tiles {of} from this one to the last one the row sees",
        lambda view: last_seen(view) // size - view.key // size if some(view) else None,
        {
            0: f"the tile {of} is the last that the row sees (that of the diagonal where causal)",
            1: f"the tile {of} is the last but one that the row sees",
        },
        landmarks=(0, 1),
        cost=0.01,
        **common,
    )
    yield Feature(
        f"the tile {of} is a partial one: the length ends inside it",
        lambda view: (
            (view.key // size == length(view) // size) & (length(view) % size > 0) if some(view) else None
        ),
        otherwise=f"the tile {of} is a whole one",
        cost=0.005,
        **common,
    )
    yield Feature(
        f"the length is a multiple of {size}",
        lambda view: length(view) % size == 0 if some(view) else None,
        otherwise=f"the length is not a multiple of {size}",
        cost=0.005,
        **common,
    )
    yield Feature(
        f"the length modulo {size}",
        lambda view: length(view) % size if some(view) else None,
        cost=0.03,
        **common,
    )
    yield Feature(
        f"the largest score of the row rises in the tile {of}",
        lambda view: rises(view, size) if some(view) else None,
        otherwise=f"the largest score of the row does not rise in the tile {of}",
        cost=0.02,
        **common,
    )
    yield Feature(
        f"a tile {of} up to this one is wholly hidden from the row",
        lambda view: tiles_hidden_before(view, size) if some(view) else None,
        otherwise=f"no tile {of} up to this one is wholly hidden from the row",
        cost=0.02,
        **common,
    )
    yield Feature(
        f"the first tile {of} is wholly hidden from the row",
        lambda view: view.visible.argmax(-1)[..., None] >= size if some(view) else None,
        otherwise=f"the first tile {of} is not wholly hidden from the row",
        cost=0.005,
        **common,
    )
    yield Feature(
        f"the first tile {of} of those visited by position is wholly hidden from the row by mask or bias",
        lambda view: (
            view.visible.argmax(-1)[..., None] // size > first_seen(view) // size if some(view) else None
        ),
        otherwise=f"the first visited tile {of} has a key that the row sees",
        cost=0.005,
        **common,
    )
    yield Feature(
        f"the last tile {of} of the sequence is wholly hidden from the row",
        lambda view: (
            (length(view) - 1) // size
            > (view.num_keys - 1 - view.visible[..., ::-1].argmax(-1)[..., None]) // size
            if some(view)
            else None
        ),
        otherwise=f"the last tile {of} of the sequence is not wholly hidden from the row",
        cost=0.01,
        **common,
    )
    yield Feature(
        f"the number of tiles {of} that the sequence has",
        lambda view: -(-length(view) // size) if some(view) else None,
        landmarks=(1, 2),
        cost=0.015,
        **common,
    )


def _row_tile(size):
    of = f"of {size} rows"
    rows = lambda view: view.of_sequences("num_rows")
    some = lambda view: max((s.num_rows for s in view.sequences), default=0) > size
    yield Feature(
        f"the row's place in its tile {of}",
        lambda view: view.row % size if some(view) else None,
        {0: f"the row is the first of its tile {of}", size - 1: f"the row is the last of its tile {of}"},
        landmarks=(0, size - 1, size // 2),
        cost=0.01,
        tile=size,
    )
    yield Feature(
        f"the tile {of}",
        lambda view: view.row // size if some(view) else None,
        {0: f"the tile {of} is the first"},
        cost=0.005,
        tile=size,
    )
    yield _parity(
        f"the number of the tile {of}", lambda view: view.row // size if some(view) else None, 0.015
    )
    yield Feature(
        f"the number of tiles {of} behind this one",
        lambda view: (rows(view) - 1) // size - view.row // size if some(view) else None,
        {0: f"the tile {of} is the last of its sequence"},
        cost=0.005,
        tile=size,
    )
    yield Feature(
        f"the tile {of} is a partial one: the rows end inside it",
        lambda view: (
            (view.row // size == rows(view) // size) & (rows(view) % size > 0) if some(view) else None
        ),
        otherwise=f"the tile {of} is a whole one",
        cost=0.005,
        tile=size,
    )
    yield Feature(
        f"the tile {of}, counted over the rows of all sequences, begins in the sequence before",
        lambda view: _straddling(view, size),
        otherwise=f"the tile {of}, counted over the rows of all sequences, begins in the row's own sequence",
        cost=0.005,
        tile=size,
    )
    yield Feature(
        f"another row of the tile {of} has scores more than {FAR} above this row's",
        lambda view: _overshadowed(view, size) if some(view) else None,
        otherwise=f"no row of the tile {of} has scores more than {FAR} above this row's",
        cost=0.01,
        tile=size,
    )
    for keys in (16, 32, 64, 128):
        for which in ("first", "last"):
            yield from _both_tiles(size, keys, which)
    yield Feature(
        f"key minus the position of the first row of its tile {of}",
        lambda view: view.key - _of_row_tile(view, view.position, size, "first") if some(view) else None,
        {0: f"the key is at the position of the first row of the tile {of}"},
        landmarks=(0, 1, -1),
        cost=0.02,
        tile=size,
    )
    yield Feature(
        f"key minus the position of the last row of its tile {of}",
        lambda view: view.key - _of_row_tile(view, view.position, size, "last") if some(view) else None,
        {0: f"the key is at the position of the last row of the tile {of}"},
        landmarks=(0, 1, -1),
        cost=0.02,
        tile=size,
    )


def _overshadowed(view, size):
    """Rows beside whose largest score their own is nothing, within a tile of rows, (B, H, T, 1)."""
    far = np.zeros((*view.top.shape, 1), bool)
    top = np.where(np.isfinite(view.top), view.top, -np.inf)
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


def _both_tiles(rows, keys, which):
    some = lambda view: max((s.num_rows for s in view.sequences), default=0) > rows and view.num_keys > keys
    if rows < 8:
        return
    of = f"of {keys} keys"
    by = f"by the {which} row of the tile of {rows} rows"
    yield Feature(
        f"the number of tiles {of} from the first one seen {by} to this one",
        lambda view: (
            view.key // keys - _of_row_tile(view, first_seen(view), rows, which) // keys
            if some(view)
            else None
        ),
        {
            0: f"the tile {of} is the first seen {by}",
            -1: f"the tile {of} is the one before the first seen {by}",
        },
        landmarks=(0, -1),
        cost=0.025,
        tile=keys,
    )
    yield Feature(
        f"the number of tiles {of} from this one to the last one seen {by}",
        lambda view: (
            _of_row_tile(view, last_seen(view), rows, which) // keys - view.key // keys
            if some(view)
            else None
        ),
        {
            0: f"the tile {of} is the last seen {by}",
            -1: f"the tile {of} is the one after the last seen {by}",
        },
        landmarks=(0, -1),
        cost=0.025,
        tile=keys,
    )


FEATURES = tuple(_features())
