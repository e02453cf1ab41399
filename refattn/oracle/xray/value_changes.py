"""Values that are changed on the way, or results that are: the output is not what the measured weights make of the values."""

from __future__ import annotations

import numpy as np

from refattn.oracle.arithmetic.formats import FORMATS, round_to
from refattn.oracle.xray.findings import Finding


def explain_values(description):
    """Findings about outputs that the measured weights do not explain."""
    d, m = description, description.measured
    off = (m.unexplained > 1) & ~m.dead_columns
    off &= ~(d.explained | d.value_rows)[..., None] & ~d.ledgers.nan[..., None] & ~d.ledgers.zero[..., None]
    if not off.any():
        return
    rows = off.any(-1)
    rule = d._of_rows(rows)
    predicted, got = m._applied(m.weights), m.output
    columns = off.any((0, 1, 2))
    where = "" if columns.all() else f" in columns {_ranges(np.flatnonzero(columns))} of {len(columns)}"
    at = off & np.isfinite(got)
    if at.any() and (got[at] == 0).mean() > 0.97:
        yield d._finding(
            rule, "values", f"the output is 0{where}: not written, or the values there are not read"
        )
        return
    if not np.isfinite(got[off]).all():
        yield d._finding(rule, "values", f"the output is not finite{where}")
        return
    if words := _other_projection(m, rows):
        yield d._finding(rule, "values", words)
        return
    factor = float((predicted[at] * got[at]).sum() / max((predicted[at] ** 2).sum(), 1e-300))
    tolerance = 2 * m.output_tolerance
    if (np.abs(got - factor * predicted) <= np.broadcast_to(tolerance, got.shape))[at].mean() > 0.9:
        yield d._finding(
            rule,
            "values",
            f"the output is multiplied by {factor:.5g}{where}, which one-hot values do not show",
        )
        return
    for name in FORMATS:
        value = round_to(m.value, name)
        if np.array_equal(value, m.value):
            continue
        again = m.view.applied(m.weights, np.nan_to_num(value))
        if (np.abs(got - again) <= np.broadcast_to(tolerance, got.shape))[at].mean() > 0.9:
            yield d._finding(rule, "format", f"values are rounded to {name}")
            return
        if (np.abs(got - round_to(predicted, name)) <= np.broadcast_to(tolerance, got.shape))[
            at
        ].mean() > 0.9:
            yield d._finding(rule, "format", f"the output is stored as {name} in between")
            return
    yield d._finding(
        rule,
        "values",
        f"the output is not what the weights make of the values{where}: values are changed or come from elsewhere",
        confident=False,
    )


def _other_projection(m, rows):
    """MLA: whether the output of wrong rows is that of another head's up-projection of values."""
    view = m.view
    if not view.latent:
        return ""
    value = np.nan_to_num(m.value)  # (B, H, S, E)
    pairs = {}
    for h in np.unique(np.nonzero(rows)[1]):
        for other in range(value.shape[1]):
            off = np.abs(m.weights[:, h] @ value[:, other] - m.output[:, h])
            if other != view.heads[h] and (off <= 4 * m.output_tolerance[:, h])[rows[:, h]].mean() > 0.95:
                pairs[int(view.heads[h])] = other
    if not pairs:
        return ""
    words = ", ".join(f"{a} -> {b}" for a, b in list(pairs.items())[:8])
    return f"the up-projection of the values (w_uv) is that of another head (head -> head: {words})"


def _ranges(numbers):
    from refattn.oracle.xray.score_models import _ranges as ranges

    return ranges(numbers.tolist())


__all__ = ["explain_values", "Finding"]
