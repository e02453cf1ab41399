"""Values that come from elsewhere: another head, sequence, page, key or column."""

from __future__ import annotations

import numpy as np

from refattn.oracle.xray.findings import Finding
from refattn.oracle.xray.maps import describe_map
from refattn.oracle.xray.pointing import point
from refattn.oracle.xray.compare import MISSING

LEAST = 0.02  # of the rows that were pointed, which must read elsewhere
WHOLE = 0.9  # of a row's weight: it comes from one place
SOME = 0.02


def find_sources(description):
    """Findings about where values are read, each with the rows (B, H, T) that it explains."""
    foreign = np.zeros(description.view.shape[:3], bool)
    for finding, rows in _shares(description):
        foreign |= rows
        yield finding, np.zeros_like(rows)
    yield from _addresses(description, foreign)


def _shares(d):
    """Weight that lies on values of another head or sequence, or of none."""
    view, m = d.view, d.measured
    if view.latent:
        return
    heads, sequences, outside, own = m.sources
    with np.errstate(all="ignore"):
        total = heads.sum(-1) + outside
        known = view.row_exists & (total > 0.01) & np.isfinite(total)
        stray = known & (outside > SOME * total)
    if stray.any():
        rule = d._of_rows(stray)
        share = float(np.median((outside / total)[stray]))
        yield d._finding(
            rule, "source", f"values are read that belong to no sequence: past the length, or in a page that no sequence holds ({100 * share:.2g} % of the weight of such a row)"
        ), stray
    kv = (view.heads // view.group_size).reshape(1, -1, 1)
    for shares, mine, name, what in (
        (heads, np.broadcast_to(kv, total.shape), "key/value head", "head"),
        (sequences, np.broadcast_to(own.reshape(-1, 1, 1), total.shape), "sequence", "sequence"),
    ):
        if shares.shape[-1] < 2:
            continue
        with np.errstate(all="ignore"):
            of_own = np.take_along_axis(shares, mine[..., None], -1)[..., 0] / np.maximum(shares.sum(-1), 1e-300)
        wrong = known & ~stray & (of_own < 1 - SOME) & (shares.sum(-1) > 0.01)
        if not wrong.any():
            continue
        rule = d._of_rows(wrong)
        target = shares.argmax(-1)
        whole = wrong & (np.take_along_axis(shares, target[..., None], -1)[..., 0] >= WHOLE * shares.sum(-1))
        if whole.sum() >= WHOLE * wrong.sum():
            index = np.nonzero(whole)
            by = view.heads[index[1]] if what == "head" else mine[whole]
            words, found = describe_map(mine[whole], target[whole], name, functions_of=(by, "h") if what == "head" else None)
            listed = _listed(by, target[whole], "query head" if what == "head" else "sequence", name)
            yield d._finding(rule, "source", f"the values are those of another {name}: {words} ({listed})", confident=True), wrong
        else:
            share = float(np.median(1 - of_own[wrong]))
            yield d._finding(rule, "source", f"{100 * share:.2g} % of the weight (median) lies on values of another {name}: some of the keys are read there"), wrong


def _listed(by, target, who, name):
    pairs = sorted({*zip(by.tolist(), target.tolist(), strict=True)})
    words = ", ".join(f"{a} -> {b}" for a, b in pairs[:8])
    return f"{who} -> {name}: {words}{', ...' if len(pairs) > 8 else ''}"


def _addresses(d, foreign):
    """Keys that go with the values of other keys, and columns of other columns."""
    view, ledgers = d.view, d.ledgers
    pointed = point(d.measured)
    if pointed is None:
        return
    b, h, t = pointed.at
    kv = view.heads[h] // view.group_size
    columns = np.arange(pointed.read.shape[1])
    use = ~d.measured.varies[pointed.at] & ~foreign[pointed.at] & ~d.explained[pointed.at]
    lost = (pointed.column == -2) | ~use[:, None]
    here = {"sequence": b[:, None], "head": kv[:, None], "key": pointed.key[:, None], "column": columns[None]}
    got = {"sequence": pointed.sequence, "head": pointed.head, "key": pointed.read, "column": pointed.column}
    wrong = {name: (got[name] != own) & ~lost for name, own in here.items()}
    moved = np.logical_or.reduce(list(wrong.values()))
    # a row that was pointed at a key it does not see reads some other one: that is no address
    unseen = (ledgers.labels[b, h, t, pointed.key] == MISSING)[:, None] & ~wrong["column"]
    bad_rows = moved.any(1)
    if (bad_rows.mean() < LEAST and bad_rows.sum() < 3) or not use.any():
        return
    names = []
    for name, what in (("sequence", "sequence"), ("head", "key/value head"), ("key", "key"), ("column", "column")):
        some = wrong[name] & (got[name] >= 0)
        if some.sum() < 0.05 * moved.sum():
            continue
        own = np.broadcast_to(here[name], some.shape)
        sizes = [(s.length, "the length") for s in view.sequences[:1]]
        words, found = describe_map(own[some], got[name][some], what, sizes)
        if found or not unseen.any() and _consistent(own[some], got[name][some]):
            names.append((name, words, found))
    if not names:
        return
    marks, universe = np.zeros(view.shape, bool), np.zeros(view.shape, bool)
    universe[b[use], h[use], t[use], pointed.key[use]] = True
    marks[b[bad_rows], h[bad_rows], t[bad_rows], pointed.key[bad_rows]] = True
    rule = d.regions.find(marks, universe)
    text = "; ".join(words for _, words, _ in names)
    pages = _pages(d, pointed, moved & ~lost)
    rows = rule.inside.any(-1) & (ledgers.wrong.any(-1) | (d.measured.unexplained > 1).any(-1))
    if {name for name, *_ in names} == {"column"}:
        nature = f"values are read from other columns: {text}"
    else:
        nature = f"keys are paired with the values of other places: {text}{pages}"
    yield d._finding(rule, "source", nature, confident=all(found for *_, found in names)), rows


def _consistent(own, got):
    """Whether the same place is always read in place of a place."""
    pairs = {}
    for a, b in zip(own.tolist(), got.tolist(), strict=True):
        pairs.setdefault(a, set()).add(b)
    again = len(own) - len(pairs)
    return again >= 3 and sum(len(found) == 1 for found in pairs.values()) >= 0.9 * len(pairs)


def _pages(d, pointed, moved):
    """Physical pages that are read in place of others, in words."""
    view = d.view
    if view.pages is None:
        return ""
    rows = np.flatnonzero(moved.any(1))
    pairs = set()
    for r in rows:
        column = np.flatnonzero(moved[r])[0]
        b, j, bb, jj = pointed.at[0][r], pointed.key[r], pointed.sequence[r, column], pointed.read[r, column]
        if bb >= 0 and jj >= 0:
            pairs.add((int(view.pages[b, 0, 0, j]), int(view.pages[bb, 0, 0, jj])))
    pairs = sorted(pair for pair in pairs if pair[0] != pair[1])
    return f" (physical page {', '.join(f'{b} in place of {a}' for a, b in pairs[:4])})" if pairs else ""
