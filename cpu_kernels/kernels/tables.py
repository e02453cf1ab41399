"""What plan.py hands to the drivers: tables of work, and sizes, strides and options. Offsets and strides
count elements.

A driver knows no axes: every operand is flat memory, an offset a group, and strides. A group is one
(sequence, kv head); its rows are its query rows times its query heads, position first: row r is query row
r // group_size of head r % group_size, so the causal edge stays straight.
"""

from functools import cache
from typing import NamedTuple

import numpy as np

from refattn.calls.options import Visibility


class Memory(NamedTuple):
    """The memory of all operands."""

    query: np.ndarray
    query_rope: np.ndarray
    key: np.ndarray
    key_rope: np.ndarray
    value: np.ndarray
    bias: np.ndarray
    mask: np.ndarray
    keep: np.ndarray
    output: np.ndarray
    lse: np.ndarray


# Where a group's operands begin and how long they are; `head` counts query heads over the whole batch.
GROUP_FIELDS = (
    "query",
    "query_rope",
    "key",
    "key_rope",
    "value",
    "output",
    "lse",
    "bias",
    "mask",
    "keep",
    "head",
    "q_len",
    "kv_len",
    "q_offset",
    "page_table",
)
GROUP = np.dtype([(name, np.int64) for name in GROUP_FIELDS])

# Rows and keys of one piece of work. `state` is the slot of the states that takes the unfinished sums, or -1
# to finish the rows; a joining item finishes rows from `num_states` slots that begin there.
ITEM_FIELDS = ("group", "first_row", "last_row", "first_key", "last_key", "state", "num_states")
ITEM = np.dtype([(name, np.int64) for name in ITEM_FIELDS])

# Slope and sink of one query head.
HEAD = np.dtype([("slope", np.float64), ("sink", np.float64)])

# What all groups share. The second part of query and key, in memory of its own, is called rope; rope_dim is
# 0 when there is none.
PARAM_INTEGERS = (
    "group_size",
    "head_dim",
    "rope_dim",
    "v_head_dim",
    *Visibility._fields,
    "page_size",
    "key_tile",
    "has_score_scale",
    "has_softcap",
    "has_alibi",
    "has_bias",
    "has_mask",
    "has_keep",
    "has_sinks",
    "wants_lse",
    "query_head",
    "query_row",
    "query_dim",
    "query_rope_head",
    "query_rope_row",
    "query_rope_dim",
    "key_page",
    "key_row",
    "key_dim",
    "key_rope_row",
    "key_rope_dim",
    "value_page",
    "value_row",
    "value_dim",
    "bias_head",
    "bias_row",
    "bias_key",
    "mask_head",
    "mask_row",
    "mask_key",
    "keep_head",
    "keep_row",
    "keep_key",
    "output_head",
    "output_row",
    "lse_head",
    "state_panel",
    "state_slot",
    "most_few_rows",
)
PARAM_REALS = ("query_scale", "score_scale", "cap", "inverse_cap", "keep_scale")

# Where things begin in a thread's scratch. The integer tables come first and count in int64, everything from
# `panels` on in elements.
SCRATCH = (
    "key_rows",
    "key_rope_rows",
    "value_rows",
    "key_dims",
    "key_rope_dims",
    "value_dims",
    "panel_ints",
    "panels",
    "panel_size",
    "scores",
    "scratch_end",
)


@cache
def params_dtype(real):
    return np.dtype(
        [(name, np.int64) for name in PARAM_INTEGERS + SCRATCH] + [(name, real) for name in PARAM_REALS]
    )
