"""Other addresses of keys and values: wrong starts, strides, widths and axes of arrays, and cut numbers."""

from __future__ import annotations

import numpy as np

from refattn.oracle.imaging.factors_in_words import away
from refattn.oracle.imaging.maps import ranges
from refattn.oracle.imaging.pool import first_key, first_slot
from refattn.oracle.imaging.pool_tiles import of_keys
from refattn.oracle.imaging.view import KEY, QUERY, VALUE


def other_stretches(pool):
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
        start, first = int(read[0]), first_key(view, n)
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


def other_widths(pool):
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


def other_axes(pool):
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
        return f"read {away(values[0], 'row')} in memory"
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
    starts, rows = ([first_slot(view, n, which) for n in numbers] for which in (KEY, QUERY))
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


def wrapped_addresses(pool):
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
            words = f"those {away(step, 'key')} than their own{ends}"
            yield words, of_keys(pool, view.key[0, 0, 0] + step, zero), None
    for size in (16, 32, 64, 128, 256):
        if size < view.num_keys:
            yield f"those of key j % {size}", of_keys(pool, view.key[0, 0, 0] % size), None
