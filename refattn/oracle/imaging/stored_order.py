"""Outputs whose numbers are right but stored in other places: rows and columns exchanged in small blocks."""

from __future__ import annotations

import numpy as np

from refattn.oracle.imaging.maps import ranges

SIZES = (2, 4, 8, 16, 32)
SHARE = 0.97  # of the wrong numbers that an order must explain
ROWS, LEAST_ROWS = 256, 6  # that are compared


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


def copied_columns(measured):
    """Words for wrong columns of the output that hold what belongs in other columns, some of which hold it
    too; "" where that is not so.
    """
    exists = np.broadcast_to(measured.view.row_exists, measured.output.shape[:3])
    wrong = np.flatnonzero((measured.off & exists[..., None]).any((0, 1, 2)))
    rows = np.argwhere(exists)
    if len(rows) > ROWS:
        rows = rows[np.sort(np.random.default_rng(0).choice(len(rows), ROWS, replace=False))]
    arrays = measured.output, measured.expected_output, measured.output_tolerance
    got, right, allowed = (array[tuple(rows.T)] for array in arrays)
    if not 0 < len(wrong) < got.shape[-1] or len(rows) < LEAST_ROWS:
        return ""
    source = []
    for column in wrong:
        with np.errstate(all="ignore"):
            near = np.abs(got[:, column, None] - right) <= 1.5 * allowed
        same = np.flatnonzero(near.mean(0) >= SHARE)
        if len(same) != 1 or same[0] == column:
            return ""
        source.append(int(same[0]))
    if {*source} == {*wrong.tolist()}:  # in another order: nothing is lost
        return ""
    return (
        f"columns {ranges(wrong.tolist())} of {got.shape[-1]} of the output hold what belongs in columns "
        f"{ranges(source)}, and their own numbers are nowhere"
    )


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
