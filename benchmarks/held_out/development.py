"""Wrong attention kernels: FAULTS = [(name, sentence, tags, build)]."""
import math
import numpy as np
import ml_dtypes

F32 = np.float32
NI = F32(-np.inf)
DT = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
LOG2E = F32(1.4426950408889634)
FAULTS = []
np.seterr(all="ignore")


def fault(name, sentence, form="dense", dtype="float32", lse=False):
    def deco(build):
        FAULTS.append((name, sentence, {"form": form, "dtype": dtype, "lse": lse}, build))
        return build
    return deco


# ---------------------------------------------------------------- pieces
def up(x):
    return np.asarray(x).astype(F32)


def rnd(x, dt):
    return x if dt == np.float32 else x.astype(dt).astype(F32)


def data(seed, *shapes, dtype="float32", amp=None):
    r = np.random.default_rng(seed)
    amp = amp or [1.0] * len(shapes)
    return tuple((r.standard_normal(s) * a).astype(DT[dtype]) for s, a in zip(shapes, amp))


def pv(p, v, vis):
    bad = ~np.isfinite(v)
    if not bad.any():
        return p @ v
    o = p @ np.where(bad, F32(0), v)
    w = np.broadcast_to(vis, p.shape).astype(F32)
    n = (w @ np.isnan(v).astype(F32)) > 0
    a = (w @ (v == np.inf).astype(F32)) > 0
    b = (w @ (v == -np.inf).astype(F32)) > 0
    o = np.where(a, F32(np.inf), np.where(b, NI, o))
    return np.where(n | (a & b), F32(np.nan), o)


def visible(i, j, causal=False, window=None, chunk=None):
    """i: key positions of rows, j: key indices -> (rows, keys)"""
    i = np.asarray(i)[..., :, None]
    j = np.asarray(j)
    ok = (j - i) == (j - i)
    if causal:
        ok = ok & (j <= i)
    if window is not None:
        l, r = window
        if l is not None:
            ok = ok & (j - i >= -l)
        if r is not None:
            ok = ok & (j - i <= r)
    if chunk is not None:
        ok = ok & (j // chunk == i // chunk) & (i >= 0)
    return ok


def start(shape, E):
    return [np.full(shape, NI, F32), np.zeros(shape, F32), np.zeros(shape + (E,), F32)]


def step(st, s, v, vis, dt):
    m, l, o = st
    s = np.where(vis, s, NI)
    mn = np.maximum(m, s.max(-1))
    ms = np.where(np.isneginf(mn), F32(0), mn)
    a = np.exp(m - ms)
    p = np.exp(s - ms[..., None])
    st[0], st[1] = mn, l * a + p.sum(-1)
    st[2] = o * a[..., None] + pv(rnd(p, dt), v, vis)


def addsink(st, sink):
    m, l, o = st
    mn = np.maximum(m, sink)
    a = np.exp(m - mn)
    a = np.where(np.isneginf(m), F32(0), a)
    return [mn, l * a + np.exp(sink - mn), o * a[..., None]]


def fin(st, dt, lse=True):
    m, l, o = st
    d = np.where(l == 0, F32(1), l)[..., None]
    out = (o / d).astype(dt)
    if not lse:
        return out
    return out, np.where(l == 0, NI, m + np.log(np.where(l == 0, F32(1), l))).astype(F32)


def kvh(x, H):
    G = H // x.shape[-3]
    return x if G == 1 else np.repeat(x, G, axis=-3)


def sc(scale, D):
    return F32(1 / math.sqrt(D) if scale is None else scale)


def tr(x):
    return np.swapaxes(x, -1, -2)


def tiles(n, b):
    return [(a, min(a + b, n)) for a in range(0, n, b)]


# ================================================================ dense, tiled
@fault("lazy_rescale_vote", "The tiled kernel postpones rescaling until the running max of a row grows by more than 1.5; row groups of 16 vote. "
       "The accumulator is rescaled only when ALL rows of the 16-row group vote for it (should be ANY), while max and denominator move on whenever any votes: rows of mixed groups keep an accumulator "
       "in an old unit, so earlier key tiles (32 keys) are overweighted; lse stays right.", lse=True)
def _(wrong=True):
    def kernel(q, k, v, *, causal=False, scale=None, q_offset=None):
        dt = q.dtype
        H, T, D = q.shape[-3:]
        S, E = v.shape[-2:]
        off = S - T if q_offset is None else q_offset
        qf, kf, vf = up(q), kvh(up(k), H), kvh(up(v), H)
        O = np.zeros(q.shape[:-1] + (E,), F32)
        L = np.zeros(q.shape[:-1], F32)
        for a, b in tiles(T, 16):
            m, l, o = start(q.shape[:-2] + (b - a,), E)
            for c, d in tiles(S, 32):
                vis = visible(np.arange(a, b) + off, np.arange(c, d), causal)
                s = np.where(vis, (qf[..., a:b, :] @ tr(kf[..., c:d, :])) * sc(scale, D), NI)
                mn = np.maximum(m, s.max(-1))
                need = ~(mn - m <= 1.5) & ~np.isneginf(mn)
                anyv = need.any(-1, keepdims=True)
                allv = need.all(-1, keepdims=True)
                new = np.where(anyv, mn, m)
                ms = np.where(np.isneginf(new), F32(0), new)
                al = np.exp(m - ms)
                p = np.exp(s - ms[..., None])
                first = np.isneginf(m)
                l = l * al + p.sum(-1)
                r = np.where(allv | first, al, F32(1)) if wrong else al
                o = o * r[..., None] + pv(rnd(p, dt), vf[..., c:d, :], vis)
                m = new
            out, le = fin([m, l, o], np.dtype(F32))
            O[..., a:b, :], L[..., a:b] = out, le
        return O.astype(dt), L
    return kernel, data(1, (6, 77, 48), (2, 150, 48), (2, 150, 48), amp=[1.6, 1.3, 1]), dict(causal=True)


@fault("soft_exp2_trunc", "A quarter of the exponentials (keys j with j % 4 == 3) is taken by a software exp2 (polynomial on the fraction, exponent added) to relieve the special-function unit. The integer part is cut towards zero "
       "instead of down, so the fraction lies in (-1, 0] where the polynomial, fitted on [0, 1), is off by up to some ten percent: those keys get wrong weights in every row.", dtype="bfloat16")
def _(wrong=True):
    def ex2(x):
        x = np.maximum(x, F32(-126))
        n = np.trunc(x) if wrong else np.floor(x)
        f = x - n
        p = F32(1) + f * (F32(0.695146143436431884765625) + f * (F32(0.227564394474029541015625) + f * F32(0.077119089663028717041015625)))
        return np.ldexp(p, n.astype(np.int32)).astype(F32)

    def kernel(q, k, v, *, scale=None):
        dt = q.dtype
        H, T, D = q.shape[-3:]
        S, E = v.shape[-2:]
        qf, kf, vf = up(q), kvh(up(k), H), kvh(up(v), H)
        m, l, o = start(q.shape[:-1], E)
        for c, d in tiles(S, 64):
            s = (qf @ tr(kf[..., c:d, :])) * (sc(scale, D) * LOG2E)
            mn = np.maximum(m, s.max(-1))
            x = s - mn[..., None]
            p = np.exp2(x)
            sel = np.arange(c, d) % 4 == 3
            y = x[..., sel]
            p[..., sel] = np.where(np.isfinite(y), ex2(np.where(np.isfinite(y), y, F32(0))), np.exp2(y))
            a = np.exp2(m - mn)
            l = l * a + p.sum(-1)
            o = o * a[..., None] + rnd(p, dt) @ vf[..., c:d, :]
            m = mn
        return (o / l[..., None]).astype(dt)
    return kernel, data(2, (2, 4, 50, 40), (2, 4, 130, 40), (2, 4, 130, 40), dtype="bfloat16", amp=[1.5, 1.2, 1]), {}


@fault("peeled_mask_steps", "Causal masking is applied only in the last ceil(48/32) = 2 key tiles of each 48-row tile (the peeled loop). When the offset is not a multiple of the key tile the diagonal spans 3 key tiles: "
       "in the first of them the early rows of each row tile see keys beyond the diagonal.", dtype="bfloat16")
def _(wrong=True):
    def kernel(q, k, v, *, causal=True, scale=None, q_offset=None):
        dt = q.dtype
        H, T, D = q.shape[-3:]
        S, E = v.shape[-2:]
        off = S - T if q_offset is None else q_offset
        qf, kf, vf = up(q), kvh(up(k), H), kvh(up(v), H)
        O = np.zeros(q.shape[:-1] + (E,), dt)
        for a, b in tiles(T, 48):
            st = start(q.shape[:-2] + (b - a,), E)
            end = min(S, max(0, off + b)) if causal else S
            ts = tiles(end, 32)
            steps = -(-48 // 32) + (0 if wrong else 1)
            for n, (c, d) in enumerate(ts):
                peeled = n >= len(ts) - steps
                vis = visible(np.arange(a, b) + off, np.arange(c, d), causal and peeled)
                step(st, (qf[..., a:b, :] @ tr(kf[..., c:d, :])) * sc(scale, D), vf[..., c:d, :], vis, dt)
            O[..., a:b, :] = fin(st, dt, False)
        return O
    return kernel, data(3, (5, 130, 64), (1, 171, 64), (1, 171, 64), dtype="bfloat16"), dict(causal=True)


@fault("warpgroup_alibi_row", "A 64-row tile is shared by two warpgroups of 32 rows; the second one (rows 32..63 of each tile) takes its ALiBi row number from its own row counter, 32 too low. Under causal masking the shift of slope*32 "
       "cancels in the softmax for keys left of the shifted row, so mostly lse and the nearest 32 keys go wrong in those rows.", lse=True, dtype="float16")
def _(wrong=True):
    def kernel(q, k, v, *, causal=False, scale=None, alibi_slopes=None, q_offset=None):
        dt = q.dtype
        H, T, D = q.shape[-3:]
        S, E = v.shape[-2:]
        off = S - T if q_offset is None else q_offset
        qf, kf, vf = up(q), kvh(up(k), H), kvh(up(v), H)
        O = np.zeros(q.shape[:-1] + (E,), dt)
        L = np.zeros(q.shape[:-1], F32)
        sl = None if alibi_slopes is None else up(alibi_slopes)[..., None, None]
        for a, b in tiles(T, 32):
            base = (a // 64) * 64 if wrong else a
            st = start(q.shape[:-2] + (b - a,), E)
            for c, d in tiles(S, 80):
                i = np.arange(a, b) + off
                s = (qf[..., a:b, :] @ tr(kf[..., c:d, :])) * sc(scale, D)
                if sl is not None:
                    s = s - sl * np.abs((base + off + np.arange(b - a))[:, None] - np.arange(c, d)).astype(F32)
                step(st, s, vf[..., c:d, :], visible(i, np.arange(c, d), causal), dt)
            O[..., a:b, :], L[..., a:b] = fin(st, dt)
        return O, L
    H = 6
    return kernel, data(4, (H, 100, 32), (3, 140, 32), (3, 140, 32), dtype="float16"), dict(causal=True, alibi_slopes=np.float32(2.0) ** -(np.arange(H, dtype=np.float32) + 1))


@fault("packgqa_shift", "Rows of a head group are folded into one tile (folded row f = row*G + g); the query position is recovered as f >> ceil(log2(G)) instead of f // G. For G = 3 the position is f >> 2, so all rows but the first see "
       "a causal boundary that lags behind (row 40 stands at position 30).", lse=True, dtype="bfloat16")
def _(wrong=True):
    def kernel(q, k, v, *, causal=False, scale=None, q_offset=None):
        dt = q.dtype
        H, T, D = q.shape[-3:]
        K, S, E = v.shape[-3:]
        G = H // K
        off = S - T if q_offset is None else q_offset
        lead = q.shape[:-3]
        x = up(q).reshape(lead + (K, G, T, D)).swapaxes(-3, -2).reshape(lead + (K, T * G, D))
        f = np.arange(T * G)
        pos = off + ((f >> max(0, (G - 1).bit_length())) if wrong else f // G)
        st = start(lead + (K, T * G), E)
        kf, vf = up(k), up(v)
        for c, d in tiles(S, 48):
            step(st, (x @ tr(kf[..., c:d, :])) * sc(scale, D), vf[..., c:d, :], visible(pos, np.arange(c, d), causal), dt)
        o, l = fin(st, dt)
        o = o.reshape(lead + (K, T, G, E)).swapaxes(-3, -2).reshape(lead + (H, T, E))
        return o, l.reshape(lead + (K, T, G)).swapaxes(-2, -1).reshape(lead + (H, T))
    return kernel, data(5, (9, 60, 64), (3, 95, 64), (3, 95, 64), dtype="bfloat16"), dict(causal=True)


@fault("dim_tail_runs_on", "Head dim 40 is read in vectors of 16, three of them (48 columns) with neither query nor key masked at the tail: columns 40..47 are the first 8 elements of the next row of query and key, so "
       "each score gets q[i+1,:8].k[j+1,:8] on top (the last row of the whole array reads zeros).")
def _(wrong=True):
    def tail(x, P):
        D = x.shape[-1]
        flat = np.concatenate([x.reshape(-1), np.zeros(P, F32)])
        n = flat.size
        idx = (np.arange(x.size // D) * D)[:, None] + np.arange(P)
        return flat[np.minimum(idx, n - 1)].reshape(x.shape[:-1] + (P,))

    def kernel(q, k, v, *, scale=None, causal=False, q_offset=None):
        dt = q.dtype
        H, T, D = q.shape[-3:]
        S, E = v.shape[-2:]
        off = S - T if q_offset is None else q_offset
        qf, kf, vf = up(q), up(k), kvh(up(v), H)
        P = -(-D // 16) * 16
        if wrong and P > D:
            qf, kf = tail(qf, P), tail(kf, P)
        kf = kvh(kf, H)
        st = start(q.shape[:-1], E)
        for c, d in tiles(S, 40):
            step(st, (qf @ tr(kf[..., c:d, :])) * sc(scale, D), vf[..., c:d, :], visible(np.arange(T) + off, np.arange(c, d), causal), dt)
        return fin(st, dt, False)
    return kernel, data(6, (2, 4, 33, 40), (2, 2, 90, 40), (2, 2, 90, 40)), dict(causal=True)


@fault("softcap_fast_path", "The key loop has a fast body for key tiles (32 keys) that need no mask and a slow one at the diagonal; softcap was added to the slow body only. Keys of interior tiles get uncapped scores, "
       "those of the diagonal tiles (and rows whose keys all lie there) are right.", lse=True)
def _(wrong=True):
    def kernel(q, k, v, *, causal=False, scale=None, softcap=None, q_offset=None):
        dt = q.dtype
        H, T, D = q.shape[-3:]
        S, E = v.shape[-2:]
        off = S - T if q_offset is None else q_offset
        qf, kf, vf = up(q), kvh(up(k), H), kvh(up(v), H)
        O = np.zeros(q.shape[:-1] + (E,), dt)
        L = np.zeros(q.shape[:-1], F32)
        for a, b in tiles(T, 32):
            st = start(q.shape[:-2] + (b - a,), E)
            for c, d in tiles(S, 32):
                if causal and c > off + b - 1:
                    break
                vis = visible(np.arange(a, b) + off, np.arange(c, d), causal)
                s = (qf[..., a:b, :] @ tr(kf[..., c:d, :])) * sc(scale, D)
                if softcap is not None and not (wrong and vis.all()):
                    s = np.tanh(s / F32(softcap)) * F32(softcap)
                step(st, s, vf[..., c:d, :], vis, dt)
            O[..., a:b, :], L[..., a:b] = fin(st, dt)
        return O, L
    return kernel, data(7, (8, 90, 32), (2, 110, 32), (2, 110, 32), amp=[2, 1.5, 1]), dict(causal=True, softcap=2.5)


@fault("bitmask_phase", "The boolean mask is packed into bits, contiguous over rows (bit i*S+j). The reader takes byte (i*S+j)>>3 but bit j&7 instead of (i*S+j)&7: with S = 99 all rows but each eighth (i % 8 == 0) read the mask of other keys "
       "within the byte.")
def _(wrong=True):
    def kernel(q, k, v, *, mask=None, scale=None):
        dt = q.dtype
        H, T, D = q.shape[-3:]
        S, E = v.shape[-2:]
        qf, kf, vf = up(q), kvh(up(k), H), kvh(up(v), H)
        vis = np.ones((T, S), bool)
        if mask is not None:
            mk = np.broadcast_to(mask, mask.shape[:-2] + (T, S))
            bits = np.packbits(np.ascontiguousarray(mk).reshape(mk.shape[:-2] + (T * S,)), axis=-1, bitorder="little")
            g = np.arange(T)[:, None] * S + np.arange(S)
            bit = (np.arange(S) & 7) + 0 * g if wrong else g & 7
            vis = ((bits[..., g >> 3] >> bit.astype(np.uint8)) & 1).astype(bool)
        st = start(q.shape[:-1], E)
        for c, d in tiles(S, 64):
            step(st, (qf @ tr(kf[..., c:d, :])) * sc(scale, D), vf[..., c:d, :], vis[..., c:d], dt)
        return fin(st, dt, False)
    m = np.random.default_rng(80).random((45, 99)) < 0.6
    return kernel, data(8, (4, 45, 32), (4, 99, 32), (4, 99, 32)), dict(mask=m)


@fault("bias_aligned_down", "Rows of the additive bias are read with 4-wide vector loads whose address is rounded down to a multiple of 4 elements; with S = 101 row i of a head starts at (i*S) % 4 elements off, so in three of four rows key j gets the bias "
       "of key j-1, j-2 or j-3 (the first ones that of the row before).", dtype="bfloat16", lse=True)
def _(wrong=True):
    def kernel(q, k, v, *, bias=None, scale=None):
        dt = q.dtype
        H, T, D = q.shape[-3:]
        S, E = v.shape[-2:]
        qf, kf, vf = up(q), kvh(up(k), H), kvh(up(v), H)
        s = (qf @ tr(kf)) * sc(scale, D)
        if bias is not None:
            bf = up(bias)
            if wrong:
                bf = np.broadcast_to(bf, bf.shape[:-2] + (T, S))
                flat = np.ascontiguousarray(bf).reshape(-1)
                st0 = (np.arange(flat.size // S) * S) // 4 * 4
                bf = flat[st0[:, None] + np.arange(S)].reshape(bf.shape)
            s = s + bf
        vis = ~np.isneginf(s)
        st = start(q.shape[:-1], E)
        for c, d in tiles(S, 64):
            step(st, s[..., c:d], vf[..., c:d, :], vis[..., c:d], dt)
        return fin(st, dt)
    q, k, v = data(9, (2, 3, 37, 48), (2, 3, 101, 48), (2, 3, 101, 48), dtype="bfloat16")
    return kernel, (q, k, v), dict(bias=np.random.default_rng(90).standard_normal((1, 3, 37, 101)).astype(F32) * F32(1.5))


@fault("sink_log2", "The online softmax works in base 2; scores are multiplied by log2(e) but the sink logit is folded in as it is, exp2(sink - m): the sink counts as sink*ln 2, in every row; heads whose sink is near 0 hardly change.", lse=True, dtype="float16")
def _(wrong=True):
    def kernel(q, k, v, *, causal=False, sinks=None, scale=None, q_offset=None):
        dt = q.dtype
        H, T, D = q.shape[-3:]
        S, E = v.shape[-2:]
        off = S - T if q_offset is None else q_offset
        qf, kf, vf = up(q), kvh(up(k), H), kvh(up(v), H)
        st = start(q.shape[:-1], E)
        for c, d in tiles(S, 128):
            step(st, (qf @ tr(kf[..., c:d, :])) * sc(scale, D), vf[..., c:d, :], visible(np.arange(T) + off, np.arange(c, d), causal), dt)
        if sinks is not None:
            x = up(sinks)[..., None]
            st = addsink(st, x * F32(math.log(2)) if wrong else x)
        return fin(st, dt)
    return kernel, data(10, (8, 29, 64), (4, 83, 64), (4, 83, 64), dtype="float16"), dict(causal=True, sinks=np.linspace(-1, 5, 8).astype(F32))


@fault("swizzle_base", "Key tiles of 20 rows lie in shared memory with 8-column chunks XOR-swizzled by row & 3; written by the row within the tile, read by the global key index. The loop starts at the window's first key, "
       "not on a tile boundary: for 18-row tiles whose key loop starts at a key with index % 4 != 0 every score uses the key's chunks in permuted order.", dtype="float32")
def _(wrong=True):
    def kernel(q, k, v, *, causal=False, window=None, scale=None, q_offset=None):
        dt = q.dtype
        H, T, D = q.shape[-3:]
        S, E = v.shape[-2:]
        off = S - T if q_offset is None else q_offset
        qf, kf, vf = up(q), kvh(up(k), H), kvh(up(v), H)
        O = np.zeros(q.shape[:-1] + (E,), dt)
        nch = max(1, D // 8)
        for a, b in tiles(T, 18):
            st = start(q.shape[:-2] + (b - a,), E)
            lo = 0 if window is None or window[0] is None else max(0, off + a - window[0])
            for c in range(lo, S, 20):
                d = min(S, c + 20)
                if causal and c > off + b - 1:
                    break
                kt = kf[..., c:d, :]
                if wrong and D % 32 == 0:
                    x = ((np.arange(d - c) & 3) ^ (np.arange(c, d) & 3))
                    col = ((np.arange(D) // 8)[None, :] ^ x[:, None]) * 8 + np.arange(D) % 8
                    kt = np.take_along_axis(kt, np.broadcast_to(col, kt.shape), -1)
                step(st, (qf[..., a:b, :] @ tr(kt)) * sc(scale, D), vf[..., c:d, :], visible(np.arange(a, b) + off, np.arange(c, d), causal, window), dt)
            O[..., a:b, :] = fin(st, dt, False)
        return O
    return kernel, data(11, (4, 95, 32), (2, 120, 32), (2, 120, 32)), dict(causal=True, window=(33, None))


@fault("chunk_start_last_row", "Chunked local attention, chunk 40: the key loop of a 32-row tile starts at the chunk of the tile's LAST row. Rows of the same tile that stand in the chunk before lose all their keys (or those before it) - output 0 and lse -inf.", lse=True)
def _(wrong=True):
    def kernel(q, k, v, *, causal=False, chunk=None, scale=None, q_offset=None):
        dt = q.dtype
        H, T, D = q.shape[-3:]
        S, E = v.shape[-2:]
        off = S - T if q_offset is None else q_offset
        qf, kf, vf = up(q), kvh(up(k), H), kvh(up(v), H)
        O = np.zeros(q.shape[:-1] + (E,), dt)
        L = np.zeros(q.shape[:-1], F32)
        for a, b in tiles(T, 32):
            st = start(q.shape[:-2] + (b - a,), E)
            lo = 0
            if chunk is not None:
                lo = max(0, ((b - 1 if wrong else a) + off) // chunk * chunk)
            for c in range(lo, S, 32):
                d = min(c + 32, S)
                step(st, (qf[..., a:b, :] @ tr(kf[..., c:d, :])) * sc(scale, D), vf[..., c:d, :], visible(np.arange(a, b) + off, np.arange(c, d), causal, None, chunk), dt)
            O[..., a:b, :], L[..., a:b] = fin(st, dt)
        return O, L
    return kernel, data(12, (6, 110, 24), (6, 110, 24), (6, 110, 24)), dict(causal=True, chunk=40)


@fault("fp16_saturating_scores", "The raw product q.k (before the scale) is handed on in float16, clipped to +-65504 - the small scale comes after. Only pairs whose raw product is larger than 65504 (about a third of them) get a score cut off at 65504*scale.", dtype="float16", lse=True)
def _(wrong=True):
    def kernel(q, k, v, *, scale=None):
        dt = q.dtype
        H, T, D = q.shape[-3:]
        S, E = v.shape[-2:]
        qf, kf, vf = up(q), kvh(up(k), H), kvh(up(v), H)
        st = start(q.shape[:-1], E)
        for c, d in tiles(S, 64):
            s = qf @ tr(kf[..., c:d, :])
            if wrong:
                s = np.clip(s, F32(-65504), F32(65504))
            step(st, s * sc(scale, D), vf[..., c:d, :], np.ones((T, d - c), bool), dt)
        return fin(st, dt)
    return kernel, data(13, (5, 21, 128), (5, 70, 128), (5, 70, 128), dtype="float16", amp=[80, 80, 1]), dict(scale=2.5e-5)


@fault("vcol_block_no_sink", "Value dim 96 is split over two thread blocks of 64 and 32 columns, each with its own softmax state; only block 0 adds the sink to its denominator (block 1 skips it with the lse code). Columns 64..95 are too large by "
       "1 + exp(sink)/sum; lse right.", lse=True)
def _(wrong=True):
    def kernel(q, k, v, *, sinks=None, scale=None, causal=False, q_offset=None):
        dt = q.dtype
        H, T, D = q.shape[-3:]
        S, E = v.shape[-2:]
        off = S - T if q_offset is None else q_offset
        qf, kf, vf = up(q), kvh(up(k), H), kvh(up(v), H)
        O = np.zeros(q.shape[:-1] + (E,), dt)
        L = None
        for n, (e, g) in enumerate(tiles(E, 64)):
            st = start(q.shape[:-1], g - e)
            for c, d in tiles(S, 50):
                step(st, (qf @ tr(kf[..., c:d, :])) * sc(scale, D), vf[..., c:d, e:g], visible(np.arange(T) + off, np.arange(c, d), causal), dt)
            if sinks is not None and (n == 0 or not wrong):
                st = addsink(st, up(sinks)[..., None])
            O[..., e:g], l = fin(st, dt)
            L = l if n == 0 else L
        return O, L
    return kernel, data(14, (2, 6, 17, 64), (2, 1, 75, 64), (2, 1, 75, 96)), dict(causal=True, sinks=np.linspace(0, 3, 6).astype(F32))


@fault("l2_swizzle_residual", "A persistent kernel walks (head, 32-row tile) pairs in an L2-friendly order, sections of 4 heads with the head innermost. The last section holds only 10 % 4 = 2 heads but is still decoded with 4 per tile: its tile index is halved, heads run past "
       "the end and are dropped: row tiles from the middle on of heads 8 and 9 are never written (zeros).", dtype="bfloat16")
def _(wrong=True):
    def kernel(q, k, v, *, causal=False, scale=None, q_offset=None):
        dt = q.dtype
        H, T, D = q.shape[-3:]
        S, E = v.shape[-2:]
        off = S - T if q_offset is None else q_offset
        qf, kf, vf = up(q), kvh(up(k), H), kvh(up(v), H)
        O = np.zeros(q.shape[:-1] + (E,), dt)
        nt = -(-T // 32)
        work = {}
        for w in range(H * nt):
            sec, r = divmod(w, 4 * nt)
            width = 4 if wrong else min(4, H - sec * 4)
            t, h = divmod(r, width)
            h += sec * 4
            if h < H and t < nt:
                work.setdefault(t, []).append(h)
        for t, hs in work.items():
            a, b = t * 32, min(T, t * 32 + 32)
            st = start(q.shape[:-3] + (len(hs), b - a), E)
            for c, d in tiles(S, 64):
                step(st, (qf[..., hs, a:b, :] @ tr(kf[..., hs, c:d, :])) * sc(scale, D), vf[..., hs, c:d, :], visible(np.arange(a, b) + off, np.arange(c, d), causal), dt)
            O[..., hs, a:b, :] = fin(st, dt, False)
        return O
    return kernel, data(15, (10, 120, 32), (5, 120, 32), (5, 120, 32), dtype="bfloat16"), dict(causal=True)


@fault("head_block_kv", "A decode block handles 4 query heads and fetches the one KV head of its first query head for all of them. With 5 query heads per KV head blocks straddle groups: heads 5,6,7 use KV head 0 instead of 1, and heads 10, 11 KV head 1 instead of 2.", lse=True, dtype="bfloat16")
def _(wrong=True):
    def kernel(q, k, v, *, scale=None, causal=False, q_offset=None):
        dt = q.dtype
        H, T, D = q.shape[-3:]
        K, S, E = v.shape[-3:]
        off = S - T if q_offset is None else q_offset
        h = np.arange(H)
        kh = (h // 4 * 4 if wrong else h) // (H // K)
        qf, kf, vf = up(q), up(k)[..., kh, :, :], up(v)[..., kh, :, :]
        st = start(q.shape[:-1], E)
        for c, d in tiles(S, 96):
            step(st, (qf @ tr(kf[..., c:d, :])) * sc(scale, D), vf[..., c:d, :], visible(np.arange(T) + off, np.arange(c, d), causal), dt)
        return fin(st, dt)
    return kernel, data(16, (2, 15, 2, 64), (2, 3, 111, 64), (2, 3, 111, 64), dtype="bfloat16"), dict(causal=True)


@fault("zigzag_positions", "Context-parallel kernel on 4 ranks: keys are cut in 8 chunks, rank r holds chunks r and 7-r (zigzag). The positions of the second chunk are computed as chunk r+4 (plain striping), so causal masking of keys in the second half of the sequence "
       "uses the position of the mirrored chunk: chunks 4..7 are masked in reverse order.", lse=True)
def _(wrong=True):
    def kernel(q, k, v, *, causal=False, scale=None, q_offset=None):
        dt = q.dtype
        H, T, D = q.shape[-3:]
        S, E = v.shape[-2:]
        off = S - T if q_offset is None else q_offset
        qf, kf, vf = up(q), kvh(up(k), H), kvh(up(v), H)
        n = -(-S // 8)
        parts = []
        for r in range(4):
            st = start(q.shape[:-1], E)
            for ch, pc in ((r, r), (7 - r, r + 4 if wrong else 7 - r)):
                c, d = min(S, ch * n), min(S, ch * n + n)
                if d > c:
                    step(st, (qf @ tr(kf[..., c:d, :])) * sc(scale, D), vf[..., c:d, :], visible(np.arange(T) + off, np.arange(d - c) + pc * n, causal), dt)
            parts.append(st)
        m = np.maximum.reduce([p[0] for p in parts])
        ms = np.where(np.isneginf(m), F32(0), m)
        l = sum(p[1] * np.exp(p[0] - ms) for p in parts)
        o = sum(p[2] * np.exp(p[0] - ms)[..., None] for p in parts)
        return fin([m, l, o], dt)
    return kernel, data(17, (4, 93, 32), (4, 93, 32), (4, 93, 32)), dict(causal=True)


@fault("finite_mask_value", "Eager kernel hides keys by replacing the score with -10000 rather than -inf. Rows without any visible key (the first 15 rows of 45 at 30 keys) get the plain mean of all values instead of zeros and lse of about -9997 instead of -inf.", lse=True, dtype="float16")
def _(wrong=True):
    def kernel(q, k, v, *, causal=False, scale=None, q_offset=None, mask=None):
        dt = q.dtype
        H, T, D = q.shape[-3:]
        S, E = v.shape[-2:]
        off = S - T if q_offset is None else q_offset
        qf, kf, vf = up(q), kvh(up(k), H), kvh(up(v), H)
        vis = visible(np.arange(T) + off, np.arange(S), causal)
        if mask is not None:
            vis = vis & mask
        s = (qf @ tr(kf)) * sc(scale, D)
        if wrong:
            s = np.where(vis, s, F32(-10000))
            vis = np.ones((T, S), bool)
        st = start(q.shape[:-1], E)
        step(st, s, vf, vis, dt)
        return fin(st, dt)
    return kernel, data(18, (2, 4, 45, 64), (2, 2, 30, 64), (2, 2, 30, 64), dtype="float16"), dict(causal=True)


# ================================================================ split-KV (flash-decoding)
def combine(parts):
    """parts: list of (out f32, lse f32) -> (out, lse)"""
    L = np.stack([p[1] for p in parts])
    O = np.stack([p[0] for p in parts])
    m = L.max(0)
    ms = np.where(np.isneginf(m), F32(0), m)
    w = np.exp(L - ms)
    t = w.sum(0)
    ok = t != 0
    ts = np.where(ok, t, F32(1))
    out = ((w / ts)[..., None] * np.where((w != 0)[..., None], O, F32(0))).sum(0)
    return out, np.where(ok, ms + np.log(ts), NI)


@fault("empty_split_lse_zero", "Flash-decoding with splits of 48 keys and a left window of 60: splits wholly left of the window do no work, leaving their partial output 0 and their partial lse 0 (never written, zero-filled) instead of -inf. "
       "Each such split adds weight exp(0) to the reduction: outputs shrink and lse grows, in rows with at least one wholly hidden split.", lse=True)
def _(wrong=True):
    def kernel(q, k, v, *, causal=False, window=None, scale=None, q_offset=None):
        dt = q.dtype
        H, T, D = q.shape[-3:]
        S, E = v.shape[-2:]
        off = S - T if q_offset is None else q_offset
        qf, kf, vf = up(q), kvh(up(k), H), kvh(up(v), H)
        parts = []
        for c, d in tiles(S, 48):
            vis = visible(np.arange(T) + off, np.arange(c, d), causal, window)
            st = start(q.shape[:-1], E)
            step(st, (qf @ tr(kf[..., c:d, :])) * sc(scale, D), vf[..., c:d, :], vis, dt)
            o, l = fin(st, np.dtype(F32))
            if wrong and not vis.any():
                l = np.zeros_like(l)
            parts.append((o, l))
        o, l = combine(parts)
        return o.astype(dt), l.astype(F32)
    return kernel, data(19, (8, 3, 64), (2, 333, 64), (2, 333, 64)), dict(causal=True, window=(60, None))


@fault("shuffle_clone_lanes", "The reduction over 5 key splits sums the split weights with a warp shuffle over 8 lanes; lanes past the last split do not hold 0 but a clone of split 4 (index clamped), so split 4 counts four times in the denominator but once in the numerator: "
       "every output is too small by the same factor in a row, lse too large.", lse=True)
def _(wrong=True):
    def kernel(q, k, v, *, scale=None, causal=False, q_offset=None):
        dt = q.dtype
        H, T, D = q.shape[-3:]
        S, E = v.shape[-2:]
        off = S - T if q_offset is None else q_offset
        qf, kf, vf = up(q), kvh(up(k), H), kvh(up(v), H)
        n = -(-S // 5)
        os_, ls = [], []
        for c in range(0, S, n):
            d = min(S, c + n)
            st = start(q.shape[:-1], E)
            for e, g in tiles(d - c, 32):
                step(st, (qf @ tr(kf[..., c + e:c + g, :])) * sc(scale, D), vf[..., c + e:c + g, :], visible(np.arange(T) + off, np.arange(c + e, c + g), causal), dt)
            o, l = fin(st, np.dtype(F32))
            os_.append(o)
            ls.append(l)
        L = np.stack(ls)
        m = L.max(0)
        ms = np.where(np.isneginf(m), F32(0), m)
        w = np.exp(L - ms)
        lanes = 1 << (len(ls) - 1).bit_length()
        lane = [w[min(i, len(ls) - 1)] if (i < len(ls) or wrong) else np.zeros_like(w[0]) for i in range(lanes)]
        t = sum(lane)
        ts = np.where(t != 0, t, F32(1))
        out = sum(w[i][..., None] * np.where((w[i] != 0)[..., None], os_[i], F32(0)) for i in range(len(ls))) / ts[..., None]
        return out.astype(dt), np.where(t != 0, ms + np.log(ts), NI).astype(F32)
    return kernel, data(20, (2, 6, 2, 80), (2, 2, 203, 80), (2, 2, 203, 80)), dict(causal=True)


@fault("partial_stride", "Split partial outputs are written to a workspace with rows padded to 8 per head (stride 8), the reduction reads them with stride T = 5 while the partial lse is read rightly: only head 0 is right, rows of the other heads combine the partial outputs of "
       "other rows and heads (or unwritten zero rows) - head h row r reads workspace row 5h+r.")
def _(wrong=True):
    def kernel(q, k, v, *, scale=None, causal=False, q_offset=None):
        dt = q.dtype
        H, T, D = q.shape[-3:]
        S, E = v.shape[-2:]
        off = S - T if q_offset is None else q_offset
        qf, kf, vf = up(q), kvh(up(k), H), kvh(up(v), H)
        Tp = -(-T // 8) * 8
        parts = []
        for c, d in tiles(S, 72):
            st = start(q.shape[:-1], E)
            step(st, (qf @ tr(kf[..., c:d, :])) * sc(scale, D), vf[..., c:d, :], visible(np.arange(T) + off, np.arange(c, d), causal), dt)
            o, l = fin(st, np.dtype(F32))
            ws = np.zeros(q.shape[:-2] + (Tp, E), F32)
            ws[..., :T, :] = o
            flat = ws.reshape(q.shape[:-3] + (H * Tp, E))
            idx = np.arange(H)[:, None] * (T if wrong else Tp) + np.arange(T)
            parts.append((flat[..., idx, :], l))
        o, l = combine(parts)
        return o.astype(dt)
    return kernel, data(21, (7, 5, 48), (7, 190, 48), (7, 190, 48)), dict(causal=True)


@fault("bf16_denominator", "The denominator of the softmax is a bfloat16 accumulator to which one weight after the other is added per row: as it grows (8 bits of mantissa) small weights no longer change it, so from a few dozen visible keys on it falls short and outputs are too large; rows with few "
       "keys are nearly right.", dtype="bfloat16")
def _(wrong=True):
    def kernel(q, k, v, *, scale=None, causal=False, q_offset=None):
        dt = q.dtype
        H, T, D = q.shape[-3:]
        S, E = v.shape[-2:]
        off = S - T if q_offset is None else q_offset
        qf, kf, vf = up(q), kvh(up(k), H), kvh(up(v), H)
        vis = visible(np.arange(T) + off, np.arange(S), causal)
        s = np.where(vis, (qf @ tr(kf)) * sc(scale, D), NI)
        m = s.max(-1, keepdims=True)
        p = np.exp(s - np.where(np.isneginf(m), F32(0), m))
        if wrong:
            l = np.zeros(q.shape[:-1], dt)
            for j in range(S):
                l = (l.astype(F32) + p[..., j]).astype(dt)
            l = l.astype(F32)
        else:
            l = p.sum(-1)
        o = pv(rnd(p, dt), vf, vis)
        return (o / np.where(l == 0, F32(1), l)[..., None]).astype(dt)
    return kernel, data(22, (4, 11, 64), (4, 390, 64), (4, 390, 64), dtype="bfloat16", amp=[.7, .7, 1]), dict(causal=True)


# ================================================================ paged
def paged_data(seed, B, H, K, T, D, ps, lens, extra=3, dtype="float32", P=None):
    r = np.random.default_rng(seed)
    lens = np.asarray(lens, np.int32)
    n = -(-lens // ps)
    mp = int(n.max())
    P = P or int(n.sum()) + extra
    perm = r.permutation(P)
    bt = np.zeros((B, mp), np.int32)
    at = 0
    for b in range(B):
        bt[b, :n[b]] = perm[at:at + n[b]]
        at += n[b]
    q, k, v = data(seed + 500, (B, H, T, D), (P, K, ps, D), (P, K, ps, D), dtype=dtype)
    return (q, k, v), dict(block_table=bt, kv_lengths=lens)


def paged_walk(q, kp, vp, bt, lens, fetch, causal, scale, bn):
    """fetch(which array f32, b, token positions) -> (K, n, D)"""
    dt = q.dtype
    B, H, T, D = q.shape
    E = vp.shape[-1]
    O = np.zeros((B, H, T, E), dt)
    L = np.full((B, H, T), NI, F32)
    for b in range(B):
        S = int(lens[b])
        st = start((H, T), E)
        qf = up(q[b])
        for c, d in tiles(S, bn):
            j = np.arange(c, d)
            kt, vt = kvh(fetch(kp, b, j), H), kvh(fetch(vp, b, j), H)
            step(st, (qf @ tr(kt)) * sc(scale, D), vt, visible(np.arange(T) + S - T, j, causal), dt)
        O[b], L[b] = fin(st, dt)
    return O, L


def page_rows(pages, ids, slot):
    return np.moveaxis(up(pages[ids, :, slot]), 0, 1)


@fault("table_warp_reload", "A warp loads 32 block-table entries into its lanes and reads them by shuffle; it never reloads after entry 31, so page p of a sequence is taken from table entry p % 32. With pages of 8 keys every key from 256 on comes from the first pages again; sequences of at most 256 keys are right.", form="paged", lse=True)
def _(wrong=True):
    def kernel(q, kp, vp, *, block_table, kv_lengths, causal=False, scale=None):
        ps = kp.shape[2]

        def fetch(pages, b, j):
            e = j // ps
            return page_rows(pages, block_table[b, e % 32 if wrong else e], j % ps)
        return paged_walk(q, kp, vp, block_table, kv_lengths, fetch, causal, scale, 64)
    a, o = paged_data(23, 3, 6, 2, 2, 32, 8, [341, 250, 270])
    return kernel, a, dict(o, causal=True)


@fault("address_16_bit", "The row address (page*K + head)*page_size + slot is formed in unsigned 16 bits. With 8 KV heads and pages of 100 keys, rows past 65535 (pages from 82 on, and the last heads of page 81) wrap to rows of the first pages; only sequences owning those physical pages are wrong.", form="paged", dtype="float16")
def _(wrong=True):
    def kernel(q, kp, vp, *, block_table, kv_lengths, causal=False, scale=None):
        P, K, ps, D = kp.shape
        flats = {id(kp): kp.reshape(-1, D), id(vp): vp.reshape(-1, vp.shape[-1])}

        def fetch(pages, b, j):
            f = flats[id(pages)]
            row = (block_table[b, j // ps].astype(np.int64) * K + np.arange(K)[:, None]) * ps + j % ps
            if wrong:
                row = row & 0xFFFF
            return up(f[row])
        return paged_walk(q, kp, vp, block_table, kv_lengths, fetch, causal, scale, 96)[0]
    (q, k, v), o = paged_data(24, 4, 8, 8, 1, 16, 100, [230, 120, 310, 75], P=88, dtype="float16")
    o["block_table"] = np.array([[85, 3, 40, 0], [17, 60, 0, 0], [5, 33, 86, 71], [9, 0, 0, 0]], np.int32)
    return kernel, (q, k, v), dict(o, causal=True)


@fault("tile_over_page_end", "Key tiles of 64 over pages of 48 keys: the page is looked up once per tile, by its first key, and the rest of the tile is read on linearly. Keys past the page's end come from the memory behind it, the rows of the next KV head (for the last head: of the next physical page); "
       "tiles that lie within a page are right: e.g. keys 48-63, 96-127 and 144-... read wrong rows.", form="paged", dtype="bfloat16", lse=True)
def _(wrong=True):
    def kernel(q, kp, vp, *, block_table, kv_lengths, causal=False, scale=None):
        P, K, ps, D = kp.shape
        flats = {id(kp): kp.reshape(-1, D), id(vp): vp.reshape(-1, vp.shape[-1])}

        def fetch(pages, b, j):
            f = flats[id(pages)]
            h = np.arange(K)[:, None]
            if wrong:
                row = (int(block_table[b, j[0] // ps]) * K + h) * ps + j[0] % ps + (j - j[0])
            else:
                row = (block_table[b, j // ps].astype(np.int64) * K + h) * ps + j % ps
            return up(f[np.minimum(row, len(f) - 1)])
        return paged_walk(q, kp, vp, block_table, kv_lengths, fetch, causal, scale, 64)
    a, o = paged_data(25, 3, 4, 2, 4, 64, 48, [150, 47, 201], dtype="bfloat16")
    return kernel, a, dict(o, causal=True)


@fault("cascade_prefix_ends", "Cascade decoding: pages shared by the whole batch are attended once, for all sequences. The shared prefix is found by comparing only the first and the last sequence's table; sequence 1 shares 1 page and sequence 2 none with them, but all get the 3 prefix pages (48 keys) of sequence 0. "
       "Sequences 0 and 3 are right.", form="paged", lse=True)
def _(wrong=True):
    def kernel(q, kp, vp, *, block_table, kv_lengths, causal=False, scale=None):
        dt = q.dtype
        B, H, T, D = q.shape
        ps = kp.shape[2]
        full = max(0, int(np.min(kv_lengths)) - T + 1) // ps
        who = [0, B - 1] if wrong else range(B)
        n = 0
        while n < full and all(block_table[b, n] == block_table[0, n] for b in who):
            n += 1
        j = np.arange(n * ps)
        pre = start((B, H, T), vp.shape[-1])
        if n:
            kt = kvh(page_rows(kp, block_table[0, j // ps], j % ps), H)
            vt = kvh(page_rows(vp, block_table[0, j // ps], j % ps), H)
            step(pre, (up(q) @ tr(kt)) * sc(scale, D), vt, np.ones((T, n * ps), bool), dt)
        po, pl = fin(pre, np.dtype(F32))
        O = np.zeros(q.shape[:-1] + (vp.shape[-1],), dt)
        L = np.zeros(q.shape[:-1], F32)
        for b in range(B):
            S = int(kv_lengths[b])
            st = start((H, T), vp.shape[-1])
            for c in range(n * ps, S, 64):
                j = np.arange(c, min(S, c + 64))
                e = block_table[b, j // ps]
                step(st, (up(q[b]) @ tr(kvh(page_rows(kp, e, j % ps), H))) * sc(scale, D), kvh(page_rows(vp, e, j % ps), H), visible(np.arange(T) + S - T, j, causal), dt)
            o, L[b] = combine([(po[b], pl[b]), fin(st, np.dtype(F32))])
            O[b] = o.astype(dt)
        return O, L
    a, o = paged_data(26, 4, 8, 4, 2, 32, 16, [101, 77, 130, 88])
    bt = o["block_table"].copy()
    bt[3, :3] = bt[0, :3]
    bt[1, 0] = bt[0, 0]
    return kernel, a, dict(block_table=bt, kv_lengths=o["kv_lengths"], causal=True)


@fault("last_page_len_zero", "The plan stores the number of keys on a sequence's last page as length % page_size; where the length is a multiple of 20 that is 0, so the whole last page is dropped (20 keys, sequences 0 and 2 of 4), while the position of the queries keeps the true length.", form="paged")
def _(wrong=True):
    def kernel(q, kp, vp, *, block_table, kv_lengths, causal=False, scale=None, softcap=None):
        dt = q.dtype
        B, H, T, D = q.shape
        ps = kp.shape[2]
        O = np.zeros(q.shape[:-1] + (vp.shape[-1],), dt)
        for b in range(B):
            S = int(kv_lengths[b])
            npages = -(-S // ps)
            last = S % ps if wrong else S - (npages - 1) * ps
            st = start((H, T), vp.shape[-1])
            for p in range(npages):
                n = last if p == npages - 1 else ps
                if n <= 0:
                    continue
                e = int(block_table[b, p])
                s = (up(q[b]) @ tr(kvh(up(kp[e, :, :n]), H))) * sc(scale, D)
                if softcap is not None:
                    s = np.tanh(s / F32(softcap)) * F32(softcap)
                step(st, s, kvh(up(vp[e, :, :n]), H), visible(np.arange(T) + S - T, np.arange(p * ps, p * ps + n), causal), dt)
            O[b] = fin(st, dt, False)
        return O
    a, o = paged_data(27, 4, 6, 3, 3, 48, 20, [160, 143, 40, 97])
    return kernel, a, dict(o, causal=True, softcap=20.0)


# ================================================================ packed
def cu(*n):
    return np.concatenate([[0], np.cumsum(n)]).astype(np.int32)


@fault("stale_accumulator", "A persistent kernel clears its accumulator with the first key tile of a work item (first product overwrites); items without any key tile (sequences 1 and 4 have no keys) store what the item before left behind: their rows get the rows of the previous sequence's last tile, lse too.", form="packed", lse=True)
def _(wrong=True):
    def kernel(q, k, v, *, cu_q, cu_kv, causal=False, scale=None):
        dt = q.dtype
        H, n, D = q.shape
        E = v.shape[-1]
        O = np.zeros((H, n, E), dt)
        L = np.full((H, n), NI, F32)
        reg = start((H, 32), E)
        kf, vf = kvh(up(k), H), kvh(up(v), H)
        for b in range(len(cu_q) - 1):
            q0, q1, k0, k1 = (int(x) for x in (cu_q[b], cu_q[b + 1], cu_kv[b], cu_kv[b + 1]))
            for a, e in tiles(q1 - q0, 32):
                qt = up(q[:, q0 + a:q0 + e])
                if not wrong or k1 > k0:
                    reg = start((H, 32), E)
                st = [x[:, :e - a].copy() for x in reg]
                for c, d in tiles(k1 - k0, 48):
                    step(st, (qt @ tr(kf[:, k0 + c:k0 + d])) * sc(scale, D), vf[:, k0 + c:k0 + d], visible(np.arange(a, e) + (k1 - k0) - (q1 - q0), np.arange(c, d), causal), dt)
                for x, y in zip(reg, st):
                    x[:, :e - a] = y
                O[:, q0 + a:q0 + e], L[:, q0 + a:q0 + e] = fin(st, dt)
        return O, L
    a, b = cu(40, 13, 27, 5, 21), cu(75, 0, 27, 60, 0)
    return kernel, data(28, (4, 106, 32), (2, 162, 32), (2, 162, 32)), dict(cu_q=a, cu_kv=b, causal=True)


@fault("tile_store_overrun", "Sequences are worked longest first and the epilogue stores full 32-row tiles; a sequence's last tile is not cut at its end, so its padding rows (zeros) overwrite the first rows of the next sequence in memory - only when that one was longer and hence stored earlier.", form="packed", dtype="bfloat16")
def _(wrong=True):
    def kernel(q, k, v, *, cu_q, cu_kv, causal=False, scale=None):
        dt = q.dtype
        H, n, D = q.shape
        E = v.shape[-1]
        O = np.zeros((H, n, E), dt)
        kf, vf = kvh(up(k), H), kvh(up(v), H)
        for b in np.argsort(-np.diff(cu_q), kind="stable"):
            q0, q1, k0, k1 = (int(x) for x in (cu_q[b], cu_q[b + 1], cu_kv[b], cu_kv[b + 1]))
            for a in range(0, q1 - q0, 32):
                e = min(a + 32, q1 - q0)
                st = start((H, e - a), E)
                qt = up(q[:, q0 + a:q0 + e])
                for c, d in tiles(k1 - k0, 64):
                    step(st, (qt @ tr(kf[:, k0 + c:k0 + d])) * sc(scale, D), vf[:, k0 + c:k0 + d], visible(np.arange(a, e) + (k1 - k0) - (q1 - q0), np.arange(c, d), causal), dt)
                tile = np.zeros((H, 32, E), dt)
                tile[:, :e - a] = fin(st, dt, False)
                stop = min(n, q0 + a + 32) if wrong else q0 + e
                O[:, q0 + a:stop] = tile[:, :stop - q0 - a]
        return O
    a, b = cu(19, 70, 45, 9, 50), cu(19, 70, 63, 40, 50)
    return kernel, data(29, (6, 193, 64), (2, 242, 64), (2, 242, 64), dtype="bfloat16"), dict(cu_q=a, cu_kv=b, causal=True)


@fault("lse_padded_layout", "lse is written to a scratch in which each sequence starts on a multiple of 16 rows (padded layout); the host cuts it out by cu_q as if it were dense. Output right; lse right in sequence 0 only, later rows carry the lse of earlier tokens or the padding (0).", form="packed", lse=True)
def _(wrong=True):
    def kernel(q, k, v, *, cu_q, cu_kv, causal=False, window=None, scale=None):
        dt = q.dtype
        H, n, D = q.shape
        E = v.shape[-1]
        B = len(cu_q) - 1
        O = np.zeros((H, n, E), dt)
        base = np.concatenate([[0], np.cumsum(-(-np.diff(cu_q) // 16) * 16)]).astype(int)
        W = np.zeros((H, max(base[-1], n)), F32)
        src = np.zeros(n, int)
        kf, vf = kvh(up(k), H), kvh(up(v), H)
        for b in range(B):
            q0, q1, k0, k1 = (int(x) for x in (cu_q[b], cu_q[b + 1], cu_kv[b], cu_kv[b + 1]))
            st = start((H, q1 - q0), E)
            for c, d in tiles(k1 - k0, 32):
                step(st, (up(q[:, q0:q1]) @ tr(kf[:, k0 + c:k0 + d])) * sc(scale, D), vf[:, k0 + c:k0 + d], visible(np.arange(q1 - q0) + (k1 - k0) - (q1 - q0), np.arange(c, d), causal, window), dt)
            O[:, q0:q1], W[:, base[b]:base[b] + q1 - q0] = fin(st, dt)
            src[q0:q1] = base[b] + np.arange(q1 - q0)
        return O, W[:, np.arange(n) if wrong else src]
    a, b = cu(21, 34, 1, 17), cu(30, 34, 55, 17)
    return kernel, data(30, (3, 73, 24), (3, 136, 24), (3, 136, 24)), dict(cu_q=a, cu_kv=b, causal=True, window=(40, None))


@fault("alibi_packed_index", "ALiBi's distance is taken between the row's and the key's indices in the packed arrays, not within the sequence. It is right in sequences where cu_q and cu_kv plus the offset agree; elsewhere distances are shifted by (cu_kv[b] - cu_q[b] - offset), without causal masking that moves the bias peak.", form="packed")
def _(wrong=True):
    def kernel(q, k, v, *, cu_q, cu_kv, causal=False, alibi_slopes=None, scale=None):
        dt = q.dtype
        H, n, D = q.shape
        E = v.shape[-1]
        O = np.zeros((H, n, E), dt)
        kf, vf = kvh(up(k), H), kvh(up(v), H)
        for b in range(len(cu_q) - 1):
            q0, q1, k0, k1 = (int(x) for x in (cu_q[b], cu_q[b + 1], cu_kv[b], cu_kv[b + 1]))
            st = start((H, q1 - q0), E)
            i = np.arange(q1 - q0) + (k1 - k0) - (q1 - q0)
            for c, d in tiles(k1 - k0, 48):
                s = (up(q[:, q0:q1]) @ tr(kf[:, k0 + c:k0 + d])) * sc(scale, D)
                if alibi_slopes is not None:
                    row = np.arange(q0, q1) if wrong else i + k0
                    s = s - up(alibi_slopes)[:, None, None] * np.abs(row[:, None] - np.arange(k0 + c, k0 + d)).astype(F32)
                step(st, s, vf[:, k0 + c:k0 + d], visible(i, np.arange(c, d), causal), dt)
            O[:, q0:q1] = fin(st, dt, False)
        return O
    a, b = cu(33, 50, 12, 20), cu(33, 62, 40, 20)
    return kernel, data(31, (4, 115, 40), (4, 155, 40), (4, 155, 40)), dict(cu_q=a, cu_kv=b, alibi_slopes=np.array([.5, .25, .125, .0625], F32))


# ================================================================ latent
def latent_run(qa, qr, c, kr, w_uv, causal, scale, dt, nd, bn=64, Cs=None):
    """qa (...,H,T,C) absorbed queries"""
    T = qa.shape[-2]
    S, C = c.shape[-2:]
    Cs = C if Cs is None else Cs
    cf, kf = up(c)[..., None, :, :], up(kr)[..., None, :, :]
    st = start(qa.shape[:-1], C)
    for a, b in tiles(S, bn):
        s = (qa[..., :Cs] @ tr(cf[..., a:b, :Cs]) + qr @ tr(kf[..., a:b, :])) * sc(scale, nd)
        step(st, s, cf[..., a:b, :], visible(np.arange(T) + S - T, np.arange(a, b), causal), dt)
    o, l = fin(st, np.dtype(F32))
    return o @ tr(up(w_uv)), l


def latent_data(seed, B, H, T, S, N, R, C, E, dtype="float32"):
    return data(seed, (B, H, T, N), (B, H, T, R), (B, S, C), (B, S, R), (H, N, C), (H, E, C), dtype=dtype, amp=[1, 1, 1, 1, C ** -.5, C ** -.5])


@fault("rope_layout_query_only", "The rotary part of the query is turned from interleaved (pairs) to half-split layout on load; the cached rotary key is not. The rope part of every score pairs query column 2m with key column m: scores wrong in all rows by a noise of the rope part's size, only columns 0 and R-1 pair rightly.", form="latent")
def _(wrong=True):
    def kernel(qn, qr, c, kr, w_uk, w_uv, *, form="absorb", causal=False, scale=None):
        dt = qn.dtype
        R = qr.shape[-1]
        x = up(qr)
        if wrong:
            x = np.concatenate([x[..., 0::2], x[..., 1::2]], -1)
        qa = up(qn) @ up(w_uk)
        return latent_run(qa, x, c, kr, w_uv, causal, scale, dt, qn.shape[-1] + R)[0].astype(dt)
    return kernel, latent_data(32, 2, 6, 3, 130, 32, 16, 64, 32), dict(causal=True)


@fault("latent_tail_scores", "The score product runs over the latent dim in steps of 32, C // 32 of them: with C = 112 columns 96..111 of the latent never enter the scores, while the value side (all of C) is right. All rows get slightly flat scores.", form="latent", lse=True)
def _(wrong=True):
    def kernel(qn, qr, c, kr, w_uk, w_uv, *, form="absorb", causal=False, scale=None):
        dt = qn.dtype
        C = c.shape[-1]
        qa = up(qn) @ up(w_uk)
        Cs = C // 32 * 32 if wrong else C
        o, l = latent_run(qa, up(qr), c, kr, w_uv, causal, scale, dt, qn.shape[-1] + qr.shape[-1], Cs=Cs)
        return o.astype(dt), l
    return kernel, latent_data(33, 1, 5, 40, 90, 24, 16, 112, 24), dict(causal=True)


@fault("fold_order_uv", "For 4 draft tokens and 6 heads the kernel folds rows as m = t*H + h. The up-projection by w_uv after the kernel unfolds m as h*T + t for the choice of the head's w_uv: row (t, h) is projected with head (t*H+h)//T's matrix. lse right; rows where both agree (t=0,h=0; t=3,h=5 and a few) are right.", form="latent", lse=True)
def _(wrong=True):
    def kernel(qn, qr, c, kr, w_uk, w_uv, *, form="absorb", causal=False, scale=None):
        dt = qn.dtype
        H, T, N = qn.shape[-3:]
        S, C = c.shape[-2:]
        E = w_uv.shape[-2]
        lead = qn.shape[:-3]
        qa = np.concatenate([up(qn) @ up(w_uk), up(qr)], -1)
        M = np.swapaxes(qa, -3, -2).reshape(lead + (T * H, qa.shape[-1]))
        kc = np.concatenate([up(c), up(kr)], -1)
        pos = np.arange(T * H) // H + S - T
        parts = []
        for a, b in tiles(S, 80):
            st = start(lead + (T * H,), C)
            step(st, (M @ tr(kc[..., a:b, :])) * sc(scale, N + qr.shape[-1]), up(c)[..., a:b, :], visible(pos, np.arange(a, b), causal), dt)
            parts.append(fin(st, np.dtype(F32)))
        o, l = combine(parts)
        m = np.arange(T * H)
        wh = up(w_uv)[(m // T) if wrong else (m % H)]
        o = (wh @ o[..., None])[..., 0]
        o = np.swapaxes(o.reshape(lead + (T, H, E)), -3, -2)
        return np.ascontiguousarray(o).astype(dt), np.ascontiguousarray(np.swapaxes(l.reshape(lead + (T, H)), -2, -1)).astype(F32)
    return kernel, latent_data(34, 3, 6, 4, 97, 32, 16, 48, 40), dict(causal=True)


def main():
    import sys
    import time
    from refattn.oracle import check
    good = 0
    for n, (name, sentence, tags, build) in enumerate(FAULTS):
        res = []
        for w in (False, True):
            kernel, arrays, options = build(wrong=w)
            before = [np.array(a, copy=True) for a in arrays]
            r = kernel(*arrays, **options)
            t0 = time.perf_counter()
            for _i in range(3):
                kernel(*arrays, **options)
            ms = (time.perf_counter() - t0) / 3 * 1e3
            same = all(np.array_equal(x.view(np.uint8), y.view(np.uint8)) for x, y in zip(before, map(np.ascontiguousarray, arrays)))
            kw = dict(options)
            if tags["form"] != "dense":
                kw["function"] = {"packed": "packed_attention", "paged": "paged_attention", "latent": "latent_attention"}[tags["form"]]
            if tags["lse"]:
                r, kw["lse"] = r
            rep = check(r, *arrays, **kw)
            res.append((bool(rep.passed), ms, same, str(arrays[0].dtype) == tags["dtype"], str(r.dtype) == tags["dtype"]))
        ok = res[0][0] and not res[1][0] and all(x[2] and x[3] and x[4] for x in res)
        good += ok
        print(f"{'ok  ' if ok else 'FAIL'} {name:28s} right={res[0][0]} wrong={res[1][0]} {res[0][1]:.1f}/{res[1][1]:.1f} ms {tags}")
    print(good, "of", len(FAULTS))


if __name__ == "__main__":
    main()
