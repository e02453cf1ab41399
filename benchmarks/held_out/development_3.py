"""Wrong attention kernels (author G)."""
import math

import ml_dtypes
import numpy as np

F32 = np.float32
BF16 = ml_dtypes.bfloat16
F16 = np.float16
NPDT = {"float32": np.float32, "bfloat16": BF16, "float16": np.float16}
INF = F32(np.inf)
LN2 = F32(math.log(2.0))


# ---------------------------------------------------------------- common pieces
def rnd(x, dt):
    return x if dt == np.float32 else x.astype(dt).astype(F32)


def pv(p, v, vis=None):
    """P V; what is hidden takes no part, whatever it holds."""
    if np.isfinite(v).all():
        return p @ v
    seen = np.ones(p.shape, F32) if vis is None else np.broadcast_to(vis, p.shape).astype(F32)
    o = p @ np.where(np.isfinite(v), v, F32(0))
    o = np.where(seen @ (v == np.inf).astype(F32) > 0, o + INF, o)
    o = np.where(seen @ (v == -np.inf).astype(F32) > 0, o - INF, o)
    return np.where(seen @ np.isnan(v).astype(F32) > 0, F32(np.nan), o)


class Args:
    pass


def setup(q, k, v, scale=None, causal=False, window=None, chunk=None, softcap=None, bias=None, mask=None,
          alibi_slopes=None, sinks=None, kv_lengths=None, q_offset=None, dropout_mask=None, dropout_rate=None):
    a = Args()
    a.dt, a.lead = q.dtype, q.shape[:-3]
    H, T, D = q.shape[-3:]
    K, S, E = k.shape[-3], k.shape[-2], v.shape[-1]
    B, G = int(np.prod(a.lead, dtype=int)), H // K
    a.B, a.H, a.K, a.G, a.T, a.S, a.D, a.E = B, H, K, G, T, S, D, E
    a.q = q.astype(F32).reshape(B, K, G, T, D)
    a.k = k.astype(F32).reshape(B, K, 1, S, D)
    a.v = v.astype(F32).reshape(B, K, 1, S, E)
    a.scale = F32(1 / math.sqrt(D) if scale is None else scale)
    a.causal, a.window, a.chunk, a.softcap = causal, window or (None, None), chunk, softcap
    lens = S if kv_lengths is None else kv_lengths
    a.klen = np.broadcast_to(np.asarray(lens, np.int64), a.lead).reshape(B, 1, 1, 1, 1)
    off = a.klen.reshape(a.lead) - T if q_offset is None else q_offset
    a.off = np.broadcast_to(np.asarray(off, np.int64), a.lead).reshape(B, 1, 1, 1, 1)
    a.i = np.arange(T).reshape(T, 1)
    a.pos = a.off + a.i                                     # (B, 1, 1, T, 1)
    a.bias = a.mask = a.drop = None
    full = a.lead + (H, T, S)
    a.rawbias = bias
    if bias is not None:
        a.bias = np.broadcast_to(np.asarray(bias).astype(F32), full).reshape(B, K, G, T, S)
    if mask is not None:
        a.mask = np.broadcast_to(mask, full).reshape(B, K, G, T, S)
    if dropout_mask is not None:
        a.drop = np.broadcast_to(dropout_mask, full).reshape(B, K, G, T, S)
    a.rate = F32(dropout_rate or 0)
    a.slopes = a.sinks = None
    if alibi_slopes is not None:
        a.slopes = np.broadcast_to(np.asarray(alibi_slopes).astype(F32), a.lead + (H,)).reshape(B, K, G, 1, 1)
    if sinks is not None:
        a.sinks = np.broadcast_to(np.asarray(sinks).astype(F32), a.lead + (H,)).reshape(B, K, G, 1, 1)
    return a


def visible(a, pos, j, klen=None):
    vis = j < (a.klen if klen is None else klen)
    if a.causal:
        vis = vis & (j <= pos)
    left, right = a.window
    if left is not None:
        vis = vis & (j >= pos - left)
    if right is not None:
        vis = vis & (j <= pos + right)
    if a.chunk is not None:
        vis = vis & (j // a.chunk == pos // a.chunk)
    return vis


def logits(a, q, k, pos, j, bias=None):
    s = (q @ k.swapaxes(-1, -2)) * a.scale
    if a.softcap is not None:
        s = F32(a.softcap) * np.tanh(s / F32(a.softcap))
    if a.slopes is not None:
        s = s - a.slopes * np.abs(pos - j).astype(F32)
    if bias is not None:
        s = s + bias
    return s


def sub(x, r0, r1, c0, c1):
    return None if x is None else x[..., r0:r1, c0:c1]


def fresh(a, M, E=None):
    shape = (a.B, a.K, a.G, M, 1)
    m, l = np.full(shape, -INF), np.zeros(shape, F32)
    if a.sinks is not None:
        m, l = np.array(np.broadcast_to(a.sinks, shape), F32), np.ones(shape, F32)
    return m, l, np.zeros(shape[:-1] + (E or a.E,), F32)


def fold(state, s, v, vis, dt):
    """One online softmax step."""
    m, l, acc = state
    new = np.maximum(m, s.max(-1, keepdims=True))
    base = np.where(new == -INF, F32(0), new)
    p, r = np.exp(s - base), np.exp(m - base)
    return new, l * r + p.sum(-1, keepdims=True), acc * r + pv(rnd(p, dt), v, vis)


def close(m, l, acc):
    dead = l == 0
    out = np.where(dead, F32(0), acc / np.where(dead, F32(1), l))
    return out, np.where(dead, -INF, m + np.log(np.where(dead, F32(1), l)))[..., 0]


def finish(a, out, lse, want):
    out = out.reshape(a.lead + (a.H, a.T, a.E)).astype(a.dt)
    return (out, lse.reshape(a.lead + (a.H, a.T)).astype(F32)) if want else out


def span(a, r0, r1):
    """Keys [lo, hi) that rows r0..r1 may see."""
    lo, hi = 0, int(a.klen.max())
    p0, p1 = int(a.off.min()) + r0, int(a.off.max()) + r1 - 1
    left, right = a.window
    if a.causal:
        hi = min(hi, p1 + 1)
    if right is not None:
        hi = min(hi, p1 + right + 1)
    if left is not None:
        lo = max(0, p0 - left)
    if a.chunk is not None:
        lo, hi = max(lo, p0 // a.chunk * a.chunk), min(hi, (p1 // a.chunk + 1) * a.chunk)
    return max(lo, 0), max(hi, 0)


def quiet(kernel):
    def run(*arrays, **options):
        with np.errstate(all="ignore"):
            return kernel(*arrays, **options)
    return run


# ---------------------------------------------------------------- 1. tiled online softmax
def swizzled(k, j0):
    """K tile through shared memory with an XOR swizzle of 8-element chunks."""
    D = k.shape[-1]
    n = D // 8
    if D % 8:
        return k
    src = np.empty((8, D), int)
    for r in range(8):
        last = {(c ^ r) % n: c for c in range(n)}
        src[r] = (np.array([last.get(c ^ r if (c ^ r) < n else (c ^ r) % n, c) for c in range(n)])[:, None] * 8
                  + np.arange(8)).reshape(-1)
    rows = np.arange(k.shape[-2])
    return k[..., rows[:, None], src[rows % 8]]


def tiled(f="", BM=64, BN=64, want=False):
    @quiet
    def kernel(q, k, v, **options):
        a = setup(q, k, v, **options)
        B, K, G, H, T, S, D, E = a.B, a.K, a.G, a.H, a.T, a.S, a.D, a.E
        heads = np.arange(H)
        if f == "shift_map":
            idx = np.minimum(heads >> (G.bit_length() - 1), K - 1)
            a.k = a.k[:, idx, 0].reshape(B, K, G, S, D)
            a.v = a.v[:, idx, 0].reshape(B, K, G, S, E)
        if f == "cluster":
            a.k = a.k[:, (heads & ~1) // G, 0].reshape(B, K, G, S, D)
        if f == "pad_scale" and options.get("scale") is None:
            a.scale = F32(1 / math.sqrt(1 << (D - 1).bit_length()))
        if f == "bias_stride" and a.rawbias is not None and a.rawbias.shape[-2] == 1:
            flat = np.asarray(a.rawbias).astype(F32).reshape(-1)
            idx = (heads[:, None, None] * S + np.arange(T)[:, None] * S + np.arange(S)) % flat.size
            a.bias = np.broadcast_to(flat[idx].reshape(K, G, T, S), (B, K, G, T, S))
        if f == "bit_stride" and a.mask is not None:
            w = -(-S // 32)
            words = np.zeros(a.mask.shape[:-1] + (w * 32,), bool)
            words[..., :S] = a.mask
            flat = words.reshape(B, K, G, T * w * 32)
            idx = np.arange(T)[:, None] * (S // 32 * 32) + np.arange(S)
            a.mask = flat[..., idx]
        klen = a.klen
        if f == "batch_len":
            lens = a.klen.reshape(B)
            klen = lens[np.minimum(np.arange(B * H) // K, B - 1)].reshape(B, K, G, 1, 1)
        hidmax = f == "hidden_max"
        dt = a.dt
        out = np.zeros((B, K, G, T, E), F32)
        lse = np.zeros((B, K, G, T), F32)
        neg = F32(-1e30) if f == "finite_mask" else -INF
        for r0 in range(0, T, BM):
            r1 = min(r0 + BM, T)
            M = r1 - r0
            pos = a.pos[..., r0:r1, :]
            mpos = pos
            if f == "sublane":
                mpos = a.off + r0 + (np.arange(M) // 8 * 8)[:, None]
            if f == "consumer2":
                mpos = a.off + r0 + (np.arange(M) % (BM // 2))[:, None]
            if f == "gqa_pos":
                r = np.arange(r0, r1)[None, :] * G + np.arange(G)[:, None]
                mpos = a.off + (r % T)[:, :, None]
            m, l, acc = fresh(a, M)
            l_hi = np.zeros_like(l)
            if f == "finite_mask" and a.sinks is None:
                m = np.full_like(m, neg)
            if f == "m_zero" and a.sinks is None:
                m = np.zeros_like(m)
            lo, hi = span(a, r0, r1)
            if f in ("batch_len", "hidden_max"):
                hi = S
            if f in ("consumer2", "gqa_pos"):
                lo = 0
                hi = S
            if f == "chunk_trunc" and a.chunk:
                lo, hi = 0, S
            t0, t1 = lo // BN, -(-hi // BN)
            if f == "diag_floor" and a.causal and hi < S:
                t1 = hi // BN
            if f == "sink_exit" and t1 <= t0:
                lse[..., r0:r1] = -INF
                continue
            order = list(range(t0, t1))
            if f == "masked_iters":
                order = order[::-1]
            qt = a.q[..., r0:r1, :]
            for n, t in enumerate(order):
                c0, c1 = t * BN, min(t * BN + BN, S)
                j = np.arange(c0, c1)
                kt, vt = a.k[..., c0:c1, :], a.v[..., c0:c1, :]
                if f == "clamp" and c0 + BN > S >= BN:
                    kt, vt = a.k[..., S - BN:S - BN + len(j), :], a.v[..., S - BN:S - BN + len(j), :]
                if f == "swizzle":
                    kt = swizzled(kt, c0)
                bias = sub(a.bias, r0, r1, c0, c1)
                if f == "bias_log2" and bias is not None:
                    bias = bias * LN2
                vis = visible(a, mpos, j, klen)
                if f == "unsigned" and a.window[0] is not None:
                    vis = vis & (mpos >= a.window[0])
                if f == "chunk_trunc" and a.chunk:
                    vis = (j < klen) & (j // a.chunk == np.trunc(mpos / a.chunk).astype(int))
                if f == "masked_iters" and n >= -(-BM // BN):
                    save, a.causal = a.causal, False
                    vis = visible(a, mpos, j, klen)
                    a.causal = save
                if a.mask is not None:
                    mt = a.mask[..., r0:r1, c0:c1]
                    if f == "corners":
                        corner = mt[..., :1, :1] & mt[..., -1:, :1] & mt[..., :1, -1:] & mt[..., -1:, -1:]
                        mt = mt | corner
                    vis = vis & mt
                if f == "qk_sat":
                    s = np.clip(qt @ kt.swapaxes(-1, -2), -65504, 65504).astype(np.float16).astype(F32) * a.scale
                elif f == "two_terms":
                    qh, kh = rnd(qt, BF16), rnd(kt, BF16)
                    s = (qh @ kh.swapaxes(-1, -2) + qh @ (kt - kh).swapaxes(-1, -2)) * a.scale
                elif f == "cap_partial" and a.softcap is not None and not vis.all():
                    save, a.softcap = a.softcap, None
                    s = logits(a, qt, kt, pos, j, bias)
                    a.softcap = save
                elif f == "pade" and a.softcap is not None:
                    x = (qt @ kt.swapaxes(-1, -2)) * a.scale / F32(a.softcap)
                    s = F32(a.softcap) * x * (27 + x * x) / (27 + 9 * x * x)
                elif f == "alibi_sign" and a.slopes is not None:
                    s = (qt @ kt.swapaxes(-1, -2)) * a.scale - a.slopes * (pos - j).astype(F32)
                elif f == "alibi_bf16" and a.slopes is not None:
                    x = rnd(pos.astype(F32), BF16) - rnd(j.astype(F32), BF16)
                    s = (qt @ kt.swapaxes(-1, -2)) * a.scale - a.slopes * np.abs(x)
                else:
                    s = logits(a, qt, kt, pos, j, bias)
                top = s.max(-1, keepdims=True) if hidmax else None
                s = np.where(vis, s, neg)
                new = np.maximum(m, s.max(-1, keepdims=True) if top is None else top)
                if f == "fixed_max" and n:
                    new = np.where(m == -INF, new, m)
                base = np.where(new == -INF, F32(0), new)
                r = np.exp(m - base)
                p = np.exp(s - base)
                if f == "fixed_max":
                    p = np.minimum(p, F32(65504))
                if f == "poly_exp":
                    x = (s - base) * F32(1.4426950408889634)
                    xi = np.floor(x)
                    lin = np.where(np.isfinite(x), np.exp2(xi) * (1 + (x - xi)), p).astype(F32)
                    p = np.where(j % 4 == 3, lin, p)
                if f == "lazy":
                    r = np.where((m != -INF) & (new - m <= 8 * LN2), F32(1), r)
                if f == "half_wave":
                    left = j % 64 < 32
                    l_hi = l_hi * r + p[..., ~left].sum(-1, keepdims=True)
                    l = l * r + p[..., left].sum(-1, keepdims=True)
                elif f == "lanes128":
                    l = l * r + p[..., :128].sum(-1, keepdims=True)
                elif f == "l_bf16":
                    l = rnd(rnd(l * r, BF16) + rnd(p.sum(-1, keepdims=True), BF16), BF16)
                else:
                    l = l * r + p.sum(-1, keepdims=True)
                if f == "p_e4m3":
                    w = p.astype(ml_dtypes.float8_e4m3fn).astype(F32)
                else:
                    w = rnd(p, dt)
                if f == "mfma":
                    N = len(j)
                    pad = -N % 16
                    vt = np.concatenate([vt, np.zeros(vt.shape[:-2] + (pad, E), F32)], -2)
                    w = np.concatenate([w, np.zeros(w.shape[:-1] + (pad,), F32)], -1)
                    perm = np.arange(16).reshape(4, 4).T.reshape(-1)
                    idx = (np.arange(0, N + pad, 16)[:, None] + perm).reshape(-1)
                    prod = pv(w, vt[..., idx, :], w != 0)
                else:
                    prod = pv(w, vt, vis if f != "finite_mask" else None)
                if f == "half_acc":
                    r = np.where(np.arange(E) < 64, r, F32(1))
                acc = acc * r + prod
                m = new
            if f == "half_wave":
                lo_out, _ = close(m, l, acc)
                hi_out, _ = close(m, l_hi, acc)
                o = np.where(np.arange(E) < E // 2, lo_out, hi_out)
                z = close(m, l + l_hi, acc)[1]
            else:
                o, z = close(m, l, acc)
            if f == "epi_rows":
                src = np.arange(M)
                src = np.where(src % 32 >= 16, src - 16, src)
                o = close(m, l[..., src, :], acc)[0]
            out[..., r0:r1, :], lse[..., r0:r1] = o, z
            if f == "empty_inf":
                lse[..., r0:r1] = np.where(z == -INF, INF, z)
        if f == "xcd":
            nt = -(-T // BM)
            n = B * H * nt
            pid = np.arange(n)
            done = np.zeros(n, bool)
            done[np.minimum((pid % 8) * max(n // 8, 1) + pid // 8, n - 1)] = True
            rows = np.repeat(done.reshape(B, K, G, nt), BM, axis=-1)[..., :T]
            out, lse = np.where(rows[..., None], out, F32(0)), np.where(rows, lse, F32(0))
        if f == "wide_value":
            out[..., D:] = 0
        if f == "micro":
            t4, e4 = T // 4 * 4, E // 4 * 4
            x = out[..., :t4, :e4].reshape(B, K, G, t4 // 4, 4, e4 // 4, 4)
            out[..., :t4, :e4] = x.swapaxes(-1, -3).reshape(B, K, G, t4, e4)
        if f == "lse_stride":
            Tp = -(-T // BM) * BM
            buf = np.zeros((B * H, Tp), F32)
            buf[:, :T] = lse.reshape(B * H, T)
            lse = buf.reshape(-1)[:B * H * T]
        return finish(a, out, lse, want)
    return kernel


# ---------------------------------------------------------------- 2. pipelined / persistent
def pipelined(f="", BM=64, BN=32, want=False):
    @quiet
    def kernel(q, k, v, **options):
        a = setup(q, k, v, **options)
        B, K, G, T, S, D, E = a.B, a.K, a.G, a.T, a.S, a.D, a.E
        out = np.zeros((B, K, G, T, E), F32)
        lse = np.zeros((B, K, G, T), F32)
        nt = -(-T // BM)
        work = []
        for i in range((nt + 1) // 2):
            work.append((i, False))
            if nt - 1 - i != i:
                work.append((nt - 1 - i, True))
        keep = None

        def load(x, t):
            buf = np.zeros(x.shape[:3] + (BN, x.shape[-1]), F32)
            part = x[..., t * BN:t * BN + BN, :]
            buf[..., :part.shape[-2], :] = part
            return buf

        for it, second in work:
            r0, r1 = it * BM, min(it * BM + BM, T)
            pos = a.pos[..., r0:r1, :]
            m, l, acc = fresh(a, r1 - r0)
            if f == "l_kept" and second:
                m, l, acc = (x[..., :r1 - r0, :] for x in keep)
            lo, hi = span(a, r0, r1)
            tiles = list(range(lo // BN, -(-hi // BN)))
            if a.mask is not None:
                tiles = [t for t in tiles if a.mask[..., r0:r1, t * BN:t * BN + BN].any()]
            n = len(tiles)
            if f == "unroll" and n > 1:
                tiles = tiles[:n // 2 * 2]
                n = len(tiles)
            kb, vb = [None, None], [np.zeros((B, K, 1, BN, E), F32)] * 2
            if n:
                kb[0], vb[0] = load(a.k, tiles[0]), load(a.v, tiles[0])
            held = None
            for x, t in enumerate(tiles):
                stage = x & 1
                if x + 1 < n:
                    kb[1 - stage], vb[1 - stage] = load(a.k, tiles[x + 1]), load(a.v, tiles[x + 1])
                c0, c1 = t * BN, min(t * BN + BN, S)
                N = c1 - c0
                j = np.arange(c0, c1)
                bias = sub(a.bias, r0, r1, c0, c1)
                if f == "bias_lag" and bias is not None:
                    now = np.zeros(bias.shape[:-1] + (BN,), F32)
                    now[..., :N] = bias
                    if held is not None:
                        bias = held[..., :N]
                    held = now
                s = logits(a, a.q[..., r0:r1, :], kb[stage][..., :N, :], pos, j, bias)
                vis = visible(a, pos, j)
                if a.mask is not None:
                    vis = vis & a.mask[..., r0:r1, c0:c1]
                s = np.where(vis, s, -INF)
                vt = vb[stage]
                if f == "v_phase":
                    vt = vb[(t - tiles[0]) & 1]
                if f == "v_overrun" and x + 2 < n:
                    vt = load(a.v, tiles[x + 2])
                m, l, acc = fold((m, l, acc), s, vt[..., :N, :], vis, a.dt)
            keep = fresh(a, BM)
            for x, y in zip(keep, (m, l, acc)):
                x[..., :r1 - r0, :] = y
            out[..., r0:r1, :], lse[..., r0:r1] = close(m, l, acc)
        return finish(a, out, lse, want)
    return kernel


# ---------------------------------------------------------------- 3. two passes
def two_pass(f="", BN=64, want=False):
    @quiet
    def kernel(q, k, v, **options):
        a = setup(q, k, v, **options)
        m, l, acc = fresh(a, a.T)
        for c0 in range(0, a.S, BN):
            c1 = min(c0 + BN, a.S)
            j = np.arange(c0, c1)
            s = logits(a, a.q, a.k[..., c0:c1, :], a.pos, j, sub(a.bias, 0, a.T, c0, c1))
            s = np.where(visible(a, a.pos, j), s, -INF)
            new = np.maximum(m, s.max(-1, keepdims=True))
            base = np.where(new == -INF, F32(0), new)
            l = l * np.exp(m - base) + np.exp(s - base).sum(-1, keepdims=True)
            m = new
        base = np.where(m == -INF, F32(0), m)
        inv = np.where(l == 0, F32(0), 1 / np.where(l == 0, F32(1), l))
        for c0 in range(0, a.S, BN):
            c1 = min(c0 + BN, a.S)
            j = np.arange(c0, c1)
            s = logits(a, a.q, a.k[..., c0:c1, :], a.pos, j, sub(a.bias, 0, a.T, c0, c1))
            if f == "pass_two":
                save, a.window = a.window, (None, a.window[1])
                vis = visible(a, a.pos, j)
                a.window = save
            else:
                vis = visible(a, a.pos, j)
            s = np.where(vis, s, -INF)
            acc = acc + pv(rnd(np.exp(s - base) * inv, a.dt), a.v[..., c0:c1, :], vis)
        z = np.where(l == 0, -INF, m + np.log(np.where(l == 0, F32(1), l)))[..., 0]
        return finish(a, acc, z, want)
    return kernel


# ---------------------------------------------------------------- 4. eager
def eager(f="", want=False):
    @quiet
    def kernel(q, k, v, **options):
        if f == "t1_causal" and q.shape[-2] == 1:
            options = dict(options, causal=False)
        if f == "window_zero" and options.get("window"):
            left, right = options["window"]
            options = dict(options, window=(left or None, right))
        if f == "len_offset" and options.get("q_offset") is None:
            options = dict(options, q_offset=k.shape[-2] - q.shape[-2])
        a = setup(q, k, v, **options)
        T, S = a.T, a.S
        j = np.arange(S)
        if f == "cap_after" and a.softcap is not None and a.bias is not None:
            s = (a.q @ a.k.swapaxes(-1, -2)) * a.scale + a.bias
            s = F32(a.softcap) * np.tanh(s / F32(a.softcap))
        else:
            s = logits(a, a.q, a.k, a.pos, j, a.bias)
        if f == "slm" and S > 256:
            s = s.copy()
            s[..., :S - 256] = s[..., 256:]
        vis = visible(a, a.pos, j)
        if a.mask is not None:
            vis = vis & a.mask
        s = np.where(vis, s, -INF)
        m = s.max(-1, keepdims=True)
        if a.sinks is not None:
            m = np.maximum(m, a.sinks)
        base = np.where(m == -INF, F32(0), m)
        p = np.exp(s - base)
        l = p.sum(-1, keepdims=True)
        if a.sinks is not None:
            snk = a.sinks * a.scale if f == "sink_scale" else a.sinks
            l = l + np.exp(snk - base)
        if f == "zero_pad":
            l = l + (-S % 64) * np.exp(-base) * (m != -INF)
        if a.drop is not None:
            if f == "drop_norm":
                l = (p * a.drop).sum(-1, keepdims=True)
            p = p * a.drop / (1 - a.rate)
            vis = vis & a.drop
        w = p / np.where(l == 0, F32(1), l)
        out = pv(rnd(w, a.dt), a.v, vis)
        z = np.where(l == 0, -INF, m + np.log(np.where(l == 0, F32(1), l)))[..., 0]
        return finish(a, out, z, want)
    return kernel


# ---------------------------------------------------------------- 5. split KV (flash decoding)
def split(f="", L=48, want=False):
    @quiet
    def kernel(q, k, v, **options):
        a = setup(q, k, v, **options)
        B, K, G, H, T, S, E = a.B, a.K, a.G, a.H, a.T, a.S, a.E
        sinks, a.sinks = a.sinks, None
        if f == "swap_slope" and a.slopes is not None and T == 1:
            a.slopes = a.slopes[:, :, :1]
        outs, lses = [], []
        for c0 in range(0, max(S, 1), L):
            c1 = min(c0 + L, S)
            if f == "overlap":
                c1 = min(c0 + L + 1, S)
            j = np.arange(c0, c1)
            if f == "sink_each":
                a.sinks = sinks
            m, l, acc = fresh(a, T)
            a.sinks = None
            s = logits(a, a.q, a.k[..., c0:c1, :], a.pos, j, sub(a.bias, 0, T, c0, c1))
            vis = visible(a, a.pos, j)
            if a.mask is not None:
                vis = vis & a.mask[..., c0:c1]
            m, l, acc = fold((m, l, acc), np.where(vis, s, -INF), a.v[..., c0:c1, :], vis, a.dt)
            o, z = close(m, l, acc)
            if f == "empty_zero":
                z = np.where(z == -INF, F32(0), z)
            outs.append(o)
            lses.append(z)
        outs, lses = np.stack(outs), np.stack(lses)            # (n, B, K, G, T[, E])
        n = len(outs)
        if f == "max8":
            outs, lses, n = outs[:8], lses[:8], min(n, 8)
        if f == "ws_bf16":
            outs = rnd(outs, BF16)
        if f == "ws_layout":
            lses = lses.reshape(n, B, H, T).swapaxes(2, 3).reshape(n, B, K, G, T)
        top = lses.max(0)
        if sinks is not None:
            top = np.maximum(top, sinks[..., 0])
        base = np.where(top == -INF, F32(0), top)
        w = np.exp2(lses - base) if f == "base2" else np.exp(lses - base)
        l = w.sum(0)
        if sinks is not None and f != "sink_each":
            l = l + np.exp(sinks[..., 0] - base)
        den = np.where(l == 0, F32(1), l)
        use = np.where(w[..., None] > 0, outs, F32(0)) if np.isfinite(lses).any() else outs
        out = (w[..., None] * use).sum(0) / den[..., None]
        out = np.where(np.isnan(l)[..., None], F32(np.nan), out)
        z = np.where(l == 0, -INF, base + np.log(den))
        if f == "lse_groups":
            z = z.reshape(B, K, G, T).swapaxes(1, 2)
        if f == "lse_local" and T > 1:
            z = np.where(np.arange(T) == T - 1, z, lses[-1])
        return finish(a, out, z, want)
    return kernel


# ---------------------------------------------------------------- 6. packed (varlen)
def rows_online(a, BM, BN, skip=0):
    out = np.zeros((a.B, a.K, a.G, a.T, a.E), F32)
    lse = np.zeros((a.B, a.K, a.G, a.T), F32)
    for r0 in range(0, a.T, BM):
        r1 = min(r0 + BM, a.T)
        pos = a.pos[..., r0:r1, :]
        state = fresh(a, r1 - r0)
        lo, hi = span(a, r0, r1)
        for c0 in range(lo // BN * BN, hi, BN):
            c1 = min(c0 + BN, a.S)
            j = np.arange(c0, c1)
            vis = visible(a, pos, j)
            if a.mask is not None:
                vis = vis & a.mask[..., r0:r1, c0:c1]
            s = logits(a, a.q[..., r0:r1, :], a.k[..., c0:c1, :], pos, j, sub(a.bias, r0, r1, c0, c1))
            state = fold(state, np.where(vis, s, -INF), a.v[..., c0:c1, :], vis, a.dt)
        out[..., r0:r1, :], lse[..., r0:r1] = close(*state)
    return out, lse


def packed(f="", BM=32, BN=32, want=False):
    @quiet
    def kernel(q, k, v, *, cu_q, cu_kv, bias=None, kv_lengths=None, q_offset=None, alibi_slopes=None, **options):
        H, Q, D = q.shape
        K, R, E = v.shape
        cu_q, cu_kv = np.asarray(cu_q), np.asarray(cu_kv)
        N = len(cu_q) - 1
        G = H // K
        if f == "mod_heads":
            idx = np.arange(H) % K
            k, v = k[idx], v[idx]
        out, lse = np.zeros((H, Q, E), F32), np.zeros((H, Q), F32)
        lens = np.diff(cu_kv)
        used = lens if kv_lengths is None else np.broadcast_to(kv_lengths, (N,))
        maxq, maxk = (int(np.diff(cu_q).max()), int(lens.max())) if N else (0, 0)
        grid = -(-Q // BM)
        for n in range(N):
            a0, a1, b0, b1 = int(cu_q[n]), int(cu_q[n + 1]), int(cu_kv[n]), int(cu_kv[n + 1])
            if a1 == a0:
                continue
            T = a1 - a0
            off = int(used[n]) - T if q_offset is None else int(np.broadcast_to(q_offset, (N,))[n])
            length = int(used[n])
            e1 = b1
            if f == "max_offset" and q_offset is None:
                off = maxk - maxq
            if f == "next_seq" and length == b1 - b0:
                e1 = min(b0 + -(-(b1 - b0) // BN) * BN, R)
                length = e1 - b0
            if f == "used_starts":
                b0 = int(np.concatenate([[0], np.cumsum(used)])[n])
                e1 = b0 + (b1 - int(cu_kv[n]))
            bt = None
            if bias is not None:
                full = np.broadcast_to(bias, (H, Q, R))
                bt = full[:, :T, :b1 - b0] if f == "bias_local" else full[:, a0:a1, b0:b1]
                if bt.shape[-1] != e1 - b0:
                    bt = None
            sl = alibi_slopes
            a = setup(q[:, a0:a1], k[:, b0:e1], v[:, b0:e1], bias=bt, kv_lengths=length, q_offset=off,
                      alibi_slopes=sl, **options)
            if f == "alibi_global" and sl is not None:
                i, j = a0 + np.arange(T)[:, None], b0 + np.arange(e1 - b0)
                a.bias = np.broadcast_to(-a.slopes * np.abs(i - j).astype(F32), (1, a.K, a.G, T, e1 - b0))
                a.slopes = None
            o, z = rows_online(a, BM, BN)
            o, z = o.reshape(H, T, E), z.reshape(H, T)
            if f == "grid":
                tiles = -(-T // BM)
                rows = max(0, min(tiles, grid)) * BM
                grid -= tiles
                o[:, rows:], z[:, rows:] = 0, 0
            if f == "search_left" and n + 1 <= N and a0 > 0:
                prev = n - 1
                while prev > 0 and cu_q[prev] == a0:
                    prev -= 1
                p0, p1 = int(cu_kv[prev]), int(cu_kv[prev + 1])
                po = int(used[prev]) - int(cu_q[prev + 1] - cu_q[prev]) + (a0 - int(cu_q[prev]))
                a = setup(q[:, a0:a0 + 1], k[:, p0:p1], v[:, p0:p1], kv_lengths=int(used[prev]), q_offset=po,
                          alibi_slopes=sl, **options)
                o1, z1 = rows_online(a, BM, BN)
                o[:, :1], z[:, :1] = o1.reshape(H, 1, E), z1.reshape(H, 1)
            out[:, a0:a1], lse[:, a0:a1] = o, z
        out = out.astype(q.dtype)
        return (out, lse) if want else out
    return kernel


def segments(f="", BM=64, BN=64, want=False):
    """Packed attention in flat tiles, with segment ids (as the splash kernels of TPUs)."""
    @quiet
    def kernel(q, k, v, *, cu_q, cu_kv, causal=False, scale=None):
        H, Q, D = q.shape
        R = k.shape[1]
        cu_q, cu_kv = np.asarray(cu_q), np.asarray(cu_kv)
        N = len(cu_q) - 1
        sq, sk = np.repeat(np.arange(N), np.diff(cu_q)), np.repeat(np.arange(N), np.diff(cu_kv))
        pq = np.arange(Q) - cu_q[sq] + (np.diff(cu_kv) - np.diff(cu_q))[sq]
        pk = np.arange(R) - cu_kv[sk]
        iq, ik = (sq & 7, sk & 7) if f == "seg_bits" else (sq, sk)
        a = setup(q, k, v, scale=scale)
        out, lse = np.zeros((1, a.K, a.G, Q, a.E), F32), np.zeros((1, a.K, a.G, Q), F32)
        for r0 in range(0, Q, BM):
            r1 = min(r0 + BM, Q)
            state = fresh(a, r1 - r0)
            for c0 in range(0, R, BN):
                c1 = min(c0 + BN, R)
                if sk[c0] > sq[r1 - 1] or sk[c1 - 1] < sq[r0]:
                    continue
                vis = iq[r0:r1, None] == ik[c0:c1]
                if causal:
                    vis = vis & (pk[c0:c1] <= pq[r0:r1, None])
                s = logits(a, a.q[..., r0:r1, :], a.k[..., c0:c1, :], None, None)
                state = fold(state, np.where(vis, s, -INF), a.v[..., c0:c1, :], vis, a.dt)
            out[..., r0:r1, :], lse[..., r0:r1] = close(*state)
        return finish(a, out, lse, want)
    return kernel


# ---------------------------------------------------------------- 7. paged
def paged(f="", pages=2, warps=1, want=False):
    @quiet
    def kernel(q, key_pages, value_pages, *, block_table, kv_lengths, q_offset=None, **options):
        B, H, T, D = q.shape
        P, K, ps, E = value_pages.shape
        table = np.asarray(block_table).astype(np.int64)
        width = table.shape[1]
        lens = np.broadcast_to(kv_lengths, (B,)).astype(np.int64)
        offs = lens - T if q_offset is None else np.broadcast_to(q_offset, (B,))
        order = np.argsort(lens, kind="stable")
        out, lse = np.zeros((B, H, T, E), F32), np.zeros((B, H, T), F32)
        if f == "table_stride":
            w = max(1, -(-int(lens.max(initial=0)) // ps))
            table = np.resize(table.reshape(-1), B * width)[np.arange(B)[:, None] * w + np.arange(w)]
        if f == "cascade":
            need = -(-lens // ps)
            common = 0
            while B > 1 and common < need.min() and table[0, common] == table[1, common]:
                common += 1
            table = table.copy()
            table[:, :common] = table[0, :common]
        for slot, b in enumerate(order):
            n, off = int(lens[b]), int(offs[b])
            np_ = -(-n // ps)
            ids = table[b, :np_].copy()
            if f == "adjacent":
                first = np.arange(np_) // pages * pages
                ids = ids[first] + (np.arange(np_) - first)
            if f == "page_u8":
                ids = ids & 255
            ids = np.clip(ids, 0, P - 1)
            kk = key_pages[ids].astype(F32).swapaxes(0, 1).reshape(K, np_ * ps, D)
            vv = value_pages[ids].astype(F32).swapaxes(0, 1).reshape(K, np_ * ps, E)
            if f == "v_address":
                flat = value_pages.reshape(-1)
                at = ids[None, :, None, None] * (K * ps * D) + np.arange(K)[:, None, None, None] * (ps * D) \
                    + np.arange(ps)[:, None] * E + np.arange(E)
                vv = flat[at % flat.size].astype(F32).reshape(K, np_ * ps, E)
            length = n
            if f == "before_append":
                length = max(n - T, 0)
            opt = dict(options)
            for name in ("bias", "mask"):
                if opt.get(name) is not None:
                    x = np.broadcast_to(opt[name], (B, H, T, width * ps))[b]
                    opt[name] = x[..., :np_ * ps]
            if f == "window_open" and opt.get("window") and opt["window"][0] is not None:
                opt["window"] = (max(opt["window"][0] - 1, 0), opt["window"][1])
            a = setup(q[b].astype(F32), kk, vv, kv_lengths=length, q_offset=off, **opt)
            a.dt = q.dtype
            if f == "last_row":
                a.pos = np.full_like(a.pos, off + T - 1)
            lo, hi = span(a, 0, T)
            if f == "window_start" and a.window[0] is not None:
                lo = max(lo, off + T - 1 - a.window[0])
            step = pages * ps
            states = [fresh(a, T)]
            snk, a.sinks = a.sinks, None
            states += [fresh(a, T) for _ in range(warps - 1)]
            a.sinks = snk
            for t in range(lo // step, -(-hi // step)):
                c0, c1 = t * step, min(t * step + step, np_ * ps)
                j = np.arange(c0, c1)
                vis = visible(a, a.pos, j)
                if a.mask is not None:
                    vis = vis & a.mask[..., c0:c1]
                s = logits(a, a.q, a.k[..., c0:c1, :], a.pos, j, sub(a.bias, 0, T, c0, c1))
                w = t % warps
                states[w] = fold(states[w], np.where(vis, s, -INF), a.v[..., c0:c1, :], vis, a.dt)
            m, l, acc = states[0]
            if warps > 1:
                m = np.maximum.reduce([x[0] for x in states])
                base = np.where(m == -INF, F32(0), m)
                c = [np.exp(x[0] - base) for x in states]
                l = sum(x[1] * y for x, y in zip(states, c))
                acc = sum(x[2] * (1 if f == "warp_merge" else y) for x, y in zip(states, c))
            o, z = close(m, l, acc)
            to = b
            if f == "unsort":
                to = order[order[slot]] if B > 1 else b
            out[to], lse[to] = o.reshape(H, T, E), z.reshape(H, T)
        out = out.astype(q.dtype)
        return (out, lse) if want else out
    return kernel


# ---------------------------------------------------------------- 8. latent, absorbed
def latent(f="", BN=32, HB=8, want=False):
    @quiet
    def kernel(q_nope, q_rope, kv_latent, k_rope, w_uk, w_uv, *, form="absorb", scale=None, **options):
        lead = q_nope.shape[:-3]
        H, T, N = q_nope.shape[-3:]
        R, (S, C), E = q_rope.shape[-1], kv_latent.shape[-2:], w_uv.shape[-2]
        B = int(np.prod(lead, dtype=int))
        dt = q_nope.dtype
        qn = q_nope.astype(F32).reshape(B, H, T, N)
        qr = q_rope.astype(F32).reshape(B, H, T, R)
        if f == "rope_layout":
            qr = q_rope.astype(F32).reshape(B, T, H, R).swapaxes(1, 2)
        c = kv_latent.astype(F32).reshape(B, S, C)
        kr = k_rope.astype(F32).reshape(B, S, R)
        if f == "rope_batch":
            kr = np.broadcast_to(kr[:1], kr.shape)
        uk, uv = w_uk.astype(F32), w_uv.astype(F32)
        if f == "uv_tile":
            uv = uv[np.arange(H) % HB]
        if f == "uk_pad":
            uk = np.where(np.arange(N)[:, None] < N // 16 * 16, uk, F32(0))
        if scale is None:
            scale = 1 / math.sqrt(C + R) if f == "scale_latent" else 1 / math.sqrt(N + R)
        qa = qn @ uk                                            # (B, H, T, C)
        query = np.concatenate([qa, qr], -1)
        cache = np.concatenate([c, kr], -1)
        a = setup(query.reshape(lead + (H, T, C + R)), cache.reshape(lead + (1, S, C + R)),
                  c.reshape(lead + (1, S, C)), scale=scale, **options)
        a.dt = dt
        if f == "v_offset":
            a.v = a.k[..., R:R + C]
        if f == "rope_mscale":
            a.q = np.concatenate([qa, qr / F32(scale)], -1).reshape(a.q.shape)
        state = fresh(a, T)
        prev = None
        lo, hi = span(a, 0, T)
        for c0 in range(lo // BN * BN, hi, BN):
            c1 = min(c0 + BN, S)
            j = np.arange(c0, c1)
            vis = visible(a, a.pos, j)
            if a.mask is not None:
                vis = vis & a.mask[..., c0:c1]
            s = logits(a, a.q, a.k[..., c0:c1, :], a.pos, j, sub(a.bias, 0, T, c0, c1))
            s = np.where(vis, s, -INF)
            vt = a.v[..., c0:c1, :]
            m, l, acc = state
            new = np.maximum(m, s.max(-1, keepdims=True))
            base = np.where(new == -INF, F32(0), new)
            p, r = np.exp(s - base), np.exp(m - base)
            w = rnd(p, dt)
            prod = pv(w, vt, vis)
            if f == "stale_p" and prev is not None:
                prod[..., C // 2:] = pv(prev[..., :c1 - c0], vt[..., C // 2:], vis)
            prev = w
            state = new, l * r + p.sum(-1, keepdims=True), acc * r + prod
        o, z = close(*state)
        if f == "lse_nats":
            z = z / LN2
        o = o.reshape(B, H, T, C) @ uv.swapaxes(-1, -2)
        o = o.reshape(lead + (H, T, E)).astype(dt)
        return (o, z.reshape(lead + (H, T)).astype(F32)) if want else o
    return kernel


# ---------------------------------------------------------------- cases
FAULTS, SPARE = [], []  # SPARE: right as well, beyond the sixty asked for
SPARED = set("""diag_floor bias_log2 shift_map alibi_sign sublane bit_stride pad_scale wide_value fixed_max empty_inf bias_lag unroll
pass_two drop_norm cap_after t1_causal window_zero zero_pad len_offset sink_each max8 base2 overlap ws_bf16 swap_slope mod_heads""".split())


def rng_of(name):
    return np.random.default_rng(sum(ord(c) * 31 ** i for i, c in enumerate(name)) % 2 ** 32)


def add(name, form, dtype, lse, factory, data, sentence, fault=None, **cfg):
    """fault: the switch of the kernel (default: the name)."""
    def build(wrong=True):
        arrays, options = data(rng_of(name), NPDT[dtype])
        return factory(f=(fault or name) if wrong else "", want=lse, **cfg), arrays, options
    (SPARE if name in SPARED else FAULTS).append((name, sentence, {"form": form, "dtype": dtype, "lse": lse}, build))


def dense(H, K, T, S, D, E=None, B=None, qs=1.0, **options):
    """options: values, or functions of (rng, shape facts)."""
    def data(rng, dt):
        lead = () if B is None else (B,)
        arrays = [(qs * rng.standard_normal(lead + (H, T, D))).astype(dt),
                  rng.standard_normal(lead + (K, S, D)).astype(dt),
                  rng.standard_normal(lead + (K, S, E or D)).astype(dt)]
        return arrays, {n: x(rng) if callable(x) else x for n, x in options.items()}
    return data


def normal(*shape, by=1.0):
    return lambda rng: (by * rng.standard_normal(shape)).astype(F32)


def keep(p, *shape):
    return lambda rng: rng.random(shape) < p


def slopes(H):
    return np.array([2.0 ** (-8 * (h + 1) / H) for h in range(H)], F32)


def pack(H, K, lq, lk, D, E=None, **options):
    def data(rng, dt):
        arrays = [rng.standard_normal((H, sum(lq), D)).astype(dt), rng.standard_normal((K, sum(lk), D)).astype(dt),
                  rng.standard_normal((K, sum(lk), E or D)).astype(dt)]
        opt = {n: x(rng) if callable(x) else x for n, x in options.items()}
        opt["cu_q"], opt["cu_kv"] = np.concatenate([[0], np.cumsum(lq)]), np.concatenate([[0], np.cumsum(lk)])
        return arrays, opt
    return data


def pagedata(H, K, T, lens, ps, D, E=None, P=None, width=None, table=None, **options):
    def data(rng, dt):
        B = len(lens)
        w = width or -(-max(lens) // ps)
        pages = P or B * w + 3
        arrays = [rng.standard_normal((B, H, T, D)).astype(dt), rng.standard_normal((pages, K, ps, D)).astype(dt),
                  rng.standard_normal((pages, K, ps, E or D)).astype(dt)]
        bt = rng.permutation(pages)[:B * w].reshape(B, w).astype(np.int32)
        if table is not None:
            bt = table(bt)
        opt = {n: x(rng) if callable(x) else x for n, x in options.items()}
        return arrays, dict(opt, block_table=bt, kv_lengths=np.array(lens))
    return data


def mla(H, T, S, N, R, C, E, B=None, **options):
    def data(rng, dt):
        lead = () if B is None else (B,)
        arrays = [rng.standard_normal(lead + (H, T, N)).astype(dt), rng.standard_normal(lead + (H, T, R)).astype(dt),
                  rng.standard_normal(lead + (S, C)).astype(dt), rng.standard_normal(lead + (S, R)).astype(dt),
                  (rng.standard_normal((H, N, C)) / math.sqrt(C)).astype(dt),
                  (rng.standard_normal((H, E, C)) / math.sqrt(C)).astype(dt)]
        return arrays, dict({n: x(rng) if callable(x) else x for n, x in options.items()}, form="absorb")
    return data


# --- tiled
add("clamp", "dense", "float32", False, tiled, dense(4, 2, 60, 150, 48, causal=False),
    "The last key tile (keys 128..149, tile 64, S=150 not a multiple) is read with a dynamic_slice whose start is clamped to "
    "S-64=86 while the positions still count from 128: keys 86..107 stand in for 128..149 in every row, the true last keys are lost.")
add("diag_floor", "dense", "bfloat16", True, tiled, dense(6, 3, 150, 190, 64, causal=True),
    "The number of key tiles of a causal row tile is rounded down instead of up: the key tile in which the last row's diagonal "
    "ends is skipped by every row tile whose end is not a multiple of 64 (row tiles of 48), except where all keys are seen.", BM=48)
add("lanes128", "dense", "float32", True, tiled, dense(4, 4, 40, 330, 32),
    "The row sum is reduced over 128 lanes while the key tile has 192 keys: the denominator (and lse) miss keys 128..191 of each "
    "tile (128..191 and 320..329), the numerator has them.", BM=32, BN=192)
add("bias_log2", "dense", "float32", False, tiled, dense(5, 5, 50, 97, 40, bias=normal(5, 50, 97)),
    "Softmax is done in base 2 with log2(e) folded into the scale; the bias is added afterwards without log2(e), "
    "so it counts ln 2 = 0.69 of its value everywhere.", BM=32, BN=32)
add("half_wave", "dense", "bfloat16", False, tiled, dense(4, 1, 45, 200, 64, causal=True),
    "The last step of the butterfly reduction over a 64-lane wave is missing: each half wave keeps its own row sum. Output columns "
    "0..31 are divided by the sum over keys j%64<32 only, columns 32..63 by that over the other keys.")
add("gqa_pos", "dense", "float16", True, tiled, dense(12, 3, 11, 120, 64, causal=True),
    "Group heads and rows are packed into one tile as row*G+head, the causal mask takes the row as index % T: row i of head g of its "
    "group (G=4) is masked as row (4*i+g) % 11; keys near the diagonal are hidden or seen wrongly.")
add("shift_map", "dense", "float32", False, tiled, dense(12, 4, 33, 70, 32),
    "The key/value head is h >> floor(log2 G), right only for powers of two. With G=3 heads 0,1 read KV head 0, 2,3 head 1, 4,5 head 2, and "
    "all from 6 on head 3 (clamped).", BM=32, BN=32)
add("xcd", "dense", "float32", True, tiled, dense(9, 3, 75, 90, 32, causal=True),
    "The swizzle that spreads work groups over 8 dies, (pid%8)*(n//8)+pid//8, is a permutation only when the count is a multiple of 8. With "
    "9 heads x 3 row tiles = 27 items the items 24..26 (all rows of head 8) are never computed: output and lse stay 0.", BM=32, BN=32)
add("alibi_sign", "dense", "float32", False, tiled, dense(8, 8, 40, 60, 32, alibi_slopes=slopes(8)),
    "ALiBi uses slope*(j-i) without the absolute value: right for causal kernels, but here keys after the row's position (not causal) are rewarded "
    "instead of punished; the last row is right, the first most wrong.", BM=16, BN=32)
add("bias_stride", "dense", "float32", False, tiled, dense(4, 4, 30, 80, 32, bias=normal(4, 1, 80)),
    "A bias of shape (H,1,S) has row stride 0, the kernel uses stride S for rows: row i of head h reads the bias of head (h+i) % H; only row 0 (and every "
    "4th) is right.", BM=16, BN=32)
add("corners", "dense", "float16", False, tiled, dense(6, 2, 70, 130, 64, mask=keep(0.8, 6, 70, 130)),
    "A 32x32 tile of the mask counts as 'full' when its four corners are visible; then the mask is not applied in it. In about 40% of the (head, tile) "
    "pairs the hidden keys inside take part.", BM=32, BN=32)
add("sublane", "dense", "float32", False, tiled, dense(4, 2, 50, 80, 48, causal=True),
    "The row index of the causal mask is broadcast over the 8 sublanes of a register: all rows of a group of 8 use the position of its first row, "
    "so rows with i%8>0 miss their last i%8 keys.", BM=32, BN=32)
add("consumer2", "dense", "bfloat16", True, tiled, dense(4, 2, 150, 150, 64, causal=True),
    "Two consumer warpgroups share a row tile of 128; the second (rows 64..127 of the tile) forgets its +64 when masking and sees only the keys "
    "up to position i-64. Rows 0..63 and 128..149 are right.", BM=128, BN=64)
add("lazy", "dense", "float32", True, tiled, dense(4, 4, 48, 160, 32, qs=2.0),
    "Lazy rescaling: accumulator and sum are not rescaled when the maximum rises by less than 8 bits, but the new maximum is used for the weights anyway; "
    "keys of earlier tiles weigh too much by exp(rise) whenever the running maximum rises.", BM=48, BN=32)
add("half_acc", "dense", "bfloat16", False, tiled, dense(4, 2, 40, 200, 96, qs=1.5),
    "The accumulator lies in two register blocks and only the first (columns 0..63) is rescaled when the maximum rises; output columns 64..95 give keys "
    "of earlier tiles too much weight.", BM=64, BN=48)
add("m_zero", "dense", "float32", True, tiled,
    dense(6, 6, 30, 64, 32, alibi_slopes=np.array([2, 1.5, 1, .5, .25, .1], F32), q_offset=190, causal=True),
    "The running maximum starts at 0 rather than -inf: rows whose scores all lie below about -104 underflow to an empty sum. Here ALiBi pushes heads 0..2 (slopes 2, "
    "1.5 and 1; keys at least 127 positions away) there: output 0 and lse -inf.", BM=32, BN=32)
add("cap_partial", "dense", "bfloat16", False, tiled, dense(4, 2, 80, 140, 64, qs=4.0, softcap=4.0, causal=True),
    "The specialised code for partly masked tiles leaves out the softcap; only tiles whose keys are all visible have it. Scores of the keys in diagonal tiles are uncapped "
    "(cap 4), all rows.", BM=32, BN=32)
add("pade", "dense", "float32", False, tiled, dense(4, 4, 40, 90, 64, qs=3.0, softcap=2.0),
    "tanh of the softcap is a Pade approximation x(27+x^2)/(27+9x^2) without a clamp: beyond |x| of 3 it grows like x/9 and scores exceed the cap of 2.",
    BM=32, BN=32)
add("bit_stride", "dense", "float32", False, tiled, dense(4, 2, 40, 77, 32, mask=keep(0.7, 40, 77)),
    "The mask is packed into 32-bit words, three a row for 77 keys, but rows are addressed with S//32 = 2 words: row i reads the bits of words 2i.. and so those of other rows; "
    "only row 0 is right.", BM=16, BN=32)
add("masked_iters", "dense", "bfloat16", True, tiled, dense(4, 1, 70, 167, 64, causal=True),
    "The key loop runs backwards and masks only the first BM/BN=2 tiles; with q_offset=97 not aligned to the tile of 32 the diagonal crosses a third one: rows 0..29 "
    "(positions 97..126) see every key up to 127, also those of their future.", BM=64, BN=32)
add("unsigned", "dense", "float32", False, tiled, dense(4, 2, 70, 100, 32, causal=True, window=(40, None)),
    "The window's lower bound position-left is computed unsigned and wraps when position < left=40: those rows (rows 0..9, positions 30..39) see nothing, output 0.",
    BM=32, BN=32)
add("swizzle", "dense", "float16", False, tiled, dense(4, 4, 33, 60, 96),
    "Shared memory swizzle of the K tile: chunk c of 8 elements lies at (c XOR row%8) % 12, no permutation for head_dim 96 (12 chunks): in key rows with j%8>=4 chunks 8..11 overwrite "
    "chunks 4..7: channels 32..63 of those keys hold channels 64..95.", BM=32, BN=32)
add("mfma", "dense", "bfloat16", True, tiled, dense(4, 2, 40, 90, 64, causal=True),
    "The first product leaves the weights in the C layout of the matrix instruction, and the second takes them as if in A layout: within each 16 keys weight 4a+b multiplies value 4b+a. "
    "Denominator and lse are right; keys 0, 5, 10, 15 of each 16 are too; in the tail of 10 keys some weights meet zero padding.", BM=32, BN=32)
add("pad_scale", "dense", "float16", True, tiled, dense(4, 4, 35, 64, 80),
    "The default scale is taken from the padded head_dim, 1/sqrt(128) rather than 1/sqrt(80).", BM=32, BN=32)
add("cluster", "dense", "bfloat16", False, tiled, dense(9, 3, 40, 70, 64),
    "K tiles are multicast to pairs of heads (2n, 2n+1) with the K head of the even one. With G=3 the pair (2,3) straddles two KV heads: query head 3 gets the keys of "
    "KV head 0 rather than 1 (with the right values); other heads are right.", BM=32, BN=32)
add("epi_rows", "dense", "float32", True, tiled, dense(4, 2, 60, 60, 32, causal=True),
    "Epilogue: the row sums are read back from shared memory with the index of the first half tile: rows r%32>=16 of each row tile divide by the sum of row r-16; lse is right.", BM=32, BN=32)
add("lse_stride", "dense", "float32", True, tiled, dense(5, 5, 45, 60, 32),
    "lse is written with head stride 64 (T=45 rounded up to the row tile of 32) into memory read with stride T: heads from 1 on show shifted rows of other heads and zeros; output and head 0 are right.",
    BM=32, BN=32)
add("wide_value", "dense", "float32", False, tiled, dense(4, 2, 30, 50, 32, 80),
    "The loop over output columns runs over the head_dim of the keys: columns 32..79 of a value width of 80 are never written and stay 0.", BM=32, BN=32)
add("qk_sat", "dense", "float16", False, tiled, dense(4, 4, 30, 70, 64, qs=3000.0, scale=0.0005),
    "q.k is converted to float16 before the scale: it rounds to 11 bits and saturates at 65504, so large raw products (queries of about 3000, scale 0.0005) tie.", BM=32, BN=32)
add("fixed_max", "dense", "float16", True, tiled, dense(4, 4, 30, 160, 64, qs=5.0),
    "The maximum is taken from the first key tile (keys 0..31) and never updated; weights of later keys are clamped at 65504, the end of float16: rows whose later scores exceed the first maximum by "
    "more than 11 lose their dominant key.", BM=32, BN=32)
add("poly_exp", "dense", "float32", False, tiled, dense(4, 2, 40, 80, 32),
    "Every 4th key (j%4==3) has its exponential from software, 2^n*(1+f) with a first-degree polynomial: up to 6% too large for these keys.", BM=32, BN=32)
add("two_terms", "dense", "float32", True, tiled, dense(4, 4, 30, 80, 64, qs=2.0),
    "The float32 product q.k is emulated by bfloat16 products and the term q_low*k_high is missing: scores have relative errors of 2^-9 in the queries.", BM=32, BN=32)
add("micro", "dense", "float16", False, tiled, dense(4, 2, 38, 60, 48),
    "The epilogue stores each 4x4 micro tile transposed: output rows 4a+x and columns 4b+y swap x and y within full micro tiles; rows 36 and 37 are right.", BM=32, BN=32)
add("chunk_trunc", "dense", "float32", True, tiled, dense(4, 2, 90, 60, 32, chunk=24),
    "Chunk numbers are position//chunk with division that rounds towards zero: rows of positions -23..-1 (q_offset=-30: rows 7..29) count as chunk 0 and see keys 0..23; they should see nothing.",
    BM=32, BN=32)
add("hidden_max", "dense", "float32", True, tiled,
    lambda rng, dt: (lambda a: (a, {"kv_lengths": 70}))(
        [rng.standard_normal((4, 30, 64)).astype(dt),
         (rng.standard_normal((2, 90, 64)) * np.where(np.arange(90) < 70, 1, 200)[:, None]).astype(dt),
         rng.standard_normal((2, 90, 64)).astype(dt)]),
    "The row maximum is taken before keys past the length (70..89 of 90, here stale keys 200 times as large) are hidden: the visible weights underflow, rows give 0 with lse -inf or lose digits.",
    BM=32, BN=32)
add("empty_inf", "dense", "float32", True, tiled, dense(3, 3, 50, 35, 32, causal=True),
    "Rows that see nothing (rows 0..14: 50 rows, 35 keys, causal) write lse = +inf rather than -inf; their output is 0 as it should be.", BM=16, BN=32)

# --- pipelined
add("v_phase", "dense", "float32", True, pipelined,
    dense(4, 2, 60, 200, 48, mask=lambda rng: np.repeat(np.array([1, 1, 0, 1, 1, 0, 1], bool), 32)[:200][None, :] & np.ones((60, 1), bool)),
    "Double buffers: K's stage counts the tiles done, V's stage counts tile numbers. After a tile skipped for the mask (keys 64..95) the phases differ and the second product takes the V tile of the "
    "next key tile, already prefetched, for keys 96..127 and 128..159 ; from key 192 on, after a second skipped tile, the phases agree again.")
add("v_overrun", "dense", "bfloat16", False, pipelined, dense(4, 4, 50, 150, 64),
    "With two stages the load of V two tiles ahead is issued before the second product of the current tile: weights of tile n multiply the values of tile n+2; the last two tiles (keys 96..149) are right.")
add("bias_lag", "dense", "float32", False, pipelined, dense(4, 2, 40, 110, 32, bias=normal(40, 110)),
    "The bias tile is refilled after its use: from the second key tile on (keys 32..) scores get the bias of the tile before, 32 keys to the left.")
add("unroll", "dense", "float16", True, pipelined, dense(4, 2, 60, 60, 64, causal=True, q_offset=20),
    "The key loop is unrolled by two and its remainder is done only when there is a single tile: row tiles with an odd number (>1) of key tiles lose the last one. Row tile of 16 rows, key tile of 16.",
    BM=16, BN=16)
add("l_kept", "dense", "float32", True, pipelined, dense(4, 2, 100, 100, 32, causal=True),
    "Persistent kernel that pairs row tiles (i, N-1-i) for balance: the softmax state (maximum, sum, accumulator) is not cleared before the second tile of a pair: rows 64..95 (tile 2) also hold all of rows 32..63 "
    "(tile 1), rows 96..99 all of rows 0..3; output and lse are those of both rows' keys together. Rows 0..63 are right.", BM=32)
# --- two pass
add("pass_two", "dense", "bfloat16", False, two_pass, dense(4, 2, 60, 130, 64, causal=True, window=(20, None)),
    "Two-pass softmax: maximum and sum obey the window of 20 keys, the second pass forgets its left bound; keys before the window add their weights, and weights sum to more than 1.")
# --- eager
add("drop_norm", "dense", "float32", False, eager, dense(4, 4, 30, 60, 32, dropout_mask=keep(0.7, 4, 30, 60), dropout_rate=0.3),
    "Dropout is applied before the row sum: weights are normalised over the kept keys only and then divided by 1-rate = 0.7 too.")
add("cap_after", "dense", "float32", True, eager, dense(4, 2, 30, 60, 32, softcap=1.5, bias=normal(30, 60, by=2.0)),
    "Softcap is applied after the bias, not before: cap*tanh((s+bias)/cap), which flattens the bias (cap 1.5).")
add("slm", "dense", "float16", False, eager, dense(8, 2, 2, 330, 64, causal=True),
    "Scores lie in a local array of 256 entries addressed with j%256: the scores of keys 256..329 overwrite those of keys 0..73, which then get the weights of keys 256 further.")
add("t1_causal", "dense", "bfloat16", True, eager, dense(8, 2, 1, 140, 64, causal=True, q_offset=90),
    "For a single query row the kernel switches causal off, which holds only when the row is last: with q_offset=90 the keys 91..139 of the future are seen.")
add("window_zero", "dense", "float32", False, eager, dense(4, 2, 50, 70, 32, window=(0, 9)),
    "A left window of 0 is taken for 'none given' (`left or None`): rows see all keys before their position rather than none.")
add("zero_pad", "dense", "bfloat16", True, eager, dense(4, 2, 30, 83, 64),
    "Keys are padded with zeros to a multiple of 64 (83 -> 128) and the pad is not masked: 45 keys of score 0 and value 0 join the denominator and lse.")
add("len_offset", "dense", "float32", True, eager, dense(4, 2, 20, 90, 32, B=3, causal=True, kv_lengths=np.array([90, 61, 40])),
    "The default q_offset is S-T rather than kv_lengths-T: in batches 1 and 2 (lengths 61 and 40 of 90) causal rows see later keys up to the length; batch 0 is right.")
# --- split
add("sink_each", "dense", "bfloat16", True, split, dense(8, 2, 2, 230, 64, sinks=normal(8, by=1.0), causal=True),
    "The sink joins the denominator of every split (5 splits of 48 keys) and not once: outputs too small and lse too large, in heads with large sinks most.")
add("max8", "dense", "float32", True, split, dense(4, 1, 3, 390, 48),
    "The reduction kernel handles at most 8 splits: with 40 keys a split the splits from key 320 on are computed but not joined.", L=40)
add("empty_zero", "dense", "bfloat16", False, split, dense(8, 4, 2, 300, 64, causal=True, q_offset=130),
    "Splits without visible keys (those past position 130) leave lse 0 instead of -inf, so that each weighs exp(0) with output 0: outputs too small.")
add("ws_layout", "dense", "float32", True, split, dense(6, 2, 4, 200, 32, causal=True),
    "Split lse are written as (T, H) and read as (H, T): the merge weighs the splits of head h, row t by the lse of another head and row; T=1 is unaffected.")
add("base2", "dense", "float16", False, split, dense(8, 2, 1, 250, 64, qs=2.5),
    "Splits store natural lse, the reduction weighs them with exp2: the differences between splits count ln 2 = 0.69 of what they should.")
add("overlap", "dense", "float32", True, split, dense(4, 2, 2, 180, 32),
    "The end of a split is taken as inclusive: keys 48, 96 and 144, the first of each following split, are counted in two splits.")
add("ws_bf16", "dense", "float32", False, split, dense(4, 2, 3, 200, 64),
    "Partial outputs of the splits go through a bfloat16 workspace though inputs and output are float32: errors of 2^-9.")
add("swap_slope", "dense", "float16", True, split, dense(12, 3, 1, 150, 64, alibi_slopes=slopes(12), causal=True),
    "For one query row the heads of a group are moved to the row axis; the ALiBi slope is then looked up once per group: heads 4n+1..4n+3 use the slope of head 4n.")
add("lse_groups", "dense", "bfloat16", True, split, dense(12, 3, 1, 150, 64),
    "Heads of a group are rows of one tile and lse is written back as (group member, KV head) rather than (KV head, member): lse of heads is permuted (all but 0 and 11), the output is right.")

# --- packed
add("next_seq", "packed", "bfloat16", False, packed, pack(4, 2, [20, 37, 9, 30], [45, 37, 64, 50], 64),
    "The last key tile of a sequence is not masked at its end: rows of sequences 0 and 1 see up to 19 and 27 keys of the next sequence; sequence 2 (64 keys, full tiles) and the last one are right.")
add("max_offset", "packed", "float32", True, packed, pack(4, 2, [20, 37, 9, 30], [45, 37, 64, 50], 32, causal=True),
    "The causal offset is max_seqlen_k-max_seqlen_q (64-37=27) for every sequence and not its own (25, 0, 55, 20): sequences see too many or too few keys.")
add("search_left", "packed", "float32", False, packed, pack(4, 2, [20, 37, 1, 30], [45, 37, 26, 50], 32),
    "Rows find their sequence by binary search with the wrong side: the first row of each sequence after the first counts as belonging to the one before and reads its keys.")
add("grid", "packed", "float16", True, packed, pack(6, 3, [20, 37, 9, 30, 17], [45, 37, 64, 50, 17], 48, causal=True),
    "The grid has ceil(total rows/32)=4 row tiles rather than the sum over sequences (6): sequences 3 and 4 are never computed and stay 0 in output and lse.")
add("used_starts", "packed", "float32", False, packed,
    pack(4, 2, [20, 30, 12], [60, 50, 40], 32, kv_lengths=np.array([41, 50, 22]), causal=True),
    "With kv_lengths given, key starts are their running sum instead of cu_kv: sequence 1 reads from key 41 rather than 60, sequence 2 from 91 rather than 110; sequence 0 is right.")
add("bias_local", "packed", "float32", False, packed, pack(4, 2, [20, 30, 12], [40, 50, 33], 32, bias=normal(4, 62, 123)),
    "The bias tile is read at the sequence's own coordinates, not at the packed ones: sequences 1 and 2 use the bias of the top left corner.")
add("alibi_global", "packed", "bfloat16", True, packed,
    pack(8, 4, [20, 30, 12], [40, 50, 33], 64, alibi_slopes=slopes(8), causal=True),
    "ALiBi distances come from packed coordinates |cu_q+i-(cu_kv+j)| and not from positions inside the sequence (with its offset): the ramp points the wrong way where keys lie right of the row.")
add("seg_bits", "packed", "float32", True, segments,
    pack(4, 2, [9, 12, 5, 7, 11, 4, 8, 6, 3, 10, 5], [9, 12, 5, 7, 11, 4, 8, 6, 3, 10, 5], 32, causal=True),
    "Flat tiles of 96 with segment ids of 3 bits: sequences n and n+8 in one pair of tiles count as the same, so sequences 0 and 8, 1 and 9, 2 and 10 "
    "see each other's keys up to the row's own position; 3..7 are right.",
    BM=96, BN=96)
add("mod_heads", "packed", "float16", False, packed, pack(8, 2, [20, 1, 30], [40, 26, 30], 64, causal=True),
    "Query head h reads KV head h % 2 (repeat in the wrong order) and not h // 4: heads 1, 3, 4 and 6 have the wrong head.")

# --- paged
add("adjacent", "paged", "float32", True, paged, pagedata(8, 2, 2, [70, 33, 100], 16, 32, causal=True),
    "A key tile spans two pages but the table is looked up once a tile; the second page is assumed to follow the first in memory: keys of odd pages come from page id+1 of the even one.")
add("table_stride", "paged", "bfloat16", False, paged, pagedata(8, 2, 1, [70, 33, 57], 16, 64, width=8),
    "The row stride of the block table is taken as ceil(longest/page_size)=5 and not its width 8: sequences 1 and 2 read table entries that belong to others; sequence 0 is right.")
add("before_append", "paged", "float32", True, paged, pagedata(4, 2, 3, [70, 33, 100], 16, 32, causal=True),
    "The kernel uses the length before the new tokens were appended: the last T=3 keys of each sequence are never seen.")
add("v_address", "paged", "float32", False, paged, pagedata(4, 2, 1, [40, 61], 16, 48, 32),
    "Value pages are addressed with page and head strides of the keys (head_dim 48) though values have 32 columns: all but head 0 of page 0 come from wrong places of the pool "
    "(page*K*16*48 + head*16*48 + slot*32, modulo the pool).")
add("page_u8", "paged", "float16", True, paged, pagedata(4, 1, 2, [80, 50, 91], 4, 32, P=300, causal=True),
    "Page ids pass through 8 bits: pages 256 and above (of 300) are read from id-256.", pages=6)
add("window_start", "paged", "bfloat16", True, paged, pagedata(4, 2, 4, [84, 65, 130], 16, 64, causal=True, window=(33, None)),
    "The first page of the walk is derived from the window of the last row (T=4): sequence 0 starts at key 48 and its row 0 loses key 47; sequence 2 starts at 96 and rows 0, 1, 2 lose "
    "keys 93..95, 94..95 and 95; sequence 1 is right.", pages=1)
add("warp_merge", "paged", "float32", True, paged, pagedata(4, 2, 1, [84, 65, 130], 16, 32),
    "Four warps walk the pages in turn; their accumulators are added without the factor exp(m_warp-m), their sums with it: lse is right, outputs too large.", pages=1, warps=4)
add("unsort", "paged", "float32", False, paged, pagedata(4, 2, 2, [84, 20, 130, 65, 50], 16, 32, causal=True),
    "Sequences are sorted by length for balance and written back through the permutation applied twice: results of sequences 0,1,2,3,4 land in 1,4,3,0,2.")
add("cascade", "paged", "float16", False, paged,
    pagedata(8, 2, 1, [84, 60, 90], 16, 64, table=lambda t: np.concatenate([t[:1], np.concatenate([t[:1, :3], t[1:2, 3:]], 1), t[2:]])),
    "Shared prefix: the common pages are found by comparing sequences 0 and 1 only (3 pages) and then used for all; sequence 2 reads sequence 0's first 48 keys in place of its own.")
add("window_open", "paged", "bfloat16", False, paged, pagedata(4, 2, 2, [84, 65, 130], 16, 64, causal=True, window=(11, None)),
    "The window counts the row's own key: left=11 shows 11 keys and not 12, each row misses its oldest key.")
add("last_row", "paged", "bfloat16", True, paged, pagedata(4, 2, 4, [44, 25, 30], 8, 64, causal=True),
    "All rows of a speculative step use the causal limit of the last row: rows 0..2 see 3..1 keys of their future; row 3 is right.")

# --- latent
add("rope_mscale", "latent", "bfloat16", True, latent, mla(6, 20, 50, 32, 16, 64, 24, causal=True),
    "The scale is applied to the nope part of the score only: the rope part enters unscaled, sqrt(48)=6.9 times too large.")
add("v_offset", "latent", "float32", False, latent, mla(6, 3, 70, 32, 16, 64, 24, causal=True),
    "Latent and rope key lie in one cache row of 64+16; the values are read as if the rope part came first: columns 16..79 rather than 0..63.")
add("uv_tile", "latent", "float32", True, latent, mla(12, 3, 70, 32, 16, 48, 24, causal=True),
    "Heads go in tiles of 8 and w_uv is indexed by the head within the tile: heads 8..11 use w_uv of heads 0..3; lse is right.")
add("stale_p", "latent", "bfloat16", False, latent, mla(8, 4, 100, 32, 16, 64, 24, causal=True),
    "Two warpgroups share the output's latent columns; the second (columns 32..63) reads the weights before the barrier, and gets those of the key tile before (tile 32) from the second tile on.")
add("rope_layout", "latent", "float32", True, latent, mla(6, 4, 60, 32, 16, 64, 24, causal=True),
    "q_rope is read as (T,H,R) though it lies as (H,T,R), q_nope right: for T=4 rows rope parts come from other heads and rows; T=1 is unaffected.")
add("rope_batch", "latent", "float16", False, latent, mla(6, 2, 60, 32, 16, 64, 24, B=3, causal=True),
    "k_rope has no head axis and its batch stride is dropped with it: all batches use the rope keys of batch 0.")
add("scale_latent", "latent", "float32", True, latent, mla(6, 2, 60, 32, 16, 96, 24, causal=True),
    "The default scale is 1/sqrt(C+R)=1/sqrt(112), the width of the absorbed product, and not 1/sqrt(N+R)=1/sqrt(48).")
add("uk_pad", "latent", "bfloat16", True, latent, mla(6, 5, 60, 40, 16, 64, 24, causal=True),
    "Absorbing w_uk runs over whole blocks of 16 nope channels: channels 32..39 of 40 are left out of every score.")


def main():
    import sys
    import time

    from refattn.oracle import check
    only, good = sys.argv[1:], 0
    from collections import Counter
    print(len(FAULTS), len({n for n, *_ in FAULTS}), *(dict(Counter(t[k] for _, _, t, _ in FAULTS)) for k in ("form", "dtype", "lse")))
    for name, sentence, tags, build in FAULTS:
        if only and name not in only:
            continue
        marks, ms = [], 0
        for wrong in (False, True):
            kernel, arrays, options = build(wrong)
            copies = [x.copy() for x in arrays]
            ms = math.inf
            for _ in range(3):
                t = time.perf_counter()
                result = kernel(*arrays, **options)
                ms = min(ms, (time.perf_counter() - t) * 1e3)
            assert all(np.array_equal(x, y) for x, y in zip(copies, arrays)), name
            out, lse = result if tags["lse"] else (result, None)
            assert out.dtype == NPDT[tags["dtype"]], name
            kw = dict(options)
            if tags["form"] != "dense":
                kw["function"] = tags["form"] + "_attention"
            report = check(out, *arrays, lse=lse, **kw)
            marks.append(report.passed)
            if wrong is False and not report.passed:
                print(name, "RIGHT FAILS", str(report)[:600])
        ok = marks == [True, False]
        good += ok
        if not ok or ms > 15 or only:
            print(f"{name:16s} right passes {marks[0]}, wrong passes {marks[1]}, {ms:.1f} ms")
    print("verified", good, "of", len(FAULTS))


if __name__ == "__main__":
    main()
