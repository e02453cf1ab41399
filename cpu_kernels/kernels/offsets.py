"""Tables of offsets in a thread's scratch: where each dim, key and value of a tile lies. The products read
through them, several rows at once, so that each table has some more entries that repeat its last.
"""

from cpu_kernels.compiler.jit import leaf
from cpu_kernels.kernels.few_rows import KEY_PADDING
from cpu_kernels.kernels.product import PADDING_ROWS


@leaf
def find_dims(params, ints):
    """Offsets of the dims within a key and a value, the same for every item."""
    stretch(ints, params.key_dims, params.head_dim, params.key_dim)
    stretch(ints, params.key_rope_dims, params.rope_dim, params.key_rope_dim)
    stretch(ints, params.value_dims, params.v_head_dim, params.value_dim)


@leaf
def stretch(table, at, count, stride):
    spread(table, at, count, 0, stride)
    spread(table, at + count, PADDING_ROWS, max(count - 1, 0) * stride, 0)


@leaf
def find_keys(params, group, pages, first, until, ints):
    """Offsets of the keys and values [first, until): a tile's and those that are asked for meanwhile."""
    key = first
    while key < until:
        page, slot = key // params.page_size, key % params.page_size
        count, at = min(until - key, params.page_size - slot), key - first
        number = pages[group.page_table + page]
        key_at = group.key + number * params.key_page + slot * params.key_row
        value_at = group.value + number * params.value_page + slot * params.value_row
        spread(ints, params.key_rows + at, count, key_at, params.key_row)
        spread(ints, params.value_rows + at, count, value_at, params.value_row)
        if params.rope_dim:
            rope_at = group.key_rope + slot * params.key_rope_row
            spread(ints, params.key_rope_rows + at, count, rope_at, params.key_rope_row)
        key += count
    repeat_last(ints, params.key_rows + until - first)
    repeat_last(ints, params.value_rows + until - first)
    if params.rope_dim:
        repeat_last(ints, params.key_rope_rows + until - first)


@leaf
def repeat_last(table, end):
    spread(table, end, KEY_PADDING, table[end - 1], 0)


@leaf
def spread(table, at, count, start, step):
    """table[at + i] = start + i * step"""
    for i in range(count):
        table[at + i] = start + i * step
