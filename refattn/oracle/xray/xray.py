"""`xray`: measure what a kernel does, and say where and how it differs from what it should do."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from refattn.oracle.arithmetic.spec import kernel_spec
from refattn.oracle.bounds.results import LSE, OUTPUT
from refattn.oracle.diagnosis.evidence import Evidence
from refattn.oracle.diagnosis.fit_bound import bound_use
from refattn.oracle.diagnosis.samples import choose_samples, first_look
from refattn.oracle.mistakes.wrong_kernel import checked_call
from refattn.oracle.verdict.check import check
from refattn.oracle.xray.compare import Ledgers
from refattn.oracle.xray.cutting import cut_call, is_large, row_samples, still_wrong
from refattn.oracle.xray.describe import describe, of_columns
from refattn.oracle.xray.estimate import Estimated
from refattn.oracle.xray.findings import SHOWN, Finding
from refattn.oracle.xray.measure import Measured
from refattn.oracle.xray.probes import Probes, call_once
from refattn.oracle.xray.region import Regions
from refattn.oracle.xray.view import View


@dataclass(eq=False)
class XRay:
    verdict: str
    findings: tuple[Finding, ...] = ()
    measured: Measured | None = field(default=None, repr=False)
    ledgers: Ledgers | None = field(default=None, repr=False)
    called: dict = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def calls(self):
        return sum(self.called.values())

    @property
    def best(self):
        return self.findings[0] if self.findings else None

    def text(self):
        if self.verdict == "agrees":
            return "The result agrees with the reference; there is nothing to describe."
        lines = []
        for finding in self.findings[:SHOWN]:
            lines.append(finding.says)
            lines.append(
                f"    {finding.hit:,} of {finding.wrong:,} wrong lie there, and {finding.right_inside:,} right ones"
                f"{'; verified' if finding.verified else ''}"
            )
        return "\n".join(lines)


def xray(kernel, *arrays, lse=None, spec=None, dialect=None, seconds=60.0, progress=None, **options):
    started = time.monotonic()
    arrays = tuple(np.asarray(array) for array in arrays)
    checked = checked_call(*arrays, **options)
    large = is_large(checked)
    given = call_once(kernel, arrays, options, dialect)
    spec = kernel_spec(spec, given[OUTPUT].dtype)
    judged, worst = _judged(checked, given, spec, arrays, options, large)
    if judged != "wrong":
        return XRay(judged, called={"the call itself": 1}, seconds=time.monotonic() - started)
    view = View(arrays, options, row_samples(checked) if large else None)
    if large and checked.form.name == "dense" and (cut := cut_call(arrays, options, worst)):
        smaller = checked_call(*cut[0], **cut[1])
        small = View(*cut, row_samples(smaller))
        if still_wrong(small, call_once(kernel, *cut, dialect), spec):
            view = small
    probes = Probes(kernel, view, dialect, seconds, progress)
    measured = Measured(view, probes, spec)
    ledgers = Ledgers(measured)
    regions = Regions(view)
    findings = describe(measured, ledgers, regions)
    if (other := measured.in_other_columns()) is not None:
        findings = [*findings, *of_columns(describe(other, Ledgers(other), regions), other.columns, measured)]
        findings.sort(key=lambda finding: finding.minor)
    return XRay("described", tuple(findings), measured, ledgers, probes.calls, time.monotonic() - started)


def _judged(checked, given, spec, arrays, options, large):
    """"agrees", "wrong" or "not judged", and (sequence, head) of the largest error of a large problem."""
    if large:
        look = first_look(checked)
        worst = (0, 0) if look is None else Evidence(checked, given, spec, look).worst_place()
        use = bound_use(Evidence(checked, given, spec, choose_samples(checked, worst=worst)))
        return ("agrees" if use.passed else "wrong"), worst
    report = check(given[OUTPUT], *arrays, spec=spec, function=checked.form.function, lse=given.get(LSE), **options)
    return ("wrong" if report.wrong else "agrees" if report.passed else "not judged"), (0, 0)


def xray_of_outputs(given, arrays, options, spec, seconds=5.0):
    """The same of a kernel that cannot be called: weights are estimated from one result."""
    started = time.monotonic()
    checked = checked_call(*arrays, **options)
    view = View(arrays, options, row_samples(checked) if is_large(checked) else None)
    lse = view.cut(LSE, given[LSE]) if LSE in given else None
    estimated = Estimated(view, view.cut(OUTPUT, given[OUTPUT]), lse, spec, seconds)
    ledgers = Ledgers(estimated)
    findings = describe(estimated, ledgers, Regions(view))
    return XRay("described", tuple(findings), estimated, ledgers, {}, time.monotonic() - started)
