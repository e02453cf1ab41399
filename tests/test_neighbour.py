"""cpu_kernels inside a host program: its own parallel loops, its Numba settings, its forks and its end are as they were without us."""

import os

import pytest

pytest.importorskip("numba")

from cpu_kernels.compiler.jit import INTERPRETED
from package_copy import PackageCopy

pytestmark = pytest.mark.skipif(INTERPRETED, reason="plain Python stays in the calling thread")


@pytest.fixture
def copy(tmp_path):
    return PackageCopy(tmp_path)


@pytest.mark.parametrize("layer", [None, "workqueue", "omp", "tbb"])
def test_eight_python_threads_beside_the_hosts_own_prange(copy, layer):
    """No Numba threading layer can matter: none is used. The host's own parallel loop, entered by one thread, goes on as before."""
    code = """
import threading
import numba, numpy as np
from cpu_kernels import sample
from cpu_kernels.machine.thread_pool import num_threads, run

@numba.njit(parallel=True)
def host(x):
    y = np.empty_like(x)
    for i in numba.prange(x.size):
        y[i] = x[i] * 2
    return y

try:
    host(np.arange(10.0))
except ValueError as error:  # the layer is not installed
    print("layer", error)
    host = lambda x: x * 2

x = np.linspace(0.5, 1.5, 5000)
expected = sample.cubes(x)
wrong = []

def call():
    for _ in range(30):
        out = np.empty(x.size)
        with num_threads(3):
            run(sample.powers, x.size, x, 3, out, cost=1e9)
        if out.tolist() != expected:
            wrong.append(out)

threads = [threading.Thread(target=call) for _ in range(8)]
for thread in threads:
    thread.start()
while any(thread.is_alive() for thread in threads):
    assert host(np.arange(1000.0))[-1] == 1998
for thread in threads:
    thread.join()
print("right" if not wrong else wrong)
"""
    assert copy.python(code, NUMBA_THREADING_LAYER=layer)[0].splitlines()[-1] == "right"


def test_numba_settings_of_the_host_are_untouched(copy):
    code = """
import numba
from numba.core import config
from numba.np.ufunc import parallel
before = {name: repr(value) for name, value in vars(config).items() if name.isupper()}
mask = numba.get_num_threads.__module__
import numpy as np
from cpu_kernels import sample
from cpu_kernels.machine.thread_pool import num_threads, set_num_threads, run
set_num_threads(3)
out = np.empty(500)
run(sample.powers, 500, np.ones(500), 3, out, cost=1e9)
with num_threads(7):
    run(sample.powers, 500, np.ones(500), 3, out, cost=1e9)
assert {name: repr(value) for name, value in vars(config).items() if name.isupper()} == before
assert not parallel._is_initialized  # no threading layer was started
try:
    numba.threading_layer()
except ValueError:
    print("no layer", numba.get_num_threads() == config.NUMBA_NUM_THREADS)
"""
    assert copy.python(code)[0] == "no layer True"


FORK = """
import os, threading, warnings
import numpy as np
from cpu_kernels import sample
from cpu_kernels.machine.thread_pool import num_threads, run
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forking with threads alive: that is the point here

def cubes():
    out = np.empty(2000)
    with num_threads(3):
        run(sample.powers, 2000, np.full(2000, 2.0), 3, out, cost=1e9)
    return set(out.tolist())

assert cubes() == {8.0}
going = True

def busy():
    while going:
        cubes()

others = [threading.Thread(target=busy) for _ in range(2)]
for thread in others:
    thread.start()
codes = []
for _ in range(10):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if cubes() == {8.0} and cubes() == {8.0} else 2
        finally:
            os._exit(code)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
going = False
for thread in others:
    thread.join()
print(set(codes), cubes())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_calls_after_a_fork(copy):
    """The child starts its own helpers, even when the parent forked while other threads were in a call."""
    assert copy.python(FORK)[0] == "{0} {8.0}"


def test_process_ends_with_helpers_asleep_and_in_exit_handlers(copy):
    code = """
import atexit
import numpy as np
from cpu_kernels import sample
from cpu_kernels.machine.thread_pool import num_threads, run

def call(count):
    out = np.empty(100)
    with num_threads(count):
        run(sample.powers, 100, np.ones(100), 3, out, cost=1e9)
    print(count, out.sum())

atexit.register(call, 5)  # wants more helpers than there are, when no thread can start any more
call(3)
"""
    output, errors = copy.python(code)
    assert output.split() == ["3", "100.0", "5", "100.0"] and "Error" not in errors
