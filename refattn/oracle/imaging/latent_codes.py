"""MLA: the weights of keys as some components of the weighted latents see them.

Those components are one-hot, each for one key, and others hold what scores are made of: the keys of a head;
where rows are few, the scores of all of them, so that more heads are read at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from refattn.oracle.imaging.view import KV_LATENT, Q_NOPE, W_UK, W_UV


@dataclass(frozen=True, eq=False)
class LatentCode:
    """How the weights of one sequence are read.

    Attributes
    ----------
    sequence : Sequence
    components : ndarray of int
        Those that may be one-hot.
    columns : ndarray of int
        Of the output, that weights are read from.
    groups : list of ndarray
        Heads (numbers in the view) that are read at once.
    of_scores : bool
        Whether latents hold scores, in two parts each, in place of keys.
    """

    arrays: tuple
    heads: np.ndarray
    sequence: object
    components: np.ndarray
    columns: np.ndarray
    groups: list
    of_scores: bool

    @property
    def calls(self):
        """How many it takes; infinitely many where it cannot work."""
        if not self.free:
            return np.inf
        return len(self.groups) * -(-self.sequence.num_keys // self.free)

    @property
    def free(self):
        """Keys that one call tells apart."""
        return min(len(self.places[1]), len(self.columns))

    @cached_property
    def width(self):
        """Components that a head needs."""
        return 2 * len(self.sequence.rows) if self.of_scores else self.arrays[W_UK].shape[1]

    @cached_property
    def places(self):
        """Components that hold keys or scores, as few as may be of `components`; those that are one-hot."""
        rank = self.arrays[W_UK].shape[-1]
        order = np.argsort(np.isin(np.arange(rank), self.components), kind="stable")
        carriers = order[: max(map(len, self.groups)) * self.width]
        return carriers, np.setdiff1d(self.components, carriers)

    def probes(self):
        """Heads of a group, keys, and the arrays of the call that shows what weights the heads give them."""
        latents, w_uv = self.arrays[KV_LATENT], self.arrays[W_UV]
        carriers, one_hot = self.places
        for group in self.groups:
            query, up, held = self._held(group)
            for first in range(0, self.sequence.num_keys, self.free):
                keys = np.arange(first, min(first + self.free, self.sequence.num_keys))
                code, down = np.zeros(latents.shape), np.zeros(w_uv.shape)
                code[..., carriers[: held.shape[-1]]] = held  # also of other sequences, which may be read
                own = code.reshape(-1, *code.shape[-2:])[self.sequence.entry]
                own[keys, one_hot[: len(keys)]] = 1.0
                down[:, self.columns[: len(keys)], one_hot[: len(keys)]] = 1.0
                yield group, keys, {Q_NOPE: query, KV_LATENT: code, W_UK: up, W_UV: down}

    def _held(self, group):
        """Queries, up-projections of the keys, and what each key holds for the heads of a group."""
        q_nope, latents, w_uk = (self.arrays[of] for of in (Q_NOPE, KV_LATENT, W_UK))
        s, carriers = self.sequence, self.places[0]
        of_sequence = lambda array, axes: array.reshape(-1, *array.shape[array.ndim - axes :])[s.entry]
        latent = np.nan_to_num(latents.astype(np.float64))
        query, up = (q_nope if not self.of_scores else np.zeros(q_nope.shape)), np.zeros(w_uk.shape)
        held = []
        for n, h in enumerate(group):
            head = self.heads[h]
            own = carriers[n * self.width : (n + 1) * self.width]
            up[head, np.arange(len(own)), own] = 1.0
            keys = latent @ w_uk[head].astype(np.float64).T
            if self.of_scores:
                rows = of_sequence(q_nope, 3)[head, s.rows].astype(np.float64)
                scores = keys @ rows.T
                coarse = scores.astype(q_nope.dtype).astype(np.float64)
                keys = np.concatenate([coarse, scores - coarse], -1)
                for part in range(2):
                    at = part * len(s.rows) + np.arange(len(s.rows))
                    of_sequence(query, 3)[head, s.rows, at] = 1.0
            held.append(keys)
        return query, up, np.concatenate(held, -1)


def shortest_code(view, sequence, components, columns, by_scores=True) -> LatentCode:
    """The code that takes the fewest calls; `by_scores`: it may hold scores in place of keys."""
    arrays, heads = tuple(map(np.asarray, view.arrays)), np.arange(len(view.heads))
    # scores need components of q_nope for each row
    fits = by_scores and 2 * len(sequence.rows) <= arrays[W_UK].shape[1]
    codes = [
        LatentCode(
            arrays, view.heads, sequence, components, columns, np.array_split(heads, count), of_scores
        )
        for of_scores in (False, True)[: 1 + fits]
        for count in range(len(heads), 0, -1)
    ]
    return min(codes, key=lambda code: code.calls)
