"""Per-element error bounds of a kernel's output and lse, from the arithmetic it claims.

Two bounds of abs(kernel - exact), for every element:

    hard    rigorous: every rounding goes the worst way. Beyond it the kernel is wrong, or its spec is.
    tight   statistical: roundings are independent and centred, so their sum is Hoeffding's lambda * sqrt(sum of squares), and what is not
            independent (constants, truncation, equal weights) is added linearly. A correct kernel passes it in all elements with
            probability 1 - failure_probability.

and sigma, the standard deviation that a correct kernel's error should have, for the aggregate test. `README.md` in this directory derives the
formulas; `score_error.py` holds the part of the scores, this file what happens to weights and sums.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from refattn.calls.registry import form_called
from refattn.oracle.bounds.hard import hard_bound, weight_rounding
from refattn.oracle.verdict.lean import Model
from refattn.oracle.bounds.operands import operands
from refattn.oracle.bounds.overflow import may_overflow
from refattn.oracle.bounds.score_error import score_error
from refattn.oracle.arithmetic.spec import KernelSpec, kernel_spec
from refattn.oracle.bounds.tight import tight_bound
from refattn.oracle.bounds.row_blocks import Tile, tiles

FAILURE_PROBABILITY = 1e-9


@dataclass(frozen=True, eq=False)
class ErrorBound:
    """Bounds of a kernel's error; arrays in float64. inf: nothing is claimed (an intermediate may overflow). Where the exact result is not
    finite, or the row is empty, the bound is 0 and the kernel must agree exactly.

    Attributes
    ----------
    spec : KernelSpec
    output, lse : ndarray
        The exact results, (..., H, T, E) and (..., H, T).
    output_hard, output_tight, output_sigma : ndarray, shape of output, or None when not asked for
    lse_hard, lse_tight, lse_sigma : ndarray, shape of lse, or None
    """

    spec: KernelSpec
    output: np.ndarray
    lse: np.ndarray
    output_hard: np.ndarray | None
    output_tight: np.ndarray | None
    output_sigma: np.ndarray | None
    lse_hard: np.ndarray | None
    lse_tight: np.ndarray | None
    lse_sigma: np.ndarray | None


@dataclass
class TileBound:
    """The bounds of one block of rows: (R, E) and (R,). `effective` is how many independent errors a row holds, between 1 and E; `model`
    what a signed sum of errors needs (`lean.py`); `overflow` where an intermediate may overflow, so that a finite result may be lost, (R, E) and (R,).
    """

    output_hard: np.ndarray
    lse_hard: np.ndarray
    output_tight: np.ndarray | None = None
    output_sigma: np.ndarray | None = None
    lse_tight: np.ndarray | None = None
    lse_sigma: np.ndarray | None = None
    effective: np.ndarray | None = None
    model: Model | None = None
    overflow: tuple = ()


def error_bound(
    *arrays, spec=None, kind="both", function="attention", reference=None, failure_probability=FAILURE_PROBABILITY, **options
) -> ErrorBound:
    """Bound the error of a correct kernel, element by element.

    Parameters
    ----------
    *arrays : array_like
        The positional arrays of `function`: query, key, value for attention.
    spec : KernelSpec, str, dtype or None
        The arithmetic the kernel claims; a dtype means a flash kernel in it, "eager float16" or "cpu_kernels float32" those kernels, None a
        flash kernel in the dtype of the first array.
    kind : {"both", "hard", "tight"}
        "hard" skips about half of the work.
    function : str
        "attention", "packed_attention", "paged_attention", "latent_attention" or "block_local_attention".
    reference : callable, optional
        Computes the exact (output, lse) from the arrays, converted to float64, and the options: for large shapes a faster function of the
        same signature, such as that of `cpu_kernels`. Default: the function of `refattn`.
    failure_probability : float
        That a correct kernel exceeds the tight bound anywhere in the call.
    **options
        Those of the function in `refattn`; for latent attention with `form`, the one the kernel runs.

    Returns
    -------
    ErrorBound

    Raises
    ------
    TypeError, ValueError, MemoryError
        Those of the function; and for an unknown function, kind or spec.

    Notes
    -----
    Cost: hard about three, tight about ten more products the size of Q K^T or P V in float64, besides the reference itself. Works in
    blocks of rows and holds a few hundred MiB besides its results.

    References
    ----------
    Higham 2002, "Accuracy and Stability of Numerical Algorithms", sections 3.1 and 4.2; Higham and Mary 2019, "A new approach to
    probabilistic rounding error analysis", section 2; Blanchard, Higham and Higham 2021, "Accurately computing the log-sum-exp and softmax
    functions", section 4.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn.oracle import error_bound
    >>> x = np.ones((1, 2, 4), dtype=np.float32)
    >>> bound = error_bound(x, x, x, spec="bfloat16")
    >>> bool((bound.output_tight <= bound.output_hard).all()), bool((bound.output_hard < 0.02).all())
    (True, True)
    """
    if kind not in ("both", "hard", "tight"):
        raise ValueError(f"kind must be 'both', 'hard' or 'tight'; got kind={kind!r}.")
    if not 0.0 < failure_probability < 1.0:
        raise ValueError(f"failure_probability must be in (0, 1); got failure_probability={failure_probability!r}.")
    spec = kernel_spec(spec, getattr(arrays[0], "dtype", np.float64) if arrays else np.float64)
    call = operands(function, arrays, options, spec)
    output, lse = exact_results(function, arrays, options, reference)
    whole = {}
    hard, tight = kind != "tight", kind != "hard"
    names = ["hard"] * hard + ["tight", "sigma"] * tight
    for name in names:
        whole[f"output_{name}"], whole[f"lse_{name}"] = np.zeros(call.output_shape), np.zeros(call.lse_shape)
    multiplier = hoeffding_multiplier(call, failure_probability)
    for tile in tiles(call, output, lse):
        bound = bound_tile(tile, spec, multiplier if tight else None)
        for name in names:
            tile.place.write_output(whole[f"output_{name}"], getattr(bound, f"output_{name}"))
            tile.place.write_lse(whole[f"lse_{name}"], getattr(bound, f"lse_{name}"))
    fields = ("output_hard", "output_tight", "output_sigma", "lse_hard", "lse_tight", "lse_sigma")
    return ErrorBound(spec, output, lse, **{name: whole.get(name) for name in fields})


def exact_results(function, arrays, options, reference=None):
    """Output and lse in float64, from `refattn` or from a reference that is handed the arrays in float64."""
    if reference is None:
        import refattn

        return getattr(refattn, form_called(function).with_lse)(*arrays, **options)
    from refattn.calls.arrays import as_float_array

    wide = [np.asarray(as_float_array(array, "an input"), dtype=np.float64) for array in arrays]
    results = reference(*wide, **options)
    if not isinstance(results, (tuple, list)) or len(results) != 2:
        raise TypeError(f"reference must return (output, lse), as attention_with_lse does; got {type(results).__name__}.")
    output, lse = results
    return np.asarray(output, dtype=np.float64), np.asarray(lse, dtype=np.float64)


def hoeffding_multiplier(call, failure_probability) -> float:
    """lambda with P(|sum of x| > lambda sqrt(sum of range^2)) <= failure_probability over all results of the call together."""
    results = math.prod(call.output_shape) + math.prod(call.lse_shape)
    return math.sqrt(2.0 * math.log(2.0 * max(results, 1) / failure_probability))


def bound_tile(tile: Tile, spec: KernelSpec, multiplier: float | None) -> TileBound:
    """The bounds of one block of rows; without `multiplier` only the hard one."""
    with np.errstate(all="ignore"):
        error = score_error(tile, spec)
        rounding = weight_rounding(tile, spec)
        bound = TileBound(*hard_bound(tile, spec, error, rounding))
        if multiplier is not None:
            tight = tight_bound(tile, spec, error, rounding, multiplier)
            # what is rigorous also holds, and roundings shared by all keys have no tighter bound
            smaller = (lambda a, b: b) if tile.shared_rounding else np.fmin
            bound.output_tight, bound.lse_tight = smaller(tight.output, bound.output_hard), smaller(tight.lse, bound.lse_hard)
            bound.output_sigma, bound.lse_sigma, bound.effective = tight.output_sigma, tight.lse_sigma, tight.effective
            bound.model = tight.model
        bound = _only_where_claimed(tile, error, bound)
        if np.isinf(bound.output_hard).any() or np.isinf(bound.lse_hard).any():
            bound.overflow = may_overflow(tile, spec)
        return bound


def _only_where_claimed(tile, error, bound):
    output, lse = np.isfinite(tile.output), np.isfinite(tile.lse)
    claimed = error.claimed & ~tile.broken  # a finite result whose scores overflow float64 here: nothing is known
    empty = tile.count == 0
    for name in ("output_hard", "output_tight", "output_sigma"):
        value = getattr(bound, name)
        if value is not None:
            value = np.where(empty, 0.0, np.where(np.isnan(value), np.inf, value))
            setattr(bound, name, np.where(output, np.where(claimed[:, None], value, np.inf), 0.0))
    for name in ("lse_hard", "lse_tight", "lse_sigma"):
        value = getattr(bound, name)
        if value is not None:
            value = np.where(claimed, np.where(np.isnan(value), np.inf, value), np.inf)
            setattr(bound, name, np.where(lse | ~error.claimed & empty[:, 0], value, 0.0))
    return bound
