"""Large problems made small: fewer sequences and heads, and of the rows whole tiles.

The fault must still show.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from refattn.calls.options import OPTIONS, PER_ENTRY, PER_HEAD, PER_SCORE
from refattn.oracle.bounds.results import OUTPUT
from refattn.oracle.mistakes.wrong_kernel import checked_call, part_outlines
from refattn.oracle.simulated.staged import Sample

MOST_PAIRS = 3 * 2**20  # of rows and keys that are looked at where all sequences and heads are
PAIRS_OF_CUT = 2**22  # of a smaller call
MOST_NUMBERS = 2**24  # of keys and values that are looked at
ROW_TILE = 128
MOST_SEQUENCES = 4  # of a smaller call
FORMS = ("dense", "packed", "paged", "latent")  # that are cut
# the axes of options, in the words of the forms; leading ones may be missing
OPTION_AXES = {PER_ENTRY: "batch", PER_HEAD: "batch head", PER_SCORE: "batch head row key"}
PACKED_AXES = {PER_SCORE: "head packed_row packed_key"}


@dataclass(frozen=True, eq=False)
class Cut:
    """A smaller call: some sequences and heads of a call, with all their rows and keys.

    `picked` holds the numbers of what is left of each axis, by the words of the form; `worst` is the place
    of the largest error in this call.
    """

    arrays: tuple
    options: dict
    form: object
    picked: dict = field(repr=False)
    worst: tuple = ()

    @cached_property
    def checked(self):
        """This call, checked."""
        return checked_call(*self.arrays, **self.options)

    def of(self, given):
        """The results of the whole call as those of this one."""
        axes = self.form.results
        return {
            result: _taken(array, axes[result.name].split(), self.picked) for result, array in given.items()
        }

    @property
    def words(self) -> str:
        """What is looked at, as a sentence."""
        names = {"batch": "sequence", "head": "query head"}
        said = [
            f"{name}{'s' * (len(self.picked[axis]) > 1)} {_listed(self.picked[axis])}"
            for axis, name in names.items()
            if axis in self.picked
        ]
        return f"Looked at: {' and '.join(said)}, which are numbered from 0 here."


def _listed(numbers):
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
    return ", ".join(f"{run[0]}" if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)


def is_large(checked):
    """Whether there are more pairs of a row and a key, or more keys and values, than are looked at."""
    parts = part_outlines(checked)
    return sum(map(_pairs, parts)) > MOST_PAIRS or sum(map(_numbers, parts)) > MOST_NUMBERS


def _pairs(part, rows=None):
    return len(part.query) * part.num_heads * (part.q_len if rows is None else rows) * part.kv_len


def _numbers(part):
    return len(part.query) * part.num_kv_heads * _numbers_of_group(part)


def _numbers_of_group(part):
    """Numbers of the keys and values of a key head, or of the values repeated for its query heads."""
    return part.kv_len * max(part.head_dim + part.v_head_dim, part.group_size * part.v_head_dim)


def cut_call(arrays, options, worst) -> Cut | None:
    """A call of fewer sequences and heads; None where there is nothing to cut or no way to do it.

    `worst`: (sequence, head) to keep; of a packed or paged call the sequence is the part. A call with more
    than one batch axis is not cut.
    """
    checked = checked_call(*arrays, **options)
    parts = part_outlines(checked)
    if checked.form.name not in FORMS or len(checked.output_shape) > 4 or not parts:
        return None
    group_size, count = parts[0].group_size, _sequence_count(parts)
    worst = worst[0] % count, *worst[1:]
    sequences, groups = _kept(parts, worst)
    picked = {}
    if len(sequences) < count:
        picked["batch"] = sequences
    if len(groups) < parts[0].num_kv_heads:
        picked |= {
            "kv_head": groups,
            "head": (groups[:, None] * group_size + np.arange(group_size)).ravel(),
        }
    if not picked:
        return None
    structure = _packed(checked, sequences, picked) if checked.form.name == "packed" else {}
    taken = tuple(
        np.ascontiguousarray(_taken(array, axes.split(), picked))
        for array, axes in zip(arrays, checked.form.arrays.values(), strict=True)
    )
    own = {name: _cut_option(checked.form, name, value, picked) for name, value in options.items()}
    places = zip(("batch", "head", ""), worst, strict=False)
    here = tuple(int(np.searchsorted(picked[axis], n)) if axis in picked else n for axis, n in places)
    return Cut(taken, own | structure, checked.form, picked, here)


def _sequence_count(parts):
    return len(parts) if len(parts) > 1 else len(parts[0].query)


def _kept(parts, worst):
    """Sequences and groups of heads of a smaller call: those of the largest error, their neighbours, the
    first and the last, as many as it may have.
    """
    part = max(parts, key=lambda part: part.kv_len)
    count, groups = _sequence_count(parts), part.num_kv_heads
    pairs = part.group_size * min(part.q_len, 2 * ROW_TILE) * part.kv_len
    numbers = _numbers_of_group(part)

    def fits(n, k):
        return n * k * pairs <= PAIRS_OF_CUT and n * k * numbers <= MOST_NUMBERS

    n = max((n for n in range(1, min(count, MOST_SEQUENCES) + 1) if fits(n, min(groups, 2))), default=1)
    k = max((k for k in range(1, groups + 1) if fits(n, k)), default=1)
    head = worst[1] if len(worst) > 1 else 0
    kept = _around(worst[0], count)[:n], _around(head // part.group_size, groups)[:k]
    return tuple(map(np.sort, kept))


def _around(first, count):
    """All numbers below count, those that tell most beside the first one first."""
    order = [first, (first + 1) % count, 0, count - 1, *range(count)]
    return np.array(list(dict.fromkeys(order)))


def _packed(checked, sequences, picked):
    """The boundaries of some packed sequences; their rows and keys come into `picked`."""
    structure = {}
    for axis, name in (("packed_row", "cu_q"), ("packed_key", "cu_kv")):
        ends = getattr(checked, name)
        picked[axis] = np.concatenate([np.arange(ends[n], ends[n + 1]) for n in sequences])
        structure[name] = np.concatenate([[0], np.cumsum(np.diff(ends)[sequences])])
    return structure


def _taken(array, axes, picked):
    """What is picked of the named axes of an array; leading axes may be missing."""
    array = np.asarray(array)
    for axis, name in zip(range(-1, -array.ndim - 1, -1), reversed(axes), strict=False):
        if name in picked and array.shape[axis] > 1:
            array = np.take(array, picked[name], axis=axis)
    return array


def _cut_option(form, name, value, picked):
    """An option or a part of the layout as the caller gave it, for what is picked."""
    if value is None or np.ndim(value) == 0:
        return value
    if name in form.structure:
        return _taken(value, form.structure[name].split(), picked)
    belongs_to = next((option.belongs_to for option in OPTIONS if option.name == name), "")
    if belongs_to not in OPTION_AXES:
        return value
    axes = (PACKED_AXES if form.name == "packed" else {}).get(belongs_to, OPTION_AXES[belongs_to])
    return _taken(value, axes.split(), picked)


def row_samples(checked, worst=(0, 0)):
    """Samples of rows in whole tiles, so many that MOST_PAIRS pairs are looked at: of each sequence the
    first and the last tile, that of the row `worst[2]`, and tiles between. Where two tiles of all heads are
    more than a smaller call may have, some heads.
    """
    parts = part_outlines(checked)
    share = MOST_PAIRS / max(sum(map(_pairs, parts)), 1)
    least = sum(_pairs(part, min(part.q_len, 2 * ROW_TILE)) for part in parts)
    count = max((part.num_heads for part in parts), default=1)
    heads = _around(worst[1] % count, count)[: max(int(count * min(PAIRS_OF_CUT / max(least, 1), 1.0)), 1)]
    samples = []
    for part in parts:
        rows, whole = part.q_len, Sample.everything(part)
        tiles = -(-rows // ROW_TILE)
        wanted = max(int(tiles * share), 2)
        chosen = whole.rows
        if share < 1 and wanted < tiles:
            picked = np.linspace(0, tiles - 1, wanted).astype(int)
            picked = np.union1d(picked, np.minimum(np.array(worst[2:]) // ROW_TILE, tiles - 1))
            chosen = np.concatenate(
                [np.arange(t * ROW_TILE, min((t + 1) * ROW_TILE, rows)) for t in picked.astype(int)]
            )
        samples.append(Sample(whole.sequences, np.sort(heads), chosen))
    return samples


def still_wrong(view, given, spec):
    """Whether the output of a call is off by more than rounding in the rows that are looked at."""
    value = np.nan_to_num(view.operand("value"))
    output = view.cut(OUTPUT, given[OUTPUT])
    right, size = view.applied(view.weights, value), view.applied(view.weights, np.abs(value))
    allowed = size * (4 * spec.weight.unit_roundoff + 4 * spec.output.unit_roundoff + 1e-4)
    with np.errstate(all="ignore"):
        return bool((~(np.abs(output - right) <= allowed + 1e-30) & view.row_exists[..., None]).any())
