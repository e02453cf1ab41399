"""Packs: directories of golden vectors, one file a case, and a manifest with the digest of each."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import refattn
from refattn.oracle.vectors.case_file import load_case, save_case
from refattn.oracle.vectors.containers import ENDINGS
from refattn.oracle.vectors.golden import VectorCase
from refattn.oracle.vectors.untrusted import (
    LARGEST,
    VectorError,
    open_regular,
    parse_json,
    read_text_file,
    valid_name,
)

PACK_FORMAT = "refattn pack", 1
MANIFEST = "manifest.json"
MOST_CASES = 10_000


def write_pack(directory, cases, *, container="npz", description=None) -> Path:
    """Write cases into a directory, one file each, and `manifest.json` last.

    Parameters
    ----------
    directory : path-like
        Created; must not hold a pack already.
    cases : iterable of VectorCase
        Taken one after another, so any number fits in memory.
    container : {"npz", "safetensors", "raw"}
    description : dict, optional
        Further entries of the manifest.
    """
    if container not in ENDINGS:
        raise ValueError(f"container must be one of {', '.join(ENDINGS)}; got container={container!r}.")
    directory = Path(directory)
    if (directory / MANIFEST).exists():
        raise FileExistsError(
            f"directory must not hold a pack already; found {MANIFEST} in {directory.name}."
        )
    directory.mkdir(parents=True, exist_ok=True)
    entries, names = [], set()
    for case in cases:
        file = f"{case.pack}-{case.name}"
        while file in names:
            file += "-again"
        names.add(file)
        path = directory / f"{file}{ENDINGS[container]}"
        text_digest = save_case(case, path, container)
        whole = text_digest if container == "raw" else file_digest(path)
        entries.append(
            {
                "name": file,
                "file": path.name,
                "pack": case.pack,
                "function": case.function,
                "options": sorted(case.options),
                "sha256": whole,
            }
        )
    manifest = {
        "format": PACK_FORMAT[0],
        "version": PACK_FORMAT[1],
        "container": container,
        **(description or {}),
        "made_by": {"refattn": refattn.__version__, "numpy": np.__version__},
        "cases": entries,
    }
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=1, allow_nan=False), encoding="utf-8")
    return directory


def file_digest(path, largest=2 * LARGEST) -> str:
    """sha256 of a file, read in steps."""
    found = hashlib.sha256()
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > largest:
            raise VectorError(f"{Path(path).name} must have at most {largest} bytes.")
        while part := file.read(2**20):
            found.update(part)
    return found.hexdigest()


@dataclass(frozen=True)
class PackEntry:
    """A case of a pack, not yet read."""

    name: str
    path: Path
    sha256: str
    function: str

    def load(self, *, largest=LARGEST) -> VectorCase:
        """Read the case, digest checked."""
        if self.path.is_dir() and not self.path.is_symlink():
            found = hashlib.sha256(read_text_file(self.path / "case.json").encode()).hexdigest()
        else:
            found = file_digest(self.path)
        if found != self.sha256:
            raise VectorError(
                f"{self.path.name} does not have its sha256; the file was changed after the pack was made."
            )
        return load_case(self.path, largest=largest)


def read_pack(directory) -> Iterator[PackEntry]:
    """The cases of a pack in order; each is read when its `load` is called.

    Raises
    ------
    VectorError
        The manifest is damaged or names files outside the directory.
    """
    directory = Path(directory)
    if not (directory / MANIFEST).is_file():
        raise VectorError(
            f"{directory} must be a pack: a directory with {MANIFEST}, as 'refattn vectors make' writes it."
        )
    manifest = parse_json(read_text_file(directory / MANIFEST, 2**24), MANIFEST)
    if not isinstance(manifest, dict) or (manifest.get("format"), manifest.get("version")) != PACK_FORMAT:
        raise VectorError(f"{MANIFEST} must be that of a {PACK_FORMAT[0]} of version {PACK_FORMAT[1]}.")
    entries = manifest.get("cases")
    if not isinstance(entries, list) or len(entries) > MOST_CASES:
        raise VectorError(f"{MANIFEST} must list at most {MOST_CASES} cases.")
    checked, seen = [], set()
    for entry in entries:
        if not isinstance(entry, dict) or not all(
            isinstance(entry.get(key), str) for key in ("name", "file", "sha256", "function")
        ):
            raise VectorError(f"{MANIFEST}: every case must have name, file, function and sha256.")
        if not valid_name(entry["file"]) or not valid_name(entry["name"]) or entry["name"] in seen:
            raise VectorError(
                f"{MANIFEST}: files must lie in the directory of the pack, each once; got "
                f"{entry['file'][:60]!r}."
            )
        seen.add(entry["name"])
        checked.append(
            PackEntry(entry["name"], directory / entry["file"], entry["sha256"], entry["function"])
        )
    return iter(checked)
