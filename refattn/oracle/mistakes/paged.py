"""Mistakes of paged calls: tables, slots and the last page."""

from dataclasses import replace

import numpy as np

from refattn.calls.paged import PagedProblem
from refattn.oracle.mistakes.record import Mistake


def _paged(change):
    """Gather changed pages: change(paged, b) -> (block_table row, key_pages, value_pages)."""

    def sequence(paged, b):
        row, key_pages, value_pages = change(paged, b)
        table = paged.block_table.copy()
        table[b] = np.clip(row, 0, len(key_pages) - 1)
        return PagedProblem.part(
            replace(paged, block_table=table, key_pages=key_pages, value_pages=value_pages), b
        )

    return sequence


def _table(change):
    return _paged(lambda p, b: (change(p, b), p.key_pages, p.value_pages))


def _own_pages(paged, b):
    """The pages of sequence b alone, in order: what is changed there is not changed in a whole cache
    for each sequence.
    """
    row = np.clip(paged.block_table[b], 0, len(paged.key_pages) - 1)
    return np.arange(len(row)), paged.key_pages[row], paged.value_pages[row]


def _slots_rolled(paged, b):
    row, key_pages, value_pages = _own_pages(paged, b)
    return row, np.roll(key_pages, -1, axis=2), np.roll(value_pages, -1, axis=2)


def _heads_and_slots_swapped(paged, b):
    def misread(pages):
        count, heads, size, dim = pages.shape
        return pages.reshape(count, size, heads, dim).swapaxes(1, 2)

    row, key_pages, value_pages = _own_pages(paged, b)
    return row, misread(key_pages), misread(value_pages)


def _value_pages_of_key(paged, b):
    """The block table is applied to the keys only; values are read in page order."""
    row, key_pages, _ = _own_pages(paged, b)
    return row, key_pages, paged.value_pages[row % len(paged.value_pages)]


def _whole_pages(paged, b):
    """The length is rounded up to a whole page."""
    size = paged.page_size
    length = np.minimum(-(-paged.kv_lengths // size) * size, paged.block_table.shape[1] * size)
    return PagedProblem.part(replace(paged, kv_lengths=length), b)


def _partial_page_lost(paged, b):
    length = paged.kv_lengths // paged.page_size * paged.page_size
    return PagedProblem.part(replace(paged, kv_lengths=length), b)


def _backwards(paged, b):
    """The used pages of a row in reverse order."""
    row = paged.block_table[b].copy()
    used = -(-int(paged.kv_lengths[b]) // paged.page_size)
    row[:used] = row[:used][::-1]
    return row


def _paged_mistake(id, says, change_form, remedy="", **more):
    return Mistake(id, says, remedy, form="paged", change_form=change_form, **more)


PAGED = (
    _paged_mistake(
        "page_off_by_one",
        "pages are read one place too far in block_table",
        _table(lambda p, b: np.roll(p.block_table[b], -1)),
    ),
    _paged_mistake(
        "page_number_off_by_one",
        "the page after the one in block_table is read",
        _table(lambda p, b: (p.block_table[b] + 1) % len(p.key_pages)),
    ),
    _paged_mistake(
        "page_table_of_first",
        "every sequence uses the block_table row of the first",
        _table(lambda p, b: p.block_table[0]),
    ),
    _paged_mistake(
        "page_table_ignored",
        "pages are read in order, block_table is ignored",
        _table(lambda p, b: np.arange(p.block_table.shape[1])),
    ),
    _paged_mistake(
        "page_table_backwards",
        "the pages of a sequence are read in reverse order",
        _table(lambda p, b: _backwards(p, b)),
    ),
    _paged_mistake(
        "page_slot_off_by_one", "slots within a page are read one too late", _paged(_slots_rolled)
    ),
    _paged_mistake(
        "page_heads_and_slots_swapped",
        "pages are read as (page_size, num_kv_heads, dim)",
        _paged(_heads_and_slots_swapped),
        "key_pages.swapaxes(1, 2)",
        issues=("FlashInfer NHD / HND",),
    ),
    _paged_mistake(
        "page_table_for_keys_only",
        "values are read in page order, only keys go through block_table",
        _paged(_value_pages_of_key),
    ),
    _paged_mistake(
        "page_tail_seen",
        "the unused slots of the last page take part",
        _whole_pages,
        "respect kv_lengths inside the last page",
    ),
    _paged_mistake(
        "page_partial_dropped", "keys in a partly filled last page are dropped", _partial_page_lost
    ),
)
