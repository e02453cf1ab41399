"""Join the states that splitting the keys of a block left: a sum over slots in ascending order, whatever thread computed them."""

import numpy as np

from cpu_kernels.jit import driver, leaf, next_item
from cpu_kernels.kernels.blocks import LEFT, PANELS, PEAK, RIGHT, TOTAL, finish, open_panel, panel_of


@driver
def join(counter, scratch, shapes, items, groups, heads, query, query_rope, output, lse, states):
    """Finish the rows of each item from its slots of `states`."""
    shape = shapes[0]
    ints = scratch[: shape.panels].view(np.int64)
    n = next_item(counter)
    while n >= 0:
        item = items[n]
        group = groups[item.group]
        for index in range(PANELS):
            panel = panel_of(shape, scratch, index, item)
            if panel.stride:
                open_panel(shape, group, heads, query, query_rope, panel, item.last_row, scratch, ints, False, False)
                for slot in range(item.state, item.state + item.num_states):
                    add_state(shape, panel, scratch, states, (slot * PANELS + index) * shape.state_panel)
                finish(shape, panel, scratch, ints, output, lse)
        n = next_item(counter)


@leaf
def add_state(shape, panel, scratch, states, state):
    """(peak, total, output) of a panel joined with those of a slot; a part without weight adds nothing, whatever it holds."""
    stride = panel.stride
    peaks, totals = panel.lanes + PEAK * stride, panel.lanes + TOTAL * stride
    ours, theirs = panel.lanes + LEFT * stride, panel.lanes + RIGHT * stride
    their_peaks = state + shape.v_head_dim * stride
    for lane in range(stride):
        peak, their_peak = scratch[peaks + lane], states[their_peaks + lane]
        highest = max(peak, their_peak)
        pivot = 0.0 if highest == -np.inf else np.float64(highest)
        scratch[ours + lane] = np.exp2(peak - pivot)
        scratch[theirs + lane] = np.exp2(their_peak - pivot)
        scratch[peaks + lane] = highest
        scratch[totals + lane] = scratch[totals + lane] * scratch[ours + lane] + states[their_peaks + stride + lane] * scratch[theirs + lane]
    for dim in range(shape.v_head_dim):
        at = dim * stride
        for lane in range(stride):
            mine = scratch[panel.output + at + lane] * scratch[ours + lane] if scratch[ours + lane] != 0 else 0 * scratch[ours + lane]
            added = states[state + at + lane] * scratch[theirs + lane] if scratch[theirs + lane] != 0 else 0 * scratch[theirs + lane]
            scratch[panel.output + at + lane] = mine + added
