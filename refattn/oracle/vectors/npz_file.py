"""Arrays in .npz files: a zip of .npy members, read without pickles and without evaluating their headers."""

from __future__ import annotations

import os
import re
import struct
import zipfile

import numpy as np

from refattn.oracle.vectors.untrusted import (
    BITS,
    DTYPES,
    LARGEST_TEXT,
    MOST_ARRAYS,
    TEXT,
    VectorError,
    as_array_of,
    as_stored,
    exactly,
    require_bytes,
    size_of,
    valid_name,
)

NPY_HEADER = re.compile(
    rb"\s*\{\s*'descr'\s*:\s*'([<>|=]?[a-zA-Z]\d{0,2})'\s*,\s*'fortran_order'\s*:\s*(True|False)\s*,"
    rb"\s*'shape'\s*:\s*\(([0-9, ]{0,400})\)\s*,?\s*\}\s*"
)
# how NumPy stores dtypes of ml_dtypes; V1 does not say which, so bytes
FOREIGN = {"V2": "bfloat16", "f1": "float8_e5m2", "V1": "uint8"}
LARGEST_RATIO = 200  # of a compressed member; beyond LARGE bytes more is a bomb, not data
LARGE = 2**24


def write_npz(path, arrays, text, _lines):
    epoch = (1980, 1, 1, 0, 0, 0)  # equal content, equal bytes
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=False) as archive:
        archive.writestr(zipfile.ZipInfo(TEXT, epoch), text)
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy", epoch), "w") as member:
                np.lib.format.write_array(member, as_stored(array), allow_pickle=False)


def read_npz(file, label, largest):
    _check_directory_size(file, label)
    arrays, text = {}, ""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if len(members) > MOST_ARRAYS + 1:
            raise VectorError(f"{label} must have at most {MOST_ARRAYS} arrays; got {len(members)} members.")
        require_bytes(sum(member.file_size for member in members), largest + LARGEST_TEXT, label)
        seen = set()
        for member in members:
            _check_member(member, seen, label)
        for member in members:
            with archive.open(member) as stream:
                if member.filename == TEXT:
                    if member.file_size > LARGEST_TEXT:
                        raise VectorError(
                            f"{label}: {TEXT} must have at most {LARGEST_TEXT} bytes; got "
                            f"{member.file_size}."
                        )
                    text = exactly(stream, member.file_size, label).decode("utf-8")
                else:
                    arrays[member.filename.removesuffix(".npy")] = read_npy(
                        stream, member.file_size, f"{label}: {member.filename}"
                    )
                if stream.read(1):
                    raise VectorError(f"{label}: {member.filename} is longer than it says.")
    return arrays, text


def _check_directory_size(file, label):
    """Read the end of the archive before `zipfile` reads a directory of any length into memory."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 65557))
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < 22:
        raise VectorError(f"{label} must be a zip file; its end is missing.")
    entries, length = struct.unpack("<10xHL", tail[at : at + 16])
    if tail[max(at - 20, 0) : at].startswith(b"PK\x06\x07") or entries > MOST_ARRAYS + 1 or length > 2**20:
        raise VectorError(
            f"{label} must have at most {MOST_ARRAYS} arrays; got {entries} members in a directory of "
            f"{length} bytes."
        )
    file.seek(0)


def _check_member(member, seen, label):
    name = member.filename
    if name in seen:
        raise VectorError(f"{label} must have each array once; got {name[:60]!r} twice.")
    seen.add(name)
    if member.orig_filename != name or (
        name != TEXT and not (name.endswith(".npy") and valid_name(name.removesuffix(".npy")))
    ):
        raise VectorError(
            f"{label}: members must be named like query.npy; got {member.orig_filename[:60]!r}."
        )
    if member.flag_bits & 0x1:
        raise VectorError(f"{label}: {name} must not be encrypted.")
    if member.file_size > max(LARGE, LARGEST_RATIO * member.compress_size):
        sizes = f"{member.compress_size} bytes for {member.file_size}"
        raise VectorError(
            f"{label}: {name} must unpack to at most {LARGEST_RATIO} times its size; got {sizes}."
        )
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise VectorError(f"{label}: {name} must be stored or deflated; got method {member.compress_type}.")


def read_npy(stream, file_size, label):
    """One .npy, its header matched against a pattern and never evaluated."""
    magic = exactly(stream, 8, label)
    if magic[:6] != b"\x93NUMPY" or magic[6] not in (1, 2, 3):
        raise VectorError(f"{label} must be a .npy of version 1 to 3.")
    width = 2 if magic[6] == 1 else 4
    length = int.from_bytes(exactly(stream, width, label), "little")
    if length > 10_000:
        raise VectorError(f"{label}: the header must have at most 10000 bytes; got {length}.")
    match = NPY_HEADER.fullmatch(exactly(stream, length, label))
    if match is None:
        raise VectorError(
            f"{label}: the header must give descr, fortran_order and shape of an array of numbers, no "
            "objects and no records."
        )
    dtype, swapped = _described(match[1].decode(), label)
    sizes = [part.strip() for part in match[3].decode().split(",")]
    if sizes and sizes[-1] == "":
        sizes.pop()
    if not all(part.isdigit() and len(part) < 16 for part in sizes):
        raise VectorError(f"{label}: the shape must be a tuple of integers.")
    shape = tuple(map(int, sizes))
    nbytes = size_of("array", dtype, shape, label)
    if nbytes != file_size - 8 - width - length:
        raise VectorError(
            f"{label}: shape {shape} of {dtype} must have {nbytes} bytes; the member has "
            f"{file_size - 8 - width - length}."
        )
    data = exactly(stream, nbytes, label)
    if swapped:
        data = np.frombuffer(data, np.dtype(DTYPES[dtype]).newbyteorder(">")).astype(DTYPES[dtype]).tobytes()
    if match[2] == b"True":
        array = as_array_of(data, dtype, shape[::-1]).T
        return array
    return as_array_of(data, dtype, shape)


def _described(descr, label):
    """(dtype name, big-endian) of an npy descr."""
    order, code = (descr[0], descr[1:]) if descr[0] in "<>|=" else ("<", descr)
    for name, ours in DTYPES.items():
        if name not in BITS and ours[1:] == code:
            return name, order == ">" and np.dtype(ours).itemsize > 1
    if code in FOREIGN:
        return FOREIGN[code], False
    raise VectorError(f"{label} must hold numbers of {', '.join(DTYPES)}; got descr {descr!r}.")
