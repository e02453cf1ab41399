"""Keys and values stored in 16 bits: widened in registers where few rows read them, with the bits that
widening them first would give.
"""

import runpy
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

import cpu_kernels
from cpu_kernels import strided
from cpu_kernels.compiler.jit import cpu_features
from cpu_kernels.simd import registers
from cpu_kernels.strided import HAS_FLOAT16

DTYPES = [ml_dtypes.bfloat16, np.float16]
# (query heads, kv heads, query rows, keys, head_dim, v_head_dim): every count of few rows, odd dims, more
# rows than few, split keys
SHAPES = [
    (1, 1, 1, 1, 16, 16),
    (2, 2, 1, 97, 32, 48),
    (4, 2, 1, 131, 16, 64),
    (5, 1, 1, 61, 64, 16),
    (8, 1, 1, 257, 48, 32),
    (13, 1, 1, 67, 16, 16),
    (3, 3, 5, 41, 16, 16),
    (4, 1, 4, 73, 32, 32),
    (2, 1, 1, 53, 7, 11),
    (2, 1, 19, 29, 16, 16),
    (8, 2, 1, 3001, 64, 64),
]


@pytest.mark.parametrize(
    "machine, flags, converts, vectors",
    [
        ("x86_64", "+sse2", False, 2),
        ("x86_64", "+avx,+avx2", False, 2),
        ("x86_64", "+avx,+f16c", True, 2),
        ("x86_64", "+avx512f", True, 4),  # F16C is part of AVX-512, but a user may not name it
        ("arm64", "+crc", True, 4),
    ],
)
def test_what_instruction_sets_have(monkeypatch, machine, flags, converts, vectors):
    """Conversion of float16, and the vector registers of a tile."""
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("cpu_kernels.compiler.jit.config.CPU_FEATURES", flags)
    cpu_features.cache_clear()
    try:
        assert runpy.run_path(strided.__file__)["HAS_FLOAT16"] == converts
        assert runpy.run_path(registers.__file__)["MAX_VECTORS"] == vectors
    finally:
        cpu_features.cache_clear()


def same_as_widened(function, query, key, value, **options):
    output, lse = function(query, key, value, **options)
    wide, wide_lse = function(query, *(x.astype(np.float32) for x in (key, value)), **options)
    assert np.array_equal(output.view(np.int16), wide.view(np.int16))
    assert np.array_equal(lse, wide_lse, equal_nan=True)
    return output


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_case_dense(dtype, shape):
    heads, kv_heads, rows, keys, dim, v_dim = shape
    rng = np.random.default_rng(0)
    query, key, value = (
        rng.normal(size=(2, *size)).astype(dtype)
        for size in ((heads, rows, dim), (kv_heads, keys, dim), (kv_heads, keys, v_dim))
    )
    slopes = rng.random(heads)
    same_as_widened(cpu_kernels.attention_with_lse, query, key, value, causal=rows > 1, alibi_slopes=slopes)
    same_as_widened(
        cpu_kernels.attention_with_lse,
        query,
        key[..., ::-1, :],
        value[..., ::-1, :],
        window=(40, 3),
        sinks=slopes,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_case_infinities(dtype):
    rng = np.random.default_rng(1)
    query, key, value = (rng.normal(size=(4, n, 32)).astype(dtype) for n in (1, 43, 43))
    clean = value.copy()
    value[:, 7], value[:, 9, 3], value[:, 11, 5] = np.nan, np.inf, -np.inf
    mask = np.arange(43) != 7
    output = same_as_widened(cpu_kernels.attention_with_lse, query, key, value, mask=mask[None])
    expected = cpu_kernels.attention(query, key, clean, mask=mask[None]).astype(np.float32)
    expected[..., 3], expected[..., 5] = np.inf, -np.inf
    assert np.allclose(
        output.astype(np.float32), expected, rtol=2.0**-6
    )  # the sums are grouped otherwise: a rounding apart


def draw(rng, dtype, *shapes):
    return [rng.normal(size=shape).astype(dtype) for shape in shapes]


def packed(rng, dtype, rows):
    lens = dict(cu_q=np.array([0, rows, rows + 1]), cu_kv=np.array([0, 1531, 1608]))
    return (
        cpu_kernels.packed_attention_with_lse,
        draw(rng, dtype, (4, rows + 1, 32), (2, 1608, 32), (2, 1608, 48)),
        lens | dict(causal=True),
    )


def block_local(rng, dtype, rows):
    arrays = draw(rng, dtype, (2, 4, 599, 32), (2, 2, 599, 32), (2, 2, 599, 48))
    return cpu_kernels.block_local_attention_with_lse, arrays, dict(block_size=rows, sinks=rng.random(4))


def latent(rng, dtype, rows, form="absorb"):
    arrays = draw(
        rng,
        dtype,
        (2, 4, rows, 16),
        (2, 4, rows, 32),
        (2, 2003, 64),
        (2, 2003, 32),
        (4, 16, 64),
        (4, 48, 64),
    )
    return cpu_kernels.latent_attention_with_lse, arrays, dict(form=form, causal=True)


def expanded(rng, dtype, rows):
    return latent(rng, dtype, rows, "expand")


@pytest.mark.parametrize("rows", [1, 3, 61])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", [packed, block_local, latent, expanded])
def test_case_form(form, dtype, rows):
    function, (query, *others), options = form(np.random.default_rng(3), dtype, rows)
    output, lse = function(query, *others, **options)
    wide, wide_lse = function(query, *[x.astype(np.float32) for x in others], **options)
    assert np.array_equal(output.view(np.int16), wide.view(np.int16)) and np.array_equal(lse, wide_lse)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", [packed, block_local, latent])
def test_case_few_rows_copy_no_keys(form, dtype, monkeypatch):
    if dtype == np.float16 and not HAS_FLOAT16:
        pytest.skip("no instruction converts float16 here: keys and values are copied")
    function, (query, *others), options = form(np.random.default_rng(3), dtype, 2)
    flat, copied = strided.flat, []

    def watched(x, to):
        copied.extend([x] if x.dtype.itemsize != to.itemsize else [])
        return flat(x, to)

    monkeypatch.setattr(strided, "flat", watched)
    function(query, *others, **options)
    keys_and_values = others[1:3] if form is latent else others
    assert copied and not any(np.shares_memory(x, shared) for x in copied for shared in keys_and_values)


@pytest.mark.parametrize("rows", [1, 37])
@pytest.mark.parametrize("dtype", DTYPES)
def test_case_pages_are_not_copied(dtype, rows):
    rng = np.random.default_rng(2)
    query = rng.normal(size=(2, 4, rows, 32)).astype(dtype)
    key, value = np.zeros((2, 4000, 2, 16, 32), dtype)
    key[:9], value[:9] = rng.normal(size=(2, 9, 2, 16, 32))
    options = dict(block_table=np.arange(8).reshape(2, 4), kv_lengths=[61, 50], causal=True)
    same_as_widened(cpu_kernels.paged_attention_with_lse, query, key, value, **options)
    if dtype == np.float16 and not HAS_FLOAT16:
        pytest.skip("no instruction converts float16 here: the pages are copied")
    tracemalloc.start()
    try:
        cpu_kernels.paged_attention(query, key, value, **options)
        assert tracemalloc.get_traced_memory()[1] < key.nbytes / 4
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "dtypes", [(np.float16, np.float32), (np.float32, np.float16), (np.float16, ml_dtypes.bfloat16)], ids=str
)
def test_case_mixed(dtypes):
    rng = np.random.default_rng(4)
    query, key, value = (
        rng.normal(size=(4, n, 32)).astype(dtype) for n, dtype in zip((1, 43, 43), (np.float32, *dtypes))
    )
    output, lse = cpu_kernels.attention_with_lse(query, key, value)
    wide, wide_lse = cpu_kernels.attention_with_lse(query, key.astype(np.float32), value.astype(np.float32))
    assert np.array_equal(output, wide) and np.array_equal(lse, wide_lse)
