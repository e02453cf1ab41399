"""Visible sets of a kernel whose limits hold for a whole tile of rows or of keys, and cells of positions."""

from __future__ import annotations

import numpy as np

from refattn.oracle.imaging.features import of_row_tile

ROW_TILES = (2, 4, 8, 16, 32, 48, 64, 96, 128, 256)
TIE = 1e-5  # of tiles that say the same, the larger ones are taken
LARGE = 0.01  # what it costs that a tile of keys is larger than one of rows
FEW_ROWS, PAGE = 16, 500
MOVED = 0.01  # what it costs that a tile is moved back
LEAST_ROWS = 16  # of a tile, for its last one to be moved or some to be masked
KEY_TILES = (4, 8, 16, 32, 48, 64, 80, 96, 128, 256)


def key_tiles(view):
    """Sizes of tiles of keys that are tried; a page is one."""
    return KEY_TILES if view.pages is None else tuple(sorted({*KEY_TILES, view.page_size}))


def cells(view, rules):
    """Chunks of positions, or blocks of a block-local call, of another size or place, or more than one."""
    if rules.chunk is not None:
        visible = lambda seen: rules.visible(chunk=None) & seen
        yield from _cells(view, visible, "chunk", rules.chunk, view.position)
    if view.drawn_holes is not None:
        visible = lambda seen: rules.visible(holes=rules.unmasked & seen)
        yield from _cells(view, visible, "block", view.checked.block_size, view.row)


def _cells(view, visible, name, size, place):
    """`visible(seen)` are the visible keys where those of `seen` take the place of the row's own cell."""
    key = view.key
    yield f"{name}s are not applied", 0.0, visible(True)
    for other, words in (
        (size - 1, "one too few"),
        (size + 1, "one too many"),
        (size // 2, "half as many"),
        (size * 2, "twice as many"),
    ):
        if other > 0:
            words = f"{name}s have {other} keys, they should have {size} ({words})"
            yield words, 0.01, visible(key // other == place // other)
    count = max(-(-view.num_keys // size), 1)
    words = f"the size of {name}s is taken for their number: there are {size} of them"
    yield words, 0.01, visible(key // count == place // count)
    words = f"rows are grouped by position % {count}, not by position // {size} ({name}s)"
    yield words, 0.01, visible(key % count == place % count)
    for step, words in ((1, "late"), (-1, "early")):
        moved = (key - step) // size == (place - step) // size
        yield f"{name}s start one position too {words}", 0.01, visible(moved)
    for words, seen in _more_cells(name, key // size - place // size):
        yield words, 0.0, visible(seen)
    for words, seen in (*_windows(key, place, name, size), *_ends_of_cells(view, name, size, place)):
        yield words, 0.01, visible(seen)


def _more_cells(name, further):
    """`further` (B, 1, T, S) is how many cells the key's cell stands behind the row's own."""
    yield f"rows also see the {name} before their own", (further <= 0) & (further >= -1)
    yield f"rows also see the {name} behind their own", (further >= 0) & (further <= 1)
    yield f"rows see all {name}s up to their own", further <= 0
    yield f"rows see all {name}s from their own on", further >= 0


def _windows(key, place, name, size):
    before = place - key
    yield (
        f"a window of the last {size} keys is applied in place of {name}s",
        (before < size) & (before >= 0),
    )
    yield f"a window of {size} keys on either side is applied in place of {name}s", np.abs(before) < size


def _ends_of_cells(view, name, size, place):
    key, own, of_key = view.key, place // size, view.key // size
    length, first = view.of_sequences("length"), view.of_sequences("offset")
    whole = np.maximum(length // size, 1)
    yield f"the first key of the next {name} is seen too", (of_key == own) | (key == (own + 1) * size)
    yield f"the last key of each {name} is left out", (of_key == own) & (key % size != size - 1)
    yield (
        f"{name}s are counted back from the last key, not from key 0",
        (length - 1 - key) // size == (length - 1 - place) // size,
    )
    yield (
        f"{name}s are counted from the position of the first row, not from key 0",
        (key - first) // size == (place - first) // size,
    )
    yield (
        f"the last, short {name} is part of the one before",
        np.minimum(of_key, whole - 1) == np.minimum(own, whole - 1),
    )
    yield f"the last, short {name} is left out", (of_key == own) & (of_key < whole)


def tiles(view, rules):
    """A limit that holds for a whole tile of rows, or of keys."""
    count = view.num_rows + view.row.min()
    sizes = [size for size in ROW_TILES if size < count]
    if 1 < count <= FEW_ROWS:
        sizes.append(count)  # all rows are one tile
    keys = [tile for tile in key_tiles(view) if tile < view.num_keys]
    for size in sizes:
        for ends, moved in _ends_of_tiles(view, size):
            rows = f"{size} rows{moved}"
            if not moved:
                yield from _once_for_rows(rules, size, ends)
            for tile in keys if size >= LEAST_ROWS or not moved else ():
                likely = size + (PAGE if view.pages is not None and tile == view.page_size else tile)
                ways = []
                if rules.right is not None:
                    ways += [_last_tiles, _unmasked_tiles, *([_last_masked] if size >= LEAST_ROWS else [])]
                if rules.left is not None:
                    ways.append(_first_tiles)
                for way in ways:
                    for words, cost, visible in way(view, rules, rows, tile, ends):
                        yield words, cost + MOVED * bool(moved) - TIE * likely, visible
    if rules.chunk is not None:
        for size in sizes:
            yield from _chunks_of_rows(view, rules, size)
    for tile in keys:
        yield from _once_for_keys(view, rules, tile)


def _ends(view, size):
    """Positions (B, 1, T, 1) of the first and of the last row of each row's tile."""
    return [of_row_tile(view, view.position, size, which) for which in ("first", "last")]


def _ends_of_tiles(view, size):
    """The same, and words for tiles of which the last is moved back so that it is full."""
    yield _ends(view, size), ""
    rows = view.of_sequences("num_rows")
    if size < LEAST_ROWS or not ((rows > size) & (rows % size > 0)).any():
        return
    start = np.where(
        (view.row >= rows - size) & (rows > size) & (rows % size > 0), rows - size, view.row // size * size
    )
    first = start + view.position - view.row
    last = np.minimum(start + size, rows) - 1 + view.position - view.row
    yield [first, last], " (the last one moved back so that it is full)"


def _once_for_rows(rules, size, ends):
    for which, position in zip(("first", "last"), ends, strict=True):
        end = f"is taken once for every {size} rows, from the {which} of them"
        if rules.right is not None:
            yield f"the causal limit (right side) {end}", 0.005, rules.visible(right_position=position)
        if rules.left is not None:
            yield f"the left side of the window {end}", 0.005, rules.visible(left_position=position)


def _last_tiles(view, rules, size, tile, ends):
    """Loops over tiles of keys that end early or late."""
    first, last = (end + rules.right for end in ends)
    seen, of_key = rules.visible(), view.key // tile
    for words, stop in (
        (
            f"the last tile of {tile} keys is that of the first row of the tile of {size}: "
            "later rows lose the tiles behind it",
            first // tile + 1,
        ),
        (
            f"the loop over tiles of {tile} keys ends one tile early for a tile of {size}: "
            "the tile with the end of its last row is not visited",
            last // tile,
        ),
        (
            f"the number of tiles of {tile} keys is (position of the last row) / {tile} rounded up, "
            f"without + 1: a tile of {size} whose last row stands at a tile's first key loses that tile",
            -(-last // tile),
        ),
        (
            f"the number of tiles of {tile} keys is counted from the row numbers "
            f"of the tile of {size} without the offset",
            (last - view.of_sequences("offset")) // tile + 1,
        ),
    ):
        yield words, 0.015, seen & (of_key < stop)


def _unmasked_tiles(view, rules, size, tile, ends):
    """Tiles of keys across the diagonal that are taken for wholly visible."""
    first, last = ((end + rules.right) // tile for end in ends)
    rows = int(size.split()[0])
    seen, full, of_key = rules.visible(), rules.visible(right=None), view.key // tile
    yield (
        f"tiles of {tile} keys up to the position of the first row of the tile of {size} "
        "are taken for wholly visible and not masked",
        0.015,
        np.where(of_key <= first, full, seen),
    )
    yield (
        f"only the last tile of {tile} keys of a tile of {size} is masked; "
        "earlier ones that the diagonal crosses are taken for wholly visible",
        0.015 + LARGE * (tile > rows),
        np.where(of_key < last, full, seen),
    )
    yield (
        f"the tile of {tile} keys with the diagonal of the first row of the tile of {size} "
        "alone is masked; later ones are taken for wholly visible",
        0.02,
        np.where(of_key > first, full & (of_key <= last), seen),
    )


def _last_masked(view, rules, size, tile, ends):
    """A fixed number of last tiles of keys that are masked, whatever the diagonal crosses."""
    last = np.minimum(ends[1] + rules.right, rules.length - 1) // tile
    rows = int(size.split()[0])
    seen, full, of_key = rules.visible(), rules.visible(right=None), view.key // tile
    for count in (2, 3, 4, 5, 6, 8):
        yield (
            f"only the last {count} tiles of {tile} keys of a tile of {size} are masked; earlier ones that "
            "the diagonal crosses are taken for wholly visible",
            0.012 if count == -(-rows // tile) else 0.017,  # as many as a tile of rows has: the usual number
            np.where(of_key <= last - count, full, seen),
        )


def _first_tiles(view, rules, size, tile, ends):
    """Loops over tiles of keys that begin late, or whose first tile is not masked."""
    first, last = (end - rules.left for end in ends)
    seen, of_key = rules.visible(), view.key // tile
    of_rows = f"of a tile of {size}"
    for words, start in (
        (
            f"the first tile of {tile} keys is that of the last row's window in a tile of {size}: "
            "earlier rows lose their oldest keys",
            last // tile,
        ),
        (f"the first tile of {tile} keys {of_rows} is one too far", first // tile + 1),
        (f"the first tile of {tile} keys {of_rows} is rounded up", -(-first // tile)),
    ):
        yield words, 0.015, seen & (of_key >= start)
    yield (
        f"the left side of the window holds for whole tiles of {tile} keys only "
        f"(from the first row of the tile of {size}): keys before it in the first tile count",
        0.015,
        rules.visible(left=None) & (of_key >= first // tile),
    )


def _chunks_of_rows(view, rules, size):
    """Chunks of the first or last row of a tile that bound what the whole tile visits."""
    for which, position in zip(("first", "last"), _ends(view, size), strict=True):
        start = position // rules.chunk * rules.chunk
        row = f"the {which} row of the tile of {size} rows"
        lost = "are not visited: rows of that tile in"
        yield f"the chunk is that of {row}", 0.005, rules.visible(chunk_position=position)
        yield (
            f"keys before the chunk of {row} {lost} an earlier chunk lose them",
            0.01,
            rules.visible() & (view.key >= start),
        )
        yield (
            f"keys behind the chunk of {row} {lost} a later chunk lose them",
            0.01,
            rules.visible() & (view.key < start + rules.chunk),
        )
        own, open_chunks = view.position // rules.chunk * rules.chunk, rules.visible(chunk=None)
        for end, seen, others in (
            ("start", (view.key >= start) & (view.key < own + rules.chunk), "before"),
            ("end", (view.key >= own) & (view.key < start + rules.chunk), "behind"),
        ):
            yield (
                f"the {end} of the chunk is that of {row}, for all rows of the tile: rows past a border of "
                f"chunks see, or miss, keys {others} it",
                0.006,
                open_chunks & seen,
            )


def _once_for_keys(view, rules, tile):
    of_key, seen = view.key // tile, rules.visible()
    only = f"holds for whole tiles of {tile} keys only"
    if rules.right is not None:
        diagonal = (view.position + rules.right) // tile
        yield (
            f"the causal limit {only}: keys up to the end of the tile count",
            0.005,
            rules.visible(right=None) & (of_key <= diagonal),
        )
        yield f"the tile of {tile} keys with the diagonal is left out", 0.005, seen & (of_key != diagonal)
    if rules.left is not None:
        start = view.position - rules.left
        yield (
            f"the left side of the window {only}: keys from the start of the tile count",
            0.005,
            rules.visible(left=None) & (of_key >= start // tile),
        )
        yield (
            f"the first, partial tile of {tile} keys of the window is left out",
            0.005,
            seen & (of_key > (start - 1) // tile),
        )
