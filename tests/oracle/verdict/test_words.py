"""What a report says first: what is wrong, in words; rows that see no key; exact zeros."""

import numpy as np
import pytest

import refattn
from refattn.oracle import assert_attention_close, check

RNG = np.random.default_rng(0)
ARRAYS = tuple(
    RNG.standard_normal(shape).astype(np.float32) for shape in ((2, 4, 12, 8), (2, 2, 9, 8), (2, 2, 9, 8))
)
CAUSAL = {"causal": True, "q_offset": -3}  # rows 0 to 2 see no key
RIGHT, LSE = (part.astype(np.float32) for part in refattn.attention_with_lse(*ARRAYS, **CAUSAL))


def judged(change=lambda output, lse: None, with_lse=True, **how):
    output, lse = RIGHT.copy(), LSE.copy()
    change(output, lse)
    return check(output, *ARRAYS, lse=lse if with_lse else None, **CAUSAL, **how)


def test_the_line_that_reproduces_a_check():
    report = judged(lambda output, lse: None, ignore_empty_rows=True)
    words = (
        "print(check(output, query, key, value, lse=lse, causal=True, q_offset=-3, ignore_empty_rows=True))"
    )
    assert report.reproduce.endswith(words) and "# key: float32 (2, 2, 9, 8)" in report.reproduce
    again = {"output": RIGHT, "lse": LSE, **dict(zip(("query", "key", "value"), ARRAYS, strict=True))}
    exec(report.reproduce.replace("print(", "again = ("), again)
    assert again["again"].to_dict() == report.to_dict()


@pytest.mark.parametrize("fill", [np.nan, 0.5])
def test_rows_that_see_no_key_are_named_when_they_alone_differ(fill):
    def change(output, lse):
        output[..., :3, :] = fill

    report = judged(change)
    assert not report.passed and "only rows that see no key differ" in report.summary
    assert "ignore_empty_rows=True" in report.summary and "in 24 of 96 rows" in report.summary
    left_out = judged(change, ignore_empty_rows=True)
    assert left_out.passed and left_out.complete and "24 rows that see no key left out" in left_out.summary
    assert left_out.output.checked == RIGHT.size - 24 * 8 and "o sees no key" in left_out.output.heat_map()
    with pytest.raises(AssertionError, match="only rows that see no key"):
        assert_attention_close(np.where(np.isneginf(LSE)[..., None], fill, RIGHT), *ARRAYS, **CAUSAL)
    output = np.where(np.isneginf(LSE)[..., None], np.float32(fill), RIGHT)
    assert_attention_close(output, *ARRAYS, ignore_empty_rows=True, **CAUSAL)


def test_other_rows_stay_judged_where_empty_rows_are_left_out():
    def change(output, lse):
        output[..., :4, :] = np.nan  # row 3 sees key 0

    report = judged(change, ignore_empty_rows=True)
    assert not report.passed and "64 NaN where finite numbers belong" in report.summary
    assert report.output.worst[2] == 3 and "only rows" not in judged(change).summary


@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize("sinks", [None, np.zeros(4)])
def test_empty_rows_among_those_that_were_not_looked_at(sinks, ignore):
    call = CAUSAL if sinks is None else {**CAUSAL, "sinks": sinks}
    output, lse = (part.astype(np.float32) for part in refattn.attention_with_lse(*ARRAYS, **call))
    output[..., :3, :], lse[..., :3] = np.nan, np.nan
    report = check(output, *ARRAYS, lse=lse, rows=1, ignore_empty_rows=ignore, **call)
    assert report.passed == ignore and ("only rows that see no key" in report.summary) != ignore


def test_a_base_2_lse_of_empty_rows_alone():
    report = judged(lambda output, lse: np.copyto(lse, np.inf, where=np.isneginf(lse)))
    assert "FAIL: lse: only rows that see no key differ, where the lse must be -inf" in report.summary


@pytest.mark.parametrize(
    "place, words",
    [
        ((..., slice(4, None)), "the output is exactly 0 in dims 4-7 of 8"[:-10]),
        ((..., slice(6, 8), slice(None)), "exactly 0 in rows 6, 7 of 12"),
        ((1, 2, slice(6, 8)), "exactly 0 in 2 rows (head 2 of 4; rows 6, 7 of 12)"),
        (..., "the whole output is exactly 0"),
    ],
)
def test_exact_zeros_are_named(place, words):
    report = judged(
        lambda output, lse: output.__setitem__(place, 0.0), with_lse=False, ignore_empty_rows=True
    )
    assert not report.passed and words in report.summary


def test_zeros_that_are_right_are_not_named():
    query, key, value = ARRAYS
    value = value.copy()
    value[..., 3] = 0.0
    output = refattn.attention(query, key, value).astype(np.float32)
    assert check(output, query, key, value).passed
    output[0, 0, 5, 6] += 1
    assert "exactly 0" not in check(output, query, key, value).summary


def test_no_number_is_said_without_its_meaning():
    """Not "rms 0.07 of inf", "bound used inf"."""
    for change in (
        lambda output, lse: output.__setitem__((0, 0, 5), np.inf),
        lambda output, lse: output.__setitem__((0, 0, 0), 1.0),
        lambda output, lse: lse.__setitem__((0, 0, 0), 1.0),
        lambda output, lse: lse.__iadd__(np.float32(0.1)),
    ):
        report = judged(change)
        assert not report.passed and "of inf" not in report.text() and "used inf" not in report.text()
        first = report.summary.split(": ", 2)
        assert first[1] == "FAIL" and first[2][0].isalnum() and "worst at" in first[2]


def test_both_results_are_named_where_both_are_wrong():
    report = judged(lambda output, lse: (output.__iadd__(1), lse.__iadd__(1)))
    assert "; lse too: " in report.summary


def test_rows_picked_by_a_function_are_named_without_its_address():
    report = judged(rows=lambda q_len: np.arange(0, q_len, 3))
    assert "rows=rows)" in report.reproduce and "0x" not in report.reproduce
