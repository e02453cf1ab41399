"""Harmful files, and the assertion that one is refused."""

import json
import struct
import tracemalloc
import zipfile

import pytest

from refattn.oracle.vectors.containers import read_arrays
from refattn.oracle.vectors.untrusted import VectorError

MEBIBYTE = 2**20


def refused(path, words, read=read_arrays):
    """The file raises VectorError that says `words`, and allocates at most 32 MiB."""
    tracemalloc.start()
    try:
        with pytest.raises(VectorError, match=words):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 32 * MEBIBYTE
    finally:
        tracemalloc.stop()


def npy(header, data=b"", version=1):
    header = header if isinstance(header, bytes) else header.encode()
    width = "<H" if version == 1 else "<I"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack(width, len(header)) + header + data


def header(descr="'<f4'", order="False", shape="(2,)"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


def npz(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def safetensors(path, head, data=b"", length=None):
    packed = head if isinstance(head, bytes) else json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(packed) if length is None else length) + packed + data)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


class Trap:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def raw(path, lines, files=()):
    path.mkdir(parents=True)
    (path / "case.txt").write_text("\n".join(lines))
    for name, data in files:
        (path / name).write_bytes(data)
    return path
