"""Rows that are 0 or NaN: whether they recover when their scores are smaller, and at what size."""

from __future__ import annotations

import numpy as np

from refattn.oracle.xray.view import KEY, QUERY, VALUE

HALVINGS = 14
REFINED = 5
EXTREME = 40.0  # scores beyond which exp leaves float32


def _recovers_without_nan(measured, rows):
    """Whether the rows recover when numbers of key or value that are not finite are 0."""
    view = measured.view
    if not hasattr(measured, "probes"):
        return ""
    for which, name in ((VALUE, "values"), (KEY, "keys")):
        array = np.asarray(view.arrays[which])
        bad = ~np.isfinite(array.astype(np.float32))
        if not bad.any():
            continue
        clean = np.where(bad, 0, array).astype(array.dtype)
        output = measured.probes.output("numbers that are not finite made 0", view.with_array(which, clean))
        if np.isfinite(output).all(-1)[rows].mean() > 0.9:
            return f"{name.capitalize()} that are NaN or infinite, in slots that these rows do not see (hidden, past the length or in unused pages), reach the result: the rows are finite when those {name} are 0. Their weight is 0, and 0 * NaN is NaN."
    return ""


def threshold_in_words(measured, rows) -> str:
    """At what size of their scores lost rows (B, H, T) recover; "" where they do not."""
    view = measured.view
    if not hasattr(measured, "probes") or view.latent:
        return ""
    if words := _recovers_without_nan(measured, rows):
        return words
    query = np.asarray(view.arrays[QUERY])
    top = np.where(rows, np.where(np.isfinite(view.top), view.top, 0), 0)
    size = np.abs(top).max(initial=0.0)

    def lost(factor):
        scaled = (query.astype(np.float64) * factor).astype(query.dtype)
        output = measured.probes.output("smaller queries", view.with_array(QUERY, scaled))
        return (~np.isfinite(output).all(-1) | ~(np.abs(output) > 0).any(-1)) & rows

    small = 2.0**-HALVINGS if size > 1 else 2.0**-4
    if lost(small).sum() > 0.1 * rows.sum():
        return "They stay so when the query is small: it does not depend on the size of the scores."
    low, high = small, 1.0
    for _ in range(HALVINGS + REFINED):
        middle = np.sqrt(low * high)
        if lost(middle).sum() > 0.5 * rows.sum():
            high = middle
        else:
            low = middle
        if high / low < 1.03:
            break
    edge = float(np.median(top[rows])) * np.sqrt(low * high)
    if abs(edge) < EXTREME:
        return f"They recover when the query is multiplied by {low:.3g}, though their own scores are ordinary: what they are lost to are scores of other rows."
    scale = view.outline_of(0).scale
    start = edge + 95 if edge < 0 else edge - 88
    meaning = (
        f"as if the running maximum started near {start:.4g} ({start / scale:.4g} before the scale), below which exp gives 0"
        if edge < -60
        else "as if exp overflowed"
        if edge > 60
        else ""
    )
    return f"They recover when the query is multiplied by {low:.3g}: rows are lost whose largest score is beyond about {edge:.4g}{', ' + meaning if meaning else ''}."
