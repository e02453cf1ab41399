"""A rule in words for numbers that were read in place of others: "12 places further", "modulo 64"."""

from __future__ import annotations

import numpy as np

TILES = (2, 4, 8, 16, 32, 48, 64, 80, 96, 128, 256)
FITS = 0.97


def describe_map(wanted, got, what, sizes=(), functions_of=None) -> tuple[str, bool]:
    """Words for what was read in place of what, and whether a rule was found.

    `sizes`: numbers that a kernel may count with, (number, its name). `functions_of`: another number that what is
    read may be computed from, and its name.
    """
    wanted, got = np.asarray(wanted), np.asarray(got)
    rules = list(_functions(*functions_of, got, what)) if functions_of else []
    for words, rule in [*rules, *_rules(wanted, got, what, sizes)]:
        if (rule == got).mean() >= FITS:
            return words, True
    pairs = list(dict.fromkeys(zip(wanted.tolist(), got.tolist(), strict=True)))[:4]
    return "for example " + ", ".join(f"{what} {b} in place of {a}" for a, b in pairs), False


def _functions(number, name, got, what):
    """Simple functions of another number."""
    largest = int(got.max(initial=0))
    if len(np.unique(number)) < 2:
        return
    for n in range(1, 9):
        if n > 1:
            yield f"{what} {name} // {n}", np.minimum(number // n, largest)
            yield f"{what} {name} % {n}", number % n
    for n in range(1, 5):
        yield f"{what} {name} >> {n}", np.minimum(number >> n, largest)
    yield f"{what} min({name}, {largest})", np.minimum(number, largest)


def _rules(wanted, got, what, sizes):
    steps, counts = np.unique(got - wanted, return_counts=True)
    if len(steps):
        step = int(steps[np.argmax(counts)])
        yield f"{what} {abs(step)} {'further on' if step > 0 else 'further back'}", wanted + step
    targets, counts = np.unique(got, return_counts=True)
    if len(targets):
        target = int(targets[np.argmax(counts)])
        yield f"always {what} {target}", np.full_like(wanted, target)
    largest = int(got.max(initial=0))
    yield f"{what} min(n, {largest}): the number is cut off at {largest}", np.minimum(wanted, largest)
    for size, name in [*sizes, *((size, str(size)) for size in TILES)]:
        if size > 1:
            yield f"{what} n % {name}", wanted % size
            yield f"{what} n // {name}", wanted // size
            yield f"the first {what} of its {name} for all of them", wanted // size * size
            yield f"{what} n * {name}", wanted * size
            yield (
                f"{what}s of each {name} in reverse order",
                wanted // size * size + size - 1 - wanted % size,
            )
        for step in (1, -1):
            yield (
                f"{what}s rotated by {abs(step)} within each {name}",
                wanted // max(size, 1) * size + (wanted % max(size, 1) + step) % max(size, 1),
            )
    for bit in range(8):
        yield f"{what} n ^ {1 << bit} (bit {bit} of the number flipped)", wanted ^ (1 << bit)
    for low in range(4):
        for high in range(low + 1, 7):
            a, b = (wanted >> low) & 1, (wanted >> high) & 1
            yield (
                f"{what} with bits {low} and {high} of its number exchanged",
                wanted ^ ((a ^ b) << low) ^ ((a ^ b) << high),
            )
    number = int(wanted.max(initial=0))
    yield f"{what} counted from the end ({number} - n)", number - wanted
