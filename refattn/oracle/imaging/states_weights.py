"""Merges that weight the states wrongly: each model says what stands in place of exp(lse_p - lse)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from refattn.oracle.arithmetic.formats import round_to
from refattn.oracle.imaging.states_view import softmax

MOST_STATES = 16  # that are left out one by one
LN2, LOG2E = np.log(2), np.log2(np.e)


@dataclass(frozen=True, eq=False)
class Model:
    """Weights (B, H, T, P), and the lse (B, H, T) that goes with them where the same mistake makes it wrong.

    `fitted`: it has a number of its own, and says less than a model without one that explains the same.
    """

    words: str
    weights: np.ndarray | None
    lse: np.ndarray | None = None
    fitted: bool = False


def weight_models(view, measured) -> Iterator[Model]:
    yield from _constant_weights(view)
    yield from _other_bases(view, measured)
    yield from left_out(view)
    yield from _empty_states(view)
    yield from _from_elsewhere(view)
    yield from _lses_of_other_states(view, measured)
    yield from _not_normalised(view, measured)
    yield from _one_by_one(view)
    yield from _in_groups(view)
    yield from rounded(view)
    yield from _clipped(view, measured)


def _joined(words, scores, back=lambda lse: lse):
    """Weights that a merge gives with other lses; `back` turns its lse into what it returns."""
    weights, lse = softmax(scores)
    with np.errstate(all="ignore"):
        return Model(words, weights, back(lse))


def _finite(array):
    return np.where(np.isneginf(array), 0.0, array)


def _divided(array):
    with np.errstate(all="ignore"):
        return array / array.sum(-1, keepdims=True)


def _constant_weights(view):
    seen = view.visible.astype(float)
    yield Model(
        "states are averaged: all count alike, whatever their lse",
        np.full(view.shape, 1 / view.num_keys),
        np.full(view.shape[:3], np.log(view.num_keys)),
    )
    yield Model(
        "states are averaged: all that are not empty count alike, whatever their lse", _divided(seen)
    )
    yield Model("the outputs of the states are added up without weights", np.ones(view.shape))
    largest = view.score == view.top[..., None]
    yield Model("only the state with the largest lse counts", _divided(largest * seen), view.top)
    yield Model(
        "states are weighted by lse itself, not by its exponential",
        _divided(view.raw),
        _log_of_sum(view, view.raw),
    )
    size = np.where(view.visible, np.abs(view.raw), 0)
    yield Model("states are weighted by the absolute value of lse, not by its exponential", _divided(size))
    with np.errstate(all="ignore"):
        yield Model(
            "the exponential of lse is taken again as if it were lse",
            softmax(np.where(view.visible, np.exp(view.raw), -np.inf))[0],
        )
        yield Model("states are weighted by 1 / lse", _divided(np.where(view.visible, 1 / view.raw, 0)))


def _log_of_sum(view, weights):
    """The merged lse where these weights are added up in place of exp(lse - largest lse)."""
    with np.errstate(all="ignore"):
        return view.top + np.log(weights.sum(-1))


def _other_bases(view, measured):
    """lse times a number."""
    for factor, words in (
        (LN2, "lse is taken for a logarithm in base 2: weights are powers of 2, not of e"),
        (LOG2E, "lse is multiplied by log2(e) and then exponentiated in base e"),
        (-1.0, "lse is taken with the wrong sign: the state with the least weight gets the most"),
        (0.5, "lses, or their differences, are halved"),
        (2.0, "lses, or their differences, are doubled"),
        (LN2**2, "lse is multiplied by ln 2 twice"),
        (LOG2E**2, "lse is multiplied by log2(e) twice"),
        (-LN2, "lse is taken with the wrong sign and for a logarithm in base 2"),
    ):
        yield _joined(words, times(view, factor), lambda lse, factor=factor: lse / factor)
    factor = fitted_factor(view, measured)
    if np.isfinite(factor):
        words = f"lses, or their differences, are multiplied by {factor:.4g}"
        weights = softmax(times(view, factor))[0]
        yield Model(words, weights, fitted=True)
        if abs(factor - 1) > 1e-3:
            total = measured.weights.sum(-1, keepdims=True)
            words = f"weights are the right ones to the power {factor:.4g}, and not normalised again"
            yield Model(words, weights * total, fitted=True)


def times(view, factor):
    return np.where(view.visible, factor * view.raw, -np.inf)


def fitted_factor(view, measured):
    """The number times lse that goes best with the logarithms of the measured weights, or NaN."""
    with np.errstate(all="ignore"):
        got = np.log(measured.weights)
    use = np.isfinite(got) & view.visible & (measured.weights > 16 * measured.floor)
    count = use.sum(-1, keepdims=True)
    use = use & (count > 1)
    if not use.any():
        return np.nan
    centred = lambda array: np.where(
        use, array - np.where(use, array, 0).sum(-1, keepdims=True) / np.maximum(count, 1), 0
    )[use]
    x, y = centred(view.raw), centred(np.where(use, got, 0))
    size = np.abs(x) > 1e-3 * np.abs(x).max(initial=0.0)
    return float(np.median(y[size] / x[size])) if size.any() else np.nan


def left_out(view):
    """States of some numbers that get no weight."""
    last = view.num_keys - 1
    key = view.key[0, 0, 0]
    some = lambda keep: np.where(np.broadcast_to(keep, view.shape), view.score, -np.inf)
    if last > 0:
        yield _joined("the last state is left out", some(key < last))
        yield _joined("the first state is left out", some(key > 0))
        yield _joined("only the first state counts", some(key == 0))
        yield _joined("only the last state counts", some(key == last))
        yield _joined("the state with the largest lse is left out", some(view.score < view.top[..., None]))
        yield _joined(
            "the state with the smallest lse is left out", some(view.raw > view.raw.min(-1, keepdims=True))
        )
        for n, words in ((0, "first"), (last, "last")):
            alone = np.broadcast_to((key == n).astype(float), view.shape)
            yield Model(
                f"only the {words} state counts, also where it is empty (lse -inf)", alone, view.lses[..., n]
            )
    if last > 1:
        yield _joined("only the first two states count", some(key < 2))
        yield _joined("only the last two states count", some(key >= last - 1))
        yield _joined("only the first and the last state count", some((key == 0) | (key == last)))
        yield _joined("states of even number alone count", some(key % 2 == 0))
        yield _joined("states of odd number alone count", some(key % 2 == 1))
        yield _joined(
            "states from the first empty one on are left out",
            some(np.logical_and.accumulate(view.visible, axis=-1)),
        )
    for n in range(1, min(last, MOST_STATES)):
        yield _joined(f"state {n} is left out", some(key != n))
    for size in (*range(3, min(last, MOST_STATES)), 16, 32, 64):
        if 2 < size < last:
            yield _joined(f"only the first {size} states count", some(key < size))
    for size in (4, 8, 16, 32, 64):
        if size < last:
            whole = key < (last + 1) // size * size
            yield _joined(f"states behind the last whole group of {size} are left out", some(whole))
    for n, words in ((0, "first"), (last, "last")):
        twice = np.where(key == n, view.score + LN2, view.score)
        yield _joined(f"the {words} state counts twice", twice)
        as_largest = np.where(key == n, _finite(view.top)[..., None], view.score)
        yield _joined(f"the {words} state counts as if its lse were the largest, whatever it is", as_largest)


def _empty_states(view):
    """States of lse -inf that count."""
    empty = ~view.visible
    if not empty.any():
        return
    yield _joined("an empty state (lse -inf) counts as one of lse 0", np.where(empty, 0.0, view.score))
    top = _finite(view.top)[..., None]
    yield _joined(
        "an empty state (lse -inf) counts as much as the one with the largest lse",
        np.where(empty, top, view.score),
    )
    alone = np.where(empty.any(-1, keepdims=True), np.where(empty, 0.0, -np.inf), view.score)
    yield _joined("an empty state (lse -inf) counts alone, and the others get no weight", alone)
    total = np.exp(np.where(np.isneginf(view.lse), 0, view.lse))[..., None]
    with np.errstate(all="ignore"):
        joined = np.where(view.visible, np.exp(view.score), 0) / (total + empty.sum(-1, keepdims=True))
        yield Model(
            "the normaliser counts an empty state (lse -inf) as exp(0) = 1, and its output is not added",
            joined,
        )


def _from_elsewhere(view):
    """lses of other states, rows, heads or batch entries."""
    lses = np.where(view.visible, view.lses, -np.inf)
    for words, moved in moved_places(lses):
        yield _joined(f"the lses used are those of {words}", moved)
    for words, moved in (*other_order(lses), *other_stride(lses)):
        yield _joined(f"the lses are read with wrong strides: {words}", moved)


def _lses_of_other_states(view, measured):
    """The lses in another order of the states, read off the weights; the merged lse is right then."""
    with np.errstate(all="ignore"):
        used = np.log(measured.weights) + view.lse[..., None]
    known = np.isfinite(used) & view.row_exists[..., None] & (measured.weights > 16 * measured.floor)
    states, order = view.num_keys, []
    for state in range(states if 1 < states <= MOST_STATES else 0):
        with np.errstate(all="ignore"):
            near = np.abs(used[..., state, None] - view.score) <= 3 * measured.tolerance
        order.append(int((near & known[..., state, None]).sum((0, 1, 2)).argmax()))
    if sorted(order) == list(range(states)) != order:
        words = ", ".join(f"{q} for state {p}" for p, q in enumerate(order) if p != q)
        weights, lse = softmax(view.score[..., order])
        yield Model(f"the lses used are those of other states: of state {words}", weights, lse, fitted=True)


def moved_places(array):
    """(words, the array (B, H, T) or (B, H, T, P) as it is read at other numbers of one axis)."""
    for axis, name in enumerate(("batch entry", "head", "row", "state")[: array.ndim]):
        count = array.shape[axis]
        n, last = np.arange(count), count - 1
        if count < 2:
            continue
        if name != "state":  # all states alike is an average
            yield f"the first {name} for all", np.take(array, 0 * n, axis)
            yield f"the last {name} for all", np.take(array, 0 * n + last, axis)
        for words, other in (
            (f"the next {name} (the last one's is the first)", (n + 1) % count),
            (f"the {name} before (the first one's is the last)", (n - 1) % count),
            (f"the next {name} (the last one has its own)", np.minimum(n + 1, last)),
            (f"the {name} before (the first one has its own)", np.maximum(n - 1, 0)),
            (f"the {name} counted from the end", last - n),
            (f"the {name} whose lowest bit is changed (0 and 1 exchanged)", np.minimum(n ^ 1, last)),
            *((f"{name} n % {size}", n % size) for size in (2, 4, 8, 16, 32, 64) if size < count),
            *((f"{name} n // {size}", n // size) for size in (2, 4, 8) if size < count),
        ):
            yield words, np.take(array, other, axis)


def other_stride(array):
    """(words, an array (B, H, T, P) whose heads are read at another distance than they are stored at)."""
    flat = np.moveaxis(array, -1, 0)
    length = flat.shape[-1]
    padded = {-(-length // size) * size for size in (8, 16, 32, 64, 128)}
    first = np.arange(flat[..., 0].size).reshape(flat.shape[:-1])[..., None]
    for distance in sorted({length + 1, length - 1, *padded} - {length, 0}):
        at = np.minimum(first * distance + np.arange(length), flat.size - 1)
        words = f"heads are {distance} numbers apart, they are stored {length} apart"
        yield words, np.moveaxis(flat.ravel()[at], 0, -1)


def other_order(array):
    """(words, an array (B, H, T, P) whose memory is read as if its axes stood in another order)."""
    flat = np.ascontiguousarray(np.moveaxis(array, -1, 0))
    axes = ("states", "batch", "heads", "rows")
    for order in (
        (0, 1, 3, 2),
        (0, 2, 1, 3),
        (1, 0, 2, 3),
        (1, 2, 0, 3),
        (1, 2, 3, 0),
        (1, 3, 2, 0),
        (3, 0, 1, 2),
        (0, 3, 1, 2),
        (0, 3, 2, 1),
        (2, 0, 1, 3),
    ):
        shape = tuple(flat.shape[axis] for axis in order)
        own, other = (f"({', '.join(axes[axis] for axis in order)})" for order in (range(4), order))
        for words, read in (
            (f"memory of {own} as {other}", np.transpose(flat.reshape(shape), np.argsort(order))),
            (f"memory of {other} as {own}", np.transpose(flat, order).reshape(flat.shape)),
        ):
            read = np.moveaxis(read, 0, -1)
            if not np.array_equal(read, array):
                yield words, read


def _not_normalised(view, measured):
    """The right weights times a number of the row."""
    right, lse, top = view.weights, view.lse[..., None], view.top[..., None]
    with np.errstate(all="ignore"):
        yield Model(
            "the weighted sum is not divided by the sum of the weights exp(lse - largest lse)",
            right * np.exp(lse - top),
        )
        yield Model(
            "the weighted sum is not divided by the sum of the weights: outputs are multiplied by exp(lse)",
            right * np.exp(lse),
        )
        yield Model(
            "the weighted sum is divided twice by the sum of the weights exp(lse - largest lse)",
            right * np.exp(top - lse),
        )
        yield Model(
            "weights exp(lse - largest lse) are divided by the merged lse, not by their sum",
            right * np.exp(lse - top) / lse,
        )
        yield Model(
            "weights are divided by the number of states, on top of their sum", right / view.num_keys
        )
        yield Model("weights are multiplied by the number of states", right * view.num_keys)
        yield Model(
            "weights exp(lse - largest lse) are divided by the number of states, not by their sum",
            right * np.exp(lse - top) / view.num_keys,
        )
        if measured.lse is not None:
            own = measured.lse[..., None]
            yield Model(
                "weights are exp(lse of the state - merged lse) with the wrong lse that is returned",
                right * np.exp(lse - own),
            )
        total = measured.weights.sum(-1)
        off = total[view.row_exists & (view.weights.sum(-1) > 0) & np.isfinite(total)]
        if off.size:
            factor = float(np.median(off))
            yield Model(f"the output is multiplied by {factor:.5g}", right * factor, fitted=True)
        for n, words in ((0, "first"), (view.num_keys - 1, "last")):
            yield Model(
                f"the {words} state is left out of the sum of the weights by which is divided",
                right / (1 - right[..., n : n + 1]),
            )


def _one_by_one(view):
    """States merged one after the other, with a wrong lse carried along."""
    for words, carried in (
        ("the larger of the two", np.maximum),
        ("that of the newer one", lambda old, new: new),
        ("that of the older one", lambda old, new: old),
        ("the sum of the two", lambda old, new: old + new),
        ("the mean of the two", lambda old, new: (old + new) / 2),
        ("twice the right one's sum of exponentials", lambda old, new: np.logaddexp(old, new) + LN2),
    ):
        yield _in_turn(
            view,
            f"states are merged one after the other, and the lse carried on is {words}, not that of both",
            carried,
        )
    yield _in_turn(
        view, "states are merged one after the other, each half and half with all before it", None
    )
    yield from running_sums(view)
    # sigmoid of the difference, with its sign exchanged
    weights, lse = _first(view)
    for n in range(1, view.num_keys):
        new = view.score[..., n]
        with np.errstate(all="ignore"):
            share = 1 / (1 + np.exp(new - lse))
        share = np.where(np.isneginf(new) & np.isneginf(lse), 0.0, share)
        weights = weights * (1 - share)[..., None]
        weights[..., n] = share
        lse = np.logaddexp(lse, new)
    yield Model(
        "states are merged one after the other with the two weights (old and new) exchanged", weights, lse
    )


def running_sums(view):
    """Sums that are not rescaled, or the wrong way round, when the largest lse so far rises."""
    with np.errstate(all="ignore"):
        running = np.maximum.accumulate(view.score, axis=-1)
        own = np.where(view.visible, np.exp(view.score - running), 0)
        change = np.where(view.visible, np.exp(view.top[..., None] - running), 0)
        inner = np.exp(view.lse - view.top)[..., None]
        right = np.where(view.visible, np.exp(view.score - view.top[..., None]), 0)
        rises = "when the largest lse rises"
        yield Model(
            f"outputs and weights that were added up before are not rescaled {rises}",
            _divided(own),
            _log_of_sum(view, own),
        )
        yield Model(
            f"outputs that were added up before are not rescaled {rises}; the sum of the weights is",
            own / inner,
            view.lse,
        )
        yield Model(
            f"the sum of the weights is not rescaled {rises}; the outputs that were added up are",
            right / own.sum(-1, keepdims=True),
            _log_of_sum(view, own),
        )
        yield Model(
            f"what was added up before is multiplied by exp(new - old largest lse), not divided, {rises}",
            _divided(own * change),
            _log_of_sum(view, own * change),
        )


def _in_groups(view):
    """States merged rightly in groups, and the groups joined wrongly."""
    for size in (2, 3, 4, 8):
        if size >= view.num_keys:
            continue
        edges = np.arange(0, view.num_keys, size)
        group = np.arange(view.num_keys) // size
        inside = np.empty(view.shape)
        total = np.empty((*view.shape[:3], len(edges)))
        for n in range(len(edges)):
            inside[..., group == n], total[..., n] = softmax(view.score[..., group == n])
        largest, first = np.maximum.reduceat(view.score, edges, axis=-1), view.score[..., edges]
        for words, lses in (
            ("averaged, whatever their lse", np.zeros(total.shape)),
            ("joined by their largest lses", largest),
            ("joined by the lses of their first states", first),
            (
                "joined by the logarithms of their sums, without their largest lses",
                np.where(np.isfinite(total), total - np.where(np.isfinite(largest), largest, 0), -np.inf),
            ),
        ):
            between, lse = softmax(lses)
            yield Model(
                f"groups of {size} states are merged rightly, and the groups {words}",
                inside * between[..., group],
                lse,
            )


def _first(view):
    weights = np.zeros(view.shape)
    weights[..., 0] = view.visible[..., 0]
    return weights, view.score[..., 0].copy()


def _in_turn(view, words, carried):
    weights, lse = _first(view)
    with np.errstate(all="ignore"):
        for n in range(1, view.num_keys):
            new = view.score[..., n]
            both, total = (
                softmax(np.stack([lse, new], -1))
                if carried
                else (np.full((*lse.shape, 2), 0.5), np.logaddexp(lse, new))
            )
            weights = weights * both[..., :1]
            weights[..., n] = both[..., 1]
            lse = carried(lse, new) if carried else total
    return Model(words, weights, lse)


def rounded(view):
    finite = np.where(view.visible, view.lses, 0)
    for name in ("bfloat16", "float16", "tfloat32", "float8_e4m3fn"):
        yield _joined(
            f"lses are rounded to {name} before the weights are made",
            np.where(view.visible, round_to(finite, name), -np.inf),
        )
        shifted = np.where(view.visible, finite - _finite(view.top)[..., None], 0)
        yield _joined(
            f"the differences of lses are rounded to {name}",
            np.where(view.visible, round_to(shifted, name), -np.inf),
            lambda lse: lse + view.top,
        )
        yield Model(f"weights are rounded to {name}", round_to(view.weights, name))
    for words, whole in (
        ("down", np.floor(finite)),
        ("to the nearest whole number", np.round(finite)),
        ("toward zero", np.trunc(finite)),
    ):
        yield _joined(
            f"lses are rounded {words}: they pass through integers", np.where(view.visible, whole, -np.inf)
        )


def _clipped(view, measured):
    """lses that are cut off, at a number that the measured weights tell."""
    with np.errstate(all="ignore"):
        got = np.log(measured.weights)
        below = got - got.max(-1, keepdims=True)
    right = np.where(view.visible, view.raw - _finite(view.top)[..., None], np.nan)
    with np.errstate(all="ignore"):
        use = np.isfinite(below) & (below > right + 1e-2)
    if use.any():
        edge = float(np.median(below[use]))
        yield _joined(
            f"differences of lses are at least {edge:.4g}: what lies below is cut off",
            np.where(view.visible, np.maximum(right, edge), -np.inf),
            lambda lse: lse + view.top,
        )
    if measured.lse is None:
        return
    with np.errstate(all="ignore"):
        used = got + measured.lse[..., None]  # the lse of each state as the kernel takes it
        known = np.isfinite(used) & view.visible
        for words, limit, beyond in (
            ("at most", np.minimum, known & (used < view.raw - 1e-2)),
            ("at least", np.maximum, known & (used > view.raw + 1e-2)),
        ):
            if beyond.any():
                edge = float(np.median(used[beyond]))
                scores = np.where(view.visible, limit(view.raw, edge), -np.inf)
                yield _joined(f"lses are {words} {edge:.4g}: what lies beyond is cut off", scores)
