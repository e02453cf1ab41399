"""Axes of arrays and results between a library's layout and ours.

A layout is the axes in memory order, one letter each: B batch, P page, H heads, T length (in a page: its
places), D or E dim, M heads and dim in one, 1 an axis of that size. Ours is "BHTD" with any number of batch
axes.
"""

from __future__ import annotations

import numpy as np

from refattn.calls.arrays import as_array

OURS = "BPHTD"
WORDS = {"B": "batch", "P": "pages", "H": "heads", "T": "length", "D": "dim", "M": "heads * dim", "1": "1"}


def axes_in_words(layout: str) -> str:
    """
    >>> axes_in_words("BTHE"), axes_in_words("PTHD")
    ('(batch, length, heads, dim)', '(pages, page_size, heads, dim)')
    """
    words = WORDS | ({"T": "page_size"} if "P" in layout else {})
    return f"({', '.join(words[axis] for axis in layout.replace('E', 'D'))})"


def array_to_ours(array, layout: str, heads: int | None = None, name: str = "array") -> np.ndarray:
    """An array of a library's layout as (..., heads, length, dim), or an lse as (..., heads, length).

    Parameters
    ----------
    array : array_like
    layout : str
        Such as "BHTD", "BTHD", "THD", "PTHD", "BTM", "BTH".
    heads : int, optional
        Needed where heads and dim are one axis.
    name : str
        For messages.
    """
    array, axes = as_array(array, name), layout.replace("E", "D")
    if axes in ("BHTD", "BHT") and array.ndim >= len(axes) - 1:
        return array
    if array.ndim != len(axes):
        raise ValueError(
            f"{name} must have the {len(axes)} axes {axes_in_words(axes)}; got {name}.shape={array.shape}."
        )
    if "M" in axes:
        if heads is None:
            raise ValueError(
                f"heads must be given for layout {layout}; got heads=None. Pass num_heads and kv_num_heads."
            )
        if heads < 1 or array.shape[-1] % heads:
            raise ValueError(
                f"{name} must have {heads} heads of one size in its last axis; got "
                f"{name}.shape={array.shape}."
            )
        array, axes = array.reshape(*array.shape[:-1], heads, -1), axes.replace("M", "HD")
    if axes.endswith("1"):
        array, axes = array[..., 0], axes[:-1]
    array = array.transpose([axes.index(axis) for axis in OURS if axis in axes])
    return array if "T" in axes else np.expand_dims(array, -2 if "D" in axes else -1)


def array_from_ours(array, layout: str, name: str = "array") -> np.ndarray:
    """(..., heads, length, dim), or an lse (..., heads, length), in a library's layout; see
    `array_to_ours`.
    """
    array, axes = as_array(array, name), layout.replace("E", "D").replace("M", "HD").rstrip("1")
    if axes in ("BHTD", "BHT") and not layout.endswith("1"):
        return np.ascontiguousarray(array)
    ours = "".join(axis for axis in OURS if axis in axes or axis == "T")
    if array.ndim != len(ours):
        raise ValueError(
            f"{name} must have the {len(ours)} axes {axes_in_words(ours)}; got {name}.shape={array.shape}."
        )
    if "T" not in axes:
        if array.shape[ours.index("T")] != 1:
            raise ValueError(
                f"{name} must have one row a sequence, because {axes_in_words(layout)} has no "
                f"axis for more; "
                f"got {name}.shape={array.shape}."
            )
        array, ours = array.squeeze(ours.index("T")), ours.replace("T", "")
    array = np.ascontiguousarray(array.transpose([ours.index(axis) for axis in axes]))
    if "M" in layout:
        return array.reshape(*array.shape[:-2], array.shape[-2] * array.shape[-1])
    return array[..., None] if layout.endswith("1") else array


def shape_from_ours(shape, layout: str) -> tuple[int, ...]:
    """The shape that `array_from_ours` gives an array of this shape.

    >>> shape_from_ours((2, 4, 5, 8), "BTHE"), shape_from_ours((2, 4, 5, 8), "BTM")
    ((2, 5, 4, 8), (2, 5, 32))
    """
    axes = layout.replace("E", "D").rstrip("1")
    if axes in ("BHTD", "BHT"):
        there = tuple(shape)
    else:
        ours = "".join(axis for axis in OURS if axis in axes.replace("M", "HD") or axis == "T")
        size = dict(zip(ours, shape, strict=True))
        there = tuple(size["H"] * size["D"] if axis == "M" else size[axis] for axis in axes)
    return (*there, 1) if layout.endswith("1") else there


def index_from_ours(index, shape, layout: str) -> tuple[int, ...]:
    """Where the element at `index` of an array of ours of this shape stands in a library's layout.

    >>> index_from_ours((1, 3, 4, 7), (2, 4, 5, 8), "BTHE")
    (1, 4, 3, 7)
    >>> index_from_ours((1, 3, 4, 7), (2, 4, 5, 8), "BTM")
    (1, 4, 31)
    """
    axes = layout.replace("E", "D").rstrip("1")
    if axes in ("BHTD", "BHT"):
        there = tuple(index)
    else:
        ours = "".join(axis for axis in OURS if axis in axes.replace("M", "HD") or axis == "T")
        at, size = dict(zip(ours, index, strict=True)), dict(zip(ours, shape, strict=True))
        if "M" in axes:
            at["M"] = at["H"] * size["D"] + at["D"]
        there = tuple(at[axis] for axis in axes)
    return (*there, 0) if layout.endswith("1") else there
