"""Holding refattn to exact arithmetic: output within 4 * 2^-53 * sum(p * |v|), lse within 8 units in the
last place of its largest term.

The bounds are the promise of the package. `exact.py` has the arithmetic they are measured against; it
needs mpmath, as everything here does.
"""

import math
import warnings

import naive
import numpy as np
import pytest
from exact import PRECISION, exact_row, exact_scores
from mpmath import mp, mpf

import refattn

UNIT = 2.0**-53
SMALLEST = 2.0**-1074  # half of it is what rounding to the nearest subnormal may cost; one whole is allowed
OUTPUT_UNITS, LSE_ULPS = 4, 8


def draw(family, n, dim=16, v_dim=5, rows=4, heads=2, dtype=np.float64, seed=0):
    """One batch of a family: (heads, rows, dim) on one kv head of n keys, its numbers exactly those
    of dtype.
    """
    rng = np.random.default_rng([seed, n, dim])
    arrays = family(rng, (heads, rows, dim), (1, n, dim), (1, n, v_dim), np.dtype(dtype))
    return [x.astype(dtype) for x in arrays]


def addends(j, h, i, position, options):
    """What is added to the score of key j after the cap."""
    terms = []
    if "bias" in options:
        terms.append(float(np.broadcast_to(options["bias"], options["shape"])[h, i, j]))
    if "alibi_slopes" in options:
        terms.append(-mpf(float(options["alibi_slopes"][h])) * abs(position - j))
    return terms


def seen_keys(query, key, h, i, options):
    """The keys that row i of head h sees."""
    (heads, rows, _), n = query.shape, key.shape[-2]
    shape = (heads, rows, n)
    position = options.get("q_offset", n - rows) + i
    return [
        j
        for j in range(n)
        if naive.sees(position, j, **options)
        and ("bias" not in options or np.broadcast_to(options["bias"], shape)[h, i, j] > -np.inf)
        and ("mask" not in options or np.broadcast_to(options["mask"], shape)[h, i, j])
    ]


def exactly(query, key, value, h, i, options):
    """The exact row i of head h, one kv head serving all, for arrays without batch axes; None where
    it sees nothing.
    """
    (heads, rows, dim), n = query.shape, key.shape[-2]
    options = {**options, "shape": (heads, rows, n)}
    position = options.get("q_offset", n - rows) + i
    seen = seen_keys(query, key, h, i, options)
    if not seen:
        return None
    keep = None
    with mp.workprec(PRECISION):
        if "dropout_mask" in options:
            factor = 1 / (1 - mpf(options["dropout_rate"]))
            keep = [
                int(np.broadcast_to(options["dropout_mask"], options["shape"])[h, i, j]) * factor
                for j in seen
            ]
        scale = options.get("scale", 1 / math.sqrt(dim))  # a float64 like every scale a caller passes
        return exact_row(
            exact_scores(query[h, i], key[0, seen], mpf(scale)),
            value[0, seen],
            softcap=options.get("softcap"),
            terms=[addends(j, h, i, position, options) for j in seen],
            sink=options["sinks"][h] if "sinks" in options else -np.inf,
            keep=keep,
        )


def units_used(output, lse, exact):
    """(error of the output in units of 2^-53 * sum(p|v|), error of the lse in ulps of its largest
    term), worst of the row.
    """
    with mp.workprec(PRECISION):
        worst = mpf(0)
        for got, true, gauge in zip(output.tolist(), exact.output, exact.gauge, strict=True):
            error = (
                max(abs(mpf(got) - true) - SMALLEST, 0)
                if math.isfinite(got)
                else (0 if got == float(true) else mp.inf)
            )
            if error:
                worst = max(worst, error / (UNIT * gauge) if gauge else mp.inf)
        ulp = np.spacing(min(float(exact.largest_term), 1e308))
        return float(worst), float(abs(mpf(float(lse)) - exact.lse) / ulp)


def check(query, key, value, options=None, rows=((0, 0), (1, -1)), lse_too=True):
    """Compare the sampled (head, row) pairs; every kind of warning is an error."""
    options = options or {}
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        output, lse = refattn.attention_with_lse(query, key, value, **options)
    assert not np.isnan(output).any() and not np.isnan(lse).any()
    for h, i in rows:
        i %= query.shape[1]
        exact = exactly(query, key, value, h, i, options)
        output_units, lse_ulps = units_used(output[h, i], lse[h, i], exact)
        where = f"head {h}, row {i}"
        assert output_units <= OUTPUT_UNITS, (
            f"{where}: output off by {output_units:.2f} units of 2^-53 * sum(p|v|)"
        )
        assert not lse_too or lse_ulps <= LSE_ULPS, (
            f"{where}: lse off by {lse_ulps:.2f} ulp of its largest term"
        )


def check_many(query, key, value):
    """All rows at once against long double, 2^11 times finer than float64 where it is the 80-bit
    format: for moderate scores.
    """
    if np.finfo(np.longdouble).nmant < 63:
        pytest.skip("long double is no finer than float64 here")
    output, lse = refattn.attention_with_lse(query, key, value)
    wide = [x.astype(np.longdouble) for x in (query, key, value)]
    scores = wide[0] @ wide[1].swapaxes(-1, -2) * np.longdouble(1 / math.sqrt(query.shape[-1]))
    top = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    weights /= total
    gauge = UNIT * (weights @ np.abs(wide[2]))
    error = np.abs(output - weights @ wide[2])
    assert (error[gauge == 0] == 0).all()
    used = error / np.where(gauge == 0, 1, gauge)
    assert used.max() <= OUTPUT_UNITS, (
        f"output off by {float(used.max()):.2f} units of 2^-53 * sum(p|v|), {(used > OUTPUT_UNITS).sum()} "
        f"of {used.size} by too much"
    )
    terms = np.maximum(np.abs(top), np.log(total))[..., 0].astype(float)
    assert (np.abs(lse - (top + np.log(total))[..., 0]) <= LSE_ULPS * np.spacing(terms)).all()
