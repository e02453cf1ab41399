"""Middle and spread of repeated measurements, without any assumption about their distribution."""

from math import comb

import numpy as np

FEWEST = 6  # values; with fewer, not even the whole range holds the median with 95 % confidence


def quartiles(values):
    return tuple(float(x) for x in np.percentile(values, (25, 50, 75)))


def median_interval(values, confidence=0.95):
    """(low, median, high): two of the values, between which the median of their distribution lies with at
    least this confidence.

    Of n independent values, a binomial number lies below the median; the widest tails that still leave
    `confidence` are cut off. With fewer than `FEWEST` values the interval is their range, and its confidence
    is only 1 - 2**(1 - n).
    """
    ordered = np.sort(np.asarray(values, np.float64))
    count = len(ordered)
    cut, tail = 0, 0.5**count
    while 2 * (tail + comb(count, cut + 1) * 0.5**count) <= 1 - confidence:
        cut += 1
        tail += comb(count, cut) * 0.5**count
    return float(ordered[cut]), float(np.median(ordered)), float(ordered[count - 1 - cut])


def paired(above, below):
    """Ratios of what was measured in the same rounds; the longer list is cut to the rounds of the
    shorter."""
    count = min(len(above), len(below))
    return np.asarray(above[:count]) / np.asarray(below[:count])
