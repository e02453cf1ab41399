"""The thread pool: every item once, in any number of threads; errors and signals; scratch."""

import sys
import threading
import time

import numpy as np
import pytest

pytest.importorskip("numba")

from package_copy import PackageCopy

from cpu_kernels.compiler.jit import COUNTER_LIMIT, COUNTER_SIZE, INTERPRETED, driver, next_item
from cpu_kernels.machine import thread_pool as pool
from cpu_kernels.machine.thread_pool import num_threads, run, thread_scratch

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
@pytest.mark.parametrize("count", [2, 3, 5])
def test_helpers_help(monkeypatch, count):
    """Items that wait for each other finish only if as many threads run them, also the first time."""
    monkeypatch.setattr(pool, "_pool", pool._Pool())
    meeting = threading.Barrier(count, timeout=10)
    stand_in = PythonDriver(lambda item: meeting.wait())
    with num_threads(count):
        run(stand_in, count, cost=LARGE)
    assert len({thread for thread, _ in stand_in.items}) == count


def test_little_work_stays_in_the_calling_thread():
    for count, items, cost in (
        (2, 100, 0),
        (2, 100, 2 * pool.WORK_PER_THREAD - 1),
        (2, 1, LARGE),
        (1, 100, LARGE),
    ):
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
@pytest.mark.parametrize(
    "sender", ["os.kill(os.getpid(), signal.SIGINT)", "signal.raise_signal(signal.SIGINT)"]
)
def test_interrupt_waits_for_the_helpers(copy, sender):
    """Ctrl-C while helpers still write to the caller's arrays; a signal to the process wakes the
    caller, one to the helper's thread does not.
    """
    code = """
import os, signal, threading, time
import numpy as np
from cpu_kernels.machine import thread_pool as pool
from cpu_kernels.compiler.jit import COUNTER_LIMIT
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
def test_no_threads_to_be_had(monkeypatch):
    """At a process limit the caller does the work itself."""
    monkeypatch.setattr(pool, "_pool", pool._Pool())

    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with num_threads(4):
        assert sums_of(100).size == 100
    assert not pool._pool.threads


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


# -- scratch ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("count", [0, 1, 17, 100_000])
def test_scratch_is_aligned_and_reused(count, dtype):
    scratch = thread_scratch(count, dtype)
    assert (
        scratch.shape == (count,)
        and scratch.dtype == dtype
        and scratch.flags.c_contiguous
        and scratch.flags.writeable
    )
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


# -- cost ---------------------------------------------------------------------------------------------------


@compiled_only
def test_overhead_of_a_small_call():
    """By the number of functions that Python calls for it, whatever the machine does: no job, no
    lock, no other thread.
    """
    visits, sums = np.zeros(1, np.int64), np.zeros(1)

    def small():
        return run(fill, 1, 1, visits, sums, cost=0, scratch=1, dtype=np.float64)

    small()  # compiles, and makes the scratch of this thread
    calls = []
    sys.setprofile(
        lambda frame, event, argument: (
            calls.append(frame.f_code.co_name) if event in ("call", "c_call") else None
        )
    )
    try:
        small()
    finally:
        sys.setprofile(None)
    assert 1 < len(calls) <= 10, calls


@driver
def tick_until_interleaved(counter, scratch, ticks, met):
    """Counts `ticks` up until some count is missing in between, and a while longer for the other
    thread to notice too.
    """
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
