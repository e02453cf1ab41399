"""The `refattn` command; the subcommands are the modules of `refattn.commands`."""

import argparse
import importlib
import os
import sys

from refattn._version import __version__

SUBCOMMANDS = {  # each a module of refattn.commands; an example, and what it does
    "verify": ("refattn verify", "check this installation against every golden it ships"),
    "check": ("refattn check case.npz out.safetensors", "judge a result in a file"),
    "diagnose": ("refattn diagnose case.npz out.npz", "find the mistake behind a wrong result"),
    "xray": ("refattn xray kernels.py:flash --picture x.png", "measure what a kernel does otherwise"),
    "explain": ("refattn explain torch flash_attn", "where two libraries mean different things"),
    "vectors": (
        "refattn vectors make DIRECTORY",
        "golden vectors with error bounds, for tests in any language",
    ),
    "kv": ("refattn kv --model llama3-8b", "size of the key/value cache of a model"),
    "doctor": ("refattn doctor", "what this machine offers the compiled kernels"),
}
EXIT_CODES = (
    "exit codes: 0 all is well, 1 a check found something wrong, 2 bad usage or an unusable file, "
    "130 interrupted, 141 broken pipe"
)
USAGE_ERROR, INTERRUPTED, BROKEN_PIPE = 2, 130, 141  # the last two as a shell reports SIGINT and SIGPIPE


def main(argv=None):
    """Run the `refattn` command.

    Parameters
    ----------
    argv : sequence of str, optional
        Default: the arguments of the process.

    Returns
    -------
    int
        0 when all is well, 1 when a check found something wrong, 2 for bad usage or a file that cannot be
        used, 130 when interrupted, 141 when the reader of standard output went away.

    Examples
    --------
    >>> from refattn.cli import main
    >>> main(["--version"])
    refattn 0.1.0
    0
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        code = dispatch(argv)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt as stopped:
        found = getattr(stopped, "partial", None)  # refattn.oracle.progress
        if found is not None and "--json" not in argv:  # half a JSON document helps nobody
            print(f"\n{found}")
            sys.stdout.flush()
        print("\nrefattn: interrupted", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        # or the flush at exit would complain again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return BROKEN_PIPE
        print(f"refattn: {error}", file=sys.stderr)  # standard output cannot be written, say
        return USAGE_ERROR


def dispatch(argv):
    parser = make_parser(argv)
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:  # argparse has printed the help, the version or the error
        return stop.code or 0
    if args.command is None:
        parser.print_help(sys.stderr)
        return USAGE_ERROR
    return args.run(args)


def make_parser(argv):
    """The parser with the subcommand that argv names, or with all of them when it names none:
    `refattn kv` need not load the others.
    """
    width = max(len(example) for example, _ in SUBCOMMANDS.values())
    parser = argparse.ArgumentParser(
        prog="refattn",
        description="The attention reference that kernel authors trust: exact MHA, MQA, GQA and MLA, and "
        "an oracle around it.",
        epilog="\n".join(
            [
                "examples:",
                *(f"  {example.ljust(width)}  {what}" for example, what in SUBCOMMANDS.values()),
                "",
                EXIT_CODES,
            ]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"refattn {__version__}")
    subparsers = parser.add_subparsers(title="subcommands", dest="command", metavar="COMMAND")
    for name in argv[:1] if argv and argv[0] in SUBCOMMANDS else SUBCOMMANDS:
        importlib.import_module(f"refattn.commands.{name}").add_parser(subparsers)
    return parser
