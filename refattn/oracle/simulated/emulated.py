"""Correct attention kernels in low precision, emulated: what a spec claims, done with NumPy.

An emulation rounds where its `KernelSpec` says a kernel may round, and takes the freedoms real kernels
take: order and size of blocks, splits over keys, pre-scaled queries, inexact exponentials. Tests run it
to show that bounds hold; it is also the quickest way to see what a format costs. Its numerics are stages of
the tiled kernel (`staged.py`): a group of heads goes through that kernel's loop over blocks of keys, or, in
eager kernels, through one softmax over all of them.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, fields, replace

import numpy as np

from refattn.calls.dense import Problem
from refattn.calls.registry import form_called
from refattn.oracle.arithmetic.formats import round_to
from refattn.oracle.arithmetic.spec import KernelSpec, kernel_spec
from refattn.oracle.bounds.operands import operands
from refattn.oracle.simulated.staged import (
    CORRECT,
    Arithmetic,
    Run,
    Sample,
    Stages,
    finite_or_zero,
    over_tiles,
    position_bias,
    start,
    tile_scores,
)


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
        numerics = _Numerics(self)
        choice = options.get("form", "absorb") if form_called(function).projects else None
        with np.errstate(all="ignore"):
            for part in call.parts:
                for index, kv_head in itertools.product(
                    np.ndindex(part.batch_shape), range(part.num_kv_heads)
                ):
                    group, finish = part.load(index, kv_head), None
                    heads = slice(kv_head * part.group_size, (kv_head + 1) * part.group_size)
                    inputs = [
                        numerics.load(operand.exact) for operand in (group.query, group.key, group.value)
                    ]
                    if choice is not None:
                        length = len(group.key.exact)
                        inputs, finish = numerics.load_latent(arrays, index, kv_head, length, choice)
                    problem = _one_group(part.options, index, heads, *inputs)
                    rows = numerics.attention(problem, finish)
                    output[part.channels][index][heads], lse[part.rows][index][heads] = rows
        return output, lse


def _one_group(options, index, heads, query, key, value):
    """The problem of one sequence and of query heads (G, T, D) that share keys (S, D) and values (S, E)."""
    options = options.options_at(
        per_score=(*index, None, heads, ..., slice(len(key))),
        per_head=(*index, None, heads),
        per_entry=(*index, None),
    )
    return Problem(**options.options(), query=query[None], key=key[None, None], value=value[None, None])


def emulate(*arrays, spec, function="attention", **options):
    """`EmulatedKernel(spec)` called once; `spec` may be a dtype."""
    return EmulatedKernel(kernel_spec(spec))(*arrays, function=function, **options)


class _Numerics:
    """The arithmetic of a spec as stages of the tiled kernel. Works in float32, or float64 where the spec's
    softmax does.
    """

    def __init__(self, kernel: EmulatedKernel):
        self.kernel, self.spec = kernel, kernel.spec
        self.kind = np.float64 if self.spec.softmax.name == "float64" else np.float32
        # sums round as the working format does
        self.plain = self.spec.accumulator.name == np.dtype(self.kind).name
        # a method named as a stage is that stage
        names = [field.name for field in fields(Stages) if hasattr(self, field.name)]
        self.stages = replace(CORRECT, **{name: getattr(self, name) for name in names})

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
        rows, keys = (*index, head), (*index, slice(length))
        q_nope, q_rope, latent, k_rope, w_uk, w_uv = (
            self.load(np.asarray(np.asarray(array)[at], dtype=np.float64))
            for array, at in zip(arrays, (rows, rows, keys, keys, head, head), strict=True)
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

    def add_products(self, total, a, b):
        """total + a @ b: `sum_block` terms among themselves, then onto the total."""
        step = self.spec.sum_block
        for first in range(0, a.shape[-1], step):
            terms = slice(first, first + step)
            if self.plain:
                total = self.flush(total + self.flush(a[..., terms] @ b[..., terms, :]))
            else:
                total = self.rounded_sum(total, self.rounded_block(a[..., terms], b[..., terms, :]))
        return total

    def rounded_sum(self, x, y):
        return round_to(
            x.astype(np.float64) + y, self.spec.accumulator, truncate=self.spec.truncates
        ).astype(self.kind)

    def rounded_block(self, a, b):
        """a @ b term by term in a narrow accumulator."""
        total = self.rounded_sum(a[..., :1] * b[..., :1, :], self.kind(0))
        for term in range(1, a.shape[-1]):
            total = self.rounded_sum(total, a[..., term, None] * b[..., term, None, :])
        return total

    def product(self, a, b):
        return self.add_products(np.zeros((*a.shape[:-1], b.shape[-1]), self.kind), a, b)

    def add_up(self, total, weights):
        """total + the sum of weights over the last axis, in the order of the products."""
        step = self.spec.sum_block
        if step > 1:
            starts = np.arange(0, weights.shape[-1], step)
            weights = np.add.reduceat(weights, starts, axis=-1) if len(starts) else weights
        return np.concatenate([total, weights], axis=-1).cumsum(axis=-1, dtype=self.kind)[..., -1:]

    def score(self, run, q, k):
        spec, scale, k = self.spec, self.kind(run.problem.scale), np.swapaxes(k, -1, -2)
        if spec.scaled_query.unit_roundoff:
            return self.product(self.store(q * scale, spec.scaled_query), k)
        return self.store(self.store(self.product(q, k), spec.score) * scale, spec.score)

    def cap(self, run, s):
        if run.problem.softcap is None:
            return s
        form, softcap = self.spec.score, self.kind(run.problem.softcap)
        ratio = self.store(s / softcap, form)
        tangent = self.function(np.tanh(ratio.astype(np.float64)), ratio, self.spec.tanh_error)
        return self.store(softcap * self.store(tangent, form), form)

    def shift(self, run, s, columns):
        term, bias = position_bias(run, columns), run.problem.bias
        if term is not None:
            s = self.store(s + term, self.spec.score)
        if bias is not None:
            bias = self.load(np.asarray(run.plane(bias, columns), dtype=np.float64))
            s = self.store(s + bias, self.spec.score)
        return s

    def correction(self, run, old_top, new_top, last):
        shrink = self.exp(old_top - finite_or_zero(new_top))
        return np.where(old_top == new_top, self.kind(1), np.where(old_top == -np.inf, self.kind(0), shrink))

    def weigh(self, run, s, top):
        base = finite_or_zero(top)
        weights = np.where(s == -np.inf, self.kind(0), self.exp(s - base))
        return np.where(s == base, self.kind(1), weights)  # exp(0) is exact in every library

    def denominator(self, run, total, factor, w):
        summed = w if self.spec.denominator == "unrounded" else self.round_weights(run, w)
        return self.add_up(total * factor, summed)

    def round_weights(self, run, w):
        scale = self.kind(self.spec.weight_scale)
        return self.store(w * scale, self.spec.weight) / scale

    def accumulate(self, run, total, factor, w, v, keep):
        """total * factor + w @ v; a value that is not finite reaches the rows that see it."""
        total, broken = total * factor, ~np.isfinite(v).all(axis=(0, 1, 3))
        if not broken.any():
            return self.add_products(total, w, v)
        total = self.add_products(total, w, np.where(broken[:, None], self.kind(0), v))
        for key in np.flatnonzero(broken):
            weight = w[..., key, None]
            total = total + np.where(weight == 0, self.kind(0), weight * v[:, :, None, key])
        return total

    def finish(self, run, top, total, weighted):
        safe = np.where(total == 0, self.kind(1), total)
        return weighted / safe, np.where(total == 0, -np.inf, finite_or_zero(top) + np.log(safe))[..., 0]

    def attention(self, problem, project):
        """All rows of a group, (1, G, T, E) and (1, G, T), written; `project` takes latents to values."""
        run = Run(problem, Sample.everything(problem), Arithmetic(self.kind), self.stages)
        output, lse = (self.eager if self.spec.normalises_first else self.split)(run)
        if project is not None:
            output = project(output)
        return round_to(self.flush(output).astype(np.float64), self.spec.output), round_to(
            lse.astype(np.float64), self.spec.lse
        )

    def eager(self, run):
        problem, columns = run.problem, np.arange(run.problem.kv_len)
        scores, keep = tile_scores(run, problem.query, problem.key, columns)
        top = scores.max(axis=-1, keepdims=True, initial=-np.inf)
        sinks = None if problem.sinks is None else run.per_head(problem.sinks)
        if sinks is not None:
            top = np.maximum(top, sinks)
        base = finite_or_zero(top)
        exponentials = np.where(scores == -np.inf, self.kind(0), self.exp(scores - base))
        total = self.add_up(np.zeros_like(top), exponentials)
        if sinks is not None:
            total = total + np.where(sinks > -np.inf, self.exp(sinks - base), self.kind(0))
        safe = np.where(total == 0, self.kind(1), total)
        weights = self.round_weights(run, run.stages.drop(run, exponentials / safe, columns))
        nothing = np.zeros((*top.shape[:-1], problem.v_head_dim), self.kind)
        output = self.accumulate(run, nothing, self.kind(1), weights, problem.value, keep)
        return output, np.where(total == 0, -np.inf, base + np.log(safe))[..., 0]

    def split(self, run):
        """The key ranges of a split kernel, each online; joined through their lse."""
        problem = run.problem
        shape, length = problem.query.shape[:-1], problem.kv_len
        count = max(1, min(self.spec.splits, length))
        states = []
        for first, last in itertools.pairwise(np.linspace(0, length, count + 1).astype(int)):
            top, total = start(run, (*shape, 1))
            if first > 0:  # the first split alone has the sink
                top, total = np.full_like(top, -np.inf), np.zeros_like(total)
            state = top, total, np.zeros((*shape, problem.v_head_dim), self.kind)
            spans = self.blocks(first, last)
            states.append(
                self.finish(run, *over_tiles(run, problem.query, problem.key, problem.value, spans, state))
            )
        if count == 1:
            return states[0]
        lses = np.stack([lse for _, lse in states])
        top = lses.max(axis=0)
        base = finite_or_zero(top)
        shares = np.where(lses == -np.inf, self.kind(0), self.exp(lses - base))
        total = shares.sum(axis=0, dtype=self.kind)
        safe = np.where(total == 0, self.kind(1), total)
        output = np.zeros((*shape, problem.v_head_dim), self.kind)
        for share, (part, _) in zip(shares, states, strict=True):
            output = output + (share / safe)[..., None] * part
        return output, np.where(total == 0, -np.inf, base + np.log(safe))

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
    # the finaliser of MurmurHash3
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        bits = (bits ^ (bits >> np.uint64(33))) * np.uint64(factor)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0
