"""From a checked problem to its answer: one group of heads and one block of rows at a time.

The query heads that share a key/value head are the unit of work: their keys and values are prepared once,
then blocks of their rows are computed, each with only the keys its rows can see. Nothing of size T x S is
ever held. What is computed of a group and of a block is up to an arithmetic: `refattn.exact.core` or
`refattn.exact.plain`.
"""

import functools

import numpy as np

from refattn.calls.memory import ensure_group_allocatable
from refattn.exact.core import ExactGroup
from refattn.exact.plain import PlainGroup
from refattn.exact.precise import DoubleDouble, require_subnormals
from refattn.exact.visibility import range_mask, row_bounds

ARITHMETICS = {"exact": ExactGroup, "float64": PlainGroup}


def arithmetic_of(precision):
    """The arithmetic that the option `precision` names."""
    if not isinstance(precision, str):
        raise TypeError(f"precision must be 'exact' or 'float64'; got precision={precision!r}.")
    if precision not in ARITHMETICS:
        raise ValueError(f"precision must be 'exact' or 'float64'; got precision={precision!r}.")
    return ARITHMETICS[precision]


def solve(problem, record=None, rows=None, arithmetic=ExactGroup, each=map):
    """Output and lse of a checked problem of any form, one group of heads after the other.

    `each(function, groups)` calls the function with every group, as `map` does, and may take several at a
    time; the other parameters are those of `solve_into`.
    """
    ensure_group_allocatable(*problem.largest_group)
    output = np.zeros(problem.output_shape)
    lse = (np.empty if rows is None else np.zeros)(problem.lse_shape)
    groups = (
        (group, part.of_output(output)[group.index], part.of_lse(lse)[group.index])
        for part in problem.parts()
        for group in groups_of(part.problem, rows)
    )
    _prepare()
    for _ in each(lambda one: solve_group(one[0], arithmetic, *one[1:], record, None), groups):
        pass
    return output, lse


def solve_into(problem, output, lse, record=None, output_low=None, rows=None, arithmetic=ExactGroup):
    """`solve` into arrays of the caller: output (*batch, H, T, E) of zeros, lse (*batch, H, T).

    Parameters
    ----------
    record : callable, optional
        Called with the place and the `refattn.exact.core.Steps` of every block of rows.
    output_low : ndarray, shape of output, optional
        Receives what float64 drops of the output.
    rows : callable, optional
        Of a number of query rows, an increasing array of those to compute; the others are left as they are.
    arithmetic : callable
        `refattn.exact.core.ExactGroup` or what has its methods: what is computed of a group of heads.
    """
    _prepare()
    for group in groups_of(problem, rows):
        solve_group(group, arithmetic, output[group.index], lse[group.index], record, output_low)


def _prepare():
    require_subnormals()
    keep_freed_memory()


def groups_of(problem, rows=None):
    """The `Heads` of a dense problem, one after the other."""
    picked = None if rows is None else rows(problem.q_len)
    for index in np.ndindex(problem.batch_shape):
        for kv_head in range(problem.num_kv_heads):
            yield Heads(problem, index, kv_head, picked)


@functools.cache
def keep_freed_memory():
    """Have the arrays of one block reuse the memory of the block before, where malloc is that of glibc.

    It hands freed arrays above 128 KiB back to the system, whose fresh pages cost more than the
    arithmetic on them, until a larger block has been freed once: that size is then the new limit, up to
    32 MiB (mallopt(3), M_MMAP_THRESHOLD).
    """
    np.empty(2**25 - 2**13, dtype=np.uint8)


class Heads:
    """The query heads of one batch entry that share a key/value head, and those of their rows that are
    wanted.
    """

    def __init__(self, problem, index, kv_head, picked):
        self.problem, self.index, self.kv_head = problem, index, kv_head
        size = problem.group_size
        self.heads = slice(kv_head * size, (kv_head + 1) * size)
        self.length = int(problem.kv_lengths[index])
        self.rows = slice(0, problem.q_len) if picked is None else picked
        self.position = problem.q_offset[index] + np.arange(problem.q_len)[self.rows]

    def per_head(self, name):
        array = getattr(self.problem, name)
        return None if array is None else array[self.index][self.heads]

    def operands(self):
        """The arguments of an arithmetic: those of `refattn.exact.core.ExactGroup`."""
        p, keys = self.problem, slice(self.length)
        low = (p.query_low, p.key_low, p.value_low)
        narrow = all(part is None for part in low) and all(
            side.dtype.itemsize <= 4 for side in (p.query, p.key, p.value)
        )
        return (
            operand(p.query, p.query_low, self.index, self.heads, self.rows),
            operand(p.key, p.key_low, self.index, self.kv_head, keys),
            operand(p.value, p.value_low, self.index, self.kv_head, keys),
            self.per_head("alibi_slopes"),
            p.scale,
            narrow,
        )

    def of_rows(self, block):
        """A block of the rows as an index of the rows of the problem."""
        return block if isinstance(self.rows, slice) else self.rows[block]


@np.errstate(all="ignore")  # NaN and infinity in hidden keys, underflow of weights: all meant
def solve_group(group, arithmetic, output, lse, record, output_low):
    """The rows of one `Heads`, a block at a time; output and lse are those of the batch entry."""
    problem, position, length = group.problem, group.position, group.length
    prepared, sinks = arithmetic(*group.operands()), group.per_head("sinks")
    start, stop = row_bounds(problem, position, length)
    rows_at_once = max(1, prepared.block_scores // (problem.group_size * max(length, 1)))
    for first_row in range(0, len(position), rows_at_once):
        block = slice(first_row, min(first_row + rows_at_once, len(position)))
        rows = group.of_rows(block)
        first, last = (0, length) if record else keys_of_rows(start[block], stop[block])
        bias, mask, keep = (
            None if array is None else array[group.index][group.heads, rows, first:last]
            for array in (problem.bias, problem.mask, problem.dropout_mask)
        )
        steps = prepared.attend(
            block,
            first,
            last,
            cap=problem.softcap,
            keep_scale=problem.keep_scale,
            sinks=sinks,
            visible=visible_keys(start[block], stop[block], first, last, mask, bias),
            keep=keep,
            bias=None if bias is None else np.asarray(bias, dtype=np.float64),
            distance=(
                None
                if problem.alibi_slopes is None
                else np.abs(position[block, None] - np.arange(first, last))
            ),
        )
        shape = (problem.group_size, len(position[block]))
        output[group.heads, rows] = steps.output.high.reshape(*shape, problem.v_head_dim)
        if output_low is not None:
            output_low[group.index][group.heads, rows] = steps.output.low.reshape(*shape, problem.v_head_dim)
        lse[group.heads, rows] = steps.lse.reshape(shape)
        if record:
            record((*group.index, group.heads, rows), steps)


def operand(high, low, index, *heads_and_rows):
    """One group's part of an array as a double-double; the arrays a caller hands over have nothing
    below float64.
    """
    high = high[index][heads_and_rows]
    high = high if high.dtype == np.longdouble else np.asarray(high, dtype=np.float64)
    return DoubleDouble(
        high, np.broadcast_to(0.0, high.shape) if low is None else low[index][heads_and_rows]
    )


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
