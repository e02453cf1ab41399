"""Visible sets that are other ones: each rule of visibility read with another position, length, width, mask or tile.

A model gives the keys that a row would see. It explains a wrong visible set when it changes the pairs that are wrong, and no others.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refattn.oracle.xray.features import _of_row_tile
from refattn.oracle.xray.planes import planes_from_elsewhere

EXPLAINS = 0.94
ROW_TILES = (2, 4, 8, 16, 32, 48, 64, 96, 128, 256)
KEY_TILES = (4, 8, 16, 32, 48, 64, 80, 96, 128, 256)


def key_tiles(view):
    """Sizes of tiles of keys that are tried; a page is one."""
    return KEY_TILES if view.pages is None else tuple(sorted({*KEY_TILES, view.page_size}))


def explain_visibility(ledgers, missing, extra, judged=None):
    """(words, fit, pairs that it changes) of the best model, or None. `missing` and `extra` are (B, H, T, S)."""
    view = ledgers.view
    wrong = missing | extra
    judged = (ledgers.judged if judged is None else judged) & view.exists
    right = view.visible & ~_dropped(view)
    found = []
    for words, cost, visible in _models(view):
        change = (np.broadcast_to(visible, view.shape) != right) & judged
        union = (change | wrong).sum()
        fit = (change & wrong).sum() / max(union, 1)
        # a change must go the way it was seen to go
        fit -= ((change & missing & visible) | (change & extra & ~visible)).sum() / max(union, 1)
        if fit >= EXPLAINS:
            found.append((fit - cost, words, float(fit), change))
    if not found:
        return None
    worth, words, fit, change = max(found, key=lambda model: model[0])
    same = [
        other
        for value, other, _, others in found
        if other != words and value > worth - 0.02 and np.array_equal(change, others)
    ]
    return words + "".join(f"; or, which is the same here, {other}" for other in same[:2]), fit, change


def _dropped(view):
    return np.zeros(view.shape, bool) if view.dropped is None else view.dropped


class Rules:
    """The rules of a view, each with what it reads: positions (B, 1, T, 1), lengths (B, 1, 1, 1), widths."""

    def __init__(self, view):
        self.view = view
        rules = view.rules(0)
        self.left, self.right, self.chunk = rules.left, rules.right, rules.chunk
        self.length = view.of_sequences("length")
        self.position = view.position
        holes = np.ones(view.shape, bool)
        for what in ("mask", "bias"):
            hidden = view.hidden_by(what)
            if hidden is not None:
                holes &= ~hidden
        self.holes = holes & view.exists
        self.holes_without_blocks = self.holes
        if view.drawn_holes is not None:
            self.holes = self.holes & view.drawn_holes

    def visible(
        self,
        *,
        position=None,
        left_position=None,
        right_position=None,
        chunk_position=None,
        length=None,
        left="own",
        right="own",
        chunk="own",
        holes=None,
        dropped=None,
    ):
        view, key = self.view, self.view.key
        position = self.position if position is None else position
        of = lambda other: position if other is None else other
        length = self.length if length is None else length
        left, right, chunk = (
            own if given == "own" else given
            for given, own in ((left, self.left), (right, self.right), (chunk, self.chunk))
        )
        seen = (key < length) & (self.holes if holes is None else holes)
        if left is not None:
            seen = seen & (key >= of(left_position) - left)
        if right is not None:
            seen = seen & (key <= of(right_position) + right)
        if chunk is not None:
            seen = seen & (key // chunk == of(chunk_position) // chunk)
        return seen & ~(_dropped(view) if dropped is None else dropped)


def _models(view) -> Iterator:
    """(words, cost, visible keys)."""
    rules = Rules(view)
    yield from _positions(view, rules)
    yield from _widths(view, rules)
    yield from _cells(view, rules)
    yield from _lengths(view, rules)
    yield from _tiles(view, rules)
    yield from _holes(view, rules)


def _positions(view, rules):
    row, offset = view.row, view.of_sequences("offset")
    keys, rows, length = (view.of_sequences(name) for name in ("num_keys", "num_rows", "length"))
    others = {
        "counted from key 0, as if q_offset were 0 (top-left aligned)": row + 0 * offset,
        "that of the stored keys minus the rows (kv_len - q_len), not of the length": row + keys - rows,
        "that of the length minus the rows (bottom-right aligned)": row + length - rows,
        "one too far": view.position + 1,
        "one too little": view.position - 1,
        "never below 0 (the offset is cut off at 0)": row + np.maximum(offset, 0),
        "that of the longest sequence (largest length minus most rows)": row + length.max() - rows.max(),
        "that of the shortest sequence": row + length.min() - rows.min(),
        "that of the last row, for every row": np.broadcast_to(offset + rows - 1, view.position.shape),
        "that of the first row, for every row": np.broadcast_to(offset, view.position.shape),
        "that of the last key, for every row": np.broadcast_to(length - 1, view.position.shape),
        "counted twice (row + 2 * offset)": row + 2 * offset,
        "with the offset taken away, not added": row - offset,
    }
    for s in range(len(view.sequences)):
        if len(view.sequences) > 1:
            others[f"that of sequence {s} (its offset)"] = row + offset[s, 0, 0, 0]
    group = view.group_size
    head = view.heads.reshape(1, -1, 1, 1)
    if group > 1:
        others[
            "(row * group_size + head) of a tile that packs the heads of a group, not divided by the group size"
        ] = offset + row * group + head % group
        others["row // group_size: rows are divided by the group size where they should not be"] = (
            offset + row // group
        )
        for bits in range(1, 5):
            others[f"(row * group_size + head) >> {bits}: packed rows are divided by a power of two, not by the group size"] = offset + ((row * group + head % group) >> bits)
        packed = row + (head % group) * rows
        others[
            "(row + head * q_len) // group_size: packed heads and rows are unpacked in the wrong order"
        ] = offset + packed // group
        others[
            "(row * group_size + head) % q_len: packed heads and rows are unpacked in the wrong order"
        ] = offset + (row * group + head % group) % rows
    num = view.num_heads
    others["(row * num_heads + head) % q_len: packed heads and rows are unpacked in the wrong order"] = (
        offset + (row * num + head) % np.maximum(rows, 1)
    )
    others["(head * q_len + row) // num_heads: packed heads and rows are unpacked in the wrong order"] = (
        offset + (head * rows + row) // num
    )
    ends = [("", "position")]
    if sum(limit is not None for limit in (rules.left, rules.right, rules.chunk)) > 1:
        ends += [
            (f" for {name}", f"{side}_position")
            for side, name in (
                ("left", "the left side of the window"),
                ("right", "the causal limit (or right side of the window)"),
                ("chunk", "chunks"),
            )
            if getattr(rules, side) is not None
        ]
    for words, position in others.items():
        for which, argument in ends:
            yield (
                f"the position of a row{which} is {words}",
                0.01 + 0.005 * bool(which),
                rules.visible(**{argument: position}),
            )


def _widths(view, rules):
    if rules.left is not None:
        for step in (1, -1, 2, -2):
            if rules.left + step >= 0:
                yield (
                    f"the left side of the window is {rules.left + step}, it should be {rules.left} ({'off by one' if abs(step) == 1 else 'off by two'})",
                    0.0,
                    rules.visible(left=rules.left + step),
                )
        yield "the left side of the window is not applied", 0.0, rules.visible(left=None)
        yield (
            f"the right side of the window is that of the left, {rules.left}",
            0.0,
            rules.visible(right=rules.left),
        )
        if rules.right is None:
            yield (
                "the right side of the window is -1: rows do not see their own position and what is behind it",
                0.0,
                rules.visible(right=-1),
            )
        if rules.right is not None:
            yield (
                "the two sides of the window are exchanged",
                0.0,
                rules.visible(left=rules.right, right=rules.left),
            )
    if rules.right is not None:
        name = "the causal limit" if rules.right == 0 else "the right side of the window"
        yield f"{name} is not applied", 0.0, rules.visible(right=None)
        yield (
            f"{name} excludes the diagonal (off by one: key < position, not <=)",
            0.0,
            rules.visible(right=rules.right - 1),
        )
        for step in (1, 2, -2):
            yield (
                f"{name} reaches {abs(step)} {'key' if abs(step) == 1 else 'keys'} {'too far' if step > 0 else 'too little'}",
                0.0,
                rules.visible(right=rules.right + step),
            )
        if rules.right > 0:
            yield "the right side of the window is 0 (causal)", 0.0, rules.visible(right=0)
    if rules.right is None and rules.left is not None:
        yield "the window is causal, which was not asked for", 0.0, rules.visible(right=0)
    if rules.left is not None and rules.right is not None:
        yield "neither side of the window is applied", 0.0, rules.visible(left=None, right=None)
    if rules.left is None and rules.right is None:
        yield "a causal mask is applied that was not asked for", 0.0, rules.visible(right=0)
        yield (
            "a causal mask is applied that was not asked for, top-left aligned",
            0.01,
            rules.visible(right=0, position=view.row),
        )
    if rules.left is None:
        first = _first_used(view)
        for width in first:
            yield (
                f"a window of {width + 1} keys (left {width}) is applied that was not asked for",
                0.02,
                rules.visible(left=width),
            )


def _cells(view, rules):
    """Chunks of positions, and blocks of a block-local call: of another size, counted from elsewhere, or more than one."""
    kinds = []
    if rules.chunk is not None:
        kinds.append(("chunks", rules.chunk, lambda seen: rules.visible(chunk=None) & seen))
    if view.drawn_holes is not None:
        others = rules.holes_without_blocks
        kinds.append(("blocks", view.checked.block_size, lambda seen: rules.visible(holes=others & seen)))
    for name, size, visible in kinds:
        key, place = view.key, view.position if name == "chunks" else view.row
        yield f"{name} are not applied", 0.0, visible(True)
        for other, words in (
            (size - 1, "one too few"),
            (size + 1, "one too many"),
            (size // 2, "half as many"),
            (size * 2, "twice as many"),
        ):
            if other > 0:
                yield (
                    f"{name} have {other} keys, they should have {size} ({words})",
                    0.01,
                    visible(key // other == place // other),
                )
        count = -(-view.num_keys // size)
        longer = -(-view.num_keys // max(size, 1))
        yield (
            f"the size of {name} is taken for their number",
            0.01,
            visible(key // longer == place // longer)
            if size != longer
            else visible(key // -(-view.num_keys // size) == place // size),
        )
        sizes = -(-view.num_keys // size) if size else 1
        yield (
            f"there are {size} {name}: their size is taken for their number",
            0.01,
            visible(key // max(-(-view.num_keys // size), 1) == place // max(sizes, 1)),
        )
        yield (
            f"rows are grouped by position % {count}, not by position // {size} ({name})",
            0.01,
            visible(key % count == place % count),
        )
        for shift in (1, -1):
            yield (
                f"{name} start one position too {'late' if shift > 0 else 'early'}",
                0.01,
                visible((key - shift) // size == (place - shift) // size),
            )
        yield (
            f"rows also see the one of the {name} before their own",
            0.0,
            visible((place // size - key // size >= 0) & (place // size - key // size <= 1)),
        )
        yield (
            f"rows also see the one of the {name} behind their own",
            0.0,
            visible((key // size - place // size >= 0) & (key // size - place // size <= 1)),
        )
        yield f"rows see all {name} up to their own", 0.0, visible(key // size <= place // size)
        yield f"rows see all {name} from their own on", 0.0, visible(key // size >= place // size)
        yield (
            f"a window of the last {size} keys is applied in place of {name}",
            0.01,
            visible((place - key < size) & (key <= place)),
        )
        yield (
            f"a window of {size} keys on either side is applied in place of {name}",
            0.01,
            visible(np.abs(place - key) < size),
        )
        yield (
            f"the first key of the next of the {name} is seen too",
            0.01,
            visible((key // size == place // size) | (key == (place // size + 1) * size)),
        )
        yield (
            f"the last key of all {name} is left out",
            0.01,
            visible((key // size == place // size) & (key % size != size - 1)),
        )
        length, first = view.of_sequences("length"), view.of_sequences("offset")
        yield (
            f"{name} are counted back from the last key, not from key 0",
            0.01,
            visible((length - 1 - key) // size == (length - 1 - place) // size),
        )
        yield (
            f"{name} are counted from the position of the first row, not from key 0",
            0.01,
            visible((key - first) // size == (place - first) // size),
        )
        whole = np.maximum(length // size, 1)
        yield (
            f"the last, short one of the {name} is part of the one before",
            0.01,
            visible(np.minimum(key // size, whole - 1) == np.minimum(place // size, whole - 1)),
        )
        yield (
            f"the last, short one of the {name} is left out",
            0.01,
            visible((key // size == place // size) & (key // size < whole)),
        )


def _first_used(view):
    """Widths of windows that the measured weights might have."""
    return view.candidate_widths


def _lengths(view, rules):
    length, keys = rules.length, view.of_sequences("num_keys")
    others = {
        "is not looked at: keys past it count": keys,
        "is one too large": np.minimum(length + 1, keys),
        "is one too small: the last key is missing": length - 1,
        "is that of the first sequence for all": np.broadcast_to(length[:1], length.shape),
        "is that of the last sequence for all": np.broadcast_to(length[-1:], length.shape),
        "is that of the longest sequence for all": np.broadcast_to(length.max(), length.shape),
        "is that of the shortest sequence for all": np.broadcast_to(length.min(), length.shape),
        "is that of the next sequence": np.roll(length, -1, axis=0),
        "is that of the sequence before": np.roll(length, 1, axis=0),
    }
    for words, other in others.items():
        if (other != length).any():
            # positions are counted from the length by default: they may or may not move with it
            yield f"the length of the sequence {words}", 0.0, rules.visible(length=other)
            moved = rules.position + other - length
            yield (
                f"the length of the sequence {words} (and the position of its rows moves with it)",
                0.005,
                rules.visible(length=other, position=moved),
            )
    for size in key_tiles(view):
        down, up = length // size * size, np.minimum(-(-length // size) * size, keys)
        yield (
            f"the length is rounded down to a multiple of {size}: the last, partial tile of {size} keys is left out",
            0.005,
            rules.visible(length=down),
        )
        yield (
            f"the length is rounded up to a multiple of {size}: keys past it count",
            0.005,
            rules.visible(length=up),
        )
        yield (
            f"the last whole tile is left out where the length is a multiple of {size}",
            0.01,
            rules.visible(length=np.where(length % size == 0, np.maximum(length - size, 0), length)),
        )
    head = view.heads.reshape(1, -1, 1, 1)
    count = len(view.sequences)
    if count > 1:
        b = np.arange(count).reshape(-1, 1, 1, 1)
        flat = b * view.num_heads + head
        for words, index in (
            ("(b * num_heads + h) // num_kv_heads", flat // view.num_kv_heads),
            ("b * num_heads + h", flat),
            ("(b * num_heads + h) % batch", flat % count),
            ("h", head + 0 * b),
            ("h % batch", head % count + 0 * b),
            ("(b * num_kv_heads + h // group_size)", b * view.num_kv_heads + head // view.group_size),
        ):
            other = length[np.minimum(index, count - 1), 0, 0, 0]
            if (other != length).any():
                yield (
                    f"the length is that of sequence {words} (cut off at the last)",
                    0.01,
                    rules.visible(length=other),
                )
                yield (
                    f"the length is that of sequence {words} (cut off at the last), and so is the position of its rows",
                    0.015,
                    rules.visible(length=other, position=rules.position + other - length),
                )


def _tiles(view, rules):
    """A limit that holds for a whole tile of rows, or of keys."""
    for size in ROW_TILES:
        if size >= view.num_rows + view.row.min():
            continue
        for which in ("first", "last"):
            position = _of_row_tile(view, view.position, size, which)
            if rules.right is not None:
                yield (
                    f"the causal limit (right side) is taken once for every {size} rows, from the {which} of them",
                    0.005,
                    rules.visible(right_position=position),
                )
            if rules.left is not None:
                yield (
                    f"the left side of the window is taken once for every {size} rows, from the {which} of them",
                    0.005,
                    rules.visible(left_position=position),
                )
        for tile in key_tiles(view):
            if tile >= view.num_keys:
                continue
            first, last = (_of_row_tile(view, view.position, size, which) for which in ("first", "last"))
            seen = rules.visible()
            if rules.right is not None:
                for words, stop in (
                    (
                        f"the last tile of {tile} keys is that of the first row of the tile of {size} rows: later rows lose the tiles behind it",
                        (first + rules.right) // tile + 1,
                    ),
                    (
                        f"the loop over tiles of {tile} keys ends one tile early for a tile of {size} rows: the tile with the end of its last row is not visited",
                        (last + rules.right) // tile,
                    ),
                    (
                        f"the number of tiles of {tile} keys is (position of the last row) / {tile} rounded up, without + 1: a row tile of {size} whose last row stands at a tile's first key loses that tile",
                        -(-(last + rules.right) // tile),
                    ),
                    (
                        f"the number of tiles of {tile} keys is counted from the row numbers of the tile of {size} rows without the offset",
                        (last - view.of_sequences("offset") + rules.right) // tile + 1,
                    ),
                ):
                    yield words, 0.015, seen & (view.key // tile < stop)
                inner = view.key // tile < (first + rules.right) // tile + 1
                full = rules.visible(right=None)
                yield (
                    f"tiles of {tile} keys up to the position of the first row of the tile of {size} rows are taken for wholly visible and not masked",
                    0.015,
                    np.where((view.key // tile <= (first + rules.right) // tile), full, seen),
                )
                yield (
                    f"only the last tile of {tile} keys of a tile of {size} rows is masked; earlier ones that the diagonal crosses are taken for wholly visible",
                    0.015,
                    np.where(view.key // tile < (last + rules.right) // tile, full, seen),
                )
                yield (
                    f"the tile of {tile} keys with the diagonal of the first row of the tile of {size} rows alone is masked; later ones are taken for wholly visible",
                    0.02,
                    np.where(
                        view.key // tile > (first + rules.right) // tile,
                        full & (view.key // tile <= (last + rules.right) // tile),
                        seen,
                    ),
                )
                del inner
            if rules.left is not None:
                for words, start in (
                    (
                        f"the first tile of {tile} keys is that of the last row's window in a tile of {size} rows: earlier rows lose their oldest keys",
                        (last - rules.left) // tile,
                    ),
                    (
                        f"the first tile of {tile} keys of a tile of {size} rows is one too far",
                        (first - rules.left) // tile + 1,
                    ),
                    (
                        f"the first tile of {tile} keys of a tile of {size} rows is rounded up",
                        -(-(first - rules.left) // tile),
                    ),
                ):
                    yield words, 0.015, seen & (view.key // tile >= start)
                yield (
                    f"the left side of the window holds for whole tiles of {tile} keys only (from the first row of the tile of {size} rows): keys before it in the first tile count",
                    0.015,
                    rules.visible(left=None) & (view.key // tile >= (first - rules.left) // tile),
                )
    for size in ROW_TILES:
        if rules.chunk is not None and size < view.num_rows + view.row.min():
            for which in ("first", "last"):
                position = _of_row_tile(view, view.position, size, which)
                first = position // rules.chunk * rules.chunk
                yield f"the chunk is that of the {which} row of the tile of {size} rows", 0.005, rules.visible(chunk_position=position)
                yield f"keys before the chunk of the {which} row of the tile of {size} rows are not visited: rows of that tile in an earlier chunk lose them", 0.01, rules.visible() & (view.key >= first)
                yield f"keys behind the chunk of the {which} row of the tile of {size} rows are not visited: rows of that tile in a later chunk lose them", 0.01, rules.visible() & (view.key < first + rules.chunk)
    for tile in key_tiles(view):
        if tile >= view.num_keys:
            continue
        if rules.right is not None:
            yield (
                f"the causal limit holds for whole tiles of {tile} keys only: keys up to the end of the tile count",
                0.005,
                rules.visible(right=None) & (view.key // tile <= (view.position + rules.right) // tile),
            )
            yield (
                f"the tile of {tile} keys with the diagonal is left out",
                0.005,
                rules.visible() & (view.key // tile != (view.position + rules.right) // tile),
            )
        if rules.left is not None:
            yield (
                f"the left side of the window holds for whole tiles of {tile} keys only: keys from the start of the tile count",
                0.005,
                rules.visible(left=None) & (view.key // tile >= (view.position - rules.left) // tile),
            )
            yield (
                f"the first, partial tile of {tile} keys of the window is left out",
                0.005,
                rules.visible() & (view.key // tile > (view.position - rules.left - 1) // tile),
            )


def _holes(view, rules):
    """Masks, drawn by the caller, that are read elsewhere or not at all."""
    full = np.ones(view.shape, bool) & view.exists
    for name, words in (
        ("mask", "the mask"),
        ("bias", "the -inf of the bias"),
        ("dropout_mask", "the keep mask of dropout"),
    ):
        of_dropout = name == "dropout_mask"
        own = view.dropped if of_dropout else view.hidden_by(name)
        if own is None:
            continue
        others = [other for other in ("mask", "bias") if other != name and view.hidden_by(other) is not None]
        rest = full
        for other in others:
            rest = rest & ~view.hidden_by(other)

        def with_plane(plane, of_dropout=of_dropout, rest=rest):
            return rules.visible(dropped=plane) if of_dropout else rules.visible(holes=rest & ~plane)

        yield f"{words} is not applied", 0.0, with_plane(np.zeros_like(own))
        yield f"{words} is inverted", 0.0, with_plane(~own & view.exists)
        for where, plane in planes_from_elsewhere(view, name):
            hidden = ~plane.astype(bool) if name != "bias" else np.isneginf(plane)
            yield f"{words} is {where}", 0.02, with_plane(hidden)
        if of_dropout:
            continue
        for size in ROW_TILES:
            for tile in key_tiles(view):
                if (
                    size < view.num_rows
                    and tile < view.num_keys
                    and rules.right is None
                    and view.num_keys >= view.num_rows
                ):
                    first = _of_row_tile(view, view.position, size, "first")
                    yield (
                        f"{words} is not looked at in tiles of {tile} keys that lie wholly before the position of the first row of a tile of {size} rows",
                        0.02,
                        with_plane(own & (view.key // tile * tile + tile - 1 >= first)),
                    )
        for size in ROW_TILES:
            if size < view.num_rows:
                first = _of_row_tile(view, view.position, size, "first")
                yield (
                    f"{words} is not looked at for keys before the position of the first row of each tile of {size} rows",
                    0.015,
                    with_plane(own & (view.key >= first)),
                )
