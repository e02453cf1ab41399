"""Mutants: the unbroken kernel is right, every mutant is wrong somewhere, and says so in words."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

import refattn
from refattn.calls.dense import attention_problem
from refattn.oracle.inputs import local
from refattn.oracle.inputs.corners import corner_cases
from refattn.oracle.inputs.suites import default_suite
from refattn.oracle.inputs.suites import reference as suite_reference
from refattn.oracle.mistakes.catalogue import CATALOGUE
from refattn.oracle.mistakes.local import LOCAL
from refattn.oracle.mistakes.mutants import CORNER_MUTANTS, MUTANTS, correct_kernel, mutants, staged_kernel
from refattn.oracle.simulated.staged import Sample, run_stages
from refattn.oracle.verdict.check import check

CORNERS = list(corner_cases(np.float64, level="full"))
SUITE = [*default_suite(np.float64), *CORNERS]


def reference(inputs):
    if inputs.function == "block_local_attention_with_lse":
        return inputs.call(refattn.block_local_attention_with_lse)
    return suite_reference(inputs)


ALL = mutants(corners=True)
RIGHT = {inputs.name + str(inputs.arrays[0].shape): reference(inputs) for inputs in SUITE}


def largest_difference(got, want):
    """Largest |got - want| relative to 1 + |want|; inf where they are not finite in different ways."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    finite = np.isfinite(got) & np.isfinite(want)
    if not np.array_equal(np.where(finite, 0, got), np.where(finite, 0, want), equal_nan=True):
        return np.inf
    return np.max(np.abs(got[finite] - want[finite]) / (1 + np.abs(want[finite])), initial=0)


@pytest.mark.parametrize("inputs", SUITE, ids=lambda inputs: f"{inputs.function} {inputs.name}")
def test_unbroken_kernel_is_right(inputs):
    output, lse = inputs.call(correct_kernel(inputs.function))
    want_output, want_lse = RIGHT[inputs.name + str(inputs.arrays[0].shape)]
    assert largest_difference(output, want_output) < 1e-11
    assert largest_difference(lse, want_lse) < 1e-11


@pytest.mark.parametrize("mutant", ALL, ids=lambda mutant: mutant.id)
def test_every_mutant_shows_on_the_suite(mutant):
    for inputs in SUITE:
        if inputs.function == mutant.function:
            got, want = inputs.call(mutant), RIGHT[inputs.name + str(inputs.arrays[0].shape)]
            if max(map(largest_difference, got, want)) > (0 if mutant.random else 1e-6):
                return
    pytest.fail("it agrees with the reference on every input")


# Of each row the keys it sees, in blocks 0123, 4567, 89; "-" is a key of zeros that takes part.
SEEN = {
    "blocks_ignored": 10 * ["0123456789"],
    "blocks_start_one_late": ["0", *4 * ["1234"], *4 * ["5678"], "9"],
    "blocks_start_one_early": [*3 * ["012"], *4 * ["3456"], *3 * ["789"]],
    "block_sees_previous": [*4 * ["0123"], *4 * ["01234567"], *2 * ["456789"]],
    "block_sees_next": [*4 * ["01234567"], *4 * ["456789"], *2 * ["89"]],
    "block_leaks_one": [*4 * ["01234"], *4 * ["45678"], *2 * ["89"]],
    "block_last_key_dropped": [*4 * ["012"], *4 * ["456"], *2 * ["8"]],
    "block_is_window": ["0123456789"[max(i - 3, 0) : i + 4] for i in range(10)],
    "block_is_stride": [*3 * ["0369", "147", "258"], "0369"],
    "block_size_is_count": [*3 * ["012"], *3 * ["345"], *3 * ["678"], "9"],
    "block_size_one_more": [*5 * ["01234"], *5 * ["56789"]],
    "block_size_one_less": [*3 * ["012"], *3 * ["345"], *3 * ["678"], "9"],
    "last_block_joined": [*4 * ["0123"], *6 * ["456789"]],
    "last_block_shifted": [*4 * ["0123"], *4 * ["4567"], *2 * ["6789"]],
    "last_block_dropped": [*4 * ["0123"], *4 * ["4567"], *2 * [""]],
    "last_block_padded": [*4 * ["0123"], *4 * ["4567"], *2 * ["89--"]],
}


@pytest.mark.parametrize("mistake", LOCAL, ids=lambda mistake: mistake.id)
def test_block_local_mistakes_see_the_keys_they_say(mistake):
    """Queries of 0 share their weight out equally; values that are unit vectors show among which keys."""
    if mistake.id not in SEEN:
        assert {"lengths", "bias", "mask"} & set(mistake.needs)
        return
    query, key, value = np.zeros((1, 10, 4)), np.ones((1, 10, 4)), np.eye(10)[None]
    output, _ = staged_kernel(mistake)(query, key, value, block_size=4)
    for row, seen in zip(output[0], SEEN[mistake.id], strict=True):
        expected = [(str(j) in seen) / max(len(seen), 1) for j in range(10)]
        np.testing.assert_allclose(row, expected, atol=1e-12)


def test_there_are_enough_and_they_have_names():
    assert len(MUTANTS) >= 60
    assert len({mutant.id for mutant in ALL}) == len(ALL)
    assert all(len(mutant.description) > 10 and not mutant.description.endswith(".") for mutant in ALL)


@pytest.mark.sample(3)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mutant", CORNER_MUTANTS, ids=lambda mutant: mutant.id)
def test_corner_cases_catch_their_mutants(mutant, dtype):
    """`check` rejects each on a corner case."""
    cases = corner_cases(getattr(ml_dtypes, dtype, None) or np.dtype(dtype), level="full")
    assert any(checked(inputs, mutant).wrong for inputs in cases)


@pytest.mark.sample(4)
@pytest.mark.parametrize("mutant", mutants("block_local_attention_with_lse"), ids=lambda mutant: mutant.id)
def test_check_catches_block_local_mutants(mutant):
    assert any(checked(inputs, mutant).wrong for inputs in local.suite(np.float32, seed=4))


def test_check_accepts_a_right_block_local_kernel():
    for inputs in local.suite(np.float32, seed=4):
        assert checked(inputs, correct_kernel(inputs.function)).passed, inputs.name


def checked(inputs, kernel):
    """The report on a kernel's result."""
    output, lse = inputs.call(kernel)
    function = inputs.function.removesuffix("_with_lse")
    return check(output, *inputs.arrays, lse=lse, function=function, **inputs.options)


def test_mutants_of_one_function():
    assert {mutant.function for mutant in mutants("paged_attention_with_lse")} == {
        "paged_attention_with_lse"
    }
    with pytest.raises(ValueError, match="function must be one of attention_with_lse"):
        mutants("softmax")


def test_catalogue_covers_the_conventions_with_public_reports():
    assert sum(bool(mistake.issues) for mistake in CATALOGUE) >= 45


def test_runs_on_one_sample_share_the_keys_and_values_of_one_problem_only():
    rng = np.random.default_rng(3)
    query, key, value = (
        rng.standard_normal((2, heads, n, 5)).astype(np.float32) for heads, n in ((4, 3), (2, 7), (2, 7))
    )
    problem = attention_problem(query, key, value)
    sample = Sample(np.array([1]), np.array([0, 3]), np.array([0, 2]))
    others = [
        replace(problem, key=2 * key),
        replace(problem, value=-value),
        replace(problem, query=query[:, :, :, ::-1]),
        problem,
    ]
    for each in [problem, *others]:
        shared, alone = (
            run_stages(each, sample=taken, with_size=True) for taken in (sample, replace(sample))
        )
        assert all(map(np.array_equal, shared, alone))
    assert len(sample.shared) == 3
