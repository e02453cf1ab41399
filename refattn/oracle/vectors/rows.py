"""Results and bounds of some rows of a large call, at the cost of those rows."""

from __future__ import annotations

from refattn.oracle.arithmetic.spec import KernelSpec
from refattn.oracle.bounds.bound import (
    FAILURE_PROBABILITY,
    ErrorBound,
    bounds_of_call,
    hoeffding_multiplier,
)
from refattn.oracle.bounds.operands import operands
from refattn.oracle.bounds.reference import reference_results
from refattn.oracle.bounds.results import RESULTS
from refattn.oracle.progress import Progress

KINDS = ("hard", "tight")


def bound_of_rows(rows, arrays, options, spec: KernelSpec) -> ErrorBound:
    """What `error_bound` says of these query rows of each head of a dense call, with as small a probability
    that a correct kernel exceeds a bound anywhere in the whole call.

    Parameters
    ----------
    rows : ndarray of int64, (R,)
        Increasing.
    arrays, options
        Of `refattn.attention`.
    spec : KernelSpec

    Returns
    -------
    ErrorBound
        Its arrays have the axis R in the place of the query rows; without `sigma`.

    Notes
    -----
    Holds arrays of the whole results, of which only the pages with these rows are ever written.
    """
    call = operands("attention", arrays, options, spec)
    pick = lambda q_len: rows
    multiplier = hoeffding_multiplier(call, FAILURE_PROBABILITY)
    with Progress("bounds of some rows: computing the reference") as shown:
        compared_with = reference_results("attention", arrays, options, spec, rows=pick)
        exact = compared_with.results
        whole = bounds_of_call(
            call, spec, compared_with, multiplier, KINDS, shown, "bounds of some rows", pick
        )
    take = lambda result, array: array.take(rows, axis=-2 if result.has_dims else -1)
    return ErrorBound(
        spec,
        **{result.name: take(result, array) for result, array in zip(RESULTS, exact, strict=True)},
        output_sigma=None,
        lse_sigma=None,
        **{f"{result.name}_{kind}": take(result, array) for (result, kind), array in whole.items()},
    )
