"""Factors and steps as the sentences of findings say them."""

from __future__ import annotations

import numpy as np

MEANT = ((2, "doubled"), (0.5, "halved"), (np.log2(np.e), "log2(e)"), (np.log(2), "ln 2"), (-1, "negated"))


def ratio(a) -> str:
    """A factor, beside the one that it may be meant as: "2 (doubled)"."""
    for value, words in MEANT:
        if abs(a - value) < 2e-3 * abs(value):
            return f"{a:.4g} ({words})"
    return f"{a:.4g}"


def step_away(step) -> str:
    """A step from a row or key to another one: "16 further on", "1 before"."""
    return f"{abs(step)} {'further on' if step > 0 else 'before'}"


def away(step, what) -> str:
    """A step with what is counted: "one page further on", "3 keys further back"."""
    some = "one" if abs(step) == 1 else str(abs(step))
    return f"{some} {what}{'s' * (abs(step) > 1)} {'further on' if step > 0 else 'further back'}"


def count_of(number, what) -> str:
    """How many: "1 tile", "2 tiles"."""
    return f"{number} {what}{'s' * (number != 1)}"
