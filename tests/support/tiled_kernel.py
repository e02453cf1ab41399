"""One tiled attention kernel in NumPy, right by itself, whose stages can be replaced: each wrong kernel is a stage.

`TiledKernel(score=lambda s, at: 2 * s)` doubles the scores. `at` says where the tile stands: `b`, and `head`,
`row`, `key` that broadcast to (H, rows, keys); sizes `T`, `S` (keys stored), `D`, `group`; `length`, `offset`,
`scale`, the options of the call, and the number `tile` of the tile among `tiles` that the row tile visits.
"""

from types import SimpleNamespace

import numpy as np


class TiledKernel:
    """Called with the arrays of `form` and the options of its function; returns (output, lse)."""

    def __init__(self, form="dense", tile=16, row_tile=16, splits=1, **stages):
        self.form, self.tile, self.row_tile, self.splits = form, tile, row_tile, splits
        for name, stage in stages.items():
            if not hasattr(type(self), name):
                raise TypeError(f"no stage {name}")
            setattr(self, name, stage)

    def __call__(self, *arrays, **options):
        with np.errstate(all="ignore"):
            return getattr(self, f"_{self.form}")(*arrays, **options)

    # stages, in their order

    def load(self, name, x, at):
        """Query (H, T, D), key or value (K, S, .) of a sequence."""
        return x

    def kv_head(self, head, at):
        return head // at.group

    def value_head(self, head, at):
        return self.kv_head(head, at)

    def page(self, pages, at):
        """Physical pages of a sequence, (places,)."""
        return pages

    def spans(self, spans, at):
        """(first key, end) of the tiles that a row tile visits."""
        return spans

    def score(self, s, at):
        return s

    def bias(self, s, at):
        if at.bias is not None:
            s = s + np.broadcast_to(at.bias, (*at.bias.shape[:-2], at.T, at.S))[..., at.rows, at.span]
        if at.alibi_slopes is not None:
            s = s - at.alibi_slopes[:, None, None] * np.abs(at.row + at.offset - at.key)
        return s

    def keep(self, keep, at):
        return keep

    def hidden(self, s, at):
        """What stands in place of the scores of hidden keys."""
        return -np.inf

    def start(self, at):
        """The running maximum before the first tile."""
        return -np.inf

    def top(self, new, old, at):
        return new

    def safe(self, top, at):
        """The maximum that is subtracted, where no key was seen so far."""
        return np.where(np.isneginf(top), 0.0, top)

    def weigh(self, p, at):
        """exp(score - maximum), as multiplied with the values."""
        return p

    def counted(self, p, at):
        """The same, as added to the sum."""
        return p

    def rescale(self, factor, at):
        """Factor of what was accumulated before."""
        return factor

    def rescale_sum(self, factor, at):
        return factor

    def finish(self, total, at):
        """What the accumulator is divided by."""
        return np.where(total == 0, 1.0, total)

    def split_lse(self, lse, at):
        """lse of one split, (H, rows, 1), as merged with others; `at.split` is its number."""
        return lse

    def lse(self, lse, at):
        return lse

    def output(self, output, at):
        return output

    # the loop

    def sequence(self, b, query, key, value, length=None, offset=None, **options):
        """Output (H, T, E) and lse (H, T) of one sequence."""
        heads, (kv_heads, num_keys) = len(query), key.shape[:2]
        at = SimpleNamespace(b=b, T=query.shape[1], S=num_keys, D=query.shape[-1], H=heads)
        at.group, at.head = heads // max(kv_heads, 1), np.arange(heads)[:, None, None]
        for name in ("causal", "window", "chunk", "mask", "bias", "alibi_slopes", "scale", "sequences"):
            setattr(at, name, options.pop(name, None))
        if options:
            raise NotImplementedError(f"options {sorted(options)}")
        at.length = num_keys if length is None else int(length)
        at.offset = num_keys - at.T if offset is None else int(offset)
        at.scale = at.D**-0.5 if at.scale is None else at.scale
        query, key, value = (
            np.asarray(self.load(name, np.asarray(x, np.float64), at))
            for name, x in (("query", query), ("key", key), ("value", value))
        )
        of = self.kv_head(np.arange(heads), at), self.value_head(np.arange(heads), at)
        key, value = (x[np.clip(index, 0, len(x) - 1)] for x, index in zip((key, value), of, strict=True))
        output = np.zeros((heads, at.T, value.shape[-1]))
        lse = np.full((heads, at.T), -np.inf)
        for first in range(0, at.T, self.row_tile):
            at.rows = slice(first, min(first + self.row_tile, at.T))
            at.row = np.arange(at.T)[at.rows][None, :, None]
            output[:, at.rows], lse[:, at.rows] = self._row_tile(at, query[:, at.rows], key, value)
        return output, lse

    def _row_tile(self, at, query, key, value):
        spans = [(n, min(n + self.tile, at.length)) for n in range(0, at.length, self.tile)]
        spans, parts = self.spans(spans, at), []
        each = max(-(-len(spans) // self.splits), 1)
        for at.split in range(self.splits):
            mine = spans[at.split * each : (at.split + 1) * each]
            parts.append(self._tiles(at, mine, query, key, value))
        if self.splits == 1:
            output, lse = parts[0]
        else:
            outputs = np.array([part[0] for part in parts])
            lses = []
            for at.split, part in enumerate(parts):
                lses.append(self.split_lse(part[1], at))
            lses = np.array(lses)
            top = lses.max(0)
            w = np.exp(lses - np.where(np.isneginf(top), 0.0, top))
            total = w.sum(0)
            output = (w * outputs).sum(0) / np.where(total == 0, 1.0, total)
            lse = np.where(np.isneginf(top), top, top + np.log(total))
        return self.output(output, at), self.lse(lse, at)[..., 0]

    def _tiles(self, at, spans, query, key, value):
        shape = (*query.shape[:2], 1)
        top = np.broadcast_to(self.start(at), shape).astype(float)
        total, acc = np.zeros(shape), np.zeros((*query.shape[:2], value.shape[-1]))
        at.tiles = len(spans)
        for at.tile, span in enumerate(spans):
            at.span = slice(*span)
            at.key = np.arange(*span)[None, None, :]
            k, v = (np.nan_to_num(x[:, at.span]) for x in (key, value))
            s = self.bias(self.score(at.scale * (query @ np.swapaxes(k, -1, -2)), at), at)
            keep = np.broadcast_to(self.keep(self.visible(at), at), s.shape)
            s = np.where(keep, s, self.hidden(s, at))
            new = self.top(np.maximum(top, s.max(-1, keepdims=True)), top, at)
            safe = self.safe(new, at)
            p = np.exp(s - safe)
            factor = np.exp(top - safe)
            total = total * self.rescale_sum(factor, at) + self.counted(p, at).sum(-1, keepdims=True)
            acc = acc * self.rescale(factor, at) + self.weigh(p, at) @ v
            top = new
        at.top = top
        lse = np.where(total == 0, -np.inf, np.where(np.isneginf(top), 0.0, top) + np.log(total))
        return acc / self.finish(total, at), lse

    def visible(self, at):
        position = at.row + at.offset
        keep = at.key < at.length
        left, right = at.window or (None, None)
        if at.causal:
            right = 0 if right is None else min(right, 0)
        if left is not None:
            keep = keep & (at.key >= position - left)
        if right is not None:
            keep = keep & (at.key <= position + right)
        if at.mask is not None:
            keep = keep & np.broadcast_to(at.mask, (*at.mask.shape[:-2], at.T, at.S))[..., at.rows, at.span]
        return keep

    # the forms

    def _dense(self, query, key, value, kv_lengths=None, q_offset=None, **options):
        batch, dtype = query.shape[:-3], query.dtype
        query, key, value = (x.reshape(-1, *x.shape[-3:]) for x in (query, key, value))
        per = {
            name: np.broadcast_to(options[name], (*batch, *np.shape(options[name])[-3:])).reshape(
                len(query), *np.shape(options[name])[-3:]
            )
            for name in ("mask", "bias")
            if np.ndim(options.get(name)) > 3
        }
        results = []
        for b in range(len(query)):
            own = options | {name: array[b] for name, array in per.items()}
            length = (
                None if kv_lengths is None else np.broadcast_to(kv_lengths, batch or (1,)).reshape(-1)[b]
            )
            offset = (
                q_offset if q_offset is None else np.broadcast_to(q_offset, batch or (1,)).reshape(-1)[b]
            )
            results.append(self.sequence(b, query[b], key[b], value[b], length, offset, **own))
        output, lse = (np.array(part) for part in zip(*results, strict=True))
        return _typed(output.reshape(*batch, *output.shape[1:]), lse.reshape(*batch, *lse.shape[1:]), dtype)

    def _packed(self, query, key, value, cu_q, cu_kv, **options):
        output, lse = np.zeros((*query.shape[:2], value.shape[-1])), np.full(query.shape[:2], -np.inf)
        for b in range(len(cu_q) - 1):
            rows, keys = slice(*cu_q[b : b + 2]), slice(*cu_kv[b : b + 2])
            output[:, rows], lse[:, rows] = self.sequence(
                b, query[:, rows], key[:, keys], value[:, keys], **options
            )
        return _typed(output, lse, query.dtype)

    def _paged(self, query, key_pages, value_pages, block_table, kv_lengths, **options):
        results = []
        for b, row in enumerate(block_table):
            size = key_pages.shape[2]
            at = SimpleNamespace(b=b, table=block_table, size=size, length=int(kv_lengths[b]))
            places = -(-at.length // size)
            pages = np.zeros(len(row), int)
            pages[:places] = np.clip(self.page(row[:places].astype(int), at), 0, len(key_pages) - 1)
            key, value = (
                np.swapaxes(x[pages], 0, 1).reshape(x.shape[1], -1, x.shape[-1])
                for x in (key_pages, value_pages)
            )
            offset = at.length - query.shape[2]
            results.append(self.sequence(b, query[b], key, value, at.length, offset, **options))
        return _typed(*(np.array(part) for part in zip(*results, strict=True)), query.dtype)

    def _latent(self, q_nope, q_rope, kv_latent, k_rope, w_uk, w_uv, form="absorb", **options):
        dtype, batch = q_nope.dtype, q_nope.shape[:-3]
        q_nope, q_rope = (np.float64(x).reshape(-1, *x.shape[-3:]) for x in (q_nope, q_rope))
        kv_latent, k_rope = (np.float64(x).reshape(-1, *x.shape[-2:]) for x in (kv_latent, k_rope))
        options.setdefault("scale", (q_nope.shape[-1] + q_rope.shape[-1]) ** -0.5)
        results = []
        for b, latent in enumerate(kv_latent):
            nope = latent @ np.swapaxes(np.float64(w_uk), -1, -2)  # (H, S, N)
            rope = np.broadcast_to(k_rope[b], (len(nope), *k_rope[b].shape))
            value = latent @ np.swapaxes(np.float64(w_uv), -1, -2)
            query = np.concatenate([q_nope[b], q_rope[b]], -1)
            results.append(self.sequence(b, query, np.concatenate([nope, rope], -1), value, **options))
        output, lse = (np.array(part) for part in zip(*results, strict=True))
        return _typed(output.reshape(*batch, *output.shape[1:]), lse.reshape(*batch, *lse.shape[1:]), dtype)


def _typed(output, lse, dtype):
    return output.astype(dtype), lse.astype(np.float64 if dtype == np.float64 else np.float32)
