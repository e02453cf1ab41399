"""One page of HTML that needs no network: verdicts in words, maps to hover and zoom, and what reproduces
them.

Texts are escaped here and stand in the page without any script; the maps travel as numbers in a block of
JSON from which the script of `page.html` draws them. Nothing that a kernel, a file or a caller names becomes
markup.
"""

from __future__ import annotations

import base64
import html
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from refattn.oracle.verdict.faults import faults, spread
from refattn.oracle.verdict.row_map import binned, edges, grid_of

MOST_HEADS, MOST_ROWS = 256, 512  # lines and columns of a map; of more, the worst of each bin is drawn
TEMPLATE = Path(__file__).with_name("page.html")


@dataclass
class Section:
    """One verdict of a page, all of it plain text but `maps`, which `use_maps` and the like make."""

    title: str
    verdict: str  # "pass", "FAIL" and the like
    words: list[str]  # what is wrong
    facts: list[tuple[str, str]] = field(default_factory=list)
    maps: list[dict] = field(default_factory=list)
    text: str = ""  # the whole report
    reproduce: str = ""


def page(title, verdict, summary, sections, table=()) -> str:
    """The page; `table` holds rows of cells, the first of them the heading. The summary need not say the
    title and the verdict again.
    """
    words = summary.removeprefix(f"{title}: ").removeprefix(verdict).lstrip(":, ") or summary
    title = f"{title}: {verdict}"
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="verdict {_class(verdict)}">{html.escape(words[:1].upper() + words[1:])}</p>',
    ]
    if table:
        head, *rows = table
        parts += ["<table><thead>", _row(head, "th"), "</thead><tbody>"]
        parts += [*(_row(row, "td") for row in rows), "</tbody></table>"]
    maps: list[dict] = []
    parts += [part for section in sections for part in _section(section, maps)]
    data = json.dumps(maps, allow_nan=False).replace("<", "\\u003c")
    before, rest = TEMPLATE.read_text(encoding="utf-8").rstrip().split("BODY")
    between, after = rest.split("DATA")
    return "".join([before.replace("TITLE", html.escape(title)), "\n".join(parts), between, data, after])


def _section(section, maps):
    yield f'<section><h2><span class="{_class(section.verdict)}">{html.escape(section.verdict)}</span> '
    yield f"{html.escape(section.title)}</h2>"
    yield from (f"<p>{html.escape(words)}</p>" for words in section.words)
    if section.facts:
        yield "<dl>"
        yield from (f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in section.facts)
        yield "</dl>"
    for drawn in section.maps:
        yield f'<figure class="map" data-map="{len(maps)}"><figcaption>{html.escape(drawn["title"])}'
        yield "</figcaption></figure>"
        maps.append(drawn)
    if section.reproduce:
        yield f"<h3>Reproduce</h3><pre>{html.escape(section.reproduce)}</pre>"
    if section.text:
        yield f"<details><summary>The whole report</summary><pre>{html.escape(section.text)}</pre></details>"
    yield "</section>"


def _row(cells, tag):
    return f"<tr>{''.join(f'<{tag}>{html.escape(str(cell))}</{tag}>' for cell in cells)}</tr>"


def _class(verdict):
    return {"pass": "pass", "agrees": "pass", "FAIL": "fail"}.get(verdict, "other")


def section_of(report, title=None) -> Section:
    """The section of a `Report`: its verdict, worst element, maps and lines."""
    facts = [("spec", report.spec.name), ("reference", report.reference)]
    words, maps = [], []
    for measure in report.measures:
        words += [f"{measure.name}: {fault}" for fault in faults(measure)]
        if measure.at_worst and measure.worst is not None:
            at = measure.at_worst
            facts.append((f"worst of the {measure.name}", report.place(measure)))
            facts += [(name, f"{at[name]:.9g}") for name in ("got", "expected")]
            facts.append(("bounds", f"{at['tight']:.3g} tight, {at['hard']:.3g} hard"))
        facts += [("beyond the bound", spread(measure))] if spread(measure) else []
        if measure.failed or (measure is report.measures[0] and report.passed):
            maps += use_maps(measure)
    facts += [("warning", warning) for warning in report.warnings]
    words = words or [report.summary]
    return Section(
        title or report.function, report.verdict, words, facts, maps, report.text(), report.reproduce
    )


def use_maps(measure) -> list[dict]:
    """The use of the tight bound by head and row, and where dims differ by dim."""
    grid = grid_of(measure)
    if not grid.size:
        return []
    batch = measure.use_map.shape[:-2]
    found = [
        {
            "title": f"{measure.name}: error / tight bound of every head (down) and row (across)",
            "kind": "use",
            "down": "head",
            "across": "row",
            "heads": int(measure.use_map.shape[-2]),
            "batch": [int(size) for size in batch],
            **_numbers(grid),
        }
    ]
    if measure.result.has_dims and (measure.use_by_dim > 1).any():
        by_dim = np.where(np.isnan(measure.use_by_dim), np.inf, measure.use_by_dim)[None]
        found.append(
            {
                "title": f"{measure.name}: error / tight bound of every dim",
                "kind": "use",
                "down": "",
                "across": "dim",
                "heads": 1,
                "batch": [],
                **_numbers(by_dim),
            }
        )
    return found


def _numbers(grid):
    """The cells of a map, and what they stand for: bins of the grid, and the place of the worst of each."""
    worst, places = binned(grid, MOST_HEADS, MOST_ROWS)
    there = grid[np.isfinite(grid)]
    return {
        "height": int(grid.shape[0]),
        "width": int(grid.shape[1]),
        "tops": edges(grid.shape[0], MOST_HEADS).tolist(),
        "lefts": edges(grid.shape[1], MOST_ROWS).tolist(),
        "values": encoded(worst, "<f4"),
        "places": encoded(places, "<u4") if worst.shape != grid.shape else "",
        "largest": float(there.max(initial=1.0)),
    }


def encoded(array, dtype) -> str:
    """The bytes of an array, which the script reads as it reads a file."""
    with np.errstate(over="ignore"):
        return base64.b64encode(np.ascontiguousarray(array).astype(dtype).tobytes()).decode()
