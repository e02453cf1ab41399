"""What this machine offers: facts for `refattn doctor`, which looks for known hazards among them
(`refattn.commands.hazards`) and prints both.

    CPU, vector width, threads and their limits, cache of compiled code, versions, BLAS, floating-point
    behaviour

It only looks: no setting is changed.
"""

import contextlib
import importlib
import importlib.metadata
import os
import platform
import re
import stat
import sys
import threading
from pathlib import Path

import numpy as np

from refattn._version import __version__
from refattn.exact.precise import flushes_subnormals

PACKAGES = ("numpy", "scipy", "numba", "llvmlite", "ml_dtypes", "safetensors", "threadpoolctl")
TELLING_FEATURES = (
    "sse2",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bf16",
    "avx512fp16",
    "amx-tile",
    "amx-bf16",
    "neon",
    "bf16",
    "sve",
)
SWITCHES = (
    "NUMBA_NUM_THREADS",
    "NUMBA_DISABLE_JIT",
    "NUMBA_BOUNDSCHECK",
    "NUMBA_CPU_NAME",
    "NUMBA_CPU_FEATURES",
    "CPU_KERNELS_CACHE_DIR",
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
)


def collect_facts():
    """Everything the report says, as plain values that JSON can hold."""
    kernels = kernel_facts()
    return {
        "refattn": __version__,
        "python": {
            "version": platform.python_version(),
            "gil": getattr(sys, "_is_gil_enabled", lambda: True)(),
        },
        "system": f"{platform.system()} {platform.release()}",
        "cpu": {"name": cpu_model(), "architecture": platform.machine()},
        "threads": thread_facts(),
        "kernels": kernels,
        "versions": {package: installed_version(package) for package in PACKAGES},
        "blas": blas_facts(),
        "numbers": number_facts(),
        "environment": {name: os.environ[name] for name in SWITCHES if name in os.environ},
    }


def installed_version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_model():
    """The CPU's name as its maker writes it."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor() or "unknown"


def thread_facts():
    """CPUs, the limits on them, and the number of threads a large kernel call uses (None without Numba)."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    facts = {
        "cpus": os.cpu_count() or 1,
        "affinity": affinity,
        "quota": None,
        "numba_num_threads": None,
        "used": None,
    }
    try:
        limits = importlib.import_module("cpu_kernels.machine.cpu_limits")
        facts["used"] = importlib.import_module("cpu_kernels.machine.thread_pool").get_num_threads()
    except ImportError:
        return facts
    return facts | {"quota": limits.cpu_quota(), "numba_num_threads": limits.numba_num_threads()}


def kernel_facts():
    """How cpu_kernels compiles and where it keeps code; {"problem": reason} when it cannot be imported."""
    try:
        jit = importlib.import_module("cpu_kernels.compiler.jit")
        place = importlib.import_module("cpu_kernels.compiler.cache").place()
    except ImportError as error:
        return {"problem": str(error)}
    place.look_for_room()
    return {
        "compiled_for": jit.cpu_name(),
        "vector_bits": 8 * jit.vector_bytes(),
        "features": [name for name in TELLING_FEATURES if name in jit.cpu_features()],
        "cache": {"folder": place.path, "reason": place.reason, "refusals": list(place.refusals)}
        | folder_facts(place.path),
    }


def folder_facts(path):
    if path is None:
        return {}
    files = []
    for file in Path(path).rglob("*"):
        with contextlib.suppress(OSError):  # another process has removed it
            status = file.lstat()
            if stat.S_ISREG(status.st_mode):
                files.append(status.st_size)
    return {"mode": stat.filemode(os.stat(path).st_mode), "files": len(files), "bytes": sum(files)}


def blas_facts():
    """The BLAS behind NumPy: as threadpoolctl finds it loaded, else as NumPy was built. Threads None:
    unknown.
    """
    try:
        loaded = [
            library
            for library in importlib.import_module("threadpoolctl").threadpool_info()
            if library["user_api"] == "blas"
        ]
        if loaded:
            return {
                "name": loaded[0]["internal_api"],
                "version": loaded[0]["version"],
                "threads": loaded[0]["num_threads"],
            }
    except ImportError:
        pass
    built = np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
    asked = os.environ.get("OPENBLAS_NUM_THREADS") or os.environ.get("OMP_NUM_THREADS") or ""
    return {
        "name": built.get("name"),
        "version": built.get("version"),
        "threads": int(asked) if asked.isdecimal() else None,
    }


def number_facts():
    """Whether subnormal numbers survive, in this thread and in a new one, and how wide longdouble is."""
    flushes = {"this thread": flushes_subnormals()}
    thread = threading.Thread(target=lambda: flushes.update({"new threads": flushes_subnormals()}))
    thread.start()
    thread.join()
    longdouble = np.finfo(np.longdouble)
    return {
        "flushes_subnormals": flushes,
        "longdouble_significand_bits": int(longdouble.nmant) + 1,
        "longdouble_max_exponent": int(longdouble.maxexp),
    }
