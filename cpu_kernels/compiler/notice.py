"""One line on stderr when compiling keeps the user waiting."""

import contextlib
import sys
import threading
import time

PATIENCE = 1.0  # seconds of compiling before the line appears


class CompileNotice:
    """Says once per process that compiling takes its time, as soon as it has taken `PATIENCE` in total.

    Called under Numba's compiler lock, hence by one thread at a time.
    """

    def __init__(self):
        self.spent = 0.0
        self.began = None
        self.timer = None
        self.said = False
        self.promised = False  # the line said that the code is kept

    def compiling(self, destination):
        self.compiled()  # the last compilation may have failed half way
        self.began = time.monotonic()
        if not self.said:
            self.timer = threading.Timer(max(0.0, PATIENCE - self.spent), self._say, (destination,))
            self.timer.daemon = True
            with contextlib.suppress(
                RuntimeError
            ):  # no more threads: a limit, the end of the process, a subinterpreter
                self.timer.start()

    def compiled(self):
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.began is not None:
            self.spent += time.monotonic() - self.began
            self.began = None

    def not_kept(self, destination):
        """Takes back that the code is kept, if that was said, once."""
        if self.promised:
            self.promised = False
            self._print(f"cpu_kernels: compiled code is {destination}")

    def _say(self, destination):
        if not self.said:
            self.said, self.promised = True, destination.startswith("kept")
            self._print(f"cpu_kernels: compiling for this CPU, once ({destination}) ...")

    def _print(self, line):
        if sys.stderr is not None:
            with contextlib.suppress(OSError, ValueError):  # it is closed, or the disk it goes to is full
                print(line, file=sys.stderr, flush=True)


notice = CompileNotice()
