"""What each form of attention multiplies: one group of query heads with its keys and values in float64, and
how far a kernel's own copies of them may be off.

A packed, paged or block-local call is a list of dense parts. A latent call is one part whose keys and values
are those of the expanded heads, whichever form the kernel runs: both forms compute the same sums, they
differ in which operands they round.

    absorb   The query is q_nope @ w_uk, rounded: an error of the query. The second product runs over
             latents, and its result is rounded before it meets w_uv: `Latent` keeps both so that the error
             of that sum can be taken where it happens.
    expand   Keys and values are latent @ w_uk and latent @ w_uv, rounded: errors of key and value.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from refattn.calls.options import Options
from refattn.calls.registry import ATTENTION, form_called
from refattn.oracle.arithmetic.formats import FORMATS, all_held
from refattn.oracle.bounds import single
from refattn.oracle.bounds.repeated_keys import repeated_keys
from refattn.oracle.bounds.single import Parts


@dataclass
class Operand:
    """A matrix and how far the kernel's copy may be off, entry by entry; None if it is exact.

    In float64, or in float32 where the arrays hold no more and the bounds need no more.
    """

    exact: np.ndarray
    largest_error: np.ndarray | None = None
    typical_error: np.ndarray | None = None  # range of one independent rounding, for sums of squares

    def rounded_to(self, target, dtype) -> Operand:
        """The operand, which was an array of `dtype`, after conversion to a format; exact where it already
        held such numbers."""
        given = FORMATS.get(dtype.name, FORMATS["float64"])
        if target.holds(given) or all_held(self.exact, target):
            return self
        own = target.unit_roundoff * np.abs(finite(self.exact)) + target.half_subnormal_step
        if self.largest_error is None:
            return Operand(self.exact, own, own)
        grown = self.largest_error * (1.0 + target.unit_roundoff) + own
        return Operand(self.exact, grown, np.hypot(self.typical_error, own))

    @property
    def parts(self):
        return self.exact, self.largest_error, self.typical_error

    @cached_property
    def in_single(self):
        """`single.in_single` of the matrix, made once for all groups that share it."""
        return single.in_single(self.exact)

    @cached_property
    def repeated(self):
        """Index sets of equal rows."""
        return repeated_keys(finite(self.exact), None if self.in_single is None else self.in_single.exact)

    def rows(self, rows) -> Operand:
        return Operand(*(None if part is None else part[..., rows, :] for part in self.parts))


@dataclass
class Latent:
    """The second product of the absorbed form: weights @ latent, (S, C), rounded, then @ w_uv.T, (E, C)."""

    latent: Operand  # all entries finite
    w_uv: np.ndarray


@dataclass
class Group:
    """The query heads that share one key/value head: query (G, T, D), key (length, D), value (length, E)."""

    query: Operand
    key: Operand
    value: Operand
    latent: Latent | None = None
    # a projection weight is rounded: one error in all keys or values, which no sum averages out
    shared_rounding: bool = False


@dataclass
class Part:
    """A dense problem inside a call: where its results lie in the call's, how to load a group of heads."""

    options: Options
    batch_shape: tuple
    num_kv_heads: int
    group_size: int
    q_len: int
    kv_len: int
    load: Callable  # (batch index, kv head) -> Group
    rows: tuple = (Ellipsis, slice(None))  # index of the call's lse that gives (*batch, H, T)

    @property
    def channels(self):
        """Index of the call's output that gives (*batch, H, T, E)."""
        return *self.rows, slice(None)


@dataclass
class Call:
    """One call of one function: its dense parts and the shape of its output."""

    parts: Iterator[Part]
    output_shape: tuple
    places: tuple = (...,)  # of the parts: indices of the call's lse, each that of `Part.rows`

    @property
    def lse_shape(self):
        return self.output_shape[:-1]


def operands(function, arrays, options, spec) -> Call:
    """Check the arguments of a public function and cut the call into dense parts."""
    form = form_called(function, ATTENTION)
    problem = form.check(*arrays, **options)
    if form.projects:
        return Call(iter([_latent_part(problem, spec)]), problem.output_shape)
    places = tuple(problem.place(n) for n in range(problem.num_parts))
    parts = (_dense_part(part.problem, spec, part.rows) for part in problem.parts())
    return Call(parts, problem.output_shape, places)


def finite(x):
    """NaN and infinities as 0: what they touch is not finite and has no bound. Without any, the array
    itself."""
    there = np.isfinite(x)
    return x if there.all() else np.where(there, x, x.dtype.type(0.0))


def _loaded(array, spec, dtype=np.float64):
    """An array of the caller as a kernel loads it."""
    return Operand(np.asarray(array, dtype=dtype)).rounded_to(spec.input, array.dtype)


def _narrowest(array, spec):
    """The dtype that holds the numbers of an array, float32 where bounds may be computed in it."""
    return np.float32 if array.dtype.itemsize <= 4 and single.suffices_for(spec) else np.float64


def _dense_part(problem, spec, rows) -> Part:
    size = problem.group_size

    def load(index, kv_head):
        length = int(problem.kv_lengths[index])
        heads = slice(kv_head * size, (kv_head + 1) * size)
        return Group(
            _scaled(_loaded(problem.query[index][heads], spec), spec, problem.scale),
            _loaded(problem.key[index][kv_head, :length], spec, _narrowest(problem.key, spec)),
            _loaded(problem.value[index][kv_head, :length], spec, _narrowest(problem.value, spec)),
        )

    return Part(
        problem, problem.batch_shape, problem.num_kv_heads, size, problem.q_len, problem.kv_len, load, rows
    )


def _scaled(query, spec, scale):
    """The query a kernel scales and rounds before the first product, with the error of the unscaled one."""
    form = spec.scaled_query
    if form.unit_roundoff == 0.0 or scale == 0.0:
        return query
    own = form.unit_roundoff * np.abs(finite(query.exact)) + form.half_subnormal_step / abs(scale)
    if query.largest_error is None:
        return Operand(query.exact, own, own)
    grown = query.largest_error * (1 + form.unit_roundoff) + own
    return Operand(query.exact, grown, np.hypot(query.typical_error, own))


def _latent_part(problem, spec) -> Part:
    batch_shape, num_heads, q_len = (
        problem.q_nope.shape[:-3],
        problem.q_nope.shape[-3],
        problem.q_nope.shape[-2],
    )

    @functools.lru_cache(maxsize=1)  # all heads of a batch entry share them
    def latents(index):
        length = int(problem.kv_lengths[index])
        arrays = problem.kv_latent[index][:length], problem.k_rope[index][:length]
        latent, k_rope = (_loaded(array, spec) for array in arrays)
        in_sums = Operand(finite(latent.exact))
        return latent, k_rope, _joined(latent, k_rope), in_sums

    def load(index, head):
        latent, k_rope, absorbed_key, in_sums = latents(index)
        inputs = (
            problem.q_nope[index][head],
            problem.q_rope[index][head],
            problem.w_uk[head],
            problem.w_uv[head],
        )
        q_nope, q_rope, w_uk, w_uv = (_loaded(array, spec) for array in inputs)
        sides = (latent, q_nope, w_uk, w_uv)
        in_single = single.suffices_for(spec) and all(side.in_single is not None for side in sides)
        dtype = np.float32 if in_single else np.float64
        shared = w_uk.largest_error is not None or w_uv.largest_error is not None
        if problem.implementation == "absorb":
            absorbed = _product(q_nope, w_uk, spec)  # (T, N) @ (N, C)
            # no kernel forms these values; bounds need them to a few digits
            value = _product(latent, _transposed(w_uv), None, dtype, dtype)
            kept = Latent(in_sums, finite(w_uv.exact))
            query = _scaled(_stacked(_joined(absorbed, q_rope)), spec, problem.scale)
            return Group(query, absorbed_key, value, kept, shared)
        key = _joined(_product(latent, _transposed(w_uk), spec, dtype), k_rope)  # (S, C) @ (C, N)
        value = _product(latent, _transposed(w_uv), spec, dtype, dtype)
        query = _joined(q_nope, q_rope)
        return Group(_scaled(_stacked(query), spec, problem.scale), key, value, None, shared)

    return Part(problem, batch_shape, num_heads, 1, q_len, problem.kv_latent.shape[-2], load)


def _transposed(operand):
    return Operand(*(None if part is None else part.T for part in operand.parts))


def _stacked(operand):
    """(T, D) as a group of one head, (1, T, D)."""
    return Operand(*(None if part is None else part[None] for part in operand.parts))


def _joined(left, right):
    """Two operands side by side along the last axis."""
    parts = [np.concatenate([left.exact, right.exact], axis=-1)]
    for name in ("largest_error", "typical_error"):
        sides = [getattr(side, name) for side in (left, right)]
        if sides[0] is None and sides[1] is None:
            return Operand(parts[0])
        both = zip((left, right), sides, strict=True)
        filled = [np.zeros_like(side.exact) if error is None else error for side, error in both]
        parts.append(np.concatenate(filled, axis=-1))
    return Operand(*parts)


def _product(left, right, spec, dtype=np.float64, exact_in=np.float64):
    """left @ right as a kernel computes it ahead of attention: inputs rounded, n terms added up, the result
    stored as `intermediate`; the product itself in `exact_in`, its errors in `dtype`.

    With spec None only the errors of the operands count, because the kernel never forms this product.
    """
    a, b = (
        side.in_single if dtype == np.float32 else Parts.of(finite(side.exact)) for side in (left, right)
    )
    exact = a.exact @ b.exact if exact_in == np.float32 else left.exact @ right.exact
    if spec is None and left.largest_error is None and right.largest_error is None:
        return Operand(exact)
    in_dtype = lambda x: None if x is None else x.astype(dtype, copy=False)
    product = np.abs(in_dtype(finite(exact)))
    largest, squares = np.zeros_like(product), np.zeros_like(product)
    for error, typical, other, first in (
        (*map(in_dtype, left.parts[1:]), b, True),
        (*map(in_dtype, right.parts[1:]), a, False),
    ):
        if error is not None:
            largest += error @ other.magnitude if first else other.magnitude @ error
            squares += typical**2 @ other.square if first else other.square @ typical**2
    if left.largest_error is not None and right.largest_error is not None:
        largest += in_dtype(left.largest_error) @ in_dtype(right.largest_error)
    if spec is not None:
        terms, u = a.exact.shape[-1], spec.accumulator_roundoff
        largest += gamma(terms, u) * (a.magnitude @ b.magnitude + largest)
        squares += u**2 * (chain(terms, spec.sum_block) * (0.5 * (a.square @ b.square) + product**2 / 3))
        stored = spec.intermediate.unit_roundoff
        largest += stored * (product + largest) + spec.intermediate.half_subnormal_step
        squares += (stored * product) ** 2
    if not largest.any():
        return Operand(exact)
    return Operand(exact, largest, np.sqrt(squares))


def gamma(n, u):
    """n u / (1 - n u), the bound of n roundings (Higham 2002, section 3.1); infinite once n u reaches 1."""
    if np.ndim(n) == 0:  # a Python float, which leaves arrays in their dtype
        return n * u / (1.0 - n * u) if n * u < 1.0 else math.inf
    n = np.asarray(n, dtype=np.float64)
    return np.where(n * u < 1.0, n * u / np.where(n * u < 1.0, 1.0 - n * u, 1.0), np.inf)


def chain(n, block):
    """Additions a term passes when n terms are summed in blocks and the blocks one after another."""
    return min(n, block) + math.ceil(n / block)


def smallest_lost(spec):
    """What an operation of the softmax or of the accumulator may lose however small its result."""
    lost = 0.0
    for form in (spec.softmax, spec.accumulator):
        flushed = spec.flushes_subnormals and form.smallest_normal <= spec.softmax.smallest_normal
        rounded = form.half_subnormal_step * (1.0 + spec.truncates)
        lost = max(lost, form.smallest_normal if flushed else rounded)
    return lost
