"""KernelSpec: what the ready-made ones claim, derivation, validation, and a round trip through plain
values.
"""

import dataclasses
import json

import numpy as np
import pytest

import refattn
from refattn.oracle import KernelSpec, check, error_bound
from refattn.oracle.arithmetic.spec import kernel_spec, spec_words

READY = [
    *(
        KernelSpec.flash(name)
        for name in ("float64", "float32", "tfloat32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
    ),
    *(KernelSpec.eager(name) for name in ("float64", "float32", "float16", "bfloat16")),
    *(KernelSpec.cpu_kernels(name) for name in ("float64", "float32", "float16", "bfloat16")),
]


def test_flash_claims():
    half = KernelSpec.flash("bfloat16")
    assert (half.weight.name, half.output.name, half.accumulator.name, half.lse.name) == (
        "bfloat16",
        "bfloat16",
        "float32",
        "float32",
    )
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
    assert (
        cpu.weight.unit_roundoff == 0
        and cpu.output.name == "bfloat16"
        and cpu.intermediate.name == "float32"
    )
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
        (
            {"block_size": 10**19},
            ValueError,
            "block_size must be at most 2\\*\\*53.*None stands for one pass",
        ),
        ({"sum_block": 10**400}, ValueError, "sum_block must be at most"),
        ({"block_size": 64.0}, TypeError, "block_size must be an integer"),
        ({"sum_block": None}, TypeError, "sum_block must be an integer"),
        ({"splits": True}, TypeError, "splits must be an integer"),
        ({"weight_scale": 0.0}, ValueError, "weight_scale must be finite"),
        (
            {"weight": "e4m3", "weight_scale": 512.0},
            ValueError,
            "weight_scale must be at most the largest float8_e4m3fn, 448",
        ),
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


def test_specs_by_words():
    assert kernel_spec("eager float16") == KernelSpec.eager("float16")
    assert kernel_spec("flash bf16") == KernelSpec.flash("bfloat16")
    assert kernel_spec("cpu_kernels float32", "bfloat16") == KernelSpec.cpu_kernels("float32")
    for spec in READY:
        assert kernel_spec(spec.name) == spec and spec_words(spec) == repr(spec.name)


@pytest.mark.parametrize(
    "words, told",
    [
        ("magic float32", "flash goes with"),
        ("eager tfloat32", "eager goes with float64, float32, float16, bfloat16."),
    ],
)
def test_words_that_mean_nothing(words, told):
    with pytest.raises(
        ValueError, match=f"spec must be a KernelSpec, a dtype, or .*got spec='{words}'.*{told}"
    ):
        kernel_spec(words)


def test_what_is_no_spec_at_all():
    with pytest.raises(TypeError, match="spec must be .*got spec=\\[1, 2\\]"):
        kernel_spec([1, 2])
    with pytest.raises(ValueError, match="spec must be .*int32"):
        kernel_spec(np.int32)


@pytest.mark.parametrize("words", ["eager float32", "cpu_kernels float32", "flash float16"])
def test_words_are_taken_where_a_spec_is(words):
    x = np.ones((1, 2, 4), np.float32)
    report = check(refattn.attention(x, x, x).astype(np.float32), x, x, x, spec=words)
    assert (
        report.passed and report.spec.name == words and error_bound(x, x, x, spec=words).spec == report.spec
    )


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_cpu_kernels_may_lose_weights_below_the_smallest_normal_number(dtype):
    """A sink far above the only key leaves a weight that is subnormal in the arithmetic of the
    kernels, which they drop.
    """
    score = -709.5 if dtype == "float64" else -88.0
    one = np.ones((1, 1, 1))
    exact = refattn.attention(one, score * one, one, sinks=[0.0])
    assert 0 < exact < np.finfo(np.float64 if dtype == "float64" else np.float32).tiny
    assert check(np.zeros((1, 1, 1)), one, score * one, one, spec=f"cpu_kernels {dtype}", sinks=[0.0]).passed
    assert not check(
        np.full((1, 1, 1), 1e-37), one, score * one, one, spec=f"cpu_kernels {dtype}", sinks=[0.0]
    ).passed
