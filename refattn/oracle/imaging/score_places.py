"""Scores of a kernel that reads ALiBi or a bias some numbers further on, by sequence, by row or by pair."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refattn.oracle.imaging.wrong_rows import Model

EXPLAINS = 0.9
MOST_MOVED = 40  # numbers of a bias
MOST_SHIFT = 160  # positions that ALiBi is tried to be off by


def shifted_by_sequence(rows) -> Iterator[Model]:
    """ALiBi whose positions are off by one number in each sequence."""
    slopes = rows.slopes()
    if slopes is None:
        return
    scores, found = rows.score.copy(), {}

    def shifted(here, step):
        moved = rows.distance_from(rows.position + step)
        return (rows.score + slopes * (rows.distance - moved))[here]

    for b in np.unique(rows.b):
        here = rows.b == b
        steps = range(-MOST_SHIFT, MOST_SHIFT + 1)
        found[int(b)] = min(steps, key=lambda step: rows.distance_to(shifted(here, step), here))
        scores[here] = shifted(here, found[int(b)])
    by = ", ".join(f"{step:+d} in sequence {b}" for b, step in found.items() if step)
    words = f"ALiBi measures distances from positions (row less key) that are off by {by}"
    yield Model("ALiBi", words, scores, 1)


def whole_distances(rows) -> Iterator[Model]:
    """ALiBi whose distances are off by whole numbers."""
    slopes = rows.slopes()
    if slopes is None:
        return
    with np.errstate(all="ignore"):
        off = (rows.score - rows.got) / slopes
        steps = np.round(off)
        # heads whose slope is so small that every number is near a whole multiple of it say nothing
        steep = rows.wrong & (np.abs(slopes) > 4 * rows.tolerance)
        near = steep & (np.abs(off - steps) * np.abs(slopes) <= rows.tolerance)
    if steep.sum() >= 8 and near.sum() >= EXPLAINS * steep.sum() and (steps[near] != 0).all():
        words = (
            "the distances that ALiBi uses are off by whole numbers, from "
            f"{int(steps[near].min())} to {int(steps[near].max())}: "
            "positions are rounded or counted from elsewhere"
        )
        scores = np.where(steep, rows.score - slopes * np.nan_to_num(steps), rows.measured)
        yield Model("ALiBi", words, scores, 1)


def bias_by_row(rows) -> Iterator[Model]:
    """A bias whose rows are read some numbers further on in memory, each row as many as it may."""
    view, bias = rows.view, rows.bias
    if bias is None:
        return
    whole = [np.asarray(view.outline_of(n).bias)[s.entry] for n, s in enumerate(view.sequences)]
    rest, found, scores = rows.score - bias, np.zeros(len(rows.b), int), rows.score.copy()
    steps = np.arange(-MOST_MOVED, MOST_MOVED + 1)
    for n, (b, h, i) in enumerate(zip(rows.b, rows.head, rows.row, strict=True)):
        flat = whole[b][h].reshape(-1)
        places = i * whole[b].shape[-1] + np.arange(view.num_keys) + steps[:, None]
        moved = rest[n] + flat[np.clip(places, 0, len(flat) - 1)]  # (steps, S)
        best = np.argmin(rows.distance_to(moved, slice(n, n + 1), axis=-1))
        found[n], scores[n] = steps[best], moved[best]
    by = ", ".join(f"{step:+d}" for step in np.unique(found)[:6])
    words = f"rows of the bias are read from other places in memory: {by} numbers further on, by row"
    yield Model("bias", words, scores, 1)
