"""`compare_commits.py` counts ulp, finds every kind of difference, and calls public names alone."""

import ast
import inspect
import shutil
from itertools import combinations

import compare_commits
import numpy as np
import pytest
from compare_commits import DTYPES, FORMS, OPTIONS, as_array, differences, distances, dtype_of, plain, table

import cpu_kernels
import refattn

TINY = 1e-7  # subnormal in float16


def neighbours(kind):
    """Pairs of numbers next to each other: normal, negative, at a power of two, subnormal, at zero."""

    def step(x):
        return (np.array([x], kind).view(f"u{kind.itemsize}") + 1).view(kind)[0]

    smallest = step(0.0)
    return [(x, step(x)) for x in np.array([1.0, -1.0, 0.1, 2.0, TINY, 0.0], kind)] + [
        (-smallest, np.array(-0.0, kind))
    ]


@pytest.mark.parametrize("dtype", DTYPES)
def test_neighbours_are_one_ulp_apart(dtype):
    kind = dtype_of(dtype)
    for first, second in neighbours(kind):
        first, second = np.array([first]), np.array([second])
        assert distances(first, second) == distances(second, first) == 1, (first, second)
        assert distances(first, first) == 0
    low, high = np.array([-TINY], kind), np.array([TINY], kind)
    assert distances(low, high) > 2
    assert distances(np.array([-0.0], kind), np.array([0.0], kind)) == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_agree_only_with_themselves(dtype):
    values = np.array([np.nan, np.inf, -np.inf, 1.0], dtype_of(dtype))
    apart = np.array([[distances(np.array([a]), np.array([b]))[0] for a in values] for b in values])
    assert (apart == np.where(np.eye(4), 0, np.inf)).all()


def test_integers_and_booleans_are_equal_or_not():
    assert distances(np.array([3, 4]), np.array([3, 5])).tolist() == [0, np.inf]
    assert distances(np.array([True]), np.array([False])).tolist() == [np.inf]


@pytest.mark.parametrize("dtype", [*DTYPES, "int64", "bool"])
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_arrays_are_kept_to_the_bit(dtype, shape):
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype_of(dtype))
    kept = as_array(plain(array)) if shape else as_array(plain(array[...]))
    assert kept.dtype == array.dtype and kept.shape == shape and kept.tobytes() == array.tobytes()


def test_times_are_left_out_and_nesting_is_kept():
    value = {
        "seconds": 1.0,
        "a": [(1, 2.5), {"seconds": 2}],
        3: None,
        "number": np.float64(0.5),
        "flag": np.bool_(True),
    }
    assert plain(value) == {"a": [[1, 2.5], {}], "3": None, "number": 0.5, "flag": True}


def results(value, name="check: a call"):
    return {name: {"arguments": "query=(2, 3) float32", "result": plain(value)}}


ONE, NEXT = np.ones(3), np.nextafter(np.ones(3), 2)
CHANGES = {
    "equal": (ONE, ONE, None),
    "one ulp": (ONE, NEXT, 1),
    "four ulp": (ONE, 1 + np.array([0, 4, 1]) * 2.0**-52, 4),
    "sign of zero": (0 * ONE, -0.0 * ONE, 1),
    "NaN": (ONE, ONE * np.nan, np.inf),
    "dtype": (ONE, ONE.astype(np.float32), np.inf),
    "shape": (ONE, ONE[None], np.inf),
    "array became None": (ONE, None, np.inf),
    "number": ({"use": 0.5}, {"use": 0.75}, 2.0**51),
    "text": ("wrong", "false", np.inf),
    "verdict": ({"passed": True}, {"passed": False}, np.inf),
    "1 is not True": (1, True, np.inf),
    "order of findings": (["a", "b"], ["b", "a"], np.inf),
    "a finding more": (["a"], ["a", "b"], np.inf),
    "a field more": ({"a": 1}, {"a": 1, "b": 2}, np.inf),
    "a field less": ({"a": 1, "b": None}, {"a": 1}, np.inf),
}


@pytest.mark.parametrize("first, second, ulps", CHANGES.values(), ids=CHANGES)
def test_every_kind_of_difference_is_found(first, second, ulps):
    found = list(differences(results(first), results(second)))
    if ulps is None:
        assert found == []
    else:
        assert max(difference.ulps for difference in found) == ulps
        assert all(bool(difference.reason) == (difference.ulps <= 2) for difference in found)
        far = [difference for difference in found if difference.ulps > 2]
        text = compare_commits.listed(found)
        assert ("query=(2, 3) float32" in text) == bool(far)
        assert all(difference.field in text and difference.second in text for difference in far)


def test_the_worst_element_is_shown():
    (difference,) = differences(results(ONE), results(1 + np.array([0, 4, 1]) * 2.0**-52))
    assert difference.field == "result[1], the worst of 2"
    assert (difference.first, difference.second) == ("1.0", str(1 + 2.0**-50))


def test_of_many_fields_those_without_a_reason_are_listed_first():
    first, second = dict.fromkeys("abcdefg", "old"), dict.fromkeys("abcdef", "new") | {"g": "other"}
    found = differences(results(first), results(second), words={"old": ("new", "renamed")})
    text = compare_commits.listed(found)
    assert text.splitlines()[2] == "  result.g: NO REASON KNOWN" and text.endswith("and 3 more fields")


def test_a_result_that_became_an_error_and_a_call_that_is_gone():
    raised = {"check: a call": {"arguments": "", "error": "ValueError: no"}}
    assert any("no" in difference.second for difference in differences(results(ONE), raised))
    (gone,) = differences(results(ONE), {})
    assert gone.field == "made only on the first tree" and not gone.reason


def test_reasons():
    words = {"latent": ("compressed", "renamed")}
    (renamed,) = differences(results("a latent key"), results("a compressed key"), words=words)
    assert renamed.reason == "renamed"
    (more,) = differences(results("a latent key"), results("a compressed value"), words=words)
    assert not more.reason
    accepted = (("check: * | result*", 10, "summed in blocks"),)
    for ulps, reason in ((4, "summed in blocks"), (20, "")):
        (difference,) = differences(results(ONE), results(ONE + ulps * 2.0**-52), accepted=accepted)
        assert difference.reason == reason
    (elsewhere,) = differences(
        results(ONE, "bound: a call"), results(ONE + 2.0**-50, "bound: a call"), accepted=accepted
    )
    assert not elsewhere.reason


def test_table_and_exit_status(monkeypatch, capsys):
    first, second = {}, {}
    for name, a, b in (("bound: 1", ONE, ONE), ("bound: 2", ONE, NEXT), ("check, right: 3", "x", "y")):
        first |= results(a, name)
        second |= results(b, name)
    lines = table({**first, **second}, list(differences(first, second))).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["bound", "2", "1", "1", "0", "0"],
        ["check", "1", "0", "0", "0", "1"],
        ["all", "3", "1", "1", "0", "1"],
    ]

    trees = {"first": first, "second": second}
    monkeypatch.setattr(compare_commits, "extract", lambda commit, tree: None)
    monkeypatch.setattr(compare_commits, "results_of", lambda commit, folder, name, flags: trees[name])
    assert compare_commits.main(["HEAD"]) == 1
    assert "check, right: 3" in capsys.readouterr().out
    del first["check, right: 3"], second["check, right: 3"]
    assert compare_commits.main(["HEAD"]) == 0
    assert "differences without a reason: 0" in capsys.readouterr().out


@pytest.mark.campaign
def test_two_trees_from_end_to_end(tmp_path):
    """The working tree against a copy with another message, which is found for every form and package."""
    shutil.copy(compare_commits.__file__, tmp_path / "calls.py")
    for name in ("first", "second"):
        compare_commits.extract(None, tmp_path / name)
    options = tmp_path / "second" / "refattn" / "calls" / "options.py"
    options.chmod(0o600)  # the checkout may be read-only
    text = options.read_text().replace("softcap must be greater than 0", "softcap must be above 0")
    options.write_text(text)
    first, second = (
        compare_commits.results_of(None, tmp_path, name, ["--only", "bad"]) for name in ("first", "second")
    )
    assert len(first) > 300 and all("error" in first[name] for name in first if "oracle" not in name)
    found = list(differences(first, second))
    assert all(
        difference.second == difference.first.replace("greater than", "above") for difference in found
    )
    calls = {difference.call.split(": ")[1].split()[0] for difference in found}
    assert calls == {*FORMS} and len(found) == 2 * len(FORMS)


def test_the_calls_meet_every_form_and_every_two_options():
    calls = [call.name for call in compare_commits.attention_calls()]
    assert len(calls) == len({*calls}) >= 500
    exclusive = (
        {"bias", "bias with -inf"},
        {"mask", "mask of rows"},
        {"window", "left window"},
        {"sinks", "extreme sinks"},
    )
    for package in ("refattn", "cpu_kernels"):
        for form in FORMS:
            made = {call.split(", ")[1] for call in calls if call.startswith(f"{package}: {form}, ")}
            options = [name for name in OPTIONS if form != "local" or name != "offset"]
            pairs = [pair for pair in combinations(options, 2) if {*pair} not in exclusive]
            assert {"plain", *options, *map(" and ".join, pairs)} <= made
            assert {call.split(", ")[2] for call in calls if f": {form}, " in call} == {*DTYPES}


@pytest.mark.parametrize(
    "module, public", [("refattn", {*refattn.__all__, "oracle"}), ("oracle", {*refattn.oracle.__all__})]
)
def test_the_calls_use_public_names_alone(module, public):
    tree = ast.parse(inspect.getsource(compare_commits))
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == module
    }
    assert used and used <= public
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and "refattn" in node.module
        for alias in node.names
    }
    assert imported == {"oracle"}


def test_a_call_that_raises_is_a_result():
    call = compare_commits.Call("bad", lambda: cpu_kernels.attention(1))
    assert compare_commits.result_of(call)["error"].startswith("TypeError")
