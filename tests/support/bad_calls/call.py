"""One row of the table, and the arrays its good calls are made of."""

from typing import Any, NamedTuple

import numpy as np


class BadCall(NamedTuple):
    function: str
    reason: str
    changes: dict[str, Any]  # arguments that differ from the good call
    error: type[Exception]
    message: str  # all of it


def real(*shape, dtype=np.float32):
    """Ordinary numbers in [-1, 1], read-only."""
    size = int(np.prod(shape))
    array = np.sin(np.arange(1, size + 1)).reshape(shape).astype(dtype)
    array.flags.writeable = False
    return array


def yes(*shape):
    return np.ones(shape, bool)


def endless(*shape):
    """An array of any size that takes no memory."""
    return np.broadcast_to(np.float32(1), shape)


def table(function, *rows):
    return [BadCall(function, *row) for row in rows]
