"""The oracle: whether a kernel's result is right to the accuracy its arithmetic allows, and why not.

Names are loaded on first use, so importing this package costs nothing.
"""

import importlib

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
