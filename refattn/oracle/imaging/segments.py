"""Weights that are off by one factor in each stretch of keys: tiles not rescaled, splits joined wrongly."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from math import gcd

import numpy as np

from refattn.oracle.arithmetic.formats import round_to
from refattn.oracle.imaging.compare import MISSING, SCALED
from refattn.oracle.imaging.elsewhere import other_rows

MOST_STEPS = 0.15  # share of neighbouring keys between which the factor changes
FITS = 0.9
OF_TILE_BEFORE = "what was accumulated before a tile is rescaled with the factor of the tile before it"


@dataclass(eq=False)
class Segments:
    """Stretches of keys of one factor each.

    Attributes
    ----------
    edges : ndarray
        Where stretches begin, in all rows together.
    tile : int
        The largest number of which all edges are multiples; 1 where there is none.
    factor : ndarray, (B, H, T, len(edges))
        Logarithm of the factor of each stretch; NaN where nothing is known.
    """

    edges: np.ndarray
    tile: int
    factor: np.ndarray

    @property
    def words(self):
        if self.tile >= 4:
            return f"tiles of {self.tile} keys"
        return "stretches of keys that begin at " + ", ".join(map(str, self.edges[:6].tolist()))


def find_segments(ledgers) -> list[Segments]:
    """The stretches, as tiles of one size and as they are seen to begin; none where factors are not
    constant in stretches.
    """
    view, ratio = ledgers.view, ledgers.ratio
    tolerance = np.broadcast_to(ledgers.measured.tolerance, view.shape)
    rows = (ledgers.labels == SCALED).any(-1)
    if not rows.any():
        return []
    r = np.where(rows[..., None], ratio, np.nan)
    # steps between each key and the last known one before it
    known = np.isfinite(r)
    index = np.maximum.accumulate(np.where(known, np.arange(view.num_keys), -1), axis=-1)
    before = np.concatenate([np.full((*index.shape[:-1], 1), -1), index[..., :-1]], -1)
    previous = np.take_along_axis(r, np.maximum(before, 0), -1)
    pairs = known & (before >= 0)
    with np.errstate(all="ignore"):
        step = pairs & (np.abs(r - previous) > 2 * tolerance)
    if not pairs.any() or not step.any() or step.sum() > MOST_STEPS * pairs.sum():
        return []
    per_key = step.sum((0, 1, 2))
    # an edge may fall between a hidden key and the next one seen: edges are where most steps are
    places = np.flatnonzero(per_key > 0.02 * per_key.max())
    tile = reduce(gcd, places.tolist())
    if len(places) > MOST_STEPS * view.num_keys + 2 and tile < 4:
        return []
    every = np.arange(0, view.num_keys, tile) if tile >= 4 else np.concatenate([[0], places])
    return [
        _of_edges(edges, tile, known, r)
        for edges in ([every] if len(every) == len(places) + 1 else [every, np.concatenate([[0], places])])
    ]


def _of_edges(edges, tile, known, r):
    """Stretches that begin at these keys; `r` are logarithms of factors, (B, H, T, S), where `known`."""
    counts = np.add.reduceat(known.astype(float), edges, axis=-1)
    sums = np.add.reduceat(np.where(known, r, 0), edges, axis=-1)
    with np.errstate(all="ignore"):
        return Segments(edges, tile, np.where(counts > 0, sums / counts, np.nan))


def explain_segments(ledgers, segments):
    """Words for what the factors are, and the share of wrong rows or steps that it explains, best first.

    Where steps between stretches are explained, not factors, the steps (B, H, T, stretches) come third.
    """
    stretches = Stretches(ledgers, segments)
    with np.errstate(all="ignore"):
        found = list(stretches.rescaling())
        models = (_own_maxima, _groups_of_tiles, _wrong_joins, _rounded_joins, _joins_of_other_rows)
        for words, predicted in (pair for model in models for pair in model(stretches)):
            if (share := stretches.share(predicted)) >= FITS:
                found.append((words, share))
    return sorted(found, key=lambda entry: -entry[1])


def first_tile_lost(ledgers):
    """Pairs of the first tile (B, H, T, S) where it is lost because each tile is rescaled with the factor of
    the tile before it: the first one is given the factor 0 of an accumulator that is empty.
    """
    missing = ledgers.labels == MISSING
    for segments in find_segments(ledgers) if missing.any() else ():
        best = explain_segments(ledgers, segments)
        first = (np.arange(missing.shape[-1]) < segments.edges[1]) & ledgers.view.visible
        if best and best[0][0] == OF_TILE_BEFORE and (missing == first)[missing.any(-1)].all():
            return missing
    return np.zeros_like(missing)


class Stretches:
    """Maximum and lse of each stretch of keys, and the running maximum up to it, (B, H, T, stretches)."""

    def __init__(self, ledgers, segments):
        view = ledgers.view
        self.view, self.factor, self.shift = view, segments.factor, ledgers.shift[..., None]
        self.tolerance = 3 * ledgers.measured.tolerance
        self.top = view.top[..., None]
        hidden = np.where(view.visible, view.score, -np.inf)
        self.maximum = np.maximum.reduceat(hidden, segments.edges, axis=-1)
        self.running = np.maximum.accumulate(self.maximum, axis=-1)
        with np.errstate(all="ignore"):
            exponentials = np.where(view.visible, np.exp(view.score - self.top), 0)
            self.lse = np.log(np.add.reduceat(exponentials, segments.edges, axis=-1)) + self.top

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

    def rescaling(self):
        """Words, share and places of steps between stretches that follow the rise of the running maximum."""
        f = self.factor
        rise = np.diff(self.running, axis=-1, prepend=np.nan)
        step = np.concatenate([np.full_like(f[..., :1], np.nan), f[..., :-1] - f[..., 1:]], -1)
        big = np.isfinite(step) & (np.abs(step) > self.tolerance)
        for times, words in (
            (1, "not rescaled"),
            (-1, "rescaled once too often"),
            (2, "multiplied by exp(new maximum - old maximum), the inverse of the factor,"),
        ):
            near = big & (np.abs(step - times * rise) <= self.tolerance) & (rise > 0)
            if big.any() and near.sum() >= FITS * big.sum():
                words = f"what was accumulated before a tile is {words} when the running maximum rises in it"
                yield words, float(near.sum() / big.sum()), near
        before = np.concatenate([np.full_like(rise[..., :1], np.nan), rise[..., :-1]], -1)
        near = big & (np.abs(step - (rise - before)) <= self.tolerance)
        if big.any() and near.sum() >= FITS * big[..., 2:].sum() > 0:
            yield OF_TILE_BEFORE, float(near.sum() / big[..., 2:].sum()), near
        if not big.any():
            return
        rise = np.where(np.isfinite(rise), rise, 0.0)
        at = tuple(axis.ravel() for axis in np.indices(f.shape[:-1]))
        for words, other in other_rows(self.view, at):
            theirs = np.stack([other.of_other(rise[..., n]) for n in range(f.shape[-1])], -1).reshape(
                f.shape
            )
            near = big & (np.abs(step - (rise - theirs)) <= self.tolerance)
            if near.sum() >= FITS * big.sum():
                yield (
                    f"what was accumulated is rescaled by the factor of {words}",
                    float(near.sum() / big.sum()),
                    near,
                )


# models: words, and the logarithms of the factors, (B, H, T, stretches), that would be seen


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


def _wrong_joins(stretches):
    part, own = stretches.lse, stretches.maximum
    yield "stretches are joined by their maxima alone, not their lse", own - part
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
    yield (
        "stretches are rescaled by exp2 of differences in base e",
        (np.log(2) - 1) * (stretches.running - stretches.top),
    )


def _joins_of_other_rows(stretches):
    shape = stretches.factor.shape
    at = tuple(axis.ravel() for axis in np.indices(shape[:-1]))
    for words, other in other_rows(stretches.view, at):
        for name, x in (("lse", stretches.lse), ("maximum", stretches.maximum)):
            predicted = np.stack([other.change(x[..., n]) for n in range(shape[-1])], -1)
            yield f"stretches are joined with the {name} of {words}", predicted.reshape(shape)
