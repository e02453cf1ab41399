"""`refattn doctor`: what this machine offers, and known hazards found, in plain words.

Exit code 0 without a hazard, 1 with one. Notes (a missing optional package, say) do not count.
"""

import json
import textwrap
from dataclasses import asdict

from refattn.commands.hazards import find_hazards
from refattn.commands.machine import collect_facts


def add_parser(subparsers):
    """Add `doctor` to the subcommands of `refattn`."""
    parser = subparsers.add_parser(
        "doctor",
        help="what this machine offers the kernels, and known hazards",
        description="CPU, vector width, threads and their limits, the cache of compiled code, versions, "
        "BLAS, and known hazards found here.",
        epilog="exit code: 0 without a hazard, 1 with one; notes do not count",
    )
    parser.add_argument("--json", action="store_true", help="machine-readable report on standard output")
    parser.set_defaults(run=run)


def run(args):
    """Print the report and return the exit code."""
    facts = collect_facts()
    findings = find_hazards(facts)
    if args.json:
        print(
            json.dumps(
                facts | {"findings": [asdict(finding) for finding in findings]}, indent=2, allow_nan=False
            )
        )
    else:
        print(as_text(facts, findings))
    return 1 if any(finding.severity == "hazard" for finding in findings) else 0


def as_text(facts, findings):
    """The report for people."""
    versions = [f"{package} {version}" for package, version in facts["versions"].items() if version]
    lines = ["refattn doctor", ""]
    for label, text in (
        ("CPU", cpu_text(facts)),
        ("threads", threads_text(facts["threads"])),
        ("cache", cache_text(facts["kernels"])),
        (
            "versions",
            f"refattn {facts['refattn']}, Python {facts['python']['version']}, {', '.join(versions)}",
        ),
        ("BLAS", blas_text(facts["blas"])),
        ("numbers", numbers_text(facts["numbers"])),
        ("system", facts["system"]),
    ):
        lines += [
            f"  {label:<9} {part}" if first else f"  {'':<9} {part}"
            for first, part in zip([True] + [False] * 9, text.split("\n"))
        ]
    for severity, none in (("hazard", "No hazards found."), ("note", None)):
        chosen = [finding for finding in findings if finding.severity == severity]
        if chosen:
            lines += ["", f"{len(chosen)} {severity}{'s' if len(chosen) > 1 else ''}:"]
            for finding in chosen:
                lines += textwrap.wrap(
                    finding.what,
                    110,
                    initial_indent="  ! " if severity == "hazard" else "  - ",
                    subsequent_indent="    ",
                )
                lines += textwrap.wrap(finding.advice, 110, initial_indent="    ", subsequent_indent="    ")
        elif none:
            lines += ["", none]
    return "\n".join(lines)


def cpu_text(facts):
    cpu, kernels = facts["cpu"], facts["kernels"]
    text = f"{cpu['name']} ({cpu['architecture']})"
    if kernels.get("problem"):
        return text
    extensions = " ".join(kernels["features"]) or "no extensions"
    return (
        f"{text}\nkernels compiled for {kernels['compiled_for']}: {kernels['vector_bits']}-bit vectors; "
        f"{extensions}"
    )


def threads_text(threads):
    quota = "none" if threads["quota"] is None else f"{threads['quota']:g}"
    text = (
        f"{threads['used'] or 'no kernels'}: {threads['cpus']} CPUs, affinity {threads['affinity']}, "
        f"container quota {quota}, "
        f"NUMBA_NUM_THREADS {threads['numba_num_threads'] or 'unset'}"
    )
    return text + (
        "\nlayer: the kernels' own pool of Python threads; no Numba threading layer is used"
        if threads["used"]
        else ""
    )


def cache_text(kernels):
    cache = kernels.get("cache")
    if cache is None:
        return "no kernels"
    if cache["folder"] is None:
        return f"none: {cache['reason']}"
    full = f"; nothing new is kept: {cache['reason']}" if cache["reason"] else ""
    return (
        f"{cache['folder']} ({cache['mode']}, {cache['files']} files, {cache['bytes'] / 2**20:.1f} "
        f"MiB){full}"
    )


def blas_text(blas):
    threads = (
        "" if blas["threads"] is None else f", {blas['threads']} thread{'s' if blas['threads'] != 1 else ''}"
    )
    return f"{blas['name'] or 'unknown'} {blas['version'] or ''}{threads}".rstrip()


def numbers_text(numbers):
    flushing = [name for name, flushes in numbers["flushes_subnormals"].items() if flushes]
    subnormals = f"flushed to zero in {' and '.join(flushing)}" if flushing else "kept"
    return (
        f"subnormals {subnormals}; longdouble has {numbers['longdouble_significand_bits']} significant bits"
    )
