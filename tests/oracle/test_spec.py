"""KernelSpec: what the ready-made ones claim, derivation, validation, and a round trip through plain values."""

import dataclasses
import json

import numpy as np
import pytest

from refattn.oracle import KernelSpec
from refattn.oracle.spec import kernel_spec

READY = [
    *(KernelSpec.flash(name) for name in ("float64", "float32", "tfloat32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")),
    *(KernelSpec.eager(name) for name in ("float64", "float32", "float16", "bfloat16")),
    *(KernelSpec.cpu_kernels(name) for name in ("float64", "float32", "float16", "bfloat16")),
]


def test_flash_claims():
    half = KernelSpec.flash("bfloat16")
    assert (half.weight.name, half.output.name, half.accumulator.name, half.lse.name) == ("bfloat16", "bfloat16", "float32", "float32")
    single = KernelSpec.flash(np.float32)
    assert single.weight.unit_roundoff == 0 and single.exp_error == 4 * 2.0**-24
    eighth = KernelSpec.flash("e4m3")
    assert eighth.accumulator_roundoff == 2.0**-13 and eighth.weight_underflow == 2.0**-10
    assert eighth.replace(weight_scale=256.0).weight_underflow == 2.0**-18


def test_eager_and_cpu_kernels_claims():
    eager = KernelSpec.eager("float16")
    assert eager.normalises_first and eager.score.name == "float16" and eager.block_size is None
    assert KernelSpec.eager("float32").score.unit_roundoff == 0
    cpu = KernelSpec.cpu_kernels("bfloat16")
    assert cpu.weight.unit_roundoff == 0 and cpu.output.name == "bfloat16" and cpu.intermediate.name == "float32"
    assert KernelSpec.cpu_kernels("float64").lse.name == "float64"


@pytest.mark.parametrize("spec", READY, ids=lambda spec: spec.name)
def test_round_trip_through_json(spec):
    assert KernelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_round_trip_of_a_roundoff():
    spec = KernelSpec.flash("float16").replace(accumulator=2.0**-13, truncates=True)
    assert KernelSpec.from_dict(spec.to_dict()) == spec and spec.accumulator_roundoff == 2.0**-12


def test_replace_names_the_change_and_is_frozen():
    spec = KernelSpec.flash("float16").replace(block_size=128)
    assert spec.name == "flash float16, block_size=128"
    assert spec.replace(name="mine", splits=4).name == "mine"
    assert KernelSpec.flash("float16").replace() == KernelSpec.flash("float16")
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.block_size = 2
    with pytest.raises(TypeError, match="fields of KernelSpec"):
        spec.replace(blocksize=128)


def test_intermediate_follows_the_input():
    assert KernelSpec("x", input="bfloat16").intermediate.name == "bfloat16"


@pytest.mark.parametrize(
    "change, kind, words",
    [
        ({"exp_error": -1.0}, ValueError, r"exp_error must be in \[0, 1\)"),
        ({"exp_error": "big"}, TypeError, "exp_error must be a number"),
        ({"tanh_error": True}, TypeError, "tanh_error must be a number"),
        ({"block_size": 0}, ValueError, "block_size must be at least 1"),
        ({"block_size": 10**19}, ValueError, "block_size must be at most 2\\*\\*53.*None stands for one pass"),
        ({"sum_block": 10**400}, ValueError, "sum_block must be at most"),
        ({"block_size": 64.0}, TypeError, "block_size must be an integer"),
        ({"sum_block": None}, TypeError, "sum_block must be an integer"),
        ({"splits": True}, TypeError, "splits must be an integer"),
        ({"weight_scale": 0.0}, ValueError, "weight_scale must be finite"),
        ({"weight": "e4m3", "weight_scale": 512.0}, ValueError, "weight_scale must be at most the largest float8_e4m3fn, 448"),
        ({"denominator": "both"}, ValueError, "denominator must be"),
        ({"truncates": 1}, TypeError, "truncates must be a bool"),
        ({"weight": "float12"}, ValueError, "weight must be one of"),
        ({"name": 3}, TypeError, "name must be a string"),
    ],
)
def test_validation(change, kind, words):
    with pytest.raises(kind, match=words):
        KernelSpec.flash("float16").replace(**change)


def test_unknown_dtypes():
    for make in (KernelSpec.flash, KernelSpec.eager, KernelSpec.cpu_kernels):
        with pytest.raises(ValueError, match="dtype must be"):
            make("e8m13")


def test_kernel_spec_from_dtype_or_nothing():
    assert kernel_spec("fp16") == KernelSpec.flash("float16")
    assert kernel_spec(None, np.float32) == KernelSpec.flash("float32")
    assert kernel_spec(KernelSpec.eager("float16")).name == "eager float16"
