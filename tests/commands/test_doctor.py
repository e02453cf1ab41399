"""`refattn doctor`: every hazard is recognised from its facts, nothing healthy is called ill, and the
report says what the machine says.
"""

import copy as copying
import json
import os
import platform
import shutil
import subprocess
import sys

import numpy as np
import pytest
from package_copy import ROOT

from refattn.commands import machine as doctor
from refattn.commands.doctor import as_text
from refattn.commands.hazards import Finding, find_hazards, numbers_in

HEALTHY = {
    "refattn": "0.1.0",
    "python": {"version": "3.12.1", "gil": True},
    "system": "Linux 6.1",
    "cpu": {"name": "Some CPU", "architecture": "x86_64"},
    "threads": {"cpus": 8, "affinity": 8, "quota": None, "numba_num_threads": None, "used": 8},
    "kernels": {
        "compiled_for": "skylake",
        "vector_bits": 256,
        "features": ["avx2", "fma"],
        "cache": {
            "folder": "/home/me/.cache/cpu_kernels",
            "reason": None,
            "refusals": [],
            "mode": "drwx------",
            "files": 3,
            "bytes": 5 << 20,
        },
    },
    "versions": {
        "numpy": "2.4.0",
        "scipy": "1.17.0",
        "numba": "0.68.1",
        "llvmlite": "0.50.0",
        "ml_dtypes": "0.6.0",
        "safetensors": None,
    },
    "blas": {"name": "scipy-openblas", "version": "0.3.34.106.0", "threads": 8},
    "numbers": {
        "flushes_subnormals": {"this thread": False, "new threads": False},
        "longdouble_significand_bits": 64,
        "longdouble_max_exponent": 16384,
    },
    "environment": {},
}


def changed(*path_and_value):
    """The healthy facts with one changed."""
    *path, name, value = path_and_value
    facts = copying.deepcopy(HEALTHY)
    place = facts
    for step in path:
        place = place[step]
    place[name] = value
    return facts


def command(*arguments, code=None, **environment):
    """Run `refattn doctor` in a process of its own."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("NUMBA_", "CPU_KERNELS_", "OPENBLAS_", "OMP_", "COV_"))
    }
    program = ["-m", "refattn", "doctor", *arguments] if code is None else ["-c", code]
    return subprocess.run(
        [sys.executable, *program],
        env={**clean, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_healthy_machine_has_no_findings():
    assert find_hazards(HEALTHY) == []


@pytest.mark.parametrize(
    "facts, severity, words",
    [
        (
            changed("numbers", "flushes_subnormals", {"this thread": True, "new threads": False}),
            "hazard",
            "flushed to zero in this thread:",
        ),
        (
            changed("numbers", "flushes_subnormals", {"this thread": True, "new threads": True}),
            "hazard",
            "in this thread and new threads:",
        ),
        (
            changed("blas", {"name": "openblas", "version": "0.3.29", "threads": None}),
            "hazard",
            "wrong products, silently",
        ),
        (
            changed("blas", {"name": "scipy-openblas", "version": "0.3.28.0.1", "threads": 4}),
            "hazard",
            "OpenBLAS 0.3.28.0.1",
        ),
        (
            changed("blas", {"name": "openblas", "version": "0.3.31.188.0", "threads": None}),
            "note",
            "different layouts",
        ),
        (changed("numbers", "longdouble_max_exponent", 1024), "note", "no wider than float64"),
        (changed("versions", "scipy", None), "note", "scipy is not installed"),
        (changed("versions", "ml_dtypes", None), "note", "ml_dtypes is not installed"),
        (
            changed("kernels", {"problem": "Numba needs NumPy 2.4 or less"}),
            "hazard",
            "Numba needs NumPy 2.4 or less",
        ),
        (changed("environment", {"NUMBA_DISABLE_JIT": "1"}), "hazard", "plain Python"),
        (changed("environment", {"NUMBA_BOUNDSCHECK": "1"}), "hazard", "every array access"),
        (changed("environment", {"NUMBA_CPU_NAME": "generic"}), "note", "NUMBA_CPU_NAME=generic"),
        (changed("environment", {"NUMBA_CPU_FEATURES": "+sse2"}), "note", "NUMBA_CPU_FEATURES=+sse2"),
        (
            changed("kernels", "cache", "refusals", ["/tmp/x is writable by other users"]),
            "hazard",
            "run code as you",
        ),
        (
            changed("kernels", "cache", "refusals", ["/tmp/x belongs to another user"]),
            "hazard",
            "another user",
        ),
        (
            changed(
                "kernels",
                "cache",
                {"folder": None, "reason": "CPU_KERNELS_CACHE_DIR is off", "refusals": []},
            ),
            "note",
            "CPU_KERNELS_CACHE_DIR is off",
        ),
        (
            changed("kernels", "cache", "reason", "/home/me/.cache/cpu_kernels: No space left on device"),
            "note",
            "No space left on device",
        ),
        (changed("threads", "quota", 1.5), "note", "quota of 1.5 is below the 8 CPUs"),
        (changed("threads", "numba_num_threads", 2), "note", "NUMBA_NUM_THREADS of 2"),
        (changed("python", "gil", False), "note", "global interpreter lock"),
    ],
)
def test_each_hazard_is_recognised_alone(facts, severity, words):
    (finding,) = find_hazards(facts)
    assert finding.severity == severity and words in finding.what and finding.advice


@pytest.mark.parametrize(
    "facts",
    [
        changed("blas", {"name": "openblas", "version": "0.3.29", "threads": 1}),
        changed("blas", {"name": "openblas", "version": "0.3.33.112.0", "threads": 4}),
        changed("blas", {"name": "mkl", "version": "2024.0", "threads": 4}),
        changed("blas", {"name": "openblas", "version": None, "threads": None}),
        changed("blas", {"name": None, "version": None, "threads": None}),
        changed(
            "environment", {"NUMBA_DISABLE_JIT": "0", "NUMBA_BOUNDSCHECK": "", "NUMBA_NUM_THREADS": "8"}
        ),
        changed("threads", "quota", 16.0),
        changed("threads", "numba_num_threads", 8),
        changed("kernels", "cache", "refusals", ["/root: Read-only file system"]),
    ],
)
def test_what_is_harmless_is_not_reported(facts):
    assert find_hazards(facts) == []


def test_without_numba_there_is_one_note():
    facts = changed("versions", "numba", None)
    facts["kernels"] = {"problem": "No module named 'numba'"}
    assert [
        (finding.severity, "numba is not installed" in finding.what) for finding in find_hazards(facts)
    ] == [("note", True)]


def test_hazards_come_first():
    facts = changed("threads", "quota", 1.0)
    facts["environment"] = {"NUMBA_BOUNDSCHECK": "1"}
    facts["numbers"]["longdouble_max_exponent"] = 1024
    assert [finding.severity for finding in find_hazards(facts)] == ["hazard", "note", "note"]


@pytest.mark.parametrize(
    "version, numbers",
    [
        ("0.3.31.188.0", (0, 3, 31, 188, 0)),
        ("0.3.29.dev", (0, 3, 29)),
        ("2024.0-1", (2024, 0)),
        ("v1", ()),
        (None, ()),
    ],
)
def test_numbers_in(version, numbers):
    assert numbers_in(version) == numbers


def test_facts_of_this_machine():
    facts = doctor.collect_facts()
    assert facts["versions"]["numpy"] == np.__version__
    assert facts["threads"]["cpus"] == os.cpu_count()
    assert facts["cpu"]["name"] and facts["blas"]["name"]
    assert facts["numbers"]["flushes_subnormals"] == {"this thread": False, "new threads": False}
    json.dumps(facts, allow_nan=False)


def test_text_report():
    facts = changed("threads", "quota", 1.5)
    text = as_text(facts, find_hazards(facts))
    for words in (
        "Some CPU (x86_64)",
        "compiled for skylake: 256-bit vectors; avx2 fma",
        "8: 8 CPUs, affinity 8, container quota 1.5, NUMBA_NUM_THREADS unset",
        "no Numba threading layer",
        "/home/me/.cache/cpu_kernels (drwx------, 3 files, 5.0 MiB)",
        "numpy 2.4.0",
        "scipy-openblas 0.3.34.106.0, 8 threads",
        "subnormals kept; longdouble has 64 significant bits",
        "No hazards found.",
        "1 note:",
        "- the container's CPU quota of 1.5",
    ):
        assert words in text, words
    assert "safetensors" not in text and "hazards:" not in text


def test_text_report_of_an_ill_machine():
    facts = changed("environment", {"NUMBA_DISABLE_JIT": "1"})
    facts["kernels"] = {"problem": "broken"}
    facts["threads"]["used"] = None
    facts["numbers"]["flushes_subnormals"]["new threads"] = True
    text = as_text(facts, find_hazards(facts))
    assert "3 hazards:" in text and "No hazards" not in text
    assert "flushed to zero in new threads" in text and "no kernels" in text
    assert max(len(line) for line in text.splitlines()) <= 160


def test_command_exit_codes_and_json():
    done = command("--json", OPENBLAS_NUM_THREADS="1")
    report = json.loads(done.stdout)
    assert done.returncode == 0, report["findings"]
    assert not any(finding["severity"] == "hazard" for finding in report["findings"])
    pytest.importorskip("numba")
    done = command("--json", NUMBA_BOUNDSCHECK="1", NUMBA_NUM_THREADS="1")
    report = json.loads(done.stdout)
    assert done.returncode == 1
    assert report["threads"]["used"] == 1
    assert {Finding(**finding).severity for finding in report["findings"]} >= {"hazard"}


def test_command_prints_text():
    done = command(OPENBLAS_NUM_THREADS="1")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("refattn doctor\n") and "No hazards found." in done.stdout


def test_world_writable_cache_is_found(tmp_path):
    pytest.importorskip("numba")
    exposed = tmp_path / "cpu_kernels"
    exposed.mkdir()
    exposed.chmod(0o777)
    done = command(CPU_KERNELS_CACHE_DIR=str(tmp_path), OPENBLAS_NUM_THREADS="1")
    assert done.returncode == 1
    assert "writable by other users" in done.stdout


def test_importing_the_module_imports_no_numba():
    done = command(
        code="import sys, refattn.commands.machine; print('numba' in sys.modules, 'cpu_kernels' in "
        "sys.modules)"
    )
    assert done.stdout.strip() == "False False", done.stderr


def test_without_numba():
    code = """
import sys
sys.modules["numba"] = None
import importlib.metadata
version = importlib.metadata.version
def without_numba(package):
    if package in ("numba", "llvmlite"):
        raise importlib.metadata.PackageNotFoundError(package)
    return version(package)
importlib.metadata.version = without_numba
from refattn.cli import main
sys.exit(main(["doctor"]))
"""
    done = command(code=code, OPENBLAS_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "numba is not installed" in done.stdout and "no kernels" in done.stdout


def test_flushing_is_measured():
    """torch can switch it on; without torch the healthy answer of test_facts_of_this_machine must do."""
    pytest.importorskip("torch")
    code = """
import torch
from refattn.commands.machine import flushes_subnormals, number_facts
assert not flushes_subnormals()
if torch.set_flush_denormal(True):
    assert flushes_subnormals()
    assert number_facts()["flushes_subnormals"]["this thread"]
    torch.set_flush_denormal(False)
    assert not flushes_subnormals()
print("measured")
"""
    done = command(code=code)
    assert done.stdout.strip() == "measured", done.stderr


def test_threadpoolctl_is_preferred(monkeypatch):
    class Threadpoolctl:
        @staticmethod
        def threadpool_info():
            return [
                {"user_api": "openmp", "internal_api": "openmp", "version": None, "num_threads": 2},
                {"user_api": "blas", "internal_api": "mkl", "version": "2024.1", "num_threads": 3},
            ]

    monkeypatch.setitem(sys.modules, "threadpoolctl", Threadpoolctl)
    assert doctor.blas_facts() == {"name": "mkl", "version": "2024.1", "threads": 3}


def test_blas_as_built(monkeypatch):
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    built = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    assert doctor.blas_facts() == {"name": built["name"], "version": built["version"], "threads": 2}


FLUSHING = """
import ctypes, sys
ctypes.CDLL(sys.argv[1]).flush_subnormals()
import numpy as np, refattn
from refattn.commands import machine as doctor
from refattn.commands import hazards
query = key = np.zeros((1, 1, 4))
value = np.full((1, 1, 4), 1e-310)
blocks = [np.zeros((1, 4, 4))] * 3
calls = {
    "attention": lambda: refattn.attention(query, key, value),
    "attention_steps": lambda: refattn.attention_steps(query, key, value),
    "multi_head_attention": lambda: refattn.multi_head_attention(query, key, value),
    "block_local_attention": lambda: refattn.block_local_attention(*blocks, block_size=2),
    "packed_attention": lambda: refattn.packed_attention(*[np.zeros((1, 2, 4))] * 3, cu_q=[0, 2], cu_kv=[0, 2]),
    "merge_states": lambda: refattn.merge_states([value], [np.zeros((1, 1))]),
}
for name, call in calls.items():
    try:
        print(name, call())
    except FloatingPointError as error:
        assert "flushes subnormal numbers to zero" in str(error)
facts = doctor.number_facts()
print(facts["flushes_subnormals"]["this thread"])
"""


def test_the_reference_refuses_to_lose_small_numbers(tmp_path):
    """A library that sets FTZ and DAZ, as those built with -ffast-math do when they are loaded."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler or platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("needs a C compiler for x86-64")
    source, library = tmp_path / "flush.c", tmp_path / "flush.so"
    source.write_text(
        "#include <xmmintrin.h>\nvoid flush_subnormals(void) { _mm_setcsr(_mm_getcsr() | 0x8040); }\n"
    )
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    done = subprocess.run(
        [sys.executable, "-c", FLUSHING, library],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and done.stdout == "True\n", done.stdout + done.stderr


@pytest.mark.parametrize("count", ["0", "-1", " -3"])
def test_a_number_of_threads_that_numba_refuses(count):
    pytest.importorskip("numba")
    done = command(code="import cpu_kernels", NUMBA_NUM_THREADS=count)
    assert done.stderr.splitlines()[-1].startswith(
        f"ImportError: NUMBA_NUM_THREADS must be 1 or more; got NUMBA_NUM_THREADS={count.strip()}."
    )
    done = command(NUMBA_NUM_THREADS=count, OPENBLAS_NUM_THREADS="1")
    assert (
        done.returncode == 1
        and "NUMBA_NUM_THREADS must be 1 or more" in done.stdout
        and "Traceback" not in done.stderr
    )
