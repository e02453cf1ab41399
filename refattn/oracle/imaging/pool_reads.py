"""Other places at which a kernel may read keys and values: one line for each way to a wrong address."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refattn.exact.visibility import row_bounds
from refattn.oracle.imaging.elsewhere import other_key_heads, other_sequences
from refattn.oracle.imaging.maps import describe_map, ranges
from refattn.oracle.imaging.pool import Reads
from refattn.oracle.imaging.view import KEY, QUERY, VALUE

TILES = (8, 16, 24, 32, 48, 64, 80, 96, 128)
WAYS = ("keys and values", "values", "keys")
STEPS = (1, -1, 2, -2, 3, -3)


def readings(pool, promising) -> Iterator[Reads]:
    """What may be read in place of a sequence's own keys and values, as far as `promising(value slots,
    visible)` says that it may be so.
    """
    keys_alone = promising(pool.own)
    for words, other, visible in (
        *_other_sequences(pool),
        *_other_heads(pool),
        *_other_pages(pool),
        *_stretches(pool),
        *_other_widths(pool),
        *_layouts(pool),
        *_wrapped(pool),
        *_other_tiles(pool),
    ):
        ways = [way for way in WAYS if way != "keys" and promising(other, visible)]
        ways += ["keys"] if keys_alone else []
        for what in ways if visible is None else ways[:1]:
            key, value = (other if name in what else pool.own for name in ("key", "value"))
            yield Reads(f"{what} are {words}", key, value, visible)


# contexts


def _other_sequences(pool):
    """Whole contexts: keys, values and length, with the row where it would stand in that sequence."""
    view = pool.view
    number = np.arange(len(view.sequences))
    there = np.array([s.length > 0 and s.num_rows > 0 for s in view.sequences])
    before = np.maximum.accumulate(np.where(there, number, 0))
    before = np.concatenate([[0], before[:-1]])
    ways = list(other_sequences(view, number))
    by_sequence = pool.of_other_sequences
    measured = np.where(by_sequence.any(-1), by_sequence.argmax(-1), number)
    ways.append(("another sequence", measured))
    if not there.all():
        ways.append(("the last sequence before it that has rows", before))
    for words, other in ways:
        moved = pool.own[other]
        listed = _listed(number, other)
        yield f"those of {words} ({listed})", moved, None
        for position, visible in _visible_of(pool, other):
            yield f"those of {words} ({listed}), as far as it is long{position}", moved, visible


def _listed(number, other, of=None):
    """What each number reads, where that is not `of` it."""
    own = number if of is None else of
    pairs = [
        f"{a} -> {b}" for a, b, right in zip(number.tolist(), other.tolist(), own.tolist()) if b != right
    ]
    return ", ".join(pairs[:8]) + (", ..." if len(pairs) > 8 else "")


def _visible_of(pool, other):
    """Keys that rows see in the other sequence (B, H, T, S), by the place that they are given in it."""
    view = pool.view
    first = np.array([_first_row(view, s) for s in view.sequences])
    rules = [(view.rules(m), view.sequences[m]) for m in other.tolist()]
    row = [view.row[n, 0, :, 0] for n in range(len(other))]
    ways = (
        ("", [r + s.offset for r, (_, s) in zip(row, rules)]),
        (" (rows keep their own position)", [view.position[n, 0, :, 0] for n in range(len(other))]),
        (
            ", as if its rows went on there",
            [r + first[n] - first[m] + rules[n][1].offset for n, (r, m) in enumerate(zip(row, other))],
        ),
    )
    seen = []
    for words, positions in ways:
        visible = np.zeros((len(other), 1, view.num_rows, view.num_keys), bool)
        for n, ((rule, s), position) in enumerate(zip(rules, positions)):
            start, stop = row_bounds(rule, position, s.length)
            visible[n, 0] = (start[:, None] <= view.key[0, 0]) & (view.key[0, 0] < stop[:, None])
        visible = np.where((other == np.arange(len(other))).reshape(-1, 1, 1, 1), view.visible, visible)
        if not any(np.array_equal(visible, before) for before in seen):
            seen.append(visible)
            yield words, visible


def _first_row(view, s):
    """Number of the first row of a sequence within a head, in the order of memory."""
    slots = view.slots[QUERY][s.part][s.entry]
    return int(slots[0, 0]) if slots.size else 0


def _other_heads(pool):
    view = pool.view
    by_head = pool.of_other_heads
    own = view.heads // view.group_size
    measured = np.where(by_head.any(-1), by_head.argmax(-1), own)
    changed = measured != own
    words, found = describe_map(own, measured, "key/value head", functions_of=(view.heads, "h"))
    ways = [(words if found else "another key/value head", measured)] if changed.any() else []
    for words, other in (*ways, *other_key_heads(view, view.heads)):
        moved = pool.own.copy()
        for n, s in enumerate(view.sequences):
            rows = view.slots[KEY][s.part][s.entry][other]
            moved[n, :, : rows.shape[1]] = rows
        listed = _listed(view.heads, other, of=view.heads // view.group_size)
        yield f"those of {words} (query head -> key/value head: {listed})", moved, None


# pages


def _other_pages(pool):
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
    first = np.array([_first_key(view, n) for n in range(len(view.sequences))])[:, None]
    place = key[None] // size
    count = np.array([[-(-s.length // size)] for s in view.sequences])
    at = lambda place, row=part: table[row, np.clip(place, 0, width - 1)]
    own = at(place)
    for words, pages in _of_places(place, first // size, count, size, at):
        yield words if words.startswith(("in ", "those ")) else f"read at {words}", slots(pages), None
    for words, other in other_sequences(view, np.arange(len(table))):
        listed = _listed(np.arange(len(table)), other)
        yield (
            f"read in the pages of {words} (by its row of the block table: {listed})",
            slots(table[other[part], np.clip(place, 0, width - 1)]),
            None,
        )
    yield from _in_other_layouts(pool, at, kv)
    for n in range(2, 13):
        yield f"in page p % {1 << n}: page numbers are cut to {n} bits", slots(own % (1 << n)), None
    for step in STEPS:
        yield f"{_away(step, 'page')} in the pool", slots(own + step), None
        yield f"{_away(step, 'page')} in the pool (round its end)", slots(own + step, wrap=True), None
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
                f"{_away(sign * step, 'row')} in memory (past the end of a page lie rows of the next head)"
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
        words = f"those of sequence 0 in the first {_count(n, 'page')} of every sequence (a shared prefix)"
        yield words, np.where(place < n, of_first, at(place))
        for step in (1, -1):
            moved = np.where(place >= n, place + step, place)
            yield f"{_away(step, 'place')} in the block table, from place {n} on", at(moved)
    for step in (*STEPS, 4, -4):
        yield f"{_away(step, 'place')} in the block table", at(place + step)
    for n in (2, 3, 4, 5, 6, 7, 8, 12, 16, 32, 64):
        yield f"place t % {n} of the block table, t the place", at(place % n)
        yield f"place t // {n} of the block table, t the place", at(place // n)
        yield f"the first of each {n} places of the block table for all {n}", at(place // n * n)
        yield f"place min(t, {n - 1}) of the block table, t the place", at(np.minimum(place, n - 1))
        yield f"place t ^ {n} of the block table", at(place ^ n)
    inside = lambda moved: at(np.where((moved >= 0) & (moved < count), moved, place))
    for n in (1, 2, 3, 4, 6, 8):
        for step in (1, -1, 2, -2):
            of = f"those {_away(step * n * size, 'key')} ({_count(abs(step), 'tile')} of {n * size} keys)"
            words = f"in the pages of another tile, {of}; what has no such tile reads its own pages"
            within = place // n + step
            whole = (within >= 0) & (within <= (count - 1) // n)
            yield words, inside(place + step * n)
            yield words, at(np.where(whole, place + step * n, place))
            yield words, at(np.where(whole, np.minimum(place + step * n, count - 1), place))


def _first_key(view, n):
    seen = view.visible[n].any((0, 1))
    return int(seen.argmax())


def _away(step, what):
    some = "one" if abs(step) == 1 else str(abs(step))
    return f"{some} {what}{'s' * (abs(step) > 1)} {'further on' if step > 0 else 'further back'}"


# memory


def _stretches(pool):
    """Stretches of memory of the right length that begin elsewhere, as the measured weights show."""
    view, starts = pool.view, {}
    if view.pages is not None:
        return
    moved = pool.own.copy()
    for n, h in np.ndindex(moved.shape[:2]):
        length = view.sequences[n].num_keys
        if length < 2:
            continue
        step = int(moved[n, h, 1] - moved[n, h, 0])
        read = np.flatnonzero((pool.weights[n, h] > pool.measured.floor[n, h]).any(0))
        if step <= 0 or not len(read):
            continue
        start, first = int(read[0]), _first_key(view, n)
        starts[n, h] = start - first * step - int(moved[n, h, 0]), step
        moved[n, h, :length] = np.clip(moved[n, h, :length] + starts[n, h][0], -1, pool.count)
    if any(delta for delta, _ in starts.values()):
        words = starts_in_words(pool, starts)
        clipped = np.clip(moved, 0, pool.count - 1)
        yield f"{words}", np.where(moved < 0, pool.count, moved), None
        yield (
            f"{words} (rows past the end are its last row)",
            np.where(pool.own < pool.count, clipped, pool.count),
            None,
        )


def _other_widths(pool):
    """Addresses made with the row width of another array, or a padded one, in some of the strides."""
    view = pool.view
    own_width, key_width = (np.shape(view.arrays[which])[-1] for which in (VALUE, KEY))
    shape = np.shape(view.arrays[VALUE])[:-1]
    padded = {-(-width // unit) * unit for width in (own_width, key_width) for unit in (32, 64, 128)}
    places = np.unravel_index(np.minimum(pool.own, pool.count - 1), shape)
    rows = [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
    for width in sorted({key_width, *padded} - {own_width}):
        whose = " (that of the keys)" if width == key_width else ""
        for first in range(len(shape)):
            for last in range(first + 1, len(shape) + 1):
                strides = [n * (width if first <= a < last else own_width) for a, n in enumerate(rows)]
                address = sum(place * stride for place, stride in zip(places, strides))
                if (address % own_width).any():
                    continue
                axes = _axes_in_words(view, range(first, last))
                of = f"{width} numbers a row{whose}, not {own_width}"
                words = f"at addresses with {of}, in the strides of {axes}"
                at = address // own_width
                for ends, moved in (
                    ("", np.where(at < pool.count, at, pool.count)),
                    (", round the end of memory", at % pool.count),
                    (", as far as memory reaches", np.minimum(at, pool.count - 1)),
                ):
                    yield words + ends, np.where(pool.own < pool.count, moved, pool.count), None


def _axes_in_words(view, axes):
    names = list(view.checked.form.arrays.values())[VALUE].split()[:-1]
    names = names[-(np.ndim(view.arrays[VALUE]) - 1) :]
    names = [names[axis].replace("_", " ") + "s" for axis in axes if axis < len(names)]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _layouts(pool):
    """Arrays without pages that are read with heads and rows exchanged."""
    view = pool.view
    heads, kv = view.num_kv_heads, (view.heads // view.group_size)[:, None]
    if view.pages is not None or heads == 1:
        return
    moved = pool.own.copy()
    for n, s in enumerate(view.sequences):
        slots = view.slots[KEY][s.part][s.entry]
        if not slots.size:
            continue
        first = int(slots[0, 0])
        dense = view.checked.form.name == "dense"
        base, start = (first, 0) if dense else (0, first)
        moved[n, :, : s.num_keys] = base + (start + np.arange(s.num_keys)) * heads + kv
    moved = np.where(pool.own < pool.count, np.clip(moved, 0, pool.count - 1), pool.count)
    yield "read as if memory were (length, heads, dim) in place of (heads, length, dim)", moved, None


def starts_in_words(pool, starts):
    """Words for stretches of memory that begin some rows from where they should."""
    view = pool.view
    kv, what = view.heads // view.group_size, "head"
    if any(
        delta != starts.get((n, h - 1), (delta,))[0] and kv[h] == kv[h - 1]
        for (n, h), (delta, _) in starts.items()
    ):
        kv, what = view.heads, "query head"
    deltas = {(n, int(kv[h])): delta for (n, h), (delta, _) in starts.items()}
    values = sorted(set(deltas.values()))
    if len(values) == 1:
        return f"read {_away(values[0], 'row')} in memory"
    by_head, by_sequence = _one_each(deltas, 1), _one_each(deltas, 0)
    if by_head and len(by_head) > 1:
        steps = {delta // k for k, delta in by_head.items() if k} if not by_head.get(0, 1) else set()
        even = len(steps) == 1 and all(delta == k * max(steps) for k, delta in by_head.items())
        if even:
            own = _head_stride(view)
            stride = own + max(steps)
            return (
                f"read with heads {stride} rows apart in memory, not {own}{_named_rows(view, stride)}, "
                "so that key/value heads begin "
                + ", ".join(f"{_signed(d)} (head {k})" for k, d in sorted(by_head.items())[:4])
                + " rows from their place"
            )
        return f"read in memory at other places: {_deltas(by_head, what)}"
    if by_sequence and len(by_sequence) > 1:
        named = _named_starts(view, by_sequence)
        return f"read in memory at other places: {_deltas(by_sequence, 'sequence')}{named}"
    listed = ", ".join(
        f"{_signed(delta)} rows for sequence {n} and head {k}"
        for (n, k), delta in sorted(deltas.items())[:6]
        if delta
    )
    return f"read in memory at other places: {listed}"


def _deltas(deltas, what):
    """Distances by head or sequence, those of the same distance together."""
    of = {}
    for number, delta in sorted(deltas.items()):
        if delta:
            of.setdefault(delta, []).append(number)
    told = [f"{_signed(delta)} rows for {what} {ranges(numbers)}" for delta, numbers in of.items()]
    return ", ".join(told[:8]) + (", ..." if len(told) > 8 else "")


def _named_starts(view, deltas):
    """What the wrong start of each sequence is, in words; "" where it is nothing known."""
    numbers = range(len(view.sequences))
    starts, rows = ([_start(view, n, which) for n in numbers] for which in (KEY, QUERY))
    read = [start + deltas.get(n, 0) for n, start in enumerate(starts)]
    longest = max(s.num_keys for s in view.sequences)
    before = np.cumsum([0, *(s.length for s in view.sequences[:-1])])
    for words, other in (
        ("where its query rows begin in theirs", rows),
        ("where the sequence before begins", [starts[max(n - 1, 0)] for n in range(len(starts))]),
        ("where the next sequence begins", [*starts[1:], starts[-1]]),
        ("at the first sequence", [starts[0]] * len(starts)),
        ("after the lengths of those before it, not at its own start", [starts[0] + n for n in before]),
        ("at n times the length of the longest sequence", [n * longest for n in range(len(starts))]),
    ):
        if all(a == b or not deltas.get(n) for n, (a, b) in enumerate(zip(read, other))):
            return f" (each begins {words})"
    return ""


def _start(view, n, which):
    """Where a sequence begins within a head, in the order of memory."""
    s = view.sequences[n]
    slots = view.slots[which][s.part][s.entry]
    return int(slots[0, 0]) if slots.size else 0


def _signed(delta):
    return f"{delta:+d}" if delta else "0"


def _one_each(deltas, axis):
    """The one number of each head (axis 1) or sequence (axis 0), where it has no other; else nothing."""
    found = {}
    for place, delta in deltas.items():
        if found.setdefault(place[axis], delta) != delta:
            return None
    return found


def _head_stride(view):
    slots = view.slots[KEY][view.sequences[0].part][view.sequences[0].entry]
    return int(slots[1, 0] - slots[0, 0]) if len(slots) > 1 else 0


def _named_rows(view, stride):
    """What a kernel may take for the number of rows of keys."""
    s = view.sequences[0]
    query = view.slots[QUERY][s.part][s.entry]
    names = {int(query[1, 0] - query[0, 0]): "the number of rows of the query"} if len(query) > 1 else {}
    names |= {max(s.num_keys for s in view.sequences): "the length of the longest sequence"}
    own = _head_stride(view)
    names |= {-(-own // size) * size: f"padded to {size}" for size in (8, 16, 32, 64, 128) if own % size}
    return f" ({names[stride]})" if stride in names else ""


def _wrapped(pool):
    """Addresses that are cut to some bits, or that stop at the end of something."""
    view, own = pool.view, pool.own
    array = np.asarray(view.arrays[KEY])
    width, there = array.shape[-1], own < pool.count
    first = own[..., :1]
    for bits in (8, 12, 15, 16):
        for unit, size in (("elements", width), ("bytes", width * array.itemsize), ("rows", 1)):
            rows = (1 << bits) / size
            if rows != int(rows) or not 1 < rows < pool.count:
                continue
            rows = int(rows)
            words = f"at addresses cut to {bits} bits ({unit}; they begin again every {rows} rows of memory)"
            yield words, np.where(there, own % rows, pool.count), None
            inside = np.minimum(first + (own - first) % rows, pool.count)
            yield f"{words}, counted within the head", np.where(there, inside, pool.count), None
    for step in (1, -1, 2, -2, 3, -3, 4, -4):
        for zero in (False, True):
            ends = "; 0 where there is none" if zero else ""
            words = f"those {_away(step, 'key')} than their own{ends}"
            yield words, _of_keys(pool, view.key[0, 0, 0] + step, zero), None
    for size in (16, 32, 64, 128, 256):
        if size < view.num_keys:
            yield f"those of key j % {size}", _of_keys(pool, view.key[0, 0, 0] % size), None


# tiles of the same sequence


def _of_keys(pool, other, zero=False):
    """Slots of other keys (S,) or (B, S) of the same sequence and head; without one their own, or 0."""
    view, own = pool.view, pool.own
    other = np.broadcast_to(other, (len(view.sequences), view.num_keys))
    length = np.array([[s.length] for s in view.sequences])
    inside = (other >= 0) & (other < length)
    moved = np.take_along_axis(own, np.broadcast_to(np.where(inside, other, 0)[:, None], own.shape), -1)
    return np.where(inside[:, None], moved, pool.count if zero else own)


def _other_tiles(pool):
    view, key = pool.view, pool.view.key[0, 0, 0][None]
    length = np.array([[s.length] for s in view.sequences])
    seen = set()
    for size in TILES:
        if size >= view.num_keys:
            continue
        tile, last = key // size, (length - 1) // size
        rest = length - last * size
        places = (
            ("all tiles", tile >= 0),
            ("the first tile", tile == 0),
            ("the last tile", tile == last),
            ("all tiles but the first", tile > 0),
            ("all tiles but the last", tile < last),
            ("all tiles but the last two", tile < last - 1),
            ("the second half of the last tile", (tile == last) & (key % size >= rest // 2)),
            ("the last tile but one", tile == last - 1),
            ("the second half of each tile", key % size >= size // 2),
            ("the first half of each tile", key % size < size // 2),
            *_residues(tile),
        )
        for step in STEPS:
            distance = step * size
            round_the_end = (tile + step) % (last + 1) * size + key % size
            ways = [(where, np.where(inside, key + distance, key)) for where, inside in places]
            if abs(step) == 1:
                before = _of_head_before(pool, tile, last, size)
                if before is not None:
                    yield (
                        f"in the first tile of {size}, those of the last tile of the head before",
                        before,
                        None,
                    )
            ways.append(("all tiles (and round the end)", np.where(key < length, round_the_end, key)))
            for where, other in ways:
                if (same := other.tobytes()) in seen:
                    continue
                seen.add(same)
                for zero in (False, True):
                    ends = " (0 where there are none)" if zero else ""
                    changed = (other != key) & (key < length) & (zero | (other >= 0) & (other < length))
                    words = f"those {_away(distance, 'key')}{_as_tiles(distance)}{ends}"
                    which = (
                        ""
                        if where.startswith("all tiles") and "but" not in where
                        else f" ({where} of {size})"
                    )
                    yield f"{words}, {_of_which(changed, view)}{which}", _of_keys(pool, other, zero), None


def _residues(tile):
    """Every second, third or fourth tile, as rings of buffers have it."""
    for count in (2, 3, 4):
        for rest in range(count):
            words = f"tiles whose number is {rest} modulo {count}"
            yield words, tile % count == rest
            if not rest:
                yield f"{words}, but the first", (tile % count == 0) & (tile > 0)


def _of_head_before(pool, tile, last, size):
    """The first tile of each head replaced by the last one of the key/value head before."""
    view, key = pool.view, pool.view.key[0, 0, 0]
    kv = view.heads // view.group_size
    if view.num_kv_heads < 2 or size >= view.num_keys:
        return None
    place = {int(k): n for n, k in enumerate(kv)}
    before = pool.own[:, [place.get(int(k) - 1, n) for n, k in enumerate(kv)]]
    at = np.clip(last * size + key % size, 0, view.num_keys - 1)
    read = np.take_along_axis(before, np.broadcast_to(at[:, None], before.shape), -1)
    return np.where((tile == 0)[:, None] & (kv > 0)[None, :, None] & (pool.own < pool.count), read, pool.own)


def _as_tiles(distance):
    """96 as "2 tiles of 48, 3 tiles of 32"."""
    sizes = [size for size in (128, 96, 80, 64, 48, 32, 16) if distance % size == 0 and size >= 16][:3]
    told = [f"{_count(abs(distance) // size, 'tile')} of {size}" for size in sizes]
    return f" ({' or '.join(told)})" if told else ""


def _count(number, what):
    return f"{number} {what}{'s' * (number != 1)}"


def _of_which(changed, view):
    """Keys (B, S) in words."""
    told = {}
    for n, of in enumerate(changed):
        if of.any():
            told.setdefault(ranges(np.flatnonzero(of).tolist()), []).append(n)
    words = [
        f"for keys {keys}" + ("" if len(told) == 1 else f" of sequence {ranges(ns)}")
        for keys, ns in told.items()
    ]
    return ", ".join(words[:4]) + (", ..." if len(words) > 4 else "")
