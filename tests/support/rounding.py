"""How far apart two correct float64 computations of the same attention may be: the bounds the tests compare
with, derived here.

u = 2^-53. What refattn promises (and test_exact.py proves): output within 4u * sum(p|v|), lse within 8
ulp of its largest term. What naive.py may lose follows from its operations; fsum rounds once:

    score    products, their sum and the scale: 3u * eta,                       eta = |scale| * sum_d |q_d k_d|
    capped   quotient u, tanh 4u (two ulp), product u: 6u * |capped| more; x * tanh'(x) <= tanh(x), and tanh' <= 1 passes the score's error
    biased   slope times distance u * |alibi|, the sum u * |biased| more
    weight   an error eps_j of a logit changes p_j by a factor e^(eps_j) and the total by at most e^(sum_k p_k eps_k); the same for the
             rounding u * |x_j - top| of the difference; two exponentials 2u each, total u, quotient u: 6u
             more
    lse      sum_k p_k eps_k, the difference, exponentials and total 3u, log 2u * |log total|, the last sum u * |lse|
    output   the weights' errors, times |v|; dropout factor and products 5u, sum u

First order in u; a hundredth on top covers the rest as long as errors stay below a percent.
"""

import math

import numpy as np
from naive import Steps

UNIT = 2.0**-53
SMALLEST = 2.0**-1074
OUTPUT_UNITS = 4  # the promise of refattn
LSE_ULPS = 8
SECOND_ORDER = 1.01


def gauge_bound(gauge, times=1):
    """Bound on the difference of `times` + 1 results that keep the promise, from gauge = sum(p|v|)."""
    return (times + 1) * (OUTPUT_UNITS * UNIT * gauge * SECOND_ORDER + SMALLEST)


def lse_bound(lse, kv_len, times=1, largest_score=0.0):
    """The same for lse: its terms are the largest score and log(total) <= log(kv_len + 1), the score
    at most |lse| + log(kv_len + 1).
    """
    finite = np.where(np.isfinite(lse), np.abs(lse), 0.0)
    return (times + 1) * LSE_ULPS * np.spacing(finite + math.log(kv_len + 2))


def naive_bounds(query, key, value, steps, *, scale=None, bias=None, dropout_rate=None, **_):
    """Bounds on |refattn - naive| for every step, of the shape of the steps; hidden entries get 0."""
    group_size = query.shape[-3] // key.shape[-3]
    k, v = (np.repeat(x.astype(float), group_size, axis=-3) for x in (key, value))
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    seen = ~np.isnan(steps.scores)

    def visible(x):
        return np.where(seen, x, 0.0)

    eta = visible(abs(scale) * (np.abs(query.astype(float)) @ np.abs(k).swapaxes(-1, -2)))
    score, capped, biased = (np.abs(visible(x)) for x in (steps.scores, steps.capped, steps.biased))
    size_of_bias = 0.0 if bias is None else visible(np.abs(bias.astype(float)))
    alibi = np.abs(visible(steps.biased) - visible(steps.capped)) + size_of_bias

    eps_score = 3 * UNIT * eta
    eps_capped = eps_score + 6 * UNIT * capped
    eps = eps_capped + UNIT * (alibi + biased)

    p = steps.weights
    logits = np.where(seen, steps.biased, -np.inf)
    top = logits.max(axis=-1, keepdims=True, initial=-np.inf)
    top = np.maximum(
        top, -np.where(np.isfinite(steps.lse), -steps.lse, np.inf)[..., None]
    )  # a sink may be the largest: then lse is near it
    below = visible(np.where(seen, top, 0.0) - visible(logits))
    below = np.abs(below)

    def average(x):
        return (p * x).sum(axis=-1, keepdims=True)

    sink_share = UNIT * np.maximum(0.0, 1 - p.sum(axis=-1, keepdims=True)) * 2 * math.log(key.shape[-2] + 2)
    relative = eps + UNIT * below + average(eps + UNIT * below) + sink_share + 6 * UNIT
    weight = p * relative * SECOND_ORDER

    spent = (average(eps + UNIT * below) + sink_share)[..., 0] + 5 * UNIT
    finite_lse = np.where(np.isfinite(steps.lse), np.abs(steps.lse), 0.0)
    lse = spent + UNIT * (2 * math.log(key.shape[-2] + 2) + finite_lse)
    keep = 1.0 if dropout_rate is None else 1 / (1 - dropout_rate)
    output = keep * ((weight + 6 * UNIT * p) @ np.abs(v))

    own = SECOND_ORDER * UNIT  # refattn rounds each step it returns
    return Steps(
        eps_score * SECOND_ORDER + own * score,
        eps_capped * SECOND_ORDER + own * capped,
        eps * SECOND_ORDER + own * biased,
        weight + OUTPUT_UNITS * UNIT * p + 2 * SMALLEST,
        lse * SECOND_ORDER + lse_bound(steps.lse, key.shape[-2], times=0),
        output * SECOND_ORDER
        + gauge_bound(keep * (p @ np.abs(v)), times=0)
        + (key.shape[-2] + 2) * SMALLEST,
    )


def uniform_bounds(eta, largest_term, largest_value, lse, kv_len, *, dropout_rate=None, extra_units=0):
    """(output, lse) bounds on |refattn - naive| for all elements at once, from the largest eta, addend of a
    logit, and |value|.

    sum_j p_j (top - x_j) <= log(number of logits), whatever the scores. `extra_units`: roundings of a
    value made from a latent.
    """
    eps = UNIT * (3 * eta + 6 * eta + 3 * largest_term + eta)
    entropy = math.log(kv_len + 2)
    keep = 1.0 if dropout_rate is None else 1 / (1 - dropout_rate)
    output = keep * largest_value * (2 * eps + UNIT * (2 * entropy + 12 + OUTPUT_UNITS + extra_units))
    return output * SECOND_ORDER + (kv_len + 2) * SMALLEST, (
        eps + UNIT * (3 * entropy + 5 + np.nan_to_num(np.abs(lse), posinf=0.0))
    ) * SECOND_ORDER + lse_bound(lse, kv_len, times=0)
