"""A first call that gives another result than those after it."""

from __future__ import annotations

import numpy as np

from refattn.oracle.bounds.results import LSE, OUTPUT
from refattn.oracle.imaging.findings import Finding


def first_call(measured, given):
    """The finding that the judged call, `given` by record, differs from all later ones; else None."""
    rows = differing_rows(measured, given[OUTPUT], given.get(LSE)) & measured.view.row_exists
    if not rows.any() or measured.varies.any():
        return None
    wrong = (measured.off.any(-1) & measured.view.row_exists).any()
    later = "which are wrong in another way" if wrong else "which are right"
    nature = (
        f"the first call gives another result than the later ones, {later}: memory that is not initialised, "
        "a state that is kept between calls, or another path in the first call"
    )
    return Finding("first call", nature, note=f"{rows.sum():,} of {rows.size:,} rows differ.", region=rows)


def differing_rows(measured, output, lse=None):
    """Rows (B, H, T) that differ from those of `measured` by more than rounding."""
    differs = _differs(output, measured.output, measured.output_tolerance).any(-1)
    if lse is not None and measured.lse is not None:
        differs |= _differs(lse, measured.lse, 4 * measured.tolerance[..., 0] + 1e-5)
    return differs


def _differs(a, b, allowed):
    with np.errstate(all="ignore"):
        return ~((a == b) | (np.abs(a - b) <= allowed) | (np.isnan(a) & np.isnan(b)))
