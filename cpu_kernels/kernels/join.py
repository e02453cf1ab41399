"""Join the states that splitting the keys of a block left: a sum over slots in ascending order, whatever thread computed them."""

import numpy as np

from cpu_kernels.jit import driver, leaf, next_item
from cpu_kernels.kernels.blocks import LEFT, PANELS, PEAK, RIGHT, TOTAL, finish, open_panel, panel_of
from cpu_kernels.kernels.tables import FIRST_ROW, GROUP, LAST_ROW, NUM_STATES, STATE


@driver
def join(counter, scratch, shape, at, memory):
    """Finish the rows of each item from its slots of `states`."""
    ints = scratch[: at.panels].view(np.int64)
    n = next_item(counter)
    while n >= 0:
        item = memory.items[n]
        group = memory.groups[item[GROUP]]
        for index in range(PANELS):
            panel = panel_of(shape, at, scratch, index, item[FIRST_ROW], item[LAST_ROW])
            if panel.stride:
                open_panel(shape, memory, group, panel, item[LAST_ROW], scratch, ints, False)
                for slot in range(item[STATE], item[STATE] + item[NUM_STATES]):
                    add_state(shape, memory, panel, scratch, (slot * PANELS + index) * shape.state_panel)
                finish(shape, memory, group, panel, scratch, ints)
        n = next_item(counter)


@leaf
def add_state(shape, memory, panel, scratch, state):
    """(peak, total, output) of a panel joined with those of a slot; a part without weight adds nothing, whatever it holds."""
    stride = panel.stride
    peaks, totals = panel.lanes + PEAK * stride, panel.lanes + TOTAL * stride
    ours, theirs = panel.lanes + LEFT * stride, panel.lanes + RIGHT * stride
    their_peaks = state + shape.v_head_dim * stride
    for lane in range(stride):
        peak, their_peak = scratch[peaks + lane], memory.states[their_peaks + lane]
        highest = max(peak, their_peak)
        pivot = shape.zero if highest == -np.inf else highest
        scratch[ours + lane] = 2.0 ** (peak - pivot)
        scratch[theirs + lane] = 2.0 ** (their_peak - pivot)
        scratch[peaks + lane] = highest
        scratch[totals + lane] = scratch[totals + lane] * scratch[ours + lane] + memory.states[their_peaks + stride + lane] * scratch[theirs + lane]
    for dim in range(shape.v_head_dim):
        at = dim * stride
        for lane in range(stride):
            our_share = scratch[panel.output + at + lane] * scratch[ours + lane]
            their_share = memory.states[state + at + lane] * scratch[theirs + lane]
            our_share = our_share if scratch[ours + lane] != 0 else shape.zero
            their_share = their_share if scratch[theirs + lane] != 0 else shape.zero
            scratch[panel.output + at + lane] = our_share + their_share
