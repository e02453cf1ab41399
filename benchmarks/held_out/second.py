"""Forty wrong attention kernels, each with a right twin."""
import math

import ml_dtypes
import numpy as np

F4 = np.float32
INF = np.inf
LOG2E = F4(1.4426950408889634)
LN2 = F4(0.6931471805599453)
DT = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
quiet = np.errstate(all="ignore")


# ---------------------------------------------------------------- shared pieces
def narrow(x, dt):
    return x if dt == np.float32 else x.astype(dt).astype(F4)


def pv(p, v, seen):
    """p @ v where unseen keys take no part whatever they hold."""
    fin = np.isfinite(v)
    if fin.all():
        return p @ v
    out = p @ np.where(fin, v, F4(0))
    s = np.broadcast_to(seen, p.shape).astype(F4)
    pos = (s @ (v == INF).astype(F4)) > 0
    neg = (s @ (v == -INF).astype(F4)) > 0
    nan = (s @ np.isnan(v).astype(F4)) > 0
    bad = np.isnan(out) | nan | (pos & neg)
    out = np.where(pos, F4(INF), np.where(neg, F4(-INF), out))
    return np.where(bad, F4(np.nan), out)


def mul(acc, a):
    return np.where(np.isinf(acc), acc, acc * a)


def safe(m):
    return np.where(m == -INF, F4(0), m)


def finish(acc, l):
    ok = l > 0
    out = acc / np.where(ok | np.isnan(l), l, F4(1))[..., None]
    out = np.where(np.isinf(acc), acc, out)
    return np.where((l == 0)[..., None], F4(0), out)


def merge(o1, e1, o2, e2):
    m = safe(np.maximum(e1, e2))
    a, b = np.exp(e1 - m), np.exp(e2 - m)
    t = a + b
    tt = np.where(t == 0, F4(1), t)
    z1 = np.where((a == 0)[..., None] & ~np.isinf(o1), F4(0), mul(o1, (a / tt)[..., None]))
    z2 = np.where((b == 0)[..., None] & ~np.isinf(o2), F4(0), mul(o2, (b / tt)[..., None]))
    return z1 + z2, np.where(t == 0, F4(-INF), m + np.log(tt))


class Ctx:
    """Arguments of a dense call, seen as (B, H, T, D), and the score of a block of them."""

    def __init__(c, q, k, v, causal=False, window=None, scale=None, softcap=None, bias=None, mask=None,
                 alibi_slopes=None, sinks=None, kv_lengths=None, q_offset=None, dropout_mask=None, dropout_rate=None):
        c.lead = q.shape[:-3]
        c.H, c.T, c.D = q.shape[-3:]
        c.K, c.S = k.shape[-3:-1]
        c.E = v.shape[-1]
        c.B = math.prod(c.lead)
        c.g = c.H // c.K
        c.dt = q.dtype
        c.q = q.reshape(c.B, c.H, c.T, c.D).astype(F4)
        hm = np.arange(c.H) // c.g
        c.k = k.reshape(c.B, c.K, c.S, c.D).astype(F4)[:, hm]
        c.v = v.reshape(c.B, c.K, c.S, c.E).astype(F4)[:, hm]
        c.len = np.minimum(np.broadcast_to(c.S if kv_lengths is None else np.asarray(kv_lengths), c.lead).reshape(c.B), c.S)
        c.off = c.len - c.T if q_offset is None else np.broadcast_to(np.asarray(q_offset), c.lead).reshape(c.B)
        c.causal, c.window, c.softcap = causal, window, softcap
        c.scale = F4(1 / math.sqrt(c.D) if scale is None else scale)
        full = c.lead + (c.H, c.T, c.S)
        four = (c.B, c.H, c.T, c.S)
        c.bias = None if bias is None else np.broadcast_to(np.asarray(bias), full).reshape(four)
        c.mask = None if mask is None else np.broadcast_to(np.asarray(mask), full).reshape(four)
        c.drop = None if dropout_mask is None else np.broadcast_to(np.asarray(dropout_mask), full).reshape(four)
        c.keep = F4(1 - (dropout_rate or 0.0))
        c.slopes = None if alibi_slopes is None else np.asarray(alibi_slopes, F4).reshape(c.H)
        c.sinks = None if sinks is None else np.asarray(sinks, F4).reshape(c.H)

    def see(c, rows, cols, limit=None, mask_cols=None):
        pos = c.off[:, None, None, None] + rows[:, None]
        lim = (c.len if limit is None else limit)[:, None, None, None]
        ok = np.broadcast_to(cols < lim, (c.B, 1, len(rows), len(cols)))
        if c.causal:
            ok = ok & (cols <= pos)
        if c.window is not None:
            left, right = c.window
            if left is not None:
                ok = ok & (cols >= pos - left)
            if right is not None:
                ok = ok & (cols <= pos + right)
        if c.mask is not None:
            mc = np.minimum(cols if mask_cols is None else mask_cols, c.S - 1)
            ok = ok & c.mask[:, :, np.minimum(rows, c.T - 1)[:, None], mc]
        return ok

    def extras(c, s, rows, cols, bias_gain=1.0):
        """softcap, ALiBi and bias of raw scaled scores"""
        if c.softcap is not None:
            s = F4(c.softcap) * np.tanh(s / F4(c.softcap))
        if c.slopes is not None:
            d = np.abs(c.off[:, None, None, None] + rows[:, None] - cols).astype(F4)
            s = s - c.slopes[:, None, None] * d
        if c.bias is not None:
            b = c.bias[:, :, np.minimum(rows, c.T - 1)[:, None], np.minimum(cols, c.S - 1)].astype(F4)
            s = s + b * F4(bias_gain)
        return s

    def qk(c, rows, cols):
        qt = c.q[:, :, np.minimum(rows, c.T - 1)]
        kt = c.k[:, :, np.minimum(cols, c.S - 1)]
        return (qt @ kt.swapaxes(-1, -2)) * c.scale

    def block(c, rows, cols, **kw):
        see = c.see(rows, cols)
        s = c.extras(c.qk(rows, cols), rows, cols, **kw)
        see = see & (s != -INF)
        return np.where(see, s, F4(-INF)), see

    def give(c, out, lse, want):
        out = out.reshape(c.lead + (c.H, c.T, c.E)).astype(c.dt)
        return (out, lse.reshape(c.lead + (c.H, c.T)).astype(F4)) if want else out


def add_sink(m, l, acc, sink):
    """joins a sink logit to a running state (natural units)"""
    mn = np.maximum(m, sink)
    a = np.exp(m - safe(mn))
    return mn, l * a + np.exp(sink - safe(mn)), mul(acc, a[..., None])


# ---------------------------------------------------------------- 1. Triton-like tiled forward, exp2 domain
def flash_fwd(F, want, BM, BN):
    @quiet
    def kernel(query, key, value, **o):
        c = Ctx(query, key, value, **o)
        out = np.zeros((c.B, c.H, c.T, c.E), F4)
        lse = np.full((c.B, c.H, c.T), -INF, F4)
        for m0 in range(0, c.T, BM):
            rows = np.arange(m0, min(m0 + BM, c.T))
            lo, hi = 0, c.S
            if c.causal:
                hi = min(hi, int(c.off.max()) + int(rows[-1]) + 1)
                if F == "diag":
                    hi = min(hi, ((int(c.off.max()) + m0) // BN + 1) * BN)
            if c.window is not None and c.window[0] is not None:
                first = rows[-1] if F == "left" else rows[0]
                lo = max(0, (int(c.off.min()) + int(first) - c.window[0]) // BN * BN)
            R = len(rows)
            m = np.full((c.B, c.H, R), -INF, F4)
            l = np.zeros((c.B, c.H, R), F4)
            acc = np.zeros((c.B, c.H, R, c.E), F4)
            for n0 in range(lo, hi, BN):
                n1 = min(n0 + BN, c.S)
                limit = None
                if F == "vec8":
                    n1 = min(n0 + BN, -(-c.S // 8) * 8)
                    limit = -(-c.len // 8) * 8
                cols = np.arange(n0, n1)
                mcols = n0 + (cols - n0) % 32 if F == "word" else None
                see = c.see(rows, cols, limit, mcols)
                s = c.extras(c.qk(rows, cols), rows, cols, bias_gain=LN2 if F == "bias2" else 1.0)
                see = see & (s != -INF)
                s2 = np.where(see, s * LOG2E, F4(-INF))
                mn = np.maximum(m, s2.max(-1))
                a = np.exp2(m - safe(mn))
                x = s2 - safe(mn)[..., None]
                if F == "clamp":
                    x = np.maximum(x, F4(-12))
                p = np.where(see, np.exp2(x), F4(0))
                pd, sd = p, see
                if c.drop is not None:
                    kp = c.drop[:, :, rows[:, None], np.minimum(cols, c.S - 1)]
                    pd, sd = np.where(kp, p, F4(0)), see & kp
                l = l * a + (p).sum(-1)
                part = pv(narrow(pd, c.dt), c.v[:, :, np.minimum(cols, c.S - 1)], sd)
                fac = np.broadcast_to(a[..., None], acc.shape)
                if F == "frag" and n0 + BN >= hi:
                    fac = fac.copy()
                    fac[..., c.E // 2:] = 1
                acc = mul(acc, fac) + part
                m = mn
            if c.sinks is not None:
                sk = (c.sinks * LOG2E)[None, :, None]
                mn = np.maximum(m, sk)
                a = np.exp2(m - safe(mn))
                l, acc, m = l * a + np.exp2(sk - safe(mn)), mul(acc, a[..., None]), mn
            out[:, :, rows] = finish(acc, l) / c.keep
            lse[:, :, rows] = np.where(l == 0, F4(-INF), (m + np.log2(np.where(l == 0, F4(1), l))) * LN2)
        return c.give(out, lse, want)
    return kernel


# ---------------------------------------------------------------- 2. lazy rescaling (Blackwell style)
def flash_lazy(F, want, BM, BN):
    @quiet
    def kernel(query, key, value, **o):
        c = Ctx(query, key, value, **o)
        out = np.zeros((c.B, c.H, c.T, c.E), F4)
        lse = np.full((c.B, c.H, c.T), -INF, F4)
        for m0 in range(0, c.T, BM):
            rows = np.arange(m0, min(m0 + BM, c.T))
            R = len(rows)
            ref = np.full((c.B, c.H, R), -INF, F4)
            top = ref.copy()
            l = np.zeros((c.B, c.H, R), F4)
            acc = np.zeros((c.B, c.H, R, c.E), F4)
            for n0 in range(0, c.S, BN):
                if c.causal and n0 > int(c.off.max()) + int(rows[-1]):
                    break
                cols = np.arange(n0, min(n0 + BN, c.S))
                s, see = c.block(rows, cols)
                s2 = s * LOG2E
                top = np.maximum(top, s2.max(-1))
                new = np.where(top - ref <= 8, ref, top)        # rescale only when the maximum grew by more than 2^8
                new = np.where(ref == -INF, top, new)
                a = np.where(ref == -INF, F4(0), np.exp2(ref - safe(new)))
                p = np.where(see, np.exp2(s2 - safe(new)[..., None]), F4(0))
                l = l * a + p.sum(-1)
                acc = mul(acc, a[..., None]) + pv(narrow(p, c.dt), c.v[:, :, cols], see)
                ref = new
            out[:, :, rows] = finish(acc, l)
            base = top if F == "top" else ref
            lse[:, :, rows] = np.where(l == 0, F4(-INF), (base + np.log2(np.where(l == 0, F4(1), l))) * LN2)
        return c.give(out, lse, want)
    return kernel


# ---------------------------------------------------------------- 3. mma.m16n8 register layout, row sums held by four lanes
def mma_lanes(F, want, BM, BN):
    @quiet
    def kernel(query, key, value, **o):
        c = Ctx(query, key, value, **o)
        out = np.zeros((c.B, c.H, c.T, c.E), F4)
        lse = np.full((c.B, c.H, c.T), -INF, F4)
        elane = (np.arange(c.E) // 2) % 4
        for m0 in range(0, c.T, BM):
            rows = np.arange(m0, min(m0 + BM, c.T))
            R = len(rows)
            m = np.full((c.B, c.H, R), -INF, F4)
            l = np.zeros((c.B, c.H, R, 4), F4)
            acc = np.zeros((c.B, c.H, R, c.E), F4)
            for n0 in range(0, c.S, BN):
                cols = np.arange(n0, min(n0 + BN, c.S))
                s, see = c.block(rows, cols)
                mn = np.maximum(m, s.max(-1))
                a = np.exp(m - safe(mn))[..., None]
                p = np.where(see, np.exp(s - safe(mn)[..., None]), F4(0))
                lane = ((cols - n0) // 2) % 4
                l = l * a + np.stack([p[..., lane == t].sum(-1) for t in range(4)], -1)
                acc = mul(acc, a) + pv(narrow(p, c.dt), c.v[:, :, cols], see)
                m = mn
            l = l + l[..., [1, 0, 3, 2]]                        # shfl_xor 1
            if F != "xor1":
                l = l + l[..., [2, 3, 0, 1]]                    # shfl_xor 2
            d = l[..., elane]
            o_ = np.where(np.isinf(acc), acc, acc / np.where(d == 0, F4(1), d))
            out[:, :, rows] = o_
            l0 = l[..., 0]
            lse[:, :, rows] = np.where(l0 == 0, F4(-INF), safe(m) + np.log(np.where(l0 == 0, F4(1), l0)))
        return c.give(out, lse, want)
    return kernel


# ---------------------------------------------------------------- 4. persistent, pipelined, keys walked backwards
def persistent(F, want, BM, BN, stages=2):
    @quiet
    def kernel(query, key, value, **o):
        c = Ctx(query, key, value, **o)
        N = c.B * c.H
        flat = np.zeros((N * c.T + BM, c.E), F4)
        fl = np.full(N * c.T + BM, -INF, F4)
        kbuf = np.zeros((stages, c.B, c.H, BN, c.D), F4)
        vbuf = np.zeros((stages, c.B, c.H, BN, c.E), F4)
        m = np.full((c.B, c.H, BM), -INF, F4)
        l = np.zeros((c.B, c.H, BM), F4)
        acc = np.zeros((c.B, c.H, BM, c.E), F4)
        starts = list(range(0, c.T, BM))
        if F != "oob" and c.causal:
            starts = starts[::-1]                              # longest work first
        for m0 in starts:
            rows = np.arange(m0, m0 + BM)
            real = rows < c.T
            qt = np.where(real[:, None], c.q[:, :, np.minimum(rows, c.T - 1)], F4(0))
            hi = c.S
            if c.causal:
                hi = max(0, min(c.S, int(c.off.max()) + min(m0 + BM, c.T)))
            tiles = list(range(-(-hi // BN)))[::-1]
            n = len(tiles)

            def fetch(buf, src, it):
                j = tiles[it] * BN + np.arange(BN)
                t = src[:, :, np.minimum(j, c.S - 1)].copy()
                t[:, :, j >= c.S] = 0
                buf[it % stages] = t

            if n > 0 or F != "stale":
                m = np.full((c.B, c.H, BM), -INF, F4)
                l = np.zeros((c.B, c.H, BM), F4)
                acc = np.zeros((c.B, c.H, BM, c.E), F4)
            for it in range(min(stages, n)):
                fetch(kbuf, c.k, it)
                fetch(vbuf, c.v, it)
            for it in range(n):
                cols = tiles[it] * BN + np.arange(BN)
                kt, vt = kbuf[it % stages], vbuf[it % stages]
                see = c.see(rows, cols)
                s = c.extras((qt @ kt.swapaxes(-1, -2)) * c.scale, rows, cols)
                see = see & (s != -INF)
                s = np.where(see, s, F4(-INF))
                top = s.max(-1)
                if F == "warpmax":
                    top = np.broadcast_to(top.max(-1, keepdims=True), top.shape)
                mn = np.maximum(m, top)
                a = np.exp(m - safe(mn))
                p = np.where(see, np.exp(s - safe(mn)[..., None]), F4(0))
                l = l * a + p.sum(-1)
                acc = mul(acc, a[..., None]) + pv(narrow(p, c.dt), vt, see)
                m = mn
                if it + stages < n:
                    fetch(kbuf, c.k, it + stages)
                if it + stages < (n - 1 if F == "vstage" else n):
                    fetch(vbuf, c.v, it + stages)
            tile = finish(acc, l)
            tl = np.where(l == 0, F4(-INF), safe(m) + np.log(np.where(l == 0, F4(1), l)))
            # epilogue: registers -> shared memory (swizzled chunks of 8) -> global
            nc = -(-c.E // 8)
            bits = (nc & -nc) - 1
            pad = np.zeros((c.B, c.H, BM, nc * 8), F4)
            pad[..., : c.E] = tile
            r = np.arange(BM)[:, None]
            ch = np.arange(nc)[None, :]
            sm = np.zeros((c.B, c.H, BM, nc, 8), F4)
            sm[:, :, r, ch ^ (r & 7 & bits)] = pad.reshape(c.B, c.H, BM, nc, 8)
            back = ch ^ (r & (3 if F == "swizzle" else 7) & bits)
            tile = sm[:, :, r, back].reshape(c.B, c.H, BM, nc * 8)[..., : c.E]
            tile, tl2 = tile.reshape(N, BM, c.E), tl.reshape(N, BM)
            w = BM if F == "oob" else int(real.sum())
            for x in range(N):
                flat[x * c.T + m0: x * c.T + m0 + w] = tile[x, :w]
                fl[x * c.T + m0: x * c.T + m0 + w] = tl2[x, :w]
        return c.give(flat[: N * c.T], fl[: N * c.T], want)
    return kernel


# ---------------------------------------------------------------- 5. flash-decoding: heads of a group packed as rows
def splitkv(F, want, splits):
    @quiet
    def kernel(query, key, value, **o):
        c = Ctx(query, key, value, **o)
        g, K, T = c.g, c.K, c.T
        R = g * T
        r = np.arange(R)
        hh, tt = r % g, r // g                                 # token-major packing
        qp = c.q.reshape(c.B, K, g, T, c.D).swapaxes(2, 3).reshape(c.B, K, R, c.D)
        kk, vv = c.k[:, ::g], c.v[:, ::g]
        tm = r % T if F == "order" else tt
        size = -(-(-(-c.S // splits)) // 16) * 16
        parts = []
        head = (np.arange(K)[:, None] * g + hh)                # (K, R)
        for z in range(splits):
            cols = np.arange(min(z * size, c.S), min((z + 1) * size, c.S))
            if len(cols) == 0:
                parts.append((np.zeros((c.B, K, R, c.E), F4), np.full((c.B, K, R), 0.0 if F == "guard" else -INF, F4)))
                continue
            s = (qp @ kk[:, :, cols].swapaxes(-1, -2)) * c.scale
            if c.softcap is not None:
                s = F4(c.softcap) * np.tanh(s / F4(c.softcap))
            pos = c.off[:, None, None, None] + tm[:, None]
            if c.slopes is not None:
                s = s - c.slopes[head][None, :, :, None] * np.abs(pos - cols).astype(F4)
            see = np.broadcast_to(cols < c.len[:, None, None, None], (c.B, 1, R, len(cols)))
            if c.causal:
                see = see & (cols <= pos)
            if c.window is not None:
                if c.window[0] is not None:
                    see = see & (cols >= pos - c.window[0])
                if c.window[1] is not None:
                    see = see & (cols <= pos + c.window[1])
            see = see & (s != -INF)
            s = np.where(see, s, F4(-INF))
            m = s.max(-1)
            p = np.where(see, np.exp(s - safe(m)[..., None]), F4(0))
            l = p.sum(-1)
            acc = pv(narrow(p, c.dt), vv[:, :, cols], see)
            e = safe(m) + np.log(np.where(l == 0, F4(1), l))
            if F != "guard":
                e = np.where(l == 0, F4(-INF), e)
            parts.append((finish(acc, l), e))
        while len(parts) > 1:                                  # pairwise tree
            nxt = [merge(*parts[2 * i], *parts[2 * i + 1]) for i in range(len(parts) // 2)]
            if len(parts) % 2 and F != "tree":
                nxt.append(parts[-1])
            parts = nxt
        out, lse = parts[0]
        out = out.reshape(c.B, K, T, g, c.E).swapaxes(2, 3).reshape(c.B, c.H, T, c.E)
        lse = lse.reshape(c.B, K, T, g).swapaxes(2, 3).reshape(c.B, c.H, T)
        if c.sinks is not None:
            out, lse = merge(out, lse, np.zeros_like(out), np.broadcast_to(c.sinks[None, :, None], lse.shape).astype(F4))
        return c.give(out, lse, want)
    return kernel


# ---------------------------------------------------------------- 6. prefix stage + extend stage (chunked prefill)
def extend(F, want, BN):
    @quiet
    def kernel(query, key, value, **o):
        c = Ctx(query, key, value, **o)
        P = int(np.clip(c.off.min(), 0, c.S))
        rows = np.arange(c.T)
        m = np.full((c.B, c.H, c.T), -INF, F4)
        l = np.zeros((c.B, c.H, c.T), F4)
        acc = np.zeros((c.B, c.H, c.T, c.E), F4)
        for a0, a1, stage in ((0, P, 0), (P, c.S, 1)):
            for n0 in range(a0, a1, BN):
                cols = np.arange(n0, min(n0 + BN, a1))
                s, see = c.block(rows, cols)
                if F == "local" and stage == 0 and c.window is not None:
                    keep, c.off = c.off, np.zeros_like(c.off)  # rows counted from the start of the extend part
                    win, causal, c.causal = c.window, c.causal, False
                    c.window = (win[0], None)
                    see = c.see(rows, cols)
                    c.off, c.window, c.causal = keep, win, causal
                    if c.window[1] is not None or c.causal:
                        see = see & (cols <= c.off[:, None, None, None] + rows[:, None] + (0 if c.causal else c.window[1]))
                    s = c.extras(c.qk(rows, cols), rows, cols)
                    see = see & (s != -INF)
                    s = np.where(see, s, F4(-INF))
                mn = np.maximum(m, s.max(-1))
                a = np.exp(m - safe(mn))
                p = np.where(see, np.exp(s - safe(mn)[..., None]), F4(0))
                l = l * a + p.sum(-1)
                acc = mul(acc, a[..., None]) + pv(narrow(p, c.dt), c.v[:, :, cols], see)
                m = mn
        if c.sinks is not None:
            m, l, acc = add_sink(m, l, acc, c.sinks[None, :, None])
        lse = np.where(l == 0, F4(-INF), safe(m) + np.log(np.where(l == 0, F4(1), l)))
        return c.give(finish(acc, l), lse, want)
    return kernel


# ---------------------------------------------------------------- 7. stream-K: workers own even shares of all key tiles
def streamk(F, want, BM, BN, workers):
    @quiet
    def kernel(query, key, value, **o):
        c = Ctx(query, key, value, **o)
        work = []
        for m0 in range(0, c.T, BM):
            hi = c.S
            if c.causal:
                hi = max(1, min(c.S, int(c.off.max()) + min(m0 + BM, c.T)))
            work += [(m0, n0) for n0 in range(0, hi, BN)]
        share = -(-len(work) // workers)
        peers = {}
        for w in range(workers):
            mine = work[w * share:(w + 1) * share]
            for m0 in sorted({x[0] for x in mine}):
                rows = np.arange(m0, min(m0 + BM, c.T))
                R = len(rows)
                m = np.full((c.B, c.H, R), -INF, F4)
                l = np.zeros((c.B, c.H, R), F4)
                acc = np.zeros((c.B, c.H, R, c.E), F4)
                for _, n0 in [x for x in mine if x[0] == m0]:
                    cols = np.arange(n0, min(n0 + BN, c.S))
                    s, see = c.block(rows, cols)
                    mn = np.maximum(m, s.max(-1))
                    a = np.exp(m - safe(mn))
                    p = np.where(see, np.exp(s - safe(mn)[..., None]), F4(0))
                    l = l * a + p.sum(-1)
                    acc = mul(acc, a[..., None]) + pv(narrow(p, c.dt), c.v[:, :, cols], see)
                    m = mn
                e = np.where(l == 0, F4(-INF), safe(m) + np.log(np.where(l == 0, F4(1), l)))
                peers.setdefault(m0, []).append((finish(acc, l), e))
        out = np.zeros((c.B, c.H, c.T, c.E), F4)
        lse = np.full((c.B, c.H, c.T), -INF, F4)
        for m0, got in peers.items():
            rows = slice(m0, min(m0 + BM, c.T))
            if F == "peers":
                got = got[:2]
            o_, e_ = got[0]
            for x in got[1:]:
                o_, e_ = merge(o_, e_, *x)
            out[:, :, rows], lse[:, :, rows] = o_, e_
        return c.give(out, lse, want)
    return kernel


# ---------------------------------------------------------------- 8. float32 products out of bfloat16 pieces
def bf16x3(F, want, BN):
    def pieces(x):
        bf = ml_dtypes.bfloat16
        a = x.astype(bf).astype(F4)
        b = (x - a).astype(bf).astype(F4)
        return a, b, (x - a - b).astype(bf).astype(F4)

    @quiet
    def kernel(query, key, value, **o):
        c = Ctx(query, key, value, **o)
        rows = np.arange(c.T)
        q1, q2, q3 = pieces(c.q)
        m = np.full((c.B, c.H, c.T), -INF, F4)
        l = np.zeros((c.B, c.H, c.T), F4)
        acc = np.zeros((c.B, c.H, c.T, c.E), F4)
        for n0 in range(0, c.S, BN):
            cols = np.arange(n0, min(n0 + BN, c.S))
            k1, k2, k3 = (x.swapaxes(-1, -2) for x in pieces(c.k[:, :, cols]))
            if n0 + BN < c.S or F != "cross":
                s = q2 @ k2 + q1 @ k3 + q3 @ k1 + (q2 @ k1 + q1 @ k2) + q1 @ k1
            else:                                              # peeled last tile
                s = q2 @ k2 + q1 @ k3 + q3 @ k1 + (q1 @ k2 + q1 @ k2) + q1 @ k1
            s = c.extras(s * c.scale, rows, cols)
            see = c.see(rows, cols) & (s != -INF)
            s = np.where(see, s, F4(-INF))
            mn = np.maximum(m, s.max(-1))
            a = np.exp(m - safe(mn))
            p = np.where(see, np.exp(s - safe(mn)[..., None]), F4(0))
            l = l * a + p.sum(-1)
            acc = mul(acc, a[..., None]) + pv(p, c.v[:, :, cols], see)
            m = mn
        lse = np.where(l == 0, F4(-INF), safe(m) + np.log(np.where(l == 0, F4(1), l)))
        return c.give(finish(acc, l), lse, want)
    return kernel


# ---------------------------------------------------------------- 8b. eager: whole score matrix, softmax, dropout, product
def eager(F, want):
    @quiet
    def kernel(query, key, value, **o):
        c = Ctx(query, key, value, **o)
        s, see = c.block(np.arange(c.T), np.arange(c.S))
        m = s.max(-1)
        if c.sinks is not None:
            m = np.maximum(m, c.sinks[None, :, None])
        e = np.where(see, np.exp(s - safe(m)[..., None]), F4(0))
        l = e.sum(-1)
        if c.sinks is not None:
            l = l + np.exp(c.sinks[None, :, None] - safe(m))
        p = e / np.where(l == 0, F4(1), l)[..., None]
        if c.drop is not None:
            keep = c.drop
            if F == "layout":
                keep = np.ascontiguousarray(keep).reshape(c.B, c.T, c.H, c.S).swapaxes(1, 2)
            p, see = np.where(keep, p / c.keep, F4(0)), see & keep
        lse = np.where(l == 0, F4(-INF), safe(m) + np.log(np.where(l == 0, F4(1), l)))
        return c.give(pv(narrow(p, c.dt), c.v, see), lse, want)
    return kernel


# ---------------------------------------------------------------- 9. packed sequences
def online(q, k, v, pos, dt, BN, scale, jbase=0, causal=False, window=None, softcap=None, slopes=None, dist=None,
           sinks=None):
    """(H, R, D) rows over (H, N, D) keys; pos: position of each row; returns out, lse"""
    H, R, _ = q.shape
    m = np.full((H, R), -INF, F4)
    l = np.zeros((H, R), F4)
    acc = np.zeros((H, R, v.shape[-1]), F4)
    for n0 in range(0, k.shape[1], BN):
        cols = np.arange(n0, min(n0 + BN, k.shape[1]))
        s = (q @ k[:, cols].swapaxes(-1, -2)) * scale
        if softcap is not None:
            s = F4(softcap) * np.tanh(s / F4(softcap))
        if slopes is not None:
            d = (pos if dist is None else dist)[:, None] - cols
            s = s - slopes[:, None, None] * np.abs(d).astype(F4)
        see = np.ones((R, len(cols)), bool)
        if causal:
            see &= cols <= pos[:, None]
        if window is not None:
            if window[0] is not None:
                see &= cols >= pos[:, None] - window[0]
            if window[1] is not None:
                see &= cols <= pos[:, None] + window[1]
        see = see & (s != -INF)
        s = np.where(see, s, F4(-INF))
        mn = np.maximum(m, s.max(-1))
        a = np.exp(m - safe(mn))
        p = np.where(see, np.exp(s - safe(mn)[..., None]), F4(0))
        l = l * a + p.sum(-1)
        acc = mul(acc, a[..., None]) + pv(narrow(p, dt), v[:, cols], see)
        m = mn
    if sinks is not None:
        m, l, acc = add_sink(m, l, acc, np.asarray(sinks, F4)[:, None])
    lse = np.where(l == 0, F4(-INF), safe(m) + np.log(np.where(l == 0, F4(1), l)))
    return finish(acc, l), lse


def varlen(F, want, BM, BN):
    @quiet
    def kernel(query, key, value, *, cu_q, cu_kv, causal=False, window=None, scale=None, softcap=None,
               alibi_slopes=None, sinks=None):
        H, total, D = query.shape
        K, E = key.shape[0], value.shape[-1]
        g = H // K
        hm = np.arange(H) // g
        if F == "magic":
            hm = (np.arange(H) * (65536 // g)) >> 16           # h // g by a multiply and a shift
        cq, ck = np.asarray(cu_q).astype(np.int64), np.asarray(cu_kv).astype(np.int64)
        n = len(cq) - 1
        lq, lk = np.diff(cq), np.diff(ck)
        sc = F4(1 / math.sqrt(D) if scale is None else scale)
        slopes = None if alibi_slopes is None else np.asarray(alibi_slopes, F4)
        q = query.astype(F4)
        k, v = key.astype(F4)[hm], value.astype(F4)[hm]
        out = np.zeros((H, total, E), F4)
        lse = np.full((H, total), -INF, F4)
        # row -> sequence
        side = "left" if F == "side" else "right"
        owner = np.clip(np.searchsorted(cq, np.arange(total), side=side) - 1, 0, max(n - 1, 0))
        maxq = int(lq.max()) if n else 0
        maxk = int(lk.max()) if n else 0
        wide = np.full((H, n * maxq + 1), -INF, F4)
        grid = -(-maxq // BM)
        if F == "grid" and n:
            grid = -(-(-(-total // n)) // BM)
        if F == "side":
            grid += 1
        alive = [b for b in range(n) if lq[b] > 0]
        for w, b in enumerate(alive):
            kvb = w if F == "compact" else b
            ks, vs = k[:, ck[kvb]:ck[kvb + 1]], v[:, ck[kvb]:ck[kvb + 1]]
            off = int(lk[kvb] - lq[b])
            if F == "maxoff":
                off = maxk - maxq
            own = np.nonzero(owner == b)[0]
            for t in range(grid):
                loc = own - cq[b]
                rows = own[(loc >= t * BM) & (loc < (t + 1) * BM)]
                if len(rows) == 0:
                    continue
                i = rows - cq[b]
                dist = None
                if F == "global":
                    dist = rows - ck[kvb] + off                # row number in the batch against key number in the batch
                o_, e_ = online(q[:, rows], ks, vs, i + off, query.dtype, BN, sc, causal=causal, window=window,
                                softcap=softcap, slopes=slopes, dist=dist, sinks=sinks)
                out[:, rows], lse[:, rows] = o_, e_
                at = b * maxq + i
                wide[:, np.minimum(at, wide.shape[1] - 1)] = e_
        if F == "wide":
            full = np.full((H, total), -INF, F4)
            x = min(total, n * maxq)
            full[:, :x] = wide[:, :x]
            lse = full
        out = out.astype(query.dtype)
        return (out, lse) if want else out
    return kernel


# ---------------------------------------------------------------- 10. pages
def paged(F, want, BN, parts=1):
    @quiet
    def kernel(query, key_pages, value_pages, *, block_table, kv_lengths, causal=False, window=None, scale=None,
               softcap=None, alibi_slopes=None, sinks=None):
        B, H, T, D = query.shape
        P, K, ps, E = value_pages.shape
        g = H // K
        hm = np.arange(H) // g
        dt = query.dtype
        tab = np.asarray(block_table).astype(np.int64)
        length = np.asarray(kv_lengths).astype(np.int64)
        width = tab.shape[1]
        sc = F4(1 / math.sqrt(D) if scale is None else scale)
        slopes = None if alibi_slopes is None else np.asarray(alibi_slopes, F4)
        krows, vrows = key_pages.reshape(P * K * ps, D), value_pages.reshape(P * K * ps, E)
        out = np.zeros((B, H, T, E), F4)
        lse = np.full((B, H, T), -INF, F4)
        line = width
        if F == "line":
            line = max(1, -(-int(length.max(initial=0)) // ps))

        def locate(b, cols, n0):
            """row of the flat cache of each key, (K, len(cols))"""
            page = cols // ps
            if F == "onepage":
                first = tab[b, min(n0 // ps, width - 1)]
                phys = first + page - n0 // ps
            else:
                phys = tab.reshape(-1)[np.minimum(b * line + np.minimum(page, width - 1), tab.size - 1)]
            phys = np.clip(phys, 0, P - 1)
            return phys * (K * ps) + np.arange(K)[:, None] * ps + cols % ps

        for b in range(B):
            L = int(min(length[b], width * ps))
            off = int(length[b]) - T
            pos = off + np.arange(T)
            if F == "lastpage" and L > 0:
                L = (-(-L // ps) - 1) * ps + L % ps
            q = query[b].astype(F4)
            pages = -(-L // ps)
            per = -(-pages // parts) * ps                       # whole pages a partition
            total_o = np.zeros((H, T, E), F4)
            total_e = np.full((H, T), -INF, F4)
            for z in range(parts):
                a0, a1 = min(z * per, L), min((z + 1) * per, L)
                if F == "overlap":
                    even = -(-L // parts)
                    a0, a1 = min(z * even, L) // ps * ps, min(-(-min((z + 1) * even, L) // ps) * ps, L)
                end = a1
                if F == "capmask" and a1 == L and a1 > a0:
                    end = a0 + -(-(a1 - a0) // BN) * BN         # the last tile in full
                if a1 <= a0:
                    continue
                if window is not None and window[0] is not None and a1 <= pos[0] - window[0]:
                    continue                                    # no row of this sequence sees it
                m = np.full((H, T), -INF, F4)
                l = np.zeros((H, T), F4)
                acc = np.zeros((H, T, E), F4)
                for n0 in range(a0, end, BN):
                    cols = np.arange(n0, min(n0 + BN, end))
                    at = locate(b, cols, n0)
                    kat = at
                    if F == "short":
                        kat = np.minimum(((at * D) & 0xFFFF) // D, P * K * ps - 1)
                    kt, vt = krows[kat].astype(F4)[hm], vrows[at].astype(F4)[hm]
                    s = (q @ kt.swapaxes(-1, -2)) * sc
                    see = np.broadcast_to(cols < L, (T, len(cols)))
                    if causal and F != "draft":
                        see = see & (cols <= pos[:, None])
                    if window is not None:
                        if window[0] is not None:
                            see = see & (cols >= pos[:, None] - window[0])
                        if window[1] is not None:
                            see = see & (cols <= pos[:, None] + window[1])
                    if F == "capmask" and softcap is not None:
                        s = np.where(see, s, F4(-INF))
                        see = np.ones_like(see)
                    if softcap is not None:
                        s = F4(softcap) * np.tanh(s / F4(softcap))
                    if slopes is not None:
                        s = s - slopes[:, None, None] * np.abs(pos[:, None] - cols).astype(F4)
                    see = see & (s != -INF)
                    s = np.where(see, s, F4(-INF))
                    mn = np.maximum(m, s.max(-1))
                    a = np.exp(m - safe(mn))
                    p = np.where(see, np.exp(s - safe(mn)[..., None]), F4(0))
                    l = l * a + p.sum(-1)
                    acc = mul(acc, a[..., None]) + pv(narrow(p, dt), vt, see)
                    m = mn
                if sinks is not None and F == "sink0" and z == 0:
                    m, l, acc = add_sink(m, l, acc, np.asarray(sinks, F4)[:, None])
                e = np.where(l == 0, F4(-INF), safe(m) + np.log(np.where(l == 0, F4(1), l)))
                total_o, total_e = merge(total_o, total_e, finish(acc, l), e)
            if sinks is not None and F != "sink0":
                sk = np.broadcast_to(np.asarray(sinks, F4)[:, None], total_e.shape)
                total_o, total_e = merge(total_o, total_e, np.zeros_like(total_o), sk)
            out[b], lse[b] = total_o, total_e
        out = out.astype(dt)
        return (out, lse) if want else out
    return kernel


# ---------------------------------------------------------------- 11. latent attention, absorbed
def mla(F, want, BN, HB=8, CH=64):
    @quiet
    def kernel(q_nope, q_rope, kv_latent, k_rope, w_uk, w_uv, *, form="absorb", causal=False, scale=None,
               kv_lengths=None, q_offset=None):
        lead = q_nope.shape[:-3]
        H, T, N = q_nope.shape[-3:]
        R = q_rope.shape[-1]
        S, C = kv_latent.shape[-2:]
        E = w_uv.shape[1]
        B = math.prod(lead)
        dt = q_nope.dtype
        qn, qr = q_nope.reshape(B, H, T, N).astype(F4), q_rope.reshape(B, H, T, R).astype(F4)
        lat, kr = kv_latent.reshape(B, 1, S, C).astype(F4), k_rope.reshape(B, 1, S, R).astype(F4)
        uk, uv = w_uk.astype(F4), w_uv.astype(F4)
        sc = F4(1 / math.sqrt(N + R) if scale is None else scale)
        ln = np.minimum(np.broadcast_to(S if kv_lengths is None else np.asarray(kv_lengths), lead).reshape(B), S)
        off = ln - T if q_offset is None else np.broadcast_to(np.asarray(q_offset), lead).reshape(B)
        out = np.zeros((B, H, T, E), F4)
        lse = np.full((B, H, T), -INF, F4)
        pos = off[:, None, None, None] + np.arange(T)[:, None]
        for hb in range(0, H, HB):
            h0 = max(0, min(hb, H - HB))                       # last tile moved inward
            heads = np.arange(h0, min(h0 + HB, H))
            wk = uk[(hb + np.arange(len(heads))) % H] if F == "heads" else uk[heads]
            ql = narrow(qn[:, heads] @ wk, dt)
            nh = len(heads)
            groups = []
            for _ in range(2):                                 # two consumer groups: even and odd key tiles
                groups.append([np.full((B, nh, T), -INF, F4), np.zeros((B, nh, T), F4), np.zeros((B, nh, T, C), F4)])
            for it, n0 in enumerate(range(0, S, BN)):
                cols = np.arange(n0, min(n0 + BN, S))
                lt = lat[:, :, cols]
                rt = kr[:, :, cols]
                vt = lt
                if F == "view":
                    vt = np.concatenate([lt, rt], -1).reshape(B, 1, -1)[..., : len(cols) * C].reshape(B, 1, len(cols), C)
                s = qr[:, heads] @ rt.swapaxes(-1, -2)
                for c0 in range(0, C, CH):
                    if F == "chunk":
                        a0 = max(0, min(c0, C - CH))
                        s = s + ql[..., a0:a0 + CH] @ lt[..., a0:a0 + CH].swapaxes(-1, -2)
                    else:
                        s = s + ql[..., c0:c0 + CH] @ lt[..., c0:c0 + CH].swapaxes(-1, -2)
                s = s * sc
                see = np.broadcast_to(cols < ln[:, None, None, None], (B, 1, T, len(cols)))
                if causal:
                    see = see & (cols <= pos)
                see = see & (s != -INF)
                s = np.where(see, s, F4(-INF))
                st = groups[it % 2]
                mn = np.maximum(st[0], s.max(-1))
                a = np.exp(st[0] - safe(mn))
                p = np.where(see, np.exp(s - safe(mn)[..., None]), F4(0))
                st[1] = st[1] * a + p.sum(-1)
                st[2] = mul(st[2], a[..., None]) + pv(narrow(p, dt), vt, see)
                st[0] = mn
            (ma, la, aa), (mb, lb, ab) = groups
            mn = np.maximum(ma, mb)
            xa, xb = np.exp(ma - safe(mn)), np.exp(mb - safe(mn))
            if F == "twogroups":
                xa, xb = np.where(ma == -INF, xa, F4(1)), np.where(mb == -INF, xb, F4(1))
            l = la * xa + lb * xb
            acc = mul(aa, xa[..., None]) + mul(ab, xb[..., None])
            o_ = finish(acc, l)
            out[:, heads] = narrow(o_, dt) @ uv[heads].swapaxes(-1, -2)
            lse[:, heads] = np.where(l == 0, F4(-INF), safe(mn) + np.log(np.where(l == 0, F4(1), l)))
        out = out.reshape(lead + (H, T, E)).astype(dt)
        return (out, lse.reshape(lead + (H, T))) if want else out
    return kernel


# ---------------------------------------------------------------- cases
FAULTS = []


def rand(rng, shape, dtype, size=1.0):
    return (rng.standard_normal(shape) * size).astype(DT[dtype])


def dense(name, sentence, dtype, lse, make, tag, shape, options=None, qsize=1.0, rowsize=None, **cfg):
    """shape: lead, H, K, T, S, D, E"""
    lead, H, K, T, S, D, E = shape
    seed = 7000 + len(FAULTS)

    def build(wrong=True):
        rng = np.random.default_rng(seed)
        q = rng.standard_normal(lead + (H, T, D)) * qsize
        if rowsize is not None:
            q = q * rowsize(np.arange(T))[:, None]
        arrays = (q.astype(DT[dtype]), rand(rng, lead + (K, S, D), dtype), rand(rng, lead + (K, S, E), dtype))
        opts = {} if options is None else options(rng, lead, H, T, S)
        return make(tag if wrong else "", lse, **cfg), arrays, opts
    FAULTS.append((name, sentence, {"form": "dense", "dtype": dtype, "lse": lse}, build))


def packed(name, sentence, dtype, lse, tag, H, K, D, E, lq, lk, options=None, BM=32, BN=48):
    seed = 7000 + len(FAULTS)

    def build(wrong=True):
        rng = np.random.default_rng(seed)
        cq, ck = np.cumsum([0] + list(lq)).astype(np.int32), np.cumsum([0] + list(lk)).astype(np.int32)
        arrays = (rand(rng, (H, sum(lq), D), dtype, 1.3), rand(rng, (K, sum(lk), D), dtype), rand(rng, (K, sum(lk), E), dtype))
        opts = {} if options is None else options(rng, H)
        return varlen(tag if wrong else "", lse, BM, BN), arrays, {"cu_q": cq, "cu_kv": ck, **opts}
    FAULTS.append((name, sentence, {"form": "packed", "dtype": dtype, "lse": lse}, build))


def pages(name, sentence, dtype, lse, tag, H, K, T, D, E, ps, lengths, options=None, BN=32, parts=1, spare=3, qsize=1.3):
    seed = 7000 + len(FAULTS)

    def build(wrong=True):
        rng = np.random.default_rng(seed)
        B = len(lengths)
        need = [-(-x // ps) for x in lengths]
        width = max(need) + spare
        P = sum(need) + 4
        perm = rng.permutation(P)
        table = rng.integers(0, P, (B, width)).astype(np.int32)
        at = 0
        for b in range(B):
            table[b, : need[b]] = perm[at:at + need[b]]
            at += need[b]
        arrays = (rand(rng, (B, H, T, D), dtype, qsize), rand(rng, (P, K, ps, D), dtype), rand(rng, (P, K, ps, E), dtype))
        opts = {} if options is None else options(rng, H)
        return (paged(tag if wrong else "", lse, BN, parts), arrays,
                {"block_table": table, "kv_lengths": np.array(lengths, np.int32), **opts})
    FAULTS.append((name, sentence, {"form": "paged", "dtype": dtype, "lse": lse}, build))


def latent(name, sentence, dtype, lse, tag, lead, H, T, S, N, R, C, E, options=None, BN=32):
    seed = 7000 + len(FAULTS)

    def build(wrong=True):
        rng = np.random.default_rng(seed)
        arrays = (rand(rng, lead + (H, T, N), dtype, 1.2), rand(rng, lead + (H, T, R), dtype, 1.2), rand(rng, lead + (S, C), dtype),
                  rand(rng, lead + (S, R), dtype), rand(rng, (H, N, C), dtype, C ** -0.5), rand(rng, (H, E, C), dtype, C ** -0.5))
        opts = {} if options is None else options(rng, H)
        return mla(tag if wrong else "", lse, BN), arrays, {"form": "absorb", **opts}
    FAULTS.append((name, sentence, {"form": "latent", "dtype": dtype, "lse": lse}, build))


CAUSAL = lambda *a: {"causal": True}

dense("vector_bounds_check",
      "The end of the keys is tested once per vector of 8, so the bound is S rounded up to 8 and the (clamped) loads deliver the last key again: with 203 keys "
      "key 202 is counted six times instead of once (5 phantom copies, positions 203..207), in all rows and heads of output and lse.",
      "float32", True, flash_fwd, "vec8", ((2,), 6, 3, 70, 203, 40, 40), BM=48, BN=64)
dense("diagonal_tile_count",
      "The number of key tiles of a causal row tile is computed from the tile's first row instead of its last: with row tiles of 64 and key tiles of 48 the loop ends with "
      "the key tile that holds the diagonal of the tile's first row, so later rows of each row tile miss their newest keys (those past the next multiple of 48).",
      "bfloat16", False, flash_fwd, "diag", ((), 8, 2, 150, 230, 64, 64), CAUSAL, BM=64, BN=48)
dense("bias_in_log2_units",
      "Scores are multiplied by log2(e) for exp2, the bias is added afterwards without that factor, so it works with 0.693 of its strength in all rows, keys and heads.",
      "float16", True, flash_fwd, "bias2", ((), 5, 5, 61, 133, 32, 48),
      lambda rng, lead, H, T, S: {"bias": rng.standard_normal((H, T, S)).astype(np.float32)}, BM=32, BN=32)
dense("window_tile_start",
      "The first key tile of a sliding window is found from the last row of the row tile instead of the first: window (75, 0), row tiles of 96, key tiles of 32: the upper rows of each "
      "row tile lose the oldest one to three tiles of keys of their window.",
      "float32", False, flash_fwd, "left", ((2,), 4, 2, 190, 260, 48, 48),
      lambda *a: {"causal": True, "window": (75, 0)}, BM=96, BN=32)
dense("lazy_rescale_lse",
      "The accumulator is only rescaled when the running maximum grows by more than 2^8 (lazy rescaling); the lse is then formed with the true maximum although the sum is still "
      "relative to the old one. Output right; lse too large by the growth of the maximum in every row whose maximum is not in its first 64 keys.",
      "bfloat16", True, flash_lazy, "top", ((), 12, 4, 90, 310, 64, 64), CAUSAL, qsize=1.5, BM=64, BN=64)
dense("last_tile_half_rescaled",
      "In the peeled last key tile only the first accumulator fragment is rescaled: output columns E/2 and up (36..71) keep the scale of the old maximum in rows whose maximum lies in the last key tile "
      "(keys 320..334 for the last row tiles, the diagonal tile in others). lse is right.",
      "float32", True, flash_fwd, "frag", ((), 6, 2, 100, 335, 64, 72), CAUSAL, qsize=1.4, BM=32, BN=64)
dense("quad_reduction_one_step",
      "The four lanes that share a row reduce their partial row sums with one butterfly step (xor 1) instead of two: lanes 0,1 divide by the sum over keys with j%8 in 0..3, lanes 2,3 by that over j%8 in 4..7. "
      "So all rows are about twice too large, output columns with e%8 in 0..3 by one factor and those with e%8 in 4..7 by another.",
      "bfloat16", False, mma_lanes, "xor1", ((2,), 4, 4, 45, 150, 32, 32), BM=16, BN=64)
dense("exp2_floor",
      "The fast exp2 clamps its argument at -12 to stay in normal half range, so keys whose score lies more than 12 powers of two below the row's running maximum get weight 2^-12 each instead of almost nothing. "
      "Rows with peaked scores only (queries of size 5); many keys are too heavy by a little.",
      "float16", False, flash_fwd, "clamp", ((), 4, 1, 37, 390, 64, 64), qsize=5.0, BM=32, BN=128)
dense("mask_word_reused",
      "The boolean mask is packed in 32-bit words, but one word is loaded per 64-key tile: keys 32..63 of every tile are hidden or shown by the mask bits of keys 0..31 of that tile.",
      "float32", True, flash_fwd, "word", ((2,), 3, 3, 53, 175, 32, 32),
      lambda rng, lead, H, T, S: {"mask": rng.random(lead + (1, T, S)) < 0.7}, BM=32, BN=64)
dense("dropout_mask_layout",
      "Eager kernel: the keep mask of shape (H, T, S) is read as if it lay in memory as (T, H, S): row i of head h uses line i * H + h of the mask (that is row (i * 6 + h) % 75 of head (i * 6 + h) // 75) and not line h * T + i. "
      "All rows but the first of head 0 and the last of head 5 drop the wrong keys, at the right rate.",
      "float32", False, eager, "layout", ((), 6, 2, 75, 120, 24, 24),
      lambda rng, lead, H, T, S: {"dropout_mask": rng.random((H, T, S)) >= 0.2, "dropout_rate": 0.2, "causal": True})
dense("value_prefetch_one_short",
      "Two-stage pipeline, keys walked backwards: the refill of the value buffer is guarded by it + 2 < n - 1, so the last iteration (key tile 0, keys 0..31) multiplies its weights with the values of "
      "key tile 2 (keys 64..95) still in that stage. Rows with three or more key tiles.",
      "bfloat16", False, persistent, "vstage", ((), 8, 4, 100, 250, 48, 48), CAUSAL, BM=32, BN=32)
dense("empty_tile_keeps_registers",
      "Persistent causal kernel with more queries (120) than keys (77): row tiles of 16 without any visible key skip the loop and, with it, the reset of the accumulator; the epilogue stores the state of the tile worked on before. "
      "Rows 0..15 and 16..31 both repeat output and lse of rows 32..47, of which 43..47 see keys: rows 11..15 and 27..31 hold those instead of 0 and -inf.",
      "float32", True, persistent, "stale", ((), 5, 5, 120, 77, 32, 40), CAUSAL, BM=16, BN=32)
dense("epilogue_swizzle",
      "The epilogue writes the output tile to shared memory with chunks of 8 columns swizzled by row & 7 and reads it back with row & 3: in rows with bit 2 set (4..7, 12..15, 20..23, ...) columns 0..31 and 32..63 change places.",
      "float16", False, persistent, "swizzle", ((2,), 4, 2, 43, 140, 64, 64), BM=32, BN=64)
dense("store_past_last_row",
      "The store of the last row tile is not masked: with 70 rows and tiles of 32 the 26 rows past the end (zero queries: plain mean of values) land on rows 0..25 of the next head in output and lse, "
      "for every head but the first of the first batch entry.",
      "float32", True, persistent, "oob", ((2,), 3, 3, 70, 111, 32, 32), BM=32, BN=64)
dense("tile_wide_maximum",
      "The running maximum is taken over all 16 rows of the row tile instead of per row; next to a row with very large scores (rows 5, 28, 51, 74, ...: queries 45 times as large) all other rows of that tile underflow to weights of zero: "
      "output 0 and lse -inf (or coarse denormals).",
      "float32", True, persistent, "warpmax", ((), 4, 2, 80, 150, 32, 32), None,
      rowsize=lambda i: np.where(i % 23 == 5, 45.0, 1.0), BM=16, BN=64)
dense("empty_split_counts",
      "A split without keys (past kv_lengths) guards log(0) by l = 1, which makes its lse 0 instead of -inf; the reduction counts each empty split with weight exp(0) and output 0. "
      "Only the batch entries shorter than 5 splits of 64 keys (lengths 37 and 150): output too small, lse too large.",
      "float32", True, splitkv, "guard", ((3,), 8, 2, 1, 300, 64, 64),
      lambda *a: {"kv_lengths": np.array([37, 300, 150])}, splits=5)
dense("reduction_tree_odd",
      "The pairwise reduction of split results halves the count with integer division and drops the odd one: with 6 splits, 6 -> 3 -> 1 loses the third pair, splits 4 and 5, i.e. keys 256..369 of 370. All rows and heads.",
      "bfloat16", False, splitkv, "tree", ((2,), 6, 3, 2, 370, 32, 32), splits=6)
dense("packed_row_order",
      "Query heads of a group and tokens are packed into rows token-major (row = t * g + head), the causal mask and window take the token as row % T as if packed head-major: for T = 4, g = 3 most rows get the position of another token "
      "and see keys too many or too few at the newest end.",
      "bfloat16", True, splitkv, "order", ((2,), 12, 4, 4, 90, 64, 64), lambda *a: {"causal": True, "window": (40, 0)}, splits=3)
dense("prefix_stage_row_position",
      "Extend kernel (prefix stage, then new tokens): in the prefix stage the left window bound uses the row's number among the new tokens (i) and not its position (prefix + i), so the window of 60 hides nothing before row 61 and "
      "early rows see the whole prefix of 170 keys, later rows all keys from i - 60 on. Keys in the extend part are right.",
      "float32", True, extend, "local", ((), 6, 2, 85, 255, 48, 48),
      lambda *a: {"causal": True, "window": (60, None)}, BN=64)
dense("streamk_fixup_two_peers",
      "Stream-K: a row tile whose key tiles are shared by three or more workers is fixed up from the first two partial results only; the keys of the later workers are lost. Output and lse of each such row tile, the newest keys "
      "(the tail of the key range).",
      "bfloat16", True, streamk, "peers", ((), 4, 2, 100, 390, 48, 48), None, BM=32, BN=32, workers=9)
dense("bf16_pieces_wrong_cross_term",
      "Float32 scores are formed from bfloat16 pieces; in the peeled last key tile (keys 192..220) the cross term q2 k1 is written as q1 k2 a second time, so those scores are only about bfloat16-exact (relative errors of 1e-3).",
      "float32", True, bf16x3, "cross", ((), 4, 4, 40, 221, 64, 32), qsize=1.5, BN=64)

packed("first_row_previous_sequence",
       "The sequence of a row is looked up with a left-sided binary search in cu_q, so the first row of every sequence but the first belongs to the sequence before it: it attends (as row number len) to that one's keys.",
       "float32", True, "side", 6, 3, 32, 32, [40, 71, 1, 55], [60, 71, 33, 90], lambda rng, H: {"causal": True})
packed("empty_sequence_shifts_keys",
       "Sequences without queries are removed from the work list, but the key offsets are read with the compacted number: all sequences after the empty one (1 of 0..4, no queries, 50 keys) use the keys of the sequence before.",
       "bfloat16", False, "compact", 8, 2, 64, 64, [33, 0, 48, 20, 17], [70, 50, 64, 41, 90])
packed("grid_from_mean_length",
       "The number of row tiles per sequence comes from the mean query length instead of the longest: sequences (20, 130, 31, 15), mean 49, two tiles of 32: rows 64..129 of sequence 1 are never written (output 0, lse -inf).",
       "float32", True, "grid", 4, 4, 48, 48, [20, 130, 31, 15], [45, 130, 88, 60], lambda rng, H: {"causal": True})
packed("lse_in_padded_rows",
       "The lse is written in the padded layout (sequence b from column b * longest) and handed out cut to total_q columns: sequence 0 is right, the others start too late, gaps hold -inf and the end is cut off. Output right.",
       "float32", True, "wide", 5, 1, 32, 32, [23, 50, 37, 44], [60, 50, 99, 80])
packed("alibi_distance_across_batch",
       "The ALiBi distance is taken between the row's number in the packed queries and the key's number in the packed keys (plus kv_len - q_len), so in sequence b row minus key is too small by cu_kv[b] - cu_q[b] (25 in sequence 1, 59 in sequence 2): "
       "the bias is least at keys 25 or 59 before the row and |.| penalises the newest keys. Sequence 0 is right.",
       "float16", False, "global", 4, 2, 64, 64, [30, 61, 40], [55, 95, 77],
       lambda rng, H: {"alibi_slopes": np.array([0.05, 0.1, 0.02, 0.2], np.float32)})
packed("head_division_by_magic",
       "h // 3 is computed as (h * 21845) >> 16, whose magic number is rounded down: heads 3, 6 and 9 (multiples of the group size) read the key/value head before theirs.",
       "bfloat16", True, "magic", 12, 4, 40, 40, [29, 66, 12], [80, 66, 130], lambda rng, H: {"causal": True})
packed("causal_offset_of_longest",
       "The causal diagonal of every sequence uses max_kv - max_q of the batch (150 - 64 = 86) in place of its own kv_len - q_len: sequences 0 and 2 see later keys than they may or (sequence 3) fewer than they should.",
       "bfloat16", False, "maxoff", 6, 6, 32, 64, [40, 64, 51, 20], [70, 150, 60, 140], lambda rng, H: {"causal": True})

pages("table_line_length",
      "The block table is read with a line of ceil(longest / page) entries (14) instead of its real width (17): sequence 0 is right, sequences 1 and 2 start 3 and 6 entries early in the flat table, in the lines before.",
      "float32", True, "line", 8, 4, 1, 64, 64, 16, [150, 217, 90])
pages("one_page_id_per_tile",
      "A key tile of 32 spans two pages of 16 but only the first page's number is loaded; the second half of each tile is read from the physically next page. Keys with (j % 32) >= 16, all sequences longer than 16.",
      "bfloat16", False, "onepage", 6, 2, 2, 64, 64, 16, [75, 130, 14], lambda rng, H: {"causal": True})
pages("key_offset_16_bits",
      "The element offset of keys in the cache is computed in an unsigned 16-bit number: (page * K + head) * page_size * D wraps at 65536, so physical pages from 32 on (K = 2, 16 x 64) read keys from pages 0.. instead; values are right.",
      "float16", False, "short", 4, 2, 1, 64, 64, 16, [190, 256, 160], BN=64)
pages("partitions_share_boundary_page",
      "Each of 4 partitions has an even share of the keys, rounded outwards to pages of 16: pages in which a partition boundary falls belong to both and their keys count twice. Sequences whose quarter is not a multiple of 16.",
      "float32", True, "overlap", 8, 1, 2, 48, 48, 16, [203, 128, 330], lambda rng, H: {"causal": True}, parts=4)
pages("sink_in_skipped_partition",
      "The sink joins in partition 0; with a sliding window (64 keys) partition 0 of the longer sequences is skipped altogether and the sink with it, so their weights sum to one and lse lacks the sink. Sequences of 300 and 250 keys, not the one of 60.",
      "bfloat16", True, "sink0", 8, 4, 1, 64, 64, 16, [300, 60, 250],
      lambda rng, H: {"sinks": rng.standard_normal(H).astype(np.float32) + 3, "window": (63, 0), "causal": True}, parts=4)
pages("draft_rows_see_each_other",
      "The decode kernel was written for one row and tests only j < kv_length; with 4 draft rows, rows 0..2 also see the 3, 2, 1 keys after their own position. The last row is right.",
      "float32", False, "draft", 6, 3, 4, 32, 32, 8, [45, 18, 77], lambda rng, H: {"causal": True})
pages("full_last_page_dropped",
      "The number of keys in the last page is length % page_size, which is 0 where the length is a multiple of it: sequences of 64 and 192 keys lose their last page of 32, the one of 101 is right.",
      "float16", True, "lastpage", 5, 5, 1, 80, 80, 32, [64, 101, 192])
pages("softcap_after_mask",
      "Hidden keys are set to -inf before the softcap, whose tanh turns that into -cap: with cap 3 every hidden key of the tiles walked (causal rows, and slots past the length up to the tile end of 32) gets weight exp(-3) instead of none.",
      "float32", True, "capmask", 4, 2, 3, 64, 64, 16, [50, 97, 165], lambda rng, H: {"softcap": 3.0, "causal": True})

latent("latent_chunk_moved_inward",
       "Scores are summed over latent columns in chunks of 64; with C = 96 the last chunk is moved inward to 32..95 to stay in bounds, so columns 32..63 count twice in every score. Values are right.",
       "float32", True, "chunk", (2,), 6, 5, 110, 32, 16, 96, 32, lambda rng, H: {"causal": True})
latent("two_groups_unaligned_maxima",
       "Two consumer groups take even and odd key tiles with maxima of their own; the join adds their sums and accumulators without bringing them to a common maximum, so the two halves are weighted wrongly against each other: "
       "in each row the group with the smaller maximum weighs too much.",
       "bfloat16", False, "twogroups", (2,), 8, 3, 150, 48, 16, 128, 40, lambda rng, H: {"causal": True})
latent("head_tile_overlap_weights",
       "Heads are worked in tiles of 8; with 12 heads the second tile is moved inward to heads 4..11, but its w_uk is taken from head 8 on (wrapping): heads 4..7 use w_uk of 8..11 and heads 8..11 that of 0..3. Heads 0..3 are right.",
       "float32", False, "heads", (), 12, 20, 90, 32, 16, 64, 32)
latent("value_view_stride",
       "A key tile lies in shared memory as rows of latent and rope part together (64 + 32 columns); the value view of the same buffer steps by 64 instead of 96, so key r of each tile of 32 takes its values from element 64 r on - "
       "a mix of latent and rope parts of earlier keys of the tile. Only the first key of each tile is right; scores and lse are right.",
       "bfloat16", True, "view", (2,), 4, 6, 107, 32, 32, 64, 48)


def main():
    import time

    from refattn.oracle import check
    names = {"packed": "packed_attention", "paged": "paged_attention", "latent": "latent_attention"}
    good = 0
    for name, sentence, tags, build in FAULTS:
        res, worst = {}, 0.0
        for wrong in (False, True):
            kernel, arrays, options = build(wrong)
            got = kernel(*arrays, **options)
            t = time.perf_counter()
            got = kernel(*arrays, **options)
            worst = max(worst, time.perf_counter() - t)
            out, lse = got if tags["lse"] else (got, None)
            extra = {"lse": lse} if tags["lse"] else {}
            if tags["form"] != "dense":
                extra["function"] = names[tags["form"]]
            assert out.dtype == DT[tags["dtype"]], name
            res[wrong] = check(out, *arrays, **extra, **options).passed
        ok = bool(res[False]) and not res[True]
        good += ok
        print(f"{'ok  ' if ok else 'FAIL'} {name:32s} right passes {bool(res[False])!s:5} wrong passes {bool(res[True])!s:5} {worst * 1e3:6.1f} ms")
    print(f"{good} of {len(FAULTS)} pass the verification")


if __name__ == "__main__":
    main()
