"""Where a drawn mask was read: what rows, and keys, see is compared with all of its rows and columns."""

from __future__ import annotations

import numpy as np

from refattn.oracle.imaging.maps import describe_map, most_common, ranges

EXACT, AGREE = 0.985, 0.9
LEAST, MOST_ROWS = 24, 240  # pairs that tell a row or a key; wrong rows that are looked at
MOST_TILES, EXAMPLES = 40, 6
ROW_TILES = (64, 32, 16)
TILES = (128, 96, 64, 48, 32, 16, 8)


def mask_map(view, name, wrong, judged, limits):
    """Words for the keys, or the rows, of the mask that wrong pairs (B, H, T, S) took; "" where they took no
    such. `limits`: pairs that all but the mask leaves.
    """
    whole = [np.asarray(getattr(view.outline_of(n), name)).astype(bool) for n in range(len(view.sequences))]
    if any(array.ndim != 4 for array in whole):
        return ""
    own = np.zeros(view.shape, bool)
    for n, (array, s) in enumerate(zip(whole, view.sequences, strict=True)):
        part = array[s.entry][np.ix_(s.heads, s.rows)]
        own[n][tuple(map(slice, part.shape))] = part
    known, got = judged & limits, own ^ wrong
    return _keys(view, own, got, wrong, known) or _rows(view, own, got, wrong, known)


def _keys(view, own, got, wrong, known):
    """The key whose column of the mask each key takes, in the rows that are wrong."""
    rows = wrong.any(-1)
    found = _of_keys(own, got, wrong, known, rows)
    if found is not None:
        return f"at other keys: {_map(*found, 'key')}{_where(rows, view)}"
    for size in ROW_TILES:  # steps that differ by tile of rows
        tile, steps = view.row[0, 0, :, 0] // size, {}
        for n in np.unique(tile):
            of_tile = rows & (tile == n)
            if of_tile.sum() >= LEAST:
                found = _of_keys(own, got, wrong & of_tile[..., None], known, of_tile)
                steps[int(n)] = None if found is None else _step(found[1] - found[0])
        if len(steps) > 1 and None not in steps.values():
            told = ", ".join(f"{step:+d} in tile {n}" for n, step in list(steps.items())[:EXAMPLES])
            return f"at other keys, by tile of {size} rows: key {told}"
    return ""


def _step(steps):
    """The step that nearly all keys share, or None."""
    common = most_common(steps)
    return common if (steps == common).mean() > AGREE else None


def _of_keys(own, got, wrong, known, rows):
    """Keys and those whose mask they take in some rows (B, H, T); None where most take none."""
    flat = lambda array: array[rows].astype(np.float32)
    mine, seen, sure = flat(own), flat(got), flat(known)
    unlike = (sure * seen).T @ (1 - mine) + (sure * (1 - seen)).T @ mine  # (key, key whose mask it takes)
    counts = sure.sum(0)
    at = np.flatnonzero(wrong.any((0, 1, 2)) & (counts >= LEAST))
    if not len(at):
        return None
    best = unlike[at].argmin(-1)
    fits = unlike[at, best] <= (1 - EXACT) * counts[at]
    off = flat(wrong)[:, at]
    explained = (off * (mine[:, best] == seen[:, at])).sum() / max(off.sum(), 1)
    return None if min(fits.mean(), explained) < AGREE else (at[fits], best[fits])


def _rows(view, own, got, wrong, known):
    """The row, head and sequence whose mask each wrong row takes, at the keys that are wrong."""
    keys = np.flatnonzero(wrong.any((0, 1, 2)))
    keys = slice(keys[0], keys[-1] + 1)
    places = np.argwhere(wrong.any(-1))
    if len(places) > MOST_ROWS:
        places = places[np.linspace(0, len(places) - 1, MOST_ROWS).astype(int)]
    at = tuple(places.T)
    seen, sure = (array[at][:, keys].astype(np.float32) for array in (got, known))
    masks = own[..., keys].reshape(-1, seen.shape[1]).astype(np.float32)
    unlike = (sure * seen) @ (1 - masks).T + (sure * (1 - seen)) @ masks.T
    counts = sure.sum(-1)
    # of masks that are as like, that of the own head and sequence
    sequence, head, row = np.unravel_index(np.arange(len(masks)), own.shape[:3])
    b, h, t = at
    elsewhere = (sequence != b[:, None]) * 0.3 + (head != h[:, None]) * 0.2
    best = (unlike + elsewhere).argmin(-1)
    fits = (unlike[np.arange(len(b)), best] <= (1 - EXACT) * counts) & (counts >= LEAST)
    off = wrong[at][:, keys]
    explained = (off & (masks[best] == seen)).sum() / max(off.sum(), 1)
    if min(fits.mean(), explained) < AGREE:
        return ""
    told = []
    for what, wanted, taken in (
        ("sequence", b, sequence[best]),
        ("head", view.heads[h], view.heads[head[best]]),
        ("row", view.row[b, 0, t, 0], view.row[sequence[best], 0, row[best], 0]),
    ):
        if (wanted[fits] != taken[fits]).any():
            told.append(_map(wanted[fits], taken[fits], what))
    at_keys = (
        "" if keys.stop - keys.start > 0.9 * view.num_keys else f", at keys {keys.start} to {keys.stop - 1}"
    )
    return f"at another place: {', '.join(told)}{at_keys}{_where(wrong.any(-1), view)}" if told else ""


def _where(rows, view):
    """Which rows (B, H, T) are meant, where it is one stretch of them; else ""."""
    at = np.flatnonzero(rows.any((0, 1)))
    count = at[-1] - at[0] + 1
    if count > 0.9 * view.num_rows or len(at) < 0.9 * count:
        return ""
    return f", in rows {view.row[0, 0, at[0], 0]} to {view.row[0, 0, at[-1], 0]}"


def _map(wanted, got, what):
    """Words for what was taken for what: a rule, steps by tile, or examples."""
    pairs = np.unique(np.stack([wanted, got], -1), axis=0)
    wanted, got = pairs.T
    words, rule = describe_map(wanted, got, what)
    steps = np.unique(got - wanted)
    if rule and len(steps) > 1:
        return words
    if len(steps) == 1 and steps[0]:
        step = f"{what} {'+' if steps[0] > 0 else '-'} {abs(steps[0])}"
        return f"{step} for {what}s {ranges(wanted.tolist())}"
    common = most_common(got - wanted)
    if (np.clip(wanted + common, got.min(), got.max()) == got).mean() > EXACT:
        step = f"{what} {'+' if common > 0 else '-'} {abs(common)}"
        return f"{step}, no less than {got.min()} and no more than {got.max()}"
    for size in TILES:
        tiles, step = wanted // size, got - wanted
        each = [(n, np.unique(step[tiles == n])) for n in np.unique(tiles)]
        if len(each) <= MOST_TILES and all(len(of) == 1 for _, of in each):
            listed = [f"{of[0]:+d} in tile {n}" for n, of in each if of[0]]
            more = ", ..." if len(listed) > EXAMPLES else ""
            return f"{what} {', '.join(listed[:EXAMPLES])}{more} (tiles of {size} {what}s)"
    return words
