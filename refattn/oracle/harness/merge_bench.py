"""`check_kernel` for kernels that join partial results, as `refattn.merge_states` does: (outputs, lses) ->
(output, lse).

The bound is rigorous. With exact weights p_k = exp(lse_k - lse), a weight off by the relative error d_k
moves the output by sum_k p_k d_k (o_k - o) / (1 - sum_k p_k d_k): first what the kernel's exponents lose
(each lse rounded once, as where it is scaled to base 2, their difference, its product), then its
exponential; products, sums and the division add (N + 2) roundoffs of sum_k p_k |o_k|.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

import refattn
from refattn.oracle.harness.bench import Bench, Failure, Trial
from refattn.oracle.inputs.families import AttentionInputs
from refattn.oracle.inputs.variants import JUNK

SHAPE = 2, 3, 7, 6  # batch, heads, rows, v_head_dim


@dataclass
class MergeBound:
    """The exact result, and what a kernel may be off by."""

    output: np.ndarray
    lse: np.ndarray
    output_bound: np.ndarray
    lse_bound: np.ndarray


def merge_bound(outputs, lses, spec) -> MergeBound:
    """Exact result and bounds for states of shapes (N, ..., T, E) and (N, ..., T)."""
    outputs, lses = np.asarray(outputs, np.float64), np.asarray(lses, np.float64)
    output, lse = refattn.merge_states(outputs, lses)
    roundoff = max(spec.softmax.unit_roundoff, spec.accumulator_roundoff)
    with np.errstate(all="ignore"):
        p = np.where(np.isneginf(lses), 0.0, np.exp(lses - lse))
        top = np.abs(np.max(lses, axis=0))
        exponent = (
            3.0
            * roundoff
            * (np.where(np.isfinite(lses), np.abs(lses), 0.0) + np.where(np.isfinite(top), top, 0.0))
        )
        weight = np.where(p > 0, np.expm1(exponent) + spec.exp_error, 0.0)  # d_k
        drift = (p * weight).sum(0)
        size = np.where(np.isneginf(lses)[..., None], 0.0, np.abs(outputs))
        spread = np.where(p[..., None] > 0, np.abs(outputs - output), 0.0)
        moved = (p * weight)[..., None] * spread + (
            (len(lses) + 2) * roundoff * p[..., None] + spec.softmax.smallest_normal
        ) * size
        moved = moved.sum(0) / (1.0 - drift)[..., None]
        output_bound = (
            moved + spec.output.unit_roundoff * (np.abs(output) + moved) + spec.output.half_subnormal_step
        )
        # of the sum, then of its log
        total = (drift + len(lses) * roundoff) / (1.0 - drift) + 4.0 * roundoff * (1.0 + top + np.abs(lse))
        lse_bound = total + spec.lse.unit_roundoff * (np.abs(lse) + total)
    return MergeBound(output, lse, output_bound, lse_bound)


def merge_cases(dtype, seed, level) -> Iterator[AttentionInputs]:
    """States as split keys give them: alike, far apart, empty, NaN."""
    for more in range(1 if level == "quick" else 5):
        rng, ending = np.random.default_rng([seed + more, 9]), f", seed {seed + more}" if more else ""
        for count in (1, 2, 3, 8) if level == "quick" else (1, 2, 3, 5, 8, 33):
            yield _states(f"{count} states{ending}", rng, dtype, count)
        yield _states(f"lse far apart{ending}", rng, dtype, 4, spread=60.0)
        yield _states(f"large lse{ending}", rng, dtype, 4, middle=3000.0)
        yield _states(f"very negative lse{ending}", rng, dtype, 4, middle=-3000.0)
        yield _states(f"equal lse{ending}", rng, dtype, 4, spread=0.0)
        yield _states(f"rows empty in one state{ending}", rng, dtype, 3, empty=slice(1))
        yield _states(f"rows empty in all states{ending}", rng, dtype, 3, empty=slice(3))
        yield _states(f"rows NaN in one state{ending}", rng, dtype, 3, empty=slice(1, 2), filler=np.nan)


def _states(name, rng, dtype, count, *, middle=0.0, spread=2.0, empty=None, filler=None):
    outputs = rng.standard_normal((count, *SHAPE)).astype(dtype)
    lses = (middle + spread * rng.standard_normal((count, *SHAPE[:-1]))).astype(
        np.float64 if dtype == np.float64 else np.float32
    )
    if empty is not None:
        outputs[empty, :, :, ::3], lses[empty, :, :, ::3] = (
            (0, -np.inf) if filler is None else (filler, filler)
        )
    return AttentionInputs(name, "normal", "merge_states", (outputs, lses))


def hidden_states(dtype, seed, filler):
    """Empty states whose outputs hold `filler`: their weight is 0, so nobody may read them."""
    inputs = _states("outputs of empty states", np.random.default_rng([seed, 9]), dtype, 3, empty=slice(2))
    outputs, lses = inputs.arrays
    outputs[np.isneginf(lses)] = filler
    return inputs


@dataclass
class MergeBench(Bench):
    """A merge kernel with all that its tests need."""

    def judged(self, inputs, result):
        exact = merge_bound(*inputs.arrays, self.spec)
        use = self.use(result.output, exact.output, exact.output_bound, "output", result)
        return (
            use
            if result.lse is None
            else max(use, self.use(result.lse, exact.lse, exact.lse_bound, "lse", result))
        )

    def use(self, got, expected, bound, name, result) -> float:
        """Largest error / bound; Failure where it is above 1, and where one is finite and the other
        is not.
        """
        got = np.asarray(got, np.float64)
        if got.shape != expected.shape:
            raise Failure(f"{name} must have shape {expected.shape}; got {got.shape}", None, result)
        with np.errstate(all="ignore"):
            same = (got == expected) | np.isnan(got) & np.isnan(expected)
            ratio = np.where(same, 0.0, np.abs(got - expected) / bound)
        ratio = np.where(np.isnan(ratio), np.inf, ratio)
        if (ratio > 1).any():
            at = tuple(int(i) for i in np.unravel_index(np.argmax(ratio), ratio.shape))
            words = (
                f"{name}: {np.count_nonzero(ratio > 1)} of {ratio.size} elements beyond the bound, the "
                f"worst at {at}: "
            )
            raise Failure(
                words + f"got {got[at]:.9g}, expected {expected[at]:.9g}, bound {bound[at]:.3g}",
                None,
                result,
            )
        return float(ratio.max(initial=0.0))

    def tests(self) -> Iterator[Trial]:
        cases = list(merge_cases(self.dtype, self.seed, self.level))
        for inputs in cases:
            yield Trial("reference", inputs.name, partial(self.reference, inputs), inputs)
        plain = next(inputs for inputs in cases if inputs.name == "3 states")
        yield Trial("identities", "states in another order", partial(self.reordered, plain))
        yield Trial("identities", "two joined, then the third", partial(self.in_turn, plain))
        hidden = hidden_states(self.dtype, self.seed, np.nan if self.hides_nan else JUNK)
        yield Trial("hidden slots", hidden.name, partial(self.reference, hidden), hidden)
        yield from self.trials_of_buffers(cases, plain, cases[:4])

    def reordered(self, inputs):
        first, second = (
            self.run(arrays, {}) for arrays in (inputs.arrays, tuple(array[::-1] for array in inputs.arrays))
        )
        exact = merge_bound(*inputs.arrays, self.spec)
        return self.use(
            first.output,
            np.asarray(second.output, np.float64),
            2.0 * exact.output_bound,
            "output in another order",
            first,
        )

    def in_turn(self, inputs):
        """Associativity: the error of the first join, and what the error of its lse moves, come on top."""
        outputs, lses = inputs.arrays
        pair = self.run((outputs[:2], lses[:2]), {})
        if pair.lse is None:
            return self.reference(inputs)
        joined = [
            np.stack([np.asarray(one).astype(many.dtype), many[2]])
            for one, many in ((pair.output, outputs), (pair.lse, lses))
        ]
        whole, twice = self.run(inputs.arrays, {}), self.run(tuple(joined), {})
        before, after = merge_bound(outputs[:2], lses[:2], self.spec), merge_bound(*joined, self.spec)
        exact = merge_bound(outputs, lses, self.spec)
        spread = np.ptp(np.asarray(outputs, np.float64), axis=0)
        bound = (
            exact.output_bound
            + after.output_bound
            + before.output_bound
            + np.expm1(2.0 * before.lse_bound)[..., None] * spread
        )
        return self.use(
            twice.output, np.asarray(whole.output, np.float64), bound, "output of two joins", twice
        )
