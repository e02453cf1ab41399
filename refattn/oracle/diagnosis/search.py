"""`diagnose`: which mistake or foreign convention explains a wrong result."""

from __future__ import annotations

import dataclasses
import math
import operator
import time
from functools import cached_property

import numpy as np

from refattn.calls.arrays import as_float_array
from refattn.oracle.arithmetic.spec import KernelSpec, kernel_spec
from refattn.oracle.diagnosis.axis_order import diagnose_shape, readings
from refattn.oracle.diagnosis.budget import Budget
from refattn.oracle.diagnosis.findings import Diagnosis, Finding
from refattn.oracle.diagnosis.fit_bound import Use, bound_use
from refattn.oracle.diagnosis.hypotheses import (
    WHOLE_WORK,
    Evidence,
    Hypothesis,
    choose_samples,
    single_hypotheses,
    worst_place,
)
from refattn.oracle.diagnosis.location import isolated, locate, never_written
from refattn.oracle.diagnosis.merged_states import diagnose_merge
from refattn.oracle.diagnosis.pair_search import PAIR_WORK, other_tiles, pairs_of_mistakes
from refattn.oracle.diagnosis.parameter_fits import fitted_hypotheses
from refattn.oracle.diagnosis.ranking import CLEARLY, Explanation, Ranking
from refattn.oracle.diagnosis.tell_apart import run_kernel, suggestion, told_apart
from refattn.oracle.inputs.families import AttentionInputs
from refattn.oracle.mistakes.run import checked_call
from refattn.oracle.verdict.check import check

COARSER = ("tfloat32", "float16", "bfloat16")
JUDGED = 4  # explanations whose bound is that of `check`
CONCLUSION = 0.2  # of the time, at most, kept for what follows the search
TWINS = (
    4.0  # times what the best explanation leaves, up to which others are compared with it when time is short
)
LEAST_WORK = 2**20  # multiplications of a hypothesis about a large problem when time is short
LOCATION_WORK = 16  # times the work of a hypothesis, spent on where an error lives


def diagnose(
    actual, *arrays, lse=None, spec=None, pairs=True, seconds=20.0, near=None, progress=None, **options
) -> Diagnosis:
    """Find the mistake or foreign convention that explains a result.

    Parameters
    ----------
    actual : array_like or callable
        Output of the kernel; in the wrong axis order it is recognised by its shape or its numbers. Or the
        kernel itself, taking `arrays` and `options` and returning output or (output, lse): where two
        mistakes predict the same numbers on these inputs, it is run on others that tell them apart.
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
        looked at there.
    progress : callable, optional
        Called with a line of text before each part of the search: `print`.
    **options
        Of the function; `rope=Rope(...)` when query and key are given before rotation.

    Returns
    -------
    Diagnosis

    Raises
    ------
    TypeError, ValueError
        As the function itself, and for an `actual` of another size.

    Notes
    -----
    Large problems are sampled: a few sequences, heads and rows, so the cost is that of a few hundred
    small attentions. The verdict "agrees" is that of `check`, and so is `bound_used` of the best findings
    (`fit_bound`).

    Examples
    --------
    >>> import numpy as np, refattn
    >>> from refattn.oracle.diagnosis.search import diagnose
    >>> rng = np.random.default_rng(0)
    >>> query, key, value = (rng.standard_normal((2, 4, n, 8)) for n in (3, 7, 7))
    >>> from_torch = refattn.attention(query, key, value, causal=True, q_offset=0)
    >>> diagnose(from_torch, query, key, value, causal=True).best.remedy
    'q_offset=0'
    """
    kernel = _under_callers_settings(actual) if callable(actual) else None
    if kernel is not None:
        actual, lse = run_kernel(kernel, AttentionInputs("own data", "own data", "", arrays, options))
    with np.errstate(
        all="ignore"
    ):  # a mistake may subtract infinities, and a wrong result may hold anything
        if len(arrays) == 2:
            return diagnose_merge(actual, *arrays, lse=lse)
        search = Search(
            actual,
            arrays,
            lse,
            spec,
            options,
            kernel,
            near,
            progress or (lambda line: None),
            Budget(seconds),
        )
        return search.run(pairs)


def _under_callers_settings(kernel):
    """The kernel with its warnings as they were where `diagnose` was called."""
    settings = np.geterr()

    def run(*arrays, **options):
        with np.errstate(**settings):
            return kernel(*arrays, **options)

    return run


class Search:
    """One call of `diagnose`."""

    def __init__(self, actual, arrays, lse, spec, options, kernel, near, progress, budget):
        self.start, self.budget = time.monotonic(), budget
        self.arrays, self.options, self.kernel, self.progress = arrays, options, kernel, progress
        self.checked = checked_call(*arrays, **options)
        self.actual, self.lse = (
            as_float_array(actual, "actual"),
            None if lse is None else as_float_array(lse, "lse"),
        )
        self.spec = kernel_spec(spec, self.actual.dtype)
        self.tried, self.whole, self.near = 0, True, near
        self._later, self._untried = (
            [],
            0,
        )  # single mistakes that are only compared on a small sample, and those not even there

    def run(self, pairs) -> Diagnosis:
        checked, shape = self.checked, self.checked.output_shape
        samples = choose_samples(checked)
        wrong_shape, shapes_agree = readings(self.actual, self.lse, shape)
        if not shapes_agree:
            return diagnose_shape(
                checked, wrong_shape, self.spec, samples, shape, self.actual.shape, self.start
            )
        self.whole = sum(s.sequences.size * s.heads.size * s.rows.size for s in samples) * shape[
            -1
        ] >= np.prod(shape, dtype=np.int64)
        self.worst = self._worst_place(shape)
        self.evidence = self._evidence(WHOLE_WORK) if self.whole else self._affordable_evidence()
        self.use = self.budget.run("judge", self._use_of_result)
        self.budget.reserved = min(CONCLUSION * self.budget.seconds, 3 * self.budget.costs["judge"])
        self.ranking = Ranking(self.evidence, self.budget)
        self.progress("every mistake of the catalogue alone")
        fits = self._alone(list(single_hypotheses(checked, self.lse is not None)))
        if self.use.passed and not self._explained(fits):
            return self._done("agrees", (self._plain("", "the result agrees with the reference"),))
        if unwritten := never_written(self.actual, self.lse):
            return self._done(
                "explained", (self._plain(*unwritten), *self._findings(self.ranking.explanations(fits)))
            )
        if not self._explained(fits):
            self.progress("mistakes with a free number: scale, factor, constant")
            more = fitted_hypotheses(self.evidence, self.budget)
            fits, self.tried = fits + more, self.tried + len(more)
            fits += [] if self._explained(fits) else self._fitted(self._later)
        if not self._explained(fits):
            if self.whole and (
                lonely := self.budget.attempt("judge", "a single wrong row", isolated, self.evidence)
            ):
                return self._done("explained", (self._plain(*lonely),))
            if pairs and not self.evidence.baseline.explains:
                fits = self._search_on(fits)
        self.budget.reserved = 0.0
        return self._conclude(self.ranking.explanations(fits))

    def _evidence(self, work):
        samples = choose_samples(self.checked, work, self.worst)
        return self.budget.run("evidence", Evidence, self.checked, self.actual, self.lse, self.spec, samples)

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

    def _worst_place(self, shape):
        """(sequence, head) or (sequence, head, row) to look at."""
        if self.whole:
            return -1, 0
        if self.near is None or self.checked.num_parts != 1:
            return worst_place(self.checked, self.actual, self.lse, self.spec)
        *batch, head, row = (operator.index(i) for i in tuple(self.near)[: len(shape) - 1])
        if len(batch) != len(shape) - 3 or any(
            not 0 <= i < size for i, size in zip((*batch, head, row), shape, strict=False)
        ):
            raise ValueError(
                f"near must be an index of the output, of shape {shape}; got near={self.near!r}."
            )
        return int(np.ravel_multi_index(batch, shape[:-3])) if batch else 0, head, row

    def _alone(self, hypotheses):
        """Fits of single mistakes; of those, when time is short, that help on a small sample, and the
        others are kept for later.
        """
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
                fits[index] = self.budget.run("fit", self.evidence.fit, hypotheses[index], size=sizes[index])
                if fits[index] is not None and self.ranking.better(fits[index]):
                    limit = min(
                        limit, TWINS * screened[index] + 1.0
                    )  # others that explain it leave about as little
        if limit == math.inf:
            self._later = [hypothesis for index, hypothesis in enumerate(hypotheses) if index not in fits]
            self._untried = len(hypotheses) - len(screened)
        return [fits[index] for index in sorted(fits) if fits[index] is not None]

    def _screened(self, hypotheses, sizes):
        """What hypotheses leave of the error on a small sample, by their index; cheap ones are looked
        at first.
        """
        small, left = self._small, {}
        with self.budget.keeping(1 / 2):
            for index in sorted(range(len(hypotheses)), key=sizes.__getitem__):
                if self.budget.allows("screen", sizes[index]):
                    left[index] = self.budget.run(
                        "screen", small.screen, hypotheses[index], size=sizes[index]
                    )
        return left

    def _fitted(self, hypotheses):
        """Fits of the hypotheses, of as many as the time allows."""
        fits, untried = [], 0
        for hypothesis in hypotheses:
            size = self.evidence.size(hypothesis)
            if self.budget.allows("fit", size):
                fits.append(self.budget.run("fit", self.evidence.fit, hypothesis, size=size))
            else:
                untried += 1  # a cheaper one may still fit
        if untried:
            self.budget.ends(f"{self._untried or untried} mistakes alone")
        found = [fit for fit in fits if fit is not None]
        self.tried += 0 if self._later else len(found)
        return found

    @cached_property
    def _small(self):
        return self._evidence(PAIR_WORK)

    def _explained(self, fits):
        return any(map(self.ranking.better, fits))

    def _search_on(self, fits):
        for search, words in (
            (other_tiles, "other tile sizes"),
            (pairs_of_mistakes, "two mistakes together"),
        ):
            if not self._explained(fits):
                self.progress(f"{words}, for up to {max(self.budget.left, 0):.0f} s")
                if self.budget.left <= 0:
                    self.budget.ends(words)
                    continue
                more, count = search(self.evidence, self._small, fits, self.budget)
                fits, self.tried = fits + more, self.tried + count
        return fits

    def _conclude(self, explanations):
        best = explanations[0] if explanations else None
        if best is None or not best.better:
            self.progress("where the error lives")
            location = locate(*self._widest())
            return self._done(
                "unexplained", self._findings(explanations), " ".join([location, *self._coarser()])
            )
        apart, calls = "", []
        if len(best.ids) > 1 or (len(best.fits) > 1 and self.kernel is not None):
            hypotheses = [fit.hypothesis for fit in best.fits]
            if self.kernel is not None:
                self.progress(f"running the kernel to tell {' and '.join(best.ids)} apart")
                left, calls = told_apart(
                    self.checked, hypotheses, self.kernel, self.spec, self.lse is not None, self.budget
                )
                best.fits = [
                    fit for fit in best.fits if any(fit.hypothesis is hypothesis for hypothesis in left)
                ]
            if len(best.ids) > 1:
                named = [
                    next(fit.hypothesis for fit in best.fits if fit.hypothesis.id == name)
                    for name in best.ids
                ]
                apart = suggestion(self.checked, named[:4], self.spec, self.lse is not None, self.budget)
                if apart and self.kernel is None:
                    apart += ", or hand the kernel itself to diagnose() in place of its output"
        done = self._done("explained", self._findings(explanations))
        return dataclasses.replace(done, tell_apart=apart, told_apart_by=tuple(calls))

    # numbers

    def _use_of_result(self, spec=None):
        """`check` of the result as it is, or the same of the sampled rows."""
        spec = spec or self.spec
        form = self.checked.form
        if not self.whole or not form.public:
            return bound_use(self.evidence, spec=spec) if spec is not self.spec else self._own_use
        report = check(
            self.actual, *self.arrays, lse=self.lse, spec=spec, function=form.function, **self.options
        )
        return Use.of(report)

    @cached_property
    def _own_use(self):
        return self.budget.run("judge", bound_use, self.evidence)

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

    def _plain(self, id, says):
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
        tiles = sorted(
            {other.hypothesis.tile for other in explanation.fits if other.hypothesis.id == hypothesis.id}
        )
        use = (
            self.budget.attempt("judge", "bounds of the explanations", bound_use, self.evidence, hypothesis)
            if judged and explanation.better
            else None
        )
        used = fit.used if use is None else use.used
        baseline = self.evidence.baseline
        return Finding(
            hypothesis.id,
            hypothesis.says_with(tiles),
            hypothesis.remedy,
            used,
            fit.residual,
            explanation.better,
            tuple(ids[1:]),
            hypothesis.issues,
            fit.residual / baseline.residual
            if baseline.residual and not baseline.mismatched
            else 0.0
            if explanation.better
            else 1.0,
            tuple(words[name] for name in ids[1:]),
            any(mistake.rounding for mistake in hypothesis.mistakes),
        )

    def _done(self, verdict, findings=(), location=""):
        return Diagnosis(
            verdict,
            findings,
            location,
            self.tried,
            time.monotonic() - self.start,
            not self.whole,
            unfinished=tuple(self.budget.unfinished),
            limit=self.budget.seconds,
        )
