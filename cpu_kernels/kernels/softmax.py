"""One step of the online softmax, vertically: every lane is one query row, so no sum or maximum crosses lanes.

Invariant after each tile of keys, scores in units of log2:  peak = max s,  total = sum 2**(s - peak).
Milakov and Gimelshein 2018, "Online normalizer calculation for softmax", section 3.
"""

import numpy as np

from cpu_kernels.kernels.exponential import exp2
from cpu_kernels.vector import building_block


def _softmax_step(vectors, num_keys, scores, stride, peak, total, rescale):
    scores = scores[0][scores[1] : scores[1] + num_keys * stride].reshape(num_keys, stride)
    peak, total, rescale = (array[at : at + stride] for array, at in (peak, total, rescale))
    with np.errstate(all="ignore"):
        highest = np.fmax(peak, np.fmax.reduce(scores, axis=0, initial=-np.inf))
        pivot = np.where(highest == -np.inf, 0, highest)
        rescale[:] = np.exp2(peak - pivot)
        scores[:] = np.exp2(scores - pivot)
        total[:] = total * rescale + scores.sum(axis=0)
    peak[:] = highest


@building_block(python=_softmax_step)
def softmax_step(emit, vectors, num_keys, scores, stride, peak, total, rescale):
    """Turn scores[key, lane] into weights relative to the new peak; `rescale` gets the factor by which what was summed before must shrink.

    A lane that has seen nothing keeps peak -inf and total 0; NaN and +inf scores end as NaN in `total`.
    """
    with emit.loop(vectors) as vector:
        lane = emit.multiply(vector, emit.lanes)
        column = emit.at(scores, lane)
        before = emit.load(peak, lane)
        highest = emit.variable(before)
        with emit.loop(num_keys) as key:
            emit.assign(highest, emit.maximum(emit.load(column, emit.multiply(key, stride)), emit.value(highest)))
        highest = emit.value(highest)
        pivot = emit.select(highest.equals(-np.inf), 0.0, highest)
        shrink = exp2(emit, before - pivot)
        added = emit.variable(emit.vector(0.0))
        with emit.loop(num_keys) as key:
            at = emit.multiply(key, stride)
            weight = exp2(emit, emit.load(column, at) - pivot)
            emit.store(weight, column, at)
            emit.assign(added, emit.value(added) + weight)
        emit.store(emit.fma(emit.load(total, lane), shrink, emit.value(added)), total, lane)
        emit.store(highest, peak, lane)
        emit.store(shrink, rescale, lane)
