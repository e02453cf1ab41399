"""Vector registers of the machine that code is compiled for."""

import numpy as np

from cpu_kernels.compiler.jit import cpu_features, vector_bytes

VECTOR_BYTES = vector_bytes()
# 32 vector registers hold a tile of 6 x 4 accumulators, 16 hold 6 x 2: with the operands beside them nothing
# spills.
MAX_VECTORS = 4 if cpu_features() & {"avx512f", "neon"} else 2


def lanes(dtype):
    """Elements of `dtype` in one vector register."""
    return VECTOR_BYTES // np.dtype(dtype).itemsize
