"""A call of any form as sequences of the same shape, and how values are put into its arrays.

Sequences, heads and rows that are looked at are padded to one shape (B, H, T, S), B sequences in all; what
does not exist is False in `exists`. Where the keys, values and rows of a sequence are stored is found by
handing the form arrays that hold their own addresses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from refattn.oracle.mistakes.wrong_kernel import checked_call, dense_part, part_outlines, split_result
from refattn.oracle.simulated.staged import CORRECT, Arithmetic, Run, Sample, finite_or_zero

QUERY, KEY, VALUE = range(3)  # places of the arrays of every form that has queries, keys and values
Q_NOPE, Q_ROPE, KV_LATENT, K_ROPE, W_UK, W_UV = range(6)  # of the arrays of MLA


@dataclass(frozen=True, eq=False)
class Sequence:
    """One sequence that is looked at."""

    part: int
    entry: int  # batch entry within the part
    heads: np.ndarray
    rows: np.ndarray
    num_rows: int
    num_keys: int  # that are stored, also past the length
    length: int
    offset: int  # key position of row 0


class View:
    """A call, and of it the sequences, heads and rows that are looked at.

    Attributes
    ----------
    sequences : list of Sequence
    exists : ndarray of bool, (B, H, T, S)
        Pairs of a row and a key that there are.
    raw, capped, score : ndarray, (B, H, T, S)
        Scores that the reference computes: scaled products, after softcap, after ALiBi and bias.
    visible : ndarray of bool, (B, H, T, S)
    weights : ndarray, (B, H, T, S)
        After dropout.
    lse, top : ndarray, (B, H, T)
        And the largest score of a row.
    """

    def __init__(self, arrays, options, samples=None):
        self.arrays, self.options = tuple(arrays), dict(options)
        self.checked = checked_call(*arrays, **options)
        outlines = part_outlines(self.checked)
        self.samples = samples or [Sample.everything(part) for part in outlines]
        self.sequences = [
            Sequence(
                part=n,
                entry=int(entry),
                heads=sample.heads,
                rows=sample.rows,
                num_rows=part.q_len,
                num_keys=part.kv_len,
                length=int(part.kv_lengths[entry]),
                offset=int(part.q_offset[entry]),
            )
            for n, (part, sample) in enumerate(zip(outlines, self.samples, strict=True))
            for entry in sample.sequences
        ]
        parts = [outlines[sequence.part] for sequence in self.sequences]
        self.num_heads = max((part.num_heads for part in parts), default=1)
        self.group_size = max((part.group_size for part in parts), default=1)
        self.num_kv_heads = self.num_heads // self.group_size
        self.num_keys = max((sequence.num_keys for sequence in self.sequences), default=0)
        self.num_rows = max((len(sequence.rows) for sequence in self.sequences), default=0)
        self.heads = self.sequences[0].heads if self.sequences else np.zeros(0, int)
        self.v_head_dim = self.checked.output_shape[-1]
        self.candidate_widths = ()  # widths of windows that measured weights suggest
        self.candidate_shifts = None  # and shifts of positions, one a sequence
        self._expect()

    @property
    def latent(self):
        """Whether keys and values are one array, so that only the up-projection of the values is free."""
        return self.checked.form.projects

    @property
    def shape(self):
        return len(self.sequences), len(self.heads), self.num_rows, self.num_keys

    def _expect(self):
        """The steps of the reference, padded."""
        names = ("raw", "capped", "score", "visible", "exists", "weights", "lse", "top")
        steps = {name: [] for name in names}
        for n, sample in enumerate(self.samples):
            if sample.left_out:
                continue
            part = dense_part(self.checked, n)
            for name, array in _steps_of(part.drawn(), sample).items():
                steps[name].extend(array)
        for name, pieces in steps.items():
            setattr(self, name, self.padded(pieces))
        self.lse = np.where(self.row_exists, self.lse, -np.inf)

    def padded(self, pieces):
        """Arrays (H, T, S) or (H, T) of each sequence as one, (B, H, T, S) or (B, H, T)."""
        if not pieces:
            return np.zeros(self.shape)
        return _joined(pieces, self.shape[1:][: pieces[0].ndim])

    @property
    def samples_all_rows(self):
        """Whether all rows of each sequence are looked at."""
        return all(len(s.rows) == s.num_rows for s in self.sequences)

    @cached_property
    def row_exists(self):
        """(B, 1, T)"""
        there = [np.arange(self.num_rows) < len(s.rows) for s in self.sequences]
        return np.array(there).reshape(-1, 1, self.num_rows)

    @cached_property
    def empty(self):
        """Rows that see nothing and have no sink, (B, H, T)."""
        return self.row_exists & np.isneginf(self.lse) & ~self.visible.any(-1)

    def of_sequences(self, name):
        """A number of each sequence, (B, 1, 1, 1)."""
        return np.array([getattr(s, name) for s in self.sequences]).reshape(-1, 1, 1, 1)

    @cached_property
    def row(self):
        """Number of each row in its sequence, (B, 1, T, 1)."""
        rows = np.zeros((len(self.sequences), 1, self.num_rows, 1), int)
        for target, s in zip(rows, self.sequences, strict=True):
            target[0, : len(s.rows), 0] = s.rows
        return rows

    @cached_property
    def key(self):
        """(1, 1, 1, S)"""
        return np.arange(self.num_keys).reshape(1, 1, 1, -1)

    @cached_property
    def position(self):
        """(B, 1, T, 1)"""
        return self.row + self.of_sequences("offset")

    def operand(self, name):
        """Query (B, H, T, D), or key or value (B, K, S, D) of the sequences, float64, padded with 0."""
        pieces = []
        for s in self.sequences:
            part = dense_part(self.checked, s.part)
            array = getattr(part, name)[s.entry]
            if name == "query":
                array = array[np.ix_(s.heads, s.rows)]
            pieces.append(np.asarray(array, np.float64))
        return _joined(pieces, tuple(map(max, zip(*(piece.shape for piece in pieces), strict=True))))

    @property
    def score_terms(self):
        """Products that are added up in a score."""
        return self.arrays[QUERY].shape[-1]

    def of_heads(self, array):
        """An array (B, K, ...) repeated for the query heads that are looked at."""
        return array[:, self.heads // max(self.num_heads // array.shape[1], 1)]

    def applied(self, weights, value):
        """weights @ value, (B, H, T, E), for the values (B, K, S, E) of the key/value heads."""
        if len(self.heads) == self.num_heads:  # no copy of the values for each head of a group
            group = weights.shape[1] // max(value.shape[1], 1)
            grouped = weights.reshape(*value.shape[:2], group, *weights.shape[2:])
            return (grouped @ value[:, :, None]).reshape(*weights.shape[:3], value.shape[-1])
        return weights @ self.of_heads(value)

    def cut(self, result, array):
        """A result of the whole call as (B, H, T) or (B, H, T, E), padded with 0; float64."""
        parts = list(split_result(self.checked, result, array))
        pieces = [
            np.asarray(parts[s.part][s.entry][np.ix_(s.heads, s.rows)], np.float64) for s in self.sequences
        ]
        return _joined(pieces, (*self.shape[1:3], self.v_head_dim) if result.has_dims else self.shape[1:3])

    # why a pair is hidden, and where it is stored

    def rules(self, n):
        """The rules of visibility of sequence n."""
        return self.outline_of(n).visibility

    def lengths(self, part):
        """The lengths of the sequences of a part."""
        return part_outlines(self.checked)[part].kv_lengths

    def outline_of(self, n):
        """The part of sequence n, without its scores."""
        return part_outlines(self.checked)[self.sequences[n].part]

    def hidden_by(self, what):
        """Pairs that the mask ("mask"), or a bias of -inf ("bias"), hides, (B, H, T, S); None where there
        is none.
        """
        return self._of_option(what, np.isneginf if what == "bias" else np.logical_not)

    @cached_property
    def dropped(self):
        """Pairs that dropout drops, (B, H, T, S), or None."""
        return self._of_option("dropout_mask", np.logical_not)

    def _of_option(self, name, function):
        """A function of an option of one number a pair, (B, H, T, S); None where a sequence has none."""
        arrays = [getattr(self.outline_of(n), name) for n in range(len(self.sequences))]
        if any(array is None for array in arrays):
            return None
        pairs = zip(arrays, self.sequences, strict=True)
        return self.padded([function(array[s.entry][np.ix_(s.heads, s.rows)]) for array, s in pairs])

    @cached_property
    def drawn_holes(self):
        """Pairs of the same block, (B, H, T, S), where the form hides others by itself; else None."""
        if "block_size" not in self.checked.form.structure:
            return None
        size = self.checked.block_size
        return np.broadcast_to(self.row // size == self.key // size, self.shape)

    @property
    def page_size(self):
        """Keys of a page, of a paged call."""
        return self.checked.page_size

    @cached_property
    def pages(self):
        """Physical page of each key, (B, 1, 1, S), -1 behind the length; None where keys are in no pages."""
        if "block_table" not in self.checked.form.structure:
            return None
        pages = np.full((len(self.sequences), 1, 1, self.num_keys), -1)
        for target, s in zip(pages, self.sequences, strict=True):
            target[0, 0, : s.length] = self.checked.block_table[
                s.part, np.arange(s.length) // self.page_size
            ]
        return pages

    # values of our own

    @cached_property
    def slots(self):
        """Where the queries, keys and values of each part are stored: for each of the three, one array a
        part, (N, H, T) or (N, K, S), of indices into the rows of the caller's array.
        """
        numbered = []
        for array in self.arrays[: VALUE + 1]:
            shape = np.shape(array)[:-1]
            numbered.append(np.arange(math.prod(shape), dtype=np.float64).reshape(*shape, 1))
        checked = checked_call(*numbered, **self.options)
        parts = [dense_part(checked, n, type(checked).part) for n in range(checked.num_parts)]
        names = ("query", "key", "value")
        return [[getattr(part, name)[..., 0].astype(int) for part in parts] for name in names]

    def stored(self, which, fill, background=0.0):
        """The caller's array `which` (QUERY, KEY or VALUE) with other numbers in it.

        `fill(part, shape)` gives the rows of a part, (N, H or K, length, dim), in the order of the
        sequence; what no sequence reads holds `background`.
        """
        like = np.asarray(self.arrays[which])
        rows = np.full((math.prod(like.shape[:-1]), like.shape[-1]), background, np.float64)
        for part, slots in enumerate(self.slots[which]):
            rows[slots] = fill(part, (*slots.shape, like.shape[-1]))
        return rows.reshape(like.shape).astype(like.dtype)

    def with_array(self, which, array):
        """The arrays of the call with another one in place of `which`."""
        return tuple(array if n == which else own for n, own in enumerate(self.arrays))


def last_key(pairs):
    """Last key of each row that is True in pairs (B, H, T, S); the last of all where none is."""
    return pairs.shape[-1] - 1 - pairs[..., ::-1].argmax(-1)


def _joined(pieces, shape):
    """Arrays as one, each padded with 0 or False to a shape."""
    whole = np.zeros((len(pieces), *shape), pieces[0].dtype if pieces else float)
    for target, piece in zip(whole, pieces, strict=True):
        target[tuple(map(slice, piece.shape))] = piece
    return whole


def _steps_of(part, sample):
    """The steps of a dense problem with one batch axis, each (N, H, T, S) or (N, H, T)."""
    kind = Arithmetic(tile=max(part.kv_len, 1))
    run = Run(part, sample, kind, CORRECT)
    with np.errstate(all="ignore"):
        q = part.query[np.ix_(sample.sequences, sample.heads, sample.rows)].astype(np.float64)
        k = part.key[np.ix_(sample.sequences, sample.heads // part.group_size)].astype(np.float64)
        columns = np.arange(part.kv_len)
        raw = CORRECT.score(run, q, k)
        capped = CORRECT.cap(run, raw)
        score = CORRECT.shift(run, capped, columns)
        visible = np.broadcast_to(CORRECT.visible(run, columns), raw.shape) & ~np.isneginf(score)
        hidden = np.where(visible, score, -np.inf)
        top, total = CORRECT.start(run, (*raw.shape[:3], 1))
        new = np.maximum(top, hidden.max(-1, keepdims=True, initial=-np.inf))
        w = np.exp(hidden - finite_or_zero(new))
        total = total * np.exp(np.where(np.isneginf(top), 0.0, top - new)) + w.sum(-1, keepdims=True)
        weights = CORRECT.drop(run, w, columns) / np.where(total > 0, total, 1.0)
        lse = np.where(total > 0, finite_or_zero(new) + np.log(np.where(total > 0, total, 1.0)), -np.inf)
    return {
        "raw": raw,
        "capped": capped,
        "score": score,
        "visible": visible,
        "exists": np.ones(raw.shape, bool),
        "weights": weights,
        "lse": lse[..., 0],
        "top": new[..., 0],
    }
