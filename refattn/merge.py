"""Join attention over disjoint sets of keys: the algebra behind split keys, chunked prefill and ring
attention.
"""

import numpy as np

from refattn.calls.merge import checked_states
from refattn.exact.precise import require_subnormals


def merge_states(outputs, lses):
    """Attention over all keys from attention over parts of them.

    lse = log sum_n exp(lse_n),  output = sum_n exp(lse_n - lse) output_n.

    Associative, in any order; (0, -inf) is the identity.

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
    Ye et al. 2024, "Cascade Inference", equations for the merge of attention states; Dao et al. 2023,
    "Flash-Decoding".

    Examples
    --------
    >>> import numpy as np, refattn
    >>> q, k, v = np.ones((1, 1, 2)), np.ones((1, 3, 2)), np.arange(6.0).reshape(1, 3, 2)
    >>> parts = [refattn.attention_with_lse(q, k[:, s], v[:, s]) for s in (slice(0, 1), slice(1, 3))]
    >>> output, lse = refattn.merge_states(*zip(*parts))
    >>> output.round(12)
    array([[[2., 3.]]])
    """
    states = checked_states(outputs, lses)
    require_subnormals()
    outputs, lses = (
        np.stack([part.astype(np.float64) for part in parts]) for parts in (states.outputs, states.lses)
    )
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
