"""What every answer of the oracle has in common: plain values, JSON, and a file of either, of text, or of a
page.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

PICTURES = (".png", ".pdf", ".svg")


class Saved:
    """An answer that is written the same way as every other.

    A subclass has `kind`, `text()`, `verdict`, `passed`, `summary`, `plain()`, its own plain values, and
    `sections()`, those of its page; where it has something to draw also `picture(path)`.
    """

    kind = ""

    @property
    def title(self) -> str:
        """What a page is called."""
        return self.kind

    def to_dict(self) -> dict:
        """Plain values that JSON holds: "kind", "verdict", "passed" and "summary" first, of every kind of
        answer. NaN and infinities are the strings "nan", "inf" and "-inf", because JSON has none.
        """
        common = {name: getattr(self, name) for name in ("kind", "verdict", "passed", "summary")}
        return json_ready(common | self.plain())

    def to_json(self, **options) -> str:
        """`to_dict` as JSON text; `options` go to `json.dumps`."""
        return json.dumps(self.to_dict(), **{"allow_nan": False} | options)

    def page(self) -> str:
        """A page of HTML that needs no network; `save` writes it."""
        from refattn.oracle.verdict.page import page

        return page(self.title, self.verdict, self.summary, self.sections())

    def save(self, path):
        """Write the answer into a file, in the form that its ending names.

        Parameters
        ----------
        path : str or path
            ".html" is one page that needs no network, to look at in a browser; ".json" holds `to_dict`,
            ".txt" `text`; ".png", ".pdf" and ".svg" the picture, where there is one.

        Raises
        ------
        ValueError
            Another ending.
        ImportError
            A picture without matplotlib.
        """
        path = Path(path)
        ending = path.suffix.lower()
        forms = {".html": self.page, ".json": self.to_json, ".txt": self.text}
        endings = [*forms, *(PICTURES if hasattr(self, "picture") else ())]
        if ending not in endings:
            raise ValueError(f"path must end with one of {', '.join(endings)}; got path={str(path)!r}.")
        if ending in PICTURES:
            self.picture(path)
        else:
            path.write_text(forms[ending]() + "\n", encoding="utf-8")


def json_ready(value):
    """The value with lists for tuples, numbers of Python, and strings for NaN and infinities."""
    if isinstance(value, dict):
        return {key: json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    return value
