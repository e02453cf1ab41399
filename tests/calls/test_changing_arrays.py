"""Arrays that somebody else changes during a call: it computes from what it has checked, or refuses; it
never reads outside the arrays.

Numbers may change freely, the result is then any number. Integers and the attributes of arrays decide
addresses: a call takes its own copy of them.
"""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from bad_calls import GOOD_CALLS, TWINS
from package_copy import ROOT

import cpu_kernels
import refattn
import refattn.oracle

PACKAGES = [refattn, cpu_kernels]
FOLDERS = tuple(str(Path(package.__file__).parent) for package in PACKAGES)
EARLY, LATE = (
    16,
    5,
)  # moments of a call at which something changes: while arguments are checked, and of the whole call

# What no check lets pass; none of it leads outside memory that is there (see `call_of`), so that where it is
# used it shows in the result.
WRONG = {"cu_q": [1, 4, 9], "cu_kv": [1, 5, 11], "block_table": -1, "kv_lengths": -1, "q_offset": 2**60}
NAMES_AND_DTYPES = [
    (name, dtype)
    for name in WRONG
    for dtype in ("int64", "int32", "uint64")
    if (name, dtype) != ("q_offset", "int32")
]


class HoldsArray:
    """An array-like that hands out its own array."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


HOLDERS = {
    "array": lambda array: array,
    "memoryview": memoryview,
    "__array__": HoldsArray,
    "subclass": lambda array: array.view(np.memmap),
}


def call_of(function):
    """A good call with all its integers in writable arrays; pages have neighbours in memory, full of NaN."""
    call = {
        name: np.array(value) if isinstance(value, np.ndarray) else value
        for name, value in GOOD_CALLS[function].items()
    }
    for name in {"key_pages", "value_pages"} & call.keys():
        pages = call[name]
        room = np.full((len(pages) + 2, *pages.shape[1:]), np.nan, pages.dtype)
        room[1:-1] = pages
        call[name] = room[1:-1]
    if function != "merge_states":
        call |= {
            "causal": True,
            "kv_lengths": [2, 3] if function == "packed_attention" else call.get("kv_lengths", [3, 4]),
        }
        call |= {} if function == "block_local_attention" else {"q_offset": [1, 2]}
    return {name: np.array(value) if name in WRONG else value for name, value in call.items()}


def checked_by_oracle(**call):
    function = call.pop("function")
    arrays = [call.pop(name) for name in GOOD_CALLS[function] if name not in WRONG]
    report = refattn.oracle.check(call.pop("actual"), *arrays, function=function, **call)
    return np.array([report.passed])


def entry_points():
    """(function, call) of every public function of both packages, and of the oracle for every form."""
    for package in PACKAGES:
        for function, names in TWINS.items():
            for name in names:
                if hasattr(package, name):
                    yield f"{package.__name__}.{name}", getattr(package, name), call_of(function)
    for function in ("attention", "packed_attention", "paged_attention", "latent_attention"):
        call = call_of(function)
        actual = getattr(refattn, function)(**call).astype(np.float32)
        yield f"oracle.check-{function}", checked_by_oracle, {"function": function, "actual": actual, **call}


def changed_during(function, call, change):
    """Call again and again, with `change()` at a later moment each time; yields result or error of each."""
    seen = checked = moment = 0

    def profile(frame, event, argument):
        nonlocal seen, checked
        if event in ("call", "return") and frame.f_code.co_filename.startswith(FOLDERS):
            seen += 1
            if event == "return" and frame.f_code.co_name.endswith("_problem") and not checked:
                checked = seen
            if seen == moment:
                change()

    run(function, call, profile)
    checked = checked or seen // 2  # merge_states makes no problem
    for moment in sorted(
        {*np.linspace(1, checked + 3, EARLY, dtype=int), *np.linspace(checked, seen, LATE, dtype=int)}
    ):
        seen = 0
        yield run(function, call, profile)


def run(function, call, profile):
    sys.setprofile(profile)
    try:
        return function(**call)
    except (TypeError, ValueError) as error:
        return error
    finally:
        sys.setprofile(None)


def assert_result_or_refusal(results, expected, name):
    """Every result is that of the call before it changed, or an error of the check; of shapes that do
    not fit it may name the other one.
    """
    refused = 0
    for result in results:
        if isinstance(result, Exception):
            assert " must " in str(result) and (name in str(result) or ".shape=" in str(result)), result
            refused += 1
        else:
            assert [array.tobytes() for array in as_tuple(result)] == [
                array.tobytes() for array in as_tuple(expected)
            ]
    assert refused  # a change before the check was noticed, so the changes do happen


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


def integer_arguments():
    for id, function, call in entry_points():
        for name in WRONG:
            if name in call:
                yield pytest.param(function, call, name, id=f"{id}-{name}")


@pytest.mark.sample(4)
@pytest.mark.parametrize("function, call, name", list(integer_arguments()))
def test_integers_that_change(function, call, name):
    assert_integers_are_taken_once(function, call, name, call[name])


@pytest.mark.sample(5)
@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("name, dtype", NAMES_AND_DTYPES)
def test_integers_of_any_kind_that_change(name, dtype, holder):
    function = {
        "cu_q": "packed_attention",
        "cu_kv": "packed_attention",
        "block_table": "paged_attention",
    }.get(name, "attention")
    call = call_of(function)
    given = np.abs(call[name]).astype(dtype)
    assert_integers_are_taken_once(
        getattr(cpu_kernels, function), {**call, name: HOLDERS[holder](given)}, name, given
    )


def assert_integers_are_taken_once(function, call, name, memory):
    good, wrong = memory.copy(), np.array(WRONG[name]).astype(memory.dtype)
    expected = function(**call)

    def results():
        for result in changed_during(function, call, lambda: np.copyto(memory, wrong)):
            memory[...] = good
            yield result

    assert_result_or_refusal(results(), expected, name)


def arguments_that_are_arrays():
    for id, function, call in entry_points():
        if id.startswith("oracle") or f"{id.split('.')[1]}_with_lse" in dir(refattn):
            continue  # the other function of the pair has the same arguments
        for name, value in call.items():
            if isinstance(value, np.ndarray) and name != "actual" and value.flags.c_contiguous:
                yield pytest.param(function, call, name, id=f"{id}-{name}")


@pytest.mark.sample(4)
@pytest.mark.parametrize("function, call, name", list(arguments_that_are_arrays()))
def test_shapes_that_change(function, call, name):
    """`array.shape = ...` by another holder of the same object."""
    array, shape = call[name], call[name].shape
    expected = function(**call)

    def reshape(new):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            array.shape = new

    def results():
        for result in changed_during(function, call, lambda: reshape((1, array.size, 1, 1, 1))):
            reshape(shape)
            yield result

    assert_result_or_refusal(results(), expected, name)


STRESS = """
import sys, threading, time
import numpy as np
import cpu_kernels
from test_changing_arrays import WRONG, call_of

sys.setswitchinterval(1e-6)
for function in ("attention", "packed_attention", "paged_attention", "latent_attention", "block_local_attention"):
    call = call_of(function)
    integers = {name: (call[name], call[name].copy()) for name in WRONG if name in call}
    getattr(cpu_kernels, function)(**call)  # compiles
    going = True

    def write():
        while going:
            for array, good in integers.values():
                array[...] = 10**9
                time.sleep(0.00002)
                array[...] = good
            time.sleep(0.00005)

    writer = threading.Thread(target=write)
    writer.start()
    end, refused, finished = time.monotonic() + 0.8, 0, 0
    while time.monotonic() < end:
        try:
            getattr(cpu_kernels, function)(**call)
            finished += 1
        except ValueError as error:
            assert " must " in str(error), error
            refused += 1
    going = False
    writer.join()
    print(function, "refused" if refused else "never refused", "finished" if finished else "never finished")
"""


def test_a_thread_that_writes_all_the_time():
    """In a process of its own, because what it looks for is a crash."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    ended = subprocess.run(
        [sys.executable, "-c", STRESS],
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, (ended.returncode, ended.stdout, ended.stderr)
    assert (
        all(line.endswith(" refused finished") for line in ended.stdout.splitlines())
        and ended.stdout.count("\n") == 5
    ), ended.stdout
