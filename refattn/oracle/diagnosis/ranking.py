"""The order of explanations, and which of two names of the same numbers comes first."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np

from refattn.calls.dense import attention_problem
from refattn.calls.options import WORDS, Sizes
from refattn.oracle.diagnosis.budget import Budget
from refattn.oracle.diagnosis.evidence import Evidence, Fit
from refattn.oracle.inputs.families import make_options

SAME = 0.02  # predictions closer than this share of the bound are the same prediction
CLEARLY = 0.7  # of the residual without a mistake, below which a hypothesis counts as an explanation
MOSTLY = 0.3  # the same for mistakes of rounding that leave single elements beyond the bound


@dataclass
class Explanation:
    """Fits that predict the same numbers, the likeliest name first."""

    fits: list[Fit]
    better: bool

    @property
    def best(self) -> Fit:
        return self.fits[0]

    @property
    def ids(self) -> list[str]:
        """The different names, best first; two mistakes in either order are one name."""
        known: dict[str, str] = {}
        for fit in self.fits:
            known.setdefault(" + ".join(sorted(fit.hypothesis.id.split(" + "))), fit.hypothesis.id)
        return list(known.values())


class Ranking:
    """Orders fits: explanations first, fewer mistakes first, then by what remains; equal predictions are
    one explanation.

    Which name of one explanation comes first is a matter of what is likely, not of the data: the mistake
    that shows on the fewest calls. One that shows on many would have been found by the first simple test;
    what somebody asks about is what those tests let through. So a mistake of the form at hand (packed,
    latent, ...) comes before one of all forms, one that takes hostile data before one that ordinary data
    show, one that needs two options before one that needs one of them (`breadth`), and between equals the
    order of the catalogue decides.
    """

    def __init__(self, evidence: Evidence, budget: Budget):
        self.evidence = evidence
        self.floor = evidence.floor(budget)

    def better(self, fit: Fit) -> bool:
        """Whether the fit explains the result, and clearly better than no mistake does."""
        if (
            any(mistake.rounding for mistake in fit.hypothesis.mistakes)
            and not fit.mismatched
            and fit.residual < MOSTLY * self.floor
        ):
            return True  # single elements may round to the other side
        return fit.explains and fit.residual < CLEARLY * self.floor

    def explanations(self, fits, keep=8) -> list[Explanation]:
        order = {id(fit): index for index, fit in enumerate(fits)}
        found: list[Explanation] = []
        for fit in sorted(fits, key=lambda fit: (*self._key(fit), order[id(fit)])):
            twin = next((known for known in found if self._same(known.best, fit)), None)
            if twin is None:
                if len(found) < keep:
                    found.append(Explanation([fit], self.better(fit)))
            elif len(fit.hypothesis.mistakes) == len(twin.best.hypothesis.mistakes):
                twin.fits.append(fit)
        for explanation in found:
            explanation.fits.sort(key=lambda fit: (narrowness(fit.hypothesis), order[id(fit)]))
        return found

    def _key(self, fit):
        better = self.better(fit)
        return not better, len(fit.hypothesis.mistakes) if better else 0, fit.mismatched, _rung(fit.residual)

    def _same(self, first: Fit, second: Fit) -> bool:
        if abs(first.residual - second.residual) > 2 * SAME + 1e-3 * second.residual:
            return False
        if not first.predicted or not second.predicted:
            return False
        for result, unit in self.evidence.yardstick.items():
            a, b = first.predicted[result], second.predicted[result]
            fine = np.isfinite(a) & np.isfinite(b)
            if not np.array_equal(np.where(fine, 0, a), np.where(fine, 0, b), equal_nan=True):
                return False
            with np.errstate(over="ignore", invalid="ignore"):
                ratio = np.abs(a[fine] - b[fine]) / np.where(
                    np.isfinite(unit[fine]), unit[fine], 1e-9 * (1 + np.abs(a[fine]))
                )
                if np.max(np.nan_to_num(ratio, nan=0.0), initial=0.0) > SAME:
                    return False
        return True


def _rung(residual: float) -> int:
    """Residuals within one percent count as equal, so that catalogue order decides between equal
    predictions.
    """
    return round(float(np.log(max(residual, 1e-30)) / np.log(1.01)))


def narrowness(hypothesis) -> tuple:
    """Sort key of the names of one explanation; see `Ranking`."""
    mistakes = hypothesis.mistakes
    return (
        sum(mistake.form == "any" for mistake in mistakes),
        sum(not mistake.families for mistake in mistakes),
        sum(map(breadth, mistakes)),
    )


def breadth(mistake) -> int:
    """On how many of some ordinary calls, each with at most two options, the mistake can show; -1 for
    those of another form.
    """
    if mistake.form != "any":
        return -1
    return sum(mistake.applies(problem) for problem in _ordinary_calls())


@cache
def _ordinary_calls():
    x, kv = np.ones((2, 4, 3, 2), np.float32), np.ones((2, 2, 5, 2), np.float32)
    rng, sizes = np.random.default_rng(0), Sizes((2,), 4, 3, 5, 2)
    single = [make_options((word,), rng, sizes) for word in WORDS]
    chosen = [{}, *single, *(first | second for first, second in combinations(single, 2))]
    return tuple(attention_problem(x, kv, kv, **options) for options in chosen)
