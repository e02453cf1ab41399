"""The weights that a kernel gives to each value, read off its output, which is linear in the values."""

from __future__ import annotations

import copy
from functools import cached_property

import numpy as np

from refattn.oracle.imaging.first_call import differing_rows
from refattn.oracle.imaging.latent_codes import shortest_code
from refattn.oracle.imaging.reading import Reading
from refattn.oracle.imaging.view import KV_LATENT, VALUE, W_UK, W_UV

MOST_PAGE_CALLS = 24
MOST_POOL_CALLS = 160
MOST_COLUMN_PAIRS = 2**25  # of rows and pairs of columns that are compared
MOST_LATENT_CALLS = 96  # to read weights head by head
NEAR = 0.02  # of a factor of a group of keys: what is as near to 1, or 0, is taken for it


class Measured(Reading):
    """What was measured of a kernel, as far as the time of its probes allows.

    Weights that were not measured are the right ones, and not `determined`.
    """

    def __init__(self, view, probes, spec):
        super().__init__(view, spec, *probes.results("the call itself"))
        self.probes, self.until, self.unfinished = probes, probes.end, probes.unfinished
        self._repeat()
        self.added = self._without_values()
        self._tell_columns_apart()
        self.weights = self._weights_of_latents() if view.latent else self._weights()

    def _repeat(self):
        if not self.probes.have_time("the same call again, to see races", 2):
            return
        for _ in range(2):
            output, lse = self.probes.results("the same call again")
            self.varies |= differing_rows(self, output, lse)

    def _without_values(self):
        """Rows (B, H, T) that are not 0 where all values are."""
        view, which = self.view, W_UV if self.view.latent else VALUE
        if view.checked.form.joins or not self.probes.have_time("values of 0"):
            return self.added
        nothing = np.zeros_like(np.asarray(view.arrays[which]))
        output = self.probes.output("values of 0", view.with_array(which, nothing))
        return (np.isfinite(output) & (output != 0)).any(-1)

    def _tell_columns_apart(self):
        """Read weights in columns that are treated alike; look at the rest by itself."""
        if self.wrong_columns.any():
            self.other_columns = self.wrong_columns & ~self.dead_columns
            return
        alike = self._alike()
        most = alike.sum(1).argmax()
        if not alike[most].all():
            self.columns = np.flatnonzero(alike[most])
            self.other_columns = ~alike[most]
            self.wrong_columns = self.other_columns

    def _alike(self):
        """Pairs of columns that hold the same sum of weights in every row, (E, E)."""
        view, width = self.view, len(self.wrong_columns)
        alike = np.ones((width, width), bool)
        few = self.output.size * width < MOST_COLUMN_PAIRS
        if view.latent or not view.num_keys or not few or not self.probes.have_time("columns treated alike"):
            return alike
        ones = view.stored(VALUE, lambda part, shape: np.ones(shape), 1.0)
        sums = self.probes.output("values of 1 in every column", view.with_array(VALUE, ones))
        with np.errstate(all="ignore"):
            for column, others in enumerate(alike):
                off = np.abs(sums / sums[..., column, None] - 1)
                others[:] = ~(off > 2 * self.tolerance).any((0, 1, 2))
        return alike

    def in_other_columns(self):
        """The same measured in the other columns; None where they are few, or for want of time."""
        columns = np.flatnonzero(self.other_columns)
        if len(columns) < max(len(self.other_columns) // 8, 2) or self.view.latent:
            return None
        if not self.probes.have_time("weights in other columns", -(-self.view.num_keys // len(columns))):
            return None
        other = copy.copy(self)
        other.__dict__.pop("unexplained", None)
        other.columns, other.other_columns = columns, ~self.other_columns
        other.wrong_columns = other.other_columns
        other.dead_columns = np.zeros(len(self.other_columns), bool)
        other.weights = other._weights()
        return other

    # weights

    def _weights(self):
        """Weights from one-hot values; with a column of ones beside them where rows of zeros make NaN."""
        weights = self._one_hot(self.columns)
        lost = ~np.isfinite(weights).all(-1) & np.isfinite(self.output).all(-1)
        if lost.any() and len(self.columns) > 1:
            again = self._one_hot(self.columns[1:], ones=self.columns[0])
            if (~np.isfinite(again).all(-1) & lost).sum() < lost.sum():
                self.nan_of_zeros, weights = lost, again
        return weights

    def _one_hot(self, columns, ones=None):
        view = self.view
        weights = np.zeros(view.shape)
        calls = max(-(-view.num_keys // len(columns)), 1)
        for keys in np.array_split(np.arange(view.num_keys), calls):
            if len(keys) and not self.probes.have_time(f"one-hot values, from key {keys[0]} on"):
                weights[..., keys[0] :] = view.weights[..., keys[0] :]
                self._leave_out(view.key >= keys[0])
                break

            def fill(part, shape, keys=keys):
                values = np.zeros(shape)
                there = keys[keys < shape[-2]]
                if ones is not None:
                    values[..., ones] = self.amplitude
                values[..., there, columns[: len(there)]] = self.amplitude
                return values

            output = self.probes.output("one-hot values", view.with_array(VALUE, view.stored(VALUE, fill)))
            weights[..., keys] = output[..., columns[: len(keys)]] / self.amplitude
        return weights

    def _leave_out(self, pairs):
        """Weights of these pairs are not known, so that rows need not be what the weights make of them."""
        self.determined = self.determined & ~pairs
        self.left_out = self.left_out | (np.broadcast_to(pairs, self.view.shape) & self.view.exists).any(-1)
        self.unexplained = np.zeros_like(self.output)

    def _weights_of_latents(self):
        """Weights of MLA. The kernel's weighted latents come first, component by component: where only some
        of them are wrong, that is the fault. Latents are then made one-hot and the up-projections of the
        keys such that every key stays what it is; where there are more keys than components of a latent, the
        right weights times one factor a group of keys are fitted to the weighted latents.
        """
        view = self.view
        weights = view.weights.copy()
        rank = np.shape(view.arrays[W_UV])[-1]
        calls = -(-rank // len(self.columns))
        if not self.probes.have_time("one-hot up-projections", calls):
            self._leave_out(view.exists)
            return weights
        context = self._context(view.arrays, "one-hot up-projections")
        latents = [self._latent(s) for s in view.sequences]
        wrong = self._wrong_components(context, latents)
        self.wrong_latents = wrong if 0 < wrong.sum() < 0.9 * len(wrong) else np.zeros(len(wrong), bool)
        if not wrong.any() or self.wrong_latents.any():
            return weights
        for n, (s, latent) in enumerate(zip(view.sequences, latents, strict=True)):
            everywhere, one_hot = np.arange(rank), s.num_keys <= rank
            code = shortest_code(view, s, everywhere, self.columns, by_scores=False)
            if code.calls > MOST_LATENT_CALLS:
                code = shortest_code(view, s, everywhere, self.columns)
            if not one_hot and code.calls > MOST_LATENT_CALLS:
                weights[n] = 0.0
                weights[n][..., : len(latent)] = self._by_groups(n, context[n], latent)
            elif self.probes.have_time(f"one-hot latents of sequence {n}", calls if one_hot else code.calls):
                weights[n] = self._one_hot_latents(n, s, latent) if one_hot else self._with_code(n, code)
            else:
                self._leave_out(np.arange(len(weights)).reshape(-1, 1, 1, 1) == n)
        return weights

    def _wrong_components(self, context, latents):
        """Components of the weighted latents (B, H, T, C) that are wrong in some row."""
        right, size = np.zeros_like(context), np.zeros_like(context)
        for n, latent in enumerate(latents):
            weights = self.view.weights[n][..., : len(latent)]
            right[n], size[n] = weights @ latent, weights @ np.abs(latent)
        with np.errstate(all="ignore"):
            off = ~(np.abs(context - right) <= 2 * self.tolerance * size + 1e-12)
        return _filled(off.any((0, 1, 2)))

    def in_wrong_components(self):
        """The same as the components of the weighted latents see it that are wrong where others are right;
        None where they are too few to read weights in, or for want of time.
        """
        view, components = self.view, np.flatnonzero(self.wrong_latents)
        codes = [shortest_code(view, s, components, self.columns) for s in view.sequences]
        calls = sum(code.calls for code in codes)
        if calls > MOST_LATENT_CALLS or not self.probes.have_time("weights in components of latents", calls):
            return None
        other = copy.copy(self)
        other.wrong_latents, other.partial = np.zeros_like(self.wrong_latents), True
        other.weights = view.weights.copy()
        context = np.zeros((*view.shape[:3], len(self.wrong_latents)))
        for n, (s, code) in enumerate(zip(view.sequences, codes, strict=True)):
            other.weights[n] = self._with_code(n, code)
            latent = self._latent(s)
            for weights, of in ((view.weights[n], ~self.wrong_latents), (other.weights[n], components)):
                context[n][..., of] = (weights[..., : s.num_keys] @ latent)[..., of]
        w_uv = np.asarray(view.arrays[W_UV], np.float64)[view.heads]
        with np.errstate(all="ignore"):
            left = np.abs(context @ w_uv.swapaxes(-1, -2) - self.output) / self.output_tolerance
        other.unexplained = np.where(view.row_exists[..., None], np.nan_to_num(left, nan=np.inf), 0.0)
        return other

    def _with_code(self, n, code):
        """Weights of one sequence, (H, T, S), as a code reads them."""
        weights = np.zeros(self.view.shape[1:])
        for heads, keys, changes in code.probes():
            output = self.probes.output("one-hot latents", self._with(self.view.arrays, changes))[n]
            there = output[heads][..., self.columns[: len(keys)]]
            weights[np.ix_(heads, np.arange(weights.shape[1]), keys)] = there
        return weights

    def _latent(self, s):
        latent = np.asarray(self.view.arrays[KV_LATENT], np.float64)
        return np.nan_to_num(latent.reshape(-1, *latent.shape[-2:])[s.entry, : s.num_keys])

    def _with(self, arrays, changes):
        """Arrays with others in their places, of the caller's dtypes."""
        changed = list(arrays)
        for which, array in changes.items():
            changed[which] = array.astype(np.asarray(arrays[which]).dtype)
        return tuple(changed)

    def _context(self, arrays, why):
        """The weighted latents, (B, H, T, C), of a call with these arrays."""
        shape, columns = np.shape(self.view.arrays[W_UV]), self.columns
        context = np.zeros((*self.view.shape[:3], shape[-1]))
        for taken in _chunks(shape[-1], len(columns)):
            probe = np.zeros(shape)
            probe[:, columns[: len(taken)], taken] = 1.0
            output = self.probes.output(why, self._with(arrays, {W_UV: probe}))
            context[..., taken] = output[..., columns[: len(taken)]]
        return context

    def _one_hot_latents(self, n, s, latent):
        """Weights of one sequence, (H, T, S): key j is the latent e_j, the up-projections hold the keys."""
        view = self.view
        w_uk = np.asarray(view.arrays[W_UK], np.float64)
        one_hot, keys = np.zeros(np.shape(view.arrays[KV_LATENT])), np.zeros_like(w_uk)
        each = np.arange(s.num_keys)
        one_hot.reshape(-1, *one_hot.shape[-2:])[s.entry][each, each] = 1.0
        keys[..., : s.num_keys] = w_uk @ latent.T  # [H, N, C] @ [C, S]
        changed = self._with(view.arrays, {KV_LATENT: one_hot, W_UK: keys})
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
                factors = np.ones(len(edges))
                factors[some] = np.linalg.lstsq(parts[some].T, context[h, t], rcond=1e-9)[0]
                for round_number in (1.0, 0.0):
                    factors[np.abs(factors - round_number) < NEAR] = round_number
                weights[h, t] *= np.repeat(factors, np.diff([*edges, len(latent)]))
        return weights

    # where weight comes from

    @cached_property
    def sources(self):
        """Shares of each row's weight by the key/value head and by the sequence that the values belong to,
        and from what no sequence holds, slots past the length and others: (B, H, T, K), (B, H, T, all
        sequences), (B, H, T, 2); and the number of each sequence that is looked at, (B,). None for want of
        time.
        """
        view, columns, heads = self.view, self.columns, self.view.num_kv_heads
        entries = [(part, n) for part, array in enumerate(view.slots[VALUE]) for n in range(len(array))]
        total = heads + len(entries) + 2
        chunks = _chunks(total, len(columns))
        if not self.probes.have_time("values that name their head and sequence", len(chunks)):
            return None
        shares = np.zeros((*view.shape[:3], total))
        for taken in chunks:

            def fill(part, shape, taken=taken):
                values = np.zeros(shape)
                for column, what in zip(columns, taken):
                    if what < heads:
                        values[:, what, :, column] = 1.0
                return values

            array = view.stored(VALUE, fill)
            for column, what in zip(columns, taken):
                if heads <= what < total - 2:  # not by `fill`: sequences may share a page
                    part, entry = entries[what - heads]
                    array.reshape(-1, array.shape[-1])[view.slots[VALUE][part][entry].ravel(), column] = 1.0
                if what >= total - 2:
                    array[..., column][self._held_by_none(tail=what == total - 2)] = 1.0
            named = view.with_array(VALUE, array)
            output = self.probes.output("values that name their head and sequence", named)
            shares[..., taken] = output[..., columns[: len(taken)]]
        own = np.array([entries.index((s.part, s.entry)) for s in view.sequences])
        return shares[..., :heads], shares[..., heads:-2], shares[..., -2:], own

    @cached_property
    def weights_on_all(self):
        """Weights on every stored row of values, in the order of memory, (B, H, T, N); None where these are
        too many, or for want of time.
        """
        view, columns = self.view, self.columns
        like = np.asarray(view.arrays[VALUE])
        chunks = _chunks(int(np.prod(like.shape[:-1])), len(columns))
        if len(chunks) > MOST_POOL_CALLS or not self.probes.have_time(
            "one stored value at a time", len(chunks)
        ):
            return None
        weights = np.zeros((*view.shape[:3], int(np.prod(like.shape[:-1]))))
        for taken in chunks:
            values = np.zeros((weights.shape[-1], like.shape[-1]))
            values[taken, columns[: len(taken)]] = self.amplitude
            changed = view.with_array(VALUE, values.reshape(like.shape).astype(like.dtype))
            output = self.probes.output("one stored value at a time", changed)
            weights[..., taken] = output[..., columns[: len(taken)]] / self.amplitude
        return np.nan_to_num(weights)

    def _held_by_none(self, tail):
        """Slots of the value array that no sequence holds within its length: those in a page, or row of
        keys, of which a sequence holds some key (`tail`), or all others.
        """
        held = np.zeros(np.shape(self.view.arrays[VALUE])[:-1], bool)
        for part, slots in enumerate(self.view.slots[VALUE]):
            for rows, length in zip(slots, self.view.lengths(part)):
                held.reshape(-1)[rows[:, :length]] = True
        return ~held & (held.any(-1, keepdims=True) == tail)

    @cached_property
    def pages_read(self):
        """Whether some row of each sequence gives weight to each physical page, (B, P); None where there are
        no pages, too many, or for want of time.
        """
        view, columns = self.view, self.columns
        value = np.asarray(view.arrays[VALUE])
        if view.pages is None or len(value) > MOST_PAGE_CALLS * len(columns):
            return None
        chunks = _chunks(len(value), len(columns))
        if not self.probes.have_time("values that name their page", len(chunks)):
            return None
        read = np.zeros((len(view.sequences), len(value)), bool)
        for taken in chunks:
            probe = np.zeros(value.shape)
            for column, page in zip(columns, taken):
                probe[page, ..., column] = 1.0
            named = view.with_array(VALUE, probe.astype(value.dtype))
            output = self.probes.output("values that name their page", named)
            read[:, taken] = (np.nan_to_num(output[..., columns[: len(taken)]]) > 0).any((1, 2))
        return read


def _filled(some):
    """The stretch (n,) from the first to the last that is True, where most in it are: the errors of others
    may be less than rounding.
    """
    first, last = some.argmax(), len(some) - some[::-1].argmax()
    mostly = some.any() and 2 * some.sum() >= last - first
    return (np.arange(len(some)) >= first) & (np.arange(len(some)) < last) if mostly else some


def _chunks(total, size):
    """The numbers below `total` in stretches of at most `size`."""
    return [np.arange(first, min(first + size, total)) for first in range(0, total, size)]
