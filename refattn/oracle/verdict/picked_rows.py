"""Which rows of each head a check looks at."""

from __future__ import annotations

import math

import numpy as np

from refattn.calls.registry import ATTENTION, form_called

AUTO_SCORES = 2**26  # rows of all heads x keys; `rows="auto"` looks at every row of problems up to this
AUTO_ROWS = 64  # rows of each head that `rows="auto"` looks at in larger ones


def row_picker(rows, seed, function, arrays, options):
    """A function of the number of query rows of a dense part that gives the numbers of those to look at,
    increasing; None where that is every row.

    `rows` and `seed` are those of `check`; of the call, "auto" reads the shapes. Parts of the same length
    get the same rows.
    """
    if rows is None or callable(rows):
        return rows
    if isinstance(rows, str) and rows == "auto":
        if score_count(function, arrays, options)[0] <= AUTO_SCORES:
            return None
        rows = AUTO_ROWS
    if isinstance(rows, bool) or not isinstance(rows, (int, np.integer)):
        raise TypeError(f"rows must be an integer, 'auto', a function or None; got rows={rows!r}.")
    if rows < 1:
        raise ValueError(f"rows must be at least 1; got rows={rows}.")
    if seed is None or isinstance(seed, np.random.Generator):
        seed = np.random.default_rng(seed).integers(2**63)  # drawn once: all parts get the same rows
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise TypeError(f"seed must be an integer, a numpy.random.Generator or None; got seed={seed!r}.")
    if seed < 0:
        raise ValueError(f"seed must not be negative; got seed={seed}.")
    return lambda q_len: picked_rows(q_len, int(rows), seed)


def picked_rows(q_len, count, seed):
    """`count` of `q_len` rows: the last, the first, and random ones between them."""
    if q_len <= count:
        return np.arange(q_len)
    rng = np.random.default_rng(seed)
    inner = rng.choice(np.arange(1, q_len - 1), size=max(count - 2, 0), replace=False)
    ends = [0, q_len - 1][-count:]
    return np.unique(np.concatenate([ends, inner]).astype(np.int64))


def picked_rows_of(call, pick):
    """Which rows of a call are looked at: a boolean of the shape of the lse; `pick` as of `row_picker`."""
    wanted = np.zeros(call.lse_shape, dtype=bool)
    for place in call.places:
        part = wanted[place]
        part[..., pick(part.shape[-1])] = True
    return wanted


def score_count(function, arrays, options):
    """Scores of a call, hidden ones included, and of how many dense parts it consists."""
    checked = form_called(function, ATTENTION).check(*arrays, **options)
    outlines = (checked.outline(n) for n in range(checked.num_parts))
    return sum(math.prod(part.query.shape[:-1]) * part.kv_len for part in outlines), checked.num_parts
