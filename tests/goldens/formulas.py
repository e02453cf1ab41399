"""The formulas, in torch float64, and a bound on what rounding can do to them."""

from dataclasses import dataclass

import torch
from problems import problems_of, tensor


@dataclass
class Answer:
    """output (B, H, T, E) and lse (B, H, T)."""

    output: torch.Tensor
    lse: torch.Tensor


@dataclass
class Conditioning:
    """How far rounding can carry an answer: |error| <= u * output_factor * exp(2 u score_factor), for
    arithmetic with unit roundoff u.
    """

    gauge: torch.Tensor  # (B, H, T, E) sum_j p_j |v_j|
    output_factor: torch.Tensor  # (B, H, T, E)
    lse_factor: torch.Tensor  # (B, H, T)
    score_factor: torch.Tensor  # (B, H, T) largest error factor of a visible score
    row_max: torch.Tensor  # (B, H, T) largest visible score (or sink); -inf where nothing is visible


def logits(p):
    """(B, H, T, S): scale q k^T, softcap, + ALiBi and bias, -inf where hidden."""
    x = p.scale * (p.query @ p.key.mT)
    if p.softcap is not None:
        x = p.softcap * torch.tanh(x / p.softcap)
    for term in p.terms:
        x = x + term
    if p.slopes is not None:
        x = x - p.slopes[:, :, None, None] * distances(p)
    return torch.where(p.visible, x, -torch.inf)


def distances(p):
    """(B, 1, T, S): |position of the row - key index|."""
    return (p.positions[:, None, :, None] - torch.arange(p.key.shape[2])).abs().double()


def softmax_parts(p):
    """logits, row max m (sink included), and l = sum exp(logit - m) (sink included); empty rows have
    m = -inf and l = 0.
    """
    x = logits(p)
    joined = x
    if p.sinks is not None:
        joined = torch.cat([x, p.sinks[None, :, None, None].expand(*x.shape[:3], 1)], -1)
    no_keys = joined.shape[-1] == 0
    m = torch.full(x.shape[:3], -torch.inf, dtype=x.dtype) if no_keys else joined.amax(-1)
    shift = torch.where(m == -torch.inf, 0.0, m)
    return x, m, torch.exp(joined - shift[..., None]).sum(-1)


def attention(p):
    """o = sum_j exp(x_j - lse) v_j with lse = m + ln sum exp(x_j - m); an empty row gives 0 and -inf."""
    x, m, total = softmax_parts(p)
    lse = torch.where(m == -torch.inf, -torch.inf, m + torch.log(total))
    shift = torch.where(m == -torch.inf, 0.0, m)
    weights = torch.exp(x - shift[..., None]) / torch.where(total == 0, 1.0, total)[..., None]
    if p.keep is not None:
        weights = torch.where(p.keep, weights / (1 - p.rate), 0.0)
    return Answer(weights @ p.value, lse)


def conditioning(p, tile=16):
    """A componentwise forward error analysis of attention in any arithmetic with unit roundoff u, as
    factors of u.

    Score j is off by at most u e_j with
        e_j = (d + 3) eta_j + 7 |capped score| [softcap] + 3 |added terms| + 2 (m - s_j) + 4 + 6 R,
    eta_j = scale sum |q||k| (through the latent for MLA, where d counts both products), R = ceil(n /
    tile) + 1 rescalings of an online softmax, 4 u the error of exp. Exact propagation of score errors
    through softmax,
        |o^ - o| <= sum_j p_j expm1(u e_j) |v_j - o| / sum_j p_j exp(-u e_j),
    plus the sums of the n products and of the denominator, gives the factors below; |v_j - o| <= |v_j| +
    |o|. One more |o| rounds the output. The products of MLA values add their own length to n.
    """
    x, m, total = softmax_parts(p)
    shift = torch.where(m == -torch.inf, 0.0, m)
    visible = p.visible
    weights = torch.exp(x - shift[..., None]) / torch.where(total == 0, 1.0, total)[..., None]
    count = visible.sum(-1).double() + (0 if p.sinks is None else 1)  # (B, H, T)
    rescales = torch.ceil(count / tile) + 1
    length, value_length = p.query.shape[-1], 0
    if p.latent is not None:
        length += p.latent["kv_latent"].shape[-1]
        value_length = p.latent["kv_latent"].shape[-1]
    raw = p.scale * (p.query @ p.key.mT)
    e = (length + 3) * p.abs_key_terms
    if p.softcap is not None:
        e = e + 7 * (p.softcap * torch.tanh(raw / p.softcap)).abs()
    for term in p.terms:
        e = e + 3 * term.abs()
    if p.slopes is not None:
        e = e + 3 * (p.slopes[:, :, None, None] * distances(p)).abs()
    e = e + 2 * torch.where(visible, shift[..., None] - x, 0.0) + 4 + 6 * rescales[..., None]
    e = torch.where(visible, e, 0.0)
    kept = weights
    if p.keep is not None:
        kept = torch.where(p.keep, weights / (1 - p.rate), 0.0)
    output = (kept @ p.value).abs()
    gauge = kept @ p.abs_value
    mean_e = (weights * e).sum(-1)  # (B, H, T)
    factor = (kept * e) @ p.abs_value + mean_e[..., None] * output
    factor = factor + (count + rescales + value_length)[..., None] * gauge + (count + 4)[..., None] * output
    lse = torch.where(m == -torch.inf, 0.0, m + torch.log(torch.where(total == 0, 1.0, total)))
    log_total = torch.where(m == -torch.inf, 0.0, lse - m)
    lse_factor = mean_e + count + rescales + 4 * log_total.abs() + 3 * shift.abs() + 3 * lse.abs() + 4
    score_factor = e.amax(-1) if e.shape[-1] else torch.zeros(e.shape[:3], dtype=e.dtype)
    return Conditioning(gauge, 1.01 * factor, 1.01 * lse_factor, score_factor, m)


def merge(outputs, lses):
    """States stacked on axis 0: o = sum_k exp(l_k - l) o_k, l = ln sum_k exp(l_k)."""
    m = lses.amax(0)
    shift = torch.where(m == -torch.inf, 0.0, m)
    parts = torch.exp(lses - shift)
    total = parts.sum(0)
    weights = parts / torch.where(total == 0, 1.0, total)
    return Answer(
        (weights[..., None] * outputs).sum(0), torch.where(m == -torch.inf, -torch.inf, m + torch.log(total))
    )


def merge_conditioning(outputs, lses):
    """The same analysis for merging n states, whose lse are exact inputs: e_k = 2 (m - l_k) + 2 |l_k|
    + 4 + 6 n.
    """
    count = outputs.shape[0]
    m = lses.amax(0)
    shift = torch.where(m == -torch.inf, 0.0, m)
    parts = torch.exp(lses - shift)
    total = parts.sum(0)
    weights = parts / torch.where(total == 0, 1.0, total)
    finite = lses > -torch.inf
    e = torch.where(finite, 2 * (shift - lses) + 2 * lses.abs() + 4 + 6 * count, 0.0)
    gauge = (weights[..., None] * outputs.abs()).sum(0)
    output = (weights[..., None] * outputs).sum(0).abs()
    factor = ((weights * e)[..., None] * outputs.abs()).sum(0) + (weights * e).sum(0)[..., None] * output
    factor = factor + 2 * count * gauge + (count + 4) * output
    lse = torch.where(m == -torch.inf, 0.0, shift + torch.log(torch.where(total == 0, 1.0, total)))
    lse_factor = (
        (weights * e).sum(0) + 2 * count + 4 * (lse - shift).abs() + 3 * shift.abs() + 3 * lse.abs() + 4
    )
    return Conditioning(gauge, 1.01 * factor, 1.01 * lse_factor, e.amax(0), m)


def sdpa(function, arguments, options):
    """The same call by torch.nn.functional.scaled_dot_product_attention, (B, H, T, E), or None where torch
    has no such option.

    torch's is_causal is top-left aligned, so it stands only for a square call or q_offset 0; hidden rows
    are undefined there.
    """
    if not set(options) <= {"scale", "causal", "q_offset", "mask", "bias", "form"}:
        return None
    if function not in ("attention_with_lse", "latent_attention_with_lse"):
        return None
    ((p, _),) = problems_of(function, arguments, options)
    q_len, kv_len = p.query.shape[2], p.key.shape[2]
    causal, mask, bias = bool(options.get("causal")), options.get("mask"), options.get("bias")
    if not q_len or not p.visible.any(-1).all() or causal + (mask is not None) + (bias is not None) > 1:
        return None
    if (causal and options.get("q_offset", kv_len - q_len) != 0) or (not causal and "q_offset" in options):
        return None
    query, key, value = p.query, p.key, p.value
    if p.latent is None:
        query, key, value = (tensor(a) if a.ndim == 4 else tensor(a)[None] for a in arguments.values())
        if key.isnan().any() or value.isnan().any():
            return None
    extra = mask if mask is not None else bias
    extra = None if extra is None else tensor(extra).expand(p.visible.shape)
    return torch.nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=extra,
        is_causal=causal,
        scale=p.scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
