"""Values whose keys and columns are exchanged or permuted within blocks, as fragments and swizzles do."""

from __future__ import annotations

BLOCKS = (2, 4, 8, 16, 32, 64)
FITS = 0.97


def blocks_in_words(key, column, read_key, read_column):
    """Words for the rule that gives key and column of what was read from those that should be; "" without
    one. All arrays have one axis, of values that were read elsewhere.
    """
    for words, of_key, of_column in _rules(key, column):
        if ((of_key == read_key) & (of_column == read_column)).mean() >= FITS:
            return words
    return ""


def _rules(key, column):
    for size in BLOCKS:
        for wide in BLOCKS:
            exchanged = (
                key // size * size + column % size if size == wide else None,
                column // size * size + key % size,
            )
            if size == wide:
                yield f"blocks of {size} keys and {size} columns are read transposed", *exchanged
                continue
            flat = key % size * wide + column % wide
            words = f"blocks of {size} keys and {wide} columns are read in the other order (columns first)"
            yield words, key // size * size + flat % size, column // wide * wide + flat // size
            flat = column % wide * size + key % size
            words = f"blocks of {size} keys and {wide} columns, stored columns first, are read keys first"
            yield words, key // size * size + flat // wide, column // wide * wide + flat % wide
    for shift in range(5):
        for bits in (1, 2, 3):
            for place in range(6):
                mask = (1 << bits) - 1
                from_key = ((key >> shift) & mask) << place
                name = f"bit {shift}" if bits == 1 else f"bits {shift} to {shift + bits - 1}"
                at = f"bit {place}" if bits == 1 else f"bits {place} to {place + bits - 1}"
                swizzle = f"{name} of the key number are added (XOR) to {at} of the column: a swizzle"
                yield swizzle, key, column ^ from_key
                from_column = ((column >> shift) & mask) << place
                swizzle = f"{name} of the column are added (XOR) to {at} of the key number: a swizzle"
                yield swizzle, key ^ from_column, column
