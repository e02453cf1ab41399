"""Errors and reports of arrays in another axis order than the call says: they name the order, and who writes it."""

import numpy as np
import pytest

import cpu_kernels
import refattn
from refattn.oracle import check, diagnose


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def heads_last(batch, rows, keys, heads, kv_heads, dim):
    """Query, key, value, output (batch, length, heads, dim) and lse (batch, heads, length)."""
    arrays = normal(batch, rows, heads, dim), normal(batch, keys, kv_heads, dim, seed=1)
    arrays = *arrays, normal(batch, keys, kv_heads, dim, seed=2)
    output, lse = refattn.attention_with_lse(*(array.swapaxes(1, 2) for array in arrays))
    return arrays, output.swapaxes(1, 2).astype(np.float32), lse.astype(np.float32)


@pytest.mark.parametrize("function", [check, diagnose])
def test_an_error_of_shapes_names_the_order_and_the_libraries(function):
    arrays, output, _ = heads_last(2, 5, 9, 4, 2, 8)
    with pytest.raises(
        ValueError, match=r"fit as \(batch, length, heads, dim\).*dialect='flash_attn' \(or .*jax"
    ):
        function(output, *arrays)
    right = [array.swapaxes(1, 2) for array in arrays]
    right[1] = right[1].swapaxes(-1, -2)
    with pytest.raises(ValueError, match="would fit with axes -2 and -1 of key swapped"):
        function(output.swapaxes(1, 2), *right)


@pytest.mark.parametrize("function", [check, diagnose])
def test_packed_arrays(function):
    query, key = normal(12, 4, 8), normal(20, 2, 8, seed=1)
    structure = {"cu_q": [0, 5, 12], "cu_kv": [0, 9, 20]}
    named = {"function": "packed_attention"} if function is check else {}
    with pytest.raises(ValueError, match=r"fit as \(total_length, heads, dim\).*flashinfer"):
        function(query, query, key, key, **structure, **named)


@pytest.mark.parametrize("function", [refattn.paged_attention, cpu_kernels.paged_attention])
@pytest.mark.parametrize("query_too", [False, True])
@pytest.mark.parametrize(
    ("heads", "slots", "lengths"), [(2, 16, [40, 33]), (2, 3, [9, 1]), (8, 64, [100, 128])]
)
def test_pages_with_heads_last_are_an_error_of_the_page_layout(function, query_too, heads, slots, lengths):
    query, pages = normal(2, 8, 5, 8), normal(7, slots, heads, 8, seed=1)
    query = query.swapaxes(1, 2) if query_too else query
    table = np.array([[0, 1, 2], [3, 4, 5]])
    with pytest.raises(
        ValueError, match=r"key_pages must have axes .*\(num_pages, page_size, num_kv_heads, dim\)"
    ):
        function(query, pages, pages, block_table=table, kv_lengths=lengths)


def test_other_errors_of_pages_stay_what_they_are():
    query, pages = normal(2, 8, 5, 8), normal(7, 2, 16, 8, seed=1)
    table = np.array([[0, 1, 2], [3, 4, 5]])
    with pytest.raises(ValueError, match="kv_lengths must be"):
        refattn.paged_attention(query, pages, pages, block_table=table, kv_lengths=[10, 49])
    with pytest.raises(ValueError, match="block_table must hold pages"):
        refattn.paged_attention(query, pages, pages, block_table=table + 5, kv_lengths=[10, 40])


def test_a_failed_report_names_the_order():
    arrays, output, lse = heads_last(2, 6, 6, 4, 4, 8)
    report = check(output, *arrays)
    assert (
        not report.passed
        and "laid out heads-last" in report.text()
        and "dialect='flash_attn'" in report.text()
    )
    report = check(output, *arrays, lse=lse)
    assert report.failed == ("lse shape",) and "All shapes fit as flash_attn writes them" in report.summary
    assert check(output, *arrays, lse=lse, dialect="flash_attn").passed
    assert "heads-last" not in check(output[::-1].copy(), *arrays).text()


def test_names_of_foreign_arguments_point_to_the_dialect():
    arrays, output, _ = heads_last(1, 4, 4, 2, 2, 8)
    with pytest.raises(
        TypeError, match=r"dialect= reads the call as a library writes it: flash_attn, flash_attn_3"
    ):
        check(output, *arrays, softmax_scale=1.0)
