"""`diagnose`: which mistake or foreign convention explains a wrong result."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from itertools import combinations, permutations

import numpy as np

from refattn.interop import as_float_array
from refattn.oracle.forms import checked_form, dense_parts, input_dtype, output_shape
from refattn.oracle.hypotheses import OTHER_TILES, Evidence, Fit, Hypothesis, choose_samples, single_hypotheses, worst_place
from refattn.oracle.location import isolated, locate, never_written
from refattn.oracle.mistakes.merge import MERGES, merged
from refattn.oracle.parameter_fits import fitted_hypotheses
from refattn.oracle.spec import kernel_spec

SAME = 0.02  # predictions closer than this share of the bound are the same prediction
CLEARLY = 0.7  # of the residual without a mistake, below which a hypothesis counts as an explanation
MOSTLY = 0.3  # the same for mistakes of rounding that leave single elements beyond the bound
PAIRS_AFTER_HIT = 600  # how long to look on for a better pair once one fits the small sample
CONFIRMED_PAIRS = 16
PAIR_WORK = 2**15  # multiplications a prediction while all pairs are tried
AXES = ("batch", "heads", "length", "dim")


@dataclass(frozen=True)
class Finding:
    """One explanation.

    Attributes
    ----------
    id : str
        Of the mistake; two joined by " + ".
    says : str
        What the kernel did.
    remedy : str
        What makes the result agree, where an option or another reading does.
    bound_used : float
        Largest error that remains, over what rounding can explain; at most 1 means that it explains everything.
    residual : float
        Root mean square of what remains, in the same unit.
    explains : bool
    same_as : tuple of str
        Other mistakes that predict the same numbers on these inputs.
    issues : tuple of str
        Public reports.
    """

    id: str
    says: str
    remedy: str
    bound_used: float
    residual: float
    explains: bool
    same_as: tuple[str, ...] = ()
    issues: tuple[str, ...] = ()

    def __str__(self):
        if not self.explains:
            return f"{self.says}: the error shrinks to {self.residual:.3g} of the bound (rms), but does not vanish"
        spelled = any(sign in self.remedy for sign in "=()")  # an option or an expression, not advice
        closing = f"with {self.remedy} the output agrees" if spelled else "that reproduces the output"
        text = f"{self.says}; {closing} (bound used {self.bound_used:.2g})"
        if self.remedy and not spelled:
            text += f"; to do: {self.remedy}"
        if self.same_as:
            text += f"; on these inputs the same as: {', '.join(self.same_as)}"
        if self.issues:
            text += f" [seen in {self.issues[0]}]"
        return text


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found, best first.

    Attributes
    ----------
    verdict : {"agrees", "explained", "unexplained"}
    findings : tuple of Finding
    location : str
        Where the error lives; filled when nothing explains it.
    tried : int
        Hypotheses looked at.
    seconds : float
    sampled : bool
        Whether only some heads and rows were looked at.
    """

    verdict: str
    findings: tuple[Finding, ...] = ()
    location: str = ""
    tried: int = 0
    seconds: float = 0.0
    sampled: bool = False

    @property
    def best(self) -> Finding | None:
        return self.findings[0] if self.findings else None

    def __str__(self):
        if self.verdict == "agrees":
            return f"The result agrees with the reference (bound used {self.findings[0].bound_used:.2g}); nothing to explain."
        lines = []
        if self.verdict == "explained":
            lines += [str(self.findings[0])]
            lines += [f"  also possible: {finding}" for finding in self.findings[1:4] if finding.explains]
        else:
            lines += [f"None of {self.tried} hypotheses explains the result.", self.location]
            lines += [f"  nearest: {finding}" for finding in self.findings[:3]]
        return "\n".join(lines)

    def to_json(self) -> dict:
        """Plain values, for reports."""
        return {
            "verdict": self.verdict,
            "findings": [vars(finding) | {"same_as": list(finding.same_as), "issues": list(finding.issues)} for finding in self.findings],
            "location": self.location, "tried": self.tried, "seconds": self.seconds, "sampled": self.sampled,
        }  # fmt: skip


def diagnose(actual, *arrays, lse=None, spec=None, pairs=True, seconds=20.0, **options) -> Diagnosis:
    """Find the mistake or foreign convention that explains a result.

    Parameters
    ----------
    actual : array_like
        Output of the kernel. In the wrong axis order it is recognised by its shape or its numbers.
    *arrays : array_like
        query, key, value of `attention`, `packed_attention` (with `cu_q`, `cu_kv`) or `paged_attention`
        (with `block_table`); or the six arrays of `latent_attention`; or `outputs, lses` of `merge_states`.
    lse : array_like, optional
        The kernel's lse. Some mistakes show nowhere else.
    spec : KernelSpec, str or dtype, optional
        The arithmetic the kernel claims; default: a fused kernel of the query's dtype.
    pairs : bool
        Try two mistakes together when none alone explains the result.
    seconds : float
        Time for other tile sizes and pairs, when no single mistake explains the result.
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
    Large problems are sampled: a few sequences, heads and rows, so the cost is that of a few hundred small attentions.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> from refattn.oracle.diagnosis import diagnose
    >>> rng = np.random.default_rng(0)
    >>> query, key, value = (rng.standard_normal((2, 4, n, 8)) for n in (3, 7, 7))
    >>> from_torch = refattn.attention(query, key, value, causal=True, q_offset=0)
    >>> diagnose(from_torch, query, key, value, causal=True).best.remedy
    'q_offset=0'
    """
    start = time.monotonic()
    if len(arrays) == 2:
        return _diagnose_merge(actual, *arrays, lse=lse)
    checked = checked_form(*arrays, **options)
    spec = kernel_spec(spec, input_dtype(checked))
    actual, lse = as_float_array(actual, "actual"), None if lse is None else as_float_array(lse, "lse")
    shape = output_shape(checked)
    readings, shapes_agree = _readings(actual, lse, shape)
    if not shapes_agree:
        return _by_shape(checked, readings, spec, choose_samples(checked), shape, actual.shape, start)
    samples = choose_samples(checked)
    whole = sum(s.sequences.size * s.heads.size * s.rows.size for s in samples) * shape[-1] >= np.prod(shape, dtype=np.int64)
    worst = (-1, 0) if whole else worst_place(checked, actual, lse, spec)
    evidence = Evidence(checked, actual, lse, spec, samples if whole else choose_samples(checked, worst=worst))
    ranking = Ranking(evidence)
    fits = [fit for fit in map(evidence.fit, single_hypotheses(checked, lse is not None)) if fit is not None]
    tried = len(fits)
    if evidence.baseline.explains and not any(map(ranking.better, fits)):
        agreed = Finding("", "the result agrees with the reference", "", evidence.baseline.used, evidence.baseline.residual, True)
        return Diagnosis("agrees", (agreed,), tried=tried, seconds=time.monotonic() - start, sampled=not whole)
    if unwritten := never_written(actual):
        finding = Finding(*unwritten, "", evidence.baseline.used, evidence.baseline.residual, True)
        return Diagnosis("explained", (finding, *ranking.findings(fits)), "", tried, time.monotonic() - start, not whole)
    if not any(map(ranking.better, fits)):
        extra = fitted_hypotheses(evidence)
        fits, tried = fits + extra, tried + len(extra)
    if not any(map(ranking.better, fits)):
        lonely = isolated(evidence) if whole else None
        if lonely:
            return Diagnosis("explained", (Finding(*lonely, "", evidence.baseline.used, evidence.baseline.residual, True),), "", tried, time.monotonic() - start)
        if pairs:
            small = Evidence(checked, actual, lse, spec, choose_samples(checked, PAIR_WORK, worst))
            deadline = time.monotonic() + seconds
            for search in (_other_tiles, _pairs):
                if not any(map(ranking.better, fits)):
                    extra, count = search(evidence, small, fits, deadline)
                    fits, tried = fits + extra, tried + count
    findings = ranking.findings(fits)
    explained = bool(findings) and findings[0].explains
    location = "" if explained else locate(checked, actual, lse, spec)
    return Diagnosis("explained" if explained else "unexplained", findings, location, tried, time.monotonic() - start, not whole)


class Ranking:
    """Orders fits: explanations first, fewer mistakes first, then by what remains; equal predictions are folded into one finding."""

    def __init__(self, evidence: Evidence):
        self.evidence = evidence
        self.floor = evidence.floor()

    def better(self, fit: Fit) -> bool:
        """Whether the fit explains the result, and clearly better than no mistake does."""
        if any(mistake.rounding for mistake in fit.hypothesis.mistakes) and not fit.mismatched and fit.residual < MOSTLY * self.floor:
            return True  # single elements may round to the other side
        return fit.explains and fit.residual < CLEARLY * self.floor

    def findings(self, fits, keep=8) -> tuple[Finding, ...]:
        order = {id(fit): index for index, fit in enumerate(fits)}
        found: list[Finding] = []
        heads: list[Fit] = []
        for fit in sorted(fits, key=lambda fit: (*self._key(fit), order[id(fit)])):
            twin = next((i for i, head in enumerate(heads) if self._same(head, fit)), None)
            h = fit.hypothesis
            if twin is None:
                if len(found) < keep:
                    heads.append(fit)
                    found.append(Finding(h.id, h.says, h.remedy, fit.used, fit.residual, self.better(fit), (), h.issues))
            elif len(h.mistakes) == len(heads[twin].hypothesis.mistakes) and not _known(h.id, found[twin]):
                found[twin] = dataclasses.replace(found[twin], same_as=(*found[twin].same_as, h.id))
        return tuple(found)

    def _key(self, fit):
        better = self.better(fit)
        return not better, len(fit.hypothesis.mistakes) if better else 0, fit.mismatched, _rung(fit.residual)

    def _same(self, first: Fit, second: Fit) -> bool:
        for a, b, unit in zip(first.predicted, second.predicted, self.evidence.yardstick, strict=True):
            if a.shape != b.shape or a.size == 0 and unit.size:
                return False
            fine = np.isfinite(a) & np.isfinite(b)
            if not np.array_equal(np.where(fine, 0, a), np.where(fine, 0, b), equal_nan=True):
                return False
            with np.errstate(over="ignore", invalid="ignore"):
                ratio = np.abs(a[fine] - b[fine]) / np.where(np.isfinite(unit[fine]), unit[fine], 1e-9 * (1 + np.abs(a[fine])))
                if np.max(np.nan_to_num(ratio, nan=0.0), initial=0.0) > SAME:
                    return False
        return True


def _known(id, finding) -> bool:
    """Whether a finding names these mistakes already, in any order."""
    return any(sorted(id.split(" + ")) == sorted(known.split(" + ")) for known in (finding.id, *finding.same_as))


def _rung(residual: float) -> int:
    """Residuals within one percent count as equal, so that catalogue order decides between equal predictions."""
    return int(round(np.log(max(residual, 1e-30)) / np.log(1.01)))


def _confirmed(evidence, screened, count):
    """The best of what was screened, compared on the whole sample; `screened` holds (residual, index, hypothesis)."""
    best = sorted(screened, key=lambda item: item[:2])[:count]
    fits = [evidence.fit(hypothesis) for _, _, hypothesis in best]
    return [fit for fit in fits if fit is not None]


def _other_tiles(evidence, small, fits, deadline):
    """Mistakes of tiles with tile sizes that are no powers of two, or very large."""
    del fits
    screened = []
    for hypothesis in single_hypotheses(evidence.checked, evidence.lse is not None, OTHER_TILES, tiled_only=True):
        if time.monotonic() > deadline:
            break
        screened.append((small.screen(hypothesis), len(screened), hypothesis))
    return _confirmed(evidence, screened, CONFIRMED_PAIRS), len(screened)


def _pairs(evidence, small, fits, deadline):
    """Two mistakes together: screened on a small sample, the best confirmed on the whole one."""
    singles: dict[str, Hypothesis] = {}
    for fit in sorted(fits, key=lambda fit: (fit.mismatched, fit.residual)):
        mistakes = fit.hypothesis.mistakes
        if len(mistakes) == 1 and not mistakes[0].rounding:
            singles.setdefault(mistakes[0].id, fit.hypothesis)
    hypotheses = list(singles.values())
    screened, left_to_try = [], math.inf
    # one mistake of a pair often helps alone, so the best singles meet all others early
    for first, second in sorted(combinations(range(len(hypotheses)), 2), key=lambda pair: (pair[0] + 1) * (pair[1] + 1)):
        if time.monotonic() > deadline or left_to_try <= 0:
            break
        left_to_try -= 1
        for hypothesis in _together(hypotheses[first], hypotheses[second]):
            left = small.screen(hypothesis)
            screened.append((left, len(screened), hypothesis))
            if left < 1:
                left_to_try = min(left_to_try, PAIRS_AFTER_HIT)
    return _confirmed(evidence, screened, CONFIRMED_PAIRS), len(screened)


def _together(first: Hypothesis, second: Hypothesis):
    """Both mistakes at once, in both orders where the order can matter."""
    one, two = first.mistakes[0], second.mistakes[0]
    tile = second.tile if two.tiled else first.tile
    yield Hypothesis((one, two), tile)
    changes_inputs = [mistake.prepare is not None or mistake.prepare_tile is not None for mistake in (one, two)]
    if all(changes_inputs):
        yield Hypothesis((two, one), tile)


# shapes and axis order


def _readings(actual, lse, shape):
    """Ways to bring an array of the wrong shape into the right one: (words, remedy, array)."""
    if actual.shape == shape and (lse is None or lse.shape == shape[:-1]):
        return [], True
    found = []
    if actual.size != np.prod(shape, dtype=np.int64):
        return found, False
    if actual.ndim == len(shape):
        for order in permutations(range(actual.ndim)):
            if tuple(actual.shape[axis] for axis in order) == shape and order != tuple(range(actual.ndim)):
                found.append((f"its axes are {_axis_names(order)}", f"actual.transpose{order}", actual.transpose(order)))
    if actual.shape == shape:
        found.append(("the output is as expected, the lse is not", "", actual))
    found.append((f"it has shape {actual.shape}", f"actual.reshape{shape}", actual.reshape(shape)))
    if len(shape) >= 3:
        swapped = shape[:-3] + (shape[-2], shape[-3], shape[-1])
        found.append((f"it has shape {actual.shape} and is laid out (..., length, heads, dim)", f"actual.reshape{swapped}.swapaxes(-2, -3)",
                      actual.reshape(swapped).swapaxes(-2, -3)))  # fmt: skip
    return found, False


def _axis_names(order):
    names = AXES[-len(order) :]
    place = {axis: names[i] for i, axis in enumerate(order)}
    return "(" + ", ".join(place[axis] for axis in range(len(order))) + ")"


def _by_shape(checked, readings, spec, samples, shape, got, start):
    fits = [(words, remedy, Evidence(checked, array, None, spec, samples).baseline) for words, remedy, array in readings]
    fits.sort(key=lambda item: (item[2].mismatched, item[2].residual))
    findings = tuple(
        Finding("axis_order", f"the output should have shape {shape}; {words}", remedy, fit.used, fit.residual, fit.explains) for words, remedy, fit in fits
    )
    verdict = "explained" if findings and findings[0].explains else "unexplained"
    location = f"The output should have shape {shape}, the actual one has {got}."
    if len(got) == len(shape) and got[:-1] == shape[:-1]:
        location += " Its last axis is that of the query, not of the values." if got[-1] == _query_width(checked) else ""
    return Diagnosis(verdict, findings, "" if verdict == "explained" else location, len(findings), time.monotonic() - start)


def _query_width(checked):
    return dense_parts(checked)[0].head_dim if dense_parts(checked) else None


# merging


def _diagnose_merge(actual, outputs, lses, *, lse):
    start = time.monotonic()
    outputs = np.stack([as_float_array(x, "outputs").astype(np.float64) for x in outputs])
    lses = np.stack([as_float_array(x, "lses").astype(np.float64) for x in lses])
    actual = as_float_array(actual, "actual")
    unit = 64 * np.finfo(actual.dtype if actual.dtype in (np.float32, np.float64) else np.float32).eps * (np.abs(outputs).max(0) + 1)
    if actual.dtype.itemsize == 2:
        unit = unit + 2.0**-7 * np.abs(outputs).max(0)
    got = [actual.astype(np.float64), None if lse is None else as_float_array(lse, "lse").astype(np.float64)]

    def compare(predicted):
        want_output, want_lse = predicted
        used = 0.0
        for a, b, bound in ((got[0], want_output, unit), (got[1], want_lse, 1e-5)):
            if a is None:
                continue
            fine = np.isfinite(a) & np.isfinite(b)
            if not np.array_equal(np.where(fine, 0, a), np.where(fine, 0, b), equal_nan=True):
                return np.inf
            used = max(used, np.max(np.where(fine, np.abs(np.where(fine, a, 0) - np.where(fine, b, 0)) / bound, 0), initial=0.0))
        return float(used)

    if (base := compare(merged(outputs, lses))) <= 1:
        return Diagnosis("agrees", (Finding("", "the result agrees", "", base, base, True),), seconds=time.monotonic() - start)
    ranked = sorted(((compare(m.merge(outputs, lses)), index, m) for index, m in enumerate(MERGES)), key=lambda item: item[:2])
    findings = tuple(Finding(m.id, m.says, "", used, used, used <= 1, (), m.issues) for used, _, m in ranked)
    explained = findings[0].explains
    return Diagnosis("explained" if explained else "unexplained", findings, "" if explained else "No known merge mistake explains it.",
                     len(findings), time.monotonic() - start)  # fmt: skip


