"""Where a kernel reads: every row is pointed at one key, and values carry their own address.

Queries become 64 times a key of +-1, or more, so that a row gives all its weight to the one key it is
pointed at; the output is then the value that the kernel reads for that key, whatever its address. Addresses
are written in digits that every format holds exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np

from refattn.oracle.imaging.view import KEY, QUERY, VALUE

SMALLEST, LARGEST = 64.0, 4096.0  # times a key of +-1
DIGIT = 256  # counts that bfloat16 holds exactly
LEAST_GAP = 60.0  # of scores, between the key that a row is pointed at and every other one
DEVIATIONS = 4.5  # by which the product of two random keys of +-1 may exceed 0
DOUBTFUL = 2 / 3  # of the rows are pointed at a key whose weight is wrong
NEAR = 0.02  # a digit
NOT_A_DIGIT = -1e9


@dataclass(eq=False)
class Pointed:
    """What rows read that were pointed at one key each; of R rows.

    Attributes
    ----------
    b, h, t : ndarray, (R,)
        Places of the rows.
    key : ndarray, (R,)
        The key that each was pointed at.
    sequence, head, read, column : ndarray, (R, E)
        Number of the sequence, key/value head, key and column of the value that was read; -1 where it was
        none of a sequence, -2 where the output was no address.
    place : ndarray, (R, E)
        Number of the stored row of values that was read; -1 where the output was no address.
    """

    b: np.ndarray
    h: np.ndarray
    t: np.ndarray
    key: np.ndarray
    sequence: np.ndarray
    head: np.ndarray
    read: np.ndarray
    column: np.ndarray
    place: np.ndarray

    @property
    def at(self):
        return self.b, self.h, self.t


def point(measured, doubtful, rounds=1) -> Pointed | None:
    """Point all rows that see a key at one of those they see, so many times; two of three at one that is
    `doubtful`, (B, H, T, S), where they see such. None where scores cannot be made to differ enough, where
    the kernel cannot be called, or for want of time.
    """
    view, probes = measured.view, measured.probes
    if probes is None or view.latent or not view.visible.any():
        return None
    size = _size(view)
    if size is None:
        return None
    calls = _digits(view) + 1
    if not probes.have_time("rows pointed at one key", rounds * calls):
        return None
    found = [_point(view, probes, size, doubtful, seed) for seed in range(rounds)]
    names = [field.name for field in fields(Pointed)]
    return Pointed(*(np.concatenate([getattr(one, name) for one in found]) for name in names))


def _size(view):
    """How many times a key of +-1 a query must be, or None where that is too much."""
    part, dims = view.outline_of(0), np.shape(view.arrays[QUERY])[-1]
    if part.scale <= 0 or (part.softcap is not None and part.softcap < LEAST_GAP):
        return None
    # between the key that a row is pointed at and the nearest of the others
    apart = part.scale * max(dims - DEVIATIONS * math.sqrt(dims), 1.0)
    size = SMALLEST
    while size * apart < LEAST_GAP and size < LARGEST:
        size *= 2
    return None if size * apart < LEAST_GAP else size


def _digits(view):
    """Digits of the largest address."""
    return max(math.ceil(math.log(max(np.size(view.arrays[VALUE]), 2), DIGIT)), 1)


def _point(view, probes, size, doubtful, seed) -> Pointed:
    rng = np.random.default_rng(seed)
    at = np.nonzero(view.visible.any(-1))
    chosen = _chosen(view.visible[at], doubtful[at], rng)
    arrays = _pointing(view, at, chosen, size, rng)
    like = np.asarray(view.arrays[VALUE])
    total = like.size

    def read(numbers, what):
        arrays[VALUE] = numbers.reshape(like.shape).astype(like.dtype)
        output = probes.output(f"rows pointed at one key, values that carry {what}", tuple(arrays))[at]
        return np.nan_to_num(output, nan=NOT_A_DIGIT, posinf=NOT_A_DIGIT, neginf=NOT_A_DIGIT)

    address, valid = 0.0, True
    for n in range(_digits(view)):
        got = read(np.arange(total) // DIGIT**n % DIGIT, "their address")
        digit = np.round(got)
        valid = valid & (np.abs(got - digit) < NEAR) & (digit >= 0) & (digit < DIGIT)
        address = address + digit * DIGIT**n
    # a mixture of values may look like a digit: an address must have its own check number too
    checks = np.random.default_rng(1).integers(0, DIGIT, total)
    got = read(checks, "a check number")
    valid = valid & (address >= 0) & (address < total)
    address = np.where(valid, address, 0).astype(int)
    valid &= np.abs(got - checks[address]) < NEAR
    return _named(view, at, chosen, np.where(valid, address, -2))


def _chosen(ways, doubtful, rng):
    """For each row one of the keys that it may be pointed at; both (R, S)."""
    prefer = ways & doubtful
    use = prefer.any(-1) & (rng.random(len(ways)) < DOUBTFUL)
    ways = np.where(use[:, None], prefer, ways)
    picks = rng.integers(0, 2**31, len(ways))
    return np.array([np.flatnonzero(way)[pick % way.sum()] for way, pick in zip(ways, picks, strict=True)])


def _pointing(view, at, chosen, size, rng):
    """The arrays of the call, with keys of +-1 and rows of `size` times the key they are pointed at."""
    query, key = (np.asarray(view.arrays[n]) for n in (QUERY, KEY))
    signs = rng.choice([-1.0, 1.0], size=(math.prod(key.shape[:-1]), key.shape[-1]))
    rows = np.zeros((math.prod(query.shape[:-1]), query.shape[-1]))
    of_query, of_key = view.slots[QUERY], view.slots[KEY]
    for b, h, t, j in zip(*at, chosen, strict=True):
        s = view.sequences[b]
        head = s.heads[h]
        stored = of_key[s.part][s.entry, head // view.group_size, j]
        rows[of_query[s.part][s.entry, head, s.rows[t]]] = size * signs[stored]
    arrays = list(view.arrays)
    arrays[QUERY] = rows.reshape(query.shape).astype(query.dtype)
    arrays[KEY] = signs.reshape(key.shape).astype(key.dtype)
    return arrays


def _named(view, at, chosen, address):
    """Addresses (R, E) as sequence, head, key and column."""
    *outer, width = np.shape(view.arrays[VALUE])
    places = np.full((math.prod(outer), 3), -1)
    number = {(s.part, s.entry): n for n, s in enumerate(view.sequences)}
    for part, slots in enumerate(view.slots[VALUE]):
        for entry, rows in enumerate(slots):
            heads, keys = np.indices(rows.shape)
            places[rows] = np.stack([np.full(rows.shape, number.get((part, entry), -1)), heads, keys], -1)
    lost = address < 0
    row = np.where(lost, 0, address // width)
    sequence, head, read = np.moveaxis(np.where(lost[..., None], -2, places[row]), -1, 0)
    column, place = np.where(lost, -2, address % width), np.where(lost, -1, row)
    return Pointed(*at, chosen, sequence, head, read, column, place)
