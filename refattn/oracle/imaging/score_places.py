"""Scores of a kernel that counts the positions of ALiBi otherwise, by sequence or by pair."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refattn.oracle.imaging.wrong_rows import Model

EXPLAINS = 0.9
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
