"""The options every attention function shares: checked once, put into one form.

Every rule about bias, mask, scale, causal, window, softcap, ALiBi, sinks, lengths, offsets and dropout is stated here and nowhere
else. Causality is a window whose right side is 0, so nothing after this file knows the word.
"""

import functools
import inspect
import math
import numbers
import operator
from collections.abc import Callable
from typing import TypeVar, overload

import numpy as np

from refattn.interop import as_bool_array, as_float_array, as_int_array

LARGEST_OFFSET = 2**53  # positions stay exact in float64, where ALiBi multiplies them
OPTION_NAMES = (
    "bias", "mask", "scale", "causal", "window", "softcap", "alibi_slopes", "sinks", "kv_lengths", "q_offset", "dropout_mask", "dropout_rate",
)  # fmt: skip
PER_SCORE = ("bias", "mask", "dropout_mask")  # of shape (*batch, H, T, S) once checked
PER_HEAD = ("alibi_slopes", "sinks")  # (*batch, H)
PER_ENTRY = ("kv_lengths", "q_offset")  # (*batch,)
LARGEST_SOFTCAP = 2.0**900  # caps nothing, and its products stay inside float64
UNLIMITED = 2**60  # wider than any array; keeps `position - left` inside int64


def checked_options(
    batch_shape,
    num_heads,
    q_len,
    kv_len,
    head_dim,
    scores_shape=None,
    /,
    *,
    bias=None,
    mask=None,
    scale=None,
    causal=False,
    window=None,
    softcap=None,
    alibi_slopes=None,
    sinks=None,
    kv_lengths=None,
    q_offset=None,
    dropout_mask=None,
    dropout_rate=None,
    **unknown,
):
    """Return the options as the fields of `refattn.problem.Problem`.

    `batch_shape` is the shape of `kv_lengths` and `q_offset`; `scores_shape` is what bias and masks broadcast to, by default
    `(*batch_shape, num_heads, q_len, kv_len)`. Packed sequences set it apart: there q_len and kv_len are arrays, one entry a sequence.
    """
    for name in unknown:
        raise TypeError(f"options must be among {', '.join(OPTION_NAMES)}; got {name}.")
    if scores_shape is None:
        scores_shape = (*batch_shape, num_heads, q_len, kv_len)
    left, right = checked_window(window, causal)
    kv_lengths = checked_lengths(kv_lengths, batch_shape, kv_len)
    return {
        "bias": None if bias is None else fitted(as_float_array(bias, "bias"), "bias", scores_shape),
        "mask": None if mask is None else fitted(as_bool_array(mask, "mask"), "mask", scores_shape),
        "scale": 1 / math.sqrt(head_dim) if scale is None else checked_number(scale, "scale"),
        "left": left,
        "right": right,
        "softcap": None if softcap is None else checked_softcap(softcap),
        "alibi_slopes": None if alibi_slopes is None else checked_slopes(alibi_slopes, batch_shape, num_heads),
        "sinks": None if sinks is None else checked_sinks(sinks, batch_shape, num_heads),
        "kv_lengths": kv_lengths,
        "q_offset": checked_offset(q_offset, batch_shape, kv_lengths, q_len),
        **checked_dropout(dropout_mask, dropout_rate, scores_shape),
    }


Function = TypeVar("Function", bound=Callable)


@overload
def takes_options(function: Function) -> Function: ...
@overload
def takes_options(*, without: tuple[str, ...]) -> Callable[[Function], Function]: ...
def takes_options(function=None, *, without=()):
    """Show the options by name in the signature of a function that passes **options on, for help() and editors.

    A decorator, plain or with the names of options that the function does not take; the function itself stays as it is.
    """
    if function is None:
        return functools.partial(takes_options, without=without)
    own = inspect.signature(function).parameters
    shared = inspect.signature(checked_options).parameters
    shown = [parameter for parameter in own.values() if parameter.kind is not parameter.VAR_KEYWORD]
    shown += [shared[name] for name in OPTION_NAMES if name not in own and name not in without]
    function.__signature__ = inspect.Signature(shown)
    return function


def checked_integer(value, name, least=None):
    """An integer of at least `least` as a Python int."""
    try:
        integer = None if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        integer = None
    if integer is None:
        raise TypeError(f"{name} must be an integer; got {name}={value!r} of type {type(value).__name__}.")
    if least is not None and integer < least:
        raise ValueError(f"{name} must be at least {least}; got {name}={integer}.")
    return integer


def checked_number(value, name):
    """A finite real number as a Python float."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a real number; got {name}={value!r} of type {type(value).__name__}.")
    try:
        number = float(value)
    except OverflowError:  # integers and fractions can be larger
        number = math.inf if value > 0 else -math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite; got {name}={number}.")
    return number


def checked_softcap(softcap):
    cap = checked_number(softcap, "softcap")
    if cap <= 0:
        raise ValueError(f"softcap must be greater than 0; got softcap={cap}. Pass None to leave scores uncapped.")
    return min(cap, LARGEST_SOFTCAP)


def checked_window(window, causal):
    """(left, right) as integers or None for unlimited, with causality folded in as right <= 0."""
    if not isinstance(causal, (bool, np.bool_)):
        raise TypeError(f"causal must be True or False; got causal={causal!r} of type {type(causal).__name__}.")
    left = right = None
    if window is not None:
        if not isinstance(window, (tuple, list)) or len(window) != 2:
            raise TypeError(
                f"window must be a pair (left, right); got window={window!r}. "
                "A causal window of the last n keys is causal=True, window=(n - 1, None)."
            )
        left, right = (checked_side(side, name) for side, name in zip(window, ("left", "right"), strict=True))
    return left, (right if not causal else 0)


def checked_side(side, name):
    if side is None:
        return None
    if isinstance(side, (bool, np.bool_)) or not isinstance(side, numbers.Integral):
        raise TypeError(f"window must hold integers or None; got window {name}={side!r} of type {type(side).__name__}.")
    side = int(side)
    if side < 0:
        raise ValueError(f"window must hold integers >= 0 or None; got window {name}={side}. None means unlimited.")
    return min(side, UNLIMITED)


def fitted(array, name, scores_shape):
    """`array` as a read-only view of `scores_shape`; nothing is copied.

    Two axes, or all of them: with three axes against four, (B, T, S) and (H, T, S) could not be told apart.
    """
    ndim = len(scores_shape)
    if array.ndim > 2 and array.ndim != ndim:
        hint = ""
        if array.ndim == ndim - 1:
            hint = f" Write {name}[:, None] for one {name} a batch entry, {name}[None] for one a head."
        raise ValueError(f"{name} must have at most 2 axes or all {ndim} of (..., heads, q_len, kv_len); got {name}.ndim={array.ndim}.{hint}")
    wanted = scores_shape[ndim - array.ndim :]
    if any(size not in (1, full) for size, full in zip(array.shape, wanted, strict=True)):
        raise ValueError(f"{name} must broadcast to (..., heads, q_len, kv_len)={scores_shape}; got {name}.shape={array.shape}.")
    return np.broadcast_to(array, scores_shape)


def checked_slopes(alibi_slopes, batch_shape, num_heads):
    slopes = as_float_array(alibi_slopes, "alibi_slopes")
    full = (*batch_shape, num_heads)
    if slopes.shape not in ((num_heads,), full):
        raise ValueError(f"alibi_slopes must have shape {slope_shapes(full)}; got alibi_slopes.shape={slopes.shape}.")
    slopes = slopes.astype(np.float64)
    infinite = ~np.isfinite(slopes)
    if infinite.any():
        raise ValueError(f"alibi_slopes must be finite; got {first_wrong('alibi_slopes', slopes, infinite)}.")
    return np.broadcast_to(slopes, full)


def first_wrong(name, array, wrong):
    """The name, place and value of the first wrong element, as text."""
    index = np.argwhere(wrong)[0]
    return f"{name}[{', '.join(map(str, index))}]={array[tuple(index)]}"


def slope_shapes(full):
    """The shapes slopes may have, as text."""
    return f"{full[-1:]}" if len(full) == 1 else f"{full[-1:]} or {full}"


def checked_sinks(sinks, batch_shape, num_heads):
    sinks = as_float_array(sinks, "sinks")
    if sinks.shape != (num_heads,):
        raise ValueError(f"sinks must have shape {(num_heads,)}, one logit a query head; got sinks.shape={sinks.shape}.")
    sinks = sinks.astype(np.float64)
    wrong = ~(sinks < np.inf)
    if wrong.any():
        raise ValueError(f"sinks must be finite or -inf; got {first_wrong('sinks', sinks, wrong)}.")
    return np.broadcast_to(sinks, (*batch_shape, num_heads))


def checked_integers(values, name, batch_shape):
    """Integers, one for each batch entry; a single one stands for all."""
    integers = as_int_array(values, name)
    if integers.shape not in ((), batch_shape):
        raise ValueError(f"{name} must be an integer or have shape {batch_shape}; got {name}.shape={integers.shape}.")
    return integers if integers.shape == batch_shape else np.full(batch_shape, integers)


def checked_lengths(kv_lengths, batch_shape, kv_len):
    if kv_lengths is None:
        return np.full(batch_shape, kv_len, dtype=np.int64)
    lengths = checked_integers(kv_lengths, "kv_lengths", batch_shape)
    wrong = (lengths < 0) | (lengths > kv_len)
    if wrong.any():
        capacity = np.broadcast_to(kv_len, batch_shape)[wrong].flat[0]
        raise ValueError(f"kv_lengths must be between 0 and kv_len={capacity}; got kv_lengths={lengths[wrong].flat[0]}.")
    return lengths


def checked_offset(q_offset, batch_shape, kv_lengths, q_len):
    """The key position of query row 0. The default puts the last row on the last key."""
    if q_offset is None:
        return kv_lengths - q_len
    offset = checked_integers(q_offset, "q_offset", batch_shape)
    wrong = (offset < -LARGEST_OFFSET) | (offset > LARGEST_OFFSET)
    if wrong.any():
        raise ValueError(f"q_offset must be between -2**53 and 2**53; got q_offset={offset[wrong].flat[0]}.")
    return offset


def checked_dropout(dropout_mask, dropout_rate, scores_shape):
    if dropout_mask is None and dropout_rate is None:
        return {"dropout_mask": None, "keep_scale": 1.0}
    if dropout_mask is None:
        raise ValueError(f"dropout_mask must be given with dropout_rate; got dropout_rate={dropout_rate!r} alone. True keeps a weight.")
    if dropout_rate is None:
        raise ValueError("dropout_rate must be given with dropout_mask; got dropout_mask alone. Kept weights are divided by 1 - dropout_rate.")
    keep = fitted(as_bool_array(dropout_mask, "dropout_mask"), "dropout_mask", scores_shape)
    rate = checked_number(dropout_rate, "dropout_rate")
    if not 0 <= rate < 1:
        raise ValueError(f"dropout_rate must be at least 0 and less than 1; got dropout_rate={rate}.")
    return {"dropout_mask": keep, "keep_scale": 1 / (1 - rate)}
