"""Multi-head Latent Attention: all heads read one latent a token, up-projected to keys and values or absorbed into query and output.

Axes: N qk_nope_head_dim, R qk_rope_head_dim, C kv_lora_rank, E v_head_dim; B, H, T, S as in `refattn.attention`.
"""

import math

import numpy as np

from refattn.attention import solve
from refattn.memory import ensure_allocatable
from refattn.problem import Problem, latent_problem


def latent_attention(q_nope, q_rope, kv_latent, k_rope, w_uk, w_uv, *, form="absorb", **options):
    """Multi-head Latent Attention (MLA) from its cache: the latents and the shared rotary keys.

    Head h scores key j as scale * (q_nope_h . W_uk_h c_j + q_rope_h . k_rope_j) and sums the values W_uv_h c_j. The two forms are the same
    numbers in another order:

    - "expand" makes keys and values of every head, then is Multi-Head Attention with head_dim N + R: cheap for long prefill.
    - "absorb" moves W_uk onto the query and W_uv onto the output, then is Multi-Query Attention over the latents themselves: cheap for decode.

    Parameters
    ----------
    q_nope : array_like, shape (..., H, T, N)
    q_rope : array_like, shape (..., H, T, R)
        Already rotated.
    kv_latent : array_like, shape (..., S, C)
        Already normalised; no head axis.
    k_rope : array_like, shape (..., S, R)
        Already rotated; one for all heads.
    w_uk : array_like, shape (H, N, C)
    w_uv : array_like, shape (H, E, C)
    form : {"absorb", "expand"}
    **options
        As `refattn.attention`. The default scale is 1 / sqrt(N + R) in both forms, never of the latent width; models that stretch
        their context multiply it by mscale squared.

    Returns
    -------
    output : ndarray, shape (..., H, T, E), float64

    Notes
    -----
    Cost a head in floating-point operations: expand 2 S C (N + E) once and about 12 T S (N + R + E); absorb 2 T C (N + E) and about
    12 T S (2 C + R).

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
    return latent_attention_with_lse(q_nope, q_rope, kv_latent, k_rope, w_uk, w_uv, form=form, **options)[0]


def latent_attention_with_lse(q_nope, q_rope, kv_latent, k_rope, w_uk, w_uv, *, form="absorb", **options):
    """`latent_attention` and its log-sum-exp, shape (..., H, T), float64."""
    problem = latent_problem(q_nope, q_rope, kv_latent, k_rope, w_uk, w_uv, form, **options)
    with np.errstate(all="ignore"):  # unused slots may hold NaN
        return expand(problem) if form == "expand" else absorb(problem)


def multi_head_latent_attention(q_nope, q_rope, kv_latent, k_rope, w_uk, w_uv, *, form="absorb", **options):
    """`latent_attention` under the name of its paper."""
    return latent_attention(q_nope, q_rope, kv_latent, k_rope, w_uk, w_uv, form=form, **options)


def expand(p):
    """Keys and values of every head from the latents: Multi-Head Attention, head_dim N + R."""
    per_key = p.w_uk.shape[0] * (2 * p.w_uk.shape[1] + p.k_rope.shape[-1] + p.w_uv.shape[1])
    ensure_allocatable(8 * math.prod(p.kv_latent.shape[:-1]) * per_key, "keys and values of every head")
    latent, w_uk, w_uv = (np.asarray(array, dtype=np.float64) for array in (p.kv_latent[..., None, :, :], p.w_uk, p.w_uv))
    k_nope = latent @ w_uk.swapaxes(-1, -2)  # [..., 1, S, C] @ [H, C, N] -> [..., H, S, N]
    k_rope = np.broadcast_to(p.k_rope[..., None, :, :], (*k_nope.shape[:-1], p.k_rope.shape[-1]))
    return solve(
        Problem(
            query=np.concatenate([p.q_nope, p.q_rope], axis=-1, dtype=np.float64),
            key=np.concatenate([k_nope, k_rope], axis=-1, dtype=np.float64),
            value=latent @ w_uv.swapaxes(-1, -2),  # [..., 1, S, C] @ [H, C, E] -> [..., H, S, E]
            **p.options(),
        )
    )


def absorb(p):
    """Queries and outputs in the latent space: Multi-Query Attention, the values are the latent part of the keys."""
    rank, rope = p.kv_latent.shape[-1], p.k_rope.shape[-1]
    rows, keys = math.prod(p.q_nope.shape[:-1]), math.prod(p.kv_latent.shape[:-1])
    ensure_allocatable(8 * (rows * (3 * rank + rope) + keys * (rank + rope)), "queries, keys and outputs in the latent space")
    q_nope, w_uk, w_uv = (np.asarray(array, dtype=np.float64) for array in (p.q_nope, p.w_uk, p.w_uv))
    q_latent = q_nope @ w_uk  # [..., H, T, N] @ [H, N, C] -> [..., H, T, C]
    output, lse = solve(
        Problem(
            query=np.concatenate([q_latent, p.q_rope], axis=-1, dtype=np.float64),
            key=np.concatenate([p.kv_latent, p.k_rope], axis=-1, dtype=np.float64)[..., None, :, :],
            value=p.kv_latent[..., None, :, :],
            **p.options(),
        )
    )
    return output @ w_uv.swapaxes(-1, -2), lse  # [..., H, T, C] @ [H, C, E] -> [..., H, T, E]
