"""Keys that are read in other stretches of memory than the values, found by differences of scores.

What a row's weights share is not known where all its keys are wrong; the difference of the scores of two
neighbours is. Two neighbours in memory are looked for that have it in all rows.
"""

from __future__ import annotations

import numpy as np

from refattn.oracle.imaging.key_sources import MOST_STORED
from refattn.oracle.imaging.maps import ranges
from refattn.oracle.imaging.pool import Pool, Reads
from refattn.oracle.imaging.pool_memory import starts_in_words
from refattn.oracle.imaging.pool_reads import readings
from refattn.oracle.imaging.view import KEY

ROWS, LEAST_ROWS = 24, 4
SHARE = 0.6  # of wrong rows that must be explained
MOST_TOLD = 6
LEAST_FOUND = 4


def find_key_runs(ledgers, wrong):
    """Words for where keys are read, and the rows (B, H, T) that this explains; ("", None) where that is not
    known. `wrong` (B, H, T, S) are pairs whose ratios are wrong.
    """
    view = ledgers.view
    pool = Pool.of(ledgers.measured, ledgers)
    if pool is None or view.outline_of(0).softcap is not None or pool.count > MOST_STORED:
        return "", None
    moved, found = pool.own.copy(), {}
    kv = view.heads // view.group_size
    rows = wrong.any(-1)
    for b in range(len(view.sequences)):
        for k in np.unique(kv):
            heads = np.flatnonzero(kv == k)
            at = np.argwhere(rows[b][heads])
            if len(at) < LEAST_ROWS:
                continue
            at = at[np.unique(np.linspace(0, len(at) - 1, ROWS).astype(int))]
            at = np.stack([np.full(len(at), b), heads[at[:, 0]], at[:, 1]], 1)
            own = pool.own[b, heads[0]]
            places = _continued(_places(pool, at), own, view.sequences[b].length, pool.count)
            changed = (places >= 0) & (places != own)
            if changed.sum() >= LEAST_FOUND:
                found[b, int(k)] = np.flatnonzero(changed), places[changed]
                moved[b, heads] = np.where(changed, places, own)
    if not found:
        return "", None
    wrong_rows = np.argwhere(rows)
    holds = pool.holds(Reads("", moved, pool.own), wrong_rows)
    if holds.mean() < SHARE:
        return "", None
    explained = np.zeros_like(rows)
    explained[tuple(wrong_rows[holds].T)] = True
    heads = kv.tolist()
    own = {(b, k): pool.own[b, heads.index(k)] for b, k in found}
    of_others = any(np.setdiff1d(places, own[at]).size for at, (_, places) in found.items())
    if view.visible[explained].all() and not of_others:
        # every row sees all keys: only which value goes with which key shows
        paired = pool.best(readings, explained)
        words = paired[0].words if paired is not None else f"as if {_words(pool, found)}"
        return f"keys are paired with the values of other keys of the same head: {words}", explained
    return f"keys are read from other places, values from the right ones: {_words(pool, found)}", explained


def _places(pool, at):
    """For each key the stored key that rows (R, 3) score in its place; -1 where that is not known."""
    view = pool.view
    b, h, t = at.T
    own = pool.own[b[0], h[0]]
    length = view.sequences[b[0]].length
    step = int(own[1] - own[0]) if length > 1 else 1
    with np.errstate(all="ignore"):
        raw = np.log(pool.measured.weights[b, h, t]) - pool._shift[b, h, t]
    raw = np.where(view.visible[b, h, t], raw, np.nan)
    scores = pool.scores(at)[:, : pool.count]
    gained, rises = raw[:, 1:] - raw[:, :-1], scores[:, step:] - scores[:, :-step]
    allowed = 2 * pool.measured.tolerance[b, h, t, 0][:, None] + 1e-4
    places = np.full(view.num_keys, -1)
    for j in range(length - 1):
        known = np.isfinite(gained[:, j])
        if known.sum() < LEAST_ROWS:
            continue
        near = np.abs(rises[known] - gained[known, j, None]) <= allowed[known]
        fits = np.flatnonzero(near.all(0))
        if len(fits) == 1:
            places[j : j + 2] = fits[0], fits[0] + step
    return places


def _continued(places, own, length, count):
    """Places of the keys of a sequence, those too that few rows see, where the others are one step away."""
    there = np.arange(len(own)) < length
    known = (places >= 0) & there
    steps = np.unique((places - own)[known])
    if len(steps) != 1 or not known.any():
        return places
    other = own + steps[0]
    return np.where(there & (other >= 0) & (other < count), other, places)


def _of_other_sequences(pool, found):
    """Words for sequences all of whose keys are the same ones of another sequence; "" for others."""
    view, read = pool.view, {}
    for (b, k), (keys, places) in found.items():
        own = view.sequences[b]
        holds = [
            n
            for n, s in enumerate(view.sequences)
            if n != b
            and len(keys) == own.length <= s.num_keys
            and np.array_equal(view.slots[KEY][s.part][s.entry, k, keys], places)
        ]
        read.setdefault(b, []).append(holds[0] if len(holds) == 1 else -1)
    if any(len(ns) < view.num_kv_heads or len({*ns}) > 1 or -1 in ns for ns in read.values()):
        return ""
    told = [f"sequence {b} reads the keys of sequence {ns[0]}" for b, ns in list(read.items())[:MOST_TOLD]]
    return ", ".join(told) + (", ..." if len(read) > MOST_TOLD else "")


def _words(pool, found):
    """What is read in place of what: one rule for all, or stretches of keys."""
    if words := _of_other_sequences(pool, found):
        return words
    view = pool.view
    kv = (view.heads // view.group_size).tolist()
    own = np.concatenate([pool.own[b, kv.index(k)][keys] for (b, k), (keys, _) in found.items()])
    read = np.concatenate([places for _, places in found.values()])
    array = np.asarray(view.arrays[KEY])
    stretches = "; ".join(_stretches(pool, b, k, *of) for (b, k), of in sorted(found.items())[:MOST_TOLD])
    step = np.unique(read - own)
    if len(step) == 1:
        way = "further on" if step[0] > 0 else "further back"
        rule = f"{abs(int(step[0]))} rows {way} in memory"
        size = abs(int(step[0])) * array.shape[-1]
        for unit, count in (("elements", size), ("bytes", size * array.itemsize)):
            if step[0] < 0 and count & (count - 1) == 0 and count >= 256:
                rule += f" (the address begins again at {count} {unit}: {count.bit_length() - 1} bits)"
                break
        return f"{rule}: {stretches}"
    steps = {}
    for (_, k), (keys, places) in found.items():
        steps.setdefault(k, set()).update((places - pool.own[0, kv.index(k)][keys]).tolist())
    if all(len(of) == 1 for of in steps.values()) and len(view.sequences) == 1:
        starts = {(0, h): (min(steps.get(k, {0})), 1) for h, k in enumerate(kv)}
        return f"{starts_in_words(pool, starts)}: {stretches}"
    return stretches


def _stretches(pool, b, k, keys, places):
    """Keys of one head and what is read for them, in words."""
    view = pool.view
    s = view.sequences[b]
    owners = {}
    for n, other in enumerate(view.sequences):
        for head, slots in enumerate(view.slots[KEY][other.part][other.entry]):
            for j, slot in enumerate(slots[: other.length].tolist()):
                if slot not in owners or (n, head) == (b, k):
                    owners[slot] = n, head, j
    of = {}
    for j, place in zip(keys.tolist(), places.tolist(), strict=True):
        n, head, other = owners.get(place, (-1, -1, place))
        of.setdefault((n, head), []).append((j, other))
    told = []
    for (n, head), pairs in list(of.items())[:3]:
        whose = "" if head == k else f" of head {head}"
        whose += "" if n == b else f" of sequence {n}" if n >= 0 else " in memory"
        mine, others = ([pair[i] for pair in pairs] for i in range(2))
        told.append(f"keys {ranges(mine)} are keys {ranges(others)}{whose}")
    where = f"in sequence {b}, " if len(view.sequences) > 1 else ""
    return f"{where}head {k}, {', '.join(told)}" if s.length else ""
