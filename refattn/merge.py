"""Join attention over disjoint sets of keys: the algebra behind split keys, chunked prefill and ring attention."""

import numpy as np

from refattn.interop import as_float_array
from refattn.memory import ensure_allocatable
from refattn.precise import require_subnormals


def merge_states(outputs, lses):
    """Attention over all keys from attention over parts of them.

    lse = log sum_n exp(lse_n),  output = sum_n exp(lse_n - lse) output_n. Associative, in any order; (0, -inf) is the identity.

    Parameters
    ----------
    outputs : sequence of array_like, each of shape (..., T, E), or one array stacked on a new first axis
    lses : sequence of array_like, each of shape (..., T), or one array stacked on a new first axis
        Natural logarithms. A sink may be in one part only, or it counts twice.

    Returns
    -------
    output : ndarray, shape (..., T, E), float64
    lse : ndarray, shape (..., T), float64
        Rows that no part sees stay (0, -inf).

    Raises
    ------
    TypeError
        When an array is not of real floating-point numbers.
    ValueError
        When there are no parts, not as many outputs as lses, or their shapes differ.
    MemoryError
        When the stacked parts cannot be allocated.

    Notes
    -----
    Cost: one pass over the parts, and a float64 copy of them.

    References
    ----------
    Ye et al. 2024, "Cascade Inference", equations for the merge of attention states; Dao et al. 2023, "Flash-Decoding".

    Examples
    --------
    >>> import numpy as np, refattn
    >>> q, k, v = np.ones((1, 1, 2)), np.ones((1, 3, 2)), np.arange(6.0).reshape(1, 3, 2)
    >>> parts = [refattn.attention_with_lse(q, k[:, s], v[:, s]) for s in (slice(0, 1), slice(1, 3))]
    >>> output, lse = refattn.merge_states(*zip(*parts))
    >>> output.round(12)
    array([[[2., 3.]]])
    """
    outputs, lses = (np.stack([part.astype(np.float64) for part in parts]) for parts in checked_states(outputs, lses))
    require_subnormals()
    with np.errstate(all="ignore"):
        largest = np.max(lses, axis=0)
        weights = np.exp(lses - np.where(largest == -np.inf, 0.0, largest))  # [N, ..., T]
        total = weights.sum(axis=0)
        share = np.divide(weights, total, out=np.zeros_like(weights), where=total != 0)[..., None]
        finite = np.isfinite(outputs)
        output = (share * np.where(finite, outputs, 0.0)).sum(axis=0)  # [N, ..., T, E] -> [..., T, E]
        # Infinite however small the share; what a part without any holds does not matter.
        output += np.where(finite | (lses == -np.inf)[..., None], 0.0, outputs).sum(axis=0)
        return output, largest + np.log(np.where(largest == -np.inf, 1.0, total))


def checked_states(outputs, lses):
    """Both as lists of floating-point arrays."""
    outputs, lses = as_sequence(outputs, "outputs"), as_sequence(lses, "lses")
    if len(outputs) != len(lses) or len(outputs) == 0:
        raise ValueError(
            "outputs and lses must hold the same number of states, at least one; "
            f"got len(outputs)={len(outputs)}, len(lses)={len(lses)}."
        )
    outputs = [as_float_array(output, f"outputs[{n}]") for n, output in enumerate(outputs)]
    lses = [as_float_array(lse, f"lses[{n}]") for n, lse in enumerate(lses)]
    for n, (output, lse) in enumerate(zip(outputs, lses, strict=True)):
        if output.ndim < 1 or output.shape != outputs[0].shape:
            raise ValueError(
                "outputs must all have the same shape (..., length, dim); "
                f"got outputs[0].shape={outputs[0].shape}, outputs[{n}].shape={output.shape}."
            )
        if lse.shape != output.shape[:-1]:
            raise ValueError(f"lses[{n}] must have shape {output.shape[:-1]} to match outputs[{n}]; got lses[{n}].shape={lse.shape}.")
    ensure_allocatable(8 * len(outputs) * (outputs[0].size + lses[0].size), "states")
    return outputs, lses


def as_sequence(states, name):
    if isinstance(states, (list, tuple)):
        return tuple(states)  # a list could change its length during the call
    stacked = as_float_array(states, name)
    if stacked.ndim < 1:
        raise ValueError(f"{name} must be a sequence of arrays or one stacked array; got {name}.shape=().")
    return stacked
