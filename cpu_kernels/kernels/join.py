"""Join the states that splitting the keys of a block left: a sum over slots in ascending order, whatever
thread computed them.
"""

import numpy as np

from cpu_kernels.compiler.jit import driver, next_item
from cpu_kernels.kernels.blocks import PANELS, PEAK, TOTAL, finish, open_panel, panel_of
from cpu_kernels.kernels.exponential import exp
from cpu_kernels.simd.building_block import building_block


@driver
def join(counter, scratch, all_params, items, groups, heads, query, query_rope, output, lse, states):
    """Finish the rows of each item from its slots of `states`."""
    params = all_params[0]
    ints = scratch[: params.panels].view(np.int64)
    n = next_item(counter)
    while n >= 0:
        item = items[n]
        group = groups[item.group]
        for index in range(PANELS):
            panel = panel_of(params, scratch, index, item)
            if panel.stride:
                # It packs a query that nobody reads; the same tables and lanes are worth it.
                open_panel(
                    params, group, heads, query, query_rope, panel, item.last_row, scratch, ints, False, 0
                )
                stride, size = panel.stride, params.v_head_dim * panel.stride
                for slot in range(item.state, item.state + item.num_states):
                    state = slot * params.state_slot + index * params.state_panel
                    add_state(
                        panel.vectors,
                        params.v_head_dim,
                        (scratch, panel.output),
                        stride,
                        (scratch, panel.lanes + PEAK * stride),
                        (scratch, panel.lanes + TOTAL * stride),
                        (states, state),
                        (states, state + size),
                        (states, state + size + stride),
                    )
                finish(params, panel, scratch, ints, output, lse, True)
        n = next_item(counter)


def _add_state(vectors, num_dims, output, stride, peak, total, state, state_peak, state_total):
    tile, other = (
        array[at : at + num_dims * stride].reshape(num_dims, stride) for array, at in (output, state)
    )
    peak, total, state_peak, state_total = (
        array[at : at + stride] for array, at in (peak, total, state_peak, state_total)
    )
    with np.errstate(all="ignore"):
        highest = np.fmax(peak, state_peak)
        pivot = np.where(highest == -np.inf, 0, highest)
        mine, theirs = total * np.exp(peak - pivot), state_total * np.exp(state_peak - pivot)
        total[:] = mine + theirs
        mine, theirs = (part / np.where(total == 0, 1, total) for part in (mine, theirs))
        tile[:] = np.where(np.isfinite(tile), tile * mine, tile) + np.where(
            np.isfinite(other), other * theirs, other
        )
    peak[:] = highest


@building_block(python=_add_state)
def add_state(emit, vectors, num_dims, output, stride, peak, total, state, state_peak, state_total):
    """(peak, total, output) of a panel joined with those of a state; outputs are means, so that no sum of
    large values overflows. Those that are not finite hold infinities that some row sees: they stay, however
    small the weight of their part, as `collect_infinities` keeps them within a part.
    """
    with emit.loop(vectors) as vector:
        lane = emit.multiply(vector, emit.lanes)
        ours, added = emit.load(peak, lane), emit.load(state_peak, lane)
        highest = emit.maximum(ours, added)
        pivot = emit.select(highest.equals(-np.inf), 0.0, highest)
        mine = emit.load(total, lane) * exp(emit, ours - pivot)
        theirs = emit.load(state_total, lane) * exp(emit, added - pivot)
        joined = mine + theirs
        emit.store(highest, peak, lane)
        emit.store(joined, total, lane)
        divisor = emit.select(joined.equals(0.0), 1.0, joined)
        mine, theirs = mine / divisor, theirs / divisor
        column, other = emit.at(output, lane), emit.at(state, lane)
        with emit.loop(num_dims) as dim:
            at = emit.multiply(dim, stride)
            summed = [
                weighted(emit, emit.load(memory, at), factor)
                for memory, factor in ((column, mine), (other, theirs))
            ]
            emit.store(summed[0] + summed[1], column, at)


def weighted(emit, x, factor):
    return emit.select((x - x).equals(0.0), x * factor, x)
