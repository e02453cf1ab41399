"""Scores of MLA of which one part, latent or rope, is left out, doubled or read elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np

from refattn.oracle.imaging.elsewhere import other_query_heads, other_sequences
from refattn.oracle.imaging.factors_in_words import step_away
from refattn.oracle.imaging.latent_readings import Arrays
from refattn.oracle.imaging.planes import STEPS, TILES, other_key_places
from refattn.oracle.imaging.wrong_rows import Model

LATENT, ROPE = "the latent part of the scores (q_nope w_uk kv_latent)", "the rope part of the scores"


def parts_from_elsewhere(rows) -> Iterator[Model]:
    """Scores whose one part is another one, in the pairs that are wrong or in all."""
    if not rows.view.latent:
        return
    parts = Parts(rows)
    for name, own, other in ((ROPE, parts.rope, parts.nope), (LATENT, parts.nope, parts.rope)):
        yield Model("components", f"{name} is left out", rows.of_products(other))
        yield Model("components", f"{name} counts twice", rows.of_products(2 * own + other))
        yield Model("components", f"{name} is not scaled", rows.of_products(own / rows.scale + other))
        yield Model("components", f"{name} is scaled twice", rows.of_products(own * rows.scale + other))
        for words, key in other_key_places(rows.view.num_keys):
            at = np.clip(key(np.arange(rows.view.num_keys)), 0, rows.view.num_keys - 1)
            what = "rope parts" if name is ROPE else "latents"
            words = f"the keys' {what} are those of {words}, while the other part of the key is right"
            yield Model("keys", words, rows.of_products(own[:, at] + other), 1)
    yield from _other_sequences(rows, parts)
    yield from _other_queries(rows, parts)


class Parts:
    """Scaled products (n, S) of the two parts of query and key, also of other rows, heads and sequences."""

    def __init__(self, rows):
        self.rows, self.arrays = rows, Arrays.of(rows.view)
        self.entry = np.array([s.entry for s in rows.view.sequences])
        self.stored = np.zeros((len(rows.view.sequences), rows.view.num_rows), int)  # numbers of the rows
        for target, s in zip(self.stored, rows.view.sequences, strict=True):
            target[: len(s.rows)] = s.rows

    @cached_property
    def nope(self):
        return self.of_nope(self.rows.at)

    @cached_property
    def rope(self):
        return self.of_rope(self.rows.at)

    def of_nope(self, place, keys_of=None):
        """Of the queries at a place (b, h, t) of the view, with the keys of sequences `keys_of` (n,)."""
        w_uk = self.arrays.w_uk[self.rows.head]
        query = np.einsum("nd,ndc->nc", self._query(self.arrays.q_nope, place), w_uk)
        return self._products(query, self.arrays.key_latent, keys_of)

    def of_rope(self, place, keys_of=None):
        return self._products(self._query(self.arrays.q_rope, place), self.arrays.k_rope, keys_of)

    def _query(self, array, place):
        b, h, t = place
        return array[self.entry[b], self.rows.view.heads[h], self.stored[b, t]]

    def _products(self, query, key, keys_of):
        products = np.zeros((len(query), key.shape[1]))
        keys_of = self.rows.b if keys_of is None else keys_of
        for b in np.unique(keys_of):
            products[keys_of == b] = query[keys_of == b] @ key[self.entry[b]].T
        return self.rows.scale * products


def _other_sequences(rows, parts):
    for words, other in other_sequences(rows.view, rows.b):
        scores = rows.of_products(parts.of_rope(rows.at, other) + parts.nope)
        yield Model("keys", f"the keys' rope parts are those of {words}", scores)
        scores = rows.of_products(parts.of_nope(rows.at, other) + parts.rope)
        yield Model("keys", f"the keys' latents are those of {words} (not their values)", scores)


def _other_queries(rows, parts):
    for words, place in _places(rows):
        scores = rows.of_products(parts.of_rope(place) + parts.nope)
        yield Model("query", f"q_rope is that of {words}, q_nope is right", scores)
        scores = rows.of_products(parts.of_nope(place) + parts.rope)
        yield Model("query", f"q_nope is that of {words}, q_rope is right", scores)


def _places(rows):
    """Words and places (B, H, T) of other queries."""
    view, b, h, t = rows.view, rows.b, rows.h, rows.t
    last = view.num_rows - 1
    if len(view.heads) == view.num_heads:
        for words, head in other_query_heads(view, rows.head):
            yield words, (b, head, t)
    for words, other in other_sequences(view, b):
        yield words, (other, h, t)
    if not last:
        return
    yield "the first row for every row", (b, h, 0 * t)
    yield "the last row for every row", (b, h, 0 * t + last)
    for step in STEPS:
        if abs(step) <= last:
            yield f"the row {step_away(step)}", (b, h, np.clip(t + step, 0, last))
    for size in (2, 4, *TILES):
        if size <= last:
            yield f"the row's place in the first tile of {size} rows", (b, h, t % size)
