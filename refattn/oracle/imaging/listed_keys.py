"""Places that no short rule covers, listed: which keys of which sequence, whatever the row and the head."""

from __future__ import annotations

import numpy as np

from refattn.oracle.imaging.maps import ranges
from refattn.oracle.imaging.place_words import ordinal
from refattn.oracle.imaging.region import Rule

GOOD, BETTER = 0.97, 0.02  # F1 of a list; by which it exceeds that of a rule
MANY = 3  # statements of a rule
MOST_SEQUENCES, MOST_RUNS = 6, 8
LISTED = "the key is one of "
LEAST_TERMS = 3  # of a progression


def rule_or_list(regions, wrong, universe) -> Rule:
    """The best rule for wrong pairs (B, H, T, S), or the list of their keys where that says it better."""
    rule = regions.find(wrong, universe)
    if rule.fit > 1 - BETTER and len(rule.statements) < MANY:
        return rule
    universe = np.broadcast_to(universe, regions.view.shape)
    wrong = np.broadcast_to(wrong, regions.view.shape) & universe
    seen = universe.sum((1, 2))
    keys = wrong.sum((1, 2)) > 0.5 * np.maximum(seen, 1)  # (B, S)
    inside = universe & keys[:, None, None]
    if (keys | ~(seen > 0)).all():  # all of them are no list
        return rule
    hit = int((inside & wrong).sum())
    listed = Rule((_words(keys, seen > 0),), inside, int(wrong.sum()), hit, int((inside & ~wrong).sum()))
    runs = (np.diff(keys.astype(int), prepend=0, axis=-1) > 0).sum(-1)
    regular = not listed.statements[0].startswith(LISTED)
    short = regular or (keys.any(-1).sum() <= MOST_SEQUENCES and runs.max() <= MOST_RUNS)
    if short and listed.fit > GOOD and listed.fit >= rule.fit - BETTER / 2:
        return listed
    return rule


def _words(keys, seen):
    """The keys (B, S) in words."""
    every = [np.flatnonzero(own) for own in keys]
    if words := _progression(keys, seen):
        return words
    last = seen & (np.arange(keys.shape[1]) == (seen * np.arange(keys.shape[1])).max(-1, keepdims=True))
    if (keys | ~last).all() and (words := _progression(keys & ~last, seen & ~last)):
        return f"{words}, or the last one of its sequence"
    own = {n: ranges(of.tolist()) for n, of in enumerate(every) if len(of)}
    if len(set(own.values())) == 1 and len(own) == len(every):
        return LISTED + next(iter(own.values()))
    return LISTED + "; ".join(f"{of} in sequence {n}" for n, of in own.items())


def _progression(keys, seen):
    """Words for keys (B, S) that are an arithmetic progression in all sequences; "" where they are not."""
    every = [np.flatnonzero(own) for own in keys]
    steps = {int(step) for own in every for step in np.diff(own)}
    if len(steps) != 1 or max(map(len, every)) < LEAST_TERMS:
        return ""
    first, step, numbers = (
        min(int(own[0]) for own in every if len(own)),
        steps.pop(),
        np.arange(keys.shape[1]),
    )
    if (keys != (seen & (numbers >= first) & ((numbers - first) % step == 0))).any():
        return ""
    if step == 1:
        return f"the key is at least {first}"
    if first % step == 0:
        return f"the key is a multiple of {step}" + (f", from key {first} on" if first else "")
    return f"the key is {first}, {first + step}, {first + 2 * step} and so on (every {ordinal(step - 1)})"
