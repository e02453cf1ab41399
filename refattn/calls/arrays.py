"""Turn whatever array a caller holds into a NumPy array, without importing its library.

NumPy has no bfloat16, cannot see a torch tensor that requires a gradient, and quietly drops the mask of a
masked array. This file settles such cases once: the data of any CPU array-like as an `ndarray`, without a
copy where NumPy can address it, or a `TypeError` that names the argument.

`torch` is only looked up among the modules already loaded: who passes a tensor has imported it.
`ml_dtypes`, which gives NumPy its bfloat16, is imported when a bfloat16 tensor of torch or MLX arrives;
without it those 16 bits become the upper half of a float32, which is exact.
"""

import sys
import warnings

import numpy as np

from refattn.calls.memory import ensure_allocatable

# DLPack device types the CPU can address: CPU, CUDA pinned, ROCm pinned, CUDA managed.
_HOST_DEVICES = frozenset({1, 3, 11, 13})
_DEVICE_NAMES = {
    2: "cuda",
    4: "opencl",
    7: "vulkan",
    8: "metal",
    9: "vpi",
    10: "rocm",
    14: "oneapi",
    15: "webgpu",
    16: "hexagon",
    17: "maia",
}
OURS = ("refattn", "cpu_kernels")
_warned = []  # the argument of which it was said that no gradients come back
_MAX_NESTING = 64  # NumPy's own limit on the number of axes


def as_array(x, name):
    """Data of `x` as a NumPy array in native byte order, sharing memory with `x` where NumPy can address
    it.

    Parameters
    ----------
    x : array_like
        NumPy array (any strides, alignment or byte order), nested lists or tuples, a number, a torch CPU
        tensor, or any object with a buffer, `__array_interface__`, `__array__` or DLPack.
    name : str
        The argument's name, for messages.

    Returns
    -------
    numpy.ndarray
        An object of our own, though not its memory. Boolean, integer or real floating; bfloat16 has the
        dtype of `ml_dtypes`, or becomes float32 where `ml_dtypes` is missing. May be read-only.

    Raises
    ------
    TypeError
        For data outside CPU memory, sparse or quantized tensors, masked arrays, `numpy.matrix`, ragged
        lists, and dtypes that are not real numbers.

    Examples
    --------
    >>> as_array([[1.0, 2.0]], "query").shape
    (1, 2)
    >>> as_array(None, "query")
    Traceback (most recent call last):
        ...
    TypeError: query must be an array of real numbers; got query=None.
    """
    if type(x) is np.ndarray:
        return _native(x, name)
    if x is None:
        raise TypeError(f"{name} must be an array of real numbers; got {name}=None.")
    if isinstance(x, (str, bytes, bytearray, type)):
        raise _not_an_array(x, name)
    torch_tensor = getattr(sys.modules.get("torch"), "Tensor", ())
    if isinstance(x, np.ndarray):
        array = _from_ndarray(x, name)
    elif isinstance(x, torch_tensor):
        array = _from_torch(x, name)
    elif isinstance(x, (list, tuple)):
        array = _from_sequence(x, name)
    elif isinstance(x, (int, float)):
        array = np.asarray(x)
    else:
        array = _from_protocol(x, name)
    return _native(array, name)


def as_float_array(x, name):
    """`as_array` for an argument that must be float16, bfloat16, float32 or float64.

    Raises
    ------
    TypeError
        As `as_array`, and for any other dtype: integers are not promoted, longdouble and 8-bit floats are
        not rounded behind the caller's back.

    Examples
    --------
    >>> as_float_array([1, 2], "query")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    TypeError: query must be float16, bfloat16, float32 or float64; got query.dtype=int64. Cast it ...
    """
    array = as_array(x, name)
    if is_float(array.dtype):
        return array
    if array.dtype.kind == "b" and name == "bias":
        hint = "Pass boolean masks as mask."
    else:
        hint = f"Cast it with np.asarray({name}, np.float32)."
    raise TypeError(
        f"{name} must be float16, bfloat16, float32 or float64; got {name}.dtype={array.dtype}. {hint}"
    )


def as_bool_array(x, name):
    """`as_array` for an argument that must be boolean.

    Raises
    ------
    TypeError
        As `as_array`, and for any other dtype.

    Examples
    --------
    >>> as_bool_array([0.0, -1e9], "mask")
    Traceback (most recent call last):
        ...
    TypeError: mask must be bool; got mask.dtype=float64. Pass additive masks as bias.
    """
    array = as_array(x, name)
    if array.dtype.kind == "b":
        return array
    if is_float(array.dtype) and name == "mask":
        hint = "Pass additive masks as bias."
    else:
        hint = f"Cast 0/1 values with {name}.astype(bool)."
    raise TypeError(f"{name} must be bool; got {name}.dtype={array.dtype}. {hint}")


def as_int_array(x, name):
    """Lengths, offsets and indices as int64, in memory of our own: they decide addresses, so what is
    checked must be what is used.

    Of a view that repeats its elements each is copied once. Whoever writes `x` during a call no longer
    matters, which `as_array` does not promise.

    Raises
    ------
    TypeError
        As `as_array`, and for booleans and floats, whole or not.
    ValueError
        For an integer outside int64.
    MemoryError
        When the copy cannot be allocated.

    Examples
    --------
    >>> as_int_array([0, 3, 5], "cu_q")
    array([0, 3, 5])
    >>> as_int_array([0.0, 3.0], "cu_q")
    Traceback (most recent call last):
        ...
    TypeError: cu_q must be integer; got cu_q.dtype=float64. Cast it with np.asarray(cu_q, np.int64).
    """
    if type(x) is int and not -(2**63) <= x < 2**63:
        raise ValueError(f"{name} must fit in int64; got {name}={x}.")
    array = as_array(x, name)
    if isinstance(x, (list, tuple)) and array.size == 0:
        return array.astype(np.int64)  # NumPy reads an empty list as float64
    if array.dtype.kind not in "iu":
        raise TypeError(
            f"{name} must be integer; got {name}.dtype={array.dtype}. Cast it with np.asarray({name}, "
            "np.int64)."
        )
    ensure_allocatable(8 * stored_once(array).size, f"a copy of {name}")
    if array.dtype == np.uint64:
        array = _as_dtype(array, np.uint64)  # its largest element must not change before the conversion
        largest = stored_once(array).max(initial=0)
        if largest >= 2**63:
            raise ValueError(f"{name} must fit in int64; got {name}.max()={largest}.")
    return _as_dtype(array, np.int64)


def is_float(dtype):
    """Whether `dtype` is one of the four input dtypes: float16, bfloat16, float32, float64."""
    return dtype.char in "efd" or dtype.type.__name__ == "bfloat16"


def _from_ndarray(x, name):
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(
            f"{name} must be a plain array; got type({name})=MaskedArray, whose mask would be lost. "
            f"Pass {name}.filled(0) and say what may be attended with mask=."
        )
    if isinstance(x, np.matrix):
        raise TypeError(f"{name} must be a plain array; got type({name})=matrix. Pass np.asarray({name}).")
    return np.asarray(x)


def _from_torch(x, name):
    torch = sys.modules["torch"]
    if x.is_nested:
        raise TypeError(
            f"{name} must be a dense tensor; got {name}.is_nested=True. Concatenate it and call "
            "packed_attention."
        )
    if x.layout != torch.strided:
        raise TypeError(
            f"{name} must be a dense tensor; got {name}.layout={x.layout}. Pass {name}.to_dense()."
        )
    if x.is_quantized:
        raise TypeError(
            f"{name} must be float16, bfloat16, float32 or float64; got {name}.dtype={x.dtype}. Pass "
            f"{name}.dequantize()."
        )
    if x.device.type == "meta":
        raise TypeError(f"{name} must hold data; got {name}.device=meta.")
    if x.device.type != "cpu":
        raise _not_on_cpu(name, x.device)
    if x.requires_grad and torch.is_grad_enabled():
        _warn_of_no_gradients(name)
    try:
        # A conjugated or negated view keeps the operation as a flag that NumPy would not see.
        x = x.detach().resolve_conj().resolve_neg()
        if x.dtype == torch.bfloat16:
            return _bfloat16_from_bits(x.view(torch.int16).numpy())
        return x.numpy()
    except MemoryError:
        raise
    except Exception as error:
        raise TypeError(
            f"{name} must be a tensor NumPy can read; got {name}.dtype={x.dtype}. Cast it with "
            f"{name}.float()."
        ) from error


def _warn_of_no_gradients(name):
    """Once: whoever trains sees it, and is not told at every step."""
    if not _warned:
        _warned.append(name)
        warnings.warn(
            f"{name} requires gradients, but the result is computed by NumPy and carries none. Pass "
            f"{name}.detach(), or call under torch.no_grad(), if that is meant.",
            stacklevel=_frames_to_the_caller(),
        )


def _frames_to_the_caller():
    """How many calls up the first function outside the packages stands, as `warnings.warn` counts."""
    frame, count = sys._getframe(1), 0
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in OURS:
        frame, count = frame.f_back, count + 1
    return count + 1


def _bfloat16_from_bits(bits):
    try:
        import ml_dtypes
    except ImportError:
        # bfloat16 is the upper half of a float32.
        upper = stored_once(bits).view(np.uint16).astype(np.uint32)
        return np.broadcast_to((upper << 16).view(np.float32), bits.shape)
    return bits.view(ml_dtypes.bfloat16)


def _from_sequence(x, name):
    leaf = x
    for _ in range(_MAX_NESTING):
        if not isinstance(leaf, (list, tuple)) or not leaf:
            break
        leaf = leaf[0]
    if leaf is not x and not isinstance(
        leaf, (list, tuple, bool, int, float, complex, str, bytes, np.generic, type(None))
    ):
        # Arrays inside: each gets the care a whole argument gets.
        parts = [as_array(item, f"{name}[{index}]") for index, item in enumerate(x)]
        shapes = {part.shape for part in parts}
        if len(shapes) > 1:
            raise _ragged(name)
        return np.stack(parts)
    try:
        return np.asarray(x)
    except ValueError as error:
        raise _ragged(name) from error
    except (TypeError, RuntimeError, OverflowError, RecursionError) as error:
        raise _not_an_array(x, name) from error


def _from_protocol(x, name):
    _refuse_other_devices(x, name)
    if type(x).__module__.startswith("scipy.sparse"):
        raise TypeError(
            f"{name} must be a dense array; got type({name})={type(x).__name__}. Pass {name}.toarray()."
        )
    if _has_buffer(x) and (buffer := memoryview(x)).format == "bfloat16":  # MLX; NumPy knows no such format
        return _bfloat16_from_bits(
            np.frombuffer(x if buffer.c_contiguous else buffer.tobytes(), np.uint16).reshape(buffer.shape)
        )
    readers = [np.asarray]
    if hasattr(x, "__dlpack__"):
        # Before NumPy falls back to wrapping the object itself.
        numpy_reads_it = _has_buffer(x) or any(
            hasattr(x, attribute) for attribute in ("__array_struct__", "__array_interface__", "__array__")
        )
        readers = [np.asarray, np.from_dlpack] if numpy_reads_it else [np.from_dlpack]
    for reader in readers:
        try:
            array = reader(x)
        except MemoryError:
            raise
        except Exception as error:  # a foreign object's own code
            failure = error
        else:
            if array.ndim == 0 and array.dtype == object:
                raise _not_an_array(x, name)
            return array
    reason = str(failure).partition("\n")[0]
    raise TypeError(
        f"{name} must be an array NumPy can read; got type({name})={type(x).__name__}, which says: {reason}"
    ) from failure


def _refuse_other_devices(x, name):
    if _has_buffer(x):
        return  # CPU memory whatever device the library computes on, as with MLX's unified memory
    if hasattr(x, "__dlpack_device__"):
        try:
            device_type, device_id = x.__dlpack_device__()
        except Exception as error:
            raise _not_an_array(x, name) from error
        device_type = int(device_type)
        if device_type not in _HOST_DEVICES:
            raise _not_on_cpu(
                name, f"{_DEVICE_NAMES.get(device_type, f'device type {device_type}')}:{device_id}"
            )
        return
    if hasattr(x, "__cuda_array_interface__"):
        raise _not_on_cpu(name, "cuda")
    device = getattr(x, "device", None)
    if device is not None and "cpu" not in str(device).lower():
        raise _not_on_cpu(name, device)


def _has_buffer(x):
    try:
        memoryview(x).release()
    except Exception:  # TypeError without a buffer, BufferError or worse with one NumPy cannot use
        return False
    return True


def _native(array, name):
    # shape, strides and dtype of our own: whoever holds the caller's object can set its attributes during
    # the call
    array = array.view()
    dtype = array.dtype
    if dtype.kind not in "biuf" and not (
        dtype.kind == "V" and dtype.type.__module__.startswith("ml_dtypes")
    ):
        raise TypeError(f"{name} must be an array of real numbers; got {name}.dtype={dtype}.")
    if not dtype.isnative:
        return _as_dtype(array, dtype.newbyteorder("="))
    if not array.flags.aligned:
        return _as_dtype(array, dtype)
    return array


def _as_dtype(array, dtype):
    """A copy of the distinct elements, converted, broadcast like `array`: a huge broadcast view stays
    cheap.
    """
    return np.broadcast_to(stored_once(array).astype(dtype), array.shape)


def stored_once(array):
    """A view with every axis of stride 0 cut to length 1: each stored number once, axes kept."""
    return array[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in array.strides)]


def _not_an_array(x, name):
    return TypeError(f"{name} must be an array of real numbers; got type({name})={type(x).__name__}.")


def _not_on_cpu(name, device):
    return TypeError(
        f"{name} must be in CPU memory; got {name}.device={device}. Pass {name}.cpu() (cupy: {name}.get(), "
        f"jax: jax.device_get({name}))."
    )


def _ragged(name):
    return TypeError(
        f"{name} must be rectangular; got nested sequences of different lengths. Pad the shorter ones."
    )
