"""Keys and values stored in 16 bits: Numba knows neither type, so arrays of them reach it as integers, and
LLVM as what they are.
"""

import numpy as np
from llvmlite import ir

STORED = {"bfloat16": np.dtype(np.uint16), "float16": np.dtype(np.int16)}
BFLOAT16, FLOAT16 = ir.IntType(16), ir.HalfType()


def widen(builder, value):
    """float32 of a scalar or vector stored in 16 bits, anything else as it is."""
    vector = isinstance(value.type, ir.VectorType)
    like = (
        (lambda element: ir.VectorType(element, value.type.count)) if vector else (lambda element: element)
    )
    kind = value.type.element if vector else value.type
    if kind == FLOAT16:
        return builder.fpext(value, like(ir.FloatType()))
    if kind != BFLOAT16:
        return value
    wide = like(ir.IntType(32))
    bits = builder.shl(
        builder.zext(value, wide), ir.Constant(wide, [16] * value.type.count if vector else 16)
    )
    return builder.bitcast(bits, like(ir.FloatType()))


def widened(memory):
    """The array as floats, for twins in Python."""
    if memory.dtype == STORED["bfloat16"]:
        return (memory.astype(np.uint32) << 16).view(np.float32)
    return memory.view(np.float16).astype(np.float32) if memory.dtype == STORED["float16"] else memory
