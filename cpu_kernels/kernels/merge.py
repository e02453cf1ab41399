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
                if weight != 0:  # what a part without weight holds does not matter
                    share = outputs.dtype.type(weight / total)
                    for dim in range(dims):
                        output[row, dim] += share * outputs[n, row, dim]
        block = next_item(counter)
