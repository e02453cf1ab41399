"""The thread pool: every item once, any number of callers, forks, signals, limits, and a host program that notices nothing."""

import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba")

from cpu_kernels import cpu_limits
from cpu_kernels import threading as pool
from cpu_kernels.jit import COUNTER_LIMIT, COUNTER_SIZE, INTERPRETED, driver, next_item
from cpu_kernels.threading import get_num_threads, num_threads, run, set_num_threads, thread_scratch
from package_copy import PackageCopy

LARGE = 1e9  # a cost in microseconds that deserves every thread
compiled_only = pytest.mark.skipif(INTERPRETED, reason="plain Python stays in the calling thread")


@driver
def fill(counter, scratch, length, visits, sums):
    """Item i adds up i / 1, i / 2, ..., i / length by way of its scratch."""
    item = next_item(counter)
    while item >= 0:
        for k in range(length):
            scratch[k] = item / (k + 1.0)
        total = 0.0
        for k in range(length):
            total += scratch[k]
        visits[item] += 1
        sums[item] = total
        item = next_item(counter)


def sums_of(num_items, length=200, cost=LARGE):
    visits, sums = np.zeros(num_items, np.int64), np.zeros(num_items)
    run(fill, num_items, length, visits, sums, cost=cost, scratch=length, dtype=np.float64)
    assert visits.tolist() == [1] * num_items
    return sums


@pytest.fixture(autouse=True)
def default_threads():
    yield
    set_num_threads(None)


@pytest.fixture
def copy(tmp_path):
    return PackageCopy(tmp_path)


@pytest.mark.parametrize("num_items", [0, 1, 2, 3, 5, 64, 1000])
def test_same_bits_for_any_number_of_threads(num_items):
    expected = sums_of(num_items, cost=0)
    for count in (1, 2, 3, 7):
        with num_threads(count):
            assert sums_of(num_items).tobytes() == expected.tobytes()




class PythonDriver:
    """Stands in for a compiled driver; remembers who took what."""

    def __init__(self, when_taken=lambda item: None):
        self.items, self.when_taken = [], when_taken

    def __call__(self, counter, scratch):
        while True:
            with lock:  # next_item is atomic in compiled code only
                item = int(counter[0])
                counter[0] += 1
            if item >= counter[COUNTER_LIMIT]:
                return
            self.items.append((threading.get_ident(), item))
            self.when_taken(item)


lock = threading.Lock()


@compiled_only
def test_helpers_help():
    """Two items that wait for each other finish only if two threads run them."""
    meeting = threading.Barrier(2, timeout=30)
    stand_in = PythonDriver(lambda item: meeting.wait())
    with num_threads(2):
        run(stand_in, 2, cost=LARGE)
    assert len({thread for thread, _ in stand_in.items}) == 2


def test_little_work_stays_in_the_calling_thread():
    for count, items, cost in ((2, 100, 0), (2, 100, 2 * pool.WORK_PER_THREAD - 1), (2, 1, LARGE), (1, 100, LARGE)):
        stand_in = PythonDriver()
        with num_threads(count):
            run(stand_in, items, cost=cost)
        assert stand_in.items == [(threading.get_ident(), item) for item in range(items)]


def test_no_items_no_call():
    run(None, 0, cost=LARGE)


@compiled_only
def test_an_error_in_a_helper_reaches_the_caller():
    caller = threading.get_ident()
    started = threading.Event()

    def fail_elsewhere(item):
        if threading.get_ident() == caller:
            started.wait(30)  # leaves the other items to the helper
        else:
            started.set()
            raise IndexError("from a helper")

    stand_in = PythonDriver(fail_elsewhere)
    with num_threads(2), pytest.raises(IndexError, match="from a helper"):
        run(stand_in, 100, cost=LARGE)
    assert len(stand_in.items) < 100  # the others stop early
    assert sums_of(64).size == 64  # and the pool lives on


@compiled_only
def test_an_error_in_the_caller_waits_for_the_helpers():
    caller = threading.get_ident()
    started, finished = threading.Event(), threading.Event()

    def fail_here(item):
        if threading.get_ident() == caller:
            started.wait(30)
            raise IndexError("from the caller")
        started.set()
        time.sleep(0.1)
        finished.set()

    with num_threads(2), pytest.raises(IndexError, match="from the caller"):
        run(PythonDriver(fail_here), 100, cost=LARGE)
    assert finished.is_set()


@compiled_only
@pytest.mark.parametrize("sender", ["os.kill(os.getpid(), signal.SIGINT)", "signal.raise_signal(signal.SIGINT)"])
def test_interrupt_waits_for_the_helpers(copy, sender):
    """Ctrl-C while helpers still write to the caller's arrays; a signal to the process wakes the caller, one to the helper's thread does not."""
    code = """
import os, signal, threading, time
import numpy as np
from cpu_kernels import threading as pool
from cpu_kernels.jit import COUNTER_LIMIT
state = []
caller = threading.get_ident()
started = threading.Event()

def driver(counter, scratch):
    if threading.get_ident() == caller:
        started.wait(30)
        return
    started.set()
    time.sleep(0.2)
    SENDER
    time.sleep(0.3)
    state.append("helper done")
    state.append(int(counter[0]) >= int(counter[COUNTER_LIMIT]))

try:
    with pool.num_threads(2):
        pool.run(driver, 10, cost=1e9)
except KeyboardInterrupt:
    state.append("interrupted")
print(state)
"""
    output, _ = copy.python(code.replace("SENDER", sender))
    assert output in ("['helper done', True, 'interrupted']", "['helper done', False, 'interrupted']")
    if "os.kill" in sender:
        assert "True" in output  # told the helpers to stop early


@compiled_only
@pytest.mark.parametrize("layer", [None, "workqueue", "omp", "tbb"])
def test_eight_python_threads_beside_the_hosts_own_prange(copy, layer):
    """No Numba threading layer can matter: none is used. The host's own parallel loop, entered by one thread, goes on as before."""
    code = """
import threading
import numba, numpy as np
from cpu_kernels import sample
from cpu_kernels.threading import num_threads, run

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


@compiled_only
def test_numba_settings_of_the_host_are_untouched(copy):
    code = """
import numba
from numba.core import config
from numba.np.ufunc import parallel
before = {name: repr(value) for name, value in vars(config).items() if name.isupper()}
mask = numba.get_num_threads.__module__
import numpy as np
from cpu_kernels import sample
from cpu_kernels.threading import num_threads, set_num_threads, run
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
from cpu_kernels.threading import num_threads, run
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


@compiled_only
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_calls_after_a_fork(copy):
    """The child starts its own helpers, even when the parent forked while other threads were in a call."""
    assert copy.python(FORK)[0] == "{0} {8.0}"


@compiled_only
def test_process_ends_with_helpers_asleep_and_in_exit_handlers(copy):
    code = """
import atexit
import numpy as np
from cpu_kernels import sample
from cpu_kernels.threading import num_threads, run

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


@compiled_only
def test_no_threads_to_be_had(monkeypatch):
    """At a process limit the caller does the work itself."""
    monkeypatch.setattr(pool, "_pool", pool._Pool())

    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with num_threads(4):
        assert sums_of(100).size == 100
    assert pool._pool.threads == []


def test_arguments_are_released_after_the_call():
    import weakref
    x = np.ones(10)
    alive = weakref.ref(x)
    with num_threads(2):
        run(lambda counter, scratch, array: None, 10, x, cost=LARGE)
    del x
    for _ in range(100):
        if alive() is None:
            break
        time.sleep(0.02)  # a helper may still be dropping the closed job
    assert alive() is None


# -- numbers of threads -----------------------------------------------------------------------------------------------------------------------


def test_num_threads_blocks_nest_and_belong_to_one_thread():
    usual = get_num_threads()
    seen = []
    with num_threads(5):
        with num_threads(3):
            thread = threading.Thread(target=lambda: seen.append(get_num_threads()))
            thread.start()
            thread.join()
            assert get_num_threads() == 3
        assert get_num_threads() == 5
    assert get_num_threads() == usual and seen == [usual]


def test_set_num_threads_is_for_the_process_and_none_undoes_it():
    usual = get_num_threads()
    set_num_threads(np.int64(6))
    assert get_num_threads() == 6
    with num_threads(2):
        assert get_num_threads() == 2
    set_num_threads(None)
    assert get_num_threads() == usual


@pytest.mark.parametrize("count, error, message", [
    (0, ValueError, "count must be at least 1; got 0."),
    (-3, ValueError, "count must be at least 1; got -3."),
    (2.0, TypeError, "count must be an integer; got float."),
    ("2", TypeError, "count must be an integer; got str."),
    (True, TypeError, "count must be an integer; got bool."),
])
def test_wrong_counts(count, error, message):
    for setter in (set_num_threads, lambda value: num_threads(value).__enter__()):
        with pytest.raises(error) as caught:
            setter(count)
        assert str(caught.value) == message


@pytest.mark.parametrize("value, expected", [("1", 1), ("100000", None), ("", None), ("0", None), ("many", None)])
def test_numba_num_threads_is_an_upper_bound(monkeypatch, value, expected):
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    usual = get_num_threads()
    monkeypatch.setenv("NUMBA_NUM_THREADS", value)
    assert get_num_threads() == (expected or usual)


@compiled_only
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
def test_affinity_is_respected_and_left_alone(copy):
    code = """
import os
import numpy as np
from cpu_kernels import sample, threading as pool
everything = os.sched_getaffinity(0)

def call(count=None):
    out = np.empty(2000)
    if count is None:
        pool.run(sample.powers, 2000, np.ones(2000), 3, out, cost=1e9)
    else:
        with pool.num_threads(count):
            pool.run(sample.powers, 2000, np.ones(2000), 3, out, cost=1e9)

call(3)
assert os.sched_getaffinity(0) == everything
one = {min(everything)}
os.sched_setaffinity(0, one)
assert pool.get_num_threads() == 1
call(3)
assert all(os.sched_getaffinity(thread.native_id) == one for thread in pool._pool.threads)
os.sched_setaffinity(0, everything)
call(2)
mine = os.sched_getaffinity(0)
assert mine == everything
print(all(os.sched_getaffinity(thread.native_id) <= mine for thread in pool._pool.threads))
"""
    assert copy.python(code)[0] == "True"


def cgroup_tree(tmp_path, membership, mounts, files):
    """A process folder and control group file systems as Linux would show them."""
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "cgroup").write_text(membership)
    lines = [f"30 25 0:26 {root} {tmp_path}/{where} rw,nosuid - {kind} {kind} {options}" for where, root, kind, options in mounts]
    (proc / "mountinfo").write_text("22 1 0:21 / / rw - ext4 /dev/root rw\n" + "\n".join(lines))
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return proc


V2, V1 = ("unified", "/", "cgroup2", "rw"), ("cpu", "/", "cgroup", "rw,cpu,cpuacct")


@pytest.mark.parametrize("membership, mounts, files, expected", [
    ("0::/app\n", [V2], {"unified/app/cpu.max": "150000 100000\n"}, 1.5),
    ("0::/app\n", [V2], {"unified/app/cpu.max": "max 100000\n"}, None),
    ("0::/app\n", [V2], {}, None),
    ("0::/pod/app\n", [V2], {"unified/pod/cpu.max": "200000 100000\n", "unified/pod/app/cpu.max": "max 100000\n"}, 2.0),  # the parent binds
    ("0::/pod/app\n", [V2], {"unified/pod/cpu.max": "300000 100000\n", "unified/pod/app/cpu.max": "100000 50000\n"}, 2.0),
    ("0::/\n", [V2], {"unified/cpu.max": "50000 100000\n"}, 0.5),  # a container with its own cgroup namespace
    ("0::/kubepods/pod1\n", [("unified", "/kubepods/pod1", "cgroup2", "rw")], {"unified/cpu.max": "400000 100000\n"}, 4.0),  # bind-mounted subtree
    ("4:cpu,cpuacct:/app\n2:memory:/other\n", [V1], {"cpu/app/cpu.cfs_quota_us": "250000\n", "cpu/app/cpu.cfs_period_us": "100000\n"}, 2.5),
    ("4:cpu,cpuacct:/app\n", [V1], {"cpu/app/cpu.cfs_quota_us": "-1\n", "cpu/app/cpu.cfs_period_us": "100000\n"}, None),
    ("4:cpu:/app\n0::/\n", [V1, V2], {"cpu/app/cpu.cfs_quota_us": "100000\n", "cpu/app/cpu.cfs_period_us": "100000\n"}, 1.0),
    ("4:cpuset:/app\n", [("cpuset", "/", "cgroup", "rw,cpuset")], {"cpuset/app/cpu.cfs_quota_us": "1\n"}, None),
    ("0::/app\n", [V2], {"unified/app/cpu.max": "nonsense\n"}, None),
])
def test_container_quota(tmp_path, membership, mounts, files, expected):
    assert cpu_limits.cpu_quota(cgroup_tree(tmp_path, membership, mounts, files)) == expected


def test_no_control_groups(tmp_path):
    assert cpu_limits.cpu_quota(tmp_path / "missing") is None


@pytest.mark.parametrize("quota, cpus, environment, expected", [(1.5, 8, None, 2), (0.2, 8, None, 1), (None, 8, None, 8), (16, 8, None, 8), (4, 8, "3", 3)])
def test_least_limit_wins(monkeypatch, quota, cpus, environment, expected):
    monkeypatch.setattr(cpu_limits, "cpu_quota", lambda: quota)
    monkeypatch.setattr(cpu_limits, "allowed_cpus", lambda: frozenset(range(cpus)))
    monkeypatch.setenv("NUMBA_NUM_THREADS", environment or "")
    assert cpu_limits.available_threads() == expected


def test_systems_without_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(cpu_limits, "cpu_quota", lambda: None)
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    assert cpu_limits.allowed_cpus() is None
    assert cpu_limits.available_threads() == os.cpu_count()
    with num_threads(2):
        assert sums_of(10).size == 10


# -- scratch ----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("count", [0, 1, 17, 100_000])
def test_scratch_is_aligned_and_reused(count, dtype):
    scratch = thread_scratch(count, dtype)
    assert scratch.shape == (count,) and scratch.dtype == dtype and scratch.flags.c_contiguous and scratch.flags.writeable
    assert count == 0 or scratch.ctypes.data % 64 == 0
    assert thread_scratch(count, dtype).ctypes.data == scratch.ctypes.data


def test_large_scratch_is_not_kept():
    before = thread_scratch(16, np.float32).ctypes.data
    count = pool.KEPT_SCRATCH_BYTES // 4 + 1
    assert thread_scratch(count, np.float32).size == count
    assert thread_scratch(16, np.float32).ctypes.data == before


def test_threads_do_not_share_scratch():
    addresses = {thread_scratch(64, np.float32).ctypes.data}
    both = threading.Barrier(2)

    def record():
        addresses.add(thread_scratch(64, np.float32).ctypes.data)
        both.wait(30)

    threads = [threading.Thread(target=record) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(addresses) == 3


# -- cost -------------------------------------------------------------------------------------------------------------------------------------


@compiled_only
def test_overhead_of_a_small_call():
    """Far below the 40 microseconds a whole public call may take."""
    visits, sums = np.zeros(1, np.int64), np.zeros(1)
    times = []
    for _ in range(500):
        start = time.perf_counter()
        run(fill, 1, 1, visits, sums, cost=0, scratch=1, dtype=np.float64)
        times.append(time.perf_counter() - start)
    assert min(times) < 10e-6


@driver
def tick_until_interleaved(counter, scratch, ticks, met):
    """Counts `ticks` up until some count is missing in between, and a while longer for the other thread to notice too."""
    item = next_item(counter)
    while item >= 0:
        before, left = next_item(ticks), 1_000_000_000
        while left > 0:
            now = next_item(ticks)
            if now > before + 1 and met[item] == 0:
                met[item], left = 1, 1_000_000
            before, left = now, left - 1
        item = next_item(counter)


@compiled_only
def test_compiled_drivers_run_side_by_side():
    """Two threads inside compiled code at once: neither holds the GIL."""
    ticks, met = np.zeros(COUNTER_SIZE, np.int64), np.zeros(2, np.int64)
    ticks[COUNTER_LIMIT] = np.iinfo(np.int64).max
    with num_threads(2):
        run(tick_until_interleaved, 2, ticks, met, cost=LARGE)
    assert met.any()


def test_module_docstring_example():
    import doctest
    assert doctest.testmod(pool).failed == 0


def test_helper_threads_have_a_name():
    if not INTERPRETED:
        with num_threads(2):
            sums_of(4)
        assert any(thread.name.startswith("cpu_kernels-") for thread in threading.enumerate())


if sys.platform == "linux":
    def test_this_process_reads_its_own_groups():
        quota = cpu_limits.cpu_quota(Path("/proc/self"))
        assert quota is None or quota > 0
