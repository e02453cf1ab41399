"""60 faults planted in kernels of our own: 12 base kernels in float32 NumPy, each with a `fault` switch.

`FAULTS` lists the faulty kernels, `CORRECT` the same kernels (same tile sizes) without a fault. `CASES[name]` holds the sizes of
one call on which the fault shows, `make_calls(name)` builds that call (some faults need several calls in a row: the last one counts,
or any of them where `CASES[name]["any"]`).

Every kernel is a plain function with the keyword signature of the front door that it imitates. Kernels that keep a workspace or a
race between calls keep it in a `state` of their own; `kernel.reset()` brings it back to the state of a fresh process.
"""

import inspect
import math
from types import SimpleNamespace

import numpy as np

F = np.float32
NEG = F(-np.inf)
BIG = 1 << 40

ORDER = ("bias", "mask", "scale", "causal", "window", "chunk", "softcap", "alibi_slopes", "sinks", "kv_lengths", "q_offset",
         "dropout_mask", "dropout_rate")  # fmt: skip
ARRAYS = {
    "dense": ("query", "key", "value"),
    "paged": ("query", "key_pages", "value_pages"),
    "packed": ("query", "key", "value"),
    "latent": ("q_nope", "q_rope", "kv_latent", "k_rope", "w_uk", "w_uv"),
}
NEEDED = {"dense": (), "paged": ("block_table", "kv_lengths"), "packed": ("cu_q", "cu_kv"), "latent": ()}


# ---------------------------------------------------------------------------------------------------------------------------------
# What all kernels share: options of one sequence, visibility, values that are not finite
# ---------------------------------------------------------------------------------------------------------------------------------


def ceil_div(a, b):
    return -(-a // b)


def options_of(opt, *, heads, rows, keys, head_dim, length, offset, index=(), batch=(), view=None):
    """The options of one sequence as plain numbers and (heads, rows, keys) views."""

    def square(array):
        if array is None:
            return None
        array = np.asarray(array)
        if view is not None:
            return view(array)
        return np.broadcast_to(array, batch + (heads, rows, keys))[index]

    left, right = opt.get("window") or (None, None)
    slopes, sinks = opt.get("alibi_slopes"), opt.get("sinks")
    if slopes is not None:
        slopes = np.asarray(slopes, dtype=F)
        slopes = np.broadcast_to(slopes, batch + (heads,))[index] if view is None else slopes.reshape(-1)[-heads:]
    scale = opt.get("scale")
    return SimpleNamespace(
        scale=F(1 / math.sqrt(head_dim)) if scale is None else F(scale),
        left=BIG if left is None else min(int(left), BIG),
        right=0 if opt.get("causal") else BIG if right is None else min(int(right), BIG),
        causal=bool(opt.get("causal")),
        chunk=opt.get("chunk") and int(opt["chunk"]),
        softcap=None if opt.get("softcap") is None else F(opt["softcap"]),
        slopes=slopes,
        sinks=None if sinks is None else np.asarray(sinks, dtype=F),
        length=int(length),
        offset=int(offset),
        given_offset=opt.get("q_offset") is not None,
        bias=square(opt.get("bias")),
        mask=square(opt.get("mask")),
        keep=square(opt.get("dropout_mask")),
        rate=F(opt.get("dropout_rate") or 0.0),
    )


def seen(o, p, j, *, length=None, chunk_of=None, left_from=None):
    """(rows, keys): positions p may see keys j, by length, causal, window and chunk."""
    d = j[None, :] - p[:, None]
    ok = (d <= o.right) & (j < (o.length if length is None else length))
    ok = ok & ((d >= -o.left) if left_from is None else (j[None, :] >= left_from[:, None]))
    if o.chunk:
        home = p if chunk_of is None else chunk_of
        ok = ok & (j[None, :] // o.chunk == (home // o.chunk)[:, None])
    return ok


def cap(s, o):
    return s if o.softcap is None else o.softcap * np.tanh(s / o.softcap)


def hide(s, ok):
    """Scores with -inf where hidden, and what is visible in the end."""
    ok = ok & (s != NEG)
    return np.where(ok, s, NEG), ok


def finite(m):
    return np.where(m == NEG, F(0), m)


def ratio(acc, total):
    return np.where(total[..., None] == 0, F(0), acc / total[..., None])


class Specials:
    """p @ v where v may hold NaN or infinity: these are kept apart, and reach the rows that see them."""

    def __init__(self, shape):
        self.shape, self.extra = shape, None

    def times(self, p, ok, v, rows=slice(None)):
        good = np.isfinite(v)
        if good.all():
            return p @ v
        if self.extra is None:
            self.extra = np.zeros(self.shape, F)
        weight = np.broadcast_to(ok, p.shape).astype(F)
        for where, what in ((np.isnan(v), np.nan), (v == np.inf, np.inf), (v == -np.inf, -np.inf)):
            self.extra[:, rows] += np.where(weight @ where.astype(F) > 0, F(what), F(0))
        return p @ np.where(good, v, F(0))

    def add(self, out):
        return out if self.extra is None else out + self.extra


# ---------------------------------------------------------------------------------------------------------------------------------
# Dense 1: rows outside, keys inside (FlashAttention-2), every option
# ---------------------------------------------------------------------------------------------------------------------------------


def dense_rows(q, k, v, o, *, bm, bn, fault, state):
    H, T, _ = q.shape
    S, E, group = k.shape[1], v.shape[2], H // k.shape[0]
    out, lse = np.zeros((H, T, E), F), np.full((H, T), NEG)
    special = Specials(out.shape)
    floor = F(-1e30) if fault == "hidden_counts_one" else NEG
    lost = None
    if fault == "race" and T > 0 and ceil_div(S, bn) > 1:
        rng = state.setdefault("rng", np.random.default_rng(20))
        if rng.random() < 0.05:
            lost = (int(rng.integers(ceil_div(T, bm))), int(rng.integers(1000)))

    for r0 in range(0, T, bm):
        r1 = min(r0 + bm, T)
        rows, p = slice(r0, r1), o.offset + np.arange(r0, r1)
        if fault == "moved_tail" and r1 - r0 < bm < T:  # the last tile is moved back to be full, its positions are not
            rows, p = slice(T - bm, T), o.offset + np.arange(r0, r0 + bm)
        qt = q[:, rows] * o.scale
        t = len(p)
        m, l, acc = np.full((H, t), floor), np.zeros((H, t), F), np.zeros((H, t, E), F)
        if o.sinks is not None:
            m[:] = np.maximum(o.sinks, floor)[:, None]
            l[:] = (o.sinks > NEG)[:, None]

        lo, hi = max(0, int(p[0]) - o.left), min(o.length, int(p[-1]) + o.right + 1)
        if o.chunk:
            lo, hi = max(lo, int(p[0]) // o.chunk * o.chunk), min(hi, (int(p[-1]) // o.chunk + 1) * o.chunk)
        if fault == "right_edge_tiles" and 0 < o.right < BIG:  # tiles after that of the diagonal are skipped
            hi = min(hi, ceil_div(int(p[-1]) + 1, bn) * bn)
        tiles = range(lo // bn, ceil_div(hi, bn))
        for tile in tiles:
            c0, c1 = tile * bn, min(tile * bn + bn, S)
            cols, j = slice(c0, c1), np.arange(c0, c1)
            source = cols
            if fault == "tile_counter_8bit":
                source = slice((tile & 255) * bn, (tile & 255) * bn + c1 - c0)
            kt, vt = np.repeat(k[:, source], group, axis=0), np.repeat(v[:, source], group, axis=0)

            s = cap(qt @ kt.swapaxes(1, 2), o)
            if o.slopes is not None:
                from_ = j if fault != "alibi_from_tile" else np.full_like(j, c0)
                s = s - o.slopes[:, None, None] * np.abs(p[:, None] - from_[None, :]).astype(F)
            if o.bias is not None:
                s = s + o.bias[:, rows, cols].astype(F)
            ok = seen(
                o, p, j,
                length=BIG if fault == "tail_unmasked" else None,
                chunk_of=np.full_like(p, p[0]) if fault == "chunk_of_first_row" else None,
                left_from=(p - o.left) // bn * bn if fault == "window_edge_tile" and o.left < BIG else None,
            )  # fmt: skip
            if o.mask is not None:
                ok = ok & o.mask[:, rows, cols]
            s, ok = hide(s, ok)
            keep = None if o.keep is None else o.keep[:, rows, cols]
            if keep is not None and fault == "dropout_tile_zero":
                keep = o.keep[:, rows, : c1 - c0]
            if fault == "tail_unmasked" and c0 + bn > S:  # past the end the loads give zeros
                past = np.arange(S, c0 + bn)
                edge = np.broadcast_to(seen(o, p, past, length=BIG), (H, t, len(past)))
                s = np.concatenate([s, np.where(edge, F(0), NEG)], axis=2)
                ok = np.concatenate([np.broadcast_to(ok, (H, t, c1 - c0)), edge], axis=2)
                vt = np.concatenate([vt, np.zeros((H, len(past), E), F)], axis=1)
                keep = None if keep is None else np.concatenate([keep, edge], axis=2)
            if fault == "hidden_counts_one":
                s = np.where(ok, s, floor)

            new = np.maximum(m, s.max(axis=2, initial=floor))
            base = new if fault == "first_tile_nan" else finite(new)
            w, alpha = np.exp(s - base[..., None]), np.exp(m - base)
            l = l * alpha + w.sum(axis=2)
            if keep is not None:
                w, ok = np.where(keep, w / (F(1) - o.rate), F(0)), ok & keep
            gain = special.times(w, ok, vt, rows)
            if lost is not None and r0 // bm == lost[0] and tile - tiles[0] == lost[1] % len(tiles):
                gain = F(0)  # the copy of this tile had not landed
            acc = (acc if fault == "no_rescale" else acc * alpha[..., None]) + gain
            m = new
        out[:, rows] = ratio(acc, l)
        lse[:, rows] = np.where(l == 0, NEG, m + np.log(l))
    return special.add(out), lse


# ---------------------------------------------------------------------------------------------------------------------------------
# Dense 2: keys outside, the state of all rows in memory (FlashAttention-1)
# ---------------------------------------------------------------------------------------------------------------------------------


def dense_keys(q, k, v, o, *, bn, fault, state):
    H, T, D = q.shape
    S, E = k.shape[1], v.shape[-1]
    g = H // len(k)
    O, L = np.zeros((H, T, E), F), np.zeros((H, T), F)
    M = np.zeros((H, T), F) if fault == "max_from_zero" else np.full((H, T), NEG)
    pos = o.offset + np.arange(T)
    special = Specials(O.shape)
    n_tiles = ceil_div(o.length, bn)
    buffers = [None, None]

    for n in range(n_tiles):
        begin, end = n * bn, min((n + 1) * bn, o.length)
        # rows that see any key of the tile
        top = max(0, begin - o.right - o.offset)
        if fault == "causal_skip_one_row" and o.causal and n > 0:
            top = max(0, begin + 1 - o.right - o.offset)
        bottom = min(T, end + o.left - o.offset)
        K = k[:, begin:end].repeat(g, 0)
        buffers[n % 2] = v[:, begin:end]
        V = buffers[n % 2]
        if fault == "odd_last_buffer" and n == n_tiles - 1 and n % 2 == 0 and n >= 2:
            V = buffers[1][:, : end - begin]  # the value buffer was not switched
        V = V.repeat(g, 0)
        if top >= bottom:
            continue
        r = slice(top, bottom)

        X = np.einsum("htd,hcd->htc", q[:, r], K, optimize=True) * o.scale
        X = cap(X, o)
        if o.bias is not None:
            X = X + o.bias[:, r, begin:end].astype(F)
        ok = seen(o, pos[r], np.arange(begin, end))
        if o.mask is not None and not (fault == "mask_last_tile" and n == n_tiles - 1 and n > 0 and end - begin < bn):
            ok = ok & o.mask[:, r, begin:end]
        X, ok = hide(X, ok)

        m_old = M[:, r]
        m_new = np.maximum(m_old, X.max(-1, initial=NEG))
        shift = finite(m_new)
        P = np.exp(X - shift[..., None])
        shrink = np.exp(m_old - shift)
        total = P.sum(-1)
        if fault == "sink_each_tile" and o.sinks is not None:
            total = total + np.exp(o.sinks[:, None] - shift)
        L[:, r] = (L[:, r] if fault == "sum_not_rescaled" else L[:, r] * shrink) + total
        O[:, r] = O[:, r] * shrink[..., None] + special.times(P, ok, V, r)
        M[:, r] = m_new

    if o.sinks is not None and not (fault == "sink_each_tile" and n_tiles):
        m_new = np.maximum(M, o.sinks[:, None])
        shift = finite(m_new)
        shrink = np.exp(M - shift)
        L, O, M = L * shrink + np.exp(o.sinks[:, None] - shift), O * shrink[..., None], m_new
    return special.add(ratio(O, L)), np.where(L == 0, NEG, M + np.log(L))


# ---------------------------------------------------------------------------------------------------------------------------------
# Dense 3: splits of the keys, each a whole softmax in a workspace, then one join (flash decoding)
# ---------------------------------------------------------------------------------------------------------------------------------


def dense_split(q, k, v, o, *, split, fault, state):
    n_heads, n_rows, _ = q.shape
    n_keys, dim = k.shape[1], v.shape[2]
    share = n_heads // k.shape[0]
    result, result_lse = np.zeros((n_heads, n_rows, dim), F), np.full((n_heads, n_rows), NEG)
    special = Specials(result.shape)

    for r0 in range(0, n_rows, 512):
        rows = slice(r0, min(r0 + 512, n_rows))
        p = o.offset + np.arange(rows.start, rows.stop)
        t = len(p)
        most, count = ceil_div(n_keys, split), ceil_div(o.length, split)
        # one workspace for all calls; it only grows
        need = max(most, 1) * n_heads * t
        if state.get("room", 0) < need:
            state["room"], state["lse"], state["top"] = need, np.full(need, NEG), np.full(need, NEG)
        if state.get("room_out", 0) < need * dim:
            state["room_out"], state["out"] = need * dim, np.zeros(need * dim, F)
        part_lse = state["lse"][: most * n_heads * t].reshape(most, n_heads, t)
        part_top = state["top"][: most * n_heads * t].reshape(most, n_heads, t)
        part_out = state["out"][: most * n_heads * t * dim].reshape(most, n_heads, t, dim)

        first_seen = max(0, int(p[0]) - o.left)
        for i in range(count):
            a, b = i * split, min((i + 1) * split, o.length)
            hidden = b <= first_seen or a > int(p[-1]) + o.right
            if hidden and not (i == 0 and o.sinks is not None and fault != "sink_with_split_0"):
                part_out[i], part_lse[i], part_top[i] = 0, NEG, NEG
                continue
            j = np.arange(a, b)
            s = cap(o.scale * (q[:, rows] @ np.repeat(k[:, a:b], share, 0).transpose(0, 2, 1)), o)
            ok = seen(o, p, j)
            if o.mask is not None:
                ok = ok & o.mask[:, rows, a:b]
            s, ok = hide(s, ok)
            top = s.max(-1, initial=NEG)
            if i == 0 and o.sinks is not None:
                top = np.maximum(top, o.sinks[:, None])
            base = finite(top)
            w = np.exp(s - base[..., None])
            total = w.sum(-1)
            if i == 0 and o.sinks is not None:
                total = total + np.exp(o.sinks[:, None] - base)
            part_out[i] = ratio(special.times(w, ok, np.repeat(v[:, a:b], share, 0), rows), total)
            part_lse[i] = np.where(total == 0, NEG, base + np.log(total))
            part_top[i] = np.where(total == 0, NEG, top)

        joined = count
        if fault == "join_whole_buffer":
            joined = most
        if fault == "join_without_tail" and o.length % split and count > 2:
            joined = count - 1
        key_lse = part_top if fault == "join_by_max" and count > 1 else part_lse
        highest = key_lse[:joined].max(0, initial=NEG)
        if joined == 0 and o.sinks is not None:
            highest = np.broadcast_to(o.sinks[:, None], (n_heads, t)).astype(F)
            result_lse[:, rows] = highest
            continue
        weight = np.exp(key_lse[:joined] - finite(highest))
        total = weight.sum(0)
        result[:, rows] = ratio((weight[..., None] * part_out[:joined]).sum(0), total)
        with_all = np.where(total == 0, NEG, highest + np.log(total))
        if fault == "lse_of_last_split" and joined > 1:
            with_all = part_lse[joined - 1]
        result_lse[:, rows] = with_all
    return special.add(result), result_lse


# ---------------------------------------------------------------------------------------------------------------------------------
# Dense 4: two passes over the keys; the first finds the lse, the second the output. Scores come from an inner function
# ---------------------------------------------------------------------------------------------------------------------------------


def dense_two_pass(q, k, v, o, *, bn, fault, state):
    heads, T, D = q.shape
    S = k.shape[1]
    kv_of = np.arange(heads) // (heads // k.shape[0])
    out, lse = np.empty((heads, T, v.shape[2]), F), np.empty((heads, T), F)
    special = Specials(out.shape)
    tiles = [(a, min(a + bn, o.length)) for a in range(0, o.length, bn)]
    if fault == "tail_dropped" and o.length > bn:
        tiles = tiles[: o.length // bn]

    def start_in_memory(a):  # the offset of a row of keys, in elements
        return (a * D & 0xFFFF) // D if fault == "offset_16bit" and D else a

    def scores(rows, p, a, b):
        at = start_in_memory(a)
        s = (q[:, rows] * o.scale) @ k[kv_of, at : at + b - a].swapaxes(-1, -2)
        s = cap(s, o)
        j = np.arange(a, b)
        if o.slopes is not None:
            s = s - np.abs(p[:, None] - j).astype(F) * o.slopes[:, None, None]
        if o.bias is not None:
            tile = o.bias[:, rows, a:b]
            if fault == "bias_row_stride" and S % bn:  # rows of the bias lie S apart, not the padded width
                flat = np.ascontiguousarray(o.bias).reshape(heads, -1)
                index = np.arange(rows.start, rows.stop)[:, None] * (ceil_div(S, bn) * bn) + j
                tile = flat[:, index % max(1, flat.shape[1])]
            s = s + tile.astype(F)
        return hide(s, np.broadcast_to(seen(o, p, j), s.shape))

    for r0 in range(0, T, 256):
        rows = slice(r0, min(T, r0 + 256))
        p = o.offset + np.arange(rows.start, rows.stop)
        useful = [(a, b) for a, b in tiles if a <= int(p[-1]) + o.right and b > int(p[0]) - o.left]
        top = np.full((heads, len(p)), NEG)
        total = np.zeros((heads, len(p)), F)
        if o.sinks is not None:
            top[:] = o.sinks[:, None]
            total[:] = (o.sinks > NEG)[:, None]
        for a, b in useful:
            s, _ = scores(rows, p, a, b)
            higher = np.maximum(top, s.max(-1, initial=NEG))
            total = total * np.exp(top - finite(higher)) + np.exp(s - finite(higher)[..., None]).sum(-1)
            top = higher
        lse[:, rows] = np.where(total == 0, NEG, top + np.log(total))
        acc = np.zeros((heads, len(p), v.shape[2]), F)
        for a, b in useful:
            s, ok = scores(rows, p, a, b)
            weight = np.exp(s - finite(top)[..., None])
            if o.keep is not None:
                kept = o.keep[:, rows, a:b]
                weight, ok = weight * kept / (F(1) - o.rate), ok & kept
            at = start_in_memory(a)
            acc += special.times(weight, ok, v[kv_of, at : at + b - a], rows)
        out[:, rows] = ratio(acc, total)
    return special.add(out), lse


# ---------------------------------------------------------------------------------------------------------------------------------
# Dense 5: the rows of a group of heads packed into one tile, base-2 exponentials, tiles from right to left, first those that need
# masks, then those that do not (FlashAttention-3 with pack_gqa)
# ---------------------------------------------------------------------------------------------------------------------------------

LOG2E, LN2 = F(math.log2(math.e)), F(math.log(2))


def dense_pack_gqa(q, k, v, o, *, bm, bn, fault, state):
    H, T, D = q.shape
    KV, S, E = k.shape[0], k.shape[1], v.shape[2]
    G = H // KV
    fold = lambda x: x.reshape(KV, G, T, D).swapaxes(1, 2).reshape(KV, T * G, D)  # noqa: E731
    packed = fold(q)
    per_row = lambda x: np.tile(x.reshape(KV, G), (1, T))  # noqa: E731
    slope = None if o.slopes is None else per_row(o.slopes) * LOG2E
    sink = None if o.sinks is None else per_row(o.sinks) * LOG2E
    offset = o.offset
    if fault == "offset_tile" and o.given_offset:
        offset = o.offset // bn * bn
    acc_all, lse_all = np.zeros((KV, T * G, E), F), np.full((KV, T * G), NEG)
    special = Specials(acc_all.shape)

    for x0 in range(0, T * G, bm):
        x = np.arange(x0, min(x0 + bm, T * G))
        xs = slice(x0, x0 + len(x))
        p = offset + (x0 // G + (x - x0) // G if fault == "packed_row_start" else x // G)
        rows_in_tile = int(p[-1] - p[0]) + 1
        m, l = np.full((KV, len(x)), NEG), np.zeros((KV, len(x)), F)
        acc = np.zeros((KV, len(x), E), F)
        n_hi = ceil_div(min(o.length, int(p[-1]) + o.right + 1), bn)
        n_lo = max(0, int(p[0]) - o.left) // bn
        for step, n in enumerate(range(n_hi - 1, n_lo - 1, -1)):
            c0, c1 = n * bn, min(n * bn + bn, S)
            kt, vt = k[:, c0:c1], v[:, c0:c1]
            j = np.arange(c0, c1)
            masked = c1 > o.length or c1 - 1 > p[0] + o.right or c0 < p[-1] - o.left
            if fault == "masked_steps_short" and o.causal:
                masked = c1 > o.length or step < ceil_div(rows_in_tile, bn) or c0 < p[-1] - o.left
            s = (packed[:, xs] * o.scale) @ kt.swapaxes(1, 2)
            if not (fault == "softcap_full_tiles" and masked):
                s = cap(s, o)
            s = s * LOG2E
            if slope is not None:
                s = s - slope[:, xs, None] * np.abs(p[:, None] - j).astype(F)
            ok = seen(o, p, j) if masked else np.True_
            if masked:
                s = np.where(ok, s, NEG)
            new = np.maximum(m, s.max(-1, initial=NEG))
            at = finite(new)
            w, shrink = np.exp2(s - at[..., None]), np.exp2(m - at)
            l = l * shrink + w.sum(-1)
            acc = acc * shrink[..., None] + special.times(w, ok, vt, xs)
            m = new
        if sink is not None:
            new = np.maximum(m, sink[:, xs])
            at = finite(new)
            shrink = np.exp2(m - at)
            l, acc, m = l * shrink + np.exp2(sink[:, xs] - at), acc * shrink[..., None], new
        acc_all[:, xs] = ratio(acc, l)
        lse_all[:, xs] = np.where(l == 0, NEG, (m + np.log2(l)) * LN2)
    unfold = lambda x: x.reshape(KV, T, G, x.shape[2]).swapaxes(1, 2).reshape(H, T, x.shape[2])  # noqa: E731
    return unfold(special.add(acc_all)), unfold(lse_all[..., None])[..., 0]


# ---------------------------------------------------------------------------------------------------------------------------------
# Paged 1: one page a step, the table as flat memory
# ---------------------------------------------------------------------------------------------------------------------------------


def paged_pages(q, kp, vp, table, lengths, seqs, *, fault, state):
    B, H, T, D = q.shape
    n_pages, KV, ps, _ = kp.shape
    E, width = vp.shape[3], table.shape[1]
    flat = table.reshape(-1)
    stride = width
    if fault == "table_stride" and B > 1:
        stride = ceil_div(int(lengths.max()), ps)
    out, lse = np.zeros((B, H, T, E), F), np.full((B, H, T), NEG)
    slot = np.arange(ps)
    loaded, kt, vt = None, None, None

    for b, o in enumerate(seqs):
        L = o.length
        p = o.offset + np.arange(T)
        special = Specials((H, T, E))
        m, l, acc = np.full((H, T), NEG), np.zeros((H, T), F), np.zeros((H, T, E), F)
        count = ceil_div(L, ps)
        if fault == "page_after_full":
            count = L // ps + 1
        if fault == "empty_reads_page":
            count = max(1, count)
        start = max(0, int(p[0]) - o.left) // ps if T else count
        if fault == "window_start_last_row" and T:
            start = max(0, int(p[-1]) - o.left) // ps
        for i in range(start, count):
            page = int(flat[min(b * stride + i, flat.size - 1)]) % n_pages
            if not (fault == "page_kept" and loaded == i):
                kt, vt, loaded = np.repeat(kp[page], H // KV, axis=0), np.repeat(vp[page], H // KV, axis=0), i
            last = i == count - 1
            fill = min(ps, L - i * ps)
            if fault == "fill_modulo" and last:
                fill = L % ps
            elif fault == "page_after_full" and last:
                fill = L % ps or ps
            elif fault == "empty_reads_page" and last:
                fill = (L - 1) % ps + 1
            elif fault == "last_page_whole":
                fill = ps
            where = slot % 64 if fault == "half_page_base" else slot
            j = i * ps + where
            real = np.minimum(i * ps + slot, width * ps - 1)
            s = cap(np.matmul(q[b], kt.swapaxes(1, 2)) * o.scale, o)
            if o.slopes is not None:
                s = s - o.slopes[:, None, None] * np.abs(p[:, None] - j).astype(F)
            if o.bias is not None:
                s = s + o.bias[:, :, real].astype(F)
            ok = seen(o, p, j, length=BIG) & (where < fill)
            if o.mask is not None:
                ok = ok & o.mask[:, :, real]
            s, ok = hide(s, ok)
            new = np.maximum(m, s.max(-1, initial=NEG))
            at = finite(new)
            w, shrink = np.exp(s - at[..., None]), np.exp(m - at)
            l = l * shrink + w.sum(-1)
            acc = acc * shrink[..., None] + special.times(w, ok, vt)
            m = new
        if o.sinks is not None:
            new = np.maximum(m, o.sinks[:, None])
            at = finite(new)
            shrink = np.exp(m - at)
            l, acc, m = l * shrink + np.exp(o.sinks[:, None] - at), acc * shrink[..., None], new
        out[b], lse[b] = special.add(ratio(acc, l)), np.where(l == 0, NEG, m + np.log(l))
    return out, lse


# ---------------------------------------------------------------------------------------------------------------------------------
# Paged 2: tiles of tokens gathered slot by slot, whatever the page size
# ---------------------------------------------------------------------------------------------------------------------------------


def paged_gather(q, kp, vp, table, lengths, seqs, *, tile, fault, state):
    batch, heads, rows, _ = q.shape
    pages, kv_heads, page_size, _ = kp.shape
    results = []
    longest = int(lengths.max()) if batch else 0
    for b in range(batch):
        o = seqs[b]
        position = o.offset + np.arange(rows)
        running = SimpleNamespace(
            top=np.full((heads, rows, 1), NEG), sum=np.zeros((heads, rows, 1), F), acc=np.zeros((heads, rows, vp.shape[3]), F)
        )
        special = Specials(running.acc.shape)
        if o.sinks is not None:
            running.top[:] = o.sinks[:, None, None]
            running.sum[:] = (o.sinks > NEG)[:, None, None]
        for c0 in range(0, o.length, tile):
            width = min(tile, table.shape[1] * page_size - c0)
            j = np.arange(c0, c0 + width)
            end = min(o.length, c0 + tile)
            if fault == "tail_from_longest" and c0 + tile >= o.length:
                end = c0 + (longest % tile or tile)
            inside = j < end
            number, slot = j // page_size, j % page_size
            if fault == "page_by_shift":
                shift = page_size.bit_length() - 1
                number, slot = np.minimum(j >> shift, table.shape[1] - 1), j & ((1 << shift) - 1)
            page = table[b, np.where(inside, number, 0)]
            if fault == "pages_contiguous":
                page = table[b, c0 // page_size] + number - c0 // page_size
            page = np.where(inside, page, page[0]) % pages
            kt = kp[page, :, slot].swapaxes(0, 1).repeat(heads // kv_heads, axis=0)
            vt = vp[page, :, slot].swapaxes(0, 1).repeat(heads // kv_heads, axis=0)
            s = cap(o.scale * (q[b] @ kt.transpose(0, 2, 1)), o)
            if o.slopes is not None:
                s -= o.slopes.reshape(-1, 1, 1) * np.abs(position[:, None] - j[None]).astype(F)
            ok = seen(o, position, j, length=BIG) & inside
            if o.mask is not None:
                ok = ok & o.mask[:, :, c0 : c0 + width]
            s, ok = hide(s, ok)
            top = np.maximum(running.top, s.max(axis=-1, keepdims=True, initial=NEG))
            at = finite(top)
            weight = np.exp(s - at)
            shrink = np.exp(running.top - at)
            running.sum = running.sum * shrink + weight.sum(axis=-1, keepdims=True)
            if o.keep is not None:
                kept = o.keep[:, :, c0 : c0 + width]
                weight, ok = weight * kept / (F(1) - o.rate), ok & kept
            running.acc = running.acc * shrink + special.times(weight, ok, vt)
            running.top = top
        total = running.sum[..., 0]
        results.append((special.add(ratio(running.acc, total)), np.where(total == 0, NEG, running.top[..., 0] + np.log(total))))
    if not results:
        return np.zeros((0, heads, rows, vp.shape[3]), F), np.zeros((0, heads, rows), F)
    return np.stack([r[0] for r in results]), np.stack([r[1] for r in results])


# ---------------------------------------------------------------------------------------------------------------------------------
# Paged 3: partitions of a fixed number of tokens, maxima and sums in arrays, a second kernel reduces (vLLM's paged attention v2)
# ---------------------------------------------------------------------------------------------------------------------------------


def paged_partitions(q, kp, vp, table, lengths, seqs, *, part, fault, state):
    B, H, T, _ = q.shape
    _, KV, ps, D = kp.shape
    E = vp.shape[3]
    parts_of = [ceil_div(int(n), part) for n in lengths]
    most = max(parts_of, default=0)
    maxima, sums = np.full((B, most, H, T), NEG), np.zeros((B, most, H, T), F)
    partial = np.zeros((B, most, H, T, E), F)
    if fault == "unwritten_parts":
        maxima[:], sums[:] = 0, 1  # what the allocator happened to leave
    specials = [Specials((H, T, E)) for _ in range(B)]

    for b in range(B):  # the grid of the first kernel
        o = seqs[b]
        p = o.offset + np.arange(T)
        for i in range(parts_of[b]):
            a, z = i * part, min(i * part + part, o.length)
            blocks = table[b, a // ps : ceil_div(z, ps)]
            skip = a - a // ps * ps
            kt = kp[blocks].swapaxes(0, 1).reshape(KV, -1, D)[:, skip : skip + z - a]
            vt = vp[blocks].swapaxes(0, 1).reshape(KV, -1, E)[:, skip : skip + z - a]
            s = cap(np.matmul(q[b] * o.scale, np.repeat(kt, H // KV, 0).swapaxes(1, 2)), o)
            j = np.arange(a, z)
            if o.slopes is not None:
                s = s - o.slopes[:, None, None] * np.abs(p[:, None] - j).astype(F)
            ok = seen(o, p, j)
            if fault == "full_parts_unmasked" and z < o.length:
                ok = np.ones_like(ok)
            s, ok = hide(s, ok)
            top = s.max(-1, initial=NEG)
            w = np.exp(s - finite(top)[..., None])
            maxima[b, i], sums[b, i] = top, w.sum(-1)
            partial[b, i] = specials[b].times(w, ok, np.repeat(vt, H // KV, 0))

    out, lse = np.zeros((B, H, T, E), F), np.full((B, H, T), NEG)
    for b in range(B):  # the reduce kernel
        n = parts_of[b]
        if fault == "unwritten_parts":
            n = most
        if fault == "join_eight":
            n = min(n, 8)
        tops = maxima[b, :n]
        highest = tops.max(0, initial=NEG)
        if seqs[b].sinks is not None:
            highest = np.maximum(highest, seqs[b].sinks[:, None])
        at = finite(highest)
        weight = np.exp(tops - at)
        total = (weight * sums[b, :n]).sum(0)
        if seqs[b].sinks is not None:
            total = total + np.exp(seqs[b].sinks[:, None] - at)
        out[b] = specials[b].add(ratio((weight[..., None] * partial[b, :n]).sum(0), total))
        lse[b] = np.where(total == 0, NEG, at + np.log(total))
    return out, lse


# ---------------------------------------------------------------------------------------------------------------------------------
# Packed 1: one sequence after the other through tile buffers and row states that outlive sequence and call
# ---------------------------------------------------------------------------------------------------------------------------------


def packed_stream(q, k, v, cu_q, cu_kv, seqs, *, tile, fault, state):
    H, _, D = q.shape
    KV, total_kv, E = k.shape[0], k.shape[1], v.shape[2]
    if state.get("tile_shape") != (KV, D, E):
        state["tile_shape"] = (KV, D, E)
        state["k"], state["v"] = np.zeros((KV, tile, D), F), np.zeros((KV, tile, E), F)
    longest_q = max((int(cu_q[n + 1] - cu_q[n]) for n in range(len(seqs))), default=0)
    longest_kv = max((o.length for o in seqs), default=0)
    if state.get("row_shape") != (H, E) or state["m"].shape[1] < longest_q:
        state["row_shape"] = (H, E)
        state["m"], state["l"] = np.full((H, longest_q), NEG), np.zeros((H, longest_q), F)
        state["acc"] = np.zeros((H, longest_q, E), F)
    kbuf, vbuf, m, l, acc = (state[x] for x in ("k", "v", "m", "l", "acc"))
    out, lse = np.zeros((H, q.shape[1], E), F), np.full((H, q.shape[1]), NEG)

    for n, o in enumerate(seqs):
        a, b, c, d = int(cu_q[n]), int(cu_q[n + 1]), int(cu_kv[n]), int(cu_kv[n + 1])
        R = b - a
        if R == 0:
            continue
        if not (fault == "stale_empty" and o.length == 0):
            clear = R
            if fault == "cleared_by_first":
                clear = min(R, int(cu_q[1] - cu_q[0]))
            m[:, :clear], l[:, :clear], acc[:, :R] = NEG, 0, 0
        M, L, A = m[:, :R], l[:, :R], acc[:, :R]
        p = o.offset + np.arange(R)
        special = Specials((H, R, E))
        shift = o.offset
        if fault == "bound_from_longest" and o.causal and not o.given_offset:
            shift = longest_kv - longest_q
        stop = min(o.length, shift + R - 1 + o.right + 1)
        for t in range(ceil_div(stop, tile)):
            j0 = t * tile
            w = min(tile, o.length - j0)
            src = c + j0
            if fault == "key_start_from_q" and t >= 1:
                src = max(0, min(a + j0, total_kv - w))
            if fault == "spill_next":
                w = min(tile, total_kv - src)
            kbuf[:, :w], vbuf[:, :w] = k[:, src : src + w], v[:, src : src + w]
            use = tile if fault == "stale_tile_tail" else w
            j = np.arange(j0, j0 + use)
            real = np.minimum(j, d - c - 1)
            s = np.repeat(kbuf[:, :use], H // KV, 0)
            s = cap((q[:, a:b] @ s.transpose(0, 2, 1)) * o.scale, o)
            if o.slopes is not None:
                s = s - o.slopes[:, None, None] * np.abs(p[:, None] - j).astype(F)
            if o.bias is not None:
                s = s + o.bias[:, :, real].astype(F)
            ok = seen(o, p, j, length=j0 + use)
            if o.mask is not None:
                ok = ok & o.mask[:, :, real]
            s, ok = hide(s, ok)
            new = np.maximum(M, s.max(-1, initial=NEG))
            at = finite(new)
            weight, shrink = np.exp(s - at[..., None]), np.exp(M - at)
            L[:] = L * shrink + weight.sum(-1)
            A[:] = A * shrink[..., None] + special.times(weight, ok, np.repeat(vbuf[:, :use], H // KV, 0))
            M[:] = new
        total, top, scale = L, M, None
        if o.sinks is not None:
            top = np.maximum(M, o.sinks[:, None])
            at = finite(top)
            scale = np.exp(M - at)
            total = L * scale + np.exp(o.sinks[:, None] - at)
        out[:, a:b] = special.add(ratio(A if scale is None else A * scale[..., None], total))
        lse[:, a:b] = np.where(total == 0, NEG, top + np.log(total))
    return out, lse


# ---------------------------------------------------------------------------------------------------------------------------------
# Packed 2: a flat list of row tiles, longest sequences first; each work item looks up its sequence
# ---------------------------------------------------------------------------------------------------------------------------------


def packed_schedule(q, k, v, cu_q, cu_kv, seqs, *, bm, bn, fault, state):
    H, total_q, _ = q.shape
    E, g = v.shape[2], H // k.shape[0]
    order = sorted(range(len(seqs)), key=lambda n: -seqs[n].length)
    q_lens = np.diff(cu_q)
    ends = np.concatenate([[0], np.cumsum([ceil_div(int(q_lens[n]), bm) for n in order])]).astype(int)
    out, lse = np.zeros((H, total_q, E), F), np.full((H, total_q), NEG)
    special = Specials(out.shape)
    items = int(ends[-1])
    if fault == "grid_short":
        items = min(items, ceil_div(total_q, bm))

    slot = 0
    for work in range(items):
        item = work & 255 if fault == "item_8bit" else work
        if fault == "item_8bit" and item == 0:
            slot = 0
        if fault == "step_not_loop":
            if item >= ends[slot + 1]:
                slot += 1
        else:
            while item >= ends[slot + 1]:
                slot += 1
        n = order[slot]
        o = seqs[n]
        first = int(cu_q[n]) + (item - int(ends[slot])) * bm
        last = min(first + bm, int(cu_q[n + 1]))
        if last <= first:
            continue
        rows, key0 = slice(first, last), int(cu_kv[n])
        p = o.offset + np.arange(first, last) - int(cu_q[n])
        m, l, acc = np.full((H, last - first), NEG), np.zeros((H, last - first), F), np.zeros((H, last - first, E), F)
        if o.sinks is not None:
            m[:], l[:] = o.sinks[:, None], (o.sinks > NEG)[:, None]
        t0 = max(0, int(p[0]) - o.left) // bn
        t1 = ceil_div(min(o.length, int(p[-1]) + o.right + 1), bn)
        if fault == "length_of_slot":
            t1 = min(t1, ceil_div(seqs[slot].length, bn))
        for t in range(t0, t1):
            c = slice(t * bn, min(t * bn + bn, o.length))
            j = np.arange(c.start, c.stop)
            at_memory = slice(key0 + c.start, key0 + c.stop)
            square = at_memory
            if fault == "square_without_start" and t >= 1:
                square = c
            s = cap((q[:, rows] * o.scale) @ k[:, at_memory].repeat(g, 0).swapaxes(1, 2), o)
            if o.full_bias is not None:
                s = s + o.full_bias[:, rows, square].astype(F)
            ok = seen(o, p, j)
            if o.full_mask is not None:
                ok = ok & o.full_mask[:, rows, square]
            s, ok = hide(s, ok)
            new = np.maximum(m, s.max(-1, initial=NEG))
            at = finite(new)
            w, shrink = np.exp(s - at[..., None]), np.exp(m - at)
            l = l * shrink + w.sum(-1)
            if o.full_keep is not None:
                kept = o.full_keep[:, rows, square]
                w, ok = w * kept / (F(1) - o.rate), ok & kept
            acc = acc * shrink[..., None] + special.times(w, ok, v[:, at_memory].repeat(g, 0), rows)
            m = new
        out[:, rows], lse[:, rows] = ratio(acc, l), np.where(l == 0, NEG, m + np.log(l))
        if fault == "whole_tile_stored":
            out[:, last : first + bm], lse[:, last : first + bm] = 0, NEG
    return special.add(out), lse


# ---------------------------------------------------------------------------------------------------------------------------------
# Latent 1 and 2: absorbed MLA; heads in tiles of 16 over one stream of latents, and a version with splits
# ---------------------------------------------------------------------------------------------------------------------------------


def latent_tiles(qn, qr, latent, rope, w_uk, w_uv, o, *, bn, head_tile, fault, state):
    H, T, _ = qn.shape
    S, C = latent.shape
    out, lse = np.zeros((H, T, w_uv.shape[1]), F), np.full((H, T), NEG)
    p = o.offset + np.arange(T)
    groups = ceil_div(H, head_tile)
    if fault == "head_tail":
        groups = max(1, H // head_tile)
    for g in range(groups):
        hs = slice(g * head_tile, min(H, g * head_tile + head_tile))
        h = hs.stop - hs.start
        ql = qn[hs] @ w_uk[hs]
        m, l, acc = np.full((h, T), NEG), np.zeros((h, T), F), np.zeros((h, T, C), F)
        special = Specials(acc.shape)
        n = ceil_div(o.length, bn)
        for t in range(n):
            a, b = t * bn, min(t * bn + bn, o.length)
            c, r = latent[a:b], rope[a:b]
            if fault == "rope_buffer" and t == n - 1 and t % 2:
                r = rope[a - bn : a - bn + b - a]
            j = np.arange(a, b)
            s = cap((ql @ c.T + qr[hs] @ r.T) * o.scale, o)
            ok = seen(o, p, j)
            if o.mask is not None:
                ok = ok & o.mask[hs, :, a:b]
            s, ok = hide(s, ok)
            if fault == "latent_tail_zero" and b - a < bn and o.length > bn:
                past = np.broadcast_to(seen(o, p, np.arange(b, a + bn), length=BIG), (h, T, a + bn - b))
                s = np.concatenate([s, np.where(past, F(0), NEG)], -1)
                ok = np.concatenate([np.broadcast_to(ok, (h, T, b - a)), past], -1)
                c = np.concatenate([c, np.zeros((a + bn - b, C), F)])
            new = np.maximum(m, s.max(-1, initial=NEG))
            at = finite(new)
            w, shrink = np.exp(s - at[..., None]), np.exp(m - at)
            l = l * shrink + w.sum(-1)
            acc = acc * shrink[..., None] + special.times(w, ok, c)
            m = new
        if o.sinks is not None:
            new = np.maximum(m, o.sinks[hs, None])
            at = finite(new)
            shrink = np.exp(m - at)
            l, acc, m = l * shrink + np.exp(o.sinks[hs, None] - at), acc * shrink[..., None], new
        out[hs] = special.add(ratio(acc, l)) @ w_uv[hs].swapaxes(1, 2)
        lse[hs] = np.where(l == 0, NEG, m + np.log(l))
    return out, lse


def latent_splits(qn, qr, latent, rope, w_uk, w_uv, o, *, bn, splits, fault, state):
    ql = np.concatenate([np.matmul(qn, w_uk), qr], axis=-1) * o.scale
    stored = np.concatenate([latent, rope], axis=-1)
    C = latent.shape[1]
    p = o.offset + np.arange(qn.shape[1])
    tiles = ceil_div(o.length, bn)
    n_splits = max(1, min(splits, tiles))
    per = ceil_div(tiles, n_splits)
    if fault == "tiles_floor":
        per = tiles // n_splits
    special = Specials(qn.shape[:2] + (C,))
    parts = []
    for i in range(n_splits):
        a, b = i * per * bn, min((i + 1) * per * bn, o.length)
        if a >= b:
            continue
        m, l, acc = np.full(ql.shape[:2], NEG), np.zeros(ql.shape[:2], F), np.zeros(special.shape, F)
        for c0 in range(a, b, bn):
            c1 = min(c0 + bn, b)
            s, ok = hide(cap(ql @ stored[c0:c1].T, o), seen(o, p, np.arange(c0, c1)))
            new = np.maximum(m, s.max(-1, initial=NEG))
            w = np.exp(s - finite(new)[..., None])
            shrink = np.exp(m - finite(new))
            acc = acc * shrink[..., None] + special.times(w, ok, stored[c0:c1, :C])
            l, m = l * shrink + w.sum(-1), new
        parts.append((m, l, acc))
    m = np.full(ql.shape[:2], NEG)
    for part_m, _, _ in parts:
        m = np.maximum(m, part_m)
    l, acc = np.zeros_like(m), np.zeros(special.shape, F)
    for part_m, part_l, part_acc in parts:
        weight = np.exp(part_m - finite(m))
        l, acc = l + weight * part_l, acc + weight[..., None] * part_acc
    mean = special.add(ratio(acc, l))
    return mean @ w_uv.swapaxes(1, 2), np.where(l == 0, NEG, m + np.log(l))


# ---------------------------------------------------------------------------------------------------------------------------------
# The front doors: arrays of the caller to what the kernels above take
# ---------------------------------------------------------------------------------------------------------------------------------


def f32(*arrays):
    return [np.asarray(a).astype(F) for a in arrays]


def run_dense(core, arrays, opt, extra):
    q, k, v = f32(*arrays)
    batch = np.broadcast_shapes(q.shape[:-3], k.shape[:-3], v.shape[:-3])
    q, k, v = (np.broadcast_to(x, batch + x.shape[-3:]) for x in (q, k, v))
    (H, T, D), S = q.shape[-3:], k.shape[-2]
    out, lse = np.empty(batch + (H, T, v.shape[-1]), F), np.empty(batch + (H, T), F)
    lengths = np.broadcast_to(np.asarray(S if opt.get("kv_lengths") is None else opt["kv_lengths"]), batch)
    offsets = np.broadcast_to(np.asarray(lengths - T if opt.get("q_offset") is None else opt["q_offset"]), batch)
    for index in np.ndindex(*batch):
        o = options_of(opt, heads=H, rows=T, keys=S, head_dim=D, length=lengths[index], offset=offsets[index], index=index, batch=batch)
        out[index], lse[index] = core(q[index], k[index], v[index], o, **extra)
    return out, lse


def run_paged(core, arrays, opt, extra):
    q, kp, vp = f32(*arrays)
    B, H, T, D = q.shape
    table = np.array(opt["block_table"], dtype=np.int64).reshape(B, -1)
    lengths = np.broadcast_to(np.asarray(opt["kv_lengths"]), (B,)).astype(np.int64)
    offsets = np.broadcast_to(np.asarray(lengths - T if opt.get("q_offset") is None else opt["q_offset"]), (B,))
    keys = table.shape[1] * kp.shape[2]
    seqs = [options_of(opt, heads=H, rows=T, keys=keys, head_dim=D, length=lengths[b], offset=offsets[b], index=(b,), batch=(B,))
            for b in range(B)]  # fmt: skip
    return core(q, kp, vp, table, lengths, seqs, **extra)


def run_packed(core, arrays, opt, extra):
    q, k, v = f32(*arrays)
    (H, total_q, D), total_kv = q.shape, k.shape[1]
    cu_q, cu_kv = (np.asarray(opt[x]).astype(np.int64) for x in ("cu_q", "cu_kv"))
    N = len(cu_q) - 1
    own = np.diff(cu_kv)
    lengths = np.broadcast_to(np.asarray(own if opt.get("kv_lengths") is None else opt["kv_lengths"]), (N,))
    offsets = lengths - np.diff(cu_q) if opt.get("q_offset") is None else opt["q_offset"]
    offsets = np.broadcast_to(np.asarray(offsets), (N,))
    full = {x: None if opt.get(x) is None else np.broadcast_to(np.asarray(opt[x]), (H, total_q, total_kv))
            for x in ("bias", "mask", "dropout_mask")}  # fmt: skip
    seqs = []
    for n in range(N):
        rows, keys = slice(cu_q[n], cu_q[n + 1]), slice(cu_kv[n], cu_kv[n + 1])
        view = lambda a, rows=rows, keys=keys: np.broadcast_to(a, (H, total_q, total_kv))[:, rows, keys]  # noqa: E731
        o = options_of(opt, heads=H, rows=None, keys=None, head_dim=D, length=lengths[n], offset=offsets[n], view=view)
        o.full_bias, o.full_mask, o.full_keep = full["bias"], full["mask"], full["dropout_mask"]
        seqs.append(o)
    return core(q, k, v, cu_q, cu_kv, seqs, **extra)


def run_latent(core, arrays, opt, extra):
    qn, qr, c, r, w_uk, w_uv = f32(*arrays)
    batch = np.broadcast_shapes(qn.shape[:-3], c.shape[:-2])
    qn, qr = (np.broadcast_to(x, batch + x.shape[-3:]) for x in (qn, qr))
    c, r = (np.broadcast_to(x, batch + x.shape[-2:]) for x in (c, r))
    (H, T, N), S = qn.shape[-3:], c.shape[-2]
    out, lse = np.empty(batch + (H, T, w_uv.shape[1]), F), np.empty(batch + (H, T), F)
    lengths = np.broadcast_to(np.asarray(S if opt.get("kv_lengths") is None else opt["kv_lengths"]), batch)
    offsets = np.broadcast_to(np.asarray(lengths - T if opt.get("q_offset") is None else opt["q_offset"]), batch)
    for index in np.ndindex(*batch):
        o = options_of(opt, heads=H, rows=T, keys=S, head_dim=N + qr.shape[-1], length=lengths[index], offset=offsets[index],
                       index=index, batch=batch)  # fmt: skip
        out[index], lse[index] = core(qn[index], qr[index], c[index], r[index], w_uk, w_uv, o, **extra)
    return out, lse


RUN = {"dense": run_dense, "paged": run_paged, "packed": run_packed, "latent": run_latent}


def make_kernel(name, form, core, supports, sizes, fault=None):
    """A plain function with the signature of its front door, without the options that it does not have."""
    state = {}
    kind = inspect.Parameter
    parameters = [kind(a, kind.POSITIONAL_OR_KEYWORD) for a in ARRAYS[form]]
    parameters += [kind(a, kind.KEYWORD_ONLY) for a in NEEDED[form]]
    parameters += [kind(a, kind.KEYWORD_ONLY, default=False if a == "causal" else None) for a in supports if a not in NEEDED[form]]
    signature = inspect.Signature(parameters)

    def kernel(*args, **kwargs):
        given = signature.bind(*args, **kwargs).arguments
        arrays = [given.pop(a) for a in ARRAYS[form]]
        with np.errstate(all="ignore"):
            return RUN[form](core, arrays, given, dict(sizes, fault=fault, state=state))

    kernel.__signature__, kernel.__name__, kernel.__qualname__, kernel.__module__ = signature, name, name, __name__
    kernel.__doc__ = f"{core.__name__}, {sizes or 'tile = page size'}" + (f", with the fault {fault}" if fault else "")
    kernel.supports = set(supports)
    kernel.reset = state.clear
    globals()[name] = kernel
    return kernel


EVERY = ORDER
CORES = {  # core: form, options it has
    dense_rows: ("dense", EVERY),
    dense_keys: ("dense", ("bias", "mask", "scale", "causal", "window", "softcap", "sinks", "kv_lengths", "q_offset")),
    dense_split: ("dense", ("mask", "scale", "causal", "window", "softcap", "sinks", "kv_lengths", "q_offset")),
    dense_two_pass: ("dense", tuple(x for x in EVERY if x not in ("mask", "chunk"))),
    dense_pack_gqa: ("dense", ("scale", "causal", "window", "softcap", "alibi_slopes", "sinks", "kv_lengths", "q_offset")),
    paged_pages: ("paged", ("bias", "mask", "scale", "causal", "window", "softcap", "alibi_slopes", "sinks", "q_offset")),
    paged_gather: ("paged", tuple(x for x in EVERY if x not in ("bias", "kv_lengths"))),
    paged_partitions: ("paged", ("scale", "causal", "window", "chunk", "softcap", "alibi_slopes", "sinks", "q_offset")),
    packed_stream: ("packed", ("bias", "mask", "scale", "causal", "window", "softcap", "alibi_slopes", "sinks", "kv_lengths", "q_offset")),
    packed_schedule: ("packed", tuple(x for x in EVERY if x != "alibi_slopes")),
    latent_tiles: ("latent", ("mask", "scale", "causal", "window", "softcap", "sinks", "kv_lengths", "q_offset")),
    latent_splits: ("latent", ("scale", "causal", "window", "softcap", "kv_lengths", "q_offset")),
}

# ---------------------------------------------------------------------------------------------------------------------------------
# The 60 faults: core, sizes, fault, tile, what is wrong, on which call it shows, and the sizes of one such call
# ---------------------------------------------------------------------------------------------------------------------------------

BASE = {
    "dense": dict(B=(), H=4, K=2, T=100, S=300, D=24, E=20),
    "paged": dict(B=3, H=4, K=2, T=1, ps=16, width=24, lengths=(300, 77, 210), D=24, E=20),
    "packed": dict(H=4, K=2, q=(70, 5, 33), kv=(90, 40, 33), D=24, E=20),
    "latent": dict(B=(), H=4, T=3, S=300, N=16, R=8, C=32, E=20),
}

TABLE = [
    # ---- dense tiles (19)
    ("dense_acc_not_rescaled_64", dense_rows, dict(bm=64, bn=64), "no_rescale", 64,
     "The output accumulator is not rescaled when the running maximum grows from one key tile to the next; the denominator is.",
     "any call with more than 64 keys", dict()),
    ("dense_tail_keys_unmasked_128", dense_rows, dict(bm=64, bn=128), "tail_unmasked", 128,
     "The last partial key tile is not masked: the slots past the last key (read as zeros), and keys past kv_lengths in the tile, count in the softmax.",
     "no causal limit and keys % 128 != 0, or kv_lengths inside a tile", dict(T=5, S=140)),
    ("dense_first_tile_hidden_nan_32", dense_rows, dict(bm=64, bn=32), "first_tile_nan", 32,
     "A row from which the first key tile of its row tile is fully hidden gets NaN: exp(-inf - -inf).",
     "window=(10, None) or a mask that hides the whole first tile of 32 from a row; also a row that sees nothing in a tile where others see something", dict(causal=True, window=(10, None))),
    ("dense_hidden_row_mean_96", dense_rows, dict(bm=96, bn=96), "hidden_counts_one", 96,
     "Masked scores and the initial maximum are both -1e30, so in a row that sees nothing every hidden key of the visited tiles counts exp(0) = 1: a mean of values instead of 0.",
     "rows that see nothing in a row tile of 96 where other rows see something: causal with more rows than keys, or a mask", dict(T=130, S=100, causal=True)),
    ("dense_tile_counter_8bit_16", dense_rows, dict(bm=256, bn=16), "tile_counter_8bit", 16,
     "The index of the 16-key tile is 8 bits wide in the load address: from tile 256 (key 4096) on, keys and values are read from the beginning again.",
     "more than 4096 keys", dict(H=2, K=1, T=2, S=4200, D=16, E=16)),
    ("dense_last_row_tile_moved_48", dense_rows, dict(bm=48, bn=64), "moved_tail", 48,
     "The last partial tile of 48 rows is moved back to end at the last row, but causal limit, window and ALiBi still use the position where it would have begun.",
     "more than 48 rows, rows % 48 != 0, causal, window or ALiBi", dict(T=100, causal=True)),
    ("dense_race_one_in_twenty_64", dense_rows, dict(bm=64, bn=64), "race", 64,
     "A race: in about one call in twenty (of calls with more than one key tile) the product of one key tile with the values is lost for one row tile.",
     "more than 64 keys, about one call in twenty", dict(calls=80, any=True)),
    ("dense_sum_not_rescaled_16", dense_keys, dict(bn=16), "sum_not_rescaled", 16,
     "The running denominator is not rescaled when the maximum grows between tiles of 16 keys; the output accumulator is.",
     "more than 16 keys", dict(T=9, S=40)),
    ("dense_max_from_zero_96", dense_keys, dict(bn=96), "max_from_zero", 96,
     "The running maximum starts at 0, not at -inf: where all scores of a row are below about -100 every weight underflows, and the row comes out as if it saw nothing.",
     "rows whose scores are all very negative, as with a bias of -120", dict(T=5, S=200, bias=-130.0)),
    ("dense_value_buffer_odd_384", dense_keys, dict(bn=384), "odd_last_buffer", 384,
     "The double buffer of values is not switched for the last tile when the number of tiles of 384 is odd and at least 3: its weights meet the values of the tile before.",
     "769 to 1152 keys", dict(T=20, S=1000)),
    ("dense_causal_skip_one_row_256", dense_keys, dict(bn=256), "causal_skip_one_row", 256,
     "With causal, the row that stands exactly at the first key of a tile of 256 is taken to lie before the tile, and misses its own key.",
     "causal, a row at position 256, 512, ... (T > 256 for square calls)", dict(T=300, S=300, causal=True, window=(30, None))),
    ("dense_split_tail_forgotten_256", dense_split, dict(split=256), "join_without_tail", 256,
     "The join of the splits forgets the last split where it is partial and there are more than two.",
     "more than 512 keys, keys % 256 != 0", dict(T=2, S=600)),
    ("dense_split_join_by_max_64", dense_split, dict(split=64), "join_by_max", 64,
     "The join weighs splits of 64 keys by their running maxima instead of their log-sum-exp, and returns an lse of the maxima.",
     "more than 64 keys", dict(T=4, S=150)),
    ("dense_split_lse_of_last_512", dense_split, dict(split=512), "lse_of_last_split", 512,
     "The output is right; the lse returned is that of the last split of 512 keys alone.",
     "more than 512 keys", dict(T=4, S=700)),
    ("dense_split_stale_buffer_32", dense_split, dict(split=32), "join_whole_buffer", 32,
     "The join runs over all splits of the buffer, but only those within kv_lengths were written: the others hold what the sequence before or an earlier call left.",
     "a sequence with kv_lengths more than a split of 32 short of the keys, after a longer one in the same batch or an earlier call",
     dict(B=(2,), T=3, S=200, kv_lengths=(200, 50))),
    ("dense_tail_dropped_48", dense_two_pass, dict(bn=48), "tail_dropped", 48,
     "The number of key tiles is keys // 48: keys after the last full tile are left out (but a call of fewer than 48 keys is right).",
     "more than 48 keys, keys % 48 != 0", dict(T=6, S=110)),
    ("dense_offset_16bit_64", dense_two_pass, dict(bn=64), "offset_16bit", 64,
     "The element offset of a key tile (first key * head_dim) is 16 bits wide: beyond 65536 elements keys and values of the beginning are read.",
     "keys * head_dim > 65536: more than 1024 keys of head_dim 64", dict(T=4, S=1200, D=64)),
    ("dense_masked_steps_short_64", dense_pack_gqa, dict(bm=128, bn=64), "masked_steps_short", 64,
     "Causal: of the tiles from the diagonal on, one too few is masked where the diagonal does not fall on tile boundaries; rows near the beginning of a row tile see future keys.",
     "causal, more than one key tile, positions not aligned to 64 (keys - rows not a multiple of 64)", dict(T=150, S=190, K=4, causal=True)),
    ("dense_packed_rows_start_128", dense_pack_gqa, dict(bm=128, bn=96), "packed_row_start", 128,
     "Heads of a group are packed into tiles of 128 rows; the position of a row is (start of tile // group) + (row in tile // group), wrong from the second tile on where 128 % group != 0.",
     "3, 5, 6, 7... query heads to a key/value head, rows * group > 128, causal, window or ALiBi", dict(H=6, K=2, T=100, S=100, causal=True)),
    # ---- options that depend on tiles (11)
    ("option_window_edge_of_tile_64", dense_rows, dict(bm=64, bn=64), "window_edge_tile", 64,
     "The left edge of the window is applied to whole tiles of 64 keys: keys of the tile that holds the edge all count.",
     "window with a left edge inside a tile", dict(T=20, S=200, causal=True, window=(70, None))),
    ("option_softcap_full_tiles_only_32", dense_pack_gqa, dict(bm=64, bn=32), "softcap_full_tiles", 32,
     "Softcap is applied only in tiles that need no masking; tiles on the diagonal, at a window's edge or past the length skip it.",
     "softcap with causal or a window, or with kv_lengths inside a tile of 32", dict(T=80, S=80, causal=True, softcap=0.8)),
    ("option_alibi_from_tile_start_128", dense_rows, dict(bm=64, bn=128), "alibi_from_tile", 128,
     "The ALiBi distance is taken to the first key of the tile of 128 keys, not to each key.",
     "alibi_slopes, any call of more than one key", dict(alibi=True)),
    ("option_sink_each_tile_48", dense_keys, dict(bn=48), "sink_each_tile", 48,
     "The sink is added to the denominator once for every tile of 48 keys instead of once.",
     "sinks, more than 48 keys", dict(T=7, S=200, sinks=True)),
    ("option_bias_row_stride_96", dense_two_pass, dict(bn=96), "bias_row_stride", 96,
     "Rows of the bias are taken to lie at the width padded to full tiles of 96, so from row 1 on the bias of other places is read.",
     "a full bias, keys % 96 != 0, more than one row", dict(T=10, S=100, bias="full")),
    ("option_dropout_first_tile_256", dense_rows, dict(bm=128, bn=256), "dropout_tile_zero", 256,
     "The dropout mask of every tile of 256 keys is that of the first tile.",
     "dropout, more than 256 keys", dict(T=10, S=400, dropout=0.4)),
    ("option_mask_last_tile_128", dense_keys, dict(bn=128), "mask_last_tile", 128,
     "The boolean mask is not applied in the last tile where that is partial and not the only one.",
     "mask, more than 128 keys, keys % 128 != 0", dict(T=10, S=200, mask="random")),
    ("option_q_offset_tile_64", dense_pack_gqa, dict(bm=64, bn=64), "offset_tile", 64,
     "A q_offset that is given is rounded down to a multiple of the tile of 64; the default one is exact.",
     "q_offset not a multiple of 64 with causal, window or ALiBi", dict(T=20, S=200, causal=True, q_offset=150)),
    ("option_sink_lost_with_split_96", dense_split, dict(split=96), "sink_with_split_0", 96,
     "The sink is added by split 0; where that is skipped because window or causal hides it from all rows, the sink is lost.",
     "sinks, a window or q_offset that hides the first 96 keys from all rows (of a block of 512)", dict(T=5, S=250, causal=True, window=(60, None), sinks=True)),
    ("option_chunk_of_first_row_64", dense_rows, dict(bm=64, bn=48), "chunk_of_first_row", 64,
     "The chunk is that of the first row of the row tile of 64 for all its rows.",
     "chunk, rows of one tile of 64 in different chunks", dict(T=100, S=100, causal=True, chunk=50)),
    ("option_right_edge_tiles_192", dense_rows, dict(bm=64, bn=192), "right_edge_tiles", 192,
     "With a right window edge > 0, tiles of 192 keys after the one that holds the diagonal of the last row are skipped.",
     "window with right > 0 that reaches into the next tile: more than 192 keys", dict(T=100, S=400, window=(None, 120), q_offset=90)),
    # ---- paged (14)
    ("paged_last_page_whole_16", paged_pages, {}, "last_page_whole", 16,
     "Slots past the length in the last page are not hidden.",
     "length % page size != 0 and no causal limit, or any call whose limit is not the length", dict(ps=16, lengths=(300, 77, 210))),
    ("paged_fill_modulo_32", paged_pages, {}, "fill_modulo", 32,
     "The last page holds length % page_size keys, which is 0 where it is full: a full last page is left out.",
     "a length that is a multiple of the page size", dict(ps=32, width=8, lengths=(128, 77, 64))),
    ("paged_page_after_full_64", paged_pages, {}, "page_after_full", 64,
     "length // page_size + 1 pages are read: where the last page is full, one more whole page counts, from the next table entry (or the next row of the table).",
     "a length that is a multiple of the page size, no causal limit", dict(ps=64, width=4, lengths=(128, 77, 64))),
    ("paged_table_stride_8", paged_pages, {}, "table_stride", 8,
     "Rows of the block table are taken to be ceil(longest length / page_size) wide instead of its width: from sequence 1 on entries of other sequences are read.",
     "more than one sequence and a table wider than the longest sequence", dict(ps=8, width=24, lengths=(100, 77, 120))),
    ("paged_page_kept_256", paged_pages, {}, "page_kept", 256,
     "A page is loaded only when its number in the sequence differs from the one loaded last: after a sequence of a single page, the next sequence reads that page as its first.",
     "a sequence of at most one page followed by another one, pages of any size, here 256", dict(ps=256, width=2, lengths=(200, 100, 300))),
    ("paged_half_page_base_128", paged_pages, {}, "half_page_base", 128,
     "Pages of more than 64 slots are handled in parts of 64; in the parts after the first the position of a key lacks the 64, for causal limit, ALiBi and length.",
     "page size > 64; a length whose last page is partial, ALiBi, or causal with several rows", dict(ps=128, width=3, lengths=(300, 177, 210))),
    ("paged_window_last_row_16", paged_pages, {}, "window_start_last_row", 16,
     "The first page to visit is computed from the left window edge of the last row, so earlier rows lose keys.",
     "window with a left edge and more than one row", dict(ps=16, T=40, causal=True, window=(50, None), lengths=(300, 77, 210))),
    ("paged_empty_reads_page_64", paged_pages, {}, "empty_reads_page", 64,
     "A sequence of length 0 reads its first page, all of it ((0 - 1) % page_size + 1 slots): an output where 0 is due.",
     "a length of 0 without causal", dict(ps=64, width=4, lengths=(100, 0, 210))),
    ("paged_pages_contiguous_tile_64", paged_gather, dict(tile=64), "pages_contiguous", 64,
     "Only the first table entry of a tile of 64 tokens is looked up; the other pages of the tile are taken to follow it in memory.",
     "page size below 64, a shuffled table, more keys than a page", dict(ps=16)),
    ("paged_page_by_shift_48", paged_gather, dict(tile=96), "page_by_shift", 48,
     "Page and slot come from a shift and a mask, as if the page size were a power of two.",
     "page size not a power of two (48 here), more keys than the power of two below it", dict(ps=48, width=8)),
    ("paged_tail_of_longest_32", paged_gather, dict(tile=32), "tail_from_longest", 32,
     "How many keys count in the last tile of 32 is computed from the longest sequence of the batch for all of them.",
     "sequences whose lengths differ modulo 32", dict(ps=16, lengths=(300, 77, 210))),
    ("paged_unwritten_parts_256", paged_partitions, dict(part=256), "unwritten_parts", 256,
     "The reduction runs over the partitions of the longest sequence for all; those that a shorter sequence never wrote count as maximum 0, sum 1, output 0.",
     "sequences with different numbers of partitions of 256 tokens", dict(ps=32, width=20, lengths=(600, 20, 300))),
    ("paged_full_parts_unmasked_128", paged_partitions, dict(part=128), "full_parts_unmasked", 128,
     "Partitions of 128 tokens other than the last are taken to be wholly visible to all rows: causal, window and chunk are not applied there.",
     "more than 128 keys and several rows that cross a partition, or a window, or q_offset", dict(T=20, lengths=(300, 130, 262), causal=True)),
    ("paged_join_eight_parts_64", paged_partitions, dict(part=64), "join_eight", 64,
     "The reduction joins at most eight partitions of 64 tokens.",
     "a length above 512", dict(ps=64, width=12, lengths=(700, 100, 513))),
    # ---- packed (12)
    ("packed_stale_tile_tail_64", packed_stream, dict(tile=64), "stale_tile_tail", 64,
     "The last partial tile of 64 keys is used whole: the rest of the buffer holds keys of the tile before, of another sequence or of an earlier call.",
     "a sequence with keys % 64 != 0 and no causal limit", dict()),
    ("packed_stale_empty_32", packed_stream, dict(tile=32), "stale_empty", 32,
     "A sequence with rows but no keys skips the clearing of its state, and its rows get results of the sequence before.",
     "a sequence with rows and without keys after one with keys", dict(q=(40, 6, 9), kv=(50, 0, 20))),
    ("packed_key_start_from_q_16", packed_stream, dict(tile=16), "key_start_from_q", 16,
     "From the second tile of 16 keys on, the start of a sequence's keys comes from cu_q instead of cu_kv.",
     "cu_q differs from cu_kv, more than 16 keys in a later sequence", dict()),
    ("packed_bound_from_longest_96", packed_stream, dict(tile=96), "bound_from_longest", 96,
     "With causal, the last tile of 96 keys to visit is computed from the longest lengths of the batch (max_kv - max_q); sequences with a greater offset lose tiles.",
     "causal, more than 96 keys, a sequence with few rows on many keys beside one with many rows", dict(q=(200, 3, 40), kv=(200, 190, 100), causal=True)),
    ("packed_spill_next_48", packed_stream, dict(tile=48), "spill_next", 48,
     "The last tile of 48 keys of a sequence runs on into the keys of the next sequence.",
     "keys % 48 != 0 in a sequence that is not the last, no causal limit", dict()),
    ("packed_cleared_by_first_128", packed_stream, dict(tile=128), "cleared_by_first", 128,
     "Running maximum and denominator are cleared for as many rows as the first sequence has; longer sequences later begin with what was left there.",
     "a short first sequence, then two longer ones, or a second call", dict(q=(5, 60, 70), kv=(30, 150, 90))),
    ("packed_grid_short_128", packed_schedule, dict(bm=128, bn=64), "grid_short", 128,
     "ceil(total rows / 128) tiles of rows are started, but ragged sequences need more: the sequences scheduled last get zeros.",
     "several sequences that do not fill tiles of 128 rows", dict(q=(70, 5, 130), kv=(90, 40, 133))),
    ("packed_step_over_empty_64", packed_schedule, dict(bm=64, bn=64), "step_not_loop", 64,
     "The search for a tile's sequence steps on by one instead of until it fits: after a sequence without rows the first tile of the next is lost.",
     "a sequence without rows that is scheduled before another", dict(q=(70, 0, 33), kv=(90, 60, 33))),
    ("packed_square_without_start_256", packed_schedule, dict(bm=64, bn=256), "square_without_start", 256,
     "Bias and masks are read without the start of the sequence's keys from the second tile of 256 keys on.",
     "bias, mask or dropout with more than 256 keys in a sequence that is not the first", dict(q=(20, 30), kv=(40, 400), bias="full")),
    ("packed_item_8bit_16", packed_schedule, dict(bm=16, bn=256), "item_8bit", 16,
     "The number of a tile of 16 rows is 8 bits wide: rows beyond 256 tiles are never computed.",
     "more than 4096 rows together", dict(H=1, K=1, q=(2000, 2300), kv=(60, 50), D=8, E=8)),
    ("packed_whole_tile_stored_64", packed_schedule, dict(bm=64, bn=32), "whole_tile_stored", 64,
     "The last partial tile of a sequence stores 64 rows: the first rows of the next sequence become 0 where that was computed before (longer sequences are).",
     "a sequence with fewer keys, rows % 64 != 0, before one with more", dict(q=(70, 50), kv=(90, 200))),
    ("packed_length_of_slot_384", packed_schedule, dict(bm=128, bn=384), "length_of_slot", 384,
     "The number of tiles of 384 keys comes from the length of the sequence with the number of the place in the schedule, not of the sequence.",
     "sequences not sorted by length, more than 384 keys", dict(q=(4, 4), kv=(100, 500))),
    # ---- latent (4)
    ("latent_rope_buffer_64", latent_tiles, dict(bn=64, head_tile=64), "rope_buffer", 64,
     "In the last tile of 64 keys, where the number of tiles is even, the rotary keys are those of the tile before; the latents are right.",
     "65 to 128 keys, 193 to 256, ...", dict(S=240)),
    ("latent_tail_zero_32", latent_tiles, dict(bn=32, head_tile=64), "latent_tail_zero", 32,
     "The last partial tile of 32 latents is filled with zeros that are not hidden: each counts exp(0).",
     "more than 32 keys, keys % 32 != 0, no causal limit", dict(S=100)),
    ("latent_head_tail_16", latent_tiles, dict(bn=128, head_tile=16), "head_tail", 16,
     "Heads are computed 16 at a time, heads // 16 times: the heads left over stay 0.",
     "more than 16 heads, not a multiple of 16", dict(H=20, S=50)),
    ("latent_tiles_floor_128", latent_splits, dict(bn=128, splits=4), "tiles_floor", 128,
     "Each of at most four splits takes tiles // splits tiles of 128 keys: the tiles left over are forgotten.",
     "more than 512 keys, ceil(keys / 128) not a multiple of 4", dict(S=600)),
]  # fmt: skip

FAULTS, CORRECT, CASES = [], [], {}
for _name, _core, _sizes, _fault, _tile, _words, _shows, _case in TABLE:
    _form, _supports = CORES[_core]
    _kernel = make_kernel(_name, _form, _core, _supports, _sizes, _fault)
    CASES[_name] = BASE[_form] | _case
    FAULTS.append(dict(name=_name, form=_form, kernel=_kernel, tile=_tile, supports=list(_supports), words=_words, shows=_shows,
                       call=CASES[_name], base=_core.__name__, kind="option" if _name.startswith("option") else _form))  # fmt: skip
    _right = make_kernel("right_" + _name, _form, _core, _supports, _sizes)
    CORRECT.append(dict(name="right_" + _name, form=_form, kernel=_right, tile=_tile, supports=list(_supports), words="no fault",
                        shows="never", base=_core.__name__, kind=FAULTS[-1]["kind"]))  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------------------
# Calls
# ---------------------------------------------------------------------------------------------------------------------------------


def make_call(form, case, seed=0):
    """Arrays and options of one call."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.standard_normal(shape, dtype=F)  # noqa: E731
    c, H = case, case["H"]
    opt, batch = {}, ()
    if form == "dense":
        batch = tuple(c["B"])
        arrays = [normal(*batch, h, n, d) for h, n, d in ((H, c["T"], c["D"]), (c["K"], c["S"], c["D"]), (c["K"], c["S"], c["E"]))]
        T, S = c["T"], c["S"]
    elif form == "paged":
        B, ps, width = c["B"], c["ps"], c["width"]
        batch, T, S = (B,), c["T"], width * ps
        pages = B * width + 2
        arrays = [normal(B, H, T, c["D"]), normal(pages, c["K"], ps, c["D"]), normal(pages, c["K"], ps, c["E"])]
        opt["block_table"] = rng.permutation(pages)[: B * width].reshape(B, width)
        opt["kv_lengths"] = np.array(c["lengths"])
    elif form == "packed":
        T, S = sum(c["q"]), sum(c["kv"])
        arrays = [normal(H, T, c["D"]), normal(c["K"], S, c["D"]), normal(c["K"], S, c["E"])]
        opt["cu_q"], opt["cu_kv"] = (np.concatenate([[0], np.cumsum(c[x])]) for x in ("q", "kv"))
    else:
        batch = tuple(c["B"])
        T, S = c["T"], c["S"]
        arrays = [normal(*batch, H, T, c["N"]), normal(*batch, H, T, c["R"]), normal(*batch, S, c["C"]), normal(*batch, S, c["R"]),
                  normal(H, c["N"], c["C"]) / F(math.sqrt(c["C"])), normal(H, c["E"], c["C"])]  # fmt: skip
    for name in ("causal", "window", "chunk", "softcap", "scale", "q_offset"):
        if name in c:
            opt[name] = c[name]
    if "q_offset" in c:
        opt["q_offset"] = np.array(c["q_offset"])
    if form != "paged" and "kv_lengths" in c:
        opt["kv_lengths"] = np.array(c["kv_lengths"])
    if c.get("alibi"):
        opt["alibi_slopes"] = F(0.5) ** np.arange(1, H + 1, dtype=F)
    if c.get("sinks"):
        opt["sinks"] = normal(H)
    if isinstance(c.get("bias"), float):
        opt["bias"] = np.full((T, S), c["bias"], F)
    elif c.get("bias"):
        opt["bias"] = normal(*((1,) * len(batch)), H, T, S) if c["bias"] == "heads" else normal(T, S)
    if c.get("mask"):
        opt["mask"] = rng.random((T, S)) < (0.02 if c["mask"] == "sparse" else 0.6)
    if c.get("dropout"):
        opt["dropout_mask"], opt["dropout_rate"] = rng.random((T, S)) >= c["dropout"], c["dropout"]
    return arrays, opt


def make_calls(name):
    """The calls of `CASES[name]`, in order: [(arrays, options), ...]."""
    form = next(f["form"] for f in FAULTS if f["name"] == name)
    return [make_call(form, CASES[name], seed) for seed in range(CASES[name].get("calls", 1))]
