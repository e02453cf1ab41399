"""What the machine can do at the most: fused multiply-adds from registers, and reading memory.

Reading is measured by two methods that share no code: vector loads of our own, and products of OpenBLAS
that use each number once; of each the fastest of a few ways. Each function takes the number of threads and
returns (work, run): how many floating-point operations or bytes one call of `run` does.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from cpu_kernels import set_num_threads
from cpu_kernels.compiler.jit import driver, next_item
from cpu_kernels.machine.thread_pool import run
from cpu_kernels.simd.building_block import building_block
from cpu_kernels.simd.registers import lanes

CHAINS = 12  # enough to hide the latency of an addition, few enough for 16 registers
STEPS = 1 << 19
ITEMS = 16  # of arithmetic a thread, a millisecond each: waking a helper must not show
READ_BYTES = 256 << 20
READ_BYTES_PER_THREAD = 64 << 20  # at least
BLOCK = 1 << 18  # elements a thread reads at a time
STREAMS = 4  # places read at once: the hardware follows each by itself
AHEAD = 1 << 10  # elements between a prefetch and its use
WIDTH = 1 << 12  # columns of a matrix times a vector


def _multiply_add(steps, x):
    for _ in range(steps):
        x[0][:] = x[0] * 0.5 + 0.5


@building_block(python=_multiply_add)
def multiply_add(emit, steps, x):
    """`steps` times CHAINS independent fused multiply-adds on vectors."""
    sums = [emit.variable(emit.load(x, i * emit.lanes)) for i in range(CHAINS)]
    factor = emit.load(x, CHAINS * emit.lanes)
    with emit.loop(steps):
        for total in sums:
            emit.assign(total, emit.fma(emit.value(total), factor, factor))
    for i, total in enumerate(sums):
        emit.store(emit.value(total), x, i * emit.lanes)


def _read(count, step, apart, ahead, x, total):
    width = min(step, apart)
    for i in range(0, count, step):
        for start in range(x[1] + i, x[1] + i + STREAMS * apart, apart):
            total[0][total[1]] += x[0][start : start + width].sum()


@building_block(python=_read)
def read(emit, count, step, apart, ahead, x, total):
    """Add up what lies in `STREAMS` places `apart`, two vectors each, and go on by `step` until `count`."""
    sums = [emit.variable(emit.vector(0.0)) for _ in range(2 * STREAMS)]
    with emit.loop(count, step=step) as i:
        for j, part in enumerate(sums):
            at = emit.add(emit.add(i, j % 2 * emit.lanes), emit.multiply(apart, j // 2))
            emit.prefetch(x, emit.add(at, ahead))
            emit.assign(part, emit.value(part) + emit.load(x, at))
    result = emit.value(sums[0])
    for part in sums[1:]:
        result = result + emit.value(part)
    emit.store(result, total, 0)


@driver
def peak_driver(counter, scratch, steps):
    item = next_item(counter)
    while item >= 0:
        for i in range(scratch.size):
            scratch[i] = 0.5
        multiply_add(steps, (scratch, 0))
        item = next_item(counter)


@driver
def read_driver(counter, scratch, x, block, count, step, apart, ahead):
    item = next_item(counter)
    while item >= 0:
        read(count, step, apart, ahead, (x, item * block), (scratch, 0))
        item = next_item(counter)


def fma(threads):
    """Every thread multiplies and adds in registers."""
    set_num_threads(threads)
    items, size = ITEMS * threads, lanes(np.float32)
    options = dict(cost=1e6, scratch=(CHAINS + 1) * size, dtype=np.float32)
    return 2 * items * STEPS * CHAINS * size, lambda: run(peak_driver, items, STEPS, **options)


def read_by_loads(threads):
    """Vector loads from one place or from `STREAMS` at once, asked for early or left to the hardware."""
    set_num_threads(threads)
    memory = np.ones(read_bytes(threads) // 4, np.float32)
    pair = 2 * lanes(np.float32)
    options = dict(cost=1e6, scratch=lanes(np.float32), dtype=np.float32)

    def sweep(*pattern):
        run(read_driver, memory.size // BLOCK, memory, BLOCK, *pattern, **options)

    one, several = (BLOCK, STREAMS * pair, pair), (BLOCK // STREAMS, pair, BLOCK // STREAMS)
    ways = [partial(sweep, *places, ahead) for places in (one, several) for ahead in (0, AHEAD)]
    return memory.nbytes, fastest(ways)


def read_by_blas(threads):
    """Products that use each number once, one call a thread; needs OpenBLAS held to one thread."""
    pool = ThreadPoolExecutor(threads)
    parts = list(
        pool.map(partial(np.ones, dtype=np.float32), [read_bytes(threads) // 4 // threads] * threads)
    )
    vectors = [np.ones(WIDTH, np.float32), np.ones(parts[0].size // WIDTH, np.float32)]
    products = [
        lambda x: np.dot(x, x),
        lambda x: np.dot(*x.reshape(2, -1)),
        lambda x: np.dot(x.reshape(-1, WIDTH), vectors[0]),
        lambda x: np.dot(vectors[1], x.reshape(-1, WIDTH)),
    ]
    each = pool.map if threads > 1 else map
    ways = [lambda product=product: list(each(product, parts)) for product in products]
    return sum(part.nbytes for part in parts), fastest(ways)


def fastest(ways):
    """CPUs differ in what they read quickest: the function that takes least, of several that do the same.

    They take turns, many times: neighbours disturb for longer than one sweep lasts, and a wrong choice
    would stand for the whole run.
    """

    def seconds(way):
        start = time.perf_counter()
        way()
        return time.perf_counter() - start

    least = [min(times) for times in zip(*([seconds(way) for way in ways] for _ in range(21)), strict=True)]
    return ways[least.index(min(least))]


def read_bytes(threads):
    return max(READ_BYTES, READ_BYTES_PER_THREAD * threads) // (4 * BLOCK) * (4 * BLOCK)


LIMITS = {"fma": fma, "read_by_loads": read_by_loads, "read_by_blas": read_by_blas}
