"""Scores that are off by one number, or by one factor, for each key or for each row."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refattn.oracle.imaging.wrong_rows import HELD, Model, centred

LEAST = 8  # wrong pairs of a row or of a key
EXACT = 0.02  # of the size of the numbers: what is left when they are a product with one vector


def one_number_each(rows) -> Iterator[Model]:
    yield from _factor_of_keys(rows)
    yield from _factor_of_rows(rows)
    yield from _number_of_rows(rows)


def _factor_of_keys(rows):
    """Scores of each key times a number of its own, as with a wrong scale of the key."""
    groups = rows.b * 10**6 + rows.head // rows.view.group_size
    y, x = rows.got - rows.rest, rows.raw
    use = rows.wrong & np.isfinite(y)
    if rows.cap is not None or not _held(rows).any():
        return
    scores, numbers = rows.score.copy(), []
    for group in np.unique(groups):
        here = use & (groups == group)[:, None] & _held(rows)[:, None]
        enough = here.sum(0) >= LEAST
        with np.errstate(all="ignore"):
            factor = np.where(here, x * y, 0).sum(0) / np.where(here, x * x, 0).sum(0)
        factor = np.where(enough & np.isfinite(factor), factor, 1.0)
        changed = (groups == group)[:, None] & rows.wrong
        scores = np.where(changed, rows.with_rest(factor * x), scores)
        numbers += factor[enough].tolist()
    if numbers and np.ptp(numbers) > 0:
        words = f"the scores of each key are multiplied by a number of its own, {_range(numbers)}"
        yield Model("keys", f"{words}, the same in all rows (as a wrong scale of the key)", scores, 3, False)


def _factor_of_rows(rows):
    """Scores of each row times a number of its own, as with a wrong scale of the query."""
    if rows.cap is not None:
        return
    with np.errstate(all="ignore"):
        y = rows.measured - rows.rest
    use = rows.wrong & np.isfinite(y)
    x, y = centred(np.where(use, rows.raw, 0), use), centred(np.where(use, y, 0), use)
    with np.errstate(all="ignore"):
        factor = (x * y).sum(-1) / (x * x).sum(-1)
    factor = np.where((use.sum(-1) >= LEAST) & np.isfinite(factor), factor, 1.0)[:, None]
    scores = np.where(rows.wrong, rows.with_rest(factor * rows.raw), rows.score)
    words = f"the scores of each row are multiplied by a number of its own, {_range(factor)}"
    yield Model("query", f"{words} (as a wrong scale of the query)", scores, 3, False)


def _number_of_rows(rows):
    """The wrong pairs of each row off by one number, beside the right ones."""
    held = _held(rows)
    with np.errstate(all="ignore"):
        off = np.where(rows.wrong & held[:, None], rows.got - rows.score, np.nan)
    known = np.isfinite(off).sum(-1) >= LEAST
    if known.sum() < 0.5 * len(known):
        return
    number = np.where(known, np.nanmedian(np.where(known[:, None], off, 0), -1), 0)
    scores = np.where(rows.wrong, rows.score + number[:, None], rows.score)
    vector = _vector(rows, number, known)
    if vector is None:  # a factor of weights, not of scores
        return
    words = (
        f"wrong pairs have scores that are off by one number in each row, {_range(number[known])}: the "
        "product of the query with one vector that is added to these keys (components "
        f"{', '.join(f'{v:.2g}' for v in vector[:4])}, ...), as a wrong zero point"
    )
    yield Model("scores", words, scores, 2, False)


def _vector(rows, number, known):
    """The vector whose scaled product with the query is the number of each row; None where there is none."""
    query = rows.view.operand("query")[rows.at][known] * rows.scale
    if len(query) < 1.5 * query.shape[1]:
        return None
    vector = np.linalg.lstsq(query, number[known], rcond=None)[0]
    left = number[known] - query @ vector
    return vector if np.square(left).sum() < EXACT * np.square(number[known]).sum() else None


def _held(rows):
    """Rows of which enough is right, so that their number is known, (n,)."""
    return (rows.judged & ~rows.wrong).sum(-1) >= np.maximum(HELD * rows.judged.sum(-1), LEAST)


def _range(numbers):
    return f"from {np.min(numbers):.3g} to {np.max(numbers):.3g}"
