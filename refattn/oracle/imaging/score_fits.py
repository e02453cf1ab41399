"""Scores of a kernel that multiplies operands, components or exponentials by numbers; they are fitted."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refattn.oracle.imaging.factors_in_words import ratio
from refattn.oracle.imaging.maps import ranges
from refattn.oracle.imaging.wrong_rows import Model, centred

NOTHING = 1e-5  # a factor that is 0

TILES = (128, 64, 48, 32, 16)
WHOLE = 0.8  # of the pairs of the parts that are wrong
MOST_PARTS, SHOWN = 8, 6  # that have a factor each, and that are told


def multiplied(rows) -> Iterator[Model]:
    """An operand times a number."""
    yield from _scale_and_softcap(rows)
    bias, slopes = rows.bias, rows.slopes()
    if bias is not None:
        a = 1 + rows.coefficient(np.where(np.isfinite(bias), bias, 0))
        yield Model("bias", f"the bias is multiplied by {ratio(a)}", rows.score + (a - 1) * bias, 1)
    if slopes is not None:
        alibi = -slopes * rows.distance
        a = 1 + rows.coefficient(alibi)
        yield Model("ALiBi", f"ALiBi is multiplied by {ratio(a)}", rows.score + (a - 1) * alibi, 1)
        yield _other_slopes(rows, slopes)
    a = rows.coefficient(rows.distance.astype(float))
    words = (
        f"{-a:.4g} times the distance of key and row is taken from the scores, "
        "as ALiBi does, which was not asked for"
    )
    yield Model("ALiBi", words, rows.score + a * rows.distance, 1)
    square = np.abs(rows.raw) * rows.raw
    a = rows.coefficient(square)
    words = f"scores have a part that grows with their square ({a:.3g} s |s|)"
    yield Model("scores", words, rows.score + a * square, 2)


def _scale_and_softcap(rows):
    raw, cap = rows.raw, rows.cap
    if cap is None:
        a = 1 + rows.coefficient(raw)
    else:
        a = rows.nearest(np.geomspace(0.05, 20, 121), lambda a: rows.of_products(a * raw))
    when = "" if cap is None else " before the softcap"
    words = (
        f"scores are multiplied by {ratio(a)}{when}: "
        f"the scale is {a * rows.scale:.5g}, it should be {rows.scale:.5g}"
    )
    if abs(a) < NOTHING:
        words = "products of query and key do not count"
        if rows.bias is None and rows.slopes() is None:
            words = "they do not count: all visible keys weigh alike"
    yield Model("scale", words, rows.of_products(a * raw), 1)
    if cap is not None:
        other = rows.nearest(cap * np.geomspace(0.02, 50, 121), lambda c: rows.of_products(raw, c))
        words = f"the softcap is {other:.5g}, it should be {cap:.5g}"
        yield Model("softcap", words, rows.of_products(raw, other), 1)
        a = 1 + rows.coefficient(rows.capped)
        words = f"capped scores are multiplied by {ratio(a)}"
        yield Model("softcap", words, rows.with_rest(a * rows.capped), 1)


def _other_slopes(rows, slopes):
    scores, words = rows.score.copy(), []
    for h in np.unique(rows.head):
        here = rows.head == h
        more = rows.coefficient(-rows.distance, here)
        scores[here] -= more * rows.distance[here]
        right = float(slopes[here][0, 0])
        words.append(f"{right + more:.4g} for head {h} (right {right:.4g})")
    return Model("ALiBi", f"the slopes of ALiBi are others: {', '.join(words[:4])}", scores, 2)


def multiplied_in_part(rows) -> Iterator[Model]:
    """An operand times a number in the wrong pairs only; the pairs that are right stay as they are."""
    bias, slopes = rows.bias, rows.slopes()
    terms = [("scale", "scores before softcap, ALiBi and bias are", rows.capped)]
    if rows.cap is None and bias is None and slopes is None:
        terms = [("scale", "scores are", rows.raw)]
    if bias is not None:
        terms.append(("bias", "the bias is", bias))
    if slopes is not None:
        terms.append(("ALiBi", "ALiBi is", -slopes * rows.distance))
    if bias is not None or slopes is not None:
        terms.append(("scores", "whole scores (ALiBi and bias included) are", rows.score))
    for kind, what, term in terms:
        a = 1 + rows.coefficient_of(term, rows.wrong)
        changed = np.where(rows.wrong, rows.score + (a - 1) * term, rows.score)
        words = f"{what} left out" if abs(a) < 1e-3 else f"{what} multiplied by {ratio(a)}"
        yield Model(kind, words, changed, 1, whole=False)


def multiplied_by_part(rows) -> Iterator[Model]:
    """An operand times a number of its own in each tile of keys, head or sequence."""
    bias, slopes = rows.bias, rows.slopes()
    terms = [("scale", "scores before softcap, ALiBi and bias", "are", rows.capped)]
    if bias is not None:
        terms.append(("bias", "the bias", "is", bias))
    if slopes is not None:
        terms.append(("ALiBi", "ALiBi", "is", -slopes * rows.distance))
    for name, part in _parts(rows):
        part = np.broadcast_to(part, rows.score.shape)
        numbers = np.unique(part[rows.wrong]).tolist()
        whole = (rows.judged & np.isin(part, numbers)).sum()  # a part is wrong as a whole, or right
        if not 1 < len(numbers) <= MOST_PARTS or rows.wrong.sum() < WHOLE * whole:
            continue
        for kind, what, verb, term in terms:
            changed, told = rows.score.copy(), []
            for number in numbers:
                here = rows.wrong & (part == number)
                a = 1 + rows.coefficient_of(term, here)
                changed[here] += ((a - 1) * term)[here]
                told.append(f"{a:.4g} in number {number}")
            words = f"{what} {verb} multiplied by another number in each {name}: {', '.join(told[:SHOWN])}"
            yield Model(kind, words, changed, len(numbers), whole=False)


def _parts(rows):
    yield "query head", rows.head[:, None]
    yield "sequence", rows.b[:, None]
    for size in TILES:
        if size < rows.view.num_keys:
            yield f"tile of {size} keys", rows.view.key[0, 0] // size
    for size in TILES:
        yield f"tile of {size} rows", rows.row[:, None] // size


def components(rows) -> Iterator[Model]:
    """Products of single components of query and key: left out, doubled or exchanged, in whole rows or in
    the pairs that are wrong.
    """
    view = rows.view
    if rows.cap is not None:
        return
    q = view.operand("query")[rows.at]  # (n, D)
    k = np.nan_to_num(view.operand("key")[rows.b, rows.head // view.group_size])  # (n, S, D)
    with np.errstate(all="ignore"):
        y = rows.measured - rows.rest
    known = np.isfinite(y) & rows.judged
    told = set()
    for use in (known, known & rows.wrong):
        if use.sum() >= 3 * q.shape[-1]:
            for model in _components_of(rows, q, k, y, use):
                if model.words not in told:
                    told.add(model.words)
                    yield model


def _components_of(rows, q, k, y, use):
    """The same of the pairs `use` (n, S); `y` are the measured scores without ALiBi and bias."""
    dims = q.shape[-1]
    target = centred(np.where(use, y, 0), use)
    products = rows.scale * q[:, None, :] * k
    total = np.where(use[..., None], products, 0).sum(1, keepdims=True)
    mean = total / np.maximum(use.sum(1), 1)[:, None, None]
    factors = np.linalg.lstsq((products - mean)[use], target[use], rcond=None)[0]
    whole = np.round(factors)
    factors = np.where(np.abs(factors - whole) < 0.1, whole, factors)
    if (factors == 1).all():
        return
    yield Model("components", _factors_in_words(factors), rows.with_rest((products * factors).sum(-1)), 1)
    # which component of the key each one of the query meets
    cross = sum(q[n][:, None] * (target[n] @ k[n])[None] for n in range(len(q)))
    partner = np.argmax(cross, axis=1)
    if (partner != np.arange(dims)).any() and len(np.unique(partner)) > dims // 4:
        yield Model("components", _pairs_in_words(partner), rows.of_operands(q, k[..., partner]), 1)


def _factors_in_words(factors):
    if np.ptp(factors) < 1e-3 * np.abs(factors).max():
        return f"scores are multiplied by {ratio(float(factors.mean()))}"
    by_factor = {}
    for d, f in enumerate(factors):
        if f != 1:
            by_factor.setdefault(round(float(f), 2), []).append(d)
    words = []
    for f, dims in sorted(by_factor.items(), key=lambda item: -len(item[1]))[:3]:
        what = "are left out of" if f == 0 else f"count {f:g} times in"
        words.append(f"components {ranges(dims)} (of {len(factors)}) of query and key {what} the scores")
    return " and ".join(words)


def _pairs_in_words(partner):
    moved = [f"{d} with {other}" for d, other in enumerate(partner) if other != d]
    more = f" and {len(moved) - 6} others" if len(moved) > 6 else ""
    return (
        "components of query and key are multiplied crosswise: "
        f"of the query with of the key {', '.join(moved[:6])}{more}, of {len(partner)}"
    )
