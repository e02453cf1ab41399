"""The dtype in which a kernel gets its inputs, and the one in which their numbers are made.

NumPy computes with no 8-bit floats: for a kernel that takes those, inputs are numbers of the format in a
float32 array, and become 8-bit floats on their way to the kernel.
"""

from __future__ import annotations

import numpy as np

from refattn.oracle.arithmetic.formats import number_format
from refattn.oracle.arithmetic.spec import EIGHT_BITS, kernel_spec

OF_16_BITS_OR_MORE = ("float64", "float32", "float16", "bfloat16")


def input_dtype(dtype, spec, arrays="numpy") -> tuple[np.dtype, np.dtype | None]:
    """The dtype of the numbers, and the 8-bit dtype in which the kernel gets them; None where it gets the
    former.

    Parameters
    ----------
    dtype, spec
        As of `check_kernel`: what is asked for, and the arithmetic, whose dtype is the default.
    arrays : str
        Library of the arrays. NumPy arrays for a kernel of 8-bit floats are float32 unless `dtype` says
        otherwise.

    Examples
    --------
    >>> input_dtype(None, "bfloat16")[0].name, input_dtype(None, "float8_e5m2")[0].name
    ('bfloat16', 'float32')
    >>> input_dtype(None, "float8_e5m2", "torch")[1].name
    'float8_e5m2'
    """
    if dtype is not None:
        name = number_format(dtype, "dtype").name
    else:
        name = "float32" if spec is None else _dtype_of(kernel_spec(spec, np.float32))
        name = "float32" if name in EIGHT_BITS and arrays == "numpy" else name
    if name in EIGHT_BITS:
        return np.dtype(np.float32), _of_ml_dtypes(name)
    if name not in OF_16_BITS_OR_MORE:
        raise ValueError(f"dtype must be {', '.join((*OF_16_BITS_OR_MORE, *EIGHT_BITS))}; got dtype={name}.")
    return (_of_ml_dtypes(name) if name == "bfloat16" else np.dtype(name)), None


def output_dtype(spec) -> np.dtype:
    """The dtype in which a spec writes its output; float32 for formats that are no dtype."""
    name = spec.output.name if spec.output.name in OF_16_BITS_OR_MORE else "float32"
    return _of_ml_dtypes(name) if name == "bfloat16" else np.dtype(name)


def _dtype_of(spec):
    """Name of the dtype of a spec's inputs; 8-bit kernels read dequantised numbers exactly."""
    if spec.input.name == "exact" and spec.weight.name in EIGHT_BITS:
        return spec.weight.name
    return spec.input.name if spec.input.name in (*OF_16_BITS_OR_MORE, *EIGHT_BITS) else "float32"


def _of_ml_dtypes(name):
    try:
        import ml_dtypes
    except ImportError as error:
        raise ImportError(
            f"dtype={name!r} needs the package ml_dtypes, which cannot be imported (pip install "
            "'refattn[lowp]')."
        ) from error
    return np.dtype(getattr(ml_dtypes, name))
