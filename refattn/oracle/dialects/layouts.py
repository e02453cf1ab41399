"""Axes of outputs, keys and lse between a library's layout and ours."""

from __future__ import annotations

import numpy as np

from refattn.calls.arrays import as_array


def array_to_ours(array, layout: str, heads: int | None = None) -> np.ndarray:
    """An array of a library's layout as (..., heads, length, dim).

    Parameters
    ----------
    array : array_like
    layout : str
        "BHTD", "BTHD", "THD", "HTD", or "BTM" for (batch, length, heads * dim).
    heads : int, optional
        Needed for "BTM".
    """
    array, layout = as_array(array, "array"), layout.replace("E", "D")
    if layout == "BTM":
        if heads is None:
            raise ValueError(
                "heads must be given for layout BTM; got heads=None. Pass num_heads and kv_num_heads."
            )
        array, layout = array.reshape(*array.shape[:2], heads, -1), "BTHD"
    if array.ndim != len(layout):
        raise ValueError(f"array must have the {len(layout)} axes {layout}; got array.shape={array.shape}.")
    return array.transpose([layout.index(axis) for axis in "BHTD" if axis in layout])


def array_from_ours(array, layout: str) -> np.ndarray:
    """(..., heads, length, dim) in a library's layout; see `array_to_ours`."""
    array, layout = as_array(array, "array"), layout.replace("E", "D")
    if layout == "BTM":
        moved = np.swapaxes(array, -2, -3)
        return np.ascontiguousarray(moved).reshape(*moved.shape[:2], -1)
    ours = "BHTD" if "B" in layout else "HTD"
    if array.ndim != len(ours):
        raise ValueError(f"array must have the {len(ours)} axes {ours}; got array.shape={array.shape}.")
    return np.ascontiguousarray(array.transpose([ours.index(axis) for axis in layout]))


def lse_to_ours(lse, layout: str) -> np.ndarray:
    """An lse of a library's layout ("BHT", "BTH", "TH", with a last 1 for an axis of that size) as
    (..., heads, length).
    """
    lse = as_array(lse, "lse")
    if layout.endswith("1"):
        lse, layout = lse[..., 0], layout[:-1]
    return lse.transpose([layout.index(axis) for axis in "BHT" if axis in layout])


def lse_from_ours(lse, layout: str) -> np.ndarray:
    """(..., heads, length) in a library's layout; see `lse_to_ours`."""
    extra = layout.endswith("1")
    layout = layout.rstrip("1")
    ours = "BHT" if "B" in layout else "HT"
    lse = np.ascontiguousarray(lse.transpose([ours.index(axis) for axis in layout]))
    return lse[..., None] if extra else lse
