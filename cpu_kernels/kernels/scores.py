"""What options do to a tile of scores[key, lane], in the order of the contract: the scale where the query
does not carry it, softcap, ALiBi, bias, hide; dropout comes after the softmax.

Lanes beyond the last row repeat that row. The scores of a tile are [chunk, lane]. Here a chunk is not the
option: it is `phases` keys, and neighbouring lanes hold the phases of one row (`few_rows.py`); with one
phase a chunk is a key.
"""

import numpy as np

from cpu_kernels.compiler.jit import leaf
from cpu_kernels.kernels.blocks import (
    ALIBI_ORIGIN,
    ALL_START,
    ALL_STOP,
    BIAS_AT,
    MASK_AT,
    NEAREST,
    RANGES,
    SEEN_FROM,
    SEEN_TO,
    SLOPE,
    START,
    STOP,
)
from cpu_kernels.kernels.exponential import tanh
from cpu_kernels.simd.building_block import building_block


def _tile(scores, num_keys, stride):
    return scores[0][scores[1] : scores[1] + num_keys * stride].reshape(num_keys, stride)


def _lanes(pair, stride):
    return pair[0][pair[1] : pair[1] + stride]


def _scale_scores(vectors, num_chunks, scores, stride, factor):
    with np.errstate(all="ignore"):
        _tile(scores, num_chunks, stride)[:] *= factor


@building_block(python=_scale_scores)
def scale_scores(emit, vectors, num_chunks, scores, stride, factor):
    """scores = factor * scores, where the products of a scaled query could overflow."""
    for_each_vector(emit, vectors, num_chunks, scores, stride, lambda score, chunk, lane: score * factor)


def _softcap(vectors, num_chunks, scores, stride, inverse, cap):
    tile = _tile(scores, num_chunks, stride)
    with np.errstate(all="ignore"):
        tile[:] = cap * np.tanh(tile * inverse)


@building_block(python=_softcap)
def softcap(emit, vectors, num_chunks, scores, stride, inverse, cap):
    """scores = cap * tanh(scores * inverse)"""

    def cap_one(score, chunk, lane):
        return tanh(emit, score * inverse) * cap

    for_each_vector(emit, vectors, num_chunks, scores, stride, cap_one)


def _alibi(vectors, num_chunks, scores, stride, phases, slope, position):
    with np.errstate(all="ignore"):
        distance = np.abs(_lanes(position, stride) - phases * np.arange(num_chunks)[:, None])
        _tile(scores, num_chunks, stride)[:] -= _lanes(slope, stride) * distance


@building_block(python=_alibi)
def alibi(emit, vectors, num_chunks, scores, stride, phases, slope, position):
    """scores -= slope * |position - key|, with lanes of slopes and of row positions counted from the lane's
    first key.
    """

    def penalise(score, chunk, lane):
        distance = emit.absolute(emit.load(position, lane) - emit.number(emit.multiply(chunk, phases)))
        return score - emit.load(slope, lane) * distance

    for_each_vector(emit, vectors, num_chunks, scores, stride, penalise)


def _hide_outside(vectors, num_chunks, scores, stride, phases, first, last):
    tile, key = _tile(scores, num_chunks, stride), phases * np.arange(num_chunks)[:, None]
    tile[~((_lanes(first, stride) <= key) & (key < _lanes(last, stride)))] = -np.inf


@building_block(python=_hide_outside)
def hide_outside(emit, vectors, num_chunks, scores, stride, phases, first, last):
    """-inf outside each lane's range [first, last), counted from the lane's first key. A select, not a sum:
    what was there may be NaN.
    """

    def hide(score, chunk, lane):
        here = emit.number(emit.multiply(chunk, phases))
        inside = emit.builder.and_(emit.load(first, lane) <= here, emit.load(last, lane) > here)
        return emit.select(inside, score, -np.inf)

    for_each_vector(emit, vectors, num_chunks, scores, stride, hide)


def for_each_vector(emit, vectors, num_chunks, scores, stride, change):
    with emit.loop(num_chunks) as chunk:
        row = emit.at(scores, emit.multiply(chunk, stride))
        with emit.loop(vectors) as vector:
            lane = emit.multiply(vector, emit.lanes)
            emit.store(change(emit.load(row, lane), chunk, lane), row, lane)


@leaf
def chunks_of(panel, tile):
    return (tile.last - tile.first + panel.phases - 1) // panel.phases


@leaf
def change_scores(params, panel, tile, memory, scratch, ints):
    """The options, in the order of the contract. A tile without options and inside every row's range passes
    through.
    """
    scores, chunks = (scratch, params.scores), chunks_of(panel, tile)
    if params.has_score_scale:
        scale_scores(panel.vectors, chunks, scores, panel.stride, params.score_scale)
    if params.has_softcap:
        softcap(panel.vectors, chunks, scores, panel.stride, params.inverse_cap, params.cap)
    if params.has_alibi:
        add_alibi(params, panel, tile, scratch, ints)
    if params.has_bias:
        add_bias(params, panel, tile, memory.bias, scratch, ints)
    if params.has_mask:
        keep_where(params, panel, tile, memory.mask, MASK_AT, params.mask_key, -np.inf, scratch, ints)
    ranges = panel.ints + RANGES * panel.stride
    inside = ints[ranges + ALL_START] <= tile.first and tile.last <= ints[ranges + ALL_STOP]
    if not inside or (tile.last - tile.first) % panel.phases:
        hide_unseen(params, panel, tile, scratch, ints)


@leaf
def add_alibi(params, panel, tile, scratch, ints):
    stride, phases = panel.stride, panel.phases
    origin = panel.lanes + ALIBI_ORIGIN * stride
    for lane in range(stride):
        scratch[origin + lane] = ints[panel.ints + NEAREST * stride + lane] - tile.first - lane % phases
    slope = (scratch, panel.lanes + SLOPE * stride)
    scores, chunks = (scratch, params.scores), chunks_of(panel, tile)
    alibi(panel.vectors, chunks, scores, stride, phases, slope, (scratch, origin))


@leaf
def hide_unseen(params, panel, tile, scratch, ints):
    """-inf where a row does not see the key, and where a chunk reaches beyond the tile."""
    stride, phases, count = panel.stride, panel.phases, tile.last - tile.first
    first, last = panel.lanes + SEEN_FROM * stride, panel.lanes + SEEN_TO * stride
    for lane in range(stride):
        start = ints[panel.ints + START * stride + lane] - tile.first
        stop = ints[panel.ints + STOP * stride + lane] - tile.first
        scratch[first + lane] = max(start, 0) - lane % phases
        scratch[last + lane] = min(stop, count) - lane % phases
    scores, chunks = (scratch, params.scores), chunks_of(panel, tile)
    hide_outside(panel.vectors, chunks, scores, stride, phases, (scratch, first), (scratch, last))


# What the caller gives one element a (row, key) is read where it lies: element (lane, key) at rows[lane] +
# key * key_stride, strides may be 0.


@leaf
def add_bias(params, panel, tile, bias, scratch, ints):
    """Add bias[row, key] to the scores; -inf hides."""
    stride, phases = panel.stride, panel.phases
    for lane in range(stride):
        phase = lane % phases
        at = ints[panel.ints + BIAS_AT * stride + lane] + tile.first * params.bias_key
        for key in range(phase, tile.last - tile.first, phases):
            added = bias[at + key * params.bias_key]
            here = params.scores + (key - phase) // phases * stride + lane
            if added == -np.inf:
                scratch[here] = added
            else:
                scratch[here] += added


@leaf
def keep_where(params, panel, tile, mask, rows, key_stride, otherwise, scratch, ints):
    """Set scores to `otherwise` where mask[row, key] is 0; `rows` names the lanes that hold its offsets."""
    stride, phases = panel.stride, panel.phases
    for lane in range(stride):
        at, phase = ints[panel.ints + rows * stride + lane] + tile.first * key_stride, lane % phases
        for key in range(phase, tile.last - tile.first, phases):
            if mask[at + key * key_stride] == 0:
                scratch[params.scores + (key - phase) // phases * stride + lane] = otherwise
