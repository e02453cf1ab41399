"""One wrong number a row, the normaliser or lse: what it was computed from in place of the right weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refattn.oracle.arithmetic.formats import round_to
from refattn.oracle.imaging.elsewhere import other_rows
from refattn.oracle.imaging.factors_in_words import ratio
from refattn.oracle.imaging.rounding import COARSE, REFERENCE_TILES, rounded_weights
from refattn.oracle.imaging.row_sinks import other_sinks
from refattn.oracle.imaging.row_states import ROW_TILES, carried, wrong_steps
from refattn.oracle.imaging.row_sums import other_sums

EXPLAINS, NOTHING_LEFT = 0.9, 0.985
MISFIT = 0.25  # what a tolerance of difference counts beside the share
OVERLOOKED = 0.75  # of the tolerance (which is twice the rounding)
SEVERAL = 0.7  # of the rows are others
LEAST_ROWS = 3  # fewer may be like others by chance
MOST_TERMS = 2**22  # exponentials that are added up one by one
MOST_PLACES, SHOWN_PLACES = 48, 6
ACCUMULATED = (2, 4, 8, 16, 32, 64, 128)  # keys of a tile whose sum is added to a running one


@dataclass(frozen=True)
class RowNumber:
    """A number that a kernel computes of each row.

    Attributes
    ----------
    words : str
        What sentences call it.
    returned : bool
        The kernel returns it, and rounds it; else only its quotients are seen, in the weights.
    """

    words: str
    returned: bool


NORMALISER = RowNumber("the normaliser", returned=False)
LSE = RowNumber("lse", returned=True)


class WrongNumbers:
    """The n rows in which a number is wrong.

    Attributes
    ----------
    at : tuple of ndarray, (n,) each
        Where the rows stand in arrays (B, H, T).
    delta : ndarray, (n,)
        Logarithm of the sum of exponentials that the kernel used over the right one: minus the logarithm of
        a row's sum of weights, or lse less the right lse.
    tolerance : ndarray, (n,)
    lse, top, inner : ndarray, (n,)
        The right lse, the row's maximum, and lse less the maximum.
    """

    def __init__(self, ledgers, delta, wrong, regions, number):
        view, measured = ledgers.view, ledgers.measured
        self.view, self.ledgers, self.regions = view, ledgers, regions
        self.name, self.returned = number.words, number.returned
        self.at = np.nonzero(wrong & np.isfinite(delta) & np.isfinite(view.lse))
        self.delta = delta[self.at]
        self.lse, self.top = view.lse[self.at], view.top[self.at]
        self.inner = self.lse - self.top
        self.tolerance = 2 * measured.tolerance[..., 0][self.at]
        if self.returned:
            self.tolerance = self.tolerance + 8 * measured.spec.lse.unit_roundoff * (1 + np.abs(self.lse))
        # rows whose number is known well enough to tell explanations apart
        self.recipes = {}  # of some explanations, what they predict of other rows than these
        telling = np.abs(self.delta) > 5 * self.tolerance
        self.telling = telling if telling.sum() >= 3 else np.ones(len(telling), bool)

    def misfit(self, predicted):
        """How far the telling rows are from the prediction, in tolerances: less than 1."""
        off = np.abs(self.delta - predicted) / self.tolerance
        return float(np.minimum(off[self.telling], 1.0).mean())

    def share(self, predicted):
        """Share of the rows whose `delta` is the predicted one."""
        near = np.abs(self.delta - predicted) <= self.tolerance
        return float(min(near.mean(), near[self.telling].mean()))


def explain_row_number(ledgers, delta, wrong, regions, number) -> list[tuple]:
    """Words for what explains `delta` (B, H, T) in the wrong rows, how well it does (the share of the rows,
    less what it is beside them), and for some a function that says of any `WrongNumbers` what it predicts.

    `number` is `NORMALISER` or `LSE`.
    """
    rows = WrongNumbers(ledgers, delta, wrong, regions, number)
    if not len(rows.delta):
        return []
    families = FAMILIES if len(rows.delta) >= LEAST_ROWS else OF_FEW_ROWS
    models = []
    with np.errstate(all="ignore"):
        for family in families:
            for words, predicted in family(rows):
                if not ledgers.measured.in_time("what the number of a row is off by"):
                    break
                if (share := rows.share(predicted)) >= EXPLAINS:
                    models.append((words, share - MISFIT * rows.misfit(predicted), rows.recipes.get(words)))
            if any(share > NOTHING_LEFT for _, share, _ in models):
                break
    return models


def rows_changed(ledgers, delta, regions, number, words, recipe):
    """Rows (B, H, T) whose number an explanation changes by more than can be overlooked; None where that
    cannot be said of other rows than the wrong ones.
    """
    view = ledgers.view
    known = view.row_exists & ~ledgers.nan & ~ledgers.zero & ledgers.judged.any(-1)
    rows = WrongNumbers(ledgers, delta, known, regions, number)
    with np.errstate(all="ignore"):
        if recipe is None:
            plain = (pair for family in PLAIN for pair in family(rows))
            predicted = next((predicted for said, predicted in plain if said == words), None)
        else:
            predicted = recipe(rows)
    if predicted is None:
        return None
    changed = np.zeros(view.shape[:3], bool)
    changed[rows.at] = np.abs(predicted) > OVERLOOKED * rows.tolerance
    return changed


# families: words, and the `delta` (n,) that would be seen


def _of_other_rows(rows):
    view = rows.view
    for words, other in other_rows(view, rows.at):
        change = other.change(view.lse)
        if rows.returned and not np.isfinite(change).all() and np.isfinite(change).any():
            change, fill = _with_fill(rows, change)
            yield f"{rows.name} is that of {words}{fill}", change
        else:
            yield f"{rows.name} is that of {words}", change
        if not rows.returned:
            note = "(the sum of exponentials; its maximum is right)"
            change = other.change(view.lse - view.top)
            yield f"{rows.name} is that of {words} {note}", change
            yield f"{rows.name} holds the sum of {words} beside its own", np.log1p(np.exp(change))


def _with_fill(rows, change):
    """What is seen where there is no other row: one number, if it is one; and words for it."""
    none, got = ~np.isfinite(change), rows.lse + rows.delta
    fill = np.median(got[none])
    if (np.abs(got[none] - fill) > rows.tolerance[none]).any():
        return change, ""
    words = f"{fill + 0.0:.4g}" if abs(fill) > 1e-6 else "0"
    return np.where(none, fill - rows.lse, change), f" (and {words} where that holds no row)"


def _stored_elsewhere(rows):
    """Right numbers of other rows, found by their value."""
    if not rows.returned:
        return
    view, (b, h, t) = rows.view, rows.at
    finite = np.argwhere(np.isfinite(view.lse))
    values = view.lse[tuple(finite.T)]
    order = np.argsort(values)
    got = rows.lse + rows.delta
    near = np.clip(np.searchsorted(values[order], got), 1, len(values) - 1)
    left, right = order[near - 1], order[near]
    best = np.where(np.abs(values[left] - got) < np.abs(values[right] - got), left, right)
    same = np.abs(values[best] - got) <= rows.tolerance
    if same.mean() < 0.5 or rows.tolerance.max() * len(values) > 0.1 * np.ptp(values):
        return  # by chance: some right number is near any number
    source = finite[best]
    if len(np.unique(best[same])) < SEVERAL * same.sum():
        return  # one number in many rows comes from no row
    starts = np.cumsum([0, *(s.num_rows for s in view.sequences)])
    place = lambda b, h, t: h * starts[-1] + starts[b] + t
    steps = place(*source.T) - place(b, h, t)
    least = steps.min()
    moved = []
    for n in range(len(view.sequences)):
        here = (b == n) & same
        if here.any():
            moved.append(f"{np.bincount(steps[here] - least).argmax() + least:+d} in sequence {n}")
    examples = ", ".join(
        f"(sequence {x}, head {y}, row {z}) holds that of {tuple(int(v) for v in w)}"
        for x, y, z, w in list(zip(b, h, t, source, strict=True))[:3]
    )
    words = (
        "lse is right but stands at other rows: numbers are those of rows "
        f"(counted over heads and all rows) {', '.join(moved[:5])}; for example {examples}"
    )
    yield words, np.where(same, values[best] - rows.lse, rows.delta)


def _slips_of_lse(rows):
    if not rows.returned:
        return
    lse, top, inner, scale = rows.lse, rows.top, rows.inner, rows.view.outline_of(0).scale
    to_base_2, to_base_e = np.log2(np.e) - 1, np.log(2) - 1
    yield "lse is in base 2: it is the right one times log2(e)", lse * to_base_2
    yield "lse is in base 10: it is the right one times log10(e)", lse * (np.log10(np.e) - 1)
    yield "lse is multiplied by ln 2", lse * to_base_e
    yield "lse has the opposite sign", -2 * lse
    yield "lse is the row's maximum alone: the logarithm of the sum is not added", -inner
    yield "lse is the logarithm of the sum alone: the row's maximum is not added", -top
    yield (
        "the logarithm of the sum is taken in base 2 and added to a maximum in base e",
        inner * to_base_2,
    )
    yield (
        "the maximum is in base 2 (times log2(e)) and the logarithm of the sum in base e",
        top * to_base_2,
    )
    yield "the logarithm of the sum is multiplied by ln 2 and the maximum is not", inner * to_base_e
    yield "the maximum is multiplied by ln 2 and the logarithm of the sum is not", top * to_base_e
    yield "the maximum is not multiplied by the scale", top * (1 / scale - 1)
    yield "the maximum is multiplied by the scale once more", top * (scale - 1)
    yield "lse is exp(lse): the sum itself, without a logarithm", np.exp(lse) - lse
    yield (
        "lse holds the sum of exponentials (relative to the maximum), without a logarithm",
        np.exp(inner) - lse,
    )
    yield "lse is 0: not written", -lse
    yield "lse is 1 / sum", np.exp(-inner) - lse


def _slips_of_normaliser(rows):
    if rows.returned:
        return
    top, inner = rows.top, rows.inner
    yield "rows are not divided by the normaliser, the sum of exponentials relative to the maximum", -inner
    yield "rows are divided by the normaliser twice", inner
    yield "rows are divided by the square root of the normaliser", -inner / 2
    yield "rows are multiplied by the normaliser, not divided by it", -2 * inner
    yield "rows are divided by exp(lse), as if they were not relative to the maximum already", top
    yield "rows are divided by lse, not by its exponential", np.log(np.abs(rows.lse)) - inner
    yield "1 is added to the normaliser", np.log1p(np.exp(-inner))
    yield "1 is taken from the normaliser", np.log1p(-np.exp(-inner))


def _dropout(rows):
    """Weights that are rescaled otherwise where dropout keeps them."""
    rate = float(rows.view.options.get("dropout_rate") or 0.0)
    if rows.view.dropped is None or not rate or rows.returned:
        return
    ways = (("not divided by 1 - dropout_rate", -1), ("divided by 1 - dropout_rate twice", 1))
    for words, times in (*ways, ("multiplied by 1 - dropout_rate, not divided by it", -2)):
        yield f"the kept weights are {words}", np.full_like(rows.delta, times * np.log1p(-rate))


def _what_it_does(rows, constant):
    if rows.returned:
        return f"as if the sum of exponentials were multiplied by {ratio(np.exp(constant))}"
    return f"the output is multiplied by {ratio(np.exp(-constant))}"


def _constant(rows):
    constant = float(np.median(rows.delta))
    yield (
        f"{rows.name} is off by the constant {constant:.5g} ({_what_it_does(rows, constant)})",
        np.full_like(rows.delta, constant),
    )


def _multiples(rows):
    """A number times something that is known of the row."""
    for words, x in (
        ("the row's maximum", rows.top),
        ("the logarithm of the sum", rows.inner),
        ("the right lse", rows.lse),
        ("the product of query and the mean of the keys (scaled)", _product_with_mean_key(rows)),
    ):
        size = (x * x).sum()
        if size > 0 and np.ptp(x) > 1e-6:
            a = float((x * rows.delta).sum() / size)
            yield f"{rows.name} is off by {a:.4g} times {words}", a * x


def _product_with_mean_key(rows):
    view = rows.view
    query, key, length = view.operand("query"), view.operand("key"), view.of_sequences("length")
    inside = (np.arange(key.shape[2]) < length[:, 0, 0])[:, None, :, None]
    mean = np.where(inside, np.nan_to_num(key), 0).sum(2) / np.maximum(length[:, 0, 0], 1)[:, None]
    own = mean[rows.at[0], view.heads[rows.at[1]] // view.group_size]
    return view.outline_of(0).scale * (query[rows.at] * own).sum(-1)


def _by_head(rows):
    """One number for each head: a multiple of its slope, or any."""
    view, d = rows.view, rows.delta
    heads = view.heads[rows.at[1]]
    if view.outline_of(0).alibi_slopes is not None:
        of_sequence = np.array(
            [view.outline_of(n).alibi_slopes[s.entry] for n, s in enumerate(view.sequences)]
        )
        slopes = of_sequence[rows.at[0], heads]
        size = (slopes * slopes).sum()
        a = float((slopes * d).sum() / size) if size else 0.0
        yield (
            f"{rows.name} is off by {a:.4g} times the head's ALiBi slope: "
            f"every distance is off by {-a:.4g}, which the weights do not show",
            a * slopes,
        )
        if len(np.unique(rows.at[0])) > 1:
            steps = {}
            for b in np.unique(rows.at[0]):
                here = rows.at[0] == b
                steps[b] = float((slopes * d)[here].sum() / max((slopes * slopes)[here].sum(), 1e-300))
            words = ", ".join(f"{-step:.4g} in sequence {b}" for b, step in list(steps.items())[:5])
            yield (
                f"{rows.name} is off by a multiple of the head's ALiBi slope, one in each sequence: every "
                f"distance is off by {words}, which the weights do not show",
                slopes * np.array([steps[b] for b in rows.at[0]]),
            )
    if len(np.unique(heads)) > 1:
        level = {h: np.median(d[heads == h]) for h in np.unique(heads)}
        words = ", ".join(f"{value:.4g} in head {h}" for h, value in list(level.items())[:5])
        yield f"{rows.name} is off by one number in each head: {words}", np.array([level[h] for h in heads])


def _by_place(rows):
    """One factor for each sequence, tile of rows, or pair of them and of a head."""
    view, (b, h, t) = rows.view, rows.at
    row = view.row[b, 0, t, 0]
    of = {"sequence": b, "head": view.heads[h]}
    of |= {f"tile of {size} rows": row // size for size in ROW_TILES if size < 2 * view.num_rows}
    single = [(name,) for name in of if name != "head"]
    pairs = [
        ("sequence", "head"),
        *((first, name) for name in list(of)[2:] for first in ("sequence", "head")),
    ]
    for names in single + pairs:
        places, group = np.unique(np.stack([of[name] for name in names]), axis=1, return_inverse=True)
        count = places.shape[1]
        if not 1 < count <= min(MOST_PLACES, len(row) // LEAST_ROWS):
            continue
        level = np.array([np.median(rows.delta[group.ravel() == n]) for n in range(count)])
        factors = [
            f"{np.exp(one):.4g} where {' and '.join(f'{name} is {n}' for name, n in zip(names, place))}"
            for one, place in zip(level, places.T, strict=True)
        ]
        each, shown = " and ".join(names), ", ".join(factors[:SHOWN_PLACES])
        more = f" and {count - SHOWN_PLACES} more" if count > SHOWN_PLACES else ""
        yield (
            f"{rows.name} is multiplied by one factor in each {each}: {shown}{more}",
            level[group.ravel()],
        )


def _accumulated(rows):
    """Sums of exponentials, relative to the row's maximum, that are rounded after each term."""
    view = rows.view
    terms = np.where(view.visible, np.exp(view.score - view.top[..., None]), 0.0)[rows.at]
    if terms.size > MOST_TERMS:
        return
    for short in ("bfloat16", "float16"):
        for tile in (1, *ACCUMULATED):
            total = np.zeros(len(terms))
            for first in range(0, terms.shape[1], tile):
                total = round_to(total + terms[:, first : first + tile].sum(1), short)
            of = "key after key" if tile == 1 else f"tiles of {tile} keys"
            yield (
                f"the running sum ({of}) of {rows.name} is kept in {short}: small terms no longer change it",
                np.log(total) - rows.inner,
            )


def _rounded(rows):
    name, inner = rows.name, rows.inner
    for short in COARSE:
        for words, x in (
            ("the sum of exponentials", np.exp(inner)),
            ("the sum of exponentials times exp(maximum)", np.exp(np.minimum(rows.lse, 700.0))),
        ):
            yield f"{words} in {name} is rounded to {short}", np.log(round_to(x, short) / x)
        for tile in REFERENCE_TILES:
            total = np.log(np.exp(rounded_weights(rows.view, tile, short)[rows.at]).sum(-1))
            yield (
                f"{name} sums weights that are rounded to {short}, the output those that are not",
                total - inner,
            )
            yield (
                f"{name} sums weights before they are rounded to {short}, the output those after it",
                inner - total,
            )


FAMILIES = (
    _of_other_rows,
    _stored_elsewhere,
    _slips_of_lse,
    other_sinks,
    _slips_of_normaliser,
    _dropout,
    _constant,
    wrong_steps,
    carried,
    other_sums,
    _multiples,
    _by_head,
    _accumulated,
    _rounded,
    _by_place,
)
PLAIN = (_of_other_rows, _slips_of_lse, other_sinks, _slips_of_normaliser)  # that say the same of all rows
OF_FEW_ROWS = (_slips_of_lse, other_sinks, _dropout, _constant, other_sums)
