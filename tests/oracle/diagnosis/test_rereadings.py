"""Arrays in another order of axes, and strides ignored, are named first by `diagnose`, whatever the sizes."""

import numpy as np
import pytest

import refattn
from refattn.oracle import check, diagnose

ROLES = ("query", "key", "value")


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def attention(*arrays, **options):
    return refattn.attention(*arrays, **options).astype(np.float32)


def named_first(output, arrays, says, **options):
    found = diagnose(output, *arrays, **options)
    assert found.verdict == "explained" and says in found.best.says, str(found)
    assert found.best.explains and found.best.bound_used <= 1
    return found


class TestHeadsLast:
    @pytest.mark.parametrize("causal", [False, True])
    @pytest.mark.parametrize("with_lse", [False, True])
    @pytest.mark.parametrize(
        ("batch", "rows", "keys", "heads", "kv_heads", "dim"),
        [
            (2, 37, 37, 8, 8, 16),
            (1, 8, 8, 8, 8, 16),
            (2, 40, 20, 4, 4, 16),
            (1, 64, 64, 8, 2, 32),
            (1, 300, 300, 4, 4, 64),
            (1, 1, 1, 8, 8, 16),
            (3, 5, 5, 1, 1, 4),
        ],
    )
    def test_handed_over_as_heads_first(self, batch, rows, keys, heads, kv_heads, dim, causal, with_lse):
        arrays = normal(batch, rows, heads, dim), normal(batch, keys, kv_heads, dim, seed=1)
        arrays = *arrays, normal(batch, keys, kv_heads, dim, seed=2)
        there = [array.swapaxes(1, 2) for array in arrays]
        output, lse = refattn.attention_with_lse(*there, causal=causal)
        output = output.swapaxes(1, 2).astype(np.float32)
        given = {"lse": lse.astype(np.float32)} if with_lse else {}
        found = named_first(output, arrays, "(batch, length, heads, dim)", causal=causal, **given)
        assert "dialect='flash_attn'" in found.best.remedy
        assert check(output, *arrays, dialect="flash_attn", causal=causal, **given).passed

    def test_only_the_arrays(self):
        arrays = [normal(2, 9, 4, 8, seed=seed) for seed in range(3)]
        output = attention(*(array.swapaxes(1, 2) for array in arrays))
        named_first(output, arrays, "and the output is not")

    def test_sequence_first(self):
        """(length, batch, heads, dim), as Megatron has it."""
        arrays = [normal(9, 2, 4, 8, seed=seed) for seed in range(3)]
        output = attention(*(array.transpose(1, 2, 0, 3) for array in arrays)).transpose(2, 0, 1, 3)
        found = named_first(output, arrays, "(length, batch, heads, dim)")
        assert "transpose(1, 2, 0, 3)" in found.best.remedy

    def test_without_batch_axis_and_with_two(self):
        arrays = [normal(9, 4, 8, seed=seed) for seed in range(3)]
        output = attention(*(array.swapaxes(0, 1) for array in arrays)).swapaxes(0, 1)
        named_first(output, arrays, "(length, heads, dim)")
        arrays = [normal(2, 3, 9, 4, 8, seed=seed) for seed in range(3)]
        output = attention(*(array.swapaxes(2, 3) for array in arrays)).swapaxes(2, 3)
        named_first(output, arrays, "(..., length, heads, dim)")

    def test_a_kernel_that_attends_over_the_heads(self):
        def kernel(query, key, value):
            return attention(*(array.swapaxes(1, 2) for array in (query, key, value))).swapaxes(1, 2)

        arrays = [normal(2, 4, 9, 8, seed=seed) for seed in range(3)]
        named_first(kernel, arrays, "the kernel reads query, key, value as (batch, length, heads, dim)")

    def test_a_right_result_agrees(self):
        arrays = [normal(2, 4, 4, 8, seed=seed) for seed in range(3)]
        assert diagnose(attention(*arrays), *arrays).verdict == "agrees"

    def test_pages(self):
        query, pages, values = normal(2, 4, 3, 8), normal(6, 4, 2, 8, seed=1), normal(6, 4, 2, 8, seed=2)
        options = {"block_table": np.array([[5, 1, 3], [0, 4, 2]]), "kv_lengths": np.array([6, 5])}
        right = [array.swapaxes(1, 2) for array in (pages, values)]
        output = refattn.paged_attention(query, *right, **options).astype(np.float32)
        named_first(
            output, (query, pages, values), "key_pages and value_pages have the axes of heads", **options
        )


class TestOneArray:
    @pytest.mark.parametrize("role", ROLES)
    @pytest.mark.parametrize(("axes", "words"), [((1, 2), "heads and length"), ((2, 3), "length and dim")])
    def test_axes_swapped_by_the_caller(self, role, axes, words):
        arrays = {name: normal(2, 6, 6, 6, seed=seed) for seed, name in enumerate(ROLES)}
        output = attention(**{**arrays, role: arrays[role].swapaxes(*axes)})
        found = diagnose(output, *arrays.values())
        # of square sizes (batch, length, heads, dim) read by a kernel is the same
        same = f"{role} is read as (batch, length, heads, dim)"
        assert found.best.says in (f"{role} has the axes of {words} swapped", same), str(found)

    @pytest.mark.parametrize("role", ROLES)
    @pytest.mark.parametrize("axes", [(1, 2), (2, 3)])
    def test_strides_ignored(self, role, axes):
        sizes = {"query": (2, 4, 12, 16), "key": (2, 2, 12, 16), "value": (2, 2, 12, 16)}
        arrays = {name: normal(*sizes[name], seed=seed) for seed, name in enumerate(ROLES)}
        ignored = arrays[role].swapaxes(*axes).reshape(arrays[role].shape)
        output = attention(**{**arrays, role: ignored}, causal=True)
        named_first(output, arrays.values(), f"the strides of {role} are ignored", causal=True)

    @pytest.mark.parametrize("role", ["key", "value"])
    def test_memory_taken_in_another_order(self, role):
        sizes = {"query": (2, 4, 12, 16), "key": (2, 2, 12, 16), "value": (2, 2, 12, 16)}
        arrays = {name: normal(*sizes[name], seed=seed) for seed, name in enumerate(ROLES)}
        taken = arrays[role].reshape(2, 12, 2, 16).swapaxes(1, 2)
        named_first(
            attention(**{**arrays, role: taken}), arrays.values(), f"the memory of {role} is read as if"
        )
