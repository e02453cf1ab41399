"""Pages that a kernel may read in place of those of the block table, or by another layout of a page."""

from __future__ import annotations

import numpy as np

from refattn.oracle.imaging.elsewhere import other_sequences
from refattn.oracle.imaging.factors_in_words import away, count_of
from refattn.oracle.imaging.pool import STEPS, first_key
from refattn.oracle.imaging.pool_contexts import read_by_each


def other_pages_read(pool):
    """Pages of other places of the block table, or memory behind a page."""
    view = pool.view
    if view.pages is None:
        return
    size, table = view.page_size, np.asarray(view.checked.block_table)
    heads, flat, width = view.num_kv_heads, table.ravel(), table.shape[1]
    key, kv = view.key[0, 0, 0], (view.heads // view.group_size)[:, None]
    last = pool.count // (heads * size) - 1

    def slots(pages, wrap=False):
        """Slots of pages (B, S), each key at its own slot in its page."""
        pages = (pages % (last + 1) if wrap else np.clip(pages, 0, last))[:, None, :]
        moved = (pages * heads + kv) * size + key % size
        return np.where(pool.own < pool.count, moved, pool.count)

    part = np.array([s.part for s in view.sequences])[:, None]
    first = np.array([first_key(view, n) for n in range(len(view.sequences))])[:, None]
    place = key[None] // size
    count = np.array([[-(-s.length // size)] for s in view.sequences])
    at = lambda place, row=part: table[row, np.clip(place, 0, width - 1)]
    own = at(place)
    for words, pages in _of_places(place, first // size, count, size, at):
        yield words if words.startswith(("in ", "those ")) else f"read at {words}", slots(pages), None
    for words, other in other_sequences(view, np.arange(len(table))):
        listed = read_by_each(np.arange(len(table)), other)
        yield (
            f"read in the pages of {words} (by its row of the block table: {listed})",
            slots(table[other[part], np.clip(place, 0, width - 1)]),
            None,
        )
    yield from _in_other_layouts(pool, at, kv)
    for n in range(2, 13):
        yield f"in page p % {1 << n}: page numbers are cut to {n} bits", slots(own % (1 << n)), None
    for step in STEPS:
        yield f"{away(step, 'page')} in the pool", slots(own + step), None
        yield f"{away(step, 'page')} in the pool (round its end)", slots(own + step, wrap=True), None
    yield (
        "in page t of the pool, t the place in the table: the table is not used",
        slots(place + 0 * part),
        None,
    )
    yield "in the pool as if each sequence had its own stretch of it", slots(part * width + place), None
    for stride in range(1, width + 5):
        pages = flat[np.minimum(part * stride + place, flat.size - 1)]
        words = f"read with rows of the block table {stride} entries apart, not {width}"
        yield words, slots(pages), None
    yield from _once_a_tile(pool, at, place, slots)


def _once_a_tile(pool, at, place, slots):
    """Pages of a kernel that looks into the block table once for each tile of keys."""
    size, key = pool.view.page_size, pool.view.key[0, 0, 0]
    for tile in (16, 32, 48, 64, 96, 128, 256):
        begin = key // tile * tile
        pages = at(begin[None] // size) + place - begin // size
        words = (
            f"in consecutive physical pages within each tile of {tile} keys: the table is read once a tile"
        )
        if tile > size:
            yield words, slots(pages), None
            yield f"{words} (page numbers begin again at the end of the pool)", slots(pages, wrap=True), None
        run_on = np.take_along_axis(pool.own, np.broadcast_to(begin, pool.own.shape), -1) + key - begin
        yield (
            (
                f"read on in memory within each tile of {tile} keys, past the end of its first page "
                "(what follows there are rows of the next head, or of the next page for the last head): the "
                "table is read once a tile"
            ),
            np.where(pool.own < pool.count, np.minimum(run_on, pool.count - 1), pool.count),
            None,
        )


def _in_other_layouts(pool, at, kv):
    """Pages that are laid out otherwise, or are of another size."""
    view = pool.view
    size, heads, key = view.page_size, view.num_kv_heads, view.key[0, 0, 0]
    there = pool.own < pool.count
    kept = lambda rows: np.where(there, np.clip(rows, 0, pool.count - 1), pool.count)
    own = at(key[None] // size)[:, None, :]
    by_slot = "with pages laid out as (slots, heads) in place of (heads, slots)"
    yield f"read {by_slot}", kept((own * size + key % size) * heads + kv), None
    for other in (4, 8, 16, 24, 32, 48, 64, 128):
        if other != size:
            pages = at(key[None] // other)[:, None, :]
            of = f"page j // {other} of the table, slot j % {other}"
            words = f"read as if pages held {other} keys, not {size} ({of})"
            yield words, kept((pages * heads + kv) * size + key % other), None
            yield (
                f"{words}, heads and pages {other} slots apart",
                kept((pages * heads + kv) * other + key % other),
                None,
            )
    for step in (1, 2, 3, 4, 8, 16, 32, size):
        for sign in (1, -1):
            words = (
                f"{away(sign * step, 'row')} in memory (past the end of a page lie rows of the next head)"
            )
            yield words, kept(pool.own + sign * step), None


def _of_places(place, first, count, size, at):
    """Pages from other places of the block table. `first` is the place of the first key that is seen,
    `count` the number of pages up to the length, `size` that of the keys of a page.
    """
    yield (
        "the places of the table from 0 on, though the first key seen is in a later page",
        at(place - first),
    )
    for n in range(3):
        if n == 0 or (count > n).all():
            yield f"place {n} of the block table for all places", at(0 * place + n)
    last = count - 1
    for where, inside in (
        ("last page", place == last),
        ("first page", place == 0),
        ("last two pages", place >= last - 1),
    ):
        for whose, moved in (
            ("the first entry of the table", 0 * place),
            ("the page before", place - 1),
            ("the next page", place + 1),
            ("the page behind the length", 0 * place + count),
            ("the last page", 0 * place + last),
        ):
            yield (
                f"those of {whose} where the {where} of the sequence should be read",
                at(np.where(inside, moved, place)),
            )
    of_first = at(place, 0)
    for n in range(1, 9):
        words = f"those of sequence 0 in the first {count_of(n, 'page')} of every sequence (a shared prefix)"
        yield words, np.where(place < n, of_first, at(place))
        for step in (1, -1):
            moved = np.where(place >= n, place + step, place)
            yield f"{away(step, 'place')} in the block table, from place {n} on", at(moved)
    for step in (*STEPS, 4, -4):
        yield f"{away(step, 'place')} in the block table", at(place + step)
    for n in (2, 3, 4, 5, 6, 7, 8, 12, 16, 32, 64):
        yield f"place t % {n} of the block table, t the place", at(place % n)
        yield f"place t // {n} of the block table, t the place", at(place // n)
        yield f"the first of each {n} places of the block table for all {n}", at(place // n * n)
        yield f"place min(t, {n - 1}) of the block table, t the place", at(np.minimum(place, n - 1))
        yield f"place t ^ {n} of the block table", at(place ^ n)
    inside = lambda moved: at(np.where((moved >= 0) & (moved < count), moved, place))
    for n in (1, 2, 3, 4, 6, 8):
        for step in (1, -1, 2, -2):
            of = f"those {away(step * n * size, 'key')} ({count_of(abs(step), 'tile')} of {n * size} keys)"
            words = f"in the pages of another tile, {of}; what has no such tile reads its own pages"
            within = place // n + step
            whole = (within >= 0) & (within <= (count - 1) // n)
            yield words, inside(place + step * n)
            yield words, at(np.where(whole, place + step * n, place))
            yield words, at(np.where(whole, np.minimum(place + step * n, count - 1), place))
