"""Multi-head Latent Attention: all heads read one latent a token, up-projected to keys and values or
absorbed into query and output.

Axes: N qk_nope_head_dim, R qk_rope_head_dim, C kv_lora_rank, E v_head_dim; B, H, T, S as in
`refattn.attention`.
"""

import dataclasses
import math

import numpy as np

from refattn.calls.dense import Problem
from refattn.calls.latent import latent_problem
from refattn.calls.memory import ensure_allocatable
from refattn.calls.options import takes_options
from refattn.exact.core import ExactGroup
from refattn.exact.precise import DoubleDouble, long_double, within_float64
from refattn.exact.solve import arithmetic_of, solve_into


@takes_options
def latent_attention(
    q_nope, q_rope, kv_latent, k_rope, w_uk, w_uv, *, form="absorb", precision="exact", **options
):
    """Multi-head Latent Attention (MLA) from its cache: the latents and the shared rotary keys.

    Head h scores key j as scale * (q_nope_h . W_uk_h c_j + q_rope_h . k_rope_j) and sums the values
    W_uv_h c_j. The two forms are the same numbers in another order:

    - "expand" makes keys and values of every head, then is Multi-Head Attention with head_dim N + R:
      cheap for long prefill.
    - "absorb" moves W_uk onto the query and W_uv onto the output, then is Multi-Query Attention over the
      latents themselves: cheap for decode.

    Parameters
    ----------
    q_nope : array_like, shape (..., H, T, N), floating point
    q_rope : array_like, shape (..., H, T, R)
        Already rotated.
    kv_latent : array_like, shape (..., S, C)
        Already normalised; no head axis.
    k_rope : array_like, shape (..., S, R)
        Already rotated; one for all heads.
    w_uk : array_like, shape (H, N, C)
    w_uv : array_like, shape (H, E, C)
    form : {"absorb", "expand"}
    precision : {"exact", "float64"}
    **options
        As `refattn.attention`. The default scale is 1 / sqrt(N + R) in both forms, never of the latent
        width; models that stretch their context multiply it by mscale squared.

    Returns
    -------
    output : ndarray, shape (..., H, T, E), float64

    Raises
    ------
    TypeError, ValueError
        Naming the argument, the rule and what was given, before any work; of the options as `attention`.
    MemoryError
        When the output, or what the form makes of queries, keys and values, cannot be allocated.

    Notes
    -----
    Cost in floating-point operations a head, six for each product as in `attention`: "expand" 6 S C (N +
    E) for keys and values and 6 T S (N + R + E) for attention; "absorb" 6 T C (N + E) and 6 T S (2 C +
    R). Memory: "expand" holds keys and values of one head, "absorb" queries and outputs of all heads in
    the latent space.

    References
    ----------
    DeepSeek-AI 2024, "DeepSeek-V2", section 2.1 (equations 9 to 19) and appendix C.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> rng = np.random.default_rng(0)
    >>> heads, rows, keys = 3, 2, 5
    >>> shapes = [(heads, rows, 4), (heads, rows, 2), (keys, 6), (keys, 2), (heads, 4, 6), (heads, 7, 6)]
    >>> arrays = [rng.standard_normal(shape) for shape in shapes]
    >>> absorbed = refattn.latent_attention(*arrays, form="absorb", causal=True)
    >>> expanded = refattn.latent_attention(*arrays, form="expand", causal=True)
    >>> absorbed.shape, bool(np.abs(absorbed - expanded).max() < 1e-14)
    ((3, 2, 7), True)
    """
    arrays = (q_nope, q_rope, kv_latent, k_rope, w_uk, w_uv)
    return latent_attention_with_lse(*arrays, form=form, precision=precision, **options)[0]


@takes_options
def latent_attention_with_lse(
    q_nope, q_rope, kv_latent, k_rope, w_uk, w_uv, *, form="absorb", precision="exact", **options
):
    """`latent_attention` and its log-sum-exp.

    Parameters, errors and cost are those of `latent_attention`.

    Returns
    -------
    output : ndarray, shape (..., H, T, E), float64
    lse : ndarray, shape (..., H, T), float64
    """
    arithmetic = arithmetic_of(precision)
    problem = latent_problem(q_nope, q_rope, kv_latent, k_rope, w_uk, w_uv, form=form, **options)
    return solve_latent(problem, arithmetic=arithmetic)


def solve_latent(problem, rows=None, arithmetic=ExactGroup):
    """Output and lse of a checked problem in the form it names, rows and arithmetic as in
    `refattn.exact.solve.solve_into`.
    """
    picked = slice(None) if rows is None else rows(problem.q_nope.shape[-2])
    with np.errstate(all="ignore"):  # NaN and infinity in hidden keys, underflow of weights: all meant
        form = expand if problem.implementation == "expand" else absorb
        return form(without_unused_slots(problem), picked, rows, arithmetic)


def without_unused_slots(p):
    """Zeros where the latents of keys past kv_lengths would be: what lies there must not even decide
    the precision.
    """
    kv_len = p.kv_latent.shape[-2]
    if (p.kv_lengths == kv_len).all():
        return p
    used = np.arange(kv_len) < p.kv_lengths[..., None]  # [..., S]
    kv_latent, k_rope = (
        np.where(used[..., None], array, array.dtype.type(0)) for array in (p.kv_latent, p.k_rope)
    )
    return dataclasses.replace(p, kv_latent=kv_latent, k_rope=k_rope)


@takes_options
def multi_head_latent_attention(
    q_nope, q_rope, kv_latent, k_rope, w_uk, w_uv, *, form="absorb", precision="exact", **options
):
    """`latent_attention` under the name of its paper.

    Parameters, errors and cost are those of `latent_attention`.

    Returns
    -------
    output : ndarray, shape (..., H, T, E), float64
    """
    arrays = (q_nope, q_rope, kv_latent, k_rope, w_uk, w_uv)
    return latent_attention(*arrays, form=form, precision=precision, **options)


def expand(p, picked, rows, arithmetic):
    """Keys and values of one head after the other from the latents: Multi-Head Attention, head_dim N + R."""
    rank, rope = p.kv_latent.shape[-1], p.k_rope.shape[-1]
    per_key = 2 * (rank + p.w_uk.shape[1] + rope + p.w_uv.shape[1])
    ensure_allocatable(8 * math.prod(p.kv_latent.shape[:-1]) * per_key, "keys and values of one head")
    output, lse = np.zeros(p.output_shape), np.zeros(p.lse_shape)
    latent = exact(p.kv_latent)
    for h in range(p.q_nope.shape[-3]):
        here = (..., slice(h, h + 1), slice(None), slice(None))
        k_nope = arithmetic.projected(latent, exact(p.w_uk[h]))  # [..., S, C] @ [C, N] -> [..., S, N]
        value = arithmetic.projected(latent, exact(p.w_uv[h]))  # [..., S, C] @ [C, E] -> [..., S, E]
        head = Problem(
            query=beside(p.q_nope[here], p.q_rope[here]),
            key=beside(k_nope.high, p.k_rope)[..., None, :, :],
            key_low=beside(k_nope.low, np.zeros_like(p.k_rope))[..., None, :, :],
            value=value.high[..., None, :, :],
            value_low=value.low[..., None, :, :],
            **p.of_heads(slice(h, h + 1)).options(),
        )
        solve_into(head, output[here], lse[here[:-1]], rows=rows, arithmetic=arithmetic)
    return output, lse


def absorb(p, picked, rows, arithmetic):
    """Queries and outputs in the latent space: Multi-Query Attention, the values are the latent part
    of the keys.
    """
    rank, rope = p.kv_latent.shape[-1], p.k_rope.shape[-1]
    heads_and_rows, keys = math.prod(p.q_nope.shape[:-1]), math.prod(p.kv_latent.shape[:-1])
    ensure_allocatable(
        8 * (heads_and_rows * (6 * rank + rope) + keys * (rank + rope)),
        "queries, keys and outputs in the latent space",
    )
    picked = (..., picked, slice(None))
    # [..., H, T, N] @ [H, N, C] -> [..., H, T, C]
    absorbed = arithmetic.projected(exact(p.q_nope[picked]), exact(p.w_uk.swapaxes(-1, -2)))
    q_latent = DoubleDouble(*(np.zeros((*p.q_nope.shape[:-1], rank), part.dtype) for part in absorbed))
    for whole, part in zip(q_latent, absorbed, strict=True):
        whole[picked] = part
    in_latent = Problem(
        query=beside(q_latent.high, p.q_rope),
        query_low=beside(q_latent.low, np.zeros_like(p.q_rope)),
        key=beside(p.kv_latent, p.k_rope)[..., None, :, :],
        value=p.kv_latent[..., None, :, :],
        **p.options(),
    )
    latent = DoubleDouble(np.zeros_like(q_latent.high), np.zeros_like(q_latent.high))
    lse = np.zeros(p.lse_shape)
    solve_into(in_latent, latent.high, lse, output_low=latent.low, rows=rows, arithmetic=arithmetic)
    output = np.zeros(p.output_shape)
    # [..., H, T, C] @ [H, C, E] -> [..., H, T, E]
    made = arithmetic.projected(DoubleDouble(*(part[picked] for part in latent)), exact(p.w_uv))
    output[picked] = made.high + made.low
    return output, lse


def exact(array):
    """A caller's array as a double-double: in float64, or long double where its products would leave
    that range.
    """
    array = np.asarray(array, dtype=np.float64)
    plain = DoubleDouble(array, np.zeros_like(array))
    return plain if within_float64(array) else long_double(plain)


def beside(nope, rope):
    """The parts with and without position side by side on the last axis."""
    return np.concatenate(
        [nope, np.asarray(rope, dtype=np.float64)], axis=-1, dtype=np.result_type(nope, np.float64)
    )
