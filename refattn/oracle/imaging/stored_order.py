"""Outputs whose numbers are right but stored in other places: rows and columns exchanged in small blocks."""

from __future__ import annotations

import numpy as np

SIZES = (2, 4, 8, 16, 32)
SHARE = 0.97  # of the wrong numbers that an order must explain


def stored_order(measured):
    """Words for the order in which the output is stored; "" where it is none of these."""
    right, got = measured.expected_output, measured.output
    exists = np.broadcast_to(measured.view.row_exists, got.shape[:3])
    wrong = measured.off & exists[..., None]
    if not wrong.any() or not np.isfinite(got[exists]).all() or got.shape[2] < 2:
        return ""
    allowed = measured.output_tolerance
    for words, order in _orders(*got.shape[2:]):
        rows, columns = order
        moved = right[:, :, rows, columns]
        most = 1.5 * np.maximum(allowed[:, :, rows, columns], allowed)
        with np.errstate(all="ignore"):
            near = np.abs(got - moved) <= most
        if (
            near[wrong].mean() >= SHARE
            and near[np.broadcast_to(exists[..., None], near.shape)].mean() >= SHARE
        ):
            return words
    return ""


def _orders(num_rows, width):
    """Words, and rows and columns (T, E) of what is stored at each place; partial blocks stay."""
    row, column = np.indices((num_rows, width))
    for tall in SIZES:
        for wide in SIZES:
            if tall > num_rows or wide > width:
                continue
            whole = (row // tall * tall + tall <= num_rows) & (column // wide * wide + wide <= width)
            first, start = row // tall * tall, column // wide * wide
            x, y = row % tall, column % wide
            by_column, by_row = y * tall + x, x * wide + y
            same = tall == wide
            ways = [(by_column // wide, by_column % wide), (by_row % tall, by_row // tall)]
            for other_x, other_y in ways[: 1 if same else 2]:
                words = (
                    f"the output is stored with rows and columns exchanged within each block of {tall} rows "
                    f"and {wide} columns: its numbers are right but stand in other places"
                )
                yield (
                    words,
                    (np.where(whole, first + other_x, row), np.where(whole, start + other_y, column)),
                )
