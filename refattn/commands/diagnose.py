"""`refattn diagnose`: which mistake or foreign convention explains a wrong result in a file?"""

from __future__ import annotations

import json
import sys

from refattn.commands.arguments import add_result_arguments


def add_parser(subparsers):
    """Add `diagnose` to the subcommands of `refattn`."""
    parser = subparsers.add_parser(
        "diagnose",
        help="find the mistake or foreign convention behind a wrong result",
        description="Test a catalogue of mistakes and of other libraries' conventions against what a "
        "kernel wrote.",
        epilog="exit code: 0 the result agrees with the reference, 1 it does not, 2 a file cannot be used",
    )
    add_result_arguments(parser)
    parser.add_argument(
        "--seconds",
        type=float,
        default=20.0,
        help="time for the search; what it leaves untried is said; default 20",
    )
    parser.set_defaults(run=run)


def run(args):
    """Print the diagnoses and return the exit code."""
    from refattn.commands.results import pairs
    from refattn.oracle.bounds.results import LSE, OUTPUT
    from refattn.oracle.diagnosis.search import diagnose
    from refattn.oracle.vectors.untrusted import VectorError

    found = []
    try:
        for pair in pairs(args.case, args.result, args.lse, args.dialect):
            case, given = pair.read()
            if OUTPUT not in given:
                raise VectorError(
                    f"{pair.result.name} must hold the output, by which mistakes are told; got an lse "
                    "alone, which refattn check judges."
                )
            given = pair.in_our_terms(case, given)
            how = {"lse": given.get(LSE), "spec": case.spec, "seconds": args.seconds, **case.options}
            diagnosis = diagnose(given[OUTPUT], *case.arrays, **how)
            found.append((pair.name, diagnosis))
            if not args.json:
                print(f"{pair.name}: {diagnosis}")
    except BrokenPipeError:
        raise
    except (VectorError, OSError, ValueError, TypeError, ArithmeticError, MemoryError) as error:
        print(f"refattn diagnose: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(
            json.dumps(
                {"cases": [{"name": name, **diagnosis.to_dict()} for name, diagnosis in found]},
                indent=2,
                allow_nan=False,
            )
        )
    return 2 if not found else int(any(diagnosis.verdict != "agrees" for _, diagnosis in found))
