"""What can be said of the place of a state: the features of `features.py` in the words of merges."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refattn.oracle.imaging.features import ROW_TILES, Feature, parity
from refattn.oracle.imaging.place_words import from_the_last, in_tile, rounded_down, share_of_largest


def _features() -> Iterator[Feature]:
    head = lambda view: view.heads.reshape(1, -1, 1, 1)
    entry = lambda view: np.arange(view.shape[0]).reshape(-1, 1, 1, 1)
    empty = lambda view: ~view.visible
    yield Feature("the batch entry", entry, {0: "the batch entry is the first"}, landmarks=(0, -1))
    yield Feature("the head", head, {0: "the head is the first"}, landmarks=(0, -1))
    yield parity("the number of the head", head)
    yield parity("the number of the batch entry", entry)
    yield Feature("the row", lambda view: view.row, {0: "the row is the first"}, landmarks=(0, 1))
    yield parity("the number of the row", lambda view: view.row)
    yield Feature(
        "the number of rows behind this one",
        lambda view: view.num_rows - 1 - view.row,
        {0: "the row is the last"},
        said=from_the_last("the row", "of all"),
    )
    yield Feature("the state", lambda view: view.key, {0: "the state is the first"}, landmarks=(0, 1))
    yield parity("the number of the state", lambda view: view.key)
    yield Feature(
        "the number of states behind this one",
        lambda view: view.num_keys - 1 - view.key,
        {0: "the state is the last", 1: "the state is the last but one"},
        landmarks=(0, 1),
        said=from_the_last("the state", "of the row"),
    )
    yield Feature(
        "every state of the row is empty (its lse is -inf)",
        lambda view: view.empty[..., None],
        otherwise="a state of the row is not empty",
    )
    yield Feature("the state is empty (its lse is -inf)", empty, otherwise="the state is not empty")
    yield Feature(
        "the row's first state is empty (its lse is -inf)",
        lambda view: empty(view)[..., :1],
        otherwise="the row's first state is not empty",
    )
    yield Feature(
        "the row's last state is empty (its lse is -inf)",
        lambda view: empty(view)[..., -1:],
        otherwise="the row's last state is not empty",
    )
    yield Feature(
        "a state of the row is empty (its lse is -inf)",
        lambda view: empty(view).any(-1, keepdims=True),
        otherwise="no state of the row is empty",
    )
    yield from _of_lses()
    for size in ROW_TILES:
        yield from _row_tile(size)


def _of_lses():
    """The lse of the state, and the row's largest one."""
    finite = lambda array: np.where(np.isfinite(array), array, 0)
    yield Feature(
        "the state has the row's largest lse",
        lambda view: view.visible & (view.score == view.top[..., None]),
        otherwise="the state does not have the row's largest lse",
        cost=0.01,
    )
    yield Feature(
        "the number of the state with the row's largest lse",
        lambda view: view.score.argmax(-1)[..., None],
        {0: "the first state has the row's largest lse"},
        landmarks=(0, -1),
        cost=0.01,
    )
    yield Feature(
        "the lse of the state is larger than those of all states before it",
        lambda view: view.score > _before(view),
        otherwise="a state before this one has an lse as large",
        cost=0.02,
    )
    yield Feature(
        "the lse of the state is negative",
        lambda view: view.raw < 0,
        otherwise="the lse of the state is not negative",
        cost=0.02,
    )
    yield Feature(
        "the row's largest lse is negative",
        lambda view: view.top[..., None] < 0,
        otherwise="the row's largest lse is not negative",
        cost=0.01,
    )
    yield Feature(
        "the lse of the state",
        lambda view: np.floor(view.raw),
        cost=0.03,
        said=rounded_down("the lse of the state"),
    )
    yield Feature(
        "the row's largest lse",
        lambda view: np.floor(finite(view.top))[..., None],
        cost=0.03,
        said=rounded_down("the row's largest lse"),
    )
    yield Feature(
        "the lse of the state below the row's largest one",
        lambda view: np.floor(np.where(view.visible, finite(view.top)[..., None] - view.raw, 0)),
        cost=0.03,
        said=share_of_largest,
    )


def _before(view):
    """The largest lse before each state, (B, H, T, P)."""
    running = np.maximum.accumulate(view.score, axis=-1)
    return np.concatenate([np.full_like(running[..., :1], np.inf), running[..., :-1]], -1)


def _row_tile(size):
    of = f"of {size} rows"
    some = lambda view, array: array if view.num_rows > size else None
    yield Feature(
        f"the row's place in its tile {of}",
        lambda view: some(view, view.row % size),
        {0: f"the row is the first of its tile {of}", size - 1: f"the row is the last of its tile {of}"},
        landmarks=(0, size - 1),
        cost=0.01,
        tile=size,
        said=in_tile("the row", f"of its tile {of}", size),
    )
    yield Feature(
        f"the tile {of}",
        lambda view: some(view, view.row // size),
        {0: f"the tile {of} is the first"},
        cost=0.005,
        tile=size,
    )
    yield Feature(
        f"the tile {of} is a partial one: the rows end inside it",
        lambda view: some(view, (view.row // size == view.num_rows // size) & (view.num_rows % size > 0)),
        otherwise=f"the tile {of} is a whole one",
        cost=0.005,
        tile=size,
    )


STATE_FEATURES = tuple(_features())
