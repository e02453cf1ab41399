"""Arrays whose axes or memory are read in another order: the reference, run on the arrays as they would be read."""

from __future__ import annotations

import numpy as np

from refattn.oracle.bounds.results import OUTPUT
from refattn.oracle.mistakes.wrong_kernel import checked_call
from refattn.oracle.simulated.staged import Arithmetic, run_stages

MOST_HEADS = 32
RIGHT_SHARE = 0.98  # of the numbers of the output


def explain_layout(measured) -> str:
    """Words for a layout under which the reference gives the kernel's output; "" if there is none."""
    view = measured.view
    if any(len(s.rows) != s.num_rows for s in view.sequences) or len(view.heads) != view.num_heads:
        return ""
    ways = {"dense": _layouts, "latent": _latent_layouts}.get(view.checked.form.name)
    promising = _first_look(measured) if view.latent else lambda arrays: True
    for words, arrays, back in ways(view.arrays) if ways else ():
        if not promising(arrays):
            continue
        try:
            checked = checked_call(*arrays, **view.options)
        except (TypeError, ValueError):
            continue
        with np.errstate(all="ignore"):
            output = run_stages(checked.part(0).drawn(), arithmetic=Arithmetic())[0]
        output = back(np.asarray(output, np.float64).reshape(checked.output_shape))
        if output.shape != view.checked.output_shape:
            continue
        off = np.abs(view.cut(OUTPUT, output) - measured.output)
        size = np.abs(measured.output) + measured.output_tolerance
        near = off <= 4 * measured.output_tolerance + 0.02 * size * (
            measured.spec.output.unit_roundoff > 1e-4
        )
        if near.mean() > RIGHT_SHARE:
            return words
    return heads_swapped(measured)


def _first_look(measured):
    """MLA: a test of changed arrays on one wrong head of one sequence alone, which takes a fraction of the time."""
    view = measured.view
    with np.errstate(all="ignore"):
        off = ~(np.abs(measured.output - measured.expected_output) <= measured.output_tolerance)
    b, h = np.unravel_index(off.any(-1).sum(-1).argmax(), view.shape[:2])
    s, part = view.sequences[b], view.outline_of(b)
    head = view.heads[h]
    rest = np.where(view.visible[b, h], view.score[b, h] - view.capped[b, h], -np.inf)
    rows = off[b, h].any(-1) & view.visible[b, h].any(-1)
    allowed = 8 * measured.output_tolerance[b, h][rows] + 0.04 * np.abs(measured.output[b, h][rows]) * (
        measured.spec.output.unit_roundoff > 1e-4
    )
    flat = lambda array, axes: np.asarray(array, np.float64).reshape(-1, *array.shape[array.ndim - axes :])[
        s.entry
    ]

    def promising(arrays):
        q_nope, q_rope = (flat(array, 3)[head][s.rows] for array in arrays[:2])
        latent, k_rope = (flat(array, 2) for array in arrays[2:4])
        w_uk, w_uv = (np.asarray(array[head], np.float64) for array in arrays[4:])
        raw = part.scale * ((q_nope @ w_uk) @ latent.T + q_rope @ k_rope.T)  # [T, N] @ [N, C] @ [C, S]
        capped = raw if part.softcap is None else part.softcap * np.tanh(raw / part.softcap)
        score = (capped + rest)[rows]
        weights = np.exp(score - score.max(-1, keepdims=True, initial=-1e300))
        output = (weights @ latent / weights.sum(-1, keepdims=True)) @ w_uv.T
        return (np.abs(output - measured.output[b, h][rows]) <= allowed).mean() > 0.9

    return promising


def _layouts(arrays):
    """(words, arrays as they are read, what is done to the output)."""
    query, key, value = (np.asarray(array) for array in arrays)
    same = lambda x: x
    swap = lambda x: np.swapaxes(x, -2, -3)
    memory = lambda x: np.ascontiguousarray(swap(x)).reshape(x.shape)
    backwards = lambda x: swap(x.reshape(*x.shape[:-3], x.shape[-2], x.shape[-3], x.shape[-1]))
    yield (
        "the axes of heads and rows (length) are exchanged in query, key and value: attention runs over the heads",
        (swap(query), swap(key), swap(value)),
        swap,
    )
    for words, read in (
        ("memory of (length, heads, dim) is read as (heads, length, dim): strides are ignored", memory),
        ("memory of (heads, length, dim) is read as (length, heads, dim)", backwards),
    ):
        yield f"key and value: {words}; the query is read rightly", (query, read(key), read(value)), same
        yield f"query, key and value: {words}", (read(query), read(key), read(value)), same
        yield f"query: {words}", (read(query), key, value), same
        yield f"key: {words}", (query, read(key), value), same
        yield f"value: {words}", (query, key, read(value)), same
        yield f"output: {words}", (query, key, value), read
    for words, change in (
        ("the components of each head are read in reverse", lambda x: x[..., ::-1]),
        ("the two halves of the components are exchanged", lambda x: np.roll(x, x.shape[-1] // 2, axis=-1)),
    ):
        yield f"query: {words}", (change(query), key, value), same
        yield f"value: {words}", (query, key, change(value)), same
    yield "key and value are exchanged", (query, value, key), same
    yield "query and key are exchanged", (key, query, value), same


def _latent_layouts(arrays):
    """The same for MLA: an array of another head, or its components in another order."""
    names = ("q_nope", "q_rope", "kv_latent", "k_rope", "w_uk", "w_uv")
    arrays = tuple(np.asarray(array) for array in arrays)
    same = lambda x: x
    components = (
        ("its halves exchanged", lambda x: np.roll(x, x.shape[-1] // 2, axis=-1)),
        (
            "even and odd components apart (interleaved read as halves)",
            lambda x: np.concatenate([x[..., ::2], x[..., 1::2]], -1),
        ),
        (
            "halves read as interleaved",
            lambda x: (
                x.reshape(*x.shape[:-1], 2, -1).swapaxes(-1, -2).reshape(x.shape)
                if x.shape[-1] % 2 == 0
                else x
            ),
        ),
        ("0 in its place", np.zeros_like),
    )
    heads = (
        ("that of head 0 for all heads", lambda x, axis: np.take(x, np.zeros(x.shape[axis], int), axis)),
        ("that of the next head", lambda x, axis: np.roll(x, -1, axis)),
        ("that of the head before", lambda x, axis: np.roll(x, 1, axis)),
        ("that of the heads in reverse", lambda x, axis: np.flip(x, axis)),
    )
    for n, name in enumerate(names):
        ways = [(words, change) for words, change in components if n < 4]
        ways += [
            (f"the keys' own order shifted by {step}", lambda x, step=step: np.roll(x, step, axis=-2))
            for step in (1, -1)
            if n in (2, 3)
        ]
        if n in (0, 1):
            ways += [(words, lambda x, change=change: change(x, -3)) for words, change in heads]
        if n in (4, 5):
            ways += [(words, lambda x, change=change: change(x, 0)) for words, change in heads]
            ways += [
                (
                    "memory of (dim, heads, rank) read as (heads, dim, rank)",
                    lambda x: np.ascontiguousarray(x.swapaxes(0, 1)).reshape(x.shape),
                )
            ]
            ways += [
                (
                    "memory of (heads, dim, rank) read as (dim, heads, rank)",
                    lambda x: x.reshape(x.shape[1], x.shape[0], -1).swapaxes(0, 1),
                )
            ]
        if n in (0, 1, 4, 5):
            width = arrays[n].shape[-1]
            step = 8 if width <= 64 else 16 if width <= 128 else 64
            edges = [*range(0, width, step), width]
            for first in edges[:-1]:
                for last in edges[1:]:
                    if first < last and last - first < width:
                        for factor, what in ((2.0, "counted twice"), (0.0, "left out")):
                            ways.append(
                                (
                                    f"{what} in components {first} to {last - 1} of {width}",
                                    lambda x, first=first, last=last, factor=factor: _times(
                                        x, first, last, factor
                                    ),
                                )
                            )
        for words, change in ways:
            yield (
                f"{name} is {words}",
                tuple(change(array) if m == n else array for m, array in enumerate(arrays)),
                same,
            )


def _times(array, first, last, factor):
    changed = array.astype(np.float64)
    changed[..., first:last] *= factor
    return changed


def heads_swapped(measured):
    """MLA: words for an array of which some heads read another head's part; "" if there is none."""
    view = measured.view
    if (
        view.checked.form.name != "latent"
        or len(view.heads) != view.num_heads
        or view.num_heads > MOST_HEADS
    ):
        return ""
    for n, name, axis in ((4, "w_uk", 0), (5, "w_uv", 0), (0, "q_nope", -3), (1, "q_rope", -3)):
        source = {}
        for step in range(view.num_heads):
            arrays = [np.asarray(array) for array in view.arrays]
            arrays[n] = np.roll(arrays[n], -step, axis)
            checked = checked_call(*arrays, **view.options)
            with np.errstate(all="ignore"):
                output = run_stages(checked.part(0).drawn(), arithmetic=Arithmetic())[0]
            off = np.abs(view.cut(OUTPUT, output.reshape(checked.output_shape)) - measured.output)
            size = np.abs(measured.output) + measured.output_tolerance
            near = off <= 4 * measured.output_tolerance + 0.02 * size * (
                measured.spec.output.unit_roundoff > 1e-4
            )
            for h in np.flatnonzero(near.mean((0, 2, 3)) > RIGHT_SHARE):
                source.setdefault(int(h), (int(h) + step) % view.num_heads)
        if len(source) == view.num_heads and any(a != b for a, b in source.items()):
            words = ", ".join(f"{a} -> {b}" for a, b in sorted(source.items()) if a != b)
            return f"{name} is that of another head in some heads (head -> head: {words})"
    return ""
