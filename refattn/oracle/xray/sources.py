"""Values that come from elsewhere: another head, sequence, page, key or column."""

from __future__ import annotations

import numpy as np

from refattn.oracle.xray.maps import describe_map
from refattn.oracle.xray.pointing import point
from refattn.oracle.xray.view import VALUE

LEAST = 0.02  # of the rows that were pointed, which must read elsewhere
WHOLE = 0.9  # of a row's weight: it comes from one place
SOME = 0.02
POINTED = 96  # rows, at least, that are pointed at keys


def find_sources(description):
    """Findings about where values are read, each with the rows (B, H, T) that it explains."""
    found = list(_addresses(description))
    if not found or found[0][0].kind == "head":
        found = [*_pages(description), *_shares(description)] or found
    yield from found


# which head and sequence


def _shares(d):
    """Weight that lies on values of another head or sequence, or of none."""
    view, m = d.view, d.measured
    if view.latent:
        return
    heads, sequences, outside, own = m.sources
    with np.errstate(all="ignore"):
        total = heads.sum(-1) + outside.sum(-1)
        known = view.row_exists & (total > 0.01) & np.isfinite(total) & ~d.explained
        stray = known & (outside.sum(-1) > SOME * total)
    if stray.any():
        tail, other = (float(np.median((outside[..., n] / total)[stray])) for n in range(2))
        words = (
            "slots past the length of the sequence, in its own last page or row,"
            if tail > other
            else "slots that no sequence holds (pages or rows that are not in use)"
        )
        d.stray = stray, tail + other, words
        d.value_rows |= stray
    kv = (view.heads // view.group_size).reshape(1, -1, 1)
    for shares, mine, name, what in (
        (heads, np.broadcast_to(kv, total.shape), "key/value head", "head"),
        (sequences, np.broadcast_to(own.reshape(-1, 1, 1), total.shape), "sequence", "sequence"),
    ):
        if shares.shape[-1] < 2:
            continue
        with np.errstate(all="ignore"):
            of_own = np.take_along_axis(shares, mine[..., None], -1)[..., 0] / np.maximum(
                shares.sum(-1), 1e-300
            )
        wrong = known & ~stray & (of_own < 1 - SOME) & (shares.sum(-1) > 0.01)
        if not wrong.any():
            continue
        d.value_rows |= wrong
        rule = d._of_rows(wrong)
        target = shares.argmax(-1)
        whole = wrong & (np.take_along_axis(shares, target[..., None], -1)[..., 0] >= WHOLE * shares.sum(-1))
        if whole.sum() >= WHOLE * wrong.sum():
            index = np.nonzero(whole)
            by = view.heads[index[1]] if what == "head" else mine[whole]
            words, _ = describe_map(
                mine[whole], target[whole], name, functions_of=(by, "h") if what == "head" else None
            )
            listed = _listed(by, target[whole], "query head" if what == "head" else "sequence", name)
            yield (
                d._finding(rule, "source", f"the values are those of another {name}: {words} ({listed})"),
                np.zeros_like(wrong),
            )
        else:
            share = float(np.median(1 - of_own[wrong]))
            yield (
                d._finding(
                    rule,
                    "source",
                    f"{100 * share:.2g} % of the weight (median) lies on values of another {name}: some of the keys are read there",
                ),
                np.zeros_like(wrong),
            )


def _listed(by, target, who, name):
    pairs = sorted({*zip(by.tolist(), target.tolist(), strict=True)})
    words = ", ".join(f"{a} -> {b}" for a, b in pairs[:8])
    return f"{who} -> {name}: {words}{', ...' if len(pairs) > 8 else ''}"


# which key, page and column


def _coordinates(view):
    """What the place of a stored value is made of: name and words, in the order in which they are told."""
    if view.pages is None:
        return (("sequence", "sequence"), ("head", "key/value head"), ("key", "key"), ("column", "column"))
    return (
        ("place", "page of the block table"),
        ("page", "physical page"),
        ("head", "key/value head"),
        ("slot", "slot"),
        ("column", "column"),
    )


def _addresses(d):
    """Keys that go with the values of other places."""
    view, ledgers = d.view, d.ledgers
    rows = int(view.visible.any(-1).sum())
    rounds = int(np.clip(np.ceil(POINTED / max(rows, 1)), 1, 5))
    pointed = point(d.measured, ledgers.wrong, rounds)
    if pointed is None:
        return
    b, h, t = pointed.at
    kv = view.heads[h] // view.group_size
    use = ~d.measured.varies[pointed.at] & ~d.explained[pointed.at]
    lost = (pointed.place < 0) | ~use[:, None]
    here = {"sequence": b, "head": kv, "key": pointed.key}
    got = {"sequence": pointed.sequence, "head": pointed.head, "key": pointed.read, "column": pointed.column}
    if view.pages is not None:
        size, heads = view.page_size, view.num_kv_heads
        here |= {
            "place": pointed.key // size,
            "page": view.pages[b, 0, 0, pointed.key],
            "slot": pointed.key % size,
        }
        page, rest = np.divmod(np.maximum(pointed.place, 0), heads * size)
        table = view.checked.block_table[[view.sequences[n].part for n in b]]  # (R, max_pages)
        at = table[:, None, :] == page[..., None]
        got |= {
            "place": np.where(at.any(-1), at.argmax(-1), -1),
            "page": page,
            "head": rest // size,
            "slot": rest % size,
        }
    names = _coordinates(view)
    columns = np.arange(pointed.read.shape[1])
    own = {
        name: np.broadcast_to(columns if name == "column" else here[name][:, None], lost.shape)
        for name, _ in names
    }
    wrong = {name: (got[name] != own[name]) & ~lost & (got[name] >= 0) for name, _ in names}
    moved = np.logical_or.reduce(list(wrong.values()))
    bad_rows = moved.any(1)
    if not use.any() or bad_rows.sum() < 3 or bad_rows.sum() < LEAST * use.sum():
        return
    told = _in_memory(view, pointed, own["column"], moved, d)
    for name, what in () if told else names:
        some = wrong[name]
        if some.sum() < 0.05 * moved.sum() or (name == "page" and told and told[0][0] == "place"):
            continue
        before, after = own[name][some], got[name][some]
        sizes = [(view.sequences[0].length, "the length")] if name == "key" else []
        words, found = describe_map(before, after, what, sizes)
        # a row that was pointed at a key that it does not see reads some other one: only a rule is believed
        if (found and _telling(before, after)) or _table(before, after):
            told.append((name, words, found, some))
    if not told:
        return
    shown = np.logical_or.reduce([some for *_, some in told]).any(1)
    marks, universe = np.zeros(view.shape, bool), np.zeros(view.shape, bool)
    universe[b[use], h[use], t[use], pointed.key[use]] = True
    marks[b[shown], h[shown], t[shown], pointed.key[shown]] = True
    rule = d.regions.find(marks, universe)
    text = "; ".join(words for _, words, *_ in told)
    rows = rule.inside.any(-1) & (ledgers.wrong.any(-1) | (d.measured.unexplained > 1).any(-1))
    kinds = {name for name, *_ in told}
    if kinds == {"column"}:
        nature = f"values are read from other columns: {text}"
    elif kinds <= {"place", "page", "slot"}:
        nature = f"values are read from other pages: {text}"
    elif kinds == {"head"}:
        listed = _listed(view.heads[h[shown]], got["head"][shown].max(1), "query head", "key/value head")
        nature = f"the values are those of another key/value head: {text} ({listed})"
    else:
        nature = f"keys are paired with the values of other places: {text}"
    if "column" in kinds:
        rows = np.broadcast_to(view.row_exists, view.shape[:3])
    kind = "head" if kinds <= {"head", "sequence"} else "source"
    yield d._finding(rule, kind, nature, confident=True), rows | marks.any(-1)


def _in_memory(view, pointed, columns, moved, d):
    """One distance in memory at which all values are read, which is no step of a page, head or key alone; else nothing."""
    b, h, _ = pointed.at
    slots, kv = view.slots[VALUE], view.heads[h] // view.group_size
    own = np.array(
        [slots[view.sequences[n].part][view.sequences[n].entry, k, j] for n, k, j in zip(b, kv, pointed.key, strict=True)]
    )
    distance = (pointed.place - own[:, None])[moved]
    steps, counts = np.unique(distance, return_counts=True)
    if view.pages is None or not len(steps) or counts.max() < WHOLE * counts.sum() or counts.max() < 3:
        return []
    step = int(steps[counts.argmax()])
    per_page = view.page_size * view.num_kv_heads
    if step % per_page == 0 or abs(step) < view.page_size:
        return []
    words = f"{abs(step)} rows of the pool {'further on' if step > 0 else 'further back'} (pages, heads and slots counted in one: an address that wraps or starts elsewhere)"
    return [("memory", words, True, moved)]


def _table(before, after):
    """Whether places are read in place of others so often that chance is out of the question."""
    pairs = {}
    for a, b in zip(before.tolist(), after.tolist(), strict=True):
        pairs.setdefault(a, set()).add(b)
    return len(before) >= 3 * len(pairs) and sum(len(found) == 1 for found in pairs.values()) >= 0.95 * len(
        pairs
    )


def _telling(before, after):
    """Whether a rule says more than that one thing was read once."""
    return len(before) >= 3 and (len(np.unique(before)) > 1 or len(np.unique(after)) == 1)


# which physical page


def _pages(d):
    """Physical pages that sequences read, against those of their block table."""
    view = d.view
    if view.pages is None or d.measured.pages_read is None:
        return
    table, lengths = view.checked.block_table, [s.length for s in view.sequences]
    wanted, read, sequences, tables, used_pages = [], [], [], [], []
    for n, s in enumerate(view.sequences):
        own = table[s.part, : -(-lengths[n] // view.page_size)].tolist()
        used = {int(p) for p in np.flatnonzero((d.measured.pages_read[n] > 0).any((0, 1)))}
        missing = [(t, p) for t, p in enumerate(own) if p not in used]
        behind = {*table[s.part].tolist()} - {*own}  # pages past the length
        extra = sorted(used - set(own) - (set() if missing else behind))
        if extra or missing:
            sequences.append(n)
            wanted.append(missing)
            read.append(extra)
            tables.append(own)
            used_pages.append(used)
    if not sequences:
        return
    rule = _page_rule(wanted, read, tables, used_pages, [view.sequences[n].part for n in sequences], view)
    if not any(read) and not rule:
        return
    listed = "; ".join(
        f"sequence {n} reads {', '.join(map(str, extra[:5]))}{', ...' if len(extra) > 5 else ''} in place of {', '.join(str(p) for _, p in missing[:5]) or 'none'}{', ...' if len(missing) > 5 else ''}"
        for n, missing, extra in list(zip(sequences, wanted, read, strict=True))[:3]
    )
    strange = np.zeros(view.shape, bool)
    for n, missing in zip(sequences, wanted, strict=True):
        for t, _ in missing:
            strange[n, ..., t * view.page_size : (t + 1) * view.page_size] = True
    where = d.regions.find(strange & view.visible, view.visible)
    d.value_rows[sequences] = True
    rows = np.zeros(view.shape[:3], bool)
    rows[sequences] = True
    yield (
        d._finding(
            where, "pages", f"pages are read that are not in the block table of the sequence: {rule}{listed}"
        ),
        rows,
    )


def _page_rule(wanted, read, tables, used, parts, view):
    """A rule that gives the pages that were read from those of the table, in words; "" if there is none.

    It may hold for all places of the table, or for those alone whose page is not read.
    """
    table, pages = view.checked.block_table, len(np.asarray(view.arrays[1]))
    whole = lambda n: table[parts[n]].tolist()
    candidates = []
    steps = (
        {b - a for (_, a), b in zip(wanted[0][:6], read[0][:6], strict=False)} | {1, -1}
        if wanted[0]
        else {1, -1}
    )
    for step in sorted(steps | {b - a for _, a in wanted[0] for b in read[0]}, key=abs):
        candidates.append(
            (f"page {'+' if step > 0 else '-'} {abs(step)}: ", lambda n, t, p, step=step: p + step)
        )
    for bits in range(2, 13):
        candidates.append(
            (
                f"page % {1 << bits} (the number is cut to {bits} bits): ",
                lambda n, t, p, bits=bits: p % (1 << bits),
            )
        )
    for size in (2, 3, 4, 8):
        candidates.append(
            (
                f"the table is read once for every {size} pages, the others are those that follow it in the pool: ",
                lambda n, t, p, size=size: tables[n][t // size * size] + t % size,
            )
        )
    for step in (1, -1, 2, -2):
        candidates.append(
            (
                f"the place in the table is off by {step}: ",
                lambda n, t, p, step=step: whole(n)[min(max(t + step, 0), len(whole(n)) - 1)],
            )
        )
    for words, other in (
        ("first", lambda n: 0),
        ("next", lambda n: min(parts[n] + 1, len(table) - 1)),
        ("previous", lambda n: max(parts[n] - 1, 0)),
    ):
        candidates.append(
            (
                f"the table of the {words} sequence is read: ",
                lambda n, t, p, other=other: int(table[other(n)][t]),
            )
        )
    for count in (4, 8, 16, 32, 64):
        candidates.append((f"the first {count} places of the table are read again and again (place % {count}): ", lambda n, t, p, count=count: tables[n][t % count]))
    candidates.append(
        (
            "the table is not used, pages are read in order (the place in the table is taken for the page): ",
            lambda n, t, p: t,
        )
    )
    width = table.shape[1]
    candidates.append(
        (
            "the table is not used, pages are read as if each sequence had its own stretch of the pool: ",
            lambda n, t, p: parts[n] * width + t,
        )
    )
    flat = table.ravel()
    for stride in {*range(1, width + 4)} - {width}:
        candidates.append(
            (
                f"rows of the block table are read with a stride of {stride} in place of {width}: ",
                lambda n, t, p, stride=stride: int(flat[min(parts[n] * stride + t, len(flat) - 1)]),
            )
        )
    candidates.append(
        (
            "the page behind the one before it in the table, in the pool: ",
            lambda n, t, p: tables[n][t - 1] + 1 if t else p,
        )
    )
    limit = lambda page: min(max(page, 0), pages - 1)
    for words, rule in candidates:
        all_places = [{limit(rule(n, t, p)) for t, p in enumerate(tables[n])} for n in range(len(tables))]
        if all(predicted == mine for predicted, mine in zip(all_places, used, strict=True)):
            return words
        some = [{limit(rule(n, t, p)) for t, p in wanted[n]} for n in range(len(tables))]
        if any(read) and all({*read[n]} <= predicted and predicted <= used[n] for n, predicted in enumerate(some)):
            return words
    held = set(table.ravel().tolist())
    if any(read) and all({*extra} <= held for extra in read):
        return "pages of other sequences, or of places past the length: "
    return ""
