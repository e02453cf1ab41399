"""A device of torch that is not the CPU, for machines without a GPU: its tensors live in CPU memory, but torch,
and everything that asks a tensor, takes them for tensors of a device called "pretend".

    with pretend_device() as device:
        x = torch.ones(3, device="pretend")
        x.cpu()
        device.copied   # [3]: numbers copied to the host, call by call
"""

import contextlib

import pytest

torch = pytest.importorskip("torch")  # pytest looks for examples in this file, too
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

NAME = "pretend"


class OnDevice(torch.Tensor):
    """A tensor of the device; `inner` holds its numbers."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=NAME,
        )

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise RuntimeError("the pretended device is gone")


class Device(TorchDispatchMode):
    """Runs every operation on tensors of the device on the tensors they hold."""

    def __init__(self):
        super().__init__()
        self.copied = []
        self.lost = False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, parts = dict(kwargs or {}), []
        inside = lambda x: parts.append(x) or x.inner if isinstance(x, OnDevice) else x
        held, named = tree_map(inside, args), tree_map(inside, kwargs)
        target = named.get("device")
        target = None if target is None else torch.device(target).type
        if target == NAME:
            named["device"] = torch.device("cpu")
        if self.lost and (parts or target == NAME):
            raise RuntimeError("illegal memory access")
        result = function(*held, **named)
        if target == "cpu":
            self.copied.append(result.numel())
            return result
        if target is None and not parts:
            return result
        if function is torch.ops.aten._local_scalar_dense.default:
            return result
        return tree_map(lambda x: OnDevice(x) if isinstance(x, torch.Tensor) else x, result)


@contextlib.contextmanager
def pretend_device():
    """torch with a device named "pretend" while the context lasts."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    if torch._C._get_privateuse1_backend_name() != NAME:
        _setup_privateuseone_for_python_backend(NAME)
    with Device() as device:
        yield device
