"""Scores that are wrong: the families of models, and which model explains the scores that were measured.

A kernel computes capped(raw) + ALiBi + bias. A model replaces one operand, and may fit one number. What the
measured weights say of the scores, up to one number a row, decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refattn.oracle.imaging.latent_scores import parts_from_elsewhere
from refattn.oracle.imaging.score_curves import curved
from refattn.oracle.imaging.score_cuts import clipped, saturated
from refattn.oracle.imaging.score_fits import components, multiplied, multiplied_by_part, multiplied_in_part
from refattn.oracle.imaging.score_formats import rounded
from refattn.oracle.imaging.score_offsets import one_number_each
from refattn.oracle.imaging.score_operands import from_elsewhere
from refattn.oracle.imaging.score_places import shifted_by_sequence, whole_distances
from refattn.oracle.imaging.score_quantised import quantised
from refattn.oracle.imaging.score_slips import left_out_or_doubled
from refattn.oracle.imaging.score_steps import stepped
from refattn.oracle.imaging.score_tables import over_other_axes, tables
from refattn.oracle.imaging.score_terms import bias_of_one_place, bias_read_elsewhere
from refattn.oracle.imaging.score_tiles import other_tile_layouts
from refattn.oracle.imaging.stale_weights import weights_of_other_tiles
from refattn.oracle.imaging.wrong_rows import WrongRows

EXPLAINS = 0.9  # of the wrong pairs, at least
SURE, CLEARLY = 0.98, 0.02  # below the first, less simple families may explain more, by the second at least

# The simplest first; a later one is asked where none before it explains nearly all, and must explain more.
FAMILIES = (
    left_out_or_doubled,
    from_elsewhere,
    parts_from_elsewhere,
    weights_of_other_tiles,
    over_other_axes,
    saturated,
    multiplied,
    clipped,
    shifted_by_sequence,
    whole_distances,
    multiplied_in_part,
    components,
    multiplied_by_part,
    rounded,
    other_tile_layouts,
    quantised,
    stepped,
    one_number_each,
    bias_of_one_place,
    bias_read_elsewhere,
    curved,
    tables,
)


@dataclass(frozen=True, eq=False)
class Explanation:
    """What explains wrong scores, its share of the wrong pairs, how many numbers it fitted, and whether it
    holds in the whole rows: it says then by itself which of their pairs are wrong.
    """

    kind: str
    words: str
    share: float
    numbers: int = 0
    whole: bool = False


def explain_scores(rows: WrongRows) -> list[Explanation]:
    """What explains the wrong scores, best first; empty where nothing does."""
    best = []
    for family in FAMILIES:
        found = []
        for model in family(rows):
            if not rows.in_time("what is wrong with the scores"):
                break
            with np.errstate(all="ignore"):
                share = rows.explains(model.scores) if rows.differ(model.scores) else 0.0
            if share >= EXPLAINS:
                whole = model.whole and rows.holds_where_right(model.scores)
                found.append(Explanation(model.kind, model.words, share, model.numbers, whole))
        found.sort(key=lambda e: (-round(e.share - 0.02 * e.numbers, 2), e.numbers, not e.whole))
        if found and (not best or found[0].share > best[0].share + CLEARLY):
            best = found
        if best and best[0].share >= SURE:
            break
    return best
