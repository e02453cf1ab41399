"""check_kernel on the attention of other libraries: it passes them, and says of each what it cannot do."""

import functools

import numpy as np
import pytest
from real_libraries import CALLS, run_onnx_attention, torch_backend_call

from refattn import attention
from refattn.oracle import check_kernel

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own
LONG = (": tiles", ": hidden tiles", "together")  # a few of them below
SIZE = {"head_dims": 24}  # for those that need head_dim == v_head_dim
# id -> (module, dialect, call, arguments of check_kernel); none hides NaN: its weight of 0 times NaN is NaN
KERNELS = {
    "torch": ("torch", "torch", CALLS["torch"], {}),
    "torch math": ("torch", "torch", torch_backend_call("MATH"), {"spec": "bfloat16"}),
    "torch flash bfloat16": (
        "torch",
        "torch",
        torch_backend_call("FLASH_ATTENTION"),
        SIZE | {"spec": "bfloat16"},
    ),
    "torch flash float16": (
        "torch",
        "torch",
        torch_backend_call("FLASH_ATTENTION"),
        SIZE | {"spec": "float16"},
    ),
    "mlx": ("mlx.core", "mlx", CALLS["mlx"], {}),
    "mlx bfloat16": ("mlx.core", "mlx", CALLS["mlx"], {"spec": "eager bfloat16"}),
    "onnx": ("onnx", "onnx", CALLS["onnx"], {}),
    "onnxruntime": ("onnxruntime", "onnx", CALLS["onnxruntime"], {}),
    "onnxruntime float16": ("onnxruntime", "onnx", CALLS["onnxruntime"], {"spec": "eager float16"}),
    "onnxruntime_gqa": (
        "onnxruntime",
        "onnxruntime_gqa",
        CALLS["onnxruntime_gqa"],
        SIZE | {"skip": ["softcap empty rows"]},  # such a row is NaN: a softcap meets a bias of finfo.min
    ),
    "onnxruntime_gqa float16": (
        "onnxruntime",
        "onnxruntime_gqa",
        CALLS["onnxruntime_gqa"],
        SIZE | {"spec": "float16"},
    ),
    "transformers": ("transformers", "transformers", CALLS["transformers"], {"only": ": normal"}),
}
LEAST = {
    "onnxruntime_gqa": 40,
    "onnxruntime_gqa float16": 40,
    "transformers": 30,
}  # tests that must pass; the operator is always causal


@functools.cache
def checked(name, **more):
    module, dialect, call, arguments = KERNELS[name]
    pytest.importorskip(module)
    pytest.importorskip("ml_dtypes")
    arguments = {"skip": LONG, **arguments, **more}
    arguments["skip"] = [*arguments["skip"], *LONG] if "only" not in more else ()
    report = check_kernel(call, dialect=dialect, hides_nan=False, diagnose=False, **arguments)
    assert report.passed, report.text()
    return report


@pytest.mark.parametrize("name", KERNELS)
def test_a_real_kernel_passes(name):
    report = checked(name)
    assert report.count("pass") >= LEAST.get(name, 100), report.text()
    worst = max(outcome.use for outcome in report.outcomes if outcome.use is not None)
    assert 0.05 < worst <= 1


@pytest.mark.parametrize(
    "name", ["torch", "torch flash bfloat16", "mlx bfloat16", "onnxruntime", "onnxruntime_gqa"]
)
def test_a_real_kernel_passes_random_calls(name):
    report = checked(name, level="full", only=", random ")
    assert report.count("pass") >= 5, report.text()


@pytest.mark.parametrize("name", ["torch", "torch flash bfloat16", "onnxruntime", "onnxruntime_gqa"])
def test_a_real_kernel_passes_calls_of_several_tiles(name):
    report = checked(name, only=", 33 rows on 1537 keys")
    assert report.count("pass") >= 1, report.text()


def test_jax_passes():
    pytest.importorskip("jax")
    report = check_kernel(
        CALLS["jax"], dialect="jax", hides_nan=False, diagnose=False, **SIZE, only="normal l"
    )
    assert report.passed and report.count("pass") >= 5, report.text()


@pytest.mark.parametrize(
    "name, words",
    [
        ("torch", "scaled_dot_product_attention has none"),
        ("onnx", "which must be at least 0"),
        ("onnxruntime", "scale must be above 0"),
        ("onnxruntime_gqa", "is always causal"),
    ],
)
def test_what_a_library_cannot_do_is_skipped_with_a_word(name, words):
    text = checked(name).text()
    assert words in text and "; got" not in text


def test_nan_that_gets_through_is_found_and_the_way_out_is_named():
    torch = pytest.importorskip("torch")
    report = check_kernel(CALLS["torch"], dialect="torch", only="hidden slots", diagnose=False)
    assert report.count("FAIL") == 4 and "hides_nan=False" in report.text()

    def careless(
        **call,
    ):  # the lengths of a batch from its first sequence: wrong, whatever the hidden slots hold
        if call.get("attn_mask") is not None and call["attn_mask"].ndim == 4:
            call["attn_mask"] = np.broadcast_to(call["attn_mask"][:1], call["attn_mask"].shape)
        return CALLS["torch"](**call)

    assert (
        torch
        and not check_kernel(
            careless, dialect="torch", only="past kv_lengths", hides_nan=False, diagnose=False
        ).passed
    )


@pytest.mark.parametrize("mask_dtype, wrong", [(np.float16, False), (np.float32, True)])
def test_onnxruntime_is_wrong_on_a_float32_mask_beside_float16_arrays(mask_dtype, wrong):
    """Why `real_libraries` refuses causal rows at the end of nonpad_kv_seqlen with such a mask, which
    the operator allows.
    """
    pytest.importorskip("onnxruntime")
    rng = np.random.default_rng(0)
    query, key, value = (rng.standard_normal((1, 2, rows, 8)).astype(np.float16) for rows in (3, 9, 9))
    bias = rng.standard_normal((1, 2, 3, 9)).astype(mask_dtype)
    call = {
        "Q": query,
        "K": key,
        "V": value,
        "attn_mask": bias,
        "is_causal": 1,
        "nonpad_kv_seqlen": np.array([9]),
        "scale": 8**-0.5,
    }
    error = np.abs(run_onnx_attention(call)[0] - attention(query, key, value, bias=bias, causal=True)).max()
    assert (error > 0.1) == wrong
