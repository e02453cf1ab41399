"""`refattn check`: is a result in a file right?"""

from __future__ import annotations

import argparse
import json
import sys
import time

from refattn.commands.arguments import add_result_arguments
from refattn.commands.check_page import add_page_arguments, require_page, write_page

LARGEST_WORK = 4 * 10**9  # multiplications; beyond them only the bounds in the file are used


def add_parser(subparsers):
    """Add `check` to the subcommands of `refattn`."""
    parser = subparsers.add_parser(
        "check",
        help="judge results in files against golden vectors",
        description="Compare what a kernel wrote with the exact result and with the error its arithmetic "
        "allows.",
        epilog="exit code: 0 every result is right, 1 one is not, or with --require-complete was judged in "
        "part only, 2 a file cannot be used",
    )
    add_result_arguments(parser)
    parser.add_argument(
        "--spec",
        help="arithmetic the kernel claims, such as bfloat16, 'eager float16' or 'cpu_kernels float32'; "
        "default: the one of the case",
    )
    parser.add_argument(
        "--stored",
        action="store_true",
        help="use the bounds in the file only, as a test in another language does; computes nothing",
    )
    parser.add_argument(
        "--require-complete",
        action="store_true",
        help="fail results of which the spec lets only a part be judged, because an intermediate may "
        "overflow its formats",
    )
    parser.add_argument(
        "--rows",
        type=_rows,
        metavar="N",
        help="check so many rows of each head and say which were left out, or 'auto': all rows of small "
        "cases, 64 of each head of large ones; default: all",
    )
    parser.add_argument(
        "--ignore-empty-rows",
        action="store_true",
        help="leave out rows that see no key, whatever the result holds there",
    )
    add_page_arguments(parser)
    parser.add_argument("--junit", metavar="FILE", help="write a JUnit report")
    parser.set_defaults(run=run)


def run(args):
    """Print the verdicts and return the exit code."""
    from refattn.commands.junit import write_junit
    from refattn.commands.results import pairs
    from refattn.oracle.vectors.untrusted import VectorError

    rows, plain, judged = [], [], []
    try:
        require_page(args)
        spec = _spec(args.spec)
        for pair in pairs(args.case, args.result, args.lse, args.dialect):
            start = time.perf_counter()
            status, text, facts, report = _judge(pair, args, spec)
            judged += [(pair, status, text, report)] if args.html else []
            rows.append((pair.name, status, text, time.perf_counter() - start))
            plain.append({"name": pair.name, "status": status, "text": text, **facts})
            if not args.json:
                print(f"{pair.name}: {text}" if status == "pass" else f"{pair.name}\n{text}")
        _print_summary(rows, plain, args)
        if args.html:
            write_page(args, judged)
        if args.junit:
            write_junit(args.junit, "refattn check", rows)
    except BrokenPipeError:
        raise
    except (VectorError, OSError, ValueError, ImportError) as error:
        print(f"refattn check: {error}", file=sys.stderr)
        return 2
    statuses = {row[1] for row in rows}
    return 2 if "error" in statuses or not rows else 1 if "fail" in statuses else 0


def _print_summary(rows, plain, args):
    if args.json:
        print(
            json.dumps(
                {"passed": {row[1] for row in rows} == {"pass"}, "cases": plain}, indent=2, allow_nan=False
            )
        )
    elif len(rows) > 1:
        print(f"{sum(row[1] == 'pass' for row in rows)} of {len(rows)} results are right.")


def _rows(words):
    """The value of --rows."""
    if words == "auto":
        return words
    if not words.isdecimal() or int(words) < 1:
        raise argparse.ArgumentTypeError(f"must be 'auto' or an integer of at least 1; got {words!r}")
    return int(words)


def _spec(words):
    if words is None:
        return None
    from refattn.oracle.arithmetic.spec import kernel_spec

    return kernel_spec(words)


def _judge(pair, args, spec):
    """(status, text, facts for JSON, Report or None) of one result."""
    from refattn.oracle.bounds.results import RESULTS
    from refattn.oracle.vectors.untrusted import VectorError

    try:
        case, given = pair.read()
        if args.stored or (case.work > LARGEST_WORK and args.rows is None):
            return *_by_stored_bounds(case, pair.in_our_terms(case, given), args), None
        how = {"rows": args.rows, "ignore_empty_rows": args.ignore_empty_rows, "dialect": args.dialect}
        report = case.check(*map(given.get, RESULTS), spec, **how)
    except (VectorError, OSError, TypeError, ValueError, ArithmeticError, MemoryError) as error:
        return "error", str(error), {}, None
    if not report.passed:
        return "fail", report.text(), {"report": report.to_dict()}, report
    facts = {"complete": report.complete, "unjudged": report.unjudged, "not_looked_at": report.not_looked_at}
    if args.require_complete and not report.complete:
        return "fail", f"not complete: {report.summary}", facts, report
    return "pass", report.summary, facts, report


def _by_stored_bounds(case, given, args):
    import numpy as np

    from refattn.oracle.bounds.results import OUTPUT, RESULTS

    for result, got in given.items():
        shape = case.shape(result)
        if got.shape != shape:
            return "fail", f"{result.name} must have shape {shape}; got {got.shape}", {}
    good = case.within(*map(given.get, RESULTS))
    if args.ignore_empty_rows:
        good = good | np.isneginf(case.lse)[..., None]
    good = good if OUTPUT in given else good[..., 0]
    if good.all():
        return _unbounded(case, given, good.size, args.require_complete)
    first = np.argwhere(~good)[0].tolist()
    row = -2 if OUTPUT in given else -1
    first[row] = case.row(first[row])
    beyond = int(np.count_nonzero(~good))
    return (
        "fail",
        f"{beyond} of {good.size} elements beyond the stored bounds, the first at {tuple(first)}",
        {"beyond": beyond},
    )


def _unbounded(case, given, size, require_complete):
    """The verdict on elements all within their bounds, of which some may be infinite: those say nothing."""
    import numpy as np

    from refattn.oracle.bounds.results import OUTPUT, RESULTS

    unjudged = {
        result.name: int(np.isinf(case.bound(result)).sum()) if result in given else 0 for result in RESULTS
    }
    facts = {"complete": not any(unjudged.values()), "unjudged": unjudged}
    what = "elements" if OUTPUT in given else " and ".join(f"{result.name}s" for result in given)
    text = f"all {size} {what} within the stored bounds"
    if OUTPUT not in given:
        text += f", no {OUTPUT.name} given"
    if not facts["complete"]:
        counts = " and ".join(f"{count} {name}s" for name, count in unjudged.items())
        text += f"; {counts} have none, an intermediate may overflow the formats of the spec"
        if require_complete:
            return "fail", f"not complete: {text}", facts
    return "pass", text, facts
