"""Sums of exponentials that hold the sink otherwise: left out, counted again, another one."""

from __future__ import annotations

import numpy as np

from refattn.oracle.imaging.elsewhere import other_rows


def sinks_of(view):
    """The sinks, (B, H, 1), or None."""
    if view.outline_of(0).sinks is None:
        return None
    of_sequence = [view.outline_of(n).sinks[s.entry][s.heads] for n, s in enumerate(view.sequences)]
    return np.array(of_sequence)[..., None]


def other_sinks(rows):
    view, name, lse = rows.view, rows.name, rows.lse
    if (of_heads := sinks_of(view)) is None:
        return
    of_heads = np.broadcast_to(of_heads, view.shape[:3])
    sinks = of_heads[rows.at]
    share = np.exp(sinks - lse)
    replaced = lambda other: np.log1p(np.exp(other - lse) - share)
    yield f"the sink is left out of {name}", np.log1p(-share)
    yield f"the sink counts twice in {name}", np.log1p(share)
    for of_what, top in (("row's maximum", rows.top), ("largest score of its keys", _top_of_keys(rows))):
        yield f"the sink counts in {name} relative to 0, not to the {of_what}", replaced(sinks + top)
    yield f"the sink counts in {name} as exp(0), relative to the row's maximum", replaced(rows.top)
    for words, other in other_rows(view, rows.at):
        if not words.startswith(("the row", "row")):  # all rows of a head have one sink
            yield f"{name} holds the sink of {words}", replaced(other.of_other(of_heads))
    # the sink that the sum would hold
    implied = np.log(np.exp(sinks) + np.expm1(rows.delta) * np.exp(lse))
    known = np.isfinite(implied)
    level = float(np.median(implied[known])) if known.any() else 0.0
    if taken := _sinks_of_heads(rows, of_heads):
        others = np.array([taken.get(int(h), int(h)) for h in view.heads[rows.at[1]]])
        place = {int(h): n for n, h in enumerate(view.heads)}
        sink = of_heads[rows.at[0], [place[h] for h in others], 0]
        yield f"{name} holds the sinks of other heads: {_map_in_words(taken)}", replaced(sink)
    yield f"the sink in {name} is {level:.4g} whatever it should be", replaced(np.full_like(sinks, level))
    for words, factor in (
        ("multiplied by the scale", view.outline_of(0).scale),
        ("in base 2 (times ln 2)", np.log(2)),
        ("in base 2 (times log2(e))", np.log2(np.e)),
        ("negated", -1.0),
    ):
        yield f"the sink in {name} is {words}", replaced(factor * sinks)
    yield from _sink_of_each_part(rows, share)
    size = (sinks * sinks).sum()
    a = float(np.nansum(sinks * np.where(known, implied, sinks)) / size) if size else 1.0
    yield f"the sink in {name} is multiplied by {a:.4g}", replaced(a * sinks)


def _top_of_keys(rows):
    """The largest score of each row without the sink, (n,)."""
    view = rows.view
    return np.where(view.visible, view.score, -np.inf).max(-1, initial=-np.inf)[rows.at]


def _sinks_of_heads(rows, of_heads):
    """For each head the one whose sink its rows hold, {head: head}; empty where that is not so."""
    view, taken = rows.view, {}
    sinks = of_heads[0, :, 0]
    share = np.exp(of_heads[rows.at] - rows.lse)
    away = [
        np.abs(rows.delta - np.log1p(np.exp(sink - rows.lse) - share)) / rows.tolerance for sink in sinks
    ]
    for h in np.unique(rows.at[1]):
        mine = rows.at[1] == h
        off = [np.median(other[mine]) if n != h else np.inf for n, other in enumerate(away)]
        if not min(off) <= 1:
            return {}
        taken[int(view.heads[h])] = int(view.heads[np.argmin(off)])
    return taken


def _map_in_words(taken):
    """{5: 8, 6: 9, 7: 14, 8: 14} as "heads 5 to 6 those of 8 to 9, heads 7 to 8 that of 14"."""
    runs = []
    for own, other in sorted(taken.items()):
        last = runs[-1] if runs else None
        step = other - last[-1][1] if last and own == last[-1][0] + 1 else None
        if step in (0, 1) and (len(last) == 1 or step == last[-1][1] - last[-2][1]):
            last.append((own, other))
        else:
            runs.append([(own, other)])
    words = []
    for run in runs:
        (a, x), (b, y) = run[0], run[-1]
        own = f"heads {a} to {b}" if a != b else f"head {a}"
        words.append(f"{own} {f'those of {x} to {y}' if x != y else f'that of {x}'}")
    return ", ".join(words)


def _sink_of_each_part(rows, share):
    times = float(np.median(np.expm1(rows.delta) / np.where(share > 0, share, np.nan)))
    if np.isfinite(times):
        words = f"the sink counts {1 + times:.3g} times in {rows.name}, as if each part added it"
        yield words, np.log1p(times * share)
