"""Factors and steps as the sentences of findings say them."""

from __future__ import annotations

import numpy as np

SHORT = 90  # characters of another reading that is told
SAME_START = 30  # characters that show that two readings are of one kind
MEANT = ((2, "doubled"), (0.5, "halved"), (np.log2(np.e), "log2(e)"), (np.log(2), "ln 2"), (-1, "negated"))


def ratio(a) -> str:
    """A factor, beside the one that it may be meant as: "2 (doubled)"."""
    for value, words in MEANT:
        if abs(a - value) < 2e-3 * abs(value):
            return f"{a:.4g} ({words})"
    return f"{a:.4g}"


def span(numbers, form=".4g") -> str:
    """The smallest and the largest of some numbers: "0.5 to 0.9", or "1" where they read alike."""
    low, high = (format(float(end), form) for end in (np.min(numbers), np.max(numbers)))
    return low if low == high else f"{low} to {high}"


def changed_pairs(missing, extra) -> str:
    """How many pairs lose their weight, and how many gain one, as a sentence."""
    lost, gained = int(np.sum(missing)), int(np.sum(extra))
    told = [f"{lost:,} {'pair loses its' if lost == 1 else 'pairs lose their'} weight"] * (lost > 0)
    pair = "" if lost else " pair" if gained == 1 else " pairs"
    told += [f"{gained:,}{pair} gain{'s' * (gained == 1)} weight"] * (gained > 0)
    return f"{' and '.join(told)}." if told else ""


def same_here(words, others) -> str:
    """The words, with one other reading that is the same in this call, if it is short and says more."""
    for other in others:
        alike = other.startswith(words[:SAME_START]) or words.startswith(other[:SAME_START])
        if len(other) <= SHORT and not alike:
            return f"{words}; or, which is the same here, {other}"
    return words


def sentence_case(text) -> str:
    """A capital at the start, unless a name such as q_rope stands there."""
    first = text.split(" ", 1)[0]
    return text if "_" in first or "(" in first else text[:1].upper() + text[1:]


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
