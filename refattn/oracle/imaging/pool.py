"""The weights that rows give to every stored row of values, and what reading elsewhere predicts.

The stored rows of the caller's key and value arrays are numbered in the order of memory, N in all.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from refattn.oracle.imaging.view import KEY, VALUE

MOST_NUMBERS = 2**26  # of such weights
MOSTLY = 0.2  # of a head's weight lies on another one's values: it reads that one
FOREIGN = 0.005  # of the weight of a row
PRESENT = 1e-5  # of a row's weight: what has more and should have none is read
LOOKS, STRANGE = 5, 0.1  # rows on which the places alone are tried; those of them that may be wrong
STEPS = (1, -1, 2, -2, 3, -3)  # by which a place may be missed
TIMES = 4  # the tolerance of a weight
TRIAL = 12  # rows on which a reading is tried first
LEAST_OF_TRIAL = 0.2
MOST_TRIED, NEARLY = 12, 0.98  # readings that are tried on all rows; of the rows of the best one


@dataclass(frozen=True, eq=False)
class Reads:
    """Where a kernel may read.

    Attributes
    ----------
    words : str
    key, value : ndarray, (B, H, S)
        Numbers of the stored rows that are read for each key; N where there is none, which reads 0.
    visible : ndarray of bool, (B, H, T, S) or None
        Keys that count; None for the right ones.
    """

    words: str
    key: np.ndarray
    value: np.ndarray
    visible: np.ndarray | None = None


class Pool:
    """Stored rows of keys and values, and the weights (B, H, T, N) that rows give to the values.

    Attributes
    ----------
    own : ndarray, (B, H, S)
        Number of the stored row of each key of a query head; N behind the last one.
    """

    def __init__(self, measured, ledgers):
        self.measured, self.ledgers, self.view = measured, ledgers, measured.view
        view = self.view
        self.count = int(np.prod(np.shape(view.arrays[VALUE])[:-1]))
        self.own = np.full((len(view.sequences), len(view.heads), view.num_keys), self.count)
        for n, s in enumerate(view.sequences):
            rows = view.slots[VALUE][s.part][s.entry][view.heads // view.group_size]
            self.own[n, :, : rows.shape[1]] = rows

    @classmethod
    def of(cls, measured, ledgers):
        """None where weights on other rows are not known."""
        view = measured.view
        if measured.probes is None or view.latent or view.checked.form.joins or view.dropped is not None:
            return None
        if np.shape(view.arrays[KEY])[:-1] != np.shape(view.arrays[VALUE])[:-1]:
            return None
        pool = cls(measured, ledgers)
        large = np.prod(view.shape[:3]) * pool.count > MOST_NUMBERS
        return None if large or pool.weights is None else pool

    @cached_property
    def weights(self):
        """None for want of time."""
        if not self._reads_elsewhere():
            return self.placed(self.own, self.measured.weights)
        return self.measured.weights_on_all

    def _reads_elsewhere(self):
        """Whether rows give weight to other rows than those of their own sequence and head."""
        heads, sequences, outside, own = self.measured.sources or (None,) * 4
        if heads is None:
            return False
        total = heads.sum(-1) + outside.sum(-1)
        kv = np.broadcast_to((self.view.heads // self.view.group_size).reshape(1, -1, 1, 1), heads.shape)
        own = np.broadcast_to(own.reshape(-1, 1, 1, 1), heads.shape)
        parts = ((heads, kv), (sequences, own))
        shares = [np.take_along_axis(of, at[..., :1], -1)[..., 0] for of, at in parts]
        with np.errstate(all="ignore"):
            other = np.minimum(*shares) < (1 - FOREIGN) * total
        return bool((other & self.view.row_exists).any())

    def own_weights(self):
        """Weights (B, H, T, S) on a row's own keys alone, where its weights on every stored row were
        measured, and some lie elsewhere; else None. One-hot values of several sequences share a column.
        """
        on_all = self.measured.__dict__.get("weights_on_all")
        if on_all is None or not self._reads_elsewhere():
            return None
        on_all = np.concatenate([on_all, np.zeros((*on_all.shape[:3], 1))], -1)
        return np.take_along_axis(on_all, self.own[:, :, None], -1)

    def placed(self, slots, weights):
        """Weights (B, H, T, S) put where their values are stored (B, H, S): (B, H, T, N)."""
        placed = np.zeros((*weights.shape[:3], self.count + 1))
        for b, h in np.ndindex(slots.shape[:2]):  # no row is stored twice
            placed[b, h][:, slots[b, h]] = weights[b, h]
        return placed[..., :-1]

    @cached_property
    def of_other_heads(self):
        """Weight that each query head gives to other key/value heads than its own, (H, K)."""
        heads = self.view.heads // self.view.group_size
        given = self._given()
        given[np.arange(len(heads)), heads] = 0.0
        own = self.weights.sum((0, 2, 3))
        return np.where(given > MOSTLY * own[:, None], given, 0.0)

    @cached_property
    def of_other_sequences(self):
        """Weight that each sequence gives to others than itself, (B, B)."""
        given = np.zeros((len(self.view.sequences),) * 2)
        for m, s in enumerate(self.view.sequences):
            slots = np.unique(self.view.slots[VALUE][s.part][s.entry][:, : s.length])
            given[:, m] = self.weights[..., slots].sum((1, 2, 3))
        np.fill_diagonal(given, 0.0)
        return given

    def _given(self):
        """Weight of each query head on the stored rows of each key/value head, (H, K)."""
        given = np.zeros((len(self.view.heads), self.view.num_kv_heads))
        for s in self.view.sequences:
            for k, slots in enumerate(self.view.slots[VALUE][s.part][s.entry]):
                given[:, k] += self.weights[..., slots].sum((0, 2, 3))
        return given

    # what readings predict

    @cached_property
    def _keys(self):
        flat = np.nan_to_num(np.asarray(self.view.arrays[KEY], np.float64))
        flat = flat.reshape(-1, flat.shape[-1])
        return np.concatenate([flat, np.zeros((1, flat.shape[1]))])

    @cached_property
    def _shift(self):
        """What is added to scores after the softcap, (B, H, T, S)."""
        with np.errstate(all="ignore"):
            shift = self.view.score - self.view.capped
        return np.where(np.isfinite(shift), shift, 0.0)

    @cached_property
    def _sink(self):
        """exp of the score of the sink, (B, H, T)."""
        view = self.view
        with np.errstate(all="ignore"):
            mass = np.exp(view.lse) * (1 - view.weights.sum(-1))
        return np.where(np.isfinite(mass) & (mass > 1e-6 * np.exp(view.lse)), mass, 0.0)

    def scores(self, rows):
        """Scores of rows, (R, 3) places, with every stored key: (R, N + 1)."""
        part = self.view.outline_of(0)
        b, h, t = rows.T
        raw = part.scale * (self.view.operand("query")[b, h, t] @ self._keys.T)
        return raw if part.softcap is None else part.softcap * np.tanh(raw / part.softcap)

    def predicted(self, reads, rows, scores=None):
        """Weights on all stored rows, (R, N), of rows (R, 3) that read there."""
        b, h, t = rows.T
        scores = self.scores(rows) if scores is None else scores
        visible = self.view.visible if reads.visible is None else reads.visible
        score = np.take_along_axis(scores, reads.key[b, h], -1) + self._shift[b, h, t]
        score = np.where(visible[b, h, t], score, -np.inf)
        top = np.maximum(score.max(-1, keepdims=True, initial=-1e300), -1e300)
        weights = np.exp(score - top)
        with np.errstate(all="ignore"):
            weights = weights / (
                weights.sum(-1, keepdims=True) + self._sink[b, h, t][:, None] * np.exp(-top)
            )
        weights = np.nan_to_num(weights)
        at = np.arange(len(rows))[:, None] * (self.count + 1) + reads.value[b, h]
        placed = np.bincount(at.ravel(), weights.ravel(), len(rows) * (self.count + 1))
        return placed.reshape(len(rows), -1)[:, :-1]

    def not_right(self, rows):
        """Those of the rows (B, H, T) whose weights are not the right ones, where they are stored."""
        places = np.argwhere(rows)
        right = self._near(self.predicted(Reads("", self.own, self.own), places), places)
        left = rows.copy()
        left[tuple(places[right].T)] = False
        return left

    def holds(self, reads, rows, scores=None):
        """In which of the rows (R, 3) the measured weights are those of a reading."""
        b, h, _ = rows.T
        moved = ((reads.key != self.own) | (reads.value != self.own)).any(-1)[b, h]
        return moved & ~self._other_set(reads, rows) & self._near(self.predicted(reads, rows, scores), rows)

    def _other_set(self, reads, rows):
        """Rows (R, 3) whose reading is no more than another visible set: own keys and values, each once."""
        nothing = np.zeros(len(rows), bool)
        if reads.key is not reads.value or reads.visible is not None or self.view.pages is not None:
            return nothing
        for n, (b, h, t) in enumerate(rows):
            slots = reads.value[b, h][self.view.visible[b, h, t]]
            nothing[n] = len(np.unique(slots)) == len(slots) and np.isin(slots, self.own[b, h]).all()
        return nothing

    def _near(self, predicted, rows):
        b, h, t = rows.T
        got, tolerance = self.weights[b, h, t], self.measured.tolerance[b, h, t, 0]
        floor = 16 * self.measured.floor[b, h, t] + PRESENT
        with np.errstate(all="ignore"):
            off = 0.5 * np.abs(predicted - got).sum(-1)
            strange = ((predicted == 0) & (got > floor)) | ((predicted > 4 * floor) & (got == 0))
            size = np.maximum(predicted, got)  # each weight by itself: one that counts twice is one of many
            strange |= np.abs(predicted - got) > TIMES * tolerance[:, None] * size + 4 * floor
        return (off <= 2 * tolerance + 1e-4) & ~strange.any(-1)

    def first_look(self, wrong):
        """A quick test of the slots (B, H, S) of values, and of the keys that are visible, on a few wrong
        rows (B, H, T): whether just the stored rows are read that are there.
        """
        places = np.argwhere(wrong)
        some = places[np.unique(np.linspace(0, len(places) - 1, LOOKS).astype(int))]
        b, h, t = some.T
        got = self.weights[b, h, t]
        clear, faint = got > PRESENT, got <= 4 * self.measured.floor[b, h, t]
        own, rows = self.view.visible[b, h, t], np.arange(len(some))[:, None]

        def promising(value, visible=None):
            seen = own if visible is None else visible[b, h, t]
            read = np.zeros((len(some), self.count + 1), bool)
            read[rows, np.where(seen, value[b, h], self.count)] = True
            read = read[:, :-1]
            strange = (clear & ~read).sum(-1) + (read & faint).sum(-1)
            return bool((strange <= STRANGE * read.sum(-1)).any())

        return promising

    def _against(self, reads, wrong):
        """Rows that a reading would change, and that are not among the wrong ones (B, H, T)."""
        moved = ((reads.key != self.own) | (reads.value != self.own)).any(-1)[..., None]
        return int((moved & ~wrong & self.view.row_exists & self.view.visible.any(-1)).sum())

    def best(self, readings, wrong):
        """The reading that explains most of the wrong rows (B, H, T), and those rows; or None."""
        places = np.argwhere(wrong)
        if not len(places):
            return None
        trial = places[np.unique(np.linspace(0, len(places) - 1, TRIAL).astype(int))]
        scores, found = self.scores(trial), []
        for n, reads in enumerate(readings(self, self.first_look(wrong))):
            holds = self.holds(reads, trial, scores)
            if holds.sum() >= max(LEAST_OF_TRIAL * len(trial), 1):
                found.append((-holds.sum(), n, reads))
        if not found:
            return None
        scores, tried = self.scores(places), []
        for _, n, reads in sorted(found, key=lambda entry: entry[:2])[:MOST_TRIED]:
            holds = self.holds(reads, places, scores)
            tried.append((holds.sum(), -self._against(reads, wrong), -n, reads, holds))
        most = max(count for count, *_ in tried)
        best = max((entry for entry in tried if entry[0] >= NEARLY * most), key=lambda entry: entry[1:3])
        if not most:
            return None
        rows = np.zeros(wrong.shape, bool)
        rows[tuple(places[best[4]].T)] = True
        return best[3], rows


def first_slot(view, n, which):
    """Where a sequence begins within a head, in the order of memory."""
    s = view.sequences[n]
    slots = view.slots[which][s.part][s.entry]
    return int(slots[0, 0]) if slots.size else 0


def first_key(view, n):
    """The first key that some row of a sequence sees."""
    seen = view.visible[n].any((0, 1))
    return int(seen.argmax())
