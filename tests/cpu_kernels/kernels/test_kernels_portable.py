"""The kernels compiled for lesser processors give results within the same bounds: vectors of 32 bytes
with 16 registers, and of 16 bytes without FMA.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TARGETS = {
    "avx2": (
        "x86-64-v3",
        "+sse,+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+avx,+avx2,+fma,+bmi,+bmi2,+f16c,+lzcnt,+movbe",
    ),
    "sse2": ("x86-64", "+sse,+sse2"),
}
SCRIPT = """
from cases import CASES
from kernel_checks import assert_right
from cpu_kernels.compiler.jit import vector_bytes
assert vector_bytes() == {width}
for case in CASES:
    if case.id.startswith(("plain", "softcap", "head_dim", "heads-", "tile-keys", "pair-00", "paged-1x", "latent-1", "block-5", "packed-1")):
        for dtype in ("float32", "float64"):
            arrays, options = case.build(dtype)
            assert_right(case.function, arrays.values(), options, dtype)
"""


@pytest.mark.campaign  # kernel_builds.sh runs more of the same
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names x86 features")
@pytest.mark.parametrize("target, width", [("avx2", 32), ("sse2", 16)])
def test_lesser_processor(target, width):
    name, features = TARGETS[target]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    environment = os.environ | {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features, "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", SCRIPT.format(width=width)], check=True, env=environment)
