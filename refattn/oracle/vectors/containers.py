"""Named arrays and one text, in a file that anybody may have written: three containers, read without
executing anything and without allocating more than the file proves to hold.

    .npz           a zip of .npy files; stored, not compressed, when written here
    .safetensors   an eight-byte length, a JSON header, little-endian data; the text is in its `__metadata__`
    raw            a directory: one little-endian file an array, and `case.txt`; needs no library to be read

Reading checks names, dtypes, shapes and sizes against each other and against a limit before the data of
any array is touched; pickles, Python expressions, links and encrypted or nested archives are refused.
Everything wrong is a `VectorError`.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from refattn.oracle.vectors.npz_file import read_npz, write_npz
from refattn.oracle.vectors.raw_directory import read_raw, write_raw
from refattn.oracle.vectors.safetensors_file import read_safetensors, write_safetensors
from refattn.oracle.vectors.untrusted import LARGEST, TEXT, VectorError, open_regular, valid_name

# what zipfile, zlib, struct and int() raise on damaged data
DAMAGE = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    struct.error,
    EOFError,
    RecursionError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    KeyError,
    TypeError,
    OverflowError,
    IndexError,
)
ENDINGS = {"npz": ".npz", "safetensors": ".safetensors", "raw": ""}


def container_of(path) -> str:
    """ "npz", "safetensors" or "raw", from the name; a directory is raw."""
    path = Path(path)
    ending = path.suffix.lower()
    if ending in (".npz", ".safetensors"):
        return ending[1:]
    if path.is_dir():
        return "raw"
    raise VectorError(f"{path.name} must end in .npz or .safetensors, or be a directory of raw arrays.")


def write_arrays(path, arrays: dict[str, np.ndarray], text: str, container=None, lines=()) -> None:
    """Write named arrays and a text, to a file that is replaced or, for "raw", into a directory that is
    created. The container is "npz", "safetensors" or "raw", by default by the ending of `path`;
    `lines` are further lines of `case.txt` in "raw".
    """
    path, container = Path(path), container or container_of(path)
    for name in arrays:
        if not valid_name(name) or name == TEXT:
            raise VectorError(f"array names must be letters, digits, '_', '.' and '-'; got {name!r}.")
    {"npz": write_npz, "safetensors": write_safetensors, "raw": write_raw}[container](
        path, arrays, text, lines
    )


def read_arrays(path, *, largest=LARGEST) -> tuple[dict[str, np.ndarray], str]:
    """Read what `write_arrays` or any other program wrote, of at most `largest` bytes: arrays by name,
    read-only, and the text, "" when there is none. bfloat16 of npz files from other programs is a
    16-bit unsigned integer or a two-byte void.

    Raises VectorError where the file is damaged, hostile, or larger than allowed, and OSError where it
    cannot be opened.
    """
    path = Path(path)
    container = container_of(path)
    file = None if container == "raw" else open_regular(path)
    try:
        if file is None:
            return read_raw(path, largest)
        with file:
            return (read_npz if container == "npz" else read_safetensors)(file, path.name, largest)
    except VectorError:
        raise
    except DAMAGE as error:
        raise VectorError(f"{path.name} is damaged: {type(error).__name__}: {str(error)[:200]}") from error
    except OSError as error:
        if file is None:
            raise
        # an offset before the start of the file
        raise VectorError(f"{path.name} is damaged: {error}") from error
