"""One wrong number a row: the normaliser, or lse. What it was computed from in place of the right weights.

`delta` is the logarithm of what the kernel used over the right sum of exponentials: minus the logarithm of a row's sum of weights, or
lse less the right lse.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refattn.oracle.arithmetic.formats import round_to
from refattn.oracle.xray.features import FEATURES, KEY_TILES
from refattn.oracle.xray.rounding import rounded_weights
from refattn.oracle.xray.score_models import _maps_of, _steps, ratio

EXPLAINS = 0.9
MOST_TERMS = 2**22  # exponentials that are added up one by one
SHIFTS = (1, -1, 2, -2, 4, -4, 8, -8, 16, -16, 32, -32, 64, -64)


def explain_row_number(ledgers, delta, wrong, regions, name) -> Iterator[tuple[str, float]]:
    """Words for what explains `delta` in the wrong rows, and the share of them it explains; `name` is "the normaliser" or "lse"."""
    view, measured = ledgers.view, ledgers.measured
    at = np.nonzero(wrong & np.isfinite(delta) & np.isfinite(view.lse))
    if not len(at[0]):
        return
    d = delta[at]
    tolerance = 2 * measured.tolerance[..., 0][at] + 8 * measured.spec.lse.unit_roundoff * (
        1 + np.abs(view.lse[at])
    ) * (name == "lse")

    telling = np.abs(d) > 5 * tolerance  # rows whose number is known well enough to tell explanations apart
    telling = telling if telling.sum() >= 3 else np.ones(len(d), bool)

    def share(predicted):
        with np.errstate(all="ignore"):
            near = np.abs(d - predicted) <= tolerance
        return float(min(near.mean(), near[telling].mean()))

    candidates = _candidates(ledgers, at, d, name, regions, tolerance)
    while True:
        with np.errstate(all="ignore"):
            words, predicted = next(candidates, (None, None))
        if words is None:
            return
        got = share(predicted)
        if got >= EXPLAINS:
            yield words, got


def _candidates(ledgers, at, d, name, regions, tolerance):
    view = ledgers.view
    lse, top = view.lse[at], view.top[at]
    inner = lse - top
    constant = float(np.median(d))
    factor = np.exp(constant)
    for words, own, other in _of_other_rows(view, at):
        yield f"{name} is that of {words}", other(view.lse) - own(view.lse)
        if name != "lse":
            yield (
                f"{name} is that of {words} (the sum of exponentials; its maximum is right)",
                other(view.lse - view.top) - own(view.lse - view.top),
            )
    for words, value in _matched(view, at, d, name, tolerance):
        yield words, value
    if name == "lse":
        yield "lse is in base 2: it is the right one times log2(e)", lse * (np.log2(np.e) - 1)
        yield "lse is multiplied by ln 2", lse * (np.log(2) - 1)
        yield "lse has the opposite sign", -2 * lse
        yield "lse is the row's maximum alone: the logarithm of the sum is not added", -inner
        yield "lse is the logarithm of the sum alone: the row's maximum is not added", -top
        yield (
            "the logarithm of the sum is taken in base 2 and added to a maximum in base e",
            inner * (np.log2(np.e) - 1),
        )
        yield (
            "the maximum is in base 2 (times log2(e)) and the logarithm of the sum in base e",
            top * (np.log2(np.e) - 1),
        )
        yield (
            "the logarithm of the sum is multiplied by ln 2 and the maximum is not",
            inner * (np.log(2) - 1),
        )
        yield "the maximum is multiplied by ln 2 and the logarithm of the sum is not", top * (np.log(2) - 1)
        scale = view.outline_of(0).scale
        yield "the maximum is not multiplied by the scale", top * (1 / scale - 1)
        yield "the maximum is multiplied by the scale once more", top * (scale - 1)
        yield "lse is exp(lse): the sum itself, without a logarithm", np.exp(lse) - lse
        yield (
            "lse holds the sum of exponentials (relative to the maximum), without a logarithm",
            np.exp(inner) - lse,
        )
        yield "lse is 0: not written", -lse
        yield "lse is 1 / sum", np.exp(-inner) - lse
    yield (
        f"{name} is off by the constant {constant:.5g} ({name} times {ratio(factor)} as a sum of exponentials)",
        np.full_like(d, constant),
    )
    yield from _masses(ledgers, at, d, name, regions, tolerance)
    yield from _lines(view, at, d, name)
    yield from _per_head(view, at, d, name)
    for short in ("bfloat16", "float16"):
        for words, total in _accumulated(view, at, short):
            yield f"{words} of {name} is kept in {short}: small terms no longer change it", np.log(total) - inner
    for short in ("float8_e5m2", "float8_e4m3fn", "bfloat16", "float16"):
        for words, x in (
            ("the sum of exponentials", np.exp(inner)),
            ("the sum of exponentials times exp(maximum)", np.exp(np.minimum(lse, 700.0))),
        ):
            yield f"{words} in {name} is rounded to {short}", np.log(round_to(x, short) / x)
        for tile in (0, 16, 32, 64, 128):
            rounded = rounded_weights(view, tile, short)[at]
            yield (
                f"{name} sums weights that are rounded to {short}, the output those that are not",
                np.log(np.exp(rounded).sum(-1)) - inner,
            )
            yield (
                f"{name} sums weights before they are rounded to {short}, the output those after it",
                inner - np.log(np.exp(rounded).sum(-1)),
            )


def _of_other_rows(view, at):
    """(words, the rows' own, the others') of functions of a (B, H, T) array."""
    b, h, t = at
    shape = view.shape
    row = view.row[b, 0, t, 0]
    place = {int(head): n for n, head in enumerate(view.heads)}

    def found(bb, hh, tt):
        def other(array):
            inside = (tt >= 0) & (tt < shape[2])
            return np.where(inside, array[bb, hh, np.clip(tt, 0, shape[2] - 1)], np.nan)

        return lambda array: array[at], other

    if len(view.heads) == view.num_heads and view.num_heads > 1:
        head = view.heads[h]
        for words, other in _maps_of(head, view.num_heads, "query head", head):
            yield words, *found(b, np.array([place[int(n)] for n in other]), t)
        group = view.group_size
        if 1 < group < view.num_heads:
            yield "query head h % group_size", *found(b, head % group, t)
            yield "the first head of its group", *found(b, head // group * group, t)
            yield "the last head of its group", *found(b, head // group * group + group - 1, t)
    for step in SHIFTS:
        if abs(step) < shape[2]:
            yield f"the row {_steps(step)}", *found(b, h, t + step)
    for size in (2, 4, 8, 16, 32, 64):
        if size < shape[2]:
            yield f"the first row of its {size} rows", *found(b, h, t // size * size)
            yield f"the last row of its {size} rows", *found(b, h, t // size * size + size - 1)
            yield (
                f"the row {size} away (bit {size.bit_length() - 1} of its number flipped)",
                *found(b, h, t ^ size),
            )
            yield f"row t % {size}", *found(b, h, t % size)
    yield "the first row", *found(b, h, np.zeros_like(t))
    yield "the last row", *found(b, h, np.full_like(t, shape[2] - 1))
    if shape[0] > 1:
        for words, other in _maps_of(b, shape[0], "sequence", b):
            yield words, *found(other, h, t)
    # an array of heads and rows read with other strides
    if len(view.heads) == view.num_heads:
        flat = h * shape[2] + t
        for size in (16, 32, 64, 128):
            padded = -(-shape[2] // size) * size
            hh, tt = np.divmod(flat, padded)
            yield f"an array whose rows are padded to {padded}, read as if they were not", *found(b, hh, tt)
        starts = np.cumsum([0, *(s.num_rows for s in view.sequences)])
        if len(view.sequences) > 1 and len(view.sequences) == view.checked.num_parts:
            tt, hh = np.divmod(h * starts[-1] + starts[b] + t, shape[1])
            bb = np.searchsorted(starts, tt, "right") - 1
            yield (
                "an array of shape (all rows, heads) read as (heads, all rows)",
                *found(np.minimum(bb, shape[0] - 1), hh, tt - starts[np.minimum(bb, shape[0] - 1)]),
            )
        tt, hh = np.divmod(flat, shape[1])
        yield (
            "an array of shape (rows, heads) read as (heads, rows)",
            *found(b, hh, np.minimum(tt, shape[2] - 1)),
        )
    del row


def _matched(view, at, d, name, tolerance):
    """Right numbers of other rows, found by their value."""
    if name != "lse":
        return
    b, h, t = at
    finite = np.argwhere(np.isfinite(view.lse))
    values = view.lse[tuple(finite.T)]
    order = np.argsort(values)
    got = view.lse[at] + d
    near = np.clip(np.searchsorted(values[order], got), 1, len(values) - 1)
    left, right = order[near - 1], order[near]
    best = np.where(np.abs(values[left] - got) < np.abs(values[right] - got), left, right)
    same = np.abs(values[best] - got) <= tolerance
    if same.mean() < 0.5 or tolerance.max() * len(values) > 0.1 * np.ptp(values):
        return  # by chance: some right number is near any number
    source = finite[best]
    starts = np.cumsum([0, *(s.num_rows for s in view.sequences)])[:-1]
    total = sum(s.num_rows for s in view.sequences)
    heads = view.shape[1]
    own, other = (heads_ * total + starts[bb] + tt for bb, heads_, tt in ((b, h, t), source.T))
    steps = []
    for n in range(len(view.sequences)):
        here = (b == n) & same
        if here.any():
            step = np.bincount((other - own)[here] + heads * total).argmax() - heads * total
            steps.append(f"{step:+d} in sequence {n}")
    listed = ", ".join(
        f"(sequence {x}, head {y}, row {z}) holds that of {tuple(int(v) for v in w)}"
        for x, y, z, w in list(zip(b, h, t, source, strict=True))[:3]
    )
    yield (
        f"lse is right but stands at other rows: numbers are those of rows (counted over heads and all rows) {', '.join(steps[:5])}; for example {listed}",
        np.where(same, values[best] - view.lse[at], d),
    )


def _masses(ledgers, at, d, name, regions, tolerance):
    """Weight that is left out of the sum, or that joined it."""
    view = ledgers.view
    weights = _before_dropout(view)[at]
    with np.errstate(all="ignore"):
        sinks = _sinks(view, at)
        if sinks is not None:
            share = np.exp(sinks - view.lse[at])
            yield f"the sink is left out of {name}", np.log1p(-share)
            yield f"the sink counts twice in {name}", np.log1p(share)
            for words, own, other in _of_other_rows(view, at):
                del own
                swapped = other(np.broadcast_to(_all_sinks(view), view.shape[:3]))
                if not words.startswith("the row") and not words.startswith("row"):
                    yield (
                        f"{name} holds the sink of {words}",
                        np.log1p(np.exp(swapped - view.lse[at]) - share),
                    )
        if sinks is not None:
            # the sink that the sum would hold
            implied = np.log(np.exp(sinks) + np.expm1(d) * np.exp(view.lse[at]))
            level = float(np.median(implied[np.isfinite(implied)])) if np.isfinite(implied).any() else 0.0
            replaced = lambda other: np.log1p(np.exp(other - view.lse[at]) - share)
            size = (sinks * sinks).sum()
            a = (
                float(np.nansum(sinks * np.where(np.isfinite(implied), implied, sinks)) / size)
                if size
                else 1.0
            )
            yield (
                f"the sink in {name} is {level:.4g} whatever it should be",
                replaced(np.full_like(sinks, level)),
            )
            for words, factor in (
                ("multiplied by the scale", view.outline_of(0).scale),
                ("in base 2 (times ln 2)", np.log(2)),
                ("in base 2 (times log2(e))", np.log2(np.e)),
                ("negated", -1.0),
            ):
                yield f"the sink in {name} is {words}", replaced(factor * sinks)
            yield f"the sink in {name} is multiplied by {a:.4g}", replaced(a * sinks)
        if view.dropped is not None:
            yield (
                "the kept weights are normalised to sum to 1 again: dropout is applied before the softmax",
                np.log(ledgers.right_sum[at]),
            )
        for feature in FEATURES:
            array = regions.array(feature)
            if array is None or array.shape[-1] == 1:  # all keys of a row or none
                continue
            array = np.broadcast_to(array, view.shape)[at]
            values = (
                (True, False)
                if feature.truth
                else [v for v in {*feature.landmarks, int(array.max(initial=0))} if v in array]
            )
            for value in values:
                here = array == value
                mass = np.where(here, weights, 0).sum(-1)
                words = feature.says("==", value)
                yield f"the keys are left out of {name} where {words}", np.log1p(-mass)
                yield f"the keys count twice in {name} where {words}", np.log1p(mass)
                times = np.expm1(d) / np.where(mass > 0, mass, np.nan)
                if np.isfinite(times).any():
                    times = float(np.median(times[np.isfinite(times)]))
                    if times > 1.5 and abs(times - round(times)) < 0.02 * times:
                        yield f"the keys count {round(times) + 1} times in {name} where {words}", np.log1p(round(times) * mass)
                yield f"only the keys count in {name} where {words}", np.log(mass)
        hidden = np.where(view.exists & ~view.visible, np.exp(view.score - view.lse[..., None]), 0.0)[
            at
        ].sum(-1)
        yield f"hidden keys count in {name}", np.log1p(hidden)
        extra = np.log(np.expm1(d)) + view.lse[at]  # logarithm of what joined the sum
        if sinks is not None:
            times = float(np.median(np.expm1(d) / np.where(share > 0, share, np.nan)))
            if np.isfinite(times):
                yield (
                    f"the sink counts {1 + times:.3g} times in {name}, as if each part added it",
                    np.log1p(times * share),
                )
        finite = extra[np.isfinite(extra)]
        joined = float(np.median(finite)) if finite.size else 0.0
        number = np.exp(min(joined, 700.0))
        more = (
            f"about {number:.3g} terms of exp(0) = 1 (as of keys of score 0, or empty parts whose lse is 0)"
            if 0.7 < number < 300
            else f"exp({joined:.4g})"
        )
        if len(view.sequences) > 1 and finite.size:
            of_each, words = np.full(len(d), joined), []
            for b in np.unique(at[0]):
                known = extra[(at[0] == b) & np.isfinite(extra)]
                if known.size:
                    of_each[at[0] == b] = np.median(known)
                    words.append(f"{np.exp(min(np.median(known), 700.0)):.3g} in sequence {b}")
            yield (
                f"terms of exp(0) = 1 are too many in {name}, as of keys of score 0 or of empty parts whose lse is 0: about {', '.join(words[:5])}",
                np.log1p(np.exp(of_each - view.lse[at])),
            )
        yield f"{more} too many in {name}", np.log1p(np.exp(joined - view.lse[at]))
        terms = np.exp(np.minimum(extra, 20.0))
        # a number of terms is known where the tolerance of the sum is a small part of one term
        known = (
            np.isfinite(terms)
            & (terms > 0.5)
            & (2 * tolerance * np.exp(np.minimum(view.lse[at], 700.0)) < 0.2)
        )
        if known.sum() >= 3 and (np.abs(terms - np.round(terms)) < 0.2)[known].mean() > EXPLAINS:
            low, high = int(np.round(terms[known].min())), int(np.round(terms[known].max()))
            count = f"{low}" if low == high else f"{low} to {high}"
            yield (
                f"{count} terms of exp(0) = 1 too many in {name}, as of keys of score 0 or of empty parts whose lse is 0",
                np.where(known, np.log1p(np.round(terms) * np.exp(-view.lse[at])), d),
            )
        for size in KEY_TILES:
            length = view.of_sequences("length")[at[0], 0, 0, 0]
            tail = -length % size
            if (tail > 0).any():
                yield (
                    f"the padding of the last tile of {size} keys counts in {name} as keys of score 0",
                    np.log1p(tail * np.exp(-view.lse[at])),
                )


def _lines(view, at, d, name):
    """A number times something that is known of the row."""
    lse, top = view.lse[at], view.top[at]
    terms = {
        "the row's maximum": top,
        "the logarithm of the sum": lse - top,
        "the right lse": lse,
    }
    part = view.outline_of(0)
    query, key = view.operand("query"), view.operand("key")
    length = view.of_sequences("length")
    inside = (np.arange(key.shape[2]) < length[:, 0, 0])[:, None, :, None]
    mean = np.where(inside, np.nan_to_num(key), 0).sum(2) / np.maximum(length[:, 0, 0], 1)[:, None]
    kv = view.heads[at[1]] // view.group_size
    terms["the product of query and the mean of the keys (scaled)"] = part.scale * (
        query[at] * mean[at[0], kv]
    ).sum(-1)
    for words, x in terms.items():
        size = (x * x).sum()
        if size > 0 and np.ptp(x) > 1e-6:
            a = float((x * d).sum() / size)
            yield f"{name} is off by {a:.4g} times {words}", a * x
    for size in KEY_TILES:
        if size >= view.num_keys:
            continue
        hidden = np.where(view.visible, view.score, -np.inf)
        tiles = np.maximum.reduceat(hidden, np.arange(0, view.num_keys, size), axis=-1)[at]
        running = np.maximum.accumulate(tiles, axis=-1)
        with np.errstate(all="ignore"):
            rise = np.diff(running, axis=-1)
            last = np.where(np.isfinite(rise), rise, 0)
            yield f"{name} misses the last rescaling (tiles of {size} keys)", last[..., -1]
            yield (
                f"{name} is rescaled once too often at the last tile (tiles of {size} keys)",
                -last[..., -1],
            )
            yield (
                f"{name} is relative to the maximum of the first tile of {size} keys",
                running[..., -1] - tiles[..., 0],
            )
            yield (
                f"{name} is relative to the maximum of the last tile of {size} keys",
                tiles[..., -1] - running[..., -1],
            )
            parts = np.exp(np.where(view.visible, view.score, -np.inf))
            sums = np.add.reduceat(parts, np.arange(0, view.num_keys, size), axis=-1)[at]
            yield (
                f"{name} is never rescaled: each tile of {size} keys counts relative to the maximum so far",
                np.log((sums / np.exp(running)).sum(-1)) - (lse - top),
            )
            yield (
                f"{name} counts each tile of {size} keys relative to its own maximum",
                np.log(np.where(np.isfinite(tiles), sums / np.exp(tiles), 0).sum(-1)) - (lse - top),
            )


def _accumulated(view, at, short):
    """Sums of exponentials that are rounded after each term, relative to the row's maximum."""
    with np.errstate(all="ignore"):
        terms = np.where(view.visible, np.exp(view.score - view.top[..., None]), 0.0)[at]
    if terms.size > MOST_TERMS:
        return
    total = np.zeros(len(terms))
    for j in range(terms.shape[1]):
        total = round_to(total + terms[:, j], short)
    yield "the running sum (key after key)", total
    for tile in (16, 32, 64, 128):
        total = np.zeros(len(terms))
        for first in range(0, terms.shape[1], tile):
            total = round_to(total + terms[:, first : first + tile].sum(1), short)
        yield f"the running sum (tiles of {tile} keys)", total


def _per_head(view, at, d, name):
    """One number for each head: a multiple of its slope, or any."""
    part = view.outline_of(0)
    heads = view.heads[at[1]]
    if part.alibi_slopes is not None:
        slopes = np.array(
            [
                view.outline_of(b).alibi_slopes[view.sequences[b].entry, h]
                for b, h in zip(at[0], heads, strict=True)
            ]
        )
        size = (slopes * slopes).sum()
        a = float((slopes * d).sum() / size) if size else 0.0
        yield (
            f"{name} is off by {a:.4g} times the head's ALiBi slope: every distance is off by {-a:.4g}, which the weights do not show",
            a * slopes,
        )
    if len(np.unique(heads)) > 1:
        level = np.zeros_like(d)
        for h in np.unique(heads):
            level[heads == h] = np.median(d[heads == h])
        words = ", ".join(f"{level[heads == h][0]:.4g} in head {h}" for h in np.unique(heads)[:5])
        yield f"{name} is off by one number in each head: {words}", level


def _before_dropout(view):
    with np.errstate(all="ignore"):
        return np.where(view.visible, np.exp(view.score - view.lse[..., None]), 0.0)


def _all_sinks(view):
    part = view.outline_of(0)
    if part.sinks is None:
        return None
    return np.array([view.outline_of(n).sinks[s.entry][s.heads] for n, s in enumerate(view.sequences)])[
        ..., None
    ]


def _sinks(view, at):
    sinks = _all_sinks(view)
    return None if sinks is None else np.broadcast_to(sinks, view.shape[:3])[at]
