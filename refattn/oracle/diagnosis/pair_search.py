"""Further hypotheses for what no single mistake explains: odd tile sizes, and two mistakes together."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations

from refattn.oracle.diagnosis.hypotheses import OTHER_TILES, TILES_TO_TRY, Hypothesis, single_hypotheses

PAIRS = "two mistakes together"
PAIRS_AFTER_HIT = 600  # how long to look on for a better pair once one fits the whole sample
CONFIRMED_PAIRS = 16
LEADERS = 10  # best single mistakes that are tried with the others at every tile size
PAIR_WORK = 2**15  # multiplications a prediction while all pairs are tried


def _confirmed(evidence, screened, count, budget):
    """The best of what was screened, compared on the whole sample; `screened` holds (residual, index,
    hypothesis).
    """
    best = [hypothesis for _, _, hypothesis in sorted(screened, key=lambda item: item[:2])[:count]]
    others = [other for hypothesis in best for other in _with_other_tiles(hypothesis, evidence)]
    fits = [
        budget.attempt(
            "fit", "comparing the best on more rows", evidence.fit, other, size=evidence.size(other)
        )
        for other in others
    ]
    return [fit for fit in fits if fit is not None]


def _with_other_tiles(hypothesis, evidence):
    """A pair came with the tile size that fits one mistake alone: the usual sizes besides."""
    yield hypothesis
    if len(hypothesis.mistakes) > 1 and any(mistake.tiled for mistake in hypothesis.mistakes):
        yield from (
            replace(hypothesis, tile=tile)
            for tile in TILES_TO_TRY
            if tile != hypothesis.tile and tile < max(evidence.keys, 17)
        )


def other_tiles(evidence, small, fits, budget):
    """Mistakes of tiles with tile sizes that are no powers of two, or very large."""
    del fits
    screened = []
    for hypothesis in single_hypotheses(evidence.checked, evidence.given, OTHER_TILES, tiled_only=True):
        left = budget.attempt(
            "screen", "other tile sizes", small.screen, hypothesis, size=small.size(hypothesis)
        )
        if left is not None:
            screened.append((left, len(screened), hypothesis))
    return _confirmed(evidence, screened, CONFIRMED_PAIRS, budget), len(screened)


def pairs_of_mistakes(evidence, small, fits, budget):
    """Two mistakes together: screened on a small sample, the best confirmed on the whole one."""
    screened, confirmed, left_to_try = [], [], math.inf
    for first, second in _candidates(fits):
        if left_to_try <= 0:
            break
        left_to_try -= 1
        for hypothesis in _together(first, second):
            left = budget.attempt("screen", PAIRS, small.screen, hypothesis, size=small.size(hypothesis))
            if left is None:
                left_to_try = 0
                break
            screened.append((left, len(screened), hypothesis))
            fit = (
                budget.attempt("fit", PAIRS, evidence.fit, hypothesis, size=evidence.size(hypothesis))
                if left < 1
                else None
            )
            if fit is not None and fit.explains:
                confirmed.append(fit)
                left_to_try = min(left_to_try, PAIRS_AFTER_HIT)
    return confirmed + _confirmed(evidence, screened, CONFIRMED_PAIRS, budget), len(screened)


def _candidates(fits):
    """Pairs of single hypotheses, the likeliest first: one mistake of a pair often helps alone, so the best
    meet all others early.

    The tile size that fits a mistake best alone may be wrong once the other mistake is there: the best
    meet every tile size first.
    """
    best: dict[str, Hypothesis] = {}
    tiled = []
    for fit in sorted(fits, key=lambda fit: (fit.mismatched, fit.residual)):
        mistakes = fit.hypothesis.mistakes
        if len(mistakes) == 1 and not mistakes[0].rounding:
            best.setdefault(mistakes[0].id, fit.hypothesis)
            if mistakes[0].tiled:
                tiled.append(fit.hypothesis)
    hypotheses = list(best.values())
    for leader in hypotheses[:LEADERS]:
        yield from ((leader, other) for other in tiled if other.id != leader.id)
    for first, second in sorted(
        combinations(range(len(hypotheses)), 2), key=lambda pair: (pair[0] + 1) * (pair[1] + 1)
    ):
        yield hypotheses[first], hypotheses[second]


def _together(first: Hypothesis, second: Hypothesis):
    """Both mistakes at once, in both orders where the order can matter."""
    one, two = first.mistakes[0], second.mistakes[0]
    tile = second.tile if two.tiled else first.tile
    yield Hypothesis((one, two), tile)
    changes_inputs = [
        mistake.prepare is not None or mistake.prepare_tile is not None for mistake in (one, two)
    ]
    if all(changes_inputs):
        yield Hypothesis((two, one), tile)
