"""Documented parameters are those of the signature, and every section a caller needs is there, for
the public functions of both packages.
"""

import inspect
import re

import pytest

import cpu_kernels
import refattn
from refattn.calls.options import OPTION_NAMES

WITHOUT_ARRAYS = {"get_num_threads", "num_threads", "set_num_threads"}
FUNCTIONS = [
    pytest.param(function, id=f"{package.__name__}.{name}")
    for package in (refattn, cpu_kernels)
    for name, function in ((name, getattr(package, name)) for name in dir(package))
    if inspect.isfunction(function) and not name.startswith("_") and name not in WITHOUT_ARRAYS
]


def sections(function):
    """The sections of a numpydoc docstring, by name."""
    parts = re.split(r"^([A-Z][A-Za-z ]+)\n-{3,}\n", inspect.getdoc(function), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def where_described(function):
    """The function that describes parameters and errors: itself, or the twin with the same signature that
    its docstring names.
    """
    named = re.search(r"Parameters[,a-z ]+(?:\s+cost)? are those of `(\w+)`", inspect.getdoc(function))
    if named is None:
        return function
    assert not {"Parameters", "Raises"} & sections(function).keys()
    twin = getattr(inspect.getmodule(inspect.unwrap(function)), named[1])
    assert inspect.signature(twin) == inspect.signature(function)
    return twin


def entries(section):
    """The names before the colons, in order; the text of an entry is indented."""
    heads = [line for line in section.splitlines() if line and not line.startswith(" ")]
    return [name for head in heads for name in head.split(" : ")[0].split(", ")]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_documented_parameters_are_those_of_the_signature(function):
    documented, signature = (
        entries(sections(where_described(function))["Parameters"]),
        list(inspect.signature(function).parameters),
    )
    if documented[-1] == "**options":
        documented = documented[:-1]
        shown = signature[len(documented) :]
        left_out = {"q_offset"} if "block_size" in signature else set(documented)
        assert shown == [name for name in OPTION_NAMES if name not in left_out]
        signature = signature[: len(documented)]
    assert documented == signature


@pytest.mark.parametrize("function", FUNCTIONS)
def test_documented_results_are_those_returned(function):
    names = entries(sections(function)["Returns"])
    if function.__name__ == "attention_steps":
        assert names == ["AttentionSteps"]
    else:
        assert names == (
            ["output", "lse"]
            if function.__name__.endswith("_with_lse") or function.__name__ == "merge_states"
            else ["output"]
        )


@pytest.mark.parametrize("function", FUNCTIONS)
def test_errors_are_documented(function):
    named = ", ".join(entries(sections(where_described(function))["Raises"]))
    assert all(error in named for error in ("TypeError", "ValueError", "MemoryError"))


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, value in vars(cpu_kernels).items()
        if inspect.isfunction(value) and name not in WITHOUT_ARRAYS
    ],
)
def test_kernels_have_the_signature_of_their_twin(name):
    ours, theirs = inspect.signature(getattr(cpu_kernels, name)), inspect.signature(getattr(refattn, name))
    # kernels have one arithmetic: `precision` belongs to the reference alone
    shared = [parameter for parameter in theirs.parameters.values() if parameter.name != "precision"]
    assert list(ours.parameters.values()) == shared
    assert "precision" not in OPTION_NAMES and ("precision" in theirs.parameters) == (name != "merge_states")
    assert entries(sections(getattr(cpu_kernels, name))["See Also"]) == [f"refattn.{name}"]
