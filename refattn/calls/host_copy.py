"""Arrays of other libraries as the oracle takes them: in CPU memory, without gradients, of numbers that
NumPy can compute with.

The functions of `refattn` refuse a tensor on a GPU, because computing elsewhere than where the data lies is
the caller's decision. The oracle only looks at numbers that were computed already, so it copies them.
"""

from __future__ import annotations

import sys

import numpy as np

from refattn.calls.arrays import as_array


def on_host(x, name):
    """An array of another library as one of NumPy; anything else as it is.

    Parameters
    ----------
    x : object
        Any argument. A torch tensor is detached and, like an array of jax or cupy, copied from its device.
        8-bit floats of torch, jax, or `ml_dtypes` become float32, which holds each of their numbers.
    name : str
        The argument's name, for messages.

    Raises
    ------
    TypeError
        As `as_array`, and for 8-bit floats of torch where `ml_dtypes` is missing.

    Examples
    --------
    >>> x = np.ones(3)
    >>> on_host(x, "query") is x
    True
    """
    if is_torch(x):
        return _of_torch(sys.modules["torch"], x, name)
    if is_jax(x):
        x = np.asarray(x)
    elif type(x).__module__.partition(".")[0] == "cupy":
        return x.get()
    elif type(x).__module__.partition(".")[0] == "mlx":
        return as_array(x, name)
    return widened(x) if isinstance(x, np.ndarray) else x


def all_on_host(names, arrays, options):
    """Positional arrays, which have these names, and options by `on_host`."""
    named = zip((*names, *(f"array {n}" for n in range(len(names), len(arrays)))), arrays, strict=False)
    return tuple(on_host(x, name) for name, x in named), {
        name: on_host(value, name) for name, value in options.items()
    }


def is_torch(x):
    """Whether `x` is a tensor of torch."""
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)
    return tensor is not None and isinstance(x, tensor)


def is_jax(x):
    """Whether `x` is an array of jax."""
    array_class = getattr(sys.modules.get("jax"), "Array", None)
    return array_class is not None and isinstance(x, array_class)


def is_8_bit(dtype):
    """Whether a NumPy dtype is one of the 8-bit floats of `ml_dtypes`."""
    return dtype.name.startswith("float8_")


def widened(array):
    """8-bit floats as float32, exactly; other arrays as they are."""
    return array.astype(np.float32) if is_8_bit(array.dtype) else array


def float_dtype_name(x):
    """Name of the number format of an array or tensor of any library, "" where it has none."""
    return str(getattr(x, "dtype", "")).rpartition(".")[2]


def _of_torch(torch, x, name):
    x = x.detach()
    if x.layout == torch.strided and x.device.type not in ("cpu", "meta"):
        x = x.cpu()
    if not str(x.dtype).startswith("torch.float8_"):
        return as_array(x, name)
    try:
        import ml_dtypes
    except ImportError:
        raise TypeError(
            f"{name} must be float16, bfloat16, float32 or float64, or the package ml_dtypes be installed, "
            f"which gives NumPy 8-bit floats (pip install ml_dtypes); got {name}.dtype={x.dtype}."
        ) from None
    bits = as_array(x.view(torch.uint8), name)
    return widened(bits.view(getattr(ml_dtypes, float_dtype_name(x))))
