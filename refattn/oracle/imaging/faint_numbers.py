"""Errors that all rows share, below the rounding of single weights: normaliser and lse hold a little more.

They are looked for where nothing else was found.
"""

from __future__ import annotations

import numpy as np

LEAST_ROWS = 8
COARSE = 2.0**-8  # roundings above it lean to one side in right kernels too
SAME_SIGN, DEVIATIONS = 0.9, 4.0  # of the rows; of the mean, from 0
LEAST = 0.5  # roundings: the roundings of weights lean to one side by a part of one
ALIKE = 0.35  # relative difference of what lse and what outputs say
WHOLE = 0.1  # as near to a whole number


def faint_numbers(d):
    """Findings about rows that are all off to the same side."""
    view, m = d.view, d.measured
    formats = m.spec.weight, m.spec.score, m.spec.scaled_query
    if max(form.unit_roundoff for form in formats) > COARSE:
        return
    rows = np.broadcast_to(view.row_exists, view.shape[:3]) & np.isfinite(view.lse) & ~d.ledgers.nan
    with np.errstate(all="ignore"):
        output, right = (array[..., ~m.wrong_columns] for array in (m.output, m.expected_output))
        factor = np.log((output * right).sum(-1) / (right**2).sum(-1))  # of each row of the output
    rows &= np.isfinite(factor)
    of_lse = None if m.lse is None else m.lse - view.lse
    if of_lse is not None:
        rows &= np.isfinite(of_lse)
    if rows.sum() < LEAST_ROWS:
        return
    least = LEAST * max(m.spec.weight.unit_roundoff, m.spec.output.unit_roundoff)
    of_lse = None if of_lse is None or not _one_side(of_lse[rows], least) else of_lse[rows]
    of_output = -factor[rows] if _one_side(factor[rows], least) else None
    side = lambda mean: "large" if mean > 0 else "small"
    if of_output is not None:
        mean = of_output.mean()
        both = of_lse is not None and abs(of_lse.mean() - mean) <= ALIKE * abs(mean)
        held = _in_words(of_lse if both else of_output, view.lse[rows])  # lse is rounded less
        too = f"outputs are too {side(-mean)} by {100 * abs(np.expm1(-mean)):.2g} %"
        too += f", and lse too {side(mean)} by {abs(of_lse.mean()):.2g}" if both else ""
        yield d.finding(None, "normaliser", f"in every row {too}: the normaliser {held}")
    elif of_lse is not None:
        mean, held = of_lse.mean(), _in_words(of_lse, view.lse[rows])
        too = f"lse is too {side(mean)} by {abs(mean):.2g} in every row"
        yield d.finding(None, "lse", f"{too}, the output is right: its sum {held}")


def _one_side(numbers, least):
    """Whether numbers (n,) are off to one side by no chance, and by `least`."""
    spread = numbers.std() / len(numbers) ** 0.5
    same = (np.sign(numbers) == np.sign(numbers.mean())).mean() >= SAME_SIGN
    return bool(same and abs(numbers.mean()) > max(DEVIATIONS * spread, least))


def _in_words(delta, lse):
    """What a sum of exponentials, whose logarithm is `lse` (n,), holds where it is off by `delta` (n,)."""
    more = np.exp(lse + delta) - np.exp(lse)
    if (
        not np.isfinite(more).all()
        or not more.any()
        or more.std() / abs(more.mean()) >= delta.std() / abs(delta.mean())
    ):
        return f"is multiplied by {np.exp(delta.mean()):.4g}"
    mean = float(np.average(more, weights=np.exp(-2 * (lse - lse.min()))))  # errors grow with the sum
    held = f"holds about {abs(mean):.3g} {'more' if mean > 0 else 'less'} than the exponentials of the keys"
    whole = round(abs(mean))
    if whole and abs(abs(mean) - whole) <= WHOLE * whole:
        what = f"{whole} empty split{'s' * (whole != 1)} or hidden key{'s' * (whole != 1)}"
        held += f", as {what} would add that count with lse or score 0" if mean > 0 else ""
    return held
