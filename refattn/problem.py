"""From the arrays a caller hands over to checked problems; every function of both packages starts here.

All checks run before any work, in this order: kind and dtype, rank, how shapes relate, values. Each function has its own dataclass:
`Problem` (dense), `PackedProblem`, `PagedProblem`, `LatentProblem`, `BlockLocalProblem`. Arrays of numbers are not copied: they keep the caller's
dtype and strides, and bias and masks are broadcast views. Integers decide addresses and are copied before they are checked, so that no thread can
change them in between. The packed, paged and block-local ones can be cut into dense problems.
"""

import math
from dataclasses import dataclass, fields

import numpy as np

from refattn.interop import as_float_array, as_int_array
from refattn.memory import ensure_allocatable
from refattn.options import PER_ENTRY, PER_HEAD, PER_SCORE, checked_integer, checked_options


@dataclass(frozen=True, eq=False)
class Options:
    """The options in their one form; see `refattn.options`. Shapes: batch stands for any number of leading axes."""

    bias: np.ndarray | None  # (*batch, H, T, S), broadcast view
    mask: np.ndarray | None  # (*batch, H, T, S), broadcast view, True = may attend
    scale: float
    left: int | None  # visible iff position - left <= j; None = unlimited
    right: int | None  # visible iff j <= position + right; causal is 0
    softcap: float | None
    alibi_slopes: np.ndarray | None  # (*batch, H)
    sinks: np.ndarray | None  # (*batch, H)
    kv_lengths: np.ndarray  # (*batch,) int64
    q_offset: np.ndarray  # (*batch,) int64, key position of row 0
    dropout_mask: np.ndarray | None  # (*batch, H, T, S), broadcast view, True = keep
    keep_scale: float  # 1 / (1 - dropout_rate)

    def options(self):
        """The options alone, as keywords for another problem of the same shape."""
        return {field.name: getattr(self, field.name) for field in fields(Options)}

    def of_heads(self, heads):
        """The options of some query heads, a slice of them."""
        places = dict.fromkeys(PER_SCORE, (..., heads, slice(None), slice(None))) | dict.fromkeys(PER_HEAD, (..., heads))
        return Options(**cut(self.options(), places))


def cut(options, places):
    """The options, each of those named in `places` cut to its place where it is given."""
    return {name: value if value is None or name not in places else value[places[name]] for name, value in options.items()}


def cut_options(problem, index, tile):
    """The options of one batch entry, bias and masks cut to `tile` of their (H, T, S)."""
    return cut(problem.options(), dict.fromkeys(PER_SCORE, tile) | dict.fromkeys(PER_HEAD + PER_ENTRY, index))


@dataclass(frozen=True, eq=False)
class Problem(Options):
    """Dense attention: query (*batch, H, T, D), key (*batch, K, S, D), value (*batch, K, S, E)."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    query_low: np.ndarray | None = None  # what float64 drops of arrays that are themselves computed; never set for a caller's
    key_low: np.ndarray | None = None
    value_low: np.ndarray | None = None

    @property
    def batch_shape(self):
        return self.query.shape[:-3]

    @property
    def num_heads(self):
        return self.query.shape[-3]

    @property
    def num_kv_heads(self):
        return self.key.shape[-3]

    @property
    def group_size(self):
        return self.num_heads // self.num_kv_heads

    @property
    def q_len(self):
        return self.query.shape[-2]

    @property
    def kv_len(self):
        return self.key.shape[-2]

    @property
    def head_dim(self):
        return self.query.shape[-1]

    @property
    def v_head_dim(self):
        return self.value.shape[-1]


def attention_problem(query, key, value, **options):
    """Check the arguments of `refattn.attention`."""
    query, key, value = floating(query=query, key=key, value=value)
    at_least_axes(3, "(heads, length, dim)", query=query, key=key, value=value)
    require_same_axes(query, key, value)
    if not query.shape[:-3] == key.shape[:-3] == value.shape[:-3]:
        raise ValueError(
            "query, key and value must have the same batch axes; "
            f"got query.shape={query.shape}, key.shape={key.shape}, value.shape={value.shape}."
        )
    num_heads, q_len, head_dim = query.shape[-3:]
    kv_len = key.shape[-2]
    require_head_ratio(num_heads, key.shape[-3])
    require_head_dim(head_dim, key.shape[-1])
    if value.shape[:-1] != key.shape[:-1]:
        expected = ", ".join(str(size) for size in key.shape[:-1])
        hint = " The layout is (..., heads, length, dim)." if value.shape[-3:-1] == key.shape[-2:-4:-1] else ""
        raise ValueError(f"value must have shape ({expected}, any) to match key; got value.shape={value.shape}.{hint}")
    require_memory(query.shape[:-3], num_heads, q_len, value.shape[-1])
    checked = checked_options(query.shape[:-3], num_heads, q_len, kv_len, head_dim, **options)
    return Problem(query=query, key=key, value=value, **checked)


def multi_head_problem(query, key, value, **options):
    """Check the arguments of `refattn.multi_head_attention`."""
    problem = attention_problem(query, key, value, **options)
    if problem.num_kv_heads != problem.num_heads:
        raise ValueError(
            "multi_head_attention must have num_kv_heads equal to num_heads; "
            f"got query heads {problem.num_heads}, key heads {problem.num_kv_heads}."
        )
    return problem


def multi_query_problem(query, key, value, **options):
    """Check the arguments of `refattn.multi_query_attention`."""
    problem = attention_problem(query, key, value, **options)
    if problem.num_kv_heads != 1:
        raise ValueError(f"multi_query_attention must have num_kv_heads equal to 1; got key heads {problem.num_kv_heads}.")
    return problem


def require_memory(batch_shape, num_heads, q_len, v_head_dim):
    """Output and lse, and the length and offset of every batch entry, must fit."""
    ensure_allocatable(8 * math.prod(batch_shape) * (num_heads * q_len * (v_head_dim + 1) + 2), "output and lse")


def floating(**arrays):
    return [as_float_array(array, name) for name, array in arrays.items()]


def at_least_axes(count, layout, **arrays):
    for name, array in arrays.items():
        if array.ndim < count:
            raise ValueError(f"{name} must have at least {count} axes, the last ones {layout}; got {name}.shape={array.shape}.")


def exactly_axes(count, layout, **arrays):
    for name, array in arrays.items():
        if array.ndim != count:
            raise ValueError(f"{name} must have {count} axes {layout}; got {name}.shape={array.shape}.")


def require_same_axes(query, key, value):
    if not query.ndim == key.ndim == value.ndim:
        raise ValueError(
            "query, key and value must have the same number of axes; "
            f"got query.ndim={query.ndim}, key.ndim={key.ndim}, value.ndim={value.ndim}."
        )


def require_head_ratio(num_heads, num_kv_heads):
    if num_heads < 1 or num_kv_heads < 1 or num_heads % num_kv_heads:
        raise ValueError(f"num_heads must be a multiple of num_kv_heads, both at least 1; got query heads {num_heads}, key heads {num_kv_heads}.")


def require_head_dim(head_dim, key_head_dim):
    if head_dim < 1 or key_head_dim != head_dim:
        raise ValueError(f"query and key must have the same head_dim >= 1; got query head_dim {head_dim}, key head_dim {key_head_dim}.")


@dataclass(frozen=True, eq=False)
class PackedProblem(Options):
    """N sequences end to end: query (H, total_q, D), key (K, total_kv, D), value (K, total_kv, E); batch of the options is (N,)."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    cu_q: np.ndarray  # (N + 1,) int64
    cu_kv: np.ndarray  # (N + 1,) int64

    @property
    def num_sequences(self):
        return len(self.cu_q) - 1

    def sequence(self, n):
        """Sequence n as a dense problem without batch axes."""
        rows, keys = slice(self.cu_q[n], self.cu_q[n + 1]), slice(self.cu_kv[n], self.cu_kv[n + 1])
        tile = (slice(None), rows, keys)
        return Problem(
            query=self.query[:, rows], key=self.key[:, keys], value=self.value[:, keys], **cut_options(self, n, tile)
        )


def packed_problem(query, key, value, cu_q, cu_kv, **options):
    """Check the arguments of `refattn.packed_attention`."""
    query, key, value = floating(query=query, key=key, value=value)
    cu_q, cu_kv = as_int_array(cu_q, "cu_q"), as_int_array(cu_kv, "cu_kv")
    exactly_axes(3, "(heads, total_len, dim)", query=query, key=key, value=value)
    num_heads, total_q, head_dim = query.shape
    num_kv_heads, total_kv, key_head_dim = key.shape
    require_head_ratio(num_heads, num_kv_heads)
    require_head_dim(head_dim, key_head_dim)
    if value.shape[:2] != key.shape[:2]:
        raise ValueError(f"value must have shape ({num_kv_heads}, {total_kv}, any) to match key; got value.shape={value.shape}.")
    require_memory((), num_heads, total_q, value.shape[-1])
    require_boundaries(cu_q, "cu_q", total_q, "query")
    require_boundaries(cu_kv, "cu_kv", total_kv, "key")
    if len(cu_q) != len(cu_kv):
        raise ValueError(
            "cu_q and cu_kv must have the same length, one more than there are sequences; "
            f"got len(cu_q)={len(cu_q)}, len(cu_kv)={len(cu_kv)}."
        )
    checked = checked_options(
        (len(cu_q) - 1,), num_heads, np.diff(cu_q), np.diff(cu_kv), head_dim, (num_heads, total_q, total_kv), **options
    )  # fmt: skip
    return PackedProblem(query=query, key=key, value=value, cu_q=cu_q, cu_kv=cu_kv, **checked)


def require_boundaries(boundaries, name, total, of):
    if boundaries.ndim != 1 or len(boundaries) < 1:
        raise ValueError(f"{name} must have shape (num_sequences + 1,); got {name}.shape={boundaries.shape}.")
    if boundaries[0] != 0 or boundaries[-1] != total:
        raise ValueError(
            f"{name} must run from 0 to the total length of {of}, {total}; got {name}[0]={boundaries[0]}, {name}[-1]={boundaries[-1]}. "
            "Lengths become boundaries with np.cumsum([0, *lengths])."
        )
    falls = np.flatnonzero(boundaries[1:] < boundaries[:-1])  # differences could wrap around int64
    if len(falls):
        at = falls[0]
        raise ValueError(f"{name} must not decrease; got {name}[{at}]={boundaries[at]}, {name}[{at + 1}]={boundaries[at + 1]}.")


@dataclass(frozen=True, eq=False)
class PagedProblem(Options):
    """Keys and values in pages: query (B, H, T, D), key_pages (P, K, page_size, D), value_pages (P, K, page_size, E)."""

    query: np.ndarray
    key_pages: np.ndarray
    value_pages: np.ndarray
    block_table: np.ndarray  # (B, max_pages) int64; entries at or past the length are anything

    @property
    def page_size(self):
        return self.key_pages.shape[2]

    def sequence(self, b):
        """Sequence b as a dense problem without batch axes; only the pages within its length are read."""
        length = int(self.kv_lengths[b])
        pages = self.block_table[b, : -(-length // self.page_size)]
        gathered = [side[pages].swapaxes(0, 1) for side in (self.key_pages, self.value_pages)]  # [K, pages, page_size, dim]
        key, value = (side.reshape(side.shape[0], side.shape[1] * side.shape[2], side.shape[3])[:, :length] for side in gathered)
        return Problem(query=self.query[b], key=key, value=value, **cut_options(self, b, (b, ..., slice(length))))


def paged_problem(query, key_pages, value_pages, block_table, kv_lengths, **options):
    """Check the arguments of `refattn.paged_attention`."""
    query, key_pages, value_pages = floating(query=query, key_pages=key_pages, value_pages=value_pages)
    block_table = as_int_array(block_table, "block_table")
    exactly_axes(4, "(batch, heads, length, dim)", query=query)
    exactly_axes(4, "(num_pages, num_kv_heads, page_size, dim)", key_pages=key_pages, value_pages=value_pages)
    batch, num_heads, q_len, head_dim = query.shape
    num_pages, num_kv_heads, page_size, key_head_dim = key_pages.shape
    require_head_ratio(num_heads, num_kv_heads)
    require_head_dim(head_dim, key_head_dim)
    if value_pages.shape[:3] != key_pages.shape[:3]:
        raise ValueError(
            f"value_pages must have shape ({num_pages}, {num_kv_heads}, {page_size}, any) to match key_pages; "
            f"got value_pages.shape={value_pages.shape}."
        )
    if page_size < 1:
        raise ValueError(f"key_pages must have a page_size of at least 1; got key_pages.shape={key_pages.shape}.")
    if block_table.ndim != 2 or len(block_table) != batch:
        raise ValueError(f"block_table must have shape ({batch}, max_pages), one row a sequence; got block_table.shape={block_table.shape}.")
    if kv_lengths is None:
        raise TypeError("kv_lengths must be given: without it the filled part of the last page is unknown; got kv_lengths=None.")
    require_memory((batch,), num_heads, q_len, value_pages.shape[-1])
    capacity = block_table.shape[1] * page_size
    checked = checked_options((batch,), num_heads, q_len, capacity, head_dim, kv_lengths=kv_lengths, **options)
    num_used = -(-checked["kv_lengths"] // page_size)
    table = block_table[:, : num_used.max(initial=0)]
    ensure_allocatable(8 * table.shape[1] + 3 * table.size, "page numbers and their checks")  # numbers of 8 bytes, truth values of 1
    wrong = (np.arange(table.shape[1]) < num_used[:, None]) & ((table < 0) | (table >= num_pages))
    if wrong.any():
        b, page = np.argwhere(wrong)[0]
        raise ValueError(
            f"block_table must hold pages between 0 and {num_pages - 1} within each length; "
            f"got block_table[{b}, {page}]={block_table[b, page]}."
        )
    return PagedProblem(query=query, key_pages=key_pages, value_pages=value_pages, block_table=block_table, **checked)


@dataclass(frozen=True, eq=False)
class LatentProblem(Options):
    """MLA: q_nope (*batch, H, T, N), q_rope (*batch, H, T, R), kv_latent (*batch, S, C), k_rope (*batch, S, R), w_uk (H, N, C), w_uv (H, E, C)."""

    q_nope: np.ndarray
    q_rope: np.ndarray
    kv_latent: np.ndarray
    k_rope: np.ndarray
    w_uk: np.ndarray
    w_uv: np.ndarray
    form: str  # "absorb" or "expand"


def latent_problem(q_nope, q_rope, kv_latent, k_rope, w_uk, w_uv, form, **options):
    """Check the arguments of `refattn.latent_attention`."""
    q_nope, q_rope, kv_latent, k_rope, w_uk, w_uv = floating(
        q_nope=q_nope, q_rope=q_rope, kv_latent=kv_latent, k_rope=k_rope, w_uk=w_uk, w_uv=w_uv
    )
    if not isinstance(form, str):
        raise TypeError(f"form must be 'absorb' or 'expand'; got form={form!r}.")
    if form not in ("absorb", "expand"):
        raise ValueError(f"form must be 'absorb' or 'expand'; got form={form!r}.")
    at_least_axes(3, "(heads, length, dim)", q_nope=q_nope, q_rope=q_rope)
    at_least_axes(2, "(length, dim)", kv_latent=kv_latent, k_rope=k_rope)
    exactly_axes(3, "(heads, dim, kv_lora_rank)", w_uk=w_uk, w_uv=w_uv)
    *batch_shape, num_heads, q_len, nope = q_nope.shape
    batch_shape = tuple(batch_shape)
    kv_len, rank = kv_latent.shape[-2:]
    rope = k_rope.shape[-1]
    for name, array, expected in (
        ("q_rope", q_rope, (*batch_shape, num_heads, q_len, rope)),
        ("kv_latent", kv_latent, (*batch_shape, kv_len, rank)),
        ("k_rope", k_rope, (*batch_shape, kv_len, rope)),
        ("w_uk", w_uk, (num_heads, nope, rank)),
        ("w_uv", w_uv, (num_heads, w_uv.shape[1], rank)),
    ):
        if array.shape != expected:
            hint = " Keys of MLA have no head axis: one latent and one k_rope serve all heads." if name in ("kv_latent", "k_rope") else ""
            raise ValueError(f"{name} must have shape {expected}; got {name}.shape={array.shape}.{hint}")
    if num_heads < 1 or nope + rope < 1 or rank < 1:
        raise ValueError(
            "num_heads, qk_nope_head_dim + qk_rope_head_dim and kv_lora_rank must be at least 1; "
            f"got q_nope.shape={q_nope.shape}, q_rope.shape={q_rope.shape}, kv_latent.shape={kv_latent.shape}."
        )
    require_memory(batch_shape, num_heads, q_len, w_uv.shape[1])
    checked = checked_options(batch_shape, num_heads, q_len, kv_len, nope + rope, **options)
    return LatentProblem(
        q_nope=q_nope, q_rope=q_rope, kv_latent=kv_latent, k_rope=k_rope, w_uk=w_uk, w_uv=w_uv, form=form, **checked
    )


@dataclass(frozen=True, eq=False)
class BlockLocalProblem:
    """Dense attention cut into blocks along the sequence; no row sees a key of another block."""

    whole: Problem
    block_size: int

    @property
    def num_blocks(self):
        return -(-self.whole.q_len // self.block_size)

    def rows(self, n):
        """The positions of block n; the last block may be shorter."""
        return slice(n * self.block_size, min((n + 1) * self.block_size, self.whole.q_len))

    def block(self, n):
        """Block n as a dense problem. Row and key move together, so offsets inside a block start at 0 again."""
        whole, here = self.whole, self.rows(n)
        options = cut_options(whole, ..., (..., here, here))
        options["kv_lengths"] = np.clip(whole.kv_lengths - here.start, 0, here.stop - here.start)
        options["q_offset"] = np.zeros_like(whole.q_offset)
        return Problem(
            query=whole.query[..., here, :], key=whole.key[..., here, :], value=whole.value[..., here, :], **options
        )


def block_local_problem(query, key, value, block_size, **options):
    """Check the arguments of `refattn.block_local_attention`."""
    if "q_offset" in options:
        raise TypeError("q_offset must be left out: in block-local attention row i stands at key position i.")
    block_size = checked_integer(block_size, "block_size")
    whole = attention_problem(query, key, value, q_offset=0, **options)
    if whole.q_len != whole.kv_len:
        raise ValueError(
            "query and key must have the same length, both are cut at the same places; "
            f"got query.shape={whole.query.shape}, key.shape={whole.key.shape}."
        )
    block_size = checked_integer(block_size, "block_size", 1)
    return BlockLocalProblem(whole=whole, block_size=min(block_size, max(whole.q_len, 1)))
