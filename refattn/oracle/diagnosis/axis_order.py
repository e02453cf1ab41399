"""Results in the wrong shape or axis order, before any number is discussed."""

from __future__ import annotations

import math
import time
from itertools import permutations

import numpy as np

from refattn.oracle.bounds.results import OUTPUT
from refattn.oracle.diagnosis.evidence import Evidence
from refattn.oracle.diagnosis.findings import Diagnosis, Finding
from refattn.oracle.diagnosis.fit_bound import bound_use
from refattn.oracle.diagnosis.rereadings import axes_in_order
from refattn.oracle.diagnosis.samples import choose_samples
from refattn.oracle.harness.one_call import wrong_shape
from refattn.oracle.mistakes.wrong_kernel import part_outlines


def shapes_agree(given, shape):
    """Whether each given result has the shape that belongs to an output of this shape."""
    return all(array.shape == result.shape(shape) for result, array in given.items())


def _readings(actual, shape):
    """Ways to bring an array of the wrong shape into the right one: (words, remedy, array)."""
    found = []
    if actual.size != np.prod(shape, dtype=np.int64):
        return found
    if actual.ndim == len(shape):
        for order in permutations(range(actual.ndim)):
            if tuple(actual.shape[axis] for axis in order) == shape and order != tuple(range(actual.ndim)):
                found.append(
                    (
                        f"its axes are {axes_in_order(np.argsort(order))}",
                        f"actual.transpose{order}",
                        actual.transpose(order),
                    )
                )
    found.append((f"it has shape {actual.shape}", f"actual.reshape{shape}", actual.reshape(shape)))
    if len(shape) >= 3:
        swapped = (*shape[:-3], shape[-2], shape[-3], shape[-1])
        found.append(
            (
                f"it has shape {actual.shape} and is laid out (..., length, heads, dim)",
                f"actual.reshape{swapped}.swapaxes(-2, -3)",
                actual.reshape(swapped).swapaxes(-2, -3),
            )
        )
    return found


def diagnose_shape(checked, given, spec, start):
    """What results of another shape are; beside an output of the right one, that of lse."""
    actual = given[OUTPUT]
    shape, got, samples = checked.output_shape, actual.shape, choose_samples(checked)
    if got == shape:
        says = wrong_shape(given, shape, "it has")
        return Diagnosis(
            "explained",
            (Finding("shape", says, "", math.inf, math.inf, True, seen=True),),
            seconds=time.monotonic() - start,
        )
    different = []
    for words, remedy, array in _readings(actual, shape):
        if not any(np.array_equal(array, known, equal_nan=True) for _, _, known in different):
            different.append((words, remedy, array))
    fits = [
        (words, remedy, Evidence(checked, {OUTPUT: array}, spec, samples))
        for words, remedy, array in different
    ]
    fits.sort(key=lambda item: (item[2].baseline.mismatched, item[2].baseline.residual))
    findings = tuple(
        _finding(f"the output should have shape {shape}; {words}", remedy, evidence)
        for words, remedy, evidence in fits
    )
    verdict = "explained" if findings and findings[0].explains else "unexplained"
    location = f"The output should have shape {shape}, the actual one has {got}."
    if len(got) == len(shape) and got[:-1] == shape[:-1]:
        location += (
            " Its last axis is that of the query, not of the values."
            if got[-1] == _query_width(checked)
            else ""
        )
    return Diagnosis(
        verdict, findings, "" if verdict == "explained" else location, 0, time.monotonic() - start
    )


def _finding(says, remedy, evidence):
    baseline = evidence.baseline
    used = bound_use(evidence).used if baseline.explains else baseline.used
    return Finding("axis_order", says, remedy, used, baseline.residual, baseline.explains)


def _query_width(checked):
    return next((part.head_dim for part in part_outlines(checked)), None)
