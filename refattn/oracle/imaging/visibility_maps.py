"""Visible sets of rows, or of keys, that are taken to stand at other places: which one for which.

What each row, or each key, takes for its place is read off the visible sets; then the map is described.
"""

from __future__ import annotations

import numpy as np

from refattn.oracle.imaging.maps import describe_map
from refattn.oracle.imaging.view import last_key

LEAST = 6  # rows or keys
MOST_TILES, EXAMPLES = 40, 6
TILES = (256, 128, 96, 80, 64, 48, 32, 24, 20, 16, 12, 10, 8)


def maps(rules, wrong, judged):
    """Words and visible keys (B, H, T, S) where rows, or keys, are taken to stand at other places."""
    got = np.broadcast_to(rules.visible(), wrong.shape) ^ wrong
    yield from _of_rows(rules, wrong, got)
    yield from _of_keys(rules, wrong, got, judged)


def _of_rows(rules, wrong, got):
    """Rows whose position is that of another one."""
    view = rules.view
    if rules.right is None and rules.left is None:
        return
    first, last = got.argmax(-1), last_key(got)
    right = rules.visible()
    by_first = rules.left is not None and (rules.right is None or (first > 0).mean() > 0.5)
    place = first + rules.left if by_first else last - rules.right
    position = np.broadcast_to(view.position[..., 0], place.shape)
    some = wrong.any(-1) & got.any(-1) & np.broadcast_to(right.any(-1), place.shape)
    known = some & ((first > 0) if by_first else (last < rules.length[..., 0] - 1))
    if known.sum() < LEAST or len(np.unique(position[known])) < LEAST:
        return
    taken = np.where(some, place, position)[..., None]
    words, rule = _map(position[known], place[known], "position")
    if not rule:
        offset = np.broadcast_to(view.of_sequences("offset")[..., 0], place.shape)[known]
        words, rule = _map(position[known] - offset, place[known] - offset, "row")
    yield f"rows are taken to stand at other positions: {words}", 0.0 if rule else 0.02, rules.visible(taken)


def _of_keys(rules, wrong, got, judged):
    """Keys that the causal limit takes to stand elsewhere."""
    view = rules.view
    if rules.right is None or rules.left is not None or rules.chunk is not None:
        return
    heads = (got & judged).any(1)  # (B, T, S)
    position = np.broadcast_to(view.position[:, 0], heads.shape)
    open_pairs = np.broadcast_to(rules.holes & ~rules.dropped, got.shape).any(1)
    if not open_pairs.any():
        return
    far = int(view.position.max()) + view.num_keys
    place = np.where(heads, position, far).min(1) + rules.right  # (B, S)
    visible = rules.visible(right=None) & (place[:, None, None] - rules.right <= view.position)
    changed = wrong.any((1, 2))
    known = changed & (place < far) & (place - rules.right > view.position.min((1, 2)))
    if known.sum() < LEAST:
        return
    key = np.broadcast_to(view.key[0, 0], place.shape)
    words, rule = _map(key[known], place[known], "key")
    nature = f"the causal limit takes keys to stand at other places: {words}"
    yield nature, 0.0 if rule else 0.02, visible


def _map(wanted, got, what):
    """Words for which place is taken for which, and whether a rule was found."""
    pairs = np.unique(np.stack([wanted, got], -1), axis=0)
    wanted, got = pairs.T
    words, rule = describe_map(wanted, got, what)
    if rule:
        return words, True
    for size in TILES:
        tiles, step = wanted // size, got - wanted
        each = [(n, np.unique(step[tiles == n])) for n in np.unique(tiles)]
        if 2 <= len(each) <= MOST_TILES and all(
            len(steps) == 1 and steps[0] % size == 0 for _, steps in each
        ):
            told = [f"{n} at {n + steps[0] // size}" for n, steps in each if steps[0]]
            more = ", ..." if len(told) > EXAMPLES else ""
            return f"tiles of {size} {what}s: {', '.join(told[:EXAMPLES])}{more}", True
    return words, False
