"""Large calls: the worst place is found in any form, and a smaller call is the same attention."""

import numpy as np
import pytest

import refattn
from refattn.oracle.arithmetic.spec import kernel_spec
from refattn.oracle.bounds.results import LSE, OUTPUT
from refattn.oracle.diagnosis.search import diagnose
from refattn.oracle.diagnosis.wide_look import look_at
from refattn.oracle.imaging import cutting
from refattn.oracle.imaging.cutting import cut_call, row_samples
from refattn.oracle.imaging.xray import xray_of_outputs
from refattn.oracle.mistakes.wrong_kernel import checked_call

RNG = np.random.default_rng(0)
HEADS, KV_HEADS, DIM = 6, 3, 8


def normal(*shape):
    return RNG.standard_normal(shape, dtype=np.float32)


def dense(count=5, rows=7, keys=20):
    options = {
        "causal": True,
        "mask": RNG.random((count, HEADS, rows, keys)) < 0.8,
        "bias": RNG.standard_normal((1, HEADS, 1, keys)),
        "kv_lengths": RNG.integers(keys // 2, keys, count),
        "sinks": RNG.standard_normal(HEADS),
    }
    arrays = normal(count, HEADS, rows, DIM), *(normal(count, KV_HEADS, keys, DIM) for _ in "kv")
    return refattn.attention_with_lse, arrays, options


def paged(count=5, rows=3, keys=20, page=4):
    pages = -(-keys // page)
    options = {
        "block_table": RNG.permutation(count * pages).reshape(count, pages),
        "kv_lengths": RNG.integers(keys // 2, keys, count),
        "alibi_slopes": RNG.random((count, HEADS)),
        "mask": RNG.random((count, 1, rows, keys)) < 0.8,
    }
    arrays = normal(count, HEADS, rows, DIM), *(normal(count * pages, KV_HEADS, page, DIM) for _ in "kv")
    return refattn.paged_attention_with_lse, arrays, options


def packed(count=5, rows=3, keys=20):
    cu_q, cu_kv = (np.cumsum([0, *RNG.integers(n // 2, n + 1, count)]) for n in (rows, keys))
    options = {
        "cu_q": cu_q,
        "cu_kv": cu_kv,
        "bias": RNG.standard_normal((HEADS, cu_q[-1], cu_kv[-1])),
        "sinks": RNG.standard_normal(HEADS),
        "causal": True,
    }
    arrays = normal(HEADS, cu_q[-1], DIM), *(normal(KV_HEADS, cu_kv[-1], DIM) for _ in "kv")
    return refattn.packed_attention_with_lse, arrays, options


def latent(count=5, rows=3, keys=20, rank=10):
    options = {"q_offset": np.arange(count) + keys - rows, "causal": True, "form": "absorb"}
    arrays = (
        normal(count, HEADS, rows, DIM),
        normal(count, HEADS, rows, 4),
        normal(count, keys, rank),
        normal(count, keys, 4),
        normal(HEADS, DIM, rank),
        normal(HEADS, DIM, rank),
    )
    return refattn.latent_attention_with_lse, arrays, options


FORMS = {"dense": dense, "paged": paged, "packed": packed, "latent": latent}
every_form = pytest.mark.parametrize("make", FORMS.values(), ids=FORMS)


def results_of(function, arrays, options):
    return {
        result: array.astype(np.float32)
        for result, array in zip((OUTPUT, LSE), function(*arrays, **options), strict=True)
    }


@every_form
@pytest.mark.parametrize("most", [1, 10**4, 10**9])
@pytest.mark.parametrize("worst", [(3, 4), (-1, 0), (0, 5, 2)])
def test_a_smaller_call_is_the_same_attention(monkeypatch, make, most, worst):
    monkeypatch.setattr(cutting, "MOST_NUMBERS", most)
    function, arrays, options = make()
    cut = cut_call(arrays, options, worst)
    own = function(*cut.arrays, **cut.options)
    for array, of_whole in zip(own, cut.of(results_of(function, arrays, options)).values(), strict=True):
        np.testing.assert_allclose(array, of_whole, rtol=2e-6, atol=2e-6)
    there = cut.picked.get("batch", range(5)), cut.picked.get("head", range(HEADS))
    assert [numbers[n] for numbers, n in zip(there, cut.worst, strict=False)] == [
        worst[0] % 5,
        *worst[1:2],
    ]
    assert all(str(cut.picked[axis][-1]) in cut.words for axis in ("batch", "head") if axis in cut.picked)


def test_nothing_is_cut_where_all_fits_and_where_there_is_no_way():
    _, arrays, options = dense(count=2)
    assert cut_call(arrays, options, (0, 0)) is None
    five_axes = [array[None] for array in dense()[1]]
    assert cut_call(five_axes, {}, (0, 0)) is None


def part_of(form, options, array, n):
    """The rows of sequence n of a result, (H, T) or (H, T, E)."""
    return array[:, options["cu_q"][n] : options["cu_q"][n + 1]] if form == "packed" else array[n]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("broken", [OUTPUT, LSE], ids=["output", "lse"])
def test_one_wrong_head_of_one_sequence_is_found(form, broken):
    function, arrays, options = FORMS[form](count=40, rows=9)
    given = results_of(function, arrays, options)
    part_of(form, options, given[broken], 23)[4, -1] *= 1.01
    checked = checked_call(*arrays, **options)
    look = look_at(checked, arrays, options, given, kernel_spec("float32"))
    last = part_of(form, options, given[LSE], 23).shape[-1] - 1
    assert look.worst[1:] == (23, 4, last) and look.worst.excess > 1
    assert look.complete and "sequence 23 head 4" in look.only_row[1]
    assert "sequences 23 of 40, query heads 4 of 6" in look.words
    assert look_at(checked, arrays, options, given, kernel_spec("float32"), seconds=1e-6) is None


@pytest.mark.parametrize("fill", [np.nan, np.inf, 0.0])
def test_a_row_that_is_not_compared_is_found_by_its_numbers(fill):
    arrays = normal(2, 4, 300, DIM), normal(2, 2, 30, DIM), normal(2, 2, 30, DIM)
    given = results_of(refattn.attention_with_lse, arrays, {})
    given[OUTPUT][1, 3, 155] = fill
    look = look_at(checked_call(*arrays), arrays, {}, given, kernel_spec("float32"))
    assert look.worst[1:] == (1, 3, 155) and not look.complete and look.only_row is None


def test_the_rows_of_an_xray_are_bounded_and_hold_the_worst():
    query = np.broadcast_to(np.float32(0), (2, 64, 4096, 8))
    checked = checked_call(query, query, query)
    (sample,) = row_samples(checked, (1, 9, 1000))
    assert 9 in sample.heads and 1000 in sample.rows and {0, 4095} <= set(sample.rows)
    pairs = len(sample.sequences) * len(sample.heads) * len(sample.rows) * 4096
    assert pairs <= 2 * cutting.PAIRS_OF_CUT


@every_form
def test_an_xray_of_a_large_call_says_what_it_looked_at(monkeypatch, make):
    monkeypatch.setattr(cutting, "MOST_PAIRS", 100)
    monkeypatch.setattr(cutting, "MOST_NUMBERS", 3000)
    function, arrays, options = make(count=6)
    given = results_of(function, arrays, options)
    given[OUTPUT] *= 2
    found = xray_of_outputs(arrays, options, given, kernel_spec("float32"), 5.0)
    assert "numbered from 0" in found.text() and found.to_dict()["looked_at"]
    assert "doubled" in found.text(), found.text()


def test_an_xray_that_does_not_fit_into_its_time_is_not_begun(monkeypatch):
    monkeypatch.setattr(cutting, "MOST_PAIRS", 100)
    function, arrays, options = paged(count=6)
    given = results_of(function, arrays, options)
    given[OUTPUT] *= 2
    found = xray_of_outputs(arrays, options, given, kernel_spec("float32"), 1e-6)
    assert not found.findings and found.unfinished == ("estimating the weights",)


@pytest.mark.parametrize("where", ["sequence", "head", "last row"])
def test_a_fault_in_one_place_of_a_large_call_is_seen(where):
    count, heads, keys = (48, 8, 1500) if where != "last row" else (2, 32, 1024)
    rows = 1 if where != "last row" else 40
    arrays = normal(count, heads, rows, 32), *(normal(count, heads // 4, keys, 32) for _ in "kv")
    output, lse = refattn.attention_with_lse(*arrays, precision="float64")
    output[{"sequence": 31, "head": (31, 5), "last row": (1, 29, -1)}[where]] *= 2
    found = diagnose(output.astype(np.float32), *arrays, lse=lse.astype(np.float32), seconds=3)
    assert found.verdict != "agrees" and found.sampled
    if where == "head":
        assert found.best.id == "one_row_garbage" and "sequence 31 head 5 row 0" in found.best.says
    elif found.location:
        assert f"wrong are {'sequences 31 of 48' if where == 'sequence' else 'sequences 1 of 2'}" in str(
            found
        )


def test_what_one_sequence_does_is_not_said_of_all():
    """The sample holds sequence 1, which ignores the mask, and 2, to which the mask does nothing."""
    rng, length = np.random.default_rng(0), 192
    arrays = [rng.standard_normal((3, heads, length, 16), dtype=np.float32) for heads in (8, 2, 2)]
    mask = np.ones((3, 1, length, length), bool)
    mask[1, ..., length * 3 // 4 :] = mask[0, ..., length * 7 // 8 :] = False
    output, lse = map(np.float32, refattn.attention_with_lse(*arrays, mask=mask))
    output[1], lse[1] = (result[1] for result in refattn.attention_with_lse(*arrays))
    found = diagnose(output, *arrays, lse=lse, mask=mask, seconds=6)
    assert found.verdict in ("described", "unexplained"), str(found)
    assert "sequence is 1" in str(found) or "sequences: 1" in found.location
