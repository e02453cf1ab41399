"""What an array of the wrong shape may be: another layout of the right one."""

from __future__ import annotations

import math


def layout_hint(got, expected):
    """What a shape that does not fit may mean, as a sentence; empty when nothing fits."""
    got, expected = tuple(got), tuple(expected)
    swapped = lambda shape, a, b: _swapped(shape, a, b) if len(shape) >= -min(a, b) else None
    if len(got) == len(expected) and len(expected) >= 3:
        if swapped(got, -3, -2) == expected:
            return (
                " It fits (..., length, heads, dim); the layout here is (..., heads, length, dim): swap "
                "axes -3 and -2."
            )
        if swapped(got, -2, -1) == expected:
            return " The last two axes fit swapped."
    if len(got) == len(expected) == 2 and got == expected[::-1]:
        return " It fits transposed."
    if len(got) == len(expected) - 1 and math.prod(got) == math.prod(expected):
        if len(expected) >= 3 and got[-1] == expected[-3] * expected[-1]:
            return " Heads and dim are joined in the last axis; reshape it and move heads before the length."
        return " Two axes are joined."
    if (
        len(got) == len(expected) + 1
        and 1 in got
        and tuple(n for n in got if n != 1) == tuple(n for n in expected if n != 1)
    ):
        return " There is an axis of length 1 too many."
    return ""


def _swapped(shape, a, b):
    shape = list(shape)
    shape[a], shape[b] = shape[b], shape[a]
    return tuple(shape)
