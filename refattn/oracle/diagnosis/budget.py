"""The time a search may take, checked between its units of work."""

from __future__ import annotations

import numbers
import time
from collections.abc import Callable
from contextlib import contextmanager

# of a measured cost, kept where the next unit is cheaper: one slow moment of the machine does not end a
# search
FADING = 0.7


class Budget:
    """Starts a unit of work only if what such units have cost lately fits into what is left of its
    seconds, as `clock` counts them (`time.monotonic`, or the count of a test).

    So a search ends within its time plus one unit of a kind that was never measured. `costs` holds the
    seconds for a unit of size 1, by kind of work; `reserved` seconds are kept for what comes after this
    part of the search; the parts that time cut short are remembered in `unfinished`.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic):
        self.seconds, self.clock = seconds, clock
        self.start = clock()
        self.costs: dict[str, float] = {}
        self.reserved = 0.0
        self.unfinished: list[str] = []

    @property
    def spent(self) -> float:
        return self.clock() - self.start

    @property
    def left(self) -> float:
        return self.seconds - self.reserved - self.spent

    def allows(self, kind: str, size: float = 1.0) -> bool:
        """Whether a unit of this kind and size fits into what is left."""
        return self.left > 0 and self.left >= size * self.costs.get(kind, 0.0)

    def run(self, kind: str, work: Callable, *arguments, size: float = 1.0):
        """Do a unit of work whatever is left, and remember what it cost."""
        before = self.clock()
        try:
            return work(*arguments)
        finally:
            self.costs[kind] = max(FADING * self.costs.get(kind, 0.0), (self.clock() - before) / size)

    def attempt(self, kind: str, part: str, work: Callable, *arguments, size: float = 1.0):
        """The same if it fits, else None; `part` names what stays unfinished then."""
        if self.allows(kind, size):
            return self.run(kind, work, *arguments, size=size)
        self.ends(part)
        return None

    @contextmanager
    def keeping(self, share: float):
        """Within it, a share of what is left is kept for what follows."""
        before = self.reserved
        self.reserved += share * max(self.left, 0.0)
        yield
        self.reserved = before

    def ends(self, part: str):
        """Say that time cut this part of the search short."""
        if part not in self.unfinished:
            self.unfinished.append(part)


def seconds_given(seconds) -> float:
    """`seconds` of a caller, checked."""
    if not isinstance(seconds, numbers.Real) or isinstance(seconds, bool):
        raise TypeError(f"seconds must be a number; got seconds={seconds!r}.")
    if not seconds >= 0:  # NaN included
        raise ValueError(f"seconds must be at least 0; got seconds={seconds!r}.")
    return float(seconds)
