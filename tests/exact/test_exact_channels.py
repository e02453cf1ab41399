"""Channels of opposite size: outliers in the query meet small keys, as models have them that were
smoothed for quantisation.
"""

import numpy as np
import pytest
from exact_checks import check


@pytest.mark.parametrize("ratio", [1, 2**5, 2**8, 2**12, 2**20])
@pytest.mark.parametrize("score", [1e2, 1e4, 1e6])
def test_opposed_channels(ratio, score):
    rng = np.random.default_rng(0)
    dim = 64
    size = np.where(np.arange(dim) % 2, ratio, 1.0)
    query = rng.standard_normal((1, 2, dim)) * size
    key = rng.standard_normal(dim) / size
    query *= score / (np.abs(query @ key).max() / np.sqrt(dim))
    keys = key + rng.standard_normal((1, 6, dim)) / size / score * 3  # nearly the same score for all
    check(query, keys, rng.standard_normal((1, 6, 2)), rows=[(0, 0), (0, 1)])
