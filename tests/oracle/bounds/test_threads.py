"""Tiles in several threads: the same results in the same order, and BLAS as it was afterwards."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from refattn.oracle import KernelSpec, check, error_bound
from refattn.oracle.bounds import threads


@pytest.fixture
def two_threads(monkeypatch):
    """As on a machine where BLAS uses two threads; what it is told to use is noted."""
    noted = [2]
    library = (lambda: noted[-1], noted.append)
    monkeypatch.setattr(threads, "_blas_libraries", lambda: (library,))
    return noted


def call(rows=300, keys=301):
    rng = np.random.default_rng(0)
    draw = lambda heads, length, dim: rng.standard_normal((heads, length, dim)).astype(np.float32)
    return draw(6, rows, 16), draw(3, keys, 16), draw(3, keys, 11)


def test_results_come_in_the_order_of_the_jobs(two_threads):
    def slow_where_even(job):
        time.sleep(0.002 * (job % 2 == 0))
        return job, threading.current_thread() is threading.main_thread()

    found = list(threads.in_threads(slow_where_even, iter(range(23))))
    assert [job for job, _ in found] == list(range(23))
    assert not any(in_main for _, in_main in found)
    assert two_threads == [2, 1, 2]


def test_an_exception_of_a_job_is_raised_and_blas_restored(two_threads):
    def fails(job):
        if job == 5:
            raise ValueError("job 5")
        return job

    with pytest.raises(ValueError, match="job 5"):
        list(threads.in_threads(fails, range(50)))
    assert two_threads[-1] == 2


def test_whoever_stops_early_leaves_blas_as_it_was(two_threads):
    jobs = threads.in_threads(lambda job: job, itertools.count())
    assert [next(jobs), next(jobs)] == [0, 1]
    jobs.close()
    assert two_threads[-1] == 2


@pytest.mark.parametrize("number", [0, 1, 2])
def test_an_interrupt_while_blas_is_set_leaves_it_as_it_was(two_threads, monkeypatch, number):
    """Ctrl-C as soon as the threads are read, set, or set back."""
    calls = itertools.count()
    get, set_threads = threads._blas_libraries()[0]

    def interrupted(function):
        def run(*args):
            result = function(*args)
            if next(calls) == number:
                raise KeyboardInterrupt
            return result

        return run

    library = interrupted(get), interrupted(set_threads)
    monkeypatch.setattr(threads, "_blas_libraries", lambda: (library,))
    with pytest.raises(KeyboardInterrupt):
        list(threads.in_threads(lambda job: job, iter(range(3))))
    assert get() == 2 and threads._calls.inside == 0


def test_calls_inside_each_other_restore_what_the_first_found(two_threads):
    inner = lambda job: list(threads.in_threads(lambda x: x, range(3)))
    assert list(threads.in_threads(inner, range(4))) == [[0, 1, 2]] * 4
    assert two_threads == [2, 1, 2]


def test_bounds_and_verdicts_are_bitwise_those_of_one_thread(monkeypatch, two_threads):
    arrays, spec = call(), KernelSpec.flash("float16")
    rng = np.random.default_rng(1)

    def results():
        bound = error_bound(*arrays, spec=spec, causal=True)
        got = (bound.output + rng.standard_normal(bound.output.shape) * bound.output_sigma).astype(
            np.float16
        )
        return [getattr(bound, name) for name in ("output_hard", "output_tight", "lse_sigma")], got

    monkeypatch.setattr("refattn.oracle.bounds.row_blocks.BLOCK_SCORES", 2**14)
    several, got = results()
    report = check(got, *arrays, spec=spec, causal=True).to_dict()
    monkeypatch.setattr(threads, "_blas_libraries", tuple)
    alone, _ = results()
    for one, other in zip(several, alone, strict=True):
        np.testing.assert_array_equal(one, other)
    assert check(got, *arrays, spec=spec, causal=True).to_dict() == report


def test_several_callers_at_once_agree():
    arrays = call(64, 67)
    reports = [None] * 4

    def judge(number):
        reports[number] = check(arrays[0][..., :11], *arrays, spec="float32").to_dict()

    callers = [threading.Thread(target=judge, args=(number,)) for number in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert reports[0] is not None and all(report == reports[0] for report in reports)


FORKS = """
import os, threading
import numpy as np
from refattn.oracle import check
from refattn.oracle.bounds import threads
x = np.ones((2, 64, 16), np.float32)
with threads._one_blas_thread(), threads._calls.lock:
    child = os.fork()
    if child == 0:
        os._exit(0 if check(x, x, x, x).passed and threads._calls.inside == 0 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print("ok")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_fork_in_the_middle_is_safe():
    made = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKS],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert made.stdout == "ok\n", made.stderr


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
def test_a_signal_handler_may_check_too(two_threads):
    small, large = call(5, 7), call()
    inside = []
    handler = lambda *_: inside.append(check(small[0][..., :11], *small, spec="float32").passed)
    before = signal.signal(signal.SIGALRM, handler)
    try:
        for after in (0.005, 0.02, 0.05, 0.1):
            signal.setitimer(signal.ITIMER_REAL, after)
            check(large[0][..., :11], *large, spec="float32", causal=True)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert inside and two_threads[-1] == 2
