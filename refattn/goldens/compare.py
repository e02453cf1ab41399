"""Is one golden case right? What a function computed, against the exact answer and what is allowed.

Two rules. The reference is held to its promise: output within 4 units of 2**-53 * sum_j p_j |v_j| and lse
within 8 units in the last place of its terms, however long the sequence and however large the scores. A
kernel is held to the error bound of the arithmetic it works in.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

U64, U32 = 2.0**-53, 2.0**-24
# What the reference promises, held by tests/exact/test_exact.py on input of every kind. Only this rounds:
# exp and its correction, half an ulp each, which is 1.5 units at a middling mantissa, in the numerator and
# in the total; and the quotient, 1 unit: 2 * 1.5 + 1 = 4. In the lse exponentials, log1p and two sums cost
# an ulp each of the larger term, as much again with a sink: 8.
OUTPUT_UNITS = 4  # of 2**-53 * sum_j p_j |v_j|
LSE_ULPS = 8
RUNS, WORTH_REPEATING = 3, 0.05  # the best time of three, of runs below 50 ms
REMAINDER_ROUNDING = 2.0**-8  # output_low and lse_low are stored as bfloat16


@dataclass
class Outcome:
    """One case computed by one package."""

    seconds: float = 0.0
    error: float = 0.0  # largest |output - exact|
    units: float = 0.0  # largest error / (2**-53 gauge)
    lse_ulps: float | None = None  # None = the source has no lse
    of_bound: float = 0.0  # largest error / what is allowed, over output and lse
    failure: str | None = None  # None = holds


def worse(a, b):
    """The larger; NaN is worst, None is no number at all."""
    if a is None or b is None:
        return b if a is None else a
    return a if math.isnan(a) or a >= b else b


def computed_by(package, case, allowance, warm_up=False):
    """Run one case and measure it. `warm_up` leaves compilation out of the time."""
    function = getattr(package, case.function)
    try:
        if warm_up:
            function(**case.arguments, **case.options)
        seconds = math.inf
        for _ in range(RUNS):
            started = time.perf_counter()
            results = function(**case.arguments, **case.options)
            seconds = min(seconds, time.perf_counter() - started)
            if seconds > WORTH_REPEATING:
                break
    except Exception as error:  # a failing case must be named, whatever failed
        return Outcome(
            error=math.nan,
            units=math.nan,
            of_bound=math.nan,
            failure=f"raised {type(error).__name__}: {error}",
        )
    outcome = Outcome(seconds=seconds)
    for name, actual in zip(PROMISES, results, strict=True):
        if name in case.golden:
            compare(name, np.asarray(actual), case, allowance, outcome)
    return outcome


def compare(name, actual, case, allowance, outcome):
    """Fill `outcome` with how far `actual` is from the exact answer and whether that is allowed."""
    golden, low = case.golden[name], case.golden[f"{name}_low"]
    if actual.shape != golden.shape:
        outcome.failure = outcome.failure or f"{name}.shape is {actual.shape}, golden {golden.shape}"
        return
    error = distance(actual, golden, low)
    implausible = np.abs(low) > (1 + REMAINDER_ROUNDING) * rounding_alone(name, case, U64)
    if implausible.any():
        at = ", ".join(str(int(i)) for i in np.argwhere(implausible)[0])
        outcome.failure = (
            outcome.failure
            or f"golden {name}[{at}] is further from the exact answer than float64 rounding can bring it"
        )
    allowed = allowance(name, case, actual.dtype) + REMAINDER_ROUNDING * np.abs(low)
    promise = PROMISES[name]
    setattr(outcome, promise.in_units, largest(ratio(error, promise.unit(case))))
    if promise.absolute is not None:
        setattr(outcome, promise.absolute, largest(error))
    outcome.of_bound = worse(outcome.of_bound, largest(ratio(error, allowed)))
    if outcome.failure is None and not (error <= allowed).all():
        at = tuple(int(i) for i in np.unravel_index(np.argmax(ratio(error, allowed)), error.shape))
        index = ", ".join(map(str, at))
        outcome.failure = (
            f"{name}[{index}] is {float(actual[at])!r}, golden "
            f"{float(golden[at] + low[at])!r}: off by {error[at]:.3g}, allowed "
            f"{allowed[at]:.3g}"
        )


def distance(actual, golden, low):
    """|actual - (golden + low)| without losing the remainder; equal infinities are 0 apart, NaN is
    infinitely far from anything.
    """
    with np.errstate(invalid="ignore"):
        error = np.abs((actual.astype(np.float64) - golden) - low)
    error[np.isinf(golden) & (actual == golden)] = 0.0
    error[np.isnan(error)] = np.inf
    return error


def ratio(error, scale):
    """error / scale, where 0 / 0 is 0 and anything else over 0 is infinite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(error == 0, 0.0, error / scale)


def largest(array):
    return float(np.max(array, initial=0.0))


def last_place_of_lse_terms(case):
    """lse = m + ln(sum exp(score - m)): the spacing of float64 at the larger of the two terms."""
    m, lse = case.golden["row_max"].astype(np.float64), case.golden["lse"]
    empty = np.isneginf(m)
    terms = np.where(empty, 0.0, np.maximum(np.abs(m), np.abs(lse - np.where(empty, 0.0, m))))
    return np.spacing(terms)


@dataclass(frozen=True)
class Promise:
    """What the reference promises of one result: an error of at most so many units."""

    most: int
    unit: Callable  # case -> array
    in_units: str  # the field of `Outcome` with the error in this unit
    absolute: str | None = None  # and the one with the error itself


# by their names in a golden, in the order in which functions return them
PROMISES = {
    "output": Promise(OUTPUT_UNITS, lambda case: U64 * case.golden["gauge"], "units", "error"),
    "lse": Promise(LSE_ULPS, last_place_of_lse_terms, "lse_ulps"),
}


def rounding_alone(name, case, unit_roundoff):
    """`GoldenCase.error_bound` of one result."""
    return dict(zip(PROMISES, case.error_bound(unit_roundoff), strict=True))[name]


def exactness_allowance(name, case, dtype):
    """What the float64 reference promises, whatever the scores: a fixed number of units, no growth
    with length or scores.
    """
    del dtype
    return PROMISES[name].most * PROMISES[name].unit(case)


def kernel_allowance(name, case, dtype):
    """What rounding can do to a kernel that computes in float32 (float64 for float64 input) and rounds its
    output to `dtype`.

    The componentwise bound stored with the golden (`GoldenCase.error_bound`), plus one rounding of the
    result. It grows with length and scores: it is what is left of certainty, and a kernel usually uses a
    few percent of it.
    """
    narrow = any(array.dtype.kind == "f" and array.dtype != np.float64 for array in case.arguments.values())
    exact = np.abs(case.golden[name])
    exact = np.where(np.isfinite(exact), exact, 0.0)
    bound = rounding_alone(name, case, U32 if narrow else U64)
    return bound + np.finfo(dtype).eps / 2 * exact + float(np.finfo(dtype).smallest_subnormal)
