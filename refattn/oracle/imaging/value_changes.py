"""Values or outputs that are changed on the way: the output is not what the weights make of the values."""

from __future__ import annotations

import numpy as np

from refattn.oracle.arithmetic.formats import FORMATS, round_to
from refattn.oracle.imaging.maps import ranges
from refattn.oracle.imaging.score_quantised import BITS, in_multiples, scales

MOST = 0.9  # of the wrong numbers are explained


def explain_values(description):
    """Findings about outputs that the measured weights do not explain."""
    d, m = description, description.measured
    explained = d.explained | d.value_rows | d.ledgers.nan | d.ledgers.zero
    off = (m.unexplained > 1) & ~m.dead_columns & ~explained[..., None]
    if off.any():
        told = " ".join(finding.nature for finding in d.found)
        kind, words = _change(m, off, told)
        confident = bool(kind)
        yield d.finding(d.of_rows(off.any(-1)), kind or "values", words, confident=confident)


def _change(m, off, told=""):
    """Kind, "" if not known, and words for what happened to the outputs at `off` (B, H, T, E). `told` is
    what is known of other operands: values may have the same format.
    """
    got, predicted = m.output, m.applied(m.weights)
    columns = off.any((0, 1, 2))
    changed = ranges(np.flatnonzero(columns).tolist())
    where = "" if columns.all() else f" in columns {changed} of {len(columns)}"
    at = off & np.isfinite(got)
    if at.any() and (got[at] == 0).mean() > 0.97:
        return "values", f"the output is 0{where}: not written, or the values there are not read"
    if not np.isfinite(got[off]).all():
        return "values", f"the output is not finite{where}"
    if words := _other_projection(m, off.any(-1)):
        return "values", words
    is_that = lambda other: (np.abs(got - other) <= 2 * m.output_tolerance)[at].mean() > MOST
    if words := _rounded_in_words(m, predicted, is_that, told):
        return "format", words
    factor = float((predicted[at] * got[at]).sum() / max((predicted[at] ** 2).sum(), 1e-300))
    if is_that(factor * predicted):
        words = f"the output is multiplied by {factor:.5g}{where}, which one-hot values do not show"
        return "values", words
    words = f"the output is not what the weights make of the values{where}"
    return "", f"{words}: values are changed or come from elsewhere"


def _rounded_in_words(m, predicted, is_that, told):
    """Words for a coarser format of the values or of the output; "" where it is none. That which other
    operands have comes first: on many numbers two formats do the same.
    """
    for name in sorted(FORMATS, key=lambda name: f" {name}" not in told):
        for how, cut in (("rounded", False), ("cut off (truncated)", True)):
            value = round_to(m.value, name, truncate=cut)
            if np.array_equal(value, m.value):
                continue
            if is_that(m.view.applied(m.weights, np.nan_to_num(value))):
                return f"values are {how} to {name}"
            if is_that(round_to(predicted, name, truncate=cut)):
                return f"the output is {'' if not cut else how + ' and '}stored as {name} in between"
    if m.view.latent:
        return ""
    value = np.nan_to_num(m.value)
    for name, levels in BITS:
        for words, scale in scales(value, "key"):
            if is_that(m.view.applied(m.weights, in_multiples(value, scale, scale, levels))):
                return f"values are kept in {name}, {words}"
    return ""


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
    rule = _folded(view, t, h, other)
    listed = ", ".join(f"row {a}, head {b} takes {c}" for a, b, c in list(zip(t, h, other, strict=True))[:4])
    return (
        f"the up-projection of the values (w_uv) is that of another head, by row and head{rule} ({listed})"
    )


def _folded(view, t, h, other):
    """Words for a formula of row and head that gives the other heads, all (n,); "" where none does."""
    num_heads, num_rows = view.num_heads, max(s.num_rows for s in view.sequences)
    for words, head in (
        ("(row * num_heads + head) // q_len", (t * num_heads + h) // num_rows),
        ("(row * num_heads + head) % num_heads", (t * num_heads + h) % num_heads),
        ("(head * q_len + row) // num_heads", (h * num_rows + t) // num_heads),
        ("(head * q_len + row) % num_heads", (h * num_rows + t) % num_heads),
        ("row % num_heads", t % num_heads),
    ):
        if (head == other).mean() > 0.97:
            return f": head {words}"
    return ""
