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
    own, other = [], []
    for b, h, t in np.argwhere(rows):
        candidates = np.einsum("s,hse->he", m.weights[b, h, t], value[b])
        near = (np.abs(candidates - m.output[b, h, t]) <= 4 * m.output_tolerance[b, h, t]).all(-1)
        if near.sum() == 1:
            own.append((int(view.row[b, 0, t, 0]), int(view.heads[h])))
            other.append(int(near.argmax()))
    if len(own) < 0.9 * rows.sum():
        return ""
    t, h = np.array(own).T
    other = np.array(other)
    of_head = {a: set(other[h == a].tolist()) for a in np.unique(h).tolist()}
    if all(len(found) == 1 for found in of_head.values()):
        words = ", ".join(f"{a} -> {next(iter(found))}" for a, found in list(of_head.items())[:8])
        return f"the up-projection of the values (w_uv) is that of another head (head -> head: {words})"
    num_heads, num_rows = view.num_heads, max(s.num_rows for s in view.sequences)
    folded = {
        "(row * num_heads + head) // q_len": (t * num_heads + h) // num_rows,
        "(row * num_heads + head) % num_heads": (t * num_heads + h) % num_heads,
        "(head * q_len + row) // num_heads": (h * num_rows + t) // num_heads,
        "(head * q_len + row) % num_heads": (h * num_rows + t) % num_heads,
        "row % num_heads": t % num_heads,
    }
    rule = next((f": head {words}" for words, head in folded.items() if (head == other).mean() > 0.97), "")
    listed = ", ".join(f"row {a}, head {b} takes {c}" for a, b, c in list(zip(t, h, other, strict=True))[:4])
    return f"the up-projection of the values (w_uv) is that of another head, by row and head{rule} ({listed})"


def _ranges(numbers):
    from refattn.oracle.xray.score_models import _ranges as ranges

    return ranges(numbers.tolist())


__all__ = ["explain_values", "Finding"]
