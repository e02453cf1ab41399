"""What is wrong with one result, and where, in words: the line a reader sees first."""

from __future__ import annotations

import math

import numpy as np

NOT_JUDGED, LEAN, INTERRUPTED = "not judged", "lean", "interrupted"
LEFT_OUT = "ignore_empty_rows=True leaves them out"
KINDS = ("finite numbers", "NaN", "infinities")


def faults(measure) -> list[str]:
    """What failed, the gravest first, as parts of a sentence; empty where nothing did."""
    failed = {*measure.failed}
    found = [empty_rows_alone(measure)]
    if not found[0]:
        found = [zeros(measure)]
        found.append(misplaced(measure) if measure.misplaced else "")
        found.append(
            f"{measure.outside:,} elements lie outside the range of the values they see"
            if measure.outside
            else ""
        )
        if "hard" in failed:
            found.append(f"errors of {times_the_bound(measure)}")
        elif "tight" in failed:
            found.append(f"errors of {times_the_bound(measure)}, which rounding does not make")
        elif "aggregate" in failed:
            found.append(
                f"errors are {measure.rms:.3g} times what rounding makes (rms, allowed "
                f"{measure.rms_limit:.3g}), though none alone is beyond its bound"
            )
    if LEAN in failed:
        found.append(measure.bias_words)
    if NOT_JUDGED in failed:
        found.append(not_judged(measure))
    return [words for words in found if words]


def times_the_bound(measure) -> str:
    """How large the errors are, beside what rounding allows."""
    if math.isinf(measure.use_tight):
        return f"up to {measure.largest_error:.3g}, where no error is allowed"
    return f"up to {measure.use_tight:,.3g} times the bound"


def not_judged(measure) -> str:
    if measure.lost:
        return (
            f"{measure.lost:,} NaN or infinities for finite results, which an overflow in a format of the "
            "spec may explain"
        )
    return "nothing judged, an intermediate of every element may overflow the formats of the spec"


def misplaced(measure) -> str:
    """ "12 NaN where finite numbers belong"."""
    parts = []
    for (got, expected), count in measure.misplaced_kinds.items():
        there = "infinities of the other sign" if got == expected == 2 else KINDS[expected]
        parts.append(f"{count:,} {KINDS[got]} where {there} belong")
    rest = measure.misplaced - sum(measure.misplaced_kinds.values())
    if rest:
        parts.append(f"{rest:,} numbers in rows whose errors were not looked at that cannot stand there")
    return " and ".join(parts)


def empty_rows_alone(measure) -> str:
    """That only rows which see no key differ; empty where other rows do, or none."""
    wrong = measure.wrong_rows
    if not wrong.any() or (wrong & ~measure.empty).any():
        return ""
    right = f"{measure.result.empty_row:g}, and with a sink "
    right += "0" if measure.result.has_dims else "the sink"
    right = "0" if measure.result.has_dims else right
    got = "" if not measure.at_worst else f", got {measure.at_worst['got']:.6g}"
    return f"only rows that see no key differ, where the {measure.name} must be {right}{got} ({LEFT_OUT})"


def zeros(measure) -> str:
    """Whole rows or dims of exact zeros where other numbers belong; empty where there are none."""
    if not measure.result.has_dims:
        return ""
    parts = []
    dims, rows = measure.zero_dims, measure.zero_rows
    if rows.any() and (rows | measure.empty | measure.other_rows).all():
        return f"the whole {measure.name} is exactly 0: was it ever written?"
    if dims.any():
        parts.append(counted("dims", np.flatnonzero(dims), len(dims)))
    if rows.any() and (rows & measure.wrong_rows).sum() >= 0.5 * measure.wrong_rows.sum():
        alike = rows == rows.any(axis=tuple(range(rows.ndim - 1)))
        where = counted("rows", np.flatnonzero(rows.any(axis=tuple(range(rows.ndim - 1)))), rows.shape[-1])
        heads = counted("heads", np.flatnonzero(rows.any(axis=-1).reshape(-1, rows.shape[-2]).any(0)),
                        rows.shape[-2])  # fmt: skip
        parts.append(where if alike.all() else f"{rows.sum():,} rows ({heads}; {where})")
    return f"the {measure.name} is exactly 0 in {' and in '.join(parts)}" if parts else ""


def spread(measure) -> str:
    """Where the tight bound is exceeded: heads, rows and dims; empty when nowhere."""
    bad = measure.wrong_rows
    if not bad.any():
        return ""
    heads, rows = np.unique(np.nonzero(bad)[-2]), np.unique(np.nonzero(bad)[-1])
    parts = [
        _rows_in_all(int(bad.sum()), measure.rows_checked),
        counted("heads", heads, bad.shape[-2]),
        f"{counted('rows', rows, bad.shape[-1])}, the first is {rows[0]}",
    ]
    if measure.result.has_dims:
        dims = np.flatnonzero(measure.use_by_dim > 1.0)
        parts += [counted("dims", dims, len(measure.use_by_dim))] if len(dims) else []
    return "; ".join(parts)


def _rows_in_all(wrong, total):
    if wrong == total:
        return f"all {total:,} rows" if total > 1 else "the only row"
    return f"{wrong:,} of {total:,} rows"


def counted(name, indices, total) -> str:
    """ "heads 0, 2 of 8", "rows 17-63 of 64", "all 64 dims"."""
    if len(indices) == total:
        return f"all {total} {name}" if total > 1 else f"the only {name[:-1]}"
    if len(indices) > 4 and indices[-1] - indices[0] + 1 == len(indices):
        return f"{name} {indices[0]}-{indices[-1]} of {total}"
    shown = ", ".join(str(i) for i in indices[:6])
    more = f" and {len(indices) - 6} more" if len(indices) > 6 else ""
    return f"{name if len(indices) > 1 else name[:-1]} {shown}{more} of {total}"
