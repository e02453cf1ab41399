"""One row of attention in exact arithmetic: integers for dot products, mpmath for exp, log and tanh.

Floats are whole multiples of a power of two, so dot products of them are integers and come out exactly;
the sum of weights times values too, after the weights are cut off 2200 bits below the largest. What
remains is rounding 200 bits behind the binary point of the logits: 40 digits better than what is tested.
"""

from typing import NamedTuple

import numpy as np
from mpmath import mp, mpf

PRECISION = 200  # bits behind the binary point of a logit
WEIGHT_BITS = 2200  # below this a weight times the largest float64 is less than the smallest


class ExactRow(NamedTuple):
    """The row's output, sum of weight times absolute value for each column, lse, and the largest
    absolute term of the lse.
    """

    output: list
    gauge: list
    lse: mpf
    largest_term: mpf


def as_integers(x):
    """(whole numbers, exponent): x = whole numbers * 2**exponent, exactly."""
    fraction, exponent = np.frexp(np.asarray(x, dtype=np.float64))
    whole = (fraction * 2.0**53).astype(np.int64).astype(object)
    exponent = exponent.astype(np.int64) - 53
    lowest = int(exponent[whole != 0].min()) if (whole != 0).any() else 0
    shift = np.where(whole != 0, exponent - lowest, 0).astype(object)
    return np.left_shift(whole, shift) if whole.size else whole, lowest


def exact_scores(q, keys, scale):
    """scale * keys @ q as a list of mpf; `scale` is a float or an mpf."""
    with mp.workprec(PRECISION):
        (q, q_exponent), (keys, keys_exponent) = as_integers(q), as_integers(keys)
        products = [int(x) for x in keys @ q]
        mp.prec += max((abs(x).bit_length() for x in products), default=0)  # nothing is rounded here
        return [mp.ldexp(mpf(x), q_exponent + keys_exponent) * scale for x in products]


def exact_row(scores, values, *, softcap=None, terms=None, sink=-np.inf, keep=None):
    """Attention of one row over its visible keys.

    `scores`: list of mpf; `values`: (n, E) floats; `terms`: for each key the addends after the cap (bias,
    ALiBi), floats or mpf; `keep`: for each key the factor of dropout on its weight.
    """
    addends = [x for extra in terms or [] for x in extra]
    with mp.workprec(PRECISION + _bits_before_the_point([*scores, *addends, sink])):
        logits = scores if softcap is None else [softcap * mp.tanh(x / softcap) for x in scores]
        if terms is not None:
            logits = [mp.fsum([x, *map(mpf, extra)]) for x, extra in zip(logits, terms, strict=True)]
        top = max([*logits, mpf(float(sink))])
        powers = [mp.exp(x - top) for x in logits]
        total = mp.fsum(powers) + (mp.exp(mpf(float(sink)) - top) if sink > -np.inf else 0)
        weights = [p / total for p in powers]
        if keep is not None:
            weights = [p * k for p, k in zip(weights, keep, strict=True)]
        fixed = np.array([_fixed_point(p) for p in weights], dtype=object)
        whole, exponent = as_integers(values)

        def back(sums):
            return [mp.ldexp(mpf(int(x)), exponent - WEIGHT_BITS) for x in sums]

        lse = top + mp.log(total)
        return ExactRow(
            back(fixed @ whole),
            back(fixed @ np.abs(whole)),
            lse,
            max(abs(top), abs(mp.log(total)), abs(lse)),
        )


def _bits_before_the_point(numbers):
    """How many bits the largest finite number has before its binary point."""
    finite = [mpf(x) for x in numbers if mp.isfinite(x)]
    return max([0, *(int(mp.mag(x)) for x in finite if x)])


def _fixed_point(p):
    """floor(p * 2**WEIGHT_BITS) for p >= 0."""
    _, mantissa, exponent, _ = p._mpf_
    shift = exponent + WEIGHT_BITS
    return mantissa << shift if shift >= 0 else mantissa >> min(-shift, 4 * WEIGHT_BITS)
