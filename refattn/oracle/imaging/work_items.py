"""Work items, tiles of rows of a head, in the order in which a kernel computes them."""

from __future__ import annotations

import numpy as np

ROW_TILES = (8, 16, 32, 48, 64, 96, 128)
HALF = 0.5  # of the rows must be found at one distance
LEAST_TILE = 16  # rows of an item that has a source of its own
LEAST_OF_ITEM, CLEAR, NEARLY_ALL = 6, 0.7, 0.9  # rows of an item; shares of rows


HEADS, TILES, SEQUENCES = "head after head", "all heads of a tile first", "tile after tile, for each head"


class Order:
    """An order of all rows, of which `tile` rows of a head are one item.

    Rows are numbered so that those at the same place of the item n before have a number n * tile less.
    """

    def __init__(self, view, tile, by=HEADS):
        self.sequences, self.num_heads, self.num_rows = view.shape[:3]
        self.tile, self.by = tile, by
        self.tiles = -(-self.num_rows // tile)
        items = np.indices((self.sequences, self.num_heads, self.tiles)).reshape(3, -1)
        b, h, n = items[:, items[2] * tile < np.array([len(s.rows) for s in view.sequences])[items[0]]]
        order = {
            HEADS: np.lexsort((n, h, b)),
            TILES: np.lexsort((h, b, n)),
            SEQUENCES: np.lexsort((n, b, h)),
        }
        self.items = np.stack([b, h, n])[:, order[by]]
        self.places = np.full((self.sequences, self.num_heads, self.tiles), -1)
        self.places[tuple(self.items)] = np.arange(len(b))

    def number(self, b, h, t):
        tile, place = np.divmod(t, self.tile)
        return self.places[b, h, tile] * self.tile + place

    def row(self, number):
        """Places (b, h, t) of the rows of these numbers, and which of them there are."""
        item, place = np.divmod(number, self.tile)
        b, h, tile = self.items[:, np.clip(item, 0, self.items.shape[1] - 1)]
        t = tile * self.tile + place
        inside = (item >= 0) & (item < self.items.shape[1]) & (t < self.num_rows)
        return (b, h, np.where(inside, t, 0)), inside

    def words(self, before):
        count, way = abs(before), "before" if before > 0 else "further on"
        if self.tiles == 1 and self.by == SEQUENCES:
            return f"the row {count} sequence{'s' * (count > 1)} {way}"
        if self.tiles == 1:
            every = "heads (of all sequences, one after the other)" if self.sequences > 1 else "heads"
            return f"the row {count} query {every} {way}"
        what = f"{count} tile{'s' * (count > 1)} of {self.tile} rows {way}"
        return f"the row {what} (in the order of the work, {self.by})"


class Source:
    """Of n rows, each in a place of arrays (B, H, T), the ones that stand at one distance in an order."""

    def __init__(self, order, at, before):
        self.words, self.order, self.before = order.words(before), order, before
        self.other, self.inside = order.row(order.number(*at) - before * order.tile)

    def of(self, array):
        """Numbers of the other rows; NaN where there is none."""
        return np.where(self.inside, array[self.other], np.nan)

    def at(self, at):
        """The same of rows in other places."""
        return Source(self.order, at, self.before)


def orders(view):
    yield Order(view, view.shape[2])
    if view.shape[0] > 1:
        yield Order(view, view.shape[2], SEQUENCES)
    for tile in ROW_TILES:
        if tile < view.shape[2]:
            yield Order(view, tile)
            if view.shape[0] * view.shape[1] > 1:
                yield Order(view, tile, TILES)
            if view.shape[0] > 1:
                yield Order(view, tile, SEQUENCES)


def common_sources(view, at, near, some, source):
    """Where rows stand in whose numbers those of other rows were found, likeliest first: `Source`s.

    `near` (n, N) says in which rows `source` (N, 3) those of the rows `some` (n,) of `at` were found.
    """
    row, found = np.nonzero(near)
    if not len(row):
        return []
    some = np.asarray(some)
    own, other = tuple(axis[some[row]] for axis in at), tuple(source[found].T)
    best = []
    for order in orders(view):
        steps = order.number(*own) - order.number(*other)
        steps = steps[(steps % order.tile == 0) & (steps != 0)] // order.tile  # of items
        if not len(steps):
            continue
        values, counts = np.unique(steps, return_counts=True)
        n = counts.argmax()
        if counts[n] >= HALF * len(some):
            share, before = round(counts[n] / len(some), 1), int(values[n])
            best.append((-share, abs(before), len(best), Source(order, at, before)))
    if not best and (table := _table(view, at, some, own, other)) is not None:
        return [table]
    return [entry for *_, entry in sorted(best, key=lambda entry: entry[:3])[:2]]


class Table:
    """Sources that were found for each tile of rows alone: `taken` {item: item} of an order."""

    def __init__(self, order, at, taken):
        item, place = np.divmod(order.number(*at), order.tile)
        from_item = np.array([taken.get(int(n), -1) for n in item])
        self.other, self.inside = order.row(from_item * order.tile + place)
        pairs = [
            f"{_item_in_words(order, b)} that of {_item_in_words(order, a)}"
            for a, b in ((source, own) for own, source in sorted(taken.items()))
        ]
        self.order, self.taken = order, taken
        self.words = (
            f"the row at the same place of another tile of {order.tile} rows, computed before "
            f"({', '.join(pairs[:4])}{', ...' if len(pairs) > 4 else ''})"
        )

    of = Source.of

    def at(self, at):
        """The same of rows in other places."""
        return Table(self.order, at, self.taken)


def _item_in_words(order, item):
    (b, h, t), _ = order.row(np.array([item * order.tile]))
    of = f"sequence {b[0]}, " if order.sequences > 1 else ""
    return f"{of}head {h[0]}, rows {t[0]} to {min(t[0] + order.tile, order.num_rows) - 1}"


def _table(view, at, some, own, other):
    """The source of each tile of rows, where nearly all tiles have one; None where that is not so."""
    for order in orders(view):
        if order.by != HEADS or order.tile < LEAST_TILE:
            continue
        same = (order.number(*own) - order.number(*other)) % order.tile == 0
        mine, theirs = order.number(*own)[same] // order.tile, order.number(*other)[same] // order.tile
        every = order.number(*(axis[some] for axis in at)) // order.tile
        taken, covered = {}, 0
        for item in np.unique(every):
            values, counts = np.unique(theirs[(mine == item) & (theirs != item)], return_counts=True)
            size = (every == item).sum()
            if len(values) and size >= LEAST_OF_ITEM and counts.max() > CLEAR * size:
                taken[int(item)] = int(values[counts.argmax()])
                covered += size
        if covered > NEARLY_ALL * len(some) and len(taken) > 1:
            return Table(order, at, taken)
    return None
