"""Weights that are off by one factor in each stretch of keys: tiles that were not rescaled, splits joined with wrong weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from math import gcd

import numpy as np

from refattn.oracle.arithmetic.formats import round_to
from refattn.oracle.xray.row_numbers import _of_other_rows

MOST_STEPS = 0.15  # share of neighbouring keys between which the factor changes
FITS = 0.9


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


def find_segments(ledgers) -> Segments | None:
    """The stretches, or None where factors are not constant in stretches."""
    view, ratio = ledgers.view, ledgers.ratio
    tolerance = np.broadcast_to(ledgers.measured.tolerance, view.shape)
    rows = (ledgers.labels == 3).any(-1)
    if not rows.any():
        return None
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
        return None
    per_key = step.sum((0, 1, 2))
    # an edge may fall between a hidden key and the next one seen: edges are where most steps are
    places = np.flatnonzero(per_key > 0.02 * per_key.max())
    tile = reduce(gcd, places.tolist())
    if len(places) > MOST_STEPS * view.num_keys + 2 and tile < 4:
        return None
    edges = np.arange(0, view.num_keys, tile) if tile >= 4 else np.concatenate([[0], places])
    counts = np.add.reduceat(known.astype(float), edges, axis=-1)
    sums = np.add.reduceat(np.where(known, r, 0), edges, axis=-1)
    with np.errstate(all="ignore"):
        return Segments(edges, tile, np.where(counts > 0, sums / counts, np.nan))


def explain_segments(ledgers, segments):
    """Words for what the factors are, and the share of the wrong stretches that it explains, best first."""
    view = ledgers.view
    f, edges = segments.factor, segments.edges
    hidden = np.where(view.visible, view.score, -np.inf)
    own = np.maximum.reduceat(hidden, edges, axis=-1)
    running = np.maximum.accumulate(own, axis=-1)
    with np.errstate(all="ignore"):
        sums = np.add.reduceat(
            np.where(view.visible, np.exp(view.score - view.top[..., None]), 0), edges, axis=-1
        )
        part = np.log(sums) + view.top[..., None]  # lse of each stretch
    tolerance = 3 * ledgers.measured.tolerance
    found = []

    def consider(words, predicted):
        with np.errstate(all="ignore"):
            known = np.isfinite(f) & np.isfinite(predicted)
            off = np.where(known, f - predicted, np.nan)
            rows = (np.isfinite(f) & (np.abs(f - ledgers.shift[..., None]) > tolerance)).any(-1) & (
                known.sum(-1) > 1
            )
            middle = np.zeros(f.shape[:-1])
            middle[rows] = np.nanmedian(off[rows], axis=-1)  # two stretches at least are known
            near = (np.abs(off - middle[..., None]) <= tolerance) | ~known
            share = (near.all(-1) & rows).sum() / max(rows.sum(), 1)
        if share >= FITS:
            found.append((words, float(share)))

    with np.errstate(all="ignore"):
        rise = np.diff(running, axis=-1, prepend=np.nan)
        step = np.concatenate([np.full_like(f[..., :1], np.nan), f[..., :-1] - f[..., 1:]], -1)
        big = np.isfinite(step) & (np.abs(step) > tolerance)
        for sign, words in (
            (1, "what was accumulated before a tile is not rescaled when the running maximum rises in it"),
            (
                -1,
                "what was accumulated before a tile is rescaled once too often when the running maximum rises in it",
            ),
            (
                2,
                "what was accumulated before a tile is multiplied by exp(new maximum - old maximum), the inverse of the factor, when the running maximum rises in it",
            ),
        ):
            near = big & (np.abs(step - sign * rise) <= tolerance) & (rise > 0)
            if big.any() and near.sum() >= FITS * big.sum():
                found.append((words, float(near.sum() / big.sum()), near))
        top, lse = view.top[..., None], view.lse[..., None]
        consider("each stretch is weighted relative to its own maximum, not the row's", top - own)
        consider(
            "each stretch is weighted relative to the running maximum so far, and never rescaled",
            top - running,
        )
        consider(
            "each stretch is normalised by itself and all count alike: stretches are averaged, not joined by their lse",
            -part,
        )
        for count in (2, 3, 4):
            if len(edges) > count:
                group = np.arange(len(edges)) % count
                of_group = np.stack([own[..., group == g].max(-1) for g in range(count)], -1)[..., group]
                consider(
                    f"tiles are shared by {count} groups (tile number % {count}), and each group is weighted relative to its own maximum, not the row's",
                    top - of_group,
                )
                sums_of = np.stack(
                    [np.logaddexp.reduce(part[..., group == g], axis=-1) for g in range(count)], -1
                )[..., group]
                consider(
                    f"tiles are shared by {count} groups (tile number % {count}), each normalised by itself and all counted alike",
                    -sums_of,
                )
        consider("stretches are joined by their maxima alone, not their lse", own - part)
        consider("stretches are joined by exp of the wrong sign of their lse", -2 * part)
        consider(
            "stretches are joined by the sums of their exponentials without their maxima", part - own - part
        )
        consider("stretches are joined with lse in base 2 taken for base e", (np.log2(np.e) - 1) * part)
        consider("stretches are joined with lse in base e taken for base 2", (np.log(2) - 1) * part)
        for name in ("bfloat16", "float16", "float8_e4m3fn"):
            for what, x in (("lse", part), ("maximum", own)):
                rounded = np.where(np.isfinite(x), round_to(np.where(np.isfinite(x), x, 0), name), x)
                consider(
                    f"the {what} of each stretch is stored as {name} before they are joined", rounded - x
                )
        consider(
            "stretches are rescaled by exp2 of differences in base e", (np.log(2) - 1) * (running - top)
        )
        if view.num_heads == len(view.heads) or view.shape[0] > 1 or view.shape[2] > 1:
            at = tuple(axis.ravel() for axis in np.indices(view.shape[:3]))
            for words, mine, other in _of_other_rows(view, at):
                for name, x in (("lse", part), ("maximum", own)):
                    predicted = np.stack(
                        [other(x[..., n]) - mine(x[..., n]) for n in range(x.shape[-1])], -1
                    )
                    consider(f"stretches are joined with the {name} of {words}", predicted.reshape(f.shape))
    return sorted(found, key=lambda entry: -entry[1])
