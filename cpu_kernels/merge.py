"""Join attention over disjoint sets of keys: the function of `refattn.merge`, fast."""

import math

import numpy as np

from cpu_kernels.dtypes import compute_dtype
from cpu_kernels.kernels.merge import ROWS_PER_ITEM, merge
from cpu_kernels.machine.thread_pool import run
from cpu_kernels.plan import FLOPS_PER_MICROSECOND
from refattn.calls.merge import checked_states


def merge_states(outputs, lses):
    """Attention over all keys from attention over parts of them, in any order.

    Parameters
    ----------
    outputs : sequence of array_like, each of shape (..., T, E), or one array stacked on a new first axis
    lses : sequence of array_like, each of shape (..., T), or one array stacked on a new first axis
        Natural logarithms.

    Returns
    -------
    output : ndarray, shape (..., T, E)
        dtype of the outputs; where they differ float64 if one is, else float32.
    lse : ndarray, shape (..., T), float64 if an array is float64, else float32

    Raises
    ------
    TypeError, ValueError, MemoryError
        Those of `refattn.merge_states`.

    See Also
    --------
    refattn.merge_states
    """
    checked = checked_states(outputs, lses)
    outputs, lses = checked.outputs, checked.lses
    dtype, given = compute_dtype(*outputs, *lses), output_dtype(outputs)
    states, state_lses = (np.stack([part.astype(np.float64) for part in parts]) for parts in (outputs, lses))
    *outer, dims = states.shape[1:]
    rows = math.prod(outer)
    output, lse = np.empty((rows, dims), dtype), np.empty(rows, dtype)
    run(
        merge,
        -(-rows // ROWS_PER_ITEM),
        states.reshape(len(states), rows, dims),
        state_lses.reshape(len(lses), rows),
        output,
        lse,
        cost=4.0 * states.size / FLOPS_PER_MICROSECOND,
    )
    return output.reshape(*outer, dims).astype(given, copy=False), lse.reshape(outer)


def output_dtype(outputs):
    """The dtype all share, else the one they are computed in: the order of the parts does not matter."""
    first = outputs[0].dtype
    return first if all(output.dtype == first for output in outputs) else compute_dtype(*outputs)
