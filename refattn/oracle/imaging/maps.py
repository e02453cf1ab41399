"""Numbers in words: ranges of them, and rules for those that were read in place of others ("n % 64")."""

from __future__ import annotations

import numpy as np

TILES = (2, 4, 8, 16, 32, 48, 64, 80, 96, 128, 256)
FITS = 0.97
EXAMPLES, MOST_RUNS = 4, 6  # that are told


def describe_map(wanted, got, what, sizes=(), functions_of=None) -> tuple[str, bool]:
    """Words for what was read in place of what, and whether a rule was found.

    `sizes`: numbers that a kernel may count with, (number, its name). `functions_of`: another number that
    what is read may be computed from, and its name.
    """
    wanted, got = np.asarray(wanted), np.asarray(got)
    rules = list(_functions(*functions_of, got, what)) if functions_of else []
    for words, rule in [*rules, *_rules(wanted, got, what, sizes)]:
        if (rule == got).mean() >= FITS:
            return words, True
    pairs = list(dict.fromkeys(zip(wanted.tolist(), got.tolist(), strict=True)))[:EXAMPLES]
    return "for example " + ", ".join(f"{what} {b} in place of {a}" for a, b in pairs), False


def ranges(numbers):
    """0, 1, 2, 5 as "0 to 2, 5"."""
    runs, start = [], numbers[0]
    for a, b in zip(numbers, [*numbers[1:], None], strict=True):
        if b != a + 1:
            runs.append(f"{start}" if start == a else f"{start} to {a}")
            start = b
    shown = ", ".join(runs[:MOST_RUNS])
    return shown + (f" and {len(runs) - MOST_RUNS} more ranges" if len(runs) > MOST_RUNS else "")


def _functions(number, name, got, what):
    """Simple functions of another number: (words, what they give)."""
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


def most_common(numbers) -> int:
    """The number that occurs most often."""
    values, counts = np.unique(numbers, return_counts=True)
    return int(values[np.argmax(counts)])


def _rules(wanted, got, what, sizes):
    """Functions of the number that should be read: (words, what they give), the simple ones first."""
    if len(got):
        step, target = most_common(got - wanted), most_common(got)
        yield f"{what} {abs(step)} {'further on' if step > 0 else 'further back'}", wanted + step
        yield f"always {what} {target}", np.full_like(wanted, target)
    largest = int(got.max(initial=0))
    yield f"{what} min(n, {largest}): the number is cut off at {largest}", np.minimum(wanted, largest)
    for size, name in [*sizes, *((size, str(size)) for size in TILES)]:
        yield from _in_tiles(wanted, what, size, name)
    for size in (4, 8, 16, 32, 64):
        place, first = wanted % size, wanted // size * size
        for wide in (2, 4, 8, 16, 32):
            if wide < size:
                words = f"{what}s of each {size} in the order of {wide} by {size // wide}, transposed"
                yield words, first + place % wide * (size // wide) + place // wide
    for bit in range(8):
        yield f"{what} n ^ {1 << bit} (bit {bit} of the number flipped)", wanted ^ (1 << bit)
    for low in range(4):
        for high in range(low + 1, 7):
            differ = ((wanted >> low) ^ (wanted >> high)) & 1
            exchanged = wanted ^ (differ << low) ^ (differ << high)
            yield f"{what} with bits {low} and {high} of its number exchanged", exchanged
    number = int(wanted.max(initial=0))
    yield f"{what} counted from the end ({number} - n)", number - wanted


def _reversed(size, name):
    """That numbers run backwards within stretches of a size that goes by a name."""
    if name == "2":
        return "of each pair exchanged"
    if name.isdigit():
        return f"of each {name} in reverse order"
    return f"in reverse order within {name}"


def _in_tiles(wanted, what, size, name):
    """Functions of the number and a size, which goes by a name."""
    tile, place = np.divmod(wanted, max(size, 1))
    first = tile * size
    if size > 1:
        yield f"{what} n % {name}", place
        yield f"{what} n // {name}", tile
        yield f"the first {what} of its {name} for all of them", first
        yield f"{what} n * {name}", wanted * size
        yield f"{what}s {_reversed(size, name)}", first + size - 1 - place
    for step in (1, -1):
        rotated = first + (place + step) % max(size, 1)
        yield f"{what}s rotated by {abs(step)} within each {name}", rotated
