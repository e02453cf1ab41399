"""`refattn doctor`: what this machine offers, where things are kept, and known hazards found, in plain words.

    CPU, vector width, threads and their limits, cache of compiled code, versions, BLAS, floating-point behaviour

Exit code 0 without a hazard, 1 with one. Notes (a missing optional package, say) do not count. The command only looks: it changes no setting.
"""

import importlib
import importlib.metadata
import json
import os
import platform
import re
import stat
import sys
import textwrap
import threading
from dataclasses import asdict
from pathlib import Path

import numpy as np

from refattn._version import __version__
from refattn.hazards import find_hazards

PACKAGES = ("numpy", "scipy", "numba", "llvmlite", "ml_dtypes", "safetensors", "threadpoolctl")
TELLING_FEATURES = ("sse2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bf16", "avx512fp16", "amx-tile", "amx-bf16", "neon", "bf16", "sve")
SWITCHES = ("NUMBA_NUM_THREADS", "NUMBA_DISABLE_JIT", "NUMBA_BOUNDSCHECK", "NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "CPU_KERNELS_CACHE_DIR",
            "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")


def collect_facts():
    """Everything the report says, as plain values that JSON can hold."""
    kernels = kernel_facts()
    return {
        "refattn": __version__,
        "python": {"version": platform.python_version(), "gil": getattr(sys, "_is_gil_enabled", lambda: True)()},
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
    facts = {"cpus": os.cpu_count() or 1, "affinity": affinity, "quota": None, "numba_num_threads": None, "used": None}
    try:
        limits = importlib.import_module("cpu_kernels.cpu_limits")
        facts["used"] = importlib.import_module("cpu_kernels.threading").get_num_threads()
    except ImportError:
        return facts
    return facts | {"quota": limits.cpu_quota(), "numba_num_threads": limits.numba_num_threads()}


def kernel_facts():
    """How cpu_kernels compiles and where it keeps code; {"problem": reason} when it cannot be imported."""
    try:
        jit = importlib.import_module("cpu_kernels.jit")
        place = importlib.import_module("cpu_kernels.cache").place()
    except ImportError as error:
        return {"problem": str(error)}
    return {
        "compiled_for": jit.cpu_name(),
        "vector_bits": 8 * jit.vector_bytes(),
        "features": [name for name in TELLING_FEATURES if name in jit.cpu_features()],
        "cache": {"folder": place.path, "reason": None if place.path else place.reason, "refusals": list(place.refusals)} | folder_facts(place.path),
    }


def folder_facts(path):
    if path is None:
        return {}
    files = [file.stat().st_size for file in Path(path).rglob("*") if file.is_file()]
    return {"mode": stat.filemode(os.stat(path).st_mode), "files": len(files), "bytes": sum(files)}


def blas_facts():
    """The BLAS behind NumPy: as threadpoolctl finds it loaded, else as NumPy was built. Threads None: unknown."""
    try:
        loaded = [library for library in importlib.import_module("threadpoolctl").threadpool_info() if library["user_api"] == "blas"]
        if loaded:
            return {"name": loaded[0]["internal_api"], "version": loaded[0]["version"], "threads": loaded[0]["num_threads"]}
    except ImportError:
        pass
    built = np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
    asked = os.environ.get("OPENBLAS_NUM_THREADS") or os.environ.get("OMP_NUM_THREADS") or ""
    return {"name": built.get("name"), "version": built.get("version"), "threads": int(asked) if asked.isdecimal() else None}


def number_facts():
    """Whether subnormal numbers survive, in this thread and in a new one, and how wide longdouble is."""
    flushes = {"this thread": flushes_subnormals()}
    thread = threading.Thread(target=lambda: flushes.update({"new threads": flushes_subnormals()}))
    thread.start()
    thread.join()
    longdouble = np.finfo(np.longdouble)
    return {"flushes_subnormals": flushes, "longdouble_significand_bits": int(longdouble.nmant) + 1, "longdouble_max_exponent": int(longdouble.maxexp)}


def flushes_subnormals():
    """True if the calling thread treats subnormal operands as zero (DAZ) or rounds subnormal results to zero (FTZ)."""
    smallest = np.array([1], np.uint32).view(np.float32)
    smallest_normal = np.array([0x00800000], np.uint32).view(np.float32)
    with np.errstate(all="ignore"):
        return bool((smallest * np.float32(2**100))[0] == 0 or (smallest_normal * np.float32(0.5)).view(np.uint32)[0] == 0)


def as_text(facts, findings):
    """The report for people."""
    versions = [f"{package} {version}" for package, version in facts["versions"].items() if version]
    lines = ["refattn doctor", ""]
    for label, text in (("CPU", cpu_text(facts)), ("threads", threads_text(facts["threads"])), ("cache", cache_text(facts["kernels"])),
                        ("versions", f"refattn {facts['refattn']}, Python {facts['python']['version']}, {', '.join(versions)}"),
                        ("BLAS", blas_text(facts["blas"])), ("numbers", numbers_text(facts["numbers"])), ("system", facts["system"])):
        lines += [f"  {label:<9} {part}" if first else f"  {'':<9} {part}" for first, part in zip([True] + [False] * 9, text.split("\n"))]
    for severity, none in (("hazard", "No hazards found."), ("note", None)):
        chosen = [finding for finding in findings if finding.severity == severity]
        if chosen:
            lines += ["", f"{len(chosen)} {severity}{'s' if len(chosen) > 1 else ''}:"]
            for finding in chosen:
                lines += textwrap.wrap(finding.what, 110, initial_indent="  ! " if severity == "hazard" else "  - ", subsequent_indent="    ")
                lines += textwrap.wrap(finding.advice, 110, initial_indent="    ", subsequent_indent="    ")
        elif none:
            lines += ["", none]
    return "\n".join(lines)


def cpu_text(facts):
    cpu, kernels = facts["cpu"], facts["kernels"]
    text = f"{cpu['name']} ({cpu['architecture']})"
    if kernels.get("problem"):
        return text
    return f"{text}\nkernels compiled for {kernels['compiled_for']}: {kernels['vector_bits']}-bit vectors; {' '.join(kernels['features']) or 'no extensions'}"


def threads_text(threads):
    quota = "none" if threads["quota"] is None else f"{threads['quota']:g}"
    text = f"{threads['used'] or 'no kernels'}: {threads['cpus']} CPUs, affinity {threads['affinity']}, container quota {quota}, " \
           f"NUMBA_NUM_THREADS {threads['numba_num_threads'] or 'unset'}"
    return text + ("\nlayer: the kernels' own pool of Python threads; no Numba threading layer is used" if threads["used"] else "")


def cache_text(kernels):
    cache = kernels.get("cache")
    if cache is None:
        return "no kernels"
    if cache["folder"] is None:
        return f"none: {cache['reason']}"
    return f"{cache['folder']} ({cache['mode']}, {cache['files']} files, {cache['bytes'] / 2**20:.1f} MiB)"


def blas_text(blas):
    threads = "" if blas["threads"] is None else f", {blas['threads']} thread{'s' if blas['threads'] != 1 else ''}"
    return f"{blas['name'] or 'unknown'} {blas['version'] or ''}{threads}".rstrip()


def numbers_text(numbers):
    flushing = [name for name, flushes in numbers["flushes_subnormals"].items() if flushes]
    subnormals = f"flushed to zero in {' and '.join(flushing)}" if flushing else "kept"
    return f"subnormals {subnormals}; longdouble has {numbers['longdouble_significand_bits']} significant bits"


def add_parser(subparsers):
    """Add `doctor` to the subcommands of `refattn`."""
    parser = subparsers.add_parser(
        "doctor",
        help="what this machine offers the kernels, and known hazards",
        description="CPU, vector width, threads and their limits, the cache of compiled code, versions, BLAS, and known hazards found here.",
        epilog="exit code: 0 without a hazard, 1 with one; notes do not count",
    )
    parser.add_argument("--json", action="store_true", help="machine-readable report on standard output")
    parser.set_defaults(run=run)


def run(args):
    """Print the report and return the exit code."""
    facts = collect_facts()
    findings = find_hazards(facts)
    if args.json:
        print(json.dumps(facts | {"findings": [asdict(finding) for finding in findings]}, indent=2, allow_nan=False))
    else:
        print(as_text(facts, findings))
    return 1 if any(finding.severity == "hazard" for finding in findings) else 0
