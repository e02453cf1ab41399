"""Mistakes of rotary calls: positions, pairs, directions."""

from dataclasses import replace

import numpy as np

from refattn.oracle.mistakes.record import Mistake


def _rope(q=None, k=None):
    """The rotated problem with changed settings for query and key; q, k map the right settings to the
    wrong ones.
    """
    same = lambda rope: rope
    return lambda p, n: p.rotated((q or same)(p.rope), (k or q or same)(p.rope))


def _keep(rope):
    return rope


def _other_layout(rope):
    return replace(rope, layout="interleaved" if rope.layout == "half" else "half")


def _rows_from_zero(p, n):
    start = np.zeros_like(np.asarray(p.dense.q_offset))
    turned = replace(p, dense=replace(p.dense, q_offset=start)).rotated()
    return replace(turned, q_offset=p.dense.q_offset)


def _twice(p, n):
    turned = p.rotated()
    return replace(p, dense=turned).rotated()


ROTARY = (
    Mistake(
        "rope_dropped",
        "query and key are not rotated",
        "",
        form="rotary",
        change_form=_rope(lambda r: replace(r, on=False)),
    ),
    Mistake(
        "rope_other_pairs",
        "the rotary pairs are those of the other layout (half against interleaved)",
        "layout=the other one",
        form="rotary",
        change_form=_rope(_other_layout),
        issues=("huggingface/transformers #39687", "ggml-org/llama.cpp #22611", "jzhang38/TinyLlama #24"),
    ),
    Mistake(
        "rope_layouts_mixed",
        "query and key are rotated in different layouts",
        "",
        form="rotary",
        change_form=_rope(_keep, _other_layout),
    ),
    Mistake(
        "rope_query_only",
        "only the query is rotated",
        "",
        form="rotary",
        change_form=_rope(_keep, lambda r: replace(r, on=False)),
    ),
    Mistake(
        "rope_key_only",
        "only the key is rotated",
        "",
        form="rotary",
        change_form=_rope(lambda r: replace(r, on=False), _keep),
    ),
    Mistake(
        "rope_query_one_late",
        "the query is rotated one position too far",
        "",
        form="rotary",
        change_form=_rope(lambda r: replace(r, shift=r.shift + 1), _keep),
        issues=("fla-org/flash-linear-attention #766",),
    ),
    Mistake(
        "rope_query_one_early",
        "the query is rotated one position too little",
        "",
        form="rotary",
        change_form=_rope(lambda r: replace(r, shift=r.shift - 1), _keep),
    ),
    Mistake(
        "rope_rows_from_zero",
        "query positions start at 0 although keys are cached before them",
        "positions = q_offset + arange(q_len)",
        form="rotary",
        change_form=_rows_from_zero,
        issues=("pytorch/executorch #2010",),
    ),
    Mistake(
        "rope_single_angle",
        "all query rows are rotated by the angle of the first",
        "",
        form="rotary",
        change_form=_rope(lambda r: replace(r, at_start=True), _keep),
        issues=("Dao-AILab/flash-attention flash_attn_with_kvcache docstring",),
    ),
    Mistake(
        "rope_query_backwards",
        "the query is rotated in the other direction",
        "",
        form="rotary",
        change_form=_rope(lambda r: replace(r, direction=-r.direction), _keep),
    ),
    Mistake("rope_twice", "the rotation is applied twice", "", form="rotary", change_form=_twice),
    Mistake(
        "rope_theta_500000",
        "the base of the rotation is 500000",
        "theta=500000",
        form="rotary",
        change_form=_rope(lambda r: replace(r, theta=500000.0)),
    ),
    Mistake(
        "rope_theta_10000",
        "the base of the rotation is 10000",
        "theta=10000",
        form="rotary",
        change_form=_rope(lambda r: replace(r, theta=10000.0)),
    ),
    Mistake(
        "rope_theta_1000000",
        "the base of the rotation is 1000000",
        "theta=1000000",
        form="rotary",
        change_form=_rope(lambda r: replace(r, theta=1e6)),
    ),
    Mistake(
        "rope_half_the_dims",
        "only half of the rotary dims are rotated",
        "rotary_dim / 2",
        form="rotary",
        change_form=lambda p, n: _rope(
            lambda r: replace(r, rotary_dim=max((r.rotary_dim or p.dense.head_dim) // 4 * 2, 2))
        )(p, n),
    ),
)
