"""Values of MLA that are read at other keys: the weight on one key is that of another."""

from __future__ import annotations

import numpy as np

from refattn.oracle.imaging.maps import describe_map

LEAST_ROWS, MOST_ROWS = 4, 48  # in which the weights of two keys are compared
MOST_NUMBERS = 2**24  # that are compared at once
REPRODUCED = 0.9  # of the wrong weights


def moved_values(d):
    """Findings about keys whose values are read at other keys, with the rows (B, H, T) that they explain."""
    l, view = d.ledgers, d.view
    rows = view.row_exists & ~l.nan & ~l.zero & ~d.explained
    moved, predicted = {}, view.weights.copy()
    for b in range(len(view.sequences)):
        at = np.nonzero(rows[b])
        for i, j in _moves(d, b, at).items():
            moved[b, i] = j
            predicted[b][..., i] -= view.weights[b][..., i]
            predicted[b][..., j] += view.weights[b][..., i]
    wrong = l.wrong & rows[..., None]
    if not moved or not wrong.any():
        return
    near = _near(predicted, d.measured.weights, d.measured)
    if near[wrong].mean() < REPRODUCED:
        return
    marks = np.zeros(view.shape, bool)
    for b, i in moved:
        marks[b, ..., i] = True
    before, after = np.array([(i, j) for (_, i), j in moved.items()]).T
    words, _ = describe_map(before, after, "key")
    rule = d.regions.find(marks & view.visible, view.visible)
    nature = f"scores are right, but values are read at other keys than their own ({words})"
    yield d.finding(rule, "source", nature), wrong.any(-1)


def _near(a, b, measured, at=...):
    return np.abs(a - b) <= measured.tolerance[at] * (np.abs(a) + np.abs(b)) + 8 * measured.floor[at]


def _moves(d, b, at):
    """For keys of a sequence, whose value is not read at its own place, the key at which it is read."""
    h, t = (index[:: max(len(at[0]) // MOST_ROWS, 1)] for index in at)
    right, got = d.view.weights[b, h, t], d.measured.weights[b, h, t]  # (rows, S)
    size = max(MOST_NUMBERS // max(right.shape[1] ** 2, 1), LEAST_ROWS)
    right, got, place = right[:size], got[:size], (b, h[:size], t[:size])
    near = lambda x, y: _near(x, y, d.measured, place)
    wrong = np.flatnonzero(~near(right, got).all(0))
    seen = (right > 16 * d.measured.floor[place]).sum(0) >= LEAST_ROWS
    found = {}
    for j in wrong.tolist():
        for own in (0.0, 1.0):  # beside the key's own value, or in place of it
            held = got[:, j, None] - own * right[:, j, None]
            slack = own * d.measured.tolerance[place] * np.abs(right[:, j, None])
            fits = (np.abs(held - right) <= slack + _allowed(d, place, right)).all(0) & seen
            fits[j] = False
            if fits.sum() == 1:
                found[int(fits.argmax())] = j
    return found


def _allowed(d, place, right):
    return 2 * d.measured.tolerance[place] * np.abs(right) + 8 * d.measured.floor[place]
