"""Rows that are 0 or NaN: whether they recover when their scores are smaller, and at what size."""

from __future__ import annotations

import numpy as np

from refattn.oracle.imaging.view import KEY, QUERY, VALUE

HALVINGS = 14
REFINED = 5
PRECISE = 1.03  # the factor to which the size is found
EXTREME = 40.0  # scores beyond which exp leaves float32
UNDERFLOW = 95  # scores below the running maximum of which exp gives 0 in float32
HALF_ENDS = 65504.0
MEANS_EXP = 60.0  # lost rows whose scores are larger are lost to exp


def threshold_in_words(measured, rows) -> str:
    """At what size of their scores lost rows (B, H, T) recover; "" where they do not."""
    view, probes = measured.view, measured.probes
    if probes is None or view.latent:
        return ""
    if words := _recover_without_nan(measured, rows):
        return words
    if not probes.have_time("smaller queries, for the size at which rows are lost", HALVINGS + REFINED + 1):
        return ""
    query = np.asarray(view.arrays[QUERY])
    top = np.where(rows, np.where(np.isfinite(view.top), view.top, 0), 0)

    def lost(factor):
        scaled = (query.astype(np.float64) * factor).astype(query.dtype)
        output = probes.output("smaller queries", view.with_array(QUERY, scaled))
        return ((~np.isfinite(output).all(-1) | ~(np.abs(output) > 0).any(-1)) & rows).sum() / rows.sum()

    low, high = 2.0**-HALVINGS if np.abs(top).max(initial=0.0) > 1 else 2.0**-4, 1.0
    if lost(low) > 0.1:
        return "They stay so when the query is small: it does not depend on the size of the scores."
    for _ in range(HALVINGS + REFINED):
        middle = np.sqrt(low * high)
        low, high = (low, middle) if lost(middle) > 0.5 else (middle, high)
        if high / low < PRECISE:
            break
    return _edge_in_words(low, float(np.median(top[rows])) * np.sqrt(low * high), view.outline_of(0).scale)


def _recover_without_nan(measured, rows):
    """Words for rows that recover when numbers of key or value that are not finite are 0; else ""."""
    view, probes = measured.view, measured.probes
    for which, name in ((VALUE, "values"), (KEY, "keys")):
        array = np.asarray(view.arrays[which])
        bad = ~np.isfinite(array.astype(np.float32))
        of_key = view.of_heads(~np.isfinite(view.operand("value" if which == VALUE else "key")).all(-1))
        if (view.visible & of_key[:, :, None])[rows].any():
            continue  # they see some of them
        if not bad.any() or not probes.have_time(f"{name} that are not finite made 0"):
            continue
        clean = np.where(bad, 0, array).astype(array.dtype)
        output = probes.output("numbers that are not finite made 0", view.with_array(which, clean))
        if np.isfinite(output).all(-1)[rows].mean() > 0.9:
            return (
                f"{name.capitalize()} that are NaN or infinite, in slots that these rows do not see "
                "(hidden, past the length or in unused pages), reach the result: the rows are finite when "
                f"those {name} are 0. Their weight is 0, and 0 * NaN is NaN."
            )
    return ""


def _edge_in_words(factor, edge, scale):
    """That rows recover with a query times the factor, and what the largest score `edge` says of it."""
    recover = f"They recover when the query is multiplied by {factor:.3g}"
    if abs(edge) < EXTREME:
        return (
            f"{recover}, though their own scores are ordinary: "
            "what they are lost to are scores of other rows."
        )
    meaning = ""
    if edge < -MEANS_EXP:
        start = edge + UNDERFLOW
        before = f"near {start:.4g} ({start / scale:.4g} before the scale)"
        meaning = f", as if the running maximum started {before}, below which exp gives 0"
    elif edge > MEANS_EXP:
        meaning = ", as if exp overflowed"
        if 0.9 < edge / scale / HALF_ENDS < 1.1:
            meaning = f" ({edge / scale:.4g} before the scale: float16 ends at {HALF_ENDS:.0f})"
    return f"{recover}: rows are lost whose largest score is beyond about {edge:.4g}{meaning}."
