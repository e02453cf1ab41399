"""Mistakes that show only on option values few tests have (`refattn.oracle.inputs.corners`): 0,
negative, infinite, one a sequence, rows before key 0, and sizes past a limit.
"""

from dataclasses import replace

import numpy as np

from refattn.oracle.mistakes.masks import other_chunks
from refattn.oracle.mistakes.record import Mistake
from refattn.oracle.simulated.staged import finish, visible


def _first_of_all(array):
    return np.broadcast_to(array[:1], array.shape)


def _least_bias(fill):
    return lambda p: replace(p, bias=np.maximum(p.bias.astype(np.float64), fill))


def _geometric_slopes(p):
    heads = np.arange(1, p.num_heads + 1)
    return replace(
        p, alibi_slopes=np.broadcast_to(2.0 ** (-8.0 * heads / p.num_heads), np.shape(p.alibi_slopes))
    )


def _unwritten(beyond):
    """Results past a limit stay 0: beyond(run) -> (h, t) bool."""

    def broken_finish(run, top, total, weighted):
        output, lse = finish(run, top, total, weighted)
        lost = beyond(run)
        return np.where(lost[..., None], 0, output), np.where(lost, 0, lse)

    return broken_finish


def _keys_up_to(limit):
    return lambda run, columns: visible(run, columns) & (columns < limit)


CORNERS = (
    Mistake(
        "scale_sign_lost",
        "a negative scale is taken as positive",
        "scale=abs(scale)",
        ("negative scale",),
        lambda p: replace(p, scale=abs(p.scale)),
    ),
    Mistake(
        "scale_zero_is_default",
        "scale 0 is taken as not given",
        "scale=None",
        ("zero scale",),
        lambda p: replace(p, scale=p.head_dim**-0.5),
        issues=("com.microsoft.GroupQueryAttention scale 0",),
    ),
    Mistake(
        "window_zero_is_none",
        "a left width of 0 is taken as no window",
        "window=(None, right)",
        ("left of zero",),
        lambda p: replace(p, left=None),
    ),
    Mistake(
        "window_zero_is_one",
        "a left width of 0 is taken as 1",
        "window=(1, right)",
        ("left of zero",),
        lambda p: replace(p, left=1),
    ),
    Mistake(
        "chunk_truncated",
        "rows before key 0 are taken to be in chunk 0 (a division that rounds toward zero)",
        "chunk=None, mask=trunc(j / chunk) == trunc((q_offset + i) / chunk)",
        ("chunk", "rows before key 0"),
        stages=other_chunks(lambda run, columns, chunk: columns // chunk == np.trunc(run.position / chunk)),
    ),
    Mistake(
        "first_offset_for_all",
        "every sequence uses the q_offset of the first",
        "q_offset[0]",
        ("position", "offsets differ"),
        lambda p: replace(p, q_offset=_first_of_all(np.asarray(p.q_offset))),
    ),
    Mistake(
        "alibi_of_first_sequence",
        "every sequence uses the ALiBi slopes of the first",
        "alibi_slopes[0]",
        ("slopes of sequences differ",),
        lambda p: replace(p, alibi_slopes=_first_of_all(p.alibi_slopes)),
    ),
    Mistake(
        "alibi_slopes_geometric",
        "the kernel uses slopes of its own, 2**(-8 (h + 1) / num_heads)",
        "alibi_slopes=2.0 ** (-8 * arange(1, H + 1) / H)",
        ("alibi",),
        _geometric_slopes,
        issues=("ml-explore/mlx #343",),
    ),
    Mistake(
        "bias_infinity_is_minus_1e4",
        "a bias of -inf is cut at -1e4: a row it hides wholly becomes a mean",
        "maximum(bias, -1e4)",
        ("bias hides",),
        _least_bias(-1e4),
    ),
    Mistake(
        "bias_infinity_is_minimum",
        "a bias of -inf becomes the smallest float32: a row it hides wholly becomes a mean",
        "maximum(bias, finfo(float32).min)",
        ("bias hides",),
        _least_bias(float(np.finfo(np.float32).min)),
        issues=("huggingface/transformers additive masks",),
    ),
    Mistake(
        "rows_past_64_unwritten",
        "rows from 64 on are never written",
        needs=("past 64 rows",),
        stages={
            "finish": _unwritten(
                lambda run: np.broadcast_to(
                    run.sample.rows >= 64, (len(run.sample.heads), len(run.sample.rows))
                )
            )
        },
    ),
    Mistake(
        "heads_past_16_unwritten",
        "heads from 16 on are never written",
        needs=("past 16 heads",),
        stages={
            "finish": _unwritten(
                lambda run: np.broadcast_to(
                    (run.sample.heads >= 16)[:, None], (len(run.sample.heads), len(run.sample.rows))
                )
            )
        },
    ),
    Mistake(
        "keys_past_2048_unseen",
        "keys from 2048 on are not seen",
        needs=("past 2048 keys",),
        stages={"visible": _keys_up_to(2048)},
    ),
    Mistake(
        "dims_past_128_dropped",
        "dims from 128 on do not take part in the scores",
        needs=("past 128 dims",),
        prepare=lambda p: replace(p, query=p.query[..., :128], key=p.key[..., :128]),
    ),
)
