"""A kernel under test as a function of our arguments, whatever dialect it speaks and whatever it
supports.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from refattn.calls.arrays import as_float_array
from refattn.calls.host_copy import on_host
from refattn.calls.options import OPTIONS
from refattn.calls.registry import form_called
from refattn.oracle.dialects.libraries import dialect as dialect_named
from refattn.oracle.dialects.other_calls import call_of
from refattn.oracle.dialects.results import fills_empty_rows, result_to_ours, rows_without_keys
from refattn.oracle.dialects.split_calls import joined_parts, split_call
from refattn.oracle.dialects.translate import from_ours
from refattn.oracle.harness.array_libraries import NumpyArrays
from refattn.oracle.harness.guards import NUMPY, damage, guard_all, guarded_output

BATCHED_AXES = 4  # of a query with one batch axis


class Unsupported(Exception):
    """The kernel says that it does not do this; the message says what."""


class _Reached(Exception):
    """The call would have been made."""


def _reached(**_):
    raise _Reached


@dataclass
class Result:
    """What one call gave."""

    output: np.ndarray  # (..., H, T, E)
    lse: np.ndarray | None  # (..., H, T), or None for a kernel that returns none
    damage: list[str] = field(default_factory=list)  # what happened to inputs and to guard bytes
    returned: tuple = (None, None)  # output and lse in the kernel's own memory, not copied

    def same_bits(self, other) -> bool:
        pairs = [(self.output, other.output), (self.lse, other.lse)]
        return all(
            (a is None) == (b is None) and (a is None or (a.dtype == b.dtype and a.tobytes() == b.tobytes()))
            for a, b in pairs
        )


class KernelCall:
    """A kernel, called with our arrays and options; it returns output, or output and lse.

    It takes the arguments of `function` as `refattn` calls it, unless `dialect` is the name of another
    library in `refattn.oracle.dialects.libraries.DIALECTS`: the kernel is then called with that
    library's keyword arguments and returns in its layout and conventions. `supports` names the options of
    `refattn` that it has; default: its attribute `supports`, else the parameters of its signature, else all.
    `library` makes the arrays it gets, of dtype `stored` where that is given: the positional ones must hold
    numbers of that dtype. A kernel that cannot do without `out` gets one of dtype `writes`; default: that of
    the query.
    """

    def __init__(
        self,
        kernel: Callable,
        function: str = "attention",
        dialect: str = "refattn",
        supports=None,
        library: NumpyArrays = NUMPY,
        stored: np.dtype | None = None,
        writes: np.dtype | None = None,
    ):
        if not callable(kernel):
            raise TypeError(f"kernel must be callable; got kernel={kernel!r}.")
        self.form = form_called(function)
        self.kernel, self.function = kernel, function
        self.dialect = (
            dialect_named(dialect) if dialect == "refattn" else call_of(dialect, self.form.function)
        )
        self.library, self.stored, self.writes = library, stored, writes
        self.parameters = _parameters(kernel)
        out = (self.parameters or {}).get("out")
        self.needs_out = dialect == "refattn" and out is not None and out.default is out.empty
        self.supports = self._supported(supports)

    def check_library(self):
        """Errors of the caller about the library, before anything is called."""
        if self.needs_out and self.library.unwritable:
            raise ValueError(
                f"kernel must return its output, since {self.library.unwritable}; got a kernel whose "
                "parameter out has no default."
            )
        if self.stored is not None and self.form.joins:
            raise ValueError(
                "dtype must be float64, float32, float16 or bfloat16 for merge_states; got "
                f"dtype={self.stored.name}."
            )

    def _supported(self, supports):
        supports = getattr(self.kernel, "supports", None) if supports is None else supports
        if supports is not None:
            if isinstance(supports, str):
                raise TypeError(f"supports must be a set of option names; got supports={supports!r}.")
            unknown = {*supports} - {*self.form.arguments, "dropout"}
            if unknown:
                raise ValueError(
                    f"supports must hold names of {', '.join(self.form.arguments)}; got "
                    f"{sorted(unknown)[0]!r}."
                )
            named = {*supports}
            return named | {"dropout_mask", "dropout_rate"} if "dropout" in named else named
        if self.dialect.name != "refattn" or self.parameters is None:
            return {*self.form.arguments}
        return {*self.form.arguments} & {*self.parameters}

    @property
    def name(self) -> str:
        name = getattr(self.kernel, "__name__", "")
        return name if name.isidentifier() else "kernel"  # lambdas, partials, objects

    @property
    def takes_out(self) -> bool:
        """Whether the kernel can write its output into a given array."""
        return self.dialect.name == "refattn" and self.parameters is not None and "out" in self.parameters

    def unsupported(self, options) -> str:
        """Which of the options the kernel lacks, in words; empty when it has all."""
        lacking = [name for name in options if name not in self.supports and name not in self.form.structure]
        if {"dropout_mask", "dropout_rate"} <= {*lacking}:
            lacking = [name for name in lacking if name != "dropout_rate"]
        return f"no {', '.join(lacking)}" if lacking else ""

    def takes(self, inputs) -> bool:
        """Whether its options, and its dialect, allow a call; the kernel is not called."""
        if self.dialect.name == "refattn" or self.unsupported(inputs.options):
            return not self.unsupported(inputs.options)
        try:
            KernelCall(_reached, self.function, self.dialect.name, self.supports)(
                inputs.arrays, inputs.options
            )
        except Unsupported:
            return False
        except _Reached:
            pass
        return True

    def __call__(self, arrays, options, *, layout="contiguous", out_dtype=None) -> Result:
        """Call the kernel on guarded copies, laid out as one of
        `refattn.oracle.harness.guards.LAYOUTS` says; raises Unsupported where the kernel, or its
        dialect, does not do this.

        `out_dtype` passes `out=`, an array of this dtype inside guard bytes.
        """
        lacking = self.unsupported(options)
        lacking = lacking or self.library.impossible.get(layout, "")
        if lacking:
            raise Unsupported(lacking)
        try:
            if self.dialect.name != "refattn":
                return self._translated(arrays, options, layout)
            return self._direct(arrays, options, layout, out_dtype)
        except NotImplementedError as error:
            raise Unsupported(str(error) or "NotImplementedError") from error

    def _spoken(self, options):
        """The options without those that have their default, but for parameters that have none."""
        defaults = {option.name: option.default for option in OPTIONS}
        said = {name: value for name, value in options.items() if name not in defaults or not _unset(value)}
        for name, parameter in (self.parameters or {}).items():
            needed = parameter.default is parameter.empty and parameter.kind is not parameter.VAR_POSITIONAL
            if needed and name in defaults and name in self.supports:
                said.setdefault(name, defaults[name])
        return said

    def _direct(self, arrays, options, layout, out_dtype):
        options = self._spoken(options)
        if out_dtype is None and self.needs_out:
            out_dtype = arrays[0].dtype if self.writes is None else self.writes
        out = None
        if out_dtype is not None:
            if self.library.unwritable:
                raise Unsupported(f"out=: {self.library.unwritable}")
            shape = self.form.check(*arrays, **options).output_shape
            out = guarded_output(shape, out_dtype, library=self.library)
        batch_axes = arrays[0].ndim - BATCHED_AXES
        arrays = [self._as_stored(array) for array in arrays]
        arrays, options, guards = guard_all(arrays, options, self.form.arrays, layout, self.library)
        if out is not None:
            options["out"] = out.given
        returned = self._returned(arrays, options, batch_axes)
        found = damage(guards)
        output, lse = _output_and_lse(out.given if out is not None and returned is None else returned)
        if out is not None:
            out.look()
            count = out.overwritten_guards()
            found += [f"{count} guard bytes around out were overwritten"] if count else []
            if not np.array_equal(output, out.view, equal_nan=True):
                found.append("out does not hold the output that was returned")
        return Result(np.array(output), None if lse is None else np.array(lse), found, (output, lse))

    def _as_stored(self, array):
        """A positional array in the dtype in which the kernel takes it."""
        if self.stored is None:
            return array
        with np.errstate(all="ignore"):
            stored = array.astype(self.stored)
            kept = (stored.astype(array.dtype) == array) | np.isnan(array)
        if not kept.all():
            raise Unsupported(f"numbers that {self.stored.name} does not hold")
        return stored

    def _run(self, *arrays, **options):
        """What the kernel returns, once it is done."""
        with self.library.running():
            returned = self.kernel(*arrays, **options)
            self.library.wait(returned)
        return returned

    def _returned(self, arrays, options, batch_axes):
        try:
            return self._run(*arrays, **options)
        except Exception as error:
            if self.function != "attention" or batch_axes == 0:
                raise
            reason = "no batch axis" if batch_axes < 0 else "two batch axes"
            # kernels of (B, H, T, D) need not take others
            raise Unsupported(f"{reason}: raised {type(error).__name__}") from error

    def _translated(self, arrays, options, layout):
        d = self.dialect
        try:
            parts = split_call(d, arrays, options)
            call = {} if parts else from_ours(d.name, *arrays, **options)
        except ValueError as error:
            # one reason, whatever the numbers
            raise Unsupported(str(error).partition("; got ")[0]) from error
        if parts:
            return _joined([self._translated(*part, layout) for part in parts], d)
        if (
            "alibi_slopes" in options
            and "alibi_slopes" not in d.arguments
            and arrays[0].dtype.itemsize == 2
            and not d.float32_bias
        ):
            raise Unsupported(f"ALiBi, drawn in the mask, would be rounded to {arrays[0].dtype.name}")
        call = self._within_supports(call, options)
        added = (
            d.additive_mask
            and d.mask_true is None
            and isinstance(call.get(d.arguments.get("bias")), np.ndarray)
        )
        if added and not all(np.isfinite(np.asarray(array, np.float64)).all() for array in arrays):
            raise Unsupported("a mask that is added cannot hide NaN")
        positional = [
            name
            for name, value in call.items()
            if isinstance(value, np.ndarray) and value.ndim >= 3 and value.dtype.kind not in "biu"
        ]
        inner = {name: value for name, value in call.items() if name not in positional}
        drawn = d.arguments.get("bias")
        stored = [call[name] if name == drawn else self._as_stored(call[name]) for name in positional]
        given, inner, guards = guard_all(stored, inner, positional, layout, self.library)
        output, lse = _output_and_lse(self._run(**dict(zip(positional, given, strict=True)), **inner))
        found = damage(guards)
        lse = None if d.lse_base is None else lse
        own = output, lse
        empty = self._empty_rows(arrays, options) if fills_empty_rows(d) else None
        how = {"heads": arrays[0].shape[-3], "sinks": options.get("sinks"), "empty": empty}
        output, lse = result_to_ours(d.name, output, lse, function=d.function, **how)
        return Result(np.array(output), None if lse is None else np.array(lse), found, own)

    def _within_supports(self, call, options):
        """The call without its default scale; Unsupported where an array says what the kernel has no option
        for, as a mask does in which an alignment is drawn."""
        d = self.dialect
        scale = d.arguments.get("scale")
        if options.get("scale") is None and d.default_scale not in ("1", "required"):
            call = {name: value for name, value in call.items() if name != scale}
        for argument, value in call.items():
            roles = [role for role in ("mask", "bias") if d.arguments.get(role) == argument]
            if roles and isinstance(value, np.ndarray) and not self.supports.intersection(roles):
                raise Unsupported(f"no {' or '.join(roles)}, which {d.call} needs here")
        return call

    def without_empty_rows(self, result, arrays, options):
        """The result with what is right in rows that see no key, whatever the kernel gives there."""
        empty, sinks = self._empty_rows(arrays, options), options.get("sinks")
        if empty.shape == result.output.shape[:-1]:
            result.output[empty] = 0.0
        if result.lse is not None and empty.shape == result.lse.shape:
            right = -np.inf if sinks is None else np.asarray(sinks, np.float64)[:, None]
            np.copyto(result.lse, right, where=empty, casting="same_kind")
        return result

    def _empty_rows(self, arrays, options):
        """Rows that see no key, (..., H, T), in whatever way the dialect fills them."""
        return rows_without_keys(self.form.check(*arrays, **options))


def _joined(parts, d):
    """The results of the parts of a call as one."""
    arrays = joined_parts(d, [part.output for part in parts], [part.lse for part in parts])
    return Result(*arrays, [words for part in parts for words in part.damage])


def _unset(value):
    """Whether an option has its default."""
    return value is None or value is False


def _parameters(kernel):
    """Its parameters by name, or None when it takes any keyword."""
    try:
        parameters = inspect.signature(kernel).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return {p.name: p for p in parameters}


def _output_and_lse(returned):
    output, lse = (
        returned if isinstance(returned, (tuple, list)) and len(returned) == 2 else (returned, None)
    )
    if isinstance(output, (tuple, list)):
        raise TypeError(f"kernel must return output or (output, lse); got {len(returned)} values.")
    return tuple(
        None if x is None else as_float_array(on_host(x, name), name)
        for x, name in ((output, "output"), (lse, "lse"))
    )
