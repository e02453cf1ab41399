"""Scores of a kernel that counts the rows or keys between which ALiBi measures distances otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

import numpy as np

from refattn.oracle.arithmetic.formats import round_to
from refattn.oracle.imaging.wrong_rows import Model

TILES = (16, 32, 48, 64, 96, 128, 256)
WRAPS = (16, 32, 64, 128, 256, 512, 1024)  # numbers at which distances may end or start anew
MOST_SPLITS = 16
ROUNDED_TO = (1, 16, 32, 64)  # keys of a split are whole tiles of these
FORMATS = ("bfloat16", "float16", "float8_e4m3fn")
TRIAL = 16  # rows on which all ways are compared
KEPT = 6  # ways that are looked at in all rows
NEAR, LEAST = 1.2, 1e-3  # times the least misfit, and beyond it: ways that are as good, the simplest first


class Count(NamedTuple):
    """A way to number rows, (n,), or keys, (n, S)."""

    words: str
    numbers: np.ndarray


def other_positions(rows) -> Iterator[Model]:
    """ALiBi with another way to count rows, keys or both."""
    slopes = rows.slopes()
    if slopes is None:
        return
    with np.errstate(all="ignore"):
        rest = rows.score + slopes * rows.distance
    weights = rows.wrong.sum(-1)
    trial = np.argsort(-weights, kind="stable")[:: max(len(weights) // TRIAL, 1)][:TRIAL]
    found = []
    for way in _ways(rows):
        found.append((rows.distance_to((rest - slopes * way.distance)[trial], trial), way))
    nearest = min(far for far, _ in found)
    near = [
        (way.changes, far, n, way) for n, (far, way) in enumerate(found) if far <= NEAR * nearest + LEAST
    ]
    for changes, _, _, way in sorted(near, key=lambda entry: entry[:3])[:KEPT]:
        yield Model("ALiBi", f"ALiBi {way.words}", rest - slopes * way.distance, changes - 1)


class _Way(NamedTuple):
    """Words for how distances (n, S) are measured, and how many things about it are wrong."""

    words: str
    distance: np.ndarray
    changes: int = 1


def _ways(rows):
    row, key = rows.position[:, None], rows.view.key[0, 0]
    own_row, own_key = Count("", rows.position), Count("", key)
    own_keys = [own_key, *_keys(rows)]
    for of_rows in chain([own_row], _rows(rows)):
        for of_keys in own_keys:
            if of_rows.words or of_keys.words:
                between = f"{of_rows.words or 'the position of the row'} and {of_keys.words or 'the key'}"
                distance = np.abs(of_rows.numbers[:, None] - of_keys.numbers)
                changes = bool(of_rows.words) + bool(of_keys.words)
                yield _Way(f"measures distances between {between}", distance, changes)
    yield _Way("has distances with their sign (a key after the row gains)", row - key)
    yield _Way("has distances of row less key, none below 0", np.maximum(row - key, 0))
    yield _Way("has distances of key less row, none below 0", np.maximum(key - row, 0))
    distance = np.abs(row - key)
    for size in WRAPS:
        yield _Way(f"has distances that are {size} at most", np.minimum(distance, size))
        yield _Way(f"has distances that are {size - 1} at most", np.minimum(distance, size - 1))
        yield _Way(f"has distances modulo {size}", distance % size)
        words = f"has signed distances (row less key) that wrap around from {size // 2} to {-size // 2}"
        yield _Way(words, (row - key + size // 2) % size - size // 2)
    for size in TILES:
        words = f"measures distances between the starts of the tiles of {size} rows and {size} keys"
        yield _Way(words, np.abs(row // size * size - key // size * size))
    for name in FORMATS:
        coarse = round_to(np.abs(row - key).astype(float), name)
        yield _Way(f"has distances rounded to {name}", coarse)
        whole = round_to(row.astype(float), name) - round_to(key.astype(float), name)
        yield _Way(f"measures distances of positions of rows and keys rounded to {name}", np.abs(whole))


def _rows(rows):
    view, row, position = rows.view, rows.row, rows.position
    num_keys, num_rows, length = (
        view.of_sequences(name)[rows.b, 0, 0, 0] for name in ("num_keys", "num_rows", "length")
    )
    first = np.cumsum([0, *(s.num_rows for s in view.sequences)])[rows.b]
    yield Count("the row number, not its position (no offset)", row)
    yield Count("a position of the row that is one too large", position + 1)
    yield Count("a position of the row that is one too small", position - 1)
    stored = row + num_keys - num_rows
    yield Count("the row number plus the stored keys less the rows, not the length less the rows", stored)
    yield Count("the length less the rows, plus the row", row + length - num_rows)
    yield Count("the row number plus twice the offset", 2 * position - row)
    for size in TILES:
        if size < max(s.num_rows for s in view.sequences):
            yield Count(f"the row's place in its tile of {size} rows", row % size)
            yield Count(f"the position of the first row of each tile of {size}", position - row % size)
    if len(view.sequences) > 1:
        words = "the row's number among the rows of all sequences (not within its own)"
        yield Count(words, position + first)
        yield Count(f"{words}, without the offset", row + first)
    yield Count("the last key for every row", length - 1)
    yield Count("position 0, whatever the row", 0 * row)
    for name in FORMATS:
        yield Count(f"the row's position rounded to {name}", round_to(position.astype(float), name))


def _keys(rows):
    view, key = rows.view, rows.view.key[0, 0]
    if len(view.sequences) > 1:
        first = np.cumsum([0, *(s.num_keys for s in view.sequences)])[rows.b][:, None]
        yield Count("the key's number among the keys of all sequences (not within its own)", key + first)
    for step, words in ((1, "large"), (-1, "small")):
        yield Count(f"a key number that is one too {words}", key + step)
    length = view.of_sequences("length")[rows.b, 0, 0]
    yield Count("keys counted from the end", length - 1 - key)
    for size, words in _parts(view):
        yield Count(f"keys counted from the start of {words}", key % size)
        yield Count(f"the first key of {words} for all its keys", key // size * size)
        yield Count(f"the number of {words.replace('each', 'the')} in place of the key's", key // size)
    for name in FORMATS:
        yield Count(f"the key's number rounded to {name}", round_to(key.astype(float), name))


def _parts(view):
    """Sizes of tiles and splits of keys, and their names."""
    told = {}
    if "block_table" in view.checked.form.structure:
        told[int(view.page_size)] = f"each page (of {view.page_size} keys)"
    for size in TILES:
        told.setdefault(size, f"each tile of {size} keys")
    for count in range(2, MOST_SPLITS + 1):
        for whole in ROUNDED_TO:
            size = -(-view.num_keys // (count * whole)) * whole
            told.setdefault(size, f"each split of {size} keys")
    return [(size, words) for size, words in told.items() if 1 < size < view.num_keys]
