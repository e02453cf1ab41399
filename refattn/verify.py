"""Every golden computed anew and compared, by the rules of `refattn.goldens.compare`; `refattn
verify` prints the outcome.
"""

import time
from dataclasses import dataclass, field

import refattn
from refattn.goldens.compare import Outcome, computed_by, exactness_allowance, kernel_allowance, worse
from refattn.oracle.progress import Progress

VARIANTS = ("MHA", "MQA", "GQA", "MLA")


@dataclass
class Row:
    """The cases of one variant and source."""

    variant: str
    source: str
    cases: int = 0
    reference: Outcome = field(default_factory=Outcome)
    kernels: Outcome | None = None
    kernel_cases: int = 0
    reference_seconds_of_kernel_cases: float = 0.0
    failed: int = 0

    @property
    def speed_up(self):
        if self.kernels is None or self.kernels.seconds == 0:
            return None
        return self.reference_seconds_of_kernel_cases / self.kernels.seconds


@dataclass
class Report:
    """Everything one run found."""

    rows: list = field(default_factory=list)
    failures: list = field(default_factory=list)
    kernels_note: str | None = None
    seconds: float = 0.0

    @property
    def cases(self):
        return sum(row.cases for row in self.rows)


def verify(cases, *, kernels=None, fail_fast=False, progress=None):
    """Compute every case and compare.

    Parameters
    ----------
    cases : iterable of refattn.goldens.GoldenCase
    kernels : module, optional
        A package with functions of the same names as refattn's; those it has are verified beside the
        reference.
    fail_fast : bool
        Stop at the first case that does not hold.
    progress : callable or False, optional
        Called with a `ProgressEvent`, whose text is one line: `print`; False says nothing. Default: a line
        on a terminal, from two seconds on (`refattn.oracle.progress`).

    Returns
    -------
    Report

    Examples
    --------
    >>> import refattn.goldens
    >>> from refattn.verify import verify
    >>> report = verify([refattn.goldens.load("MHA_plain")])
    >>> report.cases, report.failures
    (1, [])
    """
    started = time.perf_counter()
    report, rows = Report(), {}
    total = len(cases) if hasattr(cases, "__len__") else None
    with Progress("verifying", total, "cases", progress=progress) as shown:
        for case in shown.over(cases, lambda case: f"{case.variant}  {case.source}  {case.name}"):
            row = rows.setdefault((case.variant, case.source), Row(case.variant, case.source))
            row.cases += 1
            reference = computed_by(refattn, case, exactness_allowance)
            add(row.reference, reference)
            failures = [("refattn", reference.failure)]
            if hasattr(kernels, case.function):
                outcome = computed_by(kernels, case, kernel_allowance, warm_up=True)
                row.kernels = row.kernels or Outcome()
                row.kernel_cases += 1
                row.reference_seconds_of_kernel_cases += reference.seconds
                add(row.kernels, outcome)
                failures.append((kernels.__name__, outcome.failure))
            failures = [(package, failure) for package, failure in failures if failure is not None]
            row.failed += bool(failures)
            report.failures += [
                {
                    "case": case.name,
                    "variant": case.variant,
                    "source": case.source,
                    "function": f"{package}.{case.function}",
                    "failure": failure,
                }
                for package, failure in failures
            ]
            if failures and fail_fast:
                break
    report.rows = sorted(
        rows.values(),
        key=lambda row: (VARIANTS.index(row.variant), not row.source.startswith("torch"), row.source),
    )
    report.seconds = time.perf_counter() - started
    return report


def add(total, outcome):
    """Worst of both, times added."""
    total.seconds += outcome.seconds
    for name in ("error", "units", "lse_ulps", "of_bound"):
        setattr(total, name, worse(getattr(total, name), getattr(outcome, name)))
