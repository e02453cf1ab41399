"""Golden vectors: calls with their inputs, the exact result and the error a correct kernel may make,
element by element, in files that any language reads. A test in C++ or Rust then needs no tolerance of its
own:

    x == output  or  abs(x - output) <= output_bound  or both are NaN

`output_bound` is the statistical bound of the spec (a correct kernel exceeds it in one call of 10^9),
`output_hard_bound` the rigorous one; 0 where the result is not finite or the row is empty, inf where the
formats of the spec may overflow. The same for `lse`.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import refattn
from refattn.calls.options import OPTIONS
from refattn.calls.registry import ATTENTION
from refattn.oracle.arithmetic.formats import number_format
from refattn.oracle.arithmetic.spec import KernelSpec, kernel_spec
from refattn.oracle.bounds.bound import error_bound
from refattn.oracle.inputs.families import AttentionInputs
from refattn.oracle.vectors.containers import read_arrays, write_arrays
from refattn.oracle.vectors.untrusted import (
    BITS,
    LARGEST,
    VectorError,
    as_dtype,
    as_stored,
    dtype_name,
    parse_json,
    valid_name,
)

FORMAT = "refattn case", 1
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

    def expected(self, result) -> np.ndarray:
        """The exact array of one of `refattn.oracle.bounds.results.RESULTS`."""
        return getattr(self, result.name)

    def bound(self, result) -> np.ndarray:
        """Its statistical bound."""
        return getattr(self, f"{result.name}_bound")

    def check(self, output, lse=None, spec=None, rows=None, dialect="refattn"):
        """The `Report` on a kernel's result, by `refattn.oracle.check`; `rows` as there. `dialect`: the
        library in whose conventions the result, and it alone, is written.
        """
        from refattn.oracle.verdict.check import check, check_foreign

        if dialect != "refattn":
            spec = self.spec if spec is None else spec
            return check_foreign(self.written_by(dialect), output, lse, spec, rows=rows)
        return check(
            output,
            *self.arrays,
            lse=lse,
            spec=self.spec if spec is None else spec,
            function=self.function,
            rows=rows,
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
        within its bound; None: not given.
        """
        good = (
            np.ones(self.output.shape, bool)
            if output is None
            else _within(output, self.output, self.output_bound)
        )
        return good if lse is None else good & _within(lse, self.lse, self.lse_bound)[..., None]

    @property
    def work(self) -> int:
        """Multiplications of the call, about."""
        return work(STORED_FORMS[self.function].check(*self.arrays, **self.options))


def _within(got, expected, bound):
    got = np.asarray(got, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return (got == expected) | (np.abs(got - expected) <= bound) | (np.isnan(got) & np.isnan(expected))


def work(problem) -> int:
    """Multiplications of a checked call, from its shapes alone."""
    _, kv_len, *widths = problem.largest_group
    return math.prod(problem.lse_shape) * kv_len * max(sum(widths), 1)


def make_case(inputs: AttentionInputs, spec=None, *, pack="own", seed=0, store=None) -> VectorCase:
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
    spec = kernel_spec(spec, inputs.arrays[0].dtype)
    options = dict(inputs.options)
    options |= {name: choices[0] for name, choices in form.choices.items() if name not in options}
    bound = error_bound(*inputs.arrays, spec=spec, function=function, **options)
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
    )


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


# one case, one file


def save_case(case: VectorCase, path, container=None) -> str:
    """Write a case; returns the sha256 of its manifest. The container is npz or safetensors by the
    ending of `path`, or "raw".
    """
    form = STORED_FORMS[case.function]
    names = list(form.arrays)
    arrays = {
        name: _narrow(array, case.stored.get(name), name)
        for name, array in zip(names, case.arrays, strict=True)
    }
    options = {}
    for name, value in case.options.items():
        if isinstance(value, np.ndarray):
            arrays[name], options[name] = value, {"array": name}
        else:
            options[name] = (
                list(value)
                if isinstance(value, tuple)
                else value.item()
                if isinstance(value, np.generic)
                else value
            )
    arrays |= {name: getattr(case, name.removeprefix("expected_")) for name in EXPECTED}
    axes = {option.name: option.belongs_to for option in OPTIONS} | {
        **form.structure,
        **form.arrays,
        **form.results,
    }
    manifest = {
        "format": FORMAT[0],
        "version": FORMAT[1],
        "name": case.name,
        "pack": case.pack,
        "function": case.function,
        "arguments": list(names),
        "options": options,
        "scale": case.scale,
        "seed": case.seed,
        "spec": case.spec.to_dict(),
        "layout": {
            name: axes[name]
            for name in (*names, *options, "output", "lse")
            if axes.get(name) and name in {*arrays, "output", "lse"}
        },
        "rule": "x == expected or abs(x - expected) <= bound or both NaN",
        "arrays": {
            name: {"dtype": dtype_name(array), "shape": list(array.shape), "sha256": digest(array)}
            for name, array in arrays.items()
        },
        "made_by": {"refattn": refattn.__version__, "numpy": np.__version__},
    }
    text = json.dumps(manifest, indent=1, allow_nan=False)
    write_arrays(path, arrays, text, container, _raw_lines(case, options))
    return hashlib.sha256(text.encode()).hexdigest()


def _narrow(array, form, name):
    """An argument as the file holds it."""
    if form is None:
        return array
    bits = array.astype(as_dtype(np.zeros(0, np.uint8), form).dtype)
    if not np.array_equal(bits.astype(array.dtype), array, equal_nan=True):
        raise ValueError(
            f"{name} must hold numbers of {form} only. Use refattn.oracle.vectors.golden.quantised."
        )
    return bits


def _raw_lines(case, options):
    """The head of case.txt: one fact a line, words apart by blanks, "none" for None."""
    lines = [
        f"refattn-case {FORMAT[1]}",
        f"name {case.name}",
        f"function {case.function}",
        f"scale {case.scale!r}",
    ]
    lines.append(f"causal {int(bool(options.get('causal')))}")
    for name, value in options.items():
        if name in ("scale", "causal"):
            continue
        words = ["array"] if isinstance(value, dict) else value if isinstance(value, list) else [value]
        lines.append(" ".join([name, *("none" if word is None else str(word) for word in words)]))
    return lines


def digest(array) -> str:
    """sha256 of the stored bytes."""
    return hashlib.sha256(as_stored(array).tobytes()).hexdigest()


def load_case(path, *, largest=LARGEST) -> VectorCase:
    """Read a case of any container, digests checked.

    Raises
    ------
    VectorError
        The file is damaged, hostile, larger than allowed, or no case.
    """
    label = Path(path).name
    arrays, text = read_arrays(path, largest=largest)
    manifest = _checked_manifest(text, label)
    arrays = {name: _checked_array(name, array, manifest["arrays"], label) for name, array in arrays.items()}
    missing = ({*manifest["arrays"]} | {*EXPECTED} | {*manifest["arguments"]}) - {*arrays}
    if missing:
        raise VectorError(f"{label} must hold the array {sorted(missing)[0]}.")
    try:
        spec = KernelSpec.from_dict(manifest["spec"])
    except (TypeError, ValueError, KeyError) as error:
        raise VectorError(f"{label}: the spec must describe a kernel: {error}") from error
    expected = [np.asarray(arrays[name], np.float64) for name in EXPECTED]
    options = {name: _option(name, value, arrays, label) for name, value in manifest["options"].items()}
    stored = {
        name: arrays[name].dtype.name
        for name in manifest["arguments"]
        if arrays[name].dtype.name in BITS and arrays[name].itemsize == 1
    }
    own = tuple(
        arrays[name].astype(np.float32) if name in stored else arrays[name] for name in manifest["arguments"]
    )
    try:
        problem = STORED_FORMS[manifest["function"]].check(*own, **options)
    except (TypeError, ValueError, MemoryError) as error:
        raise VectorError(f"{label} must hold a call of {manifest['function']}: {error}") from error
    _check_shapes(expected, problem.output_shape, label)
    return VectorCase(
        manifest["name"],
        str(manifest.get("pack", "")),
        manifest["function"],
        own,
        options,
        spec,
        float(manifest["scale"]),
        *expected,
        seed=int(manifest.get("seed", 0)),
        stored=stored,
    )


def _checked_manifest(text, label):
    if not text:
        raise VectorError(f"{label} must hold the manifest of a case; it has arrays only.")
    manifest = parse_json(text, f"the manifest of {label}")
    kinds = {
        "format": str,
        "version": int,
        "name": str,
        "function": str,
        "arguments": list,
        "options": dict,
        "scale": (int, float),
        "spec": dict,
        "arrays": dict,
    }
    for name, kind in kinds.items():
        if (
            not isinstance(manifest, dict)
            or not isinstance(manifest.get(name), kind)
            or isinstance(manifest[name], bool)
        ):
            raise VectorError(f"{label}: the manifest must have a {name}.")
    if (manifest["format"], manifest["version"]) != FORMAT:
        found = f"{manifest['format'][:40]!r} of version {manifest['version']}"
        raise VectorError(f"{label} must be a {FORMAT[0]} of version {FORMAT[1]}; got {found}.")
    if not valid_name(manifest["name"]):
        raise VectorError(
            f"{label}: the case must have a name of letters, digits, '_', '.' and '-'; got "
            f"{manifest['name'][:60]!r}."
        )
    if manifest["function"] not in STORED_FORMS:
        raise VectorError(
            f"{label}: function must be one of {', '.join(STORED_FORMS)}; got {manifest['function'][:60]!r}."
        )
    form = STORED_FORMS[manifest["function"]]
    names = form.arrays
    if manifest["arguments"] != list(names):
        raise VectorError(f"{label}: the arguments of {manifest['function']} must be {', '.join(names)}.")
    unknown = {*manifest["options"]} - {*form.arguments}
    if unknown:
        raise VectorError(f"{label}: {manifest['function']} has no option {sorted(unknown)[0][:60]!r}.")
    if not isinstance(manifest.get("seed", 0), int):
        raise VectorError(f"{label}: seed must be an integer.")
    return manifest


def _checked_array(name, array, described, label):
    entry = described.get(name)
    if not isinstance(entry, dict):
        raise VectorError(f"{label}: the manifest must describe {name}.")
    dtype, shape = entry.get("dtype"), entry.get("shape")
    if isinstance(dtype, str) and array.dtype == BITS.get(dtype):
        array = as_dtype(array, dtype)
    decoded = dtype == "bfloat16" and array.dtype == np.float32  # ml_dtypes is missing
    if not (decoded or array.dtype.name == dtype) or list(array.shape) != shape:
        raise VectorError(
            f"{label}: {name} must have dtype {dtype} and shape {shape}; got {array.dtype.name} "
            f"{list(array.shape)}."
        )
    stored = (array.view(np.uint32) >> 16).astype("<u2") if decoded else as_stored(array)
    if hashlib.sha256(stored.tobytes()).hexdigest() != entry.get("sha256"):
        raise VectorError(
            f"{label}: {name} does not have its sha256; the file was changed after it was made."
        )
    return array


def _check_shapes(expected, shape, label):
    # output and lse: results, bounds, hard bounds
    for array, like in zip(expected, (shape, shape[:-1]) * 3, strict=True):
        if array.shape != like:
            raise VectorError(
                f"{label}: expected results and bounds must have matching shapes; got {array.shape} for "
                f"{like}."
            )
    if any(not (bound >= 0).all() for bound in expected[2:]):
        raise VectorError(f"{label}: bounds must be at least 0.")


def _option(name, value, arrays, label):
    if isinstance(value, dict):
        key = value.get("array")
        if {*value} != {"array"} or not isinstance(key, str) or key not in arrays:
            raise VectorError(f"{label}: option {name} must name one of the arrays.")
        return arrays[key]
    if isinstance(value, list):
        if len(value) != 2 or not all(item is None or type(item) is int for item in value):
            raise VectorError(f"{label}: option {name} must be a value, an array or a pair of integers.")
        return tuple(value)
    if value is not None and not isinstance(value, (bool, int, float, str)):
        raise VectorError(f"{label}: option {name} must be a value, an array or a pair of integers.")
    return value
