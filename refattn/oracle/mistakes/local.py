"""Mistakes of block-local attention: where blocks begin, what a row sees beyond its own, and the
last, short block.
"""

from dataclasses import replace

import numpy as np

from refattn.calls.local import same_block
from refattn.oracle.mistakes.record import Mistake


def _sees(rule):
    """Another rule which keys a row sees: rule(rows, keys, block size, length)."""
    return lambda p: replace(p, sees=lambda rows, keys, p: rule(rows, keys, p.block_size, p.q_len))


def _block_size(change):
    return lambda p: replace(p, block_size=max(int(change(p.block_size, p.q_len)), 1))


def _last_start(size, length):
    return (length - 1) // size * size


def _joined_last(rows, keys, size, length):
    """The last, short block is part of the one before."""
    last = max(length // size - 1, 0)
    return np.minimum(rows // size, last) == np.minimum(keys // size, last)


def _last_shifted(rows, keys, size, length):
    """The last block is a whole one that ends with the sequence, and overlaps the one before."""
    return np.where(rows >= _last_start(size, length), keys >= length - size, rows // size == keys // size)


def _last_dropped(rows, keys, size, length):
    return (rows // size == keys // size) & (rows < length // size * size)


def _last_padded(p):
    """Keys of 0 fill up the last block and take part."""
    extra = -p.q_len % p.block_size
    more = lambda array, value: np.concatenate(
        [array, np.full((*array.shape[:-1], extra), value, array.dtype)], axis=-1
    )
    rows = lambda array: np.concatenate(
        [array, np.zeros((*array.shape[:-2], extra, array.shape[-1]), array.dtype)], axis=-2
    )
    planes = {
        name: None if getattr(p, name) is None else more(getattr(p, name), value)
        for name, value in (("bias", 0), ("mask", True), ("dropout_mask", True))
    }
    lengths = np.asarray(p.kv_lengths)
    return replace(
        p,
        key=rows(p.key),
        value=rows(p.value),
        kv_lengths=np.where(lengths == p.kv_len, lengths + extra, lengths),
        **planes,
    )


def _lengths_in_blocks(p):
    """kv_lengths is taken as the length of every block."""
    length = np.asarray(p.kv_lengths)[:, None, None, None]
    return replace(
        p,
        kv_lengths=np.full_like(p.kv_lengths, p.kv_len),
        sees=lambda rows, keys, p: same_block(rows, keys, p) & (keys % p.block_size < length),
    )


def _of_first_block(name):
    """Every block uses the mask or bias of the first."""

    def prepare(p):
        inside = np.arange(p.q_len) % p.block_size
        return replace(p, **{name: getattr(p, name)[..., inside[:, None], inside]})

    return prepare


def _block_local(id, says, needs, prepare, remedy=""):
    return Mistake(id, says, remedy, needs, prepare, form="local")


BLOCKS = ("several blocks",)
SHORT = ("several blocks", "short last block")
LOCAL = (
    _block_local(
        "blocks_ignored",
        "blocks are ignored: a row sees the keys of all of them",
        BLOCKS,
        _sees(lambda i, j, b, n: i == i + 0 * j),
        "attention without block_size",
    ),
    _block_local(
        "blocks_start_one_late",
        "every block starts one row late",
        BLOCKS,
        _sees(lambda i, j, b, n: (i + b - 1) // b == (j + b - 1) // b),
    ),
    _block_local(
        "blocks_start_one_early",
        "every block but the first starts one row early",
        BLOCKS,
        _sees(lambda i, j, b, n: (i + 1) // b == (j + 1) // b),
    ),
    _block_local(
        "block_sees_previous",
        "a row also sees the block before its own",
        BLOCKS,
        _sees(lambda i, j, b, n: (i // b == j // b) | (i // b == j // b + 1)),
    ),
    _block_local(
        "block_sees_next",
        "a row also sees the block after its own",
        BLOCKS,
        _sees(lambda i, j, b, n: (i // b == j // b) | (i // b == j // b - 1)),
    ),
    _block_local(
        "block_leaks_one",
        "a row also sees the first key of the next block",
        BLOCKS,
        _sees(lambda i, j, b, n: (i // b == j // b) | (j == (i // b + 1) * b)),
    ),
    _block_local(
        "block_last_key_dropped",
        "the last key of every block is dropped",
        BLOCKS,
        _sees(lambda i, j, b, n: (i // b == j // b) & (j % b != b - 1) & (j != n - 1)),
    ),
    _block_local(
        "block_is_window",
        "a sliding window of block_size keys on either side in place of blocks",
        BLOCKS,
        _sees(lambda i, j, b, n: np.abs(i - j) < b),
        "attention with window=(block_size - 1, block_size - 1)",
    ),
    _block_local(
        "block_is_stride",
        "rows are grouped by i % num_blocks (every n-th row) and not by i // block_size",
        BLOCKS,
        _sees(lambda i, j, b, n: i % -(-n // b) == j % -(-n // b)),
    ),
    _block_local(
        "block_size_is_count",
        "block_size is taken as the number of blocks",
        BLOCKS,
        _block_size(lambda b, n: -(-n // b)),
        "block_size=ceil(length / block_size)",
    ),
    _block_local(
        "block_size_one_more",
        "blocks are one row too long",
        BLOCKS,
        _block_size(lambda b, n: b + 1),
        "block_size + 1",
    ),
    _block_local(
        "block_size_one_less",
        "blocks are one row too short",
        BLOCKS,
        _block_size(lambda b, n: b - 1),
        "block_size - 1",
    ),
    _block_local(
        "last_block_joined",
        "the short last block is part of the one before (length // block_size blocks)",
        SHORT,
        _sees(_joined_last),
    ),
    _block_local(
        "last_block_shifted",
        "the last block is a whole one that overlaps the one before",
        SHORT,
        _sees(_last_shifted),
    ),
    _block_local(
        "last_block_dropped", "rows of the short last block see no key", SHORT, _sees(_last_dropped)
    ),
    _block_local(
        "last_block_padded",
        "the short last block is filled up with zero keys that take part in the softmax",
        SHORT,
        _last_padded,
        "hide keys past the length",
    ),
    _block_local(
        "block_lengths_inside",
        "kv_lengths is taken as the length of every block",
        ("several blocks", "lengths"),
        _lengths_in_blocks,
    ),
    _block_local(
        "block_bias_of_first",
        "every block uses the bias of the first",
        ("several blocks", "bias"),
        _of_first_block("bias"),
    ),
    _block_local(
        "block_mask_of_first",
        "every block uses the mask of the first",
        ("several blocks", "mask"),
        _of_first_block("mask"),
    ),
)
