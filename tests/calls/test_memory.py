"""Sizes that do not fit are refused before they are asked for; what is small enough is never held up."""

import builtins

import numpy as np
import pytest

import refattn
from refattn.calls import memory


@pytest.fixture
def one_gib(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 2**30)


def test_what_is_left_is_refused_only_beyond(one_gib):
    memory.ensure_allocatable(2**30, "output")
    with pytest.raises(MemoryError) as raised:
        memory.ensure_allocatable(2**30 + 1, "output")
    assert (
        str(raised.value)
        == "output must fit in memory; got sizes that need 1.0 GiB and 1.0 GiB are available."
    )


def test_small_requests_do_not_ask_the_system(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: pytest.fail("asked"))
    memory.ensure_allocatable(memory.CHECKED_FROM - 1, "output")


def test_without_an_answer_only_the_impossible_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: None)
    memory.ensure_allocatable(2**62, "output")
    with pytest.raises(MemoryError) as raised:
        memory.ensure_allocatable(2**63, "output")
    assert str(raised.value) == "output must fit in memory; got sizes that need 8589934592.0 GiB."


def test_a_group_counts_keys_values_and_scores(one_gib):
    keys = 2**30 // (8 * (2 * (64 + 32) + 8 * 4))
    memory.ensure_group_allocatable(4, keys, 64, 32)
    with pytest.raises(
        MemoryError,
        match="^keys, values and scores of one group must fit in memory; got sizes that need 1.0 GiB and "
        "1.0 GiB are available.$",
    ):
        memory.ensure_group_allocatable(4, keys + 1, 64, 32)


def test_a_long_table_without_memory_behind_it(one_gib):
    """Numbers of its columns, which checking the table would allocate, count before they are made."""
    table = np.broadcast_to(np.zeros((1, 1), np.int64), (1, 2**33))
    query, pages = np.zeros((1, 1, 1, 1)), np.zeros((1, 1, 1, 1))
    with pytest.raises(
        MemoryError,
        match="^page numbers and their checks must fit in memory; got sizes that need 88.0 GiB and 1.0 GiB "
        "are available.$",
    ):
        refattn.paged_attention(query, pages, pages, block_table=table, kv_lengths=2**33)
    assert refattn.paged_attention(query, pages, pages, block_table=table, kv_lengths=3).shape == (
        1,
        1,
        1,
        1,
    )


def test_this_machine_answers():
    available = memory.available_bytes()
    assert available is None or 2**20 < available < 2**60


def test_systems_without_meminfo(monkeypatch):
    def missing(*arguments, **options):
        raise FileNotFoundError

    monkeypatch.setattr(builtins, "open", missing)
    assert memory.available_bytes() is None or memory.available_bytes() > 2**20
    monkeypatch.delattr("os.sysconf", raising=False)
    assert memory.available_bytes() is None
