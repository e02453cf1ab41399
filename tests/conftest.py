"""What every test runs under, and which tests the default run leaves to the campaigns.

A test marked `campaign` is long and repeats what others show; setup.cfg deselects it, `-m ""` runs
everything. `sample(n)` marks most cases of a parametrised test so: about one in n stays, and so does
whatever alone shows a function, option, family, layout, or, where there are several parameters, a value
of one.
"""

import itertools
import os
import signal

import pytest
from default_run import left_out, number_of

if "PYTEST_XDIST_WORKER" in os.environ:  # a worker a core: NumPy's matrix products take no more
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def pytest_addoption(parser):
    group = parser.getgroup("campaign")
    group.addoption(
        "--campaign-share",
        type=int,
        default=1,
        metavar="N",
        help="run one in N of the tests marked campaign",
    )
    group.addoption("--campaign-seed", default="", metavar="TEXT", help="what decides which")


@pytest.hookimpl(tryfirst=True)  # before -m deselects
def pytest_collection_modifyitems(config, items):
    for _, cases in itertools.groupby(items, key=lambda item: item.nodeid.partition("[")[0]):
        cases = list(cases)
        mark = cases[0].get_closest_marker("sample")
        for case in left_out(cases, *mark.args) if mark else ():
            case.add_marker("campaign")
    share, seed = config.getoption("--campaign-share"), config.getoption("--campaign-seed")
    campaign = [item for item in items if item.get_closest_marker("campaign")]
    left = {item for item in campaign if number_of(seed + item.nodeid) % share}
    if left:
        config.hook.pytest_deselected(items=[*left])
        items[:] = [item for item in items if item not in left]


@pytest.fixture(autouse=True)
def interrupts_arrive():
    """Shells and CI runners have background jobs ignore SIGINT, and their children inherit that:
    tests of interruption set it themselves.
    """
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    if ignored:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    if ignored:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
