"""60 faults, the second set, planted in kernels of our own: 12 base kernels in float32 NumPy, each with a `fault` switch.

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


def seen(o, p, j, *, length=None, left=None, chunk_shift=0):
    """(rows, keys): positions p may see keys j, by length, causal, window and chunk."""
    d = j[None, :] - p[:, None]
    ok = (d <= o.right) & (j < (o.length if length is None else length)) & (d >= -(o.left if left is None else left))
    if o.chunk:
        ok = ok & ((j[None, :] + chunk_shift) // o.chunk == ((p + chunk_shift) // o.chunk)[:, None])
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
    H, T, D = q.shape
    S, E, group = k.shape[1], v.shape[2], H // k.shape[0]
    out, lse = np.zeros((H, T, E), F), np.full((H, T), NEG)
    special = Specials(out.shape)
    row_tiles = ceil_div(T, bm)
    if fault == "grid_rows_floor" and T > bm:
        row_tiles = T // bm
    used = D
    if fault == "head_dim_tail" and D > 32:
        used = D // 32 * 32

    for r0 in range(0, row_tiles * bm, bm):
        r1 = min(r0 + bm, T)
        rows, p = slice(r0, r1), o.offset + np.arange(r0, r1)
        qt = q[:, rows, :used] * o.scale
        t = len(p)
        m, l, acc = np.full((H, t), NEG), np.zeros((H, t), F), np.zeros((H, t, E), F)
        if o.sinks is not None:
            m[:], l[:] = o.sinks[:, None], (o.sinks > NEG)[:, None]

        lo, hi = max(0, int(p[0]) - o.left), min(o.length, int(p[-1]) + o.right + 1)
        if fault == "causal_bound_row0":
            hi = min(hi, int(p[0]) + o.right + 1)
        if fault == "causal_bound_no_offset" and o.right < BIG:
            hi = min(hi, r1 + o.right)
        if o.chunk:
            lo, hi = max(lo, int(p[0]) // o.chunk * o.chunk), min(hi, (int(p[-1]) // o.chunk + 1) * o.chunk)
        first = lo // bn
        if fault == "chunk_lo_up" and o.chunk:
            first = ceil_div(lo, bn)
        tiles = range(first, ceil_div(hi, bn))
        m_tile = None
        for tile in tiles:
            c0, c1 = tile * bn, min(tile * bn + bn, S)
            cols, j = slice(c0, c1), np.arange(c0, c1)
            kt, vt = np.repeat(k[:, cols, :used], group, axis=0), np.repeat(v[:, cols], group, axis=0)
            if fault == "overrun_stage" and tile + 3 < tiles.stop:  # three buffers, but the fourth tile is already on its way
                late = np.repeat(k[:, (tile + 3) * bn : (tile + 4) * bn, :used], group, axis=0)
                kt[:, : late.shape[1]] = late
            if fault == "tail_not_swizzled" and c1 - c0 < bn:  # stored plainly, read through the swizzle
                local = np.arange(c1 - c0)
                at = local ^ (local >> 3 & 7)
                vt = np.where((at < c1 - c0)[:, None], vt[:, np.minimum(at, c1 - c0 - 1)], F(0))

            s = cap(qt @ kt.swapaxes(1, 2), o)
            if o.slopes is not None:
                s = s - o.slopes[:, None, None] * np.abs(p[:, None] - j[None, :]).astype(F)
            if o.bias is not None:
                s = s + o.bias[:, rows, cols].astype(F)
            ok = seen(o, p, j)
            if o.mask is not None:
                ok = ok & (o.mask[:, : r1 - r0, cols] if fault == "mask_rows_of_tile" else o.mask[:, rows, cols])
                if fault == "break_on_hidden" and not ok.any():
                    break
            s, ok = hide(s, ok)
            keep = None if o.keep is None else o.keep[:, rows, cols]
            if keep is not None and fault == "keep_head_stride":  # heads of the mask lie T rows apart, not the padded number
                flat = np.ascontiguousarray(o.keep).reshape(-1)
                row = np.arange(H)[:, None] * (ceil_div(T, bm) * bm) + np.arange(r0, r1)
                keep = flat[(row[..., None] * S + j) % flat.size]

            m_tile = s.max(axis=2, initial=NEG)
            new = np.maximum(m, m_tile)
            base = finite(new)
            w, alpha = np.exp(s - base[..., None]), np.exp(m - base)
            l = l * alpha + w.sum(axis=2)
            if keep is not None:
                w, ok = np.where(keep, w / (F(1) - o.rate), F(0)), ok & keep
            acc = acc * alpha[..., None] + special.times(w, ok, vt, rows)
            m = new
        if fault == "lse_last_tile_max" and len(tiles) > 1:
            m = m_tile
        out[:, rows] = ratio(acc, l)
        lse[:, rows] = np.where(l == 0, NEG, m + np.log(l))
    if fault == "decode_tiles":  # started for ceil(T / bm) tiles a head, decoded with T // bm + 1
        n = T // bm + 1
        done = np.zeros(H * n, bool)
        done[: H * ceil_div(T, bm)] = True
        for h, tile in np.argwhere(~done.reshape(H, n)):
            out[h, tile * bm : tile * bm + bm], lse[h, tile * bm : tile * bm + bm] = 0, NEG
    return special.add(out), lse


# ---------------------------------------------------------------------------------------------------------------------------------
# Dense 2: keys outside, the state of all rows in memory (FlashAttention-1)
# ---------------------------------------------------------------------------------------------------------------------------------


def dense_keys(q, k, v, o, *, bn, fault, state):
    H, T, D = q.shape
    S, E = k.shape[1], v.shape[-1]
    g = H // len(k)
    O, L, M = np.zeros((H, T, E), F), np.zeros((H, T), F), np.full((H, T), NEG)
    pos = o.offset + np.arange(T)
    special = Specials(O.shape)
    n_tiles = ceil_div(o.length, bn)

    for n in range(n_tiles):
        begin, end = n * bn, min((n + 1) * bn, o.length)
        if fault == "tail_overlap" and end - begin < bn and n > 0:  # moved back to be full
            begin = end - bn
        # rows that see any key of the tile
        top = max(0, begin - o.right - o.offset)
        if fault == "rows_rounded_up":
            top = ceil_div(top, 128) * 128
        bottom = min(T, end + o.left - o.offset)
        if fault == "window_bottom_begin":
            bottom = min(T, begin + o.left + 1 - o.offset)
        if top >= bottom:
            continue
        r = slice(top, bottom)
        K, V = k[:, begin:end].repeat(g, 0), v[:, begin:end].repeat(g, 0)

        X = np.einsum("htd,hcd->htc", q[:, r], K, optimize=True) * o.scale
        ok = seen(o, pos[r], np.arange(begin, end))
        if o.mask is not None:
            ok = ok & o.mask[:, r, begin:end]
        if fault == "cap_after_mask":
            X, ok = np.where(ok, X, NEG), np.True_
        X = cap(X, o)
        if o.bias is not None:
            B = o.bias[:, r, begin:end].astype(F)
            if fault == "bias_next_tile" and begin + bn < o.length:  # the prefetched tile of the next step
                late = o.bias[:, r, begin + bn : min(begin + 2 * bn, o.length)]
                B[..., : late.shape[-1]] = late
            X = X + B
        X, ok = hide(X, ok)

        m_old = M[:, r]
        m_new = np.maximum(m_old, X.max(-1, initial=NEG))
        shift = finite(m_new)
        P = np.exp(X - shift[..., None])
        shrink = np.exp(m_old - shift)
        L[:, r] = L[:, r] * shrink + P.sum(-1)
        O[:, r] = O[:, r] * shrink[..., None] + special.times(P, ok, V, r)
        M[:, r] = m_new

    if o.sinks is not None:
        m_new = np.maximum(M, o.sinks[:, None])
        shift = finite(m_new)
        shrink = np.exp(M - shift)
        L, O, M = L * shrink + np.exp(o.sinks[:, None] - shift), O * shrink[..., None], m_new
    return special.add(ratio(O, L)), np.where(L == 0, NEG, M + np.log(L))


# ---------------------------------------------------------------------------------------------------------------------------------
# Dense 3: splits of the keys, each a whole softmax in a workspace, then one join (flash decoding)
# ---------------------------------------------------------------------------------------------------------------------------------


def tree(n):
    """Which of n parts a halving reduction brings to place 0: all, where n is a power of two."""
    groups, step = [[i] for i in range(n)], n // 2
    while step:
        for i in range(step):
            groups[i] += groups[i + step]
        step //= 2
    return groups[0] if n else []


def dense_split(q, k, v, o, *, split, fault, state):
    n_heads, n_rows, _ = q.shape
    n_keys, dim = k.shape[1], v.shape[2]
    share = n_heads // k.shape[0]
    result, result_lse = np.zeros((n_heads, n_rows, dim), F), np.full((n_heads, n_rows), NEG)
    special = Specials(result.shape)
    late = -1
    if fault == "race_join" and o.length > split:
        rng = state.setdefault("rng", np.random.default_rng(5))
        if rng.random() < 0.07:
            late = int(rng.integers(ceil_div(o.length, split)))

    for r0 in range(0, n_rows, 512):
        rows = slice(r0, min(r0 + 512, n_rows))
        p = o.offset + np.arange(rows.start, rows.stop)
        t = len(p)
        most, count = ceil_div(n_keys, split), ceil_div(o.length, split)
        # one workspace for all calls; it only grows
        need = max(most, 1) * n_heads * t
        if state.get("room", 0) < need:
            state["room"], state["lse"] = need, np.full(need, NEG)
        if state.get("room_out", 0) < need * dim:
            state["room_out"], state["out"] = need * dim, np.zeros(need * dim, F)
        part_lse = state["lse"][: most * n_heads * t].reshape(most, n_heads, t)
        part_out = state["out"][: most * n_heads * t * dim].reshape(most, n_heads, t, dim)

        first_seen = max(0, int(p[0]) - o.left)
        for i in range(count):
            a, b = i * split, min((i + 1) * split, o.length)
            hidden = b <= first_seen or a > int(p[-1]) + o.right
            if hidden and not (i == 0 and o.sinks is not None):
                part_out[i], part_lse[i] = 0, NEG
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
            gained = ratio(special.times(w, ok, np.repeat(v[:, a:b], share, 0), rows), total)
            if i != late:  # else the join reads the place before this lands
                part_out[i] = gained
            part_lse[i] = np.where(total == 0, NEG, base + np.log(total))

        joined = tree(count) if fault == "tree_join" else list(range(count))
        if not joined and o.sinks is not None:
            result_lse[:, rows] = np.broadcast_to(o.sinks[:, None], (n_heads, t)).astype(F)
            continue
        highest = finite(part_lse[joined].max(0, initial=NEG))
        if fault == "join_minus_first" and joined:
            highest = part_lse[0]
        weight = np.exp(part_lse[joined] - highest)
        total = weight.sum(0)
        result[:, rows] = ratio((weight[..., None] * part_out[joined]).sum(0), total)
        with_all = np.where(total == 0, NEG, highest + np.log(total))
        if fault == "lse_log2_joined" and count > 1:
            with_all = with_all * F(math.log2(math.e))
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
    if fault == "plan_cached":  # the plan of a shape is made once
        tiles = tiles[: state.setdefault((heads, T, D, S), len(tiles))]

    def scores(rows, p, a, b):
        s = (q[:, rows] * o.scale) @ k[kv_of, a:b].swapaxes(-1, -2)
        s = cap(s, o)
        j = np.arange(a, b)
        if o.slopes is not None:
            s = s - np.abs(p[:, None] - j).astype(F) * o.slopes[:, None, None]
        if o.bias is not None:
            s = s + o.bias[:, rows, a:b].astype(F)
        return hide(s, np.broadcast_to(seen(o, p, j), s.shape))

    top_all, total_all = np.full((heads, 256), NEG), np.zeros((heads, 256), F)
    for r0 in range(0, T, 256):
        rows = slice(r0, min(T, r0 + 256))
        p = o.offset + np.arange(rows.start, rows.stop)
        useful = [(a, b) for a, b in tiles if a <= int(p[-1]) + o.right and b > int(p[0]) - o.left]
        top, total = top_all[:, : len(p)], total_all[:, : len(p)]
        if not (fault == "stats_kept" and r0 > 0):
            top[:], total[:] = NEG, 0
            if o.sinks is not None:
                top[:], total[:] = o.sinks[:, None], (o.sinks > NEG)[:, None]
        for a, b in useful:
            s, _ = scores(rows, p, a, b)
            higher = np.maximum(top, s.max(-1, initial=NEG))
            total[:] = total * np.exp(top - finite(higher)) + np.exp(s - finite(higher)[..., None]).sum(-1)
            top[:] = higher
        lse[:, rows] = np.where(total == 0, NEG, top + np.log(total))
        acc = np.zeros((heads, len(p), v.shape[2]), F)
        for a, b in useful:
            s, ok = scores(rows, p, a, b)
            weight = np.exp(s - finite(top)[..., None])
            if o.keep is not None:
                kept = o.keep[:, rows, a:b]
                weight, ok = weight * kept / (F(1) - o.rate), ok & kept
            at = np.arange(a, b)
            if fault == "prologue_tile0" and a == useful[0][0]:
                at = at - a
            if fault == "second_box":  # a tile is copied as boxes of 256 rows, all from the coordinates of the first
                at = a + (at - a) % 256
            acc += special.times(weight, ok, v[kv_of[:, None], at], rows)
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
    acc_all, lse_all = np.zeros((KV, T * G, E), F), np.full((KV, T * G), NEG)
    special = Specials(acc_all.shape)

    for x0 in range(0, T * G, bm):
        x = np.arange(x0, min(x0 + bm, T * G))
        xs = slice(x0, x0 + len(x))
        p = o.offset + x // G
        m, l = np.full((KV, len(x)), NEG), np.zeros((KV, len(x)), F)
        acc = np.zeros((KV, len(x), E), F)
        n_hi = ceil_div(min(o.length, int(p[-1]) + o.right + 1), bn)
        n_lo = max(0, int(p[0]) - o.left) // bn
        for n in range(n_hi - 1, n_lo - 1, -1):
            c0, c1 = n * bn, min(n * bn + bn, S)
            kt, vt = k[:, c0:c1], v[:, c0:c1]
            j = np.arange(c0, c1)
            left_edge = c0 < p[-1] - o.left
            if fault == "left_mask_last_step" and n > n_lo:
                left_edge = False
            masked = c1 > o.length or c1 - 1 > p[0] + o.right or left_edge
            s = cap((packed[:, xs] * o.scale) @ kt.swapaxes(1, 2), o) * LOG2E
            if slope is not None:
                steep = slope[:, xs, None]
                if fault == "alibi_base_e" and not masked:
                    steep = steep * LN2
                s = s - steep * np.abs(p[:, None] - j).astype(F)
            ok = seen(o, p, j, left=None if left_edge else BIG) if masked else np.True_
            if masked:
                s = np.where(ok, s, NEG)
            new = np.maximum(m, s.max(-1, initial=NEG))
            at = finite(new)
            w, shrink = np.exp2(s - at[..., None]), np.exp2(m - at)
            if fault == "lazy_rescale":  # no rescaling where no maximum of the tile grew by 8; but the maximum moves on
                grew = np.where(new == m, F(0), new - m).max(-1, keepdims=True)
                shrink = np.where(grew < 8, F(1), shrink)
            l = l * shrink + w.sum(-1)
            acc = acc * shrink[..., None] + special.times(w, ok, vt, xs)
            m = new
        if sink is not None:
            own = sink[:, x0 : x0 + 1] if fault == "sink_of_first_row" else sink[:, xs]
            new = np.maximum(m, own)
            at = finite(new)
            shrink = np.exp2(m - at)
            l, acc, m = l * shrink + np.exp2(own - at), acc * shrink[..., None], new
        acc_all[:, xs] = ratio(acc, l)
        lse_all[:, xs] = np.where(l == 0, NEG, (m + np.log2(l)) * LN2)
    unfold = lambda x: x.reshape(KV, T, G, x.shape[2]).swapaxes(1, 2).reshape(H, T, x.shape[2])  # noqa: E731
    if fault == "lse_packed_order":
        return unfold(special.add(acc_all)), lse_all.reshape(H, T)
    return unfold(special.add(acc_all)), unfold(lse_all[..., None])[..., 0]


# ---------------------------------------------------------------------------------------------------------------------------------
# Paged 1: one page a step, the table as flat memory
# ---------------------------------------------------------------------------------------------------------------------------------


def paged_pages(q, kp, vp, table, lengths, seqs, *, fault, state):
    B, H, T, D = q.shape
    n_pages, KV, ps, _ = kp.shape
    E, width = vp.shape[3], table.shape[1]
    out, lse = np.zeros((B, H, T, E), F), np.full((B, H, T), NEG)
    slot = np.arange(ps)
    m, l, acc = np.full((H, T), NEG), np.zeros((H, T), F), np.zeros((H, T, E), F)

    def load(pages, page):
        if fault == "page_layout":  # slots before heads
            return np.repeat(pages[page].reshape(ps, KV, -1).swapaxes(0, 1), H // KV, axis=0)
        return np.repeat(pages[page], H // KV, axis=0)

    for b, o in enumerate(seqs):
        L = o.length
        p = o.offset + np.arange(T)
        if fault == "offset_of_first":
            p = seqs[0].offset + np.arange(T)
        special = Specials((H, T, E))
        count = ceil_div(L, ps)
        start = max(0, int(p[0]) - o.left) // ps if T else count
        if fault == "window_start_up" and T:
            start = ceil_div(max(0, int(p[0]) - o.left), ps)
        if not (fault == "clear_at_page0" and start > 0):
            m, l, acc = np.full((H, T), NEG), np.zeros((H, T), F), np.zeros((H, T, E), F)
        for i in range(start, count):
            page = int(table[b, i])
            if fault == "page_id_8bit":
                page &= 255
            kt = load(kp, page)
            vt = load(vp, int(table[b, min(i + 1, count - 1)]) if fault == "value_page_next" else page)
            fill = min(ps, L - i * ps)
            if fault == "fill_vector8" and fill >= 8:
                fill = fill // 8 * 8
            j = i * ps + slot
            s = cap(np.matmul(q[b], kt.swapaxes(1, 2)) * o.scale, o)
            if o.slopes is not None:
                s = s - o.slopes[:, None, None] * np.abs(p[:, None] - j).astype(F)
            if o.bias is not None:
                s = s + o.bias[:, :, j].astype(F)
            ok = seen(o, p, j, length=BIG) & (slot < fill)
            if o.mask is not None:
                ok = ok & o.mask[:, :, j]
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
    if fault == "table_cached":  # copied to the device when its shape changes
        if state.get("table") is None or state["table"].shape != table.shape:
            state["table"] = table.copy()
        table = state["table"] % pages
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
            inside = j < o.length
            number, slot = j // page_size, j % page_size
            if fault == "slot_from_tile_start":
                number, slot = c0 // page_size + (j - c0) // page_size, (j - c0) % page_size
            line = table[b - 1] if fault == "table_stale_first_tile" and b > 0 and c0 == 0 else table[b]
            page = line[np.where(inside, number, 0)]
            page = np.where(inside, page, page[0])
            kt = kp[page, :, slot].swapaxes(0, 1).repeat(heads // kv_heads, axis=0)
            vt = vp[page, :, slot].swapaxes(0, 1).repeat(heads // kv_heads, axis=0)
            s = cap(o.scale * (q[b] @ kt.transpose(0, 2, 1)), o)
            if o.slopes is not None:
                s -= o.slopes.reshape(-1, 1, 1) * np.abs(position[:, None] - j[None]).astype(F)
            ok = seen(o, position, j, length=BIG) & inside
            if o.mask is not None:
                column = j
                if fault == "mask_by_slot":
                    column = (page * page_size + slot) % o.mask.shape[2]
                ok = ok & o.mask[:, :, column]
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
    if fault == "max_len_cached":  # the grid of the first call is replayed
        limit = state.setdefault("most", most)
        parts_of = [min(n, limit) for n in parts_of]
    maxima, sums = np.full((B, most, H, T), NEG), np.zeros((B, most, H, T), F)
    partial = np.zeros((B, most, H, T, E), F)
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
            s, ok = hide(s, seen(o, p, j))
            top = s.max(-1, initial=NEG)
            w = np.exp(s - finite(top)[..., None])
            maxima[b, i], sums[b, i] = top, w.sum(-1)
            partial[b, i] = specials[b].times(w, ok, np.repeat(vt, H // KV, 0))

    out, lse = np.zeros((B, H, T, E), F), np.full((B, H, T), NEG)
    stride = most
    if fault == "workspace_stride":  # written `most` apart, read as far apart as the table could hold
        stride = ceil_div(table.shape[1] * ps, part)
    flat = [x.reshape(B * most, *x.shape[2:]) for x in (maxima, sums, partial)]
    for b in range(B):  # the reduce kernel
        n = parts_of[b]
        tops, own_sums, own = (x[(b * stride + np.arange(n)) % max(1, B * most)] for x in flat)
        highest = tops.max(0, initial=NEG)
        sinks = None if fault == "single_part_no_sink" and n == 1 else seqs[b].sinks
        if sinks is not None:
            highest = np.maximum(highest, sinks[:, None])
        at = finite(highest)
        weight = np.exp(tops - at)
        total = (weight * own_sums).sum(0)
        if sinks is not None:
            total = total + np.exp(sinks[:, None] - at)
        out[b] = specials[b].add(ratio((weight[..., None] * own).sum(0), total))
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
        if fault == "v_tail_uninit":
            state["v"][:] = np.nan  # what the memory happened to hold
    longest_q = max((int(cu_q[n + 1] - cu_q[n]) for n in range(len(seqs))), default=0)
    if state.get("row_shape") != (H, E) or state["m"].shape[1] < longest_q:
        state["row_shape"] = (H, E)
        state["m"], state["l"] = np.full((H, longest_q), NEG), np.zeros((H, longest_q), F)
        state["acc"] = np.zeros((H, longest_q, E), F)
    kbuf, vbuf, m, l, acc = (state[x] for x in ("k", "v", "m", "l", "acc"))
    out, lse = np.zeros((H, q.shape[1], E), F), np.full((H, q.shape[1]), NEG)
    late = -1
    if fault == "race_buffer" and any(o.length > tile for o in seqs):
        rng = state.setdefault("rng", np.random.default_rng(11))
        if rng.random() < 0.07:
            late = int(rng.choice([n for n, o in enumerate(seqs) if o.length > tile]))

    for n, o in enumerate(seqs):
        a, b, c, d = int(cu_q[n]), int(cu_q[n + 1]), int(cu_kv[n]), int(cu_kv[n + 1])
        R = b - a
        if R == 0:
            continue
        m[:, :R], l[:, :R], acc[:, :R] = NEG, 0, 0
        M, L, A = m[:, :R], l[:, :R], acc[:, :R]
        shift = o.offset
        if fault == "positions_global" and not o.given_offset:
            shift = a - c
        if fault == "offset_clamped":
            shift = max(0, shift)
        p = shift + np.arange(R)
        special = Specials((H, R, E))
        start = max(0, int(p[0]) - o.left) // tile
        if fault == "window_start_global":
            start = max(0, a + int(p[0]) - o.left) // tile
        stop = ceil_div(min(o.length, shift + R - 1 + o.right + 1), tile)
        for t in range(start, stop):
            j0 = t * tile
            w = min(tile, o.length - j0)
            src = c + j0
            if fault == "prefetch_skipped" and t == start and n > 0 and cu_q[n] == cu_q[n - 1]:
                src = int(cu_kv[n - 1])  # fetched ahead for a sequence that then had no rows
            new_keys = w // 2 if n == late and t == stop - 1 and t > 0 else w
            kbuf[:, :new_keys], vbuf[:, :w] = k[:, src : src + new_keys], v[:, src : src + w]
            j = np.arange(j0, j0 + w)
            s = np.repeat(kbuf[:, :w], H // KV, 0)
            s = cap((q[:, a:b] @ s.transpose(0, 2, 1)) * o.scale, o)
            if o.slopes is not None:
                s = s - o.slopes[:, None, None] * np.abs(p[:, None] - j).astype(F)
            if o.bias is not None:
                s = s + o.bias[:, :, j].astype(F)
            ok = seen(o, p, j)
            if o.mask is not None:
                ok = ok & o.mask[:, :, j]
            s, ok = hide(s, ok)
            new = np.maximum(M, s.max(-1, initial=NEG))
            at = finite(new)
            weight, shrink = np.exp(s - at[..., None]), np.exp(M - at)
            L[:] = L * shrink + weight.sum(-1)
            A[:] = A * shrink[..., None] + special.times(weight, ok, np.repeat(vbuf[:, :w], H // KV, 0))
            if fault == "v_tail_uninit" and w < tile:  # weights of 0, but 0 * NaN is NaN
                A[:] += np.repeat((vbuf[:, w:] * F(0)).sum(1), H // KV, 0)[:, None, :]
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
    counted = range(len(seqs)) if fault == "ends_unsorted" else order
    ends = np.concatenate([[0], np.cumsum([ceil_div(int(q_lens[n]), bm) for n in counted])]).astype(int)
    out, lse = np.zeros((H, total_q, E), F), np.full((H, total_q), NEG)
    special = Specials(out.shape)

    work, slot = [], 0
    for item in range(int(ends[-1])):
        while item > ends[slot + 1] if fault == "boundary_search" else item >= ends[slot + 1]:
            slot += 1
        n = order[slot]
        first = int(cu_q[n]) + (item - int(ends[slot])) * bm
        last = min(first + bm, int(cu_q[n + 1]))
        if last > first:
            work.append((n, first, last))
    if fault == "tile_of_first_row":  # tiles of the rows of all sequences together
        work = [(int(np.searchsorted(cu_q, r, side="right")) - 1, r, min(r + bm, total_q)) for r in range(0, total_q, bm)]
    if fault == "schedule_cached":
        work = state.setdefault((len(seqs), total_q), work)
    lse_start = {n: int(cu_q[n]) for n in range(len(seqs))}
    if fault == "lse_sorted_offset":
        at_row = 0
        for n in order:
            lse_start[n], at_row = at_row, at_row + int(q_lens[n])

    for n, first, last in work:
        o = seqs[n]
        rows, key0 = slice(first, last), int(cu_kv[n])
        spread = lambda x: x.repeat(g, 0)  # noqa: E731
        if fault == "short_heads_modulo" and q_lens[n] <= bm // 2:
            spread = lambda x: np.tile(x, (g, 1, 1))  # noqa: E731
        p = o.offset + np.arange(first, last) - int(cu_q[n])
        m, l, acc = np.full((H, last - first), NEG), np.zeros((H, last - first), F), np.zeros((H, last - first, E), F)
        if o.sinks is not None:
            m[:], l[:] = o.sinks[:, None], (o.sinks > NEG)[:, None]
        t0 = max(0, int(p[0]) - o.left) // bn
        t1 = ceil_div(min(o.length, int(p[-1]) + o.right + 1), bn)
        for t in range(t0, t1):
            c = slice(t * bn, min(t * bn + bn, o.length))
            j = np.arange(c.start, c.stop)
            at_memory = slice(key0 + c.start, key0 + c.stop)
            s = cap((q[:, rows] * o.scale) @ spread(k[:, at_memory]).swapaxes(1, 2), o)
            if o.full_bias is not None:
                s = s + o.full_bias[:, rows, at_memory].astype(F)
            ok = seen(o, p, j, chunk_shift=key0 if fault == "chunk_global" else 0)
            if o.full_mask is not None:
                ok = ok & o.full_mask[:, rows, at_memory]
            s, ok = hide(s, ok)
            new = np.maximum(m, s.max(-1, initial=NEG))
            at = finite(new)
            w, shrink = np.exp(s - at[..., None]), np.exp(m - at)
            l = l * shrink + w.sum(-1)
            if o.full_keep is not None:
                kept = o.full_keep[:, rows, at_memory]
                w, ok = w * kept / (F(1) - o.rate), ok & kept
            acc = acc * shrink[..., None] + special.times(w, ok, spread(v[:, at_memory]), rows)
            m = new
        out[:, rows] = ratio(acc, l)
        start = lse_start[n] + first - int(cu_q[n])
        lse[:, start : start + last - first] = np.where(l == 0, NEG, m + np.log(l))
    return special.add(out), lse


# ---------------------------------------------------------------------------------------------------------------------------------
# Latent 1 and 2: absorbed MLA; heads in tiles of 16 over one stream of latents, and a version with splits
# ---------------------------------------------------------------------------------------------------------------------------------


def latent_tiles(qn, qr, latent, rope, w_uk, w_uv, o, *, bn, head_tile, fault, state):
    H, T, _ = qn.shape
    S, C = latent.shape
    out, lse = np.zeros((H, T, w_uv.shape[1]), F), np.full((H, T), NEG)
    p = o.offset + np.arange(T)
    for g in range(ceil_div(H, head_tile)):
        hs = slice(g * head_tile, min(H, g * head_tile + head_tile))
        h = hs.stop - hs.start
        ql = qn[hs] @ w_uk[hs]
        m, l, acc = np.full((h, T), NEG), np.zeros((h, T), F), np.zeros((h, T, C), F)
        special = Specials(acc.shape)
        n = ceil_div(o.length, bn)
        for t in range(n):
            a, b = t * bn, min(t * bn + bn, o.length)
            c, r = latent[a:b], rope[a:b]
            j = np.arange(a, b)
            s = cap((ql @ c.T + qr[hs] @ r.T) * o.scale, o)
            ok = seen(o, p, j)
            if o.mask is not None:
                ok = ok & o.mask[hs, :, a:b]
            s, ok = hide(s, ok)
            new = np.maximum(m, s.max(-1, initial=NEG))
            at = finite(new)
            w, shrink = np.exp(s - at[..., None]), np.exp(m - at)
            l = l * shrink + w.sum(-1)
            if fault == "shared_overwritten" and b < o.length:  # the next tile has arrived in the one buffer of keys and values
                late = latent[b : min(b + bn, o.length)]
                c = np.concatenate([late, c[len(late) :]])
            acc = acc * shrink[..., None] + special.times(w, ok, c)
            m = new
        if o.sinks is not None:
            new = np.maximum(m, o.sinks[hs, None])
            at = finite(new)
            shrink = np.exp(m - at)
            l, acc, m = l * shrink + np.exp(o.sinks[hs, None] - at), acc * shrink[..., None], new
        up = w_uv[:h] if fault == "up_of_first_tile" else w_uv[hs]
        out[hs] = special.add(ratio(acc, l)) @ up.swapaxes(1, 2)
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
    special = Specials(qn.shape[:2] + (C,))
    parts = []
    for i in range(n_splits):
        a, b = i * per * bn, min((i + 1) * per * bn, o.length)
        if a >= b:
            continue
        m, l, acc = np.full(ql.shape[:2], NEG), np.zeros(ql.shape[:2], F), np.zeros(special.shape, F)
        before = np.ones_like(m)
        for c0 in range(a, b, bn):
            c1 = min(c0 + bn, b)
            ok = seen(o, p, np.arange(c0, c1))
            if fault == "mask_last_tile_only" and c1 < o.length:
                ok = np.ones_like(ok)
            s, ok = hide(cap(ql @ stored[c0:c1].T, o), ok)
            new = np.maximum(m, s.max(-1, initial=NEG))
            w = np.exp(s - finite(new)[..., None])
            shrink = np.exp(m - finite(new))
            factor = np.repeat(shrink[..., None], C, -1)
            if fault == "half_rescale_late":  # the second half of the latents reads the factor before it is written
                factor[..., C // 2 :] = before[..., None]
            acc = acc * factor + special.times(w, ok, stored[c0:c1, :C])
            l, m, before = l * shrink + w.sum(-1), new, shrink
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
    # ---- dense tiles (20)
    ("dense_causal_bound_first_row_128", dense_rows, dict(bm=128, bn=64), "causal_bound_row0", 128,
     "The number of key tiles of a tile of 128 rows comes from the causal limit of its first row: later rows lose tiles of 64 keys.",
     "causal (or a right window edge), rows of one tile whose limits lie in different tiles of 64 keys", dict(T=200, S=200, causal=True)),
    ("dense_causal_bound_without_offset_32", dense_rows, dict(bm=64, bn=32), "causal_bound_no_offset", 32,
     "With causal the loop over tiles of 32 keys ends at the last row's index, as if rows and keys began together; the mask itself uses the offset.",
     "causal, more keys than rows (or a q_offset > 0): decode with a cache", dict(T=50, S=180, causal=True)),
    ("dense_pipeline_overrun_16", dense_rows, dict(bm=64, bn=16), "overrun_stage", 16,
     "Three key buffers, but the load of the tile three steps ahead is issued before the current tile is used: its keys are overwritten (values are right).",
     "more than three tiles of 16 keys in the loop of a row tile", dict(T=8, S=120)),
    ("dense_tail_without_swizzle_64", dense_rows, dict(bm=64, bn=64), "tail_not_swizzled", 64,
     "The predicated load of the last partial tile of 64 values stores rows plainly, but they are read through the xor swizzle of the full tiles.",
     "keys % 64 > 8", dict(T=9, S=230)),
    ("dense_head_dim_floor_32", dense_rows, dict(bm=64, bn=64), "head_dim_tail", 32,
     "The product of queries and keys runs over head_dim // 32 blocks of 32: the elements left over are ignored.",
     "head_dim above 32 and not a multiple of 32 (40, 80, ...)", dict(T=9, S=100, D=48)),
    ("dense_row_grid_floor_256", dense_rows, dict(bm=256, bn=128), "grid_rows_floor", 256,
     "rows // 256 row tiles are started: the rows left over stay 0, with lse -inf.",
     "more than 256 rows, rows % 256 != 0", dict(T=300, S=60)),
    ("dense_lse_last_tile_max_128", dense_rows, dict(bm=64, bn=128), "lse_last_tile_max", 128,
     "The output is right; the lse uses the row maximum of the last tile of 128 keys instead of the running maximum.",
     "more than 128 keys", dict(T=20, S=300)),
    ("dense_grid_decode_exact_64", dense_rows, dict(bm=64, bn=96), "decode_tiles", 64,
     "The grid has ceil(rows / 64) tiles a head, the kernel decodes its number with rows // 64 + 1: where rows fill their tiles, the last heads' tiles are never computed.",
     "rows a multiple of 64", dict(T=128, S=70)),
    ("dense_window_rows_rounded_192", dense_keys, dict(bn=192), "rows_rounded_up", 192,
     "Keys outside, rows inside: the first row that a tile of 192 keys concerns under causal is rounded up, not down, to a tile of 128 rows.",
     "causal (or a right window edge), keys beyond 192 with rows that begin inside a tile of 128", dict(T=400, S=400, H=2, K=1, causal=True)),
    ("dense_tail_overlap_twice_80", dense_keys, dict(bn=80), "tail_overlap", 80,
     "The last partial tile of 80 keys is moved back to be full; the keys that it shares with the tile before count twice.",
     "more than 80 keys, keys % 80 != 0", dict(T=20, S=200)),
    ("dense_split_race_join_128", dense_split, dict(split=128), "race_join", 128,
     "A race: in about one sequence of fifteen the join reads one split's output before it is written, and gets what the workspace held (zeros or an earlier call).",
     "more than 128 keys, about one sequence in fifteen", dict(T=4, S=300, calls=80, any=True)),
    ("dense_split_minus_first_256", dense_split, dict(split=256), "join_minus_first", 256,
     "The join subtracts the lse of split 0 instead of the largest: NaN where a row sees nothing in the first 256 keys.",
     "more than 256 keys, a window or mask that hides the first 256 from a row; also very different lse", dict(T=3, S=400, window=(60, None), causal=True)),
    ("dense_split_tree_join_32", dense_split, dict(split=32), "tree_join", 32,
     "The join halves the number of splits at each step: where that is odd (not a power of two splits) the one left over is lost.",
     "a number of splits of 32 keys that is not a power of two, as 65 to 96 keys", dict(T=4, S=180)),
    ("dense_split_lse_base_two_96", dense_split, dict(split=96), "lse_log2_joined", 96,
     "The lse is returned in base 2 where splits of 96 keys were joined; with one split it is natural.",
     "more than 96 keys", dict(T=4, S=250)),
    ("dense_stats_kept_256", dense_two_pass, dict(bn=64), "stats_kept", 256,
     "Running maximum and denominator are not cleared before the second and later tiles of 256 rows: those begin with the sums of the rows before.",
     "more than 256 rows", dict(H=2, K=1, T=300, S=100)),
    ("dense_prologue_tile_zero_48", dense_two_pass, dict(bn=48), "prologue_tile0", 48,
     "Before the loop the values of tile 0 are fetched, also where the loop begins at a later tile of 48 keys because of the window.",
     "a window whose left edge lies beyond the first 48 keys for all rows of a tile", dict(T=20, S=200, causal=True, window=(60, None))),
    ("dense_plan_cached_lengths_64", dense_two_pass, dict(bn=64), "plan_cached", 64,
     "The number of tiles of 64 keys is planned once for heads, rows, head_dim and keys, without kv_lengths: a longer sequence after a shorter one loses tiles.",
     "kv_lengths: a sequence with more tiles of 64 keys than the first one of the same shapes, in this or a later call", dict(B=(2,), T=5, S=200, kv_lengths=(50, 200))),
    ("dense_second_box_512", dense_two_pass, dict(bn=512), "second_box", 512,
     "A tile of 512 values is copied as two boxes of 256, both from the coordinates of the first: keys 256 to 511 of a tile get the values of keys 0 to 255.",
     "more than 256 keys", dict(T=4, S=400)),
    ("dense_lazy_rescale_128", dense_pack_gqa, dict(bm=128, bn=128), "lazy_rescale", 128,
     "Rescaling is skipped for a tile where no row's maximum grew by 8 or more (base 2), but the maximum is moved on all the same.",
     "more than 128 keys", dict(T=20, S=300)),
    ("dense_lse_packed_order_64", dense_pack_gqa, dict(bm=64, bn=64), "lse_packed_order", 64,
     "The output is brought back from the packed order (row, head of the group); the lse is stored as it lies.",
     "more than one query head to a key/value head and more than one row", dict(T=10, S=70)),
    # ---- options that depend on tiles (10)
    ("option_window_rows_of_tile_start_64", dense_keys, dict(bn=64), "window_bottom_begin", 64,
     "Keys outside, rows inside: the last row that a tile of 64 keys concerns is computed from the first key of the tile and the left window edge, not the last key.",
     "window with a left edge, more rows or keys than that edge", dict(T=100, S=150, window=(40, None))),
    ("option_left_edge_last_step_32", dense_pack_gqa, dict(bm=128, bn=32), "left_mask_last_step", 32,
     "The left window edge is applied only in the last step (leftmost tile of 32 keys), though the edges of a row tile can lie in several.",
     "window with a left edge, rows of a tile of 128 packed rows whose edges lie in different tiles of 32 keys", dict(T=100, S=200, causal=True, window=(40, None))),
    ("option_alibi_base_in_full_tiles_64", dense_pack_gqa, dict(bm=64, bn=64), "alibi_base_e", 64,
     "Scores are in base 2; in the loop over tiles that need no masks the ALiBi slope was not multiplied by log2(e).",
     "alibi_slopes and a tile of 64 keys that needs no mask", dict(T=40, S=200, causal=True, alibi=True)),
    ("option_break_on_hidden_tile_64", dense_rows, dict(bm=64, bn=64), "break_on_hidden", 64,
     "A tile of 64 keys that the mask hides wholly ends the loop instead of being skipped.",
     "a mask that hides a whole tile (64 rows, 64 keys) before visible keys", dict(T=30, S=250, mask=("hide", 60, 130))),
    ("option_mask_rows_of_tile_32", dense_rows, dict(bm=32, bn=64), "mask_rows_of_tile", 32,
     "The boolean mask is read at the row inside the tile of 32 rows, without the start of the tile.",
     "mask that differs between rows, more than 32 rows", dict(T=70, S=100, mask="random")),
    ("option_dropout_head_stride_64", dense_rows, dict(bm=64, bn=64), "keep_head_stride", 64,
     "Heads of the dropout mask are taken to lie at the number of rows padded to tiles of 64: from head 1 on the mask of other rows is read.",
     "dropout, rows % 64 != 0, more than one head", dict(T=20, S=100, dropout=0.4, dropout_heads=True)),
    ("option_sink_of_first_row_96", dense_pack_gqa, dict(bm=96, bn=48), "sink_of_first_row", 96,
     "One sink is read for a tile of 96 packed rows, that of its first row's head; the tile holds rows of all heads of the group.",
     "sinks, more than one query head to a key/value head", dict(T=10, S=30, sinks=True)),
    ("option_softcap_after_mask_16", dense_keys, dict(bn=16), "cap_after_mask", 16,
     "Softcap is applied after the mask: a hidden score becomes -softcap, and counts (where the row visits the tile of 16 keys).",
     "softcap with causal, a window or a mask that hides part of a visited tile", dict(T=40, S=40, causal=True, softcap=1.5)),
    ("option_chunk_start_rounded_up_96", dense_rows, dict(bm=64, bn=96), "chunk_lo_up", 96,
     "With chunk the first tile of 96 keys is the chunk's start rounded up: keys before the next tile boundary are lost.",
     "chunk whose start for a row tile of 64 is not a multiple of 96", dict(T=100, S=100, causal=True, chunk=40)),
    ("option_bias_next_tile_128", dense_keys, dict(bn=128), "bias_next_tile", 128,
     "The bias is fetched one tile of 128 keys ahead into the one buffer it has: each tile but the last gets the bias of the next.",
     "a bias that differs between keys, more than 128 keys", dict(T=10, S=300, bias="full")),
    # ---- paged (14)
    ("paged_value_page_next_16", paged_pages, {}, "value_page_next", 16,
     "The table entry of the next page is fetched before the values of this one are addressed: values come from the next page (keys and the last page are right).",
     "more than one page", dict()),
    ("paged_offset_of_first_32", paged_pages, {}, "offset_of_first", 32,
     "The positions of the rows of every sequence are those of sequence 0.",
     "sequences of different lengths with causal, window or ALiBi", dict(ps=32, width=10, T=4, lengths=(200, 77, 300), causal=True)),
    ("paged_page_id_8bit_8", paged_pages, {}, "page_id_8bit", 8,
     "The page number is 8 bits wide in the address.",
     "more than 256 pages", dict(ps=8, width=100, lengths=(700, 77, 410))),
    ("paged_window_start_up_64", paged_pages, {}, "window_start_up", 64,
     "The first page to visit is the window's left edge rounded up to a page: the visible slots of the page that holds the edge are lost.",
     "window with a left edge that lies inside a page", dict(ps=64, width=5, lengths=(300, 77, 210), causal=True, window=(100, None))),
    ("paged_cleared_at_page_zero_32", paged_pages, {}, "clear_at_page0", 32,
     "Running state is cleared when page 0 is loaded; where the window begins at a later page, a sequence goes on from the state of the one before.",
     "window with a left edge beyond the first page, a sequence that is not the first", dict(ps=32, width=10, lengths=(300, 177, 210), causal=True, window=(40, None))),
    ("paged_fill_vector_256", paged_pages, {}, "fill_vector8", 256,
     "The last page is read in vectors of 8 slots, fill // 8 of them: up to 7 last keys are lost (fewer than 8 keys are read one by one).",
     "length % 8 != 0, at least 8 keys in the last page", dict(ps=256, width=2, lengths=(303, 79, 214))),
    ("paged_page_layout_128", paged_pages, {}, "page_layout", 128,
     "Pages are read as (slot, head) though they are stored as (head, slot).",
     "more than one key/value head", dict(ps=128, width=3, lengths=(300, 177, 210))),
    ("paged_slot_of_tile_start_64", paged_gather, dict(tile=64), "slot_from_tile_start", 64,
     "Slots are counted from the start of the tile of 64 tokens, as if each tile began a page.",
     "page size that does not divide 64 (128, 256, 48), more than 64 keys", dict(ps=128, width=3, lengths=(300, 177, 210))),
    ("paged_table_of_sequence_before_32", paged_gather, dict(tile=32), "table_stale_first_tile", 32,
     "Table entries are fetched ahead; for the first tile of 32 tokens of a sequence the entries of the sequence before are still there.",
     "more than one sequence", dict(ps=8, width=40)),
    ("paged_mask_by_slot_96", paged_gather, dict(tile=96), "mask_by_slot", 96,
     "The mask is read at the place of the key in the cache (page * page_size + slot), not at its position in the sequence.",
     "mask that differs between keys, pages out of order", dict(ps=32, width=10, T=3, mask="random")),
    ("paged_table_cached_64", paged_gather, dict(tile=64), "table_cached", 64,
     "The block table is copied to the device only when its shape changes: a later call with another table of the same shape uses the first.",
     "a second call with a table of the same shape and other entries", dict(calls=2)),
    ("paged_workspace_stride_256", paged_partitions, dict(part=256), "workspace_stride", 256,
     "Partitions of 256 tokens are written as far apart as the longest sequence needs, and read as far apart as the table could hold.",
     "more than one sequence, and a table with room for more partitions than the longest sequence has", dict(ps=64, width=16, lengths=(300, 77, 410))),
    ("paged_single_part_no_sink_512", paged_partitions, dict(part=512), "single_part_no_sink", 512,
     "The reduction takes a short way where a sequence has one partition of 512 tokens, and leaves out the sink.",
     "sinks, a length of 1 to 512", dict(ps=64, width=12, lengths=(700, 27, 410), sinks=True)),
    ("paged_grid_replayed_128", paged_partitions, dict(part=128), "max_len_cached", 128,
     "The number of partitions of 128 tokens of the first call (its longest sequence) is replayed for later calls: longer sequences are cut.",
     "a later call with a longer sequence than any of the first", dict(ps=32, width=12, calls=2, earlier=dict(lengths=(100, 77, 90)))),
    # ---- packed (12)
    ("packed_positions_global_64", packed_stream, dict(tile=64), "positions_global", 64,
     "Positions compare rows and keys by their places in the packed arrays: right only where a sequence has as many keys before it as rows.",
     "causal, window or ALiBi, and a sequence with more (or fewer) keys than rows", dict(causal=True)),
    ("packed_race_key_buffer_96", packed_stream, dict(tile=96), "race_buffer", 96,
     "A race: in about one call of fifteen the second half of the last tile of 96 keys of one sequence has not landed: the keys of the tile before are used.",
     "a sequence of more than 96 keys, about one call in fifteen", dict(q=(20, 5, 33), kv=(190, 40, 133), calls=80, any=True)),
    ("packed_prefetch_of_skipped_32", packed_stream, dict(tile=32), "prefetch_skipped", 32,
     "The first tile of 32 keys of the next sequence is fetched ahead, also of one without rows that is then skipped: the sequence after it uses that tile.",
     "a sequence without rows but with keys before one with rows", dict(q=(40, 0, 9), kv=(50, 30, 40))),
    ("packed_window_start_global_16", packed_stream, dict(tile=16), "window_start_global", 16,
     "The first tile of 16 keys to visit is computed from the row's place in the packed array, not in its sequence: later sequences lose keys.",
     "window with a left edge, a sequence that is not the first", dict(window=(30, None), causal=True)),
    ("packed_value_tail_uninitialised_48", packed_stream, dict(tile=48), "v_tail_uninit", 48,
     "Behind the last key the value buffer of 48 keys is not cleared: weights of 0 meet what memory held, NaN in a fresh process (or infinities and NaN of earlier values).",
     "a first sequence of fewer than 48 keys in a fresh process, or values that are not finite in an earlier tile", dict(q=(7, 5, 33), kv=(40, 60, 33))),
    ("packed_offset_clamped_128", packed_stream, dict(tile=128), "offset_clamped", 128,
     "The offset keys - rows of a sequence is an unsigned number and clamped at 0: with more rows than keys the diagonal begins at the first row.",
     "causal, window or ALiBi with a sequence of more rows than keys", dict(q=(170, 5, 33), kv=(140, 40, 33), causal=True)),
    ("packed_ends_unsorted_32", packed_schedule, dict(bm=32, bn=64), "ends_unsorted", 32,
     "Sequences are taken longest first, but the table of tiles of 32 rows is summed in the order of the batch: sequences get another's number of tiles.",
     "sequences not sorted by keys, with different numbers of tiles of 32 rows", dict(q=(70, 5, 33), kv=(40, 90, 63))),
    ("packed_tile_of_first_row_16", packed_schedule, dict(bm=16, bn=64), "tile_of_first_row", 16,
     "Tiles of 16 rows run over all sequences together; a tile that holds a boundary is computed wholly in the sequence of its first row.",
     "a sequence boundary that is not a multiple of 16", dict()),
    ("packed_lse_in_schedule_order_64", packed_schedule, dict(bm=64, bn=128), "lse_sorted_offset", 64,
     "The output lies in the order of the batch, the lse in the order of the schedule (longest keys first).",
     "sequences not sorted by keys", dict(q=(20, 5, 33), kv=(40, 90, 63))),
    ("packed_chunk_global_384", packed_schedule, dict(bm=64, bn=384), "chunk_global", 384,
     "The borders of chunks are multiples of chunk in the packed keys, not in the sequence.",
     "chunk, and a sequence whose keys do not begin at a multiple of it", dict(chunk=25, causal=True)),
    ("packed_short_heads_modulo_128", packed_schedule, dict(bm=128, bn=64), "short_heads_modulo", 128,
     "Sequences of at most 64 rows (half a tile) take a path that packs heads, where query head h reads key/value head h % kv_heads.",
     "a sequence of at most 64 rows, more than one key/value head and more query heads", dict()),
    ("packed_schedule_cached_256", packed_schedule, dict(bm=256, bn=256), "schedule_cached", 256,
     "The list of row tiles is made once for the number of sequences and of rows: a later call that divides the same rows otherwise uses the first list.",
     "a later call with as many sequences and rows together, but other boundaries", dict(q=(60, 15, 33), calls=2, earlier=dict(q=(10, 70, 28)))),
    # ---- latent (4)
    ("latent_shared_tile_overwritten_64", latent_tiles, dict(bn=64, head_tile=64), "shared_overwritten", 64,
     "Latents are keys and values in one buffer of 64: the next tile is loaded after the scores, before the product with the values.",
     "more than 64 keys", dict(S=240)),
    ("latent_up_projection_first_heads_16", latent_tiles, dict(bn=128, head_tile=16), "up_of_first_tile", 16,
     "The value up-projection of every tile of 16 heads is that of the first.",
     "more than 16 heads", dict(H=20, S=50)),
    ("latent_mask_last_tile_only_128", latent_splits, dict(bn=128, splits=4), "mask_last_tile_only", 128,
     "Causal limit and window are applied only in the last tile of 128 keys: with several rows those before it see keys of their future.",
     "more than 128 keys with rows whose limit lies in an earlier tile, or a window", dict(T=4, S=258, causal=True)),
    ("latent_half_rescale_late_32", latent_splits, dict(bn=32, splits=2), "half_rescale_late", 32,
     "The second half of the latents is kept by other threads, which read the rescale factor of the tile of 32 keys before the new one is written.",
     "a split of more than one tile: more than 64 keys", dict(S=200)),
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
    if isinstance(c.get("mask"), tuple):  # ("hide", first, last)
        opt["mask"] = np.broadcast_to((np.arange(S) < c["mask"][1]) | (np.arange(S) >= c["mask"][2]), (T, S)).copy()
    elif c.get("mask"):
        opt["mask"] = rng.random((T, S)) < (0.02 if c["mask"] == "sparse" else 0.6)
    if c.get("dropout"):
        opt["dropout_mask"], opt["dropout_rate"] = rng.random((H, T, S) if c.get("dropout_heads") else (T, S)) >= c["dropout"], c["dropout"]
    return arrays, opt


def make_calls(name):
    """The calls of `CASES[name]`, in order: [(arrays, options), ...]. Those before the last differ by `earlier`, where a case has it."""
    form = next(f["form"] for f in FAULTS if f["name"] == name)
    case, count = CASES[name], CASES[name].get("calls", 1)
    return [make_call(form, case | (case.get("earlier", {}) if seed < count - 1 else {}), seed) for seed in range(count)]
