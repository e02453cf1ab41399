"""Puts this directory on the import path, so that tests in subdirectories find `cases`, `families` and `naive`."""

import signal
import sys
from pathlib import Path

import pytest

HERE = str(Path(__file__).parent)
if HERE not in sys.path:
    sys.path.insert(0, HERE)


@pytest.fixture(autouse=True)
def interrupts_arrive():
    """Shells and CI runners have background jobs ignore SIGINT, and their children inherit that: tests of interruption set it themselves."""
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    if ignored:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    if ignored:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
