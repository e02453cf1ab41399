"""Explanations of a wrong row by right results elsewhere: in other columns, or added to its own."""

from __future__ import annotations

import numpy as np

from refattn.oracle.imaging.explanations import fitted

LEAST_COLUMNS = 8
SAME_HEAD = 1e-6
LEAST_SHARE = 0.01  # times which a result counts
MOST_ROWS = 4096  # that may be added to others


def moved_columns(reading, rows):
    """The numbers of the right row in another order, each found by its size."""
    E = rows.output.shape[-1]
    if max(LEAST_COLUMNS, reading.output.shape[-1]) > E:
        return
    order = rows.right.argsort(-1)
    ordered = np.take_along_axis(rows.right, order, -1)
    got = np.nan_to_num(rows.output)
    at = np.empty(got.shape, int)
    for place in np.argwhere(rows.wrong):
        own = tuple(place)
        above = np.clip(np.searchsorted(ordered[own], got[own]), 1, E - 1)
        nearer = got[own] - ordered[own][above - 1] < ordered[own][above] - got[own]
        at[own] = order[own][above - nearer]
    at[~rows.wrong] = np.arange(E)
    found = np.take_along_axis(rows.right, at, -1)
    weights = np.where(rows.visible, rows.numerator, 0.0)
    fit = fitted("columns in another order", rows, found, lambda: weights, 0, 1, "equations")
    used = np.sort(at, -1)
    fit.holds = fit.holds & ((used[..., 1:] == used[..., :-1]).sum(-1) <= E // 8)
    fit.evidence = fit.evidence - E * np.log(E)
    for h, i in np.argwhere(fit.holds & rows.wrong):
        reading.orders[rows.sequence, h, int(rows.rows[i])] = at[h, i]
    yield fit


def added_rows(reading, rows):
    """A multiple of the row's right result and of the result of another row."""
    right = reading.expected_output[..., reading.columns]
    given = reading.output[..., reading.columns]
    exists = np.broadcast_to(reading.view.row_exists, right.shape[:3])
    usable = exists & np.isfinite(given).all(-1)
    places = np.argwhere(usable)
    if not len(places) or len(places) > MOST_ROWS or rows.output.shape[-1] < LEAST_COLUMNS:
        return
    off = (given != right).any(-1)[usable]
    table = np.concatenate([right[usable], given[usable][off]])
    places = np.concatenate([places, places[off]])
    H, N, E = rows.output.shape
    got, own = (np.nan_to_num(a).reshape(-1, E) for a in (rows.output, rows.right))
    size = np.maximum((own**2).sum(-1, keepdims=True), 1e-300)
    rest = got - own * ((got * own).sum(-1, keepdims=True) / size)
    beside = (table**2).sum(-1) - (own @ table.T) ** 2 / size
    with np.errstate(all="ignore"):
        near = (rest @ table.T) ** 2 / beside / (rest**2).sum(-1, keepdims=True)
    own_places = np.stack([np.full((H, N), rows.sequence), *np.indices((H, N))], -1)
    own_places[..., 2] = rows.rows[own_places[..., 2]]
    itself = (own_places.reshape(-1, 1, 3) == places).all(-1)
    near = np.nan_to_num(np.where(~itself & (beside > 1e-6 * (table**2).sum(-1)), near, 0.0))
    # rows of other heads may hold the same; that of the own head is meant
    same = (own_places.reshape(-1, 1, 3)[..., :2] == places[:, :2]).all(-1)
    best = (near + SAME_HEAD * same).argmax(-1)
    other = table[best]
    # two factors by least squares
    a, b, c = size[:, 0], (own * other).sum(-1), (other**2).sum(-1)
    d, e = (got * own).sum(-1), (got * other).sum(-1)
    with np.errstate(all="ignore"):
        det = a * c - b * b
        x, y = np.nan_to_num((c * d - b * e) / det), np.nan_to_num((a * e - b * d) / det)
    prediction = (x[:, None] * own + y[:, None] * other).reshape(H, N, E)
    found = places[best].reshape(H, N, 3)
    weights = np.where(rows.visible, rows.numerator, 0.0)
    says = {
        "of sequence": found[..., 0],
        "of head": reading.view.heads[found[..., 1]],
        "of row": reading.view.row[found[..., 0], 0, found[..., 2], 0],
        "own": x.reshape(H, N),
        "other": y.reshape(H, N),
    }
    fit = fitted(
        "results of other rows added",
        rows,
        prediction,
        lambda: weights,
        2,
        len(table),
        "equations",
        says=says,
        cost=0.08,
    )
    fit.holds = fit.holds & (np.minimum(np.abs(says["own"]), np.abs(says["other"])) > LEAST_SHARE)
    yield fit


def added_in_words(reading, rows, numbers):
    """What the numbers are with which other rows are added, where they are what they would be if sums that
    are not divided by their normaliser were; "" else.
    """
    view = reading.view
    at = np.nonzero(rows)
    heads = {int(head): n for n, head in enumerate(view.heads)}
    row_at = {(b, int(r)): i for b, s in enumerate(view.sequences) for i, r in enumerate(s.rows)}
    sequence, head, row = (numbers[f"of {what}"].astype(int) for what in ("sequence", "head", "row"))
    other = sequence, [heads[h] for h in head], [row_at[pair] for pair in zip(sequence, row, strict=True)]
    with np.errstate(all="ignore"):
        own_sum, other_sum = (np.exp(view.lse[place] - view.top[place]) for place in (at, other))
        for factor, words in (
            (other_sum / own_sum, "its sum, not yet divided by its normaliser"),
            (1 / own_sum, "its result, before the division by the row's own normaliser"),
        ):
            if (np.abs(numbers["other"] / factor - 1) < 1e-3).mean() > 0.5:
                return words
    return ""


def orders_in_words(reading):
    """How the columns of the rows in `reading.orders` stand."""
    words = {}
    for order in reading.orders.values():
        words[_order_in_words(order)] = words.get(_order_in_words(order), 0) + 1
    return "; ".join(sorted(words, key=words.get, reverse=True)[:3])


def _order_in_words(order):
    E = len(order)
    columns = np.arange(E)
    steps = np.unique((order - columns) % E)
    if len(steps) == 1:
        return f"column c holds what belongs into column (c + {steps[0]}) % {E}"
    for width in (2, 4, 8, 16, 32, 64):
        if E % width or width >= E:
            continue
        for words, other in (
            (
                f"(c % {width}) * {E // width} + c // {width}",
                columns % width * (E // width) + columns // width,
            ),
            (f"c with its place turned round in each {width} columns", columns ^ (width - 1)),
            (f"c with neighbouring blocks of {width} columns exchanged", columns ^ width),
        ):
            if (other == order).mean() > 0.97:
                return f"column c holds what belongs into column {words}"
    if (order == E - 1 - columns).mean() > 0.97:
        return "the columns are in reverse order"
    moved = [f"{a} holds {b}" for a, b in zip(columns, order, strict=True) if a != b]
    return f"column {', '.join(moved[:4])}" + (", ..." if len(moved) > 4 else "")
