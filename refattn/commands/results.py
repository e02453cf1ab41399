"""Reading what a kernel wrote, and pairing it with the case it belongs to."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refattn.oracle.bounds.results import LSE, OUTPUT, RESULTS, Result, handed_over
from refattn.oracle.dialects.layouts import array_to_ours
from refattn.oracle.vectors.case_file import load_case
from refattn.oracle.vectors.containers import ENDINGS, read_arrays
from refattn.oracle.vectors.golden import VectorCase
from refattn.oracle.vectors.npz_file import read_npy
from refattn.oracle.vectors.pack_directory import MANIFEST, read_pack
from refattn.oracle.vectors.untrusted import BITS, LARGEST, VectorError, as_dtype, open_regular

RESULT_ENDINGS = (*(ending for ending in ENDINGS.values() if ending), ".npy", ".bin")


@dataclass
class Pair:
    """A case and the file of its result, both still to be read."""

    name: str
    load_case: object
    result: Path
    lse: Path | None = None
    dialect: str = "refattn"

    def read(self) -> tuple[VectorCase, dict[Result, np.ndarray]]:
        """The case, and the results that the kernel wrote, at least one, as its dialect writes them; the
        axes of ours are in memory as everywhere, whatever the layout of the case.
        """
        case = self.load_case()
        shapes = expected_shapes(case, self.dialect)
        given = read_result(self.result, case, shapes)
        if self.lse is not None:
            if OUTPUT not in given:
                raise VectorError(
                    f"{self.result.name} must hold the output where --lse gives the lse; got an lse."
                )
            given[LSE] = read_array(self.lse, case, LSE, shapes)
        if self.dialect == "refattn":
            given = {result: in_our_order(array, case, result) for result, array in given.items()}
        return case, given

    def in_our_terms(self, case, given) -> dict[Result, np.ndarray]:
        """The results in the conventions of `refattn`; ValueError for shapes that the dialect does not
        have.
        """
        if self.dialect == "refattn":
            return given
        call = case.written_by(self.dialect)
        call.require_shapes(given)
        return handed_over(*call.to_ours(*map(given.get, RESULTS)))


def expected_shapes(case, dialect="refattn") -> dict[Result, tuple[int, ...]]:
    """The shapes of the results of a case as a library writes them, or in the layout of the case."""
    if dialect == "refattn":
        return {result: in_file_order(case.shape(result), case, result) for result in RESULTS}
    results = case.written_by(dialect).results
    return {result: results.shape(result) for result in RESULTS if results.layout(result)}


def in_file_order(shape, case, result) -> tuple[int, ...]:
    """A shape (..., heads, length, dim) in the order of axes that the file of the case has."""
    if not case.layout or not result.has_dims:
        return shape
    size_of = dict(zip("BHTD"[-len(shape) :], shape, strict=True))
    return tuple(size_of[axis] for axis in case.layout)


def in_our_order(array, case, result) -> np.ndarray:
    """The inverse, of an array."""
    if not case.layout or not result.has_dims:
        return array
    try:
        return array_to_ours(array, case.layout)
    except ValueError:
        raise VectorError(
            f"{result.name} must have the {len(case.layout)} axes {case.layout} of this case; got "
            f"{result.name}.shape={array.shape}."
        ) from None


def pairs(case_path, result_path, lse_path=None, dialect="refattn") -> Iterator[Pair]:
    """One pair for two files; for a pack and a directory one for every case, whose result is named like it.

    Raises
    ------
    VectorError
        A pack without a single result, or a path that is neither.
    """
    for name, path in (("case", case_path), ("result", result_path), ("--lse", lse_path)):
        if path is not None and not str(path).strip():
            raise VectorError(f"{name} must be the path of a file or directory; got {str(path)!r}.")
    case_path, result_path = Path(case_path), Path(result_path)
    if not (case_path / MANIFEST).is_file():
        if not case_path.exists():
            raise VectorError(f"{case_path} must exist.")
        yield Pair(
            case_path.stem,
            lambda: load_case(case_path),
            result_path,
            None if lse_path is None else Path(lse_path),
            dialect,
        )
        return
    if not result_path.is_dir():
        raise VectorError(
            f"{result_path} must be a directory with a result for every case of the pack, named like "
            "NAME.npz or NAME.safetensors."
        )
    for entry in read_pack(case_path):
        found = [
            path for ending in RESULT_ENDINGS if (path := result_path / f"{entry.name}{ending}").exists()
        ]
        lse = result_path / f"{entry.name}-lse{found[0].suffix}" if found else None
        result = found[0] if found else result_path / f"{entry.name}.npz"
        yield Pair(
            entry.name, entry.load, result, lse if lse is not None and lse.exists() else None, dialect
        )


def read_result(path, case, shapes) -> dict[Result, np.ndarray]:
    """What a result file holds: arrays with the names of results, or one array alone (.npy, or .bin
    without a header).

    An array without a name is the lse if it has the size of the lse and not that of the output; `shapes`
    are those that results have.
    """
    path = Path(path)
    if not path.exists():
        raise VectorError(f"{path.name} must exist: there is no result for this case.")
    if path.suffix in (".npy", ".bin"):
        fitting = (result for result in shapes if _fits(path, case, result, shapes))
        result = next(fitting, OUTPUT)
        return {result: read_array(path, case, result, shapes)}
    arrays, _ = read_arrays(path)
    named = {result: arrays[result.name] for result in RESULTS if result.name in arrays}
    if OUTPUT not in named and len(arrays) != 1:
        raise VectorError(
            f"{path.name} must hold an array named output, lse, or both; got "
            f"{', '.join(sorted(arrays)) or 'none'}."
        )
    named = named or {OUTPUT: next(iter(arrays.values()))}
    return {result: _floating(array, result.form(case.spec).name) for result, array in named.items()}


def _fits(path, case, result, shapes):
    """Whether an array without a name has the size of a result."""
    if path.suffix == ".npy":
        return read_array(path, case, result, shapes).shape == shapes[result]
    return path.stat().st_size in _dtypes_of_bin(math.prod(shapes[result]), result.form(case.spec).name)


def _dtypes_of_bin(count, format_name):
    """The dtype that so many numbers have, by the number of bytes of the file."""
    dtypes = {8 * count: "<f8", 4 * count: "<f4", 2 * count: "<u2" if format_name == "bfloat16" else "<f2"}
    if format_name in BITS and BITS[format_name].itemsize == 1:
        dtypes[count] = "|u1"
    return dtypes


def read_array(path, case, result, shapes) -> np.ndarray:
    """One array, a result of the case. A .bin holds it in C order, little-endian; the number of its bytes
    says how wide the numbers are.
    """
    path, shape, format_name = Path(path), shapes.get(result, ()), result.form(case.spec).name
    with open_regular(path) as file:
        size = path.stat().st_size
        if size > LARGEST:
            raise VectorError(f"{path.name} must have at most {LARGEST} bytes; got {size}.")
        if path.suffix == ".npy":
            return _floating(read_npy(file, size, path.name), format_name)
        count = math.prod(shape)
        dtypes = _dtypes_of_bin(count, format_name)
        if size not in dtypes:
            raise VectorError(f"{path.name} must hold {count} numbers of 2, 4 or 8 bytes; got {size} bytes.")
        return _floating(np.frombuffer(file.read(size), dtypes[size]).reshape(shape), format_name)


def _floating(array, format_name):
    """Bits as the format that the spec writes; 8-bit floats in float32."""
    if array.dtype == BITS.get(format_name):
        array = as_dtype(array, format_name)
    return array.astype(np.float32) if array.itemsize == 1 and array.dtype.name in BITS else array
