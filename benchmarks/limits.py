"""What the machine can do at the most: fused multiply-adds from registers, and reading memory."""

import numpy as np

from cpu_kernels.compiler.jit import driver, next_item
from cpu_kernels.machine.thread_pool import get_num_threads, run
from cpu_kernels.simd.vector import building_block, lanes

CHAINS = 12  # enough to hide the latency of an addition, few enough for 16 registers
STEPS = 1 << 19
READ_BYTES = 256 << 20
AHEAD = 1 << 10  # elements between a prefetch and its use


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


def _read(count, x, total):
    total[0][total[1]] += x[0][x[1] : x[1] + count].sum()


@building_block(python=_read)
def read(emit, count, x, total):
    """Add up `count` elements, a multiple of 8 vectors, in order; prefetched, because hardware alone does not reach the limit."""
    sums = [emit.variable(emit.vector(0.0)) for _ in range(8)]
    with emit.loop(count, step=8 * emit.lanes) as i:
        for j, part in enumerate(sums):
            emit.prefetch(x, emit.add(i, j * emit.lanes + AHEAD))
            emit.assign(part, emit.value(part) + emit.load(x, emit.add(i, j * emit.lanes)))
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
def read_driver(counter, scratch, x, block):
    item = next_item(counter)
    while item >= 0:
        read(block, (x, item * block), (scratch, 0))
        item = next_item(counter)


def run_peak(dtype=np.float32):
    """Keep every thread multiplying; returns the floating-point operations done."""
    items = 2 * get_num_threads()
    size = lanes(dtype)
    run(peak_driver, items, STEPS, cost=1e6, scratch=(CHAINS + 1) * size, dtype=dtype)
    return 2 * items * STEPS * CHAINS * size


_memory = []


def run_read():
    """Read READ_BYTES of memory; returns the bytes read."""
    if not _memory:
        _memory.append(np.ones(READ_BYTES // 4, np.float32))
    block = 1 << 18
    run(read_driver, READ_BYTES // 4 // block, _memory[0], block, cost=1e6, scratch=lanes(np.float32), dtype=np.float32)
    return READ_BYTES
