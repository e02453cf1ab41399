"""Tiles of a call in several threads, one core each.

NumPy releases Python's lock in its loops and products, but BLAS would start threads of its own in each of
ours. So BLAS is held to one thread meanwhile, where it is OpenBLAS, which NumPy's wheels hold and which says
how many it uses; elsewhere there is one thread here, and BLAS decides for itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import os
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

MOST_THREADS = 8  # each holds a tile, some hundred MiB


def in_threads(function, jobs):
    """function(job) for each of the jobs, in their order; a few of them at a time.

    A call inside another of the same thread, as a signal handler may make, takes them one by one: the locks
    of a pool of threads do not let their holder in again.
    """
    alone = getattr(_here, "inside", False)
    _here.inside = True
    try:
        yield from _in_threads(function, iter(jobs), alone)
    finally:
        _here.inside = alone


_here = threading.local()


def _in_threads(function, jobs, alone):
    with _one_blas_thread() as threads:
        first = list(itertools.islice(jobs, 2))
        if threads == 1 or len(first) < 2 or alone:
            yield from map(function, itertools.chain(first, jobs))
            return
        with ThreadPoolExecutor(min(threads, MOST_THREADS), "refattn") as pool:
            waiting = deque()
            try:
                for job in itertools.chain(first, jobs):
                    waiting.append(pool.submit(function, job))
                    if len(waiting) > threads:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()


class _Calls:
    """How many calls hold BLAS to one thread at the moment, and how many threads it used before."""

    def __init__(self):
        self.lock, self.inside, self.before = threading.RLock(), 0, ()

    def after_fork(self):
        """In the child none of them goes on, and the lock may have been held."""
        if self.inside:
            _set_threads(self.before)
        self.__init__()


_calls = _Calls()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_calls.after_fork)


@contextlib.contextmanager
def _one_blas_thread():
    """How many threads BLAS would use; none but the caller's while inside.

    Any number of threads may be inside at a time. A signal handler may come in at any point of a call, so
    each counts itself before it looks, and keeps what it will restore.
    """
    libraries, counted, before = _blas_libraries(), False, ()
    try:
        with _calls.lock:
            _calls.inside, counted = _calls.inside + 1, True
            if _calls.inside == 1:
                _calls.before = tuple(get() for get, _ in libraries)
                before = _calls.before
                _set_threads([1] * len(libraries))
            before = _calls.before
        yield max(before, default=1)
    finally:
        with _calls.lock:
            _calls.inside -= counted
            if _calls.inside == 0 and before:
                _set_threads(before)


def _set_threads(numbers):
    for (_, set_threads), number in zip(_blas_libraries(), numbers, strict=True):
        set_threads(number)


@functools.cache
def _blas_libraries():
    """(get, set) of the number of threads, of every OpenBLAS that NumPy may have loaded."""
    found = []
    for path in _openblas_paths():
        try:
            library = ctypes.CDLL(path)
        except OSError:  # replaced by another since it was loaded
            continue
        for prefix, suffix in itertools.product(("scipy_openblas", "openblas"), ("64_", "")):
            names = (f"{prefix}_{what}_num_threads{suffix}" for what in ("get", "set"))
            functions = [getattr(library, name, None) for name in names]
            if all(functions):
                found.append(tuple(functions))
                break
    return tuple(found)


def _openblas_paths():
    """Files of OpenBLAS: those that are loaded where the system tells, else those that came with NumPy."""
    maps = Path("/proc/self/maps")
    if maps.exists():
        fields = (line.split(maxsplit=5) for line in maps.read_text().splitlines())
        return sorted({parts[5] for parts in fields if len(parts) == 6 and "openblas" in parts[5]})
    beside = Path(np.__file__).parent
    folders = (beside / ".dylibs", beside.parent / "numpy.libs")
    return sorted(str(file) for folder in folders for file in folder.glob("*openblas*"))
