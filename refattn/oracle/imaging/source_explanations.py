"""Explanations of a wrong row by what is right elsewhere: other rows, other heads' keys and values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refattn.oracle.arithmetic.formats import round_to
from refattn.oracle.imaging.cache_layouts import other_layouts
from refattn.oracle.imaging.explanations import FITS_MOST, Fit, fitted, of_scores
from refattn.oracle.imaging.rounding import COARSE
from refattn.oracle.imaging.score_candidates import Steps
from refattn.oracle.imaging.view import K_ROPE, KEY, KV_LATENT, VALUE, W_UV

TRIAL = 10  # rows on which an explanation is tried first
MOST_SOURCES = 192
TRIALS_OF_A_HEAD = 2  # rows of which all places in memory are tried
MOST_COLUMNS = 12  # that these are compared in
ELSEWHERE = "another head or sequence"
FAR = "keys and values, as far as that sequence is long,"


def other_rows(reading, rows):
    """The right result of another row, head or sequence."""
    right = reading.expected_output[..., reading.columns]
    exists = np.broadcast_to(reading.view.row_exists, right.shape[:3])
    places = np.argwhere(exists)
    table = right[exists]
    H, N, E = rows.output.shape
    got = np.nan_to_num(rows.output).reshape(-1, E)
    distance = (table**2).sum(-1) - 2 * got @ table.T
    nearest = distance.argmin(-1)
    found = places[nearest].reshape(H, N, 3)
    prediction = table[nearest].reshape(H, N, E)
    weights = reading.view.weights[found[..., 0], found[..., 1], found[..., 2]]
    says = {
        "of sequence": found[..., 0],
        "of head": reading.view.heads[found[..., 1]],
        "of row": reading.view.row[found[..., 0], 0, found[..., 2], 0],
    }
    return fitted(
        "results of other rows", rows, prediction, lambda: weights, 0, len(table), says=says, cost=0.02
    )


def other_heads(reading, rows):
    """The keys and values, or the values alone, of another key/value head, sequence or place in memory."""
    view, n = reading.view, rows.sequence
    key, value = view.operand("key"), np.nan_to_num(reading.value, nan=0.0, posinf=0.0, neginf=0.0)
    steps = Steps.of(view, rows)
    right = np.where(rows.visible, rows.numerator, 0.0)
    trial = np.unique(np.linspace(0, len(rows.rows) - 1, TRIAL).astype(int))
    everything = np.arange(len(rows.rows))

    def attempt(source, what, at):
        """Weights of the rows `at`, and their output."""
        weights = right[:, at] if what == "values" else _weights(steps, source, what == FAR, at)
        return weights, weights @ (rows.value if what == "keys" else source.value[..., reading.columns])

    sources = list(_sources(view, key, value, n, displacements(reading, rows, steps)))[:MOST_SOURCES]
    best = {}
    for source in sources:
        for what in _ways(source, steps, n):
            if reading.left() < 0:
                break
            if rows.holds_at(attempt(source, what, trial)[1], trial).any():
                weights, prediction = attempt(source, what, everything)
                name = f"{what} of {source.name}" if source.moved else source.name
                fit = fitted(name, rows, prediction, None, 0, len(sources))
                _keep_better(best, fit, weights, source)
    for name, (odds, weights, of) in best.items():
        says = {"of sequence": of[0], "of head": of[1]} if name.endswith(ELSEWHERE) else {}
        yield Fit(name, np.isfinite(odds), odds, lambda weights=weights: weights, None, says, 0.02)


def _ways(source, steps, n):
    """What may be taken from a source."""
    if source.only:
        yield source.only
        return
    yield "values"
    if source.moved and steps.operands is not None:
        yield "keys and values"
        yield "keys"
        if source.sequence != n:
            yield FAR


def _weights(steps, source, far, at):
    """Weights of the rows `at` with the keys of a source."""
    view, rows = steps.view, steps.rows
    products = steps.operands[0][:, rows.rows[at]] @ np.swapaxes(source.key, -1, -2) * steps.scale
    scores = steps.of_raw(products, at)
    visible = rows.visible[:, at]
    if far:
        within = np.arange(view.num_keys) < view.sequences[source.sequence].length
        visible = np.broadcast_to(within, scores.shape)
    return of_scores(rows, scores, visible, at)


def _keep_better(best, fit, weights, source):
    """Of the sources of one name the best one for each row."""
    shape = fit.holds.shape
    odds, kept, of = best.setdefault(
        fit.name, (np.full(shape, -np.inf), weights.copy(), np.zeros((2, *shape)))
    )
    better = fit.holds & (fit.evidence > odds)
    odds[better], kept[better] = fit.evidence[better], weights[better]
    of[0][better], of[1][better] = source.sequence, source.head


@dataclass(frozen=True, eq=False)
class Source:
    """Keys and values of another place or reading of the same memory, (S, .) or one for each head."""

    name: str
    sequence: int
    head: int
    key: np.ndarray
    value: np.ndarray
    moved: bool = True  # not the right values in another format
    only: str = ""  # what of it is wrong, where that is known


def _sources(view, key, value, n, steps):
    entries = [(b, k) for b in range(len(view.sequences)) for k in range(value.shape[1])]
    for b, k in sorted(entries, key=lambda entry: abs(entry[0] - n)):
        yield Source(ELSEWHERE, b, k, key[b, min(k, key.shape[1] - 1)], value[b, k])
    of_heads = lambda array: array[view.heads // max(view.num_heads // array.shape[0], 1)]
    if not view.latent:
        for step in steps:
            keys, values = displaced(view, n, step)
            yield Source(in_words(step), n, -1, of_heads(keys), of_heads(values))
    else:
        for name, values in _latent_readings(view, n):
            yield Source(name, n, -1, key[n], values, moved=False)
    if view.pages is not None and view.arrays[2].shape[2] == view.page_size:
        for what, words, keys, values in other_layouts(view, n):
            yield Source(f"memory: {words}", n, -1, of_heads(keys), of_heads(values), only=what)
    for name, rounded in _rounded(value[n]):
        yield Source(name, n, -1, of_heads(key[n]), of_heads(rounded), moved=False)
    for name, read in _readings(key[n].shape, value[n].shape):
        yield Source(name, n, -1, of_heads(read(key[n])), of_heads(read(value[n])))


def in_words(step):
    return f"rows stored {abs(step)} {'further' if step > 0 else 'before'}"


def displaced(view, n, step):
    """Keys and values (K, S, .) of a sequence, had it been stored some rows away in the caller's arrays."""
    moved = []
    for which in (KEY, VALUE):
        memory, at = memory_of(view, which, n)
        moved.append(memory[np.clip(at + step, 0, len(memory) - 1)])
    return moved


def memory_of(view, which, n):
    """An array of the caller as rows in memory, and the rows (K, S) at which a sequence is stored."""
    flat = np.asarray(view.arrays[which], np.float64)
    flat = np.nan_to_num(flat.reshape(-1, flat.shape[-1]))
    s = view.sequences[n]
    at = view.slots[which][s.part][s.entry]
    if at.shape[-1] < view.num_keys:
        at = np.pad(at, ((0, 0), (0, view.num_keys - at.shape[-1])))
    return flat, at


def displacements(reading, rows, steps):
    """Numbers of rows by which keys, values or both may be read elsewhere in memory: small ones, and those
    that explain some rows, for which all are tried.
    """
    view, n = reading.view, rows.sequence
    found = {sign * size: 0 for size in (1, 2, 4, 8, 16, 32, 64) for sign in (1, -1)}
    if view.latent or steps.operands is None or view.pages is not None:
        return list(found)
    keys, values = (memory_of(view, which, n) for which in (KEY, VALUE))
    if np.abs(np.diff(keys[1][:, : view.sequences[n].length], axis=-1) - 1).any():
        return list(found)
    values = values[0][:, reading.columns], values[1]
    # keys before the first that is stored, and behind the last, do not exist
    for k in np.unique(view.heads // view.group_size):
        h, i = np.nonzero(reading.left_of(rows) & (view.heads // view.group_size == k)[:, None])
        for m in np.random.default_rng(0).permutation(len(h))[:TRIALS_OF_A_HEAD]:
            if reading.left() < 0:
                break
            for step in _displacements_of_row(steps, h[m], i[m], k, keys, values):
                found.setdefault(step, 0)
                reading.displacements.add(step)
    return list(found)


def _displacements_of_row(steps, h, i, k, keys, values):
    """Displacements of keys and values, of values or of keys that explain one row of one head."""
    rows, (memory, at) = steps.rows, keys
    S, first = rows.visible.shape[-1], int(at[k, 0])
    count = len(memory) - S + 1
    if count < 2 or not np.isfinite(rows.output[h, i]).all():
        return
    some = slice(0, MOST_COLUMNS)
    query = steps.operands[0][h, rows.rows[i]] * steps.scale
    p = np.exp(np.clip(steps.capped_of(memory @ query) - rows.base[h, i], -700, 60))
    window = np.lib.stride_tricks.sliding_window_view
    seen = rows.visible[h, i] * rows.kept[h, i]
    shift = np.where(rows.visible[h, i], np.exp(np.clip(steps.shift[h, i], -700, 60)), 0.0)
    weights = window(p, S) * shift  # (count, S)
    mass = weights.sum(-1, keepdims=True) + rows.sink[h, i]
    stored = window(values[0][:, some], S, axis=0)  # (count, E, S)
    right = np.where(rows.visible[h, i], rows.numerator[h, i], 0.0)
    with np.errstate(all="ignore"):
        for got in (
            np.einsum("cs,ces->ce", weights * seen, stored) / mass,
            stored @ right,
            (weights * seen) @ rows.value[h][:, some] / mass,
        ):
            off = np.abs((got - rows.output[h, i, some]) / rows.deviation[h, i, some]).max(-1)
            if (near := np.flatnonzero(off <= FITS_MOST)).size and len(near) < count // 4:
                yield int(near[0]) - first


def _latent_readings(view, n):
    """Values of MLA whose latents are read with other strides from rows of latent and rotary part."""
    latent, rope = (np.asarray(view.arrays[m], np.float64) for m in (KV_LATENT, K_ROPE))
    up = np.asarray(view.arrays[W_UV], np.float64)[view.heads]
    s = view.sequences[n]
    latent, rope = (np.nan_to_num(a.reshape(-1, *a.shape[-2:]))[s.entry] for a in (latent, rope))
    count, width = latent.shape
    whole = np.concatenate([latent, rope], -1)
    for memory, words in ((whole, "rows of latent and rotary part"), (latent, "rows of the latent")):
        flat = memory.reshape(-1)
        for stride in sorted(
            {width, width + rope.shape[-1], *(-(-width // u) * u for u in (16, 32, 64, 128))}
        ):
            for start in {0, rope.shape[-1]} if memory is whole else {0}:
                at = np.arange(count)[:, None] * stride + start + np.arange(width)
                read = flat[at % flat.size]
                if not np.array_equal(read, latent):
                    place = f" from component {start} on" if start else ""
                    own = memory.shape[-1]
                    yield (
                        f"{words}, read{place} with a stride of {stride} numbers in place of {own}",
                        np.einsum("sc,hec->hse", read, up),
                    )


def _rounded(value):
    """Values (K, S, E) rounded to coarser formats, and to 8-bit integers with scales of several kinds."""
    for name in COARSE:
        rounded = round_to(value, name)
        if not np.array_equal(rounded, value):
            yield f"values rounded to {name}", rounded
    for words, axes in (("", None), (" a head", (1, 2)), (" a key", (2,)), (" a head and column", (1,))):
        step = np.maximum(np.abs(value).max(axes, keepdims=True, initial=0.0), 1e-300) / 127
        yield f"values rounded to 8-bit integers with one scale{words}", np.rint(value / step) * step


def _readings(key, value):
    """Other readings of the memory of keys or values (K, S, .)."""
    if key[0] > 1:
        yield "memory whose heads and rows are swapped", lambda x: np.swapaxes(x, 0, 1).reshape(x.shape)
        yield (
            "memory that is read with heads and rows swapped",
            lambda x: np.swapaxes(x.reshape(x.shape[1], x.shape[0], -1), 0, 1),
        )
    widths = {
        key[2],
        value[2],
        *(-(-width // unit) * unit for width in (key[2], value[2]) for unit in (8, 16, 32, 64, 128)),
    }
    for width in sorted(widths):

        def strided(x, width=width):
            at = np.arange(x.shape[1])[:, None] * width + np.arange(x.shape[2])
            return x.reshape(x.shape[0], -1)[:, at % (x.shape[1] * x.shape[2])]

        yield f"rows addressed with a stride of {width} numbers", strided
