"""MLA: arrays that are read in another order, at another place or of another head.

Outputs are computed from the arrays as they would be read, first of one wrong head of one sequence.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cached_property

import numpy as np

from refattn.oracle.imaging.latent_readings import (
    Arrays,
    other_projections,
    other_readings,
    stored_otherwise,
    turned_otherwise,
)
from refattn.oracle.imaging.maps import ranges

MOST_HEADS = 32
MOST_ROWS = 6  # about, on which other arrays are tried first
RIGHT_SHARE = 0.98  # of the numbers of the output
LEAST_CLEAR = 24  # wrong numbers that are no matter of rounding
LEFT = 0.1  # of the squared error, that an explanation may leave
LEFT_OF_TRIAL = 0.3
MOST_COLUMNS = 0.9  # of the columns of the output are wrong: more are all
SHARE_OF_WRONG = 0.9  # of the wrong numbers, or of those of some rows
LEAST_SINK = 1e-9  # of a row's normaliser
WAYS = "other ways to read the arrays of the latents"
HEAD_AXES = {"q_nope": 1, "q_rope": 1, "w_uk": 0, "w_uv": 0}
NAMES = {"key_latent": "kv_latent"}  # of arrays, where the caller's name is another one


def explain_latent_layout(measured) -> str:
    """Words for the way to read the arrays that gives the kernel's output; "" if none is found in time."""
    if not (measured.off & ~measured.dead_columns).any():
        return ""
    calls = LatentCalls(measured)
    arrays = Arrays.of(measured.view)
    best, words = RIGHT_SHARE, ""
    for way, other in _ways(arrays, measured.view):
        if not measured.in_time(WAYS):
            break
        if calls.promising(other) and (share := calls.share(other)) > best:
            best, words = share, way
    words = words or _heads_swapped(calls, arrays)
    return f"{words}{calls.where}" if words else ""


def _ways(arrays, view) -> Iterator[tuple[str, Arrays]]:
    for name in Arrays._fields[:-1]:
        for words, change in _changes(name, getattr(arrays, name)):
            changed = arrays._replace(**{name: change(getattr(arrays, name))})
            if name == "key_latent":
                changed = changed._replace(value_latent=changed.key_latent)
            yield f"{NAMES.get(name, name)} is {words}", changed
    for words, change in _memory_orders("key_latent"):
        read = change(arrays.key_latent)
        yield (
            f"the latents of the values (not those of the keys) are {words}",
            arrays._replace(value_latent=read),
        )
        yield (
            f"the latents of the keys (not those of the values) are {words}",
            arrays._replace(key_latent=read),
        )
    yield from other_projections(arrays)
    yield from other_readings(arrays)
    positions = np.zeros((len(arrays.q_nope), arrays.q_nope.shape[2]))
    for s in view.sequences:
        positions[s.entry] = np.arange(s.num_rows) + s.offset
    yield from turned_otherwise(arrays, positions, positions[:, 0] if positions.size else positions.sum(1))
    yield from stored_otherwise(arrays)


class LatentCalls:
    """Outputs of calls with other arrays, beside those that were measured.

    Attributes
    ----------
    off : ndarray of bool, (B, H, T, E)
        Numbers of the output that are wrong, and not 0 in a whole column.
    columns : ndarray of int
        Of the output, that are computed: those that are wrong where others are right.
    where : str
        Words for them; "" for all.
    """

    def __init__(self, measured):
        self.measured, self.view = measured, measured.view
        view, self.off = self.view, measured.off & ~measured.dead_columns
        wrong = self.off.any((0, 1, 2))
        some = bool(0 < wrong.sum() < MOST_COLUMNS * len(wrong))
        self.columns = np.flatnonzero(wrong) if some else np.arange(len(wrong))
        self.where = (
            f", in columns {ranges(self.columns.tolist())} of {len(wrong)} of the output" if some else ""
        )
        self._place = np.unravel_index(self.off.any(-1).sum(-1).argmax(), view.shape[:2])
        self._rows = np.flatnonzero((self.off.any(-1) & view.visible.any(-1))[self._place])
        self._rows = self._rows[:: max(len(self._rows) // MOST_ROWS, 1)]
        self._got = measured.output[self._place][self._rows][:, self.columns]
        expected = measured.expected_output[self._place][self._rows][:, self.columns]
        self._error_there = ((self._got - expected) ** 2).sum()
        self._allowed_there = measured.allowed_for_guesses(8, 0.04)[self._place][self._rows][:, self.columns]
        self._rest = np.where(view.visible, view.score - view.capped, -np.inf)
        with np.errstate(all="ignore"):
            softmax = np.where(view.visible, np.exp(view.score - view.lse[..., None]), 0.0)
            self._kept = np.where(softmax > 0, view.weights / softmax, 1.0)  # what dropout makes of it
            sink = 1.0 - softmax.sum(-1)
            self._sink = np.where(sink > LEAST_SINK, np.log(sink) + view.lse, -np.inf)

    def output(self, arrays, b, h, rows=slice(None)):
        """Of rows of one head of one sequence: output (rows, columns) and lse (rows,)."""
        view, part = self.view, self.view.outline_of(b)
        s, head = view.sequences[b], view.heads[h]
        rows = np.arange(len(s.rows))[rows]
        own = np.ix_(rows, np.arange(s.num_keys))
        query, key = (arrays.q_nope, arrays.q_rope), (arrays.key_latent[s.entry], arrays.k_rope[s.entry])
        nope, rope = (array[s.entry, head, s.rows[rows]] for array in query)
        raw = part.scale * (nope @ arrays.w_uk[head] @ key[0].T + rope @ key[1].T)
        capped = raw if part.softcap is None else part.softcap * np.tanh(raw / part.softcap)
        score = capped + self._rest[b, h][own]
        sink = self._sink[b, h, rows]
        top = np.maximum(score.max(-1, initial=-1e300), sink)
        weights = np.exp(score - top[:, None])
        total = weights.sum(-1) + np.exp(sink - top)
        context = (weights * self._kept[b, h][own]) @ arrays.value_latent[s.entry]
        return context @ arrays.w_uv[head][self.columns].T / total[:, None], np.log(total) + top

    def promising(self, arrays):
        """Whether they give most of some wrong rows of one head, which takes a fraction of the time."""
        with np.errstate(all="ignore"):
            off = np.abs(self.output(arrays, *self._place, self._rows)[0] - self._got)
        fits = (off <= self._allowed_there).mean() > SHARE_OF_WRONG
        return fits and (off**2).sum() <= LEFT_OF_TRIAL * self._error_there

    @cached_property
    def _allowed(self):
        return self.measured.allowed_for_guesses()[..., self.columns]

    @cached_property
    def _clearly_off(self):
        """Numbers that are off by more than a guess may be: what others are near to proves nothing."""
        off = np.abs(self._of_columns(self.measured.output - self.measured.expected_output))
        return (off > self._allowed) & self.off[..., self.columns]

    def _of_columns(self, numbers):
        return numbers[..., self.columns]

    def _results(self, arrays):
        """Output (B, H, T, columns) and lse (B, H, T)."""
        output = np.zeros_like(self._allowed)
        lse = np.full(output.shape[:3], -np.inf)
        with np.errstate(all="ignore"):
            for b, s in enumerate(self.view.sequences):
                for h in range(len(self.view.heads)):
                    results = self.output(arrays, b, h)
                    output[b, h, : len(s.rows)], lse[b, h, : len(s.rows)] = results
        return np.where(self.view.visible.any(-1, keepdims=True), output, 0.0), lse

    def near(self, arrays):
        """Where the output is that of other arrays, (B, H, T, columns)."""
        return np.abs(self._results(arrays)[0] - self._of_columns(self.measured.output)) <= self._allowed

    def share(self, arrays):
        """Share of all numbers that are those of other arrays; 0 where what is wrong, or lse, is not."""
        m, (output, lse) = self.measured, self._results(arrays)
        off = np.abs(output - self._of_columns(m.output))
        near, clear = off <= self._allowed, self._clearly_off
        if clear.sum() < LEAST_CLEAR or near[clear].mean() <= SHARE_OF_WRONG or not self._right_lse(lse):
            return 0.0
        # and not by chance of what is allowed: nearly all of the error must be gone
        before = np.abs(self._of_columns(m.output - m.expected_output))
        cap = 50 * self._allowed
        if (np.minimum(off, cap) ** 2)[clear].sum() > LEFT * (np.minimum(before, cap) ** 2)[clear].sum():
            return 0.0
        return float(near.mean())

    def _right_lse(self, lse):
        """Whether the kernel's lse is the given one, (B, H, T), or none is known."""
        got = self.measured.lse
        if got is None:
            return True
        rows = self.off.any(-1) & np.isfinite(got) & np.isfinite(lse)
        tolerance = 4 * self.measured.tolerance[..., 0] + 1e-3
        own = np.abs(got - lse) <= tolerance
        right = np.abs(lse - self.view.lse) <= tolerance  # lse may have an error of its own
        return bool(((own | right)[rows]).mean() > SHARE_OF_WRONG) if rows.any() else True


# ways to read arrays: words, and a function of the array


def _changes(name, array):
    if name not in ("w_uk", "w_uv"):
        yield from COMPONENTS
    else:
        yield from PROJECTIONS
    yield from _memory_orders(name)
    if name in HEAD_AXES:
        of_axis = lambda change: lambda x: change(x, HEAD_AXES[name])
        for words, change in HEADS:
            yield words, of_axis(change)
        yield from _some_components(array.shape[-1])


def halves_exchanged(x):
    return np.roll(x, x.shape[-1] // 2, axis=-1)


def _interleaved(x):
    """Components that were stored as two halves, taken in turns."""
    if x.shape[-1] % 2:
        return x
    return x.reshape(*x.shape[:-1], 2, -1).swapaxes(-1, -2).reshape(x.shape)


COMPONENTS = (
    ("read with its halves exchanged", halves_exchanged),
    (
        "read with even and odd components apart (interleaved read as halves)",
        lambda x: np.concatenate([x[..., ::2], x[..., 1::2]], -1),
    ),
    ("read as interleaved where it has halves", _interleaved),
    ("taken as 0", np.zeros_like),
)
HEADS = (
    ("that of head 0 for all heads", lambda x, axis: np.take(x, np.zeros(x.shape[axis], int), axis)),
    ("that of the next head", lambda x, axis: np.roll(x, -1, axis)),
    ("that of the head before", lambda x, axis: np.roll(x, 1, axis)),
    ("that of the heads in reverse order", lambda x, axis: np.flip(x, axis)),
)
PROJECTIONS = (
    ("read with the two halves of its rows exchanged", lambda x: np.roll(x, x.shape[1] // 2, axis=1)),
    ("read with the two halves of its columns exchanged", halves_exchanged),
)
AXES = {"q": ("heads", "rows", "dim"), "k": ("batch", "keys", "dim"), "w": ("heads", "dim", "rank")}


def _memory_orders(name):
    """Arrays whose last three axes lie in memory in another order than they are read in."""
    names = AXES[name[0]]
    for order in itertools.permutations(range(3)):
        if order != (0, 1, 2):
            other = ", ".join(names[axis] for axis in order)
            own = ", ".join(names)
            yield f"in memory as ({other}) and read as ({own})", lambda x, order=order: _laid_out(x, order)
            yield f"in memory as ({own}) and read as ({other})", lambda x, order=order: _taken_for(x, order)


def _laid_out(x, order):
    lead = x.ndim - 3
    return x.transpose(*range(lead), *(lead + axis for axis in order)).reshape(x.shape)


def _taken_for(x, order):
    lead = x.ndim - 3
    other = x.reshape(*x.shape[:lead], *(x.shape[lead + axis] for axis in order))
    return other.transpose(*range(lead), *(lead + axis for axis in np.argsort(order)))


def _some_components(width):
    """Stretches of components that are counted twice or left out."""
    step = 8 if width <= 64 else 16 if width <= 128 else 64
    edges = [*range(0, width, step), width]
    times = lambda first, last, factor: lambda x: _times(x, first, last, factor)
    for n, first in enumerate(edges[:-1]):
        for last in edges[n + 1 :]:
            if last - first < width:
                where = f"in components {first} to {last - 1} of {width}"
                yield f"counted twice {where}", times(first, last, 2.0)
                yield f"left out {where}", times(first, last, 0.0)


def _times(array, first, last, factor):
    changed = array.astype(np.float64)
    changed[..., first:last] *= factor
    return changed


def _heads_swapped(calls, arrays):
    """Words for an array of which some heads read another head's part; "" if there is none."""
    view = calls.view
    if view.num_heads > MOST_HEADS:
        return ""
    for name in ("w_uk", "w_uv", "q_nope", "q_rope"):
        source = {}
        for step in range(view.num_heads):
            if not calls.measured.in_time(WAYS):
                return ""
            near = calls.near(
                arrays._replace(**{name: np.roll(getattr(arrays, name), -step, HEAD_AXES[name])})
            )
            for h in np.flatnonzero(near.mean((0, 2, 3)) > RIGHT_SHARE).tolist():
                source.setdefault(int(view.heads[h]), (int(view.heads[h]) + step) % view.num_heads)
        if len(source) == len(view.heads) and any(a != b for a, b in source.items()):
            words = ", ".join(f"{a} -> {b}" for a, b in sorted(source.items()) if a != b)
            return f"{name} is that of another head in some heads (head -> head: {words})"
    return ""
