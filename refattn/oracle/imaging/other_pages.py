"""Explanations of a wrong row by other pages, tiles or places of keys and values."""

from __future__ import annotations

import numpy as np

from refattn.oracle.imaging.explanations import FITS_MOST, FITS_RMS, LEAST, Fit, best_of, counts_of, cumsum

MOST_UNKNOWNS = 700
SPARE_ROWS = 8  # rows that are left to test values solved for
MOST_NUMBERS = 2**25  # of the pages of all query heads
MOST_ROWS = 64  # of which pages are looked for


def other_pages(reading, rows):
    """Which pages of the pool each row reads: non-negative least squares over all, the heads stacked.

    A page counts wholly, or as far as the last page that the row sees is filled.
    """
    view, n = reading.view, rows.sequence
    if view.pages is None or len(rows.rows) > MOST_ROWS or not np.array_equal(view.raw, view.score):
        return
    size, pages = view.page_size, view.pages[n, 0, 0]
    if len(view.heads) * sum(array[:, 0].size for array in view.arrays[1:3]) > MOST_NUMBERS:
        return
    keys, values = (_of_heads(view, array) for array in view.arrays[1:3])
    if keys.shape[2] != size:
        return
    query = view.operand("query")[n][:, rows.rows] * view.outline_of(n).scale
    weights = np.where(rows.visible, rows.numerator, 0.0)
    holds, odds = np.zeros(rows.shape[:2], bool), np.full(rows.shape[:2], -np.inf)
    read = {}
    for r in range(len(rows.rows)):
        if reading.left() < 0:
            break
        stop = int(rows.stop[r])
        parts = [slice(0, size)] + ([slice(0, stop % size)] if stop % size else [])
        p = np.einsum("hd,hpsd->hps", query[:, r], keys) - rows.base[:, r, None, None]
        p = np.exp(np.clip(p, -700, 60))
        mass = np.concatenate([p[..., part].sum(-1) for part in parts], axis=1)  # (H, pages)
        flow = [
            np.einsum("hps,hpse->hpe", p[..., part], values[:, :, part][..., reading.columns])
            for part in parts
        ]
        times, gain = _pages_of_row(rows, r, mass, np.concatenate(flow, axis=1))
        if gain < 0:
            continue
        holds[:, r], odds[:, r] = True, gain
        total = (mass * times).sum(-1) + rows.sink[:, r]
        of_page = times.reshape(len(parts), -1).sum(0)
        own = np.where(rows.visible[:, r], rows.denominator[:, r], 0.0) * of_page[np.maximum(pages, 0)]
        weights[:, r] = own / total[:, None]
        named, used = set(pages[:stop].tolist()) - {-1}, set(np.flatnonzero(of_page).tolist())
        read[int(rows.rows[r])] = {
            "instead of": sorted(named - used),
            "read": sorted(used - named),
            "all": used,
        }
    reading.pages_of_rows[n] = read
    yield Fit("other pages", holds, odds, lambda: weights, None, {}, 0.0)


def _of_heads(view, pool):
    """Pages of each query head, (H, pages, page size, dim)."""
    pool = np.nan_to_num(np.asarray(pool, np.float64))
    return np.moveaxis(pool, 0, 1)[view.heads // view.group_size]


def _pages_of_row(rows, r, mass, flow):
    """How often each page counts in a row, and the evidence for it; below 0 where nothing fits."""
    output, deviation = rows.output[:, r], rows.deviation[:, r]
    a = (np.swapaxes(flow, 1, 2) - output[..., None] * mass[:, None]) / deviation[..., None]
    a = a.reshape(output.size, -1)
    b = (rows.sink[:, r, None] * output / deviation).reshape(-1)
    heavy = 1e3 * np.abs(a).max(initial=0.0)  # the equation that sets the unit
    times = counts_of(np.vstack([a, heavy * mass.mean(0)]), np.append(b, heavy))
    if times is None:
        return None, -1.0
    times = _in_whole_pages(times)
    with np.errstate(all="ignore"):
        got = np.einsum("p,hpe->he", times, flow) / ((mass * times).sum(-1) + rows.sink[:, r])[:, None]
        off = np.nan_to_num((got - output) / deviation, nan=np.inf)
    return times, stacked_evidence(rows, r, off, (times > 0).sum() * np.log(len(times)))


def stacked_evidence(rows, r, off, cost):
    """Logarithm of the odds that what a fit of all heads of a row leaves, in deviations, is no chance."""
    rms = np.sqrt((off**2).mean())
    if not (rms <= FITS_RMS and np.abs(off).max() <= FITS_MOST):
        return -1.0
    before = np.sqrt((((rows.right[:, r] - rows.output[:, r]) / rows.deviation[:, r]) ** 2).mean())
    return off.size * np.log(max(before, LEAST) / max(rms, LEAST)) - cost


def _in_whole_pages(x):
    there = x > 0.02 * x.max(initial=0.0)
    if not there.any():
        return x
    unit = np.median(x[there])
    near = np.rint(x / unit)
    return np.where(np.abs(x / unit - near) < 0.1, near, x / unit)


def value_tables(reading, rows):
    """The right weights on other values: those that would give the outputs of all rows of a key/value head.

    Solved where the rows outnumber the keys. `reading.value_changes` keeps what was found, (S, E) a head.
    """
    H, N, S = rows.shape
    right = np.where(rows.visible, rows.numerator, 0.0)
    group = reading.view.heads // reading.view.group_size
    holds, odds = np.zeros((H, N), bool), np.full((H, N), -np.inf)
    for k in np.unique(group):
        of = np.flatnonzero(group == k)
        w = right[of].reshape(-1, S)
        seen = np.flatnonzero(w.max(0, initial=0.0) > 1e-9)
        per_head_values = reading.view.latent and len(of) > 1
        if per_head_values or len(w) < len(seen) + SPARE_ROWS or not np.isfinite(rows.output[of]).all():
            continue
        change = _changes_of_values(rows, of, w[:, seen])
        got = rows.right[of] + (w[:, seen] @ change).reshape(rows.right[of].shape)
        off = (got - rows.output[of]) / rows.deviation[of]
        before = np.sqrt((((rows.right[of] - rows.output[of]) / rows.deviation[of]) ** 2).mean())
        rms = np.sqrt((off**2).mean())
        spare = (len(w) - (change != 0).sum(0)).sum()  # numbers that were not used up
        gain = spare * np.log(max(before, LEAST) / max(rms, LEAST)) - (change != 0).any(-1).sum() * np.log(S)
        if rms <= FITS_RMS and np.abs(off).max() <= 2 * FITS_MOST and gain > 10:
            holds[of], odds[of] = True, gain
            table = np.zeros((S, change.shape[1]))
            table[seen] = change
            reading.value_changes[rows.sequence, int(k)] = table
    yield Fit("other values", holds, odds, lambda: right, None, {}, 0.1)


def _changes_of_values(rows, of, weights):
    """What was added to each value (keys, E), 0 where rounding hides it; `weights` (rows of heads, keys)."""
    E = rows.output.shape[-1]
    deviation = rows.deviation[of].reshape(-1, E)
    scale = 1 / np.maximum(deviation.mean(-1, keepdims=True), 1e-300)
    a, b = weights * scale, (rows.output[of] - rows.right[of]).reshape(-1, E) * scale
    size = np.abs(rows.value[of[0]]).max(initial=1e-30)
    inverse = np.linalg.inv(a.T @ a + np.eye(a.shape[1]) * 1e-2 / size**2)
    change = inverse @ (a.T @ b)
    return np.where(np.abs(change) > 6 * np.sqrt(np.diag(inverse))[:, None], change, 0.0)


def other_tiles(reading, rows):
    """The right weights on the values of other tiles or pages: non-negative least squares, heads stacked."""
    view, n = reading.view, rows.sequence
    H, N, S = rows.shape
    right = np.where(rows.visible, rows.numerator, 0.0)
    for size, name, pool in _pools(reading, rows):
        count, sources = -(-S // size), pool.shape[1]
        if count * sources > min(2 * H * rows.output.shape[-1], MOST_UNKNOWNS):
            continue
        tiles = np.zeros((H, N, count * size))
        tiles[..., :S] = right
        tiles = tiles.reshape(H, N, count, size)
        own = view.pages[n, 0, 0, ::size] if name == "pages" else np.arange(count)
        holds, odds, moves = np.zeros((H, N), bool), np.full((H, N), -np.inf), {}
        for r in range(N):
            if reading.left() < 0 or (r >= 3 and not holds.any()):
                break
            found, gain = _tiles_of_row(rows, r, tiles[:, r], pool, own)
            if gain > 0:
                holds[:, r], odds[:, r] = True, gain
                moves |= {pair: True for pair in found}
        if holds.any():
            reading.tile_moves[f"values of other {name}", n] = list(moves)
            yield Fit(f"values of other {name}", holds, odds, lambda: right, None, {}, 0.05)


def _pools(reading, rows):
    """Tiles that values may come from: size, words, values (H, tiles, size, E)."""
    view = reading.view
    if view.pages is not None and not view.latent and view.arrays[2].shape[2] == view.page_size:
        yield view.page_size, "pages", _of_heads(view, view.arrays[2])[..., reading.columns]
    for size in (16, 32, 48, 64, 96, 128):
        if size < rows.shape[-1]:
            yield size, f"tiles of {size} keys", _tiles(rows.value, size)


def _tiles_of_row(rows, r, weights, pool, own):
    """Pairs of a tile and that whose values it multiplies instead, and the evidence for them.

    `weights` (H, tiles, size); `own` the tile of the pool that each should multiply.
    """
    used = np.flatnonzero(weights.max((0, 2)) > 1e-9)
    if not len(used):
        return [], -1.0
    deviation = rows.deviation[:, r]
    flow = np.einsum("hts,huse->hetu", weights[:, used], pool) / deviation[:, :, None, None]
    target = (rows.output[:, r] / deviation).reshape(-1)
    a = flow.reshape(len(target), -1)
    times = counts_of(a, target)
    if times is None:
        return [], -1.0
    times = np.rint(times)
    table = times.reshape(len(used), -1)
    source = table.argmax(-1)
    changed = (source != own[used]).sum() + abs(table.sum() - len(used))
    gain = stacked_evidence(rows, r, a @ times - target, (changed + 1) * np.log(a.shape[1]))
    return [(int(own[t]), int(u)) for t, u in zip(used, source, strict=True) if u != own[t]], gain


def _tiles(value, size):
    """Values (H, S, E) in tiles (H, tiles, size, E), the last one filled with 0."""
    H, S, E = value.shape
    padded = np.zeros((H, -(-S // size) * size, E))
    padded[:, :S] = value
    return padded.reshape(H, -1, size, E)


def shifted_values(rows, shift, name, budget):
    """The right weights on values `shift` keys further from some key on (or up to it)."""
    H, N, S = rows.shape
    E = rows.output.shape[-1]
    source = (np.arange(S) + shift) % S
    right = np.where(rows.visible, rows.numerator, 0.0)
    squares, most = np.full((2, H, N, S + 1), np.inf), np.full((2, H, N, S + 1), np.inf)
    for h in range(H):
        change = rows.value[h][source] - rows.value[h]
        for part in rows.chunks(S * E):
            if budget() < 0:
                break
            cum = cumsum(right[h, part, :, None] * change)
            off = (rows.output[h, part] - rows.right[h, part])[:, None]
            for way, got in enumerate((cum, cum[:, -1:] - cum)):
                left = ((got - off) / rows.deviation[h, part, None]) ** 2
                squares[way, h, part], most[way, h, part] = left.sum(-1), np.sqrt(left.max(-1))
    fits = []
    for way, words in enumerate(("up to", "from")):
        for fit in best_of(
            f"{name} {words} a key", rows, squares[way], most[way], lambda choice: rows.visible
        ):
            fit.weights = lambda: right
            fit.determined = None
            fit.cost += 0.05
            fit.says["shift"] = np.full((H, N), shift)
            fits.append(fit)
    return fits
