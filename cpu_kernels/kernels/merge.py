"""Join attention states row by row, sums in the order of the states."""

import math

import numpy as np

from cpu_kernels.compiler.jit import driver, next_item

ROWS_PER_ITEM = 64


@driver
def merge(counter, scratch, outputs, lses, output, lse):
    """outputs (N, rows, dim), lses (N, rows) -> output (rows, dim), lse (rows,)."""
    states, rows, dims = outputs.shape
    block = next_item(counter)
    while block >= 0:
        for row in range(block * ROWS_PER_ITEM, min((block + 1) * ROWS_PER_ITEM, rows)):
            largest = -np.inf
            for n in range(states):
                if lses[n, row] > largest or lses[n, row] != lses[n, row]:
                    largest = np.float64(lses[n, row])
            pivot = 0.0 if largest == -np.inf else largest
            total = 0.0
            for n in range(states):
                total += math.exp(lses[n, row] - pivot)
            lse[row] = largest if largest == -np.inf else pivot + math.log(total)
            for dim in range(dims):
                output[row, dim] = 0
            for n in range(states):
                weight = math.exp(lses[n, row] - pivot)
                if lses[n, row] != -np.inf:  # what a part without weight holds does not matter
                    share = outputs.dtype.type(weight / total)
                    for dim in range(dims):
                        x = outputs[n, row, dim]
                        output[row, dim] += (
                            share * x if np.isfinite(x) else x + 0 * total
                        )  # infinite however small the share, NaN where lses are
        block = next_item(counter)
