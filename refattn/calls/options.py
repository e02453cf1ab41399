"""The options that every attention function shares: one row of `OPTIONS` each, from which everything else
reads.

A row says what an option is called, what one value of it belongs to, its default, how it is checked, what
it means, the value that changes nothing, and values to try. Signatures, validation, inputs, mistakes, vector
files, the harness and tests read the rows; the mathematics of an option stands where it is computed, that of
`Visibility` in `refattn.exact.visibility`. Causality is a window whose right side is 0: `Options`
has no field of that name.
"""

import functools
import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, TypeVar, overload

import numpy as np

from refattn.calls.arrays import as_bool_array, as_float_array
from refattn.calls.checks import checked_integer, checked_integers, checked_number, first_wrong, fitted

LARGEST_OFFSET = 2**53  # positions stay exact in float64, where ALiBi multiplies them
LARGEST_SOFTCAP = 2.0**900  # caps nothing, and its products stay inside float64
LARGEST_CHUNK = 2**55  # holds every position from 0 on
UNLIMITED = 2**60  # wider than any array; keeps `position - left` inside int64

# What one value of an option belongs to, as the axes it has once checked; batch stands for any number of
# leading axes.
PER_CALL = ""
PER_ENTRY = "batch"
PER_HEAD = "head"
PER_SCORE = "batch head row key"


class Visibility(NamedTuple):
    """The rules by which the position of a row decides what keys it sees: fields of `Options`, each an
    integer, or None for no limit.
    """

    left: int | None
    right: int | None
    chunk: int | None = None


@dataclass(frozen=True, eq=False)
class Options:
    """The options in their one form, once checked."""

    bias: np.ndarray | None  # (*batch, H, T, S), broadcast view
    mask: np.ndarray | None  # (*batch, H, T, S), broadcast view, True = may attend
    scale: float
    left: int | None  # visible iff position - left <= j; None = unlimited
    right: int | None  # visible iff j <= position + right; causal is 0
    chunk: int | None  # visible iff j // chunk == position // chunk
    softcap: float | None
    alibi_slopes: np.ndarray | None  # (*batch, H)
    sinks: np.ndarray | None  # (*batch, H)
    kv_lengths: np.ndarray  # (*batch,) int64
    q_offset: np.ndarray  # (*batch,) int64, key position of row 0
    dropout_mask: np.ndarray | None  # (*batch, H, T, S), broadcast view, True = keep
    keep_scale: float  # 1 / (1 - dropout_rate)

    def options(self):
        """The options alone, as keywords for another problem of the same shape."""
        return {field.name: getattr(self, field.name) for field in fields(Options)}

    @property
    def visibility(self):
        return Visibility._make(getattr(self, name) for name in Visibility._fields)

    @property
    def bounded(self):
        """Whether position decides what keys a row sees."""
        return any(limit is not None for limit in self.visibility)

    def with_arrays(self, change):
        """The options with `change(array, belongs_to)` in the place of each array that is given."""
        options = self.options()
        for option in OPTIONS:
            if option.belongs_to != PER_CALL and options[option.name] is not None:
                options[option.name] = change(options[option.name], option.belongs_to)
        return Options(**options)

    def options_at(self, *, per_score=..., per_head=..., per_entry=...):
        """The options, those of each kind cut to one place."""
        places = {PER_SCORE: per_score, PER_HEAD: per_head, PER_ENTRY: per_entry}
        return self.with_arrays(lambda array, belongs_to: array[places[belongs_to]])

    def of_heads(self, heads):
        """The options of some query heads, a slice of them."""
        return self.options_at(per_score=(..., heads, slice(None), slice(None)), per_head=(..., heads))


@dataclass(frozen=True)
class Sizes:
    """The sizes of a call that its options are checked against.

    `batch_shape` is the shape of `kv_lengths` and `q_offset`; `scores_shape` is what bias and masks
    broadcast to. Packed sequences set it apart: there q_len and kv_len are arrays, one entry a sequence.
    """

    batch_shape: tuple
    num_heads: int
    q_len: Any
    kv_len: Any
    head_dim: int
    scores_shape: tuple = ()

    def __post_init__(self):
        if not self.scores_shape:
            object.__setattr__(
                self, "scores_shape", (*self.batch_shape, self.num_heads, self.q_len, self.kv_len)
            )


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes
    ----------
    name : str
        As callers write it.
    belongs_to : str
        PER_CALL, PER_ENTRY, PER_HEAD or PER_SCORE: whether there is one value for the whole call or one
        for each batch entry, head or score.
    default : None or False
        The option is not in use.
    check : callable (given, sizes, checked) -> dict
        From all options as they were given, the sizes of the call, and the fields decided by the rows
        before: the fields of `Options` that this row decides. Raises TypeError or ValueError.
    meaning : str
        A phrase for help and tables.
    neutral : callable (sizes) -> value
        A value under which a call gives what it gives without the option.
    examples : mapping of str to callable (sizes, rng) -> value
        Values that change the result, by words that inputs ask with, the most usual first.
    """

    name: str
    belongs_to: str
    default: Any
    check: Callable[[dict, Sizes, dict], dict]
    meaning: str
    neutral: Callable[[Sizes], Any]
    examples: Mapping[str, Callable[[Sizes, np.random.Generator], Any]]


def check_bias(given, sizes, checked):
    bias = given["bias"]
    return {
        "bias": None if bias is None else fitted(as_float_array(bias, "bias"), "bias", sizes.scores_shape)
    }


def check_mask(given, sizes, checked):
    mask = given["mask"]
    return {
        "mask": None if mask is None else fitted(as_bool_array(mask, "mask"), "mask", sizes.scores_shape)
    }


def check_scale(given, sizes, checked):
    scale = given["scale"]
    return {"scale": 1 / math.sqrt(sizes.head_dim) if scale is None else checked_number(scale, "scale")}


def check_window(given, sizes, checked):
    """(left, right) as integers or None for unlimited, with causality folded in as right = 0."""
    window, causal = given["window"], given["causal"]
    if not isinstance(causal, (bool, np.bool_)):
        raise TypeError(
            f"causal must be True or False; got causal={causal!r} of type {type(causal).__name__}."
        )
    left = right = None
    if window is not None:
        if not isinstance(window, (tuple, list)) or len(window) != 2:
            raise TypeError(
                f"window must be a pair (left, right); got window={window!r}. "
                "A causal window of the last n keys is causal=True, window=(n - 1, None)."
            )
        left, right = (
            checked_side(side, name) for side, name in zip(window, ("left", "right"), strict=True)
        )
    return {"left": left, "right": 0 if causal else right}


def checked_side(side, name):
    if side is None:
        return None
    if isinstance(side, (bool, np.bool_)) or not isinstance(side, numbers.Integral):
        raise TypeError(
            f"window must hold integers or None; got window {name}={side!r} of type {type(side).__name__}."
        )
    side = int(side)
    if side < 0:
        raise ValueError(
            f"window must hold integers >= 0 or None; got window {name}={side}. None means unlimited."
        )
    return min(side, UNLIMITED)


def check_chunk(given, sizes, checked):
    if given["chunk"] is None:
        return {"chunk": None}
    return {"chunk": min(checked_integer(given["chunk"], "chunk", 1), LARGEST_CHUNK)}


def check_softcap(given, sizes, checked):
    if given["softcap"] is None:
        return {"softcap": None}
    cap = checked_number(given["softcap"], "softcap")
    if cap <= 0:
        raise ValueError(
            f"softcap must be greater than 0; got softcap={cap}. Pass None to leave scores uncapped."
        )
    return {"softcap": min(cap, LARGEST_SOFTCAP)}


def check_alibi_slopes(given, sizes, checked):
    if given["alibi_slopes"] is None:
        return {"alibi_slopes": None}
    slopes = as_float_array(given["alibi_slopes"], "alibi_slopes")
    full = (*sizes.batch_shape, sizes.num_heads)
    if slopes.shape not in ((sizes.num_heads,), full):
        shapes = f"{full[-1:]}" if len(full) == 1 else f"{full[-1:]} or {full}"
        raise ValueError(f"alibi_slopes must have shape {shapes}; got alibi_slopes.shape={slopes.shape}.")
    slopes = slopes.astype(np.float64)
    infinite = ~np.isfinite(slopes)
    if infinite.any():
        raise ValueError(
            f"alibi_slopes must be finite; got {first_wrong('alibi_slopes', slopes, infinite)}."
        )
    return {"alibi_slopes": np.broadcast_to(slopes, full)}


def check_sinks(given, sizes, checked):
    if given["sinks"] is None:
        return {"sinks": None}
    sinks = as_float_array(given["sinks"], "sinks")
    if sinks.shape != (sizes.num_heads,):
        raise ValueError(
            f"sinks must have shape {(sizes.num_heads,)}, one logit a query head; got "
            f"sinks.shape={sinks.shape}."
        )
    sinks = sinks.astype(np.float64)
    wrong = ~(sinks < np.inf)
    if wrong.any():
        raise ValueError(f"sinks must be finite or -inf; got {first_wrong('sinks', sinks, wrong)}.")
    return {"sinks": np.broadcast_to(sinks, (*sizes.batch_shape, sizes.num_heads))}


def check_kv_lengths(given, sizes, checked):
    if given["kv_lengths"] is None:
        return {"kv_lengths": np.full(sizes.batch_shape, sizes.kv_len, dtype=np.int64)}
    lengths = checked_integers(given["kv_lengths"], "kv_lengths", sizes.batch_shape)
    wrong = (lengths < 0) | (lengths > sizes.kv_len)
    if wrong.any():
        capacity = np.broadcast_to(sizes.kv_len, sizes.batch_shape)[wrong].flat[0]
        raise ValueError(
            f"kv_lengths must be between 0 and kv_len={capacity}; got kv_lengths={lengths[wrong].flat[0]}."
        )
    return {"kv_lengths": lengths}


def check_q_offset(given, sizes, checked):
    """The key position of query row 0. The default puts the last row on the last key."""
    if given["q_offset"] is None:
        return {"q_offset": checked["kv_lengths"] - sizes.q_len}
    offset = checked_integers(given["q_offset"], "q_offset", sizes.batch_shape)
    wrong = (offset < -LARGEST_OFFSET) | (offset > LARGEST_OFFSET)
    if wrong.any():
        raise ValueError(f"q_offset must be between -2**53 and 2**53; got q_offset={offset[wrong].flat[0]}.")
    return {"q_offset": offset}


def check_dropout(given, sizes, checked):
    mask, rate = given["dropout_mask"], given["dropout_rate"]
    if mask is None and rate is None:
        return {"dropout_mask": None, "keep_scale": 1.0}
    if mask is None:
        raise ValueError(
            f"dropout_mask must be given with dropout_rate; got dropout_rate={rate!r} alone. True keeps a "
            "weight."
        )
    if rate is None:
        raise ValueError(
            "dropout_rate must be given with dropout_mask; got dropout_mask alone. "
            "Kept weights are divided by 1 - dropout_rate."
        )
    keep = fitted(as_bool_array(mask, "dropout_mask"), "dropout_mask", sizes.scores_shape)
    rate = checked_number(rate, "dropout_rate")
    if not 0 <= rate < 1:
        raise ValueError(f"dropout_rate must be at least 0 and less than 1; got dropout_rate={rate}.")
    return {"dropout_mask": keep, "keep_scale": 1 / (1 - rate)}


def check_elsewhere(given, sizes, checked):
    """Checked together with the option it is given with."""
    return {}


def kept_before(sizes):
    """The width of a window that hides most keys of the shortest sequence."""
    return max(int(np.min(sizes.kv_len, initial=UNLIMITED)) // 8, 1)


def short_chunk(sizes):
    """A chunk with edges among the rows and among the keys of the shortest sequence."""
    return min(kept_before(sizes), max(int(np.min(sizes.q_len, initial=UNLIMITED)) // 2, 4))


# fmt: off
OPTIONS = (
    Option("bias", PER_SCORE, None, check_bias, "added to the scores; -inf hides",
           lambda s: np.zeros(s.scores_shape),
           {"bias": lambda s, rng: rng.standard_normal(s.scores_shape)}),
    Option("mask", PER_SCORE, None, check_mask, "True where a row may attend to a key",
           lambda s: np.ones(s.scores_shape, bool),
           {"mask": lambda s, rng: rng.random(s.scores_shape) < 0.7}),
    Option("scale", PER_CALL, None, check_scale, "multiplies the scores; by default 1 / sqrt(head_dim)",
           lambda s: 1 / math.sqrt(s.head_dim),
           {"own scale": lambda s, rng: 1.3 * s.head_dim**-0.5}),
    Option("causal", PER_CALL, False, check_elsewhere, "no row sees a key behind its own position",
           lambda s: False,
           {"causal": lambda s, rng: True}),
    Option("window", PER_CALL, None, check_window, "(left, right): keys seen before and behind the position",
           lambda s: (None, None),
           {"left window": lambda s, rng: (kept_before(s), None),
            "two-sided window": lambda s, rng: (kept_before(s), max(kept_before(s) // 2, 2))}),
    Option("chunk", PER_CALL, None, check_chunk, "rows see keys of their own chunk of positions only",
           # rows before key 0 are in no chunk of a key, however large
           lambda s: LARGEST_CHUNK if np.all(s.q_len <= s.kv_len) else None,
           {"chunk": lambda s, rng: short_chunk(s)}),
    Option("softcap", PER_CALL, None, check_softcap, "scores become softcap * tanh(score / softcap)",
           lambda s: 2.0**60,  # scores divided by it are still normal numbers of float32
           {"softcap": lambda s, rng: 1.5}),
    Option("alibi_slopes", PER_HEAD, None, check_alibi_slopes, "-slope * distance is added to the scores",
           lambda s: np.zeros(s.num_heads),
           {"alibi": lambda s, rng: 2.0 ** (-8.0 * (1 + np.arange(s.num_heads)) / s.num_heads)}),
    Option("sinks", PER_HEAD, None, check_sinks, "a logit without a value joins the sum of the softmax",
           lambda s: np.full(s.num_heads, -np.inf),
           {"sinks": lambda s, rng: rng.standard_normal(s.num_heads) + 2}),
    Option("kv_lengths", PER_ENTRY, None, check_kv_lengths, "keys at or past the length do not exist",
           lambda s: np.broadcast_to(s.kv_len, s.batch_shape).copy(),
           {"lengths": lambda s, rng: rng.integers(s.kv_len // 2, np.maximum(s.kv_len, 1), s.batch_shape)}),
    Option("q_offset", PER_ENTRY, None, check_q_offset, "key position of row 0; by default kv_len - q_len",
           lambda s: s.kv_len - s.q_len,
           {"own offset": lambda s, rng: s.kv_len // 3}),
    Option("dropout_mask", PER_SCORE, None, check_dropout, "True keeps a weight",
           lambda s: np.ones(s.scores_shape, bool),
           {"dropout": lambda s, rng: rng.random(s.scores_shape) < 0.7}),
    Option("dropout_rate", PER_CALL, None, check_elsewhere, "kept weights are divided by 1 - rate",
           lambda s: 0.0,
           {"dropout": lambda s, rng: 0.3}),
)
# fmt: on
OPTION_NAMES = tuple(option.name for option in OPTIONS)

# The options that the words of `Option.examples` ask for; more than one where they are given together.
WORDS: dict[str, list[Option]] = {}
for _option in OPTIONS:
    for _word in _option.examples:
        WORDS.setdefault(_word, []).append(_option)


def checked_options(sizes, /, **given):
    """The options of a call as the fields of `Options`."""
    for name in given:
        if name not in OPTION_NAMES:
            raise TypeError(f"options must be among {', '.join(OPTION_NAMES)}; got {name}.")
    given = {option.name: given.get(option.name, option.default) for option in OPTIONS}
    checked = {}
    for option in OPTIONS:
        checked |= option.check(given, sizes, checked)
    return checked


Function = TypeVar("Function", bound=Callable)


@overload
def takes_options(function: Function) -> Function: ...
@overload
def takes_options(*, without: tuple[str, ...]) -> Callable[[Function], Function]: ...
def takes_options(function=None, *, without=()):
    """Show the options by name in the signature of a function that passes **options on, for help() and
    editors.

    A decorator, plain or with the names of options that the function does not take; the function itself
    stays as it is.
    """
    if function is None:
        return functools.partial(takes_options, without=without)
    own = inspect.signature(function).parameters
    shown = [parameter for parameter in own.values() if parameter.kind is not parameter.VAR_KEYWORD]
    shown += [
        inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=option.default)
        for option in OPTIONS
        if option.name not in own and option.name not in without
    ]
    function.__signature__ = inspect.Signature(shown)
    return function
