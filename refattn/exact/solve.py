"""From a checked problem to its answer: one group of heads and one block of rows at a time.

The query heads that share a key/value head are the unit of work: their keys and values are prepared once,
then blocks of their rows go through `refattn.exact.core.attend`, each with only the keys its rows can
see. Nothing of size T x S is ever held.
"""

import functools
import math

import numpy as np

from refattn.calls.memory import ensure_group_allocatable
from refattn.exact.core import attend, prepare_keys, prepare_values
from refattn.exact.precise import (
    DoubleDouble,
    channel_scale,
    long_double,
    require_subnormals,
    scaled,
    sums_within_float64,
    within_float64,
)
from refattn.exact.visibility import range_mask, row_bounds

LARGEST_SCALE_EXPONENT = 64  # products of numbers within range times such a scale stay far inside float64
BLOCK_SCORES = 2**18  # scores computed at a time: small enough to stay in cache, large enough for the BLAS


def solve(problem, record=None):
    """Output and lse of a checked problem of any form, one dense part after the other."""
    ensure_group_allocatable(*problem.largest_group)
    output, lse = np.zeros(problem.output_shape), np.empty(problem.lse_shape)
    for part in problem.parts():
        solve_into(part.problem, part.of_output(output), part.of_lse(lse), record)
    return output, lse


def solve_into(problem, output, lse, record=None, output_low=None):
    """`solve` into arrays of the caller: output (*batch, H, T, E) of zeros, lse (*batch, H, T).

    `record`, if given, is called with the place and the `refattn.exact.core.Steps` of every block of
    rows. `output_low`, shaped like output, receives what float64 drops of the output.
    """
    require_subnormals()
    keep_freed_memory()
    with np.errstate(all="ignore"):  # NaN and infinity in hidden keys, underflow of weights: all meant
        for index in np.ndindex(problem.batch_shape):
            for kv_head in range(problem.num_kv_heads):
                solve_group(problem, index, kv_head, output, lse, record, output_low)


@functools.cache
def keep_freed_memory():
    """Have the arrays of one block reuse the memory of the block before, where malloc is that of glibc.

    It hands freed arrays above 128 KiB back to the system, whose fresh pages cost more than the
    arithmetic on them, until a larger block has been freed once: that size is then the new limit, up to
    32 MiB (mallopt(3), M_MMAP_THRESHOLD).
    """
    np.empty(2**25 - 2**13, dtype=np.uint8)


def solve_group(problem, index, kv_head, output, lse, record, output_low):
    """The query heads that share one key/value head of one batch entry, a block of rows at a time."""
    group_size, q_len, head_dim = problem.group_size, problem.q_len, problem.head_dim
    length = int(problem.kv_lengths[index])
    heads = slice(kv_head * group_size, (kv_head + 1) * group_size)
    query = operand(problem.query, problem.query_low, index, heads)
    key = operand(problem.key, problem.key_low, index, kv_head, slice(length))
    value = operand(problem.value, problem.value_low, index, kv_head, slice(length))
    slopes, sinks = (
        None if part is None else part[index][heads] for part in (problem.alibi_slopes, problem.sinks)
    )
    query, key, slopes, scale = in_working_range(query, key, slopes, problem.scale)
    if not sums_within_float64(value.high):
        value = long_double(value)
    channel = channel_scale(query.high, key.high)
    query, key = scaled(query, 1 / channel), scaled(key, channel)
    keys, values = prepare_keys(key), prepare_values(value)
    position = problem.q_offset[index] + np.arange(q_len)
    start, stop = row_bounds(problem, position, length)
    rows_at_once = max(1, BLOCK_SCORES // (group_size * max(length, 1)))
    for first_row in range(0, q_len, rows_at_once):
        rows = slice(first_row, min(first_row + rows_at_once, q_len))
        first, last = (0, length) if record else keys_of_rows(start[rows], stop[rows])
        tile = (heads, rows, slice(first, last))
        shape = (group_size, len(position[rows]), last - first)
        bias, mask, keep = (
            None if array is None else array[index][tile]
            for array in (problem.bias, problem.mask, problem.dropout_mask)
        )
        distance = None if slopes is None else np.abs(position[rows, None] - np.arange(first, last))
        q = DoubleDouble(*(part[:, rows].reshape(-1, head_dim) for part in query))  # [G, T, D] -> [R, D]
        per_score = {
            "visible": in_rows(visible_keys(start[rows], stop[rows], first, last, mask, bias), shape),
            "keep": in_rows(keep, shape),
            "bias": None if bias is None else in_rows(np.asarray(bias, dtype=np.float64), shape),
            "distance": in_rows(distance, shape),
            "slopes": None if slopes is None else np.repeat(slopes, shape[1]),
            "sinks": None if sinks is None else np.repeat(sinks, shape[1]),
        }
        steps = attend(
            q,
            keys.columns(first, last),
            values.rows(first, last),
            scale=scale,
            cap=problem.softcap,
            keep_scale=problem.keep_scale,
            **per_score,
        )
        at = (*index, heads, rows)
        output[at] = steps.output.high.reshape(*shape[:2], problem.v_head_dim)
        if output_low is not None:
            output_low[at] = steps.output.low.reshape(*shape[:2], problem.v_head_dim)
        lse[at] = steps.lse.reshape(shape[:2])
        if record:
            record(at, steps)


def in_working_range(query, key, slopes, scale):
    """The same in float64 where no score can leave its range, a large power of two of the scale moved to
    the query; in long double elsewhere.
    """
    mantissa, power = scale, 0
    if abs(math.frexp(scale)[1]) > LARGEST_SCALE_EXPONENT:
        mantissa, power = math.frexp(scale)
    if within_float64(query.high, key.high, *([] if slopes is None else [slopes]), power=power):
        query = DoubleDouble(*(np.ldexp(part, power) for part in query)) if power else query
        return query, key, slopes, mantissa
    slopes = None if slopes is None else slopes.astype(np.longdouble)
    return long_double(query), long_double(key), slopes, scale


def operand(high, low, index, *heads_and_rows):
    """One group's part of an array as a double-double; the arrays a caller hands over have nothing
    below float64.
    """
    high = high[index][heads_and_rows]
    high = high if high.dtype == np.longdouble else np.asarray(high, dtype=np.float64)
    return DoubleDouble(
        high, np.broadcast_to(0.0, high.shape) if low is None else low[index][heads_and_rows]
    )


def in_rows(array, shape):
    """An array that broadcasts to [G, T, S] as [R, S]."""
    return None if array is None else np.broadcast_to(array, shape).reshape(shape[0] * shape[1], shape[2])


def keys_of_rows(start, stop):
    """The range of keys that any of these rows can see."""
    seeing = start < stop
    if not seeing.any():
        return 0, 0
    return int(start[seeing].min()), int(stop[seeing].max())


def visible_keys(start, stop, first, last, mask, bias):
    """True where a row may see a key, broadcasting to [G, T, last - first]; None when every row sees
    every key.
    """
    visible = None
    if start.max(initial=first) > first or stop.min(initial=last) < last:
        visible = range_mask(start, stop, first, last)
    if mask is not None:
        visible = mask if visible is None else visible & mask
    if bias is not None:
        holes = bias != -np.inf
        if not holes.all():
            visible = holes if visible is None else visible & holes
    return visible
