"""Attention of one block of rows, and everything an error bound reads from it.

Output and lse are the exact ones, handed in. What a bound needs besides - scores, weights, magnitudes - need
only be good to a few digits and is computed here in plain float64, step by step. Rows of all heads of a
group are stacked: R = G * rows of the block. S counts the keys that any of these rows can see.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from refattn.exact.visibility import range_mask, row_bounds
from refattn.oracle.bounds.infinite_values import InfiniteValues
from refattn.oracle.bounds.operands import Call, Group, Operand, Part, finite
from refattn.oracle.bounds.results import RESULTS, Result, columns

BLOCK_SCORES = 2**20  # scores of one block of rows: 8 MiB an array, about twenty arrays at a time


@dataclass
class Place:
    """Where the rows of a tile lie in the results of the call."""

    part: Part
    index: tuple
    along: dict  # name in `Result.axes` -> what the tile has of that axis: a slice, or an array of numbers

    def cut(self, result: Result, array):
        """These rows of the whole array of a result, (R, C)."""
        heads, rows = self._heads_and_rows(result, array, result.has_dims)
        picked = heads[:, rows]
        return picked.reshape(math.prod(picked.shape[:2]), picked.shape[2] if result.has_dims else 1)

    def write(self, result: Result, array, values):
        """Put (R, C) where `cut` finds it."""
        heads, rows = self._heads_and_rows(result, array, result.has_dims)
        heads[:, rows] = values.reshape(heads[:, rows].shape)

    def write_rows(self, result: Result, array, values):
        """Put one number a row, (R,), into an array of `Result.row_shape`."""
        heads, rows = self._heads_and_rows(result, array, False)
        heads[:, rows] = values.reshape(heads[:, rows].shape)

    def _heads_and_rows(self, result, array, has_dims):
        at = self.part.channels if has_dims else self.part.rows
        heads, rows = (self.along[axis] for axis in result.axes[:2])
        return array[at][self.index][heads], rows  # basic indexing: a view (G, T, ...)


@dataclass
class Tile:
    """One block of rows. Shapes: R rows, S keys, D head_dim, E v_head_dim."""

    place: Place
    output: np.ndarray  # (R, E) exact
    lse: np.ndarray  # (R,)
    scores: np.ndarray  # (R, S) scale * q . k; 0 where hidden
    capped: np.ndarray  # (R, S) after softcap
    biased: np.ndarray  # (R, S) after ALiBi and bias; 0 where hidden
    alibi: np.ndarray | None  # (R, S) |slope * distance|
    bias: np.ndarray | None  # (R, S) |bias|
    drop: np.ndarray  # (R, S) row maximum minus biased, >= 0
    visible: np.ndarray  # (R, S) bool
    # (R, S) bool, by -inf alone: their products are formed; None if none is
    hidden_by_bias: np.ndarray | None
    # (R, S) bool: keys that neither range, mask nor a bias of -inf hides, whatever their score
    in_sight: np.ndarray
    # (R,) bool: rows with a score that is NaN or overflows in float64; nothing is visible in them
    broken: np.ndarray
    infinite: InfiniteValues | None  # None where all values are finite
    weights: np.ndarray  # (R, S) softmax weights
    kept: np.ndarray  # (R, S) weights after dropout, the factors of the values
    total: np.ndarray  # (R, 1) softmax denominator relative to the row maximum, >= 1
    maximum: np.ndarray  # (R,) row maximum, the sink among the candidates
    sink: np.ndarray | None  # (R,)
    count: np.ndarray  # (R, 1) visible keys
    query: Operand  # (R, D)
    key: Operand  # (S, D)
    value: Operand  # (S, E), entries that are not finite are 0
    latent: np.ndarray | None  # (S, C)
    w_uv: np.ndarray | None  # (E, C)
    scale: float
    softcap: float | None
    keep_scale: float
    shared_rounding: bool

    def exact(self, result: Result):
        """The exact result, (R, C)."""
        return columns(getattr(self, result.name))

    @property
    def dropout(self):
        return self.kept is not self.weights

    @property
    def head_dim(self):
        return self.query.exact.shape[-1]


def count_rows(call: Call, rows=None) -> int:
    """How many rows the tiles of a call have together; `rows` as in `tiles`."""
    all_rows = np.broadcast_to(np.False_, call.lse_shape)
    shapes = (all_rows[place].shape for place in call.places)
    return sum(math.prod(heads) * (q_len if rows is None else len(rows(q_len))) for *heads, q_len in shapes)


def tiles(call: Call, exact, rows=None, block_scores=BLOCK_SCORES) -> Iterator[Tile]:
    """The tiles of a call, part by part, group by group, of about `block_scores` scores each; `exact`
    holds the exact results of the whole call in the order of `RESULTS`. `rows(q_len)` picks the rows
    of a part to look at, an increasing array of row numbers; all by default.
    """
    for part in call.parts:
        picked = np.arange(part.q_len) if rows is None else rows(part.q_len)
        for index in np.ndindex(part.batch_shape):
            for kv_head in range(part.num_kv_heads):
                with np.errstate(all="ignore"):
                    group = part.load(index, kv_head)
                    yield from _tiles_of_group(part, group, index, kv_head, picked, block_scores, exact)


def _tiles_of_group(part, group: Group, index, kv_head, picked, block_scores, exact):
    options, size, length = part.options, part.group_size, group.key.exact.shape[0]
    heads = slice(kv_head * size, (kv_head + 1) * size)
    start, stop = row_bounds(options, options.q_offset[index] + np.arange(part.q_len), length)
    at_once = max(1, block_scores // (size * max(length, 1)))
    for first_row in range(0, len(picked), at_once):
        rows = picked[first_row : first_row + at_once]
        seeing = rows[start[rows] < stop[rows]]
        keys = slice(int(start[seeing].min()), int(stop[seeing].max())) if len(seeing) else slice(0, 0)
        whole = slice(int(rows[0]), int(rows[-1]) + 1)
        picked_rows = whole if whole.stop - whole.start == len(rows) else rows
        place = Place(part, index, {"head": heads, "row": picked_rows})
        cut = _Cut(options, index, heads, rows, keys, (size, len(rows), keys.stop - keys.start))
        visible = cut.stacked(range_mask(start[rows], stop[rows], keys.start, keys.stop))
        output, lse = (place.cut(result, array) for result, array in zip(RESULTS, exact, strict=True))
        yield _tile(place, group, cut, visible, output, lse[:, 0])


@dataclass
class _Cut:
    """The part of the options that one tile needs, with its rows stacked."""

    options: object
    index: tuple
    heads: slice
    rows: np.ndarray
    keys: slice
    shape: tuple  # (G, rows, S)

    def stacked(self, array):
        """(..., rows, S) as (R, S)."""
        return np.broadcast_to(array, self.shape).reshape(self.shape[0] * self.shape[1], self.shape[2])

    def plane(self, name):
        array = getattr(self.options, name)
        return (
            None if array is None else self.stacked(array[self.index][self.heads][:, self.rows, self.keys])
        )

    def per_row(self, name):
        array = getattr(self.options, name)
        if array is None:
            return None
        return np.repeat(np.asarray(array[self.index][self.heads], dtype=np.float64), self.shape[1])

    def distance(self):
        position = self.options.q_offset[self.index] + self.rows
        distance = np.abs(position[:, None] - np.arange(self.keys.start, self.keys.stop))
        return self.stacked(distance.astype(np.float64))


@dataclass
class _Scores:
    """The stages of the scores, (R, S) each, hidden keys included; `alibi` and `bias` are None if unused."""

    scaled: np.ndarray
    capped: np.ndarray
    biased: np.ndarray
    alibi: np.ndarray | None
    bias: np.ndarray | None


def _scores(cut, query, key) -> _Scores:
    """s = cap tanh(scale q . k / cap) - slope distance + bias, and its stages."""
    options = cut.options
    scaled = options.scale * (query.exact @ key.exact.T)
    capped = scaled if options.softcap is None else options.softcap * np.tanh(scaled / options.softcap)
    biased, slopes, alibi, bias = capped, cut.per_row("alibi_slopes"), None, cut.plane("bias")
    if slopes is not None:
        alibi = slopes[:, None] * cut.distance()
        biased = biased - alibi
    if bias is not None:
        bias = np.asarray(bias, dtype=np.float64)
        biased = biased + bias
    return _Scores(scaled, capped, biased, alibi, bias)


def _tile(place, group, cut, visible, output, lse):
    options = cut.options
    query, key, value = (
        _stack_rows(group.query.rows(cut.rows)),
        group.key.rows(cut.keys),
        group.value.rows(cut.keys),
    )
    mask, keep, sink = cut.plane("mask"), cut.plane("dropout_mask"), cut.per_row("sinks")
    if mask is not None:
        visible = visible & mask
    scores = _scores(cut, query, key)

    broken = (visible & ~(scores.biased < np.inf)).any(axis=1)
    hidden_by_bias = None if scores.bias is None else visible & (scores.bias == -np.inf)
    in_sight = visible if hidden_by_bias is None else visible & ~hidden_by_bias
    broken |= (in_sight & (scores.biased == -np.inf) & _finite_pairs(query, key)).any(axis=1)
    visible = visible & (scores.biased > -np.inf) & ~broken[:, None]
    only = lambda x: np.where(visible, x, 0.0)
    maximum = np.where(visible, scores.biased, -np.inf).max(axis=1, initial=-np.inf)
    maximum = maximum if sink is None else np.maximum(maximum, sink)
    maximum = np.where(maximum > -np.inf, maximum, 0.0)
    drop = only(maximum[:, None] - scores.biased)
    exponentials = only(np.exp(-drop))
    total = exponentials.sum(axis=1, keepdims=True)
    total = np.maximum(total + (0.0 if sink is None else np.exp(sink - maximum)[:, None]), 1.0)
    weights = exponentials / total
    latent = group.latent
    return Tile(
        place=place,
        output=output,
        lse=lse,
        scores=only(scores.scaled),
        capped=only(scores.capped),
        biased=only(scores.biased),
        alibi=None if scores.alibi is None else only(np.abs(scores.alibi)),
        bias=None if scores.bias is None else only(np.abs(scores.bias)),
        drop=drop,
        visible=visible,
        hidden_by_bias=None if hidden_by_bias is None or not hidden_by_bias.any() else hidden_by_bias,
        in_sight=in_sight,
        broken=broken,
        infinite=_infinite_values(value, visible if keep is None else visible & keep, drop, total),
        weights=weights,
        kept=weights if keep is None else np.where(keep, weights * options.keep_scale, 0.0),
        total=total,
        maximum=maximum,
        sink=sink,
        count=visible.sum(axis=1, keepdims=True),
        query=_finite(query),
        key=_finite(key),
        value=_finite(value),
        latent=None if latent is None else latent.latent[cut.keys],
        w_uv=None if latent is None else latent.w_uv,
        scale=abs(options.scale),
        softcap=options.softcap,
        keep_scale=1.0 if keep is None else options.keep_scale,
        shared_rounding=group.shared_rounding,
    )


def _finite_pairs(query, key):
    """Pairs of a row and a key, (R, S), that hold finite numbers only: their exact score is finite."""
    rows, keys = (np.isfinite(side.exact).all(axis=1) for side in (query, key))
    return rows[:, None] & keys


def _infinite_values(value, taken, drop, total):
    """The keys with a value that is not finite, None without any; `taken`: visible and not dropped."""
    holes = ~np.isfinite(value.exact).all(axis=1)
    if not holes.any():
        return None
    return InfiniteValues(drop[:, holes], total, taken[:, holes], value.exact[holes])


def _finite(operand):
    return Operand(finite(operand.exact), operand.largest_error, operand.typical_error)


def _stack_rows(operand):
    flat = lambda part: part.reshape(math.prod(part.shape[:-1]), part.shape[-1])
    return Operand(*(None if part is None else flat(part) for part in operand.parts))
