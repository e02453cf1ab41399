"""Whatever holds the numbers, and however they lie in memory, the functions compute the same from them."""

import sys

import numpy as np
import pytest
from bad_calls import GOOD_CALLS

import cpu_kernels
import refattn

PACKAGES = [refattn, cpu_kernels]


class DlpackOnly:
    def __init__(self, array):
        self.array = array

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)


def negative_strides(array):
    flip = (slice(None, None, -1),) * array.ndim
    return array[flip].copy()[flip]


def every_other(array):
    room = np.zeros([2 * size for size in array.shape], array.dtype)
    view = room[(slice(None, None, 2),) * array.ndim]
    view[...] = array
    return view


def misaligned(array):
    room = np.zeros(array.nbytes + 1, np.uint8)
    view = room[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def heads_inside(array):
    """The (length, heads, dim) layout that projections produce, seen as (heads, length, dim)."""
    if array.ndim < 3:
        return array
    return array.swapaxes(-3, -2).copy().swapaxes(-3, -2)


def of_torch(array):
    torch = pytest.importorskip("torch")
    return torch.from_numpy(array.copy())


def of_jax(array):
    return pytest.importorskip("jax.numpy").asarray(array)


def of_mlx(array):
    return pytest.importorskip("mlx.core").array(array)


HOLDERS = {
    "fortran": np.asfortranarray,
    "negative strides": negative_strides,
    "every other": every_other,
    "heads inside": heads_inside,
    "byte-swapped": lambda array: array.astype(array.dtype.newbyteorder()),
    "misaligned": misaligned,
    "list": lambda array: array.tolist() if array.dtype.kind != "f" else list(array),
    "memoryview": lambda array: memoryview(np.ascontiguousarray(array)),
    "dlpack": lambda array: DlpackOnly(array.copy()),
    "torch": of_torch,
    "jax": of_jax,
    "mlx": of_mlx,
}


def named_functions():
    """One function a row of the table, the one that also returns lse where there is one."""
    for package in PACKAGES:
        for function in GOOD_CALLS:
            for name in (f"{function}_with_lse", function):
                if hasattr(package, name):
                    yield pytest.param(getattr(package, name), function, id=f"{package.__name__}.{name}")
                    break


def held(value, holder):
    """`value` with every array of floats or integers in it given to `holder`."""
    if isinstance(value, np.ndarray):
        return holder(value)
    if isinstance(value, list) and isinstance(value[0], np.ndarray):
        return [holder(array) for array in value]
    if isinstance(value, list):
        return holder(np.array(value))
    return value


def floats(convert):
    """A holder that leaves integers alone."""
    return lambda array: convert(array) if array.dtype.kind == "f" else array


def held_call(call, holder):
    return {name: held(value, holder) for name, value in call.items()}


def results(returned):
    return returned if isinstance(returned, tuple) else (returned,)


def assert_same(returned, expected):
    for array, wanted in zip(results(returned), results(expected), strict=True):
        assert type(array) is np.ndarray and array.dtype == wanted.dtype
        assert np.array_equal(array, wanted)


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("function, of", list(named_functions()))
def test_same_numbers_same_results(function, of, holder):
    call = GOOD_CALLS[of]
    assert_same(function(**held_call(call, HOLDERS[holder])), function(**call))


@pytest.mark.parametrize("function, of", list(named_functions()))
def test_zero_strides(function, of):
    """Every element the same, held once."""
    equal = held_call(GOOD_CALLS[of], floats(lambda array: np.full_like(array, 0.5)))
    once = held_call(equal, floats(lambda array: np.broadcast_to(array.flat[0], array.shape)))
    assert_same(function(**once), function(**equal))


@pytest.mark.parametrize("holder", ["torch", "jax", "mlx", "ml_dtypes without a module"])
@pytest.mark.parametrize("function, of", list(named_functions()))
def test_bfloat16(function, of, holder, monkeypatch):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    narrow = held_call(GOOD_CALLS[of], floats(lambda array: array.astype(ml_dtypes.bfloat16)))

    def given(array):
        if array.dtype != ml_dtypes.bfloat16:
            return array
        wide = array.astype(np.float32)
        if holder == "jax":
            return of_jax(wide).astype("bfloat16")
        if holder == "mlx":
            return of_mlx(wide).astype(pytest.importorskip("mlx.core").bfloat16)
        return of_torch(wide).bfloat16()

    expected = function(**narrow)
    call = held_call(narrow, given)
    if holder == "ml_dtypes without a module":
        monkeypatch.setitem(sys.modules, "ml_dtypes", None)  # decoded to float32, exactly
        for array, wanted in zip(results(function(**call)), results(expected), strict=True):
            assert np.abs(array - wanted.astype(np.float64)).max() <= 2**-8 * np.abs(array).max()
    else:
        assert_same(function(**call), expected)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_empty_arrays(package):
    if not hasattr(package, "attention_with_lse"):
        pytest.skip(f"{package.__name__} has no attention yet")
    for q_len, kv_len, v_head_dim in [(0, 5, 7), (4, 0, 7), (4, 5, 0), (0, 0, 0)]:
        query, key, value = (
            np.ones((2, 6, q_len, 8)),
            np.ones((2, 3, kv_len, 8)),
            np.ones((2, 3, kv_len, v_head_dim)),
        )
        output, lse = package.attention_with_lse(query, key, value)
        assert output.shape == (2, 6, q_len, v_head_dim) and lse.shape == (2, 6, q_len)
        if kv_len == 0:
            assert (output == 0).all() and (lse == -np.inf).all()
