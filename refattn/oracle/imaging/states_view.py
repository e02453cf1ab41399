"""States to be merged, seen as a call whose keys are the states.

A state's lse is its score, its output is its value. What attention has and a merge has not (queries, keys,
masks, lengths) is as in a call without any of them; values differ from row to row.
"""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np

from refattn.calls.dense import DENSE
from refattn.oracle.bounds.results import LSE, OUTPUT
from refattn.oracle.harness.merge_bench import merge_bound
from refattn.oracle.imaging.view import VALUE, Sequence, View
from refattn.oracle.mistakes.wrong_kernel import checked_call, part_outlines

OUTPUTS, LSES = range(2)  # places of the arrays


class StatesView(View):
    """The states of B batch entries, H heads and T rows: P keys of each row.

    Rows whose merged output or lse is not finite (`not_finite`) do not exist: no weights explain them.
    """

    def __init__(self, arrays, options):
        self.arrays, self.options = tuple(arrays), dict(options)
        self.checked = checked_call(*arrays, **options)
        outputs, lses = (np.asarray(array, np.float64) for array in self.arrays)
        *outer, rows = lses.shape[1:] or (1,)
        heads = outer[-1] if outer else 1
        self._states = len(lses), math.prod(outer[:-1]), heads, rows, outputs.shape[-1]
        self.lses = np.moveaxis(lses.reshape(self._states[:-1]), 0, -1)
        self.num_heads = self.num_kv_heads = heads
        self.group_size, self.heads = 1, np.arange(heads)
        self.num_keys, self.num_rows, self.v_head_dim = len(lses), rows, outputs.shape[-1]
        self.sequences = [
            Sequence(0, entry, self.heads, np.arange(rows), rows, self.num_keys, self.num_keys, 0)
            for entry in range(self._states[1])
        ]
        self._bounds = {}
        self._expect()

    @property
    def shape(self):
        return self.lses.shape

    def _expect(self):
        self.visible = ~np.isneginf(self.lses)
        value = self.operand("value")
        with np.errstate(all="ignore"):
            wanted = np.isfinite(value) | ~self.visible[..., None]
            self.not_finite = ~(wanted.all((-1, -2)) & (np.isfinite(self.lses) | ~self.visible).all(-1))
        self.exists = ~self.not_finite[..., None] & np.ones(self.shape, bool)
        self.visible = self.visible & self.exists
        self.raw = self.capped = self.score = np.where(self.visible, self.lses, -np.inf)
        self.raw = np.where(self.visible, self.lses, 0.0)
        self.weights, self.lse = softmax(self.score)
        self.top = self.score.max(-1)

    @property
    def row_exists(self):
        """(B, H, T)"""
        return ~self.not_finite

    def operand(self, name):
        """The values, (B, H, T, P, E)."""
        if name != "value":
            raise ValueError(f"name must be 'value' for states; got name={name!r}.")
        return np.moveaxis(np.asarray(self.arrays[OUTPUTS], np.float64).reshape(self._states), 0, -2)

    @property
    def score_terms(self):
        return 1

    def applied(self, weights, value):
        return (weights[..., None, :] @ value)[..., 0, :]

    def cut(self, result, array):
        """A result of the whole call as (B, H, T) or (B, H, T, E), float64."""
        shape = (*self.shape[:3], self.v_head_dim) if result is OUTPUT else self.shape[:3]
        return np.asarray(array, np.float64).reshape(shape)

    @cached_property
    def _without_states(self):
        """Attention of the same shape without any option, which is asked for rules and options."""
        batch, heads, rows, keys = self.shape
        return part_outlines(DENSE.check(*(np.zeros((batch, heads, n, 1)) for n in (rows, keys, keys))))[0]

    def outline_of(self, n):
        return self._without_states

    def lengths(self, part):
        return self._without_states.kv_lengths

    @property
    def latent(self):
        return False

    # values and scores of our own

    @cached_property
    def slots(self):
        """Places of the values among the rows of `outputs`, as `View.slots`: (B, H, P, T)."""
        states, batch, heads, rows, _ = self._states
        places = np.arange(states * batch * heads * rows).reshape(states, batch, heads, rows)
        return [None, None, [np.moveaxis(places, 0, 2)]]

    def stored(self, which, fill, background=0.0):
        """`outputs` with other numbers, the same in every row: `fill(0, (B, H, P, E))` gives them."""
        states, batch, heads, _, dims = self._states
        values = np.moveaxis(fill(0, (batch, heads, states, dims)), 2, 0)[..., None, :]
        return self._as_outputs(np.broadcast_to(values, self._states))

    def _as_outputs(self, values):
        like = self.arrays[OUTPUTS]
        return values.reshape(like.shape).astype(like.dtype)

    def with_array(self, which, array):
        if which != VALUE:
            raise ValueError(f"which must be {VALUE}, the values, for states; got which={which}.")
        return array, self.arrays[LSES]

    def with_outputs(self, values):
        """The arrays of the call with other outputs, which broadcast to (B, H, T, P, E)."""
        batch, heads, rows, states = self.shape
        whole = np.broadcast_to(values, (batch, heads, rows, states, self.v_head_dim))
        return self._as_outputs(np.moveaxis(whole, -2, 0)), self.arrays[LSES]

    def with_lses(self, lses):
        """The arrays of the call with other lses, (B, H, T, P)."""
        like = self.arrays[LSES]
        return self.arrays[OUTPUTS], np.moveaxis(lses, -1, 0).reshape(like.shape).astype(like.dtype)

    def bounds(self, spec):
        """The exact result, and what rounding may make of it, in the caller's shapes."""
        if spec not in self._bounds:
            self._bounds[spec] = merge_bound(*self.arrays, spec)
        return self._bounds[spec]


def states_agree(arrays, given, spec):
    """Whether results, by record, lie within the rigorous bound of a merge."""
    exact = merge_bound(*arrays, spec)
    for result, right, bound in (
        (OUTPUT, exact.output, exact.output_bound),
        (LSE, exact.lse, exact.lse_bound),
    ):
        if result not in given:
            continue
        got = given[result].astype(np.float64)
        with np.errstate(all="ignore"):
            near = np.isfinite(right) & (np.abs(got - right) <= bound)
        if not ((got == right) | (np.isnan(got) & np.isnan(right)) | near).all():
            return False
    return True


def softmax(scores):
    """Weights and lse of scores (..., P); 0 and -inf where all are -inf."""
    with np.errstate(all="ignore"):
        top = scores.max(-1, keepdims=True)
        w = np.exp(scores - np.where(np.isneginf(top), 0.0, top))
        total = w.sum(-1, keepdims=True)
        weights = w / np.where(total == 0, 1.0, total)
        lse = np.where(total == 0, -np.inf, np.where(np.isneginf(top), 0.0, top) + np.log(total))
    return weights, lse[..., 0]
