"""The array libraries whose arrays a kernel can be handed: one class each, none imported before it is asked
for.

A kernel's inputs are made as NumPy arrays inside guarded buffers (`guards`). A library puts the same bytes
where its arrays live, with the same strides where it has strides, and tells afterwards what a call has done
to them.
"""

from __future__ import annotations

import contextlib
from types import MappingProxyType

import numpy as np

from refattn.calls.host_copy import float_dtype_name, is_jax, is_torch

NO_STRIDES = "arrays of jax have no strides"
INT32 = np.iinfo(np.int32)


class NumpyArrays:
    """NumPy arrays, and what the other libraries have in common."""

    name = "numpy"
    # layouts of `guards.LAYOUTS` that its arrays cannot have, with the reason
    impossible = MappingProxyType({})
    unwritable = ""  # why a kernel cannot write into an array; "" where it can

    def __init__(self, device=None):
        if device is not None:
            raise ValueError(
                f"device must be None for NumPy arrays, which lie in CPU memory; got device={device!r}."
            )
        self.device = self.device_name = None

    def check_dtype(self, dtype):
        """ValueError where the library, or its device, does not hold numbers of a NumPy dtype."""

    def put(self, buffer, view):
        """The array a kernel gets for `view`, which lies in the bytes of `buffer`, and a function that
        writes into `buffer` what a call has changed; None where both are the same memory.
        """
        return view, None

    def copied(self, array):
        """A copy of a NumPy array, of this library."""
        return array.copy()

    def option(self, value, dtype):
        """An option as kernels of this library take it beside arrays of `dtype`, still as NumPy array."""
        return value

    def running(self):
        """A context in which the kernel runs."""
        return contextlib.nullcontext()

    def wait(self, returned):
        """Return when everything the kernel has started is done, or raise what went wrong there."""

    def alive(self):
        """Whether the device still computes; after an illegal access a GPU refuses all further work."""
        return True


class OtherArrays(NumpyArrays):
    """What libraries that are not NumPy have in common: a dtype table, and 32-bit integers."""

    def __init__(self, device=None):
        raise NotImplementedError

    def dtype(self, dtype):
        """The library's own dtype for a NumPy dtype; None where it has none."""
        raise NotImplementedError

    def check_dtype(self, dtype):
        refused = f"dtype must be one that {self.name} on {self.device_name} holds; got dtype={dtype.name}."
        if self.dtype(dtype) is None:
            raise ValueError(refused)
        probe = np.ones(64, dtype)
        try:
            array, _ = self.put(probe.view(np.uint8), probe)
            self.wait(array)
        except Exception as error:
            raise ValueError(f"{refused} It says: {_first_line(error)}") from error

    def copied(self, array):
        copy = np.array(array, order="C")
        return self.put(copy.reshape(-1).view(np.uint8), copy)[0]

    def option(self, value, dtype):
        """Integers become int32, which kernels take for lengths, tables and offsets, where they fit.
        float64, as slopes and sinks are given, becomes float32 beside narrower arrays: one rounding, which
        the bound of a kernel counts.
        """
        if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
            return value.item()
        if not isinstance(value, np.ndarray):
            return value
        if value.dtype.kind in "iu" and _fits_int32(value):
            return value.astype(np.int32)
        return value.astype(np.float32) if value.dtype == np.float64 != dtype else value


class TorchArrays(OtherArrays):
    """torch: strides and guard bytes as in NumPy, on any device that holds data."""

    name = "torch"
    impossible = MappingProxyType(
        {"reversed": "torch has no negative strides", "read-only": "torch has no read-only tensors"}
    )

    def __init__(self, device=None):
        import torch

        self.torch = torch
        try:
            self.device = torch.get_default_device() if device is None else torch.device(device)
            torch.zeros(1, device=self.device).cpu()
        except Exception as error:  # what a missing device raises depends on the build
            raise _no_device("torch", device, error) from error
        self.device_name = str(self.device)

    def dtype(self, dtype):
        return getattr(self.torch, dtype.name, None)

    def put(self, buffer, view):
        memory = self.torch.from_numpy(buffer).to(self.device)
        strides = [stride // view.itemsize for stride in view.strides]
        typed = memory.view(self.dtype(view.dtype))
        array = typed.as_strided(view.shape, strides, _offset(buffer, view) // view.itemsize)
        if self.device.type == "cpu":
            return array, None
        before = memory.clone()

        def bring_back():
            if not self.torch.equal(memory, before):  # compared on the device: most calls change nothing
                buffer[...] = memory.cpu().numpy()

        return array, bring_back

    def wait(self, returned):
        backend = getattr(self.torch, self.device.type, None)
        if self.device.type == "cuda":
            backend.synchronize(self.device)
        elif self.device.type != "cpu" and hasattr(backend, "synchronize"):
            backend.synchronize()

    def alive(self):
        try:
            self.torch.zeros(1, device=self.device).cpu()
        except RuntimeError:
            return False
        return True


class JaxArrays(OtherArrays):
    """jax: values alone. Its arrays have no strides, nothing around them, and cannot be written."""

    name = "jax"
    impossible = MappingProxyType(
        {
            "padded": NO_STRIDES,
            "transposed": NO_STRIDES,
            "sliced": NO_STRIDES,
            "reversed": NO_STRIDES,
            "column-major": NO_STRIDES,
            "shifted": NO_STRIDES,
            "read-only": "all arrays of jax are read-only",
        }
    )
    unwritable = "arrays of jax cannot be written"

    def __init__(self, device=None):
        import jax

        self.jax = jax
        try:
            if device is None:
                self.device = jax.devices()[0]
            elif isinstance(device, str):
                platform, _, number = device.partition(":")
                self.device = jax.devices(platform)[int(number or 0)]
            else:
                self.device = device
            jax.device_put(np.zeros(1, np.float32), self.device).block_until_ready()
        except Exception as error:
            raise _no_device("jax", device, error) from error
        self.device_name = f"{self.device.platform}:{self.device.id}"

    def dtype(self, dtype):
        return dtype if self.jax.dtypes.canonicalize_dtype(dtype) == dtype else None

    def check_dtype(self, dtype):
        if dtype == np.float64 and self.dtype(dtype) is None:
            raise ValueError(
                "dtype must be one that jax holds; got dtype=float64, which jax makes float32 unless "
                'jax.config.update("jax_enable_x64", True) is called first.'
            )
        super().check_dtype(dtype)

    def put(self, buffer, view):
        array = self.jax.device_put(np.array(view), self.device)

        def bring_back():
            view[...] = np.asarray(array)

        return array, bring_back

    def wait(self, returned):
        self.jax.block_until_ready([x for x in _parts(returned) if is_jax(x)])


class MlxArrays(OtherArrays):
    """mlx: strides and guard bytes as in NumPy; arrays are values, which nothing can write."""

    name = "mlx"
    impossible = MappingProxyType({"read-only": "all arrays of mlx are read-only"})
    unwritable = "arrays of mlx cannot be written in place"

    def __init__(self, device=None):
        import mlx.core

        self.mlx = mlx.core
        try:
            self.device = self._device(device)
            with self.running():
                self.mlx.eval(self.mlx.zeros(1) + 1)
        except Exception as error:
            raise _no_device("mlx", device, error) from error
        self.device_name = str(self.device.type).rpartition(".")[2]

    def _device(self, device):
        if device is None:
            return self.mlx.default_device()
        if isinstance(device, str):
            kind, _, number = device.partition(":")
            return self.mlx.Device({"cpu": self.mlx.cpu, "gpu": self.mlx.gpu}[kind], int(number or 0))
        return device

    def dtype(self, dtype):
        return self.mlx.bool_ if dtype.kind == "b" else getattr(self.mlx, dtype.name, None)

    def put(self, buffer, view):
        with self.running():
            memory = self.mlx.array(buffer.view(view.dtype), dtype=self.dtype(view.dtype))
            strides = [stride // view.itemsize for stride in view.strides]
            offset = _offset(buffer, view) // view.itemsize
            array = self.mlx.as_strided(memory, view.shape, strides, offset) if view.size else None
            array = self.mlx.zeros(view.shape, memory.dtype) if array is None else array
            self.mlx.eval(memory, array)

        def bring_back():
            buffer[...] = np.frombuffer(memoryview(memory).tobytes(), np.uint8)

        return array, bring_back

    def running(self):
        return self.mlx.stream(self.device)

    def wait(self, returned):
        self.mlx.eval([x for x in _parts(returned) if isinstance(x, self.mlx.array)])
        self.mlx.synchronize(self.mlx.default_stream(self.device))


LIBRARIES = {library.name: library for library in (NumpyArrays, TorchArrays, JaxArrays, MlxArrays)}


def array_library(arrays="numpy", device=None):
    """The library of this name, its arrays on this device.

    Parameters
    ----------
    arrays : str
        "numpy", "torch", "jax" or "mlx".
    device : str or object, optional
        As the library names its devices: "cuda", "cuda:1", "mps" of torch; "gpu:0", "tpu" of jax; "gpu" of
        mlx; or its own object. Default: the library's default device.

    Raises
    ------
    ValueError
        An unknown library, or a device that is not there.
    ImportError
        The library is not installed.

    Examples
    --------
    >>> array_library().name
    'numpy'
    >>> array_library("numpy", "cuda")
    Traceback (most recent call last):
        ...
    ValueError: device must be None for NumPy arrays, which lie in CPU memory; got device='cuda'.
    """
    if not isinstance(arrays, str) or arrays not in LIBRARIES:
        raise ValueError(f"arrays must be one of {', '.join(LIBRARIES)}; got arrays={arrays!r}.")
    try:
        return LIBRARIES[arrays](device)
    except ImportError as error:
        raise ImportError(
            f"arrays={arrays!r} needs the package {arrays}, which cannot be imported "
            f"(pip install {arrays}): {_first_line(error)}"
        ) from error


def library_of(arrays):
    """The library, and device, of the first of a caller's arrays that is of another one than NumPy.

    Raises
    ------
    TypeError
        It holds 8-bit floats: a kernel is called with other numbers than the caller's, which those cannot
        hold.
    """
    for x in arrays:
        if float_dtype_name(x).startswith("float8_"):
            raise TypeError(
                "arrays must be float16, bfloat16, float32 or float64 where the kernel itself is given, "
                f"which is called with other numbers, too; got {float_dtype_name(x)}. Pass its output."
            )
        if is_torch(x):
            return TorchArrays(x.device)
        if is_jax(x):
            return JaxArrays(next(iter(x.devices())))
        if type(x).__module__.partition(".")[0] == "mlx":
            return MlxArrays()
    return NumpyArrays()


def _offset(buffer, view):
    """Bytes from the first of a buffer to the first element of a view of it."""
    return view.__array_interface__["data"][0] - buffer.__array_interface__["data"][0]


def _fits_int32(value):
    return value.size == 0 or (value.min() >= INT32.min and value.max() <= INT32.max)


def _parts(returned):
    return returned if isinstance(returned, (tuple, list)) else [returned]


def _no_device(name, device, error):
    return ValueError(
        f"device must be a device of {name} that is there and holds data; got device={device!r}. {name} "
        f"says: {_first_line(error)}"
    )


def _first_line(error):
    return str(error).strip().partition("\n")[0] or type(error).__name__
