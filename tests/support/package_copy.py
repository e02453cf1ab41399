"""A copy of cpu_kernels with a small kernel of our own in place of the real ones, for tests that edit
sources, damage caches or need a fresh process.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# What kernels are built on; starts in half the time of the whole package.
FOUNDATION = ("compiler", "machine")

LEAF = """\
from cpu_kernels.compiler.jit import leaf

@leaf
def power(x, n):
    result = 1.0
    for _ in range(n):
        result *= x
    return result
"""

DRIVER = """\
import numpy as np
from cpu_kernels.compiler.jit import driver, next_item
from cpu_kernels.sample_leaf import power
from cpu_kernels.machine.thread_pool import run

@driver
def powers(counter, scratch, x, n, out):
    item = next_item(counter)
    while item >= 0:
        out[item] = power(x[item], n)
        item = next_item(counter)

def cubes(x, function=powers):
    out = np.empty(len(x))
    run(function, len(x), np.asarray(x, float), 3, out, cost=0)
    return out.tolist()

def outcome():
    result = cubes([1, 2, 3])
    return result, sum(powers.stats.cache_hits.values()), sum(powers.stats.cache_misses.values())
"""

FIRST_CALL = "from cpu_kernels.sample import outcome; print(outcome())"
COMPILED = "([1.0, 8.0, 27.0], 0, 1)"
LOADED = "([1.0, 8.0, 27.0], 1, 0)"


class PackageCopy:
    """The copy, and processes that import it; their environment has only what is passed and what a
    process needs.
    """

    def __init__(self, folder, whole=False):
        self.folder = folder
        self.cache = folder / "cache"
        if whole:
            for package in ("refattn", "cpu_kernels"):
                shutil.copytree(
                    ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "*.npz")
                )
        else:
            self.source("__init__.py").parent.mkdir()
            self.source("__init__.py").write_text("")
            for name in FOUNDATION:
                shutil.copytree(
                    ROOT / "cpu_kernels" / name,
                    self.source(name),
                    ignore=shutil.ignore_patterns("__pycache__"),
                )
        for path in folder.rglob("*"):
            path.chmod(
                path.stat().st_mode | 0o200
            )  # tests edit the copy of a checkout that may be read-only
        self.source("sample_leaf.py").write_text(LEAF)
        self.source("sample.py").write_text(DRIVER)

    def source(self, name):
        return self.folder / "cpu_kernels" / name

    def environment(self, **changes):
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("NUMBA_", "CPU_KERNELS_", "XDG_", "COV_"))
        }
        defaults = dict(
            PYTHONPATH=str(self.folder), PYTHONDONTWRITEBYTECODE="1", CPU_KERNELS_CACHE_DIR=str(self.cache)
        )
        return {name: value for name, value in {**kept, **defaults, **changes}.items() if value is not None}

    def start(self, code, **environment):
        return subprocess.Popen(
            [sys.executable, "-c", code],
            env=self.environment(**environment),
            cwd=self.folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def python(self, code, **environment):
        """Run the code; returns what it printed to stdout and to stderr. A failure fails the test."""
        process = self.start(code, **environment)
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, f"exit code {process.returncode}\n{output}\n{errors}"
        return output.strip(), errors.strip()

    def entries(self):
        """Files of compiled code in the copy's cache."""
        return sorted(path for path in self.cache.rglob("*") if path.is_file())
