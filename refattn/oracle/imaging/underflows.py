"""Rows that are 0 because their weights underflow: what is subtracted from scores is not their maximum."""

from __future__ import annotations

import numpy as np

SURELY, AT_MOST = 85.0, 106.0  # below the number that is subtracted, exp gives 0 in float32: begins, ends
NEARLY_ALL = 0.95
ROW_TILES = (2, 4, 8, 16, 32, 64, 128)


def underflow_in_words(view, rows) -> str:
    """What is subtracted in place of the maximum of rows (B, H, T) that are 0; "" where that is unknown."""
    top = np.broadcast_to(view.top, view.shape[:3])
    seeing = np.isfinite(top) & view.row_exists
    rows = rows & seeing
    if not rows.any():
        return ""
    others = seeing & ~rows
    for words, reference in _references(view, np.where(seeing, top, -np.inf)):
        with np.errstate(invalid="ignore"):
            above = np.broadcast_to(reference, top.shape) - top
        kept = (above[others] < AT_MOST).mean() if others.any() else 1.0
        if (above[rows] > SURELY).mean() > NEARLY_ALL and kept > NEARLY_ALL:
            return (
                f"the weights of rows underflow, and the rows are 0: {words}, "
                f"which is {above[rows].min():.4g} or more above their largest score"
            )
    return ""


def _references(view, top):
    """Words and numbers (B, H, T) that may be subtracted in place of the maximum."""
    yield "the running maximum starts at 0 or another finite number, not at -inf", np.zeros_like(top)
    hidden = view.exists & ~view.visible
    score = np.where(hidden & np.isfinite(view.score), view.score, -np.inf)
    past = view.key >= view.of_sequences("length")
    over = "the maximum is taken over keys too that are hidden from the row"
    for which, pairs in (
        (" (past the length)", hidden & past),
        (" (not past the length)", hidden & ~past),
        ("", hidden),
    ):
        if pairs.any():
            yield f"{over}{which}", np.where(pairs, score, -np.inf).max(-1)
    if view.samples_all_rows:
        for size in ROW_TILES:
            if size < 2 * top.shape[2]:
                of_tiles = np.maximum.reduceat(top, np.arange(0, top.shape[2], size), axis=2)
                of_rows = of_tiles.repeat(size, axis=2)[:, :, : top.shape[2]]
                yield f"the maximum is that of all rows of a tile of {size} rows", of_rows
        yield (
            "the maximum is that of all rows of the head",
            np.broadcast_to(top.max(2, keepdims=True), top.shape),
        )
    yield "the maximum is that of all heads", np.broadcast_to(top.max(1, keepdims=True), top.shape)
