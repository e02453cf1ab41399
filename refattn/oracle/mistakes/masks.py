"""Mistakes in which keys a row sees: alignment, windows, chunks, masks, lengths, empty rows."""

from dataclasses import replace

import numpy as np

from refattn.calls.options import Visibility
from refattn.oracle.mistakes.record import Mistake
from refattn.oracle.simulated.staged import finish, visible


def _offset(problem, value):
    return replace(
        problem, q_offset=np.broadcast_to(np.asarray(value, np.int64), np.shape(problem.q_offset))
    )


def _end_aligned(problem):
    return _offset(problem, np.asarray(problem.kv_lengths) - problem.q_len)


def _aligned_to_capacity(problem):
    return _offset(problem, problem.kv_len - problem.q_len)


def _lengths(problem, change):
    lengths = np.clip(np.asarray(problem.kv_lengths) + change, 0, problem.kv_len)
    return replace(problem, kv_lengths=lengths)


def _mask_as_bias(problem):
    extra = problem.mask.astype(np.float64)
    return replace(
        problem, mask=None, bias=extra if problem.bias is None else problem.bias.astype(np.float64) + extra
    )


def _swap_batch_and_heads(array):
    return np.swapaxes(array, 0, 1)


def _first(array, axis):
    return np.broadcast_to(np.take(array, [0], axis=axis), array.shape)


def _hide_with(fill):
    return lambda run, s, keep: np.where(keep, s, s.dtype.type(fill))


def _ring_overwritten(run, columns):
    """A cache that keeps the window of the newest row only: older rows miss keys they may see."""
    left = run.problem.left  # None once another mistake took the window away
    return (
        visible(run, columns)
        if left is None
        else visible(run, columns) & (columns >= run.kv_length - 1 - left)
    )


def other_chunks(same):
    """What `same(run, columns, chunk)` has in the place of the rule that row and key lie in one chunk."""

    def seen(run, columns):
        chunk = run.problem.chunk  # None once another mistake took the chunks away
        keep = visible(replace(run, problem=replace(run.problem, chunk=None)), columns)
        return keep if chunk is None else keep & same(run, columns, chunk)

    return {"visible": seen}


def _counted_from(first):
    return other_chunks(
        lambda run, columns, chunk: (columns - first(run)) // chunk == (run.position - first(run)) // chunk
    )


def _of_first_row(run):
    """The position of row 0, once for each row of the sample."""
    return run.position - run.sample.rows[:, None]


def _hidden_by_multiplying(run, s, keep):
    """score + (1 - mask) * -inf: 0 * -inf is NaN wherever a key may be seen."""
    return s + np.where(keep, 0.0, 1.0).astype(s.dtype) * s.dtype.type(-np.inf)


def _empty(output_value, lse_value):
    def broken_finish(run, top, total, weighted):
        output, lse = finish(run, top, total, weighted)
        return np.where(total == 0, output_value, output), np.where(total[..., 0] == 0, lse_value, lse)

    return broken_finish


MASKS = (
    Mistake(
        "causal_top_left",
        "causal mask and window are top-left aligned: row 0 stands at key 0",
        "q_offset=0",
        ("position", "offset"),
        lambda p: _offset(p, 0),
        issues=("pytorch/pytorch #108108", "ml-explore/mlx #2835", "microsoft/onnxruntime #29020"),
    ),
    Mistake(
        "causal_bottom_right",
        "rows are aligned with the end of the keys (bottom-right)",
        "q_offset left at its default",
        ("position", "own offset"),
        _end_aligned,
        issues=("Dao-AILab/flash-attention 2.1 change",),
    ),
    Mistake(
        "aligned_to_capacity",
        "rows are aligned with the end of the key buffer, not with kv_lengths",
        "q_offset=kv_len - q_len",
        ("position", "lengths"),
        _aligned_to_capacity,
        issues=("pytorch/executorch #22426",),
    ),
    Mistake(
        "position_one_late",
        "every row stands one key too far right",
        "q_offset + 1",
        ("position",),
        lambda p: _offset(p, np.asarray(p.q_offset) + 1),
        issues=("fla-org/flash-linear-attention #766",),
    ),
    Mistake(
        "position_one_early",
        "every row stands one key too far left",
        "q_offset - 1",
        ("position",),
        lambda p: _offset(p, np.asarray(p.q_offset) - 1),
    ),
    Mistake(
        "causal_dropped",
        "causal masking is missing",
        "causal=False",
        ("causal",),
        lambda p: replace(p, right=None),
        issues=("facebookresearch/xformers #103",),
    ),
    Mistake(
        "causal_added",
        "causal masking is on although it was not asked for",
        "causal=True",
        ("not causal",),
        lambda p: replace(p, right=0),
        issues=("NVIDIA cudnn left-only window",),
    ),
    Mistake(
        "causal_excludes_diagonal",
        "a row does not see its own position (j < i instead of j <= i)",
        "",
        ("causal",),
        lambda p: replace(p, right=-1),
    ),
    Mistake(
        "causal_sees_next",
        "a row sees one key of the future (j <= i + 1)",
        "window=(left, 1), causal=False",
        ("causal",),
        lambda p: replace(p, right=1),
    ),
    Mistake(
        "window_dropped",
        "the left window is ignored",
        "window=(None, right)",
        ("left window",),
        lambda p: replace(p, left=None),
        issues=("jax-ml/jax #32300", "huggingface/transformers #35924"),
    ),
    Mistake(
        "window_left_one_more",
        "the window reaches one key too far left (a count of keys taken as a distance)",
        "window=(left + 1, right)",
        ("left window",),
        lambda p: replace(p, left=p.left + 1),
        issues=("huggingface/transformers #29623", "vllm-project/vllm #3385"),
    ),
    Mistake(
        "window_left_one_less",
        "the left bound of the window is exclusive",
        "window=(left - 1, right)",
        ("left window",),
        lambda p: replace(p, left=p.left - 1),
        issues=("jax-ml/jax #23247", "microsoft/onnxruntime #25927"),
    ),
    Mistake(
        "window_right_dropped",
        "the right side of the window is ignored",
        "window=(left, None)",
        ("right window",),
        lambda p: replace(p, right=None),
        issues=("jax-ml/jax #39576",),
    ),
    Mistake(
        "window_right_one_more",
        "the window reaches one key too far right",
        "window=(left, right + 1)",
        ("right window",),
        lambda p: replace(p, right=p.right + 1),
    ),
    Mistake(
        "window_right_one_less",
        "the right bound of the window is exclusive",
        "window=(left, right - 1)",
        ("right window",),
        lambda p: replace(p, right=p.right - 1),
    ),
    Mistake(
        "window_right_minus_one",
        "an unlimited right side, spelled -1, is taken literally: a row sees no key from its own on",
        "window=(left - 1, 0), q_offset - 1",
        ("left window", "no right side"),
        lambda p: replace(p, right=-1),
        issues=("attention_ref of the tests of FlashAttention 2 and 3",),
    ),
    Mistake(
        "window_left_is_kv_len",
        "an unlimited left side is replaced by the number of keys, so rows further than that from key 0 do "
        "not see it",
        "window=(kv_len, right)",
        ("no left window", "past the keys"),
        lambda p: replace(p, left=p.kv_len),
        issues=("get_full_mask of Transformer Engine",),
    ),
    Mistake(
        "window_symmetric",
        "the left width is used on both sides, (left, left)",
        "window=(left, left), causal=False",
        ("left window",),
        lambda p: replace(p, right=p.left),
        issues=("huggingface/transformers #40163",),
    ),
    Mistake(
        "window_sides_swapped",
        "left and right width of the window are swapped",
        "window=(right, left)",
        ("left window", "right window"),
        lambda p: replace(p, left=p.right, right=p.left),
    ),
    Mistake(
        "window_frees_future",
        "the left window switches causality off",
        "causal=False",
        ("left window", "causal"),
        lambda p: replace(p, right=None),
        issues=("jax-ml/jax #39576",),
    ),
    Mistake(
        "window_ring_overwritten",
        "keys older than the window of the newest row are lost (ring cache), also for earlier rows",
        "",
        ("left window", "rows"),
        stages={"visible": _ring_overwritten},
        issues=("pytorch/executorch #20346", "Lightning-AI/litgpt #2182"),
    ),
    Mistake(
        "chunk_dropped",
        "chunks are ignored",
        "chunk=None",
        ("chunk",),
        lambda p: replace(p, chunk=None),
    ),
    Mistake(
        "chunk_is_window",
        "a row sees the chunk - 1 keys before its position, not those of its own chunk (a sliding window)",
        "chunk=None, window=(chunk - 1, right)",
        ("chunk", "no left window"),
        lambda p: replace(p, chunk=None, left=p.chunk - 1),
    ),
    Mistake(
        "chunk_one_more",
        "chunks are one position longer",
        "chunk + 1",
        ("chunk",),
        lambda p: replace(p, chunk=p.chunk + 1),
    ),
    Mistake(
        "chunk_one_less",
        "chunks are one position shorter",
        "chunk - 1",
        ("chunk",),
        lambda p: replace(p, chunk=max(p.chunk - 1, 1)),
    ),
    Mistake(
        "chunk_doubled",
        "chunks are twice as long",
        "2 * chunk",
        ("chunk",),
        lambda p: replace(p, chunk=2 * p.chunk),
    ),
    Mistake(
        "chunk_halved",
        "chunks are half as long",
        "chunk // 2",
        ("chunk",),
        lambda p: replace(p, chunk=max(p.chunk // 2, 1)),
    ),
    Mistake(
        "chunk_from_position_one",
        "chunks are counted from position 1 (positions that begin with 1)",
        "chunk=None, mask=(j + 1) // chunk == (q_offset + i + 1) // chunk",
        ("chunk",),
        stages=_counted_from(lambda run: -1),
    ),
    Mistake(
        "chunk_sees_later_ones",
        "a row sees all chunks from its own on",
        "chunk=None, mask=j // chunk >= (q_offset + i) // chunk",
        ("chunk", "not causal"),
        stages=other_chunks(lambda run, columns, chunk: columns // chunk >= run.position // chunk),
    ),
    Mistake(
        "chunk_sees_earlier_ones",
        "a row sees all chunks up to its own",
        "chunk=None, mask=j // chunk <= (q_offset + i) // chunk",
        ("chunk",),
        stages=other_chunks(lambda run, columns, chunk: columns // chunk <= run.position // chunk),
    ),
    Mistake(
        "chunk_of_last_row",
        "all rows see the chunk of the last row",
        "chunk=None, mask=j // chunk == (q_offset + q_len - 1) // chunk",
        ("chunk", "rows"),
        stages=other_chunks(
            lambda run, columns, chunk: (
                columns // chunk == (_of_first_row(run) + run.problem.q_len - 1) // chunk
            )
        ),
    ),
    Mistake(
        "chunk_from_first_row",
        "chunks are counted from the first row, not from key 0",
        "chunk=None, mask=(j - q_offset) // chunk == i // chunk",
        ("chunk", "offset"),
        stages=_counted_from(_of_first_row),
    ),
    Mistake(
        "chunk_top_left",
        "rows are in the chunks of their own numbers: q_offset is forgotten in the rule of chunks alone",
        "chunk=None, mask=j // chunk == i // chunk",
        ("chunk", "offset"),
        stages=other_chunks(
            lambda run, columns, chunk: columns // chunk == run.sample.rows[:, None] // chunk
        ),
    ),
    Mistake(
        "chunk_from_last_key",
        "chunks are counted back from the last key, not from key 0",
        "chunk=None, mask=(j - kv_length) // chunk == (q_offset + i - kv_length) // chunk",
        ("chunk",),
        stages=_counted_from(lambda run: run.kv_length),
    ),
    Mistake(
        "chunk_sees_the_one_before",
        "a row sees the chunk before its own, too",
        "chunk=None, mask of (q_offset + i) // chunk - j // chunk in (0, 1)",
        ("chunk",),
        stages=other_chunks(
            lambda run, columns, chunk: np.isin(run.position // chunk - columns // chunk, (0, 1))
        ),
    ),
    Mistake(
        "mask_inverted",
        "the boolean mask means the opposite (True = ignore)",
        "mask=~mask",
        ("mask",),
        lambda p: replace(p, mask=~p.mask),
        issues=("pytorch/pytorch #170400", "huggingface/transformers #38094"),
    ),
    Mistake("mask_dropped", "the mask is ignored", "mask=None", ("mask",), lambda p: replace(p, mask=None)),
    Mistake(
        "mask_added",
        "the boolean mask is added to the scores as 0 and 1",
        "bias=mask.astype(float), mask=None",
        ("mask",),
        _mask_as_bias,
        issues=("huggingface/diffusers #14342", "huggingface/transformers #48363"),
    ),
    Mistake(
        "mask_replaces_causal",
        "causal masking, window and chunks are dropped when a mask is given",
        "causal=False, window=None, chunk=None",
        ("mask", "bounded"),
        lambda p: replace(p, **dict.fromkeys(Visibility._fields)),
        issues=("keras-team/keras #22910",),
    ),
    Mistake(
        "mask_axes_swapped",
        "batch and head axis of the mask are swapped",
        "mask.swapaxes(0, 1)",
        ("mask", "batch = heads"),
        lambda p: replace(p, mask=_swap_batch_and_heads(p.mask)),
        issues=("onnx/onnx #8108",),
    ),
    Mistake(
        "mask_transposed",
        "rows and keys of the mask are swapped",
        "mask.swapaxes(-1, -2)",
        ("mask", "square"),
        lambda p: replace(p, mask=np.swapaxes(p.mask, -1, -2)),
    ),
    Mistake(
        "mask_of_first_sequence",
        "every sequence uses the mask of the first",
        "mask[:1]",
        ("mask", "several sequences"),
        lambda p: replace(p, mask=_first(p.mask, 0)),
    ),
    Mistake(
        "mask_of_first_head",
        "every head uses the mask of head 0",
        "mask[:, :1]",
        ("mask", "several heads"),
        lambda p: replace(p, mask=_first(p.mask, 1)),
    ),
    Mistake(
        "lengths_ignored",
        "kv_lengths is ignored: keys past the end are seen",
        "kv_lengths=None, q_offset kept",
        ("lengths",),
        lambda p: replace(p, kv_lengths=np.full_like(np.asarray(p.kv_lengths), p.kv_len)),
        issues=("axolotl-ai-cloud/axolotl #1375",),
    ),
    Mistake(
        "lengths_minus_one",
        "the newest key is not seen (a last position taken as a length)",
        "kv_lengths - 1, q_offset kept",
        ("keys",),
        lambda p: _lengths(p, -1),
        issues=("microsoft/onnxruntime #28259", "onnxruntime/mobius #260"),
    ),
    Mistake(
        "lengths_plus_one",
        "one key past the end is seen (a length taken as a last position)",
        "kv_lengths + 1, q_offset kept",
        ("lengths",),
        lambda p: _lengths(p, 1),
        issues=("microsoft/onnxruntime #28031",),
    ),
    Mistake(
        "first_length_for_all",
        "every sequence uses the length of the first",
        "kv_lengths[0]",
        ("lengths", "several sequences"),
        lambda p: replace(p, kv_lengths=np.full_like(np.asarray(p.kv_lengths), np.ravel(p.kv_lengths)[0])),
    ),
    Mistake(
        "hidden_is_minus_1e4",
        "hidden scores are set to -1e4, so they come back when visible scores are lower or absent",
        "",
        ("hidden",),
        stages={"hide": _hide_with(-1e4)},
        families=("low scores", "empty rows"),
        issues=("flashinfer-ai/flashinfer mask sentinel -5e4",),
    ),
    Mistake(
        "hidden_is_minus_1e9",
        "hidden scores are set to -1e9: an empty row becomes the mean of all values",
        "",
        ("hidden",),
        stages={"hide": _hide_with(-1e9)},
        families=("empty rows",),
        issues=("pytorch/pytorch #110213",),
    ),
    Mistake(
        "hidden_is_finite_minimum",
        "hidden scores are a finite minimum: an empty row becomes the mean of all values",
        "",
        ("hidden",),
        stages={"hide": _hide_with(-2.38e38)},
        families=("empty rows",),
        issues=("jax.nn.dot_product_attention", "microsoft/onnxruntime #28958"),
    ),
    Mistake(
        "hidden_is_minus_5",
        "hidden scores are only lowered by 5",
        "",
        ("hidden",),
        stages={"hide": lambda run, s, keep: np.where(keep, s, s - 5)},
    ),
    Mistake(
        "hidden_by_multiplying",
        "hidden scores get (1 - mask) * -inf, which is NaN wherever a key may be seen",
        "select, do not multiply",
        ("hidden",),
        stages={"hide": _hidden_by_multiplying},
        issues=("onnx/onnx #8068",),
    ),
    Mistake(
        "hidden_is_zero",
        "hidden scores are 0 instead of -inf",
        "",
        ("hidden",),
        stages={"hide": _hide_with(0.0)},
    ),
    Mistake(
        "empty_row_nan",
        "an empty row is NaN",
        "rows without a visible key must be 0",
        ("hidden",),
        stages={"finish": _empty(np.nan, np.nan)},
        families=("empty rows",),
        issues=("pytorch/pytorch #41508", "robertknight/rten #1321"),
    ),
    Mistake(
        "empty_row_lse_plus_inf",
        "the lse of an empty row is +inf instead of -inf",
        "treat +inf as -inf before merging",
        ("hidden",),
        stages={"finish": _empty(0.0, np.inf)},
        families=("empty rows",),
        issues=("Dao-AILab/flash-attention #978", "deepseek-ai/FlashMLA tests"),
    ),
    Mistake(
        "empty_row_lse_zero",
        "the lse of an empty row is 0 instead of -inf",
        "",
        ("hidden",),
        stages={"finish": _empty(0.0, 0.0)},
        families=("empty rows",),
        issues=("Dao-AILab/flash-attention #2842",),
    ),
)
