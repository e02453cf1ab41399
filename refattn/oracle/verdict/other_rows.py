"""What is known of rows whose errors are not looked at, from the inputs alone.

Nothing is computed for these rows but sizes. By Cauchy and Schwarz |q . k| <= ||q|| ||k||, and an output is
a mean of values: where these sizes, of all keys the row sees, stay far below the largest numbers of the
spec's formats, every intermediate of a correct kernel is finite, and so are its results. NaN and infinities
count as infinite sizes. A row that sees no key has the results of an empty row, whatever the inputs.
"""

from __future__ import annotations

import math

import numpy as np

from refattn.calls.registry import ATTENTION, form_called
from refattn.exact.visibility import range_mask, row_bounds
from refattn.oracle.arithmetic.spec import KernelSpec

UNKNOWN, FINITE, EMPTY, SINK_ALONE = 0, 1, 2, 3
MARGIN = 0.25  # of the largest number of a format: roundings, powers of two in place of e, partial sums
BLOCK_SCORES = 2**22  # entries of a mask or bias read at a time


def row_states(function, arrays, options, spec: KernelSpec, wanted) -> np.ndarray:
    """What each row of a call must be: FINITE, EMPTY (sees no key), SINK_ALONE (sees no key and has a finite
    sink: its results are finite) or UNKNOWN.

    Parameters
    ----------
    function, arrays, options
        The call, as in `check`.
    spec : KernelSpec
    wanted : ndarray of bool, shape of the lse
        The rows to tell; all others are UNKNOWN.

    Returns
    -------
    ndarray of int8, shape of the lse

    Notes
    -----
    Cost: one pass over the inputs; a mask or bias is read once for each head.
    """
    states = np.zeros(wanted.shape, dtype=np.int8)
    checked = form_called(function, ATTENTION).check(*arrays, **options)
    for n in range(checked.num_parts):
        place = checked.place(n)
        if not wanted[place].any():
            continue
        part = checked if checked.form.projects else checked.part(n)
        sizes = _latent_sizes if checked.form.projects else _dense_sizes
        with np.errstate(all="ignore"):
            for index in np.ndindex(wanted[place].shape[:-2]):
                for head in range(wanted[place].shape[-2]):
                    at = (*index, head)
                    query, key, value = sizes(part, index, head, spec)
                    states[place][at] = _states_of_head(part, at, query, key, value, spec)
    states[~wanted] = UNKNOWN
    return states


def _norms(array, spec):
    """Length of each row of numbers, inf where one is not finite or near the largest of the input format."""
    wide = np.asarray(array, dtype=np.float64)
    norms = np.sqrt(np.einsum("...d,...d->...", wide, wide))
    fits = np.abs(wide).max(axis=-1, initial=0.0) < MARGIN * spec.input.largest
    return np.where(fits & np.isfinite(norms), norms, np.inf)


def _dense_sizes(problem, index, head, spec):
    """||q|| of each row, ||k|| and ||v|| of each key."""
    kv_head, length = head // problem.group_size, int(problem.kv_lengths[index])
    sides = (problem.key, problem.value)
    return _norms(problem.query[index][head], spec), *(
        _norms(side[index][kv_head, :length], spec) for side in sides
    )


def _latent_sizes(problem, index, head, spec):
    """The same for latent attention, whose keys and values are latents times weights: no longer than the
    latent times the Frobenius norm of the weights. Products that are stored count as infinite where they
    may leave their format.
    """
    length = int(problem.kv_lengths[index])
    latent, rope = (_norms(side[index][:length], spec) for side in (problem.kv_latent, problem.k_rope))
    nope, q_rope = (_norms(side[index][head], spec) for side in (problem.q_nope, problem.q_rope))
    w_uk, w_uv = (np.linalg.norm(_norms(side[head], spec)) for side in (problem.w_uk, problem.w_uv))
    top = MARGIN * spec.intermediate.largest
    stored = lambda size: np.where(size < top, size, np.inf)
    # q . k <= (||q_nope|| ||w_uk||) ||latent|| + ||q_rope|| ||k_rope||
    query = np.hypot(stored(nope * w_uk), q_rope)
    # an expanded key that may overflow has no size
    key = np.where(latent * w_uk < top, np.hypot(latent, rope), np.inf)
    return query, key, stored(latent * max(w_uv, 1.0))


def _states_of_head(problem, at, query, key, value, spec):
    """States of the rows of one head, (T,), from the sizes of its queries, (T,), keys and values, (S,)."""
    index, length = at[:-1], len(key)
    offset = problem.q_offset[index]
    start, stop = row_bounds(problem, offset + np.arange(len(query)), length)
    if problem.mask is None and problem.bias is None:
        largest_key, largest_value = (largest_in_ranges(side, start, stop) for side in (key, value))
        formed = seen = start < stop
        largest_bias = 0.0
    else:
        formed, seen, largest_key, largest_value, largest_bias = _through_masks(
            problem, at, start, stop, key, value
        )
    sink = -np.inf if problem.sinks is None else float(problem.sinks[at])
    score = max(abs(problem.scale), 1.0) * query * largest_key + largest_bias
    if problem.alibi_slopes is not None:
        score = score + abs(float(problem.alibi_slopes[at])) * (abs(float(offset)) + len(query) + length)
    score = score + (0.0 if sink == -np.inf else abs(sink)) + math.log(length + 1.0)
    query_fits = max(abs(problem.scale), 1.0) * query < MARGIN * spec.scaled_query.largest
    sums = (1.0 if spec.normalises_first else length + 1.0) * largest_value * problem.keep_scale
    formats = (spec.accumulator, spec.softmax, spec.score, spec.lse)
    fits = (score < MARGIN * min(form.largest for form in formats)) & query_fits
    fits &= (sums < MARGIN * spec.accumulator.largest) & (length < MARGIN * spec.softmax.largest)
    fits &= problem.keep_scale * largest_value < MARGIN * spec.output.largest
    empty = ~seen & (~formed | fits)
    states = np.where(seen & fits, FINITE, UNKNOWN)
    return np.where(
        empty, EMPTY if sink == -np.inf else SINK_ALONE if math.isfinite(sink) else UNKNOWN, states
    )


def _through_masks(problem, at, start, stop, key, value):
    """Whether each row forms a score and sees a key, and the largest key, value and bias of those it forms:
    the product of a key that a bias of -inf hides is formed too.
    """
    rows, length = len(start), len(key)
    formed, seen = np.zeros((2, rows), dtype=bool)
    largest = np.zeros((3, rows))
    at_once = max(1, BLOCK_SCORES // max(length, 1))
    for first in range(0, rows, at_once):
        block = slice(first, first + at_once)
        there = range_mask(start[block], stop[block], 0, length)
        if problem.mask is not None:
            there = there & problem.mask[at][block, :length]
        visible = there
        if problem.bias is not None:
            bias = np.asarray(problem.bias[at][block, :length], dtype=np.float64)
            hides = bias == -np.inf
            visible = there & ~hides
            bias = np.where(hides, 0.0, np.where(np.isfinite(bias), np.abs(bias), np.inf))
            largest[2, block] = np.where(there, bias, 0.0).max(axis=1, initial=0.0)
        formed[block], seen[block] = there.any(axis=1), visible.any(axis=1)
        for side, sizes in enumerate((key, value)):
            largest[side, block] = np.where(there, sizes, 0.0).max(axis=1, initial=0.0)
    return formed, seen, *largest


def largest_in_ranges(sizes, start, stop):
    """The largest of `sizes`, (S,), over each range [start, stop), 0 where it is empty.

    `level` holds the maxima of all runs of 1, 2, 4, ... entries; two of them cover a range.

    Examples
    --------
    >>> largest_in_ranges(np.array([5.0, 1.0, 2.0]), np.array([0, 1, 2]), np.array([2, 3, 2])).tolist()
    [5.0, 2.0, 0.0]
    """
    largest, length, level, run = np.zeros(len(start)), stop - start, sizes, 1
    while run <= len(sizes):
        now = (run <= length) & (length < 2 * run)
        largest[now] = np.maximum(level[start[now]], level[stop[now] - run])
        level, run = np.maximum(level[:-run], level[run:]), 2 * run
    return largest
