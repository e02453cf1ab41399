"""Explanations of a wrong row by other scores: terms of another row, head or key, rounded or cut scores."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from refattn.oracle.arithmetic.formats import round_to
from refattn.oracle.imaging.explanations import TILES, Rows, fitted, of_scores

TRIAL = 10
CANDIDATES = 300
MOST_ROWS_OF_COMPONENTS = 64
GAUSS_NEWTON_STEPS = 8
FORMATS = ("bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")


@dataclass(frozen=True, eq=False)
class Steps:
    """What the right scores of some rows are made of, (H, N, S), and the call they belong to."""

    view: object
    rows: Rows
    raw: np.ndarray
    capped: np.ndarray
    shift: np.ndarray  # by bias and ALiBi, 0 where a bias hides

    @classmethod
    def of(cls, view, rows):
        take = lambda array: np.broadcast_to(array, view.shape)[rows.sequence][:, rows.rows]
        raw, capped, score = take(view.raw), take(view.capped), take(view.score)
        return cls(view, rows, raw, capped, np.where(np.isfinite(score), score - capped, 0.0))

    @property
    def scale(self):
        return self.view.outline_of(self.rows.sequence).scale

    @cached_property
    def operands(self):
        """Queries (H, T, D) of all rows and keys (H, S, D) whose scaled products the scores are, or None."""
        view, n = self.view, self.rows.sequence
        query, key = view.operand("query")[n], view.operand("key")[n]
        key = key[view.heads // max(view.num_heads // key.shape[0], 1)]
        products = query[:, self.rows.rows] @ np.swapaxes(key, -1, -2) * self.scale
        off = np.abs(np.where(self.rows.visible, products - self.raw, 0)).max(initial=0.0)
        if off > 1e-5 * max(np.abs(self.raw).max(initial=1.0), 1.0) or view.options.get("softcap"):
            return None
        return query, key


def _moved(steps, whole):
    """An array (H, T, S) of all rows as it stands at other places: words and a function of rows `at`."""
    (H, _, S), T, own = steps.rows.shape, whole.shape[1], np.asarray(steps.rows.rows)
    heads = np.arange(H)[:, None]
    for name, h, i, j in _places(steps.view, H, T, S):

        def moved(at, h=h, i=i, j=j):
            head = np.clip(h(heads, own[None, at]), 0, H - 1)[..., None]
            row = np.clip(i(own[None, at], heads), 0, T - 1)[..., None]
            return whole[head, row, np.clip(j, 0, S - 1)]

        yield name, moved


def _shifts(steps):
    """Scores with the bias and ALiBi terms of other places, or none."""
    view, n = steps.view, steps.rows.sequence
    whole = np.where(np.isfinite(view.score), view.score - view.capped, 0.0)[n]
    if np.abs(whole).max(initial=0.0) > 0:
        yield "scores without the bias and ALiBi terms", lambda at: steps.capped[:, at]
        for name, moved in _moved(steps, whole):
            yield (
                f"the bias or ALiBi term of {name}",
                lambda at, moved=moved: steps.capped[:, at] + moved(at),
            )


def _softcaps(steps):
    cap, raw, shift = steps.view.options.get("softcap"), steps.raw, steps.shift
    if not cap:
        return
    capped = lambda x: cap * np.tanh(x / cap)
    yield "scores without softcap", lambda at: (raw + shift)[:, at]
    yield "softcap taken twice", lambda at: capped(steps.capped[:, at]) + shift[:, at]
    yield (
        "softcap before the scale",
        lambda at: steps.scale * capped(raw[:, at] / steps.scale) + shift[:, at],
    )
    if np.abs(shift).max(initial=0.0) > 0:
        yield "softcap after the bias or ALiBi term", lambda at: capped((raw + shift)[:, at])


def _alibis(steps):
    """Scores with ALiBi distances from other or from rounded positions."""
    view, rows = steps.view, steps.rows
    slopes = view.options.get("alibi_slopes")
    if slopes is None:
        return
    slopes = np.asarray(slopes, np.float64).reshape(-1)[view.heads][:, None, None]
    S = rows.shape[-1]
    position, keys = view.position[rows.sequence, 0, rows.rows], np.arange(S)  # (N, 1), (S,)
    term = lambda distance: -slopes * distance
    other = steps.capped + steps.shift - term(np.abs(position - keys))
    rest = np.abs(np.where(rows.visible, other - steps.capped, 0)).max(initial=0.0)
    if view.options.get("bias") is None and rest > 1e-4:
        return
    for c in sorted(set(range(-S, S + 1)) - {0}, key=abs):
        words = f"ALiBi distances from a position {c:+d} away"
        yield words, lambda at, c=c: other[:, at] + term(np.abs(position[at] + c - keys))
    for form in ("bfloat16", "float16"):
        p, k = round_to(position.astype(float), form), round_to(keys.astype(float), form)
        distances = np.abs(p - k), round_to(np.abs(position - keys).astype(float), form)
        for words, distance in zip(
            ("ALiBi distances of positions", "ALiBi distances"), distances, strict=True
        ):
            yield f"{words} in {form}", lambda at, d=distance: other[:, at] + term(d[at])
    yield "ALiBi with the sign turned", lambda at: other[:, at] - term(np.abs(position - keys)[at])


def _rounded(steps):
    score, raw = steps.capped + steps.shift, steps.raw
    rest = score - raw
    for form in FORMATS:
        for how, cut in (("rounded", False), ("cut", True)):
            yield f"scores {how} to {form}", lambda at, f=form, t=cut: round_to(score[:, at], f, truncate=t)
            yield (
                f"scaled products {how} to {form}",
                lambda at, f=form, t=cut: round_to(raw[:, at], f, truncate=t) + rest[:, at],
            )


def _places(view, H, T, S):
    same = lambda a, b: a
    keys = np.arange(S)
    yield "the next head", lambda h, i: (h + 1) % H, same, keys
    yield "the head before", lambda h, i: (h - 1) % H, same, keys
    yield "the first head", lambda h, i: h * 0, same, keys
    yield "the head that is the row's number further", lambda h, i: (h + i) % H, same, keys
    yield "the first head of the group", lambda h, i: h // view.group_size * view.group_size, same, keys
    yield "the head with the number of the key/value head", lambda h, i: h // view.group_size, same, keys
    yield (
        "the heads in another order (heads and groups swapped)",
        lambda h, i: h % view.num_kv_heads * view.group_size + h // view.num_kv_heads,
        same,
        keys,
    )
    for step in (1, -1):
        yield f"the row {step:+d}", same, lambda i, h, s=step: i + s, keys
        yield f"the key {step:+d}", same, same, keys + step
    yield "the first row", same, lambda i, h: i * 0, keys
    yield "the row's number as key and the key as row", same, lambda i, h: i, keys
    for size in (8, *TILES):
        if size < S:
            yield f"the first tile of {size} keys", same, same, keys % size
            yield f"the tile of {size} keys before", same, same, np.where(keys >= size, keys - size, keys)
            yield f"the next tile of {size} keys", same, same, np.where(keys + size < S, keys + size, keys)
        if size < T:
            yield f"the first tile of {size} rows", same, lambda i, h, s=size: i % s, keys
            yield f"the first row of the tile of {size} rows", same, lambda i, h, s=size: i // s * s, keys


def _products(steps):
    """Scores of other queries and keys: neighbours, rounded ones, a part of the components of head_dim."""
    if steps.operands is None:
        return
    query, key = steps.operands
    own, shift, scale = np.asarray(steps.rows.rows), steps.shift, steps.scale
    D, S, T = query.shape[-1], key.shape[1], query.shape[1]

    def products(q, k, rows=None):
        rows = own if rows is None else rows
        return lambda at: q[:, rows[at]] @ np.swapaxes(k, -1, -2) * scale + shift[:, at]

    for c in range(8, D, 8):
        yield f"the products of components {c} and above left out", products(query[..., :c], key[..., :c])
        yield f"the products of components below {c} left out", products(query[..., c:], key[..., c:])
    for form in FORMATS:
        q, k = round_to(query, form), round_to(key, form)
        if not np.array_equal(k, key):
            yield f"keys rounded to {form}", products(query, k)
            yield f"queries and keys rounded to {form}", products(q, k)
        if not np.array_equal(q, query):
            yield f"queries rounded to {form}", products(q, key)
    for step in (1, -1, *(sign * size for size in (16, 32, 48, 64, 128) for sign in (-1, 1) if size < S)):
        yield (
            f"keys of the key {step:+d}, with the right values",
            products(query, key[:, np.clip(np.arange(S) + step, 0, S - 1)]),
        )
        if abs(step) < T:
            yield f"the query of row {step:+d}", products(query, key, np.clip(own + step, 0, T - 1))


def _dropouts(steps):
    """Weights with the dropout of other rows, heads or keys, or none."""
    view, rows = steps.view, steps.rows
    if view.dropped is None:
        return
    keep = ~np.broadcast_to(view.dropped, view.shape)[rows.sequence]
    p = np.where(rows.visible, rows.denominator, 0.0)
    rate, own = float(view.options.get("dropout_rate") or 0.0), np.asarray(rows.rows)
    yield "no dropout", lambda at: p[:, at]
    yield "dropout without its rescaling", lambda at: p[:, at] * keep[:, own[at]]
    yield "dropout of the other keys", lambda at: p[:, at] * ~keep[:, own[at]] / (1 - rate)
    for name, moved in _moved(steps, keep):
        yield f"the dropout mask of {name}", lambda at, moved=moved: p[:, at] / (1 - rate) * moved(at)


def _masks(steps):
    """Weights with the mask of other rows, heads or keys, inverted, or none."""
    view, rows = steps.view, steps.rows
    own, keys = np.asarray(rows.rows), np.arange(rows.shape[-1])
    for what, words in (("mask", "mask"), ("bias", "bias of -inf")):
        hidden = view.hidden_by(what)
        if hidden is None or not hidden.any():
            continue
        hides = np.broadcast_to(hidden, view.shape)[rows.sequence]  # of all rows
        inside = (keys >= rows.start[:, None]) & (keys < rows.stop[:, None])

        def seen(mask, at, inside=inside):
            times = (~mask & inside[at]).astype(float)
            total = (rows.denominator[:, at] * times).sum(-1, keepdims=True) + rows.sink[:, at, None]
            return rows.numerator[:, at] * times / np.maximum(total, 1e-300)

        yield f"the {words} ignored", lambda at, s=seen, m=hides: s(np.zeros_like(m[:, own[at]]), at)
        yield f"the {words} inverted", lambda at, s=seen, m=hides: s(~m[:, own[at]], at)
        for name, moved in _moved(steps, hides):
            yield f"the {words} of {name}", lambda at, s=seen, moved=moved: s(moved(at), at)


def _cut_weights(rows):
    """Weights rounded to a coarse format before they meet the values."""
    p = np.where(rows.visible, rows.numerator, 0.0)
    top = np.where(rows.visible, rows.denominator, 0.0).max(-1, keepdims=True, initial=1e-300)
    for form in FORMATS:
        for how, cut in (("rounded", False), ("cut", True)):
            yield (
                f"weights {how} to {form}",
                lambda at, f=form, t=cut: round_to(p[:, at] / top[:, at], f, truncate=t) * top[:, at],
            )


def other_scores(reading, rows):
    """Each candidate that holds in some row of a trial."""
    everything = np.arange(len(rows.rows))
    trial = np.unique(np.linspace(0, len(rows.rows) - 1, TRIAL).astype(int))
    for name, make in _candidates(Steps.of(reading.view, rows)):
        if reading.left() < 0:
            return
        if rows.holds_at(make(trial) @ rows.value, trial).any():
            weights = make(everything)
            prediction = rows.apply(weights)
            yield fitted(name, rows, prediction, lambda w=weights: w, 0, CANDIDATES, "visible", cost=0.02)


def _candidates(steps):
    """Names, and functions of rows `at` to weights (H, n, S)."""
    rows = steps.rows
    for family in (_shifts, _softcaps, _alibis, _rounded, _products):
        for name, scores in family(steps):
            yield (
                name,
                lambda at, scores=scores: of_scores(rows, scores(at), rows.visible[:, at], at, rows.kept),
            )
    yield from _dropouts(steps)
    yield from _masks(steps)
    yield from _cut_weights(rows)


def components(reading, rows):
    """How often the products of each component of head_dim count: one number each, the same in all rows."""
    steps = Steps.of(reading.view, rows)
    h, i = (index[:MOST_ROWS_OF_COMPONENTS] for index in np.nonzero(rows.wrong))
    if steps.operands is None or len(h) * rows.output.shape[-1] < 4 * steps.operands[0].shape[-1]:
        return
    query, key = steps.operands
    query, score = query[:, rows.rows], steps.raw + steps.shift
    everything = np.arange(len(rows.rows))

    def weights_of(numbers):
        changed = score + (query * numbers) @ np.swapaxes(key, -1, -2) * steps.scale
        return of_scores(rows, changed, rows.visible, everything, rows.kept)

    numbers = np.zeros(query.shape[-1])
    for _ in range(GAUSS_NEWTON_STEPS):
        step, spread = _step(rows, weights_of(numbers), h, i, query[h, i] * steps.scale, key[h])
        numbers = numbers + np.clip(step, -1, 1)
    for whole in (-1.0, 0.0, 1.0):
        numbers = np.where(np.abs(numbers - whole) < np.maximum(6 * spread, 1e-3), whole, numbers)
    changed = np.flatnonzero(numbers)
    if not len(changed) or len(changed) > 0.5 * len(numbers):
        return
    weights = weights_of(numbers)
    times = ", ".join(f"{1 + number:.3g}" for number in dict.fromkeys(np.round(numbers[changed], 3)))
    which = ", ".join(map(str, changed[:8])) + (", ..." if len(changed) > 8 else "")
    name = f"the products of components {which} of head_dim counted {times} times"
    choices = len(numbers) ** min(len(changed), 4)
    yield fitted(name, rows, rows.apply(weights), lambda: weights, 0, choices, "visible", cost=0.05)


def _step(rows, weights, h, i, query, key):
    """A Gauss-Newton step of the number of each component, from the rows (h, i), and its spread."""
    output = rows.apply(weights)[h, i]
    w, d = weights[h, i], rows.deviation[h, i]
    # d output / d number of component c = q_c sum_j w_j k_jc (v_j - o)
    along = np.einsum("rs,rsc,rse->rce", w, key, rows.value[h], optimize=True)
    along -= np.einsum("rs,rsc->rc", w, key)[..., None] * output[:, None]
    off = (rows.output[h, i] - output) / d
    size = np.maximum(np.sqrt((off**2).mean(-1)), 1.0)[
        :, None
    ]  # rows far from a fit must not outweigh others
    along = np.moveaxis(along * query[..., None] / (d * size)[:, None], 1, 0).reshape(query.shape[-1], -1)
    curvature = along @ along.T
    if not np.isfinite(curvature).all():
        return np.zeros(len(along)), np.full(len(along), np.inf)
    inverse = np.linalg.pinv(curvature, rcond=1e-10, hermitian=True)
    return inverse @ (along @ (off / size).reshape(-1)), np.sqrt(np.diag(inverse))
