"""The oracle: whether a kernel's result is right to the accuracy its arithmetic allows, and why not.

Names are loaded on first use, so importing this package costs nothing.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # _HOME once more, for readers that do not run it
    from refattn.calls.rotary import Rope as Rope
    from refattn.oracle.arithmetic.spec import KernelSpec as KernelSpec
    from refattn.oracle.bounds.bound import ErrorBound as ErrorBound
    from refattn.oracle.bounds.bound import error_bound as error_bound
    from refattn.oracle.diagnosis.search import Diagnosis as Diagnosis
    from refattn.oracle.diagnosis.search import diagnose as diagnose
    from refattn.oracle.dialects.differences import explain_difference as explain_difference
    from refattn.oracle.dialects.libraries import DIALECTS as DIALECTS
    from refattn.oracle.dialects.libraries import dialect as dialect
    from refattn.oracle.dialects.results import result_to_ours as result_to_ours
    from refattn.oracle.dialects.translate import from_ours as from_ours
    from refattn.oracle.dialects.translate import to_ours as to_ours
    from refattn.oracle.harness.check_kernel import check_kernel as check_kernel
    from refattn.oracle.harness.outcomes import HarnessReport as HarnessReport
    from refattn.oracle.imaging.report import XRay as XRay
    from refattn.oracle.imaging.xray import xray as xray
    from refattn.oracle.inputs.families import adversarial_inputs as adversarial_inputs
    from refattn.oracle.inputs.families import attention_inputs as attention_inputs
    from refattn.oracle.inputs.suites import default_suite as default_suite
    from refattn.oracle.inputs.suites import exact_cases as exact_cases
    from refattn.oracle.mistakes.mutation import mutation_score as mutation_score
    from refattn.oracle.mistakes.rules import RULES as RULES
    from refattn.oracle.simulated.emulated import EmulatedKernel as EmulatedKernel
    from refattn.oracle.simulated.emulated import emulate as emulate
    from refattn.oracle.verdict.check import assert_attention_close as assert_attention_close
    from refattn.oracle.verdict.check import check as check
    from refattn.oracle.verdict.report import Report as Report

# name -> module of refattn that defines it
_HOME = {
    "KernelSpec": "oracle.arithmetic.spec",
    "ErrorBound": "oracle.bounds.bound",
    "error_bound": "oracle.bounds.bound",
    "Report": "oracle.verdict.report",
    "assert_attention_close": "oracle.verdict.check",
    "check": "oracle.verdict.check",
    "check_kernel": "oracle.harness.check_kernel",
    "HarnessReport": "oracle.harness.outcomes",
    "diagnose": "oracle.diagnosis.search",
    "Diagnosis": "oracle.diagnosis.search",
    "explain_difference": "oracle.dialects.differences",
    "adversarial_inputs": "oracle.inputs.families",
    "exact_cases": "oracle.inputs.suites",
    "mutation_score": "oracle.mistakes.mutation",
    "dialect": "oracle.dialects.libraries",
    "DIALECTS": "oracle.dialects.libraries",
    "to_ours": "oracle.dialects.translate",
    "from_ours": "oracle.dialects.translate",
    "result_to_ours": "oracle.dialects.results",
    "attention_inputs": "oracle.inputs.families",
    "default_suite": "oracle.inputs.suites",
    "Rope": "calls.rotary",
    "RULES": "oracle.mistakes.rules",
    "EmulatedKernel": "oracle.simulated.emulated",
    "emulate": "oracle.simulated.emulated",
    "xray": "oracle.imaging.xray",
    "XRay": "oracle.imaging.report",
}

__all__ = sorted(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"refattn.{_HOME[name]}"), name)


def __dir__():
    return sorted({*globals(), *_HOME})
