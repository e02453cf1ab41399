"""Per-element error bounds of a kernel's output and lse, from the arithmetic it claims.

Two bounds of abs(kernel - exact), for every element:

    hard    rigorous: every rounding goes the worst way. Beyond it the kernel is wrong, or its spec is.
    tight   statistical: roundings are independent and centred, so their sum is Hoeffding's lambda * sqrt(sum
            of squares), and what is not independent (constants, truncation, equal weights) is added
            linearly. A correct kernel passes it in all elements with probability 1 - failure_probability.

and sigma, the standard deviation that a correct kernel's error should have, for the aggregate test.
`README.md` in this directory derives the formulas; `score_error.py` holds the part of the scores, this file
what happens to weights and sums.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from refattn.oracle.arithmetic.spec import KernelSpec, kernel_spec
from refattn.oracle.bounds.hard import hard_bound, weight_rounding
from refattn.oracle.bounds.lean import LseModel, OutputModel
from refattn.oracle.bounds.operands import operands
from refattn.oracle.bounds.overflow import may_overflow
from refattn.oracle.bounds.reference import reference_results
from refattn.oracle.bounds.results import RESULTS, Result, columns
from refattn.oracle.bounds.row_blocks import count_rows, tile_jobs
from refattn.oracle.bounds.score_error import score_error
from refattn.oracle.bounds.threads import in_threads
from refattn.oracle.bounds.tight import tight_bound
from refattn.oracle.bounds.tile import Tile
from refattn.oracle.progress import Progress

FAILURE_PROBABILITY = 1e-9
UNCERTAIN_SCORE = 16.0  # e to an error of a score as large as this may leave float32


@dataclass(frozen=True, eq=False)
class ErrorBound:
    """Bounds of a kernel's error; arrays in float64. inf: nothing is claimed (an intermediate may overflow).
    Where the exact result is not finite, or the row is empty, the bound is 0 and the kernel must agree
    exactly.

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
class ResultBound:
    """The bounds of one result in one block of rows, (R, C)."""

    # hard, tight, sigma: as in `ErrorBound`; the last two, and the next two, are None where only the hard
    # bound was asked for
    hard: np.ndarray
    tight: np.ndarray | None = None
    sigma: np.ndarray | None = None
    effective: np.ndarray | None = None  # (R,): how many independent errors a row holds, between 1 and C
    model: OutputModel | LseModel | None = None  # what a signed sum of errors needs (`lean.py`)
    # where an intermediate may overflow, so that a finite result may be lost; None where nothing is
    # unclaimed
    overflow: np.ndarray | None = None


def error_bound(
    *arrays,
    spec=None,
    kind="both",
    function="attention",
    reference=None,
    failure_probability=FAILURE_PROBABILITY,
    progress=None,
    **options,
) -> ErrorBound:
    """Bound the error of a correct kernel, element by element.

    Parameters
    ----------
    *arrays : array_like
        The positional arrays of `function`: query, key, value for attention.
    spec : KernelSpec, str, dtype or None
        The arithmetic the kernel claims; a dtype means a flash kernel in it, "eager float16" or "cpu_kernels
        float32" those kernels, None a flash kernel in the dtype of the first array.
    kind : {"both", "hard", "tight"}
        "hard" skips about half of the work.
    function : str
        "attention", "packed_attention", "paged_attention", "latent_attention" or "block_local_attention".
    reference : {"exact", "float64"} or callable, optional
        What computes (output, lse): `refattn` exactly, the default, or in float64, which is several times as
        fast and as good for kernels that compute in float32 or less (`reference.py`); or a function of the
        arrays, converted to float64, and the options.
    failure_probability : float
        That a correct kernel exceeds the tight bound anywhere in the call.
    progress : callable or False, optional
        Called with a `ProgressEvent`, whose text is one line: `print`; False says nothing. Default: a line
        on a terminal, from two seconds on (`refattn.oracle.progress`).
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
    Cost, besides the reference itself: a product of the size of Q K^T in float64 and about eight more, in
    float32 where the spec and the sizes of the inputs allow it (`README.md`, section 9). Works in blocks of
    rows, in as many threads as BLAS would use, and holds a few hundred MiB besides its results.

    References
    ----------
    Higham 2002, "Accuracy and Stability of Numerical Algorithms", sections 3.1 and 4.2; Higham and Mary
    2019, "A new approach to probabilistic rounding error analysis", section 2; Blanchard, Higham and Higham
    2021, "Accurately computing the log-sum-exp and softmax functions", section 4.

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
        raise ValueError(
            f"failure_probability must be in (0, 1); got failure_probability={failure_probability!r}."
        )
    spec = kernel_spec(spec, getattr(arrays[0], "dtype", np.float64) if arrays else np.float64)
    call = operands(function, arrays, options, spec)
    chosen = "exact" if reference is None else reference
    kinds = ("hard",) * (kind != "tight") + ("tight", "sigma") * (kind != "hard")
    multiplier = None if kind == "hard" else hoeffding_multiplier(call, failure_probability)
    with Progress("error_bound: computing the reference", progress=progress) as shown:
        compared_with = reference_results(function, arrays, options, spec, chosen)
        exact = compared_with.results
        whole = bounds_of_call(call, spec, compared_with, multiplier, kinds, shown, "error_bound")
    fields = {
        f"{result.name}_{name}": whole.get((result, name))
        for result in RESULTS
        for name in ("hard", "tight", "sigma")
    }
    return ErrorBound(
        spec, **{result.name: array for result, array in zip(RESULTS, exact, strict=True)}, **fields
    )


def bounds_of_call(call, spec, compared_with, multiplier, kinds, shown, words, rows=None):
    """Bounds of some kinds, {(result, kind): array}, in arrays of the whole results; `rows` as in
    `row_blocks.tiles`, 0 in the others. `shown` is told the progress, under `words`."""
    whole = {
        (result, kind): np.zeros(result.shape(call.output_shape)) for result in RESULTS for kind in kinds
    }
    shown.begin(words, count_rows(call, rows), "rows")

    def write(job):
        tile = job()
        bounds = bound_tile(tile, spec, multiplier, compared_with.error)
        for (result, kind), array in whole.items():
            tile.place.write(result, array, getattr(bounds[result], kind))
        return len(tile.lse)

    for rows_done in in_threads(write, tile_jobs(call, compared_with.results, rows, spec=spec)):
        shown.step(rows_done)
    return whole


def hoeffding_multiplier(call, failure_probability) -> float:
    """lambda with P(|sum of x| > lambda sqrt(sum of range^2)) <= failure_probability over all results of the
    call together."""
    count = sum(math.prod(result.shape(call.output_shape)) for result in RESULTS)
    return math.sqrt(2.0 * math.log(2.0 * max(count, 1) / failure_probability))


def bound_tile(
    tile: Tile, spec: KernelSpec, multiplier: float | None, reference_error: float = 0.0
) -> dict[Result, ResultBound]:
    """The bounds of each result in one block of rows; without `multiplier` only the hard one. Both allow for
    an error of the reference of so large a share of themselves."""
    with np.errstate(all="ignore"):
        error = score_error(tile, spec)
        if tile.dtype != np.float64 and not error.largest.max(initial=0.0) < UNCERTAIN_SCORE:
            return bound_tile(tile.widened(), spec, multiplier, reference_error)
        rounding = weight_rounding(tile, spec)
        hard = hard_bound(tile, spec, error, rounding)
        bounds = {result: ResultBound(columns(limit)) for result, limit in zip(RESULTS, hard, strict=True)}
        if multiplier is not None:
            # what is rigorous also holds, and roundings shared by all keys have no tighter bound
            smaller = (lambda a, b: b) if tile.shared_rounding else np.fmin
            tights = tight_bound(tile, spec, error, rounding, multiplier)
            for bound, tight in zip(bounds.values(), tights, strict=True):
                bound.tight, bound.sigma = smaller(columns(tight.limit), bound.hard), columns(tight.sigma)
                bound.effective, bound.model = tight.effective, tight.model
        for result, bound in bounds.items():
            if reference_error:
                bound.hard = (1.0 + reference_error) * bound.hard
                bound.tight = None if bound.tight is None else (1.0 + reference_error) * bound.tight
            _claim_only_what_is_known(tile, error, result, bound)
        if any(np.isinf(bound.hard).any() for bound in bounds.values()):
            for bound, overflow in zip(bounds.values(), may_overflow(tile, spec), strict=True):
                bound.overflow = overflow
        return bounds


def _claim_only_what_is_known(tile, error, result, bound):
    """Bounds of 0 where the exact result is not finite or the row is empty, and of inf where nothing is
    known."""
    # a finite result whose scores overflow float64 here: nothing is known
    claimed, empty = (error.claimed & ~tile.broken)[:, None], tile.count == 0
    bounded = np.isfinite(tile.exact(result))
    if not math.isfinite(result.empty_row):
        bounded = bounded | ~error.claimed[:, None] & empty
    for name in ("hard", "tight", "sigma"):
        limit = getattr(bound, name)
        if limit is not None:
            limit = np.where(claimed & ~np.isnan(limit), limit, np.inf)
            if math.isfinite(result.empty_row):
                limit = np.where(empty & claimed, 0.0, limit)
            setattr(bound, name, np.where(bounded, limit, 0.0))
