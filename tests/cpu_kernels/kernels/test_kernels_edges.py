"""What the kernels read and write beyond the last key and row stays within the padding: memory ends at a
page that may not be touched.

Each case is a process of its own, because an access beyond the edge kills it: `python
tests/cpu_kernels/kernels/test_kernels_edges.py scratch`.
"""

import ctypes
import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import CASES
from kernel_checks import assert_right

from cpu_kernels import attention, num_threads
from cpu_kernels.compiler.jit import driver
from cpu_kernels.kernels.few_rows import KEY_PADDING, row_output, row_scores, usable_counts
from cpu_kernels.kernels.product import PADDING_ROWS, Ahead, Gathered, Sizes, product
from cpu_kernels.machine import thread_pool
from cpu_kernels.plan import KEY_TILE
from cpu_kernels.simd.registers import MAX_VECTORS, lanes

ROOT = Path(__file__).parents[3]
POISON = 0x7F7F7F7F7F7F7F7F  # as an offset far outside of all memory


def ending_at_guard_page(array):
    """A copy whose last byte lies before a page that can be neither read nor written"""
    size = -(-array.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, size + mmap.PAGESIZE)
    forbid(np.frombuffer(memory, np.uint8)[size:])
    copy = np.frombuffer(memory, np.uint8)[size - array.nbytes : size].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def forbid(array):
    """From now on the pages of this memory, which fills them, can be neither read nor written"""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes), 0):
        raise OSError(ctypes.get_errno(), "mprotect")


@driver
def scores_and_output(rows, count, depth, scores, query, key, offsets, sums, factors):
    row_scores(rows, count, depth, (scores, 0), (query, 0), (key, 0), (offsets, 0), 1)
    row_output(rows, count, depth, (sums, 0), (key, 0), (offsets, 0), (scores, 0), (factors, 0))


@driver
def multiply(vectors, rows, depth, c, a, offsets, columns, b, one):
    product(
        Sizes(vectors, vectors, rows, depth),
        (c, 0),
        Gathered((a, 0), (offsets, 0), (columns, 0)),
        (b, 0),
        (one, 0),
        1,
        Ahead((a, 0), (offsets, 0), rows, depth),
    )


def few_rows():
    """Tables of keys that end KEY_PADDING entries after the last key."""
    size, depth = lanes(np.float32), 64
    for rows in usable_counts(size):
        for count in range(1, 2 * size + 2):
            offsets = ending_at_guard_page(np.minimum(np.arange(count + KEY_PADDING), count - 1) * depth)
            key = ending_at_guard_page(np.ones(count * depth, np.float32))
            scores = np.zeros((count + KEY_PADDING) * size, np.float32)
            query, sums, factors = (np.ones(n, np.float32) for n in (rows * depth, rows * depth, size))
            scores_and_output(rows, count, depth, scores, query, key, offsets, sums, factors)
            assert (sums == 1 + depth * count).all(), (rows, count)


def many_rows():
    """Tables of rows, and rows of results, that end PADDING_ROWS after the last row."""
    depth = 5
    for vectors in range(1, MAX_VECTORS + 1):
        width = vectors * lanes(np.float32)
        for rows in range(1, 28):
            offsets = ending_at_guard_page(np.minimum(np.arange(rows + PADDING_ROWS), rows - 1) * depth)
            c = ending_at_guard_page(np.zeros((rows + PADDING_ROWS) * width, np.float32))
            a, b = (ending_at_guard_page(np.ones(n * depth, np.float32)) for n in (rows, width))
            multiply(vectors, rows, depth, c, a, offsets, np.arange(depth), b, np.ones(width, np.float32))
            assert (c[: rows * width] == depth).all(), (vectors, rows)


def scratch():
    """Whole calls whose scratch holds poison and ends at the guard page."""

    def thread_scratch(count, dtype):
        filled = np.full(-(-count * np.dtype(dtype).itemsize // 64) * 8, POISON)
        return ending_at_guard_page(filled).view(dtype)[:count]

    thread_pool.thread_scratch = thread_scratch
    with num_threads(1):
        for case in CASES[::7]:
            for dtype in ("float32", "float64"):
                arrays, options = case.build(dtype)
                assert_right(case.function, arrays.values(), options, dtype, tiers=("positions", "hard"))


def other_chunks():
    """Keys of other chunks than the rows' own, but for a tile at either side, lie in such pages, too."""
    chunk, dim, length = 1024, 64, 8 * 1024
    random = np.random.default_rng(0)
    for rows in (1, 5, 300):
        query = random.standard_normal((2, rows, dim), np.float32)
        position = 5 * chunk + np.arange(rows)
        key = ending_at_guard_page(random.standard_normal((1, length, dim), np.float32))
        options = {"chunk": chunk, "q_offset": position[0]}
        own = slice(5 * chunk, 6 * chunk)
        expected = attention(query, key[:, own], key[:, own], q_offset=0, window=(chunk, chunk))
        for first, last in ((0, own.start - KEY_TILE), (own.stop + KEY_TILE, length)):
            forbid(key[0, first:last])
        np.testing.assert_allclose(attention(query, key, key, **options), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="protects pages with mprotect")
@pytest.mark.parametrize(
    "case", [few_rows, many_rows, scratch, other_chunks], ids=lambda case: case.__name__
)
def test_nothing_beyond_the_padding_is_touched(case):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])}
    done = subprocess.run(
        [sys.executable, __file__, case.__name__], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stderr}"


if __name__ == "__main__":
    globals()[sys.argv[1]]()
