"""How a kernel is called and what is said of calls: copies, first calls, races, errors, other formats."""

import re

import numpy as np
import pytest

import refattn
from refattn.oracle import check, diagnose, xray
from refattn.oracle.imaging.probes import CannotProbe

rng = np.random.default_rng(0)
QUERY, KEY, VALUE = (
    rng.standard_normal(shape).astype(np.float32) for shape in ((2, 24, 8), (2, 30, 8), (2, 30, 8))
)
ARRAYS = QUERY, KEY, VALUE


def right(query, key, value, **options):
    return refattn.attention(query, key, value, **options).astype(np.float32)


def both(query, key, value, **options):
    output, lse = refattn.attention_with_lse(query, key, value, **options)
    return output.astype(np.float32), lse.astype(np.float32)


# copies


def halves_the_query(query, key, value):
    query *= np.float32(0.5)
    return right(query, key, value)


def empties_a_value(query, key, value):
    value[:, 0] = 0
    return right(query, key, value)


@pytest.mark.parametrize("kernel, name", [(halves_the_query, "query"), (empties_a_value, "value")])
@pytest.mark.parametrize("judge", [xray, diagnose])
def test_a_kernel_that_changes_its_arguments_is_wrong_and_told(kernel, name, judge):
    before = [array.copy() for array in ARRAYS]
    found = judge(kernel, *ARRAYS, seconds=5)
    assert found.verdict != "agrees" and found.changed == (name,)
    assert f"The kernel changes its argument {name} in place." in str(found)
    assert found.to_dict()["changed"] == [name]
    for array, old in zip(ARRAYS, before, strict=True):
        np.testing.assert_array_equal(array, old)


def test_nan_is_no_change():
    query = QUERY.copy()
    query[0, 3, 2] = np.nan
    assert xray(right, query, KEY, VALUE).changed == ()


# calls that differ


def in_call(which, first, later):
    calls = []

    def kernel(*arrays, **options):
        calls.append(1)
        return (first if len(calls) in which else later)(*arrays, **options)

    return kernel


def scaled(*arrays):
    return right(*arrays, scale=0.3)


def test_a_first_call_that_differs_from_the_later_ones_is_told():
    found = xray(in_call([1], scaled, right), *ARRAYS)
    assert (
        found.best.kind == "first call" and "which are right" in found.sentence and len(found.findings) == 1
    )
    assert found.called["the call itself"] == 2
    found = xray(in_call([1], scaled, lambda *arrays: right(*arrays, causal=True)), *ARRAYS)
    assert found.best.kind == "first call" and "wrong in another way" in found.sentence
    assert any("causal" in finding.says or finding.kind == "visible keys" for finding in found.findings[1:])


def test_of_a_race_nothing_else_is_said_and_no_place_of_few_rows():
    noise = np.random.default_rng(1)

    def race(*arrays):
        output = right(*arrays)
        output[noise.integers(2), noise.integers(24)] = 0
        return output

    found = xray(race, *ARRAYS)
    assert found.best.kind == "race" and not found.best.place and len(found.findings) == 1
    assert re.search(r"\d+ of 48 rows differ in three calls", found.sentence)


def test_a_race_of_half_the_rows_has_a_place():
    noise = np.random.default_rng(1)

    def race(*arrays):
        output = right(*arrays)
        output[:, 12:] *= noise.random((2, 12, 1)).astype(np.float32)
        return output

    assert "row is at least 12" in xray(race, *ARRAYS).best.place


def test_weights_that_were_not_measured_make_no_finding(monkeypatch):
    from refattn.oracle.imaging.probes import Probes

    enough = lambda probes, part, calls=1: part != "one-hot values, from key 24 on"
    monkeypatch.setattr(Probes, "have_time", enough)
    found = xray(lambda *arrays: right(*arrays, causal=True), *ARRAYS)
    assert found.best.kind == "visible keys" and all(f.kind != "normaliser" for f in found.findings)


# errors

WRONG_RETURNS = [
    (lambda *a: None, TypeError, "the kernel returned None"),
    (lambda *a: {"out": right(*a)}, TypeError, "the kernel returned a dict"),
    (lambda *a: right(*a).astype(int), TypeError, "the kernel returned int64"),
    (lambda *a: (), TypeError, r"it returned \(\)"),
]
WRONG_SHAPES = [
    (lambda *a: (both(*a)[0], both(*a)[1].T), "lse must have shape (2, 24); the kernel returned (24, 2)"),
    (lambda *a: (both(*a)[0], both(*a)[1][..., None]), "the kernel returned (2, 24, 1). There is an axis"),
    (
        lambda *a: right(*a).swapaxes(0, 1),
        "the kernel returned (24, 2, 8). It fits (..., length, heads, dim)",
    ),
]


@pytest.mark.parametrize("judge", [xray, diagnose])
@pytest.mark.parametrize("kernel, error, words", WRONG_RETURNS)
def test_what_a_kernel_returns_is_named(judge, kernel, error, words):
    with pytest.raises(error, match=words):
        judge(kernel, *ARRAYS)


@pytest.mark.parametrize("kernel, words", WRONG_SHAPES)
def test_shapes_that_a_kernel_returns_are_named(kernel, words):
    with pytest.raises(CannotProbe, match=re.escape(words)):
        xray(kernel, *ARRAYS)


@pytest.mark.parametrize("wrap", [lambda x: (x,), lambda x: [x[0], x[1]], lambda x: x.tolist()])
def test_one_result_in_a_tuple_or_a_list_is_the_output(wrap):
    kernel = lambda *arrays: wrap(right(*arrays).astype(np.float32))
    assert xray(kernel, *ARRAYS, spec="float32").verdict == "agrees"


def test_lse_of_the_caller_is_checked():
    with pytest.raises(
        ValueError, match=re.escape("lse must have shape (2, 24); got an array of shape (2, 5)")
    ):
        xray(right, *ARRAYS, lse=np.zeros((2, 5), np.float32))
    found = diagnose(right(*ARRAYS), *ARRAYS, lse=np.zeros((2, 5), np.float32))
    assert str(found).startswith("lse must have shape (2, 24); it has (2, 5)")
    with pytest.raises(TypeError, match="Pass the lse as lse="):
        diagnose(both(*ARRAYS), *ARRAYS)


@pytest.mark.parametrize("judge", [xray, diagnose])
@pytest.mark.parametrize(
    "seconds, error", [("10", TypeError), (None, TypeError), (-1, ValueError), (np.nan, ValueError)]
)
def test_seconds_are_checked(judge, seconds, error):
    with pytest.raises(error, match="seconds must be .*; got seconds="):
        judge(right, *ARRAYS, seconds=seconds)


def test_what_is_no_kernel_is_named_by_its_type():
    with pytest.raises(TypeError, match="kernel must be callable; got an object of type ndarray"):
        xray(right(*ARRAYS), *ARRAYS)


def refuses_zeros(query, key, value):
    if not value.any():
        raise ValueError("values must not be 0")
    return right(query, key, value, scale=0.3)


@pytest.mark.parametrize(
    "kernel, words",
    [
        (
            refuses_zeros,
            "the kernel raised ValueError in a call with other arrays (values of 0): values must",
        ),
        (
            in_call([2], both, lambda *a: right(*a, scale=0.3)),
            "the kernel returned an lse in some calls and none",
        ),
        (in_call([1, 2], scaled, lambda *a: right(*a)[:, :-1]), "output must have shape (2, 24, 8)"),
    ],
)
def test_a_kernel_that_cannot_be_probed_is_described_by_its_result(kernel, words):
    found = xray(kernel, *ARRAYS)
    assert words in found.failed and "Not measured: " in str(found)
    assert "weights are estimated from its result" in found.called_in_words and found.called


def test_a_kernel_too_slow_for_probes_is_described_by_its_result():
    import time

    def slow(*arrays):
        time.sleep(0.4)
        return right(*arrays, causal=True)

    found = xray(slow, *ARRAYS, seconds=1.5)
    assert found.calls == 1 and found.best.kind == "visible keys" and "measuring the weights" in str(found)


# numbers of a coarser format


def wide(kernel):
    return lambda *arrays, **options: kernel(*arrays, **options).astype(np.float64)


HELD = "the output holds float32 numbers in a float64 array: pass spec='float32'"


def test_float32_numbers_in_a_float64_array_are_told_first():
    found = xray(wide(right), *ARRAYS)
    assert HELD in str(found).replace("The", "the") and "With it the result agrees" in " ".join(
        str(found).split()
    )
    assert len(found.findings) == 1
    found = diagnose(wide(right)(*ARRAYS), *ARRAYS)
    assert str(found).startswith("T" + HELD[1:]) and "With it the result agrees" in " ".join(
        str(found).split()
    )
    report = check(wide(right)(*ARRAYS), *ARRAYS)
    assert HELD in report.text()
    assert HELD not in check(wide(right)(*ARRAYS), *ARRAYS, spec="float32").text()


def test_a_fault_is_described_beside_the_format():
    causal = wide(lambda *arrays: right(*arrays, causal=True))
    found = xray(causal, *ARRAYS)
    assert HELD[1:] in found.sentence and found.findings[1].kind == "visible keys"
    found = diagnose(causal(*ARRAYS), *ARRAYS)
    assert found.verdict == "explained" and str(found).startswith("T" + HELD[1:]) and found.held
    assert "causal" in found.best.says
