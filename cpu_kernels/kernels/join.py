"""Join the states that splitting the keys of a block left: a sum over slots in ascending order, whatever
thread computed them.
"""

from typing import NamedTuple

import numpy as np

from cpu_kernels.compiler.jit import driver, leaf, next_item
from cpu_kernels.kernels.blocks import PANELS, PEAK, PLAIN, TOTAL, finish, open_panel, panel_of
from cpu_kernels.kernels.exponential import exp
from cpu_kernels.simd.building_block import building_block
from cpu_kernels.simd.registers import lanes


class State(NamedTuple):
    """What the softmax of a panel's rows has come to."""

    output: tuple  # [dim, lane], means of the values; memory, as the others
    peak: tuple
    total: tuple


@driver
def join(counter, scratch, all_params, items, groups, heads, output, lse, states):
    """Finish the rows of each item from its slots of `states`."""
    params = all_params[0]
    ints = scratch[: params.panels].view(np.int64)
    n = next_item(counter)
    while n >= 0:
        item = items[n]
        for index in range(PANELS):
            panel = panel_of(params, scratch, index, item)
            if panel.stride:
                group = groups[item.group]
                open_panel(params, group, heads, panel, item.last_row, scratch, ints, False, PLAIN)
                add_states(params, item, panel, index * params.state_panel, scratch, states)
                finish(params, panel, scratch, ints, output, lse, True)
        n = next_item(counter)


@leaf
def add_states(params, item, panel, at, scratch, states):
    """Add a panel's states, `at` elements into each slot, in ascending order."""
    stride, size = panel.stride, params.v_head_dim * panel.stride
    ours = State(
        (scratch, panel.output),
        (scratch, panel.lanes + PEAK * stride),
        (scratch, panel.lanes + TOTAL * stride),
    )
    for slot in range(item.state, item.state + item.num_states):
        state = slot * params.state_slot + at
        added = State((states, state), (states, state + size), (states, state + size + stride))
        add_state(panel.vectors, params.v_head_dim, ours, added)


def _add_state(vectors, num_dims, ours, added):
    stride = vectors * lanes(ours.output[0].dtype)
    tile, other = (
        array[at : at + num_dims * stride].reshape(num_dims, stride)
        for array, at in (ours.output, added.output)
    )
    peak, total, added_peak, added_total = (array[at : at + stride] for array, at in (*ours[1:], *added[1:]))
    with np.errstate(all="ignore"):
        highest = np.fmax(peak, added_peak)
        pivot = np.where(highest == -np.inf, 0, highest)
        mine, theirs = total * np.exp(peak - pivot), added_total * np.exp(added_peak - pivot)
        total[:] = mine + theirs
        mine, theirs = (part / np.where(total == 0, 1, total) for part in (mine, theirs))
        tile[:] = np.where(np.isfinite(tile), tile * mine, tile) + np.where(
            np.isfinite(other), other * theirs, other
        )
    peak[:] = highest


@building_block(python=_add_state)
def add_state(emit, vectors, num_dims, ours, added):
    """Our state joined with another; outputs are means, so that no sum of large values overflows. Those that
    are not finite hold infinities that some row sees: they stay, however small the weight of their part, as
    `collect_infinities` keeps them within a part.
    """
    stride = emit.multiply(vectors, emit.lanes)
    with emit.loop(vectors) as vector:
        lane = emit.multiply(vector, emit.lanes)
        peak, added_peak = emit.load(ours.peak, lane), emit.load(added.peak, lane)
        highest = emit.maximum(peak, added_peak)
        pivot = emit.select(highest.equals(-np.inf), 0.0, highest)
        mine = emit.load(ours.total, lane) * exp(emit, peak - pivot)
        theirs = emit.load(added.total, lane) * exp(emit, added_peak - pivot)
        joined = mine + theirs
        emit.store(highest, ours.peak, lane)
        emit.store(joined, ours.total, lane)
        divisor = emit.select(joined.equals(0.0), 1.0, joined)
        mine, theirs = mine / divisor, theirs / divisor
        column, other = emit.at(ours.output, lane), emit.at(added.output, lane)
        with emit.loop(num_dims) as dim:
            at = emit.multiply(dim, stride)
            summed = [
                weighted(emit, emit.load(memory, at), factor)
                for memory, factor in ((column, mine), (other, theirs))
            ]
            emit.store(summed[0] + summed[1], column, at)


def weighted(emit, x, factor):
    return emit.select((x - x).equals(0.0), x * factor, x)
