"""Findings about rows that read keys and values elsewhere, from their weights on every stored value."""

from __future__ import annotations

import dataclasses

import numpy as np

from refattn.oracle.imaging.compare import EXTRA, MISSING, SCALED
from refattn.oracle.imaging.exchanged_keys import keys_counted_again
from refattn.oracle.imaging.foreign_keys import gained_keys, other_lengths
from refattn.oracle.imaging.maps import ranges
from refattn.oracle.imaging.pool import FOREIGN, Pool
from refattn.oracle.imaging.pool_reads import readings
from refattn.oracle.imaging.tile_values import moved_tiles

MOST = 0.55  # of the wrong rows, that one reading must explain
SOME = 0.2  # that another reading explains beside it
CLEAR = 0.999
MOST_ADDED = 2  # commas in rows that are listed beside a rule
MOST_LISTED = 4  # sequences of which rows are listed


def read_elsewhere(d):
    """Findings about rows that read other places, each with the rows (B, H, T) that it explains."""
    l, view = d.ledgers, d.view
    wrong = ((l.labels == MISSING) | (l.labels == EXTRA)).any(-1) | (d.measured.unexplained > 1).any(-1)
    wrong &= view.row_exists & ~l.nan & ~d.measured.varies & ~d.explained
    if not wrong.any():
        return
    pool = Pool.of(d.measured, l)
    if pool is None:
        return
    all_wrong = pool.not_right(wrong)
    wrong = _more_than_hidden(pool, all_wrong)
    if not wrong.any():
        return
    best = pool.best(readings, wrong)
    if best is None or best[1].sum() < MOST * wrong.sum():
        words, rows = _without_rule(pool, wrong, all_wrong)
        if words:
            d.value_rows |= rows
            yield at_rows(d, rows, "source", words), rows
        return
    while best is not None and best[1].sum() >= SOME * wrong.sum():
        reads, rows = best
        d.value_rows |= rows
        yield at_rows(d, rows, "source", reads.words), rows
        wrong = wrong & ~rows
        best = pool.best(readings, wrong)


def _more_than_hidden(pool, rows):
    """Rows (B, H, T) that read something else, not less: keys that are left out alone are no reading."""
    l, view = pool.ledgers, pool.view
    changed = ((l.labels == EXTRA) | (l.labels == SCALED)).any(-1)
    for n, h in np.ndindex(changed.shape[:2]):
        slots = pool.own[n, h, : view.sequences[n].num_keys]
        total = pool.weights[n, h].sum(-1)
        changed[n, h] |= total - pool.weights[n, h][:, slots].sum(-1) > FOREIGN * total
    return rows & changed


def _without_rule(pool, wrong, all_wrong):
    """What wrong rows (B, H, T) read, as it was measured; and the rows of which that is said. `all_wrong`
    are also those that only lose keys.
    """
    if words := other_lengths(pool, all_wrong, named=True):
        return words, all_wrong
    if words := gained_keys(pool, wrong):
        return words, wrong
    if words := other_lengths(pool, all_wrong, named=False):
        return words, all_wrong
    for of in (keys_counted_again, moved_tiles):
        words, rows = of(pool, wrong)
        if words:
            return words, rows
    return "", wrong


def at_rows(d, rows, kind, words, note=""):
    """A finding at the place of rows (B, H, T), or with these rows listed where a rule for them is long."""
    rule = d.of_rows(rows)
    finding = d.finding(rule, kind, words, note)
    if whole := _whole_sequences(d.view, rows):
        return dataclasses.replace(finding, place=whole, hit=rule.wrong, right_inside=0, region=rows)
    long = rule.fit < CLEAR or len(rule.statements) > 1
    if long and (heads := _whole_heads(d.view, rows)):
        return dataclasses.replace(finding, place=heads, hit=rule.wrong, right_inside=0, region=rows)
    listed = rows_listed(d.view, rows)
    if listed and (rule.fit < CLEAR or len(rule.statements) > 2):
        return dataclasses.replace(finding, place=listed, hit=rule.wrong, right_inside=0, region=rows)
    if finding.place and "row" in listed and listed.count(",") <= MOST_ADDED:
        return dataclasses.replace(finding, place=f"{finding.place} ({listed.removeprefix('these are ')})")
    return finding


def _whole_sequences(view, rows):
    """Some, but not all, sequences all of whose rows are among the rows (B, H, T), in words; else ""."""
    whole = [bool(rows[n][:, : len(s.rows)].all()) for n, s in enumerate(view.sequences)]
    some = [bool(of.any()) for of in rows]
    if whole != some or all(whole):
        return ""
    numbers = np.flatnonzero(whole).tolist()
    return f"the sequence is {ranges(numbers)}" if len(numbers) <= 2 * MOST_LISTED else ""


def _whole_heads(view, rows):
    """Some, but not all, query heads all of whose rows are among the rows (B, H, T), in words; else ""."""
    exists = np.broadcast_to(view.row_exists, rows.shape)
    some = rows.any((0, 2))
    if some.all() or (exists & ~rows).any((0, 2))[some].any():
        return ""
    return f"the query head is {ranges(view.heads[some].tolist())}"


def rows_listed(view, rows):
    """Rows (B, H, T) as "rows 0 to 13 of sequence 1"; "" where heads differ or the list is long."""
    told = []
    if in_all := _of_all_rows(view, rows):
        return in_all
    for n, s in enumerate(view.sequences):
        heads = rows[n].any(-1)
        if not heads.any():
            continue
        if not (rows[n] == rows[n][heads.argmax()])[heads].all() or not heads.all():
            return ""
        of = s.rows[rows[n][0][: len(s.rows)]]
        which = "all rows" if len(of) == len(s.rows) else f"row{'s' * (len(of) > 1)} {ranges(of.tolist())}"
        told.append(f"{which} of sequence {n}")
    if len(view.sequences) == 1 and told and told[0].startswith("row"):
        return f"the row is {told[0].removesuffix(' of sequence 0').partition(' ')[2]}"
    return f"these are {', '.join(told)}" if 0 < len(told) <= MOST_LISTED else ""


def _of_all_rows(view, rows):
    """One stretch of the rows of all sequences, counted in one, in words; "" where rows are no such."""
    if len(view.sequences) < 2 or view.checked.num_parts != len(view.sequences):
        return ""
    if any(len(s.rows) != s.num_rows for s in view.sequences) or not (rows == rows[:, :1]).all():
        return ""
    of = np.concatenate([rows[n, 0, : len(s.rows)] for n, s in enumerate(view.sequences)])
    at = np.flatnonzero(of)
    if len(at) == len(of) or at[-1] - at[0] + 1 != len(at):
        return ""
    return f"the row, counted over all sequences, is {ranges(at.tolist())}"
