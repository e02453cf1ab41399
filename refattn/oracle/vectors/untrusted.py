"""What may be believed of a file that anybody may have written: names, dtypes, shapes and sizes, each
checked before it is used.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from pathlib import Path

import numpy as np

LARGEST = 2**30  # bytes of all arrays of a file together
LARGEST_TEXT = 2**20
LARGEST_EMPTY = 2**20  # an array of no bytes can promise any number of rows to loop over
MOST_ARRAYS = 256
MOST_AXES = 16
TEXT = "case.json"  # the text's name inside npz and raw

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")  # device names of Windows
# name -> NumPy dtype of the bytes; those of BITS are no dtypes of NumPy's own, so their bits are stored as
# integers
DTYPES = {
    "bool": "|b1",
    "int8": "|i1",
    "uint8": "|u1",
    "int16": "<i2",
    "uint16": "<u2",
    "int32": "<i4",
    "uint32": "<u4",
    "int64": "<i8",
    "uint64": "<u8",
    "float16": "<f2",
    "float32": "<f4",
    "float64": "<f8",
    "bfloat16": "<u2",
    "float8_e4m3fn": "|u1",
    "float8_e5m2": "|u1",
}
BITS = {
    "bfloat16": np.dtype(np.uint16),
    "float8_e4m3fn": np.dtype(np.uint8),
    "float8_e5m2": np.dtype(np.uint8),
}


class VectorError(ValueError):
    """A file that is not what it must be."""


def valid_name(name) -> bool:
    """Whether a name is safe as a file name on every system.

    >>> valid_name("query"), valid_name("../query"), valid_name("nul.bin")
    (True, False, False)
    """
    return (
        isinstance(name, str)
        and NAME.fullmatch(name) is not None
        and RESERVED.fullmatch(name) is None
        and not name.endswith(".")
    )


def dtype_name(array: np.ndarray) -> str:
    """The name of an array's dtype in this module, those of `ml_dtypes` included."""
    if array.dtype.name not in DTYPES:
        raise VectorError(f"array must have a dtype of {', '.join(DTYPES)}; got {array.dtype.name}.")
    return array.dtype.name


def as_stored(array: np.ndarray) -> np.ndarray:
    """C-contiguous and little-endian; bfloat16 and 8-bit floats as their bits."""
    name = dtype_name(array)
    array = np.asarray(array, order="C")
    return (array.view(BITS[name]) if name in BITS else array).astype(DTYPES[name], copy=False)


def as_dtype(stored: np.ndarray, name: str) -> np.ndarray:
    """Stored bits as an array of the named dtype; where `ml_dtypes` is missing, bfloat16 becomes
    float32 and 8-bit floats are refused.
    """
    if name not in BITS:
        return stored
    try:
        import ml_dtypes
    except ImportError as error:
        if name == "bfloat16":
            return (stored.astype(np.uint32) << 16).view(np.float32)
        raise ImportError(f"{name} arrays must have ml_dtypes installed; install refattn[lowp].") from error
    return stored.view(getattr(ml_dtypes, name))


def open_regular(path):
    """A file opened for reading; devices, pipes and symbolic links are refused (they block, or lead
    out of the pack).
    """
    found = os.lstat(path)
    if not stat.S_ISREG(found.st_mode):
        raise VectorError(f"{Path(path).name} must be a regular file.")
    return open(path, "rb")


def read_text_file(path, largest=LARGEST_TEXT) -> str:
    """A small UTF-8 text file."""
    with open_regular(path) as file:
        data = file.read(largest + 1)
    if len(data) > largest:
        raise VectorError(f"{Path(path).name} must have at most {largest} bytes.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise VectorError(
            f"{Path(path).name} must be UTF-8 text: {error.reason} at byte {error.start}."
        ) from error


def parse_json(text: str, label: str):
    """JSON without duplicate keys, NaN, absurd numbers or absurd depth."""

    def unique(pairs):
        keys = [key for key, _ in pairs]
        if len({*keys}) != len(keys):
            raise VectorError(
                f"{label} must not have the key {next(k for k in keys if keys.count(k) > 1)!r} twice."
            )
        return dict(pairs)

    def refuse(word):
        raise VectorError(f"{label} must be JSON; got the number {word}.")

    def integer(digits):
        if len(digits) > 20 or not -(2**63) <= int(digits) < 2**63:
            raise VectorError(f"{label} must hold 64-bit integers; got one of {len(digits)} digits.")
        return int(digits)

    def real(digits):
        number = float(digits)
        return number if math.isfinite(number) else refuse(digits[:40])

    try:
        return json.loads(
            text, object_pairs_hook=unique, parse_constant=refuse, parse_int=integer, parse_float=real
        )
    except (json.JSONDecodeError, RecursionError) as error:
        raise VectorError(f"{label} must be JSON: {str(error)[:200]}") from error


def size_of(name, dtype, shape, label) -> int:
    """Bytes of an array, its description checked."""
    if not valid_name(name):
        raise VectorError(
            f"{label}: array names must be letters, digits, '_', '.' and '-'; got {str(name)[:60]!r}."
        )
    if dtype not in DTYPES:
        raise VectorError(
            f"{label}: {name} must have a dtype of {', '.join(DTYPES)}; got {str(dtype)[:40]!r}."
        )
    if not isinstance(shape, (list, tuple)) or len(shape) > MOST_AXES:
        raise VectorError(f"{label}: {name} must have a shape of at most {MOST_AXES} sizes.")
    for size in shape:
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size < 2**48:
            raise VectorError(f"{label}: {name} must have sizes between 0 and 2**48; got {str(size)[:40]}.")
    if 0 in shape and math.prod(max(size, 1) for size in shape) > LARGEST_EMPTY:
        raise VectorError(
            f"{label}: {name} holds nothing, so its sizes must have a product of at most {LARGEST_EMPTY} "
            "without the zeros."
        )
    return math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize


def require_bytes(total, largest, label):
    if total > largest:
        raise VectorError(f"{label} must hold at most {largest} bytes of arrays; got {total}.")


def as_array_of(data, dtype, shape):
    array = np.frombuffer(data, DTYPES[dtype]).reshape(shape)
    array.flags.writeable = False
    if dtype == "bool" and array.size and array.view(np.uint8).max() > 1:
        raise VectorError("booleans must be 0 or 1.")
    array = as_dtype(array.astype(array.dtype.newbyteorder("="), copy=False), dtype)
    array.flags.writeable = False
    return array


def exactly(file, count, label):
    """`count` bytes, read in steps: a promise of bytes that are not there allocates nothing."""
    parts, left = [], count
    while left:
        part = file.read(min(left, 2**20))
        if not part:
            raise VectorError(f"{label} ends {left} bytes too early.")
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
