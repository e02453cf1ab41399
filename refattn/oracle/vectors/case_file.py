"""A case of golden vectors as a file: its arrays and a manifest that describes them, with digests.

What is written here is described byte by byte in README.md.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

import refattn
from refattn.calls.options import OPTIONS
from refattn.oracle.arithmetic.spec import KernelSpec
from refattn.oracle.dialects.layouts import array_from_ours, array_to_ours
from refattn.oracle.vectors.containers import read_arrays, write_arrays
from refattn.oracle.vectors.golden import (
    EXPECTED,
    LAYOUTS,
    STORED_FORMS,
    VectorCase,
    checked_rows,
    require_layout,
)
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

FORMAT = "refattn case"
# What may be in a file: 1 all results, arrays as in memory; 2 also a layout, or results of some rows alone
VERSIONS = (1, 2)
ROWS = "expected_rows"
OUTPUTS = ("expected_output", "output_bound", "output_hard_bound")  # have the axes of the output


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
    if case.layout:
        arrays |= {name: array_from_ours(arrays[name], case.layout) for name in (*names, *OUTPUTS)}
    if case.rows is not None:
        arrays[ROWS] = case.rows
    version = 2 if case.layout or case.rows is not None else 1
    axes = {option.name: option.belongs_to for option in OPTIONS} | {
        **form.structure,
        **form.arrays,
        **form.results,
    }
    if case.layout:
        axes |= {name: _in_order(axes[name], case.layout) for name in (*names, "output")}
    manifest = {
        "format": FORMAT,
        "version": version,
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
        **({"axis_order": case.layout} if case.layout else {}),
        "rule": "x == expected or abs(x - expected) <= bound or both NaN",
        "arrays": {
            name: {"dtype": dtype_name(array), "shape": list(array.shape), "sha256": digest(array)}
            for name, array in arrays.items()
        },
        "made_by": {"refattn": refattn.__version__, "numpy": np.__version__},
    }
    text = json.dumps(manifest, indent=1, allow_nan=False)
    write_arrays(path, arrays, text, container, _raw_lines(case, options, version))
    return hashlib.sha256(text.encode()).hexdigest()


def _in_order(words, layout):
    """The words for the axes of an array, "batch head row head_dim", in the order of a layout."""
    word_of = dict(zip("BHTD", words.split(), strict=True))
    return " ".join(word_of[axis] for axis in layout)


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


def _raw_lines(case, options, version):
    """The head of case.txt: one fact a line, words apart by blanks, "none" for None."""
    lines = [
        f"refattn-case {version}",
        f"name {case.name}",
        f"function {case.function}",
        f"scale {case.scale!r}",
    ]
    lines.append(f"causal {int(bool(options.get('causal')))}")
    lines += [f"layout {case.layout}"] if case.layout else []
    lines += [f"{ROWS} array"] if case.rows is not None else []
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
    layout, rows = manifest.get("axis_order", ""), arrays.get(ROWS)
    try:
        spec = KernelSpec.from_dict(manifest["spec"])
    except (TypeError, ValueError, KeyError) as error:
        raise VectorError(f"{label}: the spec must describe a kernel: {error}") from error
    if layout:
        for name in (*manifest["arguments"], *OUTPUTS):
            arrays[name] = _in_our_order(arrays[name], name, layout, label)
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
        form = STORED_FORMS[manifest["function"]]
        shape = form.check(*own, **options).output_shape
        require_layout(layout, form, own)
        if rows is not None:
            rows = checked_rows(rows, form, own)
            shape = (*shape[:-2], len(rows), shape[-1])
    except (TypeError, ValueError, MemoryError) as error:
        raise VectorError(f"{label} must hold a call of {manifest['function']}: {error}") from error
    _check_shapes(expected, shape, label)
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
        rows=rows,
        layout=layout,
    )


def _in_our_order(array, name, layout, label):
    try:
        return array_to_ours(array, layout)
    except ValueError as error:
        raise VectorError(f"{label}: {name} must have the layout {layout[:10]!r}: {error}") from error


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
    if manifest["format"] != FORMAT or manifest["version"] not in VERSIONS:
        found = f"{manifest['format'][:40]!r} of version {manifest['version']}"
        raise VectorError(
            f"{label} must be a {FORMAT} of version {' or '.join(map(str, VERSIONS))}; got {found}."
        )
    if manifest.get("axis_order", "") not in LAYOUTS:
        raise VectorError(f"{label}: axis_order must be one of {', '.join(filter(None, LAYOUTS))}.")
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
