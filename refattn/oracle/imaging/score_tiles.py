"""Scores of keys whose components and slots are mixed within tiles: laid out one way and read another."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np

from refattn.oracle.imaging.wrong_rows import TILES, Model

VECTORS = (1, 2, 4, 8, 16, 32)  # components that lie together
CHUNKS = (8, 4, 16)
KEPT = 3  # models that are compared in all rows


def other_tile_layouts(rows) -> Iterator[Model]:
    yield from rows.nearest_models(_models(rows), KEPT)


def _models(rows):
    view = rows.view
    key = np.nan_to_num(view.operand("key"))
    kv, query = rows.head // view.group_size, view.operand("query")[rows.at]
    of = lambda k: rows.of_operands(query, k[rows.b, kv])
    for words, slot, component in _places(view, key.shape[-1]):
        k = key[:, :, np.minimum(slot, key.shape[2] - 1), component]
        yield Model("keys", f"keys are not where they are read: {words}", of(k))


def _places(view, dims):
    """Words, and the slot and component (S, D) at which those of the keys are read."""
    slots, components = np.arange(view.num_keys)[:, None], np.arange(dims)[None]
    tiles = [(size, f"each tile of {size} keys") for size in TILES]
    if "block_table" in view.checked.form.structure:
        tiles.insert(0, (int(view.page_size), f"each page of {view.page_size} slots"))
    vectors = [x for x in (*VECTORS, dims) if x <= dims and dims % x == 0]
    for (size, name), (stored, read) in product(tiles, product(dict.fromkeys(vectors), repeat=2)):
        if stored != read:
            slot, component = _repacked(slots % size, components, size, stored, read)
            if name.endswith("keys") and "block_table" in view.checked.form.structure:
                continue
            words = (
                f"in {name} they lie as (components / {stored}, slots, {stored}) and are read as "
                f"(components / {read}, slots, {read}): slots and components are mixed"
            )
            yield words, slots // size * size + slot, component
    for chunk in (size for size in CHUNKS if dims % size == 0 and dims > size):
        yield from _swizzles(slots, components, chunk, dims // chunk)


def _repacked(slot, component, size, stored, read):
    """Slot and component of what lies where (slot, component) is looked for."""
    place = component // read * (size * read) + slot * read + component % read
    return place // stored % size, place // (size * stored) * stored + place % stored


def _swizzles(slots, components, chunk, count):
    """Chunks of components that are written at one place and read at another."""
    maps = list(_chunk_places(slots, count))
    own, rest = np.arange(count)[None], components % chunk
    for (stored, written), (loaded, read) in product(maps, repeat=2):
        if stored == loaded and not (np.sort(written, -1) != own).any():
            continue
        held = np.broadcast_to(own, written.shape).copy()
        for c in range(count):  # a later chunk overwrites an earlier one
            np.put_along_axis(held, written[:, c : c + 1], c, axis=1)
        source = np.take_along_axis(held, read, axis=1)[:, components[0] // chunk]
        words = (
            f"chunk c of {chunk} components of key j is stored at place {stored} and read at {loaded}"
            f"{'' if stored != loaded else ', which is no permutation: chunks overwrite others'}"
        )
        yield words, np.broadcast_to(slots, source.shape), source * chunk + rest


def _chunk_places(slots, count):
    """Words and places (S, chunks) at which chunks may lie."""
    c = np.arange(count)[None]
    yield "c", np.broadcast_to(c, (len(slots), count))
    for size in (2, 4, 8, 16):
        yield f"(c XOR j % {size}) % {count}", (c ^ slots % size) % count
    yield f"(c + j) % {count}", (c + slots) % count
    for shift in (1, 2):
        yield f"(c XOR (j >> {shift}) % 4) % {count}", (c ^ (slots >> shift) % 4) % count
