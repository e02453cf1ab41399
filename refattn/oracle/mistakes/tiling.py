"""Mistakes of the tiled algorithm: tiles, tails, rescaling, splits, races, leaks of NaN."""

from dataclasses import replace

import numpy as np

from refattn.exact.visibility import row_bounds
from refattn.oracle.mistakes.record import Mistake
from refattn.oracle.simulated.staged import (
    accumulate,
    correction,
    denominator,
    finish,
    hide,
    start,
    tiles,
    visible,
)


def _without_last_tile(run):
    spans = tiles(run)
    return spans[:-1] if len(spans) > 1 else spans


def _without_partial_tile(run):
    return [(first, stop) for first, stop in tiles(run) if stop - first == run.arithmetic.tile] or tiles(run)


def _without_first_tile(run):
    spans = tiles(run)
    return spans[1:] if len(spans) > 1 else spans


def _last_tile_twice(run):
    return [*tiles(run), tiles(run)[-1]]


def _tile_edges_skipped(run):
    """The last key of every tile but the final one is skipped (`<` against tile - 1)."""
    spans = tiles(run)
    return [(first, stop - 1) for first, stop in spans[:-1] if stop - first > 1] + spans[-1:]


def _without_first_key(run, columns):
    return visible(run, columns) & (columns > 0)


def _without_newest_key(run, columns):
    """Each row loses the last key it may see."""
    _, stop = row_bounds(run.problem, run.position, run.kv_length)
    return visible(run, columns) & (columns != stop - 1)


def _output_not_rescaled(run, total, factor, w, v, keep):
    return accumulate(run, total, np.ones_like(factor), w, v, keep)


def _denominator_not_rescaled(run, total, factor, w):
    return denominator(run, total, np.ones_like(factor), w)


def _never_rescaled(run, old, new, last):
    return np.ones_like(old)


def _not_rescaled_last(run, old, new, last):
    return np.ones_like(old) if last else correction(run, old, new, last)


def _rescaled_upside_down(run, old, new, last):
    """exp(new - old), the printed form of a well known blog."""
    factor = correction(run, old, new, last)
    return np.where(factor > 0, 1 / np.where(factor > 0, factor, 1), 0).astype(old.dtype)


def _fixed_maximum(run, s, top):
    """No maximum is subtracted."""
    return np.exp(s)


def _started_at_zero(run, shape):
    top, total = start(run, shape)
    zero = np.maximum(top, 0).astype(top.dtype)
    return zero, (total * np.exp(top - zero)).astype(total.dtype)


def _unshifted_start(run, shape):
    """The sink without a maximum subtracted."""
    top, total = start(run, shape)
    return top, np.where(total > 0, np.exp(top), 0).astype(top.dtype)


def _unshifted_correction(run, old, new, last):
    return np.ones_like(old)


def _unshifted_finish(run, top, total, weighted):
    zero = np.where(top == -np.inf, top, 0).astype(top.dtype)
    return finish(run, zero, total, weighted)


def _padded(problem, tile, fill):
    """Keys padded up to a whole tile with rows that a row may see."""
    extra = -problem.kv_len % tile
    if not extra or not problem.kv_len:
        return problem

    def plane(array, filler):
        if array is None:
            return None
        return np.concatenate([array, np.full((*array.shape[:-1], extra), filler, array.dtype)], axis=-1)

    full = np.asarray(problem.kv_lengths) == problem.kv_len
    return replace(
        problem,
        key=np.concatenate([problem.key, fill(problem.key, extra, tile)], axis=-2),
        value=np.concatenate([problem.value, fill(problem.value, extra, tile)], axis=-2),
        bias=plane(problem.bias, 0),
        mask=plane(problem.mask, True),
        dropout_mask=plane(problem.dropout_mask, True),
        kv_lengths=np.where(full, problem.kv_len + extra, problem.kv_lengths),
    )


def _zeros(array, extra, tile):
    return np.zeros((*array.shape[:-2], extra, array.shape[-1]), array.dtype)


def _stale(array, extra, tile):
    """What the previous tile left in the buffer."""
    length = array.shape[-2]
    index = np.maximum(np.arange(length, length + extra) - tile, 0)
    return array[..., index, :]


def _unweighted(run, total, factor, w, v, keep):
    """Every tile is normalised on its own and counted equally."""
    share = w.sum(-1, keepdims=True, dtype=w.dtype)
    own = accumulate(run, np.zeros_like(total), factor, w, v, keep) / np.where(share > 0, share, 1)
    run.notes["live"] = run.notes.get("live", 0) + (share > 0)
    return total + own


def _finish_unweighted(run, top, total, weighted):
    lse = finish(run, top, total, weighted)[1]
    live = np.maximum(run.notes.get("live", 1), 1)
    return np.where(total > 0, weighted / live, 0), lse


def _merged_in_base_two(run, old, new, last):
    """The lse of tiles is in natural units but merged with exp2."""
    return np.where(old == -np.inf, 0, np.exp2(old - np.where(new == -np.inf, 0, new))).astype(old.dtype)


def _hidden_by_adding(run, s, keep):
    """score + (-inf or 0): a NaN at a hidden key stays NaN."""
    return s + np.where(keep, 0, -np.inf).astype(s.dtype)


def _zero_times_value(run, total, factor, w, v, keep):
    return total * factor + w @ v


def _nan_as_hidden(run, s, keep):
    """A maximum that ignores NaN, and a NaN score that gets weight 0."""
    s = hide(run, s, keep)
    return np.where(np.isnan(s), -np.inf, s)


def _clean_values(run, total, factor, w, v, keep):
    return total * factor + w @ np.nan_to_num(v, posinf=0, neginf=0)


def _lost_at_random(run):
    spans = tiles(run)
    lost = np.random.default_rng().integers(2 * len(spans))
    return [span for index, span in enumerate(spans) if index != lost or len(spans) == 1]


def _random_order(run):
    """A different order of tiles each time: atomic adds."""
    spans = tiles(run)
    return [spans[index] for index in np.random.default_rng().permutation(len(spans))]


def _tiled(id, says, remedy="", *, families=(), issues=(), random=False, **stages):
    """A mistake of these stages that shows wherever there are several keys, and depends on the tile."""
    return Mistake(
        id,
        says,
        remedy,
        ("keys",),
        stages=stages,
        tiled=True,
        random=random,
        families=families,
        issues=issues,
    )


TILES = (
    _tiled("last_tile_dropped", "the last tile of keys is dropped", tiles=_without_last_tile),
    _tiled(
        "partial_tile_dropped",
        "keys after the last whole tile are dropped",
        tiles=_without_partial_tile,
        issues=("pytorch/pytorch #191937",),
    ),
    _tiled("first_tile_dropped", "the first tile of keys is dropped", tiles=_without_first_tile),
    _tiled("last_tile_twice", "the last tile of keys is counted twice", tiles=_last_tile_twice),
    _tiled("tile_edge_skipped", "the last key of every inner tile is skipped", tiles=_tile_edges_skipped),
    Mistake(
        "first_key_dropped", "key 0 is never seen", needs=("keys",), stages={"visible": _without_first_key}
    ),
    Mistake(
        "newest_key_dropped",
        "every row misses the last key it may see",
        needs=("keys",),
        stages={"visible": _without_newest_key},
    ),
    Mistake(
        "tail_zeros_seen",
        "the last tile is padded with zero keys that take part in the softmax",
        "hide keys past kv_len",
        ("keys",),
        prepare_tile=lambda p, tile: _padded(p, tile, _zeros),
        tiled=True,
    ),
    Mistake(
        "tail_stale_seen",
        "the last tile is padded with leftovers of the tile before, and they take part",
        "hide keys past kv_len",
        ("keys",),
        prepare_tile=lambda p, tile: _padded(p, tile, _stale),
        tiled=True,
    ),
    _tiled(
        "output_not_rescaled",
        "the running output is not rescaled when the row maximum rises",
        "multiply it by exp(old - new)",
        accumulate=_output_not_rescaled,
        families=("ascending",),
    ),
    _tiled(
        "denominator_not_rescaled",
        "the running denominator is not rescaled when the row maximum rises",
        "multiply it by exp(old - new)",
        denominator=_denominator_not_rescaled,
        families=("ascending",),
    ),
    _tiled(
        "never_rescaled",
        "neither output nor denominator is rescaled when the row maximum rises",
        "multiply both by exp(old - new)",
        correction=_never_rescaled,
        families=("ascending",),
    ),
    _tiled(
        "last_tile_not_rescaled",
        "the rescale is missing for the last tile",
        correction=_not_rescaled_last,
        families=("ascending",),
    ),
    _tiled(
        "rescaled_upside_down",
        "the rescale factor is exp(new - old)",
        "exp(old - new)",
        correction=_rescaled_upside_down,
        families=("ascending",),
        issues=("deepseek-ai/FlashMLA docs/20250422",),
    ),
    Mistake(
        "maximum_starts_at_zero",
        "the running maximum starts at 0: rows whose scores are all far below 0 underflow and become empty",
        "start it at -inf",
        stages={"start": _started_at_zero},
        rounding=True,
        families=("low scores",),
    ),
    Mistake(
        "no_maximum_subtracted",
        "the row maximum is not subtracted: large scores overflow, very low ones underflow",
        stages={
            "start": _unshifted_start,
            "weigh": _fixed_maximum,
            "correction": _unshifted_correction,
            "finish": _unshifted_finish,
        },
        rounding=True,
        families=("large scores", "low scores"),
        issues=("pytorch/pytorch #60939",),
    ),
    _tiled(
        "split_merge_unweighted",
        "the parts of a split key range are averaged without their lse weights",
        "merge_states",
        accumulate=_unweighted,
        finish=_finish_unweighted,
        issues=("flashinfer-ai/flashinfer #4051",),
    ),
    _tiled(
        "merged_in_base_two",
        "partial results are merged with exp2 although their lse is natural",
        correction=_merged_in_base_two,
        families=("ascending",),
        issues=("sgl-project/sglang #35045",),
    ),
    Mistake(
        "nan_of_hidden_score",
        "NaN in a hidden key reaches the row (hidden by adding -inf)",
        "select, do not add",
        ("hidden",),
        stages={"hide": _hidden_by_adding},
        families=("poison",),
        issues=("pytorch/pytorch #101967", "onnx/onnx #8068"),
    ),
    Mistake(
        "nan_of_hidden_value",
        "NaN in a hidden value reaches the row (0 * NaN)",
        "do not multiply hidden values",
        ("hidden",),
        stages={"accumulate": _zero_times_value},
        families=("poison",),
        issues=("Dao-AILab/flash-attention #1745", "vllm-project/vllm #641"),
    ),
    Mistake(
        "nan_swallowed",
        "NaN in a visible key disappears (a maximum that ignores NaN)",
        stages={"hide": _nan_as_hidden},
        families=("nan visible",),
        issues=("flashinfer-ai/flashinfer state.cuh",),
    ),
    Mistake(
        "nan_value_swallowed",
        "NaN or Inf in a visible value disappears",
        stages={"accumulate": _clean_values},
        families=("nan visible",),
    ),
    _tiled(
        "tile_lost_at_random",
        "two runs differ: a tile is lost now and then (race)",
        tiles=_lost_at_random,
        random=True,
    ),
    _tiled(
        "random_order",
        "two runs differ in the last bits: tiles arrive in random order",
        tiles=_random_order,
        random=True,
        issues=("Dao-AILab/flash-attention #1897",),
    ),
)
