"""Wrong attention kernels of somebody who ports kernels to new hardware (Metal, ROCm, NPUs, SIMD CPUs).

FAULTS = [(name, sentence, tags, build), ...]; build(wrong) -> (kernel, arrays, options).
"""
import math
import zlib
from types import SimpleNamespace

import ml_dtypes
import numpy as np

F32 = np.float32
LOG2E = F32(1.4426950408889634)
LN2 = F32(0.6931471805599453)
DT = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
FAULTS = []
NEG = F32(-np.inf)


# ------------------------------------------------------------------ helpers
def f32(x):
    return np.asarray(x).astype(np.float32)


def rnd(p, dt):
    """Round weights to the input type, as the second MMA takes them."""
    return p if dt == np.float32 else p.astype(dt).astype(np.float32)


def pv(p, v, s, keep=None):
    """Weights times values; keys of score -inf (hidden or masked) are selected away, whatever they hold."""
    if np.isfinite(v).all():
        return p @ v
    see = s != NEG
    if keep is not None:
        see = see & keep
    see = np.broadcast_to(see, p.shape)
    p = np.where(see, p, F32(0))
    o = p @ np.where(np.isfinite(v), v, F32(0))
    see = see.astype(np.float32)
    nan = see @ np.isnan(v).astype(np.float32) > 0
    up = see @ (v == np.inf).astype(np.float32) > 0
    dn = see @ (v == -np.inf).astype(np.float32) > 0
    inf = np.where(up, F32(np.inf), F32(0)) - np.where(dn, F32(np.inf), F32(0))  # both signs: NaN
    return np.where(nan, F32(np.nan), o + inf)


def nn(m):
    """Maximum that may be subtracted: -inf becomes 0."""
    return np.where(m == NEG, F32(0), m)


def prelude(q, k, v, o):
    lead = q.shape[:-3]
    H, T, D = q.shape[-3:]
    K, S = k.shape[-3:-1]
    E = v.shape[-1]
    B = int(np.prod(lead, dtype=np.int64)) if lead else 1
    P = SimpleNamespace(lead=lead, B=B, H=H, T=T, D=D, K=K, S=S, E=E, G=H // K, dt=q.dtype)
    P.q = q.reshape(B, H, T, D)
    P.k = k.reshape(B, K, S, D)
    P.v = v.reshape(B, K, S, E)
    P.hmap = np.arange(H) // P.G
    options(P, o)
    return P


def options(P, o):
    B, lead, H, T, S = P.B, P.lead, P.H, P.T, P.S

    def per_batch(x):
        return np.broadcast_to(np.asarray(x, dtype=np.int64), lead).reshape(B)

    def full(x):
        return None if x is None else np.broadcast_to(x, lead + (H, T, S)).reshape(B, H, T, S)

    P.scale = F32(o["scale"] if o.get("scale") is not None else 1.0 / math.sqrt(P.D))
    P.len = per_batch(S if o.get("kv_lengths") is None else o["kv_lengths"])
    P.len = np.minimum(P.len, S)
    P.off = per_batch(o["q_offset"]) if o.get("q_offset") is not None else P.len - T
    P.causal = bool(o.get("causal", False))
    win = o.get("window")
    P.left, P.right = (None, None) if win is None else win
    P.chunk = o.get("chunk")
    P.cap = o.get("softcap")
    P.bias = full(None if o.get("bias") is None else f32(o["bias"]))
    P.mask = full(o.get("mask"))
    P.keep = full(o.get("dropout_mask"))
    P.rate = float(o.get("dropout_rate") or 0.0)
    P.slopes = None if o.get("alibi_slopes") is None else f32(o["alibi_slopes"]).reshape(-1)
    P.sinks = None if o.get("sinks") is None else f32(o["sinks"]).reshape(-1)


def visible(P, pos, kpos, chunk_of=None):
    """pos (B, R), kpos (n,) -> (B, 1, R, n)."""
    kp = kpos[None, None, :]
    d = kp - pos[:, :, None]
    ok = np.broadcast_to(kp < P.len[:, None, None], d.shape).copy()
    if P.causal:
        ok &= d <= 0
    if P.left is not None:
        ok &= d >= -P.left
    if P.right is not None:
        ok &= d <= P.right
    if P.chunk is not None:
        f = chunk_of or (lambda x: np.floor_divide(x, P.chunk))
        ok &= (f(kp) == f(pos[:, :, None])) & (pos[:, :, None] >= 0)
    return ok[:, None]


def finish(P, out, lse, lse_out):
    out = out.astype(P.dt).reshape(P.lead + (P.H, P.T, P.E))
    if not lse_out:
        return out
    return out, lse.astype(np.float32).reshape(P.lead + (P.H, P.T))


def quiet(f):
    def kernel(*a, **o):
        with np.errstate(all="ignore"):
            return f(*a, **o)

    return kernel


def divide(acc, l):
    return np.where(l > 0, acc / np.where(l > 0, l, F32(1)), np.where(np.isnan(l), l, F32(0)))


# ------------------------------------------------------------------ 1. tiled online softmax, exp2 domain
def flash(w, lse_out, BM=64, BN=64):
    @quiet
    def kernel(query, key, value, **o):
        P = prelude(query, key, value, o)
        B, H, T, S, E = P.B, P.H, P.T, P.S, P.E
        out = np.zeros((B, H, T, E), np.float32)
        Tr = -(-T // BM) * BM
        lsebuf = np.full((B, H, Tr), NEG, np.float32)
        k = f32(P.k)[:, P.hmap]
        v = f32(P.v)[:, P.hmap]
        chunk_of = None
        if w == "chunk_pow2":
            chunk_of = lambda x: np.bitwise_and(x, ~(P.chunk - 1))
        klen_bh = None
        if w == "kvlen_bh_mod":
            bh = np.arange(B * H).reshape(B, H)
            klen_bh = P.len[bh % B]
        for r0 in range(0, T, BM):
            n, st = min(BM, T - r0), r0
            if n < BM <= T:  # the last row tile is moved back so that it is full
                st, n = T - BM, BM
            pos0 = r0 if w == "q_tail_overlap" else st
            pos = P.off[:, None] + pos0 + np.arange(n)
            q = f32(P.q[:, :, st : st + n])
            lo, hi = 0, int(P.len.max()) if B else 0
            if P.causal:
                hi = min(hi, int(pos.max()) + 1)
            if P.right is not None:
                hi = min(hi, int((pos[:, 0] if w == "window_hi_first_row" else pos).max()) + P.right + 1)
            if P.left is not None:
                lo = max(0, int(pos.min()) - P.left) // BN * BN
            if hi > 0 and w == "window_hi_first_row" and P.right is not None:
                hi = min(-(-hi // BN) * BN, S)
            m = np.full((B, H, n, 1), F32(0) if w == "m_init_zero" else NEG, np.float32)
            l = np.zeros((B, H, n, 1), np.float32)
            acc = np.zeros((B, H, n, E), np.float32)
            if P.sinks is not None:
                m = np.broadcast_to(P.sinks[None, :, None, None] * LOG2E, m.shape).astype(np.float32)
                l = l + F32(1)
            tiles = list(range(lo, hi, BN))
            n_mask = -(-BM // BN)
            for it, j0 in enumerate(tiles):
                j1 = min(j0 + BN, S)
                kpos = np.arange(j0, j1)
                s = (q @ k[:, :, j0:j1].swapaxes(-1, -2)) * P.scale
                if P.cap is not None:
                    if w == "cap_log2":
                        s = np.tanh(s * LOG2E / F32(P.cap)) * F32(P.cap)
                    else:
                        s = np.tanh(s / F32(P.cap)) * F32(P.cap) * LOG2E
                else:
                    s = s * LOG2E
                vis = visible(P, pos, kpos, chunk_of)
                if klen_bh is not None:
                    vis = np.broadcast_to(kpos < S, vis.shape)
                    if P.causal:
                        vis = vis & (kpos[None, None, None, :] <= pos[:, None, :, None])
                    vis = vis & (kpos[None, None, None, :] < klen_bh[:, :, None, None])
                if w == "diag_mask_count" and P.causal and it < len(tiles) - n_mask:
                    vis = np.broadcast_to(kpos[None, None, None, :] < P.len[:, None, None, None], vis.shape)
                if P.slopes is not None:
                    dist = np.abs(pos[:, None, :, None] - kpos).astype(np.float32)
                    unit = LOG2E
                    if w == "alibi_log2_masked" and not vis.all():
                        unit = F32(1)
                    s = s - P.slopes[None, :, None, None] * unit * dist
                if P.bias is not None:
                    b0 = j0 - lo if w == "bias_ptr_skip" else j0
                    s = s + P.bias[:, :, st : st + n, b0 : b0 + (j1 - j0)] * LOG2E
                if P.mask is not None:
                    vis = vis & P.mask[:, :, st : st + n, j0:j1]
                s = np.where(vis, s, NEG)
                mn = np.maximum(m, s.max(-1, keepdims=True))
                p = np.exp2(s - nn(mn))
                a = np.exp2(m - nn(mn))
                ps = p.sum(-1, keepdims=True)
                if w == "tail_l_alpha" and j1 - j0 < BN:
                    l = l + ps
                else:
                    l = l * a + ps
                pr = p
                acc = acc * a + pv(rnd(pr, P.dt), v[:, :, j0:j1], s)
                m = mn
            out[:, :, st : st + n] = divide(acc, l)
            lsebuf[:, :, st : st + n] = np.where(l > 0, m * LN2 + np.log(np.where(l > 0, l, F32(1))),
                                                 np.where(np.isnan(l), l, NEG))[..., 0]
        if w == "lse_rounded_stride":
            lse = lsebuf.reshape(-1)[: B * H * T].reshape(B, H, T)
        else:
            lse = lsebuf[:, :, :T]
        return finish(P, out, lse, lse_out)

    return kernel


# ------------------------------------------------------------------ 2. eager: whole score matrix, softmax, product
def eager(w, lse_out):
    @quiet
    def kernel(query, key, value, **o):
        P = prelude(query, key, value, o)
        B, H, T, S, D = P.B, P.H, P.T, P.S, P.D
        k = f32(P.k)[:, P.hmap]
        v = f32(P.v)[:, P.hmap]
        scale = P.scale
        if w == "scale_padded_dim" and o.get("scale") is None:
            scale = F32(1.0 / math.sqrt(-(-D // 32) * 32))
        pos = P.off[:, None] + np.arange(T)
        kpos = np.arange(S)
        vis = visible(P, pos, kpos)
        if P.mask is not None:
            mk = P.mask
            if w == "mask_bits_tail" and S % 32:
                t = S // 32 * 32
                mk = np.concatenate([mk[..., :t], mk[..., t:][..., ::-1]], -1)
            vis = vis & mk
        s = (f32(P.q) @ k.swapaxes(-1, -2)) * scale
        if w == "mask_before_softcap":
            s = np.where(vis, s, NEG)
        if P.cap is not None:
            s = np.tanh(s / F32(P.cap)) * F32(P.cap)
        if P.slopes is not None:
            if w == "pos_bf16":
                qp = pos.astype(ml_dtypes.bfloat16).astype(np.float32)
                kp = kpos.astype(ml_dtypes.bfloat16).astype(np.float32)
            else:
                qp, kp = pos.astype(np.float32), kpos.astype(np.float32)
            s = s - P.slopes[None, :, None, None] * np.abs(qp[:, None, :, None] - kp)
        if P.bias is not None:
            if w == "bias_row_pad":
                ld = -(-S // 16) * 16
                idx = np.arange(T)[:, None] * ld + kpos[None, :]
                flat = np.ascontiguousarray(P.bias).reshape(B, H, T * S)
                s = s + flat[:, :, idx % (T * S)]
            else:
                s = s + P.bias
        see = None
        if w != "mask_before_softcap":
            s = np.where(vis, s, NEG)
        m = s.max(-1, keepdims=True, initial=NEG)
        if P.sinks is not None:
            m = np.maximum(m, P.sinks[None, :, None, None])
        p = np.exp(s - nn(m))
        l = p.sum(-1, keepdims=True)
        if P.sinks is not None:
            l = l + np.exp(P.sinks[None, :, None, None] - nn(m))
        den = l
        if P.keep is not None:
            kp_ = P.keep.astype(bool)
            if w == "drop_word_tail":
                kp_ = kp_ & (kpos < S // 4 * 4)
            see = kp_
            den = l * F32(1 - P.rate)
            if w == "lse_keep_rate":
                l = den
        p = divide(p, den)
        if see is not None:
            p = np.where(see, p, F32(0))
        out = np.where(np.isnan(l), F32(np.nan), pv(rnd(p, P.dt), v, s, see))
        lse = np.where(l > 0, m + np.log(np.where(l > 0, l, F32(1))), np.where(np.isnan(l), l, NEG))[..., 0]
        return finish(P, out, lse, lse_out)

    return kernel


# ------------------------------------------------------------------ 3. split-KV with a reduction
def scores(P, q, k, pos, kpos, heads=slice(None), batch=slice(None)):
    """(B,H,R,n) scores in natural units and who sees what; k already has H heads."""
    s = (q @ k.swapaxes(-1, -2)) * P.scale
    if P.cap is not None:
        s = np.tanh(s / F32(P.cap)) * F32(P.cap)
    if P.slopes is not None:
        s = s - P.slopes[heads][None, :, None, None] * np.abs(pos[:, None, :, None] - kpos).astype(np.float32)
    return s


def partial(s, vis, v, dt):
    """One split: normalised output and lse."""
    if s.shape[-1] == 0:
        sh = s.shape[:-1]
        return np.zeros(sh + (v.shape[-1],), np.float32), np.full(sh, NEG, np.float32)
    s = np.where(vis, s, NEG)
    m = s.max(-1, keepdims=True)
    p = np.exp(s - nn(m))
    l = p.sum(-1, keepdims=True)
    acc = pv(rnd(p, dt), v, s)
    lse = np.where(l > 0, m + np.log(np.where(l > 0, l, F32(1))), np.where(np.isnan(l), l, NEG))[..., 0]
    return divide(acc, l), lse


def merge2(a, b):
    (oa, la), (ob, lb) = a, b
    m = nn(np.maximum(la, lb))
    wa, wb = np.exp(la - m), np.exp(lb - m)
    t = wa + wb
    d = np.where(t > 0, t, F32(1))[..., None]
    za = np.where(wa[..., None] == 0, F32(0), oa * wa[..., None])
    zb = np.where(wb[..., None] == 0, F32(0), ob * wb[..., None])
    return (za + zb) / d, np.where(t > 0, m + np.log(np.where(t > 0, t, F32(1))), np.where(np.isnan(t), t, NEG))


def merge_all(parts, sink=None):
    lses = np.stack([x[1] for x in parts])
    m = lses.max(0)
    if sink is not None:
        m = np.maximum(m, sink)
    ms = nn(m)
    ws = np.exp(lses - ms)
    t = ws.sum(0)
    if sink is not None:
        t = t + np.exp(sink - ms)
    o = 0
    for wgt, (ob, _) in zip(ws, parts):
        o = o + np.where(wgt[..., None] == 0, F32(0), ob * wgt[..., None])
    o = o / np.where(t > 0, t, F32(1))[..., None]
    return o, np.where(t > 0, ms + np.log(np.where(t > 0, t, F32(1))), np.where(np.isnan(t), t, NEG))


def splitkv(w, lse_out, n_splits=8, mode="flat", BN=32, workers=13):
    @quiet
    def kernel(query, key, value, **o):
        P = prelude(query, key, value, o)
        B, H, T, S, E = P.B, P.H, P.T, P.S, P.E
        k = f32(P.k)[:, P.hmap]
        v = f32(P.v)[:, P.hmap]
        q = f32(P.q)
        pos = P.off[:, None] + np.arange(T)

        def part(j0, j1):
            kpos = np.arange(j0, max(j0, j1))
            return partial(scores(P, q, k[:, :, j0 : max(j0, j1)], pos, kpos), visible(P, pos, kpos), v[:, :, j0 : max(j0, j1)], P.dt)

        if mode == "streamk":
            nt = -(-S // BN)
            total = B * H * nt
            per = -(-total // workers)
            out = np.zeros((B, H, T, E), np.float32)
            lse = np.full((B, H, T), NEG, np.float32)
            for item in range(B * H):
                b, h = divmod(item, H)
                u0, u1 = item * nt, (item + 1) * nt
                cuts = [u0] + [c for c in range((u0 // per + 1) * per, u1, per)] + [u1]
                parts = []
                for c0, c1 in zip(cuts[:-1], cuts[1:]):
                    j0, j1 = (c0 - u0) * BN, min((c1 - u0) * BN, S)
                    kpos = np.arange(j0, j1)
                    vis = visible(SimpleNamespace(**{**vars(P), "len": P.len[b : b + 1]}), pos[b : b + 1], kpos)
                    s = scores(P, q[b : b + 1, h : h + 1], k[b : b + 1, h : h + 1, j0:j1], pos[b : b + 1], kpos, slice(h, h + 1))
                    parts.append(partial(s, vis, v[b : b + 1, h : h + 1, j0:j1], P.dt))
                if w == "streamk_middle" and len(parts) > 2:
                    parts = [parts[0], parts[-1]]
                ob, lb = merge_all(parts)
                out[b, h], lse[b, h] = ob[0, 0], lb[0, 0]
            return finish(P, out, lse, lse_out)

        if mode == "pingpong":
            st = []
            for g in range(2):
                m = np.full((B, H, T, 1), NEG, np.float32)
                l = np.zeros((B, H, T, 1), np.float32)
                acc = np.zeros((B, H, T, E), np.float32)
                for j0 in range(g * BN, S, 2 * BN):
                    j1 = min(j0 + BN, S)
                    kpos = np.arange(j0, j1)
                    vis = visible(P, pos, kpos)
                    s = np.where(vis, scores(P, q, k[:, :, j0:j1], pos, kpos), NEG)
                    mn = np.maximum(m, s.max(-1, keepdims=True))
                    p = np.exp(s - nn(mn))
                    a = np.exp(m - nn(mn))
                    l = l * a + p.sum(-1, keepdims=True)
                    acc = acc * a + pv(rnd(p, P.dt), v[:, :, j0:j1], s)
                    m = mn
                st.append((m, l, acc))
            (ma, la, aa), (mb, lb, ab) = st
            mx = np.maximum(ma, mb)
            ca, cb = np.exp(ma - nn(mx)), np.exp(mb - nn(mx))
            if w == "pingpong_no_rescale":
                ca, cb = np.ones_like(ca), np.ones_like(cb)
            l = la * ca + lb * cb
            acc = aa * ca + ab * cb
            lse = np.where(l > 0, mx + np.log(np.where(l > 0, l, F32(1))), np.where(np.isnan(l), l, NEG))[..., 0]
            return finish(P, divide(acc, l), lse, lse_out)

        per = max(1, -(-S // n_splits))
        parts = []
        for i in range(n_splits):
            j0, j1 = min(i * per, S), min((i + 1) * per, S)
            ob, lb = part(j0, j1)
            if j0 >= j1 and w == "empty_split_lse0":
                lb = np.zeros_like(lb)
            parts.append((ob, lb))
        if mode == "tree":
            while len(parts) > 1:
                nxt = [merge2(parts[i], parts[i + 1]) for i in range(0, len(parts) - 1, 2)]
                if len(parts) % 2 and w != "tree_odd":
                    nxt.append(parts[-1])
                parts = nxt
            out, lse = parts[0]
        else:
            out, lse = merge_all(parts)
        return finish(P, out, lse, lse_out)

    return kernel


# ------------------------------------------------------------------ 4. software pipeline with ring buffers, persistent workers
def pipelined(w, lse_out, BN=48, stages=3, workers=4, persistent=False):
    @quiet
    def kernel(query, key, value, **o):
        P = prelude(query, key, value, o)
        B, H, T, S, D, E = P.B, P.H, P.T, P.S, P.D, P.E
        q = f32(P.q).reshape(B * H, T, D)
        kf = np.ascontiguousarray(f32(P.k)).reshape(B, -1)
        pos_all = P.off[:, None] + np.arange(T)
        if w == "addr16":
            base = ((np.arange(P.K)[:, None] * S + np.arange(S)) * D) & 0xFFFF
            kk = kf[:, base[..., None] + np.arange(D)]
        else:
            kk = f32(P.k)
        k = kk[:, P.hmap].reshape(B * H, S, D)
        v = f32(P.v)[:, P.hmap].reshape(B * H, S, E)
        out = np.zeros((B * H, T, E), np.float32)
        lse = np.full((B * H, T), NEG, np.float32)
        nt = -(-S // BN)
        step = workers if persistent else B * H
        prev_l = None
        for i0 in range(0, B * H, step):
            it = np.arange(i0, min(i0 + step, B * H))
            nh = len(it)
            posw = pos_all[it // H]
            lenw = P.len[it // H]
            vs = 2 if w == "v_ring_two" else stages
            kb = np.zeros((stages, nh, BN, D), np.float32)
            vb = np.zeros((vs, nh, BN, E), np.float32)

            def issue(t):
                if t >= nt:
                    return
                j0, j1 = t * BN, min(t * BN + BN, S)
                kb[t % stages, :, : j1 - j0] = k[it, j0:j1]
                jv = j0 + (j1 - j0) // 2 if (w == "late_wait" and t == nt - 1) else j1
                vb[t % vs, :, : jv - j0] = v[it, j0:jv]

            for t in range(stages - 1):
                issue(t)
            m = np.full((nh, T, 1), NEG, np.float32)
            l = np.zeros((nh, T, 1), np.float32)
            if w == "carry_l" and prev_l is not None:
                l = prev_l[:nh].copy()
            acc = np.zeros((nh, T, E), np.float32)
            for t in range(nt):
                issue(t + stages - 1)
                kpos = t * BN + np.arange(BN)
                s = (q[it] @ kb[t % stages].swapaxes(-1, -2)) * P.scale
                if P.cap is not None:
                    s = np.tanh(s / F32(P.cap)) * F32(P.cap)
                vis = visible(SimpleNamespace(**{**vars(P), "len": lenw}), posw, kpos)[:, 0] & (kpos < S)
                s = np.where(vis, s, NEG)
                mn = np.maximum(m, s.max(-1, keepdims=True))
                p = np.exp(s - nn(mn))
                pr = rnd(p, P.dt)
                vt = vb[t % vs]
                if t == 0:  # peeled: nothing to rescale yet
                    l = l + p.sum(-1, keepdims=True)
                    acc = pv(pr, vt, s)
                else:
                    a = np.exp(m - nn(mn))
                    l = l * a + p.sum(-1, keepdims=True)
                    acc = acc * a + pv(pr, vt, s)
                m = mn
            prev_l = l
            out[it] = divide(acc, l)
            lse[it] = np.where(l > 0, nn(m) + np.log(np.where(l > 0, l, F32(1))), np.where(np.isnan(l), l, NEG))[..., 0]
        return finish(P, out.reshape(B, H, T, E), lse.reshape(B, H, T), lse_out)

    return kernel


# ------------------------------------------------------------------ 5. fragments: SIMD lanes, MMA steps, layouts
_cx = (np.cos(np.pi * (np.arange(64) + 0.5) / 64) + 1) / 2
_POLY = np.polyfit(_cx, 2.0 ** _cx, 5).astype(np.float32)


def poly_exp2(x, whole):
    x = np.clip(x, F32(-140), F32(120))
    i = whole(x)
    f = (x - i).astype(np.float32)
    y = np.full_like(f, _POLY[0])
    for c in _POLY[1:]:
        y = y * f + c
    return np.ldexp(y, np.where(np.isfinite(i), i, 0).astype(np.int32))


def fragment(w, lse_out, BN=64, lanes=16, use_poly=False, gpack=0, half_steps=False):
    @quiet
    def kernel(query, key, value, **o):
        P = prelude(query, key, value, o)
        B, H, T, S, D, E = P.B, P.H, P.T, P.S, P.D, P.E
        k = f32(P.k)
        v = f32(P.v)
        q = f32(P.q)
        G, K = P.G, P.K
        pos = P.off[:, None] + np.arange(T)
        if w == "swizzle":
            nc = 8
            while nc * 8 < D:
                nc *= 2
            kp = np.zeros((B, K, S, nc * 8), np.float32)
            kp[..., :D] = k
            r = np.arange(S)
            src = np.arange(nc)[None, :] ^ (r & 7)[:, None]  # smem[r][c ^ (r & 7)] = chunk c
            kp = kp.reshape(B, K, S, nc, 8)
            smem = np.take_along_axis(kp, src[None, None, :, :, None], 3)
            rd = np.arange(nc)[None, :] ^ (r & 3)[:, None]
            k = np.take_along_axis(smem, rd[None, None, :, :, None], 3).reshape(B, K, S, nc * 8)[..., :D]
        if w == "nz_transposed":
            ne, ns = -(-E // 16), -(-S // 16)
            if ne % 2:
                vp = np.zeros((B, K, ns * 16, ne * 16), np.float32)
                vp[:, :, :S, :E] = v
                last = vp[..., -16:].reshape(B, K, ns, 16, 16).swapaxes(-1, -2).reshape(B, K, ns * 16, 16)
                vp[..., -16:] = last
                v = vp[:, :, :S, :E]
        dmax = D // lanes * lanes if (w == "lanes_tail_d" and D >= lanes) else D

        def run(qh, hs, kh):
            """qh (B,h,T,D) with the key/value heads kh and head numbers hs."""
            kt, vt = k[:, kh], v[:, kh]
            nh = qh.shape[1]
            m = np.full((B, nh, T, 1), NEG, np.float32)
            l = np.zeros((B, nh, T, 1), np.float32)
            acc = np.zeros((B, nh, T, E), np.float32)
            for j0 in range(0, S, BN):
                j1 = min(j0 + BN, S)
                kpos = np.arange(j0, j1)
                kj = kt[:, :, j0:j1].swapaxes(-1, -2)
                if half_steps:
                    s = np.zeros((B, nh, T, j1 - j0), np.float16 if w == "half_acc" else np.float32)
                    for d0 in range(0, D, lanes):
                        s = (s + qh[..., d0 : d0 + lanes] @ kj[..., d0 : d0 + lanes, :]).astype(s.dtype)
                    s = s.astype(np.float32) * P.scale
                elif w == "bf16x2_cross":
                    b16 = lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32)
                    qa, ka = b16(qh), b16(kj)
                    s = (qa @ ka + qa @ (kj - ka)) * P.scale
                else:
                    s = (qh[..., :dmax] @ kj[..., :dmax, :]) * P.scale
                vis = visible(P, pos, kpos)
                s = np.where(vis, s * LOG2E, NEG)
                mn = np.maximum(m, s.max(-1, keepdims=True))
                if use_poly:
                    whole = np.trunc if w == "exp2_trunc" else np.floor
                    p = np.where(s == NEG, F32(0), poly_exp2(s - nn(mn), whole))
                    p = np.where(np.isnan(s - nn(mn)) & vis, F32(np.nan), p)
                else:
                    p = np.exp2(s - nn(mn))
                a = np.exp2(m - nn(mn))
                l = l * a + p.sum(-1, keepdims=True)
                acc = acc * a + pv(rnd(p, P.dt), vt[:, :, j0:j1], s)
                m = mn
            lse = np.where(l > 0, nn(m) * LN2 + np.log(np.where(l > 0, l, F32(1))), np.where(np.isnan(l), l, NEG))[..., 0]
            if w == "rcp_estimate":
                bits = (F32(1) / np.where(l > 0, l, F32(1))).astype(np.float32).view(np.uint32)
                r = ((bits + np.uint32(1 << 14)) & np.uint32(0xFFFF8000)).view(np.float32)
                return np.where(l > 0, acc * r, F32(0)), lse
            return divide(acc, l), lse

        if gpack:
            out = np.zeros((B, H, T, E), np.float32)
            lse = np.full((B, H, T), NEG, np.float32)
            for g in range(0, G, gpack):
                ld = max(0, min(g, G - gpack))
                hs = (np.arange(K)[:, None] * G + np.arange(ld, min(ld + gpack, G))).reshape(-1)
                ob, lb = run(q[:, hs], hs, np.arange(K).repeat(min(ld + gpack, G) - ld))
                ob, lb = ob.reshape(B, K, -1, T, E), lb.reshape(B, K, -1, T)
                sv = g if w == "gpack_overlap" else ld
                n = min(ob.shape[2], G - sv)
                out.reshape(B, K, G, T, E)[:, :, sv : sv + n] = ob[:, :, :n]
                lse.reshape(B, K, G, T)[:, :, sv : sv + n] = lb[:, :, :n]
        else:
            out, lse = run(q, np.arange(H), P.hmap)
        if w == "out_via_half":
            out = out.astype(np.float16).astype(np.float32)
        return finish(P, out, lse, lse_out)

    return kernel


# ------------------------------------------------------------------ 6. packed (varlen)
def packed_prelude(q, k, v, cu_q, cu_kv, o):
    H, TQ, D = q.shape
    K, TK, _ = k.shape
    P = SimpleNamespace(lead=(), B=1, H=H, T=TQ, D=D, K=K, S=TK, E=v.shape[-1], G=H // K, dt=q.dtype)
    P.cq = np.asarray(cu_q, dtype=np.int64)
    P.ck = np.asarray(cu_kv, dtype=np.int64)
    P.nb = len(P.cq) - 1
    P.hmap = np.arange(H) // P.G
    o2 = dict(o)
    off = o2.pop("q_offset", None)
    kl = o2.pop("kv_lengths", None)
    options(P, o2)
    P.lq = np.diff(P.cq)
    P.lk = np.diff(P.ck) if kl is None else np.minimum(np.broadcast_to(np.asarray(kl, np.int64), (P.nb,)), np.diff(P.ck))
    P.boff = P.lk - P.lq if off is None else np.broadcast_to(np.asarray(off, np.int64), (P.nb,))
    return P


def packed_flat(w, lse_out, BM=64, BN=64):
    """Row tiles over all packed rows; several sequences may share a tile (block-diagonal mask)."""

    @quiet
    def kernel(query, key, value, *, cu_q, cu_kv, **o):
        P = packed_prelude(query, key, value, cu_q, cu_kv, o)
        H, TQ, TK, E = P.H, P.T, P.S, P.E
        k = f32(key)[P.hmap]
        v = f32(value)[P.hmap]
        out = np.zeros((H, TQ, E), np.float32)
        lse = np.full((H, TQ), NEG, np.float32)
        rows_all = np.arange(TQ)
        seq_all = np.minimum(np.searchsorted(P.cq, rows_all, side="right") - 1, P.nb - 1)
        if w == "seq_search_first_row":
            seq_all = np.maximum(np.searchsorted(P.cq, rows_all, side="left") - 1, 0)
        kseq_all = np.minimum(np.searchsorted(P.ck, np.arange(TK), side="right") - 1, P.nb - 1)
        for r0 in range(0, TQ, BM):
            r1 = min(r0 + BM, TQ)
            seq = seq_all[r0:r1]
            if w == "row_tile_seq_first":
                seq = np.full_like(seq, seq[0])
            local = np.arange(r0, r1) - P.cq[seq]
            boff = P.ck[seq] - P.cq[seq] if w == "offset_global" else P.boff[seq]
            pos = boff + local
            b0, b1 = int(seq.min()), int(seq.max())
            q = f32(query[:, r0:r1])
            m = np.full((H, r1 - r0, 1), NEG, np.float32)
            l = np.zeros((H, r1 - r0, 1), np.float32)
            acc = np.zeros((H, r1 - r0, E), np.float32)
            for j0 in range(int(P.ck[b0]), int(P.ck[b1 + 1]), BN):
                j1 = min(j0 + BN, int(P.ck[b1 + 1]))
                ks = kseq_all[j0:j1]
                kl = np.arange(j0, j1) - P.ck[ks]
                if w == "id_parity":
                    same = (seq[:, None] & 1) == (ks[None, :] & 1)
                else:
                    same = seq[:, None] == ks[None, :]
                d = kl[None, :] - pos[:, None]
                vis = same & (kl < P.lk[ks])
                if P.causal:
                    vis &= d <= 0
                if P.left is not None:
                    vis &= d >= -P.left
                if P.right is not None:
                    vis &= d <= P.right
                vis = vis[None]
                s = (q @ k[:, j0:j1].swapaxes(-1, -2)) * P.scale
                if P.cap is not None:
                    s = np.tanh(s / F32(P.cap)) * F32(P.cap)
                if P.slopes is not None:
                    dist = np.abs(np.arange(r0, r1)[:, None] - np.arange(j0, j1)) if w == "alibi_packed_abs" else np.abs(d)
                    s = s - P.slopes[:, None, None] * dist.astype(np.float32)
                s = np.where(vis, s * LOG2E, NEG)
                mn = np.maximum(m, s.max(-1, keepdims=True))
                p = np.exp2(s - nn(mn))
                a = np.exp2(m - nn(mn))
                l = l * a + p.sum(-1, keepdims=True)
                acc = acc * a + pv(rnd(p, P.dt), v[:, j0:j1], s)
                m = mn
            seen = m > NEG
            if P.sinks is not None:
                sk = P.sinks[:, None, None] * LOG2E
                mn = np.maximum(m, sk)
                a = np.exp2(m - mn)
                l = l * a + np.exp2(sk - mn)
                acc = acc * a
                m = mn
            out[:, r0:r1] = divide(acc, l)
            ls = np.where(l > 0, nn(m) * LN2 + np.log(np.where(l > 0, l, F32(1))), np.where(np.isnan(l), l, NEG))
            if w == "sink_empty_lse":
                ls = np.where(seen | np.isnan(ls), ls, NEG)
            lse[:, r0:r1] = ls[..., 0]
        return finish(P, out, lse, lse_out)

    return kernel


def packed_grid(w, lse_out, BM=64, BN=32):
    """Grid of (sequence, row tile) with the longest query length; longest sequences first."""

    @quiet
    def kernel(query, key, value, *, cu_q, cu_kv, **o):
        P = packed_prelude(query, key, value, cu_q, cu_kv, o)
        H, TQ, TK, E, nb = P.H, P.T, P.S, P.E, P.nb
        k = f32(key)[P.hmap]
        v = f32(value)[P.hmap]
        out = np.zeros((H, TQ, E), np.float32)
        lse = np.full((H, TQ), NEG, np.float32)
        order = np.argsort(-P.lk, kind="stable")
        if nb == 0:
            return finish(P, out, lse, lse_out)
        grid = -(-int(P.lq[0] if w == "grid_first_seq" else P.lq.max()) // BM)
        for slot, b in enumerate(order):
            c0, nq, k0, nk = int(P.cq[b]), int(P.lq[b]), int(P.ck[b]), int(P.lk[b])
            boff = int(P.boff[slot] if w == "sched_q_offset" else P.boff[b])
            for y in range(grid):
                r0, r1 = y * BM, min(y * BM + BM, nq)
                if r0 >= r1:
                    break
                pos = boff + np.arange(r0, r1)
                q = f32(query[:, c0 + r0 : c0 + r1])
                n = r1 - r0
                m = np.full((H, n, 1), NEG, np.float32)
                l = np.zeros((H, n, 1), np.float32)
                acc = np.zeros((H, n, E), np.float32)
                hi = min(nk, int(pos.max()) + 1) if P.causal else nk
                for j0 in range(0, hi, BN):
                    g1 = min(k0 + j0 + BN, TK)
                    g0 = k0 + j0
                    kl = np.arange(g0, g1) - k0
                    d = kl[None, :] - pos[:, None]
                    vis = np.broadcast_to(kl < (TK if w == "key_tail_next" else nk), d.shape).copy()
                    if P.causal:
                        vis &= d <= 0
                    if P.left is not None:
                        vis &= d >= -P.left
                    if P.right is not None:
                        vis &= d <= P.right
                    vis = vis[None]
                    s = (q @ k[:, g0:g1].swapaxes(-1, -2)) * (P.scale * LOG2E)
                    s = np.where(vis, s, NEG)
                    mn = np.maximum(m, s.max(-1, keepdims=True))
                    p = np.exp2(s - nn(mn))
                    a = np.exp2(m - nn(mn))
                    l = l * a + p.sum(-1, keepdims=True)
                    ar = a
                    if w == "alpha_frag_row":
                        idx = np.arange(n)
                        ar = a[:, np.where(idx % 16 >= 8, idx - 8, idx)]
                    acc = acc * ar + pv(rnd(p, P.dt), v[:, g0:g1], s)
                    m = mn
                out[:, c0 + r0 : c0 + r1] = divide(acc, l)
                lse[:, c0 + r0 : c0 + r1] = np.where(l > 0, nn(m) * LN2 + np.log(np.where(l > 0, l, F32(1))),
                                                     np.where(np.isnan(l), l, NEG))[..., 0]
        return finish(P, out, lse, lse_out)

    return kernel


# ------------------------------------------------------------------ 7. paged
def paged_prelude(q, kp, vp, table, lens, o):
    B, H, T, D = q.shape
    NP, K, ps, _ = kp.shape
    P = SimpleNamespace(lead=(B,), B=B, H=H, T=T, D=D, K=K, S=int(np.max(lens, initial=0)), E=vp.shape[-1],
                        G=H // K, dt=q.dtype, NP=NP, ps=ps)
    P.hmap = np.arange(H) // P.G
    P.table = np.asarray(table).astype(np.int64)
    o2 = {a: b for a, b in o.items() if a not in ("bias", "mask", "dropout_mask")}
    o2["kv_lengths"] = lens
    options(P, o2)
    P.kv = np.asarray(lens).astype(np.int64)
    if o.get("q_offset") is None:
        P.off = P.kv - T
    return P


def phys(P, b, slot, w=None):
    if w == "table_cache8":
        slot = slot % 8
    if w == "table_stride":
        need = max(1, -(-P.S // P.ps))
        flat = P.table.reshape(-1)
        return np.clip(flat[np.minimum(b * need + slot, flat.size - 1)], 0, P.NP - 1)
    return np.clip(P.table[b, np.minimum(slot, P.table.shape[1] - 1)], 0, P.NP - 1)


def paged_walk(w, lse_out, BN=64):
    @quiet
    def kernel(query, key_pages, value_pages, *, block_table, kv_lengths, **o):
        P = paged_prelude(query, key_pages, value_pages, block_table, kv_lengths, o)
        B, H, T, E, K, ps = P.B, P.H, P.T, P.E, P.K, P.ps
        out = np.zeros((B, H, T, E), np.float32)
        lse = np.full((B, H, T), NEG, np.float32)
        kflat = key_pages.reshape(-1, P.D)
        vflat = value_pages.reshape(-1, E)
        for b in range(B):
            n = int(P.kv[b])
            if w == "len_mod_page" and n > 0:
                n = (n - 1) // ps * ps + n % ps
            off = int(P.kv.max()) - T if (w == "offset_max_len" and o.get("q_offset") is None) else int(P.off[b])
            pos = off + np.arange(T)
            start = 0
            if P.left is not None:
                first = pos[-1] if w == "window_last_row" else pos[0]
                start = max(0, int(first) - P.left) // ps * ps
            hi = min(n, int(pos[-1]) + 1) if P.causal else n
            q = f32(query[b])
            m = np.full((H, T, 1), NEG, np.float32)
            l = np.zeros((H, T, 1), np.float32)
            acc = np.zeros((H, T, E), np.float32)
            for j0 in range(start, hi, BN):
                j = np.arange(j0, min(j0 + BN, n))
                slot, o_ = j // ps, j % ps
                if w == "page_runon":
                    pg = phys(P, b, slot[:1])
                    o_ = j - int(slot[0]) * ps
                else:
                    pg = phys(P, b, slot, w)
                adr = (pg[None, :] * K + np.arange(K)[:, None]) * ps + o_[None, :]
                adr = np.minimum(adr, kflat.shape[0] - 1)
                kt = f32(kflat[adr])[P.hmap]
                vt = f32(vflat[adr])[P.hmap]
                d = j[None, :] - pos[:, None]
                vis = np.ones(d.shape, bool)
                if P.causal:
                    vis &= d <= 0
                if P.left is not None:
                    vis &= d >= -P.left
                if P.right is not None:
                    vis &= d <= P.right
                vis = vis[None]
                s = (q @ kt.swapaxes(-1, -2)) * P.scale
                if P.cap is not None:
                    s = np.tanh(s / F32(P.cap)) * F32(P.cap)
                if P.slopes is not None:
                    dist = np.abs(d - start) if w == "alibi_skip_pages" else np.abs(d)
                    s = s - P.slopes[:, None, None] * dist.astype(np.float32)
                s = np.where(vis, s, NEG)
                mn = np.maximum(m, s.max(-1, keepdims=True))
                p = np.exp(s - nn(mn))
                a = np.exp(m - nn(mn))
                l = l * a + p.sum(-1, keepdims=True)
                pr = rnd(p, P.dt)
                if w == "p_pair_swap":
                    c = np.arange(len(j))
                    r8 = c % 8
                    src = np.where((r8 == 2) | (r8 == 3), c + 2, np.where((r8 == 4) | (r8 == 5), c - 2, c))
                    pr = pr[..., np.where(src < len(j), src, c)]
                acc = acc * a + pv(pr, vt, s)
                m = mn
            if P.sinks is not None:
                sk = P.sinks[:, None, None]
                mn = np.maximum(m, sk)
                l = l * np.exp(m - mn) + np.exp(sk - mn)
                acc = acc * np.exp(m - mn)
                m = mn
            out[b] = divide(acc, l)
            lse[b] = np.where(l > 0, nn(m) + np.log(np.where(l > 0, l, F32(1))), np.where(np.isnan(l), l, NEG))[..., 0]
        return finish(P, out, lse, lse_out)

    return kernel


def paged_split(w, lse_out, n_splits=4):
    @quiet
    def kernel(query, key_pages, value_pages, *, block_table, kv_lengths, **o):
        P = paged_prelude(query, key_pages, value_pages, block_table, kv_lengths, o)
        B, H, T, E, K, ps = P.B, P.H, P.T, P.E, P.K, P.ps
        out = np.zeros((B, H, T, E), np.float32)
        lse = np.full((B, H, T), NEG, np.float32)
        for b in range(B):
            n = int(P.kv[b])
            pos = int(P.off[b]) + np.arange(T)
            pages = -(-n // ps)
            per = max(1, -(-pages // n_splits))
            lo = max(0, int(pos[0]) - P.left) if P.left is not None else 0
            hi = min(n, int(pos[-1]) + 1) if P.causal else n
            q = f32(query[b])
            parts = []
            for sp in range(n_splits):
                j0, j1 = sp * per * ps, min((sp + 1) * per * ps, n)
                if w == "split_end_inclusive":
                    j1 = min(j1 + 1, n)
                if j1 <= lo or j0 >= hi or j1 <= j0:  # nothing of the split is in sight
                    parts.append((np.zeros((H, T, E), np.float32), np.full((H, T), NEG, np.float32)))
                    continue
                j = np.arange(j0, j1)
                pg = phys(P, b, j // ps)
                kt = f32(key_pages[pg, :, j % ps]).swapaxes(0, 1)[P.hmap]
                vt = f32(value_pages[pg, :, j % ps]).swapaxes(0, 1)[P.hmap]
                d = j[None, :] - pos[:, None]
                vis = np.ones(d.shape, bool)
                if P.causal:
                    vis &= d <= 0
                if P.left is not None:
                    vis &= d >= -P.left
                if P.right is not None:
                    vis &= d <= P.right
                s = (q @ kt.swapaxes(-1, -2)) * P.scale
                if P.cap is not None:
                    s = np.tanh(s / F32(P.cap)) * F32(P.cap)
                part = partial(s, vis[None], vt, P.dt)
                if w == "sink_split0" and sp == 0 and P.sinks is not None:
                    part = merge2(part, (np.zeros((H, T, E), np.float32), np.broadcast_to(P.sinks[:, None], (H, T))))
                parts.append(part)
            sink = None
            if P.sinks is not None and w != "sink_split0":
                sink = P.sinks[:, None]
            if w == "reduce_transposed":
                parts = [(x, y.T.reshape(H, T)) for x, y in parts]
            out[b], lse[b] = merge_all(parts, sink)
        return finish(P, out, lse, lse_out)

    return kernel


# ------------------------------------------------------------------ 8. latent (MLA), absorbed
def latent(w, lse_out, BN=64, lazy=False):
    @quiet
    def kernel(q_nope, q_rope, kv_latent, k_rope, w_uk, w_uv, **o):
        lead = q_nope.shape[:-3]
        H, T, N = q_nope.shape[-3:]
        R = q_rope.shape[-1]
        S, C = kv_latent.shape[-2:]
        E = w_uv.shape[-2]
        B = int(np.prod(lead, dtype=np.int64)) if lead else 1
        P = SimpleNamespace(lead=lead, B=B, H=H, T=T, D=N + R, K=1, S=S, E=E, G=H, dt=q_nope.dtype)
        options(P, o)
        qn = f32(q_nope).reshape(B, H, T, N)
        qr = f32(q_rope).reshape(B, H, T, R)
        c = f32(kv_latent).reshape(B, 1, S, C)
        kr = f32(k_rope).reshape(B, 1, S, R)
        uk = f32(w_uk)
        uv = f32(w_uv)
        if w == "absorb_head4" and H % 4 and H > 4:
            h4 = H // 4 * 4
            uk = uk[np.where(np.arange(H) >= h4, np.arange(H) - h4, np.arange(H))]
        if w == "rope_batch0":
            kr = np.broadcast_to(kr[:1], kr.shape)
        rd = R // 16 * 16 if (w == "rope_step_tail" and R >= 16) else R
        vl = c
        if w == "v_row_stride":
            vl = np.concatenate([c, kr], -1).reshape(B, -1)[:, : S * C].reshape(B, 1, S, C)
        qc = qn @ uk
        local = np.broadcast_to(np.arange(T), (H, T))
        if w == "latent_row_pos":
            local = (np.arange(T)[None, :] * H + np.arange(H)[:, None]) % T
        m = np.full((B, H, T, 1), NEG, np.float32)
        l = np.zeros((B, H, T, 1), np.float32)
        acc = np.zeros((B, H, T, C), np.float32)
        for j0 in range(0, S, BN):
            j1 = min(j0 + BN, S)
            kpos = np.arange(j0, j1)
            pos = (P.off[:, None, None] + local[None]).reshape(B, H * T)
            vis = visible(P, pos, kpos).reshape(B, H, T, j1 - j0)
            s = qr[..., :rd] @ kr[:, :, j0:j1, :rd].swapaxes(-1, -2)
            if w == "rope_beta_zero" and j0 > 0:
                s = np.zeros_like(s)
            s = (s + qc @ c[:, :, j0:j1].swapaxes(-1, -2)) * (P.scale * LOG2E)
            s = np.where(vis, s, NEG)
            mn = np.maximum(m, s.max(-1, keepdims=True))
            if lazy and w != "lazy_rescale":
                mn = np.where((m > NEG) & (mn - m <= 8), m, mn)
            a = np.exp2(m - nn(mn))
            p = np.exp2(s - nn(mn))
            l = l * a + p.sum(-1, keepdims=True)
            if w == "lazy_rescale":
                a = np.where(mn - m > 8, a, F32(1))
            if w == "half_c_no_rescale" and j0 > 0:
                a = np.concatenate([np.broadcast_to(a, acc.shape[:-1] + (C // 2,)),
                                    np.ones(acc.shape[:-1] + (C - C // 2,), np.float32)], -1)
            acc = acc * a + pv(rnd(p, P.dt), np.broadcast_to(vl[:, :, j0:j1], (B, H, j1 - j0, C)), s)
            m = mn
        lse = np.where(l > 0, nn(m) * LN2 + np.log(np.where(l > 0, l, F32(1))), np.where(np.isnan(l), l, NEG))[..., 0]
        out = divide(acc, l) @ uv.swapaxes(-1, -2)
        return finish(P, out, lse, lse_out)

    return kernel


# ------------------------------------------------------------------ data
def dense_data(q, k, E=None, amp=1.0, **opt):
    def data(rng, dt):
        qs, ks = q, k
        arr = [(rng.standard_normal(qs) * amp).astype(dt), rng.standard_normal(ks).astype(dt),
               rng.standard_normal(ks[:-1] + (E or ks[-1],)).astype(dt)]
        o = {a: (f(rng) if callable(f) else f) for a, f in opt.items()}
        return arr, o

    return data


def outlier_data(rng, dt):
    arr, o = dense_data((6, 33, 64), (3, 80, 64), causal=True)(rng, dt)
    v = f32(arr[2])
    v[1][:, [5, 40]] *= 1.5e6
    return [arr[0], arr[1], v.astype(dt)], o


def packed_data(H, K, D, lq, lk, E=None, amp=1.0, **opt):
    def data(rng, dt):
        arr = [(rng.standard_normal((H, sum(lq), D)) * amp).astype(dt), rng.standard_normal((K, sum(lk), D)).astype(dt),
               rng.standard_normal((K, sum(lk), E or D)).astype(dt)]
        o = {a: (f(rng) if callable(f) else f) for a, f in opt.items()}
        o["cu_q"] = np.concatenate([[0], np.cumsum(lq)]).astype(np.int32)
        o["cu_kv"] = np.concatenate([[0], np.cumsum(lk)]).astype(np.int32)
        return arr, o

    return data


def paged_data(H, K, T, D, ps, lens, width=None, spare=3, amp=1.0, E=None, **opt):
    def data(rng, dt):
        need = [-(-n // ps) for n in lens]
        wd = width or max(need)
        NP = sum(need) + spare
        perm = rng.permutation(NP)
        table = rng.integers(0, NP, (len(lens), wd))
        c = 0
        for b, n in enumerate(need):
            table[b, :n] = perm[c : c + n]
            c += n
        arr = [(rng.standard_normal((len(lens), H, T, D)) * amp).astype(dt), rng.standard_normal((NP, K, ps, D)).astype(dt),
               rng.standard_normal((NP, K, ps, E or D)).astype(dt)]
        o = {a: (f(rng) if callable(f) else f) for a, f in opt.items()}
        o["block_table"] = table.astype(np.int32)
        o["kv_lengths"] = np.asarray(lens, np.int32)
        return arr, o

    return data


def latent_data(lead, H, T, S, N, R, C, E, amp=1.0, **opt):
    def data(rng, dt):
        g = rng.standard_normal
        arr = [(g(lead + (H, T, N)) * amp).astype(dt), (g(lead + (H, T, R)) * amp).astype(dt), g(lead + (S, C)).astype(dt),
               g(lead + (S, R)).astype(dt), (g((H, N, C)) / math.sqrt(C)).astype(dt), (g((H, E, C)) / math.sqrt(C)).astype(dt)]
        return arr, {a: (f(rng) if callable(f) else f) for a, f in opt.items()}

    return data


def add(name, form, dtype, lse, maker, kw, data, sentence):
    def build(wrong=True):
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        arrays, opt = data(rng, DT[dtype])
        return maker(name if wrong else None, lse, **kw), tuple(arrays), opt

    FAULTS.append((name, sentence, {"form": form, "dtype": dtype, "lse": lse}, build))


def slopes(h, base=0.5):
    return (base ** (1 + np.arange(h))).astype(np.float32)


def dd(name, dtype, lse, maker, kw, data, sentence):
    add(name, "dense", dtype, lse, maker, kw, data, sentence)


# ---- dense, tiled
dd("q_tail_overlap", "float32", False, flash, dict(BM=48, BN=64), dense_data((6, 130, 64), (3, 190, 64), causal=True),
   "The last row tile of 48 is moved back to start at row T-48 = 82 so that it is full, but the row positions for the causal mask are still counted "
   "from the nominal tile start 96, so rows 82..128 see up to 14 keys of their future (all heads).")
dd("diag_mask_count", "bfloat16", True, flash, dict(BM=64, BN=32), dense_data((8, 150, 64), (2, 205, 64), causal=True),
   "Only the last BM/BN = 2 key tiles of a row tile are masked causally; the offset 55 is no multiple of the key tile 32, so three tiles straddle the "
   "diagonal and in the third from the end the first rows of a row tile see future keys: rows 0..7, 64..71 and 86..103 (the last tile is moved back to row 86), all heads.")
dd("window_hi_first_row", "float16", False, flash, dict(BM=64, BN=32), dense_data((2, 4, 120, 48), (2, 2, 160, 48), window=(40, 10), q_offset=20),
   "The end of the key loop is taken from the first row of a row tile (row0 + right + 1, rounded up to key tiles of 32) instead of the last row, so the later rows of "
   "every tile of 64 lose the keys of their window beyond that tile, some rows all of them.")
dd("bias_ptr_skip", "float32", False, flash, dict(BM=32, BN=32), dense_data((4, 100, 40), (4, 170, 40), causal=True, window=(37, None),
   bias=lambda r: r.standard_normal((4, 100, 170)).astype(np.float32)),
   "With a sliding window the loop starts at a later key tile, but the bias pointer starts at column 0 and is not advanced over the skipped tiles: key j gets the bias of "
   "column j - lo, where lo is the first visited tile (rows 0..: lo = 32 and more).")
dd("alibi_log2_masked", "float32", True, flash, dict(BM=64, BN=64), dense_data((6, 140, 32), (6, 200, 32), causal=True, alibi_slopes=lambda r: slopes(6, 0.6)),
   "Scores are kept in log2 units; the masked variant of the tile body (tiles that cross the diagonal) adds the ALiBi slope without the factor log2(e), the unmasked "
   "variant with it, so keys in diagonal tiles are penalised by 0.69 of what they should be.")
dd("tail_l_alpha", "float32", True, flash, dict(BM=64, BN=64), dense_data((5, 90, 80), (5, 235, 80), amp=1.5),
   "In the peeled last partial key tile (keys 192..234) the row sum is not multiplied by alpha though the accumulator is: rows whose maximum moves in this tail tile "
   "are divided by too large a sum and have too large an lse.")
dd("m_init_zero", "float32", True, flash, dict(BM=64, BN=64), dense_data((4, 75, 64), (2, 130, 64),
   bias=lambda r: np.where(np.arange(75)[:, None] % 9 == 4, -180.0, 0.0).astype(np.float32) * np.ones((1, 130), np.float32)),
   "The running maximum starts at 0 instead of -inf; rows whose scores all lie below about -104 (here rows 4, 13, 22, ... with a bias of -180) underflow to weight 0, "
   "give output 0 and lse -inf.")
dd("chunk_pow2", "float32", False, flash, dict(BM=64, BN=64), dense_data((4, 110, 32), (2, 150, 32), causal=True, chunk=24),
   "Chunked local attention compares pos & ~(chunk-1) instead of pos // chunk, which is right for powers of two only: with chunk 24 positions are grouped by "
   "bit 3 and the bits from 5 up, so rows see keys of other chunks and miss some of their own.")
dd("kvlen_bh_mod", "bfloat16", True, flash, dict(BM=64, BN=64), dense_data((3, 4, 40, 64), (3, 2, 140, 64), kv_lengths=lambda r: np.array([140, 61, 97])),
   "The key length is looked up as kv_lengths[bh % B] for the flattened batch-head index instead of kv_lengths[bh // H], so the heads of one batch use the "
   "lengths of other batches in turn (keys cut off or keys past the length seen): with 3 batches and 4 heads, heads 1 and 2 of each batch; heads 0 and 3 happen to be right.")
dd("lse_rounded_stride", "float32", True, flash, dict(BM=64, BN=64), dense_data((6, 83, 32), (3, 83, 32), causal=True),
   "The lse is written with a head stride of T rounded up to the row tile (83 -> 128) and handed back as if the stride were T: head 0 is right, every later head holds "
   "shifted numbers and the -inf fill; the output is right.")

# ---- dense, eager
dd("bias_row_pad", "float32", False, eager, {}, dense_data((4, 60, 48), (2, 91, 48), bias=lambda r: r.standard_normal((4, 60, 91)).astype(np.float32)),
   "The bias is read with a row stride of S rounded up to 16 (96 instead of 91): row i reads 5*i elements too far on; row 0 alone is right.")
dd("mask_bits_tail", "float16", False, eager, {}, dense_data((4, 70, 32), (4, 115, 32), mask=lambda r: r.random((4, 70, 115)) < 0.6),
   "The boolean mask is packed in 32-bit words; in the last partial word of a row (keys 96..114) the bits are taken in reverse order, so key 96+b uses the mask "
   "of key 114-b.")
dd("drop_word_tail", "float32", False, eager, {}, dense_data((4, 50, 32), (2, 99, 32), dropout_mask=lambda r: r.random((4, 50, 99)) > 0.2, dropout_rate=0.2),
   "The dropout keep bytes are loaded four at a time; the last S % 4 = 3 keys (96..98) are not covered by a full word and are dropped in every row and head.")
dd("mask_before_softcap", "bfloat16", False, eager, {}, dense_data((2, 6, 90, 64), (2, 2, 90, 64), causal=True, softcap=5.0),
   "The causal mask is put in before the softcap: tanh turns the -inf of hidden keys into -cap = -5, so every future key keeps a weight of exp(-5 - m); "
   "the first rows suffer most.")
dd("pos_bf16", "bfloat16", True, eager, {}, dense_data((4, 64, 32), (4, 390, 32), causal=True, alibi_slopes=lambda r: slopes(4, 0.7)),
   "ALiBi positions of rows and keys are rounded to bfloat16 before they are subtracted; positions above 256 are rounded to even numbers, so distances are off by "
   "up to 2 for the rows at positions 326..389 and keys from 257 on.")
dd("scale_padded_dim", "bfloat16", False, eager, {}, dense_data((5, 60, 72), (1, 85, 72), amp=2.0),
   "The default scale is computed from the head dim padded to the vector width (72 -> 96): 1/sqrt(96) instead of 1/sqrt(72); all rows and heads are too flat.")
dd("lse_keep_rate", "float32", True, eager, {}, dense_data((3, 45, 64), (3, 77, 64), dropout_mask=lambda r: r.random((3, 45, 77)) > 0.3, dropout_rate=0.3),
   "The dropout factor 1 - rate is folded into the row sum for the final division, and the lse is then taken from this sum: lse is too small by -log(1-0.3) = 0.357 "
   "in all rows, the output is right.")

# ---- dense, split-KV
dd("empty_split_lse0", "float32", True, splitkv, dict(n_splits=12), dense_data((2, 8, 1, 64), (2, 2, 50, 64)),
   "50 keys are cut into 12 splits of ceil(50/12) = 5, so splits 10 and 11 are empty; they return lse 0 instead of -inf and put a weight of exp(0) = 1 "
   "with output 0 each into the reduction (every row and head).")
dd("streamk_middle", "bfloat16", False, splitkv, dict(mode="streamk", BN=32, workers=13), dense_data((6, 3, 64), (3, 270, 64), causal=True),
   "Stream-K: 54 (head, key tile) units are dealt to 13 workers, 5 each; the fix-up adds only the first and the last contributor of a head, so heads spread over three workers "
   "(heads 1, 2, 3) lose the keys of the middle one (tiles of 32).")
dd("pingpong_no_rescale", "float32", True, splitkv, dict(mode="pingpong", BN=32), dense_data((4, 37, 64), (4, 150, 64), amp=1.5),
   "Two groups take the even and odd key tiles of 32 with their own running maxima; at the join accumulators and sums are added without rescaling to the common maximum, so "
   "the group with the smaller maximum weighs too much.")
dd("tree_odd", "float16", True, splitkv, dict(mode="tree", n_splits=5), dense_data((8, 2, 80), (4, 211, 80), causal=True),
   "The tree reduction over 5 splits pairs (0,1), (2,3) and does not carry the odd last one to the next level: the keys of split 4 (172..210) are lost in all rows.")

# ---- dense, pipelined
dd("v_ring_two", "bfloat16", False, pipelined, dict(BN=48), dense_data((4, 50, 64), (2, 220, 64)),
   "Keys have a ring of three buffers but values only two while two tiles are prefetched: the copy of value tile t+2 overwrites tile t before it is used, so all key tiles of 48 but the "
   "last two are weighted with the values two tiles on (of tile 2 only the first 28 rows, since tile 4 is no longer).")
dd("late_wait", "float16", False, pipelined, dict(BN=48), dense_data((2, 4, 33, 48), (2, 4, 232, 48)),
   "The wait before the last key tile leaves one copy in flight: the second half of the last value tile (keys 212..231) has not arrived and holds the rows of the "
   "tile three before (ring of three, keys 68..87).")
dd("addr16", "float32", False, pipelined, dict(BN=64), dense_data((8, 24, 64), (8, 180, 64)),
   "Element offsets into the keys (head*S + key)*D are kept in 16 bits: from element 65536 on (head 5, key 124, and heads 6 and 7) the addresses wrap to the "
   "beginning and the keys of heads 0..2 are read.")
dd("carry_l", "float32", True, pipelined, dict(BN=64, persistent=True, workers=4), dense_data((2, 5, 40, 32), (2, 5, 130, 32)),
   "Persistent kernel with 4 workers: the row sum is not reset when a worker takes its next head (the first tile is peeled and adds to it), so all batch-heads from the fifth on divide by too large "
   "a sum; the error piles up.")

# ---- dense, fragments
dd("swizzle", "bfloat16", False, fragment, {}, dense_data((6, 48, 64), (3, 100, 64)),
   "Keys are stored in shared memory with 8-wide chunks swizzled by row & 7 and read back with row & 3: keys with bit 2 of their index set (4..7, 12..15, ...) have their "
   "two halves of 32 features exchanged.")
dd("nz_transposed", "float16", False, fragment, {}, dense_data((4, 50, 64), (4, 93, 64), E=40),
   "Values are laid out in 16x16 fractals; with an odd number of column fractals (E = 40: 3) the last one is read in the other order, so output columns 32..39 mix keys "
   "and columns within each block of 16 keys.")
dd("half_acc", "float32", True, fragment, dict(half_steps=True, lanes=16), dense_data((3, 65, 128), (3, 120, 128)),
   "The score accumulator of the 16-wide k-steps is a half-precision fragment: scores of a float32 kernel carry an error of about 1e-3 everywhere.")
dd("exp2_trunc", "float32", False, fragment, dict(use_poly=True), dense_data((4, 60, 64), (2, 141, 64), causal=True),
   "The exponential splits x into integer and fraction by truncation instead of floor; x is negative, so the polynomial fitted on [0, 1) is used on (-1, 0], where it is off by "
   "up to a few 1e-3.")
dd("gpack_overlap", "bfloat16", True, fragment, dict(gpack=4), dense_data((12, 21, 64), (2, 88, 64), causal=True),
   "Query heads of a group are packed four at a time; for 6 heads a group the second pack is loaded from head 2 on (moved back to be full) but stored at head 4, so heads 4, 5 (and 10, 11) hold "
   "the results of heads 2, 3 (8, 9).")

dd("rcp_estimate", "float32", True, fragment, dict(BN=64), dense_data((5, 44, 48), (5, 101, 48)),
   "The final division is a multiplication by the hardware's reciprocal estimate (8 bits of mantissa) without the Newton steps: each row and head of the output is off by one factor of up to 0.2 percent, "
   "the lse is right.")
dd("out_via_half", "bfloat16", False, fragment, dict(BN=64), outlier_data,
   "The store goes through a half-precision staging tile before the conversion to bfloat16: outputs beyond 65504 become infinite (columns 5 and 40 of query heads 2 and 3, whose key/value head 1 has values of the order 1e6 there); elsewhere only the rounding differs.")

# ---- packed
add("row_tile_seq_first", "packed", "float16", False, packed_flat, dict(BM=32, BN=64), packed_data(4, 2, 48, [45, 30, 70], [60, 41, 70], causal=True),
    "A row tile of 32 takes the sequence of its first row for all its rows: rows 45..63 of the packed order (start of sequence 1) use the keys of sequence 0, and "
    "rows 75..95 (start of sequence 2) those of sequence 1.")
add("seq_search_first_row", "packed", "bfloat16", True, packed_flat, dict(BM=64, BN=64), packed_data(6, 3, 64, [20, 0, 33, 41, 7], [50, 9, 33, 62, 40]),
    "The binary search for a row's sequence uses < where <= is needed: the first row of each sequence but the first is taken to belong to the last non-empty sequence before it and "
    "attends to its keys.")
add("offset_global", "packed", "float32", True, packed_flat, dict(BM=64, BN=64), packed_data(4, 4, 32, [25, 31, 44], [40, 50, 44], causal=True),
    "The bottom-right offset of a sequence is computed as cu_kv[b] - cu_q[b] (starts) instead of the difference of the lengths: 0, 15, 34 instead of 15, 19, 0, so "
    "sequences 0 and 1 lose their newest keys and sequence 2 sees its future.")
add("key_tail_next", "packed", "bfloat16", True, packed_grid, dict(BM=64, BN=32), packed_data(4, 2, 64, [30, 22, 50], [45, 70, 50]),
    "The tail of the last key tile of 32 is compared with total_kv instead of the sequence's end, so rows of sequence 0 see 19 keys of sequence 1 and those of sequence 1 "
    "26 keys of sequence 2; the last sequence is right.")
add("grid_first_seq", "packed", "float32", False, packed_grid, dict(BM=32, BN=64), packed_data(4, 4, 40, [28, 75, 50], [60, 75, 50], causal=True),
    "The number of row tiles in the grid comes from the first sequence's length (28 -> one tile of 32) instead of the longest, so rows 32 and up of sequences 1 and 2 are never "
    "computed and stay 0.")
add("alibi_packed_abs", "packed", "float32", True, packed_flat, dict(BM=64, BN=64), packed_data(8, 2, 32, [40, 20, 35], [55, 48, 35], causal=True, alibi_slopes=lambda r: slopes(8, 0.6)),
    "ALiBi distances are taken between packed indices |row - key| instead of positions within the sequence: they are shifted by 15, 43 and 43 in sequences "
    "0, 1, 2, and keys beyond the packed row index are favoured for being far back.")
add("sched_q_offset", "packed", "bfloat16", False, packed_grid, dict(BM=64, BN=64), packed_data(4, 1, 64, [24, 31, 28, 20], [30, 70, 51, 64], causal=True, q_offset=lambda r: np.array([6, 39, 17, 44])),
    "Sequences are run longest keys first; q_offset is read with the slot in this order (1, 3, 2, 0) instead of the sequence number, so sequence 1 uses the offset of 0, 3 that of 1 and 0 that of 3.")
add("id_parity", "packed", "float16", False, packed_flat, dict(BM=64, BN=64), packed_data(4, 2, 32, [9, 14, 5, 21, 12, 30], [12, 14, 7, 30, 12, 33]),
    "Short sequences share a row tile of 64 and are told apart by one bit of their number (built for two a tile): in tile 0, which holds all six, sequences 0, 2, 4 see each other's keys and so do 1, 3, 5; rows from 64 on are right.")
add("alpha_frag_row", "packed", "float32", False, packed_grid, dict(BM=64, BN=32), packed_data(3, 3, 64, [50, 37], [100, 97], amp=1.5),
    "Each thread holds rows r and r+8 of a 16-row fragment but rescales both accumulators by the alpha of row r: rows with r % 16 >= 8 get the neighbour's "
    "correction whenever a later key tile of 32 raises a maximum.")
add("sink_empty_lse", "packed", "bfloat16", True, packed_flat, dict(BM=64, BN=64), packed_data(4, 2, 32, [40, 25, 18], [22, 25, 0], causal=True, sinks=lambda r: r.standard_normal(4).astype(np.float32)),
    "Rows that see no key return lse -inf from the early exit, before the sink is added; with a sink their lse must be the sink logit (rows 0..17 of sequence 0 and all "
    "of sequence 2).")

# ---- paged
add("page_runon", "paged", "bfloat16", False, paged_walk, dict(BN=32), paged_data(6, 3, 1, 64, 24, [130, 71, 96]),
    "A key tile of 32 looks up the block table once, for its first key, and runs on linearly: with pages of 24 the keys beyond the page end are read from the next head's "
    "part of the same page (the next page for the last head).")
add("table_stride", "paged", "float32", False, paged_walk, {}, paged_data(4, 2, 2, 64, 16, [70, 100, 33], width=11, causal=True),
    "The block table is addressed with a row stride of ceil(max length / page size) = 7 instead of its width 11: sequence 0 is right, the others read page numbers of earlier rows.")
add("table_cache8", "paged", "float32", True, paged_walk, {}, paged_data(4, 4, 1, 48, 16, [190, 120, 250]),
    "Eight block-table entries are cached and never refilled: page slot i >= 8 uses the page of slot i % 8, so sequences longer than 128 keys (0 and 2) see their first keys again instead of "
    "the later ones.")
add("len_mod_page", "paged", "bfloat16", True, paged_walk, {}, paged_data(8, 1, 1, 64, 20, [100, 73, 140, 20]),
    "The number of keys in the last page is computed as length % page_size, which is 0 for a full last page: sequences of 100, 140 and 20 keys (multiples of 20) lose their last page.")
add("window_last_row", "paged", "float16", False, paged_walk, dict(BN=32), paged_data(4, 2, 9, 64, 16, [120, 77, 150], causal=True, window=(22, None)),
    "The first page of the window is computed for the last of the 9 rows and used for all: earlier rows lose those keys of their window that lie in the page before it (keys 89..95 of sequence 0, 46..47 of sequence 1; sequence 2 happens to be right).")
add("sink_split0", "paged", "bfloat16", True, paged_split, {}, paged_data(4, 2, 1, 64, 16, [200, 40, 130], causal=True, window=(47, None), sinks=lambda r: (1 + r.standard_normal(4)).astype(np.float32)),
    "The sink is added by split 0 only; split 0 is skipped when its pages lie before the window, so sequences 0 and 2 (200 and 130 keys, window 47) lose their sink, sequence 1 keeps it.")
add("split_end_inclusive", "paged", "float32", True, paged_split, {}, paged_data(6, 2, 2, 64, 16, [150, 61, 209], causal=True),
    "The end of a split is taken as inclusive, so the first key of each following split (e.g. keys 48, 96, 144 of sequence 0) is counted twice.")
add("alibi_skip_pages", "paged", "float32", True, paged_walk, {}, paged_data(4, 4, 2, 32, 16, [140, 45, 101], causal=True, window=(30, None), alibi_slopes=lambda r: slopes(4)),
    "When pages before the window are skipped the key index for ALiBi is counted from the first visited page: all distances grow by its start (96, 0, 64), which cancels in the output of causal rows but lowers "
    "the lse by slope times that.")
add("reduce_transposed", "paged", "bfloat16", False, paged_split, {}, paged_data(6, 2, 4, 64, 16, [180, 75], amp=2.0, causal=True),
    "The splits write their lse as [row][head] and the reduction reads it as [head][row], so with 4 rows and 6 heads the split weights of other heads and rows are used (all but the first and last entry).")
add("p_pair_swap", "paged", "float16", False, paged_walk, dict(BN=64), paged_data(16, 4, 3, 48, 32, [150, 88], causal=True, amp=1.5),
    "When the weight fragment is turned from accumulator to operand layout, columns 2,3 and 4,5 of each group of 8 keys change places: weights of these keys meet each other's values; lse would be right.")

# ---- latent
add("absorb_head4", "latent", "float32", False, latent, {}, latent_data((), 6, 5, 110, 32, 16, 64, 24, causal=True),
    "Absorbing w_uk into the query goes over heads four at a time and the tail of H = 6 restarts at weight 0: heads 4 and 5 are absorbed with w_uk of heads 0 and 1.")
add("half_c_no_rescale", "latent", "bfloat16", True, latent, {}, latent_data((2,), 4, 6, 180, 32, 16, 96, 32, amp=2.0),
    "Two groups share the latent accumulator; the second one (latent columns 48..95) does not get the alpha of later key tiles of 64, so its half keeps old scaling where a maximum "
    "moves, and the output mixes both through w_uv; lse is right.")
add("v_row_stride", "latent", "float32", True, latent, {}, latent_data((2,), 4, 3, 90, 32, 16, 64, 40, causal=True),
    "Latent and rope part lie in one row of C + R = 80, but the value side walks it with a row stride of C = 64: key j's value starts 16*j elements too early; scores and lse are right.")
add("rope_batch0", "latent", "bfloat16", False, latent, {}, latent_data((3,), 4, 4, 75, 32, 24, 64, 32, amp=1.5, causal=True),
    "The rope keys are addressed without the batch stride: all batches use k_rope of batch 0; batch 0 is right.")
add("rope_step_tail", "latent", "float16", False, latent, {}, latent_data((), 8, 7, 100, 32, 24, 64, 32, amp=1.5),
    "The rope product runs in k-steps of 16 and drops the last 24 % 16 = 8 rope features from all scores.")
add("rope_beta_zero", "latent", "float32", True, latent, {}, latent_data((2,), 5, 2, 160, 48, 16, 64, 32, causal=True),
    "From the second key tile of 64 on the rope product is issued first and the latent product then clears the accumulator instead of adding: keys 64 and up are scored without their rope part.")
add("lazy_rescale", "latent", "bfloat16", True, latent, dict(lazy=True), latent_data((), 6, 20, 200, 32, 16, 64, 32, amp=2.0),
    "The lazy rescale skips the correction of the accumulator when the maximum grows by at most 8 (log2), but maximum and row sum move on nevertheless: rows whose maximum grows in key tiles 1.. "
    "keep older keys with too large weights in the output; lse is right.")
add("latent_row_pos", "latent", "float32", True, latent, {}, latent_data((), 5, 4, 85, 32, 16, 64, 32, causal=True),
    "Tokens and heads are packed as rows t*H + h, but the causal position is taken as row % T instead of row // H: with T = 4 and H = 5 row t of head h stands at (t+h) % 4 and sees too many or too few of the last 3 keys; heads 0 and 4 are right.")


# ------------------------------------------------------------------ verification
def main():
    import time
    from collections import Counter

    from refattn.oracle import check

    ok, count = 0, Counter()
    for name, _, tags, build in FAULTS:
        res, ms = [], 0
        for wrong in (False, True):
            kernel, arrays, opt = build(wrong=wrong)
            r = kernel(*arrays, **opt)
            for _ in range(3):
                t = time.perf_counter()
                kernel(*arrays, **opt)
                dtm = (time.perf_counter() - t) * 1e3
                best = dtm if _ == 0 else min(best, dtm)
            ms = max(ms, best)
            out, lse = r if tags["lse"] else (r, None)
            fn = {} if tags["form"] == "dense" else {"function": tags["form"] + "_attention"}
            res.append(bool(check(out, *arrays, lse=lse, **fn, **opt).passed))
        good = res == [True, False] and ms < 20
        ok += good
        count.update([tags["form"], tags["dtype"], "lse" if tags["lse"] else "no lse"])
        if not good or ms > 12:
            print(f"{name:24s} right passes {res[0]}, wrong refused {not res[1]}, {ms:.1f} ms {'' if good else '<<<<<'}", flush=True)
    print(f"{ok} of {len(FAULTS)} verified; {dict(count)}")


if __name__ == "__main__":
    main()
