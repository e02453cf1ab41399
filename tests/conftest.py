"""What every test runs under."""

import signal

import pytest


@pytest.fixture(autouse=True)
def interrupts_arrive():
    """Shells and CI runners have background jobs ignore SIGINT, and their children inherit that: tests of interruption set it themselves."""
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    if ignored:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    if ignored:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
