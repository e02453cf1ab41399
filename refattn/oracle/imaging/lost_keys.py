"""Keys that whole sequences or heads lose, or gain: the same keys in every row."""

from __future__ import annotations

import math

import numpy as np

from refattn.oracle.imaging.maps import ranges

EXACT = 0.97
MOST_RUNS, MOST_GROUPS = 4, 8
MOST = 0.9  # of what a row sees
TILES = (16, 32, 48, 64, 80, 96, 128, 256)


def lost_keys_in_words(view, missing, judged):
    """ "keys 172 to 210 of 211 get no weight in any row", or a table by head, sequence or both, and the
    number of its entries, and words for whole tiles; ("", 0, "") where rows of the same head and sequence
    differ. Arrays are (B, H, T, S).
    """
    seen = (view.weights > 0) & judged
    name, keys = _by_group(view, missing, seen)
    if not keys or any((seen[g] & of).sum() > MOST * seen[g].sum() for g, of, _ in keys):
        return "", 0, ""
    return _in_words(view, name, keys, "no weight", "that should see them")


def gained_keys_in_words(view, extra, judged):
    """The same of keys that get weight in all rows that should not see them."""
    hidden = ~view.visible & judged & view.exists
    name, keys = _by_group(view, extra, hidden)
    if not keys or any((hidden[g] & of).sum() > MOST * hidden[g].sum() for g, of, _ in keys):
        return "", 0, ""
    return _in_words(view, name, keys, "weight", "that should not see them")


def _by_group(view, wrong, universe):
    """Name and list of (group, keys, number) of the coarsest grouping in which rows of a group have the same
    wrong keys, as far as they may have them.
    """
    if not wrong.any():
        return "", []
    for groups, name in _groupings(view):
        keys = [wrong[group].reshape(-1, view.num_keys).any(0) for group in groups]
        both = zip(groups, keys, strict=True)
        predicted = sum(int((universe[group] & of).sum()) for group, of in both)
        if wrong.sum() >= EXACT * predicted:
            told = [(groups[n], of, n) for n, of in enumerate(keys) if of.any()]
            few = len(told) <= MOST_GROUPS and max(_runs(of) for _, of, _ in told) <= MOST_RUNS
            return name, told if few else []
    return "", []


def _groupings(view):
    """Indices into (B, H, T, S) of groups of rows, and their names."""
    whole = slice(None)
    sequences, heads = range(view.shape[0]), range(view.shape[1])
    yield [(whole, whole)], lambda n: ""
    if len(sequences) > 1:
        yield [(slice(b, b + 1), whole) for b in sequences], lambda n: f"sequence {n}"
    if len(heads) > 1:
        yield [(whole, slice(h, h + 1)) for h in heads], lambda n: f"head {view.heads[n]}"
    if len(sequences) > 1 and len(heads) > 1:
        both = [(slice(b, b + 1), slice(h, h + 1)) for b in sequences for h in heads]
        yield both, lambda n: f"sequence {n // len(heads)}, head {view.heads[n % len(heads)]}"


def _runs(keys):
    return int((np.diff(keys.astype(int), prepend=0) == 1).sum())


def _in_words(view, name, groups, get, whose):
    """`groups` are (group, keys, number); `get` what the keys get; `whose` which rows are meant."""
    of_all = f" of {view.num_keys}" if len({s.num_keys for s in view.sequences}) == 1 else ""
    tiles, same = _tiles(view, [keys for _, keys, _ in groups]), {}
    for _, keys, n in groups:
        same.setdefault(ranges(np.flatnonzero(keys).tolist()), []).append(name(n))
    any_row = "any row" if get == "no weight" else "every row"
    if len(same) == 1:
        (words, names), one = next(iter(same.items())), int(groups[0][1].sum()) == 1
        of_them = f" of {' and '.join(names)}" if names[0] else ""
        verb = f"key{'s' * (not one)} {words}{of_all} get{'s' * one} {get}"
        return f"{verb} in {any_row}{of_them} {whose}", 1, tiles
    table = "; ".join(f"keys {keys} in {' and '.join(names)}" for keys, names in same.items())
    return f"keys get {get} in {any_row} {whose}: {table}", len(same), tiles


def _tiles(view, changed):
    """The tiles, pages or splits that are concerned as a whole, in words."""
    lengths = {s.length for s in view.sequences}
    ends = lengths | {s.num_keys for s in view.sequences} | {0}
    edges = []
    for keys in changed:
        edges += np.flatnonzero(np.diff(keys.astype(int), prepend=0, append=0)).tolist()
    inner = [edge for edge in edges if edge not in ends]
    if not inner:
        return ""
    step = math.gcd(*inner)
    if view.pages is not None and step % view.page_size == 0:
        return f" (whole pages of {view.page_size} keys)"
    if tile := max((n for n in TILES if step % n == 0), default=0):
        return f" (whole tiles of {tile} keys)"
    for count in range(2, 9) if len(lengths) == 1 else ():
        size = -(-max(lengths) // count)
        if all(edge % size == 0 for edge in inner):
            numbers = sorted({int(n) // size for keys in changed for n in np.flatnonzero(keys)})
            return f" (split {ranges(numbers)} of {count} splits of {size} keys, counted from 0)"
    return ""
