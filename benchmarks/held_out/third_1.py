"""Sixty wrong attention kernels, each with the same kernel put right.  python faults.py verifies them."""
import math
from functools import partial, wraps

import ml_dtypes
import numpy as np

F32 = np.float32
BF16 = np.dtype(ml_dtypes.bfloat16)
F16 = np.dtype(np.float16)
LOG2E = F32(1.4426950408889634)
LN2 = F32(0.6931471805599453)
NINF = F32(-np.inf)


# ---------------------------------------------------------------- shared parts
def quiet(fn):
    @wraps(fn)
    def g(*a, **k):
        with np.errstate(all="ignore"):
            return fn(*a, **k)
    return g


def f32(x):
    return np.asarray(x).astype(np.float32)


def rnd(x, dt):
    """float32 numbers as the second product sees them"""
    return x if dt == np.float32 else x.astype(dt).astype(np.float32)


def pv(p, vis, v):
    """p @ v in float32; keys that a row does not see take no part, whatever they hold"""
    fin = np.isfinite(v)
    if fin.all():
        return p @ v
    out = p @ np.where(fin, v, F32(0))
    w = np.broadcast_to(vis, p.shape).astype(np.float32)
    nan = (w @ np.isnan(v).astype(np.float32)) > 0
    pos = (w @ (v == np.inf).astype(np.float32)) > 0
    neg = (w @ (v == -np.inf).astype(np.float32)) > 0
    out = np.where(pos, F32(np.inf), out)
    out = np.where(neg, NINF, out)
    return np.where(nan | (pos & neg), F32(np.nan), out)


def band(pos, j, causal=False, window=None, chunk=None):
    vis = np.ones(np.broadcast_shapes(pos.shape, j.shape), bool)
    if causal:
        vis &= j <= pos
    if window is not None:
        left, right = window
        if left is not None:
            vis &= j >= pos - left
        if right is not None:
            vis &= j <= pos + right
    if chunk is not None:
        vis &= (pos >= 0) & (j // chunk == pos // chunk)
    return vis


def soften(m_new):
    return np.where(m_new == NINF, F32(0), m_new)


def decay(m, ms):
    return np.where(m == NINF, F32(0), np.exp2(m - ms))


def shrink(acc, a):
    """acc * a; an infinity stays one even where the factor underflows"""
    r = acc * a
    fin = np.isfinite(acc)
    return r if fin.all() else np.where(fin, r, acc)


def close(acc, l):
    return np.where(l[..., None] == 0, F32(0), acc / l[..., None])


def logsum(m, l):
    return np.where(l == 0, NINF, m * LN2 + np.log(l)).astype(np.float32)


def spread(x, lead, H, T, S):
    """a broadcastable (..., H, T, S) option as (B, H, T, S)"""
    x = np.asarray(x)
    return np.broadcast_to(x, lead + (H, T, S)).reshape((-1, H, T, S))


def step(state, s, vis, v, dt, keep=None, inv=None):
    """one tile of the online softmax; s in base-2 units, hidden scores set to -inf here"""
    m, l, acc = state
    s = np.where(vis, s, NINF)
    vis = vis & (s != NINF)
    mn = np.maximum(m, s.max(-1))
    ms = soften(mn)
    a = decay(m, ms)
    p = np.exp2(s - ms[..., None])
    l = l * a + p.sum(-1)
    w = p
    if keep is not None:
        w = np.where(keep, p * inv, F32(0))
        vis = vis & keep
    acc = shrink(acc, a[..., None]) + pv(rnd(w, dt), vis, v)
    return mn, l, acc


def fresh(shape, E, sink2=None):
    if sink2 is None:
        m = np.full(shape, NINF, np.float32)
        l = np.zeros(shape, np.float32)
    else:
        m = np.broadcast_to(sink2, shape).astype(np.float32)
        l = np.where(m == NINF, F32(0), F32(1))
    return m, l, np.zeros(shape + (E,), np.float32)


# ---------------------------------------------------------------- A: tiled online softmax, keys left to right
@quiet
def tile_kernel(q, k, v, *, causal=False, window=None, chunk=None, scale=None, softcap=None, bias=None, mask=None,
                alibi_slopes=None, sinks=None, kv_lengths=None, q_offset=None, dropout_mask=None, dropout_rate=None,
                BM=64, BN=64, f="", lse=False, emulate=False, lazy=False):
    dt = q.dtype
    lead, (H, T, D), (K, S), E = q.shape[:-3], q.shape[-3:], k.shape[-3:-1], v.shape[-1]
    Q = f32(q).reshape(-1, H, T, D)
    B = Q.shape[0]
    g = H // K
    hk = np.arange(H) // g
    if f == "shift_head_map":
        hk = np.minimum(np.arange(H) >> (g.bit_length() - 1), K - 1)
    Kf = f32(k).reshape(B, K, S, D)[:, hk]
    Vf = f32(v).reshape(B, K, S, E)[:, hk]
    sc = F32(1 / math.sqrt(D) if scale is None else scale)
    if f == "d_tail":
        d = max(D // 32 * 32, min(D, 32))
        Q, Kf = Q[..., :d], Kf[..., :d]
    L = np.full(B, S) if kv_lengths is None else np.broadcast_to(np.asarray(kv_lengths), lead).reshape(B)
    off = L - T if q_offset is None else np.broadcast_to(np.asarray(q_offset), (B,))
    bh = np.arange(B)[:, None] * H + np.arange(H)
    Lbh = L[np.minimum(bh // (K if f == "kv_len_index" else H), B - 1)][..., None, None]
    if bias is not None:
        bias = spread(bias, lead, H, T, S)
    if mask is not None:
        mask = spread(mask, lead, H, T, S)
    if dropout_mask is not None:
        dropout_mask = spread(dropout_mask, lead, H, T, S)
        inv = F32(1 / (1 - dropout_rate))
    out = np.zeros((B, H, T, E), dt)
    lo_ = np.zeros((B, H, T), np.float32)
    for m0 in range(0, T, BM):
        m1 = min(T, m0 + BM)
        pos = (off[:, None] + np.arange(m0, m1))[:, None, :, None]
        hi, lo = S, 0
        if causal:
            hi = min(hi, int(off.max()) + m1)
        if window is not None:
            if window[1] is not None:
                hi = min(hi, int(off.max()) + m1 + window[1])
            if window[0] is not None:
                first = (m1 - 1) if f == "window_start_last_row" else m0
                lo = max(0, (int(off.min()) + first - window[0]) // BN * BN)
        m, l, acc = fresh((B, H, m1 - m0), E, None if sinks is None else f32(sinks)[:, None] * LOG2E)
        if f == "quad_max":
            m = np.full((B, H, m1 - m0, 2), NINF, np.float32)
            l = np.zeros_like(m)
            ecol = (np.arange(E) % 8) // 4
        for j0 in range(lo, hi, BN):
            j1 = min(S, j0 + BN)
            j = np.arange(j0, j1)
            kt, vt = Kf[:, :, j0:j1], Vf[:, :, j0:j1]
            s = Q[:, :, m0:m1] @ kt.swapaxes(-1, -2)
            if f == "half_saturates":
                s = np.clip(s, F32(-65504), F32(65504))
            s = s * sc
            rp = pos
            if f == "chunk_first_row" and chunk is not None:
                rp = None
                vis = band(pos, j, causal, window) & (j // chunk == pos[:, :, :1] // chunk) & (pos >= 0)
            if rp is not None:
                vis = band(pos, j, causal, window, chunk)
            vis = vis & (j < Lbh)
            if mask is not None:
                vis = vis & mask[:, :, m0:m1, j0:j1]
            vis = np.broadcast_to(vis, s.shape)
            if softcap is not None:
                cap = F32(softcap)
                if f == "mask_before_softcap":
                    s = np.where(vis, s, NINF)
                    vis = np.ones_like(vis)
                if f == "pade_tanh":
                    x = s / cap
                    s = cap * (x * (27 + x * x) / (27 + 9 * x * x))
                else:
                    s = cap * np.tanh(s / cap)
            if alibi_slopes is not None:
                s = s - f32(alibi_slopes)[:, None, None] * np.abs(pos - j).astype(np.float32)
            if bias is not None:
                c0 = j0 - lo if f == "bias_pointer_start" else j0
                s = s + f32(bias[:, :, m0:m1, c0:c0 + (j1 - j0)])
            s = s * LOG2E
            if f == "oob_zero_scores" and j1 - j0 < BN:
                n = BN - (j1 - j0)
                s = np.concatenate([s, np.zeros(s.shape[:-1] + (n,), np.float32)], -1)
                vis = np.concatenate([vis, np.ones(vis.shape[:-1] + (n,), bool)], -1)
                vt = np.concatenate([vt, np.zeros(vt.shape[:2] + (n, E), np.float32)], 2)
            hidden = F32(-1e30) if f == "finite_hidden" else NINF
            s = np.where(vis, s, hidden)
            vis = vis & (s != NINF)
            if f == "quad_max":
                lane = (np.arange(s.shape[-1]) % 8) // 4
                mn = np.stack([np.maximum(m[..., i], np.where(lane == i, s, NINF).max(-1)) for i in (0, 1)], -1)
                ms = soften(mn)
                a = decay(m, ms)
                p = np.exp2(s - ms[..., lane])
                l = l * a + np.stack([np.where(lane == i, p, F32(0)).sum(-1) for i in (0, 1)], -1)
                acc = shrink(acc, a[..., ecol]) + pv(rnd(p, dt), vis, vt)
                m = mn
                continue
            mn = np.maximum(m, s.max(-1))
            if lazy:  # rescale only when the maximum grew by more than 2**8
                small = (mn - m <= 8) & (m != NINF)
                a = np.where(small, F32(1), decay(m, soften(mn)))
                if f != "lazy_rescale":
                    mn = np.where(small, m, mn)
                ms = soften(mn)
            else:
                ms = soften(mn)
                a = decay(m, ms)
            x = s - ms[..., None]
            p = np.exp2(x)
            if emulate:  # every fourth column through the FMA polynomial instead of the special function unit
                y = np.maximum(x[..., 3::4], F32(-126))
                n = np.trunc(y) if f == "poly_exp2" else np.floor(y)
                r = y - n
                poly = F32(1) + r * (F32(0.69514614) + r * (F32(0.22756439) + r * F32(0.07711909)))
                e = np.ldexp(poly, np.nan_to_num(n).astype(np.int32))
                p[..., 3::4] = np.where(np.isnan(y), F32(np.nan), np.where(vis[..., 3::4], e, F32(0)))
            if f == "sink_first_tile" and j0 == lo and sinks is not None:
                l = l + p.sum(-1)
            else:
                l = l * a + p.sum(-1)
            w = p
            if dropout_mask is not None:
                keep = dropout_mask[:, :, m0:m1, j0:j1]
                bits = np.packbits(keep, axis=-1, bitorder="big")
                keep = np.unpackbits(bits, axis=-1, count=j1 - j0,
                                     bitorder="little" if f == "dropout_bit_order" else "big").astype(bool)
                w = np.where(keep, p * inv, F32(0))
                vis = vis & keep
            if f == "finite_hidden":
                vis = (s > hidden) | (mn == hidden)[..., None]
            acc = shrink(acc, a[..., None]) + pv(rnd(w, dt), vis, vt)
            m = mn
        if f == "quad_max":
            out[:, :, m0:m1] = close(acc, l.sum(-1)).astype(dt)
            lo_[:, :, m0:m1] = logsum(m[..., 0], l.sum(-1))
            continue
        out[:, :, m0:m1] = close(acc, l).astype(dt)
        lo_[:, :, m0:m1] = logsum(m, l)
    out = out.reshape(lead + (H, T, E))
    return (out, lo_.reshape(lead + (H, T))) if lse else out


# ---------------------------------------------------------------- B: keys right to left, masked then unmasked steps, ring buffer
@quiet
def ring_kernel(q, k, v, *, causal=False, scale=None, softcap=None, q_offset=None, BM=128, BN=64, f="", lse=False,
                shifted=False):
    dt = q.dtype
    lead, (H, T, D), (K, S), E = q.shape[:-3], q.shape[-3:], k.shape[-3:-1], v.shape[-1]
    Q = f32(q).reshape(-1, H, T, D)
    B = Q.shape[0]
    hk = np.arange(H) // (H // K)
    SP = -(-S // BN) * BN
    Kp = np.zeros((B, H, SP, D), np.float32)
    Vp = np.zeros((B, H, SP, E), np.float32)
    Kp[:, :, :S] = f32(k).reshape(B, K, S, D)[:, hk]
    Vp[:, :, :S] = f32(v).reshape(B, K, S, E)[:, hk]
    sc = F32(1 / math.sqrt(D) if scale is None else scale)
    off = S - T if q_offset is None else int(q_offset)
    out = np.zeros((B, H, T, E), dt)
    lo_ = np.zeros((B, H, T), np.float32)
    for m0 in range(0, T, BM):
        r0 = m0
        if shifted and m0 + BM > T and T > BM:
            r0 = T - BM
        r1 = min(T, r0 + BM)
        ids = np.arange(r1 - r0)
        if f == "second_warpgroup_rows":
            ids = ids % 64
        start = m0 if f == "shifted_tile_positions" else r0
        pos = (off + start + ids)[:, None]
        last = off + start + (r1 - r0) - 1
        n_max = -(-min(S, last + 1) // BN) if causal else SP // BN
        first_full = min((off + start + 1) // BN, S // BN) if causal else S // BN   # tiles below need no mask
        n_mask = max(n_max - first_full, 0)
        if f == "masking_steps":
            n_mask = min(n_mask, 1)
        m, l, acc = fresh((B, H, r1 - r0), E)
        ring = [np.zeros((B, H, BN, E), np.float32), np.zeros((B, H, BN, E), np.float32)]
        pend = None
        for it, n in enumerate(range(n_max - 1, -1, -1)):
            j = np.arange(n * BN, n * BN + BN)
            if not (f == "stale_last_stage" and n == 0):
                ring[it % 2] = Vp[:, :, n * BN:n * BN + BN]
            s = Q[:, :, r0:r1] @ Kp[:, :, n * BN:n * BN + BN].swapaxes(-1, -2) * sc
            if softcap is not None:
                s = F32(softcap) * np.tanh(s / F32(softcap))
            s = s * LOG2E
            if it < n_mask:
                vis = (j < S) & ((j <= pos) if causal else True)
                vis = np.broadcast_to(vis, s.shape)
                s = np.where(vis, s, NINF)
            else:
                vis = np.ones(s.shape, bool)
            mn = np.maximum(m, s.max(-1))
            ms = soften(mn)
            a = decay(m, ms)
            p = np.exp2(s - ms[..., None])
            l = l * a + p.sum(-1)
            if f == "rescale_before_late_product":
                acc = shrink(acc, a[..., None])
            if pend is not None:
                acc = acc + pv(*pend)
            if f != "rescale_before_late_product":
                acc = shrink(acc, a[..., None])
            pend = (rnd(p, dt), vis & (s != NINF), ring[it % 2])
            m = mn
        if pend is not None:
            acc = acc + pv(*pend)
        out[:, :, r0:r1] = close(acc, l).astype(dt)
        lo_[:, :, r0:r1] = logsum(m, l)
    out = out.reshape(lead + (H, T, E))
    return (out, lo_.reshape(lead + (H, T))) if lse else out


# ---------------------------------------------------------------- C: eager
@quiet
def eager_kernel(q, k, v, *, causal=False, scale=None, bias=None, mask=None, q_offset=None, f="", lse=False):
    dt = q.dtype
    lead, (H, T, D), (K, S), E = q.shape[:-3], q.shape[-3:], k.shape[-3:-1], v.shape[-1]
    B = int(np.prod(lead)) if lead else 1
    g = H // K
    Q = f32(q).reshape(B, H, T, D)
    Kf = np.repeat(f32(k).reshape(B, K, S, D), g, axis=1)
    Vf = np.repeat(f32(v).reshape(B, K, S, E), g, axis=1)
    s = Q @ Kf.swapaxes(-1, -2) * F32(1 / math.sqrt(D) if scale is None else scale)
    off = S - T if q_offset is None else int(q_offset)
    if bias is not None:
        bias = np.asarray(bias)
        shp = (1,) * (4 - bias.ndim) + bias.shape
        flat = f32(bias).reshape(-1)
        st, n = [0] * 4, 1
        for ax in range(3, -1, -1):
            st[ax] = n if shp[ax] > 1 else 0
            n *= shp[ax]
        if f == "bias_row_stride" and shp[2] == 1:
            st[2] = shp[3]
        ix = (np.arange(B)[:, None, None, None] * st[0] + np.arange(H)[:, None, None] * st[1]
              + np.arange(T)[:, None] * st[2] + np.arange(S) * st[3])
        s = s + flat[ix % flat.size]
    pos = off + np.arange(T)
    if f == "causal_table_clamp":   # table of 192 x 192 positions made once
        pos = np.where(pos >= 192, np.maximum(pos, S), pos)
    vis = np.broadcast_to((np.arange(S) <= pos[:, None]) if causal else True, s.shape)
    if mask is not None:
        vis = vis & spread(mask, lead, H, T, S)
    s = np.where(vis, s, NINF)
    vis = vis & (s != NINF)
    m = s.max(-1)
    p = np.exp(s - soften(m)[..., None])
    l = p.sum(-1)
    p = np.where(l[..., None] == 0, F32(0), p / l[..., None])
    out = pv(rnd(p, dt), vis, Vf).astype(dt).reshape(lead + (H, T, E))
    ls = np.where(l == 0, NINF, m + np.log(l)).astype(np.float32).reshape(lead + (H, T))
    return (out, ls) if lse else out


# ---------------------------------------------------------------- D: persistent, addresses by hand
@quiet
def persistent_kernel(q, k, v, *, causal=False, scale=None, q_offset=None, BM=64, BN=64, f="", lse=False):
    dt = q.dtype
    lead, (H, T, D), (K, S), E = q.shape[:-3], q.shape[-3:], k.shape[-3:-1], v.shape[-1]
    Q = f32(q).reshape(-1, H, T, D)
    B = Q.shape[0]
    kr = f32(k).reshape(-1, D)
    vr = f32(v).reshape(-1, E)
    base = ((np.arange(B)[:, None] * K + np.arange(H) // (H // K)) * S)[..., None]
    sc = F32(1 / math.sqrt(D) if scale is None else scale) * LOG2E
    off = S - T if q_offset is None else int(q_offset)
    M = -(-T // BM)
    TP = M * BM
    out = np.zeros((B, H, T, E), dt)
    lbuf = np.full(B * H * TP, NINF, np.float32)
    pairs = M // 2 if f == "zigzag_middle" else (M + 1) // 2
    for u in range(pairs):
        for mt in sorted({u, M - 1 - u}):
            m0, m1 = mt * BM, min(T, mt * BM + BM)
            pos = (off + np.arange(m0, m1))[:, None]
            st = fresh((B, H, m1 - m0), E)
            for j0 in range(0, min(S, off + m1) if causal else S, BN):
                j = np.arange(j0, min(S, j0 + BN))
                jr = j
                if f == "address_16_bits":
                    w = D * q.dtype.itemsize
                    jr = ((j0 * w) & 0xFFFF) // w + (j - j0)
                    jr = np.minimum(jr, S - 1)
                s = Q[:, :, m0:m1] @ kr[base + jr].swapaxes(-1, -2) * sc
                vis = np.broadcast_to((j <= pos) if causal else True, s.shape)
                st = step(st, s, vis, vr[base + j], dt)
            m, l, acc = st
            o = close(acc, l)
            # epilogue: eight-column segments rotated by the row on their way through shared memory
            ns = -(-E // 8)
            buf = np.zeros((B, H, m1 - m0, ns * 8), np.float32)
            buf[..., :E] = o
            seg = buf.reshape(B, H, m1 - m0, ns, 8)
            r = np.arange(m1 - m0)[:, None]
            c = np.arange(ns)
            sm = np.empty_like(seg)
            sm[:, :, r, (c + r % 4) % ns] = seg
            back = sm[:, :, r, (c + (r % 8 if f == "swizzle_period" else r % 4)) % ns]
            out[:, :, m0:m1] = back.reshape(buf.shape)[..., :E].astype(dt)
            at = (np.arange(B)[:, None] * H + np.arange(H))[..., None] * TP + np.arange(m0, m1)
            lbuf[at] = logsum(m, l)
    if f == "lse_padded_stride":
        ls = lbuf[:B * H * T].reshape(B, H, T)
    else:
        ls = lbuf.reshape(B, H, TP)[..., :T].copy()
    out = out.reshape(lead + (H, T, E))
    return (out, ls.reshape(lead + (H, T))) if lse else out


# ---------------------------------------------------------------- E: heads of a group packed into the rows of a tile
@quiet
def packgqa_kernel(q, k, v, *, causal=False, window=None, scale=None, q_offset=None, BM=64, BN=64, f="", lse=False):
    dt = q.dtype
    lead, (H, T, D), (K, S), E = q.shape[:-3], q.shape[-3:], k.shape[-3:-1], v.shape[-1]
    g = H // K
    Q = f32(q).reshape(-1, K, g, T, D).swapaxes(2, 3).reshape(-1, K, T * g, D)
    B = Q.shape[0]
    Kf, Vf = f32(k).reshape(B, K, S, D), f32(v).reshape(B, K, S, E)
    sc = F32(1 / math.sqrt(D) if scale is None else scale) * LOG2E
    off = S - T if q_offset is None else int(q_offset)
    R = T * g
    out = np.zeros((B, K, R, E), np.float32)
    ls = np.zeros((B, K, R), np.float32)
    for r0 in range(0, R, BM):
        r1 = min(R, r0 + BM)
        r = np.arange(r1 - r0)
        t = r0 // g + r // g if f == "packed_row_division" else (r0 + r) // g
        pos = (off + t)[:, None]
        st = fresh((B, K, r1 - r0), E)
        for j0 in range(0, min(S, off + (r1 - 1) // g + 1) if causal else S, BN):
            j = np.arange(j0, min(S, j0 + BN))
            s = Q[:, :, r0:r1] @ Kf[:, :, j].swapaxes(-1, -2) * sc
            st = step(st, s, np.broadcast_to(band(pos, j, causal, window), s.shape), Vf[:, :, j], dt)
        out[:, :, r0:r1] = close(st[2], st[1])
        ls[:, :, r0:r1] = logsum(st[0], st[1])
    out = out.reshape(B, K, T, g, E).swapaxes(2, 3).reshape(lead + (H, T, E)).astype(dt)
    ls = ls.reshape(B, K, T, g).swapaxes(2, 3).reshape(lead + (H, T))
    return (out, ls) if lse else out


# ---------------------------------------------------------------- F: keys made mean-free first
@quiet
def smooth_kernel(q, k, v, *, scale=None, BM=64, BN=64, f="", lse=False):
    dt = q.dtype
    lead, (H, T, D), (K, S), E = q.shape[:-3], q.shape[-3:], k.shape[-3:-1], v.shape[-1]
    Q = f32(q).reshape(-1, H, T, D)
    B = Q.shape[0]
    hk = np.arange(H) // (H // K)
    Kf = f32(k).reshape(B, K, S, D)
    km = Kf.mean(2, keepdims=True, dtype=np.float32)
    Kc, Vf = (Kf - km)[:, hk], f32(v).reshape(B, K, S, E)[:, hk]
    sc = F32(1 / math.sqrt(D) if scale is None else scale)
    out = np.zeros((B, H, T, E), dt)
    ls = np.zeros((B, H, T), np.float32)
    for m0 in range(0, T, BM):
        rows = slice(m0, min(T, m0 + BM))
        st = fresh((B, H, rows.stop - m0), E)
        for j0 in range(0, S, BN):
            s = Q[:, :, rows] @ Kc[:, :, j0:j0 + BN].swapaxes(-1, -2) * (sc * LOG2E)
            st = step(st, s, np.ones(s.shape, bool), Vf[:, :, j0:j0 + BN], dt)
        out[:, :, rows] = close(st[2], st[1]).astype(dt)
        ls[:, :, rows] = logsum(st[0], st[1])
    if f != "smoothed_lse":
        ls = ls + (Q * km[:, hk]).sum(-1) * sc
    out = out.reshape(lead + (H, T, E))
    return (out, ls.reshape(lead + (H, T))) if lse else out


# ---------------------------------------------------------------- G: wide values in passes of 64 columns
@quiet
def passes_kernel(q, k, v, *, causal=False, scale=None, q_offset=None, BM=64, BN=48, f="", lse=False):
    dt = q.dtype
    lead, (H, T, D), (K, S), E = q.shape[:-3], q.shape[-3:], k.shape[-3:-1], v.shape[-1]
    Q = f32(q).reshape(-1, H, T, D)
    B = Q.shape[0]
    hk = np.arange(H) // (H // K)
    Kf, Vf = f32(k).reshape(B, K, S, D)[:, hk], f32(v).reshape(B, K, S, E)[:, hk]
    sc = F32(1 / math.sqrt(D) if scale is None else scale) * LOG2E
    off = S - T if q_offset is None else int(q_offset)
    out = np.zeros((B, H, T, E), dt)
    ls = np.zeros((B, H, T), np.float32)
    for m0 in range(0, T, BM):
        m1 = min(T, m0 + BM)
        pos = (off + np.arange(m0, m1))[:, None]
        st = fresh((B, H, m1 - m0), min(E, 64))
        for e0 in range(0, E, 64):
            e1 = min(E, e0 + 64)
            if e0:
                new = fresh((B, H, m1 - m0), e1 - e0)
                st = (st[0], st[1], new[2]) if f == "second_pass_state" else new
            for j0 in range(0, min(S, off + m1) if causal else S, BN):
                j = np.arange(j0, min(S, j0 + BN))
                s = Q[:, :, m0:m1] @ Kf[:, :, j].swapaxes(-1, -2) * sc
                vis = np.broadcast_to((j <= pos) if causal else True, s.shape)
                st = step(st, s, vis, Vf[:, :, j, e0:e1], dt)
            out[:, :, m0:m1, e0:e1] = close(st[2], st[1]).astype(dt)
            if e0 == 0:
                ls[:, :, m0:m1] = logsum(st[0], st[1])
    out = out.reshape(lead + (H, T, E))
    return (out, ls.reshape(lead + (H, T))) if lse else out


# ---------------------------------------------------------------- H: split-KV decoding with a reduction
@quiet
def split_kernel(q, k, v, *, causal=False, window=None, scale=None, softcap=None, alibi_slopes=None, sinks=None,
                 kv_lengths=None, q_offset=None, splits=4, tree=False, f="", lse=False):
    dt = q.dtype
    lead, (H, T, D), (K, S), E = q.shape[:-3], q.shape[-3:], k.shape[-3:-1], v.shape[-1]
    g = H // K
    Q = f32(q).reshape(-1, K, g, T, D).swapaxes(2, 3).reshape(-1, K, T * g, D)   # row = t * g + head
    B = Q.shape[0]
    Kf, Vf = f32(k).reshape(B, K, S, D), f32(v).reshape(B, K, S, E)
    sc = F32(1 / math.sqrt(D) if scale is None else scale)
    L = np.full(B, S) if kv_lengths is None else np.broadcast_to(np.asarray(kv_lengths), lead).reshape(B)
    off = L - T if q_offset is None else np.broadcast_to(np.asarray(q_offset), (B,))
    r = np.arange(T * g)
    t = r % T if f == "row_to_token" else r // g
    pos = (off[:, None] + t)[:, None, :, None]
    head = np.arange(K)[:, None] * g + r % g
    size = -(-S // splits)
    parts = []
    for j0 in range(0, S, size):
        j1 = min(S, j0 + size)
        if f == "split_end_inclusive":
            j1 = min(S, j1 + 1)
        j = np.arange(j0, j1)
        s = Q @ Kf[:, :, j0:j1].swapaxes(-1, -2) * sc
        if softcap is not None:
            s = F32(softcap) * np.tanh(s / F32(softcap))
        if alibi_slopes is not None:
            jj = j - j0 if f == "alibi_split_index" else j
            s = s - f32(alibi_slopes)[head][..., None] * np.abs(pos - jj).astype(np.float32)
        vis = np.broadcast_to(band(pos, j, causal, window) & (j < L[:, None, None, None]), s.shape)
        m, l, acc = step(fresh((B, K, T * g), E), s * LOG2E, vis, Vf[:, :, j0:j1], dt)
        ls = np.where(l == 0, NINF, m + np.log2(l))
        if f == "empty_split_lse":
            ls = np.where((l == 0) & (L[:, None, None] <= j0), F32(0), ls)
        parts.append((close(acc, l), ls, m))
    if tree:
        while len(parts) > 1:
            nxt = []
            for i in range(0, len(parts) - 1, 2):
                (oa, la, _), (ob, lb, _) = parts[i:i + 2]
                mx = np.maximum(la, lb)
                wa, wb = np.exp2(la - soften(mx)), np.exp2(lb - soften(mx))
                d = wa + wb
                wa, wb = [np.where(d == 0, F32(0), w / np.where(d == 0, F32(1), d)) for w in (wa, wb)]
                o = np.where(la[..., None] == NINF, F32(0), shrink(oa, wa[..., None])) \
                    + np.where(lb[..., None] == NINF, F32(0), shrink(ob, wb[..., None]))
                nxt.append((o, np.where(d == 0, NINF, mx + np.log2(d)), mx))
            if len(parts) % 2 and f != "tree_odd_partial":
                nxt.append(parts[-1])
            parts = nxt
    O, Ls, Ms = (np.stack(x) for x in zip(*parts))
    key = Ms if f == "combine_by_maximum" else Ls
    mx = key.max(0)
    if sinks is not None:
        sk = f32(sinks)[head] * LOG2E
        mx = np.maximum(mx, sk)
    w = np.where(key == NINF, F32(0), np.exp2(key - soften(mx)))
    den = w.sum(0)
    if sinks is not None:
        den = den + np.exp2(sk - soften(mx))
    o = np.where(Ls[..., None] == NINF, F32(0), shrink(O, w[..., None])).sum(0)
    o = close(o, den)
    ls = logsum(mx, den)
    o = o.reshape(B, K, T, g, E).swapaxes(2, 3).reshape(lead + (H, T, E)).astype(dt)
    ls = ls.reshape(B, K, T, g).swapaxes(2, 3).reshape(lead + (H, T))
    return (o, ls) if lse else o


# ---------------------------------------------------------------- P: packed (varlen), persistent over row tiles
@quiet
def packed_kernel(q, k, v, *, cu_q, cu_kv, causal=False, window=None, scale=None, softcap=None, alibi_slopes=None,
                  sinks=None, BM=32, BN=64, f="", lse=False, backwards=False, aligned=False):
    dt = q.dtype
    (H, TQ, D), (K, TK), E = q.shape, k.shape[:2], v.shape[-1]
    cu_q, cu_kv = [int(x) for x in cu_q], [int(x) for x in cu_kv]
    N = len(cu_q) - 1
    ql = [cu_q[b + 1] - cu_q[b] for b in range(N)]
    kl = [cu_kv[b + 1] - cu_kv[b] for b in range(N)]
    Q = f32(q)
    kr, vr = f32(k).reshape(K * TK, D), f32(v).reshape(K * TK, E)
    hk = np.arange(H) // (H // K)
    base = (hk * (TQ if f == "kv_head_stride" else TK))[:, None]
    sc = F32(1 / math.sqrt(D) if scale is None else scale)
    out = np.zeros((H, TQ, E), dt)
    ls = np.full((H, TQ), NINF, np.float32)
    tiles = [0]
    for b in range(N):
        tiles.append(tiles[-1] + -(-ql[b] // BM))
    work, cur = [], 0
    for u in range(tiles[-1]):
        if f == "one_sequence_a_step":
            if u >= tiles[cur + 1]:
                cur += 1
        else:
            while u >= tiles[cur + 1]:
                cur += 1
        work.append((cur, u - tiles[cur]))
    if f == "max_length_of_all_but_last":
        mx = max(ql[:-1], default=0) if N > 1 else ql[0]
        work = [(b, t) for b, t in work if t * BM < mx]
    if backwards:
        work.reverse()
    left_acc, left_seq = None, -1
    for b, t in work:
        m0 = t * BM
        if m0 >= ql[b] or m0 < 0:
            continue
        m1 = min(ql[b], m0 + BM)
        if f == "store_past_sequence":
            m1 = min(TQ - cu_q[b], m0 + BM)
        off = (max(kl) - max(ql)) if f == "offset_of_maxima" else kl[b] - ql[b]
        pos = (off + np.arange(m0, m1))[:, None]
        rows = slice(cu_q[b] + m0, cu_q[b] + m1)
        hi = max(min(kl[b], off + m1), 0) if causal else kl[b]
        start = 0
        if aligned:   # bulk copies begin at a multiple of sixteen keys
            start = -(cu_kv[b] % 16)
        st = fresh((H, m1 - m0), E, None if sinks is None else f32(sinks)[:, None] * LOG2E)
        first = True
        for j0 in range(start, hi, BN):
            j = np.arange(j0, min(kl[b], j0 + BN))
            if j.size == 0:
                continue
            at = (base + (cu_kv[b] + j)) % (K * TK)
            s = Q[:, rows] @ kr[at].swapaxes(-1, -2) * sc
            if softcap is not None:
                s = F32(softcap) * np.tanh(s / F32(softcap))
            if alibi_slopes is not None:
                if f == "alibi_global_index":
                    dist = np.abs((cu_q[b] + np.arange(m0, m1))[:, None] - (cu_kv[b] + j))
                else:
                    dist = np.abs(pos - j)
                s = s - f32(alibi_slopes)[:, None, None] * dist.astype(np.float32)
            vis = band(pos, j, causal, window)
            if f != "aligned_front":
                vis = vis & (j >= 0)
            st2 = step(st, s * LOG2E, np.broadcast_to(vis, s.shape), vr[at], dt)
            if f == "accumulator_kept" and first and left_seq == b and left_acc is not None:
                n = min(left_acc.shape[1], m1 - m0)
                st2[2][:, :n] += left_acc[:, :n]
            st, first = st2, False
        m, l, acc = st
        left_acc, left_seq = acc, b
        out[:, rows] = close(acc, l).astype(dt)
        x = logsum(m, l)
        if f == "empty_lse_plus":
            x = np.where(x == NINF, F32(np.inf), x)
        ls[:, rows] = x
    return (out, ls) if lse else out


# ---------------------------------------------------------------- G: paged decoding
@quiet
def paged_kernel(q, kp, vp, *, block_table, kv_lengths, causal=False, window=None, scale=None, softcap=None,
                 alibi_slopes=None, sinks=None, q_offset=None, keys_a_tile=64, part=None, f="", lse=False):
    dt = q.dtype
    B, H, T, D = q.shape
    P, K, ps, E = vp.shape
    g = H // K
    Q = f32(q).reshape(B, K, g, T, D).reshape(B, K, g * T, D)       # row = head * T + t
    table = np.asarray(block_table)
    L = [int(x) for x in np.asarray(kv_lengths)]
    sc = F32(1 / math.sqrt(D) if scale is None else scale)
    ppt = max(1, keys_a_tile // ps)
    out = np.zeros((B, H, T, E), dt)
    ls = np.zeros((B, H, T), np.float32)
    r = np.arange(g * T)
    head = np.arange(K)[:, None] * g + r // T
    used = max(1, -(-max(L) // ps))
    sink2 = None
    if sinks is not None:
        hs = head
        if f == "sink_padded_group":
            pg = 1 << (g - 1).bit_length()
            hs = np.minimum(np.arange(K)[:, None] * pg + r // T, H - 1)
        sink2 = f32(sinks)[hs] * LOG2E
    for b in range(B):
        n = -(-L[b] // ps)
        off = L[b] - T if q_offset is None else int(np.broadcast_to(np.asarray(q_offset), (B,))[b])
        pos = (off + r % T)[:, None]
        p0 = 0
        if window is not None and window[0] is not None:
            p0 = min(max(0, (off - window[0]) // ps), n)
        states, cur = [], None
        per = n if part is None else max(1, part // ps)
        blocks = [(a, min(n, a + per)) for a in range(0, n, per)] if n else []
        if f == "partitions_floor" and part is not None:
            blocks = blocks[:max(1, L[b] // part)]
        for lo, hi in blocks:
            lo = max(lo, p0)
            st = fresh((K, g * T), E)
            tl = list(range(lo, hi, ppt))
            for i, a in enumerate(tl):
                pg = np.arange(a, min(hi, a + ppt))
                row = b
                if f == "walk_from_zero":
                    ids = table[b, pg - p0]
                elif f == "table_stride":
                    ids = table.reshape(-1)[np.minimum(b * used + pg, table.size - 1)]
                elif f == "pages_adjacent":
                    ids = (table[b, a] + (pg - a)) % P
                else:
                    ids = table[row, pg]
                vid = ids
                if f == "value_page_prefetched" and i + 1 < len(tl):
                    nx = np.minimum(np.arange(tl[i + 1], tl[i + 1] + len(pg)), n - 1)
                    vid = table[b, nx]
                kt = f32(kp[ids]).swapaxes(0, 1).reshape(K, -1, D)
                vt = f32(vp[vid]).swapaxes(0, 1).reshape(K, -1, E)
                j = (pg[:, None] * ps + np.arange(ps)).reshape(-1)
                valid = j < L[b]
                if f == "last_page_remainder":
                    tail = L[b] % ps
                    valid = (j // ps < n - 1) | (j % ps < tail)
                s = Q[b] @ kt.swapaxes(-1, -2) * sc
                if softcap is not None:
                    s = F32(softcap) * np.tanh(s / F32(softcap))
                if alibi_slopes is not None:
                    s = s - f32(alibi_slopes)[head][..., None] * np.abs(pos - j).astype(np.float32)
                vis = np.broadcast_to(band(pos, j, causal, window) & valid, s.shape)
                st = step(st, s * LOG2E, vis, vt, dt)
            states.append(st)
        m, l, acc = fresh((K, g * T), E, sink2)
        for m2, l2, a2 in states:
            mn = np.maximum(m, m2)
            x, y = decay(m, soften(mn)), decay(m2, soften(mn))
            m, l = mn, l * x + l2 * y
            acc = shrink(acc, x[..., None]) + shrink(a2, y[..., None])
        out[b] = close(acc, l).reshape(H, T, E).astype(dt)
        ls[b] = logsum(m, l).reshape(H, T)
    return (out, ls) if lse else out


# ---------------------------------------------------------------- I: cascade over a shared prefix of pages
@quiet
def cascade_kernel(q, kp, vp, *, block_table, kv_lengths, scale=None, f="", lse=False):
    dt = q.dtype
    B, H, T, D = q.shape
    P, K, ps, E = vp.shape
    g = H // K
    Q = f32(q).reshape(B, K, g * T, D)
    table = np.asarray(block_table)
    L = [int(x) for x in np.asarray(kv_lengths)]
    sc = F32(1 / math.sqrt(D) if scale is None else scale)
    same = (table == table[:1]).all(0)
    shared = int(np.argmin(same)) if not same.all() else table.shape[1]
    shared = min(shared, (max if f == "prefix_of_longest" else min)(L) // ps)
    if B == 1:
        shared = 0

    def run(qq, ids, n):
        kt = f32(kp[ids]).swapaxes(0, 1).reshape(K, -1, D)[:, :n]
        vt = f32(vp[ids]).swapaxes(0, 1).reshape(K, -1, E)[:, :n]
        st = fresh(qq.shape[:-1], E)
        for j0 in range(0, n, 64):
            s = qq @ kt[:, j0:j0 + 64].swapaxes(-1, -2) * (sc * LOG2E)
            st = step(st, s, np.ones(s.shape, bool), vt[:, j0:j0 + 64], dt)
        return close(st[2], st[1]), logsum(st[0], st[1])

    qq = Q.swapaxes(0, 1).reshape(K, B * g * T, D)
    po, pl = run(qq, table[0, :shared], shared * ps)
    if f == "prefix_lse_base_two":
        pl = pl * LOG2E
    po = po.reshape(K, B, g * T, E).swapaxes(0, 1)
    pl = pl.reshape(K, B, g * T).swapaxes(0, 1)
    out = np.zeros((B, H, T, E), dt)
    ls = np.zeros((B, H, T), np.float32)
    for b in range(B):
        n = max(L[b] - shared * ps, 0)
        so, sl = run(Q[b], table[b, shared:shared + -(-n // ps)], n)
        mx = np.maximum(pl[b], sl)
        wp, ws = np.exp(pl[b] - soften(mx)), np.exp(sl - soften(mx))
        o = shrink(po[b], wp[..., None]) + shrink(so, ws[..., None])
        out[b] = close(o, wp + ws).reshape(H, T, E).astype(dt)
        ls[b] = np.where(wp + ws == 0, NINF, mx + np.log(wp + ws)).reshape(H, T)
    return (out, ls) if lse else out


# ---------------------------------------------------------------- L: latent, absorbed
@quiet
def latent_kernel(q_nope, q_rope, kv_latent, k_rope, w_uk, w_uv, *, form="absorb", causal=False, scale=None,
                  kv_lengths=None, q_offset=None, BN=64, f="", lse=False):
    dt = q_nope.dtype
    lead, (H, T, N), R = q_nope.shape[:-3], q_nope.shape[-3:], q_rope.shape[-1]
    S, C = kv_latent.shape[-2:]
    E = w_uv.shape[1]
    qa = f32(q_nope).reshape(-1, H, T, N) @ f32(w_uk)
    B = qa.shape[0]
    qa = rnd(qa, dt).reshape(B, H * T, C)
    qr = f32(q_rope).reshape(B, H * T, R)
    lat, kr = f32(kv_latent).reshape(B, S, C), f32(k_rope).reshape(B, S, R)
    perm = np.concatenate([np.arange(0, R, 2), np.arange(1, R, 2)])   # pairs side by side -> halves
    qr = qr[..., perm]
    if f != "rope_layout":
        kr = kr[..., perm]
    cache = np.concatenate([kr, lat], -1)
    V = cache[..., :C] if f == "value_view_start" else cache[..., R:]
    sc = F32(1 / math.sqrt(N + R) if scale is None else scale)
    L = np.full(B, S) if kv_lengths is None else np.broadcast_to(np.asarray(kv_lengths), lead).reshape(B)
    off = L - T if q_offset is None else np.broadcast_to(np.asarray(q_offset), (B,))
    pos = (off[:, None] + np.arange(H * T) % T)[..., None]
    m, l, acc = fresh((B, H * T), C)
    before = np.ones((B, H * T), np.float32)
    half = C // 2
    for j0 in range(0, S, BN):
        j = np.arange(j0, min(S, j0 + BN))
        jr = j - j0 if f == "rope_tile_fixed" else j
        s = qa @ lat[:, j].swapaxes(-1, -2) + qr @ kr[:, jr].swapaxes(-1, -2)
        vis = np.broadcast_to((j < L[:, None, None]) & ((j <= pos) if causal else True), s.shape)
        s = np.where(vis, s * (sc * LOG2E), NINF)
        vis = vis & (s != NINF)
        mn = np.maximum(m, s.max(-1))
        ms = soften(mn)
        a = decay(m, ms)
        p = np.exp2(s - ms[..., None])
        l = l * a + p.sum(-1)
        fac = np.repeat(a[..., None], C, -1)
        if f == "second_half_old_factor":
            fac[..., half:] = before[..., None]
        acc = shrink(acc, fac) + pv(rnd(p, dt), vis, V[:, j])
        before, m = a, mn
    o = rnd(close(acc, l), dt).reshape(B, H, T, C)
    wv = f32(w_uv)
    if f == "head_tile_of_16":
        wv = wv[np.arange(H) % 16]
    out = (o @ wv.swapaxes(-1, -2)).astype(dt).reshape(lead + (H, T, E))
    return (out, logsum(m, l).reshape(lead + (H, T))) if lse else out


# ---------------------------------------------------------------- M: latent prefill, keys and values written out, context in chunks
@quiet
def latent_prefill_kernel(q_nope, q_rope, kv_latent, k_rope, w_uk, w_uv, *, form="absorb", causal=False, scale=None,
                          W=48, f="", lse=False):
    dt = q_nope.dtype
    lead, (H, T, N), R = q_nope.shape[:-3], q_nope.shape[-3:], q_rope.shape[-1]
    S, C = kv_latent.shape[-2:]
    E = w_uv.shape[1]
    Q = np.concatenate([f32(q_nope), f32(q_rope)], -1).reshape(-1, H, T, N + R)
    B = Q.shape[0]
    w = np.concatenate([f32(w_uk), f32(w_uv)], 1)                     # kv_b_proj: (H, N + E, C)
    lat = f32(kv_latent).reshape(B, 1, S, C)
    kv = lat @ w.swapaxes(-1, -2)
    first = E if f == "kv_b_value_rows" else N
    Kn, V = kv[..., :N], kv[..., (first + np.arange(E)) % (N + E)]
    Kr = np.broadcast_to(f32(k_rope).reshape(B, 1, S, R), (B, H, S, R))
    Kf = np.concatenate([Kn, Kr], -1)
    sc = F32(1 / math.sqrt(N + R) if scale is None else scale) * LOG2E
    ctx = max(S - T, 0)
    off = S - T
    st = fresh((B, H, T), E)
    for j0 in range(0, ctx, W):                                        # context: every row sees every key
        j1 = min(j0 + W, S if f == "context_chunk_rounded" else ctx)
        s = Q @ Kf[:, :, j0:j1].swapaxes(-1, -2) * sc
        st = step(st, s, np.ones(s.shape, bool), V[:, :, j0:j1], dt)
    for j0 in range(ctx, S, W):                                        # the new tokens themselves
        j = np.arange(j0, min(S, j0 + W))
        s = Q @ Kf[:, :, j].swapaxes(-1, -2) * sc
        vis = np.broadcast_to((j <= (off + np.arange(T))[:, None]) if causal else True, s.shape)
        st = step(st, s, vis, V[:, :, j], dt)
    m, l, acc = st
    out = close(acc, l).astype(dt).reshape(lead + (H, T, E))
    return (out, logsum(m, l).reshape(lead + (H, T))) if lse else out


# ================================================================ the cases
DT = {"float32": np.dtype(np.float32), "bfloat16": BF16, "float16": F16}
FAULTS = []


def normal(rng, shape, dt, s=1.0):
    return (rng.standard_normal(shape) * s).astype(np.float32).astype(DT[dt])


def add(name, sentence, form, dtype, lse, kernel, make, **fixed):
    tags = {"form": form, "dtype": dtype, "lse": lse}
    seed = 1000 + len(FAULTS)

    def build(wrong=True):
        rng = np.random.default_rng(seed)
        arrays, options = make(rng, dtype)
        return partial(kernel, f=name if wrong else "", lse=lse, **fixed), arrays, options
    FAULTS.append((name, sentence, tags, build))


def dense(H, K, T, S, D, E=None, B=None, qs=1.0, ks=1.0, opt=None, kmean=0.0):
    def make(rng, dt):
        lead = () if B is None else (B,)
        arrays = (normal(rng, lead + (H, T, D), dt, qs),
                  (f32(normal(rng, lead + (K, S, D), dt, ks)) + F32(kmean)).astype(DT[dt]),
                  normal(rng, lead + (K, S, E or D), dt))
        o = opt(rng) if callable(opt) else dict(opt or {})
        return arrays, o
    return make


def packed(H, K, D, qlens, klens, opt=None, E=None, qs=1.0):
    def make(rng, dt):
        arrays = (normal(rng, (H, sum(qlens), D), dt, qs), normal(rng, (K, sum(klens), D), dt),
                  normal(rng, (K, sum(klens), E or D), dt))
        o = {"cu_q": np.concatenate([[0], np.cumsum(qlens)]).astype(np.int32),
             "cu_kv": np.concatenate([[0], np.cumsum(klens)]).astype(np.int32)}
        o.update(opt(rng) if callable(opt) else (opt or {}))
        return arrays, o
    return make


def paged(H, K, D, T, ps, lens, spare=0, P=None, opt=None, prefix=0, qs=1.0):
    def make(rng, dt):
        B = len(lens)
        mp = max(-(-n // ps) for n in lens) + spare
        total = P or B * mp + 3
        arrays = (normal(rng, (B, H, T, D), dt, qs), normal(rng, (total, K, ps, D), dt), normal(rng, (total, K, ps, D), dt))
        table = rng.permutation(total)[:B * mp].reshape(B, mp).astype(np.int32)
        if prefix:
            table[:, :prefix] = table[:1, :prefix]
        o = {"block_table": table, "kv_lengths": np.array(lens, np.int32)}
        o.update(opt(rng) if callable(opt) else (opt or {}))
        return arrays, o
    return make


def latent(H, T, S, N, R, C, E, B=None, opt=None, rs=1.0, wq=1.0):
    def make(rng, dt):
        lead = () if B is None else (B,)
        arrays = (normal(rng, lead + (H, T, N), dt), normal(rng, lead + (H, T, R), dt, rs),
                  normal(rng, lead + (S, C), dt), normal(rng, lead + (S, R), dt, rs),
                  normal(rng, (H, N, C), dt, wq / math.sqrt(C)), normal(rng, (H, E, C), dt, 1 / math.sqrt(C)))
        return arrays, (opt(rng) if callable(opt) else dict(opt or {}))
    return make


def slopes(H):
    return (2.0 ** (-8.0 * (np.arange(H) + 1) / H)).astype(np.float32)


# ---- prefill
add("window_start_last_row",
    "The first key tile of a row tile's loop is found from the tile's last row (m0 + 63) instead of its first, so with window left = 40 the "
    "upper rows of every 64-row tile (from the second on) lose the oldest keys of their window - those in key tiles of 32 before the last row's window start.",
    "dense", "float32", True, tile_kernel, dense(6, 2, 230, 230, 64, opt={"causal": True, "window": (40, None)}), BM=64, BN=32)
add("lazy_rescale",
    "Lazy rescaling: when the running maximum grows by at most 8 (base 2) the accumulator and row sum are not rescaled, but the new maximum is taken as the "
    "reference of the following tiles all the same; earlier key tiles (48 keys) weigh too much in every row whose maximum rises after the first tile.",
    "dense", "float32", True, tile_kernel, dense(4, 4, 150, 211, 48), BM=64, BN=48, lazy=True)
add("quad_max",
    "The row maximum is reduced over lane pairs only (shuffle xor 1, the xor 2 step is missing): keys with column%8 < 4 and >= 4 of a tile are exponentiated against "
    "different maxima and mixed as if equal, output columns of the two lane pairs are rescaled differently; all rows with uneven maxima are wrong.",
    "dense", "bfloat16", False, tile_kernel, dense(4, 2, 100, 180, 64, opt={"causal": True}), BM=64, BN=64)
add("bias_pointer_start",
    "The bias pointer starts at column 0 although the key loop starts at the first tile of the window: from the row tile on where lo > 0, key j gets the bias of column j - lo "
    "(lo = the tile's first key). Rows of the early tiles, whose loop starts at key 0, are right.",
    "dense", "float32", False, tile_kernel,
    dense(4, 2, 170, 170, 32, opt=lambda r: {"causal": True, "window": (50, None), "bias": normal(r, (4, 170, 170), "float32")}), BM=32, BN=32)
add("sink_first_tile",
    "The state starts as (m, l) = (sink, 1), but the first key tile treats itself as 'first' and does not rescale the row sum, so the sink enters the denominator as exp(0) "
    "relative to that tile's maximum rather than exp(sink - max): all rows come out too small and lse too large.",
    "dense", "bfloat16", True, tile_kernel,
    dense(8, 2, 90, 130, 64, opt=lambda r: {"causal": True, "sinks": (r.standard_normal(8) * 0.8 - 1).astype(np.float32)}), BM=32, BN=64)
add("dropout_bit_order",
    "The keep mask is packed eight keys to a byte with the first key in the high bit and unpacked from the low bit, so inside every group of eight keys of a tile "
    "key i takes the keep bit of key 7-i (in the last, incomplete byte also the zero padding).",
    "dense", "float32", False, tile_kernel,
    dense(4, 4, 75, 93, 40, opt=lambda r: {"dropout_mask": r.random((4, 75, 93)) > 0.25, "dropout_rate": 0.25}), BM=64, BN=48)
add("shift_head_map",
    "The key/value head is h >> floor(log2(group)) instead of h // group; with a group of 3 (12 query heads, 4 key heads) that divides by 2, so heads 2, 4, 5, 6, 7, 8 "
    "read a neighbouring or the last key/value head (heads 0, 1, 3, 9, 10, 11 are right).",
    "dense", "bfloat16", False, tile_kernel, dense(12, 4, 70, 70, 64, opt={"causal": True}), BM=64, BN=64)
add("d_tail",
    "The query-key product runs over whole steps of 32 of the head dimension only: of head_dim 88 the last 24 components never enter the scores, so every row attends by the first 64 components.",
    "dense", "float16", True, tile_kernel, dense(5, 5, 110, 140, 88), BM=64, BN=64)
add("oob_zero_scores",
    "The last key tile (128 keys, of which only 22 exist at S = 150) is zero filled and not masked: each missing key counts with score 0 in the denominator and value 0, "
    "so all rows are shrunk and lse is too large.",
    "dense", "float32", True, tile_kernel, dense(6, 3, 77, 150, 64), BM=64, BN=128)
add("finite_hidden",
    "Hidden scores are set to -1e30 instead of -inf; a row of which the mask hides every key has -1e30 as its maximum, each hidden key then gets weight 1 and the row's output is the mean of all values "
    "instead of 0. Only the fully masked rows are wrong.",
    "dense", "float32", False, tile_kernel,
    dense(4, 2, 96, 120, 48, opt=lambda r: {"mask": (r.random((4, 96, 120)) > 0.3) & (r.random((4, 96, 1)) > 0.15)}), BM=48, BN=64)
add("mask_before_softcap",
    "The mask is applied before the softcap: -inf goes through tanh and comes out as -softcap (-3), so causal-hidden keys inside the visited tiles get weight exp(-3) and leak future values into rows of the diagonal tiles.",
    "dense", "bfloat16", True, tile_kernel, dense(6, 2, 140, 140, 64, opt={"causal": True, "softcap": 3.0}), BM=64, BN=64)
add("half_saturates",
    "The query-key product is kept in float16 (saturating) before the scale: dot products above 65504 are clipped to 65504, so in head 2, which has an outlier channel, all keys above that bound tie "
    "and share the weight that should go to the largest alone; heads with small scores are right.",
    "dense", "float16", False, tile_kernel,
    lambda rng, dt: ((lambda a: (np.concatenate([a[0][:, :, :0 + 7], np.where(np.arange(4)[:, None, None] == 2, 290 + 20 * f32(a[0][:, :, 7:8]), f32(a[0][:, :, 7:8])).astype(F16), a[0][:, :, 8:]], -1),
                                 np.concatenate([a[1][:, :, :7], np.where(np.arange(2)[:, None, None] == 1, 200 + 40 * f32(a[1][:, :, 7:8]), f32(a[1][:, :, 7:8])).astype(F16), a[1][:, :, 8:]], -1),
                                 a[2]))(dense(4, 2, 60, 101, 64)(rng, dt)[0]), {}), BM=64, BN=64)
add("chunk_first_row",
    "The chunk (chunk = 40) of a whole row tile (64 rows) is taken from its first row: rows of the tile that lie past a chunk boundary look at keys of the earlier chunk and not at their own.",
    "dense", "float32", True, tile_kernel, dense(4, 1, 150, 150, 64, opt={"causal": True, "chunk": 40}), BM=64, BN=64)
add("kv_len_index",
    "The length of the sequence is fetched with (batch*heads + head) // kv_heads instead of // heads: with 8 query and 2 key heads, heads 2 and 3 of batch 0 (length 60) use the "
    "length of batch 1 (170), its heads 4..7 and all heads of batch 1 that of batch 2 (121); heads 0 and 1 of batch 0 and batch 2 are right.",
    "dense", "bfloat16", False, tile_kernel,
    dense(8, 2, 40, 170, 32, B=3, opt={"kv_lengths": np.array([60, 170, 121], np.int32)}), BM=64, BN=64)
add("pade_tanh",
    "The softcap uses the rational tanh x(27+x^2)/(27+9x^2) without clamping: it is right near 0, 2 % too large around 1 to 2 times the softcap (2.5), "
    "and beyond 3 times it passes the cap and grows like x/9, so the largest scores are not capped and take too much weight.",
    "dense", "float32", True, tile_kernel, dense(4, 2, 85, 160, 64, qs=8.0, opt={"softcap": 2.5}), BM=64, BN=64)
add("poly_exp2",
    "Every fourth key column (column % 4 == 3) of a tile goes through a software exp2; its integer part is found by truncation toward zero instead of floor, so the cubic, fitted on [0,1), is "
    "evaluated on (-1,0] and those keys weigh up to 9 % too little.",
    "dense", "bfloat16", False, tile_kernel, dense(4, 4, 130, 190, 64, opt={"causal": True}), BM=64, BN=64, emulate=True)
add("masking_steps",
    "Only the first (rightmost) key tile of a row tile gets the causal mask, though row tiles have 128 rows and key tiles 32 keys, so up to three more tiles cross the diagonal: "
    "upper rows of every row tile see keys of their future.",
    "dense", "float32", False, ring_kernel, dense(4, 2, 260, 260, 64, opt={"causal": True}), BM=128, BN=32)
add("stale_last_stage",
    "The wait for the last value tile is missing: the leftmost tile (keys 0..63) of every row tile multiplies its weights by whatever its ring stage holds - the value tile loaded two steps earlier, "
    "or zeros if there were fewer than two.",
    "dense", "bfloat16", False, ring_kernel, dense(6, 3, 190, 310, 64, opt={"causal": True}), BM=64, BN=64)
add("second_warpgroup_rows",
    "The second consumer warpgroup (rows 64..127 of a 128-row tile) forgets its row offset when it builds the causal mask: its rows are masked as rows 64 earlier and miss their 64 newest keys.",
    "dense", "float32", True, ring_kernel, dense(4, 4, 200, 200, 64, opt={"causal": True}), BM=128, BN=64)
add("rescale_before_late_product",
    "The product of the previous tile's weights with its values is issued one step late, after the accumulator was rescaled for the new maximum: the previous tile's contribution misses that factor "
    "in each row whose maximum grows, the row sum does not.",
    "dense", "float16", True, ring_kernel, dense(4, 2, 75, 222, 64), BM=64, BN=48)
add("shifted_tile_positions",
    "The last row tile is moved back so that it ends at T (rows 109..172 instead of 128..172 of T = 173, tile 64), but the causal positions are still those of the unmoved tile, 19 too high: "
    "these last 64 rows see up to 19 future keys.",
    "dense", "float32", False, ring_kernel, dense(3, 1, 173, 210, 80, opt={"causal": True}), BM=64, BN=64, shifted=True)
add("causal_table_clamp",
    "The causal mask comes from a table made for 192 positions; rows at positions 192 and above (rows 72..129 here, q_offset 120) fall outside and stay unmasked, so they see all keys, also future ones.",
    "dense", "float32", True, eager_kernel, dense(4, 2, 130, 250, 48, opt={"causal": True}))
add("bias_row_stride",
    "A bias of shape (heads, 1, S), one row for all queries, is addressed with a row stride of S instead of 0: query row i of head h reads the bias of head (h + i) modulo heads; rows that are a multiple of 6 are right.",
    "dense", "float16", False, eager_kernel, dense(6, 6, 50, 130, 64, opt=lambda r: {"bias": (1.5 * r.standard_normal((6, 1, 130))).astype(np.float32)}))
add("zigzag_middle",
    "Row tiles are handed out in pairs (m, M-1-m) for causal balance, M // 2 pairs: with an odd number of tiles (5 of 48 rows) the middle one, rows 96..143, is never computed and stays 0 with lse -inf.",
    "dense", "bfloat16", True, persistent_kernel, dense(4, 2, 235, 235, 32, opt={"causal": True}), BM=48, BN=64)
add("address_16_bits",
    "The byte address of a key tile inside its head is computed in 16 bits: at head_dim 128 in bfloat16 it wraps at key 256, so the scores of keys 256 and above are those of keys j - 256 (the values are right).",
    "dense", "bfloat16", True, persistent_kernel, dense(4, 2, 60, 390, 128), BM=64, BN=64)
add("swizzle_period",
    "The epilogue writes 8-column segments of the output to shared memory rotated by row % 4 and reads them back rotated by row % 8: in rows with row % 8 >= 4 (of a tile) the segments come out rotated by 4 (96 columns, 12 segments).",
    "dense", "float32", False, persistent_kernel, dense(4, 4, 101, 140, 64, E=96), BM=32, BN=64)
add("lse_padded_stride",
    "lse is stored with the rows of a head padded to a multiple of 64 (192 for T = 150) and read back without padding: the output is right, lse of every head but the first holds shifted entries and padding (-inf).",
    "dense", "float32", True, persistent_kernel, dense(5, 1, 150, 150, 40, opt={"causal": True}), BM=64, BN=64)
add("packed_row_division",
    "Query heads of a group of 5 are packed into the rows of a 64-row tile; the token of a row is computed as m0//5 + r//5 instead of (m0+r)//5, so in tiles whose first row is no multiple of 5 "
    "some heads' rows stand one position too early: with causal and window left 12 they miss their own (newest) key and see one that is too old. The first tile is right.",
    "dense", "float32", True, packgqa_kernel, dense(10, 2, 90, 90, 64, opt={"causal": True, "window": (12, None)}), BM=64, BN=64)
add("smoothed_lse",
    "The mean key is subtracted before the scores (exact for the output), but the term scale * q . mean(k) is not added back to lse: outputs are right, lse of every row is off.",
    "dense", "float16", True, smooth_kernel, dense(4, 2, 95, 120, 64, kmean=0.5), BM=64, BN=64)
add("second_pass_state",
    "Values of 104 columns are handled in passes of 64 columns; the second pass keeps the running maximum and the row sum of the first, so the denominator is counted twice and columns 64..103 are half of what they should be.",
    "dense", "float32", True, passes_kernel, dense(4, 2, 88, 133, 56, E=104, opt={"causal": True}), BM=64, BN=48)

# ---- dense decode
add("tree_odd_partial",
    "The partial results of the 7 splits are merged by a pairwise tree that drops the unpaired one when their number is odd: the last split (keys 306 and above) and, a level higher, the pair of splits 4 and 5 (keys 204..305) are lost, "
    "every row attends only to keys 0..203.",
    "dense", "float32", True, split_kernel, dense(8, 2, 1, 355, 64, B=2), splits=7, tree=True)
add("combine_by_maximum",
    "The reduction weighs the (already normalised) partial outputs with exp(m_i - max m), the splits' maxima, instead of exp(lse_i - max lse): splits with fewer visible keys or flatter scores are weighted wrongly in all rows.",
    "dense", "bfloat16", True, split_kernel, dense(16, 4, 2, 333, 64, B=2, opt={"causal": True}), splits=5)
add("empty_split_lse",
    "A split that lies wholly past a sequence's kv_length writes lse 0 instead of -inf: each such split joins the denominator with weight 1 and output 0 - sequences 1 (length 9) and 2 (length 120) are shrunk, the full one is right.",
    "dense", "float32", False, split_kernel,
    dense(8, 8, 1, 300, 32, B=3, opt={"kv_lengths": np.array([300, 9, 120], np.int32)}), splits=6)
add("row_to_token",
    "Rows are packed as token*group + head (3 tokens, group 4), but the causal position of a row is taken from row % T instead of row // group: of the 12 packed rows those where the two differ stand at the wrong "
    "token and see draft keys of the future or miss the newest.",
    "dense", "bfloat16", False, split_kernel, dense(8, 2, 3, 45, 64, B=2, qs=2.0, opt={"causal": True}), splits=2)
add("alibi_split_index",
    "The ALiBi distance counts keys from the start of their split instead of from key 0: keys of splits 1..3 get a penalty that is slope * split start too large, so later splits (the nearest keys) are suppressed.",
    "dense", "float32", True, split_kernel,
    dense(8, 2, 2, 290, 64, opt=lambda r: {"causal": True, "alibi_slopes": slopes(8)}), splits=4)

# ---- packed
add("store_past_sequence",
    "Row tiles are not cut at the end of their sequence: a sequence's last 32-row tile also computes and stores the first rows of the next sequence(s) with its own keys, and since tiles run last to first "
    "this overwrites the right rows: rows 0..13 of sequence 1 and 0..26 of sequence 2 (lengths 50, 37, 64, 21).",
    "packed", "float32", True, packed_kernel, packed(4, 2, 64, [50, 37, 64, 21], [60, 37, 80, 35], {"causal": True}), backwards=True)
add("one_sequence_a_step",
    "The persistent scheduler moves on by at most one sequence per tile ('if' instead of 'while'): after the empty sequence 1 the first tile (rows 0..31) of sequence 2 is looked up in the empty one and skipped, likewise after sequence 4: "
    "its rows stay 0.",
    "packed", "bfloat16", False, packed_kernel, packed(6, 2, 64, [40, 0, 70, 33, 0, 50], [40, 5, 70, 60, 8, 50], {"causal": True}))
add("offset_of_maxima",
    "The causal offset is max(kv length) - max(q length) over the batch instead of that of each sequence: 30 here; sequence 0 (own difference 0) sees up to 30 future keys, sequence 2 (35) misses its 5 newest, sequence 1 is right.",
    "packed", "float16", True, packed_kernel, packed(4, 4, 48, [45, 60, 20], [45, 90, 55], {"causal": True}))
add("empty_lse_plus",
    "Rows that see no key (sequence 1 has no keys; the first 13 rows of sequence 2 are longer than its keys) store lse = +inf instead of -inf; their output is rightly 0.",
    "packed", "float32", True, packed_kernel, packed(4, 2, 32, [30, 25, 40, 12], [44, 0, 27, 12], {"causal": True}))
add("alibi_global_index",
    "ALiBi distances are taken between the rows' and keys' places in the packed arrays (cu_q + i and cu_kv + j) instead of positions inside the sequence; they are off by q_offset plus the difference of the starts in every sequence whose "
    "lengths or starts differ.",
    "packed", "float32", False, packed_kernel,
    packed(8, 2, 64, [31, 40, 22], [31, 75, 60], lambda r: {"causal": True, "alibi_slopes": slopes(8)}))
add("aligned_front",
    "Key loads start at the multiple of 16 at or before a sequence's first key and the front is not masked: every sequence whose cu_kv is no multiple of 16 also attends to up to 15 last keys of the previous sequence.",
    "packed", "bfloat16", True, packed_kernel, packed(4, 2, 64, [30, 25, 44], [43, 26, 70], None), aligned=True)
add("accumulator_kept",
    "The accumulator is cleared only when the sequence changes, while maximum and row sum are cleared for each tile: from the second row tile (row 32) of a sequence on, the previous tile's unnormalised output is added to the rows.",
    "packed", "float32", True, packed_kernel, packed(4, 1, 64, [75, 20, 66], [75, 40, 90], {"causal": True, "window": (30, None)}))
add("kv_head_stride",
    "The stride between key/value heads is taken as total_q rows instead of total_kv: head 0 is right, key head 1 starts 97 rows too early and reads the end of head 0, heads 2 and 3 are further off.",
    "packed", "float32", False, packed_kernel, packed(8, 4, 40, [33, 20, 55], [70, 45, 90], None))
add("max_length_of_all_but_last",
    "The grid is sized by the longest query of all sequences but the last (loop bound one too small): the last sequence has 90 rows, tiles beyond the others' maximum of 41 rows are not launched and its rows 64..89 stay 0.",
    "packed", "bfloat16", True, packed_kernel, packed(4, 4, 64, [41, 17, 28, 90], [41, 30, 28, 110], {"causal": True}))

# ---- paged
add("last_page_remainder",
    "The number of keys in a sequence's last page is taken as length % page_size, which is 0 when the page is full: sequences 0 and 3 (lengths 64 and 160, page 16) lose their 16 newest keys.",
    "paged", "float32", True, paged_kernel, paged(8, 2, 64, 1, 16, [64, 75, 130, 160]))
add("table_stride",
    "The block table is read with a row stride of the pages in use (ceil(max length / 16)) instead of its allocated width (4 more): every sequence but the first walks entries of its own and the previous rows, shifted.",
    "paged", "bfloat16", False, paged_kernel, paged(8, 8, 64, 1, 16, [100, 55, 140], spare=4))
add("pages_adjacent",
    "Key tiles of 64 keys fetch one table entry and take the next pages of the pool as following it: of every 4 pages of 16 keys only the first is the sequence's own, unless pages happen to be adjacent.",
    "paged", "float32", False, paged_kernel, paged(6, 3, 48, 1, 16, [14, 90, 201]))
add("value_page_prefetched",
    "The page ids of the next tile are loaded before the value product, overwriting the current ones: keys come from the right pages, values of every tile but the last from the pages of the following tile.",
    "paged", "bfloat16", True, paged_kernel, paged(8, 2, 64, 2, 16, [100, 60, 190], opt={"causal": True}), keys_a_tile=32)
add("partitions_floor",
    "The reduction over partitions of 96 keys counts length // 96 of them (at least one) instead of rounding up: the keys after the last full partition are lost in sequences of lengths 130 and 250; 96 and 40 are right.",
    "paged", "float32", True, paged_kernel, paged(12, 4, 64, 1, 8, [130, 96, 250, 40]), part=96)
add("walk_from_zero",
    "With window left = 50 the page walk starts at the first page of the window, but the block table is still indexed from entry 0: sequences 0 and 2 (170 and 99 keys) read their oldest pages "
    "under the positions of the newest; sequence 1 (40 keys) is right.",
    "paged", "float16", True, paged_kernel, paged(8, 2, 64, 1, 16, [170, 40, 99], opt={"causal": True, "window": (50, None)}))
add("sink_padded_group",
    "The sink of a row is indexed with the group padded to a power of two (8 instead of 5 for 15 heads over 3): heads 0..4 are right, heads 5..9 use the sinks of heads 8..12 and heads 10..13 that of head 14 (clamped).",
    "paged", "float32", True, paged_kernel,
    paged(15, 3, 64, 1, 16, [70, 33], opt=lambda r: {"sinks": (2.0 * r.standard_normal(15) + 2).astype(np.float32)}))
add("prefix_of_longest",
    "The shared prefix of pages is cut at the longest sequence instead of the shortest: sequence 1 (37 keys) has stale table entries equal to the others' and attends to all 96 keys of the common pages, past its own length.",
    "paged", "float32", False, cascade_kernel, paged(8, 2, 64, 1, 16, [150, 37, 120], prefix=6))
add("prefix_lse_base_two",
    "The shared-prefix pass hands its lse to the merge in base 2 while the suffix pass and the merge use natural logarithms: the 64 prefix keys weigh too much in every sequence (and lse is too large).",
    "paged", "bfloat16", True, cascade_kernel, paged(8, 4, 64, 2, 16, [200, 130, 171], prefix=4))

# ---- latent
add("rope_tile_fixed",
    "The pointer to the keys' rope parts is not advanced with the tiles of 64 keys: from key 64 on, key j takes the rope part of key j % 64 (its latent part is right).",
    "latent", "float32", True, latent_kernel, latent(8, 1, 210, 32, 32, 96, 40, B=2, rs=1.3), BN=64)
add("value_view_start",
    "Cache rows are [rope (16) | latent (64)]; the value view starts at column 0 instead of 16, so the values are the 16 rope components followed by the first 48 latent ones. Scores are right, all outputs wrong.",
    "latent", "bfloat16", True, latent_kernel, latent(12, 2, 100, 32, 16, 64, 32, opt={"causal": True}), BN=64)
add("second_half_old_factor",
    "Two warpgroups keep half of the latent accumulator each; the second (latent columns 40..79) rescales with the factor of the tile before, because it reads it from shared memory before it is replaced. All output columns mix both halves.",
    "latent", "float32", False, latent_kernel, latent(8, 1, 180, 32, 16, 80, 48, B=2, wq=2.0), BN=32)
add("head_tile_of_16",
    "Heads are handled in tiles of 16 and the value projection w_uv is indexed with the head inside the tile: of 22 heads, heads 16..21 are projected with the matrices of heads 0..5.",
    "latent", "bfloat16", False, latent_kernel, latent(22, 1, 130, 32, 16, 64, 32, B=2, opt={"kv_lengths": np.array([130, 71], np.int32)}), BN=64)
add("rope_layout",
    "Rope components of the query are reordered from interleaved pairs to halves, those of the cached keys are not: all but the first and last of the 24 rope components meet the wrong partner in the dot product.",
    "latent", "float32", True, latent_kernel, latent(8, 3, 95, 24, 24, 64, 40, rs=1.4, opt={"causal": True}), BN=64)
add("kv_b_value_rows",
    "The joined projection (N key rows, then E value rows, N = 48, E = 32) is split as if both parts had E rows: values take rows 32..63 instead of 48..79: output columns 0..15 are averages of key components, columns 16..31 hold what belongs in columns 0..15.",
    "latent", "float16", False, latent_prefill_kernel, latent(6, 40, 90, 48, 16, 64, 32, opt={"causal": True}))
add("context_chunk_rounded",
    "Prefill over 115 cached keys in chunks of 48: the last context chunk is not cut at the context's end and takes in the first 29 new tokens without a mask; all rows count these keys (again), early rows also future ones.",
    "latent", "float32", True, latent_prefill_kernel, latent(6, 45, 160, 32, 16, 64, 32, opt={"causal": True}))


# ================================================================ verification
def main():
    import time
    from collections import Counter
    from refattn.oracle import check
    fn = {"dense": {}, "packed": {"function": "packed_attention"}, "paged": {"function": "paged_attention"},
          "latent": {"function": "latent_attention"}}
    good = 0
    for name, sentence, tags, build in FAULTS:
        res, ms = [], 0
        for wrong in (False, True):
            kern, arrays, options = build(wrong)
            r = kern(*arrays, **options)
            t0 = time.perf_counter()
            kern(*arrays, **options)
            ms = max(ms, 1e3 * (time.perf_counter() - t0))
            kw = dict(options, **fn[tags["form"]])
            if tags["lse"]:
                o, ls = r
                kw["lse"] = ls
            else:
                o = r
            res.append(bool(check(o, *arrays, **kw).passed))
            assert o.dtype == DT[tags["dtype"]]
        ok = res == [True, False]
        good += ok
        print(f"{name:28s} {tags['form']:7s}{tags['dtype']:9s} right {res[0]!s:6s} wrong {res[1]!s:6s} {ms:6.1f} ms {'' if ok else '<<<<'}")
    print(Counter(t["form"] for _, _, t, _ in FAULTS), Counter(t["dtype"] for _, _, t, _ in FAULTS),
          Counter(t["lse"] for _, _, t, _ in FAULTS))
    print(f"{good} of {len(FAULTS)} pass the verification")


if __name__ == "__main__":
    main()
