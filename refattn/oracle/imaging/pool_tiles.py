"""Other tiles of keys and values of the same sequence and head, as buffers and rings of tiles mix them."""

from __future__ import annotations

import numpy as np

from refattn.oracle.imaging.factors_in_words import away, count_of
from refattn.oracle.imaging.maps import ranges
from refattn.oracle.imaging.place_words import ordinal
from refattn.oracle.imaging.pool import STEPS

TILES = (8, 16, 24, 32, 48, 64, 80, 96, 128)


def of_keys(pool, other, zero=False):
    """Slots of other keys (S,) or (B, S) of the same sequence and head; without one their own, or 0."""
    view, own = pool.view, pool.own
    other = np.broadcast_to(other, (len(view.sequences), view.num_keys))
    length = np.array([[s.length] for s in view.sequences])
    inside = (other >= 0) & (other < length)
    moved = np.take_along_axis(own, np.broadcast_to(np.where(inside, other, 0)[:, None], own.shape), -1)
    return np.where(inside[:, None], moved, pool.count if zero else own)


def other_tiles_read(pool):
    """Keys and values of other tiles, in all tiles or in some of them."""
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
                    if not (changed & (other >= 0) & (other < length)).any():
                        continue  # there are no such keys
                    words = f"those {away(distance, 'key')}{_as_tiles(distance)}{ends}"
                    which = (
                        ""
                        if where.startswith("all tiles") and "but" not in where
                        else f" ({where} of {size})"
                    )
                    yield f"{words}, {_of_which(changed)}{which}", of_keys(pool, other, zero), None


def _residues(tile):
    """Every second, third or fourth tile, as rings of buffers have it."""
    for count in (2, 3, 4):
        for rest in range(count):
            words = f"every {ordinal(count - 1)} tile, from tile {rest} on"
            yield words, tile % count == rest
            if not rest:
                yield (
                    f"every {ordinal(count - 1)} tile, from tile {count} on",
                    (tile % count == 0) & (tile > 0),
                )


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
    told = [f"{count_of(abs(distance) // size, 'tile')} of {size}" for size in sizes]
    return f" ({' or '.join(told)})" if told else ""


def _of_which(changed):
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
