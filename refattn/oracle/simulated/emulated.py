"""Correct attention kernels in low precision, emulated: what a spec claims, done with NumPy.

An emulation rounds where its `KernelSpec` says a kernel may round, and takes the freedoms real kernels
take: order and size of blocks, splits over keys, pre-scaled queries, inexact exponentials. Tests run it
to show that bounds hold; it is also the quickest way to see what a format costs. Stages in order: load,
scores, cap, shift (ALiBi and bias), hide, then either online softmax over blocks of keys or, in eager
kernels, one softmax over all of them.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from refattn.calls.options import Options
from refattn.calls.registry import form_called
from refattn.exact.visibility import range_mask, row_bounds
from refattn.oracle.arithmetic.formats import round_to
from refattn.oracle.arithmetic.spec import KernelSpec, kernel_spec
from refattn.oracle.bounds.operands import operands


@dataclass(frozen=True)
class EmulatedKernel:
    """A correct kernel with the arithmetic of a spec.

    Attributes
    ----------
    spec : KernelSpec
    reverse : bool
        Take the blocks of keys from the last to the first.
    inexact_functions : bool
        Spread the exponential and tanh over the whole error the spec allows, by a hash of their argument,
        in place of the accurate ones of NumPy.
    first_block : int or None
        Length of the first block, so that block edges fall elsewhere.
    seed : int

    Examples
    --------
    >>> import numpy as np
    >>> x = np.ones((1, 3, 4), dtype=np.float32)
    >>> output, lse = EmulatedKernel(KernelSpec.flash("bfloat16"))(x, x, x)
    >>> output.tolist() == x.tolist()
    True
    """

    spec: KernelSpec
    reverse: bool = False
    inexact_functions: bool = True
    first_block: int | None = None
    seed: int = 0

    def __call__(self, *arrays, function="attention", **options):
        """Output and lse, float64 arrays whose entries are numbers of the spec's output and lse formats."""
        call = operands(function, arrays, options, KernelSpec("exact", input="exact"))
        output, lse = np.zeros(call.output_shape), np.full(call.lse_shape, -np.inf)
        run = _Run(self)
        choice = options.get("form", "absorb") if form_called(function).projects else None
        with np.errstate(all="ignore"):
            for part in call.parts:
                for index in np.ndindex(part.batch_shape):
                    for kv_head in range(part.num_kv_heads):
                        group = part.load(index, kv_head)
                        heads = slice(kv_head * part.group_size, (kv_head + 1) * part.group_size)
                        if choice is None:
                            inputs = [
                                run.load(operand.exact) for operand in (group.query, group.key, group.value)
                            ]
                            finish = None
                        else:
                            inputs, finish = run.load_latent(
                                arrays, index, kv_head, group.key.exact.shape[0], choice
                            )
                        rows = run.attention(*inputs, part.options, index, heads, finish)
                        output[part.channels][index][heads] = rows[0]
                        lse[part.rows][index][heads] = rows[1]
        return output, lse


def emulate(*arrays, spec, function="attention", **options):
    """`EmulatedKernel(spec)` called once; `spec` may be a dtype."""
    return EmulatedKernel(kernel_spec(spec))(*arrays, function=function, **options)


class _Run:
    """One evaluation: the arithmetic as functions. Works in float32, or float64 where the spec's
    softmax does.
    """

    def __init__(self, kernel: EmulatedKernel):
        self.kernel, self.spec = kernel, kernel.spec
        self.kind = np.float64 if self.spec.softmax.name == "float64" else np.float32
        self.plain = (
            self.spec.accumulator.name == np.dtype(self.kind).name
        )  # sums round as the working format does

    def load(self, x):
        return self.flush(round_to(x, self.spec.input).astype(self.kind))

    def flush(self, x):
        """Subnormals of the working format as 0, where the spec allows it."""
        if not self.spec.flushes_subnormals:
            return x
        return np.where(np.abs(x) < self.spec.softmax.smallest_normal, self.kind(0), x)

    def store(self, x, form):
        return round_to(x, form).astype(self.kind)

    def load_latent(self, arrays, index, head, length, choice):
        q_nope, q_rope, kv_latent, k_rope, w_uk, w_uv = (np.asarray(array) for array in arrays)
        q_nope, q_rope, latent, k_rope, w_uk, w_uv = (
            self.load(np.asarray(x, dtype=np.float64))
            for x in (
                q_nope[index][head],
                q_rope[index][head],
                kv_latent[index][:length],
                k_rope[index][:length],
                w_uk[head],
                w_uv[head],
            )
        )
        middle = self.spec.intermediate
        if choice == "absorb":
            absorbed = self.store(q_nope @ w_uk, middle)
            inputs = (
                np.concatenate([absorbed, q_rope], -1)[None],
                np.concatenate([latent, k_rope], -1),
                latent,
            )
            return inputs, lambda output: self.store(output, middle) @ w_uv.T
        key, value = self.store(latent @ w_uk.T, middle), self.store(latent @ w_uv.T, middle)
        return (np.concatenate([q_nope, q_rope], -1)[None], np.concatenate([key, k_rope], -1), value), None

    def function(self, exact, x, error):
        """A function's values at x with the relative error a kernel may have, in the working format;
        equal x give equal values.
        """
        if self.kernel.inexact_functions:
            spread = max(error - self.spec.softmax.unit_roundoff, 0.0)
            exact = exact * (1.0 + spread * _scrambled(x, self.kernel.seed))
        return self.flush(exact.astype(self.kind))

    def exp(self, x):
        return self.function(np.exp(x.astype(np.float64)), x, self.spec.exp_error)

    def accumulate(self, total, a, b):
        """total + a @ b: `sum_block` terms among themselves, then onto the total."""
        step = self.spec.sum_block
        for first in range(0, a.shape[-1], step):
            terms = slice(first, first + step)
            if self.plain:
                total = self.flush(total + self.flush(a[..., terms] @ b[terms]))
            else:
                total = self.rounded_sum(total, self.rounded_block(a[..., terms], b[terms]))
        return total

    def rounded_sum(self, x, y):
        return round_to(
            x.astype(np.float64) + y, self.spec.accumulator, truncate=self.spec.truncates
        ).astype(self.kind)

    def rounded_block(self, a, b):
        """a @ b term by term in a narrow accumulator."""
        total = self.rounded_sum(a[..., :1] * b[0], self.kind(0))
        for term in range(1, a.shape[-1]):
            total = self.rounded_sum(total, a[..., term, None] * b[term])
        return total

    def product(self, a, b):
        return self.accumulate(np.zeros((*a.shape[:-1], b.shape[-1]), self.kind), a, b)

    def add_up(self, total, weights):
        """total + the sum of weights over the last axis, in the order of the products."""
        step = self.spec.sum_block
        if step > 1:
            starts = np.arange(0, weights.shape[-1], step)
            weights = np.add.reduceat(weights, starts, axis=-1) if len(starts) else weights
        return np.concatenate([total[..., None], weights], axis=-1).cumsum(axis=-1, dtype=self.kind)[..., -1]

    def scores(self, query, key, options: Options):
        spec, scale = self.spec, self.kind(options.scale)
        if spec.scaled_query.unit_roundoff:
            return self.cap(
                self.product(self.store(query * scale, spec.scaled_query), key.T), options.softcap
            )
        products = self.store(self.product(query, key.T), spec.score)
        return self.cap(self.store(products * scale, spec.score), options.softcap)

    def cap(self, scores, softcap):
        if softcap is None:
            return scores
        form, softcap = self.spec.score, self.kind(softcap)
        ratio = self.store(scores / softcap, form)
        tangent = self.function(np.tanh(ratio.astype(np.float64)), ratio, self.spec.tanh_error)
        return self.store(softcap * self.store(tangent, form), form)

    def attention(self, query, key, value, options: Options, index, heads, finish):
        """All rows of a group: (G, T, E) and (G, T), written."""
        length = len(key)
        q_len = query.shape[1]
        position = options.q_offset[index] + np.arange(q_len)
        seen = range_mask(*row_bounds(options, position, length), 0, length)[None]  # (1, T, S)
        if options.mask is not None:
            seen = seen & options.mask[index][heads][..., :length]
        sinks = None if options.sinks is None else options.sinks[index][heads].astype(self.kind)[:, None]

        def tile(first, last):
            """Scores of some keys, -inf where hidden, (G, T, last - first)."""
            scores = self.scores(query, key[first:last], options)
            if options.alibi_slopes is not None:
                slopes = options.alibi_slopes[index][heads].astype(self.kind)[:, None, None]
                distance = np.abs(position[:, None] - np.arange(first, last)).astype(self.kind)
                scores = self.store(scores - slopes * distance, self.spec.score)
            if options.bias is not None:
                bias = self.load(np.asarray(options.bias[index][heads][..., first:last], dtype=np.float64))
                scores = self.store(scores + bias, self.spec.score)
            return np.where(seen[..., first:last], scores, self.kind(-np.inf))

        def dropped(weights, first, last):
            if options.dropout_mask is None:
                return weights
            keep = options.dropout_mask[index][heads][..., first:last]
            return np.where(keep, weights * self.kind(options.keep_scale), self.kind(0))

        if self.spec.normalises_first:
            output, lse = self.eager(tile, value, sinks, dropped)
        else:
            output, lse = self.split(tile, value, sinks, dropped, (*query.shape[:2], value.shape[-1]))
        if finish is not None:
            output = finish(output)
        return round_to(self.flush(output).astype(np.float64), self.spec.output), round_to(
            lse.astype(np.float64), self.spec.lse
        )

    def eager(self, tile, value, sinks, dropped):
        scores = tile(0, len(value))
        top = scores.max(axis=-1, initial=-np.inf)
        if sinks is not None:
            top = np.maximum(top, sinks)
        base = np.where(top == -np.inf, self.kind(0), top)
        exponentials = np.where(scores == -np.inf, self.kind(0), self.exp(scores - base[..., None]))
        total = self.add_up(np.zeros_like(top), exponentials)
        if sinks is not None:
            total = total + np.where(sinks > -np.inf, self.exp(sinks - base), self.kind(0))
        safe = np.where(total == 0, self.kind(1), total)
        weights = self.convert(dropped(exponentials / safe[..., None], 0, len(value)))
        output = self.weigh(np.zeros((*top.shape, value.shape[-1]), self.kind), weights, value)
        return output, np.where(total == 0, -np.inf, base + np.log(safe))

    def weigh(self, output, weights, value):
        """output + weights @ value; a value that is not finite reaches the rows that see it."""
        broken = ~np.isfinite(value).all(axis=-1)
        if not broken.any():
            return self.accumulate(output, weights, value)
        output = self.accumulate(output, weights, np.where(broken[:, None], self.kind(0), value))
        for key in np.flatnonzero(broken):
            output = output + np.where(
                weights[..., key, None] == 0, self.kind(0), weights[..., key, None] * value[key]
            )
        return output

    def convert(self, weights):
        scale = self.kind(self.spec.weight_scale)
        return self.store(weights * scale, self.spec.weight) / scale

    def split(self, tile, value, sinks, dropped, shape):
        """The key ranges of a split kernel, each online; joined through their lse."""
        count = max(1, min(self.spec.splits, len(value)))
        edges = np.linspace(0, len(value), count + 1).astype(int)
        states = []
        for first, last in itertools.pairwise(edges):
            states.append(
                self.online(tile, value, sinks if first == 0 else None, dropped, shape, first, last)
            )
        if count == 1:
            return states[0]
        lses = np.stack([lse for _, lse in states])
        top = lses.max(axis=0)
        base = np.where(top == -np.inf, self.kind(0), top)
        shares = np.where(lses == -np.inf, self.kind(0), self.exp(lses - base))
        total = shares.sum(axis=0, dtype=self.kind)
        safe = np.where(total == 0, self.kind(1), total)
        output = np.zeros(shape, self.kind)
        for share, (part, _) in zip(shares, states, strict=True):
            output = output + (share / safe)[..., None] * part
        return output, np.where(total == 0, -np.inf, base + np.log(safe))

    def online(self, tile, value, sinks, dropped, shape, first_key, last_key):
        kind = self.kind
        top = np.full(shape[:2], -np.inf, kind)
        total, output = np.zeros(shape[:2], kind), np.zeros(shape, kind)
        if sinks is not None:
            top = np.broadcast_to(sinks, top.shape).astype(kind)
            total = (top > -np.inf).astype(kind)
        for first, last in self.blocks(first_key, last_key):
            scores = tile(first, last)
            new = np.maximum(top, scores.max(axis=-1, initial=-np.inf))
            base = np.where(new == -np.inf, kind(0), new)
            shrink = np.where(top == new, kind(1), np.where(top == -np.inf, kind(0), self.exp(top - base)))
            weights = np.where(scores == -np.inf, kind(0), self.exp(scores - base[..., None]))
            weights = np.where(
                scores == base[..., None], kind(1), weights
            )  # exp(0) is exact in every library
            converted = self.convert(dropped(weights, first, last))
            summed = weights if self.spec.denominator == "unrounded" else self.convert(weights)
            total = self.add_up(total * shrink, summed)
            output = self.weigh(output * shrink[..., None], converted, value[first:last])
            top = new
        safe = np.where(total == 0, kind(1), total)
        return output / safe[..., None], np.where(
            total == 0, -np.inf, np.where(top == -np.inf, kind(0), top) + np.log(safe)
        )

    def blocks(self, first, last):
        """Key ranges in the order they are taken."""
        size = self.spec.block_size or max(last - first, 1)
        edges = list(range(first + min(self.kernel.first_block or size, size), last, size))
        ranges = list(zip([first, *edges], [*edges, last], strict=True)) if last > first else []
        return ranges[::-1] if self.kernel.reverse else ranges


def _scrambled(x, seed):
    """Numbers in [-1, 1) that look random but depend on the bits of x alone."""
    bits = np.ascontiguousarray(x, dtype=np.float64).view(np.uint64) ^ np.uint64(
        (seed * 0x9E3779B97F4A7C15) % 2**64
    )
    for shift, factor in (
        (33, 0xFF51AFD7ED558CCD),
        (33, 0xC4CEB9FE1A85EC53),
    ):  # the finaliser of MurmurHash3
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0
