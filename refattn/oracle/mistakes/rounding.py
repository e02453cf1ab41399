"""Mistakes of precision: the kernel rounds where its specification says it does not, or is off by a
little.
"""

import numpy as np

from refattn.oracle.arithmetic.formats import round_to
from refattn.oracle.mistakes.record import Mistake
from refattn.oracle.simulated.staged import (
    accumulate,
    cap,
    correction,
    denominator,
    finish,
    round_weights,
    score,
)


def _rounded(stage, target):
    """A stage whose array result is rounded to a narrower format."""
    return lambda run, *arguments: _narrow(stage(run, *arguments), target)


def _narrow(array, target, truncate=False):
    return round_to(np.ascontiguousarray(array), target, truncate=truncate)


def _rounded_query(target):
    """The query is multiplied by the scale first, and the product is stored narrow."""

    def broken(run, q, k):
        scaled = _narrow(q * run.arithmetic.compute(run.problem.scale), target)
        return scaled @ np.swapaxes(k, -1, -2)

    return broken


def _narrow_product(target):
    """The unscaled product is stored narrow, and overflows where the scaled one would not."""

    def broken(run, q, k):
        return _narrow(q @ np.swapaxes(k, -1, -2), target) * run.arithmetic.compute(run.problem.scale)

    return broken


def _rounded_output(target):
    def broken(run, top, total, weighted):
        output, lse = finish(run, top, total, weighted)
        return _narrow(output, target), lse

    return broken


def _truncated_output(run, top, total, weighted):
    """Toward zero instead of to nearest, in the output's own format."""
    name = np.dtype(run.arithmetic.output).name
    narrow = "bfloat16" if name in ("float32", "float64") else name
    output, lse = finish(run, top, total, weighted)
    return _narrow(output, narrow, True), lse


def _rounded_lse(run, top, total, weighted):
    output, lse = finish(run, top, total, weighted)
    return output, _narrow(lse, "bfloat16")


def _coarse_exp(run, s, top):
    """exp2 by a quadratic polynomial on the fraction: relative error up to 2e-3."""
    x = (s - np.where(top == -np.inf, 0, top)) * 1.4426950408889634
    whole = np.floor(np.where(np.isfinite(x), x, 0))
    part = np.where(np.isfinite(x), x, 0) - whole
    near = 1.0 + part * (0.65617 + part * 0.34383)
    value = np.ldexp(near, np.clip(whole, -1000, 1000).astype(np.int32))
    return np.where(np.isnan(s), np.nan, np.where(s == -np.inf, 0, value)).astype(s.dtype)


def _factor(value):
    return lambda problem, output, lse: (output * output.dtype.type(value), lse)


def _at(index, value):
    """One element (or one row) of the result is changed."""

    def relayout(output, lse):
        output = output.copy()
        if output.size:
            place = tuple(size * 2 // 3 for size in output.shape[:index])
            output[place] = value(output[place]).astype(output.dtype)
        return output, lse

    return relayout


def _last_values_swapped(run, total, factor, w, v, keep):
    if v.shape[-2] > 1:
        order = np.arange(v.shape[-2])
        order[[-1, -2]] = order[[-2, -1]]
        v = v[:, :, order]
    return accumulate(run, total, factor, w, v, keep)


def _weights_summed_after_rounding(run, total, factor, w):
    return denominator(run, total, factor, _narrow(w, "float8_e4m3fn"))


def _imprecise(id, says, remedy="", *, needs=(), tiled=False, families=(), issues=(), **stages):
    """Stages that round, or err by a little."""
    return Mistake(
        id, says, remedy, needs, stages=stages, rounding=True, tiled=tiled, families=families, issues=issues
    )


ROUNDING = (
    _imprecise(
        "scores_bfloat16",
        "the scores are stored in bfloat16",
        "claim score dtype bfloat16 in the spec",
        score=_rounded(score, "bfloat16"),
    ),
    _imprecise(
        "scores_float16",
        "the scores are stored in float16",
        "claim score dtype float16 in the spec",
        score=_rounded(score, "float16"),
    ),
    _imprecise(
        "product_float16",
        "the product of query and key is stored in float16 before it is scaled, and may overflow",
        "scale the query first",
        score=_narrow_product("float16"),
        issues=("ultralytics/ultralytics #24990", "pytorch/pytorch #60939", "mlc-ai/mlc-llm #1638"),
    ),
    _imprecise(
        "scores_capped_bfloat16",
        "the capped scores are stored in bfloat16",
        cap=_rounded(cap, "bfloat16"),
        needs=("softcap",),
    ),
    _imprecise(
        "query_scaled_bfloat16",
        "the query is multiplied by the scale and rounded to bfloat16 first",
        score=_rounded_query("bfloat16"),
    ),
    _imprecise(
        "weights_bfloat16",
        "the weights are rounded to bfloat16",
        "claim weight dtype bfloat16 in the spec",
        round_weights=lambda run, w: _narrow(w, "bfloat16"),
        tiled=True,
    ),
    _imprecise(
        "weights_truncated",
        "the weights are cut to bfloat16 instead of rounded: every output is biased toward 0",
        "round to nearest",
        round_weights=lambda run, w: _narrow(w, "bfloat16", True),
        tiled=True,
    ),
    _imprecise(
        "weights_float8",
        "the weights are rounded to float8 (e4m3)",
        "claim weight dtype float8_e4m3fn in the spec",
        round_weights=lambda run, w: _narrow(w, "float8_e4m3fn"),
        tiled=True,
    ),
    _imprecise(
        "denominator_of_float8",
        "the denominator sums weights rounded to float8, the output those before rounding",
        denominator=_weights_summed_after_rounding,
        round_weights=round_weights,
        tiled=True,
    ),
    _imprecise(
        "accumulator_bfloat16",
        "the running output is kept in bfloat16",
        accumulate=_rounded(accumulate, "bfloat16"),
        tiled=True,
    ),
    _imprecise(
        "accumulator_float16",
        "the running output is kept in float16",
        accumulate=_rounded(accumulate, "float16"),
        tiled=True,
    ),
    _imprecise(
        "denominator_bfloat16",
        "the running denominator is kept in bfloat16",
        denominator=_rounded(denominator, "bfloat16"),
        tiled=True,
    ),
    _imprecise(
        "rescale_bfloat16",
        "the rescale factor is rounded to bfloat16",
        correction=_rounded(correction, "bfloat16"),
        tiled=True,
        families=("ascending",),
    ),
    _imprecise(
        "exp_coarse",
        "exp is a quadratic polynomial, wrong by up to 0.2 percent",
        weigh=_coarse_exp,
        tiled=True,
    ),
    _imprecise(
        "output_truncated",
        "the output is cut to 16 bits instead of rounded: biased toward 0",
        "round to nearest",
        finish=_truncated_output,
    ),
    _imprecise(
        "output_bfloat16",
        "the output went through bfloat16",
        "claim output dtype bfloat16 in the spec",
        finish=_rounded_output("bfloat16"),
    ),
    _imprecise(
        "output_float8",
        "the output went through float8 (e4m3)",
        finish=_rounded_output("float8_e4m3fn"),
    ),
    _imprecise("lse_bfloat16", "lse went through bfloat16", finish=_rounded_lse, needs=("lse",)),
    Mistake("output_half_percent_high", "the output is 0.5 percent too large", deliver=_factor(1.005)),
    Mistake("output_two_percent_high", "the output is 2 percent too large", deliver=_factor(1.02)),
    Mistake(
        "output_doubled", "the output is twice too large (a value scale applied twice)", deliver=_factor(2.0)
    ),
    Mistake(
        "one_element_off", "one element is 5 percent off", relayout=_at(4, lambda x: np.asarray(x * 1.05))
    ),
    Mistake(
        "one_row_garbage",
        "one row holds something else",
        needs=("rows",),
        relayout=_at(3, lambda row: np.linspace(-1, 1, row.size)),
    ),
    Mistake(
        "last_values_swapped",
        "the last two values of a tile are swapped",
        needs=("keys",),
        stages={"accumulate": _last_values_swapped},
        tiled=True,
    ),
)
