"""Mistakes in what is added to or done with the scores: softcap, ALiBi, bias, sinks, dropout, lse."""

import math
from dataclasses import replace

import numpy as np

from refattn.oracle.mistakes.record import Mistake
from refattn.oracle.simulated.staged import (
    accumulate,
    cap,
    finish,
    finite_or_zero,
    position_bias,
    score,
    shift,
    start,
)


def _hidden_before_cap(run, s, keep):
    """The softcap squeezes an already hidden score to -softcap."""
    softcap = run.problem.softcap
    return np.where(keep, s, -np.inf if softcap is None else -softcap).astype(s.dtype)


def _cap_last(run, s, columns):
    return cap(run, shift(run, s, columns))


def _slopes(id, says, change, remedy="", needs=("alibi",), **more):
    """ALiBi with the slopes change(problem)."""
    return Mistake(id, says, remedy, needs, lambda p: replace(p, alibi_slopes=change(p)), **more)


def _one_exponent_off(problem):
    slopes = np.asarray(problem.alibi_slopes, np.float64)
    ratio = slopes[..., 1] / np.where(slopes[..., 0] == 0, 1, slopes[..., 0])
    return slopes * ratio[..., None]


def _published_slopes(p):
    """Those of the paper (Press et al. 2022, section 3): a geometric sequence for a power of two, odd
    members of the next one for the rest.
    """
    heads = p.num_heads
    below = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * (i + 1) / below) for i in range(below)] + [
        2.0 ** (-4.0 * (2 * i + 1) / below) for i in range(heads - below)
    ]
    return replace(p, alibi_slopes=np.broadcast_to(np.array(slopes), np.shape(p.alibi_slopes)))


def _distance(measure):
    """ALiBi with another distance: measure(position, key, row) in keys, which is subtracted times the
    slope.
    """

    def broken(run, columns):
        if run.problem.alibi_slopes is None:
            return None
        rows = np.asarray(run.sample.rows)[None, None, :, None]
        length = run.arithmetic.compute
        return -run.per_head(run.problem.alibi_slopes) * measure(run.position, columns, rows).astype(length)

    return broken


def _alibi_before_scale(run, columns):
    term = position_bias(run, columns)
    return None if term is None else term * run.arithmetic.compute(run.problem.scale)


def _bias(id, says, change, remedy, needs=("bias",), **more):
    """The bias is change(bias, problem)."""
    prepare = lambda p: replace(p, bias=change(p.bias.astype(np.float64), p))
    return Mistake(id, says, remedy, needs, prepare, **more)


def _first(array, axis):
    return np.broadcast_to(np.take(array, [0], axis=axis), array.shape)


def _sinks(id, says, change, remedy="", needs=("sinks",), **more):
    """The sinks are change(sinks, problem)."""
    prepare = lambda p: replace(p, sinks=change(np.asarray(p.sinks, np.float64), p))
    return Mistake(id, says, remedy, needs, prepare, **more)


def _lse_without_sink(run, top, total, weighted):
    """The sink shares the weights but is left out of lse."""
    output, _ = finish(run, top, total, weighted)
    if run.problem.sinks is None:
        return output, finish(run, top, total, weighted)[1]
    sink = np.broadcast_to(run.per_head(run.problem.sinks), top.shape)
    rest = total - np.where(sink == -np.inf, 0, np.exp(sink - finite_or_zero(top)))
    rest = np.maximum(rest, 0)
    return output, np.where(rest > 0, finite_or_zero(top) + np.log(np.where(rest > 0, rest, 1)), -np.inf)[
        ..., 0
    ]


def _sink_of_key_head(sinks, problem):
    return sinks[..., np.arange(problem.num_heads) // problem.group_size]


def _sink_has_first_value(run, shape):
    """Start as if the sink were a key whose value is that of key 0."""
    top, total = start(run, shape)
    if run.problem.sinks is not None:
        run.notes["first weighted"] = total
    return top, total


def _accumulate_after_sink(run, total, factor, w, v, keep):
    first = run.notes.pop("first weighted", None)
    if first is not None:
        total = total + first * np.nan_to_num(v[:, :, :1])
    return accumulate(run, total, factor, w, v, keep)


def _lse(id, says, change, remedy, **more):
    """The lse is change(lse)."""
    return Mistake(id, says, remedy, ("lse",), deliver=lambda p, output, lse: (output, change(lse)), **more)


def _lse_is_top(run, top, total, weighted):
    return finish(run, top, total, weighted)[0], top[..., 0]


def _lse_lacks_top(run, top, total, weighted):
    return finish(run, top, total, weighted)[0], np.log(total)[..., 0]


def _lse_is_log2_of_total(run, top, total, weighted):
    """Maximum in natural units, logarithm in base 2: half a conversion."""
    output, _ = finish(run, top, total, weighted)
    return output, (finite_or_zero(top) + np.log2(total))[..., 0]


SCORES = (
    Mistake(
        "softcap_dropped",
        "the softcap is ignored",
        "softcap=None",
        ("softcap",),
        lambda p: replace(p, softcap=None),
        issues=("vllm-project/vllm-metal #665",),
    ),
    Mistake(
        "softcap_after_mask",
        "the softcap is applied after masking, so hidden keys come back at -softcap",
        needs=("softcap", "hidden"),
        stages={"hide": _hidden_before_cap},
        issues=("onnx/onnx #7865", "microsoft/onnxruntime #28370"),
    ),
    Mistake(
        "softcap_after_bias",
        "the softcap is applied after ALiBi and bias",
        needs=("softcap", "shifted"),
        stages={"cap": lambda run, s: s, "shift": _cap_last},
        issues=("onnx/onnx #7867",),
    ),
    Mistake(
        "softcap_times_score",
        "the softcap is score * tanh(score / softcap)",
        needs=("softcap",),
        stages={
            "cap": lambda run, s: s * np.tanh(s / run.arithmetic.compute(run.problem.softcap or np.inf))
        },
        issues=("unslothai/unsloth-zoo #593",),
    ),
    Mistake(
        "softcap_not_multiplied_back",
        "the softcap is tanh(score / softcap) without the factor softcap",
        needs=("softcap",),
        stages={"cap": lambda run, s: np.tanh(s / run.arithmetic.compute(run.problem.softcap or 1))},
    ),
    Mistake(
        "softcap_clips",
        "scores are clipped at softcap instead of squeezed by tanh",
        needs=("softcap",),
        stages={
            "cap": lambda run, s: np.clip(s, -(run.problem.softcap or np.inf), run.problem.softcap or np.inf)
        },
    ),
    _slopes("alibi_dropped", "ALiBi is ignored", lambda p: None, "alibi_slopes=None"),
    _slopes(
        "alibi_twice",
        "ALiBi is added twice",
        lambda p: 2 * p.alibi_slopes,
        "alibi_slopes=2 * alibi_slopes",
        issues=("huggingface/transformers FalconAttention, eager",),
    ),
    _slopes(
        "alibi_sign",
        "ALiBi has the wrong sign: far keys are favoured",
        lambda p: -p.alibi_slopes,
        "alibi_slopes=-alibi_slopes",
        issues=("meta-pytorch/attention-gym #86", "FlashInfer reference +slope*j"),
    ),
    Mistake(
        "alibi_of_key_only",
        "ALiBi is slope * key index: the same softmax under a causal mask, but another lse",
        "compare outputs only, or shift lse",
        ("alibi",),
        stages={"position_bias": _distance(lambda position, key, row: -key + 0 * position)},
        issues=("mosaicml/llm-foundry #186",),
    ),
    Mistake(
        "alibi_top_left",
        "ALiBi distances are measured from the row index (top-left), not from the row's key position",
        "q_offset=0 for ALiBi",
        ("alibi", "offset"),
        stages={"position_bias": _distance(lambda position, key, row: np.abs(row - key))},
        issues=("cuDNN frontend ALiBi",),
    ),
    Mistake(
        "alibi_without_abs",
        "ALiBi is -slope * (position - key) without the absolute value",
        needs=("alibi", "not causal"),
        stages={"position_bias": _distance(lambda position, key, row: position - key)},
    ),
    Mistake(
        "alibi_off_by_one",
        "ALiBi distances are one too large (the newest key is at distance 1)",
        needs=("alibi",),
        stages={"position_bias": _distance(lambda position, key, row: np.abs(position - key) + 1)},
        issues=("vllm-project/vllm #945",),
    ),
    Mistake(
        "alibi_position_one_late",
        "ALiBi distances are measured from the position after the row",
        needs=("alibi",),
        stages={"position_bias": _distance(lambda position, key, row: np.abs(position + 1 - key))},
    ),
    Mistake(
        "alibi_before_scale",
        "ALiBi is added before the scale",
        "alibi_slopes=alibi_slopes * scale",
        ("alibi",),
        stages={"position_bias": _alibi_before_scale},
    ),
    _slopes(
        "alibi_exponent_off",
        "the ALiBi slopes start one exponent late",
        _one_exponent_off,
        "alibi_slopes * (alibi_slopes[1] / alibi_slopes[0])",
        needs=("slopes differ",),
        issues=("paiml/aprender #2143", "ml-explore/mlx #343"),
    ),
    Mistake(
        "alibi_slopes_published",
        "the kernel uses the slopes of the ALiBi paper, not those it is given",
        "alibi_slopes of the paper",
        ("alibi",),
        _published_slopes,
        issues=("ml-explore/mlx #343",),
    ),
    _slopes(
        "alibi_heads_reversed",
        "the ALiBi slopes are in reverse head order",
        lambda p: p.alibi_slopes[..., ::-1],
        "alibi_slopes[::-1]",
        needs=("slopes differ",),
    ),
    _slopes(
        "alibi_of_first_head",
        "every head uses the ALiBi slope of head 0",
        lambda p: _first(p.alibi_slopes, -1),
        needs=("slopes differ",),
    ),
    Mistake("bias_dropped", "the bias is ignored", "bias=None", ("bias",), lambda p: replace(p, bias=None)),
    _bias(
        "bias_before_scale",
        "the bias is added before the scale",
        lambda b, p: b * p.scale,
        "bias=bias * scale",
    ),
    _bias("bias_sign", "the bias is subtracted", lambda b, p: -b, "bias=-bias"),
    _bias("bias_twice", "the bias is added twice", lambda b, p: 2 * b, "bias=2 * bias"),
    _bias(
        "bias_transposed",
        "rows and keys of the bias are swapped",
        lambda b, p: np.swapaxes(b, -1, -2),
        "bias.swapaxes(-1, -2)",
        needs=("bias", "square"),
    ),
    _bias(
        "bias_axes_swapped",
        "batch and head axis of the bias are swapped",
        lambda b, p: np.swapaxes(b, 0, 1),
        "bias.swapaxes(0, 1)",
        needs=("bias", "batch = heads"),
        issues=("onnx/onnx #8108",),
    ),
    _bias(
        "bias_of_first_head",
        "every head uses the bias of head 0",
        lambda b, p: _first(b, 1),
        "bias[:, :1]",
        needs=("bias", "several heads"),
    ),
    _bias(
        "bias_of_first_sequence",
        "every sequence uses the bias of the first",
        lambda b, p: _first(b, 0),
        "bias[:1]",
        needs=("bias", "several sequences"),
    ),
    _bias(
        "bias_of_first_row",
        "every row uses the bias of row 0",
        lambda b, p: _first(b, 2),
        "bias[:, :, :1]",
        needs=("bias", "rows"),
    ),
    Mistake(
        "constant_added",
        "1 is added to every score: the output is right, lse is 1 too large",
        "lse - 1",
        ("no mask",),
        stages={"score": lambda run, q, k: score(run, q, k) + 1},
        issues=("tinygrad/tinygrad #2425",),
    ),
    Mistake(
        "sinks_dropped",
        "the sinks are ignored",
        "sinks=None",
        ("sinks",),
        lambda p: replace(p, sinks=None),
        issues=("vllm-project/vllm-metal #212",),
    ),
    Mistake(
        "sinks_not_in_lse",
        "lse leaves the sink out, the output has it",
        "lse = logaddexp(lse, sinks)",
        ("sinks",),
        stages={"finish": _lse_without_sink},
        issues=("deepseek-ai/FlashMLA attn_sink",),
    ),
    _sinks(
        "sinks_counted_twice",
        "the sink is counted twice (once a split)",
        lambda s, p: s + math.log(2),
        "sinks + log(2)",
        issues=("ROCm/rocm-libraries #12227",),
    ),
    _sinks(
        "sinks_scaled",
        "the sinks are multiplied by the scale",
        lambda s, p: s * p.scale,
        "sinks * scale",
        issues=("ROCm/rocm-libraries #12229",),
    ),
    _sinks(
        "sinks_in_base_two", "the sinks are taken in base 2", lambda s, p: s * math.log(2), "sinks * ln 2"
    ),
    _sinks(
        "sinks_zero",
        "every sink is 0 (smooth softmax)",
        lambda s, p: np.zeros_like(s),
        "sinks=zeros(num_heads)",
        issues=("microsoft/onnxruntime smooth_softmax",),
    ),
    _sinks(
        "sinks_of_key_head",
        "the sink of head h // group_size is used",
        _sink_of_key_head,
        needs=("sinks", "grouped"),
    ),
    Mistake(
        "sinks_have_first_value",
        "the sink adds the value of key 0",
        "a sink has no value",
        ("sinks",),
        stages={"start": _sink_has_first_value, "accumulate": _accumulate_after_sink},
        issues=("sgl-project/sgl-kernel-npu #216",),
    ),
    Mistake(
        "dropout_dropped",
        "dropout is not applied",
        "dropout_mask=None",
        ("dropout",),
        lambda p: replace(p, dropout_mask=None),
    ),
    Mistake(
        "dropout_not_rescaled",
        "kept weights are not divided by 1 - dropout_rate",
        "output / (1 - dropout_rate)",
        ("dropout",),
        lambda p: replace(p, keep_scale=1.0),
        issues=("NVIDIA/apex #816",),
    ),
    Mistake(
        "dropout_inverted",
        "the dropout mask means the opposite (True = drop)",
        "dropout_mask=~dropout_mask",
        ("dropout",),
        lambda p: replace(p, dropout_mask=~p.dropout_mask),
    ),
    Mistake(
        "dropout_before_softmax",
        "dropout is applied before the softmax: kept weights sum to 1 again",
        needs=("dropout",),
        prepare=lambda p: replace(
            p, mask=p.dropout_mask if p.mask is None else p.mask & p.dropout_mask, dropout_mask=None
        ),
        issues=("aws-neuron/nki-samples #80",),
    ),
    _lse(
        "lse_base_two",
        "lse is in base 2",
        lambda lse: lse / math.log(2),
        "lse * ln 2",
        issues=("flashinfer-ai/flashinfer #2113", "pytorch/pytorch #181645"),
    ),
    _lse(
        "lse_converted_twice",
        "lse was multiplied by ln 2 although it is natural already",
        lambda lse: lse * math.log(2),
        "lse / ln 2",
        issues=("flashinfer-ai/flashinfer-bench #390",),
    ),
    Mistake(
        "lse_half_converted",
        "lse is maximum + log2(sum): half converted to base 2",
        needs=("lse",),
        stages={"finish": _lse_is_log2_of_total},
    ),
    Mistake("lse_is_maximum", "lse is only the row maximum", needs=("lse",), stages={"finish": _lse_is_top}),
    Mistake(
        "lse_lacks_maximum",
        "lse is only the logarithm of the denominator, without the row maximum",
        needs=("lse",),
        stages={"finish": _lse_lacks_top},
    ),
    _lse("lse_negated", "lse has the wrong sign", np.negative, "-lse"),
)
