"""Every kind of CPU array a caller may hold arrives as the same numbers, without a copy where NumPy
can address it.
"""

import array as stdlib_array
import subprocess
import sys

import numpy as np
import pytest

import refattn
from refattn.calls import arrays
from refattn.calls.arrays import as_array, as_bool_array, as_float_array, as_int_array, is_float

NUMBERS = np.arange(24.0).reshape(2, 3, 4)


class Attributes:
    """An object that offers an array only through the given attributes."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)


class DlpackOnly:
    def __init__(self, array):
        self.array = array

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)


def is_view_of_own(taken, given):
    """The same memory in the same order, seen through another object, whose shape nobody else can set."""
    same = (
        taken.__array_interface__ | {"version": 3} == given.__array_interface__ | {"version": 3}
        and taken.dtype == given.dtype
    )
    return type(taken) is np.ndarray and taken is not given and same


class ArrayMethod:
    def __array__(self, dtype=None, copy=None):
        return NUMBERS


def misaligned(array):
    room = np.zeros(array.nbytes + 1, np.uint8)
    view = room[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


SHARED = {
    "contiguous": NUMBERS,
    "fortran": np.asfortranarray(NUMBERS),
    "negative strides": NUMBERS[::-1, :, ::-1],
    "every other": NUMBERS[..., ::2],
    "transposed": NUMBERS.transpose(2, 0, 1),
    "zero stride": np.broadcast_to(NUMBERS, (5, *NUMBERS.shape)),
    "read-only": read_only(NUMBERS),
    "empty": NUMBERS[:, :0],
    "zero axes": np.array(2.5),
    "float16": NUMBERS.astype(np.float16),
    "bool": NUMBERS > 3,
    "int32": NUMBERS.astype(np.int32),
    "overlapping": np.lib.stride_tricks.sliding_window_view(NUMBERS.ravel(), 5),
}


@pytest.mark.parametrize("kind", SHARED)
def test_numpy_arrays_are_not_copied(kind):
    given = SHARED[kind]
    taken = as_array(given, "query")
    assert is_view_of_own(taken, given)


def test_memory_map_shares_memory(tmp_path):
    given = np.lib.format.open_memmap(tmp_path / "query.npy", mode="w+", shape=(3, 2))
    taken = as_array(given, "query")
    assert type(taken) is np.ndarray and np.shares_memory(taken, given)


COPIED = {
    "byte-swapped": NUMBERS.astype(NUMBERS.dtype.newbyteorder()),
    "byte-swapped float16": NUMBERS.astype(np.dtype(np.float16).newbyteorder()),
    "byte-swapped, negative strides": NUMBERS.astype(NUMBERS.dtype.newbyteorder())[::-1],
    "misaligned": misaligned(NUMBERS),
    "nested lists": NUMBERS.tolist(),
    "nested tuples": tuple(tuple(map(tuple, rows)) for rows in NUMBERS.tolist()),
    "list of arrays": list(NUMBERS),
    "list of strided arrays": [NUMBERS[0], NUMBERS[::-1][0]],
    "list of objects": [ArrayMethod(), ArrayMethod()],
}
EXPECTED = {
    "byte-swapped, negative strides": NUMBERS[::-1],
    "list of objects": np.stack([NUMBERS, NUMBERS]),
}


@pytest.mark.parametrize("kind", COPIED)
def test_converted_values(kind):
    taken = as_array(COPIED[kind], "query")
    assert taken.dtype.isnative and taken.flags.aligned
    assert np.array_equal(taken, EXPECTED.get(kind, NUMBERS))


def test_byte_swapped_integers_and_lists_of_them():
    swapped = np.arange(5, dtype=np.dtype(np.int32).newbyteorder())
    assert np.array_equal(as_int_array(swapped, "cu_q"), np.arange(5))
    assert np.array_equal(as_int_array([swapped, swapped], "block_table"), [range(5), range(5)])


HUGE = (2**30, 2**20, 4)


@pytest.mark.parametrize(
    "convert, dtype",
    [
        (as_array, ">f8"),
        (as_array, "<f4"),
        (as_array, ">f2"),
        (as_int_array, np.int32),
        (as_int_array, np.uint64),
    ],
)
def test_conversion_keeps_broadcast_views(convert, dtype):
    taken = convert(np.broadcast_to(np.arange(4).astype(dtype), HUGE), "query")
    assert taken.shape == HUGE and taken.strides[:2] == (0, 0)
    assert taken.dtype.isnative and np.array_equal(taken[5, 7], range(4))


def test_bfloat16_decoding_keeps_broadcast_views(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    taken = as_array(torch.arange(4, dtype=torch.bfloat16).expand(HUGE), "query")
    assert taken.shape == HUGE and taken.strides[:2] == (0, 0)
    assert taken.dtype == np.float32 and np.array_equal(taken[5, 7], range(4))


PROTOCOLS = {
    "buffer": (memoryview(NUMBERS), NUMBERS),
    "stdlib array": (stdlib_array.array("d", [1.0, 2.0]), np.array([1.0, 2.0])),
    "array interface": (Attributes(__array_interface__=NUMBERS.__array_interface__, owner=NUMBERS), NUMBERS),
    "dlpack": (DlpackOnly(NUMBERS), NUMBERS),
}


@pytest.mark.parametrize("kind", PROTOCOLS)
def test_protocols_share_memory(kind):
    given, numbers = PROTOCOLS[kind]
    taken = as_array(given, "query")
    assert np.array_equal(taken, numbers)
    if numbers is NUMBERS:
        assert np.shares_memory(taken, NUMBERS)


def test_array_method_and_sequences_that_are_not_lists():
    assert is_view_of_own(as_array(ArrayMethod(), "query"), NUMBERS)
    assert np.array_equal(as_int_array(range(0, 9, 4), "cu_q"), [0, 4, 8])


@pytest.mark.parametrize("number", [2.5, np.float32(2.5), np.float16(2.5), np.array(2.5)])
def test_numbers_have_no_axes(number):
    taken = as_float_array(number, "sinks")
    assert taken.shape == () and taken == 2.5 and taken.dtype == np.asarray(number).dtype


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floating_dtypes_are_kept(dtype):
    assert as_float_array(NUMBERS.astype(dtype), "query").dtype == dtype


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint32, np.int64, np.uint64, np.intp])
def test_integer_dtypes_become_int64(dtype):
    taken = as_int_array(np.array([0, 3, 7], dtype), "cu_q")
    assert taken.dtype == np.int64 and np.array_equal(taken, [0, 3, 7])


def test_integers_are_copied_and_empty_list_is_integer():
    for lengths in (np.array([1, 2]), np.array(3), np.broadcast_to(np.array([[5]]), (2**20, 2**20))):
        taken = as_int_array(lengths, "kv_lengths")
        assert (
            taken.shape == lengths.shape
            and taken.flat[0] == lengths.flat[0]
            and not np.may_share_memory(taken, lengths)
        )
    assert as_int_array([], "kv_lengths").dtype == np.int64
    assert as_int_array(2**63 - 1, "q_offset") == 2**63 - 1
    assert as_int_array(-(2**63), "q_offset") == -(2**63)


def test_bool_arrays_are_not_copied():
    mask = NUMBERS > 3
    assert is_view_of_own(as_bool_array(mask, "mask"), mask)
    assert np.array_equal(as_bool_array([[True, False]], "mask"), [[True, False]])


# --- libraries that may be installed -----------------------------------------------------------------------


def torch_views(torch):
    base = torch.arange(24.0).reshape(2, 3, 4)
    return {
        "plain": base,
        "requires grad": base.clone().requires_grad_(),
        "result of a graph": base.clone().requires_grad_() * 1,
        "parameter": torch.nn.Parameter(base.clone()),
        "transposed": base.permute(2, 0, 1),
        "expanded": base.expand(5, 2, 3, 4),
        "float64": base.double(),
        "float16": base.half(),
        "empty": base[:, :0],
        "negated view": torch.complex(base, base).conj().imag,
        "no axes": torch.tensor(2.5),
    }


@pytest.mark.parametrize(
    "kind",
    [
        "plain",
        "requires grad",
        "parameter",
        "transposed",
        "expanded",
        "float64",
        "float16",
        "empty",
        "no axes",
    ],
)
@pytest.mark.filterwarnings("ignore:.* requires gradients")
def test_torch_shares_memory(kind):
    torch = pytest.importorskip("torch")
    tensor = torch_views(torch)[kind]
    taken = as_float_array(tensor, "query")
    assert taken.shape == tuple(tensor.shape) and str(tensor.dtype) == f"torch.{taken.dtype}"
    assert np.array_equal(taken, np.array(tensor.tolist()).reshape(taken.shape))
    assert taken.size == 0 or taken.ctypes.data == tensor.data_ptr()


@pytest.mark.parametrize("kind", ["result of a graph", "negated view"])
@pytest.mark.filterwarnings("ignore:.* requires gradients")
def test_torch_lazy_views(kind):
    torch = pytest.importorskip("torch")
    tensor = torch_views(torch)[kind]
    assert np.array_equal(as_float_array(tensor, "query"), np.array(tensor.tolist()))


def test_that_no_gradients_come_back_is_said_once(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(arrays, "_warned", [])
    x = torch.ones(1, 2, 4, requires_grad=True)
    with torch.no_grad():
        refattn.attention(x, x, x)
    refattn.attention(x.detach(), x.detach(), x.detach())
    with pytest.warns(UserWarning, match="query requires gradients, but the result .* carries none") as said:
        refattn.attention(x, x, x)
        refattn.attention(x, x, x)
    assert len(said) == 1 and said[0].filename == __file__


@pytest.mark.filterwarnings("ignore:.* requires gradients")
def test_torch_masks_and_lengths():
    torch = pytest.importorskip("torch")
    assert np.array_equal(as_bool_array(torch.tensor([True, False]), "mask"), [True, False])
    assert np.array_equal(as_int_array(torch.tensor([0, 2, 5], dtype=torch.int32), "cu_q"), [0, 2, 5])
    assert np.array_equal(
        as_float_array([torch.ones(2, requires_grad=True), torch.zeros(2)], "query"), [[1, 1], [0, 0]]
    )


@pytest.mark.parametrize("ml_dtypes_installed", [True, False])
def test_torch_bfloat16_is_exact_for_every_value(ml_dtypes_installed, monkeypatch):
    torch = pytest.importorskip("torch")
    if ml_dtypes_installed:
        ml_dtypes = pytest.importorskip("ml_dtypes")
    else:
        monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    bits = np.arange(2**16).astype(np.uint16)
    tensor = torch.from_numpy(bits.view(np.int16).copy()).view(torch.bfloat16)
    for given, view in [
        (tensor, bits),
        (tensor.reshape(256, 256).T, bits.reshape(256, 256).T),
        (tensor[1], bits[1]),
    ]:
        taken = as_float_array(given, "query")
        if ml_dtypes_installed:
            assert taken.dtype == ml_dtypes.bfloat16 and taken.ctypes.data == given.data_ptr()
            assert np.array_equal(taken.view(np.uint16), view)
        else:
            assert taken.dtype == np.float32
            assert np.array_equal(taken.view(np.uint32), view.astype(np.uint32) << 16)
    assert as_float_array(tensor[16256], "query") == 1.0


def test_ml_dtypes_bfloat16():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    given = NUMBERS.astype(ml_dtypes.bfloat16)
    assert is_view_of_own(as_float_array(given, "query"), given)
    assert as_float_array(given[0, 0, 1], "sinks") == 1.0
    assert np.array_equal(as_float_array(list(given), "query"), given)


def test_jax_shares_memory():
    jax = pytest.importorskip("jax")
    if jax.default_backend() != "cpu":
        pytest.skip("jax keeps its arrays on another device here")
    for dtype in ("float32", "float16", "bfloat16"):
        given = jax.numpy.arange(24).reshape(2, 3, 4).astype(dtype)
        taken = as_float_array(given, "query")
        assert taken.dtype.name == dtype and np.array_equal(taken.astype(np.float64), NUMBERS)
        assert taken.ctypes.data == given.unsafe_buffer_pointer()


def test_jax_tracer_is_refused():
    jax = pytest.importorskip("jax")
    with pytest.raises(
        TypeError, match="query must be an array NumPy can read; got type.query.=DynamicJaxprTracer"
    ):
        jax.jit(lambda query: as_array(query, "query"))(NUMBERS)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_mlx(dtype):
    mx = pytest.importorskip("mlx.core")
    given = mx.arange(24, dtype=mx.float32).reshape(2, 3, 4).astype(getattr(mx, dtype))
    views = [
        (given, NUMBERS),
        (given * 1, NUMBERS),
        (given.transpose(2, 0, 1), NUMBERS.transpose(2, 0, 1)),
        (given[:, ::2], NUMBERS[:, ::2]),
        (given[::-1], NUMBERS[::-1]),
        (mx.broadcast_to(given[:1], (5, 3, 4)), np.broadcast_to(NUMBERS[:1], (5, 3, 4))),
        (given[:, :0], NUMBERS[:, :0]),
        (given[1, 2, 3], NUMBERS[1, 2, 3]),
    ]
    for view, numbers in views:
        taken = as_float_array(view, "query")
        assert taken.dtype.name == dtype and np.array_equal(taken.astype(np.float64), numbers)


def test_importing_loads_no_library():
    program = (
        "import sys, numpy, refattn.calls.arrays as interop; interop.as_array([1.0], 'query');"
        "print(sorted({'torch', 'jax', 'ml_dtypes', 'numba', 'scipy', 'cupy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_is_float():
    assert all(is_float(np.dtype(kind)) for kind in ("float16", "float32", "float64"))
    assert not any(is_float(np.dtype(kind)) for kind in ("int8", "bool", "complex64", "V2", "object"))
