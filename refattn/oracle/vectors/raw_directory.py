"""Arrays in a directory: one little-endian file each, and `case.txt`, which needs no parser beyond
reading words.
"""

from __future__ import annotations

import os

from refattn.oracle.vectors.untrusted import (
    MOST_ARRAYS,
    TEXT,
    VectorError,
    as_array_of,
    as_stored,
    dtype_name,
    exactly,
    open_regular,
    read_text_file,
    require_bytes,
    size_of,
)

RAW_HEADER = "case.txt"


def write_raw(path, arrays, text, lines):
    """`case.txt`: "array NAME DTYPE RANK SIZES..." and the caller's lines, words apart by one blank."""
    path.mkdir(exist_ok=True)
    described = []
    for name, array in arrays.items():
        (path / f"{name}.bin").write_bytes(as_stored(array).tobytes())
        described.append(
            " ".join(["array", name, dtype_name(array), str(array.ndim), *map(str, array.shape)])
        )
    (path / RAW_HEADER).write_text("\n".join([*lines, *described, ""]), encoding="ascii", newline="\n")
    (path / TEXT).write_text(text, encoding="utf-8")


def read_raw(path, largest):
    label = path.name
    described = {}
    for line in read_text_file(path / RAW_HEADER).splitlines():
        words = line.split(" ")
        if words[0] != "array":
            continue
        numbers = words[3:]
        if (
            not numbers
            or not all(word.isascii() and word.isdigit() and len(word) < 16 for word in numbers)
            or len(numbers) != 1 + int(numbers[0])
        ):
            raise VectorError(
                f"{label}: {RAW_HEADER} must describe arrays as 'array NAME DTYPE RANK SIZES'; got "
                f"{line[:80]!r}."
            )
        name, dtype, shape = words[1], words[2], tuple(map(int, words[4:]))
        if name in described:
            raise VectorError(
                f"{label}: {RAW_HEADER} must describe each array once; got {name[:60]!r} twice."
            )
        described[name] = (size_of(name, dtype, shape, label), dtype, shape)
        if len(described) > MOST_ARRAYS:
            raise VectorError(f"{label} must have at most {MOST_ARRAYS} arrays.")
    require_bytes(sum(nbytes for nbytes, _, _ in described.values()), largest, label)
    arrays = {}
    for name, (nbytes, dtype, shape) in described.items():
        with open_regular(path / f"{name}.bin") as file:
            actual = os.fstat(file.fileno()).st_size
            if actual != nbytes:
                raise VectorError(f"{label}: {name}.bin must have {nbytes} bytes; got {actual}.")
            arrays[name] = as_array_of(exactly(file, nbytes, label), dtype, shape)
    text = read_text_file(path / TEXT) if (path / TEXT).exists() else ""
    return arrays, text
