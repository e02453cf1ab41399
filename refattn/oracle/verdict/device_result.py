"""A result in the memory of a GPU, of which only the rows that are looked at come to the host."""

from __future__ import annotations

import sys

import numpy as np

from refattn.calls.arrays import as_float_array
from refattn.calls.host_copy import float_dtype_name, is_torch, on_host
from refattn.oracle.verdict.other_rows import EMPTY, UNKNOWN


class DeviceResult:
    """A result held in a torch tensor on a device.

    Attributes
    ----------
    shape : tuple of int
    dtype : dtype
        Of NumPy.
    """

    def __init__(self, tensor, name):
        self._name, self.shape = name, tuple(tensor.shape)
        # torch compares no 8-bit floats
        self._tensor = tensor.float() if float_dtype_name(tensor).startswith("float8_") else tensor

        self.dtype = as_float_array(on_host(self._tensor.detach().reshape(-1)[:0], name), name).dtype

    def whole(self) -> np.ndarray:
        """All of it."""
        return as_float_array(on_host(self._tensor, self._name), self._name)

    def rows(self, result, wanted) -> np.ndarray:
        """An array of its shape that holds the rows `wanted`, a boolean of the shape of the lse, and 0."""
        picked = self._fetched(result, wanted)
        array = np.zeros(self.shape, picked.dtype)
        return self._written(result, array, wanted, picked)

    def with_wrong_rows(self, result, array, states) -> np.ndarray:
        """What `rows` gave, and of the other rows what is not as `states` (`row_states`) says it must be.
        Whether a row is finite, and whether it is that of an empty row, is found on the device.
        """
        table = self._table(result)
        # one number a row goes to the host
        finite = table.isfinite().all(-1).cpu().numpy().reshape(states.shape)
        empty = (table == result.empty_row).all(-1).cpu().numpy().reshape(states.shape)
        array[(states == EMPTY) & empty] = result.empty_row
        wrong = np.where(states == EMPTY, ~empty, (states != UNKNOWN) & ~finite)
        return self._written(result, array, wrong, self._fetched(result, wrong)) if wrong.any() else array

    def _table(self, result):
        """The tensor as rows, (N, E); E = 1 for one number a row."""
        return self._tensor.detach().reshape(-1, self.shape[-1] if result.has_dims else 1)

    def _fetched(self, result, wanted):
        torch = sys.modules["torch"]
        index = torch.from_numpy(np.flatnonzero(wanted)).to(self._tensor.device)
        return as_float_array(on_host(self._table(result).index_select(0, index), self._name), self._name)

    def _written(self, result, array, wanted, rows):
        array.reshape(-1, rows.shape[-1])[np.flatnonzero(wanted)] = rows
        return array


def device_result(x, name):
    """`x` as a `DeviceResult` where it is a dense tensor of torch outside CPU memory; else None."""
    if not is_torch(x) or x.layout != sys.modules["torch"].strided or x.device.type in ("cpu", "meta"):
        return None
    return DeviceResult(x, name)
