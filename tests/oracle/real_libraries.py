"""Calls of the libraries a dialect describes, NumPy in and NumPy out; each raises ImportError where the library is missing."""

import numpy as np


def torch_call(**call):
    import torch

    arrays = {name: torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value for name, value in call.items()}
    enable_gqa = call["query"].shape[1] != call["key"].shape[1]
    return torch.nn.functional.scaled_dot_product_attention(**arrays, enable_gqa=enable_gqa).numpy(), None


def jax_call(**call):
    import jax

    output, lse = jax.nn.dot_product_attention(**call, return_residual=True)
    return np.asarray(output), np.asarray(lse)


def mlx_call(**call):
    import mlx.core as mx

    arrays = {name: mx.array(value) if isinstance(value, np.ndarray) else value for name, value in call.items()}
    if isinstance(call.get("sinks"), np.ndarray):
        arrays["sinks"] = mx.array(call["sinks"].astype(np.float32))
    return np.array(mx.fast.scaled_dot_product_attention(**arrays)), None


def _value_info(name, array):
    from onnx import helper

    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)


def onnx_model(call, op, order, domain, opsets, outputs):
    from onnx import TensorProto, helper

    inputs = {name: np.ascontiguousarray(value) for name, value in call.items() if name in order and value is not None}
    attributes = {name: value for name, value in call.items() if name not in order and value is not None}
    attributes = {name: int(value) if isinstance(value, bool) else value for name, value in attributes.items()}
    names = [name if name in inputs else "" for name in order]
    while names[-1] == "":
        names.pop()
    node = helper.make_node(op, names, outputs, domain=domain, **attributes)
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph([node], "attention", [_value_info(name, array) for name, array in inputs.items()], results)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(*opset) for opset in opsets], ir_version=10), inputs


ONNX_ORDER = ("Q", "K", "V", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen")
GQA_ORDER = ("query", "key", "value", "past_key", "past_value", "seqlens_k", "total_sequence_length", "cos_cache", "sin_cache", "position_ids",
             "attention_bias", "head_sink")  # fmt: skip


def onnx_call(**call):
    from onnx.reference import ReferenceEvaluator

    opset = 25 if "left_window_size" in call else 24
    model, inputs = onnx_model(call, "Attention", ONNX_ORDER, "", [("", opset)], ["Y"])
    return ReferenceEvaluator(model).run(None, inputs)[0], None


def onnxruntime_call(**call):
    import onnxruntime

    model, inputs = onnx_model(call, "Attention", ONNX_ORDER, "", [("", 24)], ["Y"])
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, inputs)[0], None


def onnxruntime_gqa_call(**call):
    import onnxruntime

    keys = call["key"].shape[1]
    call = dict(call)
    lengths = call.get("seqlens_k", np.full(len(call["key"]), keys - 1))
    call["seqlens_k"] = np.asarray(lengths, np.int32)
    call["total_sequence_length"] = np.array([keys], np.int32)
    if "head_sink" in call:
        call["head_sink"] = np.asarray(call["head_sink"], np.float32)
    model, inputs = onnx_model(call, "GroupQueryAttention", GQA_ORDER, "com.microsoft", [("", 21), ("com.microsoft", 1)],
                                ["Y", "present_key", "present_value"])  # fmt: skip
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0], None


def transformers_call(**call):
    import torch
    from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward as with_softcap
    from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward as with_sinks

    module = torch.nn.Module()
    module.num_key_value_groups = call["query"].shape[1] // call["key"].shape[1]
    module.training = False
    tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value for name, value in call.items()}
    tensors.setdefault("attention_mask", None)
    if "s_aux" in tensors:
        module.sinks = tensors.pop("s_aux").float()
        return with_sinks(module, **tensors)[0].numpy(), None
    return with_softcap(module, **tensors)[0].numpy(), None


CALLS = {
    "torch": torch_call,
    "jax": jax_call,
    "mlx": mlx_call,
    "onnx": onnx_call,
    "onnxruntime": onnxruntime_call,
    "onnxruntime_gqa": onnxruntime_gqa_call,
    "transformers": transformers_call,
}
MODULES = {"torch": "torch", "jax": "jax", "mlx": "mlx.core", "onnx": "onnx", "onnxruntime": "onnxruntime", "onnxruntime_gqa": "onnxruntime",
           "transformers": "transformers"}  # fmt: skip
