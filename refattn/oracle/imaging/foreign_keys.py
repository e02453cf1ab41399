"""Keys and values of other sequences, heads or places that rows see beside their own, in words."""

from __future__ import annotations

import numpy as np

from refattn.oracle.imaging.maps import ranges

UNITS = (8, 16, 32, 48, 64, 96, 128)
MOST_LISTED = 4


def gained_keys(pool, rows):
    """Words for what rows (B, H, T) read beside all of their own keys; "" where they lose some, or where
    nothing short can be said.
    """
    gained = _gained(pool, rows)
    if not gained:
        return ""
    own_scores = _with_own_scores(pool, rows)
    note = ", each with its own score" if own_scores else ""
    for words_of in (_whole_sequences, _beside, _named):
        if words := words_of(pool, gained):
            return f"rows see all their own keys and also {words}{note}"
    return ""


def other_lengths(pool, rows, named):
    """Words for rows that read more or fewer keys from the right first one on; "" where they do not.

    `named`: only where their numbers are the lengths of something.
    """
    view, read = pool.view, {}
    whole = len(view.sequences) > 1 and all(s.num_keys == s.length for s in view.sequences)
    all_rows = all(
        rows[n][:, : len(s.rows)].all() or not rows[n].any() for n, s in enumerate(view.sequences)
    )
    if view.pages is not None or not whole or not all_rows:
        return ""
    for b, h in zip(*np.nonzero(rows.any(-1)), strict=True):
        got = pool.weights[b, h][rows[b, h]] > 4 * pool.measured.floor[b, h][rows[b, h]]
        at = np.flatnonzero(got.any(0))
        if not (got == got[0]).all() or not len(at) or len(at) != at[-1] - at[0] + 1:
            return ""
        if at[0] != pool.own[b, h, 0] or read.setdefault(int(b), len(at)) != len(at):
            return ""
    lengths = [s.length for s in view.sequences]
    if not read or all(lengths[b] == count for b, count in read.items()) or not _with_own_scores(pool, rows):
        return ""
    listed = ", ".join(f"{count} in place of {lengths[b]} in sequence {b}" for b, count in read.items())
    count = len(lengths)
    for name, of in (
        ("the next sequence", lambda b: lengths[min(b + 1, count - 1)]),
        ("the sequence before", lambda b: lengths[max(b - 1, 0)]),
        ("the first sequence", lambda b: lengths[0]),
        ("the longest sequence", lambda b: max(lengths)),
        ("the shortest sequence", lambda b: min(lengths)),
        ("its query", lambda b: view.sequences[b].num_rows),
    ):
        if all(n == of(b) for b, n in read.items()):
            return (
                f"rows read the length of {name} in place of their own: {listed} keys from the first one on"
            )
    return "" if named else f"rows read other numbers of keys from the right first one on: {listed}"


def _gained(pool, rows):
    """Stored rows read by each (sequence, key/value head) that are not its own: {(b, k): sorted array}."""
    view, found = pool.view, {}
    kv = view.heads // view.group_size
    for b, h in zip(*np.nonzero(rows.any(-1)), strict=True):
        of = rows[b, h]
        got = pool.weights[b, h][of] > 4 * pool.measured.floor[b, h][of] + 1e-7
        own = pool.own[b, h, : view.sequences[b].length]
        seen, right = (array[b, h][of][:, : len(own)] for array in (view.visible, view.weights))
        other, mine = got.any(0), got[:, own]
        if (seen & ~mine & (right > 1e-5)).any() or (mine & ~seen).any():
            return {}  # own keys are lost, or count though they are hidden
        behind = pool.own[b, h, view.sequences[b].length : view.sequences[b].num_keys]
        if other[behind].any():
            return {}  # stored for the sequence, past its length: no foreign keys
        other[own] = False
        found.setdefault((int(b), int(kv[h])), np.zeros(pool.count, bool))[other] = True
    return {place: np.flatnonzero(other) for place, other in found.items() if other.any()}


def _with_own_scores(pool, rows):
    """Whether the foreign keys count with the score that the row has with them."""
    places = np.argwhere(rows)[:: max(int(rows.sum()) // 12, 1)]
    b, h, t = places.T
    with np.errstate(all="ignore"):
        level = np.log(pool.weights[b, h, t]) - pool.scores(places)[:, :-1]
    level = np.where(pool.weights[b, h, t] > 1e-5, level, np.nan)
    spread = np.nanmax(level, -1) - np.nanmin(level, -1)
    return bool((spread < 0.02 + 6 * pool.measured.tolerance[b, h, t, 0]).mean() > 0.9)


def _beside(pool, gained):
    """Stretches of memory right before or right after the own keys of each sequence, in words."""
    view = pool.view
    if view.pages is not None:
        return ""
    before, after, heads = {}, {}, {}
    for (b, k), slots in gained.items():
        s = view.sequences[b]
        own = view.slots[2][s.part][s.entry][k][: s.length]
        if len(own) < 2 or own[1] - own[0] != 1:
            return ""
        low, high = slots[slots < own[0]], slots[slots > own[-1]]
        if (len(low) and (own[0] - low[0] != len(low))) or (len(high) and high[-1] - own[-1] != len(high)):
            return ""
        before.setdefault(b, set()).add(len(low))
        after.setdefault(b, set()).add(len(high))
        heads[b, k] = own[0]
    if any(len(counts) > 1 for side in (before, after) for counts in side.values()):
        before = {b: {max(counts)} for b, counts in before.items()}  # the array ends
        after = {b: {max(counts)} for b, counts in after.items()}
    before, after = ({b: counts.pop() for b, counts in side.items()} for side in (before, after))
    words = []
    if any(before.values()):
        of = {b: _start_in_array(view, b) for b in before}
        words.append(f"the last keys of the sequence before it: {_counts(before)}{_aligned(before, of, -1)}")
    if any(after.values()):
        whose = (
            "what is stored past their last"
            if _unheld(pool, gained)
            else "the first keys of the next sequence"
        )
        of = {b: view.sequences[b].length for b in after}
        ends = {b: _start_in_array(view, b) + view.sequences[b].length for b in after}
        rule = _aligned(after, of, 1) or _aligned(after, ends, 1, " of the array")
        words.append(f"{whose}: {_counts(after)}{rule}")
    return ", and ".join(words)


def _start_in_array(view, b):
    s = view.sequences[b]
    return int(view.slots[2][s.part][s.entry][0, 0])


def _unheld(pool, gained):
    held = np.zeros(pool.count, bool)
    for array in pool.view.slots[2]:
        held[array.ravel()] = True
    slots = np.concatenate(list(gained.values()))
    return held[slots].mean() < 0.5


def _counts(counts):
    told = [f"{count} in sequence {b}" for b, count in sorted(counts.items()) if count]
    return ", ".join(told[:6]) + (", ..." if len(told) > 6 else "")


def _aligned(counts, edges, sign, of=""):
    """Words for an edge that is rounded to a multiple of something; "" where counts are no such."""
    if len(set(counts.values())) == 1 and len(counts) > 1:
        return ""
    for size in UNITS:
        if all(count == (sign * -edges[b]) % size for b, count in counts.items()):
            if sign < 0:
                return f" (from the last multiple of {size} at or before their first key)"
            return f" (as far as the last tile of {size} keys{of} reaches)"
    return ""


def _whole_sequences(pool, gained):
    """Whole other sequences, in words."""
    view = pool.view
    number = {}
    for n, s in enumerate(view.sequences):
        for k, slots in enumerate(view.slots[2][s.part][s.entry]):
            number.setdefault(k, np.full(pool.count, -1))[slots[: s.length]] = n
    read = {}
    for (b, k), slots in gained.items():
        of = number[k][slots]
        if (of < 0).any():
            return ""
        counts = dict(zip(*np.unique(of, return_counts=True)))
        if any(count < 0.9 * view.sequences[n].length for n, count in counts.items()):
            return ""
        read.setdefault(b, set()).update(map(int, counts))
    count = len(view.sequences)
    rules = [("all other sequences", lambda b: set(range(count)))]
    rules += [
        (
            f"the sequences whose number has the same remainder by {n}",
            lambda b, n=n: {*range(b % n, count, n)},
        )
        for n in (2, 3, 4)
    ]
    rules += [
        (f"the other sequences of its {n}", lambda b, n=n: {*range(b // n * n, min(b // n * n + n, count))})
        for n in (2, 3, 4)
    ]
    rules += [("all sequences before it", lambda b: {*range(b)}), ("the next sequence", lambda b: {b + 1})]
    rules += [("the sequence before it", lambda b: {b - 1})]
    listed = "; ".join(f"{b} sees {ranges(sorted(others))}" for b, others in sorted(read.items())[:6])
    for words, rule in rules:
        if all(others == rule(b) - {b} for b, others in read.items()):
            return f"those of {words} (sequence {listed})"
    return f"those of other sequences (sequence {listed})"


def _named(pool, gained):
    """Which keys of what, for the first readers."""
    view = pool.view
    told = {}
    for (b, k), slots in sorted(gained.items()):
        told.setdefault((b, places_in_words(view, slots, k, b)), []).append(k)
    words = []
    for (b, what), heads in list(told.items())[:MOST_LISTED]:
        of = "" if len(heads) == view.num_kv_heads else f", head {ranges(heads)}"
        words.append(f"in sequence {b}{of}: {what}")
    return f"others ({'; '.join(words)}{'; ...' if len(told) > MOST_LISTED else ''})"


def places_in_words(view, slots, k, b):
    """Stored rows as keys of heads of sequences: those that the reader would call its own first."""
    order = sorted(range(len(view.sequences)), key=lambda n: (n != b, n))
    left, told = set(slots.tolist()), []
    if view.pages is not None:
        left, told = _behind_in_own_pages(view, left, k, view.sequences[b])
    for n in order:
        s = view.sequences[n]
        rows = view.slots[2][s.part][s.entry]
        for head in sorted(range(len(rows)), key=lambda head: head != k):
            for past in (False, True):
                part = rows[head][s.length :] if past else rows[head][: s.length]
                keys = [
                    j + (s.length if past else 0) for j, slot in enumerate(part.tolist()) if slot in left
                ]
                if keys:
                    left -= set(part.tolist())
                    whose = "its own " if n == b else ""
                    of = "" if n == b else f" of sequence {n}"
                    head_words = "" if head == k else f" of head {head}"
                    behind = " (past its length)" if past else ""
                    told.append(f"{whose}keys {ranges(keys)}{of}{head_words}{behind}")
    if left:
        told.append(f"{len(left)} rows that no sequence holds")
    return ", ".join(told[:MOST_LISTED]) + (", ..." if len(told) > MOST_LISTED else "")


def _behind_in_own_pages(view, slots, k, s):
    """Slots of the sequence's own row of the block table past its length: what is left, and words."""
    size, heads = view.page_size, view.num_kv_heads
    keys, left = [], set(slots)
    for place, page in enumerate(view.checked.block_table[s.part].tolist()):
        for at in range(size):
            slot = (page * heads + k) * size + at
            if slot in left and place * size + at >= s.length:
                keys.append(place * size + at)
                left.discard(slot)
    if not keys:
        return left, []
    to_the_end = keys[-1] == -(-s.length // size) * size - 1
    end = ", to the end of its last page" if to_the_end else ""
    return left, [f"keys {ranges(keys)} of its own pages, past its length of {s.length}{end}"]
