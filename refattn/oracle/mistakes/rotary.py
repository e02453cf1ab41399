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


def _rotary(id, says, change_form, remedy="", **more):
    return Mistake(id, says, remedy, form="rotary", change_form=change_form, **more)


ROTARY = (
    _rotary("rope_dropped", "query and key are not rotated", _rope(lambda r: replace(r, on=False))),
    _rotary(
        "rope_other_pairs",
        "the rotary pairs are those of the other layout (half against interleaved)",
        _rope(_other_layout),
        "layout=the other one",
        issues=("huggingface/transformers #39687", "ggml-org/llama.cpp #22611", "jzhang38/TinyLlama #24"),
    ),
    _rotary(
        "rope_layouts_mixed", "query and key are rotated in different layouts", _rope(_keep, _other_layout)
    ),
    _rotary("rope_query_only", "only the query is rotated", _rope(_keep, lambda r: replace(r, on=False))),
    _rotary("rope_key_only", "only the key is rotated", _rope(lambda r: replace(r, on=False), _keep)),
    _rotary(
        "rope_query_one_late",
        "the query is rotated one position too far",
        _rope(lambda r: replace(r, shift=r.shift + 1), _keep),
        issues=("fla-org/flash-linear-attention #766",),
    ),
    _rotary(
        "rope_query_one_early",
        "the query is rotated one position too little",
        _rope(lambda r: replace(r, shift=r.shift - 1), _keep),
    ),
    _rotary(
        "rope_rows_from_zero",
        "query positions start at 0 although keys are cached before them",
        _rows_from_zero,
        "positions = q_offset + arange(q_len)",
        issues=("pytorch/executorch #2010",),
    ),
    _rotary(
        "rope_single_angle",
        "all query rows are rotated by the angle of the first",
        _rope(lambda r: replace(r, at_start=True), _keep),
        issues=("Dao-AILab/flash-attention flash_attn_with_kvcache docstring",),
    ),
    _rotary(
        "rope_query_backwards",
        "the query is rotated in the other direction",
        _rope(lambda r: replace(r, direction=-r.direction), _keep),
    ),
    _rotary("rope_twice", "the rotation is applied twice", _twice),
    _rotary(
        "rope_theta_500000",
        "the base of the rotation is 500000",
        _rope(lambda r: replace(r, theta=500000.0)),
        "theta=500000",
    ),
    _rotary(
        "rope_theta_10000",
        "the base of the rotation is 10000",
        _rope(lambda r: replace(r, theta=10000.0)),
        "theta=10000",
    ),
    _rotary(
        "rope_theta_1000000",
        "the base of the rotation is 1000000",
        _rope(lambda r: replace(r, theta=1e6)),
        "theta=1000000",
    ),
    _rotary(
        "rope_half_the_dims",
        "only half of the rotary dims are rotated",
        lambda p, n: _rope(
            lambda r: replace(r, rotary_dim=max((r.rotary_dim or p.dense.head_dim) // 4 * 2, 2))
        )(p, n),
        "rotary_dim / 2",
    ),
)
