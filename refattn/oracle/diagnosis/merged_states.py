"""`diagnose` for merged states."""

from __future__ import annotations

import time

import numpy as np

from refattn.calls.arrays import as_float_array
from refattn.oracle.bounds.results import OUTPUT, RESULTS
from refattn.oracle.diagnosis.evidence import comparable
from refattn.oracle.diagnosis.findings import Diagnosis, Finding
from refattn.oracle.mistakes.merge import MERGES, merged


def diagnose_merge(given, outputs, lses):
    start = time.monotonic()
    outputs = np.stack([as_float_array(x, "outputs").astype(np.float64) for x in outputs])
    lses = np.stack([as_float_array(x, "lses").astype(np.float64) for x in lses])
    actual = given[OUTPUT]
    if actual.shape != outputs.shape[1:] or lses.shape != outputs.shape[:-1]:
        words = (
            f"actual must have the shape of one state, {outputs.shape[1:]}, and lses that of outputs "
            "without the last axis"
        )
        raise ValueError(f"{words}; got actual.shape={actual.shape}, lses.shape={lses.shape}.")
    unit = (
        64
        * np.finfo(actual.dtype if actual.dtype in (np.float32, np.float64) else np.float32).eps
        * (np.abs(outputs).max(0) + 1)
    )
    if actual.dtype.itemsize == 2:
        unit = unit + 2.0**-7 * np.abs(outputs).max(0)
    got = {result: array.astype(np.float64) for result, array in given.items()}

    def compare(predicted):
        used = 0.0
        for result, b, bound in zip(RESULTS, predicted, (unit, 1e-5), strict=True):
            if result not in got:
                continue
            fine, same = comparable(b, got[result])
            if not same.all():
                return np.inf
            errors = np.where(fine, np.abs(np.where(fine, got[result], 0) - np.where(fine, b, 0)) / bound, 0)
            used = max(used, np.max(errors, initial=0.0))
        return float(used)

    if (base := compare(merged(outputs, lses))) <= 1:
        return Diagnosis(
            "agrees",
            (Finding("", "the result agrees", "", base, base, True),),
            seconds=time.monotonic() - start,
        )
    ranked = sorted(
        ((compare(m.merge(outputs, lses)), index, m) for index, m in enumerate(MERGES)),
        key=lambda item: item[:2],
    )
    findings = tuple(Finding(m.id, m.says, "", used, used, used <= 1, (), m.issues) for used, _, m in ranked)
    explained = findings[0].explains
    return Diagnosis(
        "explained" if explained else "unexplained",
        findings,
        "" if explained else "No known merge mistake explains it.",
        len(findings),
        time.monotonic() - start,
    )
