"""The packs of golden vectors that `refattn vectors make` writes, and the check of one against this
installation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from refattn.calls.dense import DENSE
from refattn.calls.latent import LATENT
from refattn.calls.local import BLOCK_LOCAL
from refattn.calls.packed import PACKED
from refattn.calls.paged import PAGED
from refattn.oracle.arithmetic.spec import EIGHT_BITS, kernel_spec
from refattn.oracle.inputs.families import FAMILIES, AttentionInputs, Sizes, attention_inputs, every_option
from refattn.oracle.inputs.of_form import inputs_of
from refattn.oracle.inputs.paged import paged_inputs
from refattn.oracle.vectors.golden import VectorCase, make_case, quantised

SMALL = Sizes(batch=2, num_heads=6, num_kv_heads=2, q_len=5, kv_len=37, head_dim=16, v_head_dim=12)
LARGEST_WORK = 10**10  # multiplications of a case that is computed again


def _dense(sizes, lines) -> Callable[..., Iterator[AttentionInputs]]:
    def make(dtype, seed):
        for family, *names in lines:
            yield attention_inputs(family, names, sizes=sizes, dtype=dtype, seed=seed)

    return make


def _every_option(form) -> Callable[..., Iterator[AttentionInputs]]:
    """Calls of a form with each of its options, in every way it can be computed."""
    inputs = inputs_of(form)
    chosen = [dict(zip(form.choices, values, strict=True)) for values in product(*form.choices.values())]

    def make(dtype, seed):
        for choice in chosen:
            for names in every_option(form):
                case = inputs.with_options(names, dtype, seed, **choice)
                yield replace(case, name=" ".join([case.name, *choice.values()]))

    return make


def _paged(dtype, seed):
    yield from _every_option(PAGED)(dtype, seed)
    yield paged_inputs(dtype, seed, poison=True, causal=True)


@dataclass(frozen=True)
class PackRecipe:
    """A pack to make: what it is for, and its calls by (dtype, seed)."""

    name: str
    says: str
    inputs: Callable[..., Iterator[AttentionInputs]]


_PLAIN = (("normal",), ("normal", "causal"), ("wide", "softcap"), ("normal", "mask"), ("normal", "bias"))
_OPTIONS = (
    *_PLAIN,
    ("wide", "softcap", "bias", "alibi"),
    ("normal", "left window", "causal"),
    ("normal", "two-sided window"),
    ("normal", "alibi", "causal"),
    *(("normal", *names) for names in every_option(DENSE) if ("normal", *names) not in _PLAIN),
)
_DECODE = (
    ("normal",),
    ("normal", "lengths", "causal"),
    ("normal", "left window", "causal"),
    ("normal", "sinks"),
    ("early sink",),
)
_HOSTILE = tuple((family,) for family in FAMILIES if family not in ("normal", "wide", "empty rows"))

PACKS: dict[str, PackRecipe] = {
    recipe.name: recipe
    for recipe in (
        PackRecipe("mha", "multi-head attention", _dense(replace(SMALL, num_kv_heads=6), _PLAIN)),
        PackRecipe(
            "mqa", "multi-query attention: one key head", _dense(replace(SMALL, num_kv_heads=1), _PLAIN)
        ),
        PackRecipe("gqa", "grouped-query attention, every option", _dense(SMALL, _OPTIONS)),
        PackRecipe("mla", "multi-head latent attention, both forms", _every_option(LATENT)),
        PackRecipe("decode", "one row, 257 keys", _dense(replace(SMALL, q_len=1, kv_len=257), _DECODE)),
        PackRecipe("packed", "sequences end to end", _every_option(PACKED)),
        PackRecipe("paged", "keys in pages behind a block table", _paged),
        PackRecipe("local", "block-local attention", _every_option(BLOCK_LOCAL)),
        PackRecipe(
            "hostile",
            "inputs that bring mistakes out: ties, sinks, overflow, NaN in hidden slots, empty rows",
            _dense(SMALL, (*_HOSTILE, ("empty rows", "empty rows"), ("empty rows", "sinks", "empty rows"))),
        ),
    )
}


def recipe(name: str) -> PackRecipe:
    """A recipe by name.

    Raises
    ------
    ValueError
    """
    if name not in PACKS:
        raise ValueError(f"pack must be one of {', '.join(PACKS)}; got pack={name!r}.")
    return PACKS[name]


def make_cases(
    names: Iterable[str] | None = None, *, dtype="float32", spec=None, seed=0
) -> Iterator[VectorCase]:
    """The cases of packs, one after another.

    Parameters
    ----------
    names : iterable of str, optional
        Keys of PACKS; default all.
    dtype : str
        Of the inputs: float64, float32, float16, bfloat16, or float8_e4m3fn and float8_e5m2, whose arrays
        are stored in 8 bits (bias and sinks stay in float32).
    spec : KernelSpec, str or None
        The arithmetic the bounds are for; default a flash kernel in `dtype`.
    seed : int

    Examples
    --------
    >>> next(make_cases(["mla"])).function
    'latent_attention'
    """
    chosen = [recipe(name) for name in (PACKS if names is None else names)]
    kind, store = input_dtype(dtype)
    return _cases(chosen, kind, kernel_spec(spec, dtype), seed, store)


def _cases(chosen, kind, spec, seed, store):
    for pack in chosen:
        for inputs in pack.inputs(kind, seed):
            inputs = as_stored_inputs(inputs, store)
            yield make_case(inputs, spec, pack=pack.name, seed=seed, store=store)


def input_dtype(name) -> tuple[np.dtype, str | None]:
    """The dtype in which inputs are made and, where files hold 8 bits a number, the name of that format.
    Raises ImportError where `ml_dtypes` is needed and missing, before anything is made.
    """
    if name not in EIGHT_BITS:
        return numpy_dtype(name), None
    quantised(0.0, name)
    return np.dtype(np.float32), name


def as_stored_inputs(inputs: AttentionInputs, store: str | None) -> AttentionInputs:
    """Inputs that hold numbers of an 8-bit format only, where files hold that."""
    if store is None:
        return inputs
    return replace(inputs, arrays=tuple(quantised(array, store) for array in inputs.arrays))


def numpy_dtype(name) -> np.dtype:
    """float64, float32, float16, or the bfloat16 of `ml_dtypes`."""
    if name == "bfloat16":
        try:
            import ml_dtypes
        except ImportError as error:
            raise ImportError(
                "dtype bfloat16 must have ml_dtypes installed; install refattn[lowp]."
            ) from error
        return np.dtype(ml_dtypes.bfloat16)
    if name not in ("float64", "float32", "float16"):
        raise ValueError(
            f"dtype must be one of float64, float32, float16, bfloat16, {', '.join(EIGHT_BITS)}; got "
            f"dtype={name!r}."
        )
    return np.dtype(name)


def recompute(case: VectorCase) -> str:
    """Compare a case with what this installation computes; what differs, in words, or empty.

    Results may differ by rounding, far below the bound; bounds by one percent, because sums run in
    another order on another machine.
    """
    if case.judged_work > LARGEST_WORK:
        return f"not computed again: {case.judged_work:.1e} multiplications are more than {LARGEST_WORK:.0e}"
    inputs = AttentionInputs(case.name, "", f"{case.function}_with_lse", case.arrays, case.options)
    again = make_case(inputs, case.spec, pack=case.pack, seed=case.seed, rows=case.rows)
    if not np.isclose(case.scale, again.scale, rtol=1e-12, atol=0.0):
        return f"scale is {case.scale}, computed here {again.scale}"
    for name in ("output", "lse"):
        stored, here = getattr(case, name), getattr(again, name)
        if stored.shape != here.shape:
            return f"{name} has shape {stored.shape}, computed here {here.shape}"
        hard = np.maximum(
            getattr(again, f"{name}_hard_bound"), 2.0**-50 * np.abs(np.where(np.isfinite(here), here, 0.0))
        )
        with np.errstate(invalid="ignore"):
            good = (
                (stored == here)
                | (np.abs(stored - here) <= 0.01 * hard)
                | (np.isnan(stored) & np.isnan(here))
            )
        if case.spec.accumulator.name == "float64":
            good |= np.abs(np.nan_to_num(stored - here, nan=np.inf)) <= hard
        if not good.all():
            return f"{name} differs from what is computed here at {_first(~good)}"
        for kind in ("bound", "hard_bound"):
            one, other = getattr(case, f"{name}_{kind}"), getattr(again, f"{name}_{kind}")
            if not np.allclose(one, other, rtol=0.01, atol=1e-300):
                return (
                    f"{name}_{kind} differs from what is computed here at "
                    f"{_first(~np.isclose(one, other, rtol=0.01, atol=1e-300))}"
                )
    return ""


def _first(wrong):
    return tuple(int(i) for i in np.argwhere(wrong)[0])
