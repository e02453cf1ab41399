"""Progress: what a terminal, a pipe and a callable get, and what Ctrl-C leaves."""

import contextlib
import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
import time

import numpy as np
import pytest

import refattn
from refattn.oracle import assert_attention_close, check
from refattn.oracle.progress import Progress, ProgressEvent

RNG = np.random.default_rng(0)
QUERY, KEY, VALUE = (RNG.normal(size=(2, 3, 16, 8)) for _ in range(3))
RIGHT = refattn.attention(QUERY, KEY, VALUE)


@pytest.mark.parametrize(
    "event, line",
    [
        (ProgressEvent("check", 0, 8192, "rows"), "check: 0 of 8,192 rows"),
        (ProgressEvent("check", 10, 20, "rows", "", 3.0, 3.2), "check: 10 of 20 rows, about 3 s left"),
        (ProgressEvent("check", 20, 20, "rows", "", 3.0, 0.0), "check: 20 of 20 rows"),
        (ProgressEvent("reference", elapsed=0.2), "reference"),
        (ProgressEvent("reference", elapsed=75), "reference, 1 min 15 s so far"),
        (ProgressEvent("pairs", elapsed=5, left=7300), "pairs, at most 2 h 1 min left"),
        (ProgressEvent("tests", 1, 3, "tests", "causal"), "tests: 1 of 3 tests; causal"),
    ],
)
def test_an_event_is_one_line(event, line):
    assert str(event) == line


def test_a_callable_gets_every_part_and_few_steps_between():
    events = []
    with Progress("first", progress=events.append) as shown:
        shown.begin("second", 1000, "rows")
        for _ in range(1000):
            shown.step()
    told = [(event.what, event.done) for event in events]
    assert told[:2] == [("first", 0), ("second", 0)] and told[-1] == ("second", 1000) and len(told) < 10
    assert events[-1].left == 0 and events[1].left is None


def test_steps_of_threads_are_told_in_the_thread_that_opened():
    threads, events = [], []
    tell = lambda event: (threads.append(threading.get_ident()), events.append(event))
    with Progress("work", 400, progress=tell) as shown:
        workers = [threading.Thread(target=lambda: [shown.step() for _ in range(200)]) for _ in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert shown.done == 400
        shown.begin("end")
    assert {*threads} == {threading.get_ident()} and events[-1].what == "end"


@pytest.mark.parametrize("value", [True, 1, "print"])
def test_progress_must_be_a_callable(value):
    with pytest.raises(TypeError, match="progress must be None, False or callable; got progress="):
        check(RIGHT, QUERY, KEY, VALUE, progress=value)


def test_what_a_callable_raises_ends_the_check():
    def broken(event):
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        check(RIGHT, QUERY, KEY, VALUE, progress=broken)


@pytest.mark.parametrize("rows", [None, 4])
def test_check_counts_the_rows(rows):
    events = []
    assert check(RIGHT, QUERY, KEY, VALUE, rows=rows, progress=events.append).passed
    count = 2 * 3 * (rows or 16)
    assert (events[-1].done, events[-1].total, events[-1].unit) == (count, count, "rows")


def stop_after(rows):
    def tell(event):
        if event.unit == "rows" and event.done >= rows:
            raise KeyboardInterrupt

    return tell


@pytest.fixture
def every_step_is_told(monkeypatch):
    monkeypatch.setattr("refattn.oracle.progress.REDRAWN", 0.0)


@pytest.mark.parametrize("wrong, after", [(False, 16), (True, 16), (True, 0)])
def test_an_interrupted_check_leaves_its_report(every_step_is_told, wrong, after):
    with pytest.raises(KeyboardInterrupt) as stopped:
        check(RIGHT + wrong, QUERY, KEY, VALUE, progress=stop_after(after))
    report = stopped.value.partial
    assert report.interrupted == (after, 96) and report.output.rows_checked == after
    assert not report.passed and not report.complete and report.failed[-1] == "interrupted"
    assert report.wrong == (wrong and after > 0)
    assert f"interrupted after {after} of 96 rows" in report.summary and ": pass" not in report.summary
    assert f"Interrupted: {96 - after} of 96 rows were not looked at." in report.warnings
    assert report.to_dict()["interrupted"] == [after, 96]
    assert report.summary in str(stopped.value)


def test_an_interrupt_before_the_first_row(every_step_is_told):
    def while_computing(*arrays, **options):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stopped:
        assert_attention_close(RIGHT, QUERY, KEY, VALUE, reference=while_computing)
    assert stopped.value.partial.summary == "attention: interrupted after 0 of 96 rows"


def run(code, stderr=subprocess.PIPE, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env=os.environ | environment,
    )


SIGNALLED = """
import os, signal, threading
import numpy as np, refattn
import refattn.oracle.progress as progress
from refattn.oracle import check
x = np.random.default_rng(0).normal(size=(64, 3, 16, 8))
right = refattn.attention(x, x, x)
progress.REDRAWN = 0.0
def tell(event):
    if event.done == 16 * 3:
        threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGINT)).start()
try:
    check(right, x, x, x, progress=tell)
except KeyboardInterrupt as error:
    report = error.partial
    assert report.output.rows_checked == report.interrupted[0] >= 48, report.interrupted
    assert report.output.checked == 8 * report.interrupted[0] and not report.wrong
    print(type(error).__name__, report.summary)
    raise
"""


def test_a_real_signal_leaves_whole_tiles_and_ends_the_process():
    process = run(SIGNALLED)
    output, error = process.communicate(timeout=60)
    assert (
        output.startswith("KeyboardInterrupt attention: interrupted after ") and " of 3,072 rows" in output
    )
    assert "KeyboardInterrupt: attention: interrupted after" in error
    assert process.returncode == -signal.SIGINT  # a shell loop around it stops


WITHIN_A_TILE = """
import os, signal
from refattn.oracle.progress import Progress
taken = []
try:
    with Progress("work", 3, partial=lambda: taken) as shown:
        with shown.taking():
            os.kill(os.getpid(), signal.SIGINT)
            taken.append("whole")
        taken.append("never")
except KeyboardInterrupt as error:
    print(error.partial, shown.done, signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""


def test_ctrl_c_waits_for_the_end_of_what_is_taken_in():
    assert run(WITHIN_A_TILE).communicate(timeout=60)[0] == "['whole'] 1 True\n"


SLOW = """
import sys, time
import refattn.oracle.progress as progress
progress.SHOWN_AFTER, progress.REDRAWN = {after}, 0.05
with progress.Progress("outer work", 10, "steps", progress={argument}) as shown:
    shown.step(3)
    with progress.Progress("inner"):
        time.sleep({seconds})
    shown.step(7)
"""


def on_a_terminal(code, columns=60):
    """All that the process writes to a terminal of this width."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = run(code, stderr=theirs)
    os.close(theirs)
    written = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while more := os.read(ours, 4096):
            written += more
    process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 0
    return written.decode()


@pytest.mark.parametrize("columns", [60, 30])
def test_a_terminal_has_one_line_that_is_gone_at_the_end(columns):
    written = on_a_terminal(SLOW.format(after=0.1, argument=None, seconds=0.5), columns)
    whole = "outer work: 3 of 10 steps, about 1 s left > inner"
    assert written.startswith("\r" + "outer work: 3 of 10 steps"[: columns - 1])
    assert "\n" not in written and "\x1b" not in written
    *lines, last, end = written.split("\r")
    assert all(len(line) < columns for line in lines) and not last.strip() and end == ""
    assert columns < len(whole) or "> inner" in written


@pytest.mark.parametrize("argument, seconds", [(None, 0.0), (False, 0.5), ("lambda event: None", 0.5)])
def test_a_terminal_stays_empty(argument, seconds):
    assert on_a_terminal(SLOW.format(after=0.2, argument=argument, seconds=seconds)) == ""


def test_a_pipe_gets_nothing():
    assert run(SLOW.format(after=0.0, argument=None, seconds=0.2)).communicate(timeout=60) == ("", "")


def test_the_line_comes_after_two_seconds():
    from refattn.oracle import progress

    assert progress.SHOWN_AFTER == 2.0 and progress.REDRAWN >= 0.25
    started = time.monotonic()
    with Progress("quick"):
        pass
    assert time.monotonic() - started < 1
