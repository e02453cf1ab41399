"""Kernels as plain Python: under NUMBA_DISABLE_JIT=1 the building blocks are their NumPy twins and
give the compiled result.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import CASES
from kernel_checks import FUNCTIONS

ROOT = Path(__file__).parents[3]
IDS = [
    "plain",
    "causal-True",
    "window-3__2",
    "softcap-5.0",
    "bias-bhts_inf",
    "mask-1ht1_rows",
    "alibi_slopes-heads",
    "sinks-some",
    "kv_lengths-array",
    "packed-11x17-1",
    "paged-11x20-1",
    "latent-1-11x17-1-absorb",
    "latent-1-11x17-1-expand",
    "block-5-1",
    "tile-65",
]
SCRIPT = """
import sys
import numpy as np
from cases import CASES
from kernel_checks import FUNCTIONS
results = {}
for case in CASES:
    if case.id in sys.argv[2:]:
        arrays, options = case.build("float64")
        for name, array in zip(("output", "lse"), FUNCTIONS[case.function](*arrays.values(), **options)):
            results[f"{case.id} {name}"] = array
np.savez(sys.argv[1], **results)
"""


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    path = tmp_path_factory.mktemp("interpreted") / "results.npz"
    environment = os.environ | {
        "NUMBA_DISABLE_JIT": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")]),
    }
    known = [case.id for case in CASES if case.id in IDS]
    subprocess.run([sys.executable, "-c", SCRIPT, str(path), *known], check=True, env=environment)
    with np.load(path) as archive:
        return dict(archive)


def test_the_cases_exist():
    assert {case.id for case in CASES} >= set(IDS)


@pytest.mark.parametrize("case", [case for case in CASES if case.id in IDS], ids=str)
def test_same_result(case, interpreted):
    arrays, options = case.build("float64")
    output, lse = FUNCTIONS[case.function](*arrays.values(), **options)
    for name, ours in (("output", output), ("lse", lse)):
        theirs = interpreted[f"{case.id} {name}"]
        assert np.array_equal(np.isfinite(ours), np.isfinite(theirs))
        # the same arithmetic but for the order of sums of at most 65 terms and the last bits of exp2
        seen = np.isfinite(ours)
        assert np.abs(ours[seen] - theirs[seen]).max(initial=0) <= 200 * 2.0**-53 * max(
            1, np.abs(ours)[seen].max(initial=0)
        )
