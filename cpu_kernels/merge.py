"""Join attention over disjoint sets of keys: the function of `refattn.merge`, fast."""

import math

import numpy as np

from cpu_kernels.kernels.merge import ROWS_PER_ITEM, merge
from cpu_kernels.plan import FLOPS_PER_MICROSECOND
from cpu_kernels.threading import run
from refattn.interop import as_float_array
from refattn.merge import checked_states


def merge_states(outputs, lses):
    """Attention over all keys from attention over parts of them."""
    states, lses = checked_states(outputs, lses)
    given = as_float_array(outputs[0], "outputs[0]").dtype
    dtype = np.dtype(np.float64 if given == np.float64 else np.float32)
    *outer, dims = states.shape[1:]
    rows = math.prod(outer)
    output, lse = np.empty((rows, dims), dtype), np.empty(rows, dtype)
    run(
        merge, -(-rows // ROWS_PER_ITEM), states.reshape(len(states), rows, dims), lses.reshape(len(lses), rows), output, lse,
        cost=4.0 * states.size / FLOPS_PER_MICROSECOND,
    )  # fmt: skip
    return output.reshape(*outer, dims).astype(given, copy=False), lse.reshape(outer)
