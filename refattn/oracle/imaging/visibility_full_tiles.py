"""Visible sets of a kernel that takes whole tiles for visible, by a test of a few of their pairs."""

from __future__ import annotations

import itertools

import numpy as np

from refattn.oracle.imaging.features import of_row_tile
from refattn.oracle.imaging.visibility_tiles import TIE

ROWS = (16, 32, 64, 128)
KEYS = (16, 32, 48, 64, 128)


def full_tiles(view, rules):
    """Tiles that count as full, so that no mask is applied in them."""
    if rules.left is not None or rules.right is not None:
        yield from _within_the_window(view, rules)
    for name, words in (("mask", "the mask"), ("bias", "the -inf of the bias")):
        if (hidden := view.hidden_by(name)) is not None:
            yield from _by_drawn_pairs(view, rules, words, hidden)


def _within_the_window(view, rules):
    """Tests of the first or last key against the window of the first or last row; one of them is right."""
    for rows, keys in itertools.product(ROWS, KEYS):
        if rows > 2 * view.num_rows or keys >= view.num_keys:
            continue
        first, last = (of_row_tile(view, view.position, rows, which) for which in ("first", "last"))
        start = view.key // keys * keys
        ends = {"first": start, "last": start + keys - 1}
        of_rows = {"first": first, "last": last}
        tests = {"left": [], "right": []}
        for which, row in itertools.product(("first", "last"), repeat=2):
            said = f"its {which} key is not %s what the {row} row sees"
            if rules.left is not None:
                tests["left"].append((said, ends[which] >= of_rows[row] - rules.left, (which, row)))
            if rules.right is not None:
                tests["right"].append((said, ends[which] <= of_rows[row] + rules.right, (which, row)))
        exact = {"left": ("first", "last"), "right": ("last", "first")}
        right = {side: next((t for _, t, at in tests[side] if at == exact[side]), True) for side in tests}
        full_size = view.exists & (view.key < rules.length) & rules.unmasked
        for side, other, edge in (("left", "right", "before"), ("right", "left", "behind")):
            for said, test, at in tests[side]:
                if at != exact[side]:
                    words = (
                        f"tiles of {keys} keys by {rows} rows count as full and are not masked, by a wrong "
                        f"test: {said % edge} (it should be its {exact[side][0]} key and the "
                        f"{exact[side][1]} row)"
                    )
                    seen = np.where(test & right[other], full_size, rules.visible())
                    yield words, 0.02 - TIE * (rows + keys), seen


def _by_drawn_pairs(view, rules, words, hidden):
    """Tests of some pairs of a tile of a drawn mask."""
    open_pairs = view.exists & ~hidden
    rest = rules.visible(holes=view.exists & np.ones(open_pairs.shape, bool))
    seen = rules.visible()
    for rows, keys in itertools.product(ROWS, KEYS):
        if rows > 2 * view.num_rows or keys > 2 * view.num_keys or len(view.row[0, 0]) != view.num_rows:
            continue
        size = f"{rows} rows by {keys} keys"
        for said, full, empty in _tests(open_pairs, rows, keys):
            cost = 0.02 - TIE * (rows + keys)
            yield (
                f"{words} is not applied in tiles of {size} that count as full because {said} visible: "
                "hidden keys inside them get weight",
                cost,
                np.where(full, rest, seen),
            )
            yield (
                f"tiles of {size} count as empty and are skipped because {said} hidden by {words}",
                cost,
                seen & ~empty,
            )


def _tests(pairs, rows, keys):
    """Words, tiles that count as full, and tiles that count as empty, each (B, H, T, S)."""
    count_rows, count_keys = pairs.shape[-2:]
    i, j = np.arange(count_rows), np.arange(count_keys)
    top, left = i // rows * rows, j // keys * keys
    bottom, right = np.minimum(top + rows, count_rows) - 1, np.minimum(left + keys, count_keys) - 1
    at = lambda row, key: pairs[..., row, :][..., key]
    corners = [at(row, key) for row in (top, bottom) for key in (left, right)]
    yield "its four corners are", np.logical_and.reduce(corners), ~np.logical_or.reduce(corners)
    yield "its first pair is", corners[0], ~corners[0]
    yield "its last pair is", corners[3], ~corners[3]
    yield "its first and last pair are", corners[0] & corners[3], ~(corners[0] | corners[3])
    by_keys = lambda array, how: how.reduceat(array, np.arange(0, count_keys, keys), axis=-1)[..., j // keys]
    by_rows = lambda array, how: how.reduceat(array, np.arange(0, count_rows, rows), axis=-2)[
        ..., i // rows, :
    ]
    both = np.logical_and, np.logical_or
    whole_row, some_row = (by_keys(pairs, how) for how in both)
    for name, row in (("first", top), ("last", bottom)):
        yield f"all pairs of its {name} row are", whole_row[..., row, :], ~some_row[..., row, :]
    whole_key, some_key = (by_rows(pairs, how) for how in both)
    for name, key in (("first", left), ("last", right)):
        yield f"all pairs of its {name} key are", whole_key[..., key], ~some_key[..., key]
    yield "all pairs of one of its rows are", by_rows(whole_row, both[1]), ~by_rows(some_row, both[0])
