"""Which calls the quick level makes: they follow from tiles, pages and sequences, and show their mistakes."""

import numpy as np
import pytest

import refattn
from refattn.calls.options import WORDS
from refattn.calls.registry import ATTENTION, form_called
from refattn.oracle import check_kernel
from refattn.oracle.harness.callables import KernelCall
from refattn.oracle.harness.head_sizes import checked_head_dims
from refattn.oracle.inputs.of_form import inputs_of
from refattn.oracle.inputs.paged import PAGES
from refattn.oracle.inputs.tiles import TILES, TellingRows, checked_tile
from refattn.oracle.mistakes.mutants import correct_kernel

FUNCTIONS = [form.function for form in ATTENTION]


def quick_cases(function, tile=None):
    call = KernelCall(lambda **options: None, function)
    cases = inputs_of(call.form).cases(np.float32, 0, "quick", call, checked_tile(tile))
    return checked_head_dims(None, call).of_cases(cases)


def outlines(cases):
    """(rows, keys) of every sequence of dense calls."""
    for inputs in cases:
        checked = form_called(inputs.function).check(*inputs.arrays, **inputs.options)
        parts = (checked.outline(n) for n in range(checked.num_parts))
        yield from ((part.query.shape[-2], part.kv_len) for part in parts)


@pytest.mark.parametrize("tile", [None, 48, (32, 700)])
def test_dense_calls_go_beyond_two_and_three_tiles_of_every_size(tile):
    sizes = [*outlines(quick_cases("attention", tile))]
    for rows, keys in checked_tile(tile):
        for times in (2, 3):
            for axis, size in enumerate((rows, keys)):
                beyond = [shape for shape in sizes if times * size < shape[axis] <= (times + 1) * size]
                assert beyond, (times, axis, size)
        for rest in (0, 1, keys - 1):
            assert any(shape[1] % keys == rest and shape[1] > 2 * keys for shape in sizes), (keys, rest)


def test_pages_of_every_size_with_lengths_around_whole_pages():
    for size in (1, 8, 16, 64, 128):
        lengths = {length for page, lengths in PAGES if page == size for length in lengths}
        assert 0 in lengths and max(lengths) > 3 * size
        assert {length % size for length in lengths} >= {0, 1 % size, size - 1}
    made = [*outlines(quick_cases("paged_attention"))]
    assert max(keys for _, keys in made) > 3 * 512 and 0 in {keys for _, keys in made}


@pytest.mark.parametrize("form", ATTENTION, ids=lambda form: form.name)
def test_every_option_at_least_twice(form):
    cases = quick_cases(form.function)
    for option in form.options:
        sizes = {inputs.arrays[0].shape for inputs in cases if option in inputs.options}
        assert len(sizes) >= 2, option
    assert {option.name for options in WORDS.values() for option in options} >= {*form.options}


@pytest.mark.parametrize("function", ["attention", "packed_attention", "paged_attention"])
def test_head_sizes_are_64_and_128_unless_the_kernel_says_otherwise(function):
    sizes = [(case.arrays[0].shape[-1], case.arrays[2].shape[-1]) for case in quick_cases(function)]
    assert {*sizes} == {(64, 64), (128, 128)}
    kernel = lambda **options: None
    kernel.head_dims = (96, 48)
    assert checked_head_dims(None, KernelCall(kernel, function)).pairs == ((96, 48),)
    assert checked_head_dims("any", KernelCall(kernel, function)).pairs == ()
    assert str(checked_head_dims(32, KernelCall(kernel, function))) == "32"


@pytest.mark.parametrize("tile", [0, 5000, (64, 0), (1, 2, 3), "64", 1.5])
def test_wrong_tiles(tile):
    with pytest.raises((TypeError, ValueError), match="tile must"):
        check_kernel(lambda query, key, value: query, tile=tile)


def test_rows_at_both_sides_of_every_edge_are_judged():
    rows = TellingRows(TILES)(1537)
    assert {0, 63, 64, 127, 128, 511, 512, 1023, 1024, 1535, 1536} <= {*rows.tolist()}
    assert (np.diff(rows) > 0).all() and len(rows) < 200
    assert TellingRows(TILES)(1).tolist() == [0] and not len(TellingRows(TILES)(0))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_correct_kernel_passes_calls_of_several_tiles(function):
    cases = [inputs for inputs in quick_cases(function) if inputs.family not in ("normal", "wide")]
    names = [f"reference: {inputs.name}" for inputs in cases[-20::4]]
    kernel = correct_kernel(f"{function}_with_lse")
    report = check_kernel(kernel, function=function, spec="float32", only=names)
    assert report.passed and report.count("pass") == len(names), report.text()


# what each kind of call is for


def tiled(fault, tile):
    """A flash kernel in NumPy, two loops over tiles, with a fault."""

    def head(query, key, value, mask, bias):
        output = np.zeros((len(query), value.shape[1]), np.float32)
        for first in range(0, len(query), tile):
            rows = slice(first, first + tile)
            m = np.full(len(query[rows]), -np.inf, np.float32)
            total, sums = np.zeros_like(m), np.zeros((len(m), value.shape[1]), np.float32)
            for n, begin in enumerate(range(0, len(key), tile)):
                keys = slice(begin, min(begin + tile, len(key)))
                scores = query[rows] @ key[keys].T * np.float32(query.shape[1] ** -0.5)
                scores += bias[rows, keys]
                hidden = -1e5 if fault == "stand-in" else -np.inf
                scores = np.where(mask[rows, keys], scores, np.float32(hidden))
                if fault == "third tile" and n == 2:
                    continue
                if fault == "tail" and keys.stop - begin == 1 and n:
                    continue
                if fault == "second rows" and first and n:
                    scores = np.where(mask[rows, keys], scores, -np.inf) + np.float32(0.01)
                new = np.maximum(m, scores.max(1))
                base = np.where(np.isneginf(new), 0, new)
                weights, shrunk = np.exp(scores - base[:, None]), np.exp(m - base)
                if fault == "no rescale":
                    shrunk = np.where(np.isneginf(m), 0, 1)
                total = total * shrunk + weights.sum(1)
                sums = sums * shrunk[:, None] + weights @ value[keys]
                m = new
            output[rows] = sums / np.where(total == 0, 1, total)[:, None]
        return output

    def kernel(query, key, value, *, causal=False, mask=None, bias=None):
        shape = (*query.shape[:-1], key.shape[-2])
        rows, keys = shape[-2:]
        seen = np.broadcast_to(True if mask is None else mask, shape)
        if causal:
            seen = seen & np.tri(rows, keys, keys - rows, dtype=bool)
        added = np.broadcast_to(np.float32(0) if bias is None else bias, shape)
        group = query.shape[-3] // key.shape[-3]
        output = np.zeros((*query.shape[:-1], value.shape[-1]), np.float32)
        for at in np.ndindex(query.shape[:-2]):
            pair = (*at[:-1], at[-1] // group)
            output[at] = head(query[at], key[pair], value[pair], seen[at], added[at])
        return output

    return kernel


@pytest.mark.sample(4)
@pytest.mark.parametrize("tile", [16, 80, 256, 512])
@pytest.mark.parametrize("fault", ["no rescale", "third tile", "tail", "second rows", "stand-in"])
def test_faults_of_tiles_are_caught(fault, tile):
    kernel = tiled(fault, tile)
    report = check_kernel(kernel, only="tiles", hides_nan=False, max_failures=1, diagnose=False, seconds=60)
    assert report.failures, report.text()


def right(query, key, value, **options):
    return correct_kernel()(query, key, value, **options)


def test_a_kernel_that_returns_one_buffer_again_and_again():
    kept = {}

    def kernel(query, key, value, **options):
        output, lse = right(query, key, value, **options)
        kept.setdefault(output.shape, np.empty_like(output))[...] = output
        return kept[output.shape], lse

    report = check_kernel(kernel, only="repeatable: earlier", diagnose=False)
    assert "the kernel returns the same memory again" in report.failures[0].words
    assert check_kernel(right, only="repeatable: earlier").passed


def test_a_kernel_that_is_wrong_one_call_in_twenty():
    calls = []

    def kernel(query, key, value, **options):
        calls.append(1)
        output, lse = right(query, key, value, **options)
        return (output * np.float32(1.001) if len(calls) % 20 == 0 else output), lse

    report = check_kernel(kernel, only="calls alike", diagnose=False)
    assert "called again with the same numbers it gives others" in report.failures[0].words


def test_what_a_longer_call_leaves_behind():
    memory = np.zeros(1, np.float32)

    def kernel(query, key, value, **options):
        nonlocal memory
        output, lse = right(query, key, value, **options)
        if memory.size > output.size:  # forgets to clear what an earlier call left
            output = output + memory[: output.size].reshape(output.shape)
        memory = np.maximum(np.abs(output).ravel(), 1e-2) if output.size > memory.size else memory
        return output, lse

    assert not check_kernel(kernel, only="after a longer and a shorter", diagnose=False).passed


def test_a_length_past_its_row_of_the_table():
    def kernel(query, key_pages, value_pages, *, block_table, kv_lengths, causal=False):
        most = block_table.shape[1] * key_pages.shape[2]
        output, lse = refattn.paged_attention_with_lse(
            query,
            key_pages,
            value_pages,
            block_table=block_table,
            kv_lengths=np.where(kv_lengths > most, 8, kv_lengths),
            causal=causal,
        )
        if disturbs and (kv_lengths > most).any():
            output[0] = output[2]
        return output.astype(np.float32), lse

    for disturbs in (False, True):
        report = check_kernel(
            kernel, function="paged_attention", spec="float32", only="a length past", diagnose=False
        )
        assert report.passed is not disturbs, report.text()
    refuses = lambda *arrays, **options: refattn.paged_attention_with_lse(*arrays, **options)
    assert check_kernel(refuses, function="paged_attention", spec="float64", only="a length past").passed


def test_packed_sequences_longer_than_any_before():
    longest = []

    def kernel(query, key, value, *, cu_q, cu_kv, causal=False):
        longest.append(int(np.diff(cu_kv).max()))
        kept = np.minimum(np.diff(cu_kv), 2 * longest[0])  # memory of the first call
        return refattn.packed_attention_with_lse(
            query, key, value, cu_q=cu_q, cu_kv=cu_kv, causal=causal, kv_lengths=kept
        )

    names = ["reference: packed", "reference: sequences, longer than any before"]
    report = check_kernel(kernel, function="packed_attention", spec="float32", only=names, diagnose=False)
    assert [outcome.name for outcome in report.failures] == ["sequences, longer than any before"]
