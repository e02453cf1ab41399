"""Rows of the output that are the right result of other rows.

They come from wrong strides, lost writes and stale accumulators.
"""

from __future__ import annotations

import numpy as np

from refattn.oracle.imaging.elsewhere import OtherRows, other_rows
from refattn.oracle.imaging.maps import describe_map

MOST = 512  # wrong rows that are compared with all others
SHARE = 0.6  # of the wrong rows that must be copies
ALMOST_ALL = 0.95  # of those that were compared: then all wrong rows are
MOST_COLUMNS = 64
MOST_PAIRS = 8  # that are listed
TILES = (2, 4, 8, 16, 32, 64)


def copied_rows(measured, rows):
    """Wrong rows (B, H, T) that are copies, and words for where of; None where few are."""
    view = measured.view
    wrong = rows & measured.off[..., ~measured.wrong_columns].any(-1)
    places = np.argwhere(wrong)
    if not len(places) or measured.output.shape[-1] < 4:
        return None
    rng = np.random.default_rng(0)
    if len(places) > MOST:
        places = places[np.sort(rng.choice(len(places), MOST, replace=False))]
    source, everywhere = _sources(measured, places, ~measured.wrong_columns)
    copied = source >= 0
    if copied.sum() < max(3, SHARE * len(places)):
        return None
    own, other = places[copied], everywhere[source[copied]]
    if copied.mean() > ALMOST_ALL:
        return wrong, _words(view, own, other)
    rows = np.zeros(view.shape[:3], bool)
    rows[tuple(own.T)] = True
    return rows, _words(view, own, other)


def _sources(measured, places, columns):
    """For each of the rows at `places` the number of the row whose right result it holds, or -1; and the
    places of these rows.
    """
    view = measured.view
    everywhere = np.argwhere(np.broadcast_to(view.row_exists & ~view.empty, view.shape[:3]))
    columns = np.flatnonzero(columns)[:MOST_COLUMNS]
    got = measured.output[tuple(places.T)][:, columns]
    right = measured.expected_output[tuple(everywhere.T)][:, columns]
    allowed = measured.output_tolerance[tuple(everywhere.T)][:, columns]
    scale = np.abs(right).max() if right.size else 0.0
    source = np.full(len(places), -1)
    for n, row in enumerate(got):
        if not np.isfinite(row).all() or np.abs(row).max() == 0:
            continue
        near = (np.abs(right - row) <= 1.5 * allowed).all(-1)
        # a row that is near its own result is less exact, and no copy
        if near.sum() == 1 and np.abs(row).max() > 0.01 * scale and (everywhere[near] != places[n]).any():
            source[n] = int(near.argmax())
    return source, everywhere


def held_by_empty(measured, rows):
    """Words for what rows (B, H, T) that see no key hold, where it is their query or other rows' result."""
    view, got = measured.view, measured.output[rows]
    if view.latent or view.checked.form.joins or not np.isfinite(got).all():
        return ""
    query = view.operand("query")[rows]
    width = min(query.shape[-1], got.shape[-1])
    allowed = 4 * measured.spec.output.unit_roundoff * np.abs(query[:, :width]) + 1e-30
    if (np.abs(got[:, :width] - query[:, :width]) <= allowed).all():
        return "hold their own query: nothing is stored, and the buffer of the output is that of the query"
    other = _sources(measured, np.argwhere(rows), ~measured.wrong_columns)
    if (other[0] >= 0).mean() >= ALMOST_ALL:
        own = np.argwhere(rows)[other[0] >= 0]
        return f"hold the right result of other rows: {_words(view, own, other[1][other[0][other[0] >= 0]])}"
    return ""


def _words(view, own, other):
    """Which rows they are: one rule, or what is the same, and what changes, along each axis."""
    rule = _rule(view, own, other)
    own, other = own.copy(), other.copy()
    for pairs in (own, other):
        pairs[:, 1] = view.heads[pairs[:, 1]]
        pairs[:, 2] = view.row[pairs[:, 0], 0, pairs[:, 2], 0]
    examples = ", ".join(
        f"{tuple(int(x) for x in a)} holds {tuple(int(x) for x in b)}"
        for a, b in list(zip(own, other, strict=True))[: 2 if rule else 4]
    )
    parts = [] if rule else list(_parts(own, other))
    return f"{rule or '; '.join(parts) or 'the same row'} (sequence, head, row: {examples})"


def _rule(view, own, other):
    """One rule that gives the other rows; "" without one."""
    found = [
        (words, rows.other, rows.inside)
        for words, rows in (*other_rows(view, tuple(own.T)), *_reversed_rows(view, own))
    ]
    for words, places, inside in found:
        if (inside & (np.stack(places, 1) == other).all(1)).mean() >= ALMOST_ALL:
            return words
    return ""


def _reversed_rows(view, own):
    b, h, t = own.T
    for size in TILES:
        rows = t // size * size + size - 1 - t % size
        yield f"the rows of each tile of {size} in reverse", OtherRows(view, (b, h, t), (b, h, rows))


def _parts(own, other):
    for axis, name in enumerate(("sequence", "query head", "row")):
        changed = own[:, axis] != other[:, axis]
        if changed.any():
            words, found = describe_map(own[changed, axis], other[changed, axis], name)
            yield words if found else _listed(own[:, axis], other[:, axis], name)


def _listed(own, other, name):
    """Which number holds which, where each holds one alone."""
    pairs = sorted({*zip(own.tolist(), other.tolist(), strict=True)})
    if len(pairs) > MOST_PAIRS or len({a for a, _ in pairs}) < len(pairs):
        return f"another {name}"
    return f"another {name} ({', '.join(f'{a} holds {b}' for a, b in pairs)})"
