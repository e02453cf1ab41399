"""The maps of an X-ray for a page: expected weights, measured ones, and what differs, of the sequence and
head that its picture shows.
"""

from __future__ import annotations

import numpy as np

from refattn.oracle.imaging.picture import COLOURS, MARKS, ORDER, SAYS, cut_of, kinds_of
from refattn.oracle.verdict.page import encoded

WHITE_ON = ("missing", "extra", "lost")  # kinds of so dark a colour that their letters are white


def maps_of(xray) -> list[dict]:
    """Three maps, rows down and keys across; none where nothing was measured."""
    if xray.measured is None or xray.ledgers is None or xray.measured.weights is None:
        return []
    view, kinds = xray.measured.view, kinds_of(xray)
    wrong = xray.ledgers.wrong | (kinds == ORDER.index("lost"))
    cut = cut_of(xray, wrong)
    drawn = cut.of(kinds)
    if not drawn.size:
        return []
    rows, keys = drawn.shape
    of_heads = lambda n: f"{view.heads[n // view.num_rows]}:{n % view.num_rows}"
    numbers = [*cut.sequence.rows] if cut.h is not None else [*map(of_heads, range(cut.rows.stop))]
    places = {
        "down": "row" if cut.h is not None else "head:row",
        "across": "key",
        "batch": [],
        "heads": 1,
        "height": rows,
        "width": keys,
        "tops": [*range(rows)],
        "lefts": [*range(keys)],
        "names": [str(n) for n in numbers[cut.rows]],
        "columns": [str(n) for n in range(cut.keys.start, cut.keys.start + keys)],
        "places": "",
    }
    found = []
    visible = cut.of(view.visible & view.exists)
    for words, weights in (("expected", view.weights), ("measured", xray.measured.weights)):
        shown = np.nan_to_num(cut.of(weights))
        values = np.where(visible | (shown > 0), shown, -1.0)
        title, largest = f"{words} weights of {cut.place}", float(max(shown.max(initial=0.0), 1e-30))
        found.append(
            places | {"title": title, "kind": "weight", "values": encoded(values, "<f4"), "largest": largest}
        )
    ink = lambda name: "#fff" if name in WHITE_ON else "#000"
    legend = [[COLOURS[name], SAYS[name], MARKS[name], ink(name)] for name in ORDER]
    found.append(
        places
        | {"title": f"what differs, of {cut.place}", "kind": "kinds", "values": encoded(drawn, "<f4")}
        | {"largest": 1.0, "legend": legend}
    )
    return found
