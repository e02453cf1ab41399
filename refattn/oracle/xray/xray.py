"""`xray`: measure what a kernel does, and say where and how it differs from what it should do."""

from __future__ import annotations

import time

import numpy as np

from refattn.oracle.arithmetic.spec import kernel_spec
from refattn.oracle.bounds.results import LSE, OUTPUT
from refattn.oracle.verdict.check import check
from refattn.oracle.verdict.report import NOT_JUDGED
from refattn.oracle.xray.compare import Ledgers
from refattn.oracle.xray.describe import describe
from refattn.oracle.xray.measure import Measured
from refattn.oracle.xray.probes import Probes
from refattn.oracle.xray.region import Regions
from refattn.oracle.xray.report import AGREES, DESCRIBED, LOCATED, XRay
from refattn.oracle.xray.view import View


def xray(kernel, *arrays, lse=None, spec=None, dialect=None, seconds=60.0, progress=None, **options):
    started = time.monotonic()
    arrays = tuple(np.asarray(array) for array in arrays)
    view = View(arrays, options)
    probes = Probes(kernel, view, dialect, seconds, progress)
    given = probes("the call itself")
    spec = kernel_spec(spec, given[OUTPUT].dtype)
    how = {"spec": spec, "function": view.checked.form.function, "lse": given.get(LSE)}
    report = check(given[OUTPUT], *arrays, **how, **options)
    if not report.wrong:
        return XRay("agrees", called=probes.calls, seconds=time.monotonic() - started)
    measured = Measured(view, probes, spec)
    ledgers = Ledgers(measured)
    findings = describe(measured, ledgers, Regions(view))
    return XRay("described", tuple(findings), measured, ledgers, probes.calls, time.monotonic() - started)
