"""Golden vectors: calls with their inputs, the exact result and the error a correct kernel may make,
element by element, in files that any language reads. A test in C++ or Rust then needs no tolerance of its
own:

    x == output  or  abs(x - output) <= output_bound  or both are NaN

`output_bound` is the statistical bound of the spec (a correct kernel exceeds it in one call of 10^9),
`output_hard_bound` the rigorous one; 0 where the result is not finite or the row is empty, inf where the
formats of the spec may overflow. The same for `lse`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from refattn.calls.arrays import as_int_array
from refattn.calls.dense import DENSE
from refattn.calls.registry import ATTENTION
from refattn.oracle.arithmetic.formats import number_format
from refattn.oracle.arithmetic.spec import KernelSpec, kernel_spec
from refattn.oracle.bounds.bound import error_bound
from refattn.oracle.bounds.results import LSE, OUTPUT
from refattn.oracle.inputs.families import AttentionInputs
from refattn.oracle.vectors.rows import bound_of_rows
from refattn.oracle.vectors.untrusted import as_dtype

LAYOUTS = ("", "BHTD", "BTHD", "HTD", "THD")  # names of `dialects.layouts`; "": ours, any batch axes
EXPECTED = (
    "expected_output",
    "expected_lse",
    "output_bound",
    "lse_bound",
    "output_hard_bound",
    "lse_hard_bound",
)
STORED_FORMS = {form.function: form for form in ATTENTION}


@dataclass(frozen=True, eq=False)
class VectorCase:
    """One call, its exact result, and what a correct kernel may be off by.

    Attributes
    ----------
    name, pack, function : str
    arrays : tuple of ndarray
        Positional arguments of the function; 8-bit floats as float32.
    options : dict
    spec : KernelSpec
    scale : float
        The scale in force, also where the options leave the default.
    output, lse : ndarray, float64
    output_bound, lse_bound : ndarray, float64
        Statistical.
    output_hard_bound, lse_hard_bound : ndarray, float64
    seed : int
    stored : dict of str to str
        Argument -> 8-bit format it has in the file.
    rows : ndarray of int64 or None
        The query rows of each head that results and bounds are of, increasing: the other rows of a large
        call are not judged. None: all.
    layout : str
        Order of the axes of query, key, value and output in the file, of `LAYOUTS`. Here, in memory, they
        are (..., heads, length, dim) whatever it is; and so is the lse everywhere.
    """

    name: str
    pack: str
    function: str
    arrays: tuple[np.ndarray, ...]
    options: dict
    spec: KernelSpec
    scale: float
    output: np.ndarray
    lse: np.ndarray
    output_bound: np.ndarray
    lse_bound: np.ndarray
    output_hard_bound: np.ndarray
    lse_hard_bound: np.ndarray
    seed: int = 0
    stored: dict[str, str] = field(default_factory=dict)
    rows: np.ndarray | None = None
    layout: str = ""

    def expected(self, result) -> np.ndarray:
        """The exact array of one of `refattn.oracle.bounds.results.RESULTS`, of the judged rows."""
        return getattr(self, result.name)

    def shape(self, result) -> tuple[int, ...]:
        """The shape of a kernel's array of this result, which has all rows."""
        return result.shape(STORED_FORMS[self.function].check(*self.arrays, **self.options).output_shape)

    def judged(self, result, array):
        """The judged rows of a kernel's array of this result."""
        return array if self.rows is None else array.take(self.rows, axis=-2 if result.has_dims else -1)

    def bound(self, result) -> np.ndarray:
        """Its statistical bound."""
        return getattr(self, f"{result.name}_bound")

    def check(self, output, lse=None, spec=None, dialect="refattn", **how):
        """The `Report` on a kernel's result, by `refattn.oracle.check`; `how` are arguments of it, such as
        `rows`. `dialect`: the library in whose conventions the result, and it alone, is written.
        """
        from refattn.oracle.verdict.check import check, check_foreign

        if dialect != "refattn":
            spec = self.spec if spec is None else spec
            return check_foreign(self.written_by(dialect), output, lse, spec, **how)
        return check(
            output,
            *self.arrays,
            lse=lse,
            spec=self.spec if spec is None else spec,
            function=self.function,
            **how,
            **self.options,
        )

    def written_by(self, dialect):
        """The call, and how a library writes its results:
        `refattn.oracle.dialects.foreign_call.ForeignCall`.
        """
        from refattn.oracle.dialects.foreign_call import written_by

        return written_by(dialect, self.function, self.arrays, self.options)

    def within(self, output, lse=None) -> np.ndarray:
        """What a test without Python does: whether each element of output, and with lse each row, is
        within its bound; None: not given. Of the judged rows.
        """
        good = np.ones(self.output.shape, bool)
        if output is not None:
            good = _within(self.judged(OUTPUT, np.asarray(output)), self.output, self.output_bound)
        if lse is not None:
            good = good & _within(self.judged(LSE, np.asarray(lse)), self.lse, self.lse_bound)[..., None]
        return good

    @property
    def work(self) -> int:
        """Multiplications of the call, about."""
        return work(STORED_FORMS[self.function].check(*self.arrays, **self.options))

    @property
    def judged_work(self) -> int:
        """Those of the judged rows."""
        every = self.arrays[0].shape[-2]
        return self.work if self.rows is None else self.work * len(self.rows) // every

    def row(self, n) -> int:
        """The row of the call that is number `n` of the judged ones."""
        return int(n if self.rows is None else self.rows[n])


def _within(got, expected, bound):
    got = np.asarray(got, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return (got == expected) | (np.abs(got - expected) <= bound) | (np.isnan(got) & np.isnan(expected))


def work(problem) -> int:
    """Multiplications of a checked call, from its shapes alone."""
    _, kv_len, *widths = problem.largest_group
    return math.prod(problem.lse_shape) * kv_len * max(sum(widths), 1)


def make_case(
    inputs: AttentionInputs, spec=None, *, pack="own", seed=0, store=None, rows=None, layout=""
) -> VectorCase:
    """Result and bounds of a call.

    Parameters
    ----------
    inputs : AttentionInputs
        `refattn.oracle.inputs.families` and `suites` make them; `as_inputs` wraps one's own arrays.
    spec : KernelSpec, str, dtype or None
        The arithmetic the bounds are for. Default: a flash kernel in the dtype of the inputs.
    pack : str
    seed : int
        Written into the manifest.
    store : {"float8_e4m3fn", "float8_e5m2"}, optional
        Format of the arguments in the file; they must hold numbers of it (`quantised` makes them so).
        Needs `ml_dtypes`.
    rows : array_like of int, optional
        The query rows of each head to compute results and bounds of, increasing; of dense attention alone.
        The results then come from float64 where that suffices for the spec, as those of `check` do.
        Default: all, and exact.
    layout : str
        Of the file, one of `LAYOUTS`; of dense attention alone. Default: as in memory.

    Examples
    --------
    >>> from refattn.oracle.inputs.families import attention_inputs
    >>> case = make_case(attention_inputs("normal", ["causal"]))
    >>> case.output.shape == case.output_bound.shape, bool(case.within(case.output).all())
    (True, True)
    """
    function = inputs.function.removesuffix("_with_lse")
    if function not in STORED_FORMS:
        raise ValueError(f"inputs must be of one of {', '.join(STORED_FORMS)}; got {inputs.function}.")
    form = STORED_FORMS[function]
    require_layout(layout, form, inputs.arrays)
    spec = kernel_spec(spec, inputs.arrays[0].dtype)
    options = dict(inputs.options)
    options |= {name: choices[0] for name, choices in form.choices.items() if name not in options}
    if rows is None:
        bound = error_bound(*inputs.arrays, spec=spec, function=function, **options)
    else:
        rows = checked_rows(rows, form, inputs.arrays)
        bound = bound_of_rows(rows, inputs.arrays, options, spec)
    bounds = bound.output_tight, bound.lse_tight, bound.output_hard, bound.lse_hard
    name = "-".join(part for part in "".join(c if c.isalnum() else " " for c in inputs.name).split())
    scale = float(form.check(*inputs.arrays, **options).scale)
    stored = {} if store is None else dict.fromkeys(form.arrays, store)
    return VectorCase(
        name,
        pack,
        function,
        tuple(inputs.arrays),
        options,
        spec,
        scale,
        bound.output,
        bound.lse,
        *bounds,
        seed,
        stored,
        rows,
        layout,
    )


def require_layout(layout, form, arrays):
    """Raise ValueError where a layout is none of `LAYOUTS`, or not one of such arrays."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(filter(None, LAYOUTS))}; got layout={layout!r}.")
    if layout and (form is not DENSE or arrays[0].ndim != len(layout)):
        raise ValueError(
            f"layout must be of dense attention with {len(layout)} axes; got layout={layout!r} for "
            f"{form.function} with {arrays[0].ndim} axes."
        )


def checked_rows(rows, form, arrays) -> np.ndarray:
    """Numbers of query rows of dense attention, increasing, as int64."""
    rows, q_len = as_int_array(rows, "rows"), arrays[0].shape[-2]
    if form is not DENSE or rows.ndim != 1 or not len(rows):
        raise ValueError(
            f"rows must be a list of rows of dense attention; got rows={rows} of {form.function}."
        )
    if rows[0] < 0 or rows[-1] >= q_len or (np.diff(rows) <= 0).any():
        raise ValueError(f"rows must increase from 0 at least to {q_len - 1} at most; got rows={rows}.")
    return rows


def quantised(array, name) -> np.ndarray:
    """Rounded to an 8-bit format, saturating as kernels convert, and back in float32. Needs `ml_dtypes`.

    >>> quantised(np.array([1.1, -1e9]), "float8_e4m3fn").tolist()
    [1.125, -448.0]
    """
    form = as_dtype(np.zeros(0, np.uint8), name).dtype
    array = np.asarray(array, np.float32)
    largest = np.float32(number_format(name, "store").largest)
    return (
        np.where(np.isfinite(array), np.clip(array, -largest, largest), array)
        .astype(form)
        .astype(np.float32)
    )
