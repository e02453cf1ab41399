"""Mistakes in heads, scale and layout."""

import math
from dataclasses import replace

import numpy as np

from refattn.oracle.mistakes.record import Mistake
from refattn.oracle.simulated.staged import hide


def _read_heads(choose):
    """Query head h reads key head choose(h, H, K)."""

    def prepare(problem):
        heads, kv_heads = problem.num_heads, problem.num_kv_heads
        chosen = np.array([choose(h, heads, kv_heads) for h in range(heads)]) % kv_heads
        return replace(problem, key=problem.key[..., chosen, :, :], value=problem.value[..., chosen, :, :])

    return prepare


def _shifted_group(h, heads, kv_heads):
    group = heads // kv_heads
    return h >> max(group.bit_length() - 1, 0)


def _repeated_along_keys(problem):
    """Rows repeated within each key head, then read as the rows of all query heads."""
    group, length = problem.group_size, problem.kv_len
    head, place = np.divmod(np.arange(problem.num_heads), group)
    rows = (place[:, None] * length + np.arange(length)) // group
    spread = lambda array: array[..., head[:, None], rows, :]
    return replace(problem, key=spread(problem.key), value=spread(problem.value))


def _scale(id, says, value, remedy="", needs=(), **more):
    """The scale is value(problem)."""
    return Mistake(id, says, remedy, needs, lambda p: replace(p, scale=float(value(p))), **more)


def _swap_heads_and_rows(array):
    """(N, H, T, ...) written as (N, T, H, ...) into a buffer that is then read in the first shape."""
    return np.swapaxes(array, 1, 2).reshape(array.shape)


def _undo_heads_and_rows(array):
    n, h, t = array.shape[:3]
    return np.swapaxes(array.reshape((n, t, h, *array.shape[3:])), 1, 2)


def _swap_rows_and_dims(array):
    return np.swapaxes(array, -1, -2).reshape(array.shape)


def _undo_rows_and_dims(array):
    n, h, t, e = array.shape
    return np.swapaxes(array.reshape(n, h, e, t), -1, -2)


def _swap_heads_and_dims(array):
    """Heads and dims of the flattened model axis transposed: (T, H, E) read as (T, E, H)."""
    n, h, t, e = array.shape
    return array.transpose(0, 2, 3, 1).reshape(n, t, h, e).swapaxes(1, 2)


def _undo_heads_and_dims(array):
    n, h, t, e = array.shape
    return array.swapaxes(1, 2).reshape(n, t, e, h).transpose(0, 3, 1, 2)


def _misread(*names):
    """Read arrays laid out (N, H, T, D) as if they were (N, T, H, D)."""
    return lambda p: replace(
        p, **{name: _undo_heads_and_rows(np.ascontiguousarray(getattr(p, name))) for name in names}
    )


def _roll(name, by, axis):
    return lambda p: replace(p, **{name: np.roll(getattr(p, name), by, axis=axis)})


def _cap_before_scale(run, q, k):
    scale, softcap = run.problem.scale, run.problem.softcap
    product = q @ np.swapaxes(k, -1, -2)
    if softcap is None:
        return product * run.arithmetic.compute(scale)
    return (softcap * np.tanh(product / softcap) * scale).astype(q.dtype)


def _without_tail_dims(problem):
    kept = problem.head_dim - (problem.head_dim % 8 or 1)
    kept = kept or problem.head_dim - 1
    return replace(problem, query=problem.query[..., :kept], key=problem.key[..., :kept])


HEADS = (
    Mistake(
        "heads_tiled",
        "query head h reads key head h % num_kv_heads (tile instead of repeat)",
        "key=np.tile(key, (1, group_size, 1, 1)), values alike",
        ("true groups",),
        _read_heads(lambda h, H, K: h % K),
        issues=("onnx/onnx #7274", "apple/axlearn #842", "nntile/nntile #347"),
    ),
    Mistake(
        "heads_divided_by_kv_heads",
        "query head h reads key head h // num_kv_heads instead of h // group_size",
        needs=("true groups",),
        prepare=_read_heads(lambda h, H, K: min(h // K, K - 1)),
        issues=("JT-Ushio/MHA2MLA section 2.1",),
    ),
    Mistake(
        "heads_shifted_group",
        "the group size is rounded down to a power of two",
        needs=("true groups",),
        prepare=_read_heads(_shifted_group),
        issues=("HazyResearch/HipKittens #22", "paiml/aprender #559"),
    ),
    Mistake(
        "heads_all_first",
        "every query head reads key head 0",
        needs=("several kv heads",),
        prepare=_read_heads(lambda h, H, K: 0),
    ),
    Mistake(
        "heads_next_group",
        "every query head reads the next key head",
        needs=("several kv heads",),
        prepare=_read_heads(lambda h, H, K: h // (H // K) + 1),
    ),
    Mistake(
        "heads_reversed",
        "key heads are read in reverse order",
        needs=("several kv heads",),
        prepare=_read_heads(lambda h, H, K: K - 1 - h // (H // K)),
    ),
    Mistake(
        "heads_repeated_along_keys",
        "keys and values are repeated along the sequence axis, not the head axis",
        needs=("grouped", "keys"),
        prepare=_repeated_along_keys,
        issues=("PrimeIntellect-ai/prime-rl #2681",),
    ),
    Mistake(
        "value_head_first",
        "every query head reads the values of head 0",
        needs=("several kv heads",),
        prepare=lambda p: replace(p, value=np.broadcast_to(p.value[..., :1, :, :], p.value.shape)),
    ),
    _scale(
        "scale_omitted",
        "the scores are not scaled",
        lambda p: 1.0,
        "scale=1.0",
        issues=("karpathy/ng-video-lecture #6",),
    ),
    _scale(
        "scale_ignored",
        "the given scale is ignored and 1/sqrt(head_dim) is used",
        lambda p: p.head_dim**-0.5,
        "scale=None",
        ("own scale",),
        issues=("vllm-project/vllm-metal #550",),
    ),
    _scale(
        "scale_one_over_head_dim",
        "scores are divided by head_dim instead of its root",
        lambda p: 1 / p.head_dim,
        "scale=1 / head_dim",
    ),
    _scale(
        "scale_of_model_dim",
        "the scale is 1/sqrt(num_heads * head_dim)",
        lambda p: (p.num_heads * p.head_dim) ** -0.5,
        "scale=(num_heads * head_dim) ** -0.5",
        ("several heads",),
        issues=("karpathy/ng-video-lecture #6", "lucidrains/vit-pytorch #65"),
    ),
    _scale(
        "scale_of_num_heads",
        "the scale is 1/sqrt(num_heads)",
        lambda p: p.num_heads**-0.5,
        "scale=num_heads ** -0.5",
        ("several heads",),
        issues=("tenstorrent/tt-metal #56789",),
    ),
    _scale(
        "scale_of_value_dim",
        "the scale is 1/sqrt(v_head_dim)",
        lambda p: p.v_head_dim**-0.5,
        "scale=v_head_dim ** -0.5",
        ("other head size",),
    ),
    _scale(
        "scale_of_padded_dim",
        "the scale is 1/sqrt(head_dim padded to a power of two)",
        lambda p: (
            (1 << (p.head_dim - 1).bit_length()) ** -0.5
            if p.head_dim & (p.head_dim - 1)
            else (p.head_dim + 1) ** -0.5
        ),
    ),
    _scale(
        "scale_divides",
        "scale divides the scores instead of multiplying them",
        lambda p: 1 / p.scale if p.scale else 1.0,
        "scale=1 / scale",
        issues=("esceptico/perceiver-io #9",),
    ),
    _scale(
        "scale_twice", "the scale is applied twice", lambda p: p.scale**2, "scale=scale ** 2", ("own scale",)
    ),
    _scale(
        "scale_root",
        "only the root of the scale is applied (one operand of two)",
        lambda p: math.sqrt(abs(p.scale)),
        "scale=sqrt(scale)",
    ),
    _scale(
        "scale_zero",
        "the scale is 0: every visible key has the same weight",
        lambda p: 0.0,
        "scale=0.0",
        issues=("SKaiNET-developers/SKaiNET #880",),
    ),
    Mistake(
        "exponent_base_two",
        "weights are 2**score instead of exp(score)",
        "scale=scale * ln 2",
        (),
        stages={"hide": lambda run, s, keep: hide(run, s * run.arithmetic.compute(math.log(2)), keep)},
    ),
    _scale(
        "exponent_log2e_twice",
        "log2(e) is applied twice",
        lambda p: p.scale / math.log(2),
        "scale=scale / ln 2",
    ),
    Mistake(
        "softcap_before_scale",
        "the softcap is applied before the scale",
        needs=("softcap",),
        stages={"score": _cap_before_scale, "cap": lambda run, s: s},
    ),
    Mistake(
        "tail_dims_dropped",
        "the last dims of head_dim do not take part in the scores",
        prepare=_without_tail_dims,
    ),
    Mistake(
        "output_heads_and_rows_swapped",
        "the output is laid out (batch, length, heads, dim) but read as (batch, heads, length, dim)",
        "output.reshape(B, T, H, E).swapaxes(1, 2)",
        ("several heads", "rows"),
        relayout=lambda o, m: (_swap_heads_and_rows(o), m),
        reread=lambda o, m: (_undo_heads_and_rows(o), m),
        issues=("Dao-AILab/flash-attention #1128", "Dao-AILab/flash-attention #1803"),
    ),
    Mistake(
        "results_heads_and_rows_swapped",
        "output and lse are laid out length-first but read heads-first",
        "output.reshape(B, T, H, E).swapaxes(1, 2), lse.reshape(B, T, H).swapaxes(1, 2)",
        ("several heads", "rows", "lse"),
        relayout=lambda o, m: (_swap_heads_and_rows(o), _swap_heads_and_rows(m)),
        reread=lambda o, m: (_undo_heads_and_rows(o), None if m is None else _undo_heads_and_rows(m)),
        issues=("Dao-AILab/flash-attention #1359",),
    ),
    Mistake(
        "lse_heads_and_rows_swapped",
        "the lse is laid out (batch, length, heads) but read as (batch, heads, length)",
        "lse.reshape(B, T, H).swapaxes(1, 2)",
        ("several heads", "rows"),
        relayout=lambda o, m: (o, _swap_heads_and_rows(m)),
        reread=lambda o, m: (o, None if m is None else _undo_heads_and_rows(m)),
        issues=("vllm-project/vllm-xpu-kernels #479",),
    ),
    Mistake(
        "output_rows_and_dims_swapped",
        "rows and dims of the output are transposed",
        "output.reshape(B, H, E, T).swapaxes(2, 3)",
        ("rows",),
        relayout=lambda o, m: (_swap_rows_and_dims(o), m),
        reread=lambda o, m: (_undo_rows_and_dims(o), m),
    ),
    Mistake(
        "output_heads_and_dims_swapped",
        "heads and dims of the output are transposed",
        needs=("several heads",),
        relayout=lambda o, m: (_swap_heads_and_dims(o), m),
        reread=lambda o, m: (_undo_heads_and_dims(o), m),
        issues=("onnx/onnx #7118",),
    ),
    Mistake(
        "inputs_heads_and_rows_swapped",
        "query, key and value are read as (batch, length, heads, dim)",
        "swapaxes(1, 2) of query, key and value",
        ("rows",),
        _misread("query", "key", "value"),
        issues=("huggingface/transformers #41125", "InternLM/lmdeploy #2957"),
    ),
    Mistake(
        "keys_heads_and_rows_swapped",
        "key and value are read as (batch, length, heads, dim)",
        "swapaxes(1, 2) of key and value",
        ("several kv heads",),
        _misread("key", "value"),
    ),
    Mistake(
        "query_heads_and_rows_swapped",
        "query is read as (batch, length, heads, dim)",
        "swapaxes(1, 2) of query",
        ("several heads", "rows"),
        _misread("query"),
    ),
    Mistake(
        "key_and_value_swapped",
        "key and value are swapped",
        needs=("same head sizes",),
        prepare=lambda p: replace(p, key=p.value, value=p.key),
    ),
    Mistake(
        "key_used_as_value",
        "the keys are used as values",
        needs=("same head sizes",),
        prepare=lambda p: replace(p, value=p.key),
    ),
    Mistake(
        "value_one_row_late", "values are read one row late", needs=("keys",), prepare=_roll("value", 1, -2)
    ),
    Mistake(
        "value_one_row_early",
        "values are read one row early",
        needs=("keys",),
        prepare=_roll("value", -1, -2),
    ),
    Mistake(
        "key_one_row_early", "keys are read one row early", needs=("keys",), prepare=_roll("key", -1, -2)
    ),
    Mistake(
        "query_one_row_early",
        "queries are read one row early",
        needs=("rows",),
        prepare=_roll("query", -1, -2),
    ),
    Mistake(
        "first_sequence_for_all",
        "every sequence reads the keys of the first",
        needs=("several sequences",),
        prepare=lambda p: replace(
            p, key=np.broadcast_to(p.key[:1], p.key.shape), value=np.broadcast_to(p.value[:1], p.value.shape)
        ),
    ),
)
