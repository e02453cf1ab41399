"""One dense form for every kind of call, so that one formula, one 40-digit evaluation and one error
analysis serve them all.

Axes: B batch (0 or 1 of them), H query heads, T query rows, S keys, D head_dim, E v_head_dim, C latent
width. Only torch and NumPy are used here; nothing of refattn.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch

F64 = torch.float64


@dataclass
class DenseProblem:
    """softmax(softcap(scale q k^T) + added, hidden where not visible) v, with key and value already
    given to every query head.
    """

    query: torch.Tensor  # (B, H, T, D) float64
    key: torch.Tensor  # (B, H, S, D)
    value: torch.Tensor  # (B, H, S, E)
    scale: float
    softcap: float | None
    terms: list  # the added terms (B, H, T, S), each exact: bias, and slope * distance
    slopes: (
        torch.Tensor | None
    )  # (B, H): the factor of the ALiBi term, kept apart because the product rounds
    visible: torch.Tensor  # (B, H, T, S) bool
    sinks: torch.Tensor | None  # (H,)
    keep: torch.Tensor | None  # (B, H, T, S) bool dropout keep mask
    rate: float
    latent: dict | None = None  # the MLA arrays that key and value were multiplied out of
    positions: torch.Tensor | None = None  # (B, T) key position of each row
    abs_key_terms: torch.Tensor | None = (
        None  # (B, H, T, S): scale * sum |q||k|, through the latent where there is one
    )
    abs_value: torch.Tensor | None = field(
        default=None
    )  # (B, H, S, E): |v|, or |w_uv||c| where there is a latent


def tensor(array):
    """A float64 (or bool, or int64) torch tensor holding the array's numbers exactly."""
    array = np.asarray(array)
    if array.dtype == bool:
        return torch.from_numpy(array.copy())
    return torch.from_numpy(array.astype(np.int64 if array.dtype.kind in "iu" else np.float64))


def default_scale(dim):
    """1/sqrt(head_dim) as float64 has it: the scale is a float64 number, and the 40-digit evaluation
    starts from that number.
    """
    return 1 / math.sqrt(dim)


def visible_keys(batch, q_len, kv_len, *, causal, window, kv_lengths, q_offset):
    """(B, T, S) bool and the positions (B, T): key j is visible iff it exists and lies in the window
    around the row's position.
    """
    lengths = torch.full((batch,), kv_len) if kv_lengths is None else tensor(kv_lengths).expand(batch)
    offset = lengths - q_len if q_offset is None else tensor(q_offset).expand(batch)
    row = offset[:, None] + torch.arange(q_len)  # (B, T)
    distance = torch.arange(kv_len) - row[:, :, None]  # (B, T, S)
    seen = (torch.arange(kv_len) < lengths[:, None, None]).expand(batch, q_len, kv_len).clone()
    left, right = window if window is not None else (None, None)
    if causal:
        seen &= distance <= 0
    if left is not None:
        seen &= distance >= -left
    if right is not None:
        seen &= distance <= right
    return seen, row


def dense_problem(
    query,
    key,
    value,
    *,
    scale=None,
    softcap=None,
    bias=None,
    mask=None,
    causal=False,
    window=None,
    alibi_slopes=None,
    sinks=None,
    kv_lengths=None,
    q_offset=None,
    dropout_mask=None,
    dropout_rate=0.0,
    blocks=None,
):
    """Arrays (B, H, T, D), (B, K, S, D), (B, K, S, E) and the public options -> DenseProblem.
    `blocks` = block size of block-local attention.
    """
    query, key, value = tensor(query), tensor(key), tensor(value)
    batch, heads, q_len, dim = query.shape
    kv_len, group = key.shape[2], heads // key.shape[1]
    key, value = (
        key.repeat_interleave(group, 1),
        value.repeat_interleave(group, 1),
    )  # query head h reads kv head h // group
    full = (batch, heads, q_len, kv_len)
    seen, rows = visible_keys(
        batch, q_len, kv_len, causal=causal, window=window, kv_lengths=kv_lengths, q_offset=q_offset
    )
    visible = seen[:, None].expand(full).clone()
    if mask is not None:
        visible &= tensor(mask)
    if blocks is not None:
        block = torch.arange(kv_len) // blocks
        visible &= block[:, None] == block[None, :]
    terms = []
    if bias is not None:
        bias = tensor(bias).expand(full)
        visible &= bias > -torch.inf
        terms.append(torch.where(visible, bias, 0.0))
    slopes = None if alibi_slopes is None else tensor(alibi_slopes).expand(batch, heads)
    never = ~visible.any(2)  # (B, H, S): no row sees the key, so its contents (NaN included) do not exist
    key = torch.where(never[..., None], 0.0, key)
    value = torch.where(never[..., None], 0.0, value)
    keep = None if dropout_mask is None else tensor(dropout_mask).expand(full)
    scale = default_scale(dim) if scale is None else scale
    return DenseProblem(
        query,
        key,
        value,
        scale,
        softcap,
        terms,
        slopes,
        visible,
        None if sinks is None else tensor(sinks),
        keep,
        dropout_rate,
        positions=rows,
        abs_key_terms=abs(scale) * query.abs() @ key.abs().mT,
        abs_value=value.abs(),
    )


def latent_problem(q_nope, q_rope, kv_latent, k_rope, w_uk, w_uv, *, form="absorb", scale=None, **options):
    """MLA: q_nope (B, H, T, N), q_rope (B, H, T, R), kv_latent (B, S, C), k_rope (B, S, R), w_uk (H,
    N, C), w_uv (H, E, C).
    """
    del form  # both forms are the same numbers
    if options.get("kv_lengths") is not None:  # what lies past a length must not enter the products below
        gone = np.arange(kv_latent.shape[1]) >= np.asarray(options["kv_lengths"])[:, None]
        kv_latent = np.where(gone[..., None], 0, kv_latent).astype(kv_latent.dtype)
        k_rope = np.where(gone[..., None], 0, k_rope).astype(k_rope.dtype)
    arrays = {"kv_latent": kv_latent, "k_rope": k_rope, "w_uk": w_uk, "w_uv": w_uv}
    c, r, uk, uv = (tensor(a) for a in arrays.values())
    qn, qr = tensor(q_nope), tensor(q_rope)
    heads, nope, rope = qn.shape[1], qn.shape[-1], qr.shape[-1]
    k_nope = torch.einsum("bsc,hnc->bhsn", c, uk)
    value = torch.einsum("bsc,hec->bhse", c, uv)
    key = torch.cat([k_nope, r[:, None].expand(-1, heads, -1, -1)], -1)
    scale = default_scale(nope + rope) if scale is None else scale
    problem = dense_problem(
        torch.cat([qn, qr], -1).numpy(), key.numpy(), value.numpy(), scale=scale, **options
    )
    through_latent = torch.einsum("bhtn,hnc,bsc->bhts", qn.abs(), uk.abs(), c.abs())
    problem.abs_key_terms = abs(scale) * (through_latent + torch.einsum("bhtr,bsr->bhts", qr.abs(), r.abs()))
    problem.abs_value = torch.einsum("bsc,hec->bhse", c.abs(), uv.abs())
    problem.latent = arrays | {"q_nope": np.asarray(q_nope), "q_rope": np.asarray(q_rope)}
    return problem


def gather_pages(pages, block_table, kv_lengths):
    """(P, K, page, dim) pages -> (B, K, max_pages * page, dim); entries of the table that lie past a
    sequence's length are not followed.
    """
    page_size = pages.shape[2]
    table = np.asarray(block_table)
    used = np.arange(table.shape[1]) * page_size < np.asarray(kv_lengths)[:, None]
    gathered = pages[np.where(used, table, 0)]  # (B, max_pages, K, page, dim)
    batch, count, heads, _, dim = gathered.shape
    return gathered.transpose(0, 2, 1, 3, 4).reshape(batch, heads, count * page_size, dim)


def options_of_sequence(options, n, rows, keys):
    """The options of packed sequence n: its own offset and length, its tile of a (.., total_q,
    total_kv) mask or bias.
    """
    own = dict(options)
    for name in ("mask", "bias", "dropout_mask"):
        if name in own:
            own[name] = own[name][..., rows, keys]
    for name in ("q_offset", "kv_lengths"):
        if name in own:
            own[name] = own[name][n : n + 1]
    return own


def problems_of(function, arguments, options):
    """Every call as dense problems: [(problem, index into the output's rows or None)]. Adds a batch
    axis where a call has none.
    """
    if function == "packed_attention_with_lse":
        options = dict(options)
        cu_q, cu_kv = options.pop("cu_q"), options.pop("cu_kv")
        arrays = [arguments[name] for name in ("query", "key", "value")]
        problems = []
        for n, (a, b, c, d) in enumerate(zip(cu_q[:-1], cu_q[1:], cu_kv[:-1], cu_kv[1:])):
            query, key, value = arrays[0][None, :, a:b], arrays[1][None, :, c:d], arrays[2][None, :, c:d]
            problems.append(
                (
                    dense_problem(
                        query, key, value, **options_of_sequence(options, n, slice(a, b), slice(c, d))
                    ),
                    slice(a, b),
                )
            )
        return problems
    if function == "paged_attention_with_lse":
        options = dict(options)
        table, lengths = options.pop("block_table"), options["kv_lengths"]
        key, value = (gather_pages(arguments[n], table, lengths) for n in ("key_pages", "value_pages"))
        return [(dense_problem(arguments["query"], key, value, **options), None)]
    if function == "block_local_attention_with_lse":
        options = dict(options)
        return [(dense_problem(*arguments.values(), blocks=options.pop("block_size"), **options), None)]
    make = latent_problem if function == "latent_attention_with_lse" else dense_problem
    arrays = list(arguments.values())
    if arrays[0].ndim == 3:  # (H, T, D): no batch axis
        weights = 4 if make is latent_problem else len(arrays)
        arrays = [a[None] if i < weights else a for i, a in enumerate(arrays)]
    return [(make(*arrays, **options), None)]
