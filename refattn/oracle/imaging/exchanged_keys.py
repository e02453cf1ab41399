"""Keys and values that rows read in place of some of their own, in words, where no one rule gives them."""

from __future__ import annotations

import numpy as np

from refattn.oracle.imaging.foreign_keys import places_in_words
from refattn.oracle.imaging.maps import ranges

MOST_LISTED = 4
LEAST, MOST_TIMES = 1e-5, 6  # of a row's weight, so that a key counts; how often it may
FITS = 0.9  # of the rows
ROWS = 96


def keys_counted_again(pool, rows):
    """Words for rows that count some of their keys twice or more, in place of others; and these rows."""
    view, found = pool.view, {}
    places = np.argwhere(rows)
    if not len(places):
        return "", None
    scores = pool.scores(places)
    for at, score in zip(places, scores, strict=True):
        b, h, t = at
        own = pool.own[b, h]
        seen = view.visible[b, h, t] & (view.weights[b, h, t] > LEAST)
        got = pool.weights[b, h, t]
        if got[np.setdiff1d(np.arange(pool.count), own[own < pool.count])].sum() > LEAST:
            continue
        got = np.append(got, 0.0)[own][seen]
        with np.errstate(all="ignore"):
            level = np.log(got) - (score[own] + pool._shift[b, h, t])[seen]
        times = _times(level, pool.measured.tolerance[b, h, t, 0])
        if times is None or (times == 1).all() or times.sum() != len(times):
            continue
        keys = np.flatnonzero(seen)
        found[tuple(at)] = keys[times == 0], np.repeat(keys, np.maximum(times - 1, 0))
    if len(found) < FITS * len(places):
        return "", None
    explained = np.zeros_like(rows)
    explained[tuple(np.array(list(found)).T)] = True
    return _again_in_words(found, len(view.sequences) > 1), explained


def _times(level, tolerance):
    """How often each key counts, from levels that are logarithms of these numbers and a common factor."""
    there = np.isfinite(level)
    if not there.any():
        return None
    lowest = np.sort(level[there])[: max(int(there.sum()) // 8, 1)]
    with np.errstate(all="ignore"):
        times = np.where(there, np.exp(level - np.median(lowest)), 0.0)
    near = np.rint(times)
    off = np.abs(times - near) > (0.02 + 6 * tolerance) * np.maximum(near, 1)
    return None if off.any() or near.max() > MOST_TIMES else near.astype(int)


def _again_in_words(found, several):
    """`several`: of which sequence a row is must be told."""
    lost = {ranges(of.tolist()) for of, _ in found.values()}
    steps = {int(step) for of, again in found.values() for step in np.unique(again - of)}
    if len(steps) == 1:
        step = steps.pop()
        away = f"{abs(step)} keys {'further on' if step > 0 else 'further back'}"
        which = f"keys {lost.pop()}" if len(lost) == 1 else "some keys"
        return f"{which} and their values are not read: those {away} count twice in their place"
    told = {}
    for (b, _, t), (of, again) in found.items():
        row = f"sequence {b}, row {t}" if several else f"row {t}"
        told.setdefault((ranges(of.tolist()), ranges(np.unique(again).tolist())), []).append(row)
    listed = "; ".join(
        f"{rows[0]}: keys {again} in place of {of}" for (of, again), rows in list(told.items())[:MOST_LISTED]
    )
    return f"some keys and their values are not read, others count twice or more in their place ({listed})"


def exchanged_keys(pool, rows):
    """Words for what rows (B, H, T) read of other heads and sequences, in place of which keys."""
    view, told = pool.view, {}
    kv = view.heads // view.group_size
    for b, k in sorted({(int(b), int(kv[h])) for b, h in np.argwhere(rows.any(-1))}):
        heads = np.flatnonzero((kv == k) & rows[b].any(-1))
        of = np.concatenate([np.argwhere(rows[b, h])[:, 0] + h * rows.shape[2] for h in heads])
        h, t = np.divmod(of, rows.shape[2])
        got = (pool.weights[b, h, t] > 4 * pool.measured.floor[b, h, t] + 1e-7).any(0)
        own = pool.own[b, heads[0], : view.sequences[b].length]
        seen = (view.visible[b, h, t] & (view.weights[b, h, t] > LEAST)).any(0)[: len(own)]
        lost = np.flatnonzero(seen & ~got[own])
        got[own] = False
        other = np.flatnonzero(got)
        if not len(other):
            continue
        words = places_in_words(view, other, k, b)
        words += f" in place of {ranges(lost.tolist())}" if len(lost) else " beside its own"
        told.setdefault((b, words), []).append(k)
    words = []
    for (b, what), heads in list(told.items())[:MOST_LISTED]:
        of = "" if len(heads) == view.num_kv_heads else f", head {ranges(heads)}"
        words.append(f"in sequence {b}{of}: {what}")
    more = "; ..." if len(told) > MOST_LISTED else ""
    return f"rows read other keys and values ({'; '.join(words)}{more})" if words else ""
