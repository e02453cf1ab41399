"""Things about a machine or an installation that make attention wrong, unsafe or slow, recognised from the
facts that `refattn doctor` collects.

Every check is a function of plain facts, so that each can be tested on any machine. A *hazard* can change
results, endanger the account or cost a large factor in speed without being asked for; a *note* is worth
knowing and nothing more.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing found, in plain words, and what to do about it."""

    severity: str  # "hazard" or "note"
    what: str
    advice: str


def find_hazards(facts):
    """All findings in the facts that `refattn.commands.machine.collect_facts` returns, hazards first."""
    findings = [finding for check in CHECKS for finding in check(facts)]
    return sorted(findings, key=lambda finding: finding.severity != "hazard")


def flushed_subnormals(facts):
    threads = [name for name, flushes in facts["numbers"]["flushes_subnormals"].items() if flushes]
    if threads:
        yield Finding(
            "hazard",
            f"Subnormal numbers (float32 below 1.2e-38) are flushed to zero in {' and '.join(threads)}: "
            "`refattn` refuses to compute "
            "there, and results of other libraries differ from other machines.",
            "A library built with -ffast-math set this when it was loaded, or a program asked for it "
            "(torch.set_flush_denormal(True)). "
            "Import libraries one by one to find which.",
        )


def parallel_blas(facts):
    """OpenBLAS races: numpy issue 29391 (0.3.28 and 0.3.29), OpenBLAS issue 5836 (before 0.3.33.112,
    first fixed in NumPy's wheels by numpy PR 31704).
    """
    blas = facts["blas"]
    if "openblas" not in (blas["name"] or "").lower() or blas["threads"] == 1:
        return
    version = numbers_in(blas["version"])
    advice = "Set OPENBLAS_NUM_THREADS=1, or install a newer NumPy."
    if version[:3] in ((0, 3, 28), (0, 3, 29)):
        yield Finding(
            "hazard",
            f"OpenBLAS {blas['version']} returns wrong products, silently, when several Python threads "
            "multiply matrices at once.",
            advice,
        )
    elif version and version < (0, 3, 33, 112):
        yield Finding(
            "note",
            f"OpenBLAS {blas['version']} can return wrong products when several Python threads multiply "
            "matrices of different layouts at "
            "once while it uses threads of its own (OpenBLAS issue 5836).",
            advice,
        )


def longdouble_width(facts):
    if facts["numbers"]["longdouble_max_exponent"] <= 1024:
        yield Finding(
            "note",
            "np.longdouble is no wider than float64 here.",
            "refattn uses it only where a product leaves the float64 range (inputs near 1e154 and beyond); "
            "such rows may overflow on this machine.",
        )


def missing_packages(facts):
    purposes = {
        "numba": "cpu_kernels, the fast path",
        "scipy": "converting weights (refattn.convert)",
        "ml_dtypes": "bfloat16 NumPy arrays",
    }
    for package, purpose in purposes.items():
        if facts["versions"].get(package) is None:
            yield Finding(
                "note", f"{package} is not installed; it is needed for {purpose}.", f"pip install {package}"
            )
    problem = facts["kernels"].get("problem")
    if problem and facts["versions"].get("numba") is not None:
        yield Finding(
            "hazard",
            f"The compiled kernels cannot be imported: {problem}",
            "Unset it."
            if "NUMBA_NUM_THREADS" in problem
            else "Install versions of NumPy and Numba that go together.",
        )


def left_over_switches(facts):
    environment = facts["environment"]
    if environment.get("NUMBA_DISABLE_JIT") not in (None, "", "0"):
        yield Finding(
            "hazard",
            "NUMBA_DISABLE_JIT is set: the kernels run as plain Python, thousands of times slower.",
            "Unset it, unless for coverage.",
        )
    if environment.get("NUMBA_BOUNDSCHECK") not in (None, "", "0"):
        yield Finding(
            "hazard",
            "NUMBA_BOUNDSCHECK is set: the kernels check every array access and run several times slower.",
            "Unset it, unless for tests.",
        )
    for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"):
        if environment.get(name):
            yield Finding(
                "note",
                f"{name}={environment[name]}: code is compiled for that, not for this CPU.",
                "Unset it for full speed.",
            )


def exposed_cache(facts):
    cache = facts["kernels"].get("cache", {})
    for refusal in cache.get("refusals", ()):
        others = "writable by other users" in refusal or "another user" in refusal
        if others:
            yield Finding(
                "hazard",
                f"The cache of compiled code was not used: {refusal}. Whoever can write there could run "
                "code as you.",
                "Remove the folder, or set CPU_KERNELS_CACHE_DIR to a folder of your own.",
            )
    if cache.get("reason"):
        yield Finding(
            "note",
            f"Compiled code is not kept ({cache['reason']}): every process compiles anew, some seconds "
            "each time.",
            "Set CPU_KERNELS_CACHE_DIR to a folder you can write to, with room for some megabytes.",
        )


def limited_threads(facts):
    threads = facts["threads"]
    for limit, value in (
        ("the container's CPU quota", threads.get("quota")),
        ("NUMBA_NUM_THREADS", threads.get("numba_num_threads")),
    ):
        if value is not None and value < threads["affinity"]:
            yield Finding(
                "note",
                f"{limit} of {value:g} is below the {threads['affinity']} CPUs this process may run on.",
                f"The kernels respect the smallest limit; threads used: {threads['used']}.",
            )


def free_threading(facts):
    if not facts["python"]["gil"]:
        yield Finding(
            "note",
            "This Python runs without the global interpreter lock; the kernels are not tested there.",
            "Set PYTHON_GIL=1 when in doubt.",
        )


CHECKS = (
    flushed_subnormals,
    parallel_blas,
    missing_packages,
    left_over_switches,
    exposed_cache,
    longdouble_width,
    limited_threads,
    free_threading,
)


def numbers_in(version):
    """The leading numbers of a version: (0, 3, 31, 188, 0) for "0.3.31.188.0", () for None."""
    parts = []
    for part in (version or "").split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        parts.append(int(digits))
    return tuple(parts)
