"""`refattn explain`: where do two attention libraries mean different things?"""

from __future__ import annotations

import json
import sys


def add_parser(subparsers):
    """Add `explain` to the subcommands of `refattn`."""
    parser = subparsers.add_parser(
        "explain",
        help="say where two attention libraries mean different things",
        description="Print where the conventions of two attention libraries differ: axis order, alignment "
        "of the causal mask, windows, masks, base and layout of the lse, rows without keys, default scale. "
        "What changes results comes first. Without names, list the known libraries.",
        epilog="exit code: 0 printed, 2 a name is unknown",
    )
    parser.add_argument(
        "first", nargs="?", metavar="LIBRARY", help="such as torch; refattn itself is one too"
    )
    parser.add_argument("second", nargs="?", metavar="LIBRARY", help="such as flash_attn; default refattn")
    parser.add_argument("--json", action="store_true", help="machine-readable report on standard output")
    parser.set_defaults(run=run)


def run(args):
    """Print the differences and return the exit code."""
    from refattn.oracle.dialects.differences import differences, explain_difference
    from refattn.oracle.dialects.libraries import DIALECTS

    if args.first is None:
        plain = {d.name: f"{d.call}, {d.version}" for d in DIALECTS.values()}
        width = max(map(len, plain))
        print(
            json.dumps(plain, indent=2)
            if args.json
            else "\n".join(f"{name.ljust(width)}  {call}" for name, call in plain.items())
        )
        return 0
    names = args.first, args.second or "refattn"
    unknown = [name for name in names if name not in DIALECTS]
    if unknown:
        known = ", ".join(DIALECTS)
        print(f"refattn explain: LIBRARY must be one of {known}; got {unknown[0]!r}", file=sys.stderr)
        return 2
    if args.json:
        rows = [dict(zip(("matter", *names), row, strict=True)) for row in differences(*names)]
        print(json.dumps({"libraries": names, "differences": rows}, indent=2))
    else:
        print(explain_difference(*names))
    return 0
