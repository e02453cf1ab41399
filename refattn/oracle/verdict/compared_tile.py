"""One block of rows of a result beside the exact one: what every tier of the verdict reads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from refattn.oracle.bounds.bound import ResultBound
from refattn.oracle.bounds.lean import coarse_key
from refattn.oracle.bounds.results import Result
from refattn.oracle.bounds.row_blocks import Place


@dataclass
class ComparedTile:
    """Arrays (R, C); C is 1 where the result has one number a row."""

    result: Result
    place: Place  # where the rows lie in the call
    got: np.ndarray
    expected: np.ndarray
    bound: ResultBound
    finite: np.ndarray  # both are finite and to be compared
    # wrong, lost, outside: NaN or infinities misplaced; such in place of a finite result, which an overflow
    # may explain; beyond every visible value
    wrong: np.ndarray
    lost: np.ndarray
    outside: np.ndarray
    empty: np.ndarray  # (R,) rows that see no key
    coarse: bool = False  # the last bits of `expected` may be those of a reference in float64

    @cached_property
    def unclaimed(self):
        return self.bound.hard == np.inf

    @cached_property
    def claimed(self):
        """Compared with a bound."""
        return self.finite & (self.bound.hard < np.inf)

    @cached_property
    def error(self):
        return np.where(self.finite, np.abs(self.got - self.expected), 0.0)

    def use_of(self, limit):
        """Error over a bound."""
        return np.where(self.error <= 0, 0.0, np.where(self.claimed, self.error / limit, 0.0))

    @cached_property
    def usual(self):
        """Errors with a known deviation."""
        return self.finite & (self.bound.sigma > 0) & (self.bound.sigma < np.inf)

    @cached_property
    def usual_error(self):
        """Signed, 0 where no deviation is known."""
        return np.where(self.usual, self.got - self.expected, 0.0)

    @cached_property
    def over_sigma(self):
        """1 / sigma, 0 where it is not known."""
        return np.where(self.usual, 1.0 / np.where(self.usual, self.bound.sigma, 1.0), 0.0)

    @property
    def deviation(self):
        """Signed error over sigma."""
        return np.where(
            self.usual, (self.got - self.expected) / np.where(self.usual, self.bound.sigma, 1.0), 0.0
        )

    @property
    def effective(self):
        """How many independent errors each row adds, (R,): equal rows have equal errors and count once."""
        rows = np.copysign(coarse_key(self.expected), self.expected) if self.coarse else self.expected
        return np.where(_first_occurrence(rows) & self.usual.any(axis=1), self.bound.effective, 0.0)


def _first_occurrence(expected):
    """Rows that are not a copy of an earlier one, (R,)."""
    if expected.shape[1] == 0 or len(expected) == 0:
        return np.ones(len(expected), dtype=bool)
    rows = np.ascontiguousarray(expected).view(np.dtype((np.void, 8 * expected.shape[1]))).ravel()
    first = np.zeros(len(expected), dtype=bool)
    first[np.unique(rows, return_index=True)[1]] = True
    return first
