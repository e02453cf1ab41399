"""Where an unexplained error lives: which sequences, heads, rows and dims, and whether it starts at a
tile boundary.
"""

from __future__ import annotations

import numpy as np

from refattn.oracle.bounds.results import OUTPUT
from refattn.oracle.diagnosis.evidence import Evidence, comparable
from refattn.oracle.diagnosis.fit_bound import Use, bound_use

BOUNDARIES = (256, 128, 64, 32, 16, 8)


def locate(evidence: Evidence, use: Use) -> str:
    """Say where the elements beyond the bound are; `use` is `bound_use` of the evidence."""
    checked, samples, beyond = evidence.checked, evidence.samples, _beyond_bounds(evidence, use)
    wrong = beyond.pop(OUTPUT)
    if not wrong.any():
        for result, others in beyond.items():
            if others.any():
                return f"Only {result.name} is wrong, in {_share(others)} of its elements."
        return (
            "No single element is beyond its bound; only the average error, or its bias, is larger than "
            "rounding makes it. Is the spec that of this kernel?"
        )
    sentences = [f"{_share(wrong)} of the output elements are wrong{_kind(evidence, wrong)}."]
    of_others = [
        f"{result.name} is {f'wrong in {_share(others)} of its elements' if others.any() else 'right'}."
        for result, others in beyond.items()
        if others.size
    ]
    shape = checked.output_shape
    if len(samples) != 1:
        return sentences[0] + _by_part(wrong, samples, shape[-1])
    sample = samples[0]
    grid = wrong.reshape(len(sample.sequences), len(sample.heads), len(sample.rows), shape[-1])
    if grid.all():
        return " ".join([*sentences, *_likeness(evidence), *of_others])
    axes = (
        ("sequence", sample.sequences, (1, 2, 3)),
        ("head", sample.heads, (0, 2, 3)),
        ("row", sample.rows, (0, 1, 3)),
        ("dim", np.arange(shape[-1]), (0, 1, 2)),
    )
    for name, numbers, others in axes:
        hit = grid.any(axis=others)
        if hit.all():
            sentences += [f"Every {name} is affected."] if len(hit) > 1 else []
        else:
            edge = _boundary(numbers[hit], numbers) if name in ("row", "dim") else ""
            sentences.append(f"Wrong {name}s: {ranges(numbers[hit])}{edge}.")
    return " ".join([*sentences, *of_others])


def _share(wrong):
    share = wrong.mean()
    return f"{share:.1%}" if share >= 0.001 else "less than 0.1%"


def _kind(evidence, wrong):
    """What the wrong elements have in common."""
    got = evidence.observed[OUTPUT][wrong]
    if np.isnan(got).all():
        return ", all of them NaN"
    if not got.any():
        return ", all of them 0 (never written?)"
    share = np.isnan(got).mean()
    with np.errstate(all="ignore"):
        return (
            f", {share:.0%} of these NaN"
            if share
            else f", by up to {np.abs(got - evidence.reference[OUTPUT][wrong]).max():.3g}"
        )


def _likeness(evidence):
    """How the output relates to the right one, when all of it is wrong."""
    want, got = evidence.reference[OUTPUT], evidence.observed[OUTPUT]
    fine = np.isfinite(want) & np.isfinite(got)
    if fine.sum() < 3 or not np.ptp(want[fine]) or not np.ptp(got[fine]):
        return
    likeness = float(np.corrcoef(want[fine], got[fine])[0, 1])
    other = ": these are other inputs, or another computation." if abs(likeness) < 0.1 else "."
    yield f"Its correlation with the right output is {likeness:.2f}{other}"


def never_written(given) -> tuple[str, str] | None:
    """(id, words) when a result that should not be 0 is 0 everywhere, and no other one shows that the
    kernel ran.
    """
    others = (array for result, array in given.items() if not result.principal)
    ran = any(np.asarray(array, dtype=np.float64).any() for array in others)
    if given[OUTPUT].size and not ran and not np.asarray(given[OUTPUT], dtype=np.float64).any():
        return "output_never_written", "all zeros: was the output ever written?"
    return None


def isolated(evidence) -> tuple[str, str] | None:
    """(id, words) when all wrong elements lie in one row of one head and everything else agrees."""
    if len(evidence.samples) != 1 or evidence.observed[OUTPUT].size < 2:
        return None
    beyond = _beyond_bounds(evidence, bound_use(evidence))
    sample, wrong = evidence.samples[0], beyond[OUTPUT]
    shape = (len(sample.sequences), len(sample.heads), len(sample.rows))
    rows = np.any([array.reshape(*shape, -1).any(axis=-1) for array in beyond.values()], axis=0)
    if rows.sum() != 1 or rows.size < 2:
        return None
    sequence, head, row = (
        int(numbers[at])
        for numbers, at in zip(
            (sample.sequences, sample.heads, sample.rows), np.argwhere(rows)[0], strict=True
        )
    )
    place, width = f"sequence {sequence} head {head} row {row}", evidence.checked.output_shape[-1]
    if wrong.sum() == 1:
        return (
            "one_element_off",
            f"one element is wrong ({place} dim {int(np.flatnonzero(wrong)[0]) % width}) and everything "
            "else agrees",
        )
    return one_row(sequence, head, row)


def one_row(sequence, head, row):
    """(id, words) of a result of which one row is wrong."""
    place = f"sequence {sequence} head {head} row {row}"
    return "one_row_garbage", f"one row is wrong ({place}) and everything else agrees"


def _beyond_bounds(evidence, use):
    """Where each result is beyond its tight bound, flattened as in the evidence."""
    return {
        result: _wrong(got, evidence.reference[result], use.tight[result])
        for result, got in evidence.observed.items()
    }


def _wrong(got, want, unit):
    fine, same = comparable(want, got)
    with np.errstate(all="ignore"):
        return np.where(fine, np.abs(got - want) > np.where(np.isfinite(unit), unit, np.inf), ~same)


def _by_part(wrong, samples, width):
    sizes = [s.sequences.size * s.heads.size * s.rows.size * width for s in samples]
    ends = np.cumsum(sizes)
    bad = [
        n for n, (stop, size) in enumerate(zip(ends, sizes, strict=True)) if wrong[stop - size : stop].any()
    ]
    return f" Wrong sequences: {ranges(np.array(bad))}."


def ranges(numbers) -> str:
    """[0, 1, 2, 5] as '0-2, 5'."""
    groups, numbers = [], [int(n) for n in numbers]
    for n in numbers:
        if groups and n == groups[-1][1] + 1:
            groups[-1][1] = n
        else:
            groups.append([n, n])
    words = [f"{a}-{b}" if a != b else f"{a}" for a, b in groups]
    return ", ".join(words[:6]) + (f" and {len(words) - 6} more" if len(words) > 6 else "")


def _boundary(bad, numbers) -> str:
    first = int(bad[0])
    if first == 0 or len(bad) < 2 or first not in numbers:
        return ""
    for size in BOUNDARIES:
        if first % size == 0:
            return f" (starting at a multiple of {size})"
    return ""
