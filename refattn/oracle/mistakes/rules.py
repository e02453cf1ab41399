"""Acceptance rules: ours, and those other projects test attention with, as published.

A rule looks at one `Observation` of a kernel and accepts it or not. Fixed tolerances treat NaN as equal
to NaN, so that inputs with NaN do not fail correct kernels; rules that say nothing of lse do not look at
it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from refattn.calls.registry import form_called
from refattn.oracle.arithmetic.spec import KernelSpec
from refattn.oracle.inputs.families import AttentionInputs
from refattn.oracle.inputs.suites import reference, rotated
from refattn.oracle.simulated.emulated import EmulatedKernel
from refattn.oracle.verdict.check import check


@dataclass(eq=False)
class Observation:
    """One call of a kernel: what it returned, twice, and what is right."""

    inputs: AttentionInputs
    output: np.ndarray
    lse: np.ndarray
    again: tuple[np.ndarray, np.ndarray]
    right: tuple[np.ndarray, np.ndarray]

    @property
    def dtype(self) -> np.dtype:
        return self.inputs.arrays[0].dtype

    @cached_property
    def baseline(self) -> np.ndarray:
        """The output of eager attention that works in the input dtype throughout: FlashAttention's
        and PyTorch's yardstick.
        """
        return baseline(self.inputs)


def as_check(inputs: AttentionInputs):
    """(arrays, keywords) with which `check` and the emulations take a call."""
    arrays, options = inputs.arrays, dict(inputs.options)
    form = form_called(inputs.function)
    if not form.public:
        arrays, options = rotated(inputs)
        return arrays, {"function": "attention", **options}
    options |= {name: choices[-1] for name, choices in form.choices.items() if name not in options}
    return arrays, {"function": form.function, **options}


_BASELINES: dict[int, tuple[AttentionInputs, np.ndarray]] = {}


def baseline(inputs: AttentionInputs) -> np.ndarray:
    """Eager attention in the input dtype; kept per inputs, because every mutant asks for it again."""
    known = _BASELINES.get(id(inputs))
    if known is None or known[0] is not inputs:
        if form_called(inputs.function).joins:
            output = reference(inputs)[0]
        else:
            arrays, keywords = as_check(inputs)
            output = EmulatedKernel(KernelSpec.eager(inputs.arrays[0].dtype), inexact_functions=False)(
                *arrays, **keywords
            )[0]
        _BASELINES[id(inputs)] = known = (inputs, output)
    return known[1]


@dataclass(frozen=True)
class Rule:
    """A way to accept or reject a kernel's result."""

    name: str
    accepts: Callable[[Observation], bool]  # observation -> bool
    source: str = ""


def _pairs(seen: Observation, with_lse: bool):
    yield seen.output.astype(np.float64), np.asarray(seen.right[0], np.float64)
    if with_lse:
        yield seen.lse.astype(np.float64), np.asarray(seen.right[1], np.float64)


def _name(dtype) -> str:
    return np.dtype(dtype).name


def fixed(name, rtol, atol, source="", with_lse=False) -> Rule:
    """abs(got - want) <= atol + rtol * abs(want) for every element; tolerances are numbers or {dtype
    name: number}.
    """

    def accepts(seen):
        relative, absolute = (t[_name(seen.dtype)] if isinstance(t, dict) else t for t in (rtol, atol))
        return all(
            np.allclose(got, want, rtol=relative, atol=absolute, equal_nan=True)
            for got, want in _pairs(seen, with_lse)
        )

    return Rule(name, accepts, source)


def _finite_pair(seen):
    got, want = next(_pairs(seen, False))
    fine = np.isfinite(got) & np.isfinite(want)
    return (
        got[fine],
        want[fine],
        np.asarray(seen.baseline, np.float64)[fine],
        bool((np.isnan(got) == np.isnan(want)).all()),
    )


def _flash_attention(seen):
    got, want, low, same_nan = _finite_pair(seen)
    rounding = 2 * np.max(np.abs((want + 0.3 - 0.3) - want), initial=0.0)
    return same_nan and np.max(np.abs(got - want), initial=0.0) <= 2 * np.max(
        np.abs(low - want), initial=0.0
    ) + max(rounding, 1e-5)


def _torch_flash(seen):
    got, want, low, same_nan = _finite_pair(seen)
    return same_nan and np.max(np.abs(got - want), initial=0.0) <= max(
        1e-5, 4 * np.max(np.abs(low - want), initial=0.0)
    )


def _flex(seen):
    got, want, low, same_nan = _finite_pair(seen)
    if not got.size:
        return same_nan
    allowed = np.mean(np.abs(low - want)) * (10 if seen.dtype == np.float32 else 1.1)
    if np.mean(np.abs(low - want)) < 1e-4 * np.mean(np.abs(want)) and seen.dtype != np.float32:
        return same_nan and np.allclose(got, want, rtol=2e-1, atol=2e-1)
    return same_nan and np.mean(np.abs(got - want)) <= allowed + 1e-7


def _ggml(seen):
    got, want, _, same_nan = _finite_pair(seen)
    return same_nan and np.sum((got - want) ** 2) <= 5e-4 * max(np.sum(want**2), 1e-30)


def _flashmla(seen):
    checks = ((8e-4, 2.01 / 128, 5e-6), (1e-6, 8.01 / 65536, None))
    for (got, want), (absolute, relative, cosine) in zip(_pairs(seen, True), checks, strict=True):
        fine = np.isfinite(got) & np.isfinite(want)
        if not np.array_equal(np.where(fine, 0, got), np.where(fine, 0, want), equal_nan=True):
            return False
        off = np.abs(got[fine] - want[fine])
        if not ((off < absolute) | (off < relative * np.abs(want[fine]))).all():
            return False
        size = np.sum(got[fine] ** 2 + want[fine] ** 2)
        if cosine is not None and size and 1 - 2 * np.sum(got[fine] * want[fine]) / size >= cosine:
            return False
    return True


def _onednn(seen):
    got, want, _, same_nan = _finite_pair(seen)
    eps = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}[
        _name(seen.dtype)
    ]
    off = np.abs(got - want)
    keys = seen.inputs.arrays[1].shape[-2]
    with np.errstate(all="ignore"):
        return same_nan and bool(
            (
                (off <= 8 * (1 + keys) * eps * np.abs(want))
                | (off <= eps * np.max(np.abs(want), initial=0.0))
            ).all()
        )


def _merge_accepts(seen):
    """(2 K + 4) u sum of w |o| for the output, a few ulp of lse for lse."""
    u = 2.0**-8 if seen.dtype.itemsize == 2 else 2.0**-23
    outputs, lses = seen.inputs.arrays
    unit = (2 * len(outputs) + 4) * u * np.max(np.abs(np.nan_to_num(outputs.astype(np.float64))), axis=0)
    for (got, want), bound in zip(
        _pairs(seen, True),
        (unit, 2.0**-20 * (1 + np.abs(np.nan_to_num(lses, neginf=0)).max(0))),
        strict=True,
    ):
        fine = np.isfinite(got) & np.isfinite(want)
        if not np.array_equal(np.where(fine, 0, got), np.where(fine, 0, want), equal_nan=True):
            return False
        if not (np.abs(got[fine] - want[fine]) <= bound[fine]).all():
            return False
    return True


def spec_of(inputs: AttentionInputs) -> KernelSpec:
    """What a fused kernel on these inputs claims; rotary and latent operands stay in float32 inside it."""
    spec = KernelSpec.flash(inputs.arrays[0].dtype)
    if inputs.arrays[0].dtype.itemsize == 2:
        form = form_called(inputs.function)
        if not form.public:
            spec = spec.replace(input="float32")
        if form.projects:
            spec = spec.replace(intermediate="float32")
    return spec.replace(block_size=32)


def _refattn(seen):
    """Same bits twice, exact where the answer is exact, and `check` on output and lse."""
    for first, second in zip((seen.output, seen.lse), seen.again, strict=True):
        if not np.array_equal(first, second, equal_nan=True):
            return False
    if seen.inputs.output is not None and not np.array_equal(
        seen.output.astype(np.float64), seen.inputs.output
    ):
        return False
    if form_called(seen.inputs.function).joins:
        return _merge_accepts(seen)
    arrays, keywords = as_check(seen.inputs)
    return not check(seen.output, *arrays, lse=seen.lse, spec=spec_of(seen.inputs), **keywords).wrong


F32, F16, BF16, F64 = "float32", "float16", "bfloat16", "float64"

OURS = Rule("refattn", _refattn, "refattn.oracle.check, run twice, exact cases bitwise")

RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        OURS,
        fixed("numpy.allclose", 1e-5, 1e-8, "NumPy's defaults", with_lse=True),
        fixed(
            "torch.testing",
            {F64: 1e-7, F32: 1.3e-6, F16: 1e-3, BF16: 1.6e-2},
            {F64: 1e-7, F32: 1e-5, F16: 1e-5, BF16: 1e-5},
            "torch.testing.assert_close defaults",
            with_lse=True,
        ),
        Rule(
            "flash_attention 2x",
            _flash_attention,
            "flash-attention tests: max error at most twice that of eager attention in the input dtype",
        ),
        fixed("fixed 1e-2", 0.0, 1e-2, "Triton's tutorial"),
        Rule(
            "torch sdpa 4x",
            _torch_flash,
            "pytorch test_transformers.py: four times the error of the math backend",
        ),
        Rule(
            "flex 1.1x mean",
            _flex,
            "pytorch test_flex_attention.py: mean error at most 1.1 times that of eager attention",
        ),
        fixed(
            "torch cpu",
            {F64: 5e-6, F32: 5e-6, F16: 1e-2, BF16: 5e-2},
            {F64: 1e-5, F32: 1e-5, F16: 1e-2, BF16: 5e-2},
            "pytorch TestSDPACpuOnly",
        ),
        fixed("flashinfer 1e-3", 1e-3, 1e-3, "flashinfer tests/attention"),
        fixed("flashinfer-bench", 1e-2, 1e-2, "flashinfer-bench defaults"),
        Rule("flashmla", _flashmla, "FlashMLA tests/kernelkit/compare.py"),
        fixed("cudnn 2e-2", 2e-2, 2e-2, "cudnn-frontend test/python/sdpa"),
        fixed("jax 1e-2", 1e-2, 1e-2, "jax tests/nn_test.py"),
        fixed(
            "mlx",
            {F64: 1e-5, F32: 1e-5, F16: 3e-4, BF16: 5e-3},
            {F64: 1e-5, F32: 1e-5, F16: 3e-4, BF16: 5e-3},
            "mlx test_fast_sdpa.py",
        ),
        fixed("onnx", 1e-3, 1e-7, "onnx node tests"),
        fixed(
            "xformers",
            {F64: 2e-5, F32: 2e-5, F16: 4e-4, BF16: 5e-3},
            {F64: 3e-4, F32: 3e-4, F16: 4e-3, BF16: 2e-2},
            "xformers fmha/common.py",
        ),
        Rule("ggml nmse", _ggml, "ggml test-backend-ops: NMSE at most 5e-4"),
        Rule("onednn", _onednn, "oneDNN benchdnn sdpa"),
        fixed("mlir-air", 0.2, 0.5, "mlir-air tests before #1450"),
    )
}


def rule(value) -> Rule:
    """A rule by name, a `Rule`, or a function (got, want) -> bool on the output.

    Raises
    ------
    TypeError, ValueError
    """
    if isinstance(value, Rule):
        return value
    if isinstance(value, str):
        if value not in RULES:
            raise ValueError(f"rule must be one of {', '.join(RULES)}; got rule={value!r}.")
        return RULES[value]
    if callable(value):
        return Rule(
            getattr(value, "__name__", "rule"), lambda seen: bool(value(*next(_pairs(seen, False)))), "given"
        )
    raise TypeError(
        f"rule must be a name, a Rule or a function (got, want) -> bool; got rule={value!r} of type "
        f"{type(value).__name__}."
    )
