"""Kernels that read keys and values at wrong addresses: the first answer says which are read in their place."""

import re

import numpy as np
import pytest

from refattn.oracle.imaging.blocks import blocks_in_words
from refattn.oracle.imaging.xray import xray

DIM = 16


def drawn(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def attend(query, key, value, visible):
    score = np.where(visible, query @ key.T * DIM**-0.5, -np.inf)
    weights = np.exp(score - score.max(-1, keepdims=True))
    return weights @ value / weights.sum(-1, keepdims=True)


def read(rows, at):
    """Rows of memory; 0 where there are none."""
    inside = (at >= 0) & (at < len(rows))
    return np.where(inside[:, None], rows[np.clip(at, 0, len(rows) - 1)], 0)


def dense(keys, values=None, kv_heads=3, num_rows=20, num_keys=72, causal=False):
    """A dense call; `keys` and `values` give the stored rows that a head reads for its keys."""
    arrays = (drawn(0, kv_heads, num_rows, DIM), *(drawn(n, kv_heads, num_keys, DIM) for n in (1, 2)))
    own = lambda head, j: head * num_keys + j
    keys, values = keys or own, values or keys

    def kernel(query, key, value, causal=False):
        j = np.arange(num_keys)
        seen = j <= np.arange(num_rows)[:, None] + num_keys - num_rows if causal else True
        pairs = [
            (read(key.reshape(-1, DIM), keys(h, j)), read(value.reshape(-1, DIM), values(h, j)))
            for h in range(kv_heads)
        ]
        return np.stack([attend(query[h], k, v, seen) for h, (k, v) in enumerate(pairs)])

    return kernel, arrays, {"causal": True} if causal else {}


def packed(stretch, causal=False, rows=(12, 7, 15), lengths=(22, 13, 30), heads=2):
    """A packed call; `stretch(sequence, row, lengths, starts)` gives the sequence whose place a row takes,
    where its keys begin, how many there are, and how many of them it sees at most.
    """
    cu_q, cu_kv = (np.cumsum([0, *counts]) for counts in (rows, lengths))
    arrays = (drawn(0, heads, cu_q[-1], DIM), *(drawn(n, heads, cu_kv[-1], DIM) for n in (1, 2)))
    options = {"cu_q": cu_q, "cu_kv": cu_kv} | ({"causal": True} if causal else {})

    def kernel(query, key, value, cu_q, cu_kv, **options):
        output = np.zeros_like(query)
        for h, i in np.ndindex(query.shape[:2]):
            b = int(np.searchsorted(cu_q, i, "right")) - 1
            n, start, count = stretch(b, i - cu_q[b], lengths, cu_kv)
            seen = i - cu_q[n] + lengths[n] - rows[n] if causal else count
            at = start + np.arange(count)
            output[h, i] = attend(
                query[h, i], read(key[h], at), read(value[h], at), np.arange(count) <= seen
            )
        return output

    return kernel, arrays, options


def paged(rows_of, lengths=(50, 19, 35), heads=2, size=8, pages=24):
    """A paged call; `rows_of(table, key, head, size, heads)` gives stored rows of keys and of values."""
    table = np.random.default_rng(5).permutation(pages)[: 3 * 8].reshape(3, 8)
    arrays = (drawn(0, 3, heads, 1, DIM), *(drawn(n, pages, heads, size, DIM) for n in (1, 2)))

    def kernel(query, key, value, block_table, kv_lengths):
        output = np.zeros_like(query)
        for b, h in np.ndindex(query.shape[:2]):
            k, v = rows_of(block_table, b, np.arange(kv_lengths[b]), h, size, heads)
            output[b, h] = attend(
                query[b, h], read(key.reshape(-1, DIM), k), read(value.reshape(-1, DIM), v), True
            )
        return output

    return kernel, arrays, {"block_table": table, "kv_lengths": np.array(lengths)}


def slot(page, head, at, size, heads):
    return (page * heads + head) * size + at


def at_pages(page_of):
    """Keys and values of other pages, each at its slot."""
    return lambda table, b, j, h, size, heads: (
        (slot(page_of(table, b, j // size), h, j % size, size, heads),) * 2
    )


def own(b, starts, count=None):
    return b, starts[b], (starts[b + 1] - starts[b]) if count is None else count


FAULTS = {
    "stride of key and value heads": (
        lambda: dense(lambda h, j: 60 * h + j),
        ("[Kk]eys and values", "heads 60 rows apart in memory, not 72"),
    ),
    "values two tiles further on": (
        lambda: dense(None, lambda h, j: np.where(j < 40, h * 72 + j + 32, h * 72 + j)),
        ("[Vv]alues", "32 keys further on", "keys 0 to 39"),
    ),
    "half of the last value tile is stale": (
        lambda: dense(None, lambda h, j: np.where(j >= 68, h * 72 + j - 48, h * 72 + j)),
        ("[Vv]alues", "48 keys further back", "keys 68 to 71"),
    ),
    "values of tiles in another order": (
        lambda: dense(
            None, lambda h, j: h * 72 + np.array([2, 1, 3, 0, 4])[j // 16] * 16 + j % 16, causal=True
        ),
        ("[Vv]alues of other tiles of 16 keys", "keys 0 to 15 take those of keys 32 to 47"),
    ),
    "keys and values of a tile moved back": (
        lambda: dense(lambda h, j: h * 72 + np.where(j >= 64, j - 24, j), causal=True),
        (
            "[Kk]eys 64 to 71 and their values are not read: those 24 keys further back count twice|24 keys further back",
        ),
    ),
    "key addresses wrap": (
        lambda: dense(lambda h, j: (h * 72 + j) % 128, lambda h, j: h * 72 + j),
        ("[Kk]eys are read from other places", "128 rows further back", "head 1, keys 56 to 71"),
    ),
    "tile of rows takes the sequence before": (
        lambda: packed(lambda b, i, n, starts: own(max(b - (i < 4), 0), starts), causal=True),
        (
            "[Kk]eys and values are those of the sequence before",
            "tile of 2 rows is at most 1|tile of 4 rows is the first|row is at most 3|rows 0 to 3|one of the first",
        ),
    ),
    "keys begin at a multiple of 8": (
        lambda: packed(lambda b, i, n, starts: (b, starts[b] // 8 * 8, starts[b + 1] - starts[b] // 8 * 8)),
        ("last keys of the sequence before", "6 in sequence 1, 3 in sequence 2", "multiple of 8"),
    ),
    "keys end at the end of a tile": (
        lambda: packed(
            lambda b, i, n, starts: own(b, starts, min(-(-n[b] // 16) * 16, starts[-1] - starts[b]))
        ),
        ("first keys of the next sequence", "10 in sequence 0, 3 in sequence 1", "tile of 16"),
    ),
    "all sequences before are seen": (
        lambda: packed(lambda b, i, n, starts: (b, 0, starts[b + 1])),
        ("all sequences before it",),
    ),
    "length of the next sequence": (
        lambda: packed(lambda b, i, n, starts: own(b, starts, n[min(b + 1, 2)])),
        ("length of the next sequence", "13 in place of 22"),
    ),
    "keys begin where query rows do": (
        lambda: packed(lambda b, i, n, starts: (b, (0, 12, 19)[b], n[b])),
        ("begins where its query rows begin",),
    ),
    "a table that is read in tiles": (
        lambda: paged(at_pages(lambda table, b, t: (table[b, t // 2 * 2] + t % 2) % 24)),
        ("consecutive physical pages within each tile of 16 keys",),
    ),
    "table of the next sequence": (
        lambda: paged(at_pages(lambda table, b, t: table[min(b + 1, 2), t])),
        ("pages of the next sequence",),
    ),
    "last page replaced by the first": (
        lambda: paged(at_pages(lambda table, b, t: np.where(t == t[-1], table[b, 0], table[b, t]))),
        ("first entry of the table where the last page",),
    ),
    "slots before heads": (
        lambda: paged(
            lambda table, b, j, h, size, heads: ((table[b, j // size] * size + j % size) * heads + h,) * 2
        ),
        (r"laid out as \(slots, heads\)",),
    ),
    "tail keys of the other head": (
        lambda: paged(
            lambda table, b, j, h, size, heads: (
                (slot(table[b, j // size], np.where(j > j[-1] - 3, 1 - h, h), j % size, size, heads),) * 2
            )
        ),
        (
            "Rows read other keys and values",
            "in sequence 0, head 0: its own keys 47 to 49 of head 1 in place of 47 to 49",
        ),
    ),
    "slot 0 for the whole last page": (
        lambda: paged(
            lambda table, b, j, h, size, heads: (
                (
                    slot(
                        table[b, j // size],
                        h,
                        np.where(j // size == j[-1] // size, 0, j % size),
                        size,
                        heads,
                    ),
                )
                * 2
            )
        ),
        ("count twice or more in their place", "keys 16 in place of 17 to 18"),
    ),
    "prefix of the first sequence": (
        lambda: paged(at_pages(lambda table, b, t: np.where(t < 2, table[0, t], table[b, t]))),
        ("those of sequence 0 in the first 2 pages",),
    ),
    "values of the next pages": (
        lambda: paged(
            lambda table, b, j, h, size, heads: (
                slot(table[b, j // size], h, j % size, size, heads),
                slot(table[b, np.minimum(j // size + 1, j[-1] // size)], h, j % size, size, heads),
            )
        ),
        ("[Vv]alues are in the pages of another tile", "8 keys further on"),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_first_answer_says_what_is_read(name):
    build, words = FAULTS[name]
    kernel, arrays, options = build()
    said = " ".join(xray(kernel, *arrays, **options).sentence.split())
    assert not [word for word in words if not re.search(word, said)], said


def test_blocks():
    key, column = (axis.ravel() for axis in np.indices((16, 16)))
    transposed = blocks_in_words(key, column, key // 8 * 8 + column % 8, column // 8 * 8 + key % 8)
    assert transposed == "blocks of 8 keys and 8 columns are read transposed"
    swizzled = blocks_in_words(key, column, key, column ^ ((key & 3) << 2))
    assert (
        swizzled == "bits 0 to 1 of the key number are added (XOR) to bits 2 to 3 of the column: a swizzle"
    )
    assert blocks_in_words(key, column, key[::-1], np.roll(column, 7)) == ""


def test_value_addresses_with_the_width_of_the_keys():
    _, (query, key, _), options = paged(at_pages(lambda table, b, t: table[b, t]))
    value = drawn(3, *key.shape[:-1], 8)

    def wrong(query, key, value, block_table, kv_lengths):
        heads, size, width = value.shape[1:]
        output = np.zeros((*query.shape[:-1], width), np.float32)
        rows = value.reshape(-1, width)
        for b, h in np.ndindex(query.shape[:2]):
            j = np.arange(kv_lengths[b])
            page, at = block_table[b, j // size], j % size
            read_at = ((page * heads + h) * size * (DIM // width) + at) % len(rows)
            output[b, h] = attend(query[b, h], key[page, h, at], rows[read_at], True)
        return output

    said = " ".join(xray(wrong, query, key, value, **options).sentence.split())
    assert said.startswith("Values are at addresses with 16 numbers a row (that of the keys), not 8"), said


def test_output_stored_in_exchanged_blocks():
    kernel, arrays, options = dense(lambda h, j: h * 72 + j)

    def wrong(*arrays, **options):
        right = kernel(*arrays, **options)
        blocks = right.reshape(3, 5, 4, 4, 4)
        return blocks.swapaxes(2, 4).reshape(right.shape)

    said = " ".join(xray(wrong, *arrays, **options).sentence.split())
    assert "rows and columns exchanged within each block of 4 rows and 4 columns" in said


def test_empty_rows_that_hold_the_query():
    kernel, (query, key, value), options = paged(
        at_pages(lambda table, b, t: table[b, t]), lengths=(20, 1, 35)
    )
    options["kv_lengths"] = np.array((20, 0, 35))

    def wrong(query, key, value, block_table, kv_lengths):
        output = kernel(query, key, value, block_table, np.maximum(kv_lengths, 1))
        output[kv_lengths == 0] = query[kv_lengths == 0]
        return output

    assert "hold their own query" in xray(wrong, query, key, value, **options).sentence
