"""MLA: other places at which the latents or the rope parts of the keys may be read, and other projections.

`Arrays` are those of a call in float64 with one batch axis. The latents count twice: keys and values are
made of the same ones, and a kernel may read them in two ways.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from refattn.oracle.arithmetic.formats import round_to
from refattn.oracle.imaging.elsewhere import other_numbers
from refattn.oracle.imaging.planes import other_key_places
from refattn.oracle.imaging.rounding import SHORT_FORMATS
from refattn.oracle.imaging.view import KV_LATENT, W_UK

ALIGNMENTS = (16, 32, 64, 128)  # numbers, to which the length of a row is rounded up
TILES = (16, 32, 64, 128)  # keys
PADDED = (4, 8, 16, 32, 64, 128)  # rows of a projection, to which those of a head are rounded up
ROPE_BASE = 10000.0
LARGEST = {"float8_e4m3fn": 448.0, "float8_e5m2": 57344.0}


class Arrays(NamedTuple):
    """Query parts (B, H, T, N or R); latents, also as the values see them, and rope parts of the keys,
    (B, S, C or R); projections (H, N or E, C).
    """

    q_nope: np.ndarray
    q_rope: np.ndarray
    key_latent: np.ndarray
    k_rope: np.ndarray
    w_uk: np.ndarray
    w_uv: np.ndarray
    value_latent: np.ndarray

    @classmethod
    def of(cls, view):
        arrays = [np.nan_to_num(np.asarray(array, np.float64)) for array in view.arrays]
        batched = [a.reshape(-1, *a.shape[-axes:]) for a, axes in zip(arrays, (3, 3, 2, 2))]
        return cls(*batched, *arrays[W_UK:], batched[KV_LATENT])


def other_readings(arrays) -> Iterator[tuple[str, Arrays]]:
    """Words for what is read elsewhere, and the arrays as they would be read."""
    latent, rope = arrays.key_latent, arrays.k_rope
    for words, read in other_places(latent, rope, "latent", "rope part"):
        yield (
            f"the latents of the values (not those of the keys) are {words}",
            arrays._replace(value_latent=read),
        )
    for words, read in other_places(rope, latent, "rope part", "latent"):
        yield f"the rope parts of the keys (k_rope) are {words}", arrays._replace(k_rope=read)
    for words, read in other_places(latent, rope, "latent", "rope part"):
        yield (
            f"the latents of the keys (not those of the values) are {words}",
            arrays._replace(key_latent=read),
        )
        changed = arrays._replace(key_latent=read, value_latent=read)
        yield f"the latents, of keys and values, are {words}", changed
    for (words, of_latent), (_, of_rope) in zip(_of_other_keys(latent), _of_other_keys(rope), strict=True):
        changed = arrays._replace(key_latent=of_latent, k_rope=of_rope)
        yield f"the keys (latents and rope parts; not the values) are {words}", changed
    for words, of_latent, of_rope in _whole_rows(latent, rope):
        changed = arrays._replace(key_latent=of_latent, value_latent=of_latent, k_rope=of_rope)
        yield f"cache rows (latent and rope part) are {words}", changed


def _whole_rows(latent, rope):
    """Words, latents and rope parts of cache rows that are read with another stride."""
    width, beside = latent.shape[-1], rope.shape[-1]
    for first, second, layout in (
        (latent, rope, f"[latent {width} | rope part {beside}]"),
        (rope, latent, f"[rope part {beside} | latent {width}]"),
    ):
        rows = np.concatenate([first, second], -1)
        whole, cut = rows.shape[-1], first.shape[-1]
        for stride in dict.fromkeys([*_rounded_up(whole), width, beside]):
            if stride != whole:
                told = f"{_strides_in_words(stride, whole, 0, 0)}: they are {layout}"
                for words, read in _read_at(rows, whole, told, stride, 0):
                    parts = read[..., :cut], read[..., cut:]
                    yield words, *(parts if first is latent else parts[::-1])


def other_places(own, partner, what, beside) -> Iterator[tuple[str, np.ndarray]]:
    """Words and `own` (B, S, X) as it may be read: at other keys or sequences, or with other strides in
    cache rows that hold `partner` (B, S, Y) beside it.
    """
    yield from _of_other_keys(own)
    yield from _in_cache_rows(own, partner, what, beside)


def _of_other_keys(own):
    count, num_keys = own.shape[:2]
    for words, key in other_key_places(num_keys):
        yield f"those of {words}", own[:, np.clip(key(np.arange(num_keys)), 0, num_keys - 1)]
    sequences = np.arange(count)
    for words, other in other_numbers(sequences, count, "sequence", sequences, letter="b"):
        yield f"those of {words}", own[other]


def _in_cache_rows(own, partner, what, with_it):
    """Rows [own | partner], or the other way round, read with another stride or from another column."""
    width, beside = own.shape[-1], partner.shape[-1]
    apart = np.concatenate([partner[..., ::2], partner[..., 1::2]], -1)  # as kernels may keep rope parts
    for right, rows, layout in (
        (0, np.concatenate([own, partner], -1), f"[{what} {width} | {with_it} {beside}]"),
        (beside, np.concatenate([partner, own], -1), f"[{with_it} {beside} | {what} {width}]"),
        (0, np.concatenate([own, apart], -1), f"[{what} {width} | {with_it} {beside}]"),
        (beside, np.concatenate([apart, own], -1), f"[{with_it} {beside} | {what} {width}]"),
        (0, own, ""),
    ):
        if not beside and layout:
            continue
        told = f" (cache rows are {layout})" if layout else ""
        whole = rows.shape[-1]
        strides = dict.fromkeys(
            [whole, width, beside, width + beside, *_rounded_up(whole), *_rounded_up(width)]
        )
        starts = dict.fromkeys([right, 0, width, beside, *_rounded_up(width), *_rounded_up(beside)])
        for stride in strides:
            for start in starts if layout else (0,):
                if (stride, start) != (whole, right) and start <= whole + max(ALIGNMENTS):
                    words = _strides_in_words(stride, whole, start, right) + told
                    yield from _read_at(rows, width, words, stride, start)
            if stride != whole:
                for tile in TILES:
                    words = _strides_in_words(stride, whole, right, right)
                    yield from _read_at(
                        rows, width, f"{words}, in each tile of {tile} keys{told}", stride, right, tile
                    )


def _rounded_up(number):
    return [-(-number // to) * to for to in ALIGNMENTS]


def _strides_in_words(stride, whole, start, right):
    words = []
    if stride != whole:
        words.append(f"with a stride of {stride} numbers from key to key, where it is {whole}")
    if start != right:
        words.append(f"from column {start} of a row on, where they begin at column {right}")
    return f"read {' and '.join(words)}"


def _read_at(rows, width, words, stride, start, tile=None):
    """Words, and `width` numbers a key of the memory of rows (B, S, W); what lies behind the last one is the
    first again, or 0.
    """
    count, num_keys, whole = rows.shape
    key = np.arange(num_keys)
    own = key * stride if tile is None else key // tile * tile * whole + key % tile * stride
    first = np.arange(count)[:, None] * num_keys * whole + own
    places = first[..., None] + start + np.arange(width)
    flat = rows.reshape(-1)
    read = flat[places % flat.size]
    yield words, read
    if places.max() >= flat.size:
        yield words, np.where(places < flat.size, read, 0.0)


def _head_strides(arrays):
    """Heads of a projection read with another distance from head to head."""
    for name, beside in (("w_uk", arrays.w_uv), ("w_uv", arrays.w_uk)):
        own = getattr(arrays, name)
        heads, dims, rank = own.shape
        flat = own.reshape(heads * dims, rank)
        for rows in dict.fromkeys(
            [beside.shape[1], dims + beside.shape[1], *(-(-dims // n) * n for n in PADDED)]
        ):
            if rows != dims:
                places = np.arange(heads)[:, None] * rows + np.arange(dims)
                words = f"{name} is read with {rows} rows from head to head, where there are {dims}"
                for behind in ("again", "0"):
                    read = flat[places % len(flat)]
                    if behind == "0":
                        read = np.where((places < len(flat))[..., None], read, 0.0)
                    yield words, arrays._replace(**{name: read})


def stored_otherwise(arrays) -> Iterator[tuple[str, Arrays]]:
    """Latents and rope parts in coarser formats, or divided by their root mean square."""
    latent, rope = arrays.key_latent, arrays.k_rope
    for words, change in _stored():
        of_latent, of_rope = change(latent), change(rope)
        for what, changed in (
            ("the latents, of keys and values,", {"key_latent": of_latent, "value_latent": of_latent}),
            ("the latents of the values (not those of the keys)", {"value_latent": of_latent}),
            ("the latents of the keys (not those of the values)", {"key_latent": of_latent}),
            ("the rope parts of the keys (k_rope)", {"k_rope": of_rope}),
            (
                "latents and rope parts",
                {"key_latent": of_latent, "value_latent": of_latent, "k_rope": of_rope},
            ),
        ):
            yield f"{what} are {words}", arrays._replace(**changed)


def _stored():
    for name in SHORT_FORMATS:
        yield f"rounded to {name}", lambda x, name=name: round_to(x, name)
        if largest := LARGEST.get(name):
            scaled = lambda step, x, name=name: round_to(x / step, name) * step
            for words, step in (
                ("one scale a key", lambda x, most=largest: np.abs(x).max(-1, keepdims=True) / most),
                ("one scale in all", lambda x, most=largest: np.abs(x).max() / most),
            ):
                change = lambda x, step=step, scaled=scaled: scaled(np.maximum(step(x), 1e-30), x)
                yield f"rounded to {name} with {words}", change
    step = lambda x: np.maximum(np.abs(x).max(-1, keepdims=True) / 127, 1e-30)
    yield "rounded to 8-bit integers with one scale a key", lambda x: np.rint(x / step(x)) * step(x)
    size = lambda x: np.sqrt((x * x).mean(-1, keepdims=True))
    yield (
        "divided by their root mean square (normalised once more)",
        lambda x: x / np.maximum(size(x), 1e-30),
    )


def turned_otherwise(arrays, positions, offsets) -> Iterator[tuple[str, Arrays]]:
    """Parts that are turned by rotary embedding at other positions, or that should not be turned.
    `positions` of the rows, (B, T), and `offsets`, (B,), of the first ones.
    """
    rope = arrays.k_rope.shape[-1]
    if rope % 2:
        return
    keys = np.broadcast_to(np.arange(arrays.k_rope.shape[1]), arrays.k_rope.shape[:2])
    rows, zero = positions[:, None], 0 * positions[:, None]
    for pairs, axis in (("components n and n + half", 0), ("components 2n and 2n + 1", 1)):
        told = f"(rotary embedding in pairs of {pairs})"
        for words, of_rows, of_keys in (
            ("turned by their positions once more", rows, keys),
            ("turned back by their positions: as if they were not turned", -rows, -keys),
        ):
            query = _turned(arrays.q_rope, of_rows, axis)
            yield f"the rope parts of the queries (q_rope) are {words} {told}", arrays._replace(q_rope=query)
            key = _turned(arrays.k_rope, of_keys, axis)
            yield f"the rope parts of the keys (k_rope) are {words} {told}", arrays._replace(k_rope=key)
        for words, away in (
            ("as of a position 1 further on (or k_rope of 1 before)", zero + 1),
            ("as of a position 1 before (or k_rope of 1 further on)", zero - 1),
            ("by the row number, not its position", zero - offsets[:, None, None]),
        ):
            query = _turned(arrays.q_rope, away, axis)
            yield f"q_rope is turned {words} {told}", arrays._replace(q_rope=query)
        for words, part in (("first", slice(0, rope)), ("last", slice(-rope, None))):
            if arrays.q_nope.shape[-1] >= rope:
                query = arrays.q_nope.copy()
                query[..., part] = _turned(query[..., part], rows, axis)
                words = f"q_nope is turned by its position in its {words} {rope} components {told}"
                yield words, arrays._replace(q_nope=query)


def _turned(x, positions, axis):
    half = x.shape[-1] // 2
    angle = positions[..., None] * ROPE_BASE ** (-np.arange(half) / half)
    a, b = (x[..., :half], x[..., half:]) if axis == 0 else (x[..., ::2], x[..., 1::2])
    pair = a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)
    return np.concatenate(pair, -1) if axis == 0 else np.stack(pair, -1).reshape(x.shape)


def other_projections(arrays) -> Iterator[tuple[str, Arrays]]:
    """Projections w_uk and w_uv that lie in one array, taken apart at another row or in another order."""
    w_uk, w_uv = arrays.w_uk, arrays.w_uv
    heads, nope, rank = w_uk.shape
    dims = w_uv.shape[1]
    joined = np.concatenate([w_uk, w_uv], 1)  # (H, N + E, C)
    told = f"of the joined projection of a head ({nope} rows of w_uk, then {dims} of w_uv)"
    for first in range(nope + dims):
        rows = np.roll(joined, -first, axis=1)
        if first != nope:
            where = f"rows {first} to {first + dims - 1} {told}; they are rows {nope} to {nope + dims - 1}"
            yield f"w_uv is taken from {where}", arrays._replace(w_uv=rows[:, :dims])
        if first:
            where = f"rows {first} to {first + nope - 1} {told}; they are rows 0 to {nope - 1}"
            yield f"w_uk is taken from {where}", arrays._replace(w_uk=rows[:, :nope])
    yield from _head_strides(arrays)
    other = np.concatenate([w_uv, w_uk], 1)
    words = "w_uk and w_uv of a head lie in one array in the other order (values first)"
    yield words, arrays._replace(w_uk=other[:, :nope], w_uv=other[:, nope:])
    flat = joined.reshape(-1, rank)
    apart = flat[: heads * nope].reshape(w_uk.shape), flat[heads * nope :].reshape(w_uv.shape)
    words = (
        "w_uk and w_uv lie in one array head by head, and are read as all heads of w_uk, then all of w_uv"
    )
    yield words, arrays._replace(w_uk=apart[0], w_uv=apart[1])
    flat = np.concatenate([w_uk.reshape(-1, rank), w_uv.reshape(-1, rank)]).reshape(heads, nope + dims, rank)
    words = "w_uk and w_uv lie in one array, first all heads of w_uk, and are read head by head"
    yield words, arrays._replace(w_uk=flat[:, :nope], w_uv=flat[:, nope:])
