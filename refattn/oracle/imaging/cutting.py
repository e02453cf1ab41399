"""Large problems made small: fewer sequences and heads, and of the rows whole tiles.

The fault must still show.
"""

from __future__ import annotations

import numpy as np

from refattn.calls.options import OPTIONS, PER_ENTRY, PER_HEAD, PER_SCORE
from refattn.oracle.bounds.results import OUTPUT
from refattn.oracle.mistakes.wrong_kernel import part_outlines
from refattn.oracle.simulated.staged import Sample

MOST_PAIRS = 3 * 2**20  # of rows and keys that are looked at
ROW_TILE = 128
GROUPS, SEQUENCES = 2, 2  # that are kept, the one with the largest error among them


def is_large(checked):
    """Whether there are more pairs of a row and a key than are looked at."""
    return sum(_pairs(part) for part in part_outlines(checked)) > MOST_PAIRS


def _pairs(part):
    return int(np.prod(part.query.shape[:3], dtype=np.int64)) * part.kv_len


def cut_call(arrays, options, worst):
    """A call of fewer sequences and heads, as (arrays, options); None where there is nothing to cut or no
    way to do it.

    `worst`: (sequence, head) to keep. Only dense calls with at most one batch axis are cut.
    """
    query, key = np.asarray(arrays[0]), np.asarray(arrays[1])
    if query.ndim not in (3, 4):
        return None
    heads, groups = query.shape[-3], key.shape[-3]
    group_size = heads // groups
    sequence, head = (*worst, 0)[:2] if query.ndim == 4 else (0, worst[1] if len(worst) > 1 else 0)
    kept = np.unique([head // group_size, (head // group_size + 1) % groups])[:GROUPS]
    of_query = (kept[:, None] * group_size + np.arange(group_size)).ravel()
    batch = np.unique([sequence, (sequence + 1) % len(query)])[:SEQUENCES] if query.ndim == 4 else None
    if len(of_query) == heads and (batch is None or len(batch) == len(query)):
        return None

    def taken(array, head_axis, picked):
        array = np.asarray(array)
        if array.shape[head_axis] > 1:
            array = np.take(array, picked, axis=head_axis)
        return array

    cut = []
    for n, array in enumerate(arrays):
        array = taken(array, -3, of_query if n == 0 else kept)
        cut.append(np.ascontiguousarray(array if batch is None else array[batch]))
    return tuple(cut), {name: _cut_option(name, value, of_query, batch) for name, value in options.items()}


def _cut_option(name, value, heads, batch):
    """An option as the caller gave it, for some heads and sequences."""
    belongs_to = next(option.belongs_to for option in OPTIONS if option.name == name)
    if belongs_to not in (PER_ENTRY, PER_HEAD, PER_SCORE) or value is None:
        return value
    array = np.asarray(value)
    if array.ndim == 0:
        return value
    if belongs_to == PER_ENTRY:
        return array if batch is None or len(array) == 1 else array[batch]
    head_axis = -1 if belongs_to == PER_HEAD else -3
    if array.ndim >= -head_axis and array.shape[head_axis] > 1:
        array = np.take(array, heads, axis=head_axis)
    if batch is not None and array.ndim == 1 - head_axis and len(array) > 1:
        array = array[batch]
    return array


def row_samples(checked):
    """Samples of rows in whole tiles, so many that MOST_PAIRS pairs are looked at: of each sequence the
    first and the last tile, and tiles between.
    """
    parts = part_outlines(checked)
    share = MOST_PAIRS / max(sum(_pairs(part) for part in parts), 1)
    samples = []
    for part in parts:
        rows = part.q_len
        tiles = -(-rows // ROW_TILE)
        wanted = max(int(tiles * share), 2)
        if share >= 1 or wanted >= tiles:
            samples.append(Sample.everything(part))
            continue
        picked = np.unique(np.linspace(0, tiles - 1, wanted).astype(int))
        chosen = np.concatenate([np.arange(t * ROW_TILE, min((t + 1) * ROW_TILE, rows)) for t in picked])
        whole = Sample.everything(part)
        samples.append(Sample(whole.sequences, whole.heads, chosen))
    return samples


def still_wrong(view, given, spec):
    """Whether the output of a call is off by more than rounding in the rows that are looked at."""
    value = np.nan_to_num(view.operand("value"))
    output = view.cut(OUTPUT, given[OUTPUT])
    right, size = view.applied(view.weights, value), view.applied(view.weights, np.abs(value))
    allowed = size * (4 * spec.weight.unit_roundoff + 4 * spec.output.unit_roundoff + 1e-4)
    with np.errstate(all="ignore"):
        return bool((~(np.abs(output - right) <= allowed + 1e-30) & view.row_exists[..., None]).any())
