"""Results in float64 by `cpu_kernels`, for checks large enough to pay for loading Numba.

A call is computed in pieces, some heads and rows of one batch entry at a time, so that only pieces are ever
held in float64. Pieces that the kernels do not promise to compute as the reference does - numbers that are
not finite, or so large that float64 says little of their scores, or a sink far above all scores - are
computed by NumPy.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math

import numpy as np

from refattn.calls.arrays import stored_once
from refattn.exact.plain import score_error
from refattn.exact.precise import largest_finite, sums_within_float64, within_float64
from refattn.exact.softmax import SINK_FAR_ABOVE
from refattn.exact.visibility import row_bounds
from refattn.latent import solve_latent, without_unused_slots

NUMBERS_AT_ONCE = 2**23  # of operands and results, 64 MiB in float64
PAYS_FROM = 3e10  # multiplications; fewer take NumPy about as long as loading Numba and the compiled kernels


def available():
    """Whether Numba is installed; imports nothing."""
    return importlib.util.find_spec("numba") is not None


def pays(problem):
    """Whether the call is large enough."""
    return multiplications(problem, PAYS_FROM) >= PAYS_FROM


def multiplications(problem, enough=math.inf):
    """Of both products, hidden pairs left out where whole ranges are hidden; counting ends at `enough`."""
    count = 0.0
    for n in range(problem.num_parts):
        part = problem.outline(n)
        start, stop = row_bounds(part, part.position, np.asarray(part.kv_lengths)[..., None])
        count += float((stop - start).sum()) * part.num_heads * (part.head_dim + part.v_head_dim)
        if count >= enough:
            break
    return count


def compiled_results(problem, arithmetic):
    """Output and lse of a checked problem of any form.

    Parameters
    ----------
    problem
    arithmetic : callable
        What computes the pieces that kernels leave, as in `refattn.exact.solve.solve_into`: those in which
        the error of a score might exceed its `largest_score_error` among them.
    """
    from cpu_kernels.dense import solve_dense
    from cpu_kernels.latent import solve_latent as latent_by_kernels
    from refattn.exact.solve import solve_into

    output, lse = np.zeros(problem.output_shape), np.zeros(problem.lse_shape)
    if problem.form.projects:
        for piece, at in latent_pieces(without_unused_slots(problem)):
            wide = in_float64(piece, LATENT_ARRAYS)
            sure = latent_within_range(wide, arithmetic.largest_score_error)
            made = latent_by_kernels(wide, True) if sure else solve_latent(piece, arithmetic=arithmetic)
            output[(*at, slice(None))], lse[at] = made
        return output, lse
    for part in problem.parts():
        outputs, lses = part.of_output(output), part.of_lse(lse)
        for piece, index, at in dense_pieces(part.problem):
            wide = in_float64(piece, DENSE_ARRAYS)
            if dense_within_range(wide, arithmetic.largest_score_error):
                outputs[index][at], lses[index][at] = solve_dense(wide, True)
            else:
                solve_into(piece, outputs[index][at], lses[index][at], arithmetic=arithmetic)
    return output, lse


DENSE_ARRAYS = ("query", "key", "value")
LATENT_ARRAYS = ("q_nope", "q_rope", "kv_latent", "k_rope", "w_uk", "w_uv")


def in_float64(problem, names):
    return dataclasses.replace(
        problem, **{name: np.asarray(getattr(problem, name), dtype=np.float64) for name in names}
    )


def ranges(count, at_once):
    """range(count) as slices of at most `at_once`."""
    at_once = max(1, int(at_once))
    return [slice(first, min(first + at_once, count)) for first in range(0, count, at_once)]


def dense_pieces(problem):
    """Some key/value heads and rows of one batch entry at a time: (dense problem without batch axes and
    without the keys beyond its length, batch index, heads and rows)."""
    size, width = problem.group_size, problem.head_dim + problem.v_head_dim
    one_row = size * (width + (0 if problem.bias is None else problem.kv_len))
    heads_at_once = NUMBERS_AT_ONCE // max(width * problem.kv_len + one_row * problem.q_len, 1)
    rows_at_once = NUMBERS_AT_ONCE // max(one_row, 1)
    for index in np.ndindex(problem.batch_shape):
        keys = slice(int(problem.kv_lengths[index]))
        for kv_heads in ranges(problem.num_kv_heads, heads_at_once):
            heads = slice(kv_heads.start * size, kv_heads.stop * size)
            for rows in ranges(problem.q_len, rows_at_once):
                options = of_rows(problem, index, heads, rows, keys)
                key, value = (side[index][kv_heads, keys] for side in (problem.key, problem.value))
                query = problem.query[index][heads, rows]
                piece = dataclasses.replace(problem, query=query, key=key, value=value, **options)
                yield piece, index, (heads, rows)


def latent_pieces(problem):
    """Some heads and rows of all batch entries at a time: (latent problem, index of the results)."""
    *batch, num_heads, q_len, nope = problem.q_nope.shape
    rank, rope, v_head_dim = problem.kv_latent.shape[-1], problem.k_rope.shape[-1], problem.w_uv.shape[1]
    one_row = math.prod(batch) * (nope + rope + 3 * rank + v_head_dim)
    if problem.bias is not None:
        one_row += math.prod(batch) * problem.kv_latent.shape[-2]
    heads_at_once = NUMBERS_AT_ONCE // max(one_row * q_len, 1)
    for heads in ranges(num_heads, heads_at_once):
        for rows in ranges(q_len, NUMBERS_AT_ONCE // max(one_row, 1)):
            at = (..., heads, rows)
            yield (
                dataclasses.replace(
                    problem,
                    q_nope=problem.q_nope[(*at, slice(None))],
                    q_rope=problem.q_rope[(*at, slice(None))],
                    w_uk=problem.w_uk[heads],
                    w_uv=problem.w_uv[heads],
                    **of_rows(problem, (...,), heads, rows, slice(None)),
                ),
                at,
            )


def of_rows(problem, index, heads, rows, keys):
    """The options of some heads and rows of one batch entry, or of all."""
    options = problem.options_at(
        per_score=(*index, heads, rows, keys), per_head=(*index, heads), per_entry=index
    ).options()
    return options | {"q_offset": options["q_offset"] + rows.start}


def dense_within_range(p, largest_score_error):
    """Whether kernels compute a piece in float64 as the reference does."""
    if not all(np.isfinite(array).all() for array in (p.query, p.key, p.value)):
        return False
    product = p.head_dim * abs(p.scale) * float(largest_finite(p.query)) * float(largest_finite(p.key))
    return (
        within_float64(p.query, p.key)
        and sums_within_float64(p.value)
        and scores_within_range(p, p.head_dim, p.kv_len, product, largest_score_error)
    )


def latent_within_range(p, largest_score_error):
    """As `dense_within_range`, with both projections among the products."""
    arrays = [getattr(p, name) for name in LATENT_ARRAYS]
    if not all(np.isfinite(array).all() and within_float64(array) for array in arrays):
        return False
    return scores_within_range(p, *latent_products(p), largest_score_error)


def latent_products(p):
    """Terms that are added up to a score, keys, and a bound of their magnitudes times the scale."""
    q_nope, q_rope, latent, k_rope, w_uk = (
        float(largest_finite(getattr(p, name))) for name in LATENT_ARRAYS[:5]
    )
    nope, rank = p.w_uk.shape[1:]
    rope = p.k_rope.shape[-1]
    product = abs(p.scale) * (nope * rank * q_nope * w_uk * latent + rope * q_rope * k_rope)
    return nope + rank + rope, p.kv_latent.shape[-2], product


def scores_within_range(options, terms, kv_len, product, largest_score_error):
    """Whether the scores are known to `largest_score_error`, and no sink lies far above them."""
    slopes, bias, sinks = options.alibi_slopes, options.bias, options.sinks
    alibi = added = 0.0
    if slopes is not None and slopes.size:
        farthest = int(np.abs(options.q_offset).max(initial=0)) + options.lse_shape[-1] + kv_len
        alibi = float(np.abs(slopes).max()) * farthest
    if bias is not None:
        added = float(largest_finite(stored_once(bias)))
    if not score_error(terms, product, alibi, added) <= largest_score_error:
        return False
    return sinks is None or float(sinks.max(initial=-np.inf)) + product + alibi + added <= SINK_FAR_ABOVE
