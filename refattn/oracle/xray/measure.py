"""The weights that a kernel gives to each value, read off its output, which is linear in the values."""

from __future__ import annotations

import copy
import math
from functools import cached_property

import numpy as np

from refattn.oracle.bounds.results import OUTPUT
from refattn.oracle.xray.reading import Reading
from refattn.oracle.xray.view import KV_LATENT, VALUE, W_UK, W_UV

MOST_PAGE_CALLS = 24
MOST_COLUMN_PAIRS = 2**25  # of rows and pairs of columns that are compared
MOST_LATENT_CALLS = 96  # to read weights head by head


class Measured(Reading):
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
        super().__init__(view, spec, *probes.results("the call itself"))
        self.probes = probes
        self.by_groups = False  # weights of MLA are known up to one factor a group of keys
        self._repeat()
        self._tell_columns_apart()
        self.weights = self._weights_of_latents() if view.latent else self._weights()

    def _tell_columns_apart(self):
        """Columns in which weights are read: such as are treated alike. `other_columns` are the rest, if they are many."""
        width = len(self.wrong_columns)
        self.other_columns = np.zeros(width, bool)
        if self.wrong_columns.any():
            self.other_columns = self.wrong_columns & ~self.dead_columns
        elif not self.view.latent and self.view.num_keys:
            sums = self.probes.output(
                "values of 1 in every column",
                self.view.with_array(
                    VALUE, self.view.stored(VALUE, lambda part, shape: np.ones(shape), 1.0)
                ),
            )
            with np.errstate(all="ignore"):
                off = np.abs(sums[..., None, :] / sums[..., :, None] - 1)  # (B, H, T, E, E)
                alike = (
                    ~(off > 2 * self.tolerance[..., None]).any((0, 1, 2))
                    if sums.size * width < MOST_COLUMN_PAIRS
                    else np.ones((width, width), bool)
                )
            most = alike.sum(1).argmax()
            if not alike[most].all():
                self.columns = np.flatnonzero(alike[most])
                self.other_columns = ~alike[most]
                self.wrong_columns = self.other_columns

    def in_other_columns(self):
        """The same measured in the other columns; None where there are too few of them."""
        columns = np.flatnonzero(self.other_columns)
        if len(columns) < max(len(self.other_columns) // 8, 2) or self.view.latent:
            return None
        other = copy.copy(self)
        other.__dict__.pop("unexplained", None)
        other.columns, other.other_columns = columns, ~self.other_columns
        other.wrong_columns, other.dead_columns = (
            ~self.other_columns,
            np.zeros(len(self.other_columns), bool),
        )
        other.weights = other._weights()
        return other

    def _repeat(self):
        for _ in range(2):
            output, lse = self.probes.results("the same call again")
            self.varies |= differs(output, self.output).any(-1)
            if lse is not None:
                self.varies |= differs(lse, self.lse)

    # weights

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
        """Weights of MLA. The kernel's weighted latents come first, component by component: where only some of
        them are wrong, that is the fault. Latents are then made one-hot and the up-projections of the keys
        such that every key stays what it is; where there are more keys than components of a latent, the right weights
        times one factor a group of keys are fitted to the weighted latents.
        """
        view = self.view
        context = self._context(view.arrays, "one-hot up-projections")
        latents = [self._latent(s) for s in view.sequences]
        right = np.zeros_like(context)
        size = np.zeros_like(context)
        for n, latent in enumerate(latents):
            weights = view.weights[n][..., : len(latent)]
            right[n], size[n] = weights @ latent, weights @ np.abs(latent)
        with np.errstate(all="ignore"):
            off = ~(np.abs(context - right) <= 2 * self.tolerance * size + 1e-12)
        wrong = off.any((0, 1, 2))
        self.wrong_latents = wrong if 0 < wrong.sum() < 0.9 * len(wrong) else np.zeros(len(wrong), bool)
        if not wrong.any() or self.wrong_latents.any():
            return view.weights.copy()
        rank = context.shape[-1]
        weights = np.full(view.shape, np.nan)
        for n, (s, latent) in enumerate(zip(view.sequences, latents, strict=True)):
            if s.num_keys <= rank:
                weights[n] = self._one_hot_latents(n, s, latent)
            elif self._calls_by_head(s) <= MOST_LATENT_CALLS:
                weights[n] = self._head_by_head(n, s, latent)
            else:
                weights[n][..., : len(latent)] = self._by_groups(n, context[n], latent)
                weights[n][..., len(latent) :] = 0.0
                self.by_groups = True
        return weights

    def _calls_by_head(self, s):
        """Calls that `_head_by_head` takes for one sequence; many where it cannot work."""
        nope, rank = np.shape(self.view.arrays[W_UK])[-2:]
        free = min(rank - nope, len(self.columns))
        return len(self.view.heads) * -(-s.num_keys // free) if free > 0 else 2 * MOST_LATENT_CALLS

    def _head_by_head(self, n, s, latent):
        """Weights of one sequence with more keys than a latent has components: the first components hold the keys of one
        head, the others are one-hot for some of the keys.
        """
        view, columns = self.view, self.columns
        arrays = [np.asarray(array) for array in view.arrays]
        w_uk, w_uv = (np.asarray(arrays[which], np.float64) for which in (W_UK, W_UV))
        nope, rank = w_uk.shape[-2:]
        free = min(rank - nope, len(columns))
        weights = np.zeros(view.shape[1:])
        for place, head in enumerate(view.heads):
            keys = latent @ w_uk[head].T  # (S, N)
            up = np.zeros_like(w_uk)
            up[:, np.arange(nope), np.arange(nope)] = 1.0
            for first in range(0, s.num_keys, free):
                there = np.arange(first, min(first + free, s.num_keys))
                code = np.zeros(arrays[KV_LATENT].shape)
                own = code.reshape(-1, *code.shape[-2:])[s.entry]
                own[: s.num_keys, :nope] = keys
                own[there, nope + np.arange(len(there))] = 1.0
                down = np.zeros_like(w_uv)
                down[:, columns[: len(there)], nope + np.arange(len(there))] = 1.0
                changed = list(arrays)
                for which, array in ((KV_LATENT, code), (W_UK, up), (W_UV, down)):
                    changed[which] = array.astype(arrays[which].dtype)
                output = self.probes.output("one-hot latents, one head at a time", tuple(changed))
                weights[place, :, there] = output[n, place][:, columns[: len(there)]].T
        return weights

    def _latent(self, s):
        latent = np.asarray(self.view.arrays[KV_LATENT], np.float64)
        return np.nan_to_num(latent.reshape(-1, *latent.shape[-2:])[s.entry, : s.num_keys])

    def _context(self, arrays, why):
        """The weighted latents, (B, H, T, C), of a call with these arrays."""
        view, columns = self.view, self.columns
        w_uv = np.asarray(view.arrays[W_UV])
        context = np.zeros((*view.shape[:3], w_uv.shape[-1]))
        for first in range(0, w_uv.shape[-1], len(columns)):
            taken = np.arange(first, min(first + len(columns), w_uv.shape[-1]))
            probe = np.zeros(w_uv.shape)
            probe[:, columns[: len(taken)], taken] = 1.0
            with_probe = tuple(
                probe.astype(w_uv.dtype) if n == W_UV else array for n, array in enumerate(arrays)
            )
            context[..., taken] = self.probes.output(why, with_probe)[..., columns[: len(taken)]]
        return context

    def _one_hot_latents(self, n, s, latent):
        """Weights of one sequence: key j is the latent e_j, and the up-projections of keys hold the keys."""
        view = self.view
        arrays = [np.asarray(array) for array in view.arrays]
        one_hot = np.zeros(arrays[KV_LATENT].shape)
        one_hot.reshape(-1, *one_hot.shape[-2:])[s.entry][np.arange(s.num_keys), np.arange(s.num_keys)] = 1.0
        w_uk = np.asarray(arrays[W_UK], np.float64)
        keys = np.zeros_like(w_uk)
        keys[..., : s.num_keys] = w_uk @ latent.T  # [H, N, C] @ [C, S] -> [H, N, S]
        changed = list(arrays)
        changed[KV_LATENT], changed[W_UK] = (
            one_hot.astype(arrays[KV_LATENT].dtype),
            keys.astype(arrays[W_UK].dtype),
        )
        weights = np.zeros(view.shape[1:])
        weights[..., : s.num_keys] = self._context(changed, "one-hot latents")[n][..., : s.num_keys]
        return weights

    def _by_groups(self, n, context, latent):
        """Right weights times one factor for each group of keys, (H, T, S)."""
        weights = self.view.weights[n][..., : len(latent)].copy()
        groups = max(min(latent.shape[1] // 3, len(latent)), 1)
        edges = np.linspace(0, len(latent), groups, endpoint=False).astype(int)
        for h, t in np.ndindex(context.shape[:2]):
            parts = np.add.reduceat(weights[h, t][:, None] * latent, edges, axis=0)  # (groups, C)
            some = np.abs(parts).max(-1) > 1e-9
            if not np.isfinite(context[h, t]).all():
                weights[h, t] = np.nan
            elif some.any():
                factors = np.linalg.lstsq(parts[some].T, context[h, t], rcond=1e-9)[0]
                factors = np.where(
                    np.abs(factors - 1) < 0.02, 1.0, np.where(np.abs(factors) < 0.02, 0.0, factors)
                )
                all_factors = np.ones(len(edges))
                all_factors[some] = factors
                weights[h, t] *= np.repeat(all_factors, np.diff([*edges, len(latent)]))
        return weights

    # where weight comes from

    @cached_property
    def sources(self):
        """Shares of each row's weight by the key/value head and by the sequence that the values belong to, and
        from what no sequence holds, slots past the length and others: (B, H, T, K), (B, H, T, all sequences), (B, H, T, 2).
        """
        view = self.view
        slots = view.slots[VALUE]
        entries = [(part, n) for part, array in enumerate(slots) for n in range(len(array))]
        number = {entry: n for n, entry in enumerate(entries)}
        heads = view.num_kv_heads
        total = heads + len(entries) + 2
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
            for which in (total - 2, total - 1):
                if which in taken:
                    array = self._mark_outside(
                        array, columns[np.flatnonzero(taken == which)[0]], tail=which == total - 2
                    )
            output = self.probes.output(
                "values that name their head and sequence", view.with_array(VALUE, array)
            )
            shares[..., taken] = output[..., columns[: len(taken)]]
        own = [number[s.part, s.entry] for s in view.sequences]
        return shares[..., :heads], shares[..., heads:-2], shares[..., -2:], np.array(own)

    @cached_property
    def pages_read(self):
        """Weight of each row on each physical page, (B, H, T, P); None where there are no pages or too many."""
        view, columns = self.view, self.columns
        if view.pages is None:
            return None
        value = np.asarray(view.arrays[VALUE])
        pages = len(value)
        if pages > MOST_PAGE_CALLS * len(columns):
            return None
        weights = np.zeros((*view.shape[:3], pages))
        for first in range(0, pages, len(columns)):
            taken = np.arange(first, min(first + len(columns), pages))
            probe = np.zeros(value.shape)
            for e, page in enumerate(taken):
                probe[page, ..., columns[e]] = 1.0
            output = self.probes.output(
                "values that name their page", view.with_array(VALUE, probe.astype(value.dtype))
            )
            weights[..., taken] = output[..., columns[: len(taken)]]
        return np.nan_to_num(weights)

    def _mark_outside(self, array, column, tail):
        """1 in a column of what no sequence holds within its length: slots behind the length in what a sequence holds in part
        (`tail`), or all others.
        """
        view = self.view
        flat = array.reshape(-1, array.shape[-1])
        held = np.zeros(len(flat), bool)
        begun = np.zeros(array.shape[:-1], bool)
        for part, slots in enumerate(view.slots[VALUE]):
            lengths = view.lengths(part)
            for entry, rows in enumerate(slots):
                held[rows[:, : lengths[entry]]] = True
        held_there = held.reshape(array.shape[:-1])
        begun[...] = held_there.any(-1, keepdims=True)  # pages, or rows of keys, with some key that is held
        mine = ~held & (begun.reshape(-1) if tail else ~begun.reshape(-1))
        flat[mine, column] = 1.0
        return array


def differs(a, b):
    return ~((a == b) | (np.isnan(a) & np.isnan(b)))
