"""Dialects: translated calls give our numbers on the real libraries, and the stated conventions are
what those libraries do.
"""

import numpy as np
import pytest
from real_libraries import CALLS, MODULES

import refattn
from refattn.oracle.dialects.differences import differences, explain_difference
from refattn.oracle.dialects.layouts import array_from_ours, array_to_ours
from refattn.oracle.dialects.libraries import DIALECTS, dialect
from refattn.oracle.dialects.results import result_from_ours, result_to_ours
from refattn.oracle.dialects.translate import from_ours, to_ours
from refattn.oracle.inputs.families import OPTION_NAMES, Sizes, attention_inputs

REQUIRED = (
    "torch",
    "flash_attn",
    "flash_attn_3",
    "flashinfer",
    "flashmla",
    "onnx",
    "onnxruntime_gqa",
    "jax",
    "mlx",
    "cudnn",
    "ggml",
    "xformers",
    "transformers",
)
SIZES = Sizes(batch=2, num_heads=4, num_kv_heads=2, q_len=5, kv_len=11, head_dim=8, v_head_dim=8)
SQUARE = Sizes(batch=2, num_heads=4, num_kv_heads=2, q_len=9, kv_len=9, head_dim=8, v_head_dim=8)
GROUPS = (
    (),
    ("causal",),
    ("own offset", "causal"),
    ("left window", "causal"),
    ("two-sided window",),
    ("chunk",),
    ("chunk", "causal"),
    ("mask",),
    ("mask", "causal"),
    ("bias",),
    ("bias", "mask"),
    ("softcap",),
    ("softcap", "causal"),
    ("alibi", "causal"),
    ("sinks",),
    ("sinks", "causal"),
    ("lengths",),
    ("lengths", "causal"),
    ("own scale",),
    ("empty rows",),
    ("empty rows", "bias"),
)
# what a library cannot say at all; everything else must agree
CANNOT = {
    "torch": {"softcap", "sinks"},
    "jax": {"softcap", "sinks"},
    "mlx": {"softcap"},
    "onnx": {"sinks"},
    "onnxruntime": {"sinks", "two-sided window", "left window"},
    "onnxruntime_gqa": {"two-sided window", "chunk", "mask", "empty rows", "own offset", "alibi"},
    "transformers": set(),
}


def call_library(name, arrays, options):
    """Our call on a real library: (output, lse) in our conventions."""
    pytest.importorskip(MODULES[name])
    spoken = "onnx" if name == "onnxruntime" else name
    call = from_ours(spoken, *arrays, **options)
    output, lse = CALLS[name](**call)
    empty = np.isneginf(refattn.attention_with_lse(*arrays, **{**options, "sinks": None})[1])
    return result_to_ours(
        spoken, output, lse, heads=arrays[0].shape[1], sinks=options.get("sinks"), empty=empty
    )


def sayable(name, names):
    if name == "onnxruntime_gqa" and ("causal" not in names or "lengths" in names):
        return False  # always causal, and a prompt fills its lengths
    return not CANNOT[name] & {*names}


@pytest.mark.parametrize(
    ("name", "names"), [(name, names) for name in CALLS for names in GROUPS if sayable(name, names)]
)
@pytest.mark.filterwarnings("ignore")  # the libraries' own
def test_translated_call_agrees_with_the_real_library(name, names):
    inputs = attention_inputs("normal", names, sizes=SQUARE if name == "onnxruntime_gqa" else SIZES)
    output, lse = call_library(name, inputs.arrays, inputs.options)
    want, want_lse = refattn.attention_with_lse(*inputs.arrays, **inputs.options)
    np.testing.assert_allclose(output, want, rtol=0, atol=3e-6)
    if lse is not None:
        np.testing.assert_allclose(lse, want_lse, rtol=0, atol=5e-6)


@pytest.mark.parametrize("name", ["torch", "jax", "onnx", "transformers"])
@pytest.mark.filterwarnings("ignore")
def test_alibi_beside_16_bit_arrays_keeps_float32(name):
    """Two keys 4000 rows back: the ALiBi terms -1200 and -1199.7 would be one number in float16."""
    pytest.importorskip(MODULES[name])
    query, key = np.zeros((1, 1, 1, 8), np.float16), np.zeros((1, 1, 2, 8), np.float16)
    value = np.broadcast_to(np.float16([[0], [1]]), key.shape)
    call, argument = (
        from_ours(name, query, key, value, alibi_slopes=np.array([0.3]), q_offset=4000),
        DIALECTS[name].arguments["bias"],
    )
    assert call[argument].dtype == np.float32
    output, _ = result_to_ours(name, CALLS[name](**call)[0], heads=1)
    assert np.allclose(output.astype(np.float64), 1 / (1 + np.exp(-0.3)), rtol=0, atol=1e-3)
    assert from_ours(name, query, key, value, bias=np.ones((1, 2), np.float16))[argument].dtype == np.float16


def test_a_single_row_of_an_operator_that_is_always_causal():
    inputs = attention_inputs(
        "normal",
        ("lengths",),
        sizes=Sizes(batch=2, num_heads=4, num_kv_heads=2, q_len=1, kv_len=9, head_dim=8, v_head_dim=8),
    )
    for more in ({}, {"q_offset": 3}, {"window": (2, None), "q_offset": inputs.options["kv_lengths"] - 1}):
        options = {**inputs.options, **more}
        output, _ = call_library("onnxruntime_gqa", inputs.arrays, options)
        np.testing.assert_allclose(output, refattn.attention(*inputs.arrays, **options), rtol=0, atol=3e-6)
    with pytest.raises(ValueError, match="is always causal"):
        from_ours("onnxruntime_gqa", *inputs.arrays, window=(2, None), q_offset=3)


@pytest.mark.parametrize(
    ("name", "option"),
    [(name, option) for name in CALLS for option in ("softcap", "sinks") if option in CANNOT[name]],
)
def test_what_a_library_cannot_say_is_refused(name, option):
    inputs = attention_inputs("normal", (option,), sizes=SIZES)
    with pytest.raises(ValueError, match=f"{option} must be None"):
        from_ours("onnx" if name == "onnxruntime" else name, *inputs.arrays, **inputs.options)


def test_from_ours_and_to_ours_are_inverse():
    """Whatever `from_ours` writes, `to_ours` reads as the same attention."""
    said = 0
    for name, record in DIALECTS.items():
        if record.paged:
            continue
        for names in GROUPS:
            inputs = attention_inputs("normal", names, sizes=SQUARE)
            arrays = inputs.arrays if "B" in record.layout else tuple(array[0] for array in inputs.arrays)
            options = dict(inputs.options)
            if "B" not in record.layout:
                options = {
                    key: np.asarray(value)[0] if key in ("mask", "bias", "kv_lengths") else value
                    for key, value in options.items()
                }
            try:
                call = from_ours(name, *arrays, **options)
            except ValueError:
                continue
            function, back, understood = to_ours(name, **call)
            assert function == "attention"
            got, (want, lse) = (
                refattn.attention(*back, **understood),
                refattn.attention_with_lse(*arrays, **options),
            )
            seen = lse > -np.inf  # a finite stand-in for -inf changes rows without keys
            np.testing.assert_allclose(got[seen], want[seen], rtol=0, atol=1e-6, err_msg=f"{name} {names}")
            said += 1
    assert said > 120


@pytest.mark.parametrize("name", REQUIRED)
def test_every_dialect_is_there_with_its_source(name):
    record = dialect(name)
    assert record.version and record.source and record.call and record.issues
    ours = {
        "query",
        "key",
        "value",
        "causal",
        "window",
        "chunk",
        "mask",
        "bias",
        "softcap",
        "alibi_slopes",
        "sinks",
        "kv_lengths",
        "block_table",
        "scale",
    }
    assert set(record.arguments) <= ours


@pytest.mark.parametrize("name", ["jax", "mlx", "transformers", "torch", "onnx", "onnxruntime"])
@pytest.mark.filterwarnings("ignore")
def test_rows_without_keys_are_as_stated(name):
    pytest.importorskip(MODULES[name])
    spoken = "onnx" if name == "onnxruntime" else name
    inputs = attention_inputs("empty rows", sizes=SIZES)
    output, _ = CALLS[name](**from_ours(spoken, *inputs.arrays, **inputs.options))
    output, _ = result_to_ours(spoken, output)
    value = np.repeat(inputs.arrays[2], 2, axis=1)
    stated = {"zero": 0.0, "mean of values": value.mean(axis=2)}[dialect(spoken).empty_output]
    np.testing.assert_allclose(output[:, :, 1], np.broadcast_to(stated, output[:, :, 1].shape), atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_decode_lengths_of_onnxruntime_are_counts_minus_one():
    pytest.importorskip("onnxruntime")
    rng = np.random.default_rng(0)
    query, key, value = (
        rng.standard_normal(shape).astype(np.float32) for shape in ((2, 4, 1, 8), (2, 2, 7, 8), (2, 2, 7, 8))
    )
    lengths = np.array([5, 7])  # after the new key is written behind 4 and 6 cached ones
    new_key, new_value = (
        np.stack([array[b, :, n - 1 : n] for b, n in enumerate(lengths)]) for array in (key, value)
    )
    call = {
        "query": array_from_ours(query, "BTM"),
        "key": array_from_ours(new_key, "BTM"),
        "value": array_from_ours(new_value, "BTM"),
        "past_key": key[:, :, :6],
        "past_value": value[:, :, :6],
        "seqlens_k": lengths - 1,
        "num_heads": 4,
        "kv_num_heads": 2,
    }
    import onnxruntime
    from real_libraries import GQA_ORDER, onnx_model

    call |= {
        "seqlens_k": call["seqlens_k"].astype(np.int32),
        "total_sequence_length": np.array([7], np.int32),
    }
    model, inputs = onnx_model(
        call,
        "GroupQueryAttention",
        GQA_ORDER,
        "com.microsoft",
        [("", 21), ("com.microsoft", 1)],
        ["Y", "pk", "pv"],
    )
    output = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, inputs
    )[0]
    want = refattn.attention(query, key, value, causal=True, kv_lengths=lengths)
    np.testing.assert_allclose(array_to_ours(output, "BTM", 4), want, atol=2e-6)


def test_torch_foreign_calls():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal((1, 2, 4, 8)).astype(np.float32)
    key = np.random.default_rng(1).standard_normal((1, 2, 6, 8)).astype(np.float32)
    tensors = [torch.from_numpy(array) for array in (x, key, key)]
    for call in (
        {"is_causal": True},
        {"attn_mask": torch.ones(4, 6).tril().bool()},
        {"attn_mask": torch.randn(2, 4, 6)},
        {"scale": 0.3},
    ):
        want = torch.nn.functional.scaled_dot_product_attention(*tensors, **call).numpy()
        _, arrays, options = to_ours("torch", query=tensors[0], key=tensors[1], value=tensors[2], **call)
        np.testing.assert_allclose(refattn.attention(*arrays, **options), want, atol=2e-6)


def test_lower_right_bias_of_torch_is_our_default():
    torch = pytest.importorskip("torch")
    from torch.nn.attention.bias import causal_lower_right

    rng = np.random.default_rng(0)
    query, key = (rng.standard_normal((1, 2, n, 8)).astype(np.float32) for n in (3, 7))
    want = torch.nn.functional.scaled_dot_product_attention(
        *map(torch.from_numpy, (query, key, key)), attn_mask=causal_lower_right(3, 7)
    ).numpy()
    np.testing.assert_allclose(refattn.attention(query, key, key, causal=True), want, atol=2e-6)


def test_flashmla_call_is_paged_attention_over_the_latent():
    rng = np.random.default_rng(0)
    query, pages = rng.standard_normal((2, 1, 3, 576)), rng.standard_normal((5, 64, 1, 576))
    call = {
        "q": query,
        "k_cache": pages,
        "block_table": np.array([[3, 1], [0, 4]]),
        "cache_seqlens": np.array([70, 100]),
        "head_dim_v": 512,
        "causal": True,
    }
    function, arrays, options = to_ours("flashmla", **call)
    got, lse = getattr(refattn, function + "_with_lse")(*arrays, **options)
    rows = pages[[3, 1]].reshape(128, 576)[:70]
    scores = rows @ query[0, 0].T * 576**-0.5
    weights = np.exp(scores - scores.max(0)) / np.exp(scores - scores.max(0)).sum(0)
    np.testing.assert_allclose(got[0, :, 0], weights.T @ rows[:, :512], atol=1e-12)
    back, _ = result_from_ours("flashmla", got, lse)
    assert back.shape == (2, 1, 3, 512)


def test_results_go_there_and_back():
    rng = np.random.default_rng(0)
    for name, record in DIALECTS.items():
        lead = (2,) if "B" in record.layout else ()
        output, lse = rng.standard_normal((*lead, 4, 5, 3)), rng.standard_normal((*lead, 4, 5))
        lse[..., 2] = -np.inf
        sinks = rng.standard_normal(4) - 3 if record.sinks_in_lse is not None else None
        if sinks is not None:
            lse = np.logaddexp(lse, sinks[:, None])
        with_lse = lse if record.lse_base else None
        there = result_from_ours(name, output, with_lse, sinks=sinks)
        empty = np.zeros(lse.shape, bool)
        empty[..., 2] = True
        back, back_lse = result_to_ours(
            name, *there, heads=4, sinks=sinks, empty=empty if sinks is not None else None
        )
        np.testing.assert_array_equal(
            np.where(empty[..., None], 0, back), np.where(empty[..., None], 0, output), err_msg=name
        )
        if with_lse is not None:
            np.testing.assert_allclose(back_lse, lse, rtol=1e-12, err_msg=name)


def test_explain_difference_shows_only_what_differs():
    text = explain_difference("torch", "flash_attn")
    assert "top-left  [x... / xx..]" in text and "bottom-right  [xxx. / xxxx]" in text
    assert "key lengths" not in text
    for first in DIALECTS:
        assert differences(first, first) == []
        for second in DIALECTS:
            assert all(one != two for _, one, two in differences(first, second))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dialect("tensorflow"), "dialect must be one of refattn, torch"),
        (lambda: to_ours("torch", q=1), "call must use the arguments of torch.nn.functional"),
        (
            lambda: from_ours("flashmla", *[np.ones((1, 1, 2, 4))] * 3),
            "block_table must be given: flash_mla",
        ),
        (
            lambda: from_ours("flash_attn", *[np.ones((1, 1, 2, 4))] * 3, mask=np.ones((2, 2), bool)),
            "mask must be None: flash_attn_func takes",
        ),
        (
            lambda: from_ours("flash_attn", *[np.ones((1, 1, 2, 4))] * 3, chunk=1),
            "chunk must be None: flash_attn_func takes",
        ),
        (lambda: from_ours("torch", *[np.ones((1, 1, 2, 4))] * 3, softcap=1.0), "softcap must be None"),
        *(
            (
                lambda name=name: from_ours(
                    name, *[np.ones((1, 1, 2, 4))] * 3, alibi_slopes=np.ones(1), q_offset=1
                ),
                "q_offset must be left out beside alibi_slopes",
            )
            for name in DIALECTS
            if "alibi_slopes" in dialect(name).arguments and not dialect(name).paged
        ),
        (lambda: to_ours("mlx", **{name: np.ones((1, 1, 2, 4)) for name in "qkv"}), "scale must be given"),
        (lambda: array_to_ours(np.ones((1, 2, 8)), "BTM"), "heads must be given"),
        (lambda: result_to_ours("torch", np.ones((1, 1, 2, 4)), np.ones((1, 1, 2))), "lse must be None"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_option_names_are_covered():
    assert {name for group in GROUPS for name in group} >= {*OPTION_NAMES} - {"dropout"}
