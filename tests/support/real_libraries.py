"""Calls of the libraries a dialect describes, NumPy in and NumPy out; each raises ImportError where the
library is missing, and NotImplementedError for what the library cannot do."""

import numpy as np


def torch_tensors(call):
    """Arrays of a call as tensors; bfloat16 goes as its bits."""
    import torch

    def tensor(array):
        array = np.ascontiguousarray(array)
        if array.dtype.name == "bfloat16":
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    return {name: tensor(value) if isinstance(value, np.ndarray) else value for name, value in call.items()}


def torch_array(tensor):
    import torch

    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def cast_sinks(sinks, dtype):
    """Sinks in the dtype of the query, which these libraries want; in 16 bits that moves them further
    than any kernel may.
    """
    if dtype.itemsize == 2:
        raise NotImplementedError(f"sinks would be rounded to {dtype.name}")
    return np.asarray(sinks, dtype)


def torch_call(**call):
    import torch

    enable_gqa = call["query"].shape[1] != call["key"].shape[1]
    return torch_array(
        torch.nn.functional.scaled_dot_product_attention(**torch_tensors(call), enable_gqa=enable_gqa)
    ), None


def torch_backend_call(name):
    """SDPA on one backend; calls it refuses raise NotImplementedError."""

    def call_backend(**call):
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel

        with sdpa_kernel(getattr(SDPBackend, name)):
            try:
                return torch_call(**call)
            except RuntimeError as error:
                if "No available kernel" not in str(error):
                    raise
                raise NotImplementedError(
                    f"{torch.__version__} has no {name} kernel for this call"
                ) from error

    call_backend.__name__ = f"torch_{name.lower()}_call"
    return call_backend


def jax_call(**call):
    import jax

    if call["value"].shape[-1] != call["key"].shape[-1]:
        raise NotImplementedError("head_dim and v_head_dim must be equal")
    if call["value"].dtype == np.float64:
        raise NotImplementedError("float64 needs jax_enable_x64")
    output, lse = jax.nn.dot_product_attention(**call, return_residual=True)
    return np.asarray(output), np.asarray(lse)


def mlx_call(**call):
    import mlx.core as mx

    if call["q"].dtype == np.float64:
        raise NotImplementedError("mlx has no float64 on a GPU")

    def array(value):
        value = np.ascontiguousarray(value)
        return (
            mx.array(value.view(np.uint16)).view(mx.bfloat16)
            if value.dtype.name == "bfloat16"
            else mx.array(value)
        )

    arrays = {name: array(value) if isinstance(value, np.ndarray) else value for name, value in call.items()}
    if isinstance(call.get("sinks"), np.ndarray):
        arrays["sinks"] = array(cast_sinks(call["sinks"], call["q"].dtype))
    output = mx.fast.scaled_dot_product_attention(**arrays)
    if output.dtype == mx.bfloat16:
        import ml_dtypes

        return np.array(output.view(mx.uint16)).view(ml_dtypes.bfloat16), None
    return np.array(output), None


def _value_info(name, array):
    from onnx import helper

    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)


def onnx_model(call, op, order, domain, opsets, outputs):
    from onnx import helper

    inputs = {
        name: np.ascontiguousarray(value)
        for name, value in call.items()
        if name in order and value is not None
    }
    attributes = {name: value for name, value in call.items() if name not in order and value is not None}
    attributes = {
        name: int(value) if isinstance(value, bool) else value for name, value in attributes.items()
    }
    names = [name if name in inputs else "" for name in order]
    while names[-1] == "":
        names.pop()
    node = helper.make_node(op, names, outputs, domain=domain, **attributes)
    element = helper.np_dtype_to_tensor_dtype(inputs[order[0]].dtype)
    results = [helper.make_tensor_value_info(name, element, None) for name in outputs]
    graph = helper.make_graph(
        [node], "attention", [_value_info(name, array) for name, array in inputs.items()], results
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid(*opset) for opset in opsets], ir_version=10
    ), inputs


ONNX_ORDER = ("Q", "K", "V", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen")
GQA_ORDER = (
    "query",
    "key",
    "value",
    "past_key",
    "past_value",
    "seqlens_k",
    "total_sequence_length",
    "cos_cache",
    "sin_cache",
    "position_ids",
    "attention_bias",
    "head_sink",
)


def onnx_call(**call):
    from onnx.reference import ReferenceEvaluator

    if call.get("scale", 1.0) < 0:
        raise NotImplementedError(
            "query and key are each multiplied by the root of the scale, which must be at least 0"
        )
    if call["K"].shape[2] == 0:
        raise NotImplementedError("there must be keys")
    opset = 25 if "left_window_size" in call else 24
    model, inputs = onnx_model(call, "Attention", ONNX_ORDER, "", [("", opset)], ["Y"])
    return ReferenceEvaluator(model).run(None, inputs)[0], None


def _run_onnxruntime(model, inputs):
    """The first output; what no kernel of the CPU provider implements raises NotImplementedError."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised; they need not be printed as well
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented as error:
        raise NotImplementedError("the CPU provider has no kernel for this dtype") from error
    return session.run(None, inputs)[0]


def onnxruntime_call(**call):
    if not call.get("scale", 1.0) > 0:
        raise NotImplementedError("the scale must be above 0")
    if 0 in call["Q"].shape or call["K"].shape[2] == 0:
        raise NotImplementedError("there must be sequences, rows and keys")
    if "left_window_size" in call:
        raise NotImplementedError("left_window_size needs opset 25")
    mixed = "attn_mask" in call and call["attn_mask"].dtype == np.float32 and call["Q"].dtype == np.float16
    if mixed and call.get("is_causal") and call.get("nonpad_kv_seqlen") is not None:
        raise NotImplementedError(
            "causal rows at the end of nonpad_kv_seqlen, with a float32 mask beside float16 arrays, are "
            "wrong"
        )
    return run_onnx_attention(call)


def run_onnx_attention(call):
    return _run_onnxruntime(*onnx_model(call, "Attention", ONNX_ORDER, "", [("", 24)], ["Y"])), None


def onnxruntime_gqa_call(**call):
    """The operator appends `key` to the cache `past_key`, so the last rows of our keys are new and those
    before them cached; with a cache it takes several rows of one sequence only."""
    rows, heads = call["query"].shape[1], call["kv_num_heads"]
    keys, head_dim = call["key"].shape[1], call["key"].shape[-1] // heads
    if call["value"].shape[-1] != heads * head_dim or head_dim % 8:
        raise NotImplementedError("head_dim and v_head_dim must be equal, and a multiple of 8")
    if not (keys and rows and len(call["query"])):
        raise NotImplementedError("there must be sequences, rows and keys")
    bias = call.get("attention_bias")
    if bias is not None and bias.dtype == np.float16 and np.isneginf(bias).all(-1).any():
        raise NotImplementedError("a row without keys is NaN in float16")
    lengths = (
        [keys] * len(call["query"])
        if call.get("seqlens_k") is None
        else [int(last) + 1 for last in call["seqlens_k"]]
    )
    if min(lengths) < rows:
        raise NotImplementedError("there must be as many keys as rows")
    return np.concatenate([_gqa_sequence(call, b, length) for b, length in enumerate(lengths)]), None


def _gqa_sequence(call, b, length):
    rows, heads = call["query"].shape[1], call["kv_num_heads"]
    head_dim = call["key"].shape[-1] // heads
    one = {
        name: value
        for name, value in call.items()
        if name not in ("key", "value", "seqlens_k", "attention_bias", "head_sink")
    }
    one["query"] = call["query"][b : b + 1]
    for name, past in (("key", "past_key"), ("value", "past_value")):
        array = call[name][b : b + 1, :length]
        one[name] = array[:, length - rows :]
        one[past] = array[:, : length - rows].reshape(1, length - rows, heads, head_dim).swapaxes(1, 2)
    if "attention_bias" in call:
        one["attention_bias"] = call["attention_bias"][b : b + 1, ..., :length]
    if "head_sink" in call:
        one["head_sink"] = cast_sinks(call["head_sink"], call["query"].dtype)
    one |= {
        "seqlens_k": np.array([length - 1], np.int32),
        "total_sequence_length": np.array([length], np.int32),
    }
    outputs = ["Y", "present_key", "present_value"]
    return _run_onnxruntime(
        *onnx_model(
            one, "GroupQueryAttention", GQA_ORDER, "com.microsoft", [("", 21), ("com.microsoft", 1)], outputs
        )
    )


def transformers_call(**call):
    import torch
    from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward as with_softcap
    from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward as with_sinks

    module = torch.nn.Module()
    module.num_key_value_groups = call["query"].shape[1] // call["key"].shape[1]
    module.training = False
    if "s_aux" in call and call.get("softcap") is not None:
        raise NotImplementedError("no model has sinks and a softcap")
    if "s_aux" in call:
        call["s_aux"] = cast_sinks(call["s_aux"], call["query"].dtype)
    tensors = torch_tensors(call)
    tensors.setdefault("attention_mask", None)
    if "s_aux" in tensors:
        module.sinks = tensors.pop("s_aux")
        return torch_array(with_sinks(module, **tensors)[0]), None
    return torch_array(with_softcap(module, **tensors)[0]), None


CALLS = {
    "torch": torch_call,
    "jax": jax_call,
    "mlx": mlx_call,
    "onnx": onnx_call,
    "onnxruntime": onnxruntime_call,
    "onnxruntime_gqa": onnxruntime_gqa_call,
    "transformers": transformers_call,
}
MODULES = {
    "torch": "torch",
    "jax": "jax",
    "mlx": "mlx.core",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
    "onnxruntime_gqa": "onnxruntime",
    "transformers": "transformers",
}
