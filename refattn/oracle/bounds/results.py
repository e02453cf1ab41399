"""What a call returns: one record for each array, in the order in which the functions return them.

What is particular about a result is data on its record. Whatever bounds, compares or reports results loops
over `RESULTS` and asks the record, never its name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from refattn.oracle.arithmetic.spec import KernelSpec


@dataclass(frozen=True)
class Result:
    """One array that a call returns. Its rows are what its first two axes count."""

    name: str
    written_in: str  # the field of the spec with the format it is written in
    axes: tuple[str, ...]  # what its last axes count; batch axes come before them
    empty_row: float  # what it is in a row that sees no key
    principal: bool  # a summary speaks of it unless only another result failed
    # each element is a weighted mean of the visible values: it lies in their range, and infinite values
    # decide it
    averages_values: bool
    inf_is_nan: bool  # +inf and NaN say the same: a score of the row is +inf or NaN
    # the root mean square of error / sigma is judged. Not where rows share the few errors they have, so that
    # it says no more than the tight bound.
    aggregate: bool
    follows_maximum: bool  # it holds the row maximum, so that rows of the same maximum share an error
    # the signs under which errors are added up to find a bias: "up", "away" from zero
    leans: tuple[str, ...]

    @property
    def has_dims(self) -> bool:
        """Whether a row holds several numbers; with one number a row the whole array lacks that axis."""
        return self.axes[-1] == "dim"

    def shape(self, output_shape) -> tuple[int, ...]:
        """Shape of the whole array in a call with an output of that shape."""
        return output_shape if self.has_dims else output_shape[:-1]

    def row_shape(self, shape) -> tuple[int, ...]:
        """Shape of one number a row for an array of this shape."""
        return shape[:-1] if self.has_dims else shape

    def form(self, spec: KernelSpec):
        """The number format it is written in."""
        return getattr(spec, self.written_in)


OUTPUT = Result(
    name="output",
    written_in="output",
    axes=("head", "row", "dim"),
    empty_row=0.0,
    principal=True,
    averages_values=True,
    inf_is_nan=False,
    aggregate=True,
    follows_maximum=False,
    leans=("up", "away"),
)
LSE = Result(
    name="lse",
    written_in="lse",
    axes=("head", "row"),
    empty_row=-math.inf,
    principal=False,
    averages_values=False,
    inf_is_nan=True,
    aggregate=False,
    follows_maximum=True,
    leans=("up",),
)
RESULTS = (OUTPUT, LSE)


def handed_over(*arrays) -> dict[Result, np.ndarray]:
    """Those of the results that are there, from one array or None for each of `RESULTS`."""
    return {result: array for result, array in zip(RESULTS, arrays, strict=True) if array is not None}


def columns(array: np.ndarray) -> np.ndarray:
    """Numbers of R rows as (R, C): one column where there is one number a row."""
    return array[:, None] if array.ndim == 1 else array
