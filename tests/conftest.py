"""What every test runs under, and which tests the default run leaves to the campaigns.

A test marked `campaign` is long and repeats what others show; setup.cfg deselects it, `-m ""` runs everything. `sample(n)` marks most cases of a
parametrised test so: about one in n stays, and with it every function, option, family, layout and value of a parameter at least once.
"""

import itertools
import signal
import zlib

import pytest


def pytest_addoption(parser):
    group = parser.getgroup("campaign")
    group.addoption("--campaign-share", type=int, default=1, metavar="N", help="run about one in N of the tests marked campaign")
    group.addoption("--campaign-seed", default="", metavar="TEXT", help="what decides which")


@pytest.hookimpl(tryfirst=True)  # before -m deselects
def pytest_collection_modifyitems(config, items):
    for _, cases in itertools.groupby(items, key=lambda item: item.nodeid.partition("[")[0]):
        cases = list(cases)
        mark = cases[0].get_closest_marker("sample")
        for case in left_out(cases, *mark.args) if mark else ():
            case.add_marker("campaign")
    share, seed = config.getoption("--campaign-share"), config.getoption("--campaign-seed")
    left = {item for item in items if item.get_closest_marker("campaign") and number_of(seed + item.nodeid) % share}
    if left:
        config.hook.pytest_deselected(items=[*left])
        items[:] = [item for item in items if item not in left]


def number_of(text):
    """The same in every process, and without a pattern that could follow the order of cases."""
    return zlib.crc32(text.encode())


def left_out(cases, n):
    """The cases of one test that are neither among one in n nor needed to show something that no other shows."""
    name = lambda case: case.nodeid.rpartition("/")[2]  # wherever the file lies
    kept = [case for case in cases if number_of(name(case)) % n == 0] or cases[:1]
    seen = {what for case in kept for what in shown(case)}
    for case in cases:
        if case not in kept and seen >= {*shown(case)}:
            yield case
        seen |= {*shown(case)}


def shown(case):
    """Words for what a parametrised test shows: of a call its function, options, family and layout; of several parameters their values."""
    several = len(case.callspec.params) > 1
    for name, value in case.callspec.params.items():
        if hasattr(value, "function") and hasattr(value, "options"):
            yield from (f"{what} {getattr(value, what, '')}" for what in ("function", "family", "layout"))
            yield from words(value.options)
        elif isinstance(value, dict):
            yield from words(value)
        elif several and isinstance(value, str | int | float | None):
            yield f"{name}={value!r}"
        elif several and callable(value):
            yield f"{name}={getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')} {case.callspec.indices[name] if is_lambda(value) else ''}"


def words(options):
    return [f"{name}={value}" if isinstance(value, str | bool) else name for name, value in options.items()]


def is_lambda(value):
    return getattr(value, "__name__", "") == "<lambda>"


@pytest.fixture(autouse=True)
def interrupts_arrive():
    """Shells and CI runners have background jobs ignore SIGINT, and their children inherit that: tests of interruption set it themselves."""
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    if ignored:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    if ignored:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
