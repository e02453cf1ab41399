"""What plan.py hands to the drivers: tables of work, sizes and strides, and the memory they refer to. Offsets and strides count elements.

A driver knows no axes: every operand is flat memory, an offset a group, and strides. A group is one (batch entry, kv head); its rows are its query
rows times its query heads, position first: row r is query row r // group_size of head r % group_size, so the causal edge stays straight.
"""

from typing import NamedTuple

import numpy as np

# Columns of `groups`: where a group's operands start and how long they are. HEAD counts query heads over the whole batch.
(QUERY, QUERY_ROPE, KEY, KEY_ROPE, VALUE, OUTPUT, LSE, BIAS, MASK, KEEP, HEAD, Q_LEN, KV_LEN, Q_OFFSET, PAGE_TABLE) = range(15)
NUM_GROUP_COLUMNS = 15

# Columns of `items`: rows and keys of one piece of work. STATE is the slot of `states` that takes the unfinished sums, or -1 to finish the rows;
# a joining item finishes rows from NUM_STATES slots that begin there.
(GROUP, FIRST_ROW, LAST_ROW, FIRST_KEY, LAST_KEY, STATE, NUM_STATES) = range(7)
NUM_ITEM_COLUMNS = 7


class Shape(NamedTuple):
    """Sizes, strides and options that all groups share."""

    group_size: int
    head_dim: int
    rope_dim: int  # second part of query and key in memory of its own, 0 when there is none
    v_head_dim: int
    left: int
    right: int
    page_size: int  # keys that lie evenly spaced; all of them when there are no pages
    key_tile: int
    state_panel: int  # elements of one panel in a slot of `states`
    zero: float  # of the dtype, as the next four
    query_scale: float
    cap: float
    keep_scale: float
    log2e: float
    has_softcap: int
    has_alibi: int
    has_bias: int
    has_mask: int
    has_keep: int
    has_sinks: int
    wants_lse: int
    query_head: int
    query_row: int
    query_dim: int
    query_rope_head: int
    query_rope_row: int
    query_rope_dim: int
    key_page: int
    key_row: int
    key_dim: int
    key_rope_row: int
    key_rope_dim: int
    value_page: int
    value_row: int
    value_dim: int
    bias_head: int
    bias_row: int
    bias_key: int
    mask_head: int
    mask_row: int
    mask_key: int
    keep_head: int
    keep_row: int
    keep_key: int
    output_head: int
    output_row: int
    lse_head: int


class Memory(NamedTuple):
    """Flat arrays. Operands that are absent are arrays of one element."""

    items: np.ndarray  # (N, NUM_ITEM_COLUMNS) int64
    groups: np.ndarray  # (N, NUM_GROUP_COLUMNS) int64
    pages: np.ndarray  # int64: page tables, end to end
    query: np.ndarray
    query_rope: np.ndarray
    key: np.ndarray
    key_rope: np.ndarray
    value: np.ndarray
    bias: np.ndarray
    mask: np.ndarray  # uint8
    keep: np.ndarray  # uint8
    slopes: np.ndarray  # by HEAD, times log2(e)
    sinks: np.ndarray  # by HEAD, times log2(e)
    output: np.ndarray
    lse: np.ndarray
    states: np.ndarray
