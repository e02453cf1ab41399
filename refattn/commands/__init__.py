"""Subcommands of `refattn` that judge results in files."""
