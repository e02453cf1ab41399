"""Wrong attention kernels. Every kernel has one planted fault `f`; with f == "" it is right."""
import math
import numpy as np
import ml_dtypes

BF16 = ml_dtypes.bfloat16
DT = {"float32": np.float32, "bfloat16": BF16, "float16": np.float16}
LOG2E = np.float32(1.4426950408889634)
LN2 = np.float32(0.6931471805599453)
NINF = np.float32(-np.inf)
f4 = np.float32


def cdiv(a, b):
    return -(-a // b)


def up(x):
    return np.ascontiguousarray(np.asarray(x).astype(f4))


def rnd(x, dt):
    return x if dt == f4 else x.astype(dt).astype(f4)


def pv(p, v, w):
    """p @ v; keys that are not in w count for nothing, whatever v holds."""
    fin = np.isfinite(v)
    if fin.all():
        return p @ v
    o = p @ np.where(fin, v, f4(0))
    w = np.broadcast_to(w, p.shape).astype(f4)
    na, pi, ni = (w @ x.astype(f4) > 0 for x in (np.isnan(v), v == np.inf, v == -np.inf))
    o = np.where(pi, f4(np.inf), np.where(ni, f4(-np.inf), o))
    return np.where(na | (pi & ni), f4(np.nan), o)


class Opt:
    """The options of one launch, and the score arithmetic of one tile."""

    def __init__(self, B, H, T, S, D, scale=None, causal=False, window=None, chunk=None, softcap=None, bias=None, mask=None,
                 alibi_slopes=None, sinks=None, kv_lengths=None, q_offset=None, dropout_mask=None, dropout_rate=None):
        self.B, self.H, self.T, self.S = B, H, T, S
        self.scale = f4(1 / math.sqrt(D) if scale is None else scale)
        self.causal, self.chunk, self.softcap = causal, chunk, softcap
        self.window = window if window is not None else (None, None)
        b4 = lambda x: None if x is None else np.broadcast_to(np.asarray(x), (B, H, T, S))
        self.bias = None if bias is None else b4(up(bias))
        self.mask, self.keep = b4(mask), b4(dropout_mask)
        self.keep_scale = f4(1 / (1 - (dropout_rate or 0.0)))
        self.slopes = None if alibi_slopes is None else np.broadcast_to(up(alibi_slopes), (B, H))[:, :, None, None]
        self.sinks = None if sinks is None else np.broadcast_to(up(sinks), (B, H))[:, :, None]
        self.lens = np.full((B, 1, 1, 1), S) if kv_lengths is None else np.broadcast_to(np.asarray(kv_lengths), (B,)).reshape(B, 1, 1, 1).astype(np.int64)
        off = (self.lens - T) if q_offset is None else np.asarray(q_offset)
        self.off = np.broadcast_to(off.reshape(-1, 1, 1, 1) if off.ndim else off, (B, 1, 1, 1)).astype(np.int64)
        self.shift = 0                                      # added to the distance in ALiBi

    def vis(self, r, c, right_edges=True):
        pos, j = self.off + r[:, None], c[None, :]
        ok = (j >= 0) & (j < self.lens)
        ok = np.broadcast_to(ok, np.broadcast_shapes(ok.shape, pos.shape))
        if self.causal and right_edges:
            ok = ok & (j <= pos)
        if self.window[0] is not None:
            ok = ok & (j >= pos - self.window[0])
        if self.window[1] is not None:
            ok = ok & (j <= pos + self.window[1])
        if self.chunk is not None:
            ok = ok & (j // self.chunk == pos // self.chunk)
        return ok

    def tile(self, x, r, c):
        return x[:, :, np.minimum(r, self.T - 1)[:, None], np.clip(c, 0, self.S - 1)[None, :]]

    def hide(self, s, r, c, **kw):
        ok = self.vis(r, c, **kw)
        if self.mask is not None:
            ok = ok & self.tile(self.mask, r, c)
        return np.where(ok, s, NINF)

    def score(self, raw, r, c, cap=True, pade=False, bias_shift=None):
        s = raw * self.scale
        if self.softcap is not None and pade:
            x = np.clip(s / f4(self.softcap), f4(-3), f4(3))
            s = (f4(self.softcap) * x * (f4(27) + x * x) / (f4(27) + f4(9) * x * x)).astype(f4)
        elif self.softcap is not None and cap:
            s = f4(self.softcap) * np.tanh(s / f4(self.softcap))
        if self.slopes is not None:
            s = s - self.slopes * np.abs(self.off + self.shift + r[:, None] - c[None, :]).astype(f4)
        if self.bias is not None and bias_shift is not None:
            n = self.T * self.S
            s = s + self.bias.reshape(self.B, self.H, n)[:, :, np.minimum(bias_shift, n - 1)]
        elif self.bias is not None:
            s = s + self.tile(self.bias, r, c)
        return s


def fetch(x, c):
    """Rows c of x (..., S, D); rows outside are zero-filled."""
    S = x.shape[-2]
    t = x[..., np.clip(c, 0, S - 1), :]
    bad = (c < 0) | (c >= S)
    if bad.any():
        t = np.where(bad[:, None], f4(0), t)
    return t


def qk(q, k):
    return q @ np.swapaxes(k, -1, -2)


def init(sh, E):
    return np.full(sh, NINF, f4), np.zeros(sh, f4), np.zeros(sh + (E,), f4)


def online(st, s, v, dt, keep=None, ks=f4(1)):
    m, l, o = st
    mn = np.maximum(m, s.max(-1))
    ms = np.where(mn == NINF, f4(0), mn)
    p, a = np.exp(s - ms[..., None]), np.exp(m - ms)
    l = l * a + p.sum(-1)
    w = s != NINF
    if keep is not None:
        p, w = np.where(keep, p * ks, f4(0)), w & keep
    return mn, l, o * a[..., None] + pv(rnd(p, dt), v, w)


def finish(m, l, o, opt):
    """Joins the sink, divides; (output, lse), natural logarithm."""
    if opt.sinks is not None:
        mn = np.maximum(m, opt.sinks)
        ms = np.where(mn == NINF, f4(0), mn)
        a = np.exp(m - ms)
        o, l, m = o * a[..., None], l * a + np.exp(opt.sinks - ms), mn
    lse = np.where(l == 0, NINF, np.where(m == NINF, f4(0), m) + np.log(l))
    return np.where((l == 0)[..., None], f4(0), o / np.where(l == 0, f4(1), l)[..., None]), lse


# ---------------------------------------------------------------- FlashAttention 2, keys ascending
def exp2_bits(x, clamp):
    """2**x as FlashAttention 4 computes part of them: exponent by shift, mantissa by polynomial (here exact)."""
    hidden = x == NINF
    xf = np.where(hidden, f4(-1000), x)
    n = np.floor(xf)
    if clamp:
        n = np.maximum(n, -127)
    ni = np.where(np.isfinite(n), n, 0).clip(-2000, 2000).astype(np.int64) + 127
    bits = ((ni << 23) & 0xFFFFFFFF).astype(np.uint32).view(f4)
    y = bits * np.exp2(np.where(hidden, f4(0), xf - np.floor(xf)).astype(f4))
    if clamp:
        y = np.where(xf < -126, f4(0), y)
    y = np.where(np.isnan(xf), f4(np.nan), y)
    return np.where(hidden, f4(0), y).astype(f4)


def fa2(Q, K, V, opt, dt, f, BM=64, BN=64, soft_exp=False, quad=False, no_mask_pass=False):
    B, H, T, D = Q.shape
    S, E = K.shape[2], V.shape[3]
    out, lse = np.zeros((B, H, T, E), f4), np.full((B, H, T), NINF)
    kmean = None
    if f in ("k_smooth_lse", "k_smooth_right"):
        kmean = K.mean(2, keepdims=True, dtype=f4)
        K = K - kmean
    if f == "tf32":
        Q, K = ((x.view(np.uint32) + np.uint32(0x1000) & np.uint32(0xFFFFE000)).view(f4) for x in (Q, K))
    for m0 in range(0, T, BM):
        r = np.arange(m0, min(m0 + BM, T))
        rd = r
        if f == "clamped_row_tile" and m0 + BM > T and T >= BM:
            rd = np.arange(T - BM, T)                       # address of the data, full tile
            r = np.arange(m0, m0 + BM)                      # the mask still thinks it is at m0
        q = Q[:, :, rd]
        sh = (B, H, len(r))
        m, l, o = init(sh, E)
        l8 = np.zeros(sh + (2,), f4)
        m_first = None
        for n0 in range(0, S, BN):
            c = np.arange(n0, n0 + BN)
            last = n0 + BN >= S
            if f == "clamped_key_tile" and last and S >= BN:
                c = np.arange(S - BN, S)
            k, v = fetch(K, c), fetch(V, c)
            if f == "tail_pitch" and n0 + BN > S:
                buf = np.zeros((B, H, BN * (D + 8)), f4)
                buf[..., :BN * D] = k.reshape(B, H, BN * D)
                k = buf.reshape(B, H, BN, D + 8)[..., :D]
            if f == "v_swizzle":
                ch = np.arange(cdiv(E, 8))
                sw = np.where((ch ^ 4) < E // 8, ch ^ 4, ch)
                cols = (sw[:, None] * 8 + np.arange(8)).ravel()[:E]
                v = np.where((np.arange(BN) & 4 > 0)[:, None], v[..., cols], v)
            if f == "head_dim_tail":
                raw = qk(q[..., :D // 32 * 32], k[..., :D // 32 * 32])
            elif f == "qk_half_acc":
                raw = np.zeros(sh + (BN,), np.float16)
                for d0 in range(0, D, 16):
                    raw = (raw + qk(q[..., d0:d0 + 16], k[..., d0:d0 + 16])).astype(np.float16)
                raw = raw.astype(f4)
            else:
                raw = qk(q, k)
            if f == "bias_align":
                s = opt.score(raw, r, c, bias_shift=(r[:, None] * S + n0) // 4 * 4 + np.arange(BN)[None, :])
            else:
                s = opt.score(raw, r, c, pade=f == "softcap_pade")
            if f == "mask_bits":
                W = cdiv(S, 32) * 32
                words = np.zeros((B, H, T, W), bool)
                words[..., :S] = opt.mask
                bit = words.reshape(B, H, T * W)[:, :, np.minimum(r[:, None] * (S // 32 * 32) + c[None, :], T * W - 1)]
                s = np.where(bit & opt.vis(r, c), s, NINF)
            elif f == "len_batch":
                pid = np.arange(B * H).reshape(B, H, 1, 1)
                keep, opt.lens = opt.lens, np.minimum(opt.lens.reshape(-1)[pid % B], S)
                s = opt.hide(s, r, c)
                opt.lens = keep
            elif f == "chunk_offset":
                keep, opt.chunk = opt.chunk, None
                s = np.where(c[None, :] // keep == r[:, None] // keep, opt.hide(s, r, c), NINF)
                opt.chunk = keep
            else:
                s = opt.hide(s, r, c)
            mn = np.maximum(m, s.max(-1))
            if f == "first_tile_max":
                m_first = mn if m_first is None else np.where(m_first == NINF, mn, m_first)
                mn = m_first
            ms = np.where(mn == NINF, f4(0), mn)
            a = np.exp(m - ms)
            p = exp2_bits((s - ms[..., None]) * LOG2E, f != "exp2_wrap") if soft_exp else np.exp(s - ms[..., None])
            w = s != NINF
            if f == "lazy_max":
                # rescale only where the maximum moved by more than 2**8, the new maximum is taken all the same
                a = np.where((mn - m) * LOG2E > 8, a, f4(1))
                a = np.where(m == NINF, f4(0), a)
            if f == "alpha_peeled" and last and n0 > 0:
                l = l + p.sum(-1)                           # the peeled last iteration forgets alpha for l
            elif quad:
                l8 = l8 * a[..., None] + np.stack([p[..., c % 8 < 4].sum(-1), p[..., c % 8 >= 4].sum(-1)], -1)
                l = l8.sum(-1)
            elif f == "dropout_sum":
                l = l * a + np.where(opt.tile(opt.keep, r, c), p, f4(0)).sum(-1)
            else:
                l = l * a + p.sum(-1)
            if opt.keep is not None:
                kp = opt.tile(opt.keep, r, c)
                p, w = np.where(kp, p * opt.keep_scale, f4(0)), w & kp
            ao = np.broadcast_to(a[..., None], o.shape)
            if f == "alpha_cols":
                ao = np.where(np.arange(E) < 64, ao, f4(1))
            o = o * ao + pv(rnd(p, dt), v, w)
            if f == "o_bf16":
                o = rnd(o, BF16)
            m_prev, m = m, mn
        if f == "quad_shuffle":
            part = l8[..., (np.arange(E) % 8) // 4]
            res = np.where(part == 0, f4(0), o / np.where(part == 0, f4(1), part))
            ls = np.where(m == NINF, f4(0), m) + np.log(l8[..., 0])
        elif f == "sink_log2":
            mn = np.maximum(m * LOG2E, opt.sinks)           # sink compared with and added to scores in units of log2
            lt = l * np.exp2(m * LOG2E - mn) + np.exp2(opt.sinks - mn)
            res, ls = o * np.exp2(m * LOG2E - mn)[..., None] / lt[..., None], (mn + np.log2(lt)) * LN2
        else:
            res, ls = finish(m, l, o, opt)
        if f == "lse_stale_max":
            ls = np.where(np.isfinite(m_prev), m_prev, np.where(m == NINF, f4(0), m)) + np.log(l)
        if f == "k_smooth_right":
            ls = ls + (q @ np.swapaxes(kmean, -1, -2))[..., 0] * opt.scale
        if f == "pair_pack":
            n = E // 2 * 2
            sw = res.copy()
            sw[..., :n] = res[..., :n].reshape(sh + (n // 2, 2))[..., ::-1].reshape(sh + (n,))
            res = np.where((np.arange(len(r)) % 16 >= 8)[:, None], sw, res)
        if f == "lse_tail_tile" and m0 + BM > T:
            ls = np.zeros_like(ls)
        out[:, :, rd], lse[:, :, rd] = res, ls
    return out, lse


# ---------------------------------------------------------------- FlashAttention 2 as released: keys descending, masked tiles first
def desc(Q, K, V, opt, dt, f, BM=128, BN=64, skip=None):
    B, H, T, D = Q.shape
    S, E = K.shape[2], V.shape[3]
    out, lse = np.zeros((B, H, T, E), f4), np.full((B, H, T), NINF)
    lo, hi = int(opt.off.min()), int(opt.off.max())
    left, right = opt.window
    if opt.causal:
        right = 0 if right is None else min(right, 0)
    for m0 in range(0, T, BM):
        r = np.arange(m0, min(m0 + BM, T))
        q = Q[:, :, r]
        n_max, n_min = cdiv(S, BN), 0
        if right is not None:
            end = r[-1] + 1 + hi + right
            if f == "causal_tile_end":
                end = m0 + BN + hi + right                  # BN in place of BM
            n_max = max(0, min(n_max, cdiv(end, BN)))
        if left is not None:
            a0 = r[0] + lo - left
            n_min = max(0, cdiv(a0, BN) if f == "window_start_ceil" else a0 // BN)
        st = init((B, H, len(r)), E)
        for it, n in enumerate(range(n_max - 1, n_min - 1, -1)):
            n0 = n * BN
            c = np.arange(n0, n0 + BN)
            k, v = fetch(K, c), fetch(V, c)
            raw = qk(q, k)
            diag = right is not None and n0 + BN - 1 > r[0] + lo + right
            edge = left is not None and n0 < r[-1] + hi - left
            if f == "softcap_masked_tile":
                s = opt.score(raw, r, c, cap=not diag)
            else:
                s = opt.score(raw, r, c)
            if f == "mask_steps":
                s = opt.hide(s, r, c, right_edges=it == 0)  # one masked step, BM / BN are due
            elif f == "interior_tile" and left is not None and n0 >= r[0] + lo - left:
                keep, opt.window = opt.window, (None, opt.window[1])
                s = opt.hide(s, r, c)
                opt.window = keep
            else:
                s = opt.hide(s, r, c)
            if skip is not None:
                tm = s.max(-1)
                gap = np.where(st[0] == NINF, f4(np.inf), tm - st[0])
                pad = cdiv(len(r), 16) * 16
                g = np.full((B, H, pad), NINF)
                g[..., :len(r)] = gap
                g = np.repeat(g.reshape(B, H, -1, 16).max(-1), 16, -1)[..., :len(r)]
                drop = g < (-2.0 if f == "tile_skip" else -40.0)
                s = np.where(drop[..., None], NINF, s)
            st = online(st, s, v, dt)
        out[:, :, r], lse[:, :, r] = finish(*st, opt)
    return out, lse


# ---------------------------------------------------------------- FlashAttention 3: persistent, pipelined, two warpgroups
def fa3(Q, K, V, opt, dt, f, BM=64, BN=64, STAGES=2, CTAS=5):
    B, H, T, D = Q.shape
    S, E = K.shape[2], V.shape[3]
    out, lse = np.zeros((B, H, T, E), f4), np.full((B, H, T), NINF)
    nm, nn = cdiv(T, BM), cdiv(S, BN)
    total = B * H * nm
    if f == "tile_count":
        total = cdiv(B * H * T, BM)
    l_of_cta = {}
    for t in range(total):
        b, h, mi = t // (H * nm), t // nm % H, t % nm
        r = np.arange(mi * BM, min(mi * BM + BM, T))
        o1 = Opt(1, 1, T, S, D, scale=float(opt.scale), causal=opt.causal, window=opt.window, softcap=opt.softcap, chunk=opt.chunk,
                 q_offset=int(opt.off[b, 0, 0, 0]), kv_lengths=opt.lens[b, 0, 0, 0],
                 alibi_slopes=None if opt.slopes is None else opt.slopes[b, h, 0],
                 bias=None if opt.bias is None else opt.bias[b, h], mask=None if opt.mask is None else opt.mask[b, h],
                 sinks=None if opt.sinks is None else opt.sinks[b, h])
        q = Q[b:b + 1, h:h + 1, r]
        qn = q
        if f == "q_overwritten" and t + 1 < total:
            t2 = t + 1
            r2 = np.minimum(np.arange(len(r)) + t2 % nm * BM, T - 1)
            qn = Q[t2 // (H * nm), t2 // nm % H][r2][None, None]
        m, l, o = init((1, 1, len(r)), E)
        if f == "l_not_reset" and t - CTAS in l_of_cta:
            pm, pl = l_of_cta[t - CTAS]
            nr = min(len(pl), len(r))
            m[0, 0, :nr], l[0, 0, :nr] = pm[:nr], pl[:nr]
        bufv = [None] * STAGES
        pend = None
        ntile = nn
        if o1.causal:
            ntile = max(1, min(nn, cdiv(r[-1] + 1 + int(o1.off[0, 0, 0, 0]), BN)))
        for it in range(ntile + 1):
            if it < ntile:
                c = np.arange(it * BN, it * BN + BN)
                k = fetch(K[b:b + 1, h:h + 1], c)
                if not (f == "v_load_last" and it == ntile - 1 and it % 2 == 0 and it >= STAGES):
                    bufv[it % STAGES] = fetch(V[b:b + 1, h:h + 1], c)
                s = o1.score(qk(qn if f == "q_overwritten" and it == ntile - 1 and it > 0 else q, k), r, c)
                s = o1.hide(s, r, c)
                mn = np.maximum(m, s.max(-1))
                ms = np.where(mn == NINF, f4(0), mn)
                p, a = np.exp(s - ms[..., None]), np.exp(m - ms)
                l = l * a + p.sum(-1)
                m = mn
            else:
                a = np.ones_like(m)
            if f == "rescale_order":
                o = o * a[..., None]                        # before the pending product has been added
            if pend is not None:
                pp, pw, pit = pend
                vv = bufv[pit % STAGES]
                o = o + pv(pp, vv, pw)
                if f == "early_release" and pit + STAGES < ntile and len(r) > 32:
                    # second warpgroup: the producer has already put tile pit + STAGES into the stage
                    v2 = fetch(V[b:b + 1, h:h + 1], np.arange((pit + STAGES) * BN, (pit + STAGES + 1) * BN))
                    d = pv(pp, v2, pw) - pv(pp, vv, pw)
                    o[:, :, 32:] += d[:, :, 32:]
            if f != "rescale_order":
                o = o * a[..., None]
            pend = (rnd(p, dt), s != NINF, it)
        l_of_cta[t] = m[0, 0], l[0, 0]
        res, ls = finish(m, l, o, o1)
        out[b, h, r], lse[b, h, r] = res[0, 0], ls[0, 0]
    return out, lse


# ---------------------------------------------------------------- FlashAttention 1: keys outside, output renormalised in memory
def fa1(Q, K, V, opt, dt, f, BM=64, BN=96):
    B, H, T, D = Q.shape
    S, E = K.shape[2], V.shape[3]
    m, l, o = init((B, H, T), E)
    for n0 in range(0, S, BN):
        c = np.arange(n0, n0 + BN)
        k, v = fetch(K, c), fetch(V, c)
        for m0 in range(0, T, BM):
            r = np.arange(m0, min(m0 + BM, T))
            s = opt.hide(opt.score(qk(Q[:, :, r], k), r, c), r, c)
            mt = s.max(-1)
            mts = np.where(mt == NINF, f4(0), mt)
            p = np.exp(s - mts[..., None])
            mo, lo = m[:, :, r], l[:, :, r]
            mn = np.maximum(mo, mt)
            ms = np.where(mn == NINF, f4(0), mn)
            al, be = np.exp(mo - ms), np.exp(mt - ms)
            if f == "beta_missing":
                be = np.where(mt == NINF, f4(0), f4(1))
            ln = al * lo + be * p.sum(-1)
            d = np.where(ln == 0, f4(1), ln)[..., None]
            o[:, :, r] = ((lo * al)[..., None] * o[:, :, r] + be[..., None] * pv(rnd(p, dt), v, s != NINF)) / d
            m[:, :, r], l[:, :, r] = mn, ln
    return finish(m, l, o * l[..., None], opt)


# ---------------------------------------------------------------- FlashDecoding: splits, then a combine kernel
def split(Q, K, V, opt, dt, f, NS=7, BN=32, pack=None, ws=None):
    B, H, T, D = Q.shape
    S, E = K.shape[2], V.shape[3]
    r = np.arange(T)
    size = cdiv(cdiv(S, NS), BN) * BN
    if f == "split_floor":
        size = max(1, S // NS)
    parts_o, parts_l = [], []
    for i in range(NS):
        st = init((B, H, T), E)
        end = min(S, (i + 1) * size)
        for n0 in range(i * size, end, BN):
            c = np.arange(n0, n0 + BN)
            s = opt.score(qk(Q, fetch(K, c)), r, c)
            if f == "pack_row":
                # rows of the group are packed (t * g + u); the mask takes the packed number for the row
                g = pack
                u = (np.arange(H) % g)[None, :, None, None]
                pos = opt.off + (r[:, None] * g + u)
                ok = (c[None, :] <= pos) & (c < opt.lens)
                s = np.where(ok & (c < end), s, NINF)
            else:
                s = np.where(c < end, opt.hide(s, r, c), NINF)
            st = online(st, s, fetch(V, c), dt)
        m, l, o = st
        if f == "sink_each_split" and opt.sinks is not None:
            oo, ll = finish(m, l, o, opt)
        else:
            sk, opt.sinks = opt.sinks, None
            oo, ll = finish(m, l, o, opt)
            opt.sinks = sk
        if f == "empty_split_lse" and i * size >= end:
            ll = np.zeros_like(ll)
        parts_o.append(oo)
        parts_l.append(rnd(ll, BF16) if f == "lse_bf16" else ll)
    if f == "tree_odd":
        # pairwise tree: n // 2 pairs a level, an odd one out is never picked up
        cur = list(zip(parts_o, parts_l))
        while len(cur) > 1:
            hlf = len(cur) // 2
            cur = [merge2(*cur[x], *cur[x + hlf]) for x in range(hlf)]
        oo, ll = cur[0]
        return sink_join(oo, ll, opt)
    ls = np.stack(parts_l)
    os_ = np.stack(parts_o)
    mx = ls.max(0)
    ms = np.where(mx == NINF, f4(0), mx)
    w = np.exp2(ls - ms) if f == "combine_exp2" else np.exp(ls - ms)
    den = w.sum(0)
    lse = np.where(den == 0, NINF, ms + np.log(den))
    w = w / np.where(den == 0, f4(1), den)
    out = np.zeros_like(os_[0])
    for i in range(NS):
        out = out + np.where((w[i] == 0)[..., None], f4(0), w[i][..., None] * os_[i])
    if f == "combine_cols" and E > 64:
        out[..., 64:] = os_[0][..., 64:]                    # grid of the combine kernel: E // 64 column blocks
    if f == "sink_each_split":
        return out, lse
    return sink_join(out, lse, opt)


def merge2(o1, l1, o2, l2, swap=False):
    m = np.maximum(l1, l2)
    ms = np.where(m == NINF, f4(0), m)
    a, b = np.exp(l1 - ms), np.exp(l2 - ms)
    d = a + b
    lse = np.where(d == 0, NINF, ms + np.log(d))
    d = np.where(d == 0, f4(1), d)
    if swap:
        a, b = b, a
    t1 = np.where((a == 0)[..., None], f4(0), (a / d)[..., None] * o1)
    t2 = np.where((b == 0)[..., None], f4(0), (b / d)[..., None] * o2)
    return t1 + t2, lse


def sink_join(o, lse, opt):
    if opt.sinks is None:
        return o, lse
    m = np.maximum(lse, opt.sinks)
    ms = np.where(m == NINF, f4(0), m)
    a = np.exp(lse - ms)
    d = a + np.exp(opt.sinks - ms)
    return o * (a / d)[..., None], ms + np.log(d)


# ---------------------------------------------------------------- cascade: shared prefix, suffix, merge
def cascade(Q, K, V, opt, dt, f, BN=48):
    B, H, T, D = Q.shape
    S, E = K.shape[2], V.shape[3]
    cut = S // 2 // 16 * 16
    r = np.arange(T)
    res = []
    sk, opt.sinks = opt.sinks, None
    for a0, b0 in ((0, cut), (cut, S)):
        st = init((B, H, T), E)
        for n0 in range(a0, b0, BN):
            c = np.arange(n0, min(n0 + BN, b0))
            cs = c - a0 if f == "cascade_position" else c
            s = opt.score(qk(Q, fetch(K, c)), r, cs)
            st = online(st, opt.hide(s, r, c), fetch(V, c), dt)
        res.append(finish(*st, opt))
    opt.sinks = sk
    (o1, l1), (o2, l2) = res
    o, l = merge2(o1, l1, o2, l2, swap=f == "merge_swapped")
    return sink_join(o, l, opt)


# ---------------------------------------------------------------- eager
def eager(Q, K, V, opt, dt, f):
    B, H, T, D = Q.shape
    S = K.shape[2]
    r, c = np.arange(T), np.arange(S)
    raw = qk(Q, K)
    if f == "bias_before_cap":
        s = f4(opt.softcap) * np.tanh((raw * opt.scale + opt.bias) / f4(opt.softcap))
    else:
        s = opt.score(raw, r, c)
    if f == "finite_hide":
        s = np.where(opt.hide(s, r, c) == NINF, f4(-1e9), s)
    else:
        s = opt.hide(s, r, c)
    m = s.max(-1)
    ms = np.where(m == NINF, f4(0), m)
    p = np.exp(s - ms[..., None])
    l = p.sum(-1)
    o = pv(rnd(p, dt), V, s != NINF)
    return finish(m, l, o, opt)


CORES = dict(fa2=fa2, desc=desc, fa3=fa3, fa1=fa1, split=split, cascade=cascade, eager=eager)


def seesaw(Q, K, V, opt, dt, f, BM=64, BN=64):
    """FlashMLA: two key tiles a step, two warpgroups, each with half of the value columns."""
    B, H, T, D = Q.shape
    S, E = K.shape[2], V.shape[3]
    out, lse = np.zeros((B, H, T, E), f4), np.full((B, H, T), NINF)
    half = E // 2
    for m0 in range(0, T, BM):
        r = np.arange(m0, min(m0 + BM, T))
        m, l, o = init((B, H, len(r)), E)
        for n0 in range(0, S, 2 * BN):
            ss, vs = [], []
            for c0 in (n0, n0 + BN):
                c = np.arange(c0, c0 + BN)
                ss.append(opt.hide(opt.score(qk(Q[:, :, r], fetch(K, c)), r, c), r, c))
                vs.append(fetch(V, c))
            ma = np.maximum(m, ss[0].max(-1))
            mb = np.maximum(ma, ss[1].max(-1))
            fa_, fb = np.where(ma == NINF, f4(0), ma), np.where(mb == NINF, f4(0), mb)
            p0, p1 = np.exp(ss[0] - fa_[..., None]), np.exp(ss[1] - fb[..., None])
            a0 = np.where(ma == NINF, f4(0), np.exp(ma - fb))[..., None]
            a = np.exp(m - fb)
            l = l * a + (p0 * a0).sum(-1) + p1.sum(-1)
            o = o * a[..., None]
            right = p0 if f == "seesaw_right" else p0 * a0
            w0, w1 = ss[0] != NINF, ss[1] != NINF
            o[..., :half] += pv(rnd(p0 * a0, dt), vs[0][..., :half], w0) + pv(rnd(p1, dt), vs[1][..., :half], w1)
            o[..., half:] += pv(rnd(right, dt), vs[0][..., half:], w0) + pv(rnd(p1, dt), vs[1][..., half:], w1)
            m = mb
        out[:, :, r], lse[:, :, r] = finish(m, l, o, opt)
    return out, lse


CORES["seesaw"] = seesaw


# ---------------------------------------------------------------- the four entry points
def dense(f, core, cfg, q, k, v, **options):
    dt = q.dtype.type
    lead = q.shape[:-3]
    q4, k4, v4 = (up(x).reshape((-1,) + x.shape[-3:]) for x in (q, k, v))
    B, H, T, D = q4.shape
    KH, S, E = k4.shape[1], k4.shape[2], v4.shape[3]
    if f == "mask_batch":
        options = dict(options, mask=np.broadcast_to(np.asarray(options["mask"])[:1], options["mask"].shape))
    opt = Opt(B, H, T, S, D, **options)
    g = H // KH
    hm = np.arange(H) // g
    if f == "cluster_pair":
        hm = np.arange(H) // 2 * 2 // g
    if f == "block_h":
        hm = np.minimum(np.arange(H) // 4 // cdiv(g, 4), KH - 1)
    if f == "v_pitch":
        base = np.arange(B * KH).reshape(B, KH, 1, 1) * S * E
        adr = base + np.arange(S)[:, None] * D + np.arange(E)[None, :]
        v4 = v4.reshape(-1)[np.minimum(adr, v4.size - 1)]
    if core == "split" and "pack" not in cfg:
        cfg = dict(cfg, pack=g)
    o, l = CORES[core](q4, k4[:, hm], v4[:, hm], opt, dt, f, **cfg)
    return o.reshape(lead + (H, T, E)).astype(dt), l.reshape(lead + (H, T)).astype(f4)


def packed(f, core, cfg, q, k, v, *, cu_q, cu_kv, **options):
    dt = q.dtype.type
    qf, kf, vf = up(q), up(k), up(v)
    H, TQ, D = q.shape
    KH, TK, E = k.shape[0], k.shape[1], v.shape[2]
    cq, ck = np.asarray(cu_q).astype(np.int64), np.asarray(cu_kv).astype(np.int64)
    n = len(cq) - 1
    lq, lk = np.diff(cq), np.diff(ck)
    BM = cfg.get("BM", 32)
    hm = np.arange(H) // (H // KH)
    if f == "head_modulo":
        hm = np.arange(H) % KH
    out, lse = np.zeros((H, TQ, E), f4), np.full((H, TQ), NINF)
    order = np.argsort(-lq, kind="stable")
    grid = int(sum(cdiv(x, BM) for x in lq))
    owner = np.repeat(np.arange(n), lq)
    slot = 0
    slots = {}
    for b in range(n):
        slots[b] = slot
        slot += max(1, cdiv(lq[b], BM)) if f == "tiles_of_empty" else cdiv(lq[b], BM)
    for b in order:
        a, T, k0, S = cq[b], int(lq[b]), ck[b], int(lk[b])
        if T == 0:
            continue
        if S == 0:
            if f == "empty_lse":
                lse[:, a:a + T] = np.inf
            if options.get("sinks") is not None:
                lse[:, a:a + T] = up(options["sinks"])[:, None]
            continue
        rows = np.arange(a, min(a + cdiv(T, BM) * BM, TQ))   # whole tiles; the store is predicated
        if f == "tile_sequence":
            # tiles are cut over total_q, the sequence is looked up for the first row of a tile
            rows = np.flatnonzero(owner[np.arange(TQ) // BM * BM] == b)
            if len(rows) == 0:
                continue
        off = S - T + int(rows[0] - a)
        if f == "offset_of_max":
            off = int(lk.max() - lq.max())
        s0, ln = 0, S
        if f == "tma_align":
            s0 = int(k0 % 8)
            off, ln = off + s0, S + s0
        if f == "kv_bound_q":
            ln = min(S, T)
        kk, vv = kf[hm, k0 - s0:k0 + S], vf[hm, k0 - s0:k0 + S]
        opt = Opt(1, H, len(rows), kk.shape[1], D, q_offset=off, kv_lengths=ln, **options)
        if f == "alibi_global":
            opt.shift = int(a - k0) - off
        o, l = CORES[core](qf[None][:, :, rows], kk[None], vv[None], opt, dt, f, **cfg)
        o, l = o[0], l[0]
        if f == "section_heads":
            SEC = 4
            nb = cdiv(T, BM)
            full = H // SEC
            res = H - full * SEC
            seen = {(full * SEC + x % SEC, x // SEC) for x in range(res * nb)}
            for h in range(full * SEC, H):
                for bl in range(nb):
                    if (h, bl) not in seen:
                        o[h, bl * BM:(bl + 1) * BM], l[h, bl * BM:(bl + 1) * BM] = 0, 0
        stop = len(rows) if f in ("store_overrun", "tile_sequence") else T
        if f == "tiles_of_empty":
            stop = max(0, min(T, (grid - slots[b]) * BM))
        out[:, rows[:stop]], lse[:, rows[:stop]] = o[:, :stop], l[:, :stop]
    if f == "lse_layout":
        lse = np.ascontiguousarray(lse.T).reshape(H, TQ)
    return out.astype(dt), lse.astype(f4)


def paged(f, core, cfg, q, kp, vp, *, block_table, kv_lengths, **options):
    dt = q.dtype.type
    B, H, T, D = q.shape
    P, KH, ps, E = vp.shape
    bt = np.array(block_table).astype(np.int64)
    lens = np.array(kv_lengths).astype(np.int64)
    q_offset = options.pop("q_offset", None)
    hm = np.arange(H) // (H // KH)
    out, lse = np.zeros((B, H, T, E), f4), np.full((B, H, T), NINF)
    npmax = cdiv(int(lens.max()), ps)
    nsmax = cdiv(int(lens.max()), 64)
    ws = (np.zeros((nsmax, H, T, E), f4), np.full((nsmax, H, T), NINF))
    krows, vrows = kp.reshape(P * KH * ps, D), vp.reshape(P * KH * ps, E)
    heads = np.arange(KH)[:, None]
    for b in range(B):
        n = int(lens[b])
        off = n - T if q_offset is None else int(np.broadcast_to(np.asarray(q_offset), (B,))[b])
        if f == "offset_longest" and q_offset is None:
            off = int(lens.max()) - T
        if n == 0:
            if options.get("sinks") is not None:
                lse[b] = up(options["sinks"])[:, None]
            continue
        t = np.arange(n)
        i, slot = t // ps, t % ps
        page = bt[b, i]
        if f == "page_of_tile":
            t0 = t // 64 * 64
            far = t0 % ps + (t - t0)
            page, slot = np.minimum(bt[b, t0 // ps] + far // ps, P - 1), far % ps
        if f == "table_stride":
            page = bt.reshape(-1)[b * npmax + i]
        if f == "table_cache":
            page = bt[b, i & 7]
        page = page.clip(0, P - 1)
        vpage, vslot = page, slot
        if f == "v_page_prefetch":
            i2 = np.where((i % 2 == 1) & ((i + 1) * ps < n), i + 1, i)
            vpage = bt[b, i2].clip(0, P - 1)
        ka = (page * KH + heads) * ps + slot
        va = (vpage * KH + heads) * ps + vslot
        if f == "v_layout":
            va = (vpage * ps + vslot) * KH + heads
        if f == "offset_16bit":
            upr = max(1, D * kp.dtype.itemsize // 16)
            ka = (ka * upr & 0xFFFF) // upr
        K, V = up(krows[ka])[hm][None], up(vrows[va])[hm][None]
        opt = Opt(1, H, T, n, D, q_offset=off, **options)
        qb = up(q[b])[None]
        if core == "workspace":
            ns = cdiv(n, 64)
            sk, opt.sinks = opt.sinks, None
            for s in range(ns):
                st = init((1, H, T), E)
                for n0 in range(s * 64, min(n, s * 64 + 64), 32):
                    c = np.arange(n0, n0 + 32)
                    r = np.arange(T)
                    sc = opt.hide(opt.score(qk(qb, fetch(K, c)), r, c), r, c)
                    st = online(st, sc, fetch(V, c), dt)
                oo, ll = finish(*st, opt)
                ws[0][s], ws[1][s] = oo[0], ll[0]
            opt.sinks = sk
            o, l = ws[0][0][None], ws[1][0][None]
            for s in range(1, nsmax if f == "stale_workspace" else ns):
                o, l = merge2(o, l, ws[0][s][None], ws[1][s][None])
            o, l = sink_join(o, l, opt)
        else:
            o, l = CORES[core](qb, K, V, opt, dt, f, **(dict(cfg, pack=H // KH) if core == "split" else cfg))
        out[b], lse[b] = o[0], l[0]
    return out.astype(dt), lse.astype(f4)


def latent(f, core, cfg, qn, qr, kv, kr, w_uk, w_uv, *, form="absorb", **options):
    dt = qn.dtype.type
    lead = qn.shape[:-3]
    qn4, qr4 = (up(x).reshape((-1,) + x.shape[-3:]) for x in (qn, qr))
    kv3, kr3 = (up(x).reshape((-1,) + x.shape[-2:]) for x in (kv, kr))
    uk, uv = up(w_uk), up(w_uv)
    B, H, T, N = qn4.shape
    R, S, C, E = qr4.shape[3], kv3.shape[1], kv3.shape[2], uv.shape[1]
    if options.get("scale") is None:
        options = dict(options, scale=1 / math.sqrt(C + R if f == "scale_absorbed" else N + R))
    if f == "rope_batch":
        kr3 = np.broadcast_to(kr3[:1], kr3.shape)
    if f == "rope_layout":
        kr3 = np.concatenate([kr3[..., 0::2], kr3[..., 1::2]], -1)
    if f == "uv_transpose":
        uv = np.swapaxes(uv.reshape(H, C, E), 1, 2)
    if f == "head_base":
        uv = uv[np.arange(H) % 16]
    Q = np.concatenate([qn4 @ uk, qr4], -1)
    K = np.broadcast_to(np.concatenate([kv3, kr3], -1)[:, None], (B, H, S, C + R))
    V = np.broadcast_to(kv3[:, None], (B, H, S, C))
    opt = Opt(B, H, T, S, C + R, **options)
    o, l = CORES[core](Q, K, V, opt, dt, f, **cfg)
    o = o @ np.swapaxes(uv, 1, 2)
    return o.reshape(lead + (H, T, E)).astype(dt), l.reshape(lead + (H, T)).astype(f4)


NEEDS = dict(bias_align="bias", softcap_pade="softcap", mask_bits="mask", chunk_offset="chunk", dropout_sum="dropout_rate",
             sink_log2="sinks", bias_before_cap="bias")
FORMS = dict(dense=dense, packed=packed, paged=paged, latent=latent)
FUNCTION = dict(dense="attention", packed="packed_attention", paged="paged_attention", latent="latent_attention")
FAULTS = []


def add(name, sentence, form, dtype, lse, core, arrays, options=None, **cfg):
    """arrays and options are functions of a random generator."""
    def build(wrong=True):
        rng = np.random.default_rng(sum(map(ord, name)))
        data = arrays(rng, DT[dtype])
        opts = options(rng) if callable(options) else dict(options or {})
        if "_opts" in data:
            opts = {**data["_opts"], **opts}
        f = name if wrong else cfg_right

        def kernel(*xs, **kw):
            ff = f
            if f in NEEDS and kw.get(NEEDS[f]) is None or f == "bias_before_cap" and kw.get("softcap") is None:
                ff = ""                                     # the option at fault is not in use
            with np.errstate(all="ignore"):
                o, l = FORMS[form](ff, core, cfg, *xs, **kw)
            return (o, l) if lse else o
        return kernel, data["xs"], opts
    cfg_right = cfg.pop("right", "")
    FAULTS.append((name, sentence, dict(form=form, dtype=dtype, lse=lse), build))


def D_(H, K, T, S, D, E=None, B=None, big=1.0, ramp=None):
    def make(rng, dt):
        lead = () if B is None else (B,)
        q, k, v = (rng.normal(size=lead + s) for s in ((H, T, D), (K, S, D), (K, S, E or D)))
        q = q * big
        if ramp is not None:
            k = k * np.linspace(*ramp, S)[:, None]
        return dict(xs=tuple(x.astype(dt) for x in (q, k, v)))
    return make


def P_(H, K, lq, lk, D, E=None, big=1.0):
    def make(rng, dt):
        q, k, v = rng.normal(size=(H, sum(lq), D)) * big, rng.normal(size=(K, sum(lk), D)), rng.normal(size=(K, sum(lk), E or D))
        cu = lambda x: np.concatenate([[0], np.cumsum(x)]).astype(np.int32)
        return dict(xs=tuple(x.astype(dt) for x in (q, k, v)), _opts=dict(cu_q=cu(lq), cu_kv=cu(lk)))
    return make


def G_(H, K, T, lens, ps, D, extra=3, width=1, big=1.0, E=None):
    def make(rng, dt):
        B = len(lens)
        need = [cdiv(x, ps) for x in lens]
        P = sum(need) + extra
        perm = rng.permutation(P).astype(np.int32)
        bt = np.zeros((B, max(need) + width), np.int32)
        at = 0
        for b, x in enumerate(need):
            bt[b, :x] = perm[at:at + x]
            at += x
        q, k, v = rng.normal(size=(B, H, T, D)) * big, rng.normal(size=(P, K, ps, D)), rng.normal(size=(P, K, ps, E or D))
        return dict(xs=tuple(x.astype(dt) for x in (q, k, v)), _opts=dict(block_table=bt, kv_lengths=np.array(lens, np.int32)))
    return make


def L_(H, T, S, N, R, C, E, B=None, big=1.0):
    def make(rng, dt):
        lead = () if B is None else (B,)
        sh = (lead + (H, T, N), lead + (H, T, R), lead + (S, C), lead + (S, R))
        qn, qr, kv, kr = (rng.normal(size=s) for s in sh)
        uk, uv = rng.normal(size=(H, N, C)) / math.sqrt(C), rng.normal(size=(H, E, C)) / math.sqrt(C)
        return dict(xs=tuple(x.astype(dt) for x in (qn * big, qr * big, kv, kr, uk, uv)))
    return make


def slopes(H, top=0.5):
    return (top * 2.0 ** (-np.arange(H) * 8 / H / 2)).astype(np.float32)


# ================================================================ dense
add("head_dim_tail", "The QK^T loop runs over head_dim in chunks of 32 and rounds the number of chunks down: with head_dim 80 the last 16 "
    "components (64..79) of query and key never enter the scores, in every row and head; the scale stays 1/sqrt(80).",
    "dense", "float32", True, "fa2", D_(3, 1, 147, 203, 80), dict(causal=True), BM=64, BN=64)
add("causal_tile_end", "The number of key tiles a causal row tile visits is computed from m0 + BLOCK_N (64) instead of m0 + BLOCK_M (128): roughly "
    "the second half of every row tile loses its newest keys, those past the end of the key tile that holds position m0 + 63 + q_offset (q_offset = 41: rows 87..127 miss keys from 128 on, rows 215..255 keys from 256 on).",
    "dense", "bfloat16", False, "desc", D_(4, 2, 300, 341, 64), dict(causal=True), BM=128, BN=64)
add("mask_steps", "Keys are walked from the right and only the first visited key tile gets the causal mask, but BLOCK_M / BLOCK_N = 128 / 32 = 4 to 5 tiles "
    "cross the diagonal: rows in the upper part of each 128-row tile see future keys in the other diagonal tiles (the window and length mask stay).",
    "dense", "float32", False, "desc", D_(4, 2, 230, 230, 32), dict(causal=True), BM=128, BN=32)
add("window_start_ceil", "The first key tile of a sliding window (left 100) is (m0 + q_offset - left) / 48 rounded up rather than down: keys of the partial first "
    "tile, up to 47 of the oldest keys in the window, are lost, mostly for the first rows of each 64-row tile.",
    "dense", "float32", True, "desc", D_(6, 6, 190, 270, 64), dict(causal=True, window=(100, None)), BM=64, BN=48)
add("interior_tile", "A key tile counts as lying wholly inside the window (and skips the left-edge mask) if it is inside for the first row of the row tile rather than for the "
    "last one: tiles starting at or after m0 + q_offset - 70 stay unmasked on the left, so later rows of each 80-row tile see keys older than the window.",
    "dense", "bfloat16", True, "desc", D_(5, 5, 250, 250, 64), dict(window=(70, 20)), BM=80, BN=32)
add("softcap_masked_tile", "The softcap (tanh) is applied in the main loop only: key tiles that cross the causal diagonal go through a separate masked code path whose score "
    "modifier lacks the softcap of 4, so the newest keys of each row (those in diagonal tiles of 64) carry uncapped scores.",
    "dense", "float16", False, "desc", D_(6, 3, 200, 200, 48, big=3.0), dict(causal=True, softcap=4.0), BM=64, BN=64)
add("tile_skip", "Tiles whose maximum lies far below the running maximum are skipped for a group of 16 rows; the threshold is 2 instead of about 40 nats, so with ALiBi and keys "
    "walked from right to left distant key tiles (32 keys) with real weight (up to exp(-2) a key) are dropped from output and lse.",
    "dense", "float32", True, "desc", D_(4, 2, 100, 250, 64),
    lambda rng: dict(causal=True, alibi_slopes=slopes(4, 0.25)), BM=64, BN=32, skip=True)
add("alpha_cols", "The rescale of the output accumulator by exp(m_old - m_new) is unrolled for 64 columns only; with value dim 112 the columns 64..111 keep contributions of earlier key tiles "
    "(48 keys) at their old weight. Columns 0..63 are right.",
    "dense", "float32", False, "fa2", D_(5, 5, 77, 205, 64, 112), dict(causal=True), BM=32, BN=48)
add("clamped_row_tile", "The last row tile is moved up to start at T - 64 = 86 so that it is full, but the row numbers for the causal mask still count from 128: rows 86..149 are "
    "masked as if they stood 42 positions later (rows 86..127 are overwritten by that), so they see up to 42 future keys.",
    "dense", "float16", False, "fa2", D_(4, 2, 150, 150, 48), dict(causal=True), BM=64, BN=32)
add("bias_align", "The bias is loaded by vectors of four numbers whose address (row * S + first key of the tile) is rounded down to a multiple of 4; S = 173 is odd, so rows i with i % 4 != 0 "
    "read a bias shifted by (i * 173) % 4 keys (from the left neighbour keys, at key 0 from the end of the row above).",
    "dense", "float32", False, "fa2", D_(4, 2, 70, 173, 64), lambda rng: dict(bias=rng.normal(size=(4, 70, 173)).astype(np.float32)), BM=32, BN=64)
add("sink_log2", "Epilogue works in base 2 (maximum times log2 e) and takes the sink logit as it is, without log2 e: the sink takes part as sink * 0.693, in output and lse of "
    "every row; heads with a sink near 0 are right.",
    "dense", "bfloat16", True, "fa2", D_(8, 2, 100, 180, 64),
    lambda rng: dict(causal=True, window=(60, None), sinks=np.array([4, -3, 0, 6, 5, 2, -5, 7], np.float32)), BM=64, BN=64)
add("o_bf16", "The output accumulator goes back to shared memory in bfloat16 after each key tile of 16 keys, and not in float32: with 24 tiles the roundings (2^-9 each) add up in all rows with "
    "many visible tiles; inputs are float32.",
    "dense", "float32", False, "fa2", D_(4, 4, 50, 380, 32), dict(), BM=64, BN=16)
add("exp2_wrap", "2^x by exponent bits without clamping at -127: where a score lies more than 127 * ln 2 = 88 below the running maximum (ALiBi slopes 1 and 0.5, keys far to the right of the row: more than about 88 and 176 away) the exponent wraps "
    "into the sign bit and the weight becomes a number of either sign and any size instead of 0. Heads 1 and 3 with small slopes are right.",
    "dense", "float32", True, "fa2", D_(4, 2, 60, 290, 64),
    lambda rng: dict(q_offset=20, alibi_slopes=np.array([1.0, 0.02, 0.5, 0.1], np.float32)), BM=64, BN=64, soft_exp=True)
add("v_swizzle", "V tile in shared memory: written with the 16-byte chunk XORed with (row & 7), read with (row & 3). In rows j with j % 8 >= 4 (within a tile) the value column chunks c and c ^ 4 "
    "(columns 0..31 and 32..63 of 64) change places.",
    "dense", "float16", False, "fa2", D_(6, 2, 99, 150, 64), dict(causal=True), BM=64, BN=64)
add("tail_pitch", "K tiles lie in shared memory with a row pitch of head_dim + 8; the bounds-checked copy of the last partial tile (keys 192..222) writes them with pitch head_dim, so scores of those keys are "
    "products with rows glued from two keys (and zeros at the end), key 192 alone excepted. Full tiles are right.",
    "dense", "bfloat16", True, "fa2", D_(4, 1, 70, 223, 64), dict(), BM=32, BN=64)
add("len_batch", "kv_lengths is read at pid % batch where pid = batch_index * heads + head; it should be pid // heads: heads take the length of another sequence, so short sequences show padding "
    "in some heads and long ones lose their end.",
    "dense", "float32", False, "fa2", D_(5, 5, 40, 160, 32, B=3), lambda rng: dict(kv_lengths=np.array([160, 71, 113])), BM=64, BN=64)
add("mask_bits", "The boolean mask is packed to 32-bit words, pitch of a row taken as S // 32 = 5 words rather than ceil = 6 (S = 171): row i reads its mask 32 * i bits too early; only row 0 is right.",
    "dense", "float32", True, "fa2", D_(4, 2, 75, 171, 64),
    lambda rng: dict(mask=rng.random((1, 75, 171)) < 0.6), BM=32, BN=64)
add("dropout_sum", "Dropout is applied to the weights before the row sum is taken: kept weights only are in the denominator (and in lse), and the 1 / (1 - 0.25) factor comes on top.",
    "dense", "float32", True, "fa2", D_(4, 4, 60, 140, 32),
    lambda rng: dict(causal=True, dropout_mask=rng.random((4, 60, 140)) < 0.75, dropout_rate=0.25), BM=32, BN=64)
add("pair_pack", "Epilogue packs two neighbouring columns into a bf16x2 register; for the second half of the 16-row MMA tile (rows with r % 16 >= 8) high and low are exchanged: columns 2e and "
    "2e + 1 change places there.",
    "dense", "bfloat16", False, "fa2", D_(6, 3, 93, 130, 48), dict(causal=True), BM=32, BN=64)
add("first_tile_max", "The row maximum is that of the first key tile (32 keys) for the whole row; weights are rounded to float16 before the second product, and later scores more than 11 above that maximum overflow to "
    "infinity there (keys grow along the sequence).",
    "dense", "float16", False, "fa2", D_(4, 2, 50, 330, 64, big=2.0, ramp=(0.2, 4.0)), dict(), BM=64, BN=32)
add("k_smooth_lse", "SageAttention style smoothing: the mean key of the head is subtracted from every key before the product. The output does not notice, but lse lacks scale * (query . mean key) in every row.",
    "dense", "float32", True, "fa2", D_(6, 2, 55, 61, 64, big=2.0), dict(), right="k_smooth_right", BM=64, BN=64)
add("chunk_offset", "Chunked local attention (chunk 64) compares j // 64 with i // 64, where i is the row number without q_offset = 90: rows look into the chunk of their row number, which lies 90 keys back.",
    "dense", "bfloat16", False, "fa2", D_(4, 2, 110, 200, 64), dict(causal=True, chunk=64), BM=64, BN=64)
add("rescale_order", "FlashAttention-3 overlap: the product of the previous key tile's weights with V is still pending when the accumulator is rescaled for the next tile's maximum, and is added after it: that product "
    "misses exp(m_old - m_new). Each row whose maximum rises after the first tile (64 keys) is wrong, lse is right.",
    "dense", "bfloat16", True, "fa3", D_(3, 1, 100, 230, 64), dict(causal=True), BM=64, BN=64)
add("q_overwritten", "Persistent kernel: the query tile of the next work item is prefetched into the one shared buffer before the last key tile of the current item has used it: scores of the last key tile (keys 128..169) are those of the next item's queries (next row tile, or next head).",
    "dense", "float32", False, "fa3", D_(4, 2, 120, 170, 64), dict(), BM=64, BN=64)
add("l_not_reset", "Persistent kernel on 5 CTAs: work items (48 rows of a head) t >= 5 start with the row maximum and row sum that item t - 5 of the same CTA ended with; only the accumulator is cleared. Their denominator contains the sum of another "
    "tile or head (output about halved, lse too large by about 0.7); items 0..4 (head 0 and rows 0..95 of head 1) are right, and so are the rows past 24 of an item whose "
    "predecessor was a tail tile of 24 rows (rows 72..95 of heads 2 and 3).",
    "dense", "float32", True, "fa3", D_(4, 2, 120, 170, 32), dict(), BM=48, BN=64)
add("tile_count", "The persistent scheduler has ceil(B * H * T / 64) tiles instead of B * H * ceil(T / 64) = 18: with T = 140 only 14 tiles are run, the last 4 (head 4's third row tile and all of head 5) are never computed and stay 0 (lse -inf).",
    "dense", "bfloat16", False, "fa3", D_(6, 2, 140, 140, 32), dict(causal=True), BM=64, BN=64)
add("early_release", "Two-stage V ring: the second warpgroup (rows 32.. of each 64-row tile) reads a stage after the producer has put the tile two further on into it: its weights of key tile n meet values of tile n + 2, except for the last two tiles.",
    "dense", "float16", False, "fa3", D_(3, 3, 128, 250, 32), dict(), BM=64, BN=48)
add("pack_row", "Rows of a group are packed into one MMA tile (packed row = t * group + u, group 4); the causal mask takes the packed row number for the row: row t of head u sees up to key q_offset + 4 t + u, thus "
    "3 t + u (0 to 12) future keys for T = 4 at q_offset 190 of 210 keys; only row 0 of heads 0 and 4 is right.",
    "dense", "float32", False, "split", D_(8, 2, 4, 210, 64, big=1.5), dict(causal=True, q_offset=190), NS=5, BN=32)
add("block_h", "Grouped decoding kernel with 4 heads a program takes kv head = program // ceil(6 / 4); but 6 is no multiple of 4: heads 0..7 read kv head 0 and heads 8..11 kv head 1, so heads 6 and 7 read the wrong one.",
    "dense", "bfloat16", False, "split", D_(12, 2, 1, 333, 128), dict(), NS=4, BN=32)
add("cascade_position", "Cascade attention (shared prefix of 144 keys, then suffix): the suffix pass counts its keys from 0 in the ALiBi term, as if the prefix were not there; distances of suffix keys are too large by 144.",
    "dense", "float32", True, "cascade", D_(6, 3, 20, 300, 64), lambda rng: dict(causal=True, alibi_slopes=slopes(6, 0.06)))
add("bias_before_cap", "The additive bias goes into the tanh of the softcap (cap * tanh((scale * qk + bias) / cap)) instead of being added after it: large biases are squeezed to +-5.",
    "dense", "float32", False, "eager", D_(4, 4, 50, 90, 64), lambda rng: dict(softcap=5.0, bias=rng.normal(size=(4, 1, 90)).astype(np.float32) * 3))

# ================================================================ packed
add("store_overrun", "The last row tile of a sequence (32 rows) is stored whole, without the row predicate; sequences run longest first, so the rows of a neighbouring longer sequence that was done before are overwritten: "
    "the first 27 rows of sequence 1 hold attention over the keys of sequence 0, the first 11 rows of sequence 4 attention over those of sequence 3.",
    "packed", "bfloat16", False, "fa2", P_(4, 2, [37, 90, 50, 21, 70], [60, 90, 120, 21, 75], 64), dict(causal=True), BM=32, BN=64)
add("tiles_of_empty", "The tile scheduler counts at least one row tile for every sequence, the launch grid counts ceil(len / 32): with two empty query sequences (1 and 3) the last two tiles of the grid, of the last "
    "sequence (its rows 32 to the end), are never run and stay 0.",
    "packed", "float32", False, "fa2", P_(6, 2, [45, 0, 33, 0, 90], [50, 10, 70, 20, 100], 32), dict(causal=True), BM=32, BN=32)
add("lse_layout", "lse is stored in (total_q, heads) order into a buffer that the caller reads as (heads, total_q); the output is right.",
    "packed", "float32", True, "fa2", P_(5, 5, [40, 33, 60], [40, 33, 60], 32), dict(causal=True), BM=64, BN=32)
add("offset_of_max", "Bottom-right alignment uses max_kv - max_q = 130 - 80 = 50 of the batch for every sequence instead of its own len_kv - len_q: sequences 0 (own offset 20) and 1 (own 0) see 30 and 50 future keys where these exist; sequence 2 is right.",
    "packed", "bfloat16", False, "fa2", P_(4, 2, [60, 45, 80], [80, 45, 130], 64), dict(causal=True), BM=32, BN=64)
add("tma_align", "Key loads begin at cu_kv rounded down to a multiple of 8 (TMA alignment) and the keys before the start are not masked: sequences beginning at 53, 118 and 225 see the last 5, 6 and 1 keys of the sequence before them.",
    "packed", "float32", False, "fa2", P_(6, 3, [53, 40, 80, 20], [53, 65, 107, 31], 32), dict(causal=True), BM=32, BN=64)
add("tile_sequence", "Row tiles of 32 are cut over total_q and each looks up its sequence once, for its first row: rows of a sequence that begins inside a tile are computed with keys and positions of the one before: the first 19 rows of sequence 1 and the first 6 of sequence 2.",
    "packed", "bfloat16", False, "fa2", P_(4, 1, [45, 77, 60], [60, 77, 64], 64), dict(causal=True), BM=32, BN=32)
add("alibi_global", "ALiBi distances are built from positions in the packed arrays (row in total_q minus key in total_kv) instead of positions in the sequence; sequences with cu_q != cu_kv, or fewer queries than keys, get distances off by a constant before the absolute value.",
    "packed", "float32", True, "fa2", P_(8, 2, [30, 41, 50], [64, 90, 55], 32), lambda rng: dict(alibi_slopes=slopes(8, 0.1)), BM=32, BN=64)
add("empty_lse", "Sequences without keys (sequence 1 with 25 rows) leave early and write lse = +inf (the convention of FlashAttention 2) and not -inf; the output 0 is right.",
    "packed", "float32", True, "fa2", P_(4, 2, [30, 25, 40], [50, 0, 61], 64), dict(), BM=32, BN=32)
add("quad_shuffle", "The row sum across the four lanes of a quad misses the shuffle with lane xor 2: lanes 0, 1 hold the sum over keys j % 8 < 4 and lanes 2, 3 that over j % 8 >= 4, and each divides its own output columns (e % 8 < 4 or >= 4) by its part; "
    "lse is that of the first part.",
    "packed", "bfloat16", True, "fa2", P_(4, 2, [44, 61], [70, 61], 64), dict(causal=True), BM=32, BN=64, quad=True)
add("lse_stale_max", "lse is built from the row maximum before the last key tile and the row sum after it; rows whose maximum rises in the last tile (64 keys) of their sequence have too small an lse; the output is right.",
    "packed", "bfloat16", True, "fa2", P_(4, 4, [40, 70], [120, 170], 64), dict(), BM=32, BN=64)

# ================================================================ paged
add("page_of_tile", "A key tile of 64 looks up the page of its first key only and goes on contiguously; with page size 48 the keys of a tile past the end of that page come from the physically next page.",
    "paged", "bfloat16", True, "fa2", G_(8, 2, 2, [200, 75, 131], 48, 64), dict(causal=True), BM=16, BN=64)
add("table_cache", "Only 8 entries of a sequence's block table are cached in shared memory and the index is taken & 7: from key 128 on (page size 16) pages 8, 9, ... are read as pages 0, 1, ... again; sequences up to 128 keys are right.",
    "paged", "float32", False, "split", G_(8, 8, 1, [100, 301, 200], 16, 32), dict(), NS=4, BN=32)
add("offset_16bit", "The key cache offset, in units of 16 bytes, is held in 16 bits: it wraps at 1 MiB, so keys on physical pages from 43 on (and part of page 42) are read from the beginning of the cache (values are right).",
    "paged", "float32", True, "fa2", G_(4, 2, 3, [300, 250, 380, 210], 48, 64, extra=45), dict(causal=True), BM=16, BN=64)
add("v_page_prefetch", "The page id of the next page is prefetched into the register from which V is still to be addressed; the loop is unrolled by two and only the odd copy has that: for pages 1, 3, 5, ... values come from the following page (unless it is the last one), keys are right.",
    "paged", "float16", False, "fa2", G_(8, 4, 1, [150, 217, 64], 32, 64), dict(), BM=16, BN=32)
add("stale_workspace", "Each sequence has its own number of splits (64 keys each) but the combine reads as many as the longest one has, from a workspace shared by the sequences one after another: sequence 1 (2 splits) and sequence 2 (3 splits) also merge the left-over partials 2..4 and 3..4 of sequence 0.",
    "paged", "float32", True, "workspace", G_(4, 2, 2, [260, 70, 150], 32, 64), dict(causal=True))
add("tree_odd", "The partial results of 7 splits are combined by a pairwise tree that takes n // 2 pairs a level and never picks up the odd one: of 7 splits only 0, 1, 3, 4 of them (levels 3 + 3, then 1 + 1) survive; splits 2, 5 and 6 (of 48 keys each in sequence 0, 32 in sequence 1) are lost.",
    "paged", "bfloat16", True, "split", G_(8, 1, 1, [310, 222], 32, 64), dict(), NS=7, BN=16)
add("combine_cols", "The combine kernel is launched for head_dim // 64 = 1 column blocks; for value dim 96 columns 64..95 are never combined and hold split 0's partial output.",
    "paged", "float16", False, "split", G_(4, 2, 1, [200, 130, 333], 16, 96), dict(), NS=5, BN=32)
add("sink_each_split", "The attention sink is put into the denominator of each of the 4 splits instead of once: it counts 4 times in output and lse.",
    "paged", "float32", True, "split", G_(6, 2, 1, [220, 45, 150], 16, 32),
    lambda rng: dict(sinks=np.array([3, 4, 5, 2, 4.5, 1], np.float32)), NS=4, BN=16)
add("lse_bf16", "The lse of each split is kept in bfloat16 between the split kernel and the combine: split weights are off by up to 2% (lse near 6, rounded to 2^-6), in all rows.",
    "paged", "float32", True, "split", G_(4, 4, 1, [390, 200], 32, 64), dict(), NS=6, BN=32)
add("softcap_pade", "tanh of the softcap is the quick quotient x (27 + x^2) / (27 + 9 x^2), clamped at |x| = 3: off by up to 2% of the cap of 20 for scores between 10 and 50; small scores are right.",
    "paged", "bfloat16", False, "fa2", G_(8, 2, 2, [140, 200], 16, 64, big=10.0), dict(softcap=20.0, causal=True), BM=16, BN=64)

# ================================================================ latent
add("uv_transpose", "w_uv of a head is read from memory as (latent, E) row-major and transposed where it lies as (E, latent): the up-projection of the output multiplies a scrambled matrix, all heads.",
    "latent", "bfloat16", False, "fa2", L_(6, 12, 110, 32, 16, 64, 48), dict(causal=True), BM=16, BN=64)
add("seesaw_right", "FlashMLA schedule with two key tiles (48 keys) a step: weights of the first tile are against its maximum m0 and must be multiplied by exp(m0 - m1) before the second warpgroup uses them for the right half of the latent columns; that is left out, "
    "so in rows whose maximum rises in the second tile of a pair latent columns 48..95 have tile 0, 2, ... too heavy.",
    "latent", "bfloat16", True, "seesaw", L_(10, 4, 210, 32, 16, 96, 32, big=1.5), dict(causal=True), BM=16, BN=48)
add("rope_batch", "k_rope is addressed without its batch stride: every sequence uses the rotary keys of sequence 0 (the latent part is right); batches 1 and 2 are wrong.",
    "latent", "float32", True, "fa1", L_(4, 10, 90, 24, 24, 48, 32, B=3), dict(causal=True), BM=16, BN=32)
add("head_base", "Heads are handled in tiles of 16; the epilogue's w_uv pointer lacks the tile base, so heads 16..19 of 20 are projected with w_uv of heads 0..3.",
    "latent", "float16", False, "fa2", L_(20, 3, 150, 32, 16, 64, 32), dict(causal=True), BM=16, BN=64)
add("rope_layout", "Rotary keys are taken from interleaved to half-split order (even components, then odd) on load, rotary queries are not: the rope part of the score pairs the wrong components; component 0 and the last are right.",
    "latent", "float16", False, "fa2", L_(6, 25, 130, 32, 32, 64, 32), dict(causal=True), BM=32, BN=64)
add("merge_swapped", "Context (keys 0..79 of 170) and new keys are attended apart and merged by lse, with the two weights exchanged: the output of one takes the weight of the other; lse is right.",
    "latent", "bfloat16", True, "cascade", L_(8, 16, 170, 32, 16, 64, 32), dict(causal=True))
add("combine_exp2", "The combine of 5 splits uses 2^x on lse values that are natural logarithms: split weights are too even, and lse is wrong with it.",
    "latent", "float16", True, "split", L_(8, 1, 260, 32, 16, 64, 32, big=2.0), dict(), NS=5, BN=32)
add("tf32", "float32 products QK^T run in TF32 (10 bits of mantissa kept for query and key); scores of size 10 are off by some 1e-3, in all rows.",
    "latent", "float32", True, "fa2", L_(5, 21, 120, 48, 16, 64, 32, big=3.0), dict(causal=True), BM=32, BN=64)
add("empty_split_lse", "Splits without keys (8 splits of 32 keys, but only 150 keys: splits 5, 6 and 7) leave lse at 0 instead of -inf: each joins the combine with an output of 0 and the weight of a key of score 0, in output and lse.",
    "latent", "float32", True, "split", L_(6, 1, 150, 32, 16, 64, 32), dict(), NS=8, BN=32)


def main():
    import time
    from refattn.oracle import check
    good = 0
    seen = {}
    for name, sentence, tags, build in FAULTS:
        res, dur = [], []
        for wrong in (False, True):
            kernel, arrays, options = build(wrong)
            before = [np.array(a, copy=True) for a in arrays]
            t = time.perf_counter()
            got = kernel(*arrays, **options)
            dur.append(time.perf_counter() - t)
            t = time.perf_counter()
            kernel(*arrays, **options)
            dur[-1] = min(dur[-1], time.perf_counter() - t)
            assert all(np.array_equal(a, b) for a, b in zip(arrays, before))
            o, l = got if tags["lse"] else (got, None)
            fn = FUNCTION[tags["form"]]
            rep = check(o, *arrays, **({} if l is None else {"lse": l}), function=fn, **options)
            res.append(bool(rep.passed))
        ok = res == [True, False]
        good += ok
        seen[tags["form"]] = seen.get(tags["form"], 0) + 1
        seen[tags["dtype"]] = seen.get(tags["dtype"], 0) + 1
        seen["lse"] = seen.get("lse", 0) + tags["lse"]
        if not ok or max(dur) > 0.015:
            print(name, "right passes", res[0], "wrong passes", res[1], "ms", [round(x * 1e3, 1) for x in dur])
    print(good, "of", len(FAULTS), "pass the verification", seen)


if __name__ == "__main__":
    main()
