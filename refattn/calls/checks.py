"""Checks of single values, each with the message a caller reads: the argument, the rule, and what was
given.
"""

import math
import numbers
import operator

import numpy as np

from refattn.calls.arrays import as_int_array


def checked_integer(value, name, least=None):
    """An integer of at least `least` as a Python int."""
    try:
        integer = None if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        integer = None
    if integer is None:
        raise TypeError(f"{name} must be an integer; got {name}={value!r} of type {type(value).__name__}.")
    if least is not None and integer < least:
        raise ValueError(f"{name} must be at least {least}; got {name}={integer}.")
    return integer


def checked_number(value, name):
    """A finite real number as a Python float."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise TypeError(
            f"{name} must be a real number; got {name}={value!r} of type {type(value).__name__}."
        )
    try:
        number = float(value)
    except OverflowError:  # integers and fractions can be larger
        number = math.inf if value > 0 else -math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite; got {name}={number}.")
    return number


def checked_integers(values, name, batch_shape):
    """Integers, one for each batch entry; a single one stands for all."""
    integers = as_int_array(values, name)
    if integers.shape not in ((), batch_shape):
        raise ValueError(
            f"{name} must be an integer or have shape {batch_shape}; got {name}.shape={integers.shape}."
        )
    return integers if integers.shape == batch_shape else np.full(batch_shape, integers)


def fitted(array, name, scores_shape):
    """`array` as a read-only view of `scores_shape`; nothing is copied.

    Two axes, or all of them: with three axes against four, (B, T, S) and (H, T, S) could not be told apart.
    """
    ndim = len(scores_shape)
    if array.ndim > 2 and array.ndim != ndim:
        hint = ""
        if array.ndim == ndim - 1:
            hint = f" Write {name}[:, None] for one {name} a batch entry, {name}[None] for one a head."
        raise ValueError(
            f"{name} must have at most 2 axes or all {ndim} of (..., heads, q_len, kv_len); got "
            f"{name}.ndim={array.ndim}.{hint}"
        )
    wanted = scores_shape[ndim - array.ndim :]
    if any(size not in (1, full) for size, full in zip(array.shape, wanted, strict=True)):
        raise ValueError(
            f"{name} must broadcast to (..., heads, q_len, kv_len)={scores_shape}; got "
            f"{name}.shape={array.shape}."
        )
    return np.broadcast_to(array, scores_shape)


def first_wrong(name, array, wrong):
    """The name, place and value of the first wrong element, as text."""
    index = np.argwhere(wrong)[0]
    return f"{name}[{', '.join(map(str, index))}]={array[tuple(index)]}"
