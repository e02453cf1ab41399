"""Sums of exponentials that hold other terms: keys left out or doubled, or terms that joined.

Each family yields words and the logarithm (n,) of such a sum over the right one.
"""

from __future__ import annotations

import numpy as np

from refattn.oracle.imaging.features import FEATURES, KEY_TILES

PART_TILES = (8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 176, 192, 224, 256, 384, 512)
KNOWN = 0.9  # of the rows hold a whole number of terms
ADDED = "as of keys of score 0 or of empty parts whose lse is 0"  # where terms of exp(0) come from


def other_sums(rows):
    """Words and logarithms for the wrong numbers `rows` (`row_numbers.WrongNumbers`)."""
    if rows.view.dropped is not None:
        yield (
            "the kept weights are normalised to sum to 1 again: dropout is applied before the softmax",
            np.log(rows.ledgers.right_sum[rows.at]),
        )
    yield from _other_keys(rows)
    yield from _terms_of_zero(rows)
    yield from _padding(rows)


def _other_keys(rows):
    """Keys of one place that are left out, that count more than once, or that alone count."""
    view, name = rows.view, rows.name
    share = np.exp(view.score - view.lse[..., None])
    weights = np.where(view.visible, share, 0.0)[rows.at]  # before dropout
    for feature in FEATURES:
        array = rows.regions.array(feature)
        if array is None or array.shape[-1] == 1:  # all keys of a row or none
            continue
        array = np.broadcast_to(array, view.shape)[rows.at]
        values = (True, False)
        if not feature.truth:
            values = [v for v in {*feature.landmarks, int(array.max(initial=0))} if v in array]
        for value in values:
            mass = np.where(array == value, weights, 0).sum(-1)
            where = f"in {name} where {feature.says('==', value)}"
            yield f"the keys are left out of{where.removeprefix('in')}", np.log1p(-mass)
            yield f"the keys count twice {where}", np.log1p(mass)
            times = np.expm1(rows.delta) / np.where(mass > 0, mass, np.nan)
            if np.isfinite(times).any():
                times = float(np.median(times[np.isfinite(times)]))
                if times > 1.5 and abs(times - round(times)) < 0.02 * times:
                    words = f"the keys count {round(times) + 1} times {where}"
                    yield words, np.log1p(round(times) * mass)
            yield f"only the keys count {where}", np.log(mass)
    yield from _parts_of_tiles(rows, weights)
    hidden = np.where(view.exists & ~view.visible, share, 0.0)[rows.at].sum(-1)
    yield f"hidden keys count in {name}", np.log1p(hidden)


def _parts_of_tiles(rows, weights):
    """Keys from one place on of each tile: weights (n, S) of the right ones."""
    name, key = rows.name, np.arange(weights.shape[1])
    for size in PART_TILES:
        powers = {1 << bit for bit in range(2, 9)}
        for part in sorted({size // 4, size // 2, size * 3 // 4, size * 2 // 3, *powers}):
            if not 0 < part < size or size > 2 * len(key):
                continue
            mass = weights[:, key % size >= part].sum(-1)
            where = f"where the key's place in its tile of {size} keys is at least {part}"
            yield f"the keys are left out of {name} {where}", np.log1p(-mass)
            yield f"the keys count twice in {name} {where}", np.log1p(mass)
            where = where.replace(f"at least {part}", f"below {part}")
            yield f"the keys are left out of {name} {where}", np.log(mass)
            yield f"the keys count twice in {name} {where}", np.log(2 - mass)


def _terms_of_zero(rows):
    """Terms that joined the sum: as many in all rows, by sequence, or a whole number in each row."""
    name, lse = rows.name, rows.lse
    sequence = rows.at[0]
    extra = np.log(np.expm1(rows.delta)) + lse  # logarithm of what joined the sum
    finite = np.isfinite(extra)
    number = lambda logarithm: np.exp(min(logarithm, 700.0))
    joined = float(np.median(extra[finite])) if finite.any() else 0.0
    if len(rows.view.sequences) > 1 and finite.any():
        of_each, words = np.full(len(extra), joined), []
        for b in np.unique(sequence):
            known = extra[(sequence == b) & finite]
            if known.size:
                of_each[sequence == b] = np.median(known)
                words.append(f"{number(np.median(known)):.3g} in sequence {b}")
        many = f"about {', '.join(words[:5])}"
        yield f"{name} holds too many terms of exp(0) = 1, {ADDED}: {many}", np.log1p(np.exp(of_each - lse))
    few = 0.7 < number(joined) < 300
    words = (
        f"{name} holds about {number(joined):.3g} terms of exp(0) = 1 too many, {ADDED}"
        if few
        else f"{name} holds exp({joined:.4g}) too much"
    )
    yield words, np.log1p(np.exp(joined - lse))
    terms = np.exp(np.minimum(extra, 20.0))
    # a number of terms is known where the tolerance of the sum is a small part of one term
    precise = 2 * rows.tolerance * np.exp(np.minimum(lse, 700.0)) < 0.2
    known = np.isfinite(terms) & (terms > 0.5) & precise
    whole = np.round(terms)
    if known.sum() >= 3 and (np.abs(terms - whole) < 0.2)[known].mean() > KNOWN:
        low, high = int(whole[known].min()), int(whole[known].max())
        count = f"{low}" if low == high else f"{low} to {high}"
        words = f"{name} holds {count} terms of exp(0) = 1 too many, {ADDED}"
        yield words, np.where(known, np.log1p(whole * np.exp(-lse)), rows.delta)


def _padding(rows):
    length = rows.view.of_sequences("length")[rows.at[0], 0, 0, 0]
    for size in KEY_TILES:
        tail = -length % size
        if (tail > 0).any():
            yield (
                f"the padding of the last tile of {size} keys counts in {rows.name} as keys of score 0",
                np.log1p(tail * np.exp(-rows.lse)),
            )
