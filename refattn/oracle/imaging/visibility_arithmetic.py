"""Visible sets of chunks and windows that are computed with other arithmetic: bits, and rounded bounds."""

from __future__ import annotations

TILES = (8, 16, 32, 48, 64, 128)


def arithmetic(view, rules):
    """Chunks by bits of the position; windows whose start is counted in tiles; shifted chunks."""
    if rules.chunk is not None:
        yield from _chunks(view, rules)
    if rules.left is not None:
        yield from _windows(view, rules)


def _chunks(view, rules):
    size, key, place = rules.chunk, view.key, view.position
    visible = lambda seen: rules.visible(chunk=None) & seen
    power = 1 << (size - 1).bit_length()
    if size & (size - 1):
        note = f"right for powers of two only, and chunks have {size} keys"
        for words, same in (
            ("position & ~(chunk - 1)", (key & ~(size - 1)) == (place & ~(size - 1))),
            ("position & (chunk - 1)", (key & (size - 1)) == (place & (size - 1))),
            ("position & chunk", (key & size) == (place & size)),
            ("position ^ key < chunk", (key ^ place) < size),
            (f"position >> {power.bit_length() - 1}", key // power == place // power),
            (f"position >> {power.bit_length() - 2}", key // (power // 2) == place // (power // 2)),
        ):
            yield f"chunks are told apart by {words}, not by position // chunk: {note}", 0.0, visible(same)
    for step in range(2, size - 1):
        at = f"(at {step}, {step + size} ...)"
        words = f"chunks start {step} positions too late, or {size - step} too early {at}"
        yield words, 0.02, visible((key - step) // size == (place - step) // size)
    row = view.row
    yield (
        "the chunk of a row is that of its row number, without the offset",
        0.005,
        visible(key // size == row // size),
    )


def _windows(view, rules):
    left, key, place = rules.left, view.key, view.position
    open_left = rules.visible(left=None)
    for size in TILES:
        if size >= view.num_keys:
            return
        for words, seen in (
            (
                f"the window starts at the first tile of {size} keys that lies wholly in it",
                key // size >= -(-(place - left) // size),
            ),
            (
                f"the window is counted in tiles of {size} keys: it starts {left // size} tiles before "
                "the row's own",
                key // size >= place // size - left // size,
            ),
            (
                f"the window is counted in tiles of {size} keys: it starts {-(-left // size)} tiles before "
                "the row's own",
                key // size >= place // size - -(-left // size),
            ),
            (
                f"the window starts behind the tile of {size} keys that holds its first key",
                key // size > (place - left) // size,
            ),
        ):
            yield words, 0.01, open_left & seen
