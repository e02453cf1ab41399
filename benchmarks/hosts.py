"""Which machine, with which versions: what figures are kept under."""

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = ("numpy", "numba", "torch", "onnxruntime", "openvino", "jax")

# Hypervisors hide the model's name; family and model remain. First match wins: (vendor, family, models,
# generation).
GENERATIONS = [
    ("AuthenticAMD", 23, range(0x30, 0x100), "Zen 2"),
    ("AuthenticAMD", 23, range(0x30), "Zen"),
    ("AuthenticAMD", 25, [*range(0x10, 0x20), *range(0x60, 0x80), *range(0xA0, 0xB0)], "Zen 4"),
    ("AuthenticAMD", 25, range(0x60), "Zen 3"),
    ("AuthenticAMD", 26, range(0x100), "Zen 5"),
    ("GenuineIntel", 6, [0x3F], "Haswell"),
    ("GenuineIntel", 6, [0x4F, 0x56], "Broadwell"),
    ("GenuineIntel", 6, [0x55], "Skylake or Cascade Lake"),
    ("GenuineIntel", 6, [0x6A, 0x6C], "Ice Lake"),
    ("GenuineIntel", 6, [0x8F], "Sapphire Rapids"),
    ("GenuineIntel", 6, [0xCF], "Emerald Rapids"),
    ("GenuineIntel", 6, [0xAD, 0xAE], "Granite Rapids"),
    ("0x41", 8, [0xD0C], "Neoverse N1"),
    ("0x41", 8, [0xD40], "Neoverse V1"),
    ("0x41", 8, [0xD49], "Neoverse N2"),
    ("0x41", 8, [0xD4F], "Neoverse V2"),
]
# The widest set of vector instructions, by the flag that shows it.
VECTORS = {
    "amx_tile": "AMX",
    "avx512f": "AVX-512",
    "avx2": "AVX2",
    "avx": "AVX",
    "sve2": "SVE2",
    "sve": "SVE",
    "asimd": "NEON",
}


def cpu(info=Path("/proc/cpuinfo")):
    """{"name": speaking name, "family", "model", "stepping", "cpus": how many this process may use}."""
    fields = (
        dict(re.findall(r"^([^\t:]+?)\s*: ?(.*)$", info.read_text().split("\n\n")[0], re.MULTILINE))
        if info.exists()
        else {}
    )
    vendor = fields.get("vendor_id") or fields.get("CPU implementer", "")
    numbers = [
        _number(fields.get(x) or fields.get(y))
        for x, y in (("cpu family", "CPU architecture"), ("model", "CPU part"), ("stepping", "CPU revision"))
    ]
    generation = next(
        (
            name
            for maker, family, models, name in GENERATIONS
            if (maker, family) == (vendor, numbers[0]) and numbers[1] in models
        ),
        None,
    )
    flags = (fields.get("flags") or fields.get("Features", "")).split()
    vectors = next((name for flag, name in VECTORS.items() if flag in flags), None)
    model = (
        re.sub(r"\((R|TM)\)|\bCPU\b|@.*|\d+-Core Processor|Processor", "", fields.get("model name", ""))
        or _name_elsewhere()
    )
    known = ", ".join(x for x in (generation, vectors) if x)
    name = " ".join(model.split()) + (f" ({known})" if known else "")
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"name": name, "family": numbers[0], "model": numbers[1], "stepping": numbers[2], "cpus": count}


def slug(about):
    """File name of a CPU's results: the CPU and how many of it the machine has."""
    return re.sub(r"[^a-z0-9]+", "-", f"{about['name']} {about['cpus']} cpus".lower()).strip("-")


def versions():
    found = {"Python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def commit():
    """Short hash of HEAD, with a plus where the packages differ from it."""

    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + (
        "+" if git("status", "--porcelain", "refattn", "cpu_kernels") else ""
    )


def _number(text):
    return None if text is None or not text.strip() else int(text.strip(), 0)


def _name_elsewhere():
    if platform.system() == "Darwin":
        return subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True
        ).stdout.strip()
    return platform.processor() or platform.machine()
