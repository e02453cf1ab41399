"""Arrays in .safetensors files: an eight-byte length, a JSON header, little-endian data; the text is
in `__metadata__`.
"""

from __future__ import annotations

import json
import os
import struct

from refattn.oracle.vectors.untrusted import (
    LARGEST_TEXT,
    MOST_ARRAYS,
    VectorError,
    as_array_of,
    as_stored,
    dtype_name,
    exactly,
    parse_json,
    require_bytes,
    size_of,
)

SAFETENSORS = {
    "BOOL": "bool",
    "I8": "int8",
    "U8": "uint8",
    "I16": "int16",
    "U16": "uint16",
    "I32": "int32",
    "U32": "uint32",
    "I64": "int64",
    "U64": "uint64",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}


def write_safetensors(path, arrays, text, _lines):
    names = {ours: theirs for theirs, ours in SAFETENSORS.items()}
    header, end, stored = {"__metadata__": {"refattn": text}}, 0, []
    # data aligned to its item size
    for name, array in sorted(arrays.items(), key=lambda item: -as_stored(item[1]).itemsize):
        stored.append(as_stored(array))
        header[name] = {
            "dtype": names[dtype_name(array)],
            "shape": list(array.shape),
            "data_offsets": [end, end + stored[-1].nbytes],
        }
        end += stored[-1].nbytes
    packed = json.dumps(header, separators=(",", ":")).encode()
    packed += b" " * (-len(packed) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(packed)) + packed)
        for array in stored:
            file.write(array.tobytes())


def read_safetensors(file, label, largest):
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(exactly(file, 8, label), "little")
    if length > min(size - 8, 2 * LARGEST_TEXT):
        raise VectorError(
            f"{label}: the header must have at most {min(size - 8, 2 * LARGEST_TEXT)} bytes; got {length}."
        )
    header = parse_json(exactly(file, length, label).decode("utf-8"), f"the header of {label}")
    if not isinstance(header, dict):
        raise VectorError(f"{label}: the header must be a JSON object.")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise VectorError(f"{label}: __metadata__ must map words to words.")
    if len(header) > MOST_ARRAYS:
        raise VectorError(f"{label} must have at most {MOST_ARRAYS} arrays; got {len(header)}.")
    described, end = _layout(header, label), 0
    require_bytes(size - 8 - length, largest, label)
    for first, last, name, *_ in described:
        if first != end:
            found = f"{name} starts at {first}, the one before ends at {end}"
            raise VectorError(f"{label}: arrays must follow one another without gap or overlap; {found}.")
        end = last
    if end != size - 8 - length:
        raise VectorError(f"{label} must have {end} bytes after the header; got {size - 8 - length}.")
    arrays = {
        name: as_array_of(exactly(file, last - first, label), dtype, shape)
        for first, last, name, dtype, shape in described
    }
    return arrays, metadata.get("refattn", "")


def _layout(header, label):
    """(first byte, last byte, name, dtype, shape), in order."""
    described = []
    for name, entry in header.items():
        if not isinstance(entry, dict) or {*entry} != {"dtype", "shape", "data_offsets"}:
            raise VectorError(f"{label}: {str(name)[:60]!r} must have dtype, shape and data_offsets.")
        offsets = entry["data_offsets"]
        if (
            not isinstance(offsets, list)
            or len(offsets) != 2
            or not all(type(x) is int and 0 <= x < 2**63 for x in offsets)
        ):
            raise VectorError(f"{label}: data_offsets of {str(name)[:60]!r} must be two integers.")
        dtype = SAFETENSORS.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
        nbytes = size_of(name, dtype or str(entry["dtype"]), entry["shape"], label)
        if offsets[1] - offsets[0] != nbytes:
            raise VectorError(
                f"{label}: {name} of shape {entry['shape']} must have {nbytes} bytes; data_offsets give "
                f"{offsets[1] - offsets[0]}."
            )
        described.append((*offsets, name, dtype, tuple(entry["shape"])))
    return sorted(described, key=lambda item: item[:2])
