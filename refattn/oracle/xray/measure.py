"""The weights that a kernel gives to each value, read off its output, which is linear in the values."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np

from refattn.oracle.bounds.results import OUTPUT
from refattn.oracle.xray.view import VALUE, W_UV

HALF_AMPLITUDE = 256.0  # of one-hot values in float16, so that small weights are normal numbers
LAMBDA = 3.0


class Measured:
    """What was measured of a kernel.

    Attributes
    ----------
    output, lse : ndarray, (B, H, T, E) and (B, H, T)
        Of the caller's own call; lse None for a kernel that returns none.
    varies : ndarray of bool, (B, H, T)
        Rows in which the same call gave different results.
    weights : ndarray, (B, H, T, S)
    """

    def __init__(self, view, probes, spec):
        self.view, self.probes, self.spec = view, probes, spec
        self.output, self.lse = probes.results("the call itself")
        self._repeat()
        self.expected_output = self._applied(view.weights)
        self.columns = self._right_columns()
        self.weights = self._weights_of_latents() if view.latent else self._weights()

    def _repeat(self):
        self.varies = np.zeros(self.view.shape[:3], bool)
        for _ in range(2):
            output, lse = self.probes.results("the same call again")
            self.varies |= differs(output, self.output).any(-1)
            if lse is not None:
                self.varies |= differs(lse, self.lse)

    # tolerances

    @cached_property
    def tolerance(self):
        """Relative error of a weight that the arithmetic allows, (B, H, T, 1)."""
        view, spec = self.view, self.spec
        u = max(spec.softmax.unit_roundoff, spec.accumulator_roundoff)
        reach = np.abs(np.where(view.exists, view.raw, 0)).max(-1, initial=0.0, keepdims=True)
        size = reach + np.where(np.isfinite(view.lse), np.abs(view.lse), 0.0)[..., None]
        coarse = spec.score.unit_roundoff + spec.scaled_query.unit_roundoff
        dims = self.view.arrays[0].shape[-1]
        score = u * (LAMBDA * (dims**0.5 + 3) * size + 16) + 2 * coarse * size
        return 2 * (score + 2 * spec.weight.unit_roundoff + spec.output.unit_roundoff) + 4 * spec.exp_error

    @cached_property
    def floor(self):
        """Absolute error of a weight, (B, H, T, 1): what underflows in the formats of weights and output."""
        spec = self.spec
        largest = self.view.weights.max(-1, keepdims=True, initial=0.0)
        small = max(spec.weight.half_subnormal_step, 1e-37)
        return 4 * (small * largest + spec.output.half_subnormal_step / self.amplitude) + 1e-30

    @cached_property
    def output_tolerance(self):
        """Absolute error of the output, (B, H, T, E)."""
        size = self._applied(np.abs(self.view.weights), absolute=True)
        spec = self.spec
        return size * self.tolerance + 2 * spec.output.unit_roundoff * np.abs(self.output) + 4 * spec.output.half_subnormal_step

    @property
    def amplitude(self):
        return HALF_AMPLITUDE if self.view.arrays[0].dtype == np.float16 else 1.0

    # weights

    @cached_property
    def value(self):
        return self.view.operand("value")

    def of_heads(self, array):
        """An array (B, K, ...) repeated for the query heads that are looked at."""
        return array[:, self.view.heads // max(self.view.num_heads // array.shape[1], 1)]

    def _applied(self, weights, absolute=False):
        """weights @ value, where weights of 0 hide whatever the value is."""
        value = np.nan_to_num(self.value, nan=0.0, posinf=0.0, neginf=0.0)
        return weights @ self.of_heads(np.abs(value) if absolute else value)

    def _right_columns(self):
        """Columns of the output in which to read weights: those that are right where only some are wrong."""
        with np.errstate(all="ignore"):
            off = ~(np.abs(self.output - self.expected_output) <= self.output_tolerance)
        wrong = off.any((0, 1, 2))
        count = int((~wrong).sum())
        self.wrong_columns = wrong if 0 < count < len(wrong) else np.zeros(len(wrong), bool)
        return np.flatnonzero(~wrong) if count >= max(len(wrong) // 8, 1) else np.arange(len(wrong))

    def _weights(self):
        view, columns = self.view, self.columns
        weights = np.zeros(view.shape)
        of_call = np.array_split(np.arange(view.num_keys), max(math.ceil(view.num_keys / len(columns)), 1))
        for n, keys in enumerate(of_call):
            self.probes.progress(f"one-hot values: call {n + 1} of {len(of_call)}")

            def fill(part, shape, keys=keys):
                values = np.zeros(shape)
                there = keys[keys < shape[-2]]
                values[..., there, columns[: len(there)]] = self.amplitude
                return values

            output = self.probes.output("one-hot values", view.with_array(VALUE, view.stored(VALUE, fill)))
            weights[..., keys] = output[..., columns[: len(keys)]] / self.amplitude
        return weights

    def _weights_of_latents(self):
        """Weights of MLA: the kernel's weighted latents, component by component, solved for the weights
        where there are no more keys than components; else the right weights times one factor a group of keys.
        """
        view = self.view
        w_uv = np.asarray(view.arrays[W_UV])
        rank, columns = w_uv.shape[-1], self.columns
        context = np.zeros((*view.shape[:3], rank))
        for first in range(0, rank, len(columns)):
            taken = np.arange(first, min(first + len(columns), rank))
            probe = np.zeros(w_uv.shape)
            probe[:, columns[: len(taken)], taken] = 1.0
            output = self.probes.output("one-hot up-projections", view.with_array(W_UV, probe.astype(w_uv.dtype)))
            context[..., taken] = output[..., columns[: len(taken)]]
        weights = np.zeros(view.shape)
        for n, s in enumerate(view.sequences):
            latent = np.asarray(view.arrays[2], np.float64).reshape(-1, *view.arrays[2].shape[-2:])[s.entry, : s.num_keys]
            latent = np.nan_to_num(latent)
            off = np.nan_to_num(context[n] - view.weights[n][..., : s.num_keys] @ latent)
            weights[n] = view.weights[n]
            weights[n][..., : s.num_keys] += off @ np.linalg.pinv(latent, rcond=1e-6)
            bad = ~np.isfinite(context[n]).all(-1)
            weights[n][bad] = np.nan
        return weights

    # where weight comes from

    @cached_property
    def sources(self):
        """Shares of each row's weight by the key/value head and by the sequence that the values belong to, and
        from what no sequence holds: (B, H, T, K), (B, H, T, all sequences), (B, H, T).
        """
        view = self.view
        slots = view.slots[VALUE]
        entries = [(part, n) for part, array in enumerate(slots) for n in range(len(array))]
        number = {entry: n for n, entry in enumerate(entries)}
        heads = view.num_kv_heads
        total = heads + len(entries) + 1
        shares = np.zeros((*view.shape[:3], total))
        columns = self.columns
        for first in range(0, total, len(columns)):
            taken = np.arange(first, min(first + len(columns), total))

            def fill(part, shape, taken=taken):
                values = np.zeros(shape)
                for e, what in enumerate(taken):
                    if what < heads:
                        values[:, what, :, columns[e]] = 1.0
                    elif what < heads + len(entries) and entries[what - heads][0] == part:
                        values[entries[what - heads][1], :, :, columns[e]] = 1.0
                return values

            array = view.stored(VALUE, fill)
            if total - 1 in taken:
                array = self._mark_outside(array, columns[np.flatnonzero(taken == total - 1)[0]])
            output = self.probes.output("values that name their head and sequence", view.with_array(VALUE, array))
            shares[..., taken] = output[..., columns[: len(taken)]]
        own = [number[s.part, s.entry] for s in view.sequences]
        return shares[..., :heads], shares[..., heads:-1], shares[..., -1], np.array(own)

    def _mark_outside(self, array, column):
        """1 in a column of what no sequence holds within its length."""
        view = self.view
        flat = array.reshape(-1, array.shape[-1])
        held = np.zeros(len(flat), bool)
        for part, slots in enumerate(view.slots[VALUE]):
            lengths = view.lengths(part)
            for entry, rows in enumerate(slots):
                held[rows[:, : lengths[entry]]] = True
        flat[~held, column] = 1.0
        return array

    @cached_property
    def unexplained(self):
        """Output minus what the measured weights make of the caller's values, over what rounding allows."""
        with np.errstate(all="ignore"):
            left = np.abs(self.output - self._applied(self.weights)) / np.maximum(self.output_tolerance, 1e-300)
        return np.where(self.view.row_exists[..., None], np.nan_to_num(left, nan=np.inf), 0.0)


def differs(a, b):
    return ~((a == b) | (np.isnan(a) & np.isnan(b)))


def result_of(view, results):
    return view.cut(OUTPUT, results[OUTPUT])
