"""merge_states of cpu_kernels on parts of different dtypes: the dtype of the result follows from all
parts, in any order.
"""

import itertools

import numpy as np
import pytest

import refattn
from cpu_kernels import merge_states

ml_dtypes = pytest.importorskip("ml_dtypes")
HALF, BRAIN, SINGLE, DOUBLE = (
    np.dtype(kind) for kind in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)
)


@pytest.mark.parametrize(
    ("dtypes", "lse_dtype", "expected", "expected_lse"),
    [
        ((HALF, HALF), SINGLE, HALF, SINGLE),
        ((BRAIN, BRAIN), SINGLE, BRAIN, SINGLE),
        ((HALF, BRAIN), SINGLE, SINGLE, SINGLE),
        ((HALF, SINGLE, HALF), SINGLE, SINGLE, SINGLE),
        ((SINGLE, DOUBLE), SINGLE, DOUBLE, DOUBLE),
        ((SINGLE, BRAIN, DOUBLE), SINGLE, DOUBLE, DOUBLE),
        ((SINGLE, SINGLE), DOUBLE, SINGLE, DOUBLE),
    ],
    ids=str,
)
def test_dtype_of_the_result(dtypes, lse_dtype, expected, expected_lse):
    rng = np.random.default_rng(len(dtypes))
    parts = [
        (rng.normal(size=(2, 3, 5)).astype(dtype), rng.normal(size=(2, 3)).astype(lse_dtype))
        for dtype in dtypes
    ]
    exact, exact_lse = refattn.merge_states(*zip(*parts))
    roundoff = {HALF: 2.0**-11, BRAIN: 2.0**-8, SINGLE: 2.0**-24, DOUBLE: 2.0**-53}
    for order in itertools.permutations(parts):
        output, lse = merge_states(*zip(*order))
        assert output.dtype == expected and lse.dtype == expected_lse
        # a weight, its product and sum for every part, and the rounding to the output; outputs are below 4
        sums = (3 * len(parts) + 2) * max(roundoff[expected_lse], 2.0**-53)
        assert np.abs(output.astype(np.float64) - exact).max() <= 4 * (sums + roundoff[expected])
        assert np.abs(lse - exact_lse).max() <= 4 * 4 * roundoff[expected_lse]


def test_stacked_array_is_a_sequence_of_parts():
    rng = np.random.default_rng(1)
    outputs, lses = (
        rng.normal(size=(3, 2, 4, 5)).astype(np.float32),
        rng.normal(size=(3, 2, 4)).astype(np.float32),
    )
    for stacked, listed in zip(merge_states(outputs, lses), merge_states(list(outputs), list(lses))):
        assert np.array_equal(stacked, listed)
