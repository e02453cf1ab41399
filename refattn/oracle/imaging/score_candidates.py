"""Scores of a wrong kernel, tried on one output: of another row, head or key, rounded, left out or doubled.

A candidate is a name and a function of rows `at` of a block to their scores, (H, n, S).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from refattn.oracle.arithmetic.formats import round_to
from refattn.oracle.imaging.explanations import TILES, Rows
from refattn.oracle.imaging.factors_in_words import step_away
from refattn.oracle.imaging.planes import other_head_places, other_key_places, planes_from_elsewhere
from refattn.oracle.imaging.rounding import SHORT_FORMATS


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
        return None if off > 1e-5 * max(np.abs(self.raw).max(initial=1.0), 1.0) else (query, key)

    def of_raw(self, raw, at):
        """Scores of other scaled products (H, n, S) of the rows `at`."""
        return self.capped_of(raw) + self.shift[:, at]

    def capped_of(self, raw):
        """Scaled products after softcap."""
        cap = self.view.options.get("softcap")
        return cap * np.tanh(raw / cap) if cap else raw


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


def moved_planes(steps, name, words):
    """A drawn plane (bias, mask, keep mask) as it stands at other places: words and a function of rows."""
    view, n = steps.view, steps.rows.sequence
    if getattr(view.outline_of(n), name) is None:
        return
    own = np.asarray(steps.rows.rows)
    for where, plane in planes_from_elsewhere(view, name):
        yield f"{words} {where}", lambda at, p=plane[n]: np.broadcast_to(p, view.shape[1:])[:, own[at]]


def _biases(steps):
    """Scores with the bias of other places."""
    view, n = steps.view, steps.rows.sequence
    if view.outline_of(n).bias is None:
        return
    own, score = np.asarray(steps.rows.rows), steps.capped + steps.shift
    bias = view.padded(
        [view.outline_of(m).bias[s.entry][np.ix_(s.heads, s.rows)] for m, s in enumerate(view.sequences)]
    )[n][:, own]
    rest = score - np.where(np.isfinite(bias), bias, 0.0)
    for step in range(8, view.num_keys, 8):
        keys = np.maximum(np.arange(view.num_keys) - step, 0)
        yield (
            f"the bias is that of the key {step_away(-step)}",
            lambda at, keys=keys: rest[:, at] + bias[:, at][..., keys],
        )
    whole, s = np.asarray(view.options["bias"], np.float64), view.sequences[n]
    if whole.shape[-1] > view.num_keys and whole.shape[-2] >= s.num_rows:
        heads = view.heads % whole.shape[-3] if whole.ndim > 2 else None
        first = whole[heads] if heads is not None else whole[None]
        first = np.broadcast_to(
            first[:, s.rows, : view.num_keys], (len(view.heads), len(s.rows), view.num_keys)
        )
        yield (
            "the bias is that of the first rows and keys of the whole array",
            lambda at: rest[:, at] + first[:, own[at]],
        )
    for words, plane in moved_planes(steps, "bias", "the bias is"):
        yield words, lambda at, plane=plane: rest[:, at] + plane(at)


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


def _alibis(steps, shifts=True):
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
    for c in sorted(set(range(-S, S + 1)) - {0}, key=abs) if shifts else ():
        words = f"ALiBi distances from a position {c:+d} away"
        yield words, lambda at, c=c: other[:, at] + term(np.abs(position[at] + c - keys))
    splits = (-(-S // count) for count in range(2, 9))
    for size in dict.fromkeys((8, *TILES, *splits)):
        if size < S:
            words = f"ALiBi distances with keys counted from the start of their tile or split of {size}"
            yield words, lambda at, size=size: other[:, at] + term(np.abs(position[at] - keys % size))
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
    for form in SHORT_FORMATS:
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


def _next_rows(array):
    """The row behind each of an array (heads, rows, .) in memory; 0 behind the last one."""
    flat = array.reshape(-1, array.shape[-1])
    return np.concatenate([flat[1:], 0 * flat[:1]]).reshape(array.shape)


def _products(steps):
    """Scores of other queries and keys: neighbours, rounded ones, a part of the components of head_dim."""
    if steps.operands is None:
        return
    query, key = steps.operands
    view, n, own, scale = steps.view, steps.rows.sequence, np.asarray(steps.rows.rows), steps.scale
    D, S, T = query.shape[-1], key.shape[1], query.shape[1]

    def products(q, k, rows=None):
        rows = own if rows is None else rows
        return lambda at: steps.of_raw(q[:, rows[at]] @ np.swapaxes(k, -1, -2) * scale, at)

    for c in range(8, D, 8):
        yield f"the products of components {c} and above left out", products(query[..., :c], key[..., :c])
        yield f"the products of components below {c} left out", products(query[..., c:], key[..., c:])
    for unit in (8, 16, 32, 64):
        if rest := -D % unit:
            # the first components of the next row stand where nothing should
            stored = query, view.operand("key")[n]
            q, k = (np.concatenate([a, _next_rows(a)[..., :rest]], -1) for a in stored)
            k = k[view.heads // max(view.num_heads // len(k), 1)]
            words = (
                f"products over {D + rest} components in place of {D} (rounded up to {unit}): the others are"
            )
            yield f"{words} the first ones of the next row of query and key", products(q, k)
    for form in SHORT_FORMATS:
        q, k = round_to(query, form), round_to(key, form)
        if not np.array_equal(k, key):
            yield f"keys rounded to {form}", products(query, k)
            yield f"queries and keys rounded to {form}", products(q, k)
        if not np.array_equal(q, query):
            yield f"queries rounded to {form}", products(q, key)
    for step in (1, -1, *(sign * size for size in (16, 32, 48, 64, 128) for sign in (-1, 1) if size < S)):
        if abs(step) < T:
            yield f"the query of row {step:+d}", products(query, key, np.clip(own + step, 0, T - 1))


def _keys(steps):
    """Products with the keys of other places, and the right values; of MLA in the latent or rotary part."""
    if steps.operands is None:
        return
    query, key = steps.operands
    view, own, S = steps.view, np.asarray(steps.rows.rows), key.shape[1]
    parts = [("", slice(None))]
    if view.latent:
        nope = view.arrays[0].shape[-1]
        parts = [("rotary part of the ", slice(nope, None)), ("latent part of the ", slice(0, nope))]
    for part, which in parts:
        q, k = query[..., which], key[..., which]

        def changed(other, q=q, k=k):
            change = np.swapaxes(np.nan_to_num(other) - k, -1, -2) * steps.scale
            return lambda at: steps.of_raw(steps.raw[:, at] + q[:, own[at]] @ change, at)

        if part:
            yield f"scores without the {part}keys", changed(0 * k)
        for words, place in other_key_places(S):
            yield f"the {part}key is that of {words}", changed(k[:, np.clip(place(np.arange(S)), 0, S - 1)])
        if which.start in (None, 0) and (view.latent or view.num_kv_heads > 1):
            unit = 1 if view.latent else view.group_size
            place = {int(head) // unit: n for n, head in reversed([*enumerate(view.heads)])}
            for words, head in other_head_places(view):
                others = np.clip(head(view.heads), 0, view.num_heads - 1)
                if all(int(other) // unit in place for other in others):
                    taken = k[[place[int(other) // unit] for other in others]]
                    what = "up-projection of the keys (w_uk)" if view.latent else "key"
                    yield f"the {what} is that of {words}", changed(taken)


def _queries(steps):
    """Products with queries of other places in memory; of MLA in the latent or rotary part."""
    view = steps.view
    if steps.operands is None or view.shape[2] != view.sequences[steps.rows.sequence].num_rows:
        return
    query, key = steps.operands
    H, T, _ = query.shape
    if len(view.heads) != view.num_heads:
        return
    own = np.asarray(steps.rows.rows)
    nope = view.arrays[0].shape[-1] if view.latent else 0
    parts = [("rotary part of the ", slice(nope, None)), ("latent part of the ", slice(0, nope))]
    h, t = np.arange(H)[:, None], np.arange(T)
    places = [("the first head", 0 * h + 0 * t, t + 0 * h), ("the first row", h + 0 * t, 0 * t + 0 * h)]
    for words, head in other_head_places(view):
        places.append((words, np.clip(head(h), 0, H - 1) + 0 * t, t + 0 * h))
    for words, flat in (
        ("memory of (heads, rows) read as (rows, heads)", t * H + h),
        ("memory of (rows, heads) read as (heads, rows)", (h * T + t) % H * T + (h * T + t) // H),
    ):
        places.append((words, flat // T, flat % T))
    for part, which in parts if view.latent else [("", slice(None))]:
        q, k = query[..., which], np.swapaxes(key[..., which], -1, -2) * steps.scale
        for words, head, row in places:
            change = q[head, row] - q
            if change.any():
                yield (
                    f"the {part}query is that of {words}",
                    lambda at, c=change, k=k: steps.of_raw(steps.raw[:, at] + c[:, own[at]] @ k, at),
                )


def with_keys(steps, named):
    """Scores with other keys (K, S, D), each of a name."""
    if steps.operands is None:
        return
    query, own = steps.operands[0], np.asarray(steps.rows.rows)
    for name, keys in named:
        key = np.swapaxes(keys[steps.view.heads // steps.view.group_size], -1, -2) * steps.scale
        yield name, lambda at, key=key: steps.of_raw(query[:, own[at]] @ key, at)


def _multiples(steps):
    """A term of the scores times a number that kernels multiply with."""
    view, n, score = steps.view, steps.rows.sequence, steps.capped + steps.shift
    terms = []
    if view.options.get("alibi_slopes") is not None and view.outline_of(n).bias is None:
        terms.append(("ALiBi", steps.shift))
    elif np.abs(steps.shift).max(initial=0.0) > 0:
        terms.append(("the bias", steps.shift))
    if not view.options.get("softcap"):
        terms.append(("the products of query and key", steps.raw))
    for words, term in terms:
        for factor, times in (
            (0.0, "left out"),
            (2.0, "counted twice"),
            (-1.0, "subtracted"),
            (np.log(2), "multiplied by ln 2"),
            (np.log2(np.e), "multiplied by log2(e)"),
            (steps.scale, "multiplied by the scale"),
            (1 / steps.scale, "divided by the scale"),
        ):
            yield (
                f"scores with {words} {times}",
                lambda at, a=factor - 1, term=term: score[:, at] + a * term[:, at],
            )


FAMILIES = (_biases, _shifts, _multiples, _softcaps, _alibis, _rounded, _products, _keys, _queries)


def for_some_keys(steps):
    """Candidates that may hold for some keys of a row only."""
    for family in (_multiples, _keys, _biases, _softcaps):
        yield from family(steps)
    yield from _alibis(steps, shifts=False)
