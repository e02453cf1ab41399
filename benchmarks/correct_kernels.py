"""Calls of correct kernels of every origin that is installed, which nothing may call wrong.

    python benchmarks/correct_kernels.py                  400 calls under xray
    python benchmarks/correct_kernels.py --count 50 --only torch
    python benchmarks/correct_kernels.py --ungated        measured although check passes them

Emulated kernels in every format, kernels of other libraries, the compiled kernels of this repository, and
the reference cast to a dtype; over random options, shapes and input families.
"""

import argparse
import contextlib
import functools
import importlib
import itertools
import sys
import time
import traceback
import warnings
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import ml_dtypes
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from real_libraries import CALLS, MODULES, torch_backend_call

import cpu_kernels
import refattn
from refattn.calls.dense import DENSE, attention_problem
from refattn.calls.latent import LATENT
from refattn.calls.local import BLOCK_LOCAL
from refattn.calls.merge import MERGE
from refattn.calls.packed import PACKED
from refattn.calls.paged import PAGED
from refattn.exact.visibility import range_mask, row_bounds
from refattn.oracle.arithmetic.spec import KernelSpec
from refattn.oracle.dialects.results import result_to_ours
from refattn.oracle.dialects.translate import from_ours
from refattn.oracle.imaging import xray as xray_module
from refattn.oracle.inputs.families import (
    FAMILIES,
    OPTION_NAMES,
    AttentionInputs,
    Sizes,
    attention_inputs,
    every_option,
)
from refattn.oracle.inputs.merge import merge_inputs
from refattn.oracle.inputs.of_form import inputs_of
from refattn.oracle.simulated.emulated import EmulatedKernel

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
CALLED_FORMS = (DENSE, PACKED, PAGED, LATENT, BLOCK_LOCAL, MERGE)


class Run(NamedTuple):
    """A correct kernel and a call of it; it raises NotImplementedError for what its library lacks."""

    name: str
    kernel: Any
    inputs: AttentionInputs
    spec: KernelSpec | None  # None: the default of its dtype

    @property
    def arrays(self):
        return self.inputs.arrays

    @property
    def options(self):
        return self.inputs.options


# inputs


# libraries that compile anew for every shape get these only
FEW_SIZES = (
    Sizes(2, 4, 2, 7, 45, 16, 16),
    Sizes(1, 6, 2, 19, 83, 24, 24),
    Sizes(1, 3, 1, 1, 129, 40, 40),
    Sizes(2, 2, 2, 16, 64, 64, 64),
)


def random_problem(rng, dtype, families=tuple(FAMILIES), options=OPTION_NAMES, square=False, few=False):
    """Random sizes, options and family."""
    kv_heads, q_len = int(rng.integers(1, 3)), int(rng.integers(1, 24))
    kv_len = q_len + 4 if square else int(rng.integers(4, 150))
    dim = int(rng.choice([8, 16, 24, 40, 64]))
    sizes = Sizes(
        int(rng.integers(1, 3)),
        kv_heads * int(rng.integers(1, 4)),
        kv_heads,
        q_len + 4 * square,
        kv_len,
        dim,
        dim,
    )
    if few:
        sizes = FEW_SIZES[int(rng.integers(len(FEW_SIZES)))]
    names = [name for name in options if rng.random() < 0.2]
    if "left window" in names and "two-sided window" in names:
        names.remove("left window")
    return attention_inputs(
        str(rng.choice(families)), names, sizes=sizes, dtype=dtype, seed=int(rng.integers(2**31))
    )


# emulated


FORMATS = (
    "float64",
    "float32",
    "tfloat32",
    "float16",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e5m2",
    "eager float32",
    "eager float16",
    "eager bfloat16",
)
ARRAYS = {"float64": np.float64, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def emulated_run(rng, form):
    kind, _, name = form.rpartition(" ")
    make = KernelSpec.eager if kind == "eager" else KernelSpec.flash
    spec = make(name)
    if kind != "eager":
        spec = spec.replace(block_size=int(rng.choice([16, 32, 64, 128])))
    inputs = random_problem(rng, ARRAYS.get(name, np.float32))
    first = int(rng.integers(1, 16)) if rng.random() < 0.3 and kind != "eager" else None
    kernel = EmulatedKernel(
        spec, reverse=bool(rng.random() < 0.3), first_block=first, seed=int(rng.integers(2**31))
    )
    return Run(f"emulated {form}", kernel, inputs, spec)


def emulated_form_run(rng, form):
    """A packed, paged, latent or block-local call of an emulated kernel."""
    dtype = str(rng.choice(list(DTYPES)))
    spec = KernelSpec.eager(dtype) if rng.random() < 0.3 else KernelSpec.flash(dtype).replace(block_size=16)
    inputs = call_of(rng, form, DTYPES[dtype])
    kernel = functools.partial(EmulatedKernel(spec), function=inputs.function)
    return Run(f"emulated {form.name}", kernel, inputs, spec)


# our own


def call_of(rng, form, dtype):
    """A call of a form with one of its options, or none."""
    if form is DENSE:
        return random_problem(rng, dtype)
    seed = int(rng.integers(2**31))
    if form is MERGE:
        return merge_inputs(dtype, seed, str(rng.choice(["none", "one", "all"])))
    groups = every_option(form)
    return inputs_of(form).with_options(groups[int(rng.integers(len(groups)))], dtype, seed)


def compiled_run(rng, form, dtype):
    inputs = call_of(rng, form, DTYPES[dtype])
    kernel = getattr(cpu_kernels, form.with_lse)
    return Run(f"cpu_kernels {form.name} {dtype}", kernel, inputs, None)


def reference_run(rng, form, dtype):
    """The exact result, rounded to a dtype."""

    def kernel(*arrays, **options):
        output, lse = getattr(refattn, form.with_lse)(*arrays, **options)
        return output.astype(DTYPES[dtype]), lse.astype(np.float32)

    inputs = call_of(rng, form, DTYPES[dtype])
    return Run(f"refattn {form.name}, cast to {dtype}", kernel, inputs, None)


# libraries


def real_kernels():
    """(name, dialect, dtype, call) of every library that is installed."""
    found = []
    for name, call in CALLS.items():
        try:
            importlib.import_module(MODULES[name])
        except ImportError:  # missing, or without a library of its own
            continue
        calls = {name: call}
        if name == "torch":
            calls = {
                f"torch {backend.lower()}": torch_backend_call(backend)
                for backend in ("FLASH_ATTENTION", "MATH")
            }
        dtypes = DTYPES if name in ("torch", "jax", "mlx") else ("float32",)
        found += [(label, name, dtype, own) for dtype in dtypes for label, own in calls.items()]
    return found


ORDINARY = (
    "causal",
    "left window",
    "two-sided window",
    "mask",
    "bias",
    "lengths",
    "own offset",
    "own scale",
    "empty rows",
)
SAYABLE = {
    "torch": ORDINARY,
    "jax": ORDINARY,
    "mlx": ORDINARY,
    "onnx": (
        "causal",
        "left window",
        "two-sided window",
        "mask",
        "bias",
        "softcap",
        "lengths",
        "own scale",
        "empty rows",
    ),
    "onnxruntime": ("causal", "mask", "bias", "softcap", "lengths", "own scale", "empty rows"),
    "onnxruntime_gqa": ("bias", "softcap", "sinks", "own scale", "left window"),
    "transformers": (
        "causal",
        "left window",
        "two-sided window",
        "mask",
        "bias",
        "softcap",
        "lengths",
        "own offset",
        "own scale",
        "empty rows",
    ),
}
# poisoned hidden values leak in several libraries (a known bug of theirs, found by the poison family); NaN
# is compared elsewhere
REAL_FAMILIES = tuple(family for family in FAMILIES if family not in ("poison", "nan visible"))


def real_run(rng, label, name, dtype, call):
    """A call of a library, or None where it has no kernel for the options that were drawn."""
    gqa = name == "onnxruntime_gqa"
    inputs = random_problem(rng, DTYPES[dtype], REAL_FAMILIES, SAYABLE[name], gqa, name == "jax")
    options = dict(inputs.options)
    if gqa:
        options["causal"] = True
        if inputs.family == "empty rows":
            return None
    inputs = AttentionInputs(inputs.name, inputs.family, inputs.function, inputs.arrays, options)
    spoken = "onnx" if name == "onnxruntime" else name

    def kernel(*arrays, **options):
        output, lse = call(**from_ours(spoken, *arrays, **options))
        empty = rows_without_keys(arrays, options)
        heads = arrays[0].shape[1]
        return result_to_ours(spoken, output, lse, heads=heads, sinks=options.get("sinks"), empty=empty)

    return Run(f"{label} {dtype}", kernel, inputs, real_spec(name, dtype))


def rows_without_keys(arrays, options):
    """(B, H, T), True where a row sees nothing."""
    p = attention_problem(*arrays, **options)
    seen = range_mask(*row_bounds(p, p.position, p.kv_lengths[..., None]), 0, p.kv_len)[:, None]
    return ~np.broadcast_to(seen if p.mask is None else seen & p.mask, (*p.query.shape[:-1], p.kv_len)).any(
        -1
    )


def real_spec(name, dtype):
    """What the library's CPU kernel claims: float32 inside, weights in the input format where it is
    narrower.
    """
    spec = KernelSpec.flash(dtype)
    if name in ("jax", "onnx", "onnxruntime", "transformers"):
        spec = (
            KernelSpec.eager(dtype).replace(score="exact") if dtype != "float32" else KernelSpec.eager(dtype)
        )
    if name in ("onnx", "onnxruntime"):
        spec = spec.replace(
            scaled_query="float32"
        )  # query and key are each multiplied by the root of the scale
    if name == "jax":
        spec = spec.replace(lse=dtype)
    if (
        name == "mlx" and dtype != "float32"
    ):  # the CPU path stores the scaled query, the scores and the weights in the input's dtype
        spec = KernelSpec.eager(dtype).replace(scaled_query=dtype, score=dtype)
    return spec


# all


def emulated_makers():
    """name -> function that draws a `Run` of an emulated kernel."""
    return {f"emulated {form}": functools.partial(emulated_run, form=form) for form in FORMATS}


def real_makers():
    """name -> function that draws a `Run` of a library."""
    return {
        f"{label} {dtype}": functools.partial(real_run, label=label, name=name, dtype=dtype, call=call)
        for label, name, dtype, call in real_kernels()
    }


def own_makers():
    """name -> function that draws a `Run` of `cpu_kernels`, of the reference, or of an emulated form."""
    made = {
        f"emulated {form.name}": functools.partial(emulated_form_run, form=form)
        for form in (PACKED, PAGED, LATENT, BLOCK_LOCAL)
    }
    for form, dtype in itertools.product(CALLED_FORMS, DTYPES):
        for name, make in (("cpu_kernels", compiled_run), ("refattn", reference_run)):
            made[f"{name} {form.name} {dtype}"] = functools.partial(make, form=form, dtype=dtype)
    return made


def runs(count, seed=0, only=""):
    """`count` runs, of every kernel in turn."""
    makers = emulated_makers() | real_makers() | own_makers()
    makers = [make for name, make in makers.items() if only in name]
    rng, given = np.random.default_rng(seed), 0
    for make in itertools.cycle(makers):
        if given == count:
            return
        run = make(np.random.default_rng(int(rng.integers(2**63))))
        if run is not None:
            given += 1
            yield run


def xray_alarms(count, seed=0, only="", gated=True):
    """What `xray` says of correct kernels: rows by kernel; prints accusations and crashes.

    `xray` asks `check` first and measures only what fails. Without that gate it measures every kernel, and
    whatever it then finds wrong is an accusation: the harder test of its tolerances.
    """
    rows, taken = defaultdict(Counter), []
    failed = mock.Mock(passed=False, wrong=True)
    gate = (
        contextlib.nullcontext() if gated else mock.patch.object(xray_module, "check", return_value=failed)
    )
    for n, run in enumerate(runs(count, seed, only)):
        where, started = f"{run.name}, {run.inputs.name} ({n} of seed {seed})", time.monotonic()
        try:
            run.inputs.call(run.kernel)
        except NotImplementedError:
            rows[run.name]["unsupported"] += 1
            continue
        try:
            with gate:
                result = xray_module.xray(run.kernel, *run.arrays, spec=run.spec, **run.options)
        except Exception:
            rows[run.name]["crashes"] += 1
            print(f"crash: {where}: {traceback.format_exc(limit=-2)}", flush=True)
            continue
        taken.append(time.monotonic() - started)
        rows[run.name]["calls"] += 1
        if result.verdict == "not judged":
            rows[run.name]["not judged"] += 1
        elif result.findings or (gated and result.verdict != "agrees"):
            rows[run.name]["accused"] += 1
            print(f"accused: {where}: {result.text()}", flush=True)
    total = Counter()
    for row in rows.values():
        total += row
    print(
        f"{total['calls']} calls of {len(rows)} correct kernels: {total['accused']} accused, "
        f"{total['not judged']} not judged, {total['crashes']} crashes; {total['unsupported']} left out, "
        f"which the library does not support; median {np.median(taken or [np.nan]):.2f} s"
    )
    counts = ("calls", "accused", "not judged", "crashes", "unsupported")
    return [{"kernel": name} | {key: row[key] for key in counts} for name, row in sorted(rows.items())]


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="kernels whose name holds this")
    parser.add_argument("--ungated", action="store_true", help="measure also what passes check")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")  # the libraries' own
    rows = xray_alarms(options.count, options.seed, options.only, not options.ungated)
    return int(any(row["accused"] or row["crashes"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
