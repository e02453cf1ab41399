"""Scores that are wrong: one line of `MODELS` for each way, compared with the scores that were measured.

A kernel computes capped(raw) + ALiBi + bias. A model replaces one operand, and may fit one number. What the measured
weights say of the scores, up to one number a row, decides. Models are compared on a sample of the wrong rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from refattn.oracle.xray.compare import RIGHT, SCALED
from refattn.oracle.arithmetic.formats import round_to
from refattn.oracle.xray.planes import planes_from_elsewhere
from refattn.oracle.xray.rounding import rounded_weights, running_maximum

ROWS = 96  # of a sample
EXPLAINS = 0.9  # of the wrong pairs, at least
HELD = 0.25  # of the pairs of a row must be right, so that they are no accident
TILES = (16, 32, 64, 128)
BINS = 24  # of a fraction
MOST_MOVED = 40  # numbers of a bias
MOST_SHIFT = 160  # of positions, that is tried


@dataclass(frozen=True, eq=False)
class Explanation:
    """What explains wrong scores: the words, the share of wrong pairs it explains, and how many numbers it has of its own."""

    kind: str
    words: str
    share: float
    numbers: int = 0


class WrongRows:
    """A sample of rows with wrong scores: what was measured of them, and the operands of their scores, (n, S) each."""

    def __init__(self, ledgers, wrong):
        view, measured = ledgers.view, ledgers.measured
        self.view, self.ledgers = view, ledgers
        places = np.argwhere(wrong.any(-1))
        counts = wrong.sum(-1)[tuple(places.T)]
        rng = np.random.default_rng(0)
        if len(places) > ROWS:
            taken = rng.choice(len(places), ROWS, replace=False, p=counts / counts.sum())
            places = places[np.sort(taken)]
        self.at = tuple(places.T)
        self.b, self.h, self.t = self.at
        self.head = view.heads[self.h]
        self.wrong = wrong[self.at]
        self.judged = (ledgers.labels[self.at] == RIGHT) | (ledgers.labels[self.at] == SCALED)
        self.tolerance = 1.5 * np.broadcast_to(measured.tolerance, view.shape)[self.at]
        with np.errstate(all="ignore"):
            self.measured = np.where(self.judged, np.log(measured.weights[self.at]), np.nan)
        self.judged &= np.isfinite(self.measured)  # hidden pairs are right, and have no score
        self.shift = ledgers.shift[self.at]
        self.raw, self.capped, self.score = view.raw[self.at], view.capped[self.at], view.score[self.at]
        self.lse, self.top = view.lse[self.at], view.top[self.at]
        self.position = view.position[self.b, 0, self.t, 0]
        self.parts = [view.outline_of(n) for n in range(len(view.sequences))]
        self.part = self.parts[0]
        self.cap = self.part.softcap

    def option(self, name, heads=None, batch=None):
        """An option of the rows by head, (n, 1), or None; of other heads or sequences if they are given."""
        heads = self.head if heads is None else heads
        batch = self.b if batch is None else batch
        arrays = [getattr(part, name) for part in self.parts]
        if arrays[0] is None:
            return None
        entries = [s.entry for s in self.view.sequences]
        return np.array([arrays[b][entries[b], h] for b, h in zip(batch, heads, strict=True)])[:, None]

    def plane(self, name, heads=None, rows=None, batch=None):
        """bias of the rows, (n, S), or None; of other heads, rows or sequences if they are given."""
        batch = self.b if batch is None else batch
        heads = self.head if heads is None else heads
        rows = self.view.row[self.b, 0, self.t, 0] if rows is None else rows
        if getattr(self.parts[0], name) is None:
            return None
        whole = np.zeros((len(self.b), self.view.num_keys))
        for n, (b, h, i) in enumerate(zip(batch, heads, rows, strict=True)):
            array = getattr(self.parts[b], name)[self.view.sequences[b].entry]
            line = array[h, min(max(i, 0), array.shape[1] - 1)]
            whole[n, : len(line)] = line
        return whole

    @property
    def distance(self):
        return np.abs(self.position[:, None] - self.view.key[0, 0])

    def capped_of(self, raw, cap=None):
        cap = self.cap if cap is None else cap
        return raw if cap is None else cap * np.tanh(raw / cap)

    def with_rest(self, capped):
        """Capped scores with the right ALiBi and bias added."""
        return capped + (self.score - self.capped)

    def explains(self, scores):
        """Share of the wrong pairs that these scores predict, each row up to one number.

        In a row that has right pairs too, the number is theirs: what is wrong must be explained beside what is right.
        """
        with np.errstate(all="ignore"):
            off = self.measured - scores
            finite = np.isfinite(off)
            off = np.where(finite, off, np.nan)
            right = self.judged & ~self.wrong
            held = right.sum(-1) >= np.maximum(HELD * self.judged.sum(-1), 3)
            own = self.shift - self.lse
            candidates = [own, -self.lse]
            ordered, count = np.sort(off, axis=-1), finite.sum(-1)
            for share in (0.5, 0.3, 0.7, 0.15, 0.85):
                at = np.clip((share * (count - 1)).astype(int), 0, None)
                candidates.append(np.take_along_axis(ordered, at[:, None], -1)[:, 0])
            best = np.zeros(len(off))
            for candidate in candidates:
                number = np.where(held, own, candidate)
                near = np.abs(off - number[:, None]) <= self.tolerance
                best = np.maximum(best, (near & self.wrong).sum(-1))
            # a model of the whole row may move what is right by one number
            number = _median(np.where(right, off, np.nan))
            near = np.abs(off - number[:, None]) <= self.tolerance
            whole = held & ((near & right).sum(-1) >= 0.9 * right.sum(-1))
            best = np.where(whole, np.maximum(best, (near & self.wrong).sum(-1)), best)
        return float(best.sum() / max(self.wrong.sum(), 1))

    def differ(self, scores):
        """Whether scores say anything else of the wrong pairs than the right scores do, beyond one number a row."""
        with np.errstate(all="ignore"):
            off = np.where(self.judged & np.isfinite(scores), scores - self.score, np.nan)
        some = np.isfinite(off).any(-1)
        if not some.any():
            return False
        spread = np.nanmax(off[some], -1) - np.nanmin(off[some], -1)
        return bool((spread > self.tolerance[some].max(-1)).mean() > 0.5)

    def fitted(self, term):
        """The coefficient of a term (n, S) that the measured scores have beside the right ones."""
        with np.errstate(all="ignore"):
            off = self.measured - self.score
        use = np.isfinite(off) & np.isfinite(term) & self.judged
        x, y = _centred(np.where(use, term, 0), use), _centred(np.where(use, off, 0), use)
        weight = use.astype(float)
        slope = 0.0
        for _ in range(6):  # outliers count less and less
            size = (weight * x * x).sum()
            if size <= 0:
                return 0.0
            slope = (weight * x * y).sum() / size
            left = np.abs(y - slope * x)
            scale = max(np.median(left[use]) * 3, 1e-12)
            weight = use / np.maximum(left / scale, 1)
        return float(slope)


def _median(x):
    """Medians of the numbers of each row that are not NaN; 0 where there are none."""
    ordered, count = np.sort(x, axis=-1), np.isfinite(x).sum(-1)
    middle = np.take_along_axis(ordered, np.maximum((count - 1) // 2, 0)[:, None], -1)[:, 0]
    return np.where(count > 0, middle, 0.0)


def _centred(x, use):
    mean = np.where(use, x, 0).sum(-1, keepdims=True) / np.maximum(use.sum(-1, keepdims=True), 1)
    return np.where(use, x - mean, 0)


def explain_scores(rows: WrongRows) -> list[Explanation]:
    """What explains the wrong scores, best first; empty where nothing does."""
    found = []
    for models in MODELS:
        for kind, words, scores, numbers in models(rows):
            with np.errstate(all="ignore"):
                share = rows.explains(scores) if rows.differ(scores) else 0.0
            if share >= EXPLAINS:
                found.append(Explanation(kind, words, share, numbers))
        if found:
            break
    return sorted(found, key=lambda e: (-round(e.share - 0.02 * e.numbers, 2), e.numbers))


def ratio(a):
    """A number beside those it might be meant as."""
    for value, words in (
        (2, "doubled"),
        (0.5, "halved"),
        (np.log2(np.e), "log2(e)"),
        (np.log(2), "ln 2"),
        (-1, "negated"),
    ):
        if abs(a - value) < 2e-3 * abs(value):
            return f"{a:.4g} ({words})"
    return f"{a:.4g}"


# ways in which scores are wrong


def _missing_or_doubled(rows) -> Iterator:
    """An operand left out, doubled, or applied in another order."""
    raw, cap = rows.raw, rows.cap
    bias, slopes = rows.plane("bias"), rows.option("alibi_slopes")
    alibi = None if slopes is None else -slopes * rows.distance
    rest = rows.score - rows.capped
    if cap is not None:
        yield "softcap", "the softcap is left out", rows.with_rest(raw), 0
        yield "softcap", "the softcap is applied twice", rows.with_rest(rows.capped_of(rows.capped)), 0
        yield "softcap", "the softcap is applied after the bias is added", rows.capped_of(raw + rest), 0
        yield (
            "softcap",
            "scores are clipped at the softcap in place of tanh",
            rows.with_rest(np.clip(raw, -cap, cap)),
            0,
        )
        scale = rows.part.scale
        yield (
            "softcap",
            "the softcap is applied before the scale",
            rows.with_rest(rows.capped_of(raw / scale) * scale),
            0,
        )
        yield (
            "softcap",
            "scores are tanh(score / softcap), not multiplied by the softcap again",
            rows.with_rest(rows.capped / cap),
            0,
        )
        yield (
            "softcap",
            "scores are not divided by the softcap before tanh",
            rows.with_rest(cap * np.tanh(raw)),
            0,
        )
    if bias is not None:
        yield "bias", "the bias is left out", rows.score - bias, 0
        yield "bias", "the bias is added twice", rows.score + bias, 0
        yield "bias", "the bias is subtracted", rows.score - 2 * bias, 0
        yield "bias", "the bias is multiplied by the scale", rows.score + (rows.part.scale - 1) * bias, 0
        yield "bias", "the bias is divided by the scale", rows.score + (1 / rows.part.scale - 1) * bias, 0
        if cap is not None:
            yield "bias", "the bias is added before the softcap", rows.capped_of(raw + bias) + rest - bias, 0
    if alibi is not None:
        yield "ALiBi", "ALiBi is left out", rows.score - alibi, 0
        yield "ALiBi", "ALiBi is added twice", rows.score + alibi, 0
        yield "ALiBi", "ALiBi has the opposite sign", rows.score - 2 * alibi, 0
        yield "ALiBi", "ALiBi is multiplied by the scale", rows.score + (rows.part.scale - 1) * alibi, 0
        if cap is not None:
            yield "ALiBi", "ALiBi is added before the softcap", rows.capped_of(raw + alibi) + rest - alibi, 0
    yield (
        "scale",
        "scores are squared in scale: the scale is applied twice",
        rows.with_rest(rows.capped_of(raw * rows.part.scale)),
        0,
    )
    yield (
        "scale",
        "scores are not multiplied by the scale",
        rows.with_rest(rows.capped_of(raw / rows.part.scale)),
        0,
    )
    yield "scores", "scores are negated", rows.with_rest(rows.capped_of(-raw)), 0


def _from_elsewhere(rows) -> Iterator:
    """An operand of another head, sequence, row or tile."""
    view = rows.view
    slopes = rows.option("alibi_slopes")
    if slopes is not None:
        for words, heads in _other_heads(rows):
            other = rows.option("alibi_slopes", heads=heads)
            yield (
                "ALiBi",
                f"ALiBi has the slope of {words}",
                rows.score + (slopes - other) * rows.distance,
                0,
            )
        for words, place in _other_positions(rows):
            yield (
                "ALiBi",
                f"ALiBi measures distances from {words}",
                rows.score + slopes * (rows.distance - np.abs(place[:, None] - view.key[0, 0])),
                0,
            )
        for size in TILES:
            local = rows.position[:, None] - view.key[0, 0] % size
            yield (
                "ALiBi",
                f"ALiBi counts keys from the start of each tile of {size}",
                rows.score + slopes * (rows.distance - np.abs(local)),
                0,
            )
            place = view.row[rows.b, 0, rows.t, 0] % size
            yield (
                "ALiBi",
                f"ALiBi counts rows from the start of each tile of {size}",
                rows.score + slopes * (rows.distance - np.abs(place[:, None] - view.key[0, 0])),
                0,
            )
    bias = rows.plane("bias")
    if bias is not None:
        rest = rows.score - bias
        for words, plane in planes_from_elsewhere(view, "bias"):
            yield "bias", f"the bias is {words}", rest + plane[rows.at], 0
    yield from _other_operands(rows)


def _other_positions(rows):
    view = rows.view
    row = view.row[rows.b, 0, rows.t, 0]
    yield "the row number, not its position (no offset)", row
    for step in (1, -1):
        yield f"a position that is one too {'large' if step > 0 else 'small'}", rows.position + step
    sizes = lambda name: view.of_sequences(name)[rows.b, 0, 0, 0]
    yield (
        "the row number plus the stored keys less the rows, not the length less the rows",
        row + sizes("num_keys") - sizes("num_rows"),
    )
    yield "the length less the rows, plus the row", row + sizes("length") - sizes("num_rows")
    starts = np.cumsum([0, *(s.num_rows for s in view.sequences)])[:-1]
    yield (
        "the row's number among the rows of all sequences (not within its own)",
        rows.position + starts[rows.b],
    )
    yield "the row's number among the rows of all sequences, without the offset", row + starts[rows.b]
    yield "the last key", sizes("length") - 1
    yield "position 0, whatever the row", 0 * row


def _shifted_positions(rows):
    """ALiBi whose positions are off by one number in each sequence."""
    slopes = rows.option("alibi_slopes")
    if slopes is None:
        return
    scores, found = rows.score.copy(), {}
    key = rows.view.key[0, 0, 0]
    for b in np.unique(rows.b):
        here = rows.b == b
        some = _only(rows, here)
        least = (np.inf, 0)
        for step in range(-MOST_SHIFT, MOST_SHIFT + 1):
            moved = np.abs(rows.position[here][:, None] + step - key)
            least = min(
                least,
                (-_closeness(some, rows.score[here] + slopes[here] * (rows.distance[here] - moved)), step),
            )
        found[int(b)] = least[1]
        scores[here] += slopes[here] * (
            rows.distance[here] - np.abs(rows.position[here][:, None] + least[1] - key)
        )
    words = ", ".join(f"{step:+d} in sequence {b}" for b, step in found.items() if step)
    yield (
        "ALiBi",
        f"ALiBi measures distances from positions (row less key) that are off by {words}",
        scores,
        1,
    )


def _whole_distances(rows):
    """ALiBi whose distances are off by whole numbers."""
    slopes = rows.option("alibi_slopes")
    if slopes is None:
        return
    with np.errstate(all="ignore"):
        off = (rows.score - rows.measured - (rows.lse - rows.shift)[:, None]) / slopes
        steps = np.round(off)
        # heads whose slope is so small that every number is near a whole multiple of it say nothing
        steep = rows.wrong & (np.abs(slopes) > 4 * rows.tolerance)
        near = steep & (np.abs(off - steps) * np.abs(slopes) <= rows.tolerance)
    if steep.sum() >= 8 and near.sum() >= EXPLAINS * steep.sum() and (steps[near] != 0).all():
        yield (
            "ALiBi",
            f"the distances that ALiBi uses are off by whole numbers, from {int(steps[near].min())} to {int(steps[near].max())}: positions are rounded or counted from elsewhere",
            np.where(steep, rows.score - slopes * np.nan_to_num(steps), rows.measured),
            1,
        )


def _moved_planes(rows):
    """A bias whose rows are read some numbers further on in memory, each row as many as it may."""
    view = rows.view
    bias = rows.plane("bias")
    if bias is None:
        return
    whole = [np.asarray(view.outline_of(b).bias)[view.sequences[b].entry] for b in range(len(view.sequences))]
    rest, found, scores = rows.score - bias, np.zeros(len(rows.b), int), rows.score.copy()
    width = view.num_keys
    for n, (b, h) in enumerate(zip(rows.b, rows.head, strict=True)):
        flat, i = whole[b][h].reshape(-1), int(view.row[b, 0, rows.t[n], 0])
        one = _only(rows, np.arange(len(rows.b)) == n)
        least = (np.inf, 0)
        for step in range(-MOST_MOVED, MOST_MOVED + 1):
            line = flat[np.clip(i * whole[b].shape[-1] + np.arange(width) + step, 0, len(flat) - 1)]
            least = min(least, (-_closeness(one, rest[n : n + 1] + line), step))
        found[n] = least[1]
        scores[n] = rest[n] + flat[np.clip(i * whole[b].shape[-1] + np.arange(width) + found[n], 0, len(flat) - 1)]
    steps = ", ".join(f"{step:+d}" for step in np.unique(found)[:6])
    yield "bias", f"rows of the bias are read from other places in memory: {steps} numbers further on, by row", scores, 1


def _exponentials(rows):
    """Exponentials that are wrong by a factor that depends on the exponent alone: a polynomial, its range, its rounding."""
    with np.errstate(all="ignore"):
        off = rows.measured + (rows.lse - rows.shift)[:, None] - rows.score
    where = rows.wrong & np.isfinite(off)
    if where.sum() < 64:
        return
    for words, x in (
        ("the fraction of the exponent in base 2 (of scores less the row's largest)", (rows.score - rows.top[:, None]) * np.log2(np.e) % 1.0),
        ("the fraction of the score in base 2", rows.score * np.log2(np.e) % 1.0),
    ):
        bins = np.floor(x[where] * BINS).astype(int)
        mean = np.bincount(bins, off[where], BINS) / np.maximum(np.bincount(bins, minlength=BINS), 1)
        smooth = np.zeros_like(rows.score)
        smooth[where] = np.interp(x[where], (np.arange(BINS) + 0.5) / BINS, mean, period=1.0)
        left = off[where] - smooth[where]
        if np.var(left) < 0.1 * np.var(off[where]):
            low, high = np.exp(mean.min()), np.exp(mean.max())
            yield (
                "exp",
                f"exp is computed wrongly: the error depends on {words} alone, with factors from {low:.3g} to {high:.3g} (a polynomial outside its range, or a wrong split into whole part and fraction)",
                np.where(where, rows.score + off, rows.score),
                3,
            )
            return


def _saturated(rows):
    """Products of query and key that are cut off at both ends, as in a format whose largest number they pass."""
    scale = abs(rows.part.scale)
    with np.errstate(all="ignore"):
        got = np.abs(rows.measured + (rows.lse - rows.shift)[:, None] - (rows.score - rows.capped))
    for limit, words in ((65504 * scale, "65504, the largest number of float16, before the scale"), (65504.0, "65504, the largest number of float16"), (448 * scale, "448, the largest number of float8 e4m3, before the scale"), (448.0, "448, the largest number of float8 e4m3")):
        if (np.abs(rows.raw) > limit).any():
            yield "scores", f"products of query and key are cut off at {words}", rows.with_rest(rows.capped_of(np.clip(rows.raw, -limit, limit))), 0
    far = rows.wrong & np.isfinite(got)
    if far.any():
        limit = float(np.median(got[far]))
        yield "scores", f"scores before softcap and bias are cut off at {limit:.5g} in size", rows.with_rest(rows.capped_of(np.clip(rows.raw, -limit, limit))), 1


def _clipped(rows):
    """Scores that are cut off at a number."""
    with np.errstate(all="ignore"):
        got = rows.measured + (rows.lse - rows.shift)[:, None]
    for words, where in (
        ("at most", rows.wrong & (got < rows.score)),
        ("at least", rows.wrong & (got > rows.score)),
    ):
        if where.sum() < EXPLAINS * rows.wrong.sum():
            continue
        values = got[where]
        edge = float(np.median(values))
        limited = np.minimum(rows.score, edge) if words == "at most" else np.maximum(rows.score, edge)
        yield "scores", f"scores are {words} {edge:.4g}: what lies beyond is cut off", limited, 1
        for tile in (16, 32, 64, 128):
            if tile < rows.view.num_keys:
                running = running_maximum(rows.view, tile)[rows.at]
                edge = float(np.median(got[where] - running[where]))
                limit = running + edge
                limited = (
                    np.minimum(rows.score, limit) if words == "at most" else np.maximum(rows.score, limit)
                )
                yield (
                    "scores",
                    f"exponents (score less the running maximum, tiles of {tile} keys) are {words} {edge:.4g} ({edge / np.log(2):.4g} in base 2): what lies beyond is cut off",
                    limited,
                    1,
                )
        below = values - np.broadcast_to(rows.top[:, None], got.shape)[where]
        edge = float(np.median(below))
        limit = (rows.top + edge)[:, None]
        limited = np.minimum(rows.score, limit) if words == "at most" else np.maximum(rows.score, limit)
        yield (
            "scores",
            f"exponents (score less the row's largest) are {words} {edge:.4g}: what lies beyond is cut off",
            limited,
            1,
        )


def _other_operands(rows):
    """Scores of the keys of another head or sequence, or of the query of another row or head."""
    view, scale = rows.view, rows.part.scale
    query, key = view.operand("query"), view.operand("key")
    own_q = query[rows.at]
    kv = rows.head // view.group_size
    dot = lambda q, k: scale * np.einsum("nd,nsd->ns", q, k)
    with np.errstate(all="ignore"):
        if view.num_kv_heads > 1:
            for words, heads in _maps_of(kv, view.num_kv_heads, "key/value head", rows.head):
                yield (
                    "head map",
                    f"the keys are those of {words}",
                    rows.with_rest(rows.capped_of(dot(own_q, key[rows.b, heads]))),
                    0,
                )
        for words, batch in _other_sequences(rows):
            yield (
                "sequence",
                f"the keys are those of {words}",
                rows.with_rest(rows.capped_of(dot(own_q, key[batch, kv]))),
                0,
            )
        for step in (1, -1, *TILES, *(-size for size in TILES)):
            shifted = np.roll(key, -step, axis=2)[rows.b, kv]
            yield (
                "keys",
                f"the keys are those {abs(step)} {'behind' if step > 0 else 'before'} the values they are used with",
                rows.with_rest(rows.capped_of(dot(own_q, shifted))),
                0,
            )
        place = {int(h): n for n, h in enumerate(view.heads)}
        for words, heads in _other_heads(rows):
            if all(int(h) in place for h in heads):
                q = query[rows.b, [place[int(h)] for h in heads], rows.t]
                yield (
                    "query",
                    f"the query is that of {words}",
                    rows.with_rest(rows.capped_of(dot(q, key[rows.b, kv]))),
                    0,
                )
        for words, batch in _other_sequences(rows):
            q = query[batch, rows.h, rows.t]
            yield (
                "query",
                f"the query is that of {words}",
                rows.with_rest(rows.capped_of(dot(q, key[rows.b, kv]))),
                0,
            )
        last = query.shape[2] - 1
        for step in (1, -1, *TILES, *(-size for size in TILES)):
            if abs(step) <= last:
                q = query[rows.b, rows.h, np.clip(rows.t + step, 0, last)]
                yield (
                    "query",
                    f"the query is that of the row {_steps(step)}",
                    rows.with_rest(rows.capped_of(dot(q, key[rows.b, kv]))),
                    0,
                )
        for size in TILES:
            q = query[rows.b, rows.h, rows.t % size % (last + 1)]
            yield (
                "query",
                f"the query is that of the row's place in the first tile of {size} rows",
                rows.with_rest(rows.capped_of(dot(q, key[rows.b, kv]))),
                0,
            )
        q = query[rows.b, rows.h, np.zeros_like(rows.t)]
        yield (
            "query",
            "the query is that of the first row for every row",
            rows.with_rest(rows.capped_of(dot(q, key[rows.b, kv]))),
            0,
        )


def _with_a_number(rows) -> Iterator:
    """An operand times a number."""
    raw = rows.raw
    if rows.cap is None:
        a = 1 + rows.fitted(raw)
        yield (
            "scale",
            f"scores are multiplied by {ratio(a)}: the scale is {a * rows.part.scale:.5g}, it should be {rows.part.scale:.5g}",
            rows.with_rest(a * raw),
            1,
        )
    else:
        best = max(
            np.geomspace(0.05, 20, 121),
            key=lambda a: _closeness(rows, rows.with_rest(rows.capped_of(a * raw))),
        )
        for a in (_refined(rows, best, lambda a: rows.with_rest(rows.capped_of(a * raw))),):
            yield (
                "scale",
                f"scores are multiplied by {ratio(a)} before the softcap: the scale is {a * rows.part.scale:.5g}, it should be {rows.part.scale:.5g}",
                rows.with_rest(rows.capped_of(a * raw)),
                1,
            )
        best = max(
            rows.cap * np.geomspace(0.02, 50, 121),
            key=lambda c: _closeness(rows, rows.with_rest(rows.capped_of(raw, c))),
        )
        cap = _refined(rows, best, lambda c: rows.with_rest(rows.capped_of(raw, c)))
        yield (
            "softcap",
            f"the softcap is {cap:.5g}, it should be {rows.cap:.5g}",
            rows.with_rest(rows.capped_of(raw, cap)),
            1,
        )
        a = 1 + rows.fitted(rows.capped)
        yield "softcap", f"capped scores are multiplied by {ratio(a)}", rows.with_rest(a * rows.capped), 1
    bias, slopes = rows.plane("bias"), rows.option("alibi_slopes")
    if bias is not None:
        a = 1 + rows.fitted(np.where(np.isfinite(bias), bias, 0))
        yield "bias", f"the bias is multiplied by {ratio(a)}", rows.score + (a - 1) * bias, 1
    if slopes is not None:
        term = -slopes * rows.distance
        a = 1 + rows.fitted(term)
        yield "ALiBi", f"ALiBi is multiplied by {ratio(a)}", rows.score + (a - 1) * term, 1
        off = rows.score.copy()
        numbers = {}
        for h in np.unique(rows.head):
            here = rows.head == h
            one = _only(rows, here).fitted(-rows.distance[here])
            off[here] -= one * rows.distance[here]
            numbers[int(h)] = float(slopes[here][0, 0] + one)
        words = ", ".join(
            f"{value:.4g} for head {h} (right {float(slopes[rows.head == h][0, 0]):.4g})"
            for h, value in list(numbers.items())[:4]
        )
        yield "ALiBi", f"the slopes of ALiBi are others: {words}", off, 2
    a = rows.fitted(rows.distance.astype(float))
    yield (
        "ALiBi",
        f"{-a:.4g} times the distance of key and row is taken from the scores, as ALiBi does, which was not asked for",
        rows.score + a * rows.distance,
        1,
    )
    square = np.abs(rows.raw) * rows.raw
    a = rows.fitted(square)
    yield (
        "scores",
        f"scores have a part that grows with their square ({a:.3g} s |s|)",
        rows.score + a * square,
        2,
    )


def _rounded(rows) -> Iterator:
    """Weights, scores or operands that are rounded to a coarser format."""
    view, scale = rows.view, rows.part.scale
    query, key = view.operand("query")[rows.at], np.nan_to_num(view.operand("key"))
    kv = rows.head // view.group_size
    for name in ("float8_e5m2", "float8_e4m3fn", "bfloat16", "float16"):
        for tile in (0, 16, 32, 64, 128):
            yield (
                "format",
                f"weights are rounded to {name} before they are multiplied with the values",
                rounded_weights(view, tile, name)[rows.at] + rows.top[:, None],
                0,
            )
        yield (
            "format",
            f"scores are rounded to {name}",
            rows.with_rest(rows.capped_of(round_to(rows.raw / scale, name) * scale)),
            0,
        )
        yield (
            "format",
            f"scaled scores are rounded to {name}",
            rows.with_rest(rows.capped_of(round_to(rows.raw, name))),
            0,
        )
        yield (
            "format",
            f"final scores are rounded to {name}",
            round_to(np.where(np.isfinite(rows.score), rows.score, 0), name),
            0,
        )
        for words, q, k in (
            ("the query", round_to(query, name), key),
            ("the scaled query", round_to(query * scale, name) / scale, key),
            ("keys", query, round_to(key, name)),
            ("query and keys", round_to(query, name), round_to(key, name)),
        ):
            yield (
                "format",
                f"{words} {'are' if words.endswith('s') else 'is'} rounded to {name}",
                rows.with_rest(rows.capped_of(scale * np.einsum("nd,nsd->ns", q, k[rows.b, kv]))),
                0,
            )
    for words, axes in (
        ("one scale a key", (3,)),
        ("one scale a head", (2, 3)),
        ("one scale for all", (1, 2, 3)),
        ("one scale a component", (2,)),
    ):
        step = np.abs(key).max(axis=axes, keepdims=True) / 127
        with np.errstate(all="ignore"):
            k = np.where(step > 0, np.round(key / step) * step, 0)
        yield (
            "format",
            f"keys are rounded to int8 with {words}",
            rows.with_rest(rows.capped_of(scale * np.einsum("nd,nsd->ns", query, k[rows.b, kv]))),
            0,
        )


def _by_component(rows) -> Iterator:
    """Products of single components of query and key: left out, doubled or exchanged."""
    view = rows.view
    if rows.cap is not None:
        return
    query, key = view.operand("query"), view.operand("key")
    q, k = query[rows.at], key[rows.b, rows.head // view.group_size]
    dims = q.shape[-1]
    with np.errstate(all="ignore"):
        y = rows.measured - (rows.score - rows.capped)
    use = np.isfinite(y) & rows.judged
    if use.sum() < 3 * dims:
        return
    products = rows.part.scale * q[:, None, :] * np.nan_to_num(k)  # (n, S, D)
    mean = (
        np.where(use[..., None], products, 0).sum(1, keepdims=True)
        / np.maximum(use.sum(1), 1)[:, None, None]
    )
    x = (products - mean)[use]
    target = _centred(np.where(use, y, 0), use)[use]
    solved = np.linalg.lstsq(x, target, rcond=None)[0]
    snapped = np.where(np.abs(solved - np.round(solved)) < 0.1, np.round(solved), solved)
    if (snapped == 1).all():
        return
    words = _components(snapped)
    yield "components", words, rows.with_rest((products * snapped).sum(-1)), 1
    # which component of the key each one of the query meets
    cross = np.zeros((dims, dims))
    for n in range(len(q)):
        cross += (
            q[n][:, None]
            * (
                np.where(use[n], _centred(np.where(use[n], y[n], 0)[None], use[n][None])[0], 0)
                @ np.nan_to_num(k[n])
            )[None]
        )
    partner = np.argmax(cross, axis=1)
    if (partner != np.arange(dims)).any() and len(np.unique(partner)) > dims // 4:
        scores = rows.part.scale * np.einsum("nd,nsd->ns", q, np.nan_to_num(k)[..., partner])
        moved = [d for d in range(dims) if partner[d] != d]
        words = ", ".join(f"{d} with {partner[d]}" for d in moved[:6])
        more = f" and {len(moved) - 6} others" if len(moved) > 6 else ""
        yield (
            "components",
            f"components of query and key are multiplied crosswise: of the query with of the key {words}{more}, of {dims}",
            rows.with_rest(scores),
            1,
        )


def _components(factors):
    by_factor = {}
    for d, f in enumerate(factors):
        if f != 1:
            by_factor.setdefault(round(float(f), 2), []).append(d)
    words = []
    for f, dims in sorted(by_factor.items(), key=lambda item: -len(item[1]))[:3]:
        what = "are left out of" if f == 0 else f"count {f:g} times in"
        words.append(f"components {_ranges(dims)} (of {len(factors)}) of query and key {what} the scores")
    return " and ".join(words)


def _ranges(numbers):
    """0, 1, 2, 5 as "0 to 2, 5"."""
    runs, start = [], numbers[0]
    for a, b in zip(numbers, [*numbers[1:], None], strict=True):
        if b != a + 1:
            runs.append(f"{start}" if start == a else f"{start} to {a}")
            start = b
    return ", ".join(runs[:6]) + (f" and {len(runs) - 6} more ranges" if len(runs) > 6 else "")


MODELS: tuple[Callable, ...] = (
    _missing_or_doubled,
    _from_elsewhere,
    _with_a_number,
    _saturated,
    _clipped,
    _shifted_positions,
    _whole_distances,
    _by_component,
    _rounded,
    _moved_planes,
    _exponentials,
)


# places that operands may come from


def _steps(step):
    return f"{abs(step)} {'behind' if step > 0 else 'before'}"


def _other_heads(rows):
    num, group = rows.view.num_heads, rows.view.group_size
    yield from _maps_of(rows.head, num, "query head", rows.head)
    if 1 < group < num:
        yield "the head's place in its group (h % group_size)", rows.head % group
        yield "the number of its key/value head (h // group_size)", rows.head // group


def _maps_of(own, count, what, head):
    """Other numbers below `count`, of heads or sequences, as a kernel may compute them by mistake."""
    ways = [
        (f"{what} 0", np.zeros_like(own)),
        (f"the next {what}", np.minimum(own + 1, count - 1)),
        (f"the next {what} (the last one's next is the first)", (own + 1) % count),
        (f"the {what} before", np.maximum(own - 1, 0)),
        (f"the {what} before (the first one's is the last)", (own - 1) % count),
        (f"the last {what}", np.full_like(own, count - 1)),
        (f"the {what} counted from the end", count - 1 - own),
        (f"{what} h % {count} (of query head h)", head % count),
        (f"{what} min(h, {count - 1}) (of query head h)", np.minimum(head, count - 1)),
        (
            f"the {what} whose lowest bit is changed (0 and 1, 2 and 3 exchanged)",
            np.minimum(own ^ 1, count - 1),
        ),
        (f"{what} h // 2 (of query head h)", np.minimum(head // 2, count - 1)),
    ]
    ways += [(f"{what} {n} for all", np.full_like(own, n)) for n in range(1, min(count, 9))]
    ways += [(f"{what} h >> {n}", np.minimum(head >> n, count - 1)) for n in (1, 2, 3, 4)]
    for words, other in ways:
        if (other != own).any():
            yield words, other


def _other_sequences(rows):
    count = len(rows.view.sequences)
    if count > 1:
        yield from _maps_of(rows.b, count, "sequence", rows.b)


def _closeness(rows, scores):
    """How near scores come to the measured ones, for choosing a number before it is refined."""
    with np.errstate(all="ignore"):
        off = rows.measured - scores
    use = np.isfinite(off)
    return -float(np.minimum(np.abs(_centred(np.where(use, off, 0), use)), 10.0).sum())


def _refined(rows, start, model):
    """The number near `start` under which a model is nearest."""
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda a: -_closeness(rows, model(a)),
        bounds=sorted((start * 0.94, start * 1.06)),
        method="bounded",
        options={"xatol": 1e-7 * abs(start)},
    )
    return float(found.x)


def _only(rows, here):
    """The rows at `here`, as far as `fitted` needs them."""
    some = object.__new__(WrongRows)
    for name in ("measured", "score", "judged"):
        setattr(some, name, getattr(rows, name)[here])
    return some
