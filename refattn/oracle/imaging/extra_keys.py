"""Explanations of a wrong row by keys that it sees beside its own: a run that lies elsewhere in memory,
right before or behind its sequence, or at the start of another one.
"""

from __future__ import annotations

import numpy as np

from refattn.oracle.imaging.explanations import fitted
from refattn.oracle.imaging.score_candidates import Steps
from refattn.oracle.imaging.source_explanations import memory_of
from refattn.oracle.imaging.view import KEY, VALUE

MOST_BESIDE = 128  # keys right before or behind a sequence
MOST_RUNS = 24
TRIAL, CLEARLY = 12, 0.5
BEFORE, BEHIND, OF_ANOTHER = (
    "stored right before their own",
    "stored right behind their own",
    "of another sequence",
)


def extra_keys(reading, rows):
    """The best run of each row, in fits by what kind of run it is."""
    view, n = reading.view, rows.sequence
    steps = Steps.of(view, rows)
    if (
        view.latent
        or view.pages is not None
        or steps.operands is None
        or np.abs(steps.shift).max(initial=0.0)
    ):
        return
    h, i = np.nonzero(rows.wrong & np.isfinite(rows.output).all(-1))
    trial = np.random.default_rng(6).permutation(len(h))[:TRIAL]
    runs = list(_runs(view, n))[:MOST_RUNS]
    if not runs or not any(
        _best(reading, steps, runs, a, b) for a, b in zip(h[trial], i[trial], strict=True)
    ):
        return
    H, N, _ = rows.shape
    prediction = {kind: rows.right.copy() for kind in (BEFORE, BEHIND, OF_ANOTHER)}
    count, other = np.zeros((H, N)), np.full((H, N), -1.0)
    mass = np.ones((H, N))
    kinds = np.full((H, N), "", object)
    for a, b in zip(h, i, strict=True):
        if reading.left() < 0:
            break
        if found := _best(reading, steps, runs, a, b):
            kind, sequence, length, output, share = found
            prediction[kind][a, b] = output
            kinds[a, b], count[a, b], other[a, b], mass[a, b] = kind, length, sequence, share
    own = np.where(rows.visible, rows.numerator, 0.0) / mass[..., None]
    for kind, output in prediction.items():
        if (kinds == kind).any():
            says = {"count": count, "of sequence": other}
            fit = fitted(
                f"more keys, {kind}",
                rows,
                output,
                lambda: own,
                1,
                len(runs) * MOST_BESIDE,
                says=says,
                cost=0.04,
            )
            fit.holds = fit.holds & (kinds == kind)
            yield fit


def _runs(view, n):
    """Kind, sequence, and first and last address by key/value head, of runs that may be seen besides."""
    at = view.slots[KEY][view.sequences[n].part][view.sequences[n].entry]
    length = view.sequences[n].length
    yield BEFORE, -1, at[:, 0] - 1, -1
    if length:
        yield BEHIND, -1, at[:, length - 1] + 1, 1
    for m, s in sorted(enumerate(view.sequences), key=lambda pair: abs(pair[0] - n)):
        if m != n and s.length:
            yield OF_ANOTHER, m, view.slots[KEY][s.part][s.entry][:, 0], 1


def _best(reading, steps, runs, h, i):
    """Kind, sequence, length, output and sum of the run that explains a row, or None."""
    view, rows = reading.view, steps.rows
    keys, _ = memory_of(view, KEY, rows.sequence)
    values, _ = memory_of(view, VALUE, rows.sequence)
    k = view.heads[h] // view.group_size
    query = steps.operands[0][h, rows.rows[i]] * steps.scale
    base = np.where(rows.visible[h, i], rows.denominator[h, i], 0.0).sum() + rows.sink[h, i]
    best = None
    for kind, sequence, start, step in runs:
        first = int(start[k])
        most = MOST_BESIDE if sequence < 0 else view.sequences[sequence].length
        at = first + step * np.arange(most)
        at = at[(at >= 0) & (at < len(keys))]
        if not len(at):
            continue
        p = np.exp(np.clip(steps.capped_of(keys[at] @ query) - rows.base[h, i], -700, 60))
        total = base + np.cumsum(p)
        flow = np.cumsum(p[:, None] * values[at][:, reading.columns], axis=0)
        got = (base * rows.right[h, i] + flow) / total[:, None]
        off = (((got - rows.output[h, i]) / rows.deviation[h, i]) ** 2).mean(-1)
        c = int(off.argmin())
        if off[c] <= 9.0 and (best is None or off[c] < CLEARLY * best[0]):
            best = off[c], kind, sequence, c + 1, got[c], total[c]
    return best and best[1:]


def in_words(reading, rows, numbers):
    """How many keys, in which sequence, and whose."""
    view = reading.view
    b, _, i = np.nonzero(rows)
    words = []
    for n in np.unique(b):
        here = b == n
        counts, others = numbers["count"][here], np.unique(numbers["of sequence"][here])
        seen = np.minimum(view.position[n, 0, i[here], 0] + 1, view.num_keys)
        if len(np.unique(counts)) == 1:
            many = f"{int(counts[0])} keys"
        elif (counts == seen).mean() > 0.8:
            many = "keys up to the row's own position"
        else:
            many = f"{int(counts.min())} to {int(counts.max())} keys"
        of = f" of sequence {', '.join(str(int(x)) for x in others[:4])}" if others.min() >= 0 else ""
        words.append(f"sequence {n} sees {many}{of}")
    return "; ".join(words[:8]) + ("; ...." if len(words) > 8 else ".")
