"""What factors of stretches of keys are: a running maximum not followed, or joins of other numbers."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np

from refattn.oracle.arithmetic.formats import round_to
from refattn.oracle.imaging.compare import MISSING
from refattn.oracle.imaging.elsewhere import other_rows
from refattn.oracle.imaging.segments import find_segments, over_stretches
from refattn.oracle.imaging.wrong_rows import medians

OF_TILE_BEFORE = "what was accumulated before a tile is rescaled with the factor of the tile before it"
FITS = 0.9
MOST_SINGLE = 12  # stretches of which each is looked at alone
WHOLE = 0.01  # keys that count a whole number of times are told as such
CLEAR, LEAST_CLEAR = 2, 4  # times the tolerance; rises that are followed
ROW_TILES = (4, 8, 16, 32, 64, 128)


@dataclass(eq=False)
class Explained:
    """Words for what the factors are, the share of wrong rows or steps that it explains, and either the
    stretches in which a step went wrong or the factors that are predicted, each (B, H, T, J).
    """

    words: str
    share: float
    steps: np.ndarray | None = None
    predicted: np.ndarray | None = None


def explain_segments(ledgers, segments) -> Explained | None:
    """The best explanation of the factors of stretches."""
    stretches = Stretches(ledgers, segments)
    found = []
    with np.errstate(all="ignore"):
        found += stretches.rescaling()
        for model in MODELS:
            for words, predicted in model(stretches):
                if (share := stretches.share(predicted)) >= FITS:
                    found.append(Explained(words, share, predicted=predicted))
        if not found:
            found += _in_some_stretches(stretches)
    return max(found, key=lambda entry: round(entry.share, 2), default=None)


def first_tile_lost(ledgers):
    """Pairs of the first tile (B, H, T, S) where it is lost because each tile is rescaled with the factor of
    the tile before it: the first one is given the factor 0 of an accumulator that is empty.
    """
    missing = ledgers.labels == MISSING
    for segments in find_segments(ledgers) if missing.any() else ():
        best = explain_segments(ledgers, segments)
        first = (segments.number(missing.shape[-1]) == 0) & ledgers.view.visible
        if best and best.words == OF_TILE_BEFORE and (missing == first)[missing.any(-1)].all():
            return missing
    return np.zeros_like(missing)


class Stretches:
    """Maximum and lse of each stretch of keys, and the running maximum up to it, (B, H, T, J)."""

    def __init__(self, ledgers, segments):
        view = ledgers.view
        self.view, self.segments, self.factor = view, segments, segments.factor
        self.shift = ledgers.shift[..., None]
        self.tolerance = 3 * ledgers.measured.tolerance
        self.top = view.top[..., None]
        hidden = np.where(view.visible, view.score, -np.inf)
        self.maximum = over_stretches(np.maximum, segments.starts, hidden, -np.inf)
        self.running = np.maximum.accumulate(self.maximum, axis=-1)
        with np.errstate(all="ignore"):
            exponentials = np.where(view.visible, np.exp(view.score - self.top), 0)
            self.lse = np.log(over_stretches(np.add, segments.starts, exponentials, 0.0)) + self.top

    def share(self, predicted):
        """Share of the wrong rows whose factors are the predicted ones, up to one factor a row."""
        f = self.factor
        known = np.isfinite(f) & np.isfinite(predicted)
        off = np.where(known, f - predicted, np.nan)
        wrong = (np.isfinite(f) & (np.abs(f - self.shift) > self.tolerance)).any(-1)
        rows = wrong & (known.sum(-1) > 1)  # two stretches at least are known
        middle = np.zeros(f.shape[:-1])
        middle[rows] = np.nanmedian(off[rows], axis=-1)
        near = (np.abs(off - middle[..., None]) <= self.tolerance) | ~known
        return float((near.all(-1) & rows).sum() / max(rows.sum(), 1))

    def changes(self, predicted):
        """Rows (B, H, T) in which predicted factors differ from stretch to stretch."""
        known = np.isfinite(predicted) & np.isfinite(self.factor)
        spread = np.where(known, predicted, -np.inf).max(-1) - np.where(known, predicted, np.inf).min(-1)
        return np.isfinite(spread) & (spread > self.tolerance[..., 0])

    def rescaling(self):
        """Steps between stretches that follow the rise of the running maximum, in either order."""
        for backwards in (False, True):
            turned = (lambda x: x[..., ::-1]) if backwards else (lambda x: x)
            f, maximum = turned(self.factor), turned(self.maximum)
            rise = np.diff(np.maximum.accumulate(maximum, axis=-1), axis=-1, prepend=np.nan)
            step = np.concatenate([np.full_like(f[..., :1], np.nan), f[..., :-1] - f[..., 1:]], -1)
            big = np.isfinite(step) & (np.abs(step) > self.tolerance)
            if not big.any():
                return
            known, rise = np.isfinite(rise), np.where(np.isfinite(rise), rise, 0.0)
            order = " (the tiles are visited from the last to the first)" if backwards else ""
            for words, used, first in self._factors_used(rise):
                counted = big.copy()
                counted[..., :first] = False
                near = counted & known & (np.abs(step - (rise - used)) <= self.tolerance)
                if counted.any() and near.sum() >= FITS * counted.sum():
                    limit = _limit(near, rise, known & np.isfinite(step), self.tolerance)
                    limit = limit if words.endswith("rises in it") else ""
                    share = float(near.sum() / counted.sum())
                    yield Explained(f"{words}{limit}{order}", share - 0.01 * backwards, steps=turned(near))

    def _factors_used(self, rise):
        """Words, the rises whose factor is used in place of the right one, and the first stretch of which
        that is known.
        """
        what, when = "what was accumulated before a tile is", "when the running maximum rises in it"
        inverse = "multiplied by exp(new maximum - old maximum), the inverse of the factor,"
        yield f"{what} not rescaled {when}", np.zeros_like(rise), 1
        yield f"{what} rescaled once too often {when}", 2 * rise, 1
        yield f"{what} {inverse} {when}", -rise, 1
        yield f"{what} rescaled by exp2 of a difference in base e {when}", rise * np.log(2), 1
        for name in ("bfloat16", "float16", "float8_e4m3fn"):
            rounded = -np.log(round_to(np.exp(-rise), name))
            yield f"the factor by which what was accumulated is rescaled is rounded to {name}", rounded, 1
        before, after = np.roll(rise, 1, -1), np.roll(rise, -1, -1)
        before[..., 0] = after[..., -1] = 0.0
        yield OF_TILE_BEFORE, before, 2
        yield (
            "what a tile adds misses the factor by which the next tile rescales: it is added after that",
            after,
            1,
        )
        at = tuple(axis.ravel() for axis in np.indices(rise.shape[:-1]))
        columns = range(rise.shape[-1])
        for words, other in other_rows(self.view, at):
            theirs = np.stack([other.of_other(rise[..., n]) for n in columns], -1)
            yield f"what was accumulated is rescaled by the factor of {words}", theirs.reshape(rise.shape), 1
        for size in ROW_TILES:
            for join, which in ((np.maximum, "smallest"), (np.minimum, "largest")):
                if size < 2 * rise.shape[2] and self.view.samples_all_rows:
                    of_tiles = join.reduceat(rise, np.arange(0, rise.shape[2], size), axis=2)
                    theirs = of_tiles.repeat(size, axis=2)[:, :, : rise.shape[2]]
                    words = f"the {which} factor of all rows of its tile of {size} rows"
                    yield f"what was accumulated is rescaled by {words}", theirs, 1


def _limit(wrong, rise, known, tolerance):
    """Whether steps are wrong where the maximum rises by less, or by more, than a number."""
    right = known & ~wrong & (rise > np.maximum(CLEAR * tolerance, 1e-6))
    if right.sum() < LEAST_CLEAR or not wrong.any():
        return ""
    if rise[wrong].max() < rise[right].min():
        low, high = rise[wrong].max(), rise[right].min()
        return f", by {low:.3g} or less (it is rescaled where the maximum rises by {high:.3g} or more)"
    if rise[wrong].min() > rise[right].max():
        low, high = rise[right].max(), rise[wrong].min()
        return f", by {high:.3g} or more (it is rescaled where the maximum rises by {low:.3g} or less)"
    return ""


# models: words, and the logarithms of the factors, (B, H, T, J), that would be seen


def _own_maxima(stretches):
    top = stretches.top
    yield (
        "each stretch is weighted relative to its own maximum, not the row's",
        top - stretches.maximum,
    )
    yield (
        "each stretch is weighted relative to the running maximum so far, and never rescaled",
        top - stretches.running,
    )
    yield (
        "each stretch is normalised by itself and all count alike: "
        "stretches are averaged, not joined by their lse",
        -stretches.lse,
    )


def _groups_of_tiles(stretches):
    number = np.arange(stretches.factor.shape[-1])
    for count in (2, 3, 4):
        if len(number) > count:
            group = number % count
            of_groups = lambda x, join, count=count, group=group: np.stack(
                [join(x[..., group == g], axis=-1) for g in range(count)], -1
            )[..., group]
            shared = f"tiles are shared by {count} groups (tile number % {count})"
            yield (
                f"{shared}, and each group is weighted relative to its own maximum, not the row's",
                stretches.top - of_groups(stretches.maximum, np.max),
            )
            yield (
                f"{shared}, each normalised by itself and all counted alike",
                -of_groups(stretches.lse, np.logaddexp.reduce),
            )


def _tiles_at_a_time(stretches):
    """Tiles that are taken several at a time, and not weighted by the maximum of all of them."""
    count = stretches.running.shape[-1]
    for size in (2, 3, 4):
        if count > size:
            last = np.minimum(np.arange(count) // size * size + size - 1, count - 1)
            yield (
                f"tiles are taken {size} at a time, and the weights of the earlier ones of {size} are not "
                "rescaled when the later ones raise the running maximum (what came before them is)",
                stretches.running[..., last] - stretches.running,
            )


def _wrong_joins(stretches):
    part, own = stretches.lse, stretches.maximum
    yield "stretches are joined by their maxima alone, not their lse", own - part
    yield "stretches are not divided by their row sums before they are joined by their lse", part - own
    yield "stretches are joined by exp of the wrong sign of their lse", -2 * part
    yield "stretches are joined by the sums of their exponentials without their maxima", part - own - part
    yield "stretches are joined with lse in base 2 taken for base e", (np.log2(np.e) - 1) * part
    yield "stretches are joined with lse in base e taken for base 2", (np.log(2) - 1) * part


def _rounded_joins(stretches):
    for name in ("bfloat16", "float16", "float8_e4m3fn"):
        for what, x in (("lse", stretches.lse), ("maximum", stretches.maximum)):
            finite = np.isfinite(x)
            rounded = np.where(finite, round_to(np.where(finite, x, 0), name), x)
            yield f"the {what} of each stretch is stored as {name} before they are joined", rounded - x
    short = (stretches.lse.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    yield "the lse of each stretch is cut off to bfloat16 before they are joined", short - stretches.lse
    yield (
        "stretches are rescaled by exp2 of differences in base e",
        (np.log(2) - 1) * (stretches.running - stretches.top),
    )


def _joins_of_other_stretches(stretches):
    """The numbers of another stretch, or of an array that is read in another order of its axes."""
    for name, x in (("lse", stretches.lse), ("maximum", stretches.maximum)):
        for words, step in (("before", 1), ("after", -1)):
            other = np.roll(x, step, -1)
            kept = 0 if step > 0 else -1
            other[..., kept] = x[..., kept]
            yield f"stretches are joined with the {name} of the stretch {words} theirs", other - x
        for words, place in (("first", 0), ("last", -1)):
            yield f"stretches are joined with the {name} of the {words} stretch", x[..., [place]] - x
        yield f"stretches are joined with the {name} of the stretches in reverse order", x[..., ::-1] - x
        axes = ("heads", "rows", "splits")
        for order in permutations(range(3)):
            stored = x.transpose(0, *(axis + 1 for axis in order))
            if order != (0, 1, 2):
                stored_as, read_as = (", ".join(axes[axis] for axis in by) for by in (order, range(3)))
                yield (
                    f"stretches are joined with the {name} of other rows and heads: an array of shape "
                    f"({stored_as}) is read as ({read_as})",
                    stored.reshape(x.shape) - x,
                )
                by_split = np.moveaxis(x, -1, 1)  # (B, splits, heads, rows), as most kernels store it
                swapped = by_split.transpose(0, *(axis + 1 for axis in order)).reshape(by_split.shape)
                yield (
                    f"stretches are joined with the {name} of other rows and heads: an array of splits, "
                    f"heads and rows is read in the order {_order_in_words(order)}",
                    np.moveaxis(swapped, 1, -1) - x,
                )


def _order_in_words(order):
    return ", ".join(("splits", "heads", "rows")[axis] for axis in order)


def _joins_of_other_rows(stretches):
    shape = stretches.factor.shape
    at = tuple(axis.ravel() for axis in np.indices(shape[:-1]))
    for words, other in other_rows(stretches.view, at):
        for name, x in (("lse", stretches.lse), ("maximum", stretches.maximum)):
            predicted = np.stack([other.change(x[..., n]) for n in range(shape[-1])], -1)
            yield f"stretches are joined with the {name} of {words}", predicted.reshape(shape)


MODELS = (
    _own_maxima,
    _groups_of_tiles,
    _tiles_at_a_time,
    _wrong_joins,
    _rounded_joins,
    _joins_of_other_stretches,
    _joins_of_other_rows,
)


def _in_some_stretches(stretches):
    """Explanations that hold of some stretches, beside others that are right; then one number of each."""
    count = stretches.factor.shape[-1]
    yield from _numbers_of_stretches(stretches, count)
    parts = {"the last stretch": [-1], "the first stretch": [0]}
    if count > 2:
        parts |= {"all but the first stretch": slice(1, None), "all but the last stretch": slice(None, -1)}
    for model in (_own_maxima, _wrong_joins, _joins_of_other_stretches):
        for words, predicted in model(stretches):
            for which, part in parts.items():
                of_part = np.zeros_like(predicted)
                of_part[..., part] = predicted[..., part]
                if (share := stretches.share(of_part)) >= FITS:
                    yield Explained(f"{words}: in {which} only", share, predicted=of_part)


def _numbers_of_stretches(stretches, count):
    """One number of a stretch, beside the others; or a number of each that is the same in all rows."""
    f, lse = stretches.factor, stretches.lse
    if count > MOST_SINGLE:
        return
    for n in range(count):
        others = medians(np.where(np.arange(count) == n, np.nan, f))
        beside = f[..., n] - others
        wrong = np.isfinite(beside) & (np.abs(beside) > stretches.tolerance[..., 0])
        if not wrong.any():
            continue
        starts = {int(own[n]) for own in stretches.segments.starts if len(own) > n}
        which = f"the stretch from key {starts.pop()} on" if len(starts) == 1 else f"stretch {n} (from 0)"
        level = round(float(np.median((beside + lse[..., n])[wrong])), 5) + 0.0
        times = float(np.median(beside[wrong]))
        whole = stretches.view.lse - lse[..., n]
        for words, one in (
            (f"{which} is joined with weight 1, not exp(its lse - the lse of the row)", whole),
            (f"{which} counts {np.exp(times):.4g} times", np.full(beside.shape, times)),
            (f"{which} is joined with the others as if its lse were {level:.4g}", level - lse[..., n]),
        ):
            predicted = np.zeros_like(f)
            predicted[..., n] = one
            if (share := stretches.share(predicted)) >= FITS:
                yield Explained(words, share, predicted=predicted)
    level = medians((f - f[..., :1]).reshape(-1, count).T)
    predicted = np.broadcast_to(level, f.shape)
    counted = np.abs(np.exp(level) - np.round(np.exp(level))).max() < WHOLE
    if np.isfinite(level).all() and not counted and (share := stretches.share(predicted)) >= FITS:
        numbers = ", ".join(f"{number:.4g}" for number in np.exp(level))
        words = f"the stretches, in their order, count {numbers} times (beside the first), in every row"
        yield Explained(words, share, predicted=predicted)
