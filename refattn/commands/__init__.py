"""Subcommands of `refattn`, one a module with `add_parser(subparsers)` and `run(args) -> exit code`."""
