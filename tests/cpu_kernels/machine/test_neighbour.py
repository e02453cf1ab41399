"""cpu_kernels inside a host program: its own parallel loops, its Numba settings, its forks and its
end are as they were without us.
"""

import os
import sys

import pytest

pytest.importorskip("numba")

from package_copy import PackageCopy

from cpu_kernels.compiler.jit import INTERPRETED

pytestmark = pytest.mark.skipif(INTERPRETED, reason="plain Python stays in the calling thread")


@pytest.fixture
def copy(tmp_path):
    return PackageCopy(tmp_path)


@pytest.mark.sample(4)
@pytest.mark.parametrize("layer", [None, "workqueue", "omp", "tbb"])
def test_eight_python_threads_beside_the_hosts_own_prange(copy, layer):
    """No Numba threading layer can matter: none is used. The host's own parallel loop, entered by one
    thread, goes on as before.
    """
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


AT_THE_END = """
import atexit, sys, threading, time
import numpy as np
from cpu_kernels import sample
from cpu_kernels.compiler import notice as compile_notice
compile_notice.PATIENCE = 0

def call(where):
    print(where, sample.cubes([1, 2, 3]), flush=True)

class Last:
    def __del__(self, call=call):
        call("__del__")

def late():
    threading.main_thread().join()
    call("thread")

WHERE
"""


@pytest.mark.parametrize(
    "where, starter",
    [
        ("atexit", "atexit.register(call, 'atexit')"),
        ("thread", "threading.Thread(target=late).start()"),
        ("__del__", "last = Last()"),
        ("__del__", "sys.modules['last'] = Last()"),
    ],
)
def test_first_calls_at_the_end_of_the_process(copy, where, starter):
    """Compiling and loading, when no thread can be started any more, or modules are being taken apart."""
    for _ in range(2):
        output, errors = copy.python(AT_THE_END.replace("WHERE", starter))
        if where == "__del__":  # Python has taken its import system apart, NumPy fails and says so
            assert (
                output.endswith("[1.0, 8.0, 27.0]")
                or "ImportError: sys.meta_path is None, Python is likely shutting down" in errors
            ), errors
        else:
            assert output == f"{where} [1.0, 8.0, 27.0]", errors


SUBINTERPRETER = """
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
MAIN
number = interpreters.create()
try:
    interpreters.run_string(number, '''
import warnings
warnings.simplefilter("ignore")  # NumPy warns
import numpy as np
from cpu_kernels import sample
from cpu_kernels.compiler import notice as compile_notice
compile_notice.PATIENCE = 0
import sys
print(sample.cubes([1, 2, 3]), flush=True)
''')
except Exception as error:
    print(error)
"""


@pytest.mark.parametrize("main", ["", "import numpy"])
def test_subinterpreter(copy, main):
    """A right answer, or the error with which NumPy refuses."""
    pytest.importorskip("_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters")
    output, _ = copy.python(SUBINTERPRETER.replace("MAIN", main))
    assert output == "[1.0, 8.0, 27.0]" or "ImportError" in output


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("left", [8, 32, 90])
def test_too_little_address_space_to_compile_is_an_error_and_not_the_end(copy, left):
    code = f"""
import resource
from cpu_kernels import sample
from cpu_kernels.machine import cpu_limits
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ({left} << 20),) * 2)
try:
    sample.cubes([1, 2, 3])
except MemoryError as error:
    print(error)
"""
    assert "Compiling a kernel must have 224 MiB of address space; got" in copy.python(code)[0]
