"""Mutants: the unbroken kernel is right, every mutant is wrong somewhere, and says so in words."""

import numpy as np
import pytest

from refattn.oracle.mistakes.catalogue import CATALOGUE
from refattn.oracle.mutants import MUTANTS, correct_kernel, mutants
from refattn.oracle.suites import default_suite, reference

SUITE = default_suite(np.float64)
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


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.id)
def test_every_mutant_shows_on_the_suite(mutant):
    for inputs in SUITE:
        if inputs.function == mutant.function:
            got, want = inputs.call(mutant), RIGHT[inputs.name + str(inputs.arrays[0].shape)]
            if max(map(largest_difference, got, want)) > (0 if mutant.random else 1e-6):
                return
    pytest.fail("it agrees with the reference on every input")


def test_there_are_enough_and_they_have_names():
    assert len(MUTANTS) >= 60
    assert len({mutant.id for mutant in MUTANTS}) == len(MUTANTS)
    assert all(len(mutant.description) > 10 and not mutant.description.endswith(".") for mutant in MUTANTS)


def test_mutants_of_one_function():
    assert {mutant.function for mutant in mutants("paged_attention_with_lse")} == {"paged_attention_with_lse"}
    with pytest.raises(ValueError, match="function must be one of attention_with_lse"):
        mutants("softmax")


def test_catalogue_covers_the_conventions_with_public_reports():
    assert sum(bool(mistake.issues) for mistake in CATALOGUE) >= 45
