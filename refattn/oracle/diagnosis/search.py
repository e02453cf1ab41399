"""`diagnose`: which mistake or foreign convention explains a wrong result."""

from __future__ import annotations

import dataclasses
import operator
import time

import numpy as np

from refattn.calls.arrays import as_float_array
from refattn.oracle.diagnosis.axis_order import diagnose_shape, readings
from refattn.oracle.diagnosis.findings import Diagnosis, Finding
from refattn.oracle.diagnosis.fit_bound import Use, bound_use
from refattn.oracle.diagnosis.hypotheses import Evidence, choose_samples, single_hypotheses, worst_place
from refattn.oracle.inputs.families import AttentionInputs
from refattn.oracle.mistakes.run import checked_call, dense_parts
from refattn.oracle.diagnosis.location import isolated, locate, never_written
from refattn.oracle.diagnosis.merged_states import diagnose_merge
from refattn.oracle.diagnosis.pair_search import PAIR_WORK, other_tiles, pairs_of_mistakes
from refattn.oracle.diagnosis.parameter_fits import fitted_hypotheses
from refattn.oracle.diagnosis.ranking import Explanation, Ranking
from refattn.oracle.arithmetic.spec import KernelSpec, kernel_spec
from refattn.oracle.diagnosis.tell_apart import run_kernel, suggestion, told_apart
from refattn.oracle.verdict.check import check

COARSER = ("tfloat32", "float16", "bfloat16")
JUDGED = 4  # explanations whose bound is that of `check`


def diagnose(actual, *arrays, lse=None, spec=None, pairs=True, seconds=20.0, near=None, progress=None, **options) -> Diagnosis:
    """Find the mistake or foreign convention that explains a result.

    Parameters
    ----------
    actual : array_like or callable
        Output of the kernel; in the wrong axis order it is recognised by its shape or its numbers. Or the kernel itself, taking `arrays` and
        `options` and returning output or (output, lse): where two mistakes predict the same numbers on these inputs, it is run on others that
        tell them apart.
    *arrays : array_like
        query, key, value of `attention`, `packed_attention` (with `cu_q`, `cu_kv`), `paged_attention` (with `block_table`) or
        `block_local_attention` (with `block_size`); or the six arrays of `latent_attention`; or `outputs, lses` of `merge_states`.
    lse : array_like, optional
        The kernel's lse. Some mistakes show nowhere else.
    spec : KernelSpec, str, dtype or None
        The arithmetic the kernel claims; default, as for `check`: a fused kernel of the dtype of `actual`.
    pairs : bool
        Try two mistakes together when none alone explains the result.
    seconds : float
        Time for other tile sizes and pairs, when no single mistake explains the result.
    near : tuple of int, optional
        Index of an element of the output that is wrong, `check(...).output.worst`: large problems are looked at there.
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
    Large problems are sampled: a few sequences, heads and rows, so the cost is that of a few hundred small attentions. The verdict "agrees"
    is that of `check`, and so is `bound_used` of the best findings (`fit_bound`).

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
    kernel = actual if callable(actual) else None
    if kernel is not None:
        actual, lse = run_kernel(kernel, AttentionInputs("own data", "own data", "", arrays, options))
    if len(arrays) == 2:
        return diagnose_merge(actual, *arrays, lse=lse)
    search = Search(actual, arrays, lse, spec, options, kernel, near, progress or (lambda line: None))
    return search.run(pairs, seconds)


class Search:
    """One call of `diagnose`."""

    def __init__(self, actual, arrays, lse, spec, options, kernel, near, progress):
        self.start = time.monotonic()
        self.arrays, self.options, self.kernel, self.progress = arrays, options, kernel, progress
        self.checked = checked_call(*arrays, **options)
        self.actual, self.lse = as_float_array(actual, "actual"), None if lse is None else as_float_array(lse, "lse")
        self.spec = kernel_spec(spec, self.actual.dtype)
        self.tried, self.whole, self.near = 0, True, near

    def run(self, pairs, seconds) -> Diagnosis:
        checked, shape = self.checked, self.checked.output_shape
        samples = choose_samples(checked)
        wrong_shape, shapes_agree = readings(self.actual, self.lse, shape)
        if not shapes_agree:
            return diagnose_shape(checked, wrong_shape, self.spec, samples, shape, self.actual.shape, self.start)
        self.whole = sum(s.sequences.size * s.heads.size * s.rows.size for s in samples) * shape[-1] >= np.prod(shape, dtype=np.int64)
        self.worst = self._worst_place(shape)
        self.evidence = Evidence(checked, self.actual, self.lse, self.spec, samples if self.whole else choose_samples(checked, worst=self.worst))
        self.ranking = Ranking(self.evidence)
        self.use = self._use_of_result()
        self.progress("every mistake of the catalogue alone")
        fits = self._fitted(single_hypotheses(checked, self.lse is not None))
        if self.use.passed and not self._explained(fits):
            return self._done("agrees", (self._plain("", "the result agrees with the reference"),))
        if unwritten := never_written(self.actual, self.lse):
            return self._done("explained", (self._plain(*unwritten), *self._findings(self.ranking.explanations(fits))))
        if not self._explained(fits):
            self.progress("mistakes with a free number: scale, factor, constant")
            more = fitted_hypotheses(self.evidence)
            fits, self.tried = fits + more, self.tried + len(more)
        if not self._explained(fits):
            if self.whole and (lonely := isolated(self.evidence)):
                return self._done("explained", (self._plain(*lonely),))
            if pairs and not self.evidence.baseline.explains:
                fits = self._search_on(fits, seconds)
        return self._conclude(self.ranking.explanations(fits))

    def _worst_place(self, shape):
        """(sequence, head) or (sequence, head, row) to look at."""
        if self.whole:
            return -1, 0
        if self.near is None or len(dense_parts(self.checked)) != 1:
            return worst_place(self.checked, self.actual, self.lse, self.spec)
        *batch, head, row = (operator.index(i) for i in tuple(self.near)[: len(shape) - 1])
        if len(batch) != len(shape) - 3 or any(not 0 <= i < size for i, size in zip((*batch, head, row), shape, strict=False)):
            raise ValueError(f"near must be an index of the output, of shape {shape}; got near={self.near!r}.")
        return int(np.ravel_multi_index(batch, shape[:-3])) if batch else 0, head, row

    def _fitted(self, hypotheses):
        fits = [fit for fit in map(self.evidence.fit, hypotheses) if fit is not None]
        self.tried += len(fits)
        return fits

    def _explained(self, fits):
        return any(map(self.ranking.better, fits))

    def _search_on(self, fits, seconds):
        small = Evidence(self.checked, self.actual, self.lse, self.spec, choose_samples(self.checked, PAIR_WORK, self.worst))
        deadline = time.monotonic() + seconds
        for search, words in ((other_tiles, "other tile sizes"), (pairs_of_mistakes, "two mistakes together")):
            if not self._explained(fits):
                self.progress(f"{words}, for up to {max(deadline - time.monotonic(), 0):.0f} s")
                more, count = search(self.evidence, small, fits, deadline)
                fits, self.tried = fits + more, self.tried + count
        return fits

    def _conclude(self, explanations):
        best = explanations[0] if explanations else None
        if best is None or not best.better:
            self.progress("where the error lives")
            location = locate(self.checked, self.actual, self.lse, self.spec, self.worst)
            return self._done("unexplained", self._findings(explanations), " ".join([location, *self._coarser()]))
        apart, calls = "", []
        if len(best.ids) > 1 or len(best.fits) > 1 and self.kernel is not None:
            hypotheses = [fit.hypothesis for fit in best.fits]
            if self.kernel is not None:
                self.progress(f"running the kernel to tell {' and '.join(best.ids)} apart")
                left, calls = told_apart(self.checked, hypotheses, self.kernel, self.spec, self.lse is not None)
                best.fits = [fit for fit in best.fits if any(fit.hypothesis is hypothesis for hypothesis in left)]
            if len(best.ids) > 1:
                named = [next(fit.hypothesis for fit in best.fits if fit.hypothesis.id == name) for name in best.ids]
                apart = suggestion(self.checked, named[:4], self.spec, self.lse is not None)
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
            return bound_use(self.evidence, spec=spec)
        report = check(self.actual, *self.arrays, lse=self.lse, spec=spec, function=form.function, **self.options)
        return Use.of(report)

    def _coarser(self):
        """Whether the result is right for arithmetic less exact than the spec claims."""
        for name in COARSER:
            spec = KernelSpec.flash(name).replace(output=self.spec.output, lse=self.spec.lse)
            if spec.weight.unit_roundoff > self.spec.weight.unit_roundoff and self._use_of_result(spec).passed:
                yield f"It passes as a kernel that multiplies in {name}: spec={name!r}, if that is meant."
                return

    def _plain(self, id, says):
        baseline = self.evidence.baseline
        return Finding(id, says, "", self.use.used, baseline.residual, True, seen=True)

    def _findings(self, explanations: list[Explanation]) -> tuple[Finding, ...]:
        return tuple(self._finding(explanation, index < JUDGED) for index, explanation in enumerate(explanations))

    def _finding(self, explanation, judged):
        fit, ids = explanation.best, explanation.ids
        hypothesis = fit.hypothesis
        words = {other.hypothesis.id: other.hypothesis.words for other in reversed(explanation.fits)}
        tiles = sorted({other.hypothesis.tile for other in explanation.fits if other.hypothesis.id == hypothesis.id})
        used = bound_use(self.evidence, hypothesis).used if judged and explanation.better else fit.used
        baseline = self.evidence.baseline
        return Finding(
            hypothesis.id, hypothesis.says_with(tiles), hypothesis.remedy, used, fit.residual, explanation.better, tuple(ids[1:]), hypothesis.issues,
            fit.residual / baseline.residual if baseline.residual and not baseline.mismatched else 0.0 if explanation.better else 1.0,
            tuple(words[name] for name in ids[1:]), any(mistake.rounding for mistake in hypothesis.mistakes),
        )  # fmt: skip

    def _done(self, verdict, findings=(), location=""):
        return Diagnosis(verdict, findings, location, self.tried, time.monotonic() - self.start, not self.whole)
