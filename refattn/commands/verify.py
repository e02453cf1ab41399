"""`refattn verify`: every golden that ships with the package computed anew and compared, as a table
or JSON.
"""

import importlib
import json
import math
import platform
import sys
from pathlib import Path

import numpy as np

import refattn
from refattn import goldens
from refattn.commands.text import aligned
from refattn.goldens import GoldenError
from refattn.goldens.compare import LSE_ULPS, OUTPUT_UNITS
from refattn.verify import verify

FAILURES_SHOWN = 10


def add_parser(subparsers):
    """Add `verify` to the subcommands of `refattn`."""
    parser = subparsers.add_parser(
        "verify",
        help="check this installation against the goldens it ships",
        description="Compute every golden case that ships with refattn - four variants, all options, "
        "layers of a real model - with refattn "
        "and, where it has the function, with cpu_kernels, and compare.",
        epilog="exit code: 0 when everything holds, 1 when a case does not (it is named), 2 for bad usage",
    )
    parser.add_argument("--json", action="store_true", help="machine-readable report on standard output")
    parser.add_argument("--fail-fast", action="store_true", help="stop at the first case that does not hold")
    parser.add_argument(
        "--goldens", type=Path, metavar="DIR", help="golden files of your own instead of the shipped ones"
    )
    parser.set_defaults(run=run)


def run(args):
    """Verify, print the table or the JSON, and return the exit code."""
    if args.goldens is not None and not args.goldens.is_dir():
        print(f"refattn verify: --goldens must name a folder; got {args.goldens}", file=sys.stderr)
        return 2
    if not goldens.files(args.goldens):
        print("refattn verify: no golden files (*.npz) to verify", file=sys.stderr)
        return 2
    kernels, note = find_kernels()
    try:
        every = list(goldens.cases(args.goldens))
        report = verify(every, kernels=kernels, fail_fast=args.fail_fast)
    except GoldenError as error:
        print(f"refattn verify: {error}", file=sys.stderr)
        return 1
    report.kernels_note = note
    print(json.dumps(as_json(report), indent=2, allow_nan=False) if args.json else as_text(report))
    return 1 if report.failures or not report.cases else 0


def find_kernels():
    """cpu_kernels, or None and the reason."""
    try:
        return importlib.import_module("cpu_kernels"), None
    except (ImportError, OSError) as error:  # OSError: llvmlite finds no library it can load
        return None, f"cpu_kernels was not verified, importing it failed: {type(error).__name__}: {error}"


def as_text(report):
    """The table, then the verdict, then the failures."""
    heads = ["variant", "source", "cases", "worst error", "units", "lse ulp", "time"]
    kernels = any(row.kernels for row in report.rows)
    if kernels:
        heads += ["cpu_kernels", "of bound", "speed-up"]
    lines = [heads]
    for row in report.rows:
        cells = [
            row.variant,
            row.source,
            str(row.cases),
            *outcome_cells(row.reference),
            duration(row.reference.seconds),
        ]
        if row.kernels:
            cells += [
                outcome_cells(row.kernels)[0],
                shown(row.kernels.of_bound, ".0%"),
                shown(row.speed_up, ".1f", "x"),
            ]
        elif kernels:
            cells += ["-", "-", "-"]
        lines.append([*cells, f"{row.failed} FAILED" if row.failed else ""])
    text = [*aligned(lines), ""]
    text.append(
        f"units: of 2^-53 sum(p |v|), at most {OUTPUT_UNITS}; lse ulp: of the larger term of the "
        f"log-sum-exp, at most {LSE_ULPS}."
    )
    if kernels:
        text.append(
            "of bound: error of cpu_kernels over the error bound of its arithmetic, at most 100%; speed-up "
            "on these small inputs."
        )
    if report.kernels_note:
        text.append(report.kernels_note)
    if report.failures:
        names = len({failure["case"] for failure in report.failures})
        text.append(f"FAILED: {names} of {report.cases} cases do not hold. {duration(report.seconds)}")
        text += [
            f"  {f['case']} ({f['source']}, {f['function']}): {f['failure']}"
            for f in report.failures[:FAILURES_SHOWN]
        ]
        if len(report.failures) > FAILURES_SHOWN:
            text.append(f"  and {len(report.failures) - FAILURES_SHOWN} more; --json lists all")
    else:
        text.append(f"All {report.cases} cases hold. {duration(report.seconds)}")
    return "\n".join(text)


def outcome_cells(outcome):
    return shown(outcome.error, ".1e"), shown(outcome.units, ".2f"), shown(outcome.lse_ulps, ".2f")


def shown(number, form, unit=""):
    """- where there is nothing to measure, ? where a case could not be computed."""
    if number is None:
        return "-"
    return "?" if math.isnan(number) else f"{number:{form}}{unit}"


def duration(seconds):
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def as_json(report):
    """The report as plain values; a number that is not finite is null."""
    return {
        "passed": not report.failures and report.cases > 0,
        "cases": report.cases,
        "seconds": report.seconds,
        "versions": {
            "refattn": refattn.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "limits": {"output_units": OUTPUT_UNITS, "lse_ulps": LSE_ULPS},
        "rows": [
            {
                "variant": row.variant,
                "source": row.source,
                "cases": row.cases,
                "failed": row.failed,
                "refattn": numbers(row.reference),
                "cpu_kernels": numbers(row.kernels) | {"cases": row.kernel_cases, "speed_up": row.speed_up}
                if row.kernels
                else None,
            }
            for row in report.rows
        ],
        "cpu_kernels_note": report.kernels_note,
        "failures": report.failures,
    }


def numbers(outcome):
    values = {name: getattr(outcome, name) for name in ("error", "units", "lse_ulps", "of_bound", "seconds")}
    return {
        name: value if value is not None and math.isfinite(value) else None for name, value in values.items()
    }
