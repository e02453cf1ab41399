"""Checks of some rows: which they are, what the report says of the others, and what is still found there."""

import numpy as np
import pytest

import refattn
from refattn.oracle.arithmetic.spec import KernelSpec
from refattn.oracle.simulated.emulated import EmulatedKernel
from refattn.oracle.verdict import picked_rows
from refattn.oracle.verdict.check import assert_attention_close, check
from refattn.oracle.verdict.other_rows import EMPTY, FINITE, UNKNOWN, largest_in_ranges, row_states


def arrays_of(rng, heads=4, kv_heads=2, q_len=40, kv_len=48, dim=8):
    shapes = (heads, q_len), (kv_heads, kv_len), (kv_heads, kv_len)
    return [rng.standard_normal((*shape, dim)).astype(np.float32) for shape in shapes]


def latent_arrays(rng, heads=3, q_len=30, kv_len=36, nope=8, rope=4, rank=12, v_dim=5):
    shapes = (
        (heads, q_len, nope),
        (heads, q_len, rope),
        (kv_len, rank),
        (kv_len, rope),
        (heads, nope, rank),
        (heads, v_dim, rank),
    )
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def paged_arrays(rng):
    shapes = (2, 4, 20, 8), (7, 2, 16, 8), (7, 2, 16, 8)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    return arrays, {"block_table": np.array([[3, 1, 0], [5, 2, 4]]), "kv_lengths": np.array([37, 30])}


def test_the_first_the_last_and_others_between():
    for count in (2, 3, 7, 39):
        rows = picked_rows.picked_rows(40, count, seed=1)
        assert len(rows) == count and rows[0] == 0 and rows[-1] == 39 and (np.diff(rows) > 0).all()
    assert picked_rows.picked_rows(40, 1, 0).tolist() == [39]
    assert picked_rows.picked_rows(3, 5, 0).tolist() == [0, 1, 2]
    assert picked_rows.picked_rows(40, 7, 1).tolist() != picked_rows.picked_rows(40, 7, 2).tolist()


@pytest.mark.parametrize("seed", [0, 7, None, np.random.default_rng(3)], ids=str)
def test_reference_and_bounds_are_of_the_same_rows(seed):
    arrays = arrays_of(np.random.default_rng(0))
    output, lse = refattn.attention_with_lse(*arrays)
    assert check(np.float32(output), *arrays, lse=np.float32(lse), rows=8, seed=seed).passed


@pytest.mark.parametrize(
    ("seed", "kind", "rule"),
    [
        (-1, ValueError, "not be negative; got seed=-1"),
        ("x", TypeError, "be an integer, a numpy.random.Generator or None; got seed='x'"),
        (1.5, TypeError, "be an integer, a numpy.random.Generator or None; got seed=1.5"),
        (True, TypeError, "be an integer, a numpy.random.Generator or None; got seed=True"),
    ],
)
def test_other_seeds_are_refused(seed, kind, rule):
    arrays = arrays_of(np.random.default_rng(0))
    with pytest.raises(kind, match=f"seed must {rule}"):
        check(arrays[0], *arrays, rows=3, seed=seed)


def test_auto_looks_at_every_row_of_small_calls_only(monkeypatch):
    arrays = arrays_of(np.random.default_rng(0))
    output, lse = refattn.attention_with_lse(*arrays, causal=True)
    judge = lambda: check(np.float32(output), *arrays, lse=np.float32(lse), causal=True, rows="auto")
    report = judge()
    assert report.passed and report.rows_looked_at == (40, 40) and report.not_looked_at == ""
    monkeypatch.setattr(picked_rows, "AUTO_SCORES", 4 * 40 * 48)
    assert judge().rows_looked_at == (40, 40)
    monkeypatch.setattr(picked_rows, "AUTO_SCORES", 4 * 40 * 48 - 1)
    monkeypatch.setattr(picked_rows, "AUTO_ROWS", 6)
    assert judge().rows_looked_at == (6, 40)


@pytest.mark.parametrize("form", ["attention", "packed_attention", "paged_attention", "latent_attention"])
def test_scores_are_counted_from_shapes(form):
    rng = np.random.default_rng(0)
    if form == "attention":
        assert picked_rows.score_count(form, arrays_of(rng), {}) == (4 * 40 * 48, 1)
    elif form == "packed_attention":
        options = {"cu_q": [0, 10, 40], "cu_kv": [0, 20, 48]}
        assert picked_rows.score_count(form, arrays_of(rng), options) == (4 * (10 * 20 + 30 * 28), 2)
    elif form == "paged_attention":
        assert picked_rows.score_count(form, *paged_arrays(rng)) == (4 * 20 * (37 + 30), 2)
    else:
        assert picked_rows.score_count(form, latent_arrays(rng), {}) == (3 * 30 * 36, 1)


def test_the_report_says_what_was_not_looked_at():
    arrays = [array[None].repeat(2, axis=0) for array in arrays_of(np.random.default_rng(0))]
    output, lse = refattn.attention_with_lse(*arrays, causal=True)
    report = check(np.float32(output), *arrays, lse=np.float32(lse), causal=True, rows=5)
    assert report.passed and report.complete and report.output.rows_checked == 2 * 4 * 5
    assert report.summary.endswith("; 5 of 40 rows of each head looked at")
    assert "  rows       5 of 40 rows of each head looked at; of the others only that NaN" in report.text()
    plain = report.to_dict()
    assert plain["rows_looked_at"] == [5, 40] and plain["not_looked_at"] == report.not_looked_at
    whole = check(np.float32(output), *arrays, causal=True)
    assert "looked at" not in whole.text() and whole.to_dict()["not_looked_at"] == ""
    packed = {"function": "packed_attention", "cu_q": [0, 10, 40], "cu_kv": [0, 20, 48]}
    arrays = arrays_of(np.random.default_rng(0))
    output = refattn.packed_attention(*arrays, cu_q=packed["cu_q"], cu_kv=packed["cu_kv"])
    assert check(np.float32(output), *arrays, rows=6, **packed).rows_looked_at == (12, 40)


@pytest.mark.parametrize(
    "rows, kind", [("all", TypeError), (2.5, TypeError), (True, TypeError), (0, ValueError)]
)
def test_rows_that_are_none(rows, kind):
    arrays = arrays_of(np.random.default_rng(0))
    with pytest.raises(kind, match=f"rows must be .*; got rows={rows!r}"):
        check(arrays[0], *arrays, rows=rows)


CALLS = {
    "dense": lambda rng: ("attention", arrays_of(rng), {"causal": True}),
    "mask": lambda rng: ("attention", arrays_of(rng), {"mask": rng.random((40, 48)) < 0.05}),
    "bias": lambda rng: (
        "attention",
        arrays_of(rng),
        {"bias": np.where(rng.random((4, 40, 48)) < 0.9, -np.inf, 1.0)},
    ),
    "window": lambda rng: ("attention", arrays_of(rng), {"window": (3, 0), "q_offset": 30}),
    "sinks": lambda rng: (
        "attention",
        arrays_of(rng),
        {"sinks": np.array([0, 1, -np.inf, 2.0]), "q_offset": -9},
    ),
    "packed": lambda rng: ("packed_attention", arrays_of(rng), {"cu_q": [0, 10, 40], "cu_kv": [0, 0, 48]}),
    "paged": lambda rng: ("paged_attention", *paged_arrays(rng)),
    "absorb": lambda rng: ("latent_attention", latent_arrays(rng), {"form": "absorb", "causal": True}),
    "expand": lambda rng: ("latent_attention", latent_arrays(rng), {"form": "expand", "kv_lengths": 20}),
    "local": lambda rng: ("block_local_attention", arrays_of(rng, kv_len=40), {"block_size": 9}),
}


@pytest.mark.parametrize("name", CALLS)
def test_states_are_those_of_the_exact_results(name):
    function, arrays, options = CALLS[name](np.random.default_rng(3))
    spec = KernelSpec.flash("float32")
    output, lse = getattr(refattn, f"{function}_with_lse")(*arrays, **options)
    states = row_states(function, arrays, options, spec, np.ones(lse.shape, dtype=bool))
    np.testing.assert_array_equal(states == EMPTY, lse == -np.inf)
    np.testing.assert_array_equal(states == FINITE, np.isfinite(lse))
    assert (output[states == EMPTY] == 0).all()


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_nothing_is_said_of_rows_that_see_what_is_not_finite(name, bad):
    """States claimed are right, whatever the inputs hold; rows that the exact result loses are unknown."""
    rng = np.random.default_rng(4)
    function, arrays, options = CALLS[name](rng)
    for array in arrays[:4]:
        array[..., -7, 1] = bad
    spec = KernelSpec.flash("float32")
    with np.errstate(all="ignore"):
        output, lse = getattr(refattn, f"{function}_with_lse")(*arrays, **options)
    states = row_states(function, arrays, options, spec, np.ones(lse.shape, dtype=bool))
    assert (states == UNKNOWN).any()
    assert np.isfinite(output[states == FINITE]).all() and np.isfinite(lse[states == FINITE]).all()
    assert (lse[states == EMPTY] == -np.inf).all() and (output[states == EMPTY] == 0).all()
    if name in ("dense", "window"):  # rows that see none of it are still told
        assert (states == FINITE).any()


@pytest.mark.parametrize("name", CALLS)
def test_nan_in_a_row_that_was_not_looked_at_is_found(name):
    function, arrays, options = CALLS[name](np.random.default_rng(5))
    kernel = EmulatedKernel(KernelSpec.flash("float32"))
    output, lse = kernel(*arrays, function=function, **options)
    judge = lambda output, lse: check(
        output, *arrays, lse=lse, spec=kernel.spec, function=function, rows=2, **options
    )
    right = judge(output, lse)
    assert right.passed, right.text()
    other = np.argwhere(right.lse.other_rows)
    at = tuple(int(i) for i in other[len(other) // 2])
    holes = output.copy()
    holes[at] = np.nan
    report = judge(holes, lse)
    assert report.failed == ("output positions",) and report.output.worst == (*at, 0)
    empty_or_nan = lse.copy()
    empty_or_nan[at] = np.nan
    assert judge(output, empty_or_nan).failed == ("lse positions",)
    empty = np.argwhere(right.lse.other_rows & (lse == -np.inf))
    if len(empty):
        for result, failed in ((output, "output positions"), (lse, "lse positions")):
            numbers = result.copy()
            numbers[tuple(empty[0])] = 1.0
            assert judge(*(numbers if x is result else x for x in (output, lse))).failed == (failed,)


def test_formats_that_values_may_overflow_claim_nothing():
    arrays = arrays_of(np.random.default_rng(0))
    everything = np.ones((4, 40), dtype=bool)
    half = KernelSpec.flash("float16")
    assert (row_states("attention", arrays, {}, half, everything) == FINITE).all()
    arrays[2][...] = 60000.0
    assert (row_states("attention", arrays, {}, half, everything) == UNKNOWN).all()
    wide = KernelSpec.flash("bfloat16")
    assert (row_states("attention", arrays, {}, wide, everything) == FINITE).all()


def test_largest_in_ranges_is_the_maximum():
    rng = np.random.default_rng(0)
    sizes = rng.random(37)
    start = rng.integers(0, 38, size=200)
    stop = np.minimum(start + rng.integers(0, 38, size=200), 37)
    stop = np.maximum(start, stop)
    expected = [sizes[a:b].max(initial=0.0) for a, b in zip(start, stop, strict=True)]
    np.testing.assert_array_equal(largest_in_ranges(sizes, start, stop), expected)


def test_hints_at_another_arithmetic_take_the_same_rows():
    arrays = arrays_of(np.random.default_rng(0))
    output = refattn.attention(*arrays)
    assert_attention_close(np.float32(output), *arrays, rows="auto")
    with pytest.raises(AssertionError, match="5 of 40 rows of each head looked at"):
        assert_attention_close(np.float32(1.001 * output), *arrays, rows=5)
