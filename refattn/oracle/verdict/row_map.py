"""The use of the bound of every row as a map, heads down and rows across: binned where it is large, and as
text.
"""

from __future__ import annotations

import math

import numpy as np

NOT_LOOKED_AT, LEFT_OUT = -1.0, -2.0  # in place of a use
WIDTH, HEIGHT = 64, 32  # of the map as text
DIGITS = 9


def grid_of(measure):
    """Use of the tight bound, (heads of all batch entries, rows): inf where NaN, an infinity or an error
    stands where none may, NOT_LOOKED_AT, and LEFT_OUT for rows that see no key and are not judged.
    """
    use = np.where(np.isnan(measure.use_map), NOT_LOOKED_AT, measure.use_map)
    use = np.where(measure.misplaced_elsewhere, np.inf, use)
    if measure.ignore_empty_rows:
        use = np.where(measure.empty, LEFT_OUT, use)
    return use.reshape(math.prod(use.shape[:-1]), use.shape[-1])


def edges(length, size):
    """Where at most `size` runs of about the same length begin."""
    return np.linspace(0, length, min(length, size), endpoint=False).astype(int)


def binned(grid, height, width):
    """The worst entry of each of at most height x width bins, and its place in `grid.ravel()`."""
    down, across = edges(grid.shape[0], height), edges(grid.shape[1], width)
    worst = np.maximum.reduceat(np.maximum.reduceat(grid, down, axis=0), across, axis=1)
    if worst.shape == grid.shape:
        return worst, np.arange(grid.size).reshape(grid.shape)
    places = np.empty(worst.shape, dtype=np.int64)
    widths = np.diff([*across, grid.shape[1]])
    for n, top in enumerate(down):
        band = grid[top : down[n + 1] if n + 1 < len(down) else None]
        of_column = band.max(axis=0)
        there = np.flatnonzero(of_column == np.repeat(worst[n], widths))
        columns = there[np.searchsorted(there, across)]  # the first of each bin that holds its worst
        places[n] = (top + band[:, columns].argmax(axis=0)) * grid.shape[1] + columns
    return worst, places


def symbol(use):
    """The symbol of one entry; `LEGEND` says what it means."""
    if use < 0:
        return "o" if use == LEFT_OUT else "?"
    if use == np.inf:
        return "X"
    if use > 1:
        return str(min(max(math.ceil(math.log10(use)), 1), DIGITS))
    return " " if use <= 0.1 else "." if use <= 0.5 else ":"


LEGEND = {
    " ": "blank up to 0.1 of the bound",
    ".": ". up to 0.5",
    ":": ": up to the bound",
    **{
        str(n): f"{n} beyond it, up to {10.0**n:,.0f} times" if n == 1 else f"{n} up to {10.0**n:,.0f} times"
        for n in range(1, 5)
    },
    **{str(n): f"{n} up to 1e{n} times" for n in range(5, DIGITS)},
    str(DIGITS): f"{DIGITS} more than 1e{DIGITS - 1} times",
    "X": "X NaN, an infinity, or an error where none is allowed",
    "?": "? not looked at",
    "o": "o sees no key, left out",
}


def as_text(measure):
    """The map as lines: a legend of the symbols in it, and a line for each run of heads that look alike."""
    grid = grid_of(measure)
    if not grid.size:
        return []
    name = head_name(measure.use_map.shape)
    down = [*edges(grid.shape[0], HEIGHT), grid.shape[0]]
    worst, _ = binned(grid, HEIGHT, WIDTH)
    drawn = ["".join(map(symbol, line)) for line in worst]
    lines, first = [], 0
    for n, line in enumerate(drawn):
        if n + 1 == len(drawn) or drawn[n + 1] != line:
            of, to = name(down[first]), name(down[n + 1] - 1)
            lines.append((of if of == to else f"{of}-{to}", line))
            first = n + 1
    width = max(len(label) for label, _ in lines)
    used = {mark for line in drawn for mark in line}
    heads = "batch.head" if len(measure.use_map.shape) > 2 else "head"
    title = f"use of the bound by {heads} (down) and row (across, 0 to {grid.shape[1] - 1}):"
    legend = "; ".join(words for mark, words in LEGEND.items() if mark in used)
    return [title, *(f"{label:>{width}} |{line}|" for label, line in lines), f"({legend})"]


def head_name(shape):
    """A function that names line n of the map of a result with one number a row of this shape."""
    heads = shape[-2]
    if len(shape) == 2:
        return str
    batch = shape[:-2]
    entry = lambda n: ",".join(map(str, np.unravel_index(n // heads, batch)))
    return lambda n: f"{entry(n)}.{n % heads}"
