"""Statements about numbers of places, "==", "!=", "<=" or ">=" a value, as one would say them: functions
(how, value) -> words, or None where the plain "is at most 3" says it as well.
"""

from __future__ import annotations

import math

ORDINALS = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"]
FLIPPED = {"<=": ">=", ">=": "<="}


def ordinal(n):
    """The place in a row of things, from 0: "first", "second", "13th"."""
    if n < len(ORDINALS):
        return ORDINALS[n]
    last = 0 if 10 <= (n + 1) % 100 <= 20 else (n + 1) % 10
    return f"{n + 1}{({1: 'st', 2: 'nd', 3: 'rd'}).get(last, 'th')}"


def apart(subject, anchor, after="after", before="before"):
    """Of the signed distance of one thing from another: "the key is at least 2 after the row's own"."""

    def say(how, n):
        near = {("<=", -1): f"is {before}", (">=", 1): f"is {after}"}
        near |= {("<=", 0): f"is not {after}", (">=", 0): f"is not {before}"}
        if (how, n) in near:
            return f"{subject} {near[how, n]} {anchor}"
        if how in FLIPPED:
            size = f"at {'least' if (how == '>=') == (n > 0) else 'most'} {abs(n)}"
            return f"{subject} is {size} {after if n > 0 else before} {anchor}"
        return f"{subject} is {'not ' * (how == '!=')}{abs(n)} {after if n > 0 else before} {anchor}"

    return say


def from_the_first(subject, whose, plain=False):
    """Of a number that counts from 0: "the tile is the second that the row sees". `plain`: single ones are
    told as numbers.
    """

    def say(how, n):
        if n < 0:
            return apart(subject, f"the first {whose}")(how, n)
        if how in FLIPPED:
            return _within(subject, how, n + (how == "<="), "first", "before", whose)
        return None if plain else f"{subject} is {'not ' * (how == '!=')}the {ordinal(n)} {whose}"

    return say


def _within(subject, how, count, end, beyond, whose):
    """That something is, or where `how` is ">=" is not, one of so many at an end."""
    if not count:
        return f"{subject} is not {beyond} the {end} {whose}"
    some = f"the {end} {whose}" if count == 1 else f"one of the {end} {count} {whose}"
    return f"{subject} is {'not ' * (how == '>=')}{some}"


def from_the_last(subject, whose):
    """Of a number that counts from the end: "the row is one of the last 3 of its sequence"."""

    def say(how, n):
        if n < 0:
            return apart(subject, f"the last {whose}")(FLIPPED.get(how, how), -n)
        if how in FLIPPED:
            return _within(subject, how, n + (how == "<="), "last", "after", whose)
        but = "" if not n else " but one" if n == 1 else f" but {n}"
        return f"{subject} is {'not ' * (how == '!=')}the last{but} {whose}"

    return say


def in_tile(subject, whose, size):
    """Of the place in a tile of a size: halves, the first ones and the last ones."""

    def say(how, n):
        if how not in FLIPPED or not 0 <= n < size:
            return None
        if size % 2 == 0 and size > 2 and n == size // 2 - (how == "<="):
            return f"{subject} is in the {'first' if how == '<=' else 'second'} half {whose}"
        if how == "<=":
            return from_the_first(subject, whose)(how, n)
        return from_the_last(subject, whose)("<=", size - 1 - n)

    return say


def rounded_down(subject):
    """Of a number that was rounded down."""

    def say(how, n):
        if how in FLIPPED:
            return f"{subject} is {f'at least {n}' if how == '>=' else f'below {n + 1}'}"
        return f"{subject} is {'not ' * (how == '!=')}from {n} to {n + 1}"

    return say


def share_of_largest(how, n):
    """Of how far a score is below the row's largest one, rounded down: of the weights that they give."""
    share = lambda below: f"{100 * math.exp(-below):.2g} %"
    whose = "of the row's largest"
    if how == ">=":
        return f"the right weight is at most {share(n)} {whose}"
    if how == "<=":
        return f"the right weight is more than {share(n + 1)} {whose}"
    return f"the right weight is {'not ' * (how == '!=')}{share(n + 1)} to {share(n)} {whose}"


def seen_keys(how, n):
    """Of the number of keys that a row sees."""
    many = f"{n} key{'s' * (n != 1)}"
    return {
        "<=": f"the row sees at most {many}",
        ">=": f"the row sees at least {many}",
        "==": f"the row sees {many}",
        "!=": f"the row does not see {many}",
    }[how]


NEGATED = (
    (" has the ", " does not have the "),
    (" sees no ", " sees a "),
    (" sees one key only", " sees no key or several"),
)


def negated(words):
    """The contrary of a statement in words: "the row is not the first"."""
    if words.endswith((" is even", " is odd")):
        return f"{words[: -len('even')]}odd" if words.endswith("even") else f"{words[: -len('odd')]}even"
    if " is " in words:
        return words.replace(" is ", " is not ", 1)
    for said, other in NEGATED:
        if said in words:
            return words.replace(said, other, 1)
    return f"it is not so that {words}"
