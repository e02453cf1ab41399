"""Arguments of `check_kernel` under which a kernel runs that raised exceptions: found by trying them."""

from __future__ import annotations

import re

from refattn.oracle.inputs.variants import fitted

# head_dim, v_head_dim of kernels there are, the most usual first
SIZES = ((64, 64), (128, 128), (32, 32), (96, 96), (80, 80), (256, 256), (16, 16), (192, 128), (576, 512))
TRIED = 3  # tests that must run under one pair of sizes
UNEXPECTED = re.compile(r"unexpected keyword argument '(\w+)'")


def remedies(bench, trials, report) -> list[str]:
    """Sentences, empty where no single argument lets the tests run that raised; `trials` are those that were
    run, in order.

    Cost: a few calls of the kernel for each pair of SIZES, where a quarter of the tests raised.
    """
    raised = {outcome.id for outcome in report.failures if outcome.raised}
    if report.interrupted is not None or 4 * len(raised) < report.count("pass") + report.count("FAIL"):
        return []
    unknown = {name for same in report.exceptions for name in UNEXPECTED.findall(same[0].raised)}
    unknown &= bench.call.supports
    if unknown:
        rest = sorted(bench.call.supports - unknown)
        return [
            f"supports={{{', '.join(map(repr, rest))}}} leaves out the options the kernel does not take."
        ]
    if bench.head_dims.given is not None or bench.call.form.projects or bench.call.form.joins:
        return []
    wrong = [trial for trial in trials if trial.id in raised and trial.inputs is not None]
    first_of_each = {outcomes[0].id for outcomes in report.exceptions}
    tried = [trial for trial in wrong if trial.id in first_of_each][:TRIED] or wrong[:1]
    for sizes in SIZES if tried else ():
        if all(_runs(bench, fitted(trial.inputs, sizes)) for trial in tried):
            words = sizes[0] if sizes[0] == sizes[1] else sizes
            return [f"head_dims={words} lets the kernel run: it is built for that size."]
    return []


def _runs(bench, inputs):
    try:
        bench.run(inputs.arrays, inputs.options)
    except Exception:  # whatever the kernel raises, these sizes are no remedy
        return False
    return True
