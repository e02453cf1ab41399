"""`xray`: measure what a kernel does, and say where and how it differs from what it should do."""

from __future__ import annotations

import time

import numpy as np

from refattn.oracle.arithmetic.spec import kernel_spec
from refattn.oracle.bounds.results import LSE, OUTPUT
from refattn.oracle.diagnosis.tell_apart import given_results
from refattn.oracle.verdict.check import check
from refattn.oracle.verdict.report import NOT_JUDGED
from refattn.oracle.xray.compare import Ledgers
from refattn.oracle.xray.describe import describe
from refattn.oracle.xray.measure import Measured
from refattn.oracle.xray.probes import Probes
from refattn.oracle.xray.region import Regions
from refattn.oracle.xray.report import AGREES, DESCRIBED, LOCATED, XRay
from refattn.oracle.xray.view import View


def xray(kernel, *arrays, lse=None, spec=None, dialect=None, seconds=60.0, progress=None, **options) -> XRay:
    """Measure the attention weights of a kernel, and describe where and how they differ from the right ones.

    The output is linear in the values: with one-hot values it is the weights that the kernel gives, whatever is
    inside it. They are compared with the right ones pair by pair, and the difference is described by place and
    nature. Where `diagnose` asks which known mistake explains a result, an X-ray needs no list of mistakes.

    Parameters
    ----------
    kernel : callable
        Called with `arrays` and `options`; returns output or (output, lse). It is called some twenty times,
        and up to a hundred times where the difference is hard to describe.
    *arrays : array_like
        query, key, value of `attention`, `packed_attention` (with `cu_q`, `cu_kv`), `paged_attention`
        (with `block_table`) or `block_local_attention` (with `block_size`); or the six arrays of
        `latent_attention`.
    lse : array_like, optional
        The kernel's lse on `arrays`, where the kernel itself returns none.
    spec : KernelSpec, str, dtype or None
        The arithmetic the kernel claims; default, as for `check`: a fused kernel of the dtype of the output.
    dialect : str, optional
        Library whose calling conventions the kernel has; it is called with that library's arguments, as NumPy
        arrays.
    seconds : float
        Time for the whole measuring.
    progress : callable, optional
        Called with a line of text before each part of the measuring: `print`.
    **options
        Of the function.

    Returns
    -------
    XRay
        Its `text()` is the description, its `picture(path)` draws it.

    Raises
    ------
    TypeError, ValueError
        As the function itself. What the kernel raises is passed on.
    CannotProbe
        The kernel returns arrays of another shape.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> from refattn.oracle.xray.xray import xray
    >>> rng = np.random.default_rng(0)
    >>> query, key, value = (rng.standard_normal((1, 2, n, 8)) for n in (5, 9, 9))
    >>> def kernel(query, key, value, causal):
    ...     return refattn.attention(query, key, value, causal=causal, q_offset=0)
    >>> xray(kernel, query, key, value, causal=True).best.kind
    'visible keys'
    """
    if not callable(kernel):
        raise TypeError(f"kernel must be callable; got kernel={kernel!r}. A result alone is for diagnose.")
    started = time.monotonic()
    arrays = tuple(np.asarray(array) for array in arrays)
    view = View(arrays, options)
    probes = Probes(kernel, view, dialect, seconds, progress)
    given = probes("the call itself")
    if LSE not in given and lse is not None:
        given = given_results(given[OUTPUT], lse)
    spec = kernel_spec(spec, given[OUTPUT].dtype)
    how = {"spec": spec, "function": view.checked.form.function, "lse": given.get(LSE)}
    report = check(given[OUTPUT], *arrays, **how, **options)
    if not report.wrong:
        verdict = AGREES if report.passed else NOT_JUDGED
        return XRay(verdict, called=probes.calls, seconds=time.monotonic() - started)
    measured = Measured(view, probes, spec)
    if measured.lse is None and LSE in given:
        measured.lse = view.cut(LSE, given[LSE])
    ledgers = Ledgers(measured)
    findings = tuple(describe(measured, ledgers, Regions(view)))
    verdict = DESCRIBED if any(finding.confident for finding in findings) else LOCATED
    return XRay(verdict, findings, measured, ledgers, probes.calls, time.monotonic() - started)
