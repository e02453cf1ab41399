"""Visible sets of a kernel that reads a drawn mask elsewhere, inverted, in part or not at all."""

from __future__ import annotations

import numpy as np

from refattn.oracle.imaging.features import of_row_tile
from refattn.oracle.imaging.mask_words import masks_in_words
from refattn.oracle.imaging.planes import planes_from_elsewhere
from refattn.oracle.imaging.visibility_tiles import ROW_TILES, key_tiles


def masks(view, rules):
    for name, words in (("mask", "the mask"), ("bias", "the -inf of the bias")):
        if (own := view.hidden_by(name)) is None:
            continue
        other = view.hidden_by("bias" if name == "mask" else "mask")
        rest = view.exists if other is None else view.exists & ~other
        with_hidden = lambda hidden, rest=rest: rules.visible(holes=rest & ~hidden)
        yield from _read_otherwise(view, name, words, own, with_hidden)
        yield from _skipped_tiles(view, rules, words, own, with_hidden)
        if any(side is not None for side in (rules.left, rules.right, rules.chunk)):
            seen = rules.visible(holes=rest) | rules.visible(left=None, right=None, chunk=None)
            yield f"a pair is seen where {words} or the other rules allow it, not where both do", 0.01, seen
    if view.dropped is not None:
        with_dropped = lambda dropped: rules.visible(dropped=dropped)
        words = "the keep mask of dropout"
        yield from _read_otherwise(view, "dropout_mask", words, view.dropped, with_dropped)


def _read_otherwise(view, name, words, own, visible):
    """`own` (B, H, T, S) is what the mask hides; `visible(hidden)` is what is seen if it hides others."""
    not_applied = "dropout is not applied" if name == "dropout_mask" else f"{words} is not applied"
    yield not_applied, 0.0, visible(np.zeros_like(own))
    yield f"{words} is inverted", 0.0, visible(~own & view.exists)
    for where, plane in planes_from_elsewhere(view, name):
        hidden = np.isneginf(plane) if name == "bias" else ~plane.astype(bool)
        yield f"{words} is {where}", 0.02, visible(hidden)
    if name != "bias":
        for where, plane in masks_in_words(view, name):
            yield f"{words} is {where}", 0.02, visible(~plane)


def _skipped_tiles(view, rules, words, own, visible):
    """Masks that are looked at only from the position of a tile's first row on, as a causal limit is."""
    sizes = [size for size in ROW_TILES if size < view.num_rows]
    first = {size: of_row_tile(view, view.position, size, "first") for size in sizes}
    if rules.right is None and view.num_keys >= view.num_rows:
        for size in sizes:
            for tile in key_tiles(view):
                if tile < view.num_keys:
                    yield (
                        f"{words} is not looked at in tiles of {tile} keys that lie wholly before "
                        f"the position of the first row of a tile of {size} rows",
                        0.02,
                        visible(own & (view.key // tile * tile + tile - 1 >= first[size])),
                    )
    for size in sizes:
        yield (
            f"{words} is not looked at for keys before "
            f"the position of the first row of each tile of {size} rows",
            0.015,
            visible(own & (view.key >= first[size])),
        )
