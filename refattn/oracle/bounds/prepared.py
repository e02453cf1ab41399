"""A group of query heads with everything about its keys and values that its tiles share, made once.

Scores are always computed in float64. What follows is float32 where that suffices (`single.py`).
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from refattn.oracle.bounds import single
from refattn.oracle.bounds.operands import Group, Operand, finite
from refattn.oracle.bounds.repeated_keys import repeated_keys
from refattn.oracle.bounds.single import Parts


def among(sets, keys: slice) -> list[np.ndarray]:
    """What a run of keys has of sets of equal keys, numbered from its first key."""
    inside = (members[(members >= keys.start) & (members < keys.stop)] - keys.start for members in sets)
    return [members for members in inside if len(members) > 1]


class PreparedGroup:
    """What the tiles of one group share."""

    def __init__(self, group: Group, spec):
        self.group, self._parts = group, {}
        self.dtype = np.dtype(np.float64)
        if single.suffices_for(spec) and group.query.in_single is not None:
            keys, values = group.key.in_single, group.value.in_single
            if keys is not None and values is not None:
                self.dtype = np.dtype(np.float32)
                self._parts[self.dtype] = keys, values
        known = self.dtype == np.float32  # to be finite
        self.key, self.value = (side if known else _finite(side) for side in (group.key, group.value))
        # (length,) of bool: values that are not finite; None where all are
        self.holes = None
        if self.value.exact is not group.value.exact:
            self.holes = ~np.isfinite(group.value.exact).all(axis=1)

    @property
    def repeated_keys(self) -> list[np.ndarray]:
        """The index sets of equal keys."""
        return self.group.key.repeated

    @cached_property
    def repeated_pairs(self) -> list[np.ndarray]:
        """Those of equal keys with equal values."""
        if not self.repeated_keys:
            return []
        sides = (finite(side.exact) for side in (self.group.key, self.group.value))
        return repeated_keys(np.concatenate(list(sides), axis=1))

    def parts(self, dtype) -> tuple[Parts, Parts]:
        """Keys and values of all tiles, in their dtype."""
        if dtype not in self._parts:
            sides = (self.key, self.value)
            self._parts[dtype] = tuple(Parts.of(side.exact.astype(dtype, copy=False)) for side in sides)
        return self._parts[dtype]

    def latent(self, dtype) -> Parts:
        """The latents of the absorbed form, in the dtype of a tile."""
        latent = self.group.latent.latent
        return latent.in_single if dtype == np.float32 else Parts.of(latent.exact.astype(dtype, copy=False))

    @cached_property
    def wide_key(self):
        """The keys as they are, in float64."""
        return self.group.key.exact.astype(np.float64, copy=False)

    def largest_product(self, query):
        """At most this is every |q_d k_jd|."""
        return float(np.abs(query.exact).max(initial=0.0)) * self.largest_key

    @cached_property
    def largest_key(self):
        key, _ = self.parts(self.dtype)
        return float(key.magnitude.max(initial=0.0))


def _finite(operand):
    """The operand with 0 for NaN and infinities; its own matrix where there are none."""
    return Operand(finite(operand.exact), *operand.parts[1:])
