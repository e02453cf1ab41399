"""Reading golden files.

A file is a .npz without pickles: the arrays of each dtype end to end, and a JSON manifest that says what
they are. Every array has its sha256, checked when it is read.
"""

import hashlib
import json
import math
import zipfile
from dataclasses import dataclass
from importlib import resources

import numpy as np

FORMAT = 1
LARGEST_FILE = 64 * 2**20  # bytes after decompression; the shipped ones stay below 2 MiB
DTYPES = ("bool", "float16", "float32", "float64", "int64", "uint16")
# stored as the upper half of float32
BFLOAT16 = ("output_low", "lse_low", "gauge", "output_factor", "lse_factor", "score_factor")


class GoldenError(ValueError):
    """A golden file that is not what its manifest says."""


@dataclass(frozen=True, eq=False)
class GoldenCase:
    """One call and what it must give.

    Attributes
    ----------
    name : str
    variant : "MHA", "MQA", "GQA" or "MLA"; None for a golden that is no attention call
    source : "torch formula", "torch sdpa", "MiniLM layer n" or "published snippet"
    function : str or None
        Name of the function of `refattn`; "..._with_lse" where the function has that form.
    arguments : dict of str to ndarray
        The arrays, in the order of the function's parameters.
    options : dict
        Keyword arguments.
    golden : dict of str to ndarray
        output, lse (not for torch sdpa) : float64, by torch. output_low, lse_low : the 40-digit answer
        minus these. gauge : sum_j p_j |v_j|. row_max : largest visible score. output_factor, lse_factor,
        score_factor : see `error_bound`.
    provenance : dict
        Script, versions, seed; for real input also model, layer and sentence.
    """

    name: str
    variant: str | None
    source: str
    function: str | None
    arguments: dict
    options: dict
    golden: dict
    provenance: dict

    @property
    def output(self):
        return self.golden["output"]

    @property
    def lse(self):
        return self.golden.get("lse")

    def error_bound(self, unit_roundoff):
        """What rounding alone can do to (output, lse) in arithmetic with this unit roundoff, by the maker's
        error analysis.

        u * factor * exp(2 u score_factor): componentwise, for any order of summation. The factors are
        rounded up.
        """
        growth = np.exp(2 * unit_roundoff * self.golden["score_factor"])
        output = unit_roundoff * self.golden["output_factor"] * growth[..., None]
        return output, unit_roundoff * self.golden["lse_factor"] * growth


def files(directory=None):
    """The golden files, as names without ending, sorted.

    Examples
    --------
    >>> import refattn.goldens
    >>> "minilm_layer0" in refattn.goldens.files()
    True
    """
    folder = resources.files(__package__) if directory is None else directory
    return sorted(
        entry.name.removesuffix(".npz") for entry in folder.iterdir() if entry.name.endswith(".npz")
    )


def cases(directory=None):
    """Yield every `GoldenCase` that is an attention call, file by file.

    Raises
    ------
    GoldenError
        When a file is damaged or an array does not have its digest.

    Examples
    --------
    >>> import refattn.goldens
    >>> sorted({case.variant for case in refattn.goldens.cases()})
    ['GQA', 'MHA', 'MLA', 'MQA']
    """
    for name in files(directory):
        yield from (case for case in read_file(name, directory) if case.function is not None)


def load(name, directory=None):
    """The case of this name.

    Raises
    ------
    KeyError
        When no file has such a case.
    GoldenError
        As `cases`.

    Examples
    --------
    >>> import refattn.goldens
    >>> golden = refattn.goldens.load("published_grouping")
    >>> golden.arguments["queries"].shape, golden.options, golden.output.shape
    ((2, 8, 4), {'group_size': 2}, (2, 8, 4))
    """
    for file in files(directory):
        for case in read_file(file, directory):
            if case.name == name:
                return case
    raise KeyError(f"no golden case is named {name!r}.")


def read_file(name, directory=None):
    """Every case of one file, digests checked."""
    folder = resources.files(__package__) if directory is None else directory
    with (folder / f"{name}.npz").open("rb") as file:
        try:
            return parsed(file, f"{name}.npz")
        except (
            zipfile.BadZipFile,
            zipfile.LargeZipFile,
            json.JSONDecodeError,
            KeyError,
            TypeError,
            EOFError,
            OSError,
        ) as error:
            raise GoldenError(f"{name}.npz is damaged: {error}.") from error
        except ValueError as error:
            if isinstance(error, GoldenError):
                raise
            raise GoldenError(f"{name}.npz is damaged: {error}.") from error


def parsed(file, label):
    with zipfile.ZipFile(file) as members:
        if sum(member.file_size for member in members.infolist()) > LARGEST_FILE:
            raise GoldenError(f"{label} must unpack to at most {LARGEST_FILE} bytes.")
    file.seek(0)
    with np.load(file, allow_pickle=False) as stored:
        text = bytes(stored["manifest"])
        if hashlib.sha256(text).hexdigest().encode() != bytes(stored["manifest_sha256"]):
            raise GoldenError(
                f"{label}: the manifest does not match its sha256; the file was changed after it was made."
            )
        manifest = json.loads(text)
        if manifest["format"] != FORMAT:
            raise GoldenError(f"{label} must have format {FORMAT}; got format {manifest['format']}.")
        flat = {name: stored[name] for name in stored.files if name in DTYPES}
    arrays = {key: checked_array(key, entry, flat, label) for key, entry in manifest["arrays"].items()}
    return [golden_case(entry, arrays, manifest["made_by"]) for entry in manifest["cases"]]


def checked_array(key, entry, flat, label):
    """One array out of the flat store of its dtype, read-only, its digest verified."""
    shape = tuple(entry["shape"])
    array = flat[entry["dtype"]][entry["start"] :][: math.prod(shape)].reshape(shape)
    if hashlib.sha256(f"{array.dtype.str}{shape}".encode() + array.tobytes()).hexdigest() != entry["sha256"]:
        raise GoldenError(
            f"{label}: {key} does not match its sha256; the file was changed after it was made."
        )
    array.flags.writeable = False
    return array


def golden_case(entry, arrays, made_by):
    options = {name: option(value, arrays) for name, value in entry["options"].items()}
    golden = {
        name: widened(arrays[key]) if name in BFLOAT16 else arrays[key]
        for name, key in entry["golden"].items()
    }
    return GoldenCase(
        name=entry["name"],
        variant=entry["variant"],
        source=entry["source"],
        function=entry["function"],
        arguments={name: arrays[key] for name, key in entry["arguments"].items()},
        options=options,
        golden=golden,
        provenance=made_by | entry["provenance"],
    )


def option(value, arrays):
    if isinstance(value, dict):
        return arrays[value["array"]]
    return tuple(value) if isinstance(value, list) else value


def widened(halves):
    """bfloat16 bits as float64."""
    return (halves.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
