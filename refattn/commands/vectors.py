"""`refattn vectors`: make, check and list packs of golden vectors."""

from __future__ import annotations

import json
import sys
import time


def add_parser(subparsers):
    """Add `vectors` to the subcommands of `refattn`."""
    parser = subparsers.add_parser(
        "vectors",
        help="golden vectors with error bounds, for tests in any language",
        description="Packs of calls with inputs, exact output and lse, and the error a correct kernel may "
        "make at every element. "
        "A test passes where x == expected, abs(x - expected) <= bound, or both are NaN.",
        epilog="exit code: 0 all is well, 1 a check failed, 2 bad usage or an unusable file",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    words = "write a pack into a new directory"
    make = actions.add_parser(
        "make",
        help=words,
        description=words[0].upper() + words[1:] + ": one file a case, and manifest.json.",
        epilog="example: refattn vectors make vectors --pack gqa --dtype bfloat16 --format safetensors",
    )
    make.add_argument("directory", help="created; must not hold a pack already")
    make.add_argument(
        "--pack",
        action="append",
        metavar="NAME",
        help="only this one of 'refattn vectors list'; may be repeated; default all",
    )
    make.add_argument(
        "--dtype",
        default="float32",
        help="of the inputs: float64, float32, float16, bfloat16, float8_e4m3fn or float8_e5m2; default "
        "float32",
    )
    make.add_argument(
        "--format",
        default="npz",
        choices=("npz", "safetensors", "raw"),
        help="default npz; raw: plain binary files and a text, read by C++ as it is",
    )
    make.add_argument(
        "--spec",
        help="arithmetic the bounds are for, such as 'eager bfloat16'; default: a fused kernel in the dtype",
    )
    make.add_argument("--seed", type=int, default=0, help="of the inputs; default 0")

    words = "check the digests of a pack and compute its results again"
    check = actions.add_parser(
        "check",
        help=words,
        description=words[0].upper() + words[1:] + ".",
        epilog="exit code: 0 all cases are right, 1 one is not, 2 there is no pack",
    )
    check.add_argument("directory", help="with manifest.json, as 'refattn vectors make' writes it")
    check.add_argument("--digests-only", action="store_true", help="compute nothing")
    check.add_argument("--json", action="store_true", help="machine-readable report on standard output")
    check.add_argument("--junit", metavar="FILE", help="write a JUnit report")

    words = "the packs that can be made, or the cases of a pack"
    show = actions.add_parser("list", help=words, description=words[0].upper() + words[1:] + ".")
    show.add_argument("directory", nargs="?", help="a pack; default: what can be made")
    show.add_argument("--json", action="store_true", help="machine-readable list on standard output")
    parser.set_defaults(run=run)


def run(args):
    """Do what is asked and return the exit code."""
    from refattn.oracle.vectors.untrusted import VectorError

    try:
        return {"make": _make, "check": _check, "list": _list}[args.action](args)
    except BrokenPipeError:
        raise
    except (VectorError, OSError, ValueError, ImportError) as error:
        print(f"refattn vectors {args.action}: {error}", file=sys.stderr)
        return 2


def _make(args):
    from refattn.oracle.arithmetic.spec import kernel_spec
    from refattn.oracle.progress import Progress
    from refattn.oracle.vectors.pack_directory import read_pack, write_pack
    from refattn.oracle.vectors.packs import make_cases

    spec = None if args.spec is None else kernel_spec(args.spec)
    about = {"dtype": args.dtype, "seed": args.seed}
    cases = make_cases(args.pack, spec=spec, **about)
    with Progress("making", unit="cases") as shown:
        told = shown.over(cases, lambda case: f"{case.pack} {case.name}")
        write_pack(args.directory, told, container=args.format, description=about)
    print(f"{sum(1 for _ in read_pack(args.directory))} cases in {args.directory}")
    return 0


def _check(args):
    from refattn.commands.junit import write_junit
    from refattn.oracle.progress import Progress
    from refattn.oracle.vectors.pack_directory import read_pack
    from refattn.oracle.vectors.packs import recompute
    from refattn.oracle.vectors.untrusted import VectorError

    rows = []
    with Progress("checking", unit="cases") as shown:
        for entry in shown.over(read_pack(args.directory), lambda entry: entry.name):
            start = time.perf_counter()
            try:
                case = entry.load()
                words = "" if args.digests_only else recompute(case)
                status = "pass" if not words else "skip" if words.startswith("not computed") else "fail"
            except (VectorError, OSError, ValueError, TypeError, ArithmeticError, MemoryError) as error:
                status, words = "fail", str(error)
            rows.append((entry.name, status, words, time.perf_counter() - start))
    for name, status, words, _ in rows:
        if status != "pass" and not args.json:
            print(f"{name}: {words}")
    failed, skipped = (sum(row[1] == status for row in rows) for status in ("fail", "skip"))
    if args.json:
        cases = [
            {"name": name, "status": status, "text": text, "seconds": seconds}
            for name, status, text, seconds in rows
        ]
        print(json.dumps({"passed": not failed and bool(rows), "cases": cases}, indent=2, allow_nan=False))
    else:
        print(
            f"{len(rows) - failed - skipped} of {len(rows)} cases are right."
            if rows
            else "The pack has no cases."
        )
    if args.junit:
        write_junit(args.junit, "refattn vectors check", rows)
    return 1 if failed or not rows else 0


def _list(args):
    if args.directory is None:
        from refattn.oracle.vectors.packs import PACKS

        rows = [{"name": pack.name, "what": pack.says} for pack in PACKS.values()]
    else:
        from refattn.oracle.vectors.pack_directory import read_pack

        rows = [{"name": entry.name, "what": entry.function} for entry in read_pack(args.directory)]
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        width = max((len(row["name"]) for row in rows), default=0)
        for row in rows:
            print(f"{row['name'].ljust(width)}  {row['what']}")
    return 0
