"""Where a kernel reads: every row is pointed at one key, and values carry their own address.

Queries become 64 times a key of +-1, so that a row gives all its weight to the one key it is pointed at; the output is then the value
that the kernel reads for that key, whatever its address. Addresses are written in digits that every format holds exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from refattn.oracle.xray.view import KEY, QUERY, VALUE

POINTED, LARGEST = 64.0, 4096.0  # times a key of +-1
DIGIT = 256  # counts that bfloat16 holds exactly
LEAST_GAP = 60.0  # of scores, between the key that a row is pointed at and every other one


@dataclass(eq=False)
class Pointed:
    """What rows read that were pointed at one key each; of R rows.

    Attributes
    ----------
    at : tuple of ndarray
        (b, h, t) of the rows.
    key : ndarray, (R,)
        The key that each was pointed at.
    sequence, head, read, column : ndarray, (R, E)
        Number of the sequence, key/value head, key and column of the value that was read; -1 where it was none of a
        sequence, -2 where the output was no address.
    """

    at: tuple
    key: np.ndarray
    sequence: np.ndarray
    head: np.ndarray
    read: np.ndarray
    column: np.ndarray
    place: np.ndarray  # index of the stored row that was read, -1 where none


def point(measured, doubtful=None, rounds=1) -> Pointed | None:
    """`_point` so often that every key of short calls is pointed at."""
    found = []
    for seed in range(rounds):
        one = _point(measured, doubtful, seed)
        if one is None:
            return None
        found.append(one)
    joined = {
        name: np.concatenate([getattr(one, name) for one in found])
        for name in ("key", "sequence", "head", "read", "column", "place")
    }
    return Pointed(
        at=tuple(np.concatenate(axis) for axis in zip(*(one.at for one in found), strict=True)), **joined
    )


def _point(measured, doubtful, seed) -> Pointed | None:
    """Point all rows that see a key at one of those they see; None where scores cannot be made to differ enough."""
    view, probes = measured.view, getattr(measured, "probes", None)
    if probes is None or view.latent or not view.num_keys:
        return None
    rng = np.random.default_rng(seed)
    part = view.outline_of(0)
    query, key = (np.asarray(view.arrays[n]) for n in (QUERY, KEY))
    dims = query.shape[-1]
    # between the key that a row is pointed at and the nearest of the others
    apart = abs(part.scale) * max(dims - 4.5 * math.sqrt(dims), 1.0)
    pointed = POINTED
    while pointed * apart < LEAST_GAP and pointed < LARGEST:
        pointed *= 2
    if (
        pointed * apart < LEAST_GAP
        or (part.softcap is not None and part.softcap < LEAST_GAP)
        or part.scale <= 0
    ):
        return None
    seen = view.visible
    where = np.argwhere(seen.any(-1))
    if not len(where):
        return None
    at = tuple(where.T)
    ways = seen[at]
    if doubtful is not None:  # two rows of three at a key whose weight is wrong
        prefer = ways & doubtful[at]
        use = prefer.any(-1) & (rng.random(len(ways)) < 2 / 3)
        ways = np.where(use[:, None], prefer, ways)
    # a key that the row sees, another one for each row
    chosen = np.array(
        [
            np.flatnonzero(way)[pick % way.sum()]
            for way, pick in zip(ways, rng.integers(0, 2**31, len(ways)), strict=True)
        ]
    )
    signs = rng.choice([-1.0, 1.0], size=(int(np.prod(key.shape[:-1])), dims))
    keys = signs.reshape(key.shape).astype(key.dtype)
    rows = np.zeros((int(np.prod(query.shape[:-1])), dims))
    of_query, of_key = view.slots[QUERY], view.slots[KEY]
    group = view.group_size
    for b, h, t, j in zip(*at, chosen, strict=True):
        s = view.sequences[b]
        head = s.heads[h]
        rows[of_query[s.part][s.entry, head, s.rows[t]]] = (
            pointed * signs[of_key[s.part][s.entry, head // group, j]]
        )
    arrays = list(view.arrays)
    arrays[QUERY], arrays[KEY] = rows.reshape(query.shape).astype(query.dtype), keys
    value = np.asarray(view.arrays[VALUE])
    total, read = value.size, np.zeros((len(where), value.shape[-1]))
    digits = max(math.ceil(math.log(max(total, 2), DIGIT)), 1)
    addresses, valid = np.arange(total), np.ones((len(where), value.shape[-1]), bool)
    for n in range(digits):
        arrays[VALUE] = (addresses // DIGIT**n % DIGIT).reshape(value.shape).astype(value.dtype)
        output = probes.output("rows pointed at one key, values that carry their address", tuple(arrays))[at]
        digit = np.round(np.nan_to_num(output, nan=-1e9, posinf=-1e9, neginf=-1e9))
        valid &= (np.abs(output - digit) < 0.02) & (digit >= 0) & (digit < DIGIT)
        read += digit * DIGIT**n
    # a mixture of values may look like a digit: an address must have its own check number too
    checks = np.random.default_rng(1).integers(0, DIGIT, total)
    arrays[VALUE] = checks.reshape(value.shape).astype(value.dtype)
    output = probes.output("rows pointed at one key, values that carry a check number", tuple(arrays))[at]
    valid &= (read >= 0) & (read < total)
    read = np.where(valid, read, 0).astype(int)
    valid &= np.abs(np.nan_to_num(output, nan=-1e9) - checks[read]) < 0.02
    read = np.where(valid, read, -2)
    return _named(view, at, chosen, read, value.shape)


def _named(view, at, chosen, read, shape):
    """Addresses as sequence, head, key and column."""
    places = np.full((int(np.prod(shape[:-1])), 3), -1)
    number = {(s.part, s.entry): n for n, s in enumerate(view.sequences)}
    for part, slots in enumerate(view.slots[VALUE]):
        for entry, rows in enumerate(slots):
            heads, keys = np.indices(rows.shape)
            places[rows] = np.stack([np.full(rows.shape, number.get((part, entry), -1)), heads, keys], -1)
    lost = read < 0
    row, column = np.where(lost, 0, read // shape[-1]), read % shape[-1]
    named = np.where(lost[..., None], -2, places[row])
    return Pointed(
        at,
        chosen,
        named[..., 0],
        named[..., 1],
        named[..., 2],
        np.where(lost, -2, column),
        np.where(lost, -1, row),
    )
