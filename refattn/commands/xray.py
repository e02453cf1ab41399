"""`refattn xray`: what does a kernel do otherwise than it should? Its attention weights are measured."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import sys
from pathlib import Path

DIALECT_HINT = "'refattn explain' lists the names"


def add_parser(subparsers):
    """Add `xray` to the subcommands of `refattn`."""
    parser = subparsers.add_parser(
        "xray",
        help="measure what a kernel does, and describe where and how it is wrong",
        description="Call a kernel with values that show its attention weights, compare them with the right "
        "ones, and describe the difference.",
        epilog="exit code: 0 the kernel agrees with the reference, 1 it does not, 2 it, or the case, cannot "
        "be used",
    )
    parser.add_argument(
        "kernel",
        help="module:function, found from the current directory, or path.py:function; it takes the "
        "arguments of refattn.attention, or of the case's function, as NumPy arrays, and returns output or "
        "(output, lse)",
    )
    parser.add_argument(
        "--case",
        metavar="FILE",
        help="call it on this case (.npz, .safetensors or raw directory, as 'refattn check' takes); "
        "default: on calls of refattn.attention with various options, until one is wrong",
    )
    parser.add_argument(
        "--dialect", metavar="NAME", help=f"library whose calling conventions it has; {DIALECT_HINT}"
    )
    parser.add_argument(
        "--spec", help="arithmetic the kernel claims, such as bfloat16; default: that of its output"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="time for one X-ray; default 60")
    parser.add_argument(
        "--picture", metavar="FILE", help="draw the weights and their difference into this file"
    )
    parser.add_argument("--json", action="store_true", help="machine-readable report on standard output")
    parser.set_defaults(run=run)


def run(args):
    """Print the description and return the exit code."""
    from refattn.oracle.imaging.probes import CannotProbe

    # what the kernel prints is no part of the report
    elsewhere = contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext()
    try:
        _check_picture(args.picture)
        with elsewhere:
            name, found, skipped = _first_wrong(load_kernel(args.kernel), args)
        _report(args, name, found, skipped)
        if args.picture and found.measured is not None:
            found.picture(args.picture)
            if not args.json:
                print(f"picture: {args.picture}")
    except BrokenPipeError:
        raise
    except (
        Raised,
        CannotProbe,
        OSError,
        ValueError,
        TypeError,
        ImportError,
        ArithmeticError,
        MemoryError,
    ) as error:
        print(f"refattn xray: {error}", file=sys.stderr)
        return 2
    return int(found.verdict != "agrees")


def _report(args, name, found, skipped):
    if args.json:
        plain = {"kernel": args.kernel, "case": name, "skipped": skipped, **found.to_dict()}
        print(json.dumps(plain, indent=2, allow_nan=False))
        return
    print(f"{name}\n{found if found.measured is not None else found.sentence}")
    if found.measured is None:
        for line in found.remarks():
            print(f"  {line}")
    if skipped:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in skipped.items())
        print(f"  calls that the kernel does not take: {reasons}")
    if args.picture and found.measured is None:
        print("picture: none, nothing was measured")


def _check_picture(path):
    """Raise before anything is measured where no picture can be written there."""
    if path is None:
        return
    from matplotlib.backend_bases import FigureCanvasBase

    if not Path(path).parent.is_dir():
        raise ValueError(f"--picture must name a file in a folder that exists; got {path!r}.")
    endings = FigureCanvasBase.get_supported_filetypes()
    if Path(path).suffix[1:].lower() not in endings:
        raise ValueError(f"--picture must end with one of .{', .'.join(sorted(endings))}; got {path!r}.")


class Raised(Exception):
    """What the kernel, or the module that holds it, raised; in words."""


def load_kernel(words):
    """The function that "module:function" or "path.py:function" names."""
    where, _, name = words.rpartition(":")
    if not where or not name:
        raise ValueError(f"kernel must be module:function or path.py:function; got {words!r}.")
    try:
        found = _from_file(Path(where)) if where.endswith(".py") else _from_module(where)
    except OSError:
        raise
    except Exception as error:
        raise Raised(f"{where} cannot be imported: {type(error).__name__}: {error}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(
                f"kernel must be the name of a function in {where}; got {name!r}, which is not there."
            )
        found = getattr(found, part)
    if not callable(found):
        raise TypeError(f"kernel must be callable; {words} is of type {type(found).__name__}.")
    return found


def _from_module(name):
    sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(os.getcwd())


def _from_file(path):
    if not path.is_file():
        raise FileNotFoundError(f"{path} must be a file that exists.")
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(path.stem, module)  # dataclasses and pickles look their module up
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(path.resolve().parent))


def _first_wrong(kernel, args):
    """(name, XRay, reasons of skipped calls with their number): of the case, or of the first call of the
    suite that is wrong; where all are right, of the last one, under the number of calls.
    """
    from refattn.oracle.harness.callables import Unsupported

    found, skipped, right = None, {}, 0
    for name, function, arrays, options, spec in _calls(args):
        try:
            found = name, xrayed(kernel, args, function, arrays, options, spec)
        except (Unsupported, Raised) as reason:
            if args.case is not None and isinstance(reason, Raised):
                raise
            skipped[str(reason)] = skipped.get(str(reason), 0) + 1
            continue
        if found[1].measured is not None:
            return *found, skipped
        right += found[1].verdict == "agrees"
    if found is None:
        raise ValueError(f"kernel must take the arguments of at least one call; {'; '.join(skipped)}.")
    return f"{right} call{'s' * (right != 1)}, all right" if right else found[0], found[1], skipped


def _calls(args):
    """(name, function, arrays, options, spec)"""
    from refattn.oracle.harness.input_dtype import input_dtype
    from refattn.oracle.inputs.suites import default_suite
    from refattn.oracle.vectors.case_file import load_case

    if args.case is not None:
        case = load_case(args.case)
        yield case.name, case.function, case.arrays, case.options, args.spec or case.spec
        return
    from refattn.oracle.dialects.libraries import dialect

    function = "paged_attention" if dialect(args.dialect or "refattn").paged else "attention"
    for inputs in default_suite(input_dtype(None, args.spec)[0]):
        if inputs.function.removesuffix("_with_lse") == function and "rope" not in inputs.options:
            yield inputs.name, function, inputs.arrays, inputs.options, args.spec


def xrayed(kernel, args, function, arrays, options, spec):
    from refattn.oracle.harness.callables import KernelCall, Unsupported
    from refattn.oracle.imaging.xray import xray

    call = KernelCall(kernel, function, args.dialect or "refattn")

    def probed(*arrays, **options):
        # a kernel of latent attention that has one form need not be told which
        options = {k: v for k, v in options.items() if k in call.supports or k not in call.form.choices}
        try:
            result = call(arrays, options)
        except Unsupported:
            raise
        except Exception as error:  # whatever the kernel raises is said, not a crash of the command
            raise Raised(f"{args.kernel} raised {type(error).__name__}: {error}") from error
        return result.output, result.lse

    return xray(probed, *arrays, spec=spec, seconds=args.seconds, **options)
