"""Which sequences, heads and rows of a call are looked at."""

from __future__ import annotations

import math

import numpy as np

from refattn.oracle.mistakes.wrong_kernel import part_outlines
from refattn.oracle.simulated.staged import Sample

WHOLE_WORK = 2**24  # multiplications up to which nothing is left out of the sample
HEAVY = 8  # times the work of a sample that a single row takes, from which on it has one head
MOST_PARTS = 8  # sequences of a packed or paged problem that are looked at when it is large


def spread(count: int, wanted: int) -> np.ndarray:
    """At most `wanted` indices below count: the ends, from six on their neighbours, and evenly between."""
    if count <= wanted:
        return np.arange(count)
    ends = [0, 1, count - 2, count - 1] if wanted >= 6 else [0, count - 1]
    between = np.linspace(0, count - 1, wanted - len(ends) + 2).astype(int)[1:-1]
    return np.unique(np.concatenate([ends, between]))


def picked(count: int, wanted: int, first: int = 0) -> np.ndarray:
    """At most `wanted` indices below count without a pattern: `first`, its neighbour, and others at
    random but always the same.
    """
    if count <= wanted:
        return np.arange(count)
    near = [first, (first + 1) % count]
    others = np.random.default_rng(count).permutation([i for i in range(count) if i not in near])
    return np.sort(np.array([*near, *others][:wanted]))


def choose_samples(checked, work: int = WHOLE_WORK, worst: tuple[int, ...] = (-1, 0)) -> list[Sample]:
    """One sample a dense part, everything if that takes at most `work` multiplications, else little more
    than that.

    Of many parts most are left out. `worst` is the sequence and head to have in any case, and the row
    where one is known to be wrong. By default it is the last sequence: where only one is looked at,
    mistakes that use the first for all of them show.
    """
    parts = part_outlines(checked)
    sizes = [max(part.kv_len * (part.head_dim + part.v_head_dim), 1) for part in parts]
    if sum(math.prod(part.query.shape[:3]) * size for part, size in zip(parts, sizes, strict=True)) <= work:
        return [Sample.everything(part) for part in parts]
    samples, own = [Sample.nothing() for _ in parts], len(parts) == 1
    wanted = 1 if own else max(2, min(MOST_PARTS, work // max(sum(sizes) // len(sizes) * 3, 1)))
    for n in picked(len(parts), wanted, worst[0] % len(parts)):
        samples[n] = _sample_of(
            parts[n], work // min(wanted, len(parts)), worst if own else (-1, *worst[1:])
        )
    return samples


def with_sequence(checked, samples, number: int, work: int = WHOLE_WORK) -> list[Sample]:
    """The samples with one more sequence, or part where there are several."""
    if len(samples) == 1:
        one = samples[0]
        return [Sample(np.union1d(one.sequences, [number]), one.heads, one.rows)]
    own = _sample_of(part_outlines(checked)[number], work // MOST_PARTS, (-1, 0))
    return [own if n == number and one.left_out else one for n, one in enumerate(samples)]


def _sample_of(part, work, worst) -> Sample:
    sequences, heads, rows = part.query.shape[:3]
    per_row = max(part.kv_len * (part.head_dim + part.v_head_dim), 1)
    affordable = work // per_row
    if sequences * heads * rows <= affordable:
        return Sample.everything(part)
    # reading the keys of one head costs about as much as eight rows of it
    least = 1 if per_row > work * HEAVY else 3  # one head of very long sequences, that of the largest error
    streams = max(work // 8 // per_row, least)
    heads_taken = min(heads, max(least, min(6, streams)))
    sequences_taken = min(sequences, max(1, min(2, streams // heads_taken)))
    rows_taken = min(rows, max(affordable // (sequences_taken * heads_taken), 4))
    chosen = spread(rows, rows_taken)
    if len(worst) > 2:  # that row, its neighbours, and the rows around a possible edge of a tile before it
        chosen = np.union1d(
            chosen,
            np.clip(
                [worst[2] - 1, worst[2], worst[2] + 1, worst[2] // 64 * 64 - 1, worst[2] // 64 * 64],
                0,
                rows - 1,
            ),
        )
    return Sample(
        picked(sequences, sequences_taken, worst[0] % sequences),
        picked(heads, heads_taken, worst[1]),
        chosen,
    )


def first_look(checked) -> list[Sample] | None:
    """Two rows of many heads, to see where the error is largest; None where there is no row."""
    parts = part_outlines(checked)
    if not any(part.q_len for part in parts):
        return None
    size = max(part.kv_len * (part.head_dim + part.v_head_dim) for part in parts)
    streams = max(WHOLE_WORK // max(size, 1), 4)  # heads of which the keys are read
    sequences, heads, rows = parts[0].query.shape[:3]
    if len(parts) == 1:
        taken = picked(sequences, min(16, max(streams // 16, 2)))
        of_each = min(16, max(streams // len(taken), 2))
        return [Sample(taken, picked(heads, of_each), picked(rows, 2, rows // 2))]
    samples = [Sample.nothing() for _ in parts]
    for n in picked(len(parts), min(16, max(streams // 2, 2))):
        rows = parts[n].q_len
        of_each = min(16, max(streams // 16, 2))
        samples[n] = Sample(np.arange(1), picked(heads, of_each), picked(rows, 2, rows // 2))
    return samples
