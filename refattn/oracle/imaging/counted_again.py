"""Findings about keys that count once more than they should: twice where visible, once where hidden."""

from __future__ import annotations

import dataclasses

import numpy as np

from refattn.oracle.imaging.compare import EXTRA, SCALED
from refattn.oracle.imaging.maps import ranges

MOST_TIMES = 4
WHOLE = 0.95  # of the weights of a row are whole multiples of what they should be
MOST = 0.9  # of the wrong rows


def counted_again(d):
    """Findings about keys that count again, also where they are hidden, with the pairs that they explain."""
    l, view = d.ledgers, d.view
    open_rows = (view.row_exists & ~d.explained & ~l.nan & ~l.zero)[..., None]
    extra, scaled = (l.labels == EXTRA) & open_rows, (l.labels == SCALED) & open_rows
    if not extra.any() or not scaled.any():
        return
    times = _times(d)
    rows = (extra | scaled).any(-1)
    whole = np.abs(times - np.round(times)) <= 4 * d.measured.tolerance * np.maximum(times, 1) + 1e-3
    known = l.judged & np.isfinite(times)
    good = (whole | ~known).mean(-1) >= WHOLE
    if good[rows].mean() < MOST:
        return
    more = known & whole & (np.round(times) == view.visible + 1.0) & rows[..., None]
    if more[extra].mean() < MOST or more[scaled].mean() < MOST:
        return
    rule = d.regions.find(more, known & rows[..., None])
    which = _which(more, rows)
    if which:
        rule = dataclasses.replace(rule, statements=())
    nature = (
        f"keys count once more than they should{which}: twice where they are visible, "
        "once where they are hidden, as if they were visited a second time without a mask"
    )
    yield d.finding(rule, "visible keys", nature), more


def _times(d):
    """How often each pair (B, H, T, S) counts, where that which counts least in its row counts once."""
    l, view = d.ledgers, d.view
    with np.errstate(all="ignore"):
        level = np.log(d.measured.weights) - (view.score - view.lse[..., None])
        level = np.where(l.judged & np.isfinite(level), level, np.inf)
        least = level.min(-1, keepdims=True, initial=np.inf)
        times = np.exp(level - least)
    return np.where(np.isfinite(level), times, np.where(d.measured.weights == 0, 0.0, np.nan))


def _which(more, rows):
    """The keys in words, where they are the same in all rows."""
    keys = more.any((0, 1, 2))
    if (more[rows] == keys).mean() < 0.999:
        return ""
    return f" (keys {ranges(np.flatnonzero(keys).tolist())} of {len(keys)}, in every row)"
