"""Explanations of a wrong row by other scores for some classes of keys: tiles, or places of each few keys.

Whether a class has the other scores is 0 or 1 in all rows alike: one linear system for the outputs of some
rows, which is solved, rounded and tested in all.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refattn.oracle.imaging.explanations import FITS_MOST, FITS_RMS, Fit, evidence
from refattn.oracle.imaging.part_scores import SAME, Mixed

TRIED, COLUMNS = 24, 16  # rows of single heads, and columns, of a system
PERIOD, TILE = 16, 16
CHUNKS = (64, 32, 16, 8, 4)  # components
MOST_CHUNKS, CHUNK_PERIODS = 8, (8, 16)
RIDGE = 1e-9


def class_scores(reading, rows, candidates) -> Iterator[Fit]:
    """Fits of candidates, (name, scores of the rows `at`) each, for classes of keys."""
    trial, own, at = _trial(reading, rows)
    S = rows.shape[-1]
    key = np.arange(S)
    for name, scores in candidates:
        if reading.left() < 0:
            return
        other = trial.weights(np.nan_to_num(scores(own)[at], neginf=-1e30))
        for classes in (key % PERIOD, key // TILE):
            table = _classes(trial, [other], classes)
            if table is not None and 0 < table.sum() < len(table):
                yield _of_all(rows, name, {0: None, 1: scores}, table[classes])
                return


def swizzled(reading, rows, steps) -> Iterator[Fit]:
    """Keys whose chunks of components stand in another order, by the key's place in each few keys."""
    if steps.operands is None:
        return
    query, key = steps.operands
    own_rows, places = np.asarray(steps.rows.rows), np.arange(key.shape[1])
    trial, own, at = _trial(reading, rows)
    for width in CHUNKS:
        count = key.shape[-1] // width
        if key.shape[-1] % width or count & (count - 1) or not 1 < count <= MOST_CHUNKS:
            continue
        if reading.left() < 0:
            return
        chunks = key.reshape(*key.shape[:2], count, width)
        scores = {0: None}
        for x in range(1, count):
            moved = np.swapaxes(chunks[:, :, np.arange(count) ^ x].reshape(key.shape), -1, -2) * steps.scale
            scores[x] = lambda at, moved=moved: steps.of_raw(query[:, own_rows[at]] @ moved, at)
        others = [trial.weights(scores[x](own)[at]) for x in range(1, count)]
        for period in CHUNK_PERIODS:
            table = _classes(trial, others, places % period)
            if table is not None and table.any():
                shortest = next(
                    p for p in range(1, period + 1) if (table == table[np.arange(period) % p]).all()
                )
                by = f"x = {', '.join(map(str, table[:shortest]))} by key % {shortest}"
                name = (
                    f"keys whose components stand in another order: chunk c of {width} is read at c ^ x, "
                    + (by if shortest > 1 else f"x = {table[0]}")
                )
                yield _of_all(rows, name, scores, table[places % period])
                return


def _trial(reading, rows):
    h, i = np.nonzero(reading.left_of(rows))
    rng = np.random.default_rng(5)
    taken = rng.permutation(len(h))[:TRIED]
    columns = rng.permutation(rows.output.shape[-1])[:COLUMNS]
    own, places = np.unique(i[taken], return_inverse=True)
    return Mixed(rows, h[taken], i[taken], columns), own, (h[taken], places)


def _classes(trial, others, classes):
    """Which of the others, from 1 on, each class of keys has, 0 for none; None if nothing is explained."""
    count, value = classes.max() + 1, trial.value[trial.h]
    one_hot = (classes == np.arange(count)[:, None]).astype(float)
    along = []
    for top, low in others:
        flow = np.einsum("gs,ms,mse->mge", one_hot, top - trial.top, value, optimize=True)
        mass = (low - trial.low) @ one_hot.T
        along.append(flow - mass[..., None] * trial.output[:, None])
    along = np.concatenate(along, 1) / trial.deviation[:, None]  # (m, others * classes, E)
    target = (trial.output - trial.right) * trial.base / trial.deviation
    size = np.maximum(np.abs(target).max(-1, keepdims=True), 1.0)
    along, scaled = np.moveaxis(along / size[:, None], 1, 0).reshape(along.shape[1], -1), target / size
    normal = along @ along.T
    if not np.isfinite(normal).all() or not normal.any():
        return None
    normal += RIDGE * np.trace(normal) / len(normal) * np.eye(len(normal))
    y = np.linalg.solve(normal, along @ scaled.reshape(-1)).reshape(len(others), count)
    table = np.where(y.max(0) > 0.5, y.argmax(0) + 1, 0)
    top, low = trial.top.copy(), trial.low.copy()
    for x, (t, p) in enumerate(others, 1):
        here = table[classes] == x
        top, low = np.where(here, t, top), np.where(here, p, low)
    mass = low.sum(-1) + trial.rows.sink[trial.h, trial.i]
    got = np.einsum("ms,mse->me", top / np.maximum(mass, 1e-300)[:, None], value)
    off = np.abs((got - trial.output) / trial.deviation)
    fits = (np.sqrt((off**2).mean(-1)) <= FITS_RMS) & (off.max(-1) <= FITS_MOST)
    return table if fits.mean() > 0.5 else None


def _of_all(rows, name, scores, which):
    """The fit in all rows of a block; `which` (S,) is the number of the scores that each key has."""
    at = np.arange(rows.shape[1])
    p = np.where(rows.visible, rows.denominator, 0.0)
    unclear = np.zeros(p.shape, bool)
    own = p
    for x, of in scores.items():
        here = which == x
        if x and here.any():
            other = np.exp(np.clip(np.nan_to_num(of(at), neginf=-1e30) - rows.base[..., None], -700, 60))
            other = np.where(rows.visible, other, 0.0)
            unclear |= here & (np.abs(other - own) <= SAME * own)
            p = np.where(here, other, p)
    weights = p * rows.kept / np.maximum(p.sum(-1) + rows.sink, 1e-300)[..., None]
    prediction = rows.apply(weights)
    rms, most = rows.left(prediction)
    odds = evidence(rows, rms, 0, 2**16, "visible")
    applied = np.broadcast_to(which > 0, p.shape) & rows.visible
    holds = (rms <= FITS_RMS) & (most <= FITS_MOST)
    return Fit(name, holds, odds, lambda: weights, None, {}, 0.04, (applied, unclear))
