"""`xray`: measure what a kernel does, and say where and how it differs from what it should do."""

from __future__ import annotations

import dataclasses
import operator
import time

import numpy as np

from refattn.calls.arrays import as_array
from refattn.calls.host_copy import all_on_host, on_host
from refattn.oracle.arithmetic.held_format import held_format, held_in_words
from refattn.oracle.arithmetic.spec import kernel_spec
from refattn.oracle.bounds.results import LSE, OUTPUT
from refattn.oracle.diagnosis.budget import seconds_given
from refattn.oracle.diagnosis.evidence import Evidence
from refattn.oracle.diagnosis.fit_bound import bound_use
from refattn.oracle.diagnosis.samples import choose_samples, first_look
from refattn.oracle.diagnosis.wide_look import look_at
from refattn.oracle.harness.array_libraries import library_of
from refattn.oracle.harness.one_call import CalledKernel, given_results, wrong_shape
from refattn.oracle.imaging.compare import Ledgers
from refattn.oracle.imaging.cutting import cut_call, is_large, row_samples, still_wrong
from refattn.oracle.imaging.describe import describe, of_columns
from refattn.oracle.imaging.estimate import Estimated
from refattn.oracle.imaging.findings import Finding
from refattn.oracle.imaging.first_call import first_call
from refattn.oracle.imaging.layouts import explain_layout
from refattn.oracle.imaging.measure import Measured
from refattn.oracle.imaging.pool import Pool
from refattn.oracle.imaging.probes import CannotProbe, Probes
from refattn.oracle.imaging.reading import Reading
from refattn.oracle.imaging.region import Regions
from refattn.oracle.imaging.report import AGREES, DESCRIBED, LOCATED, XRay
from refattn.oracle.imaging.states_description import StateRegions, describe_states
from refattn.oracle.imaging.states_view import StatesView, states_agree
from refattn.oracle.imaging.view import W_UV, View
from refattn.oracle.mistakes.wrong_kernel import checked_call
from refattn.oracle.progress import Progress
from refattn.oracle.verdict.check import check
from refattn.oracle.verdict.faults import NOT_JUDGED

WRONG = "wrong"
AFTER_VIEW = 5.0  # times the time for the right weights of a large call: the least for estimating others
WITH_WORDS = 1.2  # times the time for estimating weights: with that for describing them


def xray(kernel, *arrays, lse=None, spec=None, dialect=None, seconds=60.0, progress=None, **options) -> XRay:
    """Measure the attention weights of a kernel, and describe where and how they differ from the right ones.

    The output is linear in the values: with one-hot values it is the weights that the kernel gives, whatever
    is inside it. They are compared with the right ones pair by pair, and the difference is described by
    place and nature. Where `diagnose` asks which known mistake explains a result, this needs no list.

    Parameters
    ----------
    kernel : callable
        Called with arrays and options like these, of the same library and device; returns output or
        (output, lse). See Notes for how often.
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
    progress : callable or False, optional
        Called with a `ProgressEvent`, whose text is one line: `print`; False says nothing. Default: a line
        on a terminal, from two seconds on (`refattn.oracle.progress`).
    **options
        Of the function.

    Returns
    -------
    XRay
        Its `text()` is the description, its `picture(path)` draws it.

    Raises
    ------
    TypeError, ValueError
        As the function itself. What the first call of the kernel raises is passed on; where a later one
        fails, its result alone is described.
    CannotProbe
        The kernel returns arrays of another shape.
    KeyboardInterrupt
        By Ctrl-C. Its `partial` is an XRay that says what was being measured, without findings: what is
        seen of one call alone is not told from what the next would show.

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
        what = type(kernel).__name__
        raise TypeError(
            f"kernel must be callable; got an object of type {what}. A result alone is for diagnose."
        )
    started, seconds = time.monotonic(), seconds_given(seconds)
    library = library_of((*arrays, *options.values()))
    arrays, options = all_on_host((), arrays, options)
    arrays, lse = tuple(as_array(x, f"array {n}") for n, x in enumerate(arrays)), on_host(lse, "lse")
    checked = checked_call(*arrays, **options)  # errors of the call come before the kernel is run
    kernel = CalledKernel(kernel, dialect, library)

    def so_far():
        part = shown.event().what
        seconds = time.monotonic() - started
        calls = {"until Ctrl-C came": kernel.count}
        return XRay(LOCATED, called=calls, seconds=seconds, unfinished=(part,), interrupted=True)

    shown = Progress("xray: judging the result", progress=progress, seconds=seconds, partial=so_far)
    with shown:
        return _xrayed(kernel, arrays, options, lse, spec, checked, seconds, shown.begin)


def _xrayed(kernel, arrays, options, lse, spec, checked, seconds, begin):
    """The X-ray of a kernel, right or wrong; `begin` is told of each part."""
    started = time.monotonic()
    given = kernel(arrays, options)
    if words := wrong_shape(given, checked.output_shape):
        raise CannotProbe(words)
    if LSE not in given and lse is not None:
        given |= {LSE: given_results(given[OUTPUT], lse)[LSE]}
        if words := wrong_shape(given, checked.output_shape, "got an array of shape"):
            raise ValueError(words)
    left = lambda: seconds - (time.monotonic() - started)
    called = lambda found: dataclasses.replace(found, changed=tuple(kernel.changed))
    own = kernel_spec(spec, given[OUTPUT].dtype)
    judged = _judged(checked, arrays, options, given, own)
    held = held_format(given[OUTPUT], own.output) if judged == WRONG and spec is None else ""
    if held:  # judge it as what it is
        own = kernel_spec(held)
        judged = _judged(checked, arrays, options, given, own)
    if judged != WRONG and not held:
        found = XRay(judged, called={"the call itself": 1}, seconds=time.monotonic() - started)
        return called(found)
    found = XRay(DESCRIBED, called={"the call itself": 1}, seconds=time.monotonic() - started)
    if judged == WRONG:
        found = xray_of_kernel(kernel, arrays, options, given, own, left(), begin)
    return called(of_held(found, held, given[OUTPUT].dtype, judged) if held else found)


def of_held(found, held, dtype, judged):
    """An X-ray under the spec of the format whose numbers the output holds; that it does comes first."""
    note = "With it the result agrees." if judged == AGREES else "The rest is said of that spec."
    first = Finding("format", held_in_words(held, dtype), note=note if judged != NOT_JUDGED else "")
    return dataclasses.replace(found, verdict=DESCRIBED, findings=(first, *found.findings))


def xray_of_kernel(kernel, arrays, options, given, spec, seconds=60.0, progress=None, worst=None) -> XRay:
    """The X-ray of a kernel, a `CalledKernel`, that is known to be wrong; `given` is its result.

    `progress` is told the name of each part (`Progress.begin`). Where the kernel is too slow to be probed,
    or fails, the weights are estimated from that result. `worst`: (sequence, head, row) of its largest
    error, where it is known.
    """
    started = time.monotonic()
    left = lambda: seconds - (time.monotonic() - started)
    view, cut = _view(kernel, arrays, options, given, spec, worst)
    probes = Probes(kernel, view, None, left(), progress)
    joins = view.checked.form.joins
    calls = 0 if joins else _calls_for_weights(view)
    try:
        if probes.fits(calls):
            return _of_cut(_measured(view, probes, arrays, given, spec, started), cut)
        probes.unfinished.append(f"measuring the weights ({calls} calls of {kernel.fastest:.2g} s)")
    except CannotProbe as error:
        if joins:
            raise
        probes.failed = str(error)
    try:
        found = xray_of_outputs(arrays, options, given, spec, max(left(), 0.0) / WITH_WORDS, worst)
    except NotImplementedError:
        found = XRay(LOCATED)
    return dataclasses.replace(
        found,
        called=probes.calls,
        seconds=time.monotonic() - started,
        unfinished=(*probes.unfinished, *found.unfinished),
        failed=probes.failed,
    )


def _calls_for_weights(view):
    """Calls without which there are no weights to describe."""
    columns = max(view.v_head_dim, 1)
    return 1 + -(-(np.shape(view.arrays[W_UV])[-1] if view.latent else view.num_keys) // columns)


def _measured(view, probes, arrays, given, spec, started):
    """The X-ray of a kernel whose weights can be measured."""
    joins = view.checked.form.joins
    regions_of, describing = (StateRegions, describe_states) if joins else (Regions, describe)
    own = all(map(operator.is_, view.arrays, arrays))  # not those of a smaller call
    measured, regions = Measured(view, probes, spec), regions_of(view)
    regions.in_time = measured.in_time
    first = first_call(measured, {name: view.cut(name, given[name]) for name in given}) if own else None
    if measured.lse is None and LSE in given and own:
        measured.lse = view.cut(LSE, given[LSE])  # that of the caller; the kernel returns none
    ledgers = Ledgers(measured)
    if (
        first is not None
        and not (measured.off.any(-1) & view.row_exists).any()
        and not ledgers.lse_off.any()
    ):
        return _of([first], measured, ledgers, started, probes)
    findings = describing(measured, ledgers, regions)
    whole = any(finding.kind in ("copied columns", "race") for finding in findings)
    other = None if whole else measured.in_other_columns()
    if other is not None:
        told = {(finding.kind, finding.nature) for finding in findings}
        findings += of_columns(describing(other, Ledgers(other), regions), other.columns, measured, told)
        findings.sort(key=lambda finding: finding.minor)
    if first is not None and not measured.varies.any():
        findings.insert(0, first)
    pool = Pool.of(measured, ledgers) if "weights_on_all" in measured.__dict__ else None
    if pool is not None and (weights := pool.own_weights()) is not None:
        measured.weights = weights
        ledgers = Ledgers(measured)
    return _of(findings, measured, ledgers, started, probes)


def xray_of_outputs(arrays, options, given, spec, seconds=5.0, worst=None) -> XRay:
    """The same of a kernel that cannot be called: weights are estimated from one wrong result, `given`.

    Of a large call a smaller one is looked at, around the (sequence, head, row) `worst`.
    """
    started = time.monotonic()
    checked = checked_call(*arrays, **options)
    if not is_large(checked):
        return _estimated(View(arrays, options), given, spec, seconds, started)
    worst = worst or _worst(checked, arrays, options, given, spec)
    cut = cut_call(arrays, options, worst)
    if cut is not None:
        arrays, options, given, checked = cut.arrays, cut.options, cut.of(given), cut.checked
        worst = cut.worst
    view = View(arrays, options, row_samples(checked, worst))
    spent = time.monotonic() - started
    if AFTER_VIEW * spent > seconds - spent:  # what follows is not interrupted before it has begun
        return XRay(LOCATED, seconds=spent, unfinished=("estimating the weights",))
    return _of_cut(_estimated(view, given, spec, seconds, started), cut)


def _of_cut(found, cut):
    """An X-ray of a smaller call, which says so."""
    return found if cut is None else dataclasses.replace(found, looked_at=cut.words)


def _estimated(view, given, spec, seconds, started):
    """The X-ray of one wrong result, in the rows of a view."""
    lse = view.cut(LSE, given[LSE]) if LSE in given else None
    left_out = []
    results, regions = (view.cut(OUTPUT, given[OUTPUT]), lse), Regions(view)
    if view.latent:  # found at once, where anything else takes seconds
        reading = Reading(view, spec, *results)
        reading.until = started + seconds / 2
        if words := explain_layout(reading):
            reading.weights, reading.determined = view.weights, np.False_
            return _of([_everywhere(view, words)], reading, Ledgers(reading), started)
        left_out, seconds = reading.unfinished, seconds - (time.monotonic() - started)
    estimated = Estimated(view, *results, spec, seconds)
    estimated.unfinished += left_out
    estimated.until = max(started + seconds, time.monotonic()) + (WITH_WORDS - 1) * seconds
    regions.in_time = estimated.in_time
    ledgers = Ledgers(estimated)
    findings = describe(estimated, ledgers, regions)
    columns = np.flatnonzero(estimated.wrong_columns & ~estimated.dead_columns)
    if len(columns) > 1:  # the others are right, or looked at already
        left = max(estimated.until - time.monotonic(), 0.0) / WITH_WORDS
        other = Estimated(view, *results, spec, min(left, seconds), columns)
        other.until, other.unfinished = estimated.until, estimated.unfinished
        told = {(finding.kind, finding.nature) for finding in findings}
        findings = [*of_columns(describe(other, Ledgers(other), regions), columns, other, told), *findings]
    return _of(findings, estimated, ledgers, started)


def _everywhere(view, words):
    """The finding that arrays are read in another way, which gives the whole result."""
    rows = np.broadcast_to(view.row_exists, view.shape[:3])
    return Finding("layout", words, verified=True, region=rows)


def _of(findings, measured, ledgers, started, probes=None):
    verdict = DESCRIBED if findings and findings[0].confident else LOCATED
    called, unfinished = {} if probes is None else probes.calls, tuple(measured.unfinished)
    seconds = time.monotonic() - started
    return XRay(verdict, tuple(findings), measured, ledgers, called, seconds, unfinished)


def _judged(checked, arrays, options, given, spec):
    """AGREES, WRONG or NOT_JUDGED. Of a large problem, by the rows that `diagnose` would look at."""
    if checked.form.joins:
        return AGREES if states_agree(arrays, given, spec) else WRONG
    if is_large(checked):
        samples = choose_samples(checked, worst=_worst(checked, arrays, options, given, spec))
        return AGREES if bound_use(Evidence(checked, given, spec, samples)).passed else WRONG
    function = checked.form.function
    report = check(given[OUTPUT], *arrays, spec=spec, function=function, lse=given.get(LSE), **options)
    return WRONG if report.wrong else AGREES if report.passed else NOT_JUDGED


def _worst(checked, arrays, options, given, spec):
    """(sequence, head), or (sequence, head, row), of the largest error."""
    if wide := look_at(checked, arrays, options, given, spec):
        return wide.worst[1:]
    look = first_look(checked)
    return (-1, 0) if look is None else Evidence(checked, given, spec, look).worst_place()


def _view(kernel, arrays, options, given, spec, worst):
    """The call; of a large one some rows, of a smaller call that is still wrong where there is one, which
    comes second.
    """
    checked = checked_call(*arrays, **options)
    if checked.form.joins:
        return StatesView(arrays, options), None
    if not is_large(checked):
        return View(arrays, options), None
    worst = worst or _worst(checked, arrays, options, given, spec)
    if cut := cut_call(arrays, options, worst):
        small = View(cut.arrays, cut.options, row_samples(cut.checked, cut.worst))
        if still_wrong(small, kernel(cut.arrays, cut.options), spec):
            return small, cut
    return View(arrays, options, row_samples(checked, worst)), None
