"""The same call in each library: one contender, one function.

A function takes (shape, threads) and returns (convert, attend). `convert(query, key, value)` turns float32
arrays (batch, heads, length, dim) into a tuple of what the library wants to be handed, everything with
`nbytes`; it is not timed. `attend(*converted)` is, and returns the output as a NumPy array. Libraries are
imported inside: each runs in a process of its own. What cannot be computed raises ImportError or
NotImplementedError.
"""

import numpy as np


def cpu_kernels_attention(shape, threads):
    import cpu_kernels

    cpu_kernels.set_num_threads(threads)
    return lambda *arrays: arrays, lambda *arrays: cpu_kernels.attention(*arrays, causal=shape.causal)


def torch_sdpa(shape, threads):
    import torch

    torch.set_num_threads(threads)
    options = dict(is_causal=shape.causal, enable_gqa=shape.q_heads != shape.kv_heads)
    attend = torch.nn.functional.scaled_dot_product_attention
    return lambda *arrays: tuple(torch.from_numpy(x) for x in arrays), lambda *tensors: attend(
        *tensors, **options
    ).numpy()


def numpy_blas(shape, threads):
    """The formula in three lines."""
    hidden = ~np.tri(shape.q_len, shape.kv_len, dtype=bool) if shape.causal else None
    factor = np.float32(shape.head_dim**-0.5)

    def attend(query, key, value):
        batch, heads, rows, dim = query.shape
        scores = query.reshape(batch, shape.kv_heads, -1, dim) @ key.swapaxes(-1, -2) * factor
        if shape.causal:
            scores.reshape(batch, heads, rows, -1)[..., hidden] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return (weights @ value).reshape(batch, heads, rows, -1)

    return lambda *arrays: arrays, attend


def jax_dot_product_attention(shape, threads):
    import jax

    if shape.value_dim != shape.head_dim:
        raise NotImplementedError("needs values as wide as keys")
    attend = jax.jit(lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=shape.causal))
    return (
        lambda *arrays: tuple(jax.numpy.asarray(x.swapaxes(1, 2)) for x in arrays),
        lambda *arrays: np.asarray(attend(*arrays).block_until_ready()).swapaxes(1, 2),
    )


def onnxruntime_attention(shape, threads):
    import onnxruntime
    from onnx import TensorProto, helper

    names = ["Q", "K", "V"]
    node = helper.make_node("Attention", names, ["Y"], is_causal=int(shape.causal))
    infos = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, size)
        for name, size in zip(names, shape.sizes)
    ]
    result = [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)]
    model = helper.make_model(
        helper.make_graph([node], "attention", infos, result),
        opset_imports=[helper.make_opsetid("", 23)],
        ir_version=10,
    )
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    return contiguous, lambda *arrays: session.run(["Y"], dict(zip(names, arrays)))[0]


def openvino_sdpa(shape, threads):
    import openvino
    from openvino import opset13

    group = shape.q_heads // shape.kv_heads
    inputs = [opset13.parameter((size[0], shape.q_heads, *size[2:]), np.float32) for size in shape.sizes]
    node = opset13.scaled_dot_product_attention(*inputs, causal=shape.causal)
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    request = (
        openvino.Core().compile_model(openvino.Model([node], inputs), "CPU", settings).create_infer_request()
    )

    def convert(query, key, value):
        """It knows no groups: every query head gets a copy of its keys and values."""
        return contiguous(query, *(np.repeat(x, group, axis=1) if group > 1 else x for x in (key, value)))

    return convert, lambda *arrays: request.infer(arrays, share_inputs=True)[0]


def contiguous(*arrays):
    return tuple(np.ascontiguousarray(x) for x in arrays)


OURS = "cpu_kernels"

CONTENDERS = {
    OURS: cpu_kernels_attention,
    "torch": torch_sdpa,
    "onnxruntime": onnxruntime_attention,
    "openvino": openvino_sdpa,
    "jax": jax_dot_product_attention,
    "numpy": numpy_blas,
}
