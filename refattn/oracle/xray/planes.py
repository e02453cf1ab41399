"""A drawn plane (bias, mask, keep mask) read at other places: another head, row, key, tile or sequence, or with axes exchanged."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

STEPS = (1, -1, 2, -2, 3, -3, 4, -4, 8, -8, 16, -16, 32, -32, 48, -48, 64, -64, 128, -128)
TILES = (8, 16, 32, 48, 64, 128)


def planes_from_elsewhere(view, name) -> Iterator[tuple[str, np.ndarray]]:
    """(words, the plane as it would be read there), each (B, H, T, S)."""
    whole = [np.asarray(getattr(view.outline_of(n), name)) for n in range(len(view.sequences))]
    if any(array is None or array.ndim < 3 for array in whole):
        return
    heads, keys = view.heads, view.key[0, 0, 0]

    def read(head=None, row=None, key=None, sequence=None):
        """The plane at other heads (H,), rows, keys or sequences; those are functions of their numbers."""
        pieces = []
        for n, s in enumerate(view.sequences):
            m = n if sequence is None else sequence(n)
            array = whole[m][view.sequences[m].entry]
            h = heads if head is None else head(heads)
            i = s.rows if row is None else row(s.rows)
            j = keys[: s.num_keys] if key is None else key(keys[: s.num_keys])
            limit = lambda index, axis: np.clip(index, 0, array.shape[axis] - 1)
            pieces.append(array[np.ix_(limit(h, 0), limit(i, 1), limit(j, 2))])
        return view._padded(pieces)

    num_heads, num_rows = view.num_heads, max(s.num_rows for s in view.sequences)
    differ = lambda axis: any(
        array.shape[axis] > 1 and (array != np.roll(array, 1, axis=axis)).any() for array in whole
    )
    if num_heads > 1 and differ(1):
        yield "that of head 0 for all heads", read(head=lambda h: 0 * h)
        yield "that of the next head", read(head=lambda h: h + 1)
        yield "that of the head before", read(head=lambda h: h - 1)
        yield (
            "that of the first head of its group",
            read(head=lambda h: h // view.group_size * view.group_size),
        )
        yield (
            "that of the head whose number is the key/value head's (h // group_size)",
            read(head=lambda h: h // view.group_size),
        )
        yield "that of head h % group_size", read(head=lambda h: h % view.group_size)
        yield "that of head h % num_kv_heads", read(head=lambda h: h % view.num_kv_heads)
        yield "that of the last head counted from the end", read(head=lambda h: num_heads - 1 - h)
    if len(view.sequences) > 1:
        yield "that of the first sequence for all", read(sequence=lambda n: 0)
        yield "that of the next sequence", read(sequence=lambda n: (n + 1) % len(view.sequences))
        yield "that of the sequence before", read(sequence=lambda n: (n - 1) % len(view.sequences))
    if num_rows > 1 and differ(2):
        yield "that of the first row for every row", read(row=lambda i: 0 * i)
        yield "that of the last row for every row", read(row=lambda i: 0 * i + num_rows - 1)
        yield "that of the rows in reverse order", read(row=lambda i: num_rows - 1 - i)
        for step in STEPS:
            if abs(step) < num_rows:
                yield (
                    f"that of the row {abs(step)} {'further on' if step > 0 else 'before'}",
                    read(row=lambda i, step=step: i + step),
                )
        for size in TILES:
            if size < num_rows:
                yield (
                    f"that of the row's place in the first tile of {size} rows",
                    read(row=lambda i, size=size: i % size),
                )
                yield (
                    f"that of the first row of its tile of {size} rows",
                    read(row=lambda i, size=size: i // size * size),
                )
                yield (
                    f"that of the tile of {size} rows before",
                    read(row=lambda i, size=size: np.where(i >= size, i - size, i)),
                )
        if any(array.shape[-1] == array.shape[-2] for array in whole):
            yield (
                "read transposed (rows and keys exchanged)",
                view._padded(
                    [
                        np.swapaxes(whole[n][s.entry], -1, -2)[np.ix_(s.heads, s.rows)]
                        for n, s in enumerate(view.sequences)
                        if whole[n].shape[-1] == whole[n].shape[-2]
                    ]
                )
                if all(a.shape[-1] == a.shape[-2] for a in whole)
                else read(),
            )
        yield (
            "read at the row's position in place of its row number",
            view._padded(
                [
                    whole[n][s.entry][np.ix_(s.heads, np.clip(s.rows + s.offset, 0, whole[n].shape[2] - 1))]
                    for n, s in enumerate(view.sequences)
                ]
            ),
        )
    if differ(3):
        yield "that of the first key for every key", read(key=lambda j: 0 * j)
        for step in STEPS:
            if abs(step) < view.num_keys:
                yield (
                    f"that of the key {abs(step)} {'further on' if step > 0 else 'before'}",
                    read(key=lambda j, step=step: j + step),
                )
        for size in TILES:
            if size < view.num_keys:
                yield (
                    f"that of the key's place in the first tile of {size} keys (every tile reads the first)",
                    read(key=lambda j, size=size: j % size),
                )
                yield (
                    f"that of the first key of its tile of {size} keys",
                    read(key=lambda j, size=size: j // size * size),
                )
                yield (
                    f"that of the tile of {size} keys before",
                    read(key=lambda j, size=size: np.where(j >= size, j - size, j)),
                )
                yield f"that of the tile of {size} keys behind", read(key=lambda j, size=size: j + size)
        for size in TILES:
            if size < view.num_keys:
                yield (
                    f"in the second half of each {size} keys that of the first half",
                    read(key=lambda j, size=size: j // size * size + j % (size // 2)),
                )
    for order, words in (
        ((1, 0, 2), "(rows, heads, keys)"),
        ((0, 2, 1), "(heads, keys, rows)"),
        ((2, 1, 0), "(keys, rows, heads)"),
        ((1, 2, 0), "(rows, keys, heads)"),
        ((2, 0, 1), "(keys, heads, rows)"),
    ):
        for back in (False, True):
            moved = [_reordered(array, order, back) for array in whole]
            yield (
                f"read as if its memory were {words}{', the other way round' if back else ''}",
                view._padded(
                    [moved[n][s.entry][np.ix_(s.heads, s.rows)] for n, s in enumerate(view.sequences)]
                ),
            )
    if num_rows > 1 and differ(3) and differ(2):
        for size in TILES:
            if size < max(num_rows, view.num_keys):
                yield (
                    f"that of the places in the first tile of {size} rows and {size} keys",
                    read(row=lambda i, size=size: i % size, key=lambda j, size=size: j % size),
                )
    # an array with axes of length 1, or of other lengths, read with wrong strides
    for n, s in enumerate(view.sequences[:1]):
        array = whole[n][s.entry]
        yield (
            "read at head + row (its row axis has length 1 but is given a stride of one head)",
            view._padded(
                [
                    whole[m][q.entry][
                        (heads[:, None] + q.rows[None]) % whole[m].shape[1],
                        0 * q.rows[None] + np.minimum(q.rows, whole[m].shape[2] - 1),
                    ]
                    for m, q in enumerate(view.sequences)
                ]
            ),
        )
        count, width = array.shape[-2], array.shape[-1]
        for size in TILES:
            padded = -(-width // size) * size
            if padded != width:
                flat = np.arange(count)[:, None] * padded + np.arange(width)
                yield (
                    f"read with rows of {padded} numbers where they have {width} (padded to {size})",
                    view._padded(
                        [
                            np.take(
                                whole[m][q.entry].reshape(whole[m].shape[1], -1),
                                np.minimum(flat, count * width - 1),
                                axis=1,
                            )[q.heads][:, q.rows]
                            for m, q in enumerate(view.sequences)
                            if whole[m].shape[-2:] == array.shape[-2:]
                        ]
                    )
                    if all(w.shape[-2:] == array.shape[-2:] for w in whole)
                    else read(),
                )


def _reordered(array, order, back):
    """Planes (N, H, T, S) whose memory is read with its axes in another order."""
    axes = (0, *(axis + 1 for axis in order))
    if back:
        shape = tuple(array.shape[axis] for axis in axes)
        return np.ascontiguousarray(np.ascontiguousarray(array).reshape(shape).transpose(np.argsort(axes)))
    return np.ascontiguousarray(array.transpose(axes)).reshape(array.shape)
