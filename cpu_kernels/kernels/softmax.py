"""One step of the online softmax, vertically: every lane is one query row, so no sum or maximum crosses
lanes.

Invariant after each tile of keys:  peak = max s,  total = sum exp(s - peak).
Milakov and Gimelshein 2018, "Online normalizer calculation for softmax", section 3.
"""

from functools import reduce

import numpy as np

from cpu_kernels.kernels.exponential import exp
from cpu_kernels.kernels.few_rows import usable_counts
from cpu_kernels.simd.building_block import building_block

CHAINS = 4  # maxima that grow side by side: each waits for its own last comparison only


def _softmax_step(vectors, num_keys, scores, stride, phases, peak, total, rescale):
    scores = scores[0][scores[1] : scores[1] + num_keys * stride].reshape(num_keys, stride)
    peak, total, rescale = (array[at : at + stride] for array, at in (peak, total, rescale))
    with np.errstate(all="ignore"):
        highest = np.fmax(peak, np.fmax.reduce(scores, axis=0, initial=-np.inf))
        highest = np.repeat(np.fmax.reduce(highest.reshape(-1, phases), axis=1), phases)
        pivot = np.where(highest == -np.inf, 0, highest)
        rescale[:] = np.exp(peak - pivot)
        scores[:] = np.exp(scores - pivot)
        total[:] = total * rescale + scores.sum(axis=0)
    peak[:] = highest


@building_block(python=_softmax_step)
def softmax_step(emit, vectors, num_keys, scores, stride, phases, peak, total, rescale):
    """Turn scores[key, lane] into weights relative to the new peak; `rescale` gets the factor by which what
    was summed before must shrink.

    `phases` neighbouring lanes belong to one row: they share a peak, and each has the total of its own keys.
    A lane that has seen nothing keeps peak -inf and total 0; NaN and +inf scores end as NaN in `total`.
    """
    with emit.loop(vectors) as vector:
        lane = emit.multiply(vector, emit.lanes)
        column = emit.at(scores, lane)
        before = emit.load(peak, lane)
        maxima = [emit.variable(before) for _ in range(CHAINS)]
        whole = emit.builder.sub(num_keys, emit.builder.srem(num_keys, emit.integer(CHAINS)))
        for stop, start, chains in ((whole, 0, maxima), (num_keys, whole, maxima[:1])):
            with emit.loop(stop, start=start, step=len(chains)) as key:
                for i, maximum in enumerate(chains):
                    score = emit.load(column, emit.multiply(emit.add(key, i), stride))
                    emit.assign(maximum, emit.maximum(score, emit.value(maximum)))
        highest = emit.variable(reduce(emit.maximum, [emit.value(maximum) for maximum in maxima]))
        for count in emit.cases(phases, [emit.lanes // rows for rows in usable_counts(emit.lanes)]):
            shared = emit.value(highest)
            for distance in (2**i for i in range(count.bit_length() - 1)):
                shared = emit.maximum(
                    shared, emit.shuffle(shared, shared, [lane ^ distance for lane in range(emit.lanes)])
                )
            emit.assign(highest, shared)
        highest = emit.value(highest)
        pivot = emit.select(highest.equals(-np.inf), 0.0, highest)
        shrink = exp(emit, before - pivot)
        added = emit.variable(emit.vector(0.0))
        with emit.loop(num_keys) as key:
            at = emit.multiply(key, stride)
            weight = exp(emit, emit.load(column, at) - pivot)
            emit.store(weight, column, at)
            emit.assign(added, emit.value(added) + weight)
        emit.store(emit.fma(emit.load(total, lane), shrink, emit.value(added)), total, lane)
        emit.store(highest, peak, lane)
        emit.store(shrink, rescale, lane)
