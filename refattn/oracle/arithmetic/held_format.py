"""The format whose numbers an array holds, where that is coarser than its dtype says."""

from __future__ import annotations

import numpy as np

from refattn.oracle.arithmetic.formats import FORMATS, round_to

NAME = "float32"  # coarser ones may be what a kernel stores in between: that is a fault, and named elsewhere
LEAST, LEAST_DIFFERENT = 24, 8  # numbers, so that it is no accident


def held_format(array, form) -> str:
    """NAME, if it is coarser than `form` and holds all the numbers; else "".

    >>> held_format(np.linspace(1, 2, 99).astype(np.float32).astype(float), FORMATS["float64"])
    'float32'
    """
    numbers = np.asarray(array)
    if numbers.dtype.kind != "f" or numbers.dtype.itemsize < 8:
        return ""
    numbers = numbers[np.isfinite(numbers) & (numbers != 0)]
    if numbers.size < LEAST or len(np.unique(numbers)) < LEAST_DIFFERENT:
        return ""
    coarser = FORMATS[NAME].unit_roundoff > form.unit_roundoff
    return NAME if coarser and (round_to(numbers, NAME) == numbers).all() else ""


def held_in_words(name, dtype) -> str:
    """What to do about it, as a sentence without its end."""
    return f"the output holds {name} numbers in a {dtype} array: pass spec={name!r}, if that is meant"
