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
        epilog="examples: refattn vectors make vectors --pack gqa --dtype bfloat16 --format safetensors; "
        "refattn vectors make mine --shape 2x32/8x4096 --head-dim 128 --tile 128 --layout BSHD --format raw",
    )
    make.add_argument("directory", help="created; must not hold a pack already")
    make.add_argument(
        "--pack",
        action="append",
        metavar="NAME",
        help="only this one of 'refattn vectors list'; may be repeated; default all",
    )
    make.add_argument(
        "--shape",
        metavar="BxH/KxTxS",
        help="in place of packs: batch, query heads / key heads, rows, keys of a call of your own; "
        "4x16x1024 has as many key heads as heads and as many keys as rows",
    )
    make.add_argument(
        "--head-dim",
        metavar="D",
        help="with --shape: numbers a head; 192/128 where values have fewer than keys; default 128",
    )
    make.add_argument(
        "--tile",
        type=int,
        metavar="N",
        help="with --shape: also calls of N-1, N, N+1, 2N+1 and 3N+1 keys, where kernels with such tiles "
        "err",
    )
    make.add_argument(
        "--rows",
        type=int,
        metavar="N",
        help="with --shape: results of so many rows of each head; default all of calls of up to 2**24 "
        "scores, 64 of larger ones",
    )
    make.add_argument(
        "--layout",
        help="with --shape: order of the axes in the files: BHSD (default), BSHD, or HSD and SHD of batch 1",
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
    if args.shape is None:
        _require_no_shape(args)
        count, cases = None, make_cases(args.pack, spec=spec, **about)
    else:
        count, cases = _cases_of_a_shape(args, spec, about)
    with Progress("making", count, "cases") as shown:
        told = shown.over(cases, lambda case: f"{case.pack} {case.name}")
        write_pack(args.directory, told, container=args.format, description=about)
    print(f"{sum(1 for _ in read_pack(args.directory))} cases in {args.directory}")
    return 0


OF_SHAPE = ("head_dim", "tile", "rows", "layout")


def _require_no_shape(args):
    for name in OF_SHAPE:
        if getattr(args, name) is not None:
            raise ValueError(f"shape must be given with {name}; got {name}={getattr(args, name)!r} alone.")


def _cases_of_a_shape(args, spec, about):
    """How many, and the cases; their bytes are said, and must fit, before the first is made."""
    from refattn.oracle.vectors.shapes import make_shape_cases, planned_cases, shape_sizes

    if args.pack:
        raise ValueError(f"pack must not be given with shape; got pack={', '.join(args.pack)!r}.")
    sizes = shape_sizes(args.shape, args.head_dim or "128")
    planned = planned_cases(sizes, args.tile, args.rows)
    total, cases = make_shape_cases(planned, spec=spec, layout=args.layout or "", **about)
    about["shape"] = {name: getattr(args, name) for name in ("shape", *OF_SHAPE)}
    require_space(args.directory, total)
    print(f"{len(planned)} cases of {total:,} bytes together", flush=True)
    return len(planned), cases


def require_space(directory, total):
    """Raise OSError where so many bytes do not fit beside a directory still to be made."""
    import shutil
    from pathlib import Path

    there = next(
        path for path in (Path(directory).absolute(), *Path(directory).absolute().parents) if path.exists()
    )
    free = shutil.disk_usage(there).free
    if total > free:
        raise OSError(f"directory must have {total:,} bytes free; {there} has {free:,}.")


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
