"""The same call in other libraries. Each maker returns a function without arguments that computes the output, or raises ImportError.

Makers take (query, key, value, shape, threads); arrays are (batch, heads, length, dim) float32, scale is the default.
"""

import numpy as np


def torch_sdpa(query, key, value, shape, threads):
    import torch

    torch.set_num_threads(threads)
    tensors = [torch.from_numpy(x) for x in (query, key, value)]
    attend = torch.nn.functional.scaled_dot_product_attention
    return lambda: attend(*tensors, is_causal=shape.causal, enable_gqa=shape.q_heads != shape.kv_heads).numpy()


def numpy_blas(query, key, value, shape, threads):
    """The formula in three lines; threads as OPENBLAS_NUM_THREADS says."""
    batch, heads, rows, dim = query.shape
    grouped = query.reshape(batch, shape.kv_heads, -1, dim)
    hidden = ~np.tri(rows, shape.kv_len, dtype=bool) if shape.causal else None

    def attend():
        scores = grouped @ key.swapaxes(-1, -2) * np.float32(dim**-0.5)
        if shape.causal:
            scores.reshape(batch, heads, rows, -1)[..., hidden] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return (weights @ value).reshape(batch, heads, rows, -1)

    return attend


def jax_dot_product_attention(query, key, value, shape, threads):
    import jax

    if value.shape[-1] != key.shape[-1]:
        raise ImportError("needs one head_dim")
    arrays = [jax.numpy.asarray(x.swapaxes(1, 2)) for x in (query, key, value)]
    attend = jax.jit(lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=shape.causal))
    return lambda: np.asarray(attend(*arrays).block_until_ready()).swapaxes(1, 2)


def onnxruntime_attention(query, key, value, shape, threads):
    import onnxruntime
    from onnx import TensorProto, helper

    names, outputs = ["Q", "K", "V"], ["Y"]
    node = helper.make_node("Attention", names, outputs, is_causal=int(shape.causal))
    arrays = dict(zip(names, (query, key, value)))
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape) for name, array in arrays.items()]
    result = [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)]
    model = helper.make_model(helper.make_graph([node], "attention", infos, result), opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads must not slow down the others' turns
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return lambda: session.run(outputs, arrays)[0]


def openvino_sdpa(query, key, value, shape, threads):
    import openvino
    from openvino import opset13

    group = shape.q_heads // shape.kv_heads
    arrays = [query] + [np.repeat(x, group, axis=1) if group > 1 else x for x in (key, value)]
    inputs = [opset13.parameter(x.shape, np.float32) for x in arrays]
    node = opset13.scaled_dot_product_attention(*inputs, causal=shape.causal)
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(openvino.Model([node], inputs), "CPU", settings).create_infer_request()
    return lambda: request.infer(arrays, share_inputs=True)[0]


PEERS = {
    "torch": torch_sdpa,
    "onnxruntime": onnxruntime_attention,
    "openvino": openvino_sdpa,
    "jax": jax_dot_product_attention,
    "numpy": numpy_blas,
}

# With one thread these compute in the thread that calls them.
IN_CALLING_THREAD = {"torch", "onnxruntime", "numpy"}
