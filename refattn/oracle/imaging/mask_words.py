"""Masks of one bit a pair that are packed in words, or kept by block, and read otherwise."""

from __future__ import annotations

import numpy as np

from refattn.oracle.imaging.planes import Plane

WORDS = (8, 16, 32, 64)
BLOCKS = (2, 4, 8, 16, 32, 64)


def masks_in_words(view, name):
    """Words for how a boolean mask may be read, and the mask as it would be read, (B, H, T, S)."""
    whole = [np.asarray(getattr(view.outline_of(n), name)).astype(bool) for n in range(len(view.sequences))]
    if any(array.ndim < 3 for array in whole):
        return
    plane = Plane(view, whole)
    if not plane.differs(3):
        return
    for size in WORDS:
        for words, change in (*_bit_orders(size), *_flat_bits(size), *_strides(size)):
            yield words, plane.of_arrays(lambda array, s, change=change: change(array))
    for size in BLOCKS:
        if size < view.num_keys:
            for words, change in _blocks(size):
                yield words, plane.of_arrays(lambda array, s, change=change: change(array))


def _taken(array, place):
    """A mask (H, T, S) at other keys (S,); what is past its end is 0, as the padding of a word is."""
    count = array.shape[-1]
    return array[..., np.minimum(place, count - 1)] & (place < count)


def _bit_orders(size):
    """Bits of a word, or bytes of it, in reverse order."""
    reverse = lambda j: j // size * size + size - 1 - j % size
    yield (
        f"read with the bits of each {size} keys in reverse order (key {size - 1} - n; what lies behind the "
        "last key is 0)",
        lambda array: _taken(array, reverse(np.arange(array.shape[-1]))),
    )

    def tail(array):
        j, count = np.arange(array.shape[-1]), array.shape[-1]
        start = count // size * size
        return array[..., np.where(j >= start, start + count - 1 - j, j)]

    yield f"read in reverse order in the last, partial {size} keys", tail

    def rest(array):
        j, count = np.arange(array.shape[-1]), array.shape[-1]
        return _taken(array, np.where(j >= count // size * size, reverse(j), j))

    yield f"read with the bits in reverse order in the last, partial word of {size} keys", rest

    def shifted(array):
        """The last word is read so that it ends with the last key."""
        j, count = np.arange(array.shape[-1]), array.shape[-1]
        start = count // size * size
        return array[..., np.where((j >= start) & (count > size), count - size + j - start, j)]

    yield f"read {size} keys from the end for the last, partial {size} keys", shifted
    if size > 8:
        yield (
            f"read with the bytes of each {size} bits in reverse order",
            lambda array: _taken(array, np.arange(array.shape[-1]) ^ (size - 8)),
        )


def _flat_bits(size):
    """Bits that are packed over the end of rows: word and bit of a flat index."""

    def read(array, place, whole):
        heads, rows, count = array.shape
        stored = array.reshape(1 if whole else heads, -1)
        flat = np.arange(heads * rows * count).reshape(array.shape) % stored.shape[1]
        index = place(flat, np.arange(count))
        of_head = 0 * index if whole else np.broadcast_to(np.arange(heads)[:, None, None], index.shape)
        return stored[of_head, np.minimum(index, stored.shape[1] - 1)] & (index < stored.shape[1])

    for whole, ends in ((False, "rows"), (True, "rows and heads")):
        of = f"of words of {size} bits that run over the ends of {ends}"
        yield (
            f"read in the right one {of}, at the bit key % {size}, not (row * keys + key) % {size}",
            lambda a, w=whole: read(a, lambda flat, key: flat // size * size + key % size, w),
        )
        yield (
            f"read with the bits in reverse order {of}",
            lambda a, w=whole: read(a, lambda flat, key: flat // size * size + size - 1 - flat % size, w),
        )


def _strides(size):
    """Rows of words that are taken to be shorter or longer than they are."""

    def read(array, stored, stride):
        heads, rows, count = array.shape
        flat = np.pad(array, ((0, 0), (0, 0), (0, stored - count))).reshape(heads, -1)
        place = np.arange(rows)[:, None] * stride + np.arange(count)
        return flat[:, np.minimum(place, flat.shape[1] - 1)] & (place < flat.shape[1])

    whole = lambda array: -(-array.shape[-1] // size) * size
    yield (
        f"read with a row stride of whole words of {size} keys, rounded down",
        lambda array: read(array, whole(array), array.shape[-1] // size * size),
    )
    yield (
        f"read with a row stride of the number of keys where rows hold whole words of {size} keys",
        lambda array: read(array, whole(array), array.shape[-1]),
    )
    yield (
        f"read with a row stride one word of {size} keys too long",
        lambda array: read(array, whole(array), whole(array) + size),
    )


def _blocks(size):
    """One bit for a block of rows and keys."""

    def reduced(array, rows, how):
        """Each block of `rows` x `size` as its first, any or all of its bits."""
        i, j = (np.arange(count) for count in array.shape[1:])
        if how == "first":
            return array[:, i // rows * rows][..., j // size * size]
        combine = np.logical_or if how == "any" else np.logical_and
        blocks = combine.reduceat(array, np.arange(0, array.shape[1], rows), axis=1)
        blocks = combine.reduceat(blocks, np.arange(0, array.shape[2], size), axis=2)
        return blocks[:, i // rows][..., j // size]

    for rows in (1, size):
        of = f"{size} keys" if rows == 1 else f"{rows} rows and {size} keys"
        yield f"that of the first pair of each block of {of}", lambda a, r=rows: reduced(a, r, "first")
        yield (
            f"open in a whole block of {of} where any pair of it is",
            lambda a, r=rows: reduced(a, r, "any"),
        )
        yield (
            f"open in a block of {of} only where all pairs of it are",
            lambda a, r=rows: reduced(a, r, "all"),
        )
    yield (
        f"that of the first row of each {size} rows",
        lambda a: a[:, np.arange(a.shape[1]) // size * size],
    )
