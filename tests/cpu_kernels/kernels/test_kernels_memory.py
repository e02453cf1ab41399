"""Extra memory stays below 4 MiB a thread at any length: long work is planned a portion at a time, with the
same results.
"""

import tracemalloc

import numpy as np
import pytest
from cases import CASES
from kernel_checks import FUNCTIONS, assert_right
from test_kernels import LARGE

from cpu_kernels import num_threads, plan
from cpu_kernels.call import Dims, Sequences
from cpu_kernels.machine import thread_pool


@pytest.mark.sample(4)
@pytest.mark.parametrize("rows, groups", [(64, 3), (1, 1), (5, 1000), (100000, 2)])
@pytest.mark.parametrize("case", [*CASES[::15], *LARGE], ids=str)
def test_portions_change_nothing_but_rounding(case, rows, groups, monkeypatch):
    if rows == 1 and case in LARGE:
        pytest.skip("thousands of portions")
    monkeypatch.setattr(plan, "ROWS_AT_ONCE", rows)
    monkeypatch.setattr(plan, "GROUPS_AT_ONCE", groups)
    arrays, options = case.build("float32")
    assert_right(case.function, arrays.values(), options, "float32")


def test_portions_hold_every_row_once():
    lens = np.array([5, 0, 1000, 3, 0, 0, 77])
    given = Sequences(len(lens), (), lens, np.arange(7), lens * 10, 0, np.arange(7), np.cumsum(lens) - lens)
    seen = []
    for portion in plan.portions(given, Dims(1, plan.ROWS_AT_ONCE // 64, 8, 0, 8)):
        assert portion.count <= plan.GROUPS_AT_ONCE and portion.q_lens.sum() <= 64
        for n, count in enumerate(portion.q_lens):
            assert portion.kv_lens[n] == n
            seen += [
                (row, offset)
                for row, offset in zip(
                    portion.first_row[n] + np.arange(count), portion.q_offsets[n] + np.arange(count)
                )
            ]
    expected = [
        (start + i, 10 * count + i) for start, count in zip(given.first_row, lens) for i in range(count)
    ]
    assert seen == expected


# Small dims and windows make long sequences cheap; tables grow with rows and groups, whatever the dims.
LONG = {
    "decode": ("attention", [(8, 1, 64), (1, 2**18, 64), (1, 2**18, 64)], {}),
    "decode-mla": ("attention", [(128, 1, 576), (1, 2**13, 576), (1, 2**13, 512)], {}),
    "few-rows": ("attention", [(4, 64, 576), (1, 4096, 576), (1, 4096, 512)], {}),
    "rows": ("attention", [(1, 2**21, 4), (1, 2**21, 4), (1, 2**21, 4)], dict(window=(8, 0))),
    "heads": ("attention", [(32, 2**17, 4), (4, 2**17, 4), (4, 2**17, 4)], dict(window=(8, 0))),
    "batch": ("attention", [(4096, 8, 1, 8), (4096, 8, 3, 8), (4096, 8, 3, 8)], {}),
    "blocks": ("block_local_attention", [(8, 2**17, 4)] * 3, dict(block_size=64)),
    "sequences": (
        "packed_attention",
        [(8, 2**16, 4)] * 3,
        dict(cu_q=np.arange(0, 2**16 + 1, 16), cu_kv=np.arange(0, 2**16 + 1, 16)),
    ),
}


@pytest.mark.parametrize("id", LONG)
def test_extra_memory(id):
    function, shapes, options = LONG[id]
    arrays = [np.ones(shape, np.float32) for shape in shapes]
    with num_threads(1):
        FUNCTIONS[function](*arrays, **options)  # compiles, and gives the thread its scratch
        plan._PLANS.clear()
        tracemalloc.start()
        try:
            output, lse = FUNCTIONS[function](*arrays, **options)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    extra = peak - output.nbytes - lse.nbytes + thread_pool._kept.memory.nbytes
    assert extra < 4 << 20, f"{extra / 2**20:.2f} MiB"
    assert np.allclose(output, 1, atol=1e-5)
