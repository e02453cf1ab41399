"""Compiled code kept on disk, so that only the first process on a machine compiles.

Numba's own cache looks only at the file of the function itself, so an edit in a file it calls goes
unnoticed; its key knows no compile options; a truncated index raises in every later process. Here a
folder holds the code of exactly one state of the world: all sources of this package, the versions of
Python, NumPy, Numba and llvmlite, the CPU compiled for, the options. Whatever changes, another folder is
used and old ones go.

Loading is unpickling, and unpickling runs code: whoever can write to the folder can run code as you. So
folder and files must belong to this user and be writable by nobody else, and they are opened through
their directory's descriptor without following links, so that nothing can be swapped between check and
use. The checksum in each file finds damage, not malice.

Environment: CPU_KERNELS_CACHE_DIR is a folder to keep it in instead of the usual one (XDG_CACHE_HOME,
then the home's cache folder, then a per-user folder in the temporary directory), or ``off``. POSIX
systems only: elsewhere nothing is kept, because the permission checks have no meaning there.
"""

import contextlib
import hashlib
import marshal
import os
import pickle
import platform
import sys
from pathlib import Path

import llvmlite
import numba
import numpy as np
from numba.core import config, sigutils
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

from cpu_kernels.compiler.notice import notice
from cpu_kernels.compiler.numba_internals import prepare_to_load
from cpu_kernels.compiler.private_folder import PrivateFolder, Refused, usual_places
from cpu_kernels.machine.cpu_limits import SPACE_TO_COMPILE, SPACE_TO_LOAD, require_address_space

PACKAGE = Path(__file__).parent.parent
FORMAT = b"cpu_kernels compiled code, format 1\n"
KEPT_STATES = 8
LARGEST_ENTRY = 1 << 20  # bytes; where so much cannot be written, the user is told that nothing is kept
# Numba settings that change the code made from the same source.
CODE_SETTINGS = ("BOUNDSCHECK", "DEBUGINFO_DEFAULT", "ENABLE_AVX", "LOOP_VECTORIZE", "OPT", "SLP_VECTORIZE")


def source_digest(package=PACKAGE):
    """SHA-256 over the names and contents of all Python files of the package."""
    digest = hashlib.sha256()
    for path in sorted(
        path for path in package.rglob("*.py") if path.is_file()
    ):  # editors leave links that lead nowhere
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def _readable_source_digest():
    try:
        return source_digest() if PACKAGE.is_dir() else None
    except OSError:
        return None


# This module is imported before any kernel: the digest of the files the kernels are about to be imported
# from.
_imported_sources = _readable_source_digest()


class CodeCache(NullCache):
    """The `_cache` of one Numba dispatcher: finds and keeps the machine code of its signatures.

    Parameters
    ----------
    function : function
    variant : tuple
        Plain values that tell apart functions made by one factory.
    """

    def __init__(self, function, variant):
        self.function, self.variant = function, variant
        # A function of another package depends on files that the digest does not cover.
        self.covered = function.__globals__.get("__name__", "").split(".")[0] == PACKAGE.name

    @property
    def cache_path(self):
        return place().path

    def load_overload(self, sig, target_context):
        """The compile result for the signature, or None: Numba then compiles and calls `save_overload`."""
        name = self._entry_name(sig)
        folder = self._folder(target_context.codegen())
        compiled = folder and _read_entry(folder, name, sig, target_context)
        if compiled is None:
            require_address_space(SPACE_TO_COMPILE, "Compiling a kernel")
            notice.compiling(self._destination(folder))
        return compiled

    def save_overload(self, sig, compiled):
        notice.compiled()
        folder = self._folder(compiled.codegen)
        if folder and not compiled.library.has_dynamic_globals:
            payload = dumps(compiled._reduce())
            try:
                folder.write(self._entry_name(sig), FORMAT + hashlib.sha256(payload).digest() + payload)
            except Refused as refusal:
                place().reason = str(refusal)
                notice.not_kept(place().description)

    def _folder(self, codegen):
        """The folder of this state of the world, or None. Files edited since they were imported
        belong to no state.
        """
        if not self.covered or _imported_sources is None or _readable_source_digest() != _imported_sources:
            return None
        return place().state_folder(codegen.magic_tuple())

    def _entry_name(self, sig):
        arguments, _ = sigutils.normalize_signature(sig)
        code = marshal.dumps(
            self.function.__code__, 2
        )  # version 2 writes no reference flags, which differ between processes
        key = (
            self.function.__module__,
            self.function.__qualname__,
            self.variant,
            [repr(a) for a in arguments],
            hashlib.sha256(code).hexdigest(),
        )
        return f"{self.function.__name__.strip('<>')}-{hashlib.sha256(repr(key).encode()).hexdigest()[:24]}"

    def _destination(self, folder):
        """Where the code about to be compiled will be, in words."""
        if not self.covered:
            return "not kept: not part of the package"
        if folder is None and place().root:
            return "not kept: the package's sources cannot be read, or were edited since they were imported"
        place().look_for_room()
        return place().description


def _read_entry(folder, name, sig, target_context):
    """Rebuild a kept compile result; anything wrong with the file, and it is removed and compiled anew."""
    content = folder.read(name)
    if content is None:
        return None
    require_address_space(SPACE_TO_LOAD, "Loading a kernel")
    head = len(FORMAT)
    payload = content[head + 32 :]
    try:
        if content[:head] == FORMAT and hashlib.sha256(payload).digest() == content[head : head + 32]:
            prepare_to_load(target_context)
            compiled = CompileResult._rebuild(target_context, *pickle.loads(payload))
            if tuple(compiled.signature.args) == tuple(sigutils.normalize_signature(sig)[0]):
                return compiled
    except Exception:  # whatever a file made by another version of anything can raise
        pass
    folder.remove(name)
    return None


class _Place:
    """Where this process keeps code: the first usable folder, or nowhere.

    Attributes
    ----------
    root : PrivateFolder or None
    reason : str or None
        Why new code cannot be kept. With a root, code that lies there is still loaded.
    """

    def __init__(self):
        self.root, self.states, self.refusals = None, {}, []
        self.reason = "there is no folder of this user's to keep it in"
        given = os.environ.get("CPU_KERNELS_CACHE_DIR", "")
        if given.lower() in ("off", "0"):
            self.reason = "CPU_KERNELS_CACHE_DIR is off"
            return
        for path in _given_place(given) if given else usual_places("cpu_kernels"):
            try:
                self.root, self.reason = PrivateFolder(path), None
                return
            except Refused as refusal:
                self.reason = _about_what_was_given(given, path, str(refusal))
                self.refusals.append(self.reason)

    @property
    def path(self):
        return None if self.root is None else str(self.root.path)

    @property
    def description(self):
        return f"not kept: {self.reason}" if self.reason else f"kept in {self.path}"

    def look_for_room(self):
        """Find out whether new code can be kept, before saying so."""
        if self.root:
            try:
                self.root.try_to_hold(LARGEST_ENTRY)
                self.reason = None
            except Refused as refusal:
                self.reason = str(refusal)

    def state_folder(self, target):
        if self.root is None:
            return None
        if target not in self.states:
            state = (
                _imported_sources,
                sys.version,
                platform.machine(),
                np.__version__,
                numba.__version__,
                llvmlite.__version__,
                target,
                [(name, getattr(config, name, None)) for name in CODE_SETTINGS],
            )
            name = hashlib.sha256(repr(state).encode()).hexdigest()[:24]
            try:
                self.states[target] = self.root.subfolder(name)
                self.root.keep_newest(KEPT_STATES)
            except Refused as refusal:
                self.root, self.reason = None, str(refusal)
                self.refusals.append(self.reason)
                return None
        return self.states[target]


def _given_place(given):
    with contextlib.suppress(OSError):  # a relative path, and the working directory is gone
        yield Path(os.path.abspath(os.path.expanduser(given))) / "cpu_kernels"


def _about_what_was_given(given, path, refusal):
    """The refusal in terms of CPU_KERNELS_CACHE_DIR, where that is set."""
    if not given:
        return refusal
    folder = f"{path.parent} "
    return (
        f"CPU_KERNELS_CACHE_DIR={given} {refusal[len(folder) :]}"
        if refusal.startswith(folder)
        else f"CPU_KERNELS_CACHE_DIR={given}: {refusal}"
    )


_place = None


def place():
    """The process's cache place, found when first needed: importing the package touches no file but
    its own.
    """
    global _place
    if _place is None:
        _place = _Place()
    return _place
