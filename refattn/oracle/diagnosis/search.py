"""`diagnose`: which mistake or foreign convention explains a wrong result.

`Search` tells it from top to bottom: choose a sample of the result, predict what every known mistake would
give there, rank the predictions that explain the result, and conclude with words and a remedy.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import time
from functools import cached_property

import numpy as np

from refattn.calls.host_copy import all_on_host, on_host
from refattn.calls.registry import form_of
from refattn.oracle.arithmetic.held_format import held_format, held_in_words
from refattn.oracle.arithmetic.spec import KernelSpec, kernel_spec
from refattn.oracle.bounds.results import LSE, OUTPUT, RESULTS, handed_over
from refattn.oracle.diagnosis.axis_order import diagnose_shape, shapes_agree
from refattn.oracle.diagnosis.budget import Budget, seconds_given
from refattn.oracle.diagnosis.evidence import Evidence
from refattn.oracle.diagnosis.findings import Diagnosis, Finding
from refattn.oracle.diagnosis.fit_bound import Use, bound_use
from refattn.oracle.diagnosis.hypotheses import TILES_TO_TRY, Hypothesis, single_hypotheses
from refattn.oracle.diagnosis.location import isolated, locate, never_written
from refattn.oracle.diagnosis.merged_states import diagnose_merge
from refattn.oracle.diagnosis.pair_search import PAIR_WORK, other_tiles, pairs_of_mistakes
from refattn.oracle.diagnosis.parameter_fits import fitted_hypotheses
from refattn.oracle.diagnosis.ranking import CLEARLY, Explanation, Ranking
from refattn.oracle.diagnosis.rereadings import in_another_order, mostly_wrong, some_read_otherwise
from refattn.oracle.diagnosis.samples import WHOLE_WORK, choose_samples, first_look, with_sequence
from refattn.oracle.diagnosis.tell_apart import suggestion, told_apart
from refattn.oracle.diagnosis.wide_look import look_at
from refattn.oracle.dialects.axis_hints import with_axis_hint
from refattn.oracle.dialects.foreign_call import read_call
from refattn.oracle.harness.array_libraries import NumpyArrays, library_of
from refattn.oracle.harness.one_call import CalledKernel, given_results
from refattn.oracle.mistakes.wrong_kernel import checked_call
from refattn.oracle.progress import Progress
from refattn.oracle.verdict.check import check

ONE_ROW = "a single wrong row"
COARSER = ("tfloat32", "float16", "bfloat16")
ESTIMATE = 16.0  # seconds, at most, for estimating weights from a result
JUDGED = 4  # explanations whose bound is that of `check`
MEASURED = 0.25  # of the time left, kept for measuring what no known mistake explains
CONCLUSION = 0.2  # of the time, at most, kept for what follows the search
# times what the best explanation leaves, up to which others are compared with it when time is short
TWINS = 4.0
LEAST_WORK = 2**20  # multiplications of a hypothesis about a large problem when time is short
LOCATION_WORK = 16  # times the work of a hypothesis, spent on where an error lives
# of the error, that an explanation may leave where rounding does not make that much: one that leaves more is
# within the bound because the bound is wide
PARTLY = 0.05


def diagnose(
    actual,
    *arrays,
    lse=None,
    spec=None,
    pairs=True,
    seconds=20.0,
    near=None,
    progress=None,
    dialect="refattn",
    **options,
) -> Diagnosis:
    """Find the mistake or foreign convention that explains a result.

    Parameters
    ----------
    actual : array_like or callable
        Output of the kernel; in the wrong axis order it is recognised by its shape or its numbers. Or the
        kernel itself, taking `arrays` and `options` and returning output or (output, lse): where two
        mistakes predict the same numbers on these inputs, it is run on others that tell them apart. It gets
        arrays of the library of `arrays`, tensors of torch on the same device for such.
    *arrays : array_like
        query, key, value of `attention`, `packed_attention` (with `cu_q`, `cu_kv`), `paged_attention`
        (with `block_table`) or `block_local_attention` (with `block_size`); or the six arrays of
        `latent_attention`; or `outputs, lses` of `merge_states`.
    lse : array_like, optional
        The kernel's lse. Some mistakes show nowhere else.
    spec : KernelSpec, str, dtype or None
        The arithmetic the kernel claims; default, as for `check`: a fused kernel of the dtype of `actual`.
    pairs : bool
        Try two mistakes together when none alone explains the result.
    seconds : float
        Time for the whole search. It is checked between hypotheses: no hypothesis is started that is
        known to take longer than what is left, and `Diagnosis.unfinished` says what was not tried. The
        kernel's own run on the caller's arrays comes on top.
    near : tuple of int, optional
        Index of an element of the output that is wrong, `check(...).output.worst`: large problems are
        looked at there. Calls of several packed or paged sequences do not use it: a first look finds the
        place.
    progress : callable or False, optional
        Called with a `ProgressEvent`, whose text is one line: `print`; False says nothing. Default: a line
        on a terminal, from two seconds on (`refattn.oracle.progress`).
    dialect : str
        Name of a library (`refattn.oracle.DIALECTS`): arrays, options and results, also those of a kernel,
        are as it writes them, as for `check`. Findings and remedies speak of the options of `refattn`,
        which `refattn.oracle.to_ours` shows; `near` counts as in `refattn`.
    **options
        Of the function; `rope=Rope(...)` when query and key are given before rotation. With `dialect`, the
        library's.

    Returns
    -------
    Diagnosis

    Raises
    ------
    TypeError, ValueError
        As the function itself, and for an `actual` of another size.
    KeyboardInterrupt
        By Ctrl-C. Its `partial` is the Diagnosis with the explanations found by then.

    Notes
    -----
    Large problems are sampled: rows of every head of every sequence are compared with a reference in float64
    to find the worst place (`wide_look`), and hypotheses are tried on a few sequences, heads and rows around
    it. An unknown mistake is described on a smaller call, whose sequences and heads are numbered from 0
    (`XRay.looked_at`). So the cost is that of a few hundred small attentions, and the memory that of a few
    heads in float64. The verdict "agrees" is that of `check` on what is looked at, and so is `bound_used` of
    the best findings (`fit_bound`).

    Examples
    --------
    >>> import numpy as np, refattn
    >>> from refattn.oracle.diagnosis.search import diagnose
    >>> rng = np.random.default_rng(0)
    >>> query, key, value = (rng.standard_normal((2, 4, n, 8)) for n in (3, 7, 7))
    >>> from_torch = refattn.attention(query, key, value, causal=True, q_offset=0)
    >>> diagnose(from_torch, query, key, value, causal=True).best.remedy
    'q_offset=0'

    The same in the axis order and the words of FlashAttention:

    >>> q, k, v, output = (array.swapaxes(1, 2) for array in (query, key, value, from_torch))
    >>> diagnose(output, q, k, v, causal=True, dialect="flash_attn").best.remedy
    'q_offset=0'
    """
    seconds = seconds_given(seconds)
    library = library_of((*arrays, *options.values())) if callable(actual) else NumpyArrays()
    arrays, options = all_on_host((), arrays, options)
    if dialect != "refattn":
        call = read_call(dialect, arrays, options)
        arrays, options = call.arrays, call.options
    shown = Progress(
        "diagnose", progress=progress, seconds=seconds, partial=lambda: search.so_far(shown.event().what)
    )
    kernel = CalledKernel(_under_callers_settings(actual), dialect, library) if callable(actual) else None
    given = (
        given_results(on_host(actual, "actual"), on_host(lse, "lse"))
        if kernel is None
        else kernel(arrays, options)
    )
    if dialect != "refattn" and kernel is None:
        call.require_shapes(given)
        given = handed_over(*call.to_ours(*map(given.get, RESULTS)))
    # a mistake may subtract infinities, and a wrong result may hold anything
    with np.errstate(all="ignore"):
        if len(arrays) == 2:
            return diagnose_merge(given, *arrays)
        search = Search(arrays, options, given, spec, kernel, near, shown.begin, Budget(seconds))
        with shown:
            found = search.run(pairs)
        search = None  # `shown` refers to it, and its arrays would stay until the next collection of cycles
    changed = () if kernel is None else tuple(sorted(kernel.changed))
    words = "" if dialect == "refattn" else call.results.words
    return dataclasses.replace(found, changed=changed, dialect=words)


def _under_callers_settings(kernel):
    """The kernel with its warnings as they were where `diagnose` was called."""
    settings = np.geterr()

    def run(*arrays, **options):
        with np.errstate(**settings):
            return kernel(*arrays, **options)

    return run


class Search:
    """One call of `diagnose`: `given` is what the kernel gave for `arrays` and `options`."""

    def __init__(self, arrays, options, given, spec, kernel, near, progress, budget):
        self.start, self.budget, self.progress = time.monotonic(), budget, progress
        self.arrays, self.options, self.given, self.kernel, self.near = arrays, options, given, kernel, near
        self.inferred = spec is None
        function = form_of(arrays, options).function
        self.checked = with_axis_hint(checked_call, function, arrays, options)
        self.spec = kernel_spec(spec, given[OUTPUT].dtype)
        self.tried, self.whole = 0, True
        # single mistakes that are only compared on a small sample, and how many not even there
        self._later, self._untried = [], 0
        # what Ctrl-C leaves: all fits, and the search under another spec
        self._all_fits, self._under = [], None
        self.ranking = self.look = None
        self.also = None  # a sequence to look at in any case

    def run(self, pairs) -> Diagnosis:
        """The whole search. It ends as soon as something explains the result; what costs most comes last."""
        agree = shapes_agree(self.given, self.checked.output_shape)
        otherwise = not agree or mostly_wrong(self.checked, self.given, self.spec)
        if otherwise:
            self.progress("other axis orders")
            how = self.arrays, self.options, self.given, self.spec, self.budget
            if order := in_another_order(*how, self.kernel is not None):
                return self._done("explained", (order,))
        if not agree:
            return diagnose_shape(self.checked, self.given, self.spec, self.start)
        self._choose_sample()
        self._judge_result()
        if self.use.passed:
            return self._done("agrees", (self._seen("", "the result agrees with the reference"),))
        if self.inferred and (held := held_format(self.given[OUTPUT], self.spec.output)):
            return self._as_held(held, pairs)
        self.ranking = Ranking(self.evidence, self.budget)
        with self.budget.keeping(MEASURED):
            fits = self._predict_single_mistakes()
        if unwritten := never_written(self.given):
            others = self._findings(self.ranking.explanations(fits))
            return self._done("explained", (self._seen(*unwritten), *others))
        if not self._explained(fits):
            how = self.arrays, self.options, self.given, self.spec, self.budget
            if otherwise and (reading := some_read_otherwise(*how)):
                return self._done("explained", (reading,))
            with self.budget.keeping(MEASURED):
                fits += self._predict_mistakes_with_a_number()
        seen = None
        if not self._explained(fits):
            if row := self._isolated():
                return self._done("explained", (self._seen(*row),))
            seen = self._measure()
            if seen is not None:
                fits = fits + self._predict_with_tiles(seen.tiles)
            known = self.kernel is not None or (seen is not None and seen.complete)
            if self._later and not (known or self._explained(fits)):
                fits = fits + self._fitted(self._later)
            if pairs and not known and not self.evidence.baseline.explains:
                fits = self._predict_other_tiles_and_pairs(fits)
        self.budget.reserved = 0.0
        explanations = self.ranking.explanations(fits)
        if explanations and explanations[0].better:
            if (sequence := self._contradicted(explanations[0])) is not None:
                return self._looking_at(sequence, pairs)
            if not self._leaves_error(explanations[0]):
                return self._explain(explanations)
            for explanation in explanations:
                explanation.better = False
            seen = seen or self._measure()
        if seen is not None and seen.confident:
            return self._done("described", self._findings(explanations), xray=seen)
        return self._locate(explanations, seen)

    def _isolated(self):
        """(id, words) when all but one row agrees; None where that is not known."""
        if self.whole:
            return self.budget.attempt("judge", ONE_ROW, isolated, self.evidence)
        return None if self.look is None else self.look.only_row

    def _as_held(self, held, pairs):
        """The search under the spec of the format whose numbers the output holds."""
        words = held_in_words(held, self.given[OUTPUT].dtype)
        what = (self.arrays, self.options, self.given, held, self.kernel, self.near, self.progress)
        search = Search(*what, self.budget)
        self._under = words, search
        found = search.run(pairs)
        if found.verdict == "agrees":
            says = f"{words[:1].upper()}{words[1:]}. With it the result agrees."
            return self._done("explained", (self._seen("format", says),))
        return dataclasses.replace(found, held=words)

    def _contradicted(self, explanation):
        """A sequence that was not looked at and is right, though the explanation says otherwise."""
        samples = None if self.whole or self.also is not None else first_look(self.checked)
        if samples is None:
            return None
        part = "whether the explanation holds in other sequences"
        wide = self.budget.attempt("evidence", part, self.evidence.on, samples)
        return None if wide is None else wide.contradicted_at(explanation.best.hypothesis)

    def _looking_at(self, sequence, pairs):
        """The search with one more sequence in its sample."""
        what = (self.arrays, self.options, self.given, self.spec, self.kernel, self.near, self.progress)
        search = Search(*what, self.budget)
        search.also, search.inferred = sequence, self.inferred
        self._under = "", search
        self.budget.reserved = 0.0
        return search.run(pairs)

    def so_far(self, part) -> Diagnosis:
        """What was found when Ctrl-C ended this part of the search; nothing more is computed."""
        if self._under is not None:
            words, search = self._under
            return dataclasses.replace(search.so_far(part), held=words)
        self.budget.ends(part)
        explanations = [] if self.ranking is None else self.ranking.explanations(self._all_fits)
        findings = tuple(self._finding(explanation, False) for explanation in explanations)
        explained = bool(explanations) and explanations[0].better
        found = self._done("explained" if explained else "unexplained", findings)
        return dataclasses.replace(found, interrupted=True)

    def _leaves_error(self, explanation):
        """Whether an explanation leaves a part of the error that rounding does not make."""
        finding = self._finding(explanation, True)
        return not finding.rounding and finding.bound_used > 1 and finding.left > PARTLY

    def _measure(self):
        """What the kernel does, measured where it can be called, else estimated from its result; None where
        it cannot be told.
        """
        # the X-ray imports parts of this room
        from refattn.oracle.imaging.probes import CannotProbe
        from refattn.oracle.imaging.xray import xray_of_kernel, xray_of_outputs

        what = (self.arrays, self.options, self.given, self.spec)
        seconds, worst = max(self.budget.left, 1.0), None if self.whole else self.worst
        try:
            if self.kernel is None:
                self.progress("estimating what the kernel does")
                return xray_of_outputs(*what, min(0.7 * seconds, ESTIMATE), worst)
            self.progress("measuring what the kernel does")
            return xray_of_kernel(self.kernel, *what, seconds, self.progress, worst)
        except (NotImplementedError, CannotProbe):
            return None

    # sample

    def _choose_sample(self):
        """All of the result, or as much of a large one as the time allows, its worst place included."""
        shape = self.checked.output_shape
        samples = choose_samples(self.checked)
        rows = sum(s.sequences.size * s.heads.size * s.rows.size for s in samples)
        self.whole = rows * shape[-1] >= np.prod(shape, dtype=np.int64)
        self.worst = (-1, 0) if self.whole else self._worst_place(shape)
        self.evidence = self._evidence(WHOLE_WORK) if self.whole else self._affordable_evidence()

    def _worst_place(self, shape):
        """(sequence, head) or (sequence, head, row) to look at."""
        if self.near is None or self.checked.num_parts != 1:
            how = self.checked, self.arrays, self.options, self.given, self.spec, self.budget.seconds
            self.look = self.budget.run("look", look_at, *how)
            if self.look is not None:
                return self.look.worst[1:]
            samples = first_look(self.checked)
            if samples is None:
                return -1, 0
            return Evidence(self.checked, self.given, self.spec, samples).worst_place()
        *batch, head, row = (operator.index(i) for i in tuple(self.near)[: len(shape) - 1])
        if len(batch) != len(shape) - 3 or any(
            not 0 <= i < size for i, size in zip((*batch, head, row), shape, strict=False)
        ):
            raise ValueError(
                f"near must be an index of the output, of shape {shape}; got near={self.near!r}."
            )
        return int(np.ravel_multi_index(batch, shape[:-3])) if batch else 0, head, row

    def _evidence(self, work):
        samples = choose_samples(self.checked, work, self.worst)
        if self.also is not None:
            samples = with_sequence(self.checked, samples, self.also, work)
        return self.budget.run("evidence", Evidence, self.checked, self.given, self.spec, samples)

    def _affordable_evidence(self):
        """As much of a large problem as is judged in a part of the time; little is judged first, to
        see what that costs.
        """
        little = self._evidence(LEAST_WORK)
        use = self.budget.run("judge", bound_use, little)
        for work in (WHOLE_WORK, WHOLE_WORK // 4):
            if 2 * work / LEAST_WORK * self.budget.costs["judge"] <= self.budget.seconds / 4:
                return self._evidence(work)
        self._own_use = use
        return little

    @cached_property
    def _small(self):
        """Evidence so little that thousands of hypotheses can be compared with it."""
        return self._evidence(PAIR_WORK)

    def _judge_result(self):
        """The use of the bound by the result as it is; what that costs is kept for the conclusion."""
        self.use = self.budget.run("judge", self._use_of_result)
        self.budget.reserved = min(CONCLUSION * self.budget.seconds, 3 * self.budget.costs["judge"])

    def _use_of_result(self, spec=None):
        """`check` of the result as it is, or the same of the sampled rows."""
        spec = spec or self.spec
        form = self.checked.form
        if not self.whole or not form.public:
            return bound_use(self.evidence, spec=spec) if spec is not self.spec else self._own_use
        how = {"lse": self.given.get(LSE), "spec": spec, "function": form.function}
        return Use.of(check(self.given[OUTPUT], *self.arrays, **how, **self.options))

    @cached_property
    def _own_use(self):
        return self.budget.run("judge", bound_use, self.evidence)

    # predict

    def _explained(self, fits):
        return any(map(self.ranking.better, fits))

    def _predict_single_mistakes(self):
        """Fits of single mistakes; when time is short, of those that help on a small sample, and the
        others are kept for later.
        """
        self.progress("every mistake of the catalogue alone")
        hypotheses = list(single_hypotheses(self.checked, self.given))
        sizes = [self.evidence.size(hypothesis) for hypothesis in hypotheses]
        if sum(sizes) * self.budget.costs.get("fit", 0.0) <= self.budget.left / 2:
            return self._fitted(hypotheses)
        screened = self._screened(hypotheses, sizes)
        self.tried += len(screened)
        nothing = self.budget.run(
            "screen", self._small.screen, Hypothesis(), size=self._small.size(Hypothesis())
        )
        helping = sorted(
            (index for index, left in screened.items() if left < CLEARLY * nothing), key=screened.__getitem__
        )
        fits, limit = {}, math.inf
        with self.budget.keeping(1 / 3):
            for index in helping:
                if screened[index] > limit or not self.budget.allows("fit", sizes[index]):
                    break
                fits[index] = self._fit(hypotheses[index], sizes[index])
                if fits[index] is not None and self.ranking.better(fits[index]):
                    # others that explain it leave about as little
                    limit = min(limit, TWINS * screened[index] + 1.0)
        if limit == math.inf:
            self._later = [hypothesis for index, hypothesis in enumerate(hypotheses) if index not in fits]
            self._untried = len(hypotheses) - len(screened)
        return [fits[index] for index in sorted(fits) if fits[index] is not None]

    def _screened(self, hypotheses, sizes):
        """What hypotheses leave of the error on a small sample, by their index; cheap ones are looked
        at first.
        """
        small, left = self._small, {}
        with self.budget.keeping(1 / 6):
            for index in sorted(range(len(hypotheses)), key=sizes.__getitem__):
                if self.budget.allows("screen", sizes[index]):
                    left[index] = self.budget.run(
                        "screen", small.screen, hypotheses[index], size=sizes[index]
                    )
        return left

    def _fit(self, hypothesis, size):
        """The fit of one hypothesis, kept for what Ctrl-C leaves; None where it does not apply."""
        fit = self.budget.run("fit", self.evidence.fit, hypothesis, size=size)
        if fit is not None:
            self._all_fits.append(fit)
        return fit

    def _fitted(self, hypotheses):
        """Fits of the hypotheses, of as many as the time allows."""
        fits, untried = [], 0
        for hypothesis in hypotheses:
            size = self.evidence.size(hypothesis)
            if self.budget.allows("fit", size):
                fits.append(self._fit(hypothesis, size))
            else:
                untried += 1  # a cheaper one may still fit
        untried = min(untried, self._untried) if self._later else untried  # the others were screened
        if untried:
            self.budget.ends(f"{untried} mistakes alone")
        found = [fit for fit in fits if fit is not None]
        self.tried += 0 if self._later else len(found)
        return found

    def _predict_mistakes_with_a_number(self):
        """Fits of mistakes with a number of their own."""
        self.progress("mistakes with a free number: scale, factor, constant")
        more = fitted_hypotheses(self.evidence, self.budget)
        self.tried += len(more)
        self._all_fits += more
        return more

    def _predict_with_tiles(self, tiles):
        """Fits of mistakes of the catalogue with tile sizes that were measured, not among the usual."""
        tiles = tuple(tile for tile in tiles if tile not in TILES_TO_TRY)
        if not tiles:
            return []
        return self._fitted(single_hypotheses(self.checked, self.given, tiles, tiled_only=True))

    def _predict_other_tiles_and_pairs(self, fits):
        for search, words in (
            (other_tiles, "other tile sizes"),
            (pairs_of_mistakes, "two mistakes together"),
        ):
            if not self._explained(fits):
                self.progress(words)
                if self.budget.left <= 0:
                    self.budget.ends(words)
                    continue
                more, count = search(self.evidence, self._small, fits, self.budget)
                fits, self.tried = fits + more, self.tried + count
                self._all_fits += more
        return fits

    # conclude; `ranking.py` has ranked the fits

    def _explain(self, explanations):
        """The best explanation, its names told apart as far as possible, and what else explains it."""
        apart, calls = self._tell_names_apart(explanations[0])
        done = self._done("explained", self._findings(explanations))
        return dataclasses.replace(done, tell_apart=apart, told_apart_by=tuple(calls))

    def _tell_names_apart(self, best):
        """Words for a call on which the names of an explanation differ, and the calls on which the kernel
        showed that some are not meant, which leave it.
        """
        apart, calls = "", []
        if self.kernel is not None and len(best.fits) > 1:
            self.progress(f"running the kernel to tell {' and '.join(best.ids)} apart")
            hypotheses = [fit.hypothesis for fit in best.fits]
            left, calls = told_apart(
                self.checked, hypotheses, self.kernel, self.spec, self.given, self.budget
            )
            best.fits = [fit for fit in best.fits if any(fit.hypothesis is known for known in left)]
        if len(best.ids) > 1:
            first = {fit.hypothesis.id: fit.hypothesis for fit in reversed(best.fits)}
            named = [first[name] for name in best.ids]
            apart = suggestion(self.checked, named[:4], self.spec, self.given, self.budget)
            if apart and self.kernel is None:
                apart += ", or hand the kernel itself to diagnose() in place of its output"
        return apart, calls

    def _locate(self, explanations, seen):
        """Nothing explains it: where the error lives, and whether coarser arithmetic would."""
        self.progress("where the error lives")
        location = locate(*self._widest())
        words = " ".join(filter(None, [location, self.look and self.look.words, *self._coarser()]))
        return self._done("unexplained", self._findings(explanations), words, xray=seen)

    def _widest(self):
        """The evidence to look for the place of the error on, as large as the time allows, and the
        use of its bound.
        """
        unit = self.budget.costs["evidence"] + self.budget.costs["judge"]
        work = WHOLE_WORK * min(self.budget.left / 2 / max(unit, 1e-9), LOCATION_WORK)
        if self.whole or work < 2 * WHOLE_WORK:
            return self.evidence, self._own_use
        evidence = self._evidence(int(work))
        return evidence, self.budget.run("judge", bound_use, evidence)

    def _coarser(self):
        """Whether the result is right for arithmetic less exact than the spec claims."""
        for name in COARSER:
            spec = KernelSpec.flash(name).replace(output=self.spec.output, lse=self.spec.lse)
            if spec.weight.unit_roundoff <= self.spec.weight.unit_roundoff:
                continue
            use = self.budget.attempt("judge", "less exact arithmetic", self._use_of_result, spec)
            if use is not None and use.passed:
                yield f"It passes as a kernel that multiplies in {name}: spec={name!r}, if that is meant."
                return

    # words

    def _seen(self, id, says):
        """What shows in the result itself."""
        baseline = self.evidence.baseline
        return Finding(id, says, "", self.use.used, baseline.residual, True, seen=True)

    def _findings(self, explanations: list[Explanation]) -> tuple[Finding, ...]:
        return tuple(
            self._finding(explanation, index < JUDGED) for index, explanation in enumerate(explanations)
        )

    def _finding(self, explanation, judged):
        fit, ids = explanation.best, explanation.ids
        hypothesis = fit.hypothesis
        words = {other.hypothesis.id: other.hypothesis.words for other in reversed(explanation.fits)}
        same_name = (other.hypothesis for other in explanation.fits if other.hypothesis.id == hypothesis.id)
        tiles = sorted({other.tile for other in same_name})
        use = None
        if judged and explanation.better:
            part = "bounds of the explanations"
            use = self.budget.attempt("judge", part, bound_use, self.evidence, hypothesis)
        used = fit.used if use is None else use.used
        baseline, left = self.evidence.baseline, 0.0 if explanation.better else 1.0
        if baseline.residual and not baseline.mismatched:
            left = fit.residual / baseline.residual
        return Finding(
            hypothesis.id,
            hypothesis.says_with(tiles),
            hypothesis.remedy,
            used,
            fit.residual,
            explanation.better,
            tuple(ids[1:]),
            hypothesis.issues,
            left,
            tuple(words[name] for name in ids[1:]),
            any(mistake.rounding for mistake in hypothesis.mistakes),
        )

    def _done(self, verdict, findings=(), location="", xray=None):
        return Diagnosis(
            verdict,
            findings,
            location,
            self.tried,
            time.monotonic() - self.start,
            not self.whole,
            unfinished=tuple(self.budget.unfinished),
            limit=self.budget.seconds,
            xray=xray,
        )
