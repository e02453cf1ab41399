"""Progress of long work: one line on a terminal, or events for a callable; and what Ctrl-C leaves.

Every function of the oracle that may take seconds opens a `Progress` and says what it does:

    with Progress("check: computing the reference", progress=progress, partial=report_so_far) as shown:
        ...
        shown.begin("check", total, "rows")         # the next part of the work, of known size
        for tile in tiles:
            bounds = ...                            # Ctrl-C is raised here
            with shown.taking(len(tile.lse)):       # and not in this block, which counts its rows
                measure.update(...)

or, for a loop over things with names, `for test in shown.over(tests, name): ...`. Nothing else is needed:
whether anybody looks, when, and in which words is decided here.

Worker threads may call `step`. It only counts there: a callable is called in the thread that opened the
`Progress`, when that thread itself calls `step` (with 0, where it has nothing to count) or begins a part.
A loop that takes results from a pool cancels what has not begun when Ctrl-C comes
(`pool.shutdown(cancel_futures=True)` in a `finally`).

Ctrl-C raises KeyboardInterrupt as everywhere in Python, so that a loop around the call stops and a shell
sees what happened. What had been found is not lost: the exception has it as its attribute `partial`, and
its message is that result in words, which an interactive session and a notebook show; there it is
`sys.last_value.partial`. A function that returned the partial result instead would let the loop run on,
and let a script take it for the whole.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

SHOWN_AFTER = 2.0  # seconds: what takes less shows nothing on a terminal
REDRAWN = 0.5  # seconds between two states of the line, and between two calls of a callable within one part

_open: ContextVar[Progress | None] = ContextVar("open progress of this thread", default=None)
_terminal = threading.Lock()  # held by whoever has a line on it


@dataclass(frozen=True)
class ProgressEvent:
    """How far a work is; `str()` is one line.

    Attributes
    ----------
    what : str
        The part of the work that runs.
    done : int
        How many `unit` of this part are done.
    total : int or None
        Of how many; None where nobody knows.
    unit : str
        "rows", "tests", "cases".
    now : str
        The one that runs, where they have names.
    elapsed : float
        Seconds since the call began, parts before included.
    left : float or None
        Seconds that the part still takes, as far as can be told from the pace so far; of work that is given
        a time and has no `total`, what is left of it. None while unknown.

    Examples
    --------
    >>> print(ProgressEvent("check", 1024, 8192, "rows", "", 12.0, 84.0))
    check: 1,024 of 8,192 rows, about 1 min 24 s left
    """

    what: str
    done: int = 0
    total: int | None = None
    unit: str = ""
    now: str = ""
    elapsed: float = 0.0
    left: float | None = None

    def __str__(self):
        words = self.what
        if self.total is not None or self.done:
            of = "" if self.total is None else f" of {self.total:,}"
            words += f": {self.done:,}{of} {self.unit}".rstrip()
        if self.left is not None and self.done != self.total:
            words += f", {'at most' if self.total is None else 'about'} {_duration(self.left)} left"
        elif self.left is None and self.elapsed >= 1:
            words += f", {_duration(self.elapsed)} so far"
        return f"{words}; {self.now}" if self.now else words


def _duration(seconds):
    """ "14 s", "1 min 20 s", "2 h 5 min"."""
    seconds = max(round(seconds), 0)
    minutes, hours = seconds // 60, seconds // 3600
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {seconds % 60} s" if minutes else f"{seconds} s"


class Progress:
    """Says how far a work is, as a context manager around it.

    Parameters
    ----------
    what : str
        The first part of the work: "check".
    total : int, optional
        How many steps that part has.
    unit : str
        What a step is, in the plural.
    progress : None, False or callable
        None: one line on standard error where that is a terminal, from two seconds on, rewritten twice a
        second and removed at the end; nothing elsewhere. Inside another `Progress` of the same thread,
        its line tells of this one too. False: nothing. A callable gets a `ProgressEvent` at the beginning
        and the end of every part and at most twice a second between; what it raises ends the work.
    partial : callable, optional
        Returns what was found so far, for the KeyboardInterrupt that ends the work.
    seconds : float, optional
        The time that the whole work is given.

    Raises
    ------
    TypeError
        Another `progress`.

    Examples
    --------
    >>> with Progress("counting", 3, "sheep", progress=print) as shown:
    ...     for _ in range(3):
    ...         shown.step()
    counting: 0 of 3 sheep
    counting: 3 of 3 sheep
    """

    def __init__(self, what, total=None, unit="", *, progress=None, partial=None, seconds=None):
        if progress is not None and progress is not False and not callable(progress):
            raise TypeError(f"progress must be None, False or callable; got progress={progress!r}.")
        self._told_to = progress if callable(progress) else None
        self._drawn, self._partial, self._seconds = progress is None, partial, seconds
        self._lock, self._line = threading.Lock(), None
        self._first, self._inner = (what, total, unit), None
        self._now, self._last = "", 0.0

    def __enter__(self):
        self._start, self._thread = time.monotonic(), threading.get_ident()
        self._set(*self._first)
        self._outer = _open.get()
        self._token = _open.set(self)
        if self._outer is not None:
            self._outer._inner = self
        elif self._drawn and _is_terminal(sys.stderr):
            self._line = _Line(sys.stderr, self)
        self._tell(always=True)
        return self

    def __exit__(self, kind, error, traceback):
        with _held_back():
            _open.reset(self._token)
            if self._outer is not None:
                self._outer._inner = None
            if self._line is not None:
                self._line.remove()
        if isinstance(error, KeyboardInterrupt) and self._partial is not None:
            error.partial = self._partial()
            error.args = (f"{error.partial}\n(the result so far: `partial` of this KeyboardInterrupt)",)

    def begin(self, what, total=None, unit=""):
        """The next part of the work."""
        self._set(what, total, unit)
        self._tell(always=True)

    def step(self, count=1, now=None):
        """So many more are done; `now` names the one that runs. Any thread may call this."""
        self._tell(always=self._count(count, now))

    def over(self, items, name=lambda item: ""):
        """The items one by one, counted as they are done; `name` says which one runs."""
        for item in items:
            self.step(0, name(item))
            yield item
            self.step()

    @contextmanager
    def taking(self, count=1):
        """Ctrl-C waits until the end of the block, so that a result is taken in as a whole or not at all;
        then `count` more are done.
        """
        with _held_back():
            yield
            ended = self._count(count)
        self._tell(always=ended)

    @property
    def done(self) -> int:
        """How many steps of this part are done."""
        return self._done

    def event(self) -> ProgressEvent:
        """How far the work is."""
        with self._lock:
            now = time.monotonic()
            elapsed, done, total, left = now - self._start, self._done, self._total, None
            if self._seconds is not None:
                left = max(self._seconds - elapsed, 0.0)
            if total is not None and done:
                at_this_pace = (now - self._part_start) / done * max(total - done, 0)
                left = at_this_pace if left is None else min(left, at_this_pace)
            elif total is not None:
                left = None
            return ProgressEvent(self._what, done, total, self._unit, self._now, elapsed, left)

    def __str__(self):
        inner = self._inner
        return str(self.event()) if inner is None else f"{self.event()} > {inner}"

    def _set(self, what, total, unit):
        with self._lock:
            self._what, self._total, self._unit, self._done, self._now = what, total, unit, 0, ""
            self._part_start = time.monotonic()

    def _count(self, count, now=None):
        """Whether that ends the part."""
        with self._lock:
            self._done += count
            self._now = self._now if now is None else now
            return count > 0 and self._done == self._total

    def _tell(self, always=False):
        if self._told_to is None or threading.get_ident() != self._thread:
            return
        now = time.monotonic()
        if always or now - self._last >= REDRAWN:
            self._last = now
            self._told_to(self.event())


class _Line:
    """The last line of a terminal, written by a thread of its own: one step may take long."""

    def __init__(self, stream, progress):
        self.stream, self.progress, self.width = stream, progress, 0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run, name="refattn progress", daemon=True)
        self.thread.start()

    def _run(self):
        seconds, mine = SHOWN_AFTER, False
        while not self.ended.wait(seconds):
            seconds, mine = REDRAWN, mine or _terminal.acquire(blocking=False)
            if mine:
                self._write(str(self.progress))
        if mine:
            self._write("")
            _terminal.release()

    def _write(self, words):
        """Spaces and carriage returns are all it takes: every terminal has them, and nothing is coloured."""
        text = " ".join(words.split())[: _columns(self.stream) - 1]
        try:
            self.stream.write("\r" + text.ljust(self.width) + ("" if text else "\r"))
            self.stream.flush()
        except (OSError, ValueError):  # the terminal is gone
            self.ended.set()
        self.width = len(text)

    def remove(self):
        self.ended.set()
        self.thread.join(1.0)  # a terminal that is stopped (Ctrl-S) does not stop the work's end


def _is_terminal(stream):
    try:
        return stream is not None and stream.isatty()
    except (AttributeError, ValueError):  # another object in its place, or closed
        return False


def _columns(stream):
    """The width of the terminal; that of COLUMNS, or 80, where it does not tell."""
    try:
        columns = os.get_terminal_size(stream.fileno()).columns
    except (AttributeError, OSError, ValueError):
        columns = 0
    return columns or shutil.get_terminal_size().columns


@contextmanager
def _held_back():
    """Ctrl-C within the block is raised at its end. Only where there is a handler that can be put back, and
    only in the main thread: others get no signals.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    caught = []
    signal.signal(signal.SIGINT, lambda *given: caught.append(given))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if caught:
            handler(*caught[0])
