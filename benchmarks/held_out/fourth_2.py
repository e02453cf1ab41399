"""Wrong attention kernels, author F2.  FAULTS = [(name, sentence, tags, build), ...]"""
import functools
import math
import time
import zlib

import ml_dtypes
import numpy as np

F32 = np.dtype(np.float32)
F16 = np.dtype(np.float16)
BF16 = np.dtype(ml_dtypes.bfloat16)
DT = {"float32": F32, "float16": F16, "bfloat16": BF16}
NINF = np.float32(-np.inf)
TINY = np.float32(1e-30)


# --------------------------------------------------------------------------- small parts
def quiet(fn):
    @functools.wraps(fn)
    def inner(*a, **k):
        with np.errstate(all="ignore"):
            return fn(*a, **k)
    return inner


def f32(x):
    return np.asarray(x).astype(np.float32)


def rnd(x, dt):
    return x if dt == F32 else x.astype(dt).astype(np.float32)


def cdiv(a, b):
    return -(-a // b)


def up(a, b):
    return cdiv(a, b) * b


def hide(s, vis):
    return np.where(vis, s, NINF)


def exps(s, m):
    """exp(s - m), 0 where the row has no maximum yet"""
    return np.exp(s - np.where(m == NINF, np.float32(0), m)[..., None])


def alpha_of(m, mn):
    return np.where(m == NINF, np.float32(1), np.exp(m - np.where(mn == NINF, np.float32(0), mn)))


def pv(p, v, s):
    """p @ v, where keys of score -inf count for nothing even if their value is NaN or infinite"""
    fin = np.isfinite(v)
    if fin.all():
        return p @ v
    out = p @ np.where(fin, v, np.float32(0))
    n = v.shape[-2]
    for c in np.flatnonzero(~fin.all(-1).reshape(-1, n).all(0)):
        w = p[..., c]
        w = np.where(w == 0, TINY, w)[..., None]
        vb = np.where(fin[..., c, :], np.float32(0), v[..., c, :])[..., None, :]
        nb = ~fin[..., c, :][..., None, :]
        out = out + np.where((s[..., c] != NINF)[..., None] & nb, w * vb, np.float32(0))
    return out


def visible(pos, j, causal, window, chunk=None):
    pos, j = pos[:, None], j[None, :]
    ok = np.ones(np.broadcast_shapes(pos.shape, j.shape), bool)
    if causal:
        ok &= j <= pos
    if window is not None:
        left, right = window
        if left is not None:
            ok &= j - pos >= -left
        if right is not None:
            ok &= j - pos <= right
    if chunk is not None:
        ok &= (j // chunk == pos // chunk) & (pos >= 0)
    return ok


def finish(acc, l):
    """acc / l, 0 where nothing was seen"""
    return np.where(l[..., None] == 0, np.float32(0), acc / np.where(l == 0, np.float32(1), l)[..., None])


def lse_of(m, l):
    return np.where(l == 0, NINF, np.where(m == NINF, np.float32(0), m) + np.log(np.where(l == 0, np.float32(1), l)))


def add_sink(m, l, acc, sink):
    """lets a sink (one a head, (H,) or broadcastable to m) join the denominator"""
    sk = sink
    mn = np.maximum(m, sk)
    a = np.where(m == NINF, np.float32(0), np.exp(m - mn))
    return mn, l * a + np.exp(sk - mn), acc * a[..., None]


def per_batch(x, B):
    return None if x is None else np.broadcast_to(np.asarray(x), (B,))


# --------------------------------------------------------------------------- K1: tiled, dense
def tiled(F=None, BR=64, BC=64, lse=False):
    """FlashAttention-like: row tiles, key tiles, online softmax, vectorised over heads."""
    @quiet
    def kernel(query, key, value, *, causal=False, window=None, chunk=None, scale=None, softcap=None, bias=None,
               mask=None, alibi_slopes=None, sinks=None, kv_lengths=None, q_offset=None, dropout_mask=None,
               dropout_rate=None):
        dt = query.dtype
        lead = query.shape[:-3]
        B = int(np.prod(lead, dtype=int))
        H, T, D = query.shape[-3:]
        K, S = key.shape[-3:-1]
        E = value.shape[-1]
        G = H // K
        q = f32(query).reshape(B, H, T, D)
        k = f32(key).reshape(B, K, S, D)
        v = f32(value).reshape(B, K, S, E)
        if scale is None:
            scale = 1 / math.sqrt(D)
        scale = np.float32(scale)
        full = lead + (H, T, S)
        if bias is not None:
            bias = np.broadcast_to(f32(bias), full).reshape(B, H, T, S)
            if F == "bias_row_stride":
                flat = (np.arange(T)[:, None] * T + np.arange(S)[None]) % (T * S)
                bias = bias.reshape(B, H, T * S)[:, :, flat]
        if mask is not None:
            mask = np.broadcast_to(np.asarray(mask, bool), full).reshape(B, H, T, S)
            if F == "mask_any4":
                w = np.zeros((B, H, T, up(S, 4)), bool)
                w[..., :S] = mask
                mask = np.repeat(w.reshape(B, H, T, -1, 4).any(-1), 4, axis=-1)[..., :S]
        if dropout_mask is not None:
            keep = np.broadcast_to(np.asarray(dropout_mask, bool), full).reshape(B, H, T, S)
        if F == "single_row_not_causal" and T == 1:
            causal = False
        hm = np.arange(H) // G
        if F == "group_pow2":
            hm = np.arange(H) // (1 << (G - 1).bit_length())
        lens, offs = per_batch(kv_lengths, B), per_batch(q_offset, B)
        out = np.zeros((B, H, T, E), np.float32)
        ls = np.full((B, H, T), NINF, np.float32)
        if F == "lse_tail_tile":
            ls[:] = 0
        for b in range(B):
            n = S if lens is None else int(lens[b])
            off = n - T if offs is None else int(offs[b])
            kb, vb = k[b], v[b]
            if F in ("smooth_lse", "smooth_lse_ok"):
                seen = kb[:, :n]
                fin = np.isfinite(seen)
                mean = np.where(fin, seen, 0).sum(1, keepdims=True, dtype=np.float32) / np.float32(max(n, 1))
                kb = kb - mean
                shift = (q[b] @ mean[hm].transpose(0, 2, 1))[..., 0] * scale
            kb, vb = kb[hm], vb[hm]
            for r0 in range(0, T, BR):
                pstart = r0
                if r0 + BR > T and T >= BR and F in ("clamped_rows", "clamped_rows_ok"):
                    r0 = T - BR
                    if F == "clamped_rows_ok":
                        pstart = r0
                r1 = min(T, r0 + BR)
                R = r1 - r0
                pos = off + pstart + np.arange(R)
                lo, hi = 0, n
                if causal:
                    hi = min(hi, int(pos[-1]) + 1)
                if window is not None and window[1] is not None:
                    hi = min(hi, int(pos[-1]) + window[1] + 1)
                if window is not None and window[0] is not None:
                    lo = max(0, int(pos[0]) - window[0])
                    lo = up(lo, BC) if F == "left_tile_ceil" else lo // BC * BC
                m = np.full((H, R), np.float32(0) if F == "max_starts_at_0" else NINF, np.float32)
                l = np.zeros((H, R), np.float32)
                acc = np.zeros((H, R, E), np.float32)
                for c0 in range(lo, hi, BC):
                    j = np.arange(c0, min(c0 + BC, n))
                    if F == "key_tail_repeat":
                        j = np.minimum(np.arange(c0, c0 + BC), n - 1)
                    if F == "corner_skip" and mask is not None:
                        cor = mask[b][:, [r0, r0, r1 - 1, r1 - 1]][:, np.arange(4), [j[0], j[-1], j[0], j[-1]]]
                        live = cor.any(1)
                    s = (q[b, :, r0:r1] @ kb[:, j].transpose(0, 2, 1)) * scale
                    if softcap is not None:
                        s = np.float32(softcap) * np.tanh(s / np.float32(softcap))
                    if alibi_slopes is not None:
                        if F == "bf16_positions":
                            d = np.abs(pos.astype(np.float32).astype(BF16).astype(np.float32)[:, None]
                                       - j.astype(np.float32).astype(BF16).astype(np.float32)[None])
                        else:
                            d = np.abs(pos[:, None] - j[None]).astype(np.float32)
                        s = s - f32(alibi_slopes)[:, None, None] * d
                    if bias is not None:
                        s = s + bias[b, :, r0:r1][..., j]
                    vpos = pos
                    if F == "chunk_first_row" and chunk is not None:
                        ok = visible(pos, j, causal, window)
                        ok = ok & (j // chunk == pos[0] // chunk)[None] & (pos >= 0)[:, None]
                    else:
                        ok = visible(vpos, j, causal, window, chunk)
                    if mask is not None:
                        ok = ok & mask[b, :, r0:r1][..., j]
                        if F == "corner_skip":
                            ok = ok & live[:, None, None]
                    s = hide(s, ok)
                    tm = s.max(-1)
                    if F == "tile_max":
                        tm = np.broadcast_to(tm.max(-1, keepdims=True), tm.shape)
                    mn = np.maximum(m, tm)
                    if F in ("lazy_vote", "lazy_vote_ok"):
                        need = (mn > m + np.float32(5.545)) | (m == NINF)
                        mn = np.where(need, mn, m)
                    a = alpha_of(m, mn)
                    p = exps(s, mn)
                    if F == "row_pair_sum":
                        t = p.sum(-1)
                        if R > 1:
                            t2 = np.arange(R) ^ 1
                            odd = t2 >= R
                            t = t + np.where(odd, np.float32(0), t[:, np.where(odd, 0, t2)])
                            # two rows share one shuffle group
                        l = l * a + t
                    elif F == "dropout_sum" and dropout_mask is not None:
                        l = l * a + np.where(keep[b, :, r0:r1][..., j], p, np.float32(0)).sum(-1)
                    else:
                        l = l * a + p.sum(-1)
                    sv = s
                    if dropout_mask is not None:
                        kp = keep[b, :, r0:r1][..., j]
                        p = np.where(kp, p / np.float32(1 - (dropout_rate or 0.0)), np.float32(0))
                        sv = np.where(kp, s, NINF)
                    part = pv(rnd(p, dt), vb[:, j], sv)
                    if F == "rescale_64_columns":
                        acc[..., :64] *= a[..., None]
                        acc = acc + part
                    elif F == "lazy_vote" and c0 > lo:
                        go = need.all(-1)[:, None, None]
                        acc = np.where(go, acc * a[..., None], acc) + part
                    else:
                        acc = acc * a[..., None] + part
                    m = mn
                lo_ = None
                if sinks is not None:
                    sk = f32(sinks)[:, None]
                    if F == "sink_unshifted":
                        l = l + np.exp(sk)
                    else:
                        if F == "sink_not_in_lse":
                            lo_ = lse_of(m, l)
                        m, l, acc = add_sink(m, l, acc, sk)
                o = finish(acc, l)
                if F == "tail_columns" and E > 64 and E % 64:
                    t0 = E // 64 * 64
                    o[..., t0:] = o[..., E - 64:E - 64 + E - t0]
                out[b, :, r0:r1] = o
                lt = lse_of(m, l) if lo_ is None else lo_
                if F == "smooth_lse_ok":
                    lt = lt + shift[:, r0:r1]
                if not (F == "lse_tail_tile" and R < BR):
                    ls[b, :, r0:r1] = lt
        out = out.reshape(lead + (H, T, E)).astype(dt)
        return (out, ls.reshape(lead + (H, T))) if lse else out
    return kernel


# --------------------------------------------------------------------------- K2: split-KV decode, dense
def splitkv(F=None, NS=5, BC=32, lse=False):
    """Flash-decoding: each split handles a range of key tiles; partial (m, l, acc) in a flat workspace; tree reduction."""
    @quiet
    def kernel(query, key, value, *, causal=False, window=None, scale=None, softcap=None, alibi_slopes=None, sinks=None,
               q_offset=None, kv_lengths=None):
        dt = query.dtype
        lead = query.shape[:-3]
        B = int(np.prod(lead, dtype=int))
        H, T, D = query.shape[-3:]
        K, S = key.shape[-3:-1]
        E = value.shape[-1]
        hm = np.arange(H) // (H // K)
        q = f32(query).reshape(B, H, T, D)
        k = f32(key).reshape(B, K, S, D)
        v = f32(value).reshape(B, K, S, E)
        scale = np.float32(1 / math.sqrt(D) if scale is None else scale)
        lens, offs = per_batch(kv_lengths, B), per_batch(q_offset, B)
        out = np.zeros((B, H, T, E), np.float32)
        ls = np.full((B, H, T), NINF, np.float32)
        for b in range(B):
            n = S if lens is None else int(lens[b])
            off = n - T if offs is None else int(offs[b])
            pos = off + np.arange(T)
            kb, vb = k[b][hm], v[b][hm]
            tiles = cdiv(n, BC)
            per = max(1, cdiv(tiles, NS)) * BC          # keys a split
            if F == "split_floor":
                per = max(1, tiles // NS) * BC
            rows = up(T, 4) if F == "workspace_rows" else T
            wm = np.full(NS * H * rows, NINF, np.float32)
            wl = np.zeros(NS * H * rows, np.float32)
            wo = np.zeros((NS * H * rows, E), np.float32)
            for sp in range(NS):
                m = np.full((H, T), NINF, np.float32)
                l = np.zeros((H, T), np.float32)
                acc = np.zeros((H, T, E), np.float32)
                j = np.arange(min(n, sp * per), min(n, (sp + 1) * per))
                if len(j):
                    s = (q[b] @ kb[:, j].transpose(0, 2, 1)) * scale
                    if softcap is not None:
                        s = np.float32(softcap) * np.tanh(s / np.float32(softcap))
                    if alibi_slopes is not None:
                        s = s - f32(alibi_slopes)[:, None, None] * np.abs(pos[:, None] - j[None]).astype(np.float32)
                    jw = j
                    if F == "split_local_window" and window is not None:
                        ok = visible(pos, j, causal, None)
                        ok = ok & visible(pos - sp * per if sp == NS - 1 else pos, j, False, window)
                    else:
                        vp = np.full(T, pos[-1]) if F == "draft_rows_share" else pos
                        ok = visible(vp, jw, causal, window)
                    s = hide(s, ok)
                    m = s.max(-1)
                    p = exps(s, m)
                    l = p.sum(-1)
                    acc = pv(rnd(p, dt), vb[:, j], s)
                elif F == "empty_split":
                    m = np.zeros((H, T), np.float32)
                    l = np.ones((H, T), np.float32)
                if sinks is not None and F == "sink_each_split":
                    m, l, acc = add_sink(m, l, acc, f32(sinks)[:, None])
                if F in ("half_m", "half_m_ok"):
                    # the workspace holds normalised outputs and their lse
                    z = lse_of(m, l)
                    acc = finish(acc, l)
                    m, l = z, np.where(z == NINF, np.float32(0), np.float32(1))
                    if F == "half_m":
                        m = m.astype(np.float16).astype(np.float32)
                at = ((sp * H + np.arange(H))[:, None] * T + np.arange(T)[None])
                wm[at], wl[at], wo[at] = m, l, acc
            at = (np.arange(NS)[:, None, None] * H + np.arange(H)[None, :, None]) * rows + np.arange(T)
            M, L, O = wm[at], wl[at], wo[at]
            cnt = NS
            while cnt > 1:
                half = cnt // 2 if F == "tree_odd" else cdiv(cnt, 2)
                up_ = slice(half, 2 * half if F == "tree_odd" else cnt)
                w = M[up_].shape[0]
                mn = np.maximum(M[:w], M[up_])
                ms = np.where(mn == NINF, np.float32(0), mn)
                a, c = np.exp(M[:w] - ms), np.exp(M[up_] - ms)
                lo_, oo = L[:w] * a + L[up_] * c, None
                if F == "tree_l_unscaled":
                    lo_ = L[:w] + L[up_]
                oo = np.where(c[..., None] == 0, 0, O[up_] * c[..., None]) + np.where(a[..., None] == 0, 0, O[:w] * a[..., None])
                M[:w], L[:w], O[:w] = mn, lo_, oo
                cnt = half
            m, l, acc = M[0], L[0], O[0]
            if sinks is not None and F != "sink_each_split":
                m, l, acc = add_sink(m, l, acc, f32(sinks)[:, None])
            out[b], ls[b] = finish(acc, l), lse_of(m, l)
        out = out.reshape(lead + (H, T, E)).astype(dt)
        return (out, ls.reshape(lead + (H, T))) if lse else out
    return kernel


# --------------------------------------------------------------------------- K3: eager CPU kernel, dense
def eager(F=None, LANES=16, NTH=8, lse=False):
    """ONNX-runtime-like: gemm, elementwise, softmax by threads over rows, gemm."""
    @quiet
    def kernel(query, key, value, *, causal=False, window=None, scale=None, softcap=None, bias=None, mask=None,
               alibi_slopes=None, kv_lengths=None, q_offset=None):
        dt = query.dtype
        lead = query.shape[:-3]
        B = int(np.prod(lead, dtype=int))
        H, T, D = query.shape[-3:]
        K, S = key.shape[-3:-1]
        E = value.shape[-1]
        G = H // K
        hm = np.arange(H) // G
        q = f32(query).reshape(B, H, T, D)
        k = f32(key).reshape(B * K, S, D)
        v = f32(value).reshape(B * K, S, E)
        scale = np.float32(1 / math.sqrt(D) if scale is None else scale)
        lens, offs = per_batch(kv_lengths, B), per_batch(q_offset, B)
        full = lead + (H, T, S)
        if bias is not None:
            bias = np.broadcast_to(f32(bias), full).reshape(B, H, T, S)
        if mask is not None:
            mask = np.broadcast_to(np.asarray(mask, bool), full).reshape(B, H, T, S)
        out = np.zeros((B, H, T, E), np.float32)
        ls = np.full((B, H, T), NINF, np.float32)
        for b in range(B):
            n = S if lens is None else int(lens[b])
            if lens is not None and F == "lengths_by_bh":
                n = np.minimum(lens[np.minimum((b * H + np.arange(H)) // K, B - 1)], S).astype(int)
            off = (S if lens is None else int(lens[b])) - T if offs is None else int(offs[b])
            pos, j = off + np.arange(T), np.arange(S)
            at = b * K + hm
            av = at
            if F == "value_batch_stride":
                av = (b * H + hm) % (B * K)
            s = q[b] @ k[at].transpose(0, 2, 1)
            if F == "bias_then_scale" and bias is not None:
                s = s + bias[b]
            s = s * scale
            if softcap is not None and F != "softcap_after_alibi":
                s = np.float32(softcap) * np.tanh(s / np.float32(softcap))
            if alibi_slopes is not None:
                d = (pos[:, None] - j[None]).astype(np.float32)
                s = s - f32(alibi_slopes)[:, None, None] * (d if F == "alibi_signed" else np.abs(d))
            if softcap is not None and F == "softcap_after_alibi":
                s = np.float32(softcap) * np.tanh(s / np.float32(softcap))
            if bias is not None and F != "bias_then_scale":
                s = s + bias[b]
            ok = visible(pos, j, causal, window)[None]
            if F == "padding_left":
                ok = ok & (j >= S - n)
            elif F == "lengths_by_bh" and lens is not None:
                ok = ok & (j[None] < n[:, None])[:, None]
            else:
                ok = ok & (j < n)
            if mask is not None:
                ok = ok & mask[b]
            s = hide(s, np.broadcast_to(ok, s.shape))
            m = s.max(-1)
            p = exps(s, m)
            if F == "sum_lanes":
                l = p[..., :S // LANES * LANES].sum(-1)
            else:
                l = p.sum(-1)
            vb = v[av]
            if dt == F32:
                w = np.where(l[..., None] == 0, np.float32(0), p / np.where(l == 0, np.float32(1), l)[..., None])
                if F == "thread_rows":
                    done = (H * T) // NTH * NTH
                    flat = w.reshape(H * T, S).copy()
                    flat[done:] = s.reshape(H * T, S)[done:]
                    w = flat.reshape(H, T, S)
                o = pv(w, vb, s)
            else:
                pr = rnd(p, dt)
                if F == "odd_key":
                    e = S // 2 * 2
                    o = finish(pv(pr[..., :e], vb[:, :e], s[..., :e]), l)
                else:
                    o = finish(pv(pr, vb, s), l)
            out[b], ls[b] = o, lse_of(m, l)
        out = out.reshape(lead + (H, T, E)).astype(dt)
        return (out, ls.reshape(lead + (H, T))) if lse else out
    return kernel


# --------------------------------------------------------------------------- K4: persistent, double-buffered, dense
def persistent(F=None, BR=64, BC=32, NW=4, lse=False, ch=8):
    """Work tiles (batch, head, row tile) over NW workers; key/value tiles go through two shared-memory buffers."""
    @quiet
    def kernel(query, key, value, *, causal=False, window=None, scale=None, softcap=None, q_offset=None, alibi_slopes=None):
        dt = query.dtype
        lead = query.shape[:-3]
        B = int(np.prod(lead, dtype=int))
        H, T, D = query.shape[-3:]
        K, S = key.shape[-3:-1]
        E = value.shape[-1]
        G = H // K
        q = f32(query).reshape(B, H, T, D)
        k = f32(key).reshape(B, K, S, D)
        v = f32(value).reshape(B, K, S, E)
        scale = np.float32(1 / math.sqrt(D) if scale is None else scale)
        offs = per_batch(q_offset, B)
        out = np.zeros((B, H, T, E), np.float32)
        ls = np.zeros((B, H, T), np.float32)
        nr = cdiv(T, BR)
        # balanced order: tile i, then tile nr-1-i, so that causal work is even
        order = []
        for i in range(cdiv(nr, 2)):
            order.append(i)
            if nr - 1 - i != i or F == "middle_twice":
                order.append(nr - 1 - i)
        work = [(b, h, r) for b in range(B) for h in range(H) for r in order]
        waves = len(work) // NW if F == "last_wave" else cdiv(len(work), NW)
        nch = D // ch
        idx = np.arange(BC)[:, None]

        def swz(mod):
            c = (np.arange(D) // ch)[None]
            tail = (np.arange(D) >= nch * ch)[None]
            cc = (c + idx % mod) % max(nch, 1)
            return np.where(tail, np.arange(D)[None], cc * ch + (np.arange(D) % ch)[None])
        wr = swz(8)
        rd = swz(4) if F == "swizzle" else wr
        for w in range(NW):
            bk, bv = np.zeros((2, BC, D), np.float32), np.zeros((2, BC, E), np.float32)
            g = 0                                              # tiles this worker has loaded
            for x in range(waves):
                at = x * NW + w
                if at >= len(work):
                    continue
                b, h, r = work[at]
                off = S - T if offs is None else int(offs[b])
                r0, r1 = r * BR, min(T, r * BR + BR)
                pos = off + np.arange(r0, r1)
                hi = S
                if causal:
                    hi = min(hi, int(pos[-1]) + 1)
                R = r1 - r0
                m = np.full(R, NINF, np.float32)
                l = np.zeros(R, np.float32)
                acc = np.zeros((R, E), np.float32)
                for it, c0 in enumerate(range(0, max(hi, 0), BC)):
                    c1 = min(c0 + BC, S)
                    st = g % 2
                    kt = np.zeros((BC, D), np.float32)
                    kt[:c1 - c0] = k[b, h // G, c0:c1]
                    np.put_along_axis(bk[st], wr, kt, 1)
                    bv[st, :c1 - c0] = v[b, h // G, c0:c1]
                    bv[st, c1 - c0:] = 0
                    g += 1
                    if F == "stage_parity":
                        st = it % 2
                    kt = np.take_along_axis(bk[st], rd, 1)
                    s = q[b, h, r0:r1] @ kt.T
                    s = s * scale
                    j = np.arange(c0, c0 + BC)
                    if softcap is not None:
                        s = np.float32(softcap) * np.tanh(s / np.float32(softcap))
                    if alibi_slopes is not None:
                        s = s - f32(alibi_slopes)[h] * np.abs(pos[:, None] - j[None]).astype(np.float32)
                    s = hide(s, visible(pos, j, causal, window) & (j < c1)[None])
                    mn = np.maximum(m, s.max(-1))
                    a = alpha_of(m, mn)
                    p = exps(s, mn)
                    l = l * a + p.sum(-1)
                    acc = acc * a[:, None] + pv(rnd(p, dt), bv[st], s)
                    m = mn
                out[b, h, r0:r1] += finish(acc, l)
                ls[b, h, r0:r1] = lse_of(m, l)
        out = out.reshape(lead + (H, T, E)).astype(dt)
        return (out, ls.reshape(lead + (H, T))) if lse else out
    return kernel


# --------------------------------------------------------------------------- K5: packed, a tile list per sequence
def packed(F=None, BR=32, BC=32, lse=False):
    @quiet
    def kernel(query, key, value, *, cu_q, cu_kv, causal=False, window=None, scale=None, softcap=None,
               alibi_slopes=None, sinks=None):
        dt = query.dtype
        H, TQ, D = query.shape
        K, TK, E = value.shape
        q, hm = f32(query), np.arange(H) // (H // K)
        k, v = f32(key)[hm], f32(value)[hm]
        cu_q, cu_kv = [int(x) for x in cu_q], [int(x) for x in cu_kv]
        NB = len(cu_q) - 1
        scale = np.float32(1 / math.sqrt(D) if scale is None else scale)
        out = np.zeros((H, TQ, E), np.float32)
        lstride = up(TQ, 64) if F in ("lse_stride", "lse_stride_ok") else TQ
        ls = np.full(H * lstride, NINF, np.float32)
        m = np.full((H, BR), NINF, np.float32)
        l = np.zeros((H, BR), np.float32)
        acc = np.zeros((H, BR, E), np.float32)
        for b in range(NB):
            nq, nk = cu_q[b + 1] - cu_q[b], cu_kv[b + 1] - cu_kv[b]
            tiles = cdiv(nq, BR)
            if F == "mean_length_grid":
                tiles = min(tiles, cdiv(cdiv(TQ, NB), BR))
            for r in range(tiles):
                r0, r1 = r * BR, min(nq, r * BR + BR)
                R = r1 - r0
                pos = nk - nq + np.arange(r0, r1)
                qt = q[:, cu_q[b] + r0:cu_q[b] + r1]
                if not (F == "no_keys_no_reset" and nk == 0):
                    m = np.full((H, BR), NINF, np.float32)
                    acc = np.zeros((H, BR, E), np.float32)
                    if not (F == "sum_not_reset" and r0 > 0):
                        l = np.zeros((H, BR), np.float32)
                j0s = list(range(0, nk, BC))
                last = None
                for c0 in j0s:
                    c1 = min(c0 + BC, nk)
                    if F == "tile_overrun":
                        c1 = min(c0 + BC, TK - cu_kv[b])
                    j = np.arange(c0, c1)
                    s = (qt @ k[:, cu_kv[b] + c0:cu_kv[b] + c1].transpose(0, 2, 1)) * scale
                    if softcap is not None:
                        cap = np.float32(softcap)
                        if F == "tail_no_softcap" and c1 - c0 < BC:
                            pass
                        else:
                            s = cap * np.tanh(s / cap)
                    if alibi_slopes is not None:
                        sl = f32(alibi_slopes)
                        s = s - sl[:, None, None] * np.abs(pos[:, None] - j[None]).astype(np.float32)
                    s = hide(s, visible(pos, j, causal, window))
                    mn = np.maximum(m[:, :R], s.max(-1))
                    a = alpha_of(m[:, :R], mn)
                    p = exps(s, mn)
                    l[:, :R] = l[:, :R] * a + p.sum(-1)
                    if F == "sum_bf16":
                        l = l.astype(BF16).astype(np.float32)
                    vt = v[:, cu_kv[b] + c0:cu_kv[b] + c1]
                    if F == "drain_old_value" and c0 == j0s[-1] and last is not None:
                        vt = last[:, :c1 - c0]
                    acc[:, :R] = acc[:, :R] * a[..., None] + pv(rnd(p, dt), vt, s)
                    last = vt
                    m[:, :R] = mn
                mm, ll, oo = m[:, :R], l[:, :R], acc[:, :R]
                if sinks is not None:
                    mm, ll, oo = add_sink(mm, ll, oo, f32(sinks)[:, None])
                out[:, cu_q[b] + r0:cu_q[b] + r1] = finish(oo, ll)
                at = np.arange(H)[:, None] * lstride + np.arange(cu_q[b] + r0, cu_q[b] + r1)[None]
                ls[at] = lse_of(mm, ll)
        out = out.astype(dt)
        if F == "lse_stride":
            ls = ls[:H * TQ].reshape(H, TQ)
        else:
            ls = ls.reshape(H, lstride)[:, :TQ]
        return (out, ls.copy()) if lse else out
    return kernel


# --------------------------------------------------------------------------- K6: packed, tiles over the whole row axis
def ragged(F=None, BR=48, BC=64, lse=False):
    """Row tiles run over all packed rows and may cover several sequences; each row carries its sequence."""
    @quiet
    def kernel(query, key, value, *, cu_q, cu_kv, causal=False, window=None, scale=None, softcap=None):
        dt = query.dtype
        H, TQ, D = query.shape
        K, TK, E = value.shape
        q, hm = f32(query), np.arange(H) // (H // K)
        k, v = f32(key)[hm], f32(value)[hm]
        cq, ck = np.asarray(cu_q).astype(int), np.asarray(cu_kv).astype(int)
        NB = len(cq) - 1
        scale = np.float32(1 / math.sqrt(D) if scale is None else scale)
        out = np.zeros((H, TQ, E), np.float32)
        ls = np.full((H, TQ), NINF, np.float32)
        for r0 in range(0, TQ, BR):
            i = np.arange(r0, min(TQ, r0 + BR))
            R = len(i)
            sq = np.searchsorted(cq, i, side="left" if F == "search_left" else "right") - 1
            sq = np.clip(sq, 0, NB - 1)
            if F == "tile_first_seq":
                sq = np.full(R, sq[0])
            if F == "cumulative_offset":
                pos = i - cq[sq] + (ck[sq + 1] - cq[sq + 1]) - 0
            else:
                pos = i - cq[sq] + (ck[sq + 1] - ck[sq]) - (cq[sq + 1] - cq[sq])
            lo, hi = int(ck[sq.min()]), int(ck[sq.max() + 1])
            m = np.full((H, R), NINF, np.float32)
            l = np.zeros((H, R), np.float32)
            acc = np.zeros((H, R, E), np.float32)
            for c0 in range(lo, hi, BC):
                g = np.arange(c0, min(c0 + BC, hi))
                s = (q[:, i] @ k[:, g].transpose(0, 2, 1)) * scale
                if softcap is not None:
                    s = np.float32(softcap) * np.tanh(s / np.float32(softcap))
                ok = (g[None] >= ck[sq][:, None]) & (g[None] < ck[sq + 1][:, None])
                j = g[None] - ck[sq][:, None]
                if causal:
                    ok &= j <= pos[:, None]
                if window is not None:
                    if window[0] is not None:
                        ok &= j - pos[:, None] >= -window[0]
                    if window[1] is not None:
                        ok &= j - pos[:, None] <= window[1]
                s = hide(s, ok)
                mn = np.maximum(m, s.max(-1))
                a = alpha_of(m, mn)
                p = exps(s, mn)
                l = l * a + p.sum(-1)
                acc = acc * a[..., None] + pv(rnd(p, dt), v[:, g], s)
                m = mn
            out[:, i], ls[:, i] = finish(acc, l), lse_of(m, l)
        out = out.astype(dt)
        return (out, ls) if lse else out
    return kernel


# --------------------------------------------------------------------------- K7: paged, walking the block table
def paged(F=None, PPT=2, lse=False, PART=None):
    """PPT pages make a key tile; PART tiles make a partition (vLLM v2), or the whole walk is one."""
    @quiet
    def kernel(query, key_pages, value_pages, *, block_table, kv_lengths, causal=False, window=None, scale=None,
               softcap=None, alibi_slopes=None, sinks=None, q_offset=None):
        dt = query.dtype
        B, H, T, D = query.shape
        P, K, PS, E = value_pages.shape
        q, kp, vp = f32(query), f32(key_pages), f32(value_pages)
        hm = np.arange(H) // (H // K)
        table, lens = np.asarray(block_table).astype(int), np.asarray(kv_lengths).astype(int)
        MP = table.shape[1]
        offs = per_batch(q_offset, B)
        scale = np.float32(1 / math.sqrt(D) if scale is None else scale)
        out = np.zeros((B, H, T, E), np.float32)
        ls = np.full((B, H, T), NINF, np.float32)
        flat = table.ravel()
        stride = MP
        if F == "table_stride":
            stride = cdiv(int(lens.max()), PS) if B else MP
        tiles_max = cdiv(int(lens.max()) if B else 0, PPT * PS)
        part = PART or max(1, tiles_max)
        NP = max(1, cdiv(tiles_max, part))
        wm = np.full((NP, H, T), NINF, np.float32)
        wl = np.zeros((NP, H, T), np.float32)
        wo = np.zeros((NP, H, T, E), np.float32)
        for b in range(B):
            n = int(lens[b])
            off = n - T if offs is None else int(offs[b])
            if F == "offset_floor_0":
                off = max(off, 0)
            pos = off + np.arange(T)
            npage = cdiv(n, PS)
            tail = n - (npage - 1) * PS if npage else 0
            if F == "full_page_zero":
                tail = n % PS
            ids = flat[np.minimum(b * stride + np.arange(npage), flat.size - 1)] if npage else np.zeros(0, int)
            ids = np.clip(ids, 0, P - 1)
            if F == "table_cache_late":
                lp = np.arange(npage)
                ids = ids[np.where((lp % 8 == 0) & (lp > 0), lp - 8, lp)] if npage else ids
            if F == "contiguous_pair":
                lp = np.arange(npage)
                ids = np.where(lp % 2 == 1, (ids[np.maximum(lp - 1, 0)] + 1) % P, ids) if npage else ids
            ntile = cdiv(npage, PPT)
            if F not in ("stale_partitions",):
                wm[:], wl[:], wo[:] = NINF, 0, 0
            for w in range(cdiv(ntile, part)):
                m = np.full((H, T), NINF, np.float32)
                l = np.zeros((H, T), np.float32)
                acc = np.zeros((H, T, E), np.float32)
                for t in range(w * part, min(ntile, (w + 1) * part)):
                    lp = np.arange(t * PPT, min(npage, (t + 1) * PPT))
                    ph = ids[lp]
                    kt = kp[ph].transpose(1, 0, 2, 3).reshape(K, -1, D)[hm]
                    if F == "value_offset_16bit":
                        base = (ph * (K * PS * E)) % 65536
                        src = (base[None, :, None, None] + hm[:, None, None, None] * (PS * E)
                               + (np.arange(PS) * E)[:, None] + np.arange(E))
                        vt = vp.ravel()[src % vp.size].reshape(H, -1, E)
                    else:
                        vt = vp[ph].transpose(1, 0, 2, 3).reshape(K, -1, E)[hm]
                    j = (lp[:, None] * PS + np.arange(PS)).ravel()
                    s = (q[b] @ kt.transpose(0, 2, 1)) * scale
                    if softcap is not None:
                        s = np.float32(softcap) * np.tanh(s / np.float32(softcap))
                    if alibi_slopes is not None:
                        ja = (ph[:, None] * PS + np.arange(PS)).ravel() if F == "alibi_slot" else j
                        s = s - f32(alibi_slopes)[:, None, None] * np.abs(pos[:, None] - ja[None]).astype(np.float32)
                    if F == "window_page_start" and window is not None and window[0] is not None:
                        ok = visible(pos, j, causal, (None, window[1]))
                        ok = ok & (j[None] >= ((pos - window[0]) // PS * PS)[:, None])
                    else:
                        ok = visible(pos, j, causal, window)
                    live = np.where(lp == npage - 1, tail, PS)
                    ok = ok & (np.arange(PS)[None] < live[:, None]).ravel()[None]
                    s = hide(s, ok)
                    mn = np.maximum(m, s.max(-1))
                    a = alpha_of(m, mn)
                    p = exps(s, mn)
                    l = l * a + p.sum(-1)
                    acc = acc * a[..., None] + pv(rnd(p, dt), vt, s)
                    m = mn
                wm[w], wl[w], wo[w] = m, l, acc
            m = wm.max(0)
            e = exps(np.moveaxis(wm, 0, -1), m)
            e = np.moveaxis(e, -1, 0)
            l = (wl * e).sum(0)
            acc = np.where(e[..., None] == 0, np.float32(0), wo * e[..., None]).sum(0)
            if sinks is not None:
                if F == "sink_by_kv_head":
                    sk = f32(sinks)[hm][:, None]
                else:
                    sk = f32(sinks)[:, None]
                m, l, acc = add_sink(m, l, acc, sk)
            out[b], ls[b] = finish(acc, l), lse_of(m, l)
        out = out.astype(dt)
        return (out, ls) if lse else out
    return kernel


# --------------------------------------------------------------------------- K8: paged, cascade over a shared prefix
def cascade(F=None, lse=False):
    """Pages that all sequences share are attended once for the whole batch, the rest per sequence; states are merged."""
    @quiet
    def kernel(query, key_pages, value_pages, *, block_table, kv_lengths, causal=False, scale=None, softcap=None):
        dt = query.dtype
        B, H, T, D = query.shape
        P, K, PS, E = value_pages.shape
        q, kp, vp = f32(query), f32(key_pages), f32(value_pages)
        hm = np.arange(H) // (H // K)
        table, lens = np.asarray(block_table).astype(int), np.asarray(kv_lengths).astype(int)
        scale = np.float32(1 / math.sqrt(D) if scale is None else scale)
        table = np.clip(table, 0, P - 1)
        ref = table[:2] if F == "prefix_of_two" else table
        same = (ref == ref[:1]).all(0)
        # a page is shared where the ids agree and every sequence has it whole and before its rows
        full = max(0, int((lens - T).min())) // PS
        np_ = int(min(np.argmin(np.append(same, False)), full)) if B > 1 else 0
        out = np.zeros((B, H, T, E), np.float32)
        ls = np.full((B, H, T), NINF, np.float32)

        def state(qb, ids, j, n, pos):
            if len(ids) == 0:
                return (np.full((H, T), NINF, np.float32), np.zeros((H, T), np.float32), np.zeros((H, T, E), np.float32))
            kt = kp[ids].transpose(1, 0, 2, 3).reshape(K, -1, D)[hm]
            vt = vp[ids].transpose(1, 0, 2, 3).reshape(K, -1, E)[hm]
            s = (qb @ kt.transpose(0, 2, 1)) * scale
            if softcap is not None:
                s = np.float32(softcap) * np.tanh(s / np.float32(softcap))
            s = hide(s, visible(pos, j, causal, None) & (j < n)[None])
            m = s.max(-1)
            p = exps(s, m)
            return m, p.sum(-1), pv(rnd(p, dt), vt, s)

        for b in range(B):
            n = int(lens[b])
            pos = n - T + np.arange(T)
            npage = cdiv(n, PS)
            m1, l1, o1 = state(q[b], table[0, :np_], np.arange(np_ * PS), n, pos)
            m2, l2, o2 = state(q[b], table[b, np_:npage], np.arange(np_ * PS, npage * PS), n, pos)
            m = np.maximum(m1, m2)
            a, c = exps(m1[..., None], m)[..., 0], exps(m2[..., None], m)[..., 0]
            l = l1 * a + l2 * c
            out[b] = finish(o1 * a[..., None] + o2 * c[..., None], l)
            ls[b] = lse_of(m, l)
        out = out.astype(dt)
        return (out, ls) if lse else out
    return kernel


# --------------------------------------------------------------------------- K9: paged, v1: all logits in one buffer
def paged_v1(F=None, lse=False, CAP=256):
    """One block a (sequence, head, row): logits of the whole context in a buffer, softmax, then the value pass."""
    @quiet
    def kernel(query, key_pages, value_pages, *, block_table, kv_lengths, causal=False, window=None, scale=None,
               softcap=None, alibi_slopes=None):
        dt = query.dtype
        B, H, T, D = query.shape
        P, K, PS, E = value_pages.shape
        q, kp, vp = f32(query), f32(key_pages), f32(value_pages)
        hm = np.arange(H) // (H // K)
        table, lens = np.clip(np.asarray(block_table).astype(int), 0, P - 1), np.asarray(kv_lengths).astype(int)
        scale = np.float32(1 / math.sqrt(D) if scale is None else scale)
        out = np.zeros((B, H, T, E), np.float32)
        ls = np.full((B, H, T), NINF, np.float32)
        for b in range(B):
            n = int(lens[b])
            if n == 0:
                continue
            pos, j = n - T + np.arange(T), np.arange(n)
            kt, vt = kp[table[b, j // PS], :, j % PS], vp[table[b, j // PS], :, j % PS]
            kt, vt = kt.transpose(1, 0, 2)[hm], vt.transpose(1, 0, 2)[hm]
            s = (q[b] @ kt.transpose(0, 2, 1)) * scale
            if softcap is not None:
                s = np.float32(softcap) * np.tanh(s / np.float32(softcap))
            if alibi_slopes is not None:
                s = s - f32(alibi_slopes)[:, None, None] * np.abs(pos[:, None] - j[None]).astype(np.float32)
            s = hide(s, visible(pos, j, causal, window))
            if F == "logit_ring" and n > CAP:
                buf = s[..., :CAP].copy()
                for c in range(CAP, n, CAP):
                    e = min(n, c + CAP)
                    buf[..., :e - c] = s[..., c:e]
                s, vt = buf, vt[:, :CAP]
            m = s.max(-1)
            p = exps(s, m)
            l = p.sum(-1)
            out[b], ls[b] = finish(pv(rnd(p, dt), vt, s), l), lse_of(m, l)
        out = out.astype(dt)
        return (out, ls) if lse else out
    return kernel


# --------------------------------------------------------------------------- K10: latent (MLA), absorbed
def tanh_pade(x):
    x2 = x * x
    return np.clip(x * (27 + x2) / (27 + 9 * x2), -1, 1).astype(np.float32)


def latent(F=None, BC=64, NS=1, lse=False):
    """Rows are (row, head) pairs against one latent cache row [latent | rope]; key tiles, optional splits."""
    @quiet
    def kernel(q_nope, q_rope, kv_latent, k_rope, w_uk, w_uv, *, form="absorb", causal=False, window=None, scale=None,
               softcap=None, alibi_slopes=None, sinks=None, q_offset=None, kv_lengths=None):
        dt = q_nope.dtype
        lead = q_nope.shape[:-3]
        B = int(np.prod(lead, dtype=int))
        H, T, N = q_nope.shape[-3:]
        Rd = q_rope.shape[-1]
        S, C = kv_latent.shape[-2:]
        E = w_uv.shape[1]
        wk, wv = f32(w_uk), f32(w_uv)
        qn, qr = f32(q_nope).reshape(B, H, T, N), f32(q_rope).reshape(B, H, T, Rd)
        if F == "rope_head_stride":
            src = np.arange(H)[:, None, None] * (T * N) + np.arange(T)[:, None] * Rd + np.arange(Rd)
            qr = qr.reshape(B, -1)[:, src % (H * T * Rd)]
        cache = np.concatenate([f32(kv_latent).reshape(B, S, C), f32(k_rope).reshape(B, S, Rd)], -1)
        if scale is None:
            scale = 1 / math.sqrt((C if F == "latent_scale" else N) + Rd)
        scale = np.float32(scale)
        lens, offs = per_batch(kv_lengths, B), per_batch(q_offset, B)
        out = np.zeros((B, H, T, E), np.float32)
        ls = np.full((B, H, T), NINF, np.float32)
        for b in range(B):
            n = S if lens is None else int(lens[b])
            off = n - T if offs is None else int(offs[b])
            ql = np.einsum("htn,hnc->thc", qn[b], wk, optimize=True)
            qq = np.concatenate([ql, qr[b].transpose(1, 0, 2)], -1).reshape(T * H, C + Rd)
            row = np.arange(T * H)
            pos = off + (row % T if F == "row_mod" else row // H)
            hd = row % H
            tiles = cdiv(n, BC)
            per = max(1, cdiv(tiles, NS)) * BC
            Ms, Ls, Os = [], [], []
            for sp in range(NS):
                m = np.full(T * H, NINF, np.float32)
                l = np.zeros(T * H, np.float32)
                acc = np.zeros((T * H, C), np.float32)
                for c0 in range(sp * per, min(n, (sp + 1) * per), BC):
                    c1 = min(c0 + BC, n)
                    kt = cache[b, c0:c1]
                    vt = kt[:, Rd:] if F == "value_view" else kt[:, :C]
                    if F == "rope_tail" and c1 - c0 < BC and c0 >= BC:
                        kt = kt.copy()
                        kt[:, C:] = cache[b, c0 - BC:c1 - BC, C:]
                    if F == "tail_half_latent" and c1 - c0 < BC:
                        s = qq[:, C // 2:] @ kt[:, C // 2:].T
                    else:
                        s = qq @ kt.T
                    s = s * scale
                    j = np.arange(c0, c1)
                    if softcap is not None:
                        x = s / np.float32(softcap)
                        s = np.float32(softcap) * (tanh_pade(x) if F == "tanh_pade" else np.tanh(x))
                    if alibi_slopes is not None:
                        s = s - f32(alibi_slopes)[hd][:, None] * np.abs(pos[:, None] - j[None]).astype(np.float32)
                    s = hide(s, visible(pos, j, causal, window))
                    mn = np.maximum(m, s.max(-1))
                    a = alpha_of(m, mn)
                    p = exps(s, mn)
                    l = l * a + p.sum(-1)
                    acc = acc * a[:, None] + pv(rnd(p, dt), vt, s)
                    m = mn
                Ms.append(lse_of(m, l))
                Os.append(finish(acc, l))
            if NS == 1:
                z = acc
                if F == "sum_of_8_heads" and H > 8:
                    # the epilogue keeps row sums of 8 heads
                    lx = l.reshape(T, H)[:, np.arange(H) % 8].reshape(-1)
                else:
                    lx = l
                zl = Ms[0]
            else:
                M = np.stack(Ms)
                if F == "log2_states":
                    M = M * np.float32(1 / math.log(2))
                top = M.max(0)
                e = np.moveaxis(exps(np.moveaxis(M, 0, -1), top), -1, 0)
                z = np.where(e[..., None] == 0, np.float32(0), np.stack(Os) * e[..., None]).sum(0)
                lx = e.sum(0)
                zl = lse_of(top, lx)
                if F == "log2_states":
                    zl = zl * np.float32(math.log(2))
            if sinks is not None:
                sk = f32(sinks)[hd]
                if NS == 1:
                    mm, lx, z = add_sink(m, lx, z, sk)
                else:
                    mm, lx, z = add_sink(top, lx, z, sk)
                zl = lse_of(mm, lx)
            o = finish(z, lx).reshape(T, H, C)
            out[b] = np.einsum("thc,hec->hte", o, wv, optimize=True)
            ls[b] = zl.reshape(T, H).T
        out = out.reshape(lead + (H, T, E)).astype(dt)
        return (out, ls.reshape(lead + (H, T))) if lse else out
    return kernel


# --------------------------------------------------------------------------- the cases
def gen(name):
    return np.random.default_rng(zlib.crc32(name.encode()))


def normal(g, shape, dt, sd=1.0):
    return (g.standard_normal(shape) * sd).astype(np.float32).astype(dt)


FAULTS = []


def case(name, sentence, form, dtype, lse, make, inputs, ok=None):
    """make(F, lse) -> kernel; inputs(g, dt) -> arrays, options; ok: the hook of the right kernel, if it has one"""
    def build(wrong=True):
        arrays, options = inputs(gen(name), DT[dtype])
        return make(name if wrong else ok, lse), arrays, options
    FAULTS.append((name, " ".join(sentence.split()), {"form": form, "dtype": dtype, "lse": lse}, build))


def dense_in(H, K, T, S, D, E=None, B=None, qs=1.0, ks=1.0, more=None, **opt):
    E = D if E is None else E
    ld = () if B is None else (B,)

    def inputs(g, dt):
        q, k, v = normal(g, ld + (H, T, D), dt, qs), normal(g, ld + (K, S, D), dt, ks), normal(g, ld + (K, S, E), dt)
        o = dict(opt)
        if more is not None:
            q, k, v, extra = more(g, dt, q, k, v)
            o.update(extra)
        return (q, k, v), o
    return inputs


def packed_in(H, K, lq, lk, D, E=None, qs=1.0, more=None, **opt):
    E = D if E is None else E
    cq, ck = np.concatenate([[0], np.cumsum(lq)]), np.concatenate([[0], np.cumsum(lk)])

    def inputs(g, dt):
        arrays = (normal(g, (H, cq[-1], D), dt, qs), normal(g, (K, ck[-1], D), dt), normal(g, (K, ck[-1], E), dt))
        o = dict(cu_q=cq.astype(np.int32), cu_kv=ck.astype(np.int32), **opt)
        if more is not None:
            o.update(more(g, dt))
        return arrays, o
    return inputs


def paged_in(H, K, T, lens, PS, D, P, E=None, MP=None, spare=0, qs=1.0, more=None, share=None, **opt):
    E = D if E is None else E
    B = len(lens)

    def inputs(g, dt):
        mp = max(cdiv(x, PS) for x in lens) + spare
        ids = g.permutation(P)
        table = np.zeros((B, mp), np.int32)
        at = 0
        for b, x in enumerate(lens):
            c = cdiv(x, PS)
            table[b, :c] = ids[at:at + c]
            table[b, c:] = ids[(at + c) % P]
            at += c
        assert at <= P, (at, P)
        if share is not None:
            for b, c in share.items():
                table[b, :c] = table[0, :c]
        arrays = (normal(g, (B, H, T, D), dt, qs), normal(g, (P, K, PS, D), dt), normal(g, (P, K, PS, E), dt))
        o = dict(block_table=table, kv_lengths=np.array(lens, np.int32), **opt)
        if more is not None:
            o.update(more(g, dt))
        return arrays, o
    return inputs


def latent_in(H, T, S, N, R, C, E, B=None, qs=1.0, more=None, **opt):
    ld = () if B is None else (B,)

    def inputs(g, dt):
        arrays = (normal(g, ld + (H, T, N), dt, qs), normal(g, ld + (H, T, R), dt, qs), normal(g, ld + (S, C), dt),
                  normal(g, ld + (S, R), dt), normal(g, (H, N, C), dt, C ** -0.5), normal(g, (H, E, C), dt, C ** -0.5))
        o = dict(opt)
        if more is not None:
            o.update(more(g, dt))
        return arrays, o
    return inputs


def slopes(H, top=0.5):
    return (top * 2.0 ** (-8.0 * np.arange(H) / max(H, 1) * 0.6)).astype(np.float32)


# ------------------------------------------------------------ dense, tiled (K1)
case("left_tile_ceil", """The first key tile of a sliding-window row tile is the start of the window divided by the key tile of 32
     rounded up instead of down, so each 48-row tile loses the up to 31 keys between the window start of its first row and the next
     multiple of 32; the first rows of each tile are hit most, the tiles whose window begins at key 0 or on a multiple of 32 not at all.""",
     "dense", "float32", True, lambda F, l: tiled(F, 48, 32, l), dense_in(6, 2, 150, 210, 64, causal=True, window=(70, None)))

case("clamped_rows", """The last row tile (64 rows) is moved back to start at T-64 so that it is full, but the causal limit is still
     computed with the unmoved tile start: the rows of that last tile see 34 future keys too many (the distance of the move), other rows are right.""",
     "dense", "bfloat16", False, lambda F, l: tiled(F, 64, 64, l), dense_in(5, 5, 158, 300, 80, causal=True), ok="clamped_rows_ok")

case("key_tail_repeat", """Loads past the end of the keys are clamped to the last key and the tail is not masked: in the last, partial key tile of 64
     the last key S-1 is counted again for each missing slot (here 24 more times), for every row.""",
     "dense", "float16", False, lambda F, l: tiled(F, 64, 64, l), dense_in(4, 2, 70, 168, 64))

def late_large(g, dt, q, k, v):
    S = k.shape[-2]
    f = np.where(np.arange(S) >= S // 2, 4.0, 0.6).astype(np.float32)[:, None]
    return q, (k.astype(np.float32) * f).astype(dt), v, {}

case("lazy_vote", """Lazy rescaling (the running maximum is only renewed where it grew by more than 8 in base 2) is decided row by row for the weights and the
     row sum, but the output accumulator is rescaled only when ALL rows of the 32-row tile need it (a vote 'all' where it must be 'any'); rows that needed it
     in a mixed tile keep an accumulator of early keys that is too large by exp(growth) and their output is wrong, lse is right.""",
     "dense", "float32", True, lambda F, l: tiled(F, 32, 48, l), dense_in(4, 4, 90, 230, 64, more=late_large), ok="lazy_vote_ok")

case("rescale_64_columns", """When the running maximum grows the accumulator is multiplied by alpha only in its first 64 columns; the value columns 64 to 95 (E=96) keep
     the contributions of earlier key tiles at their old scale, in all rows whose maximum grows after the first key tile of 64.""",
     "dense", "bfloat16", False, lambda F, l: tiled(F, 64, 64, l), dense_in(6, 3, 100, 250, 64, E=96, causal=True))

def with_bias(sd):
    def f(g, dt, q, k, v):
        H, T, S = q.shape[-3], q.shape[-2], k.shape[-2]
        return q, k, v, {"bias": (g.standard_normal((H, T, S)) * sd).astype(np.float32)}
    return f

case("bias_row_stride", """The additive bias (H, T, S) is addressed with the row stride T instead of S, so row i of each head reads the bias at flat offset i*T+j;
     row 0 is right, every later row gets a bias that belongs to other rows and keys. Only visible as T and S differ.""",
     "dense", "float32", False, lambda F, l: tiled(F, 64, 64, l), dense_in(5, 5, 75, 130, 32, more=with_bias(1.0)))

def with_mask(p):
    def f(g, dt, q, k, v):
        T, S = q.shape[-2], k.shape[-2]
        mask = g.random((T, S)) < p
        mask[:, 0] = True
        return q, k, v, {"mask": mask}
    return f

case("mask_any4", """The boolean mask is loaded as 32-bit words and a word counts as visible when it is not zero, so in each aligned group of 4 keys all keys
     are attended as soon as one of them may be; keys hidden by the mask next to a visible one leak.""",
     "dense", "float32", False, lambda F, l: tiled(F, 64, 128, l), dense_in(4, 1, 67, 190, 48, more=with_mask(0.5)))

def with_sinks(sd, mu=0.0):
    def f(g, dt, q, k, v):
        return q, k, v, {"sinks": (g.standard_normal(q.shape[-3]) * sd + mu).astype(np.float32)}
    return f

case("sink_unshifted", """The attention sink is added to the row sum as exp(sink) and not as exp(sink - row maximum), so its share of the denominator is exp(max) too large
     (usually about 10 times) in all rows and heads with a sink that is not negligible.""",
     "dense", "bfloat16", True, lambda F, l: tiled(F, 64, 64, l), dense_in(8, 2, 60, 140, 64, causal=True, more=with_sinks(1.0, 1.0)))

def low_rows(g, dt, q, k, v):
    H, T, S = q.shape[-3], q.shape[-2], k.shape[-2]
    bias = (g.standard_normal((H, T, S))).astype(np.float32)
    bias[1] -= 130
    bias[:, 20:27] -= 160
    return q, k, v, {"bias": bias}

case("max_starts_at_0", """The running row maximum starts at 0 and not at -inf, so in rows whose scores all lie below about -104 (here head 1 and rows 20 to 26, where the bias is -130 and -160)
     every weight underflows, the row sum is 0 and the row is written as empty: output 0, lse -inf. Rows with ordinary scores are right.""",
     "dense", "float32", True, lambda F, l: tiled(F, 32, 64, l), dense_in(4, 4, 61, 120, 32, more=low_rows))

def loud_rows(g, dt, q, k, v):
    f = np.ones((q.shape[-2], 1), np.float32)
    f[17::40] = 60
    return (q.astype(np.float32) * f).astype(dt), k, v, {}

case("tile_max", """The softmax maximum is shared by all rows of a 32-row tile (one reduction over the tile instead of one a row). Tiles with a row of large scores (over about 110, rows 17, 57, 97, ...)
     underflow the weights of their other rows, which come out as 0; a tile without such a row is right.""",
     "dense", "bfloat16", False, lambda F, l: tiled(F, 32, 64, l), dense_in(4, 2, 110, 150, 64, more=loud_rows))

case("chunk_first_row", """In chunked local attention (chunk 40) the chunk of a 64-row tile is taken from its first row: rows of the tile that stand in a later chunk see the
     keys of the first row's chunk and none of their own. Rows up to the first chunk boundary of each tile are right.""",
     "dense", "float32", False, lambda F, l: tiled(F, 64, 32, l), dense_in(3, 1, 150, 200, 64, causal=True, chunk=40))

def band_mask(g, dt, q, k, v):
    T, S = q.shape[-2], k.shape[-2]
    i, j = np.arange(T)[:, None], np.arange(S)[None]
    mask = np.abs(j - 1.7 * i - 10) < 26
    mask[:, :3] = True
    return q, k, v, {"mask": mask}

case("corner_skip", """Block sparsity is decided from the four corner elements of each 64 x 64 mask tile: a tile whose corners are all hidden is skipped although the band of the mask
     crosses it, so the visible keys inside such tiles are dropped for the rows of that tile.""",
     "dense", "bfloat16", False, lambda F, l: tiled(F, 64, 64, l), dense_in(4, 4, 150, 290, 64, more=band_mask))

case("bf16_positions", """The ALiBi distance is the difference of positions that were both rounded to bfloat16: beyond position 256 only every second (beyond 512 every fourth) position exists, so each odd position over 256,
     of rows (350 to 389) and of keys, is moved by one and distances are off by up to 2; distances between positions below 256 are right.""",
     "dense", "float32", True, lambda F, l: tiled(F, 64, 64, l),
     dense_in(4, 4, 40, 390, 64, causal=True, more=lambda g, dt, q, k, v: (q, k, v, {"alibi_slopes": slopes(4)})))

case("tail_columns", """Output columns are made in blocks of 64; the last, partial block (columns 64 to 79 of E=80) is loaded right-aligned from column E-64=16 but stored at 64, so columns 64 to 79
     hold what belongs in columns 16 to 31. Columns 0 to 63 and lse are right.""",
     "dense", "float32", True, lambda F, l: tiled(F, 64, 64, l), dense_in(4, 2, 66, 100, 64, E=80, causal=True, window=(50, None)))

case("group_pow2", """The key/value head is found with a shift, head >> ceil(log2(group)): with 3 query heads a key head the group counts as 4, so heads 3, 6, 7, 9, 10 and 11 of 12 read the key/value
     head before theirs (head 3 reads 0, 6 and 7 read 1, 9 to 11 read 2); heads 0-2, 4, 5 and 8 are right.""",
     "dense", "bfloat16", False, lambda F, l: tiled(F, 64, 64, l), dense_in(12, 4, 33, 110, 64, causal=True))

def key_offset(g, dt, q, k, v):
    c = g.standard_normal(k.shape[:-2] + (1, k.shape[-1])).astype(np.float32)
    return q, (k.astype(np.float32) + c).astype(dt), v, {}

case("smooth_lse", """Keys are smoothed by subtracting their mean before the product (as for quantised kernels), which does not change the softmax, but the term query . mean * scale is not added back
     to lse: output is right, lse of every row is off by that term.""",
     "dense", "bfloat16", True, lambda F, l: tiled(F, 64, 64, l), dense_in(4, 2, 45, 170, 64, more=key_offset), ok="smooth_lse_ok")

def with_dropout(g, dt, q, k, v):
    H, T, S = q.shape[-3], q.shape[-2], k.shape[-2]
    return q, k, v, {"dropout_mask": g.random((H, T, S)) >= 0.25, "dropout_rate": 0.25}

case("dropout_sum", """The dropout mask is applied before the row sum is taken, so dropped weights are missing from the softmax denominator too (and the kept ones are still divided by 1 - rate = 0.75):
     outputs are about 1.33 times too large in every row.""",
     "dense", "float32", False, lambda F, l: tiled(F, 64, 64, l), dense_in(4, 4, 60, 110, 64, causal=True, more=with_dropout))

case("single_row_not_causal", """A shortcut for decoding switches causal off when there is one query row, assuming that it stands at the last key; with q_offset = 80 and 141 keys the row sees the 60 keys after
     its position.""",
     "dense", "float16", True, lambda F, l: tiled(F, 64, 64, l), dense_in(8, 2, 1, 141, 64, causal=True, q_offset=80))

case("row_pair_sum", """The shuffle that adds up a row's weights spans two neighbouring rows: rows 2r and 2r+1 of a tile both end with the sum of both, so outputs are about halved and lse about log 2
     too large; an unpaired last row is right.""",
     "dense", "float16", True, lambda F, l: tiled(F, 32, 64, l), dense_in(4, 1, 43, 97, 64, causal=True))

case("lse_tail_tile", """lse is stored only by full 64-row tiles; the rows of the last, partial tile (rows 64 to 100 of 101) keep the 0 the buffer was cleared with. Outputs are right.""",
     "dense", "float16", True, lambda F, l: tiled(F, 64, 64, l), dense_in(5, 1, 101, 101, 64, causal=True))

# ------------------------------------------------------------ dense, eager (K3)
case("sum_lanes", """The vectorised sum of a softmax row runs over whole vectors of 16 only; the last S % 16 keys (14 of 190) are exponentiated and multiplied with their values but missing from the denominator.""",
     "dense", "float32", False, lambda F, l: eager(F, lse=l), dense_in(4, 4, 50, 190, 64))

case("thread_rows", """The H*T = 350 softmax rows are shared out to 8 threads with a floor division, 43 each; the last 6 rows (rows 64 to 69 of head 4, the end of the last head) are never normalised or exponentiated and their
     raw scores are used as weights.""",
     "dense", "float32", False, lambda F, l: eager(F, lse=l), dense_in(5, 5, 70, 90, 64))

case("padding_left", """kv_lengths is understood as left padding: the first S - length keys are hidden instead of the last ones, in every batch entry with a length below S; the entry of full length is right.""",
     "dense", "bfloat16", True, lambda F, l: eager(F, lse=l), dense_in(4, 2, 8, 130, 64, B=3, kv_lengths=np.array([130, 57, 101])))

case("odd_key", """The weights-times-values product works on pairs of keys (VNNI layout) and drops the last key when the number of keys is odd: key 34 of 35 is in the denominator but its value is missing, for all rows.""",
     "dense", "bfloat16", False, lambda F, l: eager(F, lse=l), dense_in(6, 2, 40, 35, 64))

# ------------------------------------------------------------ dense, split-KV (K2)
case("tree_odd", """The pairwise reduction of the splits halves their number with a floor division: of 5 splits 0+2 and 1+3 are joined, then 0+1, and split 4 (the last keys, from 256 on) never takes part.""",
     "dense", "float32", True, lambda F, l: splitkv(F, 5, 32, l), dense_in(8, 2, 2, 310, 64, causal=True))

case("sink_each_split", """Each of the 4 splits lets the attention sink join its own denominator, so after the reduction the sink counts 4 times: outputs are too small and lse too large.""",
     "dense", "bfloat16", True, lambda F, l: splitkv(F, 4, 32, l), dense_in(16, 4, 1, 250, 64, more=with_sinks(0.7, 3.5)))

case("half_m", """The lse of each split is stored as float16 in the workspace, so the splits are weighted with an error of up to 0.2 % (lse 4 to 8, and scores are large) though inputs and the arithmetic are float32.""",
     "dense", "float32", True, lambda F, l: splitkv(F, 6, 16, l), dense_in(8, 4, 2, 300, 64, qs=4.0), ok="half_m_ok")

case("draft_rows_share", """With several (draft) rows a sequence the causal limit of the last row is used for all rows: rows 0 to 2 of 4 see 3, 2 and 1 keys after their position, row 3 is right.""",
     "dense", "bfloat16", False, lambda F, l: splitkv(F, 4, 32, l), dense_in(8, 2, 4, 44, 64, B=2, causal=True))

# ------------------------------------------------------------ dense, persistent (K4)
case("last_wave", """The persistent loop runs tiles // workers times: of 15 work tiles (5 heads, 3 row tiles) over 4 workers the last 3 are never done, so all rows of the last head stay 0.""",
     "dense", "float32", False, lambda F, l: persistent(F, 64, 64, 4, l), dense_in(5, 5, 140, 140, 64, causal=True))

case("stage_parity", """The consumer restarts at buffer 0 with each work tile while the producer keeps alternating its two buffers: after work tiles with an odd number of key tiles (7 of 32 here) a worker's next tile
     reads each key/value tile from the wrong buffer, that is the one loaded before it (or the last of the previous head).""",
     "dense", "float32", True, lambda F, l: persistent(F, 64, 32, 2, l), dense_in(3, 3, 100, 213, 64))

case("middle_twice", """For causal balance row tile i is paired with tile n-1-i; with an odd number of row tiles (3 of 48) the middle one is paired with itself and processed twice, and as outputs are accumulated
     its rows 48 to 95 are doubled. Other rows and lse are right.""",
     "dense", "float16", True, lambda F, l: persistent(F, 48, 48, 4, l), dense_in(3, 1, 130, 150, 64, causal=True))

case("swizzle", """Key tiles are stored in shared memory with the 8-column chunks rotated by row % 8 but read with row % 4: for keys with (j % 32) % 8 >= 4 the head dimensions are rotated by 32 columns against the query,
     so half of the keys get wrong scores in all rows.""",
     "dense", "float32", False, lambda F, l: persistent(F, 64, 32, 4, l), dense_in(3, 3, 100, 110, 64))

# ------------------------------------------------------------ packed (K5, K6)
case("cumulative_offset", """The causal offset of a sequence is taken as cu_kv[b+1] - cu_q[b+1] rather than from the lengths, so with cached keys in earlier sequences it is too large: sequence 0 is right, rows of sequences 1 to 3 see
     10, 50 and 80 keys after their position (as far as their sequence has them).""",
     "packed", "float32", True,
     lambda F, l: ragged(F, 64, 64, l), packed_in(4, 4, [20, 60, 30, 45], [30, 100, 60, 45], 64, causal=True))

case("tile_overrun", """Key tiles of 32 are masked at the end of the whole key buffer only, not at the end of the sequence: the last key tile of each sequence but the last takes in keys of the next sequence up to the multiple of 32.""",
     "packed", "bfloat16", False, lambda F, l: packed(F, 32, 32, l), packed_in(6, 2, [30, 12, 50], [52, 71, 50], 64))

case("tile_first_seq", """Row tiles of 48 run over the packed rows and the sequence of the first row is used for the whole tile: rows of a sequence that begins inside a tile attend the keys of the previous sequence until the tile ends.""",
     "packed", "bfloat16", False, lambda F, l: ragged(F, 48, 64, l), packed_in(6, 3, [70, 37, 49], [70, 57, 49], 48, causal=True))

case("lse_stride", """lse is written with a head stride of total_q rounded up to 64 (128) but handed out as if the stride were total_q (111): head 0 is right, head h is shifted by 17 h and shows the padding's -inf. Outputs are right.""",
     "packed", "float32", True, lambda F, l: packed(F, 32, 32, l), packed_in(4, 4, [50, 61], [70, 61], 32, causal=True), ok="lse_stride_ok")

case("no_keys_no_reset", """A sequence without keys skips the loop including the reset of the accumulators, so its rows (sequence 1, 9 rows) are written with the first rows of the tile before it instead of 0.""",
     "packed", "float16", False, lambda F, l: packed(F, 32, 32, l), packed_in(4, 2, [35, 9, 20], [64, 0, 33], 64))

case("sum_bf16", """The running row sum is kept in bfloat16: after each key tile of 16 it is rounded to 8 bits, so with many tiles small additions are lost and sum, output and lse are off by up to about a percent, most in long sequences.""",
     "packed", "bfloat16", True, lambda F, l: packed(F, 64, 16, l), packed_in(4, 2, [40, 20], [310, 60], 64))

case("sum_not_reset", """The row sum is cleared only with the first row tile of a sequence; each later tile of 32 starts with the sums the tile before it left, so rows from 32 on have a denominator that includes earlier rows' (output too small, lse too large).""",
     "packed", "float32", True, lambda F, l: packed(F, 32, 64, l), packed_in(4, 4, [75, 30], [90, 110], 64, causal=True))

case("drain_old_value", """In the software pipeline the last weights tile of a loop is multiplied with the value tile of the step before (the drain uses the old buffer): in sequences with more than one key tile of 32 the keys of the last tile
     contribute the values of the keys 32 before them. lse is not touched.""",
     "packed", "float16", False, lambda F, l: packed(F, 32, 32, l), packed_in(6, 2, [20, 40], [28, 90], 64))

case("tail_no_softcap", """The code for a partial last key tile (fewer than 32 keys) is a separate path without the softcap: scores of the last nk % 32 keys of each sequence are not capped (cap 2).""",
     "packed", "bfloat16", True, lambda F, l: packed(F, 32, 32, l), packed_in(4, 1, [25, 33], [64, 83], 64, qs=2.5, softcap=2.0))

# ------------------------------------------------------------ paged (K7, K8, K9)
case("table_stride", """Rows of the block table are taken to be ceil(max length / page size) = 10 entries long but the table has 13 columns: sequence 0 is right, sequence b reads its page numbers 3 b entries too early and with them other sequences' pages.""",
     "paged", "float32", False, lambda F, l: paged(F, 2, l), paged_in(8, 2, 1, [155, 90, 133], 16, 64, 32, spare=3))

case("full_page_zero", """The fill of the last page is computed as length % page_size, which is 0 when the page is full: sequences with a length that is a multiple of 16 lose their last 16 keys (sequences 1 and 3); others are right.""",
     "paged", "bfloat16", True, lambda F, l: paged(F, 2, l), paged_in(6, 2, 2, [75, 96, 33, 64], 16, 64, 24, causal=True))

case("table_cache_late", """Eight page numbers at a time are cached and the refill comes one page late: logical pages 8, 16, ... use the stale slot 0 and read page 0, 8, ... of the sequence once more; sequences of at most 8 pages are right.""",
     "paged", "float32", True, lambda F, l: paged(F, 1, l), paged_in(8, 4, 1, [340, 120, 200], 16, 32, 48))

case("value_offset_16bit", """The element offset of a page in the value cache is held in 16 bits: with 2048 elements a page the pages 32 and above wrap around and the values of physical page p - 32 are read (keys are right).""",
     "paged", "float16", False, lambda F, l: paged(F, 2, l), paged_in(8, 2, 1, [230, 190, 260], 16, 64, 45))

case("stale_partitions", """The partition workspace is reused from sequence to sequence and the reduction always runs over the partitions of the longest one: a sequence with fewer partitions of 128 keys also merges the leftovers of the sequence before it
     (sequences 1 and 3).""",
     "paged", "bfloat16", True, lambda F, l: paged(F, 2, l, PART=2), paged_in(8, 2, 1, [310, 70, 300, 150], 32, 64, 30))

case("offset_floor_0", """The position of row 0 is max(length - T, 0): in sequences with fewer keys than rows (length 3 with T = 7) rows stand 4 positions too far right, see keys they must not, and rows that should be empty are not.""",
     "paged", "float32", True, lambda F, l: paged(F, 2, l), paged_in(6, 3, 7, [90, 3, 45], 16, 64, 16, causal=True))

case("alibi_slot", """ALiBi uses the physical slot page_number * page_size + slot as the key's position instead of the logical one, so the penalty depends on where pages happen to lie; only a page stored at its own logical number is right.""",
     "paged", "float32", False, lambda F, l: paged(F, 2, l), paged_in(8, 8, 2, [130, 61], 16, 64, 14, causal=True, more=lambda g, dt: {"alibi_slopes": slopes(8, 0.1)}))

case("contiguous_pair", """A key tile of 32 covers two pages of 16 and only the first page number is read, the second page is taken to follow it in memory: all odd logical pages are read from the physical page after their neighbour's.""",
     "paged", "bfloat16", False, lambda F, l: paged(F, 2, l), paged_in(12, 4, 3, [100, 47], 16, 64, 12, causal=True))

case("prefix_of_two", """The shared prefix of a cascade is found by comparing only the first two rows of the block table: sequences 2 and 3, which do not share the 3 pages of sequences 0 and 1, get sequence 0's keys and values there.""",
     "paged", "float32", True, lambda F, l: cascade(F, l), paged_in(8, 2, 2, [150, 120, 77, 100], 16, 64, 36, share={1: 3}, causal=True))

case("logit_ring", """The logit buffer of a block holds 256 floats and is indexed modulo 256: in contexts over 256 keys the logits of keys 256 and up overwrite those of keys 0 and up, which keep their own values, and the values of the last keys are dropped.
     Sequences up to 256 keys are right.""",
     "paged", "float16", False, lambda F, l: paged_v1(F, l), paged_in(8, 2, 1, [300, 120, 256], 16, 64, 44))

case("window_page_start", """The left end of the sliding window is rounded down to the start of its page of 16: rows see up to 15 keys before their window, none when the window begins on a page boundary.""",
     "paged", "bfloat16", False, lambda F, l: paged(F, 2, l), paged_in(8, 2, 3, [150, 87], 16, 64, 16, causal=True, window=(36, None)))

# ------------------------------------------------------------ latent (K10)
case("latent_scale", """The default scale is 1/sqrt(kv_lora_rank + rope) = 1/sqrt(144) of the absorbed width and not 1/sqrt(nope + rope) = 1/sqrt(64), so all scores are 0.67 of theirs.""",
     "latent", "bfloat16", False, lambda F, l: latent(F, 64, 1, l), latent_in(8, 5, 120, 48, 16, 128, 48, causal=True))

case("value_view", """The values are the view of the cache row [latent | rope] that starts after rope columns: value column c is latent column c + 16 and the last 16 columns are the rope part. Scores and lse are right.""",
     "latent", "float32", True, lambda F, l: latent(F, 64, 1, l), latent_in(6, 20, 90, 32, 16, 80, 40, B=2, causal=True))

case("rope_head_stride", """q_rope is addressed with the head stride of q_nope (T*32 instead of T*16 elements): head 0 is right, head h takes the rope part of head 2h mod 6.""",
     "latent", "float32", True, lambda F, l: latent(F, 64, 1, l), latent_in(6, 12, 100, 32, 16, 64, 32, causal=True))

case("row_mod", """Rows are (query, head) pairs flattened with the head fastest, but the position of a row is taken as row % T instead of row // H: most (query, head) pairs use the causal limit of another query.""",
     "latent", "bfloat16", False, lambda F, l: latent(F, 32, 1, l), latent_in(7, 5, 60, 48, 16, 64, 48, causal=True))

case("sum_of_8_heads", """The epilogue keeps the row sums of 8 heads and indexes them with head % 8: heads 8 to 11 are divided by the sums of heads 0 to 3. lse is right.""",
     "latent", "float16", True, lambda F, l: latent(F, 64, 1, l), latent_in(12, 3, 110, 32, 16, 64, 32, qs=1.5))

case("tanh_pade", """tanh of the softcap is the fraction x (27 + x^2) / (27 + 9 x^2), good only near 0: scores of more than about half the cap (cap 4, scores up to 10) are off by up to 0.1.""",
     "latent", "float32", False, lambda F, l: latent(F, 64, 1, l), latent_in(6, 16, 75, 32, 16, 64, 32, qs=2.5, softcap=4.0))

case("log2_states", """The three splits store their lse in base 2 but the merge weights them with exp, so splits of larger lse get too much weight (the exponent is 1.44 times too large); lse is converted back after the merge and wrong too.""",
     "latent", "float32", True, lambda F, l: latent(F, 32, 3, l), latent_in(16, 1, 210, 32, 16, 64, 32, B=2))

case("rope_tail", """The pointer of the rope keys is not advanced for the partial last key tile: keys 96 to 129 (tile 48) get the rope part of the keys 48 before them, their latent part is right.""",
     "latent", "bfloat16", True, lambda F, l: latent(F, 48, 1, l), latent_in(5, 25, 130, 32, 32, 64, 32, causal=True, qs=1.5))

def main():
    import sys
    from refattn.oracle import check
    only = set(sys.argv[1:])
    fn = {"dense": {}, "packed": {"function": "packed_attention"}, "paged": {"function": "paged_attention"},
          "latent": {"function": "latent_attention"}}
    good = 0
    names = [f[0] for f in FAULTS]
    assert len(set(names)) == len(names)
    for name, sentence, tags, build in FAULTS:
        if only and name not in only:
            continue
        res = {}
        for wrong in (False, True):
            kernel, arrays, options = build(wrong=wrong)
            before = [a.copy() for a in arrays]
            kernel(*arrays, **options)
            t = math.inf
            for _ in range(3):
                t0 = time.process_time()
                got = kernel(*arrays, **options)
                t = min(t, time.process_time() - t0)
            assert all(np.array_equal(a, c, equal_nan=True) if a.dtype != BF16 else
                       np.array_equal(a.view(np.uint16), c.view(np.uint16)) for a, c in zip(before, arrays))
            out, ls = got if tags["lse"] else (got, None)
            assert out.dtype == DT[tags["dtype"]] == arrays[0].dtype
            rep = check(out, *arrays, lse=ls, **fn[tags["form"]], **options)
            res[wrong] = bool(rep.passed)
            res[wrong, "t"] = t
            if wrong:
                res["w"] = (out, ls)
            else:
                res["r"] = (out, ls)
        ok = res[False] and not res[True]
        good += ok
        d = np.abs(res["w"][0].astype(np.float64) - res["r"][0].astype(np.float64))
        dl = 0.0 if not tags["lse"] else np.nanmax(np.abs(np.where(np.isfinite(res["w"][1]) | np.isfinite(res["r"][1]),
                                                             np.nan_to_num(res["w"][1].astype(float) , posinf=1e9, neginf=-1e9) - np.nan_to_num(res["r"][1].astype(float), posinf=1e9, neginf=-1e9), 0.0)))
        print(f"{'ok ' if ok else 'BAD'} {name:24s} {tags['form']:7s} {tags['dtype']:9s} lse={tags['lse']!s:5s} "
              f"right passes={res[False]} wrong passes={res[True]} {1e3 * res[True, 't']:.1f} ms  "
              f"max diff {np.nanmax(d):.3g} share {np.mean(~(d == 0)):.2f} lse diff {dl:.3g}", flush=True)
    print(f"{good} of {len(FAULTS)} pass the verification")


if __name__ == "__main__":
    main()
