"""The oracle: whether a kernel's result is right to the accuracy its arithmetic allows, and why not.

Names are loaded on first use, so importing this package costs nothing.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # _HOME once more, for readers that do not run it
    from refattn.oracle.bounds import ErrorBound as ErrorBound
    from refattn.oracle.bounds import error_bound as error_bound
    from refattn.oracle.diagnosis import Diagnosis as Diagnosis
    from refattn.oracle.diagnosis import diagnose as diagnose
    from refattn.oracle.dialect_calls import from_ours as from_ours
    from refattn.oracle.dialect_calls import result_to_ours as result_to_ours
    from refattn.oracle.dialect_calls import to_ours as to_ours
    from refattn.oracle.dialects import DIALECTS as DIALECTS
    from refattn.oracle.dialects import dialect as dialect
    from refattn.oracle.dialects import explain_difference as explain_difference
    from refattn.oracle.emulation import EmulatedKernel as EmulatedKernel
    from refattn.oracle.emulation import emulate as emulate
    from refattn.oracle.forms import Rope as Rope
    from refattn.oracle.harness import check_kernel as check_kernel
    from refattn.oracle.harness_report import HarnessReport as HarnessReport
    from refattn.oracle.inputs import adversarial_inputs as adversarial_inputs
    from refattn.oracle.inputs import attention_inputs as attention_inputs
    from refattn.oracle.mutation import mutation_score as mutation_score
    from refattn.oracle.report import Report as Report
    from refattn.oracle.rules import RULES as RULES
    from refattn.oracle.spec import KernelSpec as KernelSpec
    from refattn.oracle.suites import default_suite as default_suite
    from refattn.oracle.suites import exact_cases as exact_cases
    from refattn.oracle.verdict import assert_attention_close as assert_attention_close
    from refattn.oracle.verdict import check as check

# name -> module that defines it
_HOME = {
    "KernelSpec": "spec",
    "ErrorBound": "bounds",
    "error_bound": "bounds",
    "Report": "report",
    "assert_attention_close": "verdict",
    "check": "verdict",
    "check_kernel": "harness",
    "HarnessReport": "harness_report",
    "diagnose": "diagnosis",
    "Diagnosis": "diagnosis",
    "explain_difference": "dialects",
    "adversarial_inputs": "inputs",
    "exact_cases": "suites",
    "mutation_score": "mutation",
    "dialect": "dialects",
    "DIALECTS": "dialects",
    "to_ours": "dialect_calls",
    "from_ours": "dialect_calls",
    "result_to_ours": "dialect_calls",
    "attention_inputs": "inputs",
    "default_suite": "suites",
    "Rope": "forms",
    "RULES": "rules",
    "EmulatedKernel": "emulation",
    "emulate": "emulation",
}

__all__ = sorted(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__():
    return sorted({*globals(), *_HOME})
