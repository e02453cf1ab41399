"""Findings about rows that see other keys than they should: which rule, or which keys of which rows."""

from __future__ import annotations

import dataclasses

import numpy as np

from refattn.oracle.imaging.compare import EXTRA, MISSING, RIGHT
from refattn.oracle.imaging.edges import edges_in_words
from refattn.oracle.imaging.factors_in_words import changed_pairs
from refattn.oracle.imaging.lost_keys import gained_keys_in_words, lost_keys_in_words
from refattn.oracle.imaging.maps import most_common
from refattn.oracle.imaging.segment_models import first_tile_lost
from refattn.oracle.imaging.view import last_key
from refattn.oracle.imaging.visibility_models import explain_visibility

NEARLY_ALL = 0.9
MOST = 0.8  # of the rows or pairs that a sentence speaks of
KIND = "visible keys"
SMALL = 0.05  # logarithm of a factor
FEW, MANY = 0.2, 32  # a share; rows over which an average is taken
SAYING_MORE = ("lengths", "masks", "positions", "widths")  # families of models that say more than which keys


SAYING_WHERE = ("tiles", "full_tiles", "arithmetic")  # and those that say in which tiles


def explain_unseen_rows(description):
    """Rows that are 0 because a rule of visibility hides all their keys."""
    l, view = description.ledgers, description.view
    lost = l.zero & ~description.explained
    seeing = view.visible.any(-1)
    if not lost.any() or lost.sum() >= NEARLY_ALL * seeing.sum():  # a rule that hides all says nothing
        return
    open_rows = ~description.explained[..., None]
    missing = ((l.labels == MISSING) & open_rows) | (lost[..., None] & view.visible)
    extra = (l.labels == EXTRA) & open_rows
    view.candidate_widths, view.candidate_shifts = (), None
    model = explain_visibility(l, missing, extra, None, l.judged | lost[..., None])
    if model is None:
        return
    rule = description.regions.find(missing | extra, view.exists & open_rows)
    note = f"{int(lost.sum()):,} rows lose all their keys and are 0."
    yield _told(description, rule, model, model.words, note)
    description.explained |= (model.change & (missing | extra)).any(-1)


def explain_filled_rows(description):
    """Rows that should see nothing and see keys by a rule that gives keys to other rows, too."""
    l, view = description.ledgers, description.view
    open_rows = ~description.explained[..., None]
    missing, extra = (l.labels == MISSING) & open_rows, (l.labels == EXTRA) & open_rows
    of_empty = extra & view.empty[..., None]
    if not of_empty.any() or np.array_equal(of_empty, extra):
        return
    view.candidate_widths, view.candidate_shifts = _widths(description, missing), None
    model = explain_visibility(l, missing, extra, None)
    if model is None:
        return
    rule = description.regions.find(missing | extra, l.judged & view.exists & open_rows)
    rows = int((of_empty.any(-1)).sum())
    yield _told(description, rule, model, model.words, f"{rows:,} rows that should see no key see some.")
    description.explained |= (model.change & (missing | extra)).any(-1)


def explain_visible_keys(description):
    """Visible sets that are other ones, as a rule says, or as the region of missing and extra keys."""
    l, view = description.ledgers, description.view
    open_rows = ~description.explained[..., None]
    missing, extra = (l.labels == MISSING) & open_rows, (l.labels == EXTRA) & open_rows
    missing &= ~first_tile_lost(l)  # it follows from what is said of the others
    if not missing.any() and not extra.any():
        return
    view.candidate_widths = _widths(description, missing)
    view.candidate_shifts = _shifts(description, missing | extra)
    constant = _constant_extra_score(description, extra)
    model = explain_visibility(l, missing, extra, description.regions) if constant is None else None
    words, note = _plain(description, missing, extra, l.judged & open_rows, model)
    if words or model is not None:
        rule = description.regions.find(missing | extra, l.judged & view.exists & open_rows)
        notes = (
            note,
            changed_pairs(missing, extra),
            sum_note(description, missing),
            _extra_score(description, extra),
        )
        note = " ".join(filter(None, notes))
        minor = description.is_minor(missing | extra)
        yield _told(description, rule, None if words else model, words or model.words, note, minor)
        return
    minor = [description.is_minor(pairs) for pairs in (missing, extra)]
    if missing.any() and extra.any() and constant is None and not any(minor):
        yield _exchanged(description, missing, extra, open_rows)
        return
    yield from _missing(description, missing, open_rows)
    yield from _extra(description, extra, constant, open_rows)


def _plain(description, missing, extra, judged, model):
    """Words for the same keys that all rows lose, or gain, with what is to be noted; "" where it is no such
    matter, or where a model says it shorter.
    """
    if missing.any() and extra.any():
        return "", ""
    keys_in_words = gained_keys_in_words if extra.any() else lost_keys_in_words
    words, entries, tiles = keys_in_words(description.view, missing | extra, judged)
    if (
        words
        and missing.any()
        and description.view.dropped is None
        and _counted(description.ledgers, missing)
    ):
        for verb, whose in (
            ("get no weight", "count in the normaliser, but their values are"),
            ("gets no weight", "counts in the normaliser, but its value is"),
        ):
            words = words.replace(f" {verb} ", f" {whose} not added ")
        return words + tiles, ""
    if not words or (model is not None and entries > 1 and (model.placed or model.family in SAYING_MORE)):
        return "", ""
    if model is not None and not tiles and model.family not in SAYING_MORE and missing.any():
        return "", ""
    note = _counted_twice(description, extra) if extra.any() else ""
    every_key = words.startswith(f"keys 0 to {description.view.num_keys - 1} of")
    if model is not None and model.words.endswith("is not applied") and every_key:
        return "", ""
    more = model is not None and (model.family in SAYING_MORE or (extra.any() and not note))
    return words + (f", as if {model.words}" if more else tiles), note


def _counted_twice(description, extra):
    """Whether the keys that some rows gain count twice in the others."""
    l, view = description.ledgers, description.view
    keys = extra.any((0, 1, 2))
    factors = (l.ratio - l.shift[..., None])[view.visible & l.judged & keys & ~extra.any(-1, keepdims=True)]
    factors = factors[np.isfinite(factors)]
    if factors.size < 8 or (np.abs(factors - np.log(2)) < SMALL).mean() < MOST:
        return ""
    description.explained |= (view.visible & keys).any(-1)
    return "Rows that should see them count them twice."


def _told(description, rule, model, words, note, minor=False):
    """The finding; where the words hold the place, the rule is not told."""
    if model is None or model.placed or model.family in SAYING_WHERE or len(rule.statements) > 1:
        rule = dataclasses.replace(rule, statements=())
    return description.finding(rule, KIND, words, note, model=True, minor=minor)


def _shifts(description, wrong):
    """Shifts of the positions of each sequence, (B, 1, 1, 1), that the last keys used in its wrong rows
    suggest.
    """
    view, there = description.view, _there(description)
    change = last_key(there) - last_key(view.visible)
    shifts = np.zeros((view.shape[0], 1, 1, 1), int)
    for n in range(view.shape[0]):
        rows = wrong[n].any(-1) & there[n].any(-1) & view.visible[n].any(-1)
        if rows.any():
            shifts[n] = most_common(change[n][rows])
    return shifts


def _there(description):
    measured = description.measured
    return (measured.weights > 4 * measured.floor) & description.view.exists


def _widths(description, missing):
    """Widths of a window that the first keys used in rows with missing keys suggest."""
    view, there = description.view, _there(description)
    some = missing.any(-1) & there.any(-1)
    if not some.any():
        return ()
    widths = (view.position[..., 0] - there.argmax(-1))[some]
    values, counts = np.unique(widths, return_counts=True)
    return tuple(int(v) for v in values[np.argsort(-counts)][:2] if v >= 0)


# where no rule is known


def _exchanged(description, missing, extra, open_rows):
    """Rows that lose some keys and gain others: one cause, told at once."""
    l, view = description.ledgers, description.view
    lost = description.regions.find(missing, l.judged & (view.weights > 0) & open_rows)
    gained = description.regions.find(extra, l.judged & (view.weights == 0) & open_rows)
    rows = (missing | extra).any(-1)
    place = description.of_rows(rows, description.rows & ~description.explained)
    keys = lambda rule: f"keys where {rule}" if rule.statements else "keys all over"
    nature = "rows see other keys than they should: they lose some and gain others"
    if str(lost) != str(gained):
        nature = f"rows see other keys than they should: they lose {keys(lost)}; they gain {keys(gained)}"
    else:
        place = lost if lost.statements else place
    note = (
        edges_in_words(l, rows),
        changed_pairs(missing, extra),
        sum_note(description, missing),
        _extra_score(description, extra),
    )
    return description.finding(place, KIND, nature, " ".join(filter(None, note)))


def _missing(description, wrong, open_rows):
    l = description.ledgers
    if not wrong.any():
        return
    rule = description.regions.find_places(wrong, l.judged & (description.view.weights > 0) & open_rows)
    note = " ".join(filter(None, (edges_in_words(l, wrong.any(-1)), sum_note(description, wrong))))
    nature = "keys that should be seen get no weight"
    yield description.finding(rule, "missing keys", nature, note, minor=description.is_minor(wrong))


def sum_note(description, missing):
    """Whether the sum of a row counts the keys that are missing, (B, H, T, S)."""
    counts = _counted(description.ledgers, missing)
    if counts:
        description.explained |= missing.any(-1)
        return "The normaliser still counts the lost keys: the weights of these rows sum to less than 1."
    return "" if counts is None else "The normaliser leaves out the lost keys too, as if they did not exist."


def _counted(ledgers, missing):
    """Whether the sums of rows with missing keys are less by what these should weigh; None if unknown."""
    tolerance = ledgers.measured.tolerance[..., 0]
    lost = np.where(missing, ledgers.view.weights, 0).sum(-1)
    rows = missing.any(-1) & ~ledgers.zero & ~ledgers.nan
    use, off = rows & (lost > 20 * tolerance), ledgers.sum - ledgers.right_sum
    if use.any():
        near = lambda change: (np.abs(off - change)[use] <= 4 * tolerance[use]).mean() > MOST
        return True if near(-lost) else False if near(0) else None
    if rows.sum() < MANY:
        return None
    share = -(off * lost)[rows].sum() / (lost[rows] ** 2).sum()  # over many rows, rounding evens out
    return True if abs(share - 1) < FEW else False if abs(share) < FEW else None


def values_left_out(description):
    """Whether rows are right but for the same few keys, whose weight is counted and whose values are not."""
    l = description.ledgers
    open_rows = ~description.explained[..., None]
    missing, other = (
        (l.labels == MISSING) & open_rows,
        (l.labels > RIGHT) & (l.labels != MISSING) & open_rows,
    )
    if not missing.any() or other.sum() > FEW * missing.sum() or not _counted(l, missing):
        return False
    return bool(lost_keys_in_words(description.view, missing, l.judged & open_rows)[0])


def _extra(description, wrong, constant, open_rows):
    """`constant`: the one score with which all hidden keys count, or None."""
    l, view = description.ledgers, description.view
    if not wrong.any():
        return
    rule = description.regions.find_places(wrong, l.judged & (view.weights == 0) & open_rows)
    note, nature = edges_in_words(l, wrong.any(-1)), "keys that should be hidden get weight"
    if constant is None:
        note = " ".join(filter(None, (note, _extra_score(description, wrong))))
    else:
        cap, meaning = view.outline_of(0).softcap, ""
        if cap and abs(constant + cap) < 1e-2 * cap:
            meaning = " (minus the softcap: they are hidden before the softcap is applied)"
        count = f"count with a score of {constant:.4g}{meaning} in place of -inf"
        nature = f"keys that should be hidden {count}, whatever their key is"
    yield description.finding(rule, "extra keys", nature, note, minor=description.is_minor(wrong))


def _extra_scores(description, wrong):
    """Scores with which hidden keys count, up to what the right keys of the row share, where that is known,
    and their tolerance; each (B, H, T, S).
    """
    l, measured, view = description.ledgers, description.measured, description.view
    score = np.log(measured.weights) - l.shift[..., None] + view.lse[..., None]
    tolerance = 3 * np.broadcast_to(measured.tolerance, view.shape)
    return score, wrong & np.isfinite(score), tolerance


def _constant_extra_score(description, wrong):
    """The one score with which all hidden keys count, or None."""
    score, at, tolerance = _extra_scores(description, wrong)
    if at.sum() < 8:
        return None
    middle = float(np.median(score[at]))
    near = np.abs(score[at] - middle) <= tolerance[at] + 1e-3
    return middle if near.mean() > MOST else None


def _extra_score(description, wrong):
    """Whether hidden keys count with their own score."""
    score, at, tolerance = _extra_scores(description, wrong)
    at = at & np.isfinite(description.view.score)
    if not at.any():
        return ""
    own = np.abs(score - description.view.score)[at] <= tolerance[at]
    return "The gained keys count with their own score." if own.mean() > MOST else ""
