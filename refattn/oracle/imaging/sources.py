"""Values that come from elsewhere: another head, sequence, page, key or column."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from refattn.oracle.imaging.blocks import blocks_in_words
from refattn.oracle.imaging.compare import MISSING, RIGHT
from refattn.oracle.imaging.exchanged_keys import exchanged_keys
from refattn.oracle.imaging.maps import describe_map, ranges
from refattn.oracle.imaging.moved_values import moved_values
from refattn.oracle.imaging.pointing import point
from refattn.oracle.imaging.pool import Pool
from refattn.oracle.imaging.pool_description import read_elsewhere
from refattn.oracle.imaging.view import VALUE

LEAST = 0.03  # of the rows that were pointed, which must read elsewhere
LEAST_ROWS = 5
LEAST_MOVED = 0.05  # of what is read elsewhere: less is chance
MUCH_MOVED = 0.25  # more than that without a rule, and what else was found is not all
WHOLE = 0.9  # of a row's weight: it comes from one place
SOME = 0.02  # of a row's weight
LEAST_WEIGHT = 0.01  # of a row, so that shares of it mean something
POINTED, MOST_ROUNDS = 96, 5  # rows, at least, that are pointed at keys
ALWAYS = 0.95  # of the places that were read in place of others: each was read in place of one alone
SEPARATED = 0.6  # of what is read elsewhere, that a place must hold: else it is chance
IN_PAGES = {"place", "page", "slot"}  # names of a `Move` from page to page


def find_sources(description):
    """Findings about where values are read, each with the rows (B, H, T) that it explains."""
    found = list(moved_values(description) if description.view.latent else read_elsewhere(description))
    if found:
        yield from found
        return
    found = list(_addresses(description))
    if not found or found[0][0].kind == "head":
        found = [*_pages(description), *_shares(description)] or found
    yield from found


# which head and sequence


def _shares(d):
    """Weight that lies on values of another head or sequence, or of none."""
    view = d.view
    if view.latent or d.measured.sources is None:
        return
    heads, sequences, outside, own = d.measured.sources
    total = heads.sum(-1) + outside.sum(-1)
    known = view.row_exists & (total > LEAST_WEIGHT) & np.isfinite(total) & ~d.explained
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
    known &= ~stray
    head = np.broadcast_to(view.heads.reshape(1, -1, 1), total.shape)
    sequence = np.broadcast_to(own.reshape(-1, 1, 1), total.shape)
    by_head = "query head", head, "key/value head", head // view.group_size
    yield from _elsewhere(d, heads, total, known, by_head, functions_of="h")
    yield from _elsewhere(d, sequences, total, known, ("sequence", sequence, "sequence", sequence))


def _elsewhere(d, shares, total, known, places, functions_of=None):
    """Weight on values of other heads or sequences than the own, in rows (B, H, T) that are `known`. The
    shares of sequences may add up to more than the `total`: some share pages.

    `places` are what a row belongs to and its number, and what values belong to and the right number of it;
    `functions_of` is a short name of the first number, from which the kernel may compute the second.
    """
    if shares.shape[-1] < 2:
        return
    who, by, name, mine = places
    of = lambda number: np.take_along_axis(shares, number[..., None], -1)[..., 0]
    of_own = of(mine) / np.maximum(total, 1e-300)
    wrong = known & (of_own < 1 - SOME) & (total > LEAST_WEIGHT)
    if not wrong.any():
        return
    d.value_rows |= wrong
    target = shares.argmax(-1)
    whole = wrong & (of(target) >= WHOLE * total)
    if whole.sum() >= WHOLE * wrong.sum():
        function = (by[whole], functions_of) if functions_of else None
        words, _ = describe_map(mine[whole], target[whole], name, functions_of=function)
        listed = _listed(by[whole], target[whole], who, name)
        nature = f"the values are those of another {name}: {words} ({listed})"
    else:
        share = 100 * float(np.median(1 - of_own[wrong]))
        weight = f"{share:.2g} % of the weight (median)"
        nature = f"{weight} lies on values of another {name}: some of the keys are read there"
        pool = Pool.of(d.measured, d.ledgers)
        if pool is not None and (words := exchanged_keys(pool, wrong)):
            nature = words
            yield d.finding(d.of_rows(wrong), "source", nature), wrong
            return
    yield d.finding(d.of_rows(wrong), "source", nature), np.zeros_like(wrong)


def _listed(by, target, who, name):
    pairs = sorted({*zip(by.tolist(), target.tolist(), strict=True)})
    words = ", ".join(f"{a} -> {b}" for a, b in pairs[:8])
    return f"{who} -> {name}: {words}{', ...' if len(pairs) > 8 else ''}"


# which key, page and column


@dataclass(eq=False)
class Move:
    """Values that are read in another place than their own.

    Attributes
    ----------
    name : str
        What the place is: "sequence", "head", "key", "column", or of paged calls also "place" (in the block
        table), "page", "slot", "memory".
    words : str
    some : ndarray of bool, (R, E)
        The values, of the rows that were pointed at keys.
    """

    name: str
    words: str
    some: np.ndarray


def _coordinates(view, pointed):
    """What the place of a stored value is made of, in the order in which it is told: (name, words, number of
    the value that should be read, number of the one that was, both (R, E)).
    """
    b, h, _ = pointed.at
    columns = np.arange(pointed.read.shape[1])
    kv = view.heads[h] // view.group_size
    of_rows = lambda numbers: np.broadcast_to(numbers[:, None], pointed.read.shape)
    column = "column", "column", np.broadcast_to(columns, pointed.read.shape), pointed.column
    if view.pages is None:
        return [
            ("sequence", "sequence", of_rows(b), pointed.sequence),
            ("head", "key/value head", of_rows(kv), pointed.head),
            ("key", "key", of_rows(pointed.key), pointed.read),
            column,
        ]
    size = view.page_size
    page, rest = np.divmod(np.maximum(pointed.place, 0), view.num_kv_heads * size)
    table = view.checked.block_table[[view.sequences[n].part for n in b]]  # (R, max_pages)
    at = table[:, None, :] == page[..., None]
    place = np.where(at.any(-1), at.argmax(-1), -1)
    own_page = view.pages[b, 0, 0, pointed.key]
    return [
        ("place", "page of the block table", of_rows(pointed.key // size), place),
        ("page", "physical page", of_rows(own_page), page),
        ("head", "key/value head", of_rows(kv), rest // size),
        ("slot", "slot", of_rows(pointed.key % size), rest % size),
        column,
    ]


def _addresses(d):
    """Keys that go with the values of other places."""
    view = d.view
    rows = int(view.visible.any(-1).sum())
    rounds = int(np.clip(np.ceil(POINTED / max(rows, 1)), 1, MOST_ROUNDS))
    pointed = point(d.measured, d.ledgers.wrong, rounds)
    if pointed is None:
        return
    use = ~d.measured.varies[pointed.at] & ~d.explained[pointed.at]
    known = (pointed.place >= 0) & use[:, None]
    places = _coordinates(view, pointed)
    wrong = {name: (got != own) & known & (got >= 0) for name, _, own, got in places}
    moved = np.logical_or.reduce(list(wrong.values()))
    if not use.any() or moved.any(1).sum() < max(LEAST_ROWS, LEAST * use.sum()):
        return
    moves = _in_memory(view, pointed, moved) or _in_blocks(view, places, moved)
    complete = bool(moves)
    if not moves:
        moves, complete = _moves(view, pointed, places, wrong, moved)
    if moves:
        heads = next(got for name, _, _, got in places if name == "head")
        finding, rows = _told(d, pointed, use, heads, moves)
        finding = dataclasses.replace(finding, confident=complete)
        if finding.share >= SEPARATED and finding.right_inside <= finding.wrong:
            yield finding, rows


def _moves(view, pointed, places, wrong, moved):
    """The coordinates in which values are read elsewhere, by a rule or so often that it is no chance; and
    whether no other one changes.
    """
    moves, without_rule = [], set()
    for name, what, own, got in places:
        some = wrong[name]
        told = name == "page" and any(move.name == "place" for move in moves)
        if told or some.sum() < LEAST_MOVED * moved.sum():
            continue
        before, after = own[some], got[some]
        sizes = [(view.sequences[0].length, "the length")] if name == "key" else []
        words, found = describe_map(before, after, what, sizes)
        # a row that was pointed at a key that it does not see reads some other one: only a rule is believed
        if (found and _telling(before, after)) or _table(before, after, _readers(view, pointed, some)):
            moves.append(Move(name, words, some))
        elif some.sum() > MUCH_MOVED * moved.sum():
            without_rule.add(name)
    by_page = {"place", "page"}
    if by_page & {move.name for move in moves}:
        without_rule -= by_page
    return moves, not without_rule


def _told(d, pointed, use, heads, moves):
    """The finding, and the rows that it explains. `heads` are those of the values that were read, (R, E)."""
    view, ledgers = d.view, d.ledgers
    b, h, t = pointed.at
    shown = np.logical_or.reduce([move.some for move in moves]).any(1)
    marks, universe = np.zeros(view.shape, bool), np.zeros(view.shape, bool)
    universe[b[use], h[use], t[use], pointed.key[use]] = True
    marks[b[shown], h[shown], t[shown], pointed.key[shown]] = True
    rule = d.regions.find(marks, universe)
    if {move.name for move in moves} == {"key"}:  # what lost its weight, or kept it, is known of all pairs
        lost = (ledgers.labels == MISSING) & ~d.explained[..., None]
        of_all = d.regions.find(marks | lost, universe | lost | ((ledgers.labels == RIGHT) & view.visible))
        rule = of_all if of_all.fit >= max(rule.fit, ALWAYS) else rule
    rows = rule.inside.any(-1) & (ledgers.wrong.any(-1) | (d.measured.unexplained > 1).any(-1))
    kinds, text = {move.name for move in moves}, "; ".join(move.words for move in moves)
    if kinds == {"block"}:
        nature = f"values are not where they are read: {text}"
    elif kinds == {"column"}:
        nature = f"values are read from other columns: {text}"
    elif kinds <= IN_PAGES:
        nature = f"values are read from other pages: {text}"
    elif kinds == {"head"}:
        listed = _listed(view.heads[h[shown]], heads[shown].max(1), "query head", "key/value head")
        nature = f"the values are those of another key/value head: {text} ({listed})"
    else:
        nature = f"keys are paired with the values of other places: {text}"
    if "column" in kinds:
        rows = np.broadcast_to(view.row_exists, view.shape[:3])
    kind = "head" if kinds <= {"head", "sequence"} else "source"
    return d.finding(rule, kind, nature), rows | marks.any(-1)


def _in_memory(view, pointed, moved):
    """One distance in memory at which all values are read, which is no step of a page, head or key alone;
    else nothing.
    """
    if view.pages is None:
        return []
    slots, kv = view.slots[VALUE], view.heads[pointed.h] // view.group_size
    sequences = [view.sequences[n] for n in pointed.b]
    own = [slots[s.part][s.entry, k, j] for s, k, j in zip(sequences, kv, pointed.key, strict=True)]
    distance = (pointed.place - np.array(own)[:, None])[moved]
    steps, counts = np.unique(distance, return_counts=True)
    if not len(steps) or counts.max() < max(LEAST_ROWS, WHOLE * counts.sum()):
        return []
    step = int(steps[counts.argmax()])
    if step % (view.page_size * view.num_kv_heads) == 0 or abs(step) < view.page_size:
        return []
    words = (
        f"{abs(step)} rows of the pool {'further on' if step > 0 else 'further back'} "
        "(pages, heads and slots counted in one: an address that wraps or starts elsewhere)"
    )
    return [Move("memory", words, moved)]


def _in_blocks(view, places, moved):
    """Keys and columns that are exchanged, or permuted by each other's bits; else nothing."""
    if view.pages is not None:
        return []
    of = {name: (own[moved], got[moved]) for name, _, own, got in places}
    words = blocks_in_words(of["key"][0], of["column"][0], of["key"][1], of["column"][1])
    columns = np.unique(of["column"][0]).tolist()
    where = "" if len(columns) == moved.shape[1] else f", in columns {ranges(columns)}"
    return [Move("block", words + where, moved)] if words else []


def _readers(view, pointed, some):
    """Number of the sequence and key/value head by which each of the values `some` (R, E) was read."""
    number = pointed.b * view.num_kv_heads + view.heads[pointed.h] // view.group_size
    return np.broadcast_to(number[:, None], some.shape)[some]


def _table(before, after, readers):
    """Whether places are read in place of others so often, and by so many heads, that it is no chance: a row
    that does not see its key reads another one, the same for all rows of a head.
    """
    pairs, by = {}, {}
    for a, b, reader in zip(before.tolist(), after.tolist(), readers.tolist(), strict=True):
        pairs.setdefault(a, set()).add(b)
        by.setdefault(a, set()).add(reader)
    alone = sum(len(found) == 1 for found in pairs.values())
    several = sum(len(found) > 1 for found in by.values())
    return len(before) >= 3 * len(pairs) and alone >= ALWAYS * len(pairs) and 2 * several >= len(pairs)


def _telling(before, after):
    """Whether a rule says more than that one thing was read once."""
    return len(before) >= LEAST_ROWS and (len(np.unique(before)) > 1 or len(np.unique(after)) == 1)


# which physical page


@dataclass(eq=False)
class Pages:
    """Physical pages of one sequence that reads others than its own.

    Attributes
    ----------
    number : int
        Of the sequence.
    part : int
        Its row of the block table.
    own : list of int
        Pages that the block table names, up to the length.
    read : set of int
    missing : list of (int, int)
        Places of the table, and the pages there, that are not read.
    extra : list of int
        Pages that are read and not its own.
    """

    number: int
    part: int
    own: list
    read: set
    missing: list
    extra: list


def _pages(d):
    """Physical pages that sequences read, against those of their block table."""
    view = d.view
    if view.pages is None or d.measured.pages_read is None:
        return
    found = list(_wrong_pages(view, d.measured.pages_read))
    rule = page_rule(found, view) if found else ""
    if not rule and not any(pages.extra for pages in found):
        return
    few = lambda numbers: ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")
    listed = "; ".join(
        f"sequence {pages.number} reads {few(pages.extra) or 'others of its own again'}"
        f"{' in place of ' * bool(pages.missing)}{few([p for _, p in pages.missing])}"
        for pages in found[:3]
    )
    strange, rows = np.zeros(view.shape, bool), np.zeros(view.shape[:3], bool)
    for pages in found:
        rows[pages.number] = True
        for t, _ in pages.missing:
            strange[pages.number, ..., t * view.page_size : (t + 1) * view.page_size] = True
    where = d.regions.find(strange & view.visible, view.visible)
    d.value_rows |= rows
    nature = f"pages are read that are not in the block table of the sequence: {rule}{listed}"
    yield d.finding(where, "pages", nature), rows


def _wrong_pages(view, pages_read) -> Iterator[Pages]:
    for n, s in enumerate(view.sequences):
        row = view.checked.block_table[s.part].tolist()
        own = row[: -(-s.length // view.page_size)]
        read = {*np.flatnonzero(pages_read[n]).tolist()}
        missing = [(t, page) for t, page in enumerate(own) if page not in read]
        behind = {*row} - {*own}  # pages past the length
        extra = sorted(read - {*own} - (set() if missing else behind))
        if extra or missing:
            yield Pages(n, s.part, own, read, missing, extra)


def page_rule(found, view, sure=False):
    """A rule that gives the pages that were read from those of the table, in words; "" if there is none.

    It may hold for all places of the table, or for those alone whose page is not read. A number beyond the
    pool is that of its last page, or begins again. `sure`: that pages are not read is no matter of masks.
    """
    count = len(np.asarray(view.arrays[1]))
    extra = any(pages.extra for pages in found)
    for words, rule in (*_other_pages(found[0]), *_other_places(view.checked.block_table)):
        give = lambda pages, places, rule=rule: {
            min(max(rule(pages, t, p), 0), count - 1) for t, p in places
        }
        begun_again = lambda pages, rule=rule: {rule(pages, t, p) % count for t, p in enumerate(pages.own)}
        whole = (pages.read in (give(pages, enumerate(pages.own)), begun_again(pages)) for pages in found)
        if (extra or sure) and all(whole):
            return words
        some = [give(pages, pages.missing) for pages in found]
        if extra and all({*pages.extra} <= given <= pages.read for pages, given in zip(found, some)):
            return words
    held = {*view.checked.block_table.ravel().tolist()}
    if extra and all({*pages.extra} <= held for pages in found):
        return "pages of other sequences, or of places past the length: "
    return ""


def _other_pages(first):
    """Rules of the number of a page: (words, function of `Pages`, a place and the page there). Distances are
    those seen in the first sequence.
    """
    away = lambda step: lambda pages, t, p: p + step
    missing = [page for _, page in first.missing]
    steps = {b - a for a in missing for b in first.extra} | {1, -1}
    for step in sorted(steps, key=lambda step: (abs(step), -step)):
        yield f"page {'+' if step > 0 else '-'} {abs(step)}: ", away(step)
    cut = lambda bits: lambda pages, t, p: p % (1 << bits)
    for bits in range(2, 13):
        yield f"page % {1 << bits} (the number is cut to {bits} bits): ", cut(bits)


def _other_places(table):
    """Rules of the place in the block table, in the same form."""
    width, flat = table.shape[1], table.ravel()
    at = lambda row, t: int(table[row, min(max(t, 0), width - 1)])
    once = lambda size: lambda pages, t, p: pages.own[t // size * size] + t % size
    for size in (2, 3, 4, 8):
        follow = "the others are those that follow it in the pool"
        yield f"the table is read once for every {size} pages, {follow}: ", once(size)
    off = lambda step: lambda pages, t, p: at(pages.part, t + step)
    for step in (1, -1, 2, -2):
        yield f"the place in the table is off by {step}: ", off(step)
    of = "the table of the {} sequence is read: ".format
    yield of("first"), lambda pages, t, p: at(0, t)
    yield of("next"), lambda pages, t, p: at(min(pages.part + 1, len(table) - 1), t)
    yield of("previous"), lambda pages, t, p: at(max(pages.part - 1, 0), t)
    again = lambda count: lambda pages, t, p: pages.own[t % count]
    for count in (4, 8, 16, 32, 64):
        first = f"the first {count} places of the table"
        yield f"{first} are read again and again (place % {count}): ", again(count)
    unused = "the table is not used, pages are read"
    yield f"{unused} in order (the place in the table is taken for the page): ", lambda pages, t, p: t
    yield (
        f"{unused} as if each sequence had its own stretch of the pool: ",
        lambda pages, t, p: pages.part * width + t,
    )
    with_stride = lambda stride: lambda pages, t, p: int(flat[min(pages.part * stride + t, len(flat) - 1)])
    for stride in {*range(1, width + 4)} - {width}:
        strides = f"a stride of {stride} in place of {width}"
        yield f"rows of the block table are read with {strides}: ", with_stride(stride)
    yield (
        "the page behind the one before it in the table, in the pool: ",
        lambda pages, t, p: pages.own[t - 1] + 1 if t else p,
    )
