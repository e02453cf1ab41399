"""Arrays whose axes or memory are read in another order.

The reference is run on the arrays as they would be read.
"""

from __future__ import annotations

import numpy as np

from refattn.oracle.bounds.results import OUTPUT
from refattn.oracle.imaging.view import K_ROPE, KV_LATENT, Q_NOPE, Q_ROPE, W_UK, W_UV
from refattn.oracle.mistakes.wrong_kernel import checked_call
from refattn.oracle.simulated.staged import Arithmetic, run_stages

MOST_HEADS = 32
RIGHT_SHARE = 0.98  # of the numbers of the output
SHARE_OF_HEAD = 0.9  # of the numbers of one wrong head, that other arrays are tried on first
COARSE = 1e-4  # unit roundoff of the output from which intermediates may be coarse too
OF_COARSE = 0.02  # of the size of the output, that is allowed then
LATENT_ARRAYS = ("q_nope", "q_rope", "kv_latent", "k_rope", "w_uk", "w_uv")
HEAD_AXES = {Q_NOPE: -3, Q_ROPE: -3, W_UK: 0, W_UV: 0}


def explain_layout(measured) -> str:
    """Words for a layout under which the reference gives the kernel's output; "" if there is none."""
    view = measured.view
    if any(len(s.rows) != s.num_rows for s in view.sequences) or len(view.heads) != view.num_heads:
        return ""
    ways = {"dense": _layouts, "latent": _latent_layouts}.get(view.checked.form.name, lambda arrays: ())
    promising = _first_look(measured) if view.latent else lambda arrays: True
    for words, arrays, back in ways([np.asarray(array) for array in view.arrays]):
        if not promising(arrays):
            continue
        near = _near(measured, arrays, back)
        if near is not None and near.mean() > RIGHT_SHARE:
            return words
    return _heads_swapped(measured) if view.latent else ""


def _near(measured, arrays, back=None):
    """Where the output is that of other arrays, (B, H, T, E); None where they are no call, or one of another
    shape. `back` is what is done to the output.
    """
    view = measured.view
    try:
        checked = checked_call(*arrays, **view.options)
    except (TypeError, ValueError):
        return None
    with np.errstate(all="ignore"):
        output = run_stages(checked.part(0).drawn(), arithmetic=Arithmetic())[0]
    output = np.asarray(output, np.float64).reshape(checked.output_shape)
    output = output if back is None else back(output)
    if output.shape != view.checked.output_shape:
        return None
    size = np.abs(measured.output) + measured.output_tolerance
    allowed = _allowed(measured, measured.output_tolerance, 4, OF_COARSE * size)
    return np.abs(view.cut(OUTPUT, output) - measured.output) <= allowed


def _allowed(measured, tolerance, times, of_size):
    """What a guess may be off by: more where the output is of a coarse format."""
    return times * tolerance + of_size * (measured.spec.output.unit_roundoff > COARSE)


def _first_look(measured):
    """MLA: a test of changed arrays on one wrong head of one sequence alone, which takes a fraction of the
    time.
    """
    view, off = measured.view, measured.off
    b, h = np.unravel_index(off.any(-1).sum(-1).argmax(), view.shape[:2])
    s, part, head = view.sequences[b], view.outline_of(b), view.heads[h]
    rest = np.where(view.visible[b, h], view.score[b, h] - view.capped[b, h], -np.inf)
    rows = off[b, h].any(-1) & view.visible[b, h].any(-1)
    got, tolerance = measured.output[b, h][rows], measured.output_tolerance[b, h][rows]
    allowed = _allowed(measured, tolerance, 8, 2 * OF_COARSE * np.abs(got))

    def of_sequence(array, axes):
        return np.asarray(array, np.float64).reshape(-1, *array.shape[array.ndim - axes :])[s.entry]

    def promising(arrays):
        q_nope, q_rope = (of_sequence(array, 3)[head][s.rows] for array in arrays[:KV_LATENT])
        latent, k_rope = (of_sequence(array, 2) for array in arrays[KV_LATENT:W_UK])
        w_uk, w_uv = (np.asarray(array[head], np.float64) for array in arrays[W_UK:])
        raw = part.scale * ((q_nope @ w_uk) @ latent.T + q_rope @ k_rope.T)  # [T, N] @ [N, C] @ [C, S]
        capped = raw if part.softcap is None else part.softcap * np.tanh(raw / part.softcap)
        score = (capped + rest)[rows]
        weights = np.exp(score - score.max(-1, keepdims=True, initial=-1e300))
        output = (weights @ latent / weights.sum(-1, keepdims=True)) @ w_uv.T
        return (np.abs(output - got) <= allowed).mean() > SHARE_OF_HEAD

    return promising


# ways to read arrays: (words, arrays as they are read, what is done to the output)


def _same(x):
    return x


def _swap(x):
    return np.swapaxes(x, -2, -3)


def _as_memory(x):
    """Memory of (length, heads, dim), read as (heads, length, dim)."""
    return np.ascontiguousarray(_swap(x)).reshape(x.shape)


def _backwards(x):
    """Memory of (heads, length, dim), read as (length, heads, dim)."""
    return _swap(x.reshape(*x.shape[:-3], x.shape[-2], x.shape[-3], x.shape[-1]))


def _halves_exchanged(x):
    return np.roll(x, x.shape[-1] // 2, axis=-1)


def _layouts(arrays):
    query, key, value = arrays
    exchanged = "the axes of heads and rows (length) are exchanged in query, key and value"
    over_heads = (_swap(query), _swap(key), _swap(value))
    yield f"{exchanged}: attention runs over the heads", over_heads, _swap
    for words, read in (
        ("memory of (length, heads, dim) is read as (heads, length, dim): strides are ignored", _as_memory),
        ("memory of (heads, length, dim) is read as (length, heads, dim)", _backwards),
    ):
        rightly = (query, read(key), read(value))
        yield f"key and value: {words}; the query is read rightly", rightly, _same
        yield f"query, key and value: {words}", (read(query), read(key), read(value)), _same
        yield f"query: {words}", (read(query), key, value), _same
        yield f"key: {words}", (query, read(key), value), _same
        yield f"value: {words}", (query, key, read(value)), _same
        yield f"output: {words}", (query, key, value), read
    for words, change in (
        ("the components of each head are read in reverse", lambda x: x[..., ::-1]),
        ("the two halves of the components are exchanged", _halves_exchanged),
    ):
        yield f"query: {words}", (change(query), key, value), _same
        yield f"value: {words}", (query, key, change(value)), _same
    yield "key and value are exchanged", (query, value, key), _same
    yield "query and key are exchanged", (key, query, value), _same


def _latent_layouts(arrays):
    """The same for MLA: an array of another head, or its components in another order."""
    for n, (name, array) in enumerate(zip(LATENT_ARRAYS, arrays, strict=True)):
        for words, change in _latent_changes(n, array):
            yield f"{name} is {words}", (*arrays[:n], change(array), *arrays[n + 1 :]), _same


def _latent_changes(n, array):
    """Changes of array `n`: (words, function)."""
    if n not in (W_UK, W_UV):
        yield from COMPONENTS
    if n in (KV_LATENT, K_ROPE):
        shifted = lambda step: lambda x: np.roll(x, step, axis=-2)
        for step in (1, -1):
            yield f"the keys' own order shifted by {step}", shifted(step)
    if n in HEAD_AXES:
        of_axis = lambda change: lambda x: change(x, HEAD_AXES[n])
        for words, change in HEADS:
            yield words, of_axis(change)
    if n in (W_UK, W_UV):
        yield from PROJECTIONS
    if n in HEAD_AXES:
        yield from _some_components(array.shape[-1])


def _interleaved(x):
    """Components that were stored as two halves, taken in turns."""
    if x.shape[-1] % 2:
        return x
    return x.reshape(*x.shape[:-1], 2, -1).swapaxes(-1, -2).reshape(x.shape)


COMPONENTS = (
    ("its halves exchanged", _halves_exchanged),
    (
        "even and odd components apart (interleaved read as halves)",
        lambda x: np.concatenate([x[..., ::2], x[..., 1::2]], -1),
    ),
    ("halves read as interleaved", _interleaved),
    ("0 in its place", np.zeros_like),
)
HEADS = (
    ("that of head 0 for all heads", lambda x, axis: np.take(x, np.zeros(x.shape[axis], int), axis)),
    ("that of the next head", lambda x, axis: np.roll(x, -1, axis)),
    ("that of the head before", lambda x, axis: np.roll(x, 1, axis)),
    ("that of the heads in reverse", lambda x, axis: np.flip(x, axis)),
)
PROJECTIONS = (
    (
        "memory of (dim, heads, rank) read as (heads, dim, rank)",
        lambda x: np.ascontiguousarray(x.swapaxes(0, 1)).reshape(x.shape),
    ),
    (
        "memory of (heads, dim, rank) read as (dim, heads, rank)",
        lambda x: x.reshape(x.shape[1], x.shape[0], -1).swapaxes(0, 1),
    ),
)


def _some_components(width):
    """Stretches of components that are counted twice or left out."""
    step = 8 if width <= 64 else 16 if width <= 128 else 64
    edges = [*range(0, width, step), width]
    times = lambda first, last, factor: lambda x: _times(x, first, last, factor)
    for n, first in enumerate(edges[:-1]):
        for last in edges[n + 1 :]:
            if last - first < width:
                where = f"in components {first} to {last - 1} of {width}"
                yield f"counted twice {where}", times(first, last, 2.0)
                yield f"left out {where}", times(first, last, 0.0)


def _times(array, first, last, factor):
    changed = array.astype(np.float64)
    changed[..., first:last] *= factor
    return changed


def _heads_swapped(measured):
    """MLA: words for an array of which some heads read another head's part; "" if there is none."""
    view = measured.view
    if view.num_heads > MOST_HEADS:
        return ""
    for n in (W_UK, W_UV, Q_NOPE, Q_ROPE):
        source = {}
        for step in range(view.num_heads):
            arrays = [np.asarray(array) for array in view.arrays]
            arrays[n] = np.roll(arrays[n], -step, HEAD_AXES[n])
            near = _near(measured, arrays)
            for h in np.flatnonzero(near.mean((0, 2, 3)) > RIGHT_SHARE).tolist():
                source.setdefault(h, (h + step) % view.num_heads)
        if len(source) == view.num_heads and any(a != b for a, b in source.items()):
            words = ", ".join(f"{a} -> {b}" for a, b in sorted(source.items()) if a != b)
            return f"{LATENT_ARRAYS[n]} is that of another head in some heads (head -> head: {words})"
    return ""
