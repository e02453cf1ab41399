"""What is not a CPU array of real numbers is refused, with a message that names the argument and says
what to do.
"""

import sys

import numpy as np
import pytest
from fake_gpu import FakeGpu

from refattn.calls.arrays import as_array, as_bool_array, as_float_array, as_int_array

NUMBERS = np.arange(24.0).reshape(2, 3, 4)


class Attributes:
    """An object that offers an array only through the given attributes."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)


NOT_ON_CPU = "Pass query.cpu() (cupy: query.get(), jax: jax.device_get(query))."
RAGGED = "query must be rectangular; got nested sequences of different lengths. Pad the shorter ones."
REAL = "query must be an array of real numbers; got "


def endless_list():
    nested = []
    nested.append(nested)
    return nested


REFUSED = {
    "cuda tensor": (FakeGpu(2, 1), f"query must be in CPU memory; got query.device=cuda:1. {NOT_ON_CPU}"),
    "rocm tensor": (FakeGpu(10), f"query must be in CPU memory; got query.device=rocm:0. {NOT_ON_CPU}"),
    "unknown device": (
        FakeGpu(99, 2),
        f"query must be in CPU memory; got query.device=device type 99:2. {NOT_ON_CPU}",
    ),
    "list of cuda tensors": (
        [FakeGpu(2), FakeGpu(2)],
        "query[0] must be in CPU memory; got query[0].device=cuda:0. Pass query[0].cpu() (cupy: "
        "query[0].get(), jax: jax.device_get(query[0])).",
    ),
    "cuda array interface": (
        Attributes(__cuda_array_interface__={}),
        f"query must be in CPU memory; got query.device=cuda. {NOT_ON_CPU}",
    ),
    "device attribute": (
        Attributes(device="/job:localhost/device:GPU:0", __array__=lambda dtype=None, copy=None: NUMBERS),
        f"query must be in CPU memory; got query.device=/job:localhost/device:GPU:0. {NOT_ON_CPU}",
    ),
    "masked array": (
        np.ma.array(NUMBERS, mask=NUMBERS > 3),
        "query must be a plain array; got type(query)=MaskedArray, whose mask would be lost. "
        "Pass query.filled(0) and say what may be attended with mask=.",
    ),
    "nothing": (None, REAL + "query=None."),
    "string": ("abc", REAL + "type(query)=str."),
    "bytes": (b"abcd", REAL + "type(query)=bytes."),
    "dict": ({}, REAL + "type(query)=dict."),
    "generator": ((x for x in [1.0]), REAL + "type(query)=generator."),
    "class": (np.ndarray, REAL + "type(query)=type."),
    "object array": (np.array([1.0, None]), REAL + "query.dtype=object."),
    "list with None": ([1.0, None], REAL + "query.dtype=object."),
    "list of strings": (["a"], REAL + "query.dtype=<U1."),
    "huge integer": ([2**70], REAL + "query.dtype=object."),
    "complex": (NUMBERS * 1j, REAL + "query.dtype=complex128."),
    "structured": (np.zeros(3, "f4,i4"), REAL + "query.dtype=[('f0', '<f4'), ('f1', '<i4')]."),
    "raw bytes": (np.zeros(3, "V4"), REAL + "query.dtype=|V4."),
    "dates": (np.zeros(3, "M8[s]"), REAL + "query.dtype=datetime64[s]."),
    "durations": (np.zeros(3, "m8[s]"), REAL + "query.dtype=timedelta64[s]."),
    "ragged list": ([[1.0, 2.0], [3.0]], RAGGED),
    "ragged depth": ([1.0, [2.0]], RAGGED),
    "ragged arrays": ([NUMBERS[0], NUMBERS[0, :2]], RAGGED),
    "endless list": (endless_list(), RAGGED),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused(kind):
    given, message = REFUSED[kind]
    with pytest.raises(TypeError) as raised:
        as_array(given, "query")
    assert str(raised.value) == message


def test_matrix_is_refused():
    with pytest.warns(PendingDeprecationWarning):
        given = np.matrix([[1.0]])
    with pytest.raises(TypeError) as raised:
        as_array(given, "query")
    assert (
        str(raised.value) == "query must be a plain array; got type(query)=matrix. Pass np.asarray(query)."
    )


def test_scipy_sparse_is_refused():
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(TypeError) as raised:
        as_array(sparse.csr_array(NUMBERS[0]), "mask")
    assert str(raised.value) == "mask must be a dense array; got type(mask)=csr_array. Pass mask.toarray()."


def torch_refused(torch):
    return {
        "meta": (torch.empty(2, device="meta"), "query must hold data; got query.device=meta."),
        "sparse": (
            torch.eye(2).to_sparse(),
            "query must be a dense tensor; got query.layout=torch.sparse_coo. Pass query.to_dense().",
        ),
        "complex": (torch.zeros(2, dtype=torch.complex64), REAL + "query.dtype=complex64."),
        "conjugated": (torch.zeros(2, dtype=torch.complex64).conj(), REAL + "query.dtype=complex64."),
        "float8": (
            torch.zeros(2).to(torch.float8_e4m3fn),
            "query must be a tensor NumPy can read; got query.dtype=torch.float8_e4m3fn. Cast it with "
            "query.float().",
        ),
        "ragged list": ([torch.zeros(2), torch.zeros(3)], RAGGED),
    }


@pytest.mark.parametrize("kind", ["meta", "sparse", "complex", "conjugated", "float8", "ragged list"])
def test_torch_refused(kind):
    torch = pytest.importorskip("torch")
    given, message = torch_refused(torch)[kind]
    with pytest.raises(TypeError) as raised:
        as_array(given, "query")
    assert str(raised.value) == message


@pytest.mark.filterwarnings("ignore")  # torch announces that quantized and nested tensors will change
def test_torch_quantized_and_nested_are_refused():
    torch = pytest.importorskip("torch")
    quantized = torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.quint8)
    with pytest.raises(TypeError) as raised:
        as_array(quantized, "key")
    assert (
        str(raised.value)
        == "key must be float16, bfloat16, float32 or float64; got key.dtype=torch.quint8. Pass "
        "key.dequantize()."
    )
    nested = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])
    with pytest.raises(TypeError) as raised:
        as_array(nested, "key")
    assert (
        str(raised.value)
        == "key must be a dense tensor; got key.is_nested=True. Concatenate it and call packed_attention."
    )


def test_torch_tensor_on_a_gpu(monkeypatch):
    """The path of a real CUDA tensor, with a module that stands in for torch."""

    class Device:
        type = "cuda"

        def __str__(self):
            return "cuda:0"

    class Tensor:
        is_nested = is_quantized = False
        layout = "strided"
        device = Device()

    monkeypatch.setitem(sys.modules, "torch", Attributes(Tensor=Tensor, strided="strided"))
    with pytest.raises(TypeError) as raised:
        as_array(Tensor(), "query")
    assert str(raised.value) == f"query must be in CPU memory; got query.device=cuda:0. {NOT_ON_CPU}"


def test_foreign_errors_are_named():
    class Broken:
        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("lost connection\nmore detail")

    with pytest.raises(TypeError) as raised:
        as_array(Broken(), "value")
    assert (
        str(raised.value)
        == "value must be an array NumPy can read; got type(value)=Broken, which says: lost connection"
    )


def test_lists_that_hold_broken_objects():
    class Broken:
        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("lost connection")

    with pytest.raises(TypeError) as raised:
        as_array([1.0, Broken()], "value")
    assert str(raised.value) == "value must be an array of real numbers; got type(value)=list."


def test_a_device_that_cannot_be_told():
    class Lost:
        def __dlpack_device__(self):
            raise RuntimeError("lost connection")

    with pytest.raises(TypeError) as raised:
        as_array(Lost(), "value")
    assert str(raised.value) == "value must be an array of real numbers; got type(value)=Lost."


def test_memory_errors_of_foreign_objects_pass_through():
    class Greedy:
        def __array__(self, dtype=None, copy=None):
            raise MemoryError("no room")

    with pytest.raises(MemoryError, match="^no room$"):
        as_array(Greedy(), "value")


FLOATING = "must be float16, bfloat16, float32 or float64; got"
WRONG_DTYPE = {
    "integer query": (
        as_float_array,
        np.arange(3),
        "query",
        f"query {FLOATING} query.dtype=int64. Cast it with np.asarray(query, np.float32).",
    ),
    "bool query": (
        as_float_array,
        [True],
        "query",
        f"query {FLOATING} query.dtype=bool. Cast it with np.asarray(query, np.float32).",
    ),
    "bool bias": (
        as_float_array,
        [True],
        "bias",
        f"bias {FLOATING} bias.dtype=bool. Pass boolean masks as mask.",
    ),
    "float mask": (
        as_bool_array,
        [0.5],
        "mask",
        "mask must be bool; got mask.dtype=float64. Pass additive masks as bias.",
    ),
    "0/1 mask": (
        as_bool_array,
        [0, 1],
        "mask",
        "mask must be bool; got mask.dtype=int64. Cast 0/1 values with mask.astype(bool).",
    ),
    "uint8 mask": (
        as_bool_array,
        np.ones(2, np.uint8),
        "mask",
        "mask must be bool; got mask.dtype=uint8. Cast 0/1 values with mask.astype(bool).",
    ),
    "float dropout mask": (
        as_bool_array,
        [0.0, 1.0],
        "dropout_mask",
        "dropout_mask must be bool; got dropout_mask.dtype=float64. Cast 0/1 values with "
        "dropout_mask.astype(bool).",
    ),
    "float lengths": (
        as_int_array,
        [2.0],
        "cu_q",
        "cu_q must be integer; got cu_q.dtype=float64. Cast it with np.asarray(cu_q, np.int64).",
    ),
    "bool lengths": (
        as_int_array,
        True,
        "q_offset",
        "q_offset must be integer; got q_offset.dtype=bool. Cast it with np.asarray(q_offset, np.int64).",
    ),
}


@pytest.mark.parametrize("kind", WRONG_DTYPE)
def test_wrong_dtype(kind):
    convert, given, name, message = WRONG_DTYPE[kind]
    with pytest.raises(TypeError) as raised:
        convert(given, name)
    assert str(raised.value) == message


def test_longdouble_is_refused_where_it_is_wider():
    if np.finfo(np.longdouble).nmant == np.finfo(np.float64).nmant:
        pytest.skip("longdouble is float64 here")
    with pytest.raises(TypeError, match=f"^query {FLOATING} query.dtype={np.dtype(np.longdouble)}\\. "):
        as_float_array(NUMBERS.astype(np.longdouble), "query")


def test_float8_is_refused():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    with pytest.raises(TypeError) as raised:
        as_float_array(NUMBERS.astype(ml_dtypes.float8_e4m3fn), "query")
    assert (
        str(raised.value)
        == f"query {FLOATING} query.dtype=float8_e4m3fn. Cast it with np.asarray(query, np.float32)."
    )


@pytest.mark.parametrize("given", [2**63, 2**64, -(2**63) - 1])
def test_integers_outside_int64(given):
    with pytest.raises(ValueError) as raised:
        as_int_array(given, "q_offset")
    assert str(raised.value) == f"q_offset must fit in int64; got q_offset={given}."


def test_unsigned_integers_outside_int64():
    with pytest.raises(ValueError) as raised:
        as_int_array(np.array([1, 2**64 - 1], np.uint64), "cu_kv")
    assert str(raised.value) == "cu_kv must fit in int64; got cu_kv.max()=18446744073709551615."
