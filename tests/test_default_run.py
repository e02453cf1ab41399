"""What the default run leaves out shows nothing that it does not show as well."""

from itertools import product
from types import SimpleNamespace

import pytest
from cases import CASES
from default_run import left_out, shown


def items(**parameters):
    """As pytest makes them of stacked parameters."""
    for indices in product(*(range(len(values)) for values in parameters.values())):
        params = {name: values[at] for (name, values), at in zip(parameters.items(), indices, strict=True)}
        callspec = SimpleNamespace(params=params)
        yield SimpleNamespace(nodeid=f"tests/test_x.py::test_x[{indices}]", callspec=callspec)


PARAMETERS = {
    "calls": {"case": CASES},
    "calls and dtypes": {"case": CASES, "dtype": ["float32", "float64"]},
    "options": {"options": [{name: 1} for name in "abcdefgh"] * 9, "rows": [1, 33]},
    "numbers and words": {
        "size": [0.0, 1.0, float("inf"), float("nan")],
        "name": [*"abcdefghijkl"],
        "flag": [False, True, None],
    },
    "functions": {
        "function": [len, sum, *(lambda n=n: n for n in range(6))],
        "dtype": [float, complex, int],
        "n": [*range(9)],
    },
}


@pytest.mark.parametrize("parameters", PARAMETERS.values(), ids=PARAMETERS)
@pytest.mark.parametrize("n", [2, 3, 5])
def test_nothing_is_shown_by_what_is_left_out_alone(parameters, n):
    cases = list(items(**parameters))
    left = list(left_out(cases, n))
    kept = [case for case in cases if case not in left]
    assert {what for case in left for what in shown(case)} <= {what for case in kept for what in shown(case)}
    assert 0 < len(kept) <= len(cases) / n + len({what for case in cases for what in shown(case)})
    assert len(kept) < 0.75 * len(cases)


def test_one_parameter_of_plain_values_is_thinned_out():
    cases = list(items(seed=[*range(300)]))
    assert 50 < 300 - len(list(left_out(cases, 4))) < 100


def test_something_always_stays():
    for length in range(1, 9):
        assert len(list(left_out(list(items(seed=[*range(length)])), 1000))) == length - 1


def test_options_and_forms_of_a_call_are_told_apart():
    words = {what for case in items(case=CASES) for what in shown(case)}
    assert {
        "function paged_attention",
        "form=absorb",
        "form=expand",
        "causal=True",
        "bias=ts",
        "window",
        "layout transposed",
    } <= words
