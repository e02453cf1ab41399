"""What parts of a statistical bound add up to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Errors:
    """One part of the errors of the output, (R, E), in units of the row (section 4): parts add up."""

    square: np.ndarray  # sum of the squares of what is independent, for Hoeffding's bound
    linear: np.ndarray  # what is not independent
    variance: np.ndarray  # variance of both, for sigma

    def __add__(self, other):
        return Errors(self.square + other.square, self.linear + other.linear, self.variance + other.variance)
