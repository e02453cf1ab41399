"""Translate calls between a library's dialect and ours.

Everything is NumPy: the caller turns arrays into the library's tensors. Nothing here imports a library.
What is particular to packed sequences and pages stands in `structured`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from refattn.calls.arrays import as_array, as_int_array, is_float
from refattn.calls.dense import attention_problem
from refattn.calls.options import OPTIONS
from refattn.calls.registry import form_called
from refattn.exact.visibility import range_mask, row_bounds
from refattn.oracle.dialects.layouts import array_from_ours, array_to_ours
from refattn.oracle.dialects.libraries import dialect
from refattn.oracle.dialects.other_calls import call_of, call_read
from refattn.oracle.dialects.record import Dialect
from refattn.oracle.dialects.structured import (
    arrays_from_ours,
    pages_to_ours,
    structure_from_ours,
    structure_to_ours,
)

# arguments that carry no convention and pass through `to_ours` unread
IGNORED = {
    "enable_gqa",
    "dropout_p",
    "num_heads",
    "kv_num_heads",
    "q_num_heads",
    "is_causal",
    "diagonal_alignment",
    "head_dim_v",
    "implementation",
    "total_sequence_length",
    "right_window_size",
    "return_residual",
    "return_lse",
    "return_attn_probs",
    "return_softmax_lse",
    "deterministic",
    "num_splits",
    "pack_gqa",
    "sm_margin",
    "max_seqlen_q",
    "max_seqlen_k",
    "tile_scheduler_metadata",
    "scheduler_metadata",
    "smooth_softmax",
}
# arguments beside a table of pages, by the name of the table
ALSO = {"indices": ("indptr", "paged_kv_cache")}
# masks that are spelled: of MLX, and the classes of xFormers
CAUSAL_WORDS = ("causal", "LowerTriangularMask", "LowerTriangularFromBottomRightMask")
FLOAT32_MIN = np.finfo(np.float32).min * (1 - 2.0**-7)  # -3.39e38 is the lowest bfloat16
# options that `from_ours` says in a way of their own: any other one has an argument, or is refused
SPELLED_OR_DRAWN = {"scale", "bias", "mask", "causal", "window", "chunk", "kv_lengths", "q_offset"}


def to_ours(name: str, **call) -> tuple[str, tuple[np.ndarray, ...], dict[str, Any]]:
    """What a library's call means in our terms.

    Parameters
    ----------
    name : str
        Of a dialect.
    **call
        The library's own arguments under its own names, arrays as anything array-like.

    Returns
    -------
    function : str
        "attention", "packed_attention" or "paged_attention".
    arrays : tuple of ndarray
        In our layout.
    options : dict
        So that `refattn.<function>(*arrays, **options)` is what the library computes.

    Raises
    ------
    TypeError, ValueError
        An unknown dialect or argument, a missing array, other axes than the library's, or dropout.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.ones((1, 2, 3, 4))
    >>> to_ours("torch", query=x, key=x, value=x, is_causal=True)[2]
    {'causal': True, 'q_offset': 0}
    """
    call = {argument: value for argument, value in call.items() if value is not None}
    d = call_read(name, call)
    _require_known(d, call)
    arrays = pages_to_ours(d, call) if d.paged else _arrays(d, call)
    options: dict[str, Any] = {}
    _scale_to_ours(d, call, options)
    _mask_to_ours(d, call, arrays, options)
    _window_to_ours(d, call, options)
    _plain_to_ours(d, call, options)
    structure_to_ours(d, call, arrays, options)
    if {"causal", "window", "chunk"} & {*options} and _stands_top_left(d, call):
        options["q_offset"] = 0
    return d.function, arrays, options


def _require_known(d, call):
    """Every argument must be one of the call's, and all arrays must be there."""
    known = {*d.arguments.values(), *IGNORED, *ALSO.get(d.arguments.get("block_table", ""), ())}
    for argument in call:
        if argument not in known:
            ours = d.arguments.get(argument, "")
            raise ValueError(
                f"call must use the arguments of {d.call} "
                f"({', '.join(sorted({*d.arguments.values()}))}); got {argument!r}."
                + (f" What refattn calls {argument} is {ours} there." if ours else "")
            )
    needed = ["query", "key", "value"] if "paged_kv_cache" not in call else ["query"]
    for role in (*needed, "cu_q", "cu_kv", "block_table", *["kv_lengths"] * d.paged):
        if role in d.arguments and d.arguments[role] not in call:
            raise TypeError(f"{d.arguments[role]} must be given to {d.call}; got {d.arguments[role]}=None.")
    if call.get("dropout_p"):
        raise ValueError(
            "dropout_p must be 0: which weights the library dropped is not known; got "
            f"dropout_p={call['dropout_p']!r}."
        )


def _stands_top_left(d, call):
    if d.name == "onnx" and call.get("nonpad_kv_seqlen") is not None:
        return False
    if (
        call.get("diagonal_alignment") == "BOTTOM_RIGHT"
        or "FromBottomRight" in str(call.get("attn_bias", ""))[:60]
    ):
        return False
    return d.alignment == "top_left"


def _arrays(d: Dialect, call) -> tuple[np.ndarray, ...]:
    heads, kv_heads = call.get("num_heads"), call.get("kv_num_heads", call.get("num_heads"))
    names = [d.arguments[role] for role in ("query", "key", "value")]
    if "q_num_heads" in call:
        query = as_array(call[names[0]], names[0])
        raise ValueError(
            f"{names[0]} must have the axes (batch, heads, length, dim) here, without q_num_heads; got "
            f"{names[0]}.shape={query.shape}, q_num_heads={call['q_num_heads']!r}. "
            "(batch, length, heads * dim) is read after array.reshape(batch, length, heads, dim)"
            ".swapaxes(1, 2), results likewise."
        )
    return tuple(
        array_to_ours(call[argument], d.layout, count, argument)
        for argument, count in zip(names, (heads, kv_heads, kv_heads), strict=True)
    )


def _scale_to_ours(d, call, options):
    scale = call.get(d.arguments["scale"])
    if scale is not None and not (d.name == "onnxruntime_gqa" and scale == 0):
        options["scale"] = float(scale)
    elif d.default_scale == "1":
        options["scale"] = 1.0
    elif d.default_scale == "required":
        raise ValueError(
            f"{d.arguments['scale']} must be given: {d.call} has no default; got "
            f"{d.arguments['scale']}=None."
        )


def _is_causal(d, call):
    """Whether the argument that says so is true: a boolean, or 0 or 1, of any library."""
    argument = d.arguments.get("causal", "")
    value = call.get(argument)
    if value is None or "causal" not in argument:  # a mask, or a band, which may be that of a causal call
        return value is True
    flag = np.asarray(as_array(value, argument))
    if flag.size != 1 or flag.dtype.kind not in "bui" or flag.item() not in (0, 1):
        raise ValueError(f"{argument} must be True or False; got {argument}={value!r}.")
    return bool(flag.item())


def _mask_to_ours(d, call, arrays, options):
    rank = arrays[0].ndim
    for argument in {d.arguments.get(role) for role in ("mask", "bias")} - {None}:
        value = call.get(argument)
        if value is None or isinstance(value, str):
            continue
        value = as_array(value, argument)
        value = value.reshape((1,) * (rank - value.ndim) + value.shape) if 2 < value.ndim < rank else value
        if value.dtype != np.bool_ and d.hidden.startswith("finfo.min") and is_float(value.dtype):
            lowest = np.finfo(value.dtype).min if value.dtype.kind == "f" else FLOAT32_MIN
            value = np.where(value <= lowest, value.dtype.type(-np.inf), value)
        options["mask" if value.dtype == np.bool_ else "bias"] = value
    if d.always_causal or _is_causal(d, call) or call.get("is_causal") in (True, 1):
        options["causal"] = True
    spelled = call.get(d.arguments.get("causal", ""))
    if isinstance(spelled, str):
        if spelled not in CAUSAL_WORDS:
            raise ValueError(
                f"{d.arguments['causal']} must be an array or one of {', '.join(CAUSAL_WORDS)}; got "
                f"{d.arguments['causal']}={spelled!r}."
            )
        options["causal"] = True


def _window_to_ours(d, call, options):
    value = call.get(d.arguments.get("window", ""))
    if d.window is None or (value is None and d.window not in ("two", "cudnn")):
        return
    sides = value if isinstance(value, tuple | list) else (value, value)
    if len(sides) != 2 or not all(side is None or isinstance(side, int | np.integer) for side in sides):
        raise ValueError(
            f"{d.arguments['window']} must be an integer or a pair of them; got "
            f"{d.arguments['window']}={value!r}."
        )
    limit = lambda side: None if side is None or side == d.window_none or side < 0 else int(side)
    if d.window == "pair":
        left, right = map(limit, sides)
    elif d.window == "left":
        left, right = limit(value), None
    elif d.window == "count":
        left, right = (None if value is None or value < 0 else int(value) - 1), None
    elif d.window == "two":
        left, right = limit(value), limit(call.get("right_window_size"))
    else:
        left, right = (None if value is None else int(value) - 1), call.get(d.arguments["causal"])
        if right == 0:
            options["causal"], right = True, None
    if left is not None or right is not None:
        options["window"] = (left, right)


def _plain_to_ours(d, call, options):
    softcap = call.get(d.arguments.get("softcap", ""))
    if softcap is not None and softcap != d.softcap_none:
        options["softcap"] = float(softcap)
    chunk = call.get(d.arguments.get("chunk", ""))
    if chunk is not None and not (isinstance(chunk, int | np.integer) and chunk < 1):  # which is no chunk
        options["chunk"] = chunk
    for role in ("alibi_slopes", "sinks"):
        value = call.get(d.arguments.get(role, ""))
        if value is not None:
            options[role] = np.ravel(as_array(value, role)) if role == "sinks" else as_array(value, role)
    if call.get("smooth_softmax"):
        options["sinks"] = np.zeros(call["num_heads"])
    lengths = call.get(d.arguments.get("kv_lengths", ""))
    if lengths is not None:
        lengths = as_int_array(lengths, d.arguments["kv_lengths"])
        lengths = np.ravel(lengths) if lengths.ndim else lengths
        options["kv_lengths"] = lengths + (d.lengths == "count - 1")


def from_ours(name: str, query, key, value, **options) -> dict[str, Any]:
    """Our call as a library's arguments: dense, or with `cu_q` packed, with `block_table` paged.

    What the library cannot spell (another alignment, a window, chunks, lengths, ALiBi) goes into its mask,
    drawn out, where it takes one; in float32 beside arrays of 16 bits, if the library takes that and
    rounding would change it.

    Parameters
    ----------
    name : str
        Of a dialect.
    query, key, value : array_like
        In our layout; of a paged call the pages.
    **options
        Of the function, without dropout.

    Returns
    -------
    dict
        The library's argument names; arrays are NumPy.

    Raises
    ------
    ValueError
        The library has no way to say it.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.ones((1, 2, 3, 4))
    >>> sorted(from_ours("flash_attn", x, x, x, causal=True, window=(1, None)))
    ['causal', 'k', 'q', 'softmax_scale', 'v', 'window_size']
    """
    if "cu_q" in options or "block_table" in options:
        d = call_of(name, "packed_attention" if "cu_q" in options else "paged_attention")
        return _structured_from_ours(d, (query, key, value), options)
    d = dialect(name)
    if d.paged:
        raise ValueError(
            f"block_table must be given: {d.call} reads pages; got dialect={name!r} without block_table."
        )
    p = _causal_if_one_row(d, attention_problem(query, key, value, **options))
    if p.dropout_mask is not None:
        raise ValueError(
            f"dropout_mask must be None: {d.call} draws its own; got "
            f"dropout_mask.shape={p.dropout_mask.shape}."
        )
    call = {
        d.arguments[role]: array_from_ours(array, d.layout)
        for role, array in (("query", p.query), ("key", p.key), ("value", p.value))
    }
    call[d.arguments["scale"]] = p.scale
    if d.layout == "BTM":
        call |= {"num_heads": p.num_heads, "kv_num_heads": p.num_kv_heads}
    for option in OPTIONS:
        name = option.name
        if name in SPELLED_OR_DRAWN or options.get(name) is None:
            continue
        if name in d.arguments:
            call[d.arguments[name]] = options[name]
        elif name != "alibi_slopes":  # which can be drawn
            raise ValueError(f"{name} must be None: {d.call} has none; got {name}={options[name]!r}.")
    drawn = _visibility_from_ours(d, p, call)
    _masks_from_ours(d, p, call, drawn)
    return call


def _structured_from_ours(d, arrays, options):
    """Our packed or paged call as a library's arguments."""
    p = form_called(d.function).check(*arrays, **options)
    for option in ("mask", "bias", "dropout_mask"):
        if options.get(option) is not None:
            raise ValueError(f"{option} must be None: {d.call} has none.")
    call = arrays_from_ours(d, arrays)
    call |= structure_from_ours(d, p, arrays)
    call[d.arguments["scale"]] = p.scale
    spelled = {*SPELLED_OR_DRAWN, *p.form.structure}
    for name, value in options.items():
        if name not in spelled and value is not None:
            if name not in d.arguments:
                raise ValueError(f"{name} must be None: {d.call} has none.")
            call[d.arguments[name]] = value
    rows = np.diff(p.cu_q) if "cu_q" in p.form.structure else p.query.shape[-2]
    aligned = (np.asarray(p.q_offset) == p.kv_lengths - rows).all()
    if not aligned and (p.bounded or p.alibi_slopes is not None):
        raise ValueError(f"q_offset must be left out: {d.call} puts the last row at the last key.")
    row_at_end = "T" not in d.layout and p.right == 0 and aligned  # causal or not is the same
    if not (row_at_end or _spellable_window(d, p)):
        raise ValueError(f"window must be one that {d.call} can say.")
    if p.right == 0 and not row_at_end:
        call[d.arguments["causal"]] = True
    _spell_window(d, p, call)
    return call


def _causal_if_one_row(d, p):
    """Where the library is always causal: one row on the last key sees all keys, causal or not."""
    last = np.asarray(p.kv_lengths) - 1
    if not d.always_causal or p.q_len != 1 or p.right == 0:
        return p
    if (np.asarray(p.q_offset) == last).all():
        return replace(p, right=0)
    return p if p.bounded or p.alibi_slopes is not None else replace(p, right=0, q_offset=last)


def _visibility_from_ours(d, p, call):
    """Spell causality, window, chunk and lengths natively if possible; whether they must be drawn as a mask
    instead.
    """
    lengths = np.asarray(p.kv_lengths)
    short = bool((lengths != p.kv_len).any())
    start = np.zeros_like(lengths) if d.alignment == "top_left" else lengths - p.q_len
    if d.name == "onnx" and short:
        start = lengths - p.q_len
    aligned = bool((np.asarray(p.q_offset) == start).all())
    if p.alibi_slopes is not None and "alibi_slopes" in d.arguments and not aligned:
        raise ValueError(
            f"q_offset must be left out beside alibi_slopes: {d.call} counts distances from its own "
            f"alignment; got q_offset={p.q_offset.tolist()}."
        )
    aligned = aligned or not p.bounded
    spellable = aligned and not (short and "kv_lengths" not in d.arguments) and _spellable_window(d, p)
    if d.always_causal and not (spellable and p.right == 0):
        raise ValueError(f"causal must be True with rows at the end of the keys: {d.call} is always causal.")
    if not spellable:
        return True
    drawn = p.mask is not None or p.bias is not None or p.alibi_slopes is not None
    if (
        (d.arguments.get("causal") == d.arguments.get("mask") or d.name == "torch")
        and p.right == 0
        and drawn
    ):
        return True  # one argument cannot be "causal" and an array; torch takes both on some backends only
    if short:
        call[d.arguments["kv_lengths"]] = lengths - (d.lengths == "count - 1")
    if p.right == 0 and not d.always_causal:
        call[d.arguments["causal"]] = {"mlx": "causal", "cudnn": 0, "xformers": "LowerTriangularMask"}.get(
            d.name, True
        )
    _spell_window(d, p, call)
    return False


def _spellable_window(d, p):
    if p.chunk is not None and "chunk" not in d.arguments:
        return False
    if p.left is None and p.right in (None, 0):
        return p.right is None or "causal" in d.arguments or d.always_causal
    if d.window in ("pair", "two", "cudnn"):
        return not (d.window == "cudnn" and p.right is None and p.left is not None)
    return d.window in ("left", "count") and p.right == 0


def _spell_window(d, p, call):
    if p.chunk is not None:
        call[d.arguments["chunk"]] = p.chunk
    if p.left is None and p.right in (None, 0):
        return
    none = d.window_none
    left, right = (none if side is None else side for side in (p.left, p.right))
    if d.window == "pair":
        call[d.arguments["window"]] = (left, right)
    elif d.window == "two":
        call |= {"left_window_size": left, "right_window_size": right}
    elif d.window == "left":
        call[d.arguments["window"]] = left
    elif d.window == "count":
        call[d.arguments["window"]] = none if p.left is None else p.left + 1
    else:
        call |= {
            "diagonal_band_left_bound": None if p.left is None else p.left + 1,
            "diagonal_band_right_bound": p.right,
        }


def _masks_from_ours(d, p, call, drawn):
    mask, bias = p.mask, None if p.bias is None else p.bias.astype(np.float64)
    if drawn:
        seen = range_mask(*row_bounds(p, p.position, p.kv_lengths[..., None]), 0, p.kv_len)[..., None, :, :]
        mask = seen if mask is None else mask & seen
    if p.alibi_slopes is not None and "alibi_slopes" not in d.arguments:
        distance = np.abs(p.position[..., None, :, None] - np.arange(p.kv_len))
        term = -np.asarray(p.alibi_slopes)[..., None, None] * distance
        bias = term if bias is None else bias + term
    refusal = (
        f"{'mask' if p.chunk is None else 'chunk'} must be None: {d.call} takes neither this mask nor this "
        "alignment, window or chunk."
    )
    separate = (
        d.arguments.get("mask") is not None
        and d.arguments.get("mask") != d.arguments.get("bias")
        and d.mask_true == "attend"
    )
    if mask is not None and (bias is not None or d.mask_true is None) and not separate:
        if not d.additive_mask:
            raise ValueError(refusal)
        fill = -np.inf if d.empty_output == "zero" else np.finfo(np.float32).min
        bias, mask = np.where(mask, 0.0 if bias is None else bias, fill), None
    if mask is not None:
        if d.arguments.get("mask") is None or d.mask_true is None:
            raise ValueError(refusal)
        call[d.arguments["mask"]] = np.ascontiguousarray(
            np.broadcast_to(mask, (*p.query.shape[:-1], p.kv_len))
        )
    if bias is not None:
        if d.arguments.get("bias") is None:
            raise ValueError(f"bias must be None: {d.call} has none.")
        wide = p.alibi_slopes is not None or (p.bias is not None and p.bias.dtype.itemsize > 2)
        kind = (
            np.dtype(np.float32)
            if wide and d.float32_bias and p.query.dtype.itemsize == 2
            else p.query.dtype
        )
        call[d.arguments["bias"]] = np.ascontiguousarray(
            np.broadcast_to(bias, (*p.query.shape[:-1], p.kv_len))
        ).astype(kind)
