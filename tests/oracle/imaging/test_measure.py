"""Measured weights of right kernels are the reference's, in every form, dtype and with options; kernels of all manners."""

import math
import warnings

import ml_dtypes
import numpy as np
import pytest
from tiled_calls import SIZES, tiled_call

import refattn
from refattn.calls.registry import form_of
from refattn.oracle.arithmetic.spec import kernel_spec
from refattn.oracle.harness.one_call import call_once
from refattn.oracle.imaging.compare import Ledgers
from refattn.oracle.imaging.measure import Measured
from refattn.oracle.imaging.probes import Probes
from refattn.oracle.imaging.states_view import StatesView
from refattn.oracle.imaging.view import View
from refattn.oracle.imaging.xray import xray
from refattn.oracle.inputs.merge import merge_inputs

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def right(*arrays, **options):
    """The reference, rounded to the dtype of the arrays."""
    output, lse = getattr(refattn, form_of(arrays, options).with_lse)(*arrays, **options)
    return output.astype(arrays[0].dtype), lse.astype(np.float32)


def measured(kernel, arrays, options, view_of=View):
    view = view_of(arrays, options)
    return Measured(view, Probes(kernel, view, None), kernel_spec(None, arrays[0].dtype))


def assert_right(reading):
    """Weights within the tolerance that is stated, nothing labelled wrong, few calls."""
    view, ledgers = reading.view, Ledgers(reading)
    exists = np.broadcast_to(view.exists, view.shape)
    assert np.isfinite(reading.weights[exists]).all()
    off = np.abs(reading.weights - view.weights)[exists]
    allowed = (reading.tolerance * view.weights + 4 * reading.floor)[exists]
    assert (off <= allowed).all(), (off / np.maximum(allowed, 1e-300)).max()
    assert not ledgers.wrong.any() and not ledgers.nan.any() and not ledgers.zero.any()
    assert not ledgers.lse_off.any() and not ledgers.sum_off.any()
    assert not reading.varies.any() and (reading.unexplained <= 1).all()
    assert reading.spec.output.unit_roundoff > 1e-4 or not exists.any() or ledgers.judged[exists].all()
    if not view.latent:
        assert sum(reading.probes.calls.values()) <= math.ceil(view.num_keys / max(view.v_head_dim, 1)) + 40


def dense_call(shape, dtype="float32", seed=0):
    """`shape`: batch axes, query heads, key/value heads, rows, keys, head_dim, v_head_dim."""
    batch, heads, kv_heads, rows, keys, dim, v_dim = shape
    rng = np.random.default_rng(seed)
    shapes = (*batch, heads, rows, dim), (*batch, kv_heads, keys, dim), (*batch, kv_heads, keys, v_dim)
    return tuple(rng.standard_normal(own).astype(DTYPES[dtype]) for own in shapes)


CALLS = [(form, size) for form, sizes in SIZES.items() for size in sizes]


@pytest.mark.sample(8)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("form", "size"), CALLS)
def test_weights_of_every_form(form, size, dtype, causal):
    arrays, options = tiled_call(form, size, dtype, share_pages=True)
    assert_right(measured(right, arrays, {**options, "causal": causal}))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", ["keys <= rank", "keys > rank"])
@pytest.mark.parametrize("form", ["absorb", "expand"])
def test_weights_of_latents(form, size, dtype):
    arrays, _ = tiled_call("latent", size, dtype)
    assert_right(measured(right, arrays, {"form": form, "causal": True}))


def wrong_tile(*arrays, **options):
    """A latent kernel that halves the weights of keys 16 to 31."""
    q_nope, q_rope, latent, k_rope, w_uk, w_uv = map(np.float64, arrays)
    score = (np.swapaxes(q_nope @ w_uk, -2, -3)).swapaxes(-2, -3) @ latent[:, None].swapaxes(-1, -2)
    score = (score + q_rope @ k_rope[:, None].swapaxes(-1, -2)) / (
        q_nope.shape[-1] + q_rope.shape[-1]
    ) ** 0.5
    p = np.exp(score - score.max(-1, keepdims=True))
    p[..., 16:32] *= 0.5
    p /= p.sum(-1, keepdims=True)
    return (p @ latent[:, None] @ w_uv.swapaxes(-1, -2)).astype(arrays[0].dtype)


@pytest.mark.parametrize("size", ["keys <= rank", "keys > rank"])
def test_weights_of_wrong_latents(size):
    """Where every latent differs, weights are read; of the right kernel they are taken from the reference."""
    arrays, _ = tiled_call("latent", size)
    reading = measured(wrong_tile, arrays, {})
    right_weights = reading.view.weights
    true = right_weights * np.where(np.arange(right_weights.shape[-1]) // 16 == 1, 0.5, 1)
    true /= true.sum(-1, keepdims=True)
    assert np.abs(reading.weights - true).max() < 1e-5


def test_weights_of_blocks():
    arrays = dense_call(((2,), 4, 2, 37, 37, 16, 20))
    assert_right(measured(right, arrays, {"block_size": 7}))


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_of_merged_states(dtype):
    arrays = merge_inputs(DTYPES[dtype], empty="one").arrays
    kernel = lambda outputs, lses: tuple(
        array.astype(kind)
        for array, kind in zip(refattn.merge_states(outputs, lses), (outputs.dtype, np.float32), strict=True)
    )
    assert_right(measured(kernel, arrays, {}, StatesView))


RNG = np.random.default_rng(3)
OPTIONS = {
    "window": {"window": (9, 3)},
    "chunk": {"chunk": 16, "causal": True},
    "softcap": {"softcap": 3.0},
    "bias": {"bias": RNG.standard_normal((2, 4, 29, 67)).astype(np.float32)},
    "bias of -inf": {"bias": np.where(RNG.random((29, 67)) < 0.3, -np.inf, 0.0).astype(np.float32)},
    "mask": {"mask": RNG.random((2, 4, 29, 67)) < 0.6},
    "hidden rows": {"mask": (RNG.random((29, 1)) < 0.5) & (RNG.random((29, 67)) < 0.7)},
    "alibi": {"alibi_slopes": np.array([0.5, 0.2, 0.1, 0.05], np.float32), "causal": True},
    "sinks": {"sinks": np.array([1.0, -np.inf, 0.0, 3.0], np.float32)},
    "lengths": {"kv_lengths": np.array([41, 0])},
    "offset": {"causal": True, "q_offset": np.array([5, -3])},
    "scale": {"scale": -0.4, "causal": True},
    "dropout": {"dropout_mask": RNG.random((2, 4, 29, 67)) < 0.8, "dropout_rate": 0.2},
}


@pytest.mark.sample(4)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPTIONS)
def test_weights_with_options(name, dtype):
    arrays = dense_call(((2,), 4, 2, 29, 67, 12, 16), dtype)
    options = {
        key: value.astype(DTYPES[dtype]) if key == "bias" else value for key, value in OPTIONS[name].items()
    }
    assert_right(measured(right, arrays, options))


# memory


def strided(array):
    room = np.full([2 * n + 3 for n in array.shape], 77, array.dtype)
    view = room[tuple(slice(1, 2 * n + 1, 2) for n in array.shape)]
    view[...] = array
    return view


def read_only(array):
    return np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape)


LAYOUTS = {
    "strided": strided,
    "read-only": read_only,
    "backwards": lambda array: np.flip(np.flip(array).copy()),
    "Fortran": np.asfortranarray,
    "heads and rows swapped": lambda array: np.ascontiguousarray(array.swapaxes(-2, -3)).swapaxes(-2, -3),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_of_any_strides(layout):
    arrays = tuple(LAYOUTS[layout](array) for array in dense_call(((2,), 4, 2, 19, 43, 12, 8)))
    assert_right(measured(right, arrays, {"causal": True}))
    wrong = lambda *arrays, **options: right(*arrays, **options, q_offset=0)
    assert xray(wrong, *arrays, causal=True).verdict == "described"


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize(
    "form",
    ["dense", "paged"],
)
def test_hidden_slots_that_are_not_finite(form, number):
    arrays, options = tiled_call(form)
    if form == "dense":
        options["kv_lengths"] = lengths = np.array([61, 40])
        for b, length in enumerate(lengths):
            arrays[1][b, :, length:] = arrays[2][b, :, length:] = number
    else:
        held = np.zeros((len(arrays[1]), arrays[1].shape[2]), bool)
        for table, length in zip(options["block_table"], options["kv_lengths"], strict=True):
            for place in range(-(-length // held.shape[1])):
                held[table[place], : length - place * held.shape[1]] = True
        for array in arrays[1:]:
            array.transpose(0, 2, 1, 3)[~held] = number
    assert_right(measured(right, arrays, options))


@pytest.mark.parametrize("hidden_by", ["length", "mask"])
def test_a_wrong_kernel_with_nan_in_hidden_keys_is_described(hidden_by):
    arrays = dense_call(((1,), 2, 1, 19, 43, 12, 8))
    arrays[1][..., 37:, :] = np.nan
    hide = {"kv_lengths": 37} if hidden_by == "length" else {"mask": np.arange(43) < 37}
    found = xray(lambda *a, **o: right(*a, **o, scale=0.5), *arrays, **hide)
    assert found.verdict == "described" and "scale" in found.best.says


# kernels of all manners


def test_output_alone_is_enough():
    arrays = dense_call(((1,), 2, 1, 19, 43, 12, 8))
    reading = measured(lambda *a, **o: right(*a, **o)[0], arrays, {"causal": True})
    assert reading.lse is None
    assert_right(reading)
    found = xray(lambda *a, **o: [right(*a, **o, q_offset=0)[0]][0], *arrays, causal=True)
    assert found.best.kind == "visible keys" and found.measured.lse is None


@pytest.mark.parametrize("of", [tuple, list])
def test_output_and_lse_in_a_tuple_or_list(of):
    arrays = dense_call(((1,), 2, 1, 19, 43, 12, 8))
    found = xray(lambda *a, **o: of(right(*a, **o, q_offset=0)), *arrays, causal=True)
    assert found.verdict == "described" and found.measured.lse is not None


def test_what_the_first_call_raises_is_passed_on():
    def kernel(*arrays, **options):
        raise RuntimeError("no device")

    with pytest.raises(RuntimeError, match="no device"):
        xray(kernel, *dense_call(((1,), 2, 1, 19, 43, 12, 8)), causal=True)


@pytest.mark.parametrize("call", [2, 5])
def test_a_kernel_that_fails_in_a_probe_is_described_from_its_result(call):
    arrays, calls = dense_call(((1,), 2, 1, 19, 43, 12, 8)), []

    def kernel(*arrays, **options):
        calls.append(1)
        if len(calls) == call:
            raise RuntimeError("no device")
        output, lse = right(*arrays, **options, q_offset=0)
        return (output if len(calls) < 4 or call == 5 else output[..., :5]), lse

    found = xray(kernel, *arrays, causal=True)
    assert found.verdict != "agrees" and "Not measured: " in found.text()
    assert len(calls) == call


def overwrites(*arrays, **options):
    result = right(*arrays, **options, q_offset=0)
    for array in arrays:
        array[...] = 7
    return result


@pytest.mark.parametrize("layout", [*LAYOUTS, "contiguous"])
def test_a_kernel_that_writes_to_its_arguments(layout):
    change = LAYOUTS.get(layout, lambda array: array)
    arrays = tuple(change(array) for array in dense_call(((2,), 4, 2, 19, 43, 12, 8)))
    before = [array.copy() for array in arrays]
    found = xray(overwrites, *arrays, causal=True)
    assert found.best.kind == "visible keys" and not found.measured.varies.any()
    assert all(map(np.array_equal, arrays, before))


def test_a_kernel_that_writes_to_arrays_among_its_options():
    arrays = dense_call(((2,), 4, 2, 19, 43, 12, 8))
    bias = np.random.default_rng(1).standard_normal((19, 43)).astype(np.float32)
    before = bias.copy()

    def kernel(*arrays, bias, **options):
        result = right(*arrays, bias=2 * bias, **options)
        bias[...] = 0
        return result

    found = xray(kernel, *arrays, bias=bias)
    assert np.array_equal(bias, before)
    assert "bias" in found.best.says and not found.measured.varies.any()


def test_a_kernel_that_returns_the_same_buffer_each_time():
    arrays, buffer = dense_call(((1,), 2, 1, 19, 43, 12, 8)), np.zeros((1, 2, 19, 8), np.float32)

    def kernel(*arrays, **options):
        buffer[...] = right(*arrays, **options, q_offset=0)[0]
        return buffer

    found = xray(kernel, *arrays, causal=True)
    assert found.best.kind == "visible keys" and not found.measured.varies.any()
    assert np.array_equal(found.measured.output[0], right(*arrays, causal=True, q_offset=0)[0][0])


def test_settings_of_warnings_stay():
    arrays = dense_call(((1,), 2, 1, 19, 43, 12, 8))

    def kernel(*arrays, **options):
        np.float32(1) / np.zeros(1, np.float32)  # a wrong kernel may do so
        return right(*arrays, **options, q_offset=0)

    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        settings, filters = np.geterr(), [*warnings.filters]
        found = xray(kernel, *arrays, causal=True)
        assert np.geterr() == settings and warnings.filters == filters
    assert found.verdict == "described"


def test_calls_are_counted():
    arrays, calls = dense_call(((1,), 2, 1, 19, 43, 12, 8)), []

    def kernel(*arrays, **options):
        calls.append(1)
        return right(*arrays, **options, q_offset=0)

    found = xray(kernel, *arrays, causal=True)
    assert found.calls == len(calls) - 1 or found.calls == len(calls)
    assert found.called["one-hot values"] == math.ceil(43 / 8)


def test_results_are_copied_from_the_kernel():
    query, key, value = dense_call(((1,), 2, 1, 19, 43, 12, 8))
    given = call_once(lambda q, k, v: q[..., :8], (query, key, value), {})
    output = next(iter(given.values()))
    assert np.array_equal(output, query[..., :8]) and not np.shares_memory(output, query)
