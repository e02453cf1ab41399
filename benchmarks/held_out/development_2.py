"""Wrong attention kernels, set E.  Every entry of FAULTS: (name, sentence, tags, build)."""
import math
import numpy as np
import ml_dtypes

F32 = np.float32
BF16 = ml_dtypes.bfloat16
F16 = np.float16
DT = {"float32": np.dtype(F32), "bfloat16": np.dtype(BF16), "float16": np.dtype(F16)}
NEG = F32(-np.inf)
FAULTS = []
np.seterr(all="ignore")


# ------------------------------------------------------------------ shared arithmetic
def f32(x):
    return np.asarray(x).astype(F32)


def rnd(x, dt):
    return x if dt == np.dtype(F32) else x.astype(dt).astype(F32)


def rep(x, heads):
    return np.repeat(x, heads // x.shape[-3], axis=-3)


def sw(x):
    return np.swapaxes(x, -1, -2)


def cdiv(a, b):
    return -(-a // b)


def pv(p, v, vis):
    """p @ v where keys that are not visible count for nothing, whatever they hold."""
    fin = np.isfinite(v)
    if fin.all():
        return p @ v
    r = p @ np.where(fin, v, F32(0))
    w = vis.astype(F32)
    up = w @ (v == np.inf).astype(F32) > 0
    dn = w @ (v == -np.inf).astype(F32) > 0
    na = w @ np.isnan(v).astype(F32) > 0
    r = np.where(up, F32(np.inf), r)
    r = np.where(dn, F32(-np.inf), r)
    return np.where(na | (up & dn), F32(np.nan), r)


def options(o, D, T, S, batch=()):
    """(scale, offset, kv_lengths) in shapes that broadcast over (..., H, T, S)."""
    kvl = o.get("kv_lengths")
    off = o.get("q_offset")
    if kvl is not None:
        kvl = np.asarray(kvl).astype(np.int64)
        kvl = kvl.reshape(kvl.shape + (1, 1, 1)) if kvl.ndim else int(kvl)
    if off is None:
        off = (S if kvl is None else kvl) - T
    elif np.ndim(off):
        off = np.asarray(off).astype(np.int64)
        off = off.reshape(off.shape + (1, 1, 1))
    else:
        off = int(off)
    sc = o.get("scale")
    return F32(1 / math.sqrt(D) if sc is None else sc), off, kvl


def pick(x, rows, cols):
    """x[..., rows, cols] where either axis may be 1; rows past the end read the last one"""
    x = np.asarray(x)
    if x.shape[-2] > 1:
        x = x[..., np.clip(rows, 0, x.shape[-2] - 1), :]
    return x[..., np.clip(cols, 0, x.shape[-1] - 1)] if x.shape[-1] > 1 else x


def of_heads(o, hs):
    """options of some heads"""
    o = dict(o)
    for n in ("alibi_slopes", "sinks"):
        if o.get(n) is not None:
            o[n] = np.asarray(o[n])[hs]
    for n in ("bias", "mask"):
        if o.get(n) is not None and np.ndim(o[n]) > 2 and np.shape(o[n])[-3] > 1:
            o[n] = np.asarray(o[n])[..., hs, :, :]
    return o


def visible(rows, cols, o, off, kvl):
    d = cols - (off + rows[:, None])
    vis = np.ones(d.shape, bool)
    if o.get("causal"):
        vis = vis & (d <= 0)
    if o.get("window") is not None:
        lo, hi = o["window"]
        if lo is not None:
            vis = vis & (d >= -lo)
        if hi is not None:
            vis = vis & (d <= hi)
    if o.get("chunk") is not None:
        vis = vis & (cols // o["chunk"] == (off + rows[:, None]) // o["chunk"])
    if o.get("mask") is not None:
        vis = vis & pick(o["mask"], rows, cols)
    if kvl is not None:
        vis = vis & (cols < kvl)
    return vis, d


def logits(q, k, rows, cols, o, scale, off, kvl, brows=None, capfix=None):
    """Scores of a tile, hidden ones -inf."""
    s = (q @ sw(k)) * scale
    cap = o.get("softcap")
    if cap is not None:
        s = capfix(s, F32(cap)) if capfix else F32(cap) * np.tanh(s / F32(cap))
    vis, d = visible(rows, cols, o, off, kvl)
    if o.get("alibi_slopes") is not None:
        s = s - f32(o["alibi_slopes"])[:, None, None] * np.abs(d).astype(F32)
    if o.get("bias") is not None:
        s = s + f32(pick(o["bias"], rows if brows is None else brows, cols))
    return np.where(vis, s, NEG).astype(F32)


def start(shape, E):
    return np.full(shape, NEG, F32), np.zeros(shape, F32), np.zeros(shape + (E,), F32)


def weights(m, s):
    """new max, weights, alpha"""
    mn = np.maximum(m, s.max(-1))
    ms = np.where(mn == NEG, F32(0), mn)
    p = np.exp(s - ms[..., None])
    a = np.where(m == NEG, F32(0), np.maximum(np.exp(m - ms), F32(1e-37)))
    return mn, p, a


def step(m, l, acc, s, v, dt):
    mn, p, a = weights(m, s)
    return mn, l * a + p.sum(-1), acc * a[..., None] + pv(rnd(p, dt), v, s != NEG)


def close(m, l, acc, sinks=None):
    if sinks is not None:
        sk = f32(sinks)[:, None]
        mn = np.maximum(m, sk)
        a = np.where(m == NEG, F32(0), np.exp(m - mn))
        l, acc, m = l * a + np.exp(sk - mn), acc * a[..., None], mn
    none = l == 0
    out = np.where(none[..., None], F32(0), acc / np.where(none, F32(1), l)[..., None])
    return out, np.where(none, NEG, m + np.log(np.where(none, F32(1), l))).astype(F32)


def join(parts):
    """merge states (output, lse)"""
    lse = np.stack([x[1] for x in parts])
    m = lse.max(0)
    ms = np.where(m == NEG, F32(0), m)
    w = np.exp(lse - ms)
    tot = w.sum(0)
    out = sum(np.where(lse[i] == NEG, F32(0), w[i])[..., None] * parts[i][0] for i in range(len(parts)))
    out = np.where((tot == 0)[..., None], F32(0), out / np.where(tot == 0, F32(1), tot)[..., None])
    return out, np.where(tot == 0, NEG, ms + np.log(np.where(tot == 0, F32(1), tot))).astype(F32)


def span(q, k, v, rows, c0, c1, BN, o, scale, off, kvl, dt, cut=0):
    """online softmax over keys c0..c1 in tiles of BN; k, v hold keys from `cut` on"""
    m, l, acc = start(np.broadcast_shapes(q.shape[:-2], k.shape[:-2]) + (len(rows),), v.shape[-1])
    for a in range(c0, c1, BN):
        b = min(a + BN, c1)
        s = logits(q, k[..., a - cut:b - cut, :], rows, np.arange(a, b), o, scale, off, kvl)
        m, l, acc = step(m, l, acc, s, v[..., a - cut:b - cut, :], dt)
    return m, l, acc


def ready(q, k, v):
    dt = np.asarray(q).dtype
    H = q.shape[-3]
    return dt, f32(q), rep(f32(k), H), rep(f32(v), H)


def fault(name, sentence, form, dtype, lse):
    def wrap(make):
        def build(wrong=True):
            kernel, arrays, opts = make(wrong, np.random.default_rng(abs(hash_name(name))), DT[dtype])
            if lse:
                return kernel, arrays, opts
            return (lambda *a, **o: kernel(*a, **o)[0]), arrays, opts
        FAULTS.append((name, sentence, {"form": form, "dtype": dtype, "lse": lse}, build))
        return make
    return wrap


def hash_name(s):
    h = 7
    for c in s:
        h = (h * 131 + ord(c)) % 1000003
    return h


def normal(r, dt, *shape, by=1.0):
    return (r.standard_normal(shape) * by).astype(F32).astype(dt)


# ------------------------------------------------------------------ dense
@fault("ring_parity", "Warp-specialised kernel with key tiles of 32 and a ring of 3 value buffers: the parity bit of the full-barrier flips one "
       "iteration late, so at each wrap (key tiles 3, 6, ... i.e. keys 96..127 and 192..223) the wait returns at once and the weights of that tile are multiplied with "
       "the values still in the buffer, those of three tiles before (keys 0..31, 96..127). Scores and lse are right.", "dense", "bfloat16", True)
def _(wrong, r, dt):
    BM, BN, ST = 64, 32, 3

    def kernel(q, k, v, **o):
        dt, q, k, v = ready(q, k, v)
        T, S = q.shape[-2], k.shape[-2]
        scale, off, kvl = options(o, q.shape[-1], T, S)
        out, lse = np.zeros(q.shape[:-1] + v.shape[-1:], F32), np.zeros(q.shape[:-1], F32)
        for r0 in range(0, T, BM):
            rows = np.arange(r0, min(r0 + BM, T))
            qt = q[..., rows, :]
            m, l, acc = start(qt.shape[:-1], v.shape[-1])
            for it, c0 in enumerate(range(0, S, BN)):
                c1 = min(c0 + BN, S)
                s = logits(qt, k[..., c0:c1, :], rows, np.arange(c0, c1), o, scale, off, kvl)
                w0 = c0 - ST * BN if wrong and it and it % ST == 0 else c0
                m, l, acc = step(m, l, acc, s, v[..., w0:w0 + c1 - c0, :], dt)
            out[..., rows, :], lse[..., rows] = close(m, l, acc)
        return out.astype(dt), lse
    return kernel, (normal(r, dt, 4, 75, 64), normal(r, dt, 2, 243, 64), normal(r, dt, 2, 243, 64)), {}


@fault("mask_steps", "Causal kernel that walks the key tiles from the diagonal backwards and applies the causal mask only in the first cdiv(64, 64) = 1 tile; with q_offset = 41, "
       "not a multiple of 64, the diagonal of a row tile crosses two key tiles, so the second is left unmasked and the first 22 rows of the full row tiles (0..21, 64..85) see up to 22 keys of their future.", "dense", "float16", False)
def _(wrong, r, dt):
    BM, BN = 64, 64

    def kernel(q, k, v, **o):
        dt, q, k, v = ready(q, k, v)
        T, S = q.shape[-2], k.shape[-2]
        scale, off, kvl = options(o, q.shape[-1], T, S)
        out, lse = np.zeros(q.shape[:-1] + v.shape[-1:], F32), np.zeros(q.shape[:-1], F32)
        free = dict(o, causal=False)
        for r0 in range(0, T, BM):
            rows = np.arange(r0, min(r0 + BM, T))
            qt = q[..., rows, :]
            m, l, acc = start(qt.shape[:-1], v.shape[-1])
            n = cdiv(S, BN)
            if o.get("causal"):
                n = max(0, min(n, cdiv(r0 + BM + off, BN)))
            steps = cdiv(BM, BN) if wrong else cdiv(BM, BN) + 1
            for i in range(n):
                c0 = (n - 1 - i) * BN
                c1 = min(c0 + BN, S)
                s = logits(qt, k[..., c0:c1, :], rows, np.arange(c0, c1), o if i < steps else free, scale, off, kvl)
                m, l, acc = step(m, l, acc, s, v[..., c0:c1, :], dt)
            out[..., rows, :], lse[..., rows] = close(m, l, acc)
        return out.astype(dt), lse
    return kernel, (normal(r, dt, 5, 150, 48), normal(r, dt, 1, 191, 48), normal(r, dt, 1, 191, 48)), {"causal": True}


@fault("full_tile_test", "Two-sided window (45, 20): a key tile of 16 counts as 'full, no mask needed' when its first key is >= first row - left, "
       "where the last row of the 32-row tile must be tested; in such tiles the lower rows of each row tile also see keys up to 31 positions beyond the left edge of their window.", "dense", "float32", False)
def _(wrong, r, dt):
    BM, BN = 32, 16

    def kernel(q, k, v, **o):
        dt, q, k, v = ready(q, k, v)
        T, S = q.shape[-2], k.shape[-2]
        scale, off, kvl = options(o, q.shape[-1], T, S)
        out, lse = np.zeros(q.shape[:-1] + v.shape[-1:], F32), np.zeros(q.shape[:-1], F32)
        left, right = o.get("window") or (None, None)
        left = S + T + abs(off) if left is None else left
        right = S + T + abs(off) if right is None else right
        free = dict(o, window=None)
        for r0 in range(0, T, BM):
            rows = np.arange(r0, min(r0 + BM, T))
            qt = q[..., rows, :]
            m, l, acc = start(qt.shape[:-1], v.shape[-1])
            lo, hi = off + rows[0], off + rows[-1]
            for c0 in range(0, S, BN):
                c1 = min(c0 + BN, S)
                if c1 - 1 < lo - left or c0 > hi + right:
                    continue
                full = c1 - 1 <= lo + right and c0 >= (lo if wrong else hi) - left
                s = logits(qt, k[..., c0:c1, :], rows, np.arange(c0, c1), free if full else o, scale, off, kvl)
                m, l, acc = step(m, l, acc, s, v[..., c0:c1, :], dt)
            out[..., rows, :], lse[..., rows] = close(m, l, acc)
        return out.astype(dt), lse
    return kernel, (normal(r, dt, 3, 125, 32), normal(r, dt, 3, 125, 32), normal(r, dt, 3, 125, 32)), {"window": (45, 20)}


@fault("second_half_rescale", "Two warpgroups own the two halves of the value columns; the peeled last key tile (keys 192..229, tiles of 48) rescales the accumulator of the first half only, "
       "so columns 20..39 keep the old maximum's scale in every row whose maximum lies in the last tile.", "dense", "float32", False)
def _(wrong, r, dt):
    BM, BN = 32, 48

    def kernel(q, k, v, **o):
        dt, q, k, v = ready(q, k, v)
        T, S, E = q.shape[-2], k.shape[-2], v.shape[-1]
        scale, off, kvl = options(o, q.shape[-1], T, S)
        out, lse = np.zeros(q.shape[:-1] + (E,), F32), np.zeros(q.shape[:-1], F32)
        for r0 in range(0, T, BM):
            rows = np.arange(r0, min(r0 + BM, T))
            qt = q[..., rows, :]
            m, l, acc = start(qt.shape[:-1], E)
            for c0 in range(0, S, BN):
                c1 = min(c0 + BN, S)
                s = logits(qt, k[..., c0:c1, :], rows, np.arange(c0, c1), o, scale, off, kvl)
                mn, p, a = weights(m, s)
                a2 = np.ones_like(a) if wrong and c0 and c1 == S else a
                add = pv(rnd(p, dt), v[..., c0:c1, :], s != NEG)
                h = E // 2
                acc = np.concatenate([acc[..., :h] * a[..., None], acc[..., h:] * a2[..., None]], -1) + add
                m, l = mn, l * a + p.sum(-1)
            out[..., rows, :], lse[..., rows] = close(m, l, acc)
        return out.astype(dt), lse
    return kernel, (normal(r, dt, 6, 70, 40), normal(r, dt, 2, 230, 40), normal(r, dt, 2, 230, 40)), {}


@fault("lse_old_max", "The epilogue forms lse = m_prev + log(l) with the running maximum of before the last processed key tile (register of the previous iteration), while l already belongs to the new one; "
       "lse is too low in rows whose largest score stands in their last tile of 64 keys (keys 192..200), the output is right.", "dense", "bfloat16", True)
def _(wrong, r, dt):
    BM, BN = 64, 64

    def kernel(q, k, v, **o):
        dt, q, k, v = ready(q, k, v)
        T, S = q.shape[-2], k.shape[-2]
        scale, off, kvl = options(o, q.shape[-1], T, S)
        out, lse = np.zeros(q.shape[:-1] + v.shape[-1:], F32), np.zeros(q.shape[:-1], F32)
        for r0 in range(0, T, BM):
            rows = np.arange(r0, min(r0 + BM, T))
            qt = q[..., rows, :]
            m, l, acc = start(qt.shape[:-1], v.shape[-1])
            prev = m
            for c0 in range(0, S, BN):
                c1 = min(c0 + BN, S)
                s = logits(qt, k[..., c0:c1, :], rows, np.arange(c0, c1), o, scale, off, kvl)
                prev = m
                m, l, acc = step(m, l, acc, s, v[..., c0:c1, :], dt)
            out[..., rows, :], lse[..., rows] = close(m, l, acc)
            if wrong and S > BN:
                lse[..., rows] = np.where((prev == NEG) | (l == 0), lse[..., rows], prev + np.log(l))
        return out.astype(dt), lse
    return kernel, (normal(r, dt, 2, 4, 50, 64), normal(r, dt, 2, 4, 201, 64), normal(r, dt, 2, 4, 201, 64)), {}


@fault("lse_padded_stride", "lse is stored with a head stride of q_len rounded up to the row tile (90 -> 128) into an array whose heads are 90 apart: head 0 is right, every later head's lse "
       "is shifted by 38 rows a head and has zeros from the padding in it; the output is right.", "dense", "float32", True)
def _(wrong, r, dt):
    BM, BN = 64, 128

    def kernel(q, k, v, **o):
        dt, q, k, v = ready(q, k, v)
        T, S, H = q.shape[-2], k.shape[-2], q.shape[-3]
        scale, off, kvl = options(o, q.shape[-1], T, S)
        stride = cdiv(T, BM) * BM if wrong else T
        out = np.zeros(q.shape[:-1] + v.shape[-1:], F32)
        flat = np.zeros(q.shape[:-3] + (H * stride,), F32)
        for r0 in range(0, T, BM):
            rows = np.arange(r0, min(r0 + BM, T))
            m, l, acc = span(q[..., rows, :], k, v, rows, 0, S, BN, o, scale, off, kvl, dt)
            out[..., rows, :], ls = close(m, l, acc)
            for h in range(H):
                flat[..., h * stride + r0:h * stride + r0 + len(rows)] = ls[..., h, :]
        return out.astype(dt), np.ascontiguousarray(flat[..., :H * T]).reshape(q.shape[:-1])
    return kernel, (normal(r, dt, 5, 90, 32), normal(r, dt, 5, 140, 32), normal(r, dt, 5, 140, 32)), {"causal": True}


@fault("head_block_spill", "Grouped decode kernel, blocks of 4 query heads for a group of 5: the second block of a key/value head has one valid head but is only bounded by the number of heads, so it also "
       "computes and stores the next three heads with the wrong key/value head, after their own block has written them: heads 5..7 use key head 0, heads 10..12 use key head 1.", "dense", "bfloat16", False)
def _(wrong, r, dt):
    BH, BN = 4, 128

    def kernel(q, k, v, **o):
        dt, q, k, v = np.asarray(q).dtype, f32(q), f32(k), f32(v)
        H, T, S, K = q.shape[-3], q.shape[-2], k.shape[-2], k.shape[-3]
        g = H // K
        scale, off, kvl = options(o, q.shape[-1], T, S)
        out, lse = np.zeros(q.shape[:-1] + v.shape[-1:], F32), np.zeros(q.shape[:-1], F32)
        rows = np.arange(T)
        for blk in range(cdiv(g, BH)):
            for kv in range(K):
                h0 = kv * g + blk * BH
                h1 = min(h0 + BH, H if wrong else (kv + 1) * g)
                m, l, acc = span(q[..., h0:h1, :, :], k[..., kv:kv + 1, :, :], v[..., kv:kv + 1, :, :], rows, 0, S, BN, of_heads(o, np.arange(h0, h1)), scale, off, kvl, dt)
                out[..., h0:h1, :, :], lse[..., h0:h1, :] = close(m, l, acc)
        return out.astype(dt), lse
    return kernel, (normal(r, dt, 15, 3, 64), normal(r, dt, 3, 211, 64), normal(r, dt, 3, 211, 64)), {"causal": True}


@fault("bias_row_local", "The bias pointer is not advanced by the start of the row tile (tiles of 64 rows): rows 64..127 add the bias rows 0..63 and rows 128..145 the bias rows 0..17. Rows below 64 are right.", "dense", "float32", False)
def _(wrong, r, dt):
    BM, BN = 64, 64

    def kernel(q, k, v, **o):
        dt, q, k, v = ready(q, k, v)
        T, S = q.shape[-2], k.shape[-2]
        scale, off, kvl = options(o, q.shape[-1], T, S)
        out, lse = np.zeros(q.shape[:-1] + v.shape[-1:], F32), np.zeros(q.shape[:-1], F32)
        for r0 in range(0, T, BM):
            rows = np.arange(r0, min(r0 + BM, T))
            qt = q[..., rows, :]
            m, l, acc = start(qt.shape[:-1], v.shape[-1])
            for c0 in range(0, S, BN):
                c1 = min(c0 + BN, S)
                s = logits(qt, k[..., c0:c1, :], rows, np.arange(c0, c1), o, scale, off, kvl, brows=rows - r0 if wrong else rows)
                m, l, acc = step(m, l, acc, s, v[..., c0:c1, :], dt)
            out[..., rows, :], lse[..., rows] = close(m, l, acc)
        return out.astype(dt), lse
    return kernel, (normal(r, dt, 4, 146, 32), normal(r, dt, 2, 110, 32), normal(r, dt, 2, 110, 32)), {"bias": normal(r, np.dtype(F32), 4, 146, 110)}


@fault("sink_every_split", "Split-KV decoding with 4 splits: each split adds the head's sink to its own denominator instead of one split alone, so after the reduction the sink counts four times; all rows, all heads, output and lse.", "dense", "bfloat16", True)
def _(wrong, r, dt):
    NS, BN = 4, 32

    def kernel(q, k, v, **o):
        dt, q, k, v = ready(q, k, v)
        T, S = q.shape[-2], k.shape[-2]
        scale, off, kvl = options(o, q.shape[-1], T, S)
        rows = np.arange(T)
        per = cdiv(cdiv(S, BN), NS) * BN
        parts = []
        for i in range(NS):
            m, l, acc = span(q, k, v, rows, min(i * per, S), min((i + 1) * per, S), BN, o, scale, off, kvl, dt)
            parts.append(close(m, l, acc, o.get("sinks") if wrong or i == 0 else None))
        out, lse = join(parts)
        return out.astype(dt), lse
    return kernel, (normal(r, dt, 2, 8, 2, 64), normal(r, dt, 2, 2, 310, 64), normal(r, dt, 2, 2, 310, 64)), {"causal": True, "sinks": normal(r, np.dtype(F32), 8, by=1) + F32(3)}


@fault("dropout_before_sum", "Eager kernel drops weights (rate 0.2) before the row sum is taken: dropped keys leave the softmax denominator too, so kept weights are too large, in all rows, by about 1/(1-rate).", "dense", "float32", False)
def _(wrong, r, dt):
    def kernel(q, k, v, **o):
        dt, q, k, v = ready(q, k, v)
        T, S = q.shape[-2], k.shape[-2]
        scale, off, kvl = options(o, q.shape[-1], T, S)
        s = logits(q, k, np.arange(T), np.arange(S), o, scale, off, kvl)
        m, p, _ = weights(np.full(s.shape[:-1], NEG, F32), s)
        full, vis = p.sum(-1), s != NEG
        if o.get("dropout_mask") is not None:
            vis = vis & o["dropout_mask"]
            p = np.where(o["dropout_mask"], p, F32(0)) / F32(1 - (o.get("dropout_rate") or 0.0))
            if wrong:
                full = np.where(o["dropout_mask"], p, F32(0)).sum(-1) * F32(1 - (o.get("dropout_rate") or 0.0))
        out, lse = close(m, full, pv(p, v, vis))
        return out.astype(dt), lse
    return kernel, (normal(r, dt, 6, 61, 24), normal(r, dt, 6, 83, 24), normal(r, dt, 6, 83, 24)), {"causal": True, "dropout_mask": r.random((6, 61, 83)) >= 0.2, "dropout_rate": 0.2}


@fault("raw_dot_half", "The product of queries and keys is kept in float16 and the scale is applied afterwards: raw scores beyond 65504 become infinite. +inf makes the row NaN, -inf hides the key. Only rows with such a score; small inputs never show it.", "dense", "float16", False)
def _(wrong, r, dt):
    BM, BN = 32, 64

    def kernel(q, k, v, **o):
        dt, q, k, v = ready(q, k, v)
        T, S = q.shape[-2], k.shape[-2]
        scale, off, kvl = options(o, q.shape[-1], T, S)
        out, lse = np.zeros(q.shape[:-1] + v.shape[-1:], F32), np.zeros(q.shape[:-1], F32)
        for r0 in range(0, T, BM):
            rows = np.arange(r0, min(r0 + BM, T))
            m, l, acc = start(q.shape[:-2] + (len(rows),), v.shape[-1])
            for c0 in range(0, S, BN):
                c1 = min(c0 + BN, S)
                raw = q[..., rows, :] @ sw(k[..., c0:c1, :])
                if wrong:
                    raw = raw.astype(F16).astype(F32)
                vis, _ = visible(rows, np.arange(c0, c1), o, off, kvl)
                s = np.where(vis, raw * scale, NEG).astype(F32)
                m, l, acc = step(m, l, acc, s, v[..., c0:c1, :], dt)
            out[..., rows, :], lse[..., rows] = close(m, l, acc)
        return out.astype(dt), lse
    return kernel, (normal(r, dt, 4, 45, 64, by=50), normal(r, dt, 4, 150, 64, by=50), normal(r, dt, 4, 150, 64)), {"scale": 1e-4}


@fault("denominator_bf16", "The running denominator is a bfloat16 register to which the weights are added two keys at a time: from about 16 on, small weights are rounded away, so with many keys the sum stagnates; "
       "outputs are too large and lse too small, growing with the number of visible keys.", "dense", "bfloat16", True)
def _(wrong, r, dt):
    BM, BN = 64, 64

    def kernel(q, k, v, **o):
        dt, q, k, v = ready(q, k, v)
        T, S = q.shape[-2], k.shape[-2]
        scale, off, kvl = options(o, q.shape[-1], T, S)
        out, lse = np.zeros(q.shape[:-1] + v.shape[-1:], F32), np.zeros(q.shape[:-1], F32)
        for r0 in range(0, T, BM):
            rows = np.arange(r0, min(r0 + BM, T))
            qt = q[..., rows, :]
            m, l, acc = start(qt.shape[:-1], v.shape[-1])
            for c0 in range(0, S, BN):
                c1 = min(c0 + BN, S)
                s = logits(qt, k[..., c0:c1, :], rows, np.arange(c0, c1), o, scale, off, kvl)
                m, p, a = weights(m, s)
                acc = acc * a[..., None] + pv(rnd(p, dt), v[..., c0:c1, :], s != NEG)
                if wrong:
                    l = rnd(l * a, DT["bfloat16"])
                    for c in range(0, c1 - c0, 2):
                        l = rnd(l + p[..., c:c + 2].sum(-1), DT["bfloat16"])
                else:
                    l = l * a + p.sum(-1)
            out[..., rows, :], lse[..., rows] = close(m, l, acc)
        return out.astype(dt), lse
    return kernel, (normal(r, dt, 4, 27, 64, by=0.5), normal(r, dt, 4, 370, 64), normal(r, dt, 4, 370, 64)), {"causal": True}


@fault("row_tail_moved", "The last row tile is moved back to q_len - 64 so that it is full (rows 86..149 of 150), but its mask still counts rows from 128 on: rows 86..149 are treated as rows 128..191 and see up to 42 keys of their future. Rows below 86 are right.", "dense", "float32", True)
def _(wrong, r, dt):
    BM, BN = 64, 32

    def kernel(q, k, v, **o):
        dt, q, k, v = ready(q, k, v)
        T, S = q.shape[-2], k.shape[-2]
        scale, off, kvl = options(o, q.shape[-1], T, S)
        out, lse = np.zeros(q.shape[:-1] + v.shape[-1:], F32), np.zeros(q.shape[:-1], F32)
        for r0 in range(0, T, BM):
            base = max(0, T - BM) if r0 + BM > T else r0
            rows = np.arange(base, min(base + BM, T))
            m, l, acc = span(q[..., rows, :], k, v, rows - base + r0 if wrong else rows, 0, S, BN, o, scale, off, kvl, dt)
            out[..., rows, :], lse[..., rows] = close(m, l, acc)
        return out.astype(dt), lse
    return kernel, (normal(r, dt, 4, 150, 32), normal(r, dt, 1, 150, 32), normal(r, dt, 1, 150, 48)), {"causal": True}


@fault("merge_in_place", "Cascade kernel merges the state of the first 64 keys with that of the rest in place: the merged lse overwrites the first lse before the first output is weighted with it, so the first part gets weight 1 "
       "and output = o_first + w_rest * o_rest. lse is right. All rows that see both parts.", "dense", "float16", True)
def _(wrong, r, dt):
    PRE, BN = 64, 64

    def kernel(q, k, v, **o):
        dt, q, k, v = ready(q, k, v)
        T, S = q.shape[-2], k.shape[-2]
        scale, off, kvl = options(o, q.shape[-1], T, S)
        rows = np.arange(T)
        p = min(PRE, S)
        o1, l1 = close(*span(q, k, v, rows, 0, p, BN, o, scale, off, kvl, dt))
        o2, l2 = close(*span(q, k, v, rows, p, S, BN, o, scale, off, kvl, dt))
        if S <= PRE:
            return o1.astype(dt), l1
        out, lse = join([(o1, l1), (o2, l2)])
        if wrong:
            l1 = lse
            w1 = np.where(lse == NEG, F32(0), np.exp(l1 - lse))
            w2 = np.where(l2 == NEG, F32(0), np.exp(l2 - lse))
            out = w1[..., None] * o1 + w2[..., None] * o2
        return out.astype(dt), lse
    return kernel, (normal(r, dt, 10, 27, 80), normal(r, dt, 5, 130, 80), normal(r, dt, 5, 130, 80)), {"causal": True}


@fault("stream_k_third_peer", "Stream-K schedule, 4 (row tile, key tile) iterations a worker: the owner of a row tile adds the partial result of the next worker only; row tiles cut into three lose the third: "
       "rows 0..63 lose keys 256..309 (key tiles 8, 9), rows 64..99 lose keys 192..309. Output and lse.", "dense", "float32", True)
def _(wrong, r, dt):
    BM, BN, PER = 64, 32, 4

    def kernel(q, k, v, **o):
        dt, q, k, v = ready(q, k, v)
        T, S = q.shape[-2], k.shape[-2]
        scale, off, kvl = options(o, q.shape[-1], T, S)
        out, lse = np.zeros(q.shape[:-1] + v.shape[-1:], F32), np.full(q.shape[:-1], NEG, F32)
        nk = cdiv(S, BN)
        for t in range(cdiv(T, BM)):
            rows = np.arange(t * BM, min(t * BM + BM, T))
            it, parts = t * nk, []
            while it < (t + 1) * nk:
                end = min((it // PER + 1) * PER, (t + 1) * nk)
                parts.append(close(*span(q[..., rows, :], k, v, rows, (it - t * nk) * BN, min((end - t * nk) * BN, S), BN, o, scale, off, kvl, dt)))
                it = end
            if parts:
                out[..., rows, :], lse[..., rows] = join(parts[:2] if wrong else parts)
        return out.astype(dt), lse
    return kernel, (normal(r, dt, 3, 100, 48), normal(r, dt, 3, 310, 48), normal(r, dt, 3, 310, 48)), {}


@fault("quad_sum_half", "The row sum is reduced over the four lanes of a quad with one shuffle (xor 1) instead of two, so lanes 0, 1 hold the sum over keys j with j % 8 < 4 and lanes 2, 3 that over the others; "
       "output columns with c % 8 < 4 are divided by the former, the others by the latter (about twice too large everywhere), lse comes from lane 0 (about log 2 too small).", "dense", "float16", True)
def _(wrong, r, dt):
    BM, BN = 32, 32

    def kernel(q, k, v, **o):
        dt, q, k, v = ready(q, k, v)
        T, S, E = q.shape[-2], k.shape[-2], v.shape[-1]
        scale, off, kvl = options(o, q.shape[-1], T, S)
        out, lse = np.zeros(q.shape[:-1] + (E,), F32), np.zeros(q.shape[:-1], F32)
        for r0 in range(0, T, BM):
            rows = np.arange(r0, min(r0 + BM, T))
            qt = q[..., rows, :]
            m, la, acc = start(qt.shape[:-1], E)
            lb = la.copy()
            for c0 in range(0, S, BN):
                c1 = min(c0 + BN, S)
                s = logits(qt, k[..., c0:c1, :], rows, np.arange(c0, c1), o, scale, off, kvl)
                m, p, a = weights(m, s)
                low = np.arange(c1 - c0) % 8 < 4
                la, lb = la * a + p[..., low].sum(-1), lb * a + p[..., ~low].sum(-1)
                acc = acc * a[..., None] + pv(rnd(p, dt), v[..., c0:c1, :], s != NEG)
            if wrong:
                x, lse[..., rows] = close(m, la, acc)
                y, _ = close(m, lb, acc)
                out[..., rows, :] = np.where(np.arange(E) % 8 < 4, x, y)
            else:
                out[..., rows, :], lse[..., rows] = close(m, la + lb, acc)
        return out.astype(dt), lse
    return kernel, (normal(r, dt, 5, 47, 64), normal(r, dt, 5, 123, 64), normal(r, dt, 5, 123, 64)), {}


@fault("value_swizzle", "Values are stored to shared memory with 16-byte chunks xor-swizzled by (row & 7) and read back with (row & 3): for keys with bit 2 of their row in the tile set (keys 4..7, 12..15, ...) "
       "the column chunks c and c ^ 4 (columns 0..31 and 32..63) are swapped. Other keys and lse are right.", "dense", "float16", False)
def _(wrong, r, dt):
    BM, BN = 128, 64

    def kernel(q, k, v, **o):
        dt, q, k, v = ready(q, k, v)
        T, S, E = q.shape[-2], k.shape[-2], v.shape[-1]
        scale, off, kvl = options(o, q.shape[-1], T, S)
        out, lse = np.zeros(q.shape[:-1] + (E,), F32), np.zeros(q.shape[:-1], F32)
        col = np.arange(E)
        other = col ^ 32
        other = np.where(other < E, other, col)
        if wrong:
            bit = ((np.arange(S) % BN) & 4) != 0
            v = np.where(bit[:, None], v[..., other], v)
        for r0 in range(0, T, BM):
            rows = np.arange(r0, min(r0 + BM, T))
            m, l, acc = span(q[..., rows, :], k, v, rows, 0, S, BN, o, scale, off, kvl, dt)
            out[..., rows, :], lse[..., rows] = close(m, l, acc)
        return out.astype(dt), lse
    return kernel, (normal(r, dt, 6, 70, 64), normal(r, dt, 2, 105, 64), normal(r, dt, 2, 105, 64)), {"causal": True}


@fault("mask_bit_shift", "The mask is packed into 32-bit words; a key tile of 48 starts at word start // 32 but the shift by start % 32 is forgotten: odd key tiles (1 and 3: keys 48..95 and 144..169) use the mask of the keys 16 before. Even tiles are right.", "dense", "float32", False)
def _(wrong, r, dt):
    BM, BN = 64, 48

    def kernel(q, k, v, **o):
        dt, q, k, v = ready(q, k, v)
        T, S = q.shape[-2], k.shape[-2]
        scale, off, kvl = options(o, q.shape[-1], T, S)
        out, lse = np.zeros(q.shape[:-1] + v.shape[-1:], F32), np.zeros(q.shape[:-1], F32)
        plain = dict(o, mask=None)
        for r0 in range(0, T, BM):
            rows = np.arange(r0, min(r0 + BM, T))
            qt = q[..., rows, :]
            m, l, acc = start(qt.shape[:-1], v.shape[-1])
            for c0 in range(0, S, BN):
                c1 = min(c0 + BN, S)
                s = logits(qt, k[..., c0:c1, :], rows, np.arange(c0, c1), plain, scale, off, kvl)
                if o.get("mask") is not None:
                    b0 = c0 // 32 * 32 if wrong else c0
                    s = np.where(pick(o["mask"], rows, np.arange(b0, b0 + c1 - c0)), s, NEG)
                m, l, acc = step(m, l, acc, s, v[..., c0:c1, :], dt)
            out[..., rows, :], lse[..., rows] = close(m, l, acc)
        return out.astype(dt), lse
    return kernel, (normal(r, dt, 4, 80, 40), normal(r, dt, 4, 170, 40), normal(r, dt, 4, 170, 40)), {"mask": r.random((80, 170)) < 0.6}


@fault("skip_vote_any", "Key tiles (32 keys) whose scores lie 30 below the running maximum are skipped; the vote over the 64 rows of the tile is 'any' instead of 'all': with ALiBi, the last rows of a row tile vote away "
       "near tiles that its first rows need, in the heads with a steep slope (heads 0..2, slope * 63 over about 30; mostly rows just after 64 and 128). Flat heads 3..5 are right.", "dense", "bfloat16", True)
def _(wrong, r, dt):
    BM, BN = 64, 32

    def kernel(q, k, v, **o):
        dt, q, k, v = ready(q, k, v)
        T, S = q.shape[-2], k.shape[-2]
        scale, off, kvl = options(o, q.shape[-1], T, S)
        out, lse = np.zeros(q.shape[:-1] + v.shape[-1:], F32), np.zeros(q.shape[:-1], F32)
        for r0 in range(0, T, BM):
            rows = np.arange(r0, min(r0 + BM, T))
            qt = q[..., rows, :]
            m, l, acc = start(qt.shape[:-1], v.shape[-1])
            for c0 in reversed(range(0, S, BN)):
                c1 = min(c0 + BN, S)
                s = logits(qt, k[..., c0:c1, :], rows, np.arange(c0, c1), o, scale, off, kvl)
                top = s.max(-1)
                low = top < m - 30
                skip = (low & (top > NEG)).any(-1) if wrong else (low | (top == NEG)).all(-1)
                s = np.where(skip[..., None, None], NEG, s)
                m, l, acc = step(m, l, acc, s, v[..., c0:c1, :], dt)
            out[..., rows, :], lse[..., rows] = close(m, l, acc)
        return out.astype(dt), lse
    return kernel, (normal(r, dt, 6, 140, 32), normal(r, dt, 3, 140, 32), normal(r, dt, 3, 140, 32)), \
        {"causal": True, "alibi_slopes": np.array([0.9, 0.75, 0.6, 0.25, 0.1, 0.02], F32)}


@fault("odd_last_key", "CPU kernel packs values in pairs of keys (VNNI, two bfloat16 a lane) and runs over n // 2 pairs: with an odd number of keys in the last tile the last key (key 52 of 53) is in the softmax denominator but its value is never added.", "dense", "bfloat16", False)
def _(wrong, r, dt):
    BN = 32

    def kernel(q, k, v, **o):
        dt, q, k, v = ready(q, k, v)
        T, S = q.shape[-2], k.shape[-2]
        scale, off, kvl = options(o, q.shape[-1], T, S)
        rows = np.arange(T)
        m, l, acc = start(q.shape[:-1], v.shape[-1])
        for c0 in range(0, S, BN):
            c1 = min(c0 + BN, S)
            s = logits(q, k[..., c0:c1, :], rows, np.arange(c0, c1), o, scale, off, kvl)
            m, p, a = weights(m, s)
            n = (c1 - c0) // 2 * 2 if wrong else c1 - c0
            l = l * a + p.sum(-1)
            acc = acc * a[..., None] + pv(rnd(p, dt)[..., :n], v[..., c0:c0 + n, :], (s != NEG)[..., :n])
        out, lse = close(m, l, acc)
        return out.astype(dt), lse
    return kernel, (normal(r, dt, 12, 40, 64), normal(r, dt, 4, 53, 64), normal(r, dt, 4, 53, 64)), {}


@fault("single_row_not_causal", "The launcher turns causal off when there is one query row ('the last row sees everything'), though q_offset = 130 puts it in the middle of 200 keys: the row also sees keys 131..199. Calls with more rows are right.", "dense", "float16", False)
def _(wrong, r, dt):
    BN = 256

    def kernel(q, k, v, **o):
        dt, q, k, v = ready(q, k, v)
        T, S = q.shape[-2], k.shape[-2]
        scale, off, kvl = options(o, q.shape[-1], T, S)
        if wrong and T == 1:
            o = dict(o, causal=False)
        out, lse = close(*span(q, k, v, np.arange(T), 0, S, BN, o, scale, off, kvl, dt))
        return out.astype(dt), lse
    return kernel, (normal(r, dt, 2, 8, 1, 96), normal(r, dt, 2, 1, 200, 96), normal(r, dt, 2, 1, 200, 96)), {"causal": True, "q_offset": 130}


@fault("chunk_of_first_row", "Chunked local attention (chunk 50, row tiles of 32): the lower bound of the chunk is computed once a row tile, from its first row; rows of the same tile that lie past a chunk boundary also see the previous chunk (rows 50..63, 100..127, 150..159).", "dense", "float32", False)
def _(wrong, r, dt):
    BM, BN = 32, 96

    def kernel(q, k, v, **o):
        dt, q, k, v = ready(q, k, v)
        T, S = q.shape[-2], k.shape[-2]
        scale, off, kvl = options(o, q.shape[-1], T, S)
        out, lse = np.zeros(q.shape[:-1] + v.shape[-1:], F32), np.zeros(q.shape[:-1], F32)
        plain = dict(o, chunk=None)
        ch = o.get("chunk")
        for r0 in range(0, T, BM):
            rows = np.arange(r0, min(r0 + BM, T))
            qt = q[..., rows, :]
            m, l, acc = start(qt.shape[:-1], v.shape[-1])
            for c0 in range(0, S, BN):
                cols = np.arange(c0, min(c0 + BN, S))
                s = logits(qt, k[..., cols, :], rows, cols, plain, scale, off, kvl)
                if ch is not None:
                    pos = off + rows[:, None]
                    lo = (pos[..., :1, :] if wrong else pos) // ch * ch
                    s = np.where((cols >= lo) & (cols < (pos // ch + 1) * ch), s, NEG)
                m, l, acc = step(m, l, acc, s, v[..., cols, :], dt)
            out[..., rows, :], lse[..., rows] = close(m, l, acc)
        return out.astype(dt), lse
    return kernel, (normal(r, dt, 4, 170, 32), normal(r, dt, 2, 170, 32), normal(r, dt, 2, 170, 32)), {"causal": True, "chunk": 50}


@fault("softcap_log2", "The scale is folded with log2(e) for exp2 before the softcap is applied, so the cap of 6 acts on scores in base-2 units: the effective cap is 6 * ln 2 = 4.16 on natural scores; large scores are squeezed too much, small ones are right. All rows, output and lse.", "dense", "float32", True)
def _(wrong, r, dt):
    BM, BN = 64, 64
    L2E, LN2 = F32(1.4426950408889634), F32(0.6931471805599453)
    fix = (lambda s, cap: cap * np.tanh(s * L2E / cap) * LN2) if wrong else None

    def kernel(q, k, v, **o):
        dt, q, k, v = ready(q, k, v)
        T, S = q.shape[-2], k.shape[-2]
        scale, off, kvl = options(o, q.shape[-1], T, S)
        out, lse = np.zeros(q.shape[:-1] + v.shape[-1:], F32), np.zeros(q.shape[:-1], F32)
        for r0 in range(0, T, BM):
            rows = np.arange(r0, min(r0 + BM, T))
            qt = q[..., rows, :]
            m, l, acc = start(qt.shape[:-1], v.shape[-1])
            for c0 in range(0, S, BN):
                c1 = min(c0 + BN, S)
                s = logits(qt, k[..., c0:c1, :], rows, np.arange(c0, c1), o, scale, off, kvl, capfix=fix)
                m, l, acc = step(m, l, acc, s, v[..., c0:c1, :], dt)
            out[..., rows, :], lse[..., rows] = close(m, l, acc)
        return out.astype(dt), lse
    return kernel, (normal(r, dt, 6, 66, 48, by=2), normal(r, dt, 3, 150, 48), normal(r, dt, 3, 150, 48)), {"causal": True, "softcap": 6.0}


# ------------------------------------------------------------------ packed
def ragged(r, dt, H, K, D, E, ql, kl):
    cq, ck = np.concatenate([[0], np.cumsum(ql)]).astype(np.int32), np.concatenate([[0], np.cumsum(kl)]).astype(np.int32)
    return (normal(r, dt, H, int(cq[-1]), D), normal(r, dt, K, int(ck[-1]), D), normal(r, dt, K, int(ck[-1]), E)), {"cu_q": cq, "cu_kv": ck}


@fault("grid_last_block", "Varlen kernel finds the sequence of a row block (32 rows) from block starts cu_q // 32 + b, but rounds cu_q up instead of down: in the grid of total_q // 32 + sequences blocks the last sequence has one block too few, "
       "so its last row block (rows 97..102 of 103) is never computed and keeps output 0, lse -inf.", "packed", "float32", True)
def _(wrong, r, dt):
    BM, BN = 32, 64

    def kernel(q, k, v, *, cu_q, cu_kv, **o):
        dt, q, k, v = ready(q, k, v)
        cu_q, cu_kv = [int(x) for x in cu_q], [int(x) for x in cu_kv]
        n = len(cu_q) - 1
        out, lse = np.zeros(q.shape[:-1] + v.shape[-1:], F32), np.full(q.shape[:-1], NEG, F32)
        starts = [(c + BM - 1) // BM + b if wrong else c // BM + b for b, c in enumerate(cu_q[:-1])]
        for blk in range(cu_q[-1] // BM + n):
            b = max(i for i in range(n) if starts[i] <= blk)
            T, S = cu_q[b + 1] - cu_q[b], cu_kv[b + 1] - cu_kv[b]
            r0 = (blk - starts[b]) * BM
            if r0 >= T:
                continue
            rows = np.arange(r0, min(r0 + BM, T))
            scale, off, _ = options(o, q.shape[-1], T, S)
            at = cu_q[b] + rows
            m, l, acc = span(q[:, at], k[:, cu_kv[b]:cu_kv[b + 1]], v[:, cu_kv[b]:cu_kv[b + 1]], rows, 0, S, BN, o, scale, off, None, dt)
            out[:, at], lse[:, at] = close(m, l, acc)
        return out.astype(dt), lse
    a, x = ragged(r, dt, 4, 2, 32, 32, [20, 13, 70], [20, 40, 81])
    return kernel, a, dict(x, causal=True)


@fault("offset_of_maxima", "Packed causal kernel aligns the diagonal with max_kv - max_q of the whole batch (90 - 40 = 50) instead of each sequence's own kv_len - q_len: sequence 2 (difference 0) sees its future, sequence 1 (68) loses its 18 last keys in each row; sequences 0 and 3 (50) are right.", "packed", "bfloat16", True)
def _(wrong, r, dt):
    BN = 32

    def kernel(q, k, v, *, cu_q, cu_kv, **o):
        dt, q, k, v = ready(q, k, v)
        cu_q, cu_kv = [int(x) for x in cu_q], [int(x) for x in cu_kv]
        out, lse = np.zeros(q.shape[:-1] + v.shape[-1:], F32), np.full(q.shape[:-1], NEG, F32)
        big = max(np.diff(cu_kv)) - max(np.diff(cu_q))
        for b in range(len(cu_q) - 1):
            T, S = cu_q[b + 1] - cu_q[b], cu_kv[b + 1] - cu_kv[b]
            scale, off, _ = options(o, q.shape[-1], T, S)
            if wrong and o.get("q_offset") is None:
                off = int(big)
            at = slice(cu_q[b], cu_q[b + 1])
            m, l, acc = span(q[:, at], k[:, cu_kv[b]:cu_kv[b + 1]], v[:, cu_kv[b]:cu_kv[b + 1]], np.arange(T), 0, S, BN, o, scale, off, None, dt)
            out[:, at], lse[:, at] = close(m, l, acc)
        return out.astype(dt), lse
    a, x = ragged(r, dt, 6, 3, 64, 64, [40, 9, 25, 18], [90, 77, 25, 68])
    return kernel, a, dict(x, causal=True)


@fault("aligned_first_tile", "Key tiles of a packed sequence start at cu_kv rounded down to 16 (aligned loads), and the leading keys that belong to the sequence before are not masked: with cu_kv = 0, 37, 96, 101 sequence 1 also attends keys 32..36 and sequence 3 keys 96..100 of the packed array; sequences 0 and 2 are right.", "packed", "float32", True)
def _(wrong, r, dt):
    BN = 64

    def kernel(q, k, v, *, cu_q, cu_kv, **o):
        dt, q, k, v = ready(q, k, v)
        cu_q, cu_kv = [int(x) for x in cu_q], [int(x) for x in cu_kv]
        out, lse = np.zeros(q.shape[:-1] + v.shape[-1:], F32), np.full(q.shape[:-1], NEG, F32)
        for b in range(len(cu_q) - 1):
            T, S = cu_q[b + 1] - cu_q[b], cu_kv[b + 1] - cu_kv[b]
            scale, off, _ = options(o, q.shape[-1], T, S)
            lead = cu_kv[b] % 16
            at = slice(cu_q[b], cu_q[b + 1])
            rows = np.arange(T)
            m, l, acc = start(q.shape[:1] + (T,), v.shape[-1])
            for c0 in range(-lead, S, BN):
                cols = np.arange(c0, min(c0 + BN, S))
                g = cu_kv[b] + cols
                s = logits(q[:, at], k[:, g], rows, cols, o, scale, off, None)
                if not wrong:
                    s = np.where(cols >= 0, s, NEG)
                m, l, acc = step(m, l, acc, s, v[:, g], dt)
            out[:, at], lse[:, at] = close(m, l, acc)
        return out.astype(dt), lse
    a, x = ragged(r, dt, 5, 5, 40, 40, [30, 50, 3, 61], [37, 59, 5, 61])
    return kernel, a, dict(x, causal=True)


@fault("rank_for_length", "Sequences are scheduled longest first; the kernel takes the key length by the rank in that order instead of by the sequence: a sequence of rank n reads from its own start, but as many keys as the n-th sequence has, "
       "so it runs into its neighbours' keys or stops early. Sequence 1 reads 71 keys instead of 33, sequence 3 33 instead of 71; the others have the rank of their number and are right.", "packed", "float16", False)
def _(wrong, r, dt):
    BN = 128

    def kernel(q, k, v, *, cu_q, cu_kv, **o):
        dt, q, k, v = ready(q, k, v)
        cu_q, cu_kv = [int(x) for x in cu_q], [int(x) for x in cu_kv]
        n = len(cu_q) - 1
        out, lse = np.zeros(q.shape[:-1] + v.shape[-1:], F32), np.full(q.shape[:-1], NEG, F32)
        lens = [cu_kv[i + 1] - cu_kv[i] for i in range(n)]
        order = sorted(range(n), key=lambda i: -lens[i])
        for rank, b in enumerate(order):
            T = cu_q[b + 1] - cu_q[b]
            S = min(lens[rank], cu_kv[-1] - cu_kv[b]) if wrong else lens[b]
            scale, off, _ = options(o, q.shape[-1], T, S)
            at = slice(cu_q[b], cu_q[b + 1])
            m, l, acc = span(q[:, at], k[:, cu_kv[b]:cu_kv[b] + S], v[:, cu_kv[b]:cu_kv[b] + S], np.arange(T), 0, S, BN, o, scale, off, None, dt)
            out[:, at], lse[:, at] = close(m, l, acc)
        return out.astype(dt), lse
    a, x = ragged(r, dt, 4, 4, 64, 64, [12, 31, 17, 24, 5], [100, 33, 52, 71, 20])
    return kernel, a, x


@fault("jagged_tile_end", "Row tiles of 48 rows run over the packed rows and may hold several sequences; the key loop ends at the end of the sequence of the tile's first row, so rows of later sequences in a mixed tile find no keys "
       "(rows 60..95: output 0, lse -inf); tiles with one sequence (rows 0..47, 96..132) are right.", "packed", "float32", True)
def _(wrong, r, dt):
    BM, BN = 48, 64

    def kernel(q, k, v, *, cu_q, cu_kv, **o):
        dt, q, k, v = ready(q, k, v)
        cu_q, cu_kv = np.asarray(cu_q).astype(np.int64), np.asarray(cu_kv).astype(np.int64)
        n, total = len(cu_q) - 1, int(cu_q[-1])
        seq = np.repeat(np.arange(n), np.diff(cu_q))
        kseq = np.repeat(np.arange(n), np.diff(cu_kv))
        scale, _, _ = options(o, q.shape[-1], 1, 1)
        diff = np.diff(cu_kv) - np.diff(cu_q) if o.get("q_offset") is None else np.broadcast_to(np.asarray(o["q_offset"]), (n,))
        out, lse = np.zeros(q.shape[:-1] + v.shape[-1:], F32), np.full(q.shape[:-1], NEG, F32)
        for r0 in range(0, total, BM):
            at = np.arange(r0, min(r0 + BM, total))
            sq = seq[at]
            pos = at - cu_q[sq] + diff[sq]
            m, l, acc = start(q.shape[:1] + (len(at),), v.shape[-1])
            end = int(cu_kv[(sq[0] if wrong else sq[-1]) + 1])
            for c0 in range(int(cu_kv[sq[0]]), end, BN):
                cols = np.arange(c0, min(c0 + BN, end))
                loc = cols - cu_kv[kseq[cols]]
                vis = kseq[cols] == sq[:, None]
                if o.get("causal"):
                    vis = vis & (loc <= pos[:, None])
                s = np.where(vis, (q[:, at] @ sw(k[:, cols])) * scale, NEG).astype(F32)
                m, l, acc = step(m, l, acc, s, v[:, cols], dt)
            out[:, at], lse[:, at] = close(m, l, acc)
        return out.astype(dt), lse
    a, x = ragged(r, dt, 6, 2, 48, 48, [60, 11, 7, 55], [64, 30, 21, 55])
    return kernel, a, dict(x, causal=True)


# ------------------------------------------------------------------ paged
def pages(r, dt, H, K, D, E, T, ps, lens, extra=0, P=None):
    B = len(lens)
    mp = max(cdiv(max(lens), ps), 1) + extra
    P = P or B * mp
    table = r.permutation(P)[:B * mp].reshape(B, mp).astype(np.int32)
    return (normal(r, dt, B, H, T, D), normal(r, dt, P, K, ps, D), normal(r, dt, P, K, ps, E)), {"block_table": table, "kv_lengths": np.array(lens, np.int32)}


def gather(x, ids):
    """(n pages) -> (K, n * page_size, D)"""
    y = f32(x[ids])
    return np.moveaxis(y, 1, 0).reshape(y.shape[1], -1, y.shape[3])


@fault("slack_nan_times_zero", "Slots of the last page past kv_length get weight 0 but their values are multiplied all the same: stale NaN or infinity there (sequences 0 and 2, whose last page is not full) makes NaN of the whole row; sequence 1 has a full last page and is right.", "paged", "bfloat16", False)
def _(wrong, r, dt):
    def kernel(q, kp, vp, *, block_table, kv_lengths, **o):
        dt, q = np.asarray(q).dtype, f32(q)
        B, H, T, D = q.shape
        ps = kp.shape[2]
        out, lse = np.zeros(q.shape[:-1] + vp.shape[-1:], F32), np.full(q.shape[:-1], NEG, F32)
        rows = np.arange(T)
        for b in range(B):
            S = int(kv_lengths[b])
            scale, off, _ = options(dict(o, kv_lengths=None), D, T, S)
            m, l, acc = start((H, T), vp.shape[-1])
            for n0 in range(0, cdiv(S, ps), 4):
                ids = np.asarray(block_table)[b, n0:min(n0 + 4, cdiv(S, ps))]
                cols = n0 * ps + np.arange(len(ids) * ps)
                s = logits(q[b], rep(gather(kp, ids), H), rows, cols, o, scale, off, S)
                v = rep(gather(vp, ids), H)
                m, p, a = weights(m, s)
                p16 = rnd(p, dt)
                l = l * a + p.sum(-1)
                tail = cols >= S
                if wrong and tail.any():
                    acc = acc * a[..., None] + pv(p16[..., ~tail], v[..., ~tail, :], (s != NEG)[..., ~tail]) + p16[..., tail] @ v[..., tail, :]
                else:
                    acc = acc * a[..., None] + pv(p16, v, s != NEG)
            out[b], lse[b] = close(m, l, acc)
        return out.astype(dt), lse
    a, x = pages(r, dt, 8, 2, 64, 64, 2, 16, [75, 96, 130])
    vp = a[2].copy()
    for b, L in enumerate([75, 96, 130]):
        if L % 16:
            vp[x["block_table"][b, L // 16], :, L % 16:] = np.nan
    return kernel, (a[0], a[1], vp), dict(x, causal=True)


@fault("table_row_stride", "The row stride of the block table is taken as the pages of the longest sequence (6) instead of the table's width (9): sequence 0 is right, sequence b starts 3*b entries too early in the table and walks pages of other sequences or unused entries.", "paged", "float32", True)
def _(wrong, r, dt):
    def kernel(q, kp, vp, *, block_table, kv_lengths, **o):
        dt, q = np.asarray(q).dtype, f32(q)
        B, H, T, D = q.shape
        ps = kp.shape[2]
        table = np.asarray(block_table)
        flat = table.reshape(-1)
        stride = max(1, cdiv(int(np.max(kv_lengths)), ps)) if wrong else table.shape[1]
        out, lse = np.zeros(q.shape[:-1] + vp.shape[-1:], F32), np.full(q.shape[:-1], NEG, F32)
        for b in range(B):
            S = int(kv_lengths[b])
            scale, off, _ = options(dict(o, kv_lengths=None), D, T, S)
            ids = flat[b * stride:b * stride + cdiv(S, ps)]
            if len(ids):
                k, v = rep(gather(kp, ids), H), rep(gather(vp, ids), H)
                out[b], lse[b] = close(*span(q[b], k, v, np.arange(T), 0, S, ps * 2, o, scale, off, None, dt))
        return out.astype(dt), lse
    a, x = pages(r, dt, 6, 3, 32, 32, 4, 32, [150, 61, 178, 99], extra=3)
    return kernel, a, dict(x, causal=True)


@fault("split_remainder_pages", "Split-KV paged decoding with 4 splits: each split gets npages // 4 pages and the remainder goes to nobody: with 9, 11, 4 and 3 pages of 16, sequence 0 loses its last page (keys 128..), sequence 1 its last three (keys 128..), sequence 3 all its keys; sequence 2 (4 pages) is right.", "paged", "float32", True)
def _(wrong, r, dt):
    NS = 4

    def kernel(q, kp, vp, *, block_table, kv_lengths, **o):
        dt, q = np.asarray(q).dtype, f32(q)
        B, H, T, D = q.shape
        ps = kp.shape[2]
        out, lse = np.zeros(q.shape[:-1] + vp.shape[-1:], F32), np.full(q.shape[:-1], NEG, F32)
        for b in range(B):
            S = int(kv_lengths[b])
            scale, off, _ = options(dict(o, kv_lengths=None), D, T, S)
            n = cdiv(S, ps)
            per = n // NS if wrong else cdiv(n, NS)
            parts = []
            for i in range(NS):
                n0, n1 = min(i * per, n), min((i + 1) * per, n)
                k, v = rep(gather(kp, np.asarray(block_table)[b, n0:n1]), H), rep(gather(vp, np.asarray(block_table)[b, n0:n1]), H)
                parts.append(close(*span(q[b], k, v, np.arange(T), n0 * ps, min(n1 * ps, S), 32, o, scale, off, None, dt, cut=n0 * ps)))
            out[b], lse[b] = join(parts)
        return out.astype(dt), lse
    a, x = pages(r, dt, 8, 4, 48, 48, 1, 16, [141, 170, 64, 40])
    return kernel, a, x


@fault("empty_sequence_buffer", "A sequence with kv_length 0 returns at once without storing anything; the output buffer is the query's own buffer, so its rows (sequence 1) come back as the query instead of 0. Sequences with keys are right.", "paged", "bfloat16", False)
def _(wrong, r, dt):
    def kernel(q, kp, vp, *, block_table, kv_lengths, **o):
        dt, q0, q = np.asarray(q).dtype, np.asarray(q), f32(q)
        B, H, T, D = q.shape
        ps = kp.shape[2]
        out, lse = np.zeros(q.shape[:-1] + vp.shape[-1:], F32), np.full(q.shape[:-1], NEG, F32)
        e = min(D, vp.shape[-1])
        out[..., :e] = q[..., :e]
        for b in range(B):
            S = int(kv_lengths[b])
            if S == 0:
                if not wrong:
                    out[b] = 0
                continue
            scale, off, _ = options(dict(o, kv_lengths=None), D, T, S)
            ids = np.asarray(block_table)[b, :cdiv(S, ps)]
            out[b], lse[b] = close(*span(q[b], rep(gather(kp, ids), H), rep(gather(vp, ids), H), np.arange(T), 0, S, 64, o, scale, off, None, dt))
        return out.astype(dt), lse
    a, x = pages(r, dt, 4, 1, 64, 64, 3, 8, [50, 0, 83])
    return kernel, a, dict(x, causal=True)


@fault("full_last_page", "The number of valid slots in the last page is kv_length % page_size, which is 0 when the last page is full: sequences 1 and 3 (lengths 96 and 24, pages of 24) lose their last 24 keys, sequence 3 thereby all; the others are right.", "paged", "float32", True)
def _(wrong, r, dt):
    def kernel(q, kp, vp, *, block_table, kv_lengths, **o):
        dt, q = np.asarray(q).dtype, f32(q)
        B, H, T, D = q.shape
        ps = kp.shape[2]
        out, lse = np.zeros(q.shape[:-1] + vp.shape[-1:], F32), np.full(q.shape[:-1], NEG, F32)
        for b in range(B):
            S = int(kv_lengths[b])
            scale, off, _ = options(dict(o, kv_lengths=None), D, T, S)
            n = cdiv(S, ps)
            m, l, acc = start((H, T), vp.shape[-1])
            for i in range(n):
                ids = np.asarray(block_table)[b, i:i + 1]
                use = ps if i < n - 1 else (S % ps if wrong else S - i * ps)
                if use == 0:
                    continue
                cols = i * ps + np.arange(use)
                s = logits(q[b], rep(gather(kp, ids), H)[:, :use], np.arange(T), cols, o, scale, off, None)
                m, l, acc = step(m, l, acc, s, rep(gather(vp, ids), H)[:, :use], dt)
            out[b], lse[b] = close(m, l, acc)
        return out.astype(dt), lse
    a, x = pages(r, dt, 12, 3, 32, 40, 2, 24, [70, 96, 110, 24])
    return kernel, a, dict(x, causal=True)


@fault("window_first_page", "Sliding window (left 40) in a paged kernel: pages before the window are skipped and the positions are right, but the block table is read from entry 0: long sequences attend the keys of their first pages "
       "(at the positions of the last ones); sequence 1 (length 35), whose window starts in page 0, is right.", "paged", "bfloat16", False)
def _(wrong, r, dt):
    def kernel(q, kp, vp, *, block_table, kv_lengths, **o):
        dt, q = np.asarray(q).dtype, f32(q)
        B, H, T, D = q.shape
        ps = kp.shape[2]
        out, lse = np.zeros(q.shape[:-1] + vp.shape[-1:], F32), np.full(q.shape[:-1], NEG, F32)
        left = o["window"][0] if o.get("window") is not None else None
        for b in range(B):
            S = int(kv_lengths[b])
            scale, off, _ = options(dict(o, kv_lengths=None), D, T, S)
            n = cdiv(S, ps)
            n0 = 0 if left is None else min(max(0, (off - left) // ps), n)
            ids = np.asarray(block_table)[b, :n - n0] if wrong else np.asarray(block_table)[b, n0:n]
            k, v = rep(gather(kp, ids), H), rep(gather(vp, ids), H)
            out[b], lse[b] = close(*span(q[b], k, v, np.arange(T), n0 * ps, S, 64, o, scale, off, None, dt, cut=n0 * ps))
        return out.astype(dt), lse
    a, x = pages(r, dt, 8, 8, 64, 64, 4, 16, [187, 35, 120])
    return kernel, a, dict(x, causal=True, window=(40, None))


@fault("key_vector_width", "The key cache is stored in the order (page, head, dim / 4, slot, 4) for 4-byte elements, and the kernel reads it with the width 8 of 16-bit caches: dims and slots of each page are mixed in every key (only dims with d % 8 < 4 of slot 0 are right); all sequences, heads and rows; values are read right.", "paged", "float32", False)
def _(wrong, r, dt):
    def kernel(q, kp, vp, *, block_table, kv_lengths, **o):
        dt, q = np.asarray(q).dtype, f32(q)
        B, H, T, D = q.shape
        P, K, ps, _ = kp.shape
        xw = 4 if D % 4 == 0 else 1
        xr = 8 if wrong and D % 8 == 0 else xw
        stored = np.ascontiguousarray(np.swapaxes(f32(kp).reshape(P, K, ps, D // xw, xw), 2, 3)).reshape(P, K, -1)
        slot, d = np.arange(ps)[:, None], np.arange(D)
        adr = (d // xr) * ps * xr + slot * xr + d % xr
        out, lse = np.zeros(q.shape[:-1] + vp.shape[-1:], F32), np.full(q.shape[:-1], NEG, F32)
        for b in range(B):
            S = int(kv_lengths[b])
            scale, off, _ = options(dict(o, kv_lengths=None), D, T, S)
            ids = np.asarray(block_table)[b, :cdiv(S, ps)]
            k = np.moveaxis(stored[ids][:, :, adr], 1, 0).reshape(K, -1, D)
            out[b], lse[b] = close(*span(q[b], rep(k, H), rep(gather(vp, ids), H), np.arange(T), 0, S, 32, o, scale, off, None, dt))
        return out.astype(dt), lse
    a, x = pages(r, dt, 4, 2, 32, 32, 1, 16, [100, 57])
    return kernel, a, dict(x, softcap=20.0)


# ------------------------------------------------------------------ latent
def latents(r, dt, H, T, S, N, R, C, E, batch=()):
    return (normal(r, dt, *batch, H, T, N), normal(r, dt, *batch, H, T, R), normal(r, dt, *batch, S, C), normal(r, dt, *batch, S, R),
            normal(r, dt, H, N, C, by=C ** -0.5), normal(r, dt, H, E, C, by=C ** -0.5))


def absorb(qn, qr, c, kr, wk):
    q = np.concatenate([f32(qn) @ f32(wk), f32(qr)], -1)
    k = np.concatenate([f32(c), f32(kr)], -1)[..., None, :, :]
    return q, k, f32(c)[..., None, :, :]


@fault("seesaw_first_tile", "MLA kernel that takes two key tiles (32 each) at a time; one warpgroup owns the right half of the latent columns and receives the weights of the first tile of a pair before they are rescaled to the maximum of both: "
       "latent columns 40..79 count the first tile of a pair too much in rows where the second tile raises the maximum; lse is right.", "latent", "bfloat16", True)
def _(wrong, r, dt):
    BN = 32

    def kernel(qn, qr, c, kr, wk, wv, *, form="absorb", **o):
        dt = np.asarray(qn).dtype
        q, k, v = absorb(qn, qr, c, kr, wk)
        T, S, C = q.shape[-2], k.shape[-2], v.shape[-1]
        scale, off, kvl = options(o, qn.shape[-1] + qr.shape[-1], T, S)
        rows, h = np.arange(T), C // 2
        m, l, acc = start(q.shape[:-1], C)
        for c0 in range(0, S, 2 * BN):
            mid, c1 = min(c0 + BN, S), min(c0 + 2 * BN, S)
            s0 = logits(q, k[..., c0:mid, :], rows, np.arange(c0, mid), o, scale, off, kvl)
            m1, p0, a0 = weights(m, s0)
            l, acc = l * a0 + p0.sum(-1), acc * a0[..., None]
            add = pv(rnd(p0, dt), v[..., c0:mid, :], s0 != NEG)
            m = m1
            if c1 > mid:
                s1 = logits(q, k[..., mid:c1, :], rows, np.arange(mid, c1), o, scale, off, kvl)
                m, p1, a1 = weights(m1, s1)
                l, acc = l * a1 + p1.sum(-1), acc * a1[..., None]
                add = np.concatenate([add[..., :h] * a1[..., None], add[..., h:] * (F32(1) if wrong else a1[..., None])], -1)
                add = add + pv(rnd(p1, dt), v[..., mid:c1, :], s1 != NEG)
            acc = acc + add
        out, lse = close(m, l, acc)
        return (out @ sw(f32(wv))).astype(dt), lse
    return kernel, latents(r, dt, 8, 5, 230, 32, 16, 80, 32), {"causal": True}


@fault("head_tile_moved", "MLA kernel with head tiles of 8: the last tile of 12 heads is moved back to heads 4..11, but the value up-projection is read for the heads from 8 on (clamped to 11): heads 4..6 use w_uv of heads 8..10 and heads 7..11 that of head 11 (right only for 11).", "latent", "float16", False)
def _(wrong, r, dt):
    BH, BN = 8, 128

    def kernel(qn, qr, c, kr, wk, wv, *, form="absorb", **o):
        dt = np.asarray(qn).dtype
        q, k, v = absorb(qn, qr, c, kr, wk)
        H, T, S = q.shape[-3], q.shape[-2], k.shape[-2]
        scale, off, kvl = options(o, qn.shape[-1] + qr.shape[-1], T, S)
        out, lse = np.zeros(q.shape[:-1] + (wv.shape[-2],), F32), np.zeros(q.shape[:-1], F32)
        for h0 in range(0, H, BH):
            base = max(0, H - BH) if h0 + BH > H else h0
            hs = np.arange(base, min(base + BH, H))
            m, l, acc = span(q[..., hs, :, :], k, v, np.arange(T), 0, S, BN, of_heads(o, hs), scale, off, kvl, dt)
            lat, lse[..., hs, :] = close(m, l, acc)
            wh = np.minimum(hs - base + h0, H - 1) if wrong else hs
            out[..., hs, :, :] = lat @ sw(f32(wv)[wh])
        return out.astype(dt), lse
    return kernel, latents(r, dt, 12, 9, 140, 32, 16, 64, 32), {"causal": True}


@fault("stage2_split_size", "MLA split decoding: stage 1 gives each of 8 splits cdiv(cdiv(S, 8), 32) * 32 = 64 keys, so with 300 keys splits 5..7 are empty and never written; stage 2 takes cdiv(S, 8) = 38 keys a split, thinks all eight are there and merges "
       "the three zeroed slots (lse 0, output 0): outputs too small and lse too large in all rows.", "latent", "bfloat16", True)
def _(wrong, r, dt):
    NS, BN = 8, 32

    def kernel(qn, qr, c, kr, wk, wv, *, form="absorb", **o):
        dt = np.asarray(qn).dtype
        q, k, v = absorb(qn, qr, c, kr, wk)
        T, S = q.shape[-2], k.shape[-2]
        scale, off, kvl = options(o, qn.shape[-1] + qr.shape[-1], T, S)
        one = max(1, cdiv(cdiv(S, NS), BN)) * BN
        two = max(1, cdiv(S, NS)) if wrong else one
        po, pl = np.zeros((NS,) + q.shape[:-1] + v.shape[-1:], F32), np.zeros((NS,) + q.shape[:-1], F32)
        for i in range(NS):
            if i * one < S:
                po[i], pl[i] = close(*span(q, k, v, np.arange(T), i * one, min((i + 1) * one, S), BN, o, scale, off, kvl, dt))
        parts = [(po[i], pl[i]) for i in range(NS) if i * two < S]
        out, lse = join(parts)
        return (out @ sw(f32(wv))).astype(dt), lse
    return kernel, latents(r, dt, 16, 1, 300, 24, 16, 64, 24, batch=(2,)), {"scale": 0.05}


@fault("rope_column", "Latent and rope keys lie in one cache row of 72 + 16 columns; the rope part is read from column 64 (72 rounded down to a multiple of 64) instead of 72: its first 8 columns are latent columns 64..71 and the last 8 are rope columns 0..7. Scores of every key in every row and head are wrong.", "latent", "float32", False)
def _(wrong, r, dt):
    BN = 16

    def kernel(qn, qr, c, kr, wk, wv, *, form="absorb", **o):
        dt = np.asarray(qn).dtype
        q, k, v = absorb(qn, qr, c, kr, wk)
        T, S, C, R = q.shape[-2], k.shape[-2], v.shape[-1], qr.shape[-1]
        scale, off, kvl = options(o, qn.shape[-1] + R, T, S)
        col = C // 64 * 64 if wrong and C > 64 else C
        k = np.concatenate([k[..., :C], k[..., col:col + R]], -1)
        out, lse = close(*span(q, k, v, np.arange(T), 0, S, BN, o, scale, off, kvl, dt))
        return (out @ sw(f32(wv))).astype(dt), lse
    return kernel, latents(r, dt, 6, 20, 100, 24, 16, 72, 24), {"causal": True}


@fault("rope_expand_grid", "Prefill MLA kernel that expands keys per head: the helper that copies k_rope behind each head's key is launched for H // 4 blocks of four heads; with 10 heads, heads 8 and 9 keep zeros there and lose the rope part of their scores. Heads 0..7 are right.", "latent", "float32", True)
def _(wrong, r, dt):
    BM, BN = 64, 64

    def kernel(qn, qr, c, kr, wk, wv, *, form="absorb", **o):
        dt = np.asarray(qn).dtype
        H, T, N = qn.shape[-3:]
        S, R = kr.shape[-2:]
        scale, off, kvl = options(o, N + R, T, S)
        lat = f32(c)[..., None, :, :]
        kn, v = lat @ sw(f32(wk)), lat @ sw(f32(wv))
        k = np.zeros(kn.shape[:-1] + (N + R,), F32)
        k[..., :N] = kn
        k[..., :H // 4 * 4 if wrong and H >= 4 else H, :, N:] = f32(kr)[..., None, :, :]
        q = np.concatenate([f32(qn), f32(qr)], -1)
        out, lse = np.zeros(q.shape[:-1] + v.shape[-1:], F32), np.zeros(q.shape[:-1], F32)
        for r0 in range(0, T, BM):
            rows = np.arange(r0, min(r0 + BM, T))
            out[..., rows, :], lse[..., rows] = close(*span(q[..., rows, :], k, v, rows, 0, S, BN, o, scale, off, kvl, dt))
        return out.astype(dt), lse
    return kernel, latents(r, dt, 10, 70, 90, 24, 16, 48, 24), {"causal": True}


# ------------------------------------------------------------------ verification
def main(verbose=False):
    import time
    from collections import Counter
    from refattn.oracle import check
    names = {"packed": "packed_attention", "paged": "paged_attention", "latent": "latent_attention"}
    good = 0
    for name, sentence, tags, build in FAULTS:
        res = []
        took = 0
        for wrong in (False, True):
            kernel, arrays, opts = build(wrong)
            copies = [np.array(a) for a in arrays]
            kernel(*arrays, **opts)
            best = 1e9
            for _ in range(5):
                t = time.perf_counter()
                got = kernel(*arrays, **opts)
                best = min(best, time.perf_counter() - t)
            took = max(took, best)
            assert all(np.array_equal(f32(a), f32(b), equal_nan=True) for a, b in zip(arrays, copies))
            out, lse = got if tags["lse"] else (got, None)
            assert out.dtype == DT[tags["dtype"]], (name, out.dtype)
            extra = dict(opts)
            if tags["form"] in names:
                extra["function"] = names[tags["form"]]
            if lse is not None:
                extra["lse"] = lse
            res.append(check(out, *arrays, **extra).passed)
        ok = res == [True, False]
        good += ok
        if verbose or not ok:
            print("ok  " if ok else "FAIL", name, res, f"{took * 1e3:.1f} ms")
    print(f"{good} of {len(FAULTS)} pass", Counter(t["form"] for _, _, t, _ in FAULTS), Counter(t["dtype"] for _, _, t, _ in FAULTS), "lse", sum(t["lse"] for _, _, t, _ in FAULTS))


if __name__ == "__main__":
    import sys
    main("-v" in sys.argv)
