"""Memory of the reference: one group and one block of rows at a time, whatever the number of heads, rows
and batch entries.

Measured with tracemalloc, which sees NumPy's allocations: the peak on top of inputs and result. The
scores alone of the cases below take up to 128 MiB; 32 heads of 8192 rows and keys, 128 wide, would take
16 GiB and must stay below 1.
"""

import tracemalloc

import numpy as np
import pytest

import refattn

MIB = 2**20


def arrays(heads, rows, keys, dim, dtype=np.float32, batch=()):
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.standard_normal(shape, dtype=np.float32).astype(dtype)

    return draw(*batch, heads, rows, dim), draw(*batch, 1, keys, dim), draw(*batch, 1, keys, dim)


def extra_memory(function, *args, **options):
    """(result, peak of what was allocated during the call beyond its result, in bytes)."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        result = function(*args, **options)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return result, peak - after if peak > after else peak - before


@pytest.mark.campaign
def test_extra_memory_is_that_of_a_block():
    _, extra = extra_memory(refattn.attention, *arrays(4, 2048, 2048, 128))
    assert extra < 64 * MIB


def test_extra_memory_with_options():
    query, key, value = arrays(2, 1024, 2048, 64)
    options = {
        "causal": True,
        "softcap": 30.0,
        "alibi_slopes": np.full(2, 0.1),
        "sinks": np.zeros(2),
        "window": (900, 0),
    }
    _, extra = extra_memory(refattn.attention, query, key, value, **options)
    assert extra < 64 * MIB


def test_extra_memory_does_not_grow_with_rows_heads_or_batch():
    """Beyond the copies of a group's query and keys in float64."""
    _, small = extra_memory(refattn.attention, *arrays(1, 512, 1024, 32))
    _, many_rows = extra_memory(refattn.attention, *arrays(1, 4096, 1024, 32))
    assert many_rows < small + 4 * 4096 * 32 * 8
    _, many_entries = extra_memory(refattn.attention, *arrays(1, 512, 1024, 32, batch=(16,)))
    assert many_entries < small + MIB


def test_masks_and_biases_stay_broadcast():
    """Spread over 16 heads, the bias alone would take 128 MiB in float64."""
    rng = np.random.default_rng(0)
    options = {"mask": rng.random((1024, 1024)) < 0.9, "bias": rng.standard_normal((1, 1024))}
    _, one_head = extra_memory(refattn.attention, *arrays(1, 1024, 1024, 4), **options)
    _, many_heads = extra_memory(refattn.attention, *arrays(16, 1024, 1024, 4), **options)
    assert many_heads < one_head + 4 * MIB


def test_narrow_inputs_are_widened_a_group_at_a_time():
    """All of 32 heads in float64 would take 24 MiB more than one."""
    rng = np.random.default_rng(0)
    query, key, value = rng.standard_normal((3, 32, 512, 64)).astype(np.float16)
    _, one_head = extra_memory(refattn.attention, query[:1], key[:1], value[:1])
    _, all_heads = extra_memory(refattn.attention, query, key, value)
    assert all_heads < one_head + 4 * MIB


def test_packed_paged_and_block_local():
    query, key, value = arrays(1, 2048, 2048, 16)
    boundaries = np.array([0, 500, 500, 1700, 2048])
    _, extra = extra_memory(refattn.packed_attention, query, key, value, cu_q=boundaries, cu_kv=boundaries)
    assert extra < 64 * MIB
    _, extra = extra_memory(refattn.block_local_attention, query, key, value, block_size=512)
    assert extra < 64 * MIB
    pages = [x.reshape(1, 128, 16, 16).swapaxes(0, 1) for x in (key, value)]
    queries = np.stack([query[:, :64]] * 8)
    table = np.tile(np.arange(128), (8, 1))
    _, extra = extra_memory(refattn.paged_attention, queries, *pages, block_table=table, kv_lengths=2048)
    assert extra < 64 * MIB


def test_absorbed_latents_never_become_heads():
    """64 heads over latents: keys and values of all heads would take 128 MiB."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.standard_normal(shape)

    parts = (
        draw(64, 1, 64),
        draw(64, 1, 16),
        draw(2048, 128),
        draw(2048, 16),
        draw(64, 64, 128),
        draw(64, 64, 128),
    )
    _, extra = extra_memory(refattn.latent_attention, *parts, form="absorb")
    assert extra < 64 * MIB
