"""`xray`: measure what a kernel does, and say where and how it differs from what it should do."""

from __future__ import annotations

import operator
import time

import numpy as np

from refattn.oracle.arithmetic.spec import kernel_spec
from refattn.oracle.bounds.results import LSE, OUTPUT
from refattn.oracle.diagnosis.evidence import Evidence
from refattn.oracle.diagnosis.fit_bound import bound_use
from refattn.oracle.diagnosis.samples import choose_samples, first_look
from refattn.oracle.diagnosis.tell_apart import given_results
from refattn.oracle.imaging.compare import Ledgers
from refattn.oracle.imaging.cutting import cut_call, is_large, row_samples, still_wrong
from refattn.oracle.imaging.describe import describe, of_columns
from refattn.oracle.imaging.estimate import Estimated
from refattn.oracle.imaging.findings import Finding
from refattn.oracle.imaging.layouts import explain_layout
from refattn.oracle.imaging.measure import Measured
from refattn.oracle.imaging.pool import Pool
from refattn.oracle.imaging.probes import Probes, call_once
from refattn.oracle.imaging.reading import Reading
from refattn.oracle.imaging.region import Regions
from refattn.oracle.imaging.report import AGREES, DESCRIBED, LOCATED, XRay
from refattn.oracle.imaging.states_description import StateRegions, describe_states
from refattn.oracle.imaging.states_view import StatesView, states_agree
from refattn.oracle.imaging.view import View
from refattn.oracle.mistakes.wrong_kernel import checked_call
from refattn.oracle.verdict.check import check
from refattn.oracle.verdict.report import NOT_JUDGED

WRONG = "wrong"


def xray(kernel, *arrays, lse=None, spec=None, dialect=None, seconds=60.0, progress=None, **options) -> XRay:
    """Measure the attention weights of a kernel, and describe where and how they differ from the right ones.

    The output is linear in the values: with one-hot values it is the weights that the kernel gives, whatever
    is inside it. They are compared with the right ones pair by pair, and the difference is described by
    place and nature. Where `diagnose` asks which known mistake explains a result, this needs no list.

    Parameters
    ----------
    kernel : callable
        Called with `arrays` and `options`; returns output or (output, lse). See Notes for how often.
    *arrays : array_like
        query, key, value of `attention`, `packed_attention` (with `cu_q`, `cu_kv`), `paged_attention`
        (with `block_table`) or `block_local_attention` (with `block_size`); or the six arrays of
        `latent_attention`; or outputs and lses of `merge_states`, whose states are described as if they were
        keys: their lses are the scores, their outputs the values.
    lse : array_like, optional
        The kernel's lse on `arrays`, where the kernel itself returns none.
    spec : KernelSpec, str, dtype or None
        The arithmetic the kernel claims; default, as for `check`: a fused kernel of the dtype of the output.
    dialect : str, optional
        Library whose calling conventions the kernel has; it is called with that library's arguments, as
        NumPy arrays.
    seconds : float
        Time for all calls of the kernel; `XRay.unfinished` says what was left out.
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

    Notes
    -----
    Cost: the kernel is called once for each E keys, E the columns of its output, and five to thirty times
    more (MLA most); a hundred to two hundred times where every stored value is looked at by itself. Beside
    the calls, the result is judged once, and describing takes some seconds and arrays of float64 of as many
    numbers as there are pairs of a row and a key. Of more than three million pairs, some tiles of rows are
    looked at, of a smaller call where that is wrong too. What no X-ray sees: `XRay`, Notes.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> from refattn.oracle.imaging.xray import xray
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
    checked = checked_call(*arrays, **options)  # errors of the call come before the kernel is run
    given = call_once(kernel, arrays, options, dialect)
    if LSE not in given and lse is not None:
        given |= {LSE: given_results(given[OUTPUT], lse)[LSE]}
    spec = kernel_spec(spec, given[OUTPUT].dtype)
    judged = _judged(checked, arrays, options, given, spec)
    if judged != WRONG:
        return XRay(judged, called={"the call itself": 1}, seconds=time.monotonic() - started)
    left = seconds - (time.monotonic() - started)
    return xray_of_kernel(kernel, arrays, options, given, spec, dialect, left, progress)


def xray_of_kernel(kernel, arrays, options, given, spec, dialect=None, seconds=60.0, progress=None) -> XRay:
    """The X-ray of a kernel that is known to be wrong; `given` is its result."""
    started = time.monotonic()
    view = _view(kernel, arrays, options, given, spec, dialect)
    probes = Probes(kernel, view, dialect, seconds - (time.monotonic() - started), progress)
    joins = view.checked.form.joins
    regions_of, describing = (StateRegions, describe_states) if joins else (Regions, describe)
    measured, regions = Measured(view, probes, spec), regions_of(view)
    if measured.lse is None and LSE in given and all(map(operator.is_, view.arrays, arrays)):
        measured.lse = view.cut(LSE, given[LSE])  # that of the caller; the kernel returns none
    ledgers = Ledgers(measured)
    findings = describing(measured, ledgers, regions)
    copied = any(finding.kind == "copied columns" for finding in findings)
    if not copied and (other := measured.in_other_columns()) is not None:
        told = {(finding.kind, finding.nature) for finding in findings}
        findings += of_columns(describing(other, Ledgers(other), regions), other.columns, measured, told)
        findings.sort(key=lambda finding: finding.minor)
    pool = Pool.of(measured, ledgers) if "weights_on_all" in measured.__dict__ else None
    if pool is not None and (own := pool.own_weights()) is not None:
        measured.weights = own
        ledgers = Ledgers(measured)
    return _of(findings, measured, ledgers, started, probes)


def xray_of_outputs(arrays, options, given, spec, seconds=5.0) -> XRay:
    """The same of a kernel that cannot be called: weights are estimated from one wrong result, `given`."""
    started = time.monotonic()
    checked = checked_call(*arrays, **options)
    view = View(arrays, options, row_samples(checked) if is_large(checked) else None)
    lse = view.cut(LSE, given[LSE]) if LSE in given else None
    results, regions = (view.cut(OUTPUT, given[OUTPUT]), lse), Regions(view)
    if view.latent:  # found at once, where anything else takes seconds
        reading = Reading(view, spec, *results)
        if words := explain_layout(reading):
            reading.weights, reading.determined = view.weights, np.False_
            return _of([_everywhere(view, words)], reading, Ledgers(reading), started)
    estimated = Estimated(view, *results, spec, seconds)
    ledgers = Ledgers(estimated)
    findings = describe(estimated, ledgers, regions)
    columns = np.flatnonzero(estimated.wrong_columns & ~estimated.dead_columns)
    if len(columns) > 1:  # the others are right, or looked at already
        other = Estimated(view, *results, spec, seconds, columns)
        told = {(finding.kind, finding.nature) for finding in findings}
        findings = [*of_columns(describe(other, Ledgers(other), regions), columns, other, told), *findings]
    return _of(findings, estimated, ledgers, started)


def _everywhere(view, words):
    """The finding that arrays are read in another way, which gives the whole result."""
    rows = np.broadcast_to(view.row_exists, view.shape[:3])
    return Finding("layout", words, verified=True, region=rows)


def _of(findings, measured, ledgers, started, probes=None):
    verdict = DESCRIBED if findings and findings[0].confident else LOCATED
    called, unfinished = ({}, ()) if probes is None else (probes.calls, tuple(probes.unfinished))
    seconds = time.monotonic() - started
    return XRay(verdict, tuple(findings), measured, ledgers, called, seconds, unfinished)


def _judged(checked, arrays, options, given, spec):
    """AGREES, WRONG or NOT_JUDGED. Of a large problem, by the rows that `diagnose` would look at."""
    if checked.form.joins:
        return AGREES if states_agree(arrays, given, spec) else WRONG
    if is_large(checked):
        samples = choose_samples(checked, worst=_worst(checked, given, spec))
        return AGREES if bound_use(Evidence(checked, given, spec, samples)).passed else WRONG
    function = checked.form.function
    report = check(given[OUTPUT], *arrays, spec=spec, function=function, lse=given.get(LSE), **options)
    return WRONG if report.wrong else AGREES if report.passed else NOT_JUDGED


def _worst(checked, given, spec):
    """(sequence, head), or (sequence, head, row), of the largest error."""
    look = first_look(checked)
    return (-1, 0) if look is None else Evidence(checked, given, spec, look).worst_place()


def _view(kernel, arrays, options, given, spec, dialect):
    """The call; of a large one some rows, of a smaller call that is still wrong where there is one."""
    checked = checked_call(*arrays, **options)
    if checked.form.joins:
        return StatesView(arrays, options)
    if not is_large(checked):
        return View(arrays, options)
    if checked.form.name == "dense" and (cut := cut_call(arrays, options, _worst(checked, given, spec))):
        small = View(*cut, row_samples(checked_call(*cut[0], **cut[1])))
        if still_wrong(small, call_once(kernel, *cut, dialect), spec):
            return small
    return View(arrays, options, row_samples(checked))
