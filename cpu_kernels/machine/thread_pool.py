"""Run a driver on several threads.

A driver is a serial kernel that pulls work items from a shared counter until none is left. `run` calls it
in the calling thread and, when there is enough to do, in threads of a pool at the same time; drivers
release the GIL. Results do not depend on the number of threads because an item's result does not depend
on who computes it.

Why not Numba's `parallel=True`: its workqueue layer aborts the process when two Python threads meet in
it, its OpenMP layer kills a forked child, exceptions inside `prange` are lost, and thread count and layer
are global settings that belong to the host program. Here the caller never waits for a helper that has not
started: it can always finish alone, so no number of callers can deadlock, and `fork` loses nothing but
idle helpers.

Python may call back at any line: signal handlers, `__del__` and weakref callbacks run in the middle of
this file, and may call `run` themselves or wait for a thread that does. So the pool has no lock: what it
shares changes by single operations on built-in types, which happen at once or not at all. The lock of a
job is only ever wanted by the helpers of that job and its caller, whom no other job waits for.

Measured against `prange` (2 CPUs of a cloud machine, Numba 0.68, medians in microseconds of one call;
items are chains of multiply-adds):

=======================================  ======  ====  ===================  =================
work                                     serial  pool  prange on workqueue  prange on OpenMP
=======================================  ======  ====  ===================  =================
2 items of nothing                            2     9                   96                  1
2 items of 35                                37    50                  139                 21
64 items of 17                             1100   590                  682                550
64 items falling from 34 to 0 (causal)     1098   600                  970                827
1 item of 330, 32 of 10                     660   377                  636                504
64 items of 17, after 3 ms of pause        1174   752                 1230                579
=======================================  ======  ====  ===================  =================

OpenMP wakes faster because its threads spin between calls, on CPU time of the host program; with the same
shared counter inside `prange` it is 5 % ahead of the pool on long calls. Below 200 microseconds neither
pays on such a machine, so `run` stays in the calling thread.
"""

import contextlib
import ctypes
import os
import sys
import threading
from _thread import allocate_lock
from contextvars import ContextVar
from queue import SimpleQueue

import numpy as np

from cpu_kernels.compiler.jit import COUNTER_LIMIT, COUNTER_SIZE, INTERPRETED
from cpu_kernels.machine.cpu_limits import allowed_cpus, available_threads

# Waking a sleeping helper takes 50 to 120 microseconds: a call must have this much work, in microseconds of
# one thread, for each thread it uses.
WORK_PER_THREAD = 100.0

LARGEST_NUM_THREADS = 1024  # each is a thread of this process for as long as it lives

# Scratch up to this size stays with its thread between calls; larger requests are served and forgotten.
KEPT_SCRATCH_BYTES = 4 << 20

_default_num_threads = None
_num_threads = ContextVar("cpu_kernels_num_threads", default=None)


def run(driver, num_items, *args, cost, scratch=0, dtype=np.float32):
    """Compute work items 0 .. num_items - 1 by calling ``driver(counter, scratch, *args)`` on as many
    threads as the work deserves.

    The driver's outer loop is ::

        item = next_item(counter)
        while item >= 0:
            ...                             # write this item's part of the outputs
            item = next_item(counter)

    Items are handed out in ascending order, each once: put expensive ones first, so that the last to
    start is the cheapest.

    Parameters
    ----------
    driver : function decorated with `jit.driver`
    num_items : int
    *args
        Passed on to the driver; the same objects in every thread.
    cost : float
        Rough time of the whole call on one thread, in microseconds. Below 200 the call stays in the
        calling thread.
    scratch : int
        Elements of scratch memory each thread needs: a contiguous array of `dtype`, aligned to 64 bytes,
        contents undefined.
    dtype : numpy dtype of the scratch

    Raises
    ------
    Whatever the driver raises, in whichever thread (only bounds-checked builds do).
    """
    if num_items <= 0:
        return
    counter = np.zeros(COUNTER_SIZE, np.int64)
    counter[COUNTER_LIMIT] = num_items
    helpers = 0
    if num_items > 1 and cost >= 2 * WORK_PER_THREAD and not INTERPRETED and not sys.is_finalizing():
        helpers = min(get_num_threads(), num_items, int(cost / WORK_PER_THREAD)) - 1
    if helpers <= 0:
        driver(counter, thread_scratch(scratch, dtype), *args)
    else:
        _pool.run(_Job(driver, counter, scratch, dtype, args), helpers)


def get_num_threads():
    """Number of threads a large call uses: the innermost `num_threads` block, else `set_num_threads`, else
    what the machine allows.

    What the machine allows is the least of the CPUs this thread may run on (affinity), the container's
    CPU quota and NUMBA_NUM_THREADS.
    """
    return _num_threads.get() or _default_num_threads or available_threads()


def set_num_threads(count):
    """Set the number of threads that large calls use in this process; None returns to what the machine
    allows.

    Raises
    ------
    TypeError
        count is neither an integer nor None.
    ValueError
        count is less than 1, or more than 1024.
    """
    global _default_num_threads
    _default_num_threads = None if count is None else _checked(count)


@contextlib.contextmanager
def num_threads(count):
    """Use `count` threads for the large calls made inside the ``with`` block, by this Python thread or
    asyncio task only.

    Examples
    --------
    >>> from cpu_kernels.machine.thread_pool import get_num_threads, num_threads
    >>> with num_threads(1):
    ...     get_num_threads()
    1
    """
    token = _num_threads.set(_checked(count))
    try:
        yield
    finally:
        _num_threads.reset(token)


def _checked(count):
    if isinstance(count, bool) or not hasattr(count, "__index__"):
        raise TypeError(f"count must be an integer; got {type(count).__name__}.")
    if not 1 <= count.__index__() <= LARGEST_NUM_THREADS:
        raise ValueError(f"count must be between 1 and {LARGEST_NUM_THREADS}; got {count}.")
    return count.__index__()


_kept = threading.local()


def thread_scratch(count, dtype):
    """Uninitialised memory of this thread, reused by its next call: a (count,) array aligned to 64 bytes."""
    dtype = np.dtype(dtype)
    size = count * dtype.itemsize
    memory = getattr(_kept, "memory", None)
    if memory is None or memory.size < size:
        raw = np.empty(size + 64, np.uint8)
        start = -raw.ctypes.data % 64
        memory = raw[start : start + size]
        if (
            size <= KEPT_SCRATCH_BYTES and not INTERPRETED
        ):  # what is plain Python can be interrupted by another call while it uses its scratch
            _kept.memory = memory
    return memory[:size].view(dtype)


class _Job:
    """One call of `run`: helpers may join until the caller closes it; closing waits for those that did."""

    __slots__ = (
        "active",
        "args",
        "closed",
        "counter",
        "driver",
        "dtype",
        "error",
        "idle",
        "lock",
        "orphan",
        "scratch",
    )

    def __init__(self, driver, counter, scratch, dtype, args):
        self.driver, self.counter, self.scratch, self.dtype, self.args = (
            driver,
            counter,
            scratch,
            dtype,
            args,
        )
        self.lock = allocate_lock()
        self.active = 0
        self.closed = False
        self.idle = allocate_lock()  # released when the job is closed and the last helper has left
        self.idle.acquire()
        self.error = None
        self.orphan = False  # in a child that was forked in the middle of this job

    def work(self):
        self.driver(self.counter, thread_scratch(self.scratch, self.dtype), *self.args)

    def stop(self):
        self.counter[0] = self.counter[COUNTER_LIMIT]

    def help(self):
        with self.lock:
            if self.closed:
                return
            self.active += 1
        try:
            self.work()
        except BaseException as error:  # belongs to the caller, who raises it
            self.error = error
            self.stop()
        with self.lock:
            self.active -= 1
            last = self.closed and not self.active
        if last:
            self.idle.release()

    def close(self):
        """Let no more helpers in and wait for the others, whatever signals arrive: they still write
        to the caller's arrays.
        """
        interrupt = None
        while True:
            try:
                with self.lock:
                    self.closed = True
                    if not self.active:
                        break
                self.idle.acquire()
            except BaseException as error:  # a signal handler raised, as Ctrl-C does
                interrupt = error
                self.stop()
        _open_jobs.discard(self)
        self.args = ()
        if interrupt is not None:
            raise interrupt


class _Pool:
    """Daemon threads that wait for jobs; as many as the largest number of helpers ever asked for."""

    def __init__(self):
        self.jobs = SimpleQueue()  # its methods may interrupt each other
        self.threads = {}  # by number
        self.cpus = None  # affinity of all helpers

    def run(self, job, helpers):
        self._prepare(helpers)
        try:
            _open_jobs.add(job)
            for _ in range(min(helpers, len(self.threads))):
                self.jobs.put(job)
            job.work()
        except BaseException:
            job.stop()
            raise
        finally:
            try:
                job.close()
            finally:  # a signal handler may raise on the way in
                job.close()
        if job.orphan:
            raise RuntimeError(
                "os.fork must not be called by a signal handler or finalizer inside a call of cpu_kernels "
                "that the child then goes on "
                "with; got a fork, which left the threads of that call behind."
            )
        if job.error is not None:
            raise job.error

    def _prepare(self, helpers):
        """Have enough helpers, allowed on the CPUs the caller may use but not on the one it is using.

        A kernel that sees no shared cache between CPUs (cloud machines report none) wakes a thread on the
        waker's own CPU and leaves both there for milliseconds; a helper that may not run there goes to an
        idle one at once.

        Callers that interrupt or overtake each other here each start the helpers that nobody has begun to
        start, and wait for none.
        """
        cpus = allowed_cpus()
        if cpus and helpers < len(cpus):
            cpus = cpus - {_current_cpu()}
        if len(self.threads) >= helpers and cpus == self.cpus:
            return
        for number in range(helpers):
            if number not in self.threads and not self._start(number):
                break
        self.cpus = cpus
        if cpus:
            for thread in list(self.threads.values()):
                if thread.native_id is not None:  # else another caller is starting it
                    with contextlib.suppress(OSError):
                        os.sched_setaffinity(thread.native_id, cpus)

    def _start(self, number):
        """Start the helper of this number unless another caller does; False if the process can have
        no more threads, or is shutting down.
        """
        thread = threading.Thread(
            target=_serve, args=(self.jobs,), name=f"cpu_kernels-{number}", daemon=True
        )
        try:
            if self.threads.setdefault(number, thread) is thread:
                thread.start()
        except BaseException as error:  # a signal handler may raise here, too
            if thread.ident is None and self.threads.get(number) is thread:
                del self.threads[number]
            if not isinstance(error, RuntimeError):
                raise
            return False
        return True


def _serve(jobs):
    while True:
        job = jobs.get()
        job.help()
        del job


def _cpu_query():
    query = getattr(ctypes.CDLL(None), "sched_getcpu", None) if sys.platform == "linux" else None
    return query or (lambda: None)


_current_cpu = _cpu_query()
_pool = _Pool()
_open_jobs = set()


def _forget_pool():
    """In a forked child: helper threads did not survive the fork, and a lock may have been held by a
    thread that is gone.
    """
    global _pool
    _pool = _Pool()
    for (
        job
    ) in _open_jobs:  # of which only this thread's can go on, if a signal handler forked in the middle of it
        job.orphan, job.active, job.lock = True, 0, allocate_lock()
        with contextlib.suppress(RuntimeError):  # it is free already
            job.idle.release()
    _open_jobs.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
