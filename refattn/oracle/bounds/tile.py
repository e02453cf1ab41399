"""Attention of one block of rows, and everything an error bound reads from it.

Output and lse are the exact ones, handed in. What a bound needs besides - weights, magnitudes, squares -
need only be good to a few digits. Rows of all heads of a group are stacked: R = G * rows of the block. S
counts the keys that any of these rows can see.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

from refattn.oracle.bounds.infinite_values import InfiniteValues
from refattn.oracle.bounds.operands import Operand, finite
from refattn.oracle.bounds.prepared import PreparedGroup, among
from refattn.oracle.bounds.results import Result, columns
from refattn.oracle.bounds.seen import Seen, seen_of
from refattn.oracle.bounds.single import Parts
from refattn.oracle.bounds.tile_sums import times

# float32 serves where no weight, square or product can leave its range and matter
LARGEST_SCORE = 2.0**14
NO_WEIGHT = 41.0  # exp(-41) is about 2**-59, of which the square is still a normal number of float32
FAINT = 2.0**-40  # outputs this small beside the largest value depend on what float32 takes for 0


@dataclass
class Softmax:
    """The softmax of one block of rows."""

    drop: np.ndarray  # (R, S) row maximum minus score, >= 0; 0 where hidden
    exponentials: np.ndarray  # (R, S) exp(-drop), 0 where hidden
    weights: np.ndarray  # (R, S)
    whole: np.ndarray  # (R, 1) sum of the weights: 1 without a sink, 0 in empty rows
    total: np.ndarray  # (R, 1) denominator relative to the row maximum, >= 1
    maximum: np.ndarray  # (R,) row maximum, the sink among the candidates


@dataclass(kw_only=True)
class Tile(Seen, Softmax):
    """One block of rows. Shapes: R rows, S keys, D head_dim, E v_head_dim.

    Arrays (R, S), and what they are multiplied by, have the dtype `dtype`; numbers of a row are float64.
    """

    place: object  # `row_blocks.Place`
    dtype: np.dtype
    output: np.ndarray  # (R, E) exact
    lse: np.ndarray  # (R,)
    scores: np.ndarray  # (R, S) scale * q . k; 0 where hidden
    capped: np.ndarray  # (R, S) after softcap
    biased: np.ndarray  # (R, S) after ALiBi and bias; 0 where hidden
    alibi: np.ndarray | None  # (R, S) |slope * distance|
    bias: np.ndarray | None  # (R, S) |bias|
    infinite: InfiniteValues | None  # None where all values are finite
    kept: np.ndarray  # (R, S) weights after dropout, the factors of the values
    largest_score: np.ndarray  # (R,) largest score of a visible key, -inf without one
    sink: np.ndarray | None  # (R,)
    query: Operand  # (R, D)
    key: Operand  # (S, D)
    value: Operand  # (S, E), entries that are not finite are 0
    q: Parts  # the exact parts of the same three in the dtype of the tile
    k: Parts
    v: Parts
    repeats: list  # index sets of equal keys
    equal_pairs: list  # of equal keys with equal values
    latent: Parts | None  # (S, C)
    w_uv: np.ndarray | None  # (E, C)
    scale: float
    softcap: float | None
    keep_scale: float
    shared_rounding: bool
    widened: Callable[[], Tile] | None  # the same in float64, of tiles in float32

    def exact(self, result: Result):
        """The exact result, (R, C)."""
        return columns(getattr(self, result.name))

    @property
    def dropout(self):
        return self.kept is not self.weights

    @property
    def head_dim(self):
        return self.query.exact.shape[-1]

    def per_row(self, numbers):
        """One number a row, (R,) or (R, 1), as a factor of arrays (R, S)."""
        return columns(np.asarray(numbers)).astype(self.dtype)

    @cached_property
    def largest_value(self):
        """max_j |v_j|, (E,)."""
        return self.v.magnitude.max(axis=0, initial=0.0).astype(np.float64)

    @cached_property
    def smallest_value(self):
        """No |v_jc| that is not 0 is smaller; inf without one."""
        size = self.v.magnitude
        smallest = size.min(initial=np.inf) if self.v.smallest is None else self.v.smallest
        return float(smallest) if smallest > 0 else size.min(initial=np.inf, where=size > 0)

    @cached_property
    def absolute_sum(self):
        """sum_j kept_j |v_j|, (R, E)."""
        return times(self.kept, self.v.magnitude)

    @cached_property
    def squares(self):
        """sum_j kept_j^2 v_j^2, (R, E)."""
        return times(self.kept * self.kept, self.v.square)


@dataclass
class Cut:
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
    """The stages of the scores, (R, S) each in float64, hidden keys included; `alibi` and `bias` are None if
    unused."""

    scaled: np.ndarray
    capped: np.ndarray
    biased: np.ndarray
    alibi: np.ndarray | None
    bias: np.ndarray | None


def _scores(cut, query, wide_key) -> _Scores:
    """s = cap tanh(scale q . k / cap) - slope distance + bias, and its stages."""
    options = cut.options
    scaled = query.exact @ wide_key.T
    scaled *= options.scale
    capped = scaled if options.softcap is None else options.softcap * np.tanh(scaled / options.softcap)
    biased, slopes, alibi, bias = capped, cut.per_row("alibi_slopes"), None, cut.plane("bias")
    if slopes is not None:
        alibi = slopes[:, None] * cut.distance()
        biased = biased - alibi
    if bias is not None:
        bias = np.asarray(bias, dtype=np.float64)
        biased = biased + bias
    return _Scores(scaled, capped, biased, alibi, bias)


def _softmax(biased, largest_score, sink, dtype) -> Softmax:
    """The softmax of scores in float64, -inf where hidden, in the dtype of the tile."""
    maximum = largest_score if sink is None else np.maximum(largest_score, sink)
    maximum = np.where(maximum > -np.inf, maximum, 0.0)
    below = np.subtract(biased, maximum[:, None]).astype(dtype, copy=False)
    exponentials = np.exp(below)
    if dtype != np.float64 and below.min(initial=0.0) < -NO_WEIGHT:
        np.copyto(exponentials, 0.0, where=below < -NO_WEIGHT)
    of_keys = exponentials.sum(axis=1, keepdims=True).astype(np.float64)
    of_sink = 0.0 if sink is None else np.exp(sink - maximum)[:, None]
    total = np.maximum(of_keys + of_sink, 1.0)
    weights = exponentials * (1.0 / total).astype(dtype)
    return Softmax(np.negative(below, out=below), exponentials, weights, of_keys / total, total, maximum)


def make_tile(place, prepared: PreparedGroup, cut: Cut, visible, edge, output, lse) -> Tile:
    """The tile of some rows; `visible`, (R, S), is what their ranges alone let them see, `edge` as in
    `Tile`."""
    widened = lambda: _tile(place, prepared, cut, visible, edge, output, lse, np.dtype(np.float64))
    tile = None
    if prepared.dtype != np.float64:
        tile = _tile(place, prepared, cut, visible, edge, output, lse, prepared.dtype, widened)
    return widened() if tile is None else tile


def _tile(place, prepared, cut, visible, edge, output, lse, dtype, widened=None):
    """The tile in a dtype; None where float32 is too narrow for it."""
    options, group, keys = cut.options, prepared.group, cut.keys
    query = _stack_rows(group.query.rows(cut.rows))
    mask, keep, sink = cut.plane("mask"), cut.plane("dropout_mask"), cut.per_row("sinks")
    if mask is not None:
        visible, edge = visible & mask, slice(0, visible.shape[1])
    scores = _scores(cut, query, prepared.wide_key[keys])
    finite_pairs = lambda: _finite_pairs(query, group.key.rows(keys))
    seen = seen_of(scores.biased, scores.bias, finite_pairs, visible, edge)
    biased = scores.biased.copy() if scores.biased is scores.capped else scores.biased
    largest_score = seen.hide(biased, -np.inf).max(axis=1, initial=-np.inf)
    largest_product = abs(options.scale) * prepared.largest_product(query)
    if dtype != np.float64 and _too_wide(scores, sink, largest_score, largest_product, query):
        return None
    softmax = _softmax(biased, largest_score, sink, dtype)
    seen.hide(softmax.drop)
    kept = softmax.weights
    if keep is not None:
        kept = np.where(keep, kept * dtype.type(options.keep_scale), dtype.type(0.0))
    k, v = (side.rows(keys) for side in prepared.parts(dtype))
    finite_query = Operand(finite(query.exact), *_in_dtype(query.parts[1:], dtype))
    taken = seen.visible if keep is None else seen.visible & keep
    tile = Tile(
        place=place,
        dtype=dtype,
        output=output,
        lse=lse,
        **_stages(scores, biased, seen, dtype),
        **_fields(softmax),
        **_fields(seen),
        largest_score=largest_score,
        sink=sink,
        infinite=_infinite_values(prepared, keys, taken, softmax.drop, softmax.total),
        kept=kept,
        query=finite_query,
        key=_rows_in_dtype(prepared.key, keys, dtype),
        value=_rows_in_dtype(prepared.value, keys, dtype),
        q=Parts.of(finite_query.exact.astype(dtype, copy=False)),
        k=k,
        v=v,
        repeats=among(prepared.repeated_keys, keys),
        equal_pairs=among(prepared.repeated_pairs, keys),
        latent=None if group.latent is None else prepared.latent(dtype).rows(keys),
        w_uv=None if group.latent is None else group.latent.w_uv,
        scale=abs(options.scale),
        softcap=options.softcap,
        keep_scale=1.0 if keep is None else options.keep_scale,
        shared_rounding=group.shared_rounding,
        widened=widened,
    )
    return None if dtype != np.float64 and _faint(tile) else tile


def _stages(scores, biased, seen, dtype):
    """The stages of the scores as fields of a `Tile`: in its dtype, 0 where hidden, and the magnitudes of
    what is added. `biased` is handed apart, as it may be written over."""

    def stage(array):
        array = array.astype(dtype, copy=dtype == np.float64)
        return seen.hide(array)

    scaled = stage(scores.scaled)
    capped = scaled if scores.capped is scores.scaled else stage(scores.capped)
    return {
        "scores": scaled,
        "capped": capped,
        "biased": capped if scores.biased is scores.capped else stage(biased),
        "alibi": None if scores.alibi is None else stage(np.abs(scores.alibi)),
        "bias": None if scores.bias is None else stage(np.abs(scores.bias)),
    }


def _too_wide(scores, sink, largest_score, largest_product, query):
    """Whether a score, a product in it, or a sink above the scores, leaves what float32 can hold."""
    if sink is not None and (sink > largest_score).any():
        return True
    alone = scores.alibi is None and scores.bias is None
    if alone and query.exact.shape[1] * largest_product <= LARGEST_SCORE:
        return False
    stages = [part for part in (scores.scaled, scores.alibi) if part is not None]
    if scores.bias is not None:
        stages.append(np.where(scores.bias == -np.inf, 0.0, scores.bias))  # that hides keys
    largest = np.max([np.maximum(part.max(initial=0.0), -part.min(initial=0.0)) for part in stages])
    return not max(largest, 2.0**-10 * largest_product) <= LARGEST_SCORE


def _faint(tile):
    """Whether an output depends on weights or values that float32 may have taken for 0."""
    there = tile.largest_value
    seen = tile.absolute_sum[(tile.count > 0)[:, 0]]
    return bool((seen < FAINT * there.max(initial=0.0))[:, there > 0].any())


def _finite_pairs(query, key):
    """Pairs of a row and a key, (R, S), that hold finite numbers only: their exact score is finite."""
    rows, keys = (np.isfinite(side.exact).all(axis=1) for side in (query, key))
    return rows[:, None] & keys


def _infinite_values(prepared, keys, taken, drop, total):
    """The keys with a value that is not finite, None without any; `taken`: visible and not dropped."""
    if prepared.holes is None:
        return None
    holes = prepared.holes[keys]
    if not holes.any():
        return None
    value = prepared.group.value.exact[keys]
    return InfiniteValues(drop[:, holes], total, taken[:, holes], value[holes])


def _fields(part):
    return {field.name: getattr(part, field.name) for field in fields(part)}


def _in_dtype(parts, dtype):
    return [None if part is None else part.astype(dtype, copy=False) for part in parts]


def _rows_in_dtype(operand, rows, dtype):
    """Some rows of an operand, its errors in the dtype of the tile, and itself in no narrower one."""
    exact, *errors = operand.rows(rows).parts
    wide = np.promote_types(exact.dtype, dtype)
    return Operand(exact.astype(wide, copy=False), *_in_dtype(errors, dtype))


def _stack_rows(operand):
    flat = lambda part: part.reshape(-1, part.shape[-1])
    return Operand(*(None if part is None else flat(part) for part in operand.parts))
