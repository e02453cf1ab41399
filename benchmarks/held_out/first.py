"""Wrong attention kernels: FAULTS = [(name, sentence, tags, build), ...]."""
import math

import ml_dtypes
import numpy as np

F32 = np.float32
BF16 = ml_dtypes.bfloat16
F16 = np.float16
DT = {"float32": F32, "bfloat16": BF16, "float16": F16}
INF = np.float32(np.inf)
LOG2E = F32(1.4426950408889634)
FAULTS = []


# ------------------------------------------------------------------ helpers
def f32(x):
    return np.asarray(x).astype(F32)


def low(x, dt):
    """Round to the input type, carry on in float32."""
    return x if dt == F32 else x.astype(dt).astype(F32)


def safe(m):
    return np.where(m == -INF, F32(0), m)


def pv(p, v, vis):
    """p @ v where hidden keys contribute nothing even when they hold NaN or infinity."""
    fin = np.isfinite(v)
    if fin.all():
        return p @ v
    out = p @ np.where(fin, v, F32(0))
    w = vis.astype(F32)
    nan = (w @ np.isnan(v).astype(F32)) > 0
    up = (w @ (v == INF).astype(F32)) > 0
    dn = (w @ (v == -INF).astype(F32)) > 0
    out = np.where(up, INF, out)
    out = np.where(dn, -INF, out)
    return np.where(nan | (up & dn), F32(np.nan), out)


def resc(acc, alpha):
    if np.isfinite(acc).all():
        return acc * alpha
    return np.where(np.isinf(acc) & (alpha == 0), acc, acc * alpha)


def offset_of(q_offset, lengths, T):
    """(...,1,1,1) array of int64 or a plain int."""
    if q_offset is None:
        o = np.asarray(lengths, dtype=np.int64) - T
    else:
        o = np.asarray(q_offset, dtype=np.int64)
    return o[..., None, None, None] if o.ndim else int(o)


def see(pos, j, causal, window, chunk=None):
    vis = np.ones(np.broadcast_shapes(pos.shape, j.shape), bool)
    if causal:
        vis &= j <= pos
    if window is not None:
        left, right = window
        if left is not None:
            vis &= j - pos >= -left
        if right is not None:
            vis &= j - pos <= right
    if chunk is not None:
        vis &= (j // chunk) == (pos // chunk)
    return vis


def finish(m, l, acc, dt, sinks=None, sink_in_lse=True):
    lse0 = np.where(l > 0, safe(m) + np.log(np.where(l > 0, l, F32(1))), -INF)
    lse0 = np.where(np.isnan(l), F32(np.nan), lse0)
    if sinks is not None:
        s = f32(sinks)[:, None, None]
        mf = np.maximum(m, s)
        a = np.exp(m - safe(mf))
        l = l * a + np.exp(s - safe(mf))
        acc = resc(acc, a)
        lse = np.where(l > 0, safe(mf) + np.log(np.where(l > 0, l, F32(1))), -INF)
        lse = np.where(np.isnan(l), F32(np.nan), lse)
        if sink_in_lse:
            lse0 = lse
    out = np.where(l == 0, F32(0), acc / np.where(l == 0, F32(1), l))
    return out.astype(dt), lse0[..., 0].astype(F32)


def give(out, lse, want):
    return (out, lse) if want else out


def quiet(f):
    def g(*a, **k):
        with np.errstate(all="ignore"):
            return f(*a, **k)
    return g


def fault(name, sentence, form, dtype, lse, maker, data):
    tags = {"form": form, "dtype": dtype, "lse": lse}

    def build(wrong=True):
        arrays, options = data(np.random.default_rng(sum(map(ord, name))), DT[dtype])
        return quiet(maker(name if wrong else None, DT[dtype], lse)), arrays, options

    FAULTS.append((name, sentence, tags, build))


def qkv(rng, dt, H, K, T, S, D, E=None, batch=(), amp=1.0):
    E = E or D
    q = (amp * rng.standard_normal(batch + (H, T, D))).astype(dt)
    k = rng.standard_normal(batch + (K, S, D)).astype(dt)
    v = rng.standard_normal(batch + (K, S, E)).astype(dt)
    return q, k, v


# ------------------------------------------------------------------ 1: tiled online softmax, dense
def exp2_poly(x, trunc):
    x = np.maximum(x, F32(-126))
    n = np.trunc(x) if trunc else np.floor(x)
    f = (x - n).astype(F32)
    # least squares polynomial on [0, 1), degree 7 (Taylor of 2^f, f kept in [0, 1))
    c = [math.log(2) ** i / math.factorial(i) for i in range(10)]
    if trunc:       # the three-term table the wrong split was tuned with is not valid below 0
        f = np.abs(f)
    r = np.full_like(f, c[-1])
    for a in c[-2::-1]:
        r = r * f + F32(a)
    return np.ldexp(r, n.astype(np.int32))


def tiled(BM, BN, overlap=False, poly=False):
    def make(bug, dt, want):
        def kernel(q, k, v, *, causal=False, window=None, chunk=None, scale=None, softcap=None, bias=None,
                   mask=None, alibi_slopes=None, sinks=None, kv_lengths=None, q_offset=None,
                   dropout_mask=None, dropout_rate=None):
            B, (H, T, D) = q.shape[:-3], q.shape[-3:]
            K, S, E = v.shape[-3:]
            G = H // K
            scale = F32(1 / math.sqrt(D) if scale is None else scale)
            hmap = np.arange(H) // G
            if bug == "group_shift":
                hmap = np.minimum(np.arange(H) >> (G.bit_length() - 1), K - 1)
            qf, kf, vf = f32(q), f32(k), f32(v)
            if bug == "depth_tail" and D > 32:
                dk = D // 32 * 32
                qf, kf = qf[..., :dk], kf[..., :dk]
            if bug == "value_stride":
                a = (np.arange(S)[:, None] * D + np.arange(E)) % (S * E)
                vf = vf.reshape(B + (K, S * E))[..., a]
            if bug == "swizzle":
                j = np.arange(S)[:, None]
                e = np.arange(E)[None]
                c = e // 8
                src = np.where((c ^ (j & 7) ^ (j & 3)) * 8 + e % 8 < E, (c ^ (j & 7) ^ (j & 3)) * 8 + e % 8, e)
                vf = np.take_along_axis(vf, np.broadcast_to(src, vf.shape), -1)
            kf, vf = kf[..., hmap, :, :], vf[..., hmap, :, :]
            full = B + (H, T, S)
            if bias is not None:
                bias = np.broadcast_to(f32(bias), full)
            if mask is not None:
                mask = np.broadcast_to(mask, full)
            if dropout_mask is not None:
                dropout_mask = np.broadcast_to(dropout_mask, full)
            lens = None
            if kv_lengths is not None:
                lens = np.minimum(np.asarray(kv_lengths, np.int64), S)
            off = offset_of(q_offset, S if lens is None else lens, T)
            if bug == "clamped_offset" and q_offset is None:
                off = np.maximum(off, 0)
            if lens is not None:
                lens = lens[..., None, None, None]
                if bug == "length_of_wrong_batch":
                    z = np.arange(lens.size * H)
                    b = np.minimum(z // K, lens.size - 1)
                    lens = lens.reshape(-1)[b].reshape(B + (H, 1, 1))
            out = np.zeros(B + (H, T, E), dt)
            lse = np.full(B + (H, T), -INF, F32)
            omax, omin = int(np.max(off)), int(np.min(off))
            for m0 in range(0, T, BM):
                r0 = m0
                if overlap and m0 + BM > T and T >= BM:
                    r0 = T - BM
                rows = np.arange(r0, min(r0 + BM, T))
                t = len(rows)
                pr = rows
                if bug == "tail_moved_back" and r0 != m0:
                    pr = np.arange(m0, m0 + t)
                pos = off + pr[:, None]
                lo, hi = 0, S
                first, last = int(pr[0]), int(pr[-1])
                if causal:
                    e = first if bug == "causal_end_first_row" else last
                    hi = min(hi, (omax + e) // BN * BN + BN)
                if window is not None:
                    if window[0] is not None:
                        f = last if bug == "window_start_last_row" else first
                        lo = max(0, omin + f - window[0]) // BN * BN
                    if window[1] is not None:
                        hi = min(hi, omax + last + window[1] + 1)
                m = np.full(B + (H, t, 1), -INF, F32)
                l = np.zeros_like(m)
                acc = np.zeros(B + (H, t, E), F32)
                qt = qf[..., rows, :]
                prev_bias = None
                for it, n0 in enumerate(range(lo, hi, BN)):
                    j = np.arange(n0, n0 + BN)
                    ld = np.minimum(j, S - 1)
                    kt, vt = kf[..., ld, :], vf[..., ld, :]
                    if bug == "stale_value_stage" and it >= 3 and it % 3 == 0 and n0 + BN >= hi:
                        ld2 = np.minimum(j - 3 * BN, S - 1)
                        vt = vf[..., ld2, :]
                    s = (qt @ np.swapaxes(kt, -1, -2)) * scale
                    if softcap is not None and bug != "cap_after_hide":
                        if bug == "cap_in_base2":
                            s = softcap * np.tanh(s * (LOG2E / F32(softcap))) / LOG2E
                        else:
                            s = F32(softcap) * np.tanh(s / F32(softcap))
                    if alibi_slopes is not None:
                        s = s - f32(alibi_slopes)[:, None, None] * np.abs(pos - j).astype(F32)
                    if bias is not None:
                        bt = bias[..., rows[:, None], ld]
                        use = bt
                        if bug == "bias_lags" and prev_bias is not None:
                            use = prev_bias
                        s = s + use
                        prev_bias = bt
                    win = window
                    if bug == "zero_left" and window is not None:
                        win = (window[0] or None, window[1])
                    cpos = pos
                    if bug == "chunk_without_offset":
                        vis = see(pos, j, causal, win) & see(pos - off, j, False, None, chunk)
                    else:
                        vis = see(cpos, j, causal, win, chunk)
                    if bug != "tail_counts_again":
                        vis = vis & (j < S)
                    if lens is not None:
                        vis = vis & (j < lens)
                    if mask is not None:
                        vis = vis & mask[..., rows[:, None], ld]
                    s = np.where(vis, s, -INF)
                    if softcap is not None and bug == "cap_after_hide":
                        s = F32(softcap) * np.tanh(s / F32(softcap))
                        s = np.where(j < S, s, -INF)
                    vis = s != -INF
                    mn = np.maximum(m, s.max(-1, keepdims=True))
                    x = s - safe(mn)
                    if poly:
                        x2 = x * LOG2E
                        sw = np.arange(BN) % 4 == 3
                        p = np.exp2(x2)
                        p[..., sw] = np.where(vis[..., sw], exp2_poly(x2[..., sw], bug == "exp2_trunc"), F32(0))
                    else:
                        p = np.exp(x)
                    alpha = np.exp(m - safe(mn))
                    l = l * alpha + p.sum(-1, keepdims=True, dtype=F32)
                    ao = alpha
                    if bug == "lazy_rescale":
                        ao = np.where((m != -INF) & (mn - m < F32(math.log(2))), F32(1), alpha)
                    if dropout_mask is not None:
                        dj = np.minimum(j - lo, S - 1) % BN if bug == "dropout_tile_local" else ld
                        keep = dropout_mask[..., rows[:, None], dj]
                        p = np.where(keep, p / F32(1 - dropout_rate), F32(0))
                        vis = vis & keep
                    acc = resc(acc, ao) + pv(low(p, dt), vt, vis)
                    m = mn
                if bug == "row_pair_norm":
                    i = np.arange(t)
                    w = np.minimum(np.where(i % 16 < 8, i + 8, i - 8), t - 1)
                    o, _ = finish(m[..., w, :], l[..., w, :], acc * np.exp(safe(m[..., w, :]) * 0), dt, sinks)
                    _, e = finish(m, l, acc, dt, sinks)
                else:
                    o, e = finish(m, l, acc, dt, sinks, bug != "sink_missing_in_lse")
                out[..., rows, :] = o
                lse[..., rows] = e
            if bug == "lse_padded_stride":
                tp = -(-T // BM) * BM
                buf = np.zeros(B + (H * tp,), F32)
                for h in range(H):
                    buf[..., h * tp:h * tp + T] = lse[..., h, :]
                lse = buf[..., :H * T].reshape(lse.shape)
            return give(out, lse, want)
        return kernel
    return make


fault("tail_counts_again", "The last key tile is loaded with clamped addresses (index min(j, S-1)) and the bound j < S is not applied to the scores: with S = 150 and key tiles of 64 "
      "the last key is counted 43 times instead of once, in every row and head.", "dense", "float32", True, tiled(32, 64),
      lambda r, d: (qkv(r, d, 6, 2, 77, 150, 40), {}))
fault("causal_end_first_row", "The end of the causal key loop is computed from the first row of the 48-row tile instead of the last: rows whose diagonal lies in a later 32-key tile than "
      "that of the tile's first row never see those keys; the first rows of each tile are right.", "dense", "bfloat16", False, tiled(48, 32),
      lambda r, d: (qkv(r, d, 4, 4, 130, 170, 64), dict(causal=True)))
fault("cap_after_hide", "Softcap is applied after hiding: a hidden score of -inf becomes -softcap (here -5) and the hidden keys inside the visited key tiles join with weight exp(-5 - m), "
      "in the rows above the diagonal of visited tiles.", "dense", "float32", True, tiled(32, 48),
      lambda r, d: (qkv(r, d, 5, 5, 100, 121, 24), dict(causal=True, softcap=5.0)))
fault("group_shift", "The group size is turned into a shift: query head h reads key/value head h >> floor(log2(group)) (clamped). With groups of 3 (12 heads), heads 2 and 4..8 read a "
      "wrong key/value head, heads 0, 1, 3, 9, 10, 11 are right.", "dense", "bfloat16", False, tiled(64, 64),
      lambda r, d: (qkv(r, d, 12, 4, 50, 97, 64), dict(causal=True)))
fault("tail_moved_back", "The last, partial row tile is moved back to rows T-64..T-1 so that it is full, but its positions are still counted from the old start: its rows stand 64 - T % 64 "
      "positions too far (T = 150: rows 86..149, 42 positions) and see that many keys too many under causal; rows 0..85 are right.", "dense", "float32", True, tiled(64, 32, overlap=True),
      lambda r, d: (qkv(r, d, 4, 2, 150, 180, 32), dict(causal=True)))
fault("dropout_tile_local", "The keep mask is addressed with the column inside the key tile: every key tile of 32 reuses the keep mask of keys 0..31; only the first key tile is right.",
      "dense", "float32", False, tiled(32, 32),
      lambda r, d: (qkv(r, d, 3, 3, 66, 110, 32), dict(dropout_mask=r.random((3, 66, 110)) > 0.25, dropout_rate=0.25)))
fault("depth_tail", "The product over head_dim is a loop over whole slices of 32 without a tail: of head_dim 80 the last 16 components of query and key are left out of the scores.",
      "dense", "bfloat16", False, tiled(64, 64),
      lambda r, d: (qkv(r, d, 4, 2, 60, 130, 80, amp=2.0), {}))
fault("zero_left", "`if window[0]:` - a left window of 0 is taken for no left bound: under window (0, 9) rows see all keys to their left (in the key tiles visited).", "dense", "float16", False,
      tiled(64, 64), lambda r, d: (qkv(r, d, 4, 4, 70, 160, 32), dict(window=(0, 9))))
fault("chunk_without_offset", "The chunk of a row is taken from its row number i instead of its position q_offset + i: with 37 keys in front and chunks of 50 the rows look for keys of another chunk.",
      "dense", "float32", True, tiled(32, 32),
      lambda r, d: (qkv(r, d, 4, 2, 110, 147, 32), dict(causal=True, chunk=50)))
fault("row_pair_norm", "Epilogue in the layout of the matrix fragment: the normaliser (row sum) of row r and row r + 8 of every 16 rows is swapped before dividing; lse is right.",
      "dense", "bfloat16", True, tiled(32, 64),
      lambda r, d: (qkv(r, d, 4, 2, 75, 141, 64), dict(causal=True)))
fault("exp2_trunc", "Every fourth key column (j % 4 == 3 of a tile) computes exp2 with a polynomial on the FMA units, and splits the exponent by truncation instead of floor with the fraction's "
      "sign dropped: 2^(n - f) becomes 2^(n + f), so that these keys weigh up to 4 times too much.", "dense", "float32", True, tiled(32, 32, poly=True),
      lambda r, d: (qkv(r, d, 4, 2, 70, 134, 32), {}))
fault("swizzle", "Shared memory swizzle: value rows are written with chunk ^ (row & 7) and read with chunk ^ (row & 3): for keys with j % 8 >= 4 the 8-element groups of columns c and c ^ 4 are exchanged.",
      "dense", "float16", True, tiled(64, 64),
      lambda r, d: (qkv(r, d, 4, 2, 70, 120, 64), {}))


# ------------------------------------------------------------------ shared by the kernels below
def score_tile(qt, kt, scale, softcap, slopes, pos, j):
    s = (qt @ np.swapaxes(kt, -1, -2)) * scale
    if softcap is not None:
        s = F32(softcap) * np.tanh(s / F32(softcap))
    if slopes is not None:
        s = s - slopes * np.abs(pos - j).astype(F32)
    return s


class State:
    """Running maximum, sum and accumulator of online softmax."""

    def __init__(self, rows, E):
        self.m = np.full(rows + (1,), -INF, F32)
        self.l = np.zeros(rows + (1,), F32)
        self.acc = np.zeros(rows + (E,), F32)

    def add(self, s, v, dt, plain=False, stale_from=None):
        """s has -inf where hidden."""
        vis = s != -INF
        mn = np.maximum(self.m, s.max(-1, keepdims=True))
        p = np.exp(s - safe(mn))
        a = np.exp(self.m - safe(mn))
        self.l = self.l * a + p.sum(-1, keepdims=True, dtype=F32)
        add = low(p, dt) @ v if plain else pv(low(p, dt), v, vis)
        if stale_from is None:
            self.acc = resc(self.acc, a) + add
        else:
            c = stale_from
            self.acc = np.concatenate([resc(self.acc[..., :c], a), self.acc[..., c:]], -1) + add
        self.m = mn

    def sink(self, s):
        mn = np.maximum(self.m, s)
        a = np.exp(self.m - safe(mn))
        self.l = self.l * a + np.exp(s - safe(mn))
        self.acc = resc(self.acc, a)
        self.m = mn


def merge_states(states):
    m = states[0].m
    for st in states[1:]:
        m = np.maximum(m, st.m)
    out = State(m.shape[:-1], states[0].acc.shape[-1])
    out.m = m
    for st in states:
        a = np.exp(st.m - safe(m))
        out.l = out.l + st.l * a
        out.acc = out.acc + np.where(st.m == -INF, F32(0), resc(st.acc, a))
    return out


# ------------------------------------------------------------------ 2: eager, dense
def eager():
    def make(bug, dt, want):
        def kernel(q, k, v, *, causal=False, window=None, chunk=None, scale=None, softcap=None, bias=None, mask=None,
                   alibi_slopes=None, sinks=None, kv_lengths=None, q_offset=None):
            B, (H, T, D) = q.shape[:-3], q.shape[-3:]
            K, S, E = v.shape[-3:]
            G = H // K
            scale = F32(1 / math.sqrt(D) if scale is None else scale)
            nb = int(np.prod(B, dtype=np.int64))
            qf = f32(q).reshape(nb, H, T, D)
            kr, vr = f32(k).reshape(nb * K, S, D), f32(v).reshape(nb * K, S, E)
            stride = H if bug == "batch_stride_of_query_heads" else K
            head = (np.arange(nb)[:, None] * stride + np.arange(H) // G) % max(1, nb * K)
            kf, vf = kr[head], vr[head]
            if bug == "offset_wraps_16_bits":
                j = np.arange(S)[:, None]
                kf = kf.reshape(nb, H, S * D)[..., (j * D + np.arange(D)) & 0xFFFF]
                vf = vf.reshape(nb, H, S * E)[..., (j * E + np.arange(E)) & 0xFFFF]
            lens = np.full(nb, S, np.int64)
            if kv_lengths is not None:
                lens = np.minimum(np.broadcast_to(np.asarray(kv_lengths, np.int64), B).reshape(nb), S)
            off = (lens - T) if q_offset is None else np.broadcast_to(np.asarray(q_offset, np.int64), B).reshape(nb)
            pos = off[:, None, None, None] + np.arange(T)[:, None]
            j = np.arange(S)
            s = (qf @ np.swapaxes(kf, -1, -2)) * scale
            if bug == "scores_in_input_type":
                s = s.astype(dt).astype(F32)
            if softcap is not None:
                s = F32(softcap) * np.tanh(s / F32(softcap))
            if alibi_slopes is not None:
                if bug == "positions_in_bfloat16":
                    d = np.abs(pos.astype(F32).astype(BF16).astype(F32) - j.astype(F32).astype(BF16).astype(F32))
                else:
                    d = np.abs(pos - j).astype(F32)
                s = s - f32(alibi_slopes)[:, None, None] * d
            if bias is not None:
                bf = f32(bias)
                if bug == "bias_row_stride":
                    flat = bf.reshape(-1)
                    shape = (1,) * (3 + len(B) - bf.ndim) + bf.shape
                    st = np.array([int(np.prod(shape[a + 1:])) for a in range(len(shape))])
                    st[:-2] *= np.array(shape[:-2]) > 1
                    st[-2], st[-1] = S, shape[-1] > 1          # row stride S even where the row axis has length 1
                    idx = sum(np.arange(n).reshape((-1,) + (1,) * (len(shape) - 1 - a)) * st[a]
                              for a, n in enumerate(B + (H, T, S)))
                    s = s + flat[idx % flat.size].reshape(s.shape)
                else:
                    s = s + np.broadcast_to(bf, B + (H, T, S)).reshape(s.shape)
            vis = see(pos, j, causal, window, chunk) & (j < lens[:, None, None, None])
            if mask is not None:
                mk = np.broadcast_to(mask, B + (H, T, S)).reshape(s.shape)
                bits = np.packbits(mk, axis=-1, bitorder="little")
                word = np.repeat(bits, 8, -1)[..., :S]
                sh = j % 8
                if bug == "mask_tail_bits" and S % 8:
                    sh = np.where(j >= S // 8 * 8, sh + (8 - S % 8), sh)
                vis = vis & (((word >> sh.astype(np.uint8)) & 1) != 0)
            s = np.where(vis, s, -INF)
            vis = s != -INF
            m = s.max(-1, keepdims=True)
            if bug == "no_maximum":
                m = np.where(m == -INF, m, F32(0))
                p = np.exp(np.minimum(s, F32(60)))
            else:
                p = np.exp(s - safe(m))
            l = p.sum(-1, keepdims=True, dtype=F32)
            if dt == F32:
                acc = pv(p, vf, vis)
            else:
                acc = pv(low(p / np.where(l > 0, l, F32(1)), dt), vf, vis) * np.where(l > 0, l, F32(1))
            o, e = finish(m, l, acc, dt, sinks)
            return give(o.reshape(B + (H, T, E)), e.reshape(B + (H, T)), want)
        return kernel
    return make


fault("positions_in_bfloat16", "ALiBi distances are made from positions held in bfloat16: positions above 256 are rounded to even numbers, so distances among keys and rows past 256 are off by one or two "
      "(S = 390); everything below 256 is right.", "dense", "float32", True, eager(),
      lambda r, d: (qkv(r, d, 4, 2, 40, 390, 32), dict(causal=True, alibi_slopes=np.array([0.5, 0.25, 0.125, 0.0625], F32))))
fault("bias_row_stride", "A bias of shape (H, 1, S), the same for all rows, is read with a row stride of S although its row axis has length 1: row i of head h gets the bias of head h + i (mod H).",
      "dense", "float32", False, eager(), lambda r, d: (qkv(r, d, 5, 5, 37, 93, 32), dict(bias=r.standard_normal((5, 1, 93)).astype(F32))))
fault("mask_tail_bits", "The boolean mask is packed eight keys a byte; the last byte (S % 8 = 5 keys) is read as though its bits were pushed to the high end: keys 120 and 121 take the mask bits "
      "of keys 123 and 124, keys 122..124 read 0 and are hidden from every row; other keys are right.", "dense", "float32", False, eager(),
      lambda r, d: (qkv(r, d, 4, 2, 60, 125, 32), dict(mask=r.random((60, 125)) > 0.4)))
fault("no_maximum", "The softmax subtracts no maximum and clamps the exponent at 60 instead: rows with scores above 60 give all such keys one weight, and lse saturates.", "dense", "bfloat16", True, eager(),
      lambda r, d: (qkv(r, d, 4, 4, 60, 120, 64, amp=28.0), {}))


# ------------------------------------------------------------------ 3: split-KV, dense decode
def splitkv(nsplit, BN):
    def make(bug, dt, want):
        def kernel(q, k, v, *, causal=False, window=None, scale=None, softcap=None, alibi_slopes=None, sinks=None,
                   kv_lengths=None, q_offset=None):
            B, (H, T, D) = q.shape[:-3], q.shape[-3:]
            K, S, E = v.shape[-3:]
            hm = np.arange(H) // (H // K)
            scale = F32(1 / math.sqrt(D) if scale is None else scale)
            qf, kf, vf = f32(q), f32(k)[..., hm, :, :], f32(v)[..., hm, :, :]
            lens = np.asarray(S if kv_lengths is None else np.minimum(kv_lengths, S), np.int64)
            off = offset_of(q_offset, lens, T)
            lens = np.broadcast_to(lens, B)[..., None, None, None]
            pos = off + np.arange(T)[:, None]
            sl = None if alibi_slopes is None else f32(alibi_slopes)[:, None, None]
            size = -(-S // nsplit)
            po = np.zeros((nsplit,) + B + (H, T, E), F32)
            pl = np.full((nsplit,) + B + (H, T), -INF, F32)
            for x in range(nsplit):
                a, b = x * size, min(S, x * size + size)
                st = State(B + (H, T), E)
                for n0 in range(a, b, BN):
                    j = np.arange(n0, n0 + BN)
                    ld = np.minimum(j, S - 1)
                    s = score_tile(qf, kf[..., ld, :], scale, softcap, sl, pos, j)
                    end = S if bug == "tile_over_split_end" else b
                    s = np.where(see(pos, j, causal, window) & (j < lens) & (j < end), s, -INF)
                    st.add(s, vf[..., ld, :], dt)
                o, e = finish(st.m, st.l, st.acc, F32)
                po[x], pl[x] = o, e
            if bug == "empty_split_lse_zero":
                pl = np.where(pl == -INF, F32(0), pl)
            if bug == "partial_lse_bfloat16":
                pl = pl.astype(BF16).astype(F32)
            if bug == "partial_lse_strides":
                n = pl[0].size
                pl = pl.reshape(n, nsplit).T.reshape(pl.shape)
            M = pl.max(0)
            if sinks is not None:
                M = np.maximum(M, f32(sinks)[:, None])
            w = np.exp(pl - safe(M))
            tot = w.sum(0)
            if sinks is not None:
                tot = tot + np.exp(f32(sinks)[:, None] - safe(M))
            out = np.zeros(po.shape[1:], F32)
            for x in range(nsplit):
                out = out + np.where((pl[x] == -INF)[..., None], F32(0), resc(po[x], w[x][..., None]))
            out = np.where(tot[..., None] == 0, F32(0), out / np.where(tot == 0, F32(1), tot)[..., None])
            lse = np.where(tot == 0, -INF, safe(M) + np.log(np.where(tot == 0, F32(1), tot)))
            return give(out.astype(dt), lse.astype(F32), want)
        return kernel
    return make


fault("tile_over_split_end", "Splits of ceil(S / 5) = 67 keys are walked in tiles of 32 that are cut at S but not at the end of the split: the last tile of each split but the last runs 29 keys into the next split, "
      "whose first 29 keys count twice.", "dense", "bfloat16", True, splitkv(5, 32), lambda r, d: (qkv(r, d, 8, 2, 2, 333, 64), dict(causal=True)))
fault("empty_split_lse_zero", "Splits without any key (past a sequence's length) leave lse at 0 instead of -inf: each joins the combination with weight exp(0) and output 0, so that the short sequences shrink; "
      "full sequences are right.", "dense", "float16", True, splitkv(6, 32),
      lambda r, d: (qkv(r, d, 6, 3, 1, 310, 64, batch=(3,)), dict(kv_lengths=np.array([310, 60, 130]))))
fault("partial_lse_bfloat16", "The lse of the partial results is stored in bfloat16 before the combination: the splits' weights are off by up to a percent or two and lse too.", "dense", "float32", True, splitkv(4, 64),
      lambda r, d: (qkv(r, d, 7, 1, 3, 300, 48), dict(causal=True)))


# ------------------------------------------------------------------ 4: persistent, dense
def persistent(BM, BN, grid):
    def make(bug, dt, want):
        def kernel(q, k, v, *, causal=False, window=None, scale=None, softcap=None, q_offset=None):
            B, (H, T, D) = q.shape[:-3], q.shape[-3:]
            K, S, E = v.shape[-3:]
            nb = int(np.prod(B, dtype=np.int64))
            G = H // K
            scale = F32(1 / math.sqrt(D) if scale is None else scale)
            qf, kf, vf = f32(q).reshape(nb, H, T, D), f32(k).reshape(nb, K, S, D), f32(v).reshape(nb, K, S, E)
            off = np.broadcast_to(np.asarray(S - T if q_offset is None else q_offset, np.int64), B).reshape(nb)
            nm = -(-T // BM)
            out, lse = np.zeros((nb, H, T, E), dt), np.full((nb, H, T), -INF, F32)
            for pid in range(grid):
                kept = None
                for work in range(pid, nb * H * nm, grid):
                    b, w = divmod(work, H * nm)
                    first = w // (4 * nm) * 4
                    g = 4 if bug == "swizzle_last_group" else min(4, H - first)
                    h, mt = first + w % (4 * nm) % g, w % (4 * nm) // g
                    if h >= H:
                        continue
                    rows = np.arange(mt * BM, min(T, mt * BM + BM))
                    pos = off[b] + rows[:, None]
                    st = State((len(rows),), E)
                    if bug == "sum_not_reset" and kept is not None:
                        st.l[:] = np.resize(kept, st.l.shape)
                        st.m[:] = F32(-1e30)
                    hi = min(S, max(0, int(pos[-1, 0]) + 1)) if causal else S
                    fresh = True
                    for n0 in range(0, hi, BN):
                        j = np.arange(n0, min(n0 + BN, S))
                        s = score_tile(qf[b, h, rows], kf[b, h // G, j], scale, softcap, None, pos, j)
                        s = np.where(see(pos, j, causal, window), s, -INF)
                        if fresh and bug == "sum_not_reset" and kept is not None:
                            st.m = s.max(-1, keepdims=True)       # first tile: plain maximum, nothing to rescale
                        fresh = False
                        st.add(s, vf[b, h // G, j], dt)
                    kept = st.l
                    o, e = finish(st.m, st.l, st.acc, dt)
                    out[b, h, rows], lse[b, h, rows] = o, e
            return give(out.reshape(B + (H, T, E)), lse.reshape(B + (H, T)), want)
        return kernel
    return make


fault("sum_not_reset", "Persistent kernel of 7 programs: maximum and accumulator are set by the first key tile of each work tile, the row sum is not reset: every work tile but a program's first (tiles 0..6) "
      "starts with the row sum of the program's previous tile.", "dense", "bfloat16", False, persistent(64, 64, 7),
      lambda r, d: (qkv(r, d, 6, 2, 140, 140, 64), dict(causal=True)))
fault("swizzle_last_group", "Work tiles are ordered in groups of 4 heads, and the last group (heads 4 and 5 of 6) is decoded as though it had 4: half of its tile numbers fall on heads 6 and 7 and are skipped, so that "
      "the later two of the four row tiles (rows 64..124) of heads 4 and 5 are never computed and stay 0.", "dense", "float16", False, persistent(32, 64, 8),
      lambda r, d: (qkv(r, d, 6, 3, 125, 125, 32), dict(causal=True)))


# ------------------------------------------------------------------ 5: heads of a group packed into the rows of a tile, dense
def packgqa(BM, BN):
    def make(bug, dt, want):
        def kernel(q, k, v, *, causal=False, window=None, scale=None, softcap=None, alibi_slopes=None, sinks=None, q_offset=None):
            B, (H, T, D) = q.shape[:-3], q.shape[-3:]
            K, S, E = v.shape[-3:]
            G = H // K
            scale = F32(1 / math.sqrt(D) if scale is None else scale)
            qp = np.swapaxes(f32(q).reshape(B + (K, G, T, D)), -3, -2).reshape(B + (K, T * G, D))
            kf, vf = f32(k), f32(v)
            off = offset_of(q_offset, S, T)
            op, ep = np.zeros(B + (K, T * G, E), dt), np.zeros(B + (K, T * G), F32)
            for r0 in range(0, T * G, BM):
                r = np.arange(r0, min(r0 + BM, T * G))
                pos = off + (r // G)[:, None]
                hd = np.arange(K)[:, None] * G + r % G                        # query head of each row
                sl = None if alibi_slopes is None else f32(alibi_slopes)[hd][..., None]
                groups = [State(B + (K, len(r)), E) for _ in range(2)]          # two warp groups share the key tiles
                lane = [np.zeros(B + (K, len(r), 8), F32) for _ in range(2)]
                for it, n0 in enumerate(range(0, S, BN)):
                    j = np.arange(n0, min(n0 + BN, S))
                    s = score_tile(qp[..., r, :], kf[..., j, :], scale, softcap, sl, pos, j)
                    s = np.where(see(pos, j, causal, window), s, -INF)
                    st = groups[it % 2]
                    old = st.m
                    st.add(s, vf[..., j, :], dt)
                    p = np.exp(s - safe(st.m))
                    pad = np.zeros(p.shape[:-1] + (-p.shape[-1] % 8,), F32)
                    p8 = np.concatenate([p, pad], -1)
                    p8 = p8.reshape(p8.shape[:-1] + (-1, 8)).sum(-2)
                    lane[it % 2] = lane[it % 2] * np.exp(old - safe(st.m)) + p8
                for st, ln in zip(groups, lane):
                    ln = ln + ln[..., [4, 5, 6, 7, 0, 1, 2, 3]]
                    ln = ln + ln[..., [2, 3, 0, 1, 6, 7, 4, 5]]
                    if bug != "butterfly_short":
                        ln = ln + ln[..., [1, 0, 3, 2, 5, 4, 7, 6]]
                    st.l = ln[..., :1]
                st = merge_states(groups)
                if bug == "groups_sum_merge":
                    a0 = np.exp(groups[0].m - safe(st.m))
                    st.l = (groups[0].l + groups[1].l) * a0
                if sinks is not None:
                    sh = np.broadcast_to(np.arange(K)[:, None] * G, hd.shape) if bug == "sink_of_first_head" else hd
                    st.sink(f32(sinks)[sh][..., None])
                o, e = finish(st.m, st.l, st.acc, dt)
                op[..., r, :], ep[..., r] = o, e
            out = np.swapaxes(op.reshape(B + (K, T, G, E)), -3, -2).reshape(B + (H, T, E))
            lse = np.swapaxes(ep.reshape(B + (K, T, G)), -2, -1).reshape(B + (H, T))
            return give(out, lse, want)
        return kernel
    return make


fault("sink_of_first_head", "The heads of a group (4) are packed into the rows of one tile and the sink logit is loaded once a tile with h = kv_head * 4: heads 1, 2 and 3 of each group use the sink of the group's first head.",
      "dense", "bfloat16", False, packgqa(64, 64), lambda r, d: (qkv(r, d, 8, 2, 50, 90, 64), dict(causal=True, sinks=(2 * r.standard_normal(8) + 2).astype(F32))))


# ------------------------------------------------------------------ 6: paged (with splits)
def paged(BN, nsplit=1):
    def make(bug, dt, want):
        def kernel(q, key_pages, value_pages, *, block_table, kv_lengths, causal=False, window=None, scale=None, softcap=None,
                   alibi_slopes=None, sinks=None, q_offset=None):
            nb, H, T, D = q.shape
            P, K, ps, E = value_pages.shape
            hm = np.arange(H) // (H // K)
            scale = F32(1 / math.sqrt(D) if scale is None else scale)
            table = np.asarray(block_table).astype(np.int64)
            lens = np.asarray(kv_lengths).astype(np.int64)
            mp = table.shape[1]
            npages = -(-lens // ps)
            if bug == "table_stride":
                w = int(npages.max(initial=1))
                a = (np.arange(nb)[:, None] * w + np.arange(mp)) % max(1, nb * mp)
                table = table.reshape(-1)[a]
            if bug == "page_number_8_bits":
                table = table & 0xFF
            off = offset_of(q_offset, lens, T)
            pos = np.broadcast_to(off + np.arange(T)[:, None], (nb, 1, T, 1))
            mpos = pos[:, :, -1:] if bug == "all_rows_last" else pos
            sl = None if alibi_slopes is None else f32(alibi_slopes)[:, None, None]
            L = lens[:, None, None, None]
            if bug == "length_rounded_to_page":
                L = -(-L // ps) * ps
            sp = np.zeros(nb, np.int64)
            lab = np.zeros(nb, np.int64)
            if window is not None and window[0] is not None:
                start = np.maximum(0, pos[:, 0, 0, 0] - window[0])
                sp = np.minimum(start // ps, mp - 1)
                if bug == "window_start_in_page":
                    lab = start - sp * ps
            left = np.maximum(npages - sp, 0)
            if bug == "split_pages_floor":
                per = np.where(left >= nsplit, left // nsplit, 1)
            else:
                per = -(-left // nsplit)
            qf = f32(q)
            states = []
            bi = np.arange(nb)[:, None]
            for x in range(nsplit):
                st = State((nb, H, T), E)
                for n0 in range(0, int(per.max(initial=0)) * ps, BN):
                    u = n0 + np.arange(BN)                                   # token inside the split
                    tok = (sp + x * per)[:, None] * ps + u                    # (nb, BN) position of the token
                    slot = tok // ps
                    ok = (u < per[:, None] * ps) & (slot < npages[:, None])
                    slot = np.clip(slot, 0, mp - 1)
                    page = table[bi, slot]
                    if bug == "tile_contiguous":
                        page = table[bi, slot[:, :1]] + slot - slot[:, :1]
                    vpage = page
                    if bug == "value_page_ahead":
                        vpage = table[bi, np.clip(np.minimum(slot + 1, npages[:, None] - 1), 0, mp - 1)]
                    page, vpage = np.clip(page, 0, P - 1), np.clip(vpage, 0, P - 1)
                    kt = np.moveaxis(f32(key_pages[page, :, tok % ps]), 2, 1)[:, hm]
                    vt = np.moveaxis(f32(value_pages[vpage, :, tok % ps]), 2, 1)[:, hm]
                    j = (tok + lab[:, None])[:, None, None, :]
                    s = score_tile(qf, kt, scale, softcap, sl, pos, j)
                    s = np.where(see(mpos, j, causal, window) & (j < L) & ok[:, None, None], s, -INF)
                    st.add(s, vt, dt, plain=bug == "nan_past_length")
                if sinks is not None and bug == "sink_every_split":
                    st.sink(f32(sinks)[:, None, None])
                states.append(st)
            st = merge_states(states)
            if sinks is not None and bug != "sink_every_split":
                st.sink(f32(sinks)[:, None, None])
            o, e = finish(st.m, st.l, st.acc, dt)
            return give(o, e, want)
        return kernel
    return make


def pages(rng, dt, H, K, T, D, ps, lens, mp, P=None, **options):
    lens = np.array(lens)
    nb = len(lens)
    P = P or nb * mp + 3
    table = rng.permutation(P)[:nb * mp].reshape(nb, mp).astype(np.int32)
    return ((rng.standard_normal((nb, H, T, D))).astype(dt), rng.standard_normal((P, K, ps, D)).astype(dt),
            rng.standard_normal((P, K, ps, D)).astype(dt)), dict(block_table=table, kv_lengths=lens.astype(np.int32), **options)


def nan_tail(r, d):
    (q, k, v), o = pages(r, d, 4, 2, 2, 32, 16, [45, 70, 16], 6, causal=True)
    v = v.copy()
    k = k.copy()
    for b, n in enumerate(o["kv_lengths"]):
        if n % 16:
            page = o["block_table"][b, n // 16]
            v[page, :, n % 16:] = np.nan
            k[page, :, n % 16:] = np.nan
    return (q, k, v), o


fault("tile_contiguous", "A key tile holds 48 tokens, pages 16: the block table is read once a tile, and the tile's second and third page are taken from the next physical pages of the pool; the first page of each tile is right.",
      "paged", "bfloat16", False, paged(48), lambda r, d: pages(r, d, 8, 2, 1, 64, 16, [130, 47, 91], 9))
fault("page_number_8_bits", "Page numbers are read as 8-bit: pages from 256 on (of 330) become page - 256; the tokens on lower pages are right.", "paged", "float32", False, paged(32),
      lambda r, d: pages(r, d, 4, 2, 1, 32, 8, [200, 155, 90], 26, P=330))
fault("window_start_in_page", "With a left window the walk starts at the page that holds the window's first key, but its tokens are numbered from the window's first key instead of the page's: all keys are taken for ones "
      "start % page_size places later.", "paged", "float16", True, paged(16),
      lambda r, d: pages(r, d, 4, 2, 2, 64, 16, [140, 96, 59], 10, causal=True, window=(37, None)))
fault("value_page_ahead", "The page number is prefetched for the next page before the values are loaded: values come from the following page of the sequence (keys from the right one) on all pages but the last.",
      "paged", "bfloat16", False, paged(16), lambda r, d: pages(r, d, 8, 4, 1, 64, 16, [77, 16, 120], 8))
fault("nan_past_length", "Slots of the last page past the length hold NaN from an earlier tenant; their weights are 0, but the values are not zeroed before the second product, and 0 * NaN makes the output NaN in "
      "sequences 0 and 1; sequence 2 fills its page.", "paged", "bfloat16", True, paged(32), nan_tail)
fault("split_pages_floor", "Pages a split: floor(pages / 4) instead of ceil: of 11, 7 and 6 pages the last 3, 3 and 2 belong to no split and their keys, the newest, are left out; a sequence of 8 pages is right.",
      "paged", "float32", True, paged(32, 4), lambda r, d: pages(r, d, 6, 2, 1, 48, 16, [172, 105, 90, 128], 12))
fault("sink_every_split", "Split-KV with sinks: each of the 4 splits (also empty ones) adds the sink logit to its own row sum, so after the merge the sink counts 4 times.", "paged", "float16", True, paged(16, 4),
      lambda r, d: pages(r, d, 4, 2, 1, 32, 16, [120, 33, 75], 8, sinks=(r.standard_normal(4) + 2).astype(F32)))
fault("all_rows_last", "Decode kernel with 4 speculative rows: the causal bound is that of the last row for all rows, so rows 0, 1, 2 see 3, 2, 1 keys of their future; the last row is right.", "paged", "float32", False, paged(32),
      lambda r, d: pages(r, d, 4, 1, 4, 32, 16, [50, 21, 77], 6, causal=True))


# ------------------------------------------------------------------ 7: packed (varlen)
def packed(BM, BN):
    def make(bug, dt, want):
        def kernel(q, k, v, *, cu_q, cu_kv, causal=False, window=None, scale=None, softcap=None, alibi_slopes=None, sinks=None):
            H, TQ, D = q.shape
            K, TK, E = v.shape
            hm = np.arange(H) // (H // K)
            scale = F32(1 / math.sqrt(D) if scale is None else scale)
            cq, ck = np.asarray(cu_q, np.int64), np.asarray(cu_kv, np.int64)
            qf, kf, vf = f32(q), f32(k)[hm], f32(v)[hm]
            sl = None if alibi_slopes is None else f32(alibi_slopes)[:, None, None]
            lq, lk = np.diff(cq), np.diff(ck)
            out = np.zeros((H, TQ, E), dt)
            if bug == "no_keys_not_written":
                out = np.resize(q, (H, TQ, E)).astype(dt)          # torch.empty: memory that held something else
            lse = np.full((H, TQ), -INF, F32)
            if sinks is not None and bug != "no_keys_not_written":
                lse[:] = f32(sinks)[:, None]
            for g0 in range(0, TQ, BM):
                g1 = min(TQ, g0 + BM)
                segs = [(b, max(g0, cq[b]), min(g1, cq[b + 1])) for b in range(len(lq)) if cq[b] < g1 and cq[b + 1] > g0]
                if bug == "tile_one_sequence":
                    segs = [(segs[0][0], g0, g1)] if segs else []
                for b, r0, r1 in segs:
                    rows = np.arange(r0, r1)
                    if lk[b] == 0:
                        continue
                    off = lk[b] - lq[b]
                    if bug == "offset_of_longest":
                        off = lk.max() - lq.max()
                    pos = (off + rows - cq[b])[:, None]
                    apos = (off + rows)[:, None] if bug == "alibi_global_row" else pos
                    base = cq[b] if bug == "keys_at_cu_q" else ck[b]
                    st = State((H, len(rows)), E)
                    hi = lk[b]
                    if causal:
                        hi = min(hi, max(0, int(pos[-1, 0]) + 1))
                    for n0 in range(0, int(hi), BN):
                        j = np.arange(n0, n0 + BN)
                        ld = np.minimum(base + j, TK - 1)
                        s = score_tile(qf[:, rows], kf[:, ld], scale, softcap, sl, apos, j)
                        end = lk[b] if bug != "tile_into_next" else (lk[b] if b + 1 == len(lq) else -(-lk[b] // 16) * 16)
                        s = np.where(see(pos, j, causal, window) & (j < end) & (base + j < TK), s, -INF)
                        st.add(s, vf[:, ld], dt)
                    if sinks is not None:
                        st.sink(f32(sinks)[:, None, None])
                    o, e = finish(st.m, st.l, st.acc, dt)
                    out[:, rows], lse[:, rows] = o, e
            if bug == "lse_not_transposed":
                lse = np.ascontiguousarray(lse.T).reshape(H, TQ)
            return give(out, lse, want)
        return kernel
    return make


def seqs(rng, dt, H, K, D, lq, lk, **options):
    q, _, _ = qkv(rng, dt, H, 1, sum(lq), 1, D)
    _, k, v = qkv(rng, dt, 1, K, 1, sum(lk), D)
    cu = [np.concatenate([[0], np.cumsum(x)]).astype(np.int32) for x in (lq, lk)]
    return (q, k, v), dict(cu_q=cu[0], cu_kv=cu[1], **options)


fault("tile_one_sequence", "Row tiles of 32 run over the packed rows without regard to the boundaries and belong to the sequence of their first row: rows of the next sequence in a straddling tile attend to the keys of the previous one.",
      "packed", "bfloat16", False, packed(32, 64), lambda r, d: seqs(r, d, 6, 2, 64, [45, 70, 30], [60, 90, 51]))
fault("offset_of_longest", "The causal offset of every sequence is max_kv - max_q (90 - 60 = 30) instead of its own kv_len - q_len: sequence 1 (difference 0) and 2 (difference 36) have a shifted diagonal, sequence 0 is right.",
      "packed", "float32", False, packed(64, 32), lambda r, d: seqs(r, d, 4, 2, 32, [60, 33, 41], [90, 33, 77], causal=True))
fault("alibi_global_row", "ALiBi distances take the row number in the packed array instead of the row in its sequence: sequence 0 is right, in sequences 1 and 2 rows are taken for rows cu_q[b] = 20 and 71 places further on.",
      "packed", "float32", True, packed(32, 32), lambda r, d: seqs(r, d, 4, 4, 32, [20, 51, 37], [20, 51, 37], alibi_slopes=np.array([0.3, 0.1, 0.05, 0.02], F32)))
fault("no_keys_not_written", "Sequences without keys return early and the output is not initialised: rows of sequence 1 (q_len 23, kv_len 0) hold what the memory held before, here query data, instead of 0.",
      "packed", "bfloat16", False, packed(64, 64), lambda r, d: seqs(r, d, 4, 2, 48, [40, 23, 50], [55, 0, 61]))
fault("lse_not_transposed", "lse is written as (total_q, H) and handed out reshaped instead of transposed to (H, total_q); the output is right.",
      "packed", "float16", True, packed(64, 32), lambda r, d: seqs(r, d, 6, 3, 32, [38, 5, 61], [38, 44, 61], causal=True))


# ------------------------------------------------------------------ 8: latent (MLA), absorbed
def latent(BM, BN):
    def make(bug, dt, want):
        def kernel(q_nope, q_rope, kv_latent, k_rope, w_uk, w_uv, *, form="absorb", causal=False, window=None, scale=None,
                   softcap=None, kv_lengths=None, q_offset=None):
            B, (H, T, N) = q_nope.shape[:-3], q_nope.shape[-3:]
            R, (S, C), E = q_rope.shape[-1], kv_latent.shape[-2:], w_uv.shape[-2]
            scale = F32(1 / math.sqrt(N + R) if scale is None else scale)
            c, kr = f32(kv_latent), f32(k_rope)
            if bug == "rope_column_rounded":
                flat = np.concatenate([c, kr], -1).reshape(B + (S * (C + R),))
                a = (np.arange(S)[:, None] * (C + R) + -(-C // 64) * 64 + np.arange(R)) % (S * (C + R))
                kr = flat[..., a]
            qa = low(f32(q_nope) @ f32(w_uk), dt)
            qa = np.swapaxes(qa, -3, -2).reshape(B + (T * H, C))                 # row t*H + h
            qr = np.swapaxes(f32(q_rope), -3, -2).reshape(B + (T * H, R))
            lens = np.asarray(S if kv_lengths is None else np.minimum(kv_lengths, S), np.int64)
            off = offset_of(q_offset, lens, T)
            off = off[..., 0] if isinstance(off, np.ndarray) else off
            L = np.broadcast_to(lens, B)[..., None, None]
            lat, lse = np.zeros(B + (T * H, C), F32), np.zeros(B + (T * H,), F32)
            for r0 in range(0, T * H, BM):
                r = np.arange(r0, min(r0 + BM, T * H))
                pos = off + (r % T if bug == "row_of_head_order" else r // H)[:, None]
                st = State(B + (len(r),), C)
                for it, n0 in enumerate(range(0, S, BN)):
                    j = np.arange(n0, min(n0 + BN, S))
                    if bug == "rope_unscaled":
                        s = (qa[..., r, :] @ np.swapaxes(c[..., j, :], -1, -2)) * scale + qr[..., r, :] @ np.swapaxes(kr[..., j, :], -1, -2)
                    else:
                        s = (qa[..., r, :] @ np.swapaxes(c[..., j, :], -1, -2) + qr[..., r, :] @ np.swapaxes(kr[..., j, :], -1, -2)) * scale
                    if softcap is not None:
                        s = F32(softcap) * np.tanh(s / F32(softcap))
                    s = np.where(see(pos, j, causal, window) & (j < L), s, -INF)
                    st.add(s, c[..., j, :], dt, stale_from=C // 2 if bug == "half_not_rescaled" else None)
                o, e = finish(st.m, st.l, st.acc, F32)
                lat[..., r, :], lse[..., r] = o, e
            if bug == "lse_base_two":
                lse = lse * LOG2E
            lat = low(np.swapaxes(lat.reshape(B + (T, H, C)), -3, -2), dt)
            wv = f32(w_uv)
            if bug == "head_block_moved_back" and H >= 4 and H % 4:
                h = np.arange(H)
                wv = wv[np.where(h >= H // 4 * 4, h - H // 4 * 4 + H - 4, h)]
            out = lat @ np.swapaxes(wv, -1, -2)
            return give(out.astype(dt), np.ascontiguousarray(np.swapaxes(lse.reshape(B + (T, H)), -1, -2)), want)
        return kernel
    return make


def mla(rng, dt, H, T, S, N, R, C, E, batch=(), **options):
    n = rng.standard_normal
    return (n(batch + (H, T, N)).astype(dt), n(batch + (H, T, R)).astype(dt), n(batch + (S, C)).astype(dt), n(batch + (S, R)).astype(dt),
            (n((H, N, C)) / math.sqrt(C)).astype(dt), (n((H, E, C)) / math.sqrt(C)).astype(dt)), options


fault("rope_column_rounded", "Latent and rope part stand side by side in one cache row (96 + 32 numbers) and the rope part is read from column 128 = 96 rounded up to 64, that is, from the beginning of the next key's latent "
      "(the last key wraps to the first).", "latent", "float32", True, latent(64, 64), lambda r, d: mla(r, d, 6, 3, 130, 32, 32, 96, 32, causal=True))
fault("row_of_head_order", "Rows are packed as token * H + head, but their position is taken as row % T instead of row // H: heads of one token get different causal bounds, rows where row % T == row // H are right.",
      "latent", "bfloat16", True, latent(64, 32), lambda r, d: mla(r, d, 6, 9, 60, 32, 16, 64, 32, causal=True))
fault("half_not_rescaled", "Two warp groups hold half of the latent accumulator each; the second half (latent columns 56..111) is not rescaled when the maximum rises at a later key tile of 32.", "latent", "bfloat16", False, latent(64, 32),
      lambda r, d: mla(r, d, 10, 4, 150, 48, 16, 112, 48, batch=(2,), kv_lengths=np.array([150, 101])))
fault("lse_base_two", "lse is handed out in base 2 (log2 of the row sum plus the maximum in base 2), not multiplied by ln 2; the output is right.", "latent", "float32", True, latent(32, 64),
      lambda r, d: mla(r, d, 5, 7, 90, 32, 16, 48, 24))
fault("head_block_moved_back", "The second product with w_uv takes heads in blocks of 4; the last partial block (heads 4 and 5 of 6) reads the matrices from H - 4 on: heads 4 and 5 are multiplied with w_uv of heads 2 and 3.",
      "latent", "float32", False, latent(64, 64), lambda r, d: mla(r, d, 6, 11, 100, 32, 16, 64, 40, causal=True))


def main():
    import sys
    import time
    from refattn.oracle import check
    names = {"dense": {}, "packed": {"function": "packed_attention"}, "paged": {"function": "paged_attention"},
             "latent": {"function": "latent_attention"}}
    good = 0
    for name, _, tags, build in FAULTS:
        if len(sys.argv) > 1 and name not in sys.argv[1:]:
            continue
        res, ms = [], 0
        for wrong in (False, True):
            kernel, arrays, options = build(wrong)
            copies = [np.array(a, copy=True) for a in arrays]
            kernel(*arrays, **options)
            t0 = time.perf_counter()
            r = kernel(*arrays, **options)
            ms = max(ms, 1e3 * (time.perf_counter() - t0))
            assert all(np.array_equal(a.astype(F32), c.astype(F32), equal_nan=True) for a, c in zip(arrays, copies)), name
            o, e = r if tags["lse"] else (r, None)
            assert o.dtype == DT[tags["dtype"]], name
            res.append(check(o, *arrays, lse=e, **names[tags["form"]], **options).passed)
        ok = res == [True, False]
        good += ok
        print(f"{'ok ' if ok else 'BAD'} {name:28s} right passes {res[0]}, wrong passes {res[1]}  {ms:.1f} ms {'SLOW' if ms > 20 else ''}")
    print(good, "of", len(FAULTS), "pass the verification")
    print({k: sum(t["form"] == k for _, _, t, _ in FAULTS) for k in names}, {k: sum(t["dtype"] == k for _, _, t, _ in FAULTS) for k in DT},
          "lse", sum(t["lse"] for _, _, t, _ in FAULTS))


if __name__ == "__main__":
    main()
