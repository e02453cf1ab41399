"""What explains a wrong merge: the models of weights and of lse that predict what was measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refattn.oracle.imaging.states_lse import lse_models
from refattn.oracle.imaging.states_weights import Model, weight_models

EXPLAINS = 0.9  # of the wrong rows, at least
EVERYWHERE = 0.97  # of the rows that are not wrong, which a model predicts where it holds in all rows
BEST = 0.05  # a model that explains so much more than one before it is told instead


@dataclass(frozen=True, eq=False)
class Explained:
    """A model, its share of the wrong rows, whether it holds in the others too, and where it matters."""

    model: Model
    share: float
    everywhere: bool
    differs: np.ndarray


def explain_weights(ledgers, rows) -> list[Explained]:
    """What predicts the measured weights of the wrong rows (B, H, T); the first is told."""
    view, measured = ledgers.view, ledgers.measured
    compare = _Comparison(
        got=measured.weights,
        right=view.weights,
        tolerance=lambda weights: 3 * measured.tolerance * np.abs(weights) + 8 * measured.floor,
        judged=ledgers.judged & ~(view.empty | ledgers.nan)[..., None],
        rows=rows,
    )
    return _best(compare(model, model.weights) for model in weight_models(view, measured))


def explain_lse(ledgers, rows, bound, joined=None) -> list[Explained]:
    """What predicts the merged lse of the wrong rows (B, H, T), which are beyond `bound`.

    `joined` is the lse that goes with weights that are wrong themselves.
    """
    view, measured = ledgers.view, ledgers.measured
    compare = _Comparison(
        got=measured.lse[..., None],
        right=view.lse[..., None],
        tolerance=lambda lse: 2 * bound[..., None] + 2e-6 * np.abs(lse),
        judged=view.row_exists[..., None],
        rows=rows,
    )
    with np.errstate(all="ignore"):
        return _best(
            compare(model, model.lse[..., None]) for model in lse_models(view, measured, rows, joined)
        )


def nearest_weights(ledgers) -> Model | None:
    """The model that leaves least of what the weights are off by, each within its tolerance.

    None where none leaves less than half of it.
    """
    view, measured = ledgers.view, ledgers.measured
    use = ledgers.judged & (view.weights > 16 * measured.floor) & view.row_exists[..., None]

    def left(weights):
        with np.errstate(all="ignore"):
            off = np.where(use, (measured.weights - weights) / view.weights, 0.0)
        return (np.minimum(off**2, 1.0) if np.isfinite(off).all() else np.ones(1)).sum()

    most = left(view.weights) / 4
    found = [
        (left(model.weights), n, model)
        for n, model in enumerate(weight_models(view, measured))
        if not model.fitted
    ]
    least, _, model = min(found, key=lambda entry: entry[:2])
    return model if least < most else None


def lse_follows(ledgers, lse, rows, bound):
    """Rows among `rows` whose merged lse is the predicted one: all of them where most are."""
    got = ledgers.measured.lse
    with np.errstate(all="ignore"):
        near = rows & (
            (got == lse)
            | (np.isnan(got) & np.isnan(lse))
            | (np.abs(got - lse) <= 4 * bound + 2e-6 * np.abs(lse) + 0.1 * np.abs(got - ledgers.view.lse))
        )
    return rows if near.sum() >= EXPLAINS * rows.sum() else near


class _Comparison:
    """Predictions against what was measured, (B, H, T, P), in wrong rows and in the others."""

    def __init__(self, got, right, tolerance, judged, rows):
        self.got, self.right, self.tolerance, self.judged = got, right, tolerance, judged
        self.rows, self.others = rows, judged.any(-1) & ~rows
        self.off = self._distance(got, right)

    def _distance(self, array, predicted):
        """How far each row is from a prediction, in tolerances, (B, H, T)."""
        with np.errstate(all="ignore"):
            off = np.abs(array - predicted) / self.tolerance(predicted)
        off = np.where((array == predicted) | ~self.judged, 0.0, np.where(np.isnan(off), np.inf, off))
        return off.max(-1, initial=0.0)

    def __call__(self, model, predicted):
        distance = self._distance(self.got, predicted)
        # a prediction that differs from the right one by less than what is to be explained explains nothing
        explains = (distance <= 1) & (distance <= 0.5 * self.off)
        differs = (self._distance(self.right, predicted) > 1) & (self.rows | self.others)
        everywhere = (distance <= 1)[self.others].mean() >= EVERYWHERE if self.others.any() else True
        return Explained(model, float(explains[self.rows].mean()), bool(everywhere), differs)


def _best(explained):
    """Those that explain about as much as the best one, in the order in which they stand.

    Those that hold in all rows, and those without a number of their own, hide the others.
    """
    found = [e for e in explained if e.share >= EXPLAINS]
    most = max((e.share for e in found), default=0.0)
    found = [e for e in found if e.share >= most - BEST]
    found = [e for e in found if e.everywhere] or found
    return [e for e in found if not e.model.fitted] or found
