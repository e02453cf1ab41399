"""Hypotheses with an unknown number in them: another scale, a constant factor, a constant in lse."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from refattn.oracle.bounds.results import LSE, OUTPUT
from refattn.oracle.diagnosis.budget import Budget
from refattn.oracle.diagnosis.evidence import Evidence, Fit
from refattn.oracle.diagnosis.hypotheses import Hypothesis
from refattn.oracle.diagnosis.samples import choose_samples
from refattn.oracle.mistakes.record import Mistake
from refattn.oracle.mistakes.wrong_kernel import part_outlines

SEARCH_WORK = 2**16
FITTING = "mistakes with a free number"


def fitted_hypotheses(evidence: Evidence, budget: Budget) -> list[Fit]:
    """The best fit of each hypothesis that has a free number, those first that take no search; only
    those for which there is time.
    """
    mistakes = [
        _factor(evidence),
        _factor_per_key_head(evidence),
        _lse_constant(evidence) if LSE in evidence.given else None,
    ]
    mistakes += [_within(budget, search, evidence) for search in (_scale, _scale_per_key_head)]
    fits = [
        budget.attempt(
            "fit", FITTING, evidence.fit, Hypothesis((mistake,)), size=evidence.size(Hypothesis((mistake,)))
        )
        for mistake in mistakes
        if mistake is not None
    ]
    return [fit for fit in fits if fit is not None]


class _NoTimeError(Exception):
    """A search for a number was not finished."""


def _within(budget, search, evidence):
    """The mistake that a search finds, None if its time ends before."""

    def leaves(small, hypothesis):
        if not budget.allows("fit of a number"):
            raise _NoTimeError
        fit = budget.run("fit of a number", small.fit, hypothesis)
        return fit.residual + 1e6 * fit.mismatched

    try:
        return search(evidence, leaves)
    except _NoTimeError:
        budget.ends(FITTING)
        return None


def _known_number(value: float, names: dict[str, float]) -> str:
    """' = 1/sqrt(576)' where the value is a number one can name."""
    for name, known in names.items():
        if abs(value - known) <= 1e-3 * abs(known):
            return f" = {name}"
    return ""


def _scale(evidence, leaves) -> Mistake | None:
    parts = part_outlines(evidence.checked)
    if not parts or not parts[0].scale:
        return None
    small, scale = evidence.on(choose_samples(evidence.checked, SEARCH_WORK)), parts[0].scale

    def mistake(log_ratio, words=""):
        wrong = scale * math.exp(log_ratio)
        return Mistake(
            "scale_other",
            f"the scale is {wrong:.5g}{words} instead of {scale:.5g}",
            f"scale={wrong:.6g}",
            prepare=lambda p: replace(p, scale=p.scale * math.exp(log_ratio)),
        )

    def left(log_ratio):
        return leaves(small, Hypothesis((mistake(log_ratio),)))

    grid = np.linspace(-4, 4, 33)
    values = [left(x) for x in grid]
    best = int(np.argmin(values))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    x = _golden(left, low, high)
    dims = {part for p in parts for part in (p.head_dim, p.v_head_dim)}
    names = {f"1/sqrt({n})": n**-0.5 for n in sorted({*dims, *range(1, 1025)})}
    return mistake(x, _known_number(scale * math.exp(x), names))


def _scale_per_key_head(evidence, leaves) -> Mistake | None:
    """A key scale (fp8 descale) that is forgotten or taken from another head."""
    parts = part_outlines(evidence.checked)
    if len(parts) != 1 or parts[0].num_kv_heads < 2 or not parts[0].scale:
        return None
    part, sample = parts[0], choose_samples(evidence.checked, SEARCH_WORK)[0]
    ratios = np.ones(part.num_kv_heads)
    for kv_head in np.unique(sample.heads // part.group_size):
        own = replace(sample, heads=sample.heads[sample.heads // part.group_size == kv_head])
        small = evidence.on([own])

        def left(log_ratio, small=small):
            return leaves(small, Hypothesis((_scale_times(math.exp(log_ratio)),)))

        grid = np.linspace(-4, 4, 33)
        best = int(np.argmin([left(x) for x in grid]))
        ratios[kv_head] = math.exp(
            _golden(left, grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)], steps=30)
        )
    if np.ptp(ratios) < 1e-3 * ratios.max():
        return None
    words = ", ".join(f"{ratio:.4g}" for ratio in ratios[:8])
    says = f"the scores of each key head are off by a factor of its own ({words}): a key scale per head"
    return Mistake(
        "scale_per_key_head",
        says,
        prepare=lambda p: replace(p, key=_times(p.key, ratios)),
        fitted_kv_heads=len(ratios),
        issues=("vllm-project/vllm #42580", "sgl-project/sglang #34765"),
    )


def _scale_times(ratio) -> Mistake:
    """The same as keys of one head times the ratio, without a copy of them."""
    return Mistake("scale_of_keys", "", prepare=lambda p: replace(p, scale=p.scale * ratio))


def _times(array, ratios):
    """Keys or values multiplied by a number for each key head; another mistake may have made more
    heads of one, or fewer of all.
    """
    heads = array.shape[-3]
    return array * ratios[np.arange(heads) * len(ratios) // heads][:, None, None]


def _golden(function, low, high, steps=40):
    ratio = (math.sqrt(5) - 1) / 2
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    fa, fb = function(a), function(b)
    for _ in range(steps):
        if fa < fb:
            high, b, fb = b, a, fa
            a = high - ratio * (high - low)
            fa = function(a)
        else:
            low, a, fa = a, b, fb
            b = low + ratio * (high - low)
            fb = function(b)
    return (low + high) / 2


def _factor(evidence) -> Mistake | None:
    want, got = evidence.reference[OUTPUT], evidence.observed[OUTPUT]
    fine = np.isfinite(want) & np.isfinite(got)
    size = float((want[fine] ** 2).sum())
    if not size:
        return None
    factor = float((want[fine] * got[fine]).sum() / size)
    if abs(factor - 1) < 1e-6 or factor == 0:
        return None
    return Mistake(
        "output_factor",
        f"the output is {factor:.5g} times what it should be",
        f"output / {factor:.6g}",
        deliver=lambda p, output, lse: (output * factor, lse),
    )


def _factor_per_key_head(evidence) -> Mistake | None:
    """A value scale (fp8 descale) that is forgotten, taken from another head, or applied twice."""
    parts = part_outlines(evidence.checked)
    if len(parts) != 1 or parts[0].num_kv_heads < 2:
        return None
    sample, group = evidence.samples[0], parts[0].group_size
    shape = (len(sample.sequences), len(sample.heads), -1)
    want, got = (arrays[OUTPUT].reshape(shape) for arrays in (evidence.reference, evidence.observed))
    fine = np.isfinite(want) & np.isfinite(got)
    want, got = np.where(fine, want, 0.0), np.where(fine, got, 0.0)
    factors = np.ones(parts[0].num_kv_heads)
    for kv_head in range(parts[0].num_kv_heads):
        at = sample.heads // group == kv_head
        size = float((want[:, at] ** 2).sum())
        if size:
            factors[kv_head] = float((want[:, at] * got[:, at]).sum()) / size
    if np.ptp(factors) < 1e-6 or np.abs(factors).min() < 1e-6:  # a head of zeros is not written
        return None
    words = ", ".join(f"{factor:.4g}" for factor in factors[:8])
    return Mistake(
        "output_factor_per_head",
        f"the output of each key head is off by a factor of its own ({words}): a value scale per head",
        "",
        prepare=lambda p: replace(p, value=_times(p.value, factors)),
        fitted_kv_heads=len(factors),
        issues=("vllm-project/vllm #42580", "sgl-project/sglang #34765"),
    )


def _lse_constant(evidence) -> Mistake | None:
    want, got = evidence.reference[LSE], evidence.observed[LSE]
    fine = np.isfinite(want) & np.isfinite(got)
    if not fine.any():
        return None
    constant = float(np.median(got[fine] - want[fine]))
    if abs(constant) < 1e-6:
        return None
    return Mistake(
        "lse_constant",
        f"lse is {constant:.5g} too large everywhere",
        f"lse - {constant:.6g}",
        ("lse",),
        deliver=lambda p, output, lse: (output, lse + constant),
    )
